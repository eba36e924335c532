//! Reading frames, one at a time.

use super::{Array, ArrayData, Cause, Frame, StructureFileError, Value, comment};
use crate::system::{Cell, elements};
use std::io::{BufRead, Read};

/// Longer lines are refused, so that a file without line ends does not fill the memory.
pub(super) const MAX_LINE_BYTES: usize = 1 << 20;

/// More columns per atom are refused.
const MAX_COLUMNS: usize = 1024;

/// Reads the frames of an extended or plain XYZ file one after the other. `file` is its name in
/// errors; frames of more than `max_atoms` are refused before they are read. After an error the
/// iterator ends.
pub fn read_frames<R: BufRead>(reader: R, file: impl Into<String>, max_atoms: usize) -> Frames<R> {
    Frames {
        reader,
        file: file.into(),
        max_atoms,
        line: 0,
        frame: 0,
        pending: None,
        ended: false,
    }
}

/// The frames of a file: see [`read_frames`].
pub struct Frames<R> {
    reader: R,
    file: String,
    max_atoms: usize,
    /// Number of the line last read, from 1.
    line: usize,
    frame: usize,
    /// A line read too far.
    pending: Option<String>,
    ended: bool,
}

impl<R: BufRead> Iterator for Frames<R> {
    type Item = Result<Frame, StructureFileError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        match self.read_frame() {
            Ok(Some(frame)) => {
                self.frame += 1;
                Some(Ok(frame))
            }
            Ok(None) => {
                self.ended = true;
                None
            }
            Err(cause) => {
                self.ended = true;
                Some(Err(StructureFileError {
                    file: self.file.clone(),
                    line: self.line,
                    frame: self.frame,
                    cause,
                }))
            }
        }
    }
}

impl<R: BufRead> Frames<R> {
    /// The next line without its end; `None` at the end of the file.
    fn next_line(&mut self) -> Result<Option<String>, Cause> {
        self.line += 1;
        if let Some(line) = self.pending.take() {
            return Ok(Some(line));
        }
        let mut bytes = Vec::new();
        let limit = MAX_LINE_BYTES as u64 + 1;
        self.reader
            .by_ref()
            .take(limit)
            .read_until(b'\n', &mut bytes)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        if bytes.len() > MAX_LINE_BYTES {
            return Err(Cause::LineTooLong);
        }
        let line = String::from_utf8(bytes).map_err(|_| Cause::NotText)?;
        Ok(Some(line.trim_end_matches(['\n', '\r']).to_owned()))
    }

    fn read_frame(&mut self) -> Result<Option<Frame>, Cause> {
        let header = loop {
            match self.next_line()? {
                None => return Ok(None),
                Some(line) if line.trim().is_empty() => {}
                Some(line) => break line,
            }
        };
        let header = header.trim();
        let atoms: usize = header.parse().map_err(|_| {
            let start = header.chars().take(40).collect();
            Cause::NoAtomCount(start)
        })?;
        if atoms > self.max_atoms {
            return Err(Cause::TooManyAtoms {
                atoms,
                limit: self.max_atoms,
            });
        }
        let end_of_file = |found| Cause::EndOfFile {
            found,
            expected: atoms,
        };
        let line = self.next_line()?.ok_or(end_of_file(0))?;
        let mut frame = Frame::default();
        let mut columns = comment_line(&line, &mut frame)?;
        for found in 0..atoms {
            let line = self.next_line()?.ok_or(end_of_file(found))?;
            atom_line(&line, &mut columns, &mut frame)?;
        }
        for column in columns {
            let Column::Other(array) = column else {
                continue;
            };
            match (array.name.as_str(), array.vectors()) {
                ("forces", Some(forces)) => frame.forces = Some(forces),
                _ => frame.arrays.push(array),
            }
        }
        self.pseudo_atoms(&mut frame)?;
        Ok(Some(frame))
    }

