//! What the backend asks of a device: memory, copies, launches, graphs. Two devices answer:
//! [`driver`](super::driver), a GPU through the CUDA driver, and, for tests without one,
//! `host`, which runs the same kernels compiled for the host.

use super::error::CudaError;
use super::params::{DevicePtr, Params};
use std::any::Any;
use std::ops::{Deref, DerefMut};

/// A kernel, by the name in its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel(pub &'static str);

impl std::fmt::Display for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

/// How many threads a kernel is launched with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchSize {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block, bytes.
    pub shared_bytes: u32,
}

impl LaunchSize {
    /// `blocks` blocks of `threads` threads, without dynamic shared memory.
    pub fn new(blocks: u32, threads: u32) -> LaunchSize {
        LaunchSize {
            grid: [blocks, 1, 1],
            block: [threads, 1, 1],
            shared_bytes: 0,
        }
    }

    /// One thread for each of `items` items, in blocks of `threads`.
    pub fn cover(items: usize, threads: u32) -> LaunchSize {
        let blocks = items.div_ceil(threads as usize).max(1);
        LaunchSize::new(u32::try_from(blocks).unwrap_or(u32::MAX), threads)
    }

    /// The same with dynamic shared memory.
    pub fn shared(self, shared_bytes: usize) -> LaunchSize {
        LaunchSize {
            shared_bytes: u32::try_from(shared_bytes).unwrap_or(u32::MAX),
            ..self
        }
    }
}

/// Work of one stream is done in order; two streams run side by side, but for events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Kernels, and copies between them.
    #[default]
    Compute,
    /// Copies beside the kernels.
    Copy,
}

/// A point in the work of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Event(pub(super) usize);

/// Captured work of the compute stream, launched as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Graph(pub(super) usize);

/// Memory of a device, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryInfo {
    /// Not in use by anybody.
    pub free: usize,
    /// In all.
    pub total: usize,
    /// Allocated here, now.
    pub allocated: usize,
    /// Allocated here, at most so far.
    pub peak: usize,
}

/// What a device is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceInfo {
    /// "NVIDIA H200".
    pub name: String,
    /// "GPU-5a0c...", the same for every process of the host; empty where there is none.
    pub uuid: String,
    /// Place among the devices that this process sees.
    pub ordinal: usize,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Most dynamic shared memory that a block may have, bytes.
    pub shared_bytes: usize,
    /// Second-level cache, bytes.
    pub l2_bytes: usize,
    /// Clock of the multiprocessors, kHz.
    pub clock_khz: u32,
    /// Version of the driver's CUDA, for example 13000; 0 without.
    pub driver: u32,
    /// Whether kernels run on the host.
    pub emulated: bool,
}

/// Memory of the host that copies may use while the host goes on. Looking at it waits for the
/// copies that use it.
pub trait Pinned: Deref<Target = [u8]> + DerefMut + Send + Sync {
    /// For the device that made it.
    fn as_any(&self) -> &dyn Any;
    /// For the device that made it.
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

/// A device. Calls that queue work return at once; errors of the work come with a later call.
///
/// Ranges are checked against the allocations. Memory that was never written has no particular
/// value.
pub trait Device: Send + Sync {
    /// What it is.
    fn info(&self) -> &DeviceInfo;

    /// Its memory.
    fn memory(&self) -> Result<MemoryInfo, CudaError>;

    /// Memory, aligned to 256 bytes at least.
    fn alloc(&self, bytes: usize) -> Result<DevicePtr, CudaError>;

    /// Gives memory back, when the work that is queued has used it.
    fn free(&self, at: DevicePtr) -> Result<(), CudaError>;

    /// Host to device, in the order of the compute stream. `from` may change at once.
    fn upload_bytes(&self, to: DevicePtr, from: &[u8]) -> Result<(), CudaError>;

    /// Device to host, after the work of the compute stream so far; waits for it.
    fn download_bytes(&self, from: DevicePtr, to: &mut [u8]) -> Result<(), CudaError>;

