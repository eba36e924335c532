//! The search for neighbours on the device: what it leaves in device memory is, byte for byte, what
//! the host would have put there from its own list. Over the kernels compiled for the host (feature
//! `host-kernels`), and on a GPU where there is one.

use super::driver::{DriverDevice, ONE_TEST_AT_A_TIME};
#[cfg(feature = "host-kernels")]
use super::host::{HostDevice, ThreadOrder};
use super::*;
use crate::backend::Conditioning;
use crate::backend::programs::{
    CUTOFF, Net, RandomWeights, Sizes, case, signed, sizes, two_blocks,
};
use crate::neighbors::{NeighborList, neighbor_list};
use crate::system::{Cell, System};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

const SMALL: Sizes = sizes(2, 2, 4, 4, 4);

/// The least network: on many edges, where the search alone is looked at.
const LEAST: Sizes = sizes(1, 1, 4, 4, 4);

/// What there is to test on; a GPU is not used by another test meanwhile.
fn devices() -> (impl Sized, Vec<Arc<dyn Device>>) {
    let alone = ONE_TEST_AT_A_TIME.lock();
    let mut devices: Vec<Arc<dyn Device>> = Vec::new();
    #[cfg(feature = "host-kernels")]
    devices.extend(
        [ThreadOrder::Ascending, ThreadOrder::Shuffled(5)]
            .map(|order| -> Arc<dyn Device> { Arc::new(HostDevice::new(order)) }),
    );
    if let Ok(device) = DriverDevice::open(0) {
        devices.push(Arc::new(device));
    }
    (alone, devices)
}

/// Every operation of a model.
fn backend(device: &Arc<dyn Device>, options: Options) -> CudaBackend {
    backend_of(two_blocks(SMALL, true), device, options)
}

/// A search, and as little else as there can be.
fn searcher(device: &Arc<dyn Device>, options: Options) -> CudaBackend {
    let mut net = Net::new(LEAST);
    let x = net.start();
    backend_of(net.end(x, LEAST.channels), device, options)
}

fn backend_of(program: Program, device: &Arc<dyn Device>, options: Options) -> CudaBackend {
    let program = Arc::new(program);
    let weights = Arc::new(RandomWeights::of(&program, 3));
    CudaBackend::new(program, weights, device.clone(), options).unwrap()
}

fn conditioning(system: &System) -> Arc<Conditioning> {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let one = case(&mut rng, SMALL.channels, &[0], 0);
    Arc::new(Conditioning {
        key: format!("{:?} {}", system.numbers, system.cell.is_periodic()),
        ..(*one.conditioning).clone()
    })
}

fn of(system: &System, max_neighbors: usize) -> PositionedSystem<'_> {
    PositionedSystem {
        system,
        conditioning: conditioning(system),
        max_neighbors,
        max_edges: 1 << 20,
    }
}

fn random_positions(seed: u64, atoms: usize, spread: f64) -> Vec<[f64; 3]> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let position = |_| [0; 3].map(|_| 0.5 * spread * signed(&mut rng));
    (0..atoms).map(position).collect()
}

fn system(positions: Vec<[f64; 3]>, vectors: [[f64; 3]; 3], periodic: [bool; 3]) -> System {
    System {
        numbers: (0..positions.len()).map(|i| 1 + (i % 8) as u8).collect(),
        positions,
        cell: Cell { vectors, periodic },
        ..System::default()
    }
}

const NO_CELL: [[f64; 3]; 3] = [[0.0; 3]; 3];
const TRICLINIC: [[f64; 3]; 3] = [[4.0, 0.1, 0.2], [1.5, 3.0, -0.3], [-0.7, 0.4, 5.0]];

fn cube(a: f64) -> [[f64; 3]; 3] {
    [[a, 0.0, 0.0], [0.0, a, 0.0], [0.0, 0.0, a]]
}

/// Face-centred cubic, one atom: its neighbours are images of itself.
fn fcc(a: f64) -> [[f64; 3]; 3] {
    let h = a / 2.0;
    [[0.0, h, h], [h, 0.0, h], [h, h, 0.0]]
}

