//! The life of a worker: take a shard, do its jobs in one batch, send the outcomes back.
//!
//! A worker keeps nothing between shards but what makes the next one faster (the potential's own
//! caches). What goes wrong with a job is that job's error and nobody else's. What goes wrong with
//! the device is no job's error: the worker says so, its jobs are done by others, and it comes back
//! when the device does.

pub mod fault;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rayon::prelude::*;

use crate::comm::thread::panic_message;
use crate::comm::{Job, Link, Outcome, Shard, Task};
use crate::dynamics::{Method, State, begin_step, end_step};
use crate::neighbors::NeighborList;
use crate::potential::{EdgeGradients, Evaluated, EvaluationError, Potential, evaluate};
use crate::system::{Evaluation, System};

/// Does shards until there are no more. `max_edges` bounds each system. If the device fails, the
/// worker leaves.
pub fn serve(link: &mut dyn Link, potential: &dyn Potential, max_edges: usize) {
    // The worker's end is told as its loss.
    let _ = serve_until_failure(link, potential, max_edges);
}

/// Does shards until there are no more (`None`) or the device has failed (why).
fn serve_until_failure(
    link: &mut dyn Link,
    potential: &dyn Potential,
    max_edges: usize,
) -> Option<String> {
    if potential.overlaps() {
        return serve_overlapping(link, potential, max_edges);
    }
    while let Some(shard) = link.take() {
        match run_logged(&shard, potential, max_edges) {
            Ok(outcomes) => link.answer(shard.id, outcomes),
            Err(DeviceFailure(reason)) => return Some(reason),
        }
    }
    None
}

fn run_logged(
    shard: &Shard,
    potential: &dyn Potential,
    max_edges: usize,
) -> Result<Vec<Outcome>, DeviceFailure> {
    let span = tracing::debug_span!("shard", id = shard.id, jobs = shard.jobs.len());
    let started = std::time::Instant::now();
    span.in_scope(|| {
        let outcomes = try_run(shard, potential, max_edges);
        tracing::debug!(elapsed = ?started.elapsed(), "evaluated");
        outcomes
    })
}

/// Shards in hand at a time where they overlap: one on the device, one with the host.
const LANES: usize = 2;

/// How often a worker with a free lane looks for another shard.
const LOOK: Duration = Duration::from_micros(200);

/// [`serve_until_failure`] with two shards in hand: atoms of one are moved, and its tables made and
/// its outcomes sent, while the device computes the other. Outcomes do not depend on it.
fn serve_overlapping(
    link: &mut dyn Link,
    potential: &dyn Potential,
    max_edges: usize,
) -> Option<String> {
    std::thread::scope(|scope| {
        let (done_sender, done) = channel();
        let lanes: Vec<Sender<Arc<Shard>>> = (0..LANES)
            .map(|lane| {
                let (sender, shards) = channel::<Arc<Shard>>();
                let done = done_sender.clone();
                scope.spawn(move || {
                    for shard in shards {
                        let outcomes = guarded(|| run_logged(&shard, potential, max_edges))
                            .unwrap_or_else(|error| Ok(failed(&shard, &error)));
                        if done.send((lane, shard.id, outcomes)).is_err() {
                            break;
                        }
                    }
                });
                sender
            })
            .collect();
        let mut free: Vec<usize> = (0..LANES).collect();
        let mut failure = None;
        loop {
            let idle = free.len() == LANES;
            if idle && failure.is_some() {
                return failure;
            }
            let shard = match (idle, &failure) {
                (true, _) => Some(link.take()?),
                (false, None) if !free.is_empty() => link.try_take(),
                _ => None,
            };
            if let (Some(shard), Some(lane)) = (shard, free.last()) {
                // A lane lives until its sender is dropped.
                let _ = lanes[*lane].send(shard);
                free.pop();
            }
            // With a lane to spare and a device that works, another shard may come first.
            let next = match free.is_empty() || failure.is_some() {
                true => done.recv().ok(),
                false => done.recv_timeout(LOOK).ok(),
            };
            let Some((lane, id, outcomes)) = next else {
                continue;
            };
            free.push(lane);
            match outcomes {
                Ok(outcomes) => link.answer(id, outcomes),
                Err(DeviceFailure(reason)) => failure = failure.or(Some(reason)),
            }
        }
    })
}

