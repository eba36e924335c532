//! What is simulated: atoms, the cell around them, and what an evaluation answers.

pub(crate) mod cell;
pub mod elements;

pub use cell::Cell;

/// Atoms with their cell and the quantities on which UMA is conditioned.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct System {
    /// Atomic numbers.
    pub numbers: Vec<u8>,
    /// Cartesian positions, Angstrom. Never wrapped by this program.
    pub positions: Vec<[f64; 3]>,
    /// Lattice vectors and periodicity.
    pub cell: Cell,
    /// Total charge, elementary charges.
    pub charge: i32,
    /// Spin multiplicity 2S+1; 0 means "not given".
    pub spin: i32,
    /// UMA task ("omol", "omat", ...).
    pub task: String,
}

/// What is wrong with a system, whatever the potential.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SystemError {
    /// No atoms.
    #[error("the system has no atoms")]
    Empty,
    /// More atoms than the limit.
    #[error("{atoms} atoms, more than the limit of {limit}")]
    TooManyAtoms {
        /// Atoms of the system.
        atoms: usize,
        /// The limit.
        limit: usize,
    },
    /// Atomic numbers and positions differ in length.
    #[error("{numbers} atomic numbers but {positions} positions")]
    LengthsDiffer {
        /// Number of atomic numbers.
        numbers: usize,
        /// Number of positions.
        positions: usize,
    },
    /// No such element.
    #[error("atom {atom} has atomic number {number}, which is not in 1..=118")]
    UnknownElement {
        /// Index of the atom, from 0.
        atom: usize,
        /// Its atomic number.
        number: u8,
    },
    /// A coordinate is NaN or infinite.
    #[error("the position of atom {atom} is not finite")]
    PositionNotFinite {
        /// Index of the atom, from 0.
        atom: usize,
    },
    /// An entry of the cell is NaN or infinite.
    #[error("the cell is not finite (lattice vectors {0:?} Angstrom)")]
    CellNotFinite([[f64; 3]; 3]),
    /// The cell of a periodic system has no volume.
    #[error("the periodic cell has no volume (lattice vectors {0:?} Angstrom)")]
    FlatCell([[f64; 3]; 3]),
}

impl System {
    /// Number of atoms.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Whether there are no atoms.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// Checks what every potential and every integrator relies on: at least one and at most
    /// `max_atoms` atoms, one position per atom, known elements, finite numbers, a cell with a
    /// volume where the system is periodic.
    ///
    /// # Errors
    /// The first thing found wrong.
    pub fn check(&self, max_atoms: usize) -> Result<(), SystemError> {
        let atoms = self.len();
        if self.positions.len() != atoms {
            return Err(SystemError::LengthsDiffer {
                numbers: atoms,
                positions: self.positions.len(),
            });
        }
        if atoms == 0 {
            return Err(SystemError::Empty);
        }
        if atoms > max_atoms {
            return Err(SystemError::TooManyAtoms {
                atoms,
                limit: max_atoms,
            });
        }
        for (atom, &number) in self.numbers.iter().enumerate() {
            if number == 0 || number > elements::MAX_ATOMIC_NUMBER {
                return Err(SystemError::UnknownElement { atom, number });
            }
        }
        for (atom, position) in self.positions.iter().enumerate() {
            if !position.iter().all(|x| x.is_finite()) {
                return Err(SystemError::PositionNotFinite { atom });
            }
        }
        let vectors = self.cell.vectors;
        if !vectors.iter().flatten().all(|x| x.is_finite()) {
            return Err(SystemError::CellNotFinite(vectors));
        }
        if self.cell.is_flat() {
            return Err(SystemError::FlatCell(vectors));
        }
        Ok(())
    }

    /// Standard atomic masses, dalton. Unknown elements, which [`System::check`] refuses, get NaN.
    pub fn masses_dalton(&self) -> Vec<f64> {
        self.numbers
            .iter()
            .map(|&z| elements::mass_dalton(z).unwrap_or(f64::NAN))
            .collect()
    }
}

/// What a potential says about one system.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluation {
    /// Potential energy, eV.
    pub energy: f64,
    /// Forces, eV/Angstrom.
    pub forces: Vec<[f64; 3]>,
    /// Cauchy stress, eV/Angstrom^3, positive in tension (ASE's sign); periodic systems only.
    pub stress: Option<[[f64; 3]; 3]>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_names_what_is_wrong() {
        let good = System {
            numbers: vec![8, 1],
            positions: vec![[0.0; 3], [1.0, 0.0, 0.0]],
            ..System::default()
        };
        assert_eq!(good.check(2), Ok(()));
        let wrong = |change: fn(&mut System), limit| {
            let mut system = good.clone();
            change(&mut system);
            system.check(limit).unwrap_err()
        };
        assert_eq!(
            wrong(|_| {}, 1),
            SystemError::TooManyAtoms { atoms: 2, limit: 1 }
        );
        assert_eq!(wrong(|s| *s = System::default(), 9), SystemError::Empty);
        assert_eq!(
            wrong(|s| s.positions.truncate(1), 9),
            SystemError::LengthsDiffer {
                numbers: 2,
                positions: 1
            }
        );
        for z in [0, 119] {
            let mut system = good.clone();
            system.numbers[1] = z;
            assert_eq!(
                system.check(9),
                Err(SystemError::UnknownElement { atom: 1, number: z })
            );
        }
        assert_eq!(
            wrong(|s| s.positions[1][2] = f64::NAN, 9),
            SystemError::PositionNotFinite { atom: 1 }
        );
        assert!(matches!(
            wrong(|s| s.cell.vectors[0][0] = f64::INFINITY, 9),
            SystemError::CellNotFinite(_)
        ));
        assert!(matches!(
            wrong(|s| s.cell.periodic = [true; 3], 9),
            SystemError::FlatCell(_)
        ));
    }
}
