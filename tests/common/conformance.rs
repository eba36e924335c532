//! The properties that every potential energy surface has, whatever is behind it. Each function
//! panics with the property's name when it is violated.

use umaserve::potential::{EvaluationError, Potential, evaluate};
use umaserve::system::{Cell, Evaluation, System};

const MAX_EDGES: usize = 10_000_000;

/// How closely two evaluations of the same physics must agree: relative to the largest force (plus
/// one unit), and the step of the central differences that suits the potential's precision.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Of energies per atom (eV), forces and stresses that must be equal but for rounding.
    pub rounding: f64,
    /// Of derivatives by central differences.
    pub derivative: f64,
    /// Step of the central differences, Angstrom (strains: this times 0.1).
    pub step: f64,
}

impl Tolerance {
    /// For potentials that compute in f64.
    pub const F64: Tolerance = Tolerance {
        rounding: 1e-10,
        derivative: 1e-6,
        step: 1e-4,
    };
    /// For potentials that compute in f32.
    pub const F32: Tolerance = Tolerance {
        rounding: 2e-5,
        derivative: 2e-2,
        step: 1e-2,
    };
}

/// Checks every property on every system.
pub fn check_all(potential: &dyn Potential, systems: &[System], tolerance: Tolerance) {
    for system in systems {
        translation(potential, system, tolerance);
        rotation(potential, system, tolerance);
        permutation(potential, system, tolerance);
        wrapping(potential, system, tolerance);
        forces_are_the_gradient(potential, system, tolerance);
        stress_is_the_strain_derivative(potential, system, tolerance);
        forces_sum_to_zero(potential, system, tolerance);
        repeats(potential, system);
    }
    batch_equals_single(potential, systems);
}

pub fn evaluate_one(potential: &dyn Potential, system: &System) -> Evaluation {
    evaluate(potential, &[system], MAX_EDGES)
        .remove(0)
        .unwrap_or_else(|error| panic!("{error}: {system:?}"))
}

fn scale(evaluation: &Evaluation) -> f64 {
    evaluation
        .forces
        .iter()
        .flatten()
        .fold(1.0, |m: f64, f| m.max(f.abs()))
}

/// Same energy, forces and stress, within rounding.
fn assert_same(property: &str, a: &Evaluation, b: &Evaluation, tolerance: f64) {
    let limit = tolerance * scale(a);
    let difference = (a.energy - b.energy).abs() / a.forces.len().max(1) as f64;
    assert!(
        difference <= limit,
        "{property}: energy differs by {difference:e} eV/atom"
    );
    for (i, (f, g)) in a.forces.iter().zip(&b.forces).enumerate() {
        for k in 0..3 {
            let difference = (f[k] - g[k]).abs();
            assert!(
                difference <= limit,
                "{property}: force on {i} differs by {difference:e}"
            );
        }
    }
    assert_eq!(a.stress.is_some(), b.stress.is_some(), "{property}: stress");
    if let (Some(s), Some(t)) = (a.stress, b.stress) {
        for (x, y) in s.iter().flatten().zip(t.iter().flatten()) {
            assert!(
                (x - y).abs() <= limit,
                "{property}: stress differs {s:?} {t:?}"
            );
        }
    }
}

/// Translating all atoms changes nothing.
pub fn translation(potential: &dyn Potential, system: &System, tolerance: Tolerance) {
    let before = evaluate_one(potential, system);
    let mut moved = system.clone();
    for position in &mut moved.positions {
        for (x, shift) in position.iter_mut().zip([1.7, -23.4, 0.9]) {
            *x += shift;
        }
    }
    assert_same(
        "translation",
        &before,
        &evaluate_one(potential, &moved),
        tolerance.rounding,
    );
}

