//! Memory of one evaluation, for batches up to a capacity, and the batch in it.

use super::device::Graph;
use super::gemm::TILE_ROWS;
use super::params::{Chunk, DevicePtr, SearchGrid, Tile};
use super::plan::Plan;
use crate::backend::Structure;
use crate::nn::Program;

/// What a pass has room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Atoms of the batch.
    pub atoms: usize,
    /// Directed edges of the batch.
    pub edges: usize,
    /// Systems.
    pub systems: usize,
}

impl Capacity {
    /// What a batch needs.
    pub fn of(batch: &[Structure]) -> Capacity {
        Capacity {
            atoms: batch.iter().map(|s| s.numbers.len()).sum(),
            edges: batch.iter().map(|s| s.neighbors.len()).sum(),
            systems: batch.len(),
        }
    }

    /// Rounded up, so that a simulation whose number of edges drifts keeps its pass.
    pub fn rounded(self) -> Capacity {
        Capacity {
            atoms: bucket(self.atoms, 16, 2),
            edges: bucket(self.edges, 256, 4),
            systems: bucket(self.systems, 4, 2),
        }
    }

    /// Whether a pass of this capacity serves a batch that needs `need` about as well as one made
    /// for it: room for all of it, and for edges, which cost memory and empty chunks, not much more.
    pub fn serves(&self, need: &Capacity) -> bool {
        let made = need.rounded();
        (need.atoms..=2 * made.atoms).contains(&self.atoms)
            && (need.edges..=made.edges + made.edges / 4).contains(&self.edges)
            && (need.systems..=2 * made.systems).contains(&self.systems)
    }
}

/// At least as much, and one of `sizes` sizes (a power of two) from a power of two to the next.
fn bucket(count: usize, least: usize, sizes: usize) -> usize {
    let count = count.max(least);
    let step = count.next_power_of_two() / 2 / sizes;
    count.next_multiple_of(step.max(1))
}

/// How a pass is cut into chunks of edges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunking {
    /// Chunks.
    pub count: usize,
    /// An atom belongs to chunk `first edge / edges`.
    pub edges: usize,
    /// Rows of memory of a chunk: its edges and those of one more atom.
    pub rows: usize,
    /// Most tiles of a chunk.
    pub tiles: usize,
}

/// Most edges of one atom where a pass has several chunks.
pub const MAX_DEGREE: usize = 1024;

impl Chunking {
    /// Cuts `capacity` into chunks of about `edges` edges.
    pub fn new(capacity: &Capacity, edges: usize) -> Chunking {
        let count = capacity.edges.div_ceil(edges).max(1);
        // Chunks of equal size keep the device busy to the end.
        let edges = capacity.edges.div_ceil(count).next_multiple_of(TILE_ROWS);
        let rows = match count {
            1 => capacity.edges.max(1),
            _ => edges + MAX_DEGREE,
        };
        Chunking {
            count,
            edges,
            rows,
            tiles: rows.div_ceil(TILE_ROWS) + capacity.systems,
        }
    }
}

