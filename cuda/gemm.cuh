// Products of many rows with small matrices: out[item] = a[item] W^T (+ bias) (+ residual).
//
// Shapes: items are the edges of a chunk or atoms; each has `span.rows` rows of `k` numbers for
// every span; W is `[n][k]`, one for all systems or one per system (mixed experts, heads per task).
// A tile of the grid is one piece of BM rows by BN columns of one span and one system.
//
// Arithmetic: f32 (IEEE, fused multiply-adds in the order of k), or fp16 operands with f32 sums
// (matrix instructions, in the order of k). A result depends on its row and matrix alone,
// never on the tile, the grid or the other rows, bit for bit: each sum is made by one thread (f32)
// or one accumulator of the matrix unit, in order of k, whatever the tile sizes. `a` may be f32 in
// memory where the operands are not: then the loader rounds it.
//
// Memory: `a` is read once for each BN columns of its span, mostly from the L2 cache because the
// tiles of one piece of rows are neighbours in the grid; W stays in L2; `out` is written once.
#pragma once
#include "gemm.h"
#include "mma.cuh"
#include "numbers.cuh"

// Words of the summed index in shared memory at a time, and the distance of rows: with 36 words
// the eight rows of a matrix load fall into different banks.
constexpr int STEP_WORDS = 32;
constexpr int ROW_WORDS = STEP_WORDS + 4;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
template <class T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ __half from_float<__half>(float x) {
    return __float2half_rn(x);
}

// f32 operands, for the kernels without matrix instructions.
struct Exact {
    static constexpr int PER_WORD = 1;
    using Element = float;
    static __device__ __forceinline__ float of(float x) { return x; }
};

// How `a` becomes an operand.
enum class Operand {
    // As it lies in memory.
    Ready,
    // f32 that the loader rounds.
    Rounded,
};

// Where this block of the grid stands.
struct Place {
    GemmSpan span;
    // First row of the piece within the tile's rows, first column.
    uint32_t row, column;
    // Rows of the tile.
    uint32_t rows;
    // Item of the tile's row 0, as stored.
    uint64_t item;
    const void *weights;
};

template <int BM, int BN, class Element>
__device__ __forceinline__ bool find_place(const GemmParams &p, Place &place) {
    if (blockIdx.y >= *p.tile_count) {
        return false;
    }
    uint32_t index = 0;
    while (index + 1 < p.spans && blockIdx.x >= p.span[index + 1].first_block) {
        index++;
    }
    place.span = p.span[index];
    const uint32_t local = blockIdx.x - place.span.first_block;
    place.column = (local % place.span.column_tiles) * BN;
    place.row = (local / place.span.column_tiles) * BM;
    const Tile tile = p.tiles[blockIdx.y];
    place.rows = (tile.end - tile.begin) * place.span.rows;
    place.item = tile.begin - (p.first_item ? *p.first_item : 0);
    const void *base =
        p.weight_table ? reinterpret_cast<const void *>(p.weight_table[tile.system]) : p.weights;
    place.weights = static_cast<const Element *>(base) + place.span.weight_offset;
    return place.row < place.rows;
}

// A value of degree `degree` through its gate: SiLU for degree 0, else times sigmoid(gate).
__device__ __forceinline__ float gated(uint32_t degree, float value, float gate) {
    return degree == 0 ? silu(value) : value * sigmoid(gate);
}

// `PIECE` neighbouring numbers as operands, 16 bytes of shared memory.
template <class Kind, int PIECE>
__device__ __forceinline__ void store_piece(uint32_t *to, float (&value)[PIECE]) {
    // Storing halves rounds them.
    store(reinterpret_cast<typename Kind::Element *>(to), value);
}

// Row of the product -> item and row within it. Nearly always an item has one row.
__device__ __forceinline__ uint32_t item_of(const GemmSpan &span, uint32_t row) {
    return span.rows == 1 ? row : row / span.rows;
}

