//! Dynamics on an analytic potential: conservation, statistics, determinism, and the paths of ASE.
//!
//! `tests/data/dynamics-ase.json` is written by `tools/reference/make_dynamics.py`.

use serde::Deserialize;
use umaserve::dynamics::*;
use umaserve::system::elements::atomic_mass;
use umaserve::system::{Evaluation, System};
use umaserve::units::FEMTOSECOND;

type Rows = Vec<[f64; 3]>;

#[derive(Deserialize)]
struct Reference {
    numbers: Vec<u8>,
    energy: f64,
    forces: Rows,
    relaxations: Vec<Relaxation>,
    langevin: Vec<LangevinRun>,
}

#[derive(Deserialize)]
struct Relaxation {
    method: String,
    max_step: f64,
    start: Rows,
    path: Vec<Rows>,
}

#[derive(Deserialize)]
struct LangevinRun {
    timestep_fs: f64,
    friction: f64,
    temperature: f64,
    positions: Rows,
    velocities: Rows,
    steps: Vec<LangevinStep>,
}

#[derive(Deserialize)]
struct LangevinStep {
    xi: Rows,
    eta: Rows,
    positions: Rows,
    velocities: Rows,
}

fn reference() -> Reference {
    let text = include_str!("data/dynamics-ase.json");
    serde_json::from_str(text).expect("the reference is valid JSON")
}

/// Morse pairs without a cutoff: D ((1 - exp(-a (r - r0)))^2 - 1).
fn morse(positions: &[[f64; 3]]) -> Evaluation {
    const D: f64 = 0.8;
    const A: f64 = 1.4;
    const R0: f64 = 1.9;
    let mut energy = 0.0;
    let mut forces = vec![[0.0; 3]; positions.len()];
    for i in 0..positions.len() {
        for j in 0..i {
            let d: [f64; 3] = std::array::from_fn(|k| positions[i][k] - positions[j][k]);
            let r = (d[0] * d[0] + d[1] * d[1] + d[2] * d[2]).sqrt();
            let e = (-A * (r - R0)).exp();
            energy += D * ((1.0 - e) * (1.0 - e) - 1.0);
            for k in 0..3 {
                let f = -2.0 * D * A * (1.0 - e) * e * d[k] / r;
                forces[i][k] += f;
                forces[j][k] -= f;
            }
        }
    }
    Evaluation {
        energy,
        forces,
        stress: None,
    }
}

/// Every atom on a spring of its own, k = 2 eV/Angstrom^2, around the origin. O(N).
fn springs(positions: &[[f64; 3]]) -> Evaluation {
    const K: f64 = 2.0;
    let squares: f64 = positions.as_flattened().iter().map(|x| x * x).sum();
    Evaluation {
        energy: 0.5 * K * squares,
        forces: positions.iter().map(|x| x.map(|c| -K * c)).collect(),
        stress: None,
    }
}

type Potential = fn(&[[f64; 3]]) -> Evaluation;

fn state(numbers: Vec<u8>, positions: Rows, potential: Potential) -> State {
    State {
        velocities: vec![[0.0; 3]; numbers.len()],
        evaluation: Some(potential(&positions)),
        system: System {
            numbers,
            positions,
            ..System::default()
        },
        ..State::default()
    }
}

fn cluster() -> State {
    let reference = reference();
    let start = reference.relaxations[0].start.clone();
    state(reference.numbers, start, morse)
}

/// A cluster near its minimum, moving at about 600 K.
fn warm_cluster() -> State {
    let mut s = cluster();
    run(&bfgs(0.2), &mut s, 50, morse);
    s.history = History::None;
    s.velocities = maxwell_boltzmann(&s.system.numbers, 600.0, 1, 0);
    stop_centre_of_mass(&s.system.numbers, &mut s.velocities);
    s
}

