//! The radial networks of the edges.

use super::geometry::gaussian_basis;
use super::matmul::matmul;
use super::real::{Real, add_lanes, lanes, lanes_mut, silu, silu_slope, vectorised, with_lanes};
use super::run::{Frame, Run, SUMS, Tile};
use crate::nn::Buf;
use crate::nn::op::RadialMlp;

const EPSILON: f64 = 1e-5;

/// Adds up groups of numbers.
#[inline(always)]
fn total<T: Real, const W: usize>(x: &[[T; W]]) -> T {
    let mut sum = [T::ZERO; W];
    for x in x {
        for i in 0..W {
            sum[i] += x[i];
        }
    }
    add_lanes(sum)
}

/// Writes (x - mean) / sqrt(variance + eps); returns the factor.
#[inline(always)]
fn normalise<T: Real, const W: usize>(x: &[[T; W]], n: T, z: &mut [[T; W]]) -> T {
    let mean = total(x) * n;
    let mut square = [T::ZERO; W];
    for (z, x) in z.iter_mut().zip(x) {
        for i in 0..W {
            z[i] = x[i] - mean;
            square[i] = z[i].mul_add(z[i], square[i]);
        }
    }
    let factor = add_lanes(square)
        .mul_add(n, T::from_f64(EPSILON))
        .inverse_sqrt();
    for z in z.as_flattened_mut() {
        *z *= factor;
    }
    factor
}

/// SiLU(LayerNorm(x)), row by row.
fn norm_silu<T: Real>(width: usize, x: &[T], (weight, bias): (&[T], &[T]), out: &mut [T]) {
    vectorised(
        #[inline(always)]
        || with_lanes!(width, norm_silu_lanes::<T>(width, x, weight, bias, out)),
    );
}

#[inline(always)]
fn norm_silu_lanes<T: Real, const W: usize>(
    width: usize,
    x: &[T],
    weight: &[T],
    bias: &[T],
    out: &mut [T],
) {
    let n = T::from_f64(1.0 / width as f64);
    let (weight, bias) = (lanes::<T, W>(weight), lanes::<T, W>(bias));
    for (x, y) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let (x, y) = (lanes::<T, W>(x), lanes_mut::<T, W>(y));
        normalise(x, n, y);
        for ((y, w), b) in y.iter_mut().zip(weight).zip(bias) {
            for i in 0..W {
                y[i] = silu(y[i].mul_add(w[i], b[i]));
            }
        }
    }
}

/// Turns the gradient of SiLU(LayerNorm(x)) into that of x, in place.
fn norm_silu_backward<T: Real>(
    width: usize,
    x: &[T],
    (weight, bias): (&[T], &[T]),
    gradient: &mut [T],
) {
    vectorised(
        #[inline(always)]
        || {
            with_lanes!(
                width,
                norm_silu_backward_lanes::<T>(width, x, weight, bias, gradient)
            )
        },
    );
}

#[inline(always)]
fn norm_silu_backward_lanes<T: Real, const W: usize>(
    width: usize,
    x: &[T],
    weight: &[T],
    bias: &[T],
    gradient: &mut [T],
) {
    let n = T::from_f64(1.0 / width as f64);
    let (weight, bias) = (lanes::<T, W>(weight), lanes::<T, W>(bias));
    let mut z = vec![[T::ZERO; W]; width / W];
    for (x, g) in x.chunks_exact(width).zip(gradient.chunks_exact_mut(width)) {
        let (x, g) = (lanes::<T, W>(x), lanes_mut::<T, W>(g));
        let factor = normalise(x, n, &mut z);
        let mut along = [T::ZERO; W];
        for (((g, z), w), b) in g.iter_mut().zip(&z).zip(weight).zip(bias) {
            for i in 0..W {
                g[i] *= silu_slope(z[i].mul_add(w[i], b[i])) * w[i];
                along[i] = g[i].mul_add(z[i], along[i]);
            }
        }
        let mean = total(g) * n;
        let along = add_lanes(along) * n;
        for (g, z) in g.iter_mut().zip(&z) {
            for i in 0..W {
                g[i] = factor * (g[i] - mean - z[i] * along);
            }
        }
    }
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
    let tables = run.weights.radial[op]
        .as_ref()
        .expect("made for every radial operation");
    let system = run.system(tile);
    let (rows, basis) = (tile.rows.len(), run.program.basis);
    let hidden = tables.gaussians.out;
    let plain = |w| run.weights.plain(w);
    let linear = |w| run.weights.linear(w, &system.mixed, 0);

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
    matmul(
        rows,
        gaussians,
        basis,
        &tables.gaussians.forward,
        h1,
        hidden,
        true,
    );

    let mut activated = vec![T::ZERO; rows * hidden];
    norm_silu(
        hidden,
        h1,
        (plain(mlp.norm_1.0), plain(mlp.norm_1.1)),
        &mut activated,
    );
    frame.put(hidden_1, h1);

    let h2 = frame.take(hidden_2);
    for row in h2.chunks_exact_mut(hidden) {
        row.copy_from_slice(plain(mlp.second.1));
    }
    let w = linear(mlp.second.0);
    matmul(rows, &activated, hidden, &w.forward, h2, hidden, true);
    norm_silu(
        hidden,
        h2,
        (plain(mlp.norm_2.0), plain(mlp.norm_2.1)),
        &mut activated,
    );
    frame.put(hidden_2, h2);

    let y = frame.take(out);
    let w = linear(mlp.third.0);
    for row in y.chunks_exact_mut(w.out) {
        row.copy_from_slice(plain(mlp.third.1));
    }
    matmul(rows, &activated, hidden, &w.forward, y, w.out, true);
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
    let tables = run.weights.radial[op]
        .as_ref()
        .expect("made for every radial operation");
    let system = run.system(tile);
    let (rows, basis) = (tile.rows.len(), run.program.basis);
    let hidden = tables.gaussians.out;
    let plain = |w| run.weights.plain(w);
    let linear = |w| run.weights.linear(w, &system.mixed, 0);

    let y_bar = frame.take(out);
    let mut g2 = vec![T::ZERO; rows * hidden];
    let w = linear(mlp.third.0);
    matmul(rows, y_bar, w.out, &w.backward, &mut g2, hidden, false);
    frame.put(out, y_bar);
    let norm_2 = (plain(mlp.norm_2.0), plain(mlp.norm_2.1));
    norm_silu_backward(hidden, run.value(values, tile, hidden_2), norm_2, &mut g2);

    let mut g1 = vec![T::ZERO; rows * hidden];
    let w = linear(mlp.second.0);
    matmul(rows, &g2, hidden, &w.backward, &mut g1, hidden, false);
    let norm_1 = (plain(mlp.norm_1.0), plain(mlp.norm_1.1));
    norm_silu_backward(hidden, run.value(values, tile, hidden_1), norm_1, &mut g1);

    let mut g0 = vec![T::ZERO; rows * basis];
    matmul(
        rows,
        &g1,
        hidden,
        &tables.gaussians.backward,
        &mut g0,
        basis,
        false,
    );
    let (spacing, exponent) = gaussian_basis(run.program);
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
                let mut slope = T::ZERO;
                for k in 0..basis {
                    // d/dd exp(c (d - mu)^2) = 2 c (d - mu) exp(...)
                    let factor = T::from_f64(2.0 * exponent * (d - k as f64 * spacing));
                    slope = (g0[k] * factor).mul_add(gaussians[k], slope);
                }
                sums[i * SUMS] += slope;
            }
        },
    );
}
