//! Dense layers on atoms: embedding, linear maps, linear maps per degree.

use super::matmul::{Start, matmul};
use super::real::{Real, add, silu, silu_slope, vectorised};
use super::run::{Frame, Run, Tile};
use crate::nn::{Buf, Weight};

/// out\[i\]\[0\] = table\[Z_i\] + conditioning.
pub(super) fn embed<T: Real>(
    run: &Run<T>,
    tile: &Tile,
    frame: &mut Frame<T>,
    table: Weight,
    out: Buf,
) {
    let channels = run.program.channels;
    let table = run.weights.plain(table);
    let conditioning = &run.system(tile).mixed.vector;
    let y = frame.take(out);
    for (row, atom) in y
        .chunks_exact_mut(run.layout.rows * channels)
        .zip(tile.rows.clone())
    {
        row.fill(T::ZERO);
        let element = &table[run.numbers[atom] as usize * channels..][..channels];
        for ((y, &e), &c) in row.iter_mut().zip(element).zip(conditioning) {
            *y = e + c;
        }
    }
    frame.put(out, y);
}

/// y = W x + b, possibly SiLU.
pub(super) fn forward<T: Real>(
    run: &Run<T>,
    tile: &Tile,
    frame: &mut Frame<T>,
    x: Buf,
    (weight, bias): (Weight, Weight),
    with_silu: bool,
    [pre, out]: [Buf; 2],
) {
    let system = run.system(tile);
    let w = run
        .weights
        .linear(weight, &system.mixed, system.conditioning.task_index);
    let bias = run.weights.plain(bias);
    let rows = tile.rows.len();
    let y = frame.take(pre);
    let stride = run.program.width(x);
    matmul(
        rows,
        (run.value(frame, tile, x), stride),
        &w.forward,
        Start::Bias(bias),
        (y, w.out),
    );
    if with_silu {
        let activated = frame.take(out);
        vectorised(
            #[inline(always)]
            || {
                for (a, &y) in activated.iter_mut().zip(y.iter()) {
                    *a = silu(y);
                }
            },
        );
        frame.put(out, activated);
    }
    frame.put(pre, y);
}

/// x_bar += W^T (y_bar ⊙ SiLU').
pub(super) fn backward<T: Real>(
    run: &Run<T>,
    tile: &Tile,
    values: &Frame<T>,
    frame: &mut Frame<T>,
    weight: Weight,
    with_silu: bool,
    [x, pre, out]: [Buf; 3],
) {
    let system = run.system(tile);
    let w = run
        .weights
        .linear(weight, &system.mixed, system.conditioning.task_index);
    let y_bar = frame.take(out);
    if with_silu {
        let pre = run.value(values, tile, pre);
        vectorised(
            #[inline(always)]
            || {
                for (g, &y) in y_bar.iter_mut().zip(pre) {
                    *g *= silu_slope(y);
                }
            },
        );
    }
    let x_bar = frame.take(x);
    let stride = run.program.width(x);
    matmul(
        tile.rows.len(),
        (y_bar, w.out),
        &w.backward,
        Start::Add,
        (x_bar, stride),
    );
    frame.put(x, x_bar);
    frame.put(out, y_bar);
}

/// y\[l, m\] = W_l x\[l, m\], bias on degree 0, plus a residual.
pub(super) fn per_degree_forward<T: Real>(
    run: &Run<T>,
    tile: &Tile,
    frame: &mut Frame<T>,
    x: Buf,
    (weight, bias): (Weight, Weight),
    residual: Option<Buf>,
    out: Buf,
) {
    let maps = run.weights.per_degree(weight);
    let (channels_in, channels_out) = (maps[0].input, maps[0].out);
    let (stride_in, stride_out) = (
        run.layout.rows * channels_in,
        run.layout.rows * channels_out,
    );
    let y = frame.take(out);
    match residual {
        Some(r) => y.copy_from_slice(run.value(frame, tile, r)),
        None => y.fill(T::ZERO),
    }
    for row in y.chunks_exact_mut(stride_out) {
        add(run.weights.plain(bias), row);
    }
    let x = run.value(frame, tile, x);
    for (row, l) in run.layout.row_degree().enumerate() {
        let w = &maps[l];
        matmul(
            tile.rows.len(),
            (&x[row * channels_in..], stride_in),
            &w.forward,
            Start::Add,
            (&mut y[row * channels_out..], stride_out),
        );
    }
    frame.put(out, y);
}

/// x_bar\[l, m\] += W_l^T y_bar\[l, m\]; the residual gets y_bar.
pub(super) fn per_degree_backward<T: Real>(
    run: &Run<T>,
    tile: &Tile,
    frame: &mut Frame<T>,
    x: Buf,
    weight: Weight,
    residual: Option<Buf>,
    out: Buf,
) {
    if let Some(residual) = residual {
        pass_on(frame, residual, out);
    }
    let maps = run.weights.per_degree(weight);
    let (channels_in, channels_out) = (maps[0].input, maps[0].out);
    let (stride_in, stride_out) = (
        run.layout.rows * channels_in,
        run.layout.rows * channels_out,
    );
    let y_bar = frame.take(out);
    let x_bar = frame.take(x);
    for (row, l) in run.layout.row_degree().enumerate() {
        let w = &maps[l];
        matmul(
            tile.rows.len(),
            (&y_bar[row * channels_out..], stride_out),
            &w.backward,
            Start::Add,
            (&mut x_bar[row * channels_in..], stride_in),
        );
    }
    frame.put(x, x_bar);
    frame.put(out, y_bar);
}

/// x_bar += y_bar.
pub(super) fn pass_on<T: Real>(frame: &mut Frame<T>, x: Buf, out: Buf) {
    let y_bar = frame.take(out);
    let x_bar = frame.take(x);
    add(y_bar, x_bar);
    frame.put(x, x_bar);
    frame.put(out, y_bar);
}
