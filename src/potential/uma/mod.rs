//! UMA: the checkpoint, the network it describes, and its evaluation.

pub mod checkpoint;
pub mod conditioning;
pub mod config;
pub mod describe;
pub mod network;

pub use checkpoint::{Checkpoint, CheckpointError};
pub use config::UmaConfig;

use super::{EdgeGradients, Evaluated, EvaluationError, Potential};
use crate::backend::cpu::{CpuBackend, Trace};
use crate::backend::cuda::device::Device;
use crate::backend::cuda::{self, CudaBackend};
use crate::backend::{
    Backend, NetworkForces, PositionedSystem, Structure, WeightData, WeightSource,
};
use crate::neighbors::NeighborList;
use crate::system::System;
use conditioning::Conditioner;
use config::FeedForward;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Number type of the network. Positions, edge vectors and sums over a system are f64 in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// IEEE single precision.
    #[default]
    F32,
    /// On CUDA devices: products of numbers with 10 bits of mantissa, as tf32 has, summed in f32;
    /// everything else f32.
    Tf32,
    /// On CUDA devices: products of fp16 numbers, summed in f32, values of edges kept in fp16;
    /// everything else f32.
    F16,
    /// IEEE double precision, on the CPU.
    F64,
}

impl Precision {
    /// The same on a CUDA device.
    ///
    /// # Errors
    /// Double precision is for the CPU.
    pub fn on_cuda(self) -> Result<cuda::Precision, &'static str> {
        match self {
            Precision::F32 => Ok(cuda::Precision::F32),
            Precision::Tf32 => Ok(cuda::Precision::Tf32),
            Precision::F16 => Ok(cuda::Precision::F16),
            Precision::F64 => Err("f64 is computed on the CPU only"),
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self.on_cuda() {
            Ok(precision) => precision.fmt(f),
            Err(_) => f.write_str("f64"),
        }
    }
}

/// How to evaluate.
#[derive(Clone, Copy, Debug)]
pub struct UmaOptions {
    /// Number type.
    pub precision: Precision,
    /// Most working memory for one pass, bytes. A structure that needs more is refused; a batch
    /// that needs more is cut.
    pub memory_bytes: usize,
}

impl Default for UmaOptions {
    fn default() -> Self {
        UmaOptions {
            precision: Precision::F32,
            memory_bytes: 8 << 30,
        }
    }
}

/// UMA on one device.
pub struct UmaPotential {
    config: UmaConfig,
    conditioner: Conditioner,
    backend: Box<dyn Backend>,
    options: UmaOptions,
}

impl WeightSource for Checkpoint {
    fn weight(&self, name: &str) -> WeightData<'_> {
        match self.tensors.get(name) {
            // Zero-copy: the experts are mixed straight from the file.
            Some(tensor) => match tensor.as_f32_slice() {
                Some(slice) => WeightData::F32(Cow::Borrowed(slice)),
                None => WeightData::F64(Cow::Owned(tensor.to_vec())),
            },
            None => WeightData::F64(Cow::Owned(Vec::new())),
        }
    }
}

/// The feed-forward network "grid" is refused here, not by the reader: it is a property of what
/// this program evaluates.
fn check_config(config: &UmaConfig) -> Result<(), CheckpointError> {
    let refuse = |option: &str, found: String, reason: &str| {
        Err(CheckpointError::Unsupported(config::Unsupported {
            option: option.into(),
            found,
            reason: reason.into(),
        }))
    };
    if config.feed_forward == FeedForward::Grid {
        return refuse(
            "backbone.ff_type",
            "grid".into(),
            "only the spectral feed-forward network is evaluated",
        );
    }
    if config.lmax > crate::so3::wigner::MAX_DEGREE {
        return refuse(
            "backbone.lmax",
            config.lmax.to_string(),
            "degrees up to 10 are evaluated",
        );
    }
    for (name, task) in &config.tasks {
        for (property, other) in [
            ("forces", task.forces_normalizer()),
            ("stress", task.stress_normalizer()),
        ] {
            if other.rmsd != task.energy.rmsd || other.mean != 0.0 {
                return refuse(
                    &format!("tasks.{name}_{property}.normalizer"),
                    format!("rmsd {}, mean {}", other.rmsd, other.mean),
                    "forces and stress are derivatives of the energy and must share its scale",
                );
            }
        }
    }
    Ok(())
}

