//! Weights laid out for the matrix products of the CPU backend, and the mixing of experts.

use super::matmul::Panels;
use super::real::Real;
use crate::backend::{Conditioning, WeightData, WeightSource};
use crate::nn::op::RadialMlp;
use crate::nn::{Op, Program, Weight, WeightKind, WeightSlot, WeightUse};
use rayon::prelude::*;
use std::sync::Arc;

/// y = W x in both directions.
#[derive(Clone, Debug)]
pub struct Linear<T> {
    /// Rows of W.
    pub out: usize,
    /// Columns of W.
    pub input: usize,
    /// W^T: right-hand side of y = x W^T.
    pub forward: Panels<T>,
    /// W: right-hand side of the gradient.
    pub backward: Panels<T>,
}

impl<T: Real> Linear<T> {
    fn new(out: usize, input: usize, w: &[T]) -> Linear<T> {
        Linear {
            out,
            input,
            forward: Panels::new(input, out, |i, o| w[o * input + i]),
            backward: Panels::new(out, input, |o, i| w[o * input + i]),
        }
    }

    fn bytes(&self) -> usize {
        self.forward.bytes() + self.backward.bytes()
    }
}

/// The complex map (A + iB).
#[derive(Clone, Debug)]
pub struct Complex<T> {
    /// Rows of A.
    pub out: usize,
    /// Columns of A.
    pub input: usize,
    /// How the products are taken.
    pub form: ComplexForm<T>,
}

/// Two ways to multiply complex numbers.
#[derive(Clone, Debug)]
pub enum ComplexForm<T> {
    /// Three real products, of A, B and their sum or difference: the least arithmetic.
    Three {
        /// A^T, B^T, (A + B)^T.
        forward: [Panels<T>; 3],
        /// A, B, A - B.
        backward: [Panels<T>; 3],
    },
    /// One real product of twice the size: the fewest passes over the data.
    One {
        /// \[r, s\] -> \[A r - B s, A s + B r\]
        forward: Panels<T>,
        /// Its transpose.
        backward: Panels<T>,
    },
}

/// Below this many elements of A the passes cost more than the arithmetic.
const SMALL: usize = 64 * 64;

impl<T: Real> Complex<T> {
    fn new(out: usize, input: usize, w: &[T]) -> Complex<T> {
        let (a, b) = w.split_at(out * input);
        if out * input <= SMALL {
            let element = |o: usize, i: usize| {
                let at = (o % out) * input + i % input;
                match (o < out, i < input) {
                    (true, true) | (false, false) => a[at],
                    (true, false) => -b[at],
                    (false, true) => b[at],
                }
            };
            let form = ComplexForm::One {
                forward: Panels::new(2 * input, 2 * out, |i, o| element(o, i)),
                backward: Panels::new(2 * out, 2 * input, element),
            };
            return Complex { out, input, form };
        }
        let forward = |f: fn(T, T) -> T| {
            Panels::new(input, out, |i, o| f(a[o * input + i], b[o * input + i]))
        };
        let backward = |f: fn(T, T) -> T| {
            Panels::new(out, input, |o, i| f(a[o * input + i], b[o * input + i]))
        };
        let form = ComplexForm::Three {
            forward: [forward(|a, _| a), forward(|_, b| b), forward(|a, b| a + b)],
            backward: [
                backward(|a, _| a),
                backward(|_, b| b),
                backward(|a, b| a - b),
            ],
        };
        Complex { out, input, form }
    }

    fn bytes(&self) -> usize {
        match &self.form {
            ComplexForm::Three { forward, backward } => {
                forward.iter().chain(backward).map(Panels::bytes).sum()
            }
            ComplexForm::One { forward, backward } => forward.bytes() + backward.bytes(),
        }
    }
}

/// A weight ready for use.
#[derive(Clone, Debug)]
pub enum Prepared<T> {
    /// As it is.
    Plain(Vec<T>),
    /// One linear map.
    Linear(Linear<T>),
    /// One per degree.
    PerDegree(Vec<Linear<T>>),
    /// A complex linear map.
    Complex(Complex<T>),
}

impl<T: Real> Prepared<T> {
    fn new(slot: &WeightSlot, data: Vec<T>) -> Prepared<T> {
        match (slot.usage, slot.shape.as_slice()) {
            (WeightUse::Linear, &[out, input]) => Prepared::Linear(Linear::new(out, input, &data)),
            (WeightUse::Complex, &[out, input]) => {
                Prepared::Complex(Complex::new(out / 2, input, &data))
            }
            (WeightUse::LinearPerDegree, &[_, out, input]) => Prepared::PerDegree(
                data.chunks_exact(out * input)
                    .map(|w| Linear::new(out, input, w))
                    .collect(),
            ),
            _ => Prepared::Plain(data),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Prepared::Plain(w) => w.len() * size_of::<T>(),
            Prepared::Linear(w) => w.bytes(),
            Prepared::PerDegree(w) => w.iter().map(Linear::bytes).sum(),
            Prepared::Complex(w) => w.bytes(),
        }
    }
}

