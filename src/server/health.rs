//! What `/serve/health`, `/serve/status`, `/health/ready` and `/uma/stats` answer.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::metrics::Metrics;

/// Rates are means over at least so long.
const WINDOW: Duration = Duration::from_secs(5);

/// Where the service is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Weights are being loaded, or a rank has not answered yet.
    #[default]
    Starting,
    /// Sessions are served.
    Ready,
    /// No new sessions; what runs is being brought to disk.
    Draining,
    /// Ended in order.
    Stopped,
    /// Nothing can be computed any more.
    Failed,
}

impl Phase {
    /// As it is called in answers and files.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Ready => "ready",
            Phase::Draining => "draining",
            Phase::Stopped => "stopped",
            Phase::Failed => "failed",
        }
    }
}

/// A rank of the job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankStatus {
    /// Its number.
    pub rank: usize,
    /// Its host.
    pub host: String,
    /// What it computes on; "serves" if it does not.
    pub device: String,
    /// Whether it takes work; always true for the front.
    pub alive: bool,
}

/// The state of the service, kept up to date by the engine.
#[derive(Debug, Default)]
pub struct Health {
    status: Mutex<HealthStatus>,
    metrics: Arc<Metrics>,
    started: Started,
    /// An older and a newer look at the counters, for rates.
    window: Mutex<[Option<Sample>; 2]>,
    calls: AtomicU64,
    items: AtomicU64,
}

#[derive(Debug)]
struct Started(Instant);

impl Default for Started {
    fn default() -> Self {
        Started(Instant::now())
    }
}

/// A look at the counters.
#[derive(Clone, Debug)]
struct Sample {
    at: Instant,
    jobs: u64,
    /// Seconds, by worker rank.
    busy: Vec<f64>,
}

/// What does not change with every evaluation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthStatus {
    /// Name of the checkpoint.
    pub model: String,
    /// UMA task of a viewer that names none.
    pub task: String,
    /// Tasks that a viewer may choose from.
    pub tasks: Vec<String>,
    /// Atomic numbers that each task was trained with; none where the checkpoint does not tell.
    pub elements: BTreeMap<String, Vec<usize>>,
    /// Atoms that a session may have.
    pub max_atoms: usize,
    /// Whether runs can be recorded.
    pub recording: bool,
    /// Whether the workers evaluate on CUDA devices.
    pub cuda: bool,
    /// Whether CUDA was forbidden by the user.
    pub force_cpu: bool,
    /// Whether every worker has loaded the checkpoint.
    pub model_loaded: bool,
    /// Workers that take shards.
    pub workers: usize,
    /// Why the workers cannot answer, if so.
    pub error: Option<String>,
    /// Where the service is in its life.
    pub phase: Phase,
    /// All ranks.
    pub ranks: Vec<RankStatus>,
    /// Number of the Slurm job, if it is one.
    pub job_id: Option<String>,
    /// How often ranks or job were started again.
    pub restarts: u64,
    /// Sessions at a time.
    pub max_sessions: usize,
}

impl HealthStatus {
    fn device(&self) -> &'static str {
        if self.cuda && !self.force_cpu {
            "cuda"
        } else {
            "cpu"
        }
    }
}

impl Health {
    /// With this status and no evaluations so far.
    pub fn new(status: HealthStatus) -> Self {
        Health {
            status: Mutex::new(status),
            ..Health::default()
        }
    }

    /// The same, counting here.
    pub fn with_metrics(self, metrics: Arc<Metrics>) -> Self {
        Health { metrics, ..self }
    }

    /// Where things are counted.
    pub fn metrics(&self) -> Arc<Metrics> {
        self.metrics.clone()
    }

    /// Where the service is in its life.
    pub fn phase(&self) -> Phase {
        let status = self.lock();
        match (&status.error, status.phase) {
            (Some(_), Phase::Starting | Phase::Ready) => Phase::Failed,
            (_, phase) => phase,
        }
    }

    /// Why no session can be opened now, if so.
    pub(super) fn not_ready(&self) -> Option<(Phase, String)> {
        let phase = self.phase();
        let status = self.lock();
        let reason = match phase {
            Phase::Ready => return None,
            Phase::Starting if !status.model_loaded => "the weights are being loaded",
            Phase::Starting => "not all ranks have answered yet",
            Phase::Draining => "the server writes its state and stops",
            Phase::Stopped => "the server has stopped",
            Phase::Failed => status.error.as_deref().unwrap_or("nothing can be computed"),
        };
        Some((phase, reason.to_owned()))
    }

