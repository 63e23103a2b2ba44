//! Owns the memory that batches travel through and the way they get to the device: page-locked host memory, device
//! memory, asynchronous copies, events, and the last steps (normalise, cast, layout) on the device.
//! It must never decide when memory may be used again: it hands out events, and the pipeline waits for them.
//!
//! A device has two streams, each of which does its work in order: the **copy stream**, on which [`Device::enqueue_batch`] moves
//! a slot into device memory and finishes it there, and the **compute stream**, on which the consumer reads batches. All
//! ordering between them is by [`Event`], so that no batch costs a wait of the host:
//!
//! ```text
//! slot --feed--> [copy stream: wait `after` | copy | finish] --ready--> [compute stream: order_after | reads] --release-+
//!                              ^                     |                                                                  |
//!                              |                     +-- slot_free: workers may write the slot again                    |
//!                              +------------------------- `after` of the next feed of the same memory ------------------+
//! ```
//!
//! Nothing here rests on a destructor for soundness: whatever a stream still works on, the stream holds by `Arc`.
//!
//! ```
//! use std::sync::Arc;
//! use feedstock::device::{Device, Event, Transfer, HostDevice};
//! use feedstock::tensor::{DType, OutputFormat, Layout, SampleSpec};
//!
//! let device = HostDevice::new();
//! let spec = SampleSpec { height: 1, width: 2 };
//! let format = OutputFormat { dtype: DType::U8, layout: Layout::Nchw, normalize: None };
//! let mut slot = device.host_memory(6)?;
//! slot.as_mut_slice().copy_from_slice(&[1, 2, 3, 4, 5, 6]);
//! let mut batch = device.memory(6, 6)?;
//! let (from, after) = (Arc::new(slot), Event::done());
//! let transfer = Transfer { from, samples: 1, spec, format, windows: None, to: &mut batch, after };
//! let events = device.enqueue_batch(transfer)?;
//! let mut bytes = [0; 6];
//! device.read_back(&batch, &events.ready, &mut bytes)?;
//! assert_eq!(bytes, [1, 4, 2, 5, 3, 6]);
//! # Ok::<(), feedstock::device::DeviceError>(())
//! ```

#[cfg(test)]
mod conformance;
#[cfg(feature = "cuda")]
mod cuda;
mod error;
mod event;
mod host;
mod memory;
mod output;
mod sim;
mod spec;
mod stream_trace;
mod transfer;

#[cfg(all(test, feature = "cuda"))]
pub(crate) use cuda::standin;
#[cfg(feature = "cuda")]
pub use cuda::{CudaDevice, CudaFacts, RawBatch, TransferRates, cuda_devices, nvrtc_is_present};
pub use error::{DeviceError, MemoryUsage};
pub use event::{Event, Signal, WAIT_MAX};
pub use host::HostDevice;
pub use memory::{DeviceMemory, HostMemory, PAGE_BYTES};
pub use output::{convert_into, convert_windows_into, normalize_table};
pub use sim::{SimDevice, SimSpec};
pub use spec::{DeviceSpec, open};
pub use transfer::{Place, Transfer, TransferEvents, Windows};

use std::any::Any;
use std::fmt::Debug;
use std::time::Duration;

use crate::units::ByteCount;

/// Where batches end up.
///
/// All methods may be called from any thread. None of them but [`read_back`](Device::read_back) waits for a stream to
/// get anywhere (a device without streams, such as the CPU, does the work in the call).
///
/// An error is sticky: after a failure or a lifetime violation every later call returns it.
pub trait Device: Any + Debug + Send + Sync {
    /// What a person would call it, in the form that [`DeviceSpec`] parses: `cpu`, `sim:h2d=25GB/s,latency=10us`.
    fn name(&self) -> String;

    /// Zeroed memory of the host for one slot, of the kind that this device copies from without a detour.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], or whatever is wrong with the device.
    fn host_memory(&self, len: usize) -> Result<HostMemory, DeviceError>;

    /// Memory of the device for one finished batch of up to `len` bytes: an entry of the device ring, made once and fed
    /// again and again. `copied` is the most that crosses to the device before it is finished there
    /// ([`Transfer::copied_bytes`]); 0 where batches need no finish. A device that finishes on the way needs no room for it.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] names what was asked and what was free.
    fn memory(&self, len: usize, copied: usize) -> Result<DeviceMemory, DeviceError>;

    /// Whether [`memory`](Device::memory) comes out of the host's RAM, and so out of its budget.
    fn counts_as_ram(&self) -> bool;