/// Rotation about (1, 2, 2)/3 by about 74 degrees, and about -y by 90 degrees: the second one
/// takes bonds into the singular direction of spherical harmonics codes.
fn rotations() -> [[[f64; 3]; 3]; 2] {
    let (s, c) = 1.3f64.sin_cos();
    let n = [1.0 / 3.0, 2.0 / 3.0, 2.0 / 3.0];
    let cross = [[0.0, -n[2], n[1]], [n[2], 0.0, -n[0]], [-n[1], n[0], 0.0]];
    let general = std::array::from_fn(|i| {
        std::array::from_fn(|j| {
            c * f64::from(u8::from(i == j)) + (1.0 - c) * n[i] * n[j] + s * cross[i][j]
        })
    });
    [
        general,
        [[0.0, 0.0, -1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]],
    ]
}

fn rotate(r: &[[f64; 3]; 3], v: [f64; 3]) -> [f64; 3] {
    std::array::from_fn(|i| r[i][0] * v[0] + r[i][1] * v[1] + r[i][2] * v[2])
}

/// Rotating atoms and cell rotates forces and stress and keeps the energy.
pub fn rotation(potential: &dyn Potential, system: &System, tolerance: Tolerance) {
    let before = evaluate_one(potential, system);
    for r in rotations() {
        let mut turned = system.clone();
        for position in &mut turned.positions {
            *position = rotate(&r, *position);
        }
        turned.cell.vectors = system.cell.vectors.map(|v| rotate(&r, v));
        let after = evaluate_one(potential, &turned);
        let expected = Evaluation {
            energy: before.energy,
            forces: before.forces.iter().map(|&f| rotate(&r, f)).collect(),
            stress: before.stress.map(|s| {
                // R s R^T, s symmetric.
                let half = s.map(|row| rotate(&r, row));
                let column = |j: usize| rotate(&r, [half[0][j], half[1][j], half[2][j]]);
                let columns = [column(0), column(1), column(2)];
                std::array::from_fn(|i| std::array::from_fn(|j| columns[j][i]))
            }),
        };
        assert_same("rotation", &expected, &after, tolerance.rounding);
    }
}

/// The order of the atoms does not matter.
pub fn permutation(potential: &dyn Potential, system: &System, tolerance: Tolerance) {
    let before = evaluate_one(potential, system);
    let atoms = system.len();
    // Reversed and rotated by one: no atom of three or more keeps its place.
    let order: Vec<usize> = (0..atoms).map(|i| (2 * atoms - i) % atoms).rev().collect();
    let mut permuted = system.clone();
    permuted.numbers = order.iter().map(|&i| system.numbers[i]).collect();
    permuted.positions = order.iter().map(|&i| system.positions[i]).collect();
    let expected = Evaluation {
        forces: order.iter().map(|&i| before.forces[i]).collect(),
        ..before
    };
    assert_same(
        "permutation",
        &expected,
        &evaluate_one(potential, &permuted),
        tolerance.rounding,
    );
}

/// Moving single atoms by lattice vectors along periodic directions changes nothing.
pub fn wrapping(potential: &dyn Potential, system: &System, tolerance: Tolerance) {
    let before = evaluate_one(potential, system);
    let mut moved = system.clone();
    for (i, position) in moved.positions.iter_mut().enumerate() {
        for k in (0..3).filter(|&k| system.cell.periodic[k]) {
            let cells = ((3 * i + k) % 7) as f64 - 3.0;
            for (x, a) in position.iter_mut().zip(system.cell.vectors[k]) {
                *x += cells * a;
            }
        }
    }
    assert_same(
        "wrapping",
        &before,
        &evaluate_one(potential, &moved),
        tolerance.rounding,
    );
}

/// `F = -dE/dx` by central differences, for every coordinate of the first atoms and the last.
pub fn forces_are_the_gradient(potential: &dyn Potential, system: &System, tolerance: Tolerance) {
    let at = evaluate_one(potential, system);
    let limit = tolerance.derivative * scale(&at);
    let atoms = system.len();
    let some = (0..atoms.min(4)).chain((atoms > 4).then(|| atoms - 1));
    for atom in some {
        for k in 0..3 {
            let energy = |sign: f64| {
                let mut moved = system.clone();
                moved.positions[atom][k] += sign * tolerance.step;
                evaluate_one(potential, &moved).energy
            };
            let slope = (energy(1.0) - energy(-1.0)) / (2.0 * tolerance.step);
            let force = at.forces[atom][k];
            assert!(
                (force + slope).abs() <= limit,
                "F = -dE/dx: atom {atom} coordinate {k}: force {force}, slope {slope}"
            );
        }
    }
}

