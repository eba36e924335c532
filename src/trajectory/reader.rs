//! Reading a recording back.

use std::ops::Range;
use std::path::{Path, PathBuf};

use hdf5::types::VarLenUnicode;
use hdf5::{Dataset, File, Group, OpenMode};

use super::journal::journal_path;
use super::layout::{self, EventText};
use super::superblock;
use super::{FrameData, Header, Provenance, TrajectoryError};

/// Something that happened during a recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedEvent {
    /// Step before which it happened.
    pub step: u64,
    /// What happened.
    pub text: String,
}

/// A recording opened for reading.
#[derive(Debug)]
pub struct Trajectory {
    path: PathBuf,
    file: File,
    header: Header,
    frames: usize,
    unfinished: bool,
}

impl Trajectory {
    /// Opens a recording. One that is still being written, or whose writer was killed, shows the
    /// frames of its whole batches; see [`Trajectory::is_unfinished`].
    pub fn open(path: &Path) -> Result<Self, TrajectoryError> {
        let unfinished = superblock::is_marked_open(path)?;
        let mode = if unfinished {
            OpenMode::ReadSWMR
        } else {
            OpenMode::Read
        };
        let interrupted = unfinished || journal_path(path).exists();
        let error = |e: hdf5::Error| {
            let hint = if interrupted {
                "; its writer was stopped, `umaserve trajectory repair` makes it readable"
            } else {
                ""
            };
            TrajectoryError::file(path, format!("{e}{hint}"))
        };
        let file = layout::file_options().open_as(path, mode).map_err(error)?;
        let header = read_header(&file).map_err(|e| {
            TrajectoryError::file(path, format!("not a recording of umaserve: {e}"))
        })?;
        let elements = layout::Elements::open(&file).map_err(error)?;
        Ok(Self {
            path: path.to_owned(),
            frames: elements.whole().map_err(error)?.0,
            file,
            header,
            unfinished: interrupted,
        })
    }

    /// What does not change during the recording.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Who is named as the author.
    pub(super) fn author(&self) -> String {
        let author = self.file.group("/h5md/author");
        author
            .and_then(|group| read_text(&group, "name"))
            .unwrap_or_default()
    }

    /// Number of frames.
    pub fn len(&self) -> usize {
        self.frames
    }

    /// Whether there are no frames.
    pub fn is_empty(&self) -> bool {
        self.frames == 0
    }

    /// Whether the file is still being written, or its writer was killed (then
    /// [`repair`](super::repair()) brings the last frames back).
    pub fn is_unfinished(&self) -> bool {
        self.unfinished
    }

    /// Frames `range`, in the units of [`FrameData`]. Positions, velocities and forces have f32
    /// precision.
    pub fn frames(&self, range: Range<usize>) -> Result<Vec<FrameData>, TrajectoryError> {
        if range.end > self.frames || range.start > range.end {
            return Err(TrajectoryError::Invalid(format!(
                "frames {}..{} of {} frames",
                range.start, range.end, self.frames
            )));
        }
        self.read_frames(range)
            .map_err(|e| TrajectoryError::file(&self.path, e))
    }

    fn read_frames(&self, range: Range<usize>) -> hdf5::Result<Vec<FrameData>> {
        let atoms = self.header.species.len();
        let steps = self.column::<i64>("/particles/all/position/step", &range)?;
        let times = self.column::<f64>("/particles/all/position/time", &range)?;
        let positions = self.column::<f64>("/particles/all/position/value", &range)?;
        let velocities = self.column::<f64>("/particles/all/velocities/value", &range)?;
        let forces = self.column::<f64>("/particles/all/forces/value", &range)?;
        let cells = self.column::<f64>("/particles/all/box/edges/value", &range)?;
        let potential = self.column::<f64>("/observables/all/potential_energy/value", &range)?;
        let kinetic = self.column::<f64>("/observables/all/kinetic_energy/value", &range)?;
        let temperature = self.column::<f64>("/observables/all/temperature/value", &range)?;
        let stresses = if self.header.has_stress {
            self.column::<f64>("/observables/all/stress/value", &range)?
        } else {
            vec![f64::NAN; 9 * range.len()]
        };
        let vectors = |values: &[f64], frame: usize| -> Vec<[f64; 3]> {
            values[frame * 3 * atoms..(frame + 1) * 3 * atoms]
                .as_chunks()
                .0
                .to_vec()
        };
        let tensor = |values: &[f64], frame: usize| {
            let at = |i: usize| values[9 * frame + i];
            [
                [at(0), at(1), at(2)],
                [at(3), at(4), at(5)],
                [at(6), at(7), at(8)],
            ]
        };
        let frame = |i: usize| {
            let stress = tensor(&stresses, i);
            FrameData {
                step: steps[i] as u64,
                time_fs: times[i],
                positions: vectors(&positions, i),
                velocities: vectors(&velocities, i),
                forces: vectors(&forces, i),
                energy_ev: potential[i],
                kinetic_ev: kinetic[i],
                temperature_kelvin: temperature[i],
                stress: stress
                    .iter()
                    .flatten()
                    .all(|x| !x.is_nan())
                    .then_some(stress),
                cell: tensor(&cells, i),
            }
        };
        Ok((0..range.len()).map(frame).collect())
    }

