//! What an earlier process has left behind: sessions to go on with, recordings to mend.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use crate::comm::SessionId;
use crate::resume::{ComputedBy, StateDirectory};
use crate::session::{Session, SessionSettings};
use crate::trajectory::repair_directory;

/// Sessions of an earlier process with the names of their owners, and the files that they were
/// recorded to.
#[derive(Default)]
pub(super) struct Restored {
    pub(super) sessions: Vec<(Session, String)>,
    pub(super) files: Vec<(SessionId, PathBuf)>,
}

/// Reads the sessions back. What cannot be used is named, put aside, and does not keep the others
/// from going on.
pub(super) fn restore(
    directory: &StateDirectory,
    computed_by: &ComputedBy,
    settings: &Arc<SessionSettings>,
    record: Option<&Path>,
) -> Result<Restored, String> {
    let (found, mut refused) = directory.read().map_err(|e| format!("--resume: {e}"))?;
    let mut restored = Restored::default();
    for saved in found {
        let ComputedBy { checkpoint, .. } = &saved.computed_by;
        if *checkpoint != computed_by.checkpoint {
            let reason = format!("its checkpoint is {checkpoint:.16}, not the one served here");
            refused.push(directory.refuse(saved.session, reason));
            continue;
        }
        if saved.computed_by != *computed_by {
            tracing::warn!(
                session = saved.session.0,
                before = ?saved.computed_by,
                "another device or precision: it goes on, but not with the same numbers"
            );
        }
        match Session::restore(&saved.state, settings.clone(), Instant::now()) {
            Ok(session) if session.id() == saved.session => {
                let file = saved.recording.and_then(|path| found_again(path, record));
                restored.files.extend(file.map(|path| (session.id(), path)));
                restored.sessions.push((session, saved.owner));
            }
            Ok(_) => refused.push(directory.refuse(saved.session, "of another session")),
            Err(error) => refused.push(directory.refuse(saved.session, error)),
        }
    }
    for refused in &refused {
        tracing::error!("session not resumed: {refused}");
    }
    let (sessions, refused) = (restored.sessions.len(), refused.len());
    tracing::info!(sessions, refused, "sessions resumed");
    Ok(restored)
}

/// A recording, also if its directory was moved as a whole.
fn found_again(path: PathBuf, record: Option<&Path>) -> Option<PathBuf> {
    let moved = record?.join(path.file_name()?);
    Some(if moved.exists() { moved } else { path })
}

/// Mends the recordings that a killed server has left behind, also those of sessions that nobody
/// can resume.
pub(super) fn mend(directory: &Path, files: &[(SessionId, PathBuf)]) {
    let wanted: Vec<PathBuf> = files.iter().map(|(_, path)| path.clone()).collect();
    match repair_directory(directory, &wanted) {
        Ok((mended, failed)) => {
            if mended > 0 {
                tracing::info!(mended, "recordings mended");
            }
            for error in failed {
                tracing::error!(%error, "recording not mended");
            }
        }
        Err(error) => tracing::error!(%error, "recordings not mended"),
    }
}
