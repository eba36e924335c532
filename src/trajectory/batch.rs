//! Frames on their way into the file, column by column, in the precision in which they are kept.
//!
//! Positions, velocities and forces are kept as f32: 1e-7 relative, far below the error of any
//! potential, and half the size. Energies, times, cells and stresses are f64, because their
//! differences matter (energy drift) and they cost nothing. Restarts do not read this file; they
//! have their own f64 checkpoint.

use super::{FrameData, TrajectoryError};

/// Rows (frames) of all columns. Arrays are row-major, `[rows][atoms][3]` and so on.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Batch {
    atoms: usize,
    pub(super) steps: Vec<i64>,
    pub(super) times_fs: Vec<f64>,
    /// Angstrom, `[rows][atoms][3]`.
    pub(super) positions: Vec<f32>,
    /// Angstrom / (ASE time unit), `[rows][atoms][3]`.
    pub(super) velocities: Vec<f32>,
    /// eV/Angstrom, `[rows][atoms][3]`.
    pub(super) forces: Vec<f32>,
    pub(super) potential_ev: Vec<f64>,
    pub(super) kinetic_ev: Vec<f64>,
    pub(super) temperature_kelvin: Vec<f64>,
    /// Angstrom, `[rows][3][3]`.
    pub(super) cells: Vec<f64>,
    /// eV/Angstrom^3, `[rows][3][3]`, NaN where there is none.
    pub(super) stresses: Vec<f64>,
}

/// f64 values of a row besides the step: time, three scalars, cell, stress.
const ROW_F64: usize = 4 + 9 + 9;

