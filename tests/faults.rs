//! Faults, with the real program and a real checkpoint: killed, stopped and hung ranks, broken
//! devices, lost directories, signals. Asserted on what viewers see and on what lies on disk.
#![cfg(feature = "hdf5")]

#[path = "faults/program.rs"]
mod program;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use program::*;
use umaserve::trajectory::{Trajectory, repair_directory};

/// Recordings and states in one directory, saved often, so that short runs see much.
fn keeping(place: &Path) -> Vec<String> {
    let place = place.display().to_string();
    [
        "--record",
        &place,
        "--resume",
        &place,
        "--checkpoint-seconds",
        "0.05",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn numbers(place: &Path, name: &str) -> Vec<(u64, Vec<u64>)> {
    let trajectory = Trajectory::open(&place.join(name)).unwrap();
    assert!(!trajectory.is_unfinished());
    let frames = trajectory.frames(0..trajectory.len()).unwrap();
    frames
        .into_iter()
        .map(|frame| {
            let vectors = [&frame.positions, &frame.velocities, &frame.forces];
            let flat = vectors.into_iter().flat_map(|rows| rows.as_flattened());
            let bits = flat.chain([&frame.energy_ev, &frame.time_fs]);
            (frame.step, bits.map(|x| x.to_bits()).collect())
        })
        .collect()
}

/// Every step once, in order, from 1 on.
#[track_caller]
fn without_gap(frames: &[(u64, Vec<u64>)]) {
    for (number, (step, _)) in frames.iter().enumerate() {
        assert_eq!(*step, number as u64 + 1, "a gap or a repetition");
    }
}

/// Whether a state is on disk that goes on running: one has been saved since the start of the run.
fn is_kept(place: &Path) -> bool {
    files(place, ".state").iter().any(|name| {
        let bytes = std::fs::read(place.join(name)).unwrap_or_default();
        umaserve::resume::decode(&bytes).is_ok_and(|saved| saved.recording.is_some())
    })
}

/// The recording of an undisturbed run of so many frames.
fn undisturbed(frames: usize) -> Vec<(u64, Vec<u64>)> {
    let place = tempfile::tempdir().unwrap();
    let mut program = Program::start(serve(&keeping(place.path())));
    let mut viewer = program.viewer();
    viewer.attach("");
    viewer.begin("run");
    viewer.hear_frames(frames);
    viewer.end();
    program.signal("INT");
    assert_eq!(program.wait(), Some(0));
    numbers(place.path(), "run.h5")
}

/// The common part of two runs must agree bit for bit.
#[track_caller]
fn same(one: &[(u64, Vec<u64>)], other: &[(u64, Vec<u64>)], at_least: usize) {
    let both = one.len().min(other.len());
    assert!(both >= at_least, "{} and {} frames", one.len(), other.len());
    for (a, b) in one.iter().zip(other) {
        assert!(a == b, "step {} differs", a.0);
    }
}

#[test]
fn a_drained_server_ends_with_75_and_goes_on_bit_for_bit() {
    let place = tempfile::tempdir().unwrap();
    let options = keeping(place.path());
    let mut key = String::new();
    let mut seen = 0;
    for signal in ["USR1", "TERM", "USR1"] {
        let mut program = Program::start(serve(&options));
        let mut viewer = program.viewer();
        let state = viewer.attach_after(&key, seen);
        if key.is_empty() {
            key = state.session_id;
            viewer.begin("run");
        } else {
            assert!(state.resumed && state.running, "{state:?}");
        }
        viewer.hear_frames(40);
        program.signal(signal);
        assert_eq!(viewer.hear_restart(), "SERVER_DRAINING");
        seen = viewer.last_seen;
        assert_eq!(program.wait(), Some(75));
    }
    let mut program = Program::start(serve(&options));
    let mut viewer = program.viewer();
    assert!(viewer.attach_after(&key, seen).resumed);
    viewer.hear_frames(40);
    viewer.end();
    program.signal("INT");
    assert_eq!(program.wait(), Some(0));
    let frames = numbers(place.path(), "run.h5");
    without_gap(&frames);
    same(&frames, &undisturbed(170), 160);
}

#[test]
fn without_a_place_for_states_a_drained_server_ends_with_0() {
    let mut program = Program::start(serve(&[]));
    let mut viewer = program.viewer();
    viewer.attach("");
    viewer.begin("run");
    viewer.hear_frames(2);
    program.signal("USR1");
    assert_eq!(program.wait(), Some(0));
}

#[test]
fn two_servers_do_not_resume_from_one_directory() {
    let place = tempfile::tempdir().unwrap();
    let _program = Program::start(serve(&keeping(place.path())));
    let output = serve(&keeping(place.path())).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("another running umaserve"), "{text}");
}

#[test]
fn a_damaged_state_is_refused_by_name_and_the_others_resume() {
    let place = tempfile::tempdir().unwrap();
    let options = keeping(place.path());
    let mut program = Program::start(serve(&options));
    let mut viewers: Vec<(Viewer, String)> = (0..3)
        .map(|k| {
            let mut viewer = program.viewer();
            let key = viewer.attach("").session_id;
            viewer.begin(&format!("run{k}"));
            viewer.hear_frames(5);
            (viewer, key)
        })
        .collect();
    program.signal("TERM");
    assert_eq!(program.wait(), Some(75));
    let mut states: Vec<_> = files(place.path(), ".state");
    assert_eq!(states.len(), 3);
    states.sort();
    let mut bytes = std::fs::read(place.path().join(&states[1])).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(place.path().join(&states[1]), bytes).unwrap();

    let program = Program::start(serve(&options));
    let log = program.log_with("checksum");
    assert!(log.contains("session not resumed"), "{log}");
    assert!(log.contains(&states[1]), "{log}");
    let mut resumed = 0;
    for (_, key) in viewers.drain(..) {
        let mut viewer = program.viewer();
        if viewer.attach(&key).resumed {
            viewer.hear_frames(5);
            resumed += 1;
        }
    }
    assert_eq!(resumed, 2);
    assert_eq!(
        files(place.path(), ".refused"),
        [format!("{}.refused", states[1])]
    );
}

#[test]
fn a_lost_record_directory_is_told_and_recording_resumes() {
    let parent = tempfile::tempdir().unwrap();
    let place = parent.path().join("runs");
    let mut program = Program::start(serve(&["--record".into(), place.display().to_string()]));
    let mut viewer = program.viewer();
    viewer.attach("");
    viewer.begin("run");
    viewer.hear_frames(5);
    std::fs::rename(&place, parent.path().join("moved")).unwrap();
    while std::fs::write(&place, "in the way").is_err() {
        // A flush in between has made the directory again.
        std::fs::remove_dir_all(&place).unwrap();
    }
    let notice = viewer.hear_notice("RECORDING_FAILED");
    assert!(notice.contains("runs"), "{notice}");
    // The simulation goes on.
    viewer.hear_frames(20);
    std::fs::remove_file(&place).unwrap();
    let notice = viewer.hear_notice("RECORDING_RESUMED");
    assert!(notice.contains("frames are missing"), "{notice}");
    viewer.hear_frames(5);
    viewer.end();
    // The frames of the new file may be in memory alone until then.
    program.signal("INT");
    assert_eq!(program.wait(), Some(0));
    let (_, failed) = repair_directory(&place, &[]).unwrap();
    assert_eq!(failed, []);
    let frames = numbers(&place, "run.h5");
    assert!(frames.len() >= 5);
    assert!(frames.windows(2).all(|pair| pair[0].0 < pair[1].0));
}

#[test]
fn a_full_disk_is_told_and_the_simulation_goes_on() {
    let place = tempfile::tempdir().unwrap();
    // No file may grow beyond this, which is an error as on a full disk.
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            "ulimit -f 200; trap '' XFSZ; exec \"$0\" \"$@\"",
            PROGRAM,
        ])
        .args(arguments(&keeping(place.path())));
    let mut program = Program::start(command);
    let mut viewer = program.viewer();
    viewer.attach("");
    viewer.begin("run");
    let notice = viewer.hear_notice("RECORDING_FAILED");
    assert!(notice.contains("run.h5"), "{notice}");
    viewer.hear_frames(50);
    program.signal("TERM");
    assert_eq!(program.wait(), Some(75));
    let (_, failed) = repair_directory(place.path(), &[]).unwrap();
    assert_eq!(failed, []);
    without_gap(&numbers(place.path(), "run.h5"));
}

