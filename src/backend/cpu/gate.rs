//! Gated activation: degree 0 through SiLU, higher degrees scaled by the sigmoid of a gate.

use super::real::Real;
use super::run::{Frame, Run, Tile};
use super::vector::{by_groups, groups_of, run as run_kernel};
use crate::nn::Buf;
use pulp::{Simd, WithSimd};

/// Rows of coefficients that go through a gate.
#[derive(Clone, Copy)]
struct Rows<'a> {
    /// Degree of each row, which tells the gate that it takes.
    degrees: &'a [usize],
    channels: usize,
    /// Vectors of channels.
    groups: usize,
    /// Vectors of gates.
    gates: usize,
}

impl<'a> Rows<'a> {
    fn new(run: &Run<'a, impl Real>, degrees: &'a [usize], channels: usize) -> Rows<'a> {
        Rows {
            degrees,
            channels,
            groups: 0,
            gates: run.layout.lmax,
        }
    }

    /// For the vectors of a machine: G groups of channels, or as many as there are for G = 0.
    #[inline(always)]
    fn in_vectors<T: Real, S: Simd, const G: usize>(mut self) -> Rows<'a> {
        self.groups = groups_of::<T, S, G>(self.channels);
        self.gates *= self.groups;
        self
    }

    /// y = gate(x).
    #[inline(always)]
    fn apply<T: Real, S: Simd>(
        self,
        simd: S,
        sigmoids: &[T::Vector<S>],
        x: &[T::Vector<S>],
        y: &mut [T::Vector<S>],
    ) {
        let groups = self.groups;
        for row in 0..self.degrees.len() {
            let l = self.degrees[row];
            let x = &x[row * groups..][..groups];
            let y = &mut y[row * groups..][..groups];
            if l == 0 {
                for g in 0..groups {
                    y[g] = T::times(simd, x[g], T::sigmoids(simd, x[g]));
                }
            } else {
                let s = &sigmoids[(l - 1) * groups..][..groups];
                for g in 0..groups {
                    y[g] = T::times(simd, x[g], s[g]);
                }
            }
        }
    }

    /// Gradient of the rows, through `write(place, value)`, and of the gates.
    #[inline(always)]
    fn apply_backward<T: Real, S: Simd>(
        self,
        simd: S,
        sigmoids: &[T::Vector<S>],
        x: &[T::Vector<S>],
        y_bar: &[T::Vector<S>],
        gates_bar: &mut [T::Vector<S>],
        mut write: impl FnMut(usize, T::Vector<S>),
    ) {
        let groups = self.groups;
        let one = T::splat(simd, T::ONE);
        for g in 0..self.gates {
            gates_bar[g] = T::splat(simd, T::ZERO);
        }
        for row in 0..self.degrees.len() {
            let l = self.degrees[row];
            let x = &x[row * groups..][..groups];
            let y_bar = &y_bar[row * groups..][..groups];
            if l == 0 {
                for g in 0..groups {
                    // SiLU' = s (1 + x (1 - s))
                    let s = T::sigmoids(simd, x[g]);
                    let slope = T::fused(simd, x[g], T::minus(simd, one, s), one);
                    let slope = T::times(simd, s, slope);
                    write(row * groups + g, T::times(simd, y_bar[g], slope));
                }
            } else {
                let s = &sigmoids[(l - 1) * groups..][..groups];
                let s_bar = &mut gates_bar[(l - 1) * groups..][..groups];
                for g in 0..groups {
                    write(row * groups + g, T::times(simd, y_bar[g], s[g]));
                    s_bar[g] = T::fused(simd, y_bar[g], x[g], s_bar[g]);
                }
            }
        }
        for g in 0..self.gates {
            let s = sigmoids[g];
            let slope = T::times(simd, s, T::minus(simd, one, s));
            gates_bar[g] = T::times(simd, gates_bar[g], slope);
        }
    }
}

#[inline(always)]
fn sigmoids_of<T: Real, S: Simd>(simd: S, gates: &[T::Vector<S>], out: &mut [T::Vector<S>]) {
    for g in 0..gates.len() {
        out[g] = T::sigmoids(simd, gates[g]);
    }
}

/// Gates lie in front of the rows of each edge.
struct Edges<'a, T> {
    rows: Rows<'a>,
    x: &'a [T],
    y: &'a mut [T],
}

by_groups!(Edges, rows.channels);

impl<T: Real> Edges<'_, T> {
    #[inline(always)]
    fn work<S: Simd, const G: usize>(self, simd: S) {
        let rows = self.rows.in_vectors::<T, S, G>();
        let width = rows.degrees.len() * rows.groups;
        let mut sigmoids = vec![T::splat(simd, T::ZERO); rows.gates];
        for (x, y) in T::vectors::<S>(self.x)
            .chunks_exact(rows.gates + width)
            .zip(T::vectors_mut::<S>(self.y).chunks_exact_mut(width))
        {
            let (gates, x) = x.split_at(rows.gates);
            sigmoids_of::<T, S>(simd, gates, &mut sigmoids);
            rows.apply::<T, S>(simd, &sigmoids, x, y);
        }
    }
}

struct EdgesBackward<'a, T> {
    rows: Rows<'a>,
    x: &'a [T],
    y_bar: &'a [T],
    x_bar: &'a mut [T],
}

by_groups!(EdgesBackward, rows.channels);

