//! What the workers do, as it shows in health and metrics.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crate::comm::{Outcome, SendError, Shard, WorkerEvent, Workers};
use crate::metrics::Metrics;
use crate::server::Health;

/// Workers whose doings show in `/serve/health`, `/uma/stats` and `/metrics`.
pub(super) struct Observed<W> {
    workers: W,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    /// Rank of the first worker.
    first_rank: usize,
    in_hand: Vec<InHand>,
    /// Workers that are not lost.
    left: usize,
}

/// What a worker has to do.
#[derive(Clone, Debug, Default)]
struct InHand {
    /// Shards and when they were sent.
    shards: VecDeque<(u64, Instant)>,
    /// When the last one came back.
    last_done: Option<Instant>,
}

impl<W: Workers> Observed<W> {
    /// `first_rank` is the rank of the first worker.
    pub(super) fn new(
        workers: W,
        health: Arc<Health>,
        metrics: Arc<Metrics>,
        first_rank: usize,
    ) -> Observed<W> {
        let count = workers.devices().len();
        Observed {
            in_hand: vec![InHand::default(); count],
            workers,
            health,
            metrics,
            first_rank,
            left: count,
        }
    }

    fn sent(&mut self, worker: usize, shard: u64) {
        self.in_hand[worker]
            .shards
            .push_back((shard, Instant::now()));
    }

    fn done(&mut self, worker: usize, shard: u64, outcomes: &[Outcome]) {
        let now = Instant::now();
        let structures = outcomes.len() as u64;
        let edges: u64 = outcomes.iter().map(|outcome| outcome.edges).sum();
        self.health.count(structures);
        self.metrics.batch_structures.observe(structures as f64);
        self.metrics.batch_edges.observe(edges as f64);
        let in_hand = &mut self.in_hand[worker];
        if let Some(at) = in_hand.shards.iter().position(|(id, _)| *id == shard) {
            // It was begun when the one before it was done.
            let begun = in_hand
                .shards
                .remove(at)
                .map(|(_, sent)| sent)
                .max(in_hand.last_done);
            let time = begun.map(|begun| now.saturating_duration_since(begun));
            let time = time.unwrap_or_default();
            self.metrics.forward_seconds.observe(time.as_secs_f64());
            self.metrics.add_busy(self.first_rank + worker, time);
        }
        in_hand.last_done = Some(now);
    }

    /// The device of a worker has failed, or works again.
    fn fit(&mut self, worker: usize, fit: bool) {
        self.in_hand[worker].shards.clear();
        let (left, rank) = (self.left, self.first_rank + worker);
        self.health.update(|status| {
            status.workers = match fit {
                true => (status.workers + 1).min(left),
                false => status.workers.saturating_sub(1),
            };
            if let Some(rank) = status.ranks.get_mut(rank) {
                rank.alive = fit;
            }
        });
    }

    fn lost(&mut self, worker: usize) {
        self.in_hand[worker].shards.clear();
        self.left = self.left.saturating_sub(1);
        let (left, rank) = (self.left, self.first_rank + worker);
        self.health.update(|status| {
            status.workers = left;
            if let Some(rank) = status.ranks.get_mut(rank) {
                rank.alive = false;
            }
            if left == 0 {
                status.error = Some("all workers are lost".into());
            }
        });
    }
}

impl<W: Workers> Workers for Observed<W> {
    fn devices(&self) -> &[String] {
        self.workers.devices()
    }

    fn send(&mut self, worker: usize, shard: Arc<Shard>) -> Result<(), SendError> {
        let id = shard.id;
        let result = self.workers.send(worker, shard);
        match &result {
            Ok(()) => self.sent(worker, id),
            Err(SendError::Lost { worker, .. }) => self.lost(*worker),
            Err(SendError::TooLarge { .. }) => {}
        }
        result
    }

    fn poll(&mut self) -> Option<WorkerEvent> {
        let event = self.workers.poll()?;
        match &event {
            WorkerEvent::Done {
                worker,
                shard,
                outcomes,
            } => self.done(*worker, *shard, outcomes),
            WorkerEvent::Hung { .. } => {}
            WorkerEvent::Unfit { worker, .. } => self.fit(*worker, false),
            WorkerEvent::Fit { worker, .. } => self.fit(*worker, true),
            WorkerEvent::Lost { worker, .. } => self.lost(*worker),
        }
        Some(event)
    }

    fn wakes_engine(&self) -> bool {
        self.workers.wakes_engine()
    }

    fn end_is_near(&mut self) {
        self.workers.end_is_near();
    }

    fn dismiss(&mut self) {
        self.workers.dismiss();
    }

    fn shut_down(&mut self) {
        self.workers.shut_down();
    }
}
