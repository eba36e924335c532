//! Neighbour lists: every ordered pair of atoms (and periodic images) within the cutoff.
//!
//! A cell list over the lattice-reduced cell finds candidates in O(N); whether a pair is an edge is
//! then decided on `position[source] - position[target] + image * cell`, an expression whose
//! rounding is the same (up to the sign) seen from either end. So the list is symmetric bit for
//! bit, and it does not depend on the search, on threads or on where atoms sit relative to the
//! cell.

mod grid;
mod lattice;

use crate::system::System;
use grid::Grid;
pub(crate) use grid::SearchTables;
use lattice::Lattice;
use rayon::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The edges of one system, sorted by target atom (CSR).
///
/// Within a target the edges are sorted by source atom and then by periodic image (the multiples of
/// the lattice vectors, compared one after the other).
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

    /// The edges that end at an atom, as indices into `source`, `vector` and `reverse`.
    pub fn edges_of(&self, target: usize) -> std::ops::Range<usize> {
        self.target_start[target] as usize..self.target_start[target + 1] as usize
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
    /// A coordinate is so large that distances between atoms have lost their digits.
    #[error(
        "position of atom {atom} is beyond {MAX_COORDINATE_ANGSTROM:e} Angstrom or as many cells"
    )]
    TooFar {
        /// Index of the atom.
        atom: usize,
    },
    /// A lattice vector is so large that distances between images have lost their digits.
    #[error(
        "a lattice vector is beyond {MAX_COORDINATE_ANGSTROM:e} Angstrom (lattice vectors {0:?})"
    )]
    CellTooLarge([[f64; 3]; 3]),
}

/// Largest coordinate of an atom or a periodic lattice vector, Angstrom. Beyond it f64 resolves
/// distances to no better than 1e-7 Angstrom.
pub const MAX_COORDINATE_ANGSTROM: f64 = 1e9;

/// fairchem keeps all neighbours whose squared distance is at most that of neighbour number
/// `max_neighbors` (from 0) plus this, Angstrom^2, so that shells of equal distance stay whole.
const CAP_TOLERANCE: f64 = 0.01;

/// Isolated systems up to this many atoms are searched pair by pair: no grid to set up.
const PAIRWISE_ATOMS: usize = 64;

/// Targets searched by one task, and the number of atoms from which tasks are worth starting.
const TARGETS_PER_TASK: usize = 64;

/// All pairs within `cutoff_angstrom`: `0 < |vector|^2 <= cutoff^2`, self images included, capped
/// at `max_neighbors` per target as fairchem does (all neighbours are kept whose squared distance
/// is at most that of the `max_neighbors + 1`-st nearest plus 0.01 Angstrom^2).
///
/// Atoms may be anywhere relative to the cell. The result is the same on any number of threads.
///
/// # Errors
/// A flat cell where the system is periodic, coordinates that are not finite or beyond
/// [`MAX_COORDINATE_ANGSTROM`], more than `max_edges` pairs (counted before the cap, and noticed
/// before memory for more than about that many is taken).
///
/// # Panics
/// When `numbers` and `positions` differ in length ([`System::check`] refuses such systems).
pub fn neighbor_list(
    system: &System,
    cutoff_angstrom: f64,
    max_neighbors: usize,
    max_edges: usize,
) -> Result<NeighborList, NeighborError> {
    assert_eq!(system.numbers.len(), system.positions.len());
    check_range(system)?;
    // Edge indices are u32 and u32::MAX says "no edge".
    let max_edges = max_edges.min(u32::MAX as usize - 1);
    let rows = if !system.cell.is_periodic() && system.len() <= PAIRWISE_ATOMS {
        vec![pairwise(&system.positions, cutoff_angstrom)]
    } else {
        let lattice = reduced_lattice(system, cutoff_angstrom, max_edges)?;
        search(system, &lattice, cutoff_angstrom, max_edges)?
    };
    let found: usize = rows.iter().map(|r| r.source.len()).sum();
    if found > max_edges || rows.iter().any(|r| r.gave_up) {
        return Err(NeighborError::TooManyEdges {
            found: max_edges + 1,
            limit: max_edges,
        });
    }
    let mut list = joined(rows, system.len(), found);
    list.reverse = reverse_edges(&list);
    cap_neighbors(&mut list, max_neighbors);
    Ok(list)
}

/// What a device needs to search by itself: the atoms sorted into bins. `None` for systems whose
/// atoms are scattered over so large a volume that the bins cannot be listed.
///
/// # Errors
/// Those of [`neighbor_list`], as far as they can be known before the search.
pub(crate) fn search_tables(
    system: &System,
    cutoff_angstrom: f64,
    max_edges: usize,
) -> Result<Option<SearchTables>, NeighborError> {
    check_range(system)?;
    let lattice = reduced_lattice(system, cutoff_angstrom, max_edges)?;
    Ok(Grid::new(&system.positions, &lattice, cutoff_angstrom)?.tables())
}

