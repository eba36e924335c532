//! What the network needs to know about every edge.

use super::real::Real;
use crate::backend::Structure;
use crate::nn::Program;
use crate::so3::Wigner;
use rayon::prelude::*;

/// Everything per edge that depends on the positions only.
pub struct Geometry<T> {
    /// Polynomial envelope p(d).
    pub envelope: Vec<T>,
    /// Gaussians of the distance. `[E][basis]`
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

/// Centres are k * spacing; exponent of the Gaussians: exp(c (d - centre)^2).
pub fn gaussian_basis(program: &Program) -> (f64, f64) {
    let spacing = program.cutoff / (program.basis.max(2) - 1) as f64;
    // The widths are twice the spacing in all UMA models.
    (spacing, -0.5 / (2.0 * spacing).powi(2))
}

/// exp(exponent (d - k spacing)^2) for every k, outwards from the nearest: the factor from one to the
/// next changes by a constant one. Three exponentials in all, in double precision: a relative error of
/// the number of steps times 1e-16.
fn fill_gaussians<T: Real>(d: f64, spacing: f64, exponent: f64, out: &mut [T]) {
    let nearest = ((d / spacing).round() as usize).min(out.len() - 1);
    let x = d - nearest as f64 * spacing;
    let first = (exponent * x * x).exp();
    let change = (2.0 * exponent * spacing * spacing).exp();
    let factor = |side: f64| (exponent * spacing * (spacing - side * 2.0 * x)).exp();
    let (below, above) = out.split_at_mut(nearest);
    fill_falling(below.iter_mut().rev(), first, factor(-1.0), change);
    above[0] = T::from_f64(first);
    fill_falling(above[1..].iter_mut(), first, factor(1.0), change);
}

/// g factor, g factor (factor change), ...
fn fill_falling<'a, T: Real + 'a>(
    out: impl Iterator<Item = &'a mut T>,
    mut g: f64,
    mut factor: f64,
    change: f64,
) {
    for out in out {
        g *= factor;
        factor *= change;
        if g < 1e-290 {
            g = 0.0; // not by way of numbers that are slow to multiply
        }
        *out = T::from_f64(g);
    }
}

impl<T: Real> Geometry<T> {
    /// Expands all edges of a batch.
    pub fn new(program: &Program, wigner: &Wigner, batch: &[Structure]) -> Geometry<T> {
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
        let (spacing, exponent) = gaussian_basis(program);
        let mut geometry = Geometry {
            envelope: vec![T::ZERO; edges],
            gaussians: vec![T::ZERO; edges * basis],
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
            .gaussians
            .par_chunks_mut(basis)
            .zip(geometry.wigner.par_chunks_mut(width))
            .zip(&mut geometry.envelope)
            .zip(&mut geometry.distance)
            .zip(&mut geometry.unit)
            .zip(&vectors)
            .with_min_len(256)
            .for_each_init(
                || vec![0.0f64; width],
                |d64, (((((gaussians, wigner_out), env), distance), unit), v)| {
                    let d = v.iter().map(|x| x * x).sum::<f64>().sqrt();
                    *distance = d;
                    *unit = v.map(|x| x / d);
                    *env = T::from_f64(envelope(d, program.cutoff).0);
                    fill_gaussians(d, spacing, exponent, gaussians);
                    wigner.fill(*unit, d64);
                    for (out, &x) in wigner_out.iter_mut().zip(d64.iter()) {
                        *out = T::from_f64(x);
                    }
                },
            );
        geometry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaussians_are_exact_to_rounding() {
        for (basis, cutoff) in [(64, 6.0), (512, 6.0), (16, 5.0), (2, 5.0), (1, 5.0)] {
            let spacing = cutoff / f64::from((basis - 1).max(1));
            let exponent = -0.5 / (2.0 * spacing).powi(2);
            for d in [1e-3, 0.97, 2.5, 4.999, cutoff] {
                let mut wide = vec![0.0f64; basis as usize];
                let mut narrow = vec![0.0f32; basis as usize];
                fill_gaussians(d, spacing, exponent, &mut wide);
                fill_gaussians(d, spacing, exponent, &mut narrow);
                for k in 0..basis {
                    let x = d - f64::from(k) * spacing;
                    let expected = (exponent * x * x).exp();
                    let [wide, narrow] = [wide[k as usize], f64::from(narrow[k as usize])];
                    assert!((wide / expected - 1.0).abs() < 1e-12 || expected < 1e-280);
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
