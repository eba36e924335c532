//! The container: a zip archive of stored (uncompressed) entries, as `torch.save` writes it.
//!
//! The file is memory-mapped and an entry is a byte range of the map, so nothing is read before
//! somebody looks at it. A checkpoint that is part of the program is read where it lies. `torch.save` aligns payloads by padding the *local* header of an entry,
//! therefore a payload is found through its local header and never through lengths taken from the
//! central directory. Files beyond 4 GiB are ZIP64, which the `zip` crate reads.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use memmap2::{Advice, Mmap, UncheckedAdvice};
use zip::{CompressionMethod, ZipArchive};

use super::CheckpointError;

/// A file mapped read-only into memory, or what stands for one in the program itself.
#[derive(Debug)]
pub struct MappedFile {
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    Map(Mmap),
    Embedded(&'static [u8]),
}

impl MappedFile {
    /// Maps the file at `path`.
    ///
    /// The file must not be changed while it is mapped: a checkpoint is replaced by writing a new
    /// file and renaming it, never in place.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let io = |source| CheckpointError::Io {
            path: path.to_owned(),
            source,
        };
        // Before opening: a named pipe would wait for its writer.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(CheckpointError::Archive(
                "it is not a regular file".to_owned(),
            ));
        }
        let file = File::open(path).map_err(io)?;
        if file.metadata().map_err(io)?.len() == 0 {
            return Err(CheckpointError::Archive("the file is empty".to_owned()));
        }
        // SAFETY: the map is private and read-only and this process never writes to the file.
        // Another process that truncates the file while it is mapped would end this one with
        // SIGBUS; that contract is in the documentation of `open`. Bytes are only ever read as
        // plain numbers, so a change of content cannot break an invariant of a type.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(Self {
            bytes: Bytes::Map(map),
        })
    }

    /// A file that is part of the program.
    pub fn embedded(bytes: &'static [u8]) -> Self {
        Self {
            bytes: Bytes::Embedded(bytes),
        }
    }

    /// All bytes of the file.
    fn all(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Map(map) => map,
            Bytes::Embedded(bytes) => bytes,
        }
    }

    /// Size of the file, bytes.
    pub fn len(&self) -> usize {
        self.all().len()
    }

    /// Whether the file has no bytes (never true: [`MappedFile::open`] refuses empty files).
    pub fn is_empty(&self) -> bool {
        self.all().is_empty()
    }

    /// The bytes of a range that lies inside the file.
    pub fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.all()[range]
    }

    /// Asks the kernel to read a range ahead. Advice only: failure is ignored.
    pub fn prefetch(&self, range: Range<usize>) {
        if let Bytes::Map(map) = &self.bytes {
            let _ = map.advise_range(Advice::WillNeed, range.start, range.len());
        }
    }

    /// Gives the physical pages of a range back; the next access reads them again from the file
    /// (in practice from the kernel's page cache). Advice only: failure is ignored.
    pub fn release(&self, range: Range<usize>) {
        let Bytes::Map(map) = &self.bytes else { return };
        // SAFETY: MADV_DONTNEED on a read-only map of a file drops clean pages, which the kernel
        // fills again from the file on the next access: no byte that a reference can see changes.
        let _ = unsafe {
            map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len())
        };
    }
}

/// The map as a reader for the `zip` crate.
#[derive(Clone, Debug)]
struct MapReader(Arc<MappedFile>);

impl AsRef<[u8]> for MapReader {
    fn as_ref(&self) -> &[u8] {
        self.0.all()
    }
}

/// What the central directory says about one entry.
#[derive(Clone, Copy, Debug)]
struct Listed {
    index: usize,
    size: u64,
    crc32: u32,
}

/// A located entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where the payload lies in the file; inside it for certain.
    pub range: Range<usize>,
    /// CRC-32 of the payload as written in the archive.
    pub crc32: u32,
}

/// An open archive.
#[derive(Debug)]
pub struct Archive {
    /// The mapped file.
    pub file: Arc<MappedFile>,
    zip: ZipArchive<Cursor<MapReader>>,
    root: String,
    entries: BTreeMap<String, Listed>,
}

