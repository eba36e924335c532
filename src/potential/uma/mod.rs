//! UMA: the checkpoint, the network it describes, and its evaluation.

pub mod checkpoint;
pub mod config;
pub mod describe;

pub use checkpoint::{Checkpoint, CheckpointError};
pub use config::UmaConfig;
