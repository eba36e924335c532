//! The command line as it is typed. `config` turns it into checked settings.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Run, watch and steer simulations with UMA, Meta's machine-learned interatomic potential.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve simulations to viewers over WebSocket; under mpirun or srun, ranks 1.. compute
    Serve(Box<ServeArgs>),
    /// How to reach a running server: the tunnel, the address, the token
    Connect(ConnectArgs),
    /// How a running server is: ranks, devices, sessions, queue, steps per second
    Status(StatusArgs),
    /// Start a server again when it fails, and pass signals on to it
    Supervise(SuperviseArgs),
    /// Energies, forces and stresses of the structures of an extended XYZ file
    Predict(PredictArgs),
    /// Say what a checkpoint is: name, sizes, tasks, elements, memory
    Model(ModelArgs),
    /// Compare every operation and a whole model on a device with double precision on the CPU
    Selfcheck(SelfcheckArgs),
    /// Look at, convert and mend recorded trajectories
    #[command(subcommand)]
    Trajectory(TrajectoryCommand),
}

/// Where the network is evaluated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// CUDA where there is a device, else the CPU
    #[default]
    Auto,
    /// The CPU
    Cpu,
    /// A CUDA device, or an error
    Cuda,
}

/// Number type of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// Single precision
    F32,
    /// On a GPU: products of numbers with the mantissa of tf32, sums and everything else in single precision
    Tf32,
    /// On a GPU: products and values of edges in half precision, everything else in single precision
    F16,
    /// Double precision, on the CPU
    F64,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    #[default]
    Text,
    /// One JSON object per line
    Json,
}

/// The checkpoint and where it is evaluated.
#[derive(Clone, Debug, Args)]
pub struct ModelOptions {
    /// UMA checkpoint (.pt)
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Where the network is evaluated
    #[arg(long, value_enum, default_value_t)]
    pub device: Device,
    /// Number type of the network [default: f32 on a CPU, tf32 on a GPU]
    #[arg(long, value_enum)]
    pub precision: Option<Precision>,
    /// UMA task of structures that name none [default: omol, or the only task of the checkpoint]
    #[arg(long, value_name = "TASK")]
    pub task: Option<String>,
    /// Most working memory for one evaluation, MiB [default: 8192; on a GPU 70 % of what is free]
    #[arg(long, value_name = "MIB")]
    pub memory_mib: Option<usize>,
    /// CPUs of this process, and threads to compute with [default: SLURM_CPUS_PER_TASK, else
    /// those that it may use (affinity, cgroup), shared by the ranks of a host]
    #[arg(long, value_name = "N", alias = "threads")]
    pub cpus: Option<usize>,
}

/// `umaserve serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The checkpoint and where it is evaluated.
    #[command(flatten)]
    pub model: ModelOptions,
    /// Who may connect, and how.
    #[command(flatten)]
    pub door: DoorOptions,
    /// Record every simulation into this directory, one H5MD file per run
    #[arg(long, value_name = "DIR")]
    pub record: Option<PathBuf>,
    /// Keep the states of all sessions in this directory and go on with those found there;
    /// usually the directory of --record
    #[arg(long, value_name = "DIR")]
    pub resume: Option<PathBuf>,
    /// How long a session waits for its viewer to come back, s; 0: it ends with its connection
    #[arg(long, value_name = "S", default_value_t = 120)]
    pub reconnect_seconds: u64,
    /// Longest time between two saved states of a session (--resume), s
    #[arg(long, value_name = "S", default_value_t = 2.0)]
    pub checkpoint_seconds: f64,
    /// Silence of a rank after which it counts as hung and the job ends, to be started again, s
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    pub rank_timeout: f64,
    /// Time that a worker may take for one pass before it counts as hung, s
    #[arg(long, value_name = "S", default_value_t = 1800.0)]
    pub shard_timeout: f64,
    /// Atoms of a session
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    pub max_atoms: usize,
    /// Directed edges (neighbour pairs within the cutoff) of a session
    #[arg(long, value_name = "N", default_value_t = 6_000_000)]
    pub max_edges: usize,
    /// Sessions at a time
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_sessions: usize,
    /// Size of a message from a viewer, MiB
    #[arg(long, value_name = "MIB", default_value_t = 16)]
    pub max_message_mib: usize,
    /// Least time between two frames of a viewer that does not ask for another, ms
    #[arg(long, value_name = "MS", default_value_t = 15)]
    pub frame_interval_ms: u64,
    /// Frames that a viewer may leave unacknowledged before its simulation waits
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub max_unacked: u64,
    /// Tell viewers when a wait for an acknowledgement is over
    #[arg(long)]
    pub ack_cleared: bool,
    /// Edges evaluated in one pass, for all sessions together [default: 5000 on a CPU, where
    /// larger batches are not faster per edge, 200000 on a GPU]
    #[arg(long, value_name = "N")]
    pub edge_budget: Option<u64>,
    /// Seed from which the sessions' random numbers are derived
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// How log lines look; their level is set by RUST_LOG
    #[arg(long, value_enum, default_value_t)]
    pub log: LogFormat,
}

