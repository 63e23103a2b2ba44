//! Owns why packing and verifying end early, in words that name the path, the numbers and what to do next. It must
//! never speak of a single bad sample: such are listed, and the run goes on.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::{ByteCount, ErrorKind};

/// Why a packed set could not be made, or not be checked.
#[derive(Debug)]
#[non_exhaustive]
pub enum PackError {
    /// A setting is out of its range.
    Config(String),
    /// The RAM budget does not hold one worker and the largest sample.
    OverBudget {
        /// The least that works, as far as is known.
        needed: ByteCount,
        /// What was given.
        budget: ByteCount,
        /// What the least is made of, or the sample that takes so much.
        what: String,
    },
    /// The machine has less memory than the budget says.
    OutOfMemory {
        /// What it refused.
        bytes: ByteCount,
    },
    /// The folder holds a set, or a part of one, that was packed otherwise.
    OtherSettings {
        /// The folder.
        path: PathBuf,
        /// The setting that differs.
        setting: String,
        /// What it was.
        recorded: String,
        /// What it would be now.
        asked: String,
    },
    /// The folder holds shards, and nothing that says how they were made.
    Occupied {
        /// What stands in the way.
        path: PathBuf,
    },
    /// Somebody else writes this shard.
    Busy {
        /// What is being written.
        path: PathBuf,
    },
    /// There is no manifest, so this is no packed set, or not yet.
    NotPacked {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The manifest, or the settings of an earlier run, cannot be understood.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// Storage gave back something else than was written to it.
    NotAsWritten {
        /// The file.
        path: PathBuf,
    },
    /// A file could not be read or written.
    Io {
        /// What was being done, as in "cannot write".
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A thread could not be started.
    Thread(io::Error),
    /// A thread died; its message is on standard error.
    WorkerDied,
}

impl PackError {
    /// What kind of error it is.
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

    /// An error of the system's, with its subject.
    pub(super) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| PackError::Io { doing, path, source }
    }
}

impl fmt::Display for PackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PackError::Config(what) => f.write_str(what),
            PackError::OverBudget { needed, budget, what } => {
                write!(
                    f,
                    "a RAM budget of {budget} is too small: this takes {needed} at least ({what}); raise the budget"
                )
            }
            PackError::OutOfMemory { bytes } => {
                write!(
                    f,
                    "the allocator refused {bytes}: the machine has less memory than the budget; lower the budget"
                )
            }
            PackError::OtherSettings { path, setting, recorded, asked } => write!(
                f,
                "{} was begun with another {setting}: {recorded} then, {asked} now; use the same again, or pack to \
                 another folder",
                path.display()
            ),
            PackError::Occupied { path } => write!(
                f,
                "{} is there already, and nothing says how it was made: pack to an empty folder",
                path.display()
            ),
            PackError::Busy { path } => {
                write!(f, "{} is being written by somebody else: give each job a part of its own", path.display())
            }
            PackError::NotPacked { path } => write!(
                f,
                "there is no {}: the folder is no packed set, or packing has not ended (pack again, it goes on where it \
                 was)",
                path.display()
            ),
            PackError::Unreadable { path, cause } => {
                write!(f, "{} cannot be understood: {cause}; restore it, or pack to another folder", path.display())
            }
            PackError::NotAsWritten { path } => write!(
                f,
                "{} reads back otherwise than it was written: check the disk and the memory, and pack again (it goes \
                 on where it was)",
                path.display()
            ),
            PackError::Io { doing, path, source } => {
                write!(f, "cannot {doing} {}: {source}", path.display())?;
                match source.kind() {
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                        f.write_str("; make room and pack again, it goes on where it was")
                    }
                    io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                        f.write_str("; check the permissions of it and of the folders above it")
                    }
                    io::ErrorKind::NotFound => f.write_str("; check the path, and whether it was moved or deleted"),
                    _ => Ok(()),
                }
            }
            PackError::Thread(error) => write!(f, "a thread could not be started: {error}"),
            PackError::WorkerDied => f.write_str("a thread died; its message is above"),
        }
    }
}

/// The text already carries what the operating system said, so there is no `source()` to print a second time.
impl std::error::Error for PackError {}
