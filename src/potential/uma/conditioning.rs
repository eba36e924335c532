//! What UMA derives from composition, charge, spin and task before it looks at any position: the
//! conditioning vector and the coefficients of the experts.

use super::checkpoint::Checkpoint;
use super::config::{ChargeSpinEmbedding, UmaConfig};
use crate::backend::Conditioning;
use crate::system::System;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

/// The small dense networks that make a [`Conditioning`], in double precision.
pub struct Conditioner {
    config: UmaConfig,
    charge: Embedding,
    spin: Embedding,
    datasets: BTreeMap<String, Vec<f64>>,
    mix: Dense,
    composition: Vec<f64>,
    router: Vec<Dense>,
    /// What was worked out before, by key.
    known: Mutex<HashMap<String, Arc<Conditioning>>>,
}

/// Conditionings remembered: a few kB each.
const MAX_KNOWN: usize = 4096;

struct Dense {
    weight: Vec<f64>,
    bias: Vec<f64>,
}

impl Dense {
    fn read(checkpoint: &Checkpoint, name: &str) -> Dense {
        Dense {
            weight: numbers(checkpoint, &format!("{name}.weight")),
            bias: numbers(checkpoint, &format!("{name}.bias")),
        }
    }

    /// SiLU(W x + b)
    fn silu(&self, x: &[f64]) -> Vec<f64> {
        let rows = self.weight.chunks_exact(x.len()).zip(&self.bias);
        rows.map(|(w, b)| {
            let y: f64 = w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>() + b;
            y / (1.0 + (-y).exp())
        })
        .collect()
    }
}

/// Charge or spin to a vector.
enum Embedding {
    /// One row per value; the first row is that of the offset.
    Table { rows: Vec<f64>, offset: i32 },
    /// W x + b
    Linear(Dense),
    /// \[sin 2 pi x W, cos 2 pi x W\]
    Positional(Vec<f64>),
}

impl Embedding {
    fn read(checkpoint: &Checkpoint, name: &str, offset: i32) -> Embedding {
        match checkpoint.config.charge_spin_embedding {
            ChargeSpinEmbedding::Table => Embedding::Table {
                rows: numbers(checkpoint, &format!("{name}.rand_emb.weight")),
                offset,
            },
            ChargeSpinEmbedding::Linear => {
                Embedding::Linear(Dense::read(checkpoint, &format!("{name}.lin_emb")))
            }
            ChargeSpinEmbedding::Positional => {
                Embedding::Positional(numbers(checkpoint, &format!("{name}.W")))
            }
        }
    }

    /// `null_spin`: the value is a spin multiplicity of 0, "not given".
    fn embed(&self, value: i32, channels: usize, null_spin: bool) -> Vec<f64> {
        match self {
            Embedding::Table { rows, offset } => {
                rows[(value + offset) as usize * channels..][..channels].to_vec()
            }
            Embedding::Linear(dense) => {
                let x = if null_spin { -100.0 } else { f64::from(value) };
                dense
                    .weight
                    .iter()
                    .zip(&dense.bias)
                    .map(|(w, b)| w * x + b)
                    .collect()
            }
            Embedding::Positional(w) => {
                if null_spin {
                    return vec![0.0; channels];
                }
                let phase = w
                    .iter()
                    .map(|w| 2.0 * std::f64::consts::PI * f64::from(value) * w);
                phase
                    .clone()
                    .map(f64::sin)
                    .chain(phase.map(f64::cos))
                    .collect()
            }
        }
    }
}

fn numbers(checkpoint: &Checkpoint, name: &str) -> Vec<f64> {
    checkpoint
        .tensors
        .get(name)
        .map(|t| t.to_vec())
        .unwrap_or_default()
}

/// Atoms of each element, sorted.
fn composition(system: &System) -> BTreeMap<u8, usize> {
    let mut counts = BTreeMap::new();
    for &z in &system.numbers {
        *counts.entry(z).or_insert(0) += 1;
    }
    counts
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 {
        a
    } else {
        greatest_common_divisor(b, a % b)
    }
}

