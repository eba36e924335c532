//! What the reader says about well-formed files, against values that torch printed.

use std::time::Instant;

use umaserve::potential::uma::Checkpoint;
use umaserve::potential::uma::checkpoint::tensor::DType;
use umaserve::potential::uma::config::{
    ChargeSpinEmbedding, FeedForward, Generation, Normalizer, expected_tensors,
};
use umaserve::potential::uma::describe::describe;

use crate::forge::{
    entries, insert, int, list, nano, patched, rename, replace, set, text, write_archive,
    write_huge_archive,
};

/// File, tensor, shape, first numbers, last number, sum: printed by torch from `ema_state_dict`.
type Golden = (
    &'static str,
    &'static str,
    &'static [usize],
    &'static [f64],
    f64,
    f64,
);

#[rustfmt::skip]
const GOLDEN: &[Golden] = &[
    ("1p1", "backbone.sphere_embedding.weight", &[100, 16], &[-1.0983974933624268, -1.1381572484970093, -0.24911171197891235], 1.3027913570404053, 60.18123259674758),
    ("1p1", "output_heads.energyandforcehead.head.energy_block.2.weight", &[16, 16], &[0.21504732966423035, -0.1674126386642456, 0.2550848424434662], 0.13318763673305511, 0.3354802061803639),
    ("1p1", "backbone.blocks.1.edge_wise.so2_conv_1.so2_m_conv.1.fc.weights", &[4, 32, 32], &[-0.07497958838939667, 0.14258107542991638, 0.0042862435802817345], 0.12611934542655945, 0.4490309586399235),
    ("1p1", "backbone.Jd_2", &[5, 5], &[0.0, 0.0, 0.0], 0.5, -2.732050807568877),
    ("1p2", "backbone.sphere_embedding.weight", &[100, 16], &[-1.0776559114456177, -1.0819005966186523, -0.24156427383422852], 1.278225302696228, 59.52931166323833),
    // A view: 7 of the 8 matrices in its storage.
    ("1p2", "output_heads.energyandforcehead.head.energy_block.2.weights", &[7, 16, 16], &[-0.19754579663276672, 0.034955792129039764, 0.11856367439031601], -0.12094541639089584, 7.5706747841322795),
    ("1p2", "output_heads.energyandforcehead.head.energy_block.4.bias", &[1], &[0.10180198401212692], 0.10180198401212692, 0.10180198401212692),
    ("m", "backbone.blocks.1.edge_wise.so2_conv_1.so2_m_conv.1.fc.weights", &[4, 96, 96], &[0.0014693401753902435, 0.03903857618570328, -0.08823715150356293], -0.06859511882066727, 7.082245338358916),
    ("m", "backbone.Jd_4", &[9, 9], &[0.0, 0.0, 0.0], 0.125, 4.69296001023415),
    ("esen", "backbone.blocks.1.edge_wise.so2_conv_1.so2_m_conv.1.fc.weight", &[32, 32], &[-0.028238341212272644, 0.008577031083405018, -0.07409431785345078], 0.010832097381353378, 0.4821194281685166),
    ("esen", "output_heads.energyandforcehead.head.energy_block.4.bias", &[1], &[0.08615882694721222], 0.08615882694721222, 0.08615882694721222),
];

#[test]
fn tensors_are_the_ema_weights_as_torch_reads_them() {
    for &(file, name, shape, first, last, sum) in GOLDEN {
        let checkpoint = Checkpoint::open(nano(file)).expect(file);
        let tensor = checkpoint.tensor(name).expect(name);
        assert_eq!(tensor.shape(), shape, "{name}");
        let numbers = tensor.to_vec::<f64>();
        assert_eq!(&numbers[..first.len()], first, "{file} {name}");
        assert_eq!(numbers.last(), Some(&last), "{file} {name}");
        let total: f64 = numbers.iter().sum();
        assert!((total - sum).abs() < 1e-10, "{file} {name}: {total}");
        // Without a copy: the same numbers, where the file has single precision.
        match tensor.as_f32_slice() {
            Some(floats) => assert!(
                floats
                    .iter()
                    .zip(&numbers)
                    .all(|(&a, &b)| f64::from(a) == b)
            ),
            None => assert_eq!(tensor.dtype(), DType::F64, "{name}"),
        }
        assert_eq!(
            tensor.to_vec::<f32>(),
            numbers.iter().map(|&x| x as f32).collect::<Vec<_>>()
        );
    }
}

