//! Running simulations: frames, STOP, edits in flight, failures.

use umaserve::dynamics;
use umaserve::session::{Delta, Edit, Payload, RawParameters, Start};

use crate::bench::*;
use crate::worker::*;

#[test]
fn md_frames_carry_everything_and_count_steps() {
    let mut b = Bench::with_molecule();
    b.send(start_md().count(6));
    for k in 1..=3 {
        b.step();
        let reply = b.take_one();
        assert_eq!((reply.seq, reply.sim_step), (1 + k, Some(k)));
        assert_eq!(reply.user_interaction_count, Some(6));
        let frame = frame(&reply);
        assert_eq!(frame.energy, harmonic_energy(&frame.positions));
        assert_eq!(frame.forces[2], harmonic_force(frame.positions[2]));
        let kinetic = dynamics::kinetic_energy(&[8, 1, 1], &frame.velocities);
        assert_eq!(frame.kinetic, Some(kinetic));
        assert_eq!(frame.temperature, Some(dynamics::temperature(kinetic, 9)));
        assert_eq!(frame.time_fs, Some(k as f64 * 0.5));
        let largest = frame
            .forces
            .iter()
            .map(|f| f.iter().map(|x| x * x).sum::<f64>().sqrt());
        assert_eq!(frame.fmax, largest.fold(0.0, f64::max));
        assert!(frame.kinetic > Some(0.0));
    }
}

#[test]
fn a_step_uses_the_forces_of_the_last_frame_until_something_changes() {
    let mut b = Bench::with_molecule();
    let known = |b: &Bench| b.session.state().evaluation.is_some();
    assert!(known(&b));
    b.send(start_md());
    assert!(!known(&b), "START");
    b.step();
    assert!(known(&b));
    b.send(edit(move_atom(0, [0.3; 3])));
    assert!(!known(&b), "edit");
    b.step();
    assert!(known(&b));
    b.send(stop());
    assert!(!known(&b), "STOP");
    b.send(upload(&water()));
    assert!(!known(&b), "snapshot");
}

#[test]
fn relax_frames_echo_velocities_and_report_no_temperature() {
    let mut b = Bench::with_molecule();
    b.send(edit(Edit {
        velocities: vectors(&[[0.1; 3]; 3]),
        ..sparse()
    }));
    b.run_idle();
    b.take();
    b.send(start(
        1,
        Some(RawParameters {
            max_step: 0.2,
            ..Default::default()
        }),
    ));
    let mut energies = Vec::new();
    for _ in 0..5 {
        b.step();
        let reply = b.take_one();
        let frame = frame(&reply);
        assert_eq!(frame.velocities, vec![[0.1; 3]; 3]);
        assert_eq!((frame.kinetic, frame.temperature), (None, None));
        energies.push(frame.energy);
    }
    assert!(energies.is_sorted_by(|a, b| a > b), "{energies:?}");
    assert_eq!(b.session.state().step, 5);
    assert_ne!(b.session.state().history, dynamics::History::None);
    b.send(edit(move_atom(0, [0.3; 3])));
    assert_eq!(
        b.session.state().history,
        dynamics::History::None,
        "edit forgets the Hessian"
    );
    b.step();
    b.send(start(1, None));
    assert_eq!(
        b.session.state().history,
        dynamics::History::None,
        "START forgets the Hessian"
    );
}

#[test]
fn stop_discards_the_step_in_flight_and_keeps_the_rest() {
    let mut b = Bench::with_molecule();
    b.send(start_md());
    b.step();
    b.take();
    let before = b.session.state().clone();
    let job = b.next_step();
    b.send(stop());
    let reply = b.take_one();
    assert_eq!(notice(&reply), ("SIMULATION_STOPPED", true));
    assert_eq!(reply.sim_step, Some(1));
    b.send(edit(move_atom(0, [3.0; 3])));
    assert!(
        b.session.next_job(b.now).is_none(),
        "the cancelled job is still out"
    );
    b.finish(job);
    assert!(b.take().is_empty());
    b.run_idle();
    let reply = b.take_one();
    assert_eq!(reply.sim_step, Some(1));
    assert_eq!(frame(&reply).positions[0], [3.0; 3]);
    assert_eq!(frame(&reply).positions[1..], before.system.positions[1..]);
    assert_eq!(b.session.state().velocities, before.velocities);
}

