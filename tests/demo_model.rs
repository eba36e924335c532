//! The demo checkpoint as it ships: is it still the model that its documentation speaks of?
//!
//! The labels are GFN2-xTB's, of molecules that were never trained on; `tools/demo_model/evaluate.py
//! --labels` writes them. What takes longer (20 ps of five systems, vibrations, protons) is in
//! `evaluate.py`; `docs/demo_model.md` has its results.

use nalgebra::{Matrix3, Vector3};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use umaserve::dynamics::{
    Method, State, begin_step, end_step, kinetic_energy, maxwell_boltzmann, stop_centre_of_mass,
};
use umaserve::potential::uma::{Checkpoint, UmaOptions, UmaPotential};
use umaserve::potential::{Potential, evaluate};
use umaserve::structure_file::{Frame, read_frames};
use umaserve::system::{Evaluation, System};

const MAX_EDGES: usize = 1_000_000;

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn demo() -> UmaPotential {
    let checkpoint = Checkpoint::open(path("models/demo.pt")).unwrap();
    UmaPotential::on_cpu(Arc::new(checkpoint), UmaOptions::default()).unwrap()
}

/// The frames of a file, with the task that the demo model knows.
fn frames(name: &str) -> Vec<Frame> {
    let file = std::fs::File::open(path("tests/data").join(name)).unwrap();
    read_frames(BufReader::new(file), name, 100)
        .map(|frame| {
            let mut frame = frame.unwrap();
            frame.system.task = "omol".to_owned();
            frame
        })
        .collect()
}

fn answers(potential: &dyn Potential, systems: &[&System]) -> Vec<Evaluation> {
    let answers = evaluate(potential, systems, MAX_EDGES).into_iter();
    answers.map(|answer| answer.unwrap()).collect()
}

fn state(potential: &dyn Potential, system: System, velocities: Vec<[f64; 3]>) -> State {
    State {
        evaluation: answers(potential, &[&system]).pop(),
        system,
        velocities,
        ..State::default()
    }
}

fn step(potential: &dyn Potential, method: &Method, state: &mut State) {
    begin_step(method, state).unwrap();
    let evaluation = answers(potential, &[&state.system]).pop().unwrap();
    end_step(method, state, evaluation).unwrap();
}

fn distance(positions: &[[f64; 3]], i: usize, j: usize) -> f64 {
    (Vector3::from(positions[i]) - Vector3::from(positions[j])).norm()
}

#[test]
fn the_file_is_small_enough_to_ship() {
    let bytes = std::fs::metadata(path("models/demo.pt")).unwrap().len();
    assert!(bytes <= 4_000_000, "{bytes} bytes");
}

#[test]
fn held_out_molecules_are_within_the_bars() {
    let frames = frames("demo-held-out.extxyz");
    assert_eq!(frames.len(), 48);
    let systems: Vec<&System> = frames.iter().map(|frame| &frame.system).collect();
    let (mut energy, mut force, mut components) = (0.0, 0.0, 0usize);
    for (frame, ours) in frames.iter().zip(answers(&demo(), &systems)) {
        let theirs = frame.evaluation().unwrap();
        energy += (ours.energy - theirs.energy).abs() / frame.system.len() as f64;
        for (a, b) in ours
            .forces
            .iter()
            .flatten()
            .zip(theirs.forces.iter().flatten())
        {
            force += (a - b).abs();
            components += 1;
        }
    }
    let energy = 1e3 * energy / frames.len() as f64;
    let force = 1e3 * force / components as f64;
    println!("mean absolute errors: {energy:.2} meV/atom, {force:.1} meV/Angstrom");
    assert!(energy <= 5.0, "{energy} meV/atom");
    assert!(force <= 80.0, "{force} meV/Angstrom");
}

/// Root of the mean squared distance of atoms after the best superposition (Kabsch 1976), Angstrom.
fn rmsd(a: &[[f64; 3]], b: &[[f64; 3]]) -> f64 {
    let centred = |rows: &[[f64; 3]]| -> Vec<Vector3<f64>> {
        let mean = rows.iter().map(|&r| Vector3::from(r)).sum::<Vector3<f64>>() / rows.len() as f64;
        rows.iter().map(|&r| Vector3::from(r) - mean).collect()
    };
    let (a, b) = (centred(a), centred(b));
    let covariance: Matrix3<f64> = a.iter().zip(&b).map(|(a, b)| b * a.transpose()).sum();
    let svd = covariance.svd(true, true);
    let (u, v) = (svd.u.unwrap(), svd.v_t.unwrap());
    let mut proper = Matrix3::identity();
    proper[(2, 2)] = (u * v).determinant().signum();
    let rotation = u * proper * v;
    let squares = a
        .iter()
        .zip(&b)
        .map(|(a, b)| (rotation * a - b).norm_squared());
    (squares.sum::<f64>() / a.len() as f64).sqrt()
}

