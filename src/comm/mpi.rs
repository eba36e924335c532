//! Ranks of an MPI job: rank 0 serves, the others compute.
//!
//! MPI is called from the main threads only (`MPI_THREAD_FUNNELED`). Nothing waits inside MPI:
//! libraries spin there, and a spinning rank takes a core from those that compute. Waiting is
//! probing with a sleep that grows with the time already waited, from microseconds to
//! milliseconds.
//!
//! At start every rank tells rank 0 what it is or why it cannot work ([`Ranks::agree`]), so that
//! all ranks go on or all leave, and none waits for another.
//!
//! The loss of a rank's process ends the whole job under MPI without fault tolerance; a rank
//! that gives up by itself does not. A rank that is there but does not move any more is noticed by
//! heart-beats, which go both ways: rank 0 tells the engine ([`WorkerEvent::Hung`]), a worker that
//! does not hear rank 0 ends the job.
//!
//! A worker rank therefore computes on another thread than the main one, which goes on talking to
//! rank 0 meanwhile ([`MpiLink::run`]).

use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use mpi::environment::Universe;
use mpi::point_to_point::{Message, Status};
use mpi::request::{Request, StaticScope};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, Destination, MatchedReceiveVec, Source};
use mpi::{Tag, Threading};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::thread::panic_message;
use super::{Link, Outcome, SendError, Shard, WorkerEvent, Workers, wire};

/// Rank to 0: an [`Identity`], or why the rank cannot work.
const HELLO: Tag = 1;
/// 0 to rank: go on, or leave.
const VERDICT: Tag = 2;
/// 0 to rank: a shard.
const SHARD: Tag = 3;
/// Rank to 0: outcomes.
const OUTCOMES: Tag = 4;
/// 0 to rank: leave.
const LEAVE: Tag = 5;
/// Rank to 0: the last message, a reason in UTF-8.
const LEFT: Tag = 6;

/// Both ways: still there. Empty.
const HEARTBEAT: Tag = 7;
/// Rank to 0: the device has failed, a reason in UTF-8.
const UNFIT: Tag = 8;
/// Rank to 0: the device works again. Empty.
const FIT: Tag = 9;

/// Time between two heart-beats.
const BEAT: Duration = Duration::from_secs(1);
/// Silence after which a rank is not waited for at the end of a job. When one has been killed, the
/// launcher asks rank 0 to end, which it must not delay until the rank counts as hung.
const SILENCE_AT_THE_END: Duration = Duration::from_millis(2500);

/// Exit code of a job that has to be started again.
pub const FAULT_EXIT_CODE: i32 = 70;
/// Both ways: what all ranks tell each other.
const TABLE: Tag = 10;

/// Longest message: MPI counts in `int`.
const MAX_MESSAGE_BYTES: usize = i32::MAX as usize;

/// How long [`Workers::shut_down`] waits for a step in progress.
const GRACE: Duration = Duration::from_secs(5);

/// What a rank is. Build and checkpoint have to be the same everywhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Name of the host.
    pub host: String,
    /// Hash of the program.
    pub build: String,
    /// Digest of the checkpoint.
    pub checkpoint: String,
    /// What it computes on.
    pub device: String,
}

/// This process as a rank of the job.
pub struct Ranks {
    world: SimpleCommunicator,
    /// Whether ranks have not left in time.
    stuck: Cell<bool>,
    // Dropped after `world`: finalizes MPI.
    _universe: Universe,
}

impl Drop for Ranks {
    fn drop(&mut self) {
        if std::thread::panicking() || self.stuck.get() {
            // Finalizing would wait for ranks that wait for this one, or for ever.
            self.abort(FAULT_EXIT_CODE);
        }
    }
}

impl Ranks {
    /// Joins the job. To be called once, by the main thread, before other threads start.
    ///
    /// # Errors
    ///
    /// When the MPI library is already in use or allows no other threads beside the main one.
    pub fn join() -> Result<Ranks, String> {
        let (universe, threading) = mpi::initialize_with_threading(Threading::Funneled)
            .ok_or("MPI has been initialized before")?;
        if threading < Threading::Funneled {
            return Err(format!(
                "the MPI library supports {threading:?} threading only; Funneled is needed"
            ));
        }
        Ok(Ranks {
            stuck: Cell::new(false),
            world: universe.world(),
            _universe: universe,
        })
    }

