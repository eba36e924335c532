//! What belongs to one context: streams, kernels, memory, events, graphs.

use super::memory::PageLocked;
use super::{explain, is_sticky, version_text};
use crate::backend::cuda::device::{DeviceInfo, Event, Kernel, Stream};
use crate::backend::cuda::error::CudaError;
use crate::backend::cuda::images;
use crate::backend::cuda::params::DevicePtr;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, c_int};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Page-locked memory through which ordinary memory is copied, in two halves: one is filled while
/// the other is on its way.
pub const STAGING_BYTES: usize = 8 << 20;

/// A kernel of a loaded module.
#[derive(Clone, Copy)]
pub struct Function {
    pub(super) handle: sys::CUfunction,
    /// Most dynamic shared memory.
    pub(super) shared_bytes: usize,
}

/// Page-locked halves and the events after which they may be written again.
pub struct Staging {
    pub(super) memory: PageLocked,
    pub(super) used: [sys::CUevent; 2],
}

/// All of a context.
pub struct State {
    pub(super) context: sys::CUcontext,
    pub(super) compute: sys::CUstream,
    pub(super) copy: sys::CUstream,
    pub(super) modules: Vec<sys::CUmodule>,
    pub(super) functions: HashMap<&'static str, Function>,
    pub(super) staging: Option<Staging>,
    /// Bytes by address.
    pub(super) allocations: BTreeMap<u64, usize>,
    pub(super) allocated: usize,
    pub(super) peak: usize,
    pub(super) events: HashMap<usize, sys::CUevent>,
    pub(super) graphs: HashMap<usize, sys::CUgraphExec>,
    pub(super) made: usize,
    pub(super) capturing: bool,
    pub(super) last_kernel: &'static str,
    pub(super) unhealthy: Option<CudaError>,
}

// SAFETY: handles of the driver may be used from any thread whose current context is theirs; every
// use is behind the device's lock and after `cuCtxSetCurrent`.
unsafe impl Send for State {}

impl State {
    pub(super) fn open(
        device: sys::CUdevice,
        info: &DeviceInfo,
        generation: &Arc<AtomicU64>,
    ) -> Result<State, CudaError> {
        let failed = |call: &'static str| move |error| explain(call, error);
        // SAFETY: the device is one that `cuDeviceGet` returned.
        let context = unsafe { result::primary_ctx::retain(device) };
        let context = context.map_err(failed("cuDevicePrimaryCtxRetain"))?;
        // SAFETY: the context was retained just now.
        unsafe { result::ctx::set_current(context) }.map_err(failed("cuCtxSetCurrent"))?;
        let stream = || {
            result::stream::create(result::stream::StreamKind::NonBlocking)
                .map_err(failed("cuStreamCreate"))
        };
        let mut state = State {
            context,
            compute: stream()?,
            copy: stream()?,
            modules: Vec::new(),
            functions: HashMap::new(),
            staging: None,
            allocations: BTreeMap::new(),
            allocated: 0,
            peak: 0,
            events: HashMap::new(),
            graphs: HashMap::new(),
            made: 0,
            capturing: false,
            last_kernel: "none",
            unhealthy: None,
        };
        for (source, image) in images::for_capability(info.capability) {
            // Aligned as the driver wants it.
            let mut words = vec![0u64; image.len().div_ceil(8)];
            bytemuck::cast_slice_mut(&mut words)[..image.len()].copy_from_slice(image);
            // SAFETY: a whole fatbin that nvcc wrote; its length is in its head, and the driver
            // keeps no reference to it.
            let module = unsafe { result::module::load_data(words.as_ptr().cast()) };
            let module = module.map_err(|error| {
                CudaError::Unavailable(format!(
                    "the driver (CUDA {}) cannot load the kernels of {source}.cu, which nvcc {} \
                     compiled, on {}: {}",
                    version_text(info.driver),
                    images::NVCC.unwrap_or("?"),
                    info.name,
                    explain("cuModuleLoadData", error)
                ))
            })?;
            state.modules.push(module);
        }
        let event = || {
            result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
                .map_err(failed("cuEventCreate"))
        };
        state.staging = Some(Staging {
            memory: PageLocked::new(STAGING_BYTES, generation.clone()),
            used: [event()?, event()?],
        });
        Ok(state)
    }

