//! Recordings as extended XYZ.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use super::reader::Trajectory;
use super::{FrameData, Header, TrajectoryError};
use crate::structure_file::{Array, ArrayData, Extra, Value, write_frame};
use crate::system::{Cell, Evaluation, System};

/// Frames read at once, bytes.
const READ_BYTES: usize = 32 << 20;

pub(super) fn export(path: &Path, output: &Path, stride: usize) -> Result<String, TrajectoryError> {
    if stride == 0 {
        return Err(TrajectoryError::Invalid(
            "the stride must be at least 1".to_owned(),
        ));
    }
    let trajectory = Trajectory::open(path)?;
    let same = |a: &Path, b: &Path| Some(a.canonicalize().ok()? == b.canonicalize().ok()?);
    if same(path, output) == Some(true) {
        return Err(TrajectoryError::file(
            output,
            "is the recording itself; choose another output",
        ));
    }
    let error = |e: std::io::Error| TrajectoryError::file(output, e);
    let mut writer = BufWriter::new(File::create(output).map_err(error)?);
    let header = trajectory.header();
    let block = (READ_BYTES / (72 * header.species.len().max(1))).max(1);
    let mut written = 0;
    for first in (0..trajectory.len()).step_by(block) {
        let frames = trajectory.frames(first..(first + block).min(trajectory.len()))?;
        for (number, frame) in (first..).zip(frames) {
            if number % stride == 0 {
                write(&mut writer, header, frame).map_err(error)?;
                written += 1;
            }
        }
    }
    writer.flush().map_err(error)?;
    Ok(format!(
        "{}: {written} of {} frames of {}",
        output.display(),
        trajectory.len(),
        path.display()
    ))
}

fn write(writer: &mut impl Write, header: &Header, frame: FrameData) -> std::io::Result<()> {
    let momenta = frame.velocities.iter().zip(&header.masses);
    let momenta = momenta.flat_map(|(v, m)| v.map(|x| x * m)).collect();
    let system = System {
        numbers: header.species.clone(),
        positions: frame.positions,
        cell: Cell {
            vectors: frame.cell,
            periodic: header.periodic,
        },
        charge: header.provenance.charge,
        spin: header.provenance.spin,
        task: header.provenance.task.clone(),
    };
    let evaluation = Evaluation {
        energy: frame.energy_ev,
        forces: frame.forces,
        stress: frame.stress,
    };
    let extra = Extra {
        info: &[
            ("step".to_owned(), Value::Int(frame.step as i64)),
            ("time_fs".to_owned(), Value::Real(frame.time_fs)),
        ],
        arrays: &[Array {
            name: "momenta".to_owned(),
            columns: 3,
            data: ArrayData::Real(momenta),
        }],
    };
    write_frame(writer, &system, Some(&evaluation), extra)
}
