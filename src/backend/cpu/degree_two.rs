//! The operations of [`rotate`](super::rotate) for lmax = mmax = 2, written out.
//!
//! All released small models are of this kind. A rotation is 34 products with numbers known to lie
//! in registers; and as no row is cut off on the edges, torques may be taken in the edge's own frame,
//! where both sides of them are at hand: `n_bar^T G_k n = q_bar^T (D G_k D^T) q`, and
//! `D G_k D^T = sum_j R_jk G_j` with the rotation R itself. The component along the edge is left
//! out: all of a network's torques about an edge sum to zero, and it does not enter the gradient.
//!
//! Loops here count: closures of `map` and the like are functions without the kernel's vector
//! instructions, and vectors would go through memory.

use super::radial_table::RadialRows;
use super::real::Real;
use super::rotate;
use super::run::{Run, SUMS, Tile};
use super::vector::{by_groups, groups_of, run as run_kernel};
use crate::so3::Layout;
use pulp::{Simd, WithSimd};

/// Rows of an atom and of an edge.
const ROWS: usize = 9;
/// Rows of radial numbers: +m and -m share them.
const RADIAL_ROWS: usize = 6;
/// Edge row of each atom row.
const EDGE_ROW: [usize; ROWS] = [0, 5, 1, 3, 8, 6, 2, 4, 7];
/// Edge row of +m (or of m = 0) of each radial row.
const PLUS: [usize; RADIAL_ROWS] = [0, 1, 2, 3, 4, 7];
/// Edge row of -m.
const MINUS: [Option<usize>; RADIAL_ROWS] = [None, None, None, Some(5), Some(6), Some(8)];
/// Numbers of a packed Wigner matrix.
const WIGNER: usize = 35;
/// The m = 0 row of each degree in it.
const POLAR: [usize; 3] = [0, 4, 20];
/// sqrt(3)
const ROOT_3: f64 = 1.732_050_807_568_877_2;

/// Antisymmetric pairs (row, column, value) of the generators about x and z, in atom rows.
const ABOUT_X: [(usize, usize, f64); 4] =
    [(2, 3, -1.0), (4, 5, 1.0), (6, 7, -ROOT_3), (7, 8, -1.0)];
/// See [`ABOUT_X`].
const ABOUT_Z: [(usize, usize, f64); 4] =
    [(1, 2, -1.0), (4, 7, -1.0), (5, 6, -ROOT_3), (5, 8, -1.0)];

/// Whether these operations are for this layout.
pub(super) fn fits(layout: &Layout) -> bool {
    (layout.lmax, layout.mmax) == (2, 2)
}

/// The rows of one group of channels.
type Rows<T, S> = [<T as super::vector::Vectors>::Vector<S>; ROWS];

/// Packed Wigner matrix of an edge.
#[inline(always)]
fn wigner<'a, T: Real>(run: &'a Run<T>, e: usize) -> &'a [T; WIGNER] {
    run.geometry.wigner[e * WIGNER..]
        .first_chunk()
        .expect("one matrix per edge")
}

/// D x, in edge rows.
#[inline(always)]
fn rotate_in<T: Real, S: Simd>(simd: S, d: &[T; WIGNER], x: &Rows<T, S>) -> Rows<T, S> {
    let mut out = [x[0]; ROWS];
    for r in 0..3 {
        let mut sum = T::times(simd, T::splat(simd, d[1 + 3 * r]), x[1]);
        for k in 1..3 {
            sum = T::fused(simd, T::splat(simd, d[1 + 3 * r + k]), x[1 + k], sum);
        }
        out[EDGE_ROW[1 + r]] = sum;
    }
    for r in 0..5 {
        let mut sum = T::times(simd, T::splat(simd, d[10 + 5 * r]), x[4]);
        for k in 1..5 {
            sum = T::fused(simd, T::splat(simd, d[10 + 5 * r + k]), x[4 + k], sum);
        }
        out[EDGE_ROW[4 + r]] = sum;
    }
    out
}

