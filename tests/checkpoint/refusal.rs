//! Models outside of what is supported are refused with the option's name, its value and why.

use umaserve::potential::uma::{Checkpoint, CheckpointError};

use crate::forge::{
    checkpoint, dict, insert, int, list, patched, program, rename, replace, set, text, truth,
};

const BACKBONE: &str = "fairchem.core.models.uma.escn_moe.eSCNMDMoeBackbone";
const WRAPPER: &str = "fairchem.core.models.uma.escn_moe.DatasetSpecificSingleHeadWrapper";
const HEAD: &str = "fairchem.core.models.uma.escn_md.MLP_EFS_Head";

/// The message of the refusal of nano-1p1 after `change`.
fn refused(change: impl FnOnce(&mut Vec<u8>)) -> (CheckpointError, String) {
    let file = patched("1p1", change);
    let error = Checkpoint::open(file.path()).expect_err("a refusal");
    let message = error.to_string();
    (error, message)
}

#[track_caller]
fn assert_unsupported(change: impl FnOnce(&mut Vec<u8>), words: &[&str]) {
    let (error, message) = refused(change);
    assert!(
        matches!(error, CheckpointError::Unsupported(_)),
        "{message}"
    );
    for word in words {
        assert!(message.contains(word), "{word:?} is not in {message:?}");
    }
}

#[track_caller]
fn assert_config_error(change: impl FnOnce(&mut Vec<u8>), words: &[&str]) {
    let (error, message) = refused(change);
    assert!(matches!(error, CheckpointError::Config(_)), "{message}");
    for word in words {
        assert!(message.contains(word), "{word:?} is not in {message:?}");
    }
}

#[track_caller]
fn assert_tensor_error(change: impl FnOnce(&mut Vec<u8>), words: &[&str]) {
    let (error, message) = refused(change);
    assert!(matches!(error, CheckpointError::Tensors(_)), "{message}");
    for word in words {
        assert!(message.contains(word), "{word:?} is not in {message:?}");
    }
}

#[test]
fn uma_1p0() {
    let words = ["model_version", "UMA 1.0", "uma-s-1p1"];
    assert_unsupported(|p| rename(p, "model_version", "model_versioo"), &words);
    assert_unsupported(|p| set(p, "model_version", &int(1)), &words);
}

#[test]
fn direct_forces() {
    let words = ["direct_forces", "True", "conserve energy"];
    assert_unsupported(|p| set(p, "direct_forces", &truth(true)), &words);
    // The default of the code is True.
    assert_unsupported(|p| rename(p, "direct_forces", "direct_forcez"), &words);
    assert_unsupported(
        |p| insert(p, "lmax", "direct_stress", &truth(true)),
        &["direct_stress"],
    );
}

#[test]
fn other_networks() {
    let all = "fairchem.core.models.allscaip.AllScAIP.AllScAIPBackbone";
    assert_unsupported(|p| rename(p, BACKBONE, all), &["AllScAIP", "attention"]);
    assert_unsupported(|p| rename(p, BACKBONE, "EScAIP_backbone"), &["eSCAIP"]);
    assert_unsupported(|p| rename(p, BACKBONE, "a.b.Other"), &["a.b.Other"]);
    assert_unsupported(
        |p| rename(p, "fairchem.core.models.base.HydraModel", "x.Y"),
        &["_target_", "x.Y", "HydraModel"],
    );
}

#[test]
fn other_heads() {
    for (class, why) in [
        ("MLP_Energy_Head", "directly predicted forces"),
        ("Linear_Force_Head", "directly predicted forces"),
        ("MLP_Stress_Head", "directly predicted"),
        ("Exotic_Head", "MLP_EFS_Head"),
    ] {
        let path = format!("fairchem.core.models.uma.escn_md.{class}");
        assert_unsupported(|p| rename(p, HEAD, &path), &["head_cls", class, why]);
        assert_unsupported(|p| rename(p, WRAPPER, &path), &["module", class, why]);
    }
}

