//! The list of operations with its buffers and weights, and the builder that makes it.

use super::op::{BalanceTarget, Op, RadialMlp, So2Weights};
use crate::so3::Layout;
use std::ops::Range;

/// A buffer of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Buf(pub usize);

/// What a row of a buffer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// One row per atom.
    Atom,
    /// One row per directed edge.
    Edge,
}

/// Size of a buffer.
#[derive(Clone, Debug, PartialEq)]
pub struct Buffer {
    /// For tests and tables, for example "block.0.conv_1".
    pub name: String,
    /// What a row is.
    pub domain: Domain,
    /// Values a row.
    pub width: usize,
}

/// A weight of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Weight(pub usize);

/// Where the numbers of a weight come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightKind {
    /// The same for every system.
    Fixed,
    /// Experts mixed by (composition, charge, spin, task): stored as `[experts][out][in]`.
    Mixed,
    /// One per task: stored as `[tasks][out][in]`.
    PerTask,
}

/// How an operation uses a weight, so that a backend can lay it out once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightUse {
    /// A vector or a table, as it is.
    Plain,
    /// y = W x, `[out][in]`.
    Linear,
    /// One `[out][in]` matrix per degree.
    LinearPerDegree,
    /// `[2 out][in]`: real half, imaginary half.
    Complex,
}

/// Name and shape of a weight.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightSlot {
    /// Name in the checkpoint.
    pub name: String,
    /// Shape without the leading expert or task index.
    pub shape: Vec<usize>,
    /// Where its numbers come from.
    pub kind: WeightKind,
    /// How it is used.
    pub usage: WeightUse,
}

/// A network for energies.
#[derive(Clone, Debug)]
pub struct Program {
    /// Spherical-harmonic layout.
    pub layout: Layout,
    /// Channels of a node tensor.
    pub channels: usize,
    /// Cutoff, Angstrom.
    pub cutoff: f64,
    /// Number of Gaussians from 0 to the cutoff.
    pub basis: usize,
    /// Buffers.
    pub buffers: Vec<Buffer>,
    /// Weights.
    pub weights: Vec<WeightSlot>,
    /// Operations in order.
    pub ops: Vec<Op>,
    /// Energy of each atom in units of the normaliser, width 1.
    pub atom_energy: Buf,
}

impl Program {
    /// Width of a buffer.
    pub fn width(&self, buf: Buf) -> usize {
        self.buffers[buf.0].width
    }

    /// Buffer of a name.
    pub fn find(&self, name: &str) -> Option<Buf> {
        self.buffers.iter().position(|b| b.name == name).map(Buf)
    }

    /// Multiply-accumulates of one forward pass, per edge and per atom: dense algebra only.
    pub fn cost(&self) -> (u64, u64) {
        let (mut edge, mut atom) = (0u64, 0u64);
        for op in &self.ops {
            let weights: Vec<Weight> = match op {
                Op::Radial { mlp, .. } => {
                    let a = self.weights[mlp.second.0.0].shape[0];
                    edge += (self.basis * a) as u64;
                    vec![mlp.second.0, mlp.third.0]
                }
                Op::So2Linear { weights, .. } => {
                    let complex: u64 = weights.m.iter().map(|w| self.elements(*w)).sum();
                    edge += 2 * complex;
                    vec![weights.m0]
                }
                Op::Linear { weight, .. } => {
                    atom += self.elements(*weight);
                    vec![]
                }
                Op::So3Linear {
                    channels_in,
                    channels_out,
                    ..
                } => {
                    atom += (self.layout.rows * channels_in * channels_out) as u64;
                    vec![]
                }
                Op::GatherRotateScale { .. } => {
                    edge += (self.layout.wigner_len * 2 * self.channels) as u64;
                    vec![]
                }
                Op::RotateScatter { .. } => {
                    edge += (self.layout.wigner_len * self.channels) as u64;
                    vec![]
                }
                _ => vec![],
            };
            edge += weights.iter().map(|w| self.elements(*w)).sum::<u64>();
        }
        (edge, atom)
    }

    fn elements(&self, weight: Weight) -> u64 {
        self.weights[weight.0].shape.iter().product::<usize>() as u64
    }
}

/// A place in the checkpoint's tree of names.
#[derive(Clone, Debug)]
pub struct Scope(String);

impl Scope {
    /// The scope of a name.
    pub fn new(name: impl Into<String>) -> Scope {
        Scope(name.into())
    }

    /// A scope below this one.
    pub fn at(&self, name: impl std::fmt::Display) -> Scope {
        Scope(format!("{}.{name}", self.0))
    }
}

/// Builds a [`Program`] operation by operation.
pub struct Builder {
    program: Program,
    prefix: String,
}

impl Builder {
    /// An empty program.
    pub fn new(layout: Layout, channels: usize, cutoff: f64, basis: usize) -> Builder {
        Builder {
            program: Program {
                layout,
                channels,
                cutoff,
                basis,
                buffers: vec![],
                weights: vec![],
                ops: vec![],
                atom_energy: Buf(0),
            },
            prefix: String::new(),
        }
    }

