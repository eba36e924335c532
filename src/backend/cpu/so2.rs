//! The SO(2)-equivariant linear map on edges.
//!
//! m = 0 is one real matrix. For m > 0 the +m rows are real parts and the -m rows imaginary parts
//! of one complex product (A + iB)(r + is). Wide blocks take it with three real products instead
//! of four: A r, B s and (A + B)(r + s).

use super::matmul::matmul;
use super::real::{Real, vectorised};
use super::run::{Frame, Run, Tile};
use super::weights::ComplexForm;
use crate::nn::Buf;
use crate::nn::op::So2Weights;
use crate::so3::Layout;

/// Channels of one map.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    channels_in: usize,
    channels_out: usize,
    gates: usize,
}

impl Shape {
    pub fn new(channels_in: usize, channels_out: usize, gates: usize) -> Shape {
        Shape {
            channels_in,
            channels_out,
            gates,
        }
    }

    fn widths(&self, layout: &Layout) -> (usize, usize) {
        (
            layout.edge_rows * self.channels_in,
            self.gates + layout.edge_rows * self.channels_out,
        )
    }
}

/// rows of `a`[..width] and `b`[..width] added into dense `out`.
fn add_rows<T: Real>(rows: usize, width: usize, stride: usize, a: &[T], b: &[T], out: &mut [T]) {
    vectorised(
        #[inline(always)]
        || {
            for i in 0..rows {
                let (a, b) = (&a[i * stride..][..width], &b[i * stride..][..width]);
                let out = &mut out[i * width..][..width];
                for c in 0..width {
                    out[c] = a[c] + b[c];
                }
            }
        },
    );
}

/// `[rows][in]` -> `[rows][gates | out]`.
pub(super) fn forward<T: Real>(
    run: &Run<T>,
    tile: &Tile,
    frame: &mut Frame<T>,
    x: Buf,
    weights: &So2Weights,
    shape: Shape,
    out: Buf,
) {
    let system = run.system(tile);
    let (x_stride, y_stride) = shape.widths(run.layout);
    let rows = tile.rows.len();
    let y = frame.take(out);
    let x = run.value(frame, tile, x);

    let m0 = run.weights.linear(weights.m0, &system.mixed, 0);
    let bias = run.weights.plain(weights.m0_bias);
    for row in y.chunks_exact_mut(y_stride) {
        row[..m0.out].copy_from_slice(bias);
    }
    matmul(rows, x, x_stride, &m0.forward, y, y_stride, true);

    let (mut total, mut second) = (Vec::new(), Vec::new());
    for (block, weight) in run.layout.blocks.iter().zip(&weights.m) {
        let w = run.weights.complex(*weight, &system.mixed);
        let plus = block.row * shape.channels_in;
        let minus = plus + w.input;
        let y_plus = shape.gates + block.row * shape.channels_out;
        let y_minus = y_plus + w.out;
        let [a, b, sum] = match &w.form {
            ComplexForm::Three { forward, .. } => forward,
            ComplexForm::One { forward, .. } => {
                // The +m rows and the -m rows lie side by side.
                matmul(
                    rows,
                    &x[plus..],
                    x_stride,
                    forward,
                    &mut y[y_plus..],
                    y_stride,
                    false,
                );
                continue;
            }
        };
        total.resize(total.len().max(rows * w.input), T::ZERO);
        second.resize(second.len().max(rows * w.out), T::ZERO);
        add_rows(rows, w.input, x_stride, &x[plus..], &x[minus..], &mut total);
        matmul(
            rows,
            &x[plus..],
            x_stride,
            a,
            &mut y[y_plus..],
            y_stride,
            false,
        );
        matmul(rows, &x[minus..], x_stride, b, &mut second, w.out, false);
        matmul(
            rows,
            &total,
            w.input,
            sum,
            &mut y[y_minus..],
            y_stride,
            false,
        );
        vectorised(
            #[inline(always)]
            || {
                for i in 0..rows {
                    let (head, tail) = y[i * y_stride + y_plus..][..2 * w.out].split_at_mut(w.out);
                    let second = &second[i * w.out..][..w.out];
                    for c in 0..w.out {
                        tail[c] = tail[c] - head[c] - second[c];
                        head[c] -= second[c];
                    }
                }
            },
        );
    }
    frame.put(out, y);
}

/// Gradient of the input: written, not added.
pub(super) fn backward<T: Real>(
    run: &Run<T>,
    tile: &Tile,
    frame: &mut Frame<T>,
    x: Buf,
    weights: &So2Weights,
    shape: Shape,
    out: Buf,
) {
    let system = run.system(tile);
    let (x_stride, y_stride) = shape.widths(run.layout);
    let rows = tile.rows.len();
    let y_bar = frame.take(out);
    let x_bar = frame.take(x);

    let m0 = run.weights.linear(weights.m0, &system.mixed, 0);
    matmul(rows, y_bar, y_stride, &m0.backward, x_bar, x_stride, false);

    let (mut total, mut second) = (Vec::new(), Vec::new());
    for (block, weight) in run.layout.blocks.iter().zip(&weights.m) {
        let w = run.weights.complex(*weight, &system.mixed);
        let plus = block.row * shape.channels_in;
        let minus = plus + w.input;
        let y_plus = shape.gates + block.row * shape.channels_out;
        let y_minus = y_plus + w.out;
        let [a, b, difference] = match &w.form {
            ComplexForm::Three { backward, .. } => backward,
            ComplexForm::One { backward, .. } => {
                matmul(
                    rows,
                    &y_bar[y_plus..],
                    y_stride,
                    backward,
                    &mut x_bar[plus..],
                    x_stride,
                    false,
                );
                continue;
            }
        };
        // r_bar = A^T y+ + B^T y-, s_bar = A^T y- - B^T y+ = (A - B)^T (y+ + y-) - A^T y+ + B^T y-
        total.resize(total.len().max(rows * w.out), T::ZERO);
        second.resize(second.len().max(rows * w.input), T::ZERO);
        add_rows(
            rows,
            w.out,
            y_stride,
            &y_bar[y_plus..],
            &y_bar[y_minus..],
            &mut total,
        );
        matmul(
            rows,
            &y_bar[y_plus..],
            y_stride,
            a,
            &mut x_bar[plus..],
            x_stride,
            false,
        );
        matmul(
            rows,
            &y_bar[y_minus..],
            y_stride,
            b,
            &mut second,
            w.input,
            false,
        );
        matmul(
            rows,
            &total,
            w.out,
            difference,
            &mut x_bar[minus..],
            x_stride,
            false,
        );
        vectorised(
            #[inline(always)]
            || {
                for i in 0..rows {
                    let (head, tail) =
                        x_bar[i * x_stride + plus..][..2 * w.input].split_at_mut(w.input);
                    let second = &second[i * w.input..][..w.input];
                    for c in 0..w.input {
                        tail[c] = tail[c] - head[c] + second[c];
                        head[c] += second[c];
                    }
                }
            },
        );
    }
    frame.put(x, x_bar);
    frame.put(out, y_bar);
}
