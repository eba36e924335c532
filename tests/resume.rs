//! Sessions that outlive their socket and their process: who is there, who waits, and that a
//! simulation that was interrupted gives the numbers of one that was not. Engines with real worker
//! threads, real recordings and real state files, in one process; `tests/faults.rs` kills processes.

#![cfg(feature = "hdf5")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::LennardJones;
use common::viewer::{Heard, Viewer, cluster};
use umaserve::comm::thread::ThreadWorkers;
use umaserve::engine::{
    Ending, Engine, EngineHandle, EngineSettings, Event, NoRecording, RecordSink, StateStore,
    Statistics, events,
};
use umaserve::recording::Recording;
use umaserve::resume::{ComputedBy, StateDirectory};
use umaserve::session::{
    Frame, Goodbye, Owner, Owners, Payload, RawParameters, Session, SessionSettings, SessionState,
    Start,
};
use umaserve::system::System;
use umaserve::worker::thread_body;

const MAX_EDGES: usize = 100_000;
const PATIENCE: Duration = Duration::from_secs(60);

fn session_settings(record: bool) -> SessionSettings {
    SessionSettings {
        frame_interval: Duration::ZERO,
        can_record: record,
        record_by_default: record,
        reconnect: Duration::from_secs(600),
        ..SessionSettings::default()
    }
}

/// A running engine; shuts down when dropped.
struct Running {
    engine: EngineHandle,
    statistics: Arc<Statistics>,
    thread: Option<JoinHandle<Ending>>,
}

impl Running {
    fn start(settings: SessionSettings) -> Running {
        Running::with(settings, NoRecording, umaserve::engine::NoStore, Vec::new())
    }

    fn with(
        settings: SessionSettings,
        recorder: impl RecordSink + Send + 'static,
        store: impl StateStore + Send + 'static,
        restored: Vec<Adopted>,
    ) -> Running {
        let (engine, heard) = events();
        let body = thread_body(Arc::new(LennardJones::default()), MAX_EDGES);
        let workers = ThreadWorkers::start(vec!["cpu".into(); 2], engine.waker(), body).unwrap();
        let settings = EngineSettings {
            session: Arc::new(settings),
            max_sessions: 4,
            edge_budget: 2_000,
            ..EngineSettings::default()
        };
        let mut loop_of_rank_0 = Engine::with_store(settings, heard, workers, recorder, store);
        loop_of_rank_0.adopt(restored);
        Running {
            engine,
            statistics: loop_of_rank_0.statistics(),
            thread: Some(std::thread::spawn(move || loop_of_rank_0.run())),
        }
    }

