//! The loop of rank 0: one thread that owns everything that changes.
//!
//! Sockets, worker threads, signals and clocks reach it as an [`Event`]; nothing else may change a
//! session. One turn of the loop takes what has happened, lets the sessions that it concerns act,
//! and sends shards to workers with a free place. Nothing in it blocks but the wait for the next
//! event.
//!
//! Workers in threads wake the loop. MPI cannot, so while shards are out the loop looks for
//! outcomes with pauses from microseconds to a tenth of a millisecond; without shards it sleeps
//! until a viewer or a deadline wakes it.

mod attendance;
mod ending;
mod safekeeping;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::error::TrySendError;

pub use ending::Ending;
pub use safekeeping::{NoStore, StateStore};

use crate::comm::thread::{Waker, panic_message};
use crate::comm::{Job, Outcome, SendError, SessionId, WorkerEvent, Workers};
use crate::metrics::Metrics;
use crate::scheduler::{Dispatch, Scheduler};
use crate::session::{
    ClientMessage, Content, Owner, Record, ServerMessage, Session, SessionKey, SessionSettings,
    Ticket,
};
use attendance::Connection;
use safekeeping::Safekeeping;

/// Events taken before sessions act and shards leave: a flood of messages must not keep results
/// waiting.
const EVENTS_PER_TURN: usize = 1024;

/// Longest pause between two looks for outcomes while shards are out.
const LONGEST_POLL_PAUSE: Duration = Duration::from_micros(100);

/// Longest sleep: a lost worker, a shard that does not come back and the recorder's notices are
/// looked for at least so often.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// How often the recorder is asked for notices.
const NOTICE_INTERVAL: Duration = Duration::from_millis(200);

/// How soon to knock again at a viewer's queue that is full.
const RETRY: Duration = Duration::from_millis(2);

/// Time between two counts of what viewers have not acknowledged.
const COUNT_INTERVAL: Duration = Duration::from_millis(500);

/// Where a session's messages go: a bounded queue towards its socket.
pub type ToViewer = tokio::sync::mpsc::Sender<ServerMessage>;

/// Everything that can happen to the engine.
#[derive(Debug)]
pub enum Event {
    /// A viewer has connected. Its first message says whether it wants a new session, which then
    /// has the number of the connection, or an earlier one.
    Connected {
        /// The new connection.
        id: SessionId,
        /// Where its messages go. Dropped when the session ends.
        to_viewer: ToViewer,
        /// Whose session it is.
        owner: Arc<Owner>,
    },
    /// A viewer has said something.
    Message {
        /// Its connection.
        id: SessionId,
        /// What.
        message: Box<ClientMessage>,
    },
    /// The viewer of a session is to be told something that has happened outside of the engine.
    Announce {
        /// Whose session.
        id: SessionId,
        /// The text of the notice.
        text: String,
    },
    /// A viewer is gone.
    Disconnected {
        /// Its connection.
        id: SessionId,
        /// The connection's place among the allowed ones, given back with the connection.
        place: Ticket,
    },
    /// A worker has something to tell; the loop asks for it.
    WorkerWaits,
    /// A worker has told something.
    Worker(WorkerEvent),
    /// A session's time has come.
    Deadline,
    /// Stop: end all sessions, close the recordings, dismiss the workers.
    ShutDown,
    /// The same, because the server is about to start again: viewers are told to come back.
    Drain,
}

/// Speaks to the engine from other threads.
#[derive(Clone, Debug)]
pub struct EngineHandle(Sender<Event>);

impl EngineHandle {
    /// Tells the engine; `false` when it has ended.
    pub fn tell(&self, event: Event) -> bool {
        self.0.send(event).is_ok()
    }

    /// A call that wakes the engine, for worker threads.
    pub fn waker(&self) -> Waker {
        let events = self.0.clone();
        Arc::new(move || {
            // An engine that has ended needs no waking.
            let _ = events.send(Event::WorkerWaits);
        })
    }
}

/// The engine's ear and the handle that speaks into it.
pub fn events() -> (EngineHandle, Receiver<Event>) {
    let (sender, receiver) = channel();
    (EngineHandle(sender), receiver)
}

/// Where the sessions' records go. Must not block for long: it runs between steps.
pub trait RecordSink {
    /// The next record of a session.
    fn record(&mut self, session: SessionId, record: Record);

    /// The session has ended: its recordings are complete.
    fn close(&mut self, session: SessionId);

