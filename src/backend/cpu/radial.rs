//! The radial networks of the edges.

use super::geometry::Gaussians;
use super::matmul::{Start, matmul};
use super::real::{LANES, Real, add_lanes, vectorised};
use super::run::{Frame, Run, SUMS, Tile};
use super::vector::{by_groups, groups_of, run as run_kernel};
use super::weights::{Linear, RadialNetwork};
use crate::nn::Buf;
use crate::nn::op::RadialMlp;
use pulp::{Simd, WithSimd};

const EPSILON: f64 = 1e-5;

/// Sum of a row.
#[inline(always)]
fn total<T: Real, S: Simd>(simd: S, x: &[T::Vector<S>]) -> T {
    let mut sum = T::splat(simd, T::ZERO);
    for i in 0..x.len() {
        sum = T::plus(simd, sum, x[i]);
    }
    T::total(simd, sum)
}

/// Writes (x - mean) / sqrt(variance + eps) of a row; returns the factor.
#[inline(always)]
fn normalise<T: Real, S: Simd>(simd: S, x: &[T::Vector<S>], n: T, z: &mut [T::Vector<S>]) -> T {
    let mean = T::splat(simd, total::<T, S>(simd, x) * n);
    let mut square = T::splat(simd, T::ZERO);
    let z = &mut z[..x.len()];
    for i in 0..x.len() {
        z[i] = T::minus(simd, x[i], mean);
        square = T::fused(simd, z[i], z[i], square);
    }
    let factor = T::total(simd, square)
        .mul_add(n, T::from_f64(EPSILON))
        .inverse_sqrt();
    let factors = T::splat(simd, factor);
    for i in 0..x.len() {
        z[i] = T::times(simd, z[i], factors);
    }
    factor
}

/// SiLU(LayerNorm(x)), row by row.
struct NormSilu<'a, T> {
    width: usize,
    x: &'a [T],
    weight: &'a [T],
    bias: &'a [T],
    out: &'a mut [T],
}

impl<T: Real> NormSilu<'_, T> {
    /// Rows of G vectors, or of as many as there are for G = 0.
    #[inline(always)]
    fn work<S: Simd, const G: usize>(self, simd: S) {
        let groups = groups_of::<T, S, G>(self.width);
        let n = T::from_f64(1.0 / self.width as f64);
        let weight = &T::vectors::<S>(self.weight)[..groups];
        let bias = &T::vectors::<S>(self.bias)[..groups];
        for (x, y) in T::vectors::<S>(self.x)
            .chunks_exact(groups)
            .zip(T::vectors_mut::<S>(self.out).chunks_exact_mut(groups))
        {
            normalise::<T, S>(simd, x, n, y);
            for g in 0..groups {
                let z = T::fused(simd, y[g], weight[g], bias[g]);
                y[g] = T::times(simd, z, T::sigmoids(simd, z));
            }
        }
    }
}

by_groups!(NormSilu, width);

/// Turns the gradient of SiLU(LayerNorm(x)) into that of x, in place.
struct NormSiluBackward<'a, T> {
    width: usize,
    x: &'a [T],
    weight: &'a [T],
    bias: &'a [T],
    gradient: &'a mut [T],
}

impl<T: Real> NormSiluBackward<'_, T> {
    /// Rows of G vectors, or of as many as there are for G = 0.
    #[inline(always)]
    fn work<S: Simd, const G: usize>(self, simd: S) {
        let groups = groups_of::<T, S, G>(self.width);
        let n = T::from_f64(1.0 / self.width as f64);
        let weight = &T::vectors::<S>(self.weight)[..groups];
        let bias = &T::vectors::<S>(self.bias)[..groups];
        let (zero, one) = (T::splat(simd, T::ZERO), T::splat(simd, T::ONE));
        let mut memory = vec![zero; groups];
        for (x, gradient) in T::vectors::<S>(self.x)
            .chunks_exact(groups)
            .zip(T::vectors_mut::<S>(self.gradient).chunks_exact_mut(groups))
        {
            let mut few = [zero; G];
            let z = if G > 0 {
                few.as_mut_slice()
            } else {
                memory.as_mut_slice()
            };
            let factor = normalise::<T, S>(simd, x, n, z);
            let (mut along, mut sum) = (zero, zero);
            for g in 0..groups {
                let y = T::fused(simd, z[g], weight[g], bias[g]);
                let s = T::sigmoids(simd, y);
                // SiLU' = s (1 + y (1 - s))
                let slope = T::fused(simd, y, T::minus(simd, one, s), one);
                let slope = T::times(simd, T::times(simd, s, slope), weight[g]);
                gradient[g] = T::times(simd, gradient[g], slope);
                along = T::fused(simd, gradient[g], z[g], along);
                sum = T::plus(simd, sum, gradient[g]);
            }
            let mean = T::splat(simd, T::total(simd, sum) * n);
            let along = T::splat(simd, -T::total(simd, along) * n);
            let factor = T::splat(simd, factor);
            for g in 0..groups {
                let centred = T::minus(simd, gradient[g], mean);
                gradient[g] = T::times(simd, factor, T::fused(simd, z[g], along, centred));
            }
        }
    }
}

