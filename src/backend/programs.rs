//! Small programs with random weights on random graphs, one around each operation: what backends
//! are compared on, here and in the tests.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::collections::HashMap;
use std::sync::Arc;

use crate::backend::{Backend, Conditioning, NetworkOutput, Structure, WeightData, WeightSource};
use crate::neighbors::NeighborList;
use crate::nn::program::Scope;
use crate::nn::{BalanceTarget, Buf, Builder, Program, WeightKind};
use crate::so3::Layout;

/// Cutoff, Angstrom.
pub const CUTOFF: f64 = 5.0;
/// Gaussians.
pub const BASIS: usize = 9;
/// Elements, and rows of their tables.
pub const ELEMENTS: usize = 9;
/// Experts of mixed weights.
pub const EXPERTS: usize = 3;
/// Tasks with weights of their own.
pub const TASKS: usize = 2;

/// Uniform in (-1, 1).
pub fn signed(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

/// Random weights by name.
#[derive(Clone)]
pub struct RandomWeights(pub HashMap<String, Vec<f64>>);

impl RandomWeights {
    /// Matrices scaled so that their output is about as large as their input.
    pub fn of(program: &Program, seed: u64) -> RandomWeights {
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
pub struct Case {
    /// Atomic numbers.
    pub numbers: Vec<u8>,
    /// Edges.
    pub neighbors: NeighborList,
    /// Conditioning.
    pub conditioning: Arc<Conditioning>,
}

impl Case {
    /// As a backend takes it.
    pub fn structure(&self) -> Structure<'_> {
        Structure {
            numbers: &self.numbers,
            neighbors: &self.neighbors,
            conditioning: self.conditioning.clone(),
        }
    }

    /// All edge vectors moved by `step` times a direction.
    pub fn moved(&self, direction: &[[f64; 3]], step: f64) -> Case {
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
pub fn case(rng: &mut ChaCha8Rng, channels: usize, incoming: &[usize], task: usize) -> Case {
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

/// The answers for all cases as one batch.
///
/// # Panics
/// When the device fails.
pub fn run<T>(backend: &T, cases: &[Case]) -> Vec<NetworkOutput>
where
    T: Backend + ?Sized,
{
    let structures: Vec<Structure> = cases.iter().map(Case::structure).collect();
    backend.run(&structures).expect("the device works")
}

/// Sizes of one test network.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Largest degree.
    pub lmax: usize,
    /// Largest order on edges.
    pub mmax: usize,
    /// Channels of a node tensor.
    pub channels: usize,
    /// Channels between two maps.
    pub hidden: usize,
    /// Hidden width of the radial networks.
    pub edge: usize,
}

/// Sizes in one line.
pub const fn sizes(lmax: usize, mmax: usize, channels: usize, hidden: usize, edge: usize) -> Sizes {
    Sizes {
        lmax,
        mmax,
        channels,
        hidden,
        edge,
    }
}

/// A program under construction.
pub struct Net {
    /// Takes the operations.
    pub b: Builder,
    /// Sizes.
    pub s: Sizes,
    /// Layout of degrees and orders.
    pub layout: Layout,
}

/// A place in the tree of names.
pub fn scope(name: &str) -> Scope {
    Scope::new(name)
}

impl Net {
    /// An empty program.
    pub fn new(s: Sizes) -> Net {
        let layout = Layout::new(s.lmax, s.mmax);
        Net {
            b: Builder::new(layout.clone(), s.channels, CUTOFF, BASIS),
            s,
            layout,
        }
    }

    /// A radial network of this width.
    pub fn radial(&mut self, name: &str, width: usize) -> Buf {
        self.b.radial(
            &scope(name),
            (&scope("source_embedding"), &scope("target_embedding")),
            ELEMENTS,
            self.s.edge,
            width,
        )
    }

    /// A node tensor with all degrees that depends on the edges.
    pub fn start(&mut self) -> Buf {
        let x = self.b.embed_atoms(&scope("atom_embedding"), ELEMENTS);
        let radial = self.radial("edge_degree", (self.s.lmax + 1) * self.s.channels);
        self.b.scatter_radial(radial, x, 0.7)
    }

    /// Energies from all rows: not invariant under rotations, which the backward pass need not be.
    pub fn end(mut self, x: Buf, channels: usize) -> Program {
        let width = self.layout.rows * channels;
        let x = self
            .b
            .linear("read", &scope("read"), x, (width, 6), false, true);
        let energy = self
            .b
            .linear("energy", &scope("energy"), x, (6, 1), false, false);
        self.b.finish(energy)
    }

    /// Rotated and scaled edge tensor.
    pub fn gather(&mut self, name: &str, x: Buf) -> Buf {
        let radial = self.radial(name, self.layout.radial_width(2 * self.s.channels));
        self.b.gather_rotate_scale(x, radial)
    }

    /// The edge half of a block.
    pub fn convolution(&mut self, name: &str, x: Buf, residual: Buf, mixed: bool) -> Buf {
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
    pub fn feed_forward(&mut self, name: &str, x: Buf, residual: Option<Buf>) -> Buf {
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

/// Two blocks as in UMA 1.2 with a head per task.
pub fn two_blocks(s: Sizes, mixed: bool) -> Program {
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
