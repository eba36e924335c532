//! The part of a session that has to do with time: jobs out, outcomes in, frames, stalls, pacing
//! and the recording.

use std::sync::Arc;
use std::time::Instant;

use super::Session;
use super::edit::has_vectors;
use super::message::{Content, Edit, Frame};
use super::parameters::Kind;
use super::record::Record;
use crate::comm::{Job, Outcome, Task};
use crate::dynamics::{self, History, Method, State};
use crate::system::{Evaluation, System};

/// A running simulation.
#[derive(Debug)]
pub(super) struct Run {
    pub kind: Kind,
    pub method: Method,
    /// Steps done since the last frame.
    pub steps_into_frame: u32,
}

/// The job that is out.
#[derive(Debug)]
pub(super) struct Flight {
    serial: u64,
    pub purpose: Purpose,
    /// The outcome does not count any more.
    pub cancelled: bool,
    /// What the user has changed since the job went out.
    staged: Staged,
    /// A step that is done but whose frame is not due yet.
    pub landed: Option<Box<State>>,
}

/// What a job is for.
#[derive(Debug)]
pub(super) enum Purpose {
    /// The answer to an edit, with the edit's counter.
    Reply { count: u64 },
    /// A step; with the edit counter of the geometry it starts from.
    Step {
        count: u64,
        kind: Kind,
        /// MD time of the step, fs.
        timestep_fs: f64,
        /// Whether a frame is made of it.
        frame: bool,
    },
}

/// Changes that came while a step was out. They are applied once more on its outcome.
#[derive(Debug, Default)]
struct Staged {
    restart: bool,
    seed: Option<u64>,
    /// Bath temperature of new velocities; drawn before the edit is applied.
    redraw: Option<f64>,
    edit: Option<Edit>,
}

/// The viewer is too far behind.
#[derive(Debug)]
pub(super) struct Stall {
    pub since: Instant,
    pub announced: bool,
}

/// What is kept to write records.
#[derive(Debug, Default)]
pub(super) struct Recording {
    pub records: Vec<Record>,
    pub active: bool,
    pub segment: u64,
    pub layout: Option<Layout>,
}

/// What all frames of a segment have in common.
#[derive(Debug, PartialEq)]
pub(super) struct Layout {
    pub numbers: Vec<u8>,
    pub periodic: [bool; 3],
    pub charge: i32,
    pub spin: i32,
    pub task: String,
}

impl Layout {
    fn of(system: &System) -> Self {
        Layout {
            numbers: system.numbers.clone(),
            periodic: system.cell.periodic,
            charge: system.charge,
            spin: system.spin,
            task: system.task.clone(),
        }
    }
}

impl Session {
    /// Starts a simulation or changes the running one; a step in flight still counts.
    pub(super) fn begin(&mut self, kind: Kind, method: Method, redraw: bool) {
        self.run = Some(Run {
            kind,
            method,
            steps_into_frame: 0,
        });
        let change = Staged {
            restart: true,
            seed: self.parameters.seed,
            redraw: redraw.then_some(self.parameters.temperature),
            edit: None,
        };
        self.make_change(change);
    }

    /// An edit that a running simulation goes on with.
    pub(super) fn edit_running(&mut self, edit: Edit) {
        self.make_change(Staged {
            edit: Some(edit),
            ..Staged::default()
        });
    }

    /// Changes the structure between two steps. If one is in flight the change is also kept for
    /// its outcome, and recorded then: the frame under way does not contain it.
    fn make_change(&mut self, change: Staged) {
        self.apply_change(&change);
        match &mut self.flight {
            Some(flight) if !flight.cancelled => flight.staged.absorb(change),
            _ => self.record_change(&change),
        }
    }

