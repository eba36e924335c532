//! A small engine on a thread of its own: real sessions, a potential of springs, no workers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Sender;
use umaserve::comm::SessionId;
use umaserve::server::FromViewer;
use umaserve::session::{ServerMessage, Session, SessionSettings};

use crate::worker::solve;

/// What the tests see of the engine.
#[derive(Default)]
pub struct Watch {
    /// While set, the engine hears nothing.
    pub frozen: AtomicBool,
    /// Once set, the engine ends.
    pub dead: AtomicBool,
    /// When set, the engine lets all its sessions go.
    pub expel: AtomicBool,
    /// Whose sessions have begun.
    pub owners: Mutex<Vec<String>>,
    pub sessions: AtomicUsize,
    /// Messages heard.
    pub messages: AtomicUsize,
}

pub fn run(events: Receiver<FromViewer>, settings: Arc<SessionSettings>, watch: Arc<Watch>) {
    let mut sessions: HashMap<SessionId, (Session, Sender<ServerMessage>)> = HashMap::new();
    loop {
        if watch.dead.load(Ordering::SeqCst) {
            return;
        }
        if watch.expel.swap(false, Ordering::SeqCst) {
            sessions.clear();
        }
        if watch.frozen.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        let now = Instant::now();
        let wake = sessions.values().filter_map(|(s, _)| s.wake_at()).min();
        let wait = wake.map_or(Duration::from_millis(20), |at| {
            at.saturating_duration_since(now)
        });
        let event = match events.recv_timeout(wait.min(Duration::from_millis(20))) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let now = Instant::now();
        match event {
            Some(FromViewer::Connected {
                id,
                to_viewer,
                owner,
            }) => {
                let session =
                    Session::new(id, Arc::clone(&settings), now).with_allowance(owner.allowance());
                watch.owners.lock().unwrap().push(owner.name.clone());
                sessions.insert(id, (session, to_viewer));
            }
            Some(FromViewer::Message { id, message }) => {
                watch.messages.fetch_add(1, Ordering::SeqCst);
                if let Some((session, _)) = sessions.get_mut(&id) {
                    session.receive(*message, now);
                }
            }
            Some(FromViewer::Announce { id, text }) => {
                if let Some((session, _)) = sessions.get_mut(&id) {
                    session.announce(&text);
                }
            }
            Some(FromViewer::Disconnected { id, place }) => {
                sessions.remove(&id);
                drop(place);
            }
            None => {}
        }
        sessions.retain(|_, (session, to_viewer)| {
            session.tick(now);
            let half = to_viewer.max_capacity() / 2;
            if (!session.is_running() || to_viewer.capacity() > half)
                && let Some(job) = session.next_job(now)
            {
                session.complete(solve(job), Instant::now());
            }
            session
                .take_output()
                .into_iter()
                .all(|message| to_viewer.try_send(message).is_ok())
        });
        watch.sessions.store(sessions.len(), Ordering::SeqCst);
    }
}
