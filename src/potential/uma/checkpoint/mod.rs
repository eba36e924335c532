//! Reader of official UMA and eSEN inference checkpoints (`.pt`).
//!
//! A checkpoint is what `torch.save` writes for fairchem's `MLIPInferenceCheckpoint`: a zip archive
//! with a pickle program `data.pkl` and one stored entry per tensor storage. [`Checkpoint::open`]
//! maps the file, runs the program in a machine that executes nothing ([`pickle`]), reads the
//! configuration ([`omegaconf`]) and hands out the exponential moving average of the weights, which
//! is what inference uses, as views into the map ([`tensor`]). The plain weights, half of the file,
//! are never touched. Names and shapes of all tensors must be exactly those that the configuration
//! implies, and the CRC-32 of everything that is read must be right.

pub mod archive;
pub mod omegaconf;
pub mod pickle;
pub mod tensor;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use self::archive::{Archive, Entry, MappedFile, short};
use self::omegaconf::{Config, ConfigError};
use self::pickle::{Pickle, PickleError, Value};
use self::tensor::{DType, TensorView};
use super::config::{MemoryEstimate, UmaConfig, Unsupported, expected_tensors, is_rotation_table};

/// Why a checkpoint cannot be used. The path is that of the caller; add it to the message.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The operating system refused.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The zip archive is broken, cut off, or not one that torch wrote.
    #[error("not a readable checkpoint archive: {0}")]
    Archive(String),
    /// Bytes differ from what was written.
    #[error("the file is damaged: {what} has CRC-32 {found:08x} instead of {expected:08x}")]
    Damaged {
        /// Which tensor or entry.
        what: String,
        /// CRC-32 in the archive.
        expected: u32,
        /// CRC-32 of the bytes.
        found: u32,
    },
    /// The pickle program is refused.
    #[error(transparent)]
    Pickle(#[from] PickleError),
    /// The program is valid but does not describe an inference checkpoint.
    #[error("not an inference checkpoint: {0}")]
    Layout(String),
    /// A value of the configuration is missing or not what it should be.
    #[error("in the configuration, {0}")]
    Config(#[from] ConfigError),
    /// A model that this program does not evaluate.
    #[error("unsupported model: {0}")]
    Unsupported(Unsupported),
    /// The tensors are not those that the configuration implies.
    #[error("the tensors do not fit the configuration: {0}")]
    Tensors(String),
}

/// What the demo model is called where a file would be named.
pub const DEMO_NAME: &str = "the built-in demo model";

/// The file that `tools/demo_model/train.py` has written.
static DEMO: &[u8] = include_bytes!("../../../../models/demo.pt");

/// An open checkpoint.
#[derive(Clone)]
pub struct Checkpoint {
    /// The file it was read from, or [`DEMO_NAME`].
    pub path: PathBuf,
    /// Size of the file, bytes.
    pub file_bytes: usize,
    /// Identifies the content: BLAKE3 over the sorted (name, size, CRC-32) of all entries and over
    /// `data.pkl`. The same for the same content on every machine.
    pub digest: blake3::Hash,
    /// What the network is.
    pub config: UmaConfig,
    /// EMA weights by name, without `module.`.
    pub tensors: BTreeMap<String, TensorView>,
    file: Arc<MappedFile>,
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint")
            .field("path", &self.path)
            .field("name", &self.config.name)
            .field("digest", &self.digest)
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}

impl Checkpoint {
    /// Opens and checks a checkpoint. Reads the EMA weights once, in parallel, to verify them.
    ///
    /// The file must not be changed in place while the checkpoint or any of its tensors lives
    /// (see [`MappedFile::open`]).
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        Self::read(path.as_ref(), MappedFile::open(path.as_ref())?)
    }

    /// Opens the demo model, which is part of the program: a small UMA trained on GFN2-xTB
    /// (`tools/demo_model`). It has the path [`DEMO_NAME`].
    pub fn demo() -> Result<Self, CheckpointError> {
        Self::read(Path::new(DEMO_NAME), MappedFile::embedded(DEMO))
    }

    fn read(path: &Path, file: MappedFile) -> Result<Self, CheckpointError> {
        let mut archive = Archive::read(file)?;
        if let Some(size) = archive.size("byteorder") {
            let entry = archive.locate("byteorder")?;
            if size > 16 || archive.file.bytes(entry.range) != b"little" {
                return Err(CheckpointError::Archive(
                    "the numbers are not little-endian".to_owned(),
                ));
            }
        }
        let file = archive.file.clone();
        let program = archive.locate("data.pkl")?;
        if program.range.len() > pickle::MAX_PROGRAM_BYTES {
            return Err(CheckpointError::Archive(format!(
                "data.pkl has {} bytes, more than the limit of {}",
                program.range.len(),
                pickle::MAX_PROGRAM_BYTES
            )));
        }
        let program_bytes = file.bytes(program.range.clone());
        verify(&program, program_bytes, "data.pkl")?;
        let digest = digest(&archive, program_bytes);

        let pickle = Pickle::load(program_bytes)?;
        let root = Root::new(&pickle)?;
        let config = UmaConfig::read(
            &Config::new(&pickle, root.model_config, "model_config")?,
            &Config::new(&pickle, root.tasks_config, "tasks_config")?,
        )?;
        if !config.ignored.is_empty() {
            tracing::warn!(
                "options of the checkpoint that this program does not know are ignored: {}",
                config.ignored.join(", ")
            );
        }
        let described = describe_tensors(&pickle, root.ema_state_dict)?;
        check_names(&described, &config)?;
        let (tensors, storages) = locate_tensors(described, &mut archive)?;

        let total: usize = storages.iter().map(|(entry, _)| entry.range.len()).sum();
        if total > file.len() {
            return Err(CheckpointError::Archive(
                "the entries overlap: together they are larger than the file".to_owned(),
            ));
        }
        for (entry, _) in &storages {
            file.prefetch(entry.range.clone());
        }
        storages
            .par_iter()
            .try_for_each(|(entry, name)| verify(entry, file.bytes(entry.range.clone()), name))?;

        Ok(Checkpoint {
            path: path.to_owned(),
            file_bytes: file.len(),
            digest,
            config,
            tensors,
            file,
        })
    }

    /// A tensor that the configuration implies.
    pub fn tensor(&self, name: &str) -> Result<&TensorView, CheckpointError> {
        self.tensors
            .get(name)
            .ok_or_else(|| CheckpointError::Tensors(format!("`{name}` is missing")))
    }

    /// What the weights cost.
    pub fn memory(&self) -> MemoryEstimate {
        MemoryEstimate {
            stored_bytes: self
                .tensors
                .values()
                .map(|t| t.len() * t.dtype().size())
                .sum(),
            merged_bytes: 4 * self.config.parameters_active(),
        }
    }

    /// Gives back the physical memory of the whole map; tensors stay usable and are read again
    /// from the file when touched.
    pub fn release(&self) {
        self.file.release(0..self.file.len());
    }
}

