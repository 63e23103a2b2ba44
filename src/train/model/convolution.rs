//! Parts of residual networks: a unit of convolution and normalization, the stem, and two kinds of block.

use burn::module::{Module, Param};
use burn::tensor::activation::relu;
use burn::tensor::backend::Backend;
use burn::tensor::module::{conv2d, max_pool2d};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Int, Tensor};

use super::init::WeightInit;
use super::layers::{Pass, as_input, keep};
use super::norm::ChannelNorm;

/// Convolution and normalization.
#[derive(Module, Debug)]
pub(super) struct Unit<B: Backend> {
    /// `[out, in, kernel, kernel]`.
    weight: Param<Tensor<B, 4>>,
    norm: ChannelNorm<B>,
    stride: usize,
}

impl<B: Backend> Unit<B> {
    fn init(channels: [usize; 2], kernel: usize, stride: usize, start: &mut WeightInit, device: &B::Device) -> Self {
        let [from, to] = channels;
        // He and others, "Delving deep into rectifiers", 2015: variance 2 / inputs keeps a relu network's signal level.
        let deviation = (2.0 / (from * kernel * kernel) as f64).sqrt();
        let weight = start.normal([to, from, kernel, kernel], deviation, device);
        Unit { weight, norm: ChannelNorm::init(to, device), stride }
    }

    fn forward(&self, x: Tensor<B, 4>, pass: Pass) -> Tensor<B, 4> {
        let weight = as_input(&self.weight, &x);
        let padding = (weight.dims()[2] - 1) / 2;
        let options = ConvOptions::new([self.stride; 2], [padding; 2], [1; 2], 1);
        self.norm.forward(conv2d(x, weight, None, options), pass)
    }

    /// Norm of the weights of each output channel.
    fn channel_norms(&self) -> Tensor<B, 1> {
        let weight = self.weight.val().detach();
        let [out, from, kernel, _] = weight.dims();
        weight.reshape([out, from * kernel * kernel]).powi_scalar(2).sum_dim(1).sqrt().reshape([out])
    }

    /// Selects output channels.
    fn with_outputs(self, kept: &Tensor<B, 1, Int>) -> Self {
        Unit { weight: keep(self.weight, 0, kept), norm: self.norm.with_channels(kept), ..self }
    }

    /// Selects input channels.
    fn with_inputs(self, kept: &Tensor<B, 1, Int>) -> Self {
        Unit { weight: keep(self.weight, 1, kept), ..self }
    }
}

/// First layer.
#[derive(Module, Debug)]
pub(super) struct Stem<B: Backend> {
    unit: Unit<B>,
    pool: bool,
}

impl<B: Backend> Stem<B> {
    pub(super) fn init(
        channels: usize,
        kernel: usize,
        stride: usize,
        pool: bool,
        start: &mut WeightInit,
        device: &B::Device,
    ) -> Self {
        Stem { unit: Unit::init([3, channels], kernel, stride, start, device), pool }
    }

    pub(super) fn forward(&self, x: Tensor<B, 4>, pass: Pass) -> Tensor<B, 4> {
        let x = relu(self.unit.forward(x, pass));
        if self.pool { max_pool2d(x, [3; 2], [2; 2], [1; 2], [1; 2], false) } else { x }
    }
}

/// A unit that changes the shape, then a residual pair at that shape. No convolution is 1x1: on the CPU backend their
/// gradients are the slowest by far.
#[derive(Module, Debug)]
pub(super) struct Stage<B: Backend> {
    down: Unit<B>,
    inner: Unit<B>,
    outer: Unit<B>,
}

impl<B: Backend> Stage<B> {
    /// Widths: input, inside, output.
    pub(super) fn init(widths: [usize; 3], stride: usize, start: &mut WeightInit, device: &B::Device) -> Self {
        let [from, hidden, out] = widths;
        Stage {
            down: Unit::init([from, out], 3, stride, start, device),
            inner: Unit::init([out, hidden], 3, 1, start, device),
            outer: Unit::init([hidden, out], 3, 1, start, device),
        }
    }

    pub(super) fn forward(&self, x: Tensor<B, 4>, pass: Pass) -> Tensor<B, 4> {
        let x = relu(self.down.forward(x, pass));
        let inner = relu(self.inner.forward(x.clone(), pass));
        relu(self.outer.forward(inner, pass)) + x
    }

    pub(super) fn channel_norms(&self) -> Tensor<B, 1> {
        self.inner.channel_norms()
    }

    pub(super) fn with_channels(self, kept: &Tensor<B, 1, Int>) -> Self {
        Stage { inner: self.inner.with_outputs(kept), outer: self.outer.with_inputs(kept), ..self }
    }
}

/// Block of ResNet-18: two units and a shortcut.
#[derive(Module, Debug)]
pub(super) struct Basic<B: Backend> {
    inner: Unit<B>,
    outer: Unit<B>,
    /// 1x1 convolution of the shortcut, where the shape changes.
    shortcut: Option<Unit<B>>,
}

impl<B: Backend> Basic<B> {
    /// Widths: input, inside, output.
    pub(super) fn init(widths: [usize; 3], stride: usize, start: &mut WeightInit, device: &B::Device) -> Self {
        let [from, hidden, out] = widths;
        Basic {
            inner: Unit::init([from, hidden], 3, stride, start, device),
            outer: Unit::init([hidden, out], 3, 1, start, device),
            shortcut: (from != out || stride != 1).then(|| Unit::init([from, out], 1, stride, start, device)),
        }
    }

    pub(super) fn forward(&self, x: Tensor<B, 4>, pass: Pass) -> Tensor<B, 4> {
        let inner = relu(self.inner.forward(x.clone(), pass));
        let shortcut = match &self.shortcut {
            Some(shortcut) => shortcut.forward(x, pass),
            None => x,
        };
        relu(self.outer.forward(inner, pass) + shortcut)
    }

    pub(super) fn channel_norms(&self) -> Tensor<B, 1> {
        self.inner.channel_norms()
    }

    pub(super) fn with_channels(self, kept: &Tensor<B, 1, Int>) -> Self {
        Basic { inner: self.inner.with_outputs(kept), outer: self.outer.with_inputs(kept), ..self }
    }
}
