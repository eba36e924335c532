//! The recordings of a directory: which there are, and each as a file that opens everywhere, also
//! while it is being written.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Seek as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use super::batch::Batch;
use super::journal::{self, LeftOver, journal_path};
use super::layout::{self, Rows};
use super::reader::Trajectory;
use super::{TrajectoryError, file_stem, superblock};

/// Most recordings that a list names, the newest first.
const MAX_LISTED: usize = 500;

/// A recording in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShelfEntry {
    /// File name, with `.h5`.
    pub name: String,
    /// Size on disk, bytes.
    pub bytes: u64,
    /// Last change.
    pub modified: SystemTime,
    /// Frames; `None` while it is being written, and for files that are no recordings.
    pub frames: Option<u64>,
    /// Whether it is being written, or its writer was killed.
    pub live: bool,
}

/// The recordings of one directory.
#[derive(Debug)]
pub struct Shelf {
    directory: PathBuf,
    /// Number of frames of complete files, by name, size and time of the last change.
    frames: Mutex<HashMap<(String, u64, SystemTime), Option<u64>>>,
}

impl Shelf {
    /// The recordings in `directory`, which need not exist yet.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Shelf {
            directory: directory.into(),
            frames: Mutex::default(),
        }
    }

    /// The recordings, the newest first; at most 500.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self) -> Result<Vec<ShelfEntry>, TrajectoryError> {
        let error = |e: io::Error| TrajectoryError::file(&self.directory, e);
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(error(e)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(error)?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            // The entry itself, not what a link points to.
            let Ok(data) = entry.metadata() else { continue };
            if !is_recording(&name) || !data.is_file() {
                continue;
            }
            found.push(ShelfEntry {
                live: journal_path(&entry.path()).exists(),
                bytes: data.len(),
                modified: data.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                frames: None,
                name,
            });
        }
        found.sort_by(|a, b| (b.modified, &b.name).cmp(&(a.modified, &a.name)));
        found.truncate(MAX_LISTED);
        for entry in &mut found {
            if !entry.live {
                entry.frames = self.frames_of(entry);
            }
        }
        Ok(found)
    }

    /// Frames of a complete file, counted once.
    fn frames_of(&self, entry: &ShelfEntry) -> Option<u64> {
        let key = (entry.name.clone(), entry.bytes, entry.modified);
        let known = |map: &HashMap<_, _>| map.get(&key).copied();
        if let Some(frames) = known(&self.frames.lock().unwrap_or_else(PoisonError::into_inner)) {
            return frames;
        }
        let frames = Trajectory::open(&self.directory.join(&entry.name))
            .ok()
            .map(|trajectory| trajectory.len() as u64);
        let mut map = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        if map.len() > 2 * MAX_LISTED {
            map.clear();
        }
        map.insert(key, frames);
        frames
    }

    /// The recording `name` to read from its beginning; `None` if there is none of that name.
    ///
    /// A complete file is opened as it is. Of one that is being written (or whose writer was
    /// killed) a complete copy is made that holds every frame that is on disk, those of the journal
    /// too; the copy has no name and vanishes with its last handle. The original is not touched.
    ///
    /// # Errors
    /// The file cannot be read, or there is no room for the copy.
    pub fn open(&self, name: &str) -> Result<Option<File>, TrajectoryError> {
        if !is_recording(name) {
            return Ok(None);
        }
        let path = self.directory.join(name);
        match std::fs::symlink_metadata(&path) {
            Ok(data) if data.is_file() => {}
            Ok(_) => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(TrajectoryError::file(&path, e)),
        }
        if journal_path(&path).exists() || superblock::is_marked_open(&path).unwrap_or(false) {
            return self.copy(&path).map(Some);
        }
        File::open(&path)
            .map(Some)
            .map_err(|e| TrajectoryError::file(&path, e))
    }

    fn copy(&self, path: &Path) -> Result<File, TrajectoryError> {
        // Beside the recordings: that is where room for them was made.
        let mut copy = tempfile::Builder::new()
            .prefix(".copy-")
            .suffix(".h5")
            .tempfile_in(&self.directory)
            .map_err(|e| TrajectoryError::file(&self.directory, e))?;
        // The journal before the file: a frame that leaves it in between is in the file then.
        let left = LeftOver::peek(path).map_err(|e| TrajectoryError::file(path, e))?;
        let source = Trajectory::open(path)?;
        let error = |e: hdf5::Error| TrajectoryError::file(path, e);
        let file = layout::file_options().create(copy.path()).map_err(error)?;
        let elements = layout::create(&file, source.header(), &source.author()).map_err(error)?;

        let mut frames = source.len();
        let mut batch = Batch::new(elements.atoms);
        // Small pieces: HDF5 lets one thread in at a time, and the recorder needs it too.
        let rows = Rows::of(elements.atoms).batch;
        for first in (0..frames).step_by(rows) {
            batch.clear();
            for frame in source.frames(first..(first + rows).min(frames))? {
                batch.push(&frame)?;
            }
            elements.write(first, &batch).map_err(error)?;
        }
        let mut events: Vec<(i64, String)> = source
            .events()?
            .into_iter()
            .map(|event| (event.step as i64, event.text))
            .collect();
        batch.clear();
        if let Some(left) = left.as_ref().filter(|l| l.atoms == elements.atoms as u64) {
            for record in left.records() {
                let index = record.index as usize;
                match record.kind {
                    journal::FRAME if index == frames + batch.rows() => {
                        batch.push_encoded(record.payload);
                    }
                    journal::EVENT if index == events.len() => {
                        events.extend(journal::event(record.payload));
                    }
                    // In the file already.
                    _ => {}
                }
            }
        }
        if batch.rows() > 0 {
            elements.write(frames, &batch).map_err(error)?;
            frames += batch.rows();
        }
        elements.write_events(0, &events).map_err(error)?;
        file.flush().map_err(error)?;
        elements.count(frames, events.len()).map_err(error)?;
        drop(elements);
        file.close().map_err(error)?;
        copy.as_file_mut()
            .rewind()
            .map_err(|e| TrajectoryError::file(path, e))?;
        // HDF5 has written through its own handle to the same file.
        Ok(copy.into_file())
    }
}

