//! The interpreter: runs the segments of a schedule over tiles.

use super::dispatch::{backward_op, forward_op};
use super::geometry::{Geometry, envelope};
use super::radial_table::{RadialRows, RunTables, Tables};
use super::real::Real;
use super::rotate;
use super::schedule::{Half, Schedule, Segment, gradient_buffers};
use super::weights::{Mixed, Weights};
use crate::backend::{Backend, Conditioning, DeviceError, NetworkOutput, Structure, WeightSource};
use crate::nn::op::Grain;
use crate::nn::{Buf, Domain, Op, Program};
use crate::so3::wigner::generators;
use crate::so3::{Layout, Wigner};
use rayon::prelude::*;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What the buffers of one edge tile may take, bytes: about a core's second-level cache.
const EDGE_TILE_BYTES: usize = 2 << 20;
/// Fewest and most edges per tile: the matrix products need some rows to run near their peak, and
/// small systems must still give every thread something to do.
const EDGE_TILE: std::ops::RangeInclusive<usize> = 96..=192;
/// Edges per tile of a small system: fewer leave the matrix products waiting for the weights.
const SMALLEST_TILE: usize = 66;
/// Rows that the library's widest kernel takes at once.
const KERNEL_ROWS: usize = 6;
/// Most atoms per tile.
const ATOM_TILE: usize = 32;
/// Memory for mixed weights, bytes. At UMA-S sizes one composition takes 44 MB in f32.
const MIXED_CACHE_BYTES: usize = 1 << 30;

/// Per-edge sums of the backward pass: dE/dd, dE/dp, torque.
pub(super) const SUMS: usize = 5;

/// Interprets one program on the CPU.
pub struct CpuBackend<T> {
    program: Arc<Program>,
    schedule: Schedule,
    weights: Weights<T>,
    wigner: Wigner,
    generators: Vec<rotate::GeneratorPair<T>>,
    /// Radial networks as polynomials, for narrow models.
    tables: Option<Tables<T>>,
    /// Most recently used last.
    mixed: Mutex<VecDeque<(String, Arc<Mixed<T>>)>>,
    /// Values kept for the backward pass, bytes; above it the edges are computed again.
    keep_bytes: usize,
    /// Edges per tile.
    edge_tile: usize,
    /// Memory of earlier runs and tiles, used again: fresh pages are costly.
    arenas: Mutex<Vec<Arena<T>>>,
    scratch: Mutex<Vec<Vec<T>>>,
}

/// The buffers of one run.
#[derive(Clone, Debug)]
pub(super) struct Arena<T> {
    /// By buffer.
    pub values: Vec<Vec<T>>,
    /// By buffer.
    pub gradients: Vec<Vec<T>>,
    /// Memory of a buffer that has done its duty.
    spare: Vec<T>,
}

/// Values of every kept buffer, for tests that compare stage by stage.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// Buffer name and values, row-major, in f64.
    pub buffers: Vec<(String, Vec<f64>)>,
}

/// A run of rows of one system.
#[derive(Clone, Debug)]
pub(super) struct Tile {
    /// Which system.
    pub system: usize,
    /// Rows, counted over the batch.
    pub rows: Range<usize>,
}

/// One system during a run.
pub(super) struct RunSystem<T> {
    pub atoms: Range<usize>,
    pub edges: Range<usize>,
    pub conditioning: Arc<Conditioning>,
    pub mixed: Arc<Mixed<T>>,
    /// Whether its radial networks are tabulated.
    pub tabulated: bool,
}

/// What every kernel may read.
pub(super) struct Run<'a, T> {
    pub program: &'a Program,
    pub layout: &'a Layout,
    pub weights: &'a Weights<T>,
    pub generators: &'a [rotate::GeneratorPair<T>],
    pub systems: Vec<RunSystem<T>>,
    /// Element of each atom of the batch.
    pub numbers: Vec<u8>,
    pub geometry: Geometry<T>,
    /// Of the systems whose radial networks are tabulated.
    tables: RunTables<'a, T>,
    pub arena: Arena<T>,
    /// Most edges per tile.
    edge_tile: usize,
}

