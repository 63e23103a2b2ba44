//! The crate's error, and the kinds by which a program decides what to do about one.
//!
//! An error shows its own message and returns its cause from `source()`, never both.

use std::io;

use crate::bad_samples::BadSample;
use crate::budget::OverBudget;
use crate::device::DeviceError;
use crate::plan::BudgetTooSmall;
use crate::source::SourceError;

/// An error of the loader.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is out of its range, or contradicts another.
    #[error("{0}")]
    Config(String),
    /// The budget does not hold even the least plan.
    #[error(transparent)]
    OverBudget(#[from] BudgetTooSmall),
    /// The ledger refused a static reservation: the plan and the pipeline disagree, which is a bug.
    #[error("a reservation of the plan was refused (please report this)")]
    Ledger(#[from] OverBudget),
    /// The source failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A sample could not be used, and the policy is to fail.
    #[error(transparent)]
    Sample(#[from] BadSample),
    /// More samples could not be used than the policy allows.
    #[error(
        "{bad} of {samples} samples could not be used, {allowed} are allowed: remove or repair them, or allow more"
    )]
    TooManyBadSamples {
        /// Bad samples so far in this epoch.
        bad: u64,
        /// Bad samples that are allowed.
        allowed: u64,
        /// Samples of the epoch.
        samples: u64,
        /// The latest bad sample.
        #[source]
        latest: Box<BadSample>,
    },
    /// The consumer asked for a batch while it held all there are.
    #[error(
        "all {held} batches are in use: drop one before requesting another, or build the loader with batches_held({})",
        held + 1
    )]
    BatchesHeld {
        /// Batches that the consumer holds.
        held: usize,
    },
    /// Another epoch of this loader has not ended.
    #[error("another epoch of this loader has not ended: drop its iterator first")]
    Busy,
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A thread could not be started.
    #[error("a thread could not be started")]
    Thread(#[source] io::Error),
    /// A thread of the pipeline panicked; its message is on standard error.
    #[error("a thread of the pipeline panicked; its message is above")]
    WorkerDied,
    /// The run was cancelled.
    #[error("cancelled")]
    Cancelled,
}

/// The kind of an error, by which a program decides what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A request that cannot be satisfied.
    Config,
    /// A memory budget that is too small.
    Budget,
    /// Bad data.
    Data,
    /// A refusal of the operating system.
    Io,
    /// A failure of the device.
    Device,
    /// A cancelled run.
    Cancelled,
    /// A bug.
    Internal,
}

impl Error {
    /// The kind of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Config(_) | Error::BatchesHeld { .. } | Error::Busy => ErrorKind::Config,
            Error::OverBudget(_) => ErrorKind::Budget,
            Error::Sample(_) | Error::TooManyBadSamples { .. } => ErrorKind::Data,
            Error::Source(error) if error.is_io() => ErrorKind::Io,
            Error::Source(_) => ErrorKind::Data,
            Error::Thread(_) => ErrorKind::Io,
            Error::Device(_) => ErrorKind::Device,
            Error::Cancelled => ErrorKind::Cancelled,
            Error::Ledger(_) | Error::WorkerDied => ErrorKind::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;
    use crate::budget::{AccountKind, Ledger};
    use crate::decode::DecodeError;
    use crate::sample_error::SampleError;
    use crate::units::{ByteCount, SampleId};

    fn bad() -> BadSample {
        BadSample::new(SampleId(7), "a/b.jpg".to_owned(), SampleError::Decode(DecodeError::Empty))
    }

    /// The variant behind `previous`, `None` after the last.
    fn next(previous: Option<&Error>) -> Option<Error> {
        let refused = || Ledger::new(ByteCount(1)).account(AccountKind::Slots, ByteCount(1)).reserve(ByteCount(2));
        // Without a wildcard: a new variant has to be added here.
        Some(match previous {
            None => Error::Config("the batch size is 0".to_owned()),
            Some(Error::Config(_)) => BudgetTooSmall::new(ByteCount(2), ByteCount(1), Vec::new()).into(),
            Some(Error::OverBudget(_)) => refused().expect_err("too much").into(),
            Some(Error::Ledger(_)) => SourceError::Selection("nothing to mix".to_owned()).into(),
            Some(Error::Source(_)) => bad().into(),
            Some(Error::Sample(_)) => {
                Error::TooManyBadSamples { bad: 2, allowed: 1, samples: 9, latest: Box::new(bad()) }
            }
            Some(Error::TooManyBadSamples { .. }) => Error::BatchesHeld { held: 2 },
            Some(Error::BatchesHeld { .. }) => Error::Busy,
            Some(Error::Busy) => DeviceError::Unsupported("no such device".to_owned()).into(),
            Some(Error::Device(_)) => Error::Thread(io::Error::other("no thread left")),
            Some(Error::Thread(_)) => Error::WorkerDied,
            Some(Error::WorkerDied) => Error::Cancelled,
            Some(Error::Cancelled) => return None,
        })
    }

    #[test]
    fn no_message_repeats_its_cause() {
        let (mut walked, mut causes, mut last) = (0, 0, None);
        while let Some(error) = next(last.as_ref()) {
            let mut message = error.to_string();
            let mut cause = error.source();
            while let Some(inner) = cause {
                assert!(!message.contains(&inner.to_string()), "'{message}' repeats '{inner}'");
                (message, cause, causes) = (inner.to_string(), inner.source(), causes + 1);
            }
            (walked, last) = (walked + 1, Some(error));
        }
        assert_eq!((walked, causes), (12, 5));
    }
}
