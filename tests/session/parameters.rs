//! START: parameters, refusals, velocities and random numbers.

use umaserve::comm::Task;
use umaserve::dynamics::{self, Method};
use umaserve::session::{Content, RawParameters, SessionSettings};

use crate::bench::*;

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
        (md(with(6)), "unknown integrator 6, the limits are 0 and 5"),
        (
            md(with(3)),
            "integrator bfgs is none of MD: langevin, velocity_verlet",
        ),
        (
            relax(with(2)),
            "integrator langevin is none of RELAX: bfgs, lbfgs, fire",
        ),
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
fn many_atoms_are_relaxed_without_a_hessian() {
    for (natoms, integrator, expected) in [
        (200, None, "bfgs"),
        (201, None, "lbfgs"),
        (201, Some(3), "lbfgs"),
        (201, Some(5), "fire"),
    ] {
        let mut b = Bench::with_settings(SessionSettings {
            max_atoms: 300,
            ..settings()
        });
        let positions = (0..natoms).map(|i| [f64::from(i), 0.0, 0.0]).collect();
        b.send(upload(&(vec![1; natoms as usize], positions)));
        b.run_idle();
        let parameters = RawParameters {
            max_step: 0.1,
            integrator,
            ..RawParameters::default()
        };
        b.send(start(1, Some(parameters)));
        let method = match b.next_step().task {
            Task::Step(Method::Bfgs { .. }) => "bfgs",
            Task::Step(Method::Lbfgs { .. }) => "lbfgs",
            Task::Step(Method::Fire { .. }) => "fire",
            other => panic!("{other:?}"),
        };
        assert_eq!(
            method, expected,
            "{natoms} atoms, integrator {integrator:?}"
        );
    }
}
