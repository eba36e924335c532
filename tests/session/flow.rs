//! Counters, the window, pacing, recordings.

use std::time::Duration;

use umaserve::session::{Content, Edit, RawParameters, Record, SessionSettings};

use crate::bench::*;
use crate::worker::solve;

#[test]
fn the_window_closes_after_ten_and_is_announced_once() {
    let mut b = Bench::with_molecule_acked(0);
    b.send(start_md().count(4));
    let mut seqs = Vec::new();
    while let Some(job) = b.try_step() {
        b.finish(job);
        seqs.extend(b.take_now().iter().map(|m| m.seq));
    }
    assert_eq!(seqs, (2..=10).collect::<Vec<_>>(), "the idle frame was 1");
    let stalled = b.now - Duration::from_millis(20); // when the last frame was sent
    assert_eq!(
        b.session.wake_at(),
        Some(stalled + Duration::from_millis(250))
    );
    b.now = stalled;
    b.wait(Duration::from_millis(249));
    assert!(b.take_now().is_empty());
    b.wait(Duration::from_millis(1));
    let waiting = b.take_now_one();
    assert_eq!(notice(&waiting), ("WAITING_FOR_ACK", false));
    assert_eq!(
        (waiting.seq, waiting.sim_step),
        (10, Some(9)),
        "repeats the sequence number"
    );
    assert_eq!(waiting.user_interaction_count, Some(4));
    assert_eq!(b.session.wake_at(), None, "nothing more happens by itself");
    b.wait(Duration::from_secs(60));
    assert!(b.take_now().is_empty(), "once per episode");
    b.send(message().ack(0));
    assert!(b.try_step().is_none(), "an equal ack does nothing");
    b.send(message().ack(3));
    for seq in 11..=13 {
        b.step();
        assert_eq!(b.take_now_one().seq, seq);
    }
    b.send(message().ack(2));
    assert!(b.try_step().is_none(), "a lower ack does nothing");
    // Everything else works while stalled.
    b.send(edit(Edit {
        velocities: vectors(&[[0.0; 3]]),
        ..sparse()
    }));
    b.send(stop());
    assert_eq!(b.take_now_one().seq, 14);
}

#[test]
fn the_end_of_an_announced_stall_is_announced_if_the_server_says_so() {
    let settings = SessionSettings {
        ack_cleared: true,
        ..settings()
    };
    let mut b = Bench::with_settings(settings);
    b.auto_ack = false;
    b.send(upload(&water()));
    b.run_idle();
    b.send(start_md());
    while let Some(job) = b.try_step() {
        b.finish(job);
    }
    b.take_now();
    b.send(message().ack(1));
    b.step();
    assert_eq!(b.take_now_one().seq, 11, "a short stall is not mentioned");
    b.wait(Duration::from_millis(300));
    assert_eq!(notice(&b.take_now_one()).0, "WAITING_FOR_ACK");
    b.send(message().ack(11));
    let cleared = b.take_now_one();
    assert_eq!(
        (notice(&cleared), cleared.seq),
        (("ACK_CLEARED", false), 12)
    );
    b.step();
    assert_eq!(b.take_now_one().seq, 13);
}

#[test]
fn acks_beyond_the_sequence_number_are_taken_as_they_are() {
    for ack in [535, u64::MAX] {
        let mut b = Bench::with_molecule_acked(0);
        b.send(message().ack(ack));
        b.send(start_md());
        for _ in 0..100 {
            b.step();
        }
        assert_eq!(b.take_now().len(), 100);
    }
}

#[test]
fn idle_replies_are_not_gated_but_counted() {
    let mut b = Bench::with_molecule_acked(0);
    for k in 0..11 {
        b.send(edit(move_atom(0, [k as f64 / 10.0; 3])));
        b.run_idle();
    }
    assert_eq!(b.take_now().last().map(|m| m.seq), Some(12));
    b.send(start_md());
    assert!(b.try_step().is_none());
    b.wait(Duration::from_millis(250));
    let waiting = b.take_now_one();
    assert_eq!((notice(&waiting).0, waiting.seq), ("WAITING_FOR_ACK", 12));
    b.send(message().ack(3));
    b.step();
    frame(&b.take_now_one());
}

