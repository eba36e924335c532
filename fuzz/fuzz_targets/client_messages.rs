//! What viewers send: bytes to messages, and messages to a session. Whatever arrives, the session
//! answers; it does not panic, and what it hands to a worker is whole.

#![no_main]

mod order;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use libfuzzer_sys::{Corpus, fuzz_target};
use umaserve::comm::{Outcome, SessionId};
use umaserve::server::convert;
use umaserve::session::{Session, SessionSettings};
use umaserve::system::Evaluation;

/// Messages of one conversation.
const MOST_MESSAGES: usize = 64;

// An input is a conversation: messages, each after its length (two bytes, little-endian). What is
// shorter than its length says is a message too.
fuzz_target!(|data: &[u8]| -> Corpus {
    let settings = Arc::new(SessionSettings {
        frame_interval: Duration::ZERO,
        max_atoms: 64,
        ..SessionSettings::default()
    });
    let now = Instant::now();
    let mut session = Session::new(SessionId(1), settings, now);
    let mut rest = data;
    for _ in 0..MOST_MESSAGES {
        let Some((length, tail)) = rest.split_first_chunk::<2>() else {
            break;
        };
        let length = usize::from(u16::from_le_bytes(*length)).min(tail.len());
        let (message, tail) = tail.split_at(length);
        rest = tail;
        let Ok(message) = convert::decode(Bytes::copy_from_slice(message)) else {
            continue;
        };
        session.receive(message, now);
        for _ in 0..2 {
            let Some(job) = session.next_job(now) else {
                break;
            };
            let mut state = job.state;
            let natoms = state.system.numbers.len();
            assert_eq!(state.system.positions.len(), natoms);
            assert_eq!(state.velocities.len(), natoms);
            assert!(natoms <= 64);
            state.evaluation = Some(Evaluation {
                energy: -1.0,
                forces: vec![[0.1, 0.0, -0.1]; natoms],
                stress: None,
            });
            let outcome = Outcome {
                session: job.session,
                serial: job.serial,
                result: Ok(state),
                edges: 1,
            };
            session.complete(outcome, now);
        }
        for message in session.take_output() {
            let _ = convert::encode(&message);
        }
        drop(session.take_records());
    }
    Corpus::Keep
});
