//! The reader of checkpoints: a damaged or hostile file is an error with a reason.

#![no_main]

mod order;

use std::io::{Cursor, Write};
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use umaserve::potential::uma::Checkpoint;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// In memory where there is such a place.
static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let shm = PathBuf::from("/dev/shm");
    let directory = if shm.is_dir() {
        shm
    } else {
        std::env::temp_dir()
    };
    directory.join(format!("umaserve-fuzz-{}.pt", std::process::id()))
});

/// An archive with this pickle program and a few small tensors.
fn archive(program: &[u8]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .with_alignment(64);
    let mut add = |name: &str, bytes: &[u8]| {
        zip.start_file(name, options).expect("a name that is fine");
        zip.write_all(bytes).expect("memory");
    };
    add("m/data.pkl", program);
    add("m/byteorder", b"little");
    for storage in 0..4 {
        add(&format!("m/data/{storage}"), &[0; 256]);
    }
    zip.finish().expect("memory").into_inner()
}

// The first byte says whether the rest is a whole file or the pickle program of one.
fuzz_target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    let written = match kind & 1 {
        0 => std::fs::write(&*FILE, rest),
        _ => std::fs::write(&*FILE, archive(rest)),
    };
    written.expect("the file can be written");
    if let Err(error) = Checkpoint::open(&*FILE) {
        assert!(!error.to_string().is_empty());
    }
});
