// What depends on the positions only: geometry of the edges before the network, forces and sums
// after it.
//
//   edge_geometry  v[E][3] f64 -> d[E], e = v / d [E][3], envelope p(d)[E], Wigner matrices [E][W], f32
//   edge_force     g = (d_bar + p_bar p'(d)) e + (e x t) / d, [E][3] f64
//   atom_force     F = sum over edges to the atom of g - sum over edges from it, [N][3] f64; virial
//                  sum over edges to the atom of g x v, [N][9] f64
//   system_sums    energy[B], virial[B][9], f64
//
// p(u) = 1 - 21 u^5 + 35 u^6 - 15 u^7 for u = d / cutoff < 1, else 0. D^l = J_l X_l(-b) J_l X_l(-a)
// with the polar angle b from y and the azimuth a from z towards x (see so3::wigner). Arithmetic is
// f64 throughout, results for the network are rounded once.
//
// Memory: each array is read once and written once; matrices go through shared memory so that they
// are written in one piece. Sums over edges and atoms have a fixed tree over fixed places in the
// list of the atom or the system.
#include "numbers.cuh"
#include "params.h"

// p(d) and its slope.
__device__ __forceinline__ void envelope_at(double d, double cutoff, double& value, double& slope) {
    const double u = d / cutoff;
    if (u >= 1.0) {
        value = slope = 0.0;
        return;
    }
    const double u2 = u * u, u4 = u2 * u2, rest = 1.0 - u;
    value = 1.0 + u4 * u * (-21.0 + u * (35.0 - 15.0 * u));
    slope = -105.0 * u4 * rest * rest / cutoff;
}

constexpr int MOST_DEGREES = 6;

// The columns l - k and l + k of row * X_l(-t), from those of the row and cos(k t), sin(k t).
__device__ __forceinline__ void turn(double low, double high, double cosine, double sine,
                                     double& turned_low, double& turned_high) {
    turned_low = low * cosine + high * sine;
    turned_high = high * cosine - low * sine;
}

// From cos(k t), sin(k t) to those of k + 1, by the addition theorem: exact to a few ulp for these
// small k.
__device__ __forceinline__ void next_multiple(double c, double s, double& cosine, double& sine) {
    const double before = cosine;
    cosine = cosine * c - sine * s;
    sine = sine * c + before * s;
}

// The rows m = -kept..=kept of one degree. J: [2l + 1][2l + 1], symmetric.
template <int l>
__device__ __forceinline__ void wigner_degree(const double* j, int kept, const double (&angles)[4],
                                              float* out) {
    constexpr int N = 2 * l + 1;
#pragma unroll 1
    for (int m = -kept; m <= kept; m++) {
        // u = (J X(-b)) row, then u J X(-a), two columns at a time.
        double u[N], cosine = 1.0, sine = 0.0;
        const double* const row = j + (m + l) * N;
        float* const out_row = out + (m + kept) * N;
        u[l] = row[l];
#pragma unroll
        for (int k = 1; k <= l; k++) {
            next_multiple(angles[2], angles[3], cosine, sine);
            turn(row[l - k], row[l + k], cosine, sine, u[l - k], u[l + k]);
        }
        cosine = 1.0, sine = 0.0;
#pragma unroll 1
        for (int k = 0; k <= l; k++) {
            const double* const j_low = j + (l - k) * N;
            const double* const j_high = j + (l + k) * N;
            double low = 0.0, high = 0.0;
#pragma unroll
            for (int i = 0; i < N; i++) {
                low = fma(u[i], j_low[i], low);
                high = fma(u[i], j_high[i], high);
            }
            double turned_low, turned_high;
            turn(low, high, cosine, sine, turned_low, turned_high);
            // For k = 0 both are the column l, and sin 0 = 0.
            out_row[l - k] = float(turned_low);
            out_row[l + k] = float(turned_high);
            next_multiple(angles[0], angles[1], cosine, sine);
        }
    }
}

// One thread per edge. Shared memory: matrices[blockDim][W].
KERNEL_BOUNDS(edge_geometry, EdgeGeometryParams, 128, 1) {
    DYNAMIC_SHARED(float, matrices);
    const Chunk chunk = *p.chunk;
    const uint64_t first = chunk.edge_begin + uint64_t(blockIdx.x) * blockDim.x;
    if (first >= chunk.edge_end) return;
    const uint64_t e = first + threadIdx.x;
    if (e < chunk.edge_end) {
        const double v[3] = {p.vector[3 * e], p.vector[3 * e + 1], p.vector[3 * e + 2]};
        const double d = sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
        const double x = v[0] / d, y = v[1] / d, z = v[2] / d;
        double value, slope;
        envelope_at(d, p.cutoff, value, slope);
        p.distance[e] = float(d);
        p.envelope[e] = float(value);
        p.unit[3 * e] = float(x), p.unit[3 * e + 1] = float(y), p.unit[3 * e + 2] = float(z);
        const double sin_b = sqrt(x * x + z * z);
        // cos a, sin a, cos b, sin b
        const double angles[4] = {sin_b > 0.0 ? z / sin_b : 1.0, sin_b > 0.0 ? x / sin_b : 0.0, y,
                                  sin_b};
        float* out = matrices + threadIdx.x * p.wigner_len;
        out[0] = 1.0f;
        out++;
        const double* j = p.half_turns + 1;
        for (int l = 1; l <= int(p.lmax); l++) {
            const int kept = min(l, int(p.mmax)), n = 2 * l + 1;
            switch (l) {
            case 1: wigner_degree<1>(j, kept, angles, out); break;
            case 2: wigner_degree<2>(j, kept, angles, out); break;
            case 3: wigner_degree<3>(j, kept, angles, out); break;
            case 4: wigner_degree<4>(j, kept, angles, out); break;
            case 5: wigner_degree<5>(j, kept, angles, out); break;
            case MOST_DEGREES: wigner_degree<MOST_DEGREES>(j, kept, angles, out); break;
            }
            j += n * n;
            out += (2 * kept + 1) * n;
        }
    }
    __syncthreads();
    const uint32_t count = uint32_t(min(uint64_t(blockDim.x), chunk.edge_end - first));
    float* const wigner = p.wigner + first * p.wigner_len;
    for (uint32_t i = threadIdx.x; i < count * p.wigner_len; i += blockDim.x) {
        wigner[i] = matrices[i];
    }
}

