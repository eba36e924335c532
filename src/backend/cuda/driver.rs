//! A GPU through the CUDA driver, which is loaded at run time: the same program runs where there is
//! none and says so.
//!
//! One context per device (the primary one), one stream for kernels and one for copies beside
//! them. Every call makes the context current first, so that any thread may call. An error after
//! which the context is lost marks the device unhealthy; [`DriverDevice::recreate`] makes everything anew.

use super::device::{
    Device, DeviceInfo, Event, Graph, Kernel, LaunchSize, MemoryInfo, Pinned, Stream,
};
use super::error::CudaError;
use super::images;
use super::params::DevicePtr;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, c_int, c_void};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Oldest driver, as CUDA counts: 12.0.
const OLDEST_DRIVER: u32 = 12_000;
/// Page-locked memory through which ordinary memory is copied, in two halves: one is filled while
/// the other is on its way.
const STAGING_BYTES: usize = 8 << 20;
const PAGE: usize = 4096;

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

#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    /// Most dynamic shared memory.
    shared_bytes: usize,
}

/// Page-locked halves and the events after which they may be written again.
struct Staging {
    memory: PageLocked,
    used: [sys::CUevent; 2],
}

struct State {
    context: sys::CUcontext,
    compute: sys::CUstream,
    copy: sys::CUstream,
    modules: Vec<sys::CUmodule>,
    functions: HashMap<&'static str, Function>,
    staging: Option<Staging>,
    /// Bytes by address.
    allocations: BTreeMap<u64, usize>,
    allocated: usize,
    peak: usize,
    events: HashMap<usize, sys::CUevent>,
    graphs: HashMap<usize, sys::CUgraphExec>,
    made: usize,
    capturing: bool,
    last_kernel: &'static str,
    unhealthy: Option<CudaError>,
}

// SAFETY: handles of the driver may be used from any thread whose current context is theirs; every
// use is behind the device's lock and after `cuCtxSetCurrent`.
unsafe impl Send for State {}

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