#[test]
fn the_head_experts_of_1p2_are_views_into_larger_storages() {
    let checkpoint = Checkpoint::open(nano("1p2")).expect("nano-1p2");
    let name = format!("{}.0.weights", checkpoint.config.head.prefix);
    let tensor = checkpoint.tensor(&name).expect("the first layer");
    assert_eq!(tensor.len(), 7 * 16 * 16);
    assert_eq!(tensor.storage().len(), 8 * 16 * 16 * 4);
    let whole = tensor.as_f32_slice().expect("contiguous single precision");
    for expert in 0..7 {
        let part = tensor.at(expert).expect("an expert");
        assert_eq!(part.shape(), [16, 16]);
        assert_eq!(
            part.as_f32_slice().expect("a matrix"),
            &whole[expert * 256..][..256]
        );
    }
    assert!(tensor.at(7).is_none());
}

#[test]
fn released_pages_are_read_again() {
    let checkpoint = Checkpoint::open(nano("1p1")).expect("nano-1p1");
    let tensor = checkpoint
        .tensor("backbone.blocks.0.edge_wise.so2_conv_1.fc_m0.weights")
        .expect("the experts");
    let before = tensor.to_vec::<f32>();
    tensor.release();
    assert_eq!(tensor.to_vec::<f32>(), before);
    checkpoint.release();
    tensor.prefetch();
    assert_eq!(tensor.as_f32_slice().expect("contiguous"), before);
}

#[test]
fn a_view_outlives_its_checkpoint() {
    let checkpoint = Checkpoint::open(nano("esen")).expect("nano-esen");
    let tensor = checkpoint
        .tensor("backbone.norm.affine_bias")
        .expect("a bias")
        .clone();
    drop(checkpoint);
    assert_eq!(tensor.to_vec::<f64>().len(), 16);
}

#[test]
fn the_configuration_of_a_1p1_file() {
    let config = Checkpoint::open(nano("1p1")).expect("nano-1p1").config;
    assert_eq!(config.name, "UMA-1.1");
    assert_eq!(config.model_id, None);
    assert_eq!(config.generation, Generation::Uma1p1);
    assert!(!config.generation.composition_includes_self());
    let sizes = [
        config.sphere_channels,
        config.hidden_channels,
        config.edge_channels,
        config.num_distance_basis,
    ];
    assert_eq!(sizes, [16; 4]);
    assert_eq!((config.lmax, config.mmax, config.num_layers), (2, 2, 2));
    assert_eq!((config.cutoff, config.max_neighbors), (6.0, 300));
    assert_eq!((config.max_num_elements, config.num_experts), (100, 4));
    assert_eq!(config.charge_spin_embedding, ChargeSpinEmbedding::Table);
    assert_eq!(config.feed_forward, FeedForward::Spectral);
    assert!(config.use_composition_embedding && config.use_dataset_embedding);
    assert!(!config.supports_single_atoms);
    assert!(config.charge_balanced_channels.is_empty());
    assert!(config.spin_balanced_channels.is_empty());
    let names = ["oc20", "odac", "omat", "omc", "omol"];
    assert!(config.datasets.iter().all(|(name, target)| name == target));
    assert!(config.datasets.keys().eq(names));
    assert!(config.task_names().eq(names));
    assert_eq!(config.head.experts, None);
    assert_eq!(config.head.datasets, names);
    assert_eq!(config.ignored, Vec::<String>::new());
    // 0.05 or 13.6 eV times Z^1.9, from the generator of the test files.
    let scale = Normalizer {
        mean: 0.0,
        rmsd: 1.423,
    };
    for (name, task) in &config.tasks {
        assert_eq!(task.energy, scale);
        assert_eq!(task.forces, Some(scale));
        assert_eq!(
            task.stress,
            ["omat", "omc"].contains(&name.as_str()).then_some(scale),
            "{name}"
        );
        assert_eq!(task.stress_normalizer(), scale);
        assert_eq!(task.element_references.len(), 100);
        assert_eq!(task.element_references[0], 0.0);
        let unit = if name == "omol" { 13.6 } else { 0.05 };
        assert_eq!(task.element_references[1], -unit);
        let silicon = -unit * 14f64.powf(1.9);
        assert!((task.element_references[14] - silicon).abs() < 1e-9 * silicon.abs());
    }
}

