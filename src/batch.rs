//! Batches: pixels in place, labels, sample ids, and the lease on the memory, which returns to the loader when the
//! batch is dropped, on any thread.

use std::fmt;
use std::time::Instant;

use crate::bad_samples::BadSample;
use crate::device::{Device, DeviceError, DeviceMemory, Event};
use crate::pool::{BatchMeta, Filled, Output, Pooled};
use crate::sync::{Arc, AtomicUsize, Ordering};
use crate::tensor::{CHANNELS, DType, Layout, OutputFormat, SampleSpec};
use crate::units::SampleId;

/// A batch of samples. Its memory returns to the loader when it is dropped.
///
/// Pixels have the dimensions of [`shape`](Batch::shape), without padding, samples in the order of the epoch. On the
/// CPU they are read in place ([`bytes`](Batch::bytes), [`as_f32`](Batch::as_f32)); on another device they are in
/// [`device_memory`](Batch::device_memory) once [`ready`](Batch::ready) has passed.
///
/// ```
/// # use feedstock::{Loader, source::MemorySource, transform::Resize};
/// # let gif = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\
/// #     \x01\x00\x01\x00\x00\x02\x02D\x01\x00;".to_vec();
/// # let source = MemorySource::new(vec!["cat".to_owned()], vec![(gif, 0)])?;
/// # let builder = Loader::builder(source).transform(Resize::exact(8, 8));
/// # let loader = builder.ram_budget(feedstock::ByteCount(64 << 20)).build()?;
/// for batch in loader.epoch(0) {
///     let batch = batch?;
///     for sample in batch.samples() {
///         let pixels = sample.pixels.expect("a batch in RAM");
///         println!("{}: label {}, {} bytes", sample.id, sample.label, pixels.len());
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Batch {
    head: Head,
    lease: Option<Lease>,
    ready: Event,
    in_hand: Option<InHand>,
}

/// One sample of a [`Batch`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct BatchSample<'a> {
    /// Id of the sample in its source.
    pub id: SampleId,
    /// Label: an index into [`Loader::classes`](crate::Loader::classes).
    pub label: u32,
    /// False if a bad sample was masked here.
    pub valid: bool,
    /// Pixels as bytes; `None` if they are in the memory of a device.
    pub pixels: Option<&'a [u8]>,
}

/// Properties of a batch besides its pixels.
pub(crate) struct Head {
    pub(crate) epoch: u64,
    pub(crate) index: u64,
    pub(crate) samples: usize,
    pub(crate) spec: SampleSpec,
    pub(crate) format: OutputFormat,
    pub(crate) meta: BatchMeta,
    /// Time at which it was delivered.
    pub(crate) delivered: Instant,
}

enum Lease {
    Slot(Filled),
    Output(Pooled<Output>, Arc<dyn Device>),
}

