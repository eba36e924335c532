//! Between atoms and edges: gather and rotate, rotate and scatter, and their gradients.
//!
//! The torque on an edge's frame is summed here (see `nn::op`): generators are antisymmetric, so
//! each pair of rows is visited once.

use super::degree_two;
use super::real::{
    Real, add, add_lanes, axpy, lanes, lanes_mut, product, product_plus, scaled, vectorised,
    with_groups,
};
use super::run::{Frame, Run, SUMS, Tile};
use crate::nn::Buf;
use crate::so3::Layout;
use crate::so3::wigner::GeneratorEntry;

/// One antisymmetric pair of a generator: `value (x[row] y[column] - x[column] y[row])`.
#[derive(Clone, Copy, Debug)]
pub(super) struct GeneratorPair<T> {
    axis: usize,
    row: usize,
    column: usize,
    value: T,
}

/// The pairs of all generators.
pub(super) fn generator_pairs<T: Real>(entries: &[GeneratorEntry]) -> Vec<GeneratorPair<T>> {
    entries
        .iter()
        .filter(|g| g.row < g.column)
        .map(|g| GeneratorPair {
            axis: g.axis,
            row: g.row,
            column: g.column,
            value: T::from_f64(g.value),
        })
        .collect()
}

/// sum_k coefficient\[k stride\] x\[k\] over N rows held in registers.
#[inline(always)]
fn combine<T: Real, const W: usize, const N: usize>(
    coefficients: &[T],
    stride: usize,
    x: &[[T; W]; N],
) -> [T; W] {
    let mut sum = scaled(coefficients[0], &x[0]);
    for k in 1..N {
        sum = axpy(coefficients[k * stride], &x[k], &sum);
    }
    sum
}

/// A block D of `rows` x N applied to N input rows, one group of channels at a time.
/// `forward`: out\[r\] = sum_k D\[r\]\[k\] x\[k\]; otherwise `rows` is N and D^T is applied to
/// inputs that are its rows.
#[inline(always)]
fn apply_block<T: Real, const W: usize, const N: usize>(
    d: &[T],
    groups: usize,
    outputs: usize,
    (output_stride, input_stride): (usize, usize),
    read: impl Fn(usize, usize) -> [T; W],
    mut write: impl FnMut(usize, usize, [T; W]),
) {
    for g in 0..groups {
        let mut x = [[T::ZERO; W]; N];
        for (k, x) in x.iter_mut().enumerate() {
            *x = read(k, g);
        }
        for r in 0..outputs {
            write(r, g, combine(&d[r * output_stride..], input_stride, &x));
        }
    }
}

/// The same for any number of inputs.
#[inline(always)]
fn apply_block_any<T: Real, const W: usize>(
    d: &[T],
    groups: usize,
    (outputs, inputs): (usize, usize),
    (output_stride, input_stride): (usize, usize),
    read: impl Fn(usize, usize) -> [T; W],
    mut write: impl FnMut(usize, usize, [T; W]),
) {
    for g in 0..groups {
        for r in 0..outputs {
            let mut sum = [T::ZERO; W];
            for k in 0..inputs {
                sum = axpy(d[r * output_stride + k * input_stride], &read(k, g), &sum);
            }
            write(r, g, sum);
        }
    }
}

macro_rules! apply_block_sized {
    ($inputs:expr, $d:expr, $groups:expr, $outputs:expr, $strides:expr, $read:expr, $write:expr) => {
        match $inputs {
            3 => apply_block::<T, W, 3>($d, $groups, $outputs, $strides, $read, $write),
            5 => apply_block::<T, W, 5>($d, $groups, $outputs, $strides, $read, $write),
            7 => apply_block::<T, W, 7>($d, $groups, $outputs, $strides, $read, $write),
            9 => apply_block::<T, W, 9>($d, $groups, $outputs, $strides, $read, $write),
            n => apply_block_any::<T, W>($d, $groups, ($outputs, n), $strides, $read, $write),
        }
    };
}

