//! The operations.
//!
//! Shapes: C channels, S = (lmax + 1)^2 atom rows, R edge rows (m-primary order), N atoms, E edges.
//! A node tensor is `[N][S][C]`, an edge tensor `[E][R][C]`, channel fastest. D is the edge's
//! Wigner matrix restricted to the edge rows (`so3::wigner`), p(d) its envelope.
//!
//! The gradient with respect to an edge vector v = d e is assembled from three quantities that
//! the backward pass accumulates per edge: dE/dd through the radial functions, dE/dp, and the
//! torque t_k = dE/dw_k of a small rotation w of the edge frame. Rotating in adds
//! n_bar^T G_k n, rotating out subtracts m_bar^T G_k m, both in the unrotated frame, with G_k the
//! generators of rotations. Then dE/dv = (dE/dd + dE/dp p'(d)) e + (e x t) / d. Nothing is
//! differentiated through the rotation itself, so nothing is singular for edges along the axis.

use super::program::{Buf, Weight};
use std::ops::Range;

/// What a balanced channel must sum to over the atoms of a system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BalanceTarget {
    /// The total charge.
    Charge,
    /// The number of unpaired electrons: spin multiplicity - 1.
    UnpairedElectrons,
}

/// Linear -> LayerNorm -> SiLU -> Linear -> LayerNorm -> SiLU -> Linear on the distance expanded
/// in Gaussians, beside an embedding of the source and one of the target element.
#[derive(Clone, Debug, PartialEq)]
pub struct RadialMlp {
    /// First layer, `[A][basis + 2 A]`: Gaussians, source embedding, target embedding.
    pub first: Weight,
    /// `[A]`
    pub first_bias: Weight,
    /// Element embedding of sources, `[elements][A]`.
    pub source_embedding: Weight,
    /// Element embedding of targets, `[elements][A]`.
    pub target_embedding: Weight,
    /// LayerNorm after the first layer, `[A]` each.
    pub norm_1: (Weight, Weight),
    /// `[A][A]`, `[A]`
    pub second: (Weight, Weight),
    /// LayerNorm after the second layer, `[A]` each.
    pub norm_2: (Weight, Weight),
    /// `[out][A]`, `[out]`
    pub third: (Weight, Weight),
}

/// An SO(2)-equivariant linear map: one dense block for m = 0 and a complex one for each m > 0.
#[derive(Clone, Debug, PartialEq)]
pub struct So2Weights {
    /// `[gates + (lmax + 1) out][(lmax + 1) in]`
    pub m0: Weight,
    /// `[gates + (lmax + 1) out]`
    pub m0_bias: Weight,
    /// For m = 1..=mmax: `[2 n out][n in]` with n = lmax - m + 1; the first half multiplies as the
    /// real part, the second as the imaginary part.
    pub m: Vec<Weight>,
}

/// One operation. `out` is written, everything else read.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// out\[i\]\[0\] = table\[Z_i\] + conditioning of the system; other rows 0. `[N][S][C]`
    EmbedAtoms {
        /// `[elements][C]`
        table: Weight,
        /// Node tensor.
        out: Buf,
    },
    /// out\[e\] = MLP(Gaussians(d_e), Z_source, Z_target). `[E][width]`
    Radial {
        /// Weights.
        mlp: RadialMlp,
        /// Output of the first layer before its norm, kept for the gradient. `[E][A]`
        hidden_1: Buf,
        /// Output of the second layer before its norm. `[E][A]`
        hidden_2: Buf,
        /// `[E][width]`
        out: Buf,
    },
    /// out\[i\] = x\[i\] + scale sum over edges to i of p D^T (radial in the m = 0 rows).
    ScatterRadial {
        /// `[E][(lmax + 1) C]`
        radial: Buf,
        /// Node tensor added to.
        x: Buf,
        /// Constant factor.
        scale: f64,
        /// Node tensor.
        out: Buf,
    },
    /// Root-mean-square norm over all degrees, degree 0 centred over channels, one scale per atom:
    /// `y = z (mean_c sum_rows w_row z^2 + 1e-5)^(-1/2) weight[l]`, w = 1 / ((2l + 1)(lmax + 1)).
    RmsNorm {
        /// Node tensor.
        x: Buf,
        /// `[lmax + 1][C]`
        weight: Weight,
        /// `[C]`, degree 0 only.
        bias: Weight,
        /// Whether the conditioning of the system is added to degree 0 afterwards.
        add_conditioning: bool,
        /// Node tensor.
        out: Buf,
    },
    /// out\[e\] = radial ⊙ D [x_source | x_target]. `[E][R][2C]`; the radial numbers are shared by
    /// +m and -m.
    GatherRotateScale {
        /// Node tensor.
        x: Buf,
        /// `[E][radial width of 2C]`
        radial: Buf,
        /// D^T of the gradient, kept between the edge and the atom half of the backward pass.
        /// `[E][S][2C]`
        gradient: Buf,
        /// `[E][R][2C]`
        out: Buf,
    },
    /// `[E][R][in]` -> `[E][gates | R][out]`: gates are extra outputs of the m = 0 block.
    So2Linear {
        /// `[E][R][in]`
        x: Buf,
        /// Weights, possibly mixed per system.
        weights: So2Weights,
        /// Channels in.
        channels_in: usize,
        /// Channels out.
        channels_out: usize,
        /// Extra scalar outputs, first in each row.
        gates: usize,
        /// `[E][gates + R out]`
        out: Buf,
    },
    /// Degree 0: SiLU; degree l: times sigmoid of gate l - 1. `[E][lmax H | R H]` -> `[E][R H]`
    GateEdges {
        /// Gates first, then the rows.
        x: Buf,
        /// Channels H.
        channels: usize,
        /// `[E][R][H]`
        out: Buf,
    },
    /// out\[i\] = x\[i\] + sum over edges to i of p D^T message.
    RotateScatter {
        /// `[E][R][C]`
        message: Buf,
        /// Node tensor added to (the residual).
        x: Buf,
        /// Node tensor.
        out: Buf,
    },
    /// out = x\[first `in` values\] W^T + b, per atom.
    Linear {
        /// Atom buffer of at least `in` values a row.
        x: Buf,
        /// `[out][in]`
        weight: Weight,
        /// `[out]`
        bias: Weight,
        /// Whether SiLU follows.
        silu: bool,
        /// The values before SiLU, kept for the gradient (`out` itself without SiLU).
        pre: Buf,
        /// `[N][out]`
        out: Buf,
    },
    /// Linear map per degree, `[N][S][in]` -> `[N][S][out]`, bias on degree 0.
    So3Linear {
        /// Node tensor.
        x: Buf,
        /// `[lmax + 1][out][in]`
        weight: Weight,
        /// `[out]`
        bias: Weight,
        /// Channels in.
        channels_in: usize,
        /// Channels out.
        channels_out: usize,
        /// Node tensor added to the result (the residual), if any.
        residual: Option<Buf>,
        /// Node tensor.
        out: Buf,
    },
    /// Degree 0: SiLU; degree l: times sigmoid of gate l - 1. `[N][S][H]`
    GateAtoms {
        /// Node tensor.
        x: Buf,
        /// `[N][lmax H]`
        gates: Buf,
        /// Channels H.
        channels: usize,
        /// Node tensor.
        out: Buf,
    },
    /// Shifts some channels of degree 0 alike on all atoms of a system so that they sum to the
    /// target.
    Balance {
        /// Node tensor.
        x: Buf,
        /// Which channels.
        channels: Range<usize>,
        /// What they sum to.
        target: BalanceTarget,
        /// Node tensor.
        out: Buf,
    },
}

