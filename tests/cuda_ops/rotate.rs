//! Gathering, scattering and their gradients.

use super::*;
use umaserve::backend::cuda::params::{
    GatherBackwardParams, GatherRotateScaleParams, RotateScatterBackwardParams, RotateScatterParams,
};
use umaserve::so3::wigner::generators;

/// What the kernels are given, on edges and atoms of the batch.
pub struct Values {
    pub wigner: Vec<f64>,
    envelope: Vec<f64>,
    /// `[N][S][C]`
    pub x: Vec<f64>,
    /// `[E][radial rows][2C]`
    radial: Vec<f64>,
    /// `[E][R][2C]`
    gradient: Vec<f64>,
    /// `[E]` powers of two, 1 for f32.
    scale: Vec<f64>,
    /// `[E][R][C]`, or the m = 0 rows.
    message: Vec<f64>,
}

impl Values {
    /// The numbers of a system depend on the system alone.
    pub fn new(bench: &Bench, molecules: &[Molecule], seeds: &[u64], orders: Orders) -> Values {
        let batch = Batch::new(molecules);
        let (c, layout) = (bench.channels, &bench.layout);
        let mut values = Values {
            wigner: batch.wigner(layout),
            envelope: batch.envelope(),
            x: vec![],
            radial: vec![],
            gradient: vec![],
            scale: vec![],
            message: vec![],
        };
        for (molecule, &seed) in molecules.iter().zip(seeds) {
            let random = &mut Random::new(seed);
            let atoms = molecule.numbers.len();
            let edges = molecule.incoming.iter().flatten().count();
            values.x.extend(random.values(atoms * layout.rows * c));
            let radial = random.values(edges * layout.radial_width(2 * c));
            values.radial.extend(bench.rounded(&radial));
            for _ in 0..edges {
                let scale = match bench.numbers.scaled() {
                    true => 2f64.powi(random.below(20) as i32 - 10),
                    false => 1.0,
                };
                values.scale.push(scale);
                let row = random.values(layout.edge_rows * 2 * c);
                values.gradient.extend(bench.rounded(&row));
            }
            let message = random.values(edges * orders.rows(layout) * c);
            values.message.extend(bench.rounded(&message));
        }
        values
    }
}

/// Whether messages have all rows or those of m = 0.
#[derive(Clone, Copy, PartialEq)]
pub enum Orders {
    All,
    Zero,
}

impl Orders {
    fn rows(self, layout: &Layout) -> usize {
        match self {
            Orders::All => layout.edge_rows,
            Orders::Zero => layout.lmax + 1,
        }
    }

    /// (message row, row of the packed block) of one degree.
    fn of_degree(self, layout: &Layout, l: usize) -> Vec<(usize, usize)> {
        let rows = layout.degree_rows[l].iter().enumerate();
        let all = rows.map(|(i, &row)| (row, i));
        all.filter(|&(row, _)| self == Orders::All || row == l)
            .collect()
    }
}

/// D of one edge, one row for each message row.
fn dense(layout: &Layout, wigner: &[f64], orders: Orders) -> Vec<Vec<f64>> {
    let mut d = vec![vec![0.0; layout.rows]; orders.rows(layout)];
    for l in 0..=layout.lmax {
        for (row, i) in orders.of_degree(layout, l) {
            for k in 0..2 * l + 1 {
                d[row][l * l + k] = wigner[layout.wigner_offset[l] + i * (2 * l + 1) + k];
            }
        }
    }
    d
}

/// sum_c a^T G b for the three axes; a, b `[S][C]`.
fn torque(lmax: usize, channels: usize, a: &[f64], b: &[f64]) -> [f64; 3] {
    let mut t = [0.0; 3];
    for g in generators(lmax) {
        for c in 0..channels {
            t[g.axis] += g.value * a[g.row * channels + c] * b[g.column * channels + c];
        }
    }
    t
}