/// sum + D^T q, in atom rows.
#[inline(always)]
fn rotate_out<T: Real, S: Simd>(
    simd: S,
    d: &[T; WIGNER],
    q: &Rows<T, S>,
    sum: &Rows<T, S>,
) -> Rows<T, S> {
    let mut out = *sum;
    out[0] = T::plus(simd, out[0], q[0]);
    for k in 0..3 {
        for r in 0..3 {
            let d = T::splat(simd, d[1 + 3 * r + k]);
            out[1 + k] = T::fused(simd, d, q[EDGE_ROW[1 + r]], out[1 + k]);
        }
    }
    for k in 0..5 {
        for r in 0..5 {
            let d = T::splat(simd, d[10 + 5 * r + k]);
            out[4 + k] = T::fused(simd, d, q[EDGE_ROW[4 + r]], out[4 + k]);
        }
    }
    out
}

/// torque + a^T G b about x and z of the edge's frame, with a and b in edge rows.
#[inline(always)]
fn add_torque<T: Real, S: Simd>(
    simd: S,
    a: &Rows<T, S>,
    b: &Rows<T, S>,
    torque: [T::Vector<S>; 2],
) -> [T::Vector<S>; 2] {
    let mut out = torque;
    for axis in 0..2 {
        let pairs = [ABOUT_X, ABOUT_Z][axis];
        for i in 0..pairs.len() {
            let (row, column, value) = pairs[i];
            let (row, column) = (EDGE_ROW[row], EDGE_ROW[column]);
            let minus = T::times(simd, a[column], b[row]);
            let plus = T::times(simd, a[row], b[column]);
            let pair = T::minus(simd, plus, minus);
            let value = T::splat(simd, T::from_f64(value));
            out[axis] = T::fused(simd, value, pair, out[axis]);
        }
    }
    out
}

/// Sums over the channels.
#[inline(always)]
fn totals<T: Real, S: Simd>(simd: S, [x, z]: [T::Vector<S>; 2]) -> [T; 2] {
    [T::total(simd, x), T::total(simd, z)]
}

/// Adds a torque of the edge's frame, times a factor, to the sums of an edge, which are in the
/// laboratory's: R^T t.
#[inline(always)]
fn add_to_sums<T: Real>(d: &[T; WIGNER], factor: T, [x, z]: [T; 2], sums: &mut [T]) {
    let (x, z) = (factor * x, factor * z);
    for k in 0..3 {
        sums[2 + k] = x.mul_add(d[1 + k], z.mul_add(d[7 + k], sums[2 + k]));
    }
}

/// The rows of one group: `x[row * groups + g]`.
#[inline(always)]
fn load<V: Copy>(x: &[V], groups: usize, g: usize) -> [V; ROWS] {
    let x = &x[..ROWS * groups];
    let mut out = [x[g]; ROWS];
    for row in 1..ROWS {
        out[row] = x[row * groups + g];
    }
    out
}

/// The other way round.
#[inline(always)]
fn store<V: Copy>(rows: &[V; ROWS], y: &mut [V], groups: usize, g: usize) {
    let y = &mut y[..ROWS * groups];
    for row in 0..ROWS {
        y[row * groups + g] = rows[row];
    }
}

/// A kernel of this file: how to run it, and the number of vectors of a row.
macro_rules! kernel {
    ($kernel:ident) => {
        by_groups!($kernel, run.program.channels);

        impl<T: Real> $kernel<'_, T> {
            /// Runs with the widest vectors.
            pub(super) fn run(self) {
                run_kernel(self.run.program.channels, self);
            }

            /// Groups of channels.
            #[inline(always)]
            fn groups<S: Simd, const G: usize>(&self) -> usize {
                groups_of::<T, S, G>(self.run.program.channels)
            }
        }
    };
}

/// See [`rotate::gather`](super::rotate::gather).
pub(super) struct Gather<'a, T> {
    pub run: &'a Run<'a, T>,
    pub tile: &'a Tile,
    pub x: &'a [T],
    pub radial: RadialRows<'a, T>,
    pub y: &'a mut [T],
}

kernel!(Gather);

