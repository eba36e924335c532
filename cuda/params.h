// What kernels are given: plain structures of fixed-width numbers and pointers, the same in the
// device build, in the host build and in src/backend/cuda/params.rs (a test compares names, sizes
// and offsets of all fields). Every structure is a multiple of 8 bytes and has no implicit padding:
// write `pad` fields. Line by line `TYPE NAME;`, because build.rs reads this file.
#pragma once

#include <stdint.h>

// A range of edges that one pass computes, with their target atoms. In device memory: kernels are
// launched for the capacity of a chunk and look here for what is real.
struct Chunk {
    uint32_t atom_begin;
    uint32_t atom_end;
    uint32_t edge_begin;
    uint32_t edge_end;
    uint32_t edge_tiles;
    uint32_t atom_tiles;
    uint32_t pad_0;
    uint32_t pad_1;
};

// Rows [begin, end) of one system, at most 128, counted over the batch.
struct Tile {
    uint32_t system;
    uint32_t begin;
    uint32_t end;
    uint32_t pad;
};

// fill: destination[i] = value for i < count.
struct FillParams {
    uint32_t* destination;
    uint64_t count;
    uint32_t value;
    uint32_t pad;
};

// ------------------------------------------------------------------------------ edge geometry
// All edges of `chunk` (normally that of the whole batch), absolute indices.

// edge_geometry: distance, direction, envelope and Wigner matrix of every edge.
struct EdgeGeometryParams {
    // Edges to do.
    const Chunk* chunk;
    // `[E][3]` position(source) - position(target), Angstrom.
    const double* vector;
    // J_l for l = 0..=lmax one after the other, each `[2l + 1][2l + 1]`.
    const double* half_turns;
    // `[E]`
    float* distance;
    // `[E][3]`
    float* unit;
    // `[E]`
    float* envelope;
    // `[E][wigner_len]`, packed as so3::Layout says.
    float* wigner;
    // Angstrom.
    double cutoff;
    // Largest degree, at most 6.
    uint32_t lmax;
    // Largest order on edges.
    uint32_t mmax;
    // Numbers of a packed matrix.
    uint32_t wigner_len;
    // 0
    uint32_t pad;
};

// edge_force: dE/d(vector) from what the backward pass has summed for each edge.
struct EdgeForceParams {
    // Edges to do.
    const Chunk* chunk;
    // `[E][3]`
    const double* vector;
    // `[networks][edge_stride]` dE/d(distance) through each radial network, added up from the last one on.
    const float* d_distance;
    // `[E]` dE/d(envelope)
    const float* d_envelope;
    // `[E][3]`
    const float* torque;
    // `[E][3]` the torque from the sources' half of gathering.
    const float* source_torque;
    // `[E][3]` dE/d(vector), written.
    double* gradient;
    // Angstrom.
    double cutoff;
    // Numbers from one network to the next.
    uint64_t edge_stride;
    // Radial networks.
    uint32_t networks;
    // 0
    uint32_t pad;
};

// atom_force: force and virial of every atom.
struct AtomForceParams {
    // Atoms to do.
    const Chunk* chunk;
    // `[N + 1]`
    const uint32_t* target_start;
    // `[N + 1]`
    const uint32_t* source_start;
    // `[E]` edges by source atom.
    const uint32_t* by_source;
    // `[E][3]`
    const double* vector;
    // `[E][3]` dE/d(vector)
    const double* gradient;
    // `[N][3]` -dE/d(position), written.
    double* force;
    // `[N][9]` sum over the edges to the atom of gradient x vector, row-major, written; or null.
    double* virial;
};

// system_sums: energy and virial of every system, one block each.
struct SystemSumsParams {
    // `[systems + 1]`
    const uint32_t* atom_start;
    // `[N]`
    const float* atom_energy;
    // `[N][9]` or null.
    const double* atom_virial;
    // `[systems]`, written.
    double* energy;
    // `[systems][9]`, written unless null.
    double* virial;
    // Number of systems; those beyond the real ones have no atoms.
    uint32_t systems;
    // 0
    uint32_t pad;
};

// ----------------------------------------------------------------------------- radial network
// Rows of edge tensors are counted from the first edge of `chunk`.

// First layer of one radial network.
struct RadialNetwork {
    // `[basis][A]`: the columns of the layer that the Gaussians meet, transposed.
    const float* weight;
    // `[elements][A]`: the source half of the layer times the embedding of each element.
    const float* source_table;
    // `[elements][A]`: the same for targets, plus the bias.
    const float* target_table;
    // `[A]` LayerNorm.
    const float* norm_weight;
    // `[A]`
    const float* norm_bias;
};

