//! Limits and defaults that the server sets once for all its sessions.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::system::System;

/// Limits and defaults of every session.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionSettings {
    /// Messages that a viewer may leave unacknowledged before its simulation waits.
    pub max_unacked: u64,
    /// Atoms of a structure.
    pub max_atoms: usize,
    /// Steps between two frames that a viewer may ask for.
    pub max_steps_per_frame: u32,
    /// Least time between two frames of a viewer that does not ask for another.
    pub frame_interval: Duration,
    /// How long a stall lasts before the viewer is told.
    pub stall_notice: Duration,
    /// Whether the end of an announced stall is announced too.
    pub ack_cleared: bool,
    /// UMA task of a viewer that names none.
    pub default_task: String,
    /// UMA tasks of the checkpoint.
    pub tasks: Vec<String>,
    /// Atomic numbers that a task was trained on; a task that is not there says nothing about it.
    pub trained_on: BTreeMap<String, BTreeSet<u8>>,
    /// Largest atomic number that the checkpoint knows.
    pub max_atomic_number: u8,
    /// Whether the server can record trajectories at all.
    pub can_record: bool,
    /// Whether simulations are recorded when the viewer does not say.
    pub record_by_default: bool,
    /// How long a session with a key waits for its viewer to come back; zero: not at all.
    pub reconnect: Duration,
    /// Seed from which the sessions' own seeds are derived.
    pub seed: u64,
}

impl Default for SessionSettings {
    fn default() -> Self {
        SessionSettings {
            max_unacked: 10,
            max_atoms: 20_000,
            max_steps_per_frame: 1_000,
            frame_interval: Duration::from_millis(15),
            stall_notice: Duration::from_millis(250),
            ack_cleared: false,
            default_task: "omol".into(),
            tasks: vec!["omol".into()],
            trained_on: BTreeMap::new(),
            max_atomic_number: 100,
            can_record: false,
            record_by_default: false,
            reconnect: Duration::from_secs(120),
            seed: 0,
        }
    }
}

impl SessionSettings {
    /// The elements of a structure that its task was not trained on.
    pub(super) fn untrained(&self, system: &System) -> BTreeSet<u8> {
        match self.trained_on.get(&system.task) {
            None => BTreeSet::new(),
            Some(known) => {
                let strange = |z: &u8| *z > 0 && !known.contains(z);
                system.numbers.iter().copied().filter(strange).collect()
            }
        }
    }
}
