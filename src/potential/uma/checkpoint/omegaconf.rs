//! Configuration values inside the pickle graph: plain dicts and lists, or OmegaConf objects.
//!
//! Official checkpoints mix both: mappings became dicts when the training checkpoint was
//! converted, lists stayed `ListConfig` objects with `DictConfig` and `AnyNode` inside, each with a
//! `_parent` link up to the whole training configuration. A [`Config`] is a cursor into that graph
//! that sees through the OmegaConf objects (`_content` of containers, `_val` of scalars; metadata
//! and parents are ignored). Nothing is expanded, so cycles and shared parts cost nothing; how deep
//! a configuration is read is decided by the code that reads it.

use std::fmt;

use super::archive::short;
use super::pickle::{Pickle, Value};

/// Longest mapping that is searched for a key: bounds the work on a hostile file.
const MAX_KEYS: usize = 4096;
/// Longest list that is read as configuration.
const MAX_ELEMENTS: usize = 4096;
/// OmegaConf objects around one value, parents up to the root.
const MAX_DEPTH: usize = 64;
/// Interpolations that one value may lead to, all together.
const MAX_INTERPOLATIONS: usize = 16;

/// A configuration value that is missing or not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct ConfigError {
    /// Where, as a dotted path ("model_config.backbone.lmax").
    pub path: String,
    /// What is wrong.
    pub problem: String,
}

/// A value of the configuration and where it stands.
#[derive(Clone)]
pub struct Config<'p> {
    pickle: &'p Pickle<'p>,
    value: Value,
    path: String,
}

impl fmt::Debug for Config<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.pickle.describe(self.value))
    }
}

type Read<T> = Result<T, ConfigError>;

impl<'p> Config<'p> {
    /// The value at `value`, called `path` in errors.
    pub fn new(pickle: &'p Pickle<'p>, value: Value, path: impl Into<String>) -> Read<Self> {
        let path = path.into();
        match peel(pickle, value, &mut 0) {
            Ok(value) => Ok(Self {
                pickle,
                value,
                path,
            }),
            Err(problem) => Err(ConfigError { path, problem }),
        }
    }

    /// Where this value stands.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What this value is, for messages.
    pub fn describe(&self) -> String {
        self.pickle.describe(self.value)
    }

    /// An error about this value.
    pub fn error(&self, problem: impl Into<String>) -> ConfigError {
        ConfigError {
            path: self.path.clone(),
            problem: problem.into(),
        }
    }

    fn expected<T>(&self, what: &str) -> Read<T> {
        Err(self.error(format!("expected {what}, found {}", self.describe())))
    }

    /// Whether this is `None`.
    pub fn is_null(&self) -> bool {
        self.value == Value::None
    }

    /// Whether this is a mapping.
    pub fn is_mapping(&self) -> bool {
        self.pickle.dict(self.value).is_some()
    }

    /// The value of a key of this mapping, `None` when there is no such key.
    pub fn get(&self, key: &str) -> Read<Option<Config<'p>>> {
        let Some(pairs) = self.pickle.dict(self.value) else {
            return self.expected("a mapping");
        };
        match lookup(self.pickle, pairs, key) {
            Ok(Some(value)) => Config::new(self.pickle, value, self.child(key)).map(Some),
            Ok(None) => Ok(None),
            Err(problem) => Err(self.error(problem)),
        }
    }

    /// The value of a key that must be there.
    pub fn require(&self, key: &str) -> Read<Config<'p>> {
        self.get(key)?
            .ok_or_else(|| self.error(format!("key `{key}` is missing")))
    }

    /// The value of a key, `None` when the key is missing or its value is `None`.
    pub fn given(&self, key: &str) -> Read<Option<Config<'p>>> {
        Ok(self.get(key)?.filter(|value| !value.is_null()))
    }

    /// Keys and values of this mapping; of a key assigned twice the last value.
    pub fn entries(&self) -> Read<Vec<(&'p str, Config<'p>)>> {
        let Some(pairs) = self.pickle.dict(self.value) else {
            return self.expected("a mapping");
        };
        if pairs.len() > MAX_KEYS {
            return Err(self.error(format!("a mapping of more than {MAX_KEYS} keys")));
        }
        self.spend(pairs.len())?;
        let mut entries: Vec<(&'p str, Config<'p>)> = Vec::with_capacity(pairs.len());
        let mut place = std::collections::HashMap::with_capacity(pairs.len());
        for &(key, value) in pairs {
            let key = key_text(self.pickle, key)
                .ok_or_else(|| self.error("a key that is not a short string"))?;
            let value = Config::new(self.pickle, value, self.child(key))?;
            match place.insert(key, entries.len()) {
                Some(earlier) => {
                    entries[earlier].1 = value;
                    place.insert(key, earlier);
                }
                None => entries.push((key, value)),
            }
        }
        Ok(entries)
    }

    /// Keys of this mapping.
    pub fn keys(&self) -> Read<Vec<&'p str>> {
        let Some(pairs) = self.pickle.dict(self.value) else {
            return self.expected("a mapping");
        };
        if pairs.len() > MAX_KEYS {
            return Err(self.error(format!("a mapping of more than {MAX_KEYS} keys")));
        }
        self.spend(pairs.len())?;
        pairs
            .iter()
            .map(|&(key, _)| {
                key_text(self.pickle, key)
                    .ok_or_else(|| self.error("a key that is not a short string"))
            })
            .collect()
    }

    /// Elements of this list or tuple.
    pub fn elements(&self) -> Read<Vec<Config<'p>>> {
        let Some(items) = self.pickle.sequence(self.value) else {
            return self.expected("a list");
        };
        if items.len() > MAX_ELEMENTS {
            return Err(self.error(format!("a list of more than {MAX_ELEMENTS} elements")));
        }
        self.spend(items.len())?;
        items
            .iter()
            .enumerate()
            .map(|(i, &item)| Config::new(self.pickle, item, format!("{}[{i}]", self.path)))
            .collect()
    }

    /// Whether this is a list or a tuple.
    pub fn is_list(&self) -> bool {
        self.pickle.sequence(self.value).is_some()
    }

    /// This string.
    pub fn text(&self) -> Read<&'p str> {
        match self.pickle.text(self.value) {
            Some(text) if text.len() <= MAX_KEYS => Ok(text),
            _ => self.expected("a short string"),
        }
    }

    /// This truth value.
    pub fn bool(&self) -> Read<bool> {
        match self.value {
            Value::Bool(b) => Ok(b),
            _ => self.expected("True or False"),
        }
    }

    /// This integer.
    pub fn integer(&self) -> Read<i64> {
        match self.value {
            Value::Int(i) => Ok(i),
            // A sweep may have written 4.0 for 4.
            Value::Float(f) if f.fract() == 0.0 && f.abs() < 1e15 => Ok(f as i64),
            _ => self.expected("an integer"),
        }
    }

    /// This number, finite.
    pub fn number(&self) -> Read<f64> {
        match self.value {
            Value::Int(i) => Ok(i as f64),
            Value::Float(f) if f.is_finite() => Ok(f),
            _ => self.expected("a finite number"),
        }
    }

    /// These strings.
    pub fn texts(&self) -> Read<Vec<&'p str>> {
        self.elements()?.iter().map(Config::text).collect()
    }

    fn spend(&self, steps: usize) -> Read<()> {
        self.pickle
            .spend(steps)
            .map_err(|problem| self.error(problem))
    }

    fn child(&self, key: &str) -> String {
        format!("{}.{}", self.path, short(key))
    }
}

