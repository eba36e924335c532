//! Potentials: from edge vectors to energies and their gradients; forces and stress once for all.

pub mod uma;

use crate::neighbors::{NeighborError, NeighborList, neighbor_list};
use crate::system::{Evaluation, System, SystemError};
use rayon::prelude::*;

/// Why a system has no energy.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EvaluationError {
    /// The potential cannot treat this system.
    #[error("{0}")]
    Unsupported(String),
    /// The system itself is wrong.
    #[error(transparent)]
    System(#[from] SystemError),
    /// No neighbour list.
    #[error(transparent)]
    Neighbors(#[from] NeighborError),
    /// NaN or infinity came out.
    #[error("{what} of the system is not finite")]
    NotFinite {
        /// "energy" or "forces" or "stress".
        what: &'static str,
    },
    /// The device that evaluates has failed; this says nothing about the system, and nothing more
    /// can be evaluated until the potential has been made anew.
    #[error("the device has failed: {0}")]
    Device(String),
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

/// An evaluation of one system by a device that found the edges itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluated {
    /// Energy, forces, stress.
    pub evaluation: Evaluation,
    /// Directed edges: what the evaluation has cost.
    pub edges: usize,
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

    /// Evaluations of the systems whose neighbours the device finds itself; `None` for the others.
    /// The systems have passed [`check`](Potential::check). Whatever wraps a potential has to pass
    /// this on: it is the faster way.
    fn evaluations(
        &self,
        systems: &[&System],
        _max_edges: usize,
    ) -> Vec<Option<Result<Evaluated, EvaluationError>>> {
        systems.iter().map(|_| None).collect()
    }

    /// Whether two batches at a time, on two threads, are done sooner than one after the other: on a
    /// device of its own, the host prepares one while the device computes the other.
    fn overlaps(&self) -> bool {
        false
    }
}

/// Energy, forces and (periodic systems) stress of several systems in one pass: neighbour lists,
/// the potential, and the sums over edges. `max_edges` bounds each system.
///
/// With `g = dE/d(vector)` of every edge:
/// `F_a = -(sum of g over edges with source a - sum of g over edges with target a)` and
/// `stress = sum over edges of sym(g x vector) / volume`, the volume being that of the completed
/// cell ([`Cell::volume`](crate::system::Cell::volume)). The sums run in a fixed order: the answer
/// for a system is the same bit for bit on any number of threads and in any batch.
///
/// # Errors
/// One answer per system, in order: what [`System::check`], the potential or the neighbour list
/// refuse, and results that are not finite. One system's error leaves the others alone.
pub fn evaluate(
    potential: &dyn Potential,
    systems: &[&System],
    max_edges: usize,
) -> Vec<Result<Evaluation, EvaluationError>> {
    let mut answers: Vec<Option<Result<Evaluation, EvaluationError>>> = systems
        .par_iter()
        .map(|system| {
            let checked = system.check(usize::MAX).map_err(EvaluationError::from);
            checked
                .and_then(|()| potential.check(system))
                .err()
                .map(Err)
        })
        .collect();
    // First the device by itself, then with edges from here.
    type Evaluations = Vec<Option<Result<Evaluation, EvaluationError>>>;
    type Way<'a> = &'a dyn Fn(&[&System]) -> Evaluations;
    let with_lists = |s: &[&System]| -> Evaluations {
        let evaluations = evaluate_lists(potential, s, max_edges);
        evaluations.into_iter().map(Some).collect()
    };
    let on_device = |s: &[&System]| -> Evaluations {
        let evaluations = potential.evaluations(s, max_edges).into_iter();
        let evaluation = |e: Option<Result<Evaluated, _>>| Some(e?.map(|e| e.evaluation));
        evaluations.map(evaluation).collect()
    };
    let ways: [Way; 2] = [&on_device, &with_lists];
    for way in ways {
        let open: Vec<usize> = (0..systems.len())
            .filter(|&i| answers[i].is_none())
            .collect();
        if open.is_empty() {
            break;
        }
        let group: Vec<&System> = open.iter().map(|&i| systems[i]).collect();
        for (i, answer) in open.into_iter().zip(way(&group)) {
            answers[i] = answer;
        }
    }
    answers
        .into_iter()
        .map(|a| a.expect("every system has an answer once the lists were tried"))
        .collect()
}

/// The same with edges from the CPU, for systems that have passed the checks.
fn evaluate_lists(
    potential: &dyn Potential,
    systems: &[&System],
    max_edges: usize,
) -> Vec<Result<Evaluation, EvaluationError>> {
    let lists: Vec<Result<NeighborList, EvaluationError>> = systems
        .par_iter()
        .map(|system| {
            let (cutoff, neighbors) = (potential.cutoff_angstrom(), potential.max_neighbors());
            let list = neighbor_list(system, cutoff, neighbors, max_edges)?;
            if list.truncated {
                // Once: a simulation would say it in every step.
                static WARNING: std::sync::Once = std::sync::Once::new();
                WARNING.call_once(|| {
                    tracing::warn!(
                        atoms = system.len(),
                        "an atom has more than {neighbors} neighbours within {cutoff} Angstrom; \
                         only the nearest are kept, so the energy is not continuous"
                    );
                });
            }
            Ok(list)
        })
        .collect();
    let batch: Vec<(&System, &NeighborList)> = systems
        .iter()
        .zip(&lists)
        .filter_map(|(&system, list)| Some((system, list.as_ref().ok()?)))
        .collect();
    let answers = match batch.is_empty() {
        true => Vec::new(),
        false => potential.edge_gradients(&batch),
    };
    assert_eq!(
        answers.len(),
        batch.len(),
        "a potential answers once per system"
    );
    let mut evaluations: std::collections::VecDeque<_> = batch
        .par_iter()
        .zip(answers)
        .map(|(&(system, list), answer)| assemble(system, list, &answer?))
        .collect();
    lists
        .into_iter()
        .map(|list| match list {
            Ok(_) => evaluations.pop_front().expect("one answer per list"),
            Err(error) => Err(error),
        })
        .collect()
}

/// Edges summed by one task of a long sum: fixed, so that the result does not depend on threads.
const EDGES_PER_SUM: usize = 16 * 1024;

/// Forces and stress from the edge gradients of one system.
pub(crate) fn assemble(
    system: &System,
    list: &NeighborList,
    answer: &EdgeGradients,
) -> Result<Evaluation, EvaluationError> {
    let gradient = &answer.gradient;
    assert_eq!(
        gradient.len(),
        list.len(),
        "a potential answers with one gradient per edge"
    );
    let forces = forces(system.len(), list, gradient);
    finish(system, answer.energy, forces, || virial(list, gradient))
}

/// An evaluation from its parts: stress for periodic systems, and nothing that is not finite.
fn finish(
    system: &System,
    energy: f64,
    forces: Vec<[f64; 3]>,
    virial: impl FnOnce() -> [[f64; 3]; 3],
) -> Result<Evaluation, EvaluationError> {
    if !energy.is_finite() {
        return Err(EvaluationError::NotFinite { what: "energy" });
    }
    if !forces.iter().flatten().all(|x| x.is_finite()) {
        return Err(EvaluationError::NotFinite { what: "forces" });
    }
    let stress = system.cell.is_periodic().then(|| {
        let volume = system.cell.volume();
        virial().map(|row| row.map(|x| x / volume))
    });
    if !stress.iter().flatten().flatten().all(|x| x.is_finite()) {
        return Err(EvaluationError::NotFinite { what: "stress" });
    }
    Ok(Evaluation {
        energy,
        forces,
        stress,
    })
}

/// `F_a`, eV/Angstrom. The edges with source `a` are the reverses of those with target `a`.
fn forces(atoms: usize, list: &NeighborList, gradient: &[[f64; 3]]) -> Vec<[f64; 3]> {
    let mut forces: Vec<[f64; 3]> = (0..atoms)
        .into_par_iter()
        .with_min_len(256)
        .map(|atom| {
            let mut force = [0.0; 3];
            for edge in list.edges_of(atom) {
                for (f, g) in force.iter_mut().zip(gradient[edge]) {
                    *f += g;
                }
                // The reverse of an edge that the neighbour cap has spared may be gone.
                if !list.truncated {
                    let reverse = gradient[list.reverse[edge] as usize];
                    for (f, g) in force.iter_mut().zip(reverse) {
                        *f -= g;
                    }
                }
            }
            force
        })
        .collect();
    if list.truncated {
        for (&source, g) in list.source.iter().zip(gradient) {
            for (f, g) in forces[source as usize].iter_mut().zip(g) {
                *f -= g;
            }
        }
    }
    forces
}

/// Sum over edges of `sym(g x vector)`, eV.
fn virial(list: &NeighborList, gradient: &[[f64; 3]]) -> [[f64; 3]; 3] {
    let parts: Vec<[[f64; 3]; 3]> = gradient
        .par_chunks(EDGES_PER_SUM)
        .zip(list.vector.par_chunks(EDGES_PER_SUM))
        .map(|(gradients, vectors)| {
            let mut sum = [[0.0; 3]; 3];
            for (g, v) in gradients.iter().zip(vectors) {
                for i in 0..3 {
                    for j in 0..3 {
                        sum[i][j] += g[i] * v[j];
                    }
                }
            }
            sum
        })
        .collect();
    let mut sum = [[0.0; 3]; 3];
    for part in &parts {
        for i in 0..3 {
            for j in 0..3 {
                sum[i][j] += part[i][j];
            }
        }
    }
    std::array::from_fn(|i| std::array::from_fn(|j| 0.5 * (sum[i][j] + sum[j][i])))
}
