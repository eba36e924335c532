//! Memory of one evaluation, for batches up to a capacity, and the batch in it.

use super::error::CudaError;
use super::gemm::TILE_ROWS;
use super::params::{Chunk, DevicePtr, Tile};
use super::plan::Plan;
use crate::backend::Structure;
use crate::nn::{Op, Program};

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
            atoms: bucket(self.atoms, 16),
            edges: bucket(self.edges, 256),
            systems: bucket(self.systems, 4),
        }
    }
}

/// At least as much, and one of a few sizes: `least` times powers of two and three quarters of them.
fn bucket(count: usize, least: usize) -> usize {
    let power = count.max(least).next_power_of_two();
    match power / 4 * 3 {
        smaller if smaller >= count.max(least) => smaller,
        _ => power,
    }
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
    /// u32 `[N + 1]`
    pub target_start: usize,
    /// u32 `[N + 1]`
    pub source_start: usize,
    /// u32 `[B + 1]`
    pub atom_start: usize,
    /// u32 `[B + 1]`
    pub edge_start: usize,
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
    /// [`Chunk`] `[chunks + 1]`: the last is the whole batch
    pub chunks: usize,
    /// [`Tile`] `[chunks][tiles]`
    pub edge_tiles: usize,
    /// [`Tile`]
    pub atom_tiles: usize,
    /// Counts: atoms, edges, systems, atom tiles. u32 `[4]`
    pub counts: usize,
    /// u32 `[E]`
    pub source: usize,
    /// u32 `[E]`
    pub target: usize,
    /// u32 `[E]`
    pub by_source: usize,
    /// f64 `[E][3]`
    pub vector: usize,
    /// Up to here the host writes.
    pub inputs_end: usize,
    /// f32 `[E]`
    pub distance: usize,
    /// f32 `[E][3]`
    pub unit: usize,
    /// f32 `[E]`
    pub envelope: usize,
    /// f32 `[E][W]`
    pub wigner: usize,
    /// f32 `[E]`
    pub d_distance: usize,
    /// f32 `[E]`
    pub d_envelope: usize,
    /// f32 `[E][3]`
    pub torque: usize,
    /// f32 `[E][3]`
    pub source_torque: usize,
    /// Up to here, from `d_distance` on, a run starts with zeros.
    pub sums_end: usize,
    /// f32 `[E]`
    pub gradient_scale: usize,
    /// f32 `[B]` per balanced channel
    pub shift: usize,
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
            target_start: take(4 * (n + 1)),
            source_start: take(4 * (n + 1)),
            atom_start: take(4 * (b + 1)),
            edge_start: take(4 * (b + 1)),
            charge: take(4 * b),
            unpaired: take(4 * b),
            conditioning: take(4 * b * program.channels),
            mixed_table: take(8 * b),
            task_table: take(8 * b),
            chunks: take(size_of::<Chunk>() * (chunking.count + 1)),
            edge_tiles: take(size_of::<Tile>() * chunking.count * chunking.tiles),
            atom_tiles: take(size_of::<Tile>() * atom_tiles),
            counts: take(16),
            source: take(4 * e),
            target: take(4 * e),
            by_source: take(4 * e),
            vector: take(24 * e),
            ..Places::default()
        };
        places.inputs_end = take(0);
        places.distance = take(4 * e);
        places.unit = take(12 * e);
        places.envelope = take(4 * e);
        places.wigner = take(4 * e * program.layout.wigner_len);
        places.d_distance = take(4 * e);
        places.d_envelope = take(4 * e);
        places.torque = take(12 * e);
        places.source_torque = take(12 * e);
        places.sums_end = take(0);
        places.gradient_scale = take(4 * e);
        places.shift = take(4 * b * balanced(program));
        places.gradient = take(24 * e);
        places.atom_arena = take(plan.atoms.bytes * n);
        places.edge_arena = take(plan.edge_bytes * chunking.rows);
        places.kept = take(plan.kept_bytes * chunking.rows * chunking.count);
        places.bytes = take(0);
        places
    }
}

/// Most channels that are balanced at once.
fn balanced(program: &Program) -> usize {
    let channels = program.ops.iter().map(|op| match op {
        Op::Balance { channels, .. } => channels.len(),
        _ => 0,
    });
    channels.max().unwrap_or(0)
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
    /// Which plan (index by [`Keep`](super::plan::Keep)).
    pub keep: usize,
    /// When it was used last.
    pub last_use: u64,
    /// The captured launches.
    pub graph: Option<super::device::Graph>,
    /// Evaluations so far.
    pub runs: u64,
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
        self.chunk(self.chunking.count)
    }

    /// A kept edge buffer of a chunk. Every chunk keeps its buffers one after the other.
    pub fn kept(&self, offset: usize, chunk: usize, kept_bytes: usize) -> DevicePtr {
        let rows = self.chunking.rows;
        self.at(self.places.kept)
            .offset(chunk * rows * kept_bytes + offset * rows)
    }
}

/// The host's side of the inputs of a pass.
pub struct Inputs {
    bytes: Vec<u8>,
}

/// Why a batch cannot run in a pass: an atom with too many edges.
fn too_many_edges(atom: usize, degree: usize) -> CudaError {
    CudaError::Unsupported(format!(
        "atom {atom} has {degree} edges; in large batches an atom has at most {MAX_DEGREE}"
    ))
}

