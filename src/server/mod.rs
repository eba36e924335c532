//! The one asynchronous module: HTTP and WebSocket on one port.
//!
//! It only moves bytes. Every socket becomes a session of the engine: its messages go out through
//! an [`EngineSender`] and the answers come back through a bounded queue of its own. Nothing here
//! waits for the engine while holding anything that another socket needs.

pub mod convert;
mod health;
mod page;
mod recordings;
mod runtime;
mod socket;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Json, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};

pub use health::{Health, HealthStatus};
pub use recordings::{RecordingInfo, Recordings};
pub use runtime::{RunningServer, outlive_signals};

use crate::comm::SessionId;
use crate::session::{ClientMessage, ServerMessage, SessionSettings, Ticket};

/// How long sockets and requests may take to say goodbye when the server stops.
const GOODBYE: Duration = Duration::from_secs(5);

/// What the engine hears from the sockets, in order for each viewer.
#[derive(Debug)]
pub enum FromViewer {
    /// A viewer has connected.
    Connected {
        /// The new session.
        id: SessionId,
        /// Bounded queue towards the socket; use `try_send`. While it is full give the session
        /// no new step; drop the sender to end the connection.
        to_viewer: mpsc::Sender<ServerMessage>,
    },
    /// A message has arrived.
    Message {
        /// Whose.
        id: SessionId,
        /// What it says. Its ticket bounds what this viewer may have under way.
        message: Box<ClientMessage>,
    },
    /// The viewer is gone: stop its work and drop its session.
    Disconnected {
        /// Whose session.
        id: SessionId,
        /// The session's place among the allowed ones; drop it with the session.
        place: Ticket,
    },
}

/// The way into the engine. It may be full, but it never blocks.
pub trait EngineSender: Send + Sync + 'static {
    /// Hands over an event, or gives it back.
    ///
    /// # Errors
    /// The queue is full, or the engine is gone.
    fn try_send(&self, event: FromViewer) -> Result<(), TrySendError<FromViewer>>;
}

impl EngineSender for SyncSender<FromViewer> {
    fn try_send(&self, event: FromViewer) -> Result<(), TrySendError<FromViewer>> {
        SyncSender::try_send(self, event)
    }
}

/// Limits and times of the server.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// Limits of a session, which also decide which messages may be merged.
    pub session: Arc<SessionSettings>,
    /// Sessions at a time; more are refused with 503.
    pub max_sessions: usize,
    /// Bytes of one message; a larger one closes the socket with 1009.
    pub max_message_bytes: usize,
    /// Bytes of messages that a viewer may have under way before its socket is not read any more;
    /// at least one message always is.
    pub max_undigested_bytes: usize,
    /// Messages that may wait for a slow reader.
    pub max_outgoing: usize,
    /// Time between pings, and time in which something must come back.
    pub ping_interval: Duration,
    /// Time in which a message must leave; a viewer that does not read is dropped after it.
    pub write_timeout: Duration,
    /// The recordings that may be downloaded.
    pub recordings: Option<Arc<dyn Recordings>>,
}

impl Default for ServerSettings {
    fn default() -> Self {
        ServerSettings {
            session: Arc::default(),
            max_sessions: 256,
            max_message_bytes: 16 << 20,
            max_undigested_bytes: 32 << 20,
            max_outgoing: 32,
            ping_interval: Duration::from_secs(20),
            write_timeout: Duration::from_secs(20),
            recordings: None,
        }
    }
}

/// What every request may use.
struct Shared {
    to_engine: Arc<dyn EngineSender>,
    health: Arc<Health>,
    settings: ServerSettings,
    places: Arc<Semaphore>,
    last_id: AtomicU64,
    stopping: watch::Receiver<bool>,
    /// Never used: when the last socket is gone it is dropped, which ends the goodbye.
    _alive: mpsc::Sender<()>,
}

/// Serves until `stopping` becomes true (or its sender is dropped); then every socket is closed
/// with 1001 and the engine has been told that every viewer is gone.
///
/// # Errors
/// The listener fails.
pub async fn serve(
    listener: TcpListener,
    to_engine: Arc<dyn EngineSender>,
    health: Arc<Health>,
    settings: ServerSettings,
    stopping: watch::Receiver<bool>,
) -> io::Result<()> {
    let (alive, mut all_gone) = mpsc::channel(1);
    let shared = Arc::new(Shared {
        to_engine,
        health,
        places: Arc::new(Semaphore::new(settings.max_sessions)),
        settings,
        last_id: AtomicU64::new(0),
        stopping: stopping.clone(),
        _alive: alive,
    });
    let router = Router::new()
        .route("/", get(page::index))
        .route("/icon.svg", get(page::icon))
        .route("/assets/{name}", get(page::asset))
        .route("/recordings", get(recordings::list))
        .route("/recordings/{name}", get(recordings::file))
        .route("/ws", get(upgrade))
        .route("/serve/health", get(serve_health))
        .route("/uma/stats", get(stats))
        .route("/uma/reset", post(reset))
        .with_state(shared);
    // A frame is small and wanted now.
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY was refused");
        }
    });
    let server = axum::serve(listener, router).with_graceful_shutdown(stop(stopping.clone()));
    tokio::select! {
        result = server.into_future() => result?,
        // A connection that never finishes its request does not keep the server.
        () = async { stop(stopping).await; tokio::time::sleep(GOODBYE).await } => {}
    }
    let _ = tokio::time::timeout(GOODBYE, all_gone.recv()).await;
    Ok(())
}

/// Waits until the server is told to stop.
async fn stop(mut stopping: watch::Receiver<bool>) {
    // An error means that nobody is left who could say so: stop as well.
    let _ = stopping.wait_for(|&stop| stop).await;
}

async fn upgrade(State(shared): State<Arc<Shared>>, socket: WebSocketUpgrade) -> Response {
    let Ok(place) = Arc::clone(&shared.places).try_acquire_owned() else {
        let limit = shared.settings.max_sessions;
        tracing::warn!(limit, "a viewer was refused: all sessions are in use");
        let reason = format!("all {limit} sessions of this server are in use, try again later\n");
        return (StatusCode::SERVICE_UNAVAILABLE, reason).into_response();
    };
    let id = SessionId(shared.last_id.fetch_add(1, Ordering::Relaxed) + 1);
    let limit = shared.settings.max_message_bytes;
    socket
        .max_message_size(limit)
        .max_frame_size(limit)
        .on_upgrade(move |socket| socket::run(socket, id, Ticket::new(place), shared))
}

async fn serve_health(State(shared): State<Arc<Shared>>) -> Json<serde_json::Value> {
    let mut answer = shared.health.health();
    let free = shared.places.available_permits();
    answer["sessions"] = (shared.settings.max_sessions.saturating_sub(free)).into();
    answer["max_sessions"] = shared.settings.max_sessions.into();
    Json(answer)
}

async fn stats(State(shared): State<Arc<Shared>>) -> Json<serde_json::Value> {
    Json(shared.health.stats())
}

async fn reset(State(shared): State<Arc<Shared>>) -> Json<serde_json::Value> {
    shared.health.reset();
    Json(serde_json::json!({ "status": "ok" }))
}
