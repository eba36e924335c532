//! Where everything lies in the file: H5MD 1.1, laid out so that MDAnalysis (without a topology),
//! ZnH5MD/ASE and pyh5md all read the right numbers.
//!
//! ```text
//! /h5md                      version, author, creator, modules/units
//! /particles/all             (hard link: /particles/trajectory, the name MDAnalysis looks for)
//!   box                      dimension, boundary; edges/value[F][3][3]
//!   species/value[F][N]      int8 atomic numbers
//!   position                 value[F][N][3] Angstrom, step[F], time[F] fs
//!   velocity, force          Angstrom fs-1, kJ mol-1 Angstrom-1   (for MDAnalysis)
//!   velocities, forces       sqrt(eV/Da) = Angstrom / (ASE time unit), eV Angstrom-1   (for ASE)
//! /observables/all           potential_energy, kinetic_energy, temperature, stress; value[F]
//! /umaserve                  provenance (attributes), masses[N], numbers[N], counts[2], events/{step,text}
//! ```
//!
//! What the readers force upon the layout (executed with MDAnalysis 2.11.0, znh5md 0.4.8 and
//! pyh5md 1.2.0):
//!
//! - MDAnalysis accepts forces only in a few units, eV/Angstrom not among them, and converts by
//!   the `unit` attribute. ZnH5MD ignores units: it hands `force` to ASE as eV/Angstrom and
//!   `velocity` as ASE's own velocity unit. Both are satisfied by storing both: ZnH5MD visits the
//!   elements by name, so `forces` replaces what it took from `force`; `velocities` comes before
//!   `velocity`, so `velocity` carries ZnH5MD's attribute `ASE_ENTRY_ORIGIN = "calc"`, which files
//!   it away from the atoms.
//! - `unit` and `boundary` must be variable-length strings, `step` and `time` explicit arrays,
//!   `box/edges` and `species` sampled with the positions (zeros when there is no cell), and
//!   every observable one level below its group and sampled with the positions. Whatever is not
//!   of that kind lies under `/umaserve`.
//! - Elements share `step` and `time` by hard links.

use hdf5::file::LibraryVersion;
use hdf5::types::{FixedUnicode, VarLenUnicode};
use hdf5::{Dataset, File, Group, H5Type, Location};
use ndarray::{ArrayView1, ArrayView2, ArrayView3};

use super::batch::Batch;
use super::{EVENT_TEXT_BYTES, Header};
use crate::units::{EV_IN_KJ_PER_MOL, FEMTOSECOND};

/// Text of an event in the file.
pub(super) type EventText = FixedUnicode<EVENT_TEXT_BYTES>;

/// Rows per chunk of the event list.
const EVENT_CHUNK_ROWS: usize = 16;
/// A chunk of positions should not be smaller: less compresses badly and costs an index entry.
const CHUNK_BYTES: usize = 32 << 10;
/// Frames held back for a batch, bytes.
const BATCH_BYTES: usize = 8 << 20;
/// Larger frames are split over several chunks, so that a chunk fits a reader's 1 MiB cache.
const CHUNK_ATOMS: usize = 65_536;

/// From these many atoms on, positions, velocities and forces are stored uncompressed. Shuffle and
/// deflate take 0.2 us per atom and array and save 26% of positions but 12% of velocities and
/// forces, whose digits are noise: at larger sizes that is not worth the processor time.
const UNCOMPRESSED_ATOMS: usize = 128;

/// How many frames go into one chunk of the large arrays and into one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rows {
    /// Frames per chunk of positions, velocities and forces.
    pub(super) chunk: usize,
    /// Frames written at once, a multiple of `chunk`; also the chunk of the small arrays.
    pub(super) batch: usize,
}

impl Rows {
    /// Rows for frames of `atoms` atoms: powers of two.
    pub(super) fn of(atoms: usize) -> Self {
        let frame_bytes = 12 * atoms.max(1);
        let chunk = CHUNK_BYTES
            .div_ceil(frame_bytes)
            .next_power_of_two()
            .min(512);
        let mut batch = chunk.max(64);
        while batch > chunk && batch * 3 * frame_bytes > BATCH_BYTES {
            batch /= 2;
        }
        Self { chunk, batch }
    }
}

