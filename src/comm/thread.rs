//! Workers as threads of this process: the embedded form, and the one that tests use most.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Link, Outcome, SendError, Shard, WorkerEvent, Workers};

/// Called after every event of a worker, so that the engine wakes up.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// Worker threads.
pub struct ThreadWorkers {
    devices: Vec<String>,
    shards: Vec<Option<Sender<Arc<Shard>>>>,
    threads: Vec<JoinHandle<()>>,
    events: Receiver<WorkerEvent>,
    leave: Arc<AtomicBool>,
}

/// How long [`Workers::shut_down`] waits for a step in progress.
const GRACE: Duration = Duration::from_secs(5);

impl ThreadWorkers {
    /// Starts one thread per device description. `body` is the life of a worker: it takes shards
    /// from its [`ThreadLink`] until there are no more. A body that panics is a lost worker.
    ///
    /// # Errors
    ///
    /// When the operating system gives no more threads.
    pub fn start<F>(devices: Vec<String>, wake: Waker, body: F) -> std::io::Result<Self>
    where
        F: Fn(usize, &mut ThreadLink) + Send + Sync + 'static,
    {
        let (event_sender, events) = channel();
        let body = Arc::new(body);
        let leave = Arc::new(AtomicBool::new(false));
        let mut shards = Vec::new();
        let mut threads = Vec::new();
        for worker in 0..devices.len() {
            let (shard_sender, shard_receiver) = channel();
            let mut link = ThreadLink {
                worker,
                shards: shard_receiver,
                leave: leave.clone(),
                events: event_sender.clone(),
                wake: wake.clone(),
            };
            let body = body.clone();
            threads.push(
                std::thread::Builder::new()
                    .name(format!("worker-{worker}"))
                    .spawn(move || {
                        let end = catch_unwind(AssertUnwindSafe(|| body(worker, &mut link)));
                        let reason = match end {
                            Ok(()) => "it has left".into(),
                            Err(panic) => format!("panic: {}", panic_message(&*panic)),
                        };
                        link.tell(WorkerEvent::Lost { worker, reason });
                    })?,
            );
            shards.push(Some(shard_sender));
        }
        Ok(ThreadWorkers {
            devices,
            shards,
            threads,
            events,
            leave,
        })
    }
}

impl Workers for ThreadWorkers {
    fn devices(&self) -> &[String] {
        &self.devices
    }

    fn send(&mut self, worker: usize, shard: Arc<Shard>) -> Result<(), SendError> {
        let sent = match &self.shards[worker] {
            Some(sender) => sender.send(shard).is_ok(),
            None => false,
        };
        if sent {
            return Ok(());
        }
        self.shards[worker] = None;
        Err(SendError::Lost {
            worker,
            reason: "its thread has ended".into(),
        })
    }

    fn poll(&mut self) -> Option<WorkerEvent> {
        let event = self.events.try_recv().ok()?;
        if let WorkerEvent::Lost { worker, .. } = event {
            self.shards[worker] = None;
        }
        Some(event)
    }

    fn wakes_engine(&self) -> bool {
        true
    }

    fn shut_down(&mut self) {
        self.shards.iter_mut().for_each(|sender| *sender = None);
        self.leave.store(true, Ordering::Release);
        let deadline = Instant::now() + GRACE;
        for thread in self.threads.drain(..) {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            if thread.is_finished() {
                // A panic of the worker has been told as its loss.
                let _ = thread.join();
            } else {
                tracing::warn!("a worker thread is still computing and is left behind");
            }
        }
    }
}

impl Drop for ThreadWorkers {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// A worker thread's end.
pub struct ThreadLink {
    worker: usize,
    shards: Receiver<Arc<Shard>>,
    leave: Arc<AtomicBool>,
    events: Sender<WorkerEvent>,
    wake: Waker,
}

impl ThreadLink {
    fn tell(&self, event: WorkerEvent) {
        // Without an engine there is nobody to tell.
        let _ = self.events.send(event);
        (self.wake)();
    }
}

impl Link for ThreadLink {
    fn take(&mut self) -> Option<Arc<Shard>> {
        let shard = self.shards.recv().ok()?;
        (!self.leave.load(Ordering::Acquire)).then_some(shard)
    }

    fn try_take(&mut self) -> Option<Arc<Shard>> {
        let shard = self.shards.try_recv().ok()?;
        (!self.leave.load(Ordering::Acquire)).then_some(shard)
    }

    fn answer(&mut self, shard: u64, outcomes: Vec<Outcome>) {
        self.tell(WorkerEvent::Done {
            worker: self.worker,
            shard,
            outcomes,
        });
    }

    fn tell_unfit(&mut self, reason: &str) {
        let (worker, reason) = (self.worker, reason.to_owned());
        self.tell(WorkerEvent::Unfit { worker, reason });
    }

    fn tell_fit(&mut self) {
        let worker = self.worker;
        self.tell(WorkerEvent::Fit { worker });
    }
}

/// The text of a panic.
pub fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a message")
}
