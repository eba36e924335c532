//! Extended XYZ: what ASE writes is read, what is written ASE reads, bad files are errors.
//!
//! `tests/data/ase*.xyz` were written by ASE 3.29 (`tests/python/write_structures.py`). With
//! `UMASERVE_PYTHON` set to a Python that has ASE, the same is done with the installed ASE.

use proptest::prelude::*;
use serde_json::json;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::Command;
use umaserve::structure_file::{
    Array, ArrayData, Cause, Extra, Frame, StructureFileError, Value, read_frames, write_frame,
};
use umaserve::system::{Cell, Evaluation, System};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

fn read(text: &[u8]) -> Result<Vec<Frame>, StructureFileError> {
    read_frames(Cursor::new(text), "in.xyz", 1000).collect()
}

fn read_file(path: &Path) -> Vec<Frame> {
    read(&std::fs::read(path).unwrap()).unwrap()
}

fn text(t: &str) -> Value {
    Value::Text(t.to_owned())
}

fn check_ase_frames(frames: &[Frame]) {
    let [water, salt, slab] = frames else {
        panic!("{} frames", frames.len());
    };
    assert_eq!(water.system.numbers, [8, 1, 1]);
    assert_eq!(water.system.positions[1], [0.0, 0.763239, -0.477047]);
    assert_eq!(water.system.cell, Cell::NONE);
    assert_eq!((water.system.charge, water.system.spin), (-1, 2));
    assert_eq!(water.system.task, "omol");
    assert_eq!(water.energy, Some(-14.2239));
    assert_eq!(water.forces.as_ref().unwrap()[2], [0.6, 0.7, 0.8]);
    assert_eq!(water.stress, None);
    assert_eq!(water.info("name"), Some(&text("a \"quoted\" name")));
    assert_eq!(water.info("flag"), Some(&Value::Bool(true)));
    assert_eq!(water.info("note"), Some(&text("it = works")));
    assert_eq!(water.info("vec"), Some(&Value::Reals(vec![1.5, 2.0])));
    assert_eq!(water.info("ints"), Some(&Value::Ints(vec![1, 2, 3])));
    assert_eq!(water.info("nested"), Some(&text("_JSON {\"a\": [1, 2]}")));
    let momenta = water.array("momenta").unwrap().vectors().unwrap();
    assert_eq!(momenta[1], [0.03, 0.04, 0.05]);
    assert_eq!(
        water.array("move_mask").unwrap().data,
        ArrayData::Bool(vec![false, true, true])
    );

    assert_eq!(salt.system.numbers, [11, 17]);
    assert_eq!(
        salt.system.cell,
        Cell {
            vectors: [[0.0, 2.82, 2.82], [2.82, 0.0, 2.82], [2.82, 2.82, 0.0]],
            periodic: [true, true, false]
        }
    );
    assert_eq!(
        (salt.system.task.as_str(), salt.info("spin")),
        ("omat", None)
    );
    let [xx, yy, zz, yz, xz, xy] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0].map(|x| x / 64.0);
    let stress = [[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]];
    assert_eq!(salt.stress, Some(stress));
    assert_eq!(
        salt.evaluation(),
        Some(Evaluation {
            energy: -7.25,
            forces: vec![[-0.25; 3]; 2],
            stress: Some(stress)
        })
    );

    assert_eq!(
        slab.system.cell.vectors,
        [[4.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0; 3]]
    );
    assert_eq!(slab.system.cell.periodic, [true, true, false]);
    assert_eq!(slab.array("tags").unwrap().data, ArrayData::Int(vec![0, 7]));
    assert_eq!(
        slab.array("velocities").unwrap().vectors().unwrap(),
        [[0.125; 3]; 2]
    );
    assert_eq!((slab.energy, slab.evaluation()), (None, None));
    assert_eq!(slab.system.check(10), Ok(()));
}

