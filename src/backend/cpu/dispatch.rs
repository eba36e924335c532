//! Which kernel runs an operation.

use super::real::Real;
use super::run::{Frame, Run, Tile};
use super::schedule::Half;
use super::{gate, linear, norm, radial, rotate, so2};
use crate::nn::Op;

/// Runs an operation on a tile.
#[inline(never)]
pub(super) fn forward_op<T: Real>(run: &Run<T>, op: usize, tile: &Tile, frame: &mut Frame<T>) {
    match &run.program.ops[op] {
        Op::EmbedAtoms { table, out } => linear::embed(run, tile, frame, *table, *out),
        Op::Radial {
            mlp,
            hidden_1,
            hidden_2,
            out,
        } => {
            radial::forward(run, op, tile, frame, mlp, [*hidden_1, *hidden_2, *out]);
        }
        Op::ScatterRadial {
            radial,
            x,
            scale,
            out,
        } => {
            rotate::scatter_radial(run, tile, frame, *radial, *x, *scale, *out);
        }
        Op::RmsNorm {
            x,
            weight,
            bias,
            add_conditioning,
            out,
        } => {
            norm::forward(
                run,
                tile,
                frame,
                *x,
                (*weight, *bias),
                *add_conditioning,
                *out,
            );
        }
        Op::GatherRotateScale { x, radial, out, .. } => {
            rotate::gather(run, tile, frame, *x, *radial, *out);
        }
        Op::So2Linear {
            x,
            weights,
            channels_in,
            channels_out,
            gates,
            out,
        } => {
            let shape = so2::Shape::new(*channels_in, *channels_out, *gates);
            so2::forward(run, tile, frame, *x, weights, shape, *out);
        }
        Op::GateEdges { x, channels, out } => {
            gate::edges_forward(run, tile, frame, *x, *channels, *out);
        }
        Op::RotateScatter { message, x, out } => {
            rotate::scatter(run, tile, frame, *message, *x, *out);
        }
        Op::Linear {
            x,
            weight,
            bias,
            silu,
            pre,
            out,
        } => {
            linear::forward(run, tile, frame, *x, (*weight, *bias), *silu, [*pre, *out]);
        }
        Op::So3Linear {
            x,
            weight,
            bias,
            residual,
            out,
            ..
        } => {
            linear::per_degree_forward(run, tile, frame, *x, (*weight, *bias), *residual, *out);
        }
        Op::GateAtoms {
            x,
            gates,
            channels,
            out,
        } => {
            gate::atoms_forward(run, tile, frame, *x, *gates, *channels, *out);
        }
        Op::Balance {
            x,
            channels,
            target,
            out,
        } => {
            norm::balance_forward(run, tile, frame, *x, channels.clone(), *target, *out);
        }
    }
}

/// Runs (half of) the backward pass of an operation on a tile.
#[inline(never)]
pub(super) fn backward_op<T: Real>(
    run: &Run<T>,
    op: usize,
    half: Half,
    tile: &Tile,
    values: &Frame<T>,
    frame: &mut Frame<T>,
) {
    match (&run.program.ops[op], half) {
        (Op::EmbedAtoms { .. }, _) => {} // positions do not enter
        (
            Op::Radial {
                mlp,
                hidden_1,
                hidden_2,
                out,
            },
            _,
        ) => {
            radial::backward(
                run,
                op,
                tile,
                values,
                frame,
                mlp,
                [*hidden_1, *hidden_2, *out],
            );
        }
        (
            Op::ScatterRadial {
                radial, scale, out, ..
            },
            Half::First,
        ) => {
            rotate::scatter_radial_backward(run, tile, values, frame, *radial, *scale, *out);
        }
        (Op::RmsNorm { x, weight, out, .. }, _) => {
            norm::backward(run, tile, values, frame, *x, *weight, *out);
        }
        (
            Op::GatherRotateScale {
                x,
                radial,
                gradient,
                out,
            },
            Half::First,
        ) => {
            rotate::gather_backward(run, tile, values, frame, [*x, *radial, *gradient, *out]);
        }
        (Op::GatherRotateScale { x, gradient, .. }, Half::Second) => {
            rotate::gather_add_up(run, tile, frame, *x, *gradient);
        }
        (
            Op::So2Linear {
                x,
                weights,
                channels_in,
                channels_out,
                gates,
                out,
            },
            _,
        ) => {
            let shape = so2::Shape::new(*channels_in, *channels_out, *gates);
            so2::backward(run, tile, frame, *x, weights, shape, *out);
        }
        (Op::GateEdges { x, channels, out }, _) => {
            gate::edges_backward(run, tile, values, frame, *x, *channels, *out);
        }
        (Op::RotateScatter { message, out, .. }, Half::First) => {
            rotate::scatter_backward(run, tile, values, frame, *message, *out);
        }
        (Op::RotateScatter { x, out, .. } | Op::ScatterRadial { x, out, .. }, Half::Second) => {
            linear::pass_on(frame, *x, *out)
        }
        (
            Op::Linear {
                x,
                weight,
                silu,
                pre,
                out,
                ..
            },
            _,
        ) => {
            linear::backward(run, tile, values, frame, *weight, *silu, [*x, *pre, *out]);
        }
        (
            Op::So3Linear {
                x,
                weight,
                residual,
                out,
                ..
            },
            _,
        ) => {
            linear::per_degree_backward(run, tile, frame, *x, *weight, *residual, *out);
        }
        (
            Op::GateAtoms {
                x,
                gates,
                channels,
                out,
            },
            _,
        ) => {
            gate::atoms_backward(run, tile, values, frame, [*x, *gates, *out], *channels);
        }
        (
            Op::Balance {
                x, channels, out, ..
            },
            _,
        ) => {
            norm::balance_backward(run, tile, frame, *x, channels.clone(), *out);
        }
    }
}