/// The message for a program written from scratch with these heads.
fn refused_heads(heads: &[(&str, Vec<u8>)]) -> String {
    let backbone = dict(&[
        ("model", text("escnmd_moe_backbone")),
        ("num_experts", int(0)),
        ("direct_forces", truth(false)),
        ("dataset_list", list(&[text("omol")])),
    ]);
    let model = dict(&[("backbone", backbone), ("heads", dict(heads))]);
    let file = program(&checkpoint(&model, &list(&[]), &dict(&[])));
    let error = Checkpoint::open(file.path()).expect_err("a refusal");
    error.to_string()
}

#[test]
fn heads_that_average_or_are_several() {
    let mean = dict(&[("reduce", text("mean"))]);
    let wrapped = dict(&[
        ("module", text(WRAPPER)),
        ("head_cls", text(HEAD)),
        ("dataset_names", list(&[text("omol")])),
        ("head_kwargs", mean),
    ]);
    let message = refused_heads(&[("energy", wrapped)]);
    assert!(message.contains("reduce = \"mean\""), "{message}");
    let plain = || dict(&[("module", text(HEAD))]);
    let message = refused_heads(&[("one", plain()), ("two", plain())]);
    assert!(
        message.contains("exactly one output head, found 2"),
        "{message}"
    );
    // A force head beside the energy head says best what kind of model this is.
    let forces = dict(&[(
        "module",
        text("fairchem.core.models.uma.escn_md.Linear_Force_Head"),
    )]);
    let message = refused_heads(&[("energy", plain()), ("forces", forces)]);
    assert!(message.contains("directly predicted forces"), "{message}");
    // Nothing wrong with one plain head: the tasks come next.
    let message = refused_heads(&[("energy", plain())]);
    assert!(message.contains("no energy task"), "{message}");
}

#[test]
fn expert_of_a_dataset_must_exist() {
    let mapping = dict(&[("omol", text("omat"))]);
    let head = dict(&[
        (
            "module",
            text("fairchem.core.models.uma.escn_moe.DatasetSpecificMoEWrapper"),
        ),
        ("head_cls", text(HEAD)),
        ("dataset_mapping", mapping),
    ]);
    let message = refused_heads(&[("energy", head)]);
    assert!(
        message.contains("\"omat\" is not itself a dataset"),
        "{message}"
    );
}

#[test]
fn options_of_the_network() {
    for (key, value) in [
        ("norm_type", "layer_norm"),
        ("act_type", "s2"),
        ("ff_type", "fourier"),
        ("distance_function", "bessel"),
        ("chg_spin_emb_type", "other_emb"),
        ("moe_layer_type", "triton"),
    ] {
        assert_unsupported(|p| set(p, key, &text(value)), &[key, value]);
    }
    for (key, value) in [
        ("moe_type", text("all")),
        ("moe_expert_coefficient_norm", text("pnorm")),
        ("layers_moe", list(&[int(0)])),
        ("moe_single", truth(true)),
        ("act", text("torch.nn.ReLU")),
    ] {
        assert_unsupported(|p| insert(p, "lmax", key, &value), &[key]);
    }
}

#[test]
fn sizes_out_of_bounds() {
    for (key, value) in [
        ("sphere_channels", int(1 << 30)),
        ("sphere_channels", int(-16)),
        ("num_layers", int(100_000)),
        ("lmax", int(0)),
        ("mmax", int(3)),
        ("num_experts", int(i32::MAX)),
        ("num_distance_basis", int(1)),
        ("lmax", text("two")),
        ("lmax", b"N.".to_vec()[..1].to_vec()),
    ] {
        let result = std::panic::catch_unwind(|| refused(|p| set(p, key, &value)).1);
        let message = result.expect("no panic");
        assert!(
            message.contains(key) || message.contains("shape"),
            "{message}"
        );
    }
    for radius in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e9] {
        let mut value = vec![b'G'];
        value.extend(radius.to_be_bytes());
        assert_config_error(|p| set(p, "cutoff", &value), &["cutoff"]);
    }
    assert_config_error(
        |p| {
            insert(
                p,
                "lmax",
                "charge_balanced_channels",
                &list(&[int(0), int(2)]),
            )
        },
        &["charge_balanced_channels", "consecutive"],
    );
    assert_config_error(
        |p| insert(p, "lmax", "charge_balanced_channels", &list(&[int(16)])),
        &["charge_balanced_channels", "16"],
    );
}

