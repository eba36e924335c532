//! The CUDA kernels on the emulated device: the machine that runs them keeps CUDA's rules and
//! notices broken ones.
#![cfg(feature = "host-kernels")]

use umaserve::backend::cuda::device::{Device, Kernel, LaunchSize};
use umaserve::backend::cuda::error::CudaError;
use umaserve::backend::cuda::host::{HostDevice, ThreadOrder, kernels, layouts};
use umaserve::backend::cuda::params::{self, FillParams};

fn fill(device: &dyn Device, words: usize, size: LaunchSize) -> Result<Vec<u32>, CudaError> {
    let destination = device.alloc(4 * words)?;
    let params = FillParams {
        destination,
        count: words as u64,
        value: 7,
        pad: 0,
    };
    device.launch(Kernel("fill"), size, &params)?;
    let values = device.download(destination, words);
    device.free(destination)?;
    values
}

#[test]
fn fill_reaches_every_word() {
    for order in [ThreadOrder::Ascending, ThreadOrder::Shuffled(5)] {
        let device = HostDevice::new(order);
        for (words, blocks, threads) in [(1, 1, 1), (1000, 3, 96), (100_001, 64, 256)] {
            let values = fill(&device, words, LaunchSize::new(blocks, threads)).unwrap();
            assert_eq!(values, vec![7; words]);
        }
        let memory = device.memory().unwrap();
        assert_eq!((memory.allocated, memory.peak), (0, 400_004));
    }
}

#[test]
fn structures_are_laid_out_alike_in_rust_and_cpp() {
    let cpp = layouts();
    let rust = params::layouts();
    let name = |structure: &str, field: &str| format!("{structure}::{field}");
    let rust_names: Vec<_> = rust.iter().map(|f| name(f.structure, f.field)).collect();
    let cpp_names: Vec<_> = cpp.iter().map(|f| name(&f.structure, &f.field)).collect();
    let missing: Vec<_> = cpp_names
        .iter()
        .filter(|n| !rust_names.contains(n))
        .collect();
    assert!(missing.is_empty(), "not in params.rs: {missing:?}");
    let missing: Vec<_> = rust_names
        .iter()
        .filter(|n| !cpp_names.contains(n))
        .collect();
    assert!(missing.is_empty(), "not in cuda/*.h: {missing:?}");
    for field in &rust {
        let same = cpp
            .iter()
            .find(|f| f.structure == field.structure && f.field == field.field);
        let same = same.expect("the names are the same");
        assert_eq!(
            (field.offset, field.size),
            (same.offset, same.size),
            "{}::{}",
            field.structure,
            field.field
        );
    }
    for field in &cpp {
        let used: usize = cpp
            .iter()
            .filter(|f| f.structure == field.structure)
            .map(|f| f.size)
            .sum();
        assert_eq!(
            used, field.structure_size,
            "{} has implicit padding",
            field.structure
        );
        assert_eq!(field.structure_size % 8, 0, "{}", field.structure);
    }
}

#[test]
fn wrong_launches_are_refused_by_name() {
    let device = HostDevice::default();
    let device: &dyn Device = &device;
    assert!(kernels().iter().any(|name| name == "fill"));
    let launch = |kernel, size| device.launch(kernel, size, &FillParams::default());
    for (kernel, size, reason) in [
        (
            Kernel("no_such"),
            LaunchSize::new(1, 1),
            "no_such: there is no kernel",
        ),
        (
            Kernel("fill"),
            LaunchSize::new(1, 2048),
            "blocks of 2048 threads",
        ),
        (Kernel("fill"), LaunchSize::new(0, 1), "a grid of 0 x 1 x 1"),
        (
            Kernel("fill"),
            LaunchSize::new(1, 1).shared(1 << 20),
            "bytes of shared memory",
        ),
    ] {
        let error = launch(kernel, size).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
        device.recreate().unwrap();
    }
    let error = device
        .launch_bytes(Kernel("fill"), LaunchSize::new(1, 1), &[0; 8])
        .unwrap_err();
    assert!(
        error.to_string().contains("takes 24 bytes of parameters"),
        "{error}"
    );
}

#[test]
fn a_kernel_that_writes_next_to_its_memory_is_caught_and_the_device_can_be_made_anew() {
    let device = HostDevice::default();
    let device: &dyn Device = &device;
    let destination = device.alloc(40).unwrap();
    let params = FillParams {
        destination,
        count: 11,
        value: 0,
        pad: 0,
    };
    let launch = || device.launch(Kernel("fill"), LaunchSize::new(1, 32), &params);
    let error = launch().unwrap_err();
    assert!(
        error
            .to_string()
            .contains("fill: wrote next to the allocation of 40"),
        "{error}"
    );
    assert_eq!(device.unhealthy(), Some(error.clone()));
    assert_eq!(device.alloc(1).unwrap_err(), error);
    device.recreate().unwrap();
    assert_eq!(device.unhealthy(), None);
    assert_eq!(fill(device, 5, LaunchSize::new(1, 32)).unwrap(), [7; 5]);
}