/// The lattice for the search, unless it is clear beforehand that there are too many pairs.
fn reduced_lattice(
    system: &System,
    cutoff_angstrom: f64,
    max_edges: usize,
) -> Result<Lattice, NeighborError> {
    let lattice =
        Lattice::reduced(&system.cell).ok_or(NeighborError::FlatCell(system.cell.vectors))?;
    let least = lattice.fewest_pairs(system.len(), cutoff_angstrom);
    if least > max_edges as f64 {
        return Err(NeighborError::TooManyEdges {
            found: least as usize,
            limit: max_edges,
        });
    }
    Ok(lattice)
}

fn check_range(system: &System) -> Result<(), NeighborError> {
    for (atom, position) in system.positions.iter().enumerate() {
        if !position.iter().all(|x| x.is_finite()) {
            return Err(NeighborError::NotFinite { atom });
        }
        if position.iter().any(|x| x.abs() > MAX_COORDINATE_ANGSTROM) {
            return Err(NeighborError::TooFar { atom });
        }
    }
    let cell = &system.cell;
    if cell.is_flat() {
        return Err(NeighborError::FlatCell(cell.vectors));
    }
    for (vector, periodic) in cell.vectors.iter().zip(cell.periodic) {
        if periodic && vector.iter().any(|x| x.abs() > MAX_COORDINATE_ANGSTROM) {
            return Err(NeighborError::CellTooLarge(cell.vectors));
        }
    }
    Ok(())
}

/// The edges of consecutive targets.
#[derive(Default)]
struct Rows {
    /// Edges of each target.
    counts: Vec<u32>,
    source: Vec<u32>,
    vector: Vec<[f64; 3]>,
    /// The limit was passed: the rows are not complete.
    gave_up: bool,
}

fn subtract(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    [a[0] - b[0], a[1] - b[1], a[2] - b[2]]
}

fn squared(v: [f64; 3]) -> f64 {
    v[0] * v[0] + v[1] * v[1] + v[2] * v[2]
}

fn pairwise(positions: &[[f64; 3]], cutoff: f64) -> Rows {
    let mut rows = Rows::default();
    rows.counts.reserve(positions.len());
    for &target in positions {
        let before = rows.source.len();
        for (source, &position) in positions.iter().enumerate() {
            let vector = subtract(position, target);
            let d2 = squared(vector);
            if d2 > 0.0 && d2 <= cutoff * cutoff {
                rows.source.push(source as u32);
                rows.vector.push(vector);
            }
        }
        rows.counts.push((rows.source.len() - before) as u32);
    }
    rows
}

/// An edge of the target in hand.
struct Found {
    source: u32,
    image: [i64; 3],
    vector: [f64; 3],
}

fn search(
    system: &System,
    lattice: &Lattice,
    cutoff: f64,
    max_edges: usize,
) -> Result<Vec<Rows>, NeighborError> {
    let grid = Grid::new(&system.positions, lattice, cutoff)?;
    let total = AtomicUsize::new(0);
    let atoms = system.len();
    let task = |first: usize| {
        let last = atoms.min(first + TARGETS_PER_TASK);
        rows_of(
            first..last,
            system,
            lattice,
            &grid,
            cutoff,
            max_edges,
            &total,
        )
    };
    if atoms < 2 * TARGETS_PER_TASK {
        return Ok((0..atoms).step_by(TARGETS_PER_TASK).map(task).collect());
    }
    Ok((0..atoms.div_ceil(TARGETS_PER_TASK))
        .into_par_iter()
        .map(|chunk| task(chunk * TARGETS_PER_TASK))
        .collect())
}

/// Searches the targets of one task. Gives up as soon as all tasks together, counted in `total`,
/// have more than `max_edges`; whether that happens does not depend on who counts first.
fn rows_of(
    targets: std::ops::Range<usize>,
    system: &System,
    lattice: &Lattice,
    grid: &Grid,
    cutoff: f64,
    max_edges: usize,
    total: &AtomicUsize,
) -> Rows {
    /// Edges a task may find before it tells the others.
    const REPORT_EVERY: usize = 4096;
    let mut rows = Rows::default();
    let mut found: Vec<Found> = Vec::new();
    let mut order: Vec<u64> = Vec::new();
    let cutoff2 = cutoff * cutoff;
    let (mut last, mut original, mut shift) = ([0; 3], [0; 3], [0.0; 3]);
    for target in targets {
        found.clear();
        let mut unreported = 0;
        let position = system.positions[target];
        let complete = grid.for_each_candidate(target, |source, image| {
            // Candidates come by image, so most share the last one's translation.
            if (image[0] ^ last[0]) | (image[1] ^ last[1]) | (image[2] ^ last[2]) != 0 {
                last = image;
                original = lattice.original_image(image);
                shift = lattice.translation(original);
            }
            let vector = subtract(system.positions[source as usize], position);
            let vector = [
                vector[0] + shift[0],
                vector[1] + shift[1],
                vector[2] + shift[2],
            ];
            let d2 = squared(vector);
            if d2 > 0.0 && d2 <= cutoff2 {
                found.push(Found {
                    source,
                    image: original,
                    vector,
                });
                unreported += 1;
                if unreported == REPORT_EVERY {
                    unreported = 0;
                    return total.fetch_add(REPORT_EVERY, Ordering::Relaxed) + REPORT_EVERY
                        <= max_edges;
                }
            }
            true
        });
        let known = total.fetch_add(unreported, Ordering::Relaxed) + unreported;
        if !complete || known > max_edges {
            rows.gave_up = true;
            return rows;
        }
        sort_order(&found, &mut order);
        rows.counts.push(found.len() as u32);
        for &key in &order {
            let edge = &found[(key & u64::from(u32::MAX)) as usize];
            rows.source.push(edge.source);
            rows.vector.push(edge.vector);
        }
    }
    rows
}