/// The first layer of a radial network, with everything that depends on elements only worked out.
#[derive(Clone, Debug)]
pub struct RadialTables<T> {
    /// The columns that multiply the Gaussians.
    pub gaussians: Linear<T>,
    /// Contribution of each source element. `[elements][A]`
    pub source: Vec<T>,
    /// Contribution of each target element, bias included. `[elements][A]`
    pub target: Vec<T>,
}

/// A whole radial network in double precision: what tables are made from.
pub struct RadialNetwork {
    /// First layer.
    pub tables: RadialTables<f64>,
    /// LayerNorm after it.
    pub norm_1: [Vec<f64>; 2],
    /// Second layer and its bias.
    pub second: (Linear<f64>, Vec<f64>),
    /// LayerNorm after it.
    pub norm_2: [Vec<f64>; 2],
    /// Third layer and its bias.
    pub third: (Linear<f64>, Vec<f64>),
}

impl RadialNetwork {
    /// Reads its weights.
    pub fn new(program: &Program, source: &dyn WeightSource, mlp: &RadialMlp) -> RadialNetwork {
        let values = |w: Weight| convert::<f64>(&source.weight(&program.weights[w.0].name));
        let linear = |(w, bias): (Weight, Weight)| {
            let shape = &program.weights[w.0].shape;
            (Linear::new(shape[0], shape[1], &values(w)), values(bias))
        };
        let norm = |(weight, bias): (Weight, Weight)| [values(weight), values(bias)];
        RadialNetwork {
            tables: radial_tables(program, source, mlp),
            norm_1: norm(mlp.norm_1),
            second: linear(mlp.second),
            norm_2: norm(mlp.norm_2),
            third: linear(mlp.third),
        }
    }

    /// Numbers that it gives.
    pub fn width(&self) -> usize {
        self.third.0.out
    }
}

/// All weights that do not depend on the system, and how to get the others.
pub struct Weights<T> {
    program: Arc<Program>,
    source: Arc<dyn WeightSource>,
    fixed: Vec<Option<Prepared<T>>>,
    per_task: Vec<Vec<Prepared<T>>>,
    /// By operation index; `None` for operations other than `Radial`.
    pub radial: Vec<Option<RadialTables<T>>>,
}

/// The weights of one conditioning.
pub struct Mixed<T> {
    mixed: Vec<Option<Prepared<T>>>,
    /// The conditioning vector.
    pub vector: Vec<T>,
    /// Memory held, bytes.
    pub bytes: usize,
}

fn convert<T: Real>(data: &WeightData) -> Vec<T> {
    match data {
        WeightData::F32(w) => w.iter().map(|&x| T::from_f32(x)).collect(),
        WeightData::F64(w) => w.iter().map(|&x| T::from_f64(x)).collect(),
    }
}

impl<T: Real> Weights<T> {
    /// Prepares the weights that are the same for every system.
    pub fn new(program: Arc<Program>, source: Arc<dyn WeightSource>) -> Weights<T> {
        let mut fixed = Vec::new();
        let mut per_task = Vec::new();
        for slot in &program.weights {
            let len: usize = slot.shape.iter().product();
            match slot.kind {
                WeightKind::Fixed => {
                    fixed.push(Some(Prepared::new(
                        slot,
                        convert(&source.weight(&slot.name)),
                    )));
                    per_task.push(vec![]);
                }
                WeightKind::PerTask => {
                    let all: Vec<T> = convert(&source.weight(&slot.name));
                    fixed.push(None);
                    per_task.push(
                        all.chunks_exact(len)
                            .map(|w| Prepared::new(slot, w.to_vec()))
                            .collect(),
                    );
                }
                WeightKind::Mixed => {
                    fixed.push(None);
                    per_task.push(vec![]);
                }
            }
        }
        let radial = program
            .ops
            .iter()
            .map(|op| match op {
                Op::Radial { mlp, .. } => Some(radial_tables(&program, &*source, mlp)),
                _ => None,
            })
            .collect();
        Weights {
            program,
            source,
            fixed,
            per_task,
            radial,
        }
    }

    /// Mixes the experts: W = sum_e c_e W_e.
    pub fn mix(&self, conditioning: &Conditioning) -> Mixed<T> {
        let mixed: Vec<Option<Prepared<T>>> = self
            .program
            .weights
            .par_iter()
            .map(|slot| {
                (slot.kind == WeightKind::Mixed).then(|| {
                    let len = slot.shape.iter().product();
                    let data = match self.source.weight(&slot.name) {
                        WeightData::F32(w) => {
                            mix_experts(&conditioning.experts, &w, len, T::from_f32)
                        }
                        WeightData::F64(w) => {
                            mix_experts(&conditioning.experts, &w, len, T::from_f64)
                        }
                    };
                    Prepared::new(slot, data)
                })
            })
            .collect();
        let bytes = mixed.iter().flatten().map(Prepared::bytes).sum();
        let vector = conditioning
            .vector
            .iter()
            .map(|&x| T::from_f64(x))
            .collect();
        Mixed {
            mixed,
            vector,
            bytes,
        }
    }