#[test]
fn counters_keep_their_maximum_and_sim_step_is_taken_only_while_nothing_runs() {
    let mut b = Bench::with_molecule();
    b.send(message().seq(220).count(9));
    b.send(message().seq(5).count(2));
    b.send(message().sim_step(100));
    b.send(message().sim_step(0));
    b.send(stop());
    let reply = b.take_one();
    assert_eq!(
        (reply.client_seq, reply.user_interaction_count),
        (220, Some(9))
    );
    assert_eq!(reply.sim_step, Some(100));
    b.send(start_md().sim_step(40));
    b.send(message().sim_step(7));
    b.step();
    assert_eq!(
        b.take_one().sim_step,
        Some(41),
        "START's own was taken, the later one not"
    );
}

#[test]
fn frames_are_paced_and_a_fast_step_waits_for_its_turn() {
    let ms = Duration::from_millis;
    let mut b = Bench::with_molecule();
    b.send(start_md());
    let begin = b.now;
    let mut costs = [1, 1, 40, 1, 1, 1].into_iter();
    let mut out: Option<(std::time::Instant, umaserve::comm::Job)> = None;
    let mut sent = Vec::new();
    while sent.len() < 6 {
        if let Some((_, job)) = out.take_if(|(done, _)| b.now >= *done) {
            b.finish(job);
        }
        if let Some(job) = b.session.next_job(b.now) {
            out = Some((b.now + ms(costs.next().unwrap_or(1)), job));
        }
        b.session.tick(b.now);
        for message in b.take() {
            frame(&message);
            sent.push((b.now - begin).as_millis());
        }
        b.now += ms(1);
    }
    // The third step takes 40 ms, the fourth begins at once and its frame is held back.
    assert_eq!(sent, [1, 16, 70, 85, 100, 115]);

    // STOP gives up a frame that is held back, like a step in flight.
    let mut b = Bench::with_molecule();
    b.send(start_md());
    b.step();
    b.take();
    let before = b.session.state().clone();
    b.now += ms(10);
    b.send(message());
    b.wait(ms(5));
    let job = b.session.next_job(b.now).expect("a step");
    b.finish(job);
    assert_eq!(b.take().len(), 1);
    b.wait(ms(20));
    let slow = b.session.next_job(b.now).expect("a step");
    b.now += ms(40);
    b.finish(slow);
    assert_eq!(b.take().len(), 1);
    let after = b.session.state().clone();
    let fast = b.session.next_job(b.now).expect("a step");
    b.finish(fast);
    assert!(b.take().is_empty(), "held back");
    assert_eq!(b.session.wake_at(), Some(b.now + ms(15)));
    b.send(stop());
    assert_eq!(notice(&b.take_one()).0, "SIMULATION_STOPPED");
    assert_eq!(b.session.state().system, after.system);
    assert_ne!(before.system, after.system);
}

#[test]
fn several_steps_per_frame_make_one_frame() {
    let mut b = Bench::with_molecule();
    let p = RawParameters {
        timestep_fs: 0.5,
        steps_per_frame: Some(4),
        frame_interval_ms: Some(0),
        ..Default::default()
    };
    b.send(start(0, Some(p)));
    for frames in 1..=2 {
        for _ in 0..3 {
            let job = b.session.next_job(b.now).expect("no pacing");
            b.finish(job);
            assert!(b.take().is_empty());
        }
        let job = b.session.next_job(b.now).expect("no pacing");
        b.finish(job);
        let reply = b.take_one();
        assert_eq!(reply.sim_step, Some(4 * frames));
        assert_eq!(frame(&reply).time_fs, Some(2.0 * frames as f64));
    }
}