    fn apply_change(&mut self, change: &Staged) {
        let state = &mut self.structure.state;
        if change.restart || change.edit.is_some() {
            state.evaluation = None;
            state.history = History::None;
        }
        if let Some(seed) = change.seed {
            state.seed = seed;
            state.step = 0;
        }
        if let Some(temperature) = change.redraw {
            state.velocities = dynamics::maxwell_boltzmann(
                &state.system.numbers,
                temperature,
                state.seed,
                state.step,
            );
        }
        if let Some(edit) = &change.edit {
            self.structure.apply(edit, &self.settings);
        }
    }

    /// Stops the simulation without a word and gives up the step in flight.
    pub(super) fn halt(&mut self) {
        self.abandon();
        if std::mem::take(&mut self.recording.active) {
            self.recording
                .records
                .push(Record::Stop { step: self.steps });
        }
    }

    /// The same, but for the recording, which is left as it is.
    pub(super) fn abandon(&mut self) {
        self.changes += 1;
        self.run = None;
        self.stall = None;
        self.structure.state.evaluation = None;
        match &mut self.flight {
            Some(flight) if flight.landed.is_some() => self.flight = None,
            Some(flight) => flight.cancelled = true,
            None => {}
        }
    }

    /// The evaluation that answers an edit.
    pub(super) fn dispatch_evaluation(&mut self, count: u64) -> Job {
        self.dispatch(Task::Evaluate, Purpose::Reply { count })
    }

    /// The next step, unless the viewer is behind or the last frame was just now.
    pub(super) fn dispatch_step(&mut self, now: Instant) -> Option<Job> {
        let run = self.run.as_ref()?;
        if !self.window_is_open() || now < self.step_due(run) {
            return None;
        }
        let purpose = Purpose::Step {
            count: self.user_interaction_count,
            kind: run.kind,
            timestep_fs: timestep_fs(&run.method),
            frame: run.steps_into_frame + 1 >= self.parameters.steps_per_frame,
        };
        let task = Task::Step(run.method.clone());
        if run.steps_into_frame == 0 {
            self.frame_begun = Some(now);
        }
        Some(self.dispatch(task, purpose))
    }

    fn dispatch(&mut self, task: Task, purpose: Purpose) -> Job {
        self.last_serial += 1;
        self.flight = Some(Flight {
            serial: self.last_serial,
            purpose,
            cancelled: false,
            staged: Staged::default(),
            landed: None,
        });
        Job {
            session: self.id,
            serial: self.last_serial,
            task,
            state: self.structure.state.clone(),
        }
    }

    /// When the next step may go out: at once within a frame, else paced.
    pub(super) fn step_due(&self, run: &Run) -> Instant {
        match self.frame_begun {
            Some(begun) if run.steps_into_frame == 0 => begun + self.frame_interval(),
            _ => self.clock,
        }
    }

    /// When the next frame may be sent.
    pub(super) fn frame_due(&self) -> Instant {
        match self.frame_sent {
            Some(sent) => sent + self.frame_interval(),
            None => self.clock,
        }
    }

    pub(super) fn window_is_open(&self) -> bool {
        if !self.attended {
            return true; // nobody is there who could fall behind
        }
        // Acks ahead of the sequence number are taken as they are: the difference is then
        // negative, here 0.
        self.server_seq.saturating_sub(self.client_ack) < self.settings.max_unacked.max(1)
    }

    /// Notes whether the simulation waits for acknowledgements, and says so once it has lasted.
    pub(super) fn watch_window(&mut self) {
        if self.run.is_none() || self.flight.is_some() {
            return;
        }
        if self.window_is_open() {
            let announced = self.stall.take().is_some_and(|stall| stall.announced);
            if announced && self.settings.ack_cleared {
                self.notice("ACK_CLEARED", false, None);
                self.watch_window(); // the notice itself may close the window
            }
            return;
        }
        let since = self.clock;
        let stall = self.stall.get_or_insert(Stall {
            since,
            announced: false,
        });
        if !stall.announced && self.clock >= stall.since + self.settings.stall_notice {
            stall.announced = true;
            self.push_notice("WAITING_FOR_ACK".into(), false, None);
        }
    }

