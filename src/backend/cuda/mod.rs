//! The CUDA backend: interprets a program with the kernels of `cuda/`.
//!
//! Reading order: `plan` (stages and where buffers lie), `pass` (memory of one evaluation and the
//! batch in it), `transfer` (how that gets there), `weights`, `gemm` and `shapes` (launches), `run` (the
//! order of launches), `device` (what all of it runs on: a GPU, or the same kernels compiled for the
//! host).
//!
//! Results are the same bits in every run and whatever else is in the batch: every sum is made by
//! one thread (or one accumulator of a matrix unit) in a fixed order, and nothing depends on how
//! edges are cut into chunks or tiles.

mod arena;
pub mod device;
pub mod driver;
pub mod error;
pub mod gemm;
mod gradients;
#[cfg(feature = "host-kernels")]
pub mod host;
pub mod images;
mod inputs;
pub mod params;
mod pass;
mod plan;
mod precision;
mod run;
#[cfg(test)]
mod search_tests;
pub mod shapes;
mod transfer;
mod weights;

pub use error::CudaError;
pub use precision::{EdgeNumbers, Number, Precision};

use super::{
    Backend, DeviceError, NetworkForces, NetworkOutput, PositionedSystem, Structure, WeightSource,
};
use crate::neighbors::{NeighborError, SearchTables, search_tables};
use crate::nn::Program;
use crate::so3::Wigner;
use device::{Device, Pinned};
use inputs::Systems;
use pass::{Capacity, Chunking, Pass, Places};
use plan::{Keep, Plan};
use rayon::prelude::*;
use run::{Constants, Runner};
use shapes::Shapes;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use transfer::Transfers;
use weights::Weights;

/// How to evaluate.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Number types.
    pub precision: Precision,
    /// Most memory for the evaluation of batches, bytes.
    pub memory_bytes: usize,
    /// Most memory for mixed weights, bytes; a batch that needs more gets it.
    pub mixed_bytes: usize,
    /// Most memory for experts that stay on the device, bytes.
    pub experts_bytes: usize,
    /// Most edges that are computed together. More use the device better, fewer take less memory;
    /// where that is short there are fewer.
    pub chunk_edges: usize,
    /// Whether repeated evaluations of one size are replayed as a graph.
    pub graphs: bool,
}

impl Options {
    /// Options for a device with this much free memory.
    pub fn new(precision: Precision, free_bytes: usize) -> Options {
        Options {
            precision,
            memory_bytes: free_bytes / 10 * 7,
            mixed_bytes: free_bytes / 10,
            experts_bytes: free_bytes / 10,
            chunk_edges: 64 * 1024,
            graphs: true,
        }
    }

    /// The same with at most so much memory for batches; mixed weights and experts get a seventh of it
    /// each at most.
    pub fn limited_to(self, memory_bytes: usize) -> Options {
        Options {
            memory_bytes: self.memory_bytes.min(memory_bytes),
            mixed_bytes: self.mixed_bytes.min(memory_bytes / 7),
            experts_bytes: self.experts_bytes.min(memory_bytes / 7),
            ..self
        }
    }
}

/// (lmax, mmax) that kernels are compiled for.
const LAYOUTS: [(usize, usize); 8] = [
    (1, 1),
    (2, 1),
    (2, 2),
    (3, 2),
    (3, 3),
    (4, 2),
    (4, 4),
    (6, 2),
];

/// Memory of an evaluation of so many atoms and edges of one system, bytes: with everything kept that
/// the backward pass reads, without the radial networks, without the messages too, with nothing kept.
/// Weights come on top.
///
/// # Errors
/// Programs that the kernels cannot run.
pub fn evaluation_bytes(
    program: &Program,
    options: &Options,
    atoms: usize,
    edges: usize,
) -> Result<[usize; 4], CudaError> {
    let capacity = Capacity {
        atoms,
        edges,
        systems: 1,
    }
    .rounded();
    let numbers = EdgeNumbers::of(options.precision);
    let mut bytes = [0; 4];
    for (bytes, keep) in bytes.iter_mut().zip(KEEP) {
        let plan = Plan::new(program, numbers, keep)?;
        let edges = match keep {
            Keep::Everything | Keep::Messages => options.chunk_edges,
            Keep::Gates | Keep::Nothing => options.chunk_edges.min(SMALL_CHUNK_EDGES),
        };
        let chunking = Chunking::new(&capacity, edges);
        *bytes = Places::new(program, &plan, &capacity, &chunking).bytes;
    }
    Ok(bytes)
}

