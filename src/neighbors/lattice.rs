//! Lattice reduction: the shortest, most nearly orthogonal vectors that span the same lattice.
//!
//! Neighbours are searched among the images of the reduced cell, because a skewed cell (MD under
//! shear makes them) would need an unbounded number of images in each direction.

use crate::system::Cell;
use crate::system::cell::{cross, determinant, dot, inverse, multiply, orthogonal, unit};

/// A basis for searching: reduced lattice vectors along the periodic directions, orthonormal
/// vectors along the others.
pub(super) struct Lattice {
    /// Basis vectors as rows, Angstrom; the periodic ones come first.
    pub basis: [[f64; 3]; 3],
    /// Inverse of `basis`: `coordinates = position * inverse`.
    pub inverse: [[f64; 3]; 3],
    /// Number of periodic directions.
    pub periodic: usize,
    /// Distance between the planes that bound the basis cell, along each basis vector, Angstrom.
    pub heights: [f64; 3],
    /// Bound of the rounding error of `basis`, Angstrom.
    pub rounding: f64,
    /// The cell as given.
    vectors: [[f64; 3]; 3],
    /// Each periodic basis vector as integer multiples of the given vectors.
    multiples: [[i64; 3]; 3],
}

/// Multiples beyond this are refused as a flat cell: they belong to cells more than a billion times
/// longer than high.
const MAX_MULTIPLE: f64 = 1e9;

/// A vector of the lattice and its integer coordinates.
#[derive(Clone, Copy)]
struct Combination {
    vector: [f64; 3],
    multiples: [i64; 3],
}

impl Lattice {
    /// The reduced lattice of a cell; `None` if the cell is flat.
    pub fn reduced(cell: &Cell) -> Option<Lattice> {
        let mut vectors: Vec<Combination> = (0..3)
            .filter(|&k| cell.periodic[k])
            .map(|k| Combination {
                vector: cell.vectors[k],
                multiples: std::array::from_fn(|j| i64::from(j == k)),
            })
            .collect();
        reduce(&mut vectors, &cell.vectors)?;
        let periodic = vectors.len();
        let mut basis = [[0.0; 3]; 3];
        let mut multiples = [[0; 3]; 3];
        for (k, combination) in vectors.iter().enumerate() {
            basis[k] = combination.vector;
            multiples[k] = combination.multiples;
        }
        match periodic {
            0 => basis = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
            1 => {
                let along = unit(basis[0]);
                basis[1] = orthogonal(along);
                basis[2] = cross(along, basis[1]);
            }
            2 => basis[2] = unit(cross(unit(basis[0]), unit(basis[1]))),
            _ => {}
        }
        let inverse = inverse(&basis);
        if !inverse.iter().flatten().all(|x| x.is_finite()) {
            return None;
        }
        let heights = std::array::from_fn(|k| {
            let reciprocal = [inverse[0][k], inverse[1][k], inverse[2][k]];
            1.0 / dot(reciprocal, reciprocal).sqrt()
        });
        // Only vectors that take part: the others may be of any length.
        let mut rounding = 0.0;
        for (&count, &vector) in multiples
            .iter()
            .flat_map(|row| row.iter().zip(&cell.vectors))
        {
            if count != 0 {
                rounding += 4.0 * f64::EPSILON * count.unsigned_abs() as f64 * length(vector);
            }
        }
        Some(Lattice {
            basis,
            inverse,
            periodic,
            heights,
            rounding,
            vectors: cell.vectors,
            multiples,
        })
    }

    /// The lattice vectors as given.
    pub fn cell(&self) -> [[f64; 3]; 3] {
        self.vectors
    }

    /// Each periodic basis vector as integer multiples of the given vectors.
    pub fn multiples(&self) -> [[i64; 3]; 3] {
        self.multiples
    }

    /// Converts an image (multiples of the periodic basis vectors) to multiples of the vectors of
    /// the cell as given.
    pub fn original_image(&self, image: [i64; 3]) -> [i64; 3] {
        if image == [0; 3] {
            return image;
        }
        let m = &self.multiples;
        std::array::from_fn(|j| image[0] * m[0][j] + image[1] * m[1][j] + image[2] * m[2][j])
    }

    /// Translation of an image given in multiples of the original vectors, Angstrom. The
    /// translation of the negated image is exactly the negative.
    pub fn translation(&self, image: [i64; 3]) -> [f64; 3] {
        if image == [0; 3] {
            return [0.0; 3];
        }
        multiply(image.map(|n| n as f64), &self.vectors)
    }

