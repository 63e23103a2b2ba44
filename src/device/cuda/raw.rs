//! Addresses and handles of a batch, for other code that uses CUDA.

use std::any::Any;
use std::ffi::c_void;

use super::CudaDevice;
use super::driver;
use super::event::CudaEvent;
use super::memory::CudaMemory;
use super::recorded_event::RecordedEvent;
use crate::device::{DeviceError, DeviceMemory, Event};
use crate::sync::Arc;

/// A batch for any code that uses CUDA. All handles are the driver's, and valid as long as the batch and its device.
#[derive(Clone, Copy, Debug)]
pub struct RawBatch {
    /// Address of the batch in device memory: a `CUdeviceptr`.
    pub pointer: u64,
    /// Size of the memory.
    pub bytes: usize,
    /// The compute stream, on which the device expects its consumer: a `CUstream`.
    pub stream: *mut c_void,
    /// Event after which the batch may be read: a `CUevent`; null if it has passed.
    pub ready: *mut c_void,
    /// The device's primary context: a `CUcontext`.
    pub context: *mut c_void,
}

impl CudaDevice {
    /// Returns the handles of a batch. Reading it is sound after [`RawBatch::ready`] and before the event that the
    /// batch is released by.
    ///
    /// # Errors
    /// [`DeviceError::ForeignMemory`] for memory of another device.
    pub fn raw(&self, memory: &DeviceMemory, ready: &Event) -> Result<RawBatch, DeviceError> {
        let own = self.own(memory)?;
        let ready = match CudaEvent::recorded_in(ready, &self.in_flight) {
            Some(event) => event.raw().raw(),
            None => {
                ready.wait()?;
                std::ptr::null_mut()
            }
        };
        let (stream, context) = (self.compute.raw(), self.context.raw());
        Ok(RawBatch { pointer: own.output(), bytes: memory.len(), stream, ready, context })
    }

    /// Owner of memory that the `allocate` of [`open_with`](CudaDevice::open_with) has returned.
    #[must_use]
    pub fn keep<T: Any>(memory: &DeviceMemory) -> Option<&T> {
        memory.handle::<Arc<CudaMemory>>()?.keep()?.downcast_ref()
    }

    /// Returns the present end of a consumer's stream, for [`Batch::release_after`](crate::Batch::release_after).
    ///
    /// # Errors
    /// The sticky error.
    ///
    /// # Safety
    /// `stream` must be a live stream (a `CUstream`) of this device's primary context.
    #[allow(unsafe_code, reason = "the caller vouches for its stream")]
    pub unsafe fn event_on(&self, stream: *mut c_void) -> Result<Event, DeviceError> {
        // SAFETY: as the caller says.
        let recorded = unsafe { driver::record_on(&self.context, stream.cast()) }?;
        Ok(self.event(&RecordedEvent::new(recorded, "an event on a consumer's stream")))
    }
}
