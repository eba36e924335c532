//! The program as a process of its own, and viewers on its socket.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use prost::Message as _;
use tungstenite::{Message, WebSocket};
use umaserve::server::convert::proto::{
    ClientAction, IntDelta, ServerResult, SimulationParams, UserInteractionSparse, Vec3Delta,
    client_action::{Attach, Payload, Start, Stop},
    server_result::{self, SessionState},
    user_interaction_sparse::FullUpdateFlag,
};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_umaserve");
const MODEL: &str = "tests/data/nano-1p2.pt";
pub const PATIENCE: Duration = Duration::from_secs(120);

const WATER: [u32; 3] = [8, 1, 1];
const POSITIONS: [f64; 9] = [0.0, 0.0, 0.12, 0.0, 0.76, -0.47, 0.0, -0.76, -0.47];

/// Options of every server here, and these.
pub fn arguments(more: &[String]) -> Vec<String> {
    let mut all: Vec<String> = [
        "serve",
        "--no-auth",
        "--model",
        MODEL,
        "--bind",
        "127.0.0.1:0",
    ]
    .map(str::to_owned)
    .to_vec();
    all.extend(["--frame-interval-ms".into(), "0".into()]);
    all.extend_from_slice(more);
    all
}

/// A server of its own.
pub fn serve(more: &[String]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(arguments(more));
    command
}

/// mpirun with the options that it needs on a small machine.
#[cfg(feature = "mpi")]
pub fn mpirun() -> Vec<&'static str> {
    vec![
        "mpirun",
        "--allow-run-as-root",
        "--oversubscribe",
        "--bind-to",
        "none",
    ]
}

/// Names of the files that end so.
pub fn files(place: &Path, end: &str) -> Vec<String> {
    let entries = std::fs::read_dir(place).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(end)).collect()
}

/// A Python with the readers, if the tests were given one.
pub fn python() -> Option<String> {
    std::env::var("UMASERVE_PYTHON")
        .ok()
        .filter(|python| !python.is_empty())
}

/// Says that something cannot be tested here, also where the output of tests is captured.
pub fn not_tested(what: &str) {
    use std::io::Write as _;
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let _ = writeln!(std::io::stderr(), "NOT TESTED {test}: {what}");
}

pub fn signal(name: &str, process: u32) {
    let status = Command::new("kill")
        .args([format!("-{name}"), process.to_string()])
        .status();
    assert!(status.unwrap().success());
}

/// A started program; it and what it has started are killed when it is dropped.
pub struct Program {
    child: Child,
    /// Addresses, one per start of the server.
    addresses: Mutex<Receiver<String>>,
    address: String,
    log: Arc<Mutex<String>>,
    /// Reads the log until nobody has the pipe any more.
    reader: JoinHandle<()>,
}