// radial_first_f32, _f16: first layers, their LayerNorm and SiLU; grid (edges, networks).
struct RadialFirstParams {
    // Edges to do.
    const Chunk* chunk;
    // `[E]`
    const float* distance;
    // `[E]`
    const uint32_t* source;
    // `[E]`
    const uint32_t* target;
    // `[N]` atomic numbers.
    const uint32_t* numbers;
    // `[networks]`
    const RadialNetwork* networks;
    // `[networks][edges][A]` Operand, written.
    void* out;
    // Elements from one network to the next.
    uint64_t out_stride;
    // Number of Gaussians.
    uint32_t basis;
    // A.
    uint32_t width;
    // Distance of the centres, Angstrom.
    float spacing;
    // c of exp(c (d - centre)^2).
    float exponent;
};

// radial_first_backward_f32, _f16: gradient of the output of radial_first -> dE/d(distance); grid
// (edges, networks).
struct RadialFirstBackwardParams {
    // Edges to do.
    const Chunk* chunk;
    // `[E]`
    const float* distance;
    // `[E]`
    const uint32_t* source;
    // `[E]`
    const uint32_t* target;
    // `[N]` atomic numbers.
    const uint32_t* numbers;
    // `[networks]`
    const RadialNetwork* networks;
    // `[networks][edges][A]` Value.
    const void* gradient;
    // Elements from one network to the next.
    uint64_t gradient_stride;
    // `[networks][edge_stride]` what the gradient is to be divided by, or null for 1.
    const float* gradient_scale;
    // `[networks][edge_stride]`, written.
    float* d_distance;
    // Numbers from one network to the next.
    uint64_t edge_stride;
    // Number of Gaussians.
    uint32_t basis;
    // A.
    uint32_t width;
    // Distance of the centres, Angstrom.
    float spacing;
    // c of exp(c (d - centre)^2).
    float exponent;
};

// layer_norm_silu_f32, _f16: out = SiLU(LayerNorm(x)).
struct LayerNormSiluParams {
    // Edges to do.
    const Chunk* chunk;
    // `[edges][width]`
    const float* x;
    // `[width]`
    const float* weight;
    // `[width]`
    const float* bias;
    // `[edges][width]` Operand, written.
    void* out;
    // Values a row.
    uint32_t width;
    // 0
    uint32_t pad;
};

// layer_norm_silu_backward_f32, _f16: gradient of x from that of the output.
struct LayerNormSiluBackwardParams {
    // Edges to do.
    const Chunk* chunk;
    // `[edges][width]`, the x of the forward pass.
    const float* x;
    // `[width]`
    const float* weight;
    // `[width]`
    const float* bias;
    // `[edges][width]` Value.
    const void* gradient;
    // `[edges][width]` Operand, written; may be `gradient` if that has the same type.
    void* x_gradient;
    // Values a row.
    uint32_t width;
    // 0
    uint32_t pad;
};

// ------------------------------------------------------------------- between atoms and edges
// Rows of edge tensors are counted from the first edge of `chunk`, everything else over the batch.

// gather_rotate_scale: out = radial ⊙ D [x(source) | x(target)].
struct GatherRotateScaleParams {
    // Edges to do.
    const Chunk* chunk;
    // `[E]`
    const uint32_t* source;
    // `[E]`
    const uint32_t* target;
    // `[E][W]`
    const float* wigner;
    // `[N][S][C]`
    const float* x;
    // `[edges][radial rows][2C]` Value.
    const void* radial;
    // `[edges][R][2C]` Operand, written.
    void* out;
    // C.
    uint32_t channels;
    // 0
    uint32_t pad;
};

