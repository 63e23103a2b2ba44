//! Everything that changes from step to step, and how it gets into a checkpoint and back.

use std::path::Path;
use std::time::{Duration, Instant};

use burn::module::Module;
use burn::tensor::backend::AutodiffBackend;

use super::checkpoint::{self, CheckpointInfo};
use super::error::{CheckpointError, TrainError};
use super::freeze::shapes;
use super::memory::warm_up;
use super::metrics::MetricSums;
use super::model::{Network, NetworkConfig};
use super::optimizer::NetworkOptimizer;
use super::precision::LossScale;
use super::report::Progress;
use super::trainer::Trainer;

/// State of a run. With the data, it decides all that follows.
pub(super) struct TrainState<B: AutodiffBackend> {
    pub(super) model: Network<B>,
    pub(super) shape: NetworkConfig,
    pub(super) optimizer: NetworkOptimizer<B>,
    pub(super) scale: Option<LossScale>,
    /// Progress of the current epoch.
    pub(super) progress: Progress,
    pub(super) sums: MetricSums<B::InnerBackend>,
}

/// A part of the state, to roll back to.
pub(super) struct Snapshot<B: AutodiffBackend> {
    record: <Network<B> as Module<B>>::Record,
    sums: MetricSums<B::InnerBackend>,
    pub(super) batches: u64,
}

/// Times of an epoch.
pub(super) struct EpochClock {
    start: Instant,
    /// Seconds of the epoch before this process resumed it.
    seconds_before: f64,
    pub(super) last_report: Instant,
    pub(super) waited: Duration,
    pub(super) computed: Duration,
}

impl EpochClock {
    pub(super) fn start(seconds_before: f64) -> Self {
        let start = Instant::now();
        EpochClock { start, seconds_before, last_report: start, waited: Duration::ZERO, computed: Duration::ZERO }
    }
}

impl<B: AutodiffBackend> TrainState<B> {
    pub(super) fn snapshot(&self) -> Snapshot<B> {
        let batches = self.progress.batches;
        Snapshot { record: self.model.clone().into_record(), sums: self.sums.clone(), batches }
    }

    pub(super) fn roll_back(mut self, snapshot: Snapshot<B>) -> Self {
        // burn applies pending running statistics lazily: flush them first, or they overwrite the restored record.
        drop(self.model.clone().into_record());
        self.model = self.model.load_record(snapshot.record);
        (self.sums, self.progress.batches) = (snapshot.sums, snapshot.batches);
        self
    }

    /// Brings the progress up to date with the sums that were read.
    pub(super) fn update_progress(&mut self, clock: &EpochClock) -> Result<(), TrainError> {
        let progress = &mut self.progress;
        (progress.loss, progress.accuracy) = self.sums.means();
        let seconds = clock.start.elapsed().as_secs_f64();
        progress.seconds = clock.seconds_before + seconds;
        progress.input_wait_share = clock.waited.as_secs_f64() / seconds.max(1e-9);
        progress.compute_share = clock.computed.as_secs_f64() / seconds.max(1e-9);
        if progress.loss.is_finite() { Ok(()) } else { Err(self.diverged()) }
    }

    pub(super) fn diverged(&self) -> TrainError {
        let Progress { epoch, step, learning_rate, .. } = self.progress;
        TrainError::Diverged { epoch, step, learning_rate }
    }
}

impl<B: AutodiffBackend> Trainer<'_, B> {
    pub(super) fn new_optimizer(&self) -> NetworkOptimizer<B> {
        NetworkOptimizer::new(self.config.optimizer, self.config.weight_decay)
    }

    /// State at the begin of this run: new, from other weights, or from a checkpoint.
    pub(super) fn begin(&mut self) -> Result<TrainState<B>, TrainError> {
        let config = self.config;
        if self.monitor.has_meter() {
            warm_up::<B>(&self.device)?;
        }
        self.monitor.begin();
        let saved = match (config.resume, &config.checkpoint) {
            (true, Some(path)) => Some((path, checkpoint::inspect(path)?)),
            _ => None,
        };
        let mut shape = config.model.clone();
        let model = match (&saved, &config.start_from) {
            (Some((path, info)), _) => {
                info.check(path, &config.recipe(), &self.order())?;
                shape.hidden.clone_from(&info.hidden);
                checkpoint::load_weights(path, shape.init_blank::<B>(&self.device), &self.device)?
            }
            (None, start_from) => {
                let new = shape.init::<B>(config.seed, &self.device);
                match start_from {
                    Some(path) => load_other(path, &new, &mut shape, &config.recipe(), &self.device)?,
                    None => new,
                }
            }
        };
        let mut state = TrainState {
            model: config.freeze.apply::<B, _>(model)?,
            shape,
            optimizer: self.new_optimizer(),
            scale: LossScale::new(config.precision),
            progress: Progress { epochs: config.epochs, ..Progress::default() },
            sums: MetricSums::new(&self.device),
        };
        self.monitor.set_model(&state.shape)?;
        if let Some((path, info)) = saved {
            state.optimizer = checkpoint::load_optimizer(path, state.optimizer, &self.device)?;
            state.restore(&info);
        }
        Ok(state)
    }

    /// Writes the checkpoint, if one is configured.
    pub(super) fn save(&self, state: &TrainState<B>) -> Result<(), TrainError> {
        let Some(path) = self.config.checkpoint.as_ref().filter(|_| self.is_main_rank()) else { return Ok(()) };
        let Progress { epoch, batches, step, images, seconds, .. } = state.progress;
        let (loss_sum, right) = state.sums.sums();
        let info = CheckpointInfo {
            epochs_done: epoch,
            batches_done: batches,
            steps: step,
            images,
            loss_sum,
            right,
            seconds,
            loss_scale: state.scale.map(LossScale::parts),
            hidden: state.shape.hidden.clone(),
            order: self.order(),
            recipe: self.config.recipe(),
        };
        checkpoint::save(path, &info, &state.model, &state.optimizer)
    }
}

impl<B: AutodiffBackend> TrainState<B> {
    fn restore(&mut self, info: &CheckpointInfo) {
        let progress = &mut self.progress;
        (progress.epoch, progress.batches, progress.step) = (info.epochs_done, info.batches_done, info.steps);
        (progress.images, progress.seconds) = (info.images, info.seconds);
        self.sums.restore(info.loss_sum, info.right, info.images);
        if let (Some(scale), Some((factor, good_steps))) = (&mut self.scale, info.loss_scale) {
            *scale = LossScale::from_parts(factor, good_steps);
        }
    }
}

/// Weights of the checkpoint of another run. Where the number of classes differs, the head is that of `new`.
fn load_other<B: AutodiffBackend>(
    path: &Path,
    new: &Network<B>,
    shape: &mut NetworkConfig,
    recipe: &str,
    device: &B::Device,
) -> Result<Network<B>, TrainError> {
    let info = checkpoint::inspect(path)?;
    info.check_network(path, recipe)?;
    shape.hidden = info.hidden;
    let loaded = checkpoint::load_weights(path, shape.init_blank::<B>(device), device)?;
    let wanted = shapes::<B, _>(&shape.init_blank::<B>(device), false);
    let found = shapes::<B, _>(&loaded, false);
    let mut other_classes = false;
    for ((name, wanted), (_, found)) in wanted.into_iter().zip(found).filter(|(wanted, found)| wanted != found) {
        if !name.starts_with("head.") {
            return Err(CheckpointError::Shape { name, found, wanted }.of(path));
        }
        other_classes = true;
    }
    Ok(if other_classes { loaded.with_head_of(new) } else { loaded })
}
