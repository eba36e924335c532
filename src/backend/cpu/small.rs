//! Products of many rows with a small matrix.
//!
//! Narrow models multiply by matrices of 16 to 96 rows and columns. The `gemm` crate is made for larger
//! ones: there its preparations take longer than the arithmetic. Here a block of a few rows and up to
//! four vectors of columns stays in registers for the whole product; a bias is added to it there.

use super::matmul::{PANEL, Start};
use super::real::Real;
use pulp::{Simd, WithSimd};

/// c = start + a b, with `b` in panels of 64 columns.
pub(super) struct Product<'a, T> {
    pub rows: usize,
    pub a: &'a [T],
    pub a_stride: usize,
    pub k: usize,
    pub b: &'a [T],
    pub n: usize,
    pub start: Start<'a, T>,
    pub c: &'a mut [T],
    pub c_stride: usize,
}

impl<T: Real> WithSimd for Product<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        for first in (0..self.n).step_by(PANEL) {
            let columns = PANEL.min(self.n - first);
            let panel = &self.b[first * self.k..][..self.k * columns];
            let width = columns / T::lanes::<S>();
            let panel = T::vectors::<S>(panel);
            let mut done = 0;
            while done < width {
                let column = first + done * T::lanes::<S>();
                let columns = (panel, width, done, column);
                // As many sums as leave registers for one row of the panel.
                done += if S::REGISTER_COUNT < 32 {
                    match width - done {
                        1 => self.columns::<S, 8, 1>(simd, columns),
                        _ => self.columns::<S, 6, 2>(simd, columns),
                    }
                } else {
                    match width - done {
                        1 => self.columns::<S, 8, 1>(simd, columns),
                        2 => self.columns::<S, 8, 2>(simd, columns),
                        3 => self.columns::<S, 8, 3>(simd, columns),
                        _ => self.columns::<S, 6, 4>(simd, columns),
                    }
                };
            }
        }
    }
}

/// A panel, its vectors per row, the first vector to use, and the column that this is.
type Columns<'p, V> = (&'p [V], usize, usize, usize);

impl<T: Real> Product<'_, T> {
    /// All rows of N vectors of columns, M rows at a time.
    #[inline(always)]
    fn columns<S: Simd, const M: usize, const N: usize>(
        &mut self,
        simd: S,
        columns: Columns<T::Vector<S>>,
    ) -> usize {
        let mut row = 0;
        while row + M <= self.rows {
            self.block::<S, M, N>(simd, row, columns);
            row += M;
        }
        while row + 2 <= self.rows {
            self.block::<S, 2, N>(simd, row, columns);
            row += 2;
        }
        if row < self.rows {
            self.block::<S, 1, N>(simd, row, columns);
        }
        N
    }

    #[inline(always)]
    #[allow(clippy::manual_memcpy)] // see its end
    fn block<S: Simd, const M: usize, const N: usize>(
        &mut self,
        simd: S,
        row: usize,
        (panel, width, first, column): Columns<T::Vector<S>>,
    ) {
        let k = self.k;
        let mut a: [&[T]; M] = [&[]; M];
        for m in 0..M {
            a[m] = &self.a[(row + m) * self.a_stride..][..k];
        }
        let zero = T::splat(simd, T::ZERO);
        let mut sums = [[zero; N]; M];
        for i in 0..k {
            let b = &panel[i * width + first..][..N];
            for m in 0..M {
                let a = T::splat(simd, a[m][i]);
                for n in 0..N {
                    sums[m][n] = T::fused(simd, a, b[n], sums[m][n]);
                }
            }
        }
        // Last, as in the `gemm` crate: from the start, many small products would be rounded at the size
        // of what they are added to.
        match self.start {
            Start::Zero => {}
            Start::Bias(bias) => {
                let bias = &T::vectors::<S>(&bias[column..])[..N];
                for m in 0..M {
                    for n in 0..N {
                        sums[m][n] = T::plus(simd, sums[m][n], bias[n]);
                    }
                }
            }
            Start::Add => {
                for m in 0..M {
                    let c = &self.c[(row + m) * self.c_stride + column..];
                    let c = &T::vectors::<S>(c)[..N];
                    for n in 0..N {
                        sums[m][n] = T::plus(simd, sums[m][n], c[n]);
                    }
                }
            }
        }
        // Element by element: a function that takes the array would force it into memory, also above.
        for m in 0..M {
            let c = &mut self.c[(row + m) * self.c_stride + column..];
            let c = &mut T::vectors_mut::<S>(c)[..N];
            for n in 0..N {
                c[n] = sums[m][n];
            }
        }
    }
}
