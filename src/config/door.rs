//! Where to listen, who may come in, how much they may ask for.

use std::fmt;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{ConfigError, Environment, in_range, usize_in};
use crate::cli::{DoorOptions, ServeArgs, ShowToken};
use crate::server::{Limits, Token};

/// Where to listen when nothing is said.
const DEFAULT_BIND: &str = "127.0.0.1:8000";

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// One of these.
    Known(Vec<SocketAddr>),
    /// That of a network interface, looked up by the rank that listens.
    Interface {
        /// Its name.
        name: String,
        /// The port; 0 picks one.
        port: u16,
    },
}

/// Which tokens let in.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// None: everybody comes in.
    NoAuth,
    /// Those in a file, read by the rank that listens.
    File(PathBuf),
    /// This one, from the environment.
    Given(Token),
    /// That of an earlier start of the same job, else a random one.
    Job,
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TokenSource::NoAuth => "NoAuth",
            TokenSource::File(_) => "File",
            TokenSource::Given(_) => "Given",
            TokenSource::Job => "Job",
        })
    }
}

/// The checked settings.
#[derive(Clone, Debug)]
pub struct DoorConfig {
    /// Where to listen by TCP, if so.
    pub address: Option<Address>,
    /// Where to listen by Unix socket, if so.
    pub unix_socket: Option<PathBuf>,
    /// Certificate and key of TLS, if so.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Who may come in.
    pub tokens: TokenSource,
    /// Whether the printed address carries the token.
    pub show_token: ShowToken,
    /// Foreign origins that may connect.
    pub origins: Vec<String>,
    /// What stands in front of every path, with `{host}` and `{port}` still in it; empty or
    /// `/...` without a slash at the end.
    pub path_prefix: String,
    /// The connection file.
    pub connection_file: Option<PathBuf>,
    /// The host through which users reach this one.
    pub login_host: Option<String>,
    /// Bounds per token and in all.
    pub limits: Limits,
    /// Connections at a time.
    pub max_connections: usize,
    /// Time for handshakes.
    pub handshake_timeout: Duration,
    /// Time of silence after which a session is closed.
    pub idle_timeout: Option<Duration>,
    /// Number of the Slurm job.
    pub job_id: Option<String>,
    /// Who runs this.
    pub user: Option<String>,
    /// How often the job or its ranks were started again.
    pub restarts: u64,
    /// Whether sessions of an earlier server go on, whose viewers look for it where it was.
    pub resumes: bool,
}

impl PartialEq for DoorConfig {
    /// Settings are compared by tests only: what they print is what they are.
    fn eq(&self, other: &Self) -> bool {
        self.tokens == other.tokens && format!("{self:?}") == format!("{other:?}")
    }
}

pub(super) fn check(
    args: &ServeArgs,
    environment: &Environment,
) -> Result<DoorConfig, ConfigError> {
    let options = &args.door;
    let address = address(options)?;
    let tokens = tokens(options, environment)?;
    if tokens == TokenSource::NoAuth {
        stay_inside(address.as_ref())?;
    }
    let record = args.record.as_deref();
    let max_sessions = usize_in("--max-sessions", args.max_sessions, 1..=100_000)?;
    let sessions_per_token = options.max_sessions_per_token.unwrap_or(max_sessions);
    let all_atoms = 1..=1_000_000_000;
    let atoms_per_token = options
        .max_atoms_per_token
        .unwrap_or(options.max_total_atoms);
    let rate = |name, value: u32| {
        in_range(name, value.into(), 1..=u64::from(u32::MAX)).map(|value| value as f64)
    };
    let seconds =
        |name, value, least| in_range(name, value, least..=31_536_000).map(Duration::from_secs);
    let max_connections = usize_in("--max-connections", options.max_connections, 1..=1_000_000)?;
    if max_connections < max_sessions {
        return Err(invalid(format!(
            "--max-connections is {max_connections}, less than --max-sessions {max_sessions}: every \
             session has a connection"
        )));
    }
    let idle = seconds("--idle-timeout-s", options.idle_timeout_s, 0)?;
    Ok(DoorConfig {
        address,
        unix_socket: options.unix_socket.clone(),
        tls: options.tls_cert.clone().zip(options.tls_key.clone()),
        tokens,
        show_token: options.show_token,
        origins: origins(&options.allow_origin)?,
        path_prefix: prefix(&options.path_prefix)?,
        connection_file: options
            .connection_file
            .clone()
            .or_else(|| record.map(|directory| directory.join("connection.json"))),
        login_host: options
            .login_host
            .clone()
            .or_else(|| environment.submit_host.clone()),
        limits: Limits {
            max_sessions,
            max_sessions_per_token: usize_in(
                "--max-sessions-per-token",
                sessions_per_token,
                1..=100_000,
            )?,
            max_total_atoms: usize_in(
                "--max-total-atoms",
                options.max_total_atoms,
                all_atoms.clone(),
            )?,
            max_atoms_per_token: usize_in("--max-atoms-per-token", atoms_per_token, all_atoms)?,
            max_message_rate: rate("--max-message-rate", options.max_message_rate)?,
            max_message_rate_per_token: rate(
                "--max-message-rate-per-token",
                options.max_message_rate_per_token,
            )?,
            max_total_message_rate: rate(
                "--max-total-message-rate",
                options.max_total_message_rate,
            )?,
            max_request_rate: rate("--max-request-rate", options.max_request_rate)?,
        },
        max_connections,
        handshake_timeout: seconds("--handshake-timeout-s", options.handshake_timeout_s, 1)?,
        idle_timeout: (!idle.is_zero()).then_some(idle),
        job_id: environment.job_id.clone(),
        user: environment.user.clone(),
        restarts: environment.restarts,
        resumes: args.resume.is_some(),
    })
}