impl<T: Real> Gather<'_, T> {
    #[inline(always)]
    fn work<S: Simd, const G: usize>(self, simd: S) {
        if self.radial.tabulated() {
            self.edges::<S, G, true>(simd);
        } else {
            self.edges::<S, G, false>(simd);
        }
    }

    #[inline(always)]
    fn edges<S: Simd, const G: usize, const TABULATED: bool>(self, simd: S) {
        let groups = self.groups::<S, G>();
        let geometry = &self.run.geometry;
        let x = T::vectors::<S>(self.x);
        let y = T::vectors_mut::<S>(self.y);
        let edges = self.tile.rows.clone();
        for (i, (e, y)) in edges.zip(y.chunks_exact_mut(2 * ROWS * groups)).enumerate() {
            let d = wigner(self.run, e);
            let radial = self.radial.row(simd, i, e, 2 * RADIAL_ROWS * groups);
            for half in 0..2 {
                let atom = [geometry.source[e], geometry.target[e]][half];
                let x = &x[atom as usize * ROWS * groups..][..ROWS * groups];
                for g in 0..groups {
                    let q = rotate_in(simd, d, &load(x, groups, g));
                    for r in 0..RADIAL_ROWS {
                        let scale = radial.value::<TABULATED>(simd, (2 * r + half) * groups + g);
                        let plus = PLUS[r];
                        y[(2 * plus + half) * groups + g] = T::times(simd, q[plus], scale);
                        if let Some(minus) = MINUS[r] {
                            y[(2 * minus + half) * groups + g] = T::times(simd, q[minus], scale);
                        }
                    }
                }
            }
        }
    }
}

/// See [`rotate::gather_backward`](super::rotate::gather_backward).
pub(super) struct GatherBackward<'a, T> {
    pub run: &'a Run<'a, T>,
    pub tile: &'a Tile,
    pub x: &'a [T],
    pub radial: RadialRows<'a, T>,
    pub y_bar: &'a [T],
    /// Where the numbers are tabulated, their gradient goes into the sums.
    pub radial_bar: Option<&'a mut [T]>,
    pub n_bar: &'a mut [T],
    pub sums: &'a mut [T],
}

kernel!(GatherBackward);

impl<T: Real> GatherBackward<'_, T> {
    #[inline(always)]
    fn work<S: Simd, const G: usize>(self, simd: S) {
        if self.radial.tabulated() {
            self.edges::<S, G, true>(simd);
        } else {
            self.edges::<S, G, false>(simd);
        }
    }

    #[inline(always)]
    fn edges<S: Simd, const G: usize, const TABULATED: bool>(self, simd: S) {
        let groups = self.groups::<S, G>();
        let geometry = &self.run.geometry;
        let x = T::vectors::<S>(self.x);
        let n_bar = T::vectors_mut::<S>(self.n_bar);
        let zero = T::splat(simd, T::ZERO);
        let radial_bars = T::vectors_mut::<S>(self.radial_bar.unwrap_or_default());
        let edges = self.tile.rows.clone();
        for (i, ((e, y_bar), sums)) in edges
            .zip(T::vectors::<S>(self.y_bar).chunks_exact(2 * ROWS * groups))
            .zip(self.sums.chunks_exact_mut(SUMS))
            .enumerate()
        {
            let d = wigner(self.run, e);
            let radial = self.radial.row(simd, i, e, 2 * RADIAL_ROWS * groups);
            let mut along = zero;
            let mut torque = [zero; 2];
            let (begins, sum_row) = rotate::target_sum(self.run, self.tile, e);
            for half in 0..2 {
                let atom = [geometry.source[e], geometry.target[e]][half];
                let x = &x[atom as usize * ROWS * groups..][..ROWS * groups];
                let n_bar = &mut n_bar[if half == 0 {
                    2 * (e - self.tile.rows.start)
                } else {
                    2 * sum_row + 1
                } * ROWS
                    * groups..][..ROWS * groups];
                for g in 0..groups {
                    let q = rotate_in(simd, d, &load(x, groups, g));
                    let mut q_bar = [zero; ROWS];
                    for r in 0..RADIAL_ROWS {
                        let at = (2 * r + half) * groups + g;
                        let [scale, slope] = radial.value_and_slope::<TABULATED>(simd, at);
                        let plus = PLUS[r];
                        let bar = y_bar[(2 * plus + half) * groups + g];
                        q_bar[plus] = T::times(simd, bar, scale);
                        let mut shared = T::times(simd, bar, q[plus]);
                        if let Some(minus) = MINUS[r] {
                            let bar = y_bar[(2 * minus + half) * groups + g];
                            q_bar[minus] = T::times(simd, bar, scale);
                            shared = T::fused(simd, bar, q[minus], shared);
                        }
                        if TABULATED {
                            along = T::fused(simd, shared, slope, along);
                        } else {
                            radial_bars[2 * RADIAL_ROWS * groups * i + at] = shared;
                        }
                    }
                    torque = add_torque::<T, S>(simd, &q_bar, &q, torque);
                    let sum = if half == 0 || begins {
                        [zero; ROWS]
                    } else {
                        load(n_bar, groups, g)
                    };
                    store(&rotate_out(simd, d, &q_bar, &sum), n_bar, groups, g);
                }
            }
            if TABULATED {
                sums[0] += radial.slope * T::total(simd, along);
            }
            add_to_sums(d, T::ONE, totals::<T, S>(simd, torque), sums);
        }
    }
}