    /// Names of buffers from here on begin with this.
    pub fn section(&mut self, name: impl Into<String>) {
        self.prefix = name.into();
    }

    fn buffer(&mut self, name: &str, domain: Domain, width: usize) -> Buf {
        let name = if self.prefix.is_empty() {
            name.to_string()
        } else {
            format!("{}.{name}", self.prefix)
        };
        self.program.buffers.push(Buffer {
            name,
            domain,
            width,
        });
        Buf(self.program.buffers.len() - 1)
    }

    fn node(&mut self, name: &str, channels: usize) -> Buf {
        self.buffer(name, Domain::Atom, self.program.layout.rows * channels)
    }

    /// A weight by its full name; the same name gives the same weight.
    pub fn weight(
        &mut self,
        scope: &Scope,
        shape: &[usize],
        kind: WeightKind,
        usage: WeightUse,
    ) -> Weight {
        if let Some(i) = self.program.weights.iter().position(|w| w.name == scope.0) {
            return Weight(i);
        }
        self.program.weights.push(WeightSlot {
            name: scope.0.clone(),
            shape: shape.to_vec(),
            kind,
            usage,
        });
        Weight(self.program.weights.len() - 1)
    }

    fn plain(&mut self, scope: Scope, shape: &[usize]) -> Weight {
        self.weight(&scope, shape, WeightKind::Fixed, WeightUse::Plain)
    }

    fn linear_pair(&mut self, w: &Scope, out: usize, input: usize) -> (Weight, Weight) {
        let weight = self.weight(
            &w.at("weight"),
            &[out, input],
            WeightKind::Fixed,
            WeightUse::Linear,
        );
        (weight, self.plain(w.at("bias"), &[out]))
    }

    /// See [`Op::EmbedAtoms`].
    pub fn embed_atoms(&mut self, table: &Scope, elements: usize) -> Buf {
        let table = self.plain(table.at("weight"), &[elements, self.program.channels]);
        let out = self.node("embedding", self.program.channels);
        self.program.ops.push(Op::EmbedAtoms { table, out });
        out
    }

    /// See [`Op::Radial`]. `source`, `target`: element embeddings; `hidden`: A.
    pub fn radial(
        &mut self,
        w: &Scope,
        (source, target): (&Scope, &Scope),
        elements: usize,
        hidden: usize,
        width: usize,
    ) -> Buf {
        let net = w.at("net");
        let input = self.program.basis + 2 * hidden;
        let mlp = RadialMlp {
            // Split into its three column ranges by the backend, so it is not used as it is.
            first: self.plain(net.at(0).at("weight"), &[hidden, input]),
            first_bias: self.plain(net.at(0).at("bias"), &[hidden]),
            source_embedding: self.plain(source.at("weight"), &[elements, hidden]),
            target_embedding: self.plain(target.at("weight"), &[elements, hidden]),
            norm_1: (
                self.plain(net.at(1).at("weight"), &[hidden]),
                self.plain(net.at(1).at("bias"), &[hidden]),
            ),
            second: self.linear_pair(&net.at(3), hidden, hidden),
            norm_2: (
                self.plain(net.at(4).at("weight"), &[hidden]),
                self.plain(net.at(4).at("bias"), &[hidden]),
            ),
            third: self.linear_pair(&net.at(6), width, hidden),
        };
        let hidden_1 = self.buffer("radial_hidden_1", Domain::Edge, hidden);
        let hidden_2 = self.buffer("radial_hidden_2", Domain::Edge, hidden);
        let out = self.buffer("radial", Domain::Edge, width);
        self.program.ops.push(Op::Radial {
            mlp,
            hidden_1,
            hidden_2,
            out,
        });
        out
    }

    /// See [`Op::ScatterRadial`].
    pub fn scatter_radial(&mut self, radial: Buf, x: Buf, scale: f64) -> Buf {
        let out = self.node("edge_degree", self.program.channels);
        self.program.ops.push(Op::ScatterRadial {
            radial,
            x,
            scale,
            out,
        });
        out
    }

    /// See [`Op::RmsNorm`].
    pub fn rms_norm(&mut self, name: &str, w: &Scope, x: Buf, add_conditioning: bool) -> Buf {
        let (c, l) = (self.program.channels, self.program.layout.lmax);
        let weight = self.plain(w.at("affine_weight"), &[l + 1, c]);
        let bias = self.plain(w.at("affine_bias"), &[c]);
        let out = self.node(name, c);
        self.program.ops.push(Op::RmsNorm {
            x,
            weight,
            bias,
            add_conditioning,
            out,
        });
        out
    }

