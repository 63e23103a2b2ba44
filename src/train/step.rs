//! Forward and backward pass of one batch, with or without activation checkpointing.

use burn::module::Module;
use burn::nn::loss::CrossEntropyLoss;
use burn::optim::GradientsParams;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{FloatDType, Int, Tensor};

use super::gradients;
use super::memory::Phase;
use super::model::{Network, Pass, cast};
use super::names::named;
use super::precision::Precision;

/// Activation checkpointing: which activations of the forward pass are kept for the backward pass, and which are
/// computed again (Chen and others, "Training deep nets with sublinear memory cost", 2016).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Checkpointing {
    /// All are kept.
    #[default]
    None,
    /// Those that are cheap to compute are computed again, as burn chooses. The backend does it: see
    /// [`CpuBalanced`](crate::train::CpuBalanced).
    Balanced,
    /// The input of each block is kept, and the block is computed again.
    Blocks,
}

named!(Checkpointing, "checkpointing", None => "none", Balanced => "balanced", Blocks => "blocks");

/// Settings of a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepKind {
    pub(super) precision: Precision,
    pub(super) checkpointing: Checkpointing,
    /// Factor on the loss before the backward pass, and so on the gradients.
    pub(super) factor: f64,
}

/// Result of a batch. Nothing in it holds the graph.
pub(super) struct StepOutput<B: AutodiffBackend> {
    /// Mean loss, `[1]`.
    pub(super) loss: Tensor<B::InnerBackend, 1>,
    /// Scores in f32, `[samples, classes]`.
    pub(super) scores: Tensor<B::InnerBackend, 2>,
    pub(super) gradients: GradientsParams,
}

/// Computes the loss of a batch and the gradients of a model. `reached` is called after the forward and the backward
/// pass.
///
/// With [`Checkpointing::Blocks`] the gradients are the same to the bit: the inputs and operations of a block are.
pub(super) fn forward_backward<B: AutodiffBackend>(
    model: &Network<B>,
    images: Tensor<B, 4>,
    labels: Tensor<B, 1, Int>,
    loss: &CrossEntropyLoss<B>,
    kind: StepKind,
    reached: &mut dyn FnMut(Phase),
) -> StepOutput<B> {
    let images = cast(images, kind.precision.dtype());
    let loss_of = |scores: Tensor<B, 2>| {
        let scores = cast(scores, FloatDType::F32);
        let loss = loss.forward(scores.clone(), labels);
        let detached = (loss.clone().inner(), scores.inner());
        let scaled = if kind.factor == 1.0 { loss } else { loss * kind.factor };
        (scaled, detached)
    };
    if kind.checkpointing != Checkpointing::Blocks {
        let (scaled, (loss, scores)) = loss_of(model.forward(images, Pass::Train));
        reached(Phase::Forward);
        let gradients = GradientsParams::from_grads(scaled.backward(), model);
        reached(Phase::Backward);
        return StepOutput { loss, scores, gradients };
    }

    // Keeps the input of each trainable part, and of the head. Weights without gradients make no graph.
    let (first, parts) = (model.first_trainable_part(), model.parts());
    let frozen = model.clone().no_grad();
    let mut inputs = Vec::new();
    let mut x = images;
    for part in 0..parts {
        if part >= first {
            inputs.push(x.clone());
        }
        x = frozen.part(part, x, Pass::Train);
    }
    drop(frozen);
    let mut top = if first < parts { x.require_grad() } else { x };
    let (scaled, (loss, scores)) = loss_of(model.head(top.clone()));
    reached(Phase::Forward);
    let mut gradients = GradientsParams::new();
    let mut found = scaled.backward();
    while let Some(before) = inputs.pop() {
        gradients::add(model, &mut gradients, GradientsParams::from_module(&mut found, model));
        let Some(above) = top.grad_remove(&mut found) else { break };
        // Nothing before the first trainable part needs a gradient.
        let before = if inputs.is_empty() { before } else { before.require_grad() };
        let made = model.part(first + inputs.len(), before.clone(), Pass::Recompute);
        // The gradient of this sum is `above`, to the bit: each number is multiplied by 1.
        found = (made * Tensor::from_inner(above)).sum().backward();
        top = before;
    }
    gradients::add(model, &mut gradients, GradientsParams::from_module(&mut found, model));
    drop((top, found));
    reached(Phase::Backward);
    StepOutput { loss, scores, gradients }
}