/// The buffers of one tile: what this segment writes.
pub(super) struct Frame<'a, T> {
    slices: Vec<Option<&'a mut [T]>>,
    /// Per-edge sums (backward pass).
    pub sums: Option<&'a mut [T]>,
}

impl<'a, T: Real> Frame<'a, T> {
    fn new(buffers: usize) -> Frame<'a, T> {
        Frame {
            slices: (0..buffers).map(|_| None).collect(),
            sums: None,
        }
    }

    /// Cuts whole buffers into one frame per tile.
    fn split(
        program: &Program,
        tiles: &[Tile],
        buffers: &[Buf],
        memory: &'a mut [Vec<T>],
    ) -> Vec<Frame<'a, T>> {
        let mut frames: Vec<Frame<'a, T>> = tiles
            .iter()
            .map(|_| Frame::new(program.buffers.len()))
            .collect();
        for (buf, memory) in buffers.iter().zip(memory) {
            let mut rest = memory.as_mut_slice();
            for (tile, frame) in tiles.iter().zip(&mut frames) {
                let (head, tail) = rest.split_at_mut(tile.rows.len() * program.width(*buf));
                frame.slices[buf.0] = Some(head);
                rest = tail;
            }
        }
        frames
    }

    /// The same frame with further buffers.
    fn with<'b>(&'b mut self, buffers: &[Buf], pieces: &'b mut [&mut [T]]) -> Frame<'b, T> {
        let mut frame = Frame {
            slices: self.slices.iter_mut().map(Option::as_deref_mut).collect(),
            sums: self.sums.as_deref_mut(),
        };
        for (buf, piece) in buffers.iter().zip(pieces) {
            frame.slices[buf.0] = Some(piece);
        }
        frame
    }

    /// Takes a slice out, to write it while others are read.
    pub fn take(&mut self, buf: Buf) -> &'a mut [T] {
        self.slices[buf.0]
            .take()
            .expect("the schedule gives every operation its buffers")
    }

    /// The same for a buffer that the run may not have.
    pub fn take_if_there(&mut self, buf: Buf) -> Option<&'a mut [T]> {
        self.slices[buf.0].take()
    }

    /// Puts a slice back.
    pub fn put(&mut self, buf: Buf, slice: &'a mut [T]) {
        self.slices[buf.0] = Some(slice);
    }

    /// A slice of this tile.
    pub fn get(&self, buf: Buf) -> Option<&[T]> {
        self.slices[buf.0].as_deref()
    }
}

impl<T: Real> Run<'_, T> {
    /// Values of a buffer on a tile's rows: from the tile itself, or kept from earlier.
    pub fn value<'f>(&'f self, frame: &'f Frame<T>, tile: &Tile, buf: Buf) -> &'f [T] {
        let width = self.program.width(buf);
        frame.get(buf).unwrap_or_else(|| {
            &self.arena.values[buf.0][tile.rows.start * width..tile.rows.end * width]
        })
    }

    /// The radial numbers of the edges of a tile: of a network with this output.
    pub fn radial<'f>(&'f self, frame: &'f Frame<T>, tile: &Tile, buf: Buf) -> RadialRows<'f, T> {
        if self.system(tile).tabulated {
            self.tables.rows(buf)
        } else {
            RadialRows::Written(self.value(frame, tile, buf))
        }
    }

    /// The radial numbers of all edges: of a network with this output.
    pub fn radial_of_all(&self, tile: &Tile, buf: Buf) -> RadialRows<'_, T> {
        if self.system(tile).tabulated {
            self.tables.rows(buf)
        } else {
            RadialRows::Written(&self.arena.values[buf.0])
        }
    }

    /// Whether a buffer is used: those of radial networks are not where all are tabulated.
    fn needs(&self, buf: Buf) -> bool {
        self.systems.iter().any(|s| !s.tabulated)
            || !self.program.ops.iter().any(|op| match *op {
                Op::Radial {
                    hidden_1,
                    hidden_2,
                    out,
                    ..
                } => [hidden_1, hidden_2, out].contains(&buf),
                _ => false,
            })
    }

    /// The system of a tile.
    pub fn system(&self, tile: &Tile) -> &RunSystem<T> {
        &self.systems[tile.system]
    }
}

