//! The engine over MPI: this test program starts itself under `mpirun` (as the rank that
//! [`rank`] describes) and compares what the viewers heard with worker threads.
#![cfg(feature = "mpi")]

mod common;
#[cfg(feature = "host-kernels")]
#[path = "mpi/cuda.rs"]
mod cuda;

use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::LennardJones;
use common::viewer::{Trace, Viewer, cluster, mixed_sessions};
use umaserve::comm::Link;
use umaserve::comm::mpi::{Identity, Ranks};
use umaserve::comm::thread::ThreadWorkers;
use umaserve::engine::{Engine, EngineHandle, EngineSettings, Event, NoRecording, events};
use umaserve::potential::Potential;
use umaserve::session::SessionSettings;
use umaserve::worker::{self, thread_body};

const MAX_EDGES: usize = 100_000;
const FRAMES: usize = 25;
/// Says to a rank of the helper job what to do.
const ROLE: &str = "UMASERVE_TEST_ROLE";
const ANSWER: &str = "ANSWER ";

fn settings() -> EngineSettings {
    EngineSettings {
        session: Arc::new(SessionSettings {
            frame_interval: Duration::ZERO,
            ..SessionSettings::default()
        }),
        edge_budget: 2_000,
        ..EngineSettings::default()
    }
}

/// One hash per session: short enough to print.
fn digest(traces: &[Trace]) -> String {
    let hash = |trace: &Trace| {
        let bytes: Vec<u8> = trace.iter().flat_map(|x| x.to_le_bytes()).collect();
        blake3::hash(&bytes).to_hex()[..16].to_owned()
    };
    traces.iter().map(hash).collect::<Vec<_>>().join(",")
}

/// Runs viewers beside the engine of this thread until they are done.
fn while_serving(engine: EngineHandle, viewers: impl FnOnce(&EngineHandle) + Send + 'static) {
    std::thread::spawn(move || {
        viewers(&engine);
        engine.tell(Event::ShutDown);
    });
}

/// Not a test of its own: a rank of the job that the tests below start.
#[test]
fn rank() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let ranks = Ranks::join().unwrap();
    let number = ranks.rank();
    let timeout = Duration::from_secs(60);
    let mine = match (role.as_str(), number) {
        ("broken", 1) => Err("cannot read the checkpoint".to_owned()),
        _ => Ok(Identity {
            host: Ranks::host(),
            build: if (role.as_str(), number) == ("other-build", 2) {
                "b".into()
            } else {
                "a".into()
            },
            checkpoint: if (role.as_str(), number) == ("other-checkpoint", 1) {
                "2".into()
            } else {
                "1".into()
            },
            device: "cpu".into(),
        }),
    };
    let identities = match ranks.agree(mine) {
        Ok(identities) => identities,
        Err(reason) => {
            println!("\n{ANSWER}{number} {}", reason.replace('\n', "; "));
            drop(ranks);
            std::process::exit(1);
        }
    };
    #[cfg(feature = "host-kernels")]
    if number > 0 && role == cuda::FAILS {
        ranks
            .link(timeout)
            .run(|link| cuda::serve(link, number == 1));
        return;
    }
    if number > 0 {
        let potential = LennardJones::default();
        ranks.link(timeout).run(|link| {
            if (role.as_str(), number) != ("gives-up", 1) {
                worker::serve(link, &potential, MAX_EDGES);
                return None;
            }
            for _ in 0..4 {
                if let Some(shard) = link.take() {
                    link.answer(shard.id, worker::run(&shard, &potential, MAX_EDGES));
                }
            }
            link.take();
            Some("out of order".into())
        });
        return;
    }
    let (engine, heard) = events();
    let workers = ranks.workers(&identities, timeout);
    assert_eq!(identities.len(), ranks.size());
    match role.as_str() {
        "idle" => while_serving(engine, |engine| {
            // An answer, then a pause in which nobody may be busy.
            let mut viewer = Viewer::connect(engine, 1);
            viewer.upload(&cluster(5, 0));
            viewer.hear().frame();
            let before = cpu_seconds();
            std::thread::sleep(Duration::from_secs(2));
            println!("\n{ANSWER}0 {:.3}", cpu_seconds() - before);
        }),
        "interrupted" => while_serving(engine, |engine| {
            let mut viewer = Viewer::connect(engine, 1);
            viewer.upload(&cluster(30, 0));
            viewer.hear().frame();
            viewer.start_md(300.0);
            for _ in 0..5 {
                viewer.hear().frame();
            }
            println!("\n{ANSWER}0 shut down in the middle of a step");
        }),
        #[cfg(feature = "host-kernels")]
        cuda::FAILS => while_serving(engine, |engine| {
            println!("\n{ANSWER}0 {}", digest(&cuda::sessions(engine)));
        }),
        _ => while_serving(engine, |engine| {
            let traces = mixed_sessions(engine, FRAMES);
            println!("\n{ANSWER}0 {}", digest(&traces));
        }),
    }
    Engine::new(settings(), heard, workers, NoRecording).run();
}

