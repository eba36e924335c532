//! Cuts a program into runs of operations on the same kind of rows.

use crate::nn::op::Grain;
use crate::nn::{Buf, Domain, Op, Program};

/// Consecutive operations that run tile by tile.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// What a tile is.
    pub grain: Grain,
    /// Indices of operations; in the backward pass with the half to run.
    pub ops: Vec<(usize, Half)>,
}

/// Which half of an operation's backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// The only or the edge half.
    First,
    /// The atom half.
    Second,
}

/// Order of work for both passes.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Forward pass.
    pub forward: Vec<Segment>,
    /// Backward pass.
    pub backward: Vec<Segment>,
    /// For each backward edge segment, the forward segment with the same operations.
    pub forward_twin: Vec<Option<usize>>,
    /// Edge buffers whose values outlive their forward segment.
    pub kept: Vec<bool>,
}

impl Schedule {
    /// Works out the schedule.
    pub fn new(program: &Program) -> Schedule {
        let mut forward: Vec<Segment> = Vec::new();
        for (i, op) in program.ops.iter().enumerate() {
            push(&mut forward, op.forward_grain(), i, Half::First);
        }

        let mut backward: Vec<Segment> = Vec::new();
        let mut deferred: Vec<usize> = Vec::new();
        for (i, op) in program.ops.iter().enumerate().rev() {
            let (first, second) = op.backward_grains();
            if op.forward_grain() != Grain::Edges {
                // The atom halves of the edge operations so far come before anything that may
                // read what they add up: operations on atoms, and the edge half of a scatter.
                for d in deferred.drain(..) {
                    push(&mut backward, Grain::Atoms, d, Half::Second);
                }
            }
            push(&mut backward, first, i, Half::First);
            if second.is_some() {
                deferred.push(i);
            }
        }
        for d in deferred {
            push(&mut backward, Grain::Atoms, d, Half::Second);
        }

        let mut kept: Vec<bool> = program
            .buffers
            .iter()
            .map(|b| b.domain == Domain::Atom)
            .collect();
        for op in &program.ops {
            for buf in op.kept() {
                kept[buf.0] = true;
            }
        }
        let forward_twin = backward
            .iter()
            .map(|segment| {
                (segment.grain == Grain::Edges).then(|| {
                    let inner = segment
                        .ops
                        .iter()
                        .map(|&(i, _)| i)
                        .find(|&i| program.ops[i].forward_grain() == Grain::Edges);
                    forward
                        .iter()
                        .position(|f| f.ops.iter().any(|&(i, _)| Some(i) == inner))
                })?
            })
            .collect();
        Schedule {
            forward,
            backward,
            forward_twin,
            kept,
        }
    }
}

fn push(segments: &mut Vec<Segment>, grain: Grain, op: usize, half: Half) {
    match segments.last_mut() {
        Some(last) if last.grain == grain => last.ops.push((op, half)),
        _ => segments.push(Segment {
            grain,
            ops: vec![(op, half)],
        }),
    }
}

/// Atom buffers whose gradients an operation reads or adds to.
pub fn gradient_buffers(op: &Op) -> Vec<Buf> {
    let mut bufs = vec![op.out()];
    match *op {
        Op::EmbedAtoms { .. } | Op::Radial { .. } => {}
        Op::ScatterRadial { radial, x, .. } => bufs.extend([radial, x]),
        Op::RmsNorm { x, .. }
        | Op::So2Linear { x, .. }
        | Op::GateEdges { x, .. }
        | Op::Balance { x, .. }
        | Op::Linear { x, .. } => bufs.push(x),
        Op::GatherRotateScale {
            x,
            radial,
            gradient,
            ..
        } => bufs.extend([x, radial, gradient]),
        Op::RotateScatter { message, x, .. } => bufs.extend([message, x]),
        Op::So3Linear { x, residual, .. } => {
            bufs.push(x);
            bufs.extend(residual);
        }
        Op::GateAtoms { x, gates, .. } => bufs.extend([x, gates]),
    }
    bufs
}
