//! Kinetic energy, temperature, and velocities drawn from the Maxwell-Boltzmann distribution.

use super::random::{Purpose, normal_deviates};
use crate::system::elements::atomic_mass;
use crate::units::BOLTZMANN_EV_PER_KELVIN;

/// Kinetic energy sum(m v^2) / 2, eV. Velocities in Angstrom / (ASE time unit), `[N][3]`.
pub fn kinetic_energy(numbers: &[u8], velocities: &[[f64; 3]]) -> f64 {
    numbers
        .iter()
        .zip(velocities)
        .map(|(&z, v)| 0.5 * atomic_mass(z) * (v[0] * v[0] + v[1] * v[1] + v[2] * v[2]))
        .sum()
}

/// Temperature 2 K / (f k_B) of `degrees_of_freedom` f, kelvin; 0 where nothing can move.
///
/// Frames report f = 3N (see [`all_degrees_of_freedom`]), as ASE does without constraints; a
/// molecule at rest as a whole has 3N - 3.
pub fn temperature(kinetic_energy: f64, degrees_of_freedom: usize) -> f64 {
    match degrees_of_freedom {
        0 => 0.0,
        f => 2.0 * kinetic_energy / (f as f64 * BOLTZMANN_EV_PER_KELVIN),
    }
}

/// 3N: three directions for every atom, the centre of mass included.
pub fn all_degrees_of_freedom(atoms: usize) -> usize {
    3 * atoms
}

/// Total momentum sum(m v), dalton Angstrom / (ASE time unit).
pub fn momentum(numbers: &[u8], velocities: &[[f64; 3]]) -> [f64; 3] {
    let mut total = [0.0; 3];
    for (&z, v) in numbers.iter().zip(velocities) {
        let mass = atomic_mass(z);
        for k in 0..3 {
            total[k] += mass * v[k];
        }
    }
    total
}

/// Velocities from the Maxwell-Boltzmann distribution: sqrt(k_B T / m) times a normal deviate,
/// Angstrom / (ASE time unit), `[N][3]`.
///
/// The centre of mass moves like everything else; see [`stop_centre_of_mass`]. `seed` and `step`
/// fix the numbers, which are never those of a thermostat. A temperature that is not above zero
/// gives rest.
pub fn maxwell_boltzmann(
    numbers: &[u8],
    temperature_kelvin: f64,
    seed: u64,
    step: u64,
) -> Vec<[f64; 3]> {
    let energy = BOLTZMANN_EV_PER_KELVIN * temperature_kelvin.max(0.0);
    normal_deviates(Purpose::Velocities, seed, step, numbers.len())
        .iter()
        .zip(numbers)
        .map(|(deviate, &z)| {
            let width = (energy / atomic_mass(z)).sqrt();
            [width * deviate[0], width * deviate[1], width * deviate[2]]
        })
        .collect()
}

/// Takes the velocity of the centre of mass from every atom, so that the total momentum is zero.
pub fn stop_centre_of_mass(numbers: &[u8], velocities: &mut [[f64; 3]]) {
    let mass: f64 = numbers.iter().map(|&z| atomic_mass(z)).sum();
    if numbers.is_empty() {
        return;
    }
    let drift = momentum(numbers, velocities).map(|p| p / mass);
    for v in velocities {
        for k in 0..3 {
            v[k] -= drift[k];
        }
    }
}
