//! `umaserve serve`: puts engine, workers, server and recorder together, in one process or over
//! the ranks of an MPI job.

mod door;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TrySendError};
use std::time::Instant;

use crate::cli::Device;
use crate::comm::thread::ThreadWorkers;
use crate::comm::{Outcome, SendError, SessionId, Shard, WorkerEvent, Workers};
use crate::compute;
use crate::config::{ModelConfig, ServeConfig, host_name};
use crate::connection::Heartbeat;
use crate::engine::{
    Ending, Engine, EngineHandle, EngineSettings, Event, NoRecording, NoStore, RecordSink,
    RecordingNotice, StateStore, events,
};
use crate::metrics::Metrics;
use crate::placement::{self, Place, Seat, Wanted};
use crate::potential::Potential;
use crate::potential::uma::Checkpoint;
use crate::recording::Recording;
use crate::resume::{ComputedBy, StateDirectory};
#[cfg(feature = "hdf5")]
use crate::server::RecordingInfo;
use crate::server::{
    EngineSender, FromViewer, Health, HealthStatus, Phase, RankStatus, Recordings, RunningServer,
    ServerSettings, StopReason,
};
use crate::session::{Session, SessionSettings};
use crate::system::System;
use crate::trajectory::{Provenance, Recorder, RecorderSettings, repair_directory};
#[cfg(feature = "hdf5")]
use crate::trajectory::{Shelf, ShelfEntry};
use crate::worker::{PotentialSource, reviving_thread_body};
use door::{Directions, Door};

/// How long a worker rank survives a signal without being dismissed by rank 0.
#[cfg(feature = "mpi")]
const GRACE: std::time::Duration = std::time::Duration::from_secs(30);

/// How a server has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// As it was told.
    Done,
    /// As it was told, with states to go on from.
    Resumable,
    /// By a fault that a new start may mend.
    Fault,
    /// The ranks do not find each other: the launcher does not fit the MPI library.
    NotTogether,
}

impl Exit {
    /// Exit code of the process: 75 is EX_TEMPFAIL of sysexits.h ("try again later"), 70
    /// EX_SOFTWARE, 69 EX_UNAVAILABLE.
    pub fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Resumable => 75,
            Exit::Fault => 70,
            Exit::NotTogether => 69,
        }
    }
}

/// Serves until a signal, or computes until rank 0 dismisses this rank.
///
/// # Errors
/// Whatever prevents a start, in words for the user; empty where another rank says it.
pub fn run(config: &ServeConfig) -> Result<Exit, String> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(config.model.threads)
        .thread_name(|k| format!("compute-{k}"))
        .build_global()
        .map_err(|error| format!("cannot start {} threads: {error}", config.model.threads))?;
    if config.launched_by_mpi {
        #[cfg(feature = "mpi")]
        return ranks(config);
        #[cfg(not(feature = "mpi"))]
        return Err("started as a rank of an MPI job, but built without the feature `mpi`".into());
    }
    alone(config)
}

/// One process: a worker thread takes the place of the ranks.
fn alone(config: &ServeConfig) -> Result<Exit, String> {
    let place = place_of(
        0,
        vec![Seat {
            rank: 0,
            host: host_name(),
            computes: true,
            visible: visible_devices(),
        }],
        &config.model,
    )?;
    let checkpoint = open(&config.model)?;
    let front = Front::open(config, &checkpoint, 0)?;
    let started = source(config, &checkpoint, 0).and_then(|source| {
        let potential = (source.create)()?;
        log_worker(&config.model);
        let body = reviving_thread_body(potential, source, config.max_edges);
        let device = device_of(&place);
        ThreadWorkers::start(vec![device.clone()], front.engine.waker(), body)
            .map(|workers| (workers, device))
            .map_err(|error| format!("cannot start the worker thread: {error}"))
    });
    match started {
        Ok((workers, device)) => {
            let rank = RankStatus {
                rank: 0,
                host: host_name(),
                device,
                alive: true,
            };
            front.serve(config, vec![rank], workers)
        }
        Err(reason) => front.fail(reason),
    }
}

