//! Shards and outcomes as flat bytes: a header, then plain arrays, in the byte order of the
//! machine. Both sides are the same binary (ranks compare a build hash at start), so there is no
//! schema to negotiate; numbers travel bit for bit.
//!
//! The bytes are still not trusted. Every count is compared with the bytes that are left before
//! anything is allocated, so that a damaged message costs an error and at most a small multiple
//! of its own size in memory.

use bytemuck::{AnyBitPattern, NoUninit};

use super::{Job, Outcome, SessionId, Shard, Task};
use crate::dynamics::{History, Method, State};
use crate::system::{Cell, Evaluation, System};

/// Why bytes are not a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The message ends inside a field, or a count is larger than what is left.
    #[error("message ends early: {wanted} bytes wanted at offset {offset}, {left} left")]
    Truncated {
        /// Bytes that the field needs.
        wanted: u64,
        /// Where.
        offset: usize,
        /// Bytes that are there.
        left: usize,
    },
    /// A field has a value that no sender writes.
    #[error("{what} has the impossible value {value}")]
    Invalid {
        /// The field.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// A string is not UTF-8.
    #[error("{what} is not UTF-8")]
    NotUtf8 {
        /// The field.
        what: &'static str,
    },
    /// Bytes follow the end of the message.
    #[error("{0} bytes follow the end of the message")]
    Trailing(usize),
}

/// First word of a shard ("UMSHARD" and the version of this layout).
const SHARD: u64 = u64::from_le_bytes(*b"UMSHARD\x01");
/// First word of outcomes.
const OUTCOMES: u64 = u64::from_le_bytes(*b"UMOUTCM\x01");

/// Smallest encoding of a job or an outcome: bounds the number that a message can hold.
const SMALLEST_ITEM: usize = 3 * 8;

/// A shard as bytes.
pub fn encode_shard(shard: &Shard) -> Vec<u8> {
    let mut out = Writer::default();
    out.word(SHARD);
    out.word(shard.id);
    out.word(shard.jobs.len() as u64);
    for job in &shard.jobs {
        out.word(job.session.0);
        out.word(job.serial);
        put_task(&mut out, &job.task);
        put_state(&mut out, &job.state);
    }
    out.0
}

/// The shard in `bytes`.
pub fn decode_shard(bytes: &[u8]) -> Result<Shard, WireError> {
    let mut input = Reader::new(bytes);
    input.expect("message kind", SHARD)?;
    let id = input.word()?;
    let count = input.count(SMALLEST_ITEM)?;
    let mut jobs = Vec::new();
    for _ in 0..count {
        jobs.push(Job {
            session: SessionId(input.word()?),
            serial: input.word()?,
            task: take_task(&mut input)?,
            state: take_state(&mut input)?,
        });
    }
    input.end()?;
    Ok(Shard { id, jobs })
}

/// The outcomes of a shard as bytes.
pub fn encode_outcomes(shard: u64, outcomes: &[Outcome]) -> Vec<u8> {
    let mut out = Writer::default();
    out.word(OUTCOMES);
    out.word(shard);
    out.word(outcomes.len() as u64);
    for outcome in outcomes {
        out.word(outcome.session.0);
        out.word(outcome.serial);
        out.word(outcome.edges);
        match &outcome.result {
            Ok(state) => {
                out.word(0);
                put_state(&mut out, state);
            }
            Err(message) => {
                out.word(1);
                out.array(message.as_bytes());
            }
        }
    }
    out.0
}

/// The shard's serial number and its outcomes in `bytes`.
pub fn decode_outcomes(bytes: &[u8]) -> Result<(u64, Vec<Outcome>), WireError> {
    let mut input = Reader::new(bytes);
    input.expect("message kind", OUTCOMES)?;
    let shard = input.word()?;
    let count = input.count(SMALLEST_ITEM)?;
    let mut outcomes = Vec::new();
    for _ in 0..count {
        let session = SessionId(input.word()?);
        let serial = input.word()?;
        let edges = input.word()?;
        let result = match input.word()? {
            0 => Ok(take_state(&mut input)?),
            1 => Err(input.string("error message")?),
            value => return Err(invalid("result", value)),
        };
        outcomes.push(Outcome {
            session,
            serial,
            result,
            edges,
        });
    }
    input.end()?;
    Ok((shard, outcomes))
}

fn put_task(out: &mut Writer, task: &Task) {
    match task {
        Task::Evaluate => out.word(0),
        Task::Step(method) => {
            out.word(1);
            put_method(out, method);
        }
    }
}

fn take_task(input: &mut Reader) -> Result<Task, WireError> {
    match input.word()? {
        0 => Ok(Task::Evaluate),
        1 => Ok(Task::Step(take_method(input)?)),
        value => Err(invalid("task", value)),
    }
}

