//! The network at the sizes of the released models, which are too large to be kept here.

use super::checkpoint;
use std::collections::BTreeMap;
use umaserve::backend::cuda::{Options, Precision, evaluation_bytes};
use umaserve::nn::{Program, WeightKind};
use umaserve::potential::uma::config::expected_tensors;
use umaserve::potential::uma::{UmaConfig, network};

/// The configuration of a nano checkpoint with other sizes.
fn config(nano: &str, lmax: usize, layers: usize, basis: usize, experts: usize) -> UmaConfig {
    UmaConfig {
        sphere_channels: 128,
        hidden_channels: 128,
        edge_channels: 128,
        lmax,
        mmax: 2,
        num_layers: layers,
        num_distance_basis: basis,
        num_experts: experts,
        max_num_elements: 100,
        ..checkpoint(nano).config.clone()
    }
}

fn models() -> [UmaConfig; 3] {
    [
        config("1p1", 2, 4, 64, 32), // uma-s-1p1
        config("1p2", 2, 4, 32, 64), // uma-s-1p2
        config("m", 4, 10, 128, 32), // uma-m-1p1
    ]
}

/// Against the sums over the layers' matrices, worked out by hand. The first radial layer counts
/// the Gaussians alone: the parts of the elements, 2 * 128 * 128, are tabulated. The edge-degree
/// rows are rotated at no dense cost.
#[test]
fn multiply_accumulates_of_the_released_models() {
    // Radial network, rotations in and out, first and second convolution of one layer.
    let small = |basis: u64| {
        (basis * 128 + 128 * 128 + 128 * 1536)
            + 35 * (256 + 128)
            + (491_520 + 524_288 + 131_072)
            + (147_456 + 262_144 + 65_536)
    };
    let medium = (128 * 128 + 128 * 128 + 128 * 3072) + 115 * (256 + 128) + 4_751_360 + 2_048_000;
    // Published as 1,889,408, 1,885,312 and 7,302,272 with the parts of the elements.
    let elements = 2 * 128 * 128;
    assert_eq!(small(64) + elements, 1_889_408);
    assert_eq!(small(32) + elements, 1_885_312);
    assert_eq!(medium + elements, 7_302_272);

    let degree = |basis: u64, rows: u64| basis * 128 + 128 * 128 + 128 * rows * 128;
    let expected = [
        (4 * small(64) + degree(64, 3), 4 * 327_680 + 32_896),
        (4 * small(32) + degree(32, 3), 4 * 327_680 + 32_896),
        (
            10 * medium + degree(128, 5),
            10 * (65_536 + 50 * 16_384) + 32_896,
        ),
    ];
    for (config, expected) in models().iter().zip(expected) {
        assert_eq!(network::program(config).cost(), expected, "{}", config.name);
    }
}

/// Shapes in the file: with the leading index of experts or tasks.
fn stored(program: &Program, config: &UmaConfig) -> BTreeMap<String, Vec<usize>> {
    let slots = program.weights.iter().map(|slot| {
        let leading = match slot.kind {
            WeightKind::Fixed => None,
            WeightKind::Mixed => Some(config.num_experts),
            WeightKind::PerTask => config.head.experts,
        };
        let shape = leading.into_iter().chain(slot.shape.iter().copied());
        (slot.name.clone(), shape.collect())
    });
    slots.collect()
}

/// Every tensor of a checkpoint is used by the network or by the conditioning, in its shape, and
/// nothing else is asked for.
#[test]
fn the_network_uses_the_tensors_of_the_file() {
    let nano = ["1p1", "1p2", "m", "esen"].map(|m| checkpoint(m).config.clone());
    for config in models().iter().chain(&nano) {
        let mut expected = expected_tensors(config);
        let conditioning = [
            "backbone.Jd_",
            "backbone.charge_embedding.",
            "backbone.spin_embedding.",
            "backbone.dataset_embedding.",
            "backbone.mix_csd.",
            "backbone.routing_mlp.",
            "backbone.composition_embedding.",
        ];
        expected.retain(|name, _| !conditioning.iter().any(|c| name.starts_with(c)));
        let program = network::program(config);
        assert_eq!(stored(&program, config), expected, "{}", config.name);
        assert_eq!(program.weights.len(), expected.len(), "no weight twice");
    }
}

/// Buffers have names of their own, and every operation reads what an earlier one has written.
#[test]
fn programs_are_in_order() {
    for config in models() {
        let program = network::program(&config);
        let mut names: Vec<&str> = program.buffers.iter().map(|b| b.name.as_str()).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|w| w[0] != w[1]), "{names:?}");
        assert_eq!(program.width(program.atom_energy), 1);
        let mut written = vec![false; program.buffers.len()];
        for op in &program.ops {
            for read in op.kept() {
                let own = op.writes().contains(&read);
                assert!(own || written[read.0], "{op:?} reads {read:?} too early");
            }
            for buf in op.writes() {
                assert!(!written[buf.0], "{op:?} writes {buf:?} again");
                written[buf.0] = true;
            }
        }
        assert!(written[program.atom_energy.0]);
    }
}

/// 1,000 copper atoms, 78,000 edges, do not fit into 2 GiB with everything kept, nor with all edges of a
/// layer in hand at a time: edges run in chunks, and what the backward pass needs is computed again.
#[test]
fn a_thousand_copper_atoms_fit_into_two_gib_of_a_gpu() {
    const GIB: usize = 1 << 30;
    let config = config("1p2", 2, 4, 32, 64);
    let program = network::program(&config);
    let (atoms, edges) = (1000, 78_000);
    for (precision, everything) in [(Precision::Tf32, 5 * GIB), (Precision::F16, 5 * GIB / 2)] {
        let options = Options::new(precision, 80 * GIB);
        let levels = evaluation_bytes(&program, &options, atoms, edges).unwrap();
        assert!(levels[0] > everything, "{precision}: {levels:?}");
        // Each level saves memory, the last down to a fraction.
        assert!(
            levels.windows(2).all(|pair| pair[1] < pair[0]),
            "{levels:?}"
        );
        assert!(levels[3] < levels[0] / 4, "{precision}: {levels:?}");
        // The limit is for everything on the device: batches, mixed weights and experts.
        let limited = options.limited_to(1400 << 20);
        let all = limited.memory_bytes + limited.mixed_bytes + limited.experts_bytes;
        assert!(all < 2 * GIB, "{precision}: {all}");
        assert!(levels[3] < limited.memory_bytes, "{precision}: {levels:?}");
        // Without chunks even that takes more.
        let whole = Options {
            chunk_edges: 1 << 20,
            ..options
        };
        let whole = evaluation_bytes(&program, &whole, atoms, edges).unwrap();
        assert!(whole[1] > levels[1], "{precision}: {whole:?}, {levels:?}");
    }
}
