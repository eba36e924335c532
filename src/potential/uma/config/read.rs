//! Reads the model configuration of a checkpoint.

use super::head::head;
use super::section::{Read, Section, class_name, datasets, unsupported};
use super::{
    Activation, ChargeSpinEmbedding, FeedForward, Generation, Norm, UmaConfig, Unsupported, tasks,
};
use crate::potential::uma::checkpoint::CheckpointError;
use crate::potential::uma::checkpoint::omegaconf::Config;

/// Bounds of the sizes in a configuration: far above every published model, low enough that the
/// products formed with them cannot overflow.
const MAX_CHANNELS: usize = 1 << 14;
const MAX_DEGREE: usize = 11;
const MAX_LAYERS: usize = 256;
const MAX_EXPERTS: usize = 1 << 14;
const MAX_BASIS: usize = 1 << 16;
const MAX_ELEMENTS: usize = 1 << 10;
const MAX_NEIGHBORS: usize = 1 << 20;
const MAX_CUTOFF_ANGSTROM: f64 = 100.0;

/// Backbone options that change nothing in the result of an evaluation.
const WITHOUT_EFFECT: &[&str] = &[
    "model",
    "act",
    "activation_checkpointing",
    "always_use_pbc",
    "composition_dropout",
    "cs_emb_grad",
    "dataset_emb_grad",
    "edge_chunk_size",
    "execution_mode",
    "hessian_vmap",
    "moe_dropout",
    "num_sphere_samples",
    "otf_graph",
    "radius_pbc_version",
    "regress_forces",
    "regress_hessian",
    "regress_stress",
    "use_cuda_graph_wigner",
    "use_global_embedding",
    "use_pbc",
    "use_pbc_single",
    "use_quaternion_wigner",
];

