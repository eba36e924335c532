//! The words between ranks: everything that travels arrives bit for bit, and bytes that no
//! sender has written are an error.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use umaserve::comm::thread::{ThreadLink, ThreadWorkers};
use umaserve::comm::wire::{
    WireError, decode_outcomes, decode_shard, encode_outcomes, encode_shard,
};
use umaserve::comm::{Job, Link, Outcome, SendError, SessionId, Shard, Task, WorkerEvent, Workers};
use umaserve::dynamics::{History, Method, State};
use umaserve::system::{Cell, Evaluation, System};

/// Any bit pattern, NaN and infinities too.
fn number() -> impl Strategy<Value = f64> {
    any::<u64>().prop_map(f64::from_bits)
}

fn vectors() -> impl Strategy<Value = Vec<[f64; 3]>> {
    vec([number(), number(), number()], 0..6)
}

fn numbers() -> impl Strategy<Value = Vec<f64>> {
    vec(number(), 0..10)
}

fn matrix() -> impl Strategy<Value = [[f64; 3]; 3]> {
    let row = || [number(), number(), number()];
    [row(), row(), row()]
}

fn method() -> impl Strategy<Value = Method> {
    prop_oneof![
        number().prop_map(|timestep_fs| Method::VelocityVerlet { timestep_fs }),
        (number(), number(), number()).prop_map(|(timestep_fs, temperature_kelvin, friction)| {
            Method::Langevin {
                timestep_fs,
                temperature_kelvin,
                friction,
            }
        }),
        number().prop_map(|max_step_angstrom| Method::Bfgs { max_step_angstrom }),
        number().prop_map(|max_step_angstrom| Method::Lbfgs { max_step_angstrom }),
        number().prop_map(|max_step_angstrom| Method::Fire { max_step_angstrom }),
    ]
}

fn history() -> impl Strategy<Value = History> {
    prop_oneof![
        Just(History::None),
        (numbers(), vectors(), vectors()).prop_map(|(hessian, positions, forces)| {
            History::Bfgs {
                hessian,
                positions,
                forces,
            }
        }),
        (
            vec(numbers(), 0..4),
            vec(numbers(), 0..4),
            vectors(),
            vectors()
        )
            .prop_map(|(steps, changes, positions, forces)| History::Lbfgs {
                steps,
                changes,
                positions,
                forces,
            }),
        (vectors(), number(), number(), any::<u32>()).prop_map(
            |(velocities, dt, alpha, steps_uphill_free)| History::Fire {
                velocities,
                dt,
                alpha,
                steps_uphill_free,
            }
        ),
    ]
}

fn state() -> impl Strategy<Value = State> {
    let system = (
        vec(any::<u8>(), 0..6),
        vectors(),
        matrix(),
        any::<[bool; 3]>(),
        any::<i32>(),
        any::<i32>(),
        ".{0,8}",
    )
        .prop_map(
            |(numbers, positions, vectors, periodic, charge, spin, task)| System {
                numbers,
                positions,
                cell: Cell { vectors, periodic },
                charge,
                spin,
                task,
            },
        );
    let evaluation = (number(), vectors(), proptest::option::of(matrix())).prop_map(
        |(energy, forces, stress)| Evaluation {
            energy,
            forces,
            stress,
        },
    );
    (
        system,
        vectors(),
        proptest::option::of(evaluation),
        history(),
        any::<u64>(),
        any::<u64>(),
    )
        .prop_map(
            |(system, velocities, evaluation, history, step, seed)| State {
                system,
                velocities,
                evaluation,
                history,
                step,
                seed,
            },
        )
}

fn shard() -> impl Strategy<Value = Shard> {
    let task = prop_oneof![Just(Task::Evaluate), method().prop_map(Task::Step)];
    let job =
        (any::<u64>(), any::<u64>(), task, state()).prop_map(|(session, serial, task, state)| {
            Job {
                session: SessionId(session),
                serial,
                task,
                state,
            }
        });
    (any::<u64>(), vec(job, 0..4)).prop_map(|(id, jobs)| Shard { id, jobs })
}

fn outcomes() -> impl Strategy<Value = Vec<Outcome>> {
    let result = prop_oneof![state().prop_map(Ok), ".{0,20}".prop_map(Err)];
    let outcome = (any::<u64>(), any::<u64>(), result, any::<u64>()).prop_map(
        |(session, serial, result, edges)| Outcome {
            session: SessionId(session),
            serial,
            result,
            edges,
        },
    );
    vec(outcome, 0..4)
}

/// Two values are the same to the last bit: `{:?}` keeps signs and NaN, unlike `==`, and the
/// encoding keeps NaN payloads.
fn same<T: std::fmt::Debug>(a: &T, b: &T) -> bool {
    format!("{a:?}") == format!("{b:?}")
}