    /// Number of this rank, from 0.
    pub fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    /// Number of ranks.
    pub fn size(&self) -> usize {
        self.world.size() as usize
    }

    /// Name of this host.
    pub fn host() -> String {
        mpi::environment::processor_name().unwrap_or_else(|_| "unknown".into())
    }

    /// All ranks tell each other something; every rank has to call this, and gets what all have
    /// said, in the order of the ranks.
    ///
    /// # Errors
    /// A rank says something else, as another build of this program would.
    pub fn exchange<T: Serialize + DeserializeOwned>(&self, mine: &T) -> Result<Vec<T>, String> {
        let root = self.world.process_at_rank(0);
        let table = if self.rank() == 0 {
            let mut all = vec![json(mine)];
            for rank in 1..self.size() {
                all.push(self.receive_from(rank, TABLE).0);
            }
            let table = json(&all);
            for rank in 1..self.size() {
                let process = self.world.process_at_rank(rank as i32);
                process.send_with_tag(&table[..], TABLE);
            }
            table
        } else {
            root.send_with_tag(&json(mine)[..], TABLE);
            self.receive_from(0, TABLE).0
        };
        let read = |bytes: &[u8]| serde_json::from_slice(bytes);
        let all: Result<Vec<Vec<u8>>, _> = serde_json::from_slice(&table);
        all.and_then(|all| all.iter().map(|one| read(one)).collect())
            .map_err(|error| format!("the ranks do not speak the same protocol ({error})"))
    }

    /// All ranks tell each other what they are, or why they cannot work. Every rank has to call
    /// this once. Rank 0 gets the identities of all ranks.
    ///
    /// # Errors
    ///
    /// On every rank, when one of them cannot work or the builds or checkpoints differ. Rank 0
    /// gets the table of ranks; the others are told to look there.
    pub fn agree(&self, mine: Result<Identity, String>) -> Result<Vec<Identity>, String> {
        let root = self.world.process_at_rank(0);
        if self.rank() != 0 {
            root.send_with_tag(&json(&mine)[..], HELLO);
            let (verdict, _) = self.receive_from(0, VERDICT);
            return match verdict[..] {
                [1] => Ok(Vec::new()),
                _ => Err("not started, see the message of rank 0".into()),
            };
        }
        let mut all = vec![mine];
        for rank in 1..self.size() {
            let (bytes, _) = self.receive_from(rank, HELLO);
            all.push(
                serde_json::from_slice(&bytes)
                    .unwrap_or_else(|error| Err(format!("does not speak this protocol ({error})"))),
            );
        }
        let verdict = compare(all);
        for rank in 1..self.size() {
            let process = self.world.process_at_rank(rank as i32);
            process.send_with_tag(&[u8::from(verdict.is_ok())], VERDICT);
        }
        verdict
    }

    /// Waits for a message without spinning.
    fn receive_from(&self, rank: usize, tag: Tag) -> (Vec<u8>, Status) {
        let source = self.world.process_at_rank(rank as i32);
        let mut patience = Patience::new();
        loop {
            match source.immediate_matched_probe_with_tag(tag) {
                Some(message) => return receive(message),
                None => patience.sleep(),
            }
        }
    }

    /// Ends all ranks at once with this exit code.
    pub fn abort(&self, code: i32) -> ! {
        self.world.abort(code)
    }

    /// Whether ranks were told to leave and have not: only [`Ranks::abort`] ends the job then.
    pub fn is_stuck(&self) -> bool {
        self.stuck.get()
    }

    /// Rank 0's end: ranks 1.. as workers, described by what [`Ranks::agree`] has returned. One
    /// from which nothing has been heard for `timeout` counts as hung.
    pub fn workers(&self, identities: &[Identity], timeout: Duration) -> MpiWorkers<'_> {
        let devices: Vec<String> = identities
            .iter()
            .skip(1)
            .map(|identity| format!("{} on {}", identity.device, identity.host))
            .collect();
        MpiWorkers {
            lost: vec![None; devices.len()],
            told: vec![false; devices.len()],
            devices,
            world: &self.world,
            stuck: &self.stuck,
            sends: VecDeque::new(),
            pulses: identities
                .iter()
                .skip(1)
                .map(|_| Pulse::new(timeout))
                .collect(),
            dismissed: false,
        }
    }

    /// A worker's end, for ranks 1.. . If nothing has been heard of rank 0 for `timeout`, the
    /// whole job ends.
    pub fn link(&self, timeout: Duration) -> MpiLink<'_> {
        MpiLink {
            world: &self.world,
            sends: VecDeque::new(),
            pulse: Pulse::new(timeout),
            dismissed: false,
        }
    }
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    // Strings in a struct always have a JSON form.
    serde_json::to_vec(value).unwrap_or_default()
}