/// Most first.
const KEEP: [Keep; 4] = [Keep::Everything, Keep::Messages, Keep::Gates, Keep::Nothing];

/// Edges of a chunk where memory is short.
const SMALL_CHUNK_EDGES: usize = 16 * 1024;

/// Interprets one program on a CUDA device.
pub struct CudaBackend {
    program: Arc<Program>,
    source: Arc<dyn WeightSource>,
    device: Arc<dyn Device>,
    options: Options,
    /// By how much is kept, as [`KEEP`].
    plans: [Plan; 4],
    shapes: Shapes,
    state: Mutex<Option<State>>,
}

impl Drop for CudaBackend {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = state.take() {
            state.release(&*self.device);
        }
    }
}

/// What lies on the device.
struct State {
    weights: Weights,
    constants: Constants,
    passes: Vec<Pass>,
    transfers: Transfers,
    clock: u64,
    /// Most edges per atom so far, by the key of the conditioning.
    edges_per_atom: HashMap<String, usize>,
}

/// Edges per atom of a system of which nothing is known.
const USUAL_EDGES_PER_ATOM: usize = 72;

/// Compositions whose edges are remembered.
const MOST_REMEMBERED: usize = 4096;

impl CudaBackend {
    /// Prepares a program: uploads its weights, except those that are mixed per system.
    ///
    /// # Errors
    /// Programs that the kernels cannot run, by name, and errors of the device.
    pub fn new(
        program: Arc<Program>,
        source: Arc<dyn WeightSource>,
        device: Arc<dyn Device>,
        options: Options,
    ) -> Result<CudaBackend, CudaError> {
        let layout = &program.layout;
        if !LAYOUTS.contains(&(layout.lmax, layout.mmax)) {
            return Err(CudaError::Unsupported(format!(
                "lmax {} with mmax {}; kernels exist for {LAYOUTS:?}",
                layout.lmax, layout.mmax
            )));
        }
        let numbers = EdgeNumbers::of(options.precision);
        let plan = |keep| Plan::new(&program, numbers, keep);
        let [everything, messages, gates, nothing] = KEEP;
        let plans = [
            plan(everything)?,
            plan(messages)?,
            plan(gates)?,
            plan(nothing)?,
        ];
        let shapes = Shapes::new(&program, options.precision);
        let backend = CudaBackend {
            program,
            source,
            device,
            options,
            plans,
            shapes,
            state: Mutex::new(None),
        };
        let state = backend.prepare()?;
        *backend.state() = Some(state);
        Ok(backend)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Weights and constants, on a fresh context.
    fn prepare(&self) -> Result<State, CudaError> {
        let device = &*self.device;
        let weights = Weights::new(
            device,
            self.program.clone(),
            self.source.clone(),
            &self.options,
        )?;
        let layout = &self.program.layout;
        let degrees: Vec<u32> = layout.edge_row_degree.iter().map(|&l| l as u32).collect();
        Ok(State {
            weights,
            constants: Constants {
                row_degree: device.alloc_with(&degrees)?,
                half_turns: device.alloc_with(&Wigner::new(layout).half_turns())?,
                radial_rows: device.alloc_with(&shapes::radial_rows(layout))?,
            },
            passes: Vec::new(),
            transfers: Transfers::default(),
            clock: 0,
            edges_per_atom: HashMap::new(),
        })
    }

    /// The ways to evaluate a batch, the quickest first: what is kept, how edges are cut.
    fn ways(&self, capacity: &Capacity) -> impl Iterator<Item = (usize, Chunking)> {
        let large = Chunking::new(capacity, self.options.chunk_edges);
        let small = self.options.chunk_edges.min(SMALL_CHUNK_EDGES);
        let small = Chunking::new(capacity, small);
        (0..KEEP.len()).flat_map(move |keep| [(keep, large), (keep, small)])
    }

    /// Memory of a pass that keeps as little as possible, bytes.
    fn least_memory(&self, capacity: &Capacity) -> usize {
        let bytes = |(keep, chunking): (usize, Chunking)| {
            Places::new(&self.program, &self.plans[keep], capacity, &chunking).bytes
        };
        self.ways(capacity).last().map_or(0, bytes)
    }

    /// A pass that holds a batch: one that is there, or a new one for which others may have to go.
    fn pass(&self, state: &mut State, need: Capacity) -> Result<usize, CudaError> {
        let capacity = need.rounded();
        state.clock += 1;
        let serving = (0..state.passes.len())
            .filter(|&i| state.passes[i].capacity.serves(&need))
            .min_by_key(|&i| state.passes[i].capacity.edges);
        if let Some(i) = serving {
            state.passes[i].last_use = state.clock;
            return Ok(i);
        }
        let limit = self.options.memory_bytes;
        let fitting = self.ways(&capacity).find_map(|(keep, chunking)| {
            let plan = &self.plans[keep];
            let places = Places::new(&self.program, plan, &capacity, &chunking);
            (places.bytes <= limit).then_some((keep, chunking, places))
        });
        let Some((keep, chunking, places)) = fitting else {
            return Err(CudaError::Invalid(format!(
                "{} atoms with {} edges need {} MiB, more than the limit of {} MiB",
                need.atoms,
                need.edges,
                self.least_memory(&capacity) >> 20,
                limit >> 20
            )));
        };
        while state.passes.iter().map(|p| p.places.bytes).sum::<usize>() + places.bytes > limit {
            let oldest = (0..state.passes.len()).min_by_key(|&i| state.passes[i].last_use);
            let Some(oldest) = oldest else { break };
            self.release(state.passes.swap_remove(oldest))?;
        }
        // Others on this device may have taken what was free when the limit was set.
        let base = loop {
            match self.device.alloc(places.bytes) {
                Err(CudaError::OutOfMemory { .. }) if !state.passes.is_empty() => {
                    let oldest = (0..state.passes.len()).min_by_key(|&i| state.passes[i].last_use);
                    self.release(state.passes.swap_remove(oldest.unwrap_or(0)))?;
                }
                other => break other?,
            }
        };
        let pass = Pass {
            capacity,
            chunking,
            places,
            base,
            keep,
            last_use: state.clock,
            graphs: [None; 2],
            runs: [0; 2],
        };
        if let Err(error) = run::prepare(&*self.device, &pass) {
            let _ = self.device.free(base);
            return Err(error);
        }
        state.passes.push(pass);
        Ok(state.passes.len() - 1)
    }

    fn release(&self, pass: Pass) -> Result<(), CudaError> {
        for graph in pass.graphs.into_iter().flatten() {
            self.device.release_graph(graph);
        }
        self.device.free(pass.base)
    }

    /// Works on the state; after an error that has cost the context, the next call makes it anew.
    fn on_device<T>(
        &self,
        work: impl FnOnce(&mut State) -> Result<T, CudaError>,
    ) -> Result<T, DeviceError> {
        let mut held = self.state();
        let result = (|| {
            if held.is_none() {
                self.device.recreate()?;
                *held = Some(self.prepare()?);
            }
            work(held.as_mut().expect("prepared just now"))
        })();
        if result.is_err() && self.device.unhealthy().is_some() {
            *held = None;
        }
        result.map_err(|error| DeviceError(error.to_string()))
    }

    /// Mixes what is missing, and what a pass is given that does not depend on edges.
    fn common_inputs(
        &self,
        state: &mut State,
        index: usize,
        systems: &Systems,
        edges: usize,
    ) -> Result<inputs::Inputs, CudaError> {
        let conditionings = &systems.conditionings;
        let mixed = state.weights.mixed(&*self.device, conditionings)?;
        let tasks = conditionings
            .iter()
            .map(|c| state.weights.task_base(c.task_index));
        let tasks: Vec<u64> = tasks.collect();
        let pass = &state.passes[index];
        Ok(systems.inputs(&self.program, pass, &mixed, &tasks, edges))
    }

    /// Queues the kernels of a pass, as a graph if it ran before.
    fn run_pass(&self, state: &mut State, index: usize, kind: Kind) -> Result<(), CudaError> {
        let device = &*self.device;
        let pass = &state.passes[index];
        let runner = self.runner(state, index);
        let run = || match kind {
            Kind::List => runner.evaluate(),
            Kind::Search => {
                runner.search()?;
                runner.evaluate()?;
                runner.totals()
            }
        };
        // The first evaluation of a size runs as it is: kernels are loaded then, which cannot be
        // captured, and a size that is not seen again is not worth a graph.
        let graph = match pass.graphs[kind as usize] {
            None if self.options.graphs && pass.runs[kind as usize] > 0 => {
                device.begin_capture()?;
                let recorded = run();
                let graph = device.end_capture();
                recorded?;
                Some(graph?)
            }
            known => known,
        };
        match graph {
            Some(graph) => device.launch_graph(graph)?,
            None => run()?,
        }
        let pass = &mut state.passes[index];
        pass.graphs[kind as usize] = graph;
        pass.runs[kind as usize] += 1;
        Ok(())
    }

    fn runner<'a>(&'a self, state: &'a State, index: usize) -> Runner<'a> {
        let pass = &state.passes[index];
        Runner {
            device: &*self.device,
            program: &self.program,
            plan: &self.plans[pass.keep],
            pass,
            weights: &state.weights,
            constants: state.constants,
            shapes: &self.shapes,
        }
    }

    /// With edges from the host.
    fn evaluate(
        &self,
        state: &mut State,
        batch: &[Structure],
    ) -> Result<Vec<NetworkOutput>, CudaError> {
        let device = &*self.device;
        let systems = Systems {
            numbers: batch.iter().map(|s| s.numbers).collect(),
            conditionings: batch.iter().map(|s| &*s.conditioning).collect(),
        };
        let need = Capacity::of(batch);
        let index = self.pass(state, need)?;
        let edges = inputs::edges(&state.passes[index], batch)?;
        let common = self.common_inputs(state, index, &systems, need.edges)?;
        let pass = &state.passes[index];
        for inputs in [&common, &edges] {
            device.upload_bytes(pass.at(inputs.at), &inputs.bytes)?;
        }
        self.run_pass(state, index, Kind::List)?;
        let runner = self.runner(state, index);
        let energies: Vec<f32> = device.download(runner.energies(), need.atoms)?;
        let pass = &state.passes[index];
        let gradients: Vec<[f64; 3]> =
            device.download(pass.at(pass.places.gradient), need.edges)?;
        let (mut energies, mut gradients) = (energies.as_slice(), gradients.as_slice());
        let outputs = batch.iter().map(|structure| {
            let (mine, rest) = energies.split_at(structure.numbers.len());
            energies = rest;
            let (gradient, rest) = gradients.split_at(structure.neighbors.len());
            gradients = rest;
            NetworkOutput {
                energy: mine.iter().map(|&e| f64::from(e)).sum(),
                gradient: gradient.to_vec(),
            }
        });
        Ok(outputs.collect())
    }

    /// With a search on the device. `None` for the systems whose edges must come from the host: an
    /// atom has more neighbours than the model keeps, or the system does not fit into memory by
    /// itself. Which way a system goes does not depend on the others, so its bits do not either.
    fn evaluate_positions(
        &self,
        batch: &[&PositionedSystem],
        tables: &[SearchTables],
    ) -> Result<Vec<Option<Result<NetworkForces, NeighborError>>>, DeviceError> {
        match self.evaluate_searched(batch, tables)? {
            Some(answers) => Ok(answers.into_iter().map(Some).collect()),
            None if batch.len() == 1 => Ok(vec![None]),
            None => {
                let half = batch.len() / 2;
                let (first, second) = tables.split_at(half);
                let mut answers = self.evaluate_positions(&batch[..half], first)?;
                answers.extend(self.evaluate_positions(&batch[half..], second)?);
                Ok(answers)
            }
        }
    }

    /// The same for a batch as a whole, or `None`. While it waits for the results others may queue
    /// their batches.
    fn evaluate_searched(
        &self,
        batch: &[&PositionedSystem],
        tables: &[SearchTables],
    ) -> Result<Option<Vec<Result<NetworkForces, NeighborError>>>, DeviceError> {
        let limit = batch.iter().map(|s| s.max_neighbors).min().unwrap_or(0);
        // A second try knows how many edges there are.
        let mut known_edges = None;
        loop {
            let queue = |state: &mut State| self.queue(state, batch, tables, known_edges);
            let Some(queued) = self.on_device(queue)? else {
                return Ok(None);
            };
            if let Err(error) = self.device.wait_pinned(&*queued.results) {
                // Forgets what lies on the device, if that is lost.
                return self.on_device(|_| Err(error));
            }
            let results = Results {
                bytes: &queued.results,
                from: queued.places.flags,
            };
            let flags: Vec<u32> = results.get(queued.places.flags, 4);
            let [found, degree, overflow] =
                [flags[0] as usize, flags[1] as usize, flags[2] as usize];
            let answers = match (degree > limit.min(pass::MAX_DEGREE), overflow) {
                (true, _) => None,
                (false, 0) => Some(forces(batch, &results, &queued.places)),
                (false, _) if found <= queued.need.edges => {
                    return Err(DeviceError(format!(
                        "{found} edges did not fit into room for {}",
                        queued.need.edges
                    )));
                }
                (false, _) => {
                    let more = Capacity {
                        edges: found + found / 8,
                        ..queued.need
                    };
                    known_edges = Some(if self.fits(&more) { more.edges } else { found });
                    self.read(queued, |_| ());
                    continue;
                }
            };
            let starts: Vec<u32> = results.get(queued.places.edge_start, batch.len() + 1);
            let evaluated = answers.is_some();
            self.read(queued, |state| {
                if evaluated {
                    state.remember(batch, &starts);
                }
            });
            return Ok(answers);
        }
    }

    /// Whether a batch fits that has as many edges.
    fn fits(&self, need: &Capacity) -> bool {
        self.least_memory(&need.rounded()) <= self.options.memory_bytes
    }

    /// Queues the evaluation of a batch, or says that it does not fit.
    fn queue(
        &self,
        state: &mut State,
        batch: &[&PositionedSystem],
        tables: &[SearchTables],
        known_edges: Option<usize>,
    ) -> Result<Option<Queued>, CudaError> {
        let device = &*self.device;
        let systems = Systems {
            numbers: batch.iter().map(|s| s.system.numbers.as_slice()).collect(),
            conditionings: batch.iter().map(|s| &*s.conditioning).collect(),
        };
        let positions: Vec<&[[f64; 3]]> = batch
            .iter()
            .map(|s| s.system.positions.as_slice())
            .collect();
        let mut need = Capacity {
            atoms: positions.iter().map(|p| p.len()).sum(),
            edges: known_edges.unwrap_or_else(|| state.guess(batch)),
            systems: batch.len(),
        };
        // Whether the batch fits is decided on the edges that there are, not on a guess.
        while known_edges.is_none() && !self.fits(&need) && need.edges > 0 {
            need.edges = need.edges / 4 * 3;
        }
        if !self.fits(&need) {
            return Ok(None);
        }
        let index = self.pass(state, need)?;
        let search = inputs::search(&state.passes[index], &positions, tables);
        let common = self.common_inputs(state, index, &systems, 0)?;
        let base = state.passes[index].base;
        let transfers = &mut state.transfers;
        transfers.upload(device, base, &[&common, &search])?;
        self.run_pass(state, index, Kind::Search)?;
        let places = state.passes[index].places;
        let bytes = places.results_end - places.flags;
        let from = base.offset(places.flags);
        let results = state.transfers.download(device, from, bytes)?;
        Ok(Some(Queued {
            results,
            places,
            need,
        }))
    }

    /// Takes memory back whose results have been read.
    fn read(&self, queued: Queued, note: impl FnOnce(&mut State)) {
        if let Some(state) = self.state().as_mut() {
            note(state);
            state.transfers.give_back(queued.results);
        }
    }
}

/// A batch that the device has in hand.
struct Queued {
    /// From `places.flags` to `places.results_end`.
    results: Box<dyn Pinned>,
    places: Places,
    need: Capacity,
}

/// Where the edges of a pass come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// From the host.
    List = 0,
    /// The device searches.
    Search = 1,
}

