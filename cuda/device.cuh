// What every kernel includes: on the device CUDA's own words, on the host the same words from
// host/shim.h, so that one source is compiled for both.
//
// Rules that make this possible:
//   - A kernel is written `KERNEL(name, Params) { ... }` (or KERNEL_BOUNDS with the launch bounds)
//     and finds its one parameter, a structure of params.h by value, under the name `p`.
//   - Dynamic shared memory is named with DYNAMIC_SHARED(type, name), static shared memory with
//     __shared__ on arrays of plain types.
//   - Collectives name all lanes that take part; __syncthreads is reached by all threads that have
//     not returned, at one place of the source. DEVICE_ASSERT says what must hold.
//   - There are no atomic additions of floating-point numbers: sums have a fixed order.
#pragma once

#if defined(__CUDACC__)

#include <cuda_fp16.h>
#include <math_constants.h>
#include <stdint.h>

#define KERNEL(NAME, PARAMS) extern "C" __global__ void NAME(const __grid_constant__ PARAMS p)
#define KERNEL_BOUNDS(NAME, PARAMS, THREADS, BLOCKS) \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) \
        NAME(const __grid_constant__ PARAMS p)

#define DYNAMIC_SHARED(TYPE, NAME) \
    extern __shared__ __align__(128) unsigned char dynamic_shared_bytes[]; \
    TYPE* const NAME = reinterpret_cast<TYPE*>(dynamic_shared_bytes)

// Checked on the host only.
#define DEVICE_ASSERT(CONDITION) ((void)0)

#else

#include "host/shim.h"

#endif

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;
