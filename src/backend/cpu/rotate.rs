//! Between atoms and edges: gather and rotate, rotate and scatter, and their gradients.
//!
//! The torque on an edge's frame is summed here (see `nn::op`): generators are antisymmetric, so
//! each pair of rows is visited once.

use super::real::{LANES, Real, add_lanes, dot, vectorised};
use super::run::{Frame, Run, SUMS, Tile};
use crate::nn::Buf;
use crate::so3::Layout;
use crate::so3::wigner::GeneratorEntry;

/// write(c, sum_k coefficient(k) row(k)\[c\]) for all channels.
#[inline(always)]
fn sum_rows<'a, T: Real>(
    count: usize,
    channels: usize,
    coefficient: impl Fn(usize) -> T,
    row: impl Fn(usize) -> &'a [T],
    mut write: impl FnMut(usize, T),
) {
    #[inline(always)]
    fn fixed<'a, T: Real, const K: usize>(
        channels: usize,
        coefficient: impl Fn(usize) -> T,
        row: impl Fn(usize) -> &'a [T],
        mut write: impl FnMut(usize, T),
    ) {
        let w: [T; K] = std::array::from_fn(&coefficient);
        let rows: [&[T]; K] = std::array::from_fn(|k| &row(k)[..channels]);
        for c in 0..channels {
            let mut s = w[0] * rows[0][c];
            for k in 1..K {
                s = w[k].mul_add(rows[k][c], s);
            }
            write(c, s);
        }
    }
    match count {
        1 => fixed::<T, 1>(channels, coefficient, row, write),
        3 => fixed::<T, 3>(channels, coefficient, row, write),
        5 => fixed::<T, 5>(channels, coefficient, row, write),
        7 => fixed::<T, 7>(channels, coefficient, row, write),
        9 => fixed::<T, 9>(channels, coefficient, row, write),
        _ => {
            for c in 0..channels {
                let mut s = T::ZERO;
                for k in 0..count {
                    s = coefficient(k).mul_add(row(k)[c], s);
                }
                write(c, s);
            }
        }
    }
}

/// The blocks of a packed Wigner matrix: degree, rows, entries.
#[inline(always)]
fn blocks<'a, T>(
    layout: &'a Layout,
    wigner: &'a [T],
) -> impl Iterator<Item = (usize, usize, &'a [T])> {
    (0..=layout.lmax).map(move |l| {
        let kept = l.min(layout.mmax);
        let rows = 2 * kept + 1;
        (
            l,
            kept,
            &wigner[layout.wigner_offset[l]..][..rows * (2 * l + 1)],
        )
    })
}

/// D x: atom rows in, `write(edge row, channel, value)` out.
#[inline(always)]
fn rotate_in<T: Real>(
    layout: &Layout,
    wigner: &[T],
    channels: usize,
    x: &[T],
    mut write: impl FnMut(usize, usize, T),
) {
    for (l, kept, d) in blocks(layout, wigner) {
        let n = 2 * l + 1;
        let x = &x[l * l * channels..][..n * channels];
        for (r, d) in d.chunks_exact(n).enumerate() {
            let edge_row = layout.edge_row(l, r as isize - kept as isize);
            sum_rows(
                n,
                channels,
                #[inline(always)]
                |k| d[k],
                #[inline(always)]
                |k| &x[k * channels..],
                #[inline(always)]
                |c, s| write(edge_row, c, s),
            );
        }
    }
}

/// D^T q: edge rows in, `write(atom row, channel, value)` out.
#[inline(always)]
fn rotate_out<T: Real>(
    layout: &Layout,
    wigner: &[T],
    channels: usize,
    q: &[T],
    mut write: impl FnMut(usize, usize, T),
) {
    for (l, kept, d) in blocks(layout, wigner) {
        let n = 2 * l + 1;
        for j in 0..n {
            sum_rows(
                2 * kept + 1,
                channels,
                #[inline(always)]
                |r| d[r * n + j],
                #[inline(always)]
                |r| &q[layout.edge_row(l, r as isize - kept as isize) * channels..],
                #[inline(always)]
                |c, s| write(l * l + j, c, s),
            );
        }
    }
}

