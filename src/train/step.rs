//! Owns one step of training: what a batch makes of the gradients, with everything kept or with each block computed again.
//! It must never know where a batch came from, nor what becomes of the gradients.

use std::fmt;
use std::str::FromStr;

use burn::module::Module;
use burn::nn::loss::CrossEntropyLoss;
use burn::optim::GradientsParams;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{FloatDType, Int, Tensor};

use super::gradients;
use super::memory::Phase;
use super::model::{Network, Pass, cast};
use super::precision::Precision;

/// What of a forward pass is kept for the way back, and what is computed again (Chen and others, "Training deep nets with
/// sublinear memory cost", 2016).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Checkpointing {
    /// Everything is kept.
    #[default]
    None,
    /// What is cheap to compute is computed again, by burn's own choice. The backend does it: see
    /// [`CpuBalanced`](crate::train::CpuBalanced).
    Balanced,
    /// What goes into each block is kept, and the block is computed again.
    Blocks,
}

impl Checkpointing {
    /// Every way there is.
    pub const ALL: [Checkpointing; 3] = [Checkpointing::None, Checkpointing::Balanced, Checkpointing::Blocks];
}

impl fmt::Display for Checkpointing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Checkpointing::None => "none",
            Checkpointing::Balanced => "balanced",
            Checkpointing::Blocks => "blocks",
        })
    }
}

impl FromStr for Checkpointing {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let found = Checkpointing::ALL.into_iter().find(|way| way.to_string() == text);
        found.ok_or_else(|| format!("'{text}' is no way of checkpointing: use none, balanced or blocks"))
    }
}

/// How a step is computed.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepKind {
    pub(super) precision: Precision,
    pub(super) checkpointing: Checkpointing,
    /// Factor on the loss before the way back; the gradients have it too.
    pub(super) factor: f64,
}

/// What came of a batch. Nothing of it holds the graph.
pub(super) struct StepOutput<B: AutodiffBackend> {
    /// The mean loss, `[1]`.
    pub(super) loss: Tensor<B::InnerBackend, 1>,
    /// `[samples, classes]`, 32-bit numbers.
    pub(super) scores: Tensor<B::InnerBackend, 2>,
    pub(super) gradients: GradientsParams,
}

/// The loss of a batch and the gradients of a model. `reached` is told when the forward pass and the way back are done.
///
/// With [`Checkpointing::Blocks`] the gradients are those of the plain way: what a block is given, computes and gives back
/// is the same.
pub(super) fn forward_backward<B: AutodiffBackend>(
    model: &Network<B>,
    images: Tensor<B, 4>,
    labels: Tensor<B, 1, Int>,
    loss: &CrossEntropyLoss<B>,
    kind: StepKind,
    reached: &mut dyn FnMut(Phase),
) -> StepOutput<B> {
    let images = cast(images, kind.precision.dtype());
    let judge = |scores: Tensor<B, 2>| {
        let scores = cast(scores, FloatDType::F32);
        let loss = loss.forward(scores.clone(), labels);
        let seen = (loss.clone().inner(), scores.inner());
        let scaled = if kind.factor == 1.0 { loss } else { loss * kind.factor };
        (scaled, seen)
    };
    if kind.checkpointing != Checkpointing::Blocks {
        let (scaled, (loss, scores)) = judge(model.forward(images, Pass::Train));
        reached(Phase::Forward);
        let gradients = GradientsParams::from_grads(scaled.backward(), model);
        reached(Phase::Backward);
        return StepOutput { loss, scores, gradients };
    }

    // What goes into each part that learns, and at last into the head. Weights that are not tracked leave no graph.
    let (first, parts) = (model.first_learning_part(), model.parts());
    let still = model.clone().no_grad();
    let mut inputs = Vec::new();
    let mut x = images;
    for part in 0..parts {
        if part >= first {
            inputs.push(x.clone());
        }
        x = still.part(part, x, Pass::Train);
    }
    drop(still);
    let mut top = if first < parts { x.require_grad() } else { x };
    let (scaled, (loss, scores)) = judge(model.head(top.clone()));
    reached(Phase::Forward);
    let mut gradients = GradientsParams::new();
    let mut found = scaled.backward();
    while let Some(before) = inputs.pop() {
        gradients::add(model, &mut gradients, GradientsParams::from_module(&mut found, model));
        let Some(above) = top.grad_remove(&mut found) else { break };
        // Whatever lies before the first part that learns has no use for a gradient.
        let before = if inputs.is_empty() { before } else { before.require_grad() };
        let made = model.part(first + inputs.len(), before.clone(), Pass::Again);
        // The gradient of this sum is `above`, to the bit: each number is multiplied by one.
        found = (made * Tensor::from_inner(above)).sum().backward();
        top = before;
    }
    gradients::add(model, &mut gradients, GradientsParams::from_module(&mut found, model));
    drop((top, found));
    reached(Phase::Backward);
    StepOutput { loss, scores, gradients }
}