// Everything that happens to a sum before it is stored.
__device__ __forceinline__ float finished(const GemmParams &p, const GemmSpan &span, bool first_row,
                                          uint32_t column, uint64_t out, uint64_t residual,
                                          float value) {
    if (span.bias_offset != GEMM_NO_BIAS && first_row) {
        value += p.bias[span.bias_offset + column];
    }
    if (p.residual) {
        value += p.residual[residual];
    }
    if (p.flags & GEMM_SILU) {
        if (p.pre) {
            p.pre[out] = value;
        }
        value = silu(value);
    }
    return value;
}

// Two neighbouring numbers, at an even place.
template <class T> struct alignas(2 * sizeof(T)) Pair {
    T first, second;
};

// Stores those of `COLUMNS` neighbouring values of a row that the matrix has; two at once where `paired`.
template <class Out, int COLUMNS>
__device__ __forceinline__ void store_columns(Out *to, bool paired, uint32_t left,
                                              const float (&values)[COLUMNS]) {
    if (COLUMNS == 2 && paired) {
        *reinterpret_cast<Pair<Out> *>(to) =
            Pair<Out>{from_float<Out>(values[0]), from_float<Out>(values[COLUMNS - 1])};
        return;
    }
#pragma unroll
    for (uint32_t j = 0; j < COLUMNS; j++) {
        if (j < left) {
            to[j] = from_float<Out>(values[j]);
        }
    }
}

// Finishes and stores `COLUMNS` neighbouring values of a row of the result.
template <class Out, int COLUMNS>
__device__ __forceinline__ void finish(const GemmParams &p, const Place &place, bool paired,
                                       uint32_t row, uint32_t column, const float *sums) {
    const GemmSpan &span = place.span;
    if (row >= place.rows || column >= span.n) {
        return;
    }
    const uint32_t local = item_of(span, row), within_item = row - local * span.rows;
    const uint64_t item = place.item + local;
    const uint64_t within = span.out_offset + static_cast<uint64_t>(within_item) * span.n + column;
    const uint64_t out = item * p.out_stride + within;
    const uint64_t residual = item * p.residual_stride + within;
    Out *to = static_cast<Out *>(p.out) + out;
    float values[COLUMNS];
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) {
        if (column + j < span.n) {
            values[j] =
                finished(p, span, within_item == 0, column + j, out + j, residual + j, sums[j]);
            if (p.flags & GEMM_ACCUMULATE) {
                values[j] += to_float(to[j]);
            }
        }
    }
    store_columns<Out, COLUMNS>(to, paired, span.n - column, values);
}

// What becomes of the sums of a block: here they are stored. `begin` and `end` are reached by all
// threads, `take` is told one or two neighbouring sums of a row.
template <class Out> struct StoreSums {
    const GemmParams &p;
    bool paired = false;

    __device__ __forceinline__ void begin(const Place &place, uint32_t *) {
        // Whether neighbouring even and odd columns of the result may be stored as one.
        paired = ((p.out_stride | place.span.out_offset | place.span.n) & 1) == 0;
    }
    template <int COLUMNS>
    __device__ __forceinline__ void take(const Place &place, uint32_t row, uint32_t column,
                                         const float *sums) {
        finish<Out, COLUMNS>(p, place, paired, row, column, sums);
    }
    __device__ __forceinline__ void end(const Place &) {}
};

