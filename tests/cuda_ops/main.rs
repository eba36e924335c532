//! Every CUDA kernel on atoms and edges, compiled for the host or on a GPU (`common/device.rs`), against
//! plain loops in f64; and its bits in other batches, chunks and orders of threads.
#![cfg(feature = "host-kernels")]

#[path = "../common/mod.rs"]
mod common;
mod gather_gemm;
mod gemm;
mod geometry;
mod large;
mod node;
mod radial;
mod rotate;

use common::device::device_with;
use half::f16;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::sync::Arc;
use umaserve::backend::cuda::device::Device;
use umaserve::backend::cuda::host::ThreadOrder;
use umaserve::backend::cuda::params::{Chunk, DevicePtr, Params};
use umaserve::backend::cuda::shapes::{Launch, Shapes};
use umaserve::backend::cuda::{EdgeNumbers, Number, Precision};
use umaserve::nn::{Buf, Op, Program};
use umaserve::so3::{Layout, Wigner};

const CUTOFF: f64 = 5.0;
const ELEMENTS: usize = 7;

/// (lmax, mmax) that have kernels.
const LAYOUTS: [(usize, usize); 8] = [
    (1, 1),
    (2, 1),
    (2, 2),
    (3, 2),
    (3, 3),
    (4, 2),
    (4, 4),
    (6, 2),
];

/// Random numbers of one seed.
struct Random(ChaCha8Rng);