fn invalid(reason: impl Into<String>) -> ConfigError {
    ConfigError::Invalid(reason.into())
}

fn address(options: &DoorOptions) -> Result<Option<Address>, ConfigError> {
    if let Some(text) = &options.bind_interface {
        let (name, port) = match text.rsplit_once(':') {
            None => (text.as_str(), 0),
            Some((name, port)) => match port.parse() {
                Ok(port) => (name, port),
                Err(_) => {
                    let reason = format!("--bind-interface {text}: {port:?} is no port");
                    return Err(invalid(reason));
                }
            },
        };
        if name.is_empty() {
            return Err(invalid(format!("--bind-interface {text}: no name")));
        }
        let name = name.to_owned();
        return Ok(Some(Address::Interface { name, port }));
    }
    let text = match (&options.bind, &options.unix_socket) {
        (Some(text), _) => text,
        (None, None) => DEFAULT_BIND,
        (None, Some(_)) => return Ok(None),
    };
    let fail = |reason: String| invalid(format!("--bind {text}: {reason}"));
    let addresses: Vec<SocketAddr> = text
        .to_socket_addrs()
        .map_err(|error| fail(format!("not a HOST:PORT that can be found ({error})")))?
        .collect();
    match addresses.is_empty() {
        true => Err(fail("the name has no address".into())),
        false => Ok(Some(Address::Known(addresses))),
    }
}

/// Without tokens nobody from elsewhere may reach the port.
fn stay_inside(address: Option<&Address>) -> Result<(), ConfigError> {
    let reachable = match address {
        None => return Ok(()),
        Some(Address::Interface { name, .. }) => format!("the interface {name}"),
        Some(Address::Known(all)) => match all.iter().find(|a| !a.ip().is_loopback()) {
            None => return Ok(()),
            Some(address) => address.ip().to_string(),
        },
    };
    Err(invalid(format!(
        "--no-auth: {reachable} can be reached from other machines, and without tokens anybody \
         there could drive your simulations. Bind 127.0.0.1 (and reach it through a tunnel), or \
         leave --no-auth out"
    )))
}

fn tokens(options: &DoorOptions, environment: &Environment) -> Result<TokenSource, ConfigError> {
    if options.no_auth {
        return Ok(TokenSource::NoAuth);
    }
    match (&options.token_file, &environment.token) {
        (Some(path), _) => Ok(TokenSource::File(path.clone())),
        (None, Some(Ok(token))) => Ok(TokenSource::Given(token.clone())),
        (None, Some(Err(reason))) => Err(invalid(format!("UMASERVE_TOKEN: {reason}"))),
        (None, None) => Ok(TokenSource::Job),
    }
}

/// Names and tokens of a token file: one token, or lines NAME:TOKEN; empty lines and those that
/// begin with `#` are skipped.
///
/// # Errors
/// The file cannot be read, others could read it, or a line is none.
pub fn read_tokens(path: &Path) -> Result<Vec<(String, Token)>, String> {
    let fail = |reason: String| format!("--token-file {}: {reason}", path.display());
    let mode = std::fs::metadata(path)
        .map_err(|error| fail(error.to_string()))?
        .mode();
    if mode & 0o077 != 0 {
        let mode = mode & 0o777;
        return Err(fail(format!(
            "its mode is {mode:o}, so others could read the tokens; `chmod 600` it"
        )));
    }
    let text = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
    let mut tokens: Vec<(String, Token)> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        // What is wrong is named by its line, never by its text.
        let fail = |reason: String| fail(format!("line {}: {reason}", number + 1));
        let (name, token) = line.split_once(':').unwrap_or(("token", line));
        let (name, token) = (name.trim(), Token::new(token.trim()).map_err(fail)?);
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
        if name.is_empty() || name.len() > 64 || !name.chars().all(is_name) {
            let reason = "a name has 1 to 64 letters, digits and - _ . @".into();
            return Err(fail(reason));
        }
        if tokens
            .iter()
            .any(|(other, known)| other == name || *known == token)
        {
            return Err(fail("this name or token was there before".into()));
        }
        tokens.push((name.to_owned(), token));
    }
    match tokens.is_empty() {
        true => Err(fail("there is no token in it".into())),
        false => Ok(tokens),
    }
}