impl UmaConfig {
    /// Reads `model_config` and `tasks_config` of a checkpoint.
    pub(crate) fn read(model: &Config<'_>, tasks_config: &Config<'_>) -> Read<Self> {
        let mut top = Section::new(model.clone())?;
        if let Some(target) = top.get("_target_")? {
            let class = class_name(target.text()?);
            if class != "HydraModel" {
                return Err(unsupported(
                    &target,
                    "only models of class HydraModel can be read",
                ));
            }
        }
        let model_id = match top.get("model_id")? {
            None => None,
            Some(value) => {
                let id = value.text()?.trim();
                if id.len() > 128 || id.contains(char::is_control) {
                    return Err(value.error("this is not a name").into());
                }
                Some(id.to_owned()).filter(|id| !id.is_empty())
            }
        };
        let supports_single_atoms = top.flag("supports_single_atoms", false)?;
        let Some(backbone) = top.get("backbone")? else {
            return Err(model
                .error(
                    "key `backbone` is missing: the file does not describe its network (a \
                     fine-tune that refers to another file?)",
                )
                .into());
        };
        let mut backbone = Section::new(backbone)?;
        let can_mix = backbone_class(&backbone)?;

        let max_num_elements = backbone.size("max_num_elements", 100, 2..MAX_ELEMENTS + 1)?;
        let sphere_channels = backbone.size("sphere_channels", 128, 2..MAX_CHANNELS + 1)?;
        let hidden_channels = backbone.size("hidden_channels", 128, 1..MAX_CHANNELS + 1)?;
        let edge_channels = backbone.size("edge_channels", 128, 1..MAX_CHANNELS + 1)?;
        let lmax = backbone.size("lmax", 2, 1..MAX_DEGREE + 1)?;
        let mmax = backbone.size("mmax", 2, 1..lmax + 1)?;
        let num_layers = backbone.size("num_layers", 2, 0..MAX_LAYERS + 1)?;
        let num_distance_basis = backbone.size("num_distance_basis", 512, 2..MAX_BASIS + 1)?;
        let max_neighbors = backbone.size("max_neighbors", 300, 1..MAX_NEIGHBORS + 1)?;
        let cutoff = match backbone.get("cutoff")? {
            None => 5.0,
            Some(value) => match value.number()? {
                r if r > 0.0 && r <= MAX_CUTOFF_ANGSTROM => r,
                r => {
                    return Err(value
                        .error(format!(
                            "{r} A is not between 0 and {MAX_CUTOFF_ANGSTROM} A"
                        ))
                        .into());
                }
            },
        };
        if sphere_channels % 2 != 0 {
            return Err(backbone
                .config
                .error(format!("sphere_channels = {sphere_channels} is odd"))
                .into());
        }

        backbone.choice("distance_function", (), &[("gaussian", ())])?;
        let norm = backbone.choice(
            "norm_type",
            Norm::RmsNormSh,
            &[("rms_norm_sh", Norm::RmsNormSh)],
        )?;
        let activation =
            backbone.choice("act_type", Activation::Gate, &[("gate", Activation::Gate)])?;
        let feed_forward = backbone.choice(
            "ff_type",
            FeedForward::Grid,
            &[
                ("spectral", FeedForward::Spectral),
                ("grid", FeedForward::Grid),
            ],
        )?;
        let grid_resolution = match backbone.get("grid_resolution")? {
            None => None,
            Some(_) => Some(backbone.size("grid_resolution", 0, 1..1 << 10)?),
        };
        let charge_spin_embedding = backbone.choice(
            "chg_spin_emb_type",
            ChargeSpinEmbedding::Positional,
            &[
                ("pos_emb", ChargeSpinEmbedding::Positional),
                ("lin_emb", ChargeSpinEmbedding::Linear),
                ("rand_emb", ChargeSpinEmbedding::Table),
            ],
        )?;
        let charge_balanced_channels =
            backbone.channels("charge_balanced_channels", sphere_channels)?;
        let spin_balanced_channels =
            backbone.channels("spin_balanced_channels", sphere_channels)?;
        let use_dataset_embedding = backbone.flag("use_dataset_embedding", true)?;
        let datasets = datasets(&mut backbone, "dataset_list", use_dataset_embedding)?;

        refuse_direct(&mut backbone, "direct_forces", true)?;
        refuse_direct(&mut backbone, "direct_stress", false)?;

        let mut use_composition_embedding = false;
        let mut num_experts = 0;
        let mut explicit_experts = false;
        if can_mix {
            explicit_experts = backbone.get("num_experts")?.is_some();
            num_experts = backbone.size("num_experts", 8, 0..MAX_EXPERTS + 1)?;
            let composition = backbone.flag("use_composition_embedding", false)?;
            use_composition_embedding = composition && num_experts > 0;
            mixture_options(&mut backbone, num_experts > 0)?;
        }
        let generation = generation(
            &mut backbone,
            model_id.as_deref(),
            num_experts,
            explicit_experts,
        )?;
        let name = match (&model_id, generation) {
            (Some(id), _) => id.clone(),
            (None, Generation::Esen) => "eSEN".to_owned(),
            (None, Generation::Uma1p1) => "UMA-1.1".to_owned(),
            (None, _) => "UMA (untagged)".to_owned(),
        };

        let head = head(&mut top)?;
        let tasks = tasks::read(tasks_config)?;
        for dataset in tasks.keys() {
            if use_dataset_embedding && !datasets.contains_key(dataset) {
                return Err(tasks_config
                    .error(format!(
                        "dataset {dataset:?} has a task but no embedding in the network"
                    ))
                    .into());
            }
            if !head.datasets.is_empty() && !head.datasets.contains(dataset) {
                return Err(tasks_config
                    .error(format!("dataset {dataset:?} has a task but no output head"))
                    .into());
            }
        }

        let mut ignored = backbone.ignored(WITHOUT_EFFECT)?;
        ignored.extend(top.ignored(&[
            "pass_through_head_outputs",
            "freeze_backbone",
            "otf_graph",
            "finetune_config",
        ])?);

        Ok(UmaConfig {
            name,
            model_id,
            generation,
            sphere_channels,
            hidden_channels,
            edge_channels,
            lmax,
            mmax,
            num_layers,
            cutoff,
            num_distance_basis,
            max_num_elements,
            max_neighbors,
            num_experts,
            charge_spin_embedding,
            datasets,
            use_dataset_embedding,
            charge_balanced_channels,
            spin_balanced_channels,
            use_composition_embedding,
            norm,
            activation,
            feed_forward,
            grid_resolution,
            head,
            supports_single_atoms,
            tasks,
            ignored,
        })
    }
}