/// The devices that this process may use, by UUID.
fn visible_devices() -> Vec<String> {
    compute::visible()
}

/// The place of `rank` among all ranks.
fn place_of(rank: usize, seats: Vec<Seat>, model: &ModelConfig) -> Result<Place, String> {
    let wanted = match model.device {
        Device::Cpu => Wanted::Cpu,
        Device::Auto => Wanted::Auto,
        Device::Cuda => Wanted::Devices,
    };
    let places = placement::assign(&seats, wanted).map_err(|mismatch| mismatch.to_string())?;
    Ok(places.into_iter().nth(rank).unwrap_or(Place::None))
}

/// What a rank computes on, in a word.
fn device_of(place: &Place) -> String {
    match place {
        Place::None => "serves".into(),
        Place::Cpu => "cpu".into(),
        Place::Device { index, id } => format!("cuda:{index} {id}"),
    }
}

/// Makes the potential of a worker, now and after each failure of its device.
fn source(
    config: &ServeConfig,
    checkpoint: &Arc<Checkpoint>,
    worker: usize,
) -> Result<PotentialSource, String> {
    let (model, checkpoint) = (config.model.clone(), checkpoint.clone());
    let probe = System {
        numbers: vec![1, 1],
        positions: vec![[0.0; 3], [0.0, 0.0, 0.74]],
        spin: 1,
        task: default_task(model.task.as_deref(), &checkpoint)?,
        ..System::default()
    };
    let fault = config.fault.clone().filter(|fault| fault.worker == worker);
    let passes = Arc::default();
    let create = move || {
        let potential = potential(&model, &checkpoint)?;
        Ok(match &fault {
            Some(fault) => fault.put_into(potential, &passes),
            None => potential,
        })
    };
    Ok(PotentialSource {
        create: Box::new(create),
        probe,
    })
}

/// The ranks of an MPI job; one rank alone serves as if there were no MPI.
#[cfg(feature = "mpi")]
fn ranks(config: &ServeConfig) -> Result<Exit, String> {
    use crate::comm::mpi as cluster;
    use cluster::{Identity, Ranks};

    let ranks = Ranks::join()?;
    if let Some(expected) = config.expected_ranks
        && expected != ranks.size()
    {
        eprintln!(
            "umaserve: {expected} ranks were started, but this one finds {} of them: the launcher \
             (srun --mpi=...) does not fit the MPI library of this program; try mpirun",
            ranks.size()
        );
        return Ok(Exit::NotTogether);
    }
    if ranks.size() == 1 {
        return alone(config);
    }
    let rank = ranks.rank();
    let seats = ranks.exchange(&Seat {
        rank,
        host: Ranks::host(),
        computes: rank > 0,
        visible: visible_devices(),
    })?;
    // All come to the same answer; one says it.
    let place = place_of(rank, seats, &config.model)
        .map_err(|reason| if rank == 0 { reason } else { String::new() })?;
    let identity = |checkpoint: &Checkpoint| Identity {
        host: Ranks::host(),
        build: build_hash(config),
        checkpoint: checkpoint.digest.to_string(),
        device: device_of(&place),
    };
    if rank == 0 {
        // Everything that can fail is tried before the others are told to go on.
        let prepared = open(&config.model).and_then(|checkpoint| {
            let front = Front::open(config, &checkpoint, ranks.size() - 1)?;
            Ok((front, identity(&checkpoint)))
        });
        let (front, mine) = match prepared {
            Ok((front, mine)) => (Some(front), Ok(mine)),
            Err(reason) => (None, Err(reason)),
        };
        let agreed = ranks.agree(mine);
        let Some(front) = front else {
            // `agree` has said so already.
            return agreed.and(Err("rank 0 cannot work".into()));
        };
        let identities = match agreed {
            Ok(identities) => identities,
            Err(reason) => return front.fail(reason),
        };
        for (rank, identity) in identities.iter().enumerate().skip(1) {
            let Identity { host, device, .. } = identity;
            tracing::info!(rank, host, device, "worker joined");
        }
        let all = identities.iter().enumerate();
        let status = all.map(|(rank, identity)| RankStatus {
            rank,
            host: identity.host.clone(),
            device: identity.device.clone(),
            alive: true,
        });
        let workers = ranks.workers(&identities, config.rank_timeout);
        let exit = front.serve(config, status.collect(), workers)?;
        if exit == Exit::Fault || ranks.is_stuck() {
            // The others cannot be asked to leave.
            ranks.abort(exit.code().into());
        }
        return Ok(exit);
    }
    let prepared = crate::server::outlive_signals(GRACE)
        .map_err(|error| format!("cannot watch for signals: {error}"))
        .and_then(|()| open(&config.model))
        .and_then(|checkpoint| {
            let source = source(config, &checkpoint, rank - 1)?;
            let potential = (source.create)()?;
            Ok(((potential, source), identity(&checkpoint)))
        });
    let (worker, mine) = match prepared {
        Ok((worker, mine)) => (Some(worker), Ok(mine)),
        Err(reason) => (None, Err(reason)),
    };
    // Rank 0 prints what is wrong.
    ranks.agree(mine).map_err(|_| String::new())?;
    let Some((potential, source)) = worker else {
        return Err(String::new());
    };
    log_worker(&config.model);
    let link = ranks.link(config.rank_timeout);
    link.run(|link| crate::worker::serve_reviving(link, potential, &source, config.max_edges));
    Ok(Exit::Done)
}

