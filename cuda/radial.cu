// The radial networks of the edges, but for their large products (gemm.cu).
//
//   radial_first              h = W g(d) + source_table[Z_s] + target_table[Z_t];  out = SiLU(LN(h))
//   radial_first_backward     d_bar = h_bar . dh/dd, h_bar from the gradient of out
//   layer_norm_silu(_backward) out = SiLU(LN(x))
//
// g_k = exp(c (d - k spacing)^2), k < basis; LN(x) = (x - mean) / sqrt(variance + 1e-5) weight +
// bias over the A values of a row. W is stored transposed, [basis][A]. Edge tensors are f32 before a
// norm; what a product writes is a Value, what it reads an Operand (f32 or f16); arithmetic is f32.
//
// Memory: radial_first reads nothing of size [edges][A] and writes its output only; its gradient
// computes h again rather than read it, and dh/dd = W g' beside it, so that the gradient with
// respect to g is never made. Rows of the tables and W come from the caches.
//
// A warp does some edges (radial_first) or one row (layer norms) at a time; a lane has the values
// (j * 32 + lane) * V .. + V of each row for j < J. Sums over a row are sums per lane, then a fixed
// tree over the lanes.
#include "numbers.cuh"
#include "params.h"

constexpr float EPSILON = 1e-5f;
constexpr int RADIAL_THREADS = 128;
// Gaussians of the edges in hand that are in shared memory at a time.
constexpr uint32_t BASIS_STEP = 32;

// The values of a row that a lane has.
template <int V, int J>
struct Row {
    float x[J][V];
};

// f(j, first value) for the parts of a row of this lane that exist.
template <int V, int J, class F>
__device__ __forceinline__ void for_each_part(uint32_t width, const F& f) {
    const uint32_t lane = threadIdx.x % WARP;
#pragma unroll
    for (int j = 0; j < J; j++) {
        const uint32_t column = (j * WARP + lane) * V;
        if (column < width) f(j, column);
    }
}

// Replaces a row by (x - mean) / sqrt(variance + eps); returns the factor. Values beyond the row
// must be 0 and stay so.
template <int V, int J>
__device__ __forceinline__ float normalise(Row<V, J>& row, uint32_t width) {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < J; j++) {
#pragma unroll
        for (int v = 0; v < V; v++) sum += row.x[j][v];
    }
    const float mean = warp_sum(sum) / float(width);
    float square = 0.0f;
    for_each_part<V, J>(width, [&](int j, uint32_t) {
#pragma unroll
        for (int v = 0; v < V; v++) {
            row.x[j][v] -= mean;
            square = fmaf(row.x[j][v], row.x[j][v], square);
        }
    });
    const float factor = rsqrtf(warp_sum(square) / float(width) + EPSILON);
#pragma unroll
    for (int j = 0; j < J; j++) {
#pragma unroll
        for (int v = 0; v < V; v++) row.x[j][v] *= factor;
    }
    return factor;
}

// Writes SiLU(z weight + bias) of a normalised row.
template <int V, int J, class Operand>
__device__ __forceinline__ void write_activated(const Row<V, J>& z, const float* weight,
                                                const float* bias, uint32_t width, Operand* out) {
    for_each_part<V, J>(width, [&](int j, uint32_t column) {
        float w[V], b[V], y[V];
        load(weight + column, w);
        load(bias + column, b);
#pragma unroll
        for (int v = 0; v < V; v++) y[v] = silu(fmaf(z.x[j][v], w[v], b[v]));
        store(out + column, y);
    });
}

// Turns the gradient of SiLU(z weight + bias) into that of z weight-free: g = out_bar silu' weight.
template <int V, int J, class Value>
__device__ __forceinline__ void read_gradient(const Row<V, J>& z, const float* weight,
                                              const float* bias, uint32_t width,
                                              const Value* gradient, Row<V, J>& g) {
#pragma unroll
    for (int j = 0; j < J; j++) {
#pragma unroll
        for (int v = 0; v < V; v++) g.x[j][v] = 0.0f;
    }
    for_each_part<V, J>(width, [&](int j, uint32_t column) {
        float w[V], b[V];
        load(weight + column, w);
        load(bias + column, b);
        load_written(gradient + column, g.x[j]);
#pragma unroll
        for (int v = 0; v < V; v++) {
            g.x[j][v] *= silu_slope(fmaf(z.x[j][v], w[v], b[v])) * w[v];
        }
    });
}

