//! The training loop on data made up on the spot: three classes, told apart by the channel that is bright.

use std::sync::Arc;

use burn::data::dataloader::{self, DataLoader, DataLoaderIterator};
use burn::tensor::TensorData;

use super::*;
use crate::adapt::burn::{EpochCounter, LoadFailure};
use crate::train::{Cpu, ModelKind};
use crate::{KeyedRng, SampleId, Seed};

const SIDE: usize = 16;
const ITEMS: usize = 42;
const BATCH: usize = 8;

/// Each epoch has an order and noise of its own.
#[derive(Clone, Default)]
struct MadeUp {
    epochs: EpochCounter,
    failure: LoadFailure,
    /// Fails after this many batches of an epoch, if above 0.
    fails_after: usize,
}

impl MadeUp {
    fn batch<B: Backend>(&self, epoch: u64, ids: &[u64], device: &B::Device) -> ImageBatch<B> {
        let mut pixels = Vec::new();
        for &id in ids {
            let mut rng = KeyedRng::new(Seed(1), epoch, SampleId(id), 0);
            for channel in 0..3 {
                let level = if channel == id % 3 { 1.0 } else { 0.0 };
                pixels.extend((0..SIDE * SIDE).map(|_| (level + rng.range(-1.0, 1.0)) as f32));
            }
        }
        let labels: Vec<i64> = ids.iter().map(|id| (id % 3) as i64).collect();
        ImageBatch {
            images: Tensor::from_data(TensorData::new(pixels, [ids.len(), 3, SIDE, SIDE]), device),
            labels: Tensor::from_data(TensorData::new(labels, [ids.len()]), device),
        }
    }
}

struct Made<B: Backend>(std::vec::IntoIter<ImageBatch<B>>);

impl<B: Backend> Iterator for Made<B> {
    type Item = ImageBatch<B>;
    fn next(&mut self) -> Option<ImageBatch<B>> {
        self.0.next()
    }
}

impl<B: Backend> DataLoaderIterator<ImageBatch<B>> for Made<B> {
    fn progress(&self) -> dataloader::Progress {
        dataloader::Progress::new(0, ITEMS)
    }
}

impl<B: Backend> DataLoader<B, ImageBatch<B>> for MadeUp {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<ImageBatch<B>> + 'a> {
        let epoch = self.epochs.take();
        let mut ids: Vec<u64> = (0..ITEMS as u64).collect();
        let mut rng = KeyedRng::new(Seed(2), epoch, SampleId(0), 0);
        for last in (1..ITEMS).rev() {
            ids.swap(last, rng.below(last as u64 + 1) as usize);
        }
        let device = B::Device::default();
        let mut batches: Vec<_> = ids.chunks(BATCH).map(|ids| self.batch(epoch, ids, &device)).collect();
        if self.fails_after > 0 {
            batches.truncate(self.fails_after);
            self.failure.put(crate::Error::WorkerDied);
        }
        Box::new(Made(batches.into_iter()))
    }

    fn num_items(&self) -> usize {
        ITEMS
    }

    fn to_device(&self, _: &B::Device) -> Arc<dyn DataLoader<B, ImageBatch<B>>> {
        Arc::new(self.clone())
    }

    fn slice(&self, _: usize, _: usize) -> Arc<dyn DataLoader<B, ImageBatch<B>>> {
        Arc::new(self.clone())
    }
}

fn data(made: &MadeUp) -> TrainData<Cpu> {
    let validation = MadeUp { epochs: EpochCounter::default(), ..made.clone() };
    TrainData::new(Arc::new(made.clone()), Some(Arc::new(validation)), made.epochs.clone(), made.failure.clone())
}

fn config(epochs: u64) -> TrainConfig {
    let mut config = TrainConfig::new(3, SIDE as u32);
    config.model.width = 4;
    config.epochs = epochs;
    config.schedule.peak = 0.05;
    config
}

fn run(config: &TrainConfig) -> Result<Outcome<Cpu>, TrainError> {
    train(config, &data(&MadeUp::default()), &Default::default(), &AtomicBool::new(false), |_| ())
}

/// Every number of a model, to the bit.
fn bits(model: &ResNet<Cpu>) -> Vec<u32> {
    let images =
        MadeUp::default().batch::<<Cpu as AutodiffBackend>::InnerBackend>(9, &[0, 1, 2, 3], &Default::default());
    let scores = model.valid().forward(images.images).into_data();
    scores.iter::<f32>().map(f32::to_bits).collect()
}

