// The neighbour list: all ordered pairs within the cutoff, periodic images included, sorted by
// target, then source, then image.
//
// The host has sorted the atoms into bins (src/neighbors/grid.rs). One warp searches for each
// target: it looks at rows of bins, 32 candidates at a time. Whether a pair is an edge is decided
// in f64 on position[source] - position[target] + image * cell, without fused multiply-adds: the
// same bits as in the list of the CPU, and seen from either end the same up to the sign, so the
// list is symmetric. Two searches, counting and filling, instead of a bound on the number of
// neighbours; edges of a target are then ranked among each other, which fixes their order.
//
// Memory: positions are read from the L2 cache; an edge is written once as found (12 bytes) and
// once sorted (48 bytes).
#include "device.cuh"
#include "neighbors.h"

// Images are packed into 64 bits, 21 for each direction; the host sees to it that they fit.
constexpr int64_t IMAGE_BIAS = 1 << 20;

__device__ __forceinline__ uint64_t pack_image(const int64_t (&image)[3]) {
    return static_cast<uint64_t>(image[0] + IMAGE_BIAS) << 42 |
           static_cast<uint64_t>(image[1] + IMAGE_BIAS) << 21 |
           static_cast<uint64_t>(image[2] + IMAGE_BIAS);
}

__device__ __forceinline__ void unpack_image(uint64_t packed, int64_t (&image)[3]) {
    constexpr uint64_t MASK = (1 << 21) - 1;
    image[0] = static_cast<int64_t>(packed >> 42 & MASK) - IMAGE_BIAS;
    image[1] = static_cast<int64_t>(packed >> 21 & MASK) - IMAGE_BIAS;
    image[2] = static_cast<int64_t>(packed & MASK) - IMAGE_BIAS;
}

__device__ __forceinline__ uint64_t negated(uint64_t packed) {
    int64_t image[3];
    unpack_image(packed, image);
    const int64_t opposite[3] = {-image[0], -image[1], -image[2]};
    return pack_image(opposite);
}

