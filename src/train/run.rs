//! Owns the training loop: epochs of steps, validation, pruning, checkpoints.
//! It must never print, and never call an epoch whole whose data ended early.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use burn::module::{AutodiffModule, Module};
use burn::nn::loss::{CrossEntropyLoss, CrossEntropyLossConfig};
use burn::optim::{GradientsParams, Optimizer};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{ElementConversion, FloatDType, Tensor};

use super::checkpoint::{self, CheckpointInfo};
use super::collective::Communicator;
use super::config::{Prune, TrainConfig};
use super::data::TrainData;
use super::error::TrainError;
use super::freeze::shapes;
use super::gradients;
use super::memory::{MemoryMeter, forecast, warm_up};
use super::memory_monitor::MemoryMonitor;
use super::metrics::MetricSums;
use super::model::{Network, NetworkConfig, Pass, cast};
use super::optimizer::{GradientSum, OptimizerKind, adamw, sgd};
use super::precision::LossScale;
use super::prune::prune;
use super::report::{EpochReport, Progress, PruneReport, Score, TrainEvent, TrainReport};
use super::step::{StepKind, forward_backward};
use crate::State;
use crate::adapt::burn::ImageBatch;

/// How often the device is asked for the loss: asking waits for all work under way.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// Where a run computes, how its memory is read, and with whom it learns.
pub struct TrainContext<B: AutodiffBackend> {
    /// The device.
    pub device: B::Device,
    /// Reads its memory; `None` where nothing can.
    pub meter: Option<Arc<dyn MemoryMeter>>,
    /// The other ranks of a data-parallel run; `None`: this is the only one.
    pub communicator: Option<Communicator<B::InnerBackend>>,
}

impl<B: AutodiffBackend> TrainContext<B> {
    /// A device by itself, whose memory nobody reads.
    #[must_use]
    pub fn new(device: B::Device) -> Self {
        TrainContext { device, meter: None, communicator: None }
    }
}

/// A trained model, and how it came about.
#[derive(Debug)]
pub struct Outcome<B: AutodiffBackend> {
    /// The model, as it was after the last step.
    pub model: Network<B>,
    /// What came of each epoch.
    pub report: TrainReport,
}

/// Trains a network on images. `observer` is told how far it is; `stop` ends the run after the step under way, and the
/// report says so.
///
/// The same configuration and data give the same weights, bit for bit on the CPU; so does a run that was stopped and
/// resumed from its checkpoint, wherever in an epoch that was written.
///
/// # Errors
/// [`TrainError::Config`] for a setting out of range or data without images, [`TrainError::Data`] if a loader fails,
/// [`TrainError::Io`] and [`TrainError::Checkpoint`] for a checkpoint that cannot be written, read or used,
/// [`TrainError::Diverged`] if the loss is no number any more, [`TrainError::OutOfMemory`] if the device's budget is too
/// small, [`TrainError::Collective`] if another rank is gone.
///
/// # Panics
/// Panics if a label is not below the configured number of classes.
pub fn train<B: AutodiffBackend>(
    config: &TrainConfig,
    data: &TrainData<B>,
    machine: TrainContext<B>,
    stop: &AtomicBool,
    observer: impl FnMut(TrainEvent<'_>),
) -> Result<Outcome<B>, TrainError> {
    config.check()?;
    if data.training.num_items() == 0 {
        return Err(TrainError::Config("there are no images to train on".to_owned()));
    }
    let TrainContext { device, meter, communicator } = machine;
    let trainer = Trainer {
        config,
        data,
        loss: CrossEntropyLossConfig::new().with_smoothing(config.smoothing()).init(&device),
        monitor: MemoryMonitor::new(config, meter),
        device,
        communicator,
        stop,
        agreed: false,
        observer,
    };
    match config.optimizer {
        OptimizerKind::Sgd => trainer.run(|| sgd(config.weight_decay)),
        OptimizerKind::AdamW => trainer.run(|| adamw(config.weight_decay)),
    }
}

struct Trainer<'a, B: AutodiffBackend, F> {
    config: &'a TrainConfig,
    data: &'a TrainData<B>,
    device: B::Device,
    monitor: MemoryMonitor,
    communicator: Option<Communicator<B::InnerBackend>>,
    stop: &'a AtomicBool,
    /// All ranks have heard that the run is to end.
    agreed: bool,
    observer: F,
    loss: CrossEntropyLoss<B>,
}