/// See [`rotate::gather_add_up`](super::rotate::gather_add_up).
pub(super) struct AddUp<'a, T> {
    pub run: &'a Run<'a, T>,
    pub tile: &'a Tile,
    pub n_bar: &'a [T],
    pub x_bar: &'a mut [T],
}

kernel!(AddUp);

impl<T: Real> AddUp<'_, T> {
    #[inline(always)]
    fn work<S: Simd, const G: usize>(self, simd: S) {
        let groups = self.groups::<S, G>();
        let width = ROWS * groups;
        let system = self.run.system(self.tile);
        let n_bar = T::vectors::<S>(self.n_bar);
        for (atom, x_bar) in self
            .tile
            .rows
            .clone()
            .zip(T::vectors_mut::<S>(self.x_bar).chunks_exact_mut(width))
        {
            let outgoing = self.run.outgoing(atom);
            for g in 0..groups {
                let mut sum = [T::splat(simd, T::ZERO); ROWS];
                for edges in self.run.incoming(system, atom) {
                    let n = load(&n_bar[(2 * edges.end - 1) * width..], groups, g);
                    for row in 0..ROWS {
                        sum[row] = T::plus(simd, sum[row], n[row]);
                    }
                }
                for &e in outgoing {
                    let n = load(&n_bar[2 * e as usize * width..], groups, g);
                    for row in 0..ROWS {
                        sum[row] = T::plus(simd, sum[row], n[row]);
                    }
                }
                let before = load(x_bar, groups, g);
                for row in 0..ROWS {
                    sum[row] = T::plus(simd, sum[row], before[row]);
                }
                store(&sum, x_bar, groups, g);
            }
        }
    }
}

/// See [`rotate::scatter`](super::rotate::scatter).
pub(super) struct Scatter<'a, T> {
    pub run: &'a Run<'a, T>,
    pub tile: &'a Tile,
    pub message: &'a [T],
    pub y: &'a mut [T],
}

kernel!(Scatter);

impl<T: Real> Scatter<'_, T> {
    #[inline(always)]
    fn work<S: Simd, const G: usize>(self, simd: S) {
        let groups = self.groups::<S, G>();
        let geometry = &self.run.geometry;
        let message = T::vectors::<S>(self.message);
        let y = T::vectors_mut::<S>(self.y);
        for (atom, y) in self
            .tile
            .rows
            .clone()
            .zip(y.chunks_exact_mut(ROWS * groups))
        {
            for g in 0..groups {
                let mut sum = [T::splat(simd, T::ZERO); ROWS];
                for e in geometry.target_start[atom]..geometry.target_start[atom + 1] {
                    let e = e as usize;
                    let p = T::splat(simd, geometry.envelope[e]);
                    let message = &message[e * ROWS * groups..][..ROWS * groups];
                    let mut k = load(message, groups, g);
                    for row in 0..ROWS {
                        k[row] = T::times(simd, p, k[row]);
                    }
                    sum = rotate_out(simd, wigner(self.run, e), &k, &sum);
                }
                store(&sum, y, groups, g);
            }
        }
    }
}