/// Counts a batch as held by the consumer for as long as it lives.
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

    /// A batch in the memory of a device.
    pub(crate) fn from_output(head: Head, output: Pooled<Output>, ready: Event, device: Arc<dyn Device>) -> Self {
        Batch { head, lease: Some(Lease::Output(output, device)), ready, in_hand: None }
    }

    /// Time at which it was delivered.
    pub(crate) fn delivered(&self) -> Instant {
        self.head.delivered
    }

    /// Sets the time of delivery to now.
    pub(crate) fn set_delivered(&mut self) {
        self.head.delivered = Instant::now();
    }

    /// Counts it as held by the consumer.
    pub(crate) fn hand_over(&mut self, in_hand: &Arc<AtomicUsize>) {
        in_hand.fetch_add(1, Ordering::Relaxed);
        self.in_hand = Some(InHand(in_hand.clone()));
    }

    /// Number of samples: the batch size, or fewer at the end of an epoch.
    #[must_use]
    pub fn len(&self) -> usize {
        self.head.samples
    }

    /// Returns true if there is no sample in it; the loader never makes such a batch.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.head.samples == 0
    }

    /// Epoch that it belongs to.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.head.epoch
    }

    /// Index of the batch in its epoch, from 0.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.head.index
    }

    /// Label of each sample: an index into [`Loader::classes`](crate::Loader::classes).
    #[must_use]
    pub fn labels(&self) -> &[u32] {
        &self.head.meta.labels
    }

    /// Id of each sample in its source; of a substitute its own.
    #[must_use]
    pub fn ids(&self) -> &[SampleId] {
        &self.head.meta.ids
    }

    /// Validity of each sample: false where a bad one was masked, whose pixels are zero before normalization.
    #[must_use]
    pub fn valid(&self) -> &[bool] {
        &self.head.meta.valid
    }

    /// Samples in order, with their pixels where these are in host memory.
    pub fn samples(&self) -> impl ExactSizeIterator<Item = BatchSample<'_>> {
        let BatchMeta { labels, ids, valid, .. } = &self.head.meta;
        let (bytes, each) = (self.bytes(), self.head.spec.size_bytes(self.dtype()));
        (0..self.len()).map(move |i| BatchSample {
            id: ids[i],
            label: labels[i],
            valid: valid[i],
            pixels: bytes.and_then(|bytes| bytes.get(i * each..(i + 1) * each)),
        })
    }

    /// Every bad sample that was met while this batch was filled.
    pub fn bad_samples(&self) -> impl Iterator<Item = &BadSample> {
        self.head.meta.bad.iter().map(|(_, bad)| bad)
    }

    /// Dimensions, in the order of [`layout`](Batch::layout).
    #[must_use]
    pub fn shape(&self) -> [usize; 4] {
        let SampleSpec { height, width } = self.head.spec;
        let (samples, height, width) = (self.head.samples, height as usize, width as usize);
        match self.head.format.layout {
            Layout::Nhwc => [samples, height, width, CHANNELS],
            Layout::Nchw => [samples, CHANNELS, height, width],
        }
    }

    /// Element type.
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

    /// Event after which the pixels may be read. On the CPU it has passed.
    #[must_use]
    pub fn ready(&self) -> &Event {
        &self.ready
    }

    /// Pixels as bytes, in place; `None` if they are in the memory of a device.
    #[must_use]
    pub fn bytes(&self) -> Option<&[u8]> {
        match self.lease.as_ref()? {
            Lease::Slot(filled) => Some(filled.bytes()),
            Lease::Output(output, ..) => output.memory.host()?.get(..self.size_bytes()),
        }
    }

    /// Pixels as `f32`, in place; `None` if they are of another type, or in the memory of a device.
    #[must_use]
    pub fn as_f32(&self) -> Option<&[f32]> {
        self.cast(DType::F32)
    }

    /// Pixels as `bf16`, in place; `None` if they are of another type, or in the memory of a device.
    #[must_use]
    pub fn as_bf16(&self) -> Option<&[half::bf16]> {
        self.cast(DType::Bf16)
    }

    /// Pixels as `f16`, in place; `None` if they are of another type, or in the memory of a device.
    #[must_use]
    pub fn as_f16(&self) -> Option<&[half::f16]> {
        self.cast(DType::F16)
    }

    fn cast<T: bytemuck::AnyBitPattern>(&self, dtype: DType) -> Option<&[T]> {
        if self.dtype() == dtype { bytemuck::try_cast_slice(self.bytes()?).ok() } else { None }
    }

    /// Memory of the device with the pixels; `None` if the batch is a slot in host memory.
    #[must_use]
    pub fn device_memory(&self) -> Option<&DeviceMemory> {
        match self.lease.as_ref()? {
            Lease::Slot(..) => None,
            Lease::Output(output, ..) => Some(&output.memory),
        }
    }

    /// Returns the memory to the loader once `event` has passed, for a consumer that reads the batch on a stream of its
    /// own. The call waits only for a batch that is a slot in host memory.
    ///
    /// # Errors
    /// [`DeviceError::Timeout`] if the event does not pass in time; the memory is then returned all the same.
    pub fn release_after(mut self, event: Event) -> Result<(), DeviceError> {
        match self.lease.take() {
            Some(Lease::Output(mut output, _)) => output.released = event,
            Some(Lease::Slot(_slot)) => event.wait()?,
            None => {}
        }
        Ok(())
    }

    /// Copies the pixels to host memory, and waits for the copy.
    ///
    /// # Errors
    /// The device failed.
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

/// Pixels as bytes, in place, as [`bytes`](Batch::bytes).
///
/// # Panics
/// Panics if the pixels are in the memory of a device.
impl AsRef<[u8]> for Batch {
    fn as_ref(&self) -> &[u8] {
        match self.bytes() {
            Some(bytes) => bytes,
            None => panic!("the pixels of {self:?} are in the memory of a device: use device_memory or read_back"),
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        // Before its memory returns: the next user of the memory must not find it still counted.
        drop(self.in_hand.take());
        if let Some(Lease::Output(output, device)) = &mut self.lease {
            // A device that cannot record an event has failed for good: the next transfer returns its error.
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