pub(crate) fn put_method(out: &mut Writer, method: &Method) {
    match *method {
        Method::VelocityVerlet { timestep_fs } => {
            out.word(0);
            out.number(timestep_fs);
        }
        Method::Langevin {
            timestep_fs,
            temperature_kelvin,
            friction,
        } => {
            out.word(1);
            out.number(timestep_fs);
            out.number(temperature_kelvin);
            out.number(friction);
        }
        Method::Bfgs { max_step_angstrom } => {
            out.word(2);
            out.number(max_step_angstrom);
        }
        Method::Lbfgs { max_step_angstrom } => {
            out.word(3);
            out.number(max_step_angstrom);
        }
        Method::Fire { max_step_angstrom } => {
            out.word(4);
            out.number(max_step_angstrom);
        }
    }
}

pub(crate) fn take_method(input: &mut Reader) -> Result<Method, WireError> {
    Ok(match input.word()? {
        0 => Method::VelocityVerlet {
            timestep_fs: input.number()?,
        },
        1 => Method::Langevin {
            timestep_fs: input.number()?,
            temperature_kelvin: input.number()?,
            friction: input.number()?,
        },
        2 => Method::Bfgs {
            max_step_angstrom: input.number()?,
        },
        3 => Method::Lbfgs {
            max_step_angstrom: input.number()?,
        },
        4 => Method::Fire {
            max_step_angstrom: input.number()?,
        },
        value => return Err(invalid("method", value)),
    })
}

pub(crate) fn put_state(out: &mut Writer, state: &State) {
    // Destructured in full: a new field does not compile until it travels.
    let State {
        system,
        velocities,
        evaluation,
        history,
        step,
        seed,
    } = state;
    put_system(out, system);
    out.array(velocities);
    match evaluation {
        None => out.word(0),
        Some(evaluation) => {
            out.word(1);
            put_evaluation(out, evaluation);
        }
    }
    put_history(out, history);
    out.word(*step);
    out.word(*seed);
}

pub(crate) fn take_state(input: &mut Reader) -> Result<State, WireError> {
    Ok(State {
        system: take_system(input)?,
        velocities: input.array()?,
        evaluation: match input.word()? {
            0 => None,
            1 => Some(take_evaluation(input)?),
            value => return Err(invalid("evaluation present", value)),
        },
        history: take_history(input)?,
        step: input.word()?,
        seed: input.word()?,
    })
}

fn put_system(out: &mut Writer, system: &System) {
    let System {
        numbers,
        positions,
        cell: Cell { vectors, periodic },
        charge,
        spin,
        task,
    } = system;
    out.array(numbers);
    out.array(positions);
    out.plain(vectors);
    out.word(
        periodic
            .iter()
            .enumerate()
            .map(|(axis, &p)| u64::from(p) << axis)
            .sum(),
    );
    out.plain(&i64::from(*charge));
    out.plain(&i64::from(*spin));
    out.array(task.as_bytes());
}

fn take_system(input: &mut Reader) -> Result<System, WireError> {
    Ok(System {
        numbers: input.array()?,
        positions: input.array()?,
        cell: Cell {
            vectors: input.plain()?,
            periodic: match input.word()? {
                bits @ 0..8 => [bits & 1 != 0, bits & 2 != 0, bits & 4 != 0],
                value => return Err(invalid("periodic directions", value)),
            },
        },
        charge: input.int("charge")?,
        spin: input.int("spin")?,
        task: input.string("task")?,
    })
}

fn put_evaluation(out: &mut Writer, evaluation: &Evaluation) {
    let Evaluation {
        energy,
        forces,
        stress,
    } = evaluation;
    out.number(*energy);
    out.array(forces);
    match stress {
        None => out.word(0),
        Some(stress) => {
            out.word(1);
            out.plain(stress);
        }
    }
}

fn take_evaluation(input: &mut Reader) -> Result<Evaluation, WireError> {
    Ok(Evaluation {
        energy: input.number()?,
        forces: input.array()?,
        stress: match input.word()? {
            0 => None,
            1 => Some(input.plain()?),
            value => return Err(invalid("stress present", value)),
        },
    })
}

fn put_history(out: &mut Writer, history: &History) {
    match history {
        History::None => out.word(0),
        History::Bfgs {
            hessian,
            positions,
            forces,
        } => {
            out.word(1);
            out.array(hessian);
            out.array(positions);
            out.array(forces);
        }
        History::Lbfgs {
            steps,
            changes,
            positions,
            forces,
        } => {
            out.word(2);
            out.arrays(steps);
            out.arrays(changes);
            out.array(positions);
            out.array(forces);
        }
        History::Fire {
            velocities,
            dt,
            alpha,
            steps_uphill_free,
        } => {
            out.word(3);
            out.array(velocities);
            out.number(*dt);
            out.number(*alpha);
            out.word(u64::from(*steps_uphill_free));
        }
    }
}

