//! The engine with real sessions and worker threads, without sockets: what a viewer hears, who
//! gets hurt by what, and that the numbers do not depend on who computes them.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use common::LennardJones;
use common::viewer::{Heard, Viewer, cluster, mixed_sessions, trajectory};
use umaserve::comm::thread::{ThreadLink, ThreadWorkers};
use umaserve::comm::{Link, SessionId};
use umaserve::engine::{
    Ending, Engine, EngineHandle, EngineSettings, Event, NoRecording, RecordSink, Statistics,
    events,
};
use umaserve::potential::{Potential, evaluate};
use umaserve::session::{Payload, Record, SessionSettings, Ticket};
use umaserve::system::System;
use umaserve::worker::{self, thread_body};

const MAX_EDGES: usize = 100_000;

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

/// A running engine; shuts down when dropped.
struct Running {
    engine: EngineHandle,
    statistics: Arc<Statistics>,
    thread: Option<JoinHandle<Ending>>,
}

impl Running {
    fn start(
        settings: EngineSettings,
        workers: usize,
        body: impl Fn(usize, &mut ThreadLink) + Send + Sync + 'static,
        recorder: impl RecordSink + Send + 'static,
    ) -> Running {
        let (engine, events) = events();
        let devices = vec!["cpu".into(); workers];
        let workers = ThreadWorkers::start(devices, engine.waker(), body).unwrap();
        let loop_of_rank_0 = Engine::new(settings, events, workers, recorder);
        Running {
            engine,
            statistics: loop_of_rank_0.statistics(),
            thread: Some(std::thread::spawn(move || loop_of_rank_0.run())),
        }
    }

    fn with_workers(workers: usize) -> Running {
        let body = thread_body(Arc::new(LennardJones::default()), MAX_EDGES);
        Running::start(settings(), workers, body, NoRecording)
    }

