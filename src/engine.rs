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

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::error::TrySendError;

use crate::comm::thread::{Waker, panic_message};
use crate::comm::{Job, Outcome, SendError, SessionId, WorkerEvent, Workers};
use crate::metrics::Metrics;
use crate::scheduler::{Dispatch, Scheduler};
use crate::session::{
    ClientMessage, Content, Owner, Record, ServerMessage, Session, SessionSettings, Ticket,
};

/// Events taken before sessions act and shards leave: a flood of messages must not keep results
/// waiting.
const EVENTS_PER_TURN: usize = 1024;

/// Longest pause between two looks for outcomes while shards are out.
const LONGEST_POLL_PAUSE: Duration = Duration::from_micros(100);

/// Longest sleep where workers cannot wake the loop, so that a loss is noticed without a shard.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// How soon to knock again at a viewer's queue that is full.
const RETRY: Duration = Duration::from_millis(2);

/// Time between two counts of what viewers have not acknowledged.
const COUNT_INTERVAL: Duration = Duration::from_millis(500);

/// Where a session's messages go: a bounded queue towards its socket.
pub type ToViewer = tokio::sync::mpsc::Sender<ServerMessage>;

/// Everything that can happen to the engine.
#[derive(Debug)]
pub enum Event {
    /// A viewer has connected.
    Connected {
        /// The new session.
        id: SessionId,
        /// Where its messages go. Dropped when the session ends.
        to_viewer: ToViewer,
        /// Whose session it is.
        owner: Arc<Owner>,
    },
    /// A viewer has said something.
    Message {
        /// Whose session.
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
        /// Whose session.
        id: SessionId,
        /// The session's place among the allowed ones, given back with the session.
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
    /// Messages for one viewer that wait for room in its queue. Frames never wait here, because
    /// no step is done meanwhile; beyond this the session ends.
    pub max_backlog: usize,
    /// Edges in one shard.
    pub edge_budget: u64,
    /// Where things are counted.
    pub metrics: Arc<Metrics>,
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
}

/// A session and what surrounds it.
struct Seat {
    session: Session,
    to_viewer: ToViewer,
    /// What does not fit into `to_viewer` yet.
    backlog: VecDeque<ServerMessage>,
    span: tracing::Span,
    wake_at: Option<Instant>,
    /// When the job that is out became ready.
    job_since: Option<Instant>,
}

/// Why a session ends.
#[derive(Debug)]
enum Farewell {
    Disconnected,
    TooSlow,
    TooManyMessages,
    Panic(String),
}

/// Owns sessions, scheduler, workers and recorder.
pub struct Engine<W, R> {
    settings: EngineSettings,
    events: Receiver<Event>,
    workers: W,
    recorder: R,
    scheduler: Scheduler,
    sessions: HashMap<SessionId, Seat>,
    /// Wake-up times of the sessions that have one.
    deadlines: BTreeSet<(Instant, SessionId)>,
    /// Sessions to which something has happened in this turn. Ordered: the same events give
    /// the same shards.
    touched: BTreeSet<SessionId>,
    statistics: Arc<Statistics>,
    poll_since: Instant,
    counted_at: Option<Instant>,
    leaving: bool,
}

impl<W: Workers, R: RecordSink> Engine<W, R> {
    /// An engine that hears `events`.
    pub fn new(settings: EngineSettings, events: Receiver<Event>, workers: W, recorder: R) -> Self {
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
            sessions: HashMap::new(),
            deadlines: BTreeSet::new(),
            touched: BTreeSet::new(),
            statistics,
            poll_since: Instant::now(),
            counted_at: None,
            leaving: false,
        }
    }

    /// Counters to read from other threads.
    pub fn statistics(&self) -> Arc<Statistics> {
        self.statistics.clone()
    }

    /// Serves until [`Event::ShutDown`] or until all handles are gone; then ends all sessions,
    /// finishes the recordings and dismisses the workers.
    pub fn run(mut self) {
        while !self.leaving {
            let first = self.wait();
            self.turn(first);
        }
        tracing::info!(sessions = self.sessions.len(), "shutting down");
        let ids: Vec<SessionId> = self.sessions.keys().copied().collect();
        for id in ids {
            self.end(id, &Farewell::Disconnected);
        }
        self.recorder.finish();
        self.workers.shut_down();
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
        loop {
            for id in std::mem::take(&mut self.touched) {
                self.let_act(id);
            }
            self.dispatch();
            if self.touched.is_empty() {
                break;
            }
            // A job has failed at once, for want of workers: its session may act again.
        }
        let queued = self.scheduler.queued() as u64;
        self.statistics.queued_jobs.store(queued, Ordering::Relaxed);
        let sessions = self.sessions.len() as u64;
        self.statistics.sessions.store(sessions, Ordering::Relaxed);
        let metrics = &self.settings.metrics;
        metrics.queued_jobs.set(queued as i64);
        metrics.sessions.set(sessions as i64);
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
        let mut longest = self
            .deadlines
            .first()
            .map(|(at, _)| at.saturating_duration_since(now));
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
            longest = Some(longest.map_or(pause, |d| d.min(pause)));
        }
        match longest {
            None => match self.events.recv() {
                Ok(event) => Some(event),
                Err(_) => Some(Event::ShutDown),
            },
            Some(Duration::ZERO) => self.events.try_recv().ok(),
            Some(longest) => match self.events.recv_timeout(longest) {
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
            } => self.connect(id, to_viewer, &owner, now),
            Event::Message { id, message } => {
                self.with_session(id, |session| session.receive(*message, now));
            }
            Event::Announce { id, text } => {
                self.with_session(id, |session| session.announce(&text));
            }
            Event::Disconnected { id, place } => {
                self.end(id, &Farewell::Disconnected);
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
            Event::ShutDown => self.leaving = true,
        }
    }

