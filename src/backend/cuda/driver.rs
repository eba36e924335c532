//! A GPU through the CUDA driver, which is loaded at run time: the same program runs where there is
//! none and says so.
//!
//! One context per device (the primary one), one stream for kernels and one for copies beside
//! them. Every call makes the context current first, so that any thread may call. An error after
//! which the context is lost marks the device unhealthy; its `recreate` makes everything anew.

mod calls;
mod memory;
mod state;

use super::device::DeviceInfo;
use super::error::CudaError;
use super::images;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use state::State;
use std::ffi::c_int;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Oldest driver, as CUDA counts: 12.0.
const OLDEST_DRIVER: u32 = 12_000;
/// Errors after which a context only repeats them.
fn is_sticky(code: sys::CUresult) -> bool {
    matches!(
        code as u32,
        // Uncorrectable ECC and NVLink errors, faults of kernels, a destroyed context, unknown.
        214 | 220 | 226 | 700 | 702 | 709..=719 | 721 | 999
    )
}

fn explain(call: impl Into<String>, error: DriverError) -> CudaError {
    let text = |found: Result<&std::ffi::CStr, DriverError>| match found {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => format!("error {}", error.0 as u32),
    };
    CudaError::Driver {
        call: call.into(),
        name: text(error.error_name()),
        text: text(error.error_string()),
        sticky: is_sticky(error.0),
    }
}

/// Loads the driver and counts the devices.
fn count() -> Result<u32, CudaError> {
    let unavailable = |text: String| Err(CudaError::Unavailable(text));
    // SAFETY: opens and closes shared libraries of CUDA's names; loading one runs its own
    // initialisation, as for any program that uses the driver.
    if !unsafe { sys::is_culib_present() } {
        return unavailable("there is no CUDA driver (libcuda) on this machine".into());
    }
    if let Err(error) = result::init() {
        return unavailable(match error.0 {
            sys::CUresult::CUDA_ERROR_NO_DEVICE => "the CUDA driver finds no GPU".into(),
            _ => format!(
                "the CUDA driver does not start: {}",
                explain("cuInit", error)
            ),
        });
    }
    match result::device::get_count() {
        Ok(0) => unavailable("the CUDA driver finds no GPU".into()),
        Ok(count) => Ok(count as u32),
        Err(error) => unavailable(explain("cuDeviceGetCount", error).to_string()),
    }
}

fn driver_version() -> u32 {
    let mut version: c_int = 0;
    // SAFETY: writes one integer, which lives until the call returns.
    let code = unsafe { sys::cuDriverGetVersion(&mut version) };
    code.result().map_or(0, |()| version.max(0) as u32)
}

/// The devices that this process sees.
///
/// # Errors
/// Without a driver or without a GPU, [`CudaError::Unavailable`] says which.
pub fn devices() -> Result<Vec<DeviceInfo>, CudaError> {
    (0..count()?)
        .map(|ordinal| describe(ordinal as usize).map(|(info, _)| info))
        .collect()
}

/// As nvidia-smi writes it.
fn uuid_text(uuid: sys::CUuuid) -> String {
    let hex: String = uuid
        .bytes
        .iter()
        .map(|&b| format!("{:02x}", b as u8))
        .collect();
    let parts = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    format!("GPU-{}", parts.join("-"))
}

fn describe(ordinal: usize) -> Result<(DeviceInfo, sys::CUdevice), CudaError> {
    use sys::CUdevice_attribute as Attribute;
    let failed = |call: &'static str| move |error| explain(call, error);
    let device = result::device::get(ordinal as c_int).map_err(failed("cuDeviceGet"))?;
    let attribute = |which: Attribute| {
        // SAFETY: the device was returned by `get` just now.
        let value = unsafe { result::device::get_attribute(device, which) };
        value
            .map_err(failed("cuDeviceGetAttribute"))
            .map(|value| value.max(0) as u32)
    };
    let info = DeviceInfo {
        name: result::device::get_name(device).map_err(failed("cuDeviceGetName"))?,
        uuid: result::device::get_uuid(device).map_or_else(|_| String::new(), uuid_text),
        ordinal,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?
            as usize,
        l2_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize,
        clock_khz: attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE).unwrap_or(0),
        driver: driver_version(),
        emulated: false,
    };
    Ok((info, device))
}

