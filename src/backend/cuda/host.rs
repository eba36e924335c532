//! The device that tests have everywhere: the kernels compiled for the host (feature
//! `host-kernels`), on memory of the host. Work is done at once, so that streams and events have
//! nothing to order.
//!
//! It is stricter than a GPU. Writes outside an allocation, barriers that not all threads reach and
//! failed assertions are errors that name the kernel; fresh memory is not a number; the order in
//! which the threads of a block run can be changed, which brings out missing barriers.

use super::device::{
    Device, DeviceInfo, Event, Graph, Kernel, LaunchSize, MemoryInfo, Pinned, Stream,
};
use super::error::CudaError;
use super::params::{DevicePtr, Params};
use rayon::prelude::*;
use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Bytes around every allocation that kernels must leave alone.
const GUARD: usize = 256;
const GUARD_BYTE: u8 = 0xa5;
const ALIGNMENT: usize = 256;
/// What the emulated device has.
const TOTAL_BYTES: usize = 64 << 30;
/// Most dynamic shared memory of a block: that of a Hopper or Blackwell GPU.
pub const SHARED_BYTES: usize = 227 << 10;

#[repr(C)]
struct LayoutRow {
    structure: *const c_char,
    field: *const c_char,
    offset: usize,
    size: usize,
    whole: usize,
}

// SAFETY: the signatures are those of cuda/host/shim.cc and of the table that build.rs writes.
unsafe extern "C" {
    fn umaserve_host_kernel(index: usize) -> *const c_char;
    fn umaserve_host_layout(rows: *mut *const LayoutRow) -> usize;
    fn umaserve_host_launch(
        name: *const c_char,
        grid: *const u32,
        block: *const u32,
        shared_bytes: usize,
        params: *const c_void,
        params_bytes: usize,
        first: u64,
        end: u64,
        order: u32,
        error: *mut c_char,
        error_bytes: usize,
    ) -> c_int;
}

/// Names of all kernels that were compiled.
pub fn kernels() -> Vec<String> {
    (0..)
        .map_while(|index| {
            // SAFETY: any index is allowed; the answer is null or a C string that lives as long as
            // the program, because kernels register before main() and never leave.
            unsafe {
                let name = umaserve_host_kernel(index);
                (!name.is_null()).then(|| CStr::from_ptr(name).to_string_lossy().into_owned())
            }
        })
        .collect()
}

/// A field of a structure as C++ lays it out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostField {
    /// Name of the structure.
    pub structure: String,
    /// Name of the field.
    pub field: String,
    /// Bytes from the beginning.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
    /// Bytes of the whole structure.
    pub structure_size: usize,
}

/// All fields of the structures of `cuda/*.h` as C++ lays them out.
pub fn layouts() -> Vec<HostField> {
    // SAFETY: the function gives the address and the length of a constant table of C strings and
    // numbers.
    unsafe {
        let mut rows = std::ptr::null();
        let count = umaserve_host_layout(&mut rows);
        let text = |at| CStr::from_ptr(at).to_string_lossy().into_owned();
        std::slice::from_raw_parts(rows, count)
            .iter()
            .map(|row| HostField {
                structure: text(row.structure),
                field: text(row.field),
                offset: row.offset,
                size: row.size,
                structure_size: row.whole,
            })
            .collect()
    }
}

/// In which order the threads of a block run between barriers. Results must not depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ThreadOrder {
    /// By number.
    #[default]
    Ascending,
    /// Backwards.
    Descending,
    /// Shuffled with this seed.
    Shuffled(u32),
}

impl ThreadOrder {
    fn seed(self) -> u32 {
        match self {
            ThreadOrder::Ascending => 0,
            ThreadOrder::Descending => 1,
            ThreadOrder::Shuffled(seed) => seed.max(2),
        }
    }
}

/// Memory that kernels address directly, with guards around it.
struct Allocation {
    whole: *mut u8,
    bytes: usize,
}

// SAFETY: the memory belongs to the allocation alone and is only touched under the device's lock,
// or by kernels, which the lock keeps apart from everything else.
unsafe impl Send for Allocation {}

impl Allocation {
    fn layout(bytes: usize) -> std::alloc::Layout {
        let whole = bytes.next_multiple_of(ALIGNMENT) + 2 * GUARD;
        std::alloc::Layout::from_size_align(whole, ALIGNMENT).expect("a size below isize::MAX")
    }

