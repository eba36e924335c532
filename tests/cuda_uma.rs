//! Whole models on the CUDA backend, over the kernels compiled for the host: positions in, energies,
//! forces and stress out, as a worker asks for them; and what becomes of a device that fails.
#![cfg(feature = "host-kernels")]

mod common;
#[allow(dead_code)] // Its other functions are for tests of the reader.
#[path = "checkpoint/forge.rs"]
mod forge;

use common::goldens::{Entry, checkpoint, difference, golden, goldens, json, largest, options};
use common::goldens::{data, potential as on_cpu};
use common::jobs::{at_rest, shard};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::Deserialize;
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use umaserve::backend::cuda::CudaError;
use umaserve::backend::cuda::device::Device;
use umaserve::backend::cuda::host::HostDevice;
use umaserve::comm::{Link, Outcome, Shard, Task};
use umaserve::dynamics::{Method, State};
use umaserve::neighbors::neighbor_list;
use umaserve::potential::uma::{Checkpoint, Precision, UmaOptions, UmaPotential};
use umaserve::potential::{EvaluationError, Potential, evaluate};
use umaserve::selfcheck::{self, programs::signed};
use umaserve::system::{Cell, Evaluation, System};
use umaserve::worker::{PotentialSource, serve, serve_reviving, try_run};

const MAX_EDGES: usize = 1_000_000;