/// What changes from step to step: with the data, it decides all that follows.
struct TrainState<B: AutodiffBackend, O> {
    model: Network<B>,
    shape: NetworkConfig,
    optimizer: O,
    scale: Option<LossScale>,
    /// How far the epoch under way has got.
    progress: Progress,
    sums: MetricSums<B::InnerBackend>,
}

impl<B: AutodiffBackend, F: FnMut(TrainEvent<'_>)> Trainer<'_, B, F> {
    fn run<O: Optimizer<Network<B>, B>>(mut self, fresh: impl Fn() -> O) -> Result<Outcome<B>, TrainError> {
        let items = self.items()?;
        let mut at = self.begin(&fresh)?;
        let first = at.progress.epoch;
        let mut report = TrainReport { parameters: at.model.num_params(), ..TrainReport::default() };
        self.data.epochs.set(State { epoch: first, batch: at.progress.batches });
        (self.observer)(TrainEvent::Started {
            parameters: report.parameters,
            epoch: first,
            batches: at.progress.batches,
        });

        for epoch in first..self.config.epochs {
            at = self.epoch(at, items)?;
            report.memory = self.monitor.report();
            let validation = self.validate(&at.model)?;
            if self.stopped() {
                report.interrupted = true;
                self.save(&at)?;
                break;
            }
            let done = EpochReport { training: at.progress, validation };
            let pruned = match self.config.prune {
                Some(Prune { share, after_epochs }) if after_epochs == epoch + 1 => {
                    let (smaller, mut pruned) = self.prune(at, share, &fresh)?;
                    at = smaller;
                    pruned.scores = validation.zip(pruned.scores.map(|[_, after]| after)).map(<[Score; 2]>::from);
                    Some(pruned)
                }
                _ => None,
            };
            at.progress = Progress { epoch: epoch + 1, epochs: self.config.epochs, ..Progress::default() };
            at.sums = MetricSums::new(&self.device);
            self.save(&at)?;
            report.epochs.push(done);
            (self.observer)(TrainEvent::Epoch(&done));
            if let Some(pruned) = pruned {
                (self.observer)(TrainEvent::Pruned(&pruned));
                report.pruned = Some(pruned);
            }
        }
        Ok(Outcome { model: at.model, report })
    }

    /// The model as this run finds it: new, from other weights, or as a checkpoint left it.
    fn begin<O: Optimizer<Network<B>, B>>(&mut self, fresh: &impl Fn() -> O) -> Result<TrainState<B, O>, TrainError> {
        let config = self.config;
        if self.monitor.reads() {
            warm_up::<B>(&self.device)?;
        }
        self.monitor.begin();
        let mut shape = config.model.clone();
        let mut progress = Progress { epochs: config.epochs, ..Progress::default() };
        let mut sums = MetricSums::new(&self.device);
        let mut scale = LossScale::new(config.precision);
        let saved = match (config.resume, &config.checkpoint) {
            (true, Some(path)) => Some((path, checkpoint::inspect(path)?)),
            _ => None,
        };
        let model;
        if let Some((path, info)) = &saved {
            info.check(path, &config.recipe(), &self.order())?;
            shape.hidden.clone_from(&info.hidden);
            model = checkpoint::load_weights(path, shape.init_blank::<B>(&self.device), &self.device)?;
            progress = Progress {
                epoch: info.epochs_done,
                batches: info.batches_done,
                step: info.steps,
                images: info.images,
                seconds: info.seconds,
                ..progress
            };
            sums.restore(info.loss_sum, info.right, info.images);
            if let (Some(scale), Some((factor, good_steps))) = (&mut scale, info.loss_scale) {
                *scale = LossScale::from_parts(factor, good_steps);
            }
        } else {
            let fresh = shape.init::<B>(config.seed, &self.device);
            (model, shape) = match &config.start_from {
                Some(path) => start_from(path, &fresh, shape, &config.recipe(), &self.device)?,
                None => (fresh, shape),
            };
        }
        let model = config.freeze.apply::<B, _>(model)?;
        self.monitor.model_is(&shape)?;
        let mut optimizer = fresh();
        if let Some((path, _)) = saved {
            optimizer = checkpoint::load_state(path, optimizer, &self.device)?;
        }
        Ok(TrainState { model, shape, optimizer, scale, progress, sums })
    }

    /// Images of an epoch, of all ranks together. Some have one more than others; the learning rate has to be the same for
    /// all of them, or their weights would part.
    fn items(&mut self) -> Result<f64, TrainError> {
        let mine = self.data.training.num_items();
        let Some(communicator) = &mut self.communicator else { return Ok(mine as f64) };
        let all = communicator
            .all_reduce_sum(Tensor::from_floats([mine as f32], &self.device))
            .map_err(TrainError::Collective)?;
        Ok(all.into_scalar().elem())
    }

    /// The rest of the epoch under way, of so many images of all ranks.
    fn epoch<O: Optimizer<Network<B>, B>>(
        &mut self,
        mut at: TrainState<B, O>,
        items: f64,
    ) -> Result<TrainState<B, O>, TrainError> {
        let world = self.communicator.as_ref().map_or(1, Communicator::world_size) as f64;
        let seconds_before = at.progress.seconds;
        let (mut waited, mut computed) = (Duration::ZERO, Duration::ZERO);
        let start = Instant::now();
        let mut told = start;
        let mut batches = self.data.training.iter();
        // Alone, a step is a batch and its mean loss; nothing has to be weighed.
        let alone = self.config.accumulate == 1 && self.communicator.is_none();
        let mut seen = at.progress.images as f64 * world;
        loop {
            let mut sum = GradientSum::default();
            let mut learning = Duration::ZERO;
            // Running statistics follow each batch, so the model is other before a step is whole.
            let before = (self.communicator.is_none() && self.config.accumulate > 1)
                .then(|| (at.model.clone().into_record(), at.sums.clone(), at.progress.batches));
            for _ in 0..self.config.accumulate {
                let before = Instant::now();
                let batch = batches.next();
                let begun = Instant::now();
                waited += begun - before;
                let Some(ImageBatch { images, labels }) = batch else { break };
                let [size, ..] = images.dims();
                self.monitor.batch(size)?;
                let weight = if alone { 1.0 } else { GradientSum::weight(size) };
                let kind = StepKind {
                    precision: self.config.precision,
                    checkpointing: self.config.checkpointing,
                    factor: weight * at.scale.map_or(1.0, LossScale::factor),
                };
                let mut read = Vec::new();
                let output = self.monitor.guard(|| {
                    let mut reached = |phase| read.extend(self.monitor.look(phase));
                    forward_backward(&at.model, images, labels.clone(), &self.loss, kind, &mut reached)
                })?;
                read.into_iter().try_for_each(|(phase, reading)| self.monitor.note(phase, reading))?;
                at.sums.add(&output.loss, output.scores, labels.inner(), size);
                sum.add(&at.model, output.gradients, size);
                at.progress.batches = self.data.batches_taken(&*batches, at.progress.batches + 1);
                learning += begun.elapsed();
            }
            if sum.images == 0 && self.communicator.is_none() {
                break;
            }
            if let Some((model, sums, batches)) = before
                && self.stopped()
                && at.progress.batches < batches + self.config.accumulate
                && ((at.progress.images + sum.images) as f64) < items
            {
                // The loader was called off within a step. A part of one would be another step than that of a run
                // that goes on: whoever resumes takes it from its first batch.
                // Running statistics hold back what is newest until they are read; what is loaded has to stand.
                drop(at.model.clone().into_record());
                at.model = at.model.load_record(model);
                (at.sums, at.progress.batches) = (sums, batches);
                break;
            }
            let begun = Instant::now();
            at.progress.learning_rate =
                self.config.schedule.at((at.progress.epoch as f64 + seen / items) / self.config.epochs as f64);
            let size = sum.images;
            let all;
            (at, all) = self.step(at, sum, alone)?;
            if all == 0 {
                break;
            }
            seen += all as f64;
            self.monitor.stepped()?;

            let progress = &mut at.progress;
            progress.step += 1;
            progress.images += size;
            progress.steps = progress.steps.max(progress.step).max((items / all as f64).ceil() as u64);
            let due = told.elapsed() >= REPORT_EVERY;
            if due {
                at.sums.read();
            }
            computed += learning + begun.elapsed();
            if due {
                told = Instant::now();
                at.tell(seconds_before, start.elapsed(), waited, computed)?;
                self.monitor.fill(&mut at.progress)?;
                if let Some(memory) = self.monitor.news() {
                    (self.observer)(TrainEvent::Memory(&memory));
                }
                (self.observer)(TrainEvent::Progress(&at.progress));
            }
            if self.stopped() {
                break;
            }
            let every = self.config.checkpoint_every;
            if every > 0 && at.progress.step.is_multiple_of(every) {
                at.sums.read();
                at.tell(seconds_before, start.elapsed(), waited, computed)?;
                self.save(&at)?;
            }
        }
        drop(batches);
        self.whole()?;
        let reading = Instant::now();
        at.sums.read();
        computed += reading.elapsed();
        if !self.stopped() {
            at.progress.steps = at.progress.step;
        }
        at.tell(seconds_before, start.elapsed(), waited, computed)?;
        self.monitor.fill(&mut at.progress)?;
        at.progress.allocator = self.monitor.allocator_stats();
        if let Some(memory) = self.monitor.news() {
            (self.observer)(TrainEvent::Memory(&memory));
        }
        Ok(at)
    }

    /// Lets the weights follow the gradients of a step. Returns how many images all ranks had for it.
    fn step<O: Optimizer<Network<B>, B>>(
        &mut self,
        mut at: TrainState<B, O>,
        mut sum: GradientSum,
        alone: bool,
    ) -> Result<(TrainState<B, O>, u64), TrainError> {
        let mut images = sum.images;
        let mut all = sum.take();
        if let Some(communicator) = &mut self.communicator {
            let stop = self.stop.load(Ordering::Relaxed);
            let (summed, total, stopped) = exchange(communicator, &at.model, &mut all, images, stop)?;
            self.agreed |= stopped;
            if stopped {
                self.stop.store(true, Ordering::Relaxed);
            }
            (all, images) = (summed, total);
            if images == 0 {
                return Ok((at, 0));
            }
        }
        let mean = if alone { 1.0 } else { 1.0 / GradientSum::weight(images as usize) };
        let factor = mean / at.scale.map_or(1.0, LossScale::factor);
        if factor != 1.0 {
            gradients::scale(&at.model, &mut all, factor);
        }
        if let Some(scale) = &mut at.scale
            && !scale.saw(gradients::are_finite(&at.model, &all))
        {
            let Progress { epoch, step, learning_rate, .. } = at.progress;
            let diverged = TrainError::Diverged { epoch, step, learning_rate };
            return if scale.is_least() { Err(diverged) } else { Ok((at, images)) };
        }
        // Nobody else holds the weights, so that they are written in place.
        let TrainState { model, mut optimizer, progress, .. } = at;
        let model = self.monitor.guard(|| optimizer.step(progress.learning_rate, model, all))?;
        Ok((TrainState { model, optimizer, progress, shape: at.shape, scale: at.scale, sums: at.sums }, images))
    }

    /// The loss and accuracy on images that the model does not learn from; `None` where there are none, where another rank
    /// looks, and where the run is to end before all were seen. No graph is made.
    fn validate(&self, model: &Network<B>) -> Result<Option<Score>, TrainError> {
        let images = self.data.validation.as_ref().filter(|_| self.leads() && !self.asked());
        let Some(images) = images else { return Ok(None) };
        let start = Instant::now();
        let model = model.valid();
        let loss = CrossEntropyLossConfig::new().init(&self.device);
        let mut sums = MetricSums::<B::InnerBackend>::new(&self.device);
        for ImageBatch { images, labels } in images.iter() {
            let [size, ..] = images.dims();
            let scores = model.forward(cast(images, self.config.precision.dtype()), Pass::Evaluate);
            let scores = cast(scores, FloatDType::F32);
            sums.add(&loss.forward(scores.clone(), labels.clone()), scores, labels, size);
            if self.asked() {
                break;
            }
        }
        self.whole()?;
        sums.read();
        let (loss, accuracy) = sums.means();
        let score = Score { images: sums.images(), loss, accuracy, seconds: start.elapsed().as_secs_f64() };
        Ok(Some(score).filter(|_| !self.asked()))
    }

    /// The smaller network, and what it saves. Its optimizer begins anew: the old state has the old shape.
    fn prune<O: Optimizer<Network<B>, B>>(
        &mut self,
        at: TrainState<B, O>,
        share: f64,
        fresh: &impl Fn() -> O,
    ) -> Result<(TrainState<B, O>, PruneReport), TrainError> {
        let parameters = at.model.num_params();
        let shape_before = at.shape.clone();
        let (model, shape) = prune(at.model, &at.shape, share, &self.device);
        let predicted = |model: &NetworkConfig| {
            let micro_batch = self.monitor.micro_batch().max(1);
            forecast(&TrainConfig { model: model.clone(), ..self.config.clone() }, micro_batch)
        };
        let (before, after) = (predicted(&shape_before)?.account, predicted(&shape)?.account);
        let scores = self.validate(&model)?.map(|after| [Score::default(), after]);
        let report = PruneReport {
            after_epochs: at.progress.epoch + 1,
            parameters: [parameters, model.num_params()],
            activations: [before.activations, after.activations],
            peak: [before.peak, after.peak],
            scores,
        };
        self.monitor.model_is(&shape)?;
        Ok((TrainState { model, shape, optimizer: fresh(), ..at }, report))
    }

    /// Writes the checkpoint, where one is wanted.
    fn save<O: Optimizer<Network<B>, B>>(&self, at: &TrainState<B, O>) -> Result<(), TrainError> {
        let Some(path) = self.config.checkpoint.as_ref().filter(|_| self.leads()) else { return Ok(()) };
        let Progress { epoch, batches, step, images, seconds, .. } = at.progress;
        let (loss_sum, right) = at.sums.sums();
        let info = CheckpointInfo {
            epochs_done: epoch,
            batches_done: batches,
            steps: step,
            images,
            loss_sum,
            right,
            seconds,
            loss_scale: at.scale.map(LossScale::parts),
            hidden: at.shape.hidden.clone(),
            order: self.order(),
            recipe: self.config.recipe(),
        };
        checkpoint::save(path, &info, &at.model, &at.optimizer)
    }

    /// Whether this rank validates and writes checkpoints.
    fn leads(&self) -> bool {
        self.communicator.as_ref().is_none_or(|communicator| communicator.rank() == 0)
    }

    /// What decides which images a batch of an epoch has, in one word.
    fn order(&self) -> String {
        let ranks = self.communicator.as_ref().map_or(1, Communicator::world_size);
        format!("batches{}-ranks{ranks}-seed{}", self.data.batch_size, self.config.seed.0)
    }

    /// Whether the run is to end.
    fn asked(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Whether it ends after this step: among ranks only when all of them know, or some would wait for one that has left.
    fn stopped(&self) -> bool {
        if self.communicator.is_some() { self.agreed } else { self.asked() }
    }

    /// Refuses an epoch that a loader ended early, unless it was asked to.
    fn whole(&self) -> Result<(), TrainError> {
        match self.data.failure.take() {
            Some(error) if !self.stopped() => Err(TrainError::Data(error)),
            _ => Ok(()),
        }
    }
}

impl<B: AutodiffBackend, O> TrainState<B, O> {
    /// Brings the progress up to what the sums has read.
    fn tell(
        &mut self,
        seconds_before: f64,
        all: Duration,
        waited: Duration,
        computed: Duration,
    ) -> Result<(), TrainError> {
        let progress = &mut self.progress;
        (progress.loss, progress.accuracy) = self.sums.means();
        let now = all.as_secs_f64();
        progress.seconds = seconds_before + now;
        progress.input_wait_share = waited.as_secs_f64() / now.max(1e-9);
        progress.compute_share = computed.as_secs_f64() / now.max(1e-9);
        if progress.loss.is_finite() {
            return Ok(());
        }
        let Progress { epoch, step, learning_rate, .. } = *progress;
        Err(TrainError::Diverged { epoch, step, learning_rate })
    }
}

/// The gradients of all ranks together, their images, and whether one of them is to stop. A rank that has no more data brings
/// nothing, and takes the same step as the others.
fn exchange<B: AutodiffBackend>(
    communicator: &mut Communicator<B::InnerBackend>,
    model: &Network<B>,
    mine: &mut GradientsParams,
    images: u64,
    stop: bool,
) -> Result<(GradientsParams, u64, bool), TrainError> {
    let mut row = gradients::flatten(model, mine);
    let device = row.first().map(Tensor::device).unwrap_or_default();
    let numbers: usize = row.iter().map(|part| part.dims()[0]).sum();
    // Both are small whole numbers, which 32-bit floats add up without loss.
    row.push(Tensor::from_floats([images as f32, f32::from(u8::from(stop))], &device));
    let row = communicator.all_reduce_sum(Tensor::cat(row, 0)).map_err(TrainError::Collective)?;
    let told: Vec<f32> = row.clone().narrow(0, numbers, 2).into_data().iter().collect();
    Ok((gradients::unflatten(model, &row), told[0] as u64, told[1] > 0.0))
}

/// A checkpoint's weights for a model of this shape; where the classes differ, the head stays as it is.
fn start_from<B: AutodiffBackend>(
    path: &Path,
    model: &Network<B>,
    mut shape: NetworkConfig,
    recipe: &str,
    device: &B::Device,
) -> Result<(Network<B>, NetworkConfig), TrainError> {
    let info = checkpoint::inspect(path)?;
    info.check_network(path, recipe)?;
    shape.hidden = info.hidden;
    let output = checkpoint::load_weights(path, shape.init_blank::<B>(device), device)?;
    let wanted = shapes::<B, _>(&shape.init_blank::<B>(device), false);
    let found = shapes::<B, _>(&output, false);
    let differs = |head: bool| {
        wanted.iter().zip(&found).find(|(wanted, found)| wanted.0.starts_with("head.") == head && wanted != found)
    };
    if let Some((wanted, found)) = differs(false) {
        let why = format!(
            "its weights are those of another network: '{}' has the shape {:?}, this one's {:?}",
            wanted.0, found.1, wanted.1
        );
        return Err(checkpoint::refused(path, why));
    }
    let other_classes = differs(true).is_some();
    Ok((if other_classes { output.with_head_of(model) } else { output }, shape))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
