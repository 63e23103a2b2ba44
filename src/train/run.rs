//! Owns the training loop: epochs of forward, backward and step, validation, checkpoints.
//! It must never print, and never call an epoch whole whose data ended early.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use burn::module::{AutodiffModule, Module};
use burn::nn::loss::{CrossEntropyLoss, CrossEntropyLossConfig};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamWConfig, GradientsParams, Optimizer, SgdConfig};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{ElementConversion, Int, Tensor};

use super::checkpoint::{self, CheckpointInfo};
use super::config::{OptimizerKind, TrainConfig};
use super::data::{ImageLoader, TrainData};
use super::error::TrainError;
use super::model::ResNet;
use super::report::{EpochReport, Event, Progress, Score, TrainReport};
use crate::adapt::burn::ImageBatch;

/// How often the device is asked for the loss: asking waits for all work under way.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// A trained model, and how it came about.
#[derive(Debug)]
pub struct Outcome<B: AutodiffBackend> {
    /// The model, as it was after the last step.
    pub model: ResNet<B>,
    /// What came of each epoch.
    pub report: TrainReport,
}

/// Trains a network on images. `observer` is told how far it is; `stop` ends the run after the step under way, and the
/// report says so.
///
/// The same configuration and data give the same weights, bit for bit on the CPU; so does a run that was stopped and
/// resumed from the checkpoint of its last whole epoch.
///
/// # Errors
/// [`TrainError::Config`] for a setting out of range or data without images, [`TrainError::Data`] if a loader fails,
/// [`TrainError::Io`] and [`TrainError::Checkpoint`] for a checkpoint that cannot be written, read or used,
/// [`TrainError::Diverged`] if the loss is no number any more.
///
/// # Panics
/// Panics if a label is not below the configured number of classes.
pub fn train<B: AutodiffBackend>(
    config: &TrainConfig,
    data: &TrainData<B>,
    device: &B::Device,
    stop: &AtomicBool,
    observer: impl FnMut(Event<'_>),
) -> Result<Outcome<B>, TrainError> {
    config.check()?;
    if data.training.num_items() == 0 {
        return Err(TrainError::Config("there are no images to train on".to_owned()));
    }
    let smoothing = (config.label_smoothing > 0.0).then_some(config.label_smoothing as f32);
    let trainer = Trainer {
        config,
        data,
        device,
        stop,
        observer,
        loss: CrossEntropyLossConfig::new().with_smoothing(smoothing).init(device),
    };
    match config.optimizer {
        OptimizerKind::Sgd => {
            let momentum = MomentumConfig::new().with_momentum(0.9).with_dampening(0.0).with_nesterov(true);
            let decay = WeightDecayConfig::new(config.weight_decay as f32);
            trainer.run(SgdConfig::new().with_momentum(Some(momentum)).with_weight_decay(Some(decay)).init())
        }
        OptimizerKind::AdamW => trainer.run(AdamWConfig::new().with_weight_decay(config.weight_decay as f32).init()),
    }
}

struct Trainer<'a, B: AutodiffBackend, F> {
    config: &'a TrainConfig,
    data: &'a TrainData<B>,
    device: &'a B::Device,
    stop: &'a AtomicBool,
    observer: F,
    loss: CrossEntropyLoss<B>,
}

