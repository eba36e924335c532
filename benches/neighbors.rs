//! How long neighbour lists take: `cargo bench --bench neighbors`.
//!
//! One row per number of atoms and density: microseconds per list, million edges per second, for
//! isolated clusters and for periodic boxes, with all threads (`RAYON_NUM_THREADS` sets how many).

use std::time::{Duration, Instant};
use umaserve::neighbors::neighbor_list;
use umaserve::system::{Cell, System};

const CUTOFF_ANGSTROM: f64 = 6.0;

/// A slightly disordered simple cubic arrangement of a density in atoms per cubic Angstrom.
fn system(atoms: usize, density: f64, periodic: bool) -> System {
    let spacing = density.powf(-1.0 / 3.0);
    let side = (1..).find(|n| n * n * n >= atoms).unwrap_or(1);
    let positions = (0..atoms)
        .map(|i| {
            let at = [i % side, i / side % side, i / (side * side)];
            std::array::from_fn(|k| {
                let disorder = (i as f64 * 12.9898 + k as f64 * 78.233).sin();
                spacing * (at[k] as f64 + 0.2 * disorder)
            })
        })
        .collect();
    let edge = (atoms as f64 / density).cbrt();
    let cell = [edge, 0.0, 0.0, 0.0, edge, 0.0, 0.0, 0.0, edge];
    System {
        numbers: vec![6; atoms],
        positions,
        cell: match periodic {
            true => Cell::from_row_major(cell, [true; 3]),
            false => Cell::NONE,
        },
        ..System::default()
    }
}

/// Median time of a list and its number of edges.
fn measure(system: &System) -> Option<(Duration, usize)> {
    let list = || neighbor_list(system, CUTOFF_ANGSTROM, 300, 1_000_000_000).ok();
    let edges = list()?.len();
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < 5 || (times.len() < 2000 && start.elapsed() < Duration::from_millis(300)) {
        let before = Instant::now();
        std::hint::black_box(list());
        times.push(before.elapsed());
    }
    times.sort();
    Some((times[times.len() / 2], edges))
}

fn main() {
    println!(
        "cutoff {CUTOFF_ANGSTROM} Angstrom, {} threads",
        rayon::current_num_threads()
    );
    println!(
        "{:>8} {:>10} {:>9} {:>10} {:>12} {:>10}",
        "atoms", "atoms/A^3", "periodic", "edges", "us/list", "Medges/s"
    );
    for periodic in [false, true] {
        for density in [0.02, 0.05, 0.1] {
            for atoms in [3, 24, 100, 1000, 10_000, 100_000] {
                let Some((time, edges)) = measure(&system(atoms, density, periodic)) else {
                    println!("{atoms:>8} {density:>10} {periodic:>9} no list");
                    continue;
                };
                let us = time.as_secs_f64() * 1e6;
                let rate = edges as f64 / us;
                println!(
                    "{atoms:>8} {density:>10} {periodic:>9} {edges:>10} {us:>12.1} {rate:>10.1}"
                );
            }
        }
    }
}
