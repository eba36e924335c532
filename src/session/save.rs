//! A session as bytes, for a restart: everything that the next step and the next answer need.
//!
//! A job that is out is not part of it. The state before its step is, so that a session that is
//! restored does the step again, with the same numbers. An answer that is due stays due.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::edit::Structure;
use super::message::RawParameters;
use super::parameters::{Kind, Parameters};
use super::record::Record;
use super::simulation::{Layout, Purpose, Run};
use super::{Session, SessionKey, SessionSettings};
use crate::comm::SessionId;
use crate::comm::wire::{self, Reader, WireError, Writer};
use crate::dynamics::State;
use crate::system::elements::atomic_mass;

/// First word of a saved session ("UMSESSN" and the version of this layout).
const SESSION: u64 = u64::from_le_bytes(*b"UMSESSN\x01");

/// Why bytes are not a session that can be restored here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Not the bytes of a session.
    #[error("not a saved session: {0}")]
    Unreadable(#[from] WireError),
    /// A session that this server cannot go on with.
    #[error("{0}")]
    Unusable(String),
}

impl Session {
    /// The session as bytes.
    pub fn save(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.word(SESSION);
        out.word(self.id.0);
        out.text(&self.key.map(|key| key.digits()).unwrap_or_default());
        out.flag(self.detached);
        let Structure {
            state,
            placed,
            periodic,
        } = &self.structure;
        wire::put_state(&mut out, state);
        for flags in [&placed[..], &periodic[..]] {
            let flags: Vec<u8> = flags.iter().map(|&flag| u8::from(flag)).collect();
            out.array(&flags);
        }
        put_parameters(&mut out, &self.parameters.raw());
        out.word(self.kind as u64);
        out.option(self.run.as_ref(), |out, run| {
            wire::put_method(out, &run.method);
            out.word(u64::from(run.steps_into_frame));
        });
        let answering = self
            .flight
            .as_ref()
            .and_then(|flight| match flight.purpose {
                Purpose::Reply { count } if !flight.cancelled => Some(count),
                _ => None,
            });
        out.option(self.reply_due.or(answering), Writer::word);
        for counter in [
            self.server_seq,
            self.client_seq,
            self.user_interaction_count,
            self.sim_step,
            self.steps,
        ] {
            out.word(counter);
        }
        out.number(self.time_fs);
        out.flag(self.recording.active);
        out.word(self.recording.segment);
        out.option(self.recording.layout.as_ref(), |out, layout| {
            out.array(&layout.numbers);
            out.array(&layout.periodic.map(u8::from));
            out.plain(&layout.charge);
            out.plain(&layout.spin);
            out.text(&layout.task);
        });
        out.0
    }

    /// The session in `bytes`, without a viewer. If it was being recorded, its first record says
    /// how the recording goes on.
    ///
    /// # Errors
    /// Bytes that are no session, and sessions beyond the limits of this server.
    pub fn restore(
        bytes: &[u8],
        settings: Arc<SessionSettings>,
        now: Instant,
    ) -> Result<Session, RestoreError> {
        let mut input = Reader::new(bytes);
        input.expect("kind and version of the bytes", SESSION)?;
        let id = SessionId(input.word()?);
        let key = input.string("session id")?;
        let mut session = Session::new(id, settings, now);
        session.attended = false;
        session.key = match key.as_str() {
            "" => None,
            digits => Some(SessionKey::parse(digits).ok_or_else(|| unusable("a session id"))?),
        };
        session.detached = input.flag("detached")?;
        let state = wire::take_state(&mut input)?;
        let placed: Vec<u8> = input.array()?;
        let periodic: Vec<u8> = input.array()?;
        session.structure = Structure {
            state,
            placed: placed.iter().map(|&flag| flag != 0).collect(),
            periodic: three(&periodic)?,
        };
        let raw = take_parameters(&mut input)?;
        session.parameters = Parameters::restored(&raw, &session.settings)
            .map_err(|reason| unusable(&format!("parameters: {reason}")))?;
        session.kind = match input.word()? {
            0 => Kind::Md,
            1 => Kind::Relax,
            value => return Err(wire::invalid("kind of simulation", value).into()),
        };
        let kind = session.kind;
        session.run = input.option("simulation", |input| {
            let method = wire::take_method(input)?;
            let steps = input.word()?;
            Ok(Run {
                kind,
                method,
                steps_into_frame: u32::try_from(steps)
                    .map_err(|_| wire::invalid("steps into the frame", steps))?,
            })
        })?;
        session.reply_due = input.option("answer", Reader::word)?;
        session.server_seq = input.word()?;
        session.client_seq = input.word()?;
        session.user_interaction_count = input.word()?;
        session.sim_step = input.word()?;
        session.steps = input.word()?;
        session.time_fs = input.number()?;
        session.recording.active = input.flag("recording")?;
        session.recording.segment = input.word()?;
        session.recording.layout = input
            .option("layout of the recording", |input| {
                let numbers = input.array()?;
                let periodic: Vec<u8> = input.array()?;
                Ok((
                    numbers,
                    periodic,
                    input.plain()?,
                    input.plain()?,
                    input.string("task")?,
                ))
            })?
            .map(|(numbers, periodic, charge, spin, task)| {
                Ok::<_, RestoreError>(Layout {
                    numbers,
                    periodic: three(&periodic)?,
                    charge,
                    spin,
                    task,
                })
            })
            .transpose()?;
        input.end()?;
        session.check_restored()?;
        session.resume_recording();
        Ok(session)
    }

