//! Reads the task configuration: scales and element references per dataset.

use std::collections::BTreeMap;

use super::section::{Read, is_dataset_name, unsupported};
use super::{Normalizer, Task};
use crate::potential::uma::checkpoint::omegaconf::Config;

/// Longest accepted table of element references.
const MAX_REFERENCES: usize = 1 << 10;
/// Tasks and datasets of a file; published files have 17.
const MAX_TASKS: usize = 1 << 10;

/// What has been read for one dataset.
#[derive(Default)]
struct Draft {
    energy: Option<(Normalizer, Vec<f64>)>,
    forces: Option<Normalizer>,
    stress: Option<Normalizer>,
}

/// Tasks by dataset. Task names ("omol_energy", or plain "energy" in models of one dataset) play
/// no role: property and datasets say what a task is.
pub(super) fn read(tasks: &Config<'_>) -> Read<BTreeMap<String, Task>> {
    let entries = tasks.elements()?;
    if entries.len() > MAX_TASKS {
        return Err(tasks.error(format!("more than {MAX_TASKS} tasks")).into());
    }
    let mut drafts: BTreeMap<String, Draft> = BTreeMap::new();
    for entry in &entries {
        let property = entry.require("property")?.text()?;
        if !matches!(property, "energy" | "forces" | "stress") {
            // A Hessian or the like: nothing that a simulation asks for.
            continue;
        }
        let normalizer = normalizer(entry)?;
        let references = match property {
            "energy" => element_references(entry)?,
            _ => Vec::new(),
        };
        let datasets = entry.require("datasets")?;
        let names = datasets.texts()?;
        if names.len() > MAX_TASKS || drafts.len() > MAX_TASKS {
            return Err(tasks
                .error(format!("more than {MAX_TASKS} datasets"))
                .into());
        }
        for name in names {
            if !is_dataset_name(name) {
                return Err(datasets
                    .error(format!("{name:?} is not a name for a dataset"))
                    .into());
            }
            let draft = drafts.entry(name.to_owned()).or_default();
            let twice = match property {
                "energy" => draft
                    .energy
                    .replace((normalizer, references.clone()))
                    .is_some(),
                "forces" => draft.forces.replace(normalizer).is_some(),
                _ => draft.stress.replace(normalizer).is_some(),
            };
            if twice {
                return Err(entry
                    .error(format!("a second {property} task for dataset {name:?}"))
                    .into());
            }
        }
    }
    let mut read = BTreeMap::new();
    for (name, draft) in drafts {
        let Some((energy, element_references)) = draft.energy else {
            return Err(tasks
                .error(format!("dataset {name:?} has no energy task"))
                .into());
        };
        read.insert(
            name,
            Task {
                energy,
                forces: draft.forces,
                stress: draft.stress,
                element_references,
            },
        );
    }
    if read.is_empty() {
        return Err(tasks.error("no energy task").into());
    }
    Ok(read)
}

fn target<'p>(config: &Config<'p>) -> Read<Option<(Config<'p>, &'p str)>> {
    let Some(target) = config.given("_target_")? else {
        return Ok(None);
    };
    let path = target.text()?;
    Ok(Some((target, path.rsplit('.').next().unwrap_or(path))))
}

fn normalizer(task: &Config<'_>) -> Read<Normalizer> {
    let normalizer = task.require("normalizer")?;
    if let Some((config, class)) = target(&normalizer)?
        && class != "Normalizer"
    {
        return Err(unsupported(
            &config,
            "a normalizer must be given by its mean and rmsd",
        ));
    }
    let number = |key: &str, default: f64| -> Read<f64> {
        Ok(match normalizer.given(key)? {
            Some(value) => value.number()?,
            None => default,
        })
    };
    let mean = number("mean", 0.0)?;
    let rmsd = number("rmsd", 1.0)?;
    if rmsd <= 0.0 || rmsd > 1e6 || mean.abs() > 1e9 {
        return Err(normalizer
            .error(format!("mean {mean} and rmsd {rmsd} are no scale"))
            .into());
    }
    Ok(Normalizer { mean, rmsd })
}

fn element_references(task: &Config<'_>) -> Read<Vec<f64>> {
    let Some(config) = task.given("element_references")? else {
        return Ok(Vec::new());
    };
    if let Some((class, name)) = target(&config)?
        && name != "ElementReferences"
    {
        return Err(unsupported(
            &class,
            "element references must be given as a table in the file",
        ));
    }
    let mut table = config.require("element_references")?;
    let mut single = false;
    if table.is_mapping() {
        match target(&table)? {
            Some((_, "DoubleTensor")) => {}
            Some((_, "FloatTensor" | "tensor" | "Tensor")) => single = true,
            Some((class, _)) => {
                return Err(unsupported(&class, "a table must be a torch tensor"));
            }
            None => return Err(table.error("key `_target_` is missing").into()),
        }
        let arguments = table.require("_args_")?;
        table = arguments
            .elements()?
            .into_iter()
            .next()
            .ok_or_else(|| arguments.error("the list is empty"))?;
    }
    let values = table.elements()?;
    if values.len() > MAX_REFERENCES {
        return Err(table
            .error(format!("more than {MAX_REFERENCES} elements"))
            .into());
    }
    let mut references = Vec::with_capacity(values.len());
    for value in values {
        let value = value.number()?;
        // A table of single precision holds the rounded value.
        references.push(if single {
            f64::from(value as f32)
        } else {
            value
        });
    }
    Ok(references)
}
