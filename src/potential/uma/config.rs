//! What a UMA or eSEN checkpoint says the network is: sizes, options, datasets, tasks.
//!
//! A key that is missing from the file has the default of the reference implementation's
//! constructors (fairchem-core, class `eSCNMDMoeBackbone`), which is often not the value UMA uses.
//! Whatever this program cannot evaluate exactly is refused by name.

mod expected;
mod head;
mod read;
mod section;
mod tasks;

use std::collections::BTreeMap;
use std::ops::Range;

pub(super) use expected::is_rotation_table;
pub use expected::{MemoryEstimate, expected_tensors};

/// A checkpoint that is readable but describes a model outside of what is supported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{option} = {found} is not supported: {reason}")]
pub struct Unsupported {
    /// The option, as a dotted path of the configuration.
    pub option: String,
    /// Its value in the file.
    pub found: String,
    /// Why it is refused.
    pub reason: String,
}

/// Model generation; decides how the composition enters the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// Same network without a mixture of experts (eSEN).
    Esen,
    /// UMA 1.1: files that carry `model_version` 1.1 and no `model_id`.
    Uma1p1,
    /// Exactly "UMA-S-1.2", which averages the composition over one atom too many.
    Uma1p2,
    /// Any other tagged model ("UMA-S-1.2.1" and later).
    Newer,
}

impl Generation {
    /// Whether the composition mean counts an additional zero vector: sum/(N+1) for N atoms
    /// instead of sum/N. The released "UMA-S-1.2" was trained that way.
    pub fn composition_includes_self(self) -> bool {
        self == Generation::Uma1p2
    }
}

/// How total charge and spin multiplicity become vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChargeSpinEmbedding {
    /// `pos_emb`: sines and cosines of 2 pi x W.
    Positional,
    /// `lin_emb`: a linear map of the number.
    Linear,
    /// `rand_emb`: a table with one row per charge (-100 to 100) and spin (0 to 100).
    Table,
}

/// Equivariant normalisation of node features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// `rms_norm_sh`: one root mean square over all degrees, degree 0 centred.
    RmsNormSh,
}

/// Non-linearity of the edge convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `gate`: degrees above 0 are scaled by a logistic function of scalars.
    Gate,
}

/// Node-wise feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedForward {
    /// `spectral`: linear maps per degree with a gate.
    Spectral,
    /// `grid`: an MLP on every point of a grid on the sphere.
    Grid,
}

/// The energy head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Name of the head's MLP in the state dict: `output_heads.<name>.energy_block` or
    /// `output_heads.<name>.head.energy_block`; `.{0,2,4}.{weight|weights,bias}` follow.
    pub prefix: String,
    /// Expert matrices per layer when every dataset has its own (`weights`), `None` for one head
    /// shared by all (`weight`).
    pub experts: Option<usize>,
    /// Index of the expert of every dataset; empty without experts.
    pub expert_of: BTreeMap<String, usize>,
    /// Datasets the head answers for, sorted; empty when it does not say (every dataset).
    pub datasets: Vec<String>,
}

/// Scale and shift from network output to physical units: `output * rmsd + mean`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalizer {
    /// Shift, in the unit of the property.
    pub mean: f64,
    /// Scale, in the unit of the property.
    pub rmsd: f64,
}

/// What one dataset ("task" on the command line) predicts.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// Energy, eV.
    pub energy: Normalizer,
    /// Forces, eV/Angstrom; `None` if the file has no forces task for the dataset.
    pub forces: Option<Normalizer>,
    /// Stress, eV/Angstrom^3; `None` if the dataset was trained without stress.
    pub stress: Option<Normalizer>,
    /// Energy added per atom, eV, by atomic number (index 0 is no element); empty for none.
    pub element_references: Vec<f64>,
}

impl Task {
    /// Scale of forces: that of the energy unless the file has its own.
    pub fn forces_normalizer(&self) -> Normalizer {
        self.forces.unwrap_or(self.energy)
    }

