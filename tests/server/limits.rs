//! How much one token and all together may ask for, what the service says about itself, and how
//! sockets are closed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::SinkExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message};
use umaserve::server::{HealthStatus, Limits, Phase, ServerSettings};

use crate::ARGON;
use crate::access::{ADA, BOB, http, with_tokens};
use crate::viewer::*;

fn limited(limits: Limits) -> ServerSettings {
    ServerSettings {
        limits,
        ..with_tokens()
    }
}

/// A viewer, or status and `Retry-After` of the refusal.
async fn viewer(server: &Server, token: &str) -> Result<Viewer, (u16, u64)> {
    let url = format!("ws://{}/ws?token={token}", server.address);
    match connect_async(url).await {
        Ok((socket, _)) => Ok(Viewer {
            socket,
            seq: 0,
            acknowledge: true,
        }),
        Err(tungstenite::Error::Http(response)) => {
            let wait = response.headers()["retry-after"].to_str().unwrap();
            Err((response.status().as_u16(), wait.parse().unwrap()))
        }
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn sessions_are_bounded_per_token_and_in_all() {
    let server = Server::start(limited(Limits {
        max_sessions: 3,
        max_sessions_per_token: 2,
        ..Limits::default()
    }))
    .await;
    let first = viewer(&server, ADA).await.unwrap();
    let _second = viewer(&server, ADA).await.unwrap();
    assert_eq!(viewer(&server, ADA).await.err(), Some((429, 10)));
    let _third = viewer(&server, BOB).await.unwrap();
    assert_eq!(viewer(&server, BOB).await.err(), Some((503, 10)));
    server.sessions(3).await;
    drop(first);
    server.sessions(2).await;
    assert!(viewer(&server, BOB).await.is_ok());
    let auth = format!("Authorization: Bearer {ADA}\r\n");
    let text = http(&server, "GET", "/metrics", &auth).await.body;
    for line in [
        "umaserve_refusals_total{limit=\"sessions_per_token\"} 1",
        "umaserve_refusals_total{limit=\"sessions\"} 1",
    ] {
        assert!(text.contains(line), "{text}");
    }
}

#[tokio::test]
async fn atoms_are_bounded_per_token_and_in_all() {
    let server = Server::start(limited(Limits {
        max_atoms_per_token: 5,
        max_total_atoms: 7,
        ..Limits::default()
    }))
    .await;
    let mut first = viewer(&server, ADA).await.unwrap();
    first.ask(upload(&ARGON)).await;
    first.hear_frame().await;
    let mut second = viewer(&server, ADA).await.unwrap();
    second.ask(upload(&ARGON)).await;
    let refused = "PROTO_VIOLATION: natoms = 3: 3 more atoms, the sessions of this token may have \
                   5 together and 2 are free";
    assert_eq!(second.hear_notice().await.message(), refused);
    second.ask(upload(&ARGON[..2])).await;
    assert_eq!(second.hear_frame().await.1.positions.len(), 6);
    let mut other = viewer(&server, BOB).await.unwrap();
    other.ask(upload(&ARGON)).await;
    let refused = other.hear_notice().await;
    let expected = "all sessions may have 7 together and 2 are free";
    assert!(refused.message().contains(expected), "{refused:?}");
    // What one gives back, by a smaller structure or by leaving, another may have.
    first.ask(upload(&ARGON[..1])).await;
    first.hear_frame().await;
    other.ask(upload(&ARGON)).await;
    other.hear_frame().await;
    drop(other);
    server.sessions(2).await;
    second.ask(upload(&[ARGON, ARGON].concat()[..4])).await;
    assert_eq!(second.hear_frame().await.1.positions.len(), 12);
}

#[tokio::test]
async fn a_viewer_that_sends_too_much_is_slowed_down_and_told_and_loses_nothing() {
    let server = Server::start(ServerSettings {
        // Room for all answers: on a busy machine they come faster than they leave.
        max_outgoing: 300,
        ..limited(Limits {
            max_message_rate: 50.0,
            ..Limits::default()
        })
    })
    .await;
    let mut v = viewer(&server, ADA).await.unwrap();
    v.acknowledge = false;
    // STOP is a barrier: every one is answered.
    let begun = Instant::now();
    for _ in 0..200 {
        v.ask(stop()).await;
    }
    let (mut answers, mut told) = (0, 0);
    while answers < 200 {
        let notice = v.hear_notice().await;
        match notice.message() {
            "SIMULATION_STOPPED" => answers += 1,
            text if text.starts_with("RATE_LIMITED: this session may send 50 messages") => {
                assert_eq!(notice.simulation_stopped, None);
                told += 1;
            }
            other => panic!("{other}"),
        }
    }
    // Three seconds where nothing stands still; after ten it is told again.
    let most = 1 + begun.elapsed().as_secs() / 10;
    assert!((1..=most).contains(&told), "{told} times");
    let before = server.watch.messages.load(Ordering::SeqCst);
    assert_eq!(before, 200);
}

#[tokio::test]
async fn requests_are_bounded_per_token() {
    let server = Server::start(limited(Limits {
        max_request_rate: 5.0,
        ..Limits::default()
    }))
    .await;
    let by = |token| format!("Authorization: Bearer {token}\r\n");
    let mut refused = 0;
    for _ in 0..30 {
        let answer = http(&server, "GET", "/uma/stats", &by(ADA)).await;
        if answer.status == 429 {
            assert_eq!(answer.header("retry-after"), Some("1"));
            refused += 1;
        }
    }
    assert!(refused >= 1, "30 requests went through");
    assert_eq!(
        http(&server, "GET", "/uma/stats", &by(BOB)).await.status,
        200
    );
    assert_eq!(http(&server, "GET", "/health/live", "").await.status, 200);
}

#[tokio::test]
async fn a_viewer_that_says_nothing_is_closed_with_1008() {
    let server = Server::start(ServerSettings {
        idle_timeout: Some(Duration::from_secs(3)),
        ..with_tokens()
    })
    .await;
    let mut silent = viewer(&server, ADA).await.unwrap();
    let mut alive = viewer(&server, ADA).await.unwrap();
    alive.ask(upload(&ARGON)).await;
    alive.ask(start_md()).await;
    let watching = tokio::spawn(async move {
        loop {
            alive.hear().await; // and acknowledges
        }
    });
    let close = silent.hear_close().await.unwrap();
    assert_eq!(close.code, CloseCode::Policy);
    server.sessions(1).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(!watching.is_finished());
    watching.abort();
}

#[tokio::test]
async fn what_is_no_websocket_conversation_is_closed_with_1002() {
    let server = Server::start(with_tokens()).await;
    let mut v = viewer(&server, ADA).await.unwrap();
    v.ask(upload(&ARGON)).await;
    v.hear_frame().await;
    let stream = match v.socket.get_mut() {
        tokio_tungstenite::MaybeTlsStream::Plain(stream) => stream,
        _ => unreachable!(),
    };
    // A frame with a reserved opcode.
    stream.write_all(&[0x83, 0x80, 1, 2, 3, 4]).await.unwrap();
    assert_eq!(v.hear_close().await.unwrap().code, CloseCode::Protocol);
    server.sessions(0).await;
}

#[tokio::test]
async fn without_an_engine_sockets_are_closed_with_1011() {
    let server = Server::start(with_tokens()).await;
    let mut v = viewer(&server, ADA).await.unwrap();
    v.ask(upload(&ARGON)).await;
    v.hear_frame().await;
    server.watch.dead.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(100)).await;
    // Either half of the socket may notice first: the one that has nothing more to send, or the
    // one that has something to hand over.
    let _ = v.socket.send(Message::Binary(action(stop()).into())).await;
    let code = v.hear_close().await.unwrap().code;
    assert!(
        matches!(code, CloseCode::Error | CloseCode::Again),
        "{code}"
    );
}

#[tokio::test]
async fn a_session_that_the_engine_ends_is_closed_with_1013() {
    let server = Server::start(with_tokens()).await;
    let mut v = viewer(&server, ADA).await.unwrap();
    v.ask(upload(&ARGON)).await;
    v.hear_frame().await;
    server.watch.expel.store(true, Ordering::SeqCst);
    assert_eq!(v.hear_close().await.unwrap().code, CloseCode::Again);
    server.sessions(0).await;
    // Its place is free again.
    assert!(viewer(&server, ADA).await.is_ok());
}

#[tokio::test]
async fn readiness_follows_the_life_of_the_service() {
    let server = Server::start(with_tokens()).await;
    let auth = format!("Authorization: Bearer {ADA}\r\n");
    for (phase, error, name) in [
        (Phase::Starting, None, "starting"),
        (Phase::Draining, None, "draining"),
        (Phase::Ready, Some("all workers are lost"), "failed"),
    ] {
        server.health.update(|status| {
            status.phase = phase;
            status.error = error.map(str::to_owned);
        });
        let answer = http(&server, "GET", "/health/ready", &auth).await;
        assert_eq!(answer.status, 503, "{name}");
        assert!(answer.header("retry-after").is_some());
        let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(body["status"], name);
        assert!(!body["reason"].as_str().unwrap().is_empty());
        assert_eq!(viewer(&server, ADA).await.err(), Some((503, 2)), "{name}");
        assert_eq!(http(&server, "GET", "/health/live", "").await.status, 200);
    }
    server.health.update(|status| {
        *status = HealthStatus {
            phase: Phase::Ready,
            model_loaded: true,
            ..HealthStatus::default()
        }
    });
    assert_eq!(
        http(&server, "GET", "/health/ready", &auth).await.status,
        200
    );
    assert!(viewer(&server, ADA).await.is_ok());
}

#[tokio::test]
async fn prometheus_is_told_what_happened() {
    let server = Server::start(with_tokens()).await;
    let auth = format!("Authorization: Bearer {ADA}\r\n");
    let mut v = viewer(&server, ADA).await.unwrap();
    v.ask(upload(&ARGON)).await;
    v.hear_frame().await;
    let answer = http(&server, "GET", "/metrics", &auth).await;
    let kind = answer.header("content-type").unwrap();
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    let text = answer.body;
    let messages = text
        .lines()
        .find_map(|line| line.strip_prefix("umaserve_messages_total "))
        .unwrap();
    assert!(messages.parse::<u64>().unwrap() >= 1, "{messages}");
    assert!(text.contains("umaserve_connections 2"), "{text}");
    assert!(text.contains("umaserve_build_info{version="), "{text}");
    assert!(text.trim_end().ends_with("# EOF"));
}

#[tokio::test]
async fn limits_hold_with_no_tokens_too() {
    let server = Server::start(ServerSettings {
        session: Arc::new(session_settings()),
        limits: Limits {
            max_total_atoms: 2,
            ..Limits::default()
        },
        ..ServerSettings::default()
    })
    .await;
    let mut v = server.viewer().await;
    v.ask(upload(&ARGON)).await;
    let notice = v.hear_notice().await;
    assert!(
        notice.message().contains("all sessions may have 2"),
        "{notice:?}"
    );
}