/// The growing datasets of an open file.
#[derive(Debug)]
pub(super) struct Elements {
    pub(super) atoms: usize,
    species: Vec<i8>,
    step: Dataset,
    time: Dataset,
    position: Dataset,
    velocity: Dataset,
    force: Dataset,
    velocities: Dataset,
    forces: Dataset,
    edges: Dataset,
    species_value: Dataset,
    potential: Dataset,
    kinetic: Dataset,
    temperature: Dataset,
    stress: Option<Dataset>,
    event_step: Dataset,
    event_text: Dataset,
    /// Frames and events that are whole, written after them.
    counts: Dataset,
}

/// Bounds that make the file readable by HDF5 1.10 and later and allow single-writer mode.
pub(super) fn file_options() -> hdf5::FileBuilder {
    let mut options = File::with_options();
    options.with_fapl(|access| {
        access
            .libver_bounds(LibraryVersion::V110, LibraryVersion::V110)
            // The journal's lock tells who writes. HDF5's own would fail on file systems without
            // locks, which clusters have, and outlive its process in a child that inherits it.
            .file_locking(false)
            // Chunks are written whole and once, so caching them would only cost memory.
            .chunk_cache(1, 0, 1.0)
    });
    options
}

/// Creates everything in an empty file. No object may be added once single-writer mode is on.
pub(super) fn create(file: &File, header: &Header, author: &str) -> hdf5::Result<Elements> {
    let atoms = header.species.len();
    let rows = Rows::of(atoms);

    let h5md = file.create_group("h5md")?;
    version(&h5md, [1, 1])?;
    let group = h5md.create_group("author")?;
    text(&group, "name", author)?;
    let group = h5md.create_group("creator")?;
    text(&group, "name", "umaserve")?;
    text(&group, "version", env!("CARGO_PKG_VERSION"))?;
    version(
        &h5md.create_group("modules")?.create_group("units")?,
        [1, 0],
    )?;

    let all = file.create_group("particles")?.create_group("all")?;
    let vectors = |name: &str, unit: &str| -> hdf5::Result<Dataset> {
        let chunk = [rows.chunk, atoms.min(CHUNK_ATOMS), 3];
        let group = all.create_group(name)?;
        let builder = group.new_dataset::<f32>().chunk(chunk.to_vec());
        let builder = if atoms < UNCOMPRESSED_ATOMS {
            builder.shuffle().deflate(1)
        } else {
            builder
        };
        let value = builder.shape((0.., atoms, 3)).create("value")?;
        text(&value, "unit", unit)?;
        Ok(value)
    };
    let position = vectors("position", "Angstrom")?;
    let group = all.group("position")?;
    let step = growing::<i64>(&group, "step", 0.., &[rows.batch])?;
    let time = growing::<f64>(&group, "time", 0.., &[rows.batch])?;
    text(&time, "unit", "fs")?;
    let velocity = vectors("velocity", "Angstrom fs-1")?;
    let force = vectors("force", "kJ mol-1 Angstrom-1")?;
    let velocities = vectors("velocities", "sqrt(eV/Da)")?;
    let forces = vectors("forces", "eV Angstrom-1")?;
    let group = all.group("velocity")?;
    text(&group, "ASE_ENTRY_ORIGIN", "calc")?;
    let species_value = element::<i8>(
        &all,
        "species",
        (0.., atoms),
        &[rows.batch, atoms.min(CHUNK_ATOMS)],
        "",
    )?;

    let cell_box = all.create_group("box")?;
    cell_box
        .new_attr::<i32>()
        .create("dimension")?
        .write_scalar(&3)?;
    let boundary: Vec<VarLenUnicode> = header
        .periodic
        .iter()
        .map(|&p| string(if p { "periodic" } else { "none" }))
        .collect::<hdf5::Result<_>>()?;
    cell_box
        .new_attr_builder()
        .with_data(&boundary)
        .create("boundary")?;
    let edges = element::<f64>(
        &cell_box,
        "edges",
        (0.., 3, 3),
        &[rows.batch, 3, 3],
        "Angstrom",
    )?;

    let observables = file.create_group("observables")?.create_group("all")?;
    let scalar =
        |name: &str, unit: &str| element::<f64>(&observables, name, 0.., &[rows.batch], unit);
    let potential = scalar("potential_energy", "eV")?;
    let kinetic = scalar("kinetic_energy", "eV")?;
    let temperature = scalar("temperature", "K")?;
    let stress = if header.has_stress {
        let chunk = [rows.batch, 3, 3];
        let unit = "eV Angstrom-3";
        Some(element::<f64>(
            &observables,
            "stress",
            (0.., 3, 3),
            &chunk,
            unit,
        )?)
    } else {
        None
    };

    for group in all.groups()?.iter().chain(&observables.groups()?) {
        for (name, target) in [
            ("step", "/particles/all/position/step"),
            ("time", "/particles/all/position/time"),
        ] {
            let group = if group.name().ends_with("/box") {
                &cell_box.group("edges")?
            } else {
                group
            };
            if !group.link_exists(name) {
                group.link_hard(target, name)?;
            }
        }
    }
    file.group("particles")?
        .link_hard("/particles/all", "trajectory")?;

    let (event_step, event_text, counts) = own_group(file, header)?;
    Ok(Elements {
        atoms,
        species: header.species.iter().map(|&z| z as i8).collect(),
        step,
        time,
        position,
        velocity,
        force,
        velocities,
        forces,
        edges,
        species_value,
        potential,
        kinetic,
        temperature,
        stress,
        event_step,
        event_text,
        counts,
    })
}

