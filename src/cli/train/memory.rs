//! Device memory of training: how much is free, and the largest micro-batch that fits.

use std::sync::Arc;

use feedstock::ByteCount;
use feedstock::host::HostFacts;
use feedstock::train::{
    Checkpointing, Cpu, CpuBalanced, HeapMeter, MemoryMeter, Precision, ProbeResult, TrainConfig, TrainError,
    micro_batch_within, probe,
};

use super::super::failure::Failure;
use super::super::model::{MicroBatch, ModelArgs, not_even_one};
use super::super::placement::Placement;

/// Maximum number of smaller batches tried if a real step took more memory than predicted.
const TRIES_MAX: usize = 8;

/// Meter of the memory that training takes on the device.
pub(super) fn meter(place: &Placement) -> Arc<dyn MemoryMeter> {
    #[cfg(feature = "burn-cuda")]
    if let Some(number) = place.gpu {
        return Arc::new(feedstock::train::GpuMeter(number));
    }
    #[cfg(not(feature = "burn-cuda"))]
    let _ = place;
    Arc::new(HeapMeter)
}

/// Memory that training may take beside loaders of this budget; `None` if unknown.
pub(super) fn free(place: &Placement, loaders: ByteCount, threads: usize) -> Option<ByteCount> {
    #[cfg(feature = "burn-cuda")]
    if let Some(number) = place.gpu {
        return feedstock::adapt::burn::gpu_memory(number).ok().map(|memory| memory.driver_free);
    }
    #[cfg(not(feature = "burn-cuda"))]
    let _ = place;
    // Ranks of one machine share its memory equally.
    let host = HostFacts::read();
    let ranks = (host.local_ranks.count * threads) as u64;
    Some(ByteCount(host.memory.available.0 / ranks.max(1)).saturating_sub(loaders))
        .filter(|free| *free > ByteCount::ZERO)
}

/// Note on the activation type on this device.
///
/// # Errors
/// A usage error if the device does not support it.
pub(super) fn precision_note(precision: Precision, place: &Placement) -> Result<Option<String>, Failure> {
    if precision == Precision::F32 {
        return Ok(None);
    }
    #[cfg(feature = "burn-cuda")]
    if let Some(number) = place.gpu {
        let device = burn::backend::cuda::CudaDevice::new(number as usize);
        return match precision.supported::<burn::backend::Cuda>(&device) {
            true => Ok(None),
            false => {
                Err(Failure::Usage(format!("cuda:{number} does not compute in {precision}: use another --precision")))
            }
        };
    }
    #[cfg(not(feature = "burn-cuda"))]
    let _ = place;
    Ok(Some(format!(
        "burn's CPU backend has no fast arithmetic in {precision}: activations take half the bytes, and steps longer"
    )))
}

/// Returns the micro-batch size and sets the number of micro-batches of a step in the configuration.
pub(super) fn micro_batch(
    args: &ModelArgs,
    config: &mut TrainConfig,
    batch_size: usize,
    free: Option<ByteCount>,
    place: &Placement,
    meter: &dyn MemoryMeter,
    notes: &mut Vec<String>,
) -> Result<usize, Failure> {
    if args.micro_batch != Some(MicroBatch::Auto) {
        let (accumulate, micro_batch) = args.batches(batch_size)?;
        config.accumulate = accumulate;
        return Ok(micro_batch);
    }
    let budget = config.device_budget.or(free).ok_or_else(|| {
        Failure::Usage("--micro-batch auto has to know what there is: say it with --vram-budget".to_owned())
    })?;
    let mut limit = budget;
    for _ in 0..TRIES_MAX {
        let Some(predicted) = micro_batch_within(config, batch_size, limit)? else { break };
        let micro_batch = predicted.micro_batch;
        config.accumulate = (batch_size / micro_batch) as u64;
        match tried(config, micro_batch, place, meter)? {
            ProbeResult::Fits(took) if took.account.peak <= budget => {
                notes.push(format!(
                    "batches of {micro_batch}, {} to a step of {batch_size}: {} of {budget}, {} predicted",
                    config.accumulate, took.account.peak, predicted.account.peak
                ));
                return Ok(micro_batch);
            }
            ProbeResult::Fits(took) => {
                notes.push(format!("batches of {micro_batch} took {}: too much", took.account.peak));
            }
            ProbeResult::Refused(refused) => {
                notes.push(format!("batches of {micro_batch} do not fit: {}", refused.message));
            }
        }
        // Try the next smaller one.
        limit = predicted.account.peak.saturating_sub(ByteCount(1));
    }
    Err(not_even_one(config, batch_size, budget))
}

/// Runs two real steps with micro-batches of this size.
fn tried(
    config: &TrainConfig,
    micro_batch: usize,
    place: &Placement,
    meter: &dyn MemoryMeter,
) -> Result<ProbeResult, TrainError> {
    let balanced = config.checkpointing == Checkpointing::Balanced;
    #[cfg(feature = "burn-cuda")]
    if let Some(number) = place.gpu {
        let device = burn::backend::cuda::CudaDevice::new(number as usize);
        return match balanced {
            true => probe::<feedstock::train::GpuBalanced>(config, micro_batch, &device, meter),
            false => probe::<feedstock::train::Gpu>(config, micro_batch, &device, meter),
        };
    }
    #[cfg(not(feature = "burn-cuda"))]
    let _ = place;
    match balanced {
        true => probe::<CpuBalanced>(config, micro_batch, &Default::default(), meter),
        false => probe::<Cpu>(config, micro_batch, &Default::default(), meter),
    }
}
