//! One epoch of training: steps of one batch or several, until the data ends or the run is stopped.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use burn::data::dataloader::DataLoaderIterator;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;

use super::collective::Communicator;
use super::error::TrainError;
use super::gradients::{self, GradientSum};
use super::model::Network;
use super::precision::LossScale;
use super::report::TrainEvent;
use super::state::{EpochClock, TrainState};
use super::step::{StepKind, forward_backward};
use super::trainer::Trainer;
use crate::adapt::burn::ImageBatch;

/// Time between two reports. Each reads the loss, which waits for all work of the device.
const REPORT_EVERY: Duration = Duration::from_millis(100);

impl<B: AutodiffBackend> Trainer<'_, B> {
    /// Runs the rest of the current epoch, which has `images` images on all ranks.
    pub(super) fn epoch(&mut self, mut state: TrainState<B>, images: f64) -> Result<TrainState<B>, TrainError> {
        let mut clock = EpochClock::start(state.progress.seconds);
        let mut batches = self.data.training.iter();
        let mut seen = state.progress.images as f64 * self.world_size() as f64;
        loop {
            // BatchNorm statistics change on every micro-batch; keep a copy to roll back to.
            let snapshot = (self.communicator.is_none() && self.config.accumulate > 1).then(|| state.snapshot());
            let sum = self.accumulate(&mut state, &mut *batches, &mut clock)?;
            if sum.images == 0 && self.communicator.is_none() {
                break;
            }
            if let Some(snapshot) = snapshot
                && self.stops()
                && state.progress.batches < snapshot.batches + self.config.accumulate
                && ((state.progress.images + sum.images) as f64) < images
            {
                // The loader was stopped within a step. A step of fewer batches would differ from that of a run that is
                // not stopped: the resumed run takes it from its first batch.
                state = state.roll_back(snapshot);
                break;
            }
            let begun = Instant::now();
            let progress = &mut state.progress;
            progress.learning_rate =
                self.config.schedule.at((progress.epoch as f64 + seen / images) / self.config.epochs as f64);
            let own = sum.images;
            let all;
            (state, all) = self.step(state, sum)?;
            if all == 0 {
                break;
            }
            seen += all as f64;
            self.monitor.stepped()?;
            let progress = &mut state.progress;
            progress.step += 1;
            progress.images += own;
            progress.steps = progress.steps.max(progress.step).max((images / all as f64).ceil() as u64);
            self.report_step(&mut state, &mut clock, begun)?;
            if self.stops() {
                break;
            }
            let every = self.config.checkpoint_every;
            if every > 0 && state.progress.step.is_multiple_of(every) {
                state.sums.read();
                state.update_progress(&clock)?;
                self.save(&state)?;
            }
        }
        drop(batches);
        self.check_loader()?;
        let reading = Instant::now();
        state.sums.read();
        clock.computed += reading.elapsed();
        if !self.stops() {
            state.progress.steps = state.progress.step;
        }
        state.update_progress(&clock)?;
        self.monitor.fill(&mut state.progress)?;
        state.progress.allocator = self.monitor.allocator_stats();
        self.report_memory();
        Ok(state)
    }

    /// Adds up the gradients of the batches of one step; none where the data has ended.
    fn accumulate(
        &mut self,
        state: &mut TrainState<B>,
        batches: &mut dyn DataLoaderIterator<ImageBatch<B>>,
        clock: &mut EpochClock,
    ) -> Result<GradientSum, TrainError> {
        let mut sum = GradientSum::default();
        for _ in 0..self.config.accumulate {
            let before = Instant::now();
            let batch = batches.next();
            let begun = Instant::now();
            clock.waited += begun - before;
            let Some(ImageBatch { images, labels }) = batch else { break };
            let [size, ..] = images.dims();
            self.monitor.check_batch(size)?;
            let weight = if self.steps_are_batches() { 1.0 } else { GradientSum::weight(size) };
            let kind = StepKind {
                precision: self.config.precision,
                checkpointing: self.config.checkpointing,
                factor: weight * state.scale.map_or(1.0, LossScale::factor),
            };
            let mut samples = Vec::new();
            let output = self.monitor.guard(|| {
                let mut reached = |phase| samples.extend(self.monitor.sample(phase));
                forward_backward(&state.model, images, labels.clone(), &self.loss, kind, &mut reached)
            })?;
            samples.into_iter().try_for_each(|(phase, sample)| self.monitor.record(phase, sample))?;
            state.sums.add(&output.loss, output.scores, labels.inner(), size);
            sum.add(&state.model, output.gradients, size);
            state.progress.batches = self.data.batches_taken(&*batches, state.progress.batches + 1);
            clock.computed += begun.elapsed();
        }
        Ok(sum)
    }

    /// Updates the weights with the gradients of a step. Returns the number of its images on all ranks.
    fn step(&mut self, mut state: TrainState<B>, mut sum: GradientSum) -> Result<(TrainState<B>, u64), TrainError> {
        let mut images = sum.images;
        let mut gradients = sum.take();
        if let Some(communicator) = &mut self.communicator {
            let stop = self.stop.load(Ordering::Relaxed);
            let (summed, total, stopped) = exchange(communicator, &state.model, &mut gradients, images, stop)?;
            self.stop_agreed |= stopped;
            if stopped {
                self.stop.store(true, Ordering::Relaxed);
            }
            (gradients, images) = (summed, total);
            if images == 0 {
                return Ok((state, 0));
            }
        }
        let mean = if self.steps_are_batches() { 1.0 } else { 1.0 / GradientSum::weight(images as usize) };
        let factor = mean / state.scale.map_or(1.0, LossScale::factor);
        if factor != 1.0 {
            gradients::scale(&state.model, &mut gradients, factor);
        }
        if let Some(scale) = &mut state.scale
            && !scale.update(gradients::are_finite(&state.model, &gradients))
        {
            return if scale.is_least() { Err(state.diverged()) } else { Ok((state, images)) };
        }
        // The weights have no other owner here, so they are updated in place.
        let TrainState { model, mut optimizer, progress, .. } = state;
        let model = self.monitor.guard(|| optimizer.step(progress.learning_rate, model, gradients))?;
        Ok((
            TrainState { model, optimizer, progress, shape: state.shape, scale: state.scale, sums: state.sums },
            images,
        ))
    }

    /// Counts the time of a step since `begun`, and reports the progress where it is time to.
    fn report_step(
        &mut self,
        state: &mut TrainState<B>,
        clock: &mut EpochClock,
        begun: Instant,
    ) -> Result<(), TrainError> {
        let due = clock.last_report.elapsed() >= REPORT_EVERY;
        if due {
            state.sums.read();
        }
        clock.computed += begun.elapsed();
        if due {
            clock.last_report = Instant::now();
            state.update_progress(clock)?;
            self.monitor.fill(&mut state.progress)?;
            self.report_memory();
            (self.observer)(TrainEvent::Progress(&state.progress));
        }
        Ok(())
    }
}

/// Sums the gradients and the number of images over all ranks, and tells whether one of them is to stop. A rank without
/// more data adds nothing, and takes the same step as the others.
fn exchange<B: AutodiffBackend>(
    communicator: &mut Communicator,
    model: &Network<B>,
    own: &mut GradientsParams,
    images: u64,
    stop: bool,
) -> Result<(GradientsParams, u64, bool), TrainError> {
    let mut row = gradients::flatten(model, own);
    let device = row.first().map(Tensor::device).unwrap_or_default();
    let numbers: usize = row.iter().map(|part| part.dims()[0]).sum();
    // Both are small integers, which f32 adds without loss.
    row.push(Tensor::from_floats([images as f32, f32::from(u8::from(stop))], &device));
    let row = communicator.all_reduce_sum(Tensor::cat(row, 0))?;
    let sums: Vec<f32> = row.clone().narrow(0, numbers, 2).into_data().iter().collect();
    Ok((gradients::unflatten(model, &row), sums[0] as u64, sums[1] > 0.0))
}
