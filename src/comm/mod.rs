//! Rank 0 and its workers: shards of step jobs go out, outcomes come back.

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
