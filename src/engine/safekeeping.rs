//! Keeping the states of the sessions, so that they survive this process.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Seat, Statistics};
use crate::comm::SessionId;

/// Least time between two saves of a session after something that its viewer has asked for.
const URGENT: Duration = Duration::from_millis(100);

/// Where the states of sessions are kept for a restart. Nothing here blocks but `finish`.
pub trait StateStore {
    /// Longest time between two saves of a session that changes; `None` if nothing is kept.
    fn interval(&self) -> Option<Duration>;

    /// Whether saves wait for the disk: more of them would not come sooner.
    fn is_behind(&self) -> bool;

    /// Replaces the state of a session, which belongs to `owner` (the name of a token).
    /// `recorded`: the state may be kept only once all frames that were recorded before this call
    /// are safe.
    fn save(&mut self, session: SessionId, owner: &str, state: Vec<u8>, recorded: bool);

    /// The session has ended: its state is removed.
    fn forget(&mut self, session: SessionId);

    /// Returns when everything is on disk.
    fn finish(&mut self);
}

/// Keeps nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoStore;

impl StateStore for NoStore {
    fn interval(&self) -> Option<Duration> {
        None
    }

    fn is_behind(&self) -> bool {
        false
    }

    fn save(&mut self, _: SessionId, _: &str, _: Vec<u8>, _: bool) {}
    fn forget(&mut self, _: SessionId) {}
    fn finish(&mut self) {}
}

impl<S: StateStore + ?Sized> StateStore for Box<S> {
    fn interval(&self) -> Option<Duration> {
        (**self).interval()
    }

    fn is_behind(&self) -> bool {
        (**self).is_behind()
    }

    fn save(&mut self, session: SessionId, owner: &str, state: Vec<u8>, recorded: bool) {
        (**self).save(session, owner, state, recorded);
    }

    fn forget(&mut self, session: SessionId) {
        (**self).forget(session);
    }

    fn finish(&mut self) {
        (**self).finish();
    }
}

/// When a session was saved last, and what of it.
#[derive(Debug, Default)]
pub(super) struct Safekeeping {
    saved: Option<(Instant, u64)>,
    /// The viewer has asked for something since.
    pub urgent: bool,
}

impl Seat {
    /// Saves the session if it is time to; answers when it will be.
    pub(super) fn keep(
        &mut self,
        now: Instant,
        store: &mut impl StateStore,
        statistics: &Statistics,
    ) -> Option<Instant> {
        let interval = store.interval()?;
        let changes = self.session.changes();
        if self.session.key().is_none() || self.session.state().system.is_empty() {
            return None;
        }
        let due = match self.safekeeping.saved {
            None => now,
            Some((_, saved)) if saved == changes => return None,
            Some((at, _)) if self.safekeeping.urgent => at + interval.min(URGENT),
            Some((at, _)) => at + interval,
        };
        if now < due {
            return Some(due);
        }
        if store.is_behind() {
            return Some(now + interval.min(URGENT));
        }
        self.save(now, store, statistics);
        None
    }

    /// Saves the session now.
    pub(super) fn save(
        &mut self,
        now: Instant,
        store: &mut impl StateStore,
        statistics: &Statistics,
    ) {
        self.safekeeping.saved = Some((now, self.session.changes()));
        self.safekeeping.urgent = false;
        statistics.saves.fetch_add(1, Ordering::Relaxed);
        let recorded = self.session.is_recorded();
        let state = self.session.save();
        store.save(self.session.id(), &self.owner.name, state, recorded);
    }
}