fn receive(message: (Message, Status)) -> (Vec<u8>, Status) {
    message.matched_receive_vec()
}

/// Whether the ranks can work together; the table of ranks if not.
fn compare(all: Vec<Result<Identity, String>>) -> Result<Vec<Identity>, String> {
    let good: Vec<&Identity> = all.iter().flatten().collect();
    let differs =
        |of: fn(&Identity) -> &String| good.windows(2).any(|pair| of(pair[0]) != of(pair[1]));
    let mut reasons = Vec::new();
    if good.len() < all.len() {
        reasons.push("ranks that cannot work");
    }
    if differs(|identity| &identity.build) {
        reasons.push("different builds of this program");
    }
    if differs(|identity| &identity.checkpoint) {
        reasons.push("different checkpoints");
    }
    if reasons.is_empty() {
        return Ok(all.into_iter().flatten().collect());
    }
    let mut table = format!("the ranks do not fit together: {}\n", reasons.join(", "));
    table += &format!(
        "{:>5}  {:20}  {:16}  {:16}  device\n",
        "rank", "host", "build", "checkpoint"
    );
    for (rank, identity) in all.iter().enumerate() {
        table += &match identity {
            Ok(Identity {
                host,
                build,
                checkpoint,
                device,
            }) => format!("{rank:>5}  {host:20}  {build:16.16}  {checkpoint:16.16}  {device}\n"),
            Err(reason) => format!("{rank:>5}  {reason}\n"),
        };
    }
    Err(table)
}

/// What is known of the life at the other end.
struct Pulse {
    timeout: Duration,
    heard: Instant,
    /// When this end has last looked: one that was stopped itself has heard nothing either.
    looked: Instant,
    next_beat: Instant,
}

impl Pulse {
    fn new(timeout: Duration) -> Self {
        let now = Instant::now();
        Pulse {
            timeout,
            heard: now,
            looked: now,
            next_beat: now,
        }
    }

    fn hear(&mut self) {
        self.heard = Instant::now();
    }

    /// Whether a heart-beat is due, which is then counted as sent.
    fn beats(&mut self, now: Instant) -> bool {
        let due = now >= self.next_beat;
        if due {
            self.next_beat = now + BEAT.min(self.timeout / 4);
        }
        due
    }

    /// How long nothing has been heard, if that is too long.
    fn silent(&mut self, now: Instant) -> Option<Duration> {
        if now.saturating_duration_since(self.looked) > self.timeout / 2 {
            self.heard = now;
        }
        self.looked = now;
        let silence = now.saturating_duration_since(self.heard);
        (silence > self.timeout).then_some(silence)
    }
}

/// Sleeps longer the longer it has waited: about a hundredth of that time.
struct Patience {
    since: Instant,
}

impl Patience {
    const SHORTEST: Duration = Duration::from_micros(10);
    const LONGEST: Duration = Duration::from_millis(4);

    fn new() -> Self {
        Patience {
            since: Instant::now(),
        }
    }

    fn sleep(&mut self) {
        let waited = self.since.elapsed();
        if waited < Self::SHORTEST {
            std::thread::yield_now();
        } else {
            std::thread::sleep(self.pause());
        }
    }

    fn pause(&self) -> Duration {
        (self.since.elapsed() / 100).clamp(Self::SHORTEST, Self::LONGEST)
    }
}

/// A message under way and the memory that MPI reads it from.
struct PendingSend {
    /// `None` once MPI is done with the buffer.
    request: Option<Request<'static, [u8], StaticScope>>,
    /// From `Box::into_raw`; freed when the request is complete.
    buffer: *mut [u8],
}