fn step(method: &Method, state: &mut State, potential: Potential) {
    begin_step(method, state).unwrap();
    assert!(state.evaluation.is_none());
    let evaluation = potential(&state.system.positions);
    end_step(method, state, evaluation).unwrap();
}

fn run(method: &Method, state: &mut State, steps: usize, potential: Potential) {
    for _ in 0..steps {
        step(method, state, potential);
    }
}

fn verlet(timestep_fs: f64) -> Method {
    Method::VelocityVerlet { timestep_fs }
}

fn langevin(timestep_fs: f64, temperature_kelvin: f64, friction: f64) -> Method {
    Method::Langevin {
        timestep_fs,
        temperature_kelvin,
        friction,
    }
}

fn bfgs(max_step_angstrom: f64) -> Method {
    Method::Bfgs { max_step_angstrom }
}

fn relaxers(max_step_angstrom: f64) -> [Method; 3] {
    [
        Method::Bfgs { max_step_angstrom },
        Method::Lbfgs { max_step_angstrom },
        Method::Fire { max_step_angstrom },
    ]
}

fn kinetic(state: &State) -> f64 {
    kinetic_energy(&state.system.numbers, &state.velocities)
}

fn total_energy(state: &State) -> f64 {
    kinetic(state) + state.evaluation.as_ref().unwrap().energy
}

fn largest_difference(a: &[[f64; 3]], b: &[[f64; 3]]) -> f64 {
    assert_eq!(a.len(), b.len());
    let pairs = a.as_flattened().iter().zip(b.as_flattened());
    pairs.map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
}

fn bits(state: &State) -> Vec<u64> {
    let rows = state.system.positions.iter().chain(&state.velocities);
    rows.flatten().map(|x| x.to_bits()).collect()
}

fn on_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.unwrap().install(work)
}

/// Atoms of four elements on a grid, for the O(N) potential.
fn grid(atoms: usize) -> State {
    let numbers = (0..atoms).map(|i| [1, 6, 8, 29][i % 4]).collect();
    let place = |i: usize| [i % 16, i / 16 % 16, i / 256].map(|c| 0.05 * c as f64 - 0.4);
    state(numbers, (0..atoms).map(place).collect(), springs)
}

#[test]
fn potential_is_that_of_the_reference() {
    let reference = reference();
    let evaluation = morse(&reference.relaxations[0].start);
    assert!((evaluation.energy - reference.energy).abs() < 1e-12);
    assert!(largest_difference(&evaluation.forces, &reference.forces) < 1e-12);
}

// ---------------------------------------------------------------------------------------------
// Constant energy

#[test]
fn nve_conserves_energy() {
    let mut widths = Vec::new();
    for (dt, steps) in [(1.0, 2000), (0.5, 4000)] {
        let mut s = warm_cluster();
        let start = total_energy(&s);
        let mut errors = Vec::with_capacity(steps);
        for _ in 0..steps {
            step(&verlet(dt), &mut s, morse);
            errors.push(total_energy(&s) - start);
        }
        // No drift: the mean error of the second half is that of the first half within a small
        // part of the fluctuation, which is bounded.
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let (early, late) = errors.split_at(steps / 2);
        let width = errors.iter().fold(0.0f64, |w, e| w.max(e.abs()));
        assert!(width < 5e-3, "{dt} fs: energy off by {width} eV");
        let drift = (mean(late) - mean(early)).abs();
        assert!(drift < 0.1 * width, "{dt} fs: drift {drift} eV of {width}");
        widths.push(width);
    }
    // The error of velocity Verlet is of second order: half the step, a quarter of the error.
    let ratio = widths[0] / widths[1];
    assert!((3.5..4.5).contains(&ratio), "ratio {ratio}");
}

