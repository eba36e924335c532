//! `sbatch slurm/serve.sh` on a real Slurm, on one machine: started by the test, ended by process
//! id. Where Slurm is not installed, or network namespaces cannot be made, a test says so on standard
//! error and passes; with `UMASERVE_TEST_SLURM` in the environment it fails.

#![cfg(all(feature = "mpi", feature = "hdf5"))]

mod cluster;
mod viewer;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard};

use cluster::{Cluster, Job, read};
use serde_json::Value;
use umaserve::trajectory::Trajectory;
use viewer::{Frames, Viewer};

const PROGRAM: &str = env!("CARGO_BIN_EXE_umaserve");
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/nano-1p2.pt");
const SEED: u64 = 7;
/// Steps of the runs that are compared.
const LAST_STEP: u64 = 200;

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("slurm")
        .join(name)
}

/// One Slurm at a time: they share a machine.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|failed| failed.into_inner())
}

/// Says that a test cannot be done here, also where the output of tests is captured; fails where it
/// has to be done.
fn skipped(reason: &str) {
    use std::io::Write as _;
    assert!(
        std::env::var_os(cluster::REQUIRED).is_none(),
        "{} is set, but {reason}",
        cluster::REQUIRED
    );
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    // `eprintln` would be captured.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {reason}");
}

macro_rules! skip_if {
    ($reason:expr) => {
        if let Some(reason) = $reason {
            return skipped(&reason.to_string());
        }
    };
}

/// The connection file of a job, once it says that the server is ready and is none of `before`.
#[track_caller]
fn connection(job: &Job, directory: &Path, before: Option<&Value>) -> Value {
    job.wait_for("a ready server", || {
        let text = read(&directory.join("connection.json"));
        let file: Value = serde_json::from_str(&text).ok()?;
        let new = before.is_none_or(|before| before["pid"] != file["pid"]);
        (file["state"] == "ready" && new).then_some(file)
    })
}

/// The recording with this label in a directory.
fn recording(directory: &Path, label: &str) -> PathBuf {
    let mut found: Vec<PathBuf> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "h5"))
        .filter(|path| path.file_name().unwrap().to_string_lossy().contains(label))
        .collect();
    assert_eq!(found.len(), 1, "one recording of {label}: {found:?}");
    found.remove(0)
}

/// Steps of a recording, and its frames up to `last` as extended XYZ.
fn recorded(file: &Path, last: u64) -> (Vec<u64>, String) {
    let trajectory = Trajectory::open(file).unwrap();
    let frames = trajectory.frames(0..trajectory.len()).unwrap();
    let steps: Vec<u64> = frames.iter().map(|frame| frame.step).collect();
    let upto = frames.into_iter().filter(|frame| frame.step <= last);
    let frames: Vec<String> = upto.map(|frame| format!("{frame:?}")).collect();
    (steps, frames.join("\n"))
}