/// Whether the backbone is the class that can hold a mixture of experts.
fn backbone_class(backbone: &Section<'_>) -> Read<bool> {
    let model = backbone.config.require("model")?;
    let path = model.text()?;
    let lower = path.to_ascii_lowercase();
    match class_name(path) {
        "eSCNMDMoeBackbone" | "escnmd_moe_backbone" => Ok(true),
        "eSCNMDBackbone" | "escnmd_backbone" => Ok(false),
        _ if lower.contains("allscaip") => Err(unsupported(
            &model,
            "AllScAIP is an attention network, not eSCN-MD",
        )),
        _ if lower.contains("escaip") => Err(unsupported(
            &model,
            "eSCAIP is an attention network, not eSCN-MD",
        )),
        _ => Err(unsupported(
            &model,
            "only the eSCN-MD backbones of UMA and eSEN can be evaluated",
        )),
    }
}

/// Forces and stress must be derivatives of the energy.
fn refuse_direct(backbone: &mut Section<'_>, key: &'static str, default: bool) -> Read<()> {
    let reason = "the model predicts it directly instead of as a derivative of the energy, so it \
                  does not conserve energy";
    match backbone.get(key)? {
        Some(value) if value.bool()? => Err(unsupported(&value, reason)),
        None if default => Err(CheckpointError::Unsupported(Unsupported {
            option: format!("{}.{key}", backbone.config.path()),
            found: "True (the default)".to_owned(),
            reason: reason.to_owned(),
        })),
        _ => Ok(()),
    }
}

/// Options of the mixture of experts: read always, so that they count as known, and checked when
/// there are experts.
fn mixture_options(backbone: &mut Section<'_>, used: bool) -> Read<()> {
    let norm = backbone.get("moe_expert_coefficient_norm")?;
    let kind = backbone.get("moe_type")?;
    let layer_type = backbone.get("moe_layer_type")?;
    let layers = backbone.get("layers_moe")?;
    let single = backbone.get("moe_single")?;
    let act = backbone.get("act")?;
    if !used {
        return Ok(());
    }
    if let Some(norm) = norm
        && norm.text()? != "softmax"
    {
        return Err(unsupported(
            &norm,
            "expert coefficients must be normalised by a softmax (`pnorm` makes the answer for \
             one structure depend on the others in its batch)",
        ));
    }
    if let Some(kind) = kind
        && kind.text()? != "so2"
    {
        return Err(unsupported(
            &kind,
            "only the SO(2) convolutions may be mixtures of experts",
        ));
    }
    // Two implementations of the same arithmetic with the same tensors.
    if let Some(layer_type) = layer_type
        && !matches!(layer_type.text()?, "pytorch" | "dgl")
    {
        return Err(unsupported(&layer_type, "this program knows pytorch, dgl"));
    }
    if let Some(layers) = layers {
        return Err(unsupported(
            &layers,
            "all layers must be mixtures of experts",
        ));
    }
    if let Some(single) = single
        && single.bool()?
    {
        return Err(unsupported(
            &single,
            "layers of equal size share their experts",
        ));
    }
    if let Some(act) = act
        && class_name(act.text()?) != "SiLU"
    {
        return Err(unsupported(&act, "the router's activation must be SiLU"));
    }
    Ok(())
}

/// Generation by `model_id`, or by `backbone.model_version` for the files that predate it.
fn generation(
    backbone: &mut Section<'_>,
    model_id: Option<&str>,
    num_experts: usize,
    explicit_experts: bool,
) -> Read<Generation> {
    let version = backbone.get("model_version")?;
    if num_experts == 0 {
        return Ok(Generation::Esen);
    }
    match model_id {
        Some("UMA-S-1.2") => return Ok(Generation::Uma1p2),
        Some(_) => return Ok(Generation::Newer),
        // The reference implementation leaves such files alone: no rule of an old generation.
        None if !explicit_experts => return Ok(Generation::Newer),
        None => {}
    }
    if let Some(version) = &version
        && (version.number().is_ok_and(|v| v == 1.1) || version.text().is_ok_and(|v| v == "1.1"))
    {
        return Ok(Generation::Uma1p1);
    }
    Err(CheckpointError::Unsupported(Unsupported {
        option: format!("{}.model_version", backbone.config.path()),
        found: version.map_or("1.0 (the default)".to_owned(), |v| v.describe()),
        reason: "without a model_id this is a UMA 1.0 checkpoint, which was withdrawn; use \
                 uma-s-1p1 or later"
            .to_owned(),
    }))
}