#[test]
fn outcomes_of_another_serial_are_dropped() {
    let mut b = Bench::with_molecule();
    b.send(start_md());
    let job = b.next_step();
    let mut stale = solve(job.clone());
    stale.serial -= 1;
    b.session.complete(stale.clone(), b.now);
    stale.serial += 2;
    b.session.complete(stale, b.now);
    assert!(b.take().is_empty());
    assert!(b.session.next_job(b.now).is_none());
    let twice = solve(job);
    b.session.complete(twice.clone(), b.now);
    b.session.complete(twice, b.now);
    assert_eq!(b.take().len(), 1);
}

#[test]
fn an_edit_survives_the_step_in_flight_and_its_counter_waits_for_it() {
    let mut b = Bench::with_molecule();
    b.send(start_md().count(1));
    b.step();
    b.take();
    let job = b.next_step();
    let undisturbed = solve(job.clone()).result.expect("step");
    b.send(edit(move_atom(0, [2.5, 0.0, 0.0])).count(2));
    b.send(
        edit(Edit {
            velocities: vectors(&[[0.0; 3]; 2]),
            ..sparse()
        })
        .count(3),
    );
    assert!(
        b.take().is_empty(),
        "edits of a running simulation are not answered"
    );
    b.finish(job);
    let reply = b.take_one();
    assert_eq!(reply.user_interaction_count, Some(1));
    assert_eq!(frame(&reply).positions, undisturbed.system.positions);
    // Atom by atom: what was edited is as edited, the rest as integrated.
    let state = b.session.state();
    assert_eq!(state.system.positions[0], [2.5, 0.0, 0.0]);
    assert_eq!(
        state.system.positions[1..],
        undisturbed.system.positions[1..]
    );
    assert_eq!(state.velocities[..2], [[0.0; 3]; 2]);
    assert_eq!(state.velocities[2], undisturbed.velocities[2]);
    assert_eq!(state.evaluation, None);
    b.step();
    let reply = b.take_one();
    assert_eq!(reply.user_interaction_count, Some(3));
    assert!((frame(&reply).positions[0][0] - 2.5).abs() < 0.2);
}

#[test]
fn a_failed_step_stops_the_run_and_keeps_the_last_good_geometry() {
    type Spoil = fn(&mut umaserve::comm::Outcome);
    let broken: [(&str, Spoil); 4] = [
        ("MD instability detected (max step disp 7.10 A)", |o| {
            o.result = Err("MD instability detected (max step disp 7.10 A)".into());
        }),
        ("positions are not finite", |o| {
            o.result.as_mut().unwrap().system.positions[1][2] = f64::NAN;
        }),
        ("forces of 2 atoms for 3", |o| {
            let state = o.result.as_mut().unwrap();
            state.evaluation.as_mut().unwrap().forces.pop();
        }),
        ("the energy is not finite", |o| {
            let state = o.result.as_mut().unwrap();
            state.evaluation.as_mut().unwrap().energy = f64::INFINITY;
        }),
    ];
    for (reason, spoil) in broken {
        let mut b = Bench::with_molecule();
        b.send(start_md().count(2));
        b.step();
        b.take();
        let good = b.session.state().system.clone();
        let mut outcome = solve(b.next_step());
        spoil(&mut outcome);
        b.session.complete(outcome, b.now);
        let reply = b.take_one();
        let expected = format!("COMPUTE_ERROR: {reason}");
        assert_eq!(notice(&reply), (expected.as_str(), true));
        assert_eq!(
            (reply.user_interaction_count, reply.sim_step),
            (Some(2), Some(1))
        );
        assert_eq!(b.session.state().system, good);
        b.send(start_md());
        b.step();
        frame(&b.take_one());
    }
}

