//! The reasons for which a single sample cannot be used, as typed values.
//!
//! A [`SampleError`] keeps the error of the part that failed: the source, the decoder, the transform. It stays typed on
//! its way to the batch, the report and the error that ends a run, so that a caller can tell a truncated file from one
//! that is too large. [`SampleErrorKind`] is the same in one word, stable across versions.

use std::error::Error as StdError;
use std::fmt;

use crate::budget::OverBudget;
use crate::decode::{DecodeError, Format};
use crate::source::SourceError;
use crate::transform::TransformError;
use crate::units::ByteCount;

/// The step in which a sample failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Stage {
    /// Admission: its working set does not fit into the budget.
    Admit,
    /// Reading its stored bytes.
    Read,
    /// Reading its header.
    Probe,
    /// Decoding its pixels.
    Decode,
    /// Cropping and resizing its pixels.
    Transform,
}

impl Stage {
    /// Name of the stage in text and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Stage::Admit => "admit",
            Stage::Read => "read",
            Stage::Probe => "probe",
            Stage::Decode => "decode",
            Stage::Transform => "transform",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// An error of a single sample: one that could not be read, decoded or transformed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SampleError {
    /// Its stored bytes could not be read.
    #[error(transparent)]
    Read(#[from] SourceError),
    /// Its header is unknown, damaged, or beyond the limits.
    #[error(transparent)]
    Probe(DecodeError),
    /// Its pixels could not be decoded.
    #[error(transparent)]
    Decode(DecodeError),
    /// Its pixels could not be transformed.
    #[error(transparent)]
    Transform(#[from] TransformError),
    /// It is larger as stored than any file that is read.
    #[error("the file has {bytes}: at most {limit} are read")]
    FileTooLarge {
        /// Size as stored.
        bytes: ByteCount,
        /// The largest size that is read.
        limit: ByteCount,
    },
    /// It is larger as stored than the budget admits.
    #[error("the budget does not hold this file of {bytes}: raise the budget")]
    FileOverBudget {
        /// Size as stored.
        bytes: ByteCount,
        /// The ledger's refusal.
        #[source]
        refused: OverBudget,
    },
    /// Decoding it takes more than the budget admits.
    #[error(
        "decoding {format} of {width}x{height} takes {needed}, and the budget of {budget} leaves {available} for such \
         an image: raise the budget by {}", needed.saturating_sub(*available)
    )]
    ImageOverBudget {
        /// Image format.
        format: Format,
        /// Columns, as stored.
        width: u32,
        /// Rows, as stored.
        height: u32,
        /// Working set.
        needed: ByteCount,
        /// Largest working set that the budget admits.
        available: ByteCount,
        /// The loader's budget.
        budget: ByteCount,
    },
    /// The operating system has no memory for it.
    #[error("out of memory: the system refused {bytes} to {stage} this sample")]
    NoMemory {
        /// The step that asked for memory.
        stage: Stage,
        /// Bytes asked for.
        bytes: ByteCount,
    },
    /// The decoder or the transform panicked.
    #[error("decoding panicked: {message} (please report this)")]
    Panic {
        /// The panic's message.
        message: String,
    },
}

/// The kind of a [`SampleError`], for programs that count or filter them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum SampleErrorKind {
    /// The stored bytes could not be read.
    ReadFailed,
    /// The file has no bytes.
    Empty,
    /// The file is of no known format.
    UnknownFormat,
    /// The file ends before its image does.
    Truncated,
    /// The header or the pixel data contradicts the format.
    Damaged,
    /// The file is valid, and of a kind that is not decoded.
    Unsupported,
    /// The file or the image is larger than the limits admit.
    TooLarge,
    /// The file or the image takes more than the budget admits.
    OverBudget,
    /// The operating system has no memory.
    NoMemory,
    /// The transform failed.
    Transform,
    /// The decoder or the transform panicked.
    Panic,
}

impl SampleErrorKind {
    /// Stable snake_case code, as in JSON.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            SampleErrorKind::ReadFailed => "read_failed",
            SampleErrorKind::Empty => "empty",
            SampleErrorKind::UnknownFormat => "unknown_format",
            SampleErrorKind::Truncated => "truncated",
            SampleErrorKind::Damaged => "damaged",
            SampleErrorKind::Unsupported => "unsupported",
            SampleErrorKind::TooLarge => "too_large",
            SampleErrorKind::OverBudget => "over_budget",
            SampleErrorKind::NoMemory => "no_memory",
            SampleErrorKind::Transform => "transform",
            SampleErrorKind::Panic => "panic",
        }
    }
}

