//! Adapter to burn: a [`Loader`] as a [`burn::data::dataloader::DataLoader`].
//!
//! A batch is copied into a tensor and its slot returned at once; on burn's CUDA backend it becomes a tensor without
//! a copy (`burn/cuda.rs`). An error never looks like the end of an epoch.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use ::burn::tensor::backend::Backend;
use ::burn::tensor::{Element, Int, Tensor, TensorData};

use crate::{Batch, DType, Epoch, Error, Loader, State};

#[cfg(feature = "burn-cuda")]
mod cuda;
#[cfg(feature = "burn-cuda")]
mod memory;
#[cfg(feature = "burn-cuda")]
pub use cuda::cuda_device;
#[cfg(feature = "burn-cuda")]
pub use memory::{GpuMemory, OutOfDeviceMemory, gpu_memory, survive};

/// Images and their labels, as tensors. Samples that the loader masked are left out, so a batch may be smaller than the
/// batch size.
#[derive(Clone, Debug)]
pub struct ImageBatch<B: Backend> {
    /// Pixels in the loader's layout and scale, by default `[samples, 3, height, width]`. u8, bf16 and f16 values are
    /// cast to the backend's float type.
    pub images: Tensor<B, 4>,
    /// Label of each sample, `[samples]`.
    pub labels: Tensor<B, 1, Int>,
}

/// Loader for burn's training loops. Each [`iter`](DataLoader::iter) is the next epoch.
///
/// ```no_run
/// use std::sync::Arc;
/// use burn::data::dataloader::DataLoader;
/// use feedstock::adapt::burn::{BurnLoader, ImageBatch};
/// use feedstock::{DType, ImageFolder, Loader, RamBudget, transform::{IMAGENET, RandomResizedCrop}};
///
/// # fn example<B: burn::tensor::backend::Backend>() -> Result<(), Box<dyn std::error::Error>> {
/// let loader = Loader::builder(ImageFolder::open("train")?)
///     .batch_size(256)
///     .ram_budget("4G".parse::<RamBudget>()?)
///     .transform(RandomResizedCrop::new(224).flip(0.5))
///     .dtype(DType::F32)
///     .normalize(IMAGENET)
///     .build()?;
/// let data: Arc<dyn DataLoader<B, ImageBatch<B>>> = Arc::new(BurnLoader::new(loader, Default::default()));
///
/// for batch in data.iter() {
///     assert_eq!(batch.images.dims()[1..], [3, 224, 224]);
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Panics
/// burn's iterators cannot return an error. Without [`on_error`](BurnLoader::on_error) the iterator panics with the
/// message of the error: an epoch that ends early and looks complete would be worse.
#[derive(Clone)]
pub struct BurnLoader<B: Backend> {
    loader: Loader,
    device: B::Device,
    epochs: EpochCounter,
    samples: Range<usize>,
    on_error: Option<Arc<dyn Fn(Error) + Send + Sync>>,
}

/// Epoch and batch at which the next iterator of a [`BurnLoader`] begins. Clones share it, so a trainer that holds
/// one can resume a run within an epoch.
#[derive(Clone, Debug, Default)]
pub struct EpochCounter(Arc<Mutex<State>>);

impl EpochCounter {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets where the next iterator begins.
    pub fn set(&self, state: State) {
        *self.state() = state;
    }

    /// Position at which the next iterator begins.
    #[must_use]
    pub fn get(&self) -> State {
        *self.state()
    }

    /// Takes that position, and sets the start of the next epoch.
    #[must_use]
    pub fn take(&self) -> State {
        let mut state = self.state();
        let next = State { epoch: state.epoch + 1, batch: 0 };
        std::mem::replace(&mut state, next)
    }
}

/// Holds the error that ended an epoch. Clones share it; the first error stays.
#[derive(Clone, Debug, Default)]
pub struct LoadFailure(Arc<Mutex<Option<Error>>>);