    fn connect(&mut self, id: SessionId, to_viewer: ToViewer, owner: &Owner, now: Instant) {
        if self.sessions.len() >= self.settings.max_sessions {
            // Dropping the sender closes the connection.
            tracing::warn!(
                session = id.0,
                limit = self.settings.max_sessions,
                "refused: too many sessions"
            );
            return;
        }
        let span = tracing::info_span!("session", id = id.0);
        span.in_scope(|| tracing::debug!("session begins"));
        let session =
            Session::new(id, self.settings.session.clone(), now).with_allowance(owner.allowance());
        let seat = Seat {
            session,
            to_viewer,
            backlog: VecDeque::new(),
            span,
            wake_at: None,
            job_since: None,
        };
        self.sessions.insert(id, seat);
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

    /// A session acts: jobs to the queue, messages to its viewer, records to the recorder.
    fn let_act(&mut self, id: SessionId) {
        let now = Instant::now();
        if let Err(farewell) = self.forward(id) {
            return self.end(id, &farewell);
        }
        // A viewer that does not keep up gets no new steps until it does.
        let keeps_up = |seat: &Seat| seat.backlog.is_empty();
        if self.sessions.get(&id).is_some_and(keeps_up) {
            let mut job: Option<Job> = None;
            self.with_session(id, |session| job = session.next_job(now));
            self.queue_job(job);
            if let Err(farewell) = self.forward(id) {
                return self.end(id, &farewell);
            }
        }
        self.touched.remove(&id);
        let Some(seat) = self.sessions.get_mut(&id) else {
            return;
        };
        for record in seat.session.take_records() {
            self.recorder.record(id, record);
        }
        // It has just acted, so a time that has passed cannot be meant; never spin on one.
        let soonest = now + Duration::from_millis(1);
        let wake_at = match seat.backlog.is_empty() {
            true => seat.session.wake_at().map(|at| at.max(soonest)),
            false => Some(now + RETRY),
        };
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
            }
            seat.backlog.push_back(message);
        }
        while let Some(message) = seat.backlog.pop_front() {
            match seat.to_viewer.try_send(message) {
                Ok(()) => {}
                Err(TrySendError::Full(message)) => {
                    seat.backlog.push_front(message);
                    break;
                }
                Err(TrySendError::Closed(_)) => return Err(Farewell::Disconnected),
            }
        }
        match seat.backlog.len() > self.settings.max_backlog {
            true => Err(Farewell::TooSlow),
            false => Ok(()),
        }
    }

    /// Ends a session: its work is dropped, its recording closed, its socket let go.
    fn end(&mut self, id: SessionId, farewell: &Farewell) {
        let Some(mut seat) = self.sessions.remove(&id) else {
            return;
        };
        self.touched.remove(&id);
        self.scheduler.remove(id);
        if let Some(at) = seat.wake_at {
            self.deadlines.remove(&(at, id));
        }
        seat.span.in_scope(|| match farewell {
            Farewell::Disconnected => tracing::debug!("session ended"),
            Farewell::TooSlow => tracing::warn!("session ended: the viewer does not read"),
            Farewell::TooManyMessages => tracing::warn!(
                limit = self.settings.max_waiting_messages,
                "session ended: too many undigested messages"
            ),
            Farewell::Panic(panic) => tracing::error!(panic, "session ended by an internal error"),
        });
        if !matches!(farewell, Farewell::Panic(_)) {
            seat.session.close();
        }
        for record in seat.session.take_records() {
            self.recorder.record(id, record);
        }
        self.recorder.close(id);
    }

    fn complete(&mut self, worker: usize, shard: u64, outcomes: Vec<Outcome>, now: Instant) {
        if !self.scheduler.complete(worker, shard, &outcomes) {
            tracing::warn!(worker, shard, "outcomes of a shard that is not out");
            return;
        }
        self.statistics.shards.fetch_add(1, Ordering::Relaxed);
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
        if self.leaving {
            return;
        }
        let given_up = self.scheduler.lose_worker(worker);
        let left = self.scheduler.workers_alive();
        self.statistics
            .workers
            .store(left as u64, Ordering::Relaxed);
        self.settings.metrics.workers.set(left as i64);
        tracing::error!(worker, reason, left, "worker lost");
        self.fail(given_up, "the workers that tried this step were lost", now);
    }

    /// Sends shards to workers with a free place.
    fn dispatch(&mut self) {
        if self.scheduler.workers_alive() == 0 {
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
                Ok(()) => {}
                Err(SendError::Lost { reason, .. }) => {
                    self.lose(worker, &reason, Instant::now());
                    if self.scheduler.workers_alive() == 0 {
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
