//! The cell list: atoms sorted into bins of half the cutoff.

use super::NeighborError;
use super::lattice::Lattice;
use crate::system::cell::multiply;
use std::collections::HashMap;
use std::ops::Range;

/// Atoms sorted by bin, with their positions translated into the reduced cell.
pub(super) struct Grid<'a> {
    lattice: &'a Lattice,
    /// Search radius: the cutoff and what rounding may hide, Angstrom.
    radius: f64,
    /// Number of bins along each basis vector.
    bins: [i64; 3],
    /// Bins to look at on either side, along each basis vector.
    reach: [i64; 3],
    /// Bin of every atom.
    bin: Vec<[i64; 3]>,
    /// Cell in which every atom lies, in multiples of the basis vectors.
    home: Vec<[i64; 3]>,
    /// Whether all atoms lie in the cell at the origin.
    all_at_home: bool,
    /// Position of every atom less its home, Angstrom.
    wrapped: Vec<[f64; 3]>,
    /// Atoms sorted by bin, the first coordinate running fastest.
    sorted: Vec<u32>,
    /// `wrapped` in that order.
    sorted_wrapped: Vec<[f64; 3]>,
    index: Index,
}

/// Atoms of one system sorted into bins, for a search elsewhere.
#[derive(Clone, Debug)]
pub(crate) struct SearchTables {
    /// Reduced basis vectors as rows, the periodic ones first, Angstrom.
    pub basis: [[f64; 3]; 3],
    /// Lattice vectors as given.
    pub vectors: [[f64; 3]; 3],
    /// Each periodic basis vector as integer multiples of the given vectors.
    pub multiples: [[i64; 3]; 3],
    /// Number of periodic directions.
    pub periodic: usize,
    /// Number of bins along each basis vector.
    pub bins: [i64; 3],
    /// Bins to look at on either side.
    pub reach: [i64; 3],
    /// Search radius: the cutoff and what rounding may hide, Angstrom.
    pub radius: f64,
    /// Bin of every atom.
    pub bin: Vec<[i64; 3]>,
    /// Cell in which every atom lies, in multiples of the basis vectors.
    pub home: Vec<[i64; 3]>,
    /// Atoms sorted by bin, the first coordinate running fastest.
    pub sorted: Vec<u32>,
    /// Positions less their homes, in that order, Angstrom.
    pub sorted_wrapped: Vec<[f64; 3]>,
    /// Where in `sorted` each bin begins; one more than there are bins.
    pub bin_start: Vec<u32>,
}

/// Where in the sorted atoms a row of bins is.
enum Index {
    /// Start of every bin: where there are not many more bins than atoms.
    Dense(Vec<u32>),
    /// The atoms of every row (second and third coordinate) that has any: for atoms scattered over
    /// a volume much larger than they fill.
    Sparse {
        rows: HashMap<[i64; 2], Range<usize>>,
        /// First coordinate of the bin of each sorted atom.
        first: Vec<i64>,
    },
}

/// Atoms whose distances are looked at together.
const BLOCK: usize = 64;

/// An atom may be this many cells away from the origin: products with the multiples of the reduced
/// lattice then fit into i64.
const MAX_CELLS_AWAY: f64 = 1e9;

impl<'a> Grid<'a> {
    pub fn new(
        positions: &[[f64; 3]],
        lattice: &'a Lattice,
        cutoff: f64,
    ) -> Result<Grid<'a>, NeighborError> {
        let mut home = vec![[0; 3]; positions.len()];
        if lattice.periodic > 0 {
            for (atom, (&position, home)) in positions.iter().zip(&mut home).enumerate() {
                let coordinates = multiply(position, &lattice.inverse);
                for k in 0..lattice.periodic {
                    let cell = coordinates[k].floor();
                    if cell.abs() > MAX_CELLS_AWAY {
                        return Err(NeighborError::TooFar { atom });
                    }
                    home[k] = cell as i64;
                }
            }
        }
        let wrapped: Vec<[f64; 3]> = positions
            .iter()
            .zip(&home)
            .map(|(&p, &h)| match h {
                [0, 0, 0] => p,
                _ => {
                    let shift = multiply(h.map(|n| n as f64), &lattice.basis);
                    [p[0] - shift[0], p[1] - shift[1], p[2] - shift[2]]
                }
            })
            .collect();