// Stores the sums as they are, and what of them passes the gate, as the next product reads it. Items have
// one row; the gates of all of them have been stored by a launch before this one. The gate sees the number
// that is stored, as gate_edges does (gate.cu), and makes the same bits.
template <class Out, class Gated> struct StoreGated {
    const GemmParams &p;
    bool paired = false;

    __device__ __forceinline__ void begin(const Place &place, uint32_t *) {
        paired = ((p.out_stride | p.gated_stride | p.gate_values | p.gate_channels |
                   place.span.out_offset | place.span.n) &
                  1) == 0;
    }
    template <int COLUMNS>
    __device__ __forceinline__ void take(const Place &place, uint32_t row, uint32_t column,
                                         const float *sums) {
        const GemmSpan &span = place.span;
        if (row >= place.rows || column >= span.n) {
            return;
        }
        const uint64_t item = place.item + row;
        Out *const out = static_cast<Out *>(p.out) + item * p.out_stride;
        Gated *const gated_out = static_cast<Gated *>(p.gated) + item * p.gated_stride;
        const uint32_t at = span.out_offset - p.gate_values + column;
        const uint32_t left = span.n - column;
        float values[COLUMNS], gated_values[COLUMNS] = {};
#pragma unroll
        for (uint32_t j = 0; j < COLUMNS; j++) {
            values[j] = sums[j];
            if (span.bias_offset != GEMM_NO_BIAS && j < left) {
                values[j] += p.bias[span.bias_offset + column + j];
            }
            values[j] = to_float(from_float<Out>(values[j]));
        }
        if (COLUMNS == 2 && paired) {
            // Both have one edge row.
            const uint32_t edge_row = at / p.gate_channels, channel = at % p.gate_channels;
            const uint32_t degree = p.row_degree[edge_row];
            Pair<Out> gates = {};
            if (degree > 0) {
                gates = *reinterpret_cast<const Pair<Out> *>(
                    out + (degree - 1) * p.gate_channels + channel);
            }
            gated_values[0] = gated(degree, values[0], to_float(gates.first));
            gated_values[COLUMNS - 1] =
                gated(degree, values[COLUMNS - 1], to_float(gates.second));
        } else {
#pragma unroll
            for (uint32_t j = 0; j < COLUMNS; j++) {
                if (j < left) {
                    const uint32_t edge_row = (at + j) / p.gate_channels;
                    const uint32_t degree = p.row_degree[edge_row];
                    const uint32_t channel = (at + j) % p.gate_channels;
                    float gate = 0.0f;
                    if (degree > 0) {
                        gate = to_float(out[(degree - 1) * p.gate_channels + channel]);
                    }
                    gated_values[j] = gated(degree, values[j], gate);
                }
            }
        }
        store_columns<Out, COLUMNS>(out + span.out_offset + column, paired, left, values);
        store_columns<Gated, COLUMNS>(gated_out + at, paired, left, gated_values);
    }
    __device__ __forceinline__ void end(const Place &) {}
};

// ------------------------------------------------------------------- loading a step of words

// Fills `BM` rows of shared memory with words `first..first + STEP_WORDS` of the rows of `a`.
// Stored: what `a` holds. ALIGNED: rows start at, and are a multiple of, 16 bytes of operands.
template <int BM, int THREADS, class Kind, class Stored, bool ALIGNED, Operand OPERAND>
__device__ __forceinline__ void load_a(const GemmParams &p, const Place &place, uint32_t *shared,
                                       uint32_t first) {
    using Element = typename Kind::Element;
    constexpr int PIECE = 4 * Kind::PER_WORD; // elements of 16 bytes
    const GemmSpan &span = place.span;
    const Stored *a = static_cast<const Stored *>(p.a);
    // Pieces on their way through registers take those that the sums need.
    [[maybe_unused]] constexpr int UNROLL =
        OPERAND == Operand::Ready ? BM * STEP_WORDS / 4 / THREADS : 1;
#pragma unroll UNROLL
    for (int i = threadIdx.x; i < BM * STEP_WORDS / 4; i += THREADS) {
        const uint32_t r = i / (STEP_WORDS / 4), piece = i % (STEP_WORDS / 4);
        const uint32_t row = place.row + r, k = (first + 4 * piece) * Kind::PER_WORD;
        uint32_t *to = shared + r * ROW_WORDS + 4 * piece;
        const bool inside = row < place.rows && k < span.k;
        const uint32_t local = item_of(span, row);
        const Stored *item = a + (place.item + local) * p.a_stride;
        const uint32_t at = span.a_offset + (row - local * span.rows) * span.k + k;
        if constexpr (OPERAND == Operand::Ready && ALIGNED) {
            copy_async_16(to, inside ? item + at : a, inside);
        } else if constexpr (ALIGNED) {
            float value[PIECE] = {};
            if (inside) {
                load(item + at, value);
            }
            store_piece<Kind>(to, value);
        } else {
            Element *elements = reinterpret_cast<Element *>(to);
            for (int j = 0; j < PIECE; j++) {
                float value = 0.0f;
                if (inside && k + j < span.k) {
                    value = to_float(item[at + j]);
                }
                elements[j] = Kind::of(value);
            }
        }
    }
}