impl<T: Real> CpuBackend<T> {
    /// Prepares a program; the weights are read now, except those that are mixed per system.
    pub fn new(
        program: Arc<Program>,
        source: Arc<dyn WeightSource>,
        keep_bytes: usize,
    ) -> CpuBackend<T> {
        super::matmul::use_panels_in_place();
        // The widest operation's input and output bound what is in use at once.
        let widest = program.buffers.iter().filter(|b| b.domain == Domain::Edge);
        let widest = widest.map(|b| b.width).max().unwrap_or(1);
        let edge_tile = EDGE_TILE_BYTES / (2 * widest * size_of::<T>()).max(1);
        let edge_tile = edge_tile.clamp(*EDGE_TILE.start(), *EDGE_TILE.end());
        CpuBackend {
            schedule: Schedule::new(&program),
            wigner: Wigner::new(&program.layout),
            generators: rotate::generator_pairs(&generators(program.layout.lmax)),
            tables: Tables::new(&program, &*source),
            weights: Weights::new(program.clone(), source),
            mixed: Mutex::new(VecDeque::new()),
            program,
            keep_bytes,
            edge_tile,
            arenas: Mutex::new(Vec::new()),
            scratch: Mutex::new(Vec::new()),
        }
    }

    /// The mixed weights of a conditioning, from the cache where they are there.
    fn mixed(&self, conditioning: &Conditioning) -> Arc<Mixed<T>> {
        let lock = || lock(&self.mixed);
        {
            let mut cache = lock();
            if let Some(i) = cache.iter().position(|(key, _)| *key == conditioning.key) {
                let entry = cache.remove(i).expect("found just now");
                let mixed = entry.1.clone();
                cache.push_back(entry);
                return mixed;
            }
        }
        let mixed = Arc::new(self.weights.mix(conditioning));
        let mut cache = lock();
        cache.push_back((conditioning.key.clone(), mixed.clone()));
        let mut held: usize = cache.iter().map(|(_, m)| m.bytes).sum();
        while held > MIXED_CACHE_BYTES && cache.len() > 1 {
            held -= cache.pop_front().map_or(0, |(_, m)| m.bytes);
        }
        mixed
    }

    /// Edge values kept for the backward pass, numbers per edge.
    fn kept_width(&self) -> usize {
        let kept = self.program.buffers.iter().zip(&self.schedule.kept);
        kept.filter(|(b, kept)| **kept && b.domain == Domain::Edge)
            .map(|(b, _)| b.width)
            .sum()
    }

    /// Edge values that live through one layer only, numbers per edge: messages on the way
    /// forward, gathered gradients on the way back.
    fn layer_width(&self) -> usize {
        let widths = self.program.ops.iter().filter_map(|op| match *op {
            Op::GatherRotateScale { gradient, .. } => Some(self.program.width(gradient)),
            Op::RotateScatter { message, .. } => Some(self.program.width(message)),
            _ => None,
        });
        widths.max().unwrap_or(0)
    }

    fn geometry_width(&self) -> usize {
        self.program.layout.wigner_len + self.program.basis + 1 + SUMS
    }

    fn atom_width(&self) -> usize {
        let atoms = self
            .program
            .buffers
            .iter()
            .filter(|b| b.domain == Domain::Atom);
        2 * atoms.map(|b| b.width).sum::<usize>()
    }

