//! What a recording of a session consists of.

use std::sync::Arc;

use super::message::Frame;
use crate::dynamics::Method;
use crate::system::System;

/// One entry for the trajectory writer, in the order in which things happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A simulation starts, goes on with another method or parameters, or goes on after a change
    /// that changes the shape of a trajectory.
    Start {
        /// Name that the viewer asked for.
        label: Option<String>,
        /// Rises by one whenever the number of atoms, the elements, the periodicity, the charge,
        /// the spin multiplicity or the task is another than at the previous `Start` of this
        /// session. Frames of one segment have one shape and may lie in one file.
        segment: u64,
        /// How the atoms move.
        method: Method,
        /// Seed of the random numbers.
        seed: u64,
        /// Steps between two frames.
        steps_per_frame: u32,
        /// The structure before the first step.
        system: Box<System>,
    },
    /// The first record of a restored session: its recording goes on after `step`. A recording
    /// may hold later frames, of steps that are now done again.
    Resume {
        /// Steps done by this session.
        step: u64,
        /// As in `Start`.
        label: Option<String>,
        /// As in `Start`.
        segment: u64,
        /// How the atoms move.
        method: Method,
        /// Seed of the random numbers.
        seed: u64,
        /// Steps between two frames.
        steps_per_frame: u32,
        /// The structure now.
        system: Box<System>,
    },
    /// A frame, the same that the viewer gets.
    Frame {
        /// Steps done by this session, all simulations together; never falls.
        step: u64,
        /// MD time simulated by this session, fs; stands still in relaxations; never falls.
        time_fs: f64,
        /// Positions, velocities, forces, energies, temperature, stress.
        frame: Arc<Frame>,
    },
    /// The user changed something while the simulation ran.
    Edit {
        /// Steps done before the change took effect.
        step: u64,
        /// What was changed, in words.
        description: String,
    },
    /// A step could not be computed; the simulation ends.
    Failure {
        /// Steps done before.
        step: u64,
        /// Why, in words.
        reason: String,
    },
    /// The simulation has stopped after so many steps of the session.
    Stop {
        /// Steps done.
        step: u64,
    },
}
