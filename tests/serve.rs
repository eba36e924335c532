//! `umaserve serve` as a user starts it: the real program with a real checkpoint, alone and under
//! mpirun, a viewer on its socket, a signal at the end.

#[path = "serve/front.rs"]
mod front;

use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use prost::Message as _;
use tungstenite::{Message, WebSocket};
use umaserve::server::convert::proto::{
    ClientAction, IntDelta, ServerResult, SimulationParams, UserInteractionSparse, Vec3Delta,
    client_action::{Payload, Start, Stop},
    server_result::{self, Frame},
    user_interaction_sparse::FullUpdateFlag,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_umaserve");
const MODEL: &str = "tests/data/nano-1p2.pt";
const PATIENCE: Duration = Duration::from_secs(60);

/// Water.
const NUMBERS: [i32; 3] = [8, 1, 1];
const POSITIONS: [f64; 9] = [0.0, 0.0, 0.12, 0.0, 0.76, -0.47, 0.0, -0.76, -0.47];

/// A started program; killed when dropped.
struct Program {
    child: Child,
    address: String,
    /// What it printed until then.
    text: String,
    /// The token in the printed address.
    token: String,
}

fn umaserve(arguments: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(arguments);
    command
}

#[cfg(feature = "mpi")]
fn mpirun() -> Command {
    let mut command = Command::new("mpirun");
    command.args([
        "--allow-run-as-root",
        "--oversubscribe",
        "--bind-to",
        "none",
    ]);
    // Time to say goodbye after a signal, more than the one second by default.
    command.args(["--mca", "odls_base_sigkill_timeout", "3"]);
    command
}

impl Program {
    /// Starts it and waits until it says where it listens.
    fn start(mut command: Command) -> Program {
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut text = String::new();
        let address = loop {
            let before = text.len();
            assert!(
                output.read_line(&mut text).unwrap() > 0,
                "not started: {text}"
            );
            if let Some((_, rest)) = text[before..].split_once("ws://") {
                break rest.split('/').next().unwrap().to_owned();
            }
        };
        while !text.contains("Ctrl-C") {
            assert!(output.read_line(&mut text).unwrap() > 0, "half a greeting");
        }
        assert!(text.contains("umaserve 0.1.0 serves UMA-S-1.2.1"), "{text}");
        // Keep reading, so that the program can keep writing.
        std::thread::spawn(move || output.read_to_string(&mut String::new()));
        let token = text.split_once("#token=").map_or("", |(_, rest)| rest);
        let token = token.lines().next().unwrap_or_default().trim().to_owned();
        Program {
            child,
            address,
            text,
            token,
        }
    }

    /// One request with the token.
    fn get(&self, path: &str) -> String {
        use std::io::Write as _;
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let token = &self.token;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
             Connection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
        body.to_owned()
    }

    fn viewer(&self) -> Viewer {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let url = format!("ws://{}/ws?token={}", self.address, self.token);
        let (socket, _) = tungstenite::client(url, stream).unwrap();
        Viewer { socket, seq: 0 }
    }

    fn health(&self) -> serde_json::Value {
        serde_json::from_str(&self.get("/serve/health")).unwrap()
    }

    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the program does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn signal(name: &str, process: u32) {
    let status = Command::new("kill")
        .args([format!("-{name}"), process.to_string()])
        .status();
    assert!(status.unwrap().success());
}

struct Viewer {
    socket: WebSocket<TcpStream>,
    seq: u64,
}

impl Viewer {
    fn say(&mut self, ack: Option<u64>, payload: Option<Payload>) {
        self.seq += 1;
        let action = ClientAction {
            seq: self.seq,
            ack,
            schema_version: 1,
            payload,
            ..ClientAction::default()
        };
        let bytes = action.encode_to_vec();
        self.socket.send(Message::Binary(bytes.into())).unwrap();
    }

    fn hear(&mut self) -> server_result::Payload {
        loop {
            match self.socket.read().unwrap() {
                Message::Binary(bytes) => {
                    let result = ServerResult::decode(bytes).unwrap();
                    self.say(Some(result.seq), None);
                    match result.payload.unwrap() {
                        // It was not scheduled for a while.
                        server_result::Payload::Notice(notice)
                            if notice.message() == "WAITING_FOR_ACK" => {}
                        payload => return payload,
                    }
                }
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn hear_frame(&mut self) -> Frame {
        match self.hear() {
            server_result::Payload::Frame(frame) => frame,
            other => panic!("{other:?}"),
        }
    }

    fn upload(&mut self) {
        let indices: Vec<u32> = vec![0, 1, 2];
        let edit = UserInteractionSparse {
            natoms: 3,
            atomic_numbers: Some(IntDelta {
                indices: indices.clone(),
                values: NUMBERS.map(|z| z.try_into().unwrap()).to_vec(),
            }),
            positions: Some(Vec3Delta {
                indices,
                coords: POSITIONS.to_vec(),
            }),
            full_update_flag: Some(FullUpdateFlag::FullUpdate(true)),
            ..UserInteractionSparse::default()
        };
        self.say(None, Some(Payload::UserInteraction(edit)));
    }

    fn start_md(&mut self) {
        let parameters = SimulationParams {
            temperature: 300.0,
            timestep_fs: 0.5,
            friction: 0.02,
            ..SimulationParams::default()
        };
        let start = Start {
            simulation_type: 0,
            simulation_params: Some(parameters),
        };
        self.say(None, Some(Payload::Start(start)));
    }

    fn stop(&mut self) {
        self.say(None, Some(Payload::Stop(Stop {})));
        loop {
            if let server_result::Payload::Notice(notice) = self.hear() {
                assert_eq!(notice.message(), "SIMULATION_STOPPED");
                return;
            }
        }
    }

    /// Energies and positions of a short run.
    fn run(&mut self, frames: usize) -> Vec<f64> {
        self.upload();
        let mut seen = vec![self.hear_frame().energy.unwrap()];
        self.start_md();
        for _ in 0..frames {
            let frame = self.hear_frame();
            seen.push(frame.energy.unwrap());
            seen.extend(&frame.positions);
        }
        seen
    }
}

fn arguments<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["serve", "--model", MODEL, "--bind", "127.0.0.1:0"];
    all.extend(more);
    all
}

/// Every recording in the directory is complete and readable; returns the number of files.
#[cfg(feature = "hdf5")]
fn complete_recordings(directory: &Path) -> usize {
    let mut recordings = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.display().to_string();
        if name.ends_with("connection.json") {
            continue;
        }
        assert!(name.ends_with(".h5"), "left behind: {name}");
        let output = umaserve(&["trajectory", "repair", &name]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{output:?}");
        assert!(text.contains("nothing to repair"), "{text}");
        recordings += 1;
    }
    recordings
}

#[test]
fn one_process_serves_records_and_ends_on_sigterm() {
    let directory = tempfile::tempdir().unwrap();
    let record = directory.path().display().to_string();
    let mut more = vec!["--threads", "2"];
    if cfg!(feature = "hdf5") {
        more.extend(["--record", &record]);
    }
    let mut program = Program::start(umaserve(&arguments(&more)));
    let health = program.health();
    assert_eq!(health["status"], "ok");
    assert_eq!(health["device"], "cpu");
    assert_eq!(health["workers"], 1);
    // What the page asks for.
    assert_eq!(health["max_atoms"], 20_000);
    assert_eq!(health["recording"], cfg!(feature = "hdf5"));
    let tasks = health["tasks"].as_array().unwrap();
    assert!(tasks.contains(&"omol".into()) && tasks.contains(&"omat".into()));
    assert!(
        health["elements"]["omol"]
            .as_array()
            .unwrap()
            .contains(&8.into())
    );
    let mut viewer = program.viewer();
    viewer.run(10);
    viewer.stop();
    viewer.start_md();
    viewer.hear_frame();
    assert!(program.health()["replica_stats_items"].as_u64() >= Some(12));
    // In the middle of a run.
    signal("TERM", program.child.id());
    assert_eq!(program.wait().code(), Some(0));
    #[cfg(feature = "hdf5")]
    assert_eq!(complete_recordings(directory.path()), 2);
    assert!(Path::new(&record).exists());
}

#[test]
fn the_environment_is_honoured() {
    let mut command = umaserve(&["serve", "--bind", "127.0.0.1:0"]);
    command
        .env("UMA_MODEL", MODEL)
        .env("UMA_TASK", "omat")
        .env("MLIPVIEW_FORCE_CPU", "1");
    let mut program = Program::start(command);
    let health = program.health();
    assert_eq!(health["task"], "omat");
    assert_eq!(health["force_cpu_mode"], true);
    assert_eq!(health["recording"], false);
    signal("INT", program.child.id());
    assert_eq!(program.wait().code(), Some(0));
}

fn refused(arguments: &[&str]) -> String {
    let mut command = umaserve(arguments);
    command.env("RUST_LOG", "error"); // the refusal alone
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn what_cannot_be_served_is_refused_with_the_reason() {
    for (more, reason) in [
        (["--no-auth", "--bind=0.0.0.0:0"], "without tokens"),
        // No kernels in this build, or no driver, or no GPU.
        (["--device", "cuda"], "--device cuda: "),
        (["--task", "chess"], "omat"),
        (["--model", "Cargo.toml"], "Cargo.toml"),
        (["--model", "no-such.pt"], "no-such.pt"),
        (["--max-atoms", "0"], "--max-atoms is 0"),
    ] {
        if more[1] == "cuda" && umaserve::backend::cuda::driver::devices().is_ok() {
            continue; // here it can be served
        }
        let mut all = vec!["serve"];
        if more[0] != "--model" {
            all.extend(["--model", MODEL]);
        }
        all.extend(more);
        let text = refused(&all);
        assert!(text.contains(reason), "{more:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

#[cfg(feature = "mpi")]
mod under_mpirun {
    use super::*;

    fn children(process: u32) -> Vec<u32> {
        let path = format!("/proc/{process}/task/{process}/children");
        let text = std::fs::read_to_string(path).unwrap();
        text.split_whitespace()
            .map(|id| id.parse().unwrap())
            .collect()
    }

    #[test]
    fn three_ranks_give_the_numbers_of_one_process() {
        let alone = Program::start(umaserve(&arguments(&[])));
        let expected = alone.viewer().run(30);

        let directory = tempfile::tempdir().unwrap();
        let record = directory.path().display().to_string();
        let mut command = mpirun();
        command.args(["-n", "3", PROGRAM]).args(arguments(&[]));
        if cfg!(feature = "hdf5") {
            command.args(["--record", &record]);
        }
        let mut job = Program::start(command);
        let health = job.health();
        assert_eq!(health["workers"], 2);
        assert_eq!(health["max_atoms"], 20_000);
        let tasks = health["tasks"].as_array().unwrap();
        assert!(tasks.iter().any(|task| task == "omol"), "{health}");
        assert_eq!(health["recording"], cfg!(feature = "hdf5"));
        let mut viewer = job.viewer();
        assert_eq!(viewer.run(30), expected);
        // As Slurm does: to every rank. Rank 0 decides when the others leave.
        let ranks = children(job.child.id());
        let ranks = ranks.iter().map(u32::to_string);
        // At once: the others leave a second after rank 0.
        let sent = Command::new("kill").arg("-TERM").args(ranks).status();
        assert!(sent.unwrap().success());
        assert_eq!(job.wait().code(), Some(0));
        #[cfg(feature = "hdf5")]
        assert_eq!(complete_recordings(directory.path()), 1);
    }

    fn refused_job(arguments: &[&str]) -> String {
        refused_job_with(arguments, &[])
    }

    fn refused_job_with(arguments: &[&str], environment: &[(&str, &str)]) -> String {
        let mut child = mpirun()
            .args(arguments)
            .envs(environment.iter().copied())
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut errors = child.stderr.take().unwrap();
        let text = std::thread::spawn(move || {
            let mut text = String::new();
            errors.read_to_string(&mut text).map(|_| text)
        });
        let mut program = Program {
            child,
            address: String::new(),
            text: String::new(),
            token: String::new(),
        };
        assert_ne!(program.wait().code(), Some(0));
        text.join().unwrap().unwrap()
    }

    #[test]
    fn ranks_with_different_checkpoints_do_not_start() {
        let bind = "127.0.0.1:0";
        let text = refused_job(&[
            "-n",
            "2",
            PROGRAM,
            "serve",
            "--bind",
            bind,
            "--model",
            MODEL,
            ":",
            "-n",
            "1",
            PROGRAM,
            "serve",
            "--bind",
            bind,
            "--model",
            "tests/data/nano-1p1.pt",
        ]);
        assert!(text.contains("different checkpoints"), "{text}");
        assert_eq!(text.matches("  cpu\n").count(), 2, "{text}");
        assert_eq!(text.matches("  serves\n").count(), 1, "{text}");
    }

    #[test]
    fn a_rank_with_a_broken_checkpoint_stops_the_start_of_all() {
        let bind = "127.0.0.1:0";
        for (first, second) in [(MODEL, "Cargo.toml"), ("Cargo.toml", MODEL)] {
            let text = refused_job(&[
                "-n", "1", PROGRAM, "serve", "--bind", bind, "--model", first, ":", "-n", "2",
                PROGRAM, "serve", "--bind", bind, "--model", second,
            ]);
            assert!(text.contains("ranks that cannot work"), "{text}");
            assert!(text.contains("Cargo.toml: "), "{text}");
        }
    }

    const DEVICES: &str = "UMASERVE_EMULATE_DEVICES";

    #[test]
    fn ranks_that_outnumber_the_devices_do_not_start_and_a_table_says_why() {
        let mut job = vec!["-n", "4", PROGRAM];
        job.extend(arguments(&["--device", "cuda"]));
        let text = refused_job_with(&job, &[(DEVICES, "GPU-a,GPU-b")]);
        assert!(text.contains("needs a device of its own"), "{text}");
        assert!(text.contains("3 computing ranks, 2 devices"), "{text}");
        for (rank, device) in [(0, "serves"), (1, "GPU-a"), (2, "GPU-b"), (3, "none")] {
            let found = text.lines().any(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                words.first() == Some(&&*rank.to_string()) && words.get(2) == Some(&device)
            });
            assert!(found, "rank {rank} on {device}: {text}");
        }
        // Once, not by every rank.
        let times = text.matches("needs a device of its own").count();
        assert_eq!(times, 1, "{text}");
    }

    /// Two workers on two devices, which the CPU emulates.
    #[cfg(feature = "host-kernels")]
    #[test]
    fn every_computing_rank_has_the_device_of_its_place() {
        let mut command = mpirun();
        command
            .args(["-n", "3", PROGRAM])
            .env(DEVICES, "GPU-a,GPU-b");
        command.args(arguments(&["--device", "cuda", "--precision", "f32"]));
        let job = Program::start(command);
        let text = &job.text;
        for (rank, device) in [(0, "serves"), (1, "cuda:0 GPU-a"), (2, "cuda:1 GPU-b")] {
            let found = text.lines().any(|line| {
                let line = line.trim();
                line.starts_with(&format!("rank {rank} ")) && line.ends_with(device)
            });
            assert!(found, "rank {rank} on {device}: {text}");
        }
        let status: serde_json::Value = serde_json::from_str(&job.get("/serve/status")).unwrap();
        let devices: Vec<&str> = status["ranks"]
            .as_array()
            .unwrap()
            .iter()
            .map(|rank| rank["device"].as_str().unwrap())
            .collect();
        assert_eq!(devices, ["serves", "cuda:0 GPU-a", "cuda:1 GPU-b"]);
        assert_eq!(job.health()["device"], "cuda");
        // It computes there: the numbers of the CPU, but for the order of sums.
        let [seen, expected] = [&job, &Program::start(umaserve(&arguments(&[])))]
            .map(|server| server.viewer().run(2)[0]);
        assert!((seen - expected).abs() < 1e-3, "{seen} and {expected} eV");
    }
}
