//! Whole models on the CUDA backend: positions in, energies, forces and stress out. Over the kernels
//! compiled for the host, or on a GPU (`common/device.rs`); what needs the former is in `emulated`.
#![cfg(feature = "host-kernels")]

#[path = "../common/mod.rs"]
mod common;
mod emulated;
#[allow(dead_code)] // Its other functions are for tests of the reader.
#[path = "../checkpoint/forge.rs"]
mod forge;

use common::device::device;
use common::goldens::{Entry, checkpoint, difference, golden, goldens, json, largest, options};
use common::goldens::{data, potential as on_cpu};
use common::jobs::{at_rest, shard};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::Deserialize;
use std::collections::HashMap;
use std::sync::Arc;
use umaserve::comm::{Shard, Task};
use umaserve::dynamics::{Method, State};
use umaserve::potential::uma::{Checkpoint, Precision, UmaOptions, UmaPotential};
use umaserve::potential::{EvaluationError, Potential, evaluate};
use umaserve::selfcheck::{self, programs::signed};
use umaserve::system::{Cell, Evaluation, System};
use umaserve::worker::try_run;

const MAX_EDGES: usize = 1_000_000;

const NVE: Method = Method::VelocityVerlet { timestep_fs: 0.5 };

fn steps(id: u64, states: &[State]) -> Shard {
    shard(
        id,
        states.iter().map(|state| (Task::Step(NVE), state.clone())),
    )
}

fn on_device(model: &str, precision: Precision) -> UmaPotential {
    UmaPotential::on_cuda(checkpoint(model), options(precision), device()).unwrap()
}

fn answers(potential: &dyn Potential, systems: &[&System]) -> Vec<Evaluation> {
    let answers = evaluate(potential, systems, MAX_EDGES).into_iter();
    answers.map(|answer| answer.unwrap()).collect()
}

/// |a - b| / |b| over all numbers.
fn relative(a: &[[f64; 3]], b: &[[f64; 3]]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|x| x * x).sum::<f64>().sqrt();
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    norm(&mut pairs.map(|(a, b)| a - b)) / norm(&mut b.iter().flatten().copied()).max(1e-6)
}

#[test]
fn agrees_with_fairchem_in_single_precision() {
    for model in ["1p1", "1p2", "m", "esen"] {
        let potential = on_device(model, Precision::F32);
        let entries = goldens(model);
        let systems: Vec<System> = entries.iter().map(Entry::system).collect();
        let systems: Vec<&System> = systems.iter().collect();
        let scale = largest(entries.iter().flat_map(|e| &e.forces));
        for (entry, answer) in entries.iter().zip(answers(&potential, &systems)) {
            let what = format!("{model} {}", entry.name);
            let energy = (answer.energy - entry.energy).abs() / entry.numbers.len() as f64;
            assert!(energy < 1e-6, "{what}: energy off by {energy:e} eV/atom");
            let force = difference(&answer.forces, &entry.forces);
            assert!(
                force < 1e-5 * scale,
                "{what}: forces off by {force:e} of {scale:e}"
            );
        }
    }
}

/// fairchem's own errors, the largest of a structure.
#[derive(Deserialize)]
struct TheirError {
    energy_per_atom: f64,
    forces: f64,
}

/// The largest and the root of the mean square.
fn spread(errors: &[f64]) -> [f64; 2] {
    let square: f64 = errors.iter().map(|e| e * e).sum();
    let largest = errors.iter().fold(0.0f64, |m, e| m.max(*e));
    [largest, (square / errors.len() as f64).sqrt()]
}