/// Where the arrays of a pass lie, bytes from its beginning.
#[derive(Clone, Copy, Debug, Default)]
pub struct Places {
    /// u32 `[N]`
    pub numbers: usize,
    /// u32 `[N]`
    pub atom_system: usize,
    /// u32 `[B + 1]`
    pub atom_start: usize,
    /// f32 `[B]`
    pub charge: usize,
    /// f32 `[B]`
    pub unpaired: usize,
    /// f32 `[B][C]`
    pub conditioning: usize,
    /// u64 `[B]`: bases of the mixed weights
    pub mixed_table: usize,
    /// u64 `[B]`: bases of the weights per task
    pub task_table: usize,
    /// [`Tile`]
    pub atom_tiles: usize,
    /// The whole batch as one [`Chunk`].
    pub batch: usize,
    /// Up to here the host writes always; up to `list_end` where it has the edges too.
    pub common_end: usize,
    /// u32 `[N + 1]`
    pub target_start: usize,
    /// u32 `[N + 1]`
    pub source_start: usize,
    /// [`Chunk`] `[chunks]`
    pub chunks: usize,
    /// [`Tile`] `[chunks][tiles]`
    pub edge_tiles: usize,
    /// u32 `[E]`
    pub source: usize,
    /// u32 `[E]`
    pub target: usize,
    /// u32 `[E]`
    pub by_source: usize,
    /// f64 `[E][3]`
    pub vector: usize,
    /// End of what the host writes where it has the edges.
    pub list_end: usize,
    /// From here to `search_end` the host writes where the device searches. f64 `[N][3]`
    pub position: usize,
    /// f64 `[N][3]`
    pub wrapped: usize,
    /// i32 `[N][3]`
    pub home: usize,
    /// i32 `[N][3]`
    pub bin: usize,
    /// u32 `[N]`
    pub place: usize,
    /// u32 `[N]`
    pub sorted: usize,
    /// [`SearchGrid`] `[B]`
    pub grids: usize,
    /// u32
    pub bin_start: usize,
    /// End of the tables of the search.
    pub search_end: usize,
    /// u32 `[N]`
    pub degree: usize,
    /// u32 `[E]`
    pub found_source: usize,
    /// u64 `[E]`
    pub found_image: usize,
    /// u64 `[E]`
    pub image: usize,
    /// From here to `results_end` the host reads. u32 `[4]`
    pub flags: usize,
    /// u32 `[B + 1]`
    pub edge_start: usize,
    /// f64 `[B]`
    pub energy: usize,
    /// f64 `[B][9]`
    pub virial: usize,
    /// f64 `[N][3]`
    pub force: usize,
    /// End of the results.
    pub results_end: usize,
    /// f64 `[N][9]`
    pub atom_virial: usize,
    /// f32 `[E]`
    pub distance: usize,
    /// f32 `[E][3]`
    pub unit: usize,
    /// f32 `[E]`
    pub envelope: usize,
    /// f32 `[E][W]`
    pub wigner: usize,
    /// f32 `[networks][E]`
    pub d_distance: usize,
    /// f32 `[E]`
    pub d_envelope: usize,
    /// f32 `[E][3]`
    pub torque: usize,
    /// f32 `[E][3]`
    pub source_torque: usize,
    /// f32 `[edge stages][E]`
    pub gradient_scale: usize,
    /// f32 `[N]`: the gradient of the energies of the atoms, 1 from the start.
    pub ones: usize,
    /// f64 `[E][3]`
    pub gradient: usize,
    /// Atom buffers.
    pub atom_arena: usize,
    /// Edge buffers of a chunk.
    pub edge_arena: usize,
    /// Kept edge values.
    pub kept: usize,
    /// All of it.
    pub bytes: usize,
}

impl Places {
    /// Lays out the arrays of a pass.
    pub fn new(program: &Program, plan: &Plan, capacity: &Capacity, chunking: &Chunking) -> Places {
        let mut next = 0usize;
        let mut take = |bytes: usize| {
            let at = next;
            next += bytes.next_multiple_of(256);
            at
        };
        let Capacity {
            atoms: n,
            edges: e,
            systems: b,
        } = *capacity;
        let atom_tiles = n.div_ceil(TILE_ROWS) + b;
        let mut places = Places {
            numbers: take(4 * n),
            atom_system: take(4 * n),
            atom_start: take(4 * (b + 1)),
            charge: take(4 * b),
            unpaired: take(4 * b),
            conditioning: take(4 * b * program.channels),
            mixed_table: take(8 * b),
            task_table: take(8 * b),
            atom_tiles: take(size_of::<Tile>() * atom_tiles),
            batch: take(size_of::<Chunk>()),
            common_end: take(0),
            target_start: take(4 * (n + 1)),
            source_start: take(4 * (n + 1)),
            chunks: take(size_of::<Chunk>() * chunking.count),
            edge_tiles: take(size_of::<Tile>() * chunking.count * chunking.tiles),
            source: take(4 * e),
            target: take(4 * e),
            by_source: take(4 * e),
            vector: take(24 * e),
            list_end: take(0),
            position: take(24 * n),
            wrapped: take(24 * n),
            home: take(12 * n),
            bin: take(12 * n),
            place: take(4 * n),
            sorted: take(4 * n),
            grids: take(size_of::<SearchGrid>() * b),
            // As many as `Grid` lists at most.
            bin_start: take(4 * (8 * n + 1025 * b)),
            search_end: take(0),
            degree: take(4 * n),
            found_source: take(4 * e),
            found_image: take(8 * e),
            image: take(8 * e),
            flags: take(16),
            edge_start: take(4 * (b + 1)),
            energy: take(8 * b),
            virial: take(72 * b),
            force: take(24 * n),
            results_end: take(0),
            ..Places::default()
        };
        places.atom_virial = take(72 * n);
        places.distance = take(4 * e);
        places.unit = take(12 * e);
        places.envelope = take(4 * e);
        places.wigner = take(4 * e * program.layout.wigner_len);
        places.d_distance = take(4 * e * plan.networks.len());
        places.d_envelope = take(4 * e);
        places.torque = take(12 * e);
        places.source_torque = take(12 * e);
        places.gradient_scale = take(4 * e * plan.edge_stages());
        places.ones = take(4 * n);
        places.gradient = take(24 * e);
        places.atom_arena = take(plan.atoms.bytes * n);
        places.edge_arena = take(plan.edge_bytes * chunking.rows);
        places.kept = take(plan.kept_bytes * chunking.rows * chunking.count);
        places.bytes = take(0);
        places
    }
}

