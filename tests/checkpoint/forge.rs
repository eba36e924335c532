//! Makes checkpoints for tests: real ones with parts of their pickle program replaced, and
//! programs from scratch.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// One of the small checkpoints that the reference implementation wrote.
pub fn nano(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/nano-{name}.pt"))
}

/// Every entry of an archive.
pub fn entries(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut zip = ZipArchive::new(File::open(path).expect("the file")).expect("a zip archive");
    (0..zip.len())
        .map(|i| {
            let mut entry = zip.by_index(i).expect("an entry");
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).expect("its payload");
            (entry.name().expect("its name").into_owned(), bytes)
        })
        .collect()
}

/// Writes an archive of stored entries; `large` makes every entry ZIP64.
pub fn write_archive(entries: &[(String, Vec<u8>)], large: bool) -> NamedTempFile {
    let file = NamedTempFile::new().expect("a temporary file");
    let mut zip = ZipWriter::new(file.reopen().expect("the file again"));
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .with_alignment(64)
        .large_file(large);
    for (name, bytes) in entries {
        zip.start_file(name, options).expect("a new entry");
        zip.write_all(bytes).expect("its payload");
    }
    zip.finish().expect("the central directory");
    file
}

/// A nano checkpoint whose pickle program went through `change`.
pub fn patched(name: &str, change: impl FnOnce(&mut Vec<u8>)) -> NamedTempFile {
    let mut entries = entries(&nano(name));
    let program = entries
        .iter_mut()
        .find(|(name, _)| name.ends_with("/data.pkl"))
        .map(|(_, bytes)| bytes)
        .expect("data.pkl");
    change(program);
    write_archive(&entries, false)
}

/// A file that has only a pickle program.
pub fn program(bytes: &[u8]) -> NamedTempFile {
    write_archive(&[("forged/data.pkl".to_owned(), bytes.to_vec())], false)
}

fn find(bytes: &[u8], pattern: &[u8], from: usize) -> Option<usize> {
    bytes[from..]
        .windows(pattern.len())
        .position(|window| window == pattern)
        .map(|at| from + at)
}

/// Replaces every occurrence of `from`; there must be one.
pub fn replace(bytes: &mut Vec<u8>, from: &[u8], to: &[u8]) {
    let mut at = 0;
    let mut replaced = 0;
    while let Some(found) = find(bytes, from, at) {
        bytes.splice(found..found + from.len(), to.iter().copied());
        at = found + to.len();
        replaced += 1;
    }
    assert!(
        replaced > 0,
        "{:?} is not there",
        String::from_utf8_lossy(from)
    );
}

/// Replaces a string of the program by another.
pub fn rename(bytes: &mut Vec<u8>, from: &str, to: &str) {
    replace(bytes, &text(from), &text(to));
}

/// Replaces the value behind the first occurrence of the key `key`. The value must be of one
/// opcode: a number, a truth value, or a string.
pub fn set(bytes: &mut Vec<u8>, key: &str, value: &[u8]) {
    let key = text(key);
    let mut at = find(bytes, &key, 0).expect("the key") + key.len();
    at += memo_put(bytes, at);
    let length = match bytes[at] {
        b'N' | 0x88 | 0x89 => 1,
        b'K' => 2,
        b'M' => 3,
        b'J' => 5,
        b'G' => 9,
        b'X' => 5 + u32::from_le_bytes(bytes[at + 1..at + 5].try_into().expect("4 bytes")) as usize,
        other => panic!("opcode {other:#x} is no scalar"),
    };
    bytes.splice(at..at + length, value.iter().copied());
}

/// Inserts a pair in front of the first occurrence of the key `before`.
pub fn insert(bytes: &mut Vec<u8>, before: &str, key: &str, value: &[u8]) {
    let at = find(bytes, &text(before), 0).expect("the key");
    let mut pair = text(key);
    pair.extend(value);
    bytes.splice(at..at, pair);
}

fn memo_put(bytes: &[u8], at: usize) -> usize {
    match bytes[at] {
        b'q' => 2,
        b'r' => 5,
        _ => 0,
    }
}

// A small assembler for pickle programs.