fn gather(bench: &Bench, batch: &Batch, values: &Values, chunks: &[Chunk]) -> Vec<f64> {
    let (c, layout) = (bench.channels, &bench.layout);
    let (radial_width, width) = (layout.radial_width(2 * c), layout.edge_rows * 2 * c);
    let mut found = Vec::new();
    for chunk in chunks {
        let (begin, end) = (chunk.edge_begin as usize, chunk.edge_end as usize);
        let out = bench.operand_space((end - begin) * width);
        let params = GatherRotateScaleParams {
            chunk: bench.put(&[*chunk]),
            source: bench.put(&batch.source),
            target: bench.put(&batch.target),
            wigner: bench.floats(&values.wigner),
            x: bench.floats(&values.x),
            radial: bench.stored(&values.radial[begin * radial_width..end * radial_width]),
            out,
            channels: c as u32,
            pad: 0,
        };
        // A grid for more than there is.
        let rows = end - begin + 40;
        let launch = bench
            .shapes
            .gather_rotate_scale(rows, bench.numbers.operands);
        bench.launch(launch, &params);
        found.extend(bench.get_operands(out, (end - begin) * width));
    }
    found
}

#[test]
fn gathered_rows_are_rotated_and_scaled() {
    let molecules = molecules();
    let batch = Batch::new(&molecules);
    let seeds: Vec<u64> = (0..).take(molecules.len()).collect();
    for bench in benches(ThreadOrder::Ascending) {
        let (c, layout) = (bench.channels, &bench.layout);
        let values = Values::new(&bench, &molecules, &seeds, Orders::All);
        let mut expected = vec![0.0; batch.edges() * layout.edge_rows * 2 * c];
        for e in 0..batch.edges() {
            let d = dense(layout, &values.wigner[e * layout.wigner_len..], Orders::All);
            for (row, d) in d.iter().enumerate() {
                for (half, atom) in [batch.source[e], batch.target[e]].into_iter().enumerate() {
                    for channel in 0..c {
                        let x =
                            |k: usize| values.x[(atom as usize * layout.rows + k) * c + channel];
                        let q: f64 = (0..layout.rows).map(|k| d[k] * x(k)).sum();
                        let column = half * c + channel;
                        let radial = e * layout.radial_width(2 * c)
                            + layout.radial_row[row] * 2 * c
                            + column;
                        expected[(e * layout.edge_rows + row) * 2 * c + column] =
                            q * values.radial[radial];
                    }
                }
            }
        }
        let found = gather(&bench, &batch, &values, &[batch.whole()]);
        assert_close(&bench.name(), &found, &expected, bench.tolerance());
        assert_eq!(gather(&bench, &batch, &values, &batch.chunks(2)), found);
    }
}

/// What gather_backward writes and adds to.
#[derive(Debug, PartialEq)]
struct Gathered {
    radial: Vec<f64>,
    target: Vec<f64>,
    source: Vec<f64>,
    torque: Vec<f64>,
    source_torque: Vec<f64>,
}

/// `store`: the first sums are stored and not added to what was there.
fn gather_backward(
    bench: &Bench,
    batch: &Batch,
    values: &Values,
    chunks: &[Chunk],
    store: bool,
) -> Gathered {
    let (c, layout) = (bench.channels, &bench.layout);
    let (radial_width, width) = (layout.radial_width(2 * c), layout.edge_rows * 2 * c);
    let node = batch.atoms() * layout.rows * c;
    let before: Vec<f64> = (0..node).map(|i| (i % 5) as f64).collect();
    let started = |values: Vec<f64>| match store {
        true => bench.float_space(values.len()),
        false => bench.floats(&values),
    };
    let target_gradient = started(before);
    let source_gradient = started(vec![0.0; node]);
    let torque = bench.floats(&vec![0.5; 3 * batch.edges()]);
    let source_torque = started(vec![0.0; 3 * batch.edges()]);
    let mut radial = Vec::new();
    for (index, chunk) in chunks.iter().enumerate() {
        let (begin, end) = (chunk.edge_begin as usize, chunk.edge_end as usize);
        let radial_gradient = bench.operand_space((end - begin) * radial_width);
        let params = GatherBackwardParams {
            chunk: bench.put(&[*chunk]),
            batch: bench.put(&[batch.whole()]),
            target_start: bench.put(&batch.target_start),
            source_start: bench.put(&batch.source_start),
            by_source: bench.put(&batch.by_source),
            wigner: bench.floats(&values.wigner),
            x: bench.floats(&values.x),
            radial: bench.stored(&values.radial[begin * radial_width..end * radial_width]),
            gradient: bench.stored(&values.gradient[begin * width..end * width]),
            gradient_scale: match bench.numbers.scaled() {
                true => bench.floats(&values.scale),
                false => DevicePtr::NULL,
            },
            radial_gradient,
            target_gradient,
            source_gradient,
            torque,
            source_torque,
            channels: c as u32,
            store: match (store, index) {
                (true, 0) => 1 | 2 | 4,
                (true, _) => 1 | 4,
                (false, _) => 0,
            },
        };
        bench.launch(bench.shapes.gather_backward(batch.atoms() + 3), &params);
        radial.extend(bench.get_operands(radial_gradient, (end - begin) * radial_width));
    }
    Gathered {
        radial,
        target: bench.get(target_gradient, node),
        source: bench.get(source_gradient, node),
        torque: bench.get(torque, 3 * batch.edges()),
        source_torque: bench.get(source_torque, 3 * batch.edges()),
    }
}

