//! How a program runs on a device: its stages, and where every buffer lies.
//!
//! Operations on edges, up to the sum over edges that ends them, form one *edge stage*; it runs
//! chunk by chunk over ranges of target atoms, so that its edge buffers need memory for one chunk
//! only. On the way back the edge values are computed again, except those that were kept. Every
//! other operation is a stage of its own.

use super::arena::{Arena, Use};
use super::error::CudaError;
use super::gradients::Gradients;
use super::precision::{EdgeNumbers, Number};
use crate::nn::op::Grain;
use crate::nn::{Buf, Domain, Op, Program};

/// Kept buffers begin at multiples of this, bytes a row.
pub const KEPT_ALIGN: usize = 16;

/// A part of the program that runs as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// One operation on atoms.
    Atoms(usize),
    /// Operations on edges, the last of which sums over the edges of each atom.
    Edges(EdgeStage),
}

/// Operations on edges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeStage {
    /// Indices of operations in order; the last is the sum over edges.
    pub ops: Vec<usize>,
    /// Operations that the kernel of the one right before them does too: (that one, operation).
    pub fused: Vec<(usize, usize)>,
}

impl EdgeStage {
    /// What an operation does too when `ops` run, both of them among these.
    pub fn follower(&self, i: usize, ops: &[usize]) -> Option<usize> {
        let pair = self.fused.iter().find(|pair| pair.0 == i)?;
        ops.contains(&pair.1).then_some(pair.1)
    }

    /// The one among `ops` that does an operation too.
    pub fn leader(&self, i: usize, ops: &[usize]) -> Option<usize> {
        let pair = self.fused.iter().find(|pair| pair.1 == i)?;
        ops.contains(&pair.0).then_some(pair.0)
    }
}

/// Edge buffers of one stage.
#[derive(Clone, Debug)]
pub struct EdgeBuffers {
    /// In the forward pass.
    pub forward: Arena<EdgeKey>,
    /// In the backward pass, with what runs again before it.
    pub backward: Arena<EdgeKey>,
}

/// An edge buffer of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EdgeKey {
    /// Values of a buffer of the program.
    Value(Buf),
    /// Their gradient.
    Gradient(Buf),
    /// Scratch of a radial network (by operation): activations after layer 1 or 2.
    Activation(usize, u8),
    /// Gradients of the activations after layer 1 or 2, and (3) of layer 2 before its norm.
    ActivationGradient(usize, u8),
}

/// An atom buffer of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtomKey {
    /// Values of a buffer of the program.
    Value(Buf),
    /// Their gradient.
    Gradient(Buf),
    /// Sum of the source halves of a gathered gradient (by operation).
    Source(usize),
}

/// How many edge values are kept from the forward to the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Keep {
    /// None: every edge stage runs its forward pass again.
    Nothing,
    /// What enters gates.
    Gates,
    /// Also the messages.
    Messages,
    /// Also the radial networks: nothing runs again.
    Everything,
}

/// The plan of one program.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Stages in forward order.
    pub stages: Vec<Stage>,
    /// Atom buffers of a pass.
    pub atoms: Arena<AtomKey>,
    /// Edge buffers of a chunk, by stage.
    pub edges: Vec<EdgeBuffers>,
    /// Bytes for each edge of a chunk: the same memory serves all stages.
    pub edge_bytes: usize,
    /// Which edge buffers are kept, and where: bytes for each edge.
    pub kept: Vec<(Buf, usize)>,
    /// Bytes for each edge of what is kept.
    pub kept_bytes: usize,
    /// Number types of edge values.
    pub numbers: EdgeNumbers,
    /// How the gradients of atom buffers come about.
    pub gradients: Gradients,
    /// The radial networks, by operation.
    pub networks: Vec<usize>,
}

/// Edge buffers that an operation reads.
fn edge_inputs(op: &Op) -> Vec<Buf> {
    match *op {
        Op::GatherRotateScale { radial, .. } => vec![radial],
        Op::So2Linear { x, .. } | Op::GateEdges { x, .. } => vec![x],
        Op::RotateScatter { message, .. } => vec![message],
        Op::ScatterRadial { radial, .. } => vec![radial],
        _ => vec![],
    }
}

