//! A server on a free port with its engine, and viewers that talk to it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{self, Bytes, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use umaserve::server::convert::proto::{
    ClientAction, IntDelta, ServerResult, SimulationParams, UserInteractionSparse, Vec3Delta,
    client_action::{Payload, Start, Stop},
    server_result::{self, Frame, Notice},
    user_interaction_sparse::FullUpdateFlag,
};
use umaserve::server::{Health, HealthStatus, Listener, Phase, ServerSettings, Tls, serve};
use umaserve::session::SessionSettings;

use crate::engine::{self, Watch};

/// What a viewer is told that has not been scheduled for a quarter of a second.
pub const BEHIND: &str = "WAITING_FOR_ACK";

/// Nothing in these tests takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Server {
    pub address: SocketAddr,
    pub health: Arc<Health>,
    pub watch: Arc<Watch>,
    pub stop: watch::Sender<bool>,
    pub served: tokio::task::JoinHandle<std::io::Result<()>>,
}

pub fn session_settings() -> SessionSettings {
    SessionSettings {
        frame_interval: Duration::ZERO,
        tasks: vec!["omol".into()],
        ..SessionSettings::default()
    }
}

impl Server {
    pub async fn start(settings: ServerSettings) -> Self {
        Self::start_with(settings, None, None).await
    }

    /// The same behind TLS, and with further doors.
    pub async fn start_with(
        settings: ServerSettings,
        tls: Option<Tls>,
        door: Option<Listener>,
    ) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (to_engine, events) = std::sync::mpsc::sync_channel(64);
        let watch = Arc::new(Watch::default());
        let (session, seen) = (Arc::clone(&settings.session), Arc::clone(&watch));
        std::thread::spawn(move || engine::run(events, session, seen));
        let health = Arc::new(Health::new(HealthStatus {
            model: "springs".into(),
            task: "omol".into(),
            model_loaded: true,
            workers: 1,
            phase: Phase::Ready,
            ..HealthStatus::default()
        }));
        health.count(3);
        let (stop, stopping) = watch::channel(false);
        let served = tokio::spawn(serve(
            std::iter::once(listener.into()).chain(door).collect(),
            tls,
            Arc::new(to_engine),
            health.clone(),
            settings,
            stopping,
        ));
        Server {
            address,
            health,
            watch,
            stop,
            served,
        }
    }

    pub async fn default() -> Self {
        Self::start(ServerSettings {
            session: Arc::new(session_settings()),
            ..ServerSettings::default()
        })
        .await
    }

    pub async fn viewer(&self) -> Viewer {
        let url = format!("ws://{}/ws?session=x&y=1", self.address);
        let (socket, _) = connect_async(url).await.expect("upgrade");
        Viewer {
            socket,
            seq: 0,
            acknowledge: true,
        }
    }

    /// One HTTP request, its status line and body.
    pub async fn http(&self, method: &str, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1.to_owned();
        (status, body)
    }

    pub async fn json(&self, method: &str, path: &str) -> serde_json::Value {
        let (status, body) = self.http(method, path).await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// Waits until the engine has this many sessions.
    pub async fn sessions(&self, count: usize) {
        eventually(|| self.watch.sessions.load(Ordering::SeqCst) == count).await;
    }
}

/// Waits until something becomes true.
pub async fn eventually(mut what: impl FnMut() -> bool) {
    let waiting = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .expect("it should have come true");
}

#[derive(Debug)]
pub struct Viewer {
    pub socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    pub seq: u64,
    /// Acknowledges every message that is read.
    pub acknowledge: bool,
}

impl Viewer {
    pub async fn raw(&mut self, message: Message) {
        self.socket.send(message).await.unwrap();
    }

    pub async fn say(&mut self, mut action: ClientAction) {
        self.seq += 1;
        action.seq = self.seq;
        action.schema_version = 1;
        self.raw(Message::Binary(action.encode_to_vec().into()))
            .await;
    }

    pub async fn ask(&mut self, payload: Payload) {
        self.say(ClientAction {
            payload: Some(payload),
            ..ClientAction::default()
        })
        .await;
    }

    pub async fn acks(&mut self, ack: u64) {
        self.say(ClientAction {
            ack: Some(ack),
            ..ClientAction::default()
        })
        .await;
    }

    /// The next binary message.
    pub async fn hear(&mut self) -> ServerResult {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.socket.next()).await;
            match next.expect("an answer").expect("an open socket").unwrap() {
                Message::Binary(bytes) => {
                    let result = ServerResult::decode(bytes).unwrap();
                    assert_eq!(result.schema_version, 1);
                    assert!(result.client_seq.is_some());
                    if self.acknowledge {
                        self.acks(result.seq).await;
                    }
                    return result;
                }
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    pub async fn hear_frame(&mut self) -> (ServerResult, Frame) {
        loop {
            let mut result = self.hear().await;
            match result.payload.take() {
                Some(server_result::Payload::Frame(frame)) => return (result, frame),
                Some(server_result::Payload::Notice(notice)) if notice.message() == BEHIND => {}
                other => panic!("{other:?}"),
            }
        }
    }

    pub async fn hear_notice(&mut self) -> Notice {
        match self.hear().await.payload {
            Some(server_result::Payload::Notice(notice)) => notice,
            other => panic!("{other:?}"),
        }
    }

    /// Reads until the server closes; the close frame if there was one.
    pub async fn hear_close(&mut self) -> Option<CloseFrame> {
        let closing = async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Close(frame))) => return frame,
                    Some(Ok(_)) => {}
                    Some(Err(tungstenite::Error::ConnectionClosed)) | None => return None,
                    Some(Err(error)) => panic!("{error}"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, closing)
            .await
            .expect("a close")
    }
}

pub fn upload(positions: &[[f64; 3]]) -> Payload {
    let indices: Vec<u32> = (0..positions.len() as u32).collect();
    Payload::UserInteraction(UserInteractionSparse {
        natoms: positions.len() as u32,
        atomic_numbers: Some(IntDelta {
            values: vec![18; indices.len()],
            indices: indices.clone(),
        }),
        positions: Some(Vec3Delta {
            indices,
            coords: positions.concat(),
        }),
        full_update_flag: Some(FullUpdateFlag::FullUpdate(true)),
        ..UserInteractionSparse::default()
    })
}

pub fn drag(atom: u32, to: [f64; 3]) -> Payload {
    Payload::UserInteraction(UserInteractionSparse {
        positions: Some(Vec3Delta {
            indices: vec![atom],
            coords: to.to_vec(),
        }),
        full_update_flag: Some(FullUpdateFlag::FullUpdate(false)),
        ..UserInteractionSparse::default()
    })
}

pub fn start_md() -> Payload {
    Payload::Start(Start {
        simulation_type: 0,
        simulation_params: Some(SimulationParams {
            calculator: "uma".into(),
            temperature: 300.0,
            timestep_fs: 1.0,
            friction: 0.5,
            ..SimulationParams::default()
        }),
    })
}

pub fn stop() -> Payload {
    Payload::Stop(Stop {})
}

pub fn binary(bytes: &[u8]) -> Message {
    Message::Binary(Bytes::copy_from_slice(bytes))
}

/// The bytes of a message.
pub fn action(payload: Payload) -> Vec<u8> {
    let action = ClientAction {
        seq: 1,
        payload: Some(payload),
        ..ClientAction::default()
    };
    action.encode_to_vec()
}