/// See [`rotate::scatter_backward`](super::rotate::scatter_backward).
pub(super) struct ScatterBackward<'a, T> {
    pub run: &'a Run<'a, T>,
    pub tile: &'a Tile,
    pub y_bar: &'a [T],
    pub message: &'a [T],
    pub message_bar: &'a mut [T],
    pub sums: &'a mut [T],
}

kernel!(ScatterBackward);

impl<T: Real> ScatterBackward<'_, T> {
    #[inline(always)]
    fn work<S: Simd, const G: usize>(self, simd: S) {
        let groups = self.groups::<S, G>();
        let geometry = &self.run.geometry;
        let y_bar = T::vectors::<S>(self.y_bar);
        let zero = T::splat(simd, T::ZERO);
        let edges = self.tile.rows.clone();
        for (((e, k), k_bar), sums) in edges
            .zip(T::vectors::<S>(self.message).chunks_exact(ROWS * groups))
            .zip(T::vectors_mut::<S>(self.message_bar).chunks_exact_mut(ROWS * groups))
            .zip(self.sums.chunks_exact_mut(SUMS))
        {
            let d = wigner(self.run, e);
            let factor = geometry.envelope[e];
            let p = T::splat(simd, factor);
            let y_bar = &y_bar[geometry.target[e] as usize * ROWS * groups..][..ROWS * groups];
            let mut torque = [zero; 2];
            let mut along = zero;
            for g in 0..groups {
                let turned = rotate_in(simd, d, &load(y_bar, groups, g));
                let k = load(k, groups, g);
                for row in 0..ROWS {
                    along = T::fused(simd, turned[row], k[row], along);
                    k_bar[row * groups + g] = T::times(simd, p, turned[row]);
                }
                torque = add_torque::<T, S>(simd, &turned, &k, torque);
            }
            sums[1] += T::total(simd, along);
            add_to_sums(d, -factor, totals::<T, S>(simd, torque), sums);
        }
    }
}

/// See [`rotate::scatter_radial`](super::rotate::scatter_radial).
pub(super) struct ScatterRadial<'a, T> {
    pub run: &'a Run<'a, T>,
    pub tile: &'a Tile,
    /// Of all edges.
    pub radial: RadialRows<'a, T>,
    pub scale: T,
    pub y: &'a mut [T],
}

kernel!(ScatterRadial);

impl<T: Real> ScatterRadial<'_, T> {
    #[inline(always)]
    fn work<S: Simd, const G: usize>(self, simd: S) {
        if self.radial.tabulated() {
            self.atoms::<S, G, true>(simd);
        } else {
            self.atoms::<S, G, false>(simd);
        }
    }

    #[inline(always)]
    fn atoms<S: Simd, const G: usize, const TABULATED: bool>(self, simd: S) {
        let groups = self.groups::<S, G>();
        let geometry = &self.run.geometry;
        let y = T::vectors_mut::<S>(self.y);
        for (atom, y) in self
            .tile
            .rows
            .clone()
            .zip(y.chunks_exact_mut(ROWS * groups))
        {
            for g in 0..groups {
                let mut sum = [T::splat(simd, T::ZERO); ROWS];
                for e in geometry.target_start[atom]..geometry.target_start[atom + 1] {
                    let e = e as usize;
                    let p = T::splat(simd, self.scale * geometry.envelope[e]);
                    let radial = self.radial.row(simd, e, e, 3 * groups);
                    let d = wigner(self.run, e);
                    for l in 0..3 {
                        let radial = radial.value::<TABULATED>(simd, l * groups + g);
                        let k = T::times(simd, p, radial);
                        for m in 0..2 * l + 1 {
                            let sum = &mut sum[l * l + m];
                            *sum = T::fused(simd, T::splat(simd, d[POLAR[l] + m]), k, *sum);
                        }
                    }
                }
                store(&sum, y, groups, g);
            }
        }
    }
}

/// See [`rotate::scatter_radial_backward`](super::rotate::scatter_radial_backward).
pub(super) struct ScatterRadialBackward<'a, T> {
    pub run: &'a Run<'a, T>,
    pub tile: &'a Tile,
    pub y_bar: &'a [T],
    pub radial: RadialRows<'a, T>,
    pub scale: T,
    /// As in [`GatherBackward`].
    pub radial_bar: Option<&'a mut [T]>,
    pub sums: &'a mut [T],
}

