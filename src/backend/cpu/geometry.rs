//! What the network needs to know about every edge.

use super::real::{Real, vectorised};
use crate::backend::Structure;
use crate::nn::Program;
use crate::so3::Wigner;
use rayon::prelude::*;

/// Everything per edge that depends on the positions only.
pub struct Geometry<T> {
    /// Polynomial envelope p(d).
    pub envelope: Vec<T>,
    /// Gaussians of the distance. `[E][basis]`, or nothing where all radial networks are tabulated.
    pub gaussians: Vec<T>,
    /// Packed Wigner matrices. `[E][wigner_len]`
    pub wigner: Vec<T>,
    /// Distance.
    pub distance: Vec<f64>,
    /// Unit vector from target to source.
    pub unit: Vec<[f64; 3]>,
    /// Source atom, counted over the batch.
    pub source: Vec<u32>,
    /// Target atom, counted over the batch.
    pub target: Vec<u32>,
    /// Incoming edges of each atom of the batch; length N + 1.
    pub target_start: Vec<u32>,
    /// Outgoing edges of each atom, in edge order: `outgoing[source_start[a]..source_start[a+1]]`.
    pub source_start: Vec<u32>,
    /// See `source_start`.
    pub outgoing: Vec<u32>,
}

/// The envelope 1 - 21 u^5 + 35 u^6 - 15 u^7 and its slope, u = d / cutoff < 1; zero beyond.
pub fn envelope(d: f64, cutoff: f64) -> (f64, f64) {
    let u = d / cutoff;
    if u >= 1.0 {
        return (0.0, 0.0);
    }
    let u4 = u.powi(4);
    let slope = -105.0 * u4 * (1.0 - u).powi(2) / cutoff;
    (1.0 + u4 * u * (-21.0 + u * (35.0 - 15.0 * u)), slope)
}

/// The Gaussians exp(exponent (d - k spacing)^2) of a distance, k = 0, 1, ...
#[derive(Clone, Copy, Debug)]
pub struct Gaussians {
    /// Distance of the centres, Angstrom.
    pub spacing: f64,
    /// Angstrom^-2
    pub exponent: f64,
    /// What the ratio of a Gaussian to the one before changes by from one to the next.
    change: f64,
}

impl Gaussians {
    /// So many of them, with centres from 0 to the cutoff.
    pub fn new(basis: usize, cutoff: f64) -> Gaussians {
        let spacing = cutoff / (basis.max(2) - 1) as f64;
        // The widths are twice the spacing in all UMA models.
        let exponent = -0.5 / (2.0 * spacing).powi(2);
        Gaussians {
            spacing,
            exponent,
            change: (2.0 * exponent * spacing * spacing).exp(),
        }
    }

    /// All of them, outwards from the nearest, with three exponentials in double precision: a relative
    /// error of the number of steps times 1e-16.
    pub fn fill<T: Real>(&self, d: f64, out: &mut [T]) {
        let (spacing, exponent) = (self.spacing, self.exponent);
        let nearest = ((d / spacing).round() as usize).min(out.len() - 1);
        let x = d - nearest as f64 * spacing;
        let first = (exponent * x * x).exp();
        let ratio = |side: f64| (exponent * spacing * (spacing - side * 2.0 * x)).exp();
        let (below, above) = out.split_at_mut(nearest);
        fill_falling(below.iter_mut().rev(), first, ratio(-1.0), self.change);
        above[0] = T::from_f64(first);
        fill_falling(above[1..].iter_mut(), first, ratio(1.0), self.change);
    }
}

/// g ratio, g ratio (ratio change), ...
fn fill_falling<'a, T: Real + 'a>(
    out: impl Iterator<Item = &'a mut T>,
    mut g: f64,
    mut ratio: f64,
    change: f64,
) {
    for out in out {
        g *= ratio;
        ratio *= change;
        if g < 1e-290 {
            g = 0.0; // not by way of numbers that are slow to multiply
        }
        *out = T::from_f64(g);
    }
}

/// Edges whose matrices are made side by side.
const LANES: usize = 8;

/// Unit vectors, by axis, and lengths of up to as many vectors; the last one fills the rest.
#[inline(always)]
fn polar(vectors: &[[f64; 3]]) -> ([[f64; LANES]; 3], [f64; LANES]) {
    let mut unit = [[0.0; LANES]; 3];
    for i in 0..LANES {
        let v = vectors[i.min(vectors.len() - 1)];
        for k in 0..3 {
            unit[k][i] = v[k];
        }
    }
    let mut distance = [0.0; LANES];
    for i in 0..LANES {
        let [x, y, z] = [0, 1, 2].map(|k| unit[k][i]);
        distance[i] = (x * x + y * y + z * z).sqrt();
        for k in 0..3 {
            unit[k][i] /= distance[i];
        }
    }
    (unit, distance)
}