/// The same simulation in one process that nobody interrupts.
fn uninterrupted(directory: &Path) -> Frames {
    struct Server(Child);
    impl Drop for Server {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let file = directory.join("connection.json");
    let mut child = Command::new(PROGRAM)
        .args([
            "serve",
            "--bind",
            "127.0.0.1:0",
            "--threads",
            "1",
            "--model",
            MODEL,
            "--record",
        ])
        .arg(directory)
        .arg("--connection-file")
        .arg(&file)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut server = Server(child);
    output.read_line(&mut String::new()).unwrap();
    std::thread::spawn(move || output.read_to_string(&mut String::new()));
    let connection =
        cluster::wait_for("a ready server", std::time::Duration::from_secs(60), || {
            let file: Value = serde_json::from_str(&read(&file)).ok()?;
            (file["state"] == "ready").then_some(file)
        });
    let mut frames = Frames::new();
    let mut viewer = Viewer::attach(&connection, "", 0);
    viewer.start(SEED, "whole");
    viewer.collect(&mut frames, LAST_STEP);
    viewer.end(&mut frames);
    Command::new("kill")
        .arg(server.0.id().to_string())
        .status()
        .unwrap();
    server.0.wait().unwrap();
    frames
}

#[test]
fn a_job_is_queued_again_and_its_simulation_goes_on_bit_for_bit() {
    skip_if!(cluster::missing());
    let _turn = turn();
    let slurm = Cluster::here(0);
    let directory = slurm.path("served");
    let options = ["--ntasks-per-node=2", "--cpus-per-task=1", "--time=10"];
    let arguments = [
        "--program",
        PROGRAM,
        "--dir",
        directory.to_str().unwrap(),
        "--model",
        MODEL,
    ];
    let job = slurm.submit(&options, &script("serve.sh"), &arguments);
    let first = connection(&job, &directory, None);
    assert_eq!(first["job_id"], job.id.as_str());
    assert_eq!(first["ranks"].as_array().map(Vec::len), Some(3), "{first}");
    let output = job.wait_for("its greeting", || {
        let output = job.output();
        output.contains("umaserve connect").then_some(output)
    });
    assert!(output.contains("started by srun"), "{output}");
    // Everybody can read what a job prints.
    let token = first["token"].as_str().unwrap();
    assert!(token.len() >= 16 && !output.contains(token), "{output}");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &directory
            .join("connection.json")
            .metadata()
            .unwrap()
            .permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);

    let mut frames = Frames::new();
    let mut viewer = Viewer::attach(&first, "", 0);
    assert!(!viewer.state.resumed);
    let session = viewer.state.session_id.clone();
    viewer.start(SEED, "parts");
    viewer.collect(&mut frames, 50);

    // As two minutes before the time limit.
    job.cancel(&["--batch", "--signal=USR1"]);
    let notices = viewer.collect_to_the_end(&mut frames);
    assert!(
        notices
            .iter()
            .any(|notice| notice.starts_with("SERVER_DRAINING")),
        "{notices:?}"
    );
    job.wait_for("the second start", || {
        (job.field("Restarts") == "1" && job.field("JobState") == "RUNNING").then_some(())
    });
    let second = connection(&job, &directory, Some(&first));
    let mut viewer = Viewer::attach(&second, &session, viewer.last_heard());
    assert!(viewer.state.resumed && viewer.state.running);
    let seen = *frames.keys().last().unwrap();
    viewer.collect(&mut frames, seen + 50);

    // A rank dies; the others start again inside the job.
    let worker = worker_of(&directory);
    Command::new("kill")
        .args(["-KILL", &worker.to_string()])
        .status()
        .unwrap();
    viewer.collect_to_the_end(&mut frames);
    let third = connection(&job, &directory, Some(&second));
    assert_eq!(
        job.field("Restarts"),
        "1",
        "not queued again: {}",
        job.output()
    );
    let mut viewer = Viewer::attach(&third, &session, viewer.last_heard());
    assert!(
        viewer.state.resumed && viewer.state.running,
        "{}",
        job.output()
    );
    viewer.collect(&mut frames, LAST_STEP);
    viewer.end(&mut frames);

    // A cancelled job does not come back.
    job.cancel(&[]);
    job.wait_for_state("CANCELLED");

    let alone = tempfile::TempDir::new().unwrap();
    let whole = uninterrupted(alone.path());
    for step in 1..=LAST_STEP {
        let (parts, whole) = (frames.get(&step), whole.get(&step));
        assert!(whole.is_some(), "step {step} of the uninterrupted run");
        // Frames on their way when a server died are in the recording only.
        assert!(parts.is_none() || parts == whole, "step {step} differs");
    }
    let (steps, parts) = recorded(&recording(&directory, "parts"), LAST_STEP);
    let (_, whole) = recorded(&recording(alone.path(), "whole"), LAST_STEP);
    let gapless: Vec<u64> = (steps[0]..).take(steps.len()).collect();
    assert_eq!(steps, gapless, "no gap and no frame twice");
    assert!(*steps.last().unwrap() >= LAST_STEP);
    assert_eq!(parts, whole, "the recordings are the same bit for bit");
}