/// Adds sum_c a^T G_k b for the three axes; `a`, `b` give rows of equal length.
#[inline(always)]
fn add_torque<'a, T: Real>(
    generators: &[GeneratorEntry],
    a: impl Fn(usize) -> &'a [T],
    b: impl Fn(usize) -> &'a [T],
    lanes: &mut [[T; LANES]; 3],
) {
    for g in generators.iter().filter(|g| g.row < g.column) {
        let value = T::from_f64(g.value);
        let (a0, a1, b0, b1) = (a(g.row), a(g.column), b(g.row), b(g.column));
        let lanes = &mut lanes[g.axis];
        let (a0, a0_rest) = a0.as_chunks::<LANES>();
        let (a1, a1_rest) = a1.as_chunks::<LANES>();
        let (b0, b0_rest) = b0.as_chunks::<LANES>();
        let (b1, b1_rest) = b1.as_chunks::<LANES>();
        for (((a0, a1), b0), b1) in a0.iter().zip(a1).zip(b0).zip(b1) {
            for i in 0..LANES {
                let t = a0[i] * b1[i] - a1[i] * b0[i];
                lanes[i] = value.mul_add(t, lanes[i]);
            }
        }
        for i in 0..a0_rest.len() {
            let t = a0_rest[i] * b1_rest[i] - a1_rest[i] * b0_rest[i];
            lanes[i] = value.mul_add(t, lanes[i]);
        }
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
    let (layout, channels) = (run.layout, run.program.channels);
    let (stride, width) = (layout.rows * channels, run.program.width(out));
    let radial_width = run.program.width(radial);
    let geometry = &run.geometry;
    let y = frame.take(out);
    let radial = run.value(frame, tile, radial);
    let x = &run.arena.values[x.0];
    vectorised(
        #[inline(always)]
        || {
            for (i, e) in tile.rows.clone().enumerate() {
                let y = &mut y[i * width..][..width];
                let radial = &radial[i * radial_width..][..radial_width];
                let wigner = &geometry.wigner[e * layout.wigner_len..][..layout.wigner_len];
                for (half, atom) in [geometry.source[e], geometry.target[e]]
                    .into_iter()
                    .enumerate()
                {
                    let x = &x[atom as usize * stride..][..stride];
                    for (l, kept, d) in blocks(layout, wigner) {
                        let n = 2 * l + 1;
                        let x = &x[l * l * channels..][..n * channels];
                        for (r, d) in d.chunks_exact(n).enumerate() {
                            let row = layout.edge_row(l, r as isize - kept as isize);
                            let scale = &radial[(2 * layout.radial_row[row] + half) * channels..]
                                [..channels];
                            let y = &mut y[(2 * row + half) * channels..][..channels];
                            sum_rows(
                                n,
                                channels,
                                #[inline(always)]
                                |k| d[k],
                                #[inline(always)]
                                |k| &x[k * channels..],
                                #[inline(always)]
                                |c, s| y[c] = s * scale[c],
                            );
                        }
                    }
                }
            }
        },
    );
    frame.put(out, y);
}

/// Edge half of the gradient: radial gradient, gathered gradient D^T q_bar, torque.
#[allow(clippy::too_many_arguments)]
pub(super) fn gather_backward<T: Real>(
    run: &Run<T>,
    tile: &Tile,
    values: &Frame<T>,
    frame: &mut Frame<T>,
    x: Buf,
    radial: Buf,
    gradient: Buf,
    out: Buf,
) {
    let (layout, channels) = (run.layout, run.program.channels);
    let wide = 2 * channels;
    let (stride, width) = (layout.rows * channels, run.program.width(out));
    let radial_width = run.program.width(radial);
    let gradient_width = run.program.width(gradient);
    let geometry = &run.geometry;
    let radial_value = run.value(values, tile, radial);
    let x = &run.arena.values[x.0];
    let y_bar = frame.take(out);
    let radial_bar = frame.take(radial);
    let n_bar = frame.take(gradient);
    let sums = frame
        .sums
        .as_deref_mut()
        .expect("edge segments carry the sums");
    vectorised(
        #[inline(always)]
        || {
            let mut q = vec![T::ZERO; width];
            for (i, e) in tile.rows.clone().enumerate() {
                let y_bar = &y_bar[i * width..][..width];
                let radial = &radial_value[i * radial_width..][..radial_width];
                let radial_bar = &mut radial_bar[i * radial_width..][..radial_width];
                let n_bar = &mut n_bar[i * gradient_width..][..gradient_width];
                let wigner = &geometry.wigner[e * layout.wigner_len..][..layout.wigner_len];
                let halves = [geometry.source[e], geometry.target[e]]
                    .map(|atom| &x[atom as usize * stride..][..stride]);
                for (half, x) in halves.into_iter().enumerate() {
                    rotate_in(
                        layout,
                        wigner,
                        channels,
                        x,
                        #[inline(always)]
                        |row, c, s| q[(2 * row + half) * channels + c] = s,
                    );
                }
                radial_bar.fill(T::ZERO);
                for row in 0..layout.edge_rows {
                    let shared = layout.radial_row[row] * wide;
                    let q = &mut q[row * wide..][..wide];
                    let y_bar = &y_bar[row * wide..][..wide];
                    let radial = &radial[shared..][..wide];
                    let radial_bar = &mut radial_bar[shared..][..wide];
                    for c in 0..wide {
                        radial_bar[c] = y_bar[c].mul_add(q[c], radial_bar[c]);
                        q[c] = y_bar[c] * radial[c];
                    }
                }
                rotate_out(
                    layout,
                    wigner,
                    wide,
                    &q,
                    #[inline(always)]
                    |row, c, s| n_bar[row * wide + c] = s,
                );
                let mut lanes = [[T::ZERO; LANES]; 3];
                for (half, x) in halves.into_iter().enumerate() {
                    add_torque(
                        run.generators,
                        #[inline(always)]
                        |row| &n_bar[(2 * row + half) * channels..][..channels],
                        #[inline(always)]
                        |row| &x[row * channels..][..channels],
                        &mut lanes,
                    );
                }
                for (k, lanes) in lanes.into_iter().enumerate() {
                    sums[i * SUMS + 2 + k] += add_lanes(lanes);
                }
            }
        },
    );
    frame.put(gradient, n_bar);
    frame.put(radial, radial_bar);
    frame.put(out, y_bar);
}

/// Atom half: adds what was gathered from each atom, as a target and as a source.
pub(super) fn gather_add_up<T: Real>(
    run: &Run<T>,
    tile: &Tile,
    frame: &mut Frame<T>,
    x: Buf,
    gradient: Buf,
) {
    let (rows, channels) = (run.layout.rows, run.program.channels);
    let width = run.program.width(gradient);
    let geometry = &run.geometry;
    let n_bar = &run.arena.gradients[gradient.0];
    let x_bar = frame.take(x);
    vectorised(
        #[inline(always)]
        || {
            let mut add = |i: usize, e: usize, half: usize| {
                let n_bar = &n_bar[e * width..][..width];
                let x_bar = &mut x_bar[i * rows * channels..][..rows * channels];
                for row in 0..rows {
                    let n_bar = &n_bar[(2 * row + half) * channels..][..channels];
                    let x_bar = &mut x_bar[row * channels..][..channels];
                    for c in 0..channels {
                        x_bar[c] += n_bar[c];
                    }
                }
            };
            for (i, atom) in tile.rows.clone().enumerate() {
                for e in geometry.target_start[atom]..geometry.target_start[atom + 1] {
                    add(i, e as usize, 1);
                }
                for k in geometry.source_start[atom]..geometry.source_start[atom + 1] {
                    add(i, geometry.outgoing[k as usize] as usize, 0);
                }
            }
        },
    );
    frame.put(x, x_bar);
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
    let (layout, channels) = (run.layout, run.program.channels);
    let (stride, width) = (layout.rows * channels, run.program.width(message));
    let geometry = &run.geometry;
    let y = frame.take(out);
    y.copy_from_slice(run.value(frame, tile, x));
    let message = &run.arena.values[message.0];
    vectorised(
        #[inline(always)]
        || {
            for (y, atom) in y.chunks_exact_mut(stride).zip(tile.rows.clone()) {
                for e in geometry.target_start[atom]..geometry.target_start[atom + 1] {
                    let e = e as usize;
                    let p = geometry.envelope[e];
                    rotate_out(
                        layout,
                        &geometry.wigner[e * layout.wigner_len..][..layout.wigner_len],
                        channels,
                        &message[e * width..][..width],
                        #[inline(always)]
                        |row, c, s| {
                            let y = &mut y[row * channels + c];
                            *y = p.mul_add(s, *y);
                        },
                    );
                }
            }
        },
    );
    frame.put(out, y);
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
    let (layout, channels) = (run.layout, run.program.channels);
    let (stride, width) = (layout.rows * channels, run.program.width(message));
    let geometry = &run.geometry;
    let y_bar = &run.arena.gradients[out.0];
    let message_value = run.value(values, tile, message);
    let message_bar = frame.take(message);
    let sums = frame
        .sums
        .as_deref_mut()
        .expect("edge segments carry the sums");
    vectorised(
        #[inline(always)]
        || {
            let mut unrotated = vec![T::ZERO; stride];
            for (i, e) in tile.rows.clone().enumerate() {
                let y_bar = &y_bar[geometry.target[e] as usize * stride..][..stride];
                let k = &message_value[i * width..][..width];
                let k_bar = &mut message_bar[i * width..][..width];
                let wigner = &geometry.wigner[e * layout.wigner_len..][..layout.wigner_len];
                let p = geometry.envelope[e];
                rotate_in(
                    layout,
                    wigner,
                    channels,
                    y_bar,
                    #[inline(always)]
                    |row, c, s| k_bar[row * channels + c] = s,
                );
                sums[i * SUMS + 1] += dot(k_bar, k);
                for k_bar in k_bar.iter_mut() {
                    *k_bar *= p;
                }
                rotate_out(
                    layout,
                    wigner,
                    channels,
                    k,
                    #[inline(always)]
                    |row, c, s| unrotated[row * channels + c] = s,
                );
                subtract_torque(
                    run.generators,
                    channels,
                    y_bar,
                    &unrotated,
                    p,
                    &mut sums[i * SUMS + 2..],
                );
            }
        },
    );
    frame.put(message, message_bar);
}

/// torque -= p a^T G b.
#[inline(always)]
fn subtract_torque<T: Real>(
    generators: &[GeneratorEntry],
    channels: usize,
    a: &[T],
    b: &[T],
    p: T,
    torque: &mut [T],
) {
    let mut lanes = [[T::ZERO; LANES]; 3];
    add_torque(
        generators,
        #[inline(always)]
        |row| &a[row * channels..][..channels],
        #[inline(always)]
        |row| &b[row * channels..][..channels],
        &mut lanes,
    );
    for (torque, lanes) in torque.iter_mut().zip(lanes) {
        *torque -= p * add_lanes(lanes);
    }
}

/// The m = 0 row of each degree of a packed Wigner matrix.
#[inline(always)]
fn polar_rows<'a, T>(
    layout: &'a Layout,
    wigner: &'a [T],
) -> impl Iterator<Item = (usize, &'a [T])> {
    blocks(layout, wigner).map(|(l, kept, d)| (l, &d[kept * (2 * l + 1)..][..2 * l + 1]))
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
    let (layout, channels) = (run.layout, run.program.channels);
    let (stride, width) = (layout.rows * channels, run.program.width(radial));
    let geometry = &run.geometry;
    let y = frame.take(out);
    y.copy_from_slice(run.value(frame, tile, x));
    let radial = &run.arena.values[radial.0];
    vectorised(
        #[inline(always)]
        || {
            for (y, atom) in y.chunks_exact_mut(stride).zip(tile.rows.clone()) {
                for e in geometry.target_start[atom]..geometry.target_start[atom + 1] {
                    let e = e as usize;
                    let p = T::from_f64(scale) * geometry.envelope[e];
                    let radial = &radial[e * width..][..width];
                    let wigner = &geometry.wigner[e * layout.wigner_len..][..layout.wigner_len];
                    for (l, d) in polar_rows(layout, wigner) {
                        let radial = &radial[l * channels..][..channels];
                        for (j, &d) in d.iter().enumerate() {
                            let y = &mut y[(l * l + j) * channels..][..channels];
                            let factor = p * d;
                            for c in 0..channels {
                                y[c] = factor.mul_add(radial[c], y[c]);
                            }
                        }
                    }
                }
            }
        },
    );
    frame.put(out, y);
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
    let (layout, channels) = (run.layout, run.program.channels);
    let (stride, width) = (layout.rows * channels, run.program.width(radial));
    let geometry = &run.geometry;
    let y_bar = &run.arena.gradients[out.0];
    let radial_value = run.value(values, tile, radial);
    let radial_bar = frame.take(radial);
    let sums = frame
        .sums
        .as_deref_mut()
        .expect("edge segments carry the sums");
    let scale = T::from_f64(scale);
    vectorised(
        #[inline(always)]
        || {
            let mut unrotated = vec![T::ZERO; stride];
            for (i, e) in tile.rows.clone().enumerate() {
                let y_bar = &y_bar[geometry.target[e] as usize * stride..][..stride];
                let radial = &radial_value[i * width..][..width];
                let radial_bar = &mut radial_bar[i * width..][..width];
                let wigner = &geometry.wigner[e * layout.wigner_len..][..layout.wigner_len];
                let p = scale * geometry.envelope[e];
                for (l, d) in polar_rows(layout, wigner) {
                    let y_bar = &y_bar[l * l * channels..];
                    let radial = &radial[l * channels..][..channels];
                    let radial_bar = &mut radial_bar[l * channels..][..channels];
                    sum_rows(
                        2 * l + 1,
                        channels,
                        #[inline(always)]
                        |k| d[k],
                        #[inline(always)]
                        |k| &y_bar[k * channels..],
                        #[inline(always)]
                        |c, s| radial_bar[c] = s,
                    );
                    for (j, &d) in d.iter().enumerate() {
                        let u = &mut unrotated[(l * l + j) * channels..][..channels];
                        for c in 0..channels {
                            u[c] = d * radial[c];
                        }
                    }
                }
                sums[i * SUMS + 1] += scale * dot(radial_bar, radial);
                for r in radial_bar.iter_mut() {
                    *r *= p;
                }
                subtract_torque(
                    run.generators,
                    channels,
                    y_bar,
                    &unrotated,
                    p,
                    &mut sums[i * SUMS + 2..],
                );
            }
        },
    );
    frame.put(radial, radial_bar);
}
