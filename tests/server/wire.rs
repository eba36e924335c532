//! The wire: bytes to messages and back, and bytes that nobody should send.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use prost::Message as _;
use umaserve::comm::SessionId;
use umaserve::server::convert::{decode, encode, proto};
use umaserve::session::{
    ClientMessage, Content, Delta, Edit, Frame, Notice, Payload, RawParameters, ServerMessage,
    Session, SessionSettings, Start,
};

use crate::viewer::{drag, start_md, stop, upload};
use crate::worker::solve;

/// The bytes that the existing viewer sends, written by hand from its field numbers.
#[test]
fn the_wire_is_that_of_the_existing_viewer() {
    let double = |x: f64| x.to_le_bytes();
    let field = |tag: u8, bytes: &[u8]| [&[tag, bytes.len() as u8], bytes].concat();
    let numbers = [field(0x0a, &[0, 1]), field(0x12, &[8, 1])].concat();
    let coords = [1.5, -2.0, 0.25].map(double).concat();
    let positions = [field(0x0a, &[1]), field(0x12, &coords)].concat();
    let mut edit = [
        &[0x08, 2][..],
        &field(0x12, &numbers),
        &field(0x1a, &positions),
    ]
    .concat();
    edit.extend([&[0x30, 0][..]].concat()); // full_update = false, present
    let mut action = vec![0x08, 0xac, 0x02, 0x10, 7]; // seq 300, ack 7
    action.extend(field(0x52, &edit));
    action.extend([0xf0, 0x01, 9, 0xf8, 0x01, 0]); // user_interaction_count 9, sim_step 0
    action.extend([0xa0, 0x06, 1]); // schema_version
    let expected = ClientMessage {
        seq: 300,
        ack: Some(7),
        user_interaction_count: Some(9),
        sim_step: Some(0),
        payload: Payload::Edit(Edit {
            natoms: 2,
            atomic_numbers: Delta {
                indices: vec![0, 1],
                values: vec![8, 1],
            },
            positions: Delta {
                indices: vec![1],
                values: vec![1.5, -2.0, 0.25],
            },
            full_update: Some(false),
            ..Edit::default()
        }),
        ..ClientMessage::default()
    };
    assert_eq!(decode(action.into()).unwrap(), expected);

    // START RELAX with a calculator and a friction; STOP.
    let params = [&field(0x0a, b"uma")[..], &[0x21], &double(0.5)].concat();
    let start = [&[0x08, 1][..], &field(0x12, &params)].concat();
    let message = decode(field(0x5a, &start).into()).unwrap();
    assert_eq!(
        message.payload,
        Payload::Start(Start {
            simulation_type: 1,
            parameters: Some(RawParameters {
                calculator: "uma".into(),
                friction: 0.5,
                ..RawParameters::default()
            }),
        })
    );
    assert_eq!(
        decode(field(0x62, &[]).into()).unwrap().payload,
        Payload::Stop
    );
    assert_eq!(
        decode(Default::default()).unwrap(),
        ClientMessage::default()
    );

    // What goes out.
    let head = |content| ServerMessage {
        seq: 5,
        client_seq: 0,
        user_interaction_count: Some(0),
        sim_step: None,
        content,
    };
    let notice = |simulation_stopped| {
        Content::Notice(Notice {
            message: "X".into(),
            simulation_stopped,
        })
    };
    let start = [0x08, 5, 0x10, 0];
    let end = [0xf0, 0x01, 0, 0xa0, 0x06, 1];
    let bytes = |payload: Vec<u8>, tag| {
        // prost writes fields in order of their numbers.
        [&start[..], &field(tag, &payload), &end].concat()
    };
    let text = field(0x0a, b"X");
    assert_eq!(encode(&head(notice(false))), bytes(text.clone(), 0x5a));
    assert_eq!(
        encode(&head(notice(true))),
        bytes([text, vec![0x10, 1]].concat(), 0x5a)
    );
    let frame = Frame {
        positions: vec![[1.0, 2.0, 3.0]],
        velocities: vec![[0.0; 3]],
        forces: vec![[-1.0; 3]],
        energy: -7.5,
        ..Frame::default()
    };
    let payload = [
        field(0x0a, &[1.0, 2.0, 3.0].map(double).concat()),
        field(0x12, &[0.0; 3].map(double).concat()),
        field(0x1a, &[-1.0; 3].map(double).concat()),
        [&[0x31][..], &double(-7.5)].concat(),
        [&[0xc9, 0x0c][..], &double(0.0)].concat(), // fmax, 201
    ]
    .concat();
    assert_eq!(
        encode(&head(Content::Frame(Arc::new(frame)))),
        bytes(payload, 0x52)
    );
}

