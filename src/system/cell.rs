//! The periodic cell and its geometry.

/// The periodic cell: three lattice vectors and the directions that repeat.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    /// Lattice vectors as rows, Angstrom. A zero row is a missing vector.
    pub vectors: [[f64; 3]; 3],
    /// Whether the system repeats along each lattice vector.
    pub periodic: [bool; 3],
}

/// Cells whose volume is below this share of the product of their edge lengths are flat: further
/// down, the reciprocal vectors have lost too many digits to find neighbours with.
const FLAT_SHARE: f64 = 1e-9;

/// Viewers say "no cell" with a matrix whose entries sum (in absolute value) to less than this,
/// Angstrom.
const NO_CELL_SUM: f64 = 1e-6;

impl Cell {
    /// No cell: an isolated molecule.
    pub const NONE: Cell = Cell {
        vectors: [[0.0; 3]; 3],
        periodic: [false; 3],
    };

    /// The cell of nine numbers in row-major order (rows are lattice vectors), Angstrom, as viewers
    /// send it: numbers that sum, in absolute value, to less than 1e-6 mean no cell at all.
    pub fn from_row_major(entries: [f64; 9], periodic: [bool; 3]) -> Cell {
        if entries.iter().map(|x| x.abs()).sum::<f64>() < NO_CELL_SUM {
            return Cell::NONE;
        }
        let [a, b, c, d, e, f, g, h, i] = entries;
        Cell {
            vectors: [[a, b, c], [d, e, f], [g, h, i]],
            periodic,
        }
    }

    /// Whether any direction repeats.
    pub fn is_periodic(&self) -> bool {
        self.periodic.iter().any(|&p| p)
    }

    /// Whether any lattice vector is there, periodic or not.
    pub fn has_vectors(&self) -> bool {
        self.vectors.iter().flatten().any(|&x| x != 0.0)
    }

    /// The lattice vectors with the missing ones (zero rows) replaced by unit vectors orthogonal
    /// to the others, as `ase.Atoms.get_cell(complete=True)`. With one vector present, the two
    /// new ones are some right-handed orthonormal pair (ASE's own pair comes from an SVD).
    pub fn completed(&self) -> [[f64; 3]; 3] {
        let mut rows = self.vectors;
        let missing: Vec<usize> = (0..3).filter(|&k| rows[k] == [0.0; 3]).collect();
        match missing[..] {
            [] => {}
            [i] => rows[i] = unit(cross(rows[(i + 1) % 3], rows[(i + 2) % 3])),
            [i, j] => {
                // The vector that is there is row k; (k, k+1, k+2) is a cyclic, right-handed order.
                let k = 3 - i - j;
                let along = unit(rows[k]);
                let first = orthogonal(along);
                rows[(k + 1) % 3] = first;
                rows[(k + 2) % 3] = cross(along, first);
            }
            _ => rows = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        }
        rows
    }

    /// Volume of the completed cell, Angstrom^3. Without any vector this is 1.
    pub fn volume(&self) -> f64 {
        determinant(&self.completed()).abs()
    }

    /// Whether the cell is periodic but cannot be: a periodic direction without a vector, or
    /// vectors that lie in one plane.
    pub fn is_flat(&self) -> bool {
        if !self.is_periodic() {
            return false;
        }
        let missing = (0..3).any(|k| self.periodic[k] && self.vectors[k] == [0.0; 3]);
        let rows = self.completed();
        // Unit vectors first: the product of tiny or huge lengths would leave the range of f64.
        // The comparison is written so that NaN counts as flat.
        let share = determinant(&rows.map(unit)).abs();
        missing || !(share > FLAT_SHARE && determinant(&rows).abs() > 0.0)
    }

    /// Inverse of the completed cell: `fractional = position * inverse` (row vector times matrix),
    /// 1/Angstrom. Its columns are the reciprocal vectors without the factor 2 pi. The entries are
    /// not finite when the vectors lie in one plane.
    pub fn inverse(&self) -> [[f64; 3]; 3] {
        inverse(&self.completed())
    }

    /// Fractional coordinates of a position with respect to the completed cell.
    pub fn fractional(&self, position: [f64; 3]) -> [f64; 3] {
        multiply(position, &self.inverse())
    }

    /// Lattice translation (multiples of the three vectors) that brings a position into the cell:
    /// its fractional coordinates along periodic directions then are in [0, 1). Zero along the
    /// others.
    pub fn wrap_shift(&self, position: [f64; 3]) -> [f64; 3] {
        let fractional = self.fractional(position);
        std::array::from_fn(|k| match self.periodic[k] {
            // `0.0 -` and not unary minus: no negative zeros.
            true => 0.0 - fractional[k].floor(),
            false => 0.0,
        })
    }

    /// The position translated into the cell along its periodic directions, Angstrom.
    pub fn wrapped(&self, position: [f64; 3]) -> [f64; 3] {
        let shift = multiply(self.wrap_shift(position), &self.vectors);
        std::array::from_fn(|k| position[k] + shift[k])
    }
}

impl Default for Cell {
    fn default() -> Self {
        Cell::NONE
    }
}

pub(crate) fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