/// Process id of a worker rank: a process that serves this directory and is told to be rank 1.
fn worker_of(directory: &Path) -> u32 {
    let rank = |pid: u32| -> Option<String> {
        let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).ok();
        let command = String::from_utf8_lossy(&read("cmdline")?).into_owned();
        if !command.contains("--resume") || !command.contains(directory.to_str()?) {
            return None;
        }
        let environment = String::from_utf8_lossy(&read("environ")?).into_owned();
        let rank = environment
            .split('\0')
            .find_map(|e| e.strip_prefix("PMIX_RANK="));
        rank.map(str::to_owned)
    };
    let processes = std::fs::read_dir("/proc").unwrap();
    processes
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .find(|&pid| rank(pid).as_deref() == Some("1"))
        .expect("a worker rank")
}

#[test]
fn ranks_on_two_nodes_simulate_together() {
    skip_if!(cluster::missing());
    skip_if!(cluster::no_namespaces());
    let _turn = turn();
    let slurm = Cluster::two_nodes();
    for launcher in ["srun", "mpirun"] {
        let directory = slurm.path(launcher);
        let arguments = [
            "--program",
            PROGRAM,
            "--launcher",
            launcher,
            "--dir",
            directory.to_str().unwrap(),
            "--bind-interface",
            "eth0",
            "--model",
            MODEL,
        ];
        let options = [
            "--nodes=2",
            "--ntasks-per-node=1",
            "--cpus-per-task=1",
            "--time=10",
            // Rank 0 says to whom it sends work.
            "--export=ALL,RUST_LOG=info,WS_LOG_CALLS=1",
        ];
        let job = slurm.submit(&options, &script("serve.sh"), &arguments);
        let connection = connection(&job, &directory, None);
        let hosts: Vec<&str> = connection["ranks"]
            .as_array()
            .unwrap()
            .iter()
            .map(|rank| rank["host"].as_str().unwrap())
            .collect();
        assert_eq!(hosts, ["node0", "node0", "node1"], "{connection}");
        // Several at once, so that both workers have to do with them.
        let mut viewers: Vec<Viewer> = (0..4).map(|_| Viewer::attach(&connection, "", 0)).collect();
        for viewer in &mut viewers {
            viewer.start(SEED, "ethanol");
        }
        let mut all: Vec<Frames> = vec![Frames::new(); viewers.len()];
        for last in (10..=40).step_by(10) {
            for (viewer, frames) in viewers.iter_mut().zip(&mut all) {
                viewer.collect(frames, last);
            }
        }
        for frames in &all {
            for step in 1..=40 {
                assert!(frames.contains_key(&step), "step {step} is missing");
                assert_eq!(
                    frames[&step], all[0][&step],
                    "the nodes differ at step {step}"
                );
            }
        }
        // The launcher may still have lines on their way.
        job.wait_for("shards at both workers", || {
            let output = job.output();
            let sent = |worker: &str| {
                let lines = output.lines().filter(|line| line.contains("shard sent"));
                lines.filter(|line| line.contains(worker)).count()
            };
            (sent("worker=0") > 10 && sent("worker=1") > 10).then_some(())
        });
        job.cancel(&[]);
        job.wait_for_state("CANCELLED");
    }
}

/// What `serve.sh` would start, and where every rank would be.
fn dry_run(slurm: &Cluster, options: &[&str], arguments: &[&str]) -> String {
    let all = [&["--program", "/bin/true", "--dry-run"], arguments].concat();
    let job = slurm.submit(options, &script("serve.sh"), &all);
    job.wait_for("the end of a dry run", || {
        (job.field("JobState") == "COMPLETED").then_some(())
    });
    job.output()
}

