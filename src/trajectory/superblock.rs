//! The first bytes of an HDF5 file: whether it was closed properly, and making it openable.
//!
//! Layout of superblock versions 2 and 3 (HDF5 File Format Specification III, section II.A), with
//! the 8-byte offsets this program writes: signature (8), version, size of offsets, size of
//! lengths, consistency flags (1 each), base address, extension address, end-of-file address,
//! root group address (8 each), checksum (4, Jenkins lookup3 of the preceding 44 bytes).

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::path::Path;

use super::TrajectoryError;

const BYTES: usize = 48;
const SIGNATURE: &[u8; 8] = b"\x89HDF\r\n\x1a\n";
const FLAGS: usize = 11;
const END_OF_FILE: std::ops::Range<usize> = 28..36;

/// Whether the file carries the mark "open for writing" that a killed writer leaves behind.
/// `false` for files of other writers without such a mark.
pub(super) fn is_marked_open(path: &Path) -> Result<bool, TrajectoryError> {
    let block = read(path)?;
    Ok(block[8] == 3 && block[FLAGS] != 0)
}

/// The first bytes of a file, as they were before [`clear_mark`].
#[derive(Debug)]
pub(super) struct Cleared {
    old: [u8; BYTES],
    /// Whether anything had to be changed.
    pub(super) changed: bool,
}

impl Cleared {
    /// Puts the old bytes back.
    pub(super) fn undo(&self, path: &Path) -> Result<(), TrajectoryError> {
        if self.changed {
            write(path, &self.old)?;
        }
        Ok(())
    }
}

/// Clears the mark and sets the end of file to the real one.
pub(super) fn clear_mark(path: &Path) -> Result<Cleared, TrajectoryError> {
    let old = read(path)?;
    if !(2..=3).contains(&old[8]) || old[9] != 8 {
        return Err(TrajectoryError::file(
            path,
            format!(
                "HDF5 superblock version {} was not written by umaserve and cannot be repaired",
                old[8]
            ),
        ));
    }
    let length = std::fs::metadata(path)
        .map_err(|e| TrajectoryError::file(path, e))?
        .len();
    let mut new = old;
    new[FLAGS] = 0;
    new[END_OF_FILE].copy_from_slice(&length.to_le_bytes());
    let checksum = lookup3(&new[..BYTES - 4]);
    new[BYTES - 4..].copy_from_slice(&checksum.to_le_bytes());
    let changed = new != old;
    if changed {
        write(path, &new)?;
    }
    Ok(Cleared { old, changed })
}

fn write(path: &Path, block: &[u8; BYTES]) -> Result<(), TrajectoryError> {
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).open(path)?;
        file.write_all(block)?;
        file.sync_all()
    };
    write().map_err(|e| TrajectoryError::file(path, e))
}

fn read(path: &Path) -> Result<[u8; BYTES], TrajectoryError> {
    let mut block = [0; BYTES];
    let mut file = std::fs::File::open(path).map_err(|e| TrajectoryError::file(path, e))?;
    file.read_exact(&mut block)
        .map_err(|_| TrajectoryError::file(path, "too short for an HDF5 file"))?;
    if !block.starts_with(SIGNATURE) {
        return Err(TrajectoryError::file(path, "not an HDF5 file"));
    }
    Ok(block)
}

/// Bob Jenkins' lookup3 `hashlittle` with initial value 0, HDF5's metadata checksum.
fn lookup3(bytes: &[u8]) -> u32 {
    let word = |chunk: &[u8], i: usize| {
        (0..4).fold(0u32, |w, k| {
            w | u32::from(chunk.get(4 * i + k).copied().unwrap_or(0)) << (8 * k)
        })
    };
    let start = 0xdead_beef_u32.wrapping_add(bytes.len() as u32);
    let (mut a, mut b, mut c) = (start, start, start);
    let mut rest = bytes;
    while rest.len() > 12 {
        a = a.wrapping_add(word(rest, 0));
        b = b.wrapping_add(word(rest, 1));
        c = c.wrapping_add(word(rest, 2));
        a = a.wrapping_sub(c) ^ c.rotate_left(4);
        c = c.wrapping_add(b);
        b = b.wrapping_sub(a) ^ a.rotate_left(6);
        a = a.wrapping_add(c);
        c = c.wrapping_sub(b) ^ b.rotate_left(8);
        b = b.wrapping_add(a);
        a = a.wrapping_sub(c) ^ c.rotate_left(16);
        c = c.wrapping_add(b);
        b = b.wrapping_sub(a) ^ a.rotate_left(19);
        a = a.wrapping_add(c);
        c = c.wrapping_sub(b) ^ b.rotate_left(4);
        b = b.wrapping_add(a);
        rest = &rest[12..];
    }
    if rest.is_empty() {
        return c;
    }
    a = a.wrapping_add(word(rest, 0));
    b = b.wrapping_add(word(rest, 1));
    c = c.wrapping_add(word(rest, 2));
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    (c ^ b).wrapping_sub(b.rotate_left(24))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lookup3_gives_the_published_values() {
        // driver5() of lookup3.c: "Four score and seven years ago" with initial value 0.
        assert_eq!(lookup3(b""), 0xdead_beef);
        assert_eq!(lookup3(b"Four score and seven years ago"), 0x1777_0551);
    }

    #[test]
    fn other_files_are_named_as_such() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("x.h5");
        for content in [&b""[..], b"short", &[7; 100]] {
            std::fs::write(&path, content).expect("written");
            let error = is_marked_open(&path).unwrap_err().to_string();
            assert!(error.contains("HDF5"), "{error}");
            assert!(clear_mark(&path).is_err());
        }
    }
}
