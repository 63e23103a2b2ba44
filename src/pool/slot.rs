//! Slots: memory of one batch, and the parts through which several workers write one slot at the same time.
//!
//! ```text
//! Slot --split--> Parts (in order) + Pending --wait--> Filled --drop--> back into the pool
//! ```
//!
//! A slot is free, or split into parts, or filled, and the types say which, so no byte is handed out twice. It returns
//! to its pool with the last of its parts and handles. A part that is leaked keeps its slot from ever being complete;
//! it never makes memory unsafe.

use std::fmt;
use std::time::{Duration, Instant};

use super::latch::Latch;
use super::reusable::{Pooled, Reusable, regrow};
use crate::bad_samples::BadSample;
use crate::budget::Reservation;
use crate::device::{Device, DeviceError};
use crate::memory::HostMemory;
use crate::sync::Arc;
use crate::units::{ByteCount, SampleId};

/// Memory for one batch of u8 samples.
pub(crate) struct Slot {
    memory: Arc<HostMemory>,
    bytes: usize,
    sample_bytes: usize,
    samples_max: usize,
    device: Arc<dyn Device>,
    held: Reservation,
}

/// Metadata of a batch's samples, by position.
#[derive(Clone, Debug, Default)]
pub(crate) struct BatchMeta {
    pub(crate) labels: Vec<u32>,
    pub(crate) ids: Vec<SampleId>,
    pub(crate) valid: Vec<bool>,
    /// Every bad sample, with the position that it was meant for.
    pub(crate) bad: Vec<(usize, BadSample)>,
    /// The first bad sample, by position, that ends the run.
    pub(crate) fatal: Option<(usize, BadSample)>,
    /// Parts that were dropped unfinished: the run was cancelled, or a worker panicked.
    pub(crate) abandoned: usize,
    /// Sum over the parts of the time from the split to their end.
    pub(crate) done_after: Duration,
}

struct SlotInUse {
    begun: Instant,
    slot: Pooled<Slot>,
    latch: Latch<BatchMeta>,
}

/// Iterator over the parts of a slot, in order.
pub(crate) struct Parts {
    in_use: Arc<SlotInUse>,
    next: usize,
    samples: usize,
}

/// One sample's place in a slot: the only access to its bytes until the slot is complete.
pub(crate) struct Part {
    in_use: Arc<SlotInUse>,
    position: usize,
    open: bool,
}

/// Handle to wait for a slot that is being filled.
pub(crate) struct Pending {
    in_use: Arc<SlotInUse>,
    samples: usize,
}

/// A slot whose parts are all done.
pub(crate) struct Filled {
    in_use: Arc<SlotInUse>,
    samples: usize,
    pub(crate) meta: BatchMeta,
}

impl Reusable for Slot {
    fn release_memory(&mut self) {
        // Memory that a device still holds is not freed, so its reservation stays.
        if Arc::get_mut(&mut self.memory).is_some() {
            self.memory = Arc::new(HostMemory::empty());
            self.held.shrink_to(ByteCount::ZERO);
        }
    }

    fn reacquire(&mut self) -> Result<(), DeviceError> {
        if self.memory.is_empty() {
            regrow(&mut self.held, self.bytes)?;
            self.memory = Arc::new(self.device.host_memory(self.bytes)?);
        }
        Ok(())
    }
}

impl Slot {
    /// A slot as large as its reservation, in memory that `device` can copy from fast.
    ///
    /// # Errors
    /// There is no memory.
    ///
    /// # Panics
    /// Panics if the memory is smaller than `samples_max` samples.
    pub(crate) fn new(
        device: Arc<dyn Device>,
        sample_bytes: usize,
        samples_max: usize,
        held: Reservation,
    ) -> Result<Self, DeviceError> {
        let bytes = held.bytes().0 as usize;
        assert!(bytes >= sample_bytes * samples_max, "{bytes} bytes for {samples_max} samples");
        let memory = Arc::new(device.host_memory(bytes)?);
        Ok(Slot { memory, bytes, sample_bytes, samples_max, device, held })
    }

