// Gated activation: rows of degree 0 through SiLU, rows of degree l times the sigmoid of gate l - 1.
//
//   gate_edges            x[edges][lmax H | R H] -> out[edges][R H]; x is a Value, out an Operand
//   gate_edges_backward   x_bar = out_bar sigmoid(g), g_bar = sigmoid (1 - sigmoid) sum over the rows
//                         of the degree of out_bar x, degree 0: x_bar = out_bar silu'(x)
//   gate_atoms(_backward) the same with all atom rows x[N][S][H] and gates[N][lmax H], f32; backwards, if
//                         wanted, through the SiLU that made the gates too
//
// Memory: everything is read once and written once. A thread has V neighbouring channels of an edge
// or atom, all rows.
#include "numbers.cuh"
#include "params.h"

// Edge row of (l, m) in m-primary order.
__device__ __forceinline__ uint32_t edge_row(int lmax, int l, int m) {
    if (m == 0) return l;
    const int order = m < 0 ? -m : m;
    int row = lmax + 1;
    for (int k = 1; k < order; k++) row += 2 * (lmax - k + 1);
    return row + l - order + (m < 0 ? lmax - order + 1 : 0);
}

// The row of an atom.
__device__ __forceinline__ uint32_t atom_row(int, int l, int m) { return l * l + l + m; }

// Item (edge or atom) and channel of this thread; the items of a block are neighbours.
struct GateLoop {
    uint32_t groups;
    uint32_t per_block;
    uint32_t item;
    uint32_t group;
};

template <int V>
__device__ __forceinline__ GateLoop gate_loop(uint32_t channels) {
    GateLoop loop;
    loop.groups = channels / V;
    loop.per_block = max(1u, blockDim.x / loop.groups);
    const uint32_t within = threadIdx.x / loop.groups;
    loop.item = within < loop.per_block ? blockIdx.x * loop.per_block + within : 0xffffffffu;
    loop.group = threadIdx.x % loop.groups;
    return loop;
}

// Rows that are loaded before the first is stored.
constexpr int GATE_ROWS = 5;

// gates and rows of one item at one channel; strides are between rows.
template <bool EDGES, int V, class Value, class Operand>
__device__ __forceinline__ void gate(const Value* gates, const Value* x, Operand* out,
                                     uint32_t channels, int lmax, int mmax) {
    for (int l = 0; l <= lmax; l++) {
        float s[V] = {};
        if (l > 0) {
            load_written(gates + (l - 1) * channels, s);
#pragma unroll
            for (int v = 0; v < V; v++) s[v] = sigmoid(s[v]);
        }
        const int kept = EDGES ? min(l, mmax) : l;
        for (int m0 = -kept; m0 <= kept; m0 += GATE_ROWS) {
            float values[GATE_ROWS][V];
            uint32_t at[GATE_ROWS];
#pragma unroll
            for (int i = 0; i < GATE_ROWS; i++) {
                if (m0 + i <= kept) {
                    at[i] = (EDGES ? edge_row(lmax, l, m0 + i) : atom_row(lmax, l, m0 + i)) *
                            channels;
                    load_written(x + at[i], values[i]);
                }
            }
#pragma unroll
            for (int i = 0; i < GATE_ROWS; i++) {
                if (m0 + i <= kept) {
#pragma unroll
                    for (int v = 0; v < V; v++) {
                        values[i][v] = l == 0 ? silu(values[i][v]) : values[i][v] * s[v];
                    }
                    store(out + at[i], values[i]);
                }
            }
        }
    }
}

template <int V, class Operand>
__device__ __forceinline__ void add_or_write(Operand* at, float (&value)[V], bool accumulate) {
    if (accumulate) {
        float before[V];
        load_written(at, before);
#pragma unroll
        for (int v = 0; v < V; v++) value[v] += before[v];
    }
    store(at, value);
}