#[test]
fn the_configuration_of_a_1p2_file() {
    let config = Checkpoint::open(nano("1p2")).expect("nano-1p2").config;
    assert_eq!(config.name, "UMA-S-1.2.1");
    assert_eq!(config.generation, Generation::Newer);
    assert!(!config.generation.composition_includes_self());
    assert!(config.supports_single_atoms);
    assert_eq!(config.charge_balanced_channels, 0..3);
    assert_eq!(config.head.experts, Some(7));
    let order = ["oc20", "oc22", "oc25", "odac", "omat", "omc", "omol"];
    for (index, name) in order.iter().enumerate() {
        assert_eq!(config.head.expert_of[*name], index, "{name}");
    }
    assert_eq!(config.tasks["oc25"].energy.rmsd, 1.342);
}

#[test]
fn only_the_exact_1p2_averages_over_one_atom_too_many() {
    let file = patched("1p2", |program| rename(program, "UMA-S-1.2.1", "UMA-S-1.2"));
    let config = Checkpoint::open(file.path()).expect("UMA-S-1.2").config;
    assert_eq!(config.generation, Generation::Uma1p2);
    assert!(config.generation.composition_includes_self());
}

#[test]
fn the_version_of_a_1p1_file_may_be_text() {
    let file = patched("1p1", |program| set(program, "model_version", &text("1.1")));
    let config = Checkpoint::open(file.path()).expect("1.1 as text").config;
    assert_eq!(config.generation, Generation::Uma1p1);
}

#[test]
fn the_configuration_of_other_shapes() {
    let m = Checkpoint::open(nano("m")).expect("nano-m").config;
    assert_eq!((m.lmax, m.mmax), (4, 2));
    assert_eq!(m.node_rows(), 25);
    let esen = Checkpoint::open(nano("esen")).expect("nano-esen").config;
    assert_eq!(esen.generation, Generation::Esen);
    assert!(!esen.is_mixture());
    assert_eq!(esen.name, "eSEN");
}

#[test]
fn missing_keys_have_the_defaults_of_the_code() {
    // `num_layers` 2 is both the value and the default; 300 neighbours likewise.
    let file = patched("1p1", |program| {
        rename(program, "num_layers", "num_layerz");
        rename(program, "max_neighbors", "max_neighborz");
        rename(program, "cutoff", "cutofg");
    });
    let config = Checkpoint::open(file.path()).expect("defaults").config;
    assert_eq!((config.num_layers, config.max_neighbors), (2, 300));
    assert_eq!(config.cutoff, 5.0);
    let ignored = ["cutofg", "max_neighborz", "num_layerz"];
    for key in ignored {
        let path = format!("model_config.backbone.{key}");
        assert!(config.ignored.contains(&path), "{:?}", config.ignored);
    }
    assert!(describe(&Checkpoint::open(file.path()).expect("defaults")).contains("cutofg"));
}

#[test]
fn a_head_of_a_fine_tune_may_be_unwrapped() {
    let file = patched("esen", |program| {
        let wrapper = "fairchem.core.models.uma.escn_moe.DatasetSpecificSingleHeadWrapper";
        rename(
            program,
            wrapper,
            "fairchem.core.models.uma.escn_md.MLP_EFS_Head",
        );
        rename(program, "head_cls", "prefix");
        for layer in [0, 2, 4] {
            for part in ["weight", "bias"] {
                let name = |head: &str| {
                    format!(
                        "module.output_heads.energyandforcehead.{head}energy_block.{layer}.{part}"
                    )
                };
                rename(program, &name("head."), &name(""));
            }
        }
        // Names of tasks play no role, and `module.` may be there more than once.
        rename(program, "omol_energy", "energy");
        let bias = "module.backbone.norm.affine_bias";
        rename(program, bias, &format!("module.module.{bias}"));
    });
    let checkpoint = Checkpoint::open(file.path()).expect("an unwrapped head");
    let head = &checkpoint.config.head;
    assert_eq!(head.prefix, "output_heads.energyandforcehead.energy_block");
    assert!(head.datasets.is_empty() && head.experts.is_none());
    assert!(checkpoint.tensors.contains_key("backbone.norm.affine_bias"));
    assert!(checkpoint.config.tasks.contains_key("omol"));
}

