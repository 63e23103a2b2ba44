//! Streams, events on them, and enqueued work: copies from the host and kernels. Nothing here waits for a stream.

use std::ffi::c_void;
use std::ptr;
use std::time::Duration;

use cudarc::driver::sys::{self, CUresult};

use super::{Context, Handle, Kernel};
use crate::device::DeviceError;
use crate::sync::{Arc, lock};

/// A kernel argument.
#[derive(Clone, Copy, Debug)]
pub(in crate::device::cuda) enum Argument {
    U32(u32),
    U64(u64),
}

/// An event recorded on a stream. The driver's event is reused when this is dropped.
#[derive(Debug)]
pub(in crate::device::cuda) struct RawEvent {
    raw: Handle<sys::CUevent_st>,
    context: Arc<Context>,
}

impl RawEvent {
    /// Takes an unused event, or creates one.
    fn take(context: &Arc<Context>) -> Result<Self, DeviceError> {
        let used = lock(&context.events).pop();
        let raw = match used {
            Some(raw) => raw,
            None => {
                let mut raw = ptr::null_mut();
                // SAFETY: writes one handle. Timing is enabled, since busy time is measured by these events.
                context.call("cuEventCreate", || unsafe { sys::cuEventCreate(&mut raw, 0) })?;
                Handle(raw)
            }
        };
        Ok(RawEvent { raw, context: Arc::clone(context) })
    }

    /// Returns true if the stream has reached the event.
    pub(in crate::device::cuda) fn is_over(&self) -> Result<bool, DeviceError> {
        // SAFETY: the event is alive.
        let code = unsafe { sys::cuCtxSetCurrent(self.context.raw.0) };
        if code != CUresult::CUDA_SUCCESS {
            return Err(self.context.error("cuCtxSetCurrent", code));
        }
        // SAFETY: as above.
        match unsafe { sys::cuEventQuery(self.raw.0) } {
            CUresult::CUDA_SUCCESS => Ok(true),
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            code => Err(self.context.error("cuEventQuery", code)),
        }
    }

    /// Time on the device from this event to a later one. Both have passed.
    pub(in crate::device::cuda) fn until(&self, later: &RawEvent) -> Result<Duration, DeviceError> {
        let mut ms = 0f32;
        self.context
            // SAFETY: writes one float; both events are alive.
            .call("cuEventElapsedTime", || unsafe { sys::cuEventElapsedTime_v2(&mut ms, self.raw.0, later.raw.0) })?;
        Ok(Duration::from_secs_f64(f64::from(ms.max(0.0)) / 1e3))
    }

    /// The handle, for other libraries.
    pub(in crate::device::cuda) fn raw(&self) -> *mut c_void {
        self.raw.0.cast()
    }
}

impl Drop for RawEvent {
    fn drop(&mut self) {
        // It may be recorded again before it has passed: a wait refers to the recording at the time it was enqueued.
        lock(&self.context.events).push(self.raw);
    }
}

/// A queue of work on the device, ordered with other streams by events alone.
#[derive(Debug)]
pub(in crate::device::cuda) struct Stream {
    raw: Handle<sys::CUstream_st>,
    context: Arc<Context>,
}

impl Stream {
    pub(in crate::device::cuda) fn new(context: &Arc<Context>) -> Result<Self, DeviceError> {
        let mut raw = ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes one handle.
        context.call("cuStreamCreate", || unsafe { sys::cuStreamCreate(&mut raw, flags) })?;
        Ok(Stream { raw: Handle(raw), context: Arc::clone(context) })
    }

    /// The handle, for other libraries.
    pub(in crate::device::cuda) fn raw(&self) -> *mut c_void {
        self.raw.0.cast()
    }

    /// Records an event at the present end.
    pub(in crate::device::cuda) fn record(&self) -> Result<RawEvent, DeviceError> {
        // SAFETY: a stream of this context.
        unsafe { record_on(&self.context, self.raw.0) }
    }

    /// Makes everything enqueued from now on start after this event.
    pub(in crate::device::cuda) fn wait(&self, event: &RawEvent) -> Result<(), DeviceError> {
        // SAFETY: stream and event are alive; the event may go before the wait is over.
        let wait = || unsafe { sys::cuStreamWaitEvent(self.raw.0, event.raw.0, 0) };
        Ok(self.context.call("cuStreamWaitEvent", wait)?)
    }

    /// Enqueues a copy from the host. From page-locked memory it is asynchronous; other memory has been read by the
    /// time the call returns (for more than 64 KiB that may take as long as the copy).
    ///
    /// # Safety
    /// Until the copy is over `from` is valid for `len` bytes and not written, and `to` is device memory of that length
    /// whose every other use is ordered before or after the copy by events.
    pub(in crate::device::cuda) unsafe fn copy_in(
        &self,
        to: u64,
        from: *const u8,
        len: usize,
    ) -> Result<(), DeviceError> {
        // SAFETY: the caller vouches for both addresses.
        let copy = || unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.cast(), len, self.raw.0) };
        Ok(self.context.call("cuMemcpyHtoDAsync", copy)?)
    }

    /// Enqueues a kernel on a grid of blocks.
    ///
    /// # Safety
    /// The arguments are the kernel's, and the memory that they name is valid until it is over, with every other use
    /// ordered before or after it by events.
    pub(in crate::device::cuda) unsafe fn launch(
        &self,
        kernel: Kernel,
        grid: [u32; 2],
        block: u32,
        arguments: &[Argument],
    ) -> Result<(), DeviceError> {
        let mut pointers: Vec<*mut c_void> = arguments
            .iter()
            .map(|argument| match argument {
                Argument::U32(value) => ptr::from_ref(value).cast_mut().cast(),
                Argument::U64(value) => ptr::from_ref(value).cast_mut().cast(),
            })
            .collect();
        let [x, y] = grid;
        // SAFETY: the caller vouches for the arguments, which are copied in the call.
        let launch = || unsafe {
            sys::cuLaunchKernel(kernel.0.0, x, y, 1, block, 1, 1, 0, self.raw.0, pointers.as_mut_ptr(), ptr::null_mut())
        };
        Ok(self.context.call("cuLaunchKernel", launch)?)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: created here, destroyed once. The driver finishes enqueued work.
        let _ = self.context.call("cuStreamDestroy", || unsafe { sys::cuStreamDestroy_v2(self.raw.0) });
    }
}

/// Records an event at the present end of any stream of the context.
///
/// # Safety
/// The stream is alive, and of this context.
pub(in crate::device::cuda) unsafe fn record_on(
    context: &Arc<Context>,
    stream: sys::CUstream,
) -> Result<RawEvent, DeviceError> {
    let event = RawEvent::take(context)?;
    // SAFETY: the caller vouches for the stream; the event is not in use.
    context.call("cuEventRecord", || unsafe { sys::cuEventRecord(event.raw.0, stream) })?;
    Ok(event)
}
