// Products of many rows with small matrices: out[item] = a[item] W^T (+ bias) (+ residual); how they are
// made is in gemm.cuh.
#include "gemm.cuh"

// gemm_{f32,f16,f16_f32,f32_as_f16}_{wide,large,small,odd}[_gate]: number type of `a` in memory (of the
// operands after "as", of the result after a second "f"), size of the tile or rows that are not 16-byte
// pieces, whether the result passes the gate too. Tile sizes here and in src/backend/cuda/gemm.rs must
// agree.
//
// Wide: 128 x 256, a warp has 64 x 64. A row is read half as often from the second-level cache, and a
// warp reads 4 kB of shared memory for 64 x 64 x 16 products instead of 3 kB for half of them; below
// that the matrix units wait for it. Its sums take the registers that a second block would need.

#define TENSOR_KERNEL(NAME, STORED, SUMS, BLOCKS, WM, WN, MT, NT, STAGES, ALIGNED, OPERAND)        \
    KERNEL_BOUNDS(NAME, GemmParams, WM *WN * 32, BLOCKS) {                                        \
        product_on_tensor_cores<STORED, WM, WN, MT, NT, STAGES, ALIGNED, OPERAND>(p, SUMS{p});     \
    }
#define WIDE_KERNEL(NAME, STORED, SUMS, OPERAND)                                                   \
    TENSOR_KERNEL(NAME, STORED, SUMS, 1, 2, 4, 4, 8, 3, true, OPERAND)
#define LARGE_KERNEL(NAME, STORED, SUMS, OPERAND)                                                  \
    TENSOR_KERNEL(NAME, STORED, SUMS, 2, 2, 4, 4, 4, 3, true, OPERAND)
#define SMALL_KERNEL(NAME, STORED, SUMS, OPERAND)                                                  \
    TENSOR_KERNEL(NAME, STORED, SUMS, 2, 1, 4, 2, 2, 4, true, OPERAND)
#define ODD_KERNEL(NAME, STORED, SUMS, OPERAND)                                                    \
    TENSOR_KERNEL(NAME, STORED, SUMS, 2, 1, 4, 2, 2, 2, false, OPERAND)

using GateToF16 = StoreGated<__half, __half>;
using GateToF32 = StoreGated<float, __half>;

#define TENSOR_KERNELS(NAME, SUFFIX, SUMS)                                                         \
    WIDE_KERNEL(gemm_##NAME##_wide##SUFFIX, __half, SUMS, Operand::Ready)                          \
    SMALL_KERNEL(gemm_##NAME##_small##SUFFIX, __half, SUMS, Operand::Ready)                        \
    ODD_KERNEL(gemm_##NAME##_odd##SUFFIX, __half, SUMS, Operand::Ready)

// With the gate there is no large one: where it counts, maps have the columns of a wide one.
LARGE_KERNEL(gemm_f16_large, __half, StoreSums<__half>, Operand::Ready)
LARGE_KERNEL(gemm_f16_f32_large, __half, StoreSums<float>, Operand::Ready)
TENSOR_KERNELS(f16, , StoreSums<__half>)
TENSOR_KERNELS(f16, _gate, GateToF16)
TENSOR_KERNELS(f16_f32, , StoreSums<float>)
TENSOR_KERNELS(f16_f32, _gate, GateToF32)

LARGE_KERNEL(gemm_f32_as_f16_large, float, StoreSums<float>, Operand::Rounded)
SMALL_KERNEL(gemm_f32_as_f16_small, float, StoreSums<float>, Operand::Rounded)
ODD_KERNEL(gemm_f32_as_f16_odd, float, StoreSums<float>, Operand::Rounded)

using GateInF32 = StoreGated<float, float>;

#define EXACT_KERNEL(NAME, SUMS, MR, NR, STAGES, ALIGNED)                                          \
    KERNEL_BOUNDS(NAME, GemmParams, 256, 1) {                                                     \
        product_in_f32<MR, NR, STAGES, ALIGNED>(p, SUMS{p});                                       \
    }
#define EXACT_KERNELS(SUFFIX, SUMS)                                                                \
    EXACT_KERNEL(gemm_f32_large##SUFFIX, SUMS, 8, 8, 3, true)                                      \
    EXACT_KERNEL(gemm_f32_small##SUFFIX, SUMS, 2, 4, 4, true)                                      \
    EXACT_KERNEL(gemm_f32_odd##SUFFIX, SUMS, 2, 4, 2, false)
EXACT_KERNELS(, StoreSums<float>)
EXACT_KERNELS(_gate, GateInF32)
