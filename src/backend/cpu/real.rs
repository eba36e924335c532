//! The two number types, with the few functions that the kernels need in a form that vectorises.

use std::fmt::Debug;
use std::ops::{Add, AddAssign, Mul, MulAssign, Neg, Sub, SubAssign};

/// f32 or f64.
pub trait Real:
    super::vector::Vectors
    + Copy
    + Debug
    + Default
    + PartialOrd
    + Send
    + Sync
    + 'static
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
{
    /// 0
    const ZERO: Self;
    /// 1
    const ONE: Self;
    /// Rounds to this type.
    fn from_f64(x: f64) -> Self;
    /// Rounds to this type.
    fn from_f32(x: f32) -> Self;
    /// Exact.
    fn to_f64(self) -> f64;
    /// self * a + b, rounded once.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// 1 / sqrt(self)
    fn inverse_sqrt(self) -> Self;
    /// e^self
    fn exp(self) -> Self;
    /// 1 / (1 + e^-self)
    fn sigmoid(self) -> Self;
}

/// Where e^x is computed in f32.
pub const EXP_RANGE: std::ops::Range<f32> = -87.0..88.0;
/// 1.5 * 2^23: adding it rounds to an integer.
pub const EXP_MAGIC: f32 = 12_582_912.0;
/// ln 2 in two parts: products of the first with small integers are exact.
pub const EXP_LN_2: [f32; 2] = [0.693_145_75, 1.428_606_8e-6];
/// 1/7!, ..., 1/1!, 1/0!
pub const EXP_TAYLOR: [f32; 8] = [
    1.0 / 5040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    0.5,
    1.0,
    1.0,
];

impl Real for f32 {
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;

    #[inline(always)]
    fn from_f64(x: f64) -> f32 {
        x as f32
    }

    #[inline(always)]
    fn from_f32(x: f32) -> f32 {
        x
    }

    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }

    #[inline(always)]
    fn mul_add(self, a: f32, b: f32) -> f32 {
        f32::mul_add(self, a, b)
    }

    #[inline(always)]
    fn inverse_sqrt(self) -> f32 {
        1.0 / self.sqrt()
    }

    /// Within 1.2 ulp on [-87, 88]; beyond, the value at the end of the range. NaN stays NaN.
    ///
    /// x = n ln 2 + r with |r| <= ln 2 / 2, e^r by its Taylor polynomial of degree 7 (remainder
    /// below 1e-8), 2^n through the exponent bits. The standard library's function is a call that
    /// the compiler cannot vectorise.
    #[inline(always)]
    fn exp(self) -> f32 {
        let x = if self > EXP_RANGE.end {
            EXP_RANGE.end
        } else {
            self
        };
        let x = if x < EXP_RANGE.start {
            EXP_RANGE.start
        } else {
            x
        };
        let shifted = f32::mul_add(x, std::f32::consts::LOG2_E, EXP_MAGIC);
        let n = shifted - EXP_MAGIC;
        let r = f32::mul_add(n, -EXP_LN_2[0], x);
        let r = f32::mul_add(n, -EXP_LN_2[1], r);
        let mut p = EXP_TAYLOR[0];
        for c in &EXP_TAYLOR[1..] {
            p = f32::mul_add(p, r, *c);
        }
        let exponent = (shifted.to_bits() << 23).wrapping_add(127 << 23);
        p * f32::from_bits(exponent)
    }

    #[inline(always)]
    fn sigmoid(self) -> f32 {
        1.0 / (1.0 + Real::exp(-self))
    }
}

impl Real for f64 {
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;

    #[inline(always)]
    fn from_f64(x: f64) -> f64 {
        x
    }

    #[inline(always)]
    fn from_f32(x: f32) -> f64 {
        f64::from(x)
    }

    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }

    #[inline(always)]
    fn mul_add(self, a: f64, b: f64) -> f64 {
        f64::mul_add(self, a, b)
    }

    #[inline(always)]
    fn inverse_sqrt(self) -> f64 {
        1.0 / self.sqrt()
    }

    #[inline(always)]
    fn exp(self) -> f64 {
        f64::exp(self)
    }

    #[inline(always)]
    fn sigmoid(self) -> f64 {
        1.0 / (1.0 + f64::exp(-self))
    }
}

/// SiLU(x) = x sigmoid(x).
#[inline(always)]
pub fn silu<T: Real>(x: T) -> T {
    x * x.sigmoid()
}

/// d SiLU / dx.
#[inline(always)]
pub fn silu_slope<T: Real>(x: T) -> T {
    let s = x.sigmoid();
    s * x.mul_add(T::ONE - s, T::ONE)
}