    /// No records follow; returns when everything is on disk.
    fn finish(&mut self);

    /// What has happened to recordings since the last call, in order.
    fn take_notices(&mut self) -> Vec<(SessionId, RecordingNotice)> {
        Vec::new()
    }
}

/// What happens to the recording of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordingNotice {
    /// A file of this name is being written.
    Opened(String),
    /// The file is complete.
    Closed,
    /// The file cannot be written; its frames are lost until it can.
    Failed(String),
    /// The file can be written again; so many frames are missing.
    Recovered(u64),
}

/// Records nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoRecording;

impl RecordSink for NoRecording {
    fn record(&mut self, _: SessionId, _: Record) {}
    fn close(&mut self, _: SessionId) {}
    fn finish(&mut self) {}
}

/// Limits of the engine.
#[derive(Clone, Debug)]
pub struct EngineSettings {
    /// Limits and defaults of every session.
    pub session: Arc<SessionSettings>,
    /// Sessions at a time.
    pub max_sessions: usize,
    /// Messages of one viewer that wait for an evaluation. The server slows a viewer down long
    /// before; beyond this the session ends.
    pub max_waiting_messages: usize,
    /// Messages for one viewer that wait for room in its queue. While any waits no step is begun;
    /// beyond this the session ends.
    pub max_backlog: usize,
    /// Edges in one shard.
    pub edge_budget: u64,
    /// Where things are counted.
    pub metrics: Arc<Metrics>,
    /// How long a worker may take for a shard before it counts as hung, which ends the engine.
    pub shard_timeout: Duration,
    /// Whether the server can start again where it has ended: then it ends when all workers are
    /// lost, instead of telling every session that its step has failed.
    pub restartable: bool,
}

impl Default for EngineSettings {
    fn default() -> Self {
        EngineSettings {
            session: Arc::default(),
            max_sessions: 256,
            max_waiting_messages: 4096,
            max_backlog: 4096,
            edge_budget: 5_000,
            metrics: Arc::default(),
            shard_timeout: Duration::from_secs(1800),
            restartable: false,
        }
    }
}

/// Counters that other threads may read while the engine runs.
#[derive(Debug, Default)]
pub struct Statistics {
    /// Shards answered by workers.
    pub shards: AtomicU64,
    /// Jobs answered by workers.
    pub jobs: AtomicU64,
    /// Of these, jobs that failed.
    pub failed_jobs: AtomicU64,
    /// Sessions now.
    pub sessions: AtomicU64,
    /// Jobs that wait for a worker now.
    pub queued_jobs: AtomicU64,
    /// Workers now.
    pub workers: AtomicU64,
    /// Sessions that wait for their viewer to come back.
    pub held_sessions: AtomicU64,
    /// Sessions whose simulation runs without a viewer.
    pub detached_sessions: AtomicU64,
    /// Sessions that a viewer has resumed.
    pub resumed_sessions: AtomicU64,
    /// States of sessions given to the store.
    pub saves: AtomicU64,
    /// Times that a recording could not be written.
    pub recording_failures: AtomicU64,
    /// Frames that are missing in recordings.
    pub frames_lost: AtomicU64,
    /// Times that the device of a worker has failed.
    pub device_failures: AtomicU64,
}

/// A session and what surrounds it.
struct Seat {
    session: Session,
    /// The connection of its viewer, if one is there.
    viewer: Option<SessionId>,
    /// Since when the session waits for a viewer.
    alone_since: Instant,
    /// What does not fit into the queue of the viewer yet.
    backlog: VecDeque<ServerMessage>,
    span: tracing::Span,
    wake_at: Option<Instant>,
    /// When the job that is out became ready.
    job_since: Option<Instant>,
    /// Whose it is.
    owner: Arc<Owner>,
    /// Name of the file that is being recorded.
    recording: Option<String>,
    safekeeping: Safekeeping,
}

impl Seat {
    fn new(session: Session, owner: Arc<Owner>, now: Instant) -> Seat {
        let span = tracing::info_span!("session", id = session.id().0);
        span.in_scope(|| tracing::debug!("session begins"));
        Seat {
            session,
            viewer: None,
            alone_since: now,
            backlog: VecDeque::new(),
            span,
            wake_at: None,
            recording: None,
            safekeeping: Safekeeping::default(),
            job_since: None,
            owner,
        }
    }
}

