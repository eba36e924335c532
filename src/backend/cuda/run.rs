//! One evaluation: the launches of a forward and a backward pass, in order.

use super::device::{Device, Kernel, LaunchSize};
use super::error::CudaError;
use super::gemm::{self, Arithmetic, Beside, GemmLaunch, NO_BIAS};
use super::params::*;
use super::pass::Pass;
use super::plan::{AtomKey, EdgeKey, EdgeStage, Plan, Stage, gradient_number, value_number};
use super::precision::Number;
use super::shapes::Shapes;
use super::weights::{Matrix, Pool, Weights};
use crate::nn::op::BalanceTarget;
use crate::nn::{Buf, Op, Program, RadialMlp, So2Weights, Weight};

/// What every evaluation of a program needs on the device.
#[derive(Clone, Copy, Debug)]
pub struct Constants {
    /// Degree of each edge row, u32.
    pub row_degree: DevicePtr,
    /// Half turns J_l, f64.
    pub half_turns: DevicePtr,
    /// What each radial row scales, [`RadialRow`].
    pub radial_rows: DevicePtr,
}

/// Queues the launches of one evaluation.
pub struct Runner<'a> {
    /// Where.
    pub device: &'a dyn Device,
    /// What.
    pub program: &'a Program,
    /// How.
    pub plan: &'a Plan,
    /// Its memory.
    pub pass: &'a Pass,
    /// Its weights.
    pub weights: &'a Weights,
    /// Constants.
    pub constants: Constants,
    /// Launch sizes.
    pub shapes: &'a Shapes,
}

mod backward;
mod radial;

type Done = Result<(), CudaError>;

/// Writes what a pass has from the start.
///
/// # Errors
/// Those of the device.
pub fn prepare(device: &dyn Device, pass: &Pass) -> Done {
    let atoms = pass.capacity.atoms;
    let params = FillParams {
        destination: pass.at(pass.places.ones),
        count: atoms as u64,
        value: 1f32.to_bits(),
        pad: 0,
    };
    device.launch(Kernel("fill"), LaunchSize::cover(atoms, 256), &params)
}

/// The edges that a launch covers.
#[derive(Clone, Copy)]
struct Edges {
    /// Index of the chunk.
    chunk: usize,
    /// Index of the stage.
    stage: usize,
    /// Whether in the backward pass: its buffers lie elsewhere.
    backward: bool,
}