    fn start<'a>(&'a self, batch: &[Structure], arena: Arena<T>) -> Run<'a, T> {
        let mut systems = Vec::with_capacity(batch.len());
        let (mut atom, mut edge) = (0, 0);
        let mut tables = RunTables::new(self.tables.as_ref(), batch);
        for (i, structure) in batch.iter().enumerate() {
            let (atoms, edges) = (structure.numbers.len(), structure.neighbors.len());
            systems.push(RunSystem {
                atoms: atom..atom + atoms,
                edges: edge..edge + edges,
                conditioning: structure.conditioning.clone(),
                mixed: self.mixed(&structure.conditioning),
                tabulated: tables.tabulated(i),
            });
            atom += atoms;
            edge += edges;
        }
        let written = systems.iter().any(|s| !s.tabulated);
        let geometry = Geometry::new(&self.program, &self.wigner, batch, written);
        let parts = systems.iter().map(|s| (s.atoms.start, s.edges.clone()));
        tables.locate(&geometry, parts);
        Run {
            program: &self.program,
            layout: &self.program.layout,
            weights: &self.weights,
            generators: &self.generators,
            systems,
            numbers: batch
                .iter()
                .flat_map(|s| s.numbers.iter().copied())
                .collect(),
            geometry,
            tables,
            arena,
            edge_tile: self.edge_tile,
        }
    }

    fn forward(&self, run: &mut Run<T>, recompute: bool) {
        for segment in &self.schedule.forward {
            let rows = run.rows(segment.grain);
            let outputs: Vec<Buf> = self
                .writes(segment)
                .into_iter()
                .filter(|buf| self.schedule.kept[buf.0] && run.needs(*buf))
                .filter(|buf| !recompute || self.outlives_layer(*buf))
                .collect();
            let mut values: Vec<Vec<T>> = outputs
                .iter()
                .map(|buf| match std::mem::take(&mut run.arena.values[buf.0]) {
                    memory if memory.is_empty() && recompute => {
                        std::mem::take(&mut run.arena.spare)
                    }
                    memory => memory,
                })
                .collect();
            for (buf, values) in outputs.iter().zip(&mut values) {
                // Every operation writes all of its output: what is left from before is no harm.
                values.resize(rows * self.program.width(*buf), T::ZERO);
            }
            let tiles = run.tiles(segment.grain);
            let mut frames = Frame::split(&self.program, &tiles, &outputs, &mut values);
            let shared: &Run<T> = run;
            let scratch: Vec<Buf> = self
                .writes(segment)
                .into_iter()
                .filter(|buf| !outputs.contains(buf) && run.needs(*buf))
                .collect();
            over_tiles(&tiles, &mut frames, |tile, frame| {
                self.with_scratch(tile.rows.len(), &scratch, |mut pieces| {
                    let mut frame = frame.with(&scratch, &mut pieces);
                    for &(op, _) in &segment.ops {
                        forward_op(shared, op, tile, &mut frame);
                    }
                });
            });
            drop(frames);
            for (buf, values) in outputs.iter().zip(values) {
                run.arena.values[buf.0] = values;
            }
            if recompute && segment.grain == Grain::Atoms {
                // The messages have been summed up and the next layer may have their memory.
                for &(op, _) in &segment.ops {
                    if let Op::RotateScatter { message, .. } = self.program.ops[op] {
                        run.arena.spare = std::mem::take(&mut run.arena.values[message.0]);
                    }
                }
            }
        }
    }

    /// In a run that recomputes edges: whether a kept value must still leave its segment.
    fn outlives_layer(&self, buf: Buf) -> bool {
        self.program.buffers[buf.0].domain == Domain::Atom
            || self.program.ops.iter().any(|op| match *op {
                Op::RotateScatter { message, .. } => message == buf,
                Op::ScatterRadial { radial, .. } => radial == buf,
                _ => false,
            })
    }

    fn writes(&self, segment: &Segment) -> Vec<Buf> {
        segment
            .ops
            .iter()
            .flat_map(|&(op, _)| self.program.ops[op].writes())
            .collect()
    }

    fn backward(&self, run: &mut Run<T>, recompute: bool) -> Vec<T> {
        let atoms = run.numbers.len();
        for (buf, buffer) in self.program.buffers.iter().enumerate() {
            if buffer.domain == Domain::Atom {
                let gradient = &mut run.arena.gradients[buf];
                gradient.clear();
                gradient.resize(atoms * buffer.width, T::ZERO);
            }
        }
        run.arena.gradients[self.program.atom_energy.0].fill(T::ONE);
        let edges = run.geometry.source.len();
        let mut sums = vec![T::ZERO; edges * SUMS];
        for (segment, twin) in self
            .schedule
            .backward
            .iter()
            .zip(&self.schedule.forward_twin)
        {
            if segment.grain == Grain::Edges {
                let again = twin
                    .filter(|_| recompute)
                    .map(|t| &self.schedule.forward[t]);
                self.backward_edges(run, segment, again, &mut sums);
            } else {
                self.backward_atoms(run, segment);
            }
        }
        sums
    }

    fn backward_edges(
        &self,
        run: &mut Run<T>,
        segment: &Segment,
        again: Option<&Segment>,
        sums: &mut [T],
    ) {
        let edges = run.geometry.source.len();
        let gathered: Vec<Buf> = segment
            .ops
            .iter()
            .filter_map(|&(op, _)| match self.program.ops[op] {
                Op::GatherRotateScale { gradient, .. } => Some(gradient),
                _ => None,
            })
            .collect();
        let mut gradients: Vec<Vec<T>> = gathered
            .iter()
            .map(|buf| {
                let mut memory = std::mem::take(&mut run.arena.spare);
                memory.resize(edges * self.program.width(*buf), T::ZERO);
                memory
            })
            .collect();
        let mut scratch: Vec<Buf> = segment
            .ops
            .iter()
            .flat_map(|&(op, _)| gradient_buffers(&self.program.ops[op]))
            .filter(|buf| {
                self.program.buffers[buf.0].domain == Domain::Edge
                    && !gathered.contains(buf)
                    && run.needs(*buf)
            })
            .collect();
        scratch.sort();
        scratch.dedup();
        let recomputed: Vec<Buf> = again.map(|s| self.writes(s)).unwrap_or_default();

        let tiles = run.tiles(Grain::Edges);
        let mut frames = Frame::split(&self.program, &tiles, &gathered, &mut gradients);
        let mut rest = sums;
        for (tile, frame) in tiles.iter().zip(&mut frames) {
            let (head, tail) = rest.split_at_mut(tile.rows.len() * SUMS);
            frame.sums = Some(head);
            rest = tail;
        }
        let shared: &Run<T> = run;
        over_tiles(&tiles, &mut frames, |tile, frame| {
            self.with_scratch(tile.rows.len(), &recomputed, |mut value_pieces| {
                let mut values = Frame::new(self.program.buffers.len());
                let mut values = values.with(&recomputed, &mut value_pieces);
                for &(op, _) in again.iter().flat_map(|s| &s.ops) {
                    forward_op(shared, op, tile, &mut values);
                }
                self.with_scratch(tile.rows.len(), &scratch, |mut pieces| {
                    let mut frame = frame.with(&scratch, &mut pieces);
                    for &(op, half) in &segment.ops {
                        backward_op(shared, op, half, tile, &values, &mut frame);
                    }
                });
            });
        });
        drop(frames);
        for (buf, gradient) in gathered.iter().zip(gradients) {
            run.arena.gradients[buf.0] = gradient;
        }
    }

    fn backward_atoms(&self, run: &mut Run<T>, segment: &Segment) {
        let mut touched: Vec<Buf> = segment
            .ops
            .iter()
            .flat_map(|&(op, _)| gradient_buffers(&self.program.ops[op]))
            .filter(|buf| self.program.buffers[buf.0].domain == Domain::Atom)
            .collect();
        touched.sort();
        touched.dedup();
        let mut gradients: Vec<Vec<T>> = touched
            .iter()
            .map(|buf| std::mem::take(&mut run.arena.gradients[buf.0]))
            .collect();
        let tiles = run.tiles(segment.grain);
        let mut frames = Frame::split(&self.program, &tiles, &touched, &mut gradients);
        let shared: &Run<T> = run;
        over_tiles(&tiles, &mut frames, |tile, frame| {
            let values = Frame::new(self.program.buffers.len());
            for &(op, half) in &segment.ops {
                backward_op(shared, op, half, tile, &values, frame);
            }
        });
        drop(frames);
        for (buf, gradient) in touched.iter().zip(gradients) {
            run.arena.gradients[buf.0] = gradient;
        }
        for &(op, half) in &segment.ops {
            if let (Op::GatherRotateScale { gradient, .. }, Half::Second) =
                (&self.program.ops[op], half)
            {
                // Added up by atom: the next layer may have the memory.
                run.arena.spare = std::mem::take(&mut run.arena.gradients[gradient.0]);
            }
        }
    }

    /// Lends one piece of memory per buffer, `rows` long. What is in it is left from before.
    fn with_scratch<R>(
        &self,
        rows: usize,
        buffers: &[Buf],
        work: impl FnOnce(Vec<&mut [T]>) -> R,
    ) -> R {
        if buffers.is_empty() {
            return work(Vec::new());
        }
        let lock = || lock(&self.scratch);
        let mut memory = lock().pop().unwrap_or_default();
        let len = |buf: Buf| (rows * self.program.width(buf)).next_multiple_of(16);
        let total: usize = buffers.iter().map(|&buf| len(buf)).sum();
        if memory.len() < total {
            memory.resize(total, T::ZERO);
        }
        let mut rest = memory.as_mut_slice();
        let mut pieces = Vec::with_capacity(buffers.len());
        for &buf in buffers {
            let (piece, tail) = rest.split_at_mut(len(buf));
            pieces.push(&mut piece[..rows * self.program.width(buf)]);
            rest = tail;
        }
        let result = work(pieces);
        lock().push(memory);
        result
    }

    /// Runs a batch and also returns every value that was kept: for comparison with a reference.
    pub fn trace(&self, batch: &[Structure]) -> (Vec<NetworkOutput>, Trace) {
        let mut run = self.start(batch, Arena::new(self.program.buffers.len()));
        let outputs = self.evaluate(&mut run, false);
        let buffers = self.program.buffers.iter().zip(&run.arena.values);
        let buffers = buffers
            .map(|(b, v)| (b.name.clone(), v.iter().map(|x| x.to_f64()).collect()))
            .collect();
        (outputs, Trace { buffers })
    }

    fn evaluate(&self, run: &mut Run<T>, recompute: bool) -> Vec<NetworkOutput> {
        self.forward(run, recompute);
        let energies: Vec<f64> = run
            .systems
            .iter()
            .map(|s| {
                let atoms = &run.arena.values[self.program.atom_energy.0][s.atoms.clone()];
                atoms.iter().map(|x| x.to_f64()).sum()
            })
            .collect();
        let sums = self.backward(run, recompute);
        let geometry = &run.geometry;
        let cutoff = self.program.cutoff;
        run.systems
            .iter()
            .zip(energies)
            .map(|(system, energy)| NetworkOutput {
                energy,
                gradient: system
                    .edges
                    .clone()
                    .into_par_iter()
                    .with_min_len(512)
                    .map(|e| {
                        let [dd, dp, x, y, z] =
                            std::array::from_fn(|i| sums[e * SUMS + i].to_f64());
                        let (d, [ux, uy, uz]) = (geometry.distance[e], geometry.unit[e]);
                        let along = dd + dp * envelope(d, cutoff).1;
                        [
                            along * ux + (uy * z - uz * y) / d,
                            along * uy + (uz * x - ux * z) / d,
                            along * uz + (ux * y - uy * x) / d,
                        ]
                    })
                    .collect(),
            })
            .collect()
    }
}

