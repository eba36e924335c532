//! How much one token, and all together, may ask for at a time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::session::{Owner, Owners, Ticket};

/// Bounds for all sessions of a token and for all sessions of the server.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Sessions at a time.
    pub max_sessions: usize,
    /// Sessions of one token.
    pub max_sessions_per_token: usize,
    /// Atoms of all sessions together.
    pub max_total_atoms: usize,
    /// Atoms of the sessions of one token.
    pub max_atoms_per_token: usize,
    /// Messages per second of one session; beyond, its socket is read more slowly.
    pub max_message_rate: f64,
    /// Messages per second of the sessions of one token.
    pub max_message_rate_per_token: f64,
    /// Messages per second of all sessions together.
    pub max_total_message_rate: f64,
    /// HTTP requests per second of one token; beyond, 429.
    pub max_request_rate: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_sessions: 256,
            max_sessions_per_token: 256,
            max_total_atoms: 2_000_000,
            max_atoms_per_token: 2_000_000,
            max_message_rate: 10_000.0,
            max_message_rate_per_token: 100_000.0,
            max_total_message_rate: 200_000.0,
            max_request_rate: 100.0,
        }
    }
}

impl Limits {
    /// Those who may have sessions, within these limits.
    pub fn owners(&self) -> Owners {
        Owners::new(self.max_total_atoms, self.max_atoms_per_token)
    }
}

/// A bucket of permissions that fills at a constant rate and holds one second's worth.
#[derive(Debug)]
pub(super) struct Rate {
    per_second: f64,
    bucket: Mutex<(f64, Instant)>,
}

impl Rate {
    pub(super) fn new(per_second: f64) -> Self {
        Rate {
            per_second,
            bucket: Mutex::new((per_second.max(1.0), Instant::now())),
        }
    }

    fn fill(&self, now: Instant) -> std::sync::MutexGuard<'_, (f64, Instant)> {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let (held, since) = *bucket;
        let more = now.saturating_duration_since(since).as_secs_f64() * self.per_second;
        *bucket = ((held + more).min(self.per_second.max(1.0)), since.max(now));
        bucket
    }

    /// Takes one permission, also one that is not there yet; answers how long to wait for it.
    pub(super) fn take(&self, now: Instant) -> Duration {
        let mut bucket = self.fill(now);
        bucket.0 -= 1.0;
        Duration::from_secs_f64((-bucket.0 / self.per_second).clamp(0.0, 3600.0))
    }

    /// Takes one permission that is there; an error is how long until there is one.
    fn try_take(&self, now: Instant) -> Result<(), Duration> {
        let mut bucket = self.fill(now);
        if bucket.0 < 1.0 {
            let missing = (1.0 - bucket.0) / self.per_second;
            return Err(Duration::from_secs_f64(missing.min(3600.0)));
        }
        bucket.0 -= 1.0;
        Ok(())
    }
}

/// What belongs to one token.
pub(super) struct Account {
    pub(super) owner: Arc<Owner>,
    limit: usize,
    places: Arc<Semaphore>,
    requests: Rate,
    messages: Rate,
}

impl Account {
    pub(super) fn new(owner: Arc<Owner>, limits: &Limits) -> Self {
        Account {
            owner,
            limit: limits.max_sessions_per_token,
            places: Arc::new(Semaphore::new(limits.max_sessions_per_token)),
            requests: Rate::new(limits.max_request_rate),
            messages: Rate::new(limits.max_message_rate_per_token),
        }
    }

    #[cfg(test)]
    pub(super) fn unlimited(name: &str) -> Self {
        let limits = Limits::default();
        Account::new(limits.owners().named(name), &limits)
    }

    /// Counts an HTTP request; an error is how long to stay away.
    pub(super) fn count_request(&self) -> Result<(), Duration> {
        self.requests.try_take(Instant::now())
    }

    /// Counts a message; answers how long to wait before the next is read.
    pub(super) fn count_message(&self, now: Instant) -> Duration {
        self.messages.take(now)
    }
}

/// Why there is no place for another session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoPlace {
    /// All places of the token are taken, so many.
    Token(usize),
    /// All places of the server are taken, so many.
    Server(usize),
}

/// The places of all sessions.
pub(super) struct Places {
    limit: usize,
    all: Arc<Semaphore>,
}

/// A place of the server and one of the token.
struct Place {
    _all: OwnedSemaphorePermit,
    _own: OwnedSemaphorePermit,
}

impl Places {
    pub(super) fn new(limit: usize) -> Self {
        Places {
            limit,
            all: Arc::new(Semaphore::new(limit)),
        }
    }

    /// Sessions that have a place now.
    pub(super) fn taken(&self) -> usize {
        self.limit.saturating_sub(self.all.available_permits())
    }

    /// A place for a session of this account, given back with the ticket.
    pub(super) fn take(&self, account: &Account) -> Result<Ticket, NoPlace> {
        let own = Arc::clone(&account.places)
            .try_acquire_owned()
            .map_err(|_| NoPlace::Token(account.limit));
        let all = Arc::clone(&self.all)
            .try_acquire_owned()
            .map_err(|_| NoPlace::Server(self.limit))?;
        Ok(Ticket::new(Place {
            _all: all,
            _own: own?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_lets_a_burst_through_and_then_so_many_per_second() {
        let rate = Rate::new(10.0);
        let now = Instant::now();
        for _ in 0..10 {
            assert_eq!(rate.take(now), Duration::ZERO);
        }
        let close = |a: Duration, ms: f64| (a.as_secs_f64() * 1e3 - ms).abs() < 1.0;
        assert!(close(rate.take(now), 100.0));
        assert!(close(rate.take(now), 200.0));
        // Two were borrowed; they are paid back first.
        let later = now + Duration::from_millis(300);
        assert_eq!(rate.try_take(later), Ok(()));
        assert!(rate.try_take(later).is_err_and(|wait| close(wait, 100.0)));
    }

    #[test]
    fn places_are_counted_per_token_and_in_all() {
        let limits = Limits {
            max_sessions_per_token: 2,
            ..Limits::default()
        };
        let owners = limits.owners();
        let [a, b] = ["a", "b"].map(|name| Account::new(owners.named(name), &limits));
        let places = Places::new(3);
        let first = places.take(&a).unwrap();
        let _second = places.take(&a).unwrap();
        assert_eq!(places.take(&a).unwrap_err(), NoPlace::Token(2));
        let _third = places.take(&b).unwrap();
        assert_eq!(places.take(&b).unwrap_err(), NoPlace::Server(3));
        assert_eq!(places.taken(), 3);
        drop(first);
        assert!(places.take(&a).is_ok());
    }
}