/// Atom buffers that an operation reads.
fn atom_inputs(op: &Op) -> Vec<Buf> {
    match *op {
        Op::EmbedAtoms { .. } | Op::Radial { .. } | Op::So2Linear { .. } | Op::GateEdges { .. } => {
            vec![]
        }
        Op::ScatterRadial { x, .. }
        | Op::RmsNorm { x, .. }
        | Op::GatherRotateScale { x, .. }
        | Op::RotateScatter { x, .. }
        | Op::Linear { x, .. }
        | Op::Balance { x, .. } => vec![x],
        Op::So3Linear { x, residual, .. } => residual.into_iter().chain([x]).collect(),
        Op::GateAtoms { x, gates, .. } => vec![x, gates],
    }
}

/// Atom buffers whose values an operation's backward pass reads.
fn atom_kept(program: &Program, op: &Op) -> Vec<Buf> {
    let mut kept = op.kept();
    kept.retain(|b| program.buffers[b.0].domain == Domain::Atom);
    kept
}

impl Plan {
    /// Plans a program.
    ///
    /// # Errors
    /// Programs whose edge values are used beyond the sum over edges that follows them, or by more
    /// than one operation: no network of this kind has them.
    pub fn new(program: &Program, numbers: EdgeNumbers, keep: Keep) -> Result<Plan, CudaError> {
        let stages = stages(program, numbers)?;
        let kept_buffers = kept_buffers(program, &stages, keep, numbers);
        let mut kept = Vec::new();
        let mut kept_bytes = 0;
        for (buf, number) in kept_buffers {
            kept.push((buf, kept_bytes));
            kept_bytes += (program.width(buf) * number.bytes()).next_multiple_of(KEPT_ALIGN);
        }
        let is_kept = |buf: Buf| kept.iter().any(|(b, _)| *b == buf);
        if let Some(Op::Linear { silu: false, .. }) = program
            .ops
            .iter()
            .find(|op| op.out() == program.atom_energy)
            && !(program.ops.iter()).any(|op| atom_inputs(op).contains(&program.atom_energy))
        {
        } else {
            return Err(CudaError::Unsupported(
                "energies of atoms that are not the result of a linear map, or read again".into(),
            ));
        }
        let edges: Vec<EdgeBuffers> = stages
            .iter()
            .map(|stage| match stage {
                Stage::Atoms(_) => EdgeBuffers {
                    forward: Arena::plan(&[]),
                    backward: Arena::plan(&[]),
                },
                Stage::Edges(stage) => edge_buffers(program, stage, numbers, &is_kept),
            })
            .collect();
        let edge_bytes = edges
            .iter()
            .map(|e| e.forward.bytes.max(e.backward.bytes))
            .max()
            .unwrap_or(0);
        let gradients = Gradients::new(program, &stages);
        Ok(Plan {
            atoms: Arena::plan(&atom_uses(program, &stages, &gradients)),
            gradients,
            networks: networks(program),
            edges,
            edge_bytes,
            stages,
            kept,
            kept_bytes,
            numbers,
        })
    }

    /// Which radial network an operation is.
    pub fn network(&self, op: usize) -> usize {
        let found = self.networks.iter().position(|&i| i == op);
        found.expect("every radial network is listed")
    }

    /// Which edge stage a stage is, counted without those on atoms.
    pub fn edge_stage(&self, stage: usize) -> usize {
        let before = self.stages[..stage].iter();
        before.filter(|s| matches!(s, Stage::Edges(_))).count()
    }

    /// Edge stages.
    pub fn edge_stages(&self) -> usize {
        self.edge_stage(self.stages.len())
    }

    /// The hidden buffers of the first radial network, if those of all networks are kept one after the other,
    /// so that one launch has the first layers of all: values after the first layer, and (with everything
    /// kept) before the second norm.
    pub fn first_layers(&self, program: &Program) -> (Option<Buf>, Option<Buf>) {
        let Some(Op::Radial {
            hidden_1, hidden_2, ..
        }) = self.networks.first().map(|&i| &program.ops[i])
        else {
            return (None, None);
        };
        let kept = |buf: Buf| self.kept_at(buf).map(|_| buf);
        let first = kept(*hidden_1);
        (first, first.and_then(|_| kept(*hidden_2)))
    }

