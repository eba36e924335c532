//! Normalisation over degrees, and channel balancing.

use super::real::{Real, dot, sum, vectorised};
use super::run::{Frame, Run, Tile};
use crate::nn::{BalanceTarget, Buf, Weight};
use std::ops::Range;

const EPSILON: f64 = 1e-5;

/// Mean of degree 0 and the scale s = (mean_c sum_rows w z^2 + eps)^(-1/2) of one atom.
#[inline(always)]
fn statistics<T: Real>(x: &[T], channels: usize, lmax: usize) -> (T, T) {
    let per_channel = 1.0 / channels as f64;
    let mean = sum(&x[..channels]) * T::from_f64(per_channel);
    let mut square = T::ZERO;
    for l in 0..=lmax {
        let rows = &x[l * l * channels..(l + 1) * (l + 1) * channels];
        let part = if l == 0 {
            // The centred values are squared, not the difference of large squares taken.
            let mut lanes = [T::ZERO; super::real::LANES];
            for (i, &v) in rows.iter().enumerate() {
                let z = v - mean;
                let lane = i % super::real::LANES;
                lanes[lane] = z.mul_add(z, lanes[lane]);
            }
            super::real::add_lanes(lanes)
        } else {
            dot(rows, rows)
        };
        square = part.mul_add(row_weight(l, lmax), square);
    }
    let scale = square
        .mul_add(T::from_f64(per_channel), T::from_f64(EPSILON))
        .inverse_sqrt();
    (mean, scale)
}

/// Weight of a row of degree l: every degree counts alike.
#[inline(always)]
fn row_weight<T: Real>(l: usize, lmax: usize) -> T {
    T::from_f64(1.0 / ((2 * l + 1) * (lmax + 1)) as f64)
}

/// See [`Op::RmsNorm`](crate::nn::Op::RmsNorm).
pub(super) fn forward<T: Real>(
    run: &Run<T>,
    tile: &Tile,
    frame: &mut Frame<T>,
    x: Buf,
    (weight, bias): (Weight, Weight),
    add_conditioning: bool,
    out: Buf,
) {
    let (channels, lmax) = (run.program.channels, run.layout.lmax);
    let (weight, bias) = (run.weights.plain(weight), run.weights.plain(bias));
    let conditioning = &run.system(tile).mixed.vector;
    let stride = run.layout.rows * channels;
    let y = frame.take(out);
    let x = run.value(frame, tile, x);
    vectorised(
        #[inline(always)]
        || {
            for (x, y) in x.chunks_exact(stride).zip(y.chunks_exact_mut(stride)) {
                let (mean, scale) = statistics(x, channels, lmax);
                for l in 0..=lmax {
                    let weight = &weight[l * channels..][..channels];
                    for row in l * l..(l + 1) * (l + 1) {
                        let x = &x[row * channels..][..channels];
                        let y = &mut y[row * channels..][..channels];
                        if row == 0 {
                            for c in 0..channels {
                                let z = (x[c] - mean) * scale;
                                y[c] = z.mul_add(weight[c], bias[c]);
                            }
                            if add_conditioning {
                                for (y, &c) in y.iter_mut().zip(conditioning) {
                                    *y += c;
                                }
                            }
                        } else {
                            for c in 0..channels {
                                y[c] = x[c] * scale * weight[c];
                            }
                        }
                    }
                }
            }
        },
    );
    frame.put(out, y);
}

/// With h = y_bar ⊙ weight: z_bar = s h - s^3 / C (sum h z) w_row z; degree 0 loses its mean.
pub(super) fn backward<T: Real>(
    run: &Run<T>,
    tile: &Tile,
    values: &Frame<T>,
    frame: &mut Frame<T>,
    x: Buf,
    weight: Weight,
    out: Buf,
) {
    let (channels, lmax) = (run.program.channels, run.layout.lmax);
    let weight = run.weights.plain(weight);
    let stride = run.layout.rows * channels;
    let x_value = run.value(values, tile, x);
    let y_bar = frame.take(out);
    let x_bar = frame.take(x);
    vectorised(
        #[inline(always)]
        || {
            let mut h = vec![T::ZERO; stride];
            let mut z = vec![T::ZERO; stride];
            for ((x, y_bar), x_bar) in x_value
                .chunks_exact(stride)
                .zip(y_bar.chunks_exact(stride))
                .zip(x_bar.chunks_exact_mut(stride))
            {
                let (mean, scale) = statistics(x, channels, lmax);
                z.copy_from_slice(x);
                for z in &mut z[..channels] {
                    *z -= mean;
                }
                for l in 0..=lmax {
                    let weight = &weight[l * channels..][..channels];
                    for row in l * l..(l + 1) * (l + 1) {
                        let h = &mut h[row * channels..][..channels];
                        let y_bar = &y_bar[row * channels..][..channels];
                        for c in 0..channels {
                            h[c] = y_bar[c] * weight[c];
                        }
                    }
                }
                let shared =
                    scale * scale * scale * dot(&h, &z) * T::from_f64(1.0 / channels as f64);
                let centre = {
                    let w: T = row_weight(0, lmax);
                    (scale * sum(&h[..channels]) - shared * w * sum(&z[..channels]))
                        * T::from_f64(1.0 / channels as f64)
                };
                for l in 0..=lmax {
                    let factor = shared * row_weight(l, lmax);
                    let shift = if l == 0 { centre } else { T::ZERO };
                    for i in l * l * channels..(l + 1) * (l + 1) * channels {
                        x_bar[i] += scale * h[i] - factor * z[i] - shift;
                    }
                }
            }
        },
    );
    frame.put(x, x_bar);
    frame.put(out, y_bar);
}

/// Shifts channels so that their sum over the system is the target.
pub(super) fn balance_forward<T: Real>(
    run: &Run<T>,
    tile: &Tile,
    frame: &mut Frame<T>,
    x: Buf,
    channels: Range<usize>,
    target: BalanceTarget,
    out: Buf,
) {
    let conditioning = &run.system(tile).conditioning;
    let target = match target {
        BalanceTarget::Charge => conditioning.charge,
        BalanceTarget::UnpairedElectrons => conditioning.unpaired_electrons,
    };
    let stride = run.program.width(x);
    let y = frame.take(out);
    y.copy_from_slice(run.value(frame, tile, x));
    for c in channels {
        let total: f64 = y.iter().skip(c).step_by(stride).map(|v| v.to_f64()).sum();
        let shift = T::from_f64((total - target) / tile.rows.len() as f64);
        for v in y.iter_mut().skip(c).step_by(stride) {
            *v -= shift;
        }
    }
    frame.put(out, y);
}

/// The gradient loses its mean over the system in the balanced channels.
pub(super) fn balance_backward<T: Real>(
    run: &Run<T>,
    tile: &Tile,
    frame: &mut Frame<T>,
    x: Buf,
    channels: Range<usize>,
    out: Buf,
) {
    let stride = run.program.width(x);
    let y_bar = frame.take(out);
    let x_bar = frame.take(x);
    for (x, &y) in x_bar.iter_mut().zip(y_bar.iter()) {
        *x += y;
    }
    for c in channels {
        let total: f64 = y_bar
            .iter()
            .skip(c)
            .step_by(stride)
            .map(|v| v.to_f64())
            .sum();
        let mean = T::from_f64(total / tile.rows.len() as f64);
        for v in x_bar.iter_mut().skip(c).step_by(stride) {
            *v -= mean;
        }
    }
    frame.put(x, x_bar);
    frame.put(out, y_bar);
}
