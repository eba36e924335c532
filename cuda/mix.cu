// Mixing of experts, and the layouts in which the matrix products read their weights.
//
// W[system] = sum over x of coefficient[system][x] expert[x], summed in f64 in the order of x.
// Memory: every expert is read once per system (neighbouring systems find it in the L2 cache);
// matrix and transpose are written once. A complex map (A + iB) is written as the real matrix
// [[A, -B], [B, A]], which makes one product of what were four.
#include "device.cuh"
#include "gemm.h"

// Number types of the matrices.
struct AsF32 {
    using Element = float;
    static __device__ __forceinline__ float of(double x) { return static_cast<float>(x); }
};
struct AsF16 {
    using Element = __half;
    static __device__ __forceinline__ __half of(double x) {
        return __float2half_rn(static_cast<float>(x));
    }
};

// One thread for each element of an expert; blockIdx.y is the system.
template <class As> __device__ __forceinline__ void mix(const MixParams &p) {
    using T = typename As::Element;
    const uint64_t size = static_cast<uint64_t>(p.rows) * p.columns;
    const uint64_t element = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (element >= size) {
        return;
    }
    const double *coefficient = p.coefficients + static_cast<uint64_t>(blockIdx.y) * p.expert_count;
    double sum = 0.0;
    for (uint32_t x = 0; x < p.expert_count; x++) {
        sum = fma(coefficient[x], static_cast<double>(p.experts[x * size + element]), sum);
    }
    T *base = reinterpret_cast<T *>(p.bases[blockIdx.y]);
    const uint64_t row = element / p.columns, column = element % p.columns;
    const T value = As::of(sum);
    T *forward = base + p.forward_offset, *backward = base + p.backward_offset;
    if (!p.complex_map) {
        forward[element] = value;
        backward[column * p.rows + row] = value;
        return;
    }
    // Rows 0..half of the source are A, the others B; the result is [rows][2 columns].
    const uint64_t half = p.rows / 2, wide = 2 * static_cast<uint64_t>(p.columns);
    const T negative = As::of(-sum);
    const bool imaginary = row >= half;
    const uint64_t r = imaginary ? row - half : row;
    const uint64_t first_row = r, second_row = half + r;
    const uint64_t first_column = imaginary ? p.columns + column : column;
    const uint64_t second_column = imaginary ? column : p.columns + column;
    forward[first_row * wide + first_column] = imaginary ? negative : value;
    forward[second_row * wide + second_column] = value;
    backward[first_column * p.rows + first_row] = imaginary ? negative : value;
    backward[second_column * p.rows + second_row] = value;
}

KERNEL(mix_f32, MixParams) { mix<AsF32>(p); }
KERNEL(mix_f16, MixParams) { mix<AsF16>(p); }
