//! One trajectory file being written: whole batches go to the H5MD file, the rest to its journal.

use std::path::{Path, PathBuf};

use super::batch::Batch;
use super::journal::{self, Journal};
use super::layout::{self, Elements, Rows};
use super::{FrameData, Header, TrajectoryError, file_stem};

/// An open trajectory file.
#[derive(Debug)]
pub(super) struct Writer {
    path: PathBuf,
    // Fields are dropped in this order: datasets, file, and the journal's lock last.
    elements: Elements,
    file: hdf5::File,
    journal: Journal,
    rows: Rows,
    batch: Batch,
    events: Vec<(i64, String)>,
    frames_in_file: usize,
    events_in_file: usize,
    journaled_frames: usize,
    journaled_events: usize,
    journal_bytes: u64,
    /// Rows of the batch that a resumed simulation has come to: the rows from here on are those of
    /// an earlier process and are expected to come again. `None` once they have.
    replayed: Option<usize>,
    /// Identity of the file on disk, to notice that it was removed.
    inode: Option<(u64, u64)>,
    scratch: Vec<u8>,
}

impl Writer {
    /// Creates `directory/<label>.h5`, or `-2`, `-3`, ... when that name is taken: a recording is
    /// never overwritten.
    pub(super) fn create(
        directory: &Path,
        label: &str,
        header: &Header,
        author: &str,
    ) -> Result<Self, TrajectoryError> {
        check(header)?;
        std::fs::create_dir_all(directory).map_err(|e| TrajectoryError::file(directory, e))?;
        let stem = file_stem(label);
        let mut number = 1;
        loop {
            let name = match number {
                1 => format!("{stem}.h5"),
                n => format!("{stem}-{n}.h5"),
            };
            number += 1;
            let path = directory.join(name);
            if path.exists() {
                continue;
            }
            // Before the file, so that a file without a journal is one that nobody writes.
            let journal = match Journal::create(&path, header.species.len()) {
                Ok(journal) => journal,
                // Another process may have taken the name in between.
                Err(_) if path.exists() => continue,
                Err(error) => return Err(TrajectoryError::file(path, error)),
            };
            let file = match layout::file_options().create_excl(&path) {
                Ok(file) => file,
                Err(_) if path.exists() => continue,
                Err(error) => {
                    let _ = journal.remove();
                    return Err(TrajectoryError::file(path, error));
                }
            };
            return Self::fill(path.clone(), file, journal, header, author).inspect_err(|_| {
                // It holds nothing yet, and the next attempt needs the name.
                let _ = std::fs::remove_file(journal::journal_path(&path));
                let _ = std::fs::remove_file(&path);
            });
        }
    }

    fn fill(
        path: PathBuf,
        file: hdf5::File,
        journal: Journal,
        header: &Header,
        author: &str,
    ) -> Result<Self, TrajectoryError> {
        let atoms = header.species.len();
        let hdf5_error = |e: hdf5::Error| TrajectoryError::file(&path, e);
        let elements = layout::create(&file, header, author).map_err(hdf5_error)?;
        file.flush().map_err(hdf5_error)?;
        file.start_swmr().map_err(hdf5_error)?;
        Ok(Self {
            inode: inode(&path),
            replayed: None,
            path,
            elements,
            file,
            journal,
            rows: Rows::of(atoms),
            batch: Batch::new(atoms),
            events: Vec::new(),
            frames_in_file: 0,
            events_in_file: 0,
            journaled_frames: 0,
            journaled_events: 0,
            journal_bytes: 0,
            scratch: Vec::new(),
        })
    }

    /// Goes on with the file of an earlier process that has done `step` steps. Frames of later
    /// steps are kept until they come again; see [`Writer::push`].
    pub(super) fn reopen(path: &Path, header: &Header, step: u64) -> Result<Self, TrajectoryError> {
        check(header)?;
        super::repair(path)?;
        let journal = Journal::create(path, header.species.len())
            .map_err(|e| TrajectoryError::file(path, e))?;
        let hdf5_error = |e: hdf5::Error| TrajectoryError::file(path, e);
        let file = layout::file_options().open_rw(path).map_err(hdf5_error)?;
        let elements = Elements::open(&file).map_err(hdf5_error)?;
        let species: Vec<i8> = header.species.iter().map(|&z| z as i8).collect();
        if elements.species() != species {
            return Err(TrajectoryError::file(path, "holds other atoms"));
        }
        let (frames, events) = elements.whole().map_err(hdf5_error)?;
        let steps = elements.steps(0..frames).map_err(hdf5_error)?;
        let step = i64::try_from(step).unwrap_or(i64::MAX);
        let done = steps.partition_point(|&recorded| recorded <= step);
        // The file holds whole batches only, so that no chunk is ever written twice. What is more
        // goes to the journal before it leaves the file: a kill in between loses nothing.
        let rows = Rows::of(elements.atoms);
        let kept = done - done % rows.batch;
        let batch = elements.read(kept..frames).map_err(hdf5_error)?;
        let mut writer = Self {
            path: path.to_owned(),
            inode: inode(path),
            elements,
            file,
            journal,
            rows,
            replayed: (done < frames).then_some(done - kept),
            batch,
            events: Vec::new(),
            frames_in_file: kept,
            events_in_file: events,
            journaled_frames: 0,
            journaled_events: 0,
            journal_bytes: 0,
            scratch: Vec::new(),
        };
        writer.flush()?;
        writer.elements.count(kept, events).map_err(hdf5_error)?;
        writer.file.flush().map_err(hdf5_error)?;
        writer.elements.resize(kept, events).map_err(hdf5_error)?;
        writer.file.flush().map_err(hdf5_error)?;
        writer.file.start_swmr().map_err(hdf5_error)?;
        Ok(writer)
    }

