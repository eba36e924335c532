//! The writer thread: takes messages off the queue, keeps one file per session.
//!
//! A file that cannot be written (full disk, lost directory) never stops a simulation: its frames
//! are held back as far as memory is set aside for them, then dropped and counted; the recorder
//! tries again at every flush and notes the gap in the file's events once it succeeds.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::queue::{Queue, Received};
use super::writer::Writer;
use super::{
    FrameData, Header, RecordMessage, RecordNotice, RecordNoticeKind, RecorderSettings,
    RecorderStatus, TrajectoryError,
};

/// Notices kept for a caller that does not fetch them.
const NOTICES: usize = 4096;
/// How often a file is closed in vain before the recorder leaves it to `repair`.
const CLOSE_ATTEMPTS: u32 = 3;

/// Records sessions into H5MD files from a thread of its own.
///
/// Dropping it finishes all files.
#[derive(Debug)]
pub struct Recorder {
    shared: Arc<Shared>,
    send_timeout: Duration,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    queue: Queue,
    status: Mutex<RecorderStatus>,
    notices: Mutex<Vec<RecordNotice>>,
    flushes: Mutex<Flushes>,
    flushed: Condvar,
}

/// Requests of [`Flusher`]s and their answers.
#[derive(Debug, Default)]
struct Flushes {
    last: u64,
    done: HashMap<u64, Result<Option<PathBuf>, TrajectoryError>>,
}

/// Asks the writer thread to make a session's frames safe. For threads that can wait.
#[derive(Clone, Debug)]
pub struct Flusher(Arc<Shared>);