impl State {
    /// Gives all memory back. Where the device fails there is nothing left to give back.
    fn release(self, device: &dyn Device) {
        for pass in self.passes {
            for graph in pass.graphs.into_iter().flatten() {
                device.release_graph(graph);
            }
            let _ = device.free(pass.base);
        }
        self.transfers.release(device);
        let _ = device.free(self.constants.row_degree);
        let _ = device.free(self.constants.half_turns);
        let _ = device.free(self.constants.radial_rows);
        self.weights.release(device);
    }

    /// Edges that a batch probably has, with room for some more.
    fn guess(&self, batch: &[&PositionedSystem]) -> usize {
        let of = |s: &&PositionedSystem| {
            let atoms = s.system.len();
            let known = self.edges_per_atom.get(&s.conditioning.key).copied();
            let per_atom = known.unwrap_or(USUAL_EDGES_PER_ATOM);
            let probably = atoms.saturating_mul(per_atom + per_atom / 8);
            // A molecule has no more than all pairs; periodic images make more.
            match s.system.cell.is_periodic() {
                true => probably,
                false => probably.min(atoms.saturating_mul(atoms.saturating_sub(1))),
            }
        };
        batch.iter().map(of).sum()
    }

    /// Notes how many edges the systems of a batch have.
    fn remember(&mut self, batch: &[&PositionedSystem], edge_start: &[u32]) {
        if self.edges_per_atom.len() > MOST_REMEMBERED {
            self.edges_per_atom.clear();
        }
        for (system, edges) in batch.iter().zip(edge_start.windows(2)) {
            let per_atom = (edges[1] - edges[0]) as usize / system.system.len().max(1) + 1;
            match self.edges_per_atom.get_mut(&system.conditioning.key) {
                Some(most) => *most = per_atom.max(*most),
                None => {
                    let key = system.conditioning.key.clone();
                    self.edges_per_atom.insert(key, per_atom);
                }
            }
        }
    }
}

