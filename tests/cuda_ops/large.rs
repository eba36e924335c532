//! Places in memory beyond 2^32 elements: every kernel computes the same for a few atoms and edges whether
//! these are the first of a batch or stand behind millions of others, which are pages of a reserved mapping
//! that nobody touches. An offset in 32 bits, signed or not, would wrap and read or write elsewhere.

use super::*;
use memmap2::{MmapMut, MmapOptions};
use std::cell::RefCell;
use umaserve::backend::cuda::gemm::{self, Arithmetic, Beside};
use umaserve::backend::cuda::host::{HostDevice, SHARED_BYTES};
use umaserve::backend::cuda::params::*;
use umaserve::backend::cuda::shapes::radial_rows;

const CHANNELS: usize = 128;
const ATOMS: usize = 3;
/// Two to each atom.
const SOURCE: [u32; EDGES] = [1, 2, 0, 2, 0, 1];
const EDGES: usize = 6;
/// Elements that lie before the first of the rows at hand.
const BEFORE: usize = (1 << 32) + (1 << 20);

/// What the rows of an array are.
#[derive(Clone, Copy, PartialEq)]
enum Rows {
    Few,
    Atoms,
    Edges,
}

/// Rows behind so many atoms and edges.
struct Far {
    atoms: usize,
    edges: usize,
    bench: Bench,
    device: HostDevice,
    random: RefCell<Random>,
    maps: RefCell<Vec<MmapMut>>,
}

impl Far {
    fn new(atoms: usize, edges: usize) -> Far {
        Far {
            atoms,
            edges,
            bench: Bench::new((2, 2), CHANNELS, Precision::F32, ThreadOrder::Ascending),
            device: HostDevice::default(),
            random: RefCell::new(Random::new(3)),
            maps: RefCell::default(),
        }
    }

    /// Rows before the first of an array, and how many there are.
    fn rows(&self, rows: Rows) -> (usize, usize) {
        match rows {
            Rows::Few => (0, 1),
            Rows::Atoms => (self.atoms, ATOMS),
            Rows::Edges => (self.edges, EDGES),
        }
    }

    /// An array of which only the rows at hand are ever touched.
    fn put<T: bytemuck::NoUninit>(&self, rows: Rows, width: usize, values: &[T]) -> DevicePtr {
        let begin = self.rows(rows).0 * width * size_of::<T>();
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let map = MmapOptions::new()
            .len(begin + bytes.len().max(16))
            .no_reserve_swap()
            .map_anon();
        let mut map = map.expect("address space for a mapping that stays empty");
        map[begin..begin + bytes.len()].copy_from_slice(bytes);
        let at = DevicePtr(map.as_ptr() as u64);
        self.maps.borrow_mut().push(map);
        at
    }

    fn few<T: bytemuck::NoUninit>(&self, values: &[T]) -> DevicePtr {
        self.put(Rows::Few, 0, values)
    }

    /// Random numbers, f32.
    fn floats(&self, rows: Rows, width: usize) -> DevicePtr {
        let values = self.random.borrow_mut().values(self.rows(rows).1 * width);
        let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
        self.put(rows, width, &values)
    }

    /// Random numbers, f64.
    fn doubles(&self, rows: Rows, width: usize) -> DevicePtr {
        let values = self.random.borrow_mut().values(self.rows(rows).1 * width);
        self.put(rows, width, &values)
    }

    /// The rows at hand of an array whose elements have so many bytes.
    fn get(&self, at: DevicePtr, rows: Rows, width: usize, element: usize) -> Vec<u8> {
        let maps = self.maps.borrow();
        let map = maps.iter().find(|map| map.as_ptr() as u64 == at.0).unwrap();
        let (before, count) = self.rows(rows);
        map[before * width * element..][..count * width * element].to_vec()
    }

    fn launch<P: Params>(&self, (kernel, size): Launch, params: &P) {
        let device: &dyn Device = &self.device;
        device.launch(kernel, size, params).unwrap();
    }

