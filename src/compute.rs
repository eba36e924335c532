//! Where the network is evaluated: opens the device that the user asked for, checks it, and says
//! what it is.

use std::path::Path;
use std::sync::Arc;

use crate::backend::Backend;
use crate::backend::cpu::CpuBackend;
use crate::backend::cuda::device::Device as CudaDevice;
use crate::backend::cuda::driver::{self, DriverDevice};
use crate::backend::cuda::{self, CudaBackend, CudaError};
use crate::cli::Device;
use crate::config::{ModelConfig, SelfcheckConfig};
use crate::potential::Potential;
use crate::potential::uma::checkpoint::DEMO_NAME;
use crate::potential::uma::{Checkpoint, Precision, UmaOptions, UmaPotential};
use crate::selfcheck;

/// Most working memory on a CPU unless the user says otherwise, bytes.
const CPU_MEMORY_BYTES: usize = 8 << 30;

impl From<crate::cli::Precision> for Precision {
    fn from(typed: crate::cli::Precision) -> Self {
        match typed {
            crate::cli::Precision::F32 => Precision::F32,
            crate::cli::Precision::Tf32 => Precision::Tf32,
            crate::cli::Precision::F16 => Precision::F16,
            crate::cli::Precision::F64 => Precision::F64,
        }
    }
}

/// Opens a checkpoint; without a file the demo model.
///
/// # Errors
/// A file that cannot be used, by name.
pub fn open_checkpoint(file: Option<&Path>) -> Result<Arc<Checkpoint>, String> {
    let opened = match file {
        Some(path) => Checkpoint::open(path),
        None => Checkpoint::demo(),
    };
    opened
        .map(Arc::new)
        .map_err(|error| format!("{}: {error}", checkpoint_name(file)))
}

/// What a checkpoint is called in messages.
pub fn checkpoint_name(file: Option<&Path>) -> String {
    match file {
        Some(path) => path.display().to_string(),
        None => DEMO_NAME.to_owned(),
    }
}

/// Where a process computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the CPU.
    Cpu,
    /// On the CUDA device with this index among those that the process sees.
    Cuda(usize),
}

/// The CUDA devices that this process may use, by UUID, in the order of their indices; none
/// without a driver, a GPU or kernels.
pub fn visible(model: &ModelConfig) -> Vec<String> {
    devices(model).unwrap_or_default()
}

/// The same, or why there are none.
fn devices(model: &ModelConfig) -> Result<Vec<String>, String> {
    if !model.emulated_devices.is_empty() {
        return Ok(model.emulated_devices.clone());
    }
    crate::config::CUDA?;
    let devices = driver::devices().map_err(|error| error.to_string())?;
    Ok(devices.into_iter().map(|device| device.uuid).collect())
}

fn device(model: &ModelConfig, index: usize) -> Result<Arc<dyn CudaDevice>, String> {
    if !model.emulated_devices.is_empty() {
        return emulated();
    }
    match DriverDevice::open(index) {
        Ok(device) => Ok(Arc::new(device)),
        Err(error) => Err(format!("CUDA device {index}: {error}")),
    }
}

/// Why this process sees no device, in one line.
pub fn why_none_visible(model: &ModelConfig) -> Option<String> {
    devices(model).err()
}

/// Where a process computes that knows of no others: on the device with its place among the
/// processes of its host. Ranks that serve are placed together instead, by what all of them see
/// ([`placement`](crate::placement)).
///
/// # Errors
/// `--device cuda` without a usable GPU, with the reason.
pub fn choose(model: &ModelConfig) -> Result<Place, String> {
    let devices = match model.device {
        Device::Cpu => return Ok(Place::Cpu),
        Device::Auto | Device::Cuda => devices(model),
    };
    match (devices, model.device) {
        (Ok(devices), _) => Ok(Place::Cuda(model.local_index % devices.len().max(1))),
        (Err(error), Device::Cuda) => Err(format!("--device cuda: {error}")),
        (Err(error), _) => needs_no_gpu(model, &error.to_string()).map(|()| Place::Cpu),
    }
}

/// Refuses number types that only a GPU computes in.
fn needs_no_gpu(model: &ModelConfig, no_gpu: &str) -> Result<(), String> {
    match model.precision.map(Precision::from) {
        Some(precision @ (Precision::Tf32 | Precision::F16)) => {
            Err(format!("--precision {precision} needs a GPU: {no_gpu}"))
        }
        _ => Ok(()),
    }
}

