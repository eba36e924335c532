//! Which job goes to which worker, and with which others.
//!
//! A pure state machine without a clock: the same sequence of calls gives the same shards.
//!
//! * **Cost** is counted in directed edges, because the time of an evaluation is: those of the
//!   session's last outcome, and an estimate from the atoms before there is one.
//! * **Continuous batching**: a worker has at most one shard in hand and one waiting, so that it
//!   never idles for a round trip; jobs are packed when a place becomes free, not in rounds.
//! * **Fairness** is self-clocked fair queueing: a job that becomes ready is stamped with the
//!   virtual time at which a device shared equally would have finished it, and the lowest stamp
//!   goes first. Small jobs therefore overtake large ones, and a large one is overtaken for at
//!   most its own cost by each other session. Since a session has nothing queued while its job is
//!   computed, a large job also waits with *filling the second place* of a worker until the
//!   sessions in hand there have had their share.
//! * **Somebody waits** for an evaluation that answers an edit, so it is stamped as if it cost a
//!   quarter; it is charged in full.
//! * **Large jobs** (more than half of the budget) travel alone, and small jobs do not queue
//!   behind them where another worker can take them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use crate::comm::{Job, Outcome, SessionId, Shard, Task};

/// Shards that a worker has at a time: one in hand, one waiting.
pub const SHARDS_PER_WORKER: usize = 2;

/// Workers that a job may have in hand when they are lost before it is given up: a job that
/// kills its worker must not kill them all.
pub const LOSSES_PER_JOB: u8 = 2;

/// By how much an evaluation that somebody waits for seems cheaper than a step.
const WAITED_FOR: u64 = 4;

/// Jobs in one shard, however cheap they are.
const MAX_JOBS_PER_SHARD: usize = 512;

/// Neighbours of an atom in condensed matter within the 6 Angstrom of UMA, for a first guess.
const NEIGHBORS_GUESS: u64 = 80;

/// A shard for a worker.
#[derive(Clone, Debug)]
pub struct Dispatch {
    /// Index of the worker.
    pub worker: usize,
    /// What to send.
    pub shard: Arc<Shard>,
    /// Sum of the costs of its jobs, edges.
    pub cost_edges: u64,
}

/// What a session has cost so far.
#[derive(Clone, Copy, Debug, Default)]
struct Account {
    /// Virtual time at which the session's last job is finished, edges.
    finish: u64,
    /// Edges and atoms of the last outcome.
    last: Option<(u64, u64)>,
}

/// Stamp, then order of arrival.
type Key = (u64, u64);

/// What is known about a job in the queue or on a worker.
#[derive(Clone, Copy, Debug)]
struct Stamp {
    key: Key,
    start: u64,
    cost: u64,
    losses: u8,
}

impl Stamp {
    /// Virtual time at which the job is finished.
    fn finish(&self) -> u64 {
        self.start.saturating_add(self.cost)
    }
}

/// A shard that a worker has.
#[derive(Debug)]
struct Sent {
    shard: Arc<Shard>,
    /// One per job.
    stamps: Vec<Stamp>,
    cost: u64,
    large: bool,
}

#[derive(Debug, Default)]
struct WorkerQueue {
    alive: bool,
    /// Not alive, but it may be again.
    suspended: bool,
    shards: VecDeque<Sent>,
}

impl WorkerQueue {
    fn cost(&self) -> u64 {
        self.shards.iter().map(|sent| sent.cost).sum()
    }

    fn has_large(&self) -> bool {
        self.shards.iter().any(|sent| sent.large)
    }
}

/// The ready queue and what every worker has.
#[derive(Debug)]
pub struct Scheduler {
    budget: u64,
    workers: Vec<WorkerQueue>,
    accounts: HashMap<SessionId, Account>,
    /// Ready jobs.
    queue: BTreeMap<Key, (Job, Stamp)>,
    /// Key of the queued job of a session.
    queued: HashMap<SessionId, Key>,
    virtual_time: u64,
    arrivals: u64,
    next_shard: u64,
}

