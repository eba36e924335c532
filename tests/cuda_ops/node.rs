//! Operations on atoms alone.

use super::*;
use umaserve::backend::cuda::params::{
    AddNodesParams, BalanceParams, EmbedAtomsParams, GateAtomsBackwardParams, GateAtomsParams,
    RmsNormBackwardParams, RmsNormParams, SiluRowsBackwardParams, SiluRowsParams,
};

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn silu_slope(x: f64) -> f64 {
    let s = sigmoid(x);
    s * (1.0 + x * (1.0 - s))
}

fn node_benches() -> Vec<Bench> {
    let sizes = [
        ((1, 1), 1),
        ((2, 2), 5),
        ((2, 2), 128),
        ((3, 2), 12),
        ((4, 4), 33),
        ((6, 2), 8),
        ((1, 1), 500),
    ];
    let order = |i| ORDERS[i % 2];
    let benches = sizes.into_iter().enumerate();
    benches
        .map(|(i, (layout, channels))| Bench::new(layout, channels, Precision::F32, order(i)))
        .collect()
}

/// Some of the atoms, so that neither end is that of the batch.
fn part(batch: &Batch) -> Chunk {
    batch.chunks(6)[1]
}

/// `before` with the values of the chunk's atoms replaced.
fn with_chunk(before: &[f64], chunk: &Chunk, width: usize, values: &[f64]) -> Vec<f64> {
    let range = chunk.atom_begin as usize * width..chunk.atom_end as usize * width;
    let mut all = before.to_vec();
    all[range.clone()].copy_from_slice(&values[range]);
    all
}

fn degree_of(row: usize) -> usize {
    (row as f64).sqrt() as usize
}

/// z, the mean-free values, and s.
fn statistics(x: &[f64], lmax: usize, channels: usize) -> (Vec<f64>, f64) {
    let mean = x[..channels].iter().sum::<f64>() / channels as f64;
    let mut z = x.to_vec();
    z[..channels].iter_mut().for_each(|z| *z -= mean);
    let square: f64 = z
        .iter()
        .enumerate()
        .map(|(i, z)| z * z * weight_of(i / channels, lmax))
        .sum();
    (z, 1.0 / (square / channels as f64 + 1e-5).sqrt())
}

fn weight_of(row: usize, lmax: usize) -> f64 {
    1.0 / ((2 * degree_of(row) + 1) * (lmax + 1)) as f64
}

#[test]
fn the_norm_of_atoms_and_its_gradient() {
    let batch = Batch::new(&molecules());
    let chunk = part(&batch);
    for bench in node_benches() {
        let (c, lmax, rows) = (bench.channels, bench.layout.lmax, bench.layout.rows);
        let width = rows * c;
        let random = &mut Random::new(c as u64);
        let x: Vec<f64> = random.values(batch.atoms() * width);
        let (weight, bias) = (random.values((lmax + 1) * c), random.values(c));
        let conditioning = random.values((batch.atom_start.len() - 1) * c);
        let bar = random.values(batch.atoms() * width);
        let before = random.values(batch.atoms() * width);
        let (mut expected, mut plain, mut expected_bar) = (vec![], vec![], vec![]);
        for (atom, (x, bar)) in x
            .chunks_exact(width)
            .zip(bar.chunks_exact(width))
            .enumerate()
        {
            let (z, s) = statistics(x, lmax, c);
            let of = |i: usize| weight[degree_of(i / c) * c + i % c];
            for (i, z) in z.iter().enumerate() {
                let y = z * s * of(i) + if i < c { bias[i] } else { 0.0 };
                let system = batch.atom_system[atom] as usize;
                plain.push(y);
                expected.push(
                    y + if i < c {
                        conditioning[system * c + i]
                    } else {
                        0.0
                    },
                );
            }
            let h: Vec<f64> = bar.iter().enumerate().map(|(i, b)| b * of(i)).collect();
            let along: f64 = h.iter().zip(&z).map(|(h, z)| h * z).sum();
            let mut z_bar: Vec<f64> = (0..width)
                .map(|i| s * h[i] - s.powi(3) / c as f64 * along * weight_of(i / c, lmax) * z[i])
                .collect();
            let mean = z_bar[..c].iter().sum::<f64>() / c as f64;
            z_bar[..c].iter_mut().for_each(|z| *z -= mean);
            expected_bar.extend(z_bar);
        }
        let mut params = RmsNormParams {
            chunk: bench.put(&[chunk]),
            atom_system: bench.put(&batch.atom_system),
            x: bench.floats(&x),
            weight: bench.floats(&weight),
            bias: bench.floats(&bias),
            conditioning: bench.floats(&conditioning),
            out: bench.floats(&before),
            channels: c as u32,
            lmax: lmax as u32,
        };
        let atoms = (chunk.atom_end - chunk.atom_begin) as usize + 3;
        bench.launch(bench.shapes.rms_norm(atoms), &params);
        let found = bench.get(params.out, x.len());
        let all = with_chunk(&before, &chunk, width, &expected);
        assert_close(&bench.name(), &found, &all, 3e-6);
        params.conditioning = DevicePtr::NULL;
        bench.launch(bench.shapes.rms_norm(atoms), &params);
        let found = bench.get(params.out, x.len());
        let all = with_chunk(&before, &chunk, width, &plain);
        assert_close(&bench.name(), &found, &all, 3e-6);
        let half = bench.floats(&bar.iter().map(|x| 0.5 * x).collect::<Vec<_>>());
        for accumulate in [false, true] {
            // In one array, or in two that are added.
            let (gradient, second_gradient) = match accumulate {
                true => (half, half),
                false => (bench.floats(&bar), DevicePtr::NULL),
            };
            let params = RmsNormBackwardParams {
                chunk: params.chunk,
                x: params.x,
                weight: params.weight,
                gradient,
                second_gradient,
                x_gradient: bench.floats(&before),
                channels: c as u32,
                lmax: lmax as u32,
                accumulate: accumulate.into(),
                pad: 0,
            };
            bench.launch(bench.shapes.rms_norm_backward(atoms), &params);
            let found = bench.get(params.x_gradient, x.len());
            let new: Vec<f64> = expected_bar
                .iter()
                .zip(&before)
                .map(|(new, before)| if accumulate { new + before } else { *new })
                .collect();
            let all = with_chunk(&before, &chunk, width, &new);
            // The first rows of a single channel are all centre: nothing is left of them.
            assert_close(
                &bench.name(),
                &found,
                &all,
                if c == 1 { 1e-4 } else { 5e-6 },
            );
        }
    }
}

