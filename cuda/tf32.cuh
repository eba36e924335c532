// Rounding to tf32: 10 bits of mantissa, to the nearest, ties away from zero; infinities and NaN stay.
//
// Matrix units read the upper 19 bits of a word and ignore the rest, so operands have to be rounded
// before.
#pragma once
#include "device.cuh"

#ifdef __CUDACC__
__device__ __forceinline__ uint32_t round_tf32(uint32_t word) {
    uint32_t rounded;
    asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(rounded) : "f"(__uint_as_float(word)));
    return rounded;
}
#else
inline uint32_t round_tf32(uint32_t word) {
    if ((word & 0x7f800000u) == 0x7f800000u) {
        return word;
    }
    return (word + 0x1000u) & ~0x1fffu;
}
// What the matrix units ignore is 0, unless it belongs to a NaN.
inline bool is_tf32(uint32_t word) {
    return (word & 0x1fffu) == 0 || (word & 0x7f800000u) == 0x7f800000u;
}
#endif

__device__ __forceinline__ float round_tf32(float x) {
    return __uint_as_float(round_tf32(__float_as_uint(x)));
}