// The same for rows of W.
template <int BN, int THREADS, class Element, bool ALIGNED>
__device__ __forceinline__ void load_b(const Place &place, uint32_t *shared, uint32_t first) {
    constexpr int PER_WORD = 4 / sizeof(Element);
    constexpr int PIECE = 16 / sizeof(Element);
    const GemmSpan &span = place.span;
    const Element *w = static_cast<const Element *>(place.weights);
    for (int i = threadIdx.x; i < BN * STEP_WORDS / 4; i += THREADS) {
        const uint32_t r = i / (STEP_WORDS / 4), piece = i % (STEP_WORDS / 4);
        const uint32_t row = place.column + r, k = (first + 4 * piece) * PER_WORD;
        uint32_t *to = shared + r * ROW_WORDS + 4 * piece;
        const bool inside = row < span.n && k < span.k;
        const uint64_t at = static_cast<uint64_t>(row) * span.k + k;
        if constexpr (ALIGNED) {
            copy_async_16(to, inside ? w + at : w, inside);
        } else {
            Element *elements = reinterpret_cast<Element *>(to);
            for (int j = 0; j < PIECE; j++) {
                elements[j] = inside && k + j < span.k ? w[at + j] : from_float<Element>(0.0f);
            }
        }
    }
}

// ------------------------------------------------------------------- the loop over the summed index

// Calls multiply(a, b) for every step of the summed index, with BM rows of `a` and BN of W in shared
// memory; the copies of later steps are under way meanwhile.
template <int BM, int BN, int THREADS, class Kind, class Stored, int STAGES, bool ALIGNED,
          Operand OPERAND, class Multiply>
__device__ __forceinline__ void for_each_step(const GemmParams &p, const Place &place,
                                              uint32_t *shared, const Multiply &multiply) {
    using Element = typename Kind::Element;
    constexpr int STAGE_WORDS = (BM + BN) * ROW_WORDS;
    const uint32_t words = (place.span.k + Kind::PER_WORD - 1) / Kind::PER_WORD;
    const int steps = (words + STEP_WORDS - 1) / STEP_WORDS;
    auto load = [&](int step) {
        if (step < steps) {
            uint32_t *stage = shared + (step % STAGES) * STAGE_WORDS;
            load_a<BM, THREADS, Kind, Stored, ALIGNED, OPERAND>(p, place, stage,
                                                                step * STEP_WORDS);
            load_b<BN, THREADS, Element, ALIGNED>(place, stage + BM * ROW_WORDS,
                                                  step * STEP_WORDS);
        }
        copy_async_commit();
    };
    for (int step = 0; step < STAGES - 1; step++) {
        load(step);
    }
    for (int step = 0; step < steps; step++) {
        copy_async_wait<STAGES - 2>();
        __syncthreads();
        // The stage that is filled now was used up in the step before, by all threads.
        load(step + STAGES - 1);
        const uint32_t *a = shared + (step % STAGES) * STAGE_WORDS;
        multiply(a, a + BM * ROW_WORDS);
    }
}

// ------------------------------------------------------------------- tensor cores

// WM x WN warps, each MT pieces of 16 rows by NT pieces of 8 columns.
template <class Stored, int WM, int WN, int MT, int NT, int STAGES, bool ALIGNED, Operand OPERAND,
          class Sums>
