//! What sessions tell about their simulations, as recordings: one file per run.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::comm::SessionId;
use crate::dynamics::Method;
use crate::engine::{RecordSink, RecordingNotice};
use crate::session::{Frame, Record};
use crate::system::System;
use crate::system::elements::atomic_mass;
use crate::trajectory::RecorderWatch;
use crate::trajectory::{
    Flusher, FrameData, Header, Provenance, RecordMessage, RecordNotice, RecordNoticeKind,
    Recorder, TrajectoryError,
};

/// Records all sessions into one directory.
///
/// A run is recorded into one file while atoms, elements, periodicity, charge, spin and task stay
/// the same; changes of parameters and the user's edits are events in it. Every STOP, every change
/// of shape and the end of the session complete the file.
pub struct Recording {
    /// `None` once finished.
    recorder: Option<Recorder>,
    /// What is the same for all sessions.
    provenance: Provenance,
    runs: HashMap<SessionId, Run>,
    /// Files that restored sessions go on with.
    files: HashMap<SessionId, PathBuf>,
}

/// An open file.
struct Run {
    segment: u64,
    /// Steps done when the last record came.
    step: u64,
}

impl Recording {
    /// Records with this recorder; `provenance` says what the sessions do not know: version,
    /// checkpoint, precision, device.
    pub fn new(recorder: Recorder, provenance: Provenance) -> Self {
        Recording {
            recorder: Some(recorder),
            provenance,
            runs: HashMap::new(),
            files: HashMap::new(),
        }
    }

    /// Restored sessions go on with these files.
    pub fn continue_files(&mut self, files: impl IntoIterator<Item = (SessionId, PathBuf)>) {
        self.files.extend(files);
    }

    /// For threads that have to know when frames are safe.
    pub fn flusher(&self) -> Option<Flusher> {
        self.recorder.as_ref().map(Recorder::flusher)
    }

    /// Reads the recorder's counters from elsewhere.
    pub fn watch(&self) -> Option<RecorderWatch> {
        self.recorder.as_ref().map(Recorder::watch)
    }

    fn send(&mut self, message: RecordMessage) {
        let Some(recorder) = &self.recorder else {
            return;
        };
        match recorder.send(message) {
            Ok(()) => {}
            // Told once in a while by a notice, not for every frame.
            Err(error @ TrajectoryError::Full { .. }) => tracing::debug!(%error),
            Err(error) => tracing::error!(%error, "recording failed"),
        }
    }

    fn event(&mut self, session: SessionId, step: u64, text: String) {
        let key = session.0;
        self.send(RecordMessage::Event { key, step, text });
    }

    fn start(&mut self, session: SessionId, label: Option<String>, segment: u64, header: Header) {
        if let Some(run) = self.runs.get(&session)
            && run.segment == segment
        {
            let step = run.step;
            let provenance = &header.provenance;
            let text = format!("start {}", words(provenance));
            return self.event(session, step, text);
        }
        let step = self.runs.get(&session).map_or(0, |run| run.step);
        self.runs.insert(session, Run { segment, step });
        let label = label.unwrap_or_else(|| format!("session-{}", session.0));
        self.send(RecordMessage::Open {
            key: session.0,
            label,
            header,
        });
    }

    /// Goes on with the file of the process before, if it is known.
    fn resume(
        &mut self,
        session: SessionId,
        label: Option<String>,
        segment: u64,
        header: Header,
        step: u64,
    ) {
        let Some(path) = self.files.remove(&session) else {
            return self.start(session, label, segment, header);
        };
        self.runs.insert(session, Run { segment, step });
        let label = label.unwrap_or_else(|| format!("session-{}", session.0));
        self.send(RecordMessage::Resume {
            key: session.0,
            path,
            label,
            header,
            step,
        });
    }

    fn stop(&mut self, session: SessionId, step: Option<u64>) {
        if self.runs.remove(&session).is_some() {
            let key = session.0;
            self.send(RecordMessage::Close { key, step });
        }
    }

    fn header(&self, method: &Method, seed: u64, steps_per_frame: u32, system: &System) -> Header {
        let (method, timestep_fs, mut parameters) = describe(method);
        parameters.push(("steps_per_frame".into(), steps_per_frame.to_string()));
        Header {
            species: system.numbers.clone(),
            masses: system.numbers.iter().map(|&z| atomic_mass(z)).collect(),
            periodic: system.cell.periodic,
            has_stress: system.cell.is_periodic(),
            timestep_fs,
            provenance: Provenance {
                task: system.task.clone(),
                charge: system.charge,
                spin: system.spin,
                method: method.into(),
                parameters,
                seed,
                ..self.provenance.clone()
            },
        }
    }
}