#[test]
fn gradients_of_gathering() {
    let molecules = molecules();
    let batch = Batch::new(&molecules);
    let seeds: Vec<u64> = (0..).take(molecules.len()).collect();
    for bench in benches(ThreadOrder::Ascending) {
        let (c, layout) = (bench.channels, &bench.layout);
        let values = Values::new(&bench, &molecules, &seeds, Orders::All);
        let (radial_width, rows) = (layout.radial_width(2 * c), layout.rows);
        let node = batch.atoms() * rows * c;
        let mut expected = Gathered {
            radial: vec![0.0; batch.edges() * radial_width],
            target: (0..node).map(|i| (i % 5) as f64).collect(),
            source: vec![0.0; node],
            torque: vec![0.5; 3 * batch.edges()],
            source_torque: vec![0.0; 3 * batch.edges()],
        };
        for e in 0..batch.edges() {
            let d = dense(layout, &values.wigner[e * layout.wigner_len..], Orders::All);
            for (half, atom) in [batch.source[e], batch.target[e]].into_iter().enumerate() {
                let x = &values.x[atom as usize * rows * c..][..rows * c];
                let mut n_bar = vec![0.0; rows * c];
                for (row, d) in d.iter().enumerate() {
                    for channel in 0..c {
                        let column = half * c + channel;
                        let at = e * radial_width + layout.radial_row[row] * 2 * c + column;
                        let bar = values.gradient[(e * layout.edge_rows + row) * 2 * c + column];
                        let q: f64 = (0..rows).map(|k| d[k] * x[k * c + channel]).sum();
                        expected.radial[at] += bar * q;
                        for k in 0..rows {
                            n_bar[k * c + channel] +=
                                d[k] * bar * values.radial[at] / values.scale[e];
                        }
                    }
                }
                let (sum, torques) = match half {
                    0 => (&mut expected.source, &mut expected.source_torque),
                    _ => (&mut expected.target, &mut expected.torque),
                };
                for (sum, n) in sum[atom as usize * rows * c..].iter_mut().zip(&n_bar) {
                    *sum += n;
                }
                let t = torque(layout.lmax, c, &n_bar, x);
                for (sum, t) in torques[3 * e..].iter_mut().zip(t) {
                    *sum += t;
                }
            }
        }
        let found = gather_backward(&bench, &batch, &values, &[batch.whole()], false);
        let name = bench.name();
        assert_close(&name, &found.radial, &expected.radial, bench.tolerance());
        for (what, found, expected) in [
            ("target", &found.target, &expected.target),
            ("source", &found.source, &expected.source),
            ("torque", &found.torque, &expected.torque),
            ("torque", &found.source_torque, &expected.source_torque),
        ] {
            assert_close(&format!("{name} {what}"), found, expected, 5e-6);
        }
        // The sums over the edges from an atom go from chunk to chunk.
        for atoms in [1, 4] {
            let chunks = batch.chunks(atoms);
            assert_eq!(
                gather_backward(&bench, &batch, &values, &chunks, false),
                found,
                "{name}"
            );
        }
        // Nothing is read of what is stored, and every atom has its sum.
        let before = (0..node).map(|i| (i % 5) as f64);
        let target: Vec<f64> = expected
            .target
            .iter()
            .zip(before)
            .map(|(x, b)| x - b)
            .collect();
        let whole = [batch.whole()].to_vec();
        for chunks in [whole, batch.chunks(4)] {
            let stored = gather_backward(&bench, &batch, &values, &chunks, true);
            assert_close(&name, &stored.target, &target, 5e-6);
            let target = found.target.clone();
            assert_eq!(Gathered { target, ..stored }, found, "{name}");
        }
    }
}

