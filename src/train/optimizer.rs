//! Optimizers of a network.

use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamW, AdamWConfig, GradientsParams, Optimizer, Sgd, SgdConfig};
use burn::tensor::backend::AutodiffBackend;

use super::model::Network;
use super::names::named;

/// Optimizer that updates the weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OptimizerKind {
    /// Stochastic gradient descent with Nesterov momentum of 0.9.
    #[default]
    Sgd,
    /// Adam with decoupled weight decay (Loshchilov and Hutter, 2019).
    AdamW,
}

named!(OptimizerKind, "optimizer", Sgd => "sgd", AdamW => "adamw");

/// An optimizer with its state. An enum and no type parameter: the training loop is compiled once for each backend.
#[derive(Clone)]
pub(super) enum NetworkOptimizer<B: AutodiffBackend> {
    Sgd(OptimizerAdaptor<Sgd<B::InnerBackend>, Network<B>, B>),
    AdamW(OptimizerAdaptor<AdamW, Network<B>, B>),
}

impl<B: AutodiffBackend> NetworkOptimizer<B> {
    pub(super) fn new(kind: OptimizerKind, weight_decay: f64) -> Self {
        match kind {
            OptimizerKind::Sgd => {
                let momentum = MomentumConfig::new().with_momentum(0.9).with_dampening(0.0).with_nesterov(true);
                let decay = WeightDecayConfig::new(weight_decay as f32);
                let config = SgdConfig::new().with_momentum(Some(momentum)).with_weight_decay(Some(decay));
                NetworkOptimizer::Sgd(config.init())
            }
            OptimizerKind::AdamW => {
                NetworkOptimizer::AdamW(AdamWConfig::new().with_weight_decay(weight_decay as f32).init())
            }
        }
    }

    /// Updates the weights with the gradients of one step.
    pub(super) fn step(&mut self, learning_rate: f64, model: Network<B>, gradients: GradientsParams) -> Network<B> {
        match self {
            NetworkOptimizer::Sgd(sgd) => sgd.step(learning_rate, model, gradients),
            NetworkOptimizer::AdamW(adamw) => adamw.step(learning_rate, model, gradients),
        }
    }
}
