//! `umaserve serve`: puts engine, workers, server and recorder together, in one process or over
//! the ranks of an MPI job.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc::TrySendError;

use crate::comm::thread::ThreadWorkers;
use crate::comm::{SendError, Shard, WorkerEvent, Workers};
use crate::compute;
use crate::config::{ModelConfig, ServeConfig};
use crate::engine::{Engine, EngineHandle, EngineSettings, Event, NoRecording, RecordSink, events};
use crate::potential::Potential;
use crate::potential::uma::Checkpoint;
use crate::recording::Recording;
use crate::server::{
    EngineSender, FromViewer, Health, HealthStatus, RunningServer, ServerSettings,
};
use crate::session::SessionSettings;
use crate::trajectory::{Provenance, Recorder, RecorderSettings};
use crate::worker::thread_body;

/// How long a worker rank survives a signal without being dismissed by rank 0.
#[cfg(feature = "mpi")]
const GRACE: std::time::Duration = std::time::Duration::from_secs(30);

/// Serves until a signal, or computes until rank 0 dismisses this rank.
///
/// # Errors
/// Whatever prevents a start, in words for the user; empty where another rank says it.
pub fn run(config: &ServeConfig) -> Result<(), String> {
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
fn alone(config: &ServeConfig) -> Result<(), String> {
    let checkpoint = open(&config.model)?;
    let potential = potential(&config.model, &checkpoint)?;
    let front = Front::open(config, &checkpoint)?;
    let (engine, heard) = events();
    let device = compute::name(&config.model);
    log_worker(&config.model);
    let body = thread_body(potential, config.max_edges);
    let workers = ThreadWorkers::start(vec![device], engine.waker(), body)
        .map_err(|error| format!("cannot start the worker thread: {error}"))?;
    front.serve(config, engine, heard, workers)
}

/// The ranks of an MPI job; one rank alone serves as if there were no MPI.
#[cfg(feature = "mpi")]
fn ranks(config: &ServeConfig) -> Result<(), String> {
    use crate::comm::mpi as cluster;
    use cluster::{Identity, Ranks};

    let ranks = Ranks::join()?;
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
            _ => compute::name(&config.model),
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
        return front.serve(config, engine, heard, ranks.workers(&identities));
    }
    let prepared = crate::server::outlive_signals(GRACE)
        .map_err(|error| format!("cannot watch for signals: {error}"))
        .and_then(|()| open(&config.model))
        .and_then(|checkpoint| {
            Ok((
                potential(&config.model, &checkpoint)?,
                identity(&checkpoint),
            ))
        });
    let (potential, mine) = match prepared {
        Ok((potential, mine)) => (Some(potential), Ok(mine)),
        Err(reason) => (None, Err(reason)),
    };
    // Rank 0 prints what is wrong.
    ranks.agree(mine).map_err(|_| String::new())?;
    let Some(potential) = potential else {
        return Err(String::new());
    };
    log_worker(&config.model);
    let mut link = ranks.link();
    crate::worker::serve(&mut link, &*potential, config.max_edges);
    link.leave("dismissed");
    Ok(())
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

/// What rank 0 opens before the ranks agree to start.
struct Front {
    listener: TcpListener,
    recorder: Option<Recording>,
    session: Arc<SessionSettings>,
    model: String,
}

impl Front {
    fn open(config: &ServeConfig, checkpoint: &Checkpoint) -> Result<Front, String> {
        let task = default_task(config.model.task.as_deref(), checkpoint)?;
        let listener = TcpListener::bind(&config.bind[..])
            .map_err(|error| cannot_listen(&config.bind, &error))?;
        let recorder = match &config.record {
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
            seed: config.seed,
            ..SessionSettings::default()
        });
        Ok(Front {
            listener,
            recorder,
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
    ) -> Result<(), String> {
        let count = workers.devices().len();
        let health = Arc::new(Health::new(HealthStatus {
            model: self.model.clone(),
            task: self.session.default_task.clone(),
            cuda: compute::on_cuda(&config.model),
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
            move || {
                stop.tell(Event::ShutDown);
            },
        )
        .map_err(|error| format!("cannot start the server: {error}"))?;
        let settings = EngineSettings {
            session: self.session.clone(),
            max_sessions: config.max_sessions,
            edge_budget: config.edge_budget,
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
        Engine::new(settings, heard, workers, recorder).run();
        server
            .stop()
            .map_err(|error| format!("the server has failed: {error}"))
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
        precision: compute::precision(&config.model).to_string(),
        device: compute::name(&config.model),
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
    let device = compute::name(&config.model);
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
                id: crate::comm::SessionId(0),
                place: crate::session::Ticket::default(),
            })),
        }
    }
}

impl RecordSink for Box<dyn RecordSink> {
    fn record(&mut self, session: crate::comm::SessionId, record: crate::session::Record) {
        (**self).record(session, record);
    }

    fn close(&mut self, session: crate::comm::SessionId) {
        (**self).close(session);
    }

    fn finish(&mut self) {
        (**self).finish();
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

    fn shut_down(&mut self) {
        self.workers.shut_down();
    }
}
