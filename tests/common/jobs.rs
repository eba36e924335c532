//! Jobs for a worker.

use umaserve::comm::{Job, SessionId, Shard, Task};
use umaserve::dynamics::State;
use umaserve::system::System;

pub fn at_rest(system: System) -> State {
    State {
        velocities: vec![[0.0; 3]; system.len()],
        system,
        seed: 7,
        ..State::default()
    }
}

/// One job of a session of its own for each task.
pub fn shard(id: u64, jobs: impl IntoIterator<Item = (Task, State)>) -> Shard {
    let jobs = jobs.into_iter().enumerate();
    Shard {
        id,
        jobs: jobs
            .map(|(k, (task, state))| Job {
                session: SessionId(k as u64),
                serial: 10 + k as u64,
                task,
                state,
            })
            .collect(),
    }
}
