//! Parts of the vision transformer (Dosovitskiy and others, "An image is worth 16x16 words", 2021).

use burn::module::{Module, Param};
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::activation::{gelu, softmax};
use burn::tensor::backend::Backend;
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{FloatDType, Int, Tensor, TensorData};

use super::init::WeightInit;
use super::layers::{affine, as_input, cast, keep};

/// Number of blocks of ViT-Tiny.
pub(super) const DEPTH: usize = 12;
/// Number of attention heads.
pub(super) const HEADS: usize = 3;
/// Width inside a block, as a multiple of its input.
pub(super) const MLP: usize = 4;
/// Standard deviation of the initial weights.
const DEVIATION: f64 = 0.02;

/// Side of a patch, in pixels.
pub(super) fn patch(small: bool) -> usize {
    if small { 4 } else { 16 }
}

/// Splits an image into patches, each a token with a position embedding.
#[derive(Module, Debug)]
pub(super) struct Patches<B: Backend> {
    /// `[width, 3, patch, patch]`.
    weight: Param<Tensor<B, 4>>,
    bias: Param<Tensor<B, 1>>,
    /// Position embedding, `[1, tokens, width]`.
    positions: Param<Tensor<B, 3>>,
}

impl<B: Backend> Patches<B> {
    pub(super) fn init(width: usize, side: usize, patch: usize, start: &mut WeightInit, device: &B::Device) -> Self {
        let deviation = (1.0 / (3 * patch * patch) as f64).sqrt();
        let rows = side / patch;
        let positions = TensorData::new(waves(rows, width), [1, rows * rows, width]);
        Patches {
            weight: start.normal([width, 3, patch, patch], deviation, device),
            bias: Param::from_tensor(Tensor::zeros([width], device)),
            positions: Param::from_tensor(Tensor::from_data(positions, device)),
        }
    }

    pub(super) fn forward(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let weight = as_input(&self.weight, &x);
        let [width, _, patch, _] = weight.dims();
        let bias = as_input(&self.bias, &x);
        let x = conv2d(x, weight, Some(bias), ConvOptions::new([patch; 2], [0; 2], [1; 2], 1));
        let [samples, _, rows, columns] = x.dims();
        let tokens = x.reshape([samples, width, rows * columns]).swap_dims(1, 2);
        let tokens = tokens.clone() + as_input(&self.positions, &tokens);
        tokens.reshape([samples, 1, rows * columns, width])
    }
}

/// Initial position embedding: sine waves of growing length along both sides (Vaswani and others, "Attention is all you
/// need", 2017, section 3.5, for two dimensions as in Beyer and others, 2022).
fn waves(rows: usize, width: usize) -> Vec<f32> {
    let quarter = width.div_ceil(4);
    let wave = |at: usize, k: usize| {
        let angle = at as f64 / 10_000_f64.powf((k % quarter) as f64 / quarter as f64);
        (if (k / quarter).is_multiple_of(2) { angle.sin() } else { angle.cos() }) as f32
    };
    let place =
        |token: usize| (0..width).map(move |k| wave(if k < 2 * quarter { token % rows } else { token / rows }, k));
    (0..rows * rows).flat_map(place).collect()
}

/// Layer normalization, computed in f32.
#[derive(Module, Debug)]
pub(super) struct Norm<B: Backend> {
    norm: LayerNorm<B>,
}

impl<B: Backend> Norm<B> {
    pub(super) fn init(width: usize, device: &B::Device) -> Self {
        Norm { norm: LayerNormConfig::new(width).with_epsilon(1e-6).init(device) }
    }

    pub(super) fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let dtype = x.dtype().into();
        cast(self.norm.forward(cast(x, FloatDType::F32)), dtype)
    }
}

/// Encoder block: attention over tokens, then two linear layers for each token, both with a residual connection.
#[derive(Module, Debug)]
pub(super) struct Encoder<B: Backend> {
    before_attention: Norm<B>,
    /// Queries, keys and values in one layer.
    qkv: Linear<B>,
    projection: Linear<B>,
    before_mlp: Norm<B>,
    inner: Linear<B>,
    outer: Linear<B>,
}

impl<B: Backend> Encoder<B> {
    pub(super) fn init(width: usize, hidden: usize, start: &mut WeightInit, device: &B::Device) -> Self {
        let mut linear = |from: usize, to: usize| {
            let mut layer = LinearConfig::new(from, to).init(device);
            layer.weight = start.normal([from, to], DEVIATION, device);
            layer.bias = Some(Param::from_tensor(Tensor::zeros([to], device)));
            layer
        };
        Encoder {
            qkv: linear(width, 3 * width),
            projection: linear(width, width),
            inner: linear(width, hidden),
            outer: linear(hidden, width),
            before_attention: Norm::init(width, device),
            before_mlp: Norm::init(width, device),
        }
    }

    pub(super) fn forward(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let shape = x.dims();
        let [samples, _, tokens, width] = shape;
        let x = x.reshape([samples, tokens, width]);
        let x = x.clone() + self.attend(self.before_attention.forward(x));
        let inner = gelu(affine(self.before_mlp.forward(x.clone()), &self.inner));
        (x + affine(inner, &self.outer)).reshape(shape)
    }

    fn attend(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let [samples, tokens, width] = x.dims();
        let size = width / HEADS;
        // [samples, tokens, 3 x heads x size] -> [3 x samples x heads, tokens, size]: one matrix for each head.
        let qkv = affine(x, &self.qkv).reshape([samples, tokens, 3 * HEADS, size]).swap_dims(1, 2);
        let part = |n: usize| qkv.clone().narrow(1, n * HEADS, HEADS);
        let queries = part(0) * (1.0 / (size as f64).sqrt());
        let weights = softmax(queries.matmul(part(1).swap_dims(2, 3)), 3);
        let values = weights.matmul(part(2)).swap_dims(1, 2).reshape([samples, tokens, width]);
        affine(values, &self.projection)
    }

    pub(super) fn channel_norms(&self) -> Tensor<B, 1> {
        let weight = self.inner.weight.val().detach();
        let [_, hidden] = weight.dims();
        weight.powi_scalar(2).sum_dim(0).sqrt().reshape([hidden])
    }

    pub(super) fn with_channels(mut self, kept: &Tensor<B, 1, Int>) -> Self {
        self.inner.weight = keep(self.inner.weight, 1, kept);
        self.inner.bias = self.inner.bias.map(|bias| keep(bias, 0, kept));
        self.outer.weight = keep(self.outer.weight, 0, kept);
        self
    }
}