impl State {
    fn open(
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
    fn check<T>(
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

    fn stream(&self, stream: Stream) -> sys::CUstream {
        match stream {
            Stream::Compute => self.compute,
            Stream::Copy => self.copy,
        }
    }

    /// Whether a range lies inside one allocation.
    fn range(&self, at: DevicePtr, bytes: usize) -> Result<(), CudaError> {
        match self.allocations.range(..=at.0).next_back() {
            Some((begin, size)) if at.0 + bytes as u64 <= begin + *size as u64 => Ok(()),
            _ => Err(CudaError::Invalid(format!(
                "{bytes} bytes at {:#x} lie in no allocation",
                at.0
            ))),
        }
    }

    fn not_capturing(&self, what: &str) -> Result<(), CudaError> {
        match self.capturing {
            false => Ok(()),
            true => Err(CudaError::Invalid(format!("{what} while work is captured"))),
        }
    }

    fn wait_for(&mut self, stream: sys::CUstream) -> Result<(), CudaError> {
        // SAFETY: the stream belongs to this state.
        let done = unsafe { result::stream::synchronize(stream) };
        self.check("cuStreamSynchronize", done)
    }

    fn function(&mut self, kernel: Kernel, most: usize) -> Result<Function, CudaError> {
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
    fn close(&mut self, device: sys::CUdevice, generation: &AtomicU64) {
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
}

impl Drop for DriverDevice {
    fn drop(&mut self) {
        let (device, generation) = (self.device, self.generation.clone());
        self.lock().close(device, &generation);
    }
}

/// Memory of the host, page-locked where the system allows, that outlives its context.
struct PageLocked {
    memory: *mut u8,
    bytes: usize,
    /// Context for which it is locked; 0 if it is ordinary memory.
    locked_for: u64,
    generation: Arc<AtomicU64>,
    /// Recorded after the last copy that uses it.
    pending: Mutex<Option<PendingCopy>>,
}

/// An event of a context.
struct PendingCopy {
    context: sys::CUcontext,
    event: sys::CUevent,
    generation: u64,
}

// SAFETY: the memory belongs to this object alone; events may be waited for from any thread whose
// context is theirs, which `wait` sees to.
unsafe impl Send for PageLocked {}
// SAFETY: shared references only read the memory, after waiting for the copies into it.
unsafe impl Sync for PageLocked {}

impl PageLocked {
    fn layout(bytes: usize) -> std::alloc::Layout {
        let bytes = bytes.max(1).next_multiple_of(PAGE);
        std::alloc::Layout::from_size_align(bytes, PAGE).expect("a size below isize::MAX")
    }

    /// Zeroed memory. The context it is locked for is current.
    fn new(bytes: usize, generation: Arc<AtomicU64>) -> PageLocked {
        let layout = PageLocked::layout(bytes);
        // SAFETY: the layout's size is not zero.
        let memory = unsafe { std::alloc::alloc_zeroed(layout) };
        if memory.is_null() {
            std::alloc::handle_alloc_error(layout);
        }
        // SAFETY: a whole allocation of this size, which stays until `drop` has unlocked it.
        let locked = unsafe { sys::cuMemHostRegister_v2(memory.cast(), layout.size(), 0) };
        let locked_for = match locked.result() {
            Ok(()) => generation.load(Ordering::SeqCst),
            // Copies then take the driver's way for ordinary memory: slower, same result.
            Err(_) => 0,
        };
        PageLocked {
            memory,
            bytes,
            locked_for,
            generation,
            pending: Mutex::new(None),
        }
    }

    /// Waits for copies that use the memory.
    fn wait(&self) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(copy) = pending.take()
            && copy.generation == self.generation.load(Ordering::SeqCst)
        {
            // SAFETY: the event's context still exists, as its generation says. Should the wait
            // fail, the context is lost and copies nothing any more.
            unsafe {
                let _ = result::ctx::set_current(copy.context);
                let _ = result::event::synchronize(copy.event);
                let _ = result::event::destroy(copy.event);
            }
        }
    }

    /// Notes that the work queued in `stream` so far uses the memory.
    fn used_by(&self, context: sys::CUcontext, stream: sys::CUstream) -> Result<(), DriverError> {
        self.wait_if_other();
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
        // SAFETY: event and stream belong to the context that is current.
        unsafe { result::event::record(event, stream) }?;
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        *pending = Some(PendingCopy {
            context,
            event,
            generation: self.generation.load(Ordering::SeqCst),
        });
        Ok(())
    }

    /// One event is kept: an earlier copy is waited for before another is noted.
    fn wait_if_other(&self) {
        self.wait();
    }
}

impl Drop for PageLocked {
    fn drop(&mut self) {
        self.wait();
        // SAFETY: unlocked only while the context exists for which it was locked (a reset context
        // has unlocked it); then freed with the layout it was made with.
        unsafe {
            if self.locked_for == self.generation.load(Ordering::SeqCst) {
                let _ = sys::cuMemHostUnregister(self.memory.cast()).result();
            }
            std::alloc::dealloc(self.memory, PageLocked::layout(self.bytes));
        }
    }
}

impl Deref for PageLocked {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.wait();
        // SAFETY: `bytes` initialised bytes that nobody writes while they are borrowed: copies into
        // them have ended.
        unsafe { std::slice::from_raw_parts(self.memory, self.bytes) }
    }
}

impl DerefMut for PageLocked {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.wait();
        // SAFETY: as above, and nobody else reads them.
        unsafe { std::slice::from_raw_parts_mut(self.memory, self.bytes) }
    }
}

impl Pinned for PageLocked {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

fn page_locked(found: Option<&PageLocked>, bytes: usize) -> Result<&PageLocked, CudaError> {
    match found {
        Some(memory) if bytes <= memory.bytes => Ok(memory),
        Some(memory) => Err(CudaError::Invalid(format!(
            "{bytes} bytes of a buffer of {}",
            memory.bytes
        ))),
        None => Err(CudaError::Invalid("a buffer of another device".into())),
    }
}

impl Device for DriverDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn memory(&self) -> Result<MemoryInfo, CudaError> {
        let mut state = self.enter()?;
        let (free, total) = state.check("cuMemGetInfo", result::mem_get_info())?;
        Ok(MemoryInfo {
            free,
            total,
            allocated: state.allocated,
            peak: state.peak,
        })
    }

    fn alloc(&self, bytes: usize) -> Result<DevicePtr, CudaError> {
        let mut state = self.enter()?;
        state.not_capturing("an allocation")?;
        // SAFETY: the memory is used through addresses only, checked by `range`, and has no type.
        let address = match unsafe { result::malloc_sync(bytes.max(1)) } {
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let (free, total) = result::mem_get_info().unwrap_or((0, 0));
                return Err(CudaError::OutOfMemory {
                    needed: bytes,
                    free,
                    total,
                });
            }
            other => state.check(format!("cuMemAlloc of {bytes} bytes"), other)?,
        };
        state.allocations.insert(address, bytes);
        state.allocated += bytes;
        state.peak = state.peak.max(state.allocated);
        Ok(DevicePtr(address))
    }