impl<T: Real> Backend for CpuBackend<T> {
    fn run(&self, batch: &[Structure]) -> Result<Vec<NetworkOutput>, DeviceError> {
        let lock = || lock(&self.arenas);
        let arena = lock()
            .pop()
            .unwrap_or_else(|| Arena::new(self.program.buffers.len()));
        // As a whole on a thread of the pool: a caller from elsewhere would wait to be woken after every
        // segment, which takes longer than the segments of a small molecule.
        let (arena, outputs) = rayon::scope(|_| {
            let mut run = self.start(batch, arena);
            let edges = run.geometry.source.len();
            let recompute = edges * self.kept_width() * size_of::<T>() > self.keep_bytes;
            let outputs = self.evaluate(&mut run, recompute);
            (run.arena, outputs)
        });
        lock().push(arena);
        Ok(outputs)
    }

    fn memory(&self, atoms: usize, edges: usize) -> usize {
        let kept = edges * self.kept_width() * size_of::<T>();
        let layer = edges * self.layer_width() * size_of::<T>();
        // With recomputation one layer's messages and the edge-degree radial rows remain.
        let kept = if kept > self.keep_bytes { layer } else { kept };
        // The edge list itself: source, target, vector, unit vector, distance, gradient, indices.
        let list = edges * (3 * 24 + 8 + 5 * 4);
        kept + layer
            + list
            + edges * self.geometry_width() * size_of::<T>()
            + atoms * self.atom_width() * size_of::<T>()
    }