    /// Passes a result on; notes when the context is lost.
    pub(super) fn check<T>(
        &mut self,
        call: impl Into<String>,
        outcome: Result<T, DriverError>,
    ) -> Result<T, CudaError> {
        outcome.map_err(|error| {
            let mut call = call.into();
            if is_sticky(error.0) && !call.starts_with("launch") {
                // Errors of kernels come late.
                call = format!("{call} (the last kernel launched was {})", self.last_kernel);
            }
            let error = explain(call, error);
            if error.is_sticky() {
                self.unhealthy = Some(error.clone());
            }
            error
        })
    }

    pub(super) fn stream(&self, stream: Stream) -> sys::CUstream {
        match stream {
            Stream::Compute => self.compute,
            Stream::Copy => self.copy,
        }
    }

    /// Whether a range lies inside one allocation.
    pub(super) fn range(&self, at: DevicePtr, bytes: usize) -> Result<(), CudaError> {
        match self.allocations.range(..=at.0).next_back() {
            Some((begin, size)) if at.0 + bytes as u64 <= begin + *size as u64 => Ok(()),
            _ => Err(CudaError::Invalid(format!(
                "{bytes} bytes at {:#x} lie in no allocation",
                at.0
            ))),
        }
    }

    pub(super) fn not_capturing(&self, what: &str) -> Result<(), CudaError> {
        match self.capturing {
            false => Ok(()),
            true => Err(CudaError::Invalid(format!("{what} while work is captured"))),
        }
    }

    pub(super) fn wait_for(&mut self, stream: sys::CUstream) -> Result<(), CudaError> {
        // SAFETY: the stream belongs to this state.
        let done = unsafe { result::stream::synchronize(stream) };
        self.check("cuStreamSynchronize", done)
    }

    pub(super) fn function(&mut self, kernel: Kernel, most: usize) -> Result<Function, CudaError> {
        if let Some(function) = self.functions.get(kernel.0) {
            return Ok(*function);
        }
        let name = CString::new(kernel.0)
            .map_err(|_| CudaError::Invalid("a kernel's name has a zero byte".into()))?;
        let found = self.modules.iter().find_map(|&module| {
            // SAFETY: the module was loaded by this state and is unloaded with it.
            unsafe { result::module::get_function(module, name.clone()) }.ok()
        });
        let handle = found.ok_or_else(|| CudaError::Kernel {
            kernel: kernel.to_string(),
            reason: "there is no kernel of this name".into(),
        })?;
        use sys::CUfunction_attribute as Attribute;
        // SAFETY: the function was found just now.
        let fixed = unsafe {
            result::function::get_function_attribute(
                handle,
                Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
            )
        };
        let fixed = self.check(format!("cuFuncGetAttribute of {kernel}"), fixed)?;
        let shared_bytes = most.saturating_sub(fixed.max(0) as usize);
        // SAFETY: as above.
        let set = unsafe {
            result::function::set_function_attribute(
                handle,
                Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                shared_bytes as c_int,
            )
        };
        self.check(format!("cuFuncSetAttribute of {kernel}"), set)?;
        let function = Function {
            handle,
            shared_bytes,
        };
        self.functions.insert(kernel.0, function);
        Ok(function)
    }

    /// Gives everything back that the context does not take with it.
    pub(super) fn close(&mut self, device: sys::CUdevice, generation: &AtomicU64) {
        self.staging = None;
        generation.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the device is the one that the context was retained for. Nothing that belongs to
        // the context is used afterwards: the state is replaced or dropped.
        unsafe {
            let _ = sys::cuDevicePrimaryCtxReset_v2(device).result();
            let _ = result::primary_ctx::release(device);
        }
        self.allocations.clear();
        self.events.clear();
        self.graphs.clear();
        self.modules.clear();
        self.functions.clear();
    }

    pub(super) fn event(&self, event: Event) -> Result<sys::CUevent, CudaError> {
        let handle = self.events.get(&event.0).copied();
        handle.ok_or_else(|| CudaError::Invalid("an event that was given back".into()))
    }
}
