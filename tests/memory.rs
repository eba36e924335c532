//! The memory that the network says it needs, on which refusals and the cutting of batches rest,
//! against what is allocated. A file of its own: the counters are those of the process.

use std::alloc::{GlobalAlloc, Layout, System as SystemAllocator};
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering};
use umaserve::backend::cpu::CpuBackend;
use umaserve::backend::{Backend, Structure};
use umaserve::neighbors::neighbor_list;
use umaserve::potential::uma::conditioning::Conditioner;
use umaserve::potential::uma::{Checkpoint, network};
use umaserve::system::{Cell, System};

struct Counting;

static LIVE: AtomicIsize = AtomicIsize::new(0);
static PEAK: AtomicIsize = AtomicIsize::new(0);

fn count(bytes: isize) {
    let live = LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(live, Ordering::Relaxed);
}

// SAFETY: every call goes unchanged to the system's allocator; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are passed on.
        unsafe { SystemAllocator.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promises are passed on.
        unsafe { SystemAllocator.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Iron, simple cubic with 2.5 Angstrom, `n` cubed atoms.
fn iron(n: usize) -> System {
    let side = 2.5 * n as f64;
    let mut positions = Vec::new();
    for i in 0..n * n * n {
        let cell = [i / (n * n), i / n % n, i % n];
        let wobble = 0.1 * (i as f64).sin();
        positions.push(cell.map(|x| 2.5 * x as f64 + wobble));
    }
    System {
        numbers: vec![26; positions.len()],
        positions,
        cell: Cell {
            vectors: [[side, 0.0, 0.0], [0.0, side, 0.0], [0.0, 0.0, side]],
            periodic: [true; 3],
        },
        task: "omat".into(),
        ..System::default()
    }
}

fn check<B: Backend>(what: &str, checkpoint: &Arc<Checkpoint>, make: impl Fn(usize) -> B) {
    let config = &checkpoint.config;
    let system = iron(5);
    let list = neighbor_list(&system, config.cutoff, config.max_neighbors, 1_000_000).unwrap();
    let structure = Structure {
        numbers: &system.numbers,
        neighbors: &list,
        conditioning: Conditioner::new(checkpoint).conditioning(&system),
    };
    for keep in [usize::MAX, 0] {
        let backend = make(keep);
        // Weights are mixed, and the memory of tiles is taken, once and for all.
        let small = iron(2);
        let few = neighbor_list(&small, config.cutoff, config.max_neighbors, 1_000_000).unwrap();
        backend
            .run(&[Structure {
                numbers: &small.numbers,
                neighbors: &few,
                conditioning: structure.conditioning.clone(),
            }])
            .unwrap();
        let before = LIVE.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        let outputs = backend.run(std::slice::from_ref(&structure)).unwrap();
        assert!(outputs[0].energy.is_finite());
        let peak = (PEAK.load(Ordering::Relaxed) - before) as f64;
        let said = backend.memory(system.len(), list.len()) as f64;
        println!("{what}, keep {keep}: {peak} bytes used, {said} announced");
        // Beside what grows with the system there are the buffers of one tile.
        let tiles = 4.0 * 1024.0 * 1024.0;
        assert!(
            0.5 * said < peak && peak < said + tiles,
            "{what}, keep {keep}: {peak} bytes used, {said} announced"
        );

        // Another charge asks for another set of mixed weights, and they stay.
        let charged = System { charge: 1, ..small };
        let before = LIVE.load(Ordering::Relaxed);
        backend
            .run(&[Structure {
                numbers: &charged.numbers,
                neighbors: &few,
                conditioning: Conditioner::new(checkpoint).conditioning(&charged),
            }])
            .unwrap();
        let held = (LIVE.load(Ordering::Relaxed) - before) as f64;
        let said = backend.conditioning_memory() as f64;
        assert!(
            0.25 * said < held && held < said + 65536.0,
            "{what}: {held} bytes of mixed weights, at most {said} announced"
        );
    }
}

#[test]
fn memory_is_what_was_announced() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/nano-");
    // One thread: with more, how many tiles' buffers there are depends on who is scheduled when.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    pool.unwrap().install(|| {
        for model in ["1p2", "m"] {
            let checkpoint = Arc::new(Checkpoint::open(format!("{path}{model}.pt")).unwrap());
            let program = Arc::new(network::program(&checkpoint.config));
            check(&format!("{model} f32"), &checkpoint, |keep| {
                CpuBackend::<f32>::new(program.clone(), checkpoint.clone(), keep)
            });
            check(&format!("{model} f64"), &checkpoint, |keep| {
                CpuBackend::<f64>::new(program.clone(), checkpoint.clone(), keep)
            });
        }
    });
}