#[test]
fn a_recording_tells_the_story_in_order() {
    let mut b = Bench::with_settings(SessionSettings {
        can_record: true,
        ..settings()
    });
    b.send(upload(&water()));
    b.run_idle();
    b.send(start_md());
    b.step();
    assert!(b.session.take_records().is_empty(), "not asked for");
    let p = RawParameters {
        timestep_fs: 0.5,
        record: Some(true),
        record_label: Some("water-1".into()),
        ..Default::default()
    };
    b.send(start(0, Some(p.clone())));
    b.step();
    b.send(edit(move_atom(1, [1.0; 3])));
    let job = b.next_step();
    b.send(edit(Edit {
        cell: Some(cube(20.0)),
        ..sparse()
    }));
    b.finish(job);
    b.step();
    b.send(stop());
    b.send(start(0, Some(p)));
    b.send(upload(&water()));
    b.run_idle();
    let told: Vec<String> = b.session.take_records().iter().map(tell).collect();
    assert_eq!(
        told,
        [
            "start water-1 segment 1 periodic false",
            "frame 2 at 1 fs",
            "edit after 2: positions of atoms 1",
            "frame 3 at 1.5 fs",
            "edit after 3: cell",
            "start water-1 segment 2 periodic true",
            "frame 4 at 2 fs",
            "stop",
            "start water-1 segment 2 periodic true",
            "stop",
        ]
    );
    // The recorded frame is the one that was sent, not a copy.
    b.send(start(0, None));
    b.take();
    b.step();
    let sent = b.take_one();
    let records = b.session.take_records();
    let Some(Record::Frame {
        frame: recorded, ..
    }) = records.last()
    else {
        panic!()
    };
    let Content::Frame(sent) = &sent.content else {
        panic!()
    };
    assert!(std::sync::Arc::ptr_eq(sent, recorded));
    b.session.close();
    // The end of a session is told to the recorder by others: no user has stopped the run.
    assert!(b.session.take_records().is_empty());
}

fn tell(record: &Record) -> String {
    match record {
        Record::Start {
            label,
            segment,
            system,
            ..
        } => format!(
            "start {} segment {segment} periodic {}",
            label.as_deref().unwrap_or("-"),
            system.cell.is_periodic()
        ),
        Record::Resume { step, .. } => format!("resume after {step}"),
        Record::Frame { step, time_fs, .. } => format!("frame {step} at {time_fs} fs"),
        Record::Edit { step, description } => format!("edit after {step}: {description}"),
        Record::Failure { step, reason } => format!("failure after {step}: {reason}"),
        Record::Stop { .. } => "stop".into(),
    }
}

#[test]
fn a_recording_says_why_a_run_ended() {
    let mut b = Bench::with_settings(SessionSettings {
        can_record: true,
        record_by_default: true,
        ..settings()
    });
    b.send(upload(&water()));
    b.run_idle();
    b.send(start_md());
    b.step();
    let mut outcome = solve(b.next_step());
    outcome.result = Err("out of memory".into());
    b.session.complete(outcome, b.now);
    let told: Vec<String> = b.session.take_records().iter().map(tell).collect();
    let last = &told[told.len() - 2..];
    assert_eq!(last, ["failure after 1: out of memory", "stop"]);
}

#[test]
fn the_session_says_whether_somebody_waits_and_when_it_needs_time() {
    let mut b = Bench::new();
    assert!(b.session.is_idle() && !b.session.is_interactive());
    assert_eq!(b.session.wake_at(), None);
    b.send(upload(&water()));
    assert!(b.session.is_interactive() && !b.session.is_idle());
    assert_eq!(
        b.session.wake_at(),
        Some(b.now),
        "an evaluation can go out now"
    );
    let job = b.session.next_job(b.now).expect("evaluation");
    assert_eq!(
        b.session.wake_at(),
        None,
        "nothing to do until it comes back"
    );
    b.finish(job);
    assert!(
        b.session.is_idle() && b.session.is_interactive(),
        "just edited"
    );
    b.wait(Duration::from_secs(2));
    assert!(!b.session.is_interactive());
    b.send(start_md());
    assert!(b.session.is_running() && !b.session.is_interactive());
    let job = b
        .session
        .next_job(b.now)
        .expect("the first step is not paced");
    let begun = b.now;
    b.now += Duration::from_millis(1);
    b.finish(job);
    assert_eq!(b.session.wake_at(), Some(begun + Duration::from_millis(15)));
    b.send(edit(move_atom(0, [0.1; 3])));
    assert!(b.session.is_interactive(), "dragging");
}