// Where a radial_first kernel finds its numbers: both parameter structures have them.
template <int V, int J, int EDGES, bool SLOPE, class Params>
__device__ __forceinline__ void first_layer(const Params& p, const RadialNetwork& network,
                                            uint64_t first, uint32_t count, float* shared,
                                            Row<V, J> (&h)[EDGES], Row<V, J> (&slope)[EDGES]) {
    const uint32_t lane = threadIdx.x % WARP, width = p.width;
    float distance[EDGES];
#pragma unroll
    for (int i = 0; i < EDGES; i++) {
#pragma unroll
        for (int j = 0; j < J; j++) {
#pragma unroll
            for (int v = 0; v < V; v++) h[i].x[j][v] = slope[i].x[j][v] = 0.0f;
        }
        // Edges beyond the last one repeat it: their results are not written.
        const uint64_t e = first + min(uint32_t(i), count - 1);
        distance[i] = __ldg(p.distance + e);
        const uint64_t source = __ldg(p.numbers + __ldg(p.source + e));
        const uint64_t target = __ldg(p.numbers + __ldg(p.target + e));
        for_each_part<V, J>(width, [&](int j, uint32_t column) {
            float a[V], b[V];
            load(network.source_table + source * width + column, a);
            load(network.target_table + target * width + column, b);
#pragma unroll
            for (int v = 0; v < V; v++) h[i].x[j][v] = a[v] + b[v];
        });
    }
    // [BASIS_STEP][EDGES] values, then as many slopes.
    for (uint32_t k0 = 0; k0 < p.basis; k0 += BASIS_STEP) {
        const uint32_t steps = min(BASIS_STEP, p.basis - k0);
        __syncwarp();
        if (lane < steps) {
            const float centre = float(k0 + lane);
#pragma unroll
            for (int i = 0; i < EDGES; i++) {
                const float x = fmaf(-centre, p.spacing, distance[i]);
                const float g = expf(p.exponent * x * x);
                shared[lane * EDGES + i] = g;
                if (SLOPE) shared[(BASIS_STEP + lane) * EDGES + i] = 2.0f * p.exponent * x * g;
            }
        }
        __syncwarp();
        for (uint32_t k = 0; k < steps; k++) {
            const float* const weight = network.weight + uint64_t(k0 + k) * width;
            for_each_part<V, J>(width, [&](int j, uint32_t column) {
                float w[V];
                load(weight + column, w);
#pragma unroll
                for (int i = 0; i < EDGES; i++) {
                    const float g = shared[k * EDGES + i];
#pragma unroll
                    for (int v = 0; v < V; v++) {
                        h[i].x[j][v] = fmaf(w[v], g, h[i].x[j][v]);
                    }
                    if (SLOPE) {
                        const float s = shared[(BASIS_STEP + k) * EDGES + i];
#pragma unroll
                        for (int v = 0; v < V; v++) {
                            slope[i].x[j][v] = fmaf(w[v], s, slope[i].x[j][v]);
                        }
                    }
                }
            });
        }
    }
}

// Grid: (edges of the capacity / (4 EDGES), networks).
template <int V, int J, int EDGES, class Operand>
__device__ __forceinline__ void radial_first(const RadialFirstParams& p) {
    __shared__ float shared[RADIAL_THREADS / WARP * BASIS_STEP * EDGES];
    const Chunk chunk = *p.chunk;
    const uint32_t warp = threadIdx.x / WARP;
    const uint64_t first =
        chunk.edge_begin +
        (uint64_t(blockIdx.x) * (RADIAL_THREADS / WARP) + warp) * EDGES;
    if (first >= chunk.edge_end) return;
    const uint32_t count = uint32_t(min(uint64_t(EDGES), chunk.edge_end - first));
    const RadialNetwork network = p.networks[blockIdx.y];
    Operand* const out = static_cast<Operand*>(p.out) + blockIdx.y * p.out_stride;
    Row<V, J> h[EDGES], unused[EDGES];
    first_layer<V, J, EDGES, false>(p, network, first, count,
                                    shared + warp * BASIS_STEP * EDGES, h, unused);
#pragma unroll
    for (int i = 0; i < EDGES; i++) {
        if (uint32_t(i) < count) {
            normalise(h[i], p.width);
            write_activated(h[i], network.norm_weight, network.norm_bias, p.width,
                            out + (first + i - chunk.edge_begin) * p.width);
        }
    }
}

