//! Owns what a run tells while it runs and when it is over.
//! It must never print: whoever watches draws.

use super::memory::{AllocatorStats, Forecast, MemoryAccount, MemorySample};
use crate::ByteCount;

/// What a run tells its observer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum TrainEvent<'a> {
    /// The model is ready.
    Started {
        /// Trainable numbers in it.
        parameters: usize,
        /// The first epoch of this run: above 0 where it resumes.
        epoch: u64,
        /// Batches of that epoch that are done: above 0 where it resumes in the middle.
        batches: u64,
    },
    /// Two steps are done, so it is known where memory goes. Told once, where the memory can be read.
    Memory(&'a MemoryReport),
    /// Some steps are done. Told about ten times a second.
    Progress(&'a Progress),
    /// An epoch is done and validated, and its checkpoint written.
    Epoch(&'a EpochReport),
    /// Channels were pruned.
    Pruned(&'a PruneReport),
}

/// Where the memory of training goes: as measured, and as predicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryReport {
    /// Read at each [`Phase`](crate::train::Phase).
    pub at: [MemorySample; 5],
    /// Where it goes.
    pub account: MemoryAccount,
    /// What was predicted before the first step.
    pub forecast: Forecast,
}

/// What pruning did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PruneReport {
    /// After this many epochs.
    pub after_epochs: u64,
    /// Numbers of the model, before and after.
    pub parameters: [usize; 2],
    /// What a forward pass keeps for the way back, before and after, as predicted.
    pub activations: [ByteCount; 2],
    /// In use at most in a step, before and after, as predicted.
    pub peak: [ByteCount; 2],
    /// On the validation images, before and right after.
    pub scores: Option<[Score; 2]>,
}

/// How far an epoch has got.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    /// The epoch, from 0.
    pub epoch: u64,
    /// How many epochs there will be.
    pub epochs: u64,
    /// Steps done in this epoch.
    pub step: u64,
    /// Steps of an epoch, as far as can be told.
    pub steps: u64,
    /// Batches output from in this epoch. A step takes one, or several whose gradients it adds up.
    pub batches: u64,
    /// Images trained on in this epoch.
    pub images: u64,
    /// Seconds of this epoch.
    pub seconds: f64,
    /// Mean loss of this epoch's images so far.
    pub loss: f64,
    /// Share of them that the model named rightly when it met them.
    pub accuracy: f64,
    /// The learning rate of the latest step.
    pub learning_rate: f64,
    /// Share of the time in which the trainer waited for data.
    pub input_wait_share: f64,
    /// Share of the time that went into forward, backward and optimizer.
    pub compute_share: f64,
    /// Memory of training, where it can be read: in use now, and at most since it was last told.
    pub memory: Option<MemorySample>,
    /// What the allocator holds from the system, where that can be told; looked at when an epoch is done.
    pub allocator: Option<AllocatorStats>,
}

impl Progress {
    /// Images a second in this epoch.
    #[must_use]
    pub fn images_per_s(&self) -> f64 {
        if self.seconds > 0.0 { self.images as f64 / self.seconds } else { 0.0 }
    }
}

/// How well a model does on images that it was not trained on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// How many images.
    pub images: u64,
    /// Their mean loss, without smoothing.
    pub loss: f64,
    /// Share of them that the model names rightly.
    pub accuracy: f64,
    /// Seconds it took to find out.
    pub seconds: f64,
}

/// What came of an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EpochReport {
    /// Its training.
    pub training: Progress,
    /// Its validation, where there are images for it.
    pub validation: Option<Score>,
}

/// What came of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrainReport {
    /// Trainable numbers in the model.
    pub parameters: usize,
    /// Where memory goes, where it can be read.
    pub memory: Option<MemoryReport>,
    /// What pruning did, if this run pruned.
    pub pruned: Option<PruneReport>,
    /// Every epoch of this run that was finished; those before a resume are not among them.
    pub epochs: Vec<EpochReport>,
    /// Whether it was stopped before its last epoch was done.
    pub interrupted: bool,
}

impl TrainReport {
    /// Images trained on.
    #[must_use]
    pub fn images(&self) -> u64 {
        self.epochs.iter().map(|epoch| epoch.training.images).sum()
    }

    /// Seconds of training, without validation.
    #[must_use]
    pub fn train_seconds(&self) -> f64 {
        self.epochs.iter().map(|epoch| epoch.training.seconds).sum()
    }

    /// Images a second over all epochs, without validation.
    #[must_use]
    pub fn images_per_s(&self) -> f64 {
        let seconds = self.train_seconds();
        if seconds > 0.0 { self.images() as f64 / seconds } else { 0.0 }
    }

    /// Share of the training time in which the trainer waited for data.
    #[must_use]
    pub fn input_wait_share(&self) -> f64 {
        let waited: f64 = self.epochs.iter().map(|e| e.training.input_wait_share * e.training.seconds).sum();
        let seconds = self.train_seconds();
        if seconds > 0.0 { waited / seconds } else { 0.0 }
    }

    /// The last epoch's validation.
    #[must_use]
    pub fn validation(&self) -> Option<Score> {
        self.epochs.last()?.validation
    }
}
