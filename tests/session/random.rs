//! Random messages, outcomes and times thrown at a session.

use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::*;

use crate::bench::*;
use crate::worker::solve;
use umaserve::comm::{Job, Task};
use umaserve::session::{Content, Delta, Edit, Payload, RawParameters, ServerMessage, Start};

#[derive(Clone, Debug)]
enum Event {
    Edit { edit: Edit, count: Option<u64> },
    Start(Start),
    Stop,
    Ack(u64),
    SimStep(u64),
    NextJob,
    Finish,
    Fail,
    StaleOutcome,
    Wait(u64),
}

fn number() -> impl Strategy<Value = f64> {
    prop_oneof![
        20 => -3.0..3.0f64,
        1 => Just(f64::NAN),
        1 => Just(f64::INFINITY),
        1 => Just(1e300),
    ]
}

fn delta() -> impl Strategy<Value = Delta<f64>> {
    prop::collection::vec((0..5u32, [number(), number(), number()]), 0..4).prop_flat_map(|atoms| {
        let whole = Delta {
            indices: atoms.iter().map(|a| a.0).collect(),
            values: atoms.iter().flat_map(|a| a.1).collect(),
        };
        (Just(whole), 0..30u8).prop_map(|(mut delta, spoil)| {
            if spoil == 0 {
                delta.values.pop();
            }
            delta
        })
    })
}

fn an_edit() -> impl Strategy<Value = Edit> {
    let z = prop::collection::vec((0..5u32, prop_oneof![9 => 1..20u32, 1 => 0..200u32]), 0..5);
    (
        prop_oneof![6 => Just(0u32), 3 => 0..6u32, 1 => any::<u32>()],
        z,
        delta(),
        delta(),
        prop::option::weighted(0.2, prop::collection::vec(number(), 8..10)),
        prop_oneof![8 => Just(Some(false)), 2 => Just(Some(true)), 1 => Just(None)],
        prop::option::weighted(0.1, -2..200i32),
        prop::option::weighted(0.1, any::<[bool; 3]>()),
    )
        .prop_map(
            |(natoms, z, positions, velocities, cell, full_update, charge, periodic)| Edit {
                natoms,
                atomic_numbers: Delta {
                    indices: z.iter().map(|a| a.0).collect(),
                    values: z.iter().map(|a| a.1).collect(),
                },
                positions,
                velocities,
                cell,
                full_update,
                charge,
                periodic,
                ..Edit::default()
            },
        )
}

fn a_start() -> impl Strategy<Value = Start> {
    let parameters = (
        prop_oneof![9 => Just("uma"), 1 => Just("lj")],
        (
            0.0..1000.0f64,
            prop_oneof![9 => 0.1..2.0f64, 1 => number()],
            0.0..1.0f64,
        ),
        prop::option::of(0..7i32),
        prop::option::of(0..4u32),
        prop::option::of(0..30u32),
        prop::option::of(any::<u64>()),
    )
        .prop_map(
            |(calculator, (temperature, timestep_fs, friction), integrator, steps, ms, seed)| {
                RawParameters {
                    calculator: calculator.into(),
                    temperature,
                    timestep_fs,
                    friction,
                    max_step: 0.1,
                    integrator,
                    steps_per_frame: steps,
                    frame_interval_ms: ms,
                    seed,
                    ..RawParameters::default()
                }
            },
        );
    (
        prop_oneof![9 => 0..2i32, 1 => any::<i32>()],
        prop::option::of(parameters),
    )
        .prop_map(|(simulation_type, parameters)| Start {
            simulation_type,
            parameters,
        })
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (an_edit(), prop::option::of(0..50u64)).prop_map(|(edit, count)| Event::Edit { edit, count }),
        // A good upload, so that something runs now and then.
        2 => (0..50u64).prop_map(|count| Event::Edit { edit: upload(&water()).into_edit(), count: Some(count) }),
        2 => a_start().prop_map(Event::Start),
        1 => Just(Event::Start(Start { simulation_type: 0, parameters: None })),
        1 => Just(Event::Stop),
        3 => prop_oneof![8 => 0..40u64, 1 => any::<u64>()].prop_map(Event::Ack),
        1 => any::<u64>().prop_map(Event::SimStep),
        8 => Just(Event::NextJob),
        8 => Just(Event::Finish),
        1 => Just(Event::Fail),
        1 => Just(Event::StaleOutcome),
        4 => (0..300u64).prop_map(Event::Wait),
    ]
}

/// What every stream of messages must satisfy.
#[derive(Default)]
struct Checks {
    seq: u64,
    client_seq: u64,
    frame_count: u64,
    /// Largest ack said.
    ack: u64,
    /// Client sequence numbers and edit counters said.
    sent: VecDeque<(u64, u64)>,
}

