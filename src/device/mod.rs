//! Devices that batches are transferred to: the CPU, a simulated accelerator, and NVIDIA GPUs; with host and device
//! memory, events, and the conversion of a batch on the device (normalization, cast, layout).
//!
//! A device that works asynchronously has streams, each of which does its work in order. [`Device::enqueue_batch`]
//! enqueues a copy of the slot into device memory on the **copy stream** and the conversion after it; the consumer
//! reads batches on the **compute stream**. The simulated device converts on its copy stream; a GPU has a third stream,
//! the **convert stream**, so that copies go on while kernels run. The CPU has no streams and does everything in the
//! call. All order between streams is by [`Event`], so that no batch costs a wait of the host:
//!
//! ```text
//! slot --enqueue_batch--> [copy stream: wait for `after` | copy] --slot_free--> workers may write the slot again
//!                              ^                  |
//!                              |                  +--> [convert stream: convert] --ready--> [compute stream: read] --+
//!                              |                                                                                   |
//!                              +---------- `after` of the next transfer to the same memory <------ release ----------+
//! ```
//!
//! Soundness does not depend on destructors or on implementations of [`Device`]: a stream holds by `Arc` the memory
//! that it works on, and a slot is written again only once no other handle to its memory is left.
//!
//! ```
//! use std::sync::Arc;
//! use feedstock::device::{Device, Event, HostDevice, Transfer};
//! use feedstock::tensor::{DType, Layout, OutputFormat, SampleSpec};
//!
//! let device = HostDevice::new();
//! let spec = SampleSpec { height: 1, width: 2 };
//! let format = OutputFormat { dtype: DType::U8, layout: Layout::Nchw, normalize: None };
//! let mut slot = device.host_memory(6)?;
//! slot.as_mut_slice().copy_from_slice(&[1, 2, 3, 4, 5, 6]);
//! let mut batch = device.memory(6, 6)?;
//! let (from, after) = (Arc::new(slot), Event::done());
//! let events = device.enqueue_batch(Transfer { from, samples: 1, spec, format, to: &mut batch, after })?;
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
pub use event::Event;
#[doc(hidden)]
pub use event::Signal;
pub use host::HostDevice;
pub use memory::DeviceMemory;
#[doc(hidden)]
pub use output::convert_into;
pub use sim::{SimDevice, SimSpec};
pub use spec::{DeviceSpec, open};
#[doc(hidden)]
pub use transfer::{Transfer, TransferEvents};

use std::any::Any;
use std::fmt::Debug;
use std::time::Duration;

use event::WAIT_MAX;

pub use crate::memory::AllocError;
#[doc(hidden)]
pub use crate::memory::HostMemory;
use crate::units::ByteCount;

/// A device that batches are transferred to.
///
/// All methods may be called from any thread. [`read_back`](Device::read_back) waits for the batch; no other method
/// waits for a stream (a device without streams, such as the CPU, does the work in the call).
///
/// Errors are sticky: after a failure or a lifetime violation every later call returns the error.
///
/// Other crates may implement the trait, but its methods can change in any release.
pub trait Device: Any + Debug + Send + Sync {
    /// Name in the form that [`DeviceSpec`] parses: `cpu`, `sim:h2d=25GB/s,latency=10us`.
    fn name(&self) -> String;

    /// Allocates zeroed host memory for one slot, of the kind that this device copies from directly.
    ///
    /// # Errors
    /// [`DeviceError::HostMemory`] or [`DeviceError::OutOfMemory`] if there is no memory; the sticky error.
    fn host_memory(&self, len: usize) -> Result<HostMemory, DeviceError>;

    /// Allocates device memory for converted batches of up to `len` bytes: an entry of the device ring, made once and
    /// used for many batches. `copied` is the most that is copied to the device to be converted there
    /// ([`Transfer::copied_bytes`]), in bytes; 0 for batches that need no conversion. A device that converts during the
    /// copy takes no memory for it.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] with the bytes asked for and the bytes free; the sticky error.
    fn memory(&self, len: usize, copied: usize) -> Result<DeviceMemory, DeviceError>;

    /// Returns true if [`memory`](Device::memory) takes RAM of the host, which counts toward the RAM budget.
    fn counts_as_ram(&self) -> bool;