/// On what rows an operation runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grain {
    /// Any range of edges of one system.
    Edges,
    /// Any range of atoms of one system.
    Atoms,
    /// All atoms of one system at once.
    System,
}

impl Op {
    /// The rows that the forward pass of this operation runs on.
    pub fn forward_grain(&self) -> Grain {
        match self {
            Op::Radial { .. }
            | Op::GatherRotateScale { .. }
            | Op::So2Linear { .. }
            | Op::GateEdges { .. } => Grain::Edges,
            Op::Balance { .. } => Grain::System,
            Op::EmbedAtoms { .. }
            | Op::ScatterRadial { .. }
            | Op::RmsNorm { .. }
            | Op::RotateScatter { .. }
            | Op::Linear { .. }
            | Op::So3Linear { .. }
            | Op::GateAtoms { .. } => Grain::Atoms,
        }
    }

    /// The rows that the backward pass runs on: first one half, then possibly another.
    ///
    /// Scattering to atoms runs backwards as a gather on edges; its residual is passed on by atom.
    /// Gathering runs backwards on edges first and is then summed by atom.
    pub fn backward_grains(&self) -> (Grain, Option<Grain>) {
        match self {
            Op::GatherRotateScale { .. } => (Grain::Edges, Some(Grain::Atoms)),
            Op::ScatterRadial { .. } | Op::RotateScatter { .. } => {
                (Grain::Edges, Some(Grain::Atoms))
            }
            other => (other.forward_grain(), None),
        }
    }

    /// The buffer that the operation writes.
    pub fn out(&self) -> Buf {
        match *self {
            Op::EmbedAtoms { out, .. }
            | Op::Radial { out, .. }
            | Op::ScatterRadial { out, .. }
            | Op::RmsNorm { out, .. }
            | Op::GatherRotateScale { out, .. }
            | Op::So2Linear { out, .. }
            | Op::GateEdges { out, .. }
            | Op::RotateScatter { out, .. }
            | Op::Linear { out, .. }
            | Op::So3Linear { out, .. }
            | Op::GateAtoms { out, .. }
            | Op::Balance { out, .. } => out,
        }
    }

    /// All buffers that the forward pass writes.
    pub fn writes(&self) -> Vec<Buf> {
        match *self {
            Op::Radial {
                hidden_1,
                hidden_2,
                out,
                ..
            } => vec![hidden_1, hidden_2, out],
            Op::Linear { pre, out, .. } if pre != out => vec![pre, out],
            _ => vec![self.out()],
        }
    }

    /// Values that the backward pass reads.
    pub fn kept(&self) -> Vec<Buf> {
        match *self {
            Op::EmbedAtoms { .. } | Op::Balance { .. } | Op::So2Linear { .. } => vec![],
            Op::So3Linear { .. } => vec![],
            Op::Radial {
                hidden_1, hidden_2, ..
            } => vec![hidden_1, hidden_2],
            Op::ScatterRadial { radial, .. } => vec![radial],
            Op::RmsNorm { x, .. } => vec![x],
            Op::GatherRotateScale { x, radial, .. } => vec![x, radial],
            Op::GateEdges { x, .. } => vec![x],
            Op::RotateScatter { message, .. } => vec![message],
            Op::Linear { pre, .. } => vec![pre],
            Op::GateAtoms { x, gates, .. } => vec![x, gates],
        }
    }
}