    fn conditioning_memory(&self) -> usize {
        self.weights.mixed_bytes_at_most()
    }

    fn device(&self) -> &'static str {
        "cpu"
    }
}

impl<T: Real> Run<'_, T> {
    fn rows(&self, grain: Grain) -> usize {
        match grain {
            Grain::Edges => self.geometry.source.len(),
            Grain::Atoms | Grain::System => self.numbers.len(),
        }
    }

    /// Edges per tile of a system.
    fn edge_step(&self, system: &RunSystem<T>) -> usize {
        even_step(system.edges.len(), self.edge_tile, SMALLEST_TILE).next_multiple_of(KERNEL_ROWS)
    }

    /// The outgoing edges of an atom, in order.
    pub fn outgoing(&self, atom: usize) -> &[u32] {
        let starts = &self.geometry.source_start[atom..][..2];
        &self.geometry.outgoing[starts[0] as usize..starts[1] as usize]
    }

    /// The incoming edges of an atom, cut where edge tiles end.
    pub fn incoming(
        &self,
        system: &RunSystem<T>,
        atom: usize,
    ) -> impl Iterator<Item = Range<usize>> + use<T> {
        let starts = &self.geometry.target_start[atom..][..2];
        let (mut start, end) = (starts[0] as usize, starts[1] as usize);
        let (first, step) = (system.edges.start, self.edge_step(system));
        std::iter::from_fn(move || {
            let cut = first + ((start - first) / step + 1) * step;
            let run = start..cut.min(end);
            start = run.end;
            (!run.is_empty()).then_some(run)
        })
    }

    /// Cuts the rows into tiles. No tile holds rows of two systems, and the cuts within a system
    /// depend on its size alone.
    fn tiles(&self, grain: Grain) -> Vec<Tile> {
        let mut tiles = Vec::new();
        for (system, s) in self.systems.iter().enumerate() {
            let (rows, step) = match grain {
                Grain::Edges => (&s.edges, self.edge_step(s)),
                Grain::Atoms => (&s.atoms, even_step(s.atoms.len(), ATOM_TILE, KERNEL_ROWS)),
                Grain::System => (&s.atoms, usize::MAX),
            };
            let mut start = rows.start;
            while start < rows.end {
                let end = start.saturating_add(step).min(rows.end);
                tiles.push(Tile {
                    system,
                    rows: start..end,
                });
                start = end;
            }
        }
        tiles
    }
}

