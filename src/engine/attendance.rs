//! Connections and the sessions behind them: who is there, who comes back, who is given up.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Ending, Engine, Farewell, RecordSink, RecordingNotice, Seat, StateStore, ToViewer};
use super::{NOTICE_INTERVAL, SessionId};
use crate::comm::Workers;
use crate::session::{ClientMessage, Content, Goodbye, Owner, ServerMessage, Session, SessionKey};

/// A viewer's connection.
pub(super) struct Connection {
    pub to_viewer: ToViewer,
    /// Who has opened it.
    owner: Arc<Owner>,
    /// Its session, from the first message on.
    session: Option<SessionId>,
}

impl Seat {
    /// When the session is given up unless a viewer comes.
    pub(super) fn expires(&mut self, now: Instant, reconnect: Duration) -> Option<Instant> {
        if self.session.is_attended() {
            return None;
        }
        if self.session.is_detached() {
            self.alone_since = now; // its time counts from the end of the simulation
            return None;
        }
        Some(self.alone_since + reconnect)
    }
}

impl<W: Workers, R: RecordSink, S: StateStore> Engine<W, R, S> {
    /// Takes over restored sessions, whose atoms count as those of their owners; the viewers are
    /// not there yet.
    pub fn adopt(&mut self, sessions: Vec<(Session, Arc<Owner>)>) {
        let now = Instant::now();
        for (mut session, owner) in sessions {
            session.draw_from(owner.allowance());
            let id = session.id();
            if let Some(key) = session.key() {
                self.keys.insert(key, id);
            }
            let seat = Seat::new(session, owner, now);
            self.sessions.insert(id, seat);
            self.touched.insert(id);
        }
    }

    pub(super) fn connect(&mut self, id: SessionId, to_viewer: ToViewer, owner: Arc<Owner>) {
        if self.ending.is_some() {
            say_goodbye(&to_viewer, Goodbye::Restarting);
            return;
        }
        let everyone_is_here = self.sessions.values().all(|seat| seat.viewer.is_some());
        if everyone_is_here && self.connections.len() >= self.settings.max_sessions {
            // Neither a session to resume nor room for a new one. Dropping the sender closes the
            // connection.
            return self.refuse(id);
        }
        let session = None;
        let connection = Connection {
            to_viewer,
            owner,
            session,
        };
        self.connections.insert(id, connection);
    }

    fn refuse(&self, id: SessionId) {
        let limit = self.settings.max_sessions;
        tracing::warn!(connection = id.0, limit, "refused: too many sessions");
    }

    /// A viewer has said something.
    pub(super) fn hear(&mut self, id: SessionId, mut message: ClientMessage, now: Instant) {
        let Some(connection) = self.connections.get(&id) else {
            return; // closed meanwhile
        };
        let session = match connection.session {
            Some(session) => session,
            None => match self.seat(id, &mut message, now) {
                Some(session) => session,
                None => {
                    self.connections.remove(&id);
                    return;
                }
            },
        };
        let asks = !matches!(message.payload, crate::session::Payload::None);
        let ends = message.end_session;
        self.with_session(session, |session| session.receive(message, now));
        if let Some(seat) = self.sessions.get_mut(&session) {
            seat.safekeeping.urgent |= asks;
        }
        if ends {
            self.part(session, Goodbye::Ended);
            self.end(session, &Farewell::Asked);
        }
    }

    /// Finds or makes the session of a connection whose first message this is.
    fn seat(
        &mut self,
        id: SessionId,
        message: &mut ClientMessage,
        now: Instant,
    ) -> Option<SessionId> {
        let owner = self.connections.get(&id)?.owner.clone();
        let attach = message.attach.take();
        let known = attach
            .as_deref()
            .and_then(SessionKey::parse)
            .and_then(|key| self.keys.get(&key).copied())
            // A session belongs to the token that has opened it, also after a restart. Without
            // tokens nobody can be told from another, and the secret session id is enough.
            .filter(|session| {
                let seat = self.sessions.get(session);
                let opened_by = seat.map_or("", |seat| &seat.owner.name);
                opened_by.is_empty() || owner.name.is_empty() || opened_by == owner.name
            });
        if let Some(session) = known {
            self.resume(session, id, message, now);
            return Some(session);
        }
        if self.sessions.len() >= self.settings.max_sessions && !self.make_room() {
            self.refuse(id);
            return None;
        }
        let session =
            Session::new(id, self.settings.session.clone(), now).with_allowance(owner.allowance());
        let mut seat = Seat::new(session, owner, now);
        seat.viewer = Some(id);
        if attach.is_some() {
            let key = match new_key() {
                Ok(key) => key,
                Err(error) => {
                    tracing::error!(%error, "no random numbers for a session id");
                    return None;
                }
            };
            seat.session.set_key(key);
            self.keys.insert(key, id);
        }
        self.sessions.insert(id, seat);
        self.connections.get_mut(&id)?.session = Some(id);
        if attach.is_some() {
            self.with_session(id, |session| session.attend(0, false, None, now));
        }
        Some(id)
    }