    /// Lattice vectors written as lines `VEC1 x y z` after the atoms.
    fn pseudo_atoms(&mut self, frame: &mut Frame) -> Result<(), Cause> {
        for k in 0..4 {
            let Some(line) = self.next_line()? else {
                self.line -= 1;
                return Ok(());
            };
            let mut words = line.split_whitespace();
            if !words.next().is_some_and(|w| w.starts_with("VEC")) {
                self.pending = Some(line);
                self.line -= 1;
                return Ok(());
            }
            let vector: Option<Vec<f64>> = words.map(real).collect();
            match (k, vector.as_deref()) {
                (0..3, Some(&[x, y, z])) => {
                    frame.system.cell.vectors[k] = [x, y, z];
                    frame.system.cell.periodic[k] = true;
                }
                _ => {
                    return Err(Cause::BadValue {
                        key: "VEC",
                        expected: "at most three lines of three numbers",
                    });
                }
            }
        }
        Ok(())
    }
}

/// What a group of columns is.
enum Column {
    Symbols,
    Numbers,
    Positions,
    Other(Array),
}

impl Column {
    fn width(&self) -> usize {
        match self {
            Column::Symbols | Column::Numbers => 1,
            Column::Positions => 3,
            Column::Other(array) => array.columns,
        }
    }
}

/// Takes the comment line apart; returns the columns it announces.
fn comment_line(line: &str, frame: &mut Frame) -> Result<Vec<Column>, Cause> {
    let bad = |key, expected| Cause::BadValue { key, expected };
    let mut properties = None;
    let mut periodic = None;
    for (key, value) in comment::parse(line) {
        match key.as_str() {
            "Properties" => match value {
                Value::Text(text) => properties = Some(text),
                _ => return Err(Cause::BadProperties("is not a text".to_owned())),
            },
            "Lattice" => {
                let expected = "nine finite numbers";
                let entries = value.as_reals().ok_or(bad("Lattice", expected))?;
                let &[a, b, c, d, e, f, g, h, i] = entries.as_slice() else {
                    return Err(bad("Lattice", expected));
                };
                frame.system.cell.vectors = [[a, b, c], [d, e, f], [g, h, i]];
                periodic.get_or_insert([true; 3]);
            }
            "pbc" => {
                let list: Option<[bool; 3]> = match value {
                    Value::Bool(b) => Some([b; 3]),
                    Value::Bools(list) => list.try_into().ok(),
                    Value::Ints(list) => list
                        .iter()
                        .map(|n| [false, true].get(usize::try_from(*n).ok()?).copied())
                        .collect::<Option<Vec<bool>>>()
                        .and_then(|list| list.try_into().ok()),
                    _ => None,
                };
                periodic = Some(list.ok_or(bad("pbc", "three times T or F"))?);
            }
            "energy" => {
                frame.energy = Some(value.as_f64().ok_or(bad("energy", "a number"))?);
            }
            "stress" => {
                let entries = value.as_reals();
                frame.stress = Some(match entries.as_deref() {
                    Some(&[a, b, c, d, e, f, g, h, i]) => [[a, d, g], [b, e, h], [c, f, i]],
                    Some(&[xx, yy, zz, yz, xz, xy]) => [[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]],
                    _ => return Err(bad("stress", "nine (or six) numbers")),
                });
            }
            name @ ("charge" | "spin" | "task") => {
                let whole = value.as_i64().and_then(|n| i32::try_from(n).ok());
                match (name, whole, &value) {
                    ("charge", Some(n), _) => frame.system.charge = n,
                    ("spin", Some(n), _) => frame.system.spin = n,
                    ("task", _, Value::Text(text)) => frame.system.task = text.clone(),
                    ("charge", ..) => return Err(bad("charge", "a whole number")),
                    ("spin", ..) => return Err(bad("spin", "a whole number (2S+1)")),
                    _ => return Err(bad("task", "the name of a task")),
                }
                frame.info.push((key, value));
            }
            _ => frame.info.push((key, value)),
        }
    }
    // `pbc` may stand before `Lattice`, so the order above must not matter.
    frame.system.cell = Cell {
        periodic: periodic.unwrap_or([false; 3]),
        ..frame.system.cell
    };
    columns(properties.as_deref().unwrap_or("species:S:1:pos:R:3"))
}