/// The attributes of the pickled `MLIPInferenceCheckpoint` that matter.
struct Root {
    model_config: Value,
    tasks_config: Value,
    ema_state_dict: Value,
}

impl Root {
    fn new(pickle: &Pickle<'_>) -> Result<Self, CheckpointError> {
        let state = match pickle.object(pickle.root) {
            Some(((_, "MLIPInferenceCheckpoint"), _, state)) => state,
            _ => {
                return Err(CheckpointError::Layout(format!(
                    "it holds {} instead of fairchem's MLIPInferenceCheckpoint",
                    pickle.describe(pickle.root)
                )));
            }
        };
        let attributes = pickle
            .dict(state)
            .ok_or_else(|| CheckpointError::Layout("it has no attributes".to_owned()))?;
        let attribute = |name: &str| {
            attributes
                .iter()
                .rev()
                .find(|(key, _)| pickle.text(*key) == Some(name))
                .map(|&(_, value)| value)
                .ok_or_else(|| CheckpointError::Layout(format!("attribute `{name}` is missing")))
        };
        Ok(Self {
            model_config: attribute("model_config")?,
            tasks_config: attribute("tasks_config")?,
            ema_state_dict: attribute("ema_state_dict")?,
        })
    }
}

/// A tensor as the pickle program describes it: nothing of the archive looked at yet.
struct Described {
    key: String,
    dtype: DType,
    numbers: usize,
    shape: Box<[usize]>,
    strides: Box<[usize]>,
    offset: usize,
}