fn scatter(
    bench: &Bench,
    batch: &Batch,
    values: &Values,
    orders: Orders,
    scale: f32,
    chunks: &[Chunk],
) -> Vec<f64> {
    let (c, layout) = (bench.channels, &bench.layout);
    let width = orders.rows(layout) * c;
    let out = bench.float_space(batch.atoms() * layout.rows * c);
    for chunk in chunks {
        let (begin, end) = (chunk.edge_begin as usize, chunk.edge_end as usize);
        let params = RotateScatterParams {
            chunk: bench.put(&[*chunk]),
            target_start: bench.put(&batch.target_start),
            wigner: bench.floats(&values.wigner),
            envelope: bench.floats(&values.envelope),
            message: bench.stored(&values.message[begin * width..end * width]),
            residual: bench.floats(&values.x),
            out,
            channels: c as u32,
            scale,
        };
        let atoms = (chunk.atom_end - chunk.atom_begin) as usize + 2;
        let launch = match orders {
            Orders::All => bench.shapes.rotate_scatter(atoms),
            Orders::Zero => bench.shapes.scatter_radial(atoms),
        };
        bench.launch(launch, &params);
    }
    bench.get(out, batch.atoms() * layout.rows * c)
}

#[test]
fn messages_are_rotated_back_and_summed() {
    let molecules = molecules();
    let batch = Batch::new(&molecules);
    let seeds: Vec<u64> = (0..).take(molecules.len()).collect();
    for bench in benches(ThreadOrder::Ascending) {
        for (orders, scale) in [(Orders::All, 1.0), (Orders::Zero, 0.2f32)] {
            let (c, layout) = (bench.channels, &bench.layout);
            let values = Values::new(&bench, &molecules, &seeds, orders);
            let mut expected = values.x.clone();
            for e in 0..batch.edges() {
                let d = dense(layout, &values.wigner[e * layout.wigner_len..], orders);
                let out = &mut expected[batch.target[e] as usize * layout.rows * c..];
                for (row, d) in d.iter().enumerate() {
                    for k in 0..layout.rows {
                        for channel in 0..c {
                            let message =
                                values.message[(e * d_rows(&bench, orders) + row) * c + channel];
                            out[k * c + channel] +=
                                f64::from(scale) * values.envelope[e] * d[k] * message;
                        }
                    }
                }
            }
            let found = scatter(&bench, &batch, &values, orders, scale, &[batch.whole()]);
            assert_close(&bench.name(), &found, &expected, 3e-6);
            let cut = scatter(&bench, &batch, &values, orders, scale, &batch.chunks(3));
            assert_eq!(cut, found, "{}", bench.name());
        }
    }
}

fn d_rows(bench: &Bench, orders: Orders) -> usize {
    orders.rows(&bench.layout)
}

/// What the gradient of scattering writes and adds to.
#[derive(Debug, PartialEq)]
struct Scattered {
    message: Vec<f64>,
    scale: Vec<f64>,
    envelope: Vec<f64>,
    torque: Vec<f64>,
}

