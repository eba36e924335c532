//! Explicit vectors: for kernels whose speed must not depend on what the compiler makes of a loop.
//!
//! A kernel is generic in the number type and in `S`, the vector instructions of the machine; `run`
//! picks the widest that there are. Numbers of one row lie side by side in vectors, so the result of a
//! kernel does not depend on how wide they are, except for the order in which sums over a row are
//! taken.

use super::real::{EXP_LN_2, EXP_MAGIC, EXP_RANGE, EXP_TAYLOR, Real};
use pulp::{Arch, Scalar, Simd, WithSimd};

/// The vectors of one number type.
pub trait Vectors: Sized {
    /// As many numbers as one instruction takes.
    type Vector<S: Simd>: Copy + Send + Sync;
    /// How many that are.
    fn lanes<S: Simd>() -> usize {
        size_of::<Self::Vector<S>>() / size_of::<Self>()
    }
    /// The same number in all lanes.
    fn splat<S: Simd>(simd: S, x: Self) -> Self::Vector<S>;
    /// x y
    fn times<S: Simd>(simd: S, x: Self::Vector<S>, y: Self::Vector<S>) -> Self::Vector<S>;
    /// x + y
    fn plus<S: Simd>(simd: S, x: Self::Vector<S>, y: Self::Vector<S>) -> Self::Vector<S>;
    /// x - y
    fn minus<S: Simd>(simd: S, x: Self::Vector<S>, y: Self::Vector<S>) -> Self::Vector<S>;
    /// x y + z, rounded once.
    fn fused<S: Simd>(
        simd: S,
        x: Self::Vector<S>,
        y: Self::Vector<S>,
        z: Self::Vector<S>,
    ) -> Self::Vector<S>;
    /// 1 / (1 + e^-x), with the accuracy of [`Real::sigmoid`].
    fn sigmoids<S: Simd>(simd: S, x: Self::Vector<S>) -> Self::Vector<S>;
    /// Sum of the lanes.
    fn total<S: Simd>(simd: S, x: Self::Vector<S>) -> Self;
    /// The numbers as vectors; a rest that does not fill one is left out.
    fn vectors<S: Simd>(x: &[Self]) -> &[Self::Vector<S>];
    /// The numbers as vectors; a rest that does not fill one is left out.
    fn vectors_mut<S: Simd>(x: &mut [Self]) -> &mut [Self::Vector<S>];
}

/// The steps of [`Real::exp`] and [`Real::sigmoid`] of f32.
#[inline(always)]
fn sigmoids_f32<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let constant = |x| simd.splat_f32s(x);
    let x = simd.neg_f32s(x);
    // Comparisons, not minimum and maximum: NaN must stay.
    let above = simd.greater_than_f32s(x, constant(EXP_RANGE.end));
    let x = simd.select_f32s(above, constant(EXP_RANGE.end), x);
    let below = simd.less_than_f32s(x, constant(EXP_RANGE.start));
    let x = simd.select_f32s(below, constant(EXP_RANGE.start), x);
    let shifted = simd.mul_add_f32s(x, constant(std::f32::consts::LOG2_E), constant(EXP_MAGIC));
    let n = simd.sub_f32s(shifted, constant(EXP_MAGIC));
    let r = simd.mul_add_f32s(n, constant(-EXP_LN_2[0]), x);
    let r = simd.mul_add_f32s(n, constant(-EXP_LN_2[1]), r);
    let mut p = constant(EXP_TAYLOR[0]);
    for c in &EXP_TAYLOR[1..] {
        p = simd.mul_add_f32s(p, r, constant(*c));
    }
    let exponent =
        simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    let exponent = simd.add_u32s(exponent, simd.splat_u32s(127 << 23));
    let exp = simd.mul_f32s(p, simd.transmute_f32s_u32s(exponent));
    simd.div_f32s(constant(1.0), simd.add_f32s(constant(1.0), exp))
}

#[inline(always)]
fn sigmoids_f64<S: Simd>(_: S, mut x: S::f64s) -> S::f64s {
    for x in bytemuck::cast_slice_mut::<S::f64s, f64>(std::slice::from_mut(&mut x)) {
        *x = x.sigmoid();
    }
    x
}