impl PendingSend {
    fn start(to: &impl Destination, bytes: Vec<u8>, tag: Tag) -> Self {
        let buffer = Box::into_raw(bytes.into_boxed_slice());
        // SAFETY: `buffer` comes from a box that nobody else has. It is freed in `is_complete`
        // only, after the request that holds this reference has ended; a request that never ends
        // leaks it.
        let bytes: &'static [u8] = unsafe { &*buffer };
        PendingSend {
            request: Some(to.immediate_send_with_tag(StaticScope, bytes, tag)),
            buffer,
        }
    }

    /// Whether the message has left; its memory is then free.
    fn is_complete(&mut self) -> bool {
        let Some(request) = self.request.take() else {
            return true;
        };
        match request.test() {
            Ok(_) => {
                // SAFETY: the pointer is from `Box::into_raw`; MPI has finished with the memory
                // and the request with its reference has just been consumed. `request` is `None`
                // from here on, so this happens once.
                drop(unsafe { Box::from_raw(self.buffer) });
                true
            }
            Err(request) => {
                self.request = Some(request);
                false
            }
        }
    }
}

impl Drop for PendingSend {
    fn drop(&mut self) {
        if !self.is_complete() {
            // The receiver never took it. MPI may still read the memory, so both are leaked.
            std::mem::forget(self.request.take());
        }
    }
}

/// Rank 0's end.
pub struct MpiWorkers<'a> {
    world: &'a SimpleCommunicator,
    stuck: &'a Cell<bool>,
    devices: Vec<String>,
    /// Why a worker is gone.
    lost: Vec<Option<String>>,
    /// Whether its loss has been told.
    told: Vec<bool>,
    sends: VecDeque<PendingSend>,
    /// One per worker.
    pulses: Vec<Pulse>,
    /// Whether the workers have been told to leave.
    dismissed: bool,
}

impl MpiWorkers<'_> {
    /// Sends heart-beats that are due; a worker that has fallen silent.
    fn feel_pulses(&mut self) -> Option<WorkerEvent> {
        let now = Instant::now();
        let mut hung = None;
        for worker in 0..self.pulses.len() {
            if self.lost[worker].is_some() {
                continue;
            }
            if !self.dismissed && self.pulses[worker].beats(now) {
                self.push(worker, Vec::new(), HEARTBEAT);
            }
            if let Some(silence) = self.pulses[worker].silent(now)
                && hung.is_none()
            {
                let rank = worker + 1;
                let seconds = silence.as_secs_f64();
                let reason = format!("rank {rank} has been silent for {seconds:.1} s");
                // Told once; it is given no more shards, and cannot be asked to leave.
                self.lost[worker] = Some(reason.clone());
                self.told[worker] = true;
                self.stuck.set(true);
                hung = Some(WorkerEvent::Hung { worker, reason });
            }
        }
        hung
    }

    fn push(&mut self, worker: usize, bytes: Vec<u8>, tag: Tag) {
        let process = self.world.process_at_rank(worker as i32 + 1);
        self.sends
            .push_back(PendingSend::start(&process, bytes, tag));
    }

    fn lose(&mut self, worker: usize, reason: String) -> Option<WorkerEvent> {
        self.lost[worker].get_or_insert_with(|| reason.clone());
        if std::mem::replace(&mut self.told[worker], true) {
            return None;
        }
        Some(WorkerEvent::Lost { worker, reason })
    }

    fn read(&mut self, bytes: &[u8], status: Status) -> Option<WorkerEvent> {
        let worker = usize::try_from(status.source_rank() - 1).ok()?;
        self.pulses.get_mut(worker)?.hear();
        match status.tag() {
            HEARTBEAT => None,
            UNFIT => Some(WorkerEvent::Unfit {
                worker,
                reason: String::from_utf8_lossy(bytes).into_owned(),
            }),
            FIT => Some(WorkerEvent::Fit { worker }),
            OUTCOMES if self.lost[worker].is_some() => None,
            OUTCOMES => match wire::decode_outcomes(bytes) {
                Ok((shard, outcomes)) => Some(WorkerEvent::Done {
                    worker,
                    shard,
                    outcomes,
                }),
                Err(error) => self.lose(worker, format!("unreadable outcomes: {error}")),
            },
            LEFT => self.lose(worker, String::from_utf8_lossy(bytes).into_owned()),
            tag => self.lose(worker, format!("a message with the unknown tag {tag}")),
        }
    }
}

