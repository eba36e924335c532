//! Constant energy: velocity Verlet (Swope et al., J. Chem. Phys. 76, 637 (1982)).

use super::{Dynamics, Move, State};
use crate::system::elements::atomic_mass;

/// v += dt F / 2m; x += dt v; new forces; v += dt F / 2m.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VelocityVerlet {
    /// Time step, ASE time units.
    pub timestep: f64,
}

impl Dynamics for VelocityVerlet {
    fn propose(&self, state: &State, forces: &[[f64; 3]]) -> Move {
        let mut velocities = state.velocities.clone();
        self.kick(&state.system.numbers, &mut velocities, forces);
        let mut positions = state.system.positions.clone();
        for (x, v) in positions.iter_mut().zip(&velocities) {
            for k in 0..3 {
                x[k] += self.timestep * v[k];
            }
        }
        Move {
            positions,
            velocities: Some(velocities),
            history: None,
        }
    }

    fn finish(&self, state: &State, forces: &[[f64; 3]]) -> Option<Vec<[f64; 3]>> {
        let mut velocities = state.velocities.clone();
        self.kick(&state.system.numbers, &mut velocities, forces);
        Some(velocities)
    }
}

impl VelocityVerlet {
    /// Half a step of the velocities.
    fn kick(&self, numbers: &[u8], velocities: &mut [[f64; 3]], forces: &[[f64; 3]]) {
        for ((&z, v), f) in numbers.iter().zip(velocities).zip(forces) {
            let factor = 0.5 * self.timestep / atomic_mass(z);
            for k in 0..3 {
                v[k] += factor * f[k];
            }
        }
    }
}
