// Between atoms and edges: gather, rotate and scale; rotate and scatter; and their gradients.
//
// Shapes: x[N][S][C] f32 in L-order; an edge has its packed Wigner matrix D (f32, W numbers), its
// radial numbers [radial rows][2C] and edge rows [R][2C] (in) or [R][C] (out): what a product
// writes is a Value, what it reads an Operand, f32 or f16.
//
//   gather_rotate_scale       out = radial ⊙ D [x_s | x_t]
//   gather_backward           q_bar = out_bar ⊙ radial, radial_bar = out_bar ⊙ D x (summed over ±m),
//                             n_bar = D^T q_bar, summed by source and by target; torque += n_bar^T G x
//   rotate_scatter            out = residual + sum over edges to the atom of p D^T m
//   rotate_scatter_backward   m_bar = p D x_bar, p_bar += x_bar^T D^T m, torque -= p x_bar^T G D^T m
//   scatter_radial(_backward) the same where m has m = 0 rows only, with a constant factor
//
// Memory: edge tensors (they decide the time) are read once and written once, in accesses of a
// whole warp to neighbouring addresses. The rows of the atom that a block belongs to stay in
// registers; rows of the other end come from the L2 cache. D^T q_bar never goes to memory: a block
// of gather_backward belongs to one atom as the target or as the source of its edges.
//
// Work of a thread: V neighbouring channels of one edge (one end of it, when gathering); the threads
// of an edge are a `slot`. Several slots of a block do different edges at a time. Sums over edges
// have a fixed order that depends on the atom's edges alone: strictly theirs in gather_backward
// (the sum over by_source continues from chunk to chunk), slot by slot in rotate_scatter.
#include "layout.cuh"
#include "params.h"

// Consecutive edges that a slot of gather_rotate_scale does: they mostly share their target.
constexpr uint32_t GATHER_RUN = 4;

// What a thread is in its block.
struct Place {
    uint32_t lanes;
    uint32_t slots;
    uint32_t slot;
    uint32_t lane;
    uint32_t channel;
    // Whether there are channels for it.
    bool active;
};

template <int V>
__device__ __forceinline__ Place place_of(uint32_t channels) {
    const uint32_t groups = channels / V;
    Place place;
    place.lanes = lanes_for(groups);
    place.slots = blockDim.x / place.lanes;
    place.slot = threadIdx.x / place.lanes;
    place.lane = threadIdx.x % place.lanes;
    place.channel = place.lane * V;
    place.active = place.lane < groups && place.slot < place.slots;
    return place;
}

// Degree l of rows that begin with degree FIRST.
template <int FIRST, int l, int ROWS, int V>
__device__ __forceinline__ void take_degree(const float (&rows)[ROWS][V], float (&x)[2 * l + 1][V]) {
#pragma unroll
    for (int j = 0; j < 2 * l + 1; j++) {
#pragma unroll
        for (int v = 0; v < V; v++) x[j][v] = rows[l * l - FIRST * FIRST + j][v];
    }
}

// Number of rows of the degrees FIRST..=LAST.
template <int FIRST, int LAST>
struct Degrees {
    static constexpr int ROWS = (LAST + 1) * (LAST + 1) - FIRST * FIRST;
};

// Loads the rows of the degrees FIRST..=LAST of an atom.
template <int FIRST, int ROWS, int V>
__device__ __forceinline__ void load_rows(const float* atom, uint32_t channels, uint32_t channel,
                                          float (&rows)[ROWS][V]) {
#pragma unroll
    for (int j = 0; j < ROWS; j++) load(atom + (FIRST * FIRST + j) * channels + channel, rows[j]);
}

// One row of a Wigner block.
template <int N>
__device__ __forceinline__ void load_wigner(const float* at, float (&d)[N]) {
#pragma unroll
    for (int j = 0; j < N; j++) d[j] = __ldg(at + j);
}

// sum_j d[j] x[j]
template <int N, int V>
__device__ __forceinline__ void combine(const float (&d)[N], const float (&x)[N][V],
                                        float (&out)[V]) {
#pragma unroll
    for (int v = 0; v < V; v++) {
        float sum = d[0] * x[0][v];
#pragma unroll
        for (int j = 1; j < N; j++) sum = fmaf(d[j], x[j][v], sum);
        out[v] = sum;
    }
}

