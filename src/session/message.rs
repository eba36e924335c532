//! What a viewer says and what it is told, free of any wire format.
//!
//! A [`ClientMessage`] carries raw values: lengths may disagree and numbers may be NaN. The session
//! checks them and answers; the decoder only has to keep "absent" and "zero" apart.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use super::SessionKey;
use crate::system::System;

/// One message of a viewer.
#[derive(Debug, Default, PartialEq)]
pub struct ClientMessage {
    /// Sequence number of the client.
    pub seq: u64,
    /// Largest server sequence number that the client has processed.
    pub ack: Option<u64>,
    /// Counter of user edits.
    pub user_interaction_count: Option<u64>,
    /// Step counter to take over.
    pub sim_step: Option<u64>,
    /// What is asked for.
    pub payload: Payload,
    /// Asks for a session that outlives its socket: the digits of its key, or "" for a new one.
    /// Counts in the first message of a socket.
    pub attach: Option<String>,
    /// Whether the simulation shall go on while no viewer is there.
    pub detached: Option<bool>,
    /// Ends the session for good.
    pub end_session: bool,
    /// Given back when the session has digested the message.
    pub ticket: Ticket,
}

/// What a message asks for.
#[derive(Debug, Default, PartialEq)]
pub enum Payload {
    /// Nothing: an acknowledgement.
    #[default]
    None,
    /// A change of the structure.
    Edit(Edit),
    /// Start a simulation or change the running one.
    Start(Start),
    /// Stop the simulation.
    Stop,
}

/// Something that is given back (dropped) once a message has been digested.
///
/// The server keeps a permit of the socket's quota in it, so that a viewer cannot pile up
/// undigested messages in a session that waits for an evaluation. Tickets say nothing about the
/// message and compare equal.
#[derive(Default)]
pub struct Ticket(Option<Box<dyn Any + Send + Sync>>);

impl Ticket {
    /// A ticket that holds `held` until it is dropped.
    pub fn new(held: impl Any + Send + Sync) -> Self {
        Ticket(Some(Box::new(held)))
    }
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() {
            "Ticket(held)"
        } else {
            "Ticket"
        })
    }
}

impl PartialEq for Ticket {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// A change of the structure by the user, unchecked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Edit {
    /// Total number of atoms; 0 means "as before" in a sparse edit.
    pub natoms: u32,
    /// Atomic numbers of some atoms.
    pub atomic_numbers: Delta<u32>,
    /// Positions of some atoms, Angstrom; three values per index.
    pub positions: Delta<f64>,
    /// Velocities of some atoms, Angstrom / (ASE time unit); three values per index.
    pub velocities: Delta<f64>,
    /// Cell, nine values, rows are lattice vectors, Angstrom.
    pub cell: Option<Vec<f64>>,
    /// Whether this is a whole new structure. Required; absent is a violation.
    pub full_update: Option<bool>,
    /// Total charge, elementary charges.
    pub charge: Option<i32>,
    /// Spin multiplicity 2S+1; 0 means "not given".
    pub spin: Option<u32>,
    /// UMA task.
    pub task: Option<String>,
    /// Which lattice vectors repeat.
    pub periodic: Option<[bool; 3]>,
}

/// Values for some atoms, in the order of `indices`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta<T> {
    /// Atom indices from 0.
    pub indices: Vec<u32>,
    /// One value (numbers) or three values (vectors) per index.
    pub values: Vec<T>,
}

/// A request to simulate, unchecked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Start {
    /// 0 = MD, 1 = RELAX; anything else is a violation.
    pub simulation_type: i32,
    /// Absent: the parameters of the previous START.
    pub parameters: Option<RawParameters>,
}

/// Simulation parameters as they arrive: an unset number is 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RawParameters {
    /// "" or "uma".
    pub calculator: String,
    /// Kelvin.
    pub temperature: f64,
    /// Femtoseconds.
    pub timestep_fs: f64,
    /// 1 / (ASE time unit).
    pub friction: f64,
    /// eV/Angstrom; never used.
    pub fmax: f64,
    /// Angstrom.
    pub max_step: f64,
    /// Number of the integrator in the protocol.
    pub integrator: Option<i32>,
    /// Seed of the random numbers.
    pub seed: Option<u64>,
    /// Steps between frames.
    pub steps_per_frame: Option<u32>,
    /// Least time between frames, ms; 0 means none.
    pub frame_interval_ms: Option<u32>,
    /// Whether to record.
    pub record: Option<bool>,
    /// Name of the recording.
    pub record_label: Option<String>,
}

/// One message to a viewer.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerMessage {
    /// Server sequence number.
    pub seq: u64,
    /// Largest client sequence number processed.
    pub client_seq: u64,
    /// Edit counter; see docs/protocol.md for which one.
    pub user_interaction_count: Option<u64>,
    /// Step counter; absent while 0.
    pub sim_step: Option<u64>,
    /// The message itself.
    pub content: Content,
}

/// Frame, notice, or a word about the session itself.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// A geometry with its energy and forces.
    Frame(Arc<Frame>),
    /// Words and flags.
    Notice(Notice),
    /// Who the session is and where it stands.
    State(Box<SessionState>),
    /// No message: the socket is closed, for this reason.
    Goodbye(Goodbye),
}

/// Why the server closes a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goodbye {
    /// The viewer has asked for the end of the session.
    Ended,
    /// The session goes on with another socket.
    TakenOver,
    /// The server is about to start again.
    Restarting,
}

/// Who a session is and where it stands: all that a viewer needs to go on.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionState {
    /// By what the viewer finds it again.
    pub key: SessionKey,
    /// Whether it has existed before.
    pub resumed: bool,
    /// How long it waits for its viewer.
    pub reconnect: Duration,
    /// Whether its simulation goes on without a viewer.
    pub detached: bool,
    /// Whether a simulation runs.
    pub running: bool,
    /// 0 = MD, 1 = RELAX: that of the running simulation, else of the last.
    pub simulation_type: i32,
    /// In force.
    pub parameters: RawParameters,
    /// The structure, with what was evaluated last.
    pub system: System,
    /// Positions, velocities, cell, time; energy, forces and stress if `evaluated`.
    pub frame: Frame,
    /// Whether energy and forces are known at these positions.
    pub evaluated: bool,
    /// Name of the file that is being recorded.
    pub recording: Option<String>,
}

/// A geometry and what is known about it. Shared with the recording of the same step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frame {
    /// Positions, Angstrom, `[N][3]`.
    pub positions: Vec<[f64; 3]>,
    /// Velocities, Angstrom / (ASE time unit), `[N][3]`.
    pub velocities: Vec<[f64; 3]>,
    /// Forces at `positions`, eV/Angstrom, `[N][3]`.
    pub forces: Vec<[f64; 3]>,
    /// Potential energy at `positions`, eV.
    pub energy: f64,
    /// Lattice vectors as rows, Angstrom: simulation frames of a system with a cell.
    pub cell: Option<[[f64; 3]; 3]>,
    /// Stress, eV/Angstrom^3: systems with a cell.
    pub stress: Option<[[f64; 3]; 3]>,
    /// Kinetic energy, eV: MD only.
    pub kinetic: Option<f64>,
    /// 2 Ekin / (3 N kB), K: MD only.
    pub temperature: Option<f64>,
    /// MD time simulated by this session so far, fs: simulation frames only.
    pub time_fs: Option<f64>,
    /// Largest force on an atom, eV/Angstrom.
    pub fmax: f64,
}

/// Words for the viewer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The text; its first word names the notice.
    pub message: String,
    /// Whether no simulation runs any more.
    pub simulation_stopped: bool,
}