impl<T: Real> EdgesBackward<'_, T> {
    #[inline(always)]
    fn work<S: Simd, const G: usize>(self, simd: S) {
        let rows = self.rows.in_vectors::<T, S, G>();
        let width = rows.degrees.len() * rows.groups;
        let mut sigmoids = vec![T::splat(simd, T::ZERO); rows.gates];
        for ((x, y_bar), x_bar) in T::vectors::<S>(self.x)
            .chunks_exact(rows.gates + width)
            .zip(T::vectors::<S>(self.y_bar).chunks_exact(width))
            .zip(T::vectors_mut::<S>(self.x_bar).chunks_exact_mut(rows.gates + width))
        {
            let (gates, x) = x.split_at(rows.gates);
            sigmoids_of::<T, S>(simd, gates, &mut sigmoids);
            let (gates_bar, rows_bar) = x_bar.split_at_mut(rows.gates);
            rows.apply_backward::<T, S>(
                simd,
                &sigmoids,
                x,
                y_bar,
                gates_bar,
                #[inline(always)]
                |i, value| rows_bar[i] = value,
            );
        }
    }
}

/// Gates and rows of atoms are two buffers.
struct Atoms<'a, T> {
    rows: Rows<'a>,
    gates: &'a [T],
    x: &'a [T],
    y: &'a mut [T],
}

by_groups!(Atoms, rows.channels);

impl<T: Real> Atoms<'_, T> {
    #[inline(always)]
    fn work<S: Simd, const G: usize>(self, simd: S) {
        let rows = self.rows.in_vectors::<T, S, G>();
        let width = rows.degrees.len() * rows.groups;
        let mut sigmoids = vec![T::splat(simd, T::ZERO); rows.gates];
        let gates = T::vectors::<S>(self.gates);
        for (atom, (x, y)) in T::vectors::<S>(self.x)
            .chunks_exact(width)
            .zip(T::vectors_mut::<S>(self.y).chunks_exact_mut(width))
            .enumerate()
        {
            // Not in chunks: for lmax = 0 there are none.
            let gates = &gates[atom * rows.gates..][..rows.gates];
            sigmoids_of::<T, S>(simd, gates, &mut sigmoids);
            rows.apply::<T, S>(simd, &sigmoids, x, y);
        }
    }
}

struct AtomsBackward<'a, T> {
    rows: Rows<'a>,
    gates: &'a [T],
    x: &'a [T],
    y_bar: &'a [T],
    gates_bar: &'a mut [T],
    x_bar: &'a mut [T],
}

by_groups!(AtomsBackward, rows.channels);

impl<T: Real> AtomsBackward<'_, T> {
    #[inline(always)]
    fn work<S: Simd, const G: usize>(self, simd: S) {
        let rows = self.rows.in_vectors::<T, S, G>();
        let width = rows.degrees.len() * rows.groups;
        let zero = T::splat(simd, T::ZERO);
        let (mut sigmoids, mut bars) = (vec![zero; rows.gates], vec![zero; rows.gates]);
        let gates = T::vectors::<S>(self.gates);
        let gates_bar = T::vectors_mut::<S>(self.gates_bar);
        for (atom, ((x, y_bar), x_bar)) in T::vectors::<S>(self.x)
            .chunks_exact(width)
            .zip(T::vectors::<S>(self.y_bar).chunks_exact(width))
            .zip(T::vectors_mut::<S>(self.x_bar).chunks_exact_mut(width))
            .enumerate()
        {
            let gates = &gates[atom * rows.gates..][..rows.gates];
            let gates_bar = &mut gates_bar[atom * rows.gates..][..rows.gates];
            sigmoids_of::<T, S>(simd, gates, &mut sigmoids);
            rows.apply_backward::<T, S>(
                simd,
                &sigmoids,
                x,
                y_bar,
                &mut bars,
                #[inline(always)]
                |i, value| x_bar[i] = T::plus(simd, x_bar[i], value),
            );
            for g in 0..rows.gates {
                gates_bar[g] = T::plus(simd, gates_bar[g], bars[g]);
            }
        }
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
    let y = frame.take(out);
    let kernel = Edges {
        rows: Rows::new(run, &run.layout.edge_row_degree, channels),
        x: run.value(frame, tile, x),
        y: &mut *y,
    };
    run_kernel(channels, kernel);
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
    let y_bar = frame.take(out);
    let x_bar = frame.take(x);
    let kernel = EdgesBackward {
        rows: Rows::new(run, &run.layout.edge_row_degree, channels),
        x: run.value(values, tile, x),
        y_bar: &*y_bar,
        x_bar: &mut *x_bar,
    };
    run_kernel(channels, kernel);
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
    let y = frame.take(out);
    let kernel = Atoms {
        rows: Rows::new(run, &degrees, channels),
        gates: run.value(frame, tile, gates),
        x: run.value(frame, tile, x),
        y: &mut *y,
    };
    run_kernel(channels, kernel);
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
    let y_bar = frame.take(out);
    let x_bar = frame.take(x);
    let gates_bar = frame.take(gates);
    let kernel = AtomsBackward {
        rows: Rows::new(run, &degrees, channels),
        gates: run.value(values, tile, gates),
        x: run.value(values, tile, x),
        y_bar: &*y_bar,
        gates_bar: &mut *gates_bar,
        x_bar: &mut *x_bar,
    };
    run_kernel(channels, kernel);
    frame.put(gates, gates_bar);
    frame.put(x, x_bar);
    frame.put(out, y_bar);
}
