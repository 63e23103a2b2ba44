//! Owns what networks of every kind are made of: how a pass is meant, weights that take the type of what they meet, and
//! the choice of channels. It must never hold a layer of its own.

use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::backend::Backend;
use burn::tensor::module::linear;
use burn::tensor::{FloatDType, Int, Tensor};

/// What a forward pass is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// To learn from: normalisation uses the batch's own statistics, and its running ones follow.
    Train,
    /// To compute once more what a training pass has computed: the same numbers, and nothing follows.
    Again,
    /// To judge: normalisation uses the running statistics.
    Evaluate,
}

/// A weight in the type of what it meets. The weight itself, and its gradient, keep theirs.
pub(super) fn as_input<B: Backend, const D: usize, const E: usize>(
    weight: &Param<Tensor<B, D>>,
    input: &Tensor<B, E>,
) -> Tensor<B, D> {
    cast(weight.val(), input.dtype().into())
}

/// A tensor in another type; untouched where it has that type already.
pub(in crate::train) fn cast<B: Backend, const D: usize>(x: Tensor<B, D>, dtype: FloatDType) -> Tensor<B, D> {
    if FloatDType::from(x.dtype()) == dtype { x } else { x.cast(dtype) }
}

/// A linear layer, in the type of its input.
pub(super) fn affine<B: Backend, const D: usize>(x: Tensor<B, D>, layer: &Linear<B>) -> Tensor<B, D> {
    let weight = as_input(&layer.weight, &x);
    let bias = layer.bias.as_ref().map(|bias| as_input(bias, &x));
    linear(x, weight, bias)
}

/// A parameter with these places of a dimension alone. It learns if it did.
pub(super) fn keep<B: Backend, const D: usize>(
    param: Param<Tensor<B, D>>,
    dim: usize,
    places: &Tensor<B, 1, Int>,
) -> Param<Tensor<B, D>> {
    param.map(|weight| {
        let learns = weight.is_require_grad();
        weight.detach().select(dim, places.clone()).detach().set_require_grad(learns)
    })
}
