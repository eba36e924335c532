//! Checked settings, from the command line and the environment.
//!
//! This is the only module that reads environment variables. Whatever is wrong with a setting is
//! said here, by name and with its limit, before anything starts.

mod command_line;
mod door;

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::backend::cuda::images;
use crate::cli::{
    Device, LogFormat, ModelOptions, Precision, PredictArgs, SelfcheckArgs, ServeArgs,
};
use crate::server::Token;
use crate::worker::fault::Fault;

pub use command_line::{Typed, command_line, variable};
pub use door::{Address, DoorConfig, TokenSource, interface_addresses, read_tokens};

/// Whether this build can evaluate on CUDA devices, and if not, why.
pub const CUDA: Result<(), &str> = images::available();

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A number outside its limits.
    #[error("{name} is {value}; it may be {least} to {most}")]
    Range {
        /// The option.
        name: &'static str,
        /// What was given.
        value: u64,
        /// The least.
        least: u64,
        /// The most.
        most: u64,
    },
    /// Anything else, in words.
    #[error("{0}")]
    Invalid(String),
}

/// What the environment says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// `MLIPVIEW_FORCE_CPU`: never use CUDA.
    pub force_cpu: bool,
    /// `UMA_MODEL`: a checkpoint file, or the name of one in `models/`.
    pub model: Option<String>,
    /// `UMA_TASK`: UMA task of structures that name none.
    pub task: Option<String>,
    /// `WS_DEBUG`: log every message of every viewer.
    pub log_messages: bool,
    /// `WS_LOG_CALLS`: log every evaluation.
    pub log_calls: bool,
    /// `UMA_GEOM_DEBUG`: log every geometry that is evaluated.
    pub log_geometries: bool,
    /// `RUST_LOG`: log levels.
    pub log_filter: Option<String>,
    /// Whether an MPI launcher (mpirun, srun) has started this process.
    pub launched_by_mpi: bool,
    /// Ranks on this host, where the launcher says so.
    pub ranks_on_host: Option<usize>,
    /// `UMASERVE_INJECT_FAULT`: a fault on purpose, for tests; see [`Fault`].
    pub fault: Option<String>,
    /// `UMASERVE_EMULATE_DEVICES`: devices that this host is to seem to have, by name; for tests.
    pub emulated_devices: Vec<String>,
    /// `UMASERVE_RANKS`: ranks that were started together; set by `slurm/serve.sh`.
    pub expected_ranks: Option<usize>,
    /// Place of this rank among those of the host that compute.
    pub local_index: usize,
    /// Place of the running program, to find what is shipped beside it.
    pub program: Option<PathBuf>,
    /// `SLURM_CPUS_PER_TASK`: CPUs that Slurm has given to this rank.
    pub cpus_per_task: Option<usize>,
    /// `UMASERVE_TOKEN`: the token, or what is wrong with it.
    pub token: Option<Result<Token, String>>,
    /// `SLURM_JOB_ID`: number of the job.
    pub job_id: Option<String>,
    /// `SLURM_SUBMIT_HOST`: from where the job was submitted.
    pub submit_host: Option<String>,
    /// `USER`: whose processes these are.
    pub user: Option<String>,
    /// `SLURM_RESTART_COUNT` and `UMASERVE_RESTARTS`: how often the job or its ranks were started
    /// again.
    pub restarts: u64,
}

impl Environment {
    /// Reads the environment of this process.
    pub fn read() -> Environment {
        Environment {
            program: std::env::current_exe().ok(),
            ..Environment::from(|name| std::env::var(name).ok())
        }
    }