/// A GPU.
pub struct DriverDevice {
    info: DeviceInfo,
    device: sys::CUdevice,
    state: Mutex<State>,
    /// Counts contexts, so that page-locked memory knows whether its own still exists.
    generation: Arc<AtomicU64>,
}

impl DriverDevice {
    /// Opens a device: context, streams, kernels.
    ///
    /// # Errors
    /// [`CudaError::Unavailable`] without driver, without such a device, for a device older than
    /// compute capability 8.0, for a driver too old, and for a build without kernels.
    pub fn open(ordinal: usize) -> Result<DriverDevice, CudaError> {
        let unavailable = |text: String| Err(CudaError::Unavailable(text));
        if let Err(reason) = images::available() {
            return unavailable(reason.into());
        }
        let count = count()? as usize;
        if ordinal >= count {
            return unavailable(format!(
                "there is no CUDA device {ordinal}; this process sees {count}, numbered from 0"
            ));
        }
        let (info, device) = describe(ordinal)?;
        if info.capability < images::OLDEST {
            return unavailable(format!(
                "{} has compute capability {}.{}; umaserve needs {}.{} or later",
                info.name,
                info.capability.0,
                info.capability.1,
                images::OLDEST.0,
                images::OLDEST.1
            ));
        }
        if info.driver < OLDEST_DRIVER {
            return unavailable(format!(
                "the CUDA driver supports CUDA {}; umaserve needs {} or later",
                version_text(info.driver),
                version_text(OLDEST_DRIVER)
            ));
        }
        let generation = Arc::new(AtomicU64::new(1));
        let state = State::open(device, &info, &generation)?;
        Ok(DriverDevice {
            info,
            device,
            state: Mutex::new(state),
            generation,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state of a device that works, with its context current on this thread.
    fn enter(&self) -> Result<MutexGuard<'_, State>, CudaError> {
        let mut state = self.lock();
        if let Some(error) = &state.unhealthy {
            return Err(error.clone());
        }
        // SAFETY: the context was retained when the state was made and is released with it.
        let current = unsafe { result::ctx::set_current(state.context) };
        state.check("cuCtxSetCurrent", current)?;
        Ok(state)
    }
}

/// 13000 is CUDA 13.0.
fn version_text(version: u32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

impl Drop for DriverDevice {
    fn drop(&mut self) {
        let (device, generation) = (self.device, self.generation.clone());
        self.lock().close(device, &generation);
    }
}

/// Closing a device takes its context from everybody in this process.
#[cfg(test)]
pub static ONE_TEST_AT_A_TIME: Mutex<()> = Mutex::new(());

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::device::{Device, Kernel, LaunchSize};

    /// On machines without a GPU: says so in one line. With one: opens it.
    #[test]
    fn a_machine_without_a_gpu_says_so_and_one_with_a_gpu_runs_kernels() {
        let _alone = ONE_TEST_AT_A_TIME.lock();
        match DriverDevice::open(0) {
            Err(CudaError::Unavailable(reason)) => {
                assert!(!reason.contains('\n') && reason.len() > 20, "{reason}");
            }
            Err(other) => panic!("{other}"),
            Ok(device) => {
                let device: &dyn Device = &device;
                let memory = device.alloc(4000).unwrap();
                let params = crate::backend::cuda::params::FillParams {
                    destination: memory,
                    count: 1000,
                    value: 7,
                    pad: 0,
                };
                let size = LaunchSize::cover(1000, 128);
                device.launch(Kernel("fill"), size, &params).unwrap();
                assert_eq!(device.download::<u32>(memory, 1000).unwrap(), [7; 1000]);
            }
        }
        assert!(DriverDevice::open(1 << 20).is_err());
    }
}
