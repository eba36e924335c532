//! The states of sessions on disk, so that another process can go on with them.
//!
//! One file per session, `session-N.state`, in the directory of `--resume`. A file is replaced as a
//! whole (written beside it, synchronised, renamed), so that a kill at any moment leaves the old
//! or the new one. It carries a version and a checksum; one that is damaged is refused by name
//! and put aside, and the others are used.
//!
//! A state is written only once the frames before it are safe on disk: the recording of a restored
//! session may be ahead of its state, never behind. The writing is done by a thread of its own, so
//! that neither simulations nor recordings wait for a slow disk. Of several states of a session that
//! wait, only the last is written.
//!
//! Layout, in the byte order of the machine: `MAGIC`, BLAKE3 digest of the rest (32 bytes), then
//! the fields of [`Saved`].

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::comm::SessionId;
use crate::comm::wire::{Reader, WireError, Writer};
use crate::engine::StateStore;
use crate::trajectory::{Flusher, TrajectoryError};

/// First bytes of a state file; the last one is the version of its layout.
const MAGIC: &[u8; 8] = b"UMASTAT\x02";
const DIGEST_BYTES: usize = 32;
/// How long frames may take to become safe before a state is written without them.
const FLUSH_PATIENCE: Duration = Duration::from_secs(5);
/// States that wait for the disk, bytes: beyond this the engine makes no more of them.
const MOST_WAITING: u64 = 64 << 20;
/// Held as long as a server uses the directory.
const LOCK: &str = "umaserve.lock";
/// How long a server waits for the one before it to let go of the directory.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);

/// What computed a session: only the same goes on with the same numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ComputedBy {
    /// Digest of the checkpoint.
    pub checkpoint: String,
    /// Number type of the network.
    pub precision: String,
    /// Kind of device.
    pub device: String,
}

/// A session that was read back.
#[derive(Clone, Debug, PartialEq)]
pub struct Saved {
    /// Its number.
    pub session: SessionId,
    /// Name of the token that has opened it; empty without tokens.
    pub owner: String,
    /// What computed it.
    pub computed_by: ComputedBy,
    /// The file that it was being recorded to.
    pub recording: Option<PathBuf>,
    /// [`Session::save`](crate::session::Session::save).
    pub state: Vec<u8>,
}

/// A state file that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}", path = path.display())]
pub struct Refused {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

fn refused(path: &Path, reason: impl std::fmt::Display) -> Refused {
    Refused {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

/// A directory of state files, held by this process.
#[derive(Debug)]
pub struct StateDirectory {
    path: PathBuf,
    /// Locked until it is dropped; the lock dies with the process.
    _lock: File,
}

impl StateDirectory {
    /// Takes the directory, creating it if it is missing.
    ///
    /// # Errors
    /// It cannot be written, or another server uses it.
    pub fn open(path: &Path) -> Result<StateDirectory, Refused> {
        let error = |e: std::io::Error| refused(path, e);
        std::fs::create_dir_all(path).map_err(error)?;
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join(LOCK))
            .map_err(error)?;
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            match lock.try_lock() {
                // A server that was killed may take a moment to be gone.
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(refused(path, "another running umaserve resumes from here"));
                }
                // Some network file systems know no locks.
                Ok(()) | Err(TryLockError::Error(_)) => break,
            }
        }
        Ok(StateDirectory {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// All states, by number of the session, and the files that cannot be used. Those are renamed,
    /// so that a new state does not replace them.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn read(&self) -> Result<(Vec<Saved>, Vec<Refused>), Refused> {
        let entries = std::fs::read_dir(&self.path).map_err(|e| refused(&self.path, e))?;
        let mut found: Vec<Saved> = Vec::new();
        let mut bad = Vec::new();
        for entry in entries.flatten() {
            let path = entry.path();
            match path.extension().and_then(|e| e.to_str()) {
                // A kill while it was written; the file before it is still there.
                Some("part") => drop(std::fs::remove_file(&path)),
                Some("state") => match read(&path) {
                    Ok(saved) => found.push(saved),
                    Err(reason) => {
                        self.put_aside(&path);
                        bad.push(refused(&path, reason));
                    }
                },
                _ => {}
            }
        }
        found.sort_by_key(|saved| saved.session);
        bad.sort_by(|a, b| a.path.cmp(&b.path));
        Ok((found, bad))
    }

    /// Renames the file of a session that cannot be restored, so that it is not lost.
    pub fn refuse(&self, session: SessionId, reason: impl std::fmt::Display) -> Refused {
        let path = state_path(&self.path, session);
        self.put_aside(&path);
        refused(&path, reason)
    }

    fn put_aside(&self, path: &Path) {
        let mut name = path.as_os_str().to_owned();
        name.push(".refused");
        if let Err(error) = std::fs::rename(path, &name) {
            tracing::warn!(path = %path.display(), %error, "cannot be put aside");
        }
    }

    /// A store that writes here.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn store(
        self,
        interval: Duration,
        computed_by: ComputedBy,
        flusher: Option<Flusher>,
        recordings: impl IntoIterator<Item = (SessionId, PathBuf)>,
    ) -> std::io::Result<StateFiles> {
        let shared = Arc::new(Shared::default());
        let mut keeper = Keeper {
            directory: self,
            computed_by,
            flusher,
            recordings: recordings.into_iter().collect(),
            shared: Arc::clone(&shared),
        };
        let thread = std::thread::Builder::new()
            .name("states".into())
            .spawn(move || keeper.run())?;
        Ok(StateFiles {
            interval,
            shared,
            thread: Some(thread),
        })
    }
}

fn state_path(directory: &Path, session: SessionId) -> PathBuf {
    directory.join(format!("session-{}.state", session.0))
}

fn read(path: &Path) -> Result<Saved, String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    decode(&bytes)
}