impl Checks {
    fn check(&mut self, message: &ServerMessage) {
        let waiting =
            matches!(&message.content, Content::Notice(n) if n.message == "WAITING_FOR_ACK");
        assert_eq!(message.seq, self.seq + u64::from(!waiting));
        self.seq = message.seq;
        assert!(message.client_seq >= self.client_seq, "never falls");
        self.client_seq = message.client_seq;
        let Content::Frame(frame) = &message.content else {
            return;
        };
        let atoms = frame.positions.len();
        assert!(atoms > 0);
        assert_eq!((frame.velocities.len(), frame.forces.len()), (atoms, atoms));
        let numbers = frame
            .positions
            .iter()
            .chain(&frame.velocities)
            .chain(&frame.forces);
        assert!(numbers.flatten().all(|x| x.is_finite()) && frame.energy.is_finite());
        let count = message
            .user_interaction_count
            .expect("frames always carry the counter");
        if frame.time_fs.is_some() {
            assert!(
                count >= self.frame_count,
                "counters of simulation frames never fall"
            );
            self.frame_count = count;
            // Not more than what the client has said.
            let said = self
                .sent
                .iter()
                .filter(|s| s.0 <= message.client_seq)
                .map(|s| s.1);
            assert!(count <= said.max().unwrap_or(0));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_events_never_break_the_protocol(events in prop::collection::vec(event(), 1..120)) {
        let mut b = Bench::new();
        let mut out: Option<Job> = None;
        let mut checks = Checks::default();
        let mut seq = 0;
        let mut expected_replies = 0i64;
        for event in events {
            seq += 1;
            let say = |checks: &mut Checks, b: &mut Bench, message: Message| {
                checks.sent.push_back((seq, message.0.user_interaction_count.unwrap_or(0)));
                checks.ack = checks.ack.max(message.0.ack.unwrap_or(0));
                b.send(message.seq(seq));
            };
            match event {
                Event::Edit { edit: what, count } => {
                    let mut m = edit(what);
                    m.0.user_interaction_count = count;
                    say(&mut checks, &mut b, m);
                }
                Event::Start(s) => say(&mut checks, &mut b, message_of(Payload::Start(s))),
                Event::Stop => {
                    expected_replies += 1;
                    say(&mut checks, &mut b, stop());
                }
                Event::Ack(ack) => say(&mut checks, &mut b, message().ack(ack)),
                Event::SimStep(step) => say(&mut checks, &mut b, message().sim_step(step)),
                Event::NextJob => {
                    if let Some(job) = b.session.next_job(b.now) {
                        prop_assert!(out.is_none(), "two jobs out");
                        let atoms = job.state.system.len();
                        prop_assert_eq!(job.state.system.positions.len(), atoms);
                        prop_assert_eq!(job.state.velocities.len(), atoms);
                        prop_assert!(job.state.system.numbers.iter().all(|&z| z > 0));
                        if matches!(job.task, Task::Step(_)) {
                            // What the last event has brought out is taken by now.
                            let ahead = checks.seq.saturating_sub(checks.ack);
                            prop_assert!(ahead < 10, "a step with {} unacknowledged", ahead);
                        }
                        out = Some(job);
                    }
                }
                Event::Finish => {
                    if let Some(job) = out.take() {
                        b.finish(job);
                    }
                }
                Event::Fail => {
                    if let Some(job) = out.take() {
                        let mut outcome = solve(job);
                        outcome.result = Err("lost".into());
                        b.session.complete(outcome, b.now);
                    }
                }
                Event::StaleOutcome => {
                    if let Some(job) = out.clone() {
                        let mut outcome = solve(job);
                        outcome.serial += 1;
                        b.session.complete(outcome, b.now);
                    }
                }
                Event::Wait(ms) => b.wait(Duration::from_millis(ms)),
            }
            for m in b.take_now() {
                checks.check(&m);
                if matches!(&m.content, Content::Notice(n) if n.message == "SIMULATION_STOPPED") {
                    expected_replies -= 1;
                }
            }
            let state = b.session.state();
            prop_assert_eq!(state.system.positions.len(), state.system.len());
            prop_assert_eq!(state.velocities.len(), state.system.len());
        }
        // Left alone, everything is answered and the session comes to rest or waits for acks.
        if let Some(job) = out.take() {
            b.finish(job);
        }
        b.send(stop().seq(seq + 1));
        expected_replies += 1;
        while let Some(job) = b.session.next_job(b.now) {
            b.finish(job);
        }
        for m in b.take_now() {
            checks.check(&m);
            if matches!(&m.content, Content::Notice(n) if n.message == "SIMULATION_STOPPED") {
                expected_replies -= 1;
            }
        }
        prop_assert_eq!(expected_replies, 0, "every STOP is answered");
        prop_assert_eq!(checks.client_seq, seq + 1);
        prop_assert!(b.session.is_idle());
        prop_assert_eq!(b.session.waiting_messages(), 0);
    }
}