    /// Whether consumers may as well read slots where they are, so that a batch which needs no finish
    /// ([`OutputFormat::is_identity`](crate::tensor::OutputFormat::is_identity)) need not be fed at all.
    fn reads_slots(&self) -> bool {
        false
    }

    /// Enqueues copy and finish of one batch on the copy stream.
    ///
    /// # Errors
    /// [`DeviceError::Size`] and [`DeviceError::Unsupported`] for a batch that does not fit or cannot be finished, and
    /// whatever is wrong with the device. After an error nothing was enqueued.
    fn enqueue_batch(&self, transfer: Transfer<'_>) -> Result<TransferEvents, DeviceError>;

    /// Copies the first `out.len()` bytes of a finished batch back to the host, after `ready` has passed. Blocks.
    ///
    /// # Errors
    /// [`DeviceError::Size`] where `out` is longer than the memory; whatever made `ready` fail.
    fn read_back(&self, from: &DeviceMemory, ready: &Event, out: &mut [u8]) -> Result<(), DeviceError>;

    /// Lets everything that the consumer enqueues on the compute stream from here on begin only after `ready`, without
    /// a wait of the host.
    ///
    /// # Errors
    /// Whatever is wrong with the device.
    fn order_after(&self, ready: &Event) -> Result<(), DeviceError>;

    /// A training step, for measuring: on the compute stream, after `ready`, it reads `memory` and keeps the stream busy
    /// for this long (`None`: as long as the device's own setting says, for a simulated one; else no time at all). Returns
    /// the event of its end. A device without streams waits and sleeps in the call.
    ///
    /// # Errors
    /// Whatever is wrong with the device.
    fn step(&self, memory: &DeviceMemory, ready: &Event, duration: Option<Duration>) -> Result<Event, DeviceError>;

    /// The present end of the compute stream: once it has passed, nothing that the consumer has enqueued so far reads
    /// `memory`, and it may be fed again.
    ///
    /// # Errors
    /// Whatever is wrong with the device.
    fn release(&self, memory: &DeviceMemory) -> Result<Event, DeviceError>;

    /// RAM that the device's own library took when it was opened and keeps (for CUDA, the context): no reservation covers
    /// it, so a plan adds it to its headroom.
    fn host_overhead(&self) -> ByteCount {
        ByteCount::ZERO
    }

    /// What a person should know, one sentence each: memory that could not be page-locked, for example.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// How busy the streams were, where the device can tell.
    fn utilization(&self) -> Option<Utilization> {
        None
    }

    /// Whether all is well: the sticky error, if there is one.
    ///
    /// # Errors
    /// The first failure or lifetime violation.
    fn check(&self) -> Result<(), DeviceError>;
}

impl dyn Device {
    /// This device as what it really is, if it is a `T`.
    #[must_use]
    pub fn downcast_ref<T: Device>(&self) -> Option<&T> {
        let any: &dyn Any = self;
        any.downcast_ref()
    }
}

/// How busy the streams of a device were, since the consumer's first step began. Two readings taken one after the other
/// can be subtracted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Utilization {
    /// Time since the first step began.
    pub elapsed: Duration,
    /// Of it, time in which the compute stream was at work.
    pub compute_busy: Duration,
    /// Of it, time in which the copy stream was at work.
    pub copy_busy: Duration,
}

impl Utilization {
    /// Share of the time in which the compute stream was busy, `0..=1`; zero before anything has happened.
    #[must_use]
    pub fn compute_share(&self) -> f64 {
        share(self.compute_busy, self.elapsed)
    }

    /// Share of the time in which the copy stream was busy, `0..=1`; zero before anything has happened.
    #[must_use]
    pub fn copy_share(&self) -> f64 {
        share(self.copy_busy, self.elapsed)
    }

    /// What has happened since an earlier reading.
    #[must_use]
    pub fn since(&self, earlier: &Utilization) -> Utilization {
        Utilization {
            elapsed: self.elapsed.saturating_sub(earlier.elapsed),
            compute_busy: self.compute_busy.saturating_sub(earlier.compute_busy),
            copy_busy: self.copy_busy.saturating_sub(earlier.copy_busy),
        }
    }
}

fn share(busy: Duration, elapsed: Duration) -> f64 {
    if elapsed.is_zero() { 0.0 } else { (busy.as_secs_f64() / elapsed.as_secs_f64()).min(1.0) }
}

fn bytes(len: usize) -> ByteCount {
    ByteCount(len as u64)
}

/// Refuses to read back more than there is.
fn check_read_back(asked: usize, there: usize) -> Result<(), DeviceError> {
    match asked <= there {
        true => Ok(()),
        false => Err(DeviceError::Size { what: "what is read back", needed: bytes(asked), given: bytes(there) }),
    }
}
