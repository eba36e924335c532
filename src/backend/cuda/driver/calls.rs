//! What a device is asked for, as calls of the driver.

use super::DriverDevice;
use super::memory::{Finish, PageLocked, page_locked};
use super::state::{STAGING_BYTES, State};
use crate::backend::cuda::device::{
    Device, DeviceInfo, Event, Graph, Kernel, LaunchSize, MemoryInfo, Pinned, Stream,
};
use crate::backend::cuda::error::CudaError;
use crate::backend::cuda::params::DevicePtr;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::ffi::c_void;

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

    fn wait_pinned(&self, memory: &dyn Pinned) -> Result<(), CudaError> {
        let memory = page_locked(memory.as_any().downcast_ref::<PageLocked>(), 0)?;
        // Without the lock: others queue work meanwhile.
        match memory.finish() {
            Ok(()) => Ok(()),
            Err(Finish::Failed(error)) => self.lock().check("cuEventSynchronize", Err(error)),
            Err(Finish::Lost) => Err(CudaError::Invalid(
                "the device failed and was made anew before this copy was done".into(),
            )),
        }
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
