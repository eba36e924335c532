//! One WebSocket: a reading half that hands messages to the engine and a writing half that sends
//! the answers. They are two tasks, so that a viewer that does not read can still be heard.

use std::sync::Arc;
use std::sync::mpsc::TrySendError;
use std::time::Duration;

use axum::Error;
use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::Instrument as _;

use super::convert;
use super::limits::{Account, Rate};
use super::{FromViewer, ServerSettings, Shared};
use crate::comm::SessionId;
use crate::session::{ClientMessage, Content, Goodbye, ServerMessage, Ticket};

/// How soon to knock again at an engine that is full.
const RETRY: Duration = Duration::from_millis(2);
/// How long a socket stays open after a close frame.
const LINGER: Duration = Duration::from_secs(1);
/// A viewer that sends too much is told so this often.
const TELL_AGAIN: Duration = Duration::from_secs(10);
/// Close code of a socket whose session goes on with another one; of the range for applications.
const TAKEN_OVER: u16 = 4001;
/// Unit of the quota of undigested messages, bytes; the least that a message counts.
const QUOTA_UNIT: usize = 16 << 10;

/// What the reading half asks of the writing half.
enum Order {
    Ping,
    Close(u16, &'static str),
}

/// Serves one socket until either side has had enough.
pub(super) async fn run(
    socket: WebSocket,
    id: SessionId,
    place: Ticket,
    account: &Account,
    shared: Arc<Shared>,
) {
    async {
        tracing::info!("viewer connected");
        let (to_viewer, outgoing) = mpsc::channel(shared.settings.max_outgoing.max(1));
        let connected = FromViewer::Connected {
            id,
            to_viewer,
            owner: account.owner.clone(),
        };
        if deliver(&shared, connected).await {
            let (sink, stream) = socket.split();
            let (orders, ordered) = mpsc::channel(4);
            let timeout = shared.settings.write_timeout;
            let mut writing =
                tokio::spawn(write(sink, outgoing, ordered, timeout).in_current_span());
            let mut reading = Reading::new(id, stream, orders, account, &shared);
            tokio::select! {
                goodbye = reading.run() => if let Some((code, reason)) = goodbye {
                    let close = async {
                        if reading.orders.send(Order::Close(code, reason)).await.is_ok() {
                            let _ = (&mut writing).await;
                        }
                    };
                    let _ = tokio::time::timeout(LINGER, close).await;
                    reading.linger().await;
                },
                _ = &mut writing => reading.linger().await,
            }
            writing.abort();
        }
        deliver(&shared, FromViewer::Disconnected { id, place }).await;
        tracing::info!("viewer gone");
    }
    .instrument(tracing::info_span!("session", id = id.0, owner = %account.owner.name))
    .await;
}

/// Hands an event to the engine, however long that takes; false if the engine is gone.
async fn deliver(shared: &Shared, mut event: FromViewer) -> bool {
    loop {
        match shared.to_engine.try_send(event) {
            Ok(()) => return true,
            Err(TrySendError::Full(back)) => event = back,
            Err(TrySendError::Disconnected(_)) => return false,
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// A message on its way to the engine.
struct Waiting {
    message: Box<ClientMessage>,
    /// What it takes from the quota.
    cost: u32,
    /// Whether it has got that: then its ticket holds the permit.
    admitted: bool,
}

impl Waiting {
    fn new(message: ClientMessage, cost: u32) -> Self {
        Waiting {
            message: Box::new(message),
            cost,
            admitted: false,
        }
    }

    fn admit(&mut self, permit: OwnedSemaphorePermit) {
        self.message.ticket = Ticket::new(permit);
        self.admitted = true;
    }
}

/// The reading half.
struct Reading<'a> {
    id: SessionId,
    stream: SplitStream<WebSocket>,
    orders: mpsc::Sender<Order>,
    shared: &'a Shared,
    account: &'a Account,
    /// Messages of this session.
    rate: Rate,
    /// Too many messages have come: nothing is read until then.
    paused_until: Option<Instant>,
    /// When the viewer was told so.
    told_at: Option<Instant>,
    /// When the last message came.
    last_message: Instant,
    /// What this viewer may still have under way.
    quota: Arc<Semaphore>,
    quota_units: u32,
    /// The message that is next, and one more that cannot be merged into it. While both are there
    /// nothing is read: the viewer is slowed down by TCP.
    next: Option<Waiting>,
    blocked: Option<Waiting>,
    last_heard: Instant,
    /// The viewer may still be sending what cannot be read any more.
    unread: bool,
}

impl<'a> Reading<'a> {
    fn new(
        id: SessionId,
        stream: SplitStream<WebSocket>,
        orders: mpsc::Sender<Order>,
        account: &'a Account,
        shared: &'a Shared,
    ) -> Self {
        let quota_units = quota_units(&shared.settings);
        Reading {
            id,
            stream,
            orders,
            shared,
            account,
            rate: Rate::new(shared.settings.limits.max_message_rate),
            paused_until: None,
            told_at: None,
            last_message: Instant::now(),
            quota: Arc::new(Semaphore::new(quota_units as usize)),
            quota_units,
            next: None,
            blocked: None,
            last_heard: Instant::now(),
            unread: false,
        }
    }

    /// Reads until there is nothing more to read; answers why the socket is to be closed, unless it
    /// is closed already.
    async fn run(&mut self) -> Option<(u16, &'static str)> {
        let interval = self.shared.settings.ping_interval;
        let mut pings = tokio::time::interval_at(Instant::now() + interval, interval);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stop = super::stop(self.shared.stopping.clone());
        tokio::pin!(stop);
        let idle_timeout = self.shared.settings.idle_timeout;
        loop {
            if !self.hand_over() {
                return Some((close_code::ERROR, "the engine has stopped"));
            }
            let quota = Arc::clone(&self.quota);
            let cost = self.next.as_ref().map_or(0, |next| next.cost);
            let admitted = self.next.as_ref().is_some_and(|next| next.admitted);
            let paused_until = self.paused_until;
            let reads = self.blocked.is_none() && paused_until.is_none();
            let idle_at = idle_timeout
                .filter(|_| reads)
                .map(|idle| self.last_message + idle);
            tokio::select! {
                () = at(paused_until) => {
                    self.paused_until = None;
                    self.last_heard = Instant::now(); // reading begins again
                }
                () = at(idle_at) => {
                    tracing::info!(?idle_timeout, "the viewer says nothing");
                    return Some((close_code::POLICY, "nothing was said for too long"));
                }
                received = self.stream.next(), if reads => {
                    self.last_heard = Instant::now();
                    match received {
                        Some(Ok(message)) => self.take(message),
                        Some(Err(error)) => return self.refuse(error),
                        None => return None,
                    }
                }
                permit = quota.acquire_many_owned(cost), if cost > 0 && !admitted => {
                    if let (Some(next), Ok(permit)) = (&mut self.next, permit) {
                        next.admit(permit);
                    }
                }
                () = tokio::time::sleep(RETRY), if admitted => {} // the engine is full
                due = pings.tick() => {
                    // A process that was suspended itself has not listened either.
                    if due.elapsed() > interval / 2 {
                        self.last_heard = Instant::now();
                    }
                    // A socket that is not read cannot answer.
                    let silent = self.last_heard.elapsed();
                    if reads && silent >= 2 * interval {
                        tracing::info!(?silent, "the viewer does not answer pings");
                        return None;
                    }
                    let _ = self.orders.try_send(Order::Ping);
                }
                () = &mut stop => return Some((close_code::AWAY, "the server stops")),
            }
        }
    }

    /// Hands over what can be handed over now; false if the engine is gone.
    fn hand_over(&mut self) -> bool {
        while let Some(mut next) = self.next.take() {
            if !next.admitted {
                match Arc::clone(&self.quota).try_acquire_many_owned(next.cost) {
                    Ok(permit) => next.admit(permit),
                    Err(_) => {
                        self.next = Some(next);
                        break;
                    }
                }
            }
            let cost = next.cost;
            let event = FromViewer::Message {
                id: self.id,
                message: next.message,
            };
            match self.shared.to_engine.try_send(event) {
                Ok(()) => {
                    self.next = self.blocked.take();
                    if self.next.is_some() {
                        self.last_heard = Instant::now(); // reading begins again
                        self.last_message = self.last_heard;
                    }
                }
                Err(TrySendError::Full(FromViewer::Message { message, .. })) => {
                    self.next = Some(Waiting {
                        message,
                        cost,
                        admitted: true,
                    });
                    break;
                }
                Err(_) => return false,
            }
        }
        true
    }

    /// Takes what the viewer has sent.
    fn take(&mut self, message: Message) {
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => {
                tracing::debug!(bytes = text.len(), "a text frame was ignored");
                return;
            }
            // A goodbye is answered by the library; the stream ends after it.
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) => return,
        };
        self.count(bytes.len());
        let cost = (bytes.len().div_ceil(QUOTA_UNIT) as u32).clamp(1, self.quota_units);
        let message = match convert::decode(bytes) {
            Ok(message) => message,
            Err(error) => {
                tracing::debug!(%error, "a binary frame that is no message was ignored");
                return;
            }
        };
        match &mut self.next {
            None => self.next = Some(Waiting::new(message, cost)),
            Some(next) => {
                let settings = &self.shared.settings.session;
                match next.message.merge(message, settings) {
                    None => next.cost = next.cost.max(cost),
                    Some(message) => self.blocked = Some(Waiting::new(message, cost)),
                }
            }
        }
    }

    /// Counts a message. Beyond the rates the socket is not read for a while, so that the viewer
    /// is slowed down and nothing is lost; it is told once in a while.
    fn count(&mut self, bytes: usize) {
        let now = Instant::now();
        self.last_message = now;
        let metrics = &self.shared.metrics;
        metrics.messages.inc();
        metrics.message_bytes.inc_by(bytes as u64);
        let clock = now.into_std();
        let limits = &self.shared.settings.limits;
        let (wait, whose, limit) = [
            (
                self.rate.take(clock),
                "this session",
                limits.max_message_rate,
            ),
            (
                self.account.count_message(clock),
                "the sessions of this token",
                limits.max_message_rate_per_token,
            ),
            (
                self.shared.messages.take(clock),
                "all sessions",
                limits.max_total_message_rate,
            ),
        ]
        .into_iter()
        .max_by_key(|(wait, _, _)| *wait)
        .unwrap_or_default();
        if wait.is_zero() {
            return;
        }
        self.paused_until = Some(now + wait);
        if self.told_at.is_none_or(|at| now > at + TELL_AGAIN) {
            self.told_at = Some(now);
            metrics.count_refusal("message_rate");
            let text = format!(
                "RATE_LIMITED: {whose} may send {limit} messages per second; they are read more \
                 slowly"
            );
            let id = self.id;
            // A full engine has other troubles than one notice.
            let _ = self
                .shared
                .to_engine
                .try_send(FromViewer::Announce { id, text });
        }
    }

    /// The socket cannot be read any further.
    fn refuse(&mut self, error: Error) -> Option<(u16, &'static str)> {
        let error = error.into_inner();
        match error.downcast_ref::<tungstenite::Error>() {
            Some(tungstenite::Error::Capacity(error)) => {
                tracing::info!(%error, "a message beyond --max-message-mib (bytes)");
                self.unread = true;
                Some((close_code::SIZE, "the message is too large"))
            }
            Some(tungstenite::Error::Protocol(violation)) => {
                tracing::debug!(%violation, "not a WebSocket conversation");
                self.unread = true;
                Some((close_code::PROTOCOL, "not a WebSocket conversation"))
            }
            _ => {
                tracing::debug!(%error, "the connection broke");
                None
            }
        }
    }

    /// Keeps the socket open until the viewer has seen the close frame and closes it, or for a
    /// while: a viewer that is still sending would see a reset otherwise.
    async fn linger(&mut self) {
        if self.unread {
            return tokio::time::sleep(LINGER).await;
        }
        let drain = async { while let Some(Ok(_)) = self.stream.next().await {} };
        let _ = tokio::time::timeout(LINGER, drain).await;
    }
}

/// Waits until then, or for ever.
async fn at(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

fn quota_units(settings: &ServerSettings) -> u32 {
    let units = settings.max_undigested_bytes.div_ceil(QUOTA_UNIT).max(1);
    u32::try_from(units).unwrap_or(u32::MAX).min(1 << 28)
}

/// The writing half: answers in order, pings and the close frame in between. It ends with the
/// close frame, when the viewer does not read in time, or when the connection breaks.
async fn write(
    mut sink: SplitSink<WebSocket, Message>,
    mut outgoing: mpsc::Receiver<ServerMessage>,
    mut orders: mpsc::Receiver<Order>,
    timeout: Duration,
) {
    loop {
        let (message, last) = tokio::select! {
            biased;
            order = orders.recv() => match order {
                Some(Order::Ping) => (Message::Ping(Bytes::new()), false),
                Some(Order::Close(code, reason)) => (goodbye(code, reason), true),
                None => return,
            },
            answer = outgoing.recv() => match answer {
                Some(ServerMessage { content: Content::Goodbye(reason), .. }) => {
                    let (code, reason) = parting(reason);
                    (goodbye(code, reason), true)
                }
                Some(answer) => (Message::Binary(convert::encode(&answer)), false),
                None => (goodbye(close_code::AGAIN, "the session has ended"), true),
            },
        };
        match tokio::time::timeout(timeout, sink.send(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(%error, "the connection broke");
                return;
            }
            Err(_) => {
                tracing::info!("the viewer does not read");
                return;
            }
        }
        if last {
            return;
        }
    }
}

/// Close code and reason of a goodbye.
fn parting(reason: Goodbye) -> (u16, &'static str) {
    match reason {
        Goodbye::Ended => (close_code::NORMAL, "the session has ended"),
        Goodbye::TakenOver => (TAKEN_OVER, "taken over by another connection"),
        Goodbye::Restarting => (close_code::RESTART, "the server starts again"),
    }
}

fn goodbye(code: u16, reason: &'static str) -> Message {
    Message::Close(Some(CloseFrame {
        code,
        reason: reason.into(),
    }))
}
