//! A batch as the device reads it.

use super::error::CudaError;
use super::gemm::TILE_ROWS;
use super::params::{Chunk, SearchGrid, Tile};
use super::pass::{Chunking, MAX_DEGREE, Pass};
use crate::backend::{Conditioning, Structure};
use crate::neighbors::{NeighborList, SearchTables};
use crate::nn::Program;

/// Bytes for one stretch of a pass.
pub struct Inputs {
    /// Where the stretch begins, bytes from the beginning of the pass.
    pub at: usize,
    /// What is to lie there.
    pub bytes: Vec<u8>,
}

impl Inputs {
    fn new(range: std::ops::Range<usize>) -> Inputs {
        Inputs {
            at: range.start,
            bytes: vec![0; range.len()],
        }
    }

    fn put<T: bytemuck::NoUninit>(&mut self, at: usize, values: &[T]) {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let at = at - self.at;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// The systems of a batch without their edges.
pub struct Systems<'a> {
    /// Atomic numbers of each.
    pub numbers: Vec<&'a [u8]>,
    /// Conditioning of each.
    pub conditionings: Vec<&'a Conditioning>,
}

impl Systems<'_> {
    /// First atom of each system, and the number of atoms.
    fn atom_start(&self) -> Vec<u32> {
        starts(self.numbers.iter().map(|n| n.len()))
    }

    /// What does not depend on edges. `edges` is their number where it is known.
    pub fn inputs(
        &self,
        program: &Program,
        pass: &Pass,
        mixed_bases: &[u64],
        task_bases: &[u64],
        edges: usize,
    ) -> Inputs {
        let places = &pass.places;
        let mut inputs = Inputs::new(0..places.common_end);
        let mut atom_start = self.atom_start();
        let mut atom_tiles = Vec::new();
        let mut atom_system: Vec<u32> = Vec::new();
        for (system, pair) in atom_start.windows(2).enumerate() {
            tiles(system, pair[0], pair[1], &mut atom_tiles);
            atom_system.resize(pair[1] as usize, system as u32);
        }
        let atoms = atom_system.len() as u32;
        // Places for systems that are not there have no atoms.
        atom_start.resize(pass.capacity.systems + 1, atoms);
        let numbers: Vec<u32> = self
            .numbers
            .iter()
            .flat_map(|n| n.iter().map(|&z| u32::from(z)))
            .collect();
        let conditioning: Vec<f32> = self
            .conditionings
            .iter()
            .flat_map(|c| {
                let mut vector = c.vector.clone();
                vector.resize(program.channels, 0.0);
                vector
            })
            .map(|x| x as f32)
            .collect();
        let of = |f: fn(&Conditioning) -> f64| -> Vec<f32> {
            self.conditionings.iter().map(|c| f(c) as f32).collect()
        };
        inputs.put(places.numbers, &numbers);
        inputs.put(places.atom_system, &atom_system);
        inputs.put(places.atom_start, &atom_start);
        inputs.put(places.charge, &of(|c| c.charge));
        inputs.put(places.unpaired, &of(|c| c.unpaired_electrons));
        inputs.put(places.conditioning, &conditioning);
        inputs.put(places.mixed_table, mixed_bases);
        inputs.put(places.task_table, task_bases);
        inputs.put(places.atom_tiles, &atom_tiles);
        let batch = Chunk {
            atom_end: atoms,
            edge_end: edges as u32,
            atom_tiles: atom_tiles.len() as u32,
            ..Chunk::default()
        };
        inputs.put(places.batch, &[batch]);
        inputs
    }
}