/// Fills `order` with keys whose low halves are the indices of the edges sorted by source, then
/// image.
fn sort_order(found: &[Found], order: &mut Vec<u64>) {
    order.clear();
    order.extend(
        found
            .iter()
            .enumerate()
            .map(|(index, edge)| u64::from(edge.source) << 32 | index as u64),
    );
    // Sorting integers is several times faster than sorting by a tuple; the images of one source,
    // few or none in most systems, are put in order afterwards.
    order.sort_unstable();
    for images in order.chunk_by_mut(|a, b| a >> 32 == b >> 32) {
        if images.len() > 1 {
            images.sort_unstable_by_key(|key| found[(key & u64::from(u32::MAX)) as usize].image);
        }
    }
}

fn joined(mut rows: Vec<Rows>, atoms: usize, edges: usize) -> NeighborList {
    let mut list = NeighborList {
        target_start: Vec::with_capacity(atoms + 1),
        ..NeighborList::default()
    };
    let mut start = 0u32;
    list.target_start.push(0);
    for count in rows.iter().flat_map(|r| &r.counts) {
        start += count;
        list.target_start.push(start);
    }
    if rows.len() == 1 {
        let only = rows.swap_remove(0);
        (list.source, list.vector) = (only.source, only.vector);
    } else {
        list.source.reserve_exact(edges);
        list.vector.reserve_exact(edges);
        for part in rows {
            list.source.extend_from_slice(&part.source);
            list.vector.extend_from_slice(&part.vector);
        }
    }
    list
}

/// The reverse of every edge of a symmetric list, in O(E): as targets ascend, so do the sources
/// within the rows they point to, so one cursor per row is enough. The images of one pair are
/// sorted ascending in both rows; negation turns their order round.
fn reverse_edges(list: &NeighborList) -> Vec<u32> {
    let atoms = list.target_start.len() - 1;
    let mut cursor = list.target_start[..atoms].to_vec();
    let mut reverse = vec![0; list.len()];
    for target in 0..atoms {
        let row = list.edges_of(target);
        let (sources, reverse) = (&list.source[row.clone()], &mut reverse[row]);
        let mut edge = 0;
        while edge < sources.len() {
            let source = sources[edge];
            let images = sources[edge..].iter().take_while(|&&s| s == source).count();
            let first = cursor[source as usize];
            cursor[source as usize] += images as u32;
            for image in 0..images {
                reverse[edge + image] = first + (images - 1 - image) as u32;
            }
            edge += images;
        }
    }
    reverse
}

/// Applies fairchem's `max_neighbors` rule to a complete list.
fn cap_neighbors(list: &mut NeighborList, max_neighbors: usize) {
    let atoms = list.target_start.len() - 1;
    if (0..atoms).all(|a| list.edges_of(a).len() <= max_neighbors) {
        return;
    }
    // New index of every edge that stays.
    let mut kept = vec![u32::MAX; list.len()];
    let mut target_start = vec![0];
    let mut count = 0;
    let mut distances = Vec::new();
    for target in 0..atoms {
        let row = list.edges_of(target);
        let mut limit = f64::INFINITY;
        if row.len() > max_neighbors {
            distances.clear();
            distances.extend(list.vector[row.clone()].iter().map(|&v| squared(v)));
            let (_, &mut q, _) = distances.select_nth_unstable_by(max_neighbors, f64::total_cmp);
            limit = q + CAP_TOLERANCE;
        }
        for edge in row {
            if squared(list.vector[edge]) <= limit {
                kept[edge] = count;
                count += 1;
            }
        }
        target_start.push(count);
    }
    if count as usize == list.len() {
        return;
    }
    let stays = |edge: &usize| kept[*edge] != u32::MAX;
    let edges = 0..list.len();
    *list = NeighborList {
        target_start,
        source: edges
            .clone()
            .filter(stays)
            .map(|e| list.source[e])
            .collect(),
        vector: edges
            .clone()
            .filter(stays)
            .map(|e| list.vector[e])
            .collect(),
        reverse: edges
            .filter(stays)
            .map(|e| kept[list.reverse[e] as usize])
            .collect(),
        truncated: true,
    };
}