    /// Whether a buffer is kept, and where.
    pub fn kept_at(&self, buf: Buf) -> Option<usize> {
        self.kept.iter().find(|(b, _)| *b == buf).map(|k| k.1)
    }

    /// Operations of an edge stage that run again before its backward pass, in order.
    pub fn again(&self, program: &Program, stage: &EdgeStage) -> Vec<usize> {
        again(program, stage, &|buf| self.kept_at(buf).is_some())
    }
}

fn stages(program: &Program, numbers: EdgeNumbers) -> Result<Vec<Stage>, CudaError> {
    let mut stages = Vec::new();
    let mut open: Vec<usize> = Vec::new();
    for (i, op) in program.ops.iter().enumerate() {
        match op {
            op if op.forward_grain() == Grain::Edges => open.push(i),
            Op::RotateScatter { .. } | Op::ScatterRadial { .. } => {
                open.push(i);
                let ops = std::mem::take(&mut open);
                stages.push(Stage::Edges(EdgeStage {
                    fused: fused(program, &ops, numbers),
                    ops,
                }));
            }
            _ if open.is_empty() => stages.push(Stage::Atoms(i)),
            _ => {
                return Err(CudaError::Unsupported(format!(
                    "operation {i} on atoms between operations on edges"
                )));
            }
        }
    }
    if !open.is_empty() {
        return Err(CudaError::Unsupported(
            "operations on edges that no sum over edges follows".into(),
        ));
    }
    for stage in &stages {
        let Stage::Edges(stage) = stage else { continue };
        for &i in &stage.ops {
            for buf in edge_inputs(&program.ops[i]) {
                let readers = program
                    .ops
                    .iter()
                    .filter(|op| edge_inputs(op).contains(&buf));
                let made_here = stage
                    .ops
                    .iter()
                    .any(|&j| program.ops[j].writes().contains(&buf));
                if readers.count() > 1 || !made_here {
                    return Err(CudaError::Unsupported(format!(
                        "edge buffer {} read by several operations",
                        program.buffers[buf.0].name
                    )));
                }
            }
        }
    }
    Ok(stages)
}

/// A gather right after its radial network, and a gate right after the SO(2) map that makes its gates,
/// where a product reads the result.
fn fused(program: &Program, ops: &[usize], numbers: EdgeNumbers) -> Vec<(usize, usize)> {
    let operand = |buf: Buf| value_number(program, numbers, buf) == numbers.operands;
    let fits = |pair: &&[usize]| match (&program.ops[pair[0]], &program.ops[pair[1]]) {
        (
            Op::Radial { out, .. },
            Op::GatherRotateScale {
                radial, out: rows, ..
            },
        ) => out == radial && operand(*rows),
        (
            Op::So2Linear {
                x,
                channels_out,
                gates,
                out,
                ..
            },
            Op::GateEdges {
                x: gated,
                channels,
                out: rows,
            },
        ) => {
            out == gated
                && channels == channels_out
                && *gates == program.layout.lmax * channels
                && *gates > 0
                && operand(*x)
                && operand(*rows)
        }
        _ => false,
    };
    let pairs = ops.windows(2).filter(fits);
    pairs.map(|pair| (pair[0], pair[1])).collect()
}

/// The radial networks, by operation.
fn networks(program: &Program) -> Vec<usize> {
    let ops = program.ops.iter().enumerate();
    ops.filter(|(_, op)| matches!(op, Op::Radial { .. }))
        .map(|(i, _)| i)
        .collect()
}

