//! Page-locked memory of the host, which copies use while the host goes on.

use crate::backend::cuda::device::Pinned;
use crate::backend::cuda::error::CudaError;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::any::Any;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

const PAGE: usize = 4096;

/// Memory of the host, page-locked where the system allows, that outlives its context.
pub struct PageLocked {
    pub(super) memory: *mut u8,
    bytes: usize,
    /// Context for which it is locked; 0 if it is ordinary memory.
    locked_for: u64,
    generation: Arc<AtomicU64>,
    /// Recorded after the last copy that uses it.
    pending: Mutex<Option<PendingCopy>>,
}

/// Why copies did not come to their end.
#[derive(Debug)]
pub enum Finish {
    /// The driver says so.
    Failed(DriverError),
    /// Their context was closed before.
    Lost,
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
    pub fn new(bytes: usize, generation: Arc<AtomicU64>) -> PageLocked {
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
    ///
    /// # Errors
    /// The driver's, after which nobody knows what the memory holds; [`Lost`](Finish::Lost) if the
    /// context that should have copied is gone.
    pub fn finish(&self) -> Result<(), Finish> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(copy) = pending.take() else {
            return Ok(());
        };
        if copy.generation != self.generation.load(Ordering::SeqCst) {
            return Err(Finish::Lost);
        }
        // SAFETY: the event's context still exists, as its generation says.
        unsafe {
            result::ctx::set_current(copy.context)
                .and_then(|()| result::event::synchronize(copy.event))
                .and_then(|()| result::event::destroy(copy.event))
                .map_err(Finish::Failed)
        }
    }

    /// The same where it does not matter how they ended: should the wait fail, the context is lost
    /// and copies nothing any more.
    fn wait(&self) {
        let _ = self.finish();
    }

    /// Notes that the work queued in `stream` so far uses the memory.
    pub fn used_by(
        &self,
        context: sys::CUcontext,
        stream: sys::CUstream,
    ) -> Result<(), DriverError> {
        // One event is kept: an earlier copy is waited for before another is noted.
        self.wait();
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

/// Page-locked memory of at least so many bytes.
///
/// # Errors
/// Less memory, or none that a GPU's device has made.
pub fn page_locked(found: Option<&PageLocked>, bytes: usize) -> Result<&PageLocked, CudaError> {
    match found {
        Some(memory) if bytes <= memory.bytes => Ok(memory),
        Some(memory) => Err(CudaError::Invalid(format!(
            "{bytes} bytes of a buffer of {}",
            memory.bytes
        ))),
        None => Err(CudaError::Invalid("a buffer of another device".into())),
    }
}