/// Why a session ends.
#[derive(Debug)]
enum Farewell {
    Disconnected,
    /// The viewer has asked for it.
    Asked,
    /// Nobody has come back.
    Forgotten,
    /// Its place is needed for another.
    Evicted,
    TooSlow,
    TooManyMessages,
    Panic(String),
}

/// Owns sessions, scheduler, workers, recorder and the store of states.
pub struct Engine<W, R, S = NoStore> {
    settings: EngineSettings,
    events: Receiver<Event>,
    workers: W,
    recorder: R,
    store: S,
    scheduler: Scheduler,
    connections: HashMap<SessionId, Connection>,
    sessions: HashMap<SessionId, Seat>,
    /// Sessions that can be resumed.
    keys: HashMap<SessionKey, SessionId>,
    /// Wake-up times of the sessions that have one.
    deadlines: BTreeSet<(Instant, SessionId)>,
    /// Sessions to which something has happened in this turn. Ordered: the same events give
    /// the same shards.
    touched: BTreeSet<SessionId>,
    statistics: Arc<Statistics>,
    poll_since: Instant,
    counted_at: Option<Instant>,
    /// Since when each worker is busy with the shard in hand.
    busy_since: Vec<Option<Instant>>,
    next_notices: Instant,
    ending: Option<Ending>,
}

impl<W: Workers, R: RecordSink> Engine<W, R> {
    /// An engine that hears `events` and keeps no states.
    pub fn new(settings: EngineSettings, events: Receiver<Event>, workers: W, recorder: R) -> Self {
        Engine::with_store(settings, events, workers, recorder, NoStore)
    }
}

impl<W: Workers, R: RecordSink, S: StateStore> Engine<W, R, S> {
    /// An engine that hears `events` and keeps the states of its sessions in `store`.
    pub fn with_store(
        settings: EngineSettings,
        events: Receiver<Event>,
        workers: W,
        recorder: R,
        store: S,
    ) -> Self {
        let count = workers.devices().len();
        let statistics = Arc::new(Statistics::default());
        statistics.workers.store(count as u64, Ordering::Relaxed);
        settings.metrics.workers.set(count as i64);
        Engine {
            scheduler: Scheduler::new(count, settings.edge_budget),
            settings,
            events,
            workers,
            recorder,
            store,
            connections: HashMap::new(),
            sessions: HashMap::new(),
            keys: HashMap::new(),
            deadlines: BTreeSet::new(),
            touched: BTreeSet::new(),
            statistics,
            poll_since: Instant::now(),
            counted_at: None,
            busy_since: vec![None; count],
            next_notices: Instant::now(),
            ending: None,
        }
    }

    /// Counters to read from other threads.
    pub fn statistics(&self) -> Arc<Statistics> {
        self.statistics.clone()
    }

    /// Serves until [`Event::ShutDown`] or [`Event::Drain`], until all handles are gone, or until
    /// it cannot go on; then keeps the states of the sessions, finishes the recordings and
    /// dismisses the workers.
    pub fn run(mut self) -> Ending {
        loop {
            let first = self.wait();
            self.turn(first);
            if let Some(ending) = self.ending.take() {
                return self.leave(ending);
            }
        }
    }

    /// One turn of the loop.
    fn turn(&mut self, first: Option<Event>) {
        let now = Instant::now();
        let mut next = first;
        for _ in 0..EVENTS_PER_TURN {
            let Some(event) = next.take() else { break };
            self.apply(event, now);
            next = self.events.try_recv().ok();
        }
        if let Some(event) = next {
            self.apply(event, now);
        }
        while let Some(event) = self.workers.poll() {
            self.poll_since = now;
            self.apply(Event::Worker(event), now);
        }
        self.apply(Event::Deadline, now);
        self.watch_shards(now);
        self.pass_notices(now);
        loop {
            let touched = std::mem::take(&mut self.touched);
            // Workers first: whoever is woken by a message may take the processor from this thread.
            for &id in &touched {
                self.let_step(id);
            }
            self.dispatch();
            for id in touched {
                self.let_act(id);
            }
            if self.touched.is_empty() {
                break;
            }
            // A job has failed at once, for want of workers, or a viewer has caught up: the session
            // may act again.
        }
        let queued = self.scheduler.queued() as u64;
        self.statistics.queued_jobs.store(queued, Ordering::Relaxed);
        self.count_sessions();
        let metrics = &self.settings.metrics;
        metrics.queued_jobs.set(queued as i64);
        metrics.sessions.set(self.sessions.len() as i64);
        if self.counted_at.is_none_or(|at| now > at + COUNT_INTERVAL) {
            self.counted_at = Some(now);
            let unacked = self.sessions.values().map(|seat| seat.session.unacked());
            let (sum, most) = unacked.fold((0u64, 0u64), |(sum, most), n| {
                (sum.saturating_add(n), most.max(n))
            });
            metrics.unacked.set(sum as i64);
            metrics.unacked_most.set(most as i64);
        }
    }

