// Loads and stores of V neighbouring channels, and the functions of the network.
//
// V = 4 takes one access of 16 bytes (f32) or 8 bytes (f16), V = 8 one of 16 bytes (f16): the
// address must be a multiple of it.
#pragma once

#include "device.cuh"

// Through the read-only path: for arrays that the kernel does not write.
template <int V>
__device__ __forceinline__ void load(const float* at, float (&x)[V]) {
    if constexpr (V % 4 == 0) {
#pragma unroll
        for (int v = 0; v < V; v += 4) {
            const float4 q = __ldg(reinterpret_cast<const float4*>(at + v));
            x[v] = q.x, x[v + 1] = q.y, x[v + 2] = q.z, x[v + 3] = q.w;
        }
    } else {
#pragma unroll
        for (int v = 0; v < V; v++) x[v] = __ldg(at + v);
    }
}

template <int V>
__device__ __forceinline__ void from_halves(const uint32_t (&bits)[V / 2], float (&x)[V]) {
#pragma unroll
    for (int v = 0; v < V / 2; v++) {
        __half2 pair;
        memcpy(&pair, &bits[v], sizeof pair);
        const float2 q = __half22float2(pair);
        x[2 * v] = q.x, x[2 * v + 1] = q.y;
    }
}

template <int V>
__device__ __forceinline__ void load(const __half* at, float (&x)[V]) {
    if constexpr (V == 8) {
        const uint4 q = __ldg(reinterpret_cast<const uint4*>(at));
        from_halves<8>({q.x, q.y, q.z, q.w}, x);
    } else if constexpr (V == 4) {
        const uint2 q = __ldg(reinterpret_cast<const uint2*>(at));
        from_halves<4>({q.x, q.y}, x);
    } else {
#pragma unroll
        for (int v = 0; v < V; v++) x[v] = __half2float(at[v]);
    }
}

// For arrays that the kernel writes too.
template <int V>
__device__ __forceinline__ void load_written(const float* at, float (&x)[V]) {
    if constexpr (V % 4 == 0) {
#pragma unroll
        for (int v = 0; v < V; v += 4) {
            const float4 q = *reinterpret_cast<const float4*>(at + v);
            x[v] = q.x, x[v + 1] = q.y, x[v + 2] = q.z, x[v + 3] = q.w;
        }
    } else {
#pragma unroll
        for (int v = 0; v < V; v++) x[v] = at[v];
    }
}

template <int V>
__device__ __forceinline__ void load_written(const __half* at, float (&x)[V]) {
    if constexpr (V == 8) {
        const uint4 q = *reinterpret_cast<const uint4*>(at);
        from_halves<8>({q.x, q.y, q.z, q.w}, x);
    } else if constexpr (V == 4) {
        const uint2 q = *reinterpret_cast<const uint2*>(at);
        from_halves<4>({q.x, q.y}, x);
    } else {
#pragma unroll
        for (int v = 0; v < V; v++) x[v] = __half2float(at[v]);
    }
}

template <int V>
__device__ __forceinline__ void store(float* at, const float (&x)[V]) {
    if constexpr (V % 4 == 0) {
#pragma unroll
        for (int v = 0; v < V; v += 4) {
            *reinterpret_cast<float4*>(at + v) = make_float4(x[v], x[v + 1], x[v + 2], x[v + 3]);
        }
    } else {
#pragma unroll
        for (int v = 0; v < V; v++) at[v] = x[v];
    }
}

__device__ __forceinline__ uint32_t two_halves(float x, float y) {
    const __half2 pair = __floats2half2_rn(x, y);
    uint32_t bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}

template <int V>
__device__ __forceinline__ void store(__half* at, const float (&x)[V]) {
    if constexpr (V == 8) {
        *reinterpret_cast<uint4*>(at) = make_uint4(two_halves(x[0], x[1]), two_halves(x[2], x[3]),
                                                   two_halves(x[4], x[5]), two_halves(x[6], x[7]));
    } else if constexpr (V == 4) {
        *reinterpret_cast<uint2*>(at) =
            make_uint2(two_halves(x[0], x[1]), two_halves(x[2], x[3]));
    } else {
#pragma unroll
        for (int v = 0; v < V; v++) at[v] = __float2half_rn(x[v]);
    }
}

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }

// Derivative of SiLU.
__device__ __forceinline__ float silu_slope(float x) {
    const float s = sigmoid(x);
    return s * fmaf(x, 1.0f - s, 1.0f);
}

// Sum over the lanes of a warp, all of which must come here.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
    for (int bit = WARP / 2; bit > 0; bit /= 2) {
        value += __shfl_xor_sync(ALL_LANES, value, bit);
    }
    return value;
}