#[test]
fn nve_is_time_reversible() {
    let start = warm_cluster();
    let mut s = start.clone();
    run(&verlet(1.0), &mut s, 500, morse);
    assert!(largest_difference(&s.system.positions, &start.system.positions) > 0.05);
    s.velocities.iter_mut().for_each(|v| *v = v.map(|c| -c));
    run(&verlet(1.0), &mut s, 500, morse);
    assert!(largest_difference(&s.system.positions, &start.system.positions) < 1e-8);
}

#[test]
fn nve_conserves_momentum() {
    let mut s = warm_cluster();
    s.velocities = maxwell_boltzmann(&s.system.numbers, 600.0, 4, 0);
    let start = momentum(&s.system.numbers, &s.velocities);
    assert!(start.iter().any(|p| p.abs() > 0.1));
    run(&verlet(1.0), &mut s, 300, morse);
    let end = momentum(&s.system.numbers, &s.velocities);
    assert!(largest_difference(&[start], &[end]) < 1e-10);
}

// ---------------------------------------------------------------------------------------------
// Constant temperature

#[test]
fn langevin_matches_ase() {
    let reference = reference();
    assert_eq!(reference.langevin.len(), 4);
    for entry in &reference.langevin {
        let integrator = Langevin {
            timestep: entry.timestep_fs * FEMTOSECOND,
            temperature_kelvin: entry.temperature,
            friction: entry.friction,
        };
        let numbers = &reference.numbers;
        let mut positions = entry.positions.clone();
        let mut velocities = entry.velocities.clone();
        for ase in &entry.steps {
            let deviates = Deviates {
                xi: ase.xi.clone(),
                eta: ase.eta.clone(),
            };
            let forces = morse(&positions).forces;
            (positions, velocities) =
                integrator.first_half(numbers, &positions, &velocities, &forces, &deviates);
            let forces = morse(&positions).forces;
            velocities = integrator.second_half(numbers, &velocities, &forces, &deviates);
            assert!(largest_difference(&positions, &ase.positions) < 1e-12);
            assert!(largest_difference(&velocities, &ase.velocities) < 1e-12);
        }
    }
}

#[test]
fn langevin_steps_use_the_deviates_of_seed_and_step() {
    let mut s = cluster();
    (s.seed, s.step) = (11, 42);
    let method = langevin(1.0, 1500.0, 0.5);
    let integrator = Langevin {
        timestep: FEMTOSECOND,
        temperature_kelvin: 1500.0,
        friction: 0.5,
    };
    let deviates = Langevin::deviates(11, 42, s.system.len());
    let forces = morse(&s.system.positions).forces;
    let (x, v) = integrator.first_half(
        &s.system.numbers,
        &s.system.positions,
        &s.velocities,
        &forces,
        &deviates,
    );
    let forces = morse(&x).forces;
    let v = integrator.second_half(&s.system.numbers, &v, &forces, &deviates);
    step(&method, &mut s, morse);
    assert_eq!(s.system.positions, x);
    assert_eq!(s.velocities, v);
    assert_eq!(s.step, 43);
}

#[test]
fn langevin_reaches_temperature() {
    // 64 atoms on springs, from rest. Friction 0.5 per ASE time unit and 1 fs: the kinetic energy
    // forgets itself in about 1 / (2 * 0.5) time units = 10 steps, so 4000 steps hold at least
    // 4000 / (2 * 20) = 100 independent samples of 192 degrees of freedom. The relative standard
    // error of the mean temperature is then sqrt(2 / (192 * 100)) = 1.0%; 4% is four of them, and
    // the discretisation error at this step is well below 1%.
    // Equal masses: with unequal ones ASE's way of stopping the centre of mass heats light atoms
    // (by about m_mean / (m N)), and this integrator is ASE's.
    let mut s = grid(64);
    s.system.numbers.fill(18);
    s.seed = 5;
    let method = langevin(1.0, 300.0, 0.5);
    run(&method, &mut s, 300, springs);
    let samples = 4000;
    let (mut mean, mut potential) = (0.0, 0.0);
    for _ in 0..samples {
        step(&method, &mut s, springs);
        let f = all_degrees_of_freedom(64);
        mean += temperature(kinetic(&s), f) / f64::from(samples);
        let energy = s.evaluation.as_ref().unwrap().energy;
        potential += temperature(energy, f) / f64::from(samples);
    }
    assert!((mean - 300.0).abs() < 12.0, "{mean} K");
    // Equipartition: as much energy in the springs as in the motion.
    assert!((potential - 300.0).abs() < 12.0, "{potential} K");
}