    fn new(bytes: usize) -> Option<Allocation> {
        if bytes > TOTAL_BYTES {
            return None;
        }
        let layout = Allocation::layout(bytes);
        // SAFETY: the layout has a size above zero; the writes stay inside it.
        unsafe {
            let whole = std::alloc::alloc(layout);
            if whole.is_null() {
                return None;
            }
            std::ptr::write_bytes(whole, GUARD_BYTE, layout.size());
            // Not a number in any type: reading what nobody wrote shows.
            std::ptr::write_bytes(whole.add(GUARD), 0xff, bytes);
            Some(Allocation { whole, bytes })
        }
    }

    fn address(&self) -> u64 {
        self.whole as u64 + GUARD as u64
    }

    /// Whether something wrote next to it.
    fn is_overrun(&self) -> bool {
        let end = Allocation::layout(self.bytes).size();
        // SAFETY: both ranges lie inside the allocation, were written when it was made, and nobody
        // else writes while the device's lock is held.
        unsafe {
            let before = std::slice::from_raw_parts(self.whole, GUARD);
            let after = GUARD + self.bytes;
            let after = std::slice::from_raw_parts(self.whole.add(after), end - after);
            before.iter().chain(after).any(|&byte| byte != GUARD_BYTE)
        }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: made by `alloc` with this very layout, and dropped once.
        unsafe { std::alloc::dealloc(self.whole, Allocation::layout(self.bytes)) }
    }
}

/// Something captured.
#[derive(Clone)]
enum Work {
    Launch(Kernel, LaunchSize, Vec<u8>),
    Copy(DevicePtr, DevicePtr, usize),
    Fill(DevicePtr, u8, usize),
}

#[derive(Default)]
struct State {
    allocations: BTreeMap<u64, Allocation>,
    allocated: usize,
    peak: usize,
    order: ThreadOrder,
    capture: Option<Vec<Work>>,
    graphs: HashMap<usize, Vec<Work>>,
    events: HashMap<usize, Instant>,
    made: usize,
    launches: u64,
    copies: u64,
    fills: u64,
    graph_launches: u64,
    uploads_beside: u64,
    unhealthy: Option<CudaError>,
    /// Given instead of doing the next launch.
    injected: Option<CudaError>,
}

/// Called before the end of copies is waited for.
type Hook = Arc<dyn Fn() + Send + Sync>;

/// Runs kernels on the host.
pub struct HostDevice {
    info: DeviceInfo,
    state: Mutex<State>,
    on_wait: Mutex<Option<Hook>>,
}

impl Default for HostDevice {
    fn default() -> HostDevice {
        HostDevice::new(ThreadOrder::Ascending)
    }
}

impl HostDevice {
    /// A device whose threads run in this order.
    pub fn new(order: ThreadOrder) -> HostDevice {
        HostDevice {
            info: DeviceInfo {
                name: "emulation on the host".into(),
                capability: (8, 0),
                multiprocessors: rayon::current_num_threads() as u32,
                shared_bytes: SHARED_BYTES,
                l2_bytes: 32 << 20,
                emulated: true,
                ..DeviceInfo::default()
            },
            state: Mutex::new(State {
                order,
                ..State::default()
            }),
            on_wait: Mutex::new(None),
        }
    }

    /// Kernels launched so far, those of graphs included.
    pub fn launches(&self) -> u64 {
        self.lock().launches
    }

    /// Kernels, copies inside the device and fillings so far, those of graphs included.
    pub fn work(&self) -> [u64; 3] {
        let state = self.lock();
        [state.launches, state.copies, state.fills]
    }

    /// Graphs launched so far.
    pub fn graph_launches(&self) -> u64 {
        self.lock().graph_launches
    }

    /// Graphs that have not been given back.
    pub fn graphs(&self) -> usize {
        self.lock().graphs.len()
    }

    /// Uploads beside the kernels so far.
    pub fn uploads_beside(&self) -> u64 {
        self.lock().uploads_beside
    }

    /// From now on whoever waits for copies calls this first: on a GPU, kernels run meanwhile.
    pub fn on_wait(&self, hook: impl Fn() + Send + Sync + 'static) {
        let mut held = self.on_wait.lock().unwrap_or_else(PoisonError::into_inner);
        *held = Some(Arc::new(hook));
    }