/// `stress = dE/d(strain) / V` by central differences; `None` without periodicity.
pub fn stress_is_the_strain_derivative(
    potential: &dyn Potential,
    system: &System,
    tolerance: Tolerance,
) {
    let at = evaluate_one(potential, system);
    let Some(stress) = at.stress else {
        assert!(!system.cell.is_periodic(), "stress missing");
        return;
    };
    assert!(system.cell.is_periodic(), "stress without periodicity");
    let step = 0.1 * tolerance.step;
    let volume = system.cell.volume();
    let limit = tolerance.derivative * (scale(&at) + system.len() as f64) / volume.min(1e3);
    for i in 0..3 {
        for j in i..3 {
            let energy = |sign: f64| {
                let mut strain = [[0.0; 3]; 3];
                strain[i][j] += 0.5 * sign * step;
                strain[j][i] += 0.5 * sign * step;
                let deform = |v: [f64; 3]| {
                    let extra = rotate(&strain, v);
                    [v[0] + extra[0], v[1] + extra[1], v[2] + extra[2]]
                };
                let mut strained = system.clone();
                for position in &mut strained.positions {
                    *position = deform(*position);
                }
                strained.cell.vectors = system.cell.vectors.map(deform);
                evaluate_one(potential, &strained).energy
            };
            let slope = (energy(1.0) - energy(-1.0)) / (2.0 * step) / volume;
            assert!(
                (stress[i][j] - slope).abs() <= limit,
                "stress {i}{j}: {} but the strain derivative is {slope}",
                stress[i][j]
            );
            assert_eq!(stress[i][j], stress[j][i], "stress is symmetric");
        }
    }
}

/// Forces within a system cancel.
pub fn forces_sum_to_zero(potential: &dyn Potential, system: &System, tolerance: Tolerance) {
    let at = evaluate_one(potential, system);
    for k in 0..3 {
        let sum: f64 = at.forces.iter().map(|f| f[k]).sum();
        let limit = tolerance.rounding * scale(&at) * system.len() as f64;
        assert!(sum.abs() <= limit, "forces sum to {sum:e}");
    }
}

/// The same system gives the same answer bit for bit, also on other numbers of threads.
pub fn repeats(potential: &dyn Potential, system: &System) {
    let first = evaluate_one(potential, system);
    assert_eq!(first, evaluate_one(potential, system), "repeats");
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let again = pool.unwrap().install(|| evaluate_one(potential, system));
        assert_eq!(first, again, "repeats on {threads} threads");
    }
}

/// Every system's answer is the same bit for bit alone, in a batch, in the batch reversed, and next
/// to systems that fail.
pub fn batch_equals_single(potential: &dyn Potential, systems: &[System]) {
    let alone: Vec<Evaluation> = systems.iter().map(|s| evaluate_one(potential, s)).collect();
    let empty = System::default();
    let mut flat = systems[0].clone();
    flat.cell = Cell {
        vectors: [[0.0; 3]; 3],
        periodic: [true; 3],
    };
    let mut batch: Vec<(&System, Option<&Evaluation>)> =
        systems.iter().zip(alone.iter().map(Some)).collect();
    batch.insert(0, (&empty, None));
    batch.push((&flat, None));
    for _ in 0..2 {
        let members: Vec<&System> = batch.iter().map(|(s, _)| *s).collect();
        let answers = evaluate(potential, &members, MAX_EDGES);
        assert_eq!(answers.len(), batch.len());
        for (answer, (system, expected)) in answers.iter().zip(&batch) {
            match expected {
                Some(expected) => assert_eq!(
                    answer.as_ref().ok(),
                    Some(*expected),
                    "batch equals single: {} atoms",
                    system.len()
                ),
                None => assert!(matches!(answer, Err(EvaluationError::System(_)))),
            }
        }
        batch.reverse();
    }
}
