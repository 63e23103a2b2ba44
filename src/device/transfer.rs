//! The transfer of one batch to a device: request and completion events of
//! [`Device::enqueue_batch`](super::Device::enqueue_batch).

use super::{DeviceError, DeviceMemory, Event, HostMemory, check_size};
use crate::sync::Arc;
use crate::tensor::{DType, OutputFormat, SampleSpec};

/// One batch on its way to a device.
#[derive(Debug)]
pub struct Transfer<'a> {
    /// The slot: `samples` decoded samples one after another (u8, NHWC) from its first byte on. The device drops this
    /// handle before [`TransferEvents::slot_free`] passes. A slot whose memory is still shared is not written again:
    /// the run fails with [`DeviceError::SlotHeld`].
    pub from: Arc<HostMemory>,
    /// Number of samples. Zero is valid.
    pub samples: usize,
    /// Shape of one sample.
    pub spec: SampleSpec,
    /// Conversion on the device.
    pub format: OutputFormat,
    /// Destination, from its first byte on. Bytes past the end of the batch stay as they are.
    pub to: &'a mut DeviceMemory,
    /// Event that passes before `to` is written: the [`release`](super::Device::release) of the batch before.
    pub after: Event,
}

impl Transfer<'_> {
    /// Bytes that are copied to the device.
    #[must_use]
    pub fn copied_bytes(&self) -> usize {
        self.samples.saturating_mul(self.spec.size_bytes(DType::U8))
    }

    /// Bytes of the converted batch.
    #[must_use]
    pub fn output_bytes(&self) -> usize {
        self.samples.saturating_mul(self.spec.size_bytes(self.format.dtype))
    }

    /// Checks sizes and format. Every device calls this first.
    ///
    /// # Errors
    /// [`DeviceError::Size`] if the slot or the device memory is too small; [`DeviceError::Unsupported`] for a
    /// normalization of u8, or one with a standard deviation that is zero or not finite.
    pub fn check(&self) -> Result<(), DeviceError> {
        check_size("a batch in its slot", self.copied_bytes(), self.from.len())?;
        check_size("a batch in device memory", self.output_bytes(), self.to.len())?;
        let Some(normalize) = self.format.normalize else { return Ok(()) };
        if self.format.dtype == DType::U8 {
            return Err(DeviceError::Unsupported("u8 cannot be normalized: use f32, bf16 or f16".to_owned()));
        }
        let usable = |std: &f32| std.is_finite() && *std != 0.0;
        if !normalize.std.iter().all(usable) || !normalize.mean.iter().all(|mean| mean.is_finite()) {
            let cause = format!("cannot normalize by {normalize:?}: mean and std must be finite, and std not zero");
            return Err(DeviceError::Unsupported(cause));
        }
        Ok(())
    }
}

/// Completion events of a transfer.
#[derive(Clone, Debug)]
#[must_use = "the slot may be written only after `slot_free`, the batch read only after `ready`"]
pub struct TransferEvents {
    /// Passes once the slot has been copied; it may then be written again.
    pub slot_free: Event,
    /// Passes once the batch is converted; it may then be read.
    pub ready: Event,
}