#[test]
fn langevin_without_friction_is_velocity_verlet() {
    let mut a = warm_cluster();
    let mut b = a.clone();
    run(&langevin(1.0, 1500.0, 0.0), &mut a, 50, morse);
    run(&verlet(1.0), &mut b, 50, morse);
    assert!(largest_difference(&a.system.positions, &b.system.positions) < 1e-10);
    assert!(largest_difference(&a.velocities, &b.velocities) < 1e-10);
}

#[test]
fn langevin_without_temperature_is_damped_and_has_no_noise() {
    let mut a = warm_cluster();
    let mut b = a.clone();
    b.seed = 99;
    let before = total_energy(&a);
    run(&langevin(1.0, 0.0, 0.5), &mut a, 300, morse);
    run(&langevin(1.0, 0.0, 0.5), &mut b, 300, morse);
    assert_eq!(bits(&a), bits(&b));
    assert!(total_energy(&a) < before - 0.1);
    assert!(kinetic(&a) < 1e-3);
}

#[test]
fn langevin_kicks_do_not_push_the_centre_of_mass_but_friction_brakes_it() {
    let mut s = warm_cluster();
    let numbers = s.system.numbers.clone();
    let method = langevin(1.0, 1500.0, 0.5);
    run(&method, &mut s, 100, morse);
    assert!(temperature(kinetic(&s), 3 * numbers.len()) > 300.0);
    let still = momentum(&numbers, &s.velocities);
    assert!(still.iter().all(|p| p.abs() < 1e-11), "{still:?}");

    for v in &mut s.velocities {
        v[0] += 0.02;
    }
    let before = momentum(&numbers, &s.velocities)[0];
    step(&method, &mut s, morse);
    let c2 = 0.5 * FEMTOSECOND * 0.5 - (FEMTOSECOND * 0.5).powi(2) / 8.0;
    let after = momentum(&numbers, &s.velocities)[0];
    assert!((after - before * (1.0 - c2) * (1.0 - c2)).abs() < 1e-11);
}

#[test]
fn lone_atom_is_thermalised() {
    let mut s = state(vec![18], vec![[0.1, 0.0, 0.0]], springs);
    let method = langevin(1.0, 300.0, 0.5);
    run(&method, &mut s, 2000, springs);
    assert!(s.velocities[0].iter().all(|v| v.is_finite() && *v != 0.0));
    assert!(temperature(kinetic(&s), 3) < 3000.0);
}

#[test]
fn same_seed_same_bits() {
    for (atoms, steps) in [(64, 40), (4000, 6)] {
        let method = langevin(1.0, 300.0, 0.5);
        let go = |seed: u64, threads: usize, restart_after: Option<usize>| {
            on_threads(threads, || {
                let mut s = grid(atoms);
                s.seed = seed;
                let first = restart_after.unwrap_or(0);
                run(&method, &mut s, first, springs);
                // What a restart does: everything from the state, nothing from elsewhere.
                let mut s = s.clone();
                run(&method, &mut s, steps - first, springs);
                bits(&s)
            })
        };
        let one = go(7, 1, None);
        assert_eq!(one, go(7, 2, None));
        assert_eq!(one, go(7, 8, None));
        assert_eq!(one, go(7, 2, Some(steps / 2)));
        assert_ne!(one, go(8, 1, None));
    }
}

