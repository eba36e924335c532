//! One viewer's session: messages and outcomes in; jobs, frames, notices and records out.
//!
//! A pure state machine: no input or output, no clock (`now` is passed in), no threads. The
//! behaviour is written down in docs/protocol.md; this module decides what to do with a message
//! and `simulation` what to do with time and outcomes.
//!
//! ```text
//! receive(message) ─> inbox ─> edits, START, STOP ─┐
//! next_job() ──────────────────────────────────────┤ structure, run, counters ─> take_output()
//! complete(outcome), tick() ───────────────────────┘                          ─> take_records()
//! ```

mod allowance;
mod attendance;
mod edit;
mod key;
mod message;
mod parameters;
mod record;
mod save;
mod settings;
mod simulation;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use allowance::{Allowance, AtomPool, Owner, Owners};
pub use key::SessionKey;
pub use message::{
    ClientMessage, Content, Delta, Edit, Frame, Goodbye, Notice, Payload, RawParameters,
    ServerMessage, SessionState, Start, Ticket,
};
pub use record::Record;
pub use save::RestoreError;
pub use settings::SessionSettings;

use crate::comm::{Job, Outcome, SessionId};
use crate::dynamics::State;
use crate::system::elements::symbol;
use edit::Structure;
use parameters::{Kind, Parameters, Refusal, python_repr};
use simulation::{Flight, Purpose, Recording, Run, Stall};

/// A viewer that has edited this recently is waiting for the picture to follow.
const INTERACTIVE: Duration = Duration::from_secs(1);
/// A change of the bath smaller than this is none, K.
const SAME_TEMPERATURE: f64 = 1e-6;
/// Longest text of a notice, characters.
const LONGEST_NOTICE: usize = 1000;

/// The state of one viewer's session.
#[derive(Debug)]
pub struct Session {
    id: SessionId,
    settings: Arc<SessionSettings>,
    /// Latest time heard of.
    clock: Instant,
    /// By what a viewer finds the session again; without one it ends with its socket.
    key: Option<SessionKey>,
    /// Whether a viewer is there.
    attended: bool,
    /// Whether the simulation goes on without one.
    detached: bool,
    /// Rises with everything that a saved session contains.
    changes: u64,

    /// Messages that wait for the evaluation under way.
    inbox: VecDeque<ClientMessage>,
    structure: Structure,
    /// The atoms of `structure`, drawn from what the owner and the server may have.
    allowance: Allowance,
    parameters: Parameters,
    /// The simulation, while one runs.
    run: Option<Run>,
    /// What kind it is, or the last one was.
    kind: Kind,
    /// Edit counter of the edit that still needs an evaluation to be answered.
    reply_due: Option<u64>,
    /// The one job that is out.
    flight: Option<Flight>,
    last_serial: u64,

    server_seq: u64,
    client_seq: u64,
    client_ack: u64,
    user_interaction_count: u64,
    sim_step: u64,

    /// Steps and MD time of all simulations of this session.
    steps: u64,
    time_fs: f64,
    stall: Option<Stall>,
    /// When the first step of the last frame went out, and when the last frame was sent.
    frame_begun: Option<Instant>,
    frame_sent: Option<Instant>,
    last_edit: Option<Instant>,

    output: Vec<ServerMessage>,
    recording: Recording,
}

impl Session {
    /// A session of a viewer that has not said anything yet.
    pub fn new(id: SessionId, settings: Arc<SessionSettings>, now: Instant) -> Session {
        let mut structure = Structure::new(&settings);
        structure.state.seed = seed_of(id, settings.seed);
        Session {
            id,
            clock: now,
            key: None,
            attended: true,
            detached: false,
            changes: 0,
            inbox: VecDeque::new(),
            structure,
            allowance: Allowance::default(),
            parameters: Parameters::new(&settings),
            run: None,
            kind: Kind::Md,
            reply_due: None,
            flight: None,
            last_serial: 0,
            server_seq: 0,
            client_seq: 0,
            client_ack: 0,
            user_interaction_count: 0,
            sim_step: 0,
            steps: 0,
            time_fs: 0.0,
            stall: None,
            frame_begun: None,
            frame_sent: None,
            last_edit: None,
            output: Vec::new(),
            recording: Recording::default(),
            settings,
        }
    }

    /// The same session, drawing its atoms from an allowance.
    pub fn with_allowance(self, allowance: Allowance) -> Session {
        Session { allowance, ..self }
    }

    /// Draws the atoms that it has from an allowance from now on. A session that is there already
    /// is not refused for want of room; others are, until there is some again.
    pub fn draw_from(&mut self, mut allowance: Allowance) {
        allowance.hold_anyway(self.structure.state.system.len());
        self.allowance = allowance;
    }

    /// Takes a message of the viewer.
    ///
    /// Messages are worked off in order. While an edit waits for its evaluation the following
    /// messages wait too, and consecutive sparse edits among them are merged.
    pub fn receive(&mut self, message: ClientMessage, now: Instant) {
        let merged = match self.inbox.back_mut() {
            Some(last) => last.merge(message, &self.settings),
            None => Some(message),
        };
        self.inbox.extend(merged);
        self.advance(now);
    }

