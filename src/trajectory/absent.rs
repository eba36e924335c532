//! The recorder of a build without HDF5: it cannot be started.

use super::{RecordMessage, RecordNotice, RecorderSettings, RecorderStatus, TrajectoryError};

/// Has no values in a build without the feature `hdf5`.
#[derive(Debug)]
pub enum Recorder {}

impl Recorder {
    /// Always [`TrajectoryError::NotBuilt`].
    pub fn start(_settings: RecorderSettings) -> Result<Self, TrajectoryError> {
        Err(TrajectoryError::NotBuilt)
    }

    /// Cannot be called: there is no recorder.
    pub fn send(&self, _message: RecordMessage) -> Result<(), TrajectoryError> {
        match *self {}
    }

    /// Cannot be called: there is no recorder.
    pub fn flusher(&self) -> Flusher {
        match *self {}
    }

    /// Cannot be called: there is no recorder.
    pub fn status(&self) -> RecorderStatus {
        match *self {}
    }

    /// Cannot be called: there is no recorder.
    pub fn watch(&self) -> RecorderWatch {
        match *self {}
    }

    /// Cannot be called: there is no recorder.
    pub fn take_notices(&self) -> Vec<RecordNotice> {
        match *self {}
    }

    /// Cannot be called: there is no recorder.
    pub fn finish(self) -> RecorderStatus {
        match self {}
    }
}

/// Has no values in a build without the feature `hdf5`.
#[derive(Clone, Debug)]
pub enum RecorderWatch {}

impl RecorderWatch {
    /// Cannot be called: there is no recorder.
    pub fn status(&self) -> RecorderStatus {
        match *self {}
    }
}

/// Has no values in a build without the feature `hdf5`.
#[derive(Clone, Debug)]
pub enum Flusher {}

impl Flusher {
    /// Cannot be called: there is no recorder.
    pub fn flush(
        &self,
        _key: u64,
        _patience: std::time::Duration,
    ) -> Result<Option<std::path::PathBuf>, TrajectoryError> {
        match *self {}
    }
}

/// Always [`TrajectoryError::NotBuilt`].
pub fn repair_directory(
    _directory: &std::path::Path,
    _wanted: &[std::path::PathBuf],
) -> Result<(usize, Vec<TrajectoryError>), TrajectoryError> {
    Err(TrajectoryError::NotBuilt)
}
