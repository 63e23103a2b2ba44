//! Owns how weights follow gradients: the optimizers there are, and the sum of gradients that a step takes.
//! It must never know how a gradient came about.

use std::fmt;
use std::str::FromStr;

use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamWConfig, GradientsParams, Optimizer, SgdConfig};
use burn::tensor::backend::AutodiffBackend;

use super::gradients;
use super::model::Network;

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

pub(super) fn sgd<B: AutodiffBackend>(weight_decay: f64) -> impl Optimizer<Network<B>, B> {
    let momentum = MomentumConfig::new().with_momentum(0.9).with_dampening(0.0).with_nesterov(true);
    let decay = WeightDecayConfig::new(weight_decay as f32);
    SgdConfig::new().with_momentum(Some(momentum)).with_weight_decay(Some(decay)).init()
}

pub(super) fn adamw<B: AutodiffBackend>(weight_decay: f64) -> impl Optimizer<Network<B>, B> {
    AdamWConfig::new().with_weight_decay(weight_decay as f32).init()
}

/// The gradients of the batches of a step.
///
/// A step learns from the mean over all its images, whatever the sizes of its batches: each batch's loss is a mean over
/// its own images, and counts by how many they are.
#[derive(Debug, Default)]
pub(super) struct GradientSum {
    gradients: GradientsParams,
    /// Images of the batches so far.
    pub(super) images: u64,
}

impl GradientSum {
    /// What a batch's loss is to be multiplied with, and the sum by the inverse for the images of all batches. The unit has
    /// no meaning but that sums stay near the size of means.
    pub(super) fn weight(images: usize) -> f64 {
        images as f64 / 64.0
    }

    pub(super) fn add<B: AutodiffBackend>(&mut self, model: &Network<B>, more: GradientsParams, images: usize) {
        if self.images == 0 {
            self.gradients = more;
        } else {
            gradients::add(model, &mut self.gradients, more);
        }
        self.images += images as u64;
    }

    /// The gradients so far, which are gone from here then.
    pub(super) fn take(&mut self) -> GradientsParams {
        std::mem::take(self).gradients
    }
}