// Grid: (edges of the capacity / (4 EDGES), networks).
template <int V, int J, int EDGES, class Value>
__device__ __forceinline__ void radial_first_backward(const RadialFirstBackwardParams& p) {
    __shared__ float shared[RADIAL_THREADS / WARP * 2 * BASIS_STEP * EDGES];
    const Chunk chunk = *p.chunk;
    const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const uint64_t first =
        chunk.edge_begin +
        (uint64_t(blockIdx.x) * (RADIAL_THREADS / WARP) + warp) * EDGES;
    if (first >= chunk.edge_end) return;
    const uint32_t count = uint32_t(min(uint64_t(EDGES), chunk.edge_end - first));
    const float n = 1.0f / float(p.width);
    const RadialNetwork network = p.networks[blockIdx.y];
    const Value* const gradient =
        static_cast<const Value*>(p.gradient) + blockIdx.y * p.gradient_stride;
    Row<V, J> h[EDGES], slope[EDGES];
    first_layer<V, J, EDGES, true>(p, network, first, count,
                                   shared + warp * 2 * BASIS_STEP * EDGES, h, slope);
#pragma unroll
    for (int i = 0; i < EDGES; i++) {
        if (uint32_t(i) >= count) continue;
        const uint64_t e = first + i;
        const float factor = normalise(h[i], p.width);
        Row<V, J> g;
        read_gradient(h[i], network.norm_weight, network.norm_bias, p.width,
                      gradient + (e - chunk.edge_begin) * p.width, g);
        // d_bar = sum factor (g - mean(g) - z mean(g z)) slope
        float sums[5] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int j = 0; j < J; j++) {
#pragma unroll
            for (int v = 0; v < V; v++) {
                const float gradient = g.x[j][v], z = h[i].x[j][v], s = slope[i].x[j][v];
                sums[0] += gradient;
                sums[1] = fmaf(gradient, z, sums[1]);
                sums[2] = fmaf(gradient, s, sums[2]);
                sums[3] += s;
                sums[4] = fmaf(z, s, sums[4]);
            }
        }
#pragma unroll
        for (int k = 0; k < 5; k++) sums[k] = warp_sum(sums[k]);
        if (lane == 0) {
            const float change =
                factor * (sums[2] - sums[0] * n * sums[3] - sums[1] * n * sums[4]);
            const uint64_t at = blockIdx.y * p.edge_stride + e;
            const float scale = p.gradient_scale ? p.gradient_scale[at] : 1.0f;
            p.d_distance[at] = change / scale;
        }
    }
}

// Grid: edges of the capacity / 4.
template <int V, int J, class Operand>
__device__ __forceinline__ void layer_norm_silu(const LayerNormSiluParams& p) {
    const Chunk chunk = *p.chunk;
    const uint64_t row =
        uint64_t(blockIdx.x) * (RADIAL_THREADS / WARP) + threadIdx.x / WARP;
    if (row >= chunk.edge_end - chunk.edge_begin) return;
    Row<V, J> x = {};
    for_each_part<V, J>(p.width, [&](int j, uint32_t column) {
        load(p.x + row * p.width + column, x.x[j]);
    });
    normalise(x, p.width);
    write_activated(x, p.weight, p.bias, p.width, static_cast<Operand*>(p.out) + row * p.width);
}

