// What the kernels that find neighbours are given. Plain C++: also read by the host build; mirrored
// in src/backend/cuda/params.rs.
#pragma once

#include "params.h"

#include <stdint.h>

// How the atoms of one system are sorted into bins (src/neighbors/grid.rs), and its lattice.
struct SearchGrid {
    // Reduced basis vectors, rows, Angstrom.
    double basis[9];
    // Lattice vectors of the cell as given, rows, Angstrom.
    double vectors[9];
    // Each periodic basis vector as multiples of the given vectors, rows.
    int32_t multiples[9];
    // Bins along each basis vector.
    int32_t bins[3];
    // Bins to look at on either side.
    int32_t reach[3];
    // Periodic directions come first.
    int32_t periodic;
    // Square of the search radius: the cutoff and what rounding may hide.
    double radius2;
    // Start of the system's bins in `bin_start`.
    uint64_t first_bin;
};

// neighbor_count, neighbor_fill: the edges of every target, one warp each.
struct NeighborParams {
    // The whole batch: its atoms.
    const Chunk* batch;
    const uint32_t* atom_system;
    // `[systems + 1]`
    const uint32_t* atom_start;
    // `[systems]`
    const SearchGrid* grids;
    // `[N][3]` Angstrom.
    const double* position;
    // `[N][3]` positions moved into the reduced cell, in the order of `sorted`.
    const double* wrapped;
    // `[N][3]` cell of each atom, multiples of the basis vectors.
    const int32_t* home;
    // `[N][3]` bin of each atom.
    const int32_t* bin;
    // `[N]` place of each atom in `sorted`.
    const uint32_t* place;
    // `[N]` atoms of each system sorted by bin, counted over the batch.
    const uint32_t* sorted;
    // Where in `sorted` each bin begins, one more entry for each system.
    const uint32_t* bin_start;
    // `[N]` edges of each target: written by neighbor_count.
    uint32_t* degree;
    // `[N + 1]`
    const uint32_t* target_start;
    // `[E]` edges as they are found: source, and image in multiples of the given vectors, packed.
    uint32_t* found_source;
    uint64_t* found_image;
    // `[E]` edges sorted by source and image, written by neighbor_fill.
    uint32_t* source;
    uint32_t* target;
    uint64_t* image;
    double* vector;
    // See NeighborStartParams.
    const uint32_t* flags;
    // Square of the cutoff.
    double cutoff2;
};

// neighbor_start: degrees -> target_start. One block.
struct NeighborStartParams {
    // The whole batch; its edge_end is written.
    Chunk* batch;
    const uint32_t* degree;
    // `[N + 1]` written; source_start is the same in a symmetric list.
    uint32_t* target_start;
    uint32_t* source_start;
    // `[4]`: edges found, largest degree, whether there are more edges than `capacity` (then the
    // list is empty), 0. Written.
    uint32_t* flags;
    uint64_t capacity;
};

// neighbor_reverse: edges by source. One thread for each edge.
struct NeighborReverseParams {
    const Chunk* batch;
    const uint32_t* target_start;
    const uint32_t* source;
    const uint32_t* target;
    const uint64_t* image;
    // `[E]` written.
    uint32_t* by_source;
};

// neighbor_chunks: cuts the edges into chunks and tiles. One block for each chunk.
struct NeighborChunksParams {
    const Chunk* batch;
    // `[chunks]` written.
    Chunk* chunks;
    const uint32_t* target_start;
    const uint32_t* atom_start;
    // `[systems + 1]` written.
    uint32_t* edge_start;
    // `[chunks][tiles]`
    Tile* tiles;
    // An atom belongs to chunk `first edge / chunk_edges`.
    uint64_t chunk_edges;
    uint32_t chunk_count;
    // Most tiles of a chunk.
    uint32_t tile_capacity;
    uint32_t systems;
    uint32_t pad;
};
