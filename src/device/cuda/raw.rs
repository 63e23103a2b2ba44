//! Owns the ways to a batch for those who use it by their own means: addresses and handles of the driver's.
//! It must never wait for the device where an event will do.

use std::any::Any;
use std::ffi::c_void;

use super::CudaDevice;
use super::driver;
use super::event::{CudaEvent, RecordedEvent};
use super::memory::CudaMemory;
use crate::device::{DeviceError, DeviceMemory, Event};
use crate::sync::Arc;

/// A batch as any program that speaks CUDA can use it. All handles are the driver's, and valid for as long as the batch and
/// its device are.
#[derive(Clone, Copy, Debug)]
pub struct RawBatch {
    /// Where the finished batch is in device memory: a `CUdeviceptr`.
    pub pointer: u64,
    /// How many bytes there are at most.
    pub bytes: usize,
    /// The stream on which the device expects its consumer: a `CUstream`.
    pub stream: *mut c_void,
    /// The point after which the batch may be read: a `CUevent`; null where it has passed.
    pub ready: *mut c_void,
    /// The device's primary context: a `CUcontext`.
    pub context: *mut c_void,
}

impl CudaDevice {
    /// A batch for any other program that speaks CUDA. Reading it there is sound if it comes after
    /// [`RawBatch::ready`] and before what the batch is released by.
    ///
    /// # Errors
    /// [`DeviceError::Unsupported`] for memory of another device.
    pub fn raw(&self, memory: &DeviceMemory, ready: &Event) -> Result<RawBatch, DeviceError> {
        let own = self.own(memory)?;
        let ready = match CudaEvent::mark_in(ready, &self.in_flight) {
            Some(mark) => mark.recorded().raw(),
            None => {
                ready.wait()?;
                std::ptr::null_mut()
            }
        };
        let (stream, context) = (self.compute.raw(), self.context.raw());
        Ok(RawBatch { pointer: own.finished(), bytes: memory.len(), stream, ready, context })
    }

    /// What keeps memory alive that [`open_with`](CudaDevice::open_with)'s `allocate` has made.
    #[must_use]
    pub fn keep<T: Any>(memory: &DeviceMemory) -> Option<&T> {
        memory.handle::<Arc<CudaMemory>>()?.keep()?.downcast_ref()
    }

    /// The present end of a stream of the consumer's, for [`Batch::release_after`](crate::Batch::release_after).
    ///
    /// # Errors
    /// Whatever is wrong with the device.
    ///
    /// # Safety
    /// `stream` has to be a stream (a `CUstream`) of this device's primary context that is alive.
    #[allow(unsafe_code, reason = "the caller vouches for a stream of its own")]
    pub unsafe fn event_on(&self, stream: *mut c_void) -> Result<Event, DeviceError> {
        // SAFETY: as the caller says.
        let recorded = unsafe { driver::record_on(&self.context, stream.cast()) }?;
        Ok(self.event(&RecordedEvent::new(recorded, "a point on a stream of the consumer's")))
    }
}
