//! Owns what can go wrong with a device.
//! It must never hold more than words and numbers, so that an error can be kept, cloned and handed to every waiter.

use std::fmt;
use std::time::Duration;

use crate::units::ByteCount;

/// What went wrong with a device, its memory or the name it was asked for by.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceError {
    /// There is not enough memory of a kind.
    OutOfMemory {
        /// Of which kind: "host memory", "device memory".
        what: &'static str,
        /// What was asked for.
        asked: ByteCount,
        /// What there was, where that can be told.
        free: Option<ByteCount>,
        /// Who holds the rest, and how it came to that, where that can be told.
        usage: Option<Box<MemoryUsage>>,
    },
    /// A batch does not fit.
    Size {
        /// What was to fit where.
        what: &'static str,
        /// What it needs.
        needed: ByteCount,
        /// What there is.
        given: ByteCount,
    },
    /// The device was lost or closed; whatever was enqueued on it will never be done.
    Lost {
        /// Its name.
        device: String,
        /// What is known about it.
        cause: String,
    },
    /// Something enqueued on the device failed.
    Failed {
        /// What: "copy 3".
        what: String,
        /// Why.
        cause: String,
    },
    /// Memory was read or written before the event had passed that allows it, or after its owner was gone.
    Lifetime(String),
    /// The device cannot do this, or cannot be used.
    Unsupported(String),
    /// There is nothing of the kind on this machine, as on most.
    Absent(String),
    /// An event did not pass in time.
    Timeout {
        /// What was waited for.
        what: String,
        /// For how long.
        waited: Duration,
    },
    /// A text that names no device.
    Spec {
        /// The text.
        text: String,
        /// What is wrong with it, and what would be right.
        cause: String,
    },
}

/// Who holds a device's memory, and how it came to that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryUsage {
    /// What there is in all.
    pub total: ByteCount,
    /// What this device's own batches hold.
    pub held: ByteCount,
    /// What everybody else holds: the model and what it computes with, other programs.
    pub others: ByteCount,
    /// Batches that had been fed by then. None: it happened at the start.
    pub batches: u64,
    /// What was free how long before, oldest first.
    pub trend: Vec<(Duration, ByteCount)>,
}

impl fmt::Display for MemoryUsage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MemoryUsage { total, held, others, batches, trend } = self;
        write!(f, " of {total}: the loader's batches hold {held}, others (the model, other programs) {others}. ")?;
        if *batches == 0 {
            return f.write_str(
                "It happened at the start: the model and its first batches do not fit. Use smaller batches, a smaller \
                 element type, a lower precision of the model, or activation checkpointing; or end the other programs",
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
            ". Something has grown since the start, or another program has come: look for tensors that are kept",
        )
    }
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceError::OutOfMemory { what, asked, free, usage } => {
                write!(f, "out of {what}: {asked} asked for")?;
                if let Some(free) = free {
                    write!(f, ", {free} free")?;
                }
                match usage {
                    Some(usage) => usage.fmt(f),
                    None => f.write_str("; use smaller batches or fewer of them in flight"),
                }
            }
            DeviceError::Size { what, needed, given } => {
                write!(f, "{what} needs {} bytes, and there are {}", needed.0, given.0)
            }
            DeviceError::Lost { device, cause } => write!(f, "device '{device}' is lost: {cause}"),
            DeviceError::Failed { what, cause } => write!(f, "{what} failed: {cause}"),
            DeviceError::Lifetime(what) => write!(f, "lifetime violation: {what}"),
            DeviceError::Unsupported(what) | DeviceError::Absent(what) => f.write_str(what),
            DeviceError::Timeout { what, waited } => {
                write!(f, "{what} has not passed within {} s; the device may hang", waited.as_secs_f64())
            }
            DeviceError::Spec { text, cause } => write!(f, "'{text}' is no device: {cause}"),
        }
    }
}

impl std::error::Error for DeviceError {}