    fn free(&self, at: DevicePtr) -> Result<(), CudaError> {
        if at == DevicePtr::NULL {
            return Ok(());
        }
        let mut state = self.enter()?;
        state.not_capturing("giving memory back")?;
        let bytes = state.allocations.remove(&at.0).ok_or_else(|| {
            CudaError::Invalid(format!("{:#x} is no allocation to be freed", at.0))
        })?;
        state.allocated -= bytes;
        // SAFETY: allocated by `alloc` and not freed since; the call waits for the work that is
        // queued.
        let freed = unsafe { result::free_sync(at.0) };
        state.check("cuMemFree", freed)
    }

    fn upload_bytes(&self, to: DevicePtr, from: &[u8]) -> Result<(), CudaError> {
        let mut state = self.enter()?;
        state.not_capturing("an upload")?;
        state.range(to, from.len())?;
        let staging = state.staging.take().expect("made with the context");
        let mut outcome = Ok(());
        for (i, piece) in from.chunks(STAGING_BYTES / 2).enumerate() {
            let half = i % 2;
            let address = to.0 + (i * (STAGING_BYTES / 2)) as u64;
            // SAFETY: the half is page-locked memory of this state, long enough for the piece, and
            // no copy uses it once its event has come; the range of the device was checked; the
            // event marks the end of the copy.
            outcome = unsafe {
                let memory = staging.memory.memory.add(half * (STAGING_BYTES / 2));
                result::event::synchronize(staging.used[half]).and_then(|()| {
                    std::ptr::copy_nonoverlapping(piece.as_ptr(), memory, piece.len());
                    let staged = std::slice::from_raw_parts(memory, piece.len());
                    result::memcpy_htod_async(address, staged, state.compute)?;
                    result::event::record(staging.used[half], state.compute)
                })
            };
            if outcome.is_err() {
                break;
            }
        }
        state.staging = Some(staging);
        state.check(format!("upload of {} bytes", from.len()), outcome)
    }

    fn download_bytes(&self, from: DevicePtr, to: &mut [u8]) -> Result<(), CudaError> {
        let mut state = self.enter()?;
        state.not_capturing("a download")?;
        state.range(from, to.len())?;
        let bytes = to.len();
        let staging = state.staging.take().expect("made with the context");
        let stream = state.compute;
        let half_bytes = STAGING_BYTES / 2;
        // Queues the copy of piece `i` into its half.
        let queue = |i: usize| {
            let begin = i * half_bytes;
            let length = half_bytes.min(bytes - begin);
            // SAFETY: the half belongs to this state and is free: its last piece was taken out
            // before this one is queued, uploads from it are earlier in the same stream. The range
            // of the device was checked.
            unsafe {
                let memory = staging.memory.memory.add(i % 2 * half_bytes);
                let staged = std::slice::from_raw_parts_mut(memory, length);
                result::memcpy_dtoh_async(staged, from.0 + begin as u64, stream)?;
                result::event::record(staging.used[i % 2], stream)
            }
        };
        let pieces = bytes.div_ceil(half_bytes);
        let mut outcome = if pieces > 0 { queue(0) } else { Ok(()) };
        for (i, piece) in to.chunks_mut(half_bytes).enumerate() {
            if outcome.is_ok() && i + 1 < pieces {
                outcome = queue(i + 1);
            }
            // SAFETY: waits for the copy of this piece, then reads as many bytes as it wrote.
            outcome = outcome.and_then(|()| unsafe {
                result::event::synchronize(staging.used[i % 2])?;
                let memory = staging.memory.memory.add(i % 2 * half_bytes);
                std::ptr::copy_nonoverlapping(memory, piece.as_mut_ptr(), piece.len());
                Ok(())
            });
        }
        state.staging = Some(staging);
        state.check(format!("download of {bytes} bytes"), outcome)
    }

    fn pinned(&self, bytes: usize) -> Result<Box<dyn Pinned>, CudaError> {
        let _current = self.enter()?;
        Ok(Box::new(PageLocked::new(bytes, self.generation.clone())))
    }