proptest! {
    #[test]
    fn shards_arrive_bit_for_bit(sent in shard()) {
        let bytes = encode_shard(&sent);
        let received = decode_shard(&bytes).unwrap();
        prop_assert!(same(&sent, &received));
        prop_assert_eq!(encode_shard(&received), bytes);
    }

    #[test]
    fn outcomes_arrive_bit_for_bit(id in any::<u64>(), sent in outcomes()) {
        let bytes = encode_outcomes(id, &sent);
        let (received_id, received) = decode_outcomes(&bytes).unwrap();
        prop_assert_eq!(id, received_id);
        prop_assert!(same(&sent, &received));
        prop_assert_eq!(encode_outcomes(id, &received), bytes);
    }

    #[test]
    fn a_message_that_is_cut_short_is_an_error(sent in shard(), at in any::<prop::sample::Index>()) {
        let bytes = encode_shard(&sent);
        let cut = at.index(bytes.len());
        prop_assert!(decode_shard(&bytes[..cut]).is_err());
    }

    #[test]
    fn a_message_that_goes_on_after_its_end_is_an_error(
        sent in shard(), more in vec(any::<u8>(), 1..20)
    ) {
        let mut bytes = encode_shard(&sent);
        bytes.extend(&more);
        prop_assert_eq!(decode_shard(&bytes), Err(WireError::Trailing(more.len())));
    }

    #[test]
    fn damaged_messages_do_no_harm(
        sent in shard(),
        results in outcomes(),
        word in prop_oneof![any::<u64>(), Just(u64::MAX), Just(u64::MAX / 24), 0..1000u64],
        at in any::<prop::sample::Index>(),
    ) {
        for (bytes, is_shard) in [(encode_shard(&sent), true), (encode_outcomes(1, &results), false)] {
            let mut bytes = bytes;
            let at = at.index(bytes.len() - 7);
            bytes[at..at + 8].copy_from_slice(&word.to_ne_bytes());
            if is_shard {
                // What decodes must be exactly what the bytes say.
                if let Ok(shard) = decode_shard(&bytes) {
                    prop_assert_eq!(encode_shard(&shard), bytes);
                }
            } else if let Ok((id, outcomes)) = decode_outcomes(&bytes) {
                prop_assert_eq!(encode_outcomes(id, &outcomes), bytes);
            }
        }
    }

    #[test]
    fn noise_is_an_error(noise in vec(any::<u8>(), 0..400)) {
        prop_assert!(decode_shard(&noise).is_err());
        prop_assert!(decode_outcomes(&noise).is_err());
    }
}

#[test]
fn a_count_beyond_the_message_is_refused_before_memory_is_taken() {
    let shard = Shard {
        id: 1,
        jobs: vec![],
    };
    let mut bytes = encode_shard(&shard);
    let count = bytes.len() - 8;
    bytes[count..].copy_from_slice(&(1u64 << 60).to_ne_bytes());
    assert!(matches!(
        decode_shard(&bytes),
        Err(WireError::Truncated { left: 0, .. })
    ));
}

fn numbered(id: u64) -> Arc<Shard> {
    Arc::new(Shard { id, jobs: vec![] })
}

/// Waits for the wake-up, then polls.
fn next_event(workers: &mut ThreadWorkers, woken: &mpsc::Receiver<()>) -> WorkerEvent {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(event) = workers.poll() {
            return event;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        woken.recv_timeout(left).expect("an event within 60 s");
    }
}

fn start(
    devices: usize,
    body: impl Fn(usize, &mut ThreadLink) + Send + Sync + 'static,
) -> (ThreadWorkers, mpsc::Receiver<()>) {
    let (wake, woken) = mpsc::channel();
    let wake = Arc::new(move || {
        let _ = wake.send(());
    });
    let workers = ThreadWorkers::start(vec!["cpu".into(); devices], wake, body).unwrap();
    (workers, woken)
}

#[test]
fn worker_threads_answer_in_order_and_wake_the_engine() {
    let (mut workers, woken) = start(2, |_, link| {
        while let Some(shard) = link.take() {
            link.answer(shard.id, vec![]);
        }
    });
    assert_eq!(workers.devices(), ["cpu", "cpu"]);
    for id in 0..4 {
        workers.send(1, numbered(id)).unwrap();
    }
    for id in 0..4 {
        let expected = WorkerEvent::Done {
            worker: 1,
            shard: id,
            outcomes: vec![],
        };
        assert_eq!(next_event(&mut workers, &woken), expected);
    }
    workers.shut_down();
}

#[test]
fn a_worker_that_panics_is_lost_and_the_others_live() {
    let (mut workers, woken) = start(2, |worker, link| {
        while let Some(shard) = link.take() {
            assert!(worker == 1, "this worker is broken");
            link.answer(shard.id, vec![]);
        }
    });
    workers.send(0, numbered(1)).unwrap();
    match next_event(&mut workers, &woken) {
        WorkerEvent::Lost { worker: 0, reason } => {
            assert!(reason.contains("this worker is broken"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        workers.send(0, numbered(2)),
        Err(SendError::Lost { worker: 0, .. })
    ));
    workers.send(1, numbered(2)).unwrap();
    assert!(matches!(
        next_event(&mut workers, &woken),
        WorkerEvent::Done { worker: 1, .. }
    ));
}

/// A change of the messages makes the kept corpus worthless unless it is written anew.
#[test]
fn the_kept_corpus_of_the_fuzz_target_is_understood() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/rank_messages");
    let (mut shards, mut outcomes) = (0, 0);
    for entry in std::fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let is_shard = decode_shard(&bytes).is_ok();
        let is_outcomes = decode_outcomes(&bytes).is_ok();
        assert!(is_shard || is_outcomes, "{}", path.display());
        shards += u32::from(is_shard);
        outcomes += u32::from(is_outcomes);
    }
    assert!(shards >= 2 && outcomes >= 1, "{shards} {outcomes}");
}