    fn end(mut self, event: Event) -> Ending {
        self.engine.tell(event);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.engine.tell(Event::ShutDown);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "waiting for: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A way of moving atoms: kind of simulation and number of the integrator in the protocol.
const METHODS: [(i32, i32, &str); 5] = [
    (0, 1, "velocity-verlet"),
    (0, 2, "langevin"),
    (1, 3, "bfgs"),
    (1, 4, "lbfgs"),
    (1, 5, "fire"),
];

fn start(viewer: &mut Viewer, (kind, integrator, label): (i32, i32, &str)) {
    viewer.say(Payload::Start(Start {
        simulation_type: kind,
        parameters: Some(RawParameters {
            temperature: 300.0,
            timestep_fs: 0.5,
            friction: 0.02,
            max_step: 0.05,
            integrator: Some(integrator),
            steps_per_frame: Some(2),
            record_label: Some(label.into()),
            ..RawParameters::default()
        }),
    }));
}

type Bits = Vec<u64>;

fn bits(frame: &Frame) -> Bits {
    [&frame.positions, &frame.velocities, &frame.forces]
        .into_iter()
        .flat_map(|rows| rows.as_flattened())
        .chain([&frame.energy])
        .map(|x| x.to_bits())
        .collect()
}

/// Hears frames until `frames` of the simulation are known, which are counted by what was seen.
fn watch(viewer: &mut Viewer, seen: &mut Vec<Bits>, frames: usize) {
    for _ in 0..frames {
        seen.push(bits(&viewer.hear().frame()));
    }
}

fn begin(engine: &EngineHandle, id: u64, system: &System) -> (Viewer, String) {
    let mut viewer = Viewer::connect(engine, id);
    viewer.attach("");
    let state = viewer.hear_state();
    assert!(!state.resumed && !state.running);
    viewer.upload(system);
    viewer.hear().frame();
    (viewer, state.key.digits())
}

fn come_back(engine: &EngineHandle, id: u64, key: &str, seen: u64) -> (Viewer, SessionState) {
    let mut viewer = Viewer::connect(engine, id);
    viewer.attach_after(key, seen);
    let state = viewer.hear_state();
    (viewer, state)
}

#[test]
fn a_viewer_that_comes_back_finds_its_simulation_and_its_counters() {
    let server = Running::start(session_settings(false));
    let system = cluster(9, 1);
    let (mut viewer, key) = begin(&server.engine, 1, &system);
    start(&mut viewer, METHODS[1]);
    let mut seen = Vec::new();
    watch(&mut viewer, &mut seen, 20);
    let last_seen = viewer.last_seen;
    let edits = viewer.seq;
    viewer.disconnect();
    wait_until("the session to be held", || {
        server.statistics.held_sessions.load(Ordering::Relaxed) == 1
    });
    // The step in hand lands, then nothing is computed.
    let jobs = || server.statistics.jobs.load(Ordering::Relaxed);
    wait_until("no more steps", || {
        let before = jobs();
        std::thread::sleep(Duration::from_millis(100));
        jobs() == before
    });

    let (mut viewer, state) = come_back(&server.engine, 2, &key, last_seen);
    assert!(state.resumed && state.running && state.evaluated);
    assert_eq!(state.key.digits(), key);
    assert_eq!(state.system.numbers, system.numbers);
    assert_eq!(state.simulation_type, 0);
    assert_eq!(state.parameters.temperature, 300.0);
    assert_eq!(state.parameters.steps_per_frame, Some(2));
    assert_eq!(viewer.last_seen, viewer.last_seen.max(last_seen + 1));
    assert!(state.frame.time_fs >= Some(20.0));
    assert!(edits > 0);
    for _ in 0..20 {
        viewer.hear().frame();
    }
    viewer.stop();
    assert_eq!(viewer.hear_notice().message, "SIMULATION_STOPPED");
}

/// Frames of a run by their number, from those that were seen.
#[test]
fn an_interruption_of_the_connection_changes_no_number() {
    let system = cluster(11, 2);
    let expected = {
        let server = Running::start(session_settings(false));
        let (mut viewer, _) = begin(&server.engine, 7, &system);
        start(&mut viewer, METHODS[1]);
        by_time(&mut viewer, 120)
    };
    let server = Running::start(session_settings(false));
    let (mut viewer, key) = begin(&server.engine, 7, &system);
    start(&mut viewer, METHODS[1]);
    let mut seen = by_time(&mut viewer, 30);
    for round in 0..4 {
        viewer.disconnect();
        let state;
        (viewer, state) = come_back(&server.engine, 8 + round, &key, 0);
        assert!(state.resumed && state.running);
        seen.extend(by_time(&mut viewer, 15));
    }
    let mut compared = 0;
    for (time, bits) in &seen {
        if let Some(expected) = expected.get(time) {
            assert_eq!(expected, bits, "at {} fs", f64::from_bits(*time));
            compared += 1;
        }
    }
    assert!(compared >= 80, "{compared}");
}

/// Frames by their time.
fn by_time(viewer: &mut Viewer, frames: usize) -> BTreeMap<u64, Bits> {
    let mut seen = BTreeMap::new();
    while seen.len() < frames {
        if let Heard::Frame(frame) = viewer.hear() {
            let time = frame.time_fs.unwrap_or(0.0).to_bits();
            seen.insert(time, bits(&frame));
        }
    }
    seen
}

#[test]
fn a_detached_simulation_goes_on_and_stops_waiting_when_it_is_stopped() {
    let server = Running::start(SessionSettings {
        reconnect: Duration::from_millis(1),
        ..session_settings(false)
    });
    let (mut viewer, key) = begin(&server.engine, 1, &cluster(6, 0));
    viewer.detach(true);
    start(&mut viewer, METHODS[1]);
    let before = viewer.hear().frame().time_fs.unwrap();
    viewer.disconnect();
    let jobs = server.statistics.jobs.load(Ordering::Relaxed);
    // Far longer than it waits for a viewer, and far more than the window of unacknowledged frames.
    wait_until("steps without a viewer", || {
        server.statistics.jobs.load(Ordering::Relaxed) > jobs + 500
    });
    assert_eq!(
        server.statistics.detached_sessions.load(Ordering::Relaxed),
        1
    );
    let (mut viewer, state) = come_back(&server.engine, 2, &key, 0);
    assert!(state.resumed && state.running && state.detached);
    assert!(state.frame.time_fs.unwrap() > before + 100.0);
    viewer.hear().frame();
    viewer.stop();
    viewer.hear_notice();
    viewer.disconnect();
    wait_until("the end of the session", || {
        server.statistics.sessions.load(Ordering::Relaxed) == 0
    });
    let (_, state) = come_back(&server.engine, 3, &key, 0);
    assert!(!state.resumed);
    assert_ne!(state.key.digits(), key);
}

#[test]
fn sessions_without_a_key_end_with_their_connection_and_cannot_be_detached() {
    let server = Running::start(session_settings(false));
    let mut viewer = Viewer::connect(&server.engine, 1);
    viewer.detach(true);
    let notice = viewer.hear().notice();
    assert!(notice.message.contains("identity"), "{}", notice.message);
    viewer.attach("");
    let notice = viewer.hear().notice();
    assert!(
        notice.message.contains("first message"),
        "{}",
        notice.message
    );
    viewer.disconnect();
    wait_until("the end of the session", || {
        server.statistics.sessions.load(Ordering::Relaxed) == 0
    });
}

#[test]
fn a_session_that_nobody_comes_back_to_ends() {
    let server = Running::start(SessionSettings {
        reconnect: Duration::from_millis(30),
        ..session_settings(false)
    });
    let (mut viewer, key) = begin(&server.engine, 1, &cluster(6, 0));
    start(&mut viewer, METHODS[1]);
    viewer.hear().frame();
    viewer.disconnect();
    wait_until("the end of the session", || {
        server.statistics.sessions.load(Ordering::Relaxed) == 0
    });
    let (_, state) = come_back(&server.engine, 2, &key, 0);
    assert!(!state.resumed && state.system.is_empty());
}

#[test]
fn a_second_connection_takes_the_session_over() {
    let server = Running::start(session_settings(false));
    let (mut first, key) = begin(&server.engine, 1, &cluster(6, 0));
    start(&mut first, METHODS[1]);
    first.hear().frame();
    let (mut second, state) = come_back(&server.engine, 2, &key, 0);
    assert!(state.resumed && state.running);
    loop {
        match first.hear() {
            Heard::Frame(_) => {}
            Heard::Goodbye(reason) => break assert_eq!(reason, Goodbye::TakenOver),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(first.hear(), Heard::End));
    // The late end of the first connection is nobody's business any more.
    first.disconnect();
    for _ in 0..20 {
        second.hear().frame();
    }
}

#[test]
fn a_session_that_is_ended_is_gone() {
    let server = Running::start(session_settings(false));
    let (mut viewer, key) = begin(&server.engine, 1, &cluster(6, 0));
    viewer.end_session();
    assert!(matches!(viewer.hear(), Heard::Goodbye(Goodbye::Ended)));
    let (_, state) = come_back(&server.engine, 2, &key, 0);
    assert!(!state.resumed);
}

#[test]
fn sessions_that_wait_make_room_for_new_ones() {
    let server = Running::start(session_settings(false)); // four places
    let mut keys = Vec::new();
    for id in 1..=4 {
        let (viewer, key) = begin(&server.engine, id, &cluster(4, 0));
        viewer.disconnect();
        keys.push(key);
        let held = id;
        wait_until("the session to be held", || {
            server.statistics.held_sessions.load(Ordering::Relaxed) == held
        });
    }
    // All places are taken, yet an earlier session is let in again, and so is a new one.
    let (_again, state) = come_back(&server.engine, 5, &keys[0], 0);
    assert!(state.resumed);
    let (_new, _) = begin(&server.engine, 6, &cluster(4, 1));
    let (_, state) = come_back(&server.engine, 7, &keys[1], 0);
    assert!(
        !state.resumed,
        "the one that had waited longest was given up"
    );
}

fn computed_by() -> ComputedBy {
    ComputedBy {
        checkpoint: "lj".into(),
        precision: "f64".into(),
        device: "cpu".into(),
    }
}

/// A session with its owner, as the engine takes it over.
type Adopted = (Session, Arc<Owner>);

/// What the engine restores from: sessions with their owners, and the files that were recorded.
fn restore(
    directory: &StateDirectory,
    settings: &SessionSettings,
    owners: &Owners,
) -> Vec<(Adopted, Option<PathBuf>)> {
    let (found, refused) = directory.read().unwrap();
    assert_eq!(refused, []);
    let settings = Arc::new(settings.clone());
    found
        .into_iter()
        .map(|saved| {
            assert_eq!(saved.computed_by, computed_by());
            let session = Session::restore(&saved.state, settings.clone(), Instant::now()).unwrap();
            ((session, owners.named(&saved.owner)), saved.recording)
        })
        .collect()
}

/// An engine that records into `place` and keeps states there, going on with what it finds.
fn recording_server(place: &Path, interval: Duration) -> Running {
    recording_server_for(place, interval, &Owners::new(1000, 1000))
}

fn recording_server_for(place: &Path, interval: Duration, owners: &Owners) -> Running {
    use umaserve::trajectory::{Provenance, Recorder, RecorderSettings, repair_directory};
    let settings = session_settings(true);
    let directory = StateDirectory::open(place).unwrap();
    let (_, failed) = repair_directory(place, &[]).unwrap();
    assert_eq!(failed, []);
    let recorder = Recorder::start(RecorderSettings {
        flush_interval: Duration::from_millis(10),
        ..RecorderSettings::new(place)
    })
    .unwrap();
    let mut recording = Recording::new(recorder, Provenance::default());
    let (sessions, files): (Vec<_>, Vec<_>) =
        restore(&directory, &settings, owners).into_iter().unzip();
    let ids = sessions.iter().map(|(session, _)| session.id());
    let files: Vec<_> = ids
        .zip(files)
        .filter_map(|(id, file)| Some((id, file?)))
        .collect();
    recording.continue_files(files.clone());
    let store = directory
        .store(interval, computed_by(), recording.flusher(), files)
        .unwrap();
    Running::with(settings, recording, store, sessions)
}

/// All frames of the one recording with this label.
fn recorded(place: &Path, label: &str) -> Vec<umaserve::trajectory::FrameData> {
    use umaserve::trajectory::Trajectory;
    let files: Vec<PathBuf> = std::fs::read_dir(place)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with(label)
        })
        .collect();
    assert_eq!(
        files,
        [place.join(format!("{label}.h5"))],
        "one file, without journal"
    );
    let trajectory = Trajectory::open(&files[0]).unwrap();
    assert!(!trajectory.is_unfinished());
    trajectory.frames(0..trajectory.len()).unwrap()
}

/// Runs every method, with `pauses` at which everything is drained and started again; the
/// recordings.
fn interrupted_runs(
    place: &Path,
    frames: usize,
    restarts: usize,
) -> Vec<Vec<umaserve::trajectory::FrameData>> {
    let interval = Duration::from_millis(5);
    let mut server = recording_server(place, interval);
    let mut viewers: Vec<(Viewer, String)> = Vec::new();
    for (k, method) in METHODS.into_iter().enumerate().take(4) {
        let system = cluster(5 + 3 * k, k);
        let (mut viewer, key) = begin(&server.engine, 1 + k as u64, &system);
        viewer.detach(k == 1);
        start(&mut viewer, method);
        viewers.push((viewer, key));
    }
    for round in 0..=restarts {
        if round > 0 {
            assert_eq!(server.end(Event::Drain), Ending::Drained);
            for (viewer, _) in &mut viewers {
                let told = viewer.hear_notice().message;
                assert!(told.starts_with("SERVER_DRAINING"), "{told}");
                assert!(matches!(viewer.hear(), Heard::Goodbye(Goodbye::Restarting)));
            }
            server = recording_server(place, interval);
            for (k, (viewer, key)) in viewers.iter_mut().enumerate() {
                let id = 100 + 10 * round as u64 + k as u64;
                let (again, state) = come_back(&server.engine, id, key, viewer.last_seen);
                assert!(state.resumed && state.running, "session {k}");
                assert_eq!(state.detached, k == 1);
                assert!(again.last_seen > viewer.last_seen);
                *viewer = again;
            }
        }
        for (viewer, _) in &mut viewers {
            for _ in 0..frames / (restarts + 1) + 1 {
                viewer.hear().frame();
            }
        }
    }
    for (viewer, _) in &mut viewers {
        viewer.stop();
        assert_eq!(viewer.hear_notice().message, "SIMULATION_STOPPED");
        viewer.end_session();
    }
    drop(server);
    METHODS[..4].iter().map(|m| recorded(place, m.2)).collect()
}

#[test]
fn drained_simulations_go_on_bit_for_bit_in_the_same_file() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let expected = interrupted_runs(one.path(), 150, 0);
    let interrupted = interrupted_runs(other.path(), 150, 3);
    for (k, (expected, interrupted)) in expected.iter().zip(&interrupted).enumerate() {
        let both = expected.len().min(interrupted.len());
        assert!(both >= 150, "method {k}: {both} frames");
        for (number, (a, b)) in expected.iter().zip(interrupted).enumerate() {
            assert_eq!(
                b.step,
                2 * (number as u64 + 1),
                "method {k}: a gap or a repetition"
            );
            assert_eq!(a, b, "method {k}, frame {number}");
        }
    }
    // States of ended sessions are gone.
    let left: Vec<_> = std::fs::read_dir(other.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains(".state"))
        .collect();
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn a_session_belongs_to_its_token_also_after_a_restart() {
    let place = tempfile::tempdir().unwrap();
    let interval = Duration::from_millis(5);
    let owners = Owners::new(20, 9);
    let held_by = |name: &str| owners.named(name).atoms[0].used();
    let come = |server: &Running, id, name: &str, key: &str| {
        let mut viewer = Viewer::with_owner(&server.engine, id, 64, owners.named(name));
        viewer.attach(key);
        let state = viewer.hear_state();
        (viewer, state)
    };
    let server = recording_server_for(place.path(), interval, &owners);
    let (mut ada, state) = come(&server, 1, "ada", "");
    let key = state.key.digits();
    ada.upload(&cluster(5, 0));
    ada.hear().frame();
    // Somebody else does not get it, whatever they know.
    let (bob, state) = come(&server, 2, "bob", &key);
    assert!(!state.resumed && state.system.is_empty());
    bob.disconnect();
    assert_eq!(server.end(Event::Drain), Ending::Drained);
    drop(ada);
    assert_eq!(held_by("ada"), 0);

    for round in 0..2 {
        let server = recording_server_for(place.path(), interval, &owners);
        assert_eq!(held_by("ada"), 5, "counted before its viewer is back");
        let id = 10 * (round + 1);
        let (bob, state) = come(&server, id, "bob", &key);
        assert!(!state.resumed && state.system.is_empty(), "round {round}");
        bob.disconnect();
        if round == 1 {
            let (_ada, state) = come(&server, id + 1, "ada", &key);
            assert!(state.resumed && state.system.len() == 5);
            assert_eq!(held_by("ada"), 5);
        }
        assert_eq!(server.end(Event::Drain), Ending::Drained);
    }
    // Where no tokens are asked for any more, its secret number is enough.
    let server = recording_server_for(place.path(), interval, &owners);
    let (_, state) = come(&server, 30, "", &key);
    assert!(state.resumed);
    assert_eq!((held_by("ada"), held_by("")), (0, 5));
}

/// A recording that is ahead of the state, as after a kill: a copy of an old state is put back.
fn recording_ahead_of_its_state(place: &Path) -> (String, usize) {
    let server = recording_server(place, Duration::from_millis(10));
    let (mut viewer, key) = begin(&server.engine, 1, &cluster(7, 3));
    start(&mut viewer, METHODS[1]);
    let state = place.join("session-1.state");
    for _ in 0..40 {
        viewer.hear().frame();
    }
    // A state in the middle of the run.
    let mut old = Vec::new();
    wait_until("a state of the run", || {
        viewer.hear().frame();
        old = std::fs::read(&state).unwrap_or_default();
        let Ok(saved) = umaserve::resume::decode(&old) else {
            return false;
        };
        let settings = Arc::new(session_settings(true));
        let session = Session::restore(&saved.state, settings, Instant::now()).unwrap();
        session.is_running() && session.steps() > 20
    });
    for _ in 0..300 {
        viewer.hear().frame();
    }
    assert_eq!(server.end(Event::Drain), Ending::Drained);
    let frames = recorded(place, "langevin").len();
    assert!(frames >= 340, "{frames}");
    std::fs::write(&state, old).unwrap();
    (key, frames)
}

fn without_gap(frames: &[umaserve::trajectory::FrameData]) {
    for (number, frame) in frames.iter().enumerate() {
        assert_eq!(frame.step, 2 * (number as u64 + 1), "a gap or a repetition");
    }
}

#[test]
fn frames_that_come_again_after_a_kill_are_not_recorded_twice() {
    let place = tempfile::tempdir().unwrap();
    let (key, frames) = recording_ahead_of_its_state(place.path());
    let before = recorded(place.path(), "langevin");
    let server = recording_server(place.path(), Duration::from_millis(10));
    let (mut viewer, state) = come_back(&server.engine, 50, &key, 0);
    assert!(state.resumed && state.running);
    let done = state.frame.time_fs.unwrap() as usize;
    assert!(done < frames - 100, "the state is old: {done} of {frames}");
    for _ in 0..frames - done + 200 {
        viewer.hear().frame();
    }
    viewer.stop();
    viewer.hear_notice();
    drop(server);
    let after = recorded(place.path(), "langevin");
    assert!(after.len() >= frames + 100, "{} {frames}", after.len());
    without_gap(&after);
    assert_eq!(after[..frames], before, "bit for bit");
}

#[test]
fn frames_that_nobody_does_again_stay() {
    let place = tempfile::tempdir().unwrap();
    let (_, frames) = recording_ahead_of_its_state(place.path());
    let before = recorded(place.path(), "langevin");
    // Nobody comes back; the server ends by and by, twice.
    for _ in 0..2 {
        drop(recording_server(place.path(), Duration::from_millis(10)));
    }
    assert_eq!(before.len(), frames);
    assert_eq!(recorded(place.path(), "langevin"), before);
}

#[test]
fn another_course_after_a_kill_replaces_the_frames_of_the_first() {
    let place = tempfile::tempdir().unwrap();
    let (key, frames) = recording_ahead_of_its_state(place.path());
    let server = recording_server(place.path(), Duration::from_millis(10));
    let (mut viewer, state) = come_back(&server.engine, 50, &key, 0);
    let done = state.frame.time_fs.unwrap() as usize;
    viewer.hear().frame();
    // Another temperature: the velocities are drawn anew.
    viewer.start_md(500.0);
    let mut last = 0.0;
    for _ in 0..60 {
        last = viewer.hear().frame().time_fs.unwrap();
    }
    viewer.stop();
    viewer.hear_notice();
    drop(server);
    let after = recorded(place.path(), "langevin");
    assert!(
        after.len() < frames,
        "{} of {frames}, {done} done",
        after.len()
    );
    assert!(after.last().unwrap().time_fs >= last);
    assert!(after.windows(2).all(|pair| pair[0].step < pair[1].step));
}

#[test]
fn a_state_of_another_limit_is_refused_in_words() {
    let server_settings = session_settings(false);
    let now = Instant::now();
    let id = umaserve::comm::SessionId(3);
    let mut session = Session::new(id, Arc::new(server_settings.clone()), now);
    let mut viewer = common::viewer::upload_message(&cluster(12, 0));
    viewer.seq = 1;
    session.receive(viewer, now);
    let bytes = session.save();
    let restored = |settings: SessionSettings| Session::restore(&bytes, Arc::new(settings), now);
    let same = restored(server_settings.clone()).unwrap();
    assert_eq!(same.state(), session.state());
    assert_eq!(same.save(), bytes);
    for (settings, reason) in [
        (
            SessionSettings {
                max_atoms: 5,
                ..server_settings.clone()
            },
            "--max-atoms",
        ),
        (
            SessionSettings {
                tasks: vec!["omat".into()],
                ..server_settings.clone()
            },
            "omol",
        ),
        (
            SessionSettings {
                max_atomic_number: 6,
                ..server_settings
            },
            "atomic number",
        ),
    ] {
        let error = restored(settings).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    for cut in 0..bytes.len() {
        let settings = Arc::new(session_settings(false));
        assert!(Session::restore(&bytes[..cut], settings, now).is_err());
    }
}
