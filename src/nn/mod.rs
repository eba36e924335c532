//! The network as a program: a straight list of coarse operations on atom and edge buffers.
//!
//! A layer is described once, in `potential::uma::network`; a backend interprets the list forwards
//! for the energy and backwards for the gradient. No device name appears here.

pub mod op;
pub mod program;

pub use op::{BalanceTarget, Op, RadialMlp, So2Weights};
pub use program::{
    Buf, Buffer, Builder, Domain, Program, Scope, Weight, WeightKind, WeightSlot, WeightUse,
};