/// Every kind of system that the search has to tell apart.
fn systems() -> Vec<System> {
    let all = [true; 3];
    let mut systems = vec![
        // Isolated: alone, a pair, a cluster below and above the size that the CPU does pair by
        // pair, and atoms that do not see each other.
        system(vec![[1.0, -2.0, 3.0]], NO_CELL, [false; 3]),
        system(vec![[0.0; 3], [0.0, 1.5, 0.0]], NO_CELL, [false; 3]),
        system(random_positions(1, 33, 9.0), NO_CELL, [false; 3]),
        system(random_positions(2, 90, 14.0), NO_CELL, [false; 3]),
        system(vec![[0.0; 3], [40.0, 0.0, 0.0]], NO_CELL, [false; 3]),
        // Full of images.
        system(vec![[0.0; 3]], cube(2.5), all),
        system(vec![[0.3, 0.2, 9.1]], fcc(3.61), all),
        system(
            vec![[0.0; 3], [1.0, 1.0, 1.2]],
            [[1.9, 0.0, 0.0], [0.0, 8.0, 0.0], [0.0, 0.0, 3.0]],
            all,
        ),
        // A cell much more skewed than it need be.
        system(
            random_positions(3, 6, 5.0),
            [[4.0, 0.0, 0.0], [31.0, 4.0, 0.0], [-17.0, 22.0, 5.0]],
            all,
        ),
        // Larger than the cutoff, with atoms far outside of the cell.
        system(
            random_positions(4, 120, 300.0),
            TRICLINIC.map(|row| row.map(|x| 3.5 * x)),
            all,
        ),
        // Left-handed.
        system(
            random_positions(5, 12, 30.0),
            [[0.0, 6.0, 0.5], [7.0, 0.0, 0.0], [0.0, 0.3, 5.5]],
            all,
        ),
        // An atom beyond both faces, and one on the corner.
        system(
            vec![[-1e-12, 0.0, 0.0], [2.5, 5.0, 2.6], [1e4, -2e4, 7.0]],
            cube(5.0),
            all,
        ),
    ];
    // Every choice of periodic directions, with and without the vectors that are not needed.
    for mask in 1..7 {
        let periodic = [0, 1, 2].map(|k| mask >> k & 1 == 1);
        systems.push(system(
            random_positions(10 + mask, 9, 12.0),
            TRICLINIC,
            periodic,
        ));
        let vectors = std::array::from_fn(|k| match periodic[k] {
            true => TRICLINIC[k].map(|x| 2.0 * x),
            false => [0.0; 3],
        });
        systems.push(system(
            random_positions(20 + mask, 70, 25.0),
            vectors,
            periodic,
        ));
    }
    systems
}

/// Those with few edges, for whole networks.
fn small_systems() -> Vec<System> {
    let mut systems = systems();
    systems.retain(|system| list(system).len() < 250);
    systems
}

fn list(system: &System) -> NeighborList {
    neighbor_list(system, CUTOFF, usize::MAX, 1 << 20).unwrap()
}

/// The stretch of a pass that the host would have filled, and what the search left there.
fn assert_as_from_the_host(backend: &CudaBackend, batch: &[&System]) {
    let state = backend.state();
    let state = state.as_ref().unwrap();
    let pass = state.passes.iter().max_by_key(|p| p.last_use).unwrap();
    let lists: Vec<NeighborList> = batch.iter().map(|s| list(s)).collect();
    let structures: Vec<Structure> = batch
        .iter()
        .zip(&lists)
        .map(|(system, neighbors)| Structure {
            numbers: &system.numbers,
            neighbors,
            conditioning: conditioning(system),
        })
        .collect();
    let expected = inputs::edges(pass, &structures).unwrap();
    let mut found = vec![0u8; expected.bytes.len()];
    let device = &*backend.device;
    device
        .download_bytes(pass.at(expected.at), &mut found)
        .unwrap();
    let (atoms, edges) = (
        batch.iter().map(|s| s.len()).sum::<usize>(),
        lists.iter().map(|l| l.len()).sum::<usize>(),
    );
    let p = &pass.places;
    let same = |what: &str, at: usize, bytes: usize| {
        let range = at - expected.at..at - expected.at + bytes;
        assert_eq!(found[range.clone()], expected.bytes[range], "{what}");
    };
    same("target_start", p.target_start, 4 * (atoms + 1));
    same("source_start", p.source_start, 4 * (atoms + 1));
    same("source", p.source, 4 * edges);
    same("target", p.target, 4 * edges);
    same("by_source", p.by_source, 4 * edges);
    same("vector", p.vector, 24 * edges);
    let chunks = size_of::<params::Chunk>() * pass.chunking.count;
    same("chunks", p.chunks, chunks);
    let chunk_bytes = &expected.bytes[p.chunks - expected.at..][..chunks];
    let chunks: Vec<params::Chunk> = bytemuck::pod_collect_to_vec(chunk_bytes);
    for (i, chunk) in chunks.iter().enumerate() {
        let tile = size_of::<params::Tile>();
        let at = p.edge_tiles + i * pass.chunking.tiles * tile;
        same("tiles", at, tile * chunk.edge_tiles as usize);
    }
    assert_eq!(chunks.last().unwrap().edge_end as usize, edges);
}

