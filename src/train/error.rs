//! Errors of training.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use burn::record::RecorderError;

use super::collective::CollectiveError;
use super::memory::{MemoryAccount, MemorySaving, Phase};
use crate::{ByteCount, Error};

/// Error of a training run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A setting is out of its range.
    #[error("{0}")]
    Config(String),
    /// The loader failed.
    #[error(transparent)]
    Data(#[from] Error),
    /// A file could not be read or written.
    #[error("cannot {operation} '{}'", path.display())]
    Io {
        /// "read" or "write".
        operation: &'static str,
        /// File.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// A checkpoint cannot be used.
    #[error("cannot use the checkpoint '{}'", path.display())]
    Checkpoint {
        /// File.
        path: PathBuf,
        /// Reason.
        source: CheckpointError,
    },
    /// The loss is not finite.
    #[error(
        "the loss is not finite after step {step} of epoch {epoch}, at learning rate {learning_rate:.4}: lower the \
         learning rate"
    )]
    Diverged {
        /// Epoch, from 0.
        epoch: u64,
        /// Number of steps of that epoch before.
        step: u64,
        /// Learning rate.
        learning_rate: f64,
    },
    /// Another rank of a data-parallel run is gone, or never joined.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// There is not enough memory on the device.
    #[error(transparent)]
    OutOfMemory(Box<OutOfMemory>),
}

impl TrainError {
    pub(super) fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        TrainError::Io { operation, path: path.to_owned(), source }
    }
}

/// Reason for which a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// It does not begin as a checkpoint of this version does.
    #[error("it is not a checkpoint of this version of feedstock: its first line is another")]
    Header,
    /// Its bytes are not those that were written.
    #[error("it is damaged: {written} bytes were written, and it holds {found}")]
    Damaged {
        /// Bytes that were written.
        written: usize,
        /// Bytes in the file.
        found: usize,
    },
    /// It holds a run with other settings.
    #[error("it holds a run of {theirs}, and this run is {ours}")]
    OtherRun {
        /// Settings of the checkpoint.
        theirs: String,
        /// Settings of this run.
        ours: String,
    },
    /// It was written within an epoch of other batches.
    #[error(
        "it was written within an epoch, after {batches} batches of {theirs}, and this run has {ours}: resume with \
         the same \
         batch size, ranks and seed, and change them at the end of an epoch"
    )]
    OtherBatches {
        /// Batches of the epoch that were trained on.
        batches: u64,
        /// Batch size, ranks and seed of the checkpoint.
        theirs: String,
        /// Batch size, ranks and seed of this run.
        ours: String,
    },
    /// It holds another kind of network.
    #[error("its network is {theirs}, and the network of this run is {ours}")]
    OtherNetwork {
        /// Network of the checkpoint.
        theirs: String,
        /// Network of this run.
        ours: String,
    },
    /// A parameter has another shape.
    #[error("its network has another shape: '{name}' is {found:?}, and {wanted:?} in this run")]
    Shape {
        /// Name of the parameter.
        name: String,
        /// Shape in the checkpoint.
        found: Vec<usize>,
        /// Shape in this run.
        wanted: Vec<usize>,
    },
    /// burn cannot read or write the record.
    #[error("its record cannot be converted")]
    Record(#[source] RecorderError),
}

impl CheckpointError {
    pub(super) fn of(self, path: &Path) -> TrainError {
        TrainError::Checkpoint { path: path.to_owned(), source: self }
    }
}

/// Training takes more memory than its budget, or than the device has.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutOfMemory {
    /// Last phase that was reached; `None` for a prediction, before anything was allocated.
    pub phase: Option<Phase>,
    /// Number of steps before.
    pub steps: u64,
    /// Images in a batch.
    pub micro_batch: usize,
    /// Bytes that are needed, or that were requested when the device refused.
    pub asked: ByteCount,
    /// Maximum number of bytes in use.
    pub budget: Option<ByteCount>,
    /// Predicted memory by purpose.
    pub account: MemoryAccount,
    /// Bytes in use at that moment; zero for a prediction.
    pub in_use: ByteCount,
    /// Settings that would help most.
    pub savings: Vec<MemorySaving>,
    /// Message of the device, if it was the device that refused.
    pub device_message: Option<String>,
}

impl OutOfMemory {
    /// Returns true if it never fitted: memory ran out within the first two steps, after which every step takes the
    /// same.
    #[must_use]
    pub fn at_start(&self) -> bool {
        self.steps <= 2
    }
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OutOfMemory { phase, steps, micro_batch, asked, budget, account, in_use, savings, device_message } = self;
        let limit = budget.map_or_else(|| "the device has".to_owned(), |budget| format!("the budget of {budget}"));
        match phase {
            None => write!(f, "training would not fit: a batch of {micro_batch} takes {asked}, more than {limit}")?,
            Some(phase) => write!(
                f,
                "out of memory {} after '{phase}': a batch of {micro_batch} took {asked}, more than {limit}, with \
                 {in_use} in use",
                if self.at_start() { "at the start".to_owned() } else { format!("after {steps} steps,") }
            )?,
        }
        if let Some(message) = device_message {
            write!(f, " ({message})")?;
        }
        write!(f, "\nmemory by purpose:")?;
        for (name, bytes) in account.rows().into_iter().chain([("peak", account.peak)]) {
            write!(f, "\n  {name:<16} {bytes:>10}")?;
        }
        if phase.is_some() && !self.at_start() {
            write!(
                f,
                "\nearlier steps did fit, so something grew or another process took memory: see the growth in the \
                 report"
            )?;
        }
        if savings.is_empty() {
            return f.write_str("\nno setting would help: use a smaller model or smaller images");
        }
        f.write_str("\nsettings that would help:")?;
        for saving in savings {
            let fits = budget.is_some_and(|budget| saving.peak <= budget);
            write!(f, "\n  {saving}{}", if fits { "; then it fits" } else { "" })?;
        }
        if *micro_batch > 1 {
            f.write_str("\n  --micro-batch auto finds the largest batch that fits, if one does")?;
        }
        Ok(())
    }
}

impl std::error::Error for OutOfMemory {}