/// `/umaserve`: what H5MD has no place for.
fn own_group(file: &File, header: &Header) -> hdf5::Result<(Dataset, Dataset, Dataset)> {
    let own = file.create_group("umaserve")?;
    let atoms = header.species.len();
    let masses = own.new_dataset::<f64>().shape(atoms).create("masses")?;
    masses.write_raw(&header.masses[..])?;
    text(&masses, "unit", "Da")?;
    own.new_dataset::<u8>()
        .shape(atoms)
        .create("numbers")?
        .write_raw(&header.species[..])?;

    let counts = own.new_dataset::<u64>().shape(2).create("counts")?;
    counts.write_raw(&[0_u64; 2])?;

    let p = &header.provenance;
    let group = own.create_group("provenance")?;
    for (name, value) in [
        ("version", &p.version),
        ("checkpoint", &p.checkpoint),
        ("checkpoint_digest", &p.checkpoint_digest),
        ("task", &p.task),
        ("method", &p.method),
        ("precision", &p.precision),
        ("device", &p.device),
    ] {
        text(&group, name, value)?;
    }
    number(&group, "charge", p.charge)?;
    number(&group, "spin", p.spin)?;
    number(&group, "seed", p.seed)?;
    number(&group, "timestep_fs", header.timestep_fs)?;
    let parameters = group.create_group("parameters")?;
    for (name, value) in &p.parameters {
        // A name given twice is a caller's slip, not a reason to lose the recording.
        if parameters.attr(name).is_err() {
            text(&parameters, name, value)?;
        }
    }

    let events = own.create_group("events")?;
    let step = growing::<i64>(&events, "step", 0.., &[EVENT_CHUNK_ROWS])?;
    let texts = growing::<EventText>(&events, "text", 0.., &[EVENT_CHUNK_ROWS])?;
    Ok((step, texts, counts))
}