/// Makes a worker's potential, again if its device has failed.
pub struct PotentialSource {
    /// Makes the potential on a device that is set up anew.
    pub create: Box<dyn Fn() -> Result<Arc<dyn Potential>, String> + Send + Sync>,
    /// A small structure: its energy is the same before and after, or the device is not trusted.
    pub probe: System,
}

/// Pauses before each attempt to get a failed device going; after the last the worker gives up.
const REVIVALS: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(10),
    Duration::from_secs(30),
];

/// [`serve`] with a potential that is made anew when its device fails. Answers why the worker
/// gives up, or `None` when there are no more shards.
pub fn serve_reviving(
    link: &mut dyn Link,
    potential: Arc<dyn Potential>,
    source: &PotentialSource,
    max_edges: usize,
) -> Option<String> {
    // Not needed before the first failure, and it warms the device up.
    let expected = energy_of(&*potential, &source.probe);
    let mut potential = Some(potential);
    loop {
        let reason = match &potential {
            Some(potential) => serve_until_failure(link, &**potential, max_edges)?,
            None => return Some("it has no device".into()),
        };
        tracing::error!(reason, "the device has failed");
        link.tell_unfit(&reason);
        // What is left of the old one must be gone before the device is set up anew.
        potential = None;
        for pause in REVIVALS {
            std::thread::sleep(pause);
            match revive(source, &expected) {
                Ok(revived) => {
                    potential = Some(revived);
                    break;
                }
                Err(reason) => tracing::error!(reason, "the device does not come back"),
            }
        }
        if potential.is_none() {
            return Some(format!("its device does not come back: {reason}"));
        }
        tracing::warn!("the device works again");
        link.tell_fit();
    }
}

fn revive(
    source: &PotentialSource,
    expected: &Result<f64, String>,
) -> Result<Arc<dyn Potential>, String> {
    let potential = guarded(|| (source.create)())??;
    let found = energy_of(&*potential, &source.probe);
    match (&found, expected) {
        (Ok(found), Ok(expected)) if found.to_bits() != expected.to_bits() => Err(format!(
            "a probe has the energy {found} eV, before it had {expected} eV"
        )),
        (Err(reason), Ok(_)) => Err(format!("a probe cannot be evaluated: {reason}")),
        _ => Ok(potential),
    }
}

fn energy_of(potential: &dyn Potential, system: &System) -> Result<f64, String> {
    let answers = guarded(|| evaluate(potential, &[system], usize::MAX))?;
    match answers.into_iter().next() {
        Some(Ok(evaluation)) => Ok(evaluation.energy),
        Some(Err(error)) => Err(error.to_string()),
        None => Err("no answer".into()),
    }
}

/// The device has failed; why. No job of the shard has an outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceFailure(pub String);

/// [`try_run`]; a failure of the device becomes the error of every job.
pub fn run(shard: &Shard, potential: &dyn Potential, max_edges: usize) -> Vec<Outcome> {
    try_run(shard, potential, max_edges).unwrap_or_else(|DeviceFailure(reason)| {
        failed(shard, &EvaluationError::Device(reason).to_string())
    })
}

/// The same error for every job.
fn failed(shard: &Shard, error: &str) -> Vec<Outcome> {
    let outcome = |job: &Job| Outcome {
        session: job.session,
        serial: job.serial,
        result: Err(error.to_owned()),
        edges: 0,
    };
    shard.jobs.iter().map(outcome).collect()
}