    /// The environment that `variable` tells.
    pub fn from(variable: impl Fn(&str) -> Option<String>) -> Environment {
        let text = |name| variable(name).filter(|value| !value.trim().is_empty());
        let flag = |name| {
            text(name).is_some_and(|value| {
                let value = value.trim().to_ascii_lowercase();
                matches!(value.as_str(), "1" | "true" | "yes" | "on")
            })
        };
        // Open MPI, PMIx and PMI (MPICH, Intel MPI, Slurm).
        let launched = ["OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE"];
        let number = |name| text(name)?.trim().parse::<usize>().ok();
        let local = ["OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"];
        // Not SLURM_NTASKS_PER_NODE: that is what the job asked for, not what this step has.
        let local_of_step =
            || tasks_on_node(&text("SLURM_STEP_TASKS_PER_NODE")?, number("SLURM_NODEID")?);
        Environment {
            force_cpu: flag("MLIPVIEW_FORCE_CPU"),
            model: text("UMA_MODEL"),
            task: text("UMA_TASK"),
            log_messages: flag("WS_DEBUG"),
            log_calls: flag("WS_LOG_CALLS"),
            log_geometries: flag("UMA_GEOM_DEBUG"),
            log_filter: text("RUST_LOG"),
            launched_by_mpi: launched.into_iter().any(|name| text(name).is_some()),
            ranks_on_host: local.into_iter().find_map(number).or_else(local_of_step),
            expected_ranks: number("UMASERVE_RANKS"),
            local_index: local_index(|name| text(name)?.trim().parse().ok()),
            fault: text("UMASERVE_INJECT_FAULT"),
            emulated_devices: text("UMASERVE_EMULATE_DEVICES")
                .map(|names| {
                    names
                        .split(',')
                        .map(|name| name.trim().to_owned())
                        .collect()
                })
                .unwrap_or_default(),
            program: None,
            cpus_per_task: text("SLURM_CPUS_PER_TASK").and_then(|n| n.trim().parse().ok()),
            token: text("UMASERVE_TOKEN").map(|token| Token::new(token.trim())),
            job_id: text("SLURM_JOB_ID"),
            submit_host: text("SLURM_SUBMIT_HOST"),
            user: text("USER").or_else(|| text("LOGNAME")),
            restarts: ["SLURM_RESTART_COUNT", "UMASERVE_RESTARTS"]
                .into_iter()
                .filter_map(|name| text(name)?.trim().parse::<u64>().ok())
                .sum(),
        }
    }

    /// Log levels in the syntax of `RUST_LOG`.
    pub fn log_directives(&self) -> String {
        let mut directives = self.log_filter.clone().unwrap_or_else(|| "info".into());
        for (wanted, more) in [
            (
                self.log_messages,
                "umaserve::session=debug,umaserve::server=debug",
            ),
            (
                self.log_calls,
                "umaserve::engine=debug,umaserve::worker=debug",
            ),
            (self.log_geometries, "umaserve::geometry=trace"),
        ] {
            if wanted {
                directives = format!("{directives},{more}");
            }
        }
        directives
    }
}

/// The entry of node number `node` in Slurm's list of tasks per node, such as `3,2(x3)`.
fn tasks_on_node(list: &str, node: usize) -> Option<usize> {
    let mut before = 0;
    for part in list.split(',') {
        let (tasks, nodes) = match part.split_once("(x") {
            Some((tasks, times)) => (tasks, times.strip_suffix(')')?.parse::<usize>().ok()?),
            None => (part, 1),
        };
        before += nodes;
        if node < before {
            return tasks.trim().parse().ok();
        }
    }
    None
}

/// The checkpoint and where it is evaluated, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The checkpoint, which exists; none: the demo model that is part of the program.
    pub path: Option<PathBuf>,
    /// Where the network is evaluated. `Auto` only where this build could use a GPU.
    pub device: Device,
    /// Place of this process among those of its host that compute, where a launcher says so: which
    /// GPU it takes.
    pub local_index: usize,
    /// Devices that this process is to seem to have; what runs on them is emulated by the CPU.
    pub emulated_devices: Vec<String>,
    /// Whether CUDA was forbidden by the environment.
    pub force_cpu: bool,
    /// Number type of the network, if the user says.
    pub precision: Option<Precision>,
    /// Task of structures that name none, if the user says.
    pub task: Option<String>,
    /// Most working memory for one evaluation, bytes, if the user says.
    pub memory_bytes: Option<usize>,
    /// Threads that compute in this process: its CPUs.
    pub threads: usize,
}

