//! Owns what the consumer holds: the pixels of one batch where they lie, labels, sample ids, and the lease on the memory.
//! It must never copy pixels on its own, and dropping it gives the memory back, on any thread.

use std::fmt;
use std::time::Instant;

use crate::device::{Device, DeviceError, DeviceMemory, Event};
use crate::pool::{Filled, Lent, Marks, Output};
use crate::quarantine::BadSample;
use crate::sync::{Arc, AtomicUsize, Ordering};
use crate::tensor::{CHANNELS, DType, Layout, OutputFormat, SampleSpec};
use crate::units::SampleId;

/// A batch of samples. Its memory goes back to the loader when it is dropped.
///
/// Pixels are laid out as [`shape`](Batch::shape) says, without padding, samples in the order of the epoch. On the CPU
/// they are read in place ([`bytes`](Batch::bytes), [`as_f32`](Batch::as_f32)); on another device
/// [`device_memory`](Batch::device_memory) has them once [`ready`](Batch::ready) has passed.
pub struct Batch {
    head: Head,
    lease: Option<Lease>,
    ready: Event,
    in_hand: Option<InHand>,
}

/// What is known of a batch besides its pixels.
pub(crate) struct Head {
    pub(crate) epoch: u64,
    pub(crate) index: u64,
    pub(crate) samples: usize,
    pub(crate) spec: SampleSpec,
    pub(crate) format: OutputFormat,
    pub(crate) marks: Marks,
    /// Since when it has been there for the consumer.
    pub(crate) made: Instant,
}

enum Lease {
    Slot(Filled),
    Output(Lent<Output>, Arc<dyn Device>),
}

/// Counts a batch among those in the consumer's hands, for as long as it lives.
struct InHand(Arc<AtomicUsize>);

impl Drop for InHand {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Batch {
    /// A batch whose pixels are the slot's own.
    pub(crate) fn from_slot(head: Head, filled: Filled) -> Self {
        Batch { head, lease: Some(Lease::Slot(filled)), ready: Event::done(), in_hand: None }
    }

    /// A batch that a device has finished into memory of its own.
    pub(crate) fn from_output(head: Head, output: Lent<Output>, ready: Event, device: Arc<dyn Device>) -> Self {
        Batch { head, lease: Some(Lease::Output(output, device)), ready, in_hand: None }
    }

    /// Since when it has been there for the consumer.
    pub(crate) fn made(&self) -> Instant {
        self.head.made
    }

    /// Notes that it waits for nobody but the consumer from now on.
    pub(crate) fn is_ready_for_the_consumer(&mut self) {
        self.head.made = Instant::now();
    }

    /// Notes that the consumer has it now.
    pub(crate) fn hand_over(&mut self, in_hand: &Arc<AtomicUsize>) {
        in_hand.fetch_add(1, Ordering::Relaxed);
        self.in_hand = Some(InHand(in_hand.clone()));
    }

    /// Samples in it: the batch size, or fewer at the end of an epoch.
    #[must_use]
    pub fn len(&self) -> usize {
        self.head.samples
    }

    /// Whether there is no sample in it; the loader never makes such a batch.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.head.samples == 0
    }

