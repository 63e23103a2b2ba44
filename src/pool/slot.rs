//! Owns slots: the memory that a batch is written into, and the parts through which several workers write one slot at
//! the same time.
//! It must never hand out a byte twice: a slot is either free, or cut into parts, or whole, and the types say which.
//!
//! ```text
//! Slot --fill--> Parts (handed out once, in order) + Pending --wait--> Filled --drop--> back into the ring
//! ```
//!
//! The slot goes home when the last of its parts and handles is gone, so nobody can write into it who does not hold it.
//! A part that is forgotten keeps its slot from ever becoming whole; it never makes memory unsafe.

use std::fmt;
use std::time::{Duration, Instant};

use super::countdown::Countdown;
use super::{Lent, Recycle};
use crate::budget::Reservation;
use crate::device::{Device, DeviceError, HostMemory};
use crate::quarantine::BadSample;
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

/// What is known of a slot's samples besides their pixels, by position.
#[derive(Clone, Debug, Default)]
pub(crate) struct Marks {
    pub(crate) labels: Vec<u32>,
    pub(crate) ids: Vec<SampleId>,
    pub(crate) valid: Vec<bool>,
    /// Every bad sample met on the way, with the position that it was meant for.
    pub(crate) bad: Vec<(usize, BadSample)>,
    /// A bad sample that nothing may take the place of: the first by position.
    pub(crate) fatal: Option<(usize, BadSample)>,
    /// Parts that were dropped unfinished: the run was called off, or a worker died.
    pub(crate) abandoned: usize,
    /// How long after the slot was cut each part was done, all of them together.
    pub(crate) done_after: Duration,
}

struct Filling {
    begun: Instant,
    slot: Lent<Slot>,
    countdown: Countdown<Marks>,
}

/// The parts of a slot that have not been handed out yet, in order.
pub(crate) struct Parts {
    filling: Arc<Filling>,
    next: usize,
    samples: usize,
}

/// One sample's place in a slot: the only way to its bytes until the slot is whole.
pub(crate) struct Part {
    filling: Arc<Filling>,
    position: usize,
    open: bool,
}

/// A slot that is being filled; the handle to wait on.
pub(crate) struct Pending {
    filling: Arc<Filling>,
    samples: usize,
}

/// A slot whose parts are all done.
pub(crate) struct Filled {
    filling: Arc<Filling>,
    samples: usize,
    pub(crate) marks: Marks,
}

impl Recycle for Slot {
    fn rest(&mut self) {
        if let Ok(nothing) = HostMemory::pageable(0) {
            self.memory = Arc::new(nothing);
            self.held.shrink_to(ByteCount::ZERO);
        }
    }

    fn wake(&mut self) -> Result<(), DeviceError> {
        super::take_again(&mut self.held, self.bytes)?;
        self.memory = Arc::new(self.device.host_memory(self.bytes)?);
        Ok(())
    }
}

impl Slot {
    /// A slot of as many bytes as `held` says, in memory that `device` likes to copy from.
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
}

/// Cuts a slot into parts for this many samples.
///
/// # Panics
/// Panics if there are more than the slot has room for.
pub(crate) fn fill(slot: Lent<Slot>, samples: usize) -> (Parts, Pending) {
    assert!(samples <= slot.samples_max, "{samples} samples for {}", slot.samples_max);
    assert!(slot.memory.len() == slot.bytes, "a slot at rest was lent");
    let marks = Marks {
        labels: vec![0; samples],
        ids: vec![SampleId::default(); samples],
        valid: vec![false; samples],
        ..Marks::default()
    };
    let filling = Arc::new(Filling { begun: Instant::now(), slot, countdown: Countdown::new(samples, marks) });
    (Parts { filling: filling.clone(), next: 0, samples }, Pending { filling, samples })
}

impl Iterator for Parts {
    type Item = Part;

    fn next(&mut self) -> Option<Part> {
        if self.next == self.samples {
            return None;
        }
        let part = Part { filling: self.filling.clone(), position: self.next, open: true };
        self.next += 1;
        Some(part)
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        let left = self.samples - self.next;
        if left > 0 {
            self.filling.countdown.done(left, |marks| marks.abandoned += left);
        }
    }
}

impl Part {
    /// The bytes of this sample. The memory may be write-combined: write it once, in order, and do not read it.
    #[allow(unsafe_code, reason = "several workers write one slot at the same time, each its own part")]
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let slot = &self.filling.slot;
        let start = self.position * slot.sample_bytes;
        // SAFETY: `position` is below the number of samples that `fill` checked against the memory's length.
        let first = unsafe { slot.memory.as_ptr().add(start) };
        // SAFETY: the range lies in the memory, which `slot` keeps alive. Nobody else has it: `Parts` makes one part a
        // position, `&mut self` makes one slice a part, and nobody reads the memory before the countdown says that this
        // part is gone.
        unsafe { std::slice::from_raw_parts_mut(first, slot.sample_bytes) }
    }

    /// Notes a bad sample that was meant for this place.
    pub(crate) fn note_bad(&self, bad: BadSample) {
        let position = self.position;
        self.filling.countdown.note(|marks| marks.bad.push((position, bad)));
    }

    /// The sample is written.
    pub(crate) fn complete(self, id: SampleId, label: u32) {
        self.close(id, label, true);
    }

    /// There is no sample to write: the place is zeroed and marked invalid.
    pub(crate) fn mask(mut self, id: SampleId, label: u32) {
        self.bytes_mut().fill(0);
        self.close(id, label, false);
    }

    /// There is no sample to write, and the run has to end.
    pub(crate) fn fail(self, bad: BadSample, label: u32) {
        let (id, position) = (bad.id, self.position);
        self.filling.countdown.note(|marks| {
            if marks.fatal.as_ref().is_none_or(|&(first, _)| position < first) {
                marks.fatal = Some((position, bad));
            }
        });
        self.mask(id, label);
    }

    fn close(mut self, id: SampleId, label: u32, valid: bool) {
        self.open = false;
        let position = self.position;
        let after = self.filling.begun.elapsed();
        self.filling.countdown.done(1, |marks| {
            marks.done_after += after;
            marks.ids[position] = id;
            marks.labels[position] = label;
            marks.valid[position] = valid;
        });
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.open {
            self.filling.countdown.done(1, |marks| marks.abandoned += 1);
        }
    }
}

