//! Neighbour lists: every ordered pair of atoms (and periodic images) within the cutoff.

use crate::system::System;

/// The edges of one system, sorted by target atom (CSR).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NeighborList {
    /// `target_start[a]..target_start[a + 1]` are the edges that end at atom `a`; length N + 1.
    pub target_start: Vec<u32>,
    /// Source atom of every edge.
    pub source: Vec<u32>,
    /// `position[source] + image * cell - position[target]`, Angstrom.
    pub vector: Vec<[f64; 3]>,
    /// Index of the reverse edge (same pair, opposite vector) of every edge, or `u32::MAX` where
    /// the 300-neighbour rule has removed it.
    pub reverse: Vec<u32>,
    /// Whether the neighbour cap removed edges: the energy surface is then discontinuous.
    pub truncated: bool,
}

impl NeighborList {
    /// Number of directed edges.
    pub fn len(&self) -> usize {
        self.source.len()
    }

    /// Whether no atom has a neighbour.
    pub fn is_empty(&self) -> bool {
        self.source.is_empty()
    }
}

/// Why no neighbour list could be made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum NeighborError {
    /// The cell of a periodic system has no volume.
    #[error("the periodic cell has no volume (lattice vectors {0:?} Angstrom)")]
    FlatCell([[f64; 3]; 3]),
    /// More edges than the limit.
    #[error("{found} or more neighbour pairs, more than the limit of {limit}")]
    TooManyEdges {
        /// Edges found before giving up.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// A coordinate is NaN or infinite.
    #[error("position of atom {atom} is not finite")]
    NotFinite {
        /// Index of the atom.
        atom: usize,
    },
}

/// All pairs within `cutoff_angstrom`, capped at `max_neighbors` per target as fairchem does.
pub fn neighbor_list(
    _system: &System,
    _cutoff_angstrom: f64,
    _max_neighbors: usize,
    _max_edges: usize,
) -> Result<NeighborList, NeighborError> {
    unimplemented!()
}
