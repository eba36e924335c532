// What is done on atoms alone, but for products (gemm.cu) and gates (gate.cu). All f32.
//
//   embed_atoms          out[i][0] = table[Z_i] + conditioning[system], other rows 0
//   rms_norm             z = x with row 0 less its mean over the channels,
//                        s = (mean over channels of sum over rows w z^2 + 1e-5)^(-1/2),
//                        out = z s weight[l] (+ bias, + conditioning in row 0), w = 1/((2l+1)(lmax+1))
//   rms_norm_backward    h = out_bar ⊙ weight: z_bar = s h - s^3 / C (sum h z) w z; row 0 loses its mean
//   balance              x[i][0][c] -= (sum over the system - wanted) / atoms, in place; self-adjoint
//   silu_rows, add_nodes elementwise
//
// Shapes: x[N][S][C], conditioning[systems][C], weight[lmax + 1][C].
//
// Memory: every array is read once from memory (norms read their atom again from the caches) and
// written once. A norm has one block per atom; its sums are sums per thread over fixed places,
// then a fixed tree.
#include "numbers.cuh"
#include "params.h"

constexpr float EPSILON = 1e-5f;
constexpr int NORM_THREADS = 128;
constexpr int BALANCE_THREADS = 1024;

// Sums over the block of COUNT numbers, the same for all threads; all threads must come here.
template <int COUNT>
__device__ __forceinline__ void block_sums(float (&values)[COUNT]) {
    __shared__ float parts[COUNT][NORM_THREADS / WARP];
#pragma unroll
    for (int i = 0; i < COUNT; i++) values[i] = warp_sum(values[i]);
    __syncthreads();
    if (threadIdx.x % WARP == 0) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) parts[i][threadIdx.x / WARP] = values[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        values[i] = 0.0f;
        for (int w = 0; w < NORM_THREADS / WARP; w++) values[i] += parts[i][w];
    }
}

template <int V>
__device__ __forceinline__ void add_up(const float (&x)[V], float& sum) {
#pragma unroll
    for (int v = 0; v < V; v++) sum += x[v];
}

// f(degree, first value) for the values of an atom that this thread has.
template <int V, class F>
__device__ __forceinline__ void for_each_value(uint32_t channels, uint32_t lmax, const F& f) {
    for (uint32_t l = 0; l <= lmax; l++) {
        const uint32_t end = (l + 1) * (l + 1) * channels;
        for (uint32_t i = l * l * channels + threadIdx.x * V; i < end; i += NORM_THREADS * V) {
            f(l, i);
        }
    }
}

// Mean of row 0 and s.
template <int V>
__device__ __forceinline__ void statistics(const float* x, uint32_t channels, uint32_t lmax,
                                           float& mean, float& scale) {
    const float n = 1.0f / float(channels);
    float sum[1] = {0.0f};
    for (uint32_t c = threadIdx.x * V; c < channels; c += NORM_THREADS * V) {
        float value[V];
        load_written(x + c, value);
        add_up(value, sum[0]);
    }
    block_sums(sum);
    mean = sum[0] * n;
    // The centred values are squared, not the difference of large squares taken.
    float square[1] = {0.0f};
    for_each_value<V>(channels, lmax, [&](uint32_t l, uint32_t i) {
        float value[V], part = 0.0f;
        load_written(x + i, value);
#pragma unroll
        for (int v = 0; v < V; v++) {
            const float z = l == 0 ? value[v] - mean : value[v];
            part = fmaf(z, z, part);
        }
        square[0] = fmaf(part, 1.0f / float((2 * l + 1) * (lmax + 1)), square[0]);
    });
    block_sums(square);
    scale = rsqrtf(fmaf(square[0], n, EPSILON));
}

template <int V>
__device__ __forceinline__ void rms_norm_of(const RmsNormParams& p, uint64_t atom) {
    const uint64_t at = atom * (p.lmax + 1) * (p.lmax + 1) * p.channels;
    const float* const x = p.x + at;
    float* const out = p.out + at;
    float mean, scale;
    statistics<V>(x, p.channels, p.lmax, mean, scale);
    const float* const conditioning =
        p.conditioning ? p.conditioning + uint64_t(p.atom_system[atom]) * p.channels : nullptr;
    for_each_value<V>(p.channels, p.lmax, [&](uint32_t l, uint32_t i) {
        float value[V], weight[V];
        const uint32_t c = i % p.channels;
        load_written(x + i, value);
        load(p.weight + l * p.channels + c, weight);
        if (l == 0) {
            float bias[V];
            load(p.bias + c, bias);
#pragma unroll
            for (int v = 0; v < V; v++) {
                value[v] = fmaf((value[v] - mean) * scale, weight[v], bias[v]);
            }
            if (conditioning) {
                load(conditioning + c, bias);
#pragma unroll
                for (int v = 0; v < V; v++) value[v] += bias[v];
            }
        } else {
#pragma unroll
            for (int v = 0; v < V; v++) value[v] = value[v] * scale * weight[v];
        }
        store(out + i, value);
    });
}