impl Elements {
    /// Opens the datasets of an existing file.
    pub(super) fn open(file: &File) -> hdf5::Result<Self> {
        let data = |name: &str| file.dataset(name);
        let stress = "/observables/all/stress/value";
        let numbers: Vec<u8> = data("/umaserve/numbers")?.read_raw()?;
        Ok(Self {
            atoms: numbers.len(),
            species: numbers.iter().map(|&z| z as i8).collect(),
            step: data("/particles/all/position/step")?,
            time: data("/particles/all/position/time")?,
            position: data("/particles/all/position/value")?,
            velocity: data("/particles/all/velocity/value")?,
            force: data("/particles/all/force/value")?,
            velocities: data("/particles/all/velocities/value")?,
            forces: data("/particles/all/forces/value")?,
            edges: data("/particles/all/box/edges/value")?,
            species_value: data("/particles/all/species/value")?,
            potential: data("/observables/all/potential_energy/value")?,
            kinetic: data("/observables/all/kinetic_energy/value")?,
            temperature: data("/observables/all/temperature/value")?,
            stress: if file.link_exists("/observables/all/stress") {
                Some(data(stress)?)
            } else {
                None
            },
            event_step: data("/umaserve/events/step")?,
            event_text: data("/umaserve/events/text")?,
            counts: data("/umaserve/counts")?,
        })
    }

    fn per_frame(&self) -> impl Iterator<Item = &Dataset> {
        [
            &self.step,
            &self.time,
            &self.position,
            &self.velocity,
            &self.force,
            &self.velocities,
            &self.forces,
            &self.edges,
            &self.species_value,
            &self.potential,
            &self.kinetic,
            &self.temperature,
        ]
        .into_iter()
        .chain(&self.stress)
    }

    /// Frames and events that are whole: counted, and present in every element.
    pub(super) fn whole(&self) -> hdf5::Result<(usize, usize)> {
        let counts: Vec<u64> = self.counts.read_raw()?;
        let limit = |i: usize| counts.get(i).map_or(0, |&n| n as usize);
        let frames = self.per_frame().map(length).min().unwrap_or(0);
        let events = length(&self.event_step).min(length(&self.event_text));
        Ok((frames.min(limit(0)), events.min(limit(1))))
    }

    /// Declares the first `frames` frames and `events` events whole. Their data must have been
    /// flushed before.
    pub(super) fn count(&self, frames: usize, events: usize) -> hdf5::Result<()> {
        self.counts.write_raw(&[frames as u64, events as u64])
    }

    /// Frames of the longest element: more than are whole after a kill within a batch.
    pub(super) fn longest(&self) -> usize {
        self.per_frame().map(length).max().unwrap_or(0)
    }

    /// Whether frame `frame` of every element can be read (its chunks are whole).
    pub(super) fn is_readable(&self, frame: usize) -> bool {
        self.per_frame().all(|dataset| {
            let row = frame..frame + 1;
            match dataset.ndim() {
                1 => dataset.read_slice::<f64, _, ndarray::Ix1>(row).is_ok(),
                2 => dataset
                    .read_slice::<f64, _, ndarray::Ix2>((row, ..))
                    .is_ok(),
                _ => dataset
                    .read_slice::<f64, _, ndarray::Ix3>((row, .., ..))
                    .is_ok(),
            }
        })
    }

    /// Makes all elements `frames` long and the events `events`.
    pub(super) fn resize(&self, frames: usize, events: usize) -> hdf5::Result<()> {
        for dataset in self.per_frame() {
            resize(dataset, frames)?;
        }
        resize(&self.event_step, events)?;
        resize(&self.event_text, events)
    }

