//! The session state machine against docs/protocol.md: no sockets, no clock, a toy potential.

#[path = "session/bench.rs"]
mod bench;
#[path = "session/random.rs"]
mod random;
#[path = "session/worker.rs"]
mod worker;

use std::time::Duration;

use bench::*;
use umaserve::dynamics::{self, Method};
use umaserve::session::{
    Content, Delta, Edit, Payload, RawParameters, Record, SessionSettings, Start,
};
use worker::*;

#[test]
fn an_uploaded_molecule_is_answered_by_one_idle_frame() {
    let mut b = Bench::new();
    b.send(upload(&water()).count(7).seq(3));
    b.run_idle();
    let [reply] = b.take_array();
    assert_eq!((reply.seq, reply.client_seq), (1, 3));
    assert_eq!(
        (reply.user_interaction_count, reply.sim_step),
        (Some(7), None)
    );
    let frame = frame(&reply);
    assert_eq!(frame.positions, water().1);
    assert_eq!(frame.velocities, vec![[0.0; 3]; 3]);
    assert_eq!(frame.energy, harmonic_energy(&water().1));
    assert_eq!(frame.forces[0], harmonic_force(water().1[0]));
    assert_eq!(
        (
            frame.kinetic,
            frame.temperature,
            frame.cell,
            frame.stress,
            frame.time_fs
        ),
        (None, None, None, None, None)
    );
    assert!(b.session.is_idle());
}

#[test]
fn the_counter_of_an_idle_reply_is_that_of_the_message_even_when_it_is_lower_or_zero() {
    let mut b = Bench::with_molecule();
    for count in [9, 4, 0] {
        b.send(edit(move_atom(0, [0.1, 0.0, 0.0])).count(count));
        b.run_idle();
        assert_eq!(b.take_one().user_interaction_count, Some(count));
    }
    b.send(edit(move_atom(0, [0.2, 0.0, 0.0])));
    b.run_idle();
    assert_eq!(b.take_one().user_interaction_count, Some(0));
    b.send(stop());
    assert_eq!(
        b.take_one().user_interaction_count,
        Some(9),
        "session maximum"
    );
}

#[test]
fn incomplete_geometry_is_waited_for() {
    let cases: [(&str, Edit); 5] = [
        ("no atoms", full(0)),
        (
            "only elements",
            Edit {
                atomic_numbers: numbers(&[8, 1, 1]),
                ..full(3)
            },
        ),
        (
            "only positions",
            Edit {
                positions: vectors(&water().1),
                ..full(3)
            },
        ),
        (
            "one atom without a position",
            Edit {
                atomic_numbers: numbers(&[8, 1, 1]),
                positions: vectors(&water().1[..2]),
                ..full(3)
            },
        ),
        (
            "one atom with Z = 0",
            Edit {
                atomic_numbers: numbers(&[8, 0, 1]),
                positions: vectors(&water().1),
                ..full(3)
            },
        ),
    ];
    for (name, what) in cases {
        let mut b = Bench::new();
        b.send(edit(what).count(5).seq(2));
        assert!(b.session.next_job(b.now).is_none(), "{name}");
        let reply = b.take_one();
        assert_eq!(
            notice(&reply),
            ("IDLE_WAITING_FOR_GEOMETRY", false),
            "{name}"
        );
        assert_eq!((reply.seq, reply.client_seq), (1, 2), "{name}");
        assert_eq!(reply.user_interaction_count, Some(5), "{name}");
    }
    // The missing part completes it.
    let mut b = Bench::new();
    b.send(edit(Edit {
        atomic_numbers: numbers(&[8, 1, 1]),
        ..full(3)
    }));
    b.send(edit(Edit {
        positions: vectors(&water().1),
        ..sparse()
    }));
    b.run_idle();
    let [waiting, reply] = b.take_array();
    assert_eq!(notice(&waiting).0, "IDLE_WAITING_FOR_GEOMETRY");
    assert_eq!(frame(&reply).positions.len(), 3);
}

