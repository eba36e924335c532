//! UMA as a potential energy surface.

use super::common::conformance::{
    Tolerance, check_all, evaluate_one, forces_are_the_gradient, forces_sum_to_zero, rotation,
    stress_is_the_strain_derivative,
};
use super::{MAX_EDGES, MODELS, answers, checkpoint, difference, golden, largest, potential};
use std::sync::Arc;
use umaserve::neighbors::neighbor_list;
use umaserve::potential::Potential;
use umaserve::potential::uma::config::Generation;
use umaserve::potential::uma::{Checkpoint, Precision, UmaOptions, UmaPotential};
use umaserve::system::{Cell, System};

/// Energies are sums of single-precision atomic energies of order 1 eV (rounding 6e-8) times a
/// normaliser of 1.4: differences of a few 1e-7 eV per atom. Central differences with a step of
/// 0.01 Angstrom divide that by 0.02 and add a truncation of STEP^2 / 6 times a third derivative
/// of order 1.
const SINGLE: Tolerance = Tolerance {
    rounding: 1e-6,
    derivative: 1e-4,
    step: 1e-2,
};

fn system(
    task: &str,
    numbers: &[u8],
    positions: &[[f64; 3]],
    vectors: [[f64; 3]; 3],
    periodic: [bool; 3],
) -> System {
    System {
        numbers: numbers.to_vec(),
        positions: positions.to_vec(),
        cell: Cell { vectors, periodic },
        charge: 0,
        spin: if task == "omol" { 1 } else { 0 },
        task: task.into(),
    }
}

/// One atom per cell of 2.5 Angstrom.
fn simple_cubic() -> System {
    let cell = [[2.5, 0.0, 0.0], [0.0, 2.5, 0.0], [0.0, 0.0, 2.5]];
    system("omat", &[26], &[[0.4, 0.1, -0.2]], cell, [true; 3])
}

/// Molecules neutral and charged, a skew crystal, a slab without a third vector, a wire with one
/// vector only, one atom in a small cell.
fn surface() -> Vec<System> {
    let mut ammonium = golden("ammonium");
    ammonium.positions[1][0] += 0.1;
    let crystal = system(
        "omat",
        &[11, 17, 17],
        &[[0.1, 0.2, 0.3], [2.0, 1.5, 2.4], [-6.0, 8.0, 3.1]],
        [[4.4, 0.1, 0.2], [1.5, 4.5, -0.3], [-0.7, 0.4, 5.0]],
        [true; 3],
    );
    let slab = system(
        "oc20",
        &[78, 8],
        &[[0.0, 0.0, 0.0], [0.3, 0.1, 1.9]],
        [[3.9, 0.0, 0.0], [0.4, 4.1, 0.0], [0.0; 3]],
        [true, true, false],
    );
    let wire = system(
        "omat",
        &[6, 1, 1],
        &[[0.0, 0.0, 0.0], [0.9, 0.5, 0.2], [-0.8, 0.4, -0.1]],
        [[0.0; 3], [0.2, 2.6, 0.0], [0.0; 3]],
        [false, true, false],
    );
    vec![ammonium, crystal, slab, wire, simple_cubic()]
}

#[test]
fn is_a_potential_in_double_precision() {
    for model in MODELS {
        check_all(
            &potential(model, Precision::F64),
            &surface(),
            Tolerance::F64,
        );
    }
}

#[test]
fn is_a_potential_in_single_precision() {
    for model in MODELS {
        let potential = potential(model, Precision::F32);
        let systems = surface();
        let force = largest(answers(&potential, &systems).iter().flat_map(|e| &e.forces));
        assert!(
            force > 100.0 * SINGLE.derivative,
            "{model}: forces up to {force}"
        );
        check_all(&potential, &systems, SINGLE);
    }
}

fn with(model: &str, change: impl Fn(&mut Checkpoint)) -> UmaPotential {
    let mut checkpoint = Arc::into_inner(checkpoint(model)).unwrap();
    change(&mut checkpoint);
    let options = UmaOptions {
        precision: Precision::F64,
        ..UmaOptions::default()
    };
    UmaPotential::on_cpu(Arc::new(checkpoint), options).unwrap()
}

/// Copies along the lattice vectors.
fn supercell(system: &System, copies: [usize; 3]) -> System {
    let mut out = system.clone();
    (out.numbers, out.positions) = (vec![], vec![]);
    let a = system.cell.vectors;
    for i in 0..copies[0] {
        for j in 0..copies[1] {
            for k in 0..copies[2] {
                out.numbers.extend(&system.numbers);
                out.positions.extend(system.positions.iter().map(|p| {
                    std::array::from_fn::<f64, 3, _>(|x| {
                        p[x] + i as f64 * a[0][x] + j as f64 * a[1][x] + k as f64 * a[2][x]
                    })
                }));
            }
        }
    }
    for (v, n) in out.cell.vectors.iter_mut().zip(copies) {
        *v = v.map(|x| x * n as f64);
    }
    out
}

