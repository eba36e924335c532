//! UMA against fairchem: energies, forces and stress of the golden files, and the network stage by
//! stage. The answers were made by `tools/reference/make_goldens.py` and `make_stages.py`. The
//! modules below test what needs no reference: the physics, reproducibility, and refusals.

mod common;
#[path = "uma/physics.rs"]
mod physics;
#[path = "uma/refusals.rs"]
mod refusals;
#[path = "uma/reproducible.rs"]
mod reproducible;
#[path = "uma/sizes.rs"]
mod sizes;

use common::goldens::{Entry, checkpoint, difference, golden, goldens, json, largest, potential};
use serde::Deserialize;
use std::collections::BTreeMap;
use umaserve::neighbors::NeighborList;
use umaserve::potential::evaluate;
use umaserve::potential::uma::{Precision, UmaPotential};
use umaserve::system::{Cell, Evaluation, System};

const MAX_EDGES: usize = 1_000_000;
const MODELS: [&str; 4] = ["1p1", "1p2", "m", "esen"];

fn answers(potential: &UmaPotential, systems: &[System]) -> Vec<Evaluation> {
    let systems: Vec<&System> = systems.iter().collect();
    evaluate(potential, &systems, MAX_EDGES)
        .into_iter()
        .map(|r| r.unwrap())
        .collect()
}

/// Largest errors over a golden file: energy per atom, forces, stress; each with its scale.
fn errors(model: &str, precision: Precision) -> Vec<(String, f64, f64, f64)> {
    let potential = potential(model, precision);
    let goldens = goldens(model);
    assert!(goldens.len() >= 19);
    let systems: Vec<System> = goldens.iter().map(Entry::system).collect();
    let force_scale = largest(goldens.iter().flat_map(|e| &e.forces));
    let mut out = Vec::new();
    for (entry, answer) in goldens.iter().zip(answers(&potential, &systems)) {
        let atoms = entry.numbers.len() as f64;
        let energy = (answer.energy - entry.energy).abs() / atoms;
        let force = difference(&answer.forces, &entry.forces);
        // fairchem reports a stress for molecules too, the virial in eV; here only a periodic
        // system has one.
        let stress = match (&answer.stress, &entry.stress) {
            (Some(a), Some(b)) => difference(a, b),
            (None, _) => {
                assert!(!entry.pbc.contains(&true), "{}: no stress", entry.name);
                0.0
            }
            (Some(_), None) => panic!("{}: no golden stress", entry.name),
        };
        assert!(force_scale > 1e-4, "the golden forces are not all zero");
        out.push((entry.name.clone(), energy, force, stress));
    }
    out
}

#[test]
fn agrees_with_fairchem_in_double_precision() {
    for model in MODELS {
        let goldens = goldens(model);
        let forces = largest(goldens.iter().flat_map(|e| &e.forces));
        let periodic = goldens.iter().filter(|e| e.pbc.contains(&true));
        let stress = largest(periodic.filter_map(|e| e.stress.as_ref()).flatten());
        for (name, energy, force_error, stress_error) in errors(model, Precision::F64) {
            assert!(
                energy < 1e-9,
                "{model} {name}: energy off by {energy:e} eV/atom"
            );
            assert!(
                force_error < 1e-8 * forces,
                "{model} {name}: forces off by {force_error:e}"
            );
            assert!(
                stress_error < 1e-8 * stress,
                "{model} {name}: stress off by {stress_error:e} of {stress:e}"
            );
        }
    }
}

#[derive(Deserialize)]
struct SingleError {
    energy_per_atom: f64,
    forces: f64,
    stress: f64,
}

/// Structures of at most this many atoms come in copies, each this much larger than the one before, as in
/// `tools/reference/make_goldens.py --copies 16`: the rounding error of one small structure is a single
/// draw from a wide distribution.
const FEW_ATOMS: usize = 5;
const COPIES: u32 = 16;
const GROWTH: f64 = 2e-4;

