//! Gated activation: degree 0 through SiLU, higher degrees scaled by the sigmoid of a gate.

use super::real::{Real, silu, silu_slope, vectorised};
use super::run::{Frame, Run, Tile};
use crate::nn::Buf;

/// y = gate(x) for one row set: `degree[r]` tells which gate a row takes.
#[inline(always)]
fn apply<T: Real>(degrees: &[usize], channels: usize, sigmoids: &[T], x: &[T], y: &mut [T]) {
    for (row, &l) in degrees.iter().enumerate() {
        let x = &x[row * channels..][..channels];
        let y = &mut y[row * channels..][..channels];
        if l == 0 {
            for c in 0..channels {
                y[c] = silu(x[c]);
            }
        } else {
            let s = &sigmoids[(l - 1) * channels..][..channels];
            for c in 0..channels {
                y[c] = x[c] * s[c];
            }
        }
    }
}

/// x_bar (written, or added to) and the gradient of the sigmoids (added to).
#[inline(always)]
fn apply_backward<T: Real>(
    degrees: &[usize],
    channels: usize,
    sigmoids: &[T],
    x: &[T],
    y_bar: &[T],
    sigmoids_bar: &mut [T],
    mut write: impl FnMut(usize, T),
) {
    for (row, &l) in degrees.iter().enumerate() {
        let first = row * channels;
        let x = &x[first..][..channels];
        let y_bar = &y_bar[first..][..channels];
        if l == 0 {
            for c in 0..channels {
                write(first + c, y_bar[c] * silu_slope(x[c]));
            }
        } else {
            let s = &sigmoids[(l - 1) * channels..][..channels];
            let s_bar = &mut sigmoids_bar[(l - 1) * channels..][..channels];
            for c in 0..channels {
                write(first + c, y_bar[c] * s[c]);
                s_bar[c] = y_bar[c].mul_add(x[c], s_bar[c]);
            }
        }
    }
}

#[inline(always)]
fn sigmoids_of<T: Real>(gates: &[T], out: &mut [T]) {
    for (s, &g) in out.iter_mut().zip(gates) {
        *s = g.sigmoid();
    }
}

/// See [`Op::GateEdges`](crate::nn::Op::GateEdges).
pub(super) fn edges_forward<T: Real>(
    run: &Run<T>,
    tile: &Tile,
    frame: &mut Frame<T>,
    x: Buf,
    channels: usize,
    out: Buf,
) {
    let gates = run.layout.lmax * channels;
    let (x_width, y_width) = (run.program.width(x), run.program.width(out));
    let y = frame.take(out);
    let x = run.value(frame, tile, x);
    vectorised(
        #[inline(always)]
        || {
            let mut s = vec![T::ZERO; gates];
            for (x, y) in x.chunks_exact(x_width).zip(y.chunks_exact_mut(y_width)) {
                sigmoids_of(&x[..gates], &mut s);
                apply(&run.layout.edge_row_degree, channels, &s, &x[gates..], y);
            }
        },
    );
    frame.put(out, y);
}

/// Gradient of the gates and the rows. Written, not added: a buffer of an edge has one reader.
pub(super) fn edges_backward<T: Real>(
    run: &Run<T>,
    tile: &Tile,
    values: &Frame<T>,
    frame: &mut Frame<T>,
    x: Buf,
    channels: usize,
    out: Buf,
) {
    let gates = run.layout.lmax * channels;
    let (x_width, y_width) = (run.program.width(x), run.program.width(out));
    let x_value = run.value(values, tile, x);
    let y_bar = frame.take(out);
    let x_bar = frame.take(x);
    vectorised(
        #[inline(always)]
        || {
            let mut s = vec![T::ZERO; gates];
            for ((x, y_bar), x_bar) in x_value
                .chunks_exact(x_width)
                .zip(y_bar.chunks_exact(y_width))
                .zip(x_bar.chunks_exact_mut(x_width))
            {
                sigmoids_of(&x[..gates], &mut s);
                let (gates_bar, rows_bar) = x_bar.split_at_mut(gates);
                gates_bar.fill(T::ZERO);
                apply_backward(
                    &run.layout.edge_row_degree,
                    channels,
                    &s,
                    &x[gates..],
                    y_bar,
                    gates_bar,
                    #[inline(always)]
                    |i, g| rows_bar[i] = g,
                );
                for (g, &s) in gates_bar.iter_mut().zip(&s) {
                    *g *= s * (T::ONE - s);
                }
            }
        },
    );
    frame.put(x, x_bar);
    frame.put(out, y_bar);
}

/// See [`Op::GateAtoms`](crate::nn::Op::GateAtoms).
pub(super) fn atoms_forward<T: Real>(
    run: &Run<T>,
    tile: &Tile,
    frame: &mut Frame<T>,
    x: Buf,
    gates: Buf,
    channels: usize,
    out: Buf,
) {
    let degrees: Vec<usize> = run.layout.row_degree().collect();
    let width = run.program.width(out);
    let count = run.layout.lmax * channels;
    let y = frame.take(out);
    let x = run.value(frame, tile, x);
    let gates = run.value(frame, tile, gates);
    vectorised(
        #[inline(always)]
        || {
            let mut s = vec![T::ZERO; count];
            for (i, (x, y)) in x
                .chunks_exact(width)
                .zip(y.chunks_exact_mut(width))
                .enumerate()
            {
                sigmoids_of(&gates[i * count..][..count], &mut s);
                apply(&degrees, channels, &s, x, y);
            }
        },
    );
    frame.put(out, y);
}

/// Adds the gradients of rows and gates.
pub(super) fn atoms_backward<T: Real>(
    run: &Run<T>,
    tile: &Tile,
    values: &Frame<T>,
    frame: &mut Frame<T>,
    [x, gates, out]: [Buf; 3],
    channels: usize,
) {
    let degrees: Vec<usize> = run.layout.row_degree().collect();
    let width = run.program.width(out);
    let count = run.layout.lmax * channels;
    let x_value = run.value(values, tile, x);
    let gate_value = run.value(values, tile, gates);
    let y_bar = frame.take(out);
    let x_bar = frame.take(x);
    let gates_bar = frame.take(gates);
    vectorised(
        #[inline(always)]
        || {
            let mut s = vec![T::ZERO; count];
            let mut s_bar = vec![T::ZERO; count];
            for i in 0..tile.rows.len() {
                sigmoids_of(&gate_value[i * count..][..count], &mut s);
                s_bar.fill(T::ZERO);
                let x_bar = &mut x_bar[i * width..][..width];
                apply_backward(
                    &degrees,
                    channels,
                    &s,
                    &x_value[i * width..][..width],
                    &y_bar[i * width..][..width],
                    &mut s_bar,
                    #[inline(always)]
                    |k, g| x_bar[k] += g,
                );
                let gates_bar = &mut gates_bar[i * count..][..count];
                for c in 0..count {
                    gates_bar[c] += s_bar[c] * s[c] * (T::ONE - s[c]);
                }
            }
        },
    );
    frame.put(gates, gates_bar);
    frame.put(x, x_bar);
    frame.put(out, y_bar);
}