#[test]
fn every_violation_is_named_and_changes_nothing() {
    let position = |indices: &[u32], values: &[f64]| Edit {
        positions: Delta {
            indices: indices.to_vec(),
            values: values.to_vec(),
        },
        ..sparse()
    };
    let z = |i, z| Edit {
        atomic_numbers: Delta {
            indices: vec![i],
            values: vec![z],
        },
        ..sparse()
    };
    let cell = |values: &[f64]| Edit {
        cell: Some(values.to_vec()),
        ..sparse()
    };
    let cases: Vec<(Edit, &str)> = vec![
        (
            Edit {
                full_update: None,
                ..move_atom(0, [1.0; 3])
            },
            "full_update flag must be set",
        ),
        (
            position(&[0], &[1.0, 2.0]),
            "positions carry 2 coordinates for 1 indices, 3 expected",
        ),
        (
            position(&[0, 1], &[1.0; 3]),
            "positions carry 3 coordinates for 2 indices, 6 expected",
        ),
        (
            position(&[0], &[1.0, f64::NAN, 0.0]),
            "positions contain NaN, which is not finite",
        ),
        (
            position(&[0], &[f64::INFINITY, 0.0, 0.0]),
            "positions contain inf, which is not finite",
        ),
        (
            position(&[0], &[1e7, 0.0, 0.0]),
            "positions contain 1e7, the limit is 1e6",
        ),
        (
            position(&[50], &[0.0; 3]),
            "atom index 50, the limit is 50 atoms",
        ),
        (
            position(&[u32::MAX], &[0.0; 3]),
            "atom index 4294967295, the limit is 50 atoms",
        ),
        (
            Edit {
                natoms: 51,
                ..sparse()
            },
            "natoms = 51, the limit is 50",
        ),
        (
            Edit {
                natoms: u32::MAX,
                ..full(0)
            },
            "natoms = 4294967295, the limit is 50",
        ),
        (
            Edit {
                natoms: 2,
                ..move_atom(2, [0.0; 3])
            },
            "atom index 2 with natoms = 2",
        ),
        (
            Edit {
                full_update: Some(true),
                natoms: 2,
                ..move_atom(2, [0.0; 3])
            },
            "atom index 2 of a full update with natoms = 2",
        ),
        (
            Edit {
                velocities: Delta {
                    indices: vec![0],
                    values: vec![f64::NAN; 3],
                },
                ..sparse()
            },
            "velocities contain NaN, which is not finite",
        ),
        (
            z(1, 101),
            "atomic number 101 of atom 1, the model knows 1 to 100",
        ),
        (
            Edit {
                atomic_numbers: Delta {
                    indices: vec![0, 1],
                    values: vec![1],
                },
                ..sparse()
            },
            "atomic_numbers carry 1 values for 2 indices",
        ),
        (cell(&[1.0; 8]), "cell carries 8 numbers, 9 expected"),
        (cell(&[]), "cell carries 0 numbers, 9 expected"),
        (
            cell(&[f64::NAN; 9]),
            "cell vectors contain NaN, which is not finite",
        ),
        (
            cell(&[5.0; 9]),
            "the cell has no volume: its repeating lattice vectors are zero or parallel",
        ),
        (
            Edit {
                periodic: Some([true; 3]),
                ..sparse()
            },
            "periodicity without a cell",
        ),
        (
            Edit {
                charge: Some(101),
                ..sparse()
            },
            "charge 101, the limits are -100 and 100",
        ),
        (
            Edit {
                spin: Some(101),
                ..sparse()
            },
            "spin multiplicity 101, the limit is 100",
        ),
        (
            Edit {
                task: Some("oc99".into()),
                ..sparse()
            },
            "task \"oc99\" is not one of the model: omol, omat",
        ),
    ];
    for running in [false, true] {
        for (what, reason) in &cases {
            let mut b = Bench::with_molecule();
            if running {
                b.send(start_md());
                b.step();
                b.take();
            }
            let before = b.session.state().clone();
            b.send(edit(what.clone()).count(3).seq(44));
            let reply = b.take_one();
            let expected = format!("PROTO_VIOLATION: {reason}");
            assert_eq!(notice(&reply), (expected.as_str(), false));
            assert_eq!(
                (reply.client_seq, reply.user_interaction_count),
                (44, Some(3))
            );
            assert_eq!(b.session.state(), &before, "{reason}");
            assert_eq!(b.session.is_running(), running, "{reason}");
            if running {
                b.step();
                assert_eq!(frame(&b.take_one()).positions.len(), 3, "{reason}");
            }
        }
    }
}

