// Matrix instructions of a warp, and the asynchronous copies that feed them.
//
// A warp multiplies a 16 x 8-word piece of A (rows x summed index) by an 8-word x 8 piece of B. A
// word is two fp16 numbers: lane
// 4 g + t holds the words (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4) of A, the words t and t + 4
// of column g of B, and the sums (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1) (PTX ISA,
// "Matrix fragments for mma.m16n8k16").
//
// In the host build the same functions are plain loops over the fragments of all lanes.
#pragma once
#include "device.cuh"

// fp16 operands: numbers in a word, and how a number becomes one.
struct Fp16 {
    static constexpr int PER_WORD = 2;
    using Element = __half;
    static __device__ __forceinline__ __half of(float x) { return __float2half_rn(x); }
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

// COUNT times four 8 x 4-word matrices: lane i gives the address of row i % 8 of matrix i / 8.
template <int COUNT>
__device__ __forceinline__ void load_matrices(uint32_t (&words)[COUNT][4],
                                              const uint32_t *const (&rows)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                     : "=r"(words[i][0]), "=r"(words[i][1]), "=r"(words[i][2]), "=r"(words[i][3])
                     : "r"(shared_address(rows[i]))
                     : "memory");
    }
}

__device__ __forceinline__ void multiply_add_one(float (&c)[4], const uint32_t (&a)[4],
                                                 uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// MT pieces of 16 rows times NT pieces of 8 columns, two of which are loaded at once.
template <int MT, int NT>
__device__ __forceinline__ void multiply_add(float (&c)[MT][NT][4], const uint32_t (&a)[MT][4],
                                             const uint32_t (&b)[NT / 2][4]) {
#pragma unroll
    for (int i = 0; i < MT; i++) {
#pragma unroll
        for (int j = 0; j < NT; j++) {
            multiply_add_one(c[i][j], a[i], b[j / 2][2 * (j % 2)], b[j / 2][2 * (j % 2) + 1]);
        }
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

template <int COUNT>
inline void load_matrices(uint32_t (&words)[COUNT][4], const uint32_t *const (&rows)[COUNT]) {
    struct Rows {
        const uint32_t *of[COUNT];
    };
    const auto *lanes = static_cast<const Rows *>(warp_deposit(rows, sizeof rows));
    const int lane = threadIdx.x % 32;
    for (int i = 0; i < COUNT; i++) {
        for (int matrix = 0; matrix < 4; matrix++) {
            words[i][matrix] = lanes[8 * matrix + lane / 4].of[i][lane % 4];
        }
    }
}

// A row or a column of a piece, 16 numbers in the order of the summed index: those of the words
// t and t + 4 of its four lanes.
template <class Lane> inline void take_numbers(float (&numbers)[16], const Lane &word) {
    for (int k = 0; k < 8; k++) {
        const uint32_t both = word(k % 4, k / 4);
        __half halves[2];
        std::memcpy(halves, &both, 4);
        numbers[2 * k] = __half2float(halves[0]);
        numbers[2 * k + 1] = __half2float(halves[1]);
    }
}

// All pieces at once, so that the lanes meet once.
template <int MT, int NT>
inline void multiply_add(float (&c)[MT][NT][4], const uint32_t (&a)[MT][4],
                         const uint32_t (&b)[NT / 2][4]) {
    struct Fragments {
        uint32_t a[MT][4], b[NT / 2][4];
    };
    Fragments mine;
    std::memcpy(mine.a, a, sizeof a);
    std::memcpy(mine.b, b, sizeof b);
    const auto *lanes = static_cast<const Fragments *>(warp_deposit(&mine, sizeof mine));
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    float rows[2][16], columns[NT][2][16];
    for (int j = 0; j < NT; j++) {
        for (int n = 0; n < 2; n++) {
            take_numbers(columns[j][n], [&](int at, int half) {
                return lanes[4 * (2 * t + n) + at].b[j / 2][2 * (j % 2) + half];
            });
        }
    }
    for (int i = 0; i < MT; i++) {
        for (int n = 0; n < 2; n++) {
            take_numbers(rows[n], [&](int at, int half) {
                return lanes[4 * g + at].a[i][n + 2 * half];
            });
        }
        for (int j = 0; j < NT; j++) {
            for (int n = 0; n < 4; n++) {
                const float *row = rows[n / 2], *column = columns[j][n % 2];
                float sum = c[i][j][n];
                for (int k = 0; k < 16; k++) sum = sum + row[k] * column[k];
                c[i][j][n] = sum;
            }
        }
    }
}

#endif