    /// Of a grid over edges only the blocks that have those at hand; `launch`: for so many edges.
    fn launch_last<P: Params>(&self, launch: impl Fn(usize) -> Launch, params: &P) {
        let (before, (kernel, size)) = (launch(self.edges).1, launch(self.edges + EDGES));
        let [x, y, _] = size.grid.map(u64::from);
        for row in 0..y {
            let blocks = x * row + u64::from(before.grid[0]) - 1..x * (row + 1);
            let launched = self.device.launch_blocks(kernel, size, params, blocks);
            launched.unwrap();
        }
    }

    /// All atoms, and all edges, whose rows are counted from the first of them.
    fn chunk(&self) -> DevicePtr {
        self.few(&[Chunk {
            atom_begin: self.atoms as u32,
            atom_end: (self.atoms + ATOMS) as u32,
            edge_begin: 0,
            edge_end: (self.edges + EDGES) as u32,
            ..Chunk::default()
        }])
    }

    /// The same for kernels that have a block for some edges of the chunk, but count rows from 0.
    fn edge_chunk(&self) -> DevicePtr {
        self.few(&[Chunk {
            edge_begin: self.edges as u32,
            edge_end: (self.edges + EDGES) as u32,
            ..Chunk::default()
        }])
    }

    /// Starts of the two edges of each atom.
    fn starts(&self) -> DevicePtr {
        let starts = (0..=ATOMS).map(|i| (self.edges + 2 * i) as u32);
        self.put(Rows::Atoms, 1, &starts.collect::<Vec<_>>())
    }

    fn sources(&self) -> DevicePtr {
        self.put(Rows::Edges, 1, &SOURCE.map(|i| self.atoms as u32 + i))
    }

    fn targets(&self) -> DevicePtr {
        let targets = (0..EDGES).map(|e| (self.atoms + e / 2) as u32);
        self.put(Rows::Edges, 1, &targets.collect::<Vec<_>>())
    }

    fn by_source(&self) -> DevicePtr {
        let mut edges: Vec<u32> = (0..EDGES as u32).collect();
        edges.sort_by_key(|&e| SOURCE[e as usize]);
        let edges: Vec<u32> = edges.iter().map(|e| self.edges as u32 + e).collect();
        self.put(Rows::Edges, 1, &edges)
    }

    fn numbers(&self) -> DevicePtr {
        self.put(Rows::Atoms, 1, &[1u32, 6, 3])
    }
}