#[test]
fn edits_that_wait_are_merged_and_answered_once() {
    let mut b = Bench::with_molecule();
    b.send(edit(move_atom(0, [0.1, 0.0, 0.0])).count(1));
    let job = b.session.next_job(b.now).expect("evaluation");
    for k in 2..=20u64 {
        b.send(
            edit(move_atom((k % 2) as u32, [k as f64 / 10.0, 0.0, 0.0]))
                .count(k)
                .seq(k),
        );
    }
    b.send(stop().seq(21));
    b.send(edit(move_atom(2, [9.0, 0.0, 0.0])).count(30).seq(22));
    assert!(b.session.next_job(b.now).is_none(), "one job at a time");
    assert_eq!(b.session.waiting_messages(), 3, "merged edit, STOP, edit");
    b.finish(job);
    b.run_idle();
    let [first, merged, stopped, last] = b.take_array();
    assert_eq!(
        (first.client_seq, first.user_interaction_count),
        (0, Some(1))
    );
    assert_eq!(
        (merged.client_seq, merged.user_interaction_count),
        (20, Some(20))
    );
    assert_eq!(
        frame(&merged).positions[..2],
        [[2.0, 0.0, 0.0], [1.9, 0.0, 0.0]]
    );
    assert_eq!(notice(&stopped), ("SIMULATION_STOPPED", true));
    assert_eq!(
        (last.client_seq, last.user_interaction_count),
        (22, Some(30))
    );
    assert_eq!(frame(&last).positions[2], [9.0, 0.0, 0.0]);
}

#[test]
fn merging_equals_applying_one_after_the_other() {
    let edits = [
        Edit {
            velocities: vectors(&[[1.0; 3], [2.0; 3]]),
            ..sparse()
        },
        Edit {
            cell: Some(cube(9.0)),
            natoms: 4,
            ..move_atom(3, [5.0; 3])
        },
        Edit {
            atomic_numbers: Delta {
                indices: vec![3, 3],
                values: vec![7, 6],
            },
            ..sparse()
        },
        Edit {
            charge: Some(2),
            cell: Some(cube(8.0)),
            ..move_atom(0, [1.5; 3])
        },
        Edit {
            full_update: None,
            ..move_atom(0, [1.25; 3])
        },
        Edit {
            task: Some("omat".into()),
            ..sparse()
        },
    ];
    let run = |merged: bool| {
        let mut b = Bench::with_molecule();
        b.send(edit(sparse()));
        let blocker = b.session.next_job(b.now);
        let mut blocker = blocker.map(|j| b.finish(j));
        for mut e in edits.clone() {
            if !merged {
                e.full_update = Some(false);
            } else if blocker.take().is_some() {
                b.send(edit(sparse()));
            }
            b.send(edit(e));
            if !merged {
                b.run_idle();
            }
        }
        b.run_idle();
        b.session.state().clone()
    };
    assert_eq!(run(true), run(false));
    assert_eq!(run(true).system.numbers, [8, 1, 1, 6]);
}

#[test]
fn a_full_update_is_never_merged() {
    let mut b = Bench::with_molecule();
    b.send(edit(sparse()));
    let job = b.session.next_job(b.now).expect("evaluation");
    b.send(edit(move_atom(0, [1.0; 3])));
    b.send(upload(&water()));
    b.send(edit(move_atom(1, [2.0; 3])));
    assert_eq!(b.session.waiting_messages(), 3);
    b.finish(job);
    b.run_idle();
    assert_eq!(b.take().len(), 4);
    assert_eq!(b.session.state().system.positions[0], water().1[0]);
    assert_eq!(b.session.state().system.positions[1], [2.0; 3]);
}

#[test]
fn a_full_update_resizes_and_resets_what_it_does_not_name() {
    let mut b = Bench::with_molecule();
    b.send(edit(Edit {
        velocities: vectors(&[[1.0; 3]]),
        cell: Some(cube(10.0)),
        charge: Some(-1),
        spin: Some(2),
        task: Some("omat".into()),
        periodic: Some([true, true, false]),
        ..sparse()
    }));
    b.send(message().sim_step(77));
    b.run_idle();
    b.take();
    let system = &b.session.state().system;
    assert_eq!(system.cell.periodic, [true, true, false]);
    assert_eq!(
        (system.charge, system.spin, system.task.as_str()),
        (-1, 2, "omat")
    );

    b.send(edit(Edit {
        atomic_numbers: numbers(&[7, 7]),
        positions: vectors(&[[0.0; 3], [1.1, 0.0, 0.0]]),
        ..full(2)
    }));
    b.run_idle();
    let reply = b.take_one();
    assert_eq!(reply.sim_step, None, "counter reset");
    assert_eq!(frame(&reply).velocities, vec![[0.0; 3]; 2]);
    let system = &b.session.state().system;
    assert_eq!(system.numbers, [7, 7]);
    assert_eq!(system.cell, umaserve::system::Cell::NONE);
    assert_eq!(
        (system.charge, system.spin, system.task.as_str()),
        (0, 1, "omol")
    );

    // Growing keeps what is there; velocities in the message are kept.
    b.send(edit(Edit {
        atomic_numbers: Delta {
            indices: vec![2],
            values: vec![8],
        },
        positions: Delta {
            indices: vec![2],
            values: vec![0.5; 3],
        },
        velocities: Delta {
            indices: vec![2],
            values: vec![0.25; 3],
        },
        ..full(3)
    }));
    b.run_idle();
    let state = b.session.state();
    assert_eq!(state.system.numbers, [7, 7, 8]);
    assert_eq!(state.system.positions[1], [1.1, 0.0, 0.0]);
    assert_eq!(state.velocities[2], [0.25; 3]);
}