    /// Splits a slot into parts for this many samples.
    ///
    /// # Errors
    /// [`DeviceError::SlotHeld`] if the device still holds the memory of an earlier batch, since it could read what
    /// workers write. No other memory is taken in its place: no reservation would cover it.
    ///
    /// # Panics
    /// Panics if there are more samples than the slot has room for.
    pub(crate) fn split(mut slot: Pooled<Slot>, samples: usize) -> Result<(Parts, Pending), DeviceError> {
        assert!(samples <= slot.samples_max, "{samples} samples for {}", slot.samples_max);
        assert!(slot.memory.len() == slot.bytes, "an inactive slot was checked out");
        // `get_mut` refuses weak handles too. From here on to `Filled::memory` this slot has the only handle.
        if Arc::get_mut(&mut slot.memory).is_none() {
            // After a failure a device may keep its handles; the failure says more.
            slot.device.check()?;
            return Err(DeviceError::SlotHeld { device: slot.device.name() });
        }
        let meta = BatchMeta {
            labels: vec![0; samples],
            ids: vec![SampleId::default(); samples],
            valid: vec![false; samples],
            ..BatchMeta::default()
        };
        let in_use = Arc::new(SlotInUse { begun: Instant::now(), slot, latch: Latch::new(samples, meta) });
        Ok((Parts { in_use: in_use.clone(), next: 0, samples }, Pending { in_use, samples }))
    }
}

impl Iterator for Parts {
    type Item = Part;

    fn next(&mut self) -> Option<Part> {
        if self.next == self.samples {
            return None;
        }
        let part = Part { in_use: self.in_use.clone(), position: self.next, open: true };
        self.next += 1;
        Some(part)
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        let left = self.samples - self.next;
        if left > 0 {
            self.in_use.latch.done(left, |meta| meta.abandoned += left);
        }
    }
}

impl Part {
    /// Bytes of this sample. The memory may be write-combined: write it once, in order, and do not read it.
    #[allow(unsafe_code, reason = "several workers write one slot at the same time, each its own part")]
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let slot = &self.in_use.slot;
        let start = self.position * slot.sample_bytes;
        // SAFETY: `position` is below the number of samples that `split` checked against the memory's length.
        let first = unsafe { slot.memory.as_ptr().add(start) };
        // SAFETY: the range lies in the memory, which `slot` keeps alive, and there is no other reference to it:
        // `Parts` makes one part for each position, and `&mut self` one slice of each part. `split` has checked that
        // the slot's handle is the only one, `Filled` alone clones or reads it, and the latch makes a `Filled` only
        // once every part is gone.
        unsafe { std::slice::from_raw_parts_mut(first, slot.sample_bytes) }
    }

    /// Records a bad sample that was meant for this place.
    pub(crate) fn note_bad(&self, bad: BadSample) {
        let position = self.position;
        self.in_use.latch.note(|meta| meta.bad.push((position, bad)));
    }

    /// Marks the sample as written.
    pub(crate) fn complete(self, id: SampleId, label: u32) {
        self.close(id, label, true);
    }

    /// Fills the place with zeros and marks it as invalid.
    pub(crate) fn mask(mut self, id: SampleId, label: u32) {
        self.bytes_mut().fill(0);
        self.close(id, label, false);
    }

    /// Masks the place, and ends the run with this bad sample.
    pub(crate) fn fail(self, bad: BadSample, label: u32) {
        let (id, position) = (bad.id, self.position);
        self.in_use.latch.note(|meta| {
            if meta.fatal.as_ref().is_none_or(|&(first, _)| position < first) {
                meta.fatal = Some((position, bad));
            }
        });
        self.mask(id, label);
    }

    fn close(mut self, id: SampleId, label: u32, valid: bool) {
        self.open = false;
        let position = self.position;
        let after = self.in_use.begun.elapsed();
        self.in_use.latch.done(1, |meta| {
            meta.done_after += after;
            meta.ids[position] = id;
            meta.labels[position] = label;
            meta.valid[position] = valid;
        });
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.open {
            self.in_use.latch.done(1, |meta| meta.abandoned += 1);
        }
    }
}

impl Pending {
    /// Returns true if [`wait`](Pending::wait) would return at once.
    pub(crate) fn is_complete(&self) -> bool {
        self.in_use.latch.is_open()
    }

    /// Blocks until every part is done. A part that is dropped unfinished counts as well, so it always ends.
    pub(crate) fn wait(self) -> Filled {
        let mut meta = self.in_use.latch.wait().unwrap_or_default();
        meta.bad.sort_by_key(|&(position, _)| position);
        Filled { in_use: self.in_use, samples: self.samples, meta }
    }
}

impl Filled {
    pub(crate) fn samples(&self) -> usize {
        self.samples
    }

    /// Time at which the slot was split into parts.
    pub(crate) fn begun(&self) -> Instant {
        self.in_use.begun
    }

    /// Pixels of all samples, u8, NHWC. Every part is done, so nothing writes them any more.
    pub(crate) fn bytes(&self) -> &[u8] {
        let slot = &self.in_use.slot;
        &slot.memory.as_slice()[..self.samples * slot.sample_bytes]
    }

    /// Handle to the memory for a device to copy from. `self` must live until the copy's event has passed.
    pub(crate) fn memory(&self) -> Arc<HostMemory> {
        self.in_use.slot.memory.clone()
    }
}

