//! Owns what a run learns from: two of burn's data loaders, and how they say that they failed.
//! It must never know what is behind them, but for the one constructor that wires feedstock's own.

use std::sync::Arc;

use burn::data::dataloader::{DataLoader, DataLoaderIterator};
use burn::tensor::backend::{AutodiffBackend, Backend};

use crate::Loader;
use crate::adapt::burn::{BurnLoader, EpochCounter, ImageBatch, LoadFailure};

/// A loader of images, as burn's training loops take it.
pub type ImageLoader<B> = Arc<dyn DataLoader<B, ImageBatch<B>>>;

/// What a run learns from.
#[derive(Clone)]
pub struct TrainData<B: AutodiffBackend> {
    pub(super) training: ImageLoader<B>,
    pub(super) validation: Option<ImageLoader<B::InnerBackend>>,
    pub(super) epochs: EpochCounter,
    pub(super) failure: LoadFailure,
    /// Images in a batch; 0 where nobody says.
    pub(super) batch_size: usize,
}

impl<B: AutodiffBackend> TrainData<B> {
    /// Any two of burn's data loaders. `epochs` is set where a run resumes, for a training loader that counts its epochs
    /// there; `failure` is asked whenever an epoch ends.
    #[must_use]
    pub fn new(
        training: ImageLoader<B>,
        validation: Option<ImageLoader<B::InnerBackend>>,
        epochs: EpochCounter,
        failure: LoadFailure,
    ) -> Self {
        TrainData { training, validation, epochs, failure, batch_size: 0 }
    }

    /// Batches of the epoch that an iterator is past, those without a good image included; `counted`, where nobody knows how
    /// large they are.
    pub(super) fn batches_taken(&self, batches: &dyn DataLoaderIterator<ImageBatch<B>>, counted: u64) -> u64 {
        let passed = batches.progress().items_processed;
        if self.batch_size == 0 { counted } else { passed.div_ceil(self.batch_size) as u64 }
    }

    /// Two of feedstock's loaders. An error of either ends the run with
    /// [`TrainError::Data`](crate::train::TrainError::Data).
    #[must_use]
    pub fn from_loaders(training: Loader, validation: Option<Loader>, device: &B::Device) -> Self {
        let failure = LoadFailure::default();
        let batch_size = training.batch_size();
        let training = adapt::<B>(training, device, &failure);
        let epochs = training.epochs();
        let validation = validation.map(|loader| Arc::new(adapt::<B::InnerBackend>(loader, device, &failure)) as _);
        TrainData { training: Arc::new(training), validation, epochs, failure, batch_size }
    }
}

fn adapt<B: Backend>(loader: Loader, device: &B::Device, failure: &LoadFailure) -> BurnLoader<B> {
    let failure = failure.clone();
    BurnLoader::new(loader, device.clone()).on_error(move |error| failure.put(error))
}
