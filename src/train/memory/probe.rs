//! Owns two steps of training on images of zeros: on paper they predict, on a device they try out.
//! It must never differ from what the training loop does to memory.

use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::Optimizer;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Int, Tensor};

use super::{AllocRefused, Forecast, MemoryAccount, MemoryMeter, MemorySample, Phase, batch_bytes};
use crate::train::config::TrainConfig;
use crate::train::error::TrainError;
use crate::train::gradients;
use crate::train::model::{ModelKind, Network};
use crate::train::optimizer::{GradientSum, OptimizerKind, adamw, sgd};
use crate::train::precision::Precision;
use crate::train::step::{StepKind, forward_backward};

/// What became of a try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeResult {
    /// It went well, and took this.
    Fits(Forecast),
    /// The device refused memory for it.
    Refused(AllocRefused),
}

/// Takes two real steps with batches of this size, and measures. Everything is given back afterwards.
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
    let mut tried = Ok(());
    let guarded = meter.guard(&mut || {
        tried = two_steps::<B>(config, micro_batch, device, &mut |phase| {
            let MemorySample { in_use, peak } = meter.read();
            at[phase.place()] = MemorySample { in_use: in_use.saturating_sub(base), peak: peak.saturating_sub(base) };
            meter.reset_peak();
        });
    });
    if let Err(refused) = guarded {
        return Ok(ProbeResult::Refused(refused));
    }
    tried?;
    let account = MemoryAccount::new(&at, batch_bytes(config, micro_batch));
    Ok(ProbeResult::Fits(Forecast { micro_batch, at, account }))
}

/// Lets the libraries that compute take what they take once for a thread, in two steps of a small network: it is not the
/// training's.
pub(in crate::train) fn warm_up<B: AutodiffBackend>(device: &B::Device) -> Result<(), TrainError> {
    let mut small = TrainConfig::new(ModelKind::Small, 2, 16);
    small.model.width = 16;
    two_steps::<B>(&small, 4, device, &mut |_| ())
}

/// The first step, whose phases are told, and a second one.
pub(super) fn two_steps<B: AutodiffBackend>(
    config: &TrainConfig,
    micro_batch: usize,
    device: &B::Device,
    reached: &mut dyn FnMut(Phase),
) -> Result<(), TrainError> {
    match config.optimizer {
        OptimizerKind::Sgd => two_steps_of::<B, _>(config, micro_batch, device, sgd(config.weight_decay), reached),
        OptimizerKind::AdamW => two_steps_of::<B, _>(config, micro_batch, device, adamw(config.weight_decay), reached),
    }
}

fn two_steps_of<B: AutodiffBackend, O: Optimizer<Network<B>, B>>(
    config: &TrainConfig,
    micro_batch: usize,
    device: &B::Device,
    mut optimizer: O,
    reached: &mut dyn FnMut(Phase),
) -> Result<(), TrainError> {
    let mut model = config.freeze.apply::<B, _>(config.model.init_blank::<B>(device))?;
    let loss = CrossEntropyLossConfig::new().with_smoothing(config.smoothing()).init(device);
    reached(Phase::Model);
    // A third batch of a step takes what the second does.
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