// ------------------------------------------------------------------------------------ gathering

// Grid: edges of the capacity / (slots * GATHER_RUN); a slot is one end of an edge, so a block has
// blockDim / (2 lanes) edges at a time. No shared memory.
template <int L, int M, int V, class Value, class Operand>
__device__ __forceinline__ void gather_rotate_scale(const GatherRotateScaleParams& p) {
    using Y = Layout<L, M>;
    const Chunk chunk = *p.chunk;
    const Place place = place_of<V>(p.channels);
    if (!place.active) return;
    const uint32_t half = place.slot & 1;
    const uint32_t edges = place.slots / 2 * GATHER_RUN;
    const uint32_t first =
        chunk.edge_begin + blockIdx.x * edges + place.slot / 2 * GATHER_RUN;
    const uint32_t end = min(chunk.edge_end, first + GATHER_RUN);
    const uint32_t* const atoms = half ? p.target : p.source;
    const uint32_t channels = p.channels, column = half * channels + place.channel;
    for_each_pass<0, L>([&](auto from, auto to) {
        constexpr int FIRST = decltype(from)::value, LAST = decltype(to)::value;
        float rows[Degrees<FIRST, LAST>::ROWS][V];
        uint32_t held = 0xffffffffu;
        for (uint32_t e = first; e < end; e++) {
            const uint32_t atom = __ldg(atoms + e);
            if (atom != held) {
                held = atom;
                load_rows<FIRST>(p.x + uint64_t(atom) * Y::ROWS * channels, channels,
                                 place.channel, rows);
            }
            const uint64_t row = e - chunk.edge_begin;
            const float* const wigner = p.wigner + uint64_t(e) * Y::WIGNER;
            const Value* const radial = static_cast<const Value*>(p.radial) +
                                         row * (2 * Y::RADIAL_ROWS * channels) + column;
            Operand* const out =
                static_cast<Operand*>(p.out) + row * (2 * Y::EDGE_ROWS * channels) + column;
            for_each_constant<FIRST, LAST>([&](auto degree) {
                constexpr int l = decltype(degree)::value, N = 2 * l + 1, K = Y::kept(l);
                float x[N][V];
                take_degree<FIRST, l>(rows, x);
#pragma unroll Y::UNROLL
                for (int m = 0; m <= K; m++) {
                    float scale[V];
                    load(radial + Y::radial_row(l, m) * 2 * channels, scale);
#pragma unroll
                    for (int sign = 0; sign <= (m > 0); sign++) {
                        const int signed_m = sign ? -m : m;
                        float d[N], q[V];
                        load_wigner(wigner + Y::wigner_offset(l) + (K + signed_m) * N, d);
                        combine(d, x, q);
#pragma unroll
                        for (int v = 0; v < V; v++) q[v] *= scale[v];
                        store(out + Y::edge_row(l, signed_m) * 2 * channels, q);
                    }
                }
            });
        }
    });
}

// First index in the ascending list[begin..end) of a value that is not below `value`.
__device__ __forceinline__ uint32_t lower_bound(const uint32_t* list, uint32_t begin, uint32_t end,
                                                uint32_t value) {
    while (begin < end) {
        const uint32_t middle = begin + (end - begin) / 2;
        if (__ldg(list + middle) < value) {
            begin = middle + 1;
        } else {
            end = middle;
        }
    }
    return begin;
}