/// Largest difference of energies per atom, forces and stress between a cell and its supercells.
fn extensivity_error(potential: &UmaPotential) -> f64 {
    let mut worst = 0.0f64;
    for system in surface().iter().filter(|s| s.cell.is_periodic()) {
        let one = evaluate_one(potential, system);
        for copies in [[2, 1, 1], [1, 3, 1], [2, 2, 2]] {
            let copies = std::array::from_fn(|k| {
                if system.cell.periodic[k] {
                    copies[k]
                } else {
                    1
                }
            });
            let many = evaluate_one(potential, &supercell(system, copies));
            let count = copies.iter().product::<usize>();
            worst =
                worst.max((many.energy / count as f64 - one.energy).abs() / system.len() as f64);
            worst = worst.max(difference(&many.forces, &one.forces.repeat(count)));
            // The volume of a completed slab or wire scales like its vectors.
            worst = worst.max(difference(&many.stress.unwrap(), &one.stress.unwrap()));
        }
    }
    worst
}

#[test]
fn supercells_have_the_energy_of_their_cells() {
    for model in MODELS {
        let error = match model {
            // The nano checkpoint may be of the generation that is not extensive.
            "1p2" => extensivity_error(&with(model, |c| c.config.generation = Generation::Newer)),
            _ => extensivity_error(&potential(model, Precision::F64)),
        };
        assert!(error < 1e-10, "{model}: {error:e}");
    }
    // UMA-S-1.2 counts one atom too many in the composition, and so depends on the cell's size.
    let error = extensivity_error(&with("1p2", |c| c.config.generation = Generation::Uma1p2));
    assert!(error > 1e-6, "{error:e}");
}

#[test]
fn atoms_far_apart_do_not_see_each_other() {
    let energy = |potential: &UmaPotential, numbers: &[u8], positions: &[[f64; 3]]| {
        let system = system("omol", numbers, positions, [[0.0; 3]; 3], [false; 3]);
        evaluate_one(potential, &system)
    };
    let (here, there) = ([0.0; 3], [3.0, 4.0, 3.4]);
    for model in ["1p1", "m", "esen"] {
        let potential = with(model, |c| c.config.supports_single_atoms = true);
        assert!(potential.config().charge_balanced_channels.is_empty());
        // Without experts any two elements; with them, the composition must stay the same.
        let elements: &[[u8; 2]] = match model {
            "esen" => &[[2, 2], [1, 8]],
            _ => &[[2, 2], [29, 29]],
        };
        for &[a, b] in elements {
            let pair = energy(&potential, &[a, b], &[here, there]);
            let sum =
                energy(&potential, &[a], &[here]).energy + energy(&potential, &[b], &[here]).energy;
            assert!((pair.energy - sum).abs() < 1e-11, "{model} {a} {b}");
            assert_eq!(pair.forces, [[0.0; 3]; 2], "{model}");
            // Just inside the cutoff they do, a little: the envelope has three zeros there.
            let near = energy(&potential, &[a, b], &[here, [3.0, 4.0, 3.0]]);
            assert!((near.energy - sum).abs() > 1e-9, "{model} {a} {b}");
        }
    }
}

#[test]
fn the_energy_is_smooth_at_the_cutoff() {
    for model in MODELS {
        let potential = potential(model, Precision::F64);
        let cutoff = potential.cutoff_angstrom();
        let at = |d: f64| {
            let pair = system(
                "omol",
                &[8, 8],
                &[[0.0; 3], [0.6 * d, 0.0, 0.8 * d]],
                [[0.0; 3]; 3],
                [false; 3],
            );
            evaluate_one(&potential, &pair)
        };
        let (inside, outside) = (at(cutoff - 1e-4), at(cutoff + 1e-4));
        // The envelope is of order (1e-4 / 6)^3 there, its slope of order (1e-4 / 6)^2.
        assert!((inside.energy - outside.energy).abs() < 1e-11, "{model}");
        assert!(
            difference(&inside.forces, &outside.forces) < 1e-7,
            "{model}"
        );
        assert_eq!(outside.forces, [[0.0; 3]; 2]);
    }
}