impl LoadFailure {
    /// Stores an error, unless there is one.
    pub fn put(&self, error: Error) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    /// Takes the error, if there is one.
    #[must_use]
    pub fn take(&self) -> Option<Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl<B: Backend> BurnLoader<B> {
    /// Creates a loader of tensors on a device, from epoch 0 on.
    #[must_use]
    pub fn new(loader: Loader, device: B::Device) -> Self {
        let samples = 0..usize::try_from(loader.samples_per_epoch()).unwrap_or(usize::MAX);
        BurnLoader { loader, device, epochs: EpochCounter::default(), samples, on_error: None }
    }

    /// Calls `hook` with an error and ends the epoch there, instead of panicking. The training loop must check for an
    /// error before it takes the epoch for complete.
    #[must_use]
    pub fn on_error(mut self, hook: impl Fn(Error) + Send + Sync + 'static) -> Self {
        self.on_error = Some(Arc::new(hook));
        self
    }

    /// Position of the next iterator.
    #[must_use]
    pub fn epochs(&self) -> EpochCounter {
        self.epochs.clone()
    }

    /// Wrapped loader.
    #[must_use]
    pub fn loader(&self) -> &Loader {
        &self.loader
    }

    /// Creates the same loader with a position of its own.
    fn fork(&self, device: B::Device, samples: Range<usize>) -> Arc<Self> {
        let epochs = EpochCounter::default();
        epochs.set(self.epochs.get());
        Arc::new(BurnLoader { device, epochs, samples, ..self.clone() })
    }
}

impl<B: Backend> fmt::Debug for BurnLoader<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BurnLoader { loader, device, epochs, samples, .. } = self;
        write!(f, "BurnLoader({loader:?} on {device:?}, samples {samples:?}, next at {:?})", epochs.get())
    }
}

impl<B: Backend> DataLoader<B, ImageBatch<B>> for BurnLoader<B> {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<ImageBatch<B>> + 'a> {
        // Batches before the first sample are not read: every position in an epoch costs the same.
        let batch_size = self.loader.batch_size().max(1);
        let State { epoch, batch } = self.epochs.take();
        let batch = batch.max((self.samples.start / batch_size) as u64);
        let first = usize::try_from(batch).unwrap_or(usize::MAX).saturating_mul(batch_size);
        let position = self.samples.start.max(first).min(self.samples.end);
        Box::new(Batches {
            of: self,
            epoch: (position < self.samples.end).then(|| self.loader.resume(State { epoch, batch })),
            position,
        })
    }

    fn num_items(&self) -> usize {
        self.samples.len()
    }

    fn to_device(&self, device: &B::Device) -> Arc<dyn DataLoader<B, ImageBatch<B>>> {
        self.fork(device.clone(), self.samples.clone())
    }

    /// Samples `start` to `end` of each epoch, in its order. The first and last batch are smaller where the ends are
    /// not at the boundary of a batch. Slices of one loader run one after the other; to feed several devices at once,
    /// build one loader for each with [`LoaderBuilder::shard`](crate::LoaderBuilder::shard).
    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<B, ImageBatch<B>>> {
        let Range { start: first, end: last } = self.samples;
        let start = first.saturating_add(start).min(last);
        let end = first.saturating_add(end).clamp(start, last);
        self.fork(self.device.clone(), start..end)
    }
}

/// Batches of one epoch, or of a slice.
struct Batches<'a, B: Backend> {
    of: &'a BurnLoader<B>,
    epoch: Option<Epoch>,
    /// Position in the epoch of the next sample.
    position: usize,
}

