//! A real model as the consumer of a benchmark: the trainer on the loader that is measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::tensor::backend::AutodiffBackend;

use feedstock::train::{Cpu, ModelKind, TrainConfig, TrainContext, TrainData, TrainEvent, train};
use feedstock::{DType, Loader};

use super::super::Context;
use super::super::failure::Failure;
use super::super::placement::Placement;
use super::{Bench, BenchArgs};

/// Checks the arguments that a model requires.
pub(super) fn check(args: &BenchArgs) -> Result<(), Failure> {
    match args.model {
        Some(_) if args.loader.batch.dtype != DType::F32 => {
            Err(Failure::Usage("--model trains on f32 batches: add --dtype f32 --normalize".to_owned()))
        }
        Some(_) if args.step_ms.is_some() => {
            Err(Failure::Usage("--model has its own steps: leave --step-ms out".to_owned()))
        }
        _ => Ok(()),
    }
}

/// Trains on every batch, warm-up epochs first.
pub(super) fn run(bench: &mut Bench<'_>, kind: ModelKind, place: &Placement, context: &Context) -> Result<(), Failure> {
    #[cfg(feature = "burn-cuda")]
    if let Some(number) = place.gpu {
        let device = burn::backend::cuda::CudaDevice::new(number as usize);
        return on::<feedstock::train::Gpu>(bench, kind, context, &device);
    }
    #[cfg(not(feature = "burn-cuda"))]
    let _ = place;
    on::<Cpu>(bench, kind, context, &Default::default())
}

fn on<B: AutodiffBackend>(
    bench: &mut Bench<'_>,
    kind: ModelKind,
    context: &Context,
    device: &B::Device,
) -> Result<(), Failure> {
    let BenchArgs { epochs, warmup_epochs, .. } = *bench.args;
    let loader: Loader = bench.loader.clone();
    let mut config = TrainConfig::new(kind, loader.classes().len(), bench.args.loader.batch.size);
    config.epochs = warmup_epochs + epochs;
    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    context.stop.on_stop(move || asked.store(true, Ordering::SeqCst));
    bench.start_feeding();
    if warmup_epochs == 0 {
        bench.start_measuring();
    }
    let data = TrainData::<B>::from_loaders(loader.clone(), None, device);
    let mut computed = 0.0;
    train(&config, &data, TrainContext::new(device.clone()), &stop, |event| match event {
        TrainEvent::Progress(step) => {
            let done = step.epoch * loader.batches_per_epoch() + step.step;
            bench.progress.at(done, || format!("epoch {}, {:.0} images/s", step.epoch + 1, step.images_per_s()));
        }
        TrainEvent::Epoch(epoch) if epoch.training.epoch < warmup_epochs => {
            // The last call counts.
            bench.start_measuring();
        }
        TrainEvent::Epoch(epoch) => {
            let training = &epoch.training;
            computed += training.compute_share * training.seconds;
            bench.totals(|totals| {
                totals.images += training.images;
                totals.batches += training.step;
                totals.epochs += 1;
                totals.state.epoch = training.epoch + 1;
                let took = totals.began.map(|began: Instant| began.elapsed().as_secs_f64()).unwrap_or_default();
                totals.trained = Some((computed / took.max(1e-9)).min(1.0));
            });
        }
        _ => {}
    })?;
    bench.totals(|totals| totals.took = totals.began.map(|began| began.elapsed()));
    Ok(())
}
