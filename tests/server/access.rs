//! Who comes in: tokens, origins, TLS, the Unix socket, the path prefix, and how long one may
//! take to say what one wants.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::{TlsConnector, rustls};
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::{self, Message};
use umaserve::server::client::{Target, get};
use umaserve::server::{AccessSettings, Listener, ServerSettings, Tls, Token, UnixSocket};

use crate::ARGON;
use crate::viewer::*;

pub const ADA: &str = "ada-ada-ada-ada-ada-1";
pub const BOB: &str = "bob~bob~bob~bob~bob~2";

pub fn with_tokens() -> ServerSettings {
    let token = |name: &str, text| (name.to_owned(), Token::new(text).unwrap());
    ServerSettings {
        session: Arc::new(session_settings()),
        access: AccessSettings {
            tokens: vec![token("ada", ADA), token("bob", BOB)],
            ..AccessSettings::default()
        },
        ..ServerSettings::default()
    }
}

/// What an HTTP server answers.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    head: String,
    pub body: String,
}

impl Answer {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// One HTTP request over any stream; `headers` end with a line break each.
pub async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> Answer {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    // A server that closes while something is unread resets the connection: what came, counts.
    let _ = stream.read_to_end(&mut bytes).await;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").expect("a whole answer");
    Answer {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

pub async fn http(server: &Server, method: &str, path: &str, headers: &str) -> Answer {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let host = server.address;
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n");
    ask(stream, &request).await
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

/// The request of a WebSocket with further headers.
fn upgrade(url: &str, headers: &[(&'static str, &str)]) -> Request {
    let mut request = url.into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    request
}

/// The status of the answer to an upgrade: 101 or a refusal.
async fn upgraded(server: &Server, query: &str, headers: &[(&'static str, &str)]) -> u16 {
    let url = format!("ws://{}/ws{query}", server.address);
    let stream = TcpStream::connect(server.address).await.unwrap();
    match client_async(upgrade(&url, headers), stream).await {
        Ok((_, response)) => response.status().as_u16(),
        Err(tungstenite::Error::Http(response)) => response.status().as_u16(),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn everything_but_the_page_and_the_pulse_asks_for_a_token() {
    let server = Server::start(with_tokens()).await;
    for (method, path) in [
        ("GET", "/serve/health"),
        ("GET", "/serve/status"),
        ("GET", "/health/ready"),
        ("GET", "/metrics"),
        ("GET", "/uma/stats"),
        ("POST", "/uma/reset"),
        ("GET", "/ws"),
    ] {
        let answer = http(&server, method, path, "").await;
        assert_eq!(answer.status, 401, "{path}");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        assert!(answer.body.contains("umaserve connect"), "{}", answer.body);
        let right = if path == "/ws" { 400..427 } else { 200..201 };
        for (query, headers) in [
            (String::new(), bearer(ADA)),
            (String::new(), bearer(BOB)),
            (format!("?x=1&token={ADA}"), String::new()),
            (
                String::new(),
                format!("Cookie: a=b; umaserve_token={ADA}\r\n"),
            ),
            // A right one is enough.
            (
                format!("?token={ADA}"),
                "Cookie: umaserve_token=old\r\n".into(),
            ),
        ] {
            let answer = http(&server, method, &format!("{path}{query}"), &headers).await;
            assert!(
                right.contains(&answer.status),
                "{path}{query} {headers}: {answer:?}"
            );
            assert_eq!(answer.header("cache-control"), Some("no-store"));
            assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
        }
    }
    for path in ["/", "/health/live"] {
        let answer = http(&server, "GET", path, "").await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(!answer.body.contains(ADA));
    }
    assert_eq!(http(&server, "GET", "/no/such", "").await.status, 404);
}

#[tokio::test]
async fn a_token_in_the_address_becomes_a_cookie() {
    let server = Server::start(with_tokens()).await;
    let by_query = http(&server, "GET", &format!("/serve/health?token={ADA}"), "").await;
    let cookie = by_query.header("set-cookie").unwrap();
    for part in [
        &format!("umaserve_token={ADA};"),
        "HttpOnly",
        "SameSite=Strict",
        "Path=/",
    ] {
        assert!(cookie.contains(part), "{cookie}");
    }
    let value = cookie.split(';').next().unwrap();
    let again = http(
        &server,
        "GET",
        "/serve/health",
        &format!("Cookie: {value}\r\n"),
    )
    .await;
    assert_eq!((again.status, again.header("set-cookie")), (200, None));
    let by_header = http(&server, "GET", "/serve/health", &bearer(ADA)).await;
    assert_eq!(by_header.header("set-cookie"), None);
}

#[tokio::test]
async fn a_viewer_comes_in_with_any_form_of_the_token() {
    let server = Server::start(with_tokens()).await;
    let cookie = format!("umaserve_token={ADA}");
    let header = format!("Bearer {BOB}");
    let query = format!("?a=1&token={ADA}");
    assert_eq!(upgraded(&server, &query, &[]).await, 101);
    assert_eq!(upgraded(&server, "", &[("cookie", &cookie)]).await, 101);
    assert_eq!(
        upgraded(&server, "", &[("authorization", &header)]).await,
        101
    );
    eventually(|| server.watch.owners.lock().unwrap().len() == 3).await;
    let owners = server.watch.owners.lock().unwrap().clone();
    assert_eq!(owners, ["ada", "ada", "bob"]);
    assert_eq!(upgraded(&server, "", &[]).await, 401);
    assert_eq!(upgraded(&server, "?token=", &[]).await, 401);
    let nearly = format!("?token={}x", &ADA[..ADA.len() - 1]);
    assert_eq!(upgraded(&server, &nearly, &[]).await, 401);
}

#[tokio::test]
async fn pages_from_elsewhere_are_refused() {
    let mut settings = with_tokens();
    settings.access.origins = vec!["https://lab.example".into()];
    let server = Server::start(settings).await;
    let query = format!("?token={ADA}");
    let own = format!("http://{}", server.address);
    for (origin, status) in [
        (own.as_str(), 101),
        ("http://localhost:5174", 101),
        ("https://lab.example", 101),
        ("https://evil.example", 403),
        ("http://localhost.evil.example", 403),
        ("null", 403),
    ] {
        let got = upgraded(&server, &query, &[("origin", origin)]).await;
        assert_eq!(got, status, "{origin}");
        // What changes something is protected too, what only shows something by the browser.
        let headers = format!("{}Origin: {origin}\r\n", bearer(ADA));
        let expected = if status == 101 { 200 } else { 403 };
        let answer = http(&server, "POST", "/uma/reset", &headers).await;
        assert_eq!(answer.status, expected, "{origin}");
        assert_eq!(
            http(&server, "GET", "/uma/stats", &headers).await.status,
            200
        );
    }
    let text = http(&server, "GET", "/metrics", &bearer(ADA)).await.body;
    let refused = "umaserve_auth_failures_total{reason=\"origin\"} 6";
    assert!(text.contains(refused), "{text}");
}

#[tokio::test]
async fn without_tokens_only_loopback_names_lead_to_the_server() {
    let server = Server::default().await;
    let with_host = async |host: &str| {
        let stream = TcpStream::connect(server.address).await.unwrap();
        let request =
            format!("GET /serve/health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        ask(stream, &request).await.status
    };
    for host in ["localhost:8000", "127.0.0.1", "[::1]:8000", "a.localhost"] {
        assert_eq!(with_host(host).await, 200, "{host}");
    }
    // A name of a stranger that leads here (DNS rebinding): Origin and Host would agree.
    for host in [
        "evil.example",
        "evil.example:8000",
        "10.0.0.1",
        "127.0.0.1.evil.example",
    ] {
        assert_eq!(with_host(host).await, 403, "{host}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_guesses_waits_and_who_knows_does_not() {
    let server = Arc::new(Server::start(with_tokens()).await);
    let begun = Instant::now();
    assert_eq!(
        http(&server, "GET", "/serve/health", &bearer("guess"))
            .await
            .status,
        401
    );
    assert!(
        begun.elapsed() >= Duration::from_millis(100),
        "answered at once"
    );
    let guesses: Vec<_> = (0..60)
        .map(|k| {
            let server = server.clone();
            tokio::spawn(async move {
                let headers = bearer(&format!("guess-{k}"));
                http(&server, "GET", "/serve/health", &headers).await
            })
        })
        .collect();
    // While they wait, the right token is answered: from the same address.
    let answer = http(&server, "GET", "/serve/health", &bearer(ADA)).await;
    assert_eq!(answer.status, 200);
    let mut away = 0;
    for guess in guesses {
        let answer = guess.await.unwrap();
        match answer.status {
            401 => {}
            429 => {
                let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
                assert!((1..=10).contains(&wait), "{wait}");
                away += 1;
            }
            other => panic!("{other}"),
        }
    }
    assert!(away >= 40, "only {away} of 60 were turned away");
    let text = http(&server, "GET", "/metrics", &bearer(ADA)).await.body;
    let counted = "umaserve_auth_failures_total{reason=\"wrong\"} 61";
    assert!(text.contains(counted), "{text}");
}

#[tokio::test]
async fn who_says_nothing_or_too_much_is_let_go() {
    let server = Server::start(ServerSettings {
        handshake_timeout: Duration::from_millis(300),
        ..with_tokens()
    })
    .await;
    let closed = async |first: &str| {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(first.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        let read = tokio::time::timeout(Duration::from_secs(20), read).await;
        let _ = read.expect("the server lets go");
        String::from_utf8_lossy(&answer).into_owned()
    };
    closed("").await;
    closed("GET / HTTP/1.1\r\nHost: x\r\n").await;
    // One that has asked, and then keeps the connection without asking again.
    let answer = closed("GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(1 << 20));
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let _ = stream.write_all(long.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
    assert_eq!(http(&server, "GET", "/", "").await.status, 200);
    let metrics = server.health.metrics();
    eventually(|| metrics.connections.get() == 0).await;
}

#[tokio::test]
async fn more_connections_than_allowed_wait_their_turn() {
    let server = Server::start(ServerSettings {
        max_connections: 2,
        handshake_timeout: Duration::from_secs(30),
        ..with_tokens()
    })
    .await;
    let first = TcpStream::connect(server.address).await.unwrap();
    let _second = TcpStream::connect(server.address).await.unwrap();
    let metrics = server.health.metrics();
    eventually(|| metrics.connections.get() == 2).await;
    let third = http(&server, "GET", "/", "");
    tokio::pin!(third);
    let waits = tokio::time::timeout(Duration::from_millis(200), &mut third);
    assert!(waits.await.is_err(), "the third should wait");
    drop(first);
    assert_eq!(third.await.status, 200);
}

/// A certificate for `localhost` and its key in files, and the certificate itself.
pub fn certificate(directory: &std::path::Path) -> (Tls, Vec<u8>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, key) = (directory.join("cert.pem"), directory.join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    (
        Tls::read(&certificate, &key).unwrap(),
        made.cert.der().to_vec(),
    )
}

#[tokio::test]
async fn tls_encrypts_everything() {
    let directory = tempfile::tempdir().unwrap();
    let (tls, certificate) = certificate(directory.path());
    let settings = ServerSettings {
        tls: true,
        handshake_timeout: Duration::from_millis(500),
        ..with_tokens()
    };
    let server = Server::start_with(settings, Some(tls), None).await;
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from(certificate.clone()))
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(client));
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TcpStream::connect(server.address).await.unwrap();
    let stream = connector.connect(name.clone(), stream).await.unwrap();
    let url = format!("wss://localhost:{}/ws?token={ADA}", server.address.port());
    let (mut socket, response) = client_async(url, stream).await.unwrap();
    let cookie = response.headers()["set-cookie"].to_str().unwrap();
    assert!(cookie.contains("; Secure"), "{cookie}");
    socket
        .send(Message::Binary(action(upload(&ARGON)).into()))
        .await
        .unwrap();
    let answer = socket.next().await.unwrap().unwrap();
    assert!(answer.is_binary() && answer.len() > 72);

    // Without TLS nothing comes back but an end, at the latest after the time for handshakes.
    let mut plain = TcpStream::connect(server.address).await.unwrap();
    plain
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP/1.1 200"));
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let read = tokio::time::timeout(Duration::from_secs(20), silent.read_to_end(&mut answer));
    let _ = read.await.expect("the server lets go");

    // `umaserve status` trusts the certificate of the connection file and no other.
    let mut target = Target::Tcp {
        host: "127.0.0.1".into(),
        port: server.address.port(),
        certificate: Some(certificate),
    };
    let asked = async |target: Target| {
        let patience = Duration::from_secs(20);
        tokio::task::spawn_blocking(move || get(&target, "/serve/status", Some(ADA), patience))
            .await
            .unwrap()
    };
    assert_eq!(asked(target.clone()).await.unwrap().0, 200);
    let elsewhere = tempfile::tempdir().unwrap();
    if let Target::Tcp { certificate, .. } = &mut target {
        *certificate = Some(self::certificate(elsewhere.path()).1);
    }
    let error = asked(target).await.unwrap_err();
    assert!(error.contains("not that of the connection file"), "{error}");
}

#[test]
fn files_that_are_no_certificate_and_key_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    certificate(directory.path());
    certificate(other.path());
    let path = |name: &str| directory.path().join(name);
    let refused = |cert: &std::path::Path, key: &std::path::Path| Tls::read(cert, key).unwrap_err();
    let error = refused(&path("none.pem"), &path("key.pem"));
    assert!(
        error.contains("--tls-cert") && error.contains("none.pem"),
        "{error}"
    );
    let error = refused(&path("key.pem"), &path("key.pem"));
    assert!(error.contains("no certificate in it"), "{error}");
    let error = refused(&path("cert.pem"), &path("cert.pem"));
    assert!(error.contains("--tls-key"), "{error}");
    let error = refused(&path("cert.pem"), &other.path().join("key.pem"));
    assert!(
        error.contains("--tls-cert") && error.contains("--tls-key"),
        "{error}"
    );
}

#[tokio::test]
async fn the_unix_socket_is_private_and_serves_the_same() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("umaserve.sock");
    // One left behind by a process that was killed.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let socket = UnixSocket::bind(&path).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let error = UnixSocket::bind(&path).unwrap_err();
    assert!(error.contains("another server listens there"), "{error}");
    // One that goes away later takes nothing from the one that has replaced it.
    std::fs::remove_file(&path).unwrap();
    let later = UnixSocket::bind(&path).unwrap();
    drop(socket);
    assert!(path.exists());
    let socket = later;
    let file = directory.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    assert!(UnixSocket::bind(&file).unwrap_err().contains("no socket"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    let long = directory.path().join("x".repeat(120));
    assert!(
        UnixSocket::bind(&long)
            .unwrap_err()
            .contains("--unix-socket")
    );

    let server = Server::start_with(with_tokens(), None, Some(Listener::Unix(socket))).await;
    let stream = UnixStream::connect(&path).await.unwrap();
    let request = "GET /serve/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert_eq!(ask(stream, request).await.status, 401);
    let stream = UnixStream::connect(&path).await.unwrap();
    let url = format!("ws://localhost/ws?token={BOB}");
    let (mut socket, _) = client_async(url, stream).await.unwrap();
    socket
        .send(Message::Binary(action(upload(&ARGON)).into()))
        .await
        .unwrap();
    assert!(socket.next().await.unwrap().unwrap().is_binary());
    let target = Target::Unix(path.clone());
    let patience = Duration::from_secs(20);
    let asked = move || get(&target, "/health/ready", Some(ADA), patience);
    assert_eq!(
        tokio::task::spawn_blocking(asked).await.unwrap().unwrap().0,
        200
    );
    server.stop.send(true).unwrap();
    server.served.await.unwrap().unwrap();
    assert!(!path.exists(), "the socket is left behind");
    let left = std::fs::read_dir(directory.path()).unwrap();
    assert_eq!(left.count(), 1, "only the file that was no socket");
}

#[tokio::test]
async fn behind_a_proxy_everything_is_below_the_prefix() {
    let server = Server::start(ServerSettings {
        path_prefix: "/node/n7/8000".into(),
        ..with_tokens()
    })
    .await;
    let answer = http(&server, "GET", "/node/n7/8000/", "").await;
    assert_eq!(answer.status, 200);
    // The page itself names no absolute address, so it works below any prefix.
    assert!(!answer.body.contains("=\"/"), "{}", answer.body);
    let answer = http(&server, "GET", &format!("/node/n7/8000?token={ADA}"), "").await;
    assert_eq!(answer.status, 308);
    assert_eq!(answer.header("location"), Some("/node/n7/8000/"));
    let path = format!("/node/n7/8000/serve/health?token={ADA}");
    let answer = http(&server, "GET", &path, "").await;
    assert_eq!(answer.status, 200);
    let cookie = answer.header("set-cookie").unwrap();
    assert!(cookie.contains("Path=/node/n7/8000/"), "{cookie}");
    for outside in ["/", "/serve/health", "/node/n7/80000/", "/node/n7/8000x"] {
        assert_eq!(
            http(&server, "GET", outside, &bearer(ADA)).await.status,
            404,
            "{outside}"
        );
    }
    let url = format!("ws://{}/node/n7/8000/ws?token={ADA}", server.address);
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (mut socket, _) = client_async(url, stream).await.unwrap();
    socket
        .send(Message::Binary(action(upload(&ARGON)).into()))
        .await
        .unwrap();
    assert!(socket.next().await.unwrap().unwrap().is_binary());
}