    /// A number of pairs that a periodic system is certain to have: around any point of the span of
    /// the lattice, the cells that reach into the sphere of radius `cutoff` minus their own
    /// radius have their lattice point within the cutoff.
    pub fn fewest_pairs(&self, atoms: usize, cutoff: f64) -> f64 {
        let lengths: f64 = self.basis[..self.periodic].iter().map(|&v| length(v)).sum();
        let radius = cutoff - 0.5 * lengths;
        if self.periodic == 0 || radius <= 0.0 {
            return 0.0;
        }
        let atoms = atoms as f64;
        // Only with three periodic directions is every atom certain to be near images of every
        // other; otherwise images of itself are all that is certain. Minus the atom itself.
        let [a, b, _] = self.basis;
        let images = match self.periodic {
            1 => 2.0 * radius / length(a),
            2 => std::f64::consts::PI * radius.powi(2) / length(cross(a, b)),
            _ => {
                let sphere = 4.0 / 3.0 * std::f64::consts::PI * radius.powi(3);
                atoms * sphere / determinant(&self.basis).abs()
            }
        };
        (atoms * (images.floor() - 1.0)).max(0.0)
    }
}

fn length(v: [f64; 3]) -> f64 {
    dot(v, v).sqrt()
}

/// Reduces up to three vectors in place: until no sum of the longest with multiples of the others
/// is shorter (Semaev 2001, "A 3-dimensional lattice reduction algorithm").
fn reduce(vectors: &mut [Combination], cell: &[[f64; 3]; 3]) -> Option<()> {
    /// A step must shorten a vector by at least this share, or rounding could go in circles.
    const SHORTER: f64 = 1.0 - 1e-10;
    /// Each step shortens a vector by a constant factor in all but the last few.
    const MAX_STEPS: usize = 1000;
    for _ in 0..MAX_STEPS {
        vectors.sort_by(|a, b| length(a.vector).total_cmp(&length(b.vector)));
        let mut changed = false;
        for long in 1..vectors.len() {
            for short in 0..long {
                let (a, b) = (vectors[short].vector, vectors[long].vector);
                let ratio = (dot(a, b) / dot(a, a)).round();
                if ratio.is_nan() || ratio.abs() > MAX_MULTIPLE {
                    return None;
                }
                let candidate = combine(vectors[long], -(ratio as i64), vectors[short], cell)?;
                if length(candidate.vector) < SHORTER * length(b) {
                    vectors[long] = candidate;
                    changed = true;
                }
            }
        }
        // Three vectors at 120 degrees are reduced in pairs, but their sum may be short.
        if let [a, b, c] = *vectors
            && !changed
        {
            for (i, j) in [(1, 1), (1, -1), (-1, 1), (-1, -1)] {
                let candidate = combine(combine(c, i, a, cell)?, j, b, cell)?;
                if length(candidate.vector) < SHORTER * length(vectors[2].vector) {
                    vectors[2] = candidate;
                    changed = true;
                }
            }
        }
        if !changed {
            return Some(());
        }
    }
    Some(())
}

/// `a + factor * b`, its vector computed afresh from the cell so that errors do not add up.
fn combine(
    a: Combination,
    factor: i64,
    b: Combination,
    cell: &[[f64; 3]; 3],
) -> Option<Combination> {
    let mut multiples = a.multiples;
    for (sum, b) in multiples.iter_mut().zip(b.multiples) {
        *sum = b.checked_mul(factor)?.checked_add(*sum)?;
        if sum.unsigned_abs() as f64 > MAX_MULTIPLE {
            return None;
        }
    }
    Some(Combination {
        vector: multiply(multiples.map(|n| n as f64), cell),
        multiples,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reduced(vectors: [[f64; 3]; 3]) -> Lattice {
        let cell = Cell {
            vectors,
            periodic: [true; 3],
        };
        Lattice::reduced(&cell).unwrap()
    }

    #[test]
    fn a_sheared_cube_becomes_a_cube_again() {
        let lattice = reduced([[4.0, 0.0, 0.0], [4e5, 4.0, 0.0], [-8e5, 400.0, 4.0]]);
        for height in lattice.heights {
            assert!((height - 4.0).abs() < 1e-6, "{:?}", lattice.basis);
        }
        assert!((determinant(&lattice.basis).abs() - 64.0).abs() < 1e-6);
    }

    #[test]
    fn vectors_at_120_degrees_are_reduced_too() {
        let s = 3f64.sqrt() / 2.0;
        let lattice = reduced([
            [5.0, 0.0, 0.01],
            [-2.5, 5.0 * s, 0.01],
            [-2.5, -5.0 * s, 0.01],
        ]);
        let shortest = lattice.basis.iter().map(|&v| length(v)).fold(9.0, f64::min);
        assert!((shortest - 0.03).abs() < 1e-9, "{:?}", lattice.basis);
    }

    #[test]
    fn the_certain_number_of_pairs_is_a_lower_bound() {
        // Simple cubic, a = 1: 924 lattice points within 6 (without the origin).
        let cubic = reduced([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]);
        let bound = cubic.fewest_pairs(1, 6.0);
        assert!((300.0..924.0).contains(&bound), "{bound}");
        assert!(cubic.fewest_pairs(10, 6.0) > 90.0 * bound);
    }
}