impl Conditioner {
    /// Reads the networks. The checkpoint has been checked to hold everything its configuration
    /// implies.
    pub fn new(checkpoint: &Checkpoint) -> Conditioner {
        let config = checkpoint.config.clone();
        let datasets = if config.use_dataset_embedding {
            config
                .datasets
                .iter()
                .map(|(name, shared)| {
                    let name_of =
                        format!("backbone.dataset_embedding.dataset_emb_dict.{shared}.weight");
                    (name.clone(), numbers(checkpoint, &name_of))
                })
                .collect()
        } else {
            BTreeMap::new()
        };
        let router = if config.is_mixture() {
            [0, 2, 4]
                .map(|i| Dense::read(checkpoint, &format!("backbone.routing_mlp.{i}")))
                .into()
        } else {
            vec![]
        };
        Conditioner {
            charge: Embedding::read(checkpoint, "backbone.charge_embedding", 100),
            spin: Embedding::read(checkpoint, "backbone.spin_embedding", 0),
            mix: Dense::read(checkpoint, "backbone.mix_csd"),
            composition: numbers(checkpoint, "backbone.composition_embedding.weight"),
            datasets,
            router,
            config,
            known: Mutex::new(HashMap::new()),
        }
    }

    /// The conditioning of a system whose task, charge, spin and elements have been checked.
    pub fn conditioning(&self, system: &System) -> Arc<Conditioning> {
        let mut counts = composition(system);
        if !self.config.generation.composition_includes_self() {
            // Only fractions matter: a supercell shares the weights of its cell, to the bit.
            let divisor = counts
                .values()
                .fold(0, |a, &b| greatest_common_divisor(a, b))
                .max(1);
            counts.values_mut().for_each(|n| *n /= divisor);
        }
        let atoms: Vec<String> = counts.iter().map(|(z, n)| format!("{z}:{n}")).collect();
        let key = format!(
            "{}|{}|{}|{}",
            atoms.join(","),
            system.charge,
            system.spin,
            system.task
        );
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known().get(&key) {
            return found.clone();
        }
        let made = Arc::new(self.work_out(key.clone(), &counts, system));
        let mut known = known();
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(key, made.clone());
        made
    }

    fn work_out(&self, key: String, counts: &BTreeMap<u8, usize>, system: &System) -> Conditioning {
        let c = self.config.sphere_channels;
        let includes_self = self.config.generation.composition_includes_self();
        let mut csd = self.charge.embed(system.charge, c, false);
        csd.extend(self.spin.embed(system.spin, c, system.spin == 0));
        if let Some(dataset) = self.datasets.get(&system.task) {
            csd.extend(dataset);
        }
        let vector = self.mix.silu(&csd);

        let experts = if self.router.is_empty() {
            vec![]
        } else {
            let mut x = Vec::new();
            if self.config.use_composition_embedding {
                let atoms: usize = counts.values().sum::<usize>() + usize::from(includes_self);
                x = vec![0.0; c];
                for (&z, &n) in counts {
                    let row = &self.composition[usize::from(z) * c..][..c];
                    for (x, e) in x.iter_mut().zip(row) {
                        *x += n as f64 / atoms as f64 * e;
                    }
                }
            }
            x.extend(&vector);
            for layer in &self.router {
                x = layer.silu(&x);
            }
            softmax_with_offset(&x)
        };
        Conditioning {
            key,
            vector,
            experts,
            task_index: self
                .config
                .head
                .expert_of
                .get(&system.task)
                .copied()
                .unwrap_or(0),
            charge: f64::from(system.charge),
            unpaired_electrons: f64::from(system.spin - 1),
        }
    }
}

/// softmax(x) + 0.005, not normalised again: so were the models trained.
fn softmax_with_offset(x: &[f64]) -> Vec<f64> {
    let largest = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = x.iter().map(|x| (x - largest).exp()).collect();
    let total: f64 = e.iter().sum();
    e.iter().map(|e| e / total + 0.005).collect()
}