    /// Returns true if consumers can read slots in place, so that a batch that needs no conversion
    /// ([`OutputFormat::is_identity`](crate::tensor::OutputFormat::is_identity)) need not be transferred.
    fn reads_slots(&self) -> bool {
        false
    }

    /// Enqueues copy and conversion of one batch.
    ///
    /// An implementation drops [`Transfer::from`] before [`TransferEvents::slot_free`] passes. Otherwise the run fails
    /// with [`DeviceError::SlotHeld`] once that slot is to be written again.
    ///
    /// # Errors
    /// [`DeviceError::Size`] and [`DeviceError::Unsupported`] for a batch that does not fit or cannot be converted; the
    /// sticky error. After an error the batch is not transferred; a device that may still read the slot keeps its
    /// handle.
    fn enqueue_batch(&self, transfer: Transfer<'_>) -> Result<TransferEvents, DeviceError>;

    /// Copies the first `out.len()` bytes of a batch to the host once `ready` has passed. Blocks.
    ///
    /// # Errors
    /// [`DeviceError::Size`] if `out` is longer than the memory; the reason that `ready` failed.
    fn read_back(&self, from: &DeviceMemory, ready: &Event, out: &mut [u8]) -> Result<(), DeviceError>;

    /// Makes everything that the consumer enqueues on the compute stream from now on start after `ready`, without a
    /// wait of the host.
    ///
    /// # Errors
    /// The sticky error.
    fn order_after(&self, ready: &Event) -> Result<(), DeviceError>;

    /// Enqueues a training step for measurements: on the compute stream, after `ready`, it reads `memory` and keeps the
    /// stream busy for `duration`. `None` stands for the step time of a simulated device, and for zero on others.
    /// Returns the event of its end. A device without streams waits and sleeps in the call.
    ///
    /// # Errors
    /// The sticky error.
    fn step(&self, memory: &DeviceMemory, ready: &Event, duration: Option<Duration>) -> Result<Event, DeviceError>;

    /// Returns the present end of the compute stream: once it has passed, no work that the consumer has enqueued so far
    /// reads `memory`, and the memory may be written again.
    ///
    /// # Errors
    /// The sticky error.
    fn release(&self, memory: &DeviceMemory) -> Result<Event, DeviceError>;

    /// RAM that the device's own library took when the device was opened and keeps (for CUDA, the context). No
    /// reservation covers it, so a plan adds it to its headroom.
    fn host_overhead(&self) -> ByteCount {
        ByteCount::ZERO
    }

    /// Warnings for the user, one sentence each: memory that could not be page-locked, for example.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// Utilization of the streams, if the device measures it.
    fn utilization(&self) -> Option<Utilization> {
        None
    }

    /// Returns the sticky error, if there is one.
    ///
    /// # Errors
    /// The first failure or lifetime violation.
    fn check(&self) -> Result<(), DeviceError>;
}

impl dyn Device {
    /// This device as a `T`, if it is one.
    #[must_use]
    pub fn downcast_ref<T: Device>(&self) -> Option<&T> {
        let any: &dyn Any = self;
        any.downcast_ref()
    }
}

/// Busy time of a device's streams since the consumer's first step began. [`since`](Self::since) subtracts an earlier
/// reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Utilization {
    /// Time since the first step began.
    pub elapsed: Duration,
    /// Part of it in which the compute stream was busy.
    pub compute_busy: Duration,
    /// Part of it in which the copy stream was busy.
    pub copy_busy: Duration,
}

impl Utilization {
    /// Share of the time in which the compute stream was busy, `0..=1`; zero before the first step.
    #[must_use]
    pub fn compute_share(&self) -> f64 {
        share(self.compute_busy, self.elapsed)
    }

    /// Share of the time in which the copy stream was busy, `0..=1`; zero before the first step.
    #[must_use]
    pub fn copy_share(&self) -> f64 {
        share(self.copy_busy, self.elapsed)
    }

    /// Difference from an earlier reading.
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

/// Checks that `needed` bytes fit into `given`.
fn check_size(what: &'static str, needed: usize, given: usize) -> Result<(), DeviceError> {
    match needed <= given {
        true => Ok(()),
        false => Err(DeviceError::Size { what, needed: bytes(needed), given: bytes(given) }),
    }
}
