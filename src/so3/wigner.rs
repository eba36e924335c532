//! Wigner matrices of edges, and the generators of rotations.
//!
//! An edge's matrix D is that of a rotation that turns the edge onto +y. Any such rotation will
//! do: the network does not notice a further turn about y. With the polar angle b from y and the
//! azimuth a (from z towards x), D^l = J_l X_l(-b) J_l X_l(-a), where X_l turns about y and
//! J_l is constant (Pinchon and Hoggan, J. Phys. A 40 (2007) 1597). There is no gradient through D
//! (see `nn::op`), so the azimuth being undefined on the axis does no harm.

use super::layout::Layout;

/// Largest degree supported.
pub const MAX_DEGREE: usize = 10;

/// Generator of rotations about one axis: `value * x[row] * y[column]`, summed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GeneratorEntry {
    /// Axis: 0 x, 1 y, 2 z.
    pub axis: usize,
    /// Atom row (L-order).
    pub row: usize,
    /// Atom column (L-order).
    pub column: usize,
    /// The matrix element.
    pub value: f64,
}

/// Computes packed Wigner matrices for one layout.
#[derive(Clone, Debug)]
pub struct Wigner {
    layout: Layout,
    /// J_l, row-major, one per degree.
    j: Vec<Vec<f64>>,
}

impl Wigner {
    /// Prepares the constant matrices.
    pub fn new(layout: &Layout) -> Wigner {
        assert!(layout.lmax <= MAX_DEGREE);
        Wigner {
            layout: layout.clone(),
            j: (0..=layout.lmax).map(half_turn).collect(),
        }
    }

    /// The half turns J_l, row-major, for l = 0..=lmax one after the other.
    pub fn half_turns(&self) -> Vec<f64> {
        self.j.concat()
    }

    /// Writes the packed matrices of the rotations that turn W unit vectors onto +y, side by side:
    /// `unit[axis][edge]` and `out[element][edge]`.
    #[inline(always)]
    pub fn fill<const W: usize>(&self, [x, y, z]: [[f64; W]; 3], out: &mut [[f64; W]]) {
        let (mut sin_a, mut cos_a, mut sin_b) = ([0.0; W], [1.0; W], [0.0; W]);
        for i in 0..W {
            let square = x[i] * x[i] + z[i] * z[i];
            // Squares below this have lost digits; closer to the axis the azimuth may be any.
            let off_axis = square > 1e-250;
            let sin = square.sqrt();
            let inverse = 1.0 / if off_axis { sin } else { 1.0 };
            sin_b[i] = if off_axis { sin } else { 0.0 };
            cos_a[i] = if off_axis { z[i] * inverse } else { 1.0 };
            sin_a[i] = if off_axis { x[i] * inverse } else { 0.0 };
        }
        out[0] = [1.0; W];
        let lmax = self.layout.lmax;
        let a = multiples(cos_a, sin_a, lmax);
        let b = multiples(y, sin_b, lmax);
        let (mut u, mut v) = ([[0.0; W]; WIDTH], [[0.0; W]; WIDTH]);
        for l in 1..=lmax {
            let n = 2 * l + 1;
            let j = &self.j[l][..n * n];
            let k = l.min(self.layout.mmax);
            for row in 0..2 * k + 1 {
                let j_row = &j[(row + l - k) * n..][..n];
                // u = (J X(-b)) row, then v = u J, then v X(-a).
                turn(
                    #[inline(always)]
                    |i| [j_row[i]; W],
                    &b,
                    l,
                    &mut u,
                );
                for column in 0..n {
                    let mut sum = [0.0; W];
                    for i in 0..n {
                        for lane in 0..W {
                            sum[lane] += u[i][lane] * j[i * n + column];
                        }
                    }
                    v[column] = sum;
                }
                let first = self.layout.wigner_offset[l] + row * n;
                turn(
                    #[inline(always)]
                    |i| v[i],
                    &a,
                    l,
                    &mut out[first..][..n],
                );
            }
        }
    }
}

/// Most columns of a block.
const WIDTH: usize = 2 * MAX_DEGREE + 1;

/// cos(k t) and sin(k t), k = 0..=lmax, by the addition theorem: exact to a few ulp for these small k.
#[inline(always)]
fn multiples<const W: usize>(
    c: [f64; W],
    s: [f64; W],
    lmax: usize,
) -> [[[f64; W]; 2]; MAX_DEGREE + 1] {
    let mut table = [[[1.0; W], [0.0; W]]; MAX_DEGREE + 1];
    for k in 1..=lmax {
        let [pc, ps] = table[k - 1];
        for i in 0..W {
            table[k][0][i] = pc[i] * c[i] - ps[i] * s[i];
            table[k][1][i] = ps[i] * c[i] + pc[i] * s[i];
        }
    }
    table
}

