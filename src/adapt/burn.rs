//! Owns the way into burn: a [`Loader`] as a [`burn::data::dataloader::DataLoader`].
//! It must never keep a slot longer than the copy into a tensor takes, and never end an epoch early in silence.
//!
//! On burn's CUDA backend there is no copy (`burn/cuda.rs`).

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

/// Images and their labels, as tensors. Samples that the loader masked are left out, so a training loop sees good ones
/// only and a batch may be smaller than asked.
#[derive(Clone, Debug)]
pub struct ImageBatch<B: Backend> {
    /// The pixels, in the loader's layout and scale, `[samples, 3, height, width]` unless it was built otherwise. u8 and
    /// bf16 and f16 values are cast to the backend's float type as they are.
    pub images: Tensor<B, 4>,
    /// The label of each sample, `[samples]`.
    pub labels: Tensor<B, 1, Int>,
}

/// A loader that drops into burn's training loop. Each [`iter`](DataLoader::iter) is the next epoch.
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
///     .output(DType::F32)
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
/// burn's iterators have no way to return an error. Where [`on_error`](BurnLoader::on_error) was not called, the
/// iterator panics with the whole message: an epoch that ends early and looks complete would be worse.
#[derive(Clone)]
pub struct BurnLoader<B: Backend> {
    loader: Loader,
    device: B::Device,
    epochs: EpochCounter,
    samples: Range<usize>,
    on_error: Option<Arc<dyn Fn(Error) + Send + Sync>>,
}

/// Where a [`BurnLoader`]'s next iterator begins: in which epoch, and at which of its batches. Clones share it, so a trainer
/// that holds one can resume a run in the middle of an epoch.
#[derive(Clone, Debug, Default)]
pub struct EpochCounter(Arc<Mutex<State>>);

impl EpochCounter {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the next iterator begin here.
    pub fn set(&self, state: State) {
        *self.state() = state;
    }

    /// Where the next iterator begins.
    #[must_use]
    pub fn get(&self) -> State {
        *self.state()
    }

    /// Takes that place, leaving the start of the epoch after it.
    #[must_use]
    pub fn take(&self) -> State {
        let mut state = self.state();
        let next = State { epoch: state.epoch + 1, batch: 0 };
        std::mem::replace(&mut state, next)
    }
}

/// Where the error that ended an epoch waits to be asked for. Clones share it; the first error stays.
#[derive(Clone, Debug, Default)]
pub struct LoadFailure(Arc<Mutex<Option<Error>>>);

impl LoadFailure {
    /// Keeps an error, unless one is kept already.
    pub fn put(&self, error: Error) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    /// The error, if there was one; it is gone from here then.
    #[must_use]
    pub fn take(&self) -> Option<Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl<B: Backend> BurnLoader<B> {
    /// Batches of this loader as tensors on a device, from epoch 0 on.
    #[must_use]
    pub fn new(loader: Loader, device: B::Device) -> Self {
        let samples = 0..usize::try_from(loader.samples_per_epoch()).unwrap_or(usize::MAX);
        BurnLoader { loader, device, epochs: EpochCounter::default(), samples, on_error: None }
    }

    /// Hands an error to `hook` and ends the epoch there, instead of panicking. Whoever runs the loop must look at what
    /// the hook was given before it believes that the epoch was whole.
    #[must_use]
    pub fn on_error(mut self, hook: impl Fn(Error) + Send + Sync + 'static) -> Self {
        self.on_error = Some(Arc::new(hook));
        self
    }

    /// The loader's epochs, to look at or to set.
    #[must_use]
    pub fn epochs(&self) -> EpochCounter {
        self.epochs.clone()
    }

    /// The loader underneath.
    #[must_use]
    pub fn loader(&self) -> &Loader {
        &self.loader
    }

    /// The same loader with epochs of its own from here on.
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
        // A batch that lies wholly before the first sample is never read: any place in an epoch costs the same.
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

    /// The part of each epoch from `start` to `end`, in the epoch's order. Its first and last batch are smaller where
    /// the ends do not lie between batches. Slices of one loader run one after the other, not at once; to feed several
    /// devices at once, build one loader for each with [`LoaderBuilder::rank`](crate::LoaderBuilder::rank).
    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<B, ImageBatch<B>>> {
        let Range { start: first, end: last } = self.samples;
        let start = first.saturating_add(start).min(last);
        let end = first.saturating_add(end).clamp(start, last);
        self.fork(self.device.clone(), start..end)
    }
}

/// One epoch's batches, or those of a slice.
struct Batches<'a, B: Backend> {
    of: &'a BurnLoader<B>,
    epoch: Option<Epoch>,
    /// Place in the epoch of the next sample to hand out.
    position: usize,
}

impl<B: Backend> Batches<'_, B> {
    fn step(&mut self, epoch: &mut Epoch) -> Result<Option<ImageBatch<B>>, Error> {
        while self.position < self.of.samples.end {
            let Some(batch) = epoch.next().transpose()? else { break };
            let first =
                usize::try_from(batch.index()).unwrap_or(usize::MAX).saturating_mul(self.of.loader.batch_size());
            let wanted = |place: &usize| self.of.samples.contains(&(first + place));
            let keep: Vec<usize> = (0..batch.len()).filter(wanted).filter(|&place| batch.valid()[place]).collect();
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
                // Its threads end before anybody hears of the error.
                drop(epoch);
                match &self.of.on_error {
                    Some(hook) => hook(error),
                    None => panic!("the loader failed, and its epoch is not whole: {error}"),
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

/// The samples at these places of a batch. Where the batch lies in memory that burn has lent, it is not copied; otherwise
/// its pixels are copied once, and the slot goes back when the batch is dropped.
fn to_tensors<B: Backend>(batch: Batch, keep: &[usize], device: &B::Device) -> Result<ImageBatch<B>, Error> {
    let labels: Vec<i64> = keep.iter().map(|&place| i64::from(batch.labels()[place])).collect();
    let labels = Tensor::from_data(TensorData::new(labels, [keep.len()]), device);
    #[cfg(feature = "burn-cuda")]
    let batch = {
        let samples = batch.len();
        match cuda::images::<B>(batch)? {
            Ok(images) if keep.len() == samples => return Ok(ImageBatch { images, labels }),
            Ok(images) => {
                let places: Vec<i64> = keep.iter().map(|&place| place as i64).collect();
                let places = Tensor::from_data(TensorData::new(places, [keep.len()]), device);
                return Ok(ImageBatch { images: images.select(0, places), labels });
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
        pixels = keep.iter().flat_map(|&place| &pixels[place * sample_bytes..][..sample_bytes]).copied().collect();
    }
    let mut shape = batch.shape();
    shape[0] = keep.len();
    let data = match batch.dtype() {
        DType::U8 => TensorData::new(pixels.into_owned(), shape),
        DType::F32 => elements::<f32>(&pixels, shape),
        DType::Bf16 => elements::<half::bf16>(&pixels, shape),
        DType::F16 => elements::<half::f16>(&pixels, shape),
    };
    // What comes next needs none of its memory.
    drop(batch);
    Ok(ImageBatch { images: Tensor::from_data(data, device), labels })
}

fn elements<E: Element + bytemuck::Pod>(pixels: &[u8], shape: [usize; 4]) -> TensorData {
    TensorData::new(bytemuck::pod_collect_to_vec::<u8, E>(pixels), shape)
}

// They need a backend, which the trainer's feature brings.
#[cfg(all(test, feature = "train"))]
#[path = "burn_tests.rs"]
mod tests;
