//! Owns what a device is asked to do with one batch: [`Transfer`], the windows in it, and what comes back.
//! It must never do it.

use super::{DeviceError, DeviceMemory, Event, HostMemory, bytes};
use crate::sync::Arc;
use crate::tensor::{DType, OutputFormat, SampleSpec};

/// One batch on its way to the device.
#[derive(Debug)]
pub struct Transfer<'a> {
    /// The slot: `samples` decoded samples one after another (u8, NHWC) from its first byte on. Until
    /// [`TransferEvents::slot_free`] has passed nobody may write to the memory; by the time anybody has seen it pass, the device has
    /// dropped its handle.
    pub from: Arc<HostMemory>,
    /// How many samples there are; zero is a batch like any other.
    pub samples: usize,
    /// Shape of one finished sample.
    pub spec: SampleSpec,
    /// What is done to the samples on the device.
    pub format: OutputFormat,
    /// What part of each sample is used; `None`: all of it.
    pub windows: Option<Windows<'a>>,
    /// Where the finished batch goes, from the first byte on. Bytes past its end keep whatever they were.
    pub to: &'a mut DeviceMemory,
    /// What has to pass before `to` may be written: the consumer's [`release`](super::Device::release) of the batch before.
    pub after: Event,
}

impl Transfer<'_> {
    /// Shape of one sample as it lies in the slot.
    #[must_use]
    pub fn stored(&self) -> SampleSpec {
        self.windows.map_or(self.spec, |windows| windows.stored)
    }

    /// Bytes that cross to the device.
    #[must_use]
    pub fn copied_bytes(&self) -> usize {
        self.samples.saturating_mul(self.stored().size_bytes(DType::U8))
    }

    /// Whether the finished batch is, byte for byte, what crosses.
    #[must_use]
    pub fn is_identity(&self) -> bool {
        self.format.is_identity() && self.windows.is_none()
    }

    /// Bytes of the finished batch.
    #[must_use]
    pub fn finished_bytes(&self) -> usize {
        self.samples.saturating_mul(self.spec.size_bytes(self.format.dtype))
    }

    /// Whether this can be done at all. Every device asks this first.
    ///
    /// # Errors
    /// [`DeviceError::Size`] where slot or device memory are too small; [`DeviceError::Unsupported`] for a window that
    /// leaves its sample, a normalisation of bytes, or one by a standard deviation that is zero or no number.
    pub fn check(&self) -> Result<(), DeviceError> {
        let fits = |what, needed: usize, given: usize| match needed <= given {
            true => Ok(()),
            false => Err(DeviceError::Size { what, needed: bytes(needed), given: bytes(given) }),
        };
        fits("a batch in its slot", self.copied_bytes(), self.from.len())?;
        fits("a finished batch in device memory", self.finished_bytes(), self.to.len())?;
        if let Some(windows) = &self.windows {
            windows.check(self.spec, self.samples)?;
        }
        let Some(normalize) = self.format.normalize else { return Ok(()) };
        if self.format.dtype == DType::U8 {
            return Err(DeviceError::Unsupported("bytes cannot be normalised: ask for f32, bf16 or f16".to_owned()));
        }
        let usable = |std: &f32| std.is_finite() && *std != 0.0;
        if !normalize.std.iter().all(usable) || !normalize.mean.iter().all(|mean| mean.is_finite()) {
            let cause = format!("no normalisation by {normalize:?}: mean and std are numbers, and no std is zero");
            return Err(DeviceError::Unsupported(cause));
        }
        Ok(())
    }
}

/// What [`Device::enqueue_batch`](super::Device::enqueue_batch) hands back: two points on the copy stream.
#[derive(Clone, Debug)]
#[must_use = "the slot may be written only after `slot_free`, the batch read only after `ready`"]
pub struct TransferEvents {
    /// After it the slot may be written again.
    pub slot_free: Event,
    /// After it the batch may be read.
    pub ready: Event,
}

/// What part of each sample of a slot is used.
#[derive(Clone, Copy, Debug)]
pub struct Windows<'a> {
    /// Shape of the samples in the slot.
    pub stored: SampleSpec,
    /// Where the window of each sample lies; as many as there are samples.
    pub places: &'a [Place],
}

/// Where the window of one sample lies in it, and whether it is mirrored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// First row.
    pub top: u16,
    /// First column.
    pub left: u16,
    /// Whether the window is mirrored left to right.
    pub flip: bool,
}

impl Windows<'_> {
    fn check(&self, spec: SampleSpec, samples: usize) -> Result<(), DeviceError> {
        let Windows { stored, places } = self;
        if places.len() != samples {
            let cause = format!("{} windows for {samples} samples: there is one for each", places.len());
            return Err(DeviceError::Unsupported(cause));
        }
        let inside = |place: &Place| {
            u32::from(place.top).saturating_add(spec.height) <= stored.height
                && u32::from(place.left).saturating_add(spec.width) <= stored.width
        };
        match places.iter().position(|place| !inside(place)) {
            None => Ok(()),
            Some(sample) => {
                let Place { top, left, .. } = places[sample];
                Err(DeviceError::Unsupported(format!(
                    "the window of sample {sample}, {spec} from row {top} and column {left} on, leaves the sample, {stored}"
                )))
            }
        }
    }
}