/// The content of a state file.
///
/// # Errors
/// In words: another version, a damaged file.
pub fn decode(bytes: &[u8]) -> Result<Saved, String> {
    let Some((magic, rest)) = bytes.split_first_chunk::<8>() else {
        return Err("too short for a state of a session".into());
    };
    let (name, version) = (&MAGIC[..7], MAGIC[7]);
    if magic[..7] != *name {
        return Err("not the state of a session".into());
    }
    if magic[7] != version {
        return Err(format!(
            "written in version {} of the format, this program reads version {version}",
            magic[7]
        ));
    }
    let Some((digest, body)) = rest.split_first_chunk::<DIGEST_BYTES>() else {
        return Err("damaged: it ends early".into());
    };
    if *blake3::hash(body).as_bytes() != *digest {
        return Err("damaged: its checksum does not fit".into());
    }
    decode_body(body).map_err(|error| format!("damaged: {error}"))
}

fn decode_body(body: &[u8]) -> Result<Saved, WireError> {
    let mut input = Reader::new(body);
    let saved = Saved {
        session: SessionId(input.word()?),
        owner: input.string("owner")?,
        computed_by: ComputedBy {
            checkpoint: input.string("checkpoint")?,
            precision: input.string("precision")?,
            device: input.string("device")?,
        },
        recording: input
            .option("recording", |input| input.string("recording"))?
            .map(PathBuf::from),
        state: input.array()?,
    };
    input.end()?;
    Ok(saved)
}

/// A state file.
pub fn encode(saved: &Saved) -> Vec<u8> {
    let mut body = Writer::default();
    body.word(saved.session.0);
    for text in [
        &saved.owner,
        &saved.computed_by.checkpoint,
        &saved.computed_by.precision,
        &saved.computed_by.device,
    ] {
        body.text(text);
    }
    let recording = saved.recording.as_ref().map(|path| path.to_string_lossy());
    body.option(recording.as_deref(), Writer::text);
    body.array(&saved.state);
    let mut bytes = MAGIC.to_vec();
    bytes.extend(blake3::hash(&body.0).as_bytes());
    bytes.extend(body.0);
    bytes
}