#[test]
fn closing_ends_everything() {
    let mut b = Bench::with_molecule();
    b.send(start_md());
    let job = b.next_step();
    b.session.close();
    b.finish(job);
    assert!(b.take().is_empty());
    assert!(b.session.is_idle());
    assert_eq!(b.session.wake_at(), None);
}

#[test]
fn start_has_no_answer_but_the_first_frame() {
    let mut b = Bench::with_molecule();
    for _ in 0..20 {
        b.send(message_of(Payload::Start(Start {
            simulation_type: 1,
            parameters: None,
        })));
        assert!(b.take().is_empty());
        b.step();
        frame(&b.take_one());
        b.send(stop());
        assert_eq!(notice(&b.take_one()), ("SIMULATION_STOPPED", true));
    }
}

#[test]
fn changes_of_the_structure_stop_the_run() {
    let cases: [(&str, Edit, usize); 5] = [
        ("snapshot", upload(&water()).into_edit(), 3),
        (
            "element",
            Edit {
                atomic_numbers: numbers(&[16]),
                ..sparse()
            },
            3,
        ),
        (
            "natoms smaller",
            Edit {
                natoms: 2,
                ..sparse()
            },
            2,
        ),
        (
            "growth",
            Edit {
                atomic_numbers: Delta {
                    indices: vec![3],
                    values: vec![1],
                },
                ..move_atom(3, [3.0; 3])
            },
            4,
        ),
        (
            "natoms larger",
            Edit {
                natoms: 4,
                ..sparse()
            },
            4,
        ),
    ];
    for in_flight in [false, true] {
        for (name, what, natoms) in &cases {
            let mut b = Bench::with_molecule();
            b.send(start_md().count(1));
            b.step();
            b.take();
            let job = in_flight.then(|| b.next_step());
            b.send(edit(what.clone()).count(2));
            let first = b.take_now();
            assert_eq!(notice(&first[0]), ("STRUCTURE_CHANGED", true), "{name}");
            assert_eq!(first[0].user_interaction_count, Some(2), "{name}");
            assert!(!b.session.is_running(), "{name}");
            if let Some(job) = job {
                b.finish(job);
            }
            b.run_idle();
            let rest = b.take();
            if *name == "natoms larger" {
                assert_eq!(notice(&first[1]), ("IDLE_WAITING_FOR_GEOMETRY", false));
                assert!(rest.is_empty());
            } else {
                assert_eq!(rest.len(), 1, "{name}: one idle frame");
                assert_eq!(frame(&rest[0]).positions.len(), *natoms, "{name}");
                assert_eq!(rest[0].user_interaction_count, Some(2), "{name}");
            }
        }
    }
    // The same elements again are no change.
    let mut b = Bench::with_molecule();
    b.send(start_md());
    b.send(edit(Edit {
        natoms: 3,
        atomic_numbers: numbers(&[8, 1, 1]),
        ..move_atom(0, [0.2; 3])
    }));
    assert!(b.session.is_running());
    assert!(b.take().is_empty());
}

#[test]
fn a_failed_evaluation_answers_the_edit_and_the_session_goes_on() {
    let mut b = Bench::with_molecule();
    b.send(edit(move_atom(0, [1.0; 3])).count(3));
    let job = b.session.next_job(b.now).expect("evaluation");
    let outcome = umaserve::comm::Outcome {
        session: job.session,
        serial: job.serial,
        result: Err("out of memory".into()),
        edges: 0,
    };
    b.session.complete(outcome, b.now);
    let reply = b.take_one();
    assert_eq!(notice(&reply), ("COMPUTE_ERROR: out of memory", false));
    assert_eq!(reply.user_interaction_count, Some(3));
    b.send(edit(sparse()));
    b.run_idle();
    frame(&b.take_one());
}