    fn shut_down(mut self) {
        self.engine.tell(Event::ShutDown);
        self.thread.take().unwrap().join().unwrap();
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

#[test]
fn an_upload_is_answered_with_energy_and_forces() {
    let server = Running::with_workers(1);
    let mut viewer = Viewer::connect(&server.engine, 1);
    viewer.upload(&System::default());
    let notice = viewer.hear().notice();
    assert_eq!(notice.message, "IDLE_WAITING_FOR_GEOMETRY");
    let system = cluster(7, 0);
    viewer.upload(&system);
    let frame = viewer.hear().frame();
    let expected = evaluate(&LennardJones::default(), &[&system], MAX_EDGES);
    let expected = expected[0].as_ref().unwrap();
    assert_eq!(frame.positions, system.positions);
    assert_eq!(frame.energy, expected.energy);
    assert_eq!(frame.forces, expected.forces);
}

#[test]
fn trajectories_are_bit_identical_on_one_and_on_two_workers() {
    let frames = 40;
    let one = mixed_sessions(&Running::with_workers(1).engine, frames);
    let two = mixed_sessions(&Running::with_workers(2).engine, frames);
    assert_eq!(one.len(), two.len());
    for (a, b) in one.iter().zip(&two) {
        assert!(a.len() > frames);
        assert_eq!(a, b);
    }
    assert_ne!(one[0][one[0].len() - 1], one[0][0]);
}

#[test]
fn a_failing_session_does_not_touch_the_others() {
    let server = Running::with_workers(1);
    let system = cluster(10, 1);
    let alone = trajectory(&mut Viewer::connect(&server.engine, 5), &system, false, 30);
    // The same session number again, so the same seed, now beside one that fails all the time.
    let stop = Arc::new(AtomicBool::new(false));
    let (begun, begins) = std::sync::mpsc::channel();
    let trouble = {
        let (engine, stop) = (server.engine.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut viewer = Viewer::connect(&engine, 6);
            let mut bad = cluster(4, 0);
            bad.numbers[1] = 92;
            while !stop.load(Ordering::Relaxed) {
                viewer.upload(&bad);
                let notice = viewer.hear().notice();
                assert!(
                    notice.message.starts_with("COMPUTE_ERROR"),
                    "{}",
                    notice.message
                );
                assert!(notice.message.contains("92"), "{}", notice.message);
                let _ = begun.send(());
            }
        })
    };
    begins.recv().unwrap();
    server.engine.tell(Event::Disconnected {
        id: SessionId(5),
        place: Ticket::default(),
    });
    let beside = trajectory(&mut Viewer::connect(&server.engine, 5), &system, false, 30);
    stop.store(true, Ordering::Relaxed);
    trouble.join().unwrap();
    assert_eq!(alone, beside);
}

#[test]
fn the_jobs_of_a_lost_worker_are_done_by_another() {
    let potential = LennardJones::default();
    let undisturbed = mixed_sessions(&Running::with_workers(2).engine, 20);
    let shards_of_the_first = Mutex::new(0);
    let body = move |worker: usize, link: &mut ThreadLink| {
        while let Some(shard) = link.take() {
            if worker == 0 {
                let mut done = shards_of_the_first.lock().unwrap();
                *done += 1;
                assert!(*done < 5, "worker 0 breaks down");
            }
            link.answer(shard.id, worker::run(&shard, &potential, MAX_EDGES));
        }
    };
    let server = Running::start(settings(), 2, body, NoRecording);
    let disturbed = mixed_sessions(&server.engine, 20);
    assert_eq!(server.statistics.workers.load(Ordering::Relaxed), 1);
    assert_eq!(undisturbed, disturbed);
}

#[test]
fn without_workers_every_session_is_told_and_the_server_lives() {
    let body = |_: usize, link: &mut ThreadLink| {
        link.take();
    };
    let server = Running::start(settings(), 2, body, NoRecording);
    let mut viewer = Viewer::connect(&server.engine, 1);
    for _ in 0..4 {
        viewer.upload(&cluster(5, 0));
        let notice = viewer.hear().notice();
        assert!(
            notice.message.starts_with("COMPUTE_ERROR"),
            "{}",
            notice.message
        );
        assert!(notice.message.contains("worker"), "{}", notice.message);
    }
    let mut late = Viewer::connect(&server.engine, 2);
    late.upload(&System::default());
    assert_eq!(late.hear().notice().message, "IDLE_WAITING_FOR_GEOMETRY");
}

#[test]
fn a_burst_of_answers_reaches_a_viewer_with_a_short_queue() {
    let server = Running::with_workers(1);
    let mut viewer = Viewer::with_queue(&server.engine, 1, 4);
    for _ in 0..200 {
        viewer.say(Payload::Stop);
    }
    for _ in 0..200 {
        assert_eq!(viewer.hear().notice().message, "SIMULATION_STOPPED");
    }
    let trace = trajectory(&mut viewer, &cluster(4, 0), false, 20);
    assert_eq!(trace.len(), 21 * (3 * 3 * 4 + 1));
}

#[test]
fn a_viewer_that_does_not_read_is_let_go() {
    let settings = EngineSettings {
        max_backlog: 10,
        ..settings()
    };
    let body = thread_body(Arc::new(LennardJones::default()), MAX_EDGES);
    let server = Running::start(settings, 1, body, NoRecording);
    let mut deaf = Viewer::with_queue(&server.engine, 1, 4);
    let mut good = Viewer::connect(&server.engine, 2);
    for _ in 0..40 {
        deaf.say(Payload::Stop);
    }
    good.upload(&cluster(4, 0));
    good.hear().frame();
    let heard: Vec<Heard> = (0..5).map(|_| deaf.hear()).collect();
    assert!(matches!(heard[3], Heard::Notice(_)), "{heard:?}");
    assert!(matches!(heard[4], Heard::End), "{heard:?}");
    good.upload(&cluster(4, 1));
    good.hear().frame();
}

#[test]
fn a_viewer_that_piles_up_messages_is_let_go() {
    let hold = Arc::new(Mutex::new(()));
    let held = hold.lock().unwrap();
    let potential = LennardJones::default();
    let gate = hold.clone();
    let body = move |_: usize, link: &mut ThreadLink| {
        while let Some(shard) = link.take() {
            drop(gate.lock().unwrap());
            link.answer(shard.id, worker::run(&shard, &potential, MAX_EDGES));
        }
    };
    let settings = EngineSettings {
        max_waiting_messages: 20,
        ..settings()
    };
    let server = Running::start(settings, 1, body, NoRecording);
    let mut viewer = Viewer::connect(&server.engine, 1);
    viewer.upload(&cluster(4, 0));
    for _ in 0..30 {
        // Edits and STOPs in turn do not merge.
        viewer.upload(&cluster(4, 0));
        viewer.say(Payload::Stop);
    }
    assert!(matches!(viewer.hear(), Heard::End));
    drop(held);
}

#[test]
fn sessions_beyond_the_limit_are_refused() {
    let settings = EngineSettings {
        max_sessions: 2,
        ..settings()
    };
    let body = thread_body(Arc::new(LennardJones::default()), MAX_EDGES);
    let server = Running::start(settings, 1, body, NoRecording);
    let mut viewers: Vec<Viewer> = (1..=3)
        .map(|id| Viewer::connect(&server.engine, id))
        .collect();
    assert!(matches!(viewers[2].hear(), Heard::End));
    let mut second = viewers.remove(1);
    second.upload(&cluster(3, 0));
    second.hear().frame();
    second.disconnect();
    let mut fourth = Viewer::connect(&server.engine, 4);
    fourth.upload(&cluster(3, 0));
    fourth.hear().frame();
}

#[test]
fn a_disconnected_viewer_costs_nothing_more() {
    let server = Running::with_workers(1);
    let mut viewer = Viewer::connect(&server.engine, 1);
    viewer.upload(&cluster(6, 0));
    viewer.hear().frame();
    viewer.start_md(300.0);
    viewer.hear().frame();
    viewer.disconnect();
    // Another session's answers come after the last of the first one's.
    let mut other = Viewer::connect(&server.engine, 2);
    let mut jobs = 0;
    for round in 0..3 {
        other.upload(&cluster(3, 0));
        other.hear().frame();
        let now = server.statistics.jobs.load(Ordering::Relaxed);
        if round == 2 {
            assert_eq!(now, jobs + 1, "only the other session's job");
        }
        jobs = now;
    }
    assert_eq!(server.statistics.sessions.load(Ordering::Relaxed), 1);
}

/// Remembers what it was told.
#[derive(Clone, Default)]
struct Notebook(Arc<Mutex<Vec<String>>>);

impl RecordSink for Notebook {
    fn record(&mut self, session: SessionId, record: Record) {
        let word = match record {
            Record::Start { .. } => "start",
            Record::Resume { .. } => "resume",
            Record::Frame { .. } => "frame",
            Record::Edit { .. } => "edit",
            Record::Failure { .. } => "failure",
            Record::Stop { .. } => "stop",
        };
        self.0.lock().unwrap().push(format!("{} {word}", session.0));
    }