        // What rounding may do to a wrapped coordinate: of the position itself, and of the basis
        // times the number of cells to its home (and as many as the search goes away from it).
        let largest = positions
            .iter()
            .flatten()
            .fold(0.0f64, |m, x| m.max(x.abs()));
        let cells = home
            .iter()
            .flatten()
            .fold(0u64, |m, n| m.max(n.unsigned_abs()));
        let slack = 1e-9 * cutoff
            + 64.0 * f64::EPSILON * largest
            + (cells as f64 + 1.0) * 4.0 * lattice.rounding;
        let radius = cutoff + slack;

        let size = radius / 2.0;
        let mut low = [f64::INFINITY; 3];
        let mut high = [f64::NEG_INFINITY; 3];
        let coordinates: Vec<[f64; 3]> = wrapped
            .iter()
            .map(|&p| multiply(p, &lattice.inverse))
            .collect();
        for c in &coordinates {
            for k in 0..3 {
                low[k] = low[k].min(c[k]);
                high[k] = high[k].max(c[k]);
            }
        }
        let mut bins = [1; 3];
        let mut reach = [2; 3];
        for k in 0..3 {
            if k < lattice.periodic {
                bins[k] = ((lattice.heights[k] / size) as i64).max(1);
                reach[k] = (radius * bins[k] as f64 / lattice.heights[k]).ceil() as i64;
            } else if !positions.is_empty() {
                bins[k] = ((high[k] - low[k]) / size) as i64 + 1;
            }
        }
        let bin: Vec<[i64; 3]> = coordinates
            .iter()
            .map(|c| {
                std::array::from_fn(|k| {
                    let b = match k < lattice.periodic {
                        true => (c[k] * bins[k] as f64).floor() as i64,
                        false => ((c[k] - low[k]) / size) as i64,
                    };
                    b.clamp(0, bins[k] - 1)
                })
            })
            .collect();