fn check_ase_plain(frames: &[Frame]) {
    assert_eq!(frames.len(), 2);
    assert_eq!(frames[0].system.numbers, [6, 1, 1, 1, 1]);
    assert_eq!(
        frames[0].system.positions[4],
        [-0.629118, 0.629118, -0.629118]
    );
    assert_eq!(frames[1].system.numbers, [8, 1, 1]);
    assert!(
        frames
            .iter()
            .all(|f| f.system.cell == Cell::NONE && f.info.is_empty())
    );
}

#[test]
fn files_of_ase_are_read() {
    check_ase_frames(&read_file(&data("ase.extxyz")));
    check_ase_plain(&read_file(&data("ase-plain.xyz")));
}

/// A frame with numbers that need all their digits.
fn awkward() -> (System, Evaluation, Vec<(String, Value)>, Vec<Array>) {
    let third = 1.0 / 3.0;
    let system = System {
        numbers: vec![1, 92, 26],
        positions: vec![
            [third, -1e-17, 1e9],
            [0.1 + 0.2, 5e-324, -0.0],
            [1.0, 2.0, 3.0],
        ],
        cell: Cell {
            vectors: [[10.0, third, 0.0], [0.0, 11.0, 1e-7], [-third, 0.0, 12.0]],
            periodic: [true, false, true],
        },
        charge: -2,
        spin: 3,
        task: "omat".to_owned(),
    };
    let evaluation = Evaluation {
        energy: -12345.678901234567,
        forces: vec![
            [third, -third, 1e-12],
            [0.0, 1e5, 2.0 * third],
            [7.0, 8.0, 9.0],
        ],
        stress: Some([[third, 0.1, 0.2], [0.1, -third, 0.3], [0.2, 0.3, 1e-9]]),
    };
    let info = vec![
        ("name".to_owned(), text("a \"b\" c\\d")),
        ("number_text".to_owned(), text("12")),
        ("empty".to_owned(), text("")),
        ("lambda".to_owned(), Value::Real(third)),
        ("flags".to_owned(), Value::Bools(vec![true, false])),
        ("counts".to_owned(), Value::Ints(vec![3, -4])),
    ];
    let array = |name: &str, columns, data| Array {
        name: name.to_owned(),
        columns,
        data,
    };
    let arrays = vec![
        array(
            "momenta",
            3,
            ArrayData::Real((0..9).map(|i| third * f64::from(i)).collect()),
        ),
        array("tags", 1, ArrayData::Int(vec![1, 2, -3])),
        array(
            "chain",
            1,
            ArrayData::Text(["A", "B", "C9"].map(str::to_owned).to_vec()),
        ),
        array("move_mask", 1, ArrayData::Bool(vec![false, true, true])),
    ];
    (system, evaluation, info, arrays)
}

fn written(system: &System, evaluation: Option<&Evaluation>, extra: Extra) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_frame(&mut bytes, system, evaluation, extra).unwrap();
    bytes
}

#[test]
fn frames_survive_writing_and_reading_bit_for_bit() {
    let (system, evaluation, info, arrays) = awkward();
    let extra = Extra {
        info: &info,
        arrays: &arrays,
    };
    let mut bytes = written(&system, Some(&evaluation), extra);
    bytes.extend(written(&system, None, Extra::default()));
    let frames = read(&bytes).unwrap();
    assert_eq!(frames.len(), 2);
    assert_eq!(frames[0].system, system);
    assert_eq!(frames[0].evaluation(), Some(evaluation));
    assert_eq!(frames[0].arrays, arrays);
    assert_eq!(frames[0].info[..info.len()], info);
    assert_eq!((&frames[1].system, frames[1].evaluation()), (&system, None));
    // -0.0 == 0.0, so look at the bits.
    let sign = frames[0].system.positions[1][2];
    assert!(sign == 0.0 && sign.is_sign_negative());
}