#[test]
fn spin_channels_are_read_from_a_plain_list() {
    let file = patched("1p1", |program| {
        let channels = list(&[int(4), int(3)]);
        insert(program, "lmax", "spin_balanced_channels", &channels);
    });
    let config = Checkpoint::open(file.path()).expect("spin channels").config;
    assert_eq!(config.spin_balanced_channels, 3..5);
}

#[test]
fn legacy_buffers_are_tolerated() {
    let file = patched("1p1", |program| {
        rename(
            program,
            "module.backbone.Jd_0",
            "module.backbone.blocks.0.norm_1.balance_degree_weight",
        );
    });
    let checkpoint = Checkpoint::open(file.path()).expect("a legacy buffer");
    assert!(
        !checkpoint
            .tensors
            .keys()
            .any(|name| name.contains("balance_degree"))
    );
}

#[test]
fn parameters_are_counted() {
    for (file, total) in [
        ("1p1", 169_845),
        ("1p2", 173_045),
        ("m", 581_813),
        ("esen", 61_889),
    ] {
        let checkpoint = Checkpoint::open(nano(file)).expect(file);
        // Printed by torch.
        assert_eq!(checkpoint.config.parameters_total(), total, "{file}");
        let numbers: usize = checkpoint
            .tensors
            .iter()
            .filter(|(name, _)| !name.contains("Jd_"))
            .map(|(_, tensor)| tensor.len())
            .sum();
        assert_eq!(numbers, total, "{file}");
        assert!(expected_tensors(&checkpoint.config).len() == checkpoint.tensors.len());
    }
    // The published sizes, with the published widths put into the small configuration: backbone
    // 146,533,664 and head 33,153; merged backbone 6,316,672.
    let mut config = Checkpoint::open(nano("1p1")).expect("nano-1p1").config;
    config.sphere_channels = 128;
    config.hidden_channels = 128;
    config.edge_channels = 128;
    config.num_distance_basis = 64;
    config.num_layers = 4;
    config.num_experts = 32;
    assert_eq!(config.parameters_total(), 146_533_664 + 33_153);
    assert_eq!(config.parameters_active(), 6_316_672 + 33_153);
    config.lmax = 4;
    config.num_layers = 10;
    config.num_distance_basis = 128;
    assert_eq!(config.parameters_total(), 1_396_635_936 + 33_153);
    assert_eq!(config.parameters_active(), 50_654_848 + 33_153);
}

#[test]
fn the_digest_identifies_the_content() {
    let digest = |path: &std::path::Path| Checkpoint::open(path).expect("a file").digest;
    let original = digest(&nano("1p1"));
    assert_eq!(original, digest(&nano("1p1")));
    assert_ne!(original, digest(&nano("1p2")));
    // Written anew: other offsets and another folder name, the same content.
    let mut parts = entries(&nano("1p1"));
    for (name, _) in &mut parts {
        *name = name.replacen("nano-1p1/", "elsewhere/", 1);
    }
    assert_eq!(original, digest(write_archive(&parts, false).path()));
    let file = patched("1p1", |program| {
        rename(program, "omol_energy", "omol_energi")
    });
    assert_ne!(original, digest(file.path()));
}

