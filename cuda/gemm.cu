// Products of many rows with small matrices: out[item] = a[item] W^T (+ bias) (+ residual).
//
// Shapes: items are the edges of a chunk or atoms; each has `span.rows` rows of `k` numbers for
// every span; W is `[n][k]`, one for all systems or one per system (mixed experts, heads per task).
// A tile of the grid is one piece of BM rows by BN columns of one span and one system.
//
// Arithmetic: f32 (IEEE, fused multiply-adds in the order of k), tf32 or fp16 operands with f32
// sums (matrix instructions, in the order of k). A result depends on its row and matrix alone,
// never on the tile, the grid or the other rows, bit for bit: each sum is made by one thread (f32)
// or one accumulator of the matrix unit, in order of k, whatever the tile sizes.
//
// Memory: `a` is read once for each BN columns of its span, mostly from the L2 cache because the
// tiles of one piece of rows are neighbours in the grid; W stays in L2; `out` is written once.
#include "gemm.h"
#include "mma.cuh"

// Words of the summed index in shared memory at a time, and the distance of rows: with 36 words
// the eight rows of a matrix load fall into different banks.
constexpr int STEP_WORDS = 32;
constexpr int ROW_WORDS = STEP_WORDS + 4;

__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
template <class T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ __half from_float<__half>(float x) {
    return __float2half_rn(x);
}

// How `a` becomes an operand.
enum class Operand {
    // As it lies in memory: f32, fp16, or f32 that whoever wrote it has rounded to tf32.
    Ready,
    // f32 that is rounded to tf32 in the loader.
    Rounded,
    // Through the gate, in the number type of memory.
    Gated,
    // Through the gate, then rounded to tf32.
    GatedRounded,
};
__host__ __device__ constexpr bool is_gated(Operand operand) {
    return operand == Operand::Gated || operand == Operand::GatedRounded;
}

// A number as an operand.
template <Operand OPERAND, class Element>
__device__ __forceinline__ Element as_operand(float x) {
    if constexpr (OPERAND == Operand::Rounded || OPERAND == Operand::GatedRounded) {
        return from_float<Element>(round_tf32(x));
    } else {
        return from_float<Element>(x);
    }
}

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

// Value `k` of a row through the gate.
template <class Stored>
__device__ __forceinline__ float gated_at(const GemmParams &p, const Stored *item, uint32_t k) {
    const uint32_t row = k / p.gate_channels, channel = k % p.gate_channels;
    const uint32_t degree = p.row_degree[row];
    const uint32_t gate = degree == 0 ? 0 : (degree - 1) * p.gate_channels + channel;
    return gated(degree, to_float(item[p.gate_values + k]), to_float(item[gate]));
}

// 16 bytes of values of one row through the gate, from `k` on.
template <Operand OPERAND, class Stored>
__device__ __forceinline__ uint4 gated_piece(const GemmParams &p, const Stored *item, uint32_t k) {
    constexpr int PIECE = 16 / sizeof(Stored);
    const uint32_t row = k / p.gate_channels, channel = k % p.gate_channels;
    const uint32_t degree = p.row_degree[row];
    const uint32_t gate = degree == 0 ? 0 : (degree - 1) * p.gate_channels + channel;
    uint4 values = *reinterpret_cast<const uint4 *>(item + p.gate_values + k);
    const uint4 gates = *reinterpret_cast<const uint4 *>(item + gate);
    Stored *value = reinterpret_cast<Stored *>(&values);
    const Stored *factor = reinterpret_cast<const Stored *>(&gates);
#pragma unroll
    for (int j = 0; j < PIECE; j++) {
        value[j] = as_operand<OPERAND, Stored>(
            gated(degree, to_float(value[j]), to_float(factor[j])));
    }
    return values;
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

// Stores `COLUMNS` neighbouring values of a row of the result; two at once where `paired`.
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
    if (COLUMNS == 2 && paired) {
        struct alignas(2 * sizeof(Out)) Pair {
            Out first, second;
        };
        *reinterpret_cast<Pair *>(to) =
            Pair{from_float<Out>(values[0]), from_float<Out>(values[COLUMNS - 1])};
        return;
    }
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) {
        if (column + j < span.n) {
            to[j] = from_float<Out>(values[j]);
        }
    }
}

// Whether neighbouring even and odd columns of the result may be stored as one.
__device__ __forceinline__ bool in_pairs(const GemmParams &p, const GemmSpan &span) {
    return ((p.out_stride | span.out_offset | span.n) & 1) == 0;
}

// ------------------------------------------------------------------- loading a step of words