/// Runs a kernel that is generic in how many channels it takes at once, W = 16 or 1, and in the
/// number G of such groups: known for the
/// widths of the released models (8 x 16) and the narrowest (1 x 16), so that inner loops unroll;
/// 0 means "see at run time".
macro_rules! with_groups {
    ($channels:expr, $kernel:ident::<$T:ty>($($argument:expr),* $(,)?)) => {
        match $channels {
            128 => $kernel::<$T, 16, 8>($($argument),*),
            16 => $kernel::<$T, 16, 1>($($argument),*),
            c if c % 16 == 0 => $kernel::<$T, 16, 0>($($argument),*),
            _ => $kernel::<$T, 1, 0>($($argument),*),
        }
    };
}
pub(super) use with_groups;

/// The numbers as groups of W.
#[inline(always)]
pub fn lanes<T, const W: usize>(x: &[T]) -> &[[T; W]] {
    x.as_chunks::<W>().0
}

/// The numbers as groups of W.
#[inline(always)]
pub fn lanes_mut<T, const W: usize>(x: &mut [T]) -> &mut [[T; W]] {
    x.as_chunks_mut::<W>().0
}

/// a x + y, lane by lane.
#[inline(always)]
pub fn axpy<T: Real, const W: usize>(a: T, x: &[T; W], y: &[T; W]) -> [T; W] {
    let mut out = [T::ZERO; W];
    for i in 0..W {
        out[i] = a.mul_add(x[i], y[i]);
    }
    out
}

/// a x, lane by lane.
#[inline(always)]
pub fn scaled<T: Real, const W: usize>(a: T, x: &[T; W]) -> [T; W] {
    let mut out = [T::ZERO; W];
    for i in 0..W {
        out[i] = a * x[i];
    }
    out
}

/// x y, lane by lane.
#[inline(always)]
pub fn product<T: Real, const W: usize>(x: &[T; W], y: &[T; W]) -> [T; W] {
    let mut out = [T::ZERO; W];
    for i in 0..W {
        out[i] = x[i] * y[i];
    }
    out
}

/// x y + z, lane by lane.
#[inline(always)]
pub fn product_plus<T: Real, const W: usize>(x: &[T; W], y: &[T; W], z: &[T; W]) -> [T; W] {
    let mut out = [T::ZERO; W];
    for i in 0..W {
        out[i] = x[i].mul_add(y[i], z[i]);
    }
    out
}

/// y += x.
pub fn add<T: Real>(x: &[T], y: &mut [T]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y += x;
    }
}

/// Numbers summed side by side before they are added up: a fixed order that still vectorises.
pub const LANES: usize = 16;

/// Sum of products, in lanes.
#[inline(always)]
pub fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    let mut lanes = [T::ZERO; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] = a[i].mul_add(b[i], lanes[i]);
        }
    }
    for (i, (&a, &b)) in a_rest.iter().zip(b_rest).enumerate() {
        lanes[i] = a.mul_add(b, lanes[i]);
    }
    add_lanes(lanes)
}

/// Sum, in lanes.
#[inline(always)]
pub fn sum<T: Real>(a: &[T]) -> T {
    let mut lanes = [T::ZERO; LANES];
    let (chunks, rest) = a.as_chunks::<LANES>();
    for a in chunks {
        for i in 0..LANES {
            lanes[i] += a[i];
        }
    }
    for (i, &a) in rest.iter().enumerate() {
        lanes[i] += a;
    }
    add_lanes(lanes)
}

/// Adds up lanes pairwise.
#[inline(always)]
pub fn add_lanes<T: Real, const W: usize>(mut lanes: [T; W]) -> T {
    let mut width = W / 2;
    while width > 0 {
        for i in 0..width {
            let upper = lanes[i + width];
            lanes[i] += upper;
        }
        width /= 2;
    }
    lanes[0]
}

/// Runs a kernel with the widest vector instructions that the machine has. Everything in it must
/// be `#[inline(always)]` to profit.
#[inline(always)]
pub fn vectorised<R>(kernel: impl FnOnce() -> R) -> R {
    struct Kernel<F>(F);
    impl<R, F: FnOnce() -> R> pulp::NullaryFnOnce for Kernel<F> {
        type Output = R;
        #[inline(always)]
        fn call(self) -> R {
            (self.0)()
        }
    }
    pulp::Arch::new().dispatch(Kernel(kernel))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_to_a_few_ulp() {
        let mut worst: f64 = 0.0;
        for i in -870_000..=880_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(Real::exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 1.5e-7, "relative error {worst:e}");
        assert!(Real::exp(f32::NAN).is_nan() && Real::sigmoid(f32::NAN).is_nan());
        assert_eq!(Real::sigmoid(-1e30f32), Real::sigmoid(-1e4f32));
        assert_eq!(Real::sigmoid(f32::INFINITY), 1.0);
    }

    #[test]
    fn silu_slope_is_the_derivative() {
        for i in -50..50 {
            let x = 0.2 * f64::from(i);
            // Rounding and truncation of this quotient are both below 1e-10.
            let numeric = (silu(x + 1e-5) - silu(x - 1e-5)) / 2e-5;
            assert!((silu_slope(x) - numeric).abs() < 1e-9);
        }
    }
}
