//! `predict`: structures in, the same structures with energies, forces and stresses out.

mod common;

use common::LennardJones;
use std::io::Cursor;
use std::sync::Mutex;
use umaserve::neighbors::NeighborList;
use umaserve::potential::{EdgeGradients, EvaluationError, Potential, evaluate};
use umaserve::predict::{PredictError, PredictOptions, Summary, predict, predict_file};
use umaserve::structure_file::{Extra, Frame, Value, read_frames, write_frame};
use umaserve::system::{Cell, System};

fn frames(text: &[u8]) -> Vec<Frame> {
    read_frames(Cursor::new(text), "out", 1000)
        .collect::<Result<_, _>>()
        .unwrap()
}

fn run(input: &str, options: &PredictOptions) -> (Result<Summary, PredictError>, Vec<u8>) {
    let mut output = Vec::new();
    let potential = LennardJones::default();
    let result = predict(
        &potential,
        input.as_bytes(),
        "in.xyz",
        &mut output,
        "out.xyz",
        options,
    );
    (result, output)
}

/// Molecules and crystals of different sizes.
fn input(count: usize) -> (String, Vec<System>) {
    let mut bytes = Vec::new();
    let systems: Vec<System> = (0..count)
        .map(|i| System {
            numbers: vec![[6, 8, 1][i % 3]; 1 + i % 4],
            positions: (0..1 + i % 4)
                .map(|k| [1.9 * k as f64, 0.1 * i as f64, 0.3])
                .collect(),
            cell: match i % 2 {
                0 => Cell::NONE,
                _ => Cell::from_row_major([9.0, 0.0, 0.0, 0.5, 4.0, 0.0, 0.0, 0.0, 5.0], [true; 3]),
            },
            charge: i as i32,
            spin: 2,
            task: "omat".to_owned(),
        })
        .collect();
    for system in &systems {
        write_frame(&mut bytes, system, None, Extra::default()).unwrap();
    }
    (String::from_utf8(bytes).unwrap(), systems)
}

#[test]
fn every_frame_is_evaluated_in_order_whatever_the_batches() {
    let (text, systems) = input(37);
    let members: Vec<&System> = systems.iter().collect();
    let expected = evaluate(&LennardJones::default(), &members, 1000);
    let mut outputs = Vec::new();
    let mut batches = Vec::new();
    for batch_edges in [0, 100, 1_000_000] {
        let options = PredictOptions {
            batch_edges,
            ..PredictOptions::default()
        };
        let (result, output) = run(&text, &options);
        let summary = result.unwrap();
        assert_eq!(summary.frames, 37);
        assert_eq!(
            summary.atoms,
            systems.iter().map(System::len).sum::<usize>()
        );
        batches.push(summary.batches);
        outputs.push(output);
    }
    assert!(
        batches[0] > batches[1] && batches[1] > batches[2],
        "{batches:?}"
    );
    assert_eq!(batches[2], 1);
    assert_eq!(outputs[0], outputs[1]);
    assert_eq!(outputs[0], outputs[2]);
    for ((frame, system), expected) in frames(&outputs[0]).iter().zip(&systems).zip(expected) {
        assert_eq!(&frame.system, system);
        assert_eq!(frame.evaluation(), expected.ok());
        assert_eq!(frame.stress.is_some(), system.cell.is_periodic());
    }
}

/// Remembers what it was asked.
#[derive(Default)]
struct Asked(Mutex<Vec<System>>);

impl Potential for Asked {
    fn cutoff_angstrom(&self) -> f64 {
        6.0
    }
    fn max_neighbors(&self) -> usize {
        300
    }
    fn check(&self, _: &System) -> Result<(), EvaluationError> {
        Ok(())
    }
    fn edge_gradients(
        &self,
        batch: &[(&System, &NeighborList)],
    ) -> Vec<Result<EdgeGradients, EvaluationError>> {
        self.0
            .lock()
            .unwrap()
            .extend(batch.iter().map(|(s, _)| (*s).clone()));
        batch
            .iter()
            .map(|(_, list)| {
                Ok(EdgeGradients {
                    energy: 0.0,
                    gradient: vec![[0.0; 3]; list.len()],
                })
            })
            .collect()
    }
}