#[test]
fn restart_between_the_halves_of_a_step_changes_nothing() {
    let method = langevin(1.0, 300.0, 0.5);
    let mut a = cluster();
    let mut b = a.clone();
    step(&method, &mut a, morse);
    begin_step(&method, &mut b).unwrap();
    let mut b = b.clone();
    let evaluation = morse(&b.system.positions);
    end_step(&method, &mut b, evaluation).unwrap();
    assert_eq!(bits(&a), bits(&b));
}

#[test]
fn maxwell_boltzmann_distribution() {
    let atoms = 40_000;
    let numbers: Vec<u8> = (0..atoms).map(|i| [1, 8][i % 2]).collect();
    let velocities = maxwell_boltzmann(&numbers, 500.0, 3, 0);
    // Each component of each element: mean 0 and variance k_B T / m, within five standard errors
    // of 20,000 samples; fourth moment 3.
    let n = (atoms / 2) as f64;
    for z in [1, 8] {
        let width = (500.0 * 8.617330337217213e-5 / atomic_mass(z)).sqrt();
        for k in 0..3 {
            let of_z = || {
                let both = numbers.iter().zip(&velocities);
                both.filter(|&(&number, _)| number == z)
                    .map(|(_, v)| v[k] / width)
            };
            assert!((of_z().sum::<f64>() / n).abs() < 5.0 / n.sqrt());
            let variance = of_z().map(|v| v * v).sum::<f64>() / n;
            assert!((variance - 1.0).abs() < 5.0 * (2.0 / n).sqrt());
            let fourth = of_z().map(|v| v.powi(4)).sum::<f64>() / n;
            assert!((fourth - 3.0).abs() < 5.0 * (96.0 / n).sqrt());
        }
    }
    let t = temperature(kinetic_energy(&numbers, &velocities), 3 * atoms);
    assert!((t - 500.0).abs() < 5.0 * 500.0 * (2.0 / (3.0 * atoms as f64)).sqrt());

    assert_eq!(velocities, maxwell_boltzmann(&numbers, 500.0, 3, 0));
    assert_ne!(velocities, maxwell_boltzmann(&numbers, 500.0, 4, 0));
    assert_ne!(velocities, maxwell_boltzmann(&numbers, 500.0, 3, 1));
    let at_rest = maxwell_boltzmann(&numbers, 0.0, 3, 0);
    assert!(at_rest.iter().all(|v| *v == [0.0; 3]));
}

#[test]
fn centre_of_mass_can_be_stopped() {
    let numbers = [1, 8, 29, 1];
    let mut velocities = maxwell_boltzmann(&numbers, 500.0, 3, 0);
    let relative = velocities[0][1] - velocities[2][1];
    assert!(
        momentum(&numbers, &velocities)
            .iter()
            .any(|p| p.abs() > 0.01)
    );
    stop_centre_of_mass(&numbers, &mut velocities);
    let total = momentum(&numbers, &velocities);
    assert!(total.iter().all(|p| p.abs() < 1e-13));
    assert!((velocities[0][1] - velocities[2][1] - relative).abs() < 1e-13);
    stop_centre_of_mass(&[], &mut []);
}

#[test]
fn temperature_counts_degrees_of_freedom() {
    // One hydrogen atom at 1 Angstrom per time unit: K = m/2.
    let k = kinetic_energy(&[1], &[[0.0, 1.0, 0.0]]);
    assert_eq!(k, 0.504);
    let three = temperature(k, all_degrees_of_freedom(1));
    assert!((three - 2.0 * 0.504 / (3.0 * 8.617330337217213e-5)).abs() < 1e-9);
    assert!((temperature(k, 1) - 3.0 * three).abs() < 1e-9);
    assert_eq!(temperature(k, 0), 0.0);
}

// ---------------------------------------------------------------------------------------------
// Relaxation

