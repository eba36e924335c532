//! Edits of the structure: answers, checks, merging, sizes, cells.

use umaserve::session::{Content, Delta, Edit, SessionSettings};

use crate::bench::*;
use crate::worker::*;

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
fn elements_that_the_task_never_saw_are_named_once_and_computed() {
    let knows = |task: &str, z: &[u8]| (task.to_owned(), z.iter().copied().collect());
    let mut b = Bench::with_settings(SessionSettings {
        trained_on: [knows("omol", &[1, 6, 7, 8])].into(),
        ..settings()
    });
    b.send(upload(&water()));
    b.run_idle();
    assert_eq!(b.take_one().seq, 1);
    // Oxygen becomes silicon, and then germanium beside it.
    let transmute = |atom, z| Edit {
        atomic_numbers: Delta {
            indices: vec![atom],
            values: vec![z],
        },
        ..sparse()
    };
    b.send(edit(transmute(0, 14)).count(4));
    b.run_idle();
    let [told, reply] = b.take_array();
    assert_eq!(told.user_interaction_count, Some(4));
    let (text, stopped) = notice(&told);
    assert!(
        text.starts_with("UNTRAINED_ELEMENTS:") && !stopped,
        "{text}"
    );
    assert!(text.contains("omol") && text.contains("Si"), "{text}");
    assert_eq!((told.seq, reply.seq), (2, 3));
    assert_eq!(frame(&reply).positions, water().1);
    // Not again for the same elements.
    b.send(edit(move_atom(0, [0.1, 0.0, 0.0])));
    b.run_idle();
    frame(&b.take_one());
    b.send(edit(transmute(1, 32)));
    b.run_idle();
    let [told, _] = b.take_array();
    assert!(notice(&told).0.contains("Si, Ge"), "{:?}", notice(&told));
    // The other task says nothing about what it knows.
    b.send(edit(Edit {
        task: Some("omat".into()),
        ..transmute(1, 92)
    }));
    b.run_idle();
    frame(&b.take_one());
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
fn merged_edits_keep_the_largest_ack_and_the_last_counter_that_is_not_zero() {
    let mut b = Bench::with_molecule_acked(0);
    b.send(edit(sparse()));
    let job = b.session.next_job(b.now).expect("evaluation");
    b.send(edit(sparse()).ack(2).count(5).sim_step(30));
    b.send(edit(sparse()).ack(1).count(0).sim_step(0));
    b.send(edit(sparse()).count(3));
    b.send(edit(sparse()));
    assert_eq!(b.session.waiting_messages(), 1);
    b.finish(job);
    b.run_idle();
    let reply = b.take_now().pop().expect("a reply");
    assert_eq!((reply.seq, reply.user_interaction_count), (3, Some(3)));
    assert_eq!(reply.sim_step, Some(30));
    b.send(start_md());
    let mut last = 0;
    while let Some(job) = b.try_step() {
        b.finish(job);
        last = b.take_now_one().seq;
    }
    assert_eq!(last, 12, "acknowledged up to 2");
}
