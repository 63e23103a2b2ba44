//! The simulated accelerator: two streams in simulated time, memory of its own, and a check of lifetimes. A use of
//! memory that would be a race on a real device is an error here, whatever the timing of this run.
//!
//! - `engine`: the commands of both streams.
//! - `state`: memory in use, errors and violations.
//! - `stream`: a queue with its thread and its events.
//! - `memory`: device memory, with the batch in it and its readers.
//! - `busy_time`: busy time of the streams.
//! - `spec`: `sim:h2d=25GB/s,latency=10us,step=20ms,memory=8G`.

mod busy_time;
mod engine;
mod memory;
mod spec;
mod state;
mod stream;
#[cfg(test)]
mod tests;

use std::time::Duration;

use self::engine::{Compute, Copy, Engine};
use self::memory::{Ordered, SimMemory};
pub use self::spec::SimSpec;
use self::stream::{SimEvent, Stream};
use super::{Device, DeviceError, DeviceMemory, Event, HostMemory, Transfer, TransferEvents, Utilization, check_size};
use crate::sync::Arc;
use crate::units::ByteCount;

/// A simulated accelerator.
///
/// Copies and steps take the time that [`SimSpec`] gives, in threads that sleep. The batch is converted on the CPU at
/// the end of its copy, so a copy takes at least as long as that. Device memory is host memory, and counts as such.
///
/// Each of these is a **violation**. It is recorded ([`violations`](SimDevice::violations)), and it is the error of the
/// call that caused it, or of the next one:
///
/// - a slot is written before `slot_free` has passed (its bytes are compared when the copy ends);
/// - device memory is written again while a step may still read it, because its `release` has neither passed nor been
///   given as `after`;
/// - device memory is read by a step or by `read_back` although its `ready` has neither passed nor been given;
/// - device memory is read that was never written.
///
/// An event of one of its own streams counts by its position on the stream, not by the clock. For any other event that
/// has not passed yet the stream waits, and the memory is checked afterwards.
///
/// A full stream (1024 commands) makes the next call wait. Dropping the device ends both threads at once; work in
/// progress is abandoned, and its events fail with [`DeviceError::Lost`].
#[derive(Debug)]
pub struct SimDevice {
    engine: Arc<Engine>,
    copy: Stream<Copy>,
    compute: Stream<Compute>,
}

impl SimDevice {
    /// Opens a simulated device and starts its threads `sim-copy` and `sim-compute`.
    ///
    /// # Errors
    /// [`DeviceError::Failed`] if a thread cannot be started.
    pub fn open(spec: SimSpec) -> Result<Self, DeviceError> {
        let engine = Engine::new(spec);
        let (copies, steps) = (Arc::clone(&engine), Arc::clone(&engine));
        let copy = Stream::start("sim-copy", &engine.copy, &engine.compute, move |queue| copies.run_copies(queue))?;
        let compute = Stream::start("sim-compute", &engine.compute, &engine.copy, move |queue| steps.run_steps(queue))?;
        Ok(SimDevice { engine, copy, compute })
    }

    /// Lifetime violations so far, oldest first; at most 64.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.engine.state.violations()
    }

    /// Device memory that loaders hold.
    #[must_use]
    pub fn held(&self) -> ByteCount {
        self.engine.state.held()
    }

    fn own<'m>(&self, memory: &'m DeviceMemory) -> Result<&'m Arc<SimMemory>, DeviceError> {
        let own = memory.handle::<Arc<SimMemory>>().filter(|memory| Arc::ptr_eq(&memory.device, &self.engine.state));
        own.ok_or_else(|| DeviceError::ForeignMemory { device: self.engine.spec.to_string() })
    }

    /// Order of a command that waits for this event and otherwise comes after `seen`.
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
        self.engine.state.check()?;
        Ok(HostMemory::pageable(len)?)
    }

    fn memory(&self, len: usize, _copied: usize) -> Result<DeviceMemory, DeviceError> {
        self.engine.state.check()?;
        let bytes = HostMemory::pageable(len)?;
        let number = self.engine.state.allocate(len)?;
        let memory = Arc::new(SimMemory::new(&self.engine.state, number, bytes));
        Ok(DeviceMemory::from_handle(len, Box::new(memory)))
    }

    fn counts_as_ram(&self) -> bool {
        true
    }

    fn enqueue_batch(&self, transfer: Transfer<'_>) -> Result<TransferEvents, DeviceError> {
        self.engine.state.check()?;
        transfer.check()?;
        let (copied_bytes, output_bytes) = (transfer.copied_bytes(), transfer.output_bytes());
        let Transfer { from, spec, format, to, after, .. } = transfer;
        let to = self.own(to)?;
        let checksum = Copy::source(&from, copied_bytes);
        let ready = self.copy.push(&after, |copy, seen| {
            to.enqueue_copy(copy, self.ordered(&after, seen)?)?;
            Ok(Copy { from, copied_bytes, checksum, spec, format, to: Arc::clone(to), output_bytes })
        })?;
        Ok(TransferEvents { slot_free: ready.clone(), ready })
    }

    fn read_back(&self, from: &DeviceMemory, ready: &Event, out: &mut [u8]) -> Result<(), DeviceError> {
        self.engine.state.check()?;
        check_size("a read", out.len(), from.len())?;
        let from = self.own(from)?;
        ready.wait()?;
        from.read_back(out)
    }

    fn order_after(&self, ready: &Event) -> Result<(), DeviceError> {
        self.engine.state.check()?;
        self.compute.push(ready, |_, _| Ok(Compute::Order)).map(|_| ())
    }

    fn step(&self, memory: &DeviceMemory, ready: &Event, duration: Option<Duration>) -> Result<Event, DeviceError> {
        self.engine.state.check()?;
        let memory = self.own(memory)?;
        let duration = duration.unwrap_or(self.engine.spec.step);
        self.compute.push(ready, |step, seen| {
            let copy = memory.read(step, self.ordered(ready, seen)?)?;
            Ok(Compute::Step { memory: Arc::clone(memory), copy, duration })
        })
    }

    fn release(&self, memory: &DeviceMemory) -> Result<Event, DeviceError> {
        self.engine.state.check()?;
        self.own(memory)?;
        Ok(self.compute.end())
    }

    fn utilization(&self) -> Option<Utilization> {
        Some(self.engine.utilization())
    }

    fn check(&self) -> Result<(), DeviceError> {
        self.engine.state.check()
    }
}

impl Drop for SimDevice {
    fn drop(&mut self) {
        // Both streams stop waiting; then their queues close, and their threads are joined.
        self.engine.lose("it was closed");
    }
}
