//! Owns the memory that batches travel through and the way they get to the device: page-locked host memory, device
//! memory, asynchronous copies, events, and the last steps (normalise, cast, layout) on the device.
//! It must never decide when memory may be used again: it hands out events, and the pipeline waits for them.
//!
//! A device has two streams, each of which does its work in order: the **copy stream**, on which [`Device::feed`] moves
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
//! use feedstock::device::{Device, Event, Feed, HostDevice};
//! use feedstock::tensor::{DType, Finish, Layout, SampleSpec};
//!
//! let device = HostDevice::new();
//! let spec = SampleSpec { height: 1, width: 2 };
//! let finish = Finish { dtype: DType::U8, layout: Layout::Nchw, normalize: None };
//! let mut slot = device.host_memory(6)?;
//! slot.as_mut_slice().copy_from_slice(&[1, 2, 3, 4, 5, 6]);
//! let mut batch = device.memory(6)?;
//! let feed = Feed { from: Arc::new(slot), samples: 1, spec, finish, to: &mut batch, after: Event::done() };
//! let fed = device.feed(feed)?;
//! let mut bytes = [0; 6];
//! device.read_back(&batch, &fed.ready, &mut bytes)?;
//! assert_eq!(bytes, [1, 4, 2, 5, 3, 6]);
//! # Ok::<(), feedstock::device::DeviceError>(())
//! ```

#[cfg(test)]
mod conformance;
mod error;
mod event;
mod finish;
mod host;
mod memory;
mod sim;
mod spec;

pub use error::DeviceError;
pub use event::{Event, Signal, WAIT_MAX};
pub use finish::{finish_into, normalize_table};
pub use host::HostDevice;
pub use memory::{DeviceMemory, HostMemory, PAGE_BYTES};
pub use sim::{SimDevice, SimSpec};
pub use spec::{DeviceSpec, open};

use std::any::Any;
use std::fmt::Debug;
use std::time::Duration;

use crate::sync::Arc;
use crate::tensor::{DType, Finish, SampleSpec};
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

    /// Memory of the device for one finished batch: an entry of the device ring, made once and fed again and again.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] names what was asked and what was free.
    fn memory(&self, len: usize) -> Result<DeviceMemory, DeviceError>;

    /// Whether [`memory`](Device::memory) comes out of the host's RAM, and so out of its budget.
    fn counts_as_ram(&self) -> bool;

    /// Whether consumers may as well read slots where they are, so that a batch which needs no finish
    /// ([`Finish::is_identity`]) need not be fed at all.
    fn reads_slots(&self) -> bool {
        false
    }

    /// Enqueues copy and finish of one batch on the copy stream.
    ///
    /// # Errors
    /// [`DeviceError::Size`] and [`DeviceError::Unsupported`] for a batch that does not fit or cannot be finished, and
    /// whatever is wrong with the device. After an error nothing was enqueued.
    fn feed(&self, feed: Feed<'_>) -> Result<Fed, DeviceError>;

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

    /// The present end of the compute stream: once it has passed, nothing that the consumer has enqueued so far reads
    /// `memory`, and it may be fed again.
    ///
    /// # Errors
    /// Whatever is wrong with the device.
    fn release(&self, memory: &DeviceMemory) -> Result<Event, DeviceError>;

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

/// One batch on its way to the device.
#[derive(Debug)]
pub struct Feed<'a> {
    /// The slot: `samples` decoded samples one after another (u8, NHWC) from its first byte on. Until
    /// [`Fed::slot_free`] has passed nobody may write to the memory; by the time anybody has seen it pass, the device has
    /// dropped its handle.
    pub from: Arc<HostMemory>,
    /// How many samples there are; zero is a batch like any other.
    pub samples: usize,
    /// Shape of one sample.
    pub spec: SampleSpec,
    /// What is done to the samples on the device.
    pub finish: Finish,
    /// Where the finished batch goes, from the first byte on. Bytes past its end keep whatever they were.
    pub to: &'a mut DeviceMemory,
    /// What has to pass before `to` may be written: the consumer's [`release`](Device::release) of the batch before.
    pub after: Event,
}

impl Feed<'_> {
    /// Bytes that cross to the device.
    #[must_use]
    pub fn copied_bytes(&self) -> usize {
        self.samples.saturating_mul(self.spec.size_bytes(DType::U8))
    }

    /// Bytes of the finished batch.
    #[must_use]
    pub fn finished_bytes(&self) -> usize {
        self.samples.saturating_mul(self.spec.size_bytes(self.finish.dtype))
    }

    /// Whether this can be done at all. Every device asks this first.
    ///
    /// # Errors
    /// [`DeviceError::Size`] where slot or device memory are too small; [`DeviceError::Unsupported`] for a
    /// normalisation of bytes, or one by a standard deviation that is zero or no number.
    pub fn check(&self) -> Result<(), DeviceError> {
        let fits = |what, needed: usize, given: usize| match needed <= given {
            true => Ok(()),
            false => Err(DeviceError::Size { what, needed: bytes(needed), given: bytes(given) }),
        };
        fits("a batch in its slot", self.copied_bytes(), self.from.len())?;
        fits("a finished batch in device memory", self.finished_bytes(), self.to.len())?;
        let Some(normalize) = self.finish.normalize else { return Ok(()) };
        if self.finish.dtype == DType::U8 {
            return Err(DeviceError::Unsupported("bytes cannot be normalised: ask for f32 or bf16".to_owned()));
        }
        let usable = |std: &f32| std.is_finite() && *std != 0.0;
        if !normalize.std.iter().all(usable) || !normalize.mean.iter().all(|mean| mean.is_finite()) {
            let cause = format!("no normalisation by {normalize:?}: mean and std are numbers, and no std is zero");
            return Err(DeviceError::Unsupported(cause));
        }
        Ok(())
    }
}

/// What [`Device::feed`] hands back: two points on the copy stream.
#[derive(Clone, Debug)]
#[must_use = "the slot may be written only after `slot_free`, the batch read only after `ready`"]
pub struct Fed {
    /// After it the slot may be written again.
    pub slot_free: Event,
    /// After it the batch may be read.
    pub ready: Event,
}

/// How busy the streams of a device were, since the consumer's first step began. Two readings taken one after the other
/// can be subtracted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