impl Runner<'_> {
    /// Everything from edge vectors to dE/d(vector) and the energies of the atoms.
    pub fn evaluate(&self) -> Done {
        self.geometry()?;
        self.first_layers()?;
        for s in 0..self.plan.stages.len() {
            self.forward(s)?;
        }
        self.edge_sums()?;
        for s in (0..self.plan.stages.len()).rev() {
            self.backward(s)?;
        }
        self.first_layers_backward()?;
        self.edge_force()
    }

    /// Energy of each atom, f32 `[N]`, after an evaluation.
    pub fn energies(&self) -> DevicePtr {
        self.value(self.program.atom_energy)
    }

    fn launch<P: Params>(&self, (kernel, size): (Kernel, LaunchSize), params: &P) -> Done {
        self.device.launch(kernel, size, params)
    }

    fn atoms(&self) -> usize {
        self.pass.capacity.atoms
    }

    fn at(&self, place: usize) -> DevicePtr {
        self.pass.at(place)
    }

    fn atom(&self, key: AtomKey) -> DevicePtr {
        if key == AtomKey::Gradient(self.program.atom_energy) {
            return self.at(self.pass.places.ones);
        }
        let offset = self
            .plan
            .atoms
            .find(self.plan.gradients.place(key))
            .expect("every atom buffer is planned");
        self.at(self.pass.places.atom_arena)
            .offset(offset * self.atoms())
    }

    fn value(&self, buf: Buf) -> DevicePtr {
        self.atom(AtomKey::Value(buf))
    }

    fn gradient(&self, buf: Buf) -> DevicePtr {
        self.atom(AtomKey::Gradient(buf))
    }

    fn edge(&self, at: Edges, key: EdgeKey) -> DevicePtr {
        if let EdgeKey::Value(buf) = key
            && let Some(offset) = self.plan.kept_at(buf)
        {
            return self.pass.kept(offset, at.chunk, self.plan.kept_bytes);
        }
        let buffers = &self.plan.edges[at.stage];
        let arena = match at.backward {
            true => &buffers.backward,
            false => &buffers.forward,
        };
        let offset = arena.find(key).expect("every edge buffer is planned");
        self.at(self.pass.places.edge_arena)
            .offset(offset * self.pass.chunking.rows)
    }

    /// How the values of an edge buffer lie in memory.
    fn value_number(&self, buf: Buf) -> Number {
        value_number(self.program, self.plan.numbers, buf)
    }

    /// How its gradient lies in memory.
    fn gradient_number(&self, buf: Buf) -> Number {
        gradient_number(self.program, self.plan.numbers, buf)
    }

    /// How a product of edge values multiplies.
    fn arithmetic(&self, memory: Number, result: Number) -> Arithmetic {
        Arithmetic::of_edges(memory, self.plan.numbers.operands, result)
    }

    fn channels(&self) -> u32 {
        self.program.channels as u32
    }

    fn lmax(&self) -> u32 {
        self.program.layout.lmax as u32
    }

    fn mmax(&self) -> u32 {
        self.program.layout.mmax as u32
    }

    fn shape(&self, weight: Weight) -> &[usize] {
        &self.program.weights[weight.0].shape
    }

    fn zero(&self, key: AtomKey, width: usize) -> Done {
        self.device
            .fill_bytes(self.atom(key), 0, 4 * width * self.atoms())
    }

    fn add(&self, x: DevicePtr, y: DevicePtr, width: usize) -> Done {
        let params = AddNodesParams {
            chunk: self.pass.whole(),
            x,
            y,
            width: width as u32,
            pad: 0,
        };
        self.launch(self.shapes.add_nodes(self.atoms(), width), &params)
    }

    // --- geometry -------------------------------------------------------------------------------

    fn geometry(&self) -> Done {
        let p = &self.pass.places;
        let params = EdgeGeometryParams {
            chunk: self.pass.whole(),
            vector: self.at(p.vector),
            half_turns: self.constants.half_turns,
            distance: self.at(p.distance),
            unit: self.at(p.unit),
            envelope: self.at(p.envelope),
            wigner: self.at(p.wigner),
            cutoff: self.program.cutoff,
            lmax: self.lmax(),
            mmax: self.mmax(),
            wigner_len: self.program.layout.wigner_len as u32,
            pad: 0,
        };
        self.launch(self.shapes.edge_geometry(self.pass.capacity.edges), &params)
    }

    fn edge_force(&self) -> Done {
        let p = &self.pass.places;
        let params = EdgeForceParams {
            chunk: self.pass.whole(),
            vector: self.at(p.vector),
            d_distance: self.at(p.d_distance),
            d_envelope: self.at(p.d_envelope),
            torque: self.at(p.torque),
            source_torque: self.at(p.source_torque),
            gradient: self.at(p.gradient),
            cutoff: self.program.cutoff,
            edge_stride: self.pass.capacity.edges as u64,
            networks: self.plan.networks.len() as u32,
            pad: 0,
        };
        self.launch(self.shapes.edge_force(self.pass.capacity.edges), &params)
    }

    // --- neighbours, and sums over them ---------------------------------------------------------

    /// Finds the edges.
    pub fn search(&self) -> Done {
        let p = &self.pass.places;
        let capacity = &self.pass.capacity;
        let params = NeighborParams {
            batch: self.pass.whole(),
            atom_system: self.at(p.atom_system),
            atom_start: self.at(p.atom_start),
            grids: self.at(p.grids),
            position: self.at(p.position),
            wrapped: self.at(p.wrapped),
            home: self.at(p.home),
            bin: self.at(p.bin),
            place: self.at(p.place),
            sorted: self.at(p.sorted),
            bin_start: self.at(p.bin_start),
            degree: self.at(p.degree),
            target_start: self.at(p.target_start),
            found_source: self.at(p.found_source),
            found_image: self.at(p.found_image),
            source: self.at(p.source),
            target: self.at(p.target),
            image: self.at(p.image),
            vector: self.at(p.vector),
            flags: self.at(p.flags),
            cutoff2: self.program.cutoff * self.program.cutoff,
        };
        let warps = LaunchSize::cover(32 * capacity.atoms, 128);
        self.launch((Kernel("neighbor_count"), warps), &params)?;
        let start = NeighborStartParams {
            batch: self.pass.whole(),
            degree: self.at(p.degree),
            target_start: self.at(p.target_start),
            source_start: self.at(p.source_start),
            flags: self.at(p.flags),
            capacity: capacity.edges as u64,
        };
        self.launch((Kernel("neighbor_start"), LaunchSize::new(1, 1024)), &start)?;
        self.launch((Kernel("neighbor_fill"), warps), &params)?;
        let reverse = NeighborReverseParams {
            batch: self.pass.whole(),
            target_start: self.at(p.target_start),
            source: self.at(p.source),
            target: self.at(p.target),
            image: self.at(p.image),
            by_source: self.at(p.by_source),
        };
        let edges = LaunchSize::cover(capacity.edges, 256);
        self.launch((Kernel("neighbor_reverse"), edges), &reverse)?;
        let chunks = NeighborChunksParams {
            batch: self.pass.whole(),
            chunks: self.at(p.chunks),
            target_start: self.at(p.target_start),
            atom_start: self.at(p.atom_start),
            edge_start: self.at(p.edge_start),
            tiles: self.at(p.edge_tiles),
            chunk_edges: self.pass.chunking.edges as u64,
            chunk_count: self.pass.chunking.count as u32,
            tile_capacity: self.pass.chunking.tiles as u32,
            systems: capacity.systems as u32,
            pad: 0,
        };
        let size = LaunchSize::new(self.pass.chunking.count as u32, 256);
        self.launch((Kernel("neighbor_chunks"), size), &chunks)
    }

    /// Forces, energies and virials from dE/d(vector).
    pub fn totals(&self) -> Done {
        let p = &self.pass.places;
        let params = AtomForceParams {
            chunk: self.pass.whole(),
            target_start: self.at(p.target_start),
            source_start: self.at(p.source_start),
            by_source: self.at(p.by_source),
            vector: self.at(p.vector),
            gradient: self.at(p.gradient),
            force: self.at(p.force),
            virial: self.at(p.atom_virial),
        };
        self.launch(self.shapes.atom_force(self.atoms()), &params)?;
        let params = SystemSumsParams {
            atom_start: self.at(p.atom_start),
            atom_energy: self.energies(),
            atom_virial: self.at(p.atom_virial),
            energy: self.at(p.energy),
            virial: self.at(p.virial),
            systems: self.pass.capacity.systems as u32,
            pad: 0,
        };
        self.launch(self.shapes.system_sums(self.pass.capacity.systems), &params)
    }

    // --- products -------------------------------------------------------------------------------

    /// Base pointers of a pool: shared, or a table by system.
    fn bases(&self, pool: Pool) -> (DevicePtr, DevicePtr) {
        match pool {
            Pool::Edge | Pool::Atom => (self.weights.base(pool), DevicePtr::NULL),
            Pool::Mixed => (DevicePtr::NULL, self.at(self.pass.places.mixed_table)),
            Pool::Task => (DevicePtr::NULL, self.at(self.pass.places.task_table)),
        }
    }

    fn atom_product(&self, pool: Pool, spans: &[GemmSpan], params: GemmParams) -> Done {
        let p = &self.pass.places;
        let (weights, weight_table) = self.bases(pool);
        let tiles = self.atoms().div_ceil(gemm::TILE_ROWS) + self.pass.capacity.systems;
        let params = GemmParams {
            weights,
            weight_table,
            tiles: self.at(p.atom_tiles),
            // A field of `Chunk`.
            tile_count: self.pass.whole().at::<u32>(5),
            ..params
        };
        let room = (tiles, self.device.info().shared_bytes);
        let launch = gemm::launch(Arithmetic::F32, Beside::Nothing, room, spans, params);
        self.launch((launch.kernel, launch.size), &launch.params)
    }

    fn edge_product(
        &self,
        at: Edges,
        arithmetic: Arithmetic,
        beside: Beside,
        pool: Pool,
        spans: &[GemmSpan],
        params: GemmParams,
    ) -> Done {
        let launch = self.edge_launch(at, arithmetic, beside, pool, spans, params);
        self.launch((launch.kernel, launch.size), &launch.params)
    }

    fn edge_launch(
        &self,
        at: Edges,
        arithmetic: Arithmetic,
        beside: Beside,
        pool: Pool,
        spans: &[GemmSpan],
        params: GemmParams,
    ) -> GemmLaunch {
        let p = &self.pass.places;
        let (weights, weight_table) = self.bases(pool);
        let tiles = self.pass.chunking.tiles;
        let chunk = self.pass.chunk(at.chunk);
        let params = GemmParams {
            weights,
            weight_table,
            tiles: self.at(p.edge_tiles).at::<Tile>(at.chunk * tiles),
            // Fields of `Chunk`.
            tile_count: chunk.at::<u32>(4),
            first_item: chunk.at::<u32>(2),
            ..params
        };
        let room = (tiles, self.device.info().shared_bytes);
        gemm::launch(arithmetic, beside, room, spans, params)
    }

    /// One matrix `[out][in]` as a span, its pool, and the place of its transpose.
    fn matrix(&self, weight: Weight) -> (GemmSpan, Matrix) {
        let matrix = self.weights.matrix(weight);
        let shape = self.shape(weight);
        let span = GemmSpan {
            k: shape[shape.len() - 1] as u32,
            n: shape[shape.len() - 2] as u32,
            rows: 1,
            bias_offset: NO_BIAS,
            weight_offset: matrix.forward,
            ..GemmSpan::default()
        };
        (span, matrix)
    }

    /// The blocks of an SO(2) map, forward and backward.
    fn so2_spans(
        &self,
        weights: &So2Weights,
        (channels_in, channels_out): (usize, usize),
        gates: usize,
    ) -> (Vec<GemmSpan>, Vec<GemmSpan>, Pool) {
        let (m0, matrix) = self.matrix(weights.m0);
        let mut forward = vec![GemmSpan {
            bias_offset: 0,
            ..m0
        }];
        let mut backward = vec![gemm::transposed(&m0, matrix.backward)];
        for (block, &weight) in self.program.layout.blocks.iter().zip(&weights.m) {
            let complex = self.weights.matrix(weight);
            let span = GemmSpan {
                a_offset: (block.row * channels_in) as u32,
                out_offset: (gates + block.row * channels_out) as u32,
                k: (2 * block.degrees * channels_in) as u32,
                n: (2 * block.degrees * channels_out) as u32,
                rows: 1,
                bias_offset: NO_BIAS,
                weight_offset: complex.forward,
                ..GemmSpan::default()
            };
            forward.push(span);
            backward.push(gemm::transposed(&span, complex.backward));
        }
        (forward, backward, matrix.pool)
    }

    /// The degrees of an SO(3) map, forward and backward.
    fn so3_spans(&self, weight: Weight) -> (Vec<GemmSpan>, Vec<GemmSpan>, Pool) {
        let (one, matrix) = self.matrix(weight);
        let degrees = self.program.layout.lmax as u32 + 1;
        let spans = |l: u32| {
            let size = u64::from(l) * u64::from(one.k) * u64::from(one.n);
            let span = GemmSpan {
                a_offset: l * l * one.k,
                out_offset: l * l * one.n,
                rows: 2 * l + 1,
                bias_offset: if l == 0 { 0 } else { NO_BIAS },
                weight_offset: matrix.forward + size,
                ..one
            };
            (span, gemm::transposed(&span, matrix.backward + size))
        };
        let (forward, backward) = (0..degrees).map(spans).unzip();
        (forward, backward, matrix.pool)
    }

    // --- forward --------------------------------------------------------------------------------

    fn forward(&self, s: usize) -> Done {
        match &self.plan.stages[s] {
            Stage::Atoms(i) => self.forward_atoms(*i),
            Stage::Edges(stage) => {
                for chunk in 0..self.pass.chunking.count {
                    let at = Edges {
                        chunk,
                        stage: s,
                        backward: false,
                    };
                    self.forward_edges(stage, &stage.ops, at)?;
                }
                Ok(())
            }
        }
    }

    fn forward_atoms(&self, i: usize) -> Done {
        let p = &self.pass.places;
        let (channels, lmax) = (self.channels(), self.lmax());
        let rows = self.program.layout.rows as u32;
        let chunk = self.pass.whole();
        match &self.program.ops[i] {
            Op::EmbedAtoms { table, out } => {
                let params = EmbedAtomsParams {
                    chunk,
                    numbers: self.at(p.numbers),
                    atom_system: self.at(p.atom_system),
                    table: self.weights.plain(*table),
                    conditioning: self.at(p.conditioning),
                    out: self.value(*out),
                    channels,
                    rows,
                };
                self.launch(self.shapes.embed_atoms(self.atoms()), &params)
            }
            Op::RmsNorm {
                x,
                weight,
                bias,
                add_conditioning,
                out,
            } => {
                let params = RmsNormParams {
                    chunk,
                    atom_system: self.at(p.atom_system),
                    x: self.value(*x),
                    weight: self.weights.plain(*weight),
                    bias: self.weights.plain(*bias),
                    conditioning: match add_conditioning {
                        true => self.at(p.conditioning),
                        false => DevicePtr::NULL,
                    },
                    out: self.value(*out),
                    channels,
                    lmax,
                };
                self.launch(self.shapes.rms_norm(self.atoms()), &params)
            }
            Op::Linear {
                x,
                weight,
                bias,
                silu,
                pre,
                out,
            } => {
                let (span, matrix) = self.matrix(*weight);
                let span = GemmSpan {
                    bias_offset: 0,
                    ..span
                };
                let params = GemmParams {
                    a: self.value(*x),
                    a_stride: self.program.width(*x) as u64,
                    bias: self.weights.plain(*bias),
                    out: self.value(*out),
                    out_stride: self.program.width(*out) as u64,
                    pre: match silu {
                        true => self.value(*pre),
                        false => DevicePtr::NULL,
                    },
                    flags: if *silu { gemm::SILU } else { 0 },
                    ..GemmParams::default()
                };
                self.atom_product(matrix.pool, &[span], params)
            }
            Op::So3Linear {
                x,
                weight,
                bias,
                residual,
                out,
                ..
            } => {
                let (spans, _, pool) = self.so3_spans(*weight);
                let params = GemmParams {
                    a: self.value(*x),
                    a_stride: self.program.width(*x) as u64,
                    bias: self.weights.plain(*bias),
                    residual: residual.map_or(DevicePtr::NULL, |r| self.value(r)),
                    residual_stride: self.program.width(*out) as u64,
                    out: self.value(*out),
                    out_stride: self.program.width(*out) as u64,
                    ..GemmParams::default()
                };
                self.atom_product(pool, &spans, params)
            }
            Op::GateAtoms {
                x,
                gates,
                channels,
                out,
            } => {
                let params = GateAtomsParams {
                    chunk,
                    x: self.value(*x),
                    gates: self.value(*gates),
                    out: self.value(*out),
                    channels: *channels as u32,
                    lmax,
                };
                self.launch(self.shapes.gate_atoms(self.atoms()), &params)
            }
            // Done with the one before.
            Op::Balance { .. } if self.plan.gradients.balanced_before(i) => Ok(()),
            Op::Balance { x, out, .. } => {
                let (x, to) = (self.value(*x), self.value(*out));
                if x != to {
                    let bytes = 4 * self.program.width(*out) * self.atoms();
                    self.device.copy(to, x, bytes)?;
                }
                let second = self.plan.gradients.balanced_with(i);
                let ops: Vec<usize> = std::iter::once(i).chain(second).collect();
                self.balance(to, &ops, true)
            }
            Op::Radial { .. }
            | Op::ScatterRadial { .. }
            | Op::GatherRotateScale { .. }
            | Op::So2Linear { .. }
            | Op::GateEdges { .. }
            | Op::RotateScatter { .. } => unreachable!("part of an edge stage"),
        }
    }

    /// One or two balances in place: of values, whose sums are given, or of gradients.
    fn balance(&self, x: DevicePtr, ops: &[usize], of_values: bool) -> Done {
        let p = &self.pass.places;
        let systems = self.pass.capacity.systems;
        let mut params = BalanceParams {
            atom_start: self.at(p.atom_start),
            x,
            systems: systems as u32,
            width: (self.program.layout.rows * self.program.channels) as u32,
            ranges: ops.len() as u32,
            ..BalanceParams::default()
        };
        for (range, &i) in ops.iter().enumerate() {
            let Op::Balance {
                channels, target, ..
            } = &self.program.ops[i]
            else {
                unreachable!("a balance")
            };
            params.first[range] = channels.start as u32;
            params.count[range] = channels.len() as u32;
            if of_values {
                params.wanted[range] = match target {
                    BalanceTarget::Charge => self.at(p.charge),
                    BalanceTarget::UnpairedElectrons => self.at(p.unpaired),
                };
            }
        }
        self.launch(self.shapes.balance(systems), &params)
    }

    /// Operations of a stage, in order.
    fn forward_edges(&self, stage: &EdgeStage, ops: &[usize], at: Edges) -> Done {
        ops.iter()
            .filter(|&&i| stage.leader(i, ops).is_none())
            .try_for_each(|&i| self.forward_edge(stage, i, ops, at))
    }

    fn forward_edge(&self, stage: &EdgeStage, i: usize, ops: &[usize], at: Edges) -> Done {
        let p = &self.pass.places;
        let rows = self.pass.chunking.rows;
        let chunk = self.pass.chunk(at.chunk);
        match &self.program.ops[i] {
            Op::Radial { mlp, .. } => self.radial(i, mlp, stage.follower(i, ops), at),
            Op::GatherRotateScale { x, radial, out, .. } => {
                let params = GatherRotateScaleParams {
                    chunk,
                    source: self.at(p.source),
                    target: self.at(p.target),
                    wigner: self.at(p.wigner),
                    x: self.value(*x),
                    radial: self.edge(at, EdgeKey::Value(*radial)),
                    out: self.edge(at, EdgeKey::Value(*out)),
                    channels: self.channels(),
                    pad: 0,
                };
                let written = self.value_number(*out);
                self.launch(self.shapes.gather_rotate_scale(rows, written), &params)
            }
            Op::So2Linear {
                x,
                weights,
                channels_in,
                channels_out,
                gates,
                out,
            } => {
                let (mut spans, _, pool) =
                    self.so2_spans(weights, (*channels_in, *channels_out), *gates);
                let params = GemmParams {
                    a: self.edge(at, EdgeKey::Value(*x)),
                    a_stride: self.program.width(*x) as u64,
                    bias: self.weights.plain(weights.m0_bias),
                    out: self.edge(at, EdgeKey::Value(*out)),
                    out_stride: self.program.width(*out) as u64,
                    ..GemmParams::default()
                };
                let arithmetic = self.arithmetic(self.value_number(*x), self.value_number(*out));
                let product = |beside, spans: &[GemmSpan], params| {
                    self.edge_product(at, arithmetic, beside, pool, spans, params)
                };
                let gate = stage.follower(i, ops).map(|gate| &self.program.ops[gate]);
                let Some(Op::GateEdges { out: gated, .. }) = gate else {
                    return product(Beside::Nothing, &spans, params);
                };
                // The gates first: rows of all orders pass them.
                let [of_gates, of_rows] = gemm::split(&spans[0], *gates as u32);
                product(Beside::Nothing, &[of_gates], params)?;
                spans[0] = of_rows;
                let params = GemmParams {
                    gate_channels: *channels_out as u32,
                    gate_values: *gates as u32,
                    row_degree: self.constants.row_degree,
                    gated: self.edge(at, EdgeKey::Value(*gated)),
                    gated_stride: self.program.width(*gated) as u64,
                    ..params
                };
                product(Beside::Gate, &spans, params)
            }
            Op::GateEdges { x, channels, out } => {
                let params = GateEdgesParams {
                    chunk,
                    x: self.edge(at, EdgeKey::Value(*x)),
                    out: self.edge(at, EdgeKey::Value(*out)),
                    channels: *channels as u32,
                    lmax: self.lmax(),
                    mmax: self.mmax(),
                    pad: 0,
                };
                let written = self.value_number(*out);
                self.launch(self.shapes.gate_edges(rows, written), &params)
            }
            Op::RotateScatter { message, x, out } => {
                let size = self.shapes.rotate_scatter(self.atoms());
                self.scatter(size, *message, *x, *out, 1.0, at)
            }
            Op::ScatterRadial {
                radial,
                x,
                scale,
                out,
            } => {
                let size = self.shapes.scatter_radial(self.atoms());
                self.scatter(size, *radial, *x, *out, *scale as f32, at)
            }
            _ => unreachable!("not part of an edge stage"),
        }
    }

    fn scatter(
        &self,
        size: (Kernel, LaunchSize),
        message: Buf,
        residual: Buf,
        out: Buf,
        scale: f32,
        at: Edges,
    ) -> Done {
        let p = &self.pass.places;
        let params = RotateScatterParams {
            chunk: self.pass.chunk(at.chunk),
            target_start: self.at(p.target_start),
            wigner: self.at(p.wigner),
            envelope: self.at(p.envelope),
            message: self.edge(at, EdgeKey::Value(message)),
            residual: self.value(residual),
            out: self.value(out),
            channels: self.channels(),
            scale,
        };
        self.launch(size, &params)
    }
}