/// Memory for batches up to a capacity.
#[derive(Clone, Debug)]
pub struct Pass {
    /// What it has room for.
    pub capacity: Capacity,
    /// How edges are cut.
    pub chunking: Chunking,
    /// Where everything lies.
    pub places: Places,
    /// The memory.
    pub base: DevicePtr,
    /// Which plan, by what is kept.
    pub keep: usize,
    /// When it was used last.
    pub last_use: u64,
    /// The captured launches, with edges from the host and with a search on the device.
    pub graphs: [Option<Graph>; 2],
    /// Evaluations of each kind so far.
    pub runs: [u64; 2],
}

impl Pass {
    /// Address of one of the places.
    pub fn at(&self, place: usize) -> DevicePtr {
        self.base.offset(place)
    }

    /// A chunk.
    pub fn chunk(&self, index: usize) -> DevicePtr {
        self.at(self.places.chunks).at::<Chunk>(index)
    }

    /// The whole batch as one chunk.
    pub fn whole(&self) -> DevicePtr {
        self.at(self.places.batch)
    }

    /// A kept edge buffer of a chunk. Every chunk keeps its buffers one after the other.
    pub fn kept(&self, offset: usize, chunk: usize, kept_bytes: usize) -> DevicePtr {
        let rows = self.chunking.rows;
        self.at(self.places.kept)
            .offset(chunk * rows * kept_bytes + offset * rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_has_room_for_what_it_was_made_for_and_serves_drifting_sizes() {
        for edges in [0, 1, 255, 257, 1000, 46_000, 78_848, 1 << 20] {
            let need = Capacity {
                atoms: edges / 46 + 1,
                edges,
                systems: 1 + edges / 1000,
            };
            let made = need.rounded();
            assert!(made.atoms >= need.atoms && made.systems >= need.systems);
            assert!(made.edges >= edges && made.edges <= (edges + edges / 4 + 1).max(256));
            assert!(made.serves(&need) && made.serves(&made));
            // Not for one edge more than there is room for, nor for a tenth of it.
            let more = made.edges + 1;
            assert!(!made.serves(&Capacity {
                edges: more,
                ..need
            }));
            if edges > 4096 {
                let few = edges / 10;
                assert!(!made.serves(&Capacity { edges: few, ..need }));
            }
        }
    }

    #[test]
    fn chunks_are_of_equal_size_and_hold_all_edges() {
        for edges in [0, 100, 16_384, 16_385, 57_344, 1 << 20] {
            let capacity = Capacity {
                atoms: 10,
                edges,
                systems: 1,
            };
            let chunking = Chunking::new(&capacity, 16 * 1024);
            assert_eq!(chunking.count, edges.div_ceil(16 * 1024).max(1));
            assert!(chunking.count * chunking.edges >= edges);
            assert!(chunking.edges <= 16 * 1024 && chunking.rows >= chunking.edges.min(edges));
            let spare = chunking.count * chunking.edges - edges;
            assert!(spare < chunking.count * TILE_ROWS, "{edges}: {spare}");
        }
    }
}