impl Flusher {
    /// Returns when everything that was sent for `key` before this call is in its file or journal,
    /// with the file; `None` if nothing is being recorded for `key`.
    ///
    /// # Errors
    /// The file cannot be written, the recorder has stopped or does not answer in time.
    pub fn flush(&self, key: u64, patience: Duration) -> Result<Option<PathBuf>, TrajectoryError> {
        let request = {
            let mut flushes = lock(&self.0.flushes);
            flushes.last += 1;
            flushes.last
        };
        let message = RecordMessage::Flush { key, request };
        self.0.queue.push(message, Duration::ZERO)?;
        let deadline = Instant::now() + patience;
        let mut flushes = lock(&self.0.flushes);
        loop {
            if let Some(answer) = flushes.done.remove(&request) {
                return answer;
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                let reason = format!("the recorder is more than {patience:?} behind");
                return Err(TrajectoryError::Invalid(reason));
            };
            flushes = self
                .0
                .flushed
                .wait_timeout(flushes, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

impl Recorder {
    /// Starts the writer thread, after checking that the directory can be written.
    pub fn start(settings: RecorderSettings) -> Result<Self, TrajectoryError> {
        let directory = &settings.directory;
        let error = |e: std::io::Error| TrajectoryError::file(directory, e);
        std::fs::create_dir_all(directory).map_err(error)?;
        let probe = directory.join(format!(".umaserve-probe-{}", std::process::id()));
        std::fs::write(&probe, b"").map_err(error)?;
        std::fs::remove_file(&probe).map_err(error)?;

        let shared = Arc::new(Shared {
            queue: Queue::new(settings.queue_bytes),
            status: Mutex::default(),
            notices: Mutex::default(),
            flushes: Mutex::default(),
            flushed: Condvar::new(),
        });
        let send_timeout = settings.send_timeout;
        let thread = std::thread::Builder::new()
            .name("trajectory".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || {
                    Recording {
                        settings,
                        shared,
                        sessions: HashMap::new(),
                    }
                    .run();
                }
            })
            .map_err(|e| TrajectoryError::Invalid(format!("no thread for the recorder: {e}")))?;
        Ok(Self {
            shared,
            send_timeout,
            thread: Some(thread),
        })
    }

    /// Hands a message to the writer. Returns at once unless the queue is full; then a frame or an
    /// event waits at most [`RecorderSettings::send_timeout`] and is dropped with
    /// [`TrajectoryError::Full`] (frames are counted in the status and noted in the file). Open and
    /// Close are always taken.
    pub fn send(&self, message: RecordMessage) -> Result<(), TrajectoryError> {
        self.shared.queue.push(message, self.send_timeout)
    }

    /// For threads that have to know when frames are safe.
    pub fn flusher(&self) -> Flusher {
        Flusher(Arc::clone(&self.shared))
    }

    /// The counters now.
    pub fn status(&self) -> RecorderStatus {
        self.watch().status()
    }

    /// Reads the counters from elsewhere, for as long as that is wanted.
    pub fn watch(&self) -> RecorderWatch {
        RecorderWatch(Arc::clone(&self.shared))
    }

    /// What happened since the last call, oldest first.
    pub fn take_notices(&self) -> Vec<RecordNotice> {
        std::mem::take(&mut lock(&self.shared.notices))
    }

    /// Writes everything that was sent, closes all files and returns the final counters.
    pub fn finish(mut self) -> RecorderStatus {
        self.stop();
        self.status()
    }

    fn stop(&mut self) {
        self.shared.queue.close();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            lock(&self.shared.status).last_error = Some("the recorder thread panicked".to_owned());
        }
    }
}

/// See [`Recorder::watch`].
#[derive(Clone, Debug)]
pub struct RecorderWatch(Arc<Shared>);

impl RecorderWatch {
    /// The counters now.
    pub fn status(&self) -> RecorderStatus {
        RecorderStatus {
            queued_bytes: self.0.queue.bytes(),
            ..lock(&self.0.status).clone()
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.stop();
    }
}

/// One session in the writer thread.
struct Session {
    label: String,
    header: Header,
    /// The file; `None` while it could not be created.
    writer: Option<Writer>,
    /// What the status already counts of this file.
    counted: Counted,
    /// Whether the last attempt to write failed.
    failing: bool,
    /// Frames dropped since the last notice about them.
    dropped: u64,
    last_step: u64,
}

impl Session {
    fn new(label: String, header: Header, last_step: u64) -> Self {
        Session {
            label,
            header,
            writer: None,
            counted: Counted::default(),
            failing: false,
            dropped: 0,
            last_step,
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Counted {
    frames: u64,
    safe: u64,
    bytes: u64,
}

/// The writer thread's state.
struct Recording {
    settings: RecorderSettings,
    shared: Arc<Shared>,
    sessions: HashMap<u64, Session>,
}

impl Recording {
    fn run(mut self) {
        let interval = self.settings.flush_interval;
        let mut next_flush = Instant::now() + interval;
        loop {
            let received = self.shared.queue.pop(next_flush);
            let start = Instant::now();
            let closed = matches!(received, Received::Closed);
            if let Received::Message(message) = received {
                self.take(message);
            }
            if closed || start >= next_flush {
                self.flush();
                next_flush = Instant::now() + interval;
            }
            if closed {
                let mut keys: Vec<u64> = self.sessions.keys().copied().collect();
                keys.sort_unstable();
                for key in keys {
                    self.close(key, None);
                }
            }
            let mut status = lock(&self.shared.status);
            status.busy_seconds += start.elapsed().as_secs_f64();
            status.open_files = self
                .sessions
                .values()
                .filter(|s| s.writer.is_some())
                .count();
            if closed {
                return;
            }
        }
    }

    fn take(&mut self, message: RecordMessage) {
        match message {
            RecordMessage::Open { key, label, header } => {
                self.close(key, None);
                self.sessions.insert(key, Session::new(label, header, 0));
                self.attend(key, |_, _| Ok(()));
            }
            RecordMessage::Resume {
                key,
                path,
                label,
                header,
                step,
            } => self.resume(key, &path, label, header, step),
            RecordMessage::Flush { key, request } => {
                let answer = self.make_safe(key);
                lock(&self.shared.flushes).done.insert(request, answer);
                self.shared.flushed.notify_all();
            }
            RecordMessage::Frame { key, frame } => self.frame(key, &frame),
            RecordMessage::Event { key, step, text } => {
                let failing = self.sessions.get_mut(&key).filter(|s| s.failing);
                if let Some(session) = failing {
                    if let Some(writer) = &mut session.writer {
                        writer.push_event(step, text);
                    }
                    return;
                }
                // What the user does now was not done before the restart.
                self.attend(key, |writer, _| {
                    writer.cut_replay()?;
                    writer.push_event(step, text);
                    Ok(())
                });
            }
            RecordMessage::Close { key, step } => self.close(key, step),
        }
    }

    /// Goes on with the file of an earlier process.
    fn resume(&mut self, key: u64, path: &Path, label: String, header: Header, step: u64) {
        self.close(key, None);
        let mut session = Session::new(label, header, step);
        let text = match Writer::reopen(path, &session.header, step) {
            Ok(writer) => {
                session.counted = Counted {
                    frames: writer.frames_in_file(),
                    safe: writer.frames_safe(),
                    bytes: writer.bytes_written(),
                };
                session.writer = Some(writer);
                let path = path.to_owned();
                self.notify(key, RecordNoticeKind::Opened { path });
                "resumed after a restart of the server".to_owned()
            }
            Err(error) => {
                let error = format!("{error}; the simulation goes on in another file");
                lock(&self.shared.status).last_error = Some(error.clone());
                self.notify(key, RecordNoticeKind::Failed { error });
                format!("continues {}", path.display())
            }
        };
        self.sessions.insert(key, session);
        self.attend(key, |writer, _| {
            writer.push_event(step, text);
            Ok(())
        });
    }

    /// Everything taken so far for `key` goes to the file or its journal.
    fn make_safe(&mut self, key: u64) -> Result<Option<PathBuf>, TrajectoryError> {
        if !self.sessions.contains_key(&key) {
            return Ok(None);
        }
        self.attend(key, write_out);
        let Some(session) = self.sessions.get(&key) else {
            return Ok(None);
        };
        match &session.writer {
            Some(writer) if !session.failing => Ok(Some(writer.path().to_owned())),
            _ => {
                let error = lock(&self.shared.status).last_error.clone();
                Err(TrajectoryError::Invalid(error.unwrap_or_default()))
            }
        }
    }

    fn frame(&mut self, key: u64, frame: &FrameData) {
        let Some(session) = self.sessions.get_mut(&key) else {
            lock(&self.shared.status).frames_dropped += 1;
            return;
        };
        session.last_step = frame.step;
        let full = session.writer.as_ref().is_some_and(Writer::is_full);
        // Without a file it is only tried again at the next flush, not at every frame.
        if full || (session.writer.is_none() && session.failing) {
            session.dropped += 1;
            lock(&self.shared.status).frames_dropped += 1;
            return;
        }
        let mut unfit = None;
        if session.failing
            && let Some(writer) = &mut session.writer
        {
            // Held back: the file is only tried again at the next flush, not at every frame.
            unfit = writer.push(frame).err();
        } else {
            self.attend(key, |writer, _| {
                match writer.push(frame) {
                    Ok(()) => writer.commit_if_due()?,
                    // The frame's fault, not the file's: it is counted and the recording goes on.
                    Err(error) => unfit = Some(error),
                }
                Ok(())
            });
        }
        if let Some(error) = unfit {
            let mut status = lock(&self.shared.status);
            status.frames_dropped += 1;
            status.last_error = Some(error.to_string());
            drop(status);
            self.notify(
                key,
                RecordNoticeKind::Failed {
                    error: error.to_string(),
                },
            );
        }
    }

    fn flush(&mut self) {
        for (key, frames) in self.shared.queue.take_refused() {
            lock(&self.shared.status).frames_dropped += frames;
            if let Some(session) = self.sessions.get_mut(&key) {
                session.dropped += frames;
            }
        }
        let keys: Vec<u64> = self.sessions.keys().copied().collect();
        for key in keys {
            self.give_up_removed_file(key);
            self.attend(key, write_out);
        }
    }

    /// What is written to a file that somebody has removed is lost without an error, so it is
    /// looked for; the recording goes on in a new file as soon as that can be created.
    fn give_up_removed_file(&mut self, key: u64) {
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        let Some(Err(error)) = session.writer.as_ref().map(Writer::check_presence) else {
            return;
        };
        if let Some(writer) = session.writer.take() {
            session.dropped += writer.frames() - writer.frames_in_file();
            writer.abandon();
        }
        session.failing = true;
        let error = error.to_string();
        lock(&self.shared.status).last_error = Some(error.clone());
        self.notify(key, RecordNoticeKind::Failed { error });
    }

    /// Does something with the file of `key`, creating it if it is missing, and tells when its
    /// state (failing or not) changes.
    fn attend(
        &mut self,
        key: u64,
        act: impl FnOnce(&mut Writer, bool) -> Result<(), TrajectoryError>,
    ) {
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        let mut notices = Vec::new();
        let opened = match session.writer {
            Some(_) => Ok(()),
            None => Writer::create(
                &self.settings.directory,
                &session.label,
                &session.header,
                &self.settings.author,
            )
            .map(|writer| {
                notices.push(RecordNoticeKind::Opened {
                    path: writer.path().to_owned(),
                });
                session.counted = Counted::default();
                session.writer = Some(writer);
            }),
        };
        let failing = session.failing;
        let result = opened.and_then(|()| match &mut session.writer {
            Some(writer) => act(writer, failing),
            None => Ok(()),
        });
        match result {
            Ok(()) => {
                session.failing = false;
                if (failing || session.dropped > 0)
                    && let Some(writer) = &mut session.writer
                    && !writer.is_full()
                {
                    let frames_dropped = std::mem::take(&mut session.dropped);
                    if frames_dropped > 0 {
                        let text = format!("{frames_dropped} frames were dropped before this one");
                        writer.push_event(session.last_step, text);
                    }
                    notices.push(RecordNoticeKind::Recovered { frames_dropped });
                }
            }
            Err(error) => {
                lock(&self.shared.status).last_error = Some(error.to_string());
                if !session.failing {
                    notices.push(RecordNoticeKind::Failed {
                        error: error.to_string(),
                    });
                }
                session.failing = true;
            }
        }
        if let Some(writer) = &session.writer {
            let (frames, safe) = (writer.frames_in_file(), writer.frames_safe());
            let old = session.counted;
            if (frames, safe) != (old.frames, old.safe) {
                let bytes = writer.bytes_written();
                let mut status = lock(&self.shared.status);
                status.frames_written += frames - old.frames;
                // A batch that reached the file counts fully; the journal never runs ahead of it.
                status.frames_safe += safe.max(old.safe) - old.safe;
                status.bytes_written += bytes.saturating_sub(old.bytes);
                session.counted = Counted {
                    frames,
                    safe: safe.max(old.safe),
                    bytes,
                };
            }
        }
        for kind in notices {
            self.notify(key, kind);
        }
    }

    fn close(&mut self, key: u64, step: Option<u64>) {
        if !self.sessions.contains_key(&key) {
            return;
        }
        if let Some(step) = step {
            self.attend(key, |writer, _| {
                if writer.is_replaying() {
                    let text = "stopped here; the frames after it were computed before a restart";
                    writer.push_event(step, text.to_owned());
                }
                Ok(())
            });
        }
        // The last frames of a failing file deserve another attempt before it is given up.
        for _ in 0..CLOSE_ATTEMPTS {
            self.attend(key, |writer, _| writer.commit());
            if self.sessions.get(&key).is_some_and(|s| !s.failing) {
                break;
            }
        }
        let Some(session) = self.sessions.remove(&key) else {
            return;
        };
        let Some(writer) = session.writer else {
            return;
        };
        let path = writer.path().to_owned();
        let taken = writer.frames();
        let kind = match writer.close() {
            Ok(frames) => RecordNoticeKind::Closed { path, frames },
            Err((error, lost)) => {
                let error = format!(
                    "{error}; {lost} frames are lost, `umaserve trajectory repair` brings the \
                     others back"
                );
                let mut status = lock(&self.shared.status);
                status.frames_dropped += lost;
                status.frames_safe += (taken - lost).saturating_sub(session.counted.safe);
                status.last_error = Some(error.clone());
                RecordNoticeKind::Failed { error }
            }
        };
        self.notify(key, kind);
    }

    /// Logs at once, from this thread: the last notices of a session come after its last message.
    fn notify(&self, key: u64, kind: RecordNoticeKind) {
        let session = key;
        match &kind {
            RecordNoticeKind::Opened { path } => {
                tracing::info!(session, path = %path.display(), "recording");
            }
            RecordNoticeKind::Closed { path, frames: 0 } => {
                tracing::info!(session, path = %path.display(), "removed: no frames");
            }
            RecordNoticeKind::Closed { path, frames } => {
                tracing::info!(session, path = %path.display(), frames, "recorded");
            }
            RecordNoticeKind::Failed { error } => {
                tracing::error!(session, error, "recording failed");
            }
            RecordNoticeKind::Recovered { frames_dropped } => {
                tracing::warn!(session, frames_dropped, "recording goes on");
            }
        }
        let mut notices = lock(&self.shared.notices);
        if notices.len() < NOTICES {
            notices.push(RecordNotice { key, kind });
        }
    }
}

/// Brings file and journal up to date. While the file fails, only success of both ends that; but a
/// journal that still fits saves what is held back.
fn write_out(writer: &mut Writer, failing: bool) -> Result<(), TrajectoryError> {
    let commit = writer.commit_if_due();
    let flush = writer.flush();
    if failing {
        commit.and(flush)
    } else {
        flush.and(commit)
    }
}

// A panic elsewhere leaves plain counters behind, so a poisoned lock is still usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