// Grid: (atoms of the batch, 2): y = 0 the atom as a source, y = 1 as a target. Shared memory:
// sum[P][C], gathered[slots][P][C], P the most rows of a pass, and torques[slots][warps][3].
template <int L, int M, int V, class Value, class Operand>
__device__ __forceinline__ void gather_backward(const GatherBackwardParams& p) {
    using Y = Layout<L, M>;
    constexpr int MOST_ROWS = most_pass_rows(L);
    DYNAMIC_SHARED(float, shared);
    const Chunk chunk = *p.chunk;
    const uint32_t half = blockIdx.y;
    const uint32_t atom = blockIdx.x + (half ? chunk.atom_begin : p.batch->atom_begin);
    if (atom >= (half ? chunk.atom_end : p.batch->atom_end)) return;
    uint32_t begin, end;
    if (half) {
        begin = __ldg(p.target_start + atom);
        end = __ldg(p.target_start + atom + 1);
    } else {
        begin = __ldg(p.source_start + atom);
        end = __ldg(p.source_start + atom + 1);
        begin = lower_bound(p.by_source, begin, end, chunk.edge_begin);
        end = lower_bound(p.by_source, begin, end, chunk.edge_end);
    }
    const uint32_t channels = p.channels;
    float* const atom_gradient = (half ? p.target_gradient : p.source_gradient) +
                                 uint64_t(atom) * Y::ROWS * channels;
    const bool first = p.store & (half ? 1 : 2), first_torque = !half && (p.store & 4);
    if (begin >= end) {
        const float nothing[V] = {};
        for (uint32_t i = threadIdx.x * V; first && i < Y::ROWS * channels; i += blockDim.x * V) {
            store(atom_gradient + i, nothing);
        }
        return;
    }

    const Place place = place_of<V>(channels);
    const uint32_t column = half * channels + place.channel;
    const uint32_t slots = place.slots, parts = (place.lanes + WARP - 1) / WARP;
    float* const gathered = shared + MOST_ROWS * channels;
    float* const torques = gathered + slots * MOST_ROWS * channels;
    const float* const atom_x = p.x + uint64_t(atom) * Y::ROWS * channels;

    for_each_pass<0, L>([&](auto from, auto to) {
        constexpr int FIRST = decltype(from)::value, LAST = decltype(to)::value;
        constexpr int ROWS = Degrees<FIRST, LAST>::ROWS;
        float rows[ROWS][V];
        if (place.active) load_rows<FIRST>(atom_x, channels, place.channel, rows);
        // Each thread keeps the same places of the sum throughout.
        const uint32_t size = ROWS * channels;
        for (uint32_t i = threadIdx.x * V; i < size; i += blockDim.x * V) {
            float value[V] = {};
            if (!first) load_written(atom_gradient + FIRST * FIRST * channels + i, value);
            store(shared + i, value);
        }
        for (uint32_t j = begin; j < end; j += slots) {
            const uint32_t mine = j + place.slot;
            const bool busy = place.active && mine < end;
            float torque[3] = {0.0f, 0.0f, 0.0f};
            if (busy) {
                const uint32_t e = half ? mine : __ldg(p.by_source + mine);
                const uint64_t row = e - chunk.edge_begin;
                const float* const wigner = p.wigner + uint64_t(e) * Y::WIGNER;
                const uint64_t radial_at = row * (2 * Y::RADIAL_ROWS * channels) + column;
                const Value* const radial = static_cast<const Value*>(p.radial) + radial_at;
                Operand* const radial_bar = static_cast<Operand*>(p.radial_gradient) + radial_at;
                const Value* const out_bar = static_cast<const Value*>(p.gradient) +
                                              row * (2 * Y::EDGE_ROWS * channels) + column;
                float* const n_out = gathered + place.slot * size + place.channel;
                for_each_constant<FIRST, LAST>([&](auto degree) {
                    constexpr int l = decltype(degree)::value, N = 2 * l + 1, K = Y::kept(l);
                    float x[N][V], n_bar[N][V];
                    take_degree<FIRST, l>(rows, x);
#pragma unroll
                    for (int k = 0; k < N; k++) {
#pragma unroll
                        for (int v = 0; v < V; v++) n_bar[k][v] = 0.0f;
                    }
#pragma unroll Y::UNROLL
                    for (int m = 0; m <= K; m++) {
                        float scale[V], scale_bar[V];
                        load(radial + Y::radial_row(l, m) * 2 * channels, scale);
#pragma unroll
                        for (int v = 0; v < V; v++) scale_bar[v] = 0.0f;
#pragma unroll
                        for (int sign = 0; sign <= (m > 0); sign++) {
                            const int signed_m = sign ? -m : m;
                            float d[N], q[V], bar[V];
                            load(out_bar + Y::edge_row(l, signed_m) * 2 * channels, bar);
                            load_wigner(wigner + Y::wigner_offset(l) + (K + signed_m) * N, d);
                            combine(d, x, q);
#pragma unroll
                            for (int v = 0; v < V; v++) {
                                scale_bar[v] = fmaf(bar[v], q[v], scale_bar[v]);
                                const float q_bar = bar[v] * scale[v];
#pragma unroll
                                for (int k = 0; k < N; k++) {
                                    n_bar[k][v] = fmaf(d[k], q_bar, n_bar[k][v]);
                                }
                            }
                        }
                        store(radial_bar + Y::radial_row(l, m) * 2 * channels, scale_bar);
                    }
                    if (p.gradient_scale) {
                        // A power of two: its inverse is exact.
                        const float unscale = 1.0f / __ldg(p.gradient_scale + e);
#pragma unroll
                        for (int k = 0; k < N; k++) {
#pragma unroll
                            for (int v = 0; v < V; v++) n_bar[k][v] *= unscale;
                        }
                    }
                    add_torque<l>(n_bar, x, torque);
#pragma unroll
                    for (int k = 0; k < N; k++) {
                        store(n_out + (l * l - FIRST * FIRST + k) * channels, n_bar[k]);
                    }
                });
            }
#pragma unroll
            for (int k = 0; k < 3; k++) torque[k] = segment_sum(torque[k], place.lanes);
            if (place.slot < slots && place.lane % WARP == 0) {
                float* const part = torques + (place.slot * parts + place.lane / WARP) * 3;
                part[0] = torque[0], part[1] = torque[1], part[2] = torque[2];
            }
            __syncthreads();
            const uint32_t count = min(slots, end - j);
            for (uint32_t i = threadIdx.x * V; i < size; i += blockDim.x * V) {
                float sum[V];
                load_written(shared + i, sum);
// More would not leave enough registers for the rows of x.
#pragma unroll 2
                for (uint32_t s = 0; s < count; s++) {
                    float value[V];
                    load_written(gathered + s * size + i, value);
#pragma unroll
                    for (int v = 0; v < V; v++) sum[v] += value[v];
                }
                store(shared + i, sum);
            }
            for (uint32_t i = threadIdx.x; i < 3 * count; i += blockDim.x) {
                const uint32_t s = i / 3, k = i % 3, at = j + s;
                const uint32_t e = half ? at : __ldg(p.by_source + at);
                float* const torque_at = (half ? p.torque : p.source_torque) + uint64_t(e) * 3 + k;
                float sum = FIRST == 0 && first_torque ? 0.0f : *torque_at;
                for (uint32_t part = 0; part < parts; part++) {
                    sum += torques[(s * parts + part) * 3 + k];
                }
                *torque_at = sum;
            }
            __syncthreads();
        }
        for (uint32_t i = threadIdx.x * V; i < size; i += blockDim.x * V) {
            float value[V];
            load_written(shared + i, value);
            store(atom_gradient + FIRST * FIRST * channels + i, value);
        }
    });
}

