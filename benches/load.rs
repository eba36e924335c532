//! What serving costs on top of computing, and how it holds up: the real program on loopback.
//!
//! One viewer alone: the time from frame to frame, beside the bare step (integration, neighbour
//! list, network) of the same structure and the echo of a WebSocket ping by the same server, measured in
//! turns in the same run. Then many viewers at once, every one with a simulation as fast as it goes:
//! steps per second, time per step, and whether any frame is lost or comes out of order.
//!
//! On a machine with other work every hand-over between threads may have to wait for a processor. How
//! long the threads of the server waited so is read from the kernel (`/proc/PID/task/*/schedstat`) and
//! printed beside: it is the machine's, not the server's.
//!
//! `cargo bench --bench load [-- --clients 64 --seconds 60 --model FILE]`
//!
//! The server computes on one thread, so that sockets and viewers have the other cores.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use prost::Message as _;
use tokio_tungstenite::tungstenite::Message;
use umaserve::comm::{Job, SessionId, Shard, Task};
use umaserve::dynamics::{History, Method, State};
use umaserve::potential::Potential;
use umaserve::potential::uma::{Checkpoint, UmaOptions, UmaPotential};
use umaserve::server::convert::proto::{
    ClientAction, IntDelta, ServerResult, SimulationParams, UserInteractionSparse, Vec3Delta,
    client_action::{Payload, Start},
    server_result,
    user_interaction_sparse::FullUpdateFlag,
};
use umaserve::system::{Cell, System};

const NUMBERS: [u8; 3] = [8, 1, 1];
const POSITIONS: [[f64; 3]; 3] = [[0.0, 0.0, 0.12], [0.0, 0.76, -0.47], [0.0, -0.76, -0.47]];
const TIMESTEP_FS: f64 = 0.5;
/// Steps that do not count: caches fill, the allocator settles.
const WARM_UP: usize = 200;
const MAX_EDGES: usize = 1_000_000;

struct Options {
    clients: usize,
    seconds: u64,
    model: PathBuf,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        clients: 64,
        seconds: 60,
        model: PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/models/nano-1p2.pt")),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        if name == "--bench" {
            continue; // cargo says so
        }
        let value = arguments.next().ok_or(format!("{name} needs a value"))?;
        let number = || {
            let number = value.parse::<u32>().ok().filter(|&n| n > 0);
            number.ok_or(format!("{name} {value}: not a positive number"))
        };
        match name.as_str() {
            "--clients" => options.clients = number()? as usize,
            "--seconds" => options.seconds = number()?.into(),
            "--model" => options.model = value.into(),
            _ => return Err(format!("{name} is none of --clients, --seconds, --model")),
        }
    }
    Ok(options)
}

/// The server as a user starts it; ended with the bench.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(model: &PathBuf) -> Server {
        let mut child = Command::new(env!("CARGO_BIN_EXE_umaserve"))
            .args([
                "serve",
                "--no-auth",
                "--bind",
                "127.0.0.1:0",
                "--device",
                "cpu",
            ])
            .args(["--threads", "1", "--frame-interval-ms", "0", "--model"])
            .arg(model)
            .env("RUST_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()
            .expect("umaserve starts");
        let output = child.stdout.take().expect("a pipe");
        let mut lines = BufReader::new(output).lines();
        let address = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| {
                let (_, rest) = line.split_once("ws://")?;
                rest.split('/').next().map(str::to_owned)
            })
            .expect("the server says where it listens");
        std::thread::spawn(move || lines.for_each(drop));
        Server { child, address }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the kernel has counted for the threads of a process so far, by the name of the thread.
#[derive(Clone, Copy, Debug, Default)]
struct Scheduled {
    /// Time on a processor, s.
    ran: f64,
    /// Time ready to run and without a processor, s.
    waited: f64,
    /// Times that it was given a processor.
    turns: f64,
}