/// Errors of fairchem's TF32 mode: `tools/reference/make_goldens.py --tf32`. All structures of a file are
/// compared together, not each with its own: a single error is a draw from a distribution and may happen to
/// be zero. For the same reason energies, one number for a structure, are compared by their mean only.
#[test]
fn tf32_and_f16_are_as_good_as_fairchem_in_its_tf32_mode() {
    let theirs: HashMap<String, HashMap<String, TheirError>> = json("fairchem-tf32-error.json");
    for model in ["1p1", "1p2"] {
        let mut entries = goldens(model);
        // Those that take long without a GPU left out.
        entries.retain(|e| e.numbers.len() <= 40);
        assert!(entries.len() > 15);
        let theirs = &theirs[&format!("nano-{model}")];
        let theirs = |of: fn(&TheirError) -> f64| -> [f64; 2] {
            let errors = entries.iter().map(|e| of(&theirs[&e.name]));
            spread(&errors.collect::<Vec<_>>())
        };
        let (their_energies, their_forces) = (theirs(|e| e.energy_per_atom), theirs(|e| e.forces));
        let systems: Vec<System> = entries.iter().map(Entry::system).collect();
        let systems: Vec<&System> = systems.iter().collect();
        for precision in [Precision::Tf32, Precision::F16] {
            let potential = on_device(model, precision);
            let (mut energies, mut forces) = (Vec::new(), Vec::new());
            for (entry, answer) in entries.iter().zip(answers(&potential, &systems)) {
                energies.push((answer.energy - entry.energy).abs() / entry.numbers.len() as f64);
                forces.push(difference(&answer.forces, &entry.forces));
            }
            let (energies, forces) = (spread(&energies), spread(&forces));
            let what = format!(
                "{model} {precision}: energies off by {energies:?} eV/atom, fairchem's by \
                 {their_energies:?}; forces by {forces:?}, fairchem's by {their_forces:?}"
            );
            println!("{what}");
            assert!(energies[1] <= their_energies[1], "{what}");
            assert!(
                forces[0] <= their_forces[0] && forces[1] <= their_forces[1],
                "{what}"
            );
        }
    }
}

/// Random structures of a task, off equilibrium: molecules and cells with one to three periodic
/// directions.
fn random_systems(task: &str) -> Vec<System> {
    let mut rng = ChaCha8Rng::seed_from_u64(99);
    (0..6)
        .map(|i| {
            let atoms = [2, 5, 9, 14, 20, 26][i];
            let a = 2.3 * (atoms as f64).cbrt() + 1.0;
            // On a distorted lattice: no two atoms too close.
            let side = (atoms as f64).cbrt().ceil() as usize;
            let positions = (0..atoms)
                .map(|k| {
                    let cell = [k % side, k / side % side, k / side / side];
                    cell.map(|n| a * n as f64 / side as f64 + 0.35 * signed(&mut rng))
                })
                .collect();
            let periodic = [i > 1, i > 2, i > 3];
            let vectors = [[a, 0.1, 0.0], [0.4, a, -0.2], [0.0, 0.3, a]];
            System {
                numbers: (0..atoms).map(|k| [6, 8, 1, 14, 29][(k + i) % 5]).collect(),
                positions,
                cell: Cell { vectors, periodic },
                charge: (i % 3) as i32 - 1,
                spin: 1,
                task: task.into(),
            }
        })
        .collect()
}

#[test]
fn random_structures_agree_with_double_precision_within_the_bounds_of_each_number_type() {
    let reference = on_cpu("1p2", Precision::F64);
    let systems = random_systems("omol");
    let systems: Vec<&System> = systems.iter().collect();
    let expected = answers(&reference, &systems);
    for (precision, limit) in [
        (Precision::F32, 1e-5),
        (Precision::Tf32, 1e-3),
        (Precision::F16, 1e-3),
    ] {
        let potential = on_device("1p2", precision);
        let found = answers(&potential, &systems);
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let forces = relative(&found.forces, &expected.forces);
            assert!(forces < limit, "{precision} {i}: forces off by {forces:e}");
            let energy = (found.energy - expected.energy).abs() / systems[i].len() as f64;
            assert!(
                energy < limit,
                "{precision} {i}: energy off by {energy:e} eV/atom"
            );
            if let (Some(found), Some(expected)) = (&found.stress, &expected.stress) {
                let stress = relative(found, expected);
                assert!(
                    stress < 10.0 * limit,
                    "{precision} {i}: stress off by {stress:e}"
                );
            }
        }
        // Any batch mates, and again: the same bits.
        let backwards: Vec<&System> = systems.iter().rev().copied().collect();
        let mut again = answers(&potential, &backwards);
        again.reverse();
        assert_eq!(again, found, "{precision}: in another order");
        let alone = answers(&potential, &systems[4..5]);
        assert_eq!(alone[0], found[4], "{precision}: alone");
    }
}