/// Whether the first layers of all radial networks can be one launch: they have the same width, and every
/// edge stage has one of them, whose gradients carry that stage's factor.
fn is_uniform(program: &Program, stages: &[Stage]) -> bool {
    let width = |i: &usize| match &program.ops[*i] {
        Op::Radial { mlp, .. } => program.weights[mlp.first_bias.0].shape[0],
        _ => 0,
    };
    let networks = networks(program);
    let same = networks.windows(2).all(|w| width(&w[0]) == width(&w[1]));
    let one = stages.iter().all(|stage| match stage {
        Stage::Atoms(_) => true,
        Stage::Edges(stage) => stage.ops.iter().filter(|i| networks.contains(i)).count() == 1,
    });
    same && one
}

/// The buffers with their number types. Those of radial networks come first, one kind after the other.
fn kept_buffers(
    program: &Program,
    stages: &[Stage],
    keep: Keep,
    numbers: EdgeNumbers,
) -> Vec<(Buf, Number)> {
    let mut kept = Vec::new();
    let of_networks = |of: &dyn Fn(&Op) -> Option<(Buf, Number)>| -> Vec<(Buf, Number)> {
        let networks = networks(program).into_iter();
        networks.filter_map(|i| of(&program.ops[i])).collect()
    };
    // With nothing kept memory is short, and the first layers are made where they are needed.
    if keep >= Keep::Gates && is_uniform(program, stages) {
        kept.extend(of_networks(&|op| match op {
            Op::Radial { hidden_1, .. } => Some((*hidden_1, numbers.operands)),
            _ => None,
        }));
    }
    if keep >= Keep::Everything {
        kept.extend(of_networks(&|op| match op {
            Op::Radial { hidden_2, .. } => Some((*hidden_2, Number::F32)),
            _ => None,
        }));
    }
    for stage in stages {
        let Stage::Edges(stage) = stage else { continue };
        for &i in &stage.ops {
            match program.ops[i] {
                Op::GateEdges { x, .. } if keep >= Keep::Gates => {
                    kept.push((x, value_number(program, numbers, x)));
                }
                Op::RotateScatter { message, .. } if keep >= Keep::Messages => {
                    kept.push((message, value_number(program, numbers, message)));
                }
                Op::Radial { out, .. } if keep >= Keep::Everything => {
                    kept.push((out, numbers.values));
                }
                _ => {}
            }
        }
    }
    kept
}

fn is_product(op: &Op) -> bool {
    matches!(op, Op::So2Linear { .. } | Op::Radial { .. })
}

/// The operation that writes an edge buffer and the one that reads it.
fn maker_and_reader(program: &Program, buf: Buf) -> (Option<&Op>, Option<&Op>) {
    let find = |found: &dyn Fn(&Op) -> bool| program.ops.iter().find(|op| found(op));
    (
        find(&|op| op.writes().contains(&buf)),
        find(&|op| edge_inputs(op).contains(&buf)),
    )
}

/// How the values of an edge buffer lie in memory: as operands where a product reads them, unless
/// they are the result of another.
pub fn value_number(program: &Program, numbers: EdgeNumbers, buf: Buf) -> Number {
    let (maker, reader) = maker_and_reader(program, buf);
    numbers.number(reader.is_some_and(is_product) && !maker.is_some_and(is_product))
}

/// The same for the gradient of an edge buffer, on the way back: the product that made the buffer
/// reads it.
pub fn gradient_number(program: &Program, numbers: EdgeNumbers, buf: Buf) -> Number {
    let (maker, reader) = maker_and_reader(program, buf);
    numbers.number(maker.is_some_and(is_product) && !reader.is_some_and(is_product))
}

fn again(program: &Program, stage: &EdgeStage, kept: &dyn Fn(Buf) -> bool) -> Vec<usize> {
    let mut needed: Vec<Buf> = stage
        .ops
        .iter()
        .flat_map(|&i| match &program.ops[i] {
            // Its backward pass computes the first layer again by itself.
            Op::Radial { hidden_2, .. } => vec![*hidden_2],
            op => op.kept(),
        })
        .filter(|b| program.buffers[b.0].domain == Domain::Edge && !kept(*b))
        .collect();
    let mut ops = Vec::new();
    for &i in stage.ops.iter().rev() {
        let op = &program.ops[i];
        let is_sum = op.forward_grain() != Grain::Edges;
        if is_sum || !op.writes().iter().any(|b| needed.contains(b)) {
            continue;
        }
        needed.extend(edge_inputs(op).into_iter().filter(|b| !kept(*b)));
        ops.push(i);
    }
    ops.reverse();
    ops
}