/// Processor time of this process so far.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    // utime and stime, in hundredths of a second.
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

/// This program as an MPI job of so many ranks.
fn job(ranks: usize, role: &str) -> (Output, Vec<(usize, String)>) {
    let child = Command::new("mpirun")
        .args(["--allow-run-as-root", "--oversubscribe", "-n"])
        .arg(ranks.to_string())
        .arg(std::env::current_exe().unwrap())
        .args(["rank", "--exact", "--nocapture"])
        .env(ROLE, role)
        .env("RAYON_NUM_THREADS", "2")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("mpirun is installed");
    let id = child.id().to_string();
    let (done, finished) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(child.wait_with_output()));
    let started = Instant::now();
    let output = match finished.recv_timeout(Duration::from_secs(120)) {
        Ok(output) => output.unwrap(),
        Err(_) => {
            Command::new("kill").arg(id).status().unwrap();
            panic!("the ranks hang ({role}, {:?})", started.elapsed());
        }
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let answers = text
        .lines()
        .filter_map(|line| line.strip_prefix(ANSWER))
        .filter_map(|line| line.split_once(' '))
        .map(|(rank, answer)| (rank.parse().unwrap(), answer.to_owned()))
        .collect();
    (output, answers)
}

#[track_caller]
fn good_job(ranks: usize, role: &str) -> String {
    let (output, answers) = job(ranks, role);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(answers.len(), 1, "{output:?}");
    answers[0].1.clone()
}

fn with_threads(workers: usize) -> String {
    let potential = Arc::new(LennardJones::default());
    in_threads(workers, potential, |engine| mixed_sessions(engine, FRAMES))
}

/// The digest of sessions that worker threads compute.
fn in_threads(
    workers: usize,
    potential: Arc<dyn Potential>,
    sessions: impl FnOnce(&EngineHandle) -> Vec<Trace> + Send + 'static,
) -> String {
    let (engine, heard) = events();
    let devices = vec!["cpu".into(); workers];
    let body = thread_body(potential, MAX_EDGES);
    let workers = ThreadWorkers::start(devices, engine.waker(), body).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    while_serving(engine, move |engine| {
        sender.send(digest(&sessions(engine))).unwrap();
    });
    Engine::new(settings(), heard, workers, NoRecording).run();
    receiver.recv().unwrap()
}

#[test]
fn trajectories_are_bit_identical_in_threads_and_on_ranks() {
    let one_thread = with_threads(1);
    assert_eq!(one_thread.split(',').count(), 6);
    assert_eq!(one_thread, with_threads(2));
    assert_eq!(one_thread, good_job(2, "serve"));
    assert_eq!(one_thread, good_job(3, "serve"));
}

#[test]
fn a_rank_that_gives_up_is_replaced_by_the_others() {
    assert_eq!(with_threads(1), good_job(3, "gives-up"));
}

#[test]
fn ranks_leave_when_rank_0_shuts_down_in_the_middle_of_a_run() {
    good_job(3, "interrupted");
}

#[test]
fn ranks_without_work_leave_the_processors_alone() {
    let busy: f64 = good_job(2, "idle").parse().unwrap();
    assert!(
        busy < 0.5,
        "rank 0 used {busy} s of processor time in 2 idle seconds"
    );
}

#[test]
fn no_rank_starts_when_one_of_them_cannot_work() {
    let (output, answers) = job(3, "broken");
    assert!(!output.status.success());
    assert_eq!(
        answers.len(),
        3,
        "every rank says that it leaves: {output:?}"
    );
    for (rank, answer) in answers {
        if rank == 0 {
            assert!(answer.contains("ranks that cannot work"), "{answer}");
            assert!(answer.contains("1  cannot read the checkpoint"), "{answer}");
        } else {
            assert!(answer.contains("see the message of rank 0"), "{answer}");
        }
    }
}

#[test]
fn ranks_with_other_builds_or_checkpoints_are_refused_with_a_table() {
    for (role, reason) in [
        ("other-build", "different builds"),
        ("other-checkpoint", "different checkpoints"),
    ] {
        let (output, answers) = job(3, role);
        assert!(!output.status.success());
        assert_eq!(answers.len(), 3, "{output:?}");
        let table = &answers.iter().find(|(rank, _)| *rank == 0).unwrap().1;
        assert!(table.contains(reason), "{table}");
        assert_eq!(table.matches("  cpu").count(), 3, "{table}");
    }
}