fn scheduled(process: u32) -> BTreeMap<String, Scheduled> {
    let mut threads: BTreeMap<String, Scheduled> = BTreeMap::new();
    let tasks = std::fs::read_dir(format!("/proc/{process}/task"));
    for task in tasks.into_iter().flatten().flatten() {
        let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let numbers: Vec<f64> = read("schedstat")
            .split_whitespace()
            .filter_map(|number| number.parse().ok())
            .collect();
        let [ran, waited, turns] = numbers[..] else {
            continue; // it has just ended, or this kernel does not count
        };
        let name = match task.file_name().to_str() == Some(&process.to_string()) {
            true => "engine (main thread)".to_owned(),
            false => read("comm").trim().to_owned(),
        };
        let all = threads.entry(name).or_default();
        all.ran += ran * 1e-9;
        all.waited += waited * 1e-9;
        all.turns += turns;
    }
    threads
}

/// Adds to `sum` what has been counted since `before`.
fn count(
    sum: &mut BTreeMap<String, Scheduled>,
    before: &BTreeMap<String, Scheduled>,
    process: u32,
) {
    for (name, now) in scheduled(process) {
        let before = before.get(&name).copied().unwrap_or_default();
        let sum = sum.entry(name).or_default();
        sum.ran += now.ran - before.ran;
        sum.waited += now.waited - before.waited;
        sum.turns += now.turns - before.turns;
    }
}

fn print_scheduled(threads: &BTreeMap<String, Scheduled>, steps: u64) {
    let steps = steps as f64;
    println!("  threads of the server, per step             runs    waits  turns");
    let (mut ran, mut waited) = (0.0, 0.0);
    for (name, thread) in threads {
        let turns = thread.turns / steps;
        if turns < 1e-3 {
            continue;
        }
        let (runs, waits) = (1e3 * thread.ran / steps, 1e3 * thread.waited / steps);
        ran += runs;
        waited += waits;
        println!("    {name:<36}  {runs:>8.3} {waits:>8.3} {turns:>6.2}");
    }
    println!(
        "    {:<36}  {ran:>8.3} {waited:>8.3}         ms",
        "together"
    );
}

/// What a viewer has seen.
#[derive(Default)]
struct Seen {
    /// Steps in all, also those that do not count.
    steps: u64,
    /// Time from frame to frame, seconds.
    intervals: Vec<f64>,
    lost: u64,
    out_of_order: u64,
}

/// Uploads water, starts dynamics, acknowledges every frame until `end`.
async fn view(address: String, seed: u64, begin: Instant, end: Instant) -> Seen {
    let stream = tokio::net::TcpStream::connect(&address)
        .await
        .expect("the server listens");
    stream.set_nodelay(true).expect("a TCP socket");
    let (mut socket, _) = tokio_tungstenite::client_async(format!("ws://{address}/ws"), stream)
        .await
        .expect("the server takes the viewer");
    let mut client_seq = 0;
    let mut action = |ack, payload| {
        client_seq += 1;
        let action = ClientAction {
            seq: client_seq,
            ack,
            schema_version: 1,
            payload,
            ..ClientAction::default()
        };
        Message::Binary(action.encode_to_vec().into())
    };
    let upload = UserInteractionSparse {
        natoms: 3,
        atomic_numbers: Some(IntDelta {
            indices: vec![0, 1, 2],
            values: NUMBERS.map(u32::from).to_vec(),
        }),
        positions: Some(Vec3Delta {
            indices: vec![0, 1, 2],
            coords: POSITIONS.concat(),
        }),
        full_update_flag: Some(FullUpdateFlag::FullUpdate(true)),
        ..UserInteractionSparse::default()
    };
    let start = Start {
        simulation_type: 0,
        simulation_params: Some(SimulationParams {
            calculator: "uma".into(),
            temperature: 300.0,
            timestep_fs: TIMESTEP_FS,
            friction: 0.02,
            frame_interval_ms: Some(0),
            seed: Some(seed),
            ..SimulationParams::default()
        }),
    };
    for payload in [Payload::UserInteraction(upload), Payload::Start(start)] {
        socket
            .send(action(None, Some(payload)))
            .await
            .expect("the server reads");
    }
    let mut seen = Seen::default();
    let mut last_seq = None;
    let mut last_step = None;
    let mut last_frame: Option<Instant> = None;
    while Instant::now() < end {
        let message = socket
            .next()
            .await
            .expect("the server goes on")
            .expect("a message");
        let Message::Binary(bytes) = message else {
            continue;
        };
        let now = Instant::now();
        let result = ServerResult::decode(bytes).expect("a server result");
        socket
            .send(action(Some(result.seq), None))
            .await
            .expect("the server reads");
        let payload = result.payload;
        if let Some(server_result::Payload::Notice(notice)) = &payload {
            // The one message without a number of its own.
            let text = notice.message.as_deref().unwrap_or_default();
            assert!(
                text.contains("WAITING_FOR_ACK"),
                "unexpected notice: {text}"
            );
            continue;
        }
        // Every message has the number after the one before.
        match last_seq.map(|last: u64| result.seq.checked_sub(last)) {
            None | Some(Some(1)) => {}
            Some(Some(gap)) if gap > 1 => seen.lost += gap - 1,
            _ => seen.out_of_order += 1,
        }
        last_seq = Some(result.seq);
        if !matches!(payload, Some(server_result::Payload::Frame(_))) {
            continue;
        }
        let step = result.sim_step.unwrap_or(0);
        if step == 0 {
            continue; // the answer to the upload
        }
        match last_step.map(|last: u64| step.checked_sub(last)) {
            None | Some(Some(1)) => {}
            Some(Some(gap)) if gap > 1 => seen.lost += gap - 1,
            _ => seen.out_of_order += 1,
        }
        last_step = Some(step);
        seen.steps += 1;
        if let Some(last) = last_frame.replace(now)
            && last >= begin
        {
            seen.intervals.push((now - last).as_secs_f64());
        }
    }
    seen
}