impl UmaPotential {
    /// Prepares the network of a checkpoint for the CPU.
    pub fn on_cpu(
        checkpoint: Arc<Checkpoint>,
        options: UmaOptions,
    ) -> Result<UmaPotential, CheckpointError> {
        check_config(&checkpoint.config)?;
        let program = Arc::new(network::program(&checkpoint.config));
        let keep = options.memory_bytes / 2;
        let backend: Box<dyn Backend> = match options.precision {
            Precision::F32 => Box::new(CpuBackend::<f32>::new(program, checkpoint.clone(), keep)),
            Precision::F64 => Box::new(CpuBackend::<f64>::new(program, checkpoint.clone(), keep)),
            Precision::Tf32 | Precision::F16 => {
                return Err(CheckpointError::Unsupported(config::Unsupported {
                    option: "precision".into(),
                    found: options.precision.to_string(),
                    reason: "the CPU computes in f32 or f64".into(),
                }));
            }
        };
        Ok(UmaPotential {
            config: checkpoint.config.clone(),
            conditioner: Conditioner::new(&checkpoint),
            backend,
            options,
        })
    }

    /// Prepares the network of a checkpoint for a CUDA device, in f32, tf32 or f16. Batches take
    /// `options.memory_bytes` at most, and at most what the device has free for them.
    ///
    /// # Errors
    /// A checkpoint that is not evaluated at all, one that the kernels do not cover, and errors of the
    /// device; in words.
    pub fn on_cuda(
        checkpoint: Arc<Checkpoint>,
        options: UmaOptions,
        device: Arc<dyn Device>,
    ) -> Result<UmaPotential, String> {
        check_config(&checkpoint.config).map_err(|error| error.to_string())?;
        let precision = options.precision.on_cuda()?;
        let program = Arc::new(network::program(&checkpoint.config));
        let free = device.memory().map_err(|error| error.to_string())?.free;
        let cuda_options = cuda::Options::new(precision, free).limited_to(options.memory_bytes);
        let backend = CudaBackend::new(program, checkpoint.clone(), device, cuda_options)
            .map_err(|error| error.to_string())?;
        Ok(UmaPotential {
            config: checkpoint.config.clone(),
            conditioner: Conditioner::new(&checkpoint),
            backend: Box::new(backend),
            options: UmaOptions {
                memory_bytes: cuda_options.memory_bytes,
                ..options
            },
        })
    }

    /// The configuration.
    pub fn config(&self) -> &UmaConfig {
        &self.config
    }

    /// The network's answer with all intermediate values, in f64, for one system.
    pub fn trace(
        checkpoint: &Arc<Checkpoint>,
        system: &System,
        neighbors: &NeighborList,
    ) -> (
        crate::backend::NetworkOutput,
        crate::backend::Conditioning,
        Trace,
    ) {
        let program = Arc::new(network::program(&checkpoint.config));
        let backend = CpuBackend::<f64>::new(program, checkpoint.clone(), usize::MAX);
        let conditioning = Conditioner::new(checkpoint).conditioning(system);
        let structure = Structure {
            numbers: &system.numbers,
            neighbors,
            conditioning: conditioning.clone(),
        };
        let (mut outputs, trace) = backend.trace(&[structure]);
        (outputs.remove(0), (*conditioning).clone(), trace)
    }

    fn refuse(message: String) -> Result<(), EvaluationError> {
        Err(EvaluationError::Unsupported(message))
    }

    /// How many of the first structures fit in memory together, with one set of mixed weights for
    /// every conditioning among them; at least one.
    fn fit(&self, structures: &[Structure]) -> usize {
        let mut used = 0;
        let mut keys = BTreeSet::new();
        let fitting = structures.iter().take_while(|structure| {
            used += self.memory(structure.neighbors);
            if keys.insert(structure.conditioning.key.as_str()) {
                used += self.backend.conditioning_memory();
            }
            used <= self.options.memory_bytes
        });
        fitting.count().max(1)
    }

    fn memory(&self, neighbors: &NeighborList) -> usize {
        self.backend.memory(
            neighbors.target_start.len().saturating_sub(1),
            neighbors.len(),
        )
    }
}

impl Potential for UmaPotential {
    fn cutoff_angstrom(&self) -> f64 {
        self.config.cutoff
    }

    fn max_neighbors(&self) -> usize {
        self.config.max_neighbors
    }

    fn check(&self, system: &System) -> Result<(), EvaluationError> {
        if system.is_empty() {
            return Self::refuse("the structure has no atoms".into());
        }
        if !self.config.tasks.contains_key(&system.task) {
            let known: Vec<&str> = self.config.task_names().collect();
            return Self::refuse(format!(
                "task '{}' is unknown to {}; it has {}",
                system.task,
                self.config.name,
                known.join(", ")
            ));
        }
        if !(-100..=100).contains(&system.charge) {
            return Self::refuse(format!("charge {} is outside -100 to 100", system.charge));
        }
        if !(0..=100).contains(&system.spin) {
            return Self::refuse(format!(
                "spin multiplicity {} is outside 0 to 100",
                system.spin
            ));
        }
        let elements = self.config.elements();
        let unknown = system
            .numbers
            .iter()
            .position(|&z| !elements.contains(&usize::from(z)));
        if let Some(atom) = unknown {
            return Self::refuse(format!(
                "atom {atom} has atomic number {}; {} knows 1 to {}",
                system.numbers[atom],
                self.config.name,
                elements.end - 1
            ));
        }
        if system.len() == 1 && !system.cell.is_periodic() && !self.config.supports_single_atoms {
            return Self::refuse(format!(
                "{} was not trained on lone atoms (models from 1.2 on are)",
                self.config.name
            ));
        }
        Ok(())
    }

