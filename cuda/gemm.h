// Parameters of the matrix products and of the mixing of experts. Plain C++: also read by the host
// build; mirrored in src/backend/cuda/params.rs.
#pragma once
#include "params.h"

#include <cstdint>

// One block of columns of a product: out[.., out_offset + n] = sum over k of
// a[.., a_offset + k] W[n][k], for 0 <= n < `n`. A product of several blocks (one for each order m
// of an SO(2) map, one for each degree of an SO(3) map) is one launch.
struct GemmSpan {
    // First element of this block in a row's memory, of `a` and of `out`.
    uint32_t a_offset;
    uint32_t out_offset;
    // Columns of W (summed over) and rows of W (columns of the result).
    uint32_t k;
    uint32_t n;
    // Rows of the product for each item (edge or atom): row j of an item starts `j * k` elements
    // after its `a_offset` and `j * n` after its `out_offset`.
    uint32_t rows;
    // Index of the bias of column 0, or GEMM_NO_BIAS.
    uint32_t bias_offset;
    // First element of W after the base pointer.
    uint64_t weight_offset;
    // Blocks of the grid before those of this span, and tiles across its columns.
    uint32_t first_block;
    uint32_t column_tiles;
};

#define GEMM_MAX_SPANS 8
#define GEMM_NO_BIAS 0xffffffffu

enum GemmFlags : uint32_t {
    // After the bias: `out` = SiLU(value), and `pre` = value.
    GEMM_SILU = 1,
    // out += value instead of out = value.
    GEMM_ACCUMULATE = 2,
};

// out[item] = a[item] W^T + bias (+ residual[item]).
struct GemmParams {
    // Items, row-major.
    const void *a;
    // The matrices `[n][k]` when all systems share them.
    const void *weights;
    // Base pointer of the matrices of each system otherwise, else null.
    const uint64_t *weight_table;
    const float *bias;
    // Same shape as out, or null.
    const float *residual;
    void *out;
    // Same shape as out: what SiLU was applied to, or null.
    float *pre;
    // Rows [begin, end) of one system each.
    const Tile *tiles;
    // Number of tiles.
    const uint32_t *tile_count;
    // Item whose row is first in `a` and `out` (in memory), or null for 0.
    const uint32_t *first_item;
    // Elements from one item to the next.
    uint64_t a_stride;
    uint64_t out_stride;
    uint64_t residual_stride;
    uint32_t flags;
    uint32_t spans;
    // Where the result passes the gate too: `out` is [gates | rows] of an item, whose gates have been
    // stored before; channels H of a row, number of gates.
    uint32_t gate_channels;
    uint32_t gate_values;
    // Degree of each row, `[rows]`.
    const uint32_t *row_degree;
    // The gated rows, Operand, written.
    void *gated;
    uint64_t gated_stride;
    GemmSpan span[GEMM_MAX_SPANS];
};

// One radial row: what it scales.
struct RadialRow {
    // l.
    uint32_t degree;
    // m >= 0.
    uint32_t order;
    // First number of the rows +m and -m of D_l in a packed Wigner matrix, each 2l + 1 numbers.
    uint32_t wigner;
    uint32_t minus_wigner;
    // Edge rows (l, m) and (l, -m); both the same for m = 0.
    uint32_t row;
    uint32_t minus_row;
};

// radial = a W^T + bias, gathered = radial ⊙ D [x(source) | x(target)].
struct GatherGemmParams {
    // One span of one row for each item; `out` is `[edges][radial rows][2C]` Value, or null.
    GemmParams product;
    // `[E]`
    const uint32_t *source;
    // `[E]`
    const uint32_t *target;
    // `[E][W]`
    const float *wigner;
    // `[N][S][C]`
    const float *x;
    // `[edges][R][2C]` Operand, written.
    void *gathered;
    // `[radial rows]`
    const RadialRow *rows;
    // C.
    uint32_t channels;
    // W.
    uint32_t wigner_len;
    // S.
    uint32_t atom_rows;
    // R.
    uint32_t edge_rows;
};

// Mixes experts: W = sum over experts of coefficient[x] expert[x], for several systems at once,
// and lays the result out for the forward product and for its transpose.
struct MixParams {
    // `[experts][rows][columns]`
    const float *experts;
    // `[systems][experts]`
    const double *coefficients;
    // Base pointers of the mixed weights of each system.
    const uint64_t *bases;
    // Where in each system's memory the matrix and its transpose start, elements.
    uint64_t forward_offset;
    uint64_t backward_offset;
    uint32_t expert_count;
    uint32_t systems;
    // Shape of one expert: for a complex map the upper half of the rows is the real part, the
    // lower half the imaginary part, and what is written is [[A, -B], [B, A]].
    uint32_t rows;
    uint32_t columns;
    uint32_t complex_map;
    uint32_t pad;
};