impl Random {
    fn new(seed: u64) -> Random {
        Random(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Below `end`.
    fn below(&mut self, end: usize) -> usize {
        (self.0.next_u64() % end as u64) as usize
    }

    /// Uniform in (-1, 1), an f32.
    fn signed(&mut self) -> f64 {
        let x = (self.0.next_u64() >> 11) as f64 / (1u64 << 52) as f64 - 1.0;
        f64::from(x as f32)
    }

    fn values(&mut self, count: usize) -> Vec<f64> {
        (0..count).map(|_| self.signed()).collect()
    }
}

/// One system: source and vector of the edges to each atom.
#[derive(Clone)]
struct Molecule {
    numbers: Vec<u32>,
    incoming: Vec<Vec<(u32, [f64; 3])>>,
}

/// A system with so many edges to each atom. The last atom sends nothing.
fn molecule(random: &mut Random, incoming: &[usize]) -> Molecule {
    let atoms = incoming.len();
    let mut edge = || {
        let v = [0; 3].map(|_| random.signed());
        let length = v.iter().map(|x| x * x).sum::<f64>().sqrt();
        let wanted = 0.7 + 0.45 * (random.signed() + 1.0) * (CUTOFF - 0.7);
        let source = random.below((atoms - 1).max(1)) as u32;
        (source, v.map(|x| x / length * wanted))
    };
    let mut incoming: Vec<Vec<_>> = incoming
        .iter()
        .map(|&count| (0..count).map(|_| edge()).collect())
        .collect();
    // The polar axis in both directions, and an edge that is too long to count.
    let special = [[0.0, 1.9, 0.0], [0.0, -2.3, 0.0], [0.0, 0.0, 1.2 * CUTOFF]];
    for (edge, vector) in incoming.iter_mut().flatten().zip(special) {
        edge.1 = vector;
    }
    Molecule {
        numbers: (0..atoms)
            .map(|_| 1 + random.below(ELEMENTS - 1) as u32)
            .collect(),
        incoming,
    }
}

/// Systems of several kinds: ordinary, one atom without edges, no edges at all, many edges to one
/// atom.
fn molecules() -> Vec<Molecule> {
    let random = &mut Random::new(11);
    [
        &[5usize, 0, 9, 3, 1][..],
        &[0],
        &[17, 2, 4, 0, 6, 11],
        &[0, 0, 0],
        &[40],
    ]
    .map(|incoming| molecule(random, incoming))
    .to_vec()
}

/// Several systems as the kernels see them.
struct Batch {
    numbers: Vec<u32>,
    atom_start: Vec<u32>,
    atom_system: Vec<u32>,
    target_start: Vec<u32>,
    source: Vec<u32>,
    target: Vec<u32>,
    source_start: Vec<u32>,
    by_source: Vec<u32>,
    vector: Vec<[f64; 3]>,
}

impl Batch {
    fn new(molecules: &[Molecule]) -> Batch {
        let mut batch = Batch {
            numbers: vec![],
            atom_start: vec![0],
            atom_system: vec![],
            target_start: vec![0],
            source: vec![],
            target: vec![],
            source_start: vec![0],
            by_source: vec![],
            vector: vec![],
        };
        for (system, molecule) in molecules.iter().enumerate() {
            let first = batch.numbers.len() as u32;
            for edges in &molecule.incoming {
                for &(source, vector) in edges {
                    batch.source.push(first + source);
                    batch.target.push(batch.atom_system.len() as u32);
                    batch.vector.push(vector);
                }
                batch.atom_system.push(system as u32);
                batch.target_start.push(batch.source.len() as u32);
            }
            batch.numbers.extend(&molecule.numbers);
            batch.atom_start.push(batch.numbers.len() as u32);
        }
        for atom in 0..batch.atoms() as u32 {
            let edges = 0..batch.edges() as u32;
            let from_it = edges.filter(|&e| batch.source[e as usize] == atom);
            let from_it: Vec<u32> = from_it.collect();
            batch.by_source.extend(from_it);
            batch.source_start.push(batch.by_source.len() as u32);
        }
        batch
    }

    fn atoms(&self) -> usize {
        self.numbers.len()
    }

    fn edges(&self) -> usize {
        self.source.len()
    }

    fn whole(&self) -> Chunk {
        Chunk {
            atom_end: self.atoms() as u32,
            edge_end: self.edges() as u32,
            ..Chunk::default()
        }
    }

    /// Chunks of so many target atoms.
    fn chunks(&self, atoms: usize) -> Vec<Chunk> {
        (0..self.atoms())
            .step_by(atoms)
            .map(|begin| {
                let end = (begin + atoms).min(self.atoms());
                Chunk {
                    atom_begin: begin as u32,
                    atom_end: end as u32,
                    edge_begin: self.target_start[begin],
                    edge_end: self.target_start[end],
                    ..Chunk::default()
                }
            })
            .collect()
    }

    /// Packed Wigner matrices, rounded to f32.
    fn wigner(&self, layout: &Layout) -> Vec<f64> {
        let wigner = Wigner::new(layout);
        let mut out = vec![0.0; self.edges() * layout.wigner_len];
        for (v, out) in self
            .vector
            .iter()
            .zip(out.chunks_exact_mut(layout.wigner_len))
        {
            let d = v.iter().map(|x| x * x).sum::<f64>().sqrt();
            wigner.fill(v.map(|x| [x / d]), out.as_chunks_mut().0);
        }
        out.iter().map(|&x| f64::from(x as f32)).collect()
    }

    /// p(d) of every edge, rounded to f32.
    fn envelope(&self) -> Vec<f64> {
        let length = |v: &[f64; 3]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
        let p = |u: f64| match u < 1.0 {
            true => 1.0 - 21.0 * u.powi(5) + 35.0 * u.powi(6) - 15.0 * u.powi(7),
            false => 0.0,
        };
        let all = self.vector.iter().map(|v| p(length(v) / CUTOFF));
        all.map(|x| f64::from(x as f32)).collect()
    }
}

/// A device, the launches of a program of one operation of each kind, and the number types of edge
/// values.
struct Bench {
    device: Arc<dyn Device>,
    shapes: Shapes,
    layout: Layout,
    channels: usize,
    precision: Precision,
    numbers: EdgeNumbers,
}

impl Bench {
    fn new(
        (lmax, mmax): (usize, usize),
        channels: usize,
        precision: Precision,
        order: ThreadOrder,
    ) -> Bench {
        let layout = Layout::new(lmax, mmax);
        let (x, out) = (Buf(0), Buf(0));
        let program = Program {
            layout: layout.clone(),
            channels,
            cutoff: CUTOFF,
            basis: 1,
            buffers: vec![],
            weights: vec![],
            ops: vec![
                Op::GateEdges { x, channels, out },
                Op::GateAtoms {
                    x,
                    gates: x,
                    channels,
                    out,
                },
            ],
            atom_energy: x,
        };
        Bench {
            device: device_with(order),
            shapes: Shapes::new(&program, precision),
            layout,
            channels,
            precision,
            numbers: EdgeNumbers::of(precision),
        }
    }

    fn device(&self) -> &dyn Device {
        &*self.device
    }

    fn put<T: bytemuck::NoUninit>(&self, values: &[T]) -> DevicePtr {
        // An empty array is one of one element, so that it has an address.
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let to = self.device().alloc(bytes.len().max(16)).unwrap();
        self.device().upload_bytes(to, bytes).unwrap();
        to
    }

    fn floats(&self, values: &[f64]) -> DevicePtr {
        self.put(&values.iter().map(|&x| x as f32).collect::<Vec<_>>())
    }

    fn zeros(&self, count: usize) -> DevicePtr {
        self.floats(&vec![0.0; count])
    }

    fn numbers(&self, values: &[f64], number: Number) -> DevicePtr {
        match number {
            Number::F16 => self.put(
                &values
                    .iter()
                    .map(|&x| f16::from_f64(x).to_bits())
                    .collect::<Vec<_>>(),
            ),
            Number::F32 => self.floats(values),
        }
    }

    /// Edge values.
    fn stored(&self, values: &[f64]) -> DevicePtr {
        self.numbers(values, self.numbers.values)
    }

    /// What becomes of a value that is stored.
    fn rounded(&self, values: &[f64]) -> Vec<f64> {
        let round = |&x: &f64| match self.numbers.values {
            Number::F16 => f16::from_f64(x).to_f64(),
            Number::F32 => f64::from(x as f32),
        };
        values.iter().map(round).collect()
    }

    /// Memory for numbers that a kernel must write.
    fn number_space(&self, count: usize, number: Number) -> DevicePtr {
        self.device()
            .alloc((count * number.bytes()).max(16))
            .unwrap()
    }

    /// The same for operands.
    fn operand_space(&self, count: usize) -> DevicePtr {
        self.number_space(count, self.numbers.operands)
    }

    fn float_space(&self, count: usize) -> DevicePtr {
        self.device().alloc((4 * count).max(16)).unwrap()
    }

    fn get(&self, from: DevicePtr, count: usize) -> Vec<f64> {
        let values: Vec<f32> = self.device().download(from, count).unwrap();
        values.into_iter().map(f64::from).collect()
    }

    fn get_operands(&self, from: DevicePtr, count: usize) -> Vec<f64> {
        self.get_numbers(from, count, self.numbers.operands)
    }

    fn get_numbers(&self, from: DevicePtr, count: usize, number: Number) -> Vec<f64> {
        match number {
            Number::F16 => {
                let values: Vec<u16> = self.device().download(from, count).unwrap();
                values.iter().map(|&x| f16::from_bits(x).to_f64()).collect()
            }
            Number::F32 => self.get(from, count),
        }
    }

    fn launch<P: Params>(&self, (kernel, size): Launch, params: &P) {
        self.device().launch(kernel, size, params).unwrap();
    }

    /// Of operands, relative to the largest value.
    fn tolerance(&self) -> f64 {
        match self.numbers.operands {
            Number::F16 => 1.5e-3,
            Number::F32 => 3e-6,
        }
    }

    fn name(&self) -> String {
        format!(
            "lmax {} mmax {} C {} {}",
            self.layout.lmax, self.layout.mmax, self.channels, self.precision
        )
    }
}

/// All values within `tolerance` times the largest expected one.
fn assert_close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!(
            (a - b).abs() <= tolerance * scale,
            "{what}: value {i} is {a}, expected {b}; the largest is {scale}"
        );
    }
}

/// The layouts with some numbers of channels: by 4 and odd, less than a warp, several warps.
fn benches(order: ThreadOrder) -> Vec<Bench> {
    let mut benches = Vec::new();
    for precision in PRECISIONS {
        for (i, layout) in LAYOUTS.into_iter().enumerate() {
            let channels: &[usize] = match i {
                2 => &[1, 5, 12, 45, 128, 160],
                5 => &[7, 36],
                _ => &[3, 8],
            };
            for &channels in channels {
                benches.push(Bench::new(layout, channels, precision, order));
            }
        }
    }
    benches
}

const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::Tf32, Precision::F16];

const ORDERS: [ThreadOrder; 2] = [ThreadOrder::Ascending, ThreadOrder::Shuffled(3)];
