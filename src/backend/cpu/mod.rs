//! The CPU backend, in single or double precision.
//!
//! Work is cut into tiles of edges or atoms of one system; consecutive operations on the same kind
//! of rows run tile by tile, so that their intermediates stay in the cache. How a system is cut
//! depends on that system alone, every tile is done by one thread, and sums over edges follow the
//! order of the edge list: results are the same bits for any batch and any number of threads.

// Loops over places, not iterators: closures of `map` and the like would be functions without the vector
// instructions of the kernel around them.
#![allow(clippy::needless_range_loop)]

mod degree_two;
mod dispatch;
mod gate;
mod geometry;
mod linear;
mod matmul;
mod norm;
mod radial;
mod radial_table;
pub mod real;
mod rotate;
mod run;
mod schedule;
mod small;
mod so2;
mod vector;
mod weights;

pub use run::{CpuBackend, Trace};