    /// The next job, if there is work that may be done now. At most one job is out at a time:
    /// the next one is given only after [`Session::complete`], also if the viewer has made the
    /// first one pointless.
    pub fn next_job(&mut self, now: Instant) -> Option<Job> {
        self.advance(now);
        if self.flight.is_some() || self.is_held() {
            return None;
        }
        if let Some(count) = self.reply_due.take() {
            return Some(self.dispatch_evaluation(count));
        }
        self.dispatch_step(now)
    }

    /// Takes the outcome of a job. Every job that was given out must come back, with an error if
    /// it was lost; an outcome of another serial number is dropped.
    pub fn complete(&mut self, outcome: Outcome, now: Instant) {
        self.land(outcome, now);
        self.advance(now);
    }

    /// Does what is due by time alone: the announcement of a stall, a frame held back by pacing.
    pub fn tick(&mut self, now: Instant) {
        self.advance(now);
    }

    /// When [`Session::tick`] or [`Session::next_job`] may next do something without input; a time
    /// that has passed means "now".
    pub fn wake_at(&self) -> Option<Instant> {
        match &self.flight {
            Some(flight) if flight.landed.is_some() => Some(self.frame_due()),
            Some(_) => None,
            None if self.is_held() => None,
            None if self.reply_due.is_some() => Some(self.clock),
            None => self.run.as_ref().and_then(|run| match &self.stall {
                Some(stall) if stall.announced => None,
                Some(stall) => Some(stall.since + self.settings.stall_notice),
                None => Some(self.step_due(run)),
            }),
        }
    }

    /// Ends the session: nothing is computed or sent any more.
    pub fn close(&mut self) {
        self.abandon();
        self.inbox.clear();
        self.reply_due = None;
        if let Some(flight) = &mut self.flight {
            flight.cancelled = true;
        }
        self.output.clear();
    }

    /// The messages for the viewer since the last call, in order.
    pub fn take_output(&mut self) -> Vec<ServerMessage> {
        std::mem::take(&mut self.output)
    }