#[test]
fn task_charge_and_spin_come_from_the_frame_or_else_from_the_rules() {
    let ask = |comment: &str, default_task: Option<&str>| {
        let potential = Asked::default();
        let options = PredictOptions {
            default_task: default_task.map(str::to_owned),
            ..PredictOptions::default()
        };
        let text = format!("1\n{comment}\nH 0 0 0\n");
        let mut output = Vec::new();
        predict(&potential, text.as_bytes(), "i", &mut output, "o", &options).unwrap();
        let system = potential.0.into_inner().unwrap().remove(0);
        let written = frames(&output).remove(0).system;
        assert_eq!(written, system);
        (system.task, system.charge, system.spin)
    };
    let is = |task: &str, charge, spin| (task.to_owned(), charge, spin);
    assert_eq!(ask("", Some("omol")), is("omol", 0, 1));
    assert_eq!(ask("", Some("omat")), is("omat", 0, 0));
    assert_eq!(ask("", None), is("", 0, 0));
    assert_eq!(ask("task=omol", Some("omat")), is("omol", 0, 1));
    assert_eq!(
        ask("task=omat spin=3 charge=-2", Some("omol")),
        is("omat", -2, 3)
    );
    // Said, although it is the value of "not given".
    assert_eq!(ask("task=omol spin=0", None), is("omol", 0, 0));
}

#[test]
fn the_rest_of_a_frame_is_kept_and_old_results_are_not() {
    let text = "2\nProperties=species:S:1:pos:R:3:tags:I:1:forces:R:3:magmoms:R:1 name=\"a b\" \
                energy=5 stress=\"1 2 3 4 5 6 7 8 9\" free_energy=4 pbc=F\n\
                C 0 0 0 4 1 1 1 0.5\nC 0 0 2 5 1 1 1 0.5\n";
    let (result, output) = run(text, &PredictOptions::default());
    result.unwrap();
    let frame = frames(&output).remove(0);
    assert_eq!(frame.info("name"), Some(&Value::Text("a b".to_owned())));
    assert_eq!(frame.info("free_energy"), None);
    assert!(frame.array("tags").is_some() && frame.array("magmoms").is_none());
    assert!(frame.energy.unwrap() < 1.0 && frame.stress.is_none());
    assert_ne!(frame.forces.unwrap()[0], [1.0; 3]);
}

#[test]
fn a_bad_frame_is_named_and_leaves_no_file() {
    let (good, _) = input(3);
    let folder = tempfile::tempdir().unwrap();
    let [input, output] = ["in.xyz", "out.xyz"].map(|name| folder.path().join(name));
    let attempt = |text: &str| {
        std::fs::write(&input, text).unwrap();
        let potential = LennardJones::default();
        predict_file(&potential, &input, &output, &PredictOptions::default())
    };
    for (bad, parts) in [
        (
            "2\n\nU 0 0 0\nC 0 0 1\n",
            ["frame 3 (UC)", "atomic number 92"],
        ),
        (
            "1\n\nC 0 0 x\n",
            ["line 15 (frame 3)", "\"x\" in the column \"pos\""],
        ),
        ("1\npbc=T\nC 0 0 0\n", ["frame 3 (C)", "no volume"]),
        ("0\n\n", ["frame 3 (no atoms)", "has no atoms"]),
        (
            "2\n\nC 0 0 0\nC 0 0 1e-40\n",
            ["frame 3 (C2)", "energy of the system is not finite"],
        ),
    ] {
        let error = attempt(&format!("{good}{bad}{good}"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("in.xyz"), "{error}");
        for part in parts {
            assert!(error.contains(part), "{error}: {part}");
        }
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "only the input is there: {left:?}");
    }
    assert_eq!(attempt(&good).unwrap().frames, 3);
    assert_eq!(frames(&std::fs::read(&output).unwrap()).len(), 3);
    // A failure leaves the output of an earlier run alone.
    let before = std::fs::read(&output).unwrap();
    attempt("x").unwrap_err();
    assert_eq!(std::fs::read(&output).unwrap(), before);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);

    let missing = folder.path().join("missing.xyz");
    let options = PredictOptions::default();
    let error = predict_file(&LennardJones::default(), &missing, &output, &options);
    assert!(matches!(error, Err(PredictError::Open { .. })));
    let nowhere = folder.path().join("no/such/folder/out.xyz");
    let error = predict_file(&LennardJones::default(), &input, &nowhere, &options);
    assert!(matches!(error, Err(PredictError::Write { .. })));
}
