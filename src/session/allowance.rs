//! Whose session it is, and how many atoms its owner may still have in others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Who has opened a session: everybody who came with the same token. A session may be taken up
/// again by its owner only.
#[derive(Clone, Debug, Default)]
pub struct Owner {
    /// Name of the token; empty where no tokens are asked for.
    pub name: String,
    /// What the sessions of this owner draw their atoms from, beside the limit of each session.
    pub atoms: Vec<Arc<AtomPool>>,
}

impl Owner {
    /// The atoms of one session of this owner: none so far.
    pub fn allowance(&self) -> Allowance {
        Allowance {
            pools: self.atoms.clone(),
            held: 0,
        }
    }
}

/// Atoms that several sessions may have together.
#[derive(Debug)]
pub struct AtomPool {
    /// Whose, for the refusal.
    name: &'static str,
    limit: usize,
    used: AtomicUsize,
}

impl AtomPool {
    /// A pool of `limit` atoms; `name` says whose they are ("all sessions").
    pub fn new(name: &'static str, limit: usize) -> Self {
        AtomPool {
            name,
            limit,
            used: AtomicUsize::new(0),
        }
    }

    /// Atoms in use.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn take(&self, atoms: usize) -> Result<(), String> {
        let within = |used: usize| {
            let sum = used.checked_add(atoms)?;
            (sum <= self.limit).then_some(sum)
        };
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, within)
            .map(|_| ())
            .map_err(|used| {
                let (name, limit) = (self.name, self.limit);
                let free = limit.saturating_sub(used);
                format!("{atoms} more atoms, {name} may have {limit} together and {free} are free")
            })
    }

    fn give_back(&self, atoms: usize) {
        self.used.fetch_sub(atoms, Ordering::Relaxed);
    }
}

/// The atoms that one session has drawn from its pools; given back when dropped.
#[derive(Debug, Default)]
pub struct Allowance {
    pools: Vec<Arc<AtomPool>>,
    held: usize,
}

impl Allowance {
    /// Holds so many atoms from now on.
    ///
    /// # Errors
    /// A pool has not enough left, in words; nothing has changed.
    pub fn resize(&mut self, atoms: usize) -> Result<(), String> {
        let more = atoms.saturating_sub(self.held);
        let less = self.held.saturating_sub(atoms);
        for (at, pool) in self.pools.iter().enumerate() {
            if let Err(reason) = pool.take(more) {
                self.pools[..at]
                    .iter()
                    .for_each(|pool| pool.give_back(more));
                return Err(format!("natoms = {atoms}: {reason}"));
            }
        }
        self.pools.iter().for_each(|pool| pool.give_back(less));
        self.held = atoms;
        Ok(())
    }
}

impl Drop for Allowance {
    fn drop(&mut self) {
        self.pools.iter().for_each(|pool| pool.give_back(self.held));
    }
}
