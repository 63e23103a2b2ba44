//! Owns what a run is asked for, the defaults that were measured to work, and what is out of range.
//! It must never know of data or devices.

use std::path::PathBuf;

use super::error::TrainError;
use super::freeze::Freeze;
use super::model::{ModelKind, NetworkConfig};
use super::optimizer::OptimizerKind;
use super::precision::Precision;
use super::schedule::Schedule;
use super::step::Checkpointing;
use crate::{ByteCount, Seed};

/// When channels are pruned, and how many.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prune {
    /// The share of the channels inside each block that goes, in `(0, 1)`.
    pub share: f64,
    /// After how many epochs. What follows tunes the smaller network.
    pub after_epochs: u64,
}

/// What a run is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainConfig {
    /// The network.
    pub model: NetworkConfig,
    /// How weights follow gradients.
    pub optimizer: OptimizerKind,
    /// How often every image is seen.
    pub epochs: u64,
    /// The learning rate, and how it changes. Its peak suits batches of 64; scale it with the batch size.
    pub schedule: Schedule,
    /// L2 penalty (SGD) or decoupled decay (AdamW).
    pub weight_decay: f64,
    /// Share of each label that is spread over all classes, in `[0, 1)` (Szegedy and others, 2016).
    pub label_smoothing: f64,
    /// Decides the first weights. The loader has a seed of its own, for order and crops.
    pub seed: Seed,
    /// The type that activations are computed and kept in.
    pub precision: Precision,
    /// What of a forward pass is kept for the way back. [`Checkpointing::Balanced`] takes the backend that does it.
    pub checkpointing: Checkpointing,
    /// Which parameters do not learn.
    pub freeze: Freeze,
    /// Batches that a step learns from. Their gradients are added up, so a step takes the memory of one of them.
    pub accumulate: u64,
    /// Whether, when and how much to prune.
    pub prune: Option<Prune>,
    /// A checkpoint whose weights to start from: those of the same network, but for the head where classes differ.
    pub start_from: Option<PathBuf>,
    /// The most memory that training may take on its device: parameters, gradients, optimizer state, activations and
    /// batches. A run that would take more is refused, with what would help.
    pub device_budget: Option<ByteCount>,
    /// Where to write a checkpoint after each epoch, and when the run is stopped.
    pub checkpoint: Option<PathBuf>,
    /// Steps after which a checkpoint is written too; 0: after whole epochs only.
    pub checkpoint_every: u64,
    /// Whether to go on from that checkpoint, which must be there then.
    pub resume: bool,
}

impl TrainConfig {
    /// Defaults for this network, this many classes and images of this side: three epochs, batches of 64, with SGD; AdamW
    /// for a transformer.
    ///
    /// Three epochs of CIFAR-10 with [`RandomCrop`](crate::transform::RandomCrop) and a flip end near 70 % test accuracy;
    /// more epochs end higher.
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

    /// Takes another optimizer, with the learning rate and decay that suit it.
    #[must_use]
    pub fn optimizer(mut self, optimizer: OptimizerKind) -> Self {
        self.optimizer = optimizer;
        (self.schedule.peak, self.weight_decay) = match optimizer {
            OptimizerKind::Sgd => (0.1, 5e-4),
            OptimizerKind::AdamW => (2e-3, 0.05),
        };
        self
    }

    /// Label smoothing, as burn takes it.
    pub(super) fn smoothing(&self) -> Option<f32> {
        (self.label_smoothing > 0.0).then_some(self.label_smoothing as f32)
    }

    /// What must be the same for a run to go on from a checkpoint, in one word.
    pub(super) fn recipe(&self) -> String {
        let TrainConfig { model: NetworkConfig { kind, width, classes, side, .. }, optimizer, .. } = self;
        format!("{kind}-width{width}-classes{classes}-side{side}-{optimizer}")
    }

    pub(super) fn check(&self) -> Result<(), TrainError> {
        let TrainConfig { schedule, weight_decay, label_smoothing, prune, .. } = self;
        let wrong = if let Err(wrong) = self.model.check() {
            wrong
        } else if self.epochs == 0 {
            "0 epochs: ask for one at least".to_owned()
        } else if !(schedule.peak.is_finite() && schedule.peak > 0.0) {
            format!("a learning rate of {}: it is above 0, such as 0.1", schedule.peak)
        } else if !(0.0..=1.0).contains(&schedule.warmup) {
            format!("a warm-up of {}: it is a share of the run, from 0 to 1", schedule.warmup)
        } else if !(weight_decay.is_finite() && *weight_decay >= 0.0) {
            format!("a weight decay of {weight_decay}: it is 0 or above")
        } else if !(0.0..1.0).contains(label_smoothing) {
            format!("a label smoothing of {label_smoothing}: it is from 0 to below 1")
        } else if self.accumulate == 0 {
            "a step of 0 batches: it has one at least".to_owned()
        } else if let Some(Prune { share, .. }) = prune
            && !(*share > 0.0 && *share < 1.0)
        {
            format!("pruning a share of {share}: it is above 0 and below 1, such as 0.3")
        } else if let Some(Prune { after_epochs, .. }) = prune
            && !(1..self.epochs).contains(after_epochs)
        {
            format!(
                "pruning after {after_epochs} of {} epochs: some come before it, to learn which channels count, and some \
                 after it, to tune what is left",
                self.epochs
            )
        } else if self.resume && self.checkpoint.is_none() {
            "to resume takes a checkpoint: say where it is".to_owned()
        } else if self.resume && self.start_from.is_some() {
            "a run that resumes has its weights: it cannot start from others too".to_owned()
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
    fn what_is_out_of_range_is_refused() {
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

    #[test]
    fn names_parse_as_they_print() {
        for kind in [OptimizerKind::Sgd, OptimizerKind::AdamW] {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        for kind in ModelKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        for way in Checkpointing::ALL {
            assert_eq!(way.to_string().parse(), Ok(way));
        }
        assert!("adam".parse::<OptimizerKind>().is_err());
    }
}