/// Whether this is a name that the recorder gives: one plain component that ends in `.h5`. Nothing
/// else is looked for on disk.
fn is_recording(name: &str) -> bool {
    name.strip_suffix(".h5")
        .is_some_and(|stem| !stem.is_empty() && file_stem(stem) == stem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_recordings() {
        for good in ["a.h5", "session-1.h5", "ethanol_2.0-x.h5"] {
            assert!(is_recording(good), "{good}");
        }
        for bad in [
            "",
            ".h5",
            "a",
            "a.h5.journal",
            "../a.h5",
            "a/b.h5",
            "/etc/passwd",
            "..h5",
            ".copy-a.h5",
            "a\0.h5",
            "a\\b.h5",
            "%2e%2e/a.h5",
            "é.h5",
        ] {
            assert!(!is_recording(bad), "{bad}");
        }
    }

    #[test]
    fn a_link_out_of_the_directory_is_not_followed() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let outside = tempfile::NamedTempFile::new().expect("file");
        let runs = directory.path().join("runs");
        std::fs::create_dir(&runs).expect("made");
        std::os::unix::fs::symlink(outside.path(), runs.join("link.h5")).expect("linked");
        std::fs::create_dir(runs.join("folder.h5")).expect("made");
        let shelf = Shelf::new(&runs);
        assert_eq!(shelf.list().expect("listed"), []);
        for name in ["link.h5", "folder.h5", "none.h5", "../x.h5"] {
            assert!(shelf.open(name).expect("no error").is_none(), "{name}");
        }
        assert_eq!(
            Shelf::new(directory.path().join("no"))
                .list()
                .expect("listed"),
            []
        );
    }
}