    /// Memory of one [`Mixed`], bytes, at most: a layout holds up to four times the numbers of its
    /// weight (a complex map as one product, for values and for gradients).
    pub fn mixed_bytes_at_most(&self) -> usize {
        let mixed = self
            .program
            .weights
            .iter()
            .filter(|slot| slot.kind == WeightKind::Mixed);
        mixed
            .map(|slot| 4 * slot.shape.iter().product::<usize>() * size_of::<T>())
            .sum()
    }

    fn get<'a>(&'a self, weight: Weight, mixed: &'a Mixed<T>, task: usize) -> &'a Prepared<T> {
        match self.program.weights[weight.0].kind {
            WeightKind::Fixed => self.fixed[weight.0].as_ref(),
            WeightKind::PerTask => self.per_task[weight.0].get(task),
            WeightKind::Mixed => mixed.mixed[weight.0].as_ref(),
        }
        .expect("weights are complete when the backend is made")
    }

    /// A plain weight.
    pub fn plain(&self, weight: Weight) -> &[T] {
        match &self.fixed[weight.0] {
            Some(Prepared::Plain(w)) => w,
            other => unreachable!("not a plain weight: {other:?}"),
        }
    }

    /// A linear map.
    pub fn linear<'a>(&'a self, weight: Weight, mixed: &'a Mixed<T>, task: usize) -> &'a Linear<T> {
        match self.get(weight, mixed, task) {
            Prepared::Linear(w) => w,
            other => unreachable!("not a linear map: {other:?}"),
        }
    }

    /// Linear maps per degree.
    pub fn per_degree(&self, weight: Weight) -> &[Linear<T>] {
        match &self.fixed[weight.0] {
            Some(Prepared::PerDegree(w)) => w,
            other => unreachable!("not per degree: {other:?}"),
        }
    }

    /// A complex linear map.
    pub fn complex<'a>(&'a self, weight: Weight, mixed: &'a Mixed<T>) -> &'a Complex<T> {
        match self.get(weight, mixed, 0) {
            Prepared::Complex(w) => w,
            other => unreachable!("not a complex map: {other:?}"),
        }
    }
}

fn mix_experts<T: Real, W: Copy + Sync>(
    coefficients: &[f64],
    experts: &[W],
    len: usize,
    read: impl Fn(W) -> T + Sync,
) -> Vec<T> {
    let mut out = vec![T::ZERO; len];
    out.par_chunks_mut(4096)
        .enumerate()
        .for_each(|(chunk, out)| {
            super::real::vectorised(
                #[inline(always)]
                || {
                    for (expert, &c) in experts.chunks_exact(len).zip(coefficients) {
                        let c = T::from_f64(c);
                        let expert = &expert[chunk * 4096..][..out.len()];
                        for i in 0..out.len() {
                            out[i] = c.mul_add(read(expert[i]), out[i]);
                        }
                    }
                },
            );
        });
    out
}

fn radial_tables<T: Real>(
    program: &Program,
    source: &dyn WeightSource,
    mlp: &RadialMlp,
) -> RadialTables<T> {
    let values = |w: Weight| convert::<f64>(&source.weight(&program.weights[w.0].name));
    let hidden = program.weights[mlp.first_bias.0].shape[0];
    let basis = program.basis;
    let columns = basis + 2 * hidden;
    let first = values(mlp.first);
    let bias = values(mlp.first_bias);
    let table = |embedding: Weight, offset: usize, bias: Option<&[f64]>| -> Vec<T> {
        values(embedding)
            .chunks_exact(hidden)
            .flat_map(|e| {
                (0..hidden)
                    .map(|o| {
                        let row = &first[o * columns + offset..][..hidden];
                        let product: f64 = row.iter().zip(e).map(|(w, x)| w * x).sum();
                        T::from_f64(product + bias.map_or(0.0, |b| b[o]))
                    })
                    .collect::<Vec<_>>()
            })
            .collect()
    };
    let gaussians: Vec<T> = (0..hidden)
        .flat_map(|o| {
            first[o * columns..][..basis]
                .iter()
                .map(|&x| T::from_f64(x))
        })
        .collect();
    RadialTables {
        gaussians: Linear::new(hidden, basis, &gaussians),
        source: table(mlp.source_embedding, basis, None),
        target: table(mlp.target_embedding, basis + hidden, Some(&bias)),
    }
}