/// Writes the states of the engine's sessions into a [`StateDirectory`].
#[derive(Debug)]
pub struct StateFiles {
    interval: Duration,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Counters of the writing.
#[derive(Debug, Default)]
pub struct StateStatistics {
    /// States written.
    pub written: AtomicU64,
    /// States that could not be written.
    pub failed: AtomicU64,
}

impl StateFiles {
    /// Counters that other threads may read.
    pub fn statistics(&self) -> Arc<StateStatistics> {
        Arc::clone(&self.shared.statistics)
    }
}

#[derive(Debug, Default)]
struct Shared {
    orders: Mutex<Orders>,
    filled: Condvar,
    statistics: Arc<StateStatistics>,
}

#[derive(Debug, Default)]
struct Orders {
    /// The last order for each session.
    waiting: BTreeMap<SessionId, Order>,
    waiting_bytes: u64,
    closed: bool,
}

#[derive(Debug)]
enum Order {
    Write {
        owner: String,
        state: Vec<u8>,
        recorded: bool,
    },
    Remove,
}

impl Order {
    fn bytes(&self) -> u64 {
        match self {
            Order::Write { state, .. } => state.len() as u64,
            Order::Remove => 0,
        }
    }
}

impl Shared {
    // Plain data, whole also after a panic elsewhere.
    fn lock(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, session: SessionId, order: Order) {
        let mut orders = self.lock();
        orders.waiting_bytes += order.bytes();
        if let Some(old) = orders.waiting.insert(session, order) {
            orders.waiting_bytes -= old.bytes();
        }
        drop(orders);
        self.filled.notify_one();
    }

