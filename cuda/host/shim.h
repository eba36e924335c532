// CUDA's words for the host: runs the threads of a block as fibers on one thread of the host, so
// that the logic of every kernel is tested where there is no GPU.
//
// What holds here as on the device: barriers, warp collectives, shared memory per block, integer
// atomics between blocks that run on several threads of the host. What is checked beyond: threads
// at different barriers, barriers and collectives that can never complete, writes beyond shared
// memory, DEVICE_ASSERT. Shared memory starts as NaN. The order in which threads run can be
// changed (see launch), which brings out missing barriers.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__F16C__)
#include <immintrin.h>
#endif

// ------------------------------------------------------------------------------- vector types

#define VECTOR_TYPES(BASE, NAME, A2, A4) \
    struct alignas(A2) NAME##2 { BASE x, y; }; \
    struct NAME##3 { BASE x, y, z; }; \
    struct alignas(A4) NAME##4 { BASE x, y, z, w; }; \
    inline NAME##2 make_##NAME##2(BASE x, BASE y) { return {x, y}; } \
    inline NAME##3 make_##NAME##3(BASE x, BASE y, BASE z) { return {x, y, z}; } \
    inline NAME##4 make_##NAME##4(BASE x, BASE y, BASE z, BASE w) { return {x, y, z, w}; }
VECTOR_TYPES(float, float, 8, 16)
VECTOR_TYPES(int, int, 8, 16)
VECTOR_TYPES(unsigned, uint, 8, 16)
VECTOR_TYPES(double, double, 16, 16)
VECTOR_TYPES(unsigned short, ushort, 4, 8)
#undef VECTOR_TYPES

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

// --------------------------------------------------------------------------------- the machine

namespace host {

// A thread of the block that runs, as kernels see it.
struct Thread {
    dim3 thread_index;
    unsigned rank;  // in the block, x fastest
    unsigned warp;
    unsigned lane;
};

// What all threads of the block that runs share.
struct Grid {
    dim3 grid;
    dim3 block;
    dim3 block_index;
    unsigned char* shared;
    size_t shared_bytes;
};

extern thread_local Thread* thread;
extern thread_local Grid grid;

using Entry = void (*)(const void* params);

struct Registration {
    Registration(const char* name, Entry entry, size_t params_bytes, unsigned max_threads);
};

void sync_threads(const char* file, int line);
// Sum over the block of what each thread brings.
int sync_threads_count(bool predicate, const char* file, int line);
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Each of the lanes in `mask` brings `bytes` bytes (all the same number); when all have, each is
// given 32 deposits of that size in the order of lanes, those of lanes outside the mask
// undefined. They stay until the next collective of this lane.
const void* deposit(unsigned mask, const void* data, size_t bytes, const char* file, int line);

template <class T>
T shuffle(unsigned mask, T value, int lane, const char* file, int line) {
    const unsigned me = thread->lane;
    const T* all = static_cast<const T*>(deposit(mask, &value, sizeof value, file, line));
    if (lane < 0 || lane > 31) return value;
    if (!(mask >> lane & 1)) {
        fail("%s:%d: lane %u reads lane %d, which is not in mask %#x", file, line, me, lane, mask);
    }
    return all[lane];
}

// Lane `target` of the same segment of `width` lanes, or this lane.
inline int in_segment(int target, int width) {
    const int me = int(thread->lane), first = me & ~(width - 1);
    return target >= first && target < first + width ? target : me;
}

unsigned ballot(unsigned mask, bool predicate, const char* file, int line);

inline uint16_t half_bits(float value);
inline float half_value(uint16_t bits);

}  // namespace host

#define threadIdx (host::thread->thread_index)
#define blockIdx (host::grid.block_index)
#define blockDim (host::grid.block)
#define gridDim (host::grid.grid)
#define warpSize 32

#define __device__
#define __host__
#define __global__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(BYTES) alignas(BYTES)
#define __grid_constant__
// The fibers of a block share one thread of the host.
#define __shared__ static thread_local

#define HOST_JOIN_(A, B) A##B
#define HOST_JOIN(A, B) HOST_JOIN_(A, B)
#define KERNEL_BOUNDS(NAME, PARAMS, THREADS, BLOCKS) HOST_KERNEL(NAME, PARAMS, THREADS)
#define KERNEL(NAME, PARAMS) HOST_KERNEL(NAME, PARAMS, 1024)
#define HOST_KERNEL(NAME, PARAMS, THREADS) \
    static void HOST_JOIN(NAME, _body)(const PARAMS& p); \
    static const host::Registration HOST_JOIN(NAME, _registration)( \
        HOST_STRING(NAME), \
        [](const void* params) { \
            HOST_JOIN(NAME, _body)(*static_cast<const PARAMS*>(params)); \
        }, \
        sizeof(PARAMS), THREADS); \
    static void HOST_JOIN(NAME, _body)(const PARAMS& p)
#define HOST_STRING_(TEXT) #TEXT
#define HOST_STRING(TEXT) HOST_STRING_(TEXT)