/// Settings of `umaserve serve`, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct ServeConfig {
    /// The checkpoint and where it is evaluated.
    pub model: ModelConfig,
    /// Where to listen, who may come in, how much they may ask for.
    pub door: DoorConfig,
    /// Where to record.
    pub record: Option<PathBuf>,
    /// Where states of sessions are kept and found.
    pub resume: Option<PathBuf>,
    /// How long a session waits for its viewer.
    pub reconnect: Duration,
    /// Longest time between two saved states of a session.
    pub checkpoint_interval: Duration,
    /// Silence after which a rank counts as hung.
    pub rank_timeout: Duration,
    /// Time for one pass after which a worker counts as hung.
    pub shard_timeout: Duration,
    /// A fault on purpose.
    pub fault: Option<Fault>,
    /// Atoms of a session.
    pub max_atoms: usize,
    /// Directed edges of a session.
    pub max_edges: usize,
    /// Sessions at a time.
    pub max_sessions: usize,
    /// Bytes of a message from a viewer.
    pub max_message_bytes: usize,
    /// Least time between two frames.
    pub frame_interval: Duration,
    /// Unacknowledged frames before a simulation waits.
    pub max_unacked: u64,
    /// Whether the end of a wait is announced.
    pub ack_cleared: bool,
    /// Edges in one pass, if the user says.
    pub edge_budget: Option<u64>,
    /// Seed of the sessions' seeds.
    pub seed: u64,
    /// Whether this process is a rank of an MPI job.
    pub launched_by_mpi: bool,
    /// Ranks that the job has to have.
    pub expected_ranks: Option<usize>,
    /// Place of the running program.
    pub program: Option<PathBuf>,
}

impl ServeConfig {
    /// Edges in one pass, where the workers compute on GPUs or do not.
    pub fn edges_per_pass(&self, on_gpus: bool) -> u64 {
        self.edge_budget.unwrap_or(match on_gpus {
            true => 200_000,
            false => 5_000,
        })
    }
}

/// Settings of `umaserve predict`, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct PredictConfig {
    /// The checkpoint and where it is evaluated.
    pub model: ModelConfig,
    /// File to read.
    pub input: PathBuf,
    /// File to write.
    pub output: PathBuf,
}

/// How to log, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Levels in the syntax of `RUST_LOG`.
    pub directives: String,
    /// How lines look.
    pub format: LogFormat,
}

/// Checks the options of `umaserve serve`.
pub fn serve(args: &ServeArgs, environment: &Environment) -> Result<ServeConfig, ConfigError> {
    let mib = |name, value, most| Ok::<_, ConfigError>(usize_in(name, value, 1..=most)? << 20);
    let model = model(&args.model, environment)?;
    let budget = |edges| in_range("--edge-budget", edges, 1..=2_000_000_000);
    Ok(ServeConfig {
        model,
        door: door::check(args, environment)?,
        record: args.record.clone(),
        resume: args.resume.clone(),
        reconnect: Duration::from_secs(in_range(
            "--reconnect-seconds",
            args.reconnect_seconds,
            0..=30 * 86_400,
        )?),
        checkpoint_interval: seconds(
            "--checkpoint-seconds",
            args.checkpoint_seconds,
            0.01,
            3600.0,
        )?,
        rank_timeout: seconds("--rank-timeout", args.rank_timeout, 0.5, 86_400.0)?,
        shard_timeout: seconds("--shard-timeout", args.shard_timeout, 0.5, 30.0 * 86_400.0)?,
        fault: environment.fault.as_deref().map(fault).transpose()?,
        max_atoms: usize_in("--max-atoms", args.max_atoms, 1..=10_000_000)?,
        max_edges: usize_in("--max-edges", args.max_edges, 1..=2_000_000_000)?,
        max_sessions: usize_in("--max-sessions", args.max_sessions, 1..=100_000)?,
        max_message_bytes: mib("--max-message-mib", args.max_message_mib, 1024)?,
        frame_interval: Duration::from_millis(in_range(
            "--frame-interval-ms",
            args.frame_interval_ms,
            0..=60_000,
        )?),
        max_unacked: in_range("--max-unacked", args.max_unacked, 1..=1_000_000)?,
        ack_cleared: args.ack_cleared,
        edge_budget: args.edge_budget.map(budget).transpose()?,
        seed: args.seed,
        launched_by_mpi: environment.launched_by_mpi,
        expected_ranks: environment.expected_ranks,
        program: environment.program.clone(),
    })
}

