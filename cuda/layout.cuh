// The index layout of so3::Layout at compile time, and what the edge kernels do with rows of it.
//
// Atom rows: row(l, m) = l^2 + l + m. Edge rows (m-primary): m = 0 of all l, then for m = 1..=M the
// +m rows of l = m..=L and the -m rows. A packed Wigner matrix holds for each degree the rows
// m = -min(l, M)..=min(l, M), each of 2l + 1 numbers.
#pragma once

#include "device.cuh"
#include "numbers.cuh"

template <int L_, int M_>
struct Layout {
    static constexpr int L = L_;
    static constexpr int M = M_;
    static constexpr int ROWS = (L + 1) * (L + 1);

    // Largest order kept of a degree.
    __host__ __device__ static constexpr int kept(int l) { return l < M ? l : M; }

    // First edge row of order m > 0: 2 (L - k + 1) rows for each k < m before it.
    __host__ __device__ static constexpr int block_row(int m) {
        return (L + 1) * (2 * m - 1) - m * (m - 1);
    }

    __host__ __device__ static constexpr int edge_row(int l, int m) {
        return m == 0 ? l
               : m > 0 ? block_row(m) + l - m
                       : block_row(-m) + (L + m + 1) + l + m;
    }

    // Radial row of (l, +-m), m >= 0: L - k + 1 rows for each k < m before those of m.
    __host__ __device__ static constexpr int radial_row(int l, int m) {
        return m * (L + 1) - m * (m - 1) / 2 + l - m;
    }

    __host__ __device__ static constexpr int wigner_offset(int l) {
        int at = 0;
        for (int k = 0; k < l; k++) at += (2 * kept(k) + 1) * (2 * k + 1);
        return at;
    }

    static constexpr int EDGE_ROWS = block_row(M + 1);
    static constexpr int RADIAL_ROWS = radial_row(L, M) + 1;
    static constexpr int WIGNER = wigner_offset(L + 1);

    // How far loops over orders are unrolled. Small layouts gain from more loads in flight; large
    // ones would only become large code.
    static constexpr int UNROLL = L <= 2 ? 16 : 1;
};

template <int VALUE>
struct Constant {
    static constexpr int value = VALUE;
};

// f(Constant<FIRST>), ..., f(Constant<LAST>), unrolled.
template <int FIRST, int LAST, class F>
__device__ __forceinline__ void for_each_constant(const F& f) {
    if constexpr (FIRST <= LAST) {
        f(Constant<FIRST>());
        for_each_constant<FIRST + 1, LAST>(f);
    }
}

// Rows that a thread keeps in registers at a time, unless one degree has more. Layouts with more
// are done in several passes over ranges of degrees.
constexpr int PASS_ROWS = 9;

// Last degree of the pass that begins with degree `first`.
__host__ __device__ constexpr int pass_end(int first, int last) {
    int end = first;
    while (end < last && (end + 2) * (end + 2) - first * first <= PASS_ROWS) end++;
    return end;
}

// Most rows of a pass.
__host__ __device__ constexpr int most_pass_rows(int last) {
    int most = 0;
    for (int first = 0; first <= last;) {
        const int end = pass_end(first, last) + 1;
        if (end * end - first * first > most) most = end * end - first * first;
        first = end;
    }
    return most;
}

// f(Constant<first degree>, Constant<last degree>) for every pass.
template <int FIRST, int L, class F>
__device__ __forceinline__ void for_each_pass(const F& f) {
    if constexpr (FIRST <= L) {
        constexpr int END = pass_end(FIRST, L);
        f(Constant<FIRST>(), Constant<END>());
        for_each_pass<END + 1, L>(f);
    }
}

// Threads that share an edge (or one end of it): a power of two within a warp, else whole warps.
__device__ __forceinline__ uint32_t lanes_for(uint32_t groups) {
    if (groups > WARP) return (groups + WARP - 1) / WARP * WARP;
    uint32_t lanes = 1;
    while (lanes < groups) lanes *= 2;
    return lanes;
}

// Sum over the lanes of a segment of 2^k <= 32 lanes, the same tree for every segment; all lanes of
// the warp must come here.
__device__ __forceinline__ float segment_sum(float value, uint32_t lanes) {
    for (uint32_t bit = min(lanes, uint32_t(WARP)) / 2; bit > 0; bit /= 2) {
        value += __shfl_xor_sync(ALL_LANES, value, bit);
    }
    return value;
}

// ½ sqrt((l - m)(l + m + 1)): how the generators about x and z couple the orders m and m + 1.
constexpr double coupling_root(double square) {
    double root = square > 1.0 ? square : 1.0;
    for (int i = 0; i < 60; i++) root = 0.5 * (root + square / root);
    return root;
}

template <int l, int m>
struct Coupling {
    // Order 0 couples to both +1 and -1 with a larger element: its row is not shared.
    static constexpr float value =
        float(0.5 * coupling_root((l - m) * (l + m + 1) * (m == 0 ? 2.0 : 1.0)));
};

// torque[k] += sum over the channels of a^T G_k b for one degree: a and b are its 2l + 1 rows. The
// generators G_x, G_y, G_z of so3::wigner are antisymmetric with one pair for each coupling.
template <int l, int V>
__device__ __forceinline__ void add_torque(const float (&a)[2 * l + 1][V],
                                           const float (&b)[2 * l + 1][V], float (&torque)[3]) {
    const auto pair = [&](int row, int column) {
        float sum = 0.0f;
#pragma unroll
        for (int v = 0; v < V; v++) {
            sum = fmaf(a[row][v], b[column][v], sum);
            sum = fmaf(-a[column][v], b[row][v], sum);
        }
        return sum;
    };
    if constexpr (l > 0) {
        for_each_constant<1, l>([&](auto order) {
            constexpr int m = decltype(order)::value;
            torque[1] = fmaf(float(m), pair(l - m, l + m), torque[1]);
        });
        constexpr float ZERO = Coupling<l, 0>::value;
        torque[0] = fmaf(-ZERO, pair(l, l + 1), torque[0]);
        torque[2] = fmaf(-ZERO, pair(l - 1, l), torque[2]);
        for_each_constant<1, l - 1>([&](auto order) {
            constexpr int m = decltype(order)::value;
            constexpr float C = Coupling<l, m>::value;
            torque[0] = fmaf(C, pair(l - m - 1, l - m), torque[0]);
            torque[0] = fmaf(-C, pair(l + m, l + m + 1), torque[0]);
            torque[2] = fmaf(-C, pair(l - m - 1, l + m), torque[2]);
            torque[2] = fmaf(-C, pair(l - m, l + m + 1), torque[2]);
        });
    }
}
