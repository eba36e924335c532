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
    Serve(ServeArgs),
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
    /// On a GPU: products of tf32 numbers, sums and everything else in single precision
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
    /// Threads of this process [default: one per core, shared by the ranks of a host]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// `umaserve serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The checkpoint and where it is evaluated.
    #[command(flatten)]
    pub model: ModelOptions,
    /// Address of the server
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8000")]
    pub bind: String,
    /// Record every simulation into this directory, one H5MD file per run
    #[arg(long, value_name = "DIR")]
    pub record: Option<PathBuf>,
    /// Let every viewer in that can reach the port (there are no access tokens yet)
    #[arg(long)]
    pub no_auth: bool,
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
    /// UMA checkpoint (.pt)
    pub file: PathBuf,
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
