//! Owns the networks: residual networks built of one unit (convolution, normalisation, relu), for small images and for
//! large ones, and how their weights start.
//! It must never take a random number from anywhere but the seed it is given: same seed, same weights, on any backend.

use std::f64::consts::TAU;
use std::fmt;
use std::str::FromStr;

use burn::module::{Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::activation::relu;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use super::norm::ChannelNorm;
use crate::{KeyedRng, SampleId, Seed};

/// Which network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ModelKind {
    /// For images of 32 to 96 pixels: a 4x4 stem of stride 2 and two stages.
    #[default]
    Small,
    /// For images of about 224 pixels: a 7x7 stem of stride 4 and four stages.
    Large,
}

impl ModelKind {
    /// The one that suits images of this side, in pixels.
    #[must_use]
    pub fn for_side(side: u32) -> Self {
        if side <= 96 { ModelKind::Small } else { ModelKind::Large }
    }
}

impl fmt::Display for ModelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            ModelKind::Small => "small",
            ModelKind::Large => "large",
        })
    }
}

impl FromStr for ModelKind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "small" => Ok(ModelKind::Small),
            "large" => Ok(ModelKind::Large),
            _ => Err(format!("'{text}' is no model: use small or large")),
        }
    }
}

/// The shape of a [`ResNet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResNetConfig {
    /// Which network.
    pub kind: ModelKind,
    /// Channels of the stem; every stage that halves the picture doubles them.
    pub width: usize,
    /// How many classes there are.
    pub classes: usize,
}

impl ResNetConfig {
    /// Kernel side and stride of the stem.
    fn stem(&self) -> (usize, usize) {
        match self.kind {
            ModelKind::Small => (4, 2),
            ModelKind::Large => (7, 4),
        }
    }

    /// Channels and stride of each stage.
    fn stages(&self) -> Vec<(usize, usize)> {
        let width = self.width;
        match self.kind {
            ModelKind::Small => vec![(2 * width, 2), (4 * width, 2)],
            ModelKind::Large => vec![(width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)],
        }
    }

    /// Multiplications and additions of one forward pass over one square image of this side, convolutions alone.
    #[must_use]
    pub fn flops(&self, side: usize) -> f64 {
        let (kernel, stride) = self.stem();
        let (mut channels, mut side) = (self.width, side.div_ceil(stride));
        let mut products = 3 * channels * kernel.pow(2) * side.pow(2);
        for (out, stride) in self.stages() {
            side = side.div_ceil(stride);
            products += (channels + 2 * out) * out * 9 * side.pow(2);
            channels = out;
        }
        2.0 * products as f64
    }

    /// A network with weights that this seed decides.
    #[must_use]
    pub fn init<B: Backend>(&self, seed: Seed, device: &B::Device) -> ResNet<B> {
        let mut start = Start { seed, next: 0 };
        let mut channels = self.width;
        let (kernel, stride) = self.stem();
        let stem = ConvUnit::init([3, channels], kernel, stride, &mut start, device);
        let mut stages = Vec::new();
        for (out, stride) in self.stages() {
            stages.push(Stage {
                down: ConvUnit::init([channels, out], 3, stride, &mut start, device),
                inner: ConvUnit::init([out, out], 3, 1, &mut start, device),
                outer: ConvUnit::init([out, out], 3, 1, &mut start, device),
            });
            channels = out;
        }
        let mut head = LinearConfig::new(channels, self.classes).init(device);
        head.weight = start.normal([channels, self.classes], (1.0 / channels as f64).sqrt(), device);
        head.bias = Some(Param::from_tensor(Tensor::zeros([self.classes], device)));
        ResNet { stem, stages, head }
    }
}

/// A residual network: stem, stages, mean over the picture, one linear layer.
#[derive(Module, Debug)]
pub struct ResNet<B: Backend> {
    stem: ConvUnit<B>,
    stages: Vec<Stage<B>>,
    head: Linear<B>,
}

impl<B: Backend> ResNet<B> {
    /// Scores of images.
    ///
    /// # Shapes
    /// Images `[samples, 3, height, width]`, scores `[samples, classes]`.
    pub fn forward(&self, images: Tensor<B, 4>) -> Tensor<B, 2> {
        let features = self.stages.iter().fold(self.stem.forward(images), |x, stage| stage.forward(x));
        let [samples, channels, height, width] = features.dims();
        let means = features.reshape([samples, channels, height * width]).mean_dim(2);
        self.head.forward(means.reshape([samples, channels]))
    }
}

/// A unit that changes the shape, then a residual pair at that shape. No convolution is 1x1: on the CPU backend their
/// gradients are the slowest by far.
#[derive(Module, Debug)]
struct Stage<B: Backend> {
    down: ConvUnit<B>,
    inner: ConvUnit<B>,
    outer: ConvUnit<B>,
}

impl<B: Backend> Stage<B> {
    fn forward(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let x = self.down.forward(x);
        self.outer.forward(self.inner.forward(x.clone())) + x
    }
}

/// Convolution, normalisation, relu.
#[derive(Module, Debug)]
struct ConvUnit<B: Backend> {
    conv: Conv2d<B>,
    norm: ChannelNorm<B>,
}

impl<B: Backend> ConvUnit<B> {
    fn init(channels: [usize; 2], kernel: usize, stride: usize, start: &mut Start, device: &B::Device) -> Self {
        let [from, to] = channels;
        let padding = (kernel - 1) / 2;
        let mut conv = Conv2dConfig::new(channels, [kernel; 2])
            .with_stride([stride; 2])
            .with_padding(PaddingConfig2d::Explicit(padding, padding, padding, padding))
            .with_bias(false)
            .init(device);
        // He and others, "Delving deep into rectifiers", 2015: variance 2 / inputs keeps a relu network's signal level.
        let deviation = (2.0 / (from * kernel * kernel) as f64).sqrt();
        conv.weight = start.normal([to, from, kernel, kernel], deviation, device);
        ConvUnit { conv, norm: ChannelNorm::init(to, device) }
    }

    fn forward(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        relu(self.norm.forward(self.conv.forward(x)))
    }
}

/// Sets the salt apart from every other use of the seed.
const WEIGHTS: u64 = 0x7765_6967_6874_7300;

/// Where weights start: each tensor has a stream of random numbers of its own.
struct Start {
    seed: Seed,
    next: u64,
}

impl Start {
    /// Normally distributed numbers around zero (Box and Muller's transform).
    fn normal<B: Backend, const D: usize>(
        &mut self,
        shape: [usize; D],
        deviation: f64,
        device: &B::Device,
    ) -> Param<Tensor<B, D>> {
        let mut rng = KeyedRng::new(self.seed, 0, SampleId(self.next), WEIGHTS);
        self.next += 1;
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|_| {
                let radius = (-2.0 * (1.0 - rng.unit()).ln()).sqrt();
                (deviation * radius * (TAU * rng.unit()).cos()) as f32
            })
            .collect();
        Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), device))
    }
}