/// Seconds from a ping to its answer, on a socket that has no session: two hand-overs between
/// threads and the way through the kernel, and nothing of the engine.
async fn echoes(address: &str, end: Instant) -> Vec<f64> {
    let stream = tokio::net::TcpStream::connect(address)
        .await
        .expect("the server listens");
    stream.set_nodelay(true).expect("a TCP socket");
    let (mut socket, _) = tokio_tungstenite::client_async(format!("ws://{address}/ws"), stream)
        .await
        .expect("the server takes the socket");
    let mut times = Vec::new();
    while Instant::now() < end {
        let before = Instant::now();
        let ping = Message::Ping(Vec::new().into());
        socket.send(ping).await.expect("the server reads");
        loop {
            let answer = socket.next().await.expect("the server goes on");
            if let Message::Pong(_) = answer.expect("a message") {
                break;
            }
        }
        times.push(before.elapsed().as_secs_f64());
    }
    times
}

/// The same step without a server, `copies` structures at a time: seconds per batch.
fn bare_steps(potential: &dyn Potential, copies: usize, count: usize) -> Vec<f64> {
    let state = State {
        system: System {
            numbers: NUMBERS.to_vec(),
            positions: POSITIONS.to_vec(),
            cell: Cell::default(),
            charge: 0,
            spin: 1,
            task: "omol".into(),
        },
        velocities: vec![[0.0; 3]; 3],
        evaluation: None,
        history: History::None,
        step: 0,
        seed: 1,
    };
    let task = Task::Step(Method::Langevin {
        timestep_fs: TIMESTEP_FS,
        temperature_kelvin: 300.0,
        friction: 0.02,
    });
    let job = |serial| Job {
        session: SessionId(serial),
        serial,
        task: Task::Evaluate,
        state: state.clone(),
    };
    let mut shard = Shard {
        id: 0,
        jobs: (0..copies as u64).map(job).collect(),
    };
    let mut times = Vec::new();
    for step in 0..WARM_UP + count {
        let before = Instant::now();
        let outcomes = umaserve::worker::run(&shard, potential, MAX_EDGES);
        let took = before.elapsed().as_secs_f64();
        for (job, outcome) in shard.jobs.iter_mut().zip(outcomes) {
            job.state = outcome.result.expect("water can be evaluated");
            job.task = task.clone();
        }
        if step >= WARM_UP {
            times.push(took);
        }
    }
    times
}

