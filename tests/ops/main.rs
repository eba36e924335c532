//! Every operation's backward pass against central differences of the energy, in f64.
//!
//! Each program isolates one operation as far as it can be seen through edge vectors: they enter
//! through `Radial` and through the rotations, so every program begins with an edge-degree
//! embedding (`EmbedAtoms`, `Radial`, `ScatterRadial`) and ends with a small network that reads
//! all rows of the node tensor. `EmbedAtoms` has no gradient: positions do not enter it. `Radial`
//! cannot reach atoms without a scatter, `GateEdges` not without an `So2Linear`: these are seen in
//! compositions only.

#[cfg(feature = "host-kernels")]
#[path = "../common/mod.rs"]
mod common;
#[cfg(feature = "host-kernels")]
mod cuda;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use std::sync::Arc;
use umaserve::backend::cpu::CpuBackend;
use umaserve::backend::{Conditioning, Structure};
use umaserve::nn::{BalanceTarget, Program, WeightKind};
use umaserve::selfcheck::programs::{
    Case, ELEMENTS, EXPERTS, Net, RandomWeights, Sizes, case, run, scope, signed, sizes, two_blocks,
};

/// Channels by 16, by 4 and odd, as the kernels take them; in 6 channels those of an edge come by 4
/// and those of an atom one by one. All orders, fewer orders than degrees, none but 0; degrees
/// beyond those that have kernels of their own.
const SIZES: [Sizes; 7] = [
    sizes(2, 2, 16, 8, 16),
    sizes(4, 2, 8, 5, 7),
    sizes(1, 1, 5, 16, 4),
    sizes(3, 1, 6, 8, 12),
    sizes(2, 0, 8, 5, 32),
    sizes(3, 3, 5, 3, 7),
    sizes(6, 6, 6, 4, 8),
];

/// Compares gradients with a five-point stencil.
fn check(name: &str, s: Sizes, program: Program) {
    let what = format!("{name} {s:?}");
    let seed = name.bytes().map(u64::from).sum::<u64>() + 1000 * s.lmax as u64;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let program = Arc::new(program);
    let weights = Arc::new(RandomWeights::of(&program, seed));
    let f64s = |keep| CpuBackend::<f64>::new(program.clone(), weights.clone(), keep);
    let f32s = |keep| CpuBackend::<f32>::new(program.clone(), weights.clone(), keep);
    let backend = f64s(usize::MAX);

    let c = s.channels;
    let cases = [
        // Two atoms that nothing arrives at, one of them wholly alone.
        case(&mut rng, c, &[4, 0, 3, 1, 0], 0),
        case(&mut rng, c, &[3, 2], 1),
        // More edges than the largest tile, more atoms than a tile.
        case(&mut rng, c, &[13; 33], 1),
        // No edges at all.
        case(&mut rng, c, &[0, 0], 0),
        case(&mut rng, c, &[0], 1),
    ];
    let at = run(&backend, &cases);
    for (case, at) in cases.iter().zip(&at) {
        assert_eq!(at.gradient.len(), case.neighbors.len(), "{what}");
        assert!(at.energy.is_finite(), "{what}");
    }
    let alone = run(&backend, &cases[3..4]);
    assert_eq!(alone[0], at[3], "{what}: without edges, alone");

    for (case, at) in cases.iter().zip(&at).take(3) {
        let edges = case.neighbors.len();
        let largest = at
            .gradient
            .iter()
            .flatten()
            .fold(0.0f64, |m, g| m.max(g.abs()));
        assert!(
            largest > 1e-3,
            "{what}: the gradient is not zero: {largest}"
        );
        let mut directions: Vec<Vec<[f64; 3]>> = Vec::new();
        if edges < 10 {
            for i in 0..3 * edges {
                let mut direction = vec![[0.0; 3]; edges];
                direction[i / 3][i % 3] = 1.0;
                directions.push(direction);
            }
        } else {
            for _ in 0..3 {
                directions.push(
                    (0..edges)
                        .map(|_| [0; 3].map(|_| signed(&mut rng)))
                        .collect(),
                );
            }
        }
        const STEP: f64 = 1e-3;
        let moved: Vec<Case> = directions
            .iter()
            .flat_map(|d| [-2.0, -1.0, 1.0, 2.0].map(|k| case.moved(d, k * STEP)))
            .collect();
        for (direction, e) in directions.iter().zip(run(&backend, &moved).chunks(4)) {
            let slope =
                (e[0].energy - 8.0 * e[1].energy + 8.0 * e[2].energy - e[3].energy) / (12.0 * STEP);
            let expected: f64 = at
                .gradient
                .iter()
                .flatten()
                .zip(direction.iter().flatten())
                .map(|(g, d)| g * d)
                .sum();
            let length: f64 = direction.iter().flatten().map(|d| d * d).sum();
            // Truncation is about STEP^4 / 30 times a fifth derivative of order 100.
            let limit = 2e-8 * largest.max(0.1) * length.sqrt();
            assert!(
                (slope - expected).abs() < limit,
                "{what}: {edges} edges: slope {slope}, gradient {expected}, limit {limit:e}"
            );
        }
    }

    #[cfg(feature = "host-kernels")]
    cuda::compare(&what, &program, &weights, &cases, &at);

    // Keeping values or computing them again: the same bits. Single precision: the same numbers.
    assert_eq!(run(&f64s(0), &cases), at, "{what}: recomputed");
    let single = run(&f32s(usize::MAX), &cases);
    assert_eq!(run(&f32s(0), &cases), single, "{what}: recomputed in f32");
    for (a, b) in at.iter().zip(&single) {
        let largest = a
            .gradient
            .iter()
            .flatten()
            .fold(1.0, |m: f64, g| m.max(g.abs()));
        let energy = (a.energy - b.energy).abs();
        assert!(
            energy < 1e-4 * a.energy.abs().max(10.0),
            "{what}: f32 energy off by {energy:e}"
        );
        for (a, b) in a.gradient.iter().flatten().zip(b.gradient.iter().flatten()) {
            let error = (a - b).abs();
            assert!(
                error < 1e-4 * largest,
                "{what}: f32 gradient off by {error:e}"
            );
        }
    }
}