#define DYNAMIC_SHARED(TYPE, NAME) TYPE* const NAME = reinterpret_cast<TYPE*>(host::grid.shared)

#define DEVICE_ASSERT(CONDITION) \
    ((CONDITION) ? (void)0 : host::fail("%s:%d: not %s", __FILE__, __LINE__, #CONDITION))

// ---------------------------------------------------------------------- barriers, collectives

#define __syncthreads() host::sync_threads(__FILE__, __LINE__)
#define __syncthreads_count(PREDICATE) \
    host::sync_threads_count((PREDICATE) != 0, __FILE__, __LINE__)
#define __syncthreads_or(PREDICATE) (__syncthreads_count(PREDICATE) != 0)

// Mask is optional, as in CUDA.
#define __syncwarp(...) host::sync_warp(__FILE__, __LINE__, ##__VA_ARGS__)
// All lanes of the warp: see host::deposit.
#define warp_deposit(DATA, BYTES) \
    const_cast<void*>(host::deposit(0xffffffffu, (DATA), (BYTES), __FILE__, __LINE__))

#define __shfl_sync(MASK, VALUE, LANE, ...) \
    host::shuffle_to(__FILE__, __LINE__, MASK, VALUE, LANE, ##__VA_ARGS__)
#define __shfl_xor_sync(MASK, VALUE, BITS, ...) \
    host::shuffle_xor(__FILE__, __LINE__, MASK, VALUE, BITS, ##__VA_ARGS__)
#define __shfl_up_sync(MASK, VALUE, BY, ...) \
    host::shuffle_up(__FILE__, __LINE__, MASK, VALUE, BY, ##__VA_ARGS__)
#define __shfl_down_sync(MASK, VALUE, BY, ...) \
    host::shuffle_down(__FILE__, __LINE__, MASK, VALUE, BY, ##__VA_ARGS__)
#define __ballot_sync(MASK, PREDICATE) host::ballot(MASK, (PREDICATE) != 0, __FILE__, __LINE__)
#define __any_sync(MASK, PREDICATE) (__ballot_sync(MASK, PREDICATE) != 0)
#define __all_sync(MASK, PREDICATE) (__ballot_sync(MASK, !(PREDICATE)) == 0)

namespace host {

inline void sync_warp(const char* file, int line, unsigned mask = 0xffffffffu) {
    const char nothing = 0;
    deposit(mask, &nothing, 0, file, line);
}

template <class T>
T shuffle_to(const char* file, int line, unsigned mask, T value, int lane, int width = 32) {
    const int first = int(thread->lane) & ~(width - 1);
    return shuffle(mask, value, first + (lane & (width - 1)), file, line);
}

template <class T>
T shuffle_xor(const char* file, int line, unsigned mask, T value, int bits, int width = 32) {
    return shuffle(mask, value, in_segment(int(thread->lane) ^ bits, width), file, line);
}

template <class T>
T shuffle_up(const char* file, int line, unsigned mask, T value, unsigned by, int width = 32) {
    return shuffle(mask, value, in_segment(int(thread->lane) - int(by), width), file, line);
}

template <class T>
T shuffle_down(const char* file, int line, unsigned mask, T value, unsigned by, int width = 32) {
    return shuffle(mask, value, in_segment(int(thread->lane) + int(by), width), file, line);
}

}  // namespace host

inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() {}

// ----------------------------------------------------------------- atomics: integers only

template <class T>
inline T host_atomic_update(T* at, T value, bool (*keep)(T old, T value)) {
    static_assert(T(0.5) == T(0), "no atomics on floating-point numbers");
    T old = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (!keep(old, value) &&
           !__atomic_compare_exchange_n(at, &old, value, true, __ATOMIC_SEQ_CST,
                                        __ATOMIC_RELAXED)) {
    }
    return old;
}

#define INTEGER_ATOMICS(T) \
    inline T atomicAdd(T* at, T value) { return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST); } \
    inline T atomicOr(T* at, T value) { return __atomic_fetch_or(at, value, __ATOMIC_SEQ_CST); } \
    inline T atomicAnd(T* at, T value) { return __atomic_fetch_and(at, value, __ATOMIC_SEQ_CST); } \
    inline T atomicExch(T* at, T value) { return __atomic_exchange_n(at, value, __ATOMIC_SEQ_CST); } \
    inline T atomicMax(T* at, T value) { \
        return host_atomic_update<T>(at, value, [](T old, T v) { return old >= v; }); \
    } \
    inline T atomicMin(T* at, T value) { \
        return host_atomic_update<T>(at, value, [](T old, T v) { return old <= v; }); \
    } \
    inline T atomicCAS(T* at, T expected, T value) { \
        __atomic_compare_exchange_n(at, &expected, value, false, __ATOMIC_SEQ_CST, \
                                    __ATOMIC_SEQ_CST); \
        return expected; \
    }
INTEGER_ATOMICS(int)
INTEGER_ATOMICS(unsigned)
INTEGER_ATOMICS(unsigned long long)
#undef INTEGER_ATOMICS

// ------------------------------------------------------------------------------------- numbers

#define CUDART_INF_F __builtin_inff()
#define CUDART_NAN_F __builtin_nanf("")
#define CUDART_INF __builtin_inf()
#define CUDART_NAN __builtin_nan("")
#define CUDART_PI_F 3.141592654f
#define CUDART_PI 3.14159265358979323846

template <class T>
inline T __ldg(const T* at) { return *at; }
template <class T>
inline T __ldcs(const T* at) { return *at; }
template <class T>
inline T __ldcg(const T* at) { return *at; }
template <class T>
inline void __stcs(T* at, T value) { *at = value; }
template <class T>
inline void __stcg(T* at, T value) { *at = value; }

template <class To, class From>
inline To host_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline unsigned __float_as_uint(float x) { return host_bits<unsigned>(x); }
inline int __float_as_int(float x) { return host_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return host_bits<float>(x); }
inline float __int_as_float(int x) { return host_bits<float>(x); }
inline long long __double_as_longlong(double x) { return host_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return host_bits<double>(x); }

// Newer C libraries have functions of these names.
#define rsqrtf host_rsqrtf
#define rsqrt host_rsqrt
inline float host_rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double host_rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline double __dadd_rn(double x, double y) { return x + y; }
inline double __dsub_rn(double x, double y) { return x - y; }
inline double __dmul_rn(double x, double y) { return x * y; }
inline double __ddiv_rn(double x, double y) { return x / y; }
inline double __fma_rn(double x, double y, double z) { return fma(x, y, z); }
inline int __float2int_rd(float x) { return int(floorf(x)); }
inline int __double2int_rd(double x) { return int(floor(x)); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline unsigned __umulhi(unsigned x, unsigned y) { return unsigned(uint64_t(x) * y >> 32); }

#define MIN_MAX(T) \
    inline T min(T x, T y) { return y < x ? y : x; } \
    inline T max(T x, T y) { return x < y ? y : x; }
MIN_MAX(int)
MIN_MAX(unsigned)
MIN_MAX(long long)
MIN_MAX(unsigned long long)
MIN_MAX(long)
MIN_MAX(unsigned long)
#undef MIN_MAX
inline float min(float x, float y) { return fminf(x, y); }
inline float max(float x, float y) { return fmaxf(x, y); }
inline double min(double x, double y) { return fmin(x, y); }
inline double max(double x, double y) { return fmax(x, y); }

// ---------------------------------------------------------------------------------------- half

namespace host {

// IEEE binary16, round to nearest even.
#if defined(__F16C__)
inline uint16_t half_bits(float value) { return uint16_t(_cvtss_sh(value, 0)); }
inline float half_value(uint16_t bits) { return _cvtsh_ss(bits); }
#else
inline uint16_t half_bits(float value) {
    const uint32_t bits = host_bits<uint32_t>(value), sign = bits >> 16 & 0x8000;
    const uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return uint16_t(sign | 0x7fff);
    // 65520 and above round to infinity.
    if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);
    if (magnitude < 0x38800000) {
        // Below 2^-14: a multiple of 2^-24. The sum is exact but for the rounding wanted.
        const float shifted = host_bits<float>(magnitude) + 0.5f;
        return uint16_t(sign | (host_bits<uint32_t>(shifted) - 0x3f000000));
    }
    const uint32_t odd = magnitude >> 13 & 1;
    return uint16_t(sign | ((magnitude - 0x38000000 + 0xfff + odd) >> 13));
}

inline float half_value(uint16_t bits) {
    const uint32_t sign = uint32_t(bits & 0x8000) << 16, magnitude = bits & 0x7fff;
    if (magnitude >= 0x7c00) {
        return host_bits<float>(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
    }
    if (magnitude < 0x400) {
        const float value = float(magnitude) * 5.9604644775390625e-8f;  // 2^-24
        return host_bits<float>(sign | host_bits<uint32_t>(value));
    }
    return host_bits<float>(sign | ((magnitude << 13) + 0x38000000));
}
#endif

}  // namespace host

struct __half {
    uint16_t bits;
    __half() = default;
    explicit __half(float value) : bits(host::half_bits(value)) {}
    explicit operator float() const { return host::half_value(bits); }
};
typedef __half half;
struct alignas(4) __half2 {
    __half x, y;
    __half2() = default;
    __half2(__half x, __half y) : x(x), y(y) {}
};
typedef __half2 half2;

inline float __half2float(__half x) { return float(x); }
inline __half __float2half(float x) { return __half(x); }
inline __half __float2half_rn(float x) { return __half(x); }
inline float2 __half22float2(__half2 x) { return {float(x.x), float(x.y)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
inline __half2 __float22half2_rn(float2 x) { return {__half(x.x), __half(x.y)}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half __low2half(__half2 x) { return x.x; }
inline __half __high2half(__half2 x) { return x.y; }
inline float __low2float(__half2 x) { return float(x.x); }
inline float __high2float(__half2 x) { return float(x.y); }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline __half __ushort_as_half(unsigned short bits) {
    __half x;
    x.bits = bits;
    return x;
}
