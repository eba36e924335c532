//! Making a trajectory readable again after its writer was killed.

use std::path::{Path, PathBuf};

use super::TrajectoryError;
use super::batch::Batch;
use super::journal::{self, LeftOver};
use super::layout::{self, Elements};
use super::superblock;

/// What [`repair`] found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepairReport {
    /// The file.
    pub path: PathBuf,
    /// Whether anything had to be done.
    pub changed: bool,
    /// Frames in the file now.
    pub frames: u64,
    /// Of these, frames that came from the journal.
    pub frames_from_journal: u64,
    /// Half-written frames that were cut off and are not in the journal either.
    pub frames_cut: u64,
    /// Events in the file now.
    pub events: u64,
}

/// Makes every recording of a directory readable again that a killed writer has left behind and
/// that nobody writes. Answers how many, and what could not be mended.
///
/// Of a recording that was killed before its first frame nothing remains, unless it is one of
/// `wanted`: files that somebody is about to go on with.
///
/// # Errors
/// A directory that cannot be read.
pub fn repair_directory(
    directory: &Path,
    wanted: &[PathBuf],
) -> Result<(usize, Vec<TrajectoryError>), TrajectoryError> {
    let mut mended = 0;
    let mut failed = Vec::new();
    let entries = std::fs::read_dir(directory).map_err(|e| TrajectoryError::file(directory, e))?;
    let mut paths: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "h5"))
        .collect();
    paths.sort();
    for path in paths {
        let journal = journal::journal_path(&path);
        // A writer has its journal before it opens the file, so without one nobody writes.
        if !journal.exists() && !superblock::is_marked_open(&path).unwrap_or(false) {
            continue;
        }
        let began = journal.exists();
        let done = match repair(&path) {
            Ok(report) if report.frames == 0 && began && !wanted.contains(&path) => {
                std::fs::remove_file(&path).map_err(|e| TrajectoryError::file(&path, e))
            }
            Ok(_) => Ok(()),
            Err(error) => remove_unborn(&path).and_then(|removed| match removed {
                true => Ok(()),
                false => Err(error),
            }),
        };
        match done {
            Ok(()) => mended += 1,
            Err(error) => failed.push(error),
        }
    }
    Ok((mended, failed))
}

/// Removes a file whose writer was killed while it was being created; whether it was one.
fn remove_unborn(path: &Path) -> Result<bool, TrajectoryError> {
    let error = |e: std::io::Error| TrajectoryError::file(path, e);
    let Some(left) = LeftOver::open(path).map_err(error)? else {
        return Ok(false);
    };
    if !left.records().is_empty() {
        return Ok(false);
    }
    std::fs::remove_file(path).map_err(error)?;
    std::fs::remove_file(&left.path).map_err(error)?;
    Ok(true)
}

/// Makes `path` readable again: clears the mark of an open file, cuts all elements to the
/// frames that are whole, appends the frames and events of the journal, removes the
/// journal.
///
/// May be repeated, also after being killed itself. Refuses a file that a running recorder holds.
/// A file that was closed properly is left as it is.
pub fn repair(path: &Path) -> Result<RepairReport, TrajectoryError> {
    let left = LeftOver::open(path).map_err(|e| TrajectoryError::file(path, e))?;
    let hdf5_error = |e: hdf5::Error| TrajectoryError::file(path, e);
    let cleared = superblock::clear_mark(path)?;
    let opened = layout::file_options()
        .open_rw(path)
        .and_then(|file| Elements::open(&file).map(|elements| (file, elements)));
    let (file, elements) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            // A foreign file stays as it was.
            cleared.undo(path)?;
            return Err(TrajectoryError::file(
                path,
                format!(
                    "not a recording of umaserve, or its writer was killed before the first \
                     frame: {error}"
                ),
            ));
        }
    };

    let longest = elements.longest();
    let (mut frames, mut events) = elements.whole().map_err(hdf5_error)?;
    // Finds nothing after a mere kill; it is for file systems that lose the order of writes when
    // the machine itself stops.
    while frames > 0 && !elements.is_readable(frames - 1) {
        frames -= 1;
    }
    elements.resize(frames, events).map_err(hdf5_error)?;

    let first = frames;
    if let Some(left) = left.as_ref().filter(|l| l.atoms == elements.atoms as u64) {
        let mut batch = Batch::new(elements.atoms);
        let mut new_events = Vec::new();
        for record in left.records() {
            let index = record.index as usize;
            match record.kind {
                journal::FRAME if index == frames + batch.rows() => {
                    batch.push_encoded(record.payload);
                }
                journal::CUT if (frames..frames + batch.rows()).contains(&index) => {
                    batch.truncate(index - frames);
                }
                journal::EVENT if index == events + new_events.len() => {
                    new_events.extend(journal::event(record.payload));
                }
                // Already in the file when the writer was killed.
                _ => {}
            }
        }
        if batch.rows() > 0 {
            elements.write(frames, &batch).map_err(hdf5_error)?;
        }
        elements
            .write_events(events, &new_events)
            .map_err(hdf5_error)?;
        frames += batch.rows();
        events += new_events.len();
    }
    file.flush().map_err(hdf5_error)?;
    elements.count(frames, events).map_err(hdf5_error)?;
    let changed = cleared.changed || left.is_some() || longest != frames;
    drop(elements);
    file.close().map_err(hdf5_error)?;
    if let Some(left) = left {
        std::fs::remove_file(&left.path).map_err(|e| TrajectoryError::file(&left.path, e))?;
    }
    Ok(RepairReport {
        path: path.to_owned(),
        changed,
        frames: frames as u64,
        frames_from_journal: (frames - first) as u64,
        frames_cut: longest.saturating_sub(frames) as u64,
        events: events as u64,
    })
}
