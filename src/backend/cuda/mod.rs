//! The CUDA backend: interprets a program with the kernels of `cuda/`.
//!
//! Reading order: `plan` (stages and where buffers lie), `pass` (memory of one evaluation and the
//! batch in it), `weights`, `gemm` and `shapes` (launches), `run` (the order of launches), `device`
//! (what all of it runs on: a GPU, or the same kernels compiled for the host).
//!
//! Results are the same bits in every run and whatever else is in the batch: every sum is made by
//! one thread (or one accumulator of a matrix unit) in a fixed order, and nothing depends on how
//! edges are cut into chunks or tiles.

mod arena;
pub mod device;
pub mod driver;
pub mod error;
mod gemm;
#[cfg(feature = "host-kernels")]
pub mod host;
pub mod images;
pub mod params;
mod pass;
mod plan;
mod run;
mod shapes;
mod weights;

pub use error::CudaError;

use super::{Backend, DeviceError, NetworkOutput, Structure, WeightSource};
use crate::nn::Program;
use crate::so3::Wigner;
use device::Device;
use pass::{Capacity, Chunking, Inputs, Pass, Places};
use plan::{Keep, Plan};
use run::{Constants, Runner};
use shapes::Shapes;
use std::sync::{Arc, Mutex, PoisonError};
use weights::Weights;

/// Number types of the products of edge values. Everything else is f32, geometry and sums over a
/// system f64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// IEEE f32.
    F32,
    /// tf32 operands, f32 sums.
    #[default]
    Tf32,
    /// fp16 operands and edge values, f32 sums.
    F16,
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Precision::F32 => "f32",
            Precision::Tf32 => "tf32",
            Precision::F16 => "f16",
        })
    }
}

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
    /// Edges that are computed together. More use the device better, fewer take less memory.
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
            chunk_edges: 16 * 1024,
            graphs: true,
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

/// Interprets one program on a CUDA device.
pub struct CudaBackend {
    program: Arc<Program>,
    source: Arc<dyn WeightSource>,
    device: Arc<dyn Device>,
    options: Options,
    /// By how much is kept, most first.
    plans: [Plan; 3],
    shapes: Shapes,
    state: Mutex<Option<State>>,
}

/// What lies on the device.
struct State {
    weights: Weights,
    constants: Constants,
    passes: Vec<Pass>,
    clock: u64,
}

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
        let stored = match options.precision {
            Precision::F16 => 2,
            Precision::F32 | Precision::Tf32 => 4,
        };
        let plan = |keep| Plan::new(&program, stored, keep);
        let plans = [
            plan(Keep::Messages)?,
            plan(Keep::Gates)?,
            plan(Keep::Nothing)?,
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
            },
            passes: Vec::new(),
            clock: 0,
        })
    }

    fn chunking(&self, capacity: &Capacity) -> Chunking {
        Chunking::new(capacity, self.options.chunk_edges)
    }

    /// Memory of a pass that keeps as little as possible, bytes.
    fn least_memory(&self, capacity: &Capacity) -> usize {
        let chunking = self.chunking(capacity);
        Places::new(&self.program, &self.plans[2], capacity, &chunking).bytes
    }

    /// A pass that holds a batch: one that is there, or a new one for which others may have to go.
    fn pass(&self, state: &mut State, need: Capacity) -> Result<usize, CudaError> {
        let capacity = need.rounded();
        state.clock += 1;
        if let Some(i) = state.passes.iter().position(|p| p.capacity == capacity) {
            state.passes[i].last_use = state.clock;
            return Ok(i);
        }
        let limit = self.options.memory_bytes;
        let chunking = self.chunking(&capacity);
        let fitting = self.plans.iter().enumerate().find_map(|(keep, plan)| {
            let places = Places::new(&self.program, plan, &capacity, &chunking);
            (places.bytes <= limit).then_some((keep, places))
        });
        let Some((keep, places)) = fitting else {
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
        state.passes.push(Pass {
            capacity,
            chunking,
            places,
            base: self.device.alloc(places.bytes)?,
            keep,
            last_use: state.clock,
            graph: None,
            runs: 0,
        });
        Ok(state.passes.len() - 1)
    }

    fn release(&self, pass: Pass) -> Result<(), CudaError> {
        if let Some(graph) = pass.graph {
            self.device.release_graph(graph);
        }
        self.device.free(pass.base)
    }

    fn evaluate(
        &self,
        state: &mut State,
        batch: &[Structure],
    ) -> Result<Vec<NetworkOutput>, CudaError> {
        let device = &*self.device;
        let conditionings: Vec<_> = batch.iter().map(|s| s.conditioning.clone()).collect();
        let mixed = state.weights.mixed(device, &conditionings)?;
        let tasks = conditionings.iter().map(|c| state.weights.task_base(c.task_index));
        let tasks: Vec<u64> = tasks.collect();
        let index = self.pass(state, Capacity::of(batch))?;
        let pass = &state.passes[index];
        let inputs = Inputs::new(&self.program, pass, batch, &mixed, &tasks)?;
        device.upload_bytes(pass.base, inputs.bytes())?;

        let runner = Runner {
            device,
            program: &self.program,
            plan: &self.plans[pass.keep],
            pass,
            weights: &state.weights,
            constants: state.constants,
            precision: self.options.precision,
            shapes: &self.shapes,
        };
        // The first evaluation of a size runs as it is: kernels are loaded then, which cannot be
        // captured, and a size that is not seen again is not worth a graph.
        let graph = match pass.graph {
            None if self.options.graphs && pass.runs > 0 => {
                device.begin_capture()?;
                let recorded = runner.evaluate();
                let graph = device.end_capture();
                recorded?;
                Some(graph?)
            }
            known => known,
        };
        match graph {
            Some(graph) => device.launch_graph(graph)?,
            None => runner.evaluate()?,
        }
        let energies: Vec<f32> = device.download(
            runner.energies(),
            batch.iter().map(|s| s.numbers.len()).sum(),
        )?;
        let gradients: Vec<[f64; 3]> = device.download(
            pass.at(pass.places.gradient),
            batch.iter().map(|s| s.neighbors.len()).sum(),
        )?;
        let pass = &mut state.passes[index];
        pass.graph = graph;
        pass.runs += 1;

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
}

impl Backend for CudaBackend {
    fn run(&self, batch: &[Structure]) -> Result<Vec<NetworkOutput>, DeviceError> {
        let mut held = self.state();
        let result = (|| {
            if held.is_none() {
                self.device.recreate()?;
                *held = Some(self.prepare()?);
            }
            let state = held.as_mut().expect("prepared just now");
            self.evaluate(state, batch)
        })();
        if result.is_err() && self.device.unhealthy().is_some() {
            // All memory is gone with the context; the next call makes both anew.
            *held = None;
        }
        result.map_err(|error| DeviceError(error.to_string()))
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
