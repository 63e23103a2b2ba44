//! Errors of packing and verification. A bad sample is not an error: it is listed, and the run goes on.

use std::io;
use std::path::PathBuf;

use crate::{ByteCount, ErrorKind};

/// Error of [`pack`](super::pack) or [`verify`](super::verify()).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// A setting is out of its range.
    #[error("{0}")]
    Config(String),
    /// The RAM budget does not hold one worker and the largest sample.
    #[error("a RAM budget of {budget} is too small: this takes at least {needed} ({parts}); raise the budget")]
    OverBudget {
        /// Minimum budget, as far as it is known.
        needed: ByteCount,
        /// Budget that was set.
        budget: ByteCount,
        /// Parts of the minimum, or the sample that needs it.
        parts: String,
    },
    /// The allocator refused memory that the budget allows.
    #[error("the allocator refused {bytes}: the machine has less memory than the budget; lower the budget")]
    OutOfMemory {
        /// Size that was refused.
        bytes: ByteCount,
    },
    /// The folder holds a set, complete or not, that was packed with other settings.
    #[error(
        "{} was packed with another {setting}: {recorded} then, {requested} now; use the same settings, or pack to \
         another folder",
        .path.display()
    )]
    OtherSettings {
        /// Folder of the set.
        path: PathBuf,
        /// Setting that differs.
        setting: String,
        /// Its recorded value.
        recorded: String,
        /// Its value now.
        requested: String,
    },
    /// The folder holds shards without a record of their settings.
    #[error("{} exists, without a record of how it was packed: pack to an empty folder", .path.display())]
    Occupied {
        /// File in the way.
        path: PathBuf,
    },
    /// Another process writes this shard.
    #[error("another process is writing {}: give each job a partition of its own", .path.display())]
    Busy {
        /// File being written.
        path: PathBuf,
    },
    /// The folder has no manifest: it is not a packed set, or packing has not ended.
    #[error(
        "there is no {}: the folder is not a packed set, or packing has not ended (pack again to continue)",
        .path.display()
    )]
    NotPacked {
        /// Expected path of the manifest.
        path: PathBuf,
    },
    /// The manifest, or the settings of an earlier run, cannot be parsed.
    #[error("cannot parse {} (restore it, or pack to another folder)", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: InvalidFile,
    },
    /// A file reads back with other bytes than were written.
    #[error(
        "{} reads back with other bytes than were written: check the disk and the memory, and pack again to continue",
        .path.display()
    )]
    NotAsWritten {
        /// The file.
        path: PathBuf,
    },
    /// A file could not be read or written.
    #[error("cannot {operation} {}{}", .path.display(), io_hint(.source))]
    Io {
        /// Operation, as an infinitive: "write".
        operation: &'static str,
        /// File or folder.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// A worker thread panicked; its message is on standard error.
    #[error("a worker thread panicked; its message is above")]
    WorkerDied,
}

/// Reason for which a manifest or a settings file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidFile {
    /// The text is not JSON.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// The file has another format, or another version of it.
    #[error("expected format {format}, version {version}")]
    Format {
        /// Name of the format.
        format: &'static str,
        /// Version of the format.
        version: u64,
    },
    /// A shard's file name leads out of the folder.
    #[error("invalid file name '{0}'")]
    FileName(String),
}

impl PackError {
    /// Kind of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            PackError::Config(_)
            | PackError::OtherSettings { .. }
            | PackError::Occupied { .. }
            | PackError::Busy { .. } => ErrorKind::Config,
            PackError::OverBudget { .. } => ErrorKind::Budget,
            PackError::NotPacked { .. } | PackError::Unreadable { .. } => ErrorKind::Data,
            PackError::OutOfMemory { .. }
            | PackError::NotAsWritten { .. }
            | PackError::Io { .. }
            | PackError::Thread(_) => ErrorKind::Io,
            PackError::WorkerDied => ErrorKind::Internal,
        }
    }

    /// Converter for the I/O errors of one operation.
    pub(super) fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| PackError::Io { operation, path, source }
    }
}

fn io_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => " (make room and pack again to continue)",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            " (check its permissions and those of the folders above it)"
        }
        io::ErrorKind::NotFound => " (check the path, and whether it was moved or deleted)",
        _ => "",
    }
}