#[test]
fn gated_atoms_and_their_gradient() {
    let batch = Batch::new(&molecules());
    let chunk = part(&batch);
    for bench in node_benches() {
        let (c, lmax, rows) = (bench.channels, bench.layout.lmax, bench.layout.rows);
        let (width, count) = (rows * c, lmax * c);
        let random = &mut Random::new(c as u64);
        let (x, bar) = (
            random.values(batch.atoms() * width),
            random.values(batch.atoms() * width),
        );
        let gates = random.values(batch.atoms() * count);
        let before = random.values(batch.atoms() * width);
        let gates_before = random.values(batch.atoms() * count);
        let mut expected = vec![0.0; x.len()];
        let mut x_bar = vec![0.0; x.len()];
        let mut gates_bar = vec![0.0; gates.len()];
        for i in 0..x.len() {
            let (atom, l, channel) = (i / width, degree_of(i % width / c), i % c);
            if l == 0 {
                expected[i] = x[i] * sigmoid(x[i]);
                x_bar[i] = bar[i] * silu_slope(x[i]);
            } else {
                let gate = atom * count + (l - 1) * c + channel;
                let s = sigmoid(gates[gate]);
                expected[i] = x[i] * s;
                x_bar[i] = bar[i] * s;
                gates_bar[gate] += bar[i] * x[i] * s * (1.0 - s);
            }
        }
        let params = GateAtomsParams {
            chunk: bench.put(&[chunk]),
            x: bench.floats(&x),
            gates: bench.floats(&gates),
            out: bench.floats(&before),
            channels: c as u32,
            lmax: lmax as u32,
        };
        let atoms = (chunk.atom_end - chunk.atom_begin) as usize + 3;
        bench.launch(bench.shapes.gate_atoms(atoms), &params);
        let all = with_chunk(&before, &chunk, width, &expected);
        assert_close(&bench.name(), &bench.get(params.out, x.len()), &all, 1e-6);
        let pre = random.values(batch.atoms() * count);
        let pre_bar: Vec<f64> = gates_bar
            .iter()
            .zip(&pre)
            .map(|(bar, pre)| bar * silu_slope(*pre))
            .collect();
        for (accumulate, through) in [(false, false), (true, false), (false, true), (true, true)] {
            let gates_bar = if through { &pre_bar } else { &gates_bar };
            let params = GateAtomsBackwardParams {
                chunk: params.chunk,
                x: params.x,
                gates: params.gates,
                gradient: bench.floats(&bar),
                x_gradient: bench.floats(&before),
                gates_gradient: bench.floats(&gates_before),
                gates_pre: match through {
                    true => bench.floats(&pre),
                    false => DevicePtr::NULL,
                },
                channels: c as u32,
                lmax: lmax as u32,
                accumulate: accumulate.into(),
                pad: 0,
            };
            bench.launch(bench.shapes.gate_atoms_backward(atoms), &params);
            for (at, new, before, width) in [
                (params.x_gradient, &x_bar, &before, width),
                (params.gates_gradient, gates_bar, &gates_before, count),
            ] {
                let new: Vec<f64> = new
                    .iter()
                    .zip(before)
                    .map(|(new, before)| if accumulate { new + before } else { *new })
                    .collect();
                let all = with_chunk(before, &chunk, width, &new);
                assert_close(&bench.name(), &bench.get(at, all.len()), &all, 2e-6);
            }
        }
    }
}