__device__ __forceinline__ void product_on_tensor_cores(const GemmParams &p, Sums finishing) {
    constexpr int BM = WM * MT * 16, BN = WN * NT * 8, THREADS = WM * WN * 32;
    static_assert(NT % 2 == 0, "two pieces of columns are loaded at once");
    [[maybe_unused]] constexpr int UNROLL = OPERAND == Operand::Ready ? 4 : 2;
    DYNAMIC_SHARED(uint32_t, shared);

    Place place;
    if (!find_place<BM, BN, Fp16::Element>(p, place)) {
        return;
    }
    // Neighbouring warps, which different units of a multiprocessor run, share columns: where the
    // last columns of a tile are none of the matrix, every unit is left with as much work.
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warp_row = (warp % WM) * MT * 16, warp_column = (warp / WM) * NT * 8;
    const bool busy =
        place.row + warp_row < place.rows && place.column + warp_column < place.span.n;

    float sums[MT][NT][4] = {};
    for_each_step<BM, BN, THREADS, Fp16, Stored, STAGES, ALIGNED, OPERAND>(
        p, place, shared, [&](const uint32_t *a, const uint32_t *b) {
            if (!busy) {
                return;
            }
#pragma unroll UNROLL
            for (int k = 0; k < STEP_WORDS; k += 8) {
                uint32_t left[MT][4], right[NT / 2][4];
                const uint32_t *rows[MT], *columns[NT / 2];
#pragma unroll
                for (int i = 0; i < MT; i++) {
                    // Matrices: rows 0-7 and 8-15 at words 0-3, then the same at words 4-7.
                    const int row = warp_row + 16 * i + lane % 16, word = k + 4 * (lane / 16);
                    rows[i] = a + row * ROW_WORDS + word;
                }
#pragma unroll
                for (int j = 0; j < NT / 2; j++) {
                    // Matrices: columns 0-7 at words 0-3 and 4-7, then columns 8-15.
                    const int row = warp_column + 16 * j + lane % 8 + 8 * (lane / 16);
                    columns[j] = b + row * ROW_WORDS + k + 4 * (lane / 8 % 2);
                }
                load_matrices(left, rows);
                load_matrices(right, columns);
                multiply_add(sums, left, right);
            }
        });
    finishing.begin(place, shared);
#pragma unroll
    for (int i = 0; i < MT; i++) {
#pragma unroll
        for (int j = 0; j < NT; j++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                finishing.template take<2>(place,
                                           place.row + warp_row + 16 * i + lane / 4 + 8 * half,
                                           place.column + warp_column + 8 * j + 2 * (lane % 4),
                                           sums[i][j] + 2 * half);
            }
        }
    }
    finishing.end(place);
}

// ------------------------------------------------------------------- IEEE f32

// 16 x 16 threads, each MR x NR results at distances of 16.
template <int MR, int NR, int STAGES, bool ALIGNED, class Sums>
__device__ __forceinline__ void product_in_f32(const GemmParams &p, Sums finishing) {
    constexpr int BM = 16 * MR, BN = 16 * NR, THREADS = 256;
    DYNAMIC_SHARED(uint32_t, shared);

    Place place;
    if (!find_place<BM, BN, float>(p, place)) {
        return;
    }
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    float sums[MR][NR] = {};
    for_each_step<BM, BN, THREADS, Exact, float, STAGES, ALIGNED, Operand::Ready>(
        p, place, shared, [&](const uint32_t *left_words, const uint32_t *right_words) {
            const float *a = reinterpret_cast<const float *>(left_words);
            const float *b = reinterpret_cast<const float *>(right_words);
#pragma unroll 2
            for (int k = 0; k < STEP_WORDS; k += 4) {
                float4 left[MR], right[NR];
#pragma unroll
                for (int i = 0; i < MR; i++) {
                    left[i] = *reinterpret_cast<const float4 *>(a + (ty + 16 * i) * ROW_WORDS + k);
                }
#pragma unroll
                for (int j = 0; j < NR; j++) {
                    right[j] = *reinterpret_cast<const float4 *>(b + (tx + 16 * j) * ROW_WORDS + k);
                }
#pragma unroll
                for (int i = 0; i < MR; i++) {
#pragma unroll
                    for (int j = 0; j < NR; j++) {
                        float sum = sums[i][j];
                        sum = fmaf(left[i].x, right[j].x, sum);
                        sum = fmaf(left[i].y, right[j].y, sum);
                        sum = fmaf(left[i].z, right[j].z, sum);
                        sum = fmaf(left[i].w, right[j].w, sum);
                        sums[i][j] = sum;
                    }
                }
            }
        });
    finishing.begin(place, shared);
#pragma unroll
    for (int i = 0; i < MR; i++) {
#pragma unroll
        for (int j = 0; j < NR; j++) {
            finishing.template take<1>(place, place.row + ty + 16 * i, place.column + tx + 16 * j,
                                       &sums[i][j]);
        }
    }
    finishing.end(place);
}
