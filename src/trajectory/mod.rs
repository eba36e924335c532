//! Recording: one H5MD 1.1 file per session, written by one thread beside the simulation.
//!
//! [`Recorder`] takes [`RecordMessage`]s from the engine and writes `DIR/<label>.h5`. The types of
//! this module are plain (no HDF5), so that whoever records does not depend on the file format;
//! the feature `hdf5` decides whether the recorder exists behind them. Without it
//! [`Recorder::start`] and the functions of [`cli`] answer [`TrajectoryError::NotBuilt`].
//!
//! Reading order: [`Header`] and [`FrameData`] (what is recorded), `layout` (where it lies in the
//! file and why), `journal` (the tail that survives a kill), `writer` (both together for one
//! file), `recorder` (the thread), `repair`, [`Trajectory`] (reading back), [`Shelf`] (the files of a
//! directory, for downloads), [`cli`].
//!
//! # Crash safety
//!
//! The file holds whole chunks only. The frames since the last whole chunk lie in a
//! journal next to it (`<label>.h5.journal`), brought up to date every
//! [`RecorderSettings::flush_interval`]. HDF5's single-writer mode orders the writes inside the
//! file. A process killed at any moment therefore loses at most the last flush interval:
//! [`cli::repair`] clears the "open for writing" mark, cuts the elements to the frames that are whole
//! and appends the journal. A file that was closed properly has no journal and opens
//! plainly everywhere.

use std::path::PathBuf;
use std::time::Duration;

#[cfg(not(feature = "hdf5"))]
mod absent;
#[cfg(feature = "hdf5")]
mod batch;
pub mod cli;
#[cfg(feature = "hdf5")]
mod export;
#[cfg(feature = "hdf5")]
mod journal;
#[cfg(feature = "hdf5")]
mod layout;
#[cfg(feature = "hdf5")]
mod queue;
#[cfg(feature = "hdf5")]
mod reader;
#[cfg(feature = "hdf5")]
mod recorder;
#[cfg(feature = "hdf5")]
mod repair;
#[cfg(feature = "hdf5")]
mod report;
#[cfg(feature = "hdf5")]
mod shelf;
#[cfg(feature = "hdf5")]
mod superblock;
#[cfg(feature = "hdf5")]
mod writer;

#[cfg(not(feature = "hdf5"))]
pub use absent::{Flusher, Recorder, RecorderWatch, repair_directory};
#[cfg(feature = "hdf5")]
pub use reader::{RecordedEvent, Trajectory};
#[cfg(feature = "hdf5")]
pub use recorder::{Flusher, Recorder, RecorderWatch};
#[cfg(feature = "hdf5")]
pub use repair::{RepairReport, repair, repair_directory};
#[cfg(feature = "hdf5")]
pub use shelf::{Shelf, ShelfEntry};

/// What does not change during a recording.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    /// Atomic numbers, `[N]`, 1 to 118.
    pub species: Vec<u8>,
    /// Masses, dalton, `[N]`.
    pub masses: Vec<f64>,
    /// Whether the system repeats along each cell vector.
    pub periodic: [bool; 3],
    /// Whether the frames carry a stress.
    pub has_stress: bool,
    /// Time step, fs; 0 for a relaxation.
    pub timestep_fs: f64,
    /// How the numbers came about.
    pub provenance: Provenance,
}

/// How a recording came about: enough to run it again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Provenance {
    /// Version of umaserve.
    pub version: String,
    /// Name of the checkpoint.
    pub checkpoint: String,
    /// BLAKE3 digest of the checkpoint, hexadecimal.
    pub checkpoint_digest: String,
    /// UMA task ("omol", "omat", ...).
    pub task: String,
    /// Total charge, elementary charges.
    pub charge: i32,
    /// Spin multiplicity 2S+1; 0 means "not given".
    pub spin: i32,
    /// Dynamics ("langevin", "bfgs", ...).
    pub method: String,
    /// Parameters of the dynamics, as (name with unit, value).
    pub parameters: Vec<(String, String)>,
    /// Seed of the random numbers.
    pub seed: u64,
    /// Floating-point type of the network ("f32", "f64").
    pub precision: String,
    /// Device that evaluated the network.
    pub device: String,
}

/// One recorded frame. The arrays have the length of [`Header::species`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FrameData {
    /// Step number of the session.
    pub step: u64,
    /// Simulated time, fs.
    pub time_fs: f64,
    /// Positions, Angstrom, unwrapped.
    pub positions: Vec<[f64; 3]>,
    /// Velocities, Angstrom / (ASE time unit).
    pub velocities: Vec<[f64; 3]>,
    /// Forces, eV/Angstrom.
    pub forces: Vec<[f64; 3]>,
    /// Potential energy, eV.
    pub energy_ev: f64,
    /// Kinetic energy, eV.
    pub kinetic_ev: f64,
    /// Temperature, K.
    pub temperature_kelvin: f64,
    /// Stress, eV/Angstrom^3, ASE's sign; written only if [`Header::has_stress`].
    pub stress: Option<[[f64; 3]; 3]>,
    /// Cell vectors as rows, Angstrom; zeros without a cell.
    pub cell: [[f64; 3]; 3],
}