/// `row * X_l(-t)` from the multiples of t.
#[inline(always)]
fn turn<const W: usize>(
    row: impl Fn(usize) -> [f64; W],
    multiples: &[[[f64; W]; 2]],
    l: usize,
    out: &mut [[f64; W]],
) {
    out[l] = row(l);
    for m in 1..=l {
        let [c, s] = &multiples[m];
        // X(-t)[l + m][l - m] = sin(m t), and the other one -sin(m t).
        let (minus, plus) = (row(l - m), row(l + m));
        for i in 0..W {
            out[l - m][i] = minus[i] * c[i] + plus[i] * s[i];
            out[l + m][i] = plus[i] * c[i] - minus[i] * s[i];
        }
    }
}

/// J_l = (-1)^l D^l(half turn about x + y), by fitting D in Y(R p) = D Y(p) over enough points.
fn half_turn(l: usize) -> Vec<f64> {
    use nalgebra::DMatrix;
    let n = 2 * l + 1;
    let points = 4 * n;
    let mut before = DMatrix::zeros(n, points);
    let mut after = DMatrix::zeros(n, points);
    for p in 0..points {
        // A Fibonacci spiral covers the sphere evenly.
        let y = 1.0 - (2.0 * p as f64 + 1.0) / points as f64;
        let r = (1.0 - y * y).sqrt();
        let t = p as f64 * std::f64::consts::PI * (3.0 - 5f64.sqrt());
        let (x, z) = (r * t.cos(), r * t.sin());
        before.set_column(p, &harmonics(l, [x, y, z]).into());
        after.set_column(p, &harmonics(l, [y, x, -z]).into());
    }
    let gram = &before * before.transpose();
    let d = (&after * before.transpose())
        * gram
            .try_inverse()
            .expect("harmonics are linearly independent on the spiral");
    let sign = if l.is_multiple_of(2) { 1.0 } else { -1.0 };
    (0..n * n)
        .map(|i| sign * 0.5 * (d[(i / n, i % n)] + d[(i % n, i / n)]))
        .collect()
}

/// Real spherical harmonics of degree l at a unit vector, orthonormal up to a common factor,
/// m = -l..l, polar axis y.
fn harmonics(l: usize, [x, y, z]: [f64; 3]) -> Vec<f64> {
    // Associated Legendre functions without the sine factor: q[m] with P_l^m = sin^m q[m].
    let mut q = vec![0.0; l + 1];
    for (m, q) in q.iter_mut().enumerate() {
        let mut current: f64 = (0..m).map(|k| (2 * k + 1) as f64).product();
        let mut previous = 0.0;
        for k in m..l {
            let next =
                ((2 * k + 1) as f64 * y * current - (k + m) as f64 * previous) / (k + 1 - m) as f64;
            (previous, current) = (current, next);
        }
        *q = current;
    }
    let mut out = vec![0.0; 2 * l + 1];
    let (mut re, mut im) = (1.0, 0.0); // (z + i x)^m
    let mut norm = 1.0; // (l - m)! / (l + m)!
    for m in 0..=l {
        if m > 0 {
            (re, im) = (re * z - im * x, re * x + im * z);
            norm /= ((l - m + 1) * (l + m)) as f64;
        }
        let factor = (if m == 0 { 1.0 } else { 2.0 } * norm).sqrt() * q[m];
        out[l + m] = factor * re;
        if m > 0 {
            out[l - m] = factor * im;
        }
    }
    out
}

