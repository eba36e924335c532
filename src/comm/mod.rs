//! Rank 0 and its workers: shards of step jobs go out, outcomes come back.
//!
//! The engine talks to its workers through [`Workers`]; a worker talks to the engine through a
//! [`Link`]. [`thread`] joins the two by channels inside one process, `mpi` (feature `mpi`) by
//! messages between ranks, written by [`wire`].

#[cfg(feature = "mpi")]
pub mod mpi;
pub mod thread;
pub mod wire;

use std::sync::Arc;

use crate::dynamics::{Method, State};

/// Names a session for the life of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// What a worker does with a state.
#[derive(Clone, Debug, PartialEq)]
pub enum Task {
    /// Energy and forces at the positions as they are.
    Evaluate,
    /// One step (evaluating first if the state has no forces yet).
    Step(Method),
}

/// One unit of work: a state and what to do with it. Carries everything, so that any worker can
/// take it and a lost worker costs nothing but time.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Whose job.
    pub session: SessionId,
    /// Serial number within the session; outcomes of cancelled serials are dropped.
    pub serial: u64,
    /// What to do.
    pub task: Task,
    /// From where.
    pub state: State,
}

/// What became of a job.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Whose job it was.
    pub session: SessionId,
    /// Its serial number.
    pub serial: u64,
    /// The new state, with `evaluation` at its positions; or why not, in words for the user.
    pub result: Result<State, String>,
    /// Directed edges of the last evaluation: the cost that the scheduler counts.
    pub edges: u64,
}

/// Jobs evaluated in one batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shard {
    /// Serial number of the shard.
    pub id: u64,
    /// Its jobs.
    pub jobs: Vec<Job>,
}

/// What the engine hears from its workers.
#[derive(Clone, Debug, PartialEq)]
pub enum WorkerEvent {
    /// A shard is done.
    Done {
        /// Which worker did it.
        worker: usize,
        /// [`Shard::id`] of the shard.
        shard: u64,
        /// One outcome per job, in the order of the jobs.
        outcomes: Vec<Outcome>,
    },
    /// A worker is gone for good; nothing that it had in hand will come back.
    Lost {
        /// Which worker.
        worker: usize,
        /// Why, in words for the log.
        reason: String,
    },
    /// A worker does not answer any more, and nobody can say whether it ever will.
    Hung {
        /// Which worker.
        worker: usize,
        /// What is known, in words for the log.
        reason: String,
    },
    /// The device of a worker has failed. Nothing that it had in hand will come back, but the
    /// worker tries to get its device going again.
    Unfit {
        /// Which worker.
        worker: usize,
        /// Why, in words for the log.
        reason: String,
    },
    /// A worker that was unfit takes shards again.
    Fit {
        /// Which worker.
        worker: usize,
    },
}

/// Why a shard did not leave.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SendError {
    /// The worker is gone: send the shard to another one.
    #[error("worker {worker} is gone: {reason}")]
    Lost {
        /// Which worker.
        worker: usize,
        /// Why.
        reason: String,
    },
    /// No worker could take this shard.
    #[error("a shard of {mib} MiB is larger than the {limit_mib} MiB that one message may carry")]
    TooLarge {
        /// Size of the encoded shard, MiB.
        mib: usize,
        /// The limit, MiB.
        limit_mib: usize,
    },
}

/// The engine's end: all workers of this server. Nothing here blocks.
pub trait Workers {
    /// What each worker computes on ("cpu", "cuda:0 NVIDIA H200"); one entry per worker.
    fn devices(&self) -> &[String];

    /// Hands a shard to a worker. It is done after those that the worker already has.
    fn send(&mut self, worker: usize, shard: Arc<Shard>) -> Result<(), SendError>;

    /// The next event, if one has arrived.
    fn poll(&mut self) -> Option<WorkerEvent>;

    /// Whether the engine is woken when an event arrives. If not, it has to poll while shards
    /// are out.
    fn wakes_engine(&self) -> bool;

    /// The engine is about to end: a worker that shows no sign of life is not waited for any more.
    fn end_is_near(&mut self) {}

    /// Tells every worker to leave when it has finished what it has in hand, and does not wait.
    fn dismiss(&mut self) {}

    /// The same, and waits for them.
    fn shut_down(&mut self);
}

/// A worker's end.
pub trait Link {
    /// The next shard, waiting for it; `None` when the worker should leave.
    fn take(&mut self) -> Option<Arc<Shard>>;

    /// A shard that has arrived already: for workers that have two in hand at a time.
    fn try_take(&mut self) -> Option<Arc<Shard>> {
        None
    }

    /// Sends the outcomes of a shard back.
    fn answer(&mut self, shard: u64, outcomes: Vec<Outcome>);

    /// Says that the device has failed and that nothing in hand will be answered.
    fn tell_unfit(&mut self, reason: &str);

    /// Says that the device works again.
    fn tell_fit(&mut self);
}
