//! Typed access to one mapping of the configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::Unsupported;
use crate::potential::uma::checkpoint::CheckpointError;
use crate::potential::uma::checkpoint::omegaconf::Config;

pub(super) type Read<T> = Result<T, CheckpointError>;

const MAX_DATASETS: usize = 256;

pub(super) fn unsupported(value: &Config<'_>, reason: impl Into<String>) -> CheckpointError {
    CheckpointError::Unsupported(Unsupported {
        option: value.path().to_owned(),
        found: value.describe(),
        reason: reason.into(),
    })
}

/// Last part of a dotted class path: classes moved between modules from release to release.
pub(super) fn class_name(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// Whether a string can be the name of a dataset: a part of the name of a tensor, and shown to
/// people.
pub(super) fn is_dataset_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && !name.contains(|c: char| c == '.' || c.is_control())
}

/// One mapping of the configuration and which of its keys have been read.
pub(super) struct Section<'p> {
    pub(super) config: Config<'p>,
    pub(super) known: BTreeSet<&'static str>,
}

impl<'p> Section<'p> {
    pub(super) fn new(config: Config<'p>) -> Read<Self> {
        if !config.is_mapping() {
            return Err(config
                .error(format!("expected a mapping, found {}", config.describe()))
                .into());
        }
        Ok(Self {
            config,
            known: BTreeSet::new(),
        })
    }

    pub(super) fn get(&mut self, key: &'static str) -> Read<Option<Config<'p>>> {
        self.known.insert(key);
        Ok(self.config.given(key)?)
    }

    pub(super) fn flag(&mut self, key: &'static str, default: bool) -> Read<bool> {
        Ok(match self.get(key)? {
            Some(value) => value.bool()?,
            None => default,
        })
    }

    pub(super) fn size(
        &mut self,
        key: &'static str,
        default: usize,
        allowed: Range<usize>,
    ) -> Read<usize> {
        self.known.insert(key);
        // `None` is no size: the reference implementation fails on it as well.
        let Some(value) = self.config.get(key)? else {
            return Ok(default);
        };
        let number = value.integer()?;
        match usize::try_from(number) {
            Ok(number) if allowed.contains(&number) => Ok(number),
            _ => Err(value
                .error(format!(
                    "{number} is outside of {} to {}",
                    allowed.start,
                    allowed.end - 1
                ))
                .into()),
        }
    }

    /// One of several words.
    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        default: T,
        words: &[(&str, T)],
    ) -> Read<T> {
        let Some(value) = self.get(key)? else {
            return Ok(default);
        };
        let word = value.text()?;
        match words.iter().find(|(w, _)| *w == word) {
            Some((_, choice)) => Ok(*choice),
            None => {
                let known: Vec<&str> = words.iter().map(|(w, _)| *w).collect();
                Err(unsupported(
                    &value,
                    format!("this program knows {}", known.join(", ")),
                ))
            }
        }
    }

    /// Channels given as a list of consecutive numbers below `channels`.
    pub(super) fn channels(&mut self, key: &'static str, channels: usize) -> Read<Range<usize>> {
        let Some(value) = self.get(key)? else {
            return Ok(0..0);
        };
        let mut numbers = Vec::new();
        for element in value.elements()? {
            let number = element.integer()?;
            match usize::try_from(number) {
                Ok(number) if number < channels => numbers.push(number),
                _ => {
                    return Err(element
                        .error(format!("channel {number} is not one of {channels}"))
                        .into());
                }
            }
        }
        numbers.sort_unstable();
        let Some(&first) = numbers.first() else {
            return Ok(0..0);
        };
        if numbers.iter().enumerate().any(|(i, &n)| n != first + i) {
            return Err(value
                .error(format!("the channels {numbers:?} are not consecutive"))
                .into());
        }
        Ok(first..first + numbers.len())
    }

    /// Keys that nobody asked for.
    pub(super) fn ignored(&self, also_known: &[&str]) -> Read<Vec<String>> {
        let mut ignored = Vec::new();
        for key in self.config.keys()? {
            if !self.known.contains(key) && !also_known.contains(&key) {
                // Escaped, because it is shown to people.
                ignored.push(format!("{}.{}", self.config.path(), key.escape_debug()));
            }
        }
        Ok(ignored)
    }
}

/// A dataset mapping, given as a mapping or (older files) as a list of names.
pub(super) fn datasets(
    section: &mut Section<'_>,
    list_key: &'static str,
    required: bool,
) -> Read<BTreeMap<String, String>> {
    let list = section.get(list_key)?;
    let mapping = section.get("dataset_mapping")?;
    let mut datasets = BTreeMap::new();
    match (list, mapping) {
        (Some(_), Some(mapping)) => {
            return Err(mapping
                .error(format!("given together with `{list_key}`"))
                .into());
        }
        (Some(list), None) => {
            for name in list.texts()? {
                datasets.insert(name.to_owned(), name.to_owned());
            }
        }
        (None, Some(mapping)) => {
            for (name, target) in mapping.entries()? {
                datasets.insert(name.to_owned(), target.text()?.to_owned());
            }
            if let Some(target) = datasets.values().find(|t| !datasets.contains_key(*t)) {
                return Err(mapping
                    .error(format!("{target:?} is not itself a dataset of the mapping"))
                    .into());
            }
        }
        (None, None) if !required => {}
        (None, None) => {
            return Err(section
                .config
                .error(format!(
                    "neither `dataset_mapping` nor `{list_key}` is given"
                ))
                .into());
        }
    }
    if required && datasets.is_empty() {
        return Err(section.config.error("the list of datasets is empty").into());
    }
    if datasets.len() > MAX_DATASETS {
        return Err(section
            .config
            .error(format!("more than {MAX_DATASETS} datasets"))
            .into());
    }
    for name in datasets.keys() {
        if !is_dataset_name(name) {
            return Err(section
                .config
                .error(format!("{name:?} is not a name for a dataset"))
                .into());
        }
    }
    Ok(datasets)
}