        let (sorted, index) = sort(&bin, bins);
        let sorted_wrapped = sorted.iter().map(|&a| wrapped[a as usize]).collect();
        Ok(Grid {
            lattice,
            radius,
            bins,
            reach,
            bin,
            all_at_home: home.iter().all(|&h| h == [0; 3]),
            home,
            wrapped,
            sorted,
            sorted_wrapped,
            index,
        })
    }

    /// The search as plain tables; `None` where the bins are too many to list.
    pub fn tables(self) -> Option<SearchTables> {
        let Index::Dense(bin_start) = self.index else {
            return None;
        };
        Some(SearchTables {
            basis: self.lattice.basis,
            vectors: self.lattice.cell(),
            multiples: self.lattice.multiples(),
            periodic: self.lattice.periodic,
            bins: self.bins,
            reach: self.reach,
            radius: self.radius,
            bin: self.bin,
            home: self.home,
            sorted: self.sorted,
            sorted_wrapped: self.sorted_wrapped,
            bin_start,
        })
    }

    /// Calls `visit(source, image)` for a superset of the neighbours of a target, the image in
    /// multiples of the basis vectors, until it answers false. Says whether it never did.
    pub fn for_each_candidate(
        &self,
        target: usize,
        mut visit: impl FnMut(u32, [i64; 3]) -> bool,
    ) -> bool {
        let bin = self.bin[target];
        let home = self.home[target];
        let at = self.wrapped[target];
        let radius2 = self.radius * self.radius;
        for (b2, q2) in self.along(2, bin[2]) {
            for (b1, q1) in self.along(1, bin[1]) {
                for (run, q0) in self.runs(bin[0]) {
                    let atoms = self.atoms(run, b1, b2);
                    if atoms.is_empty() {
                        continue;
                    }
                    let image = [q0, q1, q2];
                    // From the target to the origin of the image.
                    let shift = match image {
                        [0, 0, 0] => [0.0; 3],
                        _ => multiply(image.map(|n| n as f64), &self.lattice.basis),
                    };
                    let origin = [shift[0] - at[0], shift[1] - at[1], shift[2] - at[2]];
                    // Indices of the near ones are collected without a branch, which would be
                    // mispredicted for about every third atom.
                    for first in atoms.clone().step_by(BLOCK) {
                        let last = atoms.end.min(first + BLOCK);
                        let mut near = [0u32; BLOCK];
                        let mut count = 0;
                        for (j, p) in (first..last).zip(&self.sorted_wrapped[first..last]) {
                            let (x, y, z) = (p[0] + origin[0], p[1] + origin[1], p[2] + origin[2]);
                            near[count] = j as u32;
                            count += usize::from(x * x + y * y + z * z <= radius2);
                        }
                        for &j in &near[..count] {
                            let source = self.sorted[j as usize];
                            let image = match self.all_at_home {
                                true => image,
                                false => {
                                    let from = self.home[source as usize];
                                    std::array::from_fn(|k| image[k] + home[k] - from[k])
                                }
                            };
                            if !visit(source, image) {
                                return false;
                            }
                        }
                    }
                }
            }
        }
        true
    }

    /// Bins within reach along one basis vector, each with the cell it lies in.
    fn along(&self, k: usize, bin: i64) -> impl Iterator<Item = (i64, i64)> {
        let (bins, periodic) = (self.bins[k], k < self.lattice.periodic);
        let (mut first, mut last) = (bin - self.reach[k], bin + self.reach[k]);
        if !periodic {
            (first, last) = (first.max(0), last.min(bins - 1));
        }
        // Divisions are slow, and most bins are in the cell of the target.
        (first..=last).map(move |b| match (0..bins).contains(&b) {
            true => (b, 0),
            false => (b.rem_euclid(bins), b.div_euclid(bins)),
        })
    }

    /// The bins within reach along the first basis vector as runs of neighbouring bins, each with
    /// the cell it lies in.
    fn runs(&self, bin: i64) -> impl Iterator<Item = (Range<i64>, i64)> {
        let bins = self.bins[0];
        let (mut first, mut last) = (bin - self.reach[0], bin + self.reach[0]);
        if self.lattice.periodic == 0 {
            (first, last) = (first.max(0), last.min(bins - 1));
        }
        let cells = match first >= 0 && last < bins {
            true => 0..=0,
            false => first.div_euclid(bins)..=last.div_euclid(bins),
        };
        cells.map(move |cell| {
            let origin = cell * bins;
            let run = first.max(origin) - origin..last.min(origin + bins - 1) - origin + 1;
            (run, cell)
        })
    }

    /// The sorted atoms in a run of bins.
    fn atoms(&self, run: Range<i64>, b1: i64, b2: i64) -> Range<usize> {
        match &self.index {
            Index::Dense(start) => {
                let row = (b2 * self.bins[1] + b1) * self.bins[0];
                let at = |b: i64| start[(row + b) as usize] as usize;
                at(run.start)..at(run.end)
            }
            Index::Sparse { rows, first } => {
                let Some(row) = rows.get(&[b1, b2]) else {
                    return 0..0;
                };
                let bins = &first[row.clone()];
                row.start + bins.partition_point(|&b| b < run.start)
                    ..row.start + bins.partition_point(|&b| b < run.end)
            }
        }
    }
}

/// Atoms sorted by bin, and the index of the bins.
fn sort(bin: &[[i64; 3]], bins: [i64; 3]) -> (Vec<u32>, Index) {
    let atoms = bin.len();
    let total = bins.iter().map(|&n| n as f64).product::<f64>();
    if total <= (8 * atoms + 1024) as f64 {
        // Counting sort.
        let flat = |b: &[i64; 3]| ((b[2] * bins[1] + b[1]) * bins[0] + b[0]) as usize;
        let mut start = vec![0u32; total as usize + 1];
        for b in bin {
            start[flat(b) + 1] += 1;
        }
        for i in 1..start.len() {
            start[i] += start[i - 1];
        }
        let mut next = start.clone();
        let mut sorted = vec![0; atoms];
        for (atom, b) in bin.iter().enumerate() {
            let slot = &mut next[flat(b)];
            sorted[*slot as usize] = atom as u32;
            *slot += 1;
        }
        return (sorted, Index::Dense(start));
    }
    let mut sorted: Vec<u32> = (0..atoms as u32).collect();
    let row = |atom: u32| [bin[atom as usize][1], bin[atom as usize][2]];
    sorted.sort_unstable_by_key(|&a| (row(a), bin[a as usize][0], a));
    let mut rows = HashMap::new();
    let mut start = 0;
    for chunk in sorted.chunk_by(|&a, &b| row(a) == row(b)) {
        rows.insert(row(chunk[0]), start..start + chunk.len());
        start += chunk.len();
    }
    let first = sorted.iter().map(|&a| bin[a as usize][0]).collect();
    (sorted, Index::Sparse { rows, first })
}