#[test]
fn the_quick_check_of_a_worker_passes_and_the_models_table_is_within_its_limits() {
    let potential = on_device("1p2", Precision::Tf32);
    let mut systems = selfcheck::systems(&["omol"], 2);
    systems.extend(selfcheck::systems(&["omat"], 2).into_iter().take(1));
    let rows = selfcheck::model(
        &potential,
        &on_cpu("1p2", Precision::F64),
        Precision::Tf32,
        &systems,
    )
    .unwrap();
    assert_eq!(rows.len(), 3);
    let table = selfcheck::table(&rows);
    assert!(rows.iter().all(|row| row.passed()), "{table}");
}

/// A model whose embedding of one element is not a number.
fn without_number_for(z: usize) -> Checkpoint {
    let path = data("nano-1p2.pt");
    let whole = Checkpoint::open(&path).unwrap();
    let table = whole.tensor("backbone.sphere_embedding.weight").unwrap();
    let row = table.at(z).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let storage = &bytes[table.storage()];
    let mut entries = forge::entries(&path);
    let (_, payload) = entries.iter_mut().find(|(_, e)| e == storage).unwrap();
    payload[4 * row.offset()..][..4 * row.len()]
        .copy_from_slice(bytemuck::cast_slice(&vec![f32::NAN; row.len()]));
    Checkpoint::open(forge::write_archive(&entries, false).path()).unwrap()
}

#[test]
fn what_is_not_finite_is_an_error_of_its_structure_and_of_no_other() {
    let systems: Vec<System> = ["ammonium", "water", "copper_primitive", "ethanol"]
        .map(golden)
        .to_vec();
    let systems: Vec<&System> = systems.iter().collect();
    let broken = Arc::new(without_number_for(8));
    for precision in [Precision::F32, Precision::Tf32, Precision::F16] {
        let make = |checkpoint: &Arc<Checkpoint>| {
            UmaPotential::on_cuda(checkpoint.clone(), options(precision), device()).unwrap()
        };
        let expected = answers(&make(&checkpoint("1p2")), &systems);
        let potential = make(&broken);
        // As it is, and as a graph.
        for run in 0..3 {
            let found = evaluate(&potential, &systems, MAX_EDGES);
            for (i, found) in found.into_iter().enumerate() {
                let what = format!("{precision}, run {run}, system {i}");
                match systems[i].numbers.contains(&8) {
                    true => {
                        let error = found.unwrap_err();
                        assert_eq!(
                            error,
                            EvaluationError::NotFinite { what: "energy" },
                            "{what}"
                        );
                    }
                    false => assert_eq!(found.unwrap(), expected[i], "{what}"),
                }
            }
        }
        // A worker tells the session of that structure, and goes on with the others.
        let states: Vec<State> = systems.iter().map(|&s| at_rest(s.clone())).collect();
        let outcomes = try_run(&steps(0, &states), &potential, MAX_EDGES).unwrap();
        for (outcome, system) in outcomes.iter().zip(&systems) {
            assert_eq!(outcome.result.is_err(), system.numbers.contains(&8));
        }
    }
}

#[test]
fn a_structure_that_does_not_fit_is_refused_with_the_numbers_before_anything_is_allocated() {
    let device = device();
    let small = UmaOptions {
        memory_bytes: 3 << 20,
        ..options(Precision::F32)
    };
    let potential = UmaPotential::on_cuda(checkpoint("1p2"), small, device.clone()).unwrap();
    let systems = random_systems("omol");
    let (little, large) = (&systems[0], &systems[5]);
    let alone = answers(&potential, &[little]);
    let peak = device.memory().unwrap().peak;
    let found = evaluate(&potential, &[little, large, little], MAX_EDGES);
    assert_eq!(found[0].as_ref().unwrap(), &alone[0]);
    assert_eq!(found[2].as_ref().unwrap(), &alone[0]);
    let error = found[1].as_ref().unwrap_err();
    assert!(
        matches!(error, EvaluationError::OutOfMemory { atoms: 26, limit_mib: 3, needed_mib, .. }
            if *needed_mib > 3),
        "{error}"
    );
    let grown = device.memory().unwrap().peak - peak;
    assert!(grown < 3 << 20, "{grown} bytes more");
}
