//! Data of a run: two of burn's data loaders, and the error of a loader that fails.

use std::fmt;
use std::sync::Arc;

use burn::data::dataloader::{DataLoader, DataLoaderIterator};
use burn::tensor::backend::{AutodiffBackend, Backend};

use crate::Loader;
use crate::adapt::burn::{BurnLoader, EpochCounter, ImageBatch, LoadFailure};

/// Loader of images, as burn's training loops take it.
pub type ImageLoader<B> = Arc<dyn DataLoader<B, ImageBatch<B>>>;

/// Training and validation data of a run.
#[derive(Clone)]
pub struct TrainData<B: AutodiffBackend> {
    pub(super) training: ImageLoader<B>,
    pub(super) validation: Option<ImageLoader<B::InnerBackend>>,
    pub(super) epochs: EpochCounter,
    pub(super) failure: LoadFailure,
    /// Images in a batch; 0 if unknown.
    pub(super) batch_size: usize,
}

impl<B: AutodiffBackend> fmt::Debug for TrainData<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let images = self.training.num_items();
        f.debug_struct("TrainData")
            .field("images", &images)
            .field("batch_size", &self.batch_size)
            .finish_non_exhaustive()
    }
}

impl<B: AutodiffBackend> TrainData<B> {
    /// Any two of burn's data loaders. A run that resumes sets `epochs`, for a training loader that takes its epoch
    /// from there; `failure` is checked at the end of every epoch.
    #[must_use]
    pub fn new(
        training: ImageLoader<B>,
        validation: Option<ImageLoader<B::InnerBackend>>,
        epochs: EpochCounter,
        failure: LoadFailure,
    ) -> Self {
        TrainData { training, validation, epochs, failure, batch_size: 0 }
    }

    /// Number of batches of the epoch that an iterator has passed, including those without a good image; `counted` if
    /// the batch size is unknown.
    pub(super) fn batches_taken(&self, batches: &dyn DataLoaderIterator<ImageBatch<B>>, counted: u64) -> u64 {
        let passed = batches.progress().items_processed;
        if self.batch_size == 0 { counted } else { passed.div_ceil(self.batch_size) as u64 }
    }

    /// Two loaders of this crate. An error of either ends the run with
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
