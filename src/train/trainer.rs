//! A training run: its settings, data, device and communicator, and the questions that every part of it asks.

use std::sync::atomic::{AtomicBool, Ordering};

use burn::nn::loss::CrossEntropyLoss;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{ElementConversion, Tensor};

use super::collective::Communicator;
use super::config::TrainConfig;
use super::data::TrainData;
use super::error::TrainError;
use super::memory_monitor::MemoryMonitor;
use super::report::TrainEvent;

pub(super) struct Trainer<'a, B: AutodiffBackend> {
    pub(super) config: &'a TrainConfig,
    pub(super) data: &'a TrainData<B>,
    pub(super) device: B::Device,
    pub(super) monitor: MemoryMonitor,
    pub(super) communicator: Option<Communicator>,
    pub(super) stop: &'a AtomicBool,
    /// True once all ranks know that the run is to end.
    pub(super) stop_agreed: bool,
    pub(super) observer: &'a mut dyn FnMut(TrainEvent<'_>),
    pub(super) loss: CrossEntropyLoss<B>,
}

impl<B: AutodiffBackend> Trainer<'_, B> {
    pub(super) fn world_size(&self) -> usize {
        self.communicator.as_ref().map_or(1, Communicator::world_size)
    }

    /// Returns true if this rank validates and writes checkpoints.
    pub(super) fn is_main_rank(&self) -> bool {
        self.communicator.as_ref().is_none_or(|communicator| communicator.rank() == 0)
    }

    /// Returns true if a step is one batch of this rank: its loss is the mean already, and nothing has to be weighted.
    pub(super) fn steps_are_batches(&self) -> bool {
        self.config.accumulate == 1 && self.communicator.is_none()
    }

    /// Everything that decides which images a batch of an epoch has, as one word.
    pub(super) fn order(&self) -> String {
        format!("batches{}-ranks{}-seed{}", self.data.batch_size, self.world_size(), self.config.seed.0)
    }

    /// Number of images of an epoch on all ranks. Some ranks have one more than others; the learning rate has to be
    /// the same on all of them, or their weights would diverge.
    pub(super) fn images_of_all_ranks(&mut self) -> Result<f64, TrainError> {
        let own = self.data.training.num_items();
        let Some(communicator) = &mut self.communicator else { return Ok(own as f64) };
        let own = Tensor::<B::InnerBackend, 1>::from_floats([own as f32], &self.device);
        Ok(communicator.all_reduce_sum(own)?.into_scalar().elem())
    }

    /// Returns true if the run was asked to end.
    pub(super) fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Returns true if the run ends after this step. Several ranks end only when all of them know: otherwise some would
    /// wait for one that has left.
    pub(super) fn stops(&self) -> bool {
        if self.communicator.is_some() { self.stop_agreed } else { self.stop_requested() }
    }

    /// Refuses an epoch that a loader ended early without being asked to.
    pub(super) fn check_loader(&self) -> Result<(), TrainError> {
        match self.data.failure.take() {
            Some(error) if !self.stops() => Err(TrainError::Data(error)),
            _ => Ok(()),
        }
    }

    /// Reports where memory goes, once, as soon as it is known.
    pub(super) fn report_memory(&mut self) {
        if let Some(memory) = self.monitor.unreported() {
            (self.observer)(TrainEvent::Memory(&memory));
        }
    }
}