impl Workers for MpiWorkers<'_> {
    fn devices(&self) -> &[String] {
        &self.devices
    }

    fn send(&mut self, worker: usize, shard: Arc<Shard>) -> Result<(), SendError> {
        if let Some(reason) = &self.lost[worker] {
            return Err(SendError::Lost {
                worker,
                reason: reason.clone(),
            });
        }
        let bytes = wire::encode_shard(&shard);
        if bytes.len() > MAX_MESSAGE_BYTES {
            return Err(SendError::TooLarge {
                mib: bytes.len() >> 20,
                limit_mib: MAX_MESSAGE_BYTES >> 20,
            });
        }
        self.push(worker, bytes, SHARD);
        Ok(())
    }

    fn poll(&mut self) -> Option<WorkerEvent> {
        self.sends.retain_mut(|send| !send.is_complete());
        while let Some(message) = self.world.any_process().immediate_matched_probe() {
            let (bytes, status) = receive(message);
            let event = self.read(&bytes, status);
            if event.is_some() {
                return event;
            }
        }
        self.feel_pulses()
    }

    fn wakes_engine(&self) -> bool {
        false
    }

    fn end_is_near(&mut self) {
        for pulse in &mut self.pulses {
            pulse.timeout = pulse.timeout.min(SILENCE_AT_THE_END);
        }
    }

    fn dismiss(&mut self) {
        if std::mem::replace(&mut self.dismissed, true) {
            return;
        }
        for worker in 0..self.devices.len() {
            // Also to those that have given up: they wait for it.
            self.push(worker, Vec::new(), LEAVE);
        }
    }

    fn shut_down(&mut self) {
        self.dismiss();
        let deadline = Instant::now() + GRACE;
        let mut patience = Patience::new();
        while self.lost.iter().any(Option::is_none) || !self.sends.is_empty() {
            if self.poll().is_none() {
                patience.sleep();
            }
            if Instant::now() > deadline {
                let missing: Vec<usize> = (0..self.devices.len())
                    .filter(|&worker| self.lost[worker].is_none())
                    .map(|worker| worker + 1)
                    .collect();
                tracing::error!(ranks = ?missing, "ranks that do not leave; ending the job");
                self.stuck.set(true);
                return;
            }
        }
    }
}

/// A worker rank's end: the main thread talks to rank 0, another one computes.
pub struct MpiLink<'a> {
    world: &'a SimpleCommunicator,
    sends: VecDeque<PendingSend>,
    pulse: Pulse,
    /// Whether rank 0 has said that no more shards follow.
    dismissed: bool,
}

/// What the computing thread has to say.
enum Said {
    Answer(u64, Vec<Outcome>),
    Unfit(String),
    Fit,
}

/// The computing thread's end.
pub struct RankLink {
    shards: Receiver<Arc<Shard>>,
    said: Sender<Said>,
}

impl Link for RankLink {
    fn take(&mut self) -> Option<Arc<Shard>> {
        self.shards.recv().ok()
    }

    fn try_take(&mut self) -> Option<Arc<Shard>> {
        self.shards.try_recv().ok()
    }

    fn answer(&mut self, shard: u64, outcomes: Vec<Outcome>) {
        // The main thread outlives this one.
        let _ = self.said.send(Said::Answer(shard, outcomes));
    }

    fn tell_unfit(&mut self, reason: &str) {
        let _ = self.said.send(Said::Unfit(reason.to_owned()));
    }

    fn tell_fit(&mut self) {
        let _ = self.said.send(Said::Fit);
    }
}