#[test]
fn bonds_along_the_polar_axis_are_like_any_other() {
    for model in MODELS {
        let potential = potential(model, Precision::F64);
        let pair = |v: [f64; 3]| {
            system(
                "omol",
                &[7, 8],
                &[[0.2, 0.1, 0.3], [0.2 + v[0], 0.1 + v[1], 0.3 + v[2]]],
                [[0.0; 3]; 3],
                [false; 3],
            )
        };
        let reference = evaluate_one(&potential, &pair([1.2, 0.0, 0.0]));
        let pull = reference.forces[1][0];
        assert!(pull.abs() > 1e-4);
        for v in [[0.0, 1.2, 0.0], [0.0, -1.2, 0.0]] {
            let system = pair(v);
            let along = evaluate_one(&potential, &system);
            assert!((along.energy - reference.energy).abs() < 1e-12);
            let expected = v.map(|x| x / 1.2 * pull);
            assert!(
                difference(&along.forces[1..], &[expected]) < 1e-12,
                "{model}"
            );
            // The curvature across the axis is right as well.
            let mut bent = system.clone();
            bent.positions[1][0] += 1e-3;
            for system in [&system, &bent] {
                forces_are_the_gradient(&potential, system, Tolerance::F64);
                rotation(&potential, system, Tolerance::F64);
            }
        }
        // Images along y of a single atom: nothing but the axis.
        let mut chain = simple_cubic();
        chain.cell.periodic = [false, true, false];
        stress_is_the_strain_derivative(&potential, &chain, Tolerance::F64);
    }
}

#[test]
fn charged_systems_conform_with_balancing() {
    let potential = potential("1p2", Precision::F64);
    assert!(!potential.config().charge_balanced_channels.is_empty());
    let mut crystal = surface().remove(1);
    (crystal.charge, crystal.spin) = (-2, 2);
    check_all(&potential, &[crystal.clone()], Tolerance::F64);

    // The balanced channels of every block sum to the charge.
    let (cutoff, cap) = (potential.cutoff_angstrom(), potential.max_neighbors());
    let list = neighbor_list(&crystal, cutoff, cap, MAX_EDGES).unwrap();
    let (_, _, trace) = UmaPotential::trace(&checkpoint("1p2"), &crystal, &list);
    let balanced: Vec<_> = trace
        .buffers
        .iter()
        .filter(|(name, _)| name.ends_with(".balanced"))
        .collect();
    assert_eq!(balanced.len(), potential.config().num_layers);
    for (name, values) in balanced {
        for c in potential.config().charge_balanced_channels.clone() {
            let rows = values.chunks(values.len() / crystal.len());
            let sum: f64 = rows.map(|row| row[c]).sum();
            assert!((sum + 2.0).abs() < 1e-12, "{name}: {sum}");
        }
    }

    // The charge is felt, also by models that do not balance.
    for model in MODELS {
        let potential = super::potential(model, Precision::F64);
        let mut neutral = crystal.clone();
        neutral.charge = 0;
        let (a, b) = (
            evaluate_one(&potential, &crystal),
            evaluate_one(&potential, &neutral),
        );
        assert!((a.energy - b.energy).abs() > 1e-6, "{model}");
    }
}

#[test]
fn compressed_structures_with_capped_neighbours_are_consistent() {
    let base = system(
        "omat",
        &[6, 8],
        &[[0.1, 0.0, 0.2], [0.9, 1.0, 0.8]],
        [[1.7, 0.0, 0.1], [0.2, 1.6, 0.0], [0.0, 0.3, 1.8]],
        [true; 3],
    );
    let model = "1p1";
    let potential = potential(model, Precision::F64);
    let edges = |system: &System| {
        let (cutoff, cap) = (potential.cutoff_angstrom(), potential.max_neighbors());
        neighbor_list(system, cutoff, cap, MAX_EDGES).unwrap()
    };
    let kept = edges(&base);
    assert!(kept.truncated && kept.len() < 2 * 340);
    assert!(kept.edges_of(0).len() > 300);
    forces_sum_to_zero(&potential, &base, Tolerance::F64);
    // Where small moves keep the same neighbours, forces are slopes.
    let step = Tolerance::F64.step;
    for atom in 0..2 {
        for k in 0..3 {
            for sign in [-1.0, 1.0] {
                let mut moved = base.clone();
                moved.positions[atom][k] += sign * step;
                assert_eq!(
                    edges(&moved).source,
                    kept.source,
                    "choose another structure"
                );
            }
        }
    }
    forces_are_the_gradient(&potential, &base, Tolerance::F64);
    let single = super::potential(model, Precision::F32);
    let (a, b) = (
        evaluate_one(&potential, &base),
        evaluate_one(&single, &base),
    );
    assert!(difference(&a.forces, &b.forces) < 1e-4 * largest(&a.forces).max(1.0));
}
