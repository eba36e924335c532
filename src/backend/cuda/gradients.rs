//! The gradients of atom buffers: who writes each of them first, and which of them are the same memory.
//!
//! In the order of the backward pass the first operation that has something for a gradient stores it and
//! the others add to it, so that nothing is filled with zeros but what the first one does not cover.
//! What an operation would only pass on (the gradient of its output is that of its residual) is the same
//! memory from the start.

use super::plan::{AtomKey, EdgeStage, Stage};
use crate::nn::{Buf, Op, Program};

/// What an operation has for the gradient of one of its inputs.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Share {
    stage: usize,
    op: usize,
    buf: Buf,
    /// Whether every number of a row is written.
    whole: bool,
    /// Whether it is the gradient of the output as it is.
    passed_on: bool,
}

/// How the gradients of atom buffers come about.
#[derive(Clone, Debug, Default)]
pub struct Gradients {
    /// Gradients and the operations that store them.
    stored: Vec<(Buf, usize)>,
    /// Gradients that start as 0, with the stage before whose backward pass they do.
    zeroed: Vec<(Buf, usize)>,
    /// A buffer and the one whose memory it is.
    same: Vec<(AtomKey, AtomKey)>,
    /// Gates and what SiLU made them of: the backward pass of the gate goes through both.
    gates: Vec<(Buf, Buf)>,
    /// Results of a norm that one operation gathers: the norm adds the two halves of their gradient.
    halves: Vec<(Buf, usize)>,
    /// Balances in place, the second right after the first and together with it.
    pairs: Vec<(usize, usize)>,
}

/// All shares in the order of the backward pass.
fn shares(program: &Program, stages: &[Stage]) -> Vec<Share> {
    let mut shares = Vec::new();
    for (stage, what) in stages.iter().enumerate().rev() {
        let mut push = |op, buf, whole, passed_on| {
            shares.push(Share {
                stage,
                op,
                buf,
                whole,
                passed_on,
            });
        };
        match what {
            Stage::Atoms(i) => match program.ops[*i] {
                Op::So3Linear { x, residual, .. } => {
                    if let Some(residual) = residual {
                        push(*i, residual, true, true);
                    }
                    push(*i, x, true, false);
                }
                Op::Linear { x, weight, .. } => {
                    let inputs = program.weights[weight.0].shape.last().copied();
                    push(*i, x, inputs == Some(program.width(x)), false);
                }
                Op::GateAtoms { x, gates, .. } => {
                    push(*i, x, true, false);
                    push(*i, gates, true, false);
                }
                Op::RmsNorm { x, .. } => push(*i, x, true, false),
                Op::Balance { x, .. } => push(*i, x, true, true),
                _ => {}
            },
            Stage::Edges(EdgeStage { ops, .. }) => {
                for &i in ops.iter().rev() {
                    if let Op::GatherRotateScale { x, .. } = program.ops[i] {
                        push(i, x, true, false);
                    }
                }
                for &i in ops {
                    if let Op::RotateScatter { x, .. } | Op::ScatterRadial { x, .. } =
                        program.ops[i]
                    {
                        push(i, x, true, true);
                    }
                }
            }
        }
    }
    shares
}