fn forces_of(
    backend: &CudaBackend,
    batch: &[&System],
) -> Vec<Option<Result<NetworkForces, NeighborError>>> {
    let batch: Vec<PositionedSystem> = batch.iter().map(|s| of(s, 1000)).collect();
    backend.run_positions(&batch).unwrap()
}

fn options(chunk_edges: usize) -> Options {
    Options {
        chunk_edges,
        ..Options::new(Precision::F32, 8 << 30)
    }
}

#[test]
fn the_device_finds_the_edges_of_the_cpu_bit_for_bit() {
    let (_alone, devices) = devices();
    for (i, (device, chunk_edges)) in devices.iter().zip([16 * 1024, 500, 500]).enumerate() {
        let backend = searcher(device, options(chunk_edges));
        let systems = systems();
        // All at once, again as a captured graph, and again in another order; which threads of a block
        // come first changes nothing of that.
        let forward: Vec<&System> = systems.iter().collect();
        let backward: Vec<&System> = systems.iter().rev().collect();
        let batches = [&forward, &forward, &backward];
        for batch in batches.into_iter().skip(if i == 1 { 2 } else { 0 }) {
            assert!(forces_of(&backend, batch).iter().all(|a| a.is_some()));
            assert_as_from_the_host(&backend, batch);
        }
    }
}

/// Forces and virial from the gradients of a list.
fn assembled(
    system: &System,
    list: &NeighborList,
    gradient: &[[f64; 3]],
) -> (Vec<[f64; 3]>, [f64; 9]) {
    let mut forces = vec![[0.0; 3]; system.len()];
    let mut virial = [0.0; 9];
    for target in 0..system.len() {
        for edge in list.edges_of(target) {
            for k in 0..3 {
                forces[target][k] += gradient[edge][k];
                forces[list.source[edge] as usize][k] -= gradient[edge][k];
                for j in 0..3 {
                    virial[3 * k + j] += gradient[edge][k] * list.vector[edge][j];
                }
            }
        }
    }
    (forces, virial)
}

#[test]
fn a_search_on_the_device_gives_the_forces_of_a_list_and_the_same_bits_alone() {
    let (_alone, devices) = devices();
    for device in devices.iter().take(1) {
        forces_are_those_of_a_list(&searcher(device, options(2048)), systems(), 3);
    }
    for device in &devices {
        forces_are_those_of_a_list(&backend(device, options(256)), small_systems(), 4);
    }
}

/// Every so-and-so-many-th system is also evaluated alone.
fn forces_are_those_of_a_list(backend: &CudaBackend, systems: Vec<System>, every: usize) {
    let batch: Vec<&System> = systems.iter().collect();
    let found = forces_of(backend, &batch);
    let lists: Vec<NeighborList> = systems.iter().map(list).collect();
    let structures = systems.iter().zip(&lists).map(|(system, list)| Structure {
        numbers: &system.numbers,
        neighbors: list,
        conditioning: conditioning(system),
    });
    let expected = backend.run(&structures.collect::<Vec<_>>()).unwrap();
    for (i, system) in systems.iter().enumerate() {
        let found = found[i].as_ref().unwrap().as_ref().unwrap();
        let (list, expected) = (&lists[i], &expected[i]);
        assert_eq!(found.edges, list.len());
        // The same edges and kernels: only the sums in f64 may differ in their order.
        let close = |a: f64, b: f64, scale: f64| (a - b).abs() <= 1e-12 * scale.max(1.0);
        assert!(close(found.energy, expected.energy, expected.energy.abs()));
        let (forces, virial) = assembled(system, list, &expected.gradient);
        let largest = forces.iter().flatten().fold(0.0f64, |m, x| m.max(x.abs()));
        let pairs = found.forces.iter().flatten().zip(forces.iter().flatten());
        for (a, b) in pairs {
            assert!(close(*a, *b, 10.0 * largest), "{a} {b}");
        }
        let largest = virial.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        for i in 0..3 {
            for j in 0..3 {
                let symmetric = 0.5 * (virial[3 * i + j] + virial[3 * j + i]);
                assert!(close(found.virial[i][j], symmetric, 10.0 * largest));
            }
        }
        if i.is_multiple_of(every) {
            let alone = forces_of(backend, &[system]).remove(0);
            assert_eq!(alone.unwrap().unwrap(), *found, "alone");
        }
    }
}