#[test]
fn radial_and_scatter_radial() {
    for s in SIZES {
        let mut net = Net::new(s);
        let x = net.start();
        check("scatter radial", s, net.end(x, s.channels));

        // Twice, on top of each other: the residual is passed on.
        let mut net = Net::new(s);
        let x = net.start();
        let radial = net.radial("second", (s.lmax + 1) * s.channels);
        let x = net.b.scatter_radial(radial, x, -1.3);
        check("scatter radial twice", s, net.end(x, s.channels));
    }
}

#[test]
fn rms_norm() {
    for s in SIZES {
        for add_conditioning in [false, true] {
            let mut net = Net::new(s);
            let x = net.start();
            let x = net.b.rms_norm("norm", &scope("norm"), x, add_conditioning);
            check("norm", s, net.end(x, s.channels));
        }
        // Read twice, before and after: gradients add up.
        let mut net = Net::new(s);
        let x = net.start();
        let y = net.b.rms_norm("norm", &scope("norm"), x, false);
        let shape = (s.channels, s.channels);
        let x = net.b.so3_linear("sum", &scope("sum"), y, shape, Some(x));
        check("norm and residual", s, net.end(x, s.channels));
    }
}

#[test]
fn linear() {
    for s in SIZES {
        // Only degree 0 of the node tensor is read.
        for (per_task, silu) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut net = Net::new(s);
            let x = net.start();
            let shape = (s.channels, 7);
            let x = net.b.linear("a", &scope("a"), x, shape, per_task, silu);
            let x = net.b.linear("b", &scope("b"), x, (7, 1), per_task, false);
            check("linear", s, net.b.finish(x));
        }
    }
}

#[test]
fn so3_linear() {
    for s in SIZES {
        let (c, h) = (s.channels, s.hidden);
        let mut net = Net::new(s);
        let x = net.start();
        let x = net.b.so3_linear("a", &scope("a"), x, (c, h), None);
        check("so3 linear", s, net.end(x, h));

        let mut net = Net::new(s);
        let x = net.start();
        let y = net.b.so3_linear("a", &scope("a"), x, (c, h), None);
        let x = net.b.so3_linear("b", &scope("b"), y, (h, c), Some(x));
        check("so3 linear with residual", s, net.end(x, c));

        let mut net = Net::new(s);
        let x = net.start();
        let x = net.b.so3_linear("a", &scope("a"), x, (c, c), Some(x));
        check("so3 linear with its input as residual", s, net.end(x, c));
    }
}

#[test]
fn gate_atoms() {
    for s in SIZES {
        for residual in [false, true] {
            let mut net = Net::new(s);
            let x = net.start();
            let x = net.feed_forward("feed_forward", x, residual.then_some(x));
            check("gate atoms", s, net.end(x, s.channels));
        }
    }
}

#[test]
fn balance() {
    use BalanceTarget::{Charge, UnpairedElectrons};
    for s in SIZES {
        for steps in [
            &[(0..3, Charge)][..],
            &[(1..2, UnpairedElectrons)],
            &[(0..2, Charge), (2..5, UnpairedElectrons)],
        ] {
            let mut net = Net::new(s);
            let mut x = net.start();
            for (channels, target) in steps {
                x = net.b.balance(x, channels.clone(), *target);
            }
            check("balance", s, net.end(x, s.channels));
        }
    }
}

