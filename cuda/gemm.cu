// Products of many rows with small matrices: out[item] = a[item] W^T (+ bias) (+ residual); how they are
// made is in gemm.cuh.
#include "gemm.cuh"

// gemm_{f32,f16,f16_f32,f32_as_f16}_{large,small,odd}[_gated]: number type of `a` in memory
// (of the operands after "as", of the result after a second "f"), size of the tile or rows that are not
// 16-byte pieces, gated loader. Tile sizes here and in src/backend/cuda/gemm.rs must agree.

#define TENSOR_KERNEL(NAME, STORED, OUT, WM, WN, MT, NT, STAGES, ALIGNED, OPERAND)                 \
    KERNEL_BOUNDS(NAME, GemmParams, WM *WN * 32, 2) {                                             \
        product_on_tensor_cores<STORED, WM, WN, MT, NT, STAGES, ALIGNED, OPERAND>(           \
            p, StoreSums<OUT>{p});                                                                 \
    }
#define TENSOR_KERNELS(NAME, SUFFIX, STORED, OUT, OPERAND)                                         \
    TENSOR_KERNEL(gemm_##NAME##_large##SUFFIX, STORED, OUT, 2, 4, 4, 4, 3, true, OPERAND)    \
    TENSOR_KERNEL(gemm_##NAME##_small##SUFFIX, STORED, OUT, 1, 4, 2, 2, 4, true, OPERAND)    \
    TENSOR_KERNEL(gemm_##NAME##_odd##SUFFIX, STORED, OUT, 1, 4, 2, 2, 2, false, OPERAND)

TENSOR_KERNELS(f16, , __half, __half, Operand::Ready)
TENSOR_KERNELS(f16, _gated, __half, __half, Operand::Gated)
TENSOR_KERNELS(f16_f32, , __half, float, Operand::Ready)
TENSOR_KERNELS(f32_as_f16, , float, float, Operand::Rounded)
TENSOR_KERNELS(f32_as_f16, _gated, float, float, Operand::Gated)

#define EXACT_KERNEL(NAME, MR, NR, STAGES, ALIGNED, OPERAND)                                       \
    KERNEL_BOUNDS(NAME, GemmParams, 256, 1) {                                                     \
        product_in_f32<MR, NR, STAGES, ALIGNED, OPERAND>(p, StoreSums<float>{p});                  \
    }
#define EXACT_KERNELS(SUFFIX, OPERAND)                                                             \
    EXACT_KERNEL(gemm_f32_large##SUFFIX, 8, 8, 3, true, OPERAND)                                   \
    EXACT_KERNEL(gemm_f32_small##SUFFIX, 2, 4, 4, true, OPERAND)                                   \
    EXACT_KERNEL(gemm_f32_odd##SUFFIX, 2, 4, 2, false, OPERAND)
EXACT_KERNELS(, Operand::Ready)
EXACT_KERNELS(_gated, Operand::Gated)
