//! Moving atoms: molecular dynamics and relaxation, one step at a time.
//!
//! A step is [`begin_step`] (move the atoms with the forces at hand), one evaluation at the new
//! positions by whoever has a potential, and [`end_step`] (finish the velocities). The forces of
//! that evaluation are kept for the next step, so a step costs one evaluation. Everything that a
//! later step needs is in [`State`], so a state can travel between ranks or lie in a checkpoint:
//! the same state gives the same bits on any number of ranks and threads.

mod bfgs;
mod fire;
mod langevin;
mod lbfgs;
mod method;
mod random;
mod thermo;
mod velocity_verlet;

pub use bfgs::{BFGS_MAX_ATOMS, Bfgs};
pub use fire::Fire;
pub use langevin::{Deviates, Langevin};
pub use lbfgs::{Lbfgs, lbfgs_memory};
pub use method::{
    InvalidMethod, MAX_OPTIMISER_STEP_ANGSTROM, MAX_TEMPERATURE_KELVIN, MAX_TIMESTEP_FRICTION,
    MAX_TIMESTEP_FS, Method,
};
pub use random::{Purpose, normal_deviates};
pub use thermo::{
    all_degrees_of_freedom, kinetic_energy, maxwell_boltzmann, momentum, stop_centre_of_mass,
    temperature,
};
pub use velocity_verlet::VelocityVerlet;

use crate::system::elements::atomic_mass;
use crate::system::{Evaluation, System};

/// Farthest that an atom may move in one step, Angstrom.
pub const MAX_DISPLACEMENT_ANGSTROM: f64 = 5.0;

/// From this many atoms on a step is shared among threads; below, waking them costs more than
/// the arithmetic. The bits do not depend on it.
const PARALLEL_ATOMS: usize = 1000;

/// Memory of an optimiser.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum History {
    /// Nothing yet, or a method without memory.
    #[default]
    None,
    /// BFGS: Hessian (row-major, 3N x 3N), and the positions and forces of the last step.
    Bfgs {
        /// Hessian, eV/Angstrom^2.
        hessian: Vec<f64>,
        /// Positions before the last step, Angstrom.
        positions: Vec<[f64; 3]>,
        /// Forces before the last step, eV/Angstrom.
        forces: Vec<[f64; 3]>,
    },
    /// L-BFGS: position and gradient differences, oldest first.
    Lbfgs {
        /// Position differences, Angstrom, one vector of 3N per remembered step.
        steps: Vec<Vec<f64>>,
        /// Gradient differences, eV/Angstrom.
        changes: Vec<Vec<f64>>,
        /// Positions before the last step, Angstrom.
        positions: Vec<[f64; 3]>,
        /// Forces before the last step, eV/Angstrom.
        forces: Vec<[f64; 3]>,
    },
    /// FIRE: velocities and its adaptive parameters.
    Fire {
        /// Fictitious velocities.
        velocities: Vec<[f64; 3]>,
        /// Adaptive time step.
        dt: f64,
        /// Mixing parameter.
        alpha: f64,
        /// Steps since the power was last negative.
        steps_uphill_free: u32,
    },
}

/// Everything that the next step needs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Atoms and cell.
    pub system: System,
    /// Velocities, Angstrom / (ASE time unit).
    pub velocities: Vec<[f64; 3]>,
    /// Energy and forces at `system.positions`, if known.
    pub evaluation: Option<Evaluation>,
    /// Memory of the optimiser.
    pub history: History,
    /// Steps done with this seed: the counter of the random numbers.
    pub step: u64,
    /// Seed of the random numbers.
    pub seed: u64,
}