impl Archive {
    /// Reads the central directory; every entry must lie below the one folder that holds
    /// `data.pkl`.
    pub fn read(file: MappedFile) -> Result<Self, CheckpointError> {
        let file = Arc::new(file);
        let reader = Cursor::new(MapReader(file.clone()));
        let zip = ZipArchive::new(reader).map_err(|e| {
            CheckpointError::Archive(format!("it is not a complete zip archive ({e})"))
        })?;
        if zip.has_duplicate_names() {
            return Err(CheckpointError::Archive(
                "two entries have the same name".to_owned(),
            ));
        }
        let mut root: Option<String> = None;
        for name in zip.file_names_raw() {
            if let Some(stem) = name.strip_suffix(b"/data.pkl")
                && !stem.contains(&b'/')
            {
                let stem = String::from_utf8_lossy(stem).into_owned();
                if let Some(other) = root.replace(stem) {
                    return Err(CheckpointError::Archive(format!(
                        "two folders hold a data.pkl: {:?} and {:?}",
                        short(&other),
                        short(root.as_deref().unwrap_or_default()),
                    )));
                }
            }
        }
        let root = root.ok_or_else(|| {
            CheckpointError::Archive(
                "no entry `<name>/data.pkl`: not written by torch.save".to_owned(),
            )
        })?;
        let mut entries = BTreeMap::new();
        for index in 0..zip.len() {
            let entry = zip
                .by_index_data(index)
                .map_err(|e| CheckpointError::Archive(e.to_string()))?;
            let name = String::from_utf8_lossy(entry.name_raw());
            // Entries outside the folder are no part of the checkpoint.
            let Some(name) = name
                .strip_prefix(root.as_str())
                .and_then(|n| n.strip_prefix('/'))
            else {
                continue;
            };
            if entry.compression() != CompressionMethod::Stored
                || entry.encrypted()
                || entry.compressed_size() != entry.size()
            {
                return Err(CheckpointError::Archive(format!(
                    "entry `{}` is compressed or encrypted; torch.save only stores",
                    short(name)
                )));
            }
            entries.insert(
                name.to_owned(),
                Listed {
                    index,
                    size: entry.size(),
                    crc32: entry.crc32(),
                },
            );
        }
        Ok(Self {
            file,
            zip,
            root,
            entries,
        })
    }

    /// Name of the folder inside the archive: the file's stem when it was saved.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// Size of an entry as listed, bytes; `None` if there is no such entry.
    pub fn size(&self, name: &str) -> Option<u64> {
        self.entries.get(name).map(|e| e.size)
    }

    /// Name, size and CRC-32 of every entry, sorted by name.
    pub fn listing(&self) -> impl Iterator<Item = (&str, u64, u32)> {
        self.entries
            .iter()
            .map(|(name, e)| (name.as_str(), e.size, e.crc32))
    }

    /// Finds the payload of an entry through its local header.
    pub fn locate(&mut self, name: &str) -> Result<Entry, CheckpointError> {
        let listed = *self.entries.get(name).ok_or_else(|| {
            CheckpointError::Archive(format!("entry `{}` is missing", short(name)))
        })?;
        let broken = |why: &str| {
            CheckpointError::Archive(format!("entry `{}` is broken: {why}", short(name)))
        };
        let start = {
            let raw = self
                .zip
                .by_index_raw(listed.index)
                .map_err(|e| broken(&e.to_string()))?;
            raw.data_start().ok_or_else(|| broken("no local header"))?
        };
        let end = start
            .checked_add(listed.size)
            .filter(|&end| end <= self.file.len() as u64)
            .ok_or_else(|| broken("it ends beyond the end of the file"))?;
        Ok(Entry {
            range: start as usize..end as usize,
            crc32: listed.crc32,
        })
    }
}

/// A name from the file, cut to a length fit for an error message.
pub(super) fn short(name: &str) -> String {
    const LIMIT: usize = 120;
    if name.chars().count() <= LIMIT {
        return name.to_owned();
    }
    let mut cut: String = name.chars().take(LIMIT).collect();
    cut.push_str("...");
    cut
}
