//! `umaserve trajectory info|export|repair`: text for the terminal, errors for the exit status.

use std::path::Path;

use super::TrajectoryError;

/// `umaserve trajectory info FILE`: a summary of the recording.
///
/// # Errors
/// When the file cannot be read or is not a recording.
#[cfg(feature = "hdf5")]
pub fn info(path: &Path) -> Result<String, TrajectoryError> {
    super::report::info(path)
}

/// `umaserve trajectory export FILE -o OUT.extxyz [--stride N]`: every `stride`-th frame as
/// extended XYZ with energy, forces, stress and momenta as ASE reads them. An existing `output`
/// is replaced. Returns what was done, in words.
///
/// # Errors
/// When the recording cannot be read, `output` cannot be written, or `stride` is 0.
#[cfg(feature = "hdf5")]
pub fn export(path: &Path, output: &Path, stride: usize) -> Result<String, TrajectoryError> {
    super::export::export(path, output, stride)
}

/// `umaserve trajectory repair FILE`: makes a recording readable whose writer was killed. Returns
/// what was done, in words.
///
/// # Errors
/// When the file is not a recording, cannot be written, or is being recorded to.
#[cfg(feature = "hdf5")]
pub fn repair(path: &Path) -> Result<String, TrajectoryError> {
    let report = super::repair(path)?;
    let path = path.display();
    Ok(if report.changed {
        format!(
            "{path}: repaired, {} frames ({} from the journal, {} half-written ones cut off), {} \
             events",
            report.frames, report.frames_from_journal, report.frames_cut, report.events
        )
    } else {
        format!("{path}: nothing to repair, {} frames", report.frames)
    })
}

/// Always [`TrajectoryError::NotBuilt`].
#[cfg(not(feature = "hdf5"))]
pub fn info(_path: &Path) -> Result<String, TrajectoryError> {
    Err(TrajectoryError::NotBuilt)
}

/// Always [`TrajectoryError::NotBuilt`].
#[cfg(not(feature = "hdf5"))]
pub fn export(_path: &Path, _output: &Path, _stride: usize) -> Result<String, TrajectoryError> {
    Err(TrajectoryError::NotBuilt)
}

/// Always [`TrajectoryError::NotBuilt`].
#[cfg(not(feature = "hdf5"))]
pub fn repair(_path: &Path) -> Result<String, TrajectoryError> {
    Err(TrajectoryError::NotBuilt)
}