// gather_backward: one launch for both ends of the edges, grid (atoms of the batch, 2).
struct GatherBackwardParams {
    // Edges to do, with their targets.
    const Chunk* chunk;
    // All atoms, which are the possible sources.
    const Chunk* batch;
    // `[N + 1]`
    const uint32_t* target_start;
    // `[N + 1]`
    const uint32_t* source_start;
    // `[E]`
    const uint32_t* by_source;
    // `[E][W]`
    const float* wigner;
    // `[N][S][C]`
    const float* x;
    // `[edges][radial rows][2C]` Value.
    const void* radial;
    // `[edges][R][2C]` Value: gradient of the output of gather_rotate_scale.
    const void* gradient;
    // `[E]` factor that edge gradients carry, or null for 1.
    const float* gradient_scale;
    // `[edges][radial rows][2C]` Operand, written; carries the factor too. Not `radial`.
    void* radial_gradient;
    // `[N][S][C]` gradient of x: the sum over the edges to each atom is added.
    float* target_gradient;
    // `[N][S][C]` running sum over the edges from each atom, added to, in the order of by_source.
    // After the last chunk it is the sources' half of the gradient of x.
    float* source_gradient;
    // `[E][3]` added to: the targets' half.
    float* torque;
    // `[E][3]` added to: the sources' half.
    float* source_torque;
    // C.
    uint32_t channels;
    // What is written instead of added to: 1 target_gradient (atoms of the chunk), 2 source_gradient (all
    // atoms: in the first chunk), 4 source_torque.
    uint32_t store;
};

// rotate_scatter, scatter_radial: out = residual + scale * sum over edges to the atom of p D^T m.
struct RotateScatterParams {
    // Edges to do, with their targets; atoms without edges get the residual.
    const Chunk* chunk;
    // `[N + 1]`
    const uint32_t* target_start;
    // `[E][W]`
    const float* wigner;
    // `[E]`
    const float* envelope;
    // `[edges][R][C]` Value; for scatter_radial `[edges][lmax + 1][C]`, the m = 0 rows.
    const void* message;
    // `[N][S][C]`, or null for 0; may be `out`.
    const float* residual;
    // `[N][S][C]`, written.
    float* out;
    // C.
    uint32_t channels;
    // Constant factor.
    float scale;
};

// rotate_scatter_backward, scatter_radial_backward: everything but the residual, whose gradient is
// that of the output.
struct RotateScatterBackwardParams {
    // Edges to do, with their targets.
    const Chunk* chunk;
    // `[N + 1]`
    const uint32_t* target_start;
    // `[E][W]`
    const float* wigner;
    // `[E]`
    const float* envelope;
    // `[edges][R][C]` or `[edges][lmax + 1][C]` Value.
    const void* message;
    // `[N][S][C]` gradient of the output.
    const float* gradient;
    // Shape of `message`, Operand, written: gradient times gradient_scale. Not `message`.
    void* message_gradient;
    // `[E]`, written: a power of two for each edge of the chunk, the same for all edges of a
    // system in a batch or alone. Null for 1 everywhere.
    float* gradient_scale;
    // `[E]`, added to.
    float* d_envelope;
    // `[E][3]`, added to.
    float* torque;
    // C.
    uint32_t channels;
    // Constant factor.
    float scale;
    // 1: d_envelope and torque are written instead.
    uint32_t store;
    // 0
    uint32_t pad;
};

// --------------------------------------------------------------------------------------- gates

// gate_edges_f32, _f16: rows of degree 0 through SiLU, of degree l times the sigmoid of gate l - 1.
struct GateEdgesParams {
    // Edges to do.
    const Chunk* chunk;
    // `[edges][lmax H | R H]` Value.
    const void* x;
    // `[edges][R H]` Operand, written.
    void* out;
    // H.
    uint32_t channels;
    // Largest degree.
    uint32_t lmax;
    // Largest order on edges.
    uint32_t mmax;
    // 0
    uint32_t pad;
};

// gate_edges_backward_f32, _f16.
struct GateEdgesBackwardParams {
    // Edges to do.
    const Chunk* chunk;
    // `[edges][lmax H | R H]` Value.
    const void* x;
    // `[edges][R H]` Value: gradient of the output.
    const void* gradient;
    // `[edges][lmax H | R H]` Operand, written; may be `x` if that has the same type.
    void* x_gradient;
    // H.
    uint32_t channels;
    // Largest degree.
    uint32_t lmax;
    // Largest order on edges.
    uint32_t mmax;
    // 0
    uint32_t pad;
};

// gate_atoms: as gate_edges for atoms, gates in an array of their own.
struct GateAtomsParams {
    // Atoms to do.
    const Chunk* chunk;
    // `[N][S][H]`
    const float* x;
    // `[N][lmax H]`
    const float* gates;
    // `[N][S][H]`, written; may be `x`.
    float* out;
    // H.
    uint32_t channels;
    // Largest degree.
    uint32_t lmax;
};

