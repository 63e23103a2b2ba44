//! Owns what a step will take, before it runs: the very code of a step, on a backend that keeps count and computes nothing.
//! It must never take memory of the size that it predicts.

use std::fmt;

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::BalancedCheckpointing;
use burn::tensor::backend::AutodiffBackend;

use super::probe::two_steps;
use super::{MemoryAccount, MemorySample};
use crate::ByteCount;
use crate::train::config::TrainConfig;
use crate::train::dry_run::{DryRun, MetaBackend};
use crate::train::error::TrainError;
use crate::train::freeze::Freeze;
use crate::train::optimizer::OptimizerKind;
use crate::train::precision::Precision;
use crate::train::step::Checkpointing;

/// What training will take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forecast {
    /// Images in a batch.
    pub micro_batch: usize,
    /// What will be in use at each [`Phase`](crate::train::Phase).
    pub at: [MemorySample; 5],
    /// Where it will go.
    pub account: MemoryAccount,
}

/// Predicts what training takes with batches of this size, by running two steps with shapes alone. That takes
/// milliseconds, and no memory to speak of.
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
        return Err(TrainError::Config("a batch of 0 images: it has 1 at least".to_owned()));
    }
    let at = match config.checkpointing {
        Checkpointing::Balanced => dry_run::<Autodiff<MetaBackend, BalancedCheckpointing>>(config, micro_batch),
        _ => dry_run::<Autodiff<MetaBackend>>(config, micro_batch),
    }?;
    let account = MemoryAccount::new(&at, batch_bytes(config, micro_batch));
    Ok(Forecast { micro_batch, at, account })
}

/// Bytes of the images and labels of a batch, as they are handed over.
pub(in crate::train) fn batch_bytes(config: &TrainConfig, images: usize) -> ByteCount {
    let side = config.model.side as u64;
    ByteCount(images as u64 * (3 * side * side * size_of::<f32>() as u64 + size_of::<i64>() as u64))
}

fn dry_run<B: AutodiffBackend>(config: &TrainConfig, micro_batch: usize) -> Result<[MemorySample; 5], TrainError>
where
    B::Device: Default,
{
    let dry_run = DryRun::begin();
    let mut at = [MemorySample::default(); 5];
    two_steps::<B>(config, micro_batch, &B::Device::default(), &mut |phase| {
        at[phase.place()] = dry_run.reading();
        dry_run.reset_peak();
    })?;
    Ok(at)
}

/// A change of the settings that gives memory back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemorySaving {
    /// The flag, as it is written.
    pub flag: String,
    /// What it costs, or what it asks for, in a few words.
    pub cost: &'static str,
    /// Bytes in use at most with it.
    pub peak: ByteCount,
    /// Bytes that it gives back.
    pub saved: ByteCount,
}

impl fmt::Display for MemorySaving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} gives back {} (leaves {}); {}", self.flag, self.saved, self.peak, self.cost)
    }
}

/// What would help most against running out of memory: each change is predicted by itself, and the `most` that give back
/// most are listed, the best first.
///
/// # Errors
/// As [`forecast`].
pub fn memory_savings(config: &TrainConfig, micro_batch: usize, most: usize) -> Result<Vec<MemorySaving>, TrainError> {
    let now = forecast(config, micro_batch)?.account.peak;
    let mut changes: Vec<(String, &'static str, TrainConfig, usize)> = Vec::new();
    let mut add = |flag: String, price, change: TrainConfig, batch| changes.push((flag, price, change, batch));
    if config.precision == Precision::F32 {
        let change = TrainConfig { precision: Precision::Bf16, ..config.clone() };
        add("--precision bf16".to_owned(), "fewer digits in activations", change, micro_batch);
    }
    for checkpointing in [Checkpointing::Balanced, Checkpointing::Blocks] {
        if config.checkpointing == Checkpointing::None {
            let change = TrainConfig { checkpointing, ..config.clone() };
            add(
                format!("--checkpoint {checkpointing}"),
                "the forward pass is computed again, in part",
                change,
                micro_batch,
            );
        }
    }
    if micro_batch > 1 && micro_batch.is_multiple_of(2) {
        let change = TrainConfig { accumulate: config.accumulate * 2, ..config.clone() };
        let flag = format!("--micro-batch {}", micro_batch / 2);
        add(flag, "as many images a step, in smaller batches", change, micro_batch / 2);
    }
    if config.optimizer == OptimizerKind::AdamW {
        let change = TrainConfig { optimizer: OptimizerKind::Sgd, ..config.clone() };
        add("--optimizer sgd".to_owned(), "another recipe: one number of state for two", change, micro_batch);
    }
    if config.freeze == Freeze::Nothing {
        let change = TrainConfig { freeze: Freeze::Backbone, ..config.clone() };
        add(
            "--freeze backbone".to_owned(),
            "only the head learns: start from weights that know something",
            change,
            micro_batch,
        );
    }
    let mut savings = Vec::new();
    for (flag, cost, change, batch) in changes {
        let peak = forecast(&change, batch)?.account.peak;
        savings.push(MemorySaving { flag, cost, peak, saved: now.saturating_sub(peak) });
    }
    savings.retain(|saving| saving.saved > ByteCount::ZERO);
    savings.sort_by_key(|saving| std::cmp::Reverse(saving.saved));
    savings.truncate(most);
    Ok(savings)
}

/// The largest batch that divides `batch` and trains within a budget, and what it takes. `None` where one image is too
/// many.
///
/// # Errors
/// As [`forecast`].
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
    // Memory grows with the batch, so the first that fits from above is found by halving.
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
