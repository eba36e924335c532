//! The first radial layer, LayerNorm with SiLU, gates of edges, and their gradients.

use super::*;
use umaserve::backend::cuda::params::{
    GateEdgesBackwardParams, GateEdgesParams, LayerNormSiluBackwardParams, LayerNormSiluParams,
    RadialFirstBackwardParams, RadialFirstParams, RadialNetwork,
};

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn silu_slope(x: f64) -> f64 {
    let s = sigmoid(x);
    s * (1.0 + x * (1.0 - s))
}

/// (x - mean) / sqrt(variance + eps) and the factor.
fn normalised(x: &[f64]) -> (Vec<f64>, f64) {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    let factor = 1.0 / (variance + 1e-5).sqrt();
    (x.iter().map(|x| (x - mean) * factor).collect(), factor)
}

/// SiLU(LayerNorm(x)).
fn activated(x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let (z, _) = normalised(x);
    let y = z.iter().zip(weight).zip(bias).map(|((z, w), b)| z * w + b);
    y.map(|y| y * sigmoid(y)).collect()
}

/// Gradient of x from that of SiLU(LayerNorm(x)).
fn activated_backward(x: &[f64], weight: &[f64], bias: &[f64], bar: &[f64]) -> Vec<f64> {
    let (z, factor) = normalised(x);
    let n = x.len() as f64;
    let g: Vec<f64> = (0..x.len())
        .map(|i| bar[i] * silu_slope(z[i] * weight[i] + bias[i]) * weight[i])
        .collect();
    let mean = g.iter().sum::<f64>() / n;
    let along = g.iter().zip(&z).map(|(g, z)| g * z).sum::<f64>() / n;
    (0..x.len())
        .map(|i| factor * (g[i] - mean - z[i] * along))
        .collect()
}

/// Rows shorter than a warp, odd, exactly 128, and longer.
const WIDTHS: [usize; 9] = [1, 4, 7, 33, 64, 128, 132, 257, 512];

fn bench(precision: Precision, order: ThreadOrder) -> Bench {
    Bench::new((1, 1), 4, precision, order)
}

#[test]
fn layer_norm_and_its_gradient() {
    let batch = Batch::new(&molecules());
    // Rows are counted from the first edge of the chunk.
    let chunk = batch.chunks(9)[1];
    let rows = (chunk.edge_end - chunk.edge_begin) as usize;
    for (i, precision) in PRECISIONS.into_iter().enumerate() {
        let bench = bench(precision, ORDERS[i % 2]);
        for width in WIDTHS {
            let random = &mut Random::new(width as u64);
            let x: Vec<f64> = random
                .values(rows * width)
                .iter()
                .map(|x| 3.0 * x + 0.5)
                .collect();
            let x: Vec<f64> = x.iter().map(|&x| f64::from(x as f32)).collect();
            let (weight, bias) = (random.values(width), random.values(width));
            let bar = bench.rounded(&random.values(rows * width));
            let out = bench.operand_space(rows * width);
            let params = LayerNormSiluParams {
                chunk: bench.put(&[chunk]),
                x: bench.floats(&x),
                weight: bench.floats(&weight),
                bias: bench.floats(&bias),
                out,
                width: width as u32,
                pad: 0,
            };
            bench.launch(bench.shapes.layer_norm_silu(rows + 9, width), &params);
            let expected: Vec<f64> = x
                .chunks_exact(width)
                .flat_map(|x| activated(x, &weight, &bias))
                .collect();
            let found = bench.get_operands(out, rows * width);
            assert_close(
                &format!("width {width}"),
                &found,
                &expected,
                bench.tolerance(),
            );

            // In place where the types are the same.
            let gradient = bench.stored(&bar);
            let x_gradient = match bench.numbers.values == bench.numbers.operands {
                true => gradient,
                false => bench.operand_space(rows * width),
            };
            let params = LayerNormSiluBackwardParams {
                chunk: params.chunk,
                x: params.x,
                weight: params.weight,
                bias: params.bias,
                gradient,
                x_gradient,
                width: width as u32,
                pad: 0,
            };
            bench.launch(
                bench.shapes.layer_norm_silu_backward(rows + 9, width),
                &params,
            );
            let expected: Vec<f64> = x
                .chunks_exact(width)
                .zip(bar.chunks_exact(width))
                .flat_map(|(x, bar)| activated_backward(x, &weight, &bias, bar))
                .collect();
            let found = bench.get_operands(x_gradient, rows * width);
            if width > 1 {
                let tolerance = bench.tolerance() * 4.0;
                assert_close(
                    &format!("width {width}, gradient"),
                    &found,
                    &expected,
                    tolerance,
                );
            } else {
                assert!(found.iter().all(|&x| x == 0.0), "one value has no variance");
            }
        }
    }
}

