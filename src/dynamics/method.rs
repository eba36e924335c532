//! Which method moves the atoms, and the bounds of its parameters.

use super::{Bfgs, Dynamics, Fire, Langevin, Lbfgs, VelocityVerlet};
use crate::units::FEMTOSECOND;

/// Longest time step, fs. No bond survives a tenth of it; the bound is against slips of unit.
pub const MAX_TIMESTEP_FS: f64 = 100.0;
/// Hottest bath, K.
pub const MAX_TEMPERATURE_KELVIN: f64 = 1e5;
/// Largest product of time step and friction. The integrator is an expansion in it and damps
/// best at 2; beyond, more friction would damp less.
pub const MAX_TIMESTEP_FRICTION: f64 = 2.0;
/// Longest move that an optimiser may be allowed, Angstrom.
pub const MAX_OPTIMISER_STEP_ANGSTROM: f64 = 5.0;

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

/// A parameter outside its bounds.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{parameter} is {value}, but must be {bounds}")]
pub struct InvalidMethod {
    /// What it is, with its unit.
    pub parameter: &'static str,
    /// What was given.
    pub value: f64,
    /// What is allowed.
    pub bounds: String,
}

impl Method {
    /// Whether this is molecular dynamics, where velocities mean something; the others relax.
    pub fn is_molecular_dynamics(&self) -> bool {
        matches!(
            self,
            Method::VelocityVerlet { .. } | Method::Langevin { .. }
        )
    }

    /// Checks every parameter against its bounds.
    ///
    /// # Errors
    /// The first parameter that is not finite or outside its bounds, with value and limit.
    pub fn check(&self) -> Result<(), InvalidMethod> {
        match *self {
            Method::VelocityVerlet { timestep_fs } => check_timestep(timestep_fs),
            Method::Langevin {
                timestep_fs,
                temperature_kelvin,
                friction,
            } => {
                check_timestep(timestep_fs)?;
                check_range(
                    "temperature (K)",
                    temperature_kelvin,
                    MAX_TEMPERATURE_KELVIN,
                )?;
                check_range("friction (1/ASE time unit)", friction, f64::MAX)?;
                check_range(
                    "time step times friction",
                    timestep_fs * FEMTOSECOND * friction,
                    MAX_TIMESTEP_FRICTION,
                )
            }
            Method::Bfgs { max_step_angstrom }
            | Method::Lbfgs { max_step_angstrom }
            | Method::Fire { max_step_angstrom } => check_range(
                "max_step (Angstrom)",
                max_step_angstrom,
                MAX_OPTIMISER_STEP_ANGSTROM,
            ),
        }
    }

    /// The dynamics of this method.
    ///
    /// # Errors
    /// Those of [`Method::check`].
    pub fn dynamics(&self) -> Result<Box<dyn Dynamics>, InvalidMethod> {
        self.check()?;
        Ok(match *self {
            Method::VelocityVerlet { timestep_fs } => Box::new(VelocityVerlet {
                timestep: timestep_fs * FEMTOSECOND,
            }),
            Method::Langevin {
                timestep_fs,
                temperature_kelvin,
                friction,
            } => Box::new(Langevin {
                timestep: timestep_fs * FEMTOSECOND,
                temperature_kelvin,
                friction,
            }),
            Method::Bfgs { max_step_angstrom } => Box::new(Bfgs {
                max_step: max_step_angstrom,
            }),
            Method::Lbfgs { max_step_angstrom } => Box::new(Lbfgs {
                max_step: max_step_angstrom,
            }),
            Method::Fire { max_step_angstrom } => Box::new(Fire {
                max_step: max_step_angstrom,
            }),
        })
    }
}

fn check_timestep(timestep_fs: f64) -> Result<(), InvalidMethod> {
    if timestep_fs > 0.0 && timestep_fs <= MAX_TIMESTEP_FS {
        return Ok(());
    }
    Err(InvalidMethod {
        parameter: "time step (fs)",
        value: timestep_fs,
        bounds: format!("above 0 and at most {MAX_TIMESTEP_FS}"),
    })
}

/// From 0 to `limit`, both included.
fn check_range(parameter: &'static str, value: f64, limit: f64) -> Result<(), InvalidMethod> {
    if (0.0..=limit).contains(&value) {
        return Ok(());
    }
    let bounds = match limit {
        f64::MAX => "finite and at least 0".to_owned(),
        limit => format!("at least 0 and at most {limit}"),
    };
    Err(InvalidMethod {
        parameter,
        value,
        bounds,
    })
}
