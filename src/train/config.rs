//! Settings of a run: their defaults, which were measured to work, and their ranges.

use std::path::PathBuf;

use super::error::TrainError;
use super::freeze::Freeze;
use super::model::{ModelKind, NetworkConfig};
use super::optimizer::OptimizerKind;
use super::precision::Precision;
use super::schedule::Schedule;
use super::step::Checkpointing;
use crate::ByteCount;
use crate::rng::Seed;

/// Structured pruning of channels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prune {
    /// Share of the channels inside each block that is removed, in `(0, 1)`.
    pub share: f64,
    /// Number of epochs before it. Those after it fine-tune the smaller network.
    pub after_epochs: u64,
}

/// Settings of a run.
///
/// ```
/// use feedstock::train::{ModelKind, Precision, TrainConfig};
///
/// let mut config = TrainConfig::new(ModelKind::Small, 10, 32);
/// config.epochs = 20;
/// config.precision = Precision::Bf16;
/// config.checkpoint = Some("run1/last.ckpt".into());
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct TrainConfig {
    /// Network.
    pub model: NetworkConfig,
    /// Optimizer.
    pub optimizer: OptimizerKind,
    /// Number of epochs.
    pub epochs: u64,
    /// Learning rate schedule. The default peak is for batches of 64; scale it with the batch size.
    pub schedule: Schedule,
    /// L2 penalty (SGD) or decoupled decay (AdamW).
    pub weight_decay: f64,
    /// Label smoothing: share of each label that is spread over all classes, in `[0, 1)` (Szegedy and others, 2016).
    pub label_smoothing: f64,
    /// Seed of the initial weights. The loader has a seed of its own, for order and crops.
    pub seed: Seed,
    /// Floating-point type of the activations.
    pub precision: Precision,
    /// Activation checkpointing. [`Checkpointing::Balanced`] needs the backend that does it.
    pub checkpointing: Checkpointing,
    /// Parameters that are not trained.
    pub freeze: Freeze,
    /// Number of batches of a step. Their gradients are added up, so a step takes the memory of one batch.
    pub accumulate: u64,
    /// Pruning, if any.
    pub prune: Option<Prune>,
    /// Checkpoint of the same kind of network to take the weights from, without its head where the classes differ.
    pub start_from: Option<PathBuf>,
    /// Maximum memory of training on its device: parameters, gradients, optimizer state, activations and batches. A run
    /// that would take more is refused, with the settings that would help.
    pub device_budget: Option<ByteCount>,
    /// File of the checkpoint, written after each epoch and when the run is stopped.
    pub checkpoint: Option<PathBuf>,
    /// Number of steps after which a checkpoint is written too. 0 writes one after each epoch only.
    pub checkpoint_every: u64,
    /// Resumes from that checkpoint, which must exist.
    pub resume: bool,
}

impl TrainConfig {
    /// Defaults for a network, a number of classes and the side of the images in pixels: three epochs in batches of 64,
    /// with SGD, or AdamW for a transformer.
    ///
    /// Three epochs of CIFAR-10 with [`RandomCrop`](crate::transform::RandomCrop) and a flip reach about 70 % test
    /// accuracy; more epochs reach more.
    #[must_use]
    pub fn new(kind: ModelKind, classes: usize, side: u32) -> Self {
        let config = TrainConfig {
            model: NetworkConfig::new(kind, classes, side),
            optimizer: OptimizerKind::Sgd,
            epochs: 3,
            schedule: Schedule { peak: 0.1, warmup: 0.2 },
            weight_decay: 5e-4,
            label_smoothing: 0.1,
            seed: Seed(0),
            precision: Precision::F32,
            checkpointing: Checkpointing::None,
            freeze: Freeze::Nothing,
            accumulate: 1,
            prune: None,
            start_from: None,
            device_budget: None,
            checkpoint: None,
            checkpoint_every: 0,
            resume: false,
        };
        if kind == ModelKind::VitTiny { config.optimizer(OptimizerKind::AdamW) } else { config }
    }

