//! Reports of a run, while it runs and at its end.

use super::memory::{AllocatorStats, Forecast, MemoryAccount, MemorySample};
use crate::ByteCount;

/// Event of a run, for its observer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum TrainEvent<'a> {
    /// The model is ready.
    Started {
        /// Number of trainable parameters.
        parameters: usize,
        /// First epoch of this run: above 0 if it resumes.
        epoch: u64,
        /// Batches of that epoch that are done: above 0 if it resumes within an epoch.
        batches: u64,
    },
    /// Memory of the first two steps. Sent once, if the memory is measured.
    Memory(&'a MemoryReport),
    /// Progress, about ten times a second.
    Progress(&'a Progress),
    /// An epoch has ended, its validation is done and its checkpoint written.
    Epoch(&'a EpochReport),
    /// Channels were pruned.
    Pruned(&'a PruneReport),
}

/// Memory of training: measured and predicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct MemoryReport {
    /// Measured at each [`Phase`](crate::train::Phase).
    pub at: [MemorySample; 5],
    /// Measured, by purpose.
    pub account: MemoryAccount,
    /// Predicted before the first step.
    pub forecast: Forecast,
}

/// Effect of pruning.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct PruneReport {
    /// Number of epochs before it.
    pub after_epochs: u64,
    /// Parameters of the model, before and after.
    pub parameters: [usize; 2],
    /// Predicted bytes of activations, before and after.
    pub activations: [ByteCount; 2],
    /// Predicted peak of a step, before and after.
    pub peak: [ByteCount; 2],
    /// Scores on the validation images, before and right after.
    pub scores: Option<[Score; 2]>,
}

/// Progress of an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Progress {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Number of epochs of the run.
    pub epochs: u64,
    /// Steps done in this epoch.
    pub step: u64,
    /// Estimated number of steps of the epoch.
    pub steps: u64,
    /// Batches trained on in this epoch. A step takes one, or several whose gradients it adds up.
    pub batches: u64,
    /// Images trained on in this epoch.
    pub images: u64,
    /// Seconds of this epoch.
    pub seconds: f64,
    /// Mean loss of the images so far.
    pub loss: f64,
    /// Share of them that the model predicted correctly when it saw them.
    pub accuracy: f64,
    /// Learning rate of the latest step.
    pub learning_rate: f64,
    /// Share of the time spent waiting for data.
    pub input_wait_share: f64,
    /// Share of the time spent in forward pass, backward pass and optimizer.
    pub compute_share: f64,
    /// Memory in use now, and its peak since the last report; if measured.
    pub memory: Option<MemorySample>,
    /// Statistics of the allocator at the end of an epoch, if known.
    pub allocator: Option<AllocatorStats>,
}

impl Progress {
    /// Images per second in this epoch.
    #[must_use]
    pub fn images_per_s(&self) -> f64 {
        if self.seconds > 0.0 { self.images as f64 / self.seconds } else { 0.0 }
    }
}

/// Score of a model on images that it was not trained on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Score {
    /// Number of images.
    pub images: u64,
    /// Mean loss, without label smoothing.
    pub loss: f64,
    /// Share of the images that the model predicts correctly.
    pub accuracy: f64,
    /// Seconds of the validation.
    pub seconds: f64,
}

/// Result of an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct EpochReport {
    /// Training.
    pub training: Progress,
    /// Validation, if there are images for it.
    pub validation: Option<Score>,
}

/// Result of a run.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct TrainReport {
    /// Number of trainable parameters.
    pub parameters: usize,
    /// Memory, if measured.
    pub memory: Option<MemoryReport>,
    /// Effect of pruning, if this run pruned.
    pub pruned: Option<PruneReport>,
    /// Complete epochs of this run, without those before a resume.
    pub epochs: Vec<EpochReport>,
    /// True if it was stopped before its last epoch was complete.
    pub interrupted: bool,
}

impl TrainReport {
    /// Number of images trained on.
    #[must_use]
    pub fn images(&self) -> u64 {
        self.epochs.iter().map(|epoch| epoch.training.images).sum()
    }

    /// Seconds of training, without validation.
    #[must_use]
    pub fn train_seconds(&self) -> f64 {
        self.epochs.iter().map(|epoch| epoch.training.seconds).sum()
    }

    /// Images per second over all epochs, without validation.
    #[must_use]
    pub fn images_per_s(&self) -> f64 {
        let seconds = self.train_seconds();
        if seconds > 0.0 { self.images() as f64 / seconds } else { 0.0 }
    }

    /// Share of the training time spent waiting for data.
    #[must_use]
    pub fn input_wait_share(&self) -> f64 {
        let waited: f64 = self.epochs.iter().map(|e| e.training.input_wait_share * e.training.seconds).sum();
        let seconds = self.train_seconds();
        if seconds > 0.0 { waited / seconds } else { 0.0 }
    }

    /// Validation of the last epoch.
    #[must_use]
    pub fn validation(&self) -> Option<Score> {
        self.epochs.last()?.validation
    }
}