#[test]
fn optimisers_follow_ase() {
    let reference = reference();
    let mut seen = [0; 3];
    for entry in &reference.relaxations {
        let max_step_angstrom = entry.max_step;
        let (which, method) = match entry.method.as_str() {
            "bfgs" => (0, Method::Bfgs { max_step_angstrom }),
            "lbfgs" => (1, Method::Lbfgs { max_step_angstrom }),
            "fire" => (2, Method::Fire { max_step_angstrom }),
            other => panic!("{other}"),
        };
        seen[which] += 1;
        let mut s = state(reference.numbers.clone(), entry.start.clone(), morse);
        let velocities = s.velocities.clone();
        for (i, ase) in entry.path.iter().enumerate() {
            step(&method, &mut s, morse);
            let error = largest_difference(&s.system.positions, ase);
            assert!(error < 1e-6, "{method:?}, step {}: {error}", i + 1);
        }
        // Relaxation leaves velocities alone.
        assert_eq!(s.velocities, velocities);
        assert_eq!(s.step, entry.path.len() as u64);
    }
    assert_eq!(seen, [3, 2, 2]);
}

#[test]
fn first_step_is_downhill_with_curvature_70() {
    for method in &relaxers(5.0)[..2] {
        let mut s = cluster();
        let before = s.clone();
        step(method, &mut s, morse);
        let forces = &before.evaluation.unwrap().forces;
        let expected: Rows = before
            .system
            .positions
            .iter()
            .zip(forces)
            .map(|(x, f)| std::array::from_fn(|k| x[k] + f[k] / 70.0))
            .collect();
        assert!(largest_difference(&s.system.positions, &expected) < 1e-14);
    }
}

#[test]
fn no_atom_moves_farther_than_max_step() {
    for method in relaxers(0.01) {
        let mut s = cluster();
        for _ in 0..30 {
            let before = s.system.positions.clone();
            step(&method, &mut s, morse);
            for (a, b) in before.iter().zip(&s.system.positions) {
                let d: f64 = (0..3).map(|k| (a[k] - b[k]).powi(2)).sum();
                assert!(d.sqrt() < 0.01 * (1.0 + 1e-9), "{method:?}");
            }
        }
    }
}

#[test]
fn large_systems_relax_by_limited_memory() {
    let mut a = grid(BFGS_MAX_ATOMS + 1);
    let mut b = a.clone();
    run(&bfgs(0.2), &mut a, 10, springs);
    run(
        &Method::Lbfgs {
            max_step_angstrom: 0.2,
        },
        &mut b,
        10,
        springs,
    );
    assert!(matches!(a.history, History::Lbfgs { .. }));
    assert_eq!(a, b);
    let mut c = grid(BFGS_MAX_ATOMS);
    step(&bfgs(0.2), &mut c, springs);
    assert!(matches!(c.history, History::Bfgs { .. }));
}

#[test]
fn max_step_zero_freezes() {
    for method in relaxers(0.0) {
        let mut s = cluster();
        let start = s.system.positions.clone();
        run(&method, &mut s, 20, morse);
        assert_eq!(s.system.positions, start, "{method:?}");
    }
}

#[test]
fn zero_forces_stay_where_they_are() {
    for max_step in [0.0, 0.2] {
        for method in relaxers(max_step) {
            let mut s = state(vec![6, 8], vec![[0.0; 3]; 2], springs);
            run(&method, &mut s, 1500, springs);
            assert_eq!(s.system.positions, [[0.0; 3]; 2], "{method:?}");
        }
    }
}

#[test]
fn relaxation_goes_on_for_ever_at_the_minimum() {
    for method in relaxers(0.2) {
        let mut s = cluster();
        run(&method, &mut s, 1000, morse);
        let there = s.system.positions.clone();
        let forces = &s.evaluation.as_ref().unwrap().forces;
        assert!(
            largest_difference(forces, &[[0.0; 3]; 6]) < 1e-6,
            "{method:?}"
        );
        run(&method, &mut s, 300, morse);
        assert!(largest_difference(&s.system.positions, &there) < 1e-6);
    }
}

