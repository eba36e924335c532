//! Reads the output head of the model configuration.

use std::collections::{BTreeMap, BTreeSet};

use super::Head;
use super::section::{Read, Section, class_name, datasets, unsupported};
use crate::potential::uma::checkpoint::omegaconf::Config;

/// The one energy head.
pub(super) fn head(top: &mut Section<'_>) -> Read<Head> {
    let Some(heads) = top.get("heads")? else {
        return Err(top.config.error("key `heads` is missing").into());
    };
    let mut entries = heads.entries()?;
    // A head for directly predicted forces or stress says best why a model is refused.
    for (_, entry) in &entries {
        for key in ["module", "head_cls"] {
            if let Some(class) = entry.given(key)? {
                refuse_head_class(&class)?;
            }
        }
    }
    let (name, entry) = match entries.pop() {
        Some(entry) if entries.is_empty() => entry,
        _ => {
            return Err(unsupported(
                &heads,
                format!(
                    "there must be exactly one output head, found {}",
                    heads.keys()?.len()
                ),
            ));
        }
    };
    if name.is_empty() || name.contains('.') {
        return Err(heads
            .error(format!("{name:?} is not a name for a head"))
            .into());
    }
    let mut section = Section::new(entry)?;
    let Some(module) = section.get("module")? else {
        return Err(section.config.error("key `module` is missing").into());
    };
    section.known.extend(["wrap_property", "prefix"]);
    let wrapped = class_name(module.text()?).to_owned();
    let prefix = match wrapped.as_str() {
        "MLP_EFS_Head" => {
            refuse_mean(&mut section)?;
            return Ok(Head {
                prefix: format!("output_heads.{name}.energy_block"),
                experts: None,
                expert_of: BTreeMap::new(),
                datasets: Vec::new(),
            });
        }
        _ => format!("output_heads.{name}.head.energy_block"),
    };
    let Some(class) = section.get("head_cls")? else {
        return Err(section.config.error("key `head_cls` is missing").into());
    };
    refuse_head_class(&class)?;
    if class_name(class.text()?) != "MLP_EFS_Head" {
        return Err(unsupported(&class, "the inner head must be MLP_EFS_Head"));
    }
    if let Some(arguments) = section.get("head_kwargs")? {
        refuse_mean(&mut Section::new(arguments)?)?;
    }
    let mapping = datasets(&mut section, "dataset_names", true)?;
    let names = mapping.keys().cloned().collect();
    if wrapped == "DatasetSpecificSingleHeadWrapper" {
        return Ok(Head {
            prefix,
            experts: None,
            expert_of: BTreeMap::new(),
            datasets: names,
        });
    }
    // Expert of a dataset: alphabetical rank of its target among the distinct targets. Experts
    // stored: one per key.
    let targets: BTreeSet<&String> = mapping.values().collect();
    let expert_of = mapping
        .iter()
        .map(|(name, target)| (name.clone(), targets.range::<String, _>(..target).count()))
        .collect();
    Ok(Head {
        prefix,
        experts: Some(mapping.len()),
        expert_of,
        datasets: names,
    })
}

fn refuse_head_class(class: &Config<'_>) -> Read<()> {
    match class_name(class.text()?) {
        "MLP_EFS_Head" | "DatasetSpecificSingleHeadWrapper" | "DatasetSpecificMoEWrapper" => Ok(()),
        "Linear_Force_Head" | "MLP_Stress_Head" => Err(unsupported(
            class,
            "a head for directly predicted forces or stress",
        )),
        "MLP_Energy_Head" | "Linear_Energy_Head" => Err(unsupported(
            class,
            "an energy head of models with directly predicted forces",
        )),
        _ => Err(unsupported(
            class,
            "this program knows MLP_EFS_Head and its wrappers DatasetSpecificSingleHeadWrapper \
             and DatasetSpecificMoEWrapper",
        )),
    }
}

/// The energy of a system is the sum over its atoms.
fn refuse_mean(arguments: &mut Section<'_>) -> Read<()> {
    match arguments.get("reduce")? {
        Some(reduce) if reduce.text()? != "sum" => Err(unsupported(
            &reduce,
            "the energy must be the sum over atoms",
        )),
        _ => Ok(()),
    }
}