impl Scheduler {
    /// A scheduler for so many workers, with shards of at most `budget_edges` (one larger job
    /// travels alone).
    pub fn new(workers: usize, budget_edges: u64) -> Self {
        Scheduler {
            budget: budget_edges.max(1),
            workers: (0..workers)
                .map(|_| WorkerQueue {
                    alive: true,
                    suspended: false,
                    shards: VecDeque::new(),
                })
                .collect(),
            accounts: HashMap::new(),
            queue: BTreeMap::new(),
            queued: HashMap::new(),
            virtual_time: 0,
            arrivals: 0,
            next_shard: 1,
        }
    }

    /// Jobs waiting for a worker.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Shards that workers have.
    pub fn shards_out(&self) -> usize {
        self.workers.iter().map(|w| w.shards.len()).sum()
    }

    /// Workers that are not lost.
    pub fn workers_alive(&self) -> usize {
        self.workers.iter().filter(|w| w.alive).count()
    }

    /// Workers that are not lost, also those without a device.
    pub fn workers_left(&self) -> usize {
        let left = |w: &&WorkerQueue| w.alive || w.suspended;
        self.workers.iter().filter(left).count()
    }

    /// Shards that a worker has.
    pub fn shards_of(&self, worker: usize) -> usize {
        self.workers.get(worker).map_or(0, |w| w.shards.len())
    }

    /// What a job is expected to cost, edges.
    pub fn cost_edges(&self, job: &Job) -> u64 {
        let atoms = job.state.system.len() as u64;
        let account = self.accounts.get(&job.session);
        let edges = match account.and_then(|account| account.last) {
            Some((edges, last_atoms)) if last_atoms == atoms => edges,
            Some((edges, last_atoms)) => {
                (u128::from(edges) * u128::from(atoms) / u128::from(last_atoms.max(1))) as u64
            }
            None if job.state.system.cell.is_periodic() => atoms * NEIGHBORS_GUESS,
            None => atoms * NEIGHBORS_GUESS.min(atoms.saturating_sub(1)),
        };
        // Atoms without neighbours cost something too.
        edges.max(atoms).max(1)
    }

    /// Queues a job. A job of the same session that has not left yet is replaced by it: the
    /// session has moved on, and nobody waits for its outcome.
    pub fn push(&mut self, job: Job) {
        self.withdraw(job.session);
        let cost = self.cost_edges(&job);
        let account = self.accounts.entry(job.session).or_default();
        let start = account.finish.max(self.virtual_time);
        let apparent_cost = match job.task {
            Task::Evaluate => cost / WAITED_FOR,
            Task::Step(_) => cost,
        };
        self.arrivals += 1;
        let stamp = Stamp {
            key: (start.saturating_add(apparent_cost), self.arrivals),
            start,
            cost,
            losses: 0,
        };
        self.enqueue(job, stamp);
    }

    fn enqueue(&mut self, job: Job, stamp: Stamp) {
        self.queued.insert(job.session, stamp.key);
        self.queue.insert(stamp.key, (job, stamp));
    }

    /// The job of a session that waits for a worker.
    pub fn queued_job(&self, session: SessionId) -> Option<&Job> {
        let key = self.queued.get(&session)?;
        self.queue.get(key).map(|(job, _)| job)
    }

    /// Takes a session's job back if it has not left yet.
    pub fn withdraw(&mut self, session: SessionId) -> Option<Job> {
        let key = self.queued.remove(&session)?;
        self.queue.remove(&key).map(|(job, _)| job)
    }

    /// Forgets a session: its queued job and its account.
    pub fn remove(&mut self, session: SessionId) {
        self.withdraw(session);
        self.accounts.remove(&session);
    }

