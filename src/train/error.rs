//! Owns what can go wrong while training.
//! It must never lose the subject and the numbers of what it wraps.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::collective::CollectiveError;
use super::memory::{MemoryAccount, MemorySaving, Phase};
use crate::{ByteCount, Error};

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
    /// Another rank of a data-parallel run is gone, or never came.
    Collective(CollectiveError),
    /// There is not enough memory on the device.
    OutOfMemory(Box<OutOfMemory>),
}

/// Training takes more memory than it may, or than there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutOfMemory {
    /// Up to which moment it got; `None`: nothing was allocated yet, this is a forecast.
    pub phase: Option<Phase>,
    /// Steps that went well before.
    pub steps: u64,
    /// Images in a batch.
    pub micro_batch: usize,
    /// Bytes that are needed, or that were asked for when it was refused.
    pub asked: ByteCount,
    /// Bytes that there may be in use.
    pub budget: Option<ByteCount>,
    /// Where the memory goes: as predicted.
    pub account: MemoryAccount,
    /// In use at that moment; zero where nothing was allocated yet.
    pub in_use: ByteCount,
    /// What would help most.
    pub savings: Vec<MemorySaving>,
    /// What the device said, where it was the device that refused.
    pub said: Option<String>,
}

impl OutOfMemory {
    /// Whether it never fitted: it ran out before two steps were done, after which every step takes the same.
    #[must_use]
    pub fn at_start(&self) -> bool {
        self.steps <= 2
    }
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OutOfMemory { phase, steps, micro_batch, asked, budget, account, in_use, savings, said } = self;
        let limit = budget.map_or_else(|| "the device has".to_owned(), |budget| format!("the budget of {budget}"));
        match phase {
            None => write!(f, "training would not fit: a batch of {micro_batch} takes {asked}, more than {limit}")?,
            Some(phase) => write!(
                f,
                "out of memory {} after '{phase}': a batch of {micro_batch} took {asked}, more than {limit}, with {in_use} in use",
                if self.at_start() { "at the start".to_owned() } else { format!("in mid-run, {steps} steps in") }
            )?,
        }
        if let Some(said) = said {
            write!(f, " ({said})")?;
        }
        write!(f, "\nwhere it goes:")?;
        for (name, bytes) in account.rows() {
            write!(f, "\n  {name:<16} {bytes:>10}")?;
        }
        write!(f, "\n  {:<16} {:>10}", "peak", account.peak)?;
        if phase.is_some() && !self.at_start() {
            write!(
                f,
                "\nit fitted before, so something grew or somebody else took memory: look at the growth in the report"
            )?;
        }
        match savings.as_slice() {
            [] => f.write_str("\nno setting would help: take a smaller model or smaller images"),
            savings => {
                f.write_str("\nwhat would help:")?;
                savings.iter().try_for_each(|saving| {
                    let fits = budget.is_some_and(|budget| saving.peak <= budget);
                    write!(f, "\n  {saving}{}", if fits { "; then it fits" } else { "" })
                })?;
                if *micro_batch > 1 {
                    f.write_str("\n  --micro-batch auto finds the largest batch that fits, if one does")?;
                }
                Ok(())
            }
        }
    }
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
            TrainError::Collective(error) => error.fmt(f),
            TrainError::OutOfMemory(what) => what.fmt(f),
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