/// Uses of the values that operations write one after the other: from the step of the operation
/// to `last_read`.
fn value_uses(
    program: &Program,
    stage: &EdgeStage,
    numbers: EdgeNumbers,
    kept: &dyn Fn(Buf) -> bool,
    order: &[usize],
    last_read: &dyn Fn(Buf) -> Option<usize>,
) -> Vec<Use<EdgeKey>> {
    let operands = numbers.operands.bytes();
    let mut uses = Vec::new();
    for (step, &i) in order.iter().enumerate() {
        // What the operation before does too is written then.
        let leader = stage.leader(i, order);
        let earlier = leader.and_then(|leader| order.iter().position(|&j| j == leader));
        let mut push = |key, bytes, end: Option<usize>| {
            uses.push(Use {
                key,
                bytes,
                start: earlier.unwrap_or(step),
                end: end.unwrap_or(step).max(step),
            });
        };
        match &program.ops[i] {
            Op::Radial {
                mlp,
                hidden_1,
                hidden_2,
                out,
            } => {
                let width = program.weights[mlp.first_bias.0].shape[0];
                if !kept(*hidden_1) {
                    push(EdgeKey::Activation(i, 1), width * operands, None);
                }
                push(EdgeKey::Activation(i, 2), width * operands, None);
                let out_bytes = program.width(*out) * numbers.values.bytes();
                for (buf, bytes) in [(*hidden_2, width * 4), (*out, out_bytes)] {
                    // Radial numbers may be used up where they are made.
                    let passing = buf == *out
                        && stage.follower(i, order).is_some()
                        && last_read(buf).is_none();
                    if !kept(buf) && !passing {
                        push(EdgeKey::Value(buf), bytes, last_read(buf));
                    }
                }
            }
            op if op.forward_grain() == Grain::Edges && !kept(op.out()) => {
                let number = value_number(program, numbers, op.out());
                let bytes = program.width(op.out()) * number.bytes();
                push(EdgeKey::Value(op.out()), bytes, last_read(op.out()));
            }
            _ => {}
        }
    }
    uses
}

fn edge_buffers(
    program: &Program,
    stage: &EdgeStage,
    numbers: EdgeNumbers,
    kept: &dyn Fn(Buf) -> bool,
) -> EdgeBuffers {
    let reader = |order: &[usize], buf: Buf| {
        order.iter().rposition(|&i| {
            stage.leader(i, order).is_none() && edge_inputs(&program.ops[i]).contains(&buf)
        })
    };
    let forward = value_uses(program, stage, numbers, kept, &stage.ops, &|buf| {
        reader(&stage.ops, buf)
    });

    let order = again(program, stage, kept);
    let n = stage.ops.len();
    // Backward step of the operation at position `p` of the stage.
    let back = |p: usize| order.len() + (n - 1 - p);
    let mut backward = value_uses(program, stage, numbers, kept, &order, &|buf| {
        let needs = |&(_, &i): &(usize, &usize)| program.ops[i].kept().contains(&buf);
        let last = stage
            .ops
            .iter()
            .enumerate()
            .filter(needs)
            .map(|(p, _)| back(p))
            .max();
        last.max(reader(&order, buf))
    });
    for (p, &i) in stage.ops.iter().enumerate() {
        let mut push = |key, bytes, end| {
            backward.push(Use {
                key,
                bytes,
                start: back(p),
                end,
            });
        };
        // The gradient of what an operation reads is written by its own backward step and read by
        // that of the operation that made it.
        for buf in edge_inputs(&program.ops[i]) {
            let maker = stage.ops.iter().position(|&j| program.ops[j].out() == buf);
            let maker = maker.expect("checked when the stages were made");
            let number = gradient_number(program, numbers, buf);
            let bytes = program.width(buf) * number.bytes();
            push(EdgeKey::Gradient(buf), bytes, back(maker));
        }
        if let Op::Radial {
            mlp,
            hidden_1,
            hidden_2,
            ..
        } = &program.ops[i]
        {
            let width = program.weights[mlp.first_bias.0].shape[0];
            // That of layer 1 takes the place of what is kept of layer 2 until all networks are done together.
            let together = kept(*hidden_1) && kept(*hidden_2);
            let layers = [(1, false), (2, false), (3, true)];
            for (layer, operand) in layers.into_iter().skip(usize::from(together)) {
                let key = EdgeKey::ActivationGradient(i, layer);
                push(key, width * numbers.number(operand).bytes(), back(p));
            }
        }
    }
    EdgeBuffers {
        forward: Arena::plan(&forward),
        backward: Arena::plan(&backward),
    }
}