/// Buffers that some versions of the reference implementation saved and none needs.
fn is_legacy_buffer(name: &str) -> bool {
    matches!(
        name.rsplit('.').next(),
        Some("expand_index" | "offset" | "balance_degree_weight")
    )
}

fn describe_tensors(
    pickle: &Pickle<'_>,
    state_dict: Value,
) -> Result<BTreeMap<String, Described>, CheckpointError> {
    let pairs = pickle.dict(state_dict).ok_or_else(|| {
        CheckpointError::Layout(format!(
            "ema_state_dict is {} instead of a dict",
            pickle.describe(state_dict)
        ))
    })?;
    let mut tensors = BTreeMap::new();
    for &(key, value) in pairs {
        let Some(full) = pickle.text(key).filter(|name| name.len() <= 512) else {
            return Err(CheckpointError::Layout(
                "a name of ema_state_dict is not a short string".to_owned(),
            ));
        };
        let mut name = full;
        while let Some(inner) = name.strip_prefix("module.") {
            name = inner;
        }
        if name == "n_averaged" || is_legacy_buffer(name) {
            continue;
        }
        let described = describe_tensor(pickle, value)
            .map_err(|why| CheckpointError::Tensors(format!("`{}`: {why}", short(name))))?;
        if tensors.insert(name.to_owned(), described).is_some() {
            return Err(CheckpointError::Tensors(format!(
                "`{}` is there twice",
                short(name)
            )));
        }
    }
    Ok(tensors)
}

fn describe_tensor(pickle: &Pickle<'_>, mut value: Value) -> Result<Described, String> {
    /// Dimensions of a tensor; those of these models have at most three.
    const MAX_DIMENSIONS: usize = 8;
    let mut args = None;
    // `_rebuild_parameter(tensor, ...)` wraps `_rebuild_tensor_v2(...)`.
    for _ in 0..4 {
        match pickle.object(value) {
            Some((("torch._utils", "_rebuild_tensor_v2"), inner, _)) => {
                args = pickle.tuple(inner);
                break;
            }
            Some((("torch._utils", "_rebuild_parameter"), inner, _)) => {
                value = *pickle
                    .tuple(inner)
                    .and_then(|args| args.first())
                    .ok_or("a parameter without a tensor")?;
            }
            _ => break,
        }
    }
    let Some(&[storage, offset, shape, strides, ..]) = args else {
        return Err(format!("{} is not a tensor", pickle.describe(value)));
    };
    let Some(&[kind, class, key, _location, numbers, ..]) = pickle.persistent(storage) else {
        return Err("its storage has no name".to_owned());
    };
    if pickle.text(kind) != Some("storage") {
        return Err("its storage is of an unknown kind".to_owned());
    }
    let dtype = pickle
        .global(class)
        .filter(|(module, _)| *module == "torch")
        .and_then(|(_, name)| DType::from_storage_class(name))
        .ok_or_else(|| format!("number format {} is unknown", pickle.describe(class)))?;
    let key = pickle
        .text(key)
        .filter(|key| !key.is_empty() && key.len() <= 64)
        .ok_or("its storage has no name")?;
    let count = |value: Value, what: &str| match value {
        Value::Int(n) => usize::try_from(n).map_err(|_| format!("negative {what}")),
        _ => Err(format!("{what} is {}", pickle.describe(value))),
    };
    let counts = |value: Value, what: &str| -> Result<Box<[usize]>, String> {
        let items = pickle
            .sequence(value)
            .ok_or_else(|| format!("{what} is {}", pickle.describe(value)))?;
        if items.len() > MAX_DIMENSIONS {
            return Err(format!("more than {MAX_DIMENSIONS} dimensions"));
        }
        items.iter().map(|&item| count(item, what)).collect()
    };
    Ok(Described {
        key: key.to_owned(),
        dtype,
        numbers: count(numbers, "storage size")?,
        shape: counts(shape, "shape")?,
        strides: counts(strides, "stride")?,
        offset: count(offset, "offset")?,
    })
}

