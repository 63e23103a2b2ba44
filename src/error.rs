//! Owns the crate's one error, gathered from the parts' own, and the kinds by which a program tells them apart.
//! It must never lose the subject and the numbers of what it wraps.

use std::fmt;
use std::io;

use crate::budget::OverBudget;
use crate::device::DeviceError;
use crate::pipeline::{BuildError, RunError};
use crate::plan::PlanError;
use crate::quarantine::BadSample;
use crate::source::SourceError;
use crate::units::ByteCount;

/// What went wrong.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A setting is out of its range, or contradicts another.
    Config(String),
    /// The budget does not hold even the least plan.
    OverBudget {
        /// The least that works.
        needed: ByteCount,
        /// What was given.
        budget: ByteCount,
        /// The byte table of the least plan, one account a line.
        table: String,
    },
    /// The ledger refused a static reservation: the plan and the pipeline disagree, which is a bug.
    Ledger(OverBudget),
    /// The source could not be opened.
    Source(SourceError),
    /// A sample could not be used, and the policy is to fail.
    Sample(BadSample),
    /// More samples could not be used than the policy allows.
    TooManyBadSamples {
        /// Bad ones so far in this epoch.
        bad: u64,
        /// How many are allowed.
        allowed: u64,
        /// Samples of the epoch.
        samples: u64,
        /// The latest.
        latest: Box<BadSample>,
    },
    /// The consumer asked for a batch while it held all there are.
    BatchesHeld {
        /// Batches in its hands.
        held: usize,
    },
    /// An epoch of this loader is still under way.
    Busy,
    /// The device failed.
    Device(DeviceError),
    /// A thread could not be started.
    Thread(io::Error),
    /// A thread of the pipeline died; its message is on standard error.
    WorkerDied,
    /// The run was called off.
    Cancelled,
}

/// The kind of an error, by which a program decides what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Asked for something that cannot be.
    Config,
    /// The memory budget is too small for it.
    Budget,
    /// The data is bad.
    Data,
    /// The operating system refused something.
    Io,
    /// The device failed.
    Device,
    /// Called off.
    Cancelled,
    /// A bug.
    Internal,
}

impl Error {
    /// What kind of error it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Config(_) | Error::BatchesHeld { .. } | Error::Busy => ErrorKind::Config,
            Error::OverBudget { .. } => ErrorKind::Budget,
            Error::Sample(_) | Error::TooManyBadSamples { .. } => ErrorKind::Data,
            Error::Source(SourceError::Io { .. }) | Error::Thread(_) => ErrorKind::Io,
            #[cfg(feature = "store")]
            Error::Source(SourceError::Store(error)) if error.is_io() => ErrorKind::Io,
            Error::Source(_) => ErrorKind::Data,
            Error::Device(_) => ErrorKind::Device,
            Error::Cancelled => ErrorKind::Cancelled,
            Error::Ledger(_) | Error::WorkerDied => ErrorKind::Internal,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Config(what) => f.write_str(what),
            Error::OverBudget { needed, budget, table } => write!(
                f,
                "a RAM budget of {budget} is too small: this takes {needed} at least. Raise the budget, or lower the batch \
                 size, the image size or the size of the output type. The least plan:\n{table}"
            ),
            Error::Ledger(refused) => write!(f, "{refused} (please report this: the plan should have seen it)"),
            Error::Source(error) => error.fmt(f),
            Error::Sample(bad) => write!(f, "a sample cannot be used: {bad}"),
            Error::TooManyBadSamples { bad, allowed, samples, latest } => write!(
                f,
                "{bad} of {samples} samples could not be used, {allowed} are allowed; the latest: {latest}. Remove or repair \
                 them, or allow more"
            ),
            Error::BatchesHeld { held } => write!(
                f,
                "a batch was asked for while all {held} that there are were held: drop one before asking for the next, or \
                 build the loader with batches_held({})",
                held + 1
            ),
            Error::Busy => f.write_str("an epoch of this loader is still under way: drop its iterator first"),
            Error::Device(error) => error.fmt(f),
            Error::Thread(error) => write!(f, "a thread could not be started: {error}"),
            Error::WorkerDied => f.write_str("a thread of the pipeline died; its message is above"),
            Error::Cancelled => f.write_str("called off"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Ledger(error) => Some(error),
            Error::Source(error) => Some(error),
            Error::Device(error) => Some(error),
            Error::Thread(error) => Some(error),
            _ => None,
        }
    }
}

impl From<SourceError> for Error {
    fn from(error: SourceError) -> Self {
        Error::Source(error)
    }
}

impl From<DeviceError> for Error {
    fn from(error: DeviceError) -> Self {
        Error::Device(error)
    }
}

impl From<PlanError> for Error {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::Config(what) => Error::Config(what),
            PlanError::OverBudget { needed, budget, table } => Error::OverBudget { needed, budget, table },
        }
    }
}

impl From<BuildError> for Error {
    fn from(error: BuildError) -> Self {
        match error {
            BuildError::Budget(error) => Error::Ledger(error),
            BuildError::Device(error) => Error::Device(error),
            BuildError::Thread(error) => Error::Thread(error),
        }
    }
}

impl From<RunError> for Error {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Sample(bad) => Error::Sample(bad),
            RunError::TooManyBad { bad, allowed, samples, latest } => {
                Error::TooManyBadSamples { bad, allowed, samples, latest }
            }
            RunError::Device(error) => Error::Device(error),
            RunError::Thread(error) => Error::Thread(error),
            RunError::Busy => Error::Busy,
            RunError::Cancelled => Error::Cancelled,
            RunError::WorkerDied => Error::WorkerDied,
        }
    }
}
