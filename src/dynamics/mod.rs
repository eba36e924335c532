//! Moving atoms: molecular dynamics and relaxation, one step at a time.
//!
//! A step is `begin_step` (move the atoms with the forces at hand), one evaluation at the new
//! positions by whoever has a potential, and `end_step` (finish the velocities). Everything that
//! a later step needs is in [`State`], so a state can travel between ranks or lie in a checkpoint.

use crate::system::{Evaluation, System};

/// How the atoms move.
#[derive(Clone, Debug, PartialEq)]
pub enum Method {
    /// Constant energy: velocity Verlet.
    VelocityVerlet {
        /// Time step, fs.
        timestep_fs: f64,
    },
    /// Constant temperature: Langevin dynamics as in ASE.
    Langevin {
        /// Time step, fs.
        timestep_fs: f64,
        /// Bath temperature, K.
        temperature_kelvin: f64,
        /// Friction, 1 / (ASE time unit).
        friction: f64,
    },
    /// Relaxation by BFGS with ASE's behaviour.
    Bfgs {
        /// Longest move of an atom in one step, Angstrom.
        max_step_angstrom: f64,
    },
    /// Relaxation by limited-memory BFGS.
    Lbfgs {
        /// Longest move of an atom in one step, Angstrom.
        max_step_angstrom: f64,
    },
    /// Relaxation by the fast inertial relaxation engine.
    Fire {
        /// Longest move of an atom in one step, Angstrom.
        max_step_angstrom: f64,
    },
}

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
