//! Memory of training: the prediction against a counting allocator, the effect of each saving, and no growth with the
//! number of steps.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use feedstock::host::CountingAllocator;
use feedstock::source::MemorySource;
use feedstock::train::{
    Checkpointing, Cpu, CpuBalanced, Forecast, HeapMeter, ModelKind, OptimizerKind, Precision, ProbeResult,
    TrainConfig, TrainContext, TrainData, TrainEvent, forecast, probe, train,
};
use feedstock::transform::ResizeCenterCrop;
use feedstock::{ByteCount, DType, Loader};

#[global_allocator]
static HEAP: CountingAllocator = CountingAllocator;

/// One test at a time measures the heap.
static ALONE: Mutex<()> = Mutex::new(());

/// Differences below this are lists and strings of the library, which are not predicted: about 2 KiB for each operation
/// in burn's graph.
const NOISE_BYTES: u64 = 768 << 10;

fn config(kind: ModelKind, width: usize, side: u32) -> TrainConfig {
    let mut config = TrainConfig::new(kind, 10, side);
    config.model.width = width;
    config
}

fn measured(config: &TrainConfig, batch: usize) -> Forecast {
    let device = Default::default();
    let tried = match config.checkpointing {
        Checkpointing::Balanced => probe::<CpuBalanced>(config, batch, &device, &HeapMeter),
        _ => probe::<Cpu>(config, batch, &device, &HeapMeter),
    };
    match tried.unwrap() {
        ProbeResult::Fits(took) => took,
        ProbeResult::Refused(refused) => panic!("the heap refuses nothing: {refused:?}"),
    }
}

/// Returns true if the measurement is within 15 % of the prediction.
fn close(predicted: ByteCount, measured: ByteCount) -> bool {
    predicted.0.abs_diff(measured.0) <= NOISE_BYTES || (0.85..=1.15).contains(&ratio(predicted, measured))
}

fn ratio(predicted: ByteCount, measured: ByteCount) -> f64 {
    measured.0 as f64 / predicted.0.max(1) as f64
}

