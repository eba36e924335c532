//! Devices that interpret a [`Program`](crate::nn::Program).

pub mod cpu;
pub mod cuda;
pub mod programs;

use crate::neighbors::{NeighborError, NeighborList};
use crate::system::System;
use std::borrow::Cow;
use std::sync::Arc;

/// The numbers of a weight as the checkpoint holds them.
#[derive(Clone, Debug, PartialEq)]
pub enum WeightData<'a> {
    /// Single precision (all official checkpoints).
    F32(Cow<'a, [f32]>),
    /// Double precision.
    F64(Cow<'a, [f64]>),
}

/// Where a backend finds the weights of a program. Mixed and per-task weights come with their
/// leading index.
pub trait WeightSource: Send + Sync {
    /// The numbers of the weight of that name, row-major.
    fn weight(&self, name: &str) -> WeightData<'_>;
}

/// What the network knows about a system beyond its atoms and edges. The same for all structures
/// of one composition, charge, spin and task, so that mixed weights can be cached under `key`.
#[derive(Clone, Debug, PartialEq)]
pub struct Conditioning {
    /// Names composition, charge, spin and task.
    pub key: String,
    /// Added to degree 0 of every atom: embedding of charge, spin and task. `[C]`
    pub vector: Vec<f64>,
    /// Coefficient of each expert; empty for a model without experts.
    pub experts: Vec<f64>,
    /// Which of the per-task weights to use.
    pub task_index: usize,
    /// Total charge.
    pub charge: f64,
    /// Spin multiplicity - 1.
    pub unpaired_electrons: f64,
}

/// One system as the network sees it.
#[derive(Clone, Debug)]
pub struct Structure<'a> {
    /// Atomic numbers.
    pub numbers: &'a [u8],
    /// Edges.
    pub neighbors: &'a NeighborList,
    /// Conditioning.
    pub conditioning: Arc<Conditioning>,
}

/// What the network answers for one system, in units of the normaliser.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NetworkOutput {
    /// Sum of the atomic energies, accumulated in f64.
    pub energy: f64,
    /// dE/d(edge vector), 1/Angstrom.
    pub gradient: Vec<[f64; 3]>,
}

/// A system for a backend that finds its edges itself.
#[derive(Clone, Debug)]
pub struct PositionedSystem<'a> {
    /// Positions, cell, atomic numbers.
    pub system: &'a System,
    /// Conditioning.
    pub conditioning: Arc<Conditioning>,
    /// Neighbours kept per atom: where an atom has more, the edges must come from the host.
    pub max_neighbors: usize,
    /// Most edges of the system.
    pub max_edges: usize,
}

/// What a backend that finds the edges itself answers for one system, in units of the normaliser.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NetworkForces {
    /// Sum of the atomic energies, accumulated in f64.
    pub energy: f64,
    /// -dE/d(position), 1/Angstrom.
    pub forces: Vec<[f64; 3]>,
    /// Sum over edges of dE/d(vector) x vector, symmetric.
    pub virial: [[f64; 3]; 3],
    /// Directed edges that were found.
    pub edges: usize,
}

/// A device failed: nothing is wrong with the structures. In words, with the device's own name of
/// the error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DeviceError(pub String);

/// A device that evaluates batches.
pub trait Backend: Send + Sync {
    /// Energies and gradients. The answer for one structure does not depend on the others, on the
    /// number of threads, or on earlier calls, bit for bit.
    ///
    /// # Errors
    /// When the device fails. The next call tries again, on a fresh context if need be.
    fn run(&self, batch: &[Structure]) -> Result<Vec<NetworkOutput>, DeviceError>;

    /// The same from positions, for the systems whose edges this backend finds itself; `None` for
    /// the others, which are then run with edges from the host.
    ///
    /// # Errors
    /// Those of [`run`](Backend::run); for single systems what the search refuses.
    fn run_positions(
        &self,
        batch: &[PositionedSystem],
    ) -> Result<Vec<Option<Result<NetworkForces, NeighborError>>>, DeviceError> {
        Ok(vec![None; batch.len()])
    }

    /// Working memory for structures with this many atoms and edges in all, bytes.
    fn memory(&self, atoms: usize, edges: usize) -> usize;

    /// Memory for the mixed weights of one conditioning, bytes, at most. A pass holds those of all
    /// its structures.
    fn conditioning_memory(&self) -> usize;

    /// "cpu" or "cuda".
    fn device(&self) -> &'static str;
}
