//! The connection file: where a server listens, how to reach it, and how it is, for `umaserve
//! connect`, `umaserve status`, proxies and scripts.
//!
//! It holds the token, so it is readable by its owner only from its first moment, and it is
//! replaced in one step, so nobody ever reads half of it. Its heartbeat tells a server that has
//! vanished from one that is well.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Time between two heartbeats.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// A server without a heartbeat for so long is taken for gone.
pub const STALE: Duration = Duration::from_secs(30);

/// What the file says. Unknown fields are ignored, missing ones are empty.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Connection {
    /// Number of the Slurm job.
    pub job_id: Option<String>,
    /// Name of the host that serves.
    pub host: String,
    /// Address on which it listens there.
    pub listen: String,
    /// Port; 0 where only the Unix socket is served.
    pub port: u16,
    /// Base of all addresses, as seen from the host itself; ends in `/`.
    pub url: String,
    /// What stands in front of every path; empty or `/...` without a slash at the end.
    pub path_prefix: String,
    /// The Unix socket.
    pub unix_socket: Option<PathBuf>,
    /// The certificate that the server shows, DER in base64; none without TLS.
    pub certificate: Option<String>,
    /// The token; none where none is asked for.
    pub token: Option<String>,
    /// From where users reach the host, if not directly.
    pub login_host: Option<String>,
    /// Who runs it.
    pub user: Option<String>,
    /// Version of umaserve.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// All ranks: `rank`, `host`, `device`, and how they are.
    pub ranks: serde_json::Value,
    /// starting, ready, draining, stopped or failed.
    pub state: String,
    /// When this was written, seconds since 1970.
    pub heartbeat: f64,
    /// Numbers of `/serve/status` at that time.
    pub status: serde_json::Value,
}

impl Connection {
    /// Reads a connection file.
    ///
    /// # Errors
    /// The file cannot be read or is none.
    pub fn read(path: &Path) -> Result<Connection, String> {
        let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        Connection::parse(&text).map_err(|reason| format!("{}: {reason}", path.display()))
    }

    /// Reads the text of a connection file.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Connection, String> {
        let connection: Connection = serde_json::from_str(text)
            .map_err(|error| format!("not a connection file: {error}"))?;
        if connection.port == 0 && connection.unix_socket.is_none() {
            return Err("not a connection file: neither a port nor a socket".into());
        }
        Ok(connection)
    }

    /// Reads a file left by an earlier start, if it can be trusted: nobody but this user can have
    /// written or read it.
    pub fn read_own(path: &Path) -> Option<Connection> {
        let found = fs::symlink_metadata(path).ok()?;
        let me = fs::metadata("/proc/self").ok()?.uid();
        let is_own = found.is_file() && found.uid() == me && found.mode() & 0o077 == 0;
        is_own.then(|| Connection::read(path).ok()).flatten()
    }

    /// Writes the file in one step, with mode 0600.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(format!(".{}", std::process::id()));
        let fresh = PathBuf::from(fresh);
        let _ = fs::remove_file(&fresh);
        let written = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh)
            .and_then(|mut file| {
                let mut text = serde_json::to_vec_pretty(self)?;
                text.push(b'\n');
                file.write_all(&text)
            })
            .and_then(|()| fs::rename(&fresh, path));
        if written.is_err() {
            let _ = fs::remove_file(&fresh);
        }
        written
    }

    /// Time since the last heartbeat.
    pub fn age(&self) -> Duration {
        let age = now() - self.heartbeat;
        Duration::from_secs_f64(age.clamp(0.0, 1e9))
    }

    /// Whether the server should be there: it has not said goodbye and its heart has beaten
    /// lately.
    pub fn is_alive(&self) -> bool {
        !matches!(self.state.as_str(), "stopped" | "failed") && self.age() < STALE
    }

    /// The arguments of `ssh` that bring the server to `local_port` of the machine where they are
    /// given. `login` is the way to the host, if there is one.
    pub fn tunnel(&self, local_port: u16, login: Option<&str>) -> Vec<String> {
        let at = |host: &str| match &self.user {
            Some(user) if !host.contains('@') => format!("{user}@{host}"),
            _ => host.to_owned(),
        };
        let login = login.or(self.login_host.as_deref());
        let login = login.filter(|login| *login != self.host);
        let is_name = !self.listen.contains(':');
        let listen = match is_name {
            true => self.listen.clone(),
            false => format!("[{}]", self.listen),
        };
        let target = match (&self.unix_socket, self.port) {
            (Some(socket), 0) => socket.display().to_string(),
            (_, port) => format!("{listen}:{port}"),
        };
        let mut line = vec!["-N".to_owned()];
        // Loopback and the socket are only there on the host itself.
        let inside = self.port == 0 || is_loopback(&self.listen);
        let through = match (login, inside) {
            (Some(login), true) => {
                line.extend(["-J".to_owned(), at(login)]);
                at(&self.host)
            }
            (Some(login), false) => at(login),
            (None, _) => at(&self.host),
        };
        line.extend(["-L".to_owned(), format!("{local_port}:{target}"), through]);
        line
    }

    /// The port at the user's end of the tunnel, if the user does not choose another.
    pub fn local_port(&self) -> u16 {
        match self.port {
            port if port >= 1024 => port,
            _ => 8000,
        }
    }

    /// The address for a browser, through the tunnel or, with `None`, on the host itself; with
    /// the token behind `#`, where it is sent to nobody.
    pub fn page(&self, local_port: Option<u16>, with_token: bool) -> String {
        let scheme = match self.certificate {
            Some(_) => "https",
            None => "http",
        };
        let base = match local_port {
            Some(port) => format!("{scheme}://localhost:{port}{}/", self.path_prefix),
            None => self.url.clone(),
        };
        match self.token.as_deref().filter(|_| with_token) {
            Some(token) => format!("{base}#token={token}"),
            None => base,
        }
    }
}

