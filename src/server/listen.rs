//! Doors: TCP and Unix sockets, with TLS in front where that is asked for, and time-outs for
//! those who come in and say nothing.
//!
//! Connections are accepted here and not by `axum::serve`, because a handshake must not take
//! longer than a bound, whether it is that of TLS or the head of a request, and the number of
//! connections is bounded too.

use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::header::{self, HeaderValue};
use axum::http::{Request, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tower::ServiceExt as _;

use super::access::Peer;
use super::{GOODBYE, Shared, stop};

/// Most bytes of the head of a request.
const HEAD_BYTES: usize = 32 << 10;

/// After an error of accept (no file descriptors left, say) that does not concern one connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Something that viewers can connect to.
#[derive(Debug)]
pub enum Listener {
    /// An address.
    Tcp(std::net::TcpListener),
    /// A path in the file system, removed at the end.
    Unix(UnixSocket),
}

impl From<std::net::TcpListener> for Listener {
    fn from(listener: std::net::TcpListener) -> Self {
        Listener::Tcp(listener)
    }
}

/// A Unix socket that nobody but its owner can open.
#[derive(Debug)]
pub struct UnixSocket {
    listener: std::os::unix::net::UnixListener,
    path: PathBuf,
    /// Device and inode of the socket, to know it again.
    identity: (u64, u64),
}

impl UnixSocket {
    /// Listens at this path, with mode 0600 from its first moment. A socket that was left behind
    /// there is replaced.
    ///
    /// # Errors
    /// The path is too long, taken, or cannot be written.
    pub fn bind(path: &Path) -> Result<UnixSocket, String> {
        let fail = |reason: String| format!("--unix-socket {}: {reason}", path.display());
        if let Ok(found) = std::fs::symlink_metadata(path) {
            if !found.file_type().is_socket() {
                return Err(fail("there is a file that is no socket".into()));
            }
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(fail("another server listens there".into()));
            }
        }
        // Made in a directory of its own, so that the mode is right before anybody can see it.
        let mut directory = path.as_os_str().to_owned();
        directory.push(format!(".{}", std::process::id()));
        let directory = PathBuf::from(directory);
        let made = std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .and_then(|()| {
                let fresh = directory.join("s");
                let listener = std::os::unix::net::UnixListener::bind(&fresh)?;
                std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
                std::fs::rename(&fresh, path)?;
                Ok(listener)
            });
        let _ = std::fs::remove_file(directory.join("s"));
        let _ = std::fs::remove_dir(&directory);
        match made.and_then(|listener| Ok((listener, identity(path)?))) {
            Ok((listener, identity)) => Ok(UnixSocket {
                listener,
                path: path.to_owned(),
                identity,
            }),
            Err(error) => Err(fail(error.to_string())),
        }
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        // One that has been replaced belongs to a later server.
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Device and inode of a file.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = std::fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

/// What TLS needs, read from files.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    certificate: Vec<u8>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// A certificate chain and its key, both PEM.
    ///
    /// # Errors
    /// A file cannot be read or holds something else, or the two do not belong together.
    pub fn read(certificate: &Path, key: &Path) -> Result<Tls, String> {
        let chain = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| format!("--tls-cert {}: {error}", certificate.display()))?;
        if chain.is_empty() {
            let path = certificate.display();
            return Err(format!("--tls-cert {path}: there is no certificate in it"));
        }
        let own = chain[0].to_vec();
        let secret = PrivateKeyDer::from_pem_file(key)
            .map_err(|error| format!("--tls-key {}: {error}", key.display()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                builder
                    .with_no_client_auth()
                    .with_single_cert(chain, secret)
            });
        match config {
            Ok(mut config) => {
                config.alpn_protocols = vec![b"http/1.1".to_vec()];
                Ok(Tls {
                    acceptor: TlsAcceptor::from(Arc::new(config)),
                    certificate: own,
                })
            }
            Err(error) => Err(format!(
                "--tls-cert {} and --tls-key {}: {error}",
                certificate.display(),
                key.display()
            )),
        }
    }
}

impl Tls {
    /// The certificate that the server shows, DER.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }
}

/// What all connections share.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) router: Router,
    pub(super) shared: Arc<Shared>,
    pub(super) tls: Option<Tls>,
    pub(super) places: Arc<Semaphore>,
    pub(super) stopping: watch::Receiver<bool>,
}