    fn upload_pinned(
        &self,
        stream: Stream,
        to: DevicePtr,
        from: &dyn Pinned,
        bytes: usize,
    ) -> Result<(), CudaError> {
        let mut state = self.enter()?;
        state.not_capturing("an upload")?;
        state.range(to, bytes)?;
        let memory = page_locked(from.as_any().downcast_ref::<PageLocked>(), bytes)?;
        let (context, stream) = (state.context, state.stream(stream));
        // SAFETY: both ranges were checked; the event noted by `used_by` keeps the memory from being
        // written or freed before the copy has ended.
        let queued = unsafe {
            let source = std::slice::from_raw_parts(memory.memory, bytes);
            result::memcpy_htod_async(to.0, source, stream)
        };
        let queued = queued.and_then(|()| memory.used_by(context, stream));
        state.check(format!("upload of {bytes} bytes"), queued)
    }

    fn download_pinned(
        &self,
        stream: Stream,
        from: DevicePtr,
        to: &mut dyn Pinned,
        bytes: usize,
    ) -> Result<(), CudaError> {
        let mut state = self.enter()?;
        state.not_capturing("a download")?;
        state.range(from, bytes)?;
        let memory = page_locked(to.as_any().downcast_ref::<PageLocked>(), bytes)?;
        let (context, stream) = (state.context, state.stream(stream));
        // SAFETY: both ranges were checked; nobody reads the memory before the event noted by
        // `used_by` has come, and `to` is borrowed exclusively until then or until the call
        // returns.
        let queued = unsafe {
            let target = std::slice::from_raw_parts_mut(memory.memory, bytes);
            result::memcpy_dtoh_async(target, from.0, stream)
        };
        let queued = queued.and_then(|()| memory.used_by(context, stream));
        state.check(format!("download of {bytes} bytes"), queued)
    }

    fn copy(&self, to: DevicePtr, from: DevicePtr, bytes: usize) -> Result<(), CudaError> {
        let mut state = self.enter()?;
        state.range(to, bytes)?;
        state.range(from, bytes)?;
        // SAFETY: both ranges lie inside living allocations.
        let queued = unsafe { result::memcpy_dtod_async(to.0, from.0, bytes, state.compute) };
        state.check(format!("copy of {bytes} bytes"), queued)
    }