/// Where the system lets this process mount one, a file system that really is full.
#[test]
fn a_disk_that_has_room_again_is_recorded_to_again() {
    let place = tempfile::tempdir().unwrap();
    let mounted = |command: &str, arguments: &[&str]| {
        let output = Command::new(command)
            .args(arguments)
            .arg(place.path())
            .output();
        output.is_ok_and(|output| output.status.success())
    };
    if !mounted("mount", &["-t", "tmpfs", "-o", "size=1m", "none"]) {
        return not_tested("no file system can be mounted here");
    }
    let ballast = place.path().join("ballast");
    std::fs::write(&ballast, vec![0; 750 << 10]).unwrap();
    let mut program = Program::start(serve(&keeping(place.path())));
    let mut viewer = program.viewer();
    viewer.attach("");
    viewer.begin("run");
    let notice = viewer.hear_notice("RECORDING_FAILED");
    assert!(notice.contains("run.h5"), "{notice}");
    viewer.hear_frames(20);
    std::fs::remove_file(&ballast).unwrap();
    viewer.hear_notice("RECORDING_RESUMED");
    viewer.hear_frames(5);
    viewer.end();
    program.signal("TERM");
    let code = program.wait();
    let frames = numbers(place.path(), "run.h5");
    // Servers of other tests that were started while the file was open have it open, too.
    assert!(mounted("umount", &["-l"]));
    assert_eq!(code, Some(75));
    assert!(frames.windows(2).all(|pair| pair[0].0 < pair[1].0));
}