impl Pending {
    /// Whether [`wait`](Pending::wait) would return at once.
    pub(crate) fn is_whole(&self) -> bool {
        self.filling.countdown.is_whole()
    }

    /// Blocks until every part is done. It always ends: a part that is dropped unfinished counts as well.
    pub(crate) fn wait(self) -> Filled {
        let mut marks = self.filling.countdown.wait().unwrap_or_default();
        marks.bad.sort_by_key(|&(position, _)| position);
        Filled { filling: self.filling, samples: self.samples, marks }
    }
}

impl Filled {
    pub(crate) fn samples(&self) -> usize {
        self.samples
    }

    /// When the slot was cut into parts.
    pub(crate) fn begun(&self) -> Instant {
        self.filling.begun
    }

    /// The pixels of all samples, u8, NHWC. Every part is done, so nobody writes any more.
    pub(crate) fn bytes(&self) -> &[u8] {
        let slot = &self.filling.slot;
        &slot.memory.as_slice()[..self.samples * slot.sample_bytes]
    }

    /// A handle to the memory for a device to copy from. This must live until the copy's event has passed.
    pub(crate) fn memory(&self) -> Arc<HostMemory> {
        self.filling.slot.memory.clone()
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
    use crate::budget::Ledger;
    use crate::device::HostDevice;
    use crate::pool::Ring;
    use crate::quarantine::Stage;

    fn ring(sample_bytes: usize, samples_max: usize) -> Ring<Slot> {
        let bytes = sample_bytes * samples_max;
        let ledger = Ledger::new(ByteCount(1 << 20));
        let held = ledger.fixed_account("slots", ledger.limit()).reserve(ByteCount(bytes as u64)).unwrap();
        Ring::new(vec![Slot::new(Arc::new(HostDevice::new()), sample_bytes, samples_max, held).unwrap()])
    }

    fn take(ring: &Ring<Slot>) -> Lent<Slot> {
        ring.lend(ring.free().try_recv().expect("the slot is home"))
    }

    #[test]
    fn workers_write_their_parts_in_any_order_and_the_slot_is_whole_in_order() {
        let ring = ring(3, 64);
        for round in 0..50u8 {
            let samples = 64 - usize::from(round % 3);
            let (parts, pending) = fill(take(&ring), samples);
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
                assert_eq!(filled.marks.abandoned, 0, "round {round}");
                assert_eq!(filled.samples(), samples);
                for (position, bytes) in filled.bytes().chunks(3).enumerate() {
                    assert_eq!(bytes, [position as u8 ^ round; 3]);
                    assert_eq!(filled.marks.ids[position], SampleId(position as u64));
                    assert!(filled.marks.valid[position]);
                }
            });
        }
    }

    #[test]
    fn dropped_parts_are_counted_and_masked_ones_are_zero() {
        let ring = ring(2, 4);
        let (mut parts, pending) = fill(take(&ring), 4);
        let mut first = parts.next().unwrap();
        first.bytes_mut().fill(9);
        let bad = BadSample { id: SampleId(5), path: "5.jpg".into(), stage: Stage::Read, cause: "gone".into() };
        first.note_bad(bad.clone());
        first.mask(SampleId(5), 1);
        drop(parts.next());
        assert!(!pending.is_whole());
        drop(parts);
        assert!(pending.is_whole());
        let filled = pending.wait();
        assert_eq!(filled.marks.abandoned, 3);
        assert_eq!(filled.marks.bad, [(0, bad)]);
        assert_eq!(filled.bytes(), [0; 8]);
        assert!(!filled.marks.valid[0]);
        assert!(ring.free().is_empty());
        drop(filled);
        assert_eq!(ring.free().len(), 1);
    }

    #[test]
    fn a_slot_goes_home_with_the_last_of_its_parts_and_not_before() {
        let ring = ring(2, 4);
        let (mut parts, pending) = fill(take(&ring), 4);
        let part = parts.next();
        drop(pending);
        drop(parts);
        assert!(ring.free().is_empty(), "a part may still be written");
        drop(part);
        assert_eq!(ring.free().len(), 1);
    }

    #[test]
    #[should_panic(expected = "5 samples for 4")]
    fn a_slot_is_never_cut_into_more_than_it_holds() {
        let _ = fill(take(&ring(2, 4)), 5);
    }
}