    fn fill_bytes(&self, to: DevicePtr, value: u8, bytes: usize) -> Result<(), CudaError> {
        let mut state = self.enter()?;
        state.range(to, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the range lies inside a living allocation.
        let queued = unsafe { result::memset_d8_async(to.0, value, bytes, state.compute) };
        state.check(format!("fill of {bytes} bytes"), queued)
    }

    fn launch_bytes(
        &self,
        kernel: Kernel,
        size: LaunchSize,
        params: &[u8],
    ) -> Result<(), CudaError> {
        let mut state = self.enter()?;
        let function = state.function(kernel, self.info.shared_bytes)?;
        if size.shared_bytes as usize > function.shared_bytes {
            return Err(CudaError::Kernel {
                kernel: kernel.to_string(),
                reason: format!(
                    "{} bytes of dynamic shared memory; a block may have {} on {}",
                    size.shared_bytes, function.shared_bytes, self.info.name
                ),
            });
        }
        let [x, y, z] = size.grid;
        let [threads_x, threads_y, threads_z] = size.block;
        let mut arguments = [params.as_ptr().cast_mut().cast::<c_void>()];
        // SAFETY: the kernel takes one structure by value, whose bytes `params` are (the emulated
        // device compares the sizes of all structures in the tests); the driver copies them before
        // it returns. What the structure points to are allocations of this device that live until
        // the stream is done with them, because freeing waits.
        let queued = unsafe {
            result::launch_kernel(
                function.handle,
                (x, y, z),
                (threads_x, threads_y, threads_z),
                size.shared_bytes,
                state.compute,
                &mut arguments,
            )
        };
        state.last_kernel = kernel.0;
        let what = || {
            format!(
                "launch of {kernel} with {x} x {y} x {z} blocks of \
                 {threads_x} x {threads_y} x {threads_z} threads"
            )
        };
        match queued {
            Ok(()) => Ok(()),
            error => state.check(what(), error),
        }
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        let mut state = self.enter()?;
        state.not_capturing("waiting")?;
        let (compute, copy) = (state.compute, state.copy);
        state.wait_for(compute)?;
        state.wait_for(copy)
    }

    fn record(&self, stream: Stream) -> Result<Event, CudaError> {
        let mut state = self.enter()?;
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let event = state.check("cuEventCreate", event)?;
        let stream = state.stream(stream);
        // SAFETY: event and stream belong to the context that is current.
        let recorded = unsafe { result::event::record(event, stream) };
        state.check("cuEventRecord", recorded)?;
        state.made += 1;
        let number = state.made;
        state.events.insert(number, event);
        Ok(Event(number))
    }

    fn wait(&self, stream: Stream, event: Event) -> Result<(), CudaError> {
        let mut state = self.enter()?;
        let handle = state.event(event)?;
        let stream = state.stream(stream);
        // SAFETY: event and stream belong to the context that is current.
        let queued = unsafe {
            result::stream::wait_event(
                stream,
                handle,
                sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT,
            )
        };
        state.check("cuStreamWaitEvent", queued)
    }

    fn elapsed_ms(&self, from: Event, to: Event) -> Result<f64, CudaError> {
        let mut state = self.enter()?;
        let (from, to) = (state.event(from)?, state.event(to)?);
        // SAFETY: both events were recorded in the context that is current and not destroyed.
        let elapsed = unsafe {
            result::event::synchronize(to).and_then(|()| result::event::elapsed(from, to))
        };
        Ok(f64::from(state.check("cuEventElapsedTime", elapsed)?))
    }

    fn release_event(&self, event: Event) {
        if let Ok(mut state) = self.enter()
            && let Some(handle) = state.events.remove(&event.0)
        {
            // SAFETY: made by `record`, and forgotten with this.
            let _ = unsafe { result::event::destroy(handle) };
        }
    }

    fn begin_capture(&self) -> Result<(), CudaError> {
        let mut state = self.enter()?;
        state.not_capturing("another capture")?;
        // SAFETY: the stream belongs to this state.
        let begun = unsafe {
            result::stream::begin_capture(
                state.compute,
                sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED,
            )
        };
        state.check("cuStreamBeginCapture", begun)?;
        state.capturing = true;
        Ok(())
    }

    fn end_capture(&self) -> Result<Graph, CudaError> {
        let mut state = self.enter()?;
        if !std::mem::take(&mut state.capturing) {
            return Err(CudaError::Invalid("no work is being captured".into()));
        }
        // SAFETY: the stream is being captured; graph and executable graph are each made once and
        // destroyed once.
        let made = unsafe {
            result::stream::end_capture(state.compute).and_then(|graph| {
                let flags = sys::CUgraphInstantiate_flags_enum(0);
                let executable = result::graph::instantiate(graph, flags);
                let _ = result::graph::destroy(graph);
                executable
            })
        };
        let executable = state.check("capture of a graph", made)?;
        // SAFETY: the graph was made just now.
        let uploaded = unsafe { result::graph::upload(executable, state.compute) };
        state.check("cuGraphUpload", uploaded)?;
        state.made += 1;
        let number = state.made;
        state.graphs.insert(number, executable);
        Ok(Graph(number))
    }

    fn launch_graph(&self, graph: Graph) -> Result<(), CudaError> {
        let mut state = self.enter()?;
        let executable = state.graphs.get(&graph.0).copied();
        let executable =
            executable.ok_or_else(|| CudaError::Invalid("a graph that was given back".into()))?;
        // SAFETY: graph and stream belong to this state; what the graph's kernels point to are
        // allocations that the caller keeps as long as the graph.
        let queued = unsafe { result::graph::launch(executable, state.compute) };
        state.last_kernel = "a graph";
        state.check("cuGraphLaunch", queued)
    }

    fn release_graph(&self, graph: Graph) {
        if let Ok(mut state) = self.enter()
            && let Some(executable) = state.graphs.remove(&graph.0)
        {
            let stream = state.compute;
            let _ = state.wait_for(stream);
            // SAFETY: made by `end_capture`, forgotten with this, and not running any more.
            let _ = unsafe { result::graph::exec_destroy(executable) };
        }
    }

    fn unhealthy(&self) -> Option<CudaError> {
        self.lock().unhealthy.clone()
    }

    fn recreate(&self) -> Result<(), CudaError> {
        let mut state = self.lock();
        if !state.modules.is_empty() {
            state.close(self.device, &self.generation);
        }
        match State::open(self.device, &self.info, &self.generation) {
            Ok(fresh) => {
                *state = fresh;
                Ok(())
            }
            Err(error) => {
                state.unhealthy = Some(error.clone());
                Err(error)
            }
        }
    }
}

impl State {
    fn event(&self, event: Event) -> Result<sys::CUevent, CudaError> {
        let handle = self.events.get(&event.0).copied();
        handle.ok_or_else(|| CudaError::Invalid("an event that was given back".into()))
    }
}

/// Closing a device takes its context from everybody in this process.
#[cfg(test)]
pub static ONE_TEST_AT_A_TIME: Mutex<()> = Mutex::new(());

#[cfg(test)]
mod tests {
    use super::*;

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