    /// Waits for something to do.
    fn wait(&mut self) -> Option<Event> {
        let now = Instant::now();
        let mut longest = match self.deadlines.first() {
            Some((at, _)) => at.saturating_duration_since(now).min(LONGEST_SLEEP),
            None => LONGEST_SLEEP,
        };
        if !self.workers.wakes_engine() {
            let pause = if self.scheduler.shards_out() == 0 {
                self.poll_since = now;
                LONGEST_SLEEP
            } else {
                // A twentieth of the time already waited: short steps are noticed at once, long
                // ones do not keep a core busy.
                let waited = now.saturating_duration_since(self.poll_since);
                (waited / 20).min(LONGEST_POLL_PAUSE)
            };
            longest = longest.min(pause);
        }
        match longest {
            Duration::ZERO => self.events.try_recv().ok(),
            longest => match self.events.recv_timeout(longest) {
                Ok(event) => Some(event),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(Event::ShutDown),
            },
        }
    }

    /// Everything that can happen, in one place.
    fn apply(&mut self, event: Event, now: Instant) {
        match event {
            Event::Connected {
                id,
                to_viewer,
                owner,
            } => self.connect(id, to_viewer, owner),
            Event::Message { id, message } => self.hear(id, *message, now),
            Event::Announce { id, text } => self.announce(id, &text),
            Event::Disconnected { id, place } => {
                self.disconnect(id, now);
                drop(place);
            }
            Event::WorkerWaits => {}
            Event::Worker(WorkerEvent::Done {
                worker,
                shard,
                outcomes,
            }) => self.complete(worker, shard, outcomes, now),
            Event::Worker(WorkerEvent::Lost { worker, reason }) => {
                self.lose(worker, &reason, now);
            }
            Event::Worker(WorkerEvent::Hung { worker, reason }) => {
                self.give_up(format!("{} {reason}", self.name_of(worker)));
            }
            Event::Worker(WorkerEvent::Unfit { worker, reason }) => {
                self.suspend(worker, &reason, now);
            }
            Event::Worker(WorkerEvent::Fit { worker }) => self.take_in_again(worker),
            Event::Deadline => {
                while let Some(&(at, id)) = self.deadlines.first()
                    && at <= now
                {
                    self.deadlines.pop_first();
                    if let Some(seat) = self.sessions.get_mut(&id) {
                        seat.wake_at = None;
                    }
                    self.with_session(id, |session| session.tick(now));
                }
            }
            Event::ShutDown => self.ending = self.ending.take().or(Some(Ending::Stopped)),
            Event::Drain => self.ending = self.ending.take().or(Some(Ending::Drained)),
        }
    }

    /// Lets a session take something; its panic ends it and nobody else.
    fn with_session(&mut self, id: SessionId, f: impl FnOnce(&mut Session)) {
        let Some(seat) = self.sessions.get_mut(&id) else {
            return; // gone meanwhile
        };
        let span = seat.span.clone();
        let _entered = span.enter();
        // A session that panics is dropped whole, so nothing half-changed remains.
        match catch_unwind(AssertUnwindSafe(|| f(&mut seat.session))) {
            Ok(()) => {
                if seat.session.waiting_messages() > self.settings.max_waiting_messages {
                    self.end(id, &Farewell::TooManyMessages);
                } else {
                    self.touched.insert(id);
                }
            }
            Err(panic) => {
                let panic = panic_message(&*panic).to_owned();
                self.end(id, &Farewell::Panic(panic));
            }
        }
    }

    /// The next job of a session to the queue. A viewer that does not keep up gets no new steps
    /// until it does.
    fn let_step(&mut self, id: SessionId) {
        let keeps_up = |seat: &Seat| seat.backlog.is_empty();
        if self.sessions.get(&id).is_some_and(keeps_up) {
            let now = Instant::now();
            let mut job: Option<Job> = None;
            self.with_session(id, |session| job = session.next_job(now));
            self.queue_job(job);
            self.touched.remove(&id);
        }
    }

