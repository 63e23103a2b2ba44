//! Errors of devices. They hold words and numbers alone, so that one error can be kept, cloned and given to every
//! waiter.

use std::fmt;
use std::time::Duration;

use crate::memory::AllocError;
use crate::units::ByteCount;

/// Failure of a device, of its memory, or of the text that names one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The operating system refused host memory.
    #[error(transparent)]
    HostMemory(#[from] AllocError),
    /// The device, or a limit on it, has too little memory of a kind.
    #[error("out of {what}: {asked} asked for{}", Shortage(.free, .usage))]
    OutOfMemory {
        /// Kind of memory: "device memory", "page-locked host memory".
        what: &'static str,
        /// Bytes asked for.
        asked: ByteCount,
        /// Bytes free, where known.
        free: Option<ByteCount>,
        /// Use of the device's memory, where known.
        usage: Option<Box<MemoryUsage>>,
    },
    /// A batch does not fit into a slot or into device memory.
    #[error("{what} needs {} bytes, and there are {}", .needed.0, .given.0)]
    Size {
        /// The data and its destination.
        what: &'static str,
        /// Bytes it takes.
        needed: ByteCount,
        /// Bytes there are.
        given: ByteCount,
    },
    /// The device was lost or closed. Work that was enqueued on it will not be done.
    #[error("device '{device}' is lost: {cause}")]
    Lost {
        /// Name of the device.
        device: String,
        /// Reason, as far as it is known.
        cause: String,
    },
    /// A command on the device failed.
    #[error("{what} failed: {cause}")]
    Failed {
        /// The command: "copy 3".
        what: String,
        /// Reason.
        cause: String,
    },
    /// Memory was read or written before the event that allows it had passed, or after its owner was gone.
    #[error("lifetime violation: {0}")]
    Lifetime(String),
    /// The device kept its handle to a slot's memory after [`slot_free`](super::TransferEvents::slot_free) had passed.
    #[error(
        "device '{device}' still holds the memory of a slot that is to be written again: a device has to drop \
         `Transfer::from` before `slot_free` passes"
    )]
    SlotHeld {
        /// Name of the device.
        device: String,
    },
    /// Memory was given to a device that did not make it.
    #[error("this memory belongs to another device than '{device}'")]
    ForeignMemory {
        /// Name of the device that was asked.
        device: String,
    },
    /// The device cannot do this, or cannot be used.
    #[error("{0}")]
    Unsupported(String),
    /// This machine has no device of the kind.
    #[error("{0}")]
    Absent(String),
    /// An event did not pass in time.
    #[error("{what} has not passed within {} s; the device may hang", .waited.as_secs_f64())]
    Timeout {
        /// The event.
        what: String,
        /// Length of the wait.
        waited: Duration,
    },
    /// A text does not name a device.
    #[error("unknown device '{text}': {cause}")]
    Spec {
        /// The text.
        text: String,
        /// Reason, and what is expected.
        cause: String,
    },
}

/// Use of a device's memory at the moment an allocation was refused, and how much was free before.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryUsage {
    /// Memory of the device.
    pub total: ByteCount,
    /// Held by the loader's batches.
    pub held: ByteCount,
    /// Held by others: the model, other programs.
    pub others: ByteCount,
    /// Batches that were transferred so far; 0 at the start of a run.
    pub batches: u64,
    /// Free memory at earlier moments, oldest first, each with its age.
    pub trend: Vec<(Duration, ByteCount)>,
}

/// Second half of the message of [`DeviceError::OutOfMemory`].
struct Shortage<'a>(&'a Option<ByteCount>, &'a Option<Box<MemoryUsage>>);

impl fmt::Display for Shortage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shortage(free, usage) = self;
        if let Some(free) = free {
            write!(f, ", {free} free")?;
        }
        let Some(MemoryUsage { total, held, others, batches, trend }) = usage.as_deref() else {
            return f.write_str("; use smaller batches or fewer of them in flight");
        };
        write!(f, " of {total}: the loader's batches hold {held}, others (the model, other programs) {others}. ")?;
        if *batches == 0 {
            return f.write_str(
                "It happened at the start: the model and its first batches do not fit. Use smaller batches, a smaller \
                 dtype, a lower precision of the model, or activation checkpointing; or end the other programs",
            );
        }
        write!(f, "It happened after {batches} batches")?;
        if !trend.is_empty() {
            f.write_str("; free before:")?;
            for (index, (before, free)) in trend.iter().enumerate() {
                let comma = if index == 0 { "" } else { "," };
                write!(f, "{comma} {free} {:.0} s ago", before.as_secs_f64())?;
            }
        }
        f.write_str(
            ". Memory use has grown since the start, or another program has started: look for tensors that are kept",
        )
    }
}