#[test]
fn tensors_that_do_not_fit() {
    // Sizes in the configuration that the tensors contradict.
    assert_tensor_error(
        |p| set(p, "num_layers", &int(3)),
        &["backbone.blocks.2", "missing", "more"],
    );
    assert_tensor_error(
        |p| set(p, "num_layers", &int(1)),
        &["backbone.blocks.1", "unexpected"],
    );
    assert_tensor_error(
        |p| set(p, "num_distance_basis", &int(17)),
        &["rad_func.net.0.weight", "[16, 48]", "[16, 49]"],
    );
    assert_tensor_error(|p| set(p, "ff_type", &text("grid")), &["grid_mlp.0.weight"]);
    assert_tensor_error(
        |p| {
            rename(
                p,
                "module.backbone.norm.affine_bias",
                "module.backbone.norm.bias",
            )
        },
        &[
            "`backbone.norm.affine_bias` [16] is missing",
            "`backbone.norm.bias` is unexpected",
        ],
    );
    // A size that would overflow, were it not compared first.
    assert_tensor_error(
        |p| set(p, "max_num_elements", &int(1000)),
        &["sphere_embedding.weight", "[1000, 16]"],
    );
}

#[test]
fn tasks_that_do_not_fit() {
    for rmsd in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e30] {
        let change = |p: &mut Vec<u8>| replace(p, &1.423f64.to_be_bytes(), &rmsd.to_be_bytes());
        assert_config_error(change, &["tasks_config[0].normalizer"]);
    }
    // Energy tasks become stress tasks: some datasets then have two, others no energy.
    let (error, message) = refused(|p| rename(p, "energy", "stress"));
    assert!(matches!(error, CheckpointError::Config(_)), "{message}");
    assert!(
        message.contains("stress") || message.contains("energy"),
        "{message}"
    );
    let (error, message) = refused(|p| rename(p, "torch.DoubleTensor", "numpy.load"));
    assert!(
        matches!(error, CheckpointError::Unsupported(_)),
        "{message}"
    );
    assert!(
        message.contains("numpy.load") && message.contains("tasks_config"),
        "{message}"
    );
}

#[test]
fn things_that_are_no_checkpoint() {
    let refuse = |bytes: &[u8]| {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), bytes).expect("writing");
        Checkpoint::open(file.path())
            .expect_err("no checkpoint")
            .to_string()
    };
    assert!(refuse(b"").contains("empty"));
    assert!(refuse(b"hello").contains("zip"));
    assert!(refuse(b"PK\x05\x06").contains("zip"));
    assert!(
        refuse(b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0").contains("torch.save"),
        "an empty archive"
    );
    let missing = Checkpoint::open("no-such-file.pt")
        .expect_err("no file")
        .to_string();
    assert!(missing.contains("no-such-file.pt"), "{missing}");
    assert!(Checkpoint::open(std::env::temp_dir()).is_err(), "a folder");
    let file = patched("1p1", |p| {
        replace(p, b"MLIPInferenceCheckpoint", b"Something");
    });
    let message = Checkpoint::open(file.path())
        .expect_err("another class")
        .to_string();
    assert!(message.contains("Something"), "{message}");
    let file = patched("1p1", |p| {
        replace(p, b"\nFloatStorage\n", b"\nComplexFloatStorage\n")
    });
    let message = Checkpoint::open(file.path())
        .expect_err("another format")
        .to_string();
    assert!(message.contains("ComplexFloatStorage"), "{message}");
}