template <bool EDGES, int V, class Value, class Operand>
__device__ __forceinline__ void gate_backward(const Value* gates, const Value* x,
                                              const Value* out_bar, Operand* gates_bar,
                                              Operand* x_bar, uint32_t channels, int lmax, int mmax,
                                              bool accumulate, const float* gates_pre = nullptr) {
    for (int l = 0; l <= lmax; l++) {
        float s[V] = {}, s_bar[V] = {};
        if (l > 0) {
            load_written(gates + (l - 1) * channels, s);
#pragma unroll
            for (int v = 0; v < V; v++) s[v] = sigmoid(s[v]);
        }
        const int kept = EDGES ? min(l, mmax) : l;
        for (int m0 = -kept; m0 <= kept; m0 += GATE_ROWS) {
            float values[GATE_ROWS][V], bars[GATE_ROWS][V];
            uint32_t at[GATE_ROWS];
#pragma unroll
            for (int i = 0; i < GATE_ROWS; i++) {
                if (m0 + i <= kept) {
                    at[i] = (EDGES ? edge_row(lmax, l, m0 + i) : atom_row(lmax, l, m0 + i)) *
                            channels;
                    load_written(x + at[i], values[i]);
                    load_written(out_bar + at[i], bars[i]);
                }
            }
#pragma unroll
            for (int i = 0; i < GATE_ROWS; i++) {
                if (m0 + i <= kept) {
#pragma unroll
                    for (int v = 0; v < V; v++) {
                        const float bar = bars[i][v];
                        if (l == 0) {
                            bars[i][v] = bar * silu_slope(values[i][v]);
                        } else {
                            bars[i][v] = bar * s[v];
                            s_bar[v] = fmaf(bar, values[i][v], s_bar[v]);
                        }
                    }
                    add_or_write(x_bar + at[i], bars[i], accumulate);
                }
            }
        }
        if (l > 0) {
#pragma unroll
            for (int v = 0; v < V; v++) s_bar[v] *= s[v] * (1.0f - s[v]);
            if (gates_pre) {
                float before[V];
                load(gates_pre + (l - 1) * channels, before);
#pragma unroll
                for (int v = 0; v < V; v++) s_bar[v] *= silu_slope(before[v]);
            }
            add_or_write(gates_bar + (l - 1) * channels, s_bar, accumulate);
        }
    }
}

// Rows of an edge: (lmax + 1) of m = 0 and 2 (lmax - m + 1) of each m.
__device__ __forceinline__ uint32_t edge_rows(uint32_t lmax, uint32_t mmax) {
    uint32_t rows = lmax + 1;
    for (uint32_t m = 1; m <= mmax; m++) rows += 2 * (lmax - m + 1);
    return rows;
}

template <int V, class Value, class Operand>
__device__ __forceinline__ void gate_edges(const GateEdgesParams& p) {
    const Chunk chunk = *p.chunk;
    const GateLoop loop = gate_loop<V>(p.channels);
    if (loop.item >= chunk.edge_end - chunk.edge_begin) return;
    const uint32_t gates = p.lmax * p.channels;
    const uint32_t width = edge_rows(p.lmax, p.mmax) * p.channels;
    const Value* const x = static_cast<const Value*>(p.x) + uint64_t(loop.item) * (gates + width);
    Operand* const out = static_cast<Operand*>(p.out) + uint64_t(loop.item) * width;
    for (uint32_t group = loop.group; group < loop.groups; group += blockDim.x) {
        const uint32_t c = group * V;
        gate<true, V>(x + c, x + gates + c, out + c, p.channels, p.lmax, p.mmax);
    }
}