impl<B: AutodiffBackend, F: FnMut(Event<'_>)> Trainer<'_, B, F> {
    fn run<O: Optimizer<ResNet<B>, B>>(mut self, mut optimizer: O) -> Result<Outcome<B>, TrainError> {
        let mut model = self.config.model.init::<B>(self.config.seed, self.device);
        let recipe = self.config.recipe();
        let mut first = 0;
        if let (true, Some(path)) = (self.config.resume, &self.config.checkpoint) {
            let info;
            (info, model, optimizer) = checkpoint::load(path, &recipe, model, optimizer, self.device)?;
            first = info.epochs_done;
        }
        self.data.epochs.set(first);
        let mut report = TrainReport { parameters: model.num_params(), ..TrainReport::default() };
        (self.observer)(Event::Started { parameters: report.parameters, epoch: first });

        for epoch in first..self.config.epochs {
            let training;
            (model, training) = self.epoch(epoch, model, &mut optimizer)?;
            let validation = match &self.data.validation {
                Some(images) if !self.stopped() => Some(self.validate(&model.valid(), images)?),
                _ => None,
            };
            if self.stopped() {
                report.interrupted = true;
                break;
            }
            if let Some(path) = &self.config.checkpoint {
                let info = CheckpointInfo { epochs_done: epoch + 1, recipe: recipe.clone() };
                checkpoint::save(path, &info, &model, &optimizer)?;
            }
            let done = EpochReport { training, validation };
            report.epochs.push(done);
            (self.observer)(Event::Epoch(&done));
        }
        Ok(Outcome { model, report })
    }

    /// One epoch of training.
    fn epoch<O: Optimizer<ResNet<B>, B>>(
        &mut self,
        epoch: u64,
        mut model: ResNet<B>,
        optimizer: &mut O,
    ) -> Result<(ResNet<B>, Progress), TrainError> {
        let items = self.data.training.num_items() as f64;
        let mut progress = Progress { epoch, epochs: self.config.epochs, ..Progress::default() };
        let mut tally = Tally::new(self.device);
        let (mut waited, mut computed) = (Duration::ZERO, Duration::ZERO);
        let start = Instant::now();
        let mut told = start;
        let mut batches = self.data.training.iter();
        loop {
            let before = Instant::now();
            let batch = batches.next();
            let begun = Instant::now();
            waited += begun - before;
            let Some(ImageBatch { images, labels }) = batch else { break };
            let [size, ..] = images.dims();

            let seen = progress.images as f64 / items;
            progress.learning_rate = self.config.schedule.at((epoch as f64 + seen) / self.config.epochs as f64);
            let scores = model.forward(images);
            let loss = self.loss.forward(scores.clone(), labels.clone());
            tally.add(&loss.clone().inner(), scores.inner(), labels.inner(), size);
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(progress.learning_rate, model, gradients);

            progress.step += 1;
            progress.images += size as u64;
            progress.steps = progress.steps.max(progress.step).max((items / size as f64).ceil() as u64);
            let due = told.elapsed() >= REPORT_EVERY;
            if due {
                tally.read();
            }
            computed += begun.elapsed();
            if due {
                told = Instant::now();
                fill(&mut progress, &tally, start.elapsed(), waited, computed)?;
                (self.observer)(Event::Progress(&progress));
            }
            if self.stopped() {
                break;
            }
        }
        drop(batches);
        self.whole()?;
        let reading = Instant::now();
        tally.read();
        computed += reading.elapsed();
        progress.steps = progress.step;
        fill(&mut progress, &tally, start.elapsed(), waited, computed)?;
        Ok((model, progress))
    }

    /// The loss and accuracy on images that the model does not learn from.
    fn validate(
        &self,
        model: &ResNet<B::InnerBackend>,
        images: &ImageLoader<B::InnerBackend>,
    ) -> Result<Score, TrainError> {
        let start = Instant::now();
        let loss = CrossEntropyLossConfig::new().init(self.device);
        let mut tally = Tally::<B::InnerBackend>::new(self.device);
        for ImageBatch { images, labels } in images.iter() {
            let [size, ..] = images.dims();
            let scores = model.forward(images);
            tally.add(&loss.forward(scores.clone(), labels.clone()), scores, labels, size);
            if self.stopped() {
                break;
            }
        }
        self.whole()?;
        tally.read();
        let (loss, accuracy) = tally.means();
        Ok(Score { images: tally.images, loss, accuracy, seconds: start.elapsed().as_secs_f64() })
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Refuses an epoch that a loader ended early, unless it was asked to.
    fn whole(&self) -> Result<(), TrainError> {
        match self.data.failure.take() {
            Some(error) if !self.stopped() => Err(TrainError::Data(error)),
            _ => Ok(()),
        }
    }
}

fn fill<B: Backend>(
    progress: &mut Progress,
    tally: &Tally<B>,
    all: Duration,
    waited: Duration,
    computed: Duration,
) -> Result<(), TrainError> {
    (progress.loss, progress.accuracy) = tally.means();
    progress.seconds = all.as_secs_f64();
    progress.input_wait_share = waited.as_secs_f64() / progress.seconds.max(1e-9);
    progress.compute_share = computed.as_secs_f64() / progress.seconds.max(1e-9);
    if progress.loss.is_finite() {
        return Ok(());
    }
    let Progress { epoch, step, learning_rate, .. } = *progress;
    Err(TrainError::Diverged { epoch, step, learning_rate })
}

/// Sums of loss and right answers. They stay on the device until they are read.
struct Tally<B: Backend> {
    device: B::Device,
    new_loss: Tensor<B, 1>,
    new_right: Tensor<B, 1, Int>,
    loss: f64,
    right: u64,
    images: u64,
}

impl<B: Backend> Tally<B> {
    fn new(device: &B::Device) -> Self {
        Tally {
            device: device.clone(),
            new_loss: Tensor::zeros([1], device),
            new_right: Tensor::zeros([1], device),
            loss: 0.0,
            right: 0,
            images: 0,
        }
    }

    /// Adds a batch of `size` images with this mean loss.
    fn add(&mut self, loss: &Tensor<B, 1>, scores: Tensor<B, 2>, labels: Tensor<B, 1, Int>, size: usize) {
        let right = scores.argmax(1).reshape([size]).equal(labels).int().sum();
        self.new_loss = self.new_loss.clone() + loss.clone() * size as f64;
        self.new_right = self.new_right.clone() + right;
        self.images += size as u64;
    }

    /// Waits for the device, and fetches what is new.
    fn read(&mut self) {
        let fresh = Tally::new(&self.device);
        self.loss += std::mem::replace(&mut self.new_loss, fresh.new_loss).into_scalar().elem::<f64>();
        self.right += std::mem::replace(&mut self.new_right, fresh.new_right).into_scalar().elem::<i64>() as u64;
    }

    /// Mean loss and accuracy of what was read, over all images.
    fn means(&self) -> (f64, f64) {
        let images = self.images.max(1) as f64;
        (self.loss / images, self.right as f64 / images)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
