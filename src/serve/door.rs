//! What rank 0 opens towards its users: listeners, tokens, the connection file, the first lines
//! that it prints.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::cli::ShowToken;
use crate::config::{
    Address, DoorConfig, ServeConfig, TokenSource, host_name, interface_addresses, read_tokens,
};
use crate::connection::Connection;
use crate::server::{AccessSettings, Listener, Tls, Token, UnixSocket};

/// How long to wait for a port that the server before still holds.
const PATIENCE: Duration = Duration::from_secs(5);

/// Everything that is open before the first viewer comes.
pub(super) struct Door {
    pub(super) listeners: Vec<Listener>,
    pub(super) tls: Option<Tls>,
    pub(super) access: AccessSettings,
    /// What the connection file says, without ranks and state.
    pub(super) connection: Connection,
    /// Where the server listens by TCP.
    address: Option<SocketAddr>,
    show_token: bool,
}

impl Door {
    /// Opens it.
    ///
    /// # Errors
    /// Whatever cannot be used, by the name of its option.
    pub(super) fn open(config: &DoorConfig) -> Result<Door, String> {
        let earlier = earlier(config);
        let tls = match &config.tls {
            Some((certificate, key)) => Some(Tls::read(certificate, key)?),
            None => None,
        };
        let tokens = tokens(config, earlier.as_ref())?;
        let mut listeners = Vec::new();
        let mut address = None;
        if let Some(wanted) = &config.address {
            let listener = listen(wanted, earlier.as_ref(), config.restarts > 0)?;
            let bound = listener
                .local_addr()
                .map_err(|error| format!("the listener has no address: {error}"))?;
            address = Some(bound);
            listeners.push(Listener::Tcp(listener));
        }
        if let Some(path) = &config.unix_socket {
            listeners.push(Listener::Unix(UnixSocket::bind(path)?));
        }
        let host = host_name();
        let port = address.map_or(0, |address| address.port());
        let listen = match address {
            // Not one address but all: the name of the host is one of them.
            Some(address) if address.ip().is_unspecified() => host.clone(),
            Some(address) => address.ip().to_string(),
            None => "localhost".into(),
        };
        let path_prefix = config
            .path_prefix
            .replace("{host}", &host)
            .replace("{port}", &port.to_string());
        let scheme = if tls.is_some() { "https" } else { "http" };
        let authority = match (address, listen.contains(':')) {
            (None, _) => listen.clone(),
            (Some(_), true) => format!("[{listen}]:{port}"),
            (Some(_), false) => format!("{listen}:{port}"),
        };
        let connection = Connection {
            job_id: config.job_id.clone(),
            host,
            listen,
            port,
            url: format!("{scheme}://{authority}{path_prefix}/"),
            path_prefix,
            unix_socket: config
                .unix_socket
                .as_deref()
                .map(|path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned())),
            certificate: tls.as_ref().map(|tls| STANDARD.encode(tls.certificate())),
            token: tokens.first().map(|(_, token)| token.reveal().to_owned()),
            login_host: config.login_host.clone(),
            user: config.user.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            ..Connection::default()
        };
        Ok(Door {
            listeners,
            tls,
            access: AccessSettings {
                tokens,
                origins: config.origins.clone(),
            },
            connection,
            address,
            show_token: shows_token(config),
        })
    }

    /// How to reach the server: for the lines that it prints at its start.
    pub(super) fn directions(&self, config: &ServeConfig) -> Directions {
        let c = &self.connection;
        let viewers = match (self.address, &c.unix_socket) {
            (None, Some(path)) => format!("unix socket {}", path.display()),
            _ => format!("{}ws", c.url.replacen("http", "ws", 1)),
        };
        let tunnel = c.tunnel(c.local_port(), None).join(" ");
        let from_here = c.page(
            (self.address.is_none()).then(|| c.local_port()),
            self.show_token,
        );
        let through = c.page(Some(c.local_port()), self.show_token);
        let token = match (&c.token, self.show_token, &config.door.connection_file) {
            (None, ..) => "none is asked for (--no-auth)".to_owned(),
            (Some(_), true, _) => "in the address; keep it to yourself".to_owned(),
            (Some(_), false, Some(file)) => format!("umaserve connect {}", file.display()),
            (Some(_), false, None) => "that of --token-file or UMASERVE_TOKEN".to_owned(),
        };
        Directions {
            viewers,
            status: format!("{}serve/health", c.url),
            page: from_here,
            tunnel: format!("ssh {tunnel}"),
            page_through_tunnel: through,
            token,
        }
    }
}