impl RecordSink for Recording {
    fn record(&mut self, session: SessionId, record: Record) {
        match record {
            Record::Start {
                label,
                segment,
                method,
                seed,
                steps_per_frame,
                system,
            } => {
                let header = self.header(&method, seed, steps_per_frame, &system);
                self.start(session, label, segment, header);
            }
            Record::Resume {
                step,
                label,
                segment,
                method,
                seed,
                steps_per_frame,
                system,
            } => {
                let header = self.header(&method, seed, steps_per_frame, &system);
                self.resume(session, label, segment, header, step);
            }
            Record::Frame {
                step,
                time_fs,
                frame,
            } => {
                if let Some(run) = self.runs.get_mut(&session) {
                    run.step = step;
                    self.send(RecordMessage::Frame {
                        key: session.0,
                        frame: frame_data(step, time_fs, &frame),
                    });
                }
            }
            Record::Edit { step, description } => {
                if self.runs.contains_key(&session) {
                    self.event(session, step, format!("edit {description}"));
                }
            }
            Record::Failure { step, reason } => {
                if self.runs.contains_key(&session) {
                    self.event(session, step, format!("compute error: {reason}"));
                }
            }
            Record::Stop { step } => self.stop(session, Some(step)),
        }
    }

    fn close(&mut self, session: SessionId) {
        self.stop(session, None);
    }

    fn take_notices(&mut self) -> Vec<(SessionId, RecordingNotice)> {
        let notices = self.recorder.as_ref().map(Recorder::take_notices);
        notices.into_iter().flatten().map(notice_of).collect()
    }

    fn finish(&mut self) {
        if let Some(recorder) = self.recorder.take() {
            let status = recorder.finish();
            tracing::info!(
                frames = status.frames_written,
                dropped = status.frames_dropped,
                "recordings closed"
            );
        }
    }
}

/// For viewers, who need not know where on the server the files lie.
fn notice_of(notice: RecordNotice) -> (SessionId, RecordingNotice) {
    let name = |path: &Path| {
        let name = path.file_name().unwrap_or(path.as_os_str());
        name.to_string_lossy().into_owned()
    };
    let kind = match notice.kind {
        RecordNoticeKind::Opened { path } => RecordingNotice::Opened(name(&path)),
        RecordNoticeKind::Closed { .. } => RecordingNotice::Closed,
        RecordNoticeKind::Failed { error } => RecordingNotice::Failed(error),
        RecordNoticeKind::Recovered { frames_dropped } => {
            RecordingNotice::Recovered(frames_dropped)
        }
    };
    (SessionId(notice.key), kind)
}

/// Name, time step and parameters of a method.
fn describe(method: &Method) -> (&'static str, f64, Vec<(String, String)>) {
    let relaxation = |name, max_step: f64| {
        let parameters = vec![("max_step_angstrom".to_owned(), max_step.to_string())];
        (name, 0.0, parameters)
    };
    match *method {
        Method::VelocityVerlet { timestep_fs } => (
            "velocity_verlet",
            timestep_fs,
            vec![("timestep_fs".into(), timestep_fs.to_string())],
        ),
        Method::Langevin {
            timestep_fs,
            temperature_kelvin,
            friction,
        } => (
            "langevin",
            timestep_fs,
            vec![
                ("timestep_fs".into(), timestep_fs.to_string()),
                ("temperature_kelvin".into(), temperature_kelvin.to_string()),
                ("friction_per_ase_time".into(), friction.to_string()),
            ],
        ),
        Method::Bfgs { max_step_angstrom } => relaxation("bfgs", max_step_angstrom),
        Method::Lbfgs { max_step_angstrom } => relaxation("lbfgs", max_step_angstrom),
        Method::Fire { max_step_angstrom } => relaxation("fire", max_step_angstrom),
    }
}

fn words(provenance: &Provenance) -> String {
    let mut text = provenance.method.clone();
    for (name, value) in &provenance.parameters {
        text += &format!(" {name}={value}");
    }
    text
}

fn frame_data(step: u64, time_fs: f64, frame: &Frame) -> FrameData {
    FrameData {
        step,
        time_fs,
        positions: frame.positions.clone(),
        velocities: frame.velocities.clone(),
        forces: frame.forces.clone(),
        energy_ev: frame.energy,
        kinetic_ev: frame.kinetic.unwrap_or(0.0),
        temperature_kelvin: frame.temperature.unwrap_or(0.0),
        stress: frame.stress,
        cell: frame.cell.unwrap_or_default(),
    }
}