    /// Fails if the file is not where it was created any more: what is written to it would be
    /// lost.
    pub(super) fn check_presence(&self) -> Result<(), TrajectoryError> {
        match inode(&self.path) {
            Some(found) if Some(found) == self.inode => Ok(()),
            _ => Err(TrajectoryError::file(&self.path, "the file was removed")),
        }
    }

    /// Gives the file up; what is in it stays there.
    pub(super) fn abandon(self) {
        drop(self.elements);
        // It cannot be reached any more, so how closing it ends does not matter.
        let _ = self.file.close();
        let _ = self.journal.remove();
    }

    /// Whether frames of an earlier process have not come again yet.
    pub(super) fn is_replaying(&self) -> bool {
        self.replayed.is_some()
    }

    /// The simulation has taken another course than the earlier process at this point: the frames
    /// that have not come again are cut off. Answers how many.
    pub(super) fn cut_replay(&mut self) -> Result<u64, TrajectoryError> {
        let Some(rows) = self.replayed else {
            return Ok(0);
        };
        let cut = self.batch.rows() - rows;
        let index = (self.frames_in_file + rows) as u64;
        let mut record = Vec::new();
        journal::encode(&mut record, journal::CUT, index, |_| ());
        self.append(&record)?;
        self.batch.truncate(rows);
        self.journaled_frames = self.journaled_frames.min(rows);
        self.replayed = None;
        Ok(cut as u64)
    }