/// The configuration once it is known whether the ranks compute on GPUs: `auto` is so no longer,
/// so that what is recorded, reported and computed is one and the same on every rank.
///
/// # Errors
/// A number type that needs a GPU where there is none.
pub fn settled(model: &ModelConfig, on_cuda: bool) -> Result<ModelConfig, String> {
    if !on_cuda {
        let reason = fallback(model).unwrap_or_else(|| "the ranks compute on CPUs".into());
        needs_no_gpu(model, &reason)?;
    }
    Ok(ModelConfig {
        device: if on_cuda { Device::Cuda } else { Device::Cpu },
        ..model.clone()
    })
}

/// Why a GPU is not used although one would have been, in one line.
pub fn fallback(model: &ModelConfig) -> Option<String> {
    match (model.device, devices(model)) {
        (Device::Auto, Err(error)) => Some(format!("computing on the CPU: {error}")),
        _ => None,
    }
}

/// Whether the network is evaluated on GPUs.
pub fn on_cuda(model: &ModelConfig) -> bool {
    match model.device {
        Device::Cpu => false,
        // This process need not see one: the first rank only serves.
        Device::Cuda => true,
        Device::Auto => matches!(choose(model), Ok(Place::Cuda(_))),
    }
}

/// "cpu" or "cuda".
pub fn name(model: &ModelConfig) -> String {
    if on_cuda(model) { "cuda" } else { "cpu" }.into()
}

/// The number type: the user's, else tf32 on a GPU and f32 on a CPU.
pub fn precision(model: &ModelConfig) -> Precision {
    precision_at(model, on_cuda(model))
}

fn precision_at(model: &ModelConfig, on_cuda: bool) -> Precision {
    match model.precision {
        Some(precision) => precision.into(),
        None if on_cuda => Precision::Tf32,
        None => Precision::F32,
    }
}

/// A potential and what it runs on.
pub struct Computing {
    /// Evaluates.
    pub potential: Arc<dyn Potential>,
    /// "cpu", or "cuda:0 NVIDIA H200".
    pub device: String,
    /// Number type.
    pub precision: Precision,
}

/// The potential of a checkpoint at a place. A GPU is checked first: a small network with every
/// operation must come out as on the CPU.
///
/// # Errors
/// A device that cannot be used or computes wrongly, a model that cannot be evaluated there.
pub fn open(
    model: &ModelConfig,
    checkpoint: &Arc<Checkpoint>,
    place: Place,
) -> Result<Computing, String> {
    let precision = precision_at(model, place != Place::Cpu);
    let named = |error: String| format!("{}: {error}", checkpoint_name(model.path.as_deref()));
    let (potential, device) = match place {
        Place::Cpu => {
            let options = UmaOptions {
                precision,
                memory_bytes: model.memory_bytes.unwrap_or(CPU_MEMORY_BYTES),
            };
            let potential = UmaPotential::on_cpu(checkpoint.clone(), options);
            (
                potential.map_err(|error| named(error.to_string()))?,
                "cpu".to_owned(),
            )
        }
        Place::Cuda(index) => {
            {
                // In a context of its own, so that nothing of it stays.
                let device = device(model, index)?;
                selfcheck::quick(precision, &|program, weights| {
                    cuda_backend(program, weights, device.clone(), precision)
                })
                .map_err(|error| format!("CUDA device {index}: {error}"))?;
            }
            let device = device(model, index)?;
            let name = format!("cuda:{index} {}", device.info().name);
            (
                on_device_of(model, checkpoint, precision, device).map_err(named)?,
                name,
            )
        }
    };
    Ok(Computing {
        potential: Arc::new(potential),
        device,
        precision,
    })
}

fn on_device_of(
    model: &ModelConfig,
    checkpoint: &Arc<Checkpoint>,
    precision: Precision,
    device: Arc<dyn CudaDevice>,
) -> Result<UmaPotential, String> {
    let options = UmaOptions {
        precision,
        memory_bytes: model.memory_bytes.unwrap_or(usize::MAX),
    };
    UmaPotential::on_cuda(checkpoint.clone(), options, device)
}