// ----------------------------------------------------------------------------------- scattering

// Messages with orders up to K: all edge rows (K = M) or those of m = 0 (K = 0).
//
// Grid: atoms of the capacity. Shared memory: partial[slots][P][C].
template <int L, int M, int K, int V, class Value>
__device__ __forceinline__ void scatter(const RotateScatterParams& p) {
    using Y = Layout<L, M>;
    using Message = Layout<L, K>;
    DYNAMIC_SHARED(float, partial);
    const Chunk chunk = *p.chunk;
    const uint32_t atom = chunk.atom_begin + blockIdx.x;
    if (atom >= chunk.atom_end) return;
    const uint32_t begin = __ldg(p.target_start + atom), end = __ldg(p.target_start + atom + 1);
    const uint32_t channels = p.channels;
    const Place place = place_of<V>(channels);
    const uint64_t atom_at = uint64_t(atom) * Y::ROWS * channels;

    for_each_pass<0, L>([&](auto from, auto to) {
        constexpr int FIRST = decltype(from)::value, LAST = decltype(to)::value;
        constexpr int ROWS = Degrees<FIRST, LAST>::ROWS;
        const uint32_t size = ROWS * channels;
        if (place.active) {
            float sum[ROWS][V];
#pragma unroll
            for (int j = 0; j < ROWS; j++) {
#pragma unroll
                for (int v = 0; v < V; v++) sum[j][v] = 0.0f;
            }
            for (uint32_t e = begin + place.slot; e < end; e += place.slots) {
                const float factor = p.scale * __ldg(p.envelope + e);
                const float* const wigner = p.wigner + uint64_t(e) * Y::WIGNER;
                const Value* const message =
                    static_cast<const Value*>(p.message) +
                    uint64_t(e - chunk.edge_begin) * (Message::EDGE_ROWS * channels) +
                    place.channel;
                for_each_constant<FIRST, LAST>([&](auto degree) {
                    constexpr int l = decltype(degree)::value, N = 2 * l + 1;
                    constexpr int ORDERS = Message::kept(l);
#pragma unroll Y::UNROLL
                    for (int m = -ORDERS; m <= ORDERS; m++) {
                        float d[N], value[V];
                        load(message + Message::edge_row(l, m) * channels, value);
                        load_wigner(wigner + Y::wigner_offset(l) + (Y::kept(l) + m) * N, d);
#pragma unroll
                        for (int v = 0; v < V; v++) {
                            value[v] *= factor;
#pragma unroll
                            for (int j = 0; j < N; j++) {
                                float& s = sum[l * l - FIRST * FIRST + j][v];
                                s = fmaf(d[j], value[v], s);
                            }
                        }
                    }
                });
            }
#pragma unroll
            for (int j = 0; j < ROWS; j++) {
                store(partial + place.slot * size + j * channels + place.channel, sum[j]);
            }
        }
        __syncthreads();
        const uint32_t used = min(place.slots, end - begin);
        for (uint32_t i = threadIdx.x * V; i < size; i += blockDim.x * V) {
            const uint64_t at = atom_at + FIRST * FIRST * channels + i;
            float sum[V];
            if (p.residual) {
                load_written(p.residual + at, sum);
            } else {
#pragma unroll
                for (int v = 0; v < V; v++) sum[v] = 0.0f;
            }
            for (uint32_t s = 0; s < used; s++) {
                float value[V];
                load_written(partial + s * size + i, value);
#pragma unroll
                for (int v = 0; v < V; v++) sum[v] += value[v];
            }
            store(p.out + at, sum);
        }
        __syncthreads();
    });
}

