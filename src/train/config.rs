//! Owns what a run is asked for, the defaults that were measured to work, and what is out of range.
//! It must never know of data or devices.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::error::TrainError;
use super::model::{ModelKind, ResNetConfig};
use super::schedule::Schedule;
use crate::Seed;

/// How weights follow gradients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OptimizerKind {
    /// Stochastic gradient descent with Nesterov momentum of 0.9.
    #[default]
    Sgd,
    /// Adam with decoupled weight decay (Loshchilov and Hutter, 2019).
    AdamW,
}

impl fmt::Display for OptimizerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            OptimizerKind::Sgd => "sgd",
            OptimizerKind::AdamW => "adamw",
        })
    }
}

impl FromStr for OptimizerKind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "sgd" => Ok(OptimizerKind::Sgd),
            "adamw" => Ok(OptimizerKind::AdamW),
            _ => Err(format!("'{text}' is no optimizer: use sgd or adamw")),
        }
    }
}

/// What a run is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainConfig {
    /// The network.
    pub model: ResNetConfig,
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
    /// Where to write a checkpoint after each epoch.
    pub checkpoint: Option<PathBuf>,
    /// Whether to go on from that checkpoint, which must be there then.
    pub resume: bool,
}

impl TrainConfig {
    /// Defaults for this many classes and images of this side: SGD, three epochs, batches of 64.
    ///
    /// Three epochs of CIFAR-10 with [`RandomCrop`](crate::transform::RandomCrop) and a flip end near 70 % test accuracy;
    /// more epochs end higher.
    #[must_use]
    pub fn new(classes: usize, side: u32) -> Self {
        TrainConfig {
            model: ResNetConfig { kind: ModelKind::for_side(side), width: 32, classes },
            optimizer: OptimizerKind::Sgd,
            epochs: 3,
            schedule: Schedule { peak: 0.1, warmup: 0.2 },
            weight_decay: 5e-4,
            label_smoothing: 0.1,
            seed: Seed(0),
            checkpoint: None,
            resume: false,
        }
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

    /// What must be the same for a run to go on from a checkpoint, in one word.
    pub(super) fn recipe(&self) -> String {
        let TrainConfig { model: ResNetConfig { kind, width, classes }, optimizer, .. } = self;
        format!("{kind}-width{width}-classes{classes}-{optimizer}")
    }

    pub(super) fn check(&self) -> Result<(), TrainError> {
        let TrainConfig { model, schedule, weight_decay, label_smoothing, .. } = self;
        let wrong = if model.classes == 0 || model.width == 0 {
            format!("a model of width {} for {} classes: both are at least 1", model.width, model.classes)
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
        } else if self.resume && self.checkpoint.is_none() {
            "to resume takes a checkpoint: say where it is".to_owned()
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
        let good = TrainConfig::new(10, 32);
        assert!(good.check().is_ok());
        let broken: [fn(&mut TrainConfig); 8] = [
            |c| c.model.classes = 0,
            |c| c.model.width = 0,
            |c| c.epochs = 0,
            |c| c.schedule.peak = f64::NAN,
            |c| c.schedule.warmup = 1.5,
            |c| c.weight_decay = -1.0,
            |c| c.label_smoothing = 1.0,
            |c| c.resume = true,
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
        for kind in [ModelKind::Small, ModelKind::Large] {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert!("adam".parse::<OptimizerKind>().is_err());
    }
}