    /// A session acts: messages to its viewer, records to the recorder, its state to the store.
    fn let_act(&mut self, id: SessionId) {
        let now = Instant::now();
        let is_behind = |seat: &Seat| !seat.backlog.is_empty();
        let was_behind = self.sessions.get(&id).is_some_and(is_behind);
        if let Err(farewell) = self.forward(id) {
            return self.let_go(id, &farewell, now);
        }
        if was_behind && !self.sessions.get(&id).is_some_and(is_behind) {
            self.touched.insert(id); // it may step again
        }
        let Some(seat) = self.sessions.get_mut(&id) else {
            return;
        };
        for record in seat.session.take_records() {
            self.recorder.record(id, record);
        }
        let next_save = seat.keep(now, &mut self.store, &self.statistics);
        let expires = seat.expires(now, self.settings.session.reconnect);
        if expires.is_some_and(|at| at <= now) {
            return self.end(id, &Farewell::Forgotten);
        }
        // It has just acted, so a time that has passed cannot be meant; never spin on one.
        let soonest = now + Duration::from_millis(1);
        let wake_at = match seat.backlog.is_empty() {
            true => seat.session.wake_at(),
            false => Some(now + RETRY),
        };
        let wake_at = [wake_at, next_save, expires]
            .into_iter()
            .flatten()
            .min()
            .map(|at| at.max(soonest));
        if wake_at != seat.wake_at {
            if let Some(old) = seat.wake_at {
                self.deadlines.remove(&(old, id));
            }
            seat.wake_at = wake_at;
            self.deadlines.extend(wake_at.map(|at| (at, id)));
        }
    }

    fn queue_job(&mut self, job: Option<Job>) {
        if let Some(job) = job
            && let Some(seat) = self.sessions.get_mut(&job.session)
        {
            seat.job_since = Some(Instant::now());
            tracing::trace!(parent: &seat.span, serial = job.serial, "job");
            self.scheduler.push(job);
        }
    }

    /// Moves a session's messages into the queue of its viewer, as far as there is room.
    fn forward(&mut self, id: SessionId) -> Result<(), Farewell> {
        let Some(seat) = self.sessions.get_mut(&id) else {
            return Ok(());
        };
        let metrics = &self.settings.metrics;
        for message in seat.session.take_output() {
            match &message.content {
                Content::Frame(_) => {
                    metrics.frames.inc();
                }
                Content::Notice(notice) => metrics.count_notice(&notice.message),
                Content::State(_) | Content::Goodbye(_) => {}
            }
            seat.backlog.push_back(message);
        }
        let connection = seat.viewer.and_then(|id| self.connections.get(&id));
        let Some(connection) = connection else {
            seat.backlog.clear();
            return Ok(());
        };
        while let Some(message) = seat.backlog.pop_front() {
            match connection.to_viewer.try_send(message) {
                Ok(()) => {}
                Err(TrySendError::Full(message)) => {
                    seat.backlog.push_front(message);
                    break;
                }
                // That the viewer is gone is told by its connection.
                Err(TrySendError::Closed(_)) => seat.backlog.clear(),
            }
        }
        match seat.backlog.len() > self.settings.max_backlog {
            true => Err(Farewell::TooSlow),
            false => Ok(()),
        }
    }

    fn complete(&mut self, worker: usize, shard: u64, outcomes: Vec<Outcome>, now: Instant) {
        if !self.scheduler.complete(worker, shard, &outcomes) {
            tracing::warn!(worker, shard, "outcomes of a shard that is not out");
            return;
        }
        self.statistics.shards.fetch_add(1, Ordering::Relaxed);
        self.busy_since[worker] = (self.scheduler.shards_of(worker) > 0).then_some(now);
        for outcome in outcomes {
            self.deliver(outcome, now);
        }
    }

    fn deliver(&mut self, outcome: Outcome, now: Instant) {
        self.statistics.jobs.fetch_add(1, Ordering::Relaxed);
        let metrics = &self.settings.metrics;
        metrics.jobs.inc();
        if let Some(seat) = self.sessions.get_mut(&outcome.session)
            && let Some(since) = seat.job_since.take()
        {
            let time = now.saturating_duration_since(since);
            metrics.step_seconds.observe(time.as_secs_f64());
        }
        if let Err(error) = &outcome.result {
            metrics.failed_jobs.inc();
            self.statistics.failed_jobs.fetch_add(1, Ordering::Relaxed);
            tracing::info!(session = outcome.session.0, error, "job failed");
        }
        self.with_session(outcome.session, |session| session.complete(outcome, now));
    }