/// Checks the options of `umaserve predict`.
pub fn predict(
    args: &PredictArgs,
    environment: &Environment,
) -> Result<PredictConfig, ConfigError> {
    Ok(PredictConfig {
        model: model(&args.model, environment)?,
        input: args.input.clone(),
        output: args.output.clone(),
    })
}

/// Settings of `umaserve selfcheck`, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct SelfcheckConfig {
    /// The checkpoint and where it is evaluated.
    pub model: ModelConfig,
    /// Whether to try every (lmax, mmax) that there are kernels for.
    pub all: bool,
    /// Whether one small network is enough.
    pub quick: bool,
    /// Whether to run the CUDA kernels on the host.
    pub emulated: bool,
}

/// Checks the options of `umaserve selfcheck`.
pub fn selfcheck(
    args: &SelfcheckArgs,
    environment: &Environment,
) -> Result<SelfcheckConfig, ConfigError> {
    #[cfg(feature = "host-kernels")]
    let emulated = args.emulated;
    #[cfg(not(feature = "host-kernels"))]
    let emulated = false;
    let precision = args.model.precision;
    let model = if emulated {
        // What the kernels compute in does not depend on what runs them.
        let options = ModelOptions {
            device: Device::Cpu,
            precision: None,
            ..args.model.clone()
        };
        ModelConfig {
            precision,
            ..model(&options, environment)?
        }
    } else {
        model(&args.model, environment)?
    };
    Ok(SelfcheckConfig {
        model,
        all: args.all,
        quick: args.quick,
        emulated,
    })
}

/// How to log.
pub fn log(format: LogFormat, environment: &Environment) -> LogConfig {
    LogConfig {
        directives: environment.log_directives(),
        format,
    }
}

fn model(options: &ModelOptions, environment: &Environment) -> Result<ModelConfig, ConfigError> {
    let threads = match options.cpus {
        Some(cpus) => usize_in("--cpus", cpus, 1..=4096)?,
        None => cpus(environment),
    };
    Ok(ModelConfig {
        path: model_path(options.model.as_deref(), environment)?,
        device: device(options.device, environment, options.precision)?,
        local_index: environment.local_index,
        emulated_devices: environment.emulated_devices.clone(),
        force_cpu: environment.force_cpu,
        precision: options.precision,
        task: options.task.clone().or_else(|| environment.task.clone()),
        memory_bytes: match options.memory_mib {
            Some(mib) => Some(usize_in("--memory-mib", mib, 16..=1 << 30)? << 20),
            None => None,
        },
        threads,
    })
}

fn device(
    wanted: Device,
    environment: &Environment,
    precision: Option<Precision>,
) -> Result<Device, ConfigError> {
    let force_cpu = environment.force_cpu;
    let cuda = match environment.emulated_devices.is_empty() {
        true => CUDA,
        false => Ok(()),
    };
    let invalid = |reason: String| Err(ConfigError::Invalid(reason));
    let only_gpu = matches!(precision, Some(Precision::Tf32 | Precision::F16));
    match wanted {
        Device::Cuda if force_cpu => {
            invalid("--device cuda contradicts MLIPVIEW_FORCE_CPU in the environment".into())
        }
        Device::Cuda if precision == Some(Precision::F64) => {
            invalid("--precision f64 is computed on the CPU only; use --device cpu".into())
        }
        Device::Cuda => match cuda {
            Ok(()) => Ok(Device::Cuda),
            Err(reason) => invalid(format!("--device cuda: {reason}")),
        },
        Device::Auto if !force_cpu && cuda.is_ok() && precision != Some(Precision::F64) => {
            Ok(Device::Auto)
        }
        Device::Auto | Device::Cpu if only_gpu => {
            invalid("--precision tf32 and f16 need a GPU; the CPU computes in f32 or f64".into())
        }
        Device::Auto | Device::Cpu => Ok(Device::Cpu),
    }
}