    fn next(&self) -> Option<(SessionId, Order)> {
        let mut orders = self.lock();
        loop {
            if let Some((session, order)) = orders.waiting.pop_first() {
                orders.waiting_bytes -= order.bytes();
                return Some((session, order));
            }
            if orders.closed {
                return None;
            }
            orders = self
                .filled
                .wait(orders)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl StateStore for StateFiles {
    fn interval(&self) -> Option<Duration> {
        Some(self.interval)
    }

    fn is_behind(&self) -> bool {
        self.shared.lock().waiting_bytes > MOST_WAITING
    }

    fn save(&mut self, session: SessionId, owner: &str, state: Vec<u8>, recorded: bool) {
        let owner = owner.to_owned();
        let order = Order::Write {
            owner,
            state,
            recorded,
        };
        self.shared.order(session, order);
    }

    fn forget(&mut self, session: SessionId) {
        self.shared.order(session, Order::Remove);
    }

    fn finish(&mut self) {
        self.shared.lock().closed = true;
        self.shared.filled.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that keeps states has panicked");
        }
    }
}

impl Drop for StateFiles {
    fn drop(&mut self) {
        self.finish();
    }
}

/// The writing thread.
struct Keeper {
    directory: StateDirectory,
    computed_by: ComputedBy,
    flusher: Option<Flusher>,
    /// Last known files of the sessions.
    recordings: BTreeMap<SessionId, PathBuf>,
    shared: Arc<Shared>,
}

impl Keeper {
    fn run(&mut self) {
        while let Some((session, order)) = self.shared.next() {
            let done = match order {
                Order::Write {
                    owner,
                    state,
                    recorded,
                } => self.write(session, owner, state, recorded),
                Order::Remove => {
                    self.recordings.remove(&session);
                    match std::fs::remove_file(state_path(&self.directory.path, session)) {
                        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                        _ => Ok(()),
                    }
                }
            };
            if let Err(error) = done {
                let count = &self.shared.statistics.failed;
                count.fetch_add(1, Ordering::Relaxed);
                let directory = self.directory.path.display();
                tracing::error!(session = session.0, %directory, %error, "state not kept");
            }
        }
    }

    fn write(
        &mut self,
        session: SessionId,
        owner: String,
        state: Vec<u8>,
        recorded: bool,
    ) -> std::io::Result<()> {
        if recorded {
            self.make_frames_safe(session);
        } else {
            self.recordings.remove(&session);
        }
        let saved = Saved {
            session,
            owner,
            computed_by: self.computed_by.clone(),
            recording: self.recordings.get(&session).cloned(),
            state,
        };
        let path = state_path(&self.directory.path, session);
        let part = path.with_extension("part");
        // The directory may have been removed; it comes back as soon as that is possible.
        std::fs::create_dir_all(&self.directory.path)?;
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&part)
            .and_then(|mut file| {
                file.write_all(&encode(&saved))?;
                file.sync_all()
            })
            .and_then(|()| std::fs::rename(&part, &path))
            .and_then(|()| File::open(&self.directory.path)?.sync_all());
        match written {
            Ok(()) => {
                let count = &self.shared.statistics.written;
                count.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => {
                // It is the old state that counts.
                let _ = std::fs::remove_file(&part);
                Err(error)
            }
        }
    }

    /// The frames before a state must not be lost when the state is not.
    fn make_frames_safe(&mut self, session: SessionId) {
        let Some(flusher) = &self.flusher else {
            return;
        };
        match flusher.flush(session.0, FLUSH_PATIENCE) {
            Ok(Some(path)) => {
                let journal = {
                    let mut name = path.as_os_str().to_owned();
                    name.push(".journal");
                    PathBuf::from(name)
                };
                for file in [&path, &journal] {
                    // A file that cannot be synchronised is as safe as the file system lets it be.
                    if let Ok(file) = File::open(file) {
                        let _ = file.sync_data();
                    }
                }
                self.recordings.insert(session, path);
            }
            Ok(None) => drop(self.recordings.remove(&session)),
            // The simulation goes on without its recording, and so does its state; the file so
            // far is gone on with once it can be written.
            Err(TrajectoryError::Stopped) => {}
            Err(error) => {
                tracing::debug!(session = session.0, %error, "a state without its last frames");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(number: u64) -> Saved {
        Saved {
            session: SessionId(number),
            owner: "ada".into(),
            computed_by: ComputedBy {
                checkpoint: "c".into(),
                precision: "f32".into(),
                device: "cpu".into(),
            },
            recording: number.is_multiple_of(2).then(|| PathBuf::from("a.h5")),
            state: vec![number as u8; 100],
        }
    }

    #[test]
    fn every_damaged_byte_is_noticed() {
        let whole = encode(&saved(4));
        assert_eq!(decode(&whole), Ok(saved(4)));
        for cut in 0..whole.len() {
            assert!(decode(&whole[..cut]).is_err(), "cut at {cut}");
        }
        for place in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[place] ^= 0x10;
            assert!(decode(&damaged).is_err(), "flipped at {place}");
        }
        let mut newer = whole;
        newer[7] += 1;
        let reason = decode(&newer).unwrap_err();
        assert!(reason.contains("version 3"), "{reason}");
    }

    #[test]
    fn a_directory_gives_back_what_was_stored_and_puts_damaged_files_aside() {
        let place = tempfile::tempdir().expect("temporary directory");
        let directory = StateDirectory::open(place.path()).expect("opens");
        assert!(
            StateDirectory::open(place.path())
                .unwrap_err()
                .to_string()
                .contains("another running umaserve")
        );
        let computed_by = saved(1).computed_by;
        let mut store = directory
            .store(Duration::from_secs(1), computed_by, None, [])
            .expect("a thread");
        for number in 1..=4 {
            store.save(SessionId(number), "ada", vec![9; 10], false);
            store.save(SessionId(number), "ada", saved(number).state, false);
        }
        store.forget(SessionId(3));
        store.finish();
        assert_eq!(store.statistics().failed.load(Ordering::Relaxed), 0);
        drop(store);
        let damaged = state_path(place.path(), SessionId(2));
        let mut bytes = std::fs::read(&damaged).expect("written");
        bytes[60] ^= 1;
        std::fs::write(&damaged, bytes).expect("written");
        std::fs::write(place.path().join("session-9.part"), b"half").expect("written");

        let directory = StateDirectory::open(place.path()).expect("opens again");
        let (found, bad) = directory.read().expect("readable");
        let numbers: Vec<u64> = found.iter().map(|s| s.session.0).collect();
        assert_eq!(numbers, [1, 4]);
        assert_eq!(found[1].state, saved(4).state);
        assert_eq!(bad.len(), 1);
        assert!(bad[0].to_string().contains("session-2.state"), "{}", bad[0]);
        assert!(bad[0].to_string().contains("checksum"), "{}", bad[0]);
        assert!(place.path().join("session-2.state.refused").exists());
        assert!(!place.path().join("session-9.part").exists());
    }
}