fn ops_of(stage: &Stage) -> Vec<usize> {
    match stage {
        Stage::Atoms(i) => vec![*i],
        Stage::Edges(stage) => stage.ops.clone(),
    }
}

fn atom_uses(program: &Program, stages: &[Stage], gradients: &Gradients) -> Vec<Use<AtomKey>> {
    let last = 2 * stages.len() - 1;
    let mut uses = Vec::new();
    for (b, buffer) in program.buffers.iter().enumerate() {
        let buf = Buf(b);
        if buffer.domain != Domain::Atom {
            continue;
        }
        let bytes = 4 * buffer.width;
        let touches = |f: &dyn Fn(&Op) -> bool| -> Vec<usize> {
            (0..stages.len())
                .filter(|&s| ops_of(&stages[s]).iter().any(|&i| f(&program.ops[i])))
                .collect()
        };
        let made = touches(&|op| op.writes().contains(&buf));
        let read = touches(&|op| atom_inputs(op).contains(&buf));
        let kept = touches(&|op| atom_kept(program, op).contains(&buf));
        let Some(&made) = made.first() else { continue };
        let end = read
            .iter()
            .copied()
            .chain(kept.iter().map(|s| last - s))
            .chain((buf == program.atom_energy).then_some(last))
            .max()
            .unwrap_or(made);
        uses.push(Use {
            key: AtomKey::Value(buf),
            bytes,
            start: made,
            end,
        });
        // That of the energies is 1 and has a place of its own; that of gates may never be made.
        if buf == program.atom_energy || gradients.before_gates(buf).is_some() {
            continue;
        }
        // The last reader forward is the first to write backward. `pre` of a linear map has no
        // reader; its gradient is scratch of that operation, or the gate's behind it.
        let readers = match gradients.gates_of(buf) {
            Some(gates) => touches(&|op| atom_inputs(op).contains(&gates)),
            None => read,
        };
        let first = match readers.iter().max() {
            Some(reader) => last - reader,
            None => last - made,
        };
        uses.push(Use {
            key: AtomKey::Gradient(buf),
            bytes,
            start: first,
            end: last - made,
        });
    }
    for (s, stage) in stages.iter().enumerate() {
        for i in ops_of(stage) {
            if let Op::GatherRotateScale { x, .. } = program.ops[i] {
                // The norm that made x may read it.
                let reader = (0..s).rev().find(|&s| {
                    gradients.gather_of(x) == Some(i)
                        && ops_of(&stages[s])
                            .iter()
                            .any(|&j| program.ops[j].out() == x)
                });
                uses.push(Use {
                    key: AtomKey::Source(i),
                    bytes: 4 * program.width(x),
                    start: last - s,
                    end: last - reader.unwrap_or(s),
                });
            }
        }
    }
    together(uses, gradients)
}

/// Buffers that are the same memory as one, in use from the first of them to the last.
fn together(uses: Vec<Use<AtomKey>>, gradients: &Gradients) -> Vec<Use<AtomKey>> {
    let mut merged: Vec<Use<AtomKey>> = Vec::new();
    for u in uses {
        let key = gradients.place(u.key);
        match merged.iter_mut().find(|other| other.key == key) {
            Some(other) => {
                other.bytes = other.bytes.max(u.bytes);
                other.start = other.start.min(u.start);
                other.end = other.end.max(u.end);
            }
            None => merged.push(Use { key, ..u }),
        }
    }
    merged
}
