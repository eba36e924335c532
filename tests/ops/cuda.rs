//! The CUDA kernels, compiled for the host or on a GPU, against the CPU backend in f64.

use crate::common::device::device;
use std::sync::Arc;
use umaserve::backend::NetworkOutput;
use umaserve::backend::cuda::device::Device;
use umaserve::backend::cuda::{CudaBackend, CudaError, Options, Precision, evaluation_bytes};
use umaserve::nn::{Op, Program};
use umaserve::selfcheck::programs::{Case, RandomWeights, run};

/// Largest difference to f64, relative to the largest number of its kind.
fn limits(precision: Precision) -> (f64, f64) {
    match precision {
        Precision::F32 => (1e-5, 2e-5),
        // 10 bits of mantissa in the operands.
        Precision::Tf32 => (1e-2, 1.5e-2),
        Precision::F16 => (1e-2, 1.5e-2),
    }
}

fn backend(
    program: &Arc<Program>,
    weights: &Arc<RandomWeights>,
    device: &Arc<dyn Device>,
    options: Options,
) -> Option<CudaBackend> {
    let backend = CudaBackend::new(program.clone(), weights.clone(), device.clone(), options);
    match backend {
        Ok(backend) => Some(backend),
        // Layouts without kernels are refused by name.
        Err(CudaError::Unsupported(why)) => {
            assert!(why.contains("mmax"), "{why}");
            None
        }
        Err(other) => panic!("{other}"),
    }
}

/// Compares energies and gradients in all precisions; of programs with a whole convolution also the
/// bits in other batches and chunks. (What is done on atoms alone does not know of chunks, and its
/// kernels are the same in tf32 and fp16.)
pub fn compare(
    what: &str,
    program: &Arc<Program>,
    weights: &Arc<RandomWeights>,
    cases: &[Case],
    expected: &[NetworkOutput],
) {
    let device = device();
    let gate = |op: &Op| matches!(op, Op::GateEdges { .. });
    let thorough = program.ops.iter().any(gate);
    let precisions = match thorough {
        true => &[Precision::F32, Precision::Tf32, Precision::F16][..],
        false => &[Precision::F32, Precision::Tf32],
    };
    for &precision in precisions {
        let options = Options {
            graphs: false,
            ..Options::new(precision, 8 << 30)
        };
        let Some(cuda) = backend(program, weights, &device, options) else {
            return;
        };
        let what = format!("{what} in {precision}");
        let answers = run(&cuda, cases);
        let (energy_limit, gradient_limit) = limits(precision);
        for (answer, expected) in answers.iter().zip(expected) {
            let largest = |o: &NetworkOutput| {
                let all = o.gradient.iter().flatten();
                all.fold(1.0, |m: f64, g| m.max(g.abs()))
            };
            let scale = largest(expected);
            let off = (answer.energy - expected.energy).abs();
            assert!(
                off < energy_limit * expected.energy.abs().max(10.0),
                "{what}: energy {} instead of {}",
                answer.energy,
                expected.energy
            );
            let pairs = answer
                .gradient
                .iter()
                .flatten()
                .zip(expected.gradient.iter().flatten());
            for (i, (a, b)) in pairs.enumerate() {
                assert!(
                    (a - b).abs() < gradient_limit * scale,
                    "{what}: gradient {i} is {a} instead of {b}; the largest is {scale}"
                );
            }
        }
        if !thorough {
            continue;
        }
        // Alone, in another order and in small chunks: the same.
        let alone = run(&cuda, &cases[1..2]);
        assert_eq!(alone[0], answers[1], "{what}: alone");
        let tight = Options {
            chunk_edges: 100,
            memory_bytes: usize::MAX,
            ..options
        };
        let chunked = backend(program, weights, &device, tight).expect("it was made before");
        let reversed: Vec<Case> = cases.iter().rev().cloned().collect();
        let mut backwards = run(&chunked, &reversed);
        backwards.reverse();
        assert_eq!(backwards, answers, "{what}: in chunks and another order");
    }
}

/// Keeping nothing and replaying a graph change no bits either; a batch that is too large is
/// refused with the numbers.
pub fn compare_modes(program: &Arc<Program>, weights: &Arc<RandomWeights>, cases: &[Case]) {
    let device = device();
    for precision in [Precision::F32, Precision::Tf32, Precision::F16] {
        let options = Options::new(precision, 8 << 30);
        let cuda = backend(program, weights, &device, options).unwrap();
        let answers = run(&cuda, cases);
        for _ in 0..2 {
            assert_eq!(
                run(&cuda, cases),
                answers,
                "{precision}: captured and replayed"
            );
        }
        let (atoms, edges) = (
            cases.iter().map(|c| c.numbers.len()).sum(),
            cases.iter().map(|c| c.neighbors.len()).sum(),
        );
        let least = umaserve::backend::Backend::memory(&cuda, atoms, edges);
        // Everything kept, then less and less.
        let levels = evaluation_bytes(program, &options, atoms, edges).unwrap();
        assert!(
            levels.windows(2).all(|pair| pair[0] > pair[1]),
            "{levels:?}"
        );
        assert_eq!(levels[3], least);
        for memory_bytes in levels {
            let tight = Options {
                memory_bytes,
                ..options
            };
            let tight = backend(program, weights, &device, tight).unwrap();
            let what = format!("{precision}: in {memory_bytes} bytes");
            assert_eq!(run(&tight, cases), answers, "{what}");
        }
        let none = Options {
            memory_bytes: least / 4,
            ..options
        };
        let none = backend(program, weights, &device, none).unwrap();
        let structures: Vec<_> = cases.iter().map(Case::structure).collect();
        let refused = umaserve::backend::Backend::run(&none, &structures).unwrap_err();
        assert!(refused.to_string().contains("MiB"), "{refused}");
    }
}