/// What a family of kernels writes, by name.
type Written = Vec<(&'static str, Vec<u8>)>;

/// Runs a family behind nothing, and where the rows of the widest array lie beyond 2^32 elements.
fn check(atoms: Option<usize>, edges: Option<usize>, family: impl Fn(&Far) -> Written) {
    let rows = |width: Option<usize>| width.map_or(0, |width| BEFORE / width);
    let near = family(&Far::new(0, 0));
    let far = family(&Far::new(rows(atoms), rows(edges)));
    assert_eq!(near.len(), far.len());
    for ((what, near), (_, far)) in near.iter().zip(&far) {
        assert!(near.iter().any(|&byte| byte != 0), "{what}: nothing");
        assert!(near == far, "{what}: other bits behind {atoms:?} {edges:?}");
    }
}

fn node_width(far: &Far) -> usize {
    far.bench.layout.rows * CHANNELS
}

const C: u32 = CHANNELS as u32;
const NODE: usize = 9 * CHANNELS;
const F32: usize = 4;
const F64: usize = 8;

#[test]
fn between_atoms_and_edges() {
    let layout = Layout::new(2, 2);
    let width = layout.edge_rows * 2 * CHANNELS;
    check(Some(NODE), Some(width), |far| {
        let (radial, wigner_len) = (layout.radial_width(2 * CHANNELS), layout.wigner_len);
        assert_eq!(node_width(far), NODE);
        let (chunk, shapes) = (far.chunk(), &far.bench.shapes);
        let [source, target] = [far.sources(), far.targets()];
        let wigner = far.floats(Rows::Edges, wigner_len);
        let x = far.floats(Rows::Atoms, NODE);
        let scales = far.floats(Rows::Edges, radial);
        let gather = GatherRotateScaleParams {
            chunk,
            source,
            target,
            wigner,
            x,
            radial: scales,
            out: far.floats(Rows::Edges, width),
            channels: C,
            pad: 0,
        };
        let shape = |rows| shapes.gather_rotate_scale(rows, Number::F32);
        far.launch_last(shape, &gather);

        let backward = GatherBackwardParams {
            chunk,
            batch: chunk,
            target_start: far.starts(),
            source_start: far.starts(),
            by_source: far.by_source(),
            wigner,
            x,
            radial: scales,
            gradient: far.floats(Rows::Edges, width),
            gradient_scale: DevicePtr::NULL,
            radial_gradient: far.floats(Rows::Edges, radial),
            target_gradient: far.floats(Rows::Atoms, NODE),
            source_gradient: far.floats(Rows::Atoms, NODE),
            torque: far.floats(Rows::Edges, 3),
            source_torque: far.floats(Rows::Edges, 3),
            channels: C,
            store: 0,
        };
        far.launch(shapes.gather_backward(ATOMS), &backward);
        vec![
            ("gather", far.get(gather.out, Rows::Edges, width, F32)),
            (
                "radial",
                far.get(backward.radial_gradient, Rows::Edges, radial, F32),
            ),
            (
                "target",
                far.get(backward.target_gradient, Rows::Atoms, NODE, F32),
            ),
            (
                "source",
                far.get(backward.source_gradient, Rows::Atoms, NODE, F32),
            ),
            ("torque", far.get(backward.torque, Rows::Edges, 3, F32)),
            (
                "source torque",
                far.get(backward.source_torque, Rows::Edges, 3, F32),
            ),
        ]
    });
    let width = layout.edge_rows * CHANNELS;
    check(Some(NODE), Some(width), |far| {
        let shapes = &far.bench.shapes;
        let scatter = RotateScatterParams {
            chunk: far.chunk(),
            target_start: far.starts(),
            wigner: far.floats(Rows::Edges, layout.wigner_len),
            envelope: far.floats(Rows::Edges, 1),
            message: far.floats(Rows::Edges, width),
            residual: far.floats(Rows::Atoms, NODE),
            out: far.floats(Rows::Atoms, NODE),
            channels: C,
            scale: 1.0,
        };
        far.launch(shapes.rotate_scatter(ATOMS), &scatter);
        let backward = RotateScatterBackwardParams {
            chunk: scatter.chunk,
            target_start: scatter.target_start,
            wigner: scatter.wigner,
            envelope: scatter.envelope,
            message: scatter.message,
            gradient: far.floats(Rows::Atoms, NODE),
            message_gradient: far.floats(Rows::Edges, width),
            gradient_scale: DevicePtr::NULL,
            d_envelope: far.floats(Rows::Edges, 1),
            torque: far.floats(Rows::Edges, 3),
            channels: C,
            scale: 1.0,
            store: 0,
            pad: 0,
        };
        far.launch(
            shapes.rotate_scatter_backward(ATOMS, Number::F32),
            &backward,
        );
        vec![
            ("scatter", far.get(scatter.out, Rows::Atoms, NODE, F32)),
            (
                "message",
                far.get(backward.message_gradient, Rows::Edges, width, F32),
            ),
            (
                "envelope",
                far.get(backward.d_envelope, Rows::Edges, 1, F32),
            ),
            ("torque", far.get(backward.torque, Rows::Edges, 3, F32)),
        ]
    });
}

#[test]
fn radial_networks_and_gates_of_edges() {
    const BASIS: usize = 8;
    check(None, Some(CHANNELS), |far| {
        let shapes = &far.bench.shapes;
        let stride = (far.edges + EDGES) * CHANNELS;
        let network = |far: &Far| RadialNetwork {
            weight: far.floats(Rows::Few, BASIS * CHANNELS),
            source_table: far.floats(Rows::Few, 9 * CHANNELS),
            target_table: far.floats(Rows::Few, 9 * CHANNELS),
            norm_weight: far.floats(Rows::Few, CHANNELS),
            norm_bias: far.floats(Rows::Few, CHANNELS),
        };
        let first = RadialFirstParams {
            chunk: far.chunk(),
            distance: far.floats(Rows::Edges, 1),
            source: far.sources(),
            target: far.targets(),
            numbers: far.numbers(),
            networks: far.few(&[network(far)]),
            out: far.floats(Rows::Edges, CHANNELS),
            out_stride: stride as u64,
            basis: BASIS as u32,
            width: C,
            spacing: 0.7,
            exponent: -0.5,
        };
        far.launch_last(|rows| shapes.radial_first(rows, CHANNELS, 1), &first);
        let backward = RadialFirstBackwardParams {
            chunk: first.chunk,
            distance: first.distance,
            source: first.source,
            target: first.target,
            numbers: first.numbers,
            networks: first.networks,
            gradient: far.floats(Rows::Edges, CHANNELS),
            gradient_stride: stride as u64,
            gradient_scale: DevicePtr::NULL,
            d_distance: far.floats(Rows::Edges, 1),
            edge_stride: (far.edges + EDGES) as u64,
            basis: BASIS as u32,
            width: C,
            spacing: 0.7,
            exponent: -0.5,
        };
        let shape = |rows| shapes.radial_first_backward(rows, CHANNELS, 1);
        far.launch_last(shape, &backward);
        let norm = LayerNormSiluParams {
            chunk: first.chunk,
            x: far.floats(Rows::Edges, CHANNELS),
            weight: far.floats(Rows::Few, CHANNELS),
            bias: far.floats(Rows::Few, CHANNELS),
            out: far.floats(Rows::Edges, CHANNELS),
            width: C,
            pad: 0,
        };
        far.launch_last(|rows| shapes.layer_norm_silu(rows, CHANNELS), &norm);
        let norm_backward = LayerNormSiluBackwardParams {
            chunk: norm.chunk,
            x: norm.x,
            weight: norm.weight,
            bias: norm.bias,
            gradient: far.floats(Rows::Edges, CHANNELS),
            x_gradient: far.floats(Rows::Edges, CHANNELS),
            width: C,
            pad: 0,
        };
        let shape = |rows| shapes.layer_norm_silu_backward(rows, CHANNELS);
        far.launch_last(shape, &norm_backward);
        vec![
            ("first", far.get(first.out, Rows::Edges, CHANNELS, F32)),
            (
                "distance",
                far.get(backward.d_distance, Rows::Edges, 1, F32),
            ),
            ("norm", far.get(norm.out, Rows::Edges, CHANNELS, F32)),
            (
                "norm back",
                far.get(norm_backward.x_gradient, Rows::Edges, CHANNELS, F32),
            ),
        ]
    });
    // Several networks one after the other: also the second of few edges may lie far away.
    let stride = BEFORE as u64;
    let far = Far::new(0, 0);
    let floats = |width| far.floats(Rows::Few, width);
    let network = RadialNetwork {
        weight: floats(BASIS * CHANNELS),
        source_table: floats(9 * CHANNELS),
        target_table: floats(9 * CHANNELS),
        norm_weight: floats(CHANNELS),
        norm_bias: floats(CHANNELS),
    };
    let out = Far::new(0, BEFORE / CHANNELS);
    let params = RadialFirstParams {
        chunk: far.chunk(),
        distance: far.floats(Rows::Edges, 1),
        source: far.sources(),
        target: far.targets(),
        numbers: far.numbers(),
        networks: far.few(&[network; 2]),
        out: out.floats(Rows::Edges, CHANNELS),
        out_stride: stride,
        basis: BASIS as u32,
        width: C,
        spacing: 0.7,
        exponent: -0.5,
    };
    far.launch(far.bench.shapes.radial_first(EDGES, CHANNELS, 2), &params);
    let second = out.get(params.out, Rows::Edges, CHANNELS, F32);
    let first = &out.maps.borrow()[0][..second.len()];
    assert!(second == first && first.iter().any(|&byte| byte != 0));

    let layout = Layout::new(2, 2);
    let (gates, width) = (layout.lmax * CHANNELS, layout.edge_rows * CHANNELS);
    check(None, Some(gates + width), |far| {
        let shapes = &far.bench.shapes;
        let gate = GateEdgesParams {
            chunk: far.chunk(),
            x: far.floats(Rows::Edges, gates + width),
            out: far.floats(Rows::Edges, width),
            channels: C,
            lmax: 2,
            mmax: 2,
            pad: 0,
        };
        far.launch_last(|rows| shapes.gate_edges(rows, Number::F32), &gate);
        let backward = GateEdgesBackwardParams {
            chunk: gate.chunk,
            x: gate.x,
            gradient: far.floats(Rows::Edges, width),
            x_gradient: far.floats(Rows::Edges, gates + width),
            channels: C,
            lmax: 2,
            mmax: 2,
            pad: 0,
        };
        let shape = |rows| shapes.gate_edges_backward(rows, Number::F32);
        far.launch_last(shape, &backward);
        let x_gradient = far.get(backward.x_gradient, Rows::Edges, gates + width, F32);
        vec![
            ("gate", far.get(gate.out, Rows::Edges, width, F32)),
            ("gate back", x_gradient),
        ]
    });
}

/// Products, those whose result passes the gate or is a scale of gathered rows, in f32 and on fp16 operands.
#[test]
fn products() {
    let layout = Layout::new(2, 2);
    let (gates, rows) = (layout.lmax * CHANNELS, layout.edge_rows * CHANNELS);
    let degrees: Vec<u32> = layout.edge_row_degree.iter().map(|&l| l as u32).collect();
    for (arithmetic, element) in [(Arithmetic::F32, F32), (Arithmetic::F16, 2)] {
        for beside in [Beside::Nothing, Beside::Gate, Beside::Gather] {
            let (k, n, first) = match beside {
                // Odd sizes take the loads one by one.
                Beside::Nothing if arithmetic == Arithmetic::F16 => (gates + 3, 41, 8),
                Beside::Nothing => (gates + rows, 40, 8),
                Beside::Gate => (64, CHANNELS * layout.blocks[0].row, gates),
                Beside::Gather => (64, layout.radial_width(2 * CHANNELS), 0),
            };
            let out_width = match beside {
                Beside::Nothing => gates + rows,
                Beside::Gate => gates + rows,
                Beside::Gather => n,
            };
            let gathered = layout.edge_rows * 2 * CHANNELS;
            let widest = k.max(out_width).max(gathered);
            check(Some(NODE), Some(widest), |far| {
                // Halves of random bits would not be numbers.
                let operands = |rows: Rows, width: usize| -> DevicePtr {
                    let values = far.random.borrow_mut().values(far.rows(rows).1 * width);
                    match element {
                        F32 => {
                            let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
                            far.put(rows, width, &values)
                        }
                        _ => {
                            let bits = values.iter().map(|&x| f16::from_f64(x).to_bits());
                            far.put(rows, width, &bits.collect::<Vec<_>>())
                        }
                    }
                };
                let tile = Tile {
                    begin: far.edges as u32,
                    end: (far.edges + EDGES) as u32,
                    ..Tile::default()
                };
                let span = GemmSpan {
                    out_offset: first as u32,
                    k: k as u32,
                    n: n as u32,
                    rows: 1,
                    bias_offset: 0,
                    ..GemmSpan::default()
                };
                let params = GemmParams {
                    a: operands(Rows::Edges, widest),
                    a_stride: widest as u64,
                    weights: operands(Rows::Few, k * n),
                    bias: far.floats(Rows::Few, n),
                    tiles: far.few(&[tile]),
                    tile_count: far.few(&[1u32]),
                    first_item: far.few(&[0u32]),
                    out: operands(Rows::Edges, widest),
                    out_stride: widest as u64,
                    gate_channels: C,
                    gate_values: gates as u32,
                    row_degree: far.few(&degrees),
                    gated: operands(Rows::Edges, widest),
                    gated_stride: widest as u64,
                    ..GemmParams::default()
                };
                let room = (1, SHARED_BYTES);
                let launch = gemm::launch(arithmetic, beside, room, &[span], params);
                let mut written = vec![];
                if beside == Beside::Gather {
                    let gather = GatherGemmParams {
                        product: launch.params,
                        source: far.sources(),
                        target: far.targets(),
                        wigner: far.floats(Rows::Edges, layout.wigner_len),
                        x: far.floats(Rows::Atoms, NODE),
                        gathered: operands(Rows::Edges, gathered),
                        rows: far.few(&radial_rows(&layout)),
                        channels: C,
                        wigner_len: layout.wigner_len as u32,
                        atom_rows: layout.rows as u32,
                        edge_rows: layout.edge_rows as u32,
                    };
                    far.launch((launch.kernel, launch.size), &gather);
                    let bytes = far.get(gather.gathered, Rows::Edges, gathered, element);
                    written.push(("gathered", bytes));
                } else {
                    far.launch((launch.kernel, launch.size), &launch.params);
                    let bytes = far.get(params.gated, Rows::Edges, widest, element);
                    written.push(("gated", bytes));
                }
                let bytes = far.get(params.out, Rows::Edges, widest, element);
                written.push((launch.kernel.0, bytes));
                written
            });
        }
    }
}

#[test]
fn geometry_and_sums() {
    // The narrowest arrays need the most rows.
    let layout = Layout::new(2, 2);
    check(None, Some(layout.wigner_len), |far| {
        let geometry = EdgeGeometryParams {
            chunk: far.edge_chunk(),
            vector: far.doubles(Rows::Edges, 3),
            half_turns: far.few(&Wigner::new(&layout).half_turns()),
            distance: far.floats(Rows::Edges, 1),
            unit: far.floats(Rows::Edges, 3),
            envelope: far.floats(Rows::Edges, 1),
            wigner: far.floats(Rows::Edges, layout.wigner_len),
            cutoff: CUTOFF,
            lmax: 2,
            mmax: 2,
            wigner_len: layout.wigner_len as u32,
            pad: 0,
        };
        far.launch(far.bench.shapes.edge_geometry(EDGES), &geometry);
        let wigner = far.get(geometry.wigner, Rows::Edges, layout.wigner_len, F32);
        vec![("wigner", wigner)]
    });
    check(None, Some(3), |far| {
        let force = EdgeForceParams {
            chunk: far.edge_chunk(),
            vector: far.doubles(Rows::Edges, 3),
            d_distance: far.floats(Rows::Edges, 1),
            d_envelope: far.floats(Rows::Edges, 1),
            torque: far.floats(Rows::Edges, 3),
            source_torque: far.floats(Rows::Edges, 3),
            gradient: far.doubles(Rows::Edges, 3),
            cutoff: CUTOFF,
            edge_stride: (far.edges + EDGES) as u64,
            networks: 1,
            pad: 0,
        };
        far.launch(far.bench.shapes.edge_force(EDGES), &force);
        vec![("gradient", far.get(force.gradient, Rows::Edges, 3, F64))]
    });
    check(Some(9), Some(3), |far| {
        let force = AtomForceParams {
            chunk: far.chunk(),
            target_start: far.starts(),
            source_start: far.starts(),
            by_source: far.by_source(),
            vector: far.doubles(Rows::Edges, 3),
            gradient: far.doubles(Rows::Edges, 3),
            force: far.doubles(Rows::Atoms, 3),
            virial: far.doubles(Rows::Atoms, 9),
        };
        far.launch(far.bench.shapes.atom_force(ATOMS), &force);
        let sums = SystemSumsParams {
            atom_start: far.few(&[far.atoms as u32, (far.atoms + ATOMS) as u32]),
            atom_energy: far.floats(Rows::Atoms, 1),
            atom_virial: force.virial,
            energy: far.doubles(Rows::Few, 1),
            virial: far.doubles(Rows::Few, 9),
            systems: 1,
            pad: 0,
        };
        far.launch(far.bench.shapes.system_sums(1), &sums);
        vec![
            ("force", far.get(force.force, Rows::Atoms, 3, F64)),
            ("atoms' virial", far.get(force.virial, Rows::Atoms, 9, F64)),
            ("energy", far.get(sums.energy, Rows::Few, 1, F64)),
            ("virial", far.get(sums.virial, Rows::Few, 9, F64)),
        ]
    });
}

#[test]
fn atoms() {
    check(Some(NODE), None, |far| {
        let shapes = &far.bench.shapes;
        let chunk = far.chunk();
        let system = far.put(Rows::Atoms, 1, &[0u32; ATOMS]);
        let node = || far.floats(Rows::Atoms, NODE);
        let few = |width| far.floats(Rows::Few, width);
        let embed = EmbedAtomsParams {
            chunk,
            numbers: far.numbers(),
            atom_system: system,
            table: few(9 * CHANNELS),
            conditioning: few(CHANNELS),
            out: node(),
            channels: C,
            rows: 9,
        };
        far.launch(shapes.embed_atoms(ATOMS), &embed);
        let norm = RmsNormParams {
            chunk,
            atom_system: system,
            x: node(),
            weight: few(3 * CHANNELS),
            bias: few(CHANNELS),
            conditioning: few(CHANNELS),
            out: node(),
            channels: C,
            lmax: 2,
        };
        far.launch(shapes.rms_norm(ATOMS), &norm);
        let norm_back = RmsNormBackwardParams {
            chunk,
            x: norm.x,
            weight: norm.weight,
            gradient: node(),
            second_gradient: node(),
            x_gradient: node(),
            channels: C,
            lmax: 2,
            accumulate: 1,
            pad: 0,
        };
        far.launch(shapes.rms_norm_backward(ATOMS), &norm_back);
        let gates = || far.floats(Rows::Atoms, 2 * CHANNELS);
        let gate = GateAtomsParams {
            chunk,
            x: node(),
            gates: gates(),
            out: node(),
            channels: C,
            lmax: 2,
        };
        far.launch(shapes.gate_atoms(ATOMS), &gate);
        let gate_back = GateAtomsBackwardParams {
            chunk,
            x: gate.x,
            gates: gate.gates,
            gradient: node(),
            x_gradient: node(),
            gates_gradient: gates(),
            gates_pre: gates(),
            channels: C,
            lmax: 2,
            accumulate: 1,
            pad: 0,
        };
        far.launch(shapes.gate_atoms_backward(ATOMS), &gate_back);
        let balance = BalanceParams {
            atom_start: far.few(&[far.atoms as u32, (far.atoms + ATOMS) as u32]),
            x: node(),
            count: [2, 0],
            ranges: 1,
            systems: 1,
            width: NODE as u32,
            ..BalanceParams::default()
        };
        far.launch(shapes.balance(1), &balance);
        let add = AddNodesParams {
            chunk,
            x: node(),
            y: node(),
            width: NODE as u32,
            pad: 0,
        };
        far.launch(shapes.add_nodes(ATOMS, NODE), &add);
        let silu = SiluRowsParams {
            chunk,
            x: node(),
            out: node(),
            width: NODE as u32,
            pad: 0,
        };
        far.launch(shapes.silu_rows(ATOMS, NODE), &silu);
        let silu_back = SiluRowsBackwardParams {
            chunk,
            x: silu.x,
            gradient: node(),
            x_gradient: node(),
            width: NODE as u32,
            accumulate: 0,
        };
        far.launch(shapes.silu_rows_backward(ATOMS, NODE), &silu_back);
        let gates = far.get(gate_back.gates_gradient, Rows::Atoms, 2 * CHANNELS, F32);
        let nodes = [
            ("embedding", embed.out),
            ("norm", norm.out),
            ("norm back", norm_back.x_gradient),
            ("gate", gate.out),
            ("gate back", gate_back.x_gradient),
            ("balance", balance.x),
            ("sum", add.y),
            ("SiLU", silu.out),
            ("SiLU back", silu_back.x_gradient),
        ];
        let nodes = nodes.map(|(what, at)| (what, far.get(at, Rows::Atoms, NODE, F32)));
        nodes.into_iter().chain([("gates", gates)]).collect()
    });
}
