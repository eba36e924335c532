//! Names and shapes of the tensors that a configuration implies, and what they cost.

use std::collections::BTreeMap;

use super::{ChargeSpinEmbedding, FeedForward, UmaConfig};

/// Charges -100 to 100.
const CHARGES: usize = 201;
/// Spin multiplicities 0 (unknown) to 100.
const SPINS: usize = 101;

/// Collects names under a prefix.
struct Shapes<'c> {
    config: &'c UmaConfig,
    shapes: BTreeMap<String, Vec<usize>>,
}

impl Shapes<'_> {
    fn add(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.shapes.insert(name.into(), shape.to_vec());
    }

    fn linear(&mut self, name: &str, out: usize, input: usize) {
        self.add(format!("{name}.weight"), &[out, input]);
        self.add(format!("{name}.bias"), &[out]);
    }

    /// A linear map of an SO(2) convolution: one matrix per expert in a mixture.
    fn expert_linear(&mut self, name: &str, out: usize, input: usize, bias: bool) {
        match self.config.num_experts {
            0 => self.add(format!("{name}.weight"), &[out, input]),
            experts => self.add(format!("{name}.weights"), &[experts, out, input]),
        }
        if bias {
            self.add(format!("{name}.bias"), &[out]);
        }
    }

    /// Linear, LayerNorm, SiLU, Linear, LayerNorm, SiLU, Linear.
    fn radial(&mut self, name: &str, out: usize) {
        let a = self.config.edge_channels;
        let net = format!("{name}.rad_func.net");
        self.linear(
            &format!("{net}.0"),
            a,
            self.config.num_distance_basis + 2 * a,
        );
        self.linear(&format!("{net}.3"), a, a);
        self.linear(&format!("{net}.6"), out, a);
        for norm in ["1", "4"] {
            self.add(format!("{net}.{norm}.weight"), &[a]);
            self.add(format!("{net}.{norm}.bias"), &[a]);
        }
    }

    fn norm(&mut self, name: &str) {
        let (l, c) = (self.config.lmax, self.config.sphere_channels);
        self.add(format!("{name}.affine_weight"), &[l + 1, c]);
        self.add(format!("{name}.affine_bias"), &[c]);
    }

    fn charge_or_spin(&mut self, name: &str, rows: usize) {
        let c = self.config.sphere_channels;
        match self.config.charge_spin_embedding {
            ChargeSpinEmbedding::Table => {
                self.add(format!("{name}.rand_emb.weight"), &[rows, c]);
            }
            ChargeSpinEmbedding::Linear => self.linear(&format!("{name}.lin_emb"), c, 1),
            ChargeSpinEmbedding::Positional => self.add(format!("{name}.W"), &[c / 2]),
        }
    }

    fn embeddings(&mut self) {
        let config = self.config;
        let (c, elements) = (config.sphere_channels, config.max_num_elements);
        for l in 0..=config.lmax {
            self.add(format!("backbone.Jd_{l}"), &[2 * l + 1, 2 * l + 1]);
        }
        self.add("backbone.sphere_embedding.weight", &[elements, c]);
        self.charge_or_spin("backbone.charge_embedding", CHARGES);
        self.charge_or_spin("backbone.spin_embedding", SPINS);
        let mut parts = 2;
        if config.use_dataset_embedding {
            parts = 3;
            for name in config.datasets.keys() {
                self.add(
                    format!("backbone.dataset_embedding.dataset_emb_dict.{name}.weight"),
                    &[1, c],
                );
            }
        }
        self.linear("backbone.mix_csd", c, parts * c);
        for side in ["source", "target"] {
            self.add(
                format!("backbone.{side}_embedding.weight"),
                &[elements, config.edge_channels],
            );
        }
        self.radial("backbone.edge_degree_embedding", (config.lmax + 1) * c);
        self.norm("backbone.norm");
        if config.is_mixture() {
            let experts = config.num_experts;
            let input = if config.use_composition_embedding {
                self.add("backbone.composition_embedding.weight", &[elements, c]);
                2 * c
            } else {
                c
            };
            self.linear("backbone.routing_mlp.0", 2 * experts, input);
            self.linear("backbone.routing_mlp.2", 2 * experts, 2 * experts);
            self.linear("backbone.routing_mlp.4", experts, 2 * experts);
        }
    }

    fn block(&mut self, index: usize) {
        let config = self.config;
        let (c, h) = (config.sphere_channels, config.hidden_channels);
        let (l, m) = (config.lmax, config.mmax);
        let block = format!("backbone.blocks.{index}");
        self.norm(&format!("{block}.norm_1"));
        self.norm(&format!("{block}.norm_2"));

        let conv = format!("{block}.edge_wise.so2_conv_1");
        // Gate scalars come on top of the hidden rows of order 0.
        self.expert_linear(
            &format!("{conv}.fc_m0"),
            (l + 1) * h + l * h,
            (l + 1) * 2 * c,
            true,
        );
        let mut radial = (l + 1) * 2 * c;
        for order in 1..=m {
            let degrees = l - order + 1;
            self.expert_linear(
                &format!("{conv}.so2_m_conv.{}.fc", order - 1),
                2 * degrees * h,
                degrees * 2 * c,
                false,
            );
            radial += degrees * 2 * c;
        }
        self.radial(&conv, radial);

        let conv = format!("{block}.edge_wise.so2_conv_2");
        self.expert_linear(&format!("{conv}.fc_m0"), (l + 1) * c, (l + 1) * h, true);
        for order in 1..=m {
            let degrees = l - order + 1;
            self.expert_linear(
                &format!("{conv}.so2_m_conv.{}.fc", order - 1),
                2 * degrees * c,
                degrees * h,
                false,
            );
        }

        let atoms = format!("{block}.atom_wise");
        match config.feed_forward {
            FeedForward::Spectral => {
                self.linear(&format!("{atoms}.scalar_mlp.0"), l * h, c);
                self.add(format!("{atoms}.so3_linear_1.weight"), &[l + 1, h, c]);
                self.add(format!("{atoms}.so3_linear_1.bias"), &[h]);
                self.add(format!("{atoms}.so3_linear_2.weight"), &[l + 1, c, h]);
                self.add(format!("{atoms}.so3_linear_2.bias"), &[c]);
            }
            FeedForward::Grid => {
                self.add(format!("{atoms}.grid_mlp.0.weight"), &[h, c]);
                self.add(format!("{atoms}.grid_mlp.2.weight"), &[h, h]);
                self.add(format!("{atoms}.grid_mlp.4.weight"), &[c, h]);
            }
        }
    }

    fn head(&mut self) {
        let (c, h) = (self.config.sphere_channels, self.config.hidden_channels);
        let head = &self.config.head;
        for (layer, out, input) in [("0", h, c), ("2", h, h), ("4", 1, h)] {
            let name = format!("{}.{layer}", head.prefix);
            match head.experts {
                Some(experts) => self.add(format!("{name}.weights"), &[experts, out, input]),
                None => self.add(format!("{name}.weight"), &[out, input]),
            }
            self.add(format!("{name}.bias"), &[out]);
        }
    }
}

