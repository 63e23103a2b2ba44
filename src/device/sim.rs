//! Owns the simulated accelerator: two streams in simulated time, memory of its own, and a strict eye on lifetimes.
//! It must never be kinder than a real device: what would be a race there is an error here, whether or not the clock was
//! lucky this time.
//!
//! - `engine`: what the streams share and what commands do.
//! - `stream`: a queue with its thread and its events.
//! - `memory`: device memory and who may touch it when.
//! - `busy_time`: how busy the streams were.
//! - `spec`: `sim:h2d=25GB/s,latency=10us,step=20ms,memory=8G`.

mod busy_time;
mod engine;
mod memory;
mod spec;
mod stream;
#[cfg(test)]
mod tests;

use std::time::Duration;

use self::engine::{Compute, Copy, Engine};
use self::memory::{Ordered, SimMemory};
pub use self::spec::SimSpec;
use self::stream::{SimEvent, Stream};
use super::{
    Device, DeviceError, DeviceMemory, Event, HostMemory, Transfer, TransferEvents, Utilization, check_read_back,
};
use crate::sync::Arc;
use crate::units::ByteCount;

/// A simulated accelerator.
///
/// Copies and steps take the time that [`SimSpec`] says, in threads that sleep; the batch is really finished, on the CPU,
/// at the end of its copy, and so a copy takes at least as long as that. Its memory is host memory, and counts as such.
///
/// Each of these is a **violation**: it is recorded in words ([`violations`](SimDevice::violations)), and it is the error
/// of the call that did it, or of the next one:
///
/// - a slot is written before `slot_free` has passed (its bytes are compared when the copy ends);
/// - device memory is fed again while a step may still read it, because its `release` has neither passed nor been given
///   as `after`;
/// - device memory is read by a step or by `read_back` though its `ready` has neither passed nor been given;
/// - device memory is read that was never fed.
///
/// An event of one of its own streams counts by its place on the stream, not by the clock. Any other event that has not
/// passed yet is waited for on the stream, and the memory is looked at when it has.
///
/// A full stream (1024 commands) makes the next call wait for a place. Dropping the device ends both threads at once; work
/// that was under way is given up, and its events fail with [`DeviceError::Lost`].
#[derive(Debug)]
pub struct SimDevice {
    engine: Arc<Engine>,
    copy: Stream<Copy>,
    compute: Stream<Compute>,
}

impl SimDevice {
    /// Starts one, with its two threads `sim-copy` and `sim-compute`.
    ///
    /// # Errors
    /// [`DeviceError::Failed`] where a thread cannot be started.
    pub fn open(spec: SimSpec) -> Result<Self, DeviceError> {
        let engine = Engine::new(spec);
        let (copies, steps) = (Arc::clone(&engine), Arc::clone(&engine));
        let copy = Stream::start("sim-copy", &engine.copy, &engine.compute, move |queue| copies.run_copies(queue))?;
        let compute = Stream::start("sim-compute", &engine.compute, &engine.copy, move |queue| steps.run_steps(queue))?;
        Ok(SimDevice { engine, copy, compute })
    }

    /// Every lifetime violation so far, in words, first one first.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.engine.violations()
    }

    /// Its memory that loaders hold.
    #[must_use]
    pub fn held(&self) -> ByteCount {
        self.engine.held()
    }

    fn own<'m>(&self, memory: &'m DeviceMemory) -> Result<&'m Arc<SimMemory>, DeviceError> {
        let own = memory.handle::<Arc<SimMemory>>().filter(|memory| Arc::ptr_eq(&memory.engine, &self.engine));
        own.ok_or_else(|| {
            DeviceError::Unsupported(format!("this memory belongs to another device than '{}'", self.engine.spec))
        })
    }

    /// What a command with this event comes after, if it otherwise comes after `seen`.
    fn ordered(&self, event: &Event, seen: u64) -> Result<Ordered, DeviceError> {
        let own = |progress| SimEvent::number_on(progress, event).is_some();
        if own(&self.engine.copy) || own(&self.engine.compute) || event.is_done()? {
            Ok(Ordered::After(seen))
        } else {
            Ok(Ordered::Later)
        }
    }
}

impl Device for SimDevice {
    fn name(&self) -> String {
        self.engine.spec.to_string()
    }

    fn host_memory(&self, len: usize) -> Result<HostMemory, DeviceError> {
        self.engine.check()?;
        HostMemory::pageable(len)
    }

    fn memory(&self, len: usize, _copied: usize) -> Result<DeviceMemory, DeviceError> {
        self.engine.check()?;
        let place = HostMemory::pageable(len)?;
        let number = self.engine.take(len)?;
        let memory = Arc::new(SimMemory::new(&self.engine, number, place));
        Ok(DeviceMemory::from_handle(len, Box::new(memory)))
    }

    fn counts_as_ram(&self) -> bool {
        true
    }

    fn enqueue_batch(&self, transfer: Transfer<'_>) -> Result<TransferEvents, DeviceError> {
        self.engine.check()?;
        transfer.check()?;
        let (copied_bytes, finished_bytes) = (transfer.copied_bytes(), transfer.finished_bytes());
        let Transfer { from, spec, format, windows, to, after, .. } = transfer;
        let windows = windows.map(|windows| (windows.stored, windows.places.to_vec()));
        let to = self.own(to)?;
        let checksum = Copy::source(&from, copied_bytes);
        let ready = self.copy.push(&after, |copy, seen| {
            to.enqueue_copy(copy, self.ordered(&after, seen)?)?;
            Ok(Copy { from, copied_bytes, checksum, spec, format, windows, to: Arc::clone(to), finished_bytes })
        })?;
        Ok(TransferEvents { slot_free: ready.clone(), ready })
    }

    fn read_back(&self, from: &DeviceMemory, ready: &Event, out: &mut [u8]) -> Result<(), DeviceError> {
        self.engine.check()?;
        check_read_back(out.len(), from.len())?;
        let from = self.own(from)?;
        ready.wait()?;
        from.read_back(out)
    }

    fn order_after(&self, ready: &Event) -> Result<(), DeviceError> {
        self.engine.check()?;
        self.compute.push(ready, |_, _| Ok(Compute::Order)).map(|_| ())
    }

    fn step(&self, memory: &DeviceMemory, ready: &Event, duration: Option<Duration>) -> Result<Event, DeviceError> {
        self.engine.check()?;
        let memory = self.own(memory)?;
        let duration = duration.unwrap_or(self.engine.spec.step);
        self.compute.push(ready, |step, seen| {
            let copy = memory.read(step, self.ordered(ready, seen)?)?;
            Ok(Compute::Step { memory: Arc::clone(memory), copy, duration })
        })
    }

    fn release(&self, memory: &DeviceMemory) -> Result<Event, DeviceError> {
        self.engine.check()?;
        self.own(memory)?;
        Ok(self.compute.end())
    }

    fn utilization(&self) -> Option<Utilization> {
        Some(self.engine.utilization())
    }

    fn check(&self) -> Result<(), DeviceError> {
        self.engine.check()
    }
}

impl Drop for SimDevice {
    fn drop(&mut self) {
        // Both streams stop waiting for whatever it is; then their queues close, and their threads are joined.
        self.engine.lose("it was closed");
    }
}