/// The results of a pass as bytes.
struct Results<'a> {
    bytes: &'a [u8],
    from: usize,
}

impl Results<'_> {
    fn get<T: bytemuck::Pod>(&self, at: usize, count: usize) -> Vec<T> {
        let at = at - self.from;
        bytemuck::pod_collect_to_vec(&self.bytes[at..at + count * size_of::<T>()])
    }
}

fn forces(
    batch: &[&PositionedSystem],
    results: &Results,
    places: &Places,
) -> Vec<Result<NetworkForces, NeighborError>> {
    let energies: Vec<f64> = results.get(places.energy, batch.len());
    let virials: Vec<[f64; 9]> = results.get(places.virial, batch.len());
    let starts: Vec<u32> = results.get(places.edge_start, batch.len() + 1);
    let mut atom = 0;
    let mut answers = Vec::new();
    for (i, system) in batch.iter().enumerate() {
        let atoms = system.system.len();
        let edges = (starts[i + 1] - starts[i]) as usize;
        let forces: Vec<[f64; 3]> = results.get(places.force + 24 * atom, atoms);
        atom += atoms;
        answers.push(match edges > system.max_edges {
            true => Err(NeighborError::TooManyEdges {
                found: edges,
                limit: system.max_edges,
            }),
            false => Ok(NetworkForces {
                energy: energies[i],
                edges,
                forces,
                virial: std::array::from_fn(|j| {
                    std::array::from_fn(|k| 0.5 * (virials[i][3 * j + k] + virials[i][3 * k + j]))
                }),
            }),
        });
    }
    answers
}