/// Name and shape of every tensor of the state dict (without `module.`) that a network of this
/// configuration has. The rotation tables `backbone.Jd_*` are among them; they are buffers, not
/// parameters.
pub fn expected_tensors(config: &UmaConfig) -> BTreeMap<String, Vec<usize>> {
    let mut shapes = Shapes {
        config,
        shapes: BTreeMap::new(),
    };
    shapes.embeddings();
    for index in 0..config.num_layers {
        shapes.block(index);
    }
    shapes.head();
    shapes.shapes
}

/// Whether a tensor is a rotation table rather than a parameter.
pub(crate) fn is_rotation_table(name: &str) -> bool {
    name.starts_with("backbone.Jd_")
}

/// What the weights of a model cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// The weights as they lie in the file: resident while they are mapped and in use, bytes.
    pub stored_bytes: usize,
    /// The weights that one evaluation uses, experts merged, in single precision: held once per
    /// (composition, charge, spin, task) in use, bytes.
    pub merged_bytes: usize,
}

impl UmaConfig {
    /// Numbers in all parameters, experts included.
    pub fn parameters_total(&self) -> usize {
        expected_tensors(self)
            .iter()
            .filter(|(name, _)| !is_rotation_table(name))
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum()
    }

    /// Numbers in the parameters that take part in one evaluation: experts merged into one, the
    /// router and its composition table done with.
    pub fn parameters_active(&self) -> usize {
        expected_tensors(self)
            .iter()
            .filter(|(name, _)| {
                !is_rotation_table(name)
                    && !name.starts_with("backbone.routing_mlp.")
                    && !name.starts_with("backbone.composition_embedding.")
            })
            .map(|(name, shape)| {
                let kept = if name.ends_with(".weights") { 1 } else { 0 };
                shape[kept..].iter().product::<usize>()
            })
            .sum()
    }
}