impl<B: Backend> Batches<'_, B> {
    fn step(&mut self, epoch: &mut Epoch) -> Result<Option<ImageBatch<B>>, Error> {
        while self.position < self.of.samples.end {
            let Some(batch) = epoch.next().transpose()? else { break };
            let first =
                usize::try_from(batch.index()).unwrap_or(usize::MAX).saturating_mul(self.of.loader.batch_size());
            let wanted = |index: &usize| self.of.samples.contains(&(first + index));
            let keep: Vec<usize> = (0..batch.len()).filter(wanted).filter(|&index| batch.valid()[index]).collect();
            self.position = (first + batch.len()).min(self.of.samples.end);
            if !keep.is_empty() {
                return to_tensors(batch, &keep, &self.of.device).map(Some);
            }
        }
        Ok(None)
    }
}

impl<B: Backend> Iterator for Batches<'_, B> {
    type Item = ImageBatch<B>;

    fn next(&mut self) -> Option<ImageBatch<B>> {
        let mut epoch = self.epoch.take()?;
        match self.step(&mut epoch) {
            Ok(Some(batch)) => {
                self.epoch = Some(epoch);
                Some(batch)
            }
            Ok(None) => None,
            Err(error) => {
                // Its threads end before the error is reported.
                drop(epoch);
                match &self.of.on_error {
                    Some(hook) => hook(error),
                    None => panic!("the loader failed before the end of the epoch: {error}"),
                }
                None
            }
        }
    }
}

impl<B: Backend> DataLoaderIterator<ImageBatch<B>> for Batches<'_, B> {
    fn progress(&self) -> Progress {
        Progress::new(self.position - self.of.samples.start, self.of.samples.len())
    }
}

/// Converts the samples at these indices of a batch. A batch in memory of burn is not copied; otherwise its pixels
/// are copied once, and the slot is returned when the batch is dropped.
fn to_tensors<B: Backend>(batch: Batch, keep: &[usize], device: &B::Device) -> Result<ImageBatch<B>, Error> {
    let labels: Vec<i64> = keep.iter().map(|&index| i64::from(batch.labels()[index])).collect();
    let labels = Tensor::from_data(TensorData::new(labels, [keep.len()]), device);
    #[cfg(feature = "burn-cuda")]
    let batch = {
        let samples = batch.len();
        match cuda::images::<B>(batch)? {
            Ok(images) if keep.len() == samples => return Ok(ImageBatch { images, labels }),
            Ok(images) => {
                let indices: Vec<i64> = keep.iter().map(|&index| index as i64).collect();
                let indices = Tensor::from_data(TensorData::new(indices, [keep.len()]), device);
                return Ok(ImageBatch { images: images.select(0, indices), labels });
            }
            Err(batch) => batch,
        }
    };
    let mut pixels = match batch.bytes() {
        Some(bytes) => Cow::Borrowed(bytes),
        None => {
            let mut bytes = Vec::new();
            batch.read_back(&mut bytes)?;
            Cow::Owned(bytes)
        }
    };
    if keep.len() < batch.len() {
        let sample_bytes = pixels.len() / batch.len();
        pixels = keep.iter().flat_map(|&index| &pixels[index * sample_bytes..][..sample_bytes]).copied().collect();
    }
    let mut shape = batch.shape();
    shape[0] = keep.len();
    let data = match batch.dtype() {
        DType::U8 => TensorData::new(pixels.into_owned(), shape),
        DType::F32 => elements::<f32>(&pixels, shape),
        DType::Bf16 => elements::<half::bf16>(&pixels, shape),
        DType::F16 => elements::<half::f16>(&pixels, shape),
    };
    // Returns the slot before the copy to the device.
    drop(batch);
    Ok(ImageBatch { images: Tensor::from_data(data, device), labels })
}

fn elements<E: Element + bytemuck::Pod>(pixels: &[u8], shape: [usize; 4]) -> TensorData {
    TensorData::new(bytemuck::pod_collect_to_vec::<u8, E>(pixels), shape)
}

// They need a backend, which the feature `train` brings.
#[cfg(all(test, feature = "train"))]
#[path = "burn_tests.rs"]
mod tests;