/// The columns of a `Properties` text: `name:type:count` triples.
fn columns(properties: &str) -> Result<Vec<Column>, Cause> {
    let bad = |what: String| Err(Cause::BadProperties(what));
    let fields: Vec<&str> = properties.split(':').collect();
    if !fields.len().is_multiple_of(3) {
        return bad(format!("{properties:?} is not a list of name:type:count"));
    }
    let mut columns = Vec::new();
    let (mut elements, mut positions, mut total) = (0, 0, 0);
    for field in fields.chunks_exact(3) {
        let [name, kind, count] = [field[0], field[1], field[2]];
        let Some(count) = count.parse().ok().filter(|n| (1..=MAX_COLUMNS).contains(n)) else {
            return bad(format!(
                "has {count:?} columns of {name:?}, not 1 to {MAX_COLUMNS}"
            ));
        };
        total += count;
        columns.push(match (name, kind, count) {
            ("species", "S", 1) => {
                elements += 1;
                Column::Symbols
            }
            ("Z", "I", 1) => {
                elements += 1;
                Column::Numbers
            }
            ("pos", "R", 3) => {
                positions += 1;
                Column::Positions
            }
            ("species" | "Z" | "pos", ..) => {
                return bad(format!("has {name:?} of type {kind:?} in {count} columns"));
            }
            _ => Column::Other(Array {
                name: name.to_owned(),
                columns: count,
                data: match kind {
                    "R" => ArrayData::Real(Vec::new()),
                    "I" => ArrayData::Int(Vec::new()),
                    "L" => ArrayData::Bool(Vec::new()),
                    "S" => ArrayData::Text(Vec::new()),
                    _ => return bad(format!("has the unknown type {kind:?}")),
                },
            }),
        });
    }
    if total > MAX_COLUMNS {
        return bad(format!("has {total} columns, more than {MAX_COLUMNS}"));
    }
    if elements == 0 || positions != 1 {
        return bad(format!(
            "{properties:?} lacks species:S:1 (or Z:I:1) and pos:R:3, once"
        ));
    }
    Ok(columns)
}

fn atom_line(line: &str, columns: &mut [Column], frame: &mut Frame) -> Result<(), Cause> {
    let mut entries = line.split_whitespace();
    let expected: usize = columns.iter().map(Column::width).sum();
    let found = || line.split_whitespace().count();
    let mut number = None;
    for column in columns {
        for k in 0..column.width() {
            let entry = entries.next().ok_or_else(|| Cause::TooFewColumns {
                found: found(),
                expected,
            })?;
            let bad = |column: &str, expected| Cause::BadEntry {
                entry: entry.chars().take(40).collect(),
                column: column.to_owned(),
                expected,
            };
            match column {
                Column::Symbols => {
                    let z = element(entry).ok_or_else(|| bad("species", "an element"))?;
                    // ASE lets atomic numbers win where both columns are there.
                    number.get_or_insert(z);
                }
                Column::Numbers => {
                    let z = entry.parse().ok();
                    let z = z.filter(|z| (1..=elements::MAX_ATOMIC_NUMBER).contains(z));
                    number = Some(z.ok_or_else(|| bad("Z", "an atomic number"))?);
                }
                Column::Positions => {
                    let x = real(entry).ok_or_else(|| bad("pos", "a number"))?;
                    if k == 0 {
                        frame.system.positions.push([x, 0.0, 0.0]);
                    } else if let Some(position) = frame.system.positions.last_mut() {
                        position[k] = x;
                    }
                }
                Column::Other(Array { name, data, .. }) => match data {
                    ArrayData::Real(list) => {
                        list.push(real(entry).ok_or_else(|| bad(name, "a number"))?);
                    }
                    ArrayData::Int(list) => {
                        let n = entry.parse().map_err(|_| bad(name, "a whole number"))?;
                        list.push(n);
                    }
                    ArrayData::Bool(list) => {
                        list.push(comment::truth(entry).ok_or_else(|| bad(name, "T or F"))?);
                    }
                    ArrayData::Text(list) => list.push(entry.to_owned()),
                },
            }
        }
    }
    frame.system.numbers.extend(number);
    Ok(())
}

/// A number, also with Fortran's exponent letter D.
fn real(text: &str) -> Option<f64> {
    text.parse().ok().or_else(|| {
        let fortran = text.replace(['d', 'D'], "e");
        fortran.parse().ok()
    })
}

/// Atomic number of a symbol in any capitals, or of a number, as plain XYZ files have them.
fn element(text: &str) -> Option<u8> {
    let mut symbol = text.to_ascii_lowercase();
    symbol.get_mut(..1)?.make_ascii_uppercase();
    elements::number(&symbol).or_else(|| {
        let z = text.parse().ok()?;
        (1..=elements::MAX_ATOMIC_NUMBER).contains(&z).then_some(z)
    })
}
