//! The answer for a structure is the same bit for bit whatever surrounds it.

use super::{MAX_EDGES, MODELS, checkpoint, golden, potential};
use std::sync::Arc;
use umaserve::backend::cpu::CpuBackend;
use umaserve::backend::{Backend, NetworkOutput, Structure};
use umaserve::neighbors::{NeighborList, neighbor_list};
use umaserve::potential::uma::conditioning::Conditioner;
use umaserve::potential::uma::{Checkpoint, Precision, network};
use umaserve::potential::{Potential, evaluate};
use umaserve::system::{Evaluation, System};

/// Few atoms and many, few edges and more than several tiles, five tasks, charges and spins; two
/// share composition, charge, spin and task, and so the mixed weights.
fn systems() -> Vec<System> {
    let mut systems: Vec<System> = [
        "ethanol",
        "copper_rattled",
        "ammonium",
        "methyl_radical",
        "two_far_atoms",
        "graphene_2d",
        "zinc_formate",
        "silicon_triclinic",
    ]
    .map(golden)
    .into();
    let mut other = systems[7].clone();
    other.positions[3][1] += 0.05;
    systems.push(other);
    // More elements than the CPU's tables of radial networks are made for.
    let elements = [1, 6, 7, 8, 9, 15, 16, 17, 35];
    systems.push(System {
        numbers: elements.to_vec(),
        positions: (0..elements.len())
            .map(|i| [1.7 * i as f64, (2.0 * i as f64).sin(), 0.1 * i as f64])
            .collect(),
        task: "omol".into(),
        spin: 1,
        ..System::default()
    });
    systems
}

fn lists(systems: &[System], checkpoint: &Checkpoint) -> Vec<NeighborList> {
    let (cutoff, cap) = (checkpoint.config.cutoff, checkpoint.config.max_neighbors);
    systems
        .iter()
        .map(|s| neighbor_list(s, cutoff, cap, MAX_EDGES).unwrap())
        .collect()
}

/// Every value by its bits: 0.0 and -0.0 differ, and NaN would be equal to itself.
fn bits(output: &NetworkOutput) -> Vec<u64> {
    let gradient = output.gradient.iter().flatten().map(|x| x.to_bits());
    std::iter::once(output.energy.to_bits())
        .chain(gradient)
        .collect()
}

fn check<B: Backend>(model: &str, what: &str, make: impl Fn(usize) -> B) {
    let systems = systems();
    let checkpoint = checkpoint(model);
    let lists = lists(&systems, &checkpoint);
    assert!(lists[1].len() > 2000 && lists[7].len() > 400);
    let conditioner = Conditioner::new(&checkpoint);
    let structures: Vec<Structure> = systems
        .iter()
        .zip(&lists)
        .map(|(system, neighbors)| Structure {
            numbers: &system.numbers,
            neighbors,
            conditioning: conditioner.conditioning(system),
        })
        .collect();
    let on = |threads: usize, work: &(dyn Fn() -> Vec<NetworkOutput> + Sync)| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.unwrap().install(work)
    };
    let backend = make(usize::MAX);
    let alone: Vec<Vec<u64>> = structures
        .iter()
        .map(|s| bits(&on(1, &|| backend.run(std::slice::from_ref(s)).unwrap())[0]))
        .collect();
    let same = |how: &str, order: &[usize], outputs: Vec<NetworkOutput>| {
        assert_eq!(outputs.len(), order.len());
        for (&i, output) in order.iter().zip(&outputs) {
            assert!(
                bits(output) == alone[i],
                "{model} {what}: structure {i} differs {how}"
            );
        }
    };
    let pick = |order: &[usize]| -> Vec<Structure> {
        order.iter().map(|&i| structures[i].clone()).collect()
    };

    let forwards: Vec<usize> = (0..structures.len()).collect();
    let mixed = [7, 3, 3, 0, 8, 5, 4, 9, 7, 2, 6];
    for threads in [1, 2, 5] {
        let outputs = on(threads, &|| backend.run(&pick(&forwards)).unwrap());
        same(
            &format!("in a batch on {threads} threads"),
            &forwards,
            outputs,
        );
    }
    same(
        "in another order",
        &mixed,
        on(2, &|| backend.run(&pick(&mixed)).unwrap()),
    );
    same(
        "alone on 5 threads",
        &[7],
        on(5, &|| backend.run(&pick(&[7])).unwrap()),
    );
    same(
        "in a smaller batch",
        &[4, 2],
        backend.run(&pick(&[4, 2])).unwrap(),
    );

    // A backend that keeps nothing for the backward pass.
    let recomputing = make(0);
    let outputs = on(5, &|| recomputing.run(&pick(&forwards)).unwrap());
    same("when edges are computed again", &forwards, outputs);
    let outputs = on(1, &|| recomputing.run(&pick(&mixed)).unwrap());
    same("computed again in another order", &mixed, outputs);
    same(
        "computed again, alone",
        &[7],
        recomputing.run(&pick(&[7])).unwrap(),
    );
}

#[test]
fn same_bits_in_double_precision() {
    for model in MODELS {
        let checkpoint = checkpoint(model);
        let program = Arc::new(network::program(&checkpoint.config));
        check(model, "f64", |keep| {
            CpuBackend::<f64>::new(program.clone(), checkpoint.clone(), keep)
        });
    }
}

#[test]
fn same_bits_in_single_precision() {
    for model in MODELS {
        let checkpoint = checkpoint(model);
        let program = Arc::new(network::program(&checkpoint.config));
        check(model, "f32", |keep| {
            CpuBackend::<f32>::new(program.clone(), checkpoint.clone(), keep)
        });
    }
}

/// Several callers at once share the backend's memory and caches.
#[test]
fn callers_at_the_same_time_do_not_disturb_each_other() {
    let potential = potential("1p2", Precision::F32);
    let systems = systems();
    let one = |system: &System| -> Evaluation {
        evaluate(&potential as &dyn Potential, &[system], MAX_EDGES)
            .remove(0)
            .unwrap()
    };
    let alone: Vec<Evaluation> = systems.iter().map(one).collect();
    std::thread::scope(|scope| {
        for caller in 0..4 {
            let (systems, alone, one) = (&systems, &alone, &one);
            scope.spawn(move || {
                for round in 0..2 * systems.len() {
                    let i = (round + caller * 2) % systems.len();
                    assert_eq!(one(&systems[i]), alone[i], "caller {caller}");
                }
            });
        }
    });
}