template <int V, class Value, class Operand>
__device__ __forceinline__ void gate_edges_backward(const GateEdgesBackwardParams& p) {
    const Chunk chunk = *p.chunk;
    const GateLoop loop = gate_loop<V>(p.channels);
    if (loop.item >= chunk.edge_end - chunk.edge_begin) return;
    const uint32_t gates = p.lmax * p.channels;
    const uint32_t width = edge_rows(p.lmax, p.mmax) * p.channels;
    const uint64_t at = uint64_t(loop.item) * (gates + width);
    const Value* const x = static_cast<const Value*>(p.x) + at;
    Operand* const x_bar = static_cast<Operand*>(p.x_gradient) + at;
    const Value* const bar = static_cast<const Value*>(p.gradient) + uint64_t(loop.item) * width;
    for (uint32_t group = loop.group; group < loop.groups; group += blockDim.x) {
        const uint32_t c = group * V;
        gate_backward<true, V>(x + c, x + gates + c, bar + c, x_bar + c, x_bar + gates + c,
                               p.channels, p.lmax, p.mmax, false);
    }
}

// The suffix names Value and Operand.
#define GATE_KERNELS(VALUE, OPERAND, V, SUFFIX) \
    KERNEL(gate_edges_##SUFFIX, GateEdgesParams) { gate_edges<V, VALUE, OPERAND>(p); } \
    KERNEL_BOUNDS(gate_edges_backward_##SUFFIX, GateEdgesBackwardParams, 256, 2) { \
        gate_edges_backward<V, VALUE, OPERAND>(p); \
    }
GATE_KERNELS(float, float, 4, f32_v4)
GATE_KERNELS(float, float, 1, f32_v1)
GATE_KERNELS(float, __half, 4, mix_v4)
GATE_KERNELS(float, __half, 1, mix_v1)
GATE_KERNELS(__half, __half, 4, f16_v4)
GATE_KERNELS(__half, __half, 1, f16_v1)

template <int V>
__device__ __forceinline__ void gate_atoms_of(const GateAtomsParams& p) {
    const Chunk chunk = *p.chunk;
    const GateLoop loop = gate_loop<V>(p.channels);
    if (loop.item >= chunk.atom_end - chunk.atom_begin) return;
    const uint64_t atom = chunk.atom_begin + loop.item;
    const uint64_t width = uint64_t(p.lmax + 1) * (p.lmax + 1) * p.channels;
    for (uint32_t group = loop.group; group < loop.groups; group += blockDim.x) {
        const uint32_t c = group * V;
        gate<false, V>(p.gates + atom * p.lmax * p.channels + c, p.x + atom * width + c,
                       p.out + atom * width + c, p.channels, p.lmax, p.lmax);
    }
}

KERNEL_BOUNDS(gate_atoms, GateAtomsParams, 256, 2) {
    if (p.channels % 4 == 0) {
        gate_atoms_of<4>(p);
    } else {
        gate_atoms_of<1>(p);
    }
}

template <int V>
__device__ __forceinline__ void gate_atoms_backward_of(const GateAtomsBackwardParams& p) {
    const Chunk chunk = *p.chunk;
    const GateLoop loop = gate_loop<V>(p.channels);
    if (loop.item >= chunk.atom_end - chunk.atom_begin) return;
    const uint64_t atom = chunk.atom_begin + loop.item;
    const uint64_t at = atom * (p.lmax + 1) * (p.lmax + 1) * p.channels;
    const uint64_t gates_at = atom * p.lmax * p.channels;
    for (uint32_t group = loop.group; group < loop.groups; group += blockDim.x) {
        const uint32_t c = group * V;
        gate_backward<false, V>(p.gates + gates_at + c, p.x + at + c, p.gradient + at + c,
                                p.gates_gradient + gates_at + c, p.x_gradient + at + c, p.channels,
                                p.lmax, p.lmax, p.accumulate != 0,
                                p.gates_pre ? p.gates_pre + gates_at + c : nullptr);
    }
}

KERNEL_BOUNDS(gate_atoms_backward, GateAtomsBackwardParams, 256, 2) {
    if (p.channels % 4 == 0) {
        gate_atoms_backward_of<4>(p);
    } else {
        gate_atoms_backward_of<1>(p);
    }
}