    /// An outcome has come back.
    pub(super) fn land(&mut self, outcome: Outcome, now: Instant) {
        self.clock = self.clock.max(now);
        let Some(flight) = self
            .flight
            .take_if(|f| f.serial == outcome.serial && f.landed.is_none())
        else {
            return;
        };
        if flight.cancelled {
            return;
        }
        let state = match outcome.result.and_then(|state| self.trust(state)) {
            Ok(state) => state,
            Err(reason) => return self.fail(&flight, &reason),
        };
        match flight.purpose {
            Purpose::Reply { count } => self.reply(count, state),
            Purpose::Step { frame: true, .. } if self.clock < self.frame_due() => {
                self.flight = Some(Flight {
                    landed: Some(Box::new(state)),
                    ..flight
                });
            }
            Purpose::Step { .. } => self.settle(flight, state),
        }
    }

    /// Sends the frame that was held back, once it is due.
    pub(super) fn release_frame(&mut self) {
        let due = self.clock >= self.frame_due();
        if let Some(mut flight) = self.flight.take_if(|f| due && f.landed.is_some())
            && let Some(state) = flight.landed.take()
        {
            self.settle(flight, *state);
        }
    }

    /// An outcome is shown only if it fits the structure and is finite.
    fn trust(&self, state: State) -> Result<State, String> {
        let atoms = self.structure.state.system.len();
        let Some(evaluation) = &state.evaluation else {
            return Err("the worker sent no energy".into());
        };
        let arrays = [
            ("positions", &state.system.positions),
            ("velocities", &state.velocities),
            ("forces", &evaluation.forces),
        ];
        if !evaluation.energy.is_finite() {
            return Err("the energy is not finite".into());
        }
        for (name, vectors) in arrays {
            if vectors.len() != atoms {
                return Err(format!("{name} of {} atoms for {atoms}", vectors.len()));
            }
            if !vectors.iter().flatten().all(|x| x.is_finite()) {
                return Err(format!("{name} are not finite"));
            }
        }
        Ok(state)
    }

    fn fail(&mut self, flight: &Flight, reason: &str) {
        let text = format!("COMPUTE_ERROR: {reason}");
        match flight.purpose {
            Purpose::Reply { count } => self.notice(text, false, Some(count)),
            Purpose::Step { .. } => {
                if self.recording.active {
                    self.recording.records.push(Record::Failure {
                        step: self.steps,
                        reason: reason.to_owned(),
                    });
                }
                self.halt();
                self.notice(text, true, None);
            }
        }
    }

    /// Answers an edit. The structure is echoed from here, bit for bit.
    fn reply(&mut self, count: u64, state: State) {
        let Some(evaluation) = state.evaluation else {
            return;
        };
        let own = &mut self.structure.state;
        let frame = Frame {
            positions: own.system.positions.clone(),
            velocities: own.velocities.clone(),
            ..frame_of(&own.system, &evaluation)
        };
        own.evaluation = Some(evaluation);
        self.changes += 1;
        self.send(Some(count), Content::Frame(Arc::new(frame)));
    }

