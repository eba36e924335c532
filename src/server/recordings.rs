//! Recordings over HTTP: a list, and every file as a download that opens, also while it is being
//! written. What lies on disk and how a copy is made is the business of whoever implements
//! [`Recordings`].

use std::fmt::Debug;
use std::fs::File;
use std::io::Read as _;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{Json, Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use tokio::task::spawn_blocking;

use super::Shared;

/// Bytes that are read from disk at a time.
const PIECE_BYTES: usize = 256 << 10;

/// A recording in the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordingInfo {
    /// File name.
    pub name: String,
    /// Size on disk, bytes.
    pub bytes: u64,
    /// Last change.
    pub modified: SystemTime,
    /// Frames, if known.
    pub frames: Option<u64>,
    /// Whether it is being written.
    pub live: bool,
}

/// Where recordings come from. The calls may block.
pub trait Recordings: Debug + Send + Sync {
    /// The recordings, the newest first.
    ///
    /// # Errors
    /// Why they cannot be listed, in words.
    fn list(&self) -> Result<Vec<RecordingInfo>, String>;

    /// A complete file of this name, to read from its beginning; `None` for names that are not in
    /// the list, whatever they contain.
    ///
    /// # Errors
    /// Why it cannot be read, in words.
    fn open(&self, name: &str) -> Result<Option<File>, String>;
}

pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Response {
    let Some(recordings) = shared.settings.recordings.clone() else {
        return refuse(StatusCode::NOT_FOUND, "this server does not record");
    };
    match spawn_blocking(move || recordings.list()).await {
        Ok(Ok(list)) => {
            let list: Vec<_> = list.iter().map(describe).collect();
            let fresh = [(header::CACHE_CONTROL, "no-store")];
            (fresh, Json(serde_json::json!({ "recordings": list }))).into_response()
        }
        Ok(Err(reason)) => failed(&reason),
        Err(error) => failed(&error.to_string()),
    }
}

fn describe(info: &RecordingInfo) -> serde_json::Value {
    let since = info.modified.duration_since(UNIX_EPOCH);
    let mut entry = serde_json::json!({
        "name": info.name,
        "bytes": info.bytes,
        // Milliseconds since 1970, as JavaScript's Date takes them.
        "modified": since.map_or(0, |t| t.as_millis() as u64),
        "live": info.live,
    });
    if let Some(frames) = info.frames {
        entry["frames"] = frames.into();
    }
    entry
}

pub(super) async fn file(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> Response {
    let Some(recordings) = shared.settings.recordings.clone() else {
        return refuse(StatusCode::NOT_FOUND, "this server does not record");
    };
    let wanted = name.clone();
    let opened = spawn_blocking(move || match recordings.open(&wanted)? {
        None => Ok(None),
        Some(file) => {
            let length = file.metadata().map_err(|error| error.to_string())?.len();
            Ok::<_, String>(Some((file, length)))
        }
    });
    let (file, length) = match opened.await {
        Ok(Ok(Some(opened))) => opened,
        Ok(Ok(None)) => return refuse(StatusCode::NOT_FOUND, "there is no recording of this name"),
        Ok(Err(reason)) => return failed(&reason),
        Err(error) => return failed(&error.to_string()),
    };
    let mut response = Body::from_stream(pieces(file, length)).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/x-hdf5"),
    );
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // The name is one that the recorder gave: letters, digits, '.', '_', '-'.
    if let Ok(value) = HeaderValue::from_str(&format!("attachment; filename=\"{name}\"")) {
        headers.insert(header::CONTENT_DISPOSITION, value);
    }
    response
}

/// The first `length` bytes of the file, read as the client takes them.
fn pieces(file: File, length: u64) -> impl stream::Stream<Item = std::io::Result<Bytes>> {
    stream::unfold(Some((file, length)), |state| async move {
        let (mut file, left) = state.filter(|(_, left)| *left > 0)?;
        let read = spawn_blocking(move || {
            let mut piece = vec![0; PIECE_BYTES.min(usize::try_from(left).unwrap_or(PIECE_BYTES))];
            let count = file.read(&mut piece)?;
            piece.truncate(count);
            Ok::<_, std::io::Error>((file, piece))
        });
        match read.await {
            Ok(Ok((_, piece))) if piece.is_empty() => {
                let cut = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                Some((Err(cut), None))
            }
            Ok(Ok((file, piece))) => {
                let left = left - piece.len() as u64;
                Some((Ok(Bytes::from(piece)), Some((file, left))))
            }
            Ok(Err(error)) => Some((Err(error), None)),
            Err(error) => Some((Err(std::io::Error::other(error)), None)),
        }
    })
}

fn refuse(code: StatusCode, reason: &str) -> Response {
    (code, Json(serde_json::json!({ "error": reason }))).into_response()
}

fn failed(reason: &str) -> Response {
    tracing::warn!(reason, "a recording could not be handed out");
    refuse(StatusCode::INTERNAL_SERVER_ERROR, reason)
}
