//! Relaxation by limited-memory BFGS: the path of `ase.optimize.LBFGS` (no line search), with the
//! two-loop recursion of J. Nocedal, Math. Comput. 35, 773 (1980).

use super::bfgs::INITIAL_CURVATURE;
use super::{Dynamics, History, Move, State, displaced, limit_longest};

/// Steps remembered, as ASE.
const MEMORY: usize = 100;
/// A remembered step is never given up for size while fewer than this many are kept.
const LEAST_MEMORY: usize = 5;
/// Bound on the memory that travels with every step, numbers (8 bytes each): 9.6 MB.
const MEMORY_NUMBERS: usize = 1_200_000;

/// How many steps are remembered for this many atoms: 100 up to 2000 atoms, as ASE; beyond, as
/// many as keep the two vectors of 3N numbers per step within 9.6 MB, and at least 5.
pub fn lbfgs_memory(atoms: usize) -> usize {
    (MEMORY_NUMBERS / (6 * atoms.max(1))).clamp(LEAST_MEMORY, MEMORY)
}

/// L-BFGS with ASE's behaviour.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lbfgs {
    /// Longest move of an atom in one step, Angstrom.
    pub max_step: f64,
}

impl Dynamics for Lbfgs {
    fn propose(&self, state: &State, forces: &[[f64; 3]]) -> Move {
        let positions = &state.system.positions;
        let (steps, changes) = remembered(&state.history, positions, forces);
        let mut step = two_loop(&steps, &changes, forces.as_flattened());
        limit_longest(&mut step, self.max_step);
        Move {
            positions: displaced(positions, &step),
            velocities: None,
            history: Some(History::Lbfgs {
                steps,
                changes,
                positions: positions.clone(),
                forces: forces.to_vec(),
            }),
        }
    }
}

/// The remembered steps and gradient changes, oldest first, with the last step added.
fn remembered(
    history: &History,
    positions: &[[f64; 3]],
    forces: &[[f64; 3]],
) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
    let atoms = positions.len();
    let History::Lbfgs {
        steps,
        changes,
        positions: last_positions,
        forces: last_forces,
    } = history
    else {
        return Default::default();
    };
    let fits = last_positions.len() == atoms
        && last_forces.len() == atoms
        && steps.len() == changes.len()
        && steps.iter().chain(changes).all(|v| v.len() == 3 * atoms);
    if !fits {
        return Default::default();
    }
    let difference = |a: &[[f64; 3]], b: &[[f64; 3]]| -> Vec<f64> {
        let pairs = a.as_flattened().iter().zip(b.as_flattened());
        pairs.map(|(a, b)| a - b).collect()
    };
    let step = difference(positions, last_positions);
    let change = difference(last_forces, forces);
    // ASE divides by y.s whatever it is; where nothing moved that would be 0/0.
    let usable = (1.0 / dot(&step, &change)).is_finite();
    let keep = lbfgs_memory(atoms) - usize::from(usable);
    let skip = steps.len().saturating_sub(keep);
    let (mut steps, mut changes) = (steps[skip..].to_vec(), changes[skip..].to_vec());
    if usable {
        steps.push(step);
        changes.push(change);
    }
    (steps, changes)
}

/// The inverse Hessian of the remembered steps times the force, `[3N]`.
fn two_loop(steps: &[Vec<f64>], changes: &[Vec<f64>], force: &[f64]) -> Vec<f64> {
    let mut q = force.to_vec();
    let inverse: Vec<f64> = steps
        .iter()
        .zip(changes)
        .map(|(s, y)| 1.0 / dot(y, s))
        .collect();
    let mut a = vec![0.0; steps.len()];
    for i in (0..steps.len()).rev() {
        a[i] = inverse[i] * dot(&steps[i], &q);
        add(&mut q, -a[i], &changes[i]);
    }
    for x in &mut q {
        *x /= INITIAL_CURVATURE;
    }
    for i in 0..steps.len() {
        let b = inverse[i] * dot(&changes[i], &q);
        add(&mut q, a[i] - b, &steps[i]);
    }
    q
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// target += factor * v
fn add(target: &mut [f64], factor: f64, v: &[f64]) {
    for (t, x) in target.iter_mut().zip(v) {
        *t += factor * x;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_that_of_ase_for_small_systems_and_bounded_for_large_ones() {
        assert_eq!(lbfgs_memory(1), 100);
        assert_eq!(lbfgs_memory(2000), 100);
        assert_eq!(lbfgs_memory(20_000), 10);
        assert_eq!(lbfgs_memory(1_000_000), 5);
    }

    #[test]
    fn oldest_steps_are_forgotten_first() {
        let history = History::Lbfgs {
            steps: (0..100).map(|i| vec![f64::from(i), 1.0, 1.0]).collect(),
            changes: vec![vec![1.0; 3]; 100],
            positions: vec![[0.0; 3]],
            forces: vec![[1.0; 3]],
        };
        let (steps, changes) = remembered(&history, &[[7.0; 3]], &[[0.5; 3]]);
        assert_eq!((steps.len(), changes.len()), (100, 100));
        assert_eq!(steps[0], [1.0, 1.0, 1.0]);
        assert_eq!(steps[99], [7.0; 3]);
        assert_eq!(changes[99], [0.5; 3]);
    }
}