/// Exactly the tensors that the configuration implies; the rotation tables may be absent, they are
/// computed anyway.
fn check_names(
    described: &BTreeMap<String, Described>,
    config: &UmaConfig,
) -> Result<(), CheckpointError> {
    let expected = expected_tensors(config);
    let mut problems = Vec::new();
    for (name, shape) in &expected {
        match described.get(name) {
            None if is_rotation_table(name) => {}
            None => problems.push(format!("`{name}` {shape:?} is missing")),
            Some(found) if *found.shape != **shape => problems.push(format!(
                "`{name}` has shape {:?} instead of {shape:?}",
                found.shape
            )),
            Some(_) => {}
        }
    }
    for name in described.keys() {
        if !expected.contains_key(name) {
            problems.push(format!("`{}` is unexpected", short(name)));
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    let total = problems.len();
    const SHOWN: usize = 8;
    problems.truncate(SHOWN);
    let mut message = problems.join("; ");
    if total > SHOWN {
        message.push_str(&format!("; and {} more", total - SHOWN));
    }
    Err(CheckpointError::Tensors(message))
}

/// Views, and the distinct storages below them with the name of a tensor that uses each.
type Located = (BTreeMap<String, TensorView>, Vec<(Entry, String)>);

fn locate_tensors(
    described: BTreeMap<String, Described>,
    archive: &mut Archive,
) -> Result<Located, CheckpointError> {
    let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
    let mut seen: BTreeSet<(usize, usize)> = BTreeSet::new();
    let mut storages = Vec::new();
    let mut tensors = BTreeMap::new();
    for (name, d) in described {
        let refuse = |why: String| CheckpointError::Tensors(format!("`{name}`: {why}"));
        let entry = match entries.get(&d.key) {
            Some(entry) => entry.clone(),
            None => {
                let entry = archive.locate(&format!("data/{}", d.key))?;
                let Range { start, end } = entry.range;
                if seen.insert((start, end)) {
                    storages.push((entry.clone(), format!("tensor `{name}`")));
                }
                entries.insert(d.key.clone(), entry.clone());
                entry
            }
        };
        if d.numbers.checked_mul(d.dtype.size()) != Some(entry.range.len()) {
            return Err(refuse(format!(
                "its storage should hold {} numbers of {} bytes but has {} bytes",
                d.numbers,
                d.dtype.size(),
                entry.range.len()
            )));
        }
        let view = TensorView::new(
            archive.file.clone(),
            entry.range,
            d.dtype,
            d.shape,
            d.strides,
            d.offset,
        )
        .map_err(refuse)?;
        tensors.insert(name, view);
    }
    Ok((tensors, storages))
}

fn verify(entry: &Entry, bytes: &[u8], what: &str) -> Result<(), CheckpointError> {
    let found = crc32fast::hash(bytes);
    if found == entry.crc32 {
        return Ok(());
    }
    Err(CheckpointError::Damaged {
        what: what.to_owned(),
        expected: entry.crc32,
        found,
    })
}

fn digest(archive: &Archive, program: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for (name, size, crc32) in archive.listing() {
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(&size.to_le_bytes());
        hasher.update(&crc32.to_le_bytes());
    }
    hasher.update(program);
    hasher.finalize()
}