    fn close(&mut self, session: SessionId) {
        self.0.lock().unwrap().push(format!("{} close", session.0));
    }

    fn finish(&mut self) {
        self.0.lock().unwrap().push("finish".into());
    }
}

#[test]
fn records_reach_the_recorder_and_a_shutdown_closes_it() {
    let notebook = Notebook::default();
    let settings = EngineSettings {
        session: Arc::new(SessionSettings {
            frame_interval: Duration::ZERO,
            can_record: true,
            record_by_default: true,
            ..SessionSettings::default()
        }),
        ..settings()
    };
    let body = thread_body(Arc::new(LennardJones::default()), MAX_EDGES);
    let server = Running::start(settings, 1, body, notebook.clone());
    let mut viewer = Viewer::connect(&server.engine, 3);
    trajectory(&mut viewer, &cluster(5, 0), false, 6);
    viewer.start_md(300.0);
    viewer.hear().frame();
    // Shut down in the middle of a run.
    server.shut_down();
    while !matches!(viewer.hear(), Heard::End) {}

    let told = notebook.0.lock().unwrap().clone();
    let count = |word: &str| told.iter().filter(|line| line.as_str() == word).count();
    assert_eq!(told[0], "3 start", "{told:?}");
    assert!(count("3 frame") >= 7, "{told:?}");
    assert_eq!(count("3 start"), 2, "{told:?}");
    // The second run has not been stopped: it goes on after a restart.
    assert_eq!(count("3 stop"), 1, "{told:?}");
    assert_eq!(told[told.len() - 2..], ["3 close", "finish"], "{told:?}");
}

#[test]
fn a_potential_is_asked_from_worker_threads_only_through_the_trait() {
    // Compiles for any potential: the engine knows nothing of UMA.
    let potential: Arc<dyn Potential> = Arc::new(LennardJones::default());
    let server = Running::start(
        settings(),
        1,
        thread_body(potential, MAX_EDGES),
        NoRecording,
    );
    let mut viewer = Viewer::connect(&server.engine, 1);
    let trace = trajectory(&mut viewer, &cluster(8, 2), true, 5);
    assert_eq!(trace.len(), 6 * (3 * 3 * 8 + 1));
}
