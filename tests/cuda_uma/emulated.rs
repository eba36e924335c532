//! The device as a worker uses it, and what becomes of one that fails: seen through what only the kernels
//! on the host tell and do.

use super::*;
use crate::common::device::illegal_address;
use crate::common::link::Script;
use std::sync::{Condvar, Mutex};
use std::time::Duration;
use umaserve::backend::cuda::CudaError;
use umaserve::backend::cuda::device::Device;
use umaserve::backend::cuda::host::HostDevice;
use umaserve::comm::Outcome;
use umaserve::neighbors::neighbor_list;
use umaserve::worker::{PotentialSource, serve, serve_reviving};

fn on_host(precision: Precision, device: &Arc<HostDevice>) -> UmaPotential {
    UmaPotential::on_cuda(checkpoint("1p2"), options(precision), device.clone()).unwrap()
}

fn stepped(outcomes: Vec<Outcome>) -> Vec<State> {
    outcomes.into_iter().map(|o| o.result.unwrap()).collect()
}

#[test]
fn a_worker_steps_on_the_device_with_one_graph_and_counts_its_edges() {
    let device = Arc::new(HostDevice::default());
    let potential = on_host(Precision::F32, &device);
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
fn two_shards_in_hand_at_a_time_have_the_outcomes_of_one_after_the_other() {
    let device = Arc::new(HostDevice::default());
    let potential = on_host(Precision::F32, &device);
    let states: Vec<State> = random_systems("omol").into_iter().map(at_rest).collect();
    let shards: Vec<Shard> = (0..4).map(|k| steps(k as u64, &states[k..k + 2])).collect();
    let expected = shards
        .iter()
        .map(|shard| (shard.id, try_run(shard, &potential, MAX_EDGES).unwrap()));
    let expected: Vec<(u64, Vec<Outcome>)> = expected.collect();
    let mut script = Script::new(shards).ready();
    serve(&mut script, &potential, MAX_EDGES);
    let said = &script.said;
    // The second was taken before the first was answered.
    assert_eq!(said[0], "beside 1", "{said:?}");
    let ids = said
        .iter()
        .filter_map(|s| s.strip_prefix("answer ")?.parse().ok());
    let mut found: Vec<(u64, Vec<Outcome>)> = ids.zip(script.answers).collect();
    found.sort_by_key(|(id, _)| *id);
    assert_eq!(found, expected);
}

/// The inputs of the second shard are copied, and its kernels queued, while the first is waited for.
#[test]
fn a_second_shard_is_on_the_device_before_the_first_is_done() {
    let device = Arc::new(HostDevice::default());
    let potential = on_host(Precision::F32, &device);
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
    let shards = [1, 2, 3].map(|id| steps(id, &states));
    let mut script = Script::new(shards).before(move |id| {
        if id == 2 {
            device.fail_next_launch(illegal_address());
        }
    });
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
    let potential = on_host(Precision::F32, &device);
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

/// What an evaluation of a small molecule takes is the time from one kernel to the next.
#[test]
fn an_evaluation_has_few_kernels_and_fills_only_what_nobody_writes() {
    let device = Arc::new(HostDevice::default());
    let potential = on_host(Precision::Tf32, &device);
    let systems = [golden("ethanol")];
    let systems: Vec<&System> = systems.iter().collect();
    let mut work = [0; 3];
    let mut bits = Vec::new();
    for _ in 0..4 {
        let before = device.work();
        bits.push(answers(&potential, &systems));
        work = std::array::from_fn(|k| device.work()[k] - before[k]);
    }
    println!("kernels, copies, fillings: {work:?}");
    let layers = checkpoint("1p2").config.num_layers as u64;
    // What is before and behind the blocks, the search and the first layers of all radial networks among it.
    assert_eq!(work[0], 30 + 29 * layers);
    // The inputs, from where they were copied to.
    assert_eq!(work[1], 2);
    // Rows of the last norm that no head reads.
    assert_eq!(work[2], 1);
    assert!(bits.iter().all(|other| *other == bits[0]));
}