/// Why a step could not be made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum StepError {
    /// A parameter of the method is outside its bounds.
    #[error(transparent)]
    Method(#[from] InvalidMethod),
    /// `begin_step` without an evaluation at the current positions.
    #[error("a step cannot begin without the forces at the current positions")]
    NoForces,
    /// `end_step` without `begin_step`.
    #[error("a step cannot end before it has begun")]
    NotBegun,
    /// An array has the wrong length.
    #[error("{found} {what} for {atoms} atoms")]
    Count {
        /// What the array holds.
        what: &'static str,
        /// Its length.
        found: usize,
        /// Number of atoms.
        atoms: usize,
    },
    /// A number is infinite or not a number.
    #[error("{what} not finite")]
    NotFinite {
        /// What the number is.
        what: &'static str,
    },
    /// There is no such element, so no mass.
    #[error("atom {atom} has atomic number {number}, which no element has")]
    Element {
        /// Index of the atom, from 0.
        atom: usize,
        /// What was given.
        number: u8,
    },
    /// An atom would move too far in one step.
    #[error("MD instability detected (max step disp {} A)", two_decimals(*.displacement))]
    Unstable {
        /// The longest displacement, Angstrom.
        displacement: f64,
    },
}

/// Two decimals, and "nan" and "inf" in lower case as other programs in the field write them.
fn two_decimals(x: f64) -> String {
    format!("{x:.2}").to_lowercase()
}

/// What the first part of a step changes.
#[derive(Clone, Debug, PartialEq)]
pub struct Move {
    /// New positions, Angstrom, `[N][3]`.
    pub positions: Vec<[f64; 3]>,
    /// New velocities, Angstrom / (ASE time unit), `[N][3]`; none where they stay as they are.
    pub velocities: Option<Vec<[f64; 3]>>,
    /// New memory; none where it stays as it is.
    pub history: Option<History>,
}

/// A way of moving atoms.
///
/// A method writes [`Dynamics::propose`] and, where velocities need the new forces,
/// [`Dynamics::finish`]; both may rely on arrays of equal length and finite numbers. The steps
/// themselves, [`Dynamics::begin_step`] and [`Dynamics::end_step`], check what goes in and out.
pub trait Dynamics {
    /// Where the atoms go from here, given the forces at `state.system.positions`.
    fn propose(&self, state: &State, forces: &[[f64; 3]]) -> Move;

    /// The velocities at the end of the step, given the forces at the new positions; none where
    /// they stay as they are.
    fn finish(&self, state: &State, forces: &[[f64; 3]]) -> Option<Vec<[f64; 3]>> {
        let _ = (state, forces);
        None
    }

    /// First part of a step: moves the atoms and takes `state.evaluation`, which no longer holds.
    ///
    /// # Errors
    /// Missing or non-finite forces or velocities, arrays of different lengths, unknown elements,
    /// an atom that would move more than [`MAX_DISPLACEMENT_ANGSTROM`]. The state is then as it
    /// was.
    fn begin_step(&self, state: &mut State) -> Result<(), StepError> {
        let evaluation = state.evaluation.as_ref().ok_or(StepError::NoForces)?;
        check_state(state)?;
        check_evaluation(evaluation, state.system.len())?;
        let proposal = self.propose(state, &evaluation.forces);
        check_displacement(&state.system.positions, &proposal.positions)?;
        if let Some(velocities) = &proposal.velocities {
            check_finite("velocities are", velocities)?;
        }
        state.system.positions = proposal.positions;
        if let Some(velocities) = proposal.velocities {
            state.velocities = velocities;
        }
        if let Some(history) = proposal.history {
            state.history = history;
        }
        state.evaluation = None;
        Ok(())
    }

    /// Second part of a step: finishes the velocities with the evaluation at the new positions,
    /// keeps it for the next step and counts the step.
    ///
    /// # Errors
    /// A step that has not begun, an evaluation that is not finite or of another number of atoms.
    /// The atoms have then moved already: whoever wants to go on from the last good state keeps
    /// a clone from before [`Dynamics::begin_step`].
    fn end_step(&self, state: &mut State, evaluation: Evaluation) -> Result<(), StepError> {
        if state.evaluation.is_some() {
            return Err(StepError::NotBegun);
        }
        check_state(state)?;
        check_evaluation(&evaluation, state.system.len())?;
        if let Some(velocities) = self.finish(state, &evaluation.forces) {
            check_finite("velocities are", &velocities)?;
            state.velocities = velocities;
        }
        state.evaluation = Some(evaluation);
        state.step = state.step.wrapping_add(1);
        Ok(())
    }
}