#[test]
fn zip64_archives_are_read() {
    let original = Checkpoint::open(nano("esen")).expect("nano-esen");
    let parts = entries(&nano("esen"));
    let name = "backbone.blocks.1.edge_wise.so2_conv_1.fc_m0.weight";
    let expected = original.tensor(name).expect("a weight").to_vec::<f32>();
    let small = Checkpoint::open(write_archive(&parts, true).path()).expect("ZIP64 entries");
    assert_eq!(
        small.tensor(name).expect("a weight").to_vec::<f32>(),
        expected
    );
    assert_eq!(small.digest, original.digest);
    // All offsets beyond 4 GiB, and an entry of more than 4 GiB that nobody may read.
    let file = write_huge_archive(&parts, "nano-esen/data/hole", 5 << 30);
    let huge = Checkpoint::open(file.path()).expect("a file of more than 4 GiB");
    assert!(huge.file_bytes > 5 << 30);
    assert!(huge.tensor(name).expect("a weight").storage().start > 5 << 30);
    assert_eq!(
        huge.tensor(name).expect("a weight").to_vec::<f32>(),
        expected
    );
}

#[test]
fn interpolations_are_resolved_from_the_root() {
    use crate::forge::{dict, object, truth};
    // backbone.cutoff is an AnyNode "${job.radius}" whose parents end at a tree with job.radius.
    let root = dict(&[(
        "_content",
        dict(&[("job", dict(&[("radius", int(7)), ("ok", truth(true))]))]),
    )]);
    let parent = object("omegaconf.dictconfig", "DictConfig", &root);
    let state = dict(&[("_val", text("${job.radius}")), ("_parent", parent)]);
    let node = object("omegaconf.nodes", "AnyNode", &state);
    let file = patched("1p1", |program| set(program, "cutoff", &node));
    let config = Checkpoint::open(file.path())
        .expect("an interpolation")
        .config;
    assert_eq!(config.cutoff, 7.0);
    // Without a tree to look it up in it is refused, by name.
    let file = patched("1p1", |program| {
        set(program, "cutoff", &text("${job.radius}"))
    });
    let error = Checkpoint::open(file.path())
        .expect_err("no tree")
        .to_string();
    assert!(
        error.contains("cutoff") && error.contains("job.radius"),
        "{error}"
    );
}

#[test]
fn the_description_names_what_matters() {
    let checkpoint = Checkpoint::open(nano("1p2")).expect("nano-1p2");
    let text = describe(&checkpoint);
    for part in [
        "UMA-S-1.2.1",
        &checkpoint.digest.to_string(),
        "1.6 MB",
        "173,045 in total, 61,921 active",
        "lmax 2, mmax 2",
        "oc25",
        "omat     rmsd 1.342 eV, trained stress, references for Z = 1 to 99",
        "oc22     rmsd 1.342 eV, stress not trained",
        "7 in the energy head",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}

/// Resident memory of this process from the kernel, bytes; `None` where there is no /proc.
fn resident() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib: usize = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}

/// Needs a checkpoint of real size, named by UMASERVE_TEST_CHECKPOINT.
#[test]
#[ignore = "needs a checkpoint of real size"]
fn a_checkpoint_of_real_size_opens_within_its_memory() {
    let path = std::env::var("UMASERVE_TEST_CHECKPOINT").expect("UMASERVE_TEST_CHECKPOINT");
    let start = Instant::now();
    let checkpoint = Checkpoint::open(&path).expect("a checkpoint");
    let seconds = start.elapsed().as_secs_f64();
    let loaded = resident();
    print!("{}", describe(&checkpoint));
    println!("opened in {seconds:.3} s, resident {loaded:?}");
    let stored = checkpoint.memory().stored_bytes;
    if let Some(loaded) = loaded {
        assert!(loaded < stored + stored / 10, "{loaded} of {stored}");
    }
    checkpoint.release();
    if let Some(released) = resident() {
        println!("released: {released}");
        assert!(released < stored / 4, "{released} of {stored}");
    }
    for (name, tensor) in &checkpoint.tensors {
        assert!(
            tensor.as_f32_slice().is_some() || name.contains("Jd_"),
            "{name} cannot be used in place"
        );
    }
}

#[test]
fn element_references_of_single_precision_are_rounded() {
    let file = patched("1p1", |program| {
        rename(program, "torch.DoubleTensor", "torch.FloatTensor");
        replace(program, &(-0.05f64).to_be_bytes(), &(-0.1f64).to_be_bytes());
    });
    let config = Checkpoint::open(file.path()).expect("FloatTensor").config;
    assert_eq!(
        config.tasks["omat"].element_references[1],
        f64::from(-0.1f32)
    );
}