fn scatter_backward(
    bench: &Bench,
    batch: &Batch,
    values: &Values,
    orders: Orders,
    scale: f32,
    chunks: &[Chunk],
    store: bool,
) -> Scattered {
    let c = bench.channels;
    let width = orders.rows(&bench.layout) * c;
    let gradient_scale = match bench.numbers.scaled() {
        true => bench.float_space(batch.edges()),
        false => DevicePtr::NULL,
    };
    let (d_envelope, torque) = match store {
        true => (
            bench.float_space(batch.edges()),
            bench.float_space(3 * batch.edges()),
        ),
        false => (
            bench.floats(&vec![0.25; batch.edges()]),
            bench.floats(&vec![0.5; 3 * batch.edges()]),
        ),
    };
    let mut message = Vec::new();
    for chunk in chunks {
        let (begin, end) = (chunk.edge_begin as usize, chunk.edge_end as usize);
        let message_gradient = bench.operand_space((end - begin) * width);
        let params = RotateScatterBackwardParams {
            chunk: bench.put(&[*chunk]),
            target_start: bench.put(&batch.target_start),
            wigner: bench.floats(&values.wigner),
            envelope: bench.floats(&values.envelope),
            message: bench.stored(&values.message[begin * width..end * width]),
            gradient: bench.floats(&values.x),
            message_gradient,
            gradient_scale,
            d_envelope,
            torque,
            channels: c as u32,
            scale,
            store: store.into(),
            pad: 0,
        };
        let atoms = (chunk.atom_end - chunk.atom_begin) as usize + 2;
        let launch = match orders {
            Orders::All => bench
                .shapes
                .rotate_scatter_backward(atoms, bench.numbers.operands),
            Orders::Zero => bench.shapes.scatter_radial_backward(atoms),
        };
        bench.launch(launch, &params);
        message.extend(bench.get_operands(message_gradient, (end - begin) * width));
    }
    Scattered {
        message,
        scale: match bench.numbers.scaled() {
            true => bench.get(gradient_scale, batch.edges()),
            false => vec![1.0; batch.edges()],
        },
        envelope: bench.get(d_envelope, batch.edges()),
        torque: bench.get(torque, 3 * batch.edges()),
    }
}

#[test]
fn gradients_of_scattering() {
    let molecules = molecules();
    let batch = Batch::new(&molecules);
    let seeds: Vec<u64> = (0..).take(molecules.len()).collect();
    for bench in benches(ThreadOrder::Ascending) {
        for (orders, scale) in [(Orders::All, 1.0), (Orders::Zero, 0.2f32)] {
            let (c, layout, factor) = (bench.channels, &bench.layout, f64::from(scale));
            let mut values = Values::new(&bench, &molecules, &seeds, orders);
            if bench.numbers.scaled() {
                // Gradients of any size must come through.
                for (i, x) in values.x.chunks_exact_mut(layout.rows * c).enumerate() {
                    x.iter_mut()
                        .for_each(|x| *x *= 10f64.powi(3 * (i as i32 % 9) - 12));
                }
            }
            let found = scatter_backward(
                &bench,
                &batch,
                &values,
                orders,
                scale,
                &[batch.whole()],
                false,
            );
            let rows = orders.rows(layout);
            let mut expected = Scattered {
                message: vec![],
                scale: found.scale.clone(),
                envelope: vec![0.25; batch.edges()],
                torque: vec![0.5; 3 * batch.edges()],
            };
            let name = bench.name();
            for e in 0..batch.edges() {
                let d = dense(layout, &values.wigner[e * layout.wigner_len..], orders);
                let (p, s) = (values.envelope[e], found.scale[e]);
                let x = &values.x[batch.target[e] as usize * layout.rows * c..][..layout.rows * c];
                let mut back = vec![0.0; layout.rows * c];
                let first = expected.message.len();
                for (row, d) in d.iter().enumerate() {
                    for channel in 0..c {
                        let message = values.message[(e * rows + row) * c + channel];
                        let bar: f64 = (0..layout.rows).map(|k| d[k] * x[k * c + channel]).sum();
                        expected.envelope[e] += factor * bar * message;
                        expected.message.push(factor * p * bar * s);
                        for k in 0..layout.rows {
                            back[k * c + channel] += d[k] * message;
                        }
                    }
                }
                let t = torque(layout.lmax, c, x, &back);
                for (sum, t) in expected.torque[3 * e..].iter_mut().zip(t) {
                    *sum -= factor * p * t;
                }
                let row = first..expected.message.len();
                let found_row = &found.message[row.clone()];
                assert_close(&name, found_row, &expected.message[row], bench.tolerance());
                if bench.numbers.scaled() {
                    assert_eq!(s.log2().fract(), 0.0, "{name}: a power of two");
                    assert!(found_row.iter().all(|m| m.abs() < 2.001), "{name}: below 2");
                }
            }
            assert_close(&name, &found.envelope, &expected.envelope, 5e-6);
            assert_close(&name, &found.torque, &expected.torque, 5e-6);
            let run = |chunks: &[Chunk], store: bool| {
                scatter_backward(&bench, &batch, &values, orders, scale, chunks, store)
            };
            assert_eq!(run(&batch.chunks(2), false), found, "{name}");
            // Nothing is read of what is stored.
            let without = |found: &[f64], before: f64| found.iter().map(|x| x - before).collect();
            let envelope: Vec<f64> = without(&expected.envelope, 0.25);
            let torque: Vec<f64> = without(&expected.torque, 0.5);
            let stored = run(&batch.chunks(2), true);
            assert_close(&name, &stored.envelope, &envelope, 5e-6);
            assert_close(&name, &stored.torque, &torque, 5e-6);
            assert_eq!(stored.message, found.message, "{name}");
        }
    }
}