    /// Sets the optimizer, with its learning rate and weight decay.
    ///
    /// ```
    /// use feedstock::train::{ModelKind, OptimizerKind, TrainConfig};
    ///
    /// let config = TrainConfig::new(ModelKind::ResNet18, 10, 32).optimizer(OptimizerKind::AdamW);
    /// assert_eq!(config.schedule.peak, 2e-3);
    /// ```
    #[must_use]
    pub fn optimizer(mut self, optimizer: OptimizerKind) -> Self {
        self.optimizer = optimizer;
        (self.schedule.peak, self.weight_decay) = match optimizer {
            OptimizerKind::Sgd => (0.1, 5e-4),
            OptimizerKind::AdamW => (2e-3, 0.05),
        };
        self
    }

    /// Label smoothing in the form that burn takes.
    pub(super) fn smoothing(&self) -> Option<f32> {
        (self.label_smoothing > 0.0).then_some(self.label_smoothing as f32)
    }

    /// Everything that must be the same for a run to resume from a checkpoint, as one word.
    pub(super) fn recipe(&self) -> String {
        let TrainConfig { model: NetworkConfig { kind, width, classes, side, .. }, optimizer, .. } = self;
        format!("{kind}-width{width}-classes{classes}-side{side}-{optimizer}")
    }

    pub(super) fn check(&self) -> Result<(), TrainError> {
        let TrainConfig { schedule, weight_decay, label_smoothing, prune, .. } = self;
        let wrong = if let Err(wrong) = self.model.check() {
            wrong
        } else if self.epochs == 0 {
            "0 epochs: use 1 or more".to_owned()
        } else if !(schedule.peak.is_finite() && schedule.peak > 0.0) {
            format!("learning rate {}: use a number above 0, such as 0.1", schedule.peak)
        } else if !(0.0..=1.0).contains(&schedule.warmup) {
            format!("warm-up {}: use a share of the run, from 0 to 1", schedule.warmup)
        } else if !(weight_decay.is_finite() && *weight_decay >= 0.0) {
            format!("weight decay {weight_decay}: use 0 or more")
        } else if !(0.0..1.0).contains(label_smoothing) {
            format!("label smoothing {label_smoothing}: use 0 or more, below 1")
        } else if self.accumulate == 0 {
            "0 batches a step: use 1 or more".to_owned()
        } else if let Some(Prune { share, .. }) = prune
            && !(*share > 0.0 && *share < 1.0)
        {
            format!("pruning a share of {share}: use a number above 0 and below 1, such as 0.3")
        } else if let Some(Prune { after_epochs, .. }) = prune
            && !(1..self.epochs).contains(after_epochs)
        {
            format!(
                "pruning after {after_epochs} of {} epochs: at least one epoch comes before it, to train the \
                 channels, and \
                 one after it, to fine-tune those that are left",
                self.epochs
            )
        } else if self.resume && self.checkpoint.is_none() {
            "resuming needs a checkpoint: set its path".to_owned()
        } else if self.resume && self.start_from.is_some() {
            "resuming and starting from the weights of another checkpoint: choose one of them".to_owned()
        } else {
            return Ok(());
        };
        Err(TrainError::Config(wrong))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_refused() {
        let good = TrainConfig::new(ModelKind::Small, 10, 32);
        assert!(good.check().is_ok());
        let broken: [fn(&mut TrainConfig); 14] = [
            |c| c.model.classes = 0,
            |c| c.model.width = 0,
            |c| c.epochs = 0,
            |c| c.schedule.peak = f64::NAN,
            |c| c.schedule.warmup = 1.5,
            |c| c.weight_decay = -1.0,
            |c| c.label_smoothing = 1.0,
            |c| c.resume = true,
            |c| c.accumulate = 0,
            |c| c.prune = Some(Prune { share: 1.0, after_epochs: 1 }),
            |c| c.prune = Some(Prune { share: 0.3, after_epochs: 3 }),
            |c| c.model.hidden = vec![3],
            |c| c.model = NetworkConfig { width: 32, ..NetworkConfig::new(ModelKind::VitTiny, 10, 32) },
            |c| c.model = NetworkConfig::new(ModelKind::VitTiny, 10, 225),
        ];
        for (i, break_it) in broken.iter().enumerate() {
            let mut config = good.clone();
            break_it(&mut config);
            assert!(matches!(config.check(), Err(TrainError::Config(_))), "case {i}");
        }
    }
}