#[test]
fn it_learns_to_tell_the_classes_apart() {
    for optimizer in [OptimizerKind::Sgd, OptimizerKind::AdamW] {
        let peak = if optimizer == OptimizerKind::Sgd { 0.05 } else { 5e-3 };
        let mut config = config(6).optimizer(optimizer);
        config.schedule.peak = peak;
        let outcome = run(&config).expect("trained");
        let [first, .., last] = &outcome.report.epochs[..] else { panic!("six epochs") };
        assert!(last.training.loss < first.training.loss, "{optimizer}: {first:?} {last:?}");
        let score = last.validation.expect("validated");
        assert_eq!(score.images, ITEMS as u64);
        assert!(score.accuracy > 0.9, "{optimizer}: {score:?}");
        assert_eq!(last.training.images, ITEMS as u64);
        assert_eq!((last.training.step, last.training.steps), (6, 6));
        assert!(!outcome.report.interrupted);
    }
}

#[test]
fn the_same_seed_gives_the_same_weights_and_another_gives_others() {
    let first = bits(&run(&config(2)).expect("trained").model);
    assert_eq!(first, bits(&run(&config(2)).expect("trained").model));
    let other = TrainConfig { seed: Seed(1), ..config(2) };
    assert_ne!(first, bits(&run(&other).expect("trained").model));
}

#[test]
fn a_resumed_run_ends_as_an_uninterrupted_one() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for optimizer in [OptimizerKind::Sgd, OptimizerKind::AdamW] {
        let path = folder.path().join(format!("{optimizer}.ckpt"));
        let config = TrainConfig { checkpoint: Some(path.clone()), ..config(4).optimizer(optimizer) };
        let whole = run(&config).expect("trained");
        assert_eq!(checkpoint::inspect(&path).expect("a checkpoint").epochs_done, 4);

        let stop = AtomicBool::new(false);
        let stopped = train(&config, &data(&MadeUp::default()), &Default::default(), &stop, |event| {
            if matches!(event, Event::Epoch(done) if done.training.epoch == 1) {
                stop.store(true, Ordering::Relaxed);
            }
        })
        .expect("stopped");
        assert!(stopped.report.interrupted);
        assert_eq!(stopped.report.epochs.len(), 2);

        let resumed = run(&TrainConfig { resume: true, ..config }).expect("resumed");
        assert_eq!(bits(&whole.model), bits(&resumed.model), "{optimizer}");
        // Weights are the same to the bit. What is reported of the loss is a sum over threads, whose order is not theirs.
        assert_eq!(resumed.report.epochs.len(), 2);
        for (whole, resumed) in whole.report.epochs[2..].iter().zip(&resumed.report.epochs) {
            let (whole, resumed) = (whole.training.loss, resumed.training.loss);
            assert!((whole - resumed).abs() <= 1e-6 * whole.abs(), "{optimizer}: {whole} {resumed}");
        }
    }
}

#[test]
fn a_checkpoint_of_another_run_or_a_damaged_one_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("run.ckpt");
    let written = TrainConfig { checkpoint: Some(path.clone()), ..config(1) };
    run(&written).expect("trained");
    let resume = TrainConfig { resume: true, epochs: 2, ..written };

    let other = resume.clone().optimizer(OptimizerKind::AdamW);
    let error = run(&other).expect_err("another optimizer").to_string();
    assert!(error.contains("small-width4-classes3-sgd") && error.contains("adamw"), "{error}");

    let whole = std::fs::read(&path).expect("read");
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for damaged in [&whole[..whole.len() - 9], &flipped] {
        std::fs::write(&path, damaged).expect("written");
        assert!(matches!(run(&resume), Err(TrainError::Checkpoint { .. })));
    }
}

#[test]
fn an_epoch_that_ends_early_is_an_error_unless_it_was_called_off() {
    let made = MadeUp { fails_after: 2, ..MadeUp::default() };
    let error = train(&config(1), &data(&made), &Default::default(), &AtomicBool::new(false), |_| ());
    assert!(matches!(error, Err(TrainError::Data(crate::Error::WorkerDied))));
    let outcome =
        train(&config(1), &data(&made), &Default::default(), &AtomicBool::new(true), |_| ()).expect("stopped");
    assert!(outcome.report.interrupted && outcome.report.epochs.is_empty());
}

#[test]
fn a_rate_that_is_too_high_is_named() {
    let mut config = config(8);
    config.schedule.peak = 1e30;
    let error = run(&config).expect_err("diverges");
    assert!(matches!(error, TrainError::Diverged { .. }), "{error}");
}

#[test]
fn the_large_network_takes_large_images() {
    let config = crate::train::ResNetConfig { kind: ModelKind::Large, width: 4, classes: 5 };
    let device = Default::default();
    let model = config.init::<Cpu>(Seed(0), &device);
    let scores = model.forward(Tensor::zeros([2, 3, 224, 224], &device));
    assert_eq!(scores.dims(), [2, 5]);
    assert!(ModelKind::for_side(224) == ModelKind::Large && ModelKind::for_side(32) == ModelKind::Small);
}