#[test]
fn a_graph_repeats_what_was_captured() {
    let device = HostDevice::default();
    let device: &dyn Device = &device;
    let (from, to) = (device.alloc(64).unwrap(), device.alloc(64).unwrap());
    device.fill_bytes(from, 0, 64).unwrap();
    device.fill_bytes(to, 0, 64).unwrap();
    device.begin_capture().unwrap();
    let params = FillParams {
        destination: from,
        count: 8,
        value: 3,
        pad: 0,
    };
    device
        .launch(Kernel("fill"), LaunchSize::new(1, 32), &params)
        .unwrap();
    device.copy(to, from, 64).unwrap();
    assert!(device.alloc(8).is_err(), "no allocation while capturing");
    assert!(device.synchronize().is_err());
    let graph = device.end_capture().unwrap();
    assert_eq!(device.download::<u32>(to, 16).unwrap(), [0; 16]);
    for _ in 0..2 {
        device.fill_bytes(from, 0xff, 64).unwrap();
        device.launch_graph(graph).unwrap();
        let values = device.download::<u32>(to, 16).unwrap();
        assert_eq!(values[..8], [3; 8]);
        assert_eq!(values[8..], [u32::MAX; 8]);
    }
    device.release_graph(graph);
    assert!(device.launch_graph(graph).is_err());
}

const ORDERS: [ThreadOrder; 4] = [
    ThreadOrder::Ascending,
    ThreadOrder::Descending,
    ThreadOrder::Shuffled(3),
    ThreadOrder::Shuffled(4),
];

/// Words of `destination` after a launch; they are 0 before.
fn words(
    order: ThreadOrder,
    kernel: &'static str,
    count: usize,
    size: LaunchSize,
) -> Result<Vec<u32>, CudaError> {
    let device = HostDevice::new(order);
    let device: &dyn Device = &device;
    let destination = device.alloc(4 * count)?;
    device.fill_bytes(destination, 0, 4 * count)?;
    let params = FillParams {
        destination,
        count: count as u64,
        value: 0,
        pad: 0,
    };
    device.launch(Kernel(kernel), size, &params)?;
    device.download(destination, count)
}

#[test]
fn barriers_and_collectives_answer_as_on_a_device_in_any_order_of_threads() {
    for order in ORDERS {
        let sums = words(order, "check_block_sum", 100, LaunchSize::new(100, 256)).unwrap();
        assert_eq!(sums, vec![256 * 257 / 2; 100], "{order:?}");
        let found = words(order, "check_collectives", 96, LaunchSize::new(1, 96)).unwrap();
        for (thread, found) in found.into_iter().enumerate() {
            let lane = thread as u32 % 32;
            let below = if lane.is_multiple_of(8) {
                lane
            } else {
                lane - 1
            };
            let half = lane ^ if lane < 16 { 8 } else { 4 };
            let count = 9; // three lanes of three warps
            let expected = (lane ^ 1) + 100 * below + 10_000 * half + 1_000_000 * count;
            assert_eq!(found, expected, "lane {lane}, {order:?}");
        }
        let found = words(order, "check_atomics", 2, LaunchSize::new(50, 64)).unwrap();
        assert_eq!(found, [2 * 50 * 64, 50 * 64 - 1]);
    }
}

#[test]
fn a_missing_barrier_shows_in_other_orders_of_threads() {
    let size = LaunchSize::new(1, 64).shared(256);
    let run = |order| words(order, "check_missing_barrier", 64, size).unwrap();
    let right: Vec<u32> = (0..64).map(|i| (i + 1) % 64).collect();
    assert!(ORDERS.iter().any(|&order| run(order) != right));
    // Descending, every neighbour but the last one's has been written.
    assert_eq!(run(ThreadOrder::Descending)[..63], right[..63]);
    // What nobody has written is not a number.
    assert_eq!(run(ThreadOrder::Descending)[63], u32::MAX);
}

#[test]
fn broken_rules_are_named_with_kernel_block_and_thread() {
    for order in ORDERS {
        for (kernel, size, wanted) in [
            (
                "check_divergence",
                LaunchSize::new(2, 32),
                vec!["different barriers", "check.cu:"],
            ),
            (
                "check_deadlock",
                LaunchSize::new(1, 32),
                vec![
                    "no thread can go on",
                    "waits at the barrier",
                    "waits for lanes",
                ],
            ),
            (
                "check_returned_lanes",
                LaunchSize::new(1, 32),
                vec!["lanes 0x20 of the mask 0xffffffff have returned"],
            ),
            (
                "check_shared_overrun",
                LaunchSize::new(1, 32).shared(128),
                vec!["outside its 128 bytes of shared memory"],
            ),
            (
                "check_assertion",
                LaunchSize::new(1, 64),
                vec!["not threadIdx.x < p.count", "thread ("],
            ),
        ] {
            let error = words(order, kernel, 32, size).unwrap_err().to_string();
            assert!(
                error.contains(&format!("kernel {kernel}: block (0, 0, 0)")),
                "{error}"
            );
            for part in wanted {
                assert!(error.contains(part), "{error}");
            }
        }
        // The machine works as before.
        let sums = words(order, "check_block_sum", 1, LaunchSize::new(1, 64)).unwrap();
        assert_eq!(sums, [64 * 65 / 2]);
    }
}

#[test]
fn half_precision_is_that_of_ieee() {
    let found = words(
        ThreadOrder::Ascending,
        "check_half",
        1 << 16,
        LaunchSize::new(256, 256),
    );
    for (bits, found) in found.unwrap().into_iter().enumerate() {
        let expected = half::f16::from_bits(bits as u16).to_f32();
        match expected.is_nan() {
            true => assert!(f32::from_bits(found).is_nan(), "{bits:#x}"),
            false => assert_eq!(found, expected.to_bits(), "{bits:#x}"),
        }
    }
}
