//! Constant temperature: Langevin dynamics, the integrator of ASE's `Langevin`
//! (E. Vanden-Eijnden and G. Ciccotti, Chem. Phys. Lett. 429, 310 (2006), equation 23).
//!
//! With g the friction, T' = k_B T and s = sqrt(2 T' g / m):
//!
//! ```text
//! c1 = dt/2 - dt^2 g/8            c3 = sqrt(dt) s/2 - dt^1.5 g s/8
//! c2 = dt g/2 - dt^2 g^2/8        c5 = dt^1.5 s/(2 sqrt 3)          c4 = g/2 c5
//! rp = c5 eta                     rv = c3 xi - c4 eta
//! v += c1 F/m - c2 v + rv;  x += dt v + rp;  F = forces(x);  v += c1 F/m - c2 v + rv
//! ```
//!
//! As ASE with `fixcm`, the mean of rp and the net momentum of rv are taken out and both are
//! scaled by sqrt(N/(N-1)): the kicks do not push the centre of mass, while a momentum that is
//! already there stays and is damped. A lone atom keeps its kicks (ASE divides by zero there).
//! That is not an exact canonical ensemble: the net momentum is taken out in equal shares of momentum,
//! so that light atoms of small molecules are kicked too hard, by about m_mean / (m N) of the
//! variance. It is kept because trajectories shall have the statistics of the ones made with ASE.
//! Without friction this is velocity Verlet to rounding, without temperature damped dynamics.
//!
//! ASE recomputes v from the positions that the atoms really took, for the sake of constraints.
//! There are none here and the two are equal but for rounding, so v is kept as it is.

use rayon::prelude::*;

use super::random::{Purpose, normal_deviates};
use super::{Dynamics, Move, PARALLEL_ATOMS, State};
use crate::system::elements::atomic_mass;
use crate::units::BOLTZMANN_EV_PER_KELVIN;

/// ASE's Langevin integrator with `fixcm`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Langevin {
    /// Time step, ASE time units.
    pub timestep: f64,
    /// Bath temperature, K.
    pub temperature_kelvin: f64,
    /// Friction, 1 / (ASE time unit).
    pub friction: f64,
}

/// Standard normal deviates of one step, `[N][3]` each, in the notation of the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Deviates {
    /// Enters the velocities.
    pub xi: Vec<[f64; 3]>,
    /// Enters the positions and, correlated, the velocities.
    pub eta: Vec<[f64; 3]>,
}

/// Random changes of one step, `[N][3]` each; empty where nothing is random.
struct Kicks {
    positions: Vec<[f64; 3]>,
    velocities: Vec<[f64; 3]>,
}

impl Langevin {
    /// The deviates of one step: a function of the arguments only.
    pub fn deviates(seed: u64, step: u64, atoms: usize) -> Deviates {
        let six = normal_deviates(Purpose::Thermostat, seed, step, atoms);
        Deviates {
            xi: six.iter().map(|d| [d[0], d[1], d[2]]).collect(),
            eta: six.iter().map(|d| [d[3], d[4], d[5]]).collect(),
        }
    }

    /// First half of a step: new positions and half-way velocities.
    ///
    /// `numbers` N, everything else `[N][3]`; `deviates` as returned by [`Langevin::deviates`].
    pub fn first_half(
        &self,
        numbers: &[u8],
        positions: &[[f64; 3]],
        velocities: &[[f64; 3]],
        forces: &[[f64; 3]],
        deviates: &Deviates,
    ) -> (Vec<[f64; 3]>, Vec<[f64; 3]>) {
        let kicks = self.kicks(numbers, deviates);
        let velocities = self.kick(numbers, velocities, forces, &kicks);
        let mut positions = positions.to_vec();
        for (i, (x, v)) in positions.iter_mut().zip(&velocities).enumerate() {
            let random = kicks.positions.get(i).copied().unwrap_or_default();
            for k in 0..3 {
                x[k] = x[k] + self.timestep * v[k] + random[k];
            }
        }
        (positions, velocities)
    }

    /// Second half of a step: the final velocities, from the forces at the new positions and the
    /// same deviates as in the first half.
    pub fn second_half(
        &self,
        numbers: &[u8],
        velocities: &[[f64; 3]],
        forces: &[[f64; 3]],
        deviates: &Deviates,
    ) -> Vec<[f64; 3]> {
        self.kick(numbers, velocities, forces, &self.kicks(numbers, deviates))
    }