#[test]
fn frames_that_cannot_be_written_are_refused() {
    let (system, evaluation, _, arrays) = awkward();
    let refused = |system: &System, evaluation: &Evaluation, arrays: &[Array]| {
        let extra = Extra { info: &[], arrays };
        write_frame(&mut Vec::new(), system, Some(evaluation), extra).is_err()
    };
    assert!(!refused(&system, &evaluation, &arrays));
    let mut few = evaluation.clone();
    few.forces.pop();
    assert!(refused(&system, &few, &[]));
    let mut short = arrays.clone();
    short[0].columns = 2;
    assert!(refused(&system, &evaluation, &short));
    short = arrays.clone();
    short[2].data = ArrayData::Text(vec!["a b".to_owned(); 3]);
    assert!(refused(&system, &evaluation, &short));
    short = arrays;
    short[1].name = "a:b".to_owned();
    assert!(refused(&system, &evaluation, &short));
}

#[test]
fn what_other_programs_write_is_read() {
    // Lower-case symbols, numbers for symbols, Fortran exponents, CRLF, blank lines, extra columns.
    let frames = read(b"2\r\nmade by hand\r\ncl 0 0 1.0D+00 junk\r\n6 1 2 3\r\n\r\n\r\n").unwrap();
    assert_eq!(frames[0].system.numbers, [17, 6]);
    assert_eq!(frames[0].system.positions[0], [0.0, 0.0, 1.0]);
    // Columns in another order, atomic numbers instead of symbols, pbc as 1 and 0.
    let frames = read(
        b"1\npbc=[1, 0, 1] Lattice={4 0 0 0 4 0 0 0 4} Properties=pos:R:3:q:R:1:Z:I:1\n1 2 3 0.5 26\n",
    )
    .unwrap();
    assert_eq!(frames[0].system.numbers, [26]);
    assert_eq!(frames[0].system.cell.periodic, [true, false, true]);
    assert_eq!(frames[0].system.cell.vectors[2], [0.0, 0.0, 4.0]);
    // A lattice means periodic unless pbc says otherwise.
    let frames = read(b"1\nLattice=\"4 0 0 0 4 0 0 0 4\"\nH 0 0 0\n").unwrap();
    assert_eq!(frames[0].system.cell.periodic, [true; 3]);
    // Lattice vectors as pseudo-atoms.
    let frames = read(
        b"1\n\nH 0 0 0\nVEC1 4 0 0\nVEC2 0 5 0\n1\nLattice=\"4 0 0 0 4 0 0 0 4\" pbc=F\nHe 0 0 0",
    )
    .unwrap();
    assert_eq!(frames[0].system.cell.vectors[1], [0.0, 5.0, 0.0]);
    assert_eq!(frames[0].system.cell.periodic, [true, true, false]);
    assert_eq!(frames[1].system.numbers, [2]);
    assert_eq!(frames[1].system.cell.periodic, [false; 3]);
    assert_eq!(read(b"").unwrap().len(), 0);
    assert_eq!(read(b"\n \n").unwrap().len(), 0);
    assert_eq!(read(b"0\n\n").unwrap()[0].system.len(), 0);
}