    /// A viewer comes back, perhaps while the server still believes it to be there.
    fn resume(
        &mut self,
        session: SessionId,
        connection: SessionId,
        message: &mut ClientMessage,
        now: Instant,
    ) {
        self.part(session, Goodbye::TakenOver);
        let owner = self.connections.get(&connection).map(|c| c.owner.clone());
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.session = Some(session);
        }
        let Some(seat) = self.sessions.get_mut(&session) else {
            return;
        };
        seat.viewer = Some(connection);
        if let Some(owner) = owner.filter(|owner| !Arc::ptr_eq(owner, &seat.owner)) {
            // Of a session that nobody in particular had: from now on its atoms are this owner's.
            seat.session.draw_from(owner.allowance());
            seat.owner = owner;
        }
        seat.span
            .in_scope(|| tracing::info!(connection = connection.0, "session resumed"));
        let recording = seat.recording.clone();
        let seen = message.ack.take().unwrap_or(0);
        // Counters of the viewer say nothing about what is contained in this state.
        message.user_interaction_count = None;
        message.sim_step = None;
        let count = &self.statistics.resumed_sessions;
        count.fetch_add(1, Ordering::Relaxed);
        self.with_session(session, |session| {
            session.attend(seen, true, recording, now);
        });
    }

    /// Closes the connection of a session, if it has one, after what is on its way.
    pub(super) fn part(&mut self, session: SessionId, reason: Goodbye) {
        // What still fits is sent; a viewer that does not read is closed without a word.
        let _ = self.forward(session);
        let Some(seat) = self.sessions.get_mut(&session) else {
            return;
        };
        seat.backlog.clear();
        if let Some(connection) = seat
            .viewer
            .take()
            .and_then(|id| self.connections.remove(&id))
        {
            say_goodbye(&connection.to_viewer, reason);
        }
    }

    /// Ends the session that has waited longest for its viewer; whether there was one.
    fn make_room(&mut self) -> bool {
        let oldest = self
            .sessions
            .iter()
            .filter(|(_, seat)| !seat.session.is_attended() && !seat.session.is_detached())
            .min_by_key(|(id, seat)| (seat.alone_since, **id))
            .map(|(&id, _)| id);
        if let Some(id) = oldest {
            self.end(id, &Farewell::Evicted);
        }
        oldest.is_some()
    }

    /// The viewer of a connection is to be told something.
    pub(super) fn announce(&mut self, connection: SessionId, text: &str) {
        let session = self.connections.get(&connection).and_then(|c| c.session);
        if let Some(session) = session {
            self.with_session(session, |session| session.announce(text));
        }
    }

    /// A connection has ended. A session with a key stays for a while.
    pub(super) fn disconnect(&mut self, id: SessionId, now: Instant) {
        let Some(session) = self.connections.remove(&id).and_then(|c| c.session) else {
            return;
        };
        let Some(seat) = self.sessions.get_mut(&session) else {
            return;
        };
        if seat.viewer != Some(id) {
            return;
        }
        seat.viewer = None;
        if seat.session.key().is_none() || self.settings.session.reconnect.is_zero() {
            return self.end(session, &Farewell::Disconnected);
        }
        seat.alone_since = now;
        seat.backlog.clear();
        seat.safekeeping.urgent = true;
        let detached = {
            seat.session.leave(now);
            seat.session.is_detached()
        };
        seat.span
            .in_scope(|| tracing::info!(detached, "the viewer is gone, the session stays"));
        self.touched.insert(session);
    }

    /// A viewer does not keep up: its connection ends, and its session unless that can wait.
    pub(super) fn let_go(&mut self, id: SessionId, farewell: &Farewell, now: Instant) {
        let seat = self.sessions.get(&id);
        match seat.and_then(|seat| seat.session.key().and(seat.viewer)) {
            Some(connection) => {
                tracing::warn!(session = id.0, ?farewell, "connection ended");
                self.disconnect(connection, now);
            }
            None => self.end(id, farewell),
        }
    }

    /// Ends a session: its work is dropped, its recording closed, its socket let go.
    pub(super) fn end(&mut self, id: SessionId, farewell: &Farewell) {
        let Some(mut seat) = self.sessions.remove(&id) else {
            return;
        };
        self.touched.remove(&id);
        self.scheduler.remove(id);
        if let Some(connection) = seat.viewer {
            self.connections.remove(&connection);
        }
        if let Some(key) = seat.session.key() {
            self.keys.remove(&key);
            self.store.forget(id);
        }
        if let Some(at) = seat.wake_at {
            self.deadlines.remove(&(at, id));
        }
        seat.span.in_scope(|| match farewell {
            Farewell::Disconnected => tracing::debug!("session ended"),
            Farewell::Asked => tracing::info!("session ended by its viewer"),
            Farewell::Forgotten => tracing::info!("session ended: nobody has come back"),
            Farewell::Evicted => tracing::warn!("session ended: its place was needed"),
            Farewell::TooSlow => tracing::warn!("session ended: the viewer does not read"),
            Farewell::TooManyMessages => tracing::warn!(
                limit = self.settings.max_waiting_messages,
                "session ended: too many undigested messages"
            ),
            Farewell::Panic(panic) => tracing::error!(panic, "session ended by an internal error"),
        });
        if !matches!(farewell, Farewell::Panic(_)) {
            seat.session.close();
        }
        for record in seat.session.take_records() {
            self.recorder.record(id, record);
        }
        self.recorder.close(id);
    }

    /// Tells the viewers what has happened to their recordings.
    pub(super) fn pass_notices(&mut self, now: Instant) {
        if now < self.next_notices {
            return;
        }
        self.next_notices = now + NOTICE_INTERVAL;
        for (id, notice) in self.recorder.take_notices() {
            let text = match &notice {
                RecordingNotice::Opened(_) | RecordingNotice::Closed => None,
                RecordingNotice::Failed(error) => {
                    let count = &self.statistics.recording_failures;
                    count.fetch_add(1, Ordering::Relaxed);
                    Some(format!("RECORDING_FAILED: {error}"))
                }
                RecordingNotice::Recovered(frames) => {
                    let count = &self.statistics.frames_lost;
                    count.fetch_add(*frames, Ordering::Relaxed);
                    Some(format!("RECORDING_RESUMED: {frames} frames are missing"))
                }
            };
            let Some(seat) = self.sessions.get_mut(&id) else {
                continue;
            };
            match notice {
                RecordingNotice::Opened(name) => seat.recording = Some(name),
                RecordingNotice::Closed => seat.recording = None,
                _ => {}
            }
            if let Some(text) = text {
                self.with_session(id, |session| session.announce(&text));
            }
        }
    }

    pub(super) fn count_sessions(&self) {
        let (mut held, mut detached) = (0, 0);
        for seat in self.sessions.values() {
            let goes_on = seat.session.is_detached();
            detached += u64::from(goes_on);
            held += u64::from(!goes_on && !seat.session.is_attended());
        }
        let statistics = &self.statistics;
        let all = self.sessions.len() as u64;
        statistics.sessions.store(all, Ordering::Relaxed);
        statistics
            .detached_sessions
            .store(detached, Ordering::Relaxed);
        statistics.held_sessions.store(held, Ordering::Relaxed);
    }

    /// Tells all viewers that the server ends, and closes their sockets.
    pub(super) fn send_away(&mut self, ending: &Ending) {
        let text = match ending {
            Ending::Stopped => return, // the server has closed the sockets
            Ending::Drained => "SERVER_DRAINING: the server starts again, come back".to_owned(),
            Ending::Failed(_) => "SERVER_DRAINING: a fault, the server starts again".to_owned(),
        };
        let ids: Vec<SessionId> = self.sessions.keys().copied().collect();
        for id in ids {
            self.with_session(id, |session| session.announce(&text));
            self.part(id, Goodbye::Restarting);
        }
        for (_, connection) in self.connections.drain() {
            say_goodbye(&connection.to_viewer, Goodbye::Restarting);
        }
    }
}

fn say_goodbye(to_viewer: &ToViewer, reason: Goodbye) {
    // Without room for it the socket closes without a reason.
    let _ = to_viewer.try_send(ServerMessage {
        seq: 0,
        client_seq: 0,
        user_interaction_count: None,
        sim_step: None,
        content: Content::Goodbye(reason),
    });
}

fn new_key() -> Result<SessionKey, getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(SessionKey::from_bytes(bytes))
}
