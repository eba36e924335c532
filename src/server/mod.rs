//! The one asynchronous module: HTTP and WebSocket on one port.
//!
//! It only moves bytes. Every socket becomes a session of the engine: its messages go out through
//! an [`EngineSender`] and the answers come back through a bounded queue of its own. Nothing here
//! waits for the engine while holding anything that another socket needs.

mod access;
pub mod client;
pub mod convert;
mod health;
mod limits;
mod listen;
mod page;
mod recordings;
mod runtime;
mod socket;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use axum::Extension;
use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Json, State};
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::sync::{Semaphore, mpsc, watch};

pub use access::{AccessSettings, Token};
pub use health::{Health, HealthStatus, Phase, RankStatus};
pub use limits::Limits;
pub use listen::{Listener, Tls, UnixSocket};
pub use recordings::{RecordingInfo, Recordings};
pub use runtime::{RunningServer, StopReason, outlive_signals};

use access::{Access, busy, doorkeeper};
use limits::{Account, NoPlace, Places, Rate};
use listen::{Door, Held};

use crate::comm::SessionId;
use crate::metrics::Metrics;
use crate::session::{ClientMessage, Owner, Owners, ServerMessage, SessionSettings, Ticket};

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
        /// Whose session it is.
        owner: Arc<Owner>,
    },
    /// The viewer is to be told something that the socket has noticed.
    Announce {
        /// Which viewer.
        id: SessionId,
        /// The text of the notice.
        text: String,
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
    /// Who may come in.
    pub access: AccessSettings,
    /// Bounds per token and in all.
    pub limits: Limits,
    /// Who has sessions already; none: nobody.
    pub owners: Option<Arc<Owners>>,
    /// What stands in front of every path, such as `/node/n7/8000`; empty for nothing.
    pub path_prefix: String,
    /// Whether connections are encrypted.
    pub tls: bool,
    /// Threads that move bytes. Encoding a large frame takes one of them for a moment.
    pub threads: usize,
    /// Connections at a time; more wait.
    pub max_connections: usize,
    /// Time for the handshake of TLS, for the head of a request, and between two requests.
    pub handshake_timeout: Duration,
    /// A session whose viewer says nothing for so long is closed with 1008.
    pub idle_timeout: Option<Duration>,
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
    /// Number of the last session that exists already; sockets are numbered from the next on.
    pub last_session: u64,
    /// The recordings that may be downloaded.
    pub recordings: Option<Arc<dyn Recordings>>,
}

impl Default for ServerSettings {
    fn default() -> Self {
        ServerSettings {
            session: Arc::default(),
            access: AccessSettings::default(),
            limits: Limits::default(),
            owners: None,
            path_prefix: String::new(),
            tls: false,
            threads: 2,
            max_connections: 1024,
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: None,
            max_message_bytes: 16 << 20,
            max_undigested_bytes: 32 << 20,
            max_outgoing: 32,
            ping_interval: Duration::from_secs(20),
            write_timeout: Duration::from_secs(20),
            last_session: 0,
            recordings: None,
        }
    }
}

/// What every request may use.
struct Shared {
    to_engine: Arc<dyn EngineSender>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    settings: ServerSettings,
    access: Access,
    places: Places,
    /// Messages of all sessions.
    messages: Rate,
    last_id: AtomicU64,
    stopping: watch::Receiver<bool>,
    /// Never used: when the last socket is gone it is dropped, which ends the goodbye.
    _alive: mpsc::Sender<()>,
}

/// Serves until `stopping` becomes true (or its sender is dropped); then every socket is closed
/// with 1001 and the engine has been told that every viewer is gone.
///
/// # Errors
/// A listener fails.
pub async fn serve(
    listeners: Vec<Listener>,
    tls: Option<Tls>,
    to_engine: Arc<dyn EngineSender>,
    health: Arc<Health>,
    settings: ServerSettings,
    stopping: watch::Receiver<bool>,
) -> io::Result<()> {
    let (alive, mut all_gone) = mpsc::channel(1);
    let limits = &settings.limits;
    let owners = settings.owners.clone();
    let owners = owners.unwrap_or_else(|| Arc::new(limits.owners()));
    let account = |name: &str| Account::new(owners.named(name), limits);
    let shared = Arc::new(Shared {
        to_engine,
        metrics: health.metrics(),
        health,
        access: Access::new(&settings.access, account),
        places: Places::new(limits.max_sessions),
        messages: Rate::new(limits.max_total_message_rate),
        last_id: AtomicU64::new(settings.last_session),
        stopping: stopping.clone(),
        settings,
        _alive: alive,
    });
    let places = Semaphore::new(shared.settings.max_connections);
    let door = Door {
        router: routes(shared.clone()),
        shared,
        tls,
        places: Arc::new(places),
        stopping: stopping.clone(),
    };
    let doors: Vec<_> = listeners
        .into_iter()
        .map(|listener| tokio::spawn(door.clone().open(listener)))
        .collect();
    drop(door);
    for opened in doors {
        opened
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))?;
    }
    // All doors are closed: the server stops. A connection that never ends does not keep it.
    let _ = tokio::time::timeout(GOODBYE, all_gone.recv()).await;
    Ok(())
}

