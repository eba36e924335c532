// What kernels are given: plain structures of fixed-width numbers and pointers, the same in the
// device build, in the host build and in src/backend/cuda/params.rs (a test compares names, sizes
// and offsets of all fields). Every structure is a multiple of 8 bytes and has no implicit padding:
// write `pad` fields. Line by line `TYPE NAME;`, because build.rs reads this file.
#pragma once

#include <stdint.h>

// A range of edges that one pass computes, with their target atoms. In device memory: kernels are
// launched for the capacity of a chunk and look here for what is real.
struct Chunk {
    uint32_t atom_begin;
    uint32_t atom_end;
    uint32_t edge_begin;
    uint32_t edge_end;
    uint32_t edge_tiles;
    uint32_t atom_tiles;
    uint32_t pad_0;
    uint32_t pad_1;
};

// Rows [begin, end) of one system, at most 128, counted over the batch.
struct Tile {
    uint32_t system;
    uint32_t begin;
    uint32_t end;
    uint32_t pad;
};

// fill: destination[i] = value for i < count.
struct FillParams {
    uint32_t* destination;
    uint64_t count;
    uint32_t value;
    uint32_t pad;
};
