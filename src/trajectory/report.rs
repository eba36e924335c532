//! The summary of a recording.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use super::TrajectoryError;
use super::reader::Trajectory;
use crate::system::elements;

/// Events shown; the file holds all.
const EVENTS_SHOWN: usize = 20;

pub(super) fn info(path: &Path) -> Result<String, TrajectoryError> {
    let trajectory = Trajectory::open(path)?;
    let header = trajectory.header();
    let p = &header.provenance;
    let mut table = Table::default();
    table.row("file", path.display());
    let state = if trajectory.is_unfinished() {
        "still being recorded, or interrupted (then: umaserve trajectory repair)"
    } else {
        "complete"
    };
    table.row("state", state);
    table.row("atoms", header.species.len());
    table.row("formula", formula(&header.species));
    table.row("frames", trajectory.len());

    let steps = trajectory.scalars("step")?;
    let times = trajectory.scalars("time")?;
    if let [first, .., last] = times[..] {
        let (from, to) = (steps[0], steps[steps.len() - 1]);
        table.row("steps", format!("{from} to {to}"));
        table.row("time", format!("{first} to {last} fs"));
    }
    if header.timestep_fs > 0.0 {
        table.row("time step", format!("{} fs", header.timestep_fs));
    }
    table.row("cell", cell(&trajectory)?);

    let potential = trajectory.scalars("potential_energy")?;
    let kinetic = trajectory.scalars("kinetic_energy")?;
    let total: Vec<f64> = potential.iter().zip(&kinetic).map(|(v, k)| v + k).collect();
    table.statistics("potential energy", "eV", &potential, 4);
    table.statistics("kinetic energy", "eV", &kinetic, 4);
    table.statistics("total energy", "eV", &total, 4);
    // Frames of a relaxation have no temperature and are written with 0 K.
    let mut temperature = trajectory.scalars("temperature")?;
    if temperature.iter().any(|&t| t > 0.0) {
        temperature.retain(|&t| t > 0.0);
    }
    table.statistics("temperature", "K", &temperature, 1);

    table.row("recorded by", format!("umaserve {}", p.version));
    table.row(
        "checkpoint",
        format!("{} ({})", p.checkpoint, p.checkpoint_digest),
    );
    table.row(
        "task",
        format!("{}, charge {}, spin {}", p.task, p.charge, p.spin),
    );
    table.row("method", &p.method);
    for (name, value) in &p.parameters {
        table.row(&format!("  {name}"), value);
    }
    table.row("seed", p.seed);
    table.row("evaluated in", format!("{} on {}", p.precision, p.device));

    let events = trajectory.events()?;
    table.row("events", events.len());
    for event in events.iter().take(EVENTS_SHOWN) {
        table.row(&format!("  step {}", event.step), &event.text);
    }
    if events.len() > EVENTS_SHOWN {
        table.row("  ...", format!("{} more", events.len() - EVENTS_SHOWN));
    }
    Ok(table.text)
}

#[derive(Default)]
struct Table {
    text: String,
}

impl Table {
    fn row(&mut self, name: &str, value: impl std::fmt::Display) {
        // Writing into a String cannot fail.
        let _ = writeln!(self.text, "{name:<20} {value}");
    }

    fn statistics(&mut self, name: &str, unit: &str, values: &[f64], digits: usize) {
        let (Some(first), Some(last)) = (values.first(), values.last()) else {
            return;
        };
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let deviation = variance.sqrt();
        self.row(
            name,
            format!(
                "{mean:.digits$} +- {deviation:.digits$} {unit} (first {first:.digits$}, last \
                 {last:.digits$}, lowest {low:.digits$}, highest {high:.digits$})"
            ),
        );
    }
}

/// The sum formula in Hill's order: carbon, hydrogen, then by symbol; by symbol without carbon.
fn formula(species: &[u8]) -> String {
    let mut counts = BTreeMap::new();
    for &z in species {
        *counts
            .entry(elements::symbol(z).unwrap_or("?"))
            .or_insert(0) += 1;
    }
    let organic = counts.contains_key("C");
    let mut order: Vec<(&str, usize)> = counts.into_iter().collect();
    order.sort_by_key(|&(symbol, _)| match symbol {
        "C" if organic => (0, symbol),
        "H" if organic => (1, symbol),
        _ => (2, symbol),
    });
    order
        .iter()
        .map(|(symbol, count)| match count {
            1 => (*symbol).to_owned(),
            n => format!("{symbol}{n}"),
        })
        .collect()
}

fn cell(trajectory: &Trajectory) -> Result<String, TrajectoryError> {
    if trajectory.is_empty() {
        return Ok("unknown (no frames)".to_owned());
    }
    let of = |i: usize| Ok::<_, TrajectoryError>(trajectory.frames(i..i + 1)?[0].cell);
    let first = of(0)?;
    if first == [[0.0; 3]; 3] {
        return Ok("none".to_owned());
    }
    let dot = |a: [f64; 3], b: [f64; 3]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let length = |i: usize| dot(first[i], first[i]).sqrt();
    let angle = |i: usize, j: usize| {
        (dot(first[i], first[j]) / (length(i) * length(j)))
            .clamp(-1.0, 1.0)
            .acos()
            .to_degrees()
    };
    let periodic = trajectory
        .header()
        .periodic
        .map(|p| if p { "yes" } else { "no" })
        .join(" ");
    let varies = if of(trajectory.len() - 1)? == first {
        ""
    } else {
        ", varying"
    };
    Ok(format!(
        "{:.4} {:.4} {:.4} Angstrom, {:.2} {:.2} {:.2} degrees, periodic {periodic}{varies}",
        length(0),
        length(1),
        length(2),
        angle(1, 2),
        angle(0, 2),
        angle(0, 1),
    ))
}

#[cfg(test)]
mod tests {
    use super::formula;

    #[test]
    fn formulas_are_in_hill_order() {
        assert_eq!(formula(&[8, 1, 1]), "H2O");
        assert_eq!(formula(&[8, 6, 1, 1, 1, 6, 1, 1, 1]), "C2H6O");
        assert_eq!(formula(&[17, 11, 35]), "BrClNa");
    }
}