/// The bits of a system alone are those of the system among others, in any order of threads.
#[test]
fn a_system_has_the_same_bits_in_every_batch() {
    let all = molecules();
    let seeds: Vec<u64> = (0..).take(all.len()).collect();
    // Systems 4, 2 and 0, then each of them alone.
    let some = [4, 2, 0];
    for (layout, channels) in [((2, 2), 128), ((2, 2), 5), ((4, 2), 20), ((3, 3), 45)] {
        for precision in PRECISIONS {
            let answer = |which: &[usize], order| {
                let bench = Bench::new(layout, channels, precision, order);
                let molecules: Vec<Molecule> = which.iter().map(|&i| all[i].clone()).collect();
                let seeds: Vec<u64> = which.iter().map(|&i| seeds[i]).collect();
                let batch = Batch::new(&molecules);
                let values = Values::new(&bench, &molecules, &seeds, Orders::All);
                let whole = [batch.whole()];
                (
                    gather(&bench, &batch, &values, &whole),
                    gather_backward(&bench, &batch, &values, &whole, false),
                    scatter(&bench, &batch, &values, Orders::All, 1.0, &whole),
                    scatter_backward(&bench, &batch, &values, Orders::All, 1.0, &whole, false),
                    batch,
                )
            };
            let (gathered, gathered_bar, scattered, scattered_bar, batch) =
                answer(&some, ThreadOrder::Ascending);
            let (mut atom, mut edge) = (0, 0);
            for i in some {
                let alone = answer(&[i], ThreadOrder::Shuffled(i as u32 + 2));
                let (atoms, edges) = (alone.4.atoms(), alone.4.edges());
                let cut = |whole: &[f64], first: usize, count: usize, total: usize| {
                    let width = whole.len() / total;
                    whole[first * width..(first + count) * width].to_vec()
                };
                let of_edges = |whole: &[f64]| cut(whole, edge, edges, batch.edges());
                let of_atoms = |whole: &[f64]| cut(whole, atom, atoms, batch.atoms());
                assert_eq!(alone.0, of_edges(&gathered));
                assert_eq!(alone.1.radial, of_edges(&gathered_bar.radial));
                assert_eq!(alone.1.source, of_atoms(&gathered_bar.source));
                assert_eq!(alone.1.torque, of_edges(&gathered_bar.torque));
                assert_eq!(alone.1.source_torque, of_edges(&gathered_bar.source_torque));
                assert_eq!(alone.2, of_atoms(&scattered));
                assert_eq!(alone.3.message, of_edges(&scattered_bar.message));
                assert_eq!(alone.3.scale, of_edges(&scattered_bar.scale));
                assert_eq!(alone.3.envelope, of_edges(&scattered_bar.envelope));
                assert_eq!(alone.3.torque, of_edges(&scattered_bar.torque));
                atom += atoms;
                edge += edges;
            }
        }
    }
}