kernel!(ScatterRadialBackward);

impl<T: Real> ScatterRadialBackward<'_, T> {
    #[inline(always)]
    fn work<S: Simd, const G: usize>(self, simd: S) {
        if self.radial.tabulated() {
            self.edges::<S, G, true>(simd);
        } else {
            self.edges::<S, G, false>(simd);
        }
    }

    #[inline(always)]
    fn edges<S: Simd, const G: usize, const TABULATED: bool>(self, simd: S) {
        let groups = self.groups::<S, G>();
        let geometry = &self.run.geometry;
        let y_bar = T::vectors::<S>(self.y_bar);
        let zero = T::splat(simd, T::ZERO);
        let radial_bars = T::vectors_mut::<S>(self.radial_bar.unwrap_or_default());
        let edges = self.tile.rows.clone();
        for (i, (e, sums)) in edges.zip(self.sums.chunks_exact_mut(SUMS)).enumerate() {
            let d = wigner(self.run, e);
            let radial = self.radial.row(simd, i, e, 3 * groups);
            let mut sloping = zero;
            let factor = self.scale * geometry.envelope[e];
            let p = T::splat(simd, factor);
            let y_bar = &y_bar[geometry.target[e] as usize * ROWS * groups..][..ROWS * groups];
            let mut torque = [zero; 2];
            let mut along = zero;
            for g in 0..groups {
                let turned = rotate_in(simd, d, &load(y_bar, groups, g));
                let mut k = [zero; ROWS];
                for l in 0..3 {
                    let [value, slope] = radial.value_and_slope::<TABULATED>(simd, l * groups + g);
                    k[l] = value;
                    along = T::fused(simd, turned[l], k[l], along);
                    if TABULATED {
                        sloping = T::fused(simd, turned[l], slope, sloping);
                    } else {
                        radial_bars[(3 * i + l) * groups + g] = T::times(simd, p, turned[l]);
                    }
                }
                torque = add_torque::<T, S>(simd, &turned, &k, torque);
            }
            if TABULATED {
                sums[0] += factor * radial.slope * T::total(simd, sloping);
            }
            sums[1] += self.scale * T::total(simd, along);
            add_to_sums(d, -factor, totals::<T, S>(simd, torque), sums);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::so3::wigner::generators;

    #[test]
    fn tables_are_those_of_the_layout() {
        let layout = Layout::new(2, 2);
        assert!(fits(&layout) && !fits(&Layout::new(2, 1)));
        let edge_row: Vec<usize> = layout.degree_rows.concat();
        assert_eq!(edge_row, EDGE_ROW);
        for (r, (plus, minus)) in PLUS.into_iter().zip(MINUS).enumerate() {
            let rows: Vec<usize> = std::iter::once(plus).chain(minus).collect();
            let of_r = |&row: &usize| layout.radial_row[row] == r;
            assert_eq!(rows, (0..ROWS).filter(of_r).collect::<Vec<_>>());
        }
        assert_eq!(layout.wigner_offset, [0, 1, 10]);
        assert_eq!(layout.wigner_len, WIGNER);
        for (l, &polar) in POLAR.iter().enumerate() {
            assert_eq!(polar, layout.wigner_offset[l] + l * (2 * l + 1));
        }
    }

    #[test]
    fn pairs_are_those_of_the_generators() {
        for (axis, pairs) in [(0, ABOUT_X), (2, ABOUT_Z)] {
            let all = generators(2);
            let all: Vec<_> = all
                .iter()
                .filter(|g| g.axis == axis && g.row < g.column)
                .collect();
            assert_eq!(all.len(), pairs.len(), "{all:?}");
            for g in all {
                let same =
                    |&(row, column, _): &(usize, usize, f64)| (row, column) == (g.row, g.column);
                let (_, _, value) = pairs.iter().find(|p| same(p)).unwrap();
                assert!((value - g.value).abs() < 1e-12, "{g:?} is not {value}");
            }
        }
    }
}
