//! Rotations of spherical-harmonic coefficients: the one index layout of the program, and the
//! Wigner matrices that turn an edge onto the polar axis.
//!
//! Real spherical harmonics in the convention of e3nn: the polar axis is y, and degree 1 is
//! (x, y, z).

pub mod layout;
pub mod wigner;

pub use layout::{Layout, MBlock};
pub use wigner::Wigner;