#[test]
fn balanced_channels_sum_to_their_target() {
    let s = SIZES[0];
    let mut net = Net::new(s);
    let x = net.start();
    let x = net.b.balance(x, 0..2, BalanceTarget::Charge);
    let x = net.b.balance(x, 3..4, BalanceTarget::UnpairedElectrons);
    let balanced = x;
    let program = Arc::new(net.end(x, s.channels));
    let backend = CpuBackend::<f64>::new(
        program.clone(),
        Arc::new(RandomWeights::of(&program, 5)),
        usize::MAX,
    );
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let cases = [
        case(&mut rng, s.channels, &[3, 4, 0], 0),
        case(&mut rng, s.channels, &[2; 40], 1),
    ];
    let structures: Vec<Structure> = cases.iter().map(Case::structure).collect();
    let (_, trace) = backend.trace(&structures);
    let width = program.width(balanced);
    let rows: Vec<&[f64]> = trace.buffers[balanced.0].1.chunks(width).collect();
    let mut first = 0;
    for case in &cases {
        let rows = &rows[first..first + case.numbers.len()];
        first += case.numbers.len();
        let sum = |c: usize| rows.iter().map(|r| r[c]).sum::<f64>();
        let conditioning = &case.conditioning;
        for (c, target) in [
            (0, conditioning.charge),
            (1, conditioning.charge),
            (3, conditioning.unpaired_electrons),
        ] {
            assert!((sum(c) - target).abs() < 1e-12, "{c}: {}", sum(c));
        }
        assert!((sum(2) - conditioning.charge).abs() > 1e-3);
    }
}

#[test]
fn gather_so2_linear_and_rotate_scatter() {
    for s in SIZES {
        for mixed in [false, true] {
            // On atoms with degree 0 only, and on atoms with all degrees.
            for embedding_only in [true, false] {
                let mut net = Net::new(s);
                let x = if embedding_only {
                    net.b.embed_atoms(&scope("atom_embedding"), ELEMENTS)
                } else {
                    net.start()
                };
                let m = net.gather("radial", x);
                let shape = (2 * s.channels, s.channels);
                let m = net.b.so2_linear("conv", &scope("conv"), m, shape, 0, mixed);
                let x = net.b.rotate_scatter(m, x);
                check("gather, so2 linear, scatter", s, net.end(x, s.channels));
            }
        }
    }
}

#[test]
fn gate_edges() {
    for s in SIZES {
        for mixed in [false, true] {
            let mut net = Net::new(s);
            let x = net.start();
            let x = net.convolution("conv", x, x, mixed);
            check("gated convolution", s, net.end(x, s.channels));
        }
    }
}

#[test]
fn whole_networks() {
    for s in SIZES {
        check("two blocks", s, two_blocks(s, true));
    }
}

#[cfg(feature = "host-kernels")]
#[test]
fn cuda_keeps_its_bits_in_graphs_and_in_little_memory() {
    let s = SIZES[0];
    let program = Arc::new(two_blocks(s, true));
    let weights = Arc::new(RandomWeights::of(&program, 31));
    let mut rng = ChaCha8Rng::seed_from_u64(32);
    let cases = [
        case(&mut rng, s.channels, &[3, 2, 4], 0),
        case(&mut rng, s.channels, &[13; 33], 1),
    ];
    cuda::compare_modes(&program, &weights, &cases);
}

#[test]
fn mixed_weights_are_the_weighted_sum_of_the_experts() {
    let s = SIZES[1];
    let (mixed, fixed) = (
        Arc::new(two_blocks(s, true)),
        Arc::new(two_blocks(s, false)),
    );
    let experts = RandomWeights::of(&mixed, 11);
    let mut rng = ChaCha8Rng::seed_from_u64(12);
    let cases: Vec<Case> = (0..3)
        .map(|i| case(&mut rng, 8, &[3, 2, 4], i % 2))
        .collect();
    let mixing = CpuBackend::<f64>::new(mixed.clone(), Arc::new(experts.clone()), usize::MAX);
    for (case, ours) in cases.iter().zip(run(&mixing, &cases)) {
        let mut sum = experts.clone();
        for slot in mixed.weights.iter().filter(|s| s.kind == WeightKind::Mixed) {
            let all = &experts.0[&slot.name];
            let len = all.len() / EXPERTS;
            let weights = &case.conditioning.experts;
            let total = (0..len)
                .map(|i| {
                    weights
                        .iter()
                        .enumerate()
                        .map(|(e, c)| c * all[e * len + i])
                        .sum()
                })
                .collect();
            // "weights" of a mixture is "weight" of an ordinary network.
            sum.0
                .insert(slot.name.trim_end_matches('s').to_owned(), total);
        }
        let plain = CpuBackend::<f64>::new(fixed.clone(), Arc::new(sum), usize::MAX);
        let theirs = run(&plain, std::slice::from_ref(case)).remove(0);
        assert!((ours.energy - theirs.energy).abs() < 1e-12);
        for (a, b) in ours
            .gradient
            .iter()
            .flatten()
            .zip(theirs.gradient.iter().flatten())
        {
            assert!((a - b).abs() < 1e-12);
        }
    }
}

#[test]
fn the_task_chooses_the_head() {
    let s = SIZES[0];
    let program = Arc::new(two_blocks(s, true));
    let weights = Arc::new(RandomWeights::of(&program, 21));
    let backend = CpuBackend::<f64>::new(program, weights, usize::MAX);
    let mut rng = ChaCha8Rng::seed_from_u64(22);
    let one = case(&mut rng, s.channels, &[3, 2, 4], 0);
    let mut other = one.clone();
    other.conditioning = Arc::new(Conditioning {
        task_index: 1,
        ..(*one.conditioning).clone()
    });
    let answers = run(&backend, &[one, other]);
    assert!((answers[0].energy - answers[1].energy).abs() > 1e-3);
}
