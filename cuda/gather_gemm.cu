// The last layer of a radial network and what it is for, in one kernel:
//
//     radial = a W^T + bias;   gathered = radial ⊙ D [x_s | x_t]
//
// Shapes: items are the edges of a chunk; radial[edges][radial rows][2C] is stored where `product.out`
// is not null, gathered[edges][R][2C] always; x[N][S][C] f32 in L-order, packed Wigner matrices D as
// in rotate.cu, whose gather_rotate_scale makes the same numbers bit for bit from a stored `radial`.
//
// Memory: radial numbers are many (6 of 9 rows of an edge for l <= 2). Here they pass from the sums of
// the product through shared memory to their only use in the forward pass, so that they are written at
// most once and never read. A warp has one row of an edge at a time: rows of x (from the caches), of
// `radial` and of `gathered` are accesses of neighbouring lanes to neighbouring addresses.
#include "gemm.cuh"

// Takes the sums of a block of BM x BN to shared memory, and does the rest from there. Value: how the
// radial numbers lie in memory; Gathered: what the next product reads.
template <int BM, int BN, int THREADS, class Value, class Gathered> struct GatherRows {
    const GatherGemmParams &p;
    float *sums = nullptr;

    static constexpr int STRIDE = BN + 4;

    __device__ __forceinline__ void begin(const Place &, uint32_t *shared) {
        // The operands that lie there have been used by all.
        __syncthreads();
        sums = reinterpret_cast<float *>(shared);
    }

    template <int COLUMNS>
    __device__ __forceinline__ void take(const Place &place, uint32_t row, uint32_t column,
                                         const float *values) {
        float *to = sums + (row - place.row) * STRIDE + (column - place.column);
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) {
            to[j] = values[j];
        }
    }

    __device__ __forceinline__ void end(const Place &place) {
        __syncthreads();
        if (p.channels % 4 == 0) {
            rows<4>(place);
        } else {
            rows<1>(place);
        }
    }

    // out = row of D times x, for +m and, where it is another, for -m.
    template <int N, int V>
    __device__ __forceinline__ void rotate(const float *wigner, const RadialRow &row,
                                           const float *x, float (&plus)[V], float (&minus)[V]) {
        float values[N][V];
#pragma unroll
        for (int j = 0; j < N; j++) {
            load(x + j * p.channels, values[j]);
        }
#pragma unroll
        for (int j = 0; j < N; j++) {
            add<V>(j == 0, __ldg(wigner + row.wigner + j), values[j], plus);
        }
        if (row.order > 0) {
#pragma unroll
            for (int j = 0; j < N; j++) {
                add<V>(j == 0, __ldg(wigner + row.minus_wigner + j), values[j], minus);
            }
        }
    }

    template <int V>
    static __device__ __forceinline__ void add(bool first, float d, const float (&x)[V],
                                               float (&sum)[V]) {
#pragma unroll
        for (int v = 0; v < V; v++) {
            sum[v] = first ? d * x[v] : fmaf(d, x[v], sum[v]);
        }
    }

    template <int V> __device__ __forceinline__ void rows(const Place &place) {
        const GemmParams &product = p.product;
        const uint32_t width = 2 * p.channels;
        const uint32_t count = min(uint32_t(BM), place.rows - place.row);
        const uint32_t pieces = min(uint32_t(BN), place.span.n - place.column) / V;
        const uint64_t first = *product.first_item;
        for (uint32_t i = threadIdx.x; i < count * pieces; i += THREADS) {
            const uint32_t r = i / pieces, column = i % pieces * V;
            const uint32_t at = place.column + column, within = at % width;
            const RadialRow row = p.rows[at / width];
            const uint32_t half = within / p.channels, channel = within % p.channels;
            const uint64_t item = place.item + place.row + r, edge = item + first;
            float scale[V];
#pragma unroll
            for (int v = 0; v < V; v++) {
                scale[v] = sums[r * STRIDE + column + v] +
                           product.bias[place.span.bias_offset + at + v];
                // The backward pass reads the number as it is stored.
                scale[v] = to_float(from_float<Value>(scale[v]));
            }
            if (product.out) {
                store(static_cast<Value *>(product.out) + item * product.out_stride + at, scale);
            }
            const uint64_t atom = __ldg((half ? p.target : p.source) + edge);
            const float *const x =
                p.x + (atom * p.atom_rows + row.degree * row.degree) * p.channels + channel;
            const float *const wigner = p.wigner + edge * p.wigner_len;
            float plus[V] = {}, minus[V] = {};
            switch (row.degree) {
            case 0:
                rotate<1, V>(wigner, row, x, plus, minus);
                break;
            case 1:
                rotate<3, V>(wigner, row, x, plus, minus);
                break;
            case 2:
                rotate<5, V>(wigner, row, x, plus, minus);
                break;
            default:
                for (uint32_t j = 0; j < 2 * row.degree + 1; j++) {
                    float value[V];
                    load(x + j * p.channels, value);
                    add<V>(j == 0, __ldg(wigner + row.wigner + j), value, plus);
                    if (row.order > 0) {
                        add<V>(j == 0, __ldg(wigner + row.minus_wigner + j), value, minus);
                    }
                }
            }
            Gathered *const out =
                static_cast<Gathered *>(p.gathered) + item * p.edge_rows * width + within;
#pragma unroll
            for (int v = 0; v < V; v++) {
                plus[v] *= scale[v];
            }
            store(out + row.row * width, plus);
            if (row.order > 0) {
#pragma unroll
                for (int v = 0; v < V; v++) {
                    minus[v] *= scale[v];
                }
                store(out + row.minus_row * width, minus);
            }
        }
    }
};

// gather_gemm_{f32,f16,f16_f32}_{large,small,odd}: as the products of gemm.cu without `gather_`.

#define TENSOR_KERNEL(NAME, VALUE, WM, WN, MT, NT, STAGES, ALIGNED)                                \
    KERNEL_BOUNDS(NAME, GatherGemmParams, WM *WN * 32, 2) {                                       \
        using Rows = GatherRows<WM * MT * 16, WN * NT * 8, WM * WN * 32, VALUE, __half>;           \
        product_on_tensor_cores<__half, WM, WN, MT, NT, STAGES, ALIGNED, Operand::Ready>(    \
            p.product, Rows{p});                                                                   \
    }
#define TENSOR_KERNELS(NAME, VALUE)                                                                \
    TENSOR_KERNEL(gather_gemm_##NAME##_large, VALUE, 2, 4, 4, 4, 3, true)                          \
    TENSOR_KERNEL(gather_gemm_##NAME##_small, VALUE, 1, 4, 2, 2, 4, true)                          \
    TENSOR_KERNEL(gather_gemm_##NAME##_odd, VALUE, 1, 4, 2, 2, 2, false)

TENSOR_KERNELS(f16, __half)
TENSOR_KERNELS(f16_f32, float)

#define EXACT_KERNEL(NAME, MR, NR, STAGES, ALIGNED)                                                \
    KERNEL_BOUNDS(NAME, GatherGemmParams, 256, 1) {                                               \
        using Rows = GatherRows<16 * MR, 16 * NR, 256, float, float>;                              \
        product_in_f32<MR, NR, STAGES, ALIGNED>(p.product, Rows{p});                               \
    }
EXACT_KERNEL(gather_gemm_f32_large, 8, 8, 3, true)
EXACT_KERNEL(gather_gemm_f32_small, 2, 4, 4, true)
EXACT_KERNEL(gather_gemm_f32_odd, 2, 4, 2, false)