impl Inputs {
    /// Lays a batch out as the device reads it.
    ///
    /// # Errors
    /// An atom with more than [`MAX_DEGREE`] edges where the pass has several chunks.
    pub fn new(
        program: &Program,
        pass: &Pass,
        batch: &[Structure],
        mixed_bases: &[u64],
        task_bases: &[u64],
    ) -> Result<Inputs, CudaError> {
        let places = &pass.places;
        let mut inputs = Inputs {
            bytes: vec![0; places.inputs_end],
        };
        let mut graph = Graph::default();
        for structure in batch {
            graph.push(structure);
        }
        let (chunks, edge_tiles) = graph.chunks(&pass.chunking)?;
        let mut atom_tiles = Vec::new();
        for (system, pair) in graph.atom_start.windows(2).enumerate() {
            tiles(system, pair[0], pair[1], &mut atom_tiles);
        }
        let conditioning: Vec<f32> = batch
            .iter()
            .flat_map(|s| {
                let mut vector = s.conditioning.vector.clone();
                vector.resize(program.channels, 0.0);
                vector
            })
            .map(|x| x as f32)
            .collect();
        let charge: Vec<f32> = batch.iter().map(|s| s.conditioning.charge as f32).collect();
        let unpaired = batch.iter().map(|s| s.conditioning.unpaired_electrons as f32);
        let unpaired: Vec<f32> = unpaired.collect();
        let (source_start, by_source) = graph.by_source();
        let mut chunks = chunks;
        chunks.push(Chunk {
            atom_end: graph.numbers.len() as u32,
            edge_end: graph.source.len() as u32,
            atom_tiles: atom_tiles.len() as u32,
            ..Chunk::default()
        });
        let counts = [
            graph.numbers.len() as u32,
            graph.source.len() as u32,
            batch.len() as u32,
            atom_tiles.len() as u32,
        ];
        inputs.put(places.numbers, &graph.numbers);
        inputs.put(places.atom_system, &graph.atom_system);
        inputs.put(places.target_start, &graph.target_start);
        inputs.put(places.source_start, &source_start);
        inputs.put(places.atom_start, &graph.atom_start);
        inputs.put(places.edge_start, &graph.edge_start);
        inputs.put(places.charge, &charge);
        inputs.put(places.unpaired, &unpaired);
        inputs.put(places.conditioning, &conditioning);
        inputs.put(places.mixed_table, mixed_bases);
        inputs.put(places.task_table, task_bases);
        inputs.put(places.chunks, &chunks);
        for (i, tiles) in edge_tiles.iter().enumerate() {
            let at = places.edge_tiles + i * pass.chunking.tiles * size_of::<Tile>();
            inputs.put(at, tiles);
        }
        inputs.put(places.atom_tiles, &atom_tiles);
        inputs.put(places.counts, &counts);
        inputs.put(places.source, &graph.source);
        inputs.put(places.target, &graph.target);
        inputs.put(places.by_source, &by_source);
        inputs.put(places.vector, &graph.vector);
        Ok(inputs)
    }

    fn put<T: bytemuck::NoUninit>(&mut self, at: usize, values: &[T]) {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// The bytes, from the beginning of the pass.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// All edges of a batch, sorted by target.
#[derive(Debug)]
struct Graph {
    numbers: Vec<u32>,
    atom_system: Vec<u32>,
    target_start: Vec<u32>,
    atom_start: Vec<u32>,
    edge_start: Vec<u32>,
    source: Vec<u32>,
    target: Vec<u32>,
    vector: Vec<[f64; 3]>,
}

impl Default for Graph {
    fn default() -> Self {
        Graph {
            numbers: vec![],
            atom_system: vec![],
            target_start: vec![0],
            atom_start: vec![0],
            edge_start: vec![0],
            source: vec![],
            target: vec![],
            vector: vec![],
        }
    }
}

impl Graph {
    fn push(&mut self, structure: &Structure) {
        let system = self.atom_start.len() as u32 - 1;
        let (atom, edge) = (self.numbers.len() as u32, self.source.len() as u32);
        let list = structure.neighbors;
        self.numbers.extend(structure.numbers.iter().map(|&z| u32::from(z)));
        self.atom_system.extend(structure.numbers.iter().map(|_| system));
        self.target_start.extend(list.target_start.iter().skip(1).map(|&e| edge + e));
        self.source.extend(list.source.iter().map(|&s| atom + s));
        for a in 0..structure.numbers.len() {
            self.target.extend(list.edges_of(a).map(|_| atom + a as u32));
        }
        self.vector.extend(&list.vector);
        self.atom_start.push(self.numbers.len() as u32);
        self.edge_start.push(self.source.len() as u32);
    }

    /// Edges by source atom, ascending within each.
    fn by_source(&self) -> (Vec<u32>, Vec<u32>) {
        let mut start = vec![0u32; self.numbers.len() + 1];
        for &s in &self.source {
            start[s as usize + 1] += 1;
        }
        for i in 1..start.len() {
            start[i] += start[i - 1];
        }
        let mut next = start.clone();
        let mut order = vec![0u32; self.source.len()];
        for (e, &s) in self.source.iter().enumerate() {
            order[next[s as usize] as usize] = e as u32;
            next[s as usize] += 1;
        }
        (start, order)
    }

    /// Chunks, and the tiles of each.
    fn chunks(&self, chunking: &Chunking) -> Result<(Vec<Chunk>, Vec<Vec<Tile>>), CudaError> {
        let atoms = self.numbers.len();
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
                    return Err(too_many_edges(atom, degree));
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
                atom_tiles: 0,
                pad_0: 0,
                pad_1: 0,
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
