//! Whose session it is, and how many atoms its owner may still have in others.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

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

/// All who may have sessions, by name. Whoever has the same name draws from the same pools.
#[derive(Debug)]
pub struct Owners {
    all: Arc<AtomPool>,
    atoms_of_one: usize,
    known: Mutex<BTreeMap<String, Arc<Owner>>>,
}

impl Owners {
    /// Bounds for the atoms of all sessions together and for those of one owner.
    pub fn new(atoms_of_all: usize, atoms_of_one: usize) -> Owners {
        Owners {
            all: Arc::new(AtomPool::new("all sessions", atoms_of_all)),
            atoms_of_one,
            known: Mutex::default(),
        }
    }

    /// The owner of this name.
    pub fn named(&self, name: &str) -> Arc<Owner> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let owner = known.entry(name.to_owned()).or_insert_with(|| {
            let own = AtomPool::new("the sessions of this token", self.atoms_of_one);
            Arc::new(Owner {
                name: name.to_owned(),
                atoms: vec![Arc::new(own), Arc::clone(&self.all)],
            })
        });
        Arc::clone(owner)
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
        if atoms == 0 {
            return Ok(()); // also where there are too many already
        }
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

    /// Takes atoms that are there already, whether or not there is room.
    fn take_anyway(&self, atoms: usize) {
        self.used.fetch_add(atoms, Ordering::Relaxed);
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

    /// Holds so many atoms more, whether or not there is room for them: then the pools have no
    /// room for others until enough has been given back.
    pub(super) fn hold_anyway(&mut self, atoms: usize) {
        self.pools.iter().for_each(|pool| pool.take_anyway(atoms));
        self.held += atoms;
    }
}

impl Drop for Allowance {
    fn drop(&mut self) {
        self.pools.iter().for_each(|pool| pool.give_back(self.held));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn atoms_that_are_there_already_count_beyond_the_limit() {
        let owners = Owners::new(20, 9);
        let [ada, bob] = ["ada", "bob"].map(|name| owners.named(name));
        assert!(Arc::ptr_eq(&ada, &owners.named("ada")));
        let mut restored = ada.allowance();
        restored.hold_anyway(12);
        let mut other = ada.allowance();
        let refusal = other.resize(1).unwrap_err();
        assert!(refusal.contains("9 together and 0 are free"), "{refusal}");
        // What all sessions have left is the others'.
        let mut of_bob = bob.allowance();
        assert!(of_bob.resize(9).unwrap_err().contains("all sessions"));
        of_bob.resize(8).unwrap();
        // Smaller is always possible, and makes room.
        restored.resize(5).unwrap();
        other.resize(4).unwrap();
        assert!(other.resize(5).is_err());
        drop(restored);
        other.resize(9).unwrap();
        assert_eq!((ada.atoms[0].used(), ada.atoms[1].used()), (9, 17));
    }
}
