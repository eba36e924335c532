//! Potentials: from edge vectors to energies and their gradients; forces and stress once for all.

pub mod uma;

use crate::neighbors::{NeighborError, NeighborList};
use crate::system::{Evaluation, System};

/// Why a system has no energy.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EvaluationError {
    /// The potential cannot treat this system.
    #[error("{0}")]
    Unsupported(String),
    /// No neighbour list.
    #[error(transparent)]
    Neighbors(#[from] NeighborError),
    /// NaN or infinity came out.
    #[error("{what} of the system is not finite")]
    NotFinite {
        /// "energy" or "forces" or "stress".
        what: &'static str,
    },
    /// Would not fit in memory.
    #[error(
        "{atoms} atoms with {edges} edges need {needed_mib} MiB, more than the limit of {limit_mib} MiB"
    )]
    OutOfMemory {
        /// Atoms of the system.
        atoms: usize,
        /// Directed edges.
        edges: usize,
        /// Memory needed, MiB.
        needed_mib: usize,
        /// Memory allowed, MiB.
        limit_mib: usize,
    },
}

/// Energy of one system and its gradient with respect to every edge vector.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EdgeGradients {
    /// Potential energy, eV.
    pub energy: f64,
    /// dE/d(vector) of every edge of the neighbour list, eV/Angstrom.
    pub gradient: Vec<[f64; 3]>,
}

/// A potential energy surface made of edge vectors.
pub trait Potential: Send + Sync {
    /// Pairs further apart do not interact, Angstrom.
    fn cutoff_angstrom(&self) -> f64;

    /// Neighbours kept per atom.
    fn max_neighbors(&self) -> usize;

    /// Whether this potential can treat the system at all (elements, task, charge, spin).
    fn check(&self, system: &System) -> Result<(), EvaluationError>;

    /// Energies and edge gradients of several systems in one pass. One answer per system, in
    /// order; the answer for a system does not depend on the others, bit for bit.
    fn edge_gradients(
        &self,
        batch: &[(&System, &NeighborList)],
    ) -> Vec<Result<EdgeGradients, EvaluationError>>;
}

/// Energy, forces and (periodic systems) stress of several systems in one pass: neighbour lists,
/// the potential, and the sums over edges. `max_edges` bounds each system.
pub fn evaluate(
    _potential: &dyn Potential,
    _systems: &[&System],
    _max_edges: usize,
) -> Vec<Result<Evaluation, EvaluationError>> {
    unimplemented!()
}