#[test]
fn sparse_edits_grow_shrink_and_keep_the_rest() {
    let mut b = Bench::with_molecule();
    b.send(edit(Edit {
        velocities: vectors(&[[0.5; 3]]),
        ..sparse()
    }));
    b.send(edit(move_atom(4, [4.0; 3])));
    b.run_idle();
    let [only_velocities, waiting] = b.take_array();
    assert_eq!(frame(&only_velocities).velocities[0], [0.5; 3]);
    assert_eq!(
        notice(&waiting).0,
        "IDLE_WAITING_FOR_GEOMETRY",
        "atoms 3 and 4 have no element"
    );
    assert_eq!(b.session.state().system.len(), 5);
    b.send(edit(Edit {
        natoms: 2,
        ..sparse()
    }));
    b.run_idle();
    assert_eq!(frame(&b.take_one()).positions, water().1[..2]);
    assert_eq!(b.session.state().velocities[0], [0.5; 3]);
}

#[test]
fn a_cell_is_periodic_everywhere_unless_said_otherwise() {
    for (periodic, expected) in [
        (None, [true; 3]),
        (Some([true, false, false]), [true, false, false]),
        (Some([false; 3]), [false; 3]),
    ] {
        let mut b = Bench::with_molecule();
        b.send(edit(Edit {
            cell: Some(cube(12.0)),
            periodic,
            ..sparse()
        }));
        b.run_idle();
        let reply = b.take_one();
        assert_eq!(frame(&reply).cell, None, "idle frames carry no cell");
        assert_eq!(frame(&reply).stress.is_some(), expected != [false; 3]);
        assert_eq!(b.session.state().system.cell.periodic, expected);
        b.send(start_md());
        b.step();
        assert_eq!(
            frame(&b.take_one()).cell.map(|c| c[0]),
            Some([12.0, 0.0, 0.0])
        );
    }
    // A cell of zeros is none.
    let mut b = Bench::with_molecule();
    b.send(edit(Edit {
        cell: Some(cube(12.0)),
        ..sparse()
    }));
    b.send(edit(Edit {
        cell: Some(vec![0.0; 9]),
        ..sparse()
    }));
    b.run_idle();
    assert!(!b.session.state().system.cell.is_periodic());
    b.send(start_md());
    b.step();
    let frames = b.take();
    let last = frame(&frames[frames.len() - 1]);
    assert_eq!((last.cell, last.stress), (None, None));
    // A missing vector may not repeat, but may be missing.
    let slab = vec![5.0, 0.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0, 0.0];
    for (periodic, accepted) in [([true; 3], false), ([true, true, false], true)] {
        let mut b = Bench::with_molecule();
        b.send(edit(Edit {
            cell: Some(slab.clone()),
            periodic: Some(periodic),
            ..sparse()
        }));
        b.run_idle();
        assert_eq!(matches!(b.take_one().content, Content::Frame(_)), accepted);
    }
}

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
fn parameters_are_kept_taken_raw_or_refused() {
    let raw = RawParameters {
        timestep_fs: 0.5,
        ..Default::default()
    };
    let md = |p: RawParameters| start(0, Some(p));
    let relax = |p: RawParameters| start(1, Some(p));
    let mut b = Bench::with_molecule();
    b.send(message().ack(u64::MAX));
    let mut method = |m: Message| {
        b.send(m);
        let job = b.next_step();
        let umaserve::comm::Task::Step(method) = job.task.clone() else {
            panic!()
        };
        b.finish(job);
        method
    };
    let langevin = |timestep_fs, temperature_kelvin, friction| Method::Langevin {
        timestep_fs,
        temperature_kelvin,
        friction,
    };
    assert_eq!(
        method(start(0, None)),
        langevin(1.0, 298.0, 0.02),
        "defaults"
    );
    assert_eq!(
        method(md(raw.clone())),
        langevin(0.5, 0.0, 0.0),
        "unset is zero"
    );
    assert_eq!(method(start(0, None)), langevin(0.5, 0.0, 0.0), "kept");
    assert_eq!(
        method(relax(RawParameters::default())),
        Method::Bfgs {
            max_step_angstrom: 0.0
        },
        "RELAX needs no time step"
    );
    let with = |integrator| RawParameters {
        integrator: Some(integrator),
        max_step: 0.1,
        ..raw.clone()
    };
    assert_eq!(
        method(md(with(1))),
        Method::VelocityVerlet { timestep_fs: 0.5 }
    );
    assert_eq!(method(md(with(2))), langevin(0.5, 0.0, 0.0));
    assert_eq!(
        method(relax(with(3))),
        Method::Bfgs {
            max_step_angstrom: 0.1
        }
    );
    assert_eq!(
        method(relax(with(4))),
        Method::Lbfgs {
            max_step_angstrom: 0.1
        }
    );
    assert_eq!(
        method(relax(with(5))),
        Method::Fire {
            max_step_angstrom: 0.1
        }
    );
    let named = |name: &str| RawParameters {
        calculator: name.into(),
        ..raw.clone()
    };
    for name in ["", "uma", "UMA", " Uma "] {
        method(md(named(name)));
    }

    let nan = f64::NAN;
    let refused: Vec<(Message, &str)> = vec![
        (
            md(RawParameters::default()),
            "time step (fs) is 0, but must be above 0 and at most 100",
        ),
        (
            md(RawParameters {
                timestep_fs: nan,
                ..raw.clone()
            }),
            "timestep_fs = NaN is not finite",
        ),
        (
            md(RawParameters {
                timestep_fs: -1.0,
                ..raw.clone()
            }),
            "time step (fs) is -1, but must be above 0 and at most 100",
        ),
        (
            md(RawParameters {
                timestep_fs: 1e3,
                ..raw.clone()
            }),
            "time step (fs) is 1000, but must be above 0 and at most 100",
        ),
        (
            md(RawParameters {
                temperature: nan,
                ..raw.clone()
            }),
            "temperature = NaN is not finite",
        ),
        (
            md(RawParameters {
                temperature: -1.0,
                ..raw.clone()
            }),
            "temperature (K) is -1, but must be at least 0 and at most 100000",
        ),
        (
            md(RawParameters {
                friction: -1.0,
                ..raw.clone()
            }),
            "friction (1/ASE time unit) is -1, but must be finite and at least 0",
        ),
        (
            relax(RawParameters {
                max_step: f64::INFINITY,
                ..raw.clone()
            }),
            "max_step = inf is not finite",
        ),
        (
            md(RawParameters {
                steps_per_frame: Some(0),
                ..raw.clone()
            }),
            "steps_per_frame = 0, the limits are 1 and 1000",
        ),
        (
            md(RawParameters {
                steps_per_frame: Some(1001),
                ..raw.clone()
            }),
            "steps_per_frame = 1001, the limits are 1 and 1000",
        ),
        (
            md(RawParameters {
                frame_interval_ms: Some(60_001),
                ..raw.clone()
            }),
            "frame_interval_ms = 60001, the limit is 60000",
        ),
        (md(with(6)), "unknown integrator 6"),
        (md(with(3)), "integrator bfgs in MD"),
        (relax(with(2)), "integrator langevin in RELAX"),
        (
            md(RawParameters {
                record: Some(true),
                ..raw.clone()
            }),
            "this server does not record",
        ),
    ];
    for (message, reason) in refused {
        for running in [false, true] {
            let mut b = Bench::with_molecule();
            if running {
                b.send(start_md().count(8));
                b.step();
                b.take();
            }
            b.send(message.copy());
            let reply = b.take_one();
            let expected = format!("PROTO_VIOLATION: {reason}");
            assert_eq!(notice(&reply), (expected.as_str(), true));
            assert_eq!(reply.user_interaction_count, running.then_some(8));
            assert!(b.session.is_idle() && b.session.next_job(b.now).is_none());
        }
    }
}

