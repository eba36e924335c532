//! Every operation's backward pass against central differences of the energy, in f64.
//!
//! Each program isolates one operation as far as it can be seen through edge vectors: they enter
//! through `Radial` and through the rotations, so every program begins with an edge-degree
//! embedding (`EmbedAtoms`, `Radial`, `ScatterRadial`) and ends with a small network that reads
//! all rows of the node tensor. `EmbedAtoms` has no gradient: positions do not enter it. `Radial`
//! cannot reach atoms without a scatter, `GateEdges` not without an `So2Linear`: these are seen in
//! compositions only.

#[cfg(feature = "host-kernels")]
mod cuda;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::collections::HashMap;
use std::sync::Arc;
use umaserve::backend::cpu::CpuBackend;
use umaserve::backend::{
    Backend, Conditioning, NetworkOutput, Structure, WeightData, WeightSource,
};
use umaserve::neighbors::NeighborList;
use umaserve::nn::program::Scope;
use umaserve::nn::{BalanceTarget, Buf, Builder, Program, WeightKind};
use umaserve::so3::Layout;

const CUTOFF: f64 = 5.0;
const BASIS: usize = 9;
const ELEMENTS: usize = 9;
const EXPERTS: usize = 3;
const TASKS: usize = 2;

/// Uniform in (-1, 1).
fn signed(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

/// Random weights by name.
#[derive(Clone)]
struct RandomWeights(HashMap<String, Vec<f64>>);

impl RandomWeights {
    /// Matrices scaled so that their output is about as large as their input.
    fn of(program: &Program, seed: u64) -> RandomWeights {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let weights = program.weights.iter().map(|slot| {
            let copies = match slot.kind {
                WeightKind::Fixed => 1,
                WeightKind::Mixed => EXPERTS,
                WeightKind::PerTask => TASKS,
            };
            let len = copies * slot.shape.iter().product::<usize>();
            let matrix = slot.shape.len() > 1 && !slot.name.contains("embedding");
            let scale = match slot.shape.last() {
                Some(&input) if matrix => (3.0 / input as f64).sqrt(),
                _ => 1.0,
            };
            let values = (0..len).map(|_| scale * signed(&mut rng)).collect();
            (slot.name.clone(), values)
        });
        RandomWeights(weights.collect())
    }
}

impl WeightSource for RandomWeights {
    fn weight(&self, name: &str) -> WeightData<'_> {
        WeightData::F64(self.0[name].as_slice().into())
    }
}

/// One system.
#[derive(Clone)]
struct Case {
    numbers: Vec<u8>,
    neighbors: NeighborList,
    conditioning: Arc<Conditioning>,
}

impl Case {
    fn structure(&self) -> Structure<'_> {
        Structure {
            numbers: &self.numbers,
            neighbors: &self.neighbors,
            conditioning: self.conditioning.clone(),
        }
    }

    /// All edge vectors moved by `step` times a direction.
    fn moved(&self, direction: &[[f64; 3]], step: f64) -> Case {
        let mut case = self.clone();
        for (v, d) in case.neighbors.vector.iter_mut().zip(direction) {
            for (v, d) in v.iter_mut().zip(d) {
                *v += step * d;
            }
        }
        case
    }
}

/// A system with so many edges to each atom, from random atoms (possibly itself, as in a small
/// periodic cell) and with random vectors. Forward and backward treat the edges as they are given,
/// so the graph need not come from positions.
fn case(rng: &mut ChaCha8Rng, channels: usize, incoming: &[usize], task: usize) -> Case {
    let atoms = incoming.len();
    let mut neighbors = NeighborList {
        target_start: vec![0],
        ..NeighborList::default()
    };
    for &count in incoming {
        for _ in 0..count {
            let mut v = [0; 3].map(|_| signed(rng));
            let length = v.iter().map(|x| x * x).sum::<f64>().sqrt();
            let wanted = 0.7 + 0.4 * (signed(rng) + 1.0) * (CUTOFF - 1.0);
            v = v.map(|x| x / length * wanted);
            neighbors.vector.push(v);
            // The last atom sends nothing.
            let sources = (atoms - 1).max(1) as u64;
            neighbors.source.push((rng.next_u64() % sources) as u32);
        }
        neighbors.target_start.push(neighbors.source.len() as u32);
    }
    neighbors.reverse = vec![u32::MAX; neighbors.len()];
    // The polar axis in both directions, and an edge that is too long to count.
    for (v, special) in neighbors.vector.iter_mut().zip([
        [0.0, 1.9, 0.0],
        [0.0, -2.3, 0.0],
        [0.0, 0.0, 1.2 * CUTOFF],
    ]) {
        *v = special;
    }
    let numbers = (0..atoms)
        .map(|_| 1 + (rng.next_u64() % (ELEMENTS as u64 - 1)) as u8)
        .collect();
    let conditioning = Conditioning {
        key: format!("{}", rng.next_u64()),
        vector: (0..channels).map(|_| signed(rng)).collect(),
        experts: (0..EXPERTS).map(|_| 0.5 * signed(rng) + 0.4).collect(),
        task_index: task,
        charge: 2.0 - 3.0 * task as f64,
        unpaired_electrons: 1.0 + task as f64,
    };
    Case {
        numbers,
        neighbors,
        conditioning: Arc::new(conditioning),
    }
}