    /// Atomic numbers with a reference energy: those of the structures that the task was trained
    /// with. Empty if the checkpoint has no references.
    pub fn elements(&self) -> Vec<usize> {
        let references = self.element_references.iter().enumerate().skip(1);
        let known = references.filter(|&(_, &energy)| energy != 0.0);
        known.map(|(z, _)| z).collect()
    }

    /// Scale of stress: that of the energy for datasets trained without stress, as the reference
    /// implementation does.
    pub fn stress_normalizer(&self) -> Normalizer {
        self.stress.unwrap_or(self.energy)
    }
}

/// The network and its tasks.
#[derive(Clone, Debug, PartialEq)]
pub struct UmaConfig {
    /// Name for people: the model id, or "UMA-1.1", or "eSEN".
    pub name: String,
    /// `model_id` of the file.
    pub model_id: Option<String>,
    /// Generation.
    pub generation: Generation,
    /// C: channels of a node feature.
    pub sphere_channels: usize,
    /// H: channels inside the edge convolution and the feed-forward network.
    pub hidden_channels: usize,
    /// A: channels of element embeddings and hidden layers of the radial networks.
    pub edge_channels: usize,
    /// L: largest degree of the spherical harmonics of a node.
    pub lmax: usize,
    /// M: largest order kept on an edge; at most `lmax`.
    pub mmax: usize,
    /// Message-passing blocks.
    pub num_layers: usize,
    /// Neighbours further away do not interact, Angstrom.
    pub cutoff: f64,
    /// Gaussians that expand a distance; at least 2.
    pub num_distance_basis: usize,
    /// Rows of the element tables: atomic numbers 1 to `max_num_elements - 1` are known.
    pub max_num_elements: usize,
    /// Neighbours kept per atom.
    pub max_neighbors: usize,
    /// Experts of the mixture; 0 for an ordinary network.
    pub num_experts: usize,
    /// Charge and spin embedding.
    pub charge_spin_embedding: ChargeSpinEmbedding,
    /// Dataset to the dataset whose embedding it uses.
    pub datasets: BTreeMap<String, String>,
    /// Whether the dataset enters the network.
    pub use_dataset_embedding: bool,
    /// Channels of degree 0 whose sum over atoms is set to the total charge.
    pub charge_balanced_channels: Range<usize>,
    /// Channels of degree 0 whose sum over atoms is set to the spin multiplicity minus one.
    pub spin_balanced_channels: Range<usize>,
    /// Whether the composition enters the router.
    pub use_composition_embedding: bool,
    /// Normalisation.
    pub norm: Norm,
    /// Activation.
    pub activation: Activation,
    /// Feed-forward network.
    pub feed_forward: FeedForward,
    /// Points of the grid of [`FeedForward::Grid`] when not the default.
    pub grid_resolution: Option<usize>,
    /// Energy head.
    pub head: Head,
    /// Whether the network itself answers for a lone atom without periodicity.
    pub supports_single_atoms: bool,
    /// Tasks by dataset.
    pub tasks: BTreeMap<String, Task>,
    /// Options of the file that this program does not know and that were ignored.
    pub ignored: Vec<String>,
}

impl UmaConfig {
    /// Whether the SO(2) convolutions are mixtures of experts.
    pub fn is_mixture(&self) -> bool {
        self.num_experts > 0
    }

    /// Rows of a node feature: (L+1)^2.
    pub fn node_rows(&self) -> usize {
        (self.lmax + 1) * (self.lmax + 1)
    }

    /// Atomic numbers with an embedding: `1..max_num_elements`.
    pub fn elements(&self) -> Range<usize> {
        1..self.max_num_elements
    }

    /// Dataset names a user may ask for: those with an energy task, sorted.
    pub fn task_names(&self) -> impl Iterator<Item = &str> {
        self.tasks.keys().map(String::as_str)
    }

    /// The elements of each task, see [`Task::elements`].
    pub fn trained_elements(&self) -> BTreeMap<String, Vec<usize>> {
        let each = self.tasks.iter();
        each.map(|(name, task)| (name.clone(), task.elements()))
            .collect()
    }
}