impl fmt::Debug for Filled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Filled({} samples)", self.samples)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::{AccountKind, Ledger};
    use crate::device::HostDevice;
    use crate::pool::reusable::Pool;
    use crate::sample_error::{SampleError, SampleErrorKind};

    fn pool(sample_bytes: usize, samples_max: usize) -> Pool<Slot> {
        let bytes = sample_bytes * samples_max;
        let ledger = Ledger::new(ByteCount(1 << 20));
        let held = ledger.fixed_account(AccountKind::Slots, ledger.limit()).reserve(ByteCount(bytes as u64)).unwrap();
        Pool::new(vec![Slot::new(Arc::new(HostDevice::new()), sample_bytes, samples_max, held).unwrap()])
    }

    fn take(pool: &Pool<Slot>) -> Pooled<Slot> {
        pool.checkout(pool.free().try_recv().expect("the slot is back"))
    }

    #[test]
    fn workers_write_their_parts_in_any_order() {
        let pool = pool(3, 64);
        for round in 0..50u8 {
            let samples = 64 - usize::from(round % 3);
            let (parts, pending) = Slot::split(take(&pool), samples).unwrap();
            let mut parts: Vec<Part> = parts.collect();
            parts.reverse();
            let back = parts.split_off(20);
            std::thread::scope(|scope| {
                for parts in [parts, back] {
                    scope.spawn(move || {
                        for mut part in parts {
                            let position = part.position;
                            part.bytes_mut().fill(position as u8 ^ round);
                            part.complete(SampleId(position as u64), position as u32);
                        }
                    });
                }
                let filled = pending.wait();
                assert_eq!(filled.meta.abandoned, 0, "round {round}");
                assert_eq!(filled.samples(), samples);
                for (position, bytes) in filled.bytes().chunks(3).enumerate() {
                    assert_eq!(bytes, [position as u8 ^ round; 3]);
                    assert_eq!(filled.meta.ids[position], SampleId(position as u64));
                    assert!(filled.meta.valid[position]);
                }
            });
        }
    }

    #[test]
    fn dropped_parts_are_counted_and_masked_ones_are_zero() {
        let pool = pool(2, 4);
        let (mut parts, pending) = Slot::split(take(&pool), 4).unwrap();
        let mut first = parts.next().unwrap();
        first.bytes_mut().fill(9);
        let error = SampleError::Panic { message: "gone".to_owned() };
        let bad = BadSample::new(SampleId(5), "5.jpg".to_owned(), error);
        first.note_bad(bad);
        first.mask(SampleId(5), 1);
        drop(parts.next());
        assert!(!pending.is_complete());
        drop(parts);
        assert!(pending.is_complete());
        let filled = pending.wait();
        assert_eq!(filled.meta.abandoned, 3);
        assert!(matches!(&filled.meta.bad[..], [(0, bad)] if bad.error.kind() == SampleErrorKind::Panic));
        assert_eq!(filled.bytes(), [0; 8]);
        assert!(!filled.meta.valid[0]);
        assert!(pool.free().is_empty());
        drop(filled);
        assert_eq!(pool.free().len(), 1);
    }

    #[test]
    fn a_slot_returns_with_the_last_of_its_parts() {
        let pool = pool(2, 4);
        let (mut parts, pending) = Slot::split(take(&pool), 4).unwrap();
        let part = parts.next();
        drop(pending);
        drop(parts);
        assert!(pool.free().is_empty(), "a part may still be written");
        drop(part);
        assert_eq!(pool.free().len(), 1);
    }

    #[test]
    fn a_slot_that_a_device_holds_is_neither_split_nor_replaced() {
        let pool = pool(2, 1);
        let (parts, pending) = Slot::split(take(&pool), 1).unwrap();
        parts.for_each(|part| part.complete(SampleId(0), 0));
        let kept = pending.wait().memory();
        let split = || Slot::split(take(&pool), 1).map(drop);
        assert_eq!(split(), Err(DeviceError::SlotHeld { device: "cpu".to_owned() }));
        pool.set_active(0).unwrap();
        pool.set_active(1).unwrap();
        assert!(split().is_err());
        assert_eq!(Arc::strong_count(&kept), 2, "the slot keeps the memory, and its reservation");
        let weak = Arc::downgrade(&kept);
        drop(kept);
        assert!(split().is_err(), "a weak handle can be upgraded");
        drop(weak);
        assert_eq!(split(), Ok(()));
    }

    #[test]
    #[should_panic(expected = "5 samples for 4")]
    fn a_slot_is_never_split_into_more_than_it_holds() {
        let _ = Slot::split(take(&pool(2, 4)), 5);
    }
}