    /// What a session that has grown in this server satisfies by construction.
    fn check_restored(&self) -> Result<(), RestoreError> {
        let refuse = |reason: String| Err(RestoreError::Unusable(reason));
        let State {
            system,
            velocities,
            evaluation,
            ..
        } = &self.structure.state;
        let atoms = system.len();
        let limit = self.settings.max_atoms;
        if atoms > limit {
            return refuse(format!("{atoms} atoms, the limit is {limit} (--max-atoms)"));
        }
        let forces = evaluation.as_ref().map_or(atoms, |e| e.forces.len());
        let placed = self.structure.placed.len();
        if [system.positions.len(), velocities.len(), forces, placed] != [atoms; 4] {
            return refuse(format!("arrays of different lengths for {atoms} atoms"));
        }
        if !self.settings.tasks.contains(&system.task) {
            let tasks = self.settings.tasks.join(", ");
            return refuse(format!("task {:?}, this model has {tasks}", system.task));
        }
        let heaviest = self.settings.max_atomic_number;
        if let Some(z) = system
            .numbers
            .iter()
            .find(|&&z| z > heaviest || (z > 0 && !atomic_mass(z).is_finite()))
        {
            return refuse(format!(
                "atomic number {z}, the model knows 1 to {heaviest}"
            ));
        }
        let numbers = system.positions.iter().chain(velocities).flatten();
        let finite = numbers
            .chain(evaluation.iter().flat_map(|e| e.forces.iter().flatten()))
            .chain(system.cell.vectors.iter().flatten())
            .chain([&self.time_fs])
            .all(|x| x.is_finite());
        if !finite {
            return refuse("a number that is not finite".into());
        }
        match &self.run {
            Some(_) if !self.structure.is_complete() => {
                refuse("a simulation of an incomplete structure".into())
            }
            Some(run) => match run.method.check() {
                Ok(()) => Ok(()),
                Err(error) => refuse(error.to_string()),
            },
            None => Ok(()),
        }
    }

    /// Tells the recorder that it goes on, or forgets a recording that this server cannot write.
    fn resume_recording(&mut self) {
        let Some(run) = self.run.as_ref().filter(|_| self.recording.active) else {
            self.recording.active = false;
            return;
        };
        if !self.parameters.record {
            self.recording.active = false;
            return;
        }
        self.recording.records.push(Record::Resume {
            step: self.steps,
            label: self.parameters.record_label.clone(),
            segment: self.recording.segment,
            method: run.method.clone(),
            seed: self.structure.state.seed,
            steps_per_frame: self.parameters.steps_per_frame,
            system: Box::new(self.structure.state.system.clone()),
        });
    }
}

fn unusable(what: &str) -> RestoreError {
    RestoreError::Unusable(format!("{what} that cannot be used"))
}

fn three(flags: &[u8]) -> Result<[bool; 3], RestoreError> {
    match *flags {
        [a, b, c] => Ok([a != 0, b != 0, c != 0]),
        _ => Err(unusable("a periodicity")),
    }
}

fn put_parameters(out: &mut Writer, raw: &RawParameters) {
    let RawParameters {
        calculator,
        temperature,
        timestep_fs,
        friction,
        fmax,
        max_step,
        integrator,
        seed,
        steps_per_frame,
        frame_interval_ms,
        record,
        record_label,
    } = raw;
    out.text(calculator);
    for number in [temperature, timestep_fs, friction, fmax, max_step] {
        out.number(*number);
    }
    out.option(*integrator, |out, number| out.word(number as u64));
    out.option(*seed, Writer::word);
    out.option(*steps_per_frame, |out, steps| out.word(u64::from(steps)));
    out.option(*frame_interval_ms, |out, ms| out.word(u64::from(ms)));
    out.option(*record, Writer::flag);
    out.option(record_label.as_deref(), Writer::text);
}

fn take_parameters(input: &mut Reader) -> Result<RawParameters, WireError> {
    let small = |what, value: u64| u32::try_from(value).map_err(|_| wire::invalid(what, value));
    Ok(RawParameters {
        calculator: input.string("calculator")?,
        temperature: input.number()?,
        timestep_fs: input.number()?,
        friction: input.number()?,
        fmax: input.number()?,
        max_step: input.number()?,
        integrator: input.option("integrator", |input| {
            let value = input.word()?;
            Ok(small("integrator", value)? as i32)
        })?,
        seed: input.option("seed", Reader::word)?,
        steps_per_frame: input.option("steps per frame", |input| {
            let value = input.word()?;
            small("steps per frame", value)
        })?,
        frame_interval_ms: input.option("frame interval", |input| {
            let value = input.word()?;
            small("frame interval", value)
        })?,
        record: input.option("record", |input| input.flag("record"))?,
        record_label: input.option("label", |input| input.string("label"))?,
    })
}

impl Parameters {
    /// The parameters of a saved session. What this server cannot record it does not.
    fn restored(raw: &RawParameters, settings: &SessionSettings) -> Result<Parameters, String> {
        let raw = RawParameters {
            record: raw.record.map(|record| record && settings.can_record),
            ..raw.clone()
        };
        Parameters::from_raw(&raw, settings)
    }

    /// As a viewer would ask for them.
    pub(super) fn raw(&self) -> RawParameters {
        let interval = self.frame_interval.min(Duration::from_secs(60));
        RawParameters {
            calculator: "uma".into(),
            temperature: self.temperature,
            timestep_fs: self.timestep_fs,
            friction: self.friction,
            fmax: 0.0,
            max_step: self.max_step,
            integrator: Some(self.integrator as i32),
            seed: self.seed,
            steps_per_frame: Some(self.steps_per_frame),
            frame_interval_ms: Some(interval.as_millis() as u32),
            record: Some(self.record),
            record_label: self.record_label.clone(),
        }
    }
}