// Grid: atoms of the capacity.
KERNEL_BOUNDS(rms_norm, RmsNormParams, NORM_THREADS, 1) {
    const Chunk chunk = *p.chunk;
    const uint64_t atom = uint64_t(chunk.atom_begin) + blockIdx.x;
    if (atom >= chunk.atom_end) return;
    if (p.channels % 4 == 0) {
        rms_norm_of<4>(p, atom);
    } else {
        rms_norm_of<1>(p, atom);
    }
}

// The gradient of the output: one array, or two that are added.
template <int V>
__device__ __forceinline__ void load_gradient(const float* first, const float* second, uint32_t i,
                                              float (&value)[V]) {
    load_written(first + i, value);
    if (second) {
        float more[V];
        load_written(second + i, more);
#pragma unroll
        for (int v = 0; v < V; v++) value[v] += more[v];
    }
}

template <int V>
__device__ __forceinline__ void rms_norm_backward_of(const RmsNormBackwardParams& p,
                                                     uint64_t atom) {
    const uint64_t at = atom * (p.lmax + 1) * (p.lmax + 1) * p.channels;
    const float* const x = p.x + at;
    const float* const out_bar = p.gradient + at;
    const float* const second_bar = p.second_gradient ? p.second_gradient + at : nullptr;
    float* const x_bar = p.x_gradient + at;
    const float n = 1.0f / float(p.channels);
    float mean, scale;
    statistics<V>(x, p.channels, p.lmax, mean, scale);
    // sum h z; of row 0: sum h, sum z
    float sums[3] = {0.0f, 0.0f, 0.0f};
    for_each_value<V>(p.channels, p.lmax, [&](uint32_t l, uint32_t i) {
        float z[V], h[V], weight[V];
        load_written(x + i, z);
        load_gradient(out_bar, second_bar, i, h);
        load(p.weight + l * p.channels + i % p.channels, weight);
#pragma unroll
        for (int v = 0; v < V; v++) {
            h[v] *= weight[v];
            if (l == 0) z[v] -= mean;
            sums[0] = fmaf(h[v], z[v], sums[0]);
        }
        if (l == 0) {
            add_up(h, sums[1]);
            add_up(z, sums[2]);
        }
    });
    block_sums(sums);
    const float shared = scale * scale * scale * sums[0] * n;
    const float centre =
        (scale * sums[1] - shared / float(p.lmax + 1) * sums[2]) * n;
    for_each_value<V>(p.channels, p.lmax, [&](uint32_t l, uint32_t i) {
        float z[V], h[V], weight[V], before[V] = {};
        load_written(x + i, z);
        load_gradient(out_bar, second_bar, i, h);
        load(p.weight + l * p.channels + i % p.channels, weight);
        if (p.accumulate) load_written(x_bar + i, before);
        const float factor = shared / float((2 * l + 1) * (p.lmax + 1));
#pragma unroll
        for (int v = 0; v < V; v++) {
            float value = scale * (h[v] * weight[v]);
            value = l == 0 ? fmaf(-factor, z[v] - mean, value) - centre
                           : fmaf(-factor, z[v], value);
            h[v] = before[v] + value;
        }
        store(x_bar + i, h);
    });
}

// Grid: atoms of the capacity.
KERNEL_BOUNDS(rms_norm_backward, RmsNormBackwardParams, NORM_THREADS, 1) {
    const Chunk chunk = *p.chunk;
    const uint64_t atom = uint64_t(chunk.atom_begin) + blockIdx.x;
    if (atom >= chunk.atom_end) return;
    if (p.channels % 4 == 0) {
        rms_norm_backward_of<4>(p, atom);
    } else {
        rms_norm_backward_of<1>(p, atom);
    }
}

