//! What is simulated: atoms, the cell around them, and what an evaluation answers.

pub mod masses;

/// The periodic cell: three lattice vectors and the directions that repeat.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    /// Lattice vectors as rows, Angstrom. A zero row is a missing vector.
    pub vectors: [[f64; 3]; 3],
    /// Whether the system repeats along each lattice vector.
    pub periodic: [bool; 3],
}

impl Cell {
    /// No cell: an isolated molecule.
    pub const NONE: Cell = Cell {
        vectors: [[0.0; 3]; 3],
        periodic: [false; 3],
    };

    /// Whether any direction repeats.
    pub fn is_periodic(&self) -> bool {
        self.periodic.iter().any(|&p| p)
    }
}

impl Default for Cell {
    fn default() -> Self {
        Cell::NONE
    }
}

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

impl System {
    /// Number of atoms.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Whether there are no atoms.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
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