/// The addresses of a network interface, IPv4 first.
///
/// # Errors
/// There is none of this name; the others are named.
pub fn interface_addresses(name: &str) -> Result<Vec<IpAddr>, String> {
    let all =
        if_addrs::get_if_addrs().map_err(|error| format!("--bind-interface {name}: {error}"))?;
    let mut found: Vec<IpAddr> = all
        .iter()
        .filter(|interface| interface.name == name)
        .map(if_addrs::Interface::ip)
        // A link-local address needs a scope, which other hosts do not share.
        .filter(|ip| !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()))
        .collect();
    found.sort_by_key(IpAddr::is_ipv6);
    if found.is_empty() {
        let mut names: Vec<String> = all.into_iter().map(|interface| interface.name).collect();
        names.sort();
        names.dedup();
        return Err(format!(
            "--bind-interface {name}: no interface with this name has an address; there are {}",
            names.join(", ")
        ));
    }
    Ok(found)
}

fn origins(all: &[String]) -> Result<Vec<String>, ConfigError> {
    let is_origin = |text: &str| {
        let rest = text
            .strip_prefix("http://")
            .or(text.strip_prefix("https://"));
        let is_host = |rest: &str| !rest.is_empty() && !rest.contains(['/', ' ', '?', '#', '@']);
        text == "*"
            || text == "null"
            || rest.is_some_and(|rest| is_host(rest.trim_end_matches('/')))
    };
    match all.iter().find(|origin| !is_origin(origin)) {
        None => Ok(all.to_vec()),
        Some(origin) => Err(invalid(format!(
            "--allow-origin {origin}: an origin is http://HOST[:PORT], https://HOST[:PORT], null \
             or *"
        ))),
    }
}