pub fn text(text: &str) -> Vec<u8> {
    let mut bytes = vec![b'X'];
    bytes.extend((text.len() as u32).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes
}

pub fn int(value: i32) -> Vec<u8> {
    let mut bytes = vec![b'J'];
    bytes.extend(value.to_le_bytes());
    bytes
}

pub fn truth(value: bool) -> Vec<u8> {
    vec![if value { 0x88 } else { 0x89 }]
}

pub fn list(items: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = b"](".to_vec();
    items.iter().for_each(|item| bytes.extend(item));
    bytes.push(b'e');
    bytes
}

pub fn dict(pairs: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = b"}(".to_vec();
    for (key, value) in pairs {
        bytes.extend(text(key));
        bytes.extend(value);
    }
    bytes.push(b'u');
    bytes
}

pub fn object(module: &str, name: &str, state: &[u8]) -> Vec<u8> {
    let mut bytes = format!("c{module}\n{name}\n").into_bytes();
    bytes.extend(b")\x81");
    bytes.extend(state);
    bytes.push(b'b');
    bytes
}

/// A whole program around an inference checkpoint with the given attributes.
pub fn checkpoint(model_config: &[u8], tasks_config: &[u8], ema_state_dict: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x80\x02".to_vec();
    bytes.extend(object(
        "fairchem.core.units.mlip_unit.api.inference",
        "MLIPInferenceCheckpoint",
        &dict(&[
            ("model_config", model_config.to_vec()),
            ("tasks_config", tasks_config.to_vec()),
            ("ema_state_dict", ema_state_dict.to_vec()),
        ]),
    ));
    bytes.push(b'.');
    bytes
}

/// Writes an archive beyond 4 GiB: `hole` is an entry of zeros that takes `hole_bytes` of address
/// space and no disk, in front of all others, so that sizes and offsets need 64 bits.
pub fn write_huge_archive(
    entries: &[(String, Vec<u8>)],
    hole: &str,
    hole_bytes: u64,
) -> NamedTempFile {
    let mut out = NamedTempFile::new().expect("a temporary file");
    let mut directory = Vec::new();
    let file = out.as_file_mut();
    let empty = Vec::new();
    let all = std::iter::once((hole, &empty, hole_bytes)).chain(
        entries
            .iter()
            .map(|(name, bytes)| (name.as_str(), bytes, bytes.len() as u64)),
    );
    let mut count = 0u64;
    for (name, bytes, size) in all {
        let start = file.stream_position().expect("a position");
        // The CRC of the hole is wrong on purpose: nobody may read it.
        let crc = if name == hole {
            1
        } else {
            crc32fast::hash(bytes)
        };
        let mut zip64 = vec![1, 0, 16, 0];
        zip64.extend(size.to_le_bytes());
        zip64.extend(size.to_le_bytes());
        let mut local = b"PK\x03\x04\x2d\x00\x00\x00\x00\x00\x00\x00\x21\x00".to_vec();
        local.extend(crc.to_le_bytes());
        local.extend([0xff; 8]);
        local.extend((name.len() as u16).to_le_bytes());
        local.extend((zip64.len() as u16).to_le_bytes());
        local.extend(name.as_bytes());
        local.extend(&zip64);
        file.write_all(&local).expect("a local header");
        if name == hole {
            file.seek(SeekFrom::Current(size as i64)).expect("a hole");
        } else {
            file.write_all(bytes).expect("a payload");
        }
        zip64[2] = 24;
        zip64.extend(start.to_le_bytes());
        directory.extend(b"PK\x01\x02\x2d\x00\x2d\x00\x00\x00\x00\x00\x00\x00\x21\x00");
        directory.extend(crc.to_le_bytes());
        directory.extend([0xff; 8]);
        directory.extend((name.len() as u16).to_le_bytes());
        directory.extend((zip64.len() as u16).to_le_bytes());
        directory.extend([0; 10]);
        directory.extend([0xff; 4]);
        directory.extend(name.as_bytes());
        directory.extend(&zip64);
        count += 1;
    }
    let start = file.stream_position().expect("a position");
    let end = start + directory.len() as u64;
    file.write_all(&directory).expect("the directory");
    let mut tail = b"PK\x06\x06".to_vec();
    tail.extend(44u64.to_le_bytes());
    tail.extend([0x2d, 0, 0x2d, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    tail.extend(count.to_le_bytes());
    tail.extend(count.to_le_bytes());
    tail.extend((directory.len() as u64).to_le_bytes());
    tail.extend(start.to_le_bytes());
    tail.extend(b"PK\x06\x07\x00\x00\x00\x00");
    tail.extend(end.to_le_bytes());
    tail.extend(1u32.to_le_bytes());
    tail.extend(b"PK\x05\x06\x00\x00\x00\x00");
    tail.extend([0xff; 12]);
    tail.extend([0, 0]);
    file.write_all(&tail).expect("the end");
    out
}
