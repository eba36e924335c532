//! What `/serve/health` and `/uma/stats` answer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

/// The state of the service, kept up to date by the engine.
#[derive(Debug, Default)]
pub struct Health {
    status: Mutex<HealthStatus>,
    calls: AtomicU64,
    items: AtomicU64,
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