/// D x: `read(atom row, group)` in, `write(edge row, group, values)` out.
#[inline(always)]
fn rotate_in<T: Real, const W: usize>(
    layout: &Layout,
    wigner: &[T],
    groups: usize,
    read: impl Fn(usize, usize) -> [T; W],
    mut write: impl FnMut(usize, usize, [T; W]),
) {
    for g in 0..groups {
        write(0, g, read(0, g));
    }
    for l in 1..=layout.lmax {
        let rows = &layout.degree_rows[l];
        let n = 2 * l + 1;
        let d = &wigner[layout.wigner_offset[l]..][..rows.len() * n];
        apply_block_sized!(
            n,
            d,
            groups,
            rows.len(),
            (n, 1),
            #[inline(always)]
            |k, g| read(l * l + k, g),
            #[inline(always)]
            |r, g, values| write(rows[r], g, values)
        );
    }
}

/// D^T q: `read(edge row, group)` in, `write(atom row, group, values)` out.
#[inline(always)]
fn rotate_out<T: Real, const W: usize>(
    layout: &Layout,
    wigner: &[T],
    groups: usize,
    read: impl Fn(usize, usize) -> [T; W],
    mut write: impl FnMut(usize, usize, [T; W]),
) {
    for g in 0..groups {
        write(0, g, read(0, g));
    }
    for l in 1..=layout.lmax {
        let rows = &layout.degree_rows[l];
        let n = 2 * l + 1;
        let d = &wigner[layout.wigner_offset[l]..][..rows.len() * n];
        apply_block_sized!(
            rows.len(),
            d,
            groups,
            n,
            (1, n),
            #[inline(always)]
            |k, g| read(rows[k], g),
            #[inline(always)]
            |r, g, values| write(l * l + r, g, values)
        );
    }
}

/// Adds sum_c a^T G_k b for the three axes.
#[inline(always)]
fn add_torque<T: Real, const W: usize>(
    generators: &[GeneratorPair<T>],
    groups: usize,
    a: impl Fn(usize, usize) -> [T; W],
    b: impl Fn(usize, usize) -> [T; W],
    torque: &mut [[T; W]; 3],
) {
    for pair in generators {
        let mut sum = torque[pair.axis];
        for g in 0..groups {
            let mut t = product(&a(pair.row, g), &b(pair.column, g));
            let minus = product(&a(pair.column, g), &b(pair.row, g));
            for i in 0..W {
                t[i] -= minus[i];
            }
            sum = axpy(pair.value, &t, &sum);
        }
        torque[pair.axis] = sum;
    }
}

/// See [`Op::GatherRotateScale`](crate::nn::Op::GatherRotateScale).
pub(super) fn gather<T: Real>(
    run: &Run<T>,
    tile: &Tile,
    frame: &mut Frame<T>,
    x: Buf,
    radial: Buf,
    out: Buf,
) {
    let y = frame.take(out);
    let radial_width = run.program.width(radial);
    let x = &run.arena.values[x.0];
    if degree_two::fits(run.layout) {
        degree_two::Gather {
            run,
            tile,
            x,
            radial: run.radial(frame, tile, radial),
            y,
        }
        .run();
    } else {
        let radial = run.value(frame, tile, radial);
        vectorised(
            #[inline(always)]
            || {
                with_groups!(
                    run.program.channels,
                    gather_lanes::<T>(run, tile, x, radial, radial_width, y)
                )
            },
        );
    }
    frame.put(out, y);
}

#[inline(always)]
fn gather_lanes<T: Real, const W: usize, const G: usize>(
    run: &Run<T>,
    tile: &Tile,
    x: &[T],
    radial: &[T],
    radial_width: usize,
    y: &mut [T],
) {
    let (layout, geometry) = (run.layout, &run.geometry);
    let groups = if G > 0 { G } else { run.program.channels / W };
    let (stride, width) = (layout.rows * groups, 2 * layout.edge_rows * groups);
    let (x, radial, y) = (
        lanes::<T, W>(x),
        lanes::<T, W>(radial),
        lanes_mut::<T, W>(y),
    );
    let radial_width = radial_width / W;
    for (i, e) in tile.rows.clone().enumerate() {
        let y = &mut y[i * width..][..width];
        let radial = &radial[i * radial_width..][..radial_width];
        let wigner = &geometry.wigner[e * layout.wigner_len..][..layout.wigner_len];
        for half in 0..2 {
            let atom = if half == 0 {
                geometry.source[e]
            } else {
                geometry.target[e]
            };
            let x = &x[atom as usize * stride..][..stride];
            rotate_in(
                layout,
                wigner,
                groups,
                #[inline(always)]
                |row, g| x[row * groups + g],
                #[inline(always)]
                |row, g, values| {
                    let scale = &radial[(2 * layout.radial_row[row] + half) * groups + g];
                    y[(2 * row + half) * groups + g] = product(&values, scale);
                },
            );
        }
    }
}