    /// Writes the rows of `batch` as frames `first..`. Writing the same again is harmless, so a
    /// failed attempt (full disk) is simply repeated.
    pub(super) fn write(&self, first: usize, batch: &Batch) -> hdf5::Result<()> {
        let rows = first..first + batch.rows();
        for dataset in self.per_frame() {
            resize(dataset, rows.end)?;
        }
        let scalars = |dataset: &Dataset, values: &[f64]| {
            dataset.write_slice(ArrayView1::from(values), rows.clone())
        };
        let tensors = |dataset: &Dataset, values: &[f64]| {
            let view = ArrayView3::from_shape((batch.rows(), 3, 3), values).map_err(shape_error)?;
            dataset.write_slice(view, (rows.clone(), .., ..))
        };
        let vectors = |dataset: &Dataset, values: &[f32]| {
            let shape = (batch.rows(), self.atoms, 3);
            let view = ArrayView3::from_shape(shape, values).map_err(shape_error)?;
            dataset.write_slice(view, (rows.clone(), .., ..))
        };
        let scaled = |values: &[f32], factor: f64| -> Vec<f32> {
            values
                .iter()
                .map(|&x| (f64::from(x) * factor) as f32)
                .collect()
        };
        vectors(&self.position, &batch.positions)?;
        vectors(&self.velocities, &batch.velocities)?;
        vectors(&self.velocity, &scaled(&batch.velocities, FEMTOSECOND))?;
        vectors(&self.forces, &batch.forces)?;
        vectors(&self.force, &scaled(&batch.forces, EV_IN_KJ_PER_MOL))?;
        let species = self.species.repeat(batch.rows());
        let view = ArrayView2::from_shape((batch.rows(), self.atoms), &species);
        self.species_value
            .write_slice(view.map_err(shape_error)?, (rows.clone(), ..))?;
        tensors(&self.edges, &batch.cells)?;
        if let Some(stress) = &self.stress {
            tensors(stress, &batch.stresses)?;
        }
        scalars(&self.potential, &batch.potential_ev)?;
        scalars(&self.kinetic, &batch.kinetic_ev)?;
        scalars(&self.temperature, &batch.temperature_kelvin)?;
        scalars(&self.time, &batch.times_fs)?;
        self.step
            .write_slice(ArrayView1::from(&batch.steps), rows.clone())
    }

    /// Reads frames `rows` back, as they were given.
    pub(super) fn read(&self, rows: std::ops::Range<usize>) -> hdf5::Result<Batch> {
        let mut batch = Batch::new(self.atoms);
        if rows.is_empty() {
            return Ok(batch);
        }
        let scalars = |dataset: &Dataset| -> hdf5::Result<Vec<f64>> {
            Ok(dataset.read_slice_1d::<f64, _>(rows.clone())?.to_vec())
        };
        let tensors = |dataset: &Dataset| -> hdf5::Result<Vec<f64>> {
            let rows = (rows.clone(), .., ..);
            let array = dataset.read_slice::<f64, _, ndarray::Ix3>(rows)?;
            Ok(array.iter().copied().collect())
        };
        let vectors = |dataset: &Dataset| -> hdf5::Result<Vec<f32>> {
            let rows = (rows.clone(), .., ..);
            let array = dataset.read_slice::<f32, _, ndarray::Ix3>(rows)?;
            Ok(array.iter().copied().collect())
        };
        let steps = self.step.read_slice_1d::<i64, _>(rows.clone())?;
        batch.steps = steps.to_vec();
        batch.times_fs = scalars(&self.time)?;
        batch.positions = vectors(&self.position)?;
        batch.velocities = vectors(&self.velocities)?;
        batch.forces = vectors(&self.forces)?;
        batch.potential_ev = scalars(&self.potential)?;
        batch.kinetic_ev = scalars(&self.kinetic)?;
        batch.temperature_kelvin = scalars(&self.temperature)?;
        batch.cells = tensors(&self.edges)?;
        batch.stresses = match &self.stress {
            Some(stress) => tensors(stress)?,
            None => vec![f64::NAN; 9 * rows.len()],
        };
        Ok(batch)
    }

    /// Step numbers of the frames `rows`.
    pub(super) fn steps(&self, rows: std::ops::Range<usize>) -> hdf5::Result<Vec<i64>> {
        match rows.is_empty() {
            true => Ok(Vec::new()),
            false => Ok(self.step.read_slice_1d::<i64, _>(rows)?.to_vec()),
        }
    }

    /// Atomic numbers.
    pub(super) fn species(&self) -> &[i8] {
        &self.species
    }

    /// Writes events from number `first` on.
    pub(super) fn write_events(&self, first: usize, events: &[(i64, String)]) -> hdf5::Result<()> {
        if events.is_empty() {
            return Ok(());
        }
        let rows = first..first + events.len();
        resize(&self.event_step, rows.end)?;
        resize(&self.event_text, rows.end)?;
        let steps: Vec<i64> = events.iter().map(|(step, _)| *step).collect();
        let texts = events
            .iter()
            .map(|(_, text)| event_text(text))
            .collect::<Vec<EventText>>();
        self.event_text
            .write_slice(ArrayView1::from(&texts), rows.clone())?;
        self.event_step.write_slice(ArrayView1::from(&steps), rows)
    }
}