// Fills `BM` rows of shared memory with words `first..first + STEP_WORDS` of the rows of `a`.
// Element: what `a` holds and what the words hold. ALIGNED: rows start at, and are a multiple of,
// 16 bytes.
template <int BM, int THREADS, class Element, bool ALIGNED, Operand OPERAND>
__device__ __forceinline__ void load_a(const GemmParams &p, const Place &place, uint32_t *shared,
                                       uint32_t first) {
    constexpr int PER_WORD = 4 / sizeof(Element);
    constexpr int PIECE = 16 / sizeof(Element); // elements copied at once
    const GemmSpan &span = place.span;
    const Element *a = static_cast<const Element *>(p.a);
    // Pieces on their way to the gate take registers that the sums need.
    [[maybe_unused]] constexpr int UNROLL =
        OPERAND == Operand::Ready ? BM * STEP_WORDS / 4 / THREADS : 1;
#pragma unroll UNROLL
    for (int i = threadIdx.x; i < BM * STEP_WORDS / 4; i += THREADS) {
        const uint32_t r = i / (STEP_WORDS / 4), piece = i % (STEP_WORDS / 4);
        const uint32_t row = place.row + r, k = (first + 4 * piece) * PER_WORD;
        uint32_t *to = shared + r * ROW_WORDS + 4 * piece;
        const bool inside = row < place.rows && k < span.k;
        const uint32_t local = item_of(span, row);
        const Element *item = a + (place.item + local) * p.a_stride;
        const uint32_t at = span.a_offset + (row - local * span.rows) * span.k + k;
        if constexpr (is_gated(OPERAND) && ALIGNED) {
            *reinterpret_cast<uint4 *>(to) =
                inside ? gated_piece<OPERAND>(p, item, at) : make_uint4(0, 0, 0, 0);
        } else if constexpr (is_gated(OPERAND)) {
            Element *elements = reinterpret_cast<Element *>(to);
            for (int j = 0; j < PIECE; j++) {
                elements[j] = as_operand<OPERAND, Element>(
                    inside && k + j < span.k ? gated_at(p, item, at + j) : 0.0f);
            }
        } else if constexpr (OPERAND == Operand::Rounded && ALIGNED) {
            float4 values = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (inside) {
                values = *reinterpret_cast<const float4 *>(item + at);
            }
            *reinterpret_cast<float4 *>(to) = make_float4(round_tf32(values.x), round_tf32(values.y),
                                                          round_tf32(values.z), round_tf32(values.w));
        } else if constexpr (OPERAND == Operand::Rounded) {
            Element *elements = reinterpret_cast<Element *>(to);
            for (int j = 0; j < PIECE; j++) {
                elements[j] = as_operand<OPERAND, Element>(
                    inside && k + j < span.k ? to_float(item[at + j]) : 0.0f);
            }
        } else if constexpr (ALIGNED) {
            copy_async_16(to, inside ? item + at : a, inside);
        } else {
            Element *elements = reinterpret_cast<Element *>(to);
            for (int j = 0; j < PIECE; j++) {
                elements[j] = inside && k + j < span.k ? item[at + j] : from_float<Element>(0.0f);
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

// ------------------------------------------------------------------- tensor cores

// WM x WN warps, each MT pieces of 16 rows by NT pieces of 8 columns.
template <class Kind, class Out, int WM, int WN, int MT, int NT, int STAGES, bool ALIGNED,
          Operand OPERAND>
__device__ __forceinline__ void product_on_tensor_cores(const GemmParams &p) {
    using Element = typename Kind::Element;
    constexpr int BM = WM * MT * 16, BN = WN * NT * 8, THREADS = WM * WN * 32;
    static_assert(NT % 2 == 0, "two pieces of columns are loaded at once");
    [[maybe_unused]] constexpr int UNROLL = OPERAND == Operand::Ready ? 4 : 2;
    constexpr int STAGE_WORDS = (BM + BN) * ROW_WORDS;
    DYNAMIC_SHARED(uint32_t, shared);

    Place place;
    if (!find_place<BM, BN, Element>(p, place)) {
        return;
    }
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warp_row = (warp / WN) * MT * 16, warp_column = (warp % WN) * NT * 8;
    const uint32_t words = (place.span.k + Kind::PER_WORD - 1) / Kind::PER_WORD;
    const int steps = (words + STEP_WORDS - 1) / STEP_WORDS;

    float sums[MT][NT][4] = {};
    auto load = [&](int step) {
        if (step < steps) {
            uint32_t *stage = shared + (step % STAGES) * STAGE_WORDS;
            load_a<BM, THREADS, Element, ALIGNED, OPERAND>(p, place, stage, step * STEP_WORDS);
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
        const uint32_t *b = a + BM * ROW_WORDS;
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
            multiply_add<Kind, MT, NT>(sums, left, right);
        }
    }
    const bool paired = in_pairs(p, place.span);
#pragma unroll
    for (int i = 0; i < MT; i++) {
#pragma unroll
        for (int j = 0; j < NT; j++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                finish<Out, 2>(p, place, paired,
                               place.row + warp_row + 16 * i + lane / 4 + 8 * half,
                               place.column + warp_column + 8 * j + 2 * (lane % 4),
                               sums[i][j] + 2 * half);
            }
        }
    }
}

// ------------------------------------------------------------------- IEEE f32

// 16 x 16 threads, each MR x NR results at distances of 16.
template <int MR, int NR, int STAGES, bool ALIGNED, Operand OPERAND>
__device__ __forceinline__ void product_in_f32(const GemmParams &p) {
    constexpr int BM = 16 * MR, BN = 16 * NR, THREADS = 256;
    constexpr int STAGE_WORDS = (BM + BN) * ROW_WORDS;
    DYNAMIC_SHARED(uint32_t, shared);

    Place place;
    if (!find_place<BM, BN, float>(p, place)) {
        return;
    }
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    const int steps = (place.span.k + STEP_WORDS - 1) / STEP_WORDS;
    float sums[MR][NR] = {};
    auto load = [&](int step) {
        if (step < steps) {
            uint32_t *stage = shared + (step % STAGES) * STAGE_WORDS;
            load_a<BM, THREADS, float, ALIGNED, OPERAND>(p, place, stage, step * STEP_WORDS);
            load_b<BN, THREADS, float, ALIGNED>(place, stage + BM * ROW_WORDS, step * STEP_WORDS);
        }
        copy_async_commit();
    };
    for (int step = 0; step < STAGES - 1; step++) {
        load(step);
    }
    for (int step = 0; step < steps; step++) {
        copy_async_wait<STAGES - 2>();
        __syncthreads();
        load(step + STAGES - 1);
        const uint32_t *words = shared + (step % STAGES) * STAGE_WORDS;
        const float *a = reinterpret_cast<const float *>(words);
        const float *b = a + BM * ROW_WORDS;
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
    }
#pragma unroll
    for (int i = 0; i < MR; i++) {
#pragma unroll
        for (int j = 0; j < NR; j++) {
            finish<float, 1>(p, place, false, place.row + ty + 16 * i, place.column + tx + 16 * j,
                             &sums[i][j]);
        }
    }
}

// ------------------------------------------------------------------- the kernels
//
// gemm_{f32,tf32,f32_as_tf32,f16,f16_f32}_{large,small,odd}[_gated]: number type of the operands in
// memory (and of the result where it differs), size of the tile or rows that are not 16-byte pieces,
// gated loader. tf32 are f32 that have been rounded already; of f32_as_tf32 only the matrices are.
// Tile sizes here and in src/backend/cuda/gemm.rs must agree.

#define TENSOR_KERNEL(NAME, KIND, OUT, WM, WN, MT, NT, STAGES, ALIGNED, OPERAND)                   \
    KERNEL_BOUNDS(NAME, GemmParams, WM *WN * 32, 2) {                                             \
        product_on_tensor_cores<KIND, OUT, WM, WN, MT, NT, STAGES, ALIGNED, OPERAND>(p);           \
    }
#define TENSOR_KERNELS(NAME, SUFFIX, KIND, OUT, OPERAND)                                           \
    TENSOR_KERNEL(gemm_##NAME##_large##SUFFIX, KIND, OUT, 2, 4, 4, 4, 3, true, OPERAND)            \
    TENSOR_KERNEL(gemm_##NAME##_small##SUFFIX, KIND, OUT, 1, 4, 2, 2, 4, true, OPERAND)            \
    TENSOR_KERNEL(gemm_##NAME##_odd##SUFFIX, KIND, OUT, 1, 4, 2, 2, 2, false, OPERAND)

TENSOR_KERNELS(tf32, , Tf32, float, Operand::Ready)
TENSOR_KERNELS(tf32, _gated, Tf32, float, Operand::GatedRounded)
TENSOR_KERNELS(f32_as_tf32, , Tf32, float, Operand::Rounded)
TENSOR_KERNELS(f16, , Fp16, __half, Operand::Ready)
TENSOR_KERNELS(f16, _gated, Fp16, __half, Operand::Gated)
TENSOR_KERNELS(f16_f32, , Fp16, float, Operand::Ready)
TENSOR_KERNELS(f16_f32, _gated, Fp16, float, Operand::Gated)

#define EXACT_KERNEL(NAME, MR, NR, STAGES, ALIGNED, OPERAND)                                       \
    KERNEL_BOUNDS(NAME, GemmParams, 256, 1) {                                                     \
        product_in_f32<MR, NR, STAGES, ALIGNED, OPERAND>(p);                                       \
    }
#define EXACT_KERNELS(SUFFIX, OPERAND)                                                             \
    EXACT_KERNEL(gemm_f32_large##SUFFIX, 8, 8, 3, true, OPERAND)                                   \
    EXACT_KERNEL(gemm_f32_small##SUFFIX, 2, 4, 4, true, OPERAND)                                   \
    EXACT_KERNEL(gemm_f32_odd##SUFFIX, 2, 4, 2, false, OPERAND)
EXACT_KERNELS(, Operand::Ready)
EXACT_KERNELS(_gated, Operand::Gated)