fn with_copies(entry: &Entry) -> Vec<System> {
    let system = entry.system();
    let copies = match system.positions.len() {
        1..=FEW_ATOMS => COPIES,
        _ => 1,
    };
    let copy = |k| {
        let factor = 1.0 + GROWTH * f64::from(k);
        let larger = |v: &[f64; 3]| v.map(|x| x * factor);
        let mut copy = system.clone();
        copy.positions = system.positions.iter().map(larger).collect();
        copy.cell.vectors = system.cell.vectors.each_ref().map(larger);
        copy
    };
    (0..copies).map(copy).collect()
}

/// fairchem's own errors in single precision on the same structures were collected by
/// `tools/reference/make_f32_error.py`. The largest of each kind is compared, not every structure
/// with its own: it may happen to be zero.
#[test]
fn single_precision_is_at_most_twice_as_far_off_as_fairchems() {
    let reference: BTreeMap<String, BTreeMap<String, SingleError>> =
        json("fairchem-f32-error.json");
    for model in MODELS {
        let entries = goldens(model);
        let theirs = &reference[&format!("nano-{model}")];
        assert!(entries.len() == theirs.len() && entries.len() >= 19);
        let systems: Vec<System> = entries.iter().flat_map(with_copies).collect();
        // The test above compares these with fairchem's.
        let exact = answers(&potential(model, Precision::F64), &systems);
        let ours = answers(&potential(model, Precision::F32), &systems);

        let [mut worst, mut limits] = [[0.0f64; 3]; 2];
        for (system, (ours, exact)) in systems.iter().zip(ours.iter().zip(&exact)) {
            let energy = (ours.energy - exact.energy).abs() / system.positions.len() as f64;
            let forces = difference(&ours.forces, &exact.forces);
            let stress = ours.stress.iter().zip(&exact.stress);
            let stress = stress.map(|(a, b)| difference(a, b)).fold(0.0, f64::max);
            for (worst, error) in worst.iter_mut().zip([energy, forces, stress]) {
                *worst = worst.max(error);
            }
        }
        for entry in &entries {
            let theirs = &theirs[&entry.name];
            // fairchem's stress of a molecule is a virial in eV: only periodic systems compare.
            let periodic = entry.pbc.contains(&true);
            let stress = if periodic { theirs.stress } else { 0.0 };
            for (limit, error) in
                limits
                    .iter_mut()
                    .zip([theirs.energy_per_atom, theirs.forces, stress])
            {
                *limit = limit.max(error);
            }
        }
        for ((what, ours), theirs) in ["energy", "forces", "stress"].iter().zip(worst).zip(limits) {
            println!("{model}: {what} off by {ours:.2e}, fairchem's by {theirs:.2e}");
            assert!(theirs > 0.0, "{model}: no reference for {what}");
            assert!(
                ours <= 2.0 * theirs,
                "{model}: {what} off by {ours:e}, fairchem's by {theirs:e}"
            );
        }
    }
}

#[derive(Deserialize)]
struct Edges {
    source: Vec<u32>,
    target: Vec<u32>,
    vector: Vec<[f64; 3]>,
}

#[derive(Deserialize)]
struct Stages {
    task: String,
    charge: i32,
    spin: i32,
    numbers: Vec<u8>,
    positions: Vec<[f64; 3]>,
    cell: [[f64; 3]; 3],
    pbc: [bool; 3],
    edges: Edges,
    csd: Vec<f64>,
    alpha: Vec<f64>,
    nodes_initial: Vec<Vec<Vec<f64>>>,
    nodes_after_edgewise: Vec<Vec<Vec<Vec<f64>>>>,
    nodes_after_block: Vec<Vec<Vec<Vec<f64>>>>,
    radial: Vec<Vec<Vec<f64>>>,
    radial_edge_degree: Vec<Vec<f64>>,
    final_norm_scalars: Vec<Vec<f64>>,
    node_energies: Vec<f64>,
    normalised_energy: f64,
    gradient: Vec<[f64; 3]>,
}