impl MpiLink<'_> {
    /// Runs `body`, the life of a worker, on a thread of its own until it ends or rank 0 says that
    /// no more shards follow; tells rank 0 why (`body` answers the reason, `None` for a dismissal),
    /// and returns when rank 0 has let this rank go. A panic of `body` is a reason, too.
    pub fn run(mut self, body: impl FnOnce(&mut RankLink) -> Option<String> + Send) {
        std::thread::scope(|scope| {
            let (shard_sender, shards) = channel();
            let (said_sender, said) = channel();
            let mut link = RankLink {
                shards,
                said: said_sender,
            };
            let thread = std::thread::Builder::new()
                .name("worker".into())
                .spawn_scoped(scope, move || {
                    match catch_unwind(AssertUnwindSafe(|| body(&mut link))) {
                        Ok(reason) => reason.unwrap_or_else(|| "dismissed".into()),
                        Err(panic) => format!("panic: {}", panic_message(&*panic)),
                    }
                });
            let thread = match thread {
                Ok(thread) => thread,
                Err(error) => return self.leave(&format!("no thread to compute on: {error}")),
            };
            let mut shard_sender = Some(shard_sender);
            let mut patience = Patience::new();
            loop {
                self.keep_in_touch();
                if self.told_to_leave() {
                    shard_sender = None; // it ends after the shard in hand
                }
                if let Some(message) = self.probe(SHARD) {
                    patience = Patience::new();
                    let (bytes, _) = receive(message);
                    match wire::decode_shard(&bytes) {
                        // A thread that has given up takes no more; rank 0 hears of it below.
                        Ok(shard) => {
                            if let Some(sender) = &shard_sender {
                                let _ = sender.send(Arc::new(shard));
                            }
                        }
                        Err(error) => {
                            tracing::error!(%error, "unreadable shard");
                            shard_sender = None;
                        }
                    }
                }
                match said.recv_timeout(patience.pause()) {
                    Ok(said) => {
                        patience = Patience::new();
                        self.pass_on(said);
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            let reason = thread
                .join()
                .unwrap_or_else(|_| "its thread is gone".into());
            self.leave(&reason);
        });
    }

    fn pass_on(&mut self, said: Said) {
        match said {
            Said::Answer(shard, outcomes) => {
                let bytes = encode_answer(shard, outcomes);
                self.send(bytes, OUTCOMES);
            }
            Said::Unfit(reason) => self.send(reason.into_bytes(), UNFIT),
            Said::Fit => self.send(Vec::new(), FIT),
        }
    }

    /// Heart-beats in both directions. Without those of rank 0 the job cannot go on.
    fn keep_in_touch(&mut self) {
        self.sends.retain_mut(|send| !send.is_complete());
        while let Some(message) = self.probe(HEARTBEAT) {
            drop(receive(message));
            self.pulse.hear();
        }
        let now = Instant::now();
        if self.pulse.beats(now) {
            self.send(Vec::new(), HEARTBEAT);
        }
        if !self.dismissed
            && let Some(silence) = self.pulse.silent(now)
        {
            let seconds = silence.as_secs_f64();
            tracing::error!("rank 0 has been silent for {seconds:.1} s; ending the job");
            self.world.abort(FAULT_EXIT_CODE);
        }
    }

    /// The last word of a worker: tells rank 0 that it takes no more shards, and why, and waits
    /// until rank 0 sends none.
    fn leave(&mut self, reason: &str) {
        self.send(reason.as_bytes().to_vec(), LEFT);
        let mut patience = Patience::new();
        while !self.told_to_leave() || !self.sends.is_empty() {
            self.keep_in_touch();
            self.drop_shards();
            patience.sleep();
        }
    }

    fn probe(&self, tag: Tag) -> Option<(Message, Status)> {
        let root = self.world.process_at_rank(0);
        root.immediate_matched_probe_with_tag(tag)
    }

    fn told_to_leave(&mut self) -> bool {
        if !self.dismissed
            && let Some(message) = self.probe(LEAVE)
        {
            drop(receive(message));
            // Messages do not overtake each other: all shards sent before are there.
            self.drop_shards();
            self.dismissed = true;
        }
        self.dismissed
    }

    fn drop_shards(&self) {
        while let Some(message) = self.probe(SHARD) {
            drop(receive(message));
        }
    }

    fn send(&mut self, bytes: Vec<u8>, tag: Tag) {
        let root = self.world.process_at_rank(0);
        self.sends.push_back(PendingSend::start(&root, bytes, tag));
    }
}

/// The outcomes as bytes; as errors if they are too large.
fn encode_answer(shard: u64, mut outcomes: Vec<Outcome>) -> Vec<u8> {
    let bytes = wire::encode_outcomes(shard, &outcomes);
    if bytes.len() <= MAX_MESSAGE_BYTES {
        return bytes;
    }
    let reason = format!(
        "the new state is in a message of {} MiB, the limit is {} MiB",
        bytes.len() >> 20,
        MAX_MESSAGE_BYTES >> 20
    );
    for outcome in &mut outcomes {
        outcome.result = Err(reason.clone());
    }
    wire::encode_outcomes(shard, &outcomes)
}
