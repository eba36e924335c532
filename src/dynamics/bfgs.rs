//! Relaxation by BFGS: the path of `ase.optimize.BFGS`.
//!
//! H starts as 70 eV/Angstrom^2 times the unit matrix and is updated with the last displacement d
//! and the change of the gradient y: H += y y^T / (y.d) - H d (H d)^T / (d.H d). The step is
//! sum over the eigenpairs (w, u) of H of u (u.F) / |w|, shortened as a whole so that no atom moves
//! farther than `max_step`.

use nalgebra::{Cholesky, DMatrix, DVector, SymmetricEigen};

use super::{Dynamics, History, Lbfgs, Move, State, displaced, limit_longest};

/// Curvature that the optimisers assume before they know better, eV/Angstrom^2 (ASE's `alpha`).
pub const INITIAL_CURVATURE: f64 = 70.0;

/// Above this many atoms the dense Hessian (3N x 3N numbers that travel with every step, and a
/// factorisation of cost N^3) costs more than it brings, and L-BFGS with the same first guess and
/// the same longest step takes its place. The first step is the same in both.
pub const BFGS_MAX_ATOMS: usize = 200;

/// Displacements below this (Angstrom, largest component) teach nothing about the curvature.
const SAME_POSITIONS: f64 = 1e-7;

/// Eigenvalues are taken as at least this large, eV/Angstrom^2, so that an exactly flat direction
/// gives a long step, which `max_step` cuts, and not an infinite one.
const SMALLEST_CURVATURE: f64 = 1e-12;

/// BFGS with ASE's behaviour.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bfgs {
    /// Longest move of an atom in one step, Angstrom.
    pub max_step: f64,
}

impl Dynamics for Bfgs {
    fn propose(&self, state: &State, forces: &[[f64; 3]]) -> Move {
        let positions = &state.system.positions;
        if positions.len() > BFGS_MAX_ATOMS {
            let max_step = self.max_step;
            return Lbfgs { max_step }.propose(state, forces);
        }
        let size = 3 * positions.len();
        let mut hessian = match &state.history {
            History::Bfgs {
                hessian,
                positions: last_positions,
                forces: last_forces,
            } if hessian.len() == size * size
                && last_positions.len() == positions.len()
                && last_forces.len() == positions.len() =>
            {
                updated(hessian, positions, last_positions, forces, last_forces)
            }
            _ => DMatrix::from_diagonal_element(size, size, INITIAL_CURVATURE),
        };
        let force = DVector::from_column_slice(forces.as_flattened());
        let mut step = newton_step(&hessian, &force).unwrap_or_else(|| {
            // The eigenvalue iteration did not end: forget the curvature, go downhill.
            hessian = DMatrix::from_diagonal_element(size, size, INITIAL_CURVATURE);
            force / INITIAL_CURVATURE
        });
        limit_longest(step.as_mut_slice(), self.max_step);
        Move {
            positions: displaced(positions, step.as_slice()),
            velocities: None,
            history: Some(History::Bfgs {
                hessian: hessian.as_slice().to_vec(),
                positions: positions.clone(),
                forces: forces.to_vec(),
            }),
        }
    }
}

/// The Hessian after what the last step taught; unchanged where it taught nothing.
fn updated(
    hessian: &[f64],
    positions: &[[f64; 3]],
    last_positions: &[[f64; 3]],
    forces: &[[f64; 3]],
    last_forces: &[[f64; 3]],
) -> DMatrix<f64> {
    let size = 3 * positions.len();
    // Symmetric, so that row-major and column-major are the same.
    let old = DMatrix::from_column_slice(size, size, hessian);
    let vector = |v: &[[f64; 3]]| DVector::from_column_slice(v.as_flattened());
    let d = vector(positions) - vector(last_positions);
    if d.amax() < SAME_POSITIONS {
        return old;
    }
    let y = vector(last_forces) - vector(forces);
    let hd = &old * &d;
    let (a, b) = (y.dot(&d), d.dot(&hd));
    // An update that divides by nothing would poison every later step.
    if a == 0.0 || b == 0.0 {
        return old;
    }
    let new = DMatrix::from_fn(size, size, |i, j| {
        old[(i, j)] + (y[i] * y[j] / a - hd[i] * hd[j] / b)
    });
    if new.iter().all(|h| h.is_finite()) {
        new
    } else {
        old
    }
}

/// |H|^-1 F, where |H| has the eigenvectors of H and the absolute values of its eigenvalues.
///
/// Where H is positive definite that is H^-1 F, and a Cholesky factorisation gives it an order of
/// magnitude faster than the eigenvectors.
fn newton_step(hessian: &DMatrix<f64>, force: &DVector<f64>) -> Option<DVector<f64>> {
    // The eigenvalue iteration need not end on numbers that are not finite.
    if !hessian.iter().all(|h| h.is_finite()) {
        return None;
    }
    if let Some(factor) = Cholesky::new(hessian.clone()) {
        let step = factor.solve(force);
        if step.iter().all(|x| x.is_finite()) {
            return Some(step);
        }
    }
    let iterations = 100 * hessian.nrows().max(10);
    let eigen = SymmetricEigen::try_new(hessian.clone(), f64::EPSILON, iterations)?;
    let mut along = eigen.eigenvectors.tr_mul(force);
    for (x, w) in along.iter_mut().zip(eigen.eigenvalues.iter()) {
        *x /= w.abs().max(SMALLEST_CURVATURE);
    }
    Some(eigen.eigenvectors * along)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negative_curvature_is_followed_downhill() {
        let h = DMatrix::from_row_slice(3, 3, &[2.0, 1.0, 0.0, 1.0, -3.0, 0.5, 0.0, 0.5, 4.0]);
        let f = DVector::from_column_slice(&[0.3, -0.2, 0.9]);
        let step = newton_step(&h, &f).unwrap();
        assert!(step.dot(&f) > 0.0);
        // |H| = (H^2)^(1/2), so |H| step = F means H^2 step = |H| F and |step| is what H gives.
        let exact = h.clone().try_inverse().unwrap() * &f;
        assert!((step.norm() - exact.norm()).abs() < 1e-12);
    }

    #[test]
    fn flat_and_broken_curvature_do_not_hang_or_give_nan() {
        let f = DVector::from_column_slice(&[1.0, 0.0, 0.0]);
        let step = newton_step(&DMatrix::zeros(3, 3), &f).unwrap();
        assert!(step.iter().all(|x| x.is_finite()) && step[0] > 0.0);
        for bad in [f64::NAN, f64::INFINITY] {
            assert!(newton_step(&DMatrix::from_element(3, 3, bad), &f).is_none());
        }
    }
}