// One thread per edge.
KERNEL(edge_force, EdgeForceParams) {
    const Chunk chunk = *p.chunk;
    const uint64_t e = chunk.edge_begin + uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (e >= chunk.edge_end) return;
    double unit[3], torque[3];
    double square = 0.0;
    for (int k = 0; k < 3; k++) {
        unit[k] = p.vector[3 * e + k];
        square += unit[k] * unit[k];
        torque[k] = double(p.torque[3 * e + k]) + double(p.source_torque[3 * e + k]);
    }
    const double d = sqrt(square);
    for (int k = 0; k < 3; k++) unit[k] /= d;
    double value, slope;
    envelope_at(d, p.cutoff, value, slope);
    float radial = 0.0f;
    for (uint32_t n = p.networks; n > 0; n--) radial += p.d_distance[(n - 1) * p.edge_stride + e];
    const double along = double(radial) + double(p.d_envelope[e]) * slope;
    for (int k = 0; k < 3; k++) {
        const int i = (k + 1) % 3, j = (k + 2) % 3;
        p.gradient[3 * e + k] =
            along * unit[k] + (unit[i] * torque[j] - unit[j] * torque[i]) / d;
    }
}

// One warp per atom.
KERNEL(atom_force, AtomForceParams) {
    const Chunk chunk = *p.chunk;
    const uint32_t warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
    const uint64_t atom = chunk.atom_begin + uint64_t(blockIdx.x) * warps + threadIdx.x / WARP;
    if (atom >= chunk.atom_end) return;
    double force[3] = {0.0, 0.0, 0.0}, virial[9] = {};
    const uint32_t end = p.target_start[atom + 1];
    for (uint32_t e = p.target_start[atom] + lane; e < end; e += WARP) {
        double v[3];
        for (int k = 0; k < 3; k++) v[k] = p.vector[3 * uint64_t(e) + k];
        for (int i = 0; i < 3; i++) {
            const double g = p.gradient[3 * uint64_t(e) + i];
            force[i] += g;
            for (int k = 0; k < 3; k++) virial[3 * i + k] = fma(g, v[k], virial[3 * i + k]);
        }
    }
    const uint32_t from_end = p.source_start[atom + 1];
    for (uint32_t i = p.source_start[atom] + lane; i < from_end; i += WARP) {
        const uint64_t e = p.by_source[i];
        for (int k = 0; k < 3; k++) force[k] -= p.gradient[3 * e + k];
    }
    for (int k = 0; k < 3; k++) {
        const double sum = warp_sum(force[k]);
        if (lane == 0) p.force[3 * atom + k] = sum;
    }
    if (p.virial) {
        for (int k = 0; k < 9; k++) {
            const double sum = warp_sum(virial[k]);
            if (lane == 0) p.virial[9 * atom + k] = sum;
        }
    }
}

constexpr int SUM_THREADS = 256;

// Sum over the block, the same for all threads; the threads of the block must all come here.
__device__ __forceinline__ double block_sum(double value) {
    __shared__ double parts[SUM_THREADS / WARP];
    value = warp_sum(value);
    __syncthreads();
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = value;
    __syncthreads();
    double sum = 0.0;
    for (uint32_t w = 0; w < blockDim.x / WARP; w++) sum += parts[w];
    return sum;
}

// One block of SUM_THREADS threads per system.
KERNEL(system_sums, SystemSumsParams) {
    const uint32_t system = blockIdx.x;
    if (system >= p.systems) return;
    const uint64_t begin = p.atom_start[system], end = p.atom_start[system + 1];
    double energy = 0.0, virial[9] = {};
    for (uint64_t atom = begin + threadIdx.x; atom < end; atom += blockDim.x) {
        energy += double(p.atom_energy[atom]);
        if (p.atom_virial) {
#pragma unroll
            for (int k = 0; k < 9; k++) virial[k] += p.atom_virial[9 * atom + k];
        }
    }
    const double total = block_sum(energy);
    if (threadIdx.x == 0) p.energy[system] = total;
    if (p.virial) {
#pragma unroll
        for (int k = 0; k < 9; k++) {
            const double sum = block_sum(virial[k]);
            if (threadIdx.x == 0) p.virial[9 * uint64_t(system) + k] = sum;
        }
    }
}