impl Program {
    /// Starts it and waits until it says where it listens.
    pub fn start(mut command: Command) -> Program {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let (sender, addresses) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some((_, rest)) = line.split_once("ws://") {
                    let _ = sender.send(rest.split('/').next().unwrap().to_owned());
                }
            }
        });
        let log = Arc::new(Mutex::new(String::new()));
        let errors = BufReader::new(child.stderr.take().unwrap());
        let lines = log.clone();
        let reader = std::thread::spawn(move || {
            for line in errors.lines().map_while(Result::ok) {
                let mut log = lines.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let mut program = Program {
            child,
            addresses: Mutex::new(addresses),
            address: String::new(),
            log,
            reader,
        };
        program.wait_for_start();
        program
    }

    /// Waits until a server (the first, or one that was started again) listens.
    pub fn wait_for_start(&mut self) {
        let heard = self.addresses.lock().unwrap().recv_timeout(PATIENCE);
        match heard {
            Ok(address) => self.address = address,
            Err(_) => panic!("not started:\n{}", self.log()),
        }
    }

    pub fn viewer(&self) -> Viewer {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let url = format!("ws://{}/ws", self.address);
        let (socket, _) = tungstenite::client(url, stream).unwrap();
        Viewer {
            socket,
            seq: 0,
            last_seen: 0,
        }
    }

    fn get(&self, path: &str) -> String {
        use std::io::Write as _;
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    #[cfg(feature = "mpi")]
    pub fn health(&self) -> serde_json::Value {
        serde_json::from_str(&self.get("/serve/health")).unwrap()
    }

    /// A number from `/metrics`.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics");
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = value.unwrap_or_else(|| panic!("no {name} in {text}"));
        value.parse().unwrap()
    }

    pub fn signal(&self, name: &str) {
        signal(name, self.child.id());
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Its exit code, once it and all that it has started have ended and their log is read.
    pub fn wait(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.child.try_wait().unwrap();
            if let Some(status) = status
                && self.reader.is_finished()
            {
                return status.code();
            }
            assert!(Instant::now() < deadline, "not ended: {status:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What it has logged until now; all after [`Program::wait`].
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// What it has logged, once this word is in it.
    pub fn log_with(&self, word: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let log = self.log();
            if log.contains(word) {
                return log;
            }
            assert!(Instant::now() < deadline, "no {word} in {log}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The ranks of the running job, by their number.
    #[cfg(feature = "mpi")]
    pub fn ranks(&self) -> Vec<u32> {
        let mut ranks: Vec<(u32, u32)> = descendants(self.child.id())
            .into_iter()
            .filter_map(|id| {
                let environment = std::fs::read(format!("/proc/{id}/environ")).ok()?;
                let rank = environment
                    .split(|&byte| byte == 0)
                    .find_map(|entry| entry.strip_prefix(b"OMPI_COMM_WORLD_RANK="))?;
                Some((String::from_utf8_lossy(rank).parse().ok()?, id))
            })
            .collect();
        ranks.sort_unstable();
        ranks.into_iter().map(|(_, id)| id).collect()
    }
}

/// Processes that a process has started, and theirs.
fn descendants(process: u32) -> Vec<u32> {
    let path = format!("/proc/{process}/task/{process}/children");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let mut all: Vec<u32> = Vec::new();
    for child in text.split_whitespace().filter_map(|id| id.parse().ok()) {
        all.push(child);
        all.extend(descendants(child));
    }
    all
}

impl Drop for Program {
    fn drop(&mut self) {
        let all = descendants(self.child.id());
        let _ = self.child.kill();
        let _ = self.child.wait();
        for id in all {
            let _ = Command::new("kill")
                .args(["-KILL", &id.to_string()])
                .stderr(Stdio::null())
                .status();
        }
    }
}

pub struct Viewer {
    socket: WebSocket<TcpStream>,
    seq: u64,
    pub last_seen: u64,
}

impl Viewer {
    fn say(&mut self, action: ClientAction) {
        self.seq += 1;
        let action = ClientAction {
            seq: self.seq,
            ack: action.ack.or(Some(self.last_seen)),
            schema_version: 1,
            ..action
        };
        let bytes = action.encode_to_vec();
        // A server that ends has other things to tell.
        let _ = self.socket.send(Message::Binary(bytes.into()));
    }

    fn ask(&mut self, payload: Payload) {
        self.say(ClientAction {
            payload: Some(payload),
            ..ClientAction::default()
        });
    }

    /// The next message, acknowledged; `None` when the socket is closed.
    fn hear(&mut self) -> Option<server_result::Payload> {
        loop {
            match self.socket.read() {
                Ok(Message::Binary(bytes)) => {
                    let result = ServerResult::decode(bytes).unwrap();
                    self.last_seen = self.last_seen.max(result.seq);
                    self.say(ClientAction::default());
                    return result.payload;
                }
                Ok(Message::Close(_)) => return None,
                Ok(_) => {}
                Err(tungstenite::Error::Io(error))
                    if error.kind() == std::io::ErrorKind::WouldBlock =>
                {
                    panic!("nothing heard for {PATIENCE:?}")
                }
                Err(_) => return None,
            }
        }
    }

    pub fn attach(&mut self, key: &str) -> SessionState {
        self.attach_after(key, 0)
    }

    pub fn attach_after(&mut self, key: &str, seen: u64) -> SessionState {
        self.last_seen = seen;
        self.say(ClientAction {
            attach: Some(Attach {
                session_id: key.to_owned(),
            }),
            ..ClientAction::default()
        });
        match self.hear() {
            Some(server_result::Payload::SessionState(state)) => state,
            other => panic!("{other:?}"),
        }
    }

    /// Uploads water and starts MD, recorded under this name.
    pub fn begin(&mut self, label: &str) {
        self.begin_with(&WATER, &POSITIONS, label);
    }

    /// The same with this molecule; positions in Angstrom, three per atom.
    pub fn begin_with(&mut self, numbers: &[u32], positions: &[f64], label: &str) {
        let indices: Vec<u32> = (0..numbers.len() as u32).collect();
        let edit = UserInteractionSparse {
            natoms: numbers.len() as u32,
            atomic_numbers: Some(IntDelta {
                indices: indices.clone(),
                values: numbers.to_vec(),
            }),
            positions: Some(Vec3Delta {
                indices,
                coords: positions.to_vec(),
            }),
            full_update_flag: Some(FullUpdateFlag::FullUpdate(true)),
            ..UserInteractionSparse::default()
        };
        self.ask(Payload::UserInteraction(edit));
        self.hear_frames(1);
        self.ask(Payload::Start(Start {
            simulation_type: 0,
            simulation_params: Some(SimulationParams {
                temperature: 300.0,
                timestep_fs: 0.5,
                friction: 0.02,
                record_label: Some(label.to_owned()),
                ..SimulationParams::default()
            }),
        }));
    }

    /// Hears so many frames; notices do not count.
    pub fn hear_frames(&mut self, frames: usize) {
        let mut heard = 0;
        while heard < frames {
            match self.hear() {
                Some(server_result::Payload::Frame(_)) => heard += 1,
                Some(_) => {}
                None => panic!("the socket was closed after {heard} of {frames} frames"),
            }
        }
    }

    /// Hears whatever comes for a while.
    pub fn hear_for(&mut self, time: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < time && self.hear().is_some() {}
    }

    /// Hears until a notice with this first word comes.
    pub fn hear_notice(&mut self, word: &str) -> String {
        loop {
            match self.hear() {
                Some(server_result::Payload::Notice(notice)) => {
                    if notice.message().split(':').next() == Some(word) {
                        return notice.message().to_owned();
                    }
                }
                Some(_) => {}
                None => panic!("the socket was closed before {word}"),
            }
        }
    }

    /// Hears until the server says that it starts again and closes the socket; the notice's name.
    pub fn hear_restart(&mut self) -> String {
        let mut last = String::new();
        loop {
            match self.socket.read() {
                Ok(Message::Binary(bytes)) => {
                    let result = ServerResult::decode(bytes).unwrap();
                    self.last_seen = self.last_seen.max(result.seq);
                    self.say(ClientAction::default());
                    if let Some(server_result::Payload::Notice(notice)) = result.payload {
                        last = notice.message().split(':').next().unwrap().to_owned();
                    }
                }
                Ok(Message::Close(frame)) => {
                    let code = u16::from(frame.expect("a code").code);
                    assert_eq!(code, 1012, "service restart");
                    return last;
                }
                Ok(_) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Hears until the connection ends, in whatever way. A server that is stopped keeps it open
    /// for as long as its peers allow.
    pub fn hear_end(&mut self) {
        while self.hear().is_some() {}
    }

    /// Stops the simulation, which completes its recording, and ends the session.
    pub fn end(&mut self) {
        self.ask(Payload::Stop(Stop {}));
        self.hear_notice("SIMULATION_STOPPED");
        self.say(ClientAction {
            end_session: Some(true),
            ..ClientAction::default()
        });
        while self.hear().is_some() {}
    }
}