fn key_text<'p>(pickle: &'p Pickle<'p>, key: Value) -> Option<&'p str> {
    pickle.text(key).filter(|text| text.len() <= 512)
}

/// The last assignment of `key`, as a dict would keep it.
fn lookup(
    pickle: &Pickle<'_>,
    pairs: &[(Value, Value)],
    key: &str,
) -> Result<Option<Value>, String> {
    if pairs.len() > MAX_KEYS {
        return Err(format!("a mapping of more than {MAX_KEYS} keys"));
    }
    pickle.spend(pairs.len())?;
    Ok(pairs
        .iter()
        .rev()
        .find(|(k, _)| pickle.text(*k) == Some(key))
        .map(|&(_, value)| value))
}

/// State of an OmegaConf object.
fn omegaconf_state<'p>(pickle: &'p Pickle<'p>, value: Value) -> Option<&'p [(Value, Value)]> {
    let ((module, _), _, state) = pickle.object(value)?;
    if module != "omegaconf" && !module.starts_with("omegaconf.") {
        return None;
    }
    pickle.dict(state)
}

/// The plain value behind OmegaConf objects and interpolations.
fn peel(
    pickle: &Pickle<'_>,
    mut value: Value,
    interpolations: &mut usize,
) -> Result<Value, String> {
    let mut owner = None;
    for _ in 0..MAX_DEPTH {
        if let Some(state) = omegaconf_state(pickle, value) {
            owner = Some(value);
            value = match (
                lookup(pickle, state, "_content")?,
                lookup(pickle, state, "_val")?,
            ) {
                (Some(content), _) => content,
                (None, Some(scalar)) => scalar,
                (None, None) => return Err(format!("{} has no value", pickle.describe(value))),
            };
            continue;
        }
        let Some(text) = pickle.text(value) else {
            return Ok(value);
        };
        if text == "???" {
            return Err("a mandatory value that was never given (`???`)".to_owned());
        }
        if !text.contains("${") {
            return Ok(value);
        }
        return interpolate(pickle, owner, text, interpolations);
    }
    Err(format!("more than {MAX_DEPTH} nested OmegaConf objects"))
}

/// The value of an interpolation `${a.b}`, looked up from the root of the tree that holds it.
fn interpolate(
    pickle: &Pickle<'_>,
    owner: Option<Value>,
    text: &str,
    interpolations: &mut usize,
) -> Result<Value, String> {
    let refuse = |why: &str| Err(format!("interpolation {:?}: {why}", short(text)));
    // The count bounds the recursion and, because it is shared, the whole tree of it.
    *interpolations += 1;
    if *interpolations > MAX_INTERPOLATIONS {
        return refuse("it leads to too many others");
    }
    let Some(key) = text.strip_prefix("${").and_then(|t| t.strip_suffix('}')) else {
        return refuse("only a whole value may be an interpolation");
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.' || c == '-';
    if key.is_empty() || key.starts_with('.') || !key.chars().all(plain) {
        return refuse("only absolute keys are supported");
    }
    let Some(mut node) = owner else {
        return refuse("the configuration it refers to is not in the file");
    };
    let mut hops = 0;
    while let Some(state) = omegaconf_state(pickle, node) {
        match lookup(pickle, state, "_parent")? {
            Some(parent) if parent != Value::None => node = parent,
            _ => break,
        }
        hops += 1;
        if hops > MAX_DEPTH {
            return refuse("its tree is too deep");
        }
    }
    for part in key.split('.') {
        pickle.spend(1)?;
        let container = peel(pickle, node, interpolations)?;
        let next = match (pickle.dict(container), pickle.sequence(container)) {
            (Some(pairs), _) => lookup(pickle, pairs, part)?,
            (_, Some(items)) => part.parse().ok().and_then(|i: usize| items.get(i).copied()),
            _ => None,
        };
        match next {
            Some(next) => node = next,
            None => return refuse("there is no such key"),
        }
    }
    peel(pickle, node, interpolations)
}