/// What only the emulated device tells: launches, graphs, memory.
#[cfg(feature = "host-kernels")]
mod on_the_host {
    use super::*;
    use crate::backend::programs::run;

    fn host() -> (Arc<HostDevice>, Arc<dyn Device>) {
        let device = Arc::new(HostDevice::default());
        (device.clone(), device)
    }

    #[test]
    fn a_batch_with_more_edges_than_guessed_is_searched_again_with_room_for_them() {
        let (counting, device) = host();
        let backend = searcher(&device, options(16 * 1024));
        // 248 neighbours of one atom, where 72 are guessed.
        let dense = system(vec![[0.0; 3]], cube(1.28), [true; 3]);
        let list = list(&dense);
        assert!(list.len() > 200, "{}", list.len());
        let before = counting.launches();
        // Several, so that the capacity's least size is passed.
        let batch = [&dense; 20];
        let found = forces_of(&backend, &batch);
        let twice = counting.launches() - before;
        assert_as_from_the_host(&backend, &batch);
        let before = counting.launches();
        assert_eq!(forces_of(&backend, &batch), found);
        let once = counting.launches() - before;
        // One kernel to prepare each of the passes, the guessed one and the larger.
        let prepared = 2;
        assert_eq!(
            twice,
            2 * once + mixing(&backend) + prepared,
            "the second time it is known"
        );
        assert_eq!(
            found[0].as_ref().unwrap().as_ref().unwrap().edges,
            list.len()
        );
    }

    /// Launches that mix the weights of one composition.
    fn mixing(backend: &CudaBackend) -> u64 {
        use crate::nn::WeightKind;
        let weights = backend.program.weights.iter();
        weights.filter(|w| w.kind == WeightKind::Mixed).count() as u64
    }

    #[test]
    fn where_an_atom_has_more_neighbours_than_are_kept_the_list_comes_from_the_host() {
        let (_, device) = host();
        let backend = backend(&device, options(16 * 1024));
        let dense = system(vec![[0.0; 3]], cube(1.2), [true; 3]);
        let usual = system(random_positions(2, 20, 8.0), NO_CELL, [false; 3]);
        assert!(list(&dense).len() > 300);
        let batch = [of(&usual, 300), of(&dense, 300), of(&usual, 300)];
        let answers = backend.run_positions(&batch).unwrap();
        // Its neighbours in the batch go on as they would alone.
        let alone = backend.run_positions(&batch[..1]).unwrap();
        assert!(alone[0].is_some());
        assert_eq!(answers, [alone[0].clone(), None, alone[0].clone()]);
    }

    #[test]
    fn a_batch_that_does_not_fit_is_done_in_parts_with_the_same_bits() {
        let (_, device) = host();
        let roomy = backend(&device, options(16 * 1024));
        let systems = small_systems();
        let batch: Vec<&System> = systems.iter().collect();
        let expected = forces_of(&roomy, &batch);
        let edges: usize = systems.iter().map(|s| list(s).len()).sum();
        let atoms: usize = systems.iter().map(|s| s.len()).sum();
        let tight = backend(
            &device,
            Options {
                memory_bytes: roomy.memory(atoms, edges) / 2,
                ..options(16 * 1024)
            },
        );
        assert_eq!(forces_of(&tight, &batch), expected);
        let none = backend(
            &device,
            Options {
                memory_bytes: 1 << 12,
                ..options(16 * 1024)
            },
        );
        assert!(forces_of(&none, &batch).iter().all(|a| a.is_none()));
    }

    #[test]
    fn what_cannot_be_searched_is_refused_or_left_to_the_host_for_itself_alone() {
        let (_, device) = host();
        let backend = backend(&device, options(16 * 1024));
        let usual = system(vec![[0.0; 3], [0.0, 1.5, 0.0]], NO_CELL, [false; 3]);
        // Scattered over more bins than can be listed.
        let scattered = system(
            vec![[0.0; 3], [1.0, 0.0, 0.0], [4e5, 4e5, 4e5]],
            NO_CELL,
            [false; 3],
        );
        let flat = system(vec![[0.0; 3]], [[1.0, 0.0, 0.0]; 3], [true; 3]);
        let many = system(vec![[0.0; 3]], cube(1.5), [true; 3]);
        let batch = [
            of(&usual, 300),
            of(&scattered, 300),
            of(&flat, 300),
            PositionedSystem {
                max_edges: 100,
                ..of(&many, 300)
            },
            of(&usual, 300),
        ];
        let answers = backend.run_positions(&batch).unwrap();
        assert!(matches!(answers[0], Some(Ok(_))));
        assert_eq!(answers[0], answers[4]);
        assert_eq!(answers[1], None);
        assert!(matches!(answers[2], Some(Err(NeighborError::FlatCell(_)))));
        assert!(matches!(
            answers[3],
            Some(Err(NeighborError::TooManyEdges { limit: 100, .. }))
        ));
        assert!(backend.run_positions(&[]).unwrap().is_empty());
    }