fn is_loopback(name: &str) -> bool {
    name == "localhost"
        || name
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

fn now() -> f64 {
    // A clock before 1970 is as good as 1970 here.
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |d| (d.as_secs_f64() * 1e3).round() / 1e3)
}

/// Renews a connection file until it is dropped.
#[derive(Debug)]
pub struct Heartbeat {
    /// Asks for a beat; what is sent along is dropped once it is done.
    beat: Option<Sender<Sender<()>>>,
    thread: Option<JoinHandle<()>>,
}

impl Heartbeat {
    /// Writes the file now, every [`HEARTBEAT`], when [`Heartbeat::renew`] is called, and a last
    /// time at the end. `renew` brings ranks, state and status up to date.
    ///
    /// # Errors
    /// The file cannot be written now. Later failures are logged.
    pub fn start(
        path: PathBuf,
        mut connection: Connection,
        renew: impl Fn(&mut Connection) + Send + 'static,
    ) -> Result<Heartbeat, String> {
        let mut write = move || {
            renew(&mut connection);
            connection.heartbeat = now();
            connection
                .write(&path)
                .map_err(|error| format!("{}: {error}", path.display()))
        };
        write().map_err(|error| format!("--connection-file {error}"))?;
        let (beat, beats) = channel::<Sender<()>>();
        let thread = std::thread::Builder::new()
            .name("heartbeat".into())
            .spawn(move || {
                let mut failing = false;
                loop {
                    let asked = beats.recv_timeout(HEARTBEAT);
                    let last = matches!(asked, Err(RecvTimeoutError::Disconnected));
                    match write() {
                        Ok(()) => failing = false,
                        Err(error) if !failing => {
                            failing = true;
                            tracing::error!(error, "the connection file cannot be written");
                        }
                        Err(_) => {}
                    }
                    if last {
                        return;
                    }
                }
            })
            .map_err(|error| format!("no thread for the connection file: {error}"))?;
        Ok(Heartbeat {
            beat: Some(beat),
            thread: Some(thread),
        })
    }