#[test]
fn unknown_kinds_and_calculators_are_refused() {
    for running in [false, true] {
        let mut b = Bench::with_molecule();
        if running {
            b.send(start_md());
            b.step();
            b.take();
        }
        b.send(start(7, None));
        let reply = b.take_one();
        assert_eq!(
            notice(&reply),
            ("PROTO_VIOLATION: unknown simulation_type 7", false)
        );
        assert_eq!(b.session.is_running(), running, "nothing changed");

        let lj = RawParameters {
            calculator: "lj".into(),
            timestep_fs: 3.0,
            ..Default::default()
        };
        b.send(start(0, Some(lj)));
        let text = "CALCULATOR_NOT_SUPPORTED: UMA_ONLY (requested: 'lj')";
        assert_eq!(notice(&b.take_one()), (text, true));
        assert!(!b.session.is_running());
        // Neither the calculator nor the time step was taken over.
        b.send(edit(sparse()));
        b.run_idle();
        frame(&b.take_one());
        b.send(start(0, None));
        let job = b.next_step();
        let expected = if running { 0.5 } else { 1.0 };
        assert!(
            matches!(job.task, umaserve::comm::Task::Step(Method::Langevin { timestep_fs, .. })
                if timestep_fs == expected)
        );
    }
}

#[test]
fn start_needs_a_geometry_and_stop_is_always_answered() {
    let mut b = Bench::new();
    b.send(stop());
    assert_eq!(notice(&b.take_one()), ("SIMULATION_STOPPED", true));
    b.send(start_md());
    let reply = b.take_one();
    assert_eq!(notice(&reply), ("IDLE_WAITING_FOR_GEOMETRY", true));
    assert_eq!((reply.user_interaction_count, reply.sim_step), (None, None));
    assert!(b.session.is_idle());
    assert!(b.session.next_job(b.now).is_none());
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
fn a_live_change_of_temperature_draws_new_velocities() {
    let md = |temperature| RawParameters {
        temperature,
        timestep_fs: 0.5,
        ..Default::default()
    };
    for in_flight in [false, true] {
        let mut b = Bench::with_molecule();
        b.send(start(0, Some(md(300.0))));
        assert_eq!(
            b.session.state().velocities,
            vec![[0.0; 3]; 3],
            "MD starts from rest"
        );
        b.step();
        let old = b.session.state().velocities.clone();
        b.send(start(0, Some(md(300.0))));
        assert_eq!(b.session.state().velocities, old, "same temperature");
        let job = in_flight.then(|| b.next_step());
        b.send(start(0, Some(md(900.0))));
        if let Some(job) = job {
            b.finish(job);
        }
        let state = b.session.state();
        let drawn = dynamics::maxwell_boltzmann(&[8, 1, 1], 900.0, state.seed, state.step);
        assert_eq!(state.velocities, drawn, "in flight: {in_flight}");
        b.step();
        b.send(start(
            1,
            Some(RawParameters {
                temperature: 5.0,
                ..Default::default()
            }),
        ));
        b.send(start(0, Some(md(5.0))));
        assert_ne!(b.session.state().velocities, drawn);
        let before = b.session.state().velocities.clone();
        b.send(stop());
        b.send(start(0, Some(md(1000.0))));
        assert_eq!(b.session.state().velocities, before, "not live");
        assert!(b.take().iter().all(
            |m| !matches!(&m.content, Content::Notice(n) if n.message != "SIMULATION_STOPPED")
        ));
    }
}

#[test]
fn a_seed_restarts_the_random_numbers() {
    let seeded = |seed| RawParameters {
        seed,
        timestep_fs: 0.5,
        temperature: 300.0,
        friction: 0.5,
        ..Default::default()
    };
    let run = |seed| {
        let mut b = Bench::with_molecule();
        b.send(start(0, Some(seeded(Some(1)))));
        b.step();
        b.send(upload(&water()));
        b.run_idle();
        b.send(start(0, Some(seeded(seed))));
        for _ in 0..5 {
            b.step();
        }
        b.session.state().system.positions.clone()
    };
    assert_eq!(run(Some(42)), run(Some(42)));
    assert_ne!(run(Some(42)), run(Some(43)));
    assert_ne!(run(Some(1)), run(None), "without a seed the numbers go on");
}

#[test]
fn a_failed_step_stops_the_run_and_keeps_the_last_good_geometry() {
    let broken: [(&str, fn(&mut umaserve::comm::Outcome)); 4] = [
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
    assert_eq!(b.session.take_records().last(), Some(&Record::Stop));
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
        Record::Frame { step, time_fs, .. } => format!("frame {step} at {time_fs} fs"),
        Record::Edit { step, description } => format!("edit after {step}: {description}"),
        Record::Stop => "stop".into(),
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