#[test]
fn every_gpu_has_a_rank_and_slurm_says_how_many_cpus() {
    skip_if!(cluster::missing());
    let _turn = turn();
    let slurm = Cluster::here(2);
    let text = dry_run(&slurm, &["--gpus-per-node=2", "--cpus-per-task=2"], &[]);
    assert!(
        text.contains("2 worker(s) on each node, 3 ranks in all, 2 CPUs each"),
        "{text}"
    );
    assert!(
        text.contains("--ntasks=3") && text.contains("--cpus-per-task=2"),
        "{text}"
    );
    assert!(text.contains("--gpu-bind=none"), "{text}");
    // No GPUs asked for: none used.
    let text = dry_run(&slurm, &["--ntasks-per-node=3"], &[]);
    assert!(
        text.contains("3 worker(s) on each node, 4 ranks in all"),
        "{text}"
    );
    assert!(!text.contains("gpu-bind"), "{text}");
    let text = dry_run(&slurm, &[], &["--workers", "0"]);
    assert!(text.contains("started by none"), "{text}");
}

#[test]
fn a_server_that_cannot_start_is_not_started_again() {
    skip_if!(cluster::missing());
    let _turn = turn();
    let slurm = Cluster::here(0);
    for (arguments, reason) in [
        (["--model", "no/such.pt", "--max-atoms", "9"], "no/such.pt"),
        (["--model", MODEL, "--max-atoms", "0"], "--max-atoms"),
    ] {
        let all = [&["--program", PROGRAM][..], &arguments].concat();
        let job = slurm.submit(&["--ntasks-per-node=1"], &script("serve.sh"), &all);
        job.wait_for_state("FAILED");
        let text = job.output();
        assert!(text.contains(reason), "{text}");
        assert!(!text.contains("in a row"), "{text}");
    }
}

