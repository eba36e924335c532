//! Dense matrix products through the `gemm` crate, with right-hand sides laid out in advance.

use super::real::Real;
use super::small::Product;
use super::vector::{WIDEST, run};

/// Columns of a panel: what the library's widest kernel takes at once in single precision.
pub(super) const PANEL: usize = 64;

/// Panels of at most this many numbers go to the kernels of `small`: they stay in the first-level
/// cache, and the library's preparations would take longer than the arithmetic.
const SMALL: usize = 128 * PANEL;

/// What a product is added to.
#[derive(Clone, Copy)]
pub(super) enum Start<'a, T> {
    /// Nothing.
    Zero,
    /// The same row of n numbers everywhere.
    Bias(&'a [T]),
    /// What is there.
    Add,
}

/// A `[k][n]` matrix cut into panels of 64 columns, each `[k][64]` without gaps.
///
/// The library would otherwise copy the weights into such panels in every product: 12% of the time
/// of an evaluation at UMA-S sizes.
#[derive(Clone, Debug)]
pub struct Panels<T> {
    /// Rows.
    pub k: usize,
    /// Columns.
    pub n: usize,
    data: Vec<T>,
}

impl<T: Real> Panels<T> {
    /// Lays out the matrix whose element (i, j) is `element(i, j)`.
    pub fn new(k: usize, n: usize, element: impl Fn(usize, usize) -> T) -> Panels<T> {
        let mut data = Vec::with_capacity(k * n);
        for first in (0..n).step_by(PANEL) {
            let columns = first..(first + PANEL).min(n);
            for i in 0..k {
                data.extend(columns.clone().map(|j| element(i, j)));
            }
        }
        Panels { k, n, data }
    }

    /// Whether the kernels of `small` multiply by it.
    fn small(&self) -> bool {
        self.n.is_multiple_of(WIDEST) && self.k * self.n.min(PANEL) <= SMALL
    }

    /// Memory, bytes.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<T>()
    }
}

/// Tells the library not to copy panels; for the whole process.
pub fn use_panels_in_place() {
    gemm::set_lhs_packing_threshold_single_thread(1 << 20);
}

/// c = start + a b: `a` is `[rows][k]` with row stride `a_stride`, `c` is `[rows][n]` with row
/// stride `c_stride`. Runs on the calling thread.
pub(super) fn matmul<T: Real>(
    rows: usize,
    (a, a_stride): (&[T], usize),
    b: &Panels<T>,
    start: Start<T>,
    (c, c_stride): (&mut [T], usize),
) {
    let (n, k) = (b.n, b.k);
    if rows == 0 || n == 0 {
        return;
    }
    assert!(a_stride >= k && a.len() >= (rows - 1) * a_stride + k);
    assert!(b.data.len() == k * n);
    assert!(c_stride >= n && c.len() >= (rows - 1) * c_stride + n);
    if b.small() {
        return run(
            n,
            Product {
                rows,
                a,
                a_stride,
                k,
                b: &b.data,
                n,
                start,
                c,
                c_stride,
            },
        );
    }
    if let Start::Bias(bias) = start {
        for row in c.chunks_mut(c_stride).take(rows) {
            row[..n].copy_from_slice(bias);
        }
    }
    let accumulate = !matches!(start, Start::Zero);
    for first in (0..n).step_by(PANEL) {
        let columns = PANEL.min(n - first);
        // SAFETY: the asserts above keep every element addressed by the sizes and strides inside
        // the three slices (a panel begins at `first * k` and holds `k * columns` elements); `c`
        // is borrowed mutably, so it overlaps neither `a` nor `b`.
        unsafe {
            gemm::gemm(
                rows,
                columns,
                k,
                c.as_mut_ptr().add(first),
                1,
                c_stride as isize,
                accumulate,
                a.as_ptr(),
                1,
                a_stride as isize,
                b.data.as_ptr().add(first * k),
                1,
                columns as isize,
                T::ONE,
                T::ONE,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    }
}