    /// The next shard that should leave now, if any. To be called until it says `None`.
    pub fn next_dispatch(&mut self) -> Option<Dispatch> {
        if self.queue.is_empty() {
            return None;
        }
        // Empty hands first, then the least loaded; the index breaks ties.
        let mut free: Vec<usize> = (0..self.workers.len())
            .filter(|&w| self.workers[w].alive && self.workers[w].shards.len() < SHARDS_PER_WORKER)
            .collect();
        free.sort_by_key(|&w| (self.workers[w].shards.len(), self.workers[w].cost(), w));
        free.into_iter().find_map(|worker| self.pack_for(worker))
    }

    /// The best shard for a worker with a free place, or `None` if none of the ready jobs
    /// should go there now.
    fn pack_for(&mut self, worker: usize) -> Option<Dispatch> {
        let target = self.target_cost(worker);
        let mut keys = Vec::new();
        let mut cost = 0u64;
        let mut large = false;
        for (key, (_, stamp)) in &self.queue {
            if !self.may_take(worker, stamp) {
                continue;
            }
            if keys.is_empty() {
                large = self.is_large(stamp.cost);
            } else if self.is_large(stamp.cost) || cost + stamp.cost > self.budget {
                continue;
            }
            keys.push(*key);
            cost += stamp.cost;
            if large || cost >= target || keys.len() == MAX_JOBS_PER_SHARD {
                break;
            }
        }
        if keys.is_empty() {
            return None;
        }
        let mut jobs = Vec::with_capacity(keys.len());
        let mut stamps = Vec::with_capacity(keys.len());
        for key in keys {
            let Some((job, stamp)) = self.queue.remove(&key) else {
                continue;
            };
            self.queued.remove(&job.session);
            self.virtual_time = self.virtual_time.max(stamp.start);
            let account = self.accounts.entry(job.session).or_default();
            account.finish = account.finish.max(stamp.finish());
            stamps.push(stamp);
            jobs.push(job);
        }
        let shard = Arc::new(Shard {
            id: self.next_shard,
            jobs,
        });
        self.next_shard += 1;
        self.workers[worker].shards.push_back(Sent {
            shard: shard.clone(),
            stamps,
            cost,
            large,
        });
        Some(Dispatch {
            worker,
            shard,
            cost_edges: cost,
        })
    }

    fn is_large(&self, cost: u64) -> bool {
        cost > self.budget / 2
    }

    /// Cost at which a shard is full enough: the budget, or an equal part of what is ready when
    /// several workers have empty hands.
    fn target_cost(&self, worker: usize) -> u64 {
        let idle = self
            .workers
            .iter()
            .filter(|w| w.alive && w.shards.is_empty())
            .count() as u64;
        if idle <= 1 || !self.workers[worker].shards.is_empty() {
            return self.budget;
        }
        let ready: u64 = self
            .queue
            .values()
            .map(|(_, stamp)| stamp.cost)
            .filter(|&cost| !self.is_large(cost))
            .sum();
        ready.div_ceil(idle).clamp(1, self.budget)
    }

    /// Whether a job may go to this worker now.
    fn may_take(&self, worker: usize, stamp: &Stamp) -> bool {
        let queue = &self.workers[worker];
        if queue.shards.is_empty() {
            return true;
        }
        if !self.is_large(stamp.cost) && queue.has_large() {
            // Behind a large one only when all other workers are held by large ones too.
            let elsewhere = self
                .workers
                .iter()
                .enumerate()
                .any(|(w, other)| w != worker && other.alive && !other.has_large());
            if elsewhere {
                return false;
            }
        }
        // The sessions in hand there will be back with their next job. Where that job would go
        // first, the second place is kept for it, unless the wait is short anyway.
        let tolerance = self.budget / 8;
        queue.shards.iter().all(|sent| {
            let mut in_hand = sent.shard.jobs.iter().zip(&sent.stamps);
            in_hand.all(|(job, ahead)| match self.accounts.get(&job.session) {
                Some(account) => {
                    let next = account.finish.saturating_add(ahead.cost);
                    stamp.key.0 <= next.saturating_add(tolerance)
                }
                None => true, // closed meanwhile
            })
        })
    }