    /// See [`Op::GatherRotateScale`].
    pub fn gather_rotate_scale(&mut self, x: Buf, radial: Buf) -> Buf {
        let (rows, edge_rows) = (self.program.layout.rows, self.program.layout.edge_rows);
        let c = 2 * self.program.channels;
        let gradient = self.buffer("gathered_gradient", Domain::Edge, rows * c);
        let out = self.buffer("gathered", Domain::Edge, edge_rows * c);
        self.program.ops.push(Op::GatherRotateScale {
            x,
            radial,
            gradient,
            out,
        });
        out
    }

    /// See [`Op::So2Linear`].
    pub fn so2_linear(
        &mut self,
        name: &str,
        w: &Scope,
        x: Buf,
        (channels_in, channels_out): (usize, usize),
        gates: usize,
        mixed: bool,
    ) -> Buf {
        let layout = self.program.layout.clone();
        let (kind, leaf) = if mixed {
            (WeightKind::Mixed, "weights")
        } else {
            (WeightKind::Fixed, "weight")
        };
        let n0 = layout.lmax + 1;
        let m0_out = gates + n0 * channels_out;
        let weights = So2Weights {
            m0: self.weight(
                &w.at("fc_m0").at(leaf),
                &[m0_out, n0 * channels_in],
                kind,
                WeightUse::Linear,
            ),
            m0_bias: self.plain(w.at("fc_m0").at("bias"), &[m0_out]),
            m: layout
                .blocks
                .iter()
                .map(|block| {
                    self.weight(
                        &w.at("so2_m_conv").at(block.m - 1).at("fc").at(leaf),
                        &[
                            2 * block.degrees * channels_out,
                            block.degrees * channels_in,
                        ],
                        kind,
                        WeightUse::Complex,
                    )
                })
                .collect(),
        };
        let out = self.buffer(name, Domain::Edge, gates + layout.edge_rows * channels_out);
        self.program.ops.push(Op::So2Linear {
            x,
            weights,
            channels_in,
            channels_out,
            gates,
            out,
        });
        out
    }

    /// See [`Op::GateEdges`].
    pub fn gate_edges(&mut self, x: Buf, channels: usize) -> Buf {
        let width = self.program.layout.edge_rows * channels;
        let out = self.buffer("gated", Domain::Edge, width);
        self.program.ops.push(Op::GateEdges { x, channels, out });
        out
    }

    /// See [`Op::RotateScatter`].
    pub fn rotate_scatter(&mut self, message: Buf, x: Buf) -> Buf {
        let out = self.node("after_edges", self.program.channels);
        self.program.ops.push(Op::RotateScatter { message, x, out });
        out
    }

    /// See [`Op::Linear`]. The weight is fixed, or one per task.
    pub fn linear(
        &mut self,
        name: &str,
        w: &Scope,
        x: Buf,
        (input, output): (usize, usize),
        per_task: bool,
        silu: bool,
    ) -> Buf {
        let (kind, leaf) = if per_task {
            (WeightKind::PerTask, "weights")
        } else {
            (WeightKind::Fixed, "weight")
        };
        let weight = self.weight(&w.at(leaf), &[output, input], kind, WeightUse::Linear);
        let bias = self.plain(w.at("bias"), &[output]);
        let out = self.buffer(name, Domain::Atom, output);
        let pre = if silu {
            self.buffer(&format!("{name}_pre"), Domain::Atom, output)
        } else {
            out
        };
        self.program.ops.push(Op::Linear {
            x,
            weight,
            bias,
            silu,
            pre,
            out,
        });
        out
    }

    /// See [`Op::So3Linear`].
    pub fn so3_linear(
        &mut self,
        name: &str,
        w: &Scope,
        x: Buf,
        (channels_in, channels_out): (usize, usize),
        residual: Option<Buf>,
    ) -> Buf {
        let degrees = self.program.layout.lmax + 1;
        let weight = self.weight(
            &w.at("weight"),
            &[degrees, channels_out, channels_in],
            WeightKind::Fixed,
            WeightUse::LinearPerDegree,
        );
        let bias = self.plain(w.at("bias"), &[channels_out]);
        let out = self.node(name, channels_out);
        self.program.ops.push(Op::So3Linear {
            x,
            weight,
            bias,
            channels_in,
            channels_out,
            residual,
            out,
        });
        out
    }

    /// See [`Op::GateAtoms`].
    pub fn gate_atoms(&mut self, x: Buf, gates: Buf, channels: usize) -> Buf {
        let out = self.node("feed_forward_gated", channels);
        self.program.ops.push(Op::GateAtoms {
            x,
            gates,
            channels,
            out,
        });
        out
    }

    /// See [`Op::Balance`].
    pub fn balance(&mut self, x: Buf, channels: Range<usize>, target: BalanceTarget) -> Buf {
        let out = self.node("balanced", self.program.channels);
        self.program.ops.push(Op::Balance {
            x,
            channels,
            target,
            out,
        });
        out
    }

    /// Ends the program: `atom_energy` is the answer.
    pub fn finish(mut self, atom_energy: Buf) -> Program {
        assert_eq!(self.program.width(atom_energy), 1);
        self.program.atom_energy = atom_energy;
        self.program
    }
}
