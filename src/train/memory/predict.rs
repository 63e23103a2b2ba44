//! Prediction of the memory of a step: the code of a step runs on a backend that counts bytes and computes nothing.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::BalancedCheckpointing;
use burn::tensor::backend::AutodiffBackend;

use super::measure::{batch_bytes, two_steps};
use super::{Forecast, MemoryAccount, MemorySample, MemorySaving};
use crate::ByteCount;
use crate::train::config::TrainConfig;
use crate::train::dry_run::{DryRun, MetaBackend};
use crate::train::error::TrainError;
use crate::train::freeze::Freeze;
use crate::train::optimizer::OptimizerKind;
use crate::train::precision::Precision;
use crate::train::step::Checkpointing;

/// Predicts the memory of training with batches of this size, by running two steps with shapes alone. That takes
/// milliseconds and a few kilobytes.
///
/// ```
/// use feedstock::train::{ModelKind, TrainConfig, forecast};
///
/// let config = TrainConfig::new(ModelKind::ResNet18, 10, 32);
/// let account = forecast(&config, 128)?.account;
/// assert!(account.parameters.0 > 4 * 11_000_000);
/// println!("{} at most, {} of them activations", account.peak, account.activations);
/// # Ok::<(), feedstock::train::TrainError>(())
/// ```
///
/// # Errors
/// [`TrainError::Config`] for a setting out of range.
pub fn forecast(config: &TrainConfig, micro_batch: usize) -> Result<Forecast, TrainError> {
    config.check()?;
    if micro_batch == 0 {
        return Err(TrainError::Config("a batch of 0 images: use 1 or more".to_owned()));
    }
    let at = match config.checkpointing {
        Checkpointing::Balanced => run_dry::<Autodiff<MetaBackend, BalancedCheckpointing>>(config, micro_batch),
        _ => run_dry::<Autodiff<MetaBackend>>(config, micro_batch),
    }?;
    let account = MemoryAccount::new(&at, batch_bytes(config, micro_batch));
    Ok(Forecast { micro_batch, at, account })
}

fn run_dry<B: AutodiffBackend>(config: &TrainConfig, micro_batch: usize) -> Result<[MemorySample; 5], TrainError>
where
    B::Device: Default,
{
    let dry_run = DryRun::begin();
    let mut at = [MemorySample::default(); 5];
    two_steps::<B>(config, micro_batch, &B::Device::default(), &mut |phase| {
        at[phase.index()] = dry_run.sample();
        dry_run.reset_peak();
    })?;
    Ok(at)
}

/// Settings that would save most memory: each change is predicted by itself, and the best `most` are returned, the best
/// first.
///
/// # Errors
/// The errors of [`forecast`].
pub fn memory_savings(config: &TrainConfig, micro_batch: usize, most: usize) -> Result<Vec<MemorySaving>, TrainError> {
    let now = forecast(config, micro_batch)?.account.peak;
    let with = |change: fn(&mut TrainConfig)| {
        let mut config = config.clone();
        change(&mut config);
        config
    };
    let (keeps_all, half) = (config.checkpointing == Checkpointing::None, micro_batch / 2);
    let twice = "part of the forward pass is computed twice";
    let changes = [
        (
            config.precision == Precision::F32,
            "--precision bf16".to_owned(),
            "fewer digits in activations",
            with(|config| config.precision = Precision::Bf16),
        ),
        (
            keeps_all,
            "--checkpoint balanced".to_owned(),
            twice,
            with(|config| config.checkpointing = Checkpointing::Balanced),
        ),
        (
            keeps_all,
            "--checkpoint blocks".to_owned(),
            twice,
            with(|config| config.checkpointing = Checkpointing::Blocks),
        ),
        (
            micro_batch > 1 && micro_batch.is_multiple_of(2),
            format!("--micro-batch {half}"),
            "as many images a step, in smaller batches",
            with(|config| config.accumulate *= 2),
        ),
        (
            config.optimizer == OptimizerKind::AdamW,
            "--optimizer sgd".to_owned(),
            "another recipe: one number of state instead of two",
            with(|config| config.optimizer = OptimizerKind::Sgd),
        ),
        (
            config.freeze == Freeze::Nothing,
            "--freeze backbone".to_owned(),
            "trains the head alone: start from pretrained weights",
            with(|config| config.freeze = Freeze::Backbone),
        ),
    ];
    let mut savings = Vec::new();
    for (_, flag, cost, change) in changes.into_iter().filter(|(applies, ..)| *applies) {
        let batch = if change.accumulate > config.accumulate { half } else { micro_batch };
        let peak = forecast(&change, batch)?.account.peak;
        savings.push(MemorySaving { flag, cost, peak, saved: now.saturating_sub(peak) });
    }
    savings.retain(|saving| saving.saved > ByteCount::ZERO);
    savings.sort_by_key(|saving| std::cmp::Reverse(saving.saved));
    savings.truncate(most);
    Ok(savings)
}

/// Largest batch that divides `batch` and trains within a budget, with its memory. `None` if one image exceeds the
/// budget.
///
/// # Errors
/// The errors of [`forecast`].
pub fn micro_batch_within(
    config: &TrainConfig,
    batch: usize,
    budget: ByteCount,
) -> Result<Option<Forecast>, TrainError> {
    // A step of one batch keeps no sum of gradients beside its own, so it may fit where two of half the size do not.
    let whole = forecast(&TrainConfig { accumulate: 1, ..config.clone() }, batch)?;
    if whole.account.peak <= budget {
        return Ok(Some(whole));
    }
    let mut within = None;
    let divisors: Vec<usize> = (1..batch).filter(|&divisor| batch.is_multiple_of(divisor)).collect();
    // Memory grows with the batch: a binary search.
    let (mut low, mut high) = (0, divisors.len());
    while low < high {
        let middle = low.midpoint(high);
        let micro_batch = divisors[middle];
        let change = TrainConfig { accumulate: (batch / micro_batch) as u64, ..config.clone() };
        let predicted = forecast(&change, micro_batch)?;
        if predicted.account.peak <= budget {
            within = Some(predicted);
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(within)
}