/// What is answered where. Behind the doorkeeper stands everything that shows or changes
/// something; before it the page itself, which holds no secret and asks for the token.
fn routes(shared: Arc<Shared>) -> Router {
    let open = Router::new()
        .route("/", get(page::index))
        .route("/icon.svg", get(page::icon))
        .route("/assets/{name}", get(page::asset))
        .route("/health/live", get(live));
    let closed = Router::new()
        .route("/ws", get(upgrade))
        .route("/health/ready", get(ready))
        .route("/serve/health", get(serve_health))
        .route("/serve/status", get(status))
        .route("/metrics", get(metrics))
        .route("/recordings", get(recordings::list))
        .route("/recordings/{name}", get(recordings::file))
        .route("/uma/stats", get(stats))
        .route("/uma/reset", post(reset))
        .route_layer(middleware::from_fn_with_state(shared.clone(), doorkeeper));
    open.merge(closed).with_state(shared)
}

/// Waits until the server is told to stop.
async fn stop(mut stopping: watch::Receiver<bool>) {
    // An error means that nobody is left who could say so: stop as well.
    let _ = stopping.wait_for(|&stop| stop).await;
}

async fn upgrade(
    State(shared): State<Arc<Shared>>,
    Extension(account): Extension<Arc<Account>>,
    Extension(held): Extension<Arc<Held>>,
    socket: WebSocketUpgrade,
) -> Response {
    if let Some((phase, reason)) = shared.health.not_ready() {
        return not_ready(phase, &reason);
    }
    let wait = Duration::from_secs(10);
    let place = match shared.places.take(&account) {
        Ok(place) => place,
        Err(NoPlace::Token(limit)) => {
            shared.metrics.count_refusal("sessions_per_token");
            tracing::warn!(limit, owner = %account.owner.name, "a viewer was refused: all sessions of its token are in use");
            let reason = format!("all {limit} sessions of this token are in use, try again later");
            return busy(StatusCode::TOO_MANY_REQUESTS, wait, &reason);
        }
        Err(NoPlace::Server(limit)) => {
            shared.metrics.count_refusal("sessions");
            tracing::warn!(limit, "a viewer was refused: all sessions are in use");
            let reason = format!("all {limit} sessions of this server are in use, try again later");
            return busy(StatusCode::SERVICE_UNAVAILABLE, wait, &reason);
        }
    };
    let id = SessionId(shared.last_id.fetch_add(1, Ordering::Relaxed) + 1);
    let limit = shared.settings.max_message_bytes;
    socket
        .max_message_size(limit)
        .max_frame_size(limit)
        .on_upgrade(move |socket| async move {
            socket::run(socket, id, place, &account, shared).await;
            drop(held);
        })
}

async fn live() -> Json<serde_json::Value> {
    Json(serde_json::json!({ "status": "ok" }))
}

async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    match shared.health.not_ready() {
        None => Json(serde_json::json!({ "status": "ready" })).into_response(),
        Some((phase, reason)) => not_ready(phase, &reason),
    }
}

fn not_ready(phase: Phase, reason: &str) -> Response {
    let wait = Duration::from_secs(2);
    let body = serde_json::json!({ "status": phase.name(), "reason": reason });
    let head = [(header::RETRY_AFTER, wait.as_secs().to_string())];
    (StatusCode::SERVICE_UNAVAILABLE, head, Json(body)).into_response()
}

async fn status(State(shared): State<Arc<Shared>>) -> Json<serde_json::Value> {
    Json(shared.health.report())
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], shared.metrics.text()).into_response()
}

async fn serve_health(State(shared): State<Arc<Shared>>) -> Json<serde_json::Value> {
    let mut answer = shared.health.health();
    answer["sessions"] = shared.places.taken().into();
    answer["max_sessions"] = shared.settings.limits.max_sessions.into();
    Json(answer)
}

async fn stats(State(shared): State<Arc<Shared>>) -> Json<serde_json::Value> {
    Json(shared.health.stats())
}

async fn reset(State(shared): State<Arc<Shared>>) -> Json<serde_json::Value> {
    shared.health.reset();
    Json(serde_json::json!({ "status": "ok" }))
}
