//! The small checkpoints of `tests/data` and what fairchem says about the structures of their golden
//! files (`tools/reference/make_goldens.py`).

use serde::Deserialize;
use std::path::PathBuf;
use std::sync::Arc;
use umaserve::potential::uma::{Checkpoint, Precision, UmaOptions, UmaPotential};
use umaserve::system::{Cell, System};

/// One structure and fairchem's answer in double precision: eV, Angstrom.
#[derive(Deserialize)]
pub struct Entry {
    pub name: String,
    pub task: String,
    pub numbers: Vec<u8>,
    pub positions: Vec<[f64; 3]>,
    pub cell: [[f64; 3]; 3],
    pub pbc: [bool; 3],
    pub charge: i32,
    pub spin: i32,
    pub energy: f64,
    pub forces: Vec<[f64; 3]>,
    pub stress: Option<[[f64; 3]; 3]>,
}

impl Entry {
    pub fn system(&self) -> System {
        System {
            numbers: self.numbers.clone(),
            positions: self.positions.clone(),
            cell: Cell {
                vectors: self.cell,
                periodic: self.pbc,
            },
            charge: self.charge,
            spin: self.spin,
            task: self.task.clone(),
        }
    }
}

/// A file of `tests/data`, or of `UMASERVE_TEST_DATA` where the tests run without their sources.
pub fn data(name: &str) -> PathBuf {
    let there = std::env::var_os("UMASERVE_TEST_DATA").map(PathBuf::from);
    let here = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    there.unwrap_or_else(here).join(name)
}

pub fn json<T: for<'a> Deserialize<'a>>(name: &str) -> T {
    let text = std::fs::read_to_string(data(name)).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The golden file of a model.
pub fn goldens(model: &str) -> Vec<Entry> {
    #[derive(Deserialize)]
    struct Goldens {
        entries: Vec<Entry>,
    }
    json::<Goldens>(&format!("nano-{model}.json")).entries
}

/// A system of the golden files by name; they are the same for all models.
pub fn golden(name: &str) -> System {
    let entries = goldens("1p2");
    let entry = entries.iter().find(|e| e.name == name);
    entry.unwrap_or_else(|| panic!("no {name}")).system()
}

pub fn checkpoint(model: &str) -> Arc<Checkpoint> {
    Arc::new(Checkpoint::open(data(&format!("nano-{model}.pt"))).unwrap())
}

pub fn options(precision: Precision) -> UmaOptions {
    UmaOptions {
        precision,
        ..UmaOptions::default()
    }
}

/// A model on the CPU.
pub fn potential(model: &str, precision: Precision) -> UmaPotential {
    UmaPotential::on_cpu(checkpoint(model), options(precision)).unwrap()
}

/// The largest of all numbers, without sign.
pub fn largest<'a>(rows: impl IntoIterator<Item = &'a [f64; 3]>) -> f64 {
    rows.into_iter()
        .flatten()
        .fold(0.0, |a: f64, x| a.max(x.abs()))
}

/// The largest difference.
pub fn difference(a: &[[f64; 3]], b: &[[f64; 3]]) -> f64 {
    let rows: Vec<[f64; 3]> = a
        .iter()
        .zip(b)
        .map(|(a, b)| std::array::from_fn(|k| a[k] - b[k]))
        .collect();
    assert_eq!(a.len(), b.len());
    largest(&rows)
}
