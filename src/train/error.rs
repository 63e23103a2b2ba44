//! Owns what can go wrong while training.
//! It must never lose the subject and the numbers of what it wraps.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::Error;

/// Why a run ended before its time, or never began.
#[derive(Debug)]
#[non_exhaustive]
pub enum TrainError {
    /// A setting is out of its range.
    Config(String),
    /// The loader failed.
    Data(Error),
    /// A file could not be read or written.
    Io {
        /// What was being done: "read", "write".
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A checkpoint is damaged, or of another run.
    Checkpoint {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The loss is no number any more.
    Diverged {
        /// In which epoch, from 0.
        epoch: u64,
        /// After how many of its steps.
        step: u64,
        /// At which learning rate.
        learning_rate: f64,
    },
}

impl TrainError {
    pub(super) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        TrainError::Io { doing, path: path.to_owned(), source }
    }
}

impl fmt::Display for TrainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TrainError::Config(what) => f.write_str(what),
            TrainError::Data(error) => error.fmt(f),
            TrainError::Io { doing, path, source } => write!(f, "cannot {doing} '{}': {source}", path.display()),
            TrainError::Checkpoint { path, why } => write!(f, "cannot use the checkpoint '{}': {why}", path.display()),
            TrainError::Diverged { epoch, step, learning_rate } => write!(
                f,
                "the loss is no number any more after step {step} of epoch {epoch}, at learning rate {learning_rate:.4}: \
                 lower the learning rate"
            ),
        }
    }
}

impl std::error::Error for TrainError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            TrainError::Data(error) => Some(error),
            TrainError::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