/// `umaserve supervise`.
#[derive(Debug, Args)]
pub struct SuperviseArgs {
    /// Starts in a row that may fail
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub restarts: u32,
    /// A run of so many seconds was no failed start
    #[arg(long, value_name = "S", default_value_t = 60)]
    pub steady_seconds: u64,
    /// What to run, after `--`: `umaserve serve ...`, `srun ... umaserve serve ...`
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<std::ffi::OsString>,
}

/// `umaserve predict`.
#[derive(Debug, Args)]
pub struct PredictArgs {
    /// Extended XYZ file; every frame may carry task=, charge= and spin=
    pub input: PathBuf,
    /// Extended XYZ file to write, with energy, forces and stress as ASE writes them
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// The checkpoint and where it is evaluated.
    #[command(flatten)]
    pub model: ModelOptions,
}

/// `umaserve selfcheck`.
#[derive(Debug, Args)]
pub struct SelfcheckArgs {
    /// The checkpoint and where it is evaluated.
    #[command(flatten)]
    pub model: ModelOptions,
    /// Also every (lmax, mmax) that there are kernels for
    #[arg(long, conflicts_with = "quick")]
    pub all: bool,
    /// One small network with every operation, as at the start of a worker
    #[arg(long)]
    pub quick: bool,
    /// Run the CUDA kernels on the host
    #[cfg(feature = "host-kernels")]
    #[arg(long, hide = true)]
    pub emulated: bool,
}

/// `umaserve model`.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// UMA checkpoint (.pt) [default: the built-in demo model]
    pub file: Option<PathBuf>,
}

/// `umaserve trajectory`.
#[derive(Debug, Subcommand)]
pub enum TrajectoryCommand {
    /// Summary of a recording
    Info {
        /// H5MD file
        file: PathBuf,
    },
    /// Write a recording as extended XYZ
    Export {
        /// H5MD file
        file: PathBuf,
        /// Extended XYZ file to write
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// Write every N-th frame only
        #[arg(long, value_name = "N", default_value_t = 1)]
        stride: usize,
    },
    /// Make a recording readable whose writer was killed
    Repair {
        /// H5MD file
        file: PathBuf,
    },
}

/// When the printed address carries the token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ShowToken {
    /// Unless others could read it (the output of a Slurm job, a file that is not private)
    #[default]
    Auto,
    /// Always
    Always,
    /// Never: `umaserve connect` shows it
    Never,
}