/// What the engine tells the recorder. `key` names a session.
#[derive(Clone, Debug, PartialEq)]
pub enum RecordMessage {
    /// Start a file for `key`; an open one of the same key is closed first.
    Open {
        /// The session.
        key: u64,
        /// Wanted file name, without directory and extension; see [`file_stem`].
        label: String,
        /// What does not change.
        header: Header,
    },
    /// Append a frame.
    Frame {
        /// The session.
        key: u64,
        /// The frame.
        frame: FrameData,
    },
    /// Note something that happened, for instance a user's edit.
    Event {
        /// The session.
        key: u64,
        /// Step before which it happened.
        step: u64,
        /// What happened; longer than [`EVENT_TEXT_BYTES`] bytes is cut.
        text: String,
    },
    /// Go on with an earlier file of `key`, after mending it if its writer was killed. Frames
    /// after `step` stay in it until they come again: the same frame is not written twice, and
    /// from the first one that differs on they are replaced. If the file cannot be used, another
    /// one is started.
    Resume {
        /// The session.
        key: u64,
        /// The file.
        path: PathBuf,
        /// Wanted name of another file, as in `Open`.
        label: String,
        /// What does not change.
        header: Header,
        /// Steps done by the session.
        step: u64,
    },
    /// Make safe what was sent before; see [`Flusher`].
    Flush {
        /// The session.
        key: u64,
        /// Number of the request.
        request: u64,
    },
    /// Finish the file of `key`.
    Close {
        /// The session.
        key: u64,
        /// The simulation was stopped at this step. Later frames of a resumed file stay, with an
        /// event that says so.
        step: Option<u64>,
    },
}

/// Longest event text kept, bytes of UTF-8.
pub const EVENT_TEXT_BYTES: usize = 512;

/// How to record.
#[derive(Clone, Debug, PartialEq)]
pub struct RecorderSettings {
    /// Directory of the files; created if missing.
    pub directory: PathBuf,
    /// Longest time for which frames may exist in memory only: what a kill can lose.
    pub flush_interval: Duration,
    /// Bytes of frames that may wait for the writer before the sender is held up.
    pub queue_bytes: usize,
    /// Longest time for which [`Recorder::send`] holds up its caller when the queue is full.
    pub send_timeout: Duration,
    /// Who is named as the author (H5MD asks for one).
    pub author: String,
}

impl RecorderSettings {
    /// Settings for `directory`: 2 s flush interval, 256 MiB queue, 50 ms send timeout.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            flush_interval: Duration::from_secs(2),
            queue_bytes: 256 << 20,
            send_timeout: Duration::from_millis(50),
            author: "unknown".to_owned(),
        }
    }
}

/// Counters of a recorder since its start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecorderStatus {
    /// Files open now.
    pub open_files: usize,
    /// Frames that are in a file (in whole chunks, or all of a closed file).
    pub frames_written: u64,
    /// Frames that a kill can no longer lose: in a file or in its journal.
    pub frames_safe: u64,
    /// Frames given up: queue full for too long, or the file could not be written.
    pub frames_dropped: u64,
    /// Bytes of files and journals on disk written so far.
    pub bytes_written: u64,
    /// Bytes of frames waiting for the writer.
    pub queued_bytes: usize,
    /// Processor time of the writer thread spent on messages and flushes, seconds.
    pub busy_seconds: f64,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
}

/// What the recorder has to tell about one session.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordNotice {
    /// The session.
    pub key: u64,
    /// What happened.
    pub kind: RecordNoticeKind,
}

/// The kinds of [`RecordNotice`].
#[derive(Clone, Debug, PartialEq)]
pub enum RecordNoticeKind {
    /// Recording to this file.
    Opened {
        /// The file.
        path: PathBuf,
    },
    /// The file is complete and closed; without frames, it is removed.
    Closed {
        /// The file.
        path: PathBuf,
        /// Frames in it.
        frames: u64,
    },
    /// Writing failed; the recorder keeps trying and drops frames meanwhile.
    Failed {
        /// Why, naming the file.
        error: String,
    },
    /// Writing works again; so many frames are missing in the file.
    Recovered {
        /// Frames lost since the last notice.
        frames_dropped: u64,
    },
}

/// Why recording or reading a recording failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrajectoryError {
    /// The program was built without HDF5.
    #[error(
        "this umaserve was built without the feature `hdf5`: trajectories can be neither recorded nor read"
    )]
    NotBuilt,
    /// The frame or event waited too long for a place in the queue and was dropped.
    #[error(
        "the recorder is behind: a frame or event was dropped after waiting {waited_ms} ms ({queued_bytes} bytes queued)"
    )]
    Full {
        /// Milliseconds waited.
        waited_ms: u64,
        /// Bytes in the queue.
        queued_bytes: usize,
    },
    /// The writer thread is gone.
    #[error("the recorder has stopped")]
    Stopped,
    /// A file or directory could not be used.
    #[error("{path}: {reason}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A message does not fit the recording.
    #[error("{0}")]
    Invalid(String),
}

impl TrajectoryError {
    /// An error about a file.
    pub fn file(path: impl Into<PathBuf>, reason: impl std::fmt::Display) -> Self {
        TrajectoryError::File {
            path: path.into(),
            reason: reason.to_string(),
        }
    }
}

/// The file name stem made of a label: letters, digits, `.`, `_`, `-` are kept, everything else
/// becomes `_`; no leading dot or dash, at most 96 characters, `session` when nothing is left.
///
/// ```
/// assert_eq!(umaserve::trajectory::file_stem("../my run/é"), "my_run__");
/// assert_eq!(umaserve::trajectory::file_stem(""), "session");
/// ```
pub fn file_stem(label: &str) -> String {
    let cleaned: String = label
        .chars()
        .map(|c| match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '_' | '-' => c,
            _ => '_',
        })
        .collect();
    let stem: String = cleaned
        .trim_start_matches(['.', '-', '_'])
        .chars()
        .take(96)
        .collect();
    if stem.is_empty() {
        "session".to_owned()
    } else {
        stem
    }
}