    fn fail(&mut self, jobs: Vec<Job>, reason: &str, now: Instant) {
        for job in jobs {
            let outcome = Outcome {
                session: job.session,
                serial: job.serial,
                result: Err(reason.to_owned()),
                edges: 0,
            };
            self.deliver(outcome, now);
        }
    }

    /// A worker is gone: the others do its jobs.
    fn lose(&mut self, worker: usize, reason: &str, now: Instant) {
        let given_up = self.scheduler.lose_worker(worker);
        self.busy_since[worker] = None;
        let left = self.count_workers();
        tracing::error!(worker, reason, left, "worker lost");
        if self.settings.restartable && self.scheduler.workers_left() == 0 {
            return self.give_up(format!(
                "no worker is left: {} {reason}",
                self.name_of(worker)
            ));
        }
        self.fail(given_up, "the workers that tried this step were lost", now);
    }

    /// The device of a worker has failed: the others do its jobs until it has another.
    fn suspend(&mut self, worker: usize, reason: &str, now: Instant) {
        self.statistics
            .device_failures
            .fetch_add(1, Ordering::Relaxed);
        let given_up = self.scheduler.suspend_worker(worker);
        self.busy_since[worker] = None;
        let left = self.count_workers();
        tracing::error!(worker, reason, left, "the device of a worker has failed");
        let reason = format!("a device has failed twice in this step: {reason}");
        self.fail(given_up, &reason, now);
    }

    fn take_in_again(&mut self, worker: usize) {
        self.scheduler.restore_worker(worker);
        let workers = self.count_workers();
        tracing::info!(worker, workers, "the worker has a device again");
    }

    fn count_workers(&self) -> usize {
        let alive = self.scheduler.workers_alive();
        let count = &self.statistics.workers;
        count.store(alive as u64, Ordering::Relaxed);
        self.settings.metrics.workers.set(alive as i64);
        alive
    }

    /// A shard that does not come back is as good as a lost worker, but holds its place.
    fn watch_shards(&mut self, now: Instant) {
        let timeout = self.settings.shard_timeout;
        let hung = self.busy_since.iter().position(|since| {
            since.is_some_and(|since| now.saturating_duration_since(since) > timeout)
        });
        if let Some(worker) = hung {
            let name = self.name_of(worker);
            self.give_up(format!("{name} has had a shard for more than {timeout:?}"));
        }
    }

    fn name_of(&self, worker: usize) -> String {
        let device = self.workers.devices().get(worker);
        format!("worker {worker} ({})", device.map_or("", String::as_str))
    }

    /// The engine cannot go on by itself.
    fn give_up(&mut self, reason: String) {
        tracing::error!(reason, "giving up");
        self.ending.get_or_insert(Ending::Failed(reason));
    }

    /// Sends shards to workers with a free place.
    fn dispatch(&mut self) {
        if self.scheduler.workers_left() == 0 {
            if self.ending.is_some() {
                return; // the states before these jobs are kept
            }
            let jobs = self.scheduler.drain();
            return self.fail(jobs, "no worker is left", Instant::now());
        }
        while let Some(Dispatch {
            worker,
            shard,
            cost_edges,
        }) = self.scheduler.next_dispatch()
        {
            let (id, jobs) = (shard.id, shard.jobs.len());
            tracing::debug!(worker, shard = id, jobs, edges = cost_edges, "shard sent");
            if self.scheduler.shards_out() == 1 {
                self.poll_since = Instant::now();
            }
            match self.workers.send(worker, shard) {
                Ok(()) => {
                    self.busy_since[worker].get_or_insert_with(Instant::now);
                }
                Err(SendError::Lost { reason, .. }) => {
                    self.lose(worker, &reason, Instant::now());
                    if self.scheduler.workers_left() == 0 {
                        return self.dispatch();
                    }
                }
                Err(error @ SendError::TooLarge { .. }) => {
                    let jobs = self.scheduler.take_back(worker, id);
                    self.fail(jobs, &error.to_string(), Instant::now());
                }
            }
        }
    }
}