/// Where the gradient of an edge's target goes, as a row of the tile: the last edge of the tile with this
/// target, where those of all of them are summed. And whether this edge is the first of them.
///
/// The gathered gradient is `[E][source | target]`; of its second half only those rows are used.
#[inline(always)]
pub(super) fn target_sum<T>(run: &Run<T>, tile: &Tile, e: usize) -> (bool, usize) {
    let target = run.geometry.target[e] as usize;
    let starts = &run.geometry.target_start[target..][..2];
    let (first, end) = (starts[0] as usize, starts[1] as usize);
    let last = end.min(tile.rows.end) - 1;
    (e == first.max(tile.rows.start), last - tile.rows.start)
}

/// Edge half of the gradient: radial gradient, gathered gradient D^T q_bar, torque.
pub(super) fn gather_backward<T: Real>(
    run: &Run<T>,
    tile: &Tile,
    values: &Frame<T>,
    frame: &mut Frame<T>,
    [x, radial, gradient, out]: [Buf; 4],
) {
    let x = &run.arena.values[x.0];
    let y_bar = frame.take(out);
    let n_bar = frame.take(gradient);
    let sums = frame.sums.take().expect("edge segments carry the sums");
    let mut radial_bar = frame.take_if_there(radial);
    if degree_two::fits(run.layout) {
        degree_two::GatherBackward {
            run,
            tile,
            x,
            radial: run.radial(values, tile, radial),
            y_bar,
            radial_bar: radial_bar.as_deref_mut(),
            n_bar,
            sums,
        }
        .run();
    } else {
        let mut buffers = GatherBackward {
            x,
            radial: run.value(values, tile, radial),
            radial_width: run.program.width(radial),
            y_bar,
            radial_bar: radial_bar.as_deref_mut().expect("written, not tabulated"),
            n_bar,
            sums,
        };
        vectorised(
            #[inline(always)]
            || {
                with_groups!(
                    run.program.channels,
                    gather_backward_lanes::<T>(run, tile, &mut buffers)
                )
            },
        );
    }
    frame.sums = Some(sums);
    frame.put(gradient, n_bar);
    if let Some(radial_bar) = radial_bar {
        frame.put(radial, radial_bar);
    }
    frame.put(out, y_bar);
}

struct GatherBackward<'a, T> {
    x: &'a [T],
    radial: &'a [T],
    radial_width: usize,
    y_bar: &'a [T],
    radial_bar: &'a mut [T],
    n_bar: &'a mut [T],
    sums: &'a mut [T],
}