    #[test]
    fn an_evaluation_is_one_graph_and_nothing_waits_inside() {
        let (counting, device) = host();
        let backend = backend(&device, options(256));
        let systems = small_systems();
        let batch: Vec<&System> = systems.iter().collect();
        // As it is, then captured; an allocation, a download or waiting while capturing is an error of
        // the device.
        for _ in 0..2 {
            forces_of(&backend, &batch);
        }
        let replays = counting.graph_launches();
        forces_of(&backend, &batch);
        assert_eq!(counting.graph_launches(), replays + 1);
        // A drifting number of edges keeps its graph.
        let mut moved = systems.clone();
        for x in moved
            .iter_mut()
            .flat_map(|s| s.positions.iter_mut())
            .flatten()
        {
            *x *= 1.001;
        }
        let moved: Vec<&System> = moved.iter().collect();
        forces_of(&backend, &moved);
        assert_eq!(counting.graph_launches(), replays + 2);
        assert_as_from_the_host(&backend, &moved);
    }

    #[test]
    fn sizes_that_come_again_keep_a_graph_each() {
        let (counting, device) = host();
        let backend = backend(&device, options(2048));
        let systems = small_systems();
        let sizes: [Vec<&System>; 3] = [1, 8, systems.len()].map(|n| systems[..n].iter().collect());
        let evaluate_all = || sizes.each_ref().map(|batch| forces_of(&backend, batch));
        let first = evaluate_all();
        // How many edges there are is known now; then as they are, then captured.
        evaluate_all();
        evaluate_all();
        let (graphs, replays) = (counting.graphs(), counting.graph_launches());
        assert_eq!(graphs, sizes.len());
        for run in 1..=3 {
            assert!(evaluate_all() == first, "other bits in run {run}");
            let launched = counting.graph_launches() - replays;
            assert_eq!(launched, (run * sizes.len()) as u64);
        }
        assert_eq!(counting.graphs(), graphs);
    }

    #[test]
    fn mixed_weights_take_a_bounded_amount_of_memory_and_come_back_with_the_same_bits() {
        let mut systems = small_systems();
        let key = |system: &System| conditioning(system).key.clone();
        systems.sort_by_key(key);
        systems.dedup_by_key(|system| key(system));
        // Twice, so that the number of edges is known and no larger pass is made later.
        let one_by_one = |backend: &CudaBackend| -> Vec<_> {
            let answers = || systems.iter().map(|s| forces_of(backend, &[s])).collect();
            let first: Vec<_> = answers();
            assert!(first == answers());
            first
        };
        let (_, device) = host();
        let ample = backend(&device, options(2048));
        let expected = one_by_one(&ample);
        let of_one = ample.conditioning_memory();
        let all = device.memory().unwrap().allocated;
        drop(ample);
        let two = Options {
            mixed_bytes: 2 * of_one,
            ..options(2048)
        };
        let small = backend(&device, two);
        assert!(one_by_one(&small) == expected);
        let left_out = all - device.memory().unwrap().allocated;
        assert_eq!(left_out, (systems.len() - 2) * of_one);
        // A batch of more than that is evaluated all the same.
        let batch: Vec<&System> = systems.iter().collect();
        let together = forces_of(&small, &batch);
        assert!(together.into_iter().eq(expected.into_iter().flatten()));
    }

    #[test]
    fn the_memory_of_a_backend_is_given_back() {
        let (counting, device) = host();
        let allocated = || device.memory().unwrap().allocated;
        for _ in 0..2 {
            let backend = backend(&device, options(2048));
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let cases = [0, 1].map(|task| case(&mut rng, SMALL.channels, &[3, 2, 4], task));
            for _ in 0..3 {
                run(&backend, &cases);
            }
            assert!(allocated() > 0);
            drop(backend);
            assert_eq!(allocated(), 0);
            assert_eq!(counting.graphs(), 0);
        }
    }
}