/// The text as it is kept: without NUL, at most [`EVENT_TEXT_BYTES`] bytes, cut at a character.
pub(super) fn event_text(text: &str) -> EventText {
    let mut kept = EventText::new();
    let clean = text.replace('\0', " ");
    let mut end = clean.len().min(EVENT_TEXT_BYTES);
    while !clean.is_char_boundary(end) {
        end -= 1;
    }
    if let Ok(fitting) = clean[..end].parse() {
        kept = fitting;
    }
    kept
}

fn element<T: H5Type>(
    parent: &Group,
    name: &str,
    shape: impl Into<hdf5::Extents>,
    chunk: &[usize],
    unit: &str,
) -> hdf5::Result<Dataset> {
    let value = growing::<T>(&parent.create_group(name)?, "value", shape, chunk)?;
    if !unit.is_empty() {
        text(&value, "unit", unit)?;
    }
    Ok(value)
}

fn growing<T: H5Type>(
    group: &Group,
    name: &str,
    shape: impl Into<hdf5::Extents>,
    chunk: &[usize],
) -> hdf5::Result<Dataset> {
    group
        .new_dataset::<T>()
        .chunk(chunk.to_vec())
        .shuffle()
        .deflate(1)
        .shape(shape)
        .create(name)
}

fn resize(dataset: &Dataset, rows: usize) -> hdf5::Result<()> {
    let mut shape = dataset.shape();
    if shape[0] == rows {
        return Ok(());
    }
    shape[0] = rows;
    dataset.resize(shape)
}

fn length(dataset: &Dataset) -> usize {
    dataset.shape().first().copied().unwrap_or(0)
}

fn version(group: &Group, version: [i32; 2]) -> hdf5::Result<()> {
    group
        .new_attr_builder()
        .with_data(&version)
        .create("version")?;
    Ok(())
}

fn number<T: H5Type>(group: &Group, name: &str, value: T) -> hdf5::Result<()> {
    group.new_attr::<T>().create(name)?.write_scalar(&value)
}

fn text(place: &Location, name: &str, value: &str) -> hdf5::Result<()> {
    place
        .new_attr::<VarLenUnicode>()
        .create(name)?
        .write_scalar(&string(value)?)
}

fn string(value: &str) -> hdf5::Result<VarLenUnicode> {
    value
        .replace('\0', " ")
        .parse()
        .map_err(|error| hdf5::Error::Internal(format!("{error:?}")))
}

fn shape_error(error: ndarray::ShapeError) -> hdf5::Error {
    hdf5::Error::Internal(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_hold_at_least_32_kib_and_divide_the_batch() {
        for atoms in [1, 3, 24, 81, 192, 1000, 10_000, 200_000] {
            let rows = Rows::of(atoms);
            assert_eq!(rows.batch % rows.chunk, 0, "{atoms} atoms");
            let bytes = rows.chunk * 12 * atoms;
            assert!(
                bytes >= CHUNK_BYTES || rows.chunk == 512,
                "{atoms}: {bytes}"
            );
            let chunk_bytes = rows.chunk * 12 * atoms.min(CHUNK_ATOMS);
            assert!(chunk_bytes <= 1 << 20, "{atoms}: {chunk_bytes}");
        }
        assert_eq!(
            Rows::of(24),
            Rows {
                chunk: 128,
                batch: 128
            }
        );
        assert_eq!(
            Rows::of(1000),
            Rows {
                chunk: 4,
                batch: 64
            }
        );
    }

    #[test]
    fn long_event_texts_are_cut_at_a_character() {
        let text = "é".repeat(EVENT_TEXT_BYTES);
        assert_eq!(event_text(&text).as_str().len(), EVENT_TEXT_BYTES);
        let odd = format!("x{text}");
        assert_eq!(event_text(&odd).as_str().len(), EVENT_TEXT_BYTES - 1);
        assert_eq!(event_text("a\0b").as_str(), "a b");
    }
}
