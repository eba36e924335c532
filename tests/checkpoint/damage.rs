//! Cut-off and bit-flipped files: an error or an answer, never a panic, a hang or a large
//! allocation.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use tempfile::NamedTempFile;
use umaserve::potential::uma::{Checkpoint, CheckpointError};

use crate::forge::nano;
use crate::peak_memory;

/// SplitMix64: enough to scatter damage, the same on every run.
struct Scatter(u64);

impl Scatter {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// A checkpoint on disk that is damaged in place and repaired again.
struct Victim {
    file: NamedTempFile,
    original: Vec<u8>,
}

impl Victim {
    fn new(name: &str) -> Self {
        let original = std::fs::read(nano(name)).expect("a nano checkpoint");
        let file = NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), &original).expect("writing");
        Self { file, original }
    }

    /// Opens the file with `bytes` in place of what stands at `at`, under the memory bound that
    /// holds for every file.
    fn open_with(&self, patches: &[(usize, &[u8])]) -> Result<Checkpoint, CheckpointError> {
        let file = self.file.as_file();
        for (at, bytes) in patches {
            file.write_all_at(bytes, *at as u64).expect("damaging");
        }
        let (result, peak) = peak_memory(|| Checkpoint::open(self.file.path()));
        let limit = 8 * self.original.len() + (1 << 20);
        assert!(peak <= limit, "{peak} bytes for {patches:?}");
        for (at, bytes) in patches {
            file.write_all_at(&self.original[*at..at + bytes.len()], *at as u64)
                .expect("repairing");
        }
        result
    }

    /// Offset of the central directory.
    fn directory(&self) -> usize {
        find(&self.original, b"PK\x01\x02", 0)
    }

    /// Payload of data.pkl, and where the central directory keeps its CRC-32.
    fn program(&self) -> (std::ops::Range<usize>, usize) {
        let local = u16::from_le_bytes([self.original[26], self.original[27]]) as usize;
        let extra = u16::from_le_bytes([self.original[28], self.original[29]]) as usize;
        let start = 30 + local + extra;
        let entry = self.directory();
        let size = &self.original[entry + 24..entry + 28];
        let size = u32::from_le_bytes(size.try_into().expect("4 bytes")) as usize;
        assert!(self.original[30..30 + local].ends_with(b"/data.pkl"));
        (start..start + size, entry + 16)
    }
}

fn find(bytes: &[u8], pattern: &[u8], from: usize) -> usize {
    bytes[from..]
        .windows(pattern.len())
        .position(|window| window == pattern)
        .map(|at| from + at)
        .expect("the pattern")
}

#[test]
fn files_cut_off_anywhere_are_refused() {
    let victim = Victim::new("esen");
    // Every structure of the archive begins and ends at one of these.
    let mut lengths = vec![0, 1, 4];
    for signature in [b"PK\x03\x04", b"PK\x07\x08", b"PK\x01\x02", b"PK\x05\x06"] {
        let mut at = 0;
        while let Some(found) = victim.original[at..]
            .windows(4)
            .position(|w| w == signature)
        {
            at += found;
            lengths.extend([
                at.saturating_sub(1),
                at,
                at + 1,
                at + 4,
                at + 16,
                at + 30,
                at + 46,
            ]);
            at += 1;
            if at + 4 > victim.original.len() {
                break;
            }
        }
    }
    let mut scatter = Scatter(1);
    lengths.extend((0..200).map(|_| scatter.below(victim.original.len())));
    lengths.push(victim.original.len() - 1);
    lengths.retain(|&length| length < victim.original.len());
    lengths.sort_unstable();
    lengths.dedup();
    assert!(lengths.len() > 1000);
    let file: &File = victim.file.as_file();
    for &length in lengths.iter().rev() {
        file.set_len(length as u64).expect("cutting off");
        let (result, peak) = peak_memory(|| Checkpoint::open(victim.file.path()));
        assert!(result.is_err(), "opened with {length} bytes");
        assert!(peak <= 8 * length + (1 << 20), "{peak} bytes for {length}");
    }
}