// Grid: atoms of the capacity; one block an atom.
KERNEL(embed_atoms, EmbedAtomsParams) {
    const Chunk chunk = *p.chunk;
    const uint64_t atom = uint64_t(chunk.atom_begin) + blockIdx.x;
    if (atom >= chunk.atom_end) return;
    const float* const table = p.table + uint64_t(p.numbers[atom]) * p.channels;
    const float* const conditioning =
        p.conditioning + uint64_t(p.atom_system[atom]) * p.channels;
    float* const out = p.out + atom * p.rows * p.channels;
    for (uint32_t i = threadIdx.x; i < p.rows * p.channels; i += blockDim.x) {
        out[i] = i < p.channels ? table[i] + conditioning[i] : 0.0f;
    }
}

// One block of BALANCE_THREADS threads per system.
KERNEL_BOUNDS(balance, BalanceParams, BALANCE_THREADS, 1) {
    __shared__ double parts[BALANCE_THREADS / WARP];
    const uint32_t system = blockIdx.x;
    if (system >= p.systems) return;
    const uint64_t begin = p.atom_start[system], end = p.atom_start[system + 1];
    for (uint32_t range = 0; range < p.ranges; range++) {
        const float* const of_systems = p.wanted[range];
        const double wanted = of_systems ? double(of_systems[system]) : 0.0;
        for (uint32_t k = 0; k < p.count[range]; k++) {
            float* const x = p.x + p.first[range] + k;
            double sum = 0.0;
            for (uint64_t atom = begin + threadIdx.x; atom < end; atom += blockDim.x) {
                sum += double(x[atom * p.width]);
            }
            sum = warp_sum(sum);
            // The parts of the channel before have been read by all.
            __syncthreads();
            if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = sum;
            __syncthreads();
            double total = 0.0;
            for (uint32_t w = 0; w < blockDim.x / WARP; w++) total += parts[w];
            const float shift = end > begin ? float((total - wanted) / double(end - begin)) : 0.0f;
            // Every thread changes what it alone has read.
            for (uint64_t atom = begin + threadIdx.x; atom < end; atom += blockDim.x) {
                x[atom * p.width] -= shift;
            }
        }
    }
}

// f(first value) for all values of the chunk's atoms: four at a time where they are aligned, then
// one at a time. Grid-stride.
template <class Four, class One>
__device__ __forceinline__ void for_each_row_value(const Chunk* chunk, uint32_t width,
                                                   const Four& four, const One& one) {
    const uint64_t begin = uint64_t(chunk->atom_begin) * width;
    const uint64_t end = uint64_t(chunk->atom_end) * width;
    const uint64_t stride = uint64_t(gridDim.x) * blockDim.x;
    const uint64_t thread = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (width % 4 == 0) {
        for (uint64_t i = begin + 4 * thread; i < end; i += 4 * stride) four(i);
    } else {
        for (uint64_t i = begin + thread; i < end; i += stride) one(i);
    }
}

KERNEL(silu_rows, SiluRowsParams) {
    for_each_row_value(
        p.chunk, p.width,
        [&](uint64_t i) {
            float x[4];
            load_written(p.x + i, x);
#pragma unroll
            for (int v = 0; v < 4; v++) x[v] = silu(x[v]);
            store(p.out + i, x);
        },
        [&](uint64_t i) { p.out[i] = silu(p.x[i]); });
}

KERNEL(silu_rows_backward, SiluRowsBackwardParams) {
    for_each_row_value(
        p.chunk, p.width,
        [&](uint64_t i) {
            float x[4], bar[4], before[4] = {};
            load_written(p.x + i, x);
            load_written(p.gradient + i, bar);
            if (p.accumulate) load_written(p.x_gradient + i, before);
#pragma unroll
            for (int v = 0; v < 4; v++) bar[v] = before[v] + bar[v] * silu_slope(x[v]);
            store(p.x_gradient + i, bar);
        },
        [&](uint64_t i) {
            const float before = p.accumulate ? p.x_gradient[i] : 0.0f;
            p.x_gradient[i] = before + p.gradient[i] * silu_slope(p.x[i]);
        });
}

KERNEL(add_nodes, AddNodesParams) {
    for_each_row_value(
        p.chunk, p.width,
        [&](uint64_t i) {
            float x[4], y[4];
            load_written(p.x + i, x);
            load_written(p.y + i, y);
#pragma unroll
            for (int v = 0; v < 4; v++) y[v] += x[v];
            store(p.y + i, y);
        },
        [&](uint64_t i) { p.y[i] += p.x[i]; });
}