#[test]
fn errors_name_file_line_and_cause() {
    let good = "1\n\nH 0 0 0\n";
    for (bad, line, message) in [
        ("x\n", 4, "expected a number of atoms, found \"x\""),
        ("-1\n", 4, "expected a number of atoms"),
        (
            "99999999999\n",
            4,
            "99999999999 atoms, more than the limit of 1000",
        ),
        ("2\n\nH 0 0 0\n", 7, "the file ends after 1 of 2 atoms"),
        ("2\n", 5, "the file ends after 0 of 2 atoms"),
        ("1\n\nH 0 0\n", 6, "found 3 columns, expected 4"),
        (
            "1\n\nH 0 0 zero\n",
            6,
            "\"zero\" in the column \"pos\" is not a number",
        ),
        (
            "1\n\nQq 0 0 0\n",
            6,
            "\"Qq\" in the column \"species\" is not an element",
        ),
        ("1\n\n\u{c4} 0 0 0\n", 6, "is not an element"),
        (
            "1\nLattice=\"1 2 3\"\nH 0 0 0\n",
            5,
            "Lattice must be nine finite numbers",
        ),
        (
            "1\npbc=\"T T\"\nH 0 0 0\n",
            5,
            "pbc must be three times T or F",
        ),
        ("1\nspin=1.5\nH 0 0 0\n", 5, "spin must be a whole number"),
        (
            "1\ncharge=99999999999\nH 0 0 0\n",
            5,
            "charge must be a whole number",
        ),
        ("1\ntask=3\nH 0 0 0\n", 5, "task must be the name of a task"),
        ("1\nenergy=low\nH 0 0 0\n", 5, "energy must be a number"),
        ("1\nstress=\"1 2\"\nH 0 0 0\n", 5, "stress must be nine"),
        ("1\nProperties=species:S:1\nH\n", 5, "lacks"),
        (
            "1\nProperties=species:S:1:pos:R:3:a\nH 0 0 0\n",
            5,
            "not a list",
        ),
        (
            "1\nProperties=species:S:1:pos:R:3:a:Q:1\nH 0 0 0 1\n",
            5,
            "unknown type \"Q\"",
        ),
        (
            "1\nProperties=species:S:1:pos:R:3:a:R:99999999999999999999\nH 0 0 0 1\n",
            5,
            "not 1 to 1024",
        ),
        (
            "1\nProperties=species:S:1:pos:R:3:a:L:1\nH 0 0 0 7\n",
            6,
            "is not T or F",
        ),
        (
            "1\nProperties=species:S:1:pos:R:3:Z:I:1\nH 0 0 0 119\n",
            6,
            "is not an atomic number",
        ),
    ] {
        let error = read(format!("{good}{bad}").as_bytes()).unwrap_err();
        assert_eq!((error.line, error.frame), (line, 1), "{bad:?}: {error}");
        let shown = error.to_string();
        assert!(shown.contains(message), "{bad:?}: {shown}");
        assert!(
            shown.starts_with(&format!("in.xyz, line {line} (frame 1)")),
            "{shown}"
        );
    }
    let not_text = read(b"1\n\xff\xfe\nH 0 0 0\n").unwrap_err();
    assert!(matches!(not_text.cause, Cause::NotText));
    // No line end in sight: refused after a megabyte, without reading on.
    let endless = std::io::BufReader::new(std::io::repeat(b'1'));
    let error = read_frames(endless, "endless", 10)
        .next()
        .unwrap()
        .unwrap_err();
    assert!(matches!(error.cause, Cause::LineTooLong));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// A damaged file gives frames or an error, never a panic, and always comes to an end.
    #[test]
    fn damaged_files_do_no_harm(
        which in 0usize..3,
        edits in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..4, any::<u8>()), 1..12),
    ) {
        let (system, evaluation, info, arrays) = awkward();
        let mut bytes = match which {
            0 => std::fs::read(data("ase.extxyz")).unwrap(),
            1 => std::fs::read(data("ase-plain.xyz")).unwrap(),
            _ => written(&system, Some(&evaluation), Extra { info: &info, arrays: &arrays }),
        };
        for (at, what, byte) in edits {
            let at = at.index(bytes.len().max(1)).min(bytes.len().saturating_sub(1));
            // Characters with a meaning come up more often than they would by chance.
            let byte = match byte % 3 {
                0 => byte,
                _ => b"\"'{}[]\\= \n:9-.eTFVECRSIL"[usize::from(byte) % 24],
            };
            match what {
                0 if !bytes.is_empty() => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                2 if !bytes.is_empty() => { bytes.remove(at); }
                _ => bytes.truncate(at.max(bytes.len() / 2)),
            }
        }
        let frames = read_frames(Cursor::new(&bytes), "damaged", 1000).count();
        prop_assert!(frames <= bytes.len());
        for frame in read_frames(Cursor::new(&bytes), "damaged", 1000).flatten() {
            prop_assert_eq!(frame.system.numbers.len(), frame.system.positions.len());
            // What was read can be written, and is then read as the same.
            let extra = Extra { info: &frame.info, arrays: &frame.arrays };
            let again = read(&written(&frame.system, frame.evaluation().as_ref(), extra));
            let again = again.unwrap();
            prop_assert_eq!(&again[0].system.numbers, &frame.system.numbers);
        }
    }
}

