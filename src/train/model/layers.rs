//! Parts of every network: the kind of a pass, weights in the floating-point type of their input, selection of
//! channels.

use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::backend::Backend;
use burn::tensor::module::linear;
use burn::tensor::{FloatDType, Int, Tensor};

/// Kind of a forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Training: normalization uses the statistics of the batch, and updates the running ones.
    Train,
    /// Repetition of a training pass: the same numbers, without an update.
    Recompute,
    /// Evaluation: normalization uses the running statistics.
    Evaluate,
}

/// Casts a weight to the type of the input. The weight itself, and its gradient, keep theirs.
pub(super) fn as_input<B: Backend, const D: usize, const E: usize>(
    weight: &Param<Tensor<B, D>>,
    input: &Tensor<B, E>,
) -> Tensor<B, D> {
    cast(weight.val(), input.dtype().into())
}

/// Casts a tensor; does nothing if it has that type already.
pub(in crate::train) fn cast<B: Backend, const D: usize>(x: Tensor<B, D>, dtype: FloatDType) -> Tensor<B, D> {
    if FloatDType::from(x.dtype()) == dtype { x } else { x.cast(dtype) }
}

/// Applies a linear layer, in the type of its input.
pub(super) fn affine<B: Backend, const D: usize>(x: Tensor<B, D>, layer: &Linear<B>) -> Tensor<B, D> {
    let weight = as_input(&layer.weight, &x);
    let bias = layer.bias.as_ref().map(|bias| as_input(bias, &x));
    linear(x, weight, bias)
}

/// Selects indices of one dimension of a parameter. It is trainable if it was.
pub(super) fn keep<B: Backend, const D: usize>(
    param: Param<Tensor<B, D>>,
    dim: usize,
    indices: &Tensor<B, 1, Int>,
) -> Param<Tensor<B, D>> {
    param.map(|weight| {
        let trainable = weight.is_require_grad();
        weight.detach().select(dim, indices.clone()).detach().set_require_grad(trainable)
    })
}
