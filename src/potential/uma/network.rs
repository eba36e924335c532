//! The UMA network as a program: the only description of its layers.

use super::config::UmaConfig;
use crate::nn::program::Scope;
use crate::nn::{BalanceTarget, Buf, Builder, Program};
use crate::so3::Layout;

/// Constant factor of the edge-degree embedding in all UMA models.
const EDGE_DEGREE_SCALE: f64 = 1.0 / 5.0;

struct Network<'a> {
    config: &'a UmaConfig,
    backbone: Scope,
}

/// Builds the network of a checkpoint.
pub fn program(config: &UmaConfig) -> Program {
    let layout = Layout::new(config.lmax, config.mmax);
    let mut b = Builder::new(
        layout,
        config.sphere_channels,
        config.cutoff,
        config.num_distance_basis,
    );
    let network = Network {
        config,
        backbone: Scope::new("backbone"),
    };

    let x = b.embed_atoms(
        &network.backbone.at("sphere_embedding"),
        config.max_num_elements,
    );
    let width = (config.lmax + 1) * config.sphere_channels;
    let radial = network.radial(&mut b, &network.backbone.at("edge_degree_embedding"), width);
    let mut x = b.scatter_radial(radial, x, EDGE_DEGREE_SCALE);
    for i in 0..config.num_layers {
        b.section(format!("block.{i}"));
        x = network.block(&mut b, &network.backbone.at("blocks").at(i), x);
    }
    b.section("head");
    let x = b.rms_norm("norm", &network.backbone.at("norm"), x, false);
    let energy = network.head(&mut b, x);
    b.finish(energy)
}

impl Network<'_> {
    fn block(&self, b: &mut Builder, w: &Scope, x: Buf) -> Buf {
        let (c, h) = (self.config.sphere_channels, self.config.hidden_channels);
        let mixed = self.config.is_mixture();

        let y = b.rms_norm("norm_1", &w.at("norm_1"), x, true);
        let conv_1 = w.at("edge_wise").at("so2_conv_1");
        let conv_2 = w.at("edge_wise").at("so2_conv_2");
        let width = Layout::new(self.config.lmax, self.config.mmax).radial_width(2 * c);
        let radial = self.radial(b, &conv_1, width);
        let m = b.gather_rotate_scale(y, radial);
        let m = b.so2_linear(
            "conv_1",
            &conv_1,
            m,
            (2 * c, h),
            self.config.lmax * h,
            mixed,
        );
        let m = b.gate_edges(m, h);
        let m = b.so2_linear("conv_2", &conv_2, m, (h, c), 0, mixed);
        let x = b.rotate_scatter(m, x);

        let y = b.rms_norm("norm_2", &w.at("norm_2"), x, false);
        let ff = w.at("atom_wise");
        let gates = b.linear(
            "gates",
            &ff.at("scalar_mlp").at(0),
            y,
            (c, self.config.lmax * h),
            false,
            true,
        );
        let y = b.so3_linear("feed_forward", &ff.at("so3_linear_1"), y, (c, h), None);
        let y = b.gate_atoms(y, gates, h);
        let mut x = b.so3_linear("after_atoms", &ff.at("so3_linear_2"), y, (h, c), Some(x));

        for (channels, target) in [
            (&self.config.charge_balanced_channels, BalanceTarget::Charge),
            (
                &self.config.spin_balanced_channels,
                BalanceTarget::UnpairedElectrons,
            ),
        ] {
            if !channels.is_empty() {
                x = b.balance(x, channels.clone(), target);
            }
        }
        x
    }

    fn radial(&self, b: &mut Builder, w: &Scope, width: usize) -> Buf {
        let embeddings = (
            self.backbone.at("source_embedding"),
            self.backbone.at("target_embedding"),
        );
        b.radial(
            &w.at("rad_func"),
            (&embeddings.0, &embeddings.1),
            self.config.max_num_elements,
            self.config.edge_channels,
            width,
        )
    }

    fn head(&self, b: &mut Builder, x: Buf) -> Buf {
        let (c, h) = (self.config.sphere_channels, self.config.hidden_channels);
        let w = Scope::new(self.config.head.prefix.clone());
        let per_task = self.config.head.experts.is_some();
        let x = b.linear("hidden_1", &w.at(0), x, (c, h), per_task, true);
        let x = b.linear("hidden_2", &w.at(2), x, (h, h), per_task, true);
        b.linear("atom_energy", &w.at(4), x, (h, 1), per_task, false)
    }
}