/// See [`Door::directions`].
pub(super) struct Directions {
    pub(super) viewers: String,
    pub(super) status: String,
    pub(super) page: String,
    pub(super) tunnel: String,
    pub(super) page_through_tunnel: String,
    pub(super) token: String,
}

/// The connection file of an earlier start of the same job: viewers find the server again if
/// token and port stay.
fn earlier(config: &DoorConfig) -> Option<Connection> {
    let earlier = Connection::read_own(config.connection_file.as_deref()?)?;
    let again = config.job_id.is_some() || config.restarts > 0 || config.resumes;
    (again && earlier.job_id == config.job_id).then_some(earlier)
}

fn tokens(
    config: &DoorConfig,
    earlier: Option<&Connection>,
) -> Result<Vec<(String, Token)>, String> {
    let one = |token| vec![("token".to_owned(), token)];
    match &config.tokens {
        TokenSource::NoAuth => Ok(Vec::new()),
        TokenSource::File(path) => read_tokens(path),
        TokenSource::Given(token) => Ok(one(token.clone())),
        TokenSource::Job => {
            let kept = earlier.and_then(|earlier| Token::new(earlier.token.as_deref()?).ok());
            kept.map_or_else(Token::random, Ok).map(one)
        }
    }
}

fn listen(
    wanted: &Address,
    earlier: Option<&Connection>,
    restarted: bool,
) -> Result<TcpListener, String> {
    let (option, addresses) = match wanted {
        Address::Known(addresses) => ("--bind", addresses.clone()),
        Address::Interface { name, port } => {
            let found = interface_addresses(name)?;
            let with_port = found.into_iter().map(|ip| SocketAddr::new(ip, *port));
            ("--bind-interface", with_port.collect())
        }
    };
    // The port of an earlier start, if any port would do.
    for address in &addresses {
        if let Some(earlier) = earlier
            && address.port() == 0
            && earlier.listen == address.ip().to_string()
            && let Ok(listener) = TcpListener::bind((address.ip(), earlier.port))
        {
            return Ok(listener);
        }
    }
    // The server before may take a moment to let the port go.
    let patience = if restarted { PATIENCE } else { Duration::ZERO };
    let deadline = Instant::now() + patience;
    loop {
        match TcpListener::bind(&addresses[..]) {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(100));
            }
            Err(error) => return Err(cannot_listen(option, &addresses, &error)),
        }
    }
}

/// Names the addresses, and what to do if another server is there already.
fn cannot_listen(option: &str, addresses: &[SocketAddr], error: &std::io::Error) -> String {
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let advice = match error.kind() {
        ErrorKind::AddrInUse => "; is another server running there? Choose another port",
        _ => "",
    };
    let addresses = addresses.join(" or ");
    format!("{option}: cannot listen on {addresses}: {error}{advice}")
}

/// Whether the token may be printed: not where others may read it, if there is another way to
/// learn it.
fn shows_token(config: &DoorConfig) -> bool {
    let known_elsewhere = config.connection_file.is_some()
        || matches!(config.tokens, TokenSource::File(_) | TokenSource::Given(_));
    match config.show_token {
        ShowToken::Always => true,
        ShowToken::Never => false,
        ShowToken::Auto if !known_elsewhere => true,
        ShowToken::Auto => is_private(config),
    }
}

/// Whether standard output goes to this user only. What a Slurm job prints lands in a file that
/// everybody can read, by default, also what it prints to a terminal (`srun --unbuffered` makes
/// one); outside of a job a pipe is a launcher that prints to a terminal.
fn is_private(config: &DoorConfig) -> bool {
    let output = std::io::stdout().as_fd().try_clone_to_owned();
    let Ok(metadata) = output
        .map(std::fs::File::from)
        .and_then(|file| file.metadata())
    else {
        return false;
    };
    match metadata.is_file() {
        true => metadata.mode() & 0o077 == 0,
        false => config.job_id.is_none(),
    }
}
