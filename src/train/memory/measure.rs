//! Two steps of training on images of zeros, which allocate what the training loop does: on a device they measure, on
//! the backend of a dry run they predict.

use burn::nn::loss::CrossEntropyLossConfig;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Int, Tensor};

use super::{AllocRefused, Forecast, MemoryAccount, MemoryMeter, MemorySample, Phase};
use crate::ByteCount;
use crate::train::config::TrainConfig;
use crate::train::error::TrainError;
use crate::train::gradients::{self, GradientSum};
use crate::train::model::ModelKind;
use crate::train::optimizer::NetworkOptimizer;
use crate::train::precision::Precision;
use crate::train::step::{StepKind, forward_backward};

/// Result of [`probe`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeResult {
    /// Memory that it took.
    Fits(Forecast),
    /// The device refused memory for it.
    Refused(AllocRefused),
}

/// Runs two real steps with batches of this size, and measures their memory, which is freed afterwards.
///
/// # Errors
/// [`TrainError::Config`] for a setting out of range.
pub fn probe<B: AutodiffBackend>(
    config: &TrainConfig,
    micro_batch: usize,
    device: &B::Device,
    meter: &dyn MemoryMeter,
) -> Result<ProbeResult, TrainError> {
    config.check()?;
    warm_up::<B>(device)?;
    meter.reset_peak();
    let base = meter.read().in_use;
    let mut at = [MemorySample::default(); 5];
    let mut ran = Ok(());
    let guarded = meter.guard(&mut || {
        ran = two_steps::<B>(config, micro_batch, device, &mut |phase| {
            let MemorySample { in_use, peak } = meter.read();
            at[phase.index()] = MemorySample { in_use: in_use.saturating_sub(base), peak: peak.saturating_sub(base) };
            meter.reset_peak();
        });
    });
    if let Err(refused) = guarded {
        return Ok(ProbeResult::Refused(refused));
    }
    ran?;
    let account = MemoryAccount::new(&at, batch_bytes(config, micro_batch));
    Ok(ProbeResult::Fits(Forecast { micro_batch, at, account }))
}

/// Bytes of the images and labels of a batch.
pub(in crate::train) fn batch_bytes(config: &TrainConfig, images: usize) -> ByteCount {
    let side = config.model.side as u64;
    ByteCount(images as u64 * (3 * side * side * size_of::<f32>() as u64 + size_of::<i64>() as u64))
}

/// Runs two steps of a small network, so that libraries allocate what they allocate once for each thread: that is not
/// memory of the training.
pub(in crate::train) fn warm_up<B: AutodiffBackend>(device: &B::Device) -> Result<(), TrainError> {
    let mut small = TrainConfig::new(ModelKind::Small, 2, 16);
    small.model.width = 16;
    two_steps::<B>(&small, 4, device, &mut |_| ())
}

/// Runs a first step, calling `reached` after each of its phases, and a second one.
pub(super) fn two_steps<B: AutodiffBackend>(
    config: &TrainConfig,
    micro_batch: usize,
    device: &B::Device,
    reached: &mut dyn FnMut(Phase),
) -> Result<(), TrainError> {
    let mut optimizer = NetworkOptimizer::<B>::new(config.optimizer, config.weight_decay);
    let mut model = config.freeze.apply::<B, _>(config.model.init_blank::<B>(device))?;
    let loss = CrossEntropyLossConfig::new().with_smoothing(config.smoothing()).init(device);
    reached(Phase::Model);
    // Further batches of a step allocate what the second does.
    let batches = config.accumulate.clamp(1, 2);
    let side = config.model.side;
    for step in [Phase::Step, Phase::Steady] {
        let mut sum = GradientSum::default();
        for _ in 0..batches {
            let images = Tensor::<B, 4>::zeros([micro_batch, 3, side, side], device);
            let labels = Tensor::<B, 1, Int>::zeros([micro_batch], device);
            let factor = if batches == 1 { 1.0 } else { 0.5 };
            let kind = StepKind { precision: config.precision, checkpointing: config.checkpointing, factor };
            let first = step == Phase::Step && sum.images == 0;
            let mut tell = |phase| {
                if first {
                    reached(phase);
                }
            };
            let output = forward_backward(&model, images, labels, &loss, kind, &mut tell);
            sum.add(&model, output.gradients, micro_batch);
        }
        let mut all = sum.take();
        if config.precision == Precision::F16 || batches > 1 {
            gradients::scale(&model, &mut all, 0.5);
        }
        model = optimizer.step(0.1, model, all);
        reached(step);
    }
    Ok(())
}