/// The edges of a batch.
///
/// # Errors
/// An atom with more than [`MAX_DEGREE`] edges where the pass has several chunks.
pub fn edges(pass: &Pass, batch: &[Structure]) -> Result<Inputs, CudaError> {
    let places = &pass.places;
    let mut inputs = Inputs::new(places.common_end..places.list_end);
    let mut graph = Graph::default();
    for structure in batch {
        graph.push(structure.numbers.len(), structure.neighbors);
    }
    let (chunks, edge_tiles) = graph.chunks(&pass.chunking)?;
    let (source_start, by_source) = graph.by_source();
    inputs.put(places.target_start, &graph.target_start);
    inputs.put(places.source_start, &source_start);
    inputs.put(places.chunks, &chunks);
    for (i, tiles) in edge_tiles.iter().enumerate() {
        let at = places.edge_tiles + i * pass.chunking.tiles * size_of::<Tile>();
        inputs.put(at, tiles);
    }
    inputs.put(places.source, &graph.source);
    inputs.put(places.target, &graph.target);
    inputs.put(places.by_source, &by_source);
    inputs.put(places.vector, &graph.vector);
    Ok(inputs)
}

/// What the device needs to search for the edges of a batch itself.
pub fn search(pass: &Pass, positions: &[&[[f64; 3]]], tables: &[SearchTables]) -> Inputs {
    let places = &pass.places;
    let mut inputs = Inputs::new(places.position..places.search_end);
    let (mut atom, mut bins) = (0usize, 0usize);
    let mut bin_start: Vec<u32> = Vec::new();
    for ((position, table), system) in positions.iter().zip(tables).zip(0..) {
        let small = |v: &[i64; 3]| v.map(|x| x as i32);
        let home: Vec<[i32; 3]> = table.home.iter().map(small).collect();
        let bin: Vec<[i32; 3]> = table.bin.iter().map(small).collect();
        let mut place = vec![0u32; position.len()];
        for (i, &a) in table.sorted.iter().enumerate() {
            place[a as usize] = (atom + i) as u32;
        }
        let sorted: Vec<u32> = table.sorted.iter().map(|&a| atom as u32 + a).collect();
        let grid = SearchGrid {
            basis: flat(table.basis),
            vectors: flat(table.vectors),
            multiples: flat(table.multiples).map(|x| x as i32),
            bins: small(&table.bins),
            reach: small(&table.reach),
            periodic: table.periodic as i32,
            radius2: table.radius * table.radius,
            first_bin: bins as u64,
        };
        inputs.put(places.position + 24 * atom, position);
        inputs.put(places.wrapped + 24 * atom, &table.sorted_wrapped);
        inputs.put(places.home + 12 * atom, &home);
        inputs.put(places.bin + 12 * atom, &bin);
        inputs.put(places.place + 4 * atom, &place);
        inputs.put(places.sorted + 4 * atom, &sorted);
        inputs.put(places.grids + system * size_of::<SearchGrid>(), &[grid]);
        bin_start.extend(table.bin_start.iter().map(|&b| atom as u32 + b));
        bins += table.bin_start.len();
        atom += position.len();
    }
    inputs.put(places.bin_start, &bin_start);
    inputs
}

fn flat<T: Copy + Default>(rows: [[T; 3]; 3]) -> [T; 9] {
    std::array::from_fn(|i| rows[i / 3][i % 3])
}

/// Largest multiple of a lattice vector that the device packs.
const LARGEST_IMAGE: f64 = ((1 << 20) - 1) as f64;

/// Whether the images of a system fit into the device's packing.
pub fn images_fit(tables: &SearchTables) -> bool {
    let homes = tables.home.iter().flatten();
    let home = homes.fold(0.0f64, |m, &h| m.max(h.unsigned_abs() as f64));
    let reach = (0..3).map(|k| (tables.reach[k] / tables.bins[k].max(1)) as f64 + 2.0);
    let cells = 2.0 * home + reach.fold(0.0, f64::max);
    let column = |j: usize| -> f64 {
        let rows = tables.multiples.iter();
        rows.map(|row| row[j].unsigned_abs() as f64).sum()
    };
    let fits = |j| cells * column(j) < LARGEST_IMAGE;
    let small = |v: &[i64; 3]| v.iter().all(|&x| i32::try_from(x).is_ok());
    (0..3).all(fits) && small(&tables.bins) && small(&tables.reach)
}

