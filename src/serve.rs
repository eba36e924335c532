//! `umaserve serve`: puts engine, workers, server and recorder together, in one process or over
//! the ranks of an MPI job.

mod door;
mod front;
mod observed;
mod restored;

use std::sync::Arc;

use crate::cli::Device;
#[cfg(feature = "mpi")]
use crate::comm::mpi::{Identity, Ranks};
use crate::comm::thread::ThreadWorkers;
use crate::compute;
use crate::config::{ModelConfig, ServeConfig, host_name};
use crate::placement::{self, Place, Seat, Wanted};
use crate::potential::Potential;
use crate::potential::uma::Checkpoint;
use crate::server::RankStatus;
use crate::system::System;
use crate::worker::{PotentialSource, reviving_thread_body};
use front::Front;

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
/// Whatever prevents a start, in words for the user; empty where it is said already, here or by
/// another rank.
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
    let (place, config) = &placed(
        0,
        vec![Seat {
            rank: 0,
            host: host_name(),
            computes: true,
            visible: compute::visible(&config.model),
        }],
        config,
    )?;
    let checkpoint = compute::open_checkpoint(config.model.path.as_deref())?;
    let front = Front::open(config, &checkpoint, 0)?;
    let started = source(config, &checkpoint, 0, place).and_then(|source| {
        let potential = (source.create)()?;
        log_worker(&config.model);
        let body = reviving_thread_body(potential, source, config.max_edges);
        let device = device_of(place);
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

/// The place of `rank` among all ranks, and the configuration with the kind of device that they
/// all have come to.
fn placed(
    rank: usize,
    seats: Vec<Seat>,
    config: &ServeConfig,
) -> Result<(Place, ServeConfig), String> {
    let wanted = match config.model.device {
        Device::Cpu => Wanted::Cpu,
        Device::Auto => Wanted::Auto,
        Device::Cuda => Wanted::Devices,
    };
    let places = placement::assign(&seats, wanted).map_err(|mismatch| {
        // Whether this process can use a GPU at all comes first.
        match compute::why_none_visible(&config.model) {
            Some(reason) if seats.len() == 1 => format!("--device cuda: {reason}"),
            Some(reason) => format!("{mismatch}\n(here: {reason})"),
            None => mismatch.to_string(),
        }
    })?;
    let on_devices = places.iter().any(|p| matches!(p, Place::Device { .. }));
    if !on_devices && let Some(reason) = compute::fallback(&config.model) {
        tracing::info!("{reason}");
    }
    let model = compute::settled(&config.model, on_devices)?;
    let config = ServeConfig {
        model,
        ..config.clone()
    };
    Ok((places.into_iter().nth(rank).unwrap_or(Place::None), config))
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
    place: &Place,
) -> Result<PotentialSource, String> {
    let (model, checkpoint) = (config.model.clone(), checkpoint.clone());
    let place = match *place {
        Place::Device { index, .. } => compute::Place::Cuda(index),
        Place::None | Place::Cpu => compute::Place::Cpu,
    };
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
        let potential = compute::open(&model, &checkpoint, place)?.potential;
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

/// Says why this process ends.
pub fn say(reason: &str) {
    if !reason.is_empty() {
        // In one piece: under mpirun the ranks' lines meet on one terminal.
        let message = format!("umaserve: {}\n", reason.trim_end());
        eprint!("{message}");
    }
}

/// The ranks of an MPI job; one rank alone serves as if there were no MPI.
#[cfg(feature = "mpi")]
fn ranks(config: &ServeConfig) -> Result<Exit, String> {
    let ranks = Ranks::join()?;
    // Said before MPI is finalized: afterwards the others end, and the launcher kills this one.
    take_part(&ranks, config).map_err(|reason| {
        say(&reason);
        String::new()
    })
}

/// What this rank does in the job.
#[cfg(feature = "mpi")]
fn take_part(ranks: &Ranks, config: &ServeConfig) -> Result<Exit, String> {
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
        visible: compute::visible(&config.model),
    })?;
    // All come to the same answer; one says it.
    let (place, config) = &placed(rank, seats, config)
        .map_err(|reason| if rank == 0 { reason } else { String::new() })?;
    let identity = |checkpoint: &Checkpoint| Identity {
        host: Ranks::host(),
        build: build_hash(config),
        checkpoint: checkpoint.digest.to_string(),
        device: device_of(place),
    };
    if rank == 0 {
        // Everything that can fail is tried before the others are told to go on.
        let prepared =
            compute::open_checkpoint(config.model.path.as_deref()).and_then(|checkpoint| {
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
        .and_then(|()| compute::open_checkpoint(config.model.path.as_deref()))
        .and_then(|checkpoint| {
            let source = source(config, &checkpoint, rank - 1, place)?;
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