#[test]
fn history_of_another_method_or_size_is_started_over() {
    for before in relaxers(0.2) {
        for method in relaxers(0.2) {
            let mut s = cluster();
            run(&before, &mut s, 3, morse);
            s.system.numbers.pop();
            s.system.positions.pop();
            s.velocities.pop();
            s.evaluation = Some(morse(&s.system.positions));
            let mut fresh = s.clone();
            fresh.history = History::None;
            step(&method, &mut s, morse);
            step(&method, &mut fresh, morse);
            assert_eq!(s, fresh, "{before:?} then {method:?}");
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Guards

fn all_methods() -> [Method; 5] {
    let [a, b, c] = relaxers(0.2);
    [verlet(1.0), langevin(1.0, 300.0, 0.5), a, b, c]
}

#[test]
fn atom_that_would_fly_away_stops_the_run() {
    for method in &all_methods()[..2] {
        let mut s = warm_cluster();
        // 1 fs is 0.098 time units: 61.25 Angstrom per time unit are 6.02 Angstrom.
        s.velocities = vec![[0.0; 3]; 6];
        s.evaluation = Some(Evaluation {
            forces: vec![[0.0; 3]; 6],
            ..Evaluation::default()
        });
        s.velocities[3] = [61.25, 0.0, 0.0];
        let before = s.clone();
        let error = begin_step(&verlet(1.0), &mut s).unwrap_err();
        assert_eq!(
            error.to_string(),
            "MD instability detected (max step disp 6.02 A)"
        );
        assert_eq!(s, before);
        assert!(begin_step(method, &mut s).is_err());
        assert_eq!(s, before);
        s.velocities[3] = [50.0, 0.0, 0.0];
        begin_step(&verlet(1.0), &mut s).unwrap();
    }
}

#[test]
fn displacement_that_overflows_stops_the_run() {
    let mut s = cluster();
    s.velocities[0] = [1e308, 1e308, 1e308];
    let before = s.clone();
    let error = begin_step(&verlet(100.0), &mut s).unwrap_err();
    assert_eq!(
        error.to_string(),
        "MD instability detected (max step disp inf A)"
    );
    assert_eq!(s, before);
}

#[test]
fn nothing_moves_on_failed_forces() {
    for method in all_methods() {
        for bad in [f64::NAN, f64::INFINITY] {
            let mut s = cluster();
            s.evaluation.as_mut().unwrap().forces[2][1] = bad;
            let positions = s.system.positions.clone();
            let error = begin_step(&method, &mut s).unwrap_err();
            assert_eq!(error.to_string(), "forces are not finite");
            assert_eq!(s.system.positions, positions);

            let mut s = cluster();
            s.evaluation.as_mut().unwrap().energy = bad;
            assert!(begin_step(&method, &mut s).is_err());
            let mut s = cluster();
            s.evaluation.as_mut().unwrap().stress = Some([[bad; 3]; 3]);
            assert!(begin_step(&method, &mut s).is_err());
            let mut s = cluster();
            s.velocities[0][0] = bad;
            assert!(begin_step(&method, &mut s).is_err());
            let mut s = cluster();
            s.system.positions[0][0] = bad;
            assert!(begin_step(&method, &mut s).is_err());

            let mut s = cluster();
            begin_step(&method, &mut s).unwrap();
            let mut evaluation = morse(&s.system.positions);
            evaluation.forces[0][0] = bad;
            assert!(end_step(&method, &mut s, evaluation).is_err());
            assert!(s.evaluation.is_none());
        }
        let mut s = cluster();
        s.evaluation = None;
        assert_eq!(begin_step(&method, &mut s), Err(StepError::NoForces));
        let mut s = cluster();
        let evaluation = morse(&s.system.positions);
        assert_eq!(
            end_step(&method, &mut s, evaluation),
            Err(StepError::NotBegun)
        );
    }
}

#[test]
fn arrays_that_do_not_fit_are_refused() {
    for method in all_methods() {
        let mut s = cluster();
        s.evaluation.as_mut().unwrap().forces.pop();
        let error = begin_step(&method, &mut s).unwrap_err();
        assert_eq!(error.to_string(), "5 forces for 6 atoms");
        let mut s = cluster();
        s.velocities.clear();
        let error = begin_step(&method, &mut s).unwrap_err();
        assert_eq!(error.to_string(), "0 velocities for 6 atoms");
        let mut s = cluster();
        s.system.positions.push([9.0; 3]);
        assert!(begin_step(&method, &mut s).is_err());
        for z in [0, 119] {
            let mut s = cluster();
            s.system.numbers[4] = z;
            let error = begin_step(&method, &mut s).unwrap_err();
            assert_eq!(error, StepError::Element { atom: 4, number: z });
        }
    }
}

#[test]
fn no_atoms_no_trouble() {
    for method in all_methods() {
        let mut s = state(Vec::new(), Vec::new(), morse);
        run(&method, &mut s, 3, morse);
        assert_eq!(s.step, 3);
    }
}

#[test]
fn parameters_outside_their_bounds_are_refused() {
    for (method, message) in [
        (
            verlet(0.0),
            "time step (fs) is 0, but must be above 0 and at most 100",
        ),
        (
            verlet(-1.0),
            "time step (fs) is -1, but must be above 0 and at most 100",
        ),
        (
            verlet(f64::NAN),
            "time step (fs) is NaN, but must be above 0 and at most 100",
        ),
        (
            langevin(101.0, 300.0, 0.0),
            "time step (fs) is 101, but must be above 0 and at most 100",
        ),
        (
            langevin(1.0, -1.0, 0.5),
            "temperature (K) is -1, but must be at least 0 and at most 100000",
        ),
        (
            langevin(1.0, f64::INFINITY, 0.5),
            "temperature (K) is inf, but must be at least 0 and at most 100000",
        ),
        (
            langevin(1.0, 300.0, -0.1),
            "friction (1/ASE time unit) is -0.1, but must be finite and at least 0",
        ),
        (
            langevin(1.0, 300.0, f64::NAN),
            "friction (1/ASE time unit) is NaN, but must be finite and at least 0",
        ),
        (
            bfgs(-0.1),
            "max_step (Angstrom) is -0.1, but must be at least 0 and at most 5",
        ),
        (
            bfgs(f64::NAN),
            "max_step (Angstrom) is NaN, but must be at least 0 and at most 5",
        ),
        (
            bfgs(5.1),
            "max_step (Angstrom) is 5.1, but must be at least 0 and at most 5",
        ),
    ] {
        let error = method.check().unwrap_err();
        assert_eq!(error.to_string(), message);
        let mut s = cluster();
        let before = s.clone();
        let refused = begin_step(&method, &mut s).unwrap_err();
        assert!(matches!(refused, StepError::Method(_)));
        assert_eq!(refused.to_string(), message);
        assert_eq!(s, before);
    }
    let stiff = langevin(10.0, 300.0, 3.0).check().unwrap_err().to_string();
    assert!(
        stiff.starts_with("time step times friction is 2.9"),
        "{stiff}"
    );
    assert!(stiff.ends_with("at least 0 and at most 2"), "{stiff}");
    // What the viewer sends: 1 fs, 1500 K, friction up to 2, steps of 0.01 Angstrom.
    assert_eq!(langevin(1.0, 1500.0, 2.0).check(), Ok(()));
    assert_eq!(langevin(1.0, 0.0, 0.0).check(), Ok(()));
    assert_eq!(bfgs(0.01).check(), Ok(()));
    assert_eq!(bfgs(0.0).check(), Ok(()));
}