fn starts(counts: impl Iterator<Item = usize>) -> Vec<u32> {
    let mut start = vec![0];
    for count in counts {
        start.push(start[start.len() - 1] + count as u32);
    }
    start
}

/// All edges of a batch, sorted by target.
#[derive(Debug)]
struct Graph {
    target_start: Vec<u32>,
    edge_start: Vec<u32>,
    source: Vec<u32>,
    target: Vec<u32>,
    vector: Vec<[f64; 3]>,
}

impl Default for Graph {
    fn default() -> Self {
        Graph {
            target_start: vec![0],
            edge_start: vec![0],
            source: vec![],
            target: vec![],
            vector: vec![],
        }
    }
}

impl Graph {
    fn push(&mut self, atoms: usize, list: &NeighborList) {
        let (atom, edge) = (self.target_start.len() as u32 - 1, self.source.len() as u32);
        let starts = list.target_start.iter().skip(1);
        self.target_start.extend(starts.map(|&e| edge + e));
        self.source.extend(list.source.iter().map(|&s| atom + s));
        for a in 0..atoms {
            let row = list.edges_of(a).map(|_| atom + a as u32);
            self.target.extend(row);
        }
        self.vector.extend(&list.vector);
        self.edge_start.push(self.source.len() as u32);
    }

    /// Edges by source atom, ascending within each.
    fn by_source(&self) -> (Vec<u32>, Vec<u32>) {
        let mut counts = vec![0usize; self.target_start.len() - 1];
        for &s in &self.source {
            counts[s as usize] += 1;
        }
        let start = starts(counts.into_iter());
        let mut next = start.clone();
        let mut order = vec![0u32; self.source.len()];
        for (e, &s) in self.source.iter().enumerate() {
            order[next[s as usize] as usize] = e as u32;
            next[s as usize] += 1;
        }
        (start, order)
    }

    /// Chunks, and the tiles of each. The device does the same in `cuda/neighbors.cu`.
    fn chunks(&self, chunking: &Chunking) -> Result<(Vec<Chunk>, Vec<Vec<Tile>>), CudaError> {
        let atoms = self.target_start.len() - 1;
        let mut chunks = Vec::new();
        let mut all_tiles = Vec::new();
        let mut atom = 0;
        for i in 0..chunking.count {
            let begin = atom;
            // An atom belongs to the chunk in which its first edge falls; the last takes the rest.
            let end_edge = (i + 1) * chunking.edges;
            while atom < atoms
                && (i + 1 == chunking.count || (self.target_start[atom] as usize) < end_edge)
            {
                let degree = (self.target_start[atom + 1] - self.target_start[atom]) as usize;
                if chunking.count > 1 && degree > MAX_DEGREE {
                    return Err(CudaError::Unsupported(format!(
                        "atom {atom} of the batch has {degree} edges; in large batches an atom may \
                         have {MAX_DEGREE}"
                    )));
                }
                atom += 1;
            }
            let (first, end) = (self.target_start[begin], self.target_start[atom]);
            let mut cut = Vec::new();
            for (system, pair) in self.edge_start.windows(2).enumerate() {
                tiles(system, pair[0].max(first), pair[1].min(end), &mut cut);
            }
            chunks.push(Chunk {
                atom_begin: begin as u32,
                atom_end: atom as u32,
                edge_begin: first,
                edge_end: end,
                edge_tiles: cut.len() as u32,
                ..Chunk::default()
            });
            all_tiles.push(cut);
        }
        Ok((chunks, all_tiles))
    }
}

/// Cuts rows of a system into tiles.
fn tiles(system: usize, begin: u32, end: u32, tiles: &mut Vec<Tile>) {
    let mut at = begin;
    while at < end {
        let next = end.min(at + TILE_ROWS as u32);
        tiles.push(Tile {
            system: system as u32,
            begin: at,
            end: next,
            pad: 0,
        });
        at = next;
    }
}
