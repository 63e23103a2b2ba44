//! Owns batch normalisation: what burn's `BatchNorm` computes, in an order that its CPU backend is fast at.
//! It must never know what it normalises.

use burn::module::{Module, Param, RunningState};
use burn::tensor::backend::Backend;
use burn::tensor::{FloatDType, Int, Tensor};

use super::layers::{Pass, cast, keep};

/// Keeps a channel without variance finite.
const EPSILON: f64 = 1e-5;
/// Weight of the newest batch in the running statistics.
const MOMENTUM: f64 = 0.1;

/// Batch normalisation over the channels of `[samples, channels, height, width]` (Ioffe and Szegedy, 2015).
///
/// burn's own broadcasts `[1, channels, 1, 1]` over the picture, which its flex backend walks element by element. Here
/// each of the `samples x channels` planes gets its one number, a pattern that runs in vector instructions: a training
/// step of the small network takes a third of the time. And what is kept for the way back is one tensor, the centred
/// input, where burn's keeps three.
///
/// Statistics are 32-bit numbers, whatever the input is. Where scale and shift are frozen, they go on following the data.
#[derive(Module, Debug)]
pub(super) struct ChannelNorm<B: Backend> {
    scale: Param<Tensor<B, 1>>,
    shift: Param<Tensor<B, 1>>,
    mean: RunningState<Tensor<B, 1>>,
    variance: RunningState<Tensor<B, 1>>,
}

impl<B: Backend> ChannelNorm<B> {
    pub(super) fn init(channels: usize, device: &B::Device) -> Self {
        ChannelNorm {
            scale: Param::from_tensor(Tensor::ones([channels], device)),
            shift: Param::from_tensor(Tensor::zeros([channels], device)),
            mean: RunningState::new(Tensor::zeros([channels], device)),
            variance: RunningState::new(Tensor::ones([channels], device)),
        }
    }

    pub(super) fn forward(&self, x: Tensor<B, 4>, pass: Pass) -> Tensor<B, 4> {
        let [samples, channels, height, width] = x.dims();
        let shape = x.shape();
        let dtype: FloatDType = x.dtype().into();
        let x = x.reshape([samples, channels, height * width]);
        let per_plane = |values: Tensor<B, 1>| cast(values, dtype).reshape([1, channels, 1]).repeat_dim(0, samples);
        let per_channel = |x: Tensor<B, 3>| cast(x, FloatDType::F32).mean_dim(2).mean_dim(0).reshape([channels]);

        let (centred, variance) = if pass != Pass::Evaluate {
            let mean = per_channel(x.clone());
            let centred = x - per_plane(mean.clone());
            let variance = per_channel(centred.clone() * centred.clone());
            if pass == Pass::Train {
                follow(&self.mean, &mean);
                follow(&self.variance, &variance);
            }
            (centred, variance)
        } else {
            (x - per_plane(self.mean.value_sync()), self.variance.value_sync())
        };
        let scale = self.scale.val() / (variance + EPSILON).sqrt();
        (centred * per_plane(scale) + per_plane(self.shift.val())).reshape(shape)
    }

    /// With these channels alone.
    pub(super) fn with_channels(self, kept: &Tensor<B, 1, Int>) -> Self {
        let still =
            |state: RunningState<Tensor<B, 1>>| RunningState::new(state.value_sync().detach().select(0, kept.clone()));
        ChannelNorm {
            scale: keep(self.scale, 0, kept),
            shift: keep(self.shift, 0, kept),
            mean: still(self.mean),
            variance: still(self.variance),
        }
    }
}

/// Moves a running statistic towards the newest.
fn follow<B: Backend>(running: &RunningState<Tensor<B, 1>>, newest: &Tensor<B, 1>) {
    let kept = running.value_sync() * (1.0 - MOMENTUM);
    running.update((kept + newest.clone().detach() * MOMENTUM).detach());
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::{Autodiff, Flex};
    use burn::module::AutodiffModule;
    use burn::nn::BatchNormConfig;
    use burn::tensor::TensorData;

    type B = Autodiff<Flex>;

    #[test]
    fn it_computes_what_burns_own_does_forward_and_back() {
        let device = Default::default();
        let numbers: Vec<f32> = (0..4 * 3 * 5 * 6).map(|i| ((i * 37 % 101) as f32 - 40.0) / 17.0).collect();
        let input = || Tensor::<B, 4>::from_data(TensorData::new(numbers.clone(), [4, 3, 5, 6]), &device);
        let weights = input() * 0.3 + input() * input();
        let (ours, theirs) = (ChannelNorm::<B>::init(3, &device), BatchNormConfig::new(3).init::<B>(&device));

        let (x, y) = (input().require_grad(), input().require_grad());
        let (a, b) = (ours.forward(x.clone(), Pass::Train), theirs.forward(y.clone()));
        close(&a.clone().inner(), &b.clone().inner());
        let (a, b) = ((a * weights.clone()).sum().backward(), (b * weights).sum().backward());
        close(&x.grad(&a).expect("x has a gradient"), &y.grad(&b).expect("y has a gradient"));

        let plain = input().inner();
        close(&ours.valid().forward(plain.clone(), Pass::Evaluate), &theirs.valid().forward(plain));
    }

    fn close(a: &Tensor<Flex, 4>, b: &Tensor<Flex, 4>) {
        let most: f32 = (a.clone() - b.clone()).abs().max().into_scalar();
        assert!(most < 2e-5, "they differ by {most}");
    }
}