#[test]
fn predictions_match_measurements() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut wrong = Vec::new();
    for (kind, width, side, batch) in [
        (ModelKind::Small, 32, 32, 64),
        (ModelKind::Large, 16, 160, 8),
        (ModelKind::ResNet18, 16, 32, 16),
        (ModelKind::ResNet18, 16, 128, 8),
        (ModelKind::VitTiny, 96, 32, 8),
    ] {
        // In the first run every thread of the libraries allocates its buffers, 1 MiB each.
        measured(&config(kind, width, side), batch);
        for (precision, checkpointing, optimizer, accumulate) in [
            (Precision::F32, Checkpointing::None, OptimizerKind::Sgd, 1),
            (Precision::F32, Checkpointing::None, OptimizerKind::AdamW, 2),
            (Precision::F32, Checkpointing::Blocks, OptimizerKind::Sgd, 1),
            (Precision::F32, Checkpointing::Balanced, OptimizerKind::Sgd, 1),
            (Precision::Bf16, Checkpointing::None, OptimizerKind::Sgd, 1),
            (Precision::F16, Checkpointing::Blocks, OptimizerKind::AdamW, 1),
        ] {
            let config = config(kind, width, side).optimizer(optimizer);
            let config = TrainConfig { precision, checkpointing, accumulate, ..config };
            let predicted = forecast(&config, batch).unwrap();
            let took = measured(&config, batch);
            let name = format!("{kind} {side} {precision} {checkpointing} {optimizer} x{accumulate}");
            let peak = ratio(predicted.account.peak, took.account.peak);
            print!("{name:<44} peak {:>10} {peak:.2}", took.account.peak.to_string());
            for ((account, predicted), (_, measured)) in predicted.account.rows().into_iter().zip(took.account.rows()) {
                print!("  {account} {measured} {:.2}", ratio(predicted, measured));
                if !close(predicted, measured) {
                    wrong.push(format!("{name}: {account}, {predicted} predicted, {measured} measured"));
                }
            }
            println!();
            if !(0.95..=1.05).contains(&peak) {
                wrong.push(format!(
                    "{name}: peak, {} predicted, {} measured",
                    predicted.account.peak, took.account.peak
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn each_saving_reduces_memory() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let plain = config(ModelKind::ResNet18, 16, 32);
    // In the first run every thread of the libraries allocates its buffers.
    measured(&plain, 32);
    let base = measured(&plain, 32).account;
    let with = |change: TrainConfig| measured(&change, 32).account;
    let half = with(TrainConfig { precision: Precision::Bf16, ..plain.clone() });
    assert!(half.activations.0 < base.activations.0 * 6 / 10, "{half:?} {base:?}");
    let again = with(TrainConfig { checkpointing: Checkpointing::Blocks, ..plain.clone() });
    assert!(again.activations.0 < base.activations.0 * 4 / 10, "{again:?} {base:?}");
    let frozen = with(TrainConfig { freeze: "backbone".parse().unwrap(), ..plain.clone() });
    assert!(frozen.gradients.0 + frozen.optimizer.0 < NOISE_BYTES, "{frozen:?}");
    assert!(frozen.activations.0 < base.activations.0 / 10, "{frozen:?} {base:?}");
    let adam = with(plain.optimizer(OptimizerKind::AdamW));
    let twice = adam.optimizer.0 as f64 / base.optimizer.0 as f64;
    assert!((1.9..2.1).contains(&twice), "{adam:?} {base:?}");
}

/// Images of one color each.
fn loader(images: u32, batch: usize) -> Loader {
    let png = |n: u32| {
        let mut bytes = Vec::new();
        let image = image::RgbImage::from_pixel(16, 16, image::Rgb([(n * 7) as u8, (n * 13) as u8, 90]));
        image.write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Png).unwrap();
        (bytes, n % 3)
    };
    let classes = ["a", "b", "c"].map(str::to_owned).to_vec();
    Loader::builder(MemorySource::new(classes, (0..images).map(png).collect()).unwrap())
        .batch_size(batch)
        .ram_budget(ByteCount(64 << 20))
        .transform(ResizeCenterCrop::new(16, 16))
        .dtype(DType::F32)
        .build()
        .unwrap()
}

#[test]
fn memory_does_not_grow_with_the_number_of_steps() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut config = TrainConfig::new(ModelKind::Small, 3, 16);
    (config.model.width, config.epochs, config.schedule.peak) = (4, 16, 0.02);
    let device = Default::default();
    let data = TrainData::<Cpu>::from_loaders(loader(960, 4), Some(loader(24, 4)), &device);
    let meter: Option<Arc<dyn feedstock::train::MemoryMeter>> = Some(Arc::new(HeapMeter));
    let context = TrainContext { device, meter, communicator: None };
    let mut epochs = Vec::new();
    let mut logged: Vec<f64> = Vec::with_capacity(1 << 16);
    train(&config, &data, context, &AtomicBool::new(false), |event| match event {
        TrainEvent::Progress(step) => logged.extend([step.loss, step.accuracy, step.learning_rate]),
        TrainEvent::Epoch(epoch) => {
            logged.extend([epoch.training.loss, epoch.training.accuracy]);
            epochs.push(epoch.training.memory.unwrap().in_use.0);
        }
        _ => {}
    })
    .unwrap();
    // 240 steps an epoch: eight bytes kept for each step would show as 19 KiB. The list of epochs has 3 KiB.
    let (early, late) = (epochs[2..6].iter().min().unwrap(), epochs[12..].iter().min().unwrap());
    assert!(late <= &(early + 4096), "{epochs:?}");
    assert!(logged.len() > 80);
}

#[test]
fn a_run_reports_its_memory() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut config = TrainConfig::new(ModelKind::ResNet18, 3, 16);
    (config.model.width, config.epochs) = (16, 1);
    let device = Default::default();
    let data = TrainData::<Cpu>::from_loaders(loader(64, 16), None, &device);
    let meter: Option<Arc<dyn feedstock::train::MemoryMeter>> = Some(Arc::new(HeapMeter));
    let stop = AtomicBool::new(false);
    let mut told = 0;
    let outcome = train(&config, &data, TrainContext { device, meter, communicator: None }, &stop, |event| {
        told += u32::from(matches!(event, TrainEvent::Memory(_)));
    })
    .unwrap();
    assert!(!stop.load(Ordering::Relaxed));
    assert_eq!(told, 1);
    let memory = outcome.report.memory.unwrap();
    assert_eq!(memory.forecast.micro_batch, 16);
    for (name, predicted, measured) in [
        ("peak", memory.forecast.account.peak, memory.account.peak),
        ("activations", memory.forecast.account.activations, memory.account.activations),
        ("optimizer", memory.forecast.account.optimizer, memory.account.optimizer),
    ] {
        assert!(close(predicted, measured), "{name}: {predicted} predicted, {measured} measured");
    }
}