    /// One scalar per frame: potential energy (eV), kinetic energy (eV), temperature (K), time
    /// (fs), step.
    pub(super) fn scalars(&self, name: &str) -> Result<Vec<f64>, TrajectoryError> {
        let path = match name {
            "step" | "time" => format!("/particles/all/position/{name}"),
            _ => format!("/observables/all/{name}/value"),
        };
        self.column(&path, &(0..self.frames))
            .map_err(|e| TrajectoryError::file(&self.path, e))
    }

    /// The events, in order.
    pub fn events(&self) -> Result<Vec<RecordedEvent>, TrajectoryError> {
        let read = || -> hdf5::Result<Vec<RecordedEvent>> {
            let steps = self.file.dataset("/umaserve/events/step")?;
            let texts = self.file.dataset("/umaserve/events/text")?;
            let rows = 0..layout::Elements::open(&self.file)?.whole()?.1;
            let steps = steps.read_slice_1d::<i64, _>(rows.clone())?;
            let texts = texts.read_slice_1d::<EventText, _>(rows)?;
            Ok(steps
                .iter()
                .zip(&texts)
                .map(|(&step, text)| RecordedEvent {
                    step: step as u64,
                    text: text.as_str().to_owned(),
                })
                .collect())
        };
        read().map_err(|e| TrajectoryError::file(&self.path, e))
    }

    fn column<T: hdf5::H5Type + Copy>(
        &self,
        path: &str,
        rows: &Range<usize>,
    ) -> hdf5::Result<Vec<T>> {
        let dataset: Dataset = self.file.dataset(path)?;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let rows = rows.clone();
        let array = match dataset.ndim() {
            1 => dataset.read_slice::<T, _, ndarray::IxDyn>(rows)?,
            2 => dataset.read_slice::<T, _, ndarray::IxDyn>((rows, ..))?,
            _ => dataset.read_slice::<T, _, ndarray::IxDyn>((rows, .., ..))?,
        };
        Ok(array.iter().copied().collect())
    }
}

fn read_header(file: &File) -> hdf5::Result<Header> {
    let provenance = file.group("/umaserve/provenance")?;
    let text = |name: &str| read_text(&provenance, name);
    let boundary: Vec<VarLenUnicode> = file
        .group("/particles/all/box")?
        .attr("boundary")?
        .read_raw()?;
    let mut periodic = [false; 3];
    for (flag, word) in periodic.iter_mut().zip(&boundary) {
        *flag = word.as_str() == "periodic";
    }
    let parameters = provenance.group("parameters")?;
    let parameters = parameters
        .attr_names()?
        .into_iter()
        .map(|name| read_text(&parameters, &name).map(|value| (name, value)))
        .collect::<hdf5::Result<Vec<_>>>()?;
    Ok(Header {
        species: file.dataset("/umaserve/numbers")?.read_raw()?,
        masses: file.dataset("/umaserve/masses")?.read_raw()?,
        periodic,
        has_stress: file.link_exists("/observables/all/stress"),
        timestep_fs: provenance.attr("timestep_fs")?.read_scalar()?,
        provenance: Provenance {
            version: text("version")?,
            checkpoint: text("checkpoint")?,
            checkpoint_digest: text("checkpoint_digest")?,
            task: text("task")?,
            charge: provenance.attr("charge")?.read_scalar()?,
            spin: provenance.attr("spin")?.read_scalar()?,
            method: text("method")?,
            parameters,
            seed: provenance.attr("seed")?.read_scalar()?,
            precision: text("precision")?,
            device: text("device")?,
        },
    })
}

fn read_text(group: &Group, name: &str) -> hdf5::Result<String> {
    let value: VarLenUnicode = group.attr(name)?.read_scalar()?;
    Ok(value.as_str().to_owned())
}
