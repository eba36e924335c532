//! Viewers that come and go while the session stays.

use std::time::{Duration, Instant};

use super::edit::has_vectors;
use super::message::{Content, Frame, SessionState};
use super::parameters::Kind;
use super::simulation::frame_of;
use super::{Session, SessionKey};
use crate::dynamics;

impl Session {
    /// By what a viewer finds the session again.
    pub fn key(&self) -> Option<SessionKey> {
        self.key
    }

    /// Gives the session a key: it no longer ends with its socket.
    pub fn set_key(&mut self, key: SessionKey) {
        self.key = Some(key);
        self.changes += 1;
    }

    /// Whether a viewer is there.
    pub fn is_attended(&self) -> bool {
        self.attended
    }

    /// Whether a simulation runs on although no viewer is there.
    pub fn is_detached(&self) -> bool {
        !self.attended && self.detached && self.run.is_some()
    }

    /// Whether everything waits for the viewer to come back.
    pub(super) fn is_held(&self) -> bool {
        !self.attended && !self.is_detached()
    }

    /// Rises with everything that [`Session::save`] would write differently.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Steps done by this session, all simulations together.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Whether frames go into a recording.
    pub fn is_recorded(&self) -> bool {
        self.recording.active
    }

    /// The viewer is gone. A detached simulation goes on, any other waits.
    pub fn leave(&mut self, now: Instant) {
        self.attended = false;
        self.stall = None;
        self.output.clear();
        self.advance(now);
    }

    /// A viewer is there, new or again, and has seen messages up to `seen`. It is told where the
    /// session stands; nothing that was sent before waits for an acknowledgement any more.
    pub fn attend(&mut self, seen: u64, resumed: bool, recording: Option<String>, now: Instant) {
        self.clock = self.clock.max(now);
        self.attended = true;
        self.stall = None;
        self.output.clear();
        // A server that has come back may remember less than the viewer has seen.
        self.server_seq = self.server_seq.max(seen);
        self.client_ack = self.server_seq;
        let Some(key) = self.key else { return };
        let state = self.describe(key, resumed, recording);
        let count = Some(self.user_interaction_count).filter(|&n| n > 0);
        self.send(count, Content::State(Box::new(state)));
    }

    /// Tells the viewer something that has nothing to do with its messages.
    pub fn announce(&mut self, text: &str) {
        self.notice(text, false, None);
    }

    pub(super) fn set_detached(&mut self, detached: bool) {
        if self.key.is_none() {
            let text = "PROTO_VIOLATION: detached needs a session with an identity (attach)";
            return self.notice(text, false, None);
        }
        self.detached = detached;
    }

    /// Pacing is for those who watch.
    pub(super) fn frame_interval(&self) -> Duration {
        match self.attended {
            true => self.parameters.frame_interval,
            false => Duration::ZERO,
        }
    }

    fn describe(&self, key: SessionKey, resumed: bool, recording: Option<String>) -> SessionState {
        let state = &self.structure.state;
        let system = &state.system;
        let mut frame = match &state.evaluation {
            Some(evaluation) => frame_of(system, evaluation),
            None => Frame::default(),
        };
        frame.positions = system.positions.clone();
        frame.velocities = state.velocities.clone();
        frame.cell = has_vectors(&system.cell).then_some(system.cell.vectors);
        frame.time_fs = Some(self.time_fs);
        if self.kind == Kind::Md && self.run.is_some() {
            let kinetic = dynamics::kinetic_energy(&system.numbers, &state.velocities);
            let freedom = dynamics::all_degrees_of_freedom(system.len());
            frame.kinetic = Some(kinetic);
            frame.temperature = Some(dynamics::temperature(kinetic, freedom));
        }
        SessionState {
            key,
            resumed,
            reconnect: self.settings.reconnect,
            detached: self.detached,
            running: self.run.is_some(),
            simulation_type: self.kind as i32,
            parameters: self.parameters.raw(),
            system: system.clone(),
            frame,
            evaluated: state.evaluation.is_some(),
            recording,
        }
    }
}