/// Version and content of this program: ranks have to run the same.
#[cfg(feature = "mpi")]
fn build_hash(config: &ServeConfig) -> String {
    let content = config.program.as_ref().map(std::fs::read);
    match content {
        Some(Ok(bytes)) => blake3::hash(&bytes).to_hex()[..16].to_owned(),
        // The version is all that is left to compare.
        _ => env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// Opens the checkpoint of a configuration.
///
/// # Errors
/// A file that cannot be used, by name.
pub fn open(model: &ModelConfig) -> Result<Arc<Checkpoint>, String> {
    Checkpoint::open(&model.path)
        .map(Arc::new)
        .map_err(|error| format!("{}: {error}", model.path.display()))
}

/// The potential of a checkpoint on the configured device, checked against the CPU.
///
/// # Errors
/// A device that cannot be used, or a model that cannot be evaluated there.
pub fn potential(
    model: &ModelConfig,
    checkpoint: &Arc<Checkpoint>,
) -> Result<Arc<dyn Potential>, String> {
    if let Some(reason) = compute::fallback(model) {
        tracing::info!("{reason}");
    }
    let place = compute::choose(model)?;
    Ok(compute::open(model, checkpoint, place)?.potential)
}

fn log_worker(model: &ModelConfig) {
    tracing::info!(
        predict_unit_device = %compute::name(model),
        precision = %compute::precision(model),
        threads = model.threads,
        "worker ready"
    );
}

/// The task of structures that name none: the user's, else omol, else the only one.
///
/// # Errors
/// The checkpoint does not have it, or has several and no omol.
pub fn default_task(wanted: Option<&str>, checkpoint: &Checkpoint) -> Result<String, String> {
    let tasks: Vec<&str> = checkpoint.config.task_names().collect();
    let known = tasks.join(", ");
    let name = &checkpoint.config.name;
    match wanted {
        Some(task) if tasks.contains(&task) => Ok(task.to_owned()),
        Some(task) => Err(format!("--task {task}: {name} has {known}")),
        None if tasks.contains(&"omol") => Ok("omol".to_owned()),
        None => match tasks[..] {
            [only] => Ok(only.to_owned()),
            _ => Err(format!("--task is needed: {name} has {known}")),
        },
    }
}

/// What rank 0 opens before the ranks agree to start. The server answers from here on, and says
/// that it is not ready.
struct Front {
    engine: EngineHandle,
    heard: Receiver<Event>,
    recorder: Option<Recording>,
    store: Box<dyn StateStore>,
    /// Sessions of an earlier process.
    restored: Vec<Session>,
    session: Arc<SessionSettings>,
    model: String,
    health: Arc<Health>,
    server: RunningServer,
    heartbeat: Option<Heartbeat>,
    directions: Directions,
}

impl Front {
    /// `workers` is how many ranks compute; 0 if this process does.
    fn open(
        config: &ServeConfig,
        checkpoint: &Checkpoint,
        workers: usize,
    ) -> Result<Front, String> {
        let task = default_task(config.model.task.as_deref(), checkpoint)?;
        let door = Door::open(&config.door)?;
        let metrics = Arc::new(Metrics::default());
        metrics.restarts.set(config.door.restarts as i64);
        let directory = config.resume.as_deref().map(StateDirectory::open);
        let directory = directory
            .transpose()
            .map_err(|e| format!("--resume: {e}"))?;
        // A state names its recording; the next server may be started elsewhere.
        let record = config
            .record
            .as_deref()
            .map(std::path::absolute)
            .transpose();
        let record = record.map_err(|error| format!("--record: {error}"))?;
        let mut recorder = match &record {
            None => None,
            Some(directory) => {
                let recorder = Recorder::start(RecorderSettings::new(directory))
                    .map_err(|error| format!("--record: {error}"))?;
                Some(Recording::new(recorder, provenance(config, checkpoint)))
            }
        };
        if let Some(watch) = recorder.as_ref().and_then(Recording::watch) {
            metrics.before_reading(move |metrics| {
                let status = watch.status();
                let frames = status.frames_safe as i64;
                metrics.recorded_frames.set(frames);
                let dropped = status.frames_dropped as i64;
                metrics.recorded_frames_dropped.set(dropped);
                metrics.recorded_bytes.set(status.bytes_written as i64);
                let failing = status.last_error.is_some();
                metrics.recording_failing.set(failing.into());
            });
        }
        let session = Arc::new(SessionSettings {
            max_unacked: config.max_unacked,
            max_atoms: config.max_atoms,
            frame_interval: config.frame_interval,
            ack_cleared: config.ack_cleared,
            default_task: task.clone(),
            tasks: checkpoint.config.task_names().map(str::to_owned).collect(),
            max_atomic_number: u8::try_from(checkpoint.config.elements().end - 1)
                .unwrap_or(u8::MAX),
            can_record: recorder.is_some(),
            record_by_default: recorder.is_some(),
            reconnect: config.reconnect,
            seed: config.seed,
            ..SessionSettings::default()
        });
        let mut restored = Restored::default();
        let store: Box<dyn StateStore> = match directory {
            None => Box::new(NoStore),
            Some(directory) => {
                let computed_by = computed_by(config, checkpoint);
                restored = restore(&directory, &computed_by, &session, record.as_deref())?;
                if let (Some(recorder), Some(record)) = (&mut recorder, &record) {
                    mend(record, &restored.files);
                    recorder.continue_files(restored.files.clone());
                }
                let flusher = recorder.as_ref().and_then(Recording::flusher);
                let files = restored.files.clone();
                let store = directory
                    .store(config.checkpoint_interval, computed_by, flusher, files)
                    .map_err(|error| format!("--resume: no thread for the states: {error}"))?;
                Box::new(store)
            }
        };
        let model = checkpoint.config.name.clone();
        let status = HealthStatus {
            model: model.clone(),
            task,
            tasks: session.tasks.clone(),
            elements: checkpoint.config.trained_elements(),
            max_atoms: config.max_atoms,
            recording: session.can_record,
            cuda: compute::on_cuda(&config.model),
            force_cpu: config.model.force_cpu,
            job_id: config.door.job_id.clone(),
            restarts: config.door.restarts,
            max_sessions: config.max_sessions,
            ..HealthStatus::default()
        };
        let health = Arc::new(Health::new(status).with_metrics(metrics));
        let cpus = config.model.threads;
        let settings = ServerSettings {
            session: session.clone(),
            access: door.access.clone(),
            limits: config.door.limits.clone(),
            path_prefix: door.connection.path_prefix.clone(),
            tls: door.tls.is_some(),
            threads: match workers {
                0 => (cpus / 4).clamp(2, 8),
                _ => cpus.clamp(2, 8),
            },
            max_connections: config.door.max_connections,
            handshake_timeout: config.door.handshake_timeout,
            idle_timeout: config.door.idle_timeout,
            max_message_bytes: config.max_message_bytes,
            last_session: restored
                .sessions
                .iter()
                .map(|s| s.id().0)
                .max()
                .unwrap_or(0),
            max_undigested_bytes: 2 * config.max_message_bytes,
            recordings: recordings(config),
            ..ServerSettings::default()
        };
        let directions = door.directions(config);
        let (engine, heard) = events();
        let (stop, draining) = (engine.clone(), health.clone());
        let server = RunningServer::start(
            door.listeners,
            door.tls,
            Arc::new(engine.clone()),
            health.clone(),
            settings,
            move |reason| {
                draining.update(|status| status.phase = Phase::Draining);
                stop.tell(match reason {
                    StopReason::Draining => Event::Drain,
                    StopReason::Interrupted | StopReason::Failed => Event::ShutDown,
                });
            },
        )
        .map_err(|error| format!("cannot start the server: {error}"))?;
        let heartbeat = match &config.door.connection_file {
            None => None,
            Some(path) => {
                if let Some(directory) = path.parent() {
                    std::fs::create_dir_all(directory).map_err(|error| {
                        format!("--connection-file {}: {error}", path.display())
                    })?;
                }
                let health = health.clone();
                Some(Heartbeat::start(path.clone(), door.connection, move |c| {
                    let report = health.report();
                    c.state = health.phase().name().to_owned();
                    c.ranks = report["ranks"].clone();
                    c.status = report;
                })?)
            }
        };
        Ok(Front {
            engine,
            heard,
            recorder,
            store,
            restored: restored.sessions,
            session,
            model,
            health,
            server,
            heartbeat,
            directions,
        })
    }

    /// Gives up before the first session: says so to those who ask, and ends.
    fn fail(self, reason: String) -> Result<Exit, String> {
        self.health
            .update(|status| status.error = Some(reason.clone()));
        drop(self.heartbeat);
        // Whatever happens to the sockets now, the reason is the other one.
        let _ = self.server.stop();
        Err(reason)
    }

    /// Serves on this thread until a signal.
    fn serve(
        self,
        config: &ServeConfig,
        ranks: Vec<RankStatus>,
        workers: impl Workers,
    ) -> Result<Exit, String> {
        let count = workers.devices().len();
        // A worker of this process is rank 0, of several ranks the first is the front.
        let first_rank = ranks.len() - count;
        self.health.update(|status| {
            status.model_loaded = true;
            status.workers = count;
            status.ranks = ranks;
            status.phase = Phase::Ready;
        });
        if let Some(heartbeat) = &self.heartbeat {
            heartbeat.renew();
        }
        let metrics = self.health.metrics();
        let settings = EngineSettings {
            session: self.session.clone(),
            max_sessions: config.max_sessions,
            edge_budget: config.edge_budget,
            metrics: metrics.clone(),
            shard_timeout: config.shard_timeout,
            restartable: config.resume.is_some(),
            ..EngineSettings::default()
        };
        print_start(
            config,
            &self.model,
            &self.session.default_task,
            count,
            &self.directions,
        );
        let workers = Observed {
            in_hand: vec![InHand::default(); count],
            workers,
            health: self.health.clone(),
            metrics,
            first_rank,
            left: count,
        };
        let recorder: Box<dyn RecordSink> = match self.recorder {
            Some(recorder) => Box::new(recorder),
            None => Box::new(NoRecording),
        };
        let mut engine = Engine::with_store(settings, self.heard, workers, recorder, self.store);
        engine.adopt(self.restored);
        let ending = engine.run();
        self.health.update(|status| match &ending {
            Ending::Failed(reason) => status.error = Some(reason.clone()),
            Ending::Drained | Ending::Stopped => status.phase = Phase::Stopped,
        });
        drop(self.heartbeat);
        self.server
            .stop()
            .map_err(|error| format!("the server has failed: {error}"))?;
        Ok(match ending {
            Ending::Failed(_) => Exit::Fault,
            Ending::Drained if config.resume.is_some() => Exit::Resumable,
            Ending::Drained | Ending::Stopped => Exit::Done,
        })
    }
}

/// Sessions of an earlier process, and the files that they were recorded to.
#[derive(Default)]
struct Restored {
    sessions: Vec<Session>,
    files: Vec<(SessionId, PathBuf)>,
}

/// Reads the sessions back. What cannot be used is named, put aside, and does not keep the others
/// from going on.
fn restore(
    directory: &StateDirectory,
    computed_by: &ComputedBy,
    settings: &Arc<SessionSettings>,
    record: Option<&Path>,
) -> Result<Restored, String> {
    let (found, mut refused) = directory.read().map_err(|e| format!("--resume: {e}"))?;
    let mut restored = Restored::default();
    for saved in found {
        let ComputedBy { checkpoint, .. } = &saved.computed_by;
        if *checkpoint != computed_by.checkpoint {
            let reason = format!("its checkpoint is {checkpoint:.16}, not the one served here");
            refused.push(directory.refuse(saved.session, reason));
            continue;
        }
        if saved.computed_by != *computed_by {
            tracing::warn!(
                session = saved.session.0,
                before = ?saved.computed_by,
                "another device or precision: it goes on, but not with the same numbers"
            );
        }
        match Session::restore(&saved.state, settings.clone(), Instant::now()) {
            Ok(session) if session.id() == saved.session => {
                let file = saved.recording.and_then(|path| found_again(path, record));
                restored.files.extend(file.map(|path| (session.id(), path)));
                restored.sessions.push(session);
            }
            Ok(_) => refused.push(directory.refuse(saved.session, "of another session")),
            Err(error) => refused.push(directory.refuse(saved.session, error)),
        }
    }
    for refused in &refused {
        tracing::error!("session not resumed: {refused}");
    }
    let (sessions, refused) = (restored.sessions.len(), refused.len());
    tracing::info!(sessions, refused, "sessions resumed");
    Ok(restored)
}

/// A recording, also if its directory was moved as a whole.
fn found_again(path: PathBuf, record: Option<&Path>) -> Option<PathBuf> {
    let moved = record?.join(path.file_name()?);
    Some(if moved.exists() { moved } else { path })
}

/// Mends the recordings that a killed server has left behind, also those of sessions that nobody
/// can resume.
fn mend(directory: &Path, files: &[(SessionId, PathBuf)]) {
    let wanted: Vec<PathBuf> = files.iter().map(|(_, path)| path.clone()).collect();
    match repair_directory(directory, &wanted) {
        Ok((mended, failed)) => {
            if mended > 0 {
                tracing::info!(mended, "recordings mended");
            }
            for error in failed {
                tracing::error!(%error, "recording not mended");
            }
        }
        Err(error) => tracing::error!(%error, "recordings not mended"),
    }
}

fn computed_by(config: &ServeConfig, checkpoint: &Checkpoint) -> ComputedBy {
    ComputedBy {
        checkpoint: checkpoint.digest.to_string(),
        precision: compute::precision(&config.model).to_string(),
        device: compute::name(&config.model),
    }
}

fn provenance(config: &ServeConfig, checkpoint: &Checkpoint) -> Provenance {
    Provenance {
        version: env!("CARGO_PKG_VERSION").into(),
        checkpoint: checkpoint.config.name.clone(),
        checkpoint_digest: checkpoint.digest.to_string(),
        precision: compute::precision(&config.model).to_string(),
        device: compute::name(&config.model),
        ..Provenance::default()
    }
}

/// The recordings that viewers may download.
#[cfg(feature = "hdf5")]
fn recordings(config: &ServeConfig) -> Option<Arc<dyn Recordings>> {
    let directory = config.record.as_ref()?;
    Some(Arc::new(Downloads(Shelf::new(directory))))
}

/// Without HDF5 nothing is recorded.
#[cfg(not(feature = "hdf5"))]
fn recordings(_config: &ServeConfig) -> Option<Arc<dyn Recordings>> {
    None
}

#[cfg(feature = "hdf5")]
#[derive(Debug)]
struct Downloads(Shelf);

#[cfg(feature = "hdf5")]
impl Recordings for Downloads {
    fn list(&self) -> Result<Vec<RecordingInfo>, String> {
        let entries = self.0.list().map_err(|error| error.to_string())?;
        let info = |entry: ShelfEntry| RecordingInfo {
            name: entry.name,
            bytes: entry.bytes,
            modified: entry.modified,
            frames: entry.frames,
            live: entry.live,
        };
        Ok(entries.into_iter().map(info).collect())
    }

    fn open(&self, name: &str) -> Result<Option<std::fs::File>, String> {
        self.0.open(name).map_err(|error| error.to_string())
    }
}

/// What is served, where, and the limits.
fn print_start(
    config: &ServeConfig,
    model: &str,
    task: &str,
    workers: usize,
    directions: &Directions,
) {
    let record = match &config.record {
        Some(directory) => directory.display().to_string(),
        None => "off (--record DIR)".into(),
    };
    let device = compute::name(&config.model);
    let text = format!(
        "umaserve {version} serves {model} ({file}, task {task}) on {workers} {device} worker{s}\n\
         \x20 open        {page}\n\
         \x20 from afar   {tunnel}\n\
         \x20             then {through}\n\
         \x20 token       {token}\n\
         \x20 viewers     {viewers}    status  {status}\n\
         \x20 recording   {record}\n\
         \x20 limits      {sessions} sessions, {atoms} atoms and {edges} edges per session,\n\
         \x20             {mib} MiB per message, {unacked} unacknowledged frames,\n\
         \x20             {budget} edges per pass\n\
         \x20 stop        Ctrl-C\n",
        version = env!("CARGO_PKG_VERSION"),
        file = config.model.path.display(),
        s = if workers == 1 { "" } else { "s" },
        page = directions.page,
        tunnel = directions.tunnel,
        through = directions.page_through_tunnel,
        token = directions.token,
        viewers = directions.viewers,
        status = directions.status,
        sessions = config.max_sessions,
        atoms = config.max_atoms,
        edges = config.max_edges,
        mib = config.max_message_bytes >> 20,
        unacked = config.max_unacked,
        budget = config.edge_budget,
    );
    // The output may have been closed; the server is none the worse for it.
    let mut output = std::io::stdout().lock();
    let _ = std::io::Write::write_all(&mut output, text.as_bytes());
    let _ = std::io::Write::flush(&mut output);
}

impl EngineSender for EngineHandle {
    fn try_send(&self, event: FromViewer) -> Result<(), TrySendError<FromViewer>> {
        // Never full: tickets bound what every viewer has under way.
        let event = match event {
            FromViewer::Connected {
                id,
                to_viewer,
                owner,
            } => Event::Connected {
                id,
                to_viewer,
                owner,
            },
            FromViewer::Announce { id, text } => Event::Announce { id, text },
            FromViewer::Message { id, message } => Event::Message { id, message },
            FromViewer::Disconnected { id, place } => Event::Disconnected { id, place },
        };
        match self.tell(event) {
            true => Ok(()),
            false => Err(TrySendError::Disconnected(FromViewer::Disconnected {
                id: SessionId(0),
                place: crate::session::Ticket::default(),
            })),
        }
    }
}

impl RecordSink for Box<dyn RecordSink> {
    fn record(&mut self, session: SessionId, record: crate::session::Record) {
        (**self).record(session, record);
    }

    fn close(&mut self, session: SessionId) {
        (**self).close(session);
    }

    fn finish(&mut self) {
        (**self).finish();
    }

    fn take_notices(&mut self) -> Vec<(SessionId, RecordingNotice)> {
        (**self).take_notices()
    }
}

/// Workers whose doings show in `/serve/health`, `/uma/stats` and `/metrics`.
struct Observed<W> {
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

    fn dismiss(&mut self) {
        self.workers.dismiss();
    }

    fn shut_down(&mut self) {
        self.workers.shut_down();
    }
}