by_groups!(NormSiluBackward, width);

/// The layers of a network.
struct Layers<'a, T> {
    gaussians: &'a Linear<T>,
    norm_1: [&'a [T]; 2],
    second: (&'a Linear<T>, &'a [T]),
    norm_2: [&'a [T]; 2],
    third: (&'a Linear<T>, &'a [T]),
}

impl<T: Real> Layers<'_, T> {
    /// Gaussians `[rows][basis]` in. `h1` holds what the elements contribute to the first layer and becomes
    /// all of it; `h2` is the second layer.
    fn apply(&self, rows: usize, gaussians: &[T], h1: &mut [T], h2: &mut [T], y: &mut [T]) {
        let hidden = self.gaussians.out;
        matmul(
            rows,
            (gaussians, self.gaussians.input),
            &self.gaussians.forward,
            Start::Add,
            (h1, hidden),
        );
        let mut activated = vec![T::ZERO; rows * hidden];
        let norm_silu = |x: &[T], [weight, bias]: [&[T]; 2], out: &mut [T]| {
            let kernel = NormSilu {
                width: hidden,
                x,
                weight,
                bias,
                out,
            };
            run_kernel(hidden, kernel);
        };
        norm_silu(h1, self.norm_1, &mut activated);
        let (w, bias) = self.second;
        matmul(
            rows,
            (&activated, hidden),
            &w.forward,
            Start::Bias(bias),
            (h2, hidden),
        );
        norm_silu(h2, self.norm_2, &mut activated);
        let (w, bias) = self.third;
        matmul(
            rows,
            (&activated, hidden),
            &w.forward,
            Start::Bias(bias),
            (y, w.out),
        );
    }
}

/// A network of one source and one target element at many distances. `[rows][basis]` -> `[rows][width]`
pub(super) fn of_pair(
    network: &RadialNetwork,
    (source, target): (u8, u8),
    gaussians: &[f64],
) -> Vec<f64> {
    let tables = &network.tables;
    let hidden = tables.gaussians.out;
    let rows = gaussians.len() / tables.gaussians.input;
    let source = &tables.source[usize::from(source) * hidden..][..hidden];
    let target = &tables.target[usize::from(target) * hidden..][..hidden];
    let elements: Vec<f64> = source.iter().zip(target).map(|(s, t)| s + t).collect();
    let mut h1 = elements.repeat(rows);
    let mut h2 = vec![0.0; rows * hidden];
    let mut y = vec![0.0; rows * network.width()];
    let layers = Layers {
        gaussians: &tables.gaussians,
        norm_1: network.norm_1.each_ref().map(Vec::as_slice),
        second: (&network.second.0, &network.second.1),
        norm_2: network.norm_2.each_ref().map(Vec::as_slice),
        third: (&network.third.0, &network.third.1),
    };
    layers.apply(rows, gaussians, &mut h1, &mut h2, &mut y);
    y
}