    /// The answer of `/serve/status`.
    pub fn report(&self) -> Value {
        let metrics = &self.metrics;
        metrics.refresh();
        let phase = self.phase();
        let status = self.lock().clone();
        let now = Sample {
            at: Instant::now(),
            jobs: metrics.jobs.get(),
            busy: status
                .ranks
                .iter()
                .map(|r| metrics.busy_seconds(r.rank))
                .collect(),
        };
        let since = self.look(&now);
        let seconds = since
            .as_ref()
            .map_or(0.0, |since| (now.at - since.at).as_secs_f64());
        let rate = |now: f64, then: Option<f64>| match then {
            Some(then) if seconds > 0.0 => (now - then) / seconds,
            _ => 0.0,
        };
        let ranks: Vec<Value> = status
            .ranks
            .iter()
            .enumerate()
            .map(|(k, rank)| {
                let then = since.as_ref().and_then(|s| s.busy.get(k).copied());
                let busy = rate(now.busy[k], then).clamp(0.0, 1.0);
                json!({
                    "rank": rank.rank,
                    "host": rank.host,
                    "device": rank.device,
                    "alive": rank.alive,
                    "busy": (busy * 1e3).round() / 1e3,
                })
            })
            .collect();
        let steps_per_s = rate(now.jobs as f64, since.as_ref().map(|s| s.jobs as f64));
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "state": phase.name(),
            "job_id": status.job_id,
            "uptime_s": self.started.0.elapsed().as_secs(),
            "restarts": status.restarts,
            "model": status.model,
            "task": status.task,
            "ranks": ranks,
            "sessions": metrics.sessions.get(),
            "max_sessions": status.max_sessions,
            "queued_jobs": metrics.queued_jobs.get(),
            "steps": now.jobs,
            "steps_per_s": (steps_per_s * 10.0).round() / 10.0,
            "frames": metrics.frames.get(),
            "bytes_recorded": metrics.recorded_bytes.get(),
            "auth_failures": metrics.auth_failures(),
        })
    }

    /// An earlier look at the counters to compare this one with.
    fn look(&self, now: &Sample) -> Option<Sample> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let [older, newer] = &mut *window;
        if newer
            .as_ref()
            .is_none_or(|newer| now.at - newer.at >= WINDOW)
        {
            *older = newer.replace(now.clone()).or(older.take());
        }
        older.clone().or(newer.clone())
    }

    /// Changes the status.
    pub fn update(&self, change: impl FnOnce(&mut HealthStatus)) {
        change(&mut self.lock());
    }

    /// Counts one evaluation pass of `items` structures.
    pub fn count(&self, items: u64) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.items.fetch_add(items, Ordering::Relaxed);
    }

    /// Sets the counters to zero.
    pub fn reset(&self) {
        self.calls.store(0, Ordering::Relaxed);
        self.items.store(0, Ordering::Relaxed);
    }

    /// The answer of `/serve/health`.
    pub(super) fn health(&self) -> Value {
        let status = self.lock().clone();
        let device = status.device();
        let mut answer = json!({
            "status": "ok",
            "version": env!("CARGO_PKG_VERSION"),
            "model": status.model,
            "task": status.task,
            "tasks": status.tasks,
            "elements": status.elements,
            "max_atoms": status.max_atoms,
            "recording": status.recording,
            "device": device,
            "cuda_available": device == "cuda",
            "model_loaded": status.model_loaded,
            "ingress_device": "cpu",
            "force_cpu_mode": status.force_cpu,
            "workers": status.workers,
        });
        match status.error {
            Some(error) => answer["replica_error"] = error.into(),
            None => {
                answer["replica_device"] = device.into();
                answer["replica_stats_calls"] = self.calls.load(Ordering::Relaxed).into();
                answer["replica_stats_items"] = self.items.load(Ordering::Relaxed).into();
            }
        }
        answer
    }

    /// The answer of `/uma/stats`.
    pub(super) fn stats(&self) -> Value {
        let status = self.lock().clone();
        if let Some(error) = status.error {
            return json!({ "status": "error", "error": error });
        }
        json!({
            "status": "ok",
            "stats": {
                "calls": self.calls.load(Ordering::Relaxed),
                "items": self.items.load(Ordering::Relaxed),
                "device": status.device(),
                "model": status.model,
                "task": status.task,
            },
        })
    }

    fn lock(&self) -> MutexGuard<'_, HealthStatus> {
        // The status is plain data: a panic while it was held cannot have spoilt it.
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