/// The outcomes of a shard, one per job, in order. All jobs are evaluated in one batch (two, if
/// some of them have to know the forces before their first step).
///
/// # Errors
/// The device fails.
pub fn try_run(
    shard: &Shard,
    potential: &dyn Potential,
    max_edges: usize,
) -> Result<Vec<Outcome>, DeviceFailure> {
    let mut progress: Vec<Progress> = shard.jobs.iter().map(Progress::new).collect();

    evaluate_batch(&mut progress, potential, max_edges, |p| {
        p.method().is_some() && p.state.evaluation.is_none()
    })?;
    progress.par_iter_mut().for_each(|p| {
        p.try_to(|p| match p.method() {
            Some(method) => begin_step(method, &mut p.state).map_err(|e| e.to_string()),
            None => Ok(()),
        });
    });
    evaluate_batch(&mut progress, potential, max_edges, |_| true)?;
    progress.par_iter_mut().for_each(|p| {
        p.try_to(|p| {
            if let Some(method) = p.method()
                && let Some(evaluation) = p.state.evaluation.take()
            {
                end_step(method, &mut p.state, evaluation).map_err(|e| e.to_string())?;
            }
            Ok(())
        });
    });
    Ok(progress.into_iter().map(Progress::finish).collect())
}

/// A job on its way.
struct Progress<'a> {
    job: &'a Job,
    state: State,
    error: Option<String>,
    edges: u64,
}

impl<'a> Progress<'a> {
    fn new(job: &'a Job) -> Self {
        Progress {
            job,
            state: job.state.clone(),
            error: None,
            edges: 0,
        }
    }

    fn method(&self) -> Option<&'a Method> {
        match &self.job.task {
            Task::Evaluate => None,
            Task::Step(method) => Some(method),
        }
    }

    /// Goes on unless the job has failed; an error or a panic of `f` makes it fail.
    fn try_to(&mut self, f: impl FnOnce(&mut Self) -> Result<(), String>) {
        if self.error.is_none() {
            self.error = guarded(|| f(self)).and_then(|result| result).err();
        }
    }

    fn finish(self) -> Outcome {
        Outcome {
            session: self.job.session,
            serial: self.job.serial,
            result: match self.error {
                None => Ok(self.state),
                Some(error) => Err(error),
            },
            edges: self.edges,
        }
    }
}

/// Evaluates those jobs that have not failed and that are `wanted`, all in one batch.
fn evaluate_batch(
    jobs: &mut [Progress],
    potential: &dyn Potential,
    max_edges: usize,
    wanted: impl Fn(&Progress) -> bool,
) -> Result<(), DeviceFailure> {
    let mut chosen: Vec<&mut Progress> = jobs
        .iter_mut()
        .filter(|p| p.error.is_none() && wanted(p))
        .collect();
    if chosen.is_empty() {
        return Ok(());
    }
    let systems: Vec<&System> = chosen.iter().map(|p| &p.state.system).collect();
    for progress in &chosen {
        let system = &progress.state.system;
        tracing::trace!(
            target: "umaserve::geometry",
            session = progress.job.session.0,
            numbers = ?system.numbers,
            positions = ?system.positions,
            cell = ?system.cell,
            "evaluating"
        );
    }
    let answers = evaluate_guarded(potential, &systems, max_edges)?;
    for (progress, (answer, edges)) in chosen.iter_mut().zip(answers) {
        progress.edges = edges;
        match answer {
            Ok(evaluation) => progress.state.evaluation = Some(evaluation),
            Err(error) => progress.error = Some(error),
        }
    }
    Ok(())
}

/// Evaluations or errors, and the edges of each system.
type Answers = Vec<(Result<Evaluation, String>, u64)>;

