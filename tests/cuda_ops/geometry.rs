//! Geometry of edges, forces, sums over systems.

use super::*;
use umaserve::backend::cuda::params::{
    AtomForceParams, EdgeForceParams, EdgeGeometryParams, SystemSumsParams,
};

#[test]
fn edges_are_expanded_as_on_the_cpu() {
    let batch = Batch::new(&molecules());
    for layout in LAYOUTS {
        for order in ORDERS {
            let bench = Bench::new(layout, 4, Precision::F32, order);
            let layout = &bench.layout;
            let edges = batch.edges();
            let distance = bench.float_space(edges);
            let unit = bench.float_space(3 * edges);
            let envelope = bench.float_space(edges);
            let wigner = bench.float_space(edges * layout.wigner_len);
            // Edges before and behind the chunk are left alone.
            for chunk in batch.chunks(7) {
                let params = EdgeGeometryParams {
                    chunk: bench.put(&[chunk]),
                    vector: bench.put(&batch.vector),
                    half_turns: bench.put(&Wigner::new(layout).half_turns()),
                    distance,
                    unit,
                    envelope,
                    wigner,
                    cutoff: CUTOFF,
                    lmax: layout.lmax as u32,
                    mmax: layout.mmax as u32,
                    wigner_len: layout.wigner_len as u32,
                    pad: 0,
                };
                bench.launch(bench.shapes.edge_geometry(edges + 200), &params);
            }
            let length = |v: &[f64; 3]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
            let d: Vec<f64> = batch.vector.iter().map(length).collect();
            assert_close("distance", &bench.get(distance, edges), &d, 1e-7);
            let expected: Vec<f64> = batch
                .vector
                .iter()
                .zip(&d)
                .flat_map(|(v, d)| v.map(|x| x / d))
                .collect();
            assert_close("unit", &bench.get(unit, 3 * edges), &expected, 1e-7);
            let expected = batch.envelope();
            assert_close("envelope", &bench.get(envelope, edges), &expected, 1e-6);
            let found = bench.get(wigner, edges * layout.wigner_len);
            assert_close(&bench.name(), &found, &batch.wigner(layout), 2e-7);
        }
    }
}

#[test]
fn forces_and_virials_come_from_edges() {
    let batch = Batch::new(&molecules());
    let (atoms, edges) = (batch.atoms(), batch.edges());
    for order in ORDERS {
        let bench = Bench::new((2, 2), 4, Precision::F32, order);
        let random = &mut Random::new(9);
        // Of several radial networks, each with room for more edges.
        let (networks, stride) = (3, edges + 2);
        let of_networks = random.values(networks * stride);
        // Added up in f32, from the last network on.
        let d_distance = |e: usize| {
            let parts = (0..networks).rev().map(|n| of_networks[n * stride + e]);
            f64::from(parts.fold(0.0, |sum: f32, part| sum + part as f32))
        };
        let d_envelope = random.values(edges);
        let torques = [(); 2].map(|_| random.values(3 * edges));
        let energy = random.values(atoms);
        let vector = bench.put(&batch.vector);
        let gradient = bench.device().alloc(24 * edges).unwrap();
        let whole = bench.put(&[batch.whole()]);
        let params = EdgeForceParams {
            chunk: whole,
            vector,
            d_distance: bench.floats(&of_networks),
            d_envelope: bench.floats(&d_envelope),
            torque: bench.floats(&torques[0]),
            source_torque: bench.floats(&torques[1]),
            gradient,
            cutoff: CUTOFF,
            edge_stride: stride as u64,
            networks: networks as u32,
            pad: 0,
        };
        bench.launch(bench.shapes.edge_force(edges + 500), &params);
        let mut expected = vec![];
        let mut force = vec![0.0; 3 * atoms];
        let mut virial = vec![0.0; 9 * atoms];
        for (e, v) in batch.vector.iter().enumerate() {
            let d = v.iter().map(|x| x * x).sum::<f64>().sqrt();
            let unit = v.map(|x| x / d);
            let u = d / CUTOFF;
            let slope = match u < 1.0 {
                true => -105.0 * u.powi(4) * (1.0 - u).powi(2) / CUTOFF,
                false => 0.0,
            };
            let t: Vec<f64> = (0..3)
                .map(|k| torques[0][3 * e + k] + torques[1][3 * e + k])
                .collect();
            for k in 0..3 {
                let (i, j) = ((k + 1) % 3, (k + 2) % 3);
                let g = (d_distance(e) + d_envelope[e] * slope) * unit[k]
                    + (unit[i] * t[j] - unit[j] * t[i]) / d;
                expected.push(g);
                let (source, target) = (batch.source[e] as usize, batch.target[e] as usize);
                force[3 * target + k] += g;
                force[3 * source + k] -= g;
                for (sum, v) in virial[9 * target + 3 * k..].iter_mut().zip(v) {
                    *sum += g * v;
                }
            }
        }
        let found: Vec<f64> = bench.device().download(gradient, 3 * edges).unwrap();
        assert_close("gradient", &found, &expected, 1e-14);

        let force_at = bench.device().alloc(24 * atoms).unwrap();
        let virial_at = bench.device().alloc(72 * atoms).unwrap();
        for with_virial in [false, true] {
            let params = AtomForceParams {
                chunk: whole,
                target_start: bench.put(&batch.target_start),
                source_start: bench.put(&batch.source_start),
                by_source: bench.put(&batch.by_source),
                vector,
                gradient,
                force: force_at,
                virial: if with_virial {
                    virial_at
                } else {
                    DevicePtr::NULL
                },
            };
            bench.launch(bench.shapes.atom_force(atoms + 5), &params);
        }
        let found: Vec<f64> = bench.device().download(force_at, 3 * atoms).unwrap();
        assert_close("force", &found, &force, 1e-13);
        let found: Vec<f64> = bench.device().download(virial_at, 9 * atoms).unwrap();
        assert_close("virial", &found, &virial, 1e-13);

        // One more system than there is: capacities are rounded up.
        let systems = batch.atom_start.len();
        let mut starts = batch.atom_start.clone();
        starts.push(atoms as u32);
        let (energies, virials) = (
            bench.device().alloc(8 * systems).unwrap(),
            bench.device().alloc(72 * systems).unwrap(),
        );
        let params = SystemSumsParams {
            atom_start: bench.put(&starts),
            atom_energy: bench.floats(&energy),
            atom_virial: virial_at,
            energy: energies,
            virial: virials,
            systems: systems as u32,
            pad: 0,
        };
        bench.launch(bench.shapes.system_sums(systems), &params);
        let of_system = |values: &[f64], width: usize| -> Vec<f64> {
            let mut sums = vec![0.0; systems * width];
            for (atom, row) in values.chunks_exact(width).enumerate() {
                let system = batch.atom_system[atom] as usize;
                for (sum, x) in sums[system * width..].iter_mut().zip(row) {
                    *sum += x;
                }
            }
            sums
        };
        let found: Vec<f64> = bench.device().download(energies, systems).unwrap();
        assert_close("energy", &found, &of_system(&energy, 1), 1e-14);
        let found: Vec<f64> = bench.device().download(virials, 9 * systems).unwrap();
        assert_close("virial", &found, &of_system(&virial, 9), 1e-13);
    }
}