impl Door {
    /// Accepts connections until the server stops.
    pub(super) async fn open(self, listener: Listener) -> io::Result<()> {
        match listener {
            Listener::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                let listener = tokio::net::TcpListener::from_std(listener)?;
                loop {
                    let Some(place) = self.place().await else {
                        return Ok(());
                    };
                    let stopping = stop(self.stopping.clone());
                    let accepted = tokio::select! {
                        accepted = listener.accept() => accepted,
                        () = stopping => return Ok(()),
                    };
                    match accepted {
                        Ok((stream, address)) => {
                            // A frame is small and wanted now.
                            if let Err(error) = stream.set_nodelay(true) {
                                tracing::debug!(%error, "TCP_NODELAY was refused");
                            }
                            let peer = Peer::of(address.ip());
                            tokio::spawn(self.clone().secure(stream, peer, place));
                        }
                        Err(error) => pause_after(&error).await,
                    }
                }
            }
            Listener::Unix(socket) => {
                socket.listener.set_nonblocking(true)?;
                let listener = socket.listener.try_clone()?;
                let listener = tokio::net::UnixListener::from_std(listener)?;
                loop {
                    let Some(place) = self.place().await else {
                        return Ok(());
                    };
                    let stopping = stop(self.stopping.clone());
                    let accepted = tokio::select! {
                        accepted = listener.accept() => accepted,
                        () = stopping => return Ok(()),
                    };
                    match accepted {
                        Ok((stream, _)) => {
                            tokio::spawn(self.clone().converse(stream, Peer::Local, place));
                        }
                        Err(error) => pause_after(&error).await,
                    }
                }
            }
        }
    }

    /// Waits for a place for one more connection; none when the server stops.
    async fn place(&self) -> Option<tokio::sync::OwnedSemaphorePermit> {
        tokio::select! {
            place = Arc::clone(&self.places).acquire_owned() => place.ok(),
            () = stop(self.stopping.clone()) => None,
        }
    }

    /// The handshake of TLS, where there is TLS, then the conversation.
    async fn secure(
        self,
        stream: tokio::net::TcpStream,
        peer: Peer,
        place: tokio::sync::OwnedSemaphorePermit,
    ) {
        let Some(Tls { acceptor, .. }) = self.tls.clone() else {
            return self.converse(stream, peer, place).await;
        };
        let patience = self.shared.settings.handshake_timeout;
        match tokio::time::timeout(patience, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => self.converse(stream, peer, place).await,
            Ok(Err(error)) => tracing::debug!(%error, ?peer, "no TLS handshake"),
            Err(_) => tracing::debug!(?peer, "no TLS handshake in time"),
        }
    }

    /// Requests and answers of one connection.
    async fn converse(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: Peer,
        place: tokio::sync::OwnedSemaphorePermit,
    ) {
        let Door {
            router,
            shared,
            stopping,
            ..
        } = self;
        shared.metrics.connections.inc();
        // An upgraded connection keeps its place: the last of its requests holds it.
        let held = Arc::new(Held {
            shared: shared.clone(),
            _place: place,
        });
        let prefix = shared.settings.path_prefix.clone();
        let keep = held.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(peer);
            request.extensions_mut().insert(keep.clone());
            let inside = strip_prefix(request, &prefix);
            let router = router.clone();
            async move {
                let response = match inside {
                    Ok(request) => router.oneshot(request).await?,
                    Err(response) => *response,
                };
                Ok::<Response, std::convert::Infallible>(protect(response))
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(shared.settings.handshake_timeout)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        tokio::pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = stop(stopping) => {
                connection.as_mut().graceful_shutdown();
                match tokio::time::timeout(GOODBYE, connection.as_mut()).await {
                    Ok(result) => result,
                    Err(_) => return,
                }
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, ?peer, "a connection broke");
        }
        drop(held);
    }
}

/// The place of a connection, held by the connection and by its WebSocket.
pub(super) struct Held {
    shared: Arc<Shared>,
    _place: tokio::sync::OwnedSemaphorePermit,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.metrics.connections.dec();
    }
}

async fn pause_after(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    if !matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | Interrupted
    ) {
        tracing::error!(%error, "cannot accept a connection");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

/// The request as it looks below the prefix; otherwise the answer.
fn strip_prefix(mut request: Request<Body>, prefix: &str) -> Result<Request<Body>, Box<Response>> {
    if prefix.is_empty() {
        return Ok(request);
    }
    let uri = request.uri();
    let query = uri
        .query()
        .map_or(String::new(), |query| format!("?{query}"));
    match uri.path().strip_prefix(prefix) {
        // Without the slash the page's relative addresses would miss the prefix. The query may
        // hold a token, which an answer should not repeat.
        Some("") => {
            let mut response = StatusCode::PERMANENT_REDIRECT.into_response();
            if let Ok(to) = HeaderValue::from_str(&format!("{prefix}/")) {
                response.headers_mut().insert(header::LOCATION, to);
            }
            Err(Box::new(response))
        }
        Some(path) if path.starts_with('/') => {
            match format!("{path}{query}").parse::<Uri>() {
                Ok(uri) => *request.uri_mut() = uri,
                Err(_) => return Err(Box::new(StatusCode::BAD_REQUEST.into_response())),
            }
            Ok(request)
        }
        _ => {
            let reason = format!("this server works below {prefix}/\n");
            Err(Box::new((StatusCode::NOT_FOUND, reason).into_response()))
        }
    }
}

/// Tells browsers not to guess, not to tell where they came from, and not to keep answers.
fn protect(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}
