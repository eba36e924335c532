//! Writing frames.

use super::{Array, ArrayData, Value, comment};
use crate::system::{Evaluation, System, elements};
use std::io::{self, Write};

/// What a frame has besides the system and its evaluation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extra<'a> {
    /// Pairs for the comment line. Keys that the frame has of itself (`Lattice`, `Properties`,
    /// `pbc`, `charge`, `spin`, `task`, and with an evaluation `energy` and `stress`) are left out.
    pub info: &'a [(String, Value)],
    /// Columns. Those named like elements, positions and (with an evaluation) forces are left out.
    pub arrays: &'a [Array],
}

/// Writes one frame of extended XYZ as ASE does: `ase.io.read` finds the evaluation as
/// `atoms.calc.results` (energy, forces, stress) and the rest in `atoms.info` and `atoms.arrays`.
/// Numbers are written with as many digits as they have.
///
/// # Errors
/// Those of the writer, and `InvalidInput` when an array does not have one row per atom, when
/// forces or positions are not one per atom, or when an element is unknown.
pub fn write_frame(
    writer: &mut impl Write,
    system: &System,
    evaluation: Option<&Evaluation>,
    extra: Extra,
) -> io::Result<()> {
    let atoms = system.len();
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidInput, what);
    if system.positions.len() != atoms {
        return Err(invalid(format!(
            "{atoms} atoms but {} positions",
            system.positions.len()
        )));
    }
    if let Some(evaluation) = evaluation
        && evaluation.forces.len() != atoms
    {
        return Err(invalid(format!(
            "{atoms} atoms but {} forces",
            evaluation.forces.len()
        )));
    }
    let taken = |array: &&Array| match array.name.as_str() {
        "species" | "Z" | "pos" => false,
        "forces" => evaluation.is_none(),
        _ => true,
    };
    let arrays: Vec<&Array> = extra.arrays.iter().filter(taken).collect();
    for array in &arrays {
        let length = match &array.data {
            ArrayData::Real(list) => list.len(),
            ArrayData::Int(list) => list.len(),
            ArrayData::Bool(list) => list.len(),
            ArrayData::Text(list) => list.len(),
        };
        let name = &array.name;
        if array.columns == 0 || length != atoms * array.columns {
            return Err(invalid(format!("the array {name:?} has {length} entries")));
        }
        if name.is_empty() || name.contains([':', '"', '\\', ' ', '\n']) {
            return Err(invalid(format!("{name:?} cannot be the name of an array")));
        }
    }

    writeln!(writer, "{atoms}")?;
    writeln!(
        writer,
        "{}",
        comment_line(system, evaluation, extra.info, &arrays)
    )?;
    for atom in 0..atoms {
        let z = system.numbers[atom];
        let symbol =
            elements::symbol(z).ok_or_else(|| invalid(format!("no element has number {z}")))?;
        write!(writer, "{symbol:<2}")?;
        reals(writer, &system.positions[atom])?;
        for array in &arrays {
            let row = atom * array.columns..(atom + 1) * array.columns;
            match &array.data {
                ArrayData::Real(list) => reals(writer, &list[row])?,
                ArrayData::Int(list) => {
                    for n in &list[row] {
                        write!(writer, " {n:>8}")?;
                    }
                }
                ArrayData::Bool(list) => {
                    for &b in &list[row] {
                        write!(writer, "  {}", if b { 'T' } else { 'F' })?;
                    }
                }
                ArrayData::Text(list) => {
                    for text in &list[row] {
                        if text.is_empty() || text.contains(char::is_whitespace) {
                            return Err(invalid(format!("{text:?} cannot stand in a column")));
                        }
                        write!(writer, " {text}")?;
                    }
                }
            }
        }
        if let Some(evaluation) = evaluation {
            reals(writer, &evaluation.forces[atom])?;
        }
        writeln!(writer)?;
    }
    Ok(())
}

/// Numbers with the digits they need to be read back exactly.
fn reals(writer: &mut impl Write, list: &[f64]) -> io::Result<()> {
    list.iter().try_for_each(|x| write!(writer, " {x:>24?}"))
}

fn comment_line(
    system: &System,
    evaluation: Option<&Evaluation>,
    info: &[(String, Value)],
    arrays: &[&Array],
) -> String {
    let flat = |m: [[f64; 3]; 3]| Value::Reals(m.as_flattened().to_vec());
    let mut pairs = Vec::new();
    if system.cell.has_vectors() {
        pairs.push(comment::format("Lattice", &flat(system.cell.vectors)));
    }
    let mut properties = "species:S:1:pos:R:3".to_owned();
    for array in arrays {
        let kind = match array.data {
            ArrayData::Real(_) => 'R',
            ArrayData::Int(_) => 'I',
            ArrayData::Bool(_) => 'L',
            ArrayData::Text(_) => 'S',
        };
        properties += &format!(":{}:{kind}:{}", array.name, array.columns);
    }
    if evaluation.is_some() {
        properties += ":forces:R:3";
    }
    // Not through `format`: a name of an array is checked by the caller.
    pairs.push(format!("Properties={properties}"));
    for (key, value) in info {
        let own = match key.as_str() {
            "Lattice" | "Properties" | "pbc" | "charge" | "spin" | "task" | "" => true,
            "energy" | "stress" => evaluation.is_some(),
            _ => false,
        };
        if !own {
            pairs.push(comment::format(key, value));
        }
    }
    pairs.push(comment::format("charge", &Value::Int(system.charge.into())));
    pairs.push(comment::format("spin", &Value::Int(system.spin.into())));
    if !system.task.is_empty() {
        pairs.push(comment::format("task", &Value::Text(system.task.clone())));
    }
    if let Some(evaluation) = evaluation {
        pairs.push(comment::format("energy", &Value::Real(evaluation.energy)));
        if let Some(stress) = evaluation.stress {
            // Symmetric, so that ASE's column order is the row order.
            pairs.push(comment::format("stress", &flat(stress)));
        }
    }
    let pbc = Value::Bools(system.cell.periodic.to_vec());
    pairs.push(comment::format("pbc", &pbc));
    pairs.join(" ")
}