    /// The epoch that it belongs to.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.head.epoch
    }

    /// Its place in the epoch, from 0.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.head.index
    }

    /// The label of each sample: a place in [`Loader::classes`](crate::Loader::classes).
    #[must_use]
    pub fn labels(&self) -> &[u32] {
        &self.head.marks.labels
    }

    /// Which sample of the source each one is. Where another took a bad one's place, it is the other's.
    #[must_use]
    pub fn ids(&self) -> &[SampleId] {
        &self.head.marks.ids
    }

    /// Whether each sample is real; false where a bad one was masked, whose pixels are all zero before normalisation.
    #[must_use]
    pub fn valid(&self) -> &[bool] {
        &self.head.marks.valid
    }

    /// Every bad sample that was met while this batch was made.
    pub fn bad_samples(&self) -> impl Iterator<Item = &BadSample> {
        self.head.marks.bad.iter().map(|(_, bad)| bad)
    }

    /// Sizes of the axes, in the order of [`layout`](Batch::layout).
    #[must_use]
    pub fn shape(&self) -> [usize; 4] {
        let SampleSpec { height, width } = self.head.spec;
        let (samples, height, width) = (self.head.samples, height as usize, width as usize);
        match self.head.format.layout {
            Layout::Nhwc => [samples, height, width, CHANNELS],
            Layout::Nchw => [samples, CHANNELS, height, width],
        }
    }

    /// Type of the elements.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.head.format.dtype
    }

    /// Order of the axes.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.head.format.layout
    }

    /// Bytes of all pixels.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.head.samples * self.head.spec.size_bytes(self.dtype())
    }

    /// The event after which the pixels may be read. On the CPU it has passed.
    #[must_use]
    pub fn ready(&self) -> &Event {
        &self.ready
    }

    /// The pixels as bytes, in place; `None` if they are in the memory of a device.
    #[must_use]
    pub fn bytes(&self) -> Option<&[u8]> {
        match self.lease.as_ref()? {
            Lease::Slot(filled) => Some(filled.bytes()),
            Lease::Output(output, ..) => output.memory.host()?.get(..self.size_bytes()),
        }
    }

    /// The pixels as `f32`, in place; `None` if they are of another type, or in the memory of a device.
    #[must_use]
    pub fn as_f32(&self) -> Option<&[f32]> {
        if self.dtype() != DType::F32 {
            return None;
        }
        bytemuck::try_cast_slice(self.bytes()?).ok()
    }

    /// The pixels as `bf16`, in place; `None` if they are of another type, or in the memory of a device.
    #[must_use]
    pub fn as_bf16(&self) -> Option<&[half::bf16]> {
        if self.dtype() != DType::Bf16 {
            return None;
        }
        bytemuck::try_cast_slice(self.bytes()?).ok()
    }

    /// The pixels as `f16`, in place; `None` if they are of another type, or in the memory of a device.
    #[must_use]
    pub fn as_f16(&self) -> Option<&[half::f16]> {
        if self.dtype() != DType::F16 {
            return None;
        }
        bytemuck::try_cast_slice(self.bytes()?).ok()
    }

    /// Where the pixels are on the device; `None` if the batch is a slot in host memory.
    #[must_use]
    pub fn device_memory(&self) -> Option<&DeviceMemory> {
        match self.lease.as_ref()? {
            Lease::Slot(..) => None,
            Lease::Output(output, ..) => Some(&output.memory),
        }
    }

    /// Gives the memory back once `event` has passed, for a consumer that reads the batch by its own means: on a stream of
    /// its own, say. The call does not wait, but for a batch that is a slot in host memory.
    ///
    /// # Errors
    /// [`DeviceError::Timeout`] where it does wait, and in vain; the memory is then given back all the same.
    pub fn release_after(mut self, event: Event) -> Result<(), DeviceError> {
        match self.lease.take() {
            Some(Lease::Output(mut output, _)) => output.released = event,
            Some(Lease::Slot(_slot)) => event.wait()?,
            None => {}
        }
        Ok(())
    }

    /// Copies the pixels to host memory, from wherever they are. Waits until they are there.
    ///
    /// # Errors
    /// Whatever is wrong with the device.
    pub fn read_back(&self, out: &mut Vec<u8>) -> Result<(), DeviceError> {
        out.clear();
        if let Some(bytes) = self.bytes() {
            out.extend_from_slice(bytes);
            return Ok(());
        }
        if let Some(Lease::Output(output, device)) = &self.lease {
            out.resize(self.size_bytes(), 0);
            device.read_back(&output.memory, &self.ready, out)?;
        }
        Ok(())
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        // Counted out before its memory goes back: whoever gets the memory must not find it still counted.
        drop(self.in_hand.take());
        if let Some(Lease::Output(output, device)) = &mut self.lease {
            // A device that cannot say when it is done has failed for good: the next feed returns its error.
            output.released = device.release(&output.memory).unwrap_or_default();
        }
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Head { epoch, index, .. } = self.head;
        write!(f, "Batch({index} of epoch {epoch}: {:?} {}, {})", self.shape(), self.dtype(), self.layout())
    }
}
