// Kernels that use every word of shim.h, and kernels that break its rules, for the tests of the host
// build. Not compiled for devices.
#include "device.cuh"
#include "params.h"

// destination[block] = sum of threadIdx + 1 over the block, through shuffles, shared memory and a
// barrier in a loop.
KERNEL(check_block_sum, FillParams) {
    __shared__ uint32_t sums[32];
    uint32_t sum = threadIdx.x + 1;
    for (int offset = 16; offset > 0; offset /= 2) {
        sum += __shfl_down_sync(ALL_LANES, sum, offset);
    }
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    for (uint32_t half = blockDim.x / 64; half > 0; half /= 2) {
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) p.destination[blockIdx.x] = sums[0];
}

// Lane by lane: what the other collectives answer, folded into one word per thread.
KERNEL(check_collectives, FillParams) {
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t odd = __ballot_sync(ALL_LANES, lane % 2 == 1);
    const uint32_t swapped = __shfl_xor_sync(ALL_LANES, lane, 1);
    const uint32_t ninth = __shfl_sync(ALL_LANES, lane, 9);
    const uint32_t below = __shfl_up_sync(ALL_LANES, lane, 1, 8);
    uint32_t half = 0;
    if (lane < 16) {
        half = __shfl_xor_sync(0x0000ffffu, lane, 8);
    } else {
        half = __shfl_xor_sync(0xffff0000u, lane, 4);
    }
    const int count = __syncthreads_count(lane < 3);
    const bool all = __all_sync(ALL_LANES, ninth == 9) && __any_sync(ALL_LANES, lane == 31);
    p.destination[threadIdx.x] = odd == 0xaaaaaaaau && all
        ? swapped + 100 * below + 10000 * half + 1000000 * uint32_t(count)
        : 0;
}

// Every thread adds to one word, in all blocks.
KERNEL(check_atomics, FillParams) {
    atomicAdd(&p.destination[0], 2u);
    atomicMax(&p.destination[1], blockIdx.x * blockDim.x + threadIdx.x);
}

// Neighbours' values without the barrier that is needed: the answer depends on the order of threads.
KERNEL(check_missing_barrier, FillParams) {
    DYNAMIC_SHARED(uint32_t, values);
    values[threadIdx.x] = threadIdx.x;
    p.destination[threadIdx.x] = values[(threadIdx.x + 1) % blockDim.x];
}

KERNEL(check_divergence, FillParams) {
    if (threadIdx.x < 7) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}

KERNEL(check_deadlock, FillParams) {
    if (threadIdx.x < 3) {
        __syncwarp();
    } else {
        __syncthreads();
    }
}

KERNEL(check_returned_lanes, FillParams) {
    if (threadIdx.x == 5) return;
    __syncthreads();
    p.destination[threadIdx.x] = __shfl_sync(ALL_LANES, threadIdx.x, 5);
}

KERNEL(check_shared_overrun, FillParams) {
    DYNAMIC_SHARED(uint32_t, values);
    values[blockDim.x] = 1;
}

KERNEL(check_assertion, FillParams) { DEVICE_ASSERT(threadIdx.x < p.count); }

// Bits of fp16 to f32 and back.
KERNEL(check_half, FillParams) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    const float value = __half2float(__ushort_as_half(uint16_t(i)));
    p.destination[i] = __float_as_uint(value);
    if (__half_as_ushort(__float2half_rn(value)) != i && value == value) p.destination[i] = 1;
}
