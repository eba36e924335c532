//! Pickle programs written to exhaust or confuse the reader.

use std::time::{Duration, Instant};

use umaserve::potential::uma::Checkpoint;
use umaserve::potential::uma::checkpoint::pickle::Pickle;

use crate::forge::{
    checkpoint, dict, entries, int, list, nano, object, patched, program, set, text,
};
use crate::peak_memory;

/// Opens a forged program, which must be refused with a message that contains `word`, in little
/// time and memory.
#[track_caller]
fn assert_refused(bytes: &[u8], word: &str) {
    let file = program(bytes);
    let start = Instant::now();
    let (result, peak) = peak_memory(|| Checkpoint::open(file.path()).map(|_| ()));
    let message = result.expect_err("a hostile program").to_string();
    assert!(message.contains(word), "{word:?} is not in {message:?}");
    assert!(message.len() < 4096, "a message of {} bytes", message.len());
    // Arena, stack and memo may take 24 bytes per byte, and vectors grow by doubling.
    let limit = 80 * bytes.len() + (1 << 20);
    assert!(
        peak <= limit,
        "{peak} bytes of memory for {} bytes",
        bytes.len()
    );
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn lengths_beyond_the_program() {
    for opcode in [
        &b"X\xff\xff\xff\xff"[..],
        b"T\xff\xff\xff\x7f",
        b"\x8b\xff\xff\xff\xff",
        b"\x8b\xff\xff\xff\x7f",
    ] {
        let mut bytes = b"\x80\x02".to_vec();
        bytes.extend(opcode);
        bytes.push(b'.');
        assert_refused(&bytes, "beyond the end");
    }
    assert_refused(b"\x80\x02\x8a\xff.", "beyond the end");
    assert_refused(b"\x80\x02M\x01", "beyond the end");
    assert_refused(b"\x80\x02", "without STOP");
    assert_refused(b"\x80\x02j\xff\xff\xff\xff.", "does not exist");
    assert_refused(b"\x80\x02Nr\xff\xff\xff\xff.", "out of order");
    assert_refused(b"\x80\x02cos\nsystem", "end of line");
}

#[test]
fn doubling_tuples_and_lists() {
    for pair in [&b"\x86"[..], b"(\x86l"] {
        let mut bomb = b"Nr\x00\x00\x00\x00".to_vec();
        for level in 0u32..2000 {
            if pair.len() > 1 {
                bomb.push(b'(');
            }
            for _ in 0..2 {
                bomb.push(b'j');
                bomb.extend(level.to_le_bytes());
            }
            bomb.push(if pair.len() > 1 { b'l' } else { 0x86 });
            bomb.push(b'r');
            bomb.extend((level + 1).to_le_bytes());
            // Only the newest stays; the memo keeps the rest.
            if level < 1999 {
                bomb.push(b'0');
            }
        }
        // The first value is still below on the stack: as a pair of both it is one value.
        bomb.push(0x86);
        assert_refused(
            &checkpoint(&bomb, &list(&[]), &dict(&[])),
            "expected a mapping",
        );
        let backbone = dict(&[("backbone", bomb.clone())]);
        assert_refused(
            &checkpoint(&backbone, &list(&[]), &dict(&[])),
            "expected a mapping",
        );
    }
}

#[test]
fn a_million_marks_containers_or_globals() {
    let repeat = |opcode: &[u8]| {
        let mut bytes = b"\x80\x02".to_vec();
        bytes.extend(opcode.repeat(1_000_000));
        bytes.push(b'.');
        bytes
    };
    assert_refused(&repeat(b"("), "");
    assert_refused(&repeat(b"}"), "times its own size");
    assert_refused(&repeat(b")"), "times its own size");
    assert_refused(&repeat(b"N"), "");
    assert_refused(&repeat(b"c\n\n"), "");
    assert_refused(&repeat(b"]q\x00"), "");
    // Nested, not beside each other: a list in a list in a list.
    let mut deep = b"\x80\x02".to_vec();
    deep.extend(b"](".repeat(200_000));
    deep.extend(b"e".repeat(200_000));
    deep.push(b'.');
    let (result, _) = peak_memory(|| Pickle::load(&deep).map(|_| ()));
    // Building it and dropping it does not recurse; whether it fits is a matter of the bound.
    let _ = result;
    assert_refused(&deep, "");
}

#[test]
fn programs_that_misuse_the_stack() {
    for bytes in [
        &b"."[..],
        b"\x80\x02NN.",
        b"\x80\x02(N.",
        b"\x80\x02u.",
        b"\x80\x02Nu.",
        b"\x80\x02}Ns.",
        b"\x80\x02}(Nu.",
        b"\x80\x02N(Ne.",
        b"\x80\x02(e.",
        b"\x80\x02\x87.",
        b"\x80\x02NNNs.",
        b"\x80\x02NNR.",
        b"\x80\x02N)R.",
        b"\x80\x02NQ.",
        b"\x80\x02]Q.",
        b"\x80\x02NNb.",
        b"\x80\x02)Nb.",
        b"\x80\x02(Nd.",
        b"\x80\x02X\x02\x00\x00\x00\xff\xff.",
        b"\x80\x02c\xff\n\xff\n.",
        b"\x80\x02I1\n.",
        b"\x80\x05N.",
    ] {
        assert_refused(bytes, "data.pkl");
    }
}

#[test]
fn containers_that_contain_themselves() {
    // model_config = {"backbone": model_config, ...}
    let own = b"}q\x00X\x08\x00\x00\x00backboneh\x00s".to_vec();
    assert_refused(
        &checkpoint(&own, &list(&[]), &dict(&[])),
        "`model` is missing",
    );
    // A DictConfig whose content is itself.
    let head = b"comegaconf.dictconfig\nDictConfig\n)\x81q\x00}X\x08\x00\x00\x00_contenth\x00sb";
    assert_refused(&checkpoint(head, &list(&[]), &dict(&[])), "nested");
    // Interpolations that lead to each other, without an end.
    let node = |value: &str| {
        let parent = b"h\x00".to_vec();
        object(
            "omegaconf.nodes",
            "AnyNode",
            &dict(&[("_val", text(value)), ("_parent", parent)]),
        )
    };
    let mut tree = b"comegaconf.dictconfig\nDictConfig\n)\x81q\x00".to_vec();
    tree.extend(dict(&[(
        "_content",
        dict(&[
            ("backbone", node("${other}")),
            ("other", node("${backbone}")),
        ]),
    )]));
    tree.push(b'b');
    assert_refused(
        &checkpoint(&tree, &list(&[]), &dict(&[])),
        "too many others",
    );
    // Interpolations that branch: each names ten times the next, and all of them can be resolved.
    let mut parts: Vec<(String, Vec<u8>)> = Vec::new();
    for level in 0..20 {
        let next = format!("n{}", level + 1);
        let key = [next.as_str(); 10].join(".");
        let value = node(&format!("${{{key}}}"));
        parts.push((format!("n{level}"), value));
    }
    parts.push(("n20".to_owned(), b"h\x00".to_vec()));
    parts.push(("backbone".to_owned(), node("${n0}")));
    let parts: Vec<(&str, Vec<u8>)> = parts.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
    let mut tree = b"comegaconf.dictconfig\nDictConfig\n)\x81q\x00".to_vec();
    tree.extend(dict(&[("_content", dict(&parts))]));
    tree.push(b'b');
    assert_refused(
        &checkpoint(&tree, &list(&[]), &dict(&[])),
        "too many others",
    );
    // A parent chain without an end.
    let mut node = b"comegaconf.nodes\nAnyNode\n)\x81q\x00".to_vec();
    node.extend(dict(&[
        ("_val", text("${a}")),
        ("_parent", b"h\x00".to_vec()),
    ]));
    node.push(b'b');
    assert_refused(&checkpoint(&node, &list(&[]), &dict(&[])), "too deep");
}

#[test]
fn shared_giants() {
    // A mapping of a million entries that all share one key and one value.
    let mut bytes = b"}X\x01\x00\x00\x00aq\x00Nq\x01s0}(".to_vec();
    bytes.extend(b"h\x00h\x01".repeat(200_000));
    bytes.push(b'u');
    assert_refused(&checkpoint(&bytes, &list(&[]), &dict(&[])), "");
    // A name of a megabyte.
    let long = "x".repeat(1 << 20);
    let model = dict(&[(long.as_str(), int(1)), ("_target_", text(&long))]);
    assert_refused(&checkpoint(&model, &list(&[]), &dict(&[])), "_target_");
    // A list with a million references to one list of a million.
    let backbone = dict(&[
        ("model", text("escnmd_moe_backbone")),
        ("direct_forces", b"\x89".to_vec()),
        ("dataset_list", {
            let mut list = b"X\x01\x00\x00\x00aq\x000](".to_vec();
            list.extend(b"h\x00".repeat(100_000));
            list.push(b'e');
            list
        }),
    ]);
    let model = dict(&[("backbone", backbone)]);
    assert_refused(&checkpoint(&model, &list(&[]), &dict(&[])), "");
}

#[test]
fn long_searches_end() {
    // A list of 4096 interpolations, each through a mapping of 4000 keys.
    let wide: Vec<(String, Vec<u8>)> = (0..4000)
        .map(|i| (format!("k{i}"), b"N".to_vec()))
        .collect();
    let mut wide: Vec<(&str, Vec<u8>)> =
        wide.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
    wide.insert(0, ("name", text("omol")));
    let mut backbone = dict(&[
        ("model", text("escnmd_moe_backbone")),
        ("num_experts", int(0)),
        ("direct_forces", b"\x89".to_vec()),
    ]);
    let mut parent = b"comegaconf.dictconfig\nDictConfig\n)\x81q\x00".to_vec();
    parent.extend(dict(&[("_content", dict(&wide))]));
    parent.push(b'b');
    let state = dict(&[("_val", text("${name}")), ("_parent", parent)]);
    let mut element = object("omegaconf.nodes", "AnyNode", &state);
    element.extend(b"q\x01");
    let mut names = element;
    names.extend(b"0](");
    names.extend(b"h\x01".repeat(4096));
    names.push(b'e');
    // {..., "dataset_list": names}: the element is made and dropped in front of the list.
    let key = text("dataset_list");
    let cut = names
        .windows(3)
        .position(|w| w == b"0](")
        .expect("the list");
    backbone.extend(&names[..=cut]);
    backbone.extend(&key);
    backbone.extend(&names[cut + 1..]);
    backbone.push(b's');
    let model = dict(&[("backbone", backbone)]);
    assert_refused(
        &checkpoint(&model, &list(&[]), &dict(&[])),
        "too many steps",
    );
}

#[test]
fn names_that_would_write_to_the_terminal() {
    let file = patched("1p2", |bytes| {
        crate::forge::rename(bytes, "UMA-S-1.2.1", "\u{1b}[2J");
    });
    let message = Checkpoint::open(file.path())
        .expect_err("a name")
        .to_string();
    assert!(
        message.contains("model_id") && !message.contains('\u{1b}'),
        "{message}"
    );
}

#[test]
fn tensors_that_reach_outside_of_their_storage() {
    // Any storage of 16 numbers will do.
    let key = entries(&nano("1p1"))
        .into_iter()
        .find(|(name, bytes)| name.contains("/data/") && bytes.len() == 64)
        .and_then(|(name, _)| name.rsplit('/').next().map(str::to_owned))
        .expect("a storage of 64 bytes");
    let mut storage = text("storage");
    storage.extend(b"ctorch\nFloatStorage\n");
    storage.extend(text(&key));
    storage.extend(text("cpu"));
    storage.extend(b"K\x10tQ");
    let tensor = |offset: &[u8], shape: &[u8], strides: &[u8]| {
        let mut bytes = b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec();
        bytes.extend(&storage);
        bytes.extend(offset);
        bytes.extend(shape);
        bytes.extend(strides);
        bytes.extend(b"\x89NtR");
        bytes
    };
    let name = "module.backbone.norm.affine_bias";
    // Shape 16 is what the configuration asks for; the rest is hostile.
    for (offset, strides, word) in [
        (&b"K\x01"[..], &b"K\x01\x85"[..], "does not fit"),
        (b"K\x00", b"K\x02\x85", "does not fit"),
        (
            b"K\x00",
            b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85",
            "does not fit",
        ),
        (
            b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
            b"K\x01\x85",
            "does not fit",
        ),
        (b"J\xff\xff\xff\xff", b"K\x01\x85", "negative"),
        (b"K\x00", b"J\xff\xff\xff\xff\x85", "negative"),
        (b"K\x00", b"K\x01K\x01\x86", "strides"),
        (b"K\x00", b")", "strides"),
        (b"K\x00", b"N", "None"),
        (b"G\x00\x00\x00\x00\x00\x00\x00\x00", b"K\x01\x85", "offset"),
    ] {
        let value = tensor(offset, b"K\x10\x85", strides);
        let file = replaced_tensor(name, &value);
        let message = Checkpoint::open(file.path())
            .expect_err("hostile")
            .to_string();
        assert!(message.contains("affine_bias"), "{message}");
        assert!(message.contains(word), "{word:?} is not in {message:?}");
    }
    for (value, word) in [
        (b"N".to_vec(), "None is not a tensor"),
        (
            tensor(b"K\x00", b"J\x00\x00\x00\x40\x85", b"K\x01\x85"),
            "[1073741824]",
        ),
        (
            tensor(
                b"K\x00",
                b"(K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01t",
                b"K\x01\x85",
            ),
            "dimensions",
        ),
    ] {
        let file = replaced_tensor(name, &value);
        let message = Checkpoint::open(file.path())
            .expect_err("hostile")
            .to_string();
        assert!(message.contains(word), "{word:?} is not in {message:?}");
    }
    // A stride of zero shows one number many times: allowed up to the size of the storage.
    let file = replaced_tensor(name, &tensor(b"K\x0f", b"K\x10\x85", b"K\x00\x85"));
    let checkpoint = Checkpoint::open(file.path()).expect("a constant tensor");
    let bias = checkpoint.tensor("backbone.norm.affine_bias").expect("it");
    assert!(!bias.is_contiguous() && bias.as_f32_slice().is_none());
    let numbers = bias.to_vec::<f32>();
    assert_eq!(numbers, [numbers[0]; 16]);
}

/// nano-1p1 with one EMA tensor replaced. The old value stays in the program, under a name that
/// is skipped, because the memo needs it.
fn replaced_tensor(name: &str, value: &[u8]) -> tempfile::NamedTempFile {
    patched("1p1", |bytes| {
        let key = text(name);
        let at = bytes
            .windows(key.len())
            .position(|window| window == key)
            .expect("the tensor");
        let mut pair = text(name);
        pair.extend(value);
        // The old pair keeps its memo numbers and gets the name of a legacy buffer.
        bytes.splice(at..at + key.len(), text("module.x.expand_index"));
        bytes.splice(at..at, pair);
    })
}

#[test]
fn an_entry_that_claims_to_be_larger_than_the_file() {
    let file = patched("1p1", |_| {});
    let mut bytes = std::fs::read(file.path()).expect("the file");
    let directory = bytes
        .windows(4)
        .position(|w| w == b"PK\x01\x02")
        .expect("the directory");
    for (at, size) in [(directory, 0x7fff_ffffu32), (directory, 0xffff_fffe)] {
        bytes[at + 20..at + 24].copy_from_slice(&size.to_le_bytes());
        bytes[at + 24..at + 28].copy_from_slice(&size.to_le_bytes());
        std::fs::write(file.path(), &bytes).expect("writing");
        let (result, peak) = peak_memory(|| Checkpoint::open(file.path()).map(|_| ()));
        assert!(result.is_err());
        assert!(peak < 4 << 20, "{peak}");
    }
}

#[test]
fn integers_beyond_64_bits_are_no_sizes() {
    let file = patched("1p1", |bytes| {
        set(
            bytes,
            "lmax",
            b"\x8a\x09\x02\x00\x00\x00\x00\x00\x00\x00\x01",
        );
    });
    let message = Checkpoint::open(file.path())
        .expect_err("a huge lmax")
        .to_string();
    assert!(
        message.contains("lmax") && message.contains("64 bits"),
        "{message}"
    );
}