// gate_atoms_backward.
struct GateAtomsBackwardParams {
    // Atoms to do.
    const Chunk* chunk;
    // `[N][S][H]`
    const float* x;
    // `[N][lmax H]`
    const float* gates;
    // `[N][S][H]` gradient of the output.
    const float* gradient;
    // `[N][S][H]`; may be `gradient` when written.
    float* x_gradient;
    // `[N][lmax H]`
    float* gates_gradient;
    // `[N][lmax H]` what SiLU made the gates of, or null. With it, gates_gradient is the gradient of that.
    const float* gates_pre;
    // H.
    uint32_t channels;
    // Largest degree.
    uint32_t lmax;
    // 1: both gradients are added to. 0: written.
    uint32_t accumulate;
    // 0
    uint32_t pad;
};

// --------------------------------------------------------------------------------------- atoms

// embed_atoms: row 0 = table[Z] + conditioning of the system, other rows 0.
struct EmbedAtomsParams {
    // Atoms to do.
    const Chunk* chunk;
    // `[N]` atomic numbers.
    const uint32_t* numbers;
    // `[N]`
    const uint32_t* atom_system;
    // `[elements][C]`
    const float* table;
    // `[systems][C]`
    const float* conditioning;
    // `[N][S][C]`, written.
    float* out;
    // C.
    uint32_t channels;
    // S.
    uint32_t rows;
};

// rms_norm: see nn::Op::RmsNorm.
struct RmsNormParams {
    // Atoms to do.
    const Chunk* chunk;
    // `[N]`
    const uint32_t* atom_system;
    // `[N][S][C]`
    const float* x;
    // `[lmax + 1][C]`
    const float* weight;
    // `[C]`
    const float* bias;
    // `[systems][C]` added to degree 0 afterwards, or null.
    const float* conditioning;
    // `[N][S][C]`, written; may be `x`.
    float* out;
    // C.
    uint32_t channels;
    // Largest degree.
    uint32_t lmax;
};

// rms_norm_backward: gradient of x.
struct RmsNormBackwardParams {
    // Atoms to do.
    const Chunk* chunk;
    // `[N][S][C]`
    const float* x;
    // `[lmax + 1][C]`
    const float* weight;
    // `[N][S][C]` gradient of the output.
    const float* gradient;
    // `[N][S][C]` added to that, or null.
    const float* second_gradient;
    // `[N][S][C]`; may be `gradient` when written.
    float* x_gradient;
    // C.
    uint32_t channels;
    // Largest degree.
    uint32_t lmax;
    // 1: added to. 0: written.
    uint32_t accumulate;
    // 0
    uint32_t pad;
};

// balance: x -= (sum over the atoms of the system - wanted) / atoms in some channels of degree 0, one range
// of them after the other. One block a system. Backwards: of the gradient, wanted = null.
struct BalanceParams {
    // `[systems + 1]`
    const uint32_t* atom_start;
    // `[N][width]`, changed.
    float* x;
    // `[systems]` charge or unpaired electrons, or null for 0, for each range.
    const float* wanted[2];
    // First channel of each range.
    uint32_t first[2];
    // Number of channels of each.
    uint32_t count[2];
    // Number of ranges.
    uint32_t ranges;
    // Number of systems.
    uint32_t systems;
    // Values of an atom, S C.
    uint32_t width;
    // 0
    uint32_t pad;
};

// silu_rows: out = SiLU(x).
struct SiluRowsParams {
    // Atoms to do.
    const Chunk* chunk;
    // `[N][width]`
    const float* x;
    // `[N][width]`, written; may be `x`.
    float* out;
    // Values a row.
    uint32_t width;
    // 0
    uint32_t pad;
};

// silu_rows_backward: gradient of the values before SiLU.
struct SiluRowsBackwardParams {
    // Atoms to do.
    const Chunk* chunk;
    // `[N][width]` the values before SiLU.
    const float* x;
    // `[N][width]` gradient of the output.
    const float* gradient;
    // `[N][width]`; may be `gradient` when written.
    float* x_gradient;
    // Values a row.
    uint32_t width;
    // 1: added to. 0: written.
    uint32_t accumulate;
};

// add_nodes: y += x.
struct AddNodesParams {
    // Atoms to do.
    const Chunk* chunk;
    // `[N][width]`
    const float* x;
    // `[N][width]`, added to.
    float* y;
    // Values a row.
    uint32_t width;
    // 0
    uint32_t pad;
};