    /// Takes a frame that may be one of the earlier process; whether it was.
    fn replay(&mut self, frame: &FrameData) -> Result<bool, TrajectoryError> {
        let Some(row) = self.replayed else {
            return Ok(false);
        };
        let mut candidate = Batch::new(self.elements.atoms);
        candidate.push(frame)?;
        if candidate.is_row_of(&self.batch, row) {
            let all = row + 1 == self.batch.rows();
            self.replayed = (!all).then_some(row + 1);
            if all {
                self.commit_if_due()?;
            }
            return Ok(true);
        }
        let cut = self.cut_replay()?;
        let text = format!("resumed on another course: {cut} frames of the earlier one were cut");
        self.push_event(frame.step, text);
        Ok(false)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Frames in whole batches of the file.
    pub(super) fn frames_in_file(&self) -> u64 {
        self.frames_in_file as u64
    }

    /// Frames that a kill cannot lose.
    pub(super) fn frames_safe(&self) -> u64 {
        (self.frames_in_file + self.journaled_frames) as u64
    }

    /// Frames taken so far.
    pub(super) fn frames(&self) -> u64 {
        (self.frames_in_file + self.batch.rows()) as u64
    }

    /// Bytes of the file and of all that went through the journal.
    pub(super) fn bytes_written(&self) -> u64 {
        let file = std::fs::metadata(&self.path).map_or(0, |m| m.len());
        file + self.journal_bytes
    }

    /// Whether so much is held back (the disk has been full for a while) that a frame must go.
    pub(super) fn is_full(&self) -> bool {
        self.replayed.is_none() && self.batch.rows() >= 4 * self.rows.batch
    }

    /// Takes a frame. [`Writer::commit_if_due`] writes it. After [`Writer::reopen`] a frame that
    /// the earlier process has recorded already is only compared with it.
    pub(super) fn push(&mut self, frame: &FrameData) -> Result<(), TrajectoryError> {
        match self.replay(frame)? {
            true => Ok(()),
            false => self.batch.push(frame),
        }
    }

    /// Takes an event; it is written with the next batch or flush.
    pub(super) fn push_event(&mut self, step: u64, text: String) {
        self.events.push((step as i64, text));
    }

    /// Writes the batch to the file once it is whole.
    pub(super) fn commit_if_due(&mut self) -> Result<(), TrajectoryError> {
        if self.replayed.is_none() && self.batch.rows() >= self.rows.batch {
            self.commit()?;
        }
        Ok(())
    }

    /// Brings the journal up to date: after it, a kill loses nothing that was taken.
    pub(super) fn flush(&mut self) -> Result<(), TrajectoryError> {
        self.scratch.clear();
        for row in self.journaled_frames..self.batch.rows() {
            let index = (self.frames_in_file + row) as u64;
            journal::encode(&mut self.scratch, journal::FRAME, index, |out| {
                self.batch.encode_row(row, out);
            });
        }
        for (number, (step, text)) in self.events.iter().enumerate().skip(self.journaled_events) {
            let index = (self.events_in_file + number) as u64;
            journal::encode(&mut self.scratch, journal::EVENT, index, |out| {
                out.extend(step.to_le_bytes());
                out.extend(layout::event_text(text).as_bytes());
            });
        }
        if self.scratch.is_empty() {
            return Ok(());
        }
        let records = std::mem::take(&mut self.scratch);
        let appended = self.append(&records);
        self.scratch = records;
        appended?;
        self.journaled_frames = self.batch.rows();
        self.journaled_events = self.events.len();
        Ok(())
    }

    fn append(&mut self, records: &[u8]) -> Result<(), TrajectoryError> {
        self.journal
            .append(records)
            .map_err(|e| TrajectoryError::file(&self.path, format!("journal: {e}")))?;
        self.journal_bytes += records.len() as u64;
        Ok(())
    }

    /// Writes everything and closes the file; a file without frames is removed. On an error the file stays as a kill would leave
    /// it, and `repair` finds the rest in the journal as far as that could be written; the number
    /// of frames lost comes with the error.
    pub(super) fn close(mut self) -> Result<u64, (TrajectoryError, u64)> {
        self.replayed = None;
        if let Err(error) = self.commit() {
            let _ = self.flush();
            // Other readers open the file without looking at the count.
            let _ = self
                .elements
                .resize(self.frames_in_file, self.events_in_file);
            let lost = self.frames() - self.frames_safe();
            return Err((error, lost));
        }
        let frames = self.frames_in_file as u64;
        drop(self.elements);
        self.file
            .close()
            .map_err(|e| (TrajectoryError::file(&self.path, e), 0))?;
        self.journal.remove().map_err(|e| {
            let reason = format!("complete, but its journal cannot be removed: {e}");
            (TrajectoryError::file(&self.path, reason), 0)
        })?;
        if frames == 0 {
            // A simulation that was stopped before its first step: readers refuse such a file.
            std::fs::remove_file(&self.path).map_err(|e| {
                let reason = format!("has no frames and cannot be removed: {e}");
                (TrajectoryError::file(&self.path, reason), 0)
            })?;
        }
        Ok(frames)
    }

    /// Writes all that is held back to the file.
    pub(super) fn commit(&mut self) -> Result<(), TrajectoryError> {
        if self.batch.rows() == 0 && self.events.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.write_batch() {
            // Otherwise a later flush or close could leave frames without data behind.
            let _ = self
                .elements
                .resize(self.frames_in_file, self.events_in_file);
            return Err(TrajectoryError::file(&self.path, error));
        }
        self.frames_in_file += self.batch.rows();
        self.events_in_file += self.events.len();
        self.batch.clear();
        self.events.clear();
        self.journaled_frames = 0;
        self.journaled_events = 0;
        self.journal
            .reset()
            .map_err(|e| TrajectoryError::file(&self.path, format!("journal: {e}")))
    }

    fn write_batch(&self) -> hdf5::Result<()> {
        if self.batch.rows() > 0 {
            self.elements.write(self.frames_in_file, &self.batch)?;
        }
        self.elements
            .write_events(self.events_in_file, &self.events)?;
        self.file.flush()?;
        // Counted only once the data are out: what is counted is whole, however the writing ends.
        let frames = self.frames_in_file + self.batch.rows();
        let events = self.events_in_file + self.events.len();
        self.elements.count(frames, events)?;
        self.file.flush()
    }
}

/// What tells a file from another of the same name.
fn inode(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

fn check(header: &Header) -> Result<(), TrajectoryError> {
    let invalid = |reason: String| Err(TrajectoryError::Invalid(reason));
    if header.species.is_empty() {
        return invalid("a recording needs at least one atom".to_owned());
    }
    if let Some(z) = header.species.iter().find(|&&z| z > 118) {
        return invalid(format!("atomic number {z} does not exist"));
    }
    if header.masses.len() != header.species.len() {
        return invalid(format!(
            "{} masses for {} atoms",
            header.masses.len(),
            header.species.len()
        ));
    }
    Ok(())
}