pub(crate) fn cross(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    [
        a[1] * b[2] - a[2] * b[1],
        a[2] * b[0] - a[0] * b[2],
        a[0] * b[1] - a[1] * b[0],
    ]
}

/// Row vector times matrix.
pub(crate) fn multiply(v: [f64; 3], m: &[[f64; 3]; 3]) -> [f64; 3] {
    std::array::from_fn(|k| v[0] * m[0][k] + v[1] * m[1][k] + v[2] * m[2][k])
}

pub(crate) fn unit(v: [f64; 3]) -> [f64; 3] {
    // Scaled by the largest entry first, so that squares neither overflow nor vanish.
    let largest = v.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    let v = v.map(|x| x / largest);
    let length = dot(v, v).sqrt();
    v.map(|x| x / length)
}

/// A unit vector orthogonal to a unit vector.
pub(crate) fn orthogonal(v: [f64; 3]) -> [f64; 3] {
    let mut axis = [0.0; 3];
    // The axis along which `v` is shortest is never parallel to it.
    let k = (0..3).fold(0, |k, j| if v[j].abs() < v[k].abs() { j } else { k });
    axis[k] = 1.0;
    unit(cross(v, axis))
}

pub(crate) fn determinant(rows: &[[f64; 3]; 3]) -> f64 {
    dot(rows[0], cross(rows[1], rows[2]))
}

pub(crate) fn inverse(rows: &[[f64; 3]; 3]) -> [[f64; 3]; 3] {
    let columns = [
        cross(rows[1], rows[2]),
        cross(rows[2], rows[0]),
        cross(rows[0], rows[1]),
    ];
    let determinant = dot(rows[0], columns[0]);
    std::array::from_fn(|i| std::array::from_fn(|j| columns[j][i] / determinant))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(vectors: [[f64; 3]; 3], periodic: [bool; 3]) -> Cell {
        Cell { vectors, periodic }
    }

    const SKEW: [[f64; 3]; 3] = [[4.0, 0.1, 0.2], [1.5, 3.0, -0.3], [-0.7, 0.4, 5.0]];

    #[test]
    fn missing_vectors_are_completed_as_ase_does() {
        // ase.geometry.complete_cell([[0,0,0],[1.5,3,-.3],[-.7,.4,5]])[0]
        let two = cell([[0.0; 3], SKEW[1], SKEW[2]], [false, true, true]);
        let a = two.completed()[0];
        let ase = [0.8893371435259977, -0.42878755134289176, 0.158810204201071];
        assert!((0..3).all(|k| (a[k] - ase[k]).abs() < 1e-14), "{a:?}");
        assert!((dot(a, a) - 1.0).abs() < 1e-14);
        assert!(dot(a, SKEW[1]).abs() < 1e-14 && dot(a, SKEW[2]).abs() < 1e-14);

        for k in 0..3 {
            let mut vectors = [[0.0; 3]; 3];
            vectors[k] = SKEW[k];
            let one = cell(vectors, [k == 0, k == 1, k == 2]);
            let length = dot(SKEW[k], SKEW[k]).sqrt();
            assert!((determinant(&one.completed()) - length).abs() < 1e-12);
        }
        assert_eq!(Cell::NONE.volume(), 1.0);
    }

    #[test]
    fn flat_cells_are_recognised() {
        let all = [true; 3];
        assert!(!cell(SKEW, all).is_flat());
        assert!(!Cell::NONE.is_flat());
        assert!(cell([[0.0; 3]; 3], all).is_flat());
        assert!(cell([SKEW[0], SKEW[1], SKEW[0]], all).is_flat());
        assert!(cell([SKEW[0], SKEW[1], [f64::NAN; 3]], all).is_flat());
        // A missing vector is fine where nothing repeats, and only there.
        assert!(!cell([SKEW[0], SKEW[1], [0.0; 3]], [true, true, false]).is_flat());
        assert!(cell([SKEW[0], SKEW[1], [0.0; 3]], all).is_flat());
        // Small is not flat.
        assert!(!cell(SKEW.map(|r| r.map(|x| x * 1e-6)), all).is_flat());
    }

    #[test]
    fn fractional_coordinates_lead_back_to_the_position() {
        let cell = cell(SKEW, [true, false, true]);
        let position = [-17.0, 9.0, 31.0];
        let back = multiply(cell.fractional(position), &SKEW);
        for k in 0..3 {
            assert!((back[k] - position[k]).abs() < 1e-12);
        }
        let before = cell.fractional(position);
        let after = cell.fractional(cell.wrapped(position));
        for k in [0, 2] {
            assert!((-1e-12..1.0 + 1e-12).contains(&after[k]));
            assert!((before[k] - after[k] - (before[k] - after[k]).round()).abs() < 1e-12);
        }
        assert!((after[1] - before[1]).abs() < 1e-12);
    }

    #[test]
    fn a_cell_of_nearly_zero_entries_is_no_cell() {
        assert_eq!(Cell::from_row_major([1e-8; 9], [true; 3]), Cell::NONE);
        let nine = [4.0, 0.1, 0.2, 1.5, 3.0, -0.3, -0.7, 0.4, 5.0];
        assert_eq!(Cell::from_row_major(nine, [true; 3]), cell(SKEW, [true; 3]));
    }
}