macro_rules! vectors_of {
    ($number:ty, $vector:ident, $splat:ident, $times:ident, $plus:ident, $minus:ident, $fused:ident,
     $sigmoids:ident, $total:ident, $cut:ident, $cut_mut:ident) => {
        impl Vectors for $number {
            type Vector<S: Simd> = S::$vector;

            #[inline(always)]
            fn splat<S: Simd>(simd: S, x: Self) -> S::$vector {
                simd.$splat(x)
            }

            #[inline(always)]
            fn times<S: Simd>(simd: S, x: S::$vector, y: S::$vector) -> S::$vector {
                simd.$times(x, y)
            }

            #[inline(always)]
            fn plus<S: Simd>(simd: S, x: S::$vector, y: S::$vector) -> S::$vector {
                simd.$plus(x, y)
            }

            #[inline(always)]
            fn minus<S: Simd>(simd: S, x: S::$vector, y: S::$vector) -> S::$vector {
                simd.$minus(x, y)
            }

            #[inline(always)]
            fn fused<S: Simd>(simd: S, x: S::$vector, y: S::$vector, z: S::$vector) -> S::$vector {
                simd.$fused(x, y, z)
            }

            #[inline(always)]
            fn sigmoids<S: Simd>(simd: S, x: S::$vector) -> S::$vector {
                $sigmoids(simd, x)
            }

            #[inline(always)]
            fn total<S: Simd>(simd: S, x: S::$vector) -> Self {
                simd.$total(x)
            }

            #[inline(always)]
            fn vectors<S: Simd>(x: &[Self]) -> &[S::$vector] {
                S::$cut(x).0
            }

            #[inline(always)]
            fn vectors_mut<S: Simd>(x: &mut [Self]) -> &mut [S::$vector] {
                S::$cut_mut(x).0
            }
        }
    };
}

vectors_of!(
    f32,
    f32s,
    splat_f32s,
    mul_f32s,
    add_f32s,
    sub_f32s,
    mul_add_f32s,
    sigmoids_f32,
    reduce_sum_f32s,
    as_simd_f32s,
    as_mut_simd_f32s
);
vectors_of!(
    f64,
    f64s,
    splat_f64s,
    mul_f64s,
    add_f64s,
    sub_f64s,
    mul_add_f64s,
    sigmoids_f64,
    reduce_sum_f64s,
    as_simd_f64s,
    as_mut_simd_f64s
);

/// Vectors of a row of `width` numbers: G, which is known when compiling, or as many as there are for G = 0.
#[inline(always)]
pub fn groups_of<T: Vectors, S: Simd, const G: usize>(width: usize) -> usize {
    if G > 0 { G } else { width / T::lanes::<S>() }
}

/// The widest vector that any machine has, numbers: rows of a multiple of this need no rest.
pub const WIDEST: usize = 16;

/// Runs a kernel on rows of `width` numbers with the widest vectors of this machine; where they do
/// not divide the row, number by number.
#[inline(always)]
pub fn run<K: WithSimd>(width: usize, kernel: K) -> K::Output {
    if width.is_multiple_of(WIDEST) {
        Arch::new().dispatch(kernel)
    } else {
        Scalar.vectorize(kernel)
    }
}

/// Implements `WithSimd` for a kernel whose work on rows of G vectors is `work::<S, G>`; G = 0 stands
/// for any number of them. In single precision the usual widths are known beforehand, so that loops over
/// the vectors of a row unroll. (In double precision they are not: it is there for comparison, and every
/// one more takes seconds to compile.)
macro_rules! by_groups {
    ($kernel:ident, $($width:ident).+) => {
        impl<T: Real> WithSimd for $kernel<'_, T> {
            type Output = ();

            #[inline(always)]
            fn with_simd<S: Simd>(self, simd: S) {
                if const { size_of::<T>() == 4 && size_of::<T::Vector<S>>() > 4 } {
                    match self.$($width).+ / T::lanes::<S>() {
                        1 => return self.work::<S, 1>(simd),
                        8 => return self.work::<S, 8>(simd),
                        _ => {}
                    }
                }
                self.work::<S, 0>(simd);
            }
        }
    };
}
pub(super) use by_groups;