    /// A step is done: it becomes the state, and a frame if one is due; then what the user has
    /// changed meanwhile is changed again.
    fn settle(&mut self, flight: Flight, state: State) {
        let Purpose::Step {
            count,
            kind,
            timestep_fs,
            frame,
        } = flight.purpose
        else {
            return;
        };
        self.changes += 1;
        self.steps += 1;
        self.sim_step = self.sim_step.saturating_add(1);
        self.time_fs += timestep_fs;
        if let Some(run) = &mut self.run {
            run.steps_into_frame = if frame { 0 } else { run.steps_into_frame + 1 };
        }
        if frame && let Some(evaluation) = &state.evaluation {
            let system = &state.system;
            let mut frame = Frame {
                positions: system.positions.clone(),
                velocities: state.velocities.clone(),
                cell: has_vectors(&system.cell).then_some(system.cell.vectors),
                time_fs: Some(self.time_fs),
                ..frame_of(system, evaluation)
            };
            if kind == Kind::Md {
                let kinetic = dynamics::kinetic_energy(&system.numbers, &state.velocities);
                let freedom = dynamics::all_degrees_of_freedom(system.len());
                frame.kinetic = Some(kinetic);
                frame.temperature = Some(dynamics::temperature(kinetic, freedom));
            }
            let frame = Arc::new(frame);
            if self.recording.active {
                self.recording.records.push(Record::Frame {
                    step: self.steps,
                    time_fs: self.time_fs,
                    frame: Arc::clone(&frame),
                });
            }
            self.send(Some(count), Content::Frame(frame));
            self.frame_sent = Some(self.clock);
        }
        self.structure.state = state;
        self.apply_change(&flight.staged);
        self.record_change(&flight.staged);
    }

    /// Notes a change that has just taken effect.
    fn record_change(&mut self, change: &Staged) {
        if change.restart && !self.parameters.record {
            if std::mem::take(&mut self.recording.active) {
                self.recording
                    .records
                    .push(Record::Stop { step: self.steps });
            }
            return;
        }
        if let Some(edit) = &change.edit
            && self.recording.active
        {
            self.recording.records.push(Record::Edit {
                step: self.steps,
                description: edit.describe(),
            });
        }
        let Some(run) = self.run.as_ref().filter(|_| self.parameters.record) else {
            return;
        };
        let system = &self.structure.state.system;
        let layout = (change.restart || change.edit.is_some()).then(|| Layout::of(system));
        let Some(layout) = layout else { return };
        let reshaped = self.recording.layout.as_ref() != Some(&layout);
        if reshaped {
            self.recording.segment += 1;
            self.recording.layout = Some(layout);
        }
        if reshaped || change.restart {
            self.recording.active = true;
            self.recording.records.push(Record::Start {
                label: self.parameters.record_label.clone(),
                segment: self.recording.segment,
                method: run.method.clone(),
                seed: self.structure.state.seed,
                steps_per_frame: self.parameters.steps_per_frame,
                system: Box::new(system.clone()),
            });
        }
    }
}

impl Staged {
    /// Adds a later change. New velocities undo earlier edits of them.
    fn absorb(&mut self, next: Staged) {
        self.restart |= next.restart;
        self.seed = next.seed.or(self.seed);
        if next.redraw.is_some() {
            self.redraw = next.redraw;
            if let Some(edit) = &mut self.edit {
                edit.velocities = Default::default();
            }
        }
        match (&mut self.edit, next.edit) {
            (Some(edit), Some(next)) => edit.absorb(next),
            (edit @ None, next) => *edit = next,
            (Some(_), None) => {}
        }
    }
}

/// The part of a frame that comes from an evaluation.
pub(super) fn frame_of(system: &System, evaluation: &Evaluation) -> Frame {
    let square = |f: &[f64; 3]| f[0] * f[0] + f[1] * f[1] + f[2] * f[2];
    Frame {
        forces: evaluation.forces.clone(),
        energy: evaluation.energy,
        stress: evaluation
            .stress
            .filter(|s| has_vectors(&system.cell) && s.iter().flatten().all(|x| x.is_finite())),
        fmax: evaluation
            .forces
            .iter()
            .map(square)
            .fold(0.0, f64::max)
            .sqrt(),
        ..Frame::default()
    }
}

/// MD time of one step, fs; relaxations take none.
fn timestep_fs(method: &Method) -> f64 {
    match *method {
        Method::VelocityVerlet { timestep_fs } | Method::Langevin { timestep_fs, .. } => {
            timestep_fs
        }
        Method::Bfgs { .. } | Method::Lbfgs { .. } | Method::Fire { .. } => 0.0,
    }
}
