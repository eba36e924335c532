//! Structure files: extended XYZ in and out, as ASE writes and reads it.
//!
//! A frame is a line with the number of atoms, a comment line of `key=value` pairs (`Lattice`,
//! `Properties`, `pbc` and anything else), and one line per atom. Plain XYZ is the same without
//! the pairs. Units are those of the program: Angstrom, eV, eV/Angstrom, eV/Angstrom^3.

mod comment;
mod read;
mod write;

pub use read::{Frames, read_frames};
pub use write::{Extra, write_frame};

use crate::system::{Evaluation, System};

/// A value of the comment line.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `T`, `F`, `true`, ...
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number.
    Real(f64),
    /// Anything else, among it ASE's `_JSON ...`.
    Text(String),
    /// Several truth values.
    Bools(Vec<bool>),
    /// Several whole numbers.
    Ints(Vec<i64>),
    /// Several numbers.
    Reals(Vec<f64>),
}

impl Value {
    /// The number, if it is one.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Value::Int(n) => Some(*n as f64),
            Value::Real(x) => Some(*x),
            _ => None,
        }
    }

    /// The whole number, also if written as `1.0`.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Value::Int(n) => Some(*n),
            Value::Real(x) if x.fract() == 0.0 && x.abs() < 2f64.powi(53) => Some(*x as i64),
            _ => None,
        }
    }

    /// The numbers, if they are numbers; a single one counts as a list.
    pub fn as_reals(&self) -> Option<Vec<f64>> {
        match self {
            Value::Ints(list) => Some(list.iter().map(|&n| n as f64).collect()),
            Value::Reals(list) => Some(list.clone()),
            _ => self.as_f64().map(|x| vec![x]),
        }
    }
}

/// A per-atom quantity: `columns` entries per atom, atom after atom.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Name in `Properties` ("momenta", "tags", ...).
    pub name: String,
    /// Entries per atom.
    pub columns: usize,
    /// The entries.
    pub data: ArrayData,
}

/// Entries of an [`Array`] by the type letter of `Properties`.
#[derive(Clone, Debug, PartialEq)]
pub enum ArrayData {
    /// `R`
    Real(Vec<f64>),
    /// `I`
    Int(Vec<i64>),
    /// `L`
    Bool(Vec<bool>),
    /// `S`
    Text(Vec<String>),
}

impl Array {
    /// The entries as vectors, if there are three numbers per atom.
    pub fn vectors(&self) -> Option<Vec<[f64; 3]>> {
        match &self.data {
            ArrayData::Real(data) if self.columns == 3 => {
                Some(data.chunks_exact(3).map(|v| [v[0], v[1], v[2]]).collect())
            }
            _ => None,
        }
    }
}

/// One structure of a file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frame {
    /// Atoms and cell; charge, spin and task from the keys of these names (0, 0 and "" without).
    pub system: System,
    /// All other pairs of the comment line in their order, `charge`, `spin` and `task` included
    /// (so that one sees whether they were given), without `Lattice`, `Properties`, `pbc` and the
    /// results below.
    pub info: Vec<(String, Value)>,
    /// All columns but elements, positions and forces.
    pub arrays: Vec<Array>,
    /// `energy`, eV.
    pub energy: Option<f64>,
    /// `forces`, eV/Angstrom.
    pub forces: Option<Vec<[f64; 3]>>,
    /// `stress`, eV/Angstrom^3.
    pub stress: Option<[[f64; 3]; 3]>,
}

impl Frame {
    /// The value of a key of the comment line.
    pub fn info(&self, key: &str) -> Option<&Value> {
        self.info.iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    /// The column or columns of a name.
    pub fn array(&self, name: &str) -> Option<&Array> {
        self.arrays.iter().find(|a| a.name == name)
    }

    /// What the file says about energy and forces, if it says both.
    pub fn evaluation(&self) -> Option<Evaluation> {
        Some(Evaluation {
            energy: self.energy?,
            forces: self.forces.clone()?,
            stress: self.stress,
        })
    }
}

/// What is wrong with a structure file, and where.
#[derive(Debug, thiserror::Error)]
#[error("{file}, line {line} (frame {frame}): {cause}")]
pub struct StructureFileError {
    /// Name of the file.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Frame, from 0 as in `ase.io.read(index=...)`.
    pub frame: usize,
    /// What is wrong.
    pub cause: Cause,
}

/// What is wrong with a line of a structure file.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The file could not be read.
    #[error("cannot read: {0}")]
    Io(#[from] std::io::Error),
    /// Longer than any structure file has.
    #[error("the line is longer than {} bytes", read::MAX_LINE_BYTES)]
    LineTooLong,
    /// Not text.
    #[error("the line is not UTF-8 text")]
    NotText,
    /// The first line of a frame is not a number.
    #[error("expected a number of atoms, found {0:?}")]
    NoAtomCount(String),
    /// More atoms than the limit.
    #[error("{atoms} atoms, more than the limit of {limit}")]
    TooManyAtoms {
        /// Atoms announced.
        atoms: usize,
        /// The limit.
        limit: usize,
    },
    /// The file ends within a frame.
    #[error("the file ends after {found} of {expected} atoms")]
    EndOfFile {
        /// Atoms read.
        found: usize,
        /// Atoms announced.
        expected: usize,
    },
    /// The value of a key of the comment line is not what it must be.
    #[error("{key} must be {expected}")]
    BadValue {
        /// The key.
        key: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// `Properties` cannot be used.
    #[error("Properties {0}")]
    BadProperties(String),
    /// A line of an atom has too few columns.
    #[error("found {found} columns, expected {expected}")]
    TooFewColumns {
        /// Columns found.
        found: usize,
        /// Columns announced by `Properties`.
        expected: usize,
    },
    /// An entry of an atom is not of the type announced.
    #[error("{entry:?} in the column {column:?} is not {expected}")]
    BadEntry {
        /// The entry.
        entry: String,
        /// Name of the column.
        column: String,
        /// What it must be.
        expected: &'static str,
    },
}