/// [`Dynamics::begin_step`] of `method`.
///
/// # Errors
/// Those of [`Method::check`] and of [`Dynamics::begin_step`]; the state is then as it was.
pub fn begin_step(method: &Method, state: &mut State) -> Result<(), StepError> {
    method.dynamics()?.begin_step(state)
}

/// [`Dynamics::end_step`] of `method`, which must be the one that began the step.
///
/// # Errors
/// Those of [`Method::check`] and of [`Dynamics::end_step`].
pub fn end_step(
    method: &Method,
    state: &mut State,
    evaluation: Evaluation,
) -> Result<(), StepError> {
    method.dynamics()?.end_step(state, evaluation)
}

/// Arrays of equal length, finite velocities, elements that exist.
fn check_state(state: &State) -> Result<(), StepError> {
    let atoms = state.system.len();
    for (what, found) in [
        ("positions", state.system.positions.len()),
        ("velocities", state.velocities.len()),
    ] {
        if found != atoms {
            return Err(StepError::Count { what, found, atoms });
        }
    }
    let mut numbers = state.system.numbers.iter().enumerate();
    if let Some((atom, &number)) = numbers.find(|&(_, &z)| !atomic_mass(z).is_finite()) {
        return Err(StepError::Element { atom, number });
    }
    check_finite("velocities are", &state.velocities)
}

/// Forces for every atom, and nothing that is not finite.
fn check_evaluation(evaluation: &Evaluation, atoms: usize) -> Result<(), StepError> {
    let found = evaluation.forces.len();
    if found != atoms {
        let what = "forces";
        return Err(StepError::Count { what, found, atoms });
    }
    if !evaluation.energy.is_finite() {
        return Err(StepError::NotFinite { what: "energy is" });
    }
    check_finite("forces are", &evaluation.forces)?;
    check_finite(
        "stress is",
        evaluation.stress.as_ref().map_or(&[], |s| &s[..]),
    )
}

fn check_finite(what: &'static str, rows: &[[f64; 3]]) -> Result<(), StepError> {
    if rows.as_flattened().iter().all(|x| x.is_finite()) {
        Ok(())
    } else {
        Err(StepError::NotFinite { what })
    }
}

/// No atom moves farther than [`MAX_DISPLACEMENT_ANGSTROM`], or to somewhere that is not finite.
fn check_displacement(from: &[[f64; 3]], to: &[[f64; 3]]) -> Result<(), StepError> {
    let mut longest = 0.0f64;
    for (a, b) in from.iter().zip(to) {
        let d = [b[0] - a[0], b[1] - a[1], b[2] - a[2]];
        let length = norm(&d);
        if !length.is_finite() {
            return Err(StepError::Unstable {
                displacement: length,
            });
        }
        longest = longest.max(length);
    }
    // A little above: an optimiser that may go exactly as far must not fail by rounding.
    if longest > MAX_DISPLACEMENT_ANGSTROM * (1.0 + 1e-9) {
        return Err(StepError::Unstable {
            displacement: longest,
        });
    }
    Ok(())
}

fn norm(d: &[f64; 3]) -> f64 {
    (d[0] * d[0] + d[1] * d[1] + d[2] * d[2]).sqrt()
}

/// Positions plus a step of 3N numbers.
fn displaced(positions: &[[f64; 3]], step: &[f64]) -> Vec<[f64; 3]> {
    let (step, _) = step.as_chunks::<3>();
    let pairs = positions.iter().zip(step);
    pairs
        .map(|(x, d)| [x[0] + d[0], x[1] + d[1], x[2] + d[2]])
        .collect()
}

/// Shortens a step of 3N numbers as a whole, so that no atom moves farther than `max_step`, as
/// ASE's optimisers do.
fn limit_longest(step: &mut [f64], max_step: f64) {
    let longest = step.as_chunks::<3>().0.iter().map(norm).fold(0.0, f64::max);
    if longest >= max_step && longest > 0.0 {
        let scale = max_step / longest;
        for x in step {
            *x *= scale;
        }
    }
}