#[test]
fn distorted_ethanol_relaxes_to_the_minimum_of_xtb() {
    let [distorted, minimum] = &frames("demo-ethanol.extxyz")[..] else {
        panic!("a distorted ethanol and its minimum");
    };
    let minimum = &minimum.system.positions;
    assert!(rmsd(&distorted.system.positions, minimum) > 0.1);
    let potential = demo();
    let rest = vec![[0.0; 3]; distorted.system.len()];
    let mut state = state(&potential, distorted.system.clone(), rest);
    let method = Method::Bfgs {
        max_step_angstrom: 0.2,
    };
    let fmax = |state: &State| {
        let forces = &state.evaluation.as_ref().unwrap().forces;
        forces
            .iter()
            .map(|&f| Vector3::from(f).norm())
            .fold(0.0, f64::max)
    };
    let mut steps = 0;
    while fmax(&state) > 0.01 {
        assert!(
            steps < 300,
            "{} eV/Angstrom after {steps} steps",
            fmax(&state)
        );
        step(&potential, &method, &mut state);
        steps += 1;
    }
    let rmsd = rmsd(&state.system.positions, minimum);
    println!("{rmsd:.4} Angstrom after {steps} steps");
    assert!(rmsd <= 0.05, "{rmsd} Angstrom");
}

#[test]
fn ethanol_keeps_its_bonds_and_its_energy() {
    const STEPS: usize = 4000;
    const TIMESTEP_FS: f64 = 0.5;
    let potential = demo();
    let ethanol = frames("demo-ethanol.extxyz").pop().unwrap().system;
    let atoms = ethanol.len();
    let bonded = |i: usize, j: usize| {
        let hydrogens = [i, j].iter().filter(|&&k| ethanol.numbers[k] == 1).count();
        distance(&ethanol.positions, i, j) < [1.7, 1.3, 0.0][hydrogens]
    };
    let pairs = (0..atoms).flat_map(|j| (0..j).map(move |i| (i, j)));
    let bonds: Vec<(usize, usize)> = pairs.filter(|&(i, j)| bonded(i, j)).collect();
    assert_eq!(bonds.len(), 8);
    // In a minimum half of the kinetic energy becomes potential energy: 600 K become 300 K.
    let mut velocities = maxwell_boltzmann(&ethanol.numbers, 600.0, 7, 0);
    stop_centre_of_mass(&ethanol.numbers, &mut velocities);
    let mut state = state(&potential, ethanol.clone(), velocities);
    let method = Method::VelocityVerlet {
        timestep_fs: TIMESTEP_FS,
    };
    let total = |state: &State| {
        let kinetic = kinetic_energy(&state.system.numbers, &state.velocities);
        1e3 * (state.evaluation.as_ref().unwrap().energy + kinetic) / atoms as f64
    };
    let start = total(&state);
    let mut changes = Vec::with_capacity(STEPS);
    for _ in 0..STEPS {
        step(&potential, &method, &mut state);
        changes.push(total(&state) - start);
        for &(i, j) in &bonds {
            let now = distance(&state.system.positions, i, j);
            let then = distance(&ethanol.positions, i, j);
            assert!(
                (0.7..1.4).contains(&(now / then)),
                "bond {i}-{j}: {now} Angstrom"
            );
        }
    }
    let picoseconds = |k: usize| (k + 1) as f64 * TIMESTEP_FS / 1000.0;
    let n = STEPS as f64;
    let mean_time = (0..STEPS).map(picoseconds).sum::<f64>() / n;
    let mean = changes.iter().sum::<f64>() / n;
    let (mut above, mut below) = (0.0, 0.0);
    for (k, change) in changes.iter().enumerate() {
        above += (picoseconds(k) - mean_time) * (change - mean);
        below += (picoseconds(k) - mean_time).powi(2);
    }
    let drift = above / below;
    let largest = changes.iter().fold(0.0, |a: f64, c| a.max(c.abs()));
    println!("drift {drift:.3} meV/atom/ps, largest change {largest:.2} meV/atom");
    assert!(drift.abs() < 1.0, "{drift} meV/atom/ps");
    assert!(largest < 5.0, "{largest} meV/atom");
}