#[test]
fn a_hung_evaluation_ends_the_server_with_70_and_nothing_is_lost() {
    let place = tempfile::tempdir().unwrap();
    let mut options = keeping(place.path());
    options.extend(["--shard-timeout".into(), "5".into()]);
    let mut command = serve(&options);
    command.env("UMASERVE_INJECT_FAULT", "hang:0:30");
    let mut program = Program::start(command);
    let mut viewer = program.viewer();
    let key = viewer.attach("").session_id;
    viewer.begin("run");
    assert_eq!(viewer.hear_restart(), "SERVER_DRAINING");
    assert_eq!(program.wait(), Some(70));
    let log = program.log();
    assert!(log.contains("has had a shard for more than 5s"), "{log}");
    let mut program = Program::start(serve(&keeping(place.path())));
    let mut viewer = program.viewer();
    assert!(viewer.attach(&key).resumed);
    viewer.hear_frames(40);
    viewer.end();
    program.signal("INT");
    assert_eq!(program.wait(), Some(0));
    let frames = numbers(place.path(), "run.h5");
    without_gap(&frames);
    same(&frames, &undisturbed(70), 60);
}

#[test]
fn a_device_error_in_one_process_costs_a_moment_and_no_step() {
    let place = tempfile::tempdir().unwrap();
    let mut command = serve(&keeping(place.path()));
    command.env("UMASERVE_INJECT_FAULT", "device-error:0:20");
    let mut program = Program::start(command);
    let mut viewer = program.viewer();
    viewer.attach("");
    viewer.begin("run");
    viewer.hear_frames(60);
    viewer.end();
    program.signal("INT");
    assert_eq!(program.wait(), Some(0));
    let log = program.log();
    assert!(log.contains("injected fault"), "{log}");
    assert!(log.contains("has a device again"), "{log}");
    let frames = numbers(place.path(), "run.h5");
    without_gap(&frames);
    same(&frames, &undisturbed(60), 60);
}

/// Kills of the test below: some, or `UMASERVE_TEST_KILLS` (100 for a release).
fn kills() -> usize {
    match std::env::var("UMASERVE_TEST_KILLS") {
        Ok(number) => number.parse().expect("UMASERVE_TEST_KILLS is a number"),
        Err(_) => 20,
    }
}

