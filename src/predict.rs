//! Energies, forces and stresses of the structures of a file: `umaserve predict`.

use crate::potential::{EvaluationError, Potential, evaluate};
use crate::structure_file::{Extra, Frame, StructureFileError, read_frames, write_frame};
use crate::system::System;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

/// How the structures of a file are evaluated.
#[derive(Clone, Debug)]
pub struct PredictOptions {
    /// Task of frames that do not say `task=`.
    pub default_task: Option<String>,
    /// Largest system, atoms.
    pub max_atoms: usize,
    /// Largest system, directed edges.
    pub max_edges: usize,
    /// Frames are evaluated together until they have about so many edges.
    pub batch_edges: usize,
}

impl Default for PredictOptions {
    fn default() -> Self {
        PredictOptions {
            default_task: None,
            max_atoms: 100_000,
            max_edges: 20_000_000,
            batch_edges: 20_000,
        }
    }
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Frames evaluated.
    pub frames: usize,
    /// Atoms in all frames.
    pub atoms: usize,
    /// Passes of the potential.
    pub batches: usize,
}

/// Why there is no prediction.
#[derive(Debug, thiserror::Error)]
pub enum PredictError {
    /// A frame could not be read.
    #[error(transparent)]
    Read(#[from] StructureFileError),
    /// A frame could not be evaluated.
    #[error("{file}, frame {frame} ({formula}): {cause}")]
    Evaluation {
        /// Name of the input.
        file: String,
        /// Frame, from 0 as in `ase.io.read(index=...)`.
        frame: usize,
        /// Atoms of the frame.
        formula: String,
        /// Why.
        cause: Box<EvaluationError>,
    },
    /// The input could not be opened.
    #[error("cannot open {file}: {cause}")]
    Open {
        /// Name of the input.
        file: String,
        /// Why.
        cause: io::Error,
    },
    /// The output could not be written.
    #[error("cannot write {file}: {cause}")]
    Write {
        /// Name of the output.
        file: String,
        /// Why.
        cause: io::Error,
    },
}

/// Results of other calculations that ASE would take for this one's.
const STALE_INFO: [&str; 7] = [
    "free_energy",
    "dipole",
    "magmom",
    "polarization",
    "dielectric_tensor",
    "virial",
    "energy_uncertainty",
];
const STALE_ARRAYS: [&str; 6] = [
    "energies",
    "forces",
    "stresses",
    "charges",
    "magmoms",
    "born_effective_charges",
];

/// Most frames of a batch, however small they are.
const MAX_BATCH_FRAMES: usize = 1024;

/// Reads frames, evaluates them in batches and writes them, in order, with `energy`, `forces` and
/// (periodic systems) `stress`. Other keys and columns of the input are kept; results in the input
/// are replaced.
///
/// A frame's `task=`, `charge=` and `spin=` win; otherwise the task is the default one, the charge
/// 0, the spin 1 for `omol` and 0 ("not given") for every other task, as in fairchem.
///
/// # Errors
/// The first frame that cannot be read or evaluated, by file and number, and errors of the output,
/// which then holds the frames before it (see [`predict_file`]).
pub fn predict(
    potential: &dyn Potential,
    input: impl BufRead,
    input_name: &str,
    output: &mut impl Write,
    output_name: &str,
    options: &PredictOptions,
) -> Result<Summary, PredictError> {
    let mut summary = Summary::default();
    let mut batch: Vec<Frame> = Vec::new();
    let mut edges = 0;
    let mut run = |batch: &mut Vec<Frame>| -> Result<(), PredictError> {
        let systems: Vec<&System> = batch.iter().map(|f| &f.system).collect();
        let answers = evaluate(potential, &systems, options.max_edges);
        for (frame, answer) in batch.iter().zip(answers) {
            let evaluation = answer.map_err(|cause| PredictError::Evaluation {
                file: input_name.to_owned(),
                frame: summary.frames,
                formula: formula(&frame.system),
                cause: Box::new(cause),
            })?;
            let extra = Extra {
                info: &frame.info,
                arrays: &frame.arrays,
            };
            write_frame(output, &frame.system, Some(&evaluation), extra).map_err(|cause| {
                PredictError::Write {
                    file: output_name.to_owned(),
                    cause,
                }
            })?;
            summary.frames += 1;
            summary.atoms += frame.system.len();
        }
        summary.batches += usize::from(!batch.is_empty());
        batch.clear();
        Ok(())
    };
    let mut failure = None;
    for frame in read_frames(input, input_name, options.max_atoms) {
        let mut frame = match frame {
            Ok(frame) => frame,
            Err(error) => {
                failure = Some(error);
                break;
            }
        };
        condition(&mut frame, options);
        let more = expected_edges(&frame.system, potential);
        if !batch.is_empty()
            && (edges + more > options.batch_edges || batch.len() == MAX_BATCH_FRAMES)
        {
            run(&mut batch)?;
            edges = 0;
        }
        edges += more;
        batch.push(frame);
    }
    // An earlier frame that cannot be evaluated is reported before a later one that cannot be read.
    run(&mut batch)?;
    match failure {
        Some(error) => Err(error.into()),
        None => Ok(summary),
    }
}

/// [`predict`] from file to file. The output appears when it is complete: it is written to a
/// temporary file beside it, renamed at the end, and removed after an error.
///
/// # Errors
/// As [`predict`], and files that cannot be opened or written.
pub fn predict_file(
    potential: &dyn Potential,
    input: &Path,
    output: &Path,
    options: &PredictOptions,
) -> Result<Summary, PredictError> {
    let (input_name, output_name) = (input.display().to_string(), output.display().to_string());
    let reader = File::open(input).map_err(|cause| PredictError::Open {
        file: input_name.clone(),
        cause,
    })?;
    let write_error = |cause| PredictError::Write {
        file: output_name.clone(),
        cause,
    };
    let partial = PartialFile::beside(output).map_err(write_error)?;
    let mut writer = BufWriter::new(&partial.file);
    let reader = BufReader::with_capacity(1 << 18, reader);
    let summary = predict(
        potential,
        reader,
        &input_name,
        &mut writer,
        &output_name,
        options,
    )?;
    writer.flush().map_err(write_error)?;
    drop(writer);
    partial.rename(output).map_err(write_error)?;
    Ok(summary)
}

/// Fills in what the frame does not say.
fn condition(frame: &mut Frame, options: &PredictOptions) {
    if frame.system.task.is_empty()
        && let Some(task) = &options.default_task
    {
        frame.system.task.clone_from(task);
    }
    if frame.info("spin").is_none() {
        frame.system.spin = i32::from(frame.system.task == "omol");
    }
    frame
        .info
        .retain(|(key, _)| !STALE_INFO.contains(&key.as_str()));
    frame
        .arrays
        .retain(|array| !STALE_ARRAYS.contains(&array.name.as_str()));
}

/// About how many edges a system has: from the density where it is periodic throughout, otherwise
/// as many as a dense molecule has.
fn expected_edges(system: &System, potential: &dyn Potential) -> usize {
    let atoms = system.len() as f64;
    let reach = 4.0 / 3.0 * std::f64::consts::PI * potential.cutoff_angstrom().powi(3);
    let neighbors = match system.cell.periodic {
        [true, true, true] => reach * atoms / system.cell.volume(),
        // 0.1 atoms per cubic Angstrom is dense for anything without a period.
        [false, false, false] => (atoms - 1.0).min(0.1 * reach),
        _ => 0.1 * reach,
    };
    // NaN (a flat cell, which will be refused) becomes 0.
    (atoms * neighbors.min(potential.max_neighbors() as f64)) as usize
}

/// Chemical formula, elements in order of their first appearance, for error messages.
fn formula(system: &System) -> String {
    let mut counts: Vec<(u8, usize)> = Vec::new();
    for &z in &system.numbers {
        match counts.iter_mut().find(|(number, _)| *number == z) {
            Some((_, count)) => *count += 1,
            None => counts.push((z, 1)),
        }
    }
    let part = |&(z, count): &(u8, usize)| {
        let symbol = crate::system::elements::symbol(z).unwrap_or("?");
        match count {
            1 => symbol.to_owned(),
            _ => format!("{symbol}{count}"),
        }
    };
    match counts.is_empty() {
        true => "no atoms".to_owned(),
        false => counts.iter().map(part).collect(),
    }
}

/// A file that is removed unless it is renamed.
struct PartialFile {
    file: File,
    path: PathBuf,
}

impl PartialFile {
    fn beside(path: &Path) -> io::Result<PartialFile> {
        let name = path.file_name().ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "the path does not name a file")
        })?;
        let mut partial = std::ffi::OsString::from(".");
        partial.push(name);
        partial.push(format!(".{}.partial", std::process::id()));
        let path = path.with_file_name(partial);
        let file = File::create_new(&path)?;
        Ok(PartialFile { file, path })
    }

    fn rename(self, path: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, path)
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        // After a rename there is nothing to remove; after an error this is the best there is.
        let _ = fs::remove_file(&self.path);
    }
}