#[inline(always)]
fn gather_backward_lanes<T: Real, const W: usize, const G: usize>(
    run: &Run<T>,
    tile: &Tile,
    buffers: &mut GatherBackward<T>,
) {
    let (layout, geometry) = (run.layout, &run.geometry);
    let groups = if G > 0 { G } else { run.program.channels / W };
    let (stride, width) = (layout.rows * groups, 2 * layout.edge_rows * groups);
    let n_width = 2 * layout.rows * groups;
    let radial_width = buffers.radial_width / W;
    let x = lanes::<T, W>(buffers.x);
    let radial = lanes::<T, W>(buffers.radial);
    let y_bar = lanes::<T, W>(buffers.y_bar);
    let radial_bar = lanes_mut::<T, W>(buffers.radial_bar);
    let n_bar = lanes_mut::<T, W>(buffers.n_bar);
    let mut q = vec![[T::ZERO; W]; width];
    let mut turned = vec![[T::ZERO; W]; n_width];
    for (i, e) in tile.rows.clone().enumerate() {
        let y_bar = &y_bar[i * width..][..width];
        let radial = &radial[i * radial_width..][..radial_width];
        let radial_bar = &mut radial_bar[i * radial_width..][..radial_width];
        let wigner = &geometry.wigner[e * layout.wigner_len..][..layout.wigner_len];
        let source = &x[geometry.source[e] as usize * stride..][..stride];
        let target = &x[geometry.target[e] as usize * stride..][..stride];
        radial_bar.fill([T::ZERO; W]);
        for half in 0..2 {
            let x = if half == 0 { source } else { target };
            rotate_in(
                layout,
                wigner,
                groups,
                #[inline(always)]
                |row, g| x[row * groups + g],
                #[inline(always)]
                |row, g, values| {
                    let at = (2 * row + half) * groups + g;
                    let shared = (2 * layout.radial_row[row] + half) * groups + g;
                    radial_bar[shared] = product_plus(&y_bar[at], &values, &radial_bar[shared]);
                    q[at] = product(&y_bar[at], &radial[shared]);
                },
            );
        }
        rotate_out(
            layout,
            wigner,
            2 * groups,
            #[inline(always)]
            |row, g| q[row * 2 * groups + g],
            #[inline(always)]
            |row, g, values| turned[row * 2 * groups + g] = values,
        );
        let mut torque = [[T::ZERO; W]; 3];
        for half in 0..2 {
            let x = if half == 0 { source } else { target };
            add_torque(
                run.generators,
                groups,
                #[inline(always)]
                |row, g| turned[(2 * row + half) * groups + g],
                #[inline(always)]
                |row, g| x[row * groups + g],
                &mut torque,
            );
        }
        for (sum, torque) in buffers.sums[i * SUMS + 2..].iter_mut().zip(torque) {
            *sum += add_lanes(torque);
        }
        let (begins, sum_row) = target_sum(run, tile, e);
        for half in 0..2 {
            let row = [2 * i, 2 * sum_row + 1][half];
            let n_bar = &mut n_bar[row * stride..][..stride];
            for row in 0..layout.rows {
                for g in 0..groups {
                    let turned = &turned[(2 * row + half) * groups + g];
                    let n_bar = &mut n_bar[row * groups + g];
                    *n_bar = if half == 0 || begins {
                        *turned
                    } else {
                        axpy(T::ONE, turned, n_bar)
                    };
                }
            }
        }
    }
}

/// Atom half: adds what was gathered from each atom, as a target and as a source.
pub(super) fn gather_add_up<T: Real>(
    run: &Run<T>,
    tile: &Tile,
    frame: &mut Frame<T>,
    x: Buf,
    gradient: Buf,
) {
    let n_bar = &run.arena.gradients[gradient.0];
    let x_bar = frame.take(x);
    if degree_two::fits(run.layout) {
        degree_two::AddUp {
            run,
            tile,
            n_bar,
            x_bar,
        }
        .run();
    } else {
        vectorised(
            #[inline(always)]
            || {
                with_groups!(
                    run.program.channels,
                    add_up_lanes::<T>(run, tile, n_bar, x_bar)
                )
            },
        );
    }
    frame.put(x, x_bar);
}

#[inline(always)]
fn add_up_lanes<T: Real, const W: usize, const G: usize>(
    run: &Run<T>,
    tile: &Tile,
    n_bar: &[T],
    x_bar: &mut [T],
) {
    let groups = if G > 0 { G } else { run.program.channels / W };
    let rows = run.layout.rows;
    let n_bar = lanes::<T, W>(n_bar);
    let x_bar = lanes_mut::<T, W>(x_bar);
    let mut sum = vec![[T::ZERO; W]; rows * groups];
    for (i, atom) in tile.rows.clone().enumerate() {
        sum.fill([T::ZERO; W]);
        for edges in run.incoming(run.system(tile), atom) {
            add_row(n_bar, 2 * (edges.end - 1) + 1, &mut sum);
        }
        for &e in run.outgoing(atom) {
            add_row(n_bar, 2 * e as usize, &mut sum);
        }
        let x_bar = &mut x_bar[i * rows * groups..][..rows * groups];
        for (x_bar, sum) in x_bar.iter_mut().zip(&sum) {
            *x_bar = axpy(T::ONE, sum, x_bar);
        }
    }
}