// 2^-floor(log2(bound)), within 2^±60: makes numbers below `bound` less than 2.
__device__ __forceinline__ float power_of_two_below(float bound) {
    int exponent = int(__float_as_uint(bound) >> 23 & 0xff) - 127;
    if (!(bound > 0.0f)) exponent = 0;
    exponent = min(max(exponent, -60), 60);
    return __uint_as_float(uint32_t(127 - exponent) << 23);
}

// Grid: atoms of the capacity. Shared memory: largest[blockDim / 32], sums[slots][warps][4].
template <int L, int M, int K, int V, class Value, class Operand>
__device__ __forceinline__ void scatter_backward(const RotateScatterBackwardParams& p) {
    using Y = Layout<L, M>;
    using Message = Layout<L, K>;
    DYNAMIC_SHARED(float, shared);
    const Chunk chunk = *p.chunk;
    const uint32_t atom = chunk.atom_begin + blockIdx.x;
    if (atom >= chunk.atom_end) return;
    const uint32_t begin = __ldg(p.target_start + atom), end = __ldg(p.target_start + atom + 1);
    if (begin >= end) return;
    const uint32_t channels = p.channels;
    const Place place = place_of<V>(channels);
    const uint32_t slots = place.slots, parts = (place.lanes + WARP - 1) / WARP;
    const uint32_t warps = blockDim.x / WARP;
    float* const sums = shared + warps;
    const float* const atom_bar = p.gradient + uint64_t(atom) * Y::ROWS * channels;

    // A rotation does not change the length of a degree's vector: no number of a message's gradient
    // exceeds p times the longest.
    float longest = 0.0f;
    if (p.gradient_scale) {
        float square = 0.0f;
        for (uint32_t c = threadIdx.x; c < channels; c += blockDim.x) {
            for (int l = 0; l <= L; l++) {
                float sum = 0.0f;
                for (int row = l * l; row < (l + 1) * (l + 1); row++) {
                    const float value = __ldg(atom_bar + row * channels + c);
                    sum = fmaf(value, value, sum);
                }
                square = max(square, sum);
            }
        }
        for (int bit = WARP / 2; bit > 0; bit /= 2) {
            square = max(square, __shfl_xor_sync(ALL_LANES, square, bit));
        }
        if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = square;
        __syncthreads();
        for (uint32_t w = 0; w < warps; w++) square = max(square, shared[w]);
        longest = sqrtf(square);
    }

    for_each_pass<0, L>([&](auto from, auto to) {
        constexpr int FIRST = decltype(from)::value, LAST = decltype(to)::value;
        float rows[Degrees<FIRST, LAST>::ROWS][V];
        if (place.active) load_rows<FIRST>(atom_bar, channels, place.channel, rows);
        for (uint32_t j = begin; j < end; j += slots) {
            const uint32_t e = j + place.slot;
            // p_bar, torque
            float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            if (place.active && e < end) {
                const float factor = p.scale * __ldg(p.envelope + e);
                float stretched = factor;
                if (p.gradient_scale) {
                    const float scale = power_of_two_below(fabsf(factor) * longest);
                    stretched *= scale;
                    if (FIRST == 0 && place.lane == 0) p.gradient_scale[e] = scale;
                }
                const float* const wigner = p.wigner + uint64_t(e) * Y::WIGNER;
                const uint64_t at =
                    uint64_t(e - chunk.edge_begin) * (Message::EDGE_ROWS * channels) +
                    place.channel;
                const Value* const message = static_cast<const Value*>(p.message) + at;
                Operand* const message_bar = static_cast<Operand*>(p.message_gradient) + at;
                float torque[3] = {0.0f, 0.0f, 0.0f};
                for_each_constant<FIRST, LAST>([&](auto degree) {
                    constexpr int l = decltype(degree)::value, N = 2 * l + 1;
                    constexpr int ORDERS = Message::kept(l);
                    float x_bar[N][V], back[N][V];
                    take_degree<FIRST, l>(rows, x_bar);
#pragma unroll
                    for (int k = 0; k < N; k++) {
#pragma unroll
                        for (int v = 0; v < V; v++) back[k][v] = 0.0f;
                    }
#pragma unroll Y::UNROLL
                    for (int m = -ORDERS; m <= ORDERS; m++) {
                        float d[N], value[V], bar[V];
                        load(message + Message::edge_row(l, m) * channels, value);
                        load_wigner(wigner + Y::wigner_offset(l) + (Y::kept(l) + m) * N, d);
                        combine(d, x_bar, bar);
#pragma unroll
                        for (int v = 0; v < V; v++) {
                            part[0] = fmaf(bar[v], value[v], part[0]);
#pragma unroll
                            for (int k = 0; k < N; k++) {
                                back[k][v] = fmaf(d[k], value[v], back[k][v]);
                            }
                            bar[v] *= stretched;
                        }
                        store(message_bar + Message::edge_row(l, m) * channels, bar);
                    }
                    add_torque<l>(x_bar, back, torque);
                });
                part[0] *= p.scale;
#pragma unroll
                for (int k = 0; k < 3; k++) part[k + 1] = -factor * torque[k];
            }
#pragma unroll
            for (int k = 0; k < 4; k++) part[k] = segment_sum(part[k], place.lanes);
            if (place.slot < slots && place.lane % WARP == 0) {
                float* const out = sums + (place.slot * parts + place.lane / WARP) * 4;
#pragma unroll
                for (int k = 0; k < 4; k++) out[k] = part[k];
            }
            __syncthreads();
            const uint32_t count = min(slots, end - j);
            for (uint32_t i = threadIdx.x; i < 4 * count; i += blockDim.x) {
                const uint32_t s = i / 4, k = i % 4;
                const uint64_t edge = j + s;
                float* const at = k == 0 ? p.d_envelope + edge : p.torque + edge * 3 + (k - 1);
                float sum = FIRST == 0 && p.store ? 0.0f : *at;
                for (uint32_t part = 0; part < parts; part++) {
                    sum += sums[(s * parts + part) * 4 + k];
                }
                *at = sum;
            }
            __syncthreads();
        }
    });
}

