//! The training run: epochs of training and validation, pruning between them, and a checkpoint after each.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use burn::module::{AutodiffModule, Module};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::tensor::FloatDType;
use burn::tensor::backend::AutodiffBackend;

use super::collective::Communicator;
use super::config::{Prune, TrainConfig};
use super::data::TrainData;
use super::error::TrainError;
use super::memory::{MemoryMeter, forecast};
use super::memory_monitor::MemoryMonitor;
use super::metrics::MetricSums;
use super::model::{Network, NetworkConfig, Pass, cast};
use super::prune::prune;
use super::report::{EpochReport, Progress, PruneReport, Score, TrainEvent, TrainReport};
use super::state::TrainState;
use super::trainer::Trainer;
use crate::State;
use crate::adapt::burn::ImageBatch;

/// Device of a run, how its memory is measured, and the other ranks.
#[derive(Debug)]
pub struct TrainContext<B: AutodiffBackend> {
    /// Device.
    pub device: B::Device,
    /// Meter of its memory; `None` measures nothing.
    pub meter: Option<Arc<dyn MemoryMeter>>,
    /// Communicator of this rank of a data-parallel run; `None` for a single rank.
    pub communicator: Option<Communicator>,
}

impl<B: AutodiffBackend> TrainContext<B> {
    /// A single device whose memory is not measured.
    #[must_use]
    pub fn new(device: B::Device) -> Self {
        TrainContext { device, meter: None, communicator: None }
    }
}

/// A trained model, and the report of its training.
#[derive(Debug)]
#[non_exhaustive]
pub struct Outcome<B: AutodiffBackend> {
    /// Model after the last step.
    pub model: Network<B>,
    /// Report of each epoch.
    pub report: TrainReport,
}

/// Trains a network on images. `observer` is called with the progress; setting `stop` ends the run after the current
/// step, and the report says so.
///
/// The same configuration and data give the same weights, bit for bit on the CPU; so does a run that was stopped and
/// resumed from its checkpoint, wherever in an epoch that was written.
///
/// # Errors
/// [`TrainError::Config`] for a setting out of range or data without images, [`TrainError::Data`] if a loader fails,
/// [`TrainError::Io`] and [`TrainError::Checkpoint`] for a checkpoint that cannot be written, read or used,
/// [`TrainError::Diverged`] if the loss is no longer finite, [`TrainError::OutOfMemory`] if the device's budget is too
/// small, [`TrainError::Collective`] if another rank is gone.
///
/// # Panics
/// Panics if a label is not below the configured number of classes.
pub fn train<B: AutodiffBackend>(
    config: &TrainConfig,
    data: &TrainData<B>,
    context: TrainContext<B>,
    stop: &AtomicBool,
    mut observer: impl FnMut(TrainEvent<'_>),
) -> Result<Outcome<B>, TrainError> {
    config.check()?;
    if data.training.num_items() == 0 {
        return Err(TrainError::Config("the training data has no images".to_owned()));
    }
    let TrainContext { device, meter, communicator } = context;
    let trainer = Trainer {
        config,
        data,
        loss: CrossEntropyLossConfig::new().with_smoothing(config.smoothing()).init(&device),
        monitor: MemoryMonitor::new(config, meter),
        device,
        communicator,
        stop,
        stop_agreed: false,
        // One instance of the training loop for each backend, whatever the observers.
        observer: &mut observer,
    };
    trainer.run()
}

impl<B: AutodiffBackend> Trainer<'_, B> {
    fn run(mut self) -> Result<Outcome<B>, TrainError> {
        let images = self.images_of_all_ranks()?;
        let mut state = self.begin()?;
        let first = state.progress.epoch;
        let mut report = TrainReport { parameters: state.model.num_params(), ..TrainReport::default() };
        self.data.epochs.set(State { epoch: first, batch: state.progress.batches });
        let batches = state.progress.batches;
        (self.observer)(TrainEvent::Started { parameters: report.parameters, epoch: first, batches });

        for epoch in first..self.config.epochs {
            state = self.epoch(state, images)?;
            report.memory = self.monitor.report();
            let validation = self.validate(&state.model)?;
            if self.stops() {
                report.interrupted = true;
                self.save(&state)?;
                break;
            }
            let done = EpochReport { training: state.progress, validation };
            let pruned = match self.config.prune {
                Some(Prune { share, after_epochs }) if after_epochs == epoch + 1 => {
                    let (smaller, mut pruned) = self.prune(state, share)?;
                    state = smaller;
                    pruned.scores = validation.zip(pruned.scores.map(|[_, after]| after)).map(<[Score; 2]>::from);
                    Some(pruned)
                }
                _ => None,
            };
            state.progress = Progress { epoch: epoch + 1, epochs: self.config.epochs, ..Progress::default() };
            state.sums = MetricSums::new(&self.device);
            self.save(&state)?;
            report.epochs.push(done);
            (self.observer)(TrainEvent::Epoch(&done));
            if let Some(pruned) = pruned {
                (self.observer)(TrainEvent::Pruned(&pruned));
                report.pruned = Some(pruned);
            }
        }
        Ok(Outcome { model: state.model, report })
    }

    /// Loss and accuracy on the validation images, without a graph. `None` where there are none, where another rank
    /// validates, and where the run is stopped before all were seen.
    fn validate(&self, model: &Network<B>) -> Result<Option<Score>, TrainError> {
        let images = self.data.validation.as_ref().filter(|_| self.is_main_rank() && !self.stop_requested());
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
            if self.stop_requested() {
                break;
            }
        }
        self.check_loader()?;
        sums.read();
        let (loss, accuracy) = sums.means();
        let score = Score { images: sums.images(), loss, accuracy, seconds: start.elapsed().as_secs_f64() };
        Ok(Some(score).filter(|_| !self.stop_requested()))
    }

    /// Prunes the network, and reports what that saves. The optimizer is new: its old state has the old shapes.
    fn prune(&mut self, state: TrainState<B>, share: f64) -> Result<(TrainState<B>, PruneReport), TrainError> {
        let parameters = state.model.num_params();
        let (model, shape) = prune(state.model, &state.shape, share, &self.device);
        let predicted = |model: &NetworkConfig| {
            let micro_batch = self.monitor.micro_batch().max(1);
            forecast(&TrainConfig { model: model.clone(), ..self.config.clone() }, micro_batch)
        };
        let (before, after) = (predicted(&state.shape)?.account, predicted(&shape)?.account);
        let report = PruneReport {
            after_epochs: state.progress.epoch + 1,
            parameters: [parameters, model.num_params()],
            activations: [before.activations, after.activations],
            peak: [before.peak, after.peak],
            scores: self.validate(&model)?.map(|after| [Score::default(), after]),
        };
        self.monitor.set_model(&shape)?;
        Ok((TrainState { model, shape, optimizer: self.new_optimizer(), ..state }, report))
    }
}