/// Adds a row.
#[inline(always)]
fn add_row<T: Real, const W: usize>(rows: &[[T; W]], row: usize, sum: &mut [[T; W]]) {
    let row = &rows[row * sum.len()..][..sum.len()];
    for (sum, row) in sum.iter_mut().zip(row) {
        *sum = axpy(T::ONE, row, sum);
    }
}

/// See [`Op::RotateScatter`](crate::nn::Op::RotateScatter).
pub(super) fn scatter<T: Real>(
    run: &Run<T>,
    tile: &Tile,
    frame: &mut Frame<T>,
    message: Buf,
    x: Buf,
    out: Buf,
) {
    let y = frame.take(out);
    // The sums over the edges of an atom begin at zero, and what they are added to comes last: the other way
    // round every edge would be rounded at its size. In a crystal, where edges are alike, such errors add up:
    // the energy of one copper atom was off three times as far.
    y.fill(T::ZERO);
    let message = &run.arena.values[message.0];
    if degree_two::fits(run.layout) {
        degree_two::Scatter {
            run,
            tile,
            message,
            y,
        }
        .run();
    } else {
        vectorised(
            #[inline(always)]
            || {
                with_groups!(
                    run.program.channels,
                    scatter_lanes::<T>(run, tile, message, y)
                )
            },
        );
    }
    add(run.value(frame, tile, x), y);
    frame.put(out, y);
}

#[inline(always)]
fn scatter_lanes<T: Real, const W: usize, const G: usize>(
    run: &Run<T>,
    tile: &Tile,
    message: &[T],
    y: &mut [T],
) {
    let (layout, geometry) = (run.layout, &run.geometry);
    let groups = if G > 0 { G } else { run.program.channels / W };
    let (stride, width) = (layout.rows * groups, layout.edge_rows * groups);
    let message = lanes::<T, W>(message);
    let y = lanes_mut::<T, W>(y);
    for (i, atom) in tile.rows.clone().enumerate() {
        let y = &mut y[i * stride..][..stride];
        for e in geometry.target_start[atom]..geometry.target_start[atom + 1] {
            let e = e as usize;
            let p = geometry.envelope[e];
            let message = &message[e * width..][..width];
            rotate_out(
                layout,
                &geometry.wigner[e * layout.wigner_len..][..layout.wigner_len],
                groups,
                #[inline(always)]
                |row, g| message[row * groups + g],
                #[inline(always)]
                |row, g, values| {
                    let y = &mut y[row * groups + g];
                    *y = axpy(p, &values, y);
                },
            );
        }
    }
}

/// Edge half of the gradient of scattering: the message's gradient, dE/dp, torque.
pub(super) fn scatter_backward<T: Real>(
    run: &Run<T>,
    tile: &Tile,
    values: &Frame<T>,
    frame: &mut Frame<T>,
    message: Buf,
    out: Buf,
) {
    let y_bar = &run.arena.gradients[out.0];
    let value = run.value(values, tile, message);
    let bar = frame.take(message);
    let sums = frame
        .sums
        .as_deref_mut()
        .expect("edge segments carry the sums");
    if degree_two::fits(run.layout) {
        degree_two::ScatterBackward {
            run,
            tile,
            y_bar,
            message: value,
            message_bar: bar,
            sums,
        }
        .run();
    } else {
        vectorised(
            #[inline(always)]
            || {
                with_groups!(
                    run.program.channels,
                    scatter_backward_lanes::<T>(run, tile, y_bar, value, bar, sums)
                )
            },
        );
    }
    frame.put(message, bar);
}

