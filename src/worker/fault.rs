//! Faults on purpose, so that tests can see what becomes of them. Nothing here is reached unless
//! `UMASERVE_INJECT_FAULT` asks for it; `config` reads that.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::neighbors::NeighborList;
use crate::potential::{EdgeGradients, Evaluated, EvaluationError, Potential};
use crate::system::System;

/// A fault: what, on which worker, at which evaluation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What happens.
    pub kind: FaultKind,
    /// Number of the worker, from 0.
    pub worker: usize,
    /// The evaluation pass at which it happens, from 1, counted in this process.
    pub at: u64,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The device fails once; set up anew it works again.
    DeviceError,
    /// The device fails for good.
    DeviceLost,
    /// The evaluation never ends.
    Hang,
}

/// Syntax: `KIND:WORKER:PASS`, with the kind `device-error`, `device-lost` or `hang`.
impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not KIND:WORKER:PASS");
        let mut parts = text.split(':');
        let (Some(kind), Some(worker), Some(at), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        Ok(Fault {
            kind: match kind {
                "device-error" => FaultKind::DeviceError,
                "device-lost" => FaultKind::DeviceLost,
                "hang" => FaultKind::Hang,
                _ => return Err(wrong()),
            },
            worker: worker.parse().map_err(|_| wrong())?,
            at: at.parse().map_err(|_| wrong())?,
        })
    }
}

impl Fault {
    /// The potential with this fault. `passes` counts on when it is made anew.
    pub fn put_into(
        &self,
        potential: Arc<dyn Potential>,
        passes: &Arc<AtomicU64>,
    ) -> Arc<dyn Potential> {
        Arc::new(Faulty {
            potential,
            fault: self.clone(),
            passes: passes.clone(),
        })
    }
}

struct Faulty {
    potential: Arc<dyn Potential>,
    fault: Fault,
    passes: Arc<AtomicU64>,
}

impl Potential for Faulty {
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
        let pass = self.passes.fetch_add(1, Ordering::Relaxed) + 1;
        if !self.strikes(pass) {
            return self.potential.edge_gradients(batch);
        }
        batch.iter().map(|_| Err(self.error())).collect()
    }

    fn evaluations(
        &self,
        systems: &[&System],
        max_edges: usize,
    ) -> Vec<Option<Result<Evaluated, EvaluationError>>> {
        // What is left to `edge_gradients` is counted there.
        let pass = self.passes.load(Ordering::Relaxed) + 1;
        let strikes = self.strikes(pass);
        let answers = self.potential.evaluations(systems, max_edges);
        let answered = answers.iter().flatten().count();
        if answered > 0 {
            self.passes.store(pass, Ordering::Relaxed);
        }
        match strikes && answered > 0 {
            true => systems.iter().map(|_| Some(Err(self.error()))).collect(),
            false => answers,
        }
    }

    fn overlaps(&self) -> bool {
        self.potential.overlaps()
    }
}

impl Faulty {
    /// Whether the fault comes at this pass; a hang never returns.
    fn strikes(&self, pass: u64) -> bool {
        let strikes = match self.fault.kind {
            FaultKind::DeviceLost => pass >= self.fault.at,
            FaultKind::DeviceError | FaultKind::Hang => pass == self.fault.at,
        };
        if strikes && self.fault.kind == FaultKind::Hang {
            loop {
                std::thread::sleep(Duration::from_secs(3600));
            }
        }
        strikes
    }

    fn error(&self) -> EvaluationError {
        EvaluationError::Device("injected fault".into())
    }
}