fn run<T>(backend: &T, cases: &[Case]) -> Vec<NetworkOutput>
where
    T: Backend,
{
    let structures: Vec<Structure> = cases.iter().map(Case::structure).collect();
    backend.run(&structures).unwrap()
}

/// Sizes of one test network.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    lmax: usize,
    mmax: usize,
    channels: usize,
    hidden: usize,
    /// Hidden width of the radial networks.
    edge: usize,
}

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

const fn sizes(lmax: usize, mmax: usize, channels: usize, hidden: usize, edge: usize) -> Sizes {
    Sizes {
        lmax,
        mmax,
        channels,
        hidden,
        edge,
    }
}

/// A program under construction.
struct Net {
    b: Builder,
    s: Sizes,
    layout: Layout,
}

fn scope(name: &str) -> Scope {
    Scope::new(name)
}

impl Net {
    fn new(s: Sizes) -> Net {
        let layout = Layout::new(s.lmax, s.mmax);
        Net {
            b: Builder::new(layout.clone(), s.channels, CUTOFF, BASIS),
            s,
            layout,
        }
    }

    fn radial(&mut self, name: &str, width: usize) -> Buf {
        self.b.radial(
            &scope(name),
            (&scope("source_embedding"), &scope("target_embedding")),
            ELEMENTS,
            self.s.edge,
            width,
        )
    }

    /// A node tensor with all degrees that depends on the edges.
    fn start(&mut self) -> Buf {
        let x = self.b.embed_atoms(&scope("atom_embedding"), ELEMENTS);
        let radial = self.radial("edge_degree", (self.s.lmax + 1) * self.s.channels);
        self.b.scatter_radial(radial, x, 0.7)
    }

    /// Energies from all rows: not invariant under rotations, which the backward pass need not be.
    fn end(mut self, x: Buf, channels: usize) -> Program {
        let width = self.layout.rows * channels;
        let x = self
            .b
            .linear("read", &scope("read"), x, (width, 6), false, true);
        let energy = self
            .b
            .linear("energy", &scope("energy"), x, (6, 1), false, false);
        self.b.finish(energy)
    }

    fn gather(&mut self, name: &str, x: Buf) -> Buf {
        let radial = self.radial(name, self.layout.radial_width(2 * self.s.channels));
        self.b.gather_rotate_scale(x, radial)
    }

    /// The edge half of a block.
    fn convolution(&mut self, name: &str, x: Buf, residual: Buf, mixed: bool) -> Buf {
        let (c, h) = (self.s.channels, self.s.hidden);
        let w = scope(name);
        let m = self.gather(&format!("{name}.radial"), x);
        let gates = self.s.lmax * h;
        let m = self
            .b
            .so2_linear("conv_1", &w.at(1), m, (2 * c, h), gates, mixed);
        let m = self.b.gate_edges(m, h);
        let m = self.b.so2_linear("conv_2", &w.at(2), m, (h, c), 0, mixed);
        self.b.rotate_scatter(m, residual)
    }

    /// The atom half of a block.
    fn feed_forward(&mut self, name: &str, x: Buf, residual: Option<Buf>) -> Buf {
        let (c, h) = (self.s.channels, self.s.hidden);
        let w = scope(name);
        let gates = self.b.linear(
            "gates",
            &w.at("gates"),
            x,
            (c, self.s.lmax * h),
            false,
            true,
        );
        let y = self.b.so3_linear("in", &w.at(1), x, (c, h), None);
        let y = self.b.gate_atoms(y, gates, h);
        self.b.so3_linear("out", &w.at(2), y, (h, c), residual)
    }
}

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

/// Two blocks as in UMA 1.2 with a head per task.
fn two_blocks(s: Sizes, mixed: bool) -> Program {
    let mut net = Net::new(s);
    let mut x = net.start();
    for i in 0..2 {
        let w = scope("blocks").at(i);
        let y = net.b.rms_norm("norm_1", &w.at("norm_1"), x, true);
        x = net.convolution(&format!("conv.{i}"), y, x, mixed);
        let y = net.b.rms_norm("norm_2", &w.at("norm_2"), x, false);
        x = net.feed_forward(&format!("feed_forward.{i}"), y, Some(x));
        x = net.b.balance(x, 0..3, BalanceTarget::Charge);
        x = net.b.balance(x, 3..4, BalanceTarget::UnpairedElectrons);
    }
    let x = net.b.rms_norm("norm", &scope("norm"), x, false);
    let (c, head) = (s.channels, scope("head"));
    let x = net.b.linear("hidden", &head.at(0), x, (c, c), true, true);
    let energy = net.b.linear("energy", &head.at(1), x, (c, 1), true, false);
    net.b.finish(energy)
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