/// Place among the processes of this host that compute. The first process of a job only serves: a
/// process whose number in the job is also its number on the host shares that host.
fn local_index(variable: impl Fn(&'static str) -> Option<usize>) -> usize {
    let pairs = [
        ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_RANK"),
        ("MPI_LOCALRANKID", "PMI_RANK"),
        ("SLURM_LOCALID", "SLURM_PROCID"),
    ];
    let found = pairs
        .into_iter()
        .find_map(|(local, global)| Some((variable(local)?, variable(global)?)));
    match found {
        Some((local, global)) if local == global => local.saturating_sub(1),
        Some((local, _)) => local,
        None => 0,
    }
}

/// The file named on the command line, else by `UMA_MODEL`; none: the demo model. A bare name is
/// looked for in `models/` here and above the program.
fn model_path(
    option: Option<&Path>,
    environment: &Environment,
) -> Result<Option<PathBuf>, ConfigError> {
    let (said_by, tried) = match (option, &environment.model) {
        (Some(path), _) => ("--model", vec![path.to_owned()]),
        (None, Some(name)) => {
            let named = PathBuf::from("models").join(format!("{name}.pt"));
            let mut tried = vec![PathBuf::from(name)];
            tried.extend(places(&named, environment));
            ("UMA_MODEL", tried)
        }
        (None, None) => return Ok(None),
    };
    match tried.iter().find(|path| path.is_file()) {
        Some(path) => Ok(Some(path.clone())),
        None => {
            let tried: Vec<String> = tried.iter().map(|p| p.display().to_string()).collect();
            let reason = format!("{said_by}: there is no file {}", tried.join(" nor "));
            Err(ConfigError::Invalid(reason))
        }
    }
}

/// `relative` here, and below the directories above the program.
fn places(relative: &Path, environment: &Environment) -> Vec<PathBuf> {
    let above = environment
        .program
        .iter()
        .flat_map(|p| p.ancestors().skip(1).take(4));
    std::iter::once(relative.to_owned())
        .chain(above.map(|directory| directory.join(relative)))
        .collect()
}

/// CPUs of this process. What the process may use (affinity, cgroup quota) bounds what Slurm says
/// it has been given; where nobody says, the computing ranks of a host share its CPUs.
fn cpus(environment: &Environment) -> usize {
    let usable = std::thread::available_parallelism().map_or(1, usize::from);
    match environment.cpus_per_task {
        Some(given) => given.clamp(1, usable),
        // Rank 0 computes nothing, so its share goes to the others.
        None => {
            let computing = environment
                .ranks_on_host
                .map_or(1, |ranks| ranks.saturating_sub(1).max(1));
            (usable / computing).max(1)
        }
    }
}

/// Name of this host.
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    name.or_else(|| std::env::var("HOSTNAME").ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".into())
}

fn fault(text: &str) -> Result<Fault, ConfigError> {
    text.parse()
        .map_err(|reason| ConfigError::Invalid(format!("UMASERVE_INJECT_FAULT: {reason}")))
}

fn seconds(name: &str, value: f64, least: f64, most: f64) -> Result<Duration, ConfigError> {
    match (least..=most).contains(&value) {
        true => Ok(Duration::from_secs_f64(value)),
        false => Err(ConfigError::Invalid(format!(
            "{name} is {value}; it may be {least} to {most} seconds"
        ))),
    }
}

fn in_range(
    name: &'static str,
    value: u64,
    limits: RangeInclusive<u64>,
) -> Result<u64, ConfigError> {
    match limits.contains(&value) {
        true => Ok(value),
        false => Err(ConfigError::Range {
            name,
            value,
            least: *limits.start(),
            most: *limits.end(),
        }),
    }
}

fn usize_in(
    name: &'static str,
    value: usize,
    limits: RangeInclusive<usize>,
) -> Result<usize, ConfigError> {
    let limits = *limits.start() as u64..=*limits.end() as u64;
    in_range(name, value as u64, limits).map(|value| value as usize)
}

#[cfg(test)]
pub(super) mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    pub(super) fn serve_with(
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<ServeConfig, String> {
        let all = ["umaserve", "serve"].iter().chain(arguments);
        let Command::Serve(args) = Cli::try_parse_from(all).unwrap().command else {
            panic!("not serve");
        };
        let environment = Environment::from(|name| {
            let entry = environment.iter().find(|(n, _)| *n == name);
            entry.map(|(_, value)| (*value).to_owned())
        });
        serve(&args, &environment).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_those_of_the_protocol() {
        let config = serve_with(&[], &[]).unwrap();
        assert_eq!(config.record, None);
        assert_eq!(config.max_atoms, 20_000);
        assert_eq!(config.max_unacked, 10);
        assert_eq!(config.max_message_bytes, 16 << 20);
        assert_eq!(config.frame_interval, Duration::from_millis(15));
        assert_ne!(config.model.device, Device::Cuda);
        assert!(!config.ack_cleared && !config.launched_by_mpi);
    }

    #[test]
    fn cuda_is_refused_with_the_reason_and_auto_is_content_without() {
        match CUDA {
            Ok(()) => {
                let config = serve_with(&["--device", "cuda"], &[]).unwrap();
                assert_eq!(config.model.device, Device::Cuda);
                assert_eq!(serve_with(&[], &[]).unwrap().model.device, Device::Auto);
            }
            Err(_) => {
                let error = serve_with(&["--device", "cuda"], &[]).unwrap_err();
                assert!(error.contains("no CUDA kernels"), "{error}");
            }
        }
        let error = serve_with(&["--device", "cuda", "--precision", "f64"], &[]).unwrap_err();
        assert!(error.contains("--device cpu"), "{error}");
        for precision in ["tf32", "f16"] {
            let error = serve_with(&["--device", "cpu", "--precision", precision], &[]);
            let error = error.unwrap_err();
            assert!(error.contains("f32 or f64"), "{error}");
        }
        let config = serve_with(&["--precision", "f64"], &[]).unwrap();
        assert_eq!(config.model.device, Device::Cpu);
        let forced = [("MLIPVIEW_FORCE_CPU", "yes")];
        let error = serve_with(&["--device", "cuda"], &forced).unwrap_err();
        assert!(error.contains("MLIPVIEW_FORCE_CPU"), "{error}");
        let config = serve_with(&["--device", "auto"], &forced).unwrap();
        assert_eq!(
            (config.model.device, config.model.force_cpu),
            (Device::Cpu, true)
        );
        let config = serve_with(&[], &[("MLIPVIEW_FORCE_CPU", "0")]).unwrap();
        assert!(!config.model.force_cpu);
    }

    #[test]
    fn numbers_outside_their_limits_are_refused_by_name() {
        for option in [
            "--max-atoms",
            "--max-edges",
            "--max-sessions",
            "--max-message-mib",
            "--max-unacked",
            "--edge-budget",
            "--cpus",
            "--max-sessions-per-token",
            "--max-total-atoms",
            "--max-atoms-per-token",
            "--max-message-rate",
            "--max-message-rate-per-token",
            "--max-total-message-rate",
            "--max-request-rate",
            "--max-connections",
            "--handshake-timeout-s",
        ] {
            let error = serve_with(&[option, "0"], &[]).unwrap_err();
            assert!(
                error.starts_with(&format!("{option} is 0; it may be 1 to")),
                "{error}"
            );
        }
        let error = serve_with(&["--frame-interval-ms", "70000"], &[]).unwrap_err();
        assert!(error.contains("0 to 60000"), "{error}");
    }

    #[test]
    fn the_command_line_wins_over_the_environment() {
        let environment = [("UMA_TASK", "omat"), ("UMA_MODEL", "no-such-model")];
        let error = serve_with(&[], &environment).unwrap_err();
        assert!(error.contains("UMA_MODEL"), "{error}");
        assert!(error.contains("models/no-such-model.pt"), "{error}");
        let config = serve_with(&["--model", "Cargo.toml"], &environment).unwrap();
        assert_eq!(config.model.path.as_deref(), Some(Path::new("Cargo.toml")));
        assert_eq!(serve_with(&[], &[]).unwrap().model.path, None);
        assert_eq!(config.model.task.as_deref(), Some("omat"));
        let config = serve_with(&["--model", "Cargo.toml", "--task", "omol"], &environment);
        assert_eq!(config.unwrap().model.task.as_deref(), Some("omol"));
        assert!(
            serve_with(&["--model", "no/such.pt"], &[])
                .unwrap_err()
                .contains("no/such.pt")
        );
    }

    #[test]
    fn ranks_of_one_host_share_its_cores() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let ranks = [
            ("OMPI_COMM_WORLD_SIZE", "3"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "3"),
        ];
        let config = serve_with(&[], &ranks).unwrap();
        assert!(config.launched_by_mpi);
        assert_eq!(config.model.threads, (cores / 2).max(1));
        assert_eq!(serve_with(&[], &[]).unwrap().model.threads, cores);
        // What Slurm has given to a rank is not shared again.
        let slurm = [&ranks[..], &[("SLURM_CPUS_PER_TASK", "1")]].concat();
        assert_eq!(serve_with(&[], &slurm).unwrap().model.threads, 1);
        let slurm = [&ranks[..], &[("SLURM_CPUS_PER_TASK", "4096")]].concat();
        assert_eq!(serve_with(&[], &slurm).unwrap().model.threads, cores);
        for name in ["--cpus", "--threads"] {
            let config = serve_with(&[name, "3"], &slurm).unwrap();
            assert_eq!(config.model.threads, 3);
        }
    }

    #[test]
    fn slurm_says_how_many_ranks_a_node_has() {
        let here = |node: &'static str| {
            Environment::from(|name| match name {
                "PMIX_RANK" => Some("1".into()),
                "SLURM_NODEID" => Some(node.into()),
                "SLURM_STEP_TASKS_PER_NODE" => Some("3,2(x2)".into()),
                "SLURM_NTASKS_PER_NODE" => Some("9".into()),
                "UMASERVE_RANKS" => Some("7".into()),
                _ => None,
            })
        };
        let ranks = ["0", "1", "2", "3"].map(|node| here(node).ranks_on_host);
        assert_eq!(ranks, [Some(3), Some(2), Some(2), None]);
        assert_eq!(here("0").expected_ranks, Some(7));
    }

    #[test]
    fn ranks_of_one_host_take_devices_in_order() {
        let index = |local: &str, global: &str| {
            let names = ["OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_RANK"];
            let pairs = [(names[0], local), (names[1], global)];
            serve_with(&[], &pairs).unwrap().model.local_index
        };
        // Four ranks a host; rank 0 only serves.
        assert_eq!(
            [index("1", "1"), index("2", "2"), index("3", "3")],
            [0, 1, 2]
        );
        assert_eq!([index("0", "4"), index("3", "7")], [0, 3]);
        assert_eq!(serve_with(&[], &[]).unwrap().model.local_index, 0);
    }

    #[test]
    fn debug_flags_become_log_levels() {
        let environment = Environment::from(|name| match name {
            "WS_DEBUG" | "UMA_GEOM_DEBUG" => Some("1".into()),
            "RUST_LOG" => Some("warn".into()),
            _ => None,
        });
        let directives = environment.log_directives();
        assert!(directives.starts_with("warn,"), "{directives}");
        assert!(
            directives.contains("umaserve::session=debug"),
            "{directives}"
        );
        assert!(
            directives.contains("umaserve::geometry=trace"),
            "{directives}"
        );
        assert!(!directives.contains("engine=debug"), "{directives}");
        assert_eq!(Environment::default().log_directives(), "info");
    }
}