#[test]
fn a_flipped_bit_in_a_weight_is_found_and_named() {
    let victim = Victim::new("1p2");
    let checkpoint = Checkpoint::open(victim.file.path()).expect("the original");
    let mut scatter = Scatter(2);
    for (name, tensor) in &checkpoint.tensors {
        let storage = tensor.storage();
        let at = storage.start + scatter.below(storage.len());
        let flipped = victim.original[at] ^ (1 << scatter.below(8));
        match victim.open_with(&[(at, &[flipped])]) {
            Err(CheckpointError::Damaged { what, .. }) => {
                assert!(what.contains(name), "{what} instead of {name}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn the_plain_weights_are_never_read() {
    let victim = Victim::new("1p1");
    let checkpoint = Checkpoint::open(victim.file.path()).expect("the original");
    let first = checkpoint
        .tensors
        .iter()
        // The rotation tables are constants that both sets of weights share.
        .filter(|(name, _)| !name.contains("Jd_"))
        .map(|(_, tensor)| tensor.storage().start)
        .min()
        .expect("tensors");
    // torch stores the attributes in order: the plain weights lie before the EMA weights.
    let (program, _) = victim.program();
    let gap = first - program.end;
    assert!(gap > 100_000);
    let at = program.end + gap / 2;
    let damage: Vec<u8> = victim.original[at..at + 8].iter().map(|b| !b).collect();
    assert!(victim.open_with(&[(at, &damage)]).is_ok());
}

#[test]
fn a_damaged_program_is_found_by_its_checksum() {
    let victim = Victim::new("1p1");
    let (program, _) = victim.program();
    let at = program.start + program.len() / 2;
    match victim.open_with(&[(at, &[!victim.original[at]])]) {
        Err(CheckpointError::Damaged { what, .. }) => assert_eq!(what, "data.pkl"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn random_changes_of_the_program_never_panic() {
    let victim = Victim::new("esen");
    let (program, crc_at) = victim.program();
    let opcodes = b"(.012NKMJGXTU]ael}sud)tRQbchjqr\x80\x81\x85\x86\x87\x88\x89\x8a\x8b";
    let mut scatter = Scatter(3);
    let mut opened = 0;
    const ROUNDS: usize = 3000;
    for round in 0..ROUNDS {
        let mut mutated = victim.original[program.clone()].to_vec();
        // The configuration and the tensors stand at both ends; favour them over the tree between.
        let reach = match round % 3 {
            0 => 2500.min(mutated.len()),
            _ => mutated.len(),
        };
        for _ in 0..1 + scatter.below(4) {
            let mut at = scatter.below(reach);
            if round % 3 == 1 {
                at = mutated.len() - 1 - at / 2;
            }
            match scatter.below(5) {
                0 => mutated[at] ^= 1 << scatter.below(8),
                1 => mutated[at] = scatter.next() as u8,
                2 => mutated[at] = opcodes[scatter.below(opcodes.len())],
                3 => {
                    let from = scatter.below(mutated.len());
                    let length = 1 + scatter.below(16.min(mutated.len() - at.max(from)));
                    mutated.copy_within(from..from + length, at);
                }
                _ => {
                    let value = [0x00, 0x7f, 0x80, 0xff][scatter.below(4)];
                    let length = 1 + scatter.below(8.min(mutated.len() - at));
                    mutated[at..at + length].fill(value);
                }
            }
        }
        let crc = crc32fast::hash(&mutated).to_le_bytes();
        let result = victim.open_with(&[(program.start, &mutated), (crc_at, &crc)]);
        opened += usize::from(result.is_ok());
    }
    // Both outcomes occur, so the checksum was not what refused.
    assert!(opened > ROUNDS / 100 && opened < ROUNDS, "{opened}");
}

#[test]
fn random_changes_of_the_archive_never_panic() {
    let victim = Victim::new("esen");
    let directory = victim.directory();
    let tail = victim.original.len() - directory;
    let mut scatter = Scatter(4);
    let mut opened = 0;
    const ROUNDS: usize = 2000;
    for _ in 0..ROUNDS {
        let mut mutated = victim.original[directory..].to_vec();
        for _ in 0..1 + scatter.below(3) {
            // Half of the damage goes to the end record.
            let at = match scatter.below(2) {
                0 => scatter.below(tail),
                _ => tail - 1 - scatter.below(22),
            };
            match scatter.below(3) {
                0 => mutated[at] ^= 1 << scatter.below(8),
                1 => mutated[at] = scatter.next() as u8,
                _ => {
                    let length = 1 + scatter.below(8.min(tail - at));
                    mutated[at..at + length].fill([0x00, 0xff][scatter.below(2)]);
                }
            }
        }
        opened += usize::from(victim.open_with(&[(directory, &mutated)]).is_ok());
    }
    assert!(opened < ROUNDS, "{opened}");
    // Local headers: those of EMA storages are used.
    let checkpoint = Checkpoint::open(victim.file.path()).expect("the original");
    let starts: Vec<usize> = checkpoint
        .tensors
        .values()
        .map(|tensor| tensor.storage().start)
        .collect();
    drop(checkpoint);
    for _ in 0..500 {
        let before = starts[scatter.below(starts.len())] - 1 - scatter.below(90);
        let _ = victim.open_with(&[(before, &[scatter.next() as u8])]);
    }
}

#[test]
fn the_same_file_opens_again_after_all_that() {
    let victim = Victim::new("esen");
    assert!(victim.open_with(&[]).is_ok());
    let options = OpenOptions::new().read(true).open(victim.file.path());
    assert!(options.is_ok());
}