impl fmt::Display for SampleErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.code())
    }
}

impl From<&DecodeError> for SampleErrorKind {
    fn from(error: &DecodeError) -> Self {
        match error {
            DecodeError::Empty => SampleErrorKind::Empty,
            DecodeError::UnknownFormat { .. } => SampleErrorKind::UnknownFormat,
            DecodeError::TruncatedHeader { .. } | DecodeError::Truncated { .. } => SampleErrorKind::Truncated,
            DecodeError::InvalidHeader { .. }
            | DecodeError::ZeroSize { .. }
            | DecodeError::Damaged { .. }
            | DecodeError::HeaderMismatch { .. } => SampleErrorKind::Damaged,
            DecodeError::CodecPanicked { .. } => SampleErrorKind::Panic,
            DecodeError::Unsupported { .. } => SampleErrorKind::Unsupported,
            DecodeError::TooLarge { .. } => SampleErrorKind::TooLarge,
            DecodeError::OutOfMemory { .. } => SampleErrorKind::NoMemory,
        }
    }
}

impl SampleError {
    /// The kind of the error.
    #[must_use]
    pub fn kind(&self) -> SampleErrorKind {
        match self {
            SampleError::Read(_) => SampleErrorKind::ReadFailed,
            SampleError::Probe(error) | SampleError::Decode(error) => error.into(),
            SampleError::Transform(_) => SampleErrorKind::Transform,
            SampleError::FileTooLarge { .. } => SampleErrorKind::TooLarge,
            SampleError::FileOverBudget { .. } | SampleError::ImageOverBudget { .. } => SampleErrorKind::OverBudget,
            SampleError::NoMemory { .. } => SampleErrorKind::NoMemory,
            SampleError::Panic { .. } => SampleErrorKind::Panic,
        }
    }

    /// The step that failed.
    #[must_use]
    pub fn stage(&self) -> Stage {
        match self {
            SampleError::Read(_) => Stage::Read,
            SampleError::Probe(_) => Stage::Probe,
            SampleError::Decode(_) | SampleError::Panic { .. } => Stage::Decode,
            SampleError::Transform(_) => Stage::Transform,
            SampleError::NoMemory { stage, .. } => *stage,
            SampleError::FileTooLarge { .. }
            | SampleError::FileOverBudget { .. }
            | SampleError::ImageOverBudget { .. } => Stage::Admit,
        }
    }
}

/// An error and its causes on one line, separated by colons.
pub(crate) struct Chain<'a>(pub(crate) &'a dyn StdError);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_tell_truncated_from_too_large_from_no_memory() {
        let format = Format::Jpeg;
        let truncated = SampleError::Decode(DecodeError::Truncated { format, encoded_bytes: 10 });
        assert_eq!((truncated.kind().code(), truncated.stage()), ("truncated", Stage::Decode));
        let (bytes, limit) = (ByteCount(300 << 20), ByteCount(256 << 20));
        let large = SampleError::FileTooLarge { bytes, limit };
        assert_eq!((large.kind().code(), large.stage()), ("too_large", Stage::Admit));
        assert_eq!(large.to_string(), "the file has 300 MiB: at most 256 MiB are read");
        let none = SampleError::NoMemory { stage: Stage::Read, bytes };
        assert_eq!((none.kind().code(), none.stage()), ("no_memory", Stage::Read));
    }

    #[test]
    fn a_chain_says_each_message_once() {
        let account = crate::budget::Ledger::new(ByteCount(10));
        let account = account.account(crate::budget::AccountKind::OversizedFiles, ByteCount(10));
        let bytes = ByteCount(11);
        let error = SampleError::FileOverBudget { bytes, refused: account.reserve(bytes).expect_err("too large") };
        let chain = Chain(&error).to_string();
        assert_eq!(chain.matches("oversized files").count(), 1, "{chain}");
        assert!(chain.starts_with("the budget does not hold this file of 11 B"), "{chain}");
    }
}
