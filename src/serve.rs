//! `umaserve serve`: puts engine, workers, server and recorder together, in one process or over
//! the ranks of an MPI job.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::TrySendError;
use std::time::Instant;

use crate::cli::Device;
use crate::comm::thread::ThreadWorkers;
use crate::comm::{SendError, SessionId, Shard, WorkerEvent, Workers};
use crate::config::{ModelConfig, ServeConfig};
use crate::engine::{
    Ending, Engine, EngineHandle, EngineSettings, Event, NoRecording, NoStore, RecordSink,
    RecordingNotice, StateStore, events,
};
use crate::potential::Potential;
use crate::potential::uma::{Checkpoint, Precision, UmaOptions, UmaPotential};
use crate::recording::Recording;
use crate::resume::{ComputedBy, StateDirectory};
use crate::server::{
    EngineSender, FromViewer, Health, HealthStatus, RunningServer, ServerSettings, StopReason,
};
use crate::session::{Session, SessionSettings};
use crate::system::System;
use crate::trajectory::{
    Provenance, Recorder, RecorderSettings, TrajectoryError, repair_directory,
};
use crate::worker::{PotentialSource, reviving_thread_body};

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
    let checkpoint = open(&config.model)?;
    let front = Front::open(config, &checkpoint)?;
    let source = source(config, &checkpoint, 0)?;
    let potential = (source.create)()?;
    let (engine, heard) = events();
    let device = device_name(&config.model).to_owned();
    log_worker(&config.model);
    let body = reviving_thread_body(potential, source, config.max_edges);
    let workers = ThreadWorkers::start(vec![device], engine.waker(), body)
        .map_err(|error| format!("cannot start the worker thread: {error}"))?;
    front.serve(config, engine, heard, workers)
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
    let identity = |checkpoint: &Checkpoint| Identity {
        host: Ranks::host(),
        build: build_hash(config),
        checkpoint: checkpoint.digest.to_string(),
        device: match rank {
            0 => "serves".into(),
            _ => device_name(&config.model).into(),
        },
    };
    if rank == 0 {
        // Everything that can fail is tried before the others are told to go on.
        let prepared = open(&config.model).and_then(|checkpoint| {
            let front = Front::open(config, &checkpoint)?;
            Ok((front, identity(&checkpoint)))
        });
        let (front, mine) = match prepared {
            Ok((front, mine)) => (Some(front), Ok(mine)),
            Err(reason) => (None, Err(reason)),
        };
        let identities = ranks.agree(mine)?;
        let Some(front) = front else {
            return Err("rank 0 cannot work".into()); // `agree` has said so already
        };
        for (rank, identity) in identities.iter().enumerate().skip(1) {
            let Identity { host, device, .. } = identity;
            tracing::info!(rank, host, device, "worker joined");
        }
        let (engine, heard) = events();
        let workers = ranks.workers(&identities, config.rank_timeout);
        let exit = front.serve(config, engine, heard, workers)?;
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
    link.run(|link| {
        crate::worker::serve_reviving(link, potential, &source, config.max_edges)
    });
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

impl From<crate::cli::Precision> for Precision {
    fn from(typed: crate::cli::Precision) -> Self {
        match typed {
            crate::cli::Precision::F32 => Precision::F32,
            crate::cli::Precision::F64 => Precision::F64,
        }
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

/// The potential of a checkpoint on the configured device.
///
/// # Errors
/// A model that cannot be evaluated there.
pub fn potential(
    model: &ModelConfig,
    checkpoint: &Arc<Checkpoint>,
) -> Result<Arc<dyn Potential>, String> {
    let options = UmaOptions {
        precision: model.precision.into(),
        memory_bytes: model.memory_bytes,
    };
    match model.device {
        Device::Cpu | Device::Auto => UmaPotential::on_cpu(checkpoint.clone(), options)
            .map(|potential| Arc::new(potential) as Arc<dyn Potential>)
            .map_err(|error| format!("{}: {error}", model.path.display())),
        Device::Cuda => Err("this build has no CUDA kernels".into()),
    }
}

fn device_name(model: &ModelConfig) -> &'static str {
    match model.device {
        Device::Cuda => "cuda",
        Device::Cpu | Device::Auto => "cpu",
    }
}

fn log_worker(model: &ModelConfig) {
    tracing::info!(
        predict_unit_device = %device_name(model),
        precision = %Precision::from(model.precision),
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

/// What rank 0 opens before the ranks agree to start.
struct Front {
    listener: TcpListener,
    recorder: Option<Recording>,
    store: Box<dyn StateStore>,
    /// Sessions of an earlier process.
    restored: Vec<Session>,
    session: Arc<SessionSettings>,
    model: String,
}

impl Front {
    fn open(config: &ServeConfig, checkpoint: &Checkpoint) -> Result<Front, String> {
        let task = default_task(config.model.task.as_deref(), checkpoint)?;
        let listener = TcpListener::bind(&config.bind[..])
            .map_err(|error| cannot_listen(&config.bind, &error))?;
        let directory = config.resume.as_deref().map(StateDirectory::open);
        let directory = directory.transpose().map_err(|e| format!("--resume: {e}"))?;
        if let (Some(record), Some(_)) = (&config.record, &directory) {
            mend(record);
        }
        let mut recorder = match &config.record {
            None => None,
            Some(directory) => {
                let recorder = Recorder::start(RecorderSettings::new(directory))
                    .map_err(|error| format!("--record: {error}"))?;
                Some(Recording::new(recorder, provenance(config, checkpoint)))
            }
        };
        let session = Arc::new(SessionSettings {
            max_unacked: config.max_unacked,
            max_atoms: config.max_atoms,
            frame_interval: config.frame_interval,
            ack_cleared: config.ack_cleared,
            default_task: task,
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
                restored = restore(&directory, &computed_by, &session)?;
                if let Some(recorder) = &mut recorder {
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
        Ok(Front {
            listener,
            recorder,
            store,
            restored: restored.sessions,
            session,
            model: checkpoint.config.name.clone(),
        })
    }

    /// Serves on this thread until a signal.
    fn serve(
        self,
        config: &ServeConfig,
        engine: EngineHandle,
        heard: std::sync::mpsc::Receiver<Event>,
        workers: impl Workers,
    ) -> Result<Exit, String> {
        let count = workers.devices().len();
        let health = Arc::new(Health::new(HealthStatus {
            model: self.model.clone(),
            task: self.session.default_task.clone(),
            cuda: config.model.device == Device::Cuda,
            force_cpu: config.model.force_cpu,
            model_loaded: true,
            workers: count,
            error: None,
        }));
        let server_settings = ServerSettings {
            session: self.session.clone(),
            max_sessions: config.max_sessions,
            max_message_bytes: config.max_message_bytes,
            max_undigested_bytes: 2 * config.max_message_bytes,
            last_session: self.restored.iter().map(|s| s.id().0).max().unwrap_or(0),
            ..ServerSettings::default()
        };
        let address = self
            .listener
            .local_addr()
            .map_err(|error| format!("the listener has no address: {error}"))?;
        let stop = engine.clone();
        let server = RunningServer::start(
            self.listener,
            Arc::new(engine),
            health.clone(),
            server_settings,
            move |reason| {
                stop.tell(match reason {
                    StopReason::Draining => Event::Drain,
                    StopReason::Interrupted | StopReason::Failed => Event::ShutDown,
                });
            },
        )
        .map_err(|error| format!("cannot start the server: {error}"))?;
        let settings = EngineSettings {
            session: self.session.clone(),
            max_sessions: config.max_sessions,
            edge_budget: config.edge_budget,
            shard_timeout: config.shard_timeout,
            restartable: config.resume.is_some(),
            ..EngineSettings::default()
        };
        print_start(
            config,
            &self.model,
            &self.session.default_task,
            count,
            address,
        );
        let workers = Observed {
            workers,
            health,
            left: count,
        };
        let recorder: Box<dyn RecordSink> = match self.recorder {
            Some(recorder) => Box::new(recorder),
            None => Box::new(NoRecording),
        };
        let mut engine = Engine::with_store(settings, heard, workers, recorder, self.store);
        engine.adopt(self.restored);
        let ending = engine.run();
        server
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
                restored.files.extend(saved.recording.map(|path| (session.id(), path)));
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

/// Mends the recordings that a killed server has left behind, also those of sessions that nobody
/// can resume.
fn mend(directory: &Path) {
    if !directory.exists() {
        return;
    }
    match repair_directory(directory) {
        Ok((mended, failed)) => {
            if mended > 0 {
                tracing::info!(mended, "recordings mended");
            }
            for error in failed {
                tracing::error!(%error, "recording not mended");
            }
        }
        // A build that cannot record has nothing to mend.
        Err(TrajectoryError::NotBuilt) => {}
        Err(error) => tracing::error!(%error, "recordings not mended"),
    }
}

fn computed_by(config: &ServeConfig, checkpoint: &Checkpoint) -> ComputedBy {
    ComputedBy {
        checkpoint: checkpoint.digest.to_string(),
        precision: Precision::from(config.model.precision).to_string(),
        device: device_name(&config.model).into(),
    }
}

/// Names the addresses, and what to do if another server is there already.
fn cannot_listen(addresses: &[std::net::SocketAddr], error: &std::io::Error) -> String {
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let advice = match error.kind() {
        std::io::ErrorKind::AddrInUse => "; is another server running there? Choose another port",
        _ => "",
    };
    let addresses = addresses.join(" or ");
    format!("--bind: cannot listen on {addresses}: {error}{advice}")
}

fn provenance(config: &ServeConfig, checkpoint: &Checkpoint) -> Provenance {
    Provenance {
        version: env!("CARGO_PKG_VERSION").into(),
        checkpoint: checkpoint.config.name.clone(),
        checkpoint_digest: checkpoint.digest.to_string(),
        precision: Precision::from(config.model.precision).to_string(),
        device: device_name(&config.model).into(),
        ..Provenance::default()
    }
}

/// What is served, where, and the limits.
fn print_start(
    config: &ServeConfig,
    model: &str,
    task: &str,
    workers: usize,
    address: std::net::SocketAddr,
) {
    let record = match &config.record {
        Some(directory) => directory.display().to_string(),
        None => "off (--record DIR)".into(),
    };
    let device = device_name(&config.model);
    println!(
        "umaserve {version} serves {model} ({file}, task {task}) on {workers} {device} worker{s}\n\
         \x20 viewers     ws://{address}/ws    status  http://{address}/serve/health\n\
         \x20 recording   {record}\n\
         \x20 limits      {sessions} sessions, {atoms} atoms and {edges} edges per session,\n\
         \x20             {mib} MiB per message, {unacked} unacknowledged frames,\n\
         \x20             {budget} edges per pass\n\
         \x20 stop        Ctrl-C",
        version = env!("CARGO_PKG_VERSION"),
        file = config.model.path.display(),
        s = if workers == 1 { "" } else { "s" },
        sessions = config.max_sessions,
        atoms = config.max_atoms,
        edges = config.max_edges,
        mib = config.max_message_bytes >> 20,
        unacked = config.max_unacked,
        budget = config.edge_budget,
    );
}

impl EngineSender for EngineHandle {
    fn try_send(&self, event: FromViewer) -> Result<(), TrySendError<FromViewer>> {
        // Never full: tickets bound what every viewer has under way.
        let event = match event {
            FromViewer::Connected { id, to_viewer } => Event::Connected { id, to_viewer },
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

/// Workers whose doings show in `/serve/health` and `/uma/stats`.
struct Observed<W> {
    workers: W,
    health: Arc<Health>,
    /// Workers that are not lost.
    left: usize,
}

impl<W: Workers> Workers for Observed<W> {
    fn devices(&self) -> &[String] {
        self.workers.devices()
    }

    fn send(&mut self, worker: usize, shard: Arc<Shard>) -> Result<(), SendError> {
        self.workers.send(worker, shard)
    }

    fn poll(&mut self) -> Option<WorkerEvent> {
        let event = self.workers.poll()?;
        match &event {
            WorkerEvent::Done { outcomes, .. } => self.health.count(outcomes.len() as u64),
            WorkerEvent::Hung { .. } => {}
            WorkerEvent::Unfit { .. } | WorkerEvent::Fit { .. } => {
                let fit = matches!(event, WorkerEvent::Fit { .. });
                self.health.update(|status| {
                    status.workers = match fit {
                        true => (status.workers + 1).min(self.left),
                        false => status.workers.saturating_sub(1),
                    };
                });
            }
            WorkerEvent::Lost { .. } => {
                self.left = self.left.saturating_sub(1);
                let left = self.left;
                self.health.update(|status| {
                    status.workers = left;
                    if left == 0 {
                        status.error = Some("all workers are lost".into());
                    }
                });
            }
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
