//! The journal: frames and events that are not yet in a whole chunk of the H5MD file.
//!
//! HDF5 could hold them itself, but in single-writer mode it never reuses space, so rewriting a
//! compressed, partly filled chunk at every flush makes a slow recording several times as large
//! as its data. The journal is a plain file that is overwritten after every whole chunk.
//!
//! Layout, little-endian: `UMAJRNL1`, number of atoms (u64), then records of
//! `kind (u8), 3 zero bytes, payload length (u32), index (u64), payload, CRC-32 of all that (u32)`.
//! `index` is the frame's (or event's) number in the H5MD file, so records that reached the file
//! before a kill are recognised. Reading ends at the first damaged record.
//!
//! The journal is locked as long as it is written: that is how `repair` knows a live recording.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"UMAJRNL1";
const HEADER_BYTES: u64 = 16;
const RECORD_HEAD_BYTES: usize = 16;

/// A record's kind.
pub(super) const FRAME: u8 = 1;
/// A record's kind.
pub(super) const EVENT: u8 = 2;
/// A record's kind: the frames from `index` on, which came before it, do not count any more.
pub(super) const CUT: u8 = 3;

/// The journal that belongs to a trajectory file.
pub(super) fn journal_path(trajectory: &Path) -> PathBuf {
    let mut name = trajectory.as_os_str().to_owned();
    name.push(".journal");
    PathBuf::from(name)
}

/// A journal that is being written.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    path: PathBuf,
    length: u64,
}

impl Journal {
    /// Creates (or takes over a left-over) journal and locks it.
    pub(super) fn create(trajectory: &Path, atoms: usize) -> io::Result<Self> {
        let path = journal_path(trajectory);
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::other(format!(
                    "{} is locked by another recording",
                    path.display()
                )));
            }
            // Some network file systems know no locks; recording goes on without the protection.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        file.set_len(0)?;
        file.write_all(MAGIC)?;
        file.write_all(&(atoms as u64).to_le_bytes())?;
        Ok(Self {
            file,
            path,
            length: HEADER_BYTES,
        })
    }

    /// Appends encoded records, all or none.
    pub(super) fn append(&mut self, records: &[u8]) -> io::Result<()> {
        let written = self
            .file
            .seek(SeekFrom::Start(self.length))
            .and_then(|_| self.file.write_all(records));
        if let Err(error) = written {
            // Cutting a half-written record off is a courtesy: reading stops at it anyway.
            let _ = self.file.set_len(self.length);
            return Err(error);
        }
        self.length += records.len() as u64;
        Ok(())
    }

    /// Forgets all records: they are in the H5MD file now.
    pub(super) fn reset(&mut self) -> io::Result<()> {
        if self.length > HEADER_BYTES {
            self.file.set_len(HEADER_BYTES)?;
            self.length = HEADER_BYTES;
        }
        Ok(())
    }

    /// Removes the journal: the H5MD file is complete.
    pub(super) fn remove(self) -> io::Result<()> {
        std::fs::remove_file(&self.path)
    }
}

/// Appends one record to `out`; `payload` writes its content.
pub(super) fn encode(out: &mut Vec<u8>, kind: u8, index: u64, payload: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
    out.extend(index.to_le_bytes());
    payload(out);
    let length = (out.len() - start - RECORD_HEAD_BYTES) as u32;
    out[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
    let checksum = crc32fast::hash(&out[start..]);
    out.extend(checksum.to_le_bytes());
}

/// A record read back.
#[derive(Debug, PartialEq)]
pub(super) struct Record<'a> {
    pub(super) kind: u8,
    pub(super) index: u64,
    pub(super) payload: &'a [u8],
}

/// A journal opened for repair. Holds its lock.
#[derive(Debug)]
pub(super) struct LeftOver {
    _file: File,
    pub(super) path: PathBuf,
    /// Number of atoms of its frames.
    pub(super) atoms: u64,
    bytes: Vec<u8>,
}

