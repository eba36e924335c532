//! The server end to end: real sockets, real sessions, an engine on a thread with springs for a
//! potential.

#[path = "server/access.rs"]
mod access;
#[path = "server/engine.rs"]
mod engine;
#[path = "server/limits.rs"]
mod limits;
#[path = "server/viewer.rs"]
mod viewer;
#[path = "server/wire.rs"]
mod wire;
#[path = "session/worker.rs"]
mod worker;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message};
use umaserve::server::convert::proto;
use umaserve::server::{Limits, ServerSettings};
use viewer::*;
use worker::{harmonic_energy, harmonic_force};

const ARGON: [[f64; 3]; 3] = [[0.0, 0.0, 1.0], [0.0, 2.0, 0.0], [3.0, 0.0, 0.0]];

#[tokio::test]
async fn a_viewer_uploads_runs_watches_and_stops() {
    let server = Server::default().await;
    let mut v = server.viewer().await;
    v.ask(upload(&[])).await;
    assert_eq!(v.hear_notice().await.message(), "IDLE_WAITING_FOR_GEOMETRY");
    v.say(proto::ClientAction {
        user_interaction_count: Some(4),
        payload: Some(upload(&ARGON)),
        ..Default::default()
    })
    .await;
    let (head, frame) = v.hear_frame().await;
    assert_eq!(
        (head.seq, head.user_interaction_count, head.sim_step),
        (2, Some(4), None)
    );
    assert_eq!(frame.positions, ARGON.concat());
    assert_eq!(frame.velocities, [0.0; 9]);
    assert_eq!(frame.energy, Some(harmonic_energy(&ARGON)));
    assert_eq!(frame.forces, ARGON.map(harmonic_force).concat());
    assert_eq!(
        (frame.kinetic, frame.temperature, frame.cell, frame.stress),
        (None, None, None, None)
    );

    v.ask(start_md()).await;
    for step in 1..=50 {
        let (head, frame) = v.hear_frame().await;
        assert_eq!((head.seq, head.sim_step), (2 + step, Some(step)));
        assert_eq!(head.user_interaction_count, Some(4));
        let (positions, _) = frame.positions.as_chunks::<3>();
        assert_eq!(frame.energy, Some(harmonic_energy(positions)));
        assert!(frame.kinetic > Some(0.0) && frame.temperature > Some(0.0));
        assert_eq!(frame.time_fs, Some(step as f64));
    }
    v.ask(stop()).await;
    let notice = loop {
        let result = v.hear().await;
        if let Some(proto::server_result::Payload::Notice(notice)) = result.payload
            && notice.message() != BEHIND
        {
            break notice;
        }
    };
    assert_eq!(notice.message(), "SIMULATION_STOPPED");
    assert_eq!(notice.simulation_stopped, Some(true));
    v.socket.close(None).await.unwrap();
    assert_eq!(v.hear_close().await.map(|_| ()), None);
    server.sessions(0).await;
}

#[tokio::test]
async fn without_acks_the_stream_stops_after_ten() {
    let server = Server::default().await;
    let mut v = server.viewer().await;
    v.acknowledge = false;
    v.ask(upload(&ARGON)).await;
    v.ask(start_md()).await;
    for seq in 1..=10 {
        assert_eq!(v.hear_frame().await.0.seq, seq);
    }
    let waiting = v.hear().await;
    assert_eq!((waiting.seq, waiting.sim_step), (10, Some(9)));
    v.acks(4).await;
    for seq in 11..=14 {
        assert_eq!(v.hear_frame().await.0.seq, seq);
    }
}