/// Milliseconds below which this share of the values lies.
fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values
        .get((last as f64 * share).round() as usize)
        .map_or(f64::NAN, |s| s * 1e3)
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(reason) => {
            eprintln!("load: {reason}");
            return ExitCode::from(2);
        }
    };
    rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build_global()
        .expect("one thread");
    let checkpoint = Arc::new(Checkpoint::open(&options.model).expect("the checkpoint"));
    let potential = UmaPotential::on_cpu(checkpoint, UmaOptions::default()).expect("the model");
    // Sockets of all viewers on one thread: the server has the rest of the machine.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime");
    let server = Server::start(&options.model);

    // In turns, so that both see the same machine.
    let (mut bare, mut echo, mut alone) = (Vec::new(), Vec::new(), Seen::default());
    let mut threads = BTreeMap::new();
    for round in 0..4 {
        let end = Instant::now() + Duration::from_millis(250);
        echo.extend(runtime.block_on(echoes(&server.address, end)));
        bare.extend(bare_steps(&potential, 1, 1000));
        let begin = Instant::now() + Duration::from_millis(500);
        let end = begin + Duration::from_millis(2000);
        let before = scheduled(server.child.id());
        let seen = runtime.block_on(view(server.address.clone(), round, begin, end));
        count(&mut threads, &before, server.child.id());
        alone.intervals.extend(seen.intervals);
        alone.steps += seen.steps;
        alone.lost += seen.lost;
        alone.out_of_order += seen.out_of_order;
    }
    let [bare_50, bare_99] = [0.5, 0.99].map(|q| quantile(&mut bare, q));
    let [alone_50, alone_99] = [0.5, 0.99].map(|q| quantile(&mut alone.intervals, q));
    let [echo_50, echo_99] = [0.5, 0.99].map(|q| quantile(&mut echo, q));
    println!("water, one viewer, milliseconds per step       p50      p99");
    println!("  echo of a ping                          {echo_50:>8.3} {echo_99:>8.3}");
    println!("  bare step                               {bare_50:>8.3} {bare_99:>8.3}");
    println!("  frame to frame at the viewer            {alone_50:>8.3} {alone_99:>8.3}");
    println!(
        "  overhead                                {:>8.3} {:>8.3}  (p99 against p99; against p50 {:.3})",
        alone_50 - bare_50,
        alone_99 - bare_99,
        alone_99 - bare_50
    );

    print_scheduled(&threads, alone.steps);

    let (clients, seconds) = (options.clients, options.seconds);
    let begin = Instant::now() + Duration::from_secs(2);
    let end = begin + Duration::from_secs(seconds);
    let before = scheduled(server.child.id());
    let mut threads = BTreeMap::new();
    let all = runtime.block_on(async {
        let viewers = (0..clients as u64).map(|k| view(server.address.clone(), k, begin, end));
        futures_util::future::join_all(viewers).await
    });
    count(&mut threads, &before, server.child.id());
    let mut intervals: Vec<f64> = all.iter().flat_map(|seen| seen.intervals.clone()).collect();
    let steps = intervals.len() as f64;
    let fewest = all
        .iter()
        .map(|seen| seen.intervals.len())
        .min()
        .unwrap_or(0);
    let most = all
        .iter()
        .map(|seen| seen.intervals.len())
        .max()
        .unwrap_or(0);
    let lost: u64 = all.iter().map(|seen| seen.lost).sum::<u64>() + alone.lost;
    let out_of_order: u64 =
        all.iter().map(|seen| seen.out_of_order).sum::<u64>() + alone.out_of_order;
    let [p50, p99] = [0.5, 0.99].map(|q| quantile(&mut intervals, q));
    let steps_per_second = steps / seconds as f64;
    // As many structures in a pass as the server puts together (5000 edges).
    let copies = clients.min(64);
    let bare_batch = quantile(&mut bare_steps(&potential, copies, 100), 0.5) / copies as f64;
    let per_step = 1e3 / steps_per_second;
    println!("\nwater, {clients} viewers, {seconds} s");
    println!("  steps per second                        {steps_per_second:>8.0}");
    println!("  steps of the slowest, fastest viewer    {fewest:>8} {most:>8}");
    println!("  frame to frame at a viewer, p50, p99    {p50:>8.3} {p99:>8.3}  ms");
    println!("  server time per step                    {per_step:>8.3}  ms");
    println!("  bare step, {copies:>2} in a pass                 {bare_batch:>8.3}  ms");
    println!(
        "  overhead per step                       {:>8.3}  ms",
        per_step - bare_batch
    );
    println!("  frames lost, out of order               {lost:>8} {out_of_order:>8}");
    print_scheduled(&threads, all.iter().map(|seen| seen.steps).sum());
    drop(server);
    match lost + out_of_order {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