impl LeftOver {
    /// Opens and locks the journal of `trajectory`; `None` if there is none.
    pub(super) fn open(trajectory: &Path) -> io::Result<Option<Self>> {
        let path = journal_path(trajectory);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(io::Error::other(
                "a running umaserve is recording to this file; stop that session first",
            ));
        }
        Self::read(file, path).map(Some)
    }

    /// Reads the journal of `trajectory` as it is, without its lock: it may be growing, its last
    /// record may be half written. `None` if there is none.
    pub(super) fn peek(trajectory: &Path) -> io::Result<Option<Self>> {
        let path = journal_path(trajectory);
        match File::open(&path) {
            Ok(file) => Self::read(file, path).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read(mut file: File, path: PathBuf) -> io::Result<Self> {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        // A journal killed while it was created is empty: nothing was in it yet.
        let atoms = match bytes.split_first_chunk::<8>() {
            Some((MAGIC, rest)) => match rest.split_first_chunk::<8>() {
                Some((atoms, _)) => u64::from_le_bytes(*atoms),
                None => 0,
            },
            None => 0,
            Some(_) => {
                return Err(io::Error::other(format!(
                    "{} is not a journal of umaserve",
                    path.display()
                )));
            }
        };
        Ok(Self {
            _file: file,
            path,
            atoms,
            bytes,
        })
    }

    /// The undamaged records, in order.
    pub(super) fn records(&self) -> Vec<Record<'_>> {
        let mut rest = self.bytes.get(HEADER_BYTES as usize..).unwrap_or_default();
        let mut records = Vec::new();
        while let Some((record, after)) = decode(rest) {
            records.push(record);
            rest = after;
        }
        records
    }
}

/// Step and text of an event's payload.
pub(super) fn event(payload: &[u8]) -> Option<(i64, String)> {
    let (step, text) = payload.split_first_chunk::<8>()?;
    let text = String::from_utf8_lossy(text).into_owned();
    Some((i64::from_le_bytes(*step), text))
}

fn decode(bytes: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let head = bytes.first_chunk::<RECORD_HEAD_BYTES>()?;
    let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
    let end = RECORD_HEAD_BYTES.checked_add(length)?;
    let (body, rest) = bytes.split_at_checked(end)?;
    let (checksum, rest) = rest.split_first_chunk::<4>()?;
    if crc32fast::hash(body) != u32::from_le_bytes(*checksum) {
        return None;
    }
    let mut index = [0; 8];
    index.copy_from_slice(&head[8..]);
    let record = Record {
        kind: head[0],
        index: u64::from_le_bytes(index),
        payload: &body[RECORD_HEAD_BYTES..],
    };
    Some((record, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_up_to_the_first_damaged_one() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let trajectory = directory.path().join("a.h5");
        let mut journal = Journal::create(&trajectory, 3).expect("created");
        let mut bytes = Vec::new();
        for index in 0..4 {
            encode(&mut bytes, FRAME, index, |out| {
                out.extend([index as u8; 10])
            });
        }
        journal.append(&bytes).expect("written");
        assert!(
            LeftOver::open(&trajectory).is_err(),
            "a journal in use is locked"
        );
        drop(journal);

        let path = journal_path(&trajectory);
        let whole = std::fs::read(&path).expect("readable");
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).expect("written");
            let left = LeftOver::open(&trajectory).expect("opens").expect("there");
            let wanted = cut.saturating_sub(16) / 30;
            assert_eq!(left.records().len(), wanted, "cut at {cut}");
        }
        for flip in 16..whole.len() {
            let mut damaged = whole.clone();
            damaged[flip] ^= 0x40;
            std::fs::write(&path, &damaged).expect("written");
            let left = LeftOver::open(&trajectory).expect("opens").expect("there");
            let records = left.records();
            assert_eq!(records.len(), (flip - 16) / 30, "flipped at {flip}");
            assert!(records.iter().all(|r| r.payload == [r.index as u8; 10]));
        }
    }
}
