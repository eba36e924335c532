//! The end of the engine: steps in hand land, states are kept, files are closed.

use std::time::{Duration, Instant};

use super::{Engine, Event, RecordSink, StateStore};
use crate::comm::{SessionId, WorkerEvent, Workers};

/// How long steps in hand may take to land. What has not landed by then is done again after the
/// restart; nothing is lost by it.
const LANDING: Duration = Duration::from_secs(4);
/// The same when a worker does not answer anyway.
const LANDING_AFTER_FAULT: Duration = Duration::from_millis(300);
/// Pause between two looks for outcomes where workers cannot wake the loop.
const LOOK: Duration = Duration::from_millis(1);

/// Why the engine has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It was told to.
    Stopped,
    /// It was told to, and is to be started again.
    Drained,
    /// It could not go on; why, in words for the log.
    Failed(String),
}

impl<W: Workers, R: RecordSink, S: StateStore> Engine<W, R, S> {
    /// Ends everything in good order.
    pub(super) fn leave(mut self, ending: Ending) -> Ending {
        let begun = Instant::now();
        let sessions = self.sessions.len();
        tracing::info!(sessions, ?ending, "shutting down");
        self.ending = Some(ending.clone());
        self.send_away(&ending);
        // What has not left is not sent any more.
        self.scheduler.drain();
        self.workers.end_is_near();
        if self.store.interval().is_some() {
            let patience = match ending {
                Ending::Failed(_) => LANDING_AFTER_FAULT,
                Ending::Stopped | Ending::Drained => LANDING,
            };
            self.let_steps_land(begun + patience);
        }
        self.workers.dismiss();
        self.keep_all();
        self.store.finish();
        let ids: Vec<SessionId> = self.sessions.keys().copied().collect();
        for id in ids {
            self.recorder.close(id);
        }
        self.recorder.finish();
        tracing::info!(elapsed = ?begun.elapsed(), "everything is on disk");
        if !matches!(ending, Ending::Failed(_)) {
            self.workers.shut_down();
        }
        ending
    }

    fn let_steps_land(&mut self, deadline: Instant) {
        while self.scheduler.shards_out() > 0 {
            let now = Instant::now();
            if now >= deadline {
                let shards = self.scheduler.shards_out();
                tracing::warn!(shards, "steps that do not end are given up");
                return;
            }
            while let Some(event) = self.workers.poll() {
                match event {
                    WorkerEvent::Done {
                        worker,
                        shard,
                        outcomes,
                    } => self.complete(worker, shard, outcomes, now),
                    WorkerEvent::Lost { worker, .. }
                    | WorkerEvent::Hung { worker, .. }
                    | WorkerEvent::Unfit { worker, .. } => {
                        self.scheduler.lose_worker(worker);
                    }
                    WorkerEvent::Fit { .. } => {}
                }
            }
            let pause = match self.workers.wakes_engine() {
                true => deadline - now,
                false => LOOK,
            };
            // Messages of viewers come too late; the waking of a worker is enough.
            if let Ok(Event::Disconnected { .. }) | Err(_) = self.events.recv_timeout(pause)
                && self.workers.wakes_engine()
            {
                std::thread::sleep(LOOK);
            }
        }
    }

    /// Keeps the state of every session that can be resumed, with all records before it.
    fn keep_all(&mut self) {
        let now = Instant::now();
        for (&id, seat) in &mut self.sessions {
            seat.session.tick(now);
            for record in seat.session.take_records() {
                self.recorder.record(id, record);
            }
            if seat.session.key().is_some() && !seat.session.state().system.is_empty() {
                seat.save(now, &mut self.store, &self.statistics);
            }
        }
    }
}