impl<T: Real> Geometry<T> {
    /// Expands all edges of a batch.
    pub fn new(
        program: &Program,
        wigner: &Wigner,
        batch: &[Structure],
        with_gaussians: bool,
    ) -> Geometry<T> {
        let edges: usize = batch.iter().map(|s| s.neighbors.len()).sum();
        let atoms: usize = batch.iter().map(|s| s.numbers.len()).sum();
        let mut source = Vec::with_capacity(edges);
        let mut target = Vec::with_capacity(edges);
        let mut target_start = Vec::with_capacity(atoms + 1);
        let mut vectors = Vec::with_capacity(edges);
        let mut first_atom = 0u32;
        for structure in batch {
            let list = structure.neighbors;
            let first_edge = source.len() as u32;
            source.extend(list.source.iter().map(|s| s + first_atom));
            for a in 0..structure.numbers.len() {
                target_start.push(first_edge + list.target_start[a]);
                let count = list.target_start[a + 1] - list.target_start[a];
                target.extend(std::iter::repeat_n(first_atom + a as u32, count as usize));
            }
            vectors.extend_from_slice(&list.vector);
            first_atom += structure.numbers.len() as u32;
        }
        target_start.push(edges as u32);

        let mut source_start = vec![0u32; atoms + 1];
        for &s in &source {
            source_start[s as usize + 1] += 1;
        }
        for a in 0..atoms {
            source_start[a + 1] += source_start[a];
        }
        let mut next = source_start.clone();
        let mut outgoing = vec![0u32; edges];
        for (e, &s) in source.iter().enumerate() {
            outgoing[next[s as usize] as usize] = e as u32;
            next[s as usize] += 1;
        }

        let basis = program.basis;
        let width = program.layout.wigner_len;
        let basis_functions = Gaussians::new(basis, program.cutoff);
        let mut geometry = Geometry {
            envelope: vec![T::ZERO; edges],
            gaussians: vec![T::ZERO; if with_gaussians { edges * basis } else { 0 }],
            wigner: vec![T::ZERO; edges * width],
            distance: vec![0.0; edges],
            unit: vec![[0.0; 3]; edges],
            source,
            target,
            target_start,
            source_start,
            outgoing,
        };
        geometry
            .wigner
            .par_chunks_mut(LANES * width)
            .zip(geometry.envelope.par_chunks_mut(LANES))
            .zip(geometry.distance.par_chunks_mut(LANES))
            .zip(geometry.unit.par_chunks_mut(LANES))
            .zip(vectors.par_chunks(LANES))
            .with_min_len(256 / LANES)
            .with_max_len(256 / LANES)
            .for_each_init(
                || vec![[0.0; LANES]; width],
                |matrices, ((((wigners, envelopes), distances), units), vectors)| {
                    vectorised(
                        #[inline(always)]
                        || {
                            let (unit, distance) = polar(vectors);
                            wigner.fill(unit, matrices);
                            for (i, out) in wigners.chunks_exact_mut(width).enumerate() {
                                for k in 0..width {
                                    out[k] = T::from_f64(matrices[k][i]);
                                }
                            }
                            for i in 0..vectors.len() {
                                distances[i] = distance[i];
                                units[i] = unit.map(|x| x[i]);
                            }
                        },
                    );
                    for i in 0..vectors.len() {
                        envelopes[i] = T::from_f64(envelope(distances[i], program.cutoff).0);
                    }
                },
            );
        geometry
            .gaussians
            .par_chunks_mut(basis)
            .zip(&geometry.distance)
            .with_min_len(256)
            .for_each(|(gaussians, d)| basis_functions.fill(*d, gaussians));
        geometry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaussians_are_exact_to_rounding() {
        for (basis, cutoff) in [(64, 6.0), (512, 6.0), (16, 5.0), (2, 5.0), (1, 5.0)] {
            let gaussians = Gaussians::new(basis, cutoff);
            for d in [1e-3, 0.97, 2.5, 4.999, cutoff] {
                let (mut wide, mut narrow) = (vec![0.0f64; basis], vec![0.0f32; basis]);
                gaussians.fill(d, &mut wide);
                gaussians.fill(d, &mut narrow);
                for k in 0..basis {
                    let x = d - k as f64 * gaussians.spacing;
                    let expected = (gaussians.exponent * x * x).exp();
                    let [wide, narrow] = [wide[k], f64::from(narrow[k])];
                    assert!((wide / expected - 1.0).abs() < 1e-12 || expected < 1e-200);
                    assert!((narrow / expected - 1.0).abs() < 6e-8 || expected < 1e-30);
                    assert!(wide.is_finite() && narrow.is_finite());
                }
            }
        }
    }

    #[test]
    fn envelope_ends_smoothly() {
        let (p0, _) = envelope(0.0, 6.0);
        assert_eq!(p0, 1.0);
        assert!(envelope(5.999999, 6.0).0.abs() < 1e-15);
        assert_eq!(envelope(6.0, 6.0), (0.0, 0.0));
        for i in 1..60 {
            let d = 0.1 * f64::from(i);
            let numeric = (envelope(d + 1e-6, 6.0).0 - envelope(d - 1e-6, 6.0).0) / 2e-6;
            assert!((numeric - envelope(d, 6.0).1).abs() < 1e-8);
        }
    }
}
