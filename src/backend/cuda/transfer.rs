//! Copies between host and device that do not keep anybody waiting.
//!
//! The inputs of a batch go through a *slot*: page-locked memory of the host and as much memory of the
//! device. The copy between the two runs in a stream of its own, beside the kernels of the batch
//! before; from there to their places they go in the order of the kernels, inside the device. There
//! are two slots, one for the batch that is computed and one for the next.

use super::device::{Device, Event, Pinned, Stream};
use super::error::CudaError;
use super::inputs::Inputs;
use super::params::DevicePtr;

/// Memory through which one batch goes.
#[derive(Default)]
struct Slot {
    host: Option<Box<dyn Pinned>>,
    device: DevicePtr,
    bytes: usize,
    /// The point after which the device's half may be written again.
    used: Option<Event>,
}

/// The slots of a device, and memory of the host for results.
#[derive(Default)]
pub struct Transfers {
    slots: [Slot; 2],
    next: usize,
    results: Vec<Box<dyn Pinned>>,
}

/// Stretches begin at multiples of this.
const ALIGN: usize = 256;

impl Transfers {
    /// Queues copies of all stretches to their places from `base` on. What is queued in the compute
    /// stream afterwards finds them there.
    ///
    /// # Errors
    /// Those of the device.
    pub fn upload(
        &mut self,
        device: &dyn Device,
        base: DevicePtr,
        stretches: &[&Inputs],
    ) -> Result<(), CudaError> {
        let lengths = stretches.iter().map(|s| s.bytes.len());
        let total: usize = lengths.map(|n| n.next_multiple_of(ALIGN)).sum();
        let slot = &mut self.slots[self.next];
        self.next = (self.next + 1) % 2;
        if slot.bytes < total {
            slot.grow(device, total.next_power_of_two())?;
        }
        let Some(host) = &mut slot.host else {
            return Ok(());
        };
        // Waits for the copy of the batch before the last.
        let memory: &mut [u8] = host;
        let mut at = 0;
        for stretch in stretches {
            memory[at..at + stretch.bytes.len()].copy_from_slice(&stretch.bytes);
            at += stretch.bytes.len().next_multiple_of(ALIGN);
        }
        if let Some(used) = slot.used.take() {
            device.wait(Stream::Copy, used)?;
            device.release_event(used);
        }
        device.upload_pinned(Stream::Copy, slot.device, &**host, total)?;
        let there = device.record(Stream::Copy)?;
        device.wait(Stream::Compute, there)?;
        device.release_event(there);
        let mut at = 0;
        for stretch in stretches {
            let bytes = stretch.bytes.len();
            device.copy(base.offset(stretch.at), slot.device.offset(at), bytes)?;
            at += bytes.next_multiple_of(ALIGN);
        }
        slot.used = Some(device.record(Stream::Compute)?);
        Ok(())
    }

    /// Queues a copy of results, after what the compute stream has to do so far.
    /// [`Device::wait_pinned`] waits for it.
    ///
    /// # Errors
    /// Those of the device.
    pub fn download(
        &mut self,
        device: &dyn Device,
        from: DevicePtr,
        bytes: usize,
    ) -> Result<Box<dyn Pinned>, CudaError> {
        let mut memory = match self.results.pop() {
            Some(memory) if memory.len() >= bytes => memory,
            _ => device.pinned(bytes.next_power_of_two())?,
        };
        device.download_pinned(Stream::Compute, from, &mut *memory, bytes)?;
        Ok(memory)
    }

    /// Takes memory of results back that have been read.
    pub fn give_back(&mut self, memory: Box<dyn Pinned>) {
        // As many as batches may be under way.
        if self.results.len() < self.slots.len() {
            self.results.push(memory);
        }
    }

    /// Gives all memory of the device back.
    pub fn release(self, device: &dyn Device) {
        for slot in self.slots {
            if let Some(used) = slot.used {
                device.release_event(used);
            }
            // A device that fails has lost the memory with its context.
            let _ = device.free(slot.device);
        }
    }
}

impl Slot {
    fn grow(&mut self, device: &dyn Device, bytes: usize) -> Result<(), CudaError> {
        if let Some(used) = self.used.take() {
            device.release_event(used);
        }
        self.bytes = 0;
        // Waits for the copies that use it.
        device.free(std::mem::take(&mut self.device))?;
        self.host = Some(device.pinned(bytes)?);
        self.device = device.alloc(bytes)?;
        self.bytes = bytes;
        Ok(())
    }
}