#[test]
fn serve_sh_explains_itself_and_refuses_what_it_does_not_know() {
    let run = |arguments: &[&str]| {
        let directory = tempfile::TempDir::new().unwrap();
        let output = Command::new(script("serve.sh"))
            .args(arguments)
            .current_dir(directory.path())
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    let (code, text) = run(&["--help"]);
    assert_eq!(code, Some(0));
    for word in [
        "sbatch",
        "--workers",
        "UMASERVE_DIR",
        "--signal=B:USR1@120",
        "scancel",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
    for (arguments, reason) in [
        (
            &["--workers", "many"][..],
            "--workers many: not a number from 0 to 9999",
        ),
        (&["--restarts=-1"], "--restarts -1: not a number"),
        (&["--dir"], "--dir needs a value"),
        (&["--launcher", "ssh"], "may be auto, srun, mpirun or none"),
        (
            &["--program", "/no/such"],
            "--program /no/such: is not a program",
        ),
        (&["--job-config", "/no/such"], "cannot be read"),
        (
            &["--launcher", "srun", "--program", "/bin/true"],
            "not a Slurm job",
        ),
    ] {
        let (code, text) = run(arguments);
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains(reason), "{text}");
    }
}

#[test]
fn the_open_ondemand_app_becomes_what_the_portal_expects() {
    let ruby = Command::new("ruby").arg("--version").output();
    skip_if!(
        ruby.is_err()
            .then_some("ruby is not installed (tools/setup.sh tests does)")
    );
    let app = script("ondemand");
    let render = |gpus: &str| -> Value {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/slurm/ondemand.rb");
        let output = Command::new("ruby")
            .arg(tests)
            .arg(&app)
            .arg(gpus)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let app = render("2");
    assert_eq!(app["manifest"]["role"], "batch_connect");
    assert_eq!(app["submit"]["batch_connect"]["template"], "basic");
    let native = |app: &Value| app["submit"]["script"]["native"].to_string();
    assert!(native(&app).contains("--gpus-per-node=2"), "{app}");
    assert!(native(&app).contains("--ntasks-per-node=2"), "{app}");
    assert!(native(&app).contains("--cpus-per-task=4"), "{app}");
    let cpus_only = render("0");
    assert!(!native(&cpus_only).contains("gpus"), "{cpus_only}");
    assert!(
        native(&cpus_only).contains("--ntasks-per-node=3"),
        "{cpus_only}"
    );
    let view = app["view"].as_str().unwrap();
    assert!(
        view.contains("href=\"/node/node7/4711/#token=secret\""),
        "{view}"
    );
    assert!(view.contains("&lt;b&gt;"), "{view}");

    // The scripts as the portal's wrapper runs them, with a serve.sh that shows what it is told.
    let directory = tempfile::TempDir::new().unwrap();
    let at = |name: &str| directory.path().join(name);
    let write = |name: &str, text: &str| std::fs::write(at(name), text).unwrap();
    for name in ["before", "script", "after"] {
        write(&format!("{name}.sh"), app[name].as_str().unwrap());
    }
    std::fs::create_dir_all(at("home/slurm")).unwrap();
    write(
        "home/slurm/serve.sh",
        "#!/bin/sh\nprintf '%s\\n' \"$UMASERVE_TOKEN\" \"$@\"\n",
    );
    let wrapper = "set -eu\nhost=node7\n\
         find_port() { echo 4711; }\ncreate_passwd() { echo secret; }\n\
         wait_until_port_used() { [ \"$1\" = node7:4711 ]; }\nclean_up() { exit \"$1\"; }\n\
         . ./before.sh\nbash ./script.sh\n. ./after.sh\n";
    Command::new("chmod")
        .arg("+x")
        .arg(at("home/slurm/serve.sh"))
        .status()
        .unwrap();
    let output = Command::new("bash")
        .args(["-c", wrapper])
        .current_dir(directory.path())
        .env("HOME", directory.path())
        .env("UMASERVE_HOME", at("home"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let told = String::from_utf8(output.stdout).unwrap();
    let told: Vec<&str> = told.lines().collect();
    assert_eq!(told[0], "secret");
    assert_eq!(told[1..3], ["--dir", at("my runs/it's").to_str().unwrap()]);
    assert!(at("my runs/it's").is_dir());
    assert!(
        told.windows(2).any(|pair| pair == ["--bind", "node7:4711"]),
        "{told:?}"
    );
    let prefix = ["--path-prefix", "/node/node7/4711"];
    assert!(told.windows(2).any(|pair| pair == prefix), "{told:?}");
    let model = ["--model", "/models/uma $(touch /tmp/no).pt"];
    assert!(told.windows(2).any(|pair| pair == model), "{told:?}");
}

#[test]
fn scripts_pass_shellcheck() {
    let there = Command::new("shellcheck").arg("--version").output();
    skip_if!(
        there
            .is_err()
            .then_some("shellcheck is not installed (tools/setup.sh tests does)")
    );
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut scripts = Vec::new();
    for directory in ["slurm", "tools", "fuzz", ".ci"] {
        for entry in std::fs::read_dir(root.join(directory)).unwrap() {
            let path = entry.unwrap().path();
            let bash = read(&path).starts_with("#!/usr/bin/env bash");
            if path.is_file() && bash {
                scripts.push(path);
            }
        }
    }
    assert!(scripts.len() >= 5, "{scripts:?}");
    let output = Command::new("shellcheck").args(&scripts).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[test]
fn bench_sh_knows_the_benches() {
    let output = Command::new(script("bench.sh")).arg("--list").output();
    let listed = String::from_utf8(output.unwrap().stdout).unwrap();
    let benches = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches");
    let mut names: Vec<String> = std::fs::read_dir(benches)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert_eq!(listed.lines().collect::<Vec<_>>(), names);
    let refused = Command::new(script("bench.sh"))
        .arg("nosuch")
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("there are "));
}
