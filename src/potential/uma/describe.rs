//! The text of `umaserve model`.

use std::fmt::Write;

use super::checkpoint::Checkpoint;
use super::config::{ChargeSpinEmbedding, FeedForward, Generation, Task, UmaConfig};

/// What a checkpoint is, for people: one screen of text that ends with a newline.
pub fn describe(checkpoint: &Checkpoint) -> String {
    let config = &checkpoint.config;
    let memory = checkpoint.memory();
    let mut text = String::new();
    let mut line = |label: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{label:<12} {value}");
    };
    line("model", config.name.clone());
    line(
        "file",
        format!(
            "{} ({})",
            checkpoint.path.display(),
            bytes(checkpoint.file_bytes)
        ),
    );
    line("digest", checkpoint.digest.to_string());
    line("generation", generation(config).to_owned());
    line(
        "network",
        format!(
            "{} layers, lmax {}, mmax {}, channels {} sphere / {} hidden / {} edge",
            config.num_layers,
            config.lmax,
            config.mmax,
            config.sphere_channels,
            config.hidden_channels,
            config.edge_channels
        ),
    );
    line(
        "",
        format!(
            "cutoff {} A, {} gaussians, at most {} neighbours, {} feed-forward",
            config.cutoff,
            config.num_distance_basis,
            config.max_neighbors,
            match config.feed_forward {
                FeedForward::Spectral => "spectral",
                FeedForward::Grid => "grid",
            }
        ),
    );
    line("experts", experts(config));
    line(
        "charge, spin",
        match config.charge_spin_embedding {
            ChargeSpinEmbedding::Table => "table (charge -100 to 100, multiplicity 0 to 100)",
            ChargeSpinEmbedding::Linear => "linear",
            ChargeSpinEmbedding::Positional => "positional",
        }
        .to_owned()
            + &balanced("charge", &config.charge_balanced_channels)
            + &balanced("spin", &config.spin_balanced_channels),
    );
    line(
        "lone atoms",
        if config.supports_single_atoms {
            "evaluated by the network"
        } else {
            "not supported without periodicity"
        }
        .to_owned(),
    );
    line(
        "parameters",
        format!(
            "{} in total, {} active",
            thousands(config.parameters_total()),
            thousands(config.parameters_active())
        ),
    );
    line(
        "memory",
        format!(
            "{} of weights in the file, {} merged in single precision per composition, charge, \
             spin and task",
            bytes(memory.stored_bytes),
            bytes(memory.merged_bytes)
        ),
    );
    line(
        "elements",
        format!("Z = 1 to {} have an embedding", config.max_num_elements - 1),
    );
    for (index, (name, task)) in config.tasks.iter().enumerate() {
        line(
            if index == 0 { "tasks" } else { "" },
            format!("{name:<8} {}", task_text(task)),
        );
    }
    for (index, option) in config.ignored.iter().enumerate() {
        line(if index == 0 { "ignored" } else { "" }, option.clone());
    }
    text
}

fn generation(config: &UmaConfig) -> &'static str {
    match config.generation {
        Generation::Esen => "eSEN (no mixture of experts)",
        Generation::Uma1p1 => "UMA 1.1",
        Generation::Uma1p2 => "UMA 1.2 (composition averaged over N + 1 atoms)",
        Generation::Newer => "UMA 1.2.1 or later",
    }
}

fn experts(config: &UmaConfig) -> String {
    let mut text = match config.num_experts {
        0 => "none".to_owned(),
        n => format!(
            "{n} per SO(2) convolution, routed by {}charge, spin{}",
            if config.use_composition_embedding {
                "composition, "
            } else {
                ""
            },
            if config.use_dataset_embedding {
                " and dataset"
            } else {
                ""
            }
        ),
    };
    match config.head.experts {
        Some(n) => text += &format!("; {n} in the energy head, by dataset"),
        None => text += "; one energy head for all datasets",
    }
    text
}

fn balanced(what: &str, channels: &std::ops::Range<usize>) -> String {
    if channels.is_empty() {
        return String::new();
    }
    format!(
        "; channels {} to {} balanced to the total {what}",
        channels.start,
        channels.end - 1
    )
}

fn task_text(task: &Task) -> String {
    let stress = match task.stress {
        Some(_) => "trained stress",
        None => "stress not trained, from the energy",
    };
    format!(
        "rmsd {} eV, {stress}, references for {}",
        task.energy.rmsd,
        ranges(&task.elements())
    )
}

/// Atomic numbers as ranges.
fn ranges(elements: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &z in elements {
        match ranges.last_mut() {
            Some((_, end)) if *end + 1 == z => *end = z,
            _ => ranges.push((z, z)),
        }
    }
    if ranges.is_empty() {
        return "no element".to_owned();
    }
    let ranges: Vec<String> = ranges
        .iter()
        .map(|&(start, end)| match start == end {
            true => start.to_string(),
            false => format!("{start} to {end}"),
        })
        .collect();
    format!("Z = {}", ranges.join(", "))
}

fn bytes(n: usize) -> String {
    match n {
        0..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.2} GB", n as f64 / 1e9),
    }
}

fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
