//! The radial networks of the edges.

use super::geometry::gaussian_basis;
use super::matmul::matmul;
use super::real::{Real, dot, silu, silu_slope, sum, vectorised};
use super::run::{Frame, Run, SUMS, Tile};
use crate::nn::Buf;
use crate::nn::op::RadialMlp;

const EPSILON: f64 = 1e-5;

/// Mean and 1 / sqrt(variance + eps).
#[inline(always)]
fn moments<T: Real>(x: &[T], centred: &mut [T]) -> T {
    let n = T::from_f64(1.0 / x.len() as f64);
    let mean = sum(x) * n;
    for (z, &x) in centred.iter_mut().zip(x) {
        *z = x - mean;
    }
    dot(centred, centred)
        .mul_add(n, T::from_f64(EPSILON))
        .inverse_sqrt()
}

/// SiLU(LayerNorm(x)), row by row.
fn norm_silu<T: Real>(width: usize, x: &[T], (weight, bias): (&[T], &[T]), out: &mut [T]) {
    vectorised(
        #[inline(always)]
        || {
            for (x, y) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
                let scale = moments(x, y);
                for c in 0..width {
                    y[c] = silu((y[c] * scale).mul_add(weight[c], bias[c]));
                }
            }
        },
    );
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
            let n = T::from_f64(1.0 / width as f64);
            let mut z = vec![T::ZERO; width];
            for (x, g) in x.chunks_exact(width).zip(gradient.chunks_exact_mut(width)) {
                let scale = moments(x, &mut z);
                for c in 0..width {
                    z[c] *= scale;
                    g[c] *= silu_slope(z[c].mul_add(weight[c], bias[c])) * weight[c];
                }
                let mean = sum(g) * n;
                let along = dot(g, &z) * n;
                for c in 0..width {
                    g[c] = scale * (g[c] - mean - z[c] * along);
                }
            }
        },
    );
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
        (rows, hidden, basis),
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
    matmul(
        (rows, hidden, hidden),
        &activated,
        hidden,
        &w.forward,
        h2,
        hidden,
        true,
    );
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
    matmul(
        (rows, w.out, hidden),
        &activated,
        hidden,
        &w.forward,
        y,
        w.out,
        true,
    );
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
    matmul(
        (rows, hidden, w.out),
        y_bar,
        w.out,
        &w.backward,
        &mut g2,
        hidden,
        false,
    );
    frame.put(out, y_bar);
    let norm_2 = (plain(mlp.norm_2.0), plain(mlp.norm_2.1));
    norm_silu_backward(hidden, run.value(values, tile, hidden_2), norm_2, &mut g2);

    let mut g1 = vec![T::ZERO; rows * hidden];
    let w = linear(mlp.second.0);
    matmul(
        (rows, hidden, hidden),
        &g2,
        hidden,
        &w.backward,
        &mut g1,
        hidden,
        false,
    );
    let norm_1 = (plain(mlp.norm_1.0), plain(mlp.norm_1.1));
    norm_silu_backward(hidden, run.value(values, tile, hidden_1), norm_1, &mut g1);

    let mut g0 = vec![T::ZERO; rows * basis];
    matmul(
        (rows, basis, hidden),
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
    for (i, e) in tile.rows.clone().enumerate() {
        let d = run.geometry.distance[e];
        let mut slope = T::ZERO;
        for k in 0..basis {
            // d/dd exp(c (d - mu)^2) = 2 c (d - mu) exp(...)
            let factor = T::from_f64(2.0 * exponent * (d - k as f64 * spacing));
            slope = (g0[i * basis + k] * factor).mul_add(gaussians[e * basis + k], slope);
        }
        sums[i * SUMS] += slope;
    }
}