/// See [`Op::Radial`](crate::nn::Op::Radial).
pub(super) fn forward<T: Real>(
    run: &Run<T>,
    op: usize,
    tile: &Tile,
    frame: &mut Frame<T>,
    mlp: &RadialMlp,
    [hidden_1, hidden_2, out]: [Buf; 3],
) {
    let system = run.system(tile);
    if system.tabulated {
        return; // who needs its numbers takes them from tables
    }
    let tables = run.weights.radial[op]
        .as_ref()
        .expect("made for every radial operation");
    let (rows, basis) = (tile.rows.len(), run.program.basis);
    let hidden = tables.gaussians.out;
    let plain = |w| run.weights.plain(w);
    let linear = |w| run.weights.linear(w, &system.mixed, 0);
    let norm = |(weight, bias)| [plain(weight), plain(bias)];

    let h1 = frame.take(hidden_1);
    for (row, e) in h1.chunks_exact_mut(hidden).zip(tile.rows.clone()) {
        let element = |atom: u32| usize::from(run.numbers[atom as usize]) * hidden;
        let source = &tables.source[element(run.geometry.source[e])..][..hidden];
        let target = &tables.target[element(run.geometry.target[e])..][..hidden];
        for c in 0..hidden {
            row[c] = source[c] + target[c];
        }
    }
    let gaussians = &run.geometry.gaussians[tile.rows.start * basis..tile.rows.end * basis];
    let (h2, y) = (frame.take(hidden_2), frame.take(out));
    let layers = Layers {
        gaussians: &tables.gaussians,
        norm_1: norm(mlp.norm_1),
        second: (linear(mlp.second.0), plain(mlp.second.1)),
        norm_2: norm(mlp.norm_2),
        third: (linear(mlp.third.0), plain(mlp.third.1)),
    };
    layers.apply(rows, gaussians, h1, h2, y);
    frame.put(hidden_1, h1);
    frame.put(hidden_2, h2);
    frame.put(out, y);
}

/// Adds dE/dd to the sums of the edges.
pub(super) fn backward<T: Real>(
    run: &Run<T>,
    op: usize,
    tile: &Tile,
    values: &Frame<T>,
    frame: &mut Frame<T>,
    mlp: &RadialMlp,
    [hidden_1, hidden_2, out]: [Buf; 3],
) {
    let system = run.system(tile);
    if system.tabulated {
        return; // who has the gradients of its numbers knows their slopes
    }
    let tables = run.weights.radial[op]
        .as_ref()
        .expect("made for every radial operation");
    let (rows, basis) = (tile.rows.len(), run.program.basis);
    let hidden = tables.gaussians.out;
    let plain = |w| run.weights.plain(w);
    let linear = |w| run.weights.linear(w, &system.mixed, 0);

    let y_bar = frame.take(out);
    let mut g2 = vec![T::ZERO; rows * hidden];
    let w = linear(mlp.third.0);
    matmul(
        rows,
        (y_bar, w.out),
        &w.backward,
        Start::Zero,
        (&mut g2, hidden),
    );
    frame.put(out, y_bar);
    let norm_silu_backward = |x: &[T], (weight, bias), gradient: &mut [T]| {
        let (weight, bias) = (plain(weight), plain(bias));
        let kernel = NormSiluBackward {
            width: hidden,
            x,
            weight,
            bias,
            gradient,
        };
        run_kernel(hidden, kernel);
    };
    norm_silu_backward(run.value(values, tile, hidden_2), mlp.norm_2, &mut g2);

    let mut g1 = vec![T::ZERO; rows * hidden];
    let w = linear(mlp.second.0);
    matmul(
        rows,
        (&g2, hidden),
        &w.backward,
        Start::Zero,
        (&mut g1, hidden),
    );
    norm_silu_backward(run.value(values, tile, hidden_1), mlp.norm_1, &mut g1);

    let mut g0 = vec![T::ZERO; rows * basis];
    matmul(
        rows,
        (&g1, hidden),
        &tables.gaussians.backward,
        Start::Zero,
        (&mut g0, basis),
    );
    let Gaussians {
        spacing, exponent, ..
    } = Gaussians::new(basis, run.program.cutoff);
    let centres: Vec<f64> = (0..basis).map(|k| k as f64 * spacing).collect();
    let sums = frame
        .sums
        .as_deref_mut()
        .expect("edge segments carry the sums");
    let gaussians = &run.geometry.gaussians;
    vectorised(
        #[inline(always)]
        || {
            for (i, e) in tile.rows.clone().enumerate() {
                let d = run.geometry.distance[e];
                let g0 = &g0[i * basis..][..basis];
                let gaussians = &gaussians[e * basis..][..basis];
                let mut lanes = [T::ZERO; LANES];
                for first in (0..basis).step_by(LANES) {
                    let last = basis.min(first + LANES);
                    for k in first..last {
                        // d/dd exp(c (d - mu)^2) = 2 c (d - mu) exp(...)
                        let factor = T::from_f64(2.0 * exponent * (d - centres[k]));
                        lanes[k - first] = (g0[k] * factor).mul_add(gaussians[k], lanes[k - first]);
                    }
                }
                sums[i * SUMS] += add_lanes(lanes);
            }
        },
    );
}