#[tokio::test]
async fn what_is_not_a_message_is_ignored() {
    let server = Server::default().await;
    let mut v = server.viewer().await;
    v.raw(Message::text("{\"seq\": 9}")).await;
    v.raw(binary(&[0xff; 100])).await;
    v.raw(binary(&[0x08])).await;
    v.raw(binary(&[])).await; // a message with all defaults
    v.raw(Message::Ping(Default::default())).await;
    let mut noise = 0x1234_5678_u32;
    for length in 0..200 {
        let bytes: Vec<u8> = (0..length)
            .map(|_| {
                noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (noise >> 24) as u8
            })
            .collect();
        // An unknown field in front, so that it cannot be a START by chance.
        v.raw(binary(
            &[&[0xfa, 0x7f, 0xff, 0xff, 0x03], &bytes[..]].concat(),
        ))
        .await;
    }
    v.ask(upload(&ARGON)).await;
    let (head, frame) = v.hear_frame().await;
    assert_eq!((head.seq, head.client_seq), (1, Some(1)));
    assert_eq!(frame.positions.len(), 9);
}

#[tokio::test]
async fn violations_are_answered_and_the_session_lives() {
    let server = Server::default().await;
    let mut v = server.viewer().await;
    v.ask(upload(&ARGON)).await;
    v.hear_frame().await;
    let spoil = |change: fn(&mut proto::UserInteractionSparse)| {
        let proto::client_action::Payload::UserInteraction(mut edit) = drag(0, [1.0; 3]) else {
            unreachable!()
        };
        change(&mut edit);
        proto::client_action::Payload::UserInteraction(edit)
    };
    let cases = [
        (
            spoil(|e| e.full_update_flag = None),
            "full_update flag must be set",
        ),
        (
            spoil(|e| e.natoms = u32::MAX),
            "natoms = 4294967295, the limit is 20000",
        ),
        (
            spoil(|e| e.positions.as_mut().unwrap().coords[1] = f64::NAN),
            "positions contain NaN, which is not finite",
        ),
        (
            spoil(|e| e.cell = Some(proto::user_interaction_sparse::Mat3 { m: vec![1.0] })),
            "cell carries 1 numbers, 9 expected",
        ),
    ];
    for (edit, reason) in cases {
        v.ask(edit).await;
        let notice = v.hear_notice().await;
        assert_eq!(notice.message(), format!("PROTO_VIOLATION: {reason}"));
        assert_eq!(notice.simulation_stopped, None, "never explicitly false");
    }
    v.ask(drag(0, [0.5; 3])).await;
    assert_eq!(v.hear_frame().await.1.positions[..3], [0.5; 3]);
}

#[tokio::test]
async fn a_message_beyond_the_limit_closes_with_1009_and_disturbs_nobody() {
    let server = Server::default().await;
    let mut other = server.viewer().await;
    other.ask(upload(&ARGON)).await;
    other.hear_frame().await;
    for size in [(16 << 20) + 1, 17 << 20] {
        let v = server.viewer().await;
        let (mut sink, mut stream) = v.socket.split();
        let sending = tokio::spawn(async move {
            // May fail in the middle: the server does not read it to the end.
            let _ = sink.send(Message::Binary(vec![0u8; size].into())).await;
            sink
        });
        let frame = loop {
            match stream
                .next()
                .await
                .expect("a close frame")
                .expect("a close frame")
            {
                Message::Close(frame) => break frame,
                _ => continue,
            }
        };
        assert_eq!(frame.map(|f| f.code), Some(CloseCode::Size));
        drop(stream);
        sending.abort();
    }
    server.sessions(1).await;
    other.ask(drag(0, [1.0; 3])).await;
    other.hear_frame().await;
}

#[tokio::test]
async fn a_message_at_the_limit_is_read() {
    let server = Server::default().await;
    let mut v = server.viewer().await;
    // An unknown field as large as allowed: tag 1000, length-delimited.
    let length = (16 << 20) - 6;
    let mut bytes = vec![0xc2, 0x3e];
    prost::encoding::encode_varint(length, &mut bytes);
    bytes.resize(bytes.len() + length as usize, 7);
    assert_eq!(bytes.len(), 16 << 20);
    v.raw(Message::Binary(bytes.into())).await;
    v.ask(stop()).await;
    assert_eq!(v.hear_notice().await.message(), "SIMULATION_STOPPED");
}