fn on_device(model: &str, precision: Precision, device: &Arc<HostDevice>) -> UmaPotential {
    UmaPotential::on_cuda(checkpoint(model), options(precision), device.clone()).unwrap()
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
        let device = Arc::new(HostDevice::default());
        let potential = on_device(model, Precision::F32, &device);
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
            let device = Arc::new(HostDevice::default());
            let potential = on_device(model, precision, &device);
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
        let device = Arc::new(HostDevice::default());
        let potential = on_device("1p2", precision, &device);
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
    let device = Arc::new(HostDevice::default());
    let potential = on_device("1p2", Precision::Tf32, &device);
    let mut systems = selfcheck::systems(&["omol"]);
    systems.extend(selfcheck::systems(&["omat"]).into_iter().take(1));
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
            let device = Arc::new(HostDevice::default());
            UmaPotential::on_cuda(checkpoint.clone(), options(precision), device).unwrap()
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

// --- as a worker asks ------------------------------------------------------------------------

const NVE: Method = Method::VelocityVerlet { timestep_fs: 0.5 };

fn steps(id: u64, states: &[State]) -> Shard {
    shard(
        id,
        states.iter().map(|state| (Task::Step(NVE), state.clone())),
    )
}

fn stepped(outcomes: Vec<Outcome>) -> Vec<State> {
    outcomes.into_iter().map(|o| o.result.unwrap()).collect()
}

#[test]
fn a_worker_steps_on_the_device_with_one_graph_and_counts_its_edges() {
    let device = Arc::new(HostDevice::default());
    let potential = on_device("1p2", Precision::F32, &device);
    let systems = random_systems("omol");
    let mut states: Vec<State> = systems.into_iter().map(at_rest).collect();
    for step in 0..4 {
        let before = device.graph_launches();
        let outcomes = try_run(&steps(step, &states), &potential, MAX_EDGES).unwrap();
        for (outcome, state) in outcomes.iter().zip(&states) {
            let moved = &outcome.result.as_ref().unwrap().system;
            let (cutoff, kept) = (potential.cutoff_angstrom(), potential.max_neighbors());
            let list = neighbor_list(moved, cutoff, kept, MAX_EDGES).unwrap();
            assert_eq!(outcome.edges, list.len() as u64);
            assert_ne!(moved.positions, state.system.positions);
        }
        // The first evaluations run as they are and are captured then.
        if step >= 2 {
            assert_eq!(device.graph_launches(), before + 1, "step {step}");
        }
        states = stepped(outcomes);
    }
}

#[test]
fn a_structure_that_does_not_fit_is_refused_with_the_numbers_before_anything_is_allocated() {
    let device = Arc::new(HostDevice::default());
    let small = UmaOptions {
        memory_bytes: 3 << 20,
        ..options(Precision::F32)
    };
    let potential = UmaPotential::on_cuda(checkpoint("1p2"), small, device.clone()).unwrap();
    let device: &dyn Device = &*device;
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

/// Hands out shards and notes what the worker says.
struct Script {
    shards: std::vec::IntoIter<Shard>,
    device: Arc<HostDevice>,
    /// Shards before which the device is made to fail.
    strikes: Vec<u64>,
    said: Vec<String>,
    answers: Vec<Vec<Outcome>>,
}

impl Link for Script {
    fn take(&mut self) -> Option<Arc<Shard>> {
        let shard = self.shards.next()?;
        if self.strikes.contains(&shard.id) {
            self.device.fail_next_launch(illegal_address());
        }
        Some(Arc::new(shard))
    }

    fn answer(&mut self, shard: u64, outcomes: Vec<Outcome>) {
        self.said.push(format!("answer {shard}"));
        self.answers.push(outcomes);
    }

    fn tell_unfit(&mut self, reason: &str) {
        self.said.push(format!("unfit: {reason}"));
    }

    fn tell_fit(&mut self) {
        self.said.push("fit".into());
    }
}

fn illegal_address() -> CudaError {
    CudaError::Driver {
        call: "cuStreamSynchronize (the last kernel launched was a graph)".into(),
        name: "CUDA_ERROR_ILLEGAL_ADDRESS".into(),
        text: "an illegal memory access was encountered".into(),
        sticky: true,
    }
}

/// Has all its shards ready at once.
struct Ready(Script);

impl Link for Ready {
    fn take(&mut self) -> Option<Arc<Shard>> {
        self.0.take()
    }

    fn try_take(&mut self) -> Option<Arc<Shard>> {
        let shard = self.0.take()?;
        self.0.said.push(format!("beside {}", shard.id));
        Some(shard)
    }

    fn answer(&mut self, shard: u64, outcomes: Vec<Outcome>) {
        self.0.answer(shard, outcomes);
    }

    fn tell_unfit(&mut self, reason: &str) {
        self.0.tell_unfit(reason);
    }

    fn tell_fit(&mut self) {
        self.0.tell_fit();
    }
}

#[test]
fn two_shards_in_hand_at_a_time_have_the_outcomes_of_one_after_the_other() {
    let device = Arc::new(HostDevice::default());
    let potential = on_device("1p2", Precision::F32, &device);
    let states: Vec<State> = random_systems("omol").into_iter().map(at_rest).collect();
    let shards: Vec<Shard> = (0..4).map(|k| steps(k as u64, &states[k..k + 2])).collect();
    let expected = shards
        .iter()
        .map(|shard| (shard.id, try_run(shard, &potential, MAX_EDGES).unwrap()));
    let expected: Vec<(u64, Vec<Outcome>)> = expected.collect();
    let mut ready = Ready(Script {
        shards: shards.into_iter(),
        device,
        strikes: vec![],
        said: Vec::new(),
        answers: Vec::new(),
    });
    serve(&mut ready, &potential, MAX_EDGES);
    let said = &ready.0.said;
    // The second was taken before the first was answered.
    assert_eq!(said[0], "beside 1", "{said:?}");
    let ids = said
        .iter()
        .filter_map(|s| s.strip_prefix("answer ")?.parse().ok());
    let mut found: Vec<(u64, Vec<Outcome>)> = ids.zip(ready.0.answers).collect();
    found.sort_by_key(|(id, _)| *id);
    assert_eq!(found, expected);
}

/// The inputs of the second shard are copied, and its kernels queued, while the first is waited for.
#[test]
fn a_second_shard_is_on_the_device_before_the_first_is_done() {
    let device = Arc::new(HostDevice::default());
    let potential = on_device("1p2", Precision::F32, &device);
    let systems = random_systems("omol");
    let parts = [&systems[..2], &systems[2..4]].map(|part| part.iter().collect::<Vec<_>>());
    let expected = parts.clone().map(|part| answers(&potential, &part));
    let before = device.uploads_beside();
    // Whoever waits for a shard goes on only when another waits too.
    let waiting = (Mutex::new(0), Condvar::new());
    device.on_wait(move || {
        let (count, changed) = &waiting;
        let mut count = count.lock().unwrap();
        *count += 1;
        changed.notify_all();
        let patience = Duration::from_secs(100);
        let waited = changed
            .wait_timeout_while(count, patience, |count| *count < 2)
            .unwrap();
        let late = waited.1.timed_out();
        assert!(!late, "nobody else could queue a shard meanwhile");
    });
    let found = std::thread::scope(|scope| {
        let threads = parts.each_ref().map(|part| {
            let potential = &potential;
            scope.spawn(move || answers(potential, part))
        });
        threads.map(|thread| thread.join().unwrap())
    });
    assert_eq!(found, expected);
    assert_eq!(device.uploads_beside(), before + 2);
}

#[test]
fn a_cuda_error_takes_the_worker_out_until_a_fresh_context_gives_the_same_numbers() {
    let device = Arc::new(HostDevice::default());
    let (of_source, checkpoint) = (device.clone(), checkpoint("1p2"));
    let create = move || -> Result<Arc<dyn Potential>, String> {
        if (*of_source).unhealthy().is_some() {
            of_source.recreate().map_err(|error| error.to_string())?;
        }
        let options = options(Precision::Tf32);
        let potential = UmaPotential::on_cuda(checkpoint.clone(), options, of_source.clone())?;
        Ok(Arc::new(potential))
    };
    let states: Vec<State> = random_systems("omol")
        .into_iter()
        .take(3)
        .map(at_rest)
        .collect();
    let potential = create().unwrap();
    let source = PotentialSource {
        create: Box::new(create),
        probe: states[0].system.clone(),
    };
    let mut script = Script {
        shards: [1, 2, 3].map(|id| steps(id, &states)).to_vec().into_iter(),
        device: device.clone(),
        strikes: vec![2],
        said: Vec::new(),
        answers: Vec::new(),
    };
    assert_eq!(
        serve_reviving(&mut script, potential, &source, MAX_EDGES),
        None
    );
    assert_eq!(script.said.len(), 4, "{:?}", script.said);
    assert_eq!(script.said[0], "answer 1");
    let unfit = &script.said[1];
    for part in [
        "unfit: ",
        "CUDA_ERROR_ILLEGAL_ADDRESS",
        "illegal memory access",
    ] {
        assert!(unfit.contains(part), "{unfit}");
    }
    // Shard 2 is not answered: others do it. Shard 3 has the bits of shard 1.
    assert_eq!(script.said[2..], ["fit", "answer 3"]);
    assert_eq!(script.answers[1], script.answers[0]);
}

#[test]
fn a_backend_goes_on_after_an_error_with_a_fresh_context_and_the_same_bits() {
    let device = Arc::new(HostDevice::default());
    let potential = on_device("1p2", Precision::F32, &device);
    let systems = random_systems("omol");
    let systems: Vec<&System> = systems.iter().take(3).collect();
    let expected = answers(&potential, &systems);
    for sticky in [true, false] {
        device.fail_next_launch(match sticky {
            true => illegal_address(),
            false => CudaError::Driver {
                call: "launch of mix_f32".into(),
                name: "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES".into(),
                text: "too many resources requested for launch".into(),
                sticky: false,
            },
        });
        for answer in evaluate(&potential, &systems, MAX_EDGES) {
            let error = answer.unwrap_err();
            assert!(matches!(error, EvaluationError::Device(_)), "{error}");
            assert!(error.to_string().contains("CUDA_ERROR_"), "{error}");
        }
        assert_eq!((*device).unhealthy().is_some(), sticky);
        assert_eq!(answers(&potential, &systems), expected, "sticky: {sticky}");
    }
}