#[test]
fn the_first_radial_layer_and_its_gradient() {
    let batch = Batch::new(&molecules());
    let distance: Vec<f64> = batch
        .vector
        .iter()
        .map(|v| v.iter().map(|x| x * x).sum::<f64>().sqrt())
        .map(|d| f64::from(d as f32))
        .collect();
    for (i, precision) in PRECISIONS.into_iter().enumerate() {
        let bench = bench(precision, ORDERS[i % 2]);
        for (width, basis) in [
            (1, 1),
            (4, 9),
            (7, 32),
            (33, 5),
            (64, 70),
            (128, 32),
            (128, 64),
            (132, 33),
            (257, 8),
            (512, 12),
        ] {
            let random = &mut Random::new((width + basis) as u64);
            let spacing = f64::from((CUTOFF / (basis.max(2) - 1) as f64) as f32);
            let exponent = f64::from((-0.5 / (2.0 * spacing).powi(2)) as f32);
            let weight = random.values(basis * width);
            let tables = [(); 2].map(|_| random.values(ELEMENTS * width));
            let (norm_weight, norm_bias) = (random.values(width), random.values(width));
            // Two networks: the second has the tables the other way round, and gradients of its own.
            const NETWORKS: usize = 2;
            let edge_stride = batch.edges() + 3;
            let bars = [(); NETWORKS].map(|_| bench.rounded(&random.values(batch.edges() * width)));
            let scale: Vec<f64> = (0..NETWORKS * edge_stride)
                .map(|_| match bench.numbers.scaled() {
                    true => 2f64.powi(random.below(9) as i32 - 4),
                    false => 1.0,
                })
                .collect();
            let (mut expected, mut expected_bar) = (vec![], vec![]);
            for (n, bar) in bars.iter().enumerate() {
                for (e, &d) in distance.iter().enumerate() {
                    let element = |atom: u32| batch.numbers[atom as usize] as usize * width;
                    let (source, target) = (element(batch.source[e]), element(batch.target[e]));
                    let mut h = vec![0.0; width];
                    let mut slope = vec![0.0; width];
                    for a in 0..width {
                        h[a] = tables[n][source + a] + tables[1 - n][target + a];
                        for k in 0..basis {
                            let x = d - k as f64 * spacing;
                            let g = (exponent * x * x).exp();
                            h[a] += weight[k * width + a] * g;
                            slope[a] += weight[k * width + a] * g * 2.0 * exponent * x;
                        }
                    }
                    expected.extend(activated(&h, &norm_weight, &norm_bias));
                    let bar = &bar[e * width..][..width];
                    let h_bar = activated_backward(&h, &norm_weight, &norm_bias, bar);
                    let change: f64 = h_bar.iter().zip(&slope).map(|(h, s)| h * s).sum();
                    expected_bar.push(change / scale[n * edge_stride + e]);
                }
            }
            let table = [0, 1].map(|n| RadialNetwork {
                weight: bench.floats(&weight),
                source_table: bench.floats(&tables[n]),
                target_table: bench.floats(&tables[1 - n]),
                norm_weight: bench.floats(&norm_weight),
                norm_bias: bench.floats(&norm_bias),
            });
            let table = bench.put(&table);
            let run = |chunks: &[Chunk]| -> (Vec<f64>, Vec<f64>) {
                let d_distance = bench.float_space(NETWORKS * edge_stride);
                let mut found = [(); NETWORKS].map(|_| vec![]);
                for chunk in chunks {
                    let (begin, end) = (chunk.edge_begin as usize, chunk.edge_end as usize);
                    let stride = ((end - begin) * width + 1).next_multiple_of(8);
                    let out = bench.operand_space(NETWORKS * stride);
                    let params = RadialFirstParams {
                        chunk: bench.put(&[*chunk]),
                        distance: bench.floats(&distance),
                        source: bench.put(&batch.source),
                        target: bench.put(&batch.target),
                        numbers: bench.put(&batch.numbers),
                        networks: table,
                        out,
                        out_stride: stride as u64,
                        basis: basis as u32,
                        width: width as u32,
                        spacing: spacing as f32,
                        exponent: exponent as f32,
                    };
                    let rows = end - begin + 30;
                    bench.launch(bench.shapes.radial_first(rows, width, NETWORKS), &params);
                    let mut gradient = vec![];
                    let written = bench.get_operands(out, NETWORKS * stride);
                    for n in 0..NETWORKS {
                        found[n].extend(&written[n * stride..][..(end - begin) * width]);
                        gradient.extend(&bars[n][begin * width..end * width]);
                        gradient.resize((n + 1) * stride, 0.0);
                    }
                    let backward = RadialFirstBackwardParams {
                        chunk: params.chunk,
                        distance: params.distance,
                        source: params.source,
                        target: params.target,
                        numbers: params.numbers,
                        networks: table,
                        gradient: bench.stored(&gradient),
                        gradient_stride: stride as u64,
                        gradient_scale: match bench.numbers.scaled() {
                            true => bench.floats(&scale),
                            false => DevicePtr::NULL,
                        },
                        d_distance,
                        edge_stride: edge_stride as u64,
                        basis: basis as u32,
                        width: width as u32,
                        spacing: spacing as f32,
                        exponent: exponent as f32,
                    };
                    let launch = bench.shapes.radial_first_backward(rows, width, NETWORKS);
                    bench.launch(launch, &backward);
                }
                let bars = bench.get(d_distance, NETWORKS * edge_stride);
                let bars = bars.chunks_exact(edge_stride);
                (
                    found.concat(),
                    bars.flat_map(|bars| bars[..batch.edges()].to_vec())
                        .collect(),
                )
            };
            let what = format!("width {width}, basis {basis} in {precision}");
            let found = run(&[batch.whole()]);
            assert_close(&what, &found.0, &expected, bench.tolerance().max(2e-5));
            assert_close(&what, &found.1, &expected_bar, 1e-4);
            assert_eq!(run(&batch.chunks(2)), found, "{what}");
        }
    }
}