/// Kills the process at random moments; every time the next one goes on, and what a reader finds in
/// between is whole.
#[test]
fn kills_at_random_moments_lose_nothing_that_was_flushed() {
    let kills = kills();
    let place = tempfile::tempdir().unwrap();
    let kept = tempfile::tempdir().unwrap();
    let options = keeping(place.path());
    let mut key = String::new();
    let mut last_known: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    let mut random = 9_876_543_210_u64;
    let (mut grown, mut flushed) = (0, 0);
    // The recording after every kill, and how many frames are in it.
    let mut recordings: Vec<(usize, PathBuf)> = Vec::new();
    for round in 0..kills {
        let mut program = Program::start(serve(&options));
        let mut viewer = program.viewer();
        let state = viewer.attach(&key);
        if !state.resumed {
            // Nothing was on disk yet when it was killed the first time.
            assert!(last_known.is_empty(), "round {round}: the session is lost");
            key = state.session_id;
            viewer.begin("run");
        }
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        viewer.hear_frames(1);
        if round % 3 == 0 {
            // Lives that come further than the ones before; others may be too short for that.
            while program.metric("umaserve_recorded_frames") == 0.0 {
                viewer.hear_for(Duration::from_millis(20)); // requests are bounded, too
            }
        }
        while round == 0 && !is_kept(place.path()) {
            viewer.hear_for(Duration::from_millis(20));
        }
        viewer.hear_for(Duration::from_micros(random >> 46)); // up to 0.26 s
        // What the server itself calls safe: the frames that it has found, and its own.
        let safe = last_known.len() + program.metric("umaserve_recorded_frames") as usize;
        program.kill();
        // What the next server will find, looked at as it will.
        let copy = tempfile::tempdir().unwrap();
        for name in files(place.path(), "") {
            std::fs::copy(place.path().join(&name), copy.path().join(&name)).unwrap();
        }
        let (_, failed) = repair_directory(copy.path(), &[]).unwrap();
        assert_eq!(failed, [], "round {round}");
        if !copy.path().join("run.h5").exists() {
            assert!(
                last_known.is_empty() && safe == 0,
                "round {round}: the recording is gone, {safe} frames were safe"
            );
            continue;
        }
        let frames = numbers(copy.path(), "run.h5");
        without_gap(&frames);
        assert!(
            frames.len() >= safe,
            "round {round}: {safe} frames were safe, {} are left",
            frames.len()
        );
        flushed += usize::from(safe > last_known.len());
        grown += usize::from(frames.len() > last_known.len());
        let name = kept.path().join(format!("{round}.h5"));
        std::fs::rename(copy.path().join("run.h5"), &name).unwrap();
        recordings.push((frames.len(), name));
        let found: BTreeMap<u64, Vec<u64>> = frames.into_iter().collect();
        for (step, bits) in &last_known {
            let again = found.get(step);
            assert!(
                again == Some(bits),
                "round {round}: step {step} is lost or differs"
            );
        }
        last_known = found;
    }
    assert!(
        grown >= kills / 3 && flushed >= kills / 3,
        "the simulation came further in {grown} of {kills} lives, with frames flushed in {flushed}"
    );
    let mut program = Program::start(serve(&options));
    let mut viewer = program.viewer();
    assert!(viewer.attach(&key).resumed);
    viewer.hear_frames(5);
    viewer.end();
    program.signal("INT");
    assert_eq!(program.wait(), Some(0));
    let frames = numbers(place.path(), "run.h5");
    without_gap(&frames);
    assert!(frames.len() >= last_known.len());
    same(&frames, &undisturbed(frames.len()), last_known.len());
    recordings.push((frames.len(), place.path().join("run.h5")));
    let Some(python) = python() else {
        return not_tested("with MDAnalysis: UMASERVE_PYTHON is not set (`make test` does)");
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/open_recordings.py");
    let mut reader = Command::new(python);
    reader.arg(script);
    for (frames, file) in &recordings {
        reader.arg(frames.to_string()).arg(file);
    }
    let output = reader.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    println!(
        "{kills} kills: {} recordings opened with MDAnalysis, {} frames in the last",
        recordings.len(),
        frames.len()
    );
}

#[cfg(feature = "mpi")]
mod ranks {
    use super::*;

    /// A supervised job of three ranks: rank 0 and two workers.
    fn job(place: &Path, more: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(["supervise", "--"]);
        command.args(mpirun()).args(["-n", "3", PROGRAM]);
        command.args(arguments(&keeping(place)));
        command.args(["--rank-timeout", "10"]).args(more);
        command
    }

    /// Does something to a job in the middle of a run; the run goes on and nothing is lost.
    fn survives(what: &str, act: impl Fn(&Program, &[u32])) {
        let place = tempfile::tempdir().unwrap();
        let mut program = Program::start(job(place.path(), &[]));
        let mut viewer = program.viewer();
        let key = viewer.attach("").session_id;
        viewer.begin("run");
        viewer.hear_frames(60);
        while !is_kept(place.path()) {
            viewer.hear_for(Duration::from_millis(20));
        }
        let ranks = program.ranks();
        assert_eq!(ranks.len(), 3, "{what}");
        let begun = Instant::now();
        act(&program, &ranks);
        viewer.hear_end();
        program.wait_for_start();
        let mut viewer = program.viewer();
        let state = viewer.attach_after(&key, viewer.last_seen);
        assert!(state.resumed && state.running, "{what}: {state:?}");
        viewer.hear_frames(1);
        println!("{what}: frames again after {:?}", begun.elapsed());
        // Steps after the last saved state are done again, so these are more than needed.
        viewer.hear_frames(100);
        viewer.end();
        program.signal("USR1");
        assert_eq!(program.wait(), Some(75), "{what}");
        let frames = numbers(place.path(), "run.h5");
        without_gap(&frames);
        same(&frames, &undisturbed(100), 100);
    }

    #[test]
    fn a_killed_worker_rank() {
        survives("kill -9 of a worker rank", |_, ranks| {
            signal("KILL", ranks[2])
        });
    }

    #[test]
    fn a_killed_rank_0() {
        survives("kill -9 of rank 0", |_, ranks| signal("KILL", ranks[0]));
    }

    #[test]
    fn a_stopped_worker_rank() {
        survives("SIGSTOP of a worker rank", |_, ranks| {
            signal("STOP", ranks[1])
        });
    }

    #[test]
    fn a_stopped_rank_0() {
        survives("SIGSTOP of rank 0", |_, ranks| signal("STOP", ranks[0]));
    }

    #[test]
    fn a_device_error_in_one_rank_only_moves_its_jobs() {
        let place = tempfile::tempdir().unwrap();
        let mut command = job(place.path(), &[]);
        command.env("UMASERVE_INJECT_FAULT", "device-error:1:5");
        // All jobs of one session may go to the other worker, so there are several.
        let mut program = Program::start(command);
        let mut viewers: Vec<Viewer> = (0..4)
            .map(|k| {
                let mut viewer = program.viewer();
                viewer.attach("");
                viewer.begin(&format!("run{k}"));
                viewer
            })
            .collect();
        for _ in 0..6 {
            for viewer in &mut viewers {
                viewer.hear_frames(10);
            }
        }
        for viewer in &mut viewers {
            viewer.end();
        }
        // A new potential is made beside the run and may come after it.
        let deadline = Instant::now() + PATIENCE;
        while program.health()["workers"] != 2 {
            assert!(Instant::now() < deadline, "one worker is missing");
            std::thread::sleep(Duration::from_millis(50));
        }
        program.signal("USR1");
        assert_eq!(program.wait(), Some(75));
        let log = program.log();
        assert!(log.contains("injected fault"), "{log}");
        assert!(log.contains("has a device again"), "{log}");
        assert!(
            !log.contains("started again:"),
            "no rank was started again: {log}"
        );
        for k in 0..4 {
            let frames = numbers(place.path(), &format!("run{k}.h5"));
            without_gap(&frames);
            assert!(frames.len() >= 60);
        }
        // The first session has the number and so the seed of the undisturbed one.
        same(&numbers(place.path(), "run0.h5"), &undisturbed(60), 60);
    }

    #[test]
    fn a_drained_job_ends_with_75_and_the_next_one_resumes() {
        let place = tempfile::tempdir().unwrap();
        let mut key = String::new();
        for round in 0..2 {
            let mut program = Program::start(job(place.path(), &[]));
            let mut viewer = program.viewer();
            let state = viewer.attach(&key);
            assert_eq!(state.resumed, round == 1);
            if round == 0 {
                key = state.session_id;
                viewer.begin("run");
            }
            viewer.hear_frames(50);
            program.signal("USR1");
            assert_eq!(viewer.hear_restart(), "SERVER_DRAINING");
            assert_eq!(program.wait(), Some(75));
        }
        let frames = numbers(place.path(), "run.h5");
        without_gap(&frames);
        same(&frames, &undisturbed(100), 100);
    }
}

#[test]
fn the_supervisor_gives_up_where_starting_again_cannot_help() {
    let run = |arguments: &[&str]| {
        let output = Command::new(PROGRAM)
            .arg("supervise")
            .args(arguments)
            .output();
        let output = output.unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), text)
    };
    // A server that cannot start.
    let (code, text) = run(&["--", PROGRAM, "serve", "--model", "no-such.pt"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(!text.contains("started again"), "{text}");
    let (code, _) = run(&["--", PROGRAM, "serve", "--no-such-option"]);
    assert_eq!(code, Some(2));
    // One that fails whenever it is started.
    let (code, text) = run(&["--restarts", "2", "--", "sh", "-c", "exit 70"]);
    assert_eq!(code, Some(70), "{text}");
    assert_eq!(text.matches("is started again").count(), 2, "{text}");
    // Ends in good order are passed on, and the count of restarts reaches the child.
    assert_eq!(run(&["--", "sh", "-c", "exit 75"]).0, Some(75));
    let once = "test $UMASERVE_RESTARTS = 1 || kill -9 $$";
    let (code, text) = run(&["--", "sh", "-c", once]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("killed by signal 9"), "{text}");
    let (code, text) = run(&["--", "no-such-program"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("no-such-program"), "{text}");
}
