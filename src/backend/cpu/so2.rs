//! The SO(2)-equivariant linear map on edges.
//!
//! m = 0 is one real matrix. For m > 0 the +m rows are real parts and the -m rows imaginary parts
//! of one complex product (A + iB)(r + is). Wide blocks take it with three real products instead
//! of four: A r, B s and (A + B)(r + s).

use super::matmul::{Start, matmul};
use super::real::{Real, vectorised};
use super::run::{Frame, Run, Tile};
use super::weights::{Complex, ComplexForm};
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

    /// Where an m > 0 block lies in the input and in the output.
    fn blocks<T>(&self, layout: &Layout, row: usize, w: &Complex<T>) -> (Block, Block) {
        let (x_stride, y_stride) = self.widths(layout);
        (
            Block {
                first: row * self.channels_in,
                width: w.input,
                stride: x_stride,
            },
            Block {
                first: self.gates + row * self.channels_out,
                width: w.out,
                stride: y_stride,
            },
        )
    }
}

/// Where one m > 0 block lies in an edge row: its +m rows, with the -m rows right behind.
#[derive(Clone, Copy)]
struct Block {
    first: usize,
    width: usize,
    stride: usize,
}

/// The products of one block in one direction: `y = x (A + iB)^T`, or its transpose applied to a
/// gradient.
///
/// Three real products P1 = A r, P2 = B s, P3 = (A ± B)(r + s) give r' = P1 + sign P2 and
/// s' = P3 - P1 + sign P2. Forwards the sign is -1 and P3 has A + B. Backwards A and B are
/// transposed, the sign is +1 and P3 has A - B.
#[derive(Clone, Copy)]
enum Direction {
    Forward,
    Backward,
}

/// Memory for one tile's products, used by one block after the other.
#[derive(Default)]
struct Memory<T> {
    total: Vec<T>,
    second: Vec<T>,
}

fn multiply_block<T: Real>(
    rows: usize,
    w: &Complex<T>,
    direction: Direction,
    (x, from): (&[T], Block),
    (y, to): (&mut [T], Block),
    memory: &mut Memory<T>,
) {
    let panels = match (&w.form, direction) {
        // The +m rows and the -m rows lie side by side: one product does both.
        (ComplexForm::One { forward, .. }, Direction::Forward) => {
            return matmul(
                rows,
                (&x[from.first..], from.stride),
                forward,
                Start::Zero,
                (&mut y[to.first..], to.stride),
            );
        }
        (ComplexForm::One { backward, .. }, Direction::Backward) => {
            return matmul(
                rows,
                (&x[from.first..], from.stride),
                backward,
                Start::Zero,
                (&mut y[to.first..], to.stride),
            );
        }
        (ComplexForm::Three { forward, .. }, Direction::Forward) => forward,
        (ComplexForm::Three { backward, .. }, Direction::Backward) => backward,
    };
    let [a, b, combined] = panels;
    let Memory { total, second } = memory;
    total.resize(total.len().max(rows * from.width), T::ZERO);
    second.resize(second.len().max(rows * to.width), T::ZERO);
    vectorised(
        #[inline(always)]
        || {
            for i in 0..rows {
                let pair = &x[i * from.stride + from.first..][..2 * from.width];
                let (real, imaginary) = pair.split_at(from.width);
                let total = &mut total[i * from.width..][..from.width];
                for c in 0..from.width {
                    total[c] = real[c] + imaginary[c];
                }
            }
        },
    );
    let (plus, minus) = (from.first, from.first + from.width);
    matmul(
        rows,
        (&x[plus..], from.stride),
        a,
        Start::Zero,
        (&mut y[to.first..], to.stride),
    );
    matmul(
        rows,
        (&x[minus..], from.stride),
        b,
        Start::Zero,
        (second, to.width),
    );
    matmul(
        rows,
        (total, from.width),
        combined,
        Start::Zero,
        (&mut y[to.first + to.width..], to.stride),
    );
    let sign = match direction {
        Direction::Forward => -T::ONE,
        Direction::Backward => T::ONE,
    };
    vectorised(
        #[inline(always)]
        || {
            for i in 0..rows {
                let pair = &mut y[i * to.stride + to.first..][..2 * to.width];
                let (real, imaginary) = pair.split_at_mut(to.width);
                let second = &second[i * to.width..][..to.width];
                for c in 0..to.width {
                    imaginary[c] = second[c].mul_add(sign, imaginary[c] - real[c]);
                    real[c] = second[c].mul_add(sign, real[c]);
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
    let mixed = &run.system(tile).mixed;
    let (x_stride, y_stride) = shape.widths(run.layout);
    let rows = tile.rows.len();
    let y = frame.take(out);
    let x = run.value(frame, tile, x);

    let m0 = run.weights.linear(weights.m0, mixed, 0);
    let bias = run.weights.plain(weights.m0_bias);
    matmul(
        rows,
        (x, x_stride),
        &m0.forward,
        Start::Bias(bias),
        (y, y_stride),
    );

    let mut memory = Memory::default();
    for (block, weight) in run.layout.blocks.iter().zip(&weights.m) {
        let w = run.weights.complex(*weight, mixed);
        let (from, to) = shape.blocks(run.layout, block.row, w);
        multiply_block(rows, w, Direction::Forward, (x, from), (y, to), &mut memory);
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
    let mixed = &run.system(tile).mixed;
    let (x_stride, y_stride) = shape.widths(run.layout);
    let rows = tile.rows.len();
    let y_bar = frame.take(out);
    let x_bar = frame.take(x);

    let m0 = run.weights.linear(weights.m0, mixed, 0);
    matmul(
        rows,
        (y_bar, y_stride),
        &m0.backward,
        Start::Zero,
        (x_bar, x_stride),
    );

    let mut memory = Memory::default();
    for (block, weight) in run.layout.blocks.iter().zip(&weights.m) {
        let w = run.weights.complex(*weight, mixed);
        let (to, from) = shape.blocks(run.layout, block.row, w);
        multiply_block(
            rows,
            w,
            Direction::Backward,
            (y_bar, from),
            (x_bar, to),
            &mut memory,
        );
    }
    frame.put(x, x_bar);
    frame.put(out, y_bar);
}