    /// What the recording has to know since the last call, in order. Empty unless the session is
    /// recorded.
    pub fn take_records(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.recording.records)
    }

    /// Messages that the viewer has not acknowledged yet.
    pub fn unacked(&self) -> u64 {
        self.server_seq.saturating_sub(self.client_ack)
    }

    /// Who this is.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// The structure with all edits applied and the last step done.
    pub fn state(&self) -> &State {
        &self.structure.state
    }

    /// Whether a simulation runs (also while it is stalled or paced).
    pub fn is_running(&self) -> bool {
        self.run.is_some()
    }

    /// Whether nothing runs, nothing is out and nothing waits.
    pub fn is_idle(&self) -> bool {
        self.run.is_none() && self.flight.is_none() && !self.is_busy()
    }

    /// Whether somebody is waiting for an answer: an edit is unanswered or was made just now.
    pub fn is_interactive(&self) -> bool {
        self.is_busy()
            || self
                .last_edit
                .is_some_and(|at| self.clock.saturating_duration_since(at) < INTERACTIVE)
    }

    /// Messages that wait for the evaluation under way.
    pub fn waiting_messages(&self) -> usize {
        self.inbox.len()
    }

    /// Whether an edit waits for its evaluation.
    fn is_busy(&self) -> bool {
        self.reply_due.is_some()
            || self
                .flight
                .as_ref()
                .is_some_and(|f| !f.cancelled && matches!(f.purpose, Purpose::Reply { .. }))
    }

    /// Everything that can be done now without an outcome.
    fn advance(&mut self, now: Instant) {
        self.clock = self.clock.max(now);
        self.release_frame();
        while !self.is_busy()
            && let Some(message) = self.inbox.pop_front()
        {
            self.process(message);
        }
        self.watch_window();
    }

    fn process(&mut self, message: ClientMessage) {
        if !matches!(message.payload, Payload::None) || message.detached.is_some() {
            self.changes += 1;
        }
        let edit_count = message.user_interaction_count.unwrap_or(0);
        self.client_seq = self.client_seq.max(message.seq);
        self.client_ack = self.client_ack.max(message.ack.unwrap_or(0));
        self.user_interaction_count = self.user_interaction_count.max(edit_count);
        if let Some(step) = message.sim_step.filter(|&s| s > 0 && self.run.is_none()) {
            self.sim_step = step;
        }
        if message.attach.is_some() {
            let text = "PROTO_VIOLATION: attach belongs into the first message of a socket";
            self.notice(text, false, None);
        }
        if let Some(detached) = message.detached {
            self.set_detached(detached);
        }
        match message.payload {
            Payload::None => {}
            Payload::Edit(edit) => self.edit(edit, edit_count),
            Payload::Start(start) => self.start(&start),
            Payload::Stop => {
                self.halt();
                self.notice("SIMULATION_STOPPED", true, None);
            }
        }
        drop(message.ticket);
    }

    fn edit(&mut self, edit: Edit, count: u64) {
        let Some(full) = edit.full_update else {
            let text = "PROTO_VIOLATION: full_update flag must be set";
            return self.notice(text, false, Some(count));
        };
        if let Err(reason) = self.structure.check(&edit, &self.settings) {
            let text = format!("PROTO_VIOLATION: {reason}");
            return self.notice(text, false, Some(count));
        }
        let natoms = self.structure.natoms_after(&edit);
        if let Err(reason) = self.allowance.resize(natoms) {
            let text = format!("PROTO_VIOLATION: {reason}");
            return self.notice(text, false, Some(count));
        }
        self.last_edit = Some(self.clock);
        if self.run.is_some() {
            if !full && !self.structure.is_restructured_by(&edit) {
                return self.edit_running(edit);
            }
            self.halt();
            self.notice("STRUCTURE_CHANGED", true, Some(count));
        }
        let other_elements = full || edit.task.is_some() || !edit.atomic_numbers.indices.is_empty();
        let known = other_elements.then(|| self.settings.untrained(&self.structure.state.system));
        self.structure.apply(&edit, &self.settings);
        if let Some(known) = known {
            self.warn_of_untrained(&known, count);
        }
        if full {
            self.sim_step = 0;
        }
        if self.structure.is_complete() {
            self.reply_due = Some(count);
        } else {
            self.notice("IDLE_WAITING_FOR_GEOMETRY", false, Some(count));
        }
    }

    /// Tells the viewer of elements that mean nothing to the task, if some are new.
    fn warn_of_untrained(&mut self, known: &BTreeSet<u8>, count: u64) {
        let system = &self.structure.state.system;
        let untrained = self.settings.untrained(system);
        if untrained.is_subset(known) {
            return;
        }
        let task = &system.task;
        let symbols: Vec<&str> = untrained.iter().copied().filter_map(symbol).collect();
        let text = format!(
            "UNTRAINED_ELEMENTS: the task {task} of this model was not trained on {}; energies and \
             forces mean nothing there",
            symbols.join(", ")
        );
        self.notice(text, false, Some(count));
    }

    fn start(&mut self, start: &Start) {
        let natoms = self.structure.state.system.len();
        let (parameters, kind, method) = match self.parameters.after(start, natoms, &self.settings)
        {
            Ok(accepted) => accepted,
            Err(Refusal::UnknownKind(number)) => {
                let text = format!("PROTO_VIOLATION: unknown simulation_type {number}");
                return self.notice(text, false, None);
            }
            Err(Refusal::Calculator(name)) => {
                self.halt();
                let text = format!(
                    "CALCULATOR_NOT_SUPPORTED: UMA_ONLY (requested: {})",
                    python_repr(&name)
                );
                return self.notice(text, true, None);
            }
            Err(Refusal::Parameter(reason)) => {
                self.halt();
                return self.notice(format!("PROTO_VIOLATION: {reason}"), true, None);
            }
        };
        if !self.structure.is_complete() {
            return self.notice("IDLE_WAITING_FOR_GEOMETRY", true, None);
        }
        let redraw = self.run.as_ref().is_some_and(|run| {
            run.kind == Kind::Md
                && kind == Kind::Md
                && (parameters.temperature - self.parameters.temperature).abs() > SAME_TEMPERATURE
        });
        self.parameters = parameters;
        self.kind = kind;
        self.begin(kind, method, redraw);
    }

    fn notice(&mut self, text: impl Into<String>, stopped: bool, edit_count: Option<u64>) {
        self.server_seq += u64::from(self.attended);
        self.push_notice(text.into(), stopped, edit_count);
    }

    /// A notice with the current sequence number. Without an edit counter of its own it carries
    /// that of the session, absent while 0.
    fn push_notice(&mut self, text: String, simulation_stopped: bool, edit_count: Option<u64>) {
        let session_count = Some(self.user_interaction_count).filter(|&n| n > 0);
        let message = match text.char_indices().nth(LONGEST_NOTICE) {
            Some((end, _)) => text[..end].to_owned(),
            None => text,
        };
        self.push(
            edit_count.or(session_count),
            Content::Notice(Notice {
                message,
                simulation_stopped,
            }),
        );
    }

    /// With the next sequence number.
    fn send(&mut self, user_interaction_count: Option<u64>, content: Content) {
        self.server_seq += u64::from(self.attended);
        self.push(user_interaction_count, content);
    }

    /// With the current sequence number. Nobody hears it while no viewer is there.
    fn push(&mut self, user_interaction_count: Option<u64>, content: Content) {
        if !self.attended {
            return;
        }
        self.output.push(ServerMessage {
            seq: self.server_seq,
            client_seq: self.client_seq,
            user_interaction_count,
            sim_step: Some(self.sim_step).filter(|&n| n > 0),
            content,
        });
    }
}

/// Seed of a session: a mixing step of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
fn seed_of(id: SessionId, seed: u64) -> u64 {
    let mut z = seed ^ id.0.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