// x_bar = factor (g - mean(g) - z mean(g z)). Grid: edges of the capacity / 4.
template <int V, int J, class Value, class Operand>
__device__ __forceinline__ void layer_norm_silu_backward(const LayerNormSiluBackwardParams& p) {
    const Chunk chunk = *p.chunk;
    const uint64_t row =
        uint64_t(blockIdx.x) * (RADIAL_THREADS / WARP) + threadIdx.x / WARP;
    if (row >= chunk.edge_end - chunk.edge_begin) return;
    const float n = 1.0f / float(p.width);
    Row<V, J> z = {}, g;
    for_each_part<V, J>(p.width, [&](int j, uint32_t column) {
        load(p.x + row * p.width + column, z.x[j]);
    });
    const float factor = normalise(z, p.width);
    read_gradient(z, p.weight, p.bias, p.width,
                  static_cast<const Value*>(p.gradient) + row * p.width, g);
    float sum = 0.0f, along = 0.0f;
#pragma unroll
    for (int j = 0; j < J; j++) {
#pragma unroll
        for (int v = 0; v < V; v++) {
            sum += g.x[j][v];
            along = fmaf(g.x[j][v], z.x[j][v], along);
        }
    }
    sum = warp_sum(sum) * n;
    along = warp_sum(along) * n;
    Operand* const out = static_cast<Operand*>(p.x_gradient) + row * p.width;
    for_each_part<V, J>(p.width, [&](int j, uint32_t column) {
        float x_bar[V];
#pragma unroll
        for (int v = 0; v < V; v++) {
            x_bar[v] = factor * (g.x[j][v] - sum - z.x[j][v] * along);
        }
        store(out + column, x_bar);
    });
}

// Rows of a multiple of 4 values up to 128, up to 512, and of any number up to 1,024. The suffix names
// Value and Operand: f32 both, f16 both, mix f32 and f16; kernels with one of them need no mix.
#define RADIAL_KERNELS(TYPE, SUFFIX, V, J, EDGES, BACKWARD_EDGES) \
    KERNEL_BOUNDS(radial_first_##SUFFIX, RadialFirstParams, RADIAL_THREADS, 1) { \
        radial_first<V, J, EDGES, TYPE>(p); \
    } \
    KERNEL_BOUNDS(radial_first_backward_##SUFFIX, RadialFirstBackwardParams, RADIAL_THREADS, 1) { \
        radial_first_backward<V, J, BACKWARD_EDGES, TYPE>(p); \
    } \
    KERNEL_BOUNDS(layer_norm_silu_##SUFFIX, LayerNormSiluParams, RADIAL_THREADS, 1) { \
        layer_norm_silu<V, J, TYPE>(p); \
    }
#define NORM_BACKWARD_KERNELS(VALUE, OPERAND, NAME) \
    NORM_BACKWARD_KERNEL(VALUE, OPERAND, NAME##_128, 4, 1) \
    NORM_BACKWARD_KERNEL(VALUE, OPERAND, NAME##_512, 4, 4) \
    NORM_BACKWARD_KERNEL(VALUE, OPERAND, NAME##_any, 1, 32)
#define NORM_BACKWARD_KERNEL(VALUE, OPERAND, SUFFIX, V, J) \
    KERNEL_BOUNDS(layer_norm_silu_backward_##SUFFIX, LayerNormSiluBackwardParams, RADIAL_THREADS, \
                  1) { \
        layer_norm_silu_backward<V, J, VALUE, OPERAND>(p); \
    }

RADIAL_KERNELS(float, f32_128, 4, 1, 8, 4)
RADIAL_KERNELS(float, f32_512, 4, 4, 2, 1)
RADIAL_KERNELS(float, f32_any, 1, 32, 1, 1)
RADIAL_KERNELS(__half, f16_128, 4, 1, 8, 4)
RADIAL_KERNELS(__half, f16_512, 4, 4, 2, 1)
RADIAL_KERNELS(__half, f16_any, 1, 32, 1, 1)
NORM_BACKWARD_KERNELS(float, float, f32)
NORM_BACKWARD_KERNELS(float, __half, mix)
NORM_BACKWARD_KERNELS(__half, __half, f16)