    /// A worker has finished a shard. Returns whether it really had it.
    pub fn complete(&mut self, worker: usize, shard: u64, outcomes: &[Outcome]) -> bool {
        let Some(queue) = self.workers.get_mut(worker) else {
            return false;
        };
        let Some(place) = queue.shards.iter().position(|sent| sent.shard.id == shard) else {
            return false;
        };
        let Some(sent) = queue.shards.remove(place) else {
            return false;
        };
        for (outcome, stamp) in outcomes.iter().zip(&sent.stamps) {
            let Some(account) = self.accounts.get_mut(&outcome.session) else {
                continue;
            };
            if let Ok(state) = &outcome.result {
                account.last = Some((outcome.edges, state.system.len() as u64));
                // What was charged was an estimate.
                account.finish = account
                    .finish
                    .saturating_sub(stamp.cost)
                    .saturating_add(outcome.edges.max(1));
            }
        }
        true
    }

    /// A worker is lost: its jobs go back to the queue, before younger jobs of equal standing.
    /// Returns those that are given up, because they were in hand at [`LOSSES_PER_JOB`] losses.
    /// A job whose session has queued a newer one or is gone is dropped.
    pub fn lose_worker(&mut self, worker: usize) -> Vec<Job> {
        let Some(queue) = self.workers.get_mut(worker) else {
            return Vec::new();
        };
        queue.alive = false;
        queue.suspended = false;
        let mut given_up = Vec::new();
        for (place, sent) in std::mem::take(&mut queue.shards).into_iter().enumerate() {
            let shard = Arc::unwrap_or_clone(sent.shard);
            for (job, mut stamp) in shard.jobs.into_iter().zip(sent.stamps) {
                // Only the shard in hand can be to blame.
                stamp.losses += u8::from(place == 0);
                let superseded = self
                    .queued_job(job.session)
                    .is_some_and(|newer| newer.serial > job.serial);
                let Some(account) = self.accounts.get_mut(&job.session) else {
                    continue;
                };
                if superseded {
                    continue;
                }
                if stamp.losses >= LOSSES_PER_JOB {
                    given_up.push(job);
                } else {
                    // It will be charged again when it leaves again.
                    account.finish = account.finish.saturating_sub(stamp.cost);
                    self.withdraw(job.session);
                    self.enqueue(job, stamp);
                }
            }
        }
        given_up
    }

    /// A worker cannot compute for the time being: as [`Scheduler::lose_worker`], but it may come
    /// back.
    pub fn suspend_worker(&mut self, worker: usize) -> Vec<Job> {
        let left = |w: &WorkerQueue| w.alive || w.suspended;
        let was_left = self.workers.get(worker).is_some_and(left);
        let given_up = self.lose_worker(worker);
        if let Some(queue) = self.workers.get_mut(worker) {
            queue.suspended = was_left;
        }
        given_up
    }

    /// A suspended worker takes shards again.
    pub fn restore_worker(&mut self, worker: usize) {
        if let Some(queue) = self.workers.get_mut(worker).filter(|w| w.suspended) {
            queue.suspended = false;
            queue.alive = true;
        }
    }

    /// A shard that could not leave: takes all of its jobs off the worker without blame.
    pub fn take_back(&mut self, worker: usize, shard: u64) -> Vec<Job> {
        let Some(queue) = self.workers.get_mut(worker) else {
            return Vec::new();
        };
        let Some(place) = queue.shards.iter().position(|sent| sent.shard.id == shard) else {
            return Vec::new();
        };
        match queue.shards.remove(place) {
            Some(sent) => Arc::unwrap_or_clone(sent.shard).jobs,
            None => Vec::new(),
        }
    }

    /// All queued jobs, in the order in which they would leave; for when no worker is left.
    pub fn drain(&mut self) -> Vec<Job> {
        self.queued.clear();
        std::mem::take(&mut self.queue)
            .into_values()
            .map(|(job, _)| job)
            .collect()
    }
}