    /// c1 F/m - c2 v + rv, added to the velocities.
    fn kick(
        &self,
        numbers: &[u8],
        velocities: &[[f64; 3]],
        forces: &[[f64; 3]],
        kicks: &Kicks,
    ) -> Vec<[f64; 3]> {
        let (dt, g) = (self.timestep, self.friction);
        let c1 = dt / 2.0 - dt * dt * g / 8.0;
        let c2 = dt * g / 2.0 - dt * dt * g * g / 8.0;
        let one = |i: usize| {
            let random = kicks.velocities.get(i).copied().unwrap_or_default();
            let mass = atomic_mass(numbers[i]);
            let (v, f) = (velocities[i], forces[i]);
            std::array::from_fn(|k| v[k] + (c1 * f[k] / mass - c2 * v[k] + random[k]))
        };
        if numbers.len() < PARALLEL_ATOMS {
            (0..numbers.len()).map(one).collect()
        } else {
            (0..numbers.len()).into_par_iter().map(one).collect()
        }
    }

    /// rp and rv of the module's formulas, without a net push.
    fn kicks(&self, numbers: &[u8], deviates: &Deviates) -> Kicks {
        let atoms = numbers.len();
        if deviates.xi.is_empty() {
            return Kicks {
                positions: Vec::new(),
                velocities: Vec::new(),
            };
        }
        let (dt, g) = (self.timestep, self.friction);
        let root_dt = dt.sqrt();
        let mut positions = Vec::with_capacity(atoms);
        let mut velocities = Vec::with_capacity(atoms);
        for ((&z, xi), eta) in numbers.iter().zip(&deviates.xi).zip(&deviates.eta) {
            let s = (2.0 * BOLTZMANN_EV_PER_KELVIN * self.temperature_kelvin * g / atomic_mass(z))
                .sqrt();
            let c3 = root_dt * s / 2.0 - dt * root_dt * g * s / 8.0;
            let c5 = dt * root_dt * s / (2.0 * 3.0f64.sqrt());
            let c4 = g / 2.0 * c5;
            positions.push(eta.map(|e| c5 * e));
            velocities.push(std::array::from_fn(|k| c3 * xi[k] - c4 * eta[k]));
        }
        if atoms > 1 {
            remove_net_push(numbers, &mut positions, &mut velocities);
        }
        Kicks {
            positions,
            velocities,
        }
    }

    /// The deviates of the step that `state` is in, none where they would be multiplied by zero.
    fn deviates_of(&self, state: &State) -> Deviates {
        if self.friction == 0.0 || self.temperature_kelvin == 0.0 {
            return Deviates::default();
        }
        Self::deviates(state.seed, state.step, state.system.len())
    }
}

/// Takes out the mean of the random displacements and the net momentum of the random velocities
/// (in equal parts of momentum per atom, as ASE) and restores the variance. Sums run in the order
/// of the atoms, so that their bits do not depend on threads.
fn remove_net_push(numbers: &[u8], positions: &mut [[f64; 3]], velocities: &mut [[f64; 3]]) {
    let n = numbers.len() as f64;
    let mut displacement = [0.0; 3];
    let mut momentum = [0.0; 3];
    for ((&z, x), v) in numbers.iter().zip(&*positions).zip(&*velocities) {
        let mass = atomic_mass(z);
        for k in 0..3 {
            displacement[k] += x[k];
            momentum[k] += v[k] * mass;
        }
    }
    let factor = (n / (n - 1.0)).sqrt();
    for ((&z, x), v) in numbers.iter().zip(positions).zip(velocities) {
        let share = atomic_mass(z) * n;
        for k in 0..3 {
            x[k] = (x[k] - displacement[k] / n) * factor;
            v[k] = (v[k] - momentum[k] / share) * factor;
        }
    }
}

impl Dynamics for Langevin {
    fn propose(&self, state: &State, forces: &[[f64; 3]]) -> Move {
        let (positions, velocities) = self.first_half(
            &state.system.numbers,
            &state.system.positions,
            &state.velocities,
            forces,
            &self.deviates_of(state),
        );
        Move {
            positions,
            velocities: Some(velocities),
            history: None,
        }
    }

    fn finish(&self, state: &State, forces: &[[f64; 3]]) -> Option<Vec<[f64; 3]>> {
        // The deviates are drawn again rather than carried: the state that travels between the
        // two halves stays small, and the same counter gives the same numbers.
        Some(self.second_half(
            &state.system.numbers,
            &state.velocities,
            forces,
            &self.deviates_of(state),
        ))
    }
}
