// Matrix instructions of a warp, and the asynchronous copies that feed them.
//
// A warp multiplies a 16 x 8-word piece of A (rows x summed index) by an 8-word x 8 piece of B. A
// word is one tf32 number or two fp16 numbers, so the layouts are the same for both: lane
// 4 g + t holds the words (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4) of A, the words t and t + 4
// of column g of B, and the sums (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1) (PTX ISA,
// "Matrix fragments for mma.m16n8k8 / m16n8k16").
//
// In the host build the same functions are plain loops over the fragments of all lanes.
#pragma once
#include "device.cuh"

// Number in a word, by what the words hold.
struct Tf32 {
    static constexpr int PER_WORD = 1;
    using Element = float;
};
struct Fp16 {
    static constexpr int PER_WORD = 2;
    using Element = __half;
};

#ifdef __CUDACC__

__device__ __forceinline__ uint32_t shared_address(const void *pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Copies 16 bytes to shared memory without waiting; zeros where not `valid`.
__device__ __forceinline__ void copy_async_16(void *shared, const void *global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)),
                 "l"(global), "r"(valid ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void copy_async_commit() {
    asm volatile("cp.async.commit_group;\n" ::: "memory");
}
// Waits until at most `PENDING` of the latest groups are under way.
template <int PENDING> __device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(PENDING) : "memory");
}

// Four 8 x 4-word matrices: lane i gives the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void load_matrices(uint32_t (&words)[4], const uint32_t *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ __forceinline__ uint32_t round_tf32(uint32_t word) {
    uint32_t rounded;
    asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(rounded) : "f"(__uint_as_float(word)));
    return rounded;
}

template <class Kind>
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
    if constexpr (Kind::PER_WORD == 1) {
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                     "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    } else {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                     "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
}

#else

#include <cstring>

inline void copy_async_16(void *shared, const void *global, bool valid) {
    if (valid) {
        std::memcpy(shared, global, 16);
    } else {
        std::memset(shared, 0, 16);
    }
}
inline void copy_async_commit() {}
template <int PENDING> inline void copy_async_wait() {}

inline void load_matrices(uint32_t (&words)[4], const uint32_t *row) {
    const auto *rows = static_cast<const uint32_t *const *>(warp_deposit(&row, sizeof row));
    const int lane = threadIdx.x % 32;
    for (int matrix = 0; matrix < 4; matrix++) {
        words[matrix] = rows[8 * matrix + lane / 4][lane % 4];
    }
}

inline uint32_t round_tf32(uint32_t word) {
    // To the nearest, ties away from zero; infinities and NaN stay.
    if ((word & 0x7f800000u) == 0x7f800000u) {
        return word;
    }
    return (word + 0x1000u) & ~0x1fffu;
}

template <class Kind> inline float product_of_words(uint32_t a, uint32_t b, float sum) {
    if constexpr (Kind::PER_WORD == 1) {
        float x, y;
        a &= ~0x1fffu;
        b &= ~0x1fffu;
        std::memcpy(&x, &a, 4);
        std::memcpy(&y, &b, 4);
        return sum + x * y;
    } else {
        __half x[2], y[2];
        std::memcpy(x, &a, 4);
        std::memcpy(y, &b, 4);
        return sum + __half2float(x[0]) * __half2float(y[0]) +
               __half2float(x[1]) * __half2float(y[1]);
    }
}

template <class Kind>
inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    struct Fragment {
        uint32_t words[6];
    };
    const auto *lanes = static_cast<const Fragment *>(warp_deposit(mine, sizeof mine));
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; i++) {
        const int half = i / 2, column = 2 * t + i % 2;
        for (int k = 0; k < 8; k++) {
            c[i] = product_of_words<Kind>(lanes[4 * g + k % 4].words[half + 2 * (k / 4)],
                                          lanes[4 * column + k % 4].words[4 + k / 4], c[i]);
        }
    }
}

#endif