// ---------------------------------------------------------------------------------- every layout

// Threads of a block at most, and blocks that must fit on a multiprocessor at a time: two blocks of
// 256 threads leave 128 registers to each; the largest layouts take what they need.
#define MOST_THREADS(V) ((V) == 4 ? 256 : 512)
#define LEAST_BLOCKS(L, V) ((V) == 4 && (L) <= 4 ? 2 : 1)
#define ROTATE_KERNEL(KERNEL_NAME, PARAMS, L, V, FUNCTION) \
    KERNEL_BOUNDS(KERNEL_NAME, PARAMS, MOST_THREADS(V), LEAST_BLOCKS(L, V)) { FUNCTION(p); }
// The suffix names Value and Operand: f32 both, f16 both, mix f32 and f16. Sums over edges read
// Values only.
#define ROTATE_KERNELS(L, M, NAME, VALUE, OPERAND, V, SUFFIX) \
    ROTATE_KERNEL(gather_rotate_scale_##NAME##SUFFIX, GatherRotateScaleParams, L, V, \
                  (gather_rotate_scale<L, M, V, VALUE, OPERAND>)) \
    ROTATE_KERNEL(gather_backward_##NAME##SUFFIX, GatherBackwardParams, L, V, \
                  (gather_backward<L, M, V, VALUE, OPERAND>)) \
    ROTATE_KERNEL(rotate_scatter_backward_##NAME##SUFFIX, RotateScatterBackwardParams, L, V, \
                  (scatter_backward<L, M, M, V, VALUE, OPERAND>)) \
    ROTATE_KERNEL(scatter_radial_backward_##NAME##SUFFIX, RotateScatterBackwardParams, L, V, \
                  (scatter_backward<L, M, 0, V, VALUE, OPERAND>))