    /// The next launch fails with this error instead.
    pub fn fail_next_launch(&self, error: CudaError) {
        self.lock().injected = Some(error);
    }

    /// Runs some blocks of a grid only, counted along x first: where the others have nothing to do that is
    /// looked at.
    ///
    /// # Errors
    /// What the kernel does wrong, and blocks that the grid does not have.
    pub fn launch_blocks<P: Params>(
        &self,
        kernel: Kernel,
        size: LaunchSize,
        params: &P,
        blocks: Range<u64>,
    ) -> Result<(), CudaError> {
        let order = self.healthy()?.order;
        let params = bytemuck::bytes_of(params);
        run_kernel(kernel, size, params, order, Some(blocks)).map_err(|reason| CudaError::Kernel {
            kernel: kernel.to_string(),
            reason,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, of a device that works.
    fn healthy(&self) -> Result<MutexGuard<'_, State>, CudaError> {
        let state = self.lock();
        match &state.unhealthy {
            Some(error) => Err(error.clone()),
            None => Ok(state),
        }
    }
}

impl State {
    /// The host's address of a range that lies inside one allocation.
    fn range(&self, at: DevicePtr, bytes: usize) -> Result<*mut u8, CudaError> {
        let allocation = self.allocations.range(..=at.0).next_back();
        match allocation {
            Some((begin, allocation)) if at.0 + bytes as u64 <= begin + allocation.bytes as u64 => {
                Ok(at.0 as *mut u8)
            }
            _ => Err(CudaError::Invalid(format!(
                "{bytes} bytes at {:#x} lie in no allocation",
                at.0
            ))),
        }
    }

    fn not_capturing(&self, what: &str) -> Result<(), CudaError> {
        match self.capture {
            None => Ok(()),
            Some(_) => Err(CudaError::Invalid(format!("{what} while work is captured"))),
        }
    }

    /// Notes work down while capturing, else does it.
    fn submit(&mut self, work: Work) -> Result<(), CudaError> {
        match &mut self.capture {
            Some(captured) => {
                captured.push(work);
                Ok(())
            }
            None => self.perform(&work),
        }
    }

    fn perform(&mut self, work: &Work) -> Result<(), CudaError> {
        match work {
            Work::Copy(to, from, bytes) => {
                self.copies += 1;
                let (to, from) = (self.range(*to, *bytes)?, self.range(*from, *bytes)?);
                // SAFETY: both ranges lie inside living allocations, which no kernel uses now;
                // `copy` allows them to overlap.
                unsafe { std::ptr::copy(from, to, *bytes) };
                Ok(())
            }
            Work::Fill(to, value, bytes) => {
                self.fills += 1;
                let to = self.range(*to, *bytes)?;
                // SAFETY: the range lies inside a living allocation, which no kernel uses now.
                unsafe { std::ptr::write_bytes(to, *value, *bytes) };
                Ok(())
            }
            Work::Launch(kernel, size, params) => {
                if let Some(error) = self.injected.take() {
                    if error.is_sticky() {
                        self.unhealthy = Some(error.clone());
                    }
                    return Err(error);
                }
                self.launches += 1;
                let run = run_kernel(*kernel, *size, params, self.order, None);
                let run = run.and_then(|()| self.check_guards());
                run.map_err(|reason| {
                    let error = CudaError::Kernel {
                        kernel: kernel.to_string(),
                        reason,
                    };
                    self.unhealthy = Some(error.clone());
                    error
                })
            }
        }
    }

    fn check_guards(&self) -> Result<(), String> {
        match self.allocations.values().find(|a| a.is_overrun()) {
            None => Ok(()),
            Some(allocation) => Err(format!(
                "wrote next to the allocation of {} bytes at {:#x}",
                allocation.bytes,
                allocation.address()
            )),
        }
    }
}

/// Runs all blocks, or only these (counted along x first), on the threads of rayon.
fn run_kernel(
    kernel: Kernel,
    size: LaunchSize,
    params: &[u8],
    order: ThreadOrder,
    only: Option<Range<u64>>,
) -> Result<(), String> {
    if size.shared_bytes as usize > SHARED_BYTES {
        return Err(format!(
            "{} bytes of shared memory; a block may have {SHARED_BYTES}",
            size.shared_bytes
        ));
    }
    let [x, y, z] = size.grid.map(u64::from);
    if x * y * z == 0 || x > i32::MAX as u64 || y.max(z) > 65_535 {
        return Err(format!("a grid of {x} x {y} x {z} blocks"));
    }
    let name = CString::new(kernel.0).map_err(|_| "its name has a zero byte".to_owned())?;
    // Aligned as a structure of 8-byte fields is.
    let mut words = vec![0u64; params.len().div_ceil(8)];
    bytemuck::cast_slice_mut(&mut words)[..params.len()].copy_from_slice(params);
    let Range { start, end } = only.unwrap_or(0..x * y * z);
    if start >= end || end > x * y * z {
        return Err(format!("blocks {start}..{end} of {}", x * y * z));
    }
    let blocks = end - start;
    let pieces = blocks.min(4 * rayon::current_num_threads() as u64);
    let run = |piece: u64| {
        let place = |piece: u64| start + blocks * piece / pieces;
        let (first, end) = (place(piece), place(piece + 1));
        let mut error = vec![0u8; 2048];
        // SAFETY: all pointers are to living memory of the sizes given: three numbers, three
        // numbers, `params.len()` bytes (the launch compares that with what the kernel takes) and
        // 2048 bytes. Kernels touch what their parameters point to, as on a GPU; that is checked
        // as far as `check_guards` says.
        let code = unsafe {
            umaserve_host_launch(
                name.as_ptr(),
                size.grid.as_ptr(),
                size.block.as_ptr(),
                size.shared_bytes as usize,
                words.as_ptr().cast(),
                params.len(),
                first,
                end,
                order.seed(),
                error.as_mut_ptr().cast(),
                error.len(),
            )
        };
        if code == 0 {
            return Ok(());
        }
        let text = CStr::from_bytes_until_nul(&error).unwrap_or_default();
        Err(text.to_string_lossy().into_owned())
    };
    let outcomes: Vec<Result<(), String>> = if pieces == 1 {
        vec![run(0)]
    } else {
        (0..pieces).into_par_iter().map(run).collect()
    };
    outcomes.into_iter().collect()
}

/// Memory of the host; copies are done at once.
struct HostPinned(Vec<u8>);

impl Deref for HostPinned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for HostPinned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Pinned for HostPinned {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

fn first(buffer: &[u8], bytes: usize) -> Result<&[u8], CudaError> {
    buffer
        .get(..bytes)
        .ok_or_else(|| CudaError::Invalid(format!("{bytes} bytes of a buffer of {}", buffer.len())))
}

impl Device for HostDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn memory(&self) -> Result<MemoryInfo, CudaError> {
        let state = self.healthy()?;
        Ok(MemoryInfo {
            free: TOTAL_BYTES.saturating_sub(state.allocated),
            total: TOTAL_BYTES,
            allocated: state.allocated,
            peak: state.peak,
        })
    }

    fn alloc(&self, bytes: usize) -> Result<DevicePtr, CudaError> {
        let mut state = self.healthy()?;
        state.not_capturing("an allocation")?;
        let free = TOTAL_BYTES.saturating_sub(state.allocated);
        let allocation = Some(bytes)
            .filter(|&bytes| bytes <= free)
            .and_then(Allocation::new)
            .ok_or(CudaError::OutOfMemory {
                needed: bytes,
                free,
                total: TOTAL_BYTES,
            })?;
        let address = allocation.address();
        state.allocated += bytes;
        state.peak = state.peak.max(state.allocated);
        state.allocations.insert(address, allocation);
        Ok(DevicePtr(address))
    }

    fn free(&self, at: DevicePtr) -> Result<(), CudaError> {
        let mut state = self.lock();
        if at == DevicePtr::NULL {
            return Ok(());
        }
        let allocation = state.allocations.remove(&at.0).ok_or_else(|| {
            CudaError::Invalid(format!("{:#x} is no allocation to be freed", at.0))
        })?;
        state.allocated -= allocation.bytes;
        Ok(())
    }

    fn upload_bytes(&self, to: DevicePtr, from: &[u8]) -> Result<(), CudaError> {
        let state = self.healthy()?;
        state.not_capturing("an upload")?;
        let to = state.range(to, from.len())?;
        // SAFETY: the range lies inside a living allocation, which no kernel uses while the lock is
        // held; `from` is other memory.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
        Ok(())
    }

    fn download_bytes(&self, from: DevicePtr, to: &mut [u8]) -> Result<(), CudaError> {
        let state = self.healthy()?;
        state.not_capturing("a download")?;
        let from = state.range(from, to.len())?;
        // SAFETY: as in `upload_bytes`. Memory is initialised when it is allocated.
        unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn pinned(&self, bytes: usize) -> Result<Box<dyn Pinned>, CudaError> {
        Ok(Box::new(HostPinned(vec![0; bytes])))
    }

    fn upload_pinned(
        &self,
        stream: Stream,
        to: DevicePtr,
        from: &dyn Pinned,
        bytes: usize,
    ) -> Result<(), CudaError> {
        self.upload_bytes(to, first(from, bytes)?)?;
        self.lock().uploads_beside += u64::from(stream == Stream::Copy);
        Ok(())
    }

    fn download_pinned(
        &self,
        _stream: Stream,
        from: DevicePtr,
        to: &mut dyn Pinned,
        bytes: usize,
    ) -> Result<(), CudaError> {
        first(to, bytes)?;
        self.download_bytes(from, &mut to[..bytes])
    }

    fn wait_pinned(&self, _memory: &dyn Pinned) -> Result<(), CudaError> {
        // The lock is given back before the hook runs: others wait too.
        let hook = {
            let held = self.on_wait.lock().unwrap_or_else(PoisonError::into_inner);
            held.clone()
        };
        if let Some(hook) = hook {
            hook();
        }
        Ok(())
    }

    fn copy(&self, to: DevicePtr, from: DevicePtr, bytes: usize) -> Result<(), CudaError> {
        self.healthy()?.submit(Work::Copy(to, from, bytes))
    }

    fn fill_bytes(&self, to: DevicePtr, value: u8, bytes: usize) -> Result<(), CudaError> {
        self.healthy()?.submit(Work::Fill(to, value, bytes))
    }

    fn launch_bytes(
        &self,
        kernel: Kernel,
        size: LaunchSize,
        params: &[u8],
    ) -> Result<(), CudaError> {
        let work = Work::Launch(kernel, size, params.to_vec());
        self.healthy()?.submit(work)
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        self.healthy()?.not_capturing("waiting")
    }

    fn record(&self, _stream: Stream) -> Result<Event, CudaError> {
        let mut state = self.healthy()?;
        state.made += 1;
        let event = state.made;
        state.events.insert(event, Instant::now());
        Ok(Event(event))
    }

    fn wait(&self, _stream: Stream, _event: Event) -> Result<(), CudaError> {
        self.healthy().map(|_| ())
    }

    fn elapsed_ms(&self, from: Event, to: Event) -> Result<f64, CudaError> {
        let state = self.healthy()?;
        match (state.events.get(&from.0), state.events.get(&to.0)) {
            (Some(from), Some(to)) => Ok(to.duration_since(*from).as_secs_f64() * 1e3),
            _ => Err(CudaError::Invalid("an event that was given back".into())),
        }
    }

    fn release_event(&self, event: Event) {
        self.lock().events.remove(&event.0);
    }

    fn begin_capture(&self) -> Result<(), CudaError> {
        let mut state = self.healthy()?;
        state.not_capturing("another capture")?;
        state.capture = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self) -> Result<Graph, CudaError> {
        let mut state = self.lock();
        let captured = state.capture.take();
        let captured =
            captured.ok_or_else(|| CudaError::Invalid("no work is being captured".into()))?;
        if let Some(error) = &state.unhealthy {
            return Err(error.clone());
        }
        state.made += 1;
        let graph = state.made;
        state.graphs.insert(graph, captured);
        Ok(Graph(graph))
    }

    fn launch_graph(&self, graph: Graph) -> Result<(), CudaError> {
        let mut state = self.healthy()?;
        let work = state.graphs.get(&graph.0).cloned();
        let work = work.ok_or_else(|| CudaError::Invalid("a graph that was given back".into()))?;
        state.graph_launches += 1;
        work.iter().try_for_each(|work| state.perform(work))
    }

    fn release_graph(&self, graph: Graph) {
        self.lock().graphs.remove(&graph.0);
    }

    fn unhealthy(&self) -> Option<CudaError> {
        self.lock().unhealthy.clone()
    }

    fn recreate(&self) -> Result<(), CudaError> {
        let mut state = self.lock();
        let order = state.order;
        *state = State {
            order,
            ..State::default()
        };
        Ok(())
    }
}