#[tokio::test]
async fn a_viewer_that_vanishes_is_forgotten() {
    let server = Server::default().await;
    for _ in 0..5 {
        let mut v = server.viewer().await;
        v.ask(upload(&ARGON)).await;
        v.ask(start_md()).await;
        v.hear_frame().await;
        server.sessions(1).await;
        drop(v.socket); // no close frame
        server.sessions(0).await;
    }
}

#[tokio::test]
async fn a_viewer_that_does_not_answer_pings_is_forgotten() {
    let server = Server::start(ServerSettings {
        session: Arc::new(session_settings()),
        ping_interval: Duration::from_millis(500),
        ..ServerSettings::default()
    })
    .await;
    let silent = server.viewer().await;
    let mut alive = server.viewer().await;
    alive.ask(upload(&ARGON)).await;
    alive.hear_frame().await;
    server.sessions(2).await;
    // The live one answers pings because it reads.
    let listening = tokio::spawn(async move {
        loop {
            alive.hear().await;
        }
    });
    server.sessions(1).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    server.sessions(1).await;
    assert!(!listening.is_finished());
    listening.abort();
    drop(silent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_viewer_that_never_reads_does_not_hold_up_the_others() {
    let server = Server::start(ServerSettings {
        session: Arc::new(session_settings()),
        write_timeout: Duration::from_millis(500),
        ..ServerSettings::default()
    })
    .await;
    // It has acknowledged everything in advance and asks for a large system.
    let mut slow = server.viewer().await;
    slow.acknowledge = false;
    let many: Vec<[f64; 3]> = (0..2000).map(|i| [i as f64 * 1e-3; 3]).collect();
    slow.ask(upload(&many)).await;
    slow.acks(u64::MAX).await;
    slow.ask(start_md()).await;
    let fast: Vec<_> = (0..10)
        .map(|_| async {
            let mut v = server.viewer().await;
            v.ask(upload(&ARGON)).await;
            v.ask(start_md()).await;
            for seq in 1..=100 {
                assert_eq!(v.hear_frame().await.0.seq, seq);
            }
            v
        })
        .collect();
    let fast = futures_util::future::join_all(fast).await;
    assert_eq!(fast.len(), 10);
    server.sessions(10).await; // the slow one has been dropped
    drop(slow);
}

#[tokio::test]
async fn a_flood_at_a_busy_engine_is_merged_and_bounded() {
    let server = Server::start(ServerSettings {
        session: Arc::new(session_settings()),
        max_undigested_bytes: 64 << 10, // four messages
        ..ServerSettings::default()
    })
    .await;
    let mut v = server.viewer().await;
    v.acknowledge = false;
    v.ask(upload(&ARGON)).await;
    v.hear_frame().await;
    server.watch.frozen.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let before = server.watch.messages.load(Ordering::SeqCst);
    for k in 0..2000 {
        v.ask(drag(k % 3, [f64::from(k), 0.0, 0.0])).await;
    }
    let last = v.seq;
    // Until all are read; those that are read while the engine hears are not merged.
    let metrics = server.health.metrics();
    eventually(|| metrics.messages.get() >= last).await;
    server.watch.frozen.store(false, Ordering::SeqCst);
    let frame = loop {
        let (head, frame) = v.hear_frame().await;
        if head.client_seq == Some(last) {
            break frame;
        }
    };
    assert_eq!(
        frame.positions,
        [1998.0, 0.0, 0.0, 1999.0, 0.0, 0.0, 1997.0, 0.0, 0.0]
    );
    let heard = server.watch.messages.load(Ordering::SeqCst) - before;
    assert!(heard <= 20, "{heard} messages went through a quota of four");
}

#[tokio::test]
async fn compression_may_be_offered() {
    let server = Server::default().await;
    let mut request = format!("ws://{}/ws", server.address)
        .into_client_request()
        .unwrap();
    let headers = request.headers_mut();
    let offer = "permessage-deflate; client_max_window_bits";
    headers.insert("Sec-WebSocket-Extensions", offer.parse().unwrap());
    headers.insert("Origin", "http://localhost:5174".parse().unwrap());
    let (socket, response) = connect_async(request).await.unwrap();
    assert!(!response.headers().contains_key("sec-websocket-extensions"));
    let mut v = Viewer {
        socket,
        seq: 0,
        acknowledge: true,
    };
    v.ask(upload(&ARGON)).await;
    v.hear_frame().await;
}

#[tokio::test]
async fn more_viewers_than_places_are_refused_with_the_reason() {
    let server = Server::start(ServerSettings {
        session: Arc::new(session_settings()),
        limits: Limits {
            max_sessions: 2,
            ..Limits::default()
        },
        ..ServerSettings::default()
    })
    .await;
    let first = server.viewer().await;
    let _second = server.viewer().await;
    server.sessions(2).await;
    let refused = connect_async(format!("ws://{}/ws", server.address)).await;
    let Err(tungstenite::Error::Http(response)) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
    let body = String::from_utf8(response.into_body().unwrap_or_default()).unwrap();
    assert!(body.contains("all 2 sessions"), "{body}");
    let health = server.json("GET", "/serve/health").await;
    assert_eq!(
        (&health["sessions"], &health["max_sessions"]),
        (&2.into(), &2.into())
    );
    drop(first);
    server.sessions(1).await;
    let mut third = server.viewer().await;
    third.ask(stop()).await;
    third.hear_notice().await;
}

#[tokio::test]
async fn stopping_says_goodbye_to_everybody() {
    let server = Server::default().await;
    let mut viewers = Vec::new();
    for _ in 0..3 {
        let mut v = server.viewer().await;
        v.ask(upload(&ARGON)).await;
        v.ask(start_md()).await;
        v.hear_frame().await;
        v.acknowledge = false;
        viewers.push(v);
    }
    server.stop.send(true).unwrap();
    for v in &mut viewers {
        assert_eq!(v.hear_close().await.map(|f| f.code), Some(CloseCode::Away));
    }
    server.served.await.unwrap().unwrap();
    eventually(|| server.watch.sessions.load(Ordering::SeqCst) == 0).await;
    assert!(
        tokio::net::TcpStream::connect(server.address)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn the_http_endpoints_answer() {
    let server = Server::default().await;
    let health = server.json("GET", "/serve/health").await;
    for (field, value) in [
        ("status", serde_json::json!("ok")),
        ("model", "springs".into()),
        ("task", "omol".into()),
        ("device", "cpu".into()),
        ("cuda_available", false.into()),
        ("model_loaded", true.into()),
        ("ingress_device", "cpu".into()),
        ("force_cpu_mode", false.into()),
        ("replica_device", "cpu".into()),
        ("replica_stats_calls", 1.into()),
        ("replica_stats_items", 3.into()),
    ] {
        assert_eq!(health[field], value, "{field}");
    }
    let stats = server.json("GET", "/uma/stats").await;
    assert_eq!(
        stats,
        serde_json::json!({"status": "ok", "stats": {
            "calls": 1, "items": 3, "device": "cpu", "model": "springs", "task": "omol"}})
    );
    assert_eq!(
        server.json("POST", "/uma/reset").await,
        serde_json::json!({"status": "ok"})
    );
    assert_eq!(server.json("GET", "/uma/stats").await["stats"]["calls"], 0);
    let (status, page) = server.http("GET", "/").await;
    assert!(status == 200 && page.contains("umaserve"));
    assert_eq!(server.http("GET", "/serve/md").await.0, 404);
    assert!(server.http("GET", "/ws").await.0 >= 400, "not an upgrade");
}
