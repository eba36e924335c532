//! What several integration tests share: a reference potential and the properties that every
//! potential must have.

#![allow(dead_code)] // Each test binary uses its own part.

pub mod conformance;
#[cfg(feature = "host-kernels")]
pub mod device;
pub mod goldens;
pub mod jobs;
pub mod link;
pub mod viewer;

use umaserve::neighbors::NeighborList;
use umaserve::potential::{EdgeGradients, EvaluationError, Potential};
use umaserve::system::System;

/// Lennard-Jones with a smooth cutoff: `E = sum over directed edges of 1/2 phi(d) s(d / rc)`,
/// `phi = 4 eps ((sigma/d)^12 - (sigma/d)^6)`, `s(u) = (1 - u^2)^3`, with a sigma that depends on
/// both elements. Tests know its energies, forces and stresses from the formula.
pub struct LennardJones {
    pub cutoff_angstrom: f64,
    pub max_neighbors: usize,
}

impl Default for LennardJones {
    fn default() -> Self {
        LennardJones {
            cutoff_angstrom: 6.0,
            max_neighbors: usize::MAX,
        }
    }
}

const WELL_DEPTH_EV: f64 = 0.05;

fn sigma_angstrom(z: u8) -> f64 {
    1.2 + 0.05 * f64::from(z)
}

impl Potential for LennardJones {
    fn cutoff_angstrom(&self) -> f64 {
        self.cutoff_angstrom
    }

    fn max_neighbors(&self) -> usize {
        self.max_neighbors
    }

    fn check(&self, system: &System) -> Result<(), EvaluationError> {
        match system.numbers.iter().find(|&&z| z > 30) {
            Some(z) => Err(EvaluationError::Unsupported(format!(
                "no Lennard-Jones parameters for atomic number {z}"
            ))),
            None => Ok(()),
        }
    }

    fn edge_gradients(
        &self,
        batch: &[(&System, &NeighborList)],
    ) -> Vec<Result<EdgeGradients, EvaluationError>> {
        batch
            .iter()
            .map(|(system, list)| {
                let mut answer = EdgeGradients::default();
                for target in 0..system.len() {
                    for edge in list.edges_of(target) {
                        let source = list.source[edge] as usize;
                        let sigma = 0.5
                            * (sigma_angstrom(system.numbers[source])
                                + sigma_angstrom(system.numbers[target]));
                        let v = list.vector[edge];
                        let d2 = v[0] * v[0] + v[1] * v[1] + v[2] * v[2];
                        let (energy, slope_over_d) = pair(d2, sigma, self.cutoff_angstrom);
                        answer.energy += 0.5 * energy;
                        answer.gradient.push(v.map(|x| 0.5 * slope_over_d * x));
                    }
                }
                Ok(answer)
            })
            .collect()
    }
}

/// Energy of a pair and its derivative with respect to the distance over the distance.
fn pair(d2: f64, sigma: f64, cutoff: f64) -> (f64, f64) {
    let s6 = (sigma * sigma / d2).powi(3);
    let phi = 4.0 * WELL_DEPTH_EV * (s6 * s6 - s6);
    let phi_slope = 4.0 * WELL_DEPTH_EV * (-12.0 * s6 * s6 + 6.0 * s6) / d2;
    let t = 1.0 - d2 / (cutoff * cutoff);
    let (s, s_slope) = (t.powi(3), -6.0 * t.powi(2) / (cutoff * cutoff));
    (phi * s, phi_slope * s + phi * s_slope)
}