#[inline(always)]
fn scatter_backward_lanes<T: Real, const W: usize, const G: usize>(
    run: &Run<T>,
    tile: &Tile,
    y_bar: &[T],
    message: &[T],
    message_bar: &mut [T],
    sums: &mut [T],
) {
    let (layout, geometry) = (run.layout, &run.geometry);
    let groups = if G > 0 { G } else { run.program.channels / W };
    let (stride, width) = (layout.rows * groups, layout.edge_rows * groups);
    let y_bar = lanes::<T, W>(y_bar);
    let message = lanes::<T, W>(message);
    let message_bar = lanes_mut::<T, W>(message_bar);
    let mut unrotated = vec![[T::ZERO; W]; stride];
    for (i, e) in tile.rows.clone().enumerate() {
        let y_bar = &y_bar[geometry.target[e] as usize * stride..][..stride];
        let k = &message[i * width..][..width];
        let k_bar = &mut message_bar[i * width..][..width];
        let wigner = &geometry.wigner[e * layout.wigner_len..][..layout.wigner_len];
        let p = geometry.envelope[e];
        rotate_in(
            layout,
            wigner,
            groups,
            #[inline(always)]
            |row, g| y_bar[row * groups + g],
            #[inline(always)]
            |row, g, values| k_bar[row * groups + g] = values,
        );
        let mut along = [T::ZERO; W];
        for (k_bar, k) in k_bar.iter_mut().zip(k) {
            for i in 0..W {
                along[i] = k_bar[i].mul_add(k[i], along[i]);
                k_bar[i] *= p;
            }
        }
        sums[i * SUMS + 1] += add_lanes(along);
        rotate_out(
            layout,
            wigner,
            groups,
            #[inline(always)]
            |row, g| k[row * groups + g],
            #[inline(always)]
            |row, g, values| unrotated[row * groups + g] = values,
        );
        subtract_torque(run, groups, y_bar, &unrotated, p, &mut sums[i * SUMS + 2..]);
    }
}

/// torque -= p a^T G b.
#[inline(always)]
fn subtract_torque<T: Real, const W: usize>(
    run: &Run<T>,
    groups: usize,
    a: &[[T; W]],
    b: &[[T; W]],
    p: T,
    sums: &mut [T],
) {
    let mut torque = [[T::ZERO; W]; 3];
    add_torque(
        run.generators,
        groups,
        #[inline(always)]
        |row, g| a[row * groups + g],
        #[inline(always)]
        |row, g| b[row * groups + g],
        &mut torque,
    );
    for (sum, torque) in sums.iter_mut().zip(torque) {
        *sum -= p * add_lanes(torque);
    }
}

/// The m = 0 row of degree l in a packed Wigner matrix.
#[inline(always)]
fn polar_row<'a, T>(layout: &Layout, wigner: &'a [T], l: usize) -> &'a [T] {
    let kept = l.min(layout.mmax);
    &wigner[layout.wigner_offset[l] + kept * (2 * l + 1)..][..2 * l + 1]
}

/// See [`Op::ScatterRadial`](crate::nn::Op::ScatterRadial).
pub(super) fn scatter_radial<T: Real>(
    run: &Run<T>,
    tile: &Tile,
    frame: &mut Frame<T>,
    radial: Buf,
    x: Buf,
    scale: f64,
    out: Buf,
) {
    let y = frame.take(out);
    y.fill(T::ZERO); // as in `scatter`
    let scale = T::from_f64(scale);
    if degree_two::fits(run.layout) {
        degree_two::ScatterRadial {
            run,
            tile,
            radial: run.radial_of_all(tile, radial),
            scale,
            y,
        }
        .run();
    } else {
        let radial = &run.arena.values[radial.0];
        vectorised(
            #[inline(always)]
            || {
                with_groups!(
                    run.program.channels,
                    scatter_radial_lanes::<T>(run, tile, radial, scale, y)
                )
            },
        );
    }
    add(run.value(frame, tile, x), y);
    frame.put(out, y);
}