#[test]
fn atoms_are_embedded_balanced_and_added() {
    let batch = Batch::new(&molecules());
    let chunk = part(&batch);
    let systems = batch.atom_start.len() - 1;
    for bench in node_benches() {
        let (c, rows) = (bench.channels, bench.layout.rows);
        let width = rows * c;
        let random = &mut Random::new(c as u64);
        let (table, conditioning) = (random.values(ELEMENTS * c), random.values(systems * c));
        let before = random.values(batch.atoms() * width);
        let mut expected = vec![0.0; before.len()];
        for atom in 0..batch.atoms() {
            for channel in 0..c {
                expected[atom * width + channel] = table
                    [batch.numbers[atom] as usize * c + channel]
                    + conditioning[batch.atom_system[atom] as usize * c + channel];
            }
        }
        let part_at = bench.put(&[chunk]);
        let atom_system = bench.put(&batch.atom_system);
        let params = EmbedAtomsParams {
            chunk: part_at,
            numbers: bench.put(&batch.numbers),
            atom_system,
            table: bench.floats(&table),
            conditioning: bench.floats(&conditioning),
            out: bench.floats(&before),
            channels: c as u32,
            rows: rows as u32,
        };
        let atoms = (chunk.atom_end - chunk.atom_begin) as usize + 3;
        bench.launch(bench.shapes.embed_atoms(atoms), &params);
        let all = with_chunk(&before, &chunk, width, &expected);
        assert_close(&bench.name(), &bench.get(params.out, all.len()), &all, 1e-6);

        // Elementwise: sums and SiLU.
        let x = random.values(batch.atoms() * width);
        let sum = AddNodesParams {
            chunk: part_at,
            x: bench.floats(&x),
            y: bench.floats(&before),
            width: width as u32,
            pad: 0,
        };
        bench.launch(bench.shapes.add_nodes(2, width), &sum);
        let new: Vec<f64> = x.iter().zip(&before).map(|(x, y)| x + y).collect();
        let all = with_chunk(&before, &chunk, width, &new);
        assert_close("sum", &bench.get(sum.y, all.len()), &all, 1e-7);
        let silu = SiluRowsParams {
            chunk: part_at,
            x: sum.x,
            out: bench.floats(&before),
            width: width as u32,
            pad: 0,
        };
        bench.launch(bench.shapes.silu_rows(2, width), &silu);
        let new: Vec<f64> = x.iter().map(|x| x * sigmoid(*x)).collect();
        let all = with_chunk(&before, &chunk, width, &new);
        assert_close("silu", &bench.get(silu.out, all.len()), &all, 1e-6);
        let bar = random.values(batch.atoms() * width);
        for accumulate in [false, true] {
            let params = SiluRowsBackwardParams {
                chunk: part_at,
                x: sum.x,
                gradient: bench.floats(&bar),
                x_gradient: bench.floats(&before),
                width: width as u32,
                accumulate: accumulate.into(),
            };
            bench.launch(bench.shapes.silu_rows_backward(2, width), &params);
            let new = (0..x.len())
                .map(|i| bar[i] * silu_slope(x[i]) + if accumulate { before[i] } else { 0.0 });
            let all = with_chunk(&before, &chunk, width, &new.collect::<Vec<_>>());
            assert_close("silu", &bench.get(params.x_gradient, all.len()), &all, 1e-6);
        }

        // Channels that sum to what is wanted, among those of degree 0: one range, or one after another.
        let ranges = [(c / 3, (c - c / 3).min(3)), (0, c.min(2))];
        let wanted = [random.values(systems), random.values(systems)];
        for (of_values, ranges) in [(true, &ranges[..1]), (false, &ranges[..1]), (true, &ranges)] {
            let mut starts = batch.atom_start.clone();
            starts.push(batch.atoms() as u32);
            let mut params = BalanceParams {
                atom_start: bench.put(&starts),
                x: bench.floats(&x),
                ranges: ranges.len() as u32,
                systems: systems as u32 + 1,
                width: width as u32,
                ..BalanceParams::default()
            };
            let mut expected = x.clone();
            for (range, &(first, count)) in ranges.iter().enumerate() {
                params.first[range] = first as u32;
                params.count[range] = count as u32;
                if of_values {
                    params.wanted[range] = bench.floats(&[&wanted[range][..], &[1.0]].concat());
                }
                for system in 0..systems {
                    let atoms =
                        batch.atom_start[system] as usize..batch.atom_start[system + 1] as usize;
                    for k in first..first + count {
                        let sum: f64 = atoms.clone().map(|a| expected[a * width + k]).sum();
                        let wanted = if of_values {
                            wanted[range][system]
                        } else {
                            0.0
                        };
                        let shift = (sum - wanted) / atoms.len() as f64;
                        for atom in atoms.clone() {
                            expected[atom * width + k] -= shift;
                        }
                    }
                }
            }
            bench.launch(bench.shapes.balance(systems + 1), &params);
            let found = bench.get(params.x, expected.len());
            assert_close("balanced", &found, &expected, 1e-6);
        }
    }
}
