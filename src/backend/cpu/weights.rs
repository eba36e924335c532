//! Weights laid out for the matrix products of the CPU backend, and the mixing of experts.

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
    /// W^T, `[in][out]`: right-hand side of y = x W^T.
    pub forward: Vec<T>,
    /// W, `[out][in]`: right-hand side of the gradient.
    pub backward: Vec<T>,
}

impl<T: Real> Linear<T> {
    fn new(out: usize, input: usize, w: Vec<T>) -> Linear<T> {
        Linear {
            out,
            input,
            forward: transpose(&w, out, input),
            backward: w,
        }
    }
}

/// The complex map (A + iB): each product of two complex numbers takes three real ones.
#[derive(Clone, Debug)]
pub struct Complex<T> {
    /// Rows of A.
    pub out: usize,
    /// Columns of A.
    pub input: usize,
    /// A^T, B^T, (A + B)^T, `[in][out]` each.
    pub forward: [Vec<T>; 3],
    /// A, B, A - B, `[out][in]` each.
    pub backward: [Vec<T>; 3],
}

impl<T: Real> Complex<T> {
    fn new(out: usize, input: usize, mut w: Vec<T>) -> Complex<T> {
        let b = w.split_off(out * input);
        let combine =
            |f: fn(T, T) -> T| -> Vec<T> { w.iter().zip(&b).map(|(&a, &b)| f(a, b)).collect() };
        let sum = combine(|a, b| a + b);
        let difference = combine(|a, b| a - b);
        let t = |w: &[T]| transpose(w, out, input);
        Complex {
            out,
            input,
            forward: [t(&w), t(&b), t(&sum)],
            backward: [w, b, difference],
        }
    }
}

fn transpose<T: Real>(w: &[T], out: usize, input: usize) -> Vec<T> {
    let mut t = vec![T::ZERO; w.len()];
    // Blocks of 16 x 16 keep both sides in the cache.
    for o0 in (0..out).step_by(16) {
        for i0 in (0..input).step_by(16) {
            for o in o0..(o0 + 16).min(out) {
                for i in i0..(i0 + 16).min(input) {
                    t[i * out + o] = w[o * input + i];
                }
            }
        }
    }
    t
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
            (WeightUse::Linear, &[out, input]) => Prepared::Linear(Linear::new(out, input, data)),
            (WeightUse::Complex, &[out, input]) => {
                Prepared::Complex(Complex::new(out / 2, input, data))
            }
            (WeightUse::LinearPerDegree, &[_, out, input]) => Prepared::PerDegree(
                data.chunks_exact(out * input)
                    .map(|w| Linear::new(out, input, w.to_vec()))
                    .collect(),
            ),
            _ => Prepared::Plain(data),
        }
    }

    fn bytes(&self) -> usize {
        let numbers = match self {
            Prepared::Plain(w) => w.len(),
            Prepared::Linear(w) => 2 * w.backward.len(),
            Prepared::PerDegree(w) => w.iter().map(|w| 2 * w.backward.len()).sum(),
            Prepared::Complex(w) => 6 * w.backward[0].len(),
        };
        numbers * size_of::<T>()
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
            .iter()
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
            super::real::vectorised(|| {
                for (expert, &c) in experts.chunks_exact(len).zip(coefficients) {
                    let c = T::from_f64(c);
                    for (o, &w) in out.iter_mut().zip(&expert[chunk * 4096..]) {
                        *o = c.mul_add(read(w), *o);
                    }
                }
            });
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
    let gaussians = (0..hidden)
        .flat_map(|o| {
            first[o * columns..][..basis]
                .iter()
                .map(|&x| T::from_f64(x))
        })
        .collect();
    RadialTables {
        gaussians: Linear::new(hidden, basis, gaussians),
        source: table(mlp.source_embedding, basis, None),
        target: table(mlp.target_embedding, basis + hidden, Some(&bias)),
    }
}