impl Backend for CudaBackend {
    fn run(&self, batch: &[Structure]) -> Result<Vec<NetworkOutput>, DeviceError> {
        self.on_device(|state| self.evaluate(state, batch))
    }

    fn run_positions(
        &self,
        batch: &[PositionedSystem],
    ) -> Result<Vec<Option<Result<NetworkForces, NeighborError>>>, DeviceError> {
        let tables: Vec<_> = batch
            .par_iter()
            .map(|s| search_tables(s.system, self.program.cutoff, s.max_edges))
            .collect();
        let mut answers: Vec<Option<Result<NetworkForces, NeighborError>>> = Vec::new();
        let (mut searched, mut their_tables) = (Vec::new(), Vec::new());
        for (i, table) in tables.into_iter().enumerate() {
            answers.push(match table {
                Err(error) => Some(Err(error)),
                Ok(Some(table)) if inputs::images_fit(&table) => {
                    searched.push(i);
                    their_tables.push(table);
                    None
                }
                Ok(_) => None,
            });
        }
        if searched.is_empty() {
            return Ok(answers);
        }
        let systems: Vec<&PositionedSystem> = searched.iter().map(|&i| &batch[i]).collect();
        let found = self.evaluate_positions(&systems, &their_tables)?;
        for (i, answer) in searched.into_iter().zip(found) {
            answers[i] = answer;
        }
        Ok(answers)
    }

    fn memory(&self, atoms: usize, edges: usize) -> usize {
        let capacity = Capacity {
            atoms,
            edges,
            systems: 1,
        };
        self.least_memory(&capacity.rounded())
    }

    fn conditioning_memory(&self) -> usize {
        self.state().as_ref().map_or(0, |s| s.weights.mixed_bytes())
    }

    fn device(&self) -> &'static str {
        "cuda"
    }
}