// Products and sums that are never fused, so that they are those of the CPU.
__device__ __forceinline__ double times(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ double plus(double a, double b) { return __dadd_rn(a, b); }

// image * cell, in the order of `multiply` in src/system/cell.rs.
__device__ __forceinline__ void translation(const double *cell, const int64_t (&image)[3],
                                            double (&shift)[3]) {
    for (int k = 0; k < 3; k++) {
        shift[k] = 0.0;
    }
    if ((image[0] | image[1] | image[2]) == 0) {
        return;
    }
    for (int k = 0; k < 3; k++) {
        shift[k] = plus(plus(times(static_cast<double>(image[0]), cell[k]),
                             times(static_cast<double>(image[1]), cell[3 + k])),
                        times(static_cast<double>(image[2]), cell[6 + k]));
    }
}

// From the target to the image of the source.
__device__ __forceinline__ void edge_vector(const double *position, uint32_t source,
                                            uint32_t target, const double (&shift)[3],
                                            double (&vector)[3]) {
    for (int k = 0; k < 3; k++) {
        vector[k] = plus(plus(position[3 * static_cast<uint64_t>(source) + k],
                              -position[3 * static_cast<uint64_t>(target) + k]),
                         shift[k]);
    }
}

__device__ __forceinline__ int32_t floor_divide(int32_t a, int32_t b) {
    const int32_t quotient = a / b;
    return a % b < 0 ? quotient - 1 : quotient;
}

// Calls visit(source, image, is_edge) on all lanes for 32 candidates at a time; `image` is packed.
template <class Visit>
__device__ __forceinline__ void for_candidates(const NeighborParams &p, uint32_t target,
                                               Visit visit) {
    const uint32_t lane = threadIdx.x % WARP;
    const uint32_t system = p.atom_system[target];
    const SearchGrid &grid = p.grids[system];
    const uint32_t *bin_start = p.bin_start + grid.first_bin;
    const uint64_t t = 3 * static_cast<uint64_t>(target);
    const int32_t *bin = p.bin + t;
    const int32_t *home = p.home + t;
    const double *at = p.wrapped + 3 * static_cast<uint64_t>(p.place[target]);
    int32_t first[3], last[3];
    for (int k = 0; k < 3; k++) {
        first[k] = bin[k] - grid.reach[k];
        last[k] = bin[k] + grid.reach[k];
        if (k >= grid.periodic) {
            first[k] = max(first[k], 0);
            last[k] = min(last[k], grid.bins[k] - 1);
        }
    }
    for (int32_t b2 = first[2]; b2 <= last[2]; b2++) {
        const int32_t q2 = floor_divide(b2, grid.bins[2]), r2 = b2 - q2 * grid.bins[2];
        for (int32_t b1 = first[1]; b1 <= last[1]; b1++) {
            const int32_t q1 = floor_divide(b1, grid.bins[1]), r1 = b1 - q1 * grid.bins[1];
            const int32_t row = (r2 * grid.bins[1] + r1) * grid.bins[0];
            const int32_t end_cell = floor_divide(last[0], grid.bins[0]);
            for (int32_t q0 = floor_divide(first[0], grid.bins[0]); q0 <= end_cell; q0++) {
                const int32_t origin = q0 * grid.bins[0];
                const uint32_t begin = bin_start[row + max(first[0], origin) - origin];
                const uint32_t end =
                    bin_start[row + min(last[0], origin + grid.bins[0] - 1) - origin + 1];
                // From the target to the origin of this image of the cell; coarse, so that the
                // rounding of it is covered by the search radius.
                double away[3];
                for (int k = 0; k < 3; k++) {
                    away[k] = q0 * grid.basis[k] + q1 * grid.basis[3 + k] +
                              q2 * grid.basis[6 + k] - at[k];
                }
                for (uint32_t base = begin; base < end; base += WARP) {
                    const uint32_t j = base + lane;
                    bool is_edge = false;
                    uint32_t source = 0;
                    uint64_t packed = 0;
                    if (j < end) {
                        const double *near = p.wrapped + 3 * static_cast<uint64_t>(j);
                        const double x = near[0] + away[0], y = near[1] + away[1],
                                     z = near[2] + away[2];
                        if (x * x + y * y + z * z <= grid.radius2) {
                            source = p.sorted[j];
                            const int32_t *from = p.home + 3 * static_cast<uint64_t>(source);
                            const int64_t q[3] = {int64_t(q0) + home[0] - from[0],
                                                  int64_t(q1) + home[1] - from[1],
                                                  int64_t(q2) + home[2] - from[2]};
                            int64_t image[3];
                            for (int k = 0; k < 3; k++) {
                                image[k] = q[0] * grid.multiples[k] + q[1] * grid.multiples[3 + k] +
                                           q[2] * grid.multiples[6 + k];
                            }
                            double shift[3], v[3];
                            translation(grid.vectors, image, shift);
                            edge_vector(p.position, source, target, shift, v);
                            const double d2 =
                                plus(plus(times(v[0], v[0]), times(v[1], v[1])), times(v[2], v[2]));
                            is_edge = d2 > 0.0 && d2 <= p.cutoff2;
                            packed = pack_image(image);
                        }
                    }
                    visit(source, packed, is_edge);
                }
            }
        }
    }
}

// The target of this warp, or one beyond the batch.
__device__ __forceinline__ uint32_t target_of_warp(const Chunk &batch) {
    const uint32_t warp = (blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    return batch.atom_begin + warp;
}

// Grid: atoms of the capacity times 32 threads.
KERNEL(neighbor_count, NeighborParams) {
    const uint32_t target = target_of_warp(*p.batch);
    if (target >= p.batch->atom_end) {
        return;
    }
    uint32_t count = 0;
    for_candidates(p, target, [&](uint32_t, uint64_t, bool is_edge) {
        count += __popc(__ballot_sync(ALL_LANES, is_edge));
    });
    if (threadIdx.x % WARP == 0) {
        p.degree[target] = count;
    }
}

// Grid: atoms of the capacity times 32 threads.
KERNEL(neighbor_fill, NeighborParams) {
    const uint32_t target = target_of_warp(*p.batch);
    if (target >= p.batch->atom_end || p.flags[2] != 0) {
        return;
    }
    const uint32_t lane = threadIdx.x % WARP;
    const uint32_t begin = p.target_start[target], end = p.target_start[target + 1];
    uint32_t next = begin;
    for_candidates(p, target, [&](uint32_t source, uint64_t image, bool is_edge) {
        const unsigned found = __ballot_sync(ALL_LANES, is_edge);
        if (is_edge) {
            const uint32_t to = next + __popc(found & ((1u << lane) - 1));
            p.found_source[to] = source;
            p.found_image[to] = image;
        }
        next += __popc(found);
    });
    __syncwarp();
    const SearchGrid &grid = p.grids[p.atom_system[target]];
    for (uint32_t i = begin + lane; i < end; i += WARP) {
        const uint32_t source = p.found_source[i];
        const uint64_t packed = p.found_image[i];
        // Rank among the edges of the target: no two are equal.
        uint32_t rank = 0;
        for (uint32_t j = begin; j < end; j++) {
            const uint32_t other = p.found_source[j];
            rank += other < source || (other == source && p.found_image[j] < packed) ? 1 : 0;
        }
        int64_t image[3];
        unpack_image(packed, image);
        double shift[3], v[3];
        translation(grid.vectors, image, shift);
        edge_vector(p.position, source, target, shift, v);
        const uint64_t to = begin + rank;
        p.source[to] = source;
        p.target[to] = target;
        p.image[to] = packed;
        for (int k = 0; k < 3; k++) {
            p.vector[3 * to + k] = v[k];
        }
    }
}

// Inclusive sum over the block of one number from each thread; `parts` holds a number per warp.
__device__ __forceinline__ uint32_t block_scan(uint32_t value, uint32_t *parts) {
    const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const uint32_t warps = blockDim.x / WARP;
    for (uint32_t step = 1; step < WARP; step *= 2) {
        const uint32_t below = __shfl_sync(ALL_LANES, value, lane >= step ? lane - step : 0);
        value += lane >= step ? below : 0;
    }
    if (lane == WARP - 1) {
        parts[warp] = value;
    }
    __syncthreads();
    uint32_t before = 0;
    for (uint32_t w = 0; w < warps; w++) {
        before += w < warp ? parts[w] : 0;
    }
    __syncthreads();
    return before + value;
}

// Grid: one block of 1,024 threads.
KERNEL_BOUNDS(neighbor_start, NeighborStartParams, 1024, 1) {
    __shared__ uint32_t parts[32];
    __shared__ uint32_t totals[2];
    const uint32_t atoms = p.batch->atom_end;
    // More than 32 bits can count, if so many atoms are in one place; then it does not fit anyway.
    uint64_t sum = 0;
    uint32_t largest = 0;
    for (uint32_t base = 0; base < atoms; base += blockDim.x) {
        const uint32_t a = base + threadIdx.x;
        const uint32_t degree = a < atoms ? p.degree[a] : 0;
        largest = max(largest, degree);
        const uint32_t upto = block_scan(degree, parts);
        if (a < atoms) {
            p.target_start[a + 1] = static_cast<uint32_t>(sum + upto);
            p.source_start[a + 1] = static_cast<uint32_t>(sum + upto);
        }
        if (threadIdx.x == blockDim.x - 1) {
            totals[0] = upto;
        }
        __syncthreads();
        sum += totals[0];
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        p.target_start[0] = 0;
        p.source_start[0] = 0;
        totals[1] = 0;
    }
    __syncthreads();
    atomicMax(&totals[1], largest);
    __syncthreads();
    const bool overflow = sum > p.capacity;
    if (overflow) {
        for (uint32_t a = threadIdx.x; a <= atoms; a += blockDim.x) {
            p.target_start[a] = 0;
            p.source_start[a] = 0;
        }
    }
    if (threadIdx.x == 0) {
        p.flags[0] = static_cast<uint32_t>(min(sum, static_cast<uint64_t>(0xffffffffu)));
        p.flags[1] = totals[1];
        p.flags[2] = overflow ? 1 : 0;
        p.flags[3] = 0;
        p.batch->edge_begin = 0;
        p.batch->edge_end = overflow ? 0 : static_cast<uint32_t>(sum);
    }
}

// First edge of [begin, end) that is not before (source, image).
__device__ __forceinline__ uint32_t find_edge(const NeighborReverseParams &p, uint32_t begin,
                                              uint32_t end, uint32_t source, uint64_t image) {
    while (begin < end) {
        const uint32_t middle = begin + (end - begin) / 2;
        const uint32_t other = p.source[middle];
        if (other < source || (other == source && p.image[middle] < image)) {
            begin = middle + 1;
        } else {
            end = middle;
        }
    }
    return begin;
}

// Grid: edges of the capacity. The edges with source a are the reverses of those with target a:
// sorted by target they come in the order of a's row, but images of one pair the other way round.
KERNEL(neighbor_reverse, NeighborReverseParams) {
    const uint32_t e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= p.batch->edge_end) {
        return;
    }
    const uint32_t target = p.target[e], source = p.source[e];
    const uint32_t row = p.target_start[target], row_end = p.target_start[target + 1];
    uint32_t first = e, last = e;
    while (first > row && p.source[first - 1] == source) {
        first--;
    }
    while (last + 1 < row_end && p.source[last + 1] == source) {
        last++;
    }
    const uint32_t reverse = find_edge(p, p.target_start[source], p.target_start[source + 1],
                                       target, negated(p.image[e]));
    p.by_source[first + (last - e)] = reverse;
}

// First atom of the batch whose first edge is not below `edge`.
__device__ __forceinline__ uint32_t first_atom(const uint32_t *target_start, uint32_t atoms,
                                               uint64_t edge) {
    uint32_t begin = 0, end = atoms;
    while (begin < end) {
        const uint32_t middle = begin + (end - begin) / 2;
        if (target_start[middle] < edge) {
            begin = middle + 1;
        } else {
            end = middle;
        }
    }
    return begin;
}

// Grid: one block of 256 threads for each chunk.
KERNEL_BOUNDS(neighbor_chunks, NeighborChunksParams, 256, 1) {
    __shared__ uint32_t parts[32];
    __shared__ uint32_t total;
    const uint32_t index = blockIdx.x, atoms = p.batch->atom_end;
    const uint32_t begin =
        index == 0 ? 0 : first_atom(p.target_start, atoms, index * p.chunk_edges);
    const uint32_t end = index + 1 == p.chunk_count
                             ? atoms
                             : first_atom(p.target_start, atoms, (index + 1) * p.chunk_edges);
    const uint32_t first_edge = p.target_start[begin], end_edge = p.target_start[end];
    Tile *tiles = p.tiles + static_cast<uint64_t>(index) * p.tile_capacity;
    uint32_t before = 0;
    for (uint32_t base = 0; base < p.systems; base += blockDim.x) {
        const uint32_t system = base + threadIdx.x;
        uint32_t from = 0, to = 0;
        if (system < p.systems) {
            const uint32_t system_begin = p.target_start[min(p.atom_start[system], atoms)];
            const uint32_t system_end = p.target_start[min(p.atom_start[system + 1], atoms)];
            if (index == 0) {
                p.edge_start[system + 1] = system_end;
                if (system == 0) {
                    p.edge_start[0] = 0;
                }
            }
            from = max(system_begin, first_edge);
            to = min(system_end, end_edge);
        }
        const uint32_t count = to > from ? (to - from + 127) / 128 : 0;
        const uint32_t upto = block_scan(count, parts);
        for (uint32_t i = 0; i < count; i++) {
            const uint32_t at = before + upto - count + i;
            DEVICE_ASSERT(at < p.tile_capacity);
            tiles[at] = Tile{system, from + 128 * i, min(to, from + 128 * (i + 1)), 0};
        }
        if (threadIdx.x == blockDim.x - 1) {
            total = upto;
        }
        __syncthreads();
        before += total;
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        p.chunks[index] = Chunk{begin, end, first_edge, end_edge, before, 0, 0, 0};
    }
}
