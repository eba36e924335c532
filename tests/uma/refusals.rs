//! What UMA does not evaluate is refused with the reason, beside answers for everything else.

use super::{MAX_EDGES, MODELS, answers, checkpoint, golden, potential};
use umaserve::neighbors::neighbor_list;
use umaserve::potential::uma::{Precision, UmaOptions, UmaPotential};
use umaserve::potential::{EvaluationError, Potential, evaluate};
use umaserve::system::{Cell, System, SystemError};

fn atom(z: u8) -> System {
    System {
        numbers: vec![z],
        positions: vec![[0.3, -0.2, 0.1]],
        spin: 1,
        task: "omol".into(),
        ..System::default()
    }
}

fn refusal(potential: &UmaPotential, system: &System) -> EvaluationError {
    // Between two good ones, which get their answers.
    let good = golden("water");
    let mut answers = evaluate(potential, &[&good, system, &good], MAX_EDGES);
    let last = answers.pop().unwrap().unwrap();
    let error = answers.pop().unwrap().expect_err("a refusal");
    assert_eq!(answers.pop().unwrap().unwrap(), last);
    error
}

#[test]
fn what_a_model_does_not_know_is_named() {
    for model in MODELS {
        let potential = potential(model, Precision::F32);
        let name = potential.config().name.clone();
        let changed = |change: &dyn Fn(&mut System)| {
            let mut system = golden("water");
            change(&mut system);
            refusal(&potential, &system)
        };
        let says = |error: EvaluationError, words: &[&str]| {
            assert!(
                matches!(error, EvaluationError::Unsupported(_)),
                "{error:?}"
            );
            let message = error.to_string();
            for word in words {
                assert!(
                    message.contains(word),
                    "{model}: {message:?} without {word:?}"
                );
            }
        };
        let error = changed(&|s| s.task = "alchemy".into());
        says(error, &["'alchemy'", &name, "omol", "omat"]);
        says(changed(&|s| s.task = String::new()), &["''", "omol"]);
        let error = changed(&|s| s.numbers[1] = 100);
        says(error, &["atom 1", "100", &name, "1 to 99"]);
        for charge in [101, -101, i32::MAX, i32::MIN] {
            let error = changed(&|s| s.charge = charge);
            says(error, &[&format!("charge {charge}"), "-100 to 100"]);
        }
        for spin in [101, -1, i32::MIN] {
            let error = changed(&|s| s.spin = spin);
            says(error, &[&format!("spin multiplicity {spin}"), "0 to 100"]);
        }

        let empty = changed(&|s| *s = System::default());
        assert_eq!(empty, EvaluationError::System(SystemError::Empty));
        let error = potential.check(&System {
            task: "omol".into(),
            ..System::default()
        });
        says(error.unwrap_err(), &["no atoms"]);
        for bad in [f64::NAN, f64::INFINITY] {
            assert_eq!(
                changed(&|s| s.positions[2][1] = bad),
                EvaluationError::System(SystemError::PositionNotFinite { atom: 2 })
            );
        }
        assert!(matches!(
            changed(&|s| s.cell.vectors[0][0] = f64::NAN),
            EvaluationError::System(SystemError::CellNotFinite(_))
        ));
    }
}

#[test]
fn the_ends_of_the_ranges_are_evaluated() {
    for model in MODELS {
        let potential = potential(model, Precision::F32);
        let mut energies = Vec::new();
        for (z, charge, spin) in [(1, -100, 0), (99, 100, 100), (50, 0, 1)] {
            let mut system = golden("water");
            system.numbers[0] = z;
            (system.charge, system.spin) = (charge, spin);
            energies.push(answers(&potential, &[system])[0].energy);
        }
        assert!(energies.iter().all(|e| e.is_finite()));
    }
}

#[test]
fn lone_atoms_are_for_models_trained_on_them() {
    for model in MODELS {
        let potential = potential(model, Precision::F64);
        let name = &potential.config().name;
        let lone = evaluate(&potential, &[&atom(2)], MAX_EDGES).remove(0);
        if potential.config().supports_single_atoms {
            let lone = lone.unwrap();
            assert_eq!(lone.forces, [[0.0; 3]]);
            assert!(lone.energy.is_finite());
        } else {
            let message = refusal(&potential, &atom(2)).to_string();
            assert!(
                message.contains(name.as_str()) && message.contains("lone atoms"),
                "{message}"
            );
            lone.unwrap_err();
        }
        // A crystal of one atom per cell is no lone atom, however far its images are.
        let mut crystal = atom(2);
        crystal.cell = Cell {
            vectors: [[20.0, 0.0, 0.0], [0.0, 20.0, 0.0], [0.0, 0.0, 20.0]],
            periodic: [true; 3],
        };
        let answer = &answers(&potential, &[crystal])[0];
        assert_eq!(answer.forces, [[0.0; 3]]);
        assert_eq!(answer.stress, Some([[0.0; 3]; 3]));
    }
    let models = MODELS.map(|m| checkpoint(m).config.supports_single_atoms);
    assert_eq!(models, [false, true, false, false]);
}

fn limited(memory_bytes: usize) -> UmaPotential {
    let options = UmaOptions {
        precision: Precision::F32,
        memory_bytes,
    };
    UmaPotential::on_cpu(checkpoint("1p2"), options).unwrap()
}

#[test]
fn a_structure_beyond_the_memory_limit_is_refused_with_numbers() {
    let potential = limited(4 << 20);
    let large = golden("copper_rattled");
    let list = neighbor_list(
        &large,
        potential.cutoff_angstrom(),
        potential.max_neighbors(),
        MAX_EDGES,
    )
    .unwrap();
    match refusal(&potential, &large) {
        EvaluationError::OutOfMemory {
            atoms,
            edges,
            needed_mib,
            limit_mib,
        } => {
            assert_eq!((atoms, edges, limit_mib), (32, list.len(), 4));
            assert!(needed_mib > 4);
            let message = refusal(&potential, &large).to_string();
            for number in [atoms, edges, needed_mib, limit_mib] {
                assert!(message.contains(&number.to_string()), "{message}");
            }
            // With what it asks for it is evaluated.
            let answer = evaluate(&limited((needed_mib + 1) << 20), &[&large], MAX_EDGES);
            answer[0].as_ref().unwrap();
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_batch_cut_by_the_memory_limit_gives_the_same_bits() {
    let systems: Vec<System> = [
        "silicon_triclinic",
        "water",
        "graphene_2d",
        "silicon_triclinic",
        "ethanol",
        "copper_rattled",
        "salt_sheared",
    ]
    .map(golden)
    .into();
    let whole = answers(&potential("1p2", Precision::F32), &systems);
    let batch: Vec<&System> = systems.iter().collect();
    let mut refused = Vec::new();
    for mib in [4, 8, 16, 32, 64] {
        let parts = evaluate(&limited(mib << 20), &batch, MAX_EDGES);
        refused.push(parts.iter().filter(|a| a.is_err()).count());
        for (i, (part, whole)) in parts.iter().zip(&whole).enumerate() {
            match part {
                Ok(part) => assert_eq!(part, whole, "structure {i} in {mib} MiB"),
                Err(error) => {
                    assert!(
                        matches!(error, EvaluationError::OutOfMemory { .. }),
                        "{error}"
                    );
                }
            }
        }
    }
    assert!(refused[0] > 0 && refused[4] == 0, "{refused:?}");
    assert!(refused.is_sorted_by(|a, b| a >= b), "{refused:?}");
}