/// Where the server listens, who may come in, and how much they may ask for.
#[derive(Debug, Args)]
#[command(next_help_heading = "Access and limits")]
pub struct DoorOptions {
    /// File with settings (TOML): names of options as keys, `max-atoms = 100`
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address of the server; port 0 picks a free one [default: 127.0.0.1:8000, or none with
    /// --unix-socket]
    #[arg(long, value_name = "HOST:PORT")]
    pub bind: Option<String>,
    /// Listen on the address of this network interface (with a port: ib0:8000) instead of --bind
    #[arg(long, value_name = "NAME[:PORT]", conflicts_with = "bind")]
    pub bind_interface: Option<String>,
    /// Listen on a Unix socket with mode 0600
    #[arg(long, value_name = "PATH")]
    pub unix_socket: Option<PathBuf>,
    /// Certificate chain (PEM): serve https and wss on --bind
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Key of the certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Let everybody in who can reach the port; only on loopback or a Unix socket
    #[arg(long)]
    pub no_auth: bool,
    /// File with a token, or with lines NAME:TOKEN; mode 0600 [default: UMASERVE_TOKEN, else that
    /// of an earlier start of the same job, else a random one]
    #[arg(long, value_name = "FILE", conflicts_with = "no_auth")]
    pub token_file: Option<PathBuf>,
    /// When the printed address carries the token
    #[arg(long, value_enum, default_value_t)]
    pub show_token: ShowToken,
    /// Pages of this origin may connect too (https://HOST:PORT, or * for all); may be repeated
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',')]
    pub allow_origin: Vec<String>,
    /// What a proxy puts in front of every path; {host} and {port} are filled in
    #[arg(long, value_name = "PATH", default_value = "")]
    pub path_prefix: String,
    /// Where to write how the server is reached, mode 0600 [default: connection.json in the
    /// --record directory]
    #[arg(long, value_name = "FILE")]
    pub connection_file: Option<PathBuf>,
    /// The host through which users reach this one [default: SLURM_SUBMIT_HOST]
    #[arg(long, value_name = "HOST")]
    pub login_host: Option<String>,
    /// Sessions of one token at a time [default: --max-sessions]
    #[arg(long, value_name = "N")]
    pub max_sessions_per_token: Option<usize>,
    /// Atoms of all sessions together
    #[arg(long, value_name = "N", default_value_t = 2_000_000)]
    pub max_total_atoms: usize,
    /// Atoms of the sessions of one token together [default: --max-total-atoms]
    #[arg(long, value_name = "N")]
    pub max_atoms_per_token: Option<usize>,
    /// Messages per second of a session; beyond, they are read more slowly
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub max_message_rate: u32,
    /// Messages per second of the sessions of one token together
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    pub max_message_rate_per_token: u32,
    /// Messages per second of all sessions together
    #[arg(long, value_name = "N", default_value_t = 200_000)]
    pub max_total_message_rate: u32,
    /// HTTP requests per second of one token; beyond, 429
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub max_request_rate: u32,
    /// Connections at a time; more wait
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub max_connections: usize,
    /// Time for a TLS handshake and for the head of a request, s
    #[arg(long, value_name = "S", default_value_t = 10)]
    pub handshake_timeout_s: u64,
    /// A session whose viewer says nothing for so long is closed, s; 0: never
    #[arg(long, value_name = "S", default_value_t = 43_200)]
    pub idle_timeout_s: u64,
}

/// `umaserve connect`.
#[derive(Debug, Args)]
pub struct ConnectArgs {
    /// The connection file, its directory, or USER@HOST:FILE to read it through ssh
    /// [default: connection.json or runs/connection.json]
    pub file: Option<String>,
    /// Open the tunnel and keep it open until Ctrl-C
    #[arg(long)]
    pub tunnel: bool,
    /// Open the address in the browser
    #[arg(long)]
    pub open: bool,
    /// Port at this end of the tunnel [default: the server's]
    #[arg(long, value_name = "PORT")]
    pub local_port: Option<u16>,
    /// Host through which to reach the server [default: what the file says]
    #[arg(long, value_name = "[USER@]HOST")]
    pub login: Option<String>,
    /// Print the token only
    #[arg(long)]
    pub print_token: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Go on although the server has not been heard of lately
    #[arg(long)]
    pub even_if_gone: bool,
}

/// `umaserve status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The connection file, its directory, or USER@HOST:FILE to read it through ssh
    /// [default: connection.json or runs/connection.json]
    pub file: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
