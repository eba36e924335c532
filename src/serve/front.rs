//! What rank 0 opens and runs: server, engine, recorder, states of sessions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TrySendError};

use super::door::{Directions, Door};
use super::observed::Observed;
use super::restored::{Restored, mend, restore};
use super::{Exit, default_task};
use crate::comm::{SessionId, Workers};
use crate::compute;
use crate::config::ServeConfig;
use crate::connection::Heartbeat;
use crate::engine::{
    Ending, Engine, EngineHandle, EngineSettings, Event, NoRecording, NoStore, RecordSink,
    RecordingNotice, StateStore, events,
};
use crate::metrics::Metrics;
use crate::potential::uma::Checkpoint;
use crate::recording::Recording;
use crate::resume::{ComputedBy, StateDirectory};
#[cfg(feature = "hdf5")]
use crate::server::RecordingInfo;
use crate::server::{
    EngineSender, FromViewer, Health, HealthStatus, Phase, RankStatus, Recordings, RunningServer,
    ServerSettings, StopReason,
};
use crate::session::{Owner, Session, SessionSettings};
use crate::trajectory::{Provenance, Recorder, RecorderSettings};
#[cfg(feature = "hdf5")]
use crate::trajectory::{Shelf, ShelfEntry};

/// What rank 0 opens before the ranks agree to start. The server answers from here on, and says
/// that it is not ready.
pub(super) struct Front {
    pub(super) engine: EngineHandle,
    heard: Receiver<Event>,
    recorder: Option<Recording>,
    store: Box<dyn StateStore>,
    /// Sessions of an earlier process.
    restored: Vec<(Session, Arc<Owner>)>,
    session: Arc<SessionSettings>,
    model: String,
    health: Arc<Health>,
    server: RunningServer,
    heartbeat: Option<Heartbeat>,
    directions: Directions,
}

impl Front {
    /// `workers` is how many ranks compute; 0 if this process does.
    pub(super) fn open(
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
            trained_on: trained_on(checkpoint),
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
        let owners = Arc::new(config.door.limits.owners());
        let restored: Vec<_> = restored
            .sessions
            .into_iter()
            .map(|(session, owner)| (session, owners.named(&owner)))
            .collect();
        let settings = ServerSettings {
            session: session.clone(),
            access: door.access.clone(),
            limits: config.door.limits.clone(),
            owners: Some(owners),
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
                .iter()
                .map(|(session, _)| session.id().0)
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
            restored,
            session,
            model,
            health,
            server,
            heartbeat,
            directions,
        })
    }

    /// Gives up before the first session: says so to those who ask, and ends.
    pub(super) fn fail(self, reason: String) -> Result<Exit, String> {
        self.health
            .update(|status| status.error = Some(reason.clone()));
        drop(self.heartbeat);
        // Whatever happens to the sockets now, the reason is the other one.
        let _ = self.server.stop();
        Err(reason)
    }

    /// Serves on this thread until a signal.
    pub(super) fn serve(
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
            status.ranks = ranks.clone();
            status.phase = Phase::Ready;
        });
        if let Some(heartbeat) = &self.heartbeat {
            heartbeat.renew();
        }
        let metrics = self.health.metrics();
        let on_gpus = ranks.iter().any(|rank| rank.device.starts_with("cuda"));
        let edge_budget = config.edges_per_pass(on_gpus);
        let settings = EngineSettings {
            session: self.session.clone(),
            max_sessions: config.max_sessions,
            edge_budget,
            metrics: metrics.clone(),
            shard_timeout: config.shard_timeout,
            restartable: config.resume.is_some(),
            ..EngineSettings::default()
        };
        print_start(
            config,
            &self.model,
            &self.session.default_task,
            &ranks,
            edge_budget,
            &self.directions,
        );
        let workers = Observed::new(workers, self.health.clone(), metrics, first_rank);
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

/// The elements that each task has seen, where the checkpoint tells.
fn trained_on(checkpoint: &Checkpoint) -> BTreeMap<String, BTreeSet<u8>> {
    let tasks = checkpoint.config.trained_elements().into_iter();
    let known = |z: usize| u8::try_from(z).ok();
    tasks
        .map(|(task, elements)| (task, elements.into_iter().filter_map(known).collect()))
        .filter(|(_, elements): &(_, BTreeSet<u8>)| !elements.is_empty())
        .collect()
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
    ranks: &[RankStatus],
    edge_budget: u64,
    directions: &Directions,
) {
    let record = match &config.record {
        Some(directory) => directory.display().to_string(),
        None => "off (--record DIR)".into(),
    };
    let device = compute::name(&config.model);
    // The first of several only serves.
    let workers = ranks.len().saturating_sub(1).max(1);
    let mut places = String::new();
    // One process needs no table.
    for rank in ranks.iter().filter(|_| ranks.len() > 1) {
        let RankStatus {
            rank, host, device, ..
        } = rank;
        places += &format!("\x20 rank {rank:<6} {host:<20} {device}\n");
    }
    let demo = match config.model.path {
        Some(_) => "",
        None => {
            "  demo        trained on GFN2-xTB, for molecules of H, C, N and O: chemistry that behaves,\n\
            \x20             without the accuracy and the reach of UMA (--model uma-s-1p2p1.pt)\n"
        }
    };
    let text = format!(
        "umaserve {version} serves {model} ({file}, task {task}) on {workers} {device} worker{s}\n{demo}\
         \x20 open        {page}\n\
         \x20 from afar   {tunnel}\n\
         \x20             then {through}\n\
         \x20 token       {token}\n\
         \x20 viewers     {viewers}    status  {status}\n\
         \x20 recording   {record}\n\
         {places}\
         \x20 limits      {sessions} sessions, {atoms} atoms and {edges} edges per session,\n\
         \x20             {mib} MiB per message, {unacked} unacknowledged frames,\n\
         \x20             {budget} edges per pass\n\
         \x20 stop        Ctrl-C\n",
        version = env!("CARGO_PKG_VERSION"),
        file = compute::checkpoint_name(config.model.path.as_deref()),
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
        budget = edge_budget,
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
