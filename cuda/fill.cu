// destination[i] = value: the bits of a float or an integer, any count.
//
// One thread per word, grid-stride.
#include "device.cuh"
#include "params.h"

KERNEL(fill, FillParams) {
    const uint64_t stride = uint64_t(gridDim.x) * blockDim.x;
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < p.count; i += stride) {
        p.destination[i] = p.value;
    }
}