/// Runs a script of `tests/python` with the Python of `UMASERVE_PYTHON`; `None` (said aloud)
/// without one.
fn python(script: &str, argument: &Path) -> Option<String> {
    let Ok(python) = std::env::var("UMASERVE_PYTHON") else {
        eprintln!("skipped: UMASERVE_PYTHON is not set, so the installed ASE is not asked");
        return None;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/python")
        .join(script);
    let output = Command::new(python)
        .arg(script)
        .arg(argument)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn the_installed_ase_writes_what_is_read() {
    let folder = tempfile::tempdir().unwrap();
    if python("write_structures.py", folder.path()).is_some() {
        check_ase_frames(&read_file(&folder.path().join("ase.extxyz")));
        check_ase_plain(&read_file(&folder.path().join("ase-plain.xyz")));
    }
}

/// Equal but for the last bit of numbers, which `serde_json` does not always read exactly.
fn assert_same(found: &serde_json::Value, expected: serde_json::Value) {
    use serde_json::Value::{Array, Number};
    match (found, expected) {
        (Array(a), Array(b)) => {
            assert_eq!(a.len(), b.len());
            a.iter().zip(b).for_each(|(a, b)| assert_same(a, b));
        }
        (Number(a), Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            assert!((a - b).abs() <= 1e-15 * b.abs(), "{a} {b}");
        }
        (a, b) => assert_eq!(*a, b),
    }
}

#[test]
fn the_installed_ase_reads_what_is_written() {
    let (system, evaluation, info, arrays) = awkward();
    let extra = Extra {
        info: &info,
        arrays: &arrays,
    };
    let file = tempfile::NamedTempFile::with_suffix(".extxyz").unwrap();
    let mut bytes = written(&system, Some(&evaluation), extra);
    let mut molecule = system.clone();
    molecule.cell = Cell::NONE;
    let plain = Evaluation {
        stress: None,
        ..evaluation.clone()
    };
    bytes.extend(written(&molecule, Some(&plain), Extra::default()));
    std::fs::write(file.path(), bytes).unwrap();
    let Some(answer) = python("read_structures.py", file.path()) else {
        return;
    };
    let frames: serde_json::Value = serde_json::from_str(&answer).unwrap();
    let frame = &frames[0];
    assert_same(&frame["numbers"], json!(system.numbers));
    assert_same(&frame["positions"], json!(system.positions));
    assert_same(&frame["cell"], json!(system.cell.vectors));
    assert_same(&frame["pbc"], json!(system.cell.periodic));
    assert_same(&frame["fixed"], json!([0]));
    assert_same(&frame["arrays"]["tags"], json!([1, 2, -3]));
    assert_same(
        &frame["arrays"]["momenta"],
        json!(arrays[0].vectors().unwrap()),
    );
    assert_same(&frame["arrays"]["chain"], json!(["A", "B", "C9"]));
    let results = &frame["results"];
    assert_same(&results["energy"], json!(evaluation.energy));
    assert_same(&results["forces"], json!(evaluation.forces));
    let s = evaluation.stress.unwrap();
    let voigt = [s[0][0], s[1][1], s[2][2], s[1][2], s[0][2], s[0][1]];
    assert_same(&results["stress"], json!(voigt));
    let found = &frame["info"];
    assert_same(&found["charge"], json!(-2));
    assert_same(&found["spin"], json!(3));
    assert_same(&found["task"], json!("omat"));
    assert_same(&found["name"], json!("a \"b\" c\\d"));
    assert_same(&found["number_text"], json!("12"));
    assert_same(&found["empty"], json!(""));
    assert_same(&found["lambda"], json!((1.0 / 3.0)));
    assert_same(&found["counts"], json!([3, -4]));
    assert_same(&found["flags"], json!([true, false]));

    assert_same(&frames[1]["cell"], json!(Cell::NONE.vectors));
    assert_same(&frames[1]["pbc"], json!(Cell::NONE.periodic));
    assert_same(&frames[1]["results"]["energy"], json!(evaluation.energy));
    assert!(frames[1]["results"].get("stress").is_none());
}