    /// Writes the file now, and waits until it is written, but not for a file system that hangs.
    pub fn renew(&self) {
        if let Some(beat) = &self.beat {
            let (done, written) = channel();
            // The thread ends after this handle only.
            let _ = beat.send(done);
            let _ = written.recv_timeout(HEARTBEAT);
        }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.beat = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn connection() -> Connection {
        Connection {
            host: "node7".into(),
            listen: "127.0.0.1".into(),
            port: 40123,
            url: "http://127.0.0.1:40123/".into(),
            token: Some("secret-secret-secret".into()),
            user: Some("ada".into()),
            ..Connection::default()
        }
    }

    #[test]
    fn the_tunnel_leads_to_where_the_server_listens() {
        let line = |c: &Connection, login| c.tunnel(8000, login).join(" ");
        let mut c = connection();
        assert_eq!(line(&c, None), "-N -L 8000:127.0.0.1:40123 ada@node7");
        // A compute node is reached through the login node.
        c.login_host = Some("login1".into());
        assert_eq!(
            line(&c, None),
            "-N -J ada@login1 -L 8000:127.0.0.1:40123 ada@node7"
        );
        assert_eq!(
            line(&c, Some("me@gate")),
            "-N -J me@gate -L 8000:127.0.0.1:40123 ada@node7"
        );
        // An interface can be seen from the login node.
        c.listen = "10.1.0.7".into();
        assert_eq!(line(&c, None), "-N -L 8000:10.1.0.7:40123 ada@login1");
        c.listen = "fd00::7".into();
        assert_eq!(line(&c, None), "-N -L 8000:[fd00::7]:40123 ada@login1");
        c.unix_socket = Some("/run/u.sock".into());
        c.port = 0;
        assert_eq!(
            line(&c, None),
            "-N -J ada@login1 -L 8000:/run/u.sock ada@node7"
        );
        // The job runs on the login node itself.
        c.login_host = Some("node7".into());
        assert_eq!(line(&c, None), "-N -L 8000:/run/u.sock ada@node7");
    }

    #[test]
    fn the_page_carries_the_token_where_it_is_sent_to_nobody() {
        let mut c = connection();
        c.path_prefix = "/node/n7/1".into();
        assert_eq!(
            c.page(Some(9000), true),
            "http://localhost:9000/node/n7/1/#token=secret-secret-secret"
        );
        assert_eq!(c.page(None, false), "http://127.0.0.1:40123/");
        c.certificate = Some("AA==".into());
        assert!(c.page(Some(1), false).starts_with("https://"));
    }

    #[test]
    fn the_file_is_private_whole_and_readable_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("connection.json");
        let c = connection();
        c.write(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(Connection::read(&path).unwrap() == c);
        assert!(Connection::read_own(&path).unwrap() == c);
        // Nobody ever sees half of it, and nothing is left beside it.
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..300 {
                    c.write(&path).unwrap();
                }
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
            });
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                assert!(Connection::read(&path).unwrap() == c);
            }
        });
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        // One that others could have read is not trusted.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Connection::read_own(&path).is_none());
        fs::write(&path, "{}").unwrap();
        assert!(Connection::read(&path).err().unwrap().contains("neither"));
    }

    #[test]
    fn a_heart_that_has_stopped_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.json");
        let state = std::sync::Arc::new(std::sync::Mutex::new("ready"));
        let told = state.clone();
        let heart = Heartbeat::start(path.clone(), connection(), move |c| {
            c.state = (*told.lock().unwrap()).into();
        })
        .unwrap();
        let c = Connection::read(&path).unwrap();
        assert!(c.is_alive() && c.state == "ready");
        *state.lock().unwrap() = "stopped";
        drop(heart);
        let mut c = Connection::read(&path).unwrap();
        assert!(!c.is_alive() && c.state == "stopped");
        c.state = "ready".into();
        c.heartbeat -= 60.0;
        assert!(!c.is_alive());
        let nowhere = directory.path().join("no/c.json");
        let error = Heartbeat::start(nowhere, connection(), |_| {}).unwrap_err();
        assert!(error.starts_with("--connection-file"), "{error}");
    }
}