#[test]
fn gated_edges_and_their_gradient() {
    let batch = Batch::new(&molecules());
    let chunk = batch.chunks(6)[0];
    let rows = (chunk.edge_end - chunk.edge_begin) as usize;
    for bench in benches(ORDERS[1]) {
        let (c, layout) = (bench.channels, &bench.layout);
        let (gates, width) = (layout.lmax * c, layout.edge_rows * c);
        let random = &mut Random::new(5);
        let x = bench.rounded(&random.values(rows * (gates + width)));
        let bar = bench.rounded(&random.values(rows * width));
        let (mut expected, mut expected_bar) = (vec![], vec![]);
        for (x, bar) in x.chunks_exact(gates + width).zip(bar.chunks_exact(width)) {
            let mut x_bar = vec![0.0; gates + width];
            for (row, &l) in layout.edge_row_degree.iter().enumerate() {
                for channel in 0..c {
                    let i = row * c + channel;
                    let value = x[gates + i];
                    if l == 0 {
                        expected.push(value * sigmoid(value));
                        x_bar[gates + i] = bar[i] * silu_slope(value);
                    } else {
                        let gate = (l - 1) * c + channel;
                        let s = sigmoid(x[gate]);
                        expected.push(value * s);
                        x_bar[gates + i] = bar[i] * s;
                        x_bar[gate] += bar[i] * value * s * (1.0 - s);
                    }
                }
            }
            expected_bar.extend(x_bar);
        }
        let out = bench.operand_space(rows * width);
        let params = GateEdgesParams {
            chunk: bench.put(&[chunk]),
            x: bench.stored(&x),
            out,
            channels: c as u32,
            lmax: layout.lmax as u32,
            mmax: layout.mmax as u32,
            pad: 0,
        };
        bench.launch(
            bench.shapes.gate_edges(rows + 50, bench.numbers.operands),
            &params,
        );
        let found = bench.get_operands(out, rows * width);
        assert_close(&bench.name(), &found, &expected, bench.tolerance());
        for in_place in [false, true] {
            let x = bench.stored(&x);
            let x_gradient = match in_place {
                true if bench.numbers.values == bench.numbers.operands => x,
                _ => bench.operand_space(rows * (gates + width)),
            };
            let params = GateEdgesBackwardParams {
                chunk: params.chunk,
                x,
                gradient: bench.stored(&bar),
                x_gradient,
                channels: c as u32,
                lmax: layout.lmax as u32,
                mmax: layout.mmax as u32,
                pad: 0,
            };
            bench.launch(
                bench
                    .shapes
                    .gate_edges_backward(rows + 50, bench.numbers.operands),
                &params,
            );
            let found = bench.get_operands(x_gradient, rows * (gates + width));
            assert_close(&bench.name(), &found, &expected_bar, bench.tolerance());
        }
    }
}