fn take_history(input: &mut Reader) -> Result<History, WireError> {
    Ok(match input.word()? {
        0 => History::None,
        1 => History::Bfgs {
            hessian: input.array()?,
            positions: input.array()?,
            forces: input.array()?,
        },
        2 => History::Lbfgs {
            steps: input.arrays()?,
            changes: input.arrays()?,
            positions: input.array()?,
            forces: input.array()?,
        },
        3 => History::Fire {
            velocities: input.array()?,
            dt: input.number()?,
            alpha: input.number()?,
            steps_uphill_free: {
                let value = input.word()?;
                u32::try_from(value).map_err(|_| invalid("steps_uphill_free", value))?
            },
        },
        value => return Err(invalid("history", value)),
    })
}

pub(crate) fn invalid(what: &'static str, value: u64) -> WireError {
    WireError::Invalid { what, value }
}

/// Appends fields. An array is its length (a word) and its elements.
#[derive(Default)]
pub(crate) struct Writer(pub Vec<u8>);

impl Writer {
    pub fn word(&mut self, value: u64) {
        self.plain(&value);
    }

    pub fn number(&mut self, value: f64) {
        self.plain(&value);
    }

    pub fn plain<T: NoUninit>(&mut self, value: &T) {
        self.0.extend_from_slice(bytemuck::bytes_of(value));
    }

    pub fn array<T: NoUninit>(&mut self, values: &[T]) {
        self.word(values.len() as u64);
        self.0.extend_from_slice(bytemuck::cast_slice(values));
    }

    pub fn text(&mut self, value: &str) {
        self.array(value.as_bytes());
    }

    pub fn flag(&mut self, value: bool) {
        self.word(u64::from(value));
    }

    /// Whether there is a value, then the value.
    pub fn option<T>(&mut self, value: Option<T>, put: impl FnOnce(&mut Self, T)) {
        self.flag(value.is_some());
        if let Some(value) = value {
            put(self, value);
        }
    }

    fn arrays(&mut self, rows: &[Vec<f64>]) {
        self.word(rows.len() as u64);
        for row in rows {
            self.array(row);
        }
    }
}

/// Takes fields off the front.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    total: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader {
            rest: bytes,
            total: bytes.len(),
        }
    }

    fn truncated(&self, wanted: u64) -> WireError {
        WireError::Truncated {
            wanted,
            offset: self.total - self.rest.len(),
            left: self.rest.len(),
        }
    }

    fn bytes(&mut self, length: usize) -> Result<&'a [u8], WireError> {
        let (head, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or_else(|| self.truncated(length as u64))?;
        self.rest = rest;
        Ok(head)
    }

    pub fn plain<T: AnyBitPattern>(&mut self) -> Result<T, WireError> {
        Ok(bytemuck::pod_read_unaligned(self.bytes(size_of::<T>())?))
    }

    pub fn word(&mut self) -> Result<u64, WireError> {
        self.plain()
    }

    pub fn number(&mut self) -> Result<f64, WireError> {
        self.plain()
    }

    pub fn int(&mut self, what: &'static str) -> Result<i32, WireError> {
        let value: i64 = self.plain()?;
        i32::try_from(value).map_err(|_| invalid(what, value as u64))
    }

    /// A number of items, each of at least `smallest` bytes, that can still follow.
    pub fn count(&mut self, smallest: usize) -> Result<usize, WireError> {
        let count = self.word()?;
        let wanted = count.saturating_mul(smallest as u64);
        if wanted > self.rest.len() as u64 {
            return Err(self.truncated(wanted));
        }
        Ok(count as usize)
    }

    pub fn array<T: AnyBitPattern + NoUninit>(&mut self) -> Result<Vec<T>, WireError> {
        let count = self.count(size_of::<T>())?;
        let bytes = self.bytes(count * size_of::<T>())?;
        // The bytes may lie at any address, so they are copied into an aligned vector.
        let mut values = vec![T::zeroed(); count];
        bytemuck::cast_slice_mut::<T, u8>(&mut values).copy_from_slice(bytes);
        Ok(values)
    }

    pub fn flag(&mut self, what: &'static str) -> Result<bool, WireError> {
        match self.word()? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(invalid(what, value)),
        }
    }

    /// What [`Writer::option`] has written.
    pub fn option<T>(
        &mut self,
        what: &'static str,
        take: impl FnOnce(&mut Self) -> Result<T, WireError>,
    ) -> Result<Option<T>, WireError> {
        Ok(match self.flag(what)? {
            true => Some(take(self)?),
            false => None,
        })
    }

    fn arrays(&mut self) -> Result<Vec<Vec<f64>>, WireError> {
        let count = self.count(8)?;
        (0..count).map(|_| self.array()).collect()
    }

    pub fn string(&mut self, what: &'static str) -> Result<String, WireError> {
        String::from_utf8(self.array()?).map_err(|_| WireError::NotUtf8 { what })
    }

    pub fn expect(&mut self, what: &'static str, wanted: u64) -> Result<(), WireError> {
        match self.word()? {
            value if value == wanted => Ok(()),
            value => Err(invalid(what, value)),
        }
    }

    pub fn end(&self) -> Result<(), WireError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(WireError::Trailing(left)),
        }
    }
}