/// Evaluates in one batch. If that panics, each system is evaluated alone, so that only the one
/// that cannot be borne fails: answers do not depend on the batch.
fn evaluate_guarded(
    potential: &dyn Potential,
    systems: &[&System],
    max_edges: usize,
) -> Result<Answers, DeviceFailure> {
    let counted = EdgeCount {
        potential,
        edges: Mutex::default(),
    };
    match guarded(|| evaluate(&counted, systems, max_edges)) {
        Ok(results) => {
            let edges = counted
                .edges
                .into_inner()
                .unwrap_or_else(PoisonError::into_inner);
            let answers = systems.iter().zip(results);
            answers
                .map(|(system, result)| {
                    let edges = edges.get(&address(system)).copied().unwrap_or(0);
                    match result {
                        Err(EvaluationError::Device(reason)) => Err(DeviceFailure(reason)),
                        result => Ok((result.map_err(|error| error.to_string()), edges)),
                    }
                })
                .collect()
        }
        Err(error) if systems.len() == 1 => Ok(vec![(Err(error), 0)]),
        Err(error) => {
            tracing::error!(error, systems = systems.len(), "evaluating one by one");
            let mut answers = Vec::new();
            for system in systems {
                answers.extend(evaluate_guarded(potential, &[system], max_edges)?);
            }
            Ok(answers)
        }
    }
}

/// Runs `f`; a panic becomes an error text.
fn guarded<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    // What `f` had under construction is dropped with its error, so nothing half-made is seen.
    catch_unwind(AssertUnwindSafe(f))
        .map_err(|panic| format!("internal error: {}", panic_message(&*panic)))
}

/// Notes the number of edges of every system that passes, the cost that the scheduler counts.
struct EdgeCount<'a> {
    potential: &'a dyn Potential,
    /// Edges by the address of the system.
    edges: Mutex<HashMap<usize, u64>>,
}

fn address(system: &System) -> usize {
    std::ptr::from_ref(system).addr()
}

impl Potential for EdgeCount<'_> {
    fn cutoff_angstrom(&self) -> f64 {
        self.potential.cutoff_angstrom()
    }

    fn max_neighbors(&self) -> usize {
        self.potential.max_neighbors()
    }

    fn check(&self, system: &System) -> Result<(), EvaluationError> {
        self.potential.check(system)
    }

    fn edge_gradients(
        &self,
        batch: &[(&System, &NeighborList)],
    ) -> Vec<Result<EdgeGradients, EvaluationError>> {
        let counts = batch
            .iter()
            .map(|(system, list)| (address(system), list.len() as u64));
        self.edges
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(counts);
        self.potential.edge_gradients(batch)
    }

    fn evaluations(
        &self,
        systems: &[&System],
        max_edges: usize,
    ) -> Vec<Option<Result<Evaluated, EvaluationError>>> {
        let answers = self.potential.evaluations(systems, max_edges);
        let counts = systems.iter().zip(&answers).filter_map(|(system, answer)| {
            let evaluated = answer.as_ref()?.as_ref().ok()?;
            Some((address(system), evaluated.edges as u64))
        });
        self.edges
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(counts);
        answers
    }
}

/// A worker's body for [`ThreadWorkers`](crate::comm::thread::ThreadWorkers).
pub fn thread_body(
    potential: Arc<dyn Potential>,
    max_edges: usize,
) -> impl Fn(usize, &mut crate::comm::thread::ThreadLink) + Send + Sync + 'static {
    move |_, link| serve(link, &*potential, max_edges)
}

/// The same with a potential that is made anew when its device fails.
pub fn reviving_thread_body(
    potential: Arc<dyn Potential>,
    source: PotentialSource,
    max_edges: usize,
) -> impl Fn(usize, &mut crate::comm::thread::ThreadLink) + Send + Sync + 'static {
    // Held by nobody else: a failed device must be gone before it is set up anew.
    let first = Mutex::new(Some(potential));
    move |_, link| {
        let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
        let potential = match first.map_or_else(|| (source.create)(), Ok) {
            Ok(potential) => potential,
            Err(reason) => {
                tracing::error!(reason, "a worker without a device");
                return;
            }
        };
        if let Some(reason) = serve_reviving(link, potential, &source, max_edges) {
            tracing::error!(reason, "the worker gives up");
        }
    }
}
