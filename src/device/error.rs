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
    /// The device cannot do this.
    Unsupported(String),
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

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceError::OutOfMemory { what, asked, free: Some(free) } => {
                write!(
                    f,
                    "out of {what}: {asked} asked for, {free} free; use smaller batches or fewer of them in flight"
                )
            }
            DeviceError::OutOfMemory { what, asked, free: None } => {
                write!(f, "out of {what}: {asked} asked for; use smaller batches or fewer of them in flight")
            }
            DeviceError::Size { what, needed, given } => {
                write!(f, "{what} needs {} bytes, and there are {}", needed.0, given.0)
            }
            DeviceError::Lost { device, cause } => write!(f, "device '{device}' is lost: {cause}"),
            DeviceError::Failed { what, cause } => write!(f, "{what} failed: {cause}"),
            DeviceError::Lifetime(what) => write!(f, "lifetime violation: {what}"),
            DeviceError::Unsupported(what) => f.write_str(what),
            DeviceError::Timeout { what, waited } => {
                write!(f, "{what} has not passed within {} s; the device may hang", waited.as_secs_f64())
            }
            DeviceError::Spec { text, cause } => write!(f, "'{text}' is no device: {cause}"),
        }
    }
}

impl std::error::Error for DeviceError {}
