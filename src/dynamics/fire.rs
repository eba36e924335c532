//! Relaxation by the fast inertial relaxation engine: the path of `ase.optimize.FIRE`
//! (E. Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006)).

use super::{Dynamics, History, Move, State, displaced};

/// First time step (unit mass, so Angstrom / sqrt(eV)).
const FIRST_TIMESTEP: f64 = 0.1;
/// Longest time step.
const LONGEST_TIMESTEP: f64 = 1.0;
/// Downhill steps before the time step grows.
const PATIENCE: u32 = 5;
/// Growth of the time step.
const GROWTH: f64 = 1.1;
/// Shrinking of the time step on going uphill.
const SHRINKING: f64 = 0.5;
/// First mixing of the velocity towards the force.
const FIRST_MIXING: f64 = 0.1;
/// Decay of the mixing.
const MIXING_DECAY: f64 = 0.99;

/// FIRE with ASE's parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fire {
    /// Longest move in one step, Angstrom: as in ASE of all atoms together (the norm of 3N
    /// numbers), so that no atom moves farther either.
    pub max_step: f64,
}

impl Dynamics for Fire {
    fn propose(&self, state: &State, forces: &[[f64; 3]]) -> Move {
        let force = forces.as_flattened();
        let (mut velocities, dt, alpha, downhill) = match &state.history {
            History::Fire {
                velocities,
                dt,
                alpha,
                steps_uphill_free,
            } if velocities.len() == forces.len() => {
                let mut velocities = velocities.clone();
                let (mut dt, mut alpha, mut downhill) = (*dt, *alpha, *steps_uphill_free);
                let v = velocities.as_flattened_mut();
                let force_norm = dot(force, force).sqrt();
                if dot(force, v) > 0.0 && force_norm > 0.0 {
                    let turn = alpha * dot(v, v).sqrt() / force_norm;
                    for (v, f) in v.iter_mut().zip(force) {
                        *v = (1.0 - alpha) * *v + turn * f;
                    }
                    if downhill > PATIENCE {
                        dt = (dt * GROWTH).min(LONGEST_TIMESTEP);
                        alpha *= MIXING_DECAY;
                    }
                    downhill = downhill.saturating_add(1);
                } else {
                    v.fill(0.0);
                    alpha = FIRST_MIXING;
                    dt *= SHRINKING;
                    downhill = 0;
                }
                (velocities, dt, alpha, downhill)
            }
            _ => (
                vec![[0.0; 3]; forces.len()],
                FIRST_TIMESTEP,
                FIRST_MIXING,
                0,
            ),
        };
        for (v, f) in velocities.as_flattened_mut().iter_mut().zip(force) {
            *v += dt * f;
        }
        let mut step: Vec<f64> = velocities.as_flattened().iter().map(|v| dt * v).collect();
        let length = dot(&step, &step).sqrt();
        if length > self.max_step {
            for x in &mut step {
                *x = self.max_step * *x / length;
            }
        }
        Move {
            positions: displaced(&state.system.positions, &step),
            velocities: None,
            history: Some(History::Fire {
                velocities,
                dt,
                alpha,
                steps_uphill_free: downhill,
            }),
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}