#[inline(always)]
fn scatter_radial_lanes<T: Real, const W: usize, const G: usize>(
    run: &Run<T>,
    tile: &Tile,
    radial: &[T],
    scale: T,
    y: &mut [T],
) {
    let (layout, geometry) = (run.layout, &run.geometry);
    let groups = if G > 0 { G } else { run.program.channels / W };
    let (stride, width) = (layout.rows * groups, (layout.lmax + 1) * groups);
    let radial = lanes::<T, W>(radial);
    let y = lanes_mut::<T, W>(y);
    for (i, atom) in tile.rows.clone().enumerate() {
        let y = &mut y[i * stride..][..stride];
        for e in geometry.target_start[atom]..geometry.target_start[atom + 1] {
            let e = e as usize;
            let p = scale * geometry.envelope[e];
            let radial = &radial[e * width..][..width];
            let wigner = &geometry.wigner[e * layout.wigner_len..][..layout.wigner_len];
            for l in 0..=layout.lmax {
                let d = polar_row(layout, wigner, l);
                for j in 0..2 * l + 1 {
                    let factor = p * d[j];
                    for g in 0..groups {
                        let y = &mut y[(l * l + j) * groups + g];
                        *y = axpy(factor, &radial[l * groups + g], y);
                    }
                }
            }
        }
    }
}

/// Edge half of its gradient.
pub(super) fn scatter_radial_backward<T: Real>(
    run: &Run<T>,
    tile: &Tile,
    values: &Frame<T>,
    frame: &mut Frame<T>,
    radial: Buf,
    scale: f64,
    out: Buf,
) {
    let y_bar = &run.arena.gradients[out.0];
    let mut bar = frame.take_if_there(radial);
    let sums = frame
        .sums
        .as_deref_mut()
        .expect("edge segments carry the sums");
    let scale = T::from_f64(scale);
    if degree_two::fits(run.layout) {
        degree_two::ScatterRadialBackward {
            run,
            tile,
            y_bar,
            radial: run.radial(values, tile, radial),
            scale,
            radial_bar: bar.as_deref_mut(),
            sums,
        }
        .run();
    } else {
        let value = run.value(values, tile, radial);
        let bar = bar.as_deref_mut().expect("written, not tabulated");
        vectorised(
            #[inline(always)]
            || {
                with_groups!(
                    run.program.channels,
                    scatter_radial_backward_lanes::<T>(run, tile, y_bar, value, scale, bar, sums)
                )
            },
        );
    }
    if let Some(bar) = bar {
        frame.put(radial, bar);
    }
}

#[inline(always)]
fn scatter_radial_backward_lanes<T: Real, const W: usize, const G: usize>(
    run: &Run<T>,
    tile: &Tile,
    y_bar: &[T],
    radial: &[T],
    scale: T,
    radial_bar: &mut [T],
    sums: &mut [T],
) {
    let (layout, geometry) = (run.layout, &run.geometry);
    let groups = if G > 0 { G } else { run.program.channels / W };
    let (stride, width) = (layout.rows * groups, (layout.lmax + 1) * groups);
    let y_bar = lanes::<T, W>(y_bar);
    let radial = lanes::<T, W>(radial);
    let radial_bar = lanes_mut::<T, W>(radial_bar);
    let mut unrotated = vec![[T::ZERO; W]; stride];
    for (i, e) in tile.rows.clone().enumerate() {
        let y_bar = &y_bar[geometry.target[e] as usize * stride..][..stride];
        let radial = &radial[i * width..][..width];
        let radial_bar = &mut radial_bar[i * width..][..width];
        let wigner = &geometry.wigner[e * layout.wigner_len..][..layout.wigner_len];
        let p = scale * geometry.envelope[e];
        let mut along = [T::ZERO; W];
        for l in 0..=layout.lmax {
            let d = polar_row(layout, wigner, l);
            for g in 0..groups {
                let radial = &radial[l * groups + g];
                let mut sum = [T::ZERO; W];
                for j in 0..2 * l + 1 {
                    sum = axpy(d[j], &y_bar[(l * l + j) * groups + g], &sum);
                    unrotated[(l * l + j) * groups + g] = scaled(d[j], radial);
                }
                along = product_plus(&sum, radial, &along);
                radial_bar[l * groups + g] = scaled(p, &sum);
            }
        }
        sums[i * SUMS + 1] += scale * add_lanes(along);
        subtract_torque(run, groups, y_bar, &unrotated, p, &mut sums[i * SUMS + 2..]);
    }
}