fn prefix(text: &str) -> Result<String, ConfigError> {
    let trimmed = text.trim_end_matches('/');
    let is_path = |c: char| c.is_ascii_alphanumeric() || "-._~/{}".contains(c);
    let is_good = trimmed.is_empty()
        || (trimmed.starts_with('/')
            && !trimmed.contains("//")
            && !trimmed.split('/').any(|part| part == "." || part == "..")
            && trimmed.chars().all(is_path));
    match is_good {
        true => Ok(trimmed.to_owned()),
        false => Err(invalid(format!(
            "--path-prefix {text}: it has to look like /node/{{host}}/{{port}}, with letters, \
             digits and - . _ ~"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::tests::serve_with;
    use super::*;

    fn door(arguments: &[&str]) -> Result<DoorConfig, String> {
        serve_with(arguments, &[]).map(|config| config.door)
    }

    #[test]
    fn without_a_word_it_is_loopback_with_a_token() {
        let door = door(&[]).unwrap();
        let known = Address::Known(vec!["127.0.0.1:8000".parse().unwrap()]);
        assert_eq!(door.address, Some(known));
        assert_eq!(door.tokens, TokenSource::Job);
        assert_eq!(door.connection_file, None);
        assert_eq!(door.limits.max_sessions_per_token, 256);
        assert_eq!(door.idle_timeout, Some(Duration::from_secs(43_200)));
    }

    #[test]
    fn without_tokens_other_machines_are_kept_out() {
        for address in ["0.0.0.0:8000", "192.0.2.7:8000", "[::]:8000"] {
            let error = door(&["--bind", address, "--no-auth"]).unwrap_err();
            assert!(error.contains("without tokens"), "{error}");
            assert!(door(&["--bind", address]).is_ok(), "{address}");
        }
        let error = door(&["--bind-interface", "ib0", "--no-auth"]).unwrap_err();
        assert!(error.contains("interface ib0"), "{error}");
        for address in ["127.0.0.1:0", "[::1]:9000", "localhost:9000"] {
            assert!(door(&["--bind", address, "--no-auth"]).is_ok(), "{address}");
        }
        for address in ["8000", "127.0.0.1", "127.0.0.1:99999", ""] {
            let error = door(&["--bind", address]).unwrap_err();
            assert!(error.contains("HOST:PORT"), "{error}");
        }
    }

    #[test]
    fn a_socket_takes_the_place_of_the_port_unless_both_are_wanted() {
        let only = door(&["--unix-socket", "/tmp/u.sock", "--no-auth"]).unwrap();
        assert_eq!(only.address, None);
        let both = door(&["--unix-socket", "/tmp/u.sock", "--bind", "127.0.0.1:0"]).unwrap();
        assert!(both.address.is_some() && both.unix_socket.is_some());
    }

    #[test]
    fn interfaces_are_found_by_name() {
        assert_eq!(
            interface_addresses("lo").unwrap()[0].to_string(),
            "127.0.0.1"
        );
        let error = interface_addresses("no-such").unwrap_err();
        assert!(error.contains("lo"), "{error}");
        let address = door(&["--bind-interface", "ib0:8123"]).unwrap().address;
        let name = "ib0".to_owned();
        assert_eq!(address, Some(Address::Interface { name, port: 8123 }));
        assert!(
            door(&["--bind-interface", "ib0:x"])
                .unwrap_err()
                .contains("no port")
        );
    }

    #[test]
    fn tokens_come_from_a_private_file_or_the_environment() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens");
        let write = |text: &str, mode| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            read_tokens(&path)
        };
        let one = write("0123456789abcdef\n", 0o600).unwrap();
        assert_eq!(one[0].0, "token");
        let two = write(
            "# who\nada:0123456789abcdef\n\nbob : fedcba9876543210\n",
            0o400,
        )
        .unwrap();
        let names: Vec<&str> = two.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["ada", "bob"]);
        for (text, mode, reason) in [
            ("0123456789abcdef", 0o644, "its mode is 644"),
            ("", 0o600, "no token in it"),
            ("ada:short", 0o600, "line 1: a token of 5 characters"),
            ("a b:0123456789abcdef", 0o600, "line 1: a name has"),
            (
                "a:0123456789abcdef\na:0123456789abcdee",
                0o600,
                "line 2: this name",
            ),
            (
                "a:0123456789abcdef\nb:0123456789abcdef",
                0o600,
                "line 2: this name",
            ),
        ] {
            let error = write(text, mode).unwrap_err();
            assert!(error.contains(reason), "{error}");
            assert!(!error.contains("0123456789"), "{error}");
        }
        let given = serve_with(&[], &[("UMASERVE_TOKEN", "0123456789abcdef")]).unwrap();
        assert!(matches!(given.door.tokens, TokenSource::Given(_)));
        assert!(!format!("{given:?}").contains("0123456789abcdef"));
        let error = serve_with(&[], &[("UMASERVE_TOKEN", "short")]).unwrap_err();
        assert!(error.starts_with("UMASERVE_TOKEN"), "{error}");
    }

    #[test]
    fn every_session_may_have_a_connection() {
        let error = door(&["--max-sessions", "2000"]).unwrap_err();
        assert!(error.contains("--max-connections is 1024"), "{error}");
        assert!(door(&["--max-sessions", "2000", "--max-connections", "3000"]).is_ok());
    }

    #[test]
    fn prefixes_and_origins_are_checked() {
        let of = |text| door(&["--path-prefix", text]).map(|door| door.path_prefix);
        assert_eq!(of("/node/{host}/{port}/").unwrap(), "/node/{host}/{port}");
        assert_eq!(of("/").unwrap(), "");
        for text in ["node", "/a//b", "/../x", "/a b", "/a?b"] {
            assert!(of(text).unwrap_err().contains("--path-prefix"), "{text}");
        }
        let of = |text| door(&["--allow-origin", text]).map(|door| door.origins);
        assert_eq!(of("https://a.example,http://b:1").unwrap().len(), 2);
        for text in ["a.example", "https://", "https://a/b", "ftp://a"] {
            assert!(of(text).unwrap_err().contains("--allow-origin"), "{text}");
        }
    }

    #[test]
    fn a_slurm_job_knows_its_number_and_its_way_in() {
        let environment = [
            ("SLURM_JOB_ID", "4711"),
            ("SLURM_SUBMIT_HOST", "login1"),
            ("SLURM_RESTART_COUNT", "2"),
            ("UMASERVE_RESTARTS", "1"),
        ];
        let config = serve_with(&["--record", "out"], &environment).unwrap();
        let door = config.door;
        assert_eq!(door.job_id.as_deref(), Some("4711"));
        assert_eq!(door.login_host.as_deref(), Some("login1"));
        assert_eq!(door.restarts, 3);
        assert_eq!(door.connection_file, Some("out/connection.json".into()));
    }
}