type Made = Result<Option<Box<dyn Backend>>, String>;

fn cuda_backend(
    program: Arc<crate::nn::Program>,
    weights: Arc<dyn crate::backend::WeightSource>,
    device: Arc<dyn CudaDevice>,
    precision: Precision,
) -> Made {
    let options = cuda::Options::new(precision.on_cuda()?, 4 << 30);
    match CudaBackend::new(program, weights, device, options) {
        Ok(backend) => Ok(Some(Box::new(backend))),
        Err(CudaError::Unsupported(_)) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// `umaserve selfcheck`: prints the table.
///
/// # Errors
/// Something is off, or could not be computed.
pub fn selfcheck(config: &SelfcheckConfig) -> Result<(), String> {
    let model = &config.model;
    let device: Option<Arc<dyn CudaDevice>> = if config.emulated {
        Some(emulated()?)
    } else {
        match choose(model)? {
            Place::Cpu => None,
            Place::Cuda(index) => {
                let device = DriverDevice::open(index).map_err(|error| error.to_string())?;
                Some(Arc::new(device))
            }
        }
    };
    if let Some(reason) = fallback(model).filter(|_| !config.emulated) {
        println!("{reason}");
    }
    let precision = precision_at(model, device.is_some());
    let name = device.as_ref().map_or_else(
        || "the CPU".to_owned(),
        |device| {
            let info = device.info();
            let (major, minor) = info.capability;
            format!("{} (compute capability {major}.{minor})", info.name)
        },
    );
    println!("{name} in {precision} against the CPU in f64");

    let make = |program: Arc<crate::nn::Program>, weights| -> Made {
        match &device {
            Some(device) => cuda_backend(program, weights, device.clone(), precision),
            None if precision == Precision::F64 => {
                Ok(Some(Box::new(CpuBackend::<f64>::new(program, weights, 0))))
            }
            None => Ok(Some(Box::new(CpuBackend::<f32>::new(program, weights, 0)))),
        }
    };
    if config.quick {
        selfcheck::quick(precision, &make)?;
        println!("passed");
        return Ok(());
    }
    let mut networks = selfcheck::USUAL.to_vec();
    if config.all || !config.emulated {
        networks.push(selfcheck::FULL);
    }
    if config.all {
        networks.extend(selfcheck::OTHERS);
    }
    let mut rows = selfcheck::operations(&networks, precision, &make)?;
    print!("{}", selfcheck::table(&rows));

    let checkpoint = open_checkpoint(model.path.as_deref())?;
    let options = UmaOptions {
        precision,
        memory_bytes: model.memory_bytes.unwrap_or(CPU_MEMORY_BYTES),
    };
    let potential = match device {
        Some(device) => on_device_of(model, &checkpoint, precision, device)?,
        None => {
            UmaPotential::on_cpu(checkpoint.clone(), options).map_err(|error| error.to_string())?
        }
    };
    let exact = UmaOptions {
        precision: Precision::F64,
        ..options
    };
    let reference =
        UmaPotential::on_cpu(checkpoint.clone(), exact).map_err(|error| error.to_string())?;
    let tasks: Vec<&str> = checkpoint.config.task_names().collect();
    // Kernels on the host are slow: one cell, which atoms see through its images.
    let cells = if config.emulated { 1 } else { 2 };
    let mut systems = selfcheck::systems(&tasks, cells);
    systems.retain(|(_, system)| reference.check(system).is_ok());
    println!("{}:", checkpoint.config.name);
    let of_model = selfcheck::model(&potential, &reference, precision, &systems)?;
    print!("{}", selfcheck::table(&of_model));
    rows.extend(of_model);

    match rows.iter().filter(|row| !row.passed()).count() {
        0 => {
            println!("all {} comparisons passed", rows.len());
            Ok(())
        }
        failed => Err(format!("{failed} of {} comparisons failed", rows.len())),
    }
}

#[cfg(feature = "host-kernels")]
fn emulated() -> Result<Arc<dyn CudaDevice>, String> {
    Ok(Arc::new(cuda::host::HostDevice::default()))
}

#[cfg(not(feature = "host-kernels"))]
fn emulated() -> Result<Arc<dyn CudaDevice>, String> {
    Err("built without the feature host-kernels".into())
}