#define SCATTER_KERNELS(L, M, NAME, VALUE, V, SUFFIX) \
    ROTATE_KERNEL(rotate_scatter_##NAME##SUFFIX, RotateScatterParams, L, V, \
                  (scatter<L, M, M, V, VALUE>)) \
    ROTATE_KERNEL(scatter_radial_##NAME##SUFFIX, RotateScatterParams, L, V, \
                  (scatter<L, M, 0, V, VALUE>))
#define ROTATE_KERNELS_OF(L, M) \
    ROTATE_KERNELS(L, M, L##_##M, float, float, 4, _f32_v4) \
    ROTATE_KERNELS(L, M, L##_##M, float, float, 1, _f32_v1) \
    ROTATE_KERNELS(L, M, L##_##M, float, __half, 4, _mix_v4) \
    ROTATE_KERNELS(L, M, L##_##M, float, __half, 1, _mix_v1) \
    ROTATE_KERNELS(L, M, L##_##M, __half, __half, 4, _f16_v4) \
    ROTATE_KERNELS(L, M, L##_##M, __half, __half, 1, _f16_v1) \
    SCATTER_KERNELS(L, M, L##_##M, float, 4, _f32_v4) \
    SCATTER_KERNELS(L, M, L##_##M, float, 1, _f32_v1) \
    SCATTER_KERNELS(L, M, L##_##M, __half, 4, _f16_v4) \
    SCATTER_KERNELS(L, M, L##_##M, __half, 1, _f16_v1)

ROTATE_KERNELS_OF(1, 1)
ROTATE_KERNELS_OF(2, 1)
ROTATE_KERNELS_OF(2, 2)
ROTATE_KERNELS_OF(3, 2)
ROTATE_KERNELS_OF(3, 3)
ROTATE_KERNELS_OF(4, 2)
ROTATE_KERNELS_OF(4, 4)
ROTATE_KERNELS_OF(6, 2)