#[test]
fn additions_are_decoded_and_absent_is_not_zero() {
    let action = |edit| proto::ClientAction {
        payload: Some(proto::client_action::Payload::UserInteraction(edit)),
        ..Default::default()
    };
    let decoded =
        |edit: proto::UserInteractionSparse| match decode(action(edit).encode_to_vec().into())
            .unwrap()
            .payload
        {
            Payload::Edit(edit) => edit,
            other => panic!("{other:?}"),
        };
    assert_eq!(decoded(Default::default()), Edit::default());
    let edit = decoded(proto::UserInteractionSparse {
        charge: Some(0),
        spin_multiplicity: Some(0),
        task: Some(String::new()),
        periodicity: Some(proto::Periodicity {
            a: true,
            b: false,
            c: true,
        }),
        cell: Some(proto::user_interaction_sparse::Mat3 { m: vec![] }),
        ..Default::default()
    });
    assert_eq!((edit.charge, edit.spin), (Some(0), Some(0)));
    assert_eq!(edit.task.as_deref(), Some(""));
    assert_eq!(edit.periodic, Some([true, false, true]));
    assert_eq!(edit.cell, Some(vec![]));
    let start = proto::ClientAction {
        payload: Some(proto::client_action::Payload::Start(
            proto::client_action::Start {
                simulation_type: 9,
                simulation_params: Some(proto::SimulationParams {
                    integrator: Some(99),
                    seed: Some(0),
                    steps_per_frame: Some(0),
                    frame_interval_ms: Some(0),
                    record: Some(false),
                    record_label: Some("a".into()),
                    ..Default::default()
                }),
            },
        )),
        ..Default::default()
    };
    let message = decode(start.encode_to_vec().into()).unwrap();
    assert_eq!(
        message.payload,
        Payload::Start(Start {
            simulation_type: 9,
            parameters: Some(RawParameters {
                integrator: Some(99),
                seed: Some(0),
                steps_per_frame: Some(0),
                frame_interval_ms: Some(0),
                record: Some(false),
                record_label: Some("a".into()),
                ..RawParameters::default()
            }),
        })
    );
}

/// A valid message with some bytes changed, cut off or put in.
fn almost_a_message() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        Just(upload(&[[0.0; 3], [1.0; 3]])),
        Just(drag(1, [0.5; 3])),
        Just(start_md()),
        Just(stop()),
    ];
    let change = (any::<prop::sample::Index>(), any::<u8>(), 0..3u8);
    (payload, prop::collection::vec(change, 0..4)).prop_map(|(payload, changes)| {
        let action = proto::ClientAction {
            seq: 1,
            ack: Some(u64::MAX),
            payload: Some(payload),
            ..Default::default()
        };
        let mut bytes = action.encode_to_vec();
        for (place, byte, how) in changes {
            let place = place.index(bytes.len().max(1));
            match how {
                0 if !bytes.is_empty() => bytes[place] = byte,
                1 => bytes.insert(place, byte),
                _ => bytes.truncate(place),
            }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn bytes_of_any_kind_leave_a_session_whole(
        messages in prop::collection::vec(
            prop_oneof![3 => almost_a_message(), 1 => prop::collection::vec(any::<u8>(), 0..64)],
            1..30,
        )
    ) {
        let settings = SessionSettings { max_atoms: 100, ..SessionSettings::default() };
        let mut now = Instant::now();
        let mut session = Session::new(SessionId(1), Arc::new(settings), now);
        for bytes in messages {
            if let Ok(message) = decode(bytes.into()) {
                session.receive(message, now);
            }
            now += Duration::from_millis(20);
            if let Some(job) = session.next_job(now) {
                session.complete(solve(job), now);
            }
            for message in session.take_output() {
                let wire = proto::ServerResult::decode(encode(&message)).expect("own bytes");
                prop_assert_eq!(wire.seq, message.seq);
                if let Some(proto::server_result::Payload::Frame(frame)) = wire.payload {
                    let atoms = session.state().system.len();
                    prop_assert_eq!(frame.positions.len(), 3 * atoms);
                    prop_assert_eq!(frame.forces.len(), 3 * atoms);
                    prop_assert!(frame.positions.iter().all(|x| x.is_finite()));
                }
            }
            prop_assert!(session.state().system.len() <= 100);
        }
    }
}

/// A change of the messages makes the kept corpus worthless unless it is written anew.
#[test]
fn the_kept_corpus_of_the_fuzz_target_is_understood() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/client_messages");
    let mut conversations = 0;
    for entry in std::fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let mut rest = &bytes[..];
        // As the target takes it apart: each message after its length.
        while let Some((length, tail)) = rest.split_first_chunk::<2>() {
            let (message, tail) = tail.split_at(usize::from(u16::from_le_bytes(*length)));
            let message = decode(bytes::Bytes::copy_from_slice(message));
            assert!(message.is_ok(), "{}: {message:?}", path.display());
            rest = tail;
        }
        conversations += 1;
    }
    assert!(conversations >= 5, "{conversations}");
}
