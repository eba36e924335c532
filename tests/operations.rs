//! docs/operations.md tells the truth: its options are those of the program with their defaults,
//! its metrics and those of the dashboard are those that the service counts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use clap::CommandFactory as _;
use umaserve::cli::Cli;
use umaserve::metrics::Metrics;

const TEXT: &str = include_str!("../docs/operations.md");
const DASHBOARD: &str = include_str!("../docs/grafana-dashboard.json");

/// Name and default of every option in the tables.
fn documented() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for line in TEXT.lines() {
        let Some(row) = line.strip_prefix("| `--") else {
            continue;
        };
        // `--config FILE` is an option; `--edge-budget` | in the table of sizes is a word.
        let mut cells = row.split(" | ");
        let (name, default) = (cells.next().unwrap(), cells.next().unwrap());
        if cells.next().is_none() {
            continue;
        }
        let name = name.split(['`', ' ']).next().unwrap().to_owned();
        let twice = found.insert(name.clone(), default.to_owned());
        assert_eq!(twice, None, "--{name} is there twice");
    }
    found
}

#[test]
fn every_option_is_documented_with_its_default() {
    let documented = documented();
    let cli = Cli::command();
    let serve = cli.find_subcommand("serve").unwrap();
    let mut names = BTreeSet::new();
    for arg in serve.get_arguments().filter(|arg| !arg.is_hide_set()) {
        let Some(name) = arg.get_long().filter(|&name| name != "help") else {
            continue;
        };
        names.insert(name.to_owned());
        let Some(default) = documented.get(name) else {
            panic!("--{name} of umaserve serve is not in docs/operations.md");
        };
        let values: Vec<_> = arg
            .get_default_values()
            .iter()
            .filter(|value| !value.is_empty())
            .map(|value| format!("`{}`", value.to_string_lossy()))
            .collect();
        if arg.get_action().takes_values() && !values.is_empty() {
            assert_eq!(*default, values.join(", "), "default of --{name}");
        } else {
            // A default that depends on something else is told in words.
            let is_number = default.trim_matches('`').parse::<f64>().is_ok();
            assert!(
                !is_number,
                "--{name} has no fixed default, the text says {default}"
            );
        }
    }
    let unknown: Vec<&String> = documented.keys().filter(|n| !names.contains(*n)).collect();
    assert!(
        unknown.is_empty(),
        "no options of umaserve serve: {unknown:?}"
    );
}

/// The names of the metrics as they stand in the text for Prometheus, without the endings of
/// histograms.
fn counted() -> BTreeSet<String> {
    let metrics = Metrics::default();
    metrics.count_notice("STRUCTURE_CHANGED");
    metrics.count_auth_failure("wrong");
    metrics.count_refusal("sessions");
    metrics.add_busy(1, Duration::from_secs(1));
    let text = metrics.text();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let name = line.split(['{', ' ']).next().unwrap();
            let ends = ["_bucket", "_count", "_sum"];
            let base = ends.iter().find_map(|end| name.strip_suffix(end));
            base.unwrap_or(name).to_owned()
        })
        .collect()
}

/// Words of a text that look like names of metrics.
fn named(text: &str) -> BTreeSet<String> {
    text.match_indices("umaserve_")
        .filter(|(at, _)| {
            !text[..*at].ends_with(|c: char| c.is_alphanumeric() || "/_-".contains(c))
        })
        .map(|(at, _)| {
            let word = text[at..].split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let name = word.into_iter().next().unwrap();
            let ends = ["_bucket", "_count", "_sum"];
            let base = ends.iter().find_map(|end| name.strip_suffix(end));
            base.unwrap_or(name).to_owned()
        })
        .filter(|name| name != "umaserve_token")
        .collect()
}

#[test]
fn every_metric_is_documented_and_shown_by_the_dashboard() {
    let counted = counted();
    assert!(counted.len() > 20, "{counted:?}");
    assert_eq!(named(TEXT), counted);
    let shown = named(DASHBOARD);
    let unknown: Vec<_> = shown.difference(&counted).collect();
    assert!(unknown.is_empty(), "shown but not counted: {unknown:?}");
    let hidden: Vec<_> = counted.difference(&shown).map(String::as_str).collect();
    assert_eq!(
        hidden,
        [
            "umaserve_messages_received_bytes_total",
            "umaserve_recorded_frames"
        ]
    );
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() >= 12);
}