/// Rows per tile so that a system gives a number of tiles that a few threads share evenly.
fn even_step(rows: usize, largest: usize, smallest: usize) -> usize {
    // A small system is cut finer, so that it is not left to one thread.
    let tiles = rows.div_ceil(largest.min((rows / 8).max(smallest)));
    let tiles = if tiles > 2 {
        tiles.next_multiple_of(4)
    } else {
        tiles
    };
    rows.div_ceil(tiles.max(1)).max(1)
}

impl<T: Real> Arena<T> {
    fn new(buffers: usize) -> Arena<T> {
        Arena {
            values: vec![Vec::new(); buffers],
            gradients: vec![Vec::new(); buffers],
            spare: Vec::new(),
        }
    }
}

/// What these locks guard is whole at any time: a panic elsewhere does not spoil it.
fn lock<V>(mutex: &Mutex<V>) -> MutexGuard<'_, V> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the tiles on all threads. Which thread does a tile does not matter to the result.
fn over_tiles<'a, T: Real>(
    tiles: &[Tile],
    frames: &mut [Frame<'a, T>],
    work: impl Fn(&Tile, &mut Frame<'a, T>) + Sync,
) {
    if let ([tile], [frame]) = (tiles, &mut *frames) {
        return work(tile, frame);
    }
    tiles
        .par_iter()
        .zip(frames)
        // Tile by tile: otherwise a thread that is held up keeps a quarter of them to itself.
        .with_max_len(1)
        .for_each(|(tile, frame)| work(tile, frame));
}