    /// Memory of the host for copies beside the kernels.
    fn pinned(&self, bytes: usize) -> Result<Box<dyn Pinned>, CudaError>;

    /// Queues a copy of the first `bytes` bytes of `from`.
    fn upload_pinned(
        &self,
        stream: Stream,
        to: DevicePtr,
        from: &dyn Pinned,
        bytes: usize,
    ) -> Result<(), CudaError>;

    /// Queues a copy into the first `bytes` bytes of `to`.
    fn download_pinned(
        &self,
        stream: Stream,
        from: DevicePtr,
        to: &mut dyn Pinned,
        bytes: usize,
    ) -> Result<(), CudaError>;

    /// Waits for the copies that use page-locked memory.
    ///
    /// # Errors
    /// Those of the work before the copies, after which the memory holds nothing of use.
    fn wait_pinned(&self, memory: &dyn Pinned) -> Result<(), CudaError>;

    /// Device to device, in the compute stream. The ranges do not overlap.
    fn copy(&self, to: DevicePtr, from: DevicePtr, bytes: usize) -> Result<(), CudaError>;

    /// Sets every byte, in the compute stream.
    fn fill_bytes(&self, to: DevicePtr, value: u8, bytes: usize) -> Result<(), CudaError>;

    /// Queues a kernel in the compute stream. `params` are the bytes of its structure.
    fn launch_bytes(
        &self,
        kernel: Kernel,
        size: LaunchSize,
        params: &[u8],
    ) -> Result<(), CudaError>;

    /// Waits for all work.
    fn synchronize(&self) -> Result<(), CudaError>;

    /// Marks this point of a stream.
    fn record(&self, stream: Stream) -> Result<Event, CudaError>;

    /// Lets a stream wait for an event of another.
    fn wait(&self, stream: Stream, event: Event) -> Result<(), CudaError>;

    /// Time between two events, ms; waits for the later one.
    fn elapsed_ms(&self, from: Event, to: Event) -> Result<f64, CudaError>;

    /// Gives an event back.
    fn release_event(&self, event: Event);

    /// From here on, kernels, copies and fills of the compute stream are noted down instead of
    /// done, until [`end_capture`](Device::end_capture). Allocations, downloads and waiting are
    /// errors meanwhile.
    fn begin_capture(&self) -> Result<(), CudaError>;

    /// Ends noting down and makes a graph of it. After an error nothing is left of the capture.
    fn end_capture(&self) -> Result<Graph, CudaError>;

    /// Queues a graph in the compute stream.
    fn launch_graph(&self, graph: Graph) -> Result<(), CudaError>;

    /// Gives a graph back.
    fn release_graph(&self, graph: Graph);

    /// Why the device is of no use, if it is: an error after which every call fails until
    /// [`recreate`](Device::recreate).
    fn unhealthy(&self) -> Option<CudaError>;

    /// Makes the context anew. All memory, graphs and events are gone.
    fn recreate(&self) -> Result<(), CudaError>;
}

impl dyn Device + '_ {
    /// Queues a kernel in the compute stream.
    pub fn launch<P: Params>(
        &self,
        kernel: Kernel,
        size: LaunchSize,
        params: &P,
    ) -> Result<(), CudaError> {
        self.launch_bytes(kernel, size, bytemuck::bytes_of(params))
    }

    /// Host to device.
    pub fn upload<T: bytemuck::NoUninit>(
        &self,
        to: DevicePtr,
        from: &[T],
    ) -> Result<(), CudaError> {
        self.upload_bytes(to, bytemuck::cast_slice(from))
    }

    /// Device to host; waits.
    pub fn download<T: bytemuck::Pod>(
        &self,
        from: DevicePtr,
        count: usize,
    ) -> Result<Vec<T>, CudaError> {
        let mut values = vec![T::zeroed(); count];
        self.download_bytes(from, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// Memory with these values.
    pub fn alloc_with<T: bytemuck::NoUninit>(&self, values: &[T]) -> Result<DevicePtr, CudaError> {
        let to = self.alloc(std::mem::size_of_val(values))?;
        self.upload(to, values)?;
        Ok(to)
    }
}