/// The non-zero elements of the generators G_x, G_y, G_z of all degrees: a small rotation w gives
/// D^l(1 + sum_k w_k G_k^l).
pub fn generators(lmax: usize) -> Vec<GeneratorEntry> {
    use nalgebra::DMatrix;
    let mut entries = Vec::new();
    for l in 1..=lmax {
        let n = 2 * l + 1;
        let mut gy = DMatrix::<f64>::zeros(n, n);
        for m in 1..=l {
            gy[(l - m, l + m)] = m as f64;
            gy[(l + m, l - m)] = -(m as f64);
        }
        let j = DMatrix::from_row_slice(n, n, &half_turn(l));
        let gx = &j * &gy * &j;
        let gz = &gx * &gy - &gy * &gx;
        for (axis, g) in [gx, gy, gz].iter().enumerate() {
            for row in 0..n {
                for column in 0..n {
                    let value = g[(row, column)];
                    if value.abs() > 1e-9 {
                        let first = l * l;
                        entries.push(GeneratorEntry {
                            axis,
                            row: first + row,
                            column: first + column,
                            value,
                        });
                    }
                }
            }
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(wigner: &Wigner, unit: [f64; 3], out: &mut [f64]) {
        wigner.fill(unit.map(|x| [x]), out.as_chunks_mut().0);
    }

    fn units() -> Vec<[f64; 3]> {
        let mut out = vec![
            [0.0, 1.0, 0.0],
            [0.0, -1.0, 0.0],
            [1.0, 0.0, 0.0],
            [0.0, 0.0, -1.0],
        ];
        for i in 0..20 {
            let (a, b) = (0.37 * i as f64, 0.71 * i as f64 + 0.2);
            out.push([a.sin() * b.cos(), a.cos(), a.sin() * b.sin()]);
        }
        out
    }

    #[test]
    fn turns_the_edge_onto_the_polar_axis() {
        let layout = Layout::new(6, 6);
        let wigner = Wigner::new(&layout);
        let mut d = vec![0.0; layout.wigner_len];
        for unit in units() {
            fill(&wigner, unit, &mut d);
            for l in 1..=6 {
                let n = 2 * l + 1;
                let block = &d[layout.wigner_offset[l]..][..n * n];
                // D Y(edge) = Y(y axis), which has m = 0 only.
                let (from, to) = (harmonics(l, unit), harmonics(l, [0.0, 1.0, 0.0]));
                for row in 0..n {
                    let value: f64 = (0..n).map(|c| block[row * n + c] * from[c]).sum();
                    assert!((value - to[row]).abs() < 1e-13, "l={l} {unit:?}");
                    for other in 0..n {
                        let dot: f64 = (0..n)
                            .map(|c| block[row * n + c] * block[other * n + c])
                            .sum();
                        assert!((dot - f64::from(row == other)).abs() < 1e-13);
                    }
                }
            }
        }
    }

    #[test]
    fn degree_one_is_the_rotation_itself() {
        let layout = Layout::new(1, 1);
        let wigner = Wigner::new(&layout);
        let mut d = vec![0.0; 10];
        for unit in units() {
            fill(&wigner, unit, &mut d);
            let r = &d[1..];
            let turned: Vec<f64> = (0..3)
                .map(|i| (0..3).map(|k| r[3 * i + k] * unit[k]).sum())
                .collect();
            assert!((turned[1] - 1.0).abs() < 1e-14 && turned[0].abs() < 1e-14);
            let det = r[0] * (r[4] * r[8] - r[5] * r[7]) - r[1] * (r[3] * r[8] - r[5] * r[6])
                + r[2] * (r[3] * r[7] - r[4] * r[6]);
            assert!(
                (det - 1.0).abs() < 1e-13,
                "a proper rotation, not a reflection"
            );
        }
    }

    #[test]
    fn generators_are_the_derivative_of_harmonics() {
        // Y(p + w x p) = (1 + w_k G_k) Y(p) to first order.
        let entries = generators(5);
        let p = [0.48, -0.6, 0.64];
        let h = 1e-6;
        for axis in 0..3 {
            let mut w = [0.0; 3];
            w[axis] = h;
            let cross = [
                w[1] * p[2] - w[2] * p[1],
                w[2] * p[0] - w[0] * p[2],
                w[0] * p[1] - w[1] * p[0],
            ];
            let shifted = |s: f64| [0, 1, 2].map(|i| p[i] + s * cross[i]);
            for l in 1..=5usize {
                let (plus, minus, y) = (
                    harmonics(l, shifted(1.0)),
                    harmonics(l, shifted(-1.0)),
                    harmonics(l, p),
                );
                let mut predicted = vec![0.0; 2 * l + 1];
                for e in entries.iter().filter(|e| e.axis == axis) {
                    if e.row >= l * l && e.row < (l + 1) * (l + 1) {
                        predicted[e.row - l * l] += e.value * y[e.column - l * l];
                    }
                }
                for i in 0..2 * l + 1 {
                    let numeric = (plus[i] - minus[i]) / (2.0 * h);
                    assert!((numeric - predicted[i]).abs() < 1e-8, "axis {axis} l {l}");
                }
            }
        }
    }
}
