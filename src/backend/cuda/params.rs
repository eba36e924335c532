//! The parameters of the kernels: the structures of `cuda/params.h`, field by field. A test compares
//! names, offsets and sizes with what the C++ compiler made of that file.

use bytemuck::{Pod, Zeroable};

/// An address in the memory of a device; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(transparent)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    /// No address.
    pub const NULL: DevicePtr = DevicePtr(0);

    /// The address `bytes` bytes further on.
    pub fn offset(self, bytes: usize) -> DevicePtr {
        DevicePtr(self.0 + bytes as u64)
    }

    /// The address of element `index` of an array of `T`.
    pub fn at<T>(self, index: usize) -> DevicePtr {
        self.offset(index * size_of::<T>())
    }
}

/// A structure that a kernel takes.
pub trait Params: Pod {
    /// Its name in `cuda/params.h`.
    const NAME: &'static str;
}

/// Offset and size of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldLayout {
    /// Name of the structure.
    pub structure: &'static str,
    /// Name of the field.
    pub field: &'static str,
    /// Bytes from the beginning.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
}

/// Declares structures as C++ lays them out, and `layouts()`, which tells how.
macro_rules! params {
    ($($(#[$about:meta])* struct $name:ident {
        $($(#[$about_field:meta])* $field:ident: $type:ty,)*
    })*) => {
        $(
            $(#[$about])*
            #[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
            #[repr(C)]
            pub struct $name {
                $($(#[$about_field])* pub $field: $type,)*
            }

            impl Params for $name {
                const NAME: &'static str = stringify!($name);
            }
        )*

        /// All fields of all structures of this list.
        pub fn layouts() -> Vec<FieldLayout> {
            vec![$($(FieldLayout {
                structure: stringify!($name),
                field: stringify!($field),
                offset: std::mem::offset_of!($name, $field),
                size: size_of::<$type>(),
            },)*)*]
        }
    };
}
#[allow(unused_imports)]
pub(crate) use params;

params! {
    /// A range of edges that one pass computes, with their target atoms.
    struct Chunk {
        /// First target atom.
        atom_begin: u32,
        /// End of the target atoms.
        atom_end: u32,
        /// First edge.
        edge_begin: u32,
        /// End of the edges.
        edge_end: u32,
        /// Tiles that cut the edges.
        edge_tiles: u32,
        /// Tiles that cut the atoms.
        atom_tiles: u32,
        /// 0
        pad_0: u32,
        /// 0
        pad_1: u32,
    }

    /// Rows of one system, at most 128, counted over the batch.
    struct Tile {
        /// Which system.
        system: u32,
        /// First row.
        begin: u32,
        /// End of the rows.
        end: u32,
        /// 0
        pad: u32,
    }

    /// `fill`: the first `count` words of `destination` become `value`.
    struct FillParams {
        /// `[count]` words.
        destination: DevicePtr,
        /// How many.
        count: u64,
        /// Bits of the value.
        value: u32,
        /// 0
        pad: u32,
    }

    /// edge_geometry: distance, direction, envelope and Wigner matrix of every edge.
    struct EdgeGeometryParams {
        /// Edges to do.
        chunk: DevicePtr,
        /// `[E][3]` position(source) - position(target), Angstrom.
        vector: DevicePtr,
        /// J_l for l = 0..=lmax one after the other, each `[2l + 1][2l + 1]`.
        half_turns: DevicePtr,
        /// `[E]`
        distance: DevicePtr,
        /// `[E][3]`
        unit: DevicePtr,
        /// `[E]`
        envelope: DevicePtr,
        /// `[E][wigner_len]`, packed as so3::Layout says.
        wigner: DevicePtr,
        /// Angstrom.
        cutoff: f64,
        /// Largest degree, at most 6.
        lmax: u32,
        /// Largest order on edges.
        mmax: u32,
        /// Numbers of a packed matrix.
        wigner_len: u32,
        /// 0
        pad: u32,
    }

    /// edge_force: dE/d(vector) from what the backward pass has summed for each edge.
    struct EdgeForceParams {
        /// Edges to do.
        chunk: DevicePtr,
        /// `[E][3]`
        vector: DevicePtr,
        /// `[networks][edge_stride]` dE/d(distance) through each radial network, added up from the last one on.
        d_distance: DevicePtr,
        /// `[E]` dE/d(envelope)
        d_envelope: DevicePtr,
        /// `[E][3]`
        torque: DevicePtr,
        /// `[E][3]` the torque from the sources' half of gathering.
        source_torque: DevicePtr,
        /// `[E][3]` dE/d(vector), written.
        gradient: DevicePtr,
        /// Angstrom.
        cutoff: f64,
        /// Numbers from one network to the next.
        edge_stride: u64,
        /// Radial networks.
        networks: u32,
        /// 0
        pad: u32,
    }

    /// atom_force: force and virial of every atom.
    struct AtomForceParams {
        /// Atoms to do.
        chunk: DevicePtr,
        /// `[N + 1]`
        target_start: DevicePtr,
        /// `[N + 1]`
        source_start: DevicePtr,
        /// `[E]` edges by source atom.
        by_source: DevicePtr,
        /// `[E][3]`
        vector: DevicePtr,
        /// `[E][3]` dE/d(vector)
        gradient: DevicePtr,
        /// `[N][3]` -dE/d(position), written.
        force: DevicePtr,
        /// `[N][9]` sum over the edges to the atom of gradient x vector, row-major, written; or null.
        virial: DevicePtr,
    }

    /// system_sums: energy and virial of every system, one block each.
    struct SystemSumsParams {
        /// `[systems + 1]`
        atom_start: DevicePtr,
        /// `[N]`
        atom_energy: DevicePtr,
        /// `[N][9]` or null.
        atom_virial: DevicePtr,
        /// `[systems]`, written.
        energy: DevicePtr,
        /// `[systems][9]`, written unless null.
        virial: DevicePtr,
        /// Number of systems; those beyond the real ones have no atoms.
        systems: u32,
        /// 0
        pad: u32,
    }

    /// First layer of one radial network.
    struct RadialNetwork {
        /// `[basis][A]`: the columns of the layer that the Gaussians meet, transposed.
        weight: DevicePtr,
        /// `[elements][A]`: the source half of the layer times the embedding of each element.
        source_table: DevicePtr,
        /// `[elements][A]`: the same for targets, plus the bias.
        target_table: DevicePtr,
        /// `[A]` LayerNorm.
        norm_weight: DevicePtr,
        /// `[A]`
        norm_bias: DevicePtr,
    }

    /// radial_first_f32, _f16: first layer, its LayerNorm and SiLU.
    struct RadialFirstParams {
        /// Edges to do.
        chunk: DevicePtr,
        /// `[E]`
        distance: DevicePtr,
        /// `[E]`
        source: DevicePtr,
        /// `[E]`
        target: DevicePtr,
        /// `[N]` atomic numbers.
        numbers: DevicePtr,
        /// `[networks]`
        networks: DevicePtr,
        /// `[networks][edges][A]` Operand, written.
        out: DevicePtr,
        /// Elements from one network to the next.
        out_stride: u64,
        /// Number of Gaussians.
        basis: u32,
        /// A.
        width: u32,
        /// Distance of the centres, Angstrom.
        spacing: f32,
        /// c of exp(c (d - centre)^2).
        exponent: f32,
    }

    /// radial_first_backward_f32, _f16: gradient of the output of radial_first -> dE/d(distance).
    struct RadialFirstBackwardParams {
        /// Edges to do.
        chunk: DevicePtr,
        /// `[E]`
        distance: DevicePtr,
        /// `[E]`
        source: DevicePtr,
        /// `[E]`
        target: DevicePtr,
        /// `[N]` atomic numbers.
        numbers: DevicePtr,
        /// `[networks]`
        networks: DevicePtr,
        /// `[networks][edges][A]` Value.
        gradient: DevicePtr,
        /// Elements from one network to the next.
        gradient_stride: u64,
        /// `[networks][edge_stride]` what the gradient is to be divided by, or null for 1.
        gradient_scale: DevicePtr,
        /// `[networks][edge_stride]`, written.
        d_distance: DevicePtr,
        /// Numbers from one network to the next.
        edge_stride: u64,
        /// Number of Gaussians.
        basis: u32,
        /// A.
        width: u32,
        /// Distance of the centres, Angstrom.
        spacing: f32,
        /// c of exp(c (d - centre)^2).
        exponent: f32,
    }

    /// layer_norm_silu_f32, _f16: out = SiLU(LayerNorm(x)).
    struct LayerNormSiluParams {
        /// Edges to do.
        chunk: DevicePtr,
        /// `[edges][width]`
        x: DevicePtr,
        /// `[width]`
        weight: DevicePtr,
        /// `[width]`
        bias: DevicePtr,
        /// `[edges][width]` Operand, written.
        out: DevicePtr,
        /// Values a row.
        width: u32,
        /// 0
        pad: u32,
    }

    /// layer_norm_silu_backward_f32, _f16: gradient of x from that of the output.
    struct LayerNormSiluBackwardParams {
        /// Edges to do.
        chunk: DevicePtr,
        /// `[edges][width]`, the x of the forward pass.
        x: DevicePtr,
        /// `[width]`
        weight: DevicePtr,
        /// `[width]`
        bias: DevicePtr,
        /// `[edges][width]` Value.
        gradient: DevicePtr,
        /// `[edges][width]` Operand, written; may be `gradient` if that has the same type.
        x_gradient: DevicePtr,
        /// Values a row.
        width: u32,
        /// 0
        pad: u32,
    }

    /// gather_rotate_scale: out = radial ⊙ D [x(source) | x(target)].
    struct GatherRotateScaleParams {
        /// Edges to do.
        chunk: DevicePtr,
        /// `[E]`
        source: DevicePtr,
        /// `[E]`
        target: DevicePtr,
        /// `[E][W]`
        wigner: DevicePtr,
        /// `[N][S][C]`
        x: DevicePtr,
        /// `[edges][radial rows][2C]` Value.
        radial: DevicePtr,
        /// `[edges][R][2C]` Operand, written.
        out: DevicePtr,
        /// C.
        channels: u32,
        /// 0
        pad: u32,
    }

    /// gather_backward: one launch for both ends of the edges, grid (atoms of the batch, 2).
    struct GatherBackwardParams {
        /// Edges to do, with their targets.
        chunk: DevicePtr,
        /// All atoms, which are the possible sources.
        batch: DevicePtr,
        /// `[N + 1]`
        target_start: DevicePtr,
        /// `[N + 1]`
        source_start: DevicePtr,
        /// `[E]`
        by_source: DevicePtr,
        /// `[E][W]`
        wigner: DevicePtr,
        /// `[N][S][C]`
        x: DevicePtr,
        /// `[edges][radial rows][2C]` Value.
        radial: DevicePtr,
        /// `[edges][R][2C]` Value: gradient of the output of gather_rotate_scale.
        gradient: DevicePtr,
        /// `[E]` factor that edge gradients carry, or null for 1.
        gradient_scale: DevicePtr,
        /// `[edges][radial rows][2C]` Operand, written; carries the factor too. Not `radial`.
        radial_gradient: DevicePtr,
        /// `[N][S][C]` gradient of x: the sum over the edges to each atom is added.
        target_gradient: DevicePtr,
        /// `[N][S][C]` running sum over the edges from each atom, added to, in the order of by_source.
        /// After the last chunk it is the sources' half of the gradient of x.
        source_gradient: DevicePtr,
        /// `[E][3]` added to: the targets' half.
        torque: DevicePtr,
        /// `[E][3]` added to: the sources' half.
        source_torque: DevicePtr,
        /// C.
        channels: u32,
        /// What is written instead of added to: 1 target_gradient (atoms of the chunk), 2 source_gradient (all
        /// atoms: in the first chunk), 4 source_torque.
        store: u32,
    }

    /// rotate_scatter, scatter_radial: out = residual + scale * sum over edges to the atom of p D^T m.
    struct RotateScatterParams {
        /// Edges to do, with their targets; atoms without edges get the residual.
        chunk: DevicePtr,
        /// `[N + 1]`
        target_start: DevicePtr,
        /// `[E][W]`
        wigner: DevicePtr,
        /// `[E]`
        envelope: DevicePtr,
        /// `[edges][R][C]` Value; for scatter_radial `[edges][lmax + 1][C]`, the m = 0 rows.
        message: DevicePtr,
        /// `[N][S][C]`, or null for 0; may be `out`.
        residual: DevicePtr,
        /// `[N][S][C]`, written.
        out: DevicePtr,
        /// C.
        channels: u32,
        /// Constant factor.
        scale: f32,
    }

    /// rotate_scatter_backward, scatter_radial_backward: everything but the residual, whose gradient is
    /// that of the output.
    struct RotateScatterBackwardParams {
        /// Edges to do, with their targets.
        chunk: DevicePtr,
        /// `[N + 1]`
        target_start: DevicePtr,
        /// `[E][W]`
        wigner: DevicePtr,
        /// `[E]`
        envelope: DevicePtr,
        /// `[edges][R][C]` or `[edges][lmax + 1][C]` Value.
        message: DevicePtr,
        /// `[N][S][C]` gradient of the output.
        gradient: DevicePtr,
        /// Shape of `message`, Operand, written: gradient times gradient_scale. Not `message`.
        message_gradient: DevicePtr,
        /// `[E]`, written: a power of two for each edge of the chunk, the same for all edges of a
        /// system in a batch or alone. Null for 1 everywhere.
        gradient_scale: DevicePtr,
        /// `[E]`, added to.
        d_envelope: DevicePtr,
        /// `[E][3]`, added to.
        torque: DevicePtr,
        /// C.
        channels: u32,
        /// Constant factor.
        scale: f32,
        /// 1: d_envelope and torque are written instead.
        store: u32,
        /// 0
        pad: u32,
    }

    /// gate_edges_f32, _f16: rows of degree 0 through SiLU, of degree l times the sigmoid of gate l - 1.
    struct GateEdgesParams {
        /// Edges to do.
        chunk: DevicePtr,
        /// `[edges][lmax H | R H]` Value.
        x: DevicePtr,
        /// `[edges][R H]` Operand, written.
        out: DevicePtr,
        /// H.
        channels: u32,
        /// Largest degree.
        lmax: u32,
        /// Largest order on edges.
        mmax: u32,
        /// 0
        pad: u32,
    }

    /// gate_edges_backward_f32, _f16.
    struct GateEdgesBackwardParams {
        /// Edges to do.
        chunk: DevicePtr,
        /// `[edges][lmax H | R H]` Value.
        x: DevicePtr,
        /// `[edges][R H]` Value: gradient of the output.
        gradient: DevicePtr,
        /// `[edges][lmax H | R H]` Operand, written; may be `x` if that has the same type.
        x_gradient: DevicePtr,
        /// H.
        channels: u32,
        /// Largest degree.
        lmax: u32,
        /// Largest order on edges.
        mmax: u32,
        /// 0
        pad: u32,
    }

    /// gate_atoms: as gate_edges for atoms, gates in an array of their own.
    struct GateAtomsParams {
        /// Atoms to do.
        chunk: DevicePtr,
        /// `[N][S][H]`
        x: DevicePtr,
        /// `[N][lmax H]`
        gates: DevicePtr,
        /// `[N][S][H]`, written; may be `x`.
        out: DevicePtr,
        /// H.
        channels: u32,
        /// Largest degree.
        lmax: u32,
    }

    /// gate_atoms_backward.
    struct GateAtomsBackwardParams {
        /// Atoms to do.
        chunk: DevicePtr,
        /// `[N][S][H]`
        x: DevicePtr,
        /// `[N][lmax H]`
        gates: DevicePtr,
        /// `[N][S][H]` gradient of the output.
        gradient: DevicePtr,
        /// `[N][S][H]`; may be `gradient` when written.
        x_gradient: DevicePtr,
        /// `[N][lmax H]`
        gates_gradient: DevicePtr,
        /// `[N][lmax H]` what SiLU made the gates of, or null. With it, gates_gradient is the gradient of that.
        gates_pre: DevicePtr,
        /// H.
        channels: u32,
        /// Largest degree.
        lmax: u32,
        /// 1: both gradients are added to. 0: written.
        accumulate: u32,
        /// 0
        pad: u32,
    }

    /// embed_atoms: row 0 = `table[Z]` + conditioning of the system, other rows 0.
    struct EmbedAtomsParams {
        /// Atoms to do.
        chunk: DevicePtr,
        /// `[N]` atomic numbers.
        numbers: DevicePtr,
        /// `[N]`
        atom_system: DevicePtr,
        /// `[elements][C]`
        table: DevicePtr,
        /// `[systems][C]`
        conditioning: DevicePtr,
        /// `[N][S][C]`, written.
        out: DevicePtr,
        /// C.
        channels: u32,
        /// S.
        rows: u32,
    }

    /// rms_norm: see nn::Op::RmsNorm.
    struct RmsNormParams {
        /// Atoms to do.
        chunk: DevicePtr,
        /// `[N]`
        atom_system: DevicePtr,
        /// `[N][S][C]`
        x: DevicePtr,
        /// `[lmax + 1][C]`
        weight: DevicePtr,
        /// `[C]`
        bias: DevicePtr,
        /// `[systems][C]` added to degree 0 afterwards, or null.
        conditioning: DevicePtr,
        /// `[N][S][C]`, written; may be `x`.
        out: DevicePtr,
        /// C.
        channels: u32,
        /// Largest degree.
        lmax: u32,
    }

    /// rms_norm_backward: gradient of x.
    struct RmsNormBackwardParams {
        /// Atoms to do.
        chunk: DevicePtr,
        /// `[N][S][C]`
        x: DevicePtr,
        /// `[lmax + 1][C]`
        weight: DevicePtr,
        /// `[N][S][C]` gradient of the output.
        gradient: DevicePtr,
        /// `[N][S][C]` added to that, or null.
        second_gradient: DevicePtr,
        /// `[N][S][C]`; may be `gradient` when written.
        x_gradient: DevicePtr,
        /// C.
        channels: u32,
        /// Largest degree.
        lmax: u32,
        /// 1: added to. 0: written.
        accumulate: u32,
        /// 0
        pad: u32,
    }

    /// balance: x -= (sum over the atoms of the system - wanted) / atoms in some channels of degree 0, one
    /// range of them after the other. One block a system. Backwards: of the gradient, wanted = null.
    struct BalanceParams {
        /// `[systems + 1]`
        atom_start: DevicePtr,
        /// `[N][width]`, changed.
        x: DevicePtr,
        /// `[systems]` charge or unpaired electrons, or null for 0, for each range.
        wanted: [DevicePtr; 2],
        /// First channel of each range.
        first: [u32; 2],
        /// Number of channels of each.
        count: [u32; 2],
        /// Number of ranges.
        ranges: u32,
        /// Number of systems.
        systems: u32,
        /// Values of an atom, S C.
        width: u32,
        /// 0
        pad: u32,
    }

    /// silu_rows: out = SiLU(x).
    struct SiluRowsParams {
        /// Atoms to do.
        chunk: DevicePtr,
        /// `[N][width]`
        x: DevicePtr,
        /// `[N][width]`, written; may be `x`.
        out: DevicePtr,
        /// Values a row.
        width: u32,
        /// 0
        pad: u32,
    }

    /// silu_rows_backward: gradient of the values before SiLU.
    struct SiluRowsBackwardParams {
        /// Atoms to do.
        chunk: DevicePtr,
        /// `[N][width]` the values before SiLU.
        x: DevicePtr,
        /// `[N][width]` gradient of the output.
        gradient: DevicePtr,
        /// `[N][width]`; may be `gradient` when written.
        x_gradient: DevicePtr,
        /// Values a row.
        width: u32,
        /// 1: added to. 0: written.
        accumulate: u32,
    }

    /// add_nodes: y += x.
    struct AddNodesParams {
        /// Atoms to do.
        chunk: DevicePtr,
        /// `[N][width]`
        x: DevicePtr,
        /// `[N][width]`, added to.
        y: DevicePtr,
        /// Values a row.
        width: u32,
        /// 0
        pad: u32,
    }

    /// One block of columns.
    struct GemmSpan {
        /// First element in a row's memory of the operand.
        a_offset: u32,
        /// The same of the result.
        out_offset: u32,
        /// Summed over.
        k: u32,
        /// Columns of the result.
        n: u32,
        /// Rows for each item.
        rows: u32,
        /// First bias, or `NO_BIAS`.
        bias_offset: u32,
        /// First element of the matrix `[n][k]`.
        weight_offset: u64,
        /// Blocks of the grid before this span.
        first_block: u32,
        /// Tiles across its columns.
        column_tiles: u32,
    }

    /// out\[item\] = a\[item\] W^T (+ bias) (+ residual): `cuda/gemm.cu`.
    struct GemmParams {
        /// Operand, row-major items.
        a: DevicePtr,
        /// Matrices shared by all systems.
        weights: DevicePtr,
        /// Base of the matrices of each system instead, or null.
        weight_table: DevicePtr,
        /// f32.
        bias: DevicePtr,
        /// f32, laid out as `out` is, or null.
        residual: DevicePtr,
        /// Result.
        out: DevicePtr,
        /// Values before SiLU, or null.
        pre: DevicePtr,
        /// Tiles of the batch.
        tiles: DevicePtr,
        /// Their number.
        tile_count: DevicePtr,
        /// Item that lies first in memory, or null for 0.
        first_item: DevicePtr,
        /// Elements from one item to the next.
        a_stride: u64,
        /// The same of the result.
        out_stride: u64,
        /// The same of the residual.
        residual_stride: u64,
        /// `SILU`, `ACCUMULATE`.
        flags: u32,
        /// Number of spans.
        spans: u32,
        /// Channels H of a gated row.
        gate_channels: u32,
        /// Gate values before the rows.
        gate_values: u32,
        /// Degree of each edge row.
        row_degree: DevicePtr,
        /// The rows behind the gate.
        gated: DevicePtr,
        /// Elements from one item of them to the next.
        gated_stride: u64,
        /// Spans.
        span: [GemmSpan; 8],
    }

    /// What a radial row scales.
    struct RadialRow {
        /// l.
        degree: u32,
        /// m >= 0.
        order: u32,
        /// First number of row +m of D_l in a packed Wigner matrix.
        wigner: u32,
        /// The same of row -m.
        minus_wigner: u32,
        /// Edge row (l, m).
        row: u32,
        /// Edge row (l, -m).
        minus_row: u32,
    }

    /// radial = a W^T + bias, gathered = radial ⊙ D \[x(source) | x(target)\]: `cuda/gather_gemm.cu`.
    struct GatherGemmParams {
        /// One span; `out` is `[edges][radial rows][2C]` Value, or null.
        product: GemmParams,
        /// `[E]`
        source: DevicePtr,
        /// `[E]`
        target: DevicePtr,
        /// `[E][W]`
        wigner: DevicePtr,
        /// `[N][S][C]`
        x: DevicePtr,
        /// `[edges][R][2C]` Operand, written.
        gathered: DevicePtr,
        /// `[radial rows]`
        rows: DevicePtr,
        /// C.
        channels: u32,
        /// W.
        wigner_len: u32,
        /// S.
        atom_rows: u32,
        /// R.
        edge_rows: u32,
    }

    /// Mixing of experts: `cuda/mix.cu`.
    struct MixParams {
        /// `[experts][rows][columns]` f32.
        experts: DevicePtr,
        /// `[systems][experts]` f64.
        coefficients: DevicePtr,
        /// Base of the mixed weights of each system.
        bases: DevicePtr,
        /// Element at which the matrix starts.
        forward_offset: u64,
        /// Element at which its transpose starts.
        backward_offset: u64,
        /// Experts.
        expert_count: u32,
        /// Systems.
        systems: u32,
        /// Rows of an expert.
        rows: u32,
        /// Columns of an expert.
        columns: u32,
        /// Whether the rows are a real and an imaginary half.
        complex_map: u32,
        /// Unused.
        pad: u32,
    }

    /// How the atoms of one system are sorted into bins (src/neighbors/grid.rs), and its lattice.
    struct SearchGrid {
        /// Reduced basis vectors, rows, Angstrom.
        basis: [f64; 9],
        /// Lattice vectors of the cell as given, rows, Angstrom.
        vectors: [f64; 9],
        /// Each periodic basis vector as multiples of the given vectors, rows.
        multiples: [i32; 9],
        /// Bins along each basis vector.
        bins: [i32; 3],
        /// Bins to look at on either side.
        reach: [i32; 3],
        /// Periodic directions come first.
        periodic: i32,
        /// Square of the search radius: the cutoff and what rounding may hide.
        radius2: f64,
        /// Start of the system's bins in `bin_start`.
        first_bin: u64,
    }

    /// neighbor_count, neighbor_fill: the edges of every target, one warp each.
    struct NeighborParams {
        /// The whole batch: its atoms.
        batch: DevicePtr,
        /// See `cuda/neighbors.h`.
        atom_system: DevicePtr,
        /// `[systems + 1]`
        atom_start: DevicePtr,
        /// `[systems]`
        grids: DevicePtr,
        /// `[N][3]` Angstrom.
        position: DevicePtr,
        /// `[N][3]` positions moved into the reduced cell, in the order of `sorted`.
        wrapped: DevicePtr,
        /// `[N][3]` cell of each atom, multiples of the basis vectors.
        home: DevicePtr,
        /// `[N][3]` bin of each atom.
        bin: DevicePtr,
        /// `[N]` place of each atom in `sorted`.
        place: DevicePtr,
        /// `[N]` atoms of each system sorted by bin, counted over the batch.
        sorted: DevicePtr,
        /// Where in `sorted` each bin begins, one more entry for each system.
        bin_start: DevicePtr,
        /// `[N]` edges of each target: written by neighbor_count.
        degree: DevicePtr,
        /// `[N + 1]`
        target_start: DevicePtr,
        /// `[E]` edges as they are found: source, and image in multiples of the given vectors, packed.
        found_source: DevicePtr,
        /// See `cuda/neighbors.h`.
        found_image: DevicePtr,
        /// `[E]` edges sorted by source and image, written by neighbor_fill.
        source: DevicePtr,
        /// See `cuda/neighbors.h`.
        target: DevicePtr,
        /// See `cuda/neighbors.h`.
        image: DevicePtr,
        /// See `cuda/neighbors.h`.
        vector: DevicePtr,
        /// See NeighborStartParams.
        flags: DevicePtr,
        /// Square of the cutoff.
        cutoff2: f64,
    }

    /// neighbor_start: degrees -> target_start. One block.
    struct NeighborStartParams {
        /// The whole batch; its edge_end is written.
        batch: DevicePtr,
        /// See `cuda/neighbors.h`.
        degree: DevicePtr,
        /// `[N + 1]` written; source_start is the same in a symmetric list.
        target_start: DevicePtr,
        /// See `cuda/neighbors.h`.
        source_start: DevicePtr,
        /// `[4]`: edges found, largest degree, whether there are more edges than `capacity` (then the
        /// list is empty), 0. Written.
        flags: DevicePtr,
        /// See `cuda/neighbors.h`.
        capacity: u64,
    }

    /// neighbor_reverse: edges by source. One thread for each edge.
    struct NeighborReverseParams {
        /// See `cuda/neighbors.h`.
        batch: DevicePtr,
        /// See `cuda/neighbors.h`.
        target_start: DevicePtr,
        /// See `cuda/neighbors.h`.
        source: DevicePtr,
        /// See `cuda/neighbors.h`.
        target: DevicePtr,
        /// See `cuda/neighbors.h`.
        image: DevicePtr,
        /// `[E]` written.
        by_source: DevicePtr,
    }

    /// neighbor_chunks: cuts the edges into chunks and tiles. One block for each chunk.
    struct NeighborChunksParams {
        /// See `cuda/neighbors.h`.
        batch: DevicePtr,
        /// `[chunks]` written.
        chunks: DevicePtr,
        /// See `cuda/neighbors.h`.
        target_start: DevicePtr,
        /// See `cuda/neighbors.h`.
        atom_start: DevicePtr,
        /// `[systems + 1]` written.
        edge_start: DevicePtr,
        /// `[chunks][tiles]`
        tiles: DevicePtr,
        /// An atom belongs to chunk `first edge / chunk_edges`.
        chunk_edges: u64,
        /// See `cuda/neighbors.h`.
        chunk_count: u32,
        /// Most tiles of a chunk.
        tile_capacity: u32,
        /// See `cuda/neighbors.h`.
        systems: u32,
        /// See `cuda/neighbors.h`.
        pad: u32,
    }
}