    fn edge_gradients(
        &self,
        batch: &[(&System, &NeighborList)],
    ) -> Vec<Result<EdgeGradients, EvaluationError>> {
        let mut answers: Vec<Option<Result<EdgeGradients, EvaluationError>>> =
            vec![None; batch.len()];
        let mut pending: Vec<usize> = Vec::new();
        for (i, (system, neighbors)) in batch.iter().enumerate() {
            let needed = self.memory(neighbors);
            if needed > self.options.memory_bytes {
                answers[i] = Some(Err(EvaluationError::OutOfMemory {
                    atoms: system.len(),
                    edges: neighbors.len(),
                    needed_mib: needed >> 20,
                    limit_mib: self.options.memory_bytes >> 20,
                }));
            } else if let Err(error) = self.check(system) {
                answers[i] = Some(Err(error));
            } else {
                pending.push(i);
            }
        }
        let structures: Vec<Structure> = pending
            .iter()
            .map(|&i| Structure {
                numbers: &batch[i].0.numbers,
                neighbors: batch[i].1,
                conditioning: self.conditioner.conditioning(batch[i].0),
            })
            .collect();
        let mut first = 0;
        while first < pending.len() {
            let count = self.fit(&structures[first..]);
            let part = first..first + count;
            match self.backend.run(&structures[part.clone()]) {
                Ok(outputs) => {
                    for (&i, output) in pending[part].iter().zip(outputs) {
                        answers[i] = Some(Ok(self.denormalise(batch[i].0, output)));
                    }
                }
                Err(error) => {
                    for &i in &pending[part] {
                        answers[i] = Some(Err(EvaluationError::Device(error.to_string())));
                    }
                }
            }
            first += count;
        }
        answers
            .into_iter()
            .map(|a| a.expect("every structure was answered or refused"))
            .collect()
    }

    fn evaluations(
        &self,
        systems: &[&System],
        max_edges: usize,
    ) -> Vec<Option<Result<Evaluated, EvaluationError>>> {
        let batch: Vec<PositionedSystem> = systems
            .iter()
            .map(|system| PositionedSystem {
                system,
                conditioning: self.conditioner.conditioning(system),
                max_neighbors: self.config.max_neighbors,
                max_edges,
            })
            .collect();
        let answers = match self.backend.run_positions(&batch) {
            Ok(answers) => answers,
            Err(error) => {
                let failed = || Some(Err(EvaluationError::Device(error.to_string())));
                return systems.iter().map(|_| failed()).collect();
            }
        };
        let evaluation = |system: &System, answer: NetworkForces| {
            let (scale, offset) = self.normalisation(system);
            let scaled = |row: [f64; 3]| row.map(|x| x * scale);
            let forces = answer.forces.into_iter().map(scaled).collect();
            let energy = answer.energy * scale + offset;
            let evaluation = super::finish(system, energy, forces, || answer.virial.map(scaled))?;
            Ok(Evaluated {
                evaluation,
                edges: answer.edges,
            })
        };
        systems
            .iter()
            .zip(answers)
            .map(|(system, answer)| {
                answer.map(|answer| evaluation(system, answer.map_err(EvaluationError::from)?))
            })
            .collect()
    }

    fn overlaps(&self) -> bool {
        self.backend.device() == "cuda"
    }
}

impl UmaPotential {
    /// Factor and offset from units of the normaliser to eV, reference energies of the elements
    /// included.
    fn normalisation(&self, system: &System) -> (f64, f64) {
        let task = &self.config.tasks[&system.task];
        // Models in f32 carry the scale in f32 too; 1.423 is then 1.42299997.
        let scale = match self.options.precision {
            Precision::F32 | Precision::Tf32 | Precision::F16 => f64::from(task.energy.rmsd as f32),
            Precision::F64 => task.energy.rmsd,
        };
        let references = system.numbers.iter().map(|&z| {
            let reference = task.element_references.get(usize::from(z));
            reference.copied().unwrap_or(0.0)
        });
        (scale, task.energy.mean + references.sum::<f64>())
    }

    /// From units of the normaliser to eV.
    fn denormalise(&self, system: &System, output: crate::backend::NetworkOutput) -> EdgeGradients {
        let (scale, offset) = self.normalisation(system);
        EdgeGradients {
            energy: output.energy * scale + offset,
            gradient: output
                .gradient
                .into_iter()
                .map(|g| g.map(|x| x * scale))
                .collect(),
        }
    }
}