fn close(what: &str, ours: &[f64], reference: &[f64]) {
    let scale = reference.iter().fold(1e-3, |a: f64, x| a.max(x.abs()));
    assert!(
        ours.len() >= reference.len(),
        "{what}: {} values",
        ours.len()
    );
    for (i, (a, b)) in ours.iter().zip(reference).enumerate() {
        assert!(
            (a - b).abs() < 1e-11 * scale,
            "{what}[{i}]: {a} instead of {b}"
        );
    }
}

#[test]
fn every_stage_agrees_with_the_reference() {
    for model in ["1p1", "1p2", "m"] {
        let stages: Stages = json(&format!("stages-{model}.json"));
        let system = System {
            numbers: stages.numbers,
            positions: stages.positions,
            cell: Cell {
                vectors: stages.cell,
                periodic: stages.pbc,
            },
            charge: stages.charge,
            spin: stages.spin,
            task: stages.task,
        };
        // The reference's edges, in its order within each target.
        let mut order: Vec<usize> = (0..stages.edges.source.len()).collect();
        order.sort_by_key(|&e| stages.edges.target[e]);
        let mut neighbors = NeighborList {
            target_start: vec![0],
            ..NeighborList::default()
        };
        for a in 0..system.len() as u32 {
            let count = stages.edges.target.iter().filter(|&&t| t == a).count() as u32;
            neighbors
                .target_start
                .push(neighbors.target_start[a as usize] + count);
        }
        neighbors.source = order.iter().map(|&e| stages.edges.source[e]).collect();
        neighbors.vector = order.iter().map(|&e| stages.edges.vector[e]).collect();
        neighbors.reverse = vec![u32::MAX; order.len()];

        let checkpoint = checkpoint(model);
        let (output, conditioning, trace) = UmaPotential::trace(&checkpoint, &system, &neighbors);
        let buffer = |name: &str| {
            let found = trace.buffers.iter().find(|(n, _)| n == name);
            found
                .unwrap_or_else(|| panic!("no buffer {name}"))
                .1
                .clone()
        };
        let flat =
            |x: &[Vec<Vec<f64>>]| -> Vec<f64> { x.iter().flatten().flatten().copied().collect() };
        close("csd", &conditioning.vector, &stages.csd);
        close("alpha", &conditioning.experts, &stages.alpha);
        close(
            "edge degree",
            &buffer("edge_degree"),
            &flat(&stages.nodes_initial),
        );
        if order.windows(2).all(|w| w[0] < w[1]) {
            let radial: Vec<f64> = stages.radial_edge_degree.concat();
            close("edge-degree radial", &buffer("radial"), &radial);
            for (i, radial) in stages.radial.iter().enumerate() {
                close(
                    "radial",
                    &buffer(&format!("block.{i}.radial")),
                    &radial.concat(),
                );
            }
        }
        for (i, x) in stages.nodes_after_edgewise.iter().enumerate() {
            close(
                "after edges",
                &buffer(&format!("block.{i}.after_edges")),
                &flat(x),
            );
        }
        for (i, x) in stages.nodes_after_block.iter().enumerate() {
            let names = [
                format!("block.{i}.balanced"),
                format!("block.{i}.after_atoms"),
            ];
            let last = names
                .iter()
                .find(|n| trace.buffers.iter().any(|(b, _)| b == *n))
                .unwrap();
            close(last, &buffer(last), &flat(x));
        }
        let rows = buffer("head.norm");
        let width = rows.len() / system.len();
        let scalars: Vec<f64> = rows
            .chunks(width)
            .flat_map(|r| r[..stages.final_norm_scalars[0].len()].to_vec())
            .collect();
        close("final norm", &scalars, &stages.final_norm_scalars.concat());
        close(
            "node energies",
            &buffer("head.atom_energy"),
            &stages.node_energies,
        );
        close("energy", &[output.energy], &[stages.normalised_energy]);
        let gradient: Vec<f64> = output.gradient.concat();
        let reference: Vec<f64> = order.iter().flat_map(|&e| stages.gradient[e]).collect();
        close("gradient", &gradient, &reference);
    }
}