impl Batch {
    pub(super) fn new(atoms: usize) -> Self {
        Self {
            atoms,
            ..Self::default()
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.steps.len()
    }

    /// Appends a frame; refuses one whose arrays do not have the length of the header.
    pub(super) fn push(&mut self, frame: &FrameData) -> Result<(), TrajectoryError> {
        for (name, length) in [
            ("positions", frame.positions.len()),
            ("velocities", frame.velocities.len()),
            ("forces", frame.forces.len()),
        ] {
            if length != self.atoms {
                return Err(TrajectoryError::Invalid(format!(
                    "frame of step {} has {length} {name}, the recording has {} atoms",
                    frame.step, self.atoms
                )));
            }
        }
        self.steps.push(frame.step as i64);
        self.times_fs.push(frame.time_fs);
        self.potential_ev.push(frame.energy_ev);
        self.kinetic_ev.push(frame.kinetic_ev);
        self.temperature_kelvin.push(frame.temperature_kelvin);
        self.cells.extend(frame.cell.as_flattened());
        let stress = frame.stress.unwrap_or([[f64::NAN; 3]; 3]);
        self.stresses.extend(stress.as_flattened());
        for (column, values) in [
            (&mut self.positions, &frame.positions),
            (&mut self.velocities, &frame.velocities),
            (&mut self.forces, &frame.forces),
        ] {
            column.extend(values.as_flattened().iter().map(|&x| x as f32));
        }
        Ok(())
    }

    /// Forgets all rows, keeping the memory.
    pub(super) fn clear(&mut self) {
        self.steps.clear();
        self.times_fs.clear();
        self.positions.clear();
        self.velocities.clear();
        self.forces.clear();
        self.potential_ev.clear();
        self.kinetic_ev.clear();
        self.temperature_kelvin.clear();
        self.cells.clear();
        self.stresses.clear();
    }

    /// Whether this batch is the one row `row` of `other`, bit for bit.
    pub(super) fn is_row_of(&self, other: &Batch, row: usize) -> bool {
        let (mut mine, mut its) = (Vec::new(), Vec::new());
        self.encode_row(0, &mut mine);
        other.encode_row(row, &mut its);
        mine == its
    }

    /// Forgets the rows from `rows` on.
    pub(super) fn truncate(&mut self, rows: usize) {
        self.steps.truncate(rows);
        for column in [
            &mut self.times_fs,
            &mut self.potential_ev,
            &mut self.kinetic_ev,
            &mut self.temperature_kelvin,
        ] {
            column.truncate(rows);
        }
        for column in [&mut self.cells, &mut self.stresses] {
            column.truncate(9 * rows);
        }
        for column in [&mut self.positions, &mut self.velocities, &mut self.forces] {
            column.truncate(3 * self.atoms * rows);
        }
    }

    /// Bytes of one row in the journal.
    pub(super) fn row_bytes(atoms: usize) -> usize {
        8 + 8 * ROW_F64 + 3 * 12 * atoms
    }

    /// Appends row `row` to `out` as the journal keeps it (little-endian).
    pub(super) fn encode_row(&self, row: usize, out: &mut Vec<u8>) {
        out.extend(self.steps[row].to_le_bytes());
        let scalars = [
            self.times_fs[row],
            self.potential_ev[row],
            self.kinetic_ev[row],
            self.temperature_kelvin[row],
        ];
        let tensors = row * 9..row * 9 + 9;
        let doubles = scalars
            .iter()
            .chain(&self.cells[tensors.clone()])
            .chain(&self.stresses[tensors]);
        for value in doubles {
            out.extend(value.to_le_bytes());
        }
        let width = 3 * self.atoms;
        for column in [&self.positions, &self.velocities, &self.forces] {
            for value in &column[row * width..(row + 1) * width] {
                out.extend(value.to_le_bytes());
            }
        }
    }

    /// Appends a row from the journal; `false` if it has the wrong length.
    pub(super) fn push_encoded(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() != Self::row_bytes(self.atoms) {
            return false;
        }
        let (step, rest) = bytes.split_at(8);
        let (doubles, floats) = rest.split_at(8 * ROW_F64);
        let step: Vec<i64> = step
            .as_chunks()
            .0
            .iter()
            .map(|b| i64::from_le_bytes(*b))
            .collect();
        let doubles: Vec<f64> = doubles
            .as_chunks()
            .0
            .iter()
            .map(|b| f64::from_le_bytes(*b))
            .collect();
        let mut floats = floats.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
        self.steps.extend(step);
        self.times_fs.push(doubles[0]);
        self.potential_ev.push(doubles[1]);
        self.kinetic_ev.push(doubles[2]);
        self.temperature_kelvin.push(doubles[3]);
        self.cells.extend(&doubles[4..13]);
        self.stresses.extend(&doubles[13..22]);
        let width = 3 * self.atoms;
        for column in [&mut self.positions, &mut self.velocities, &mut self.forces] {
            column.extend(floats.by_ref().take(width));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_survives_the_journal_encoding() {
        let frame = FrameData {
            step: 12,
            time_fs: 6.5,
            positions: vec![[1.0, 2.0, 3.0], [-1.5, 0.25, 1e3]],
            velocities: vec![[0.5; 3], [0.25; 3]],
            forces: vec![[-2.0; 3], [4.0, 5.0, 6.0]],
            energy_ev: -1234.567890123,
            kinetic_ev: 0.1,
            temperature_kelvin: 300.0,
            stress: Some([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]),
            cell: [[9.0, 0.0, 0.0], [0.0, 8.0, 0.0], [0.5, 0.0, 7.0]],
        };
        let mut batch = Batch::new(2);
        batch.push(&frame).expect("fits");
        let mut bytes = Vec::new();
        batch.encode_row(0, &mut bytes);
        assert_eq!(bytes.len(), Batch::row_bytes(2));
        let mut again = Batch::new(2);
        assert!(again.push_encoded(&bytes));
        assert_eq!(again, batch);
        assert!(!again.push_encoded(&bytes[1..]), "a short row is refused");
    }

    #[test]
    fn a_frame_of_another_length_is_refused() {
        let error = Batch::new(3).push(&FrameData::default()).unwrap_err();
        assert!(error.to_string().contains("0 positions"), "{error}");
    }
}