impl Gradients {
    /// Of a program in stages.
    pub fn new(program: &Program, stages: &[Stage]) -> Gradients {
        let shares = shares(program, stages);
        let mut found = Gradients::default();
        let maker = |buf: Buf| program.ops.iter().find(|op| op.out() == buf);
        let of = |buf: Buf| shares.iter().filter(move |share| share.buf == buf);
        let first = |share: &Share| of(share.buf).next() == Some(share);
        for share in shares.iter().filter(|share| first(share)) {
            let once = of(share.buf).filter(|s| s.op == share.op).count() == 1;
            // A gate stores both of its gradients or adds to both.
            let both = match program.ops[share.op] {
                Op::GateAtoms { .. } => {
                    let of_gate = shares.iter().filter(|s| s.op == share.op);
                    of_gate.filter(|s| !first(s)).count() == 0
                }
                _ => true,
            };
            if share.whole && once && both {
                found.stored.push((share.buf, share.op));
            } else {
                found.zeroed.push((share.buf, share.stage));
            }
        }
        for share in &shares {
            let (op, out) = (&program.ops[share.op], program.ops[share.op].out());
            let stored = found.stores(share.buf, share.op);
            let alone = of(share.buf).count() == 1;
            match *op {
                // In place needs nobody else who wants the values before.
                Op::Balance { x, .. } => {
                    let kept = program.ops.iter().any(|op| op.kept().contains(&x));
                    if alone {
                        found
                            .same
                            .push((AtomKey::Gradient(x), AtomKey::Gradient(out)));
                    }
                    if alone && !kept {
                        found.same.push((AtomKey::Value(out), AtomKey::Value(x)));
                    }
                }
                _ if share.passed_on && stored => {
                    let key = AtomKey::Gradient(share.buf);
                    found.same.push((key, AtomKey::Gradient(out)));
                }
                Op::GateAtoms { gates, .. } if share.buf == gates && stored && alone => {
                    if let Some(Op::Linear {
                        silu: true, pre, ..
                    }) = maker(gates)
                    {
                        found.gates.push((gates, *pre));
                    }
                }
                Op::GatherRotateScale { x, .. } if alone => {
                    if let Some(Op::RmsNorm { .. }) = maker(x) {
                        found.halves.push((x, share.op));
                    }
                }
                _ => {}
            }
        }
        for i in 1..program.ops.len() {
            let (Op::Balance { x, out: middle, .. }, Op::Balance { x: next, out, .. }) =
                (&program.ops[i - 1], &program.ops[i])
            else {
                continue;
            };
            let is_same = |key, other| found.same.contains(&(key, other));
            let in_place = middle == next
                && is_same(AtomKey::Value(*middle), AtomKey::Value(*x))
                && is_same(AtomKey::Value(*out), AtomKey::Value(*next))
                && found.pairs.last().is_none_or(|pair| pair.1 < i - 1);
            if in_place {
                found.pairs.push((i - 1, i));
            }
        }
        found
    }

    /// Whether an operation stores the gradient of one of its inputs. Otherwise it adds to it.
    pub fn stores(&self, buf: Buf, op: usize) -> bool {
        self.stored.contains(&(buf, op))
    }

    /// Gradients that are filled with zeros before the backward pass of a stage.
    pub fn zeroed(&self, stage: usize) -> impl Iterator<Item = Buf> {
        let zeroed = self.zeroed.iter().filter(move |zeroed| zeroed.1 == stage);
        zeroed.map(|zeroed| zeroed.0)
    }

    /// The buffer whose memory a buffer is.
    pub fn place(&self, mut key: AtomKey) -> AtomKey {
        while let Some((_, other)) = self.same.iter().find(|(same, _)| *same == key) {
            key = *other;
        }
        key
    }

    /// What SiLU made gates of, where the backward pass of the gate goes through SiLU too.
    pub fn before_gates(&self, gates: Buf) -> Option<Buf> {
        self.gates.iter().find(|pair| pair.0 == gates).map(|p| p.1)
    }

    /// The gates that SiLU made of `pre`, where the backward pass of the gate goes through SiLU too.
    pub fn gates_of(&self, pre: Buf) -> Option<Buf> {
        self.gates.iter().find(|pair| pair.1 == pre).map(|p| p.0)
    }

    /// The operation that gathers the result of a norm which adds the sources' half of the gradient.
    pub fn gather_of(&self, buf: Buf) -> Option<usize> {
        self.halves.iter().find(|pair| pair.0 == buf).map(|p| p.1)
    }

    /// The balance that is done together with this one.
    pub fn balanced_with(&self, op: usize) -> Option<usize> {
        self.pairs.iter().find(|pair| pair.0 == op).map(|p| p.1)
    }

    /// Whether a balance is done together with the one before.
    pub fn balanced_before(&self, op: usize) -> bool {
        self.pairs.iter().any(|pair| pair.1 == op)
    }
}
