//! The CPU as a device: device memory is host memory, and a batch is converted in the call that transfers it. Every
//! event that it returns has passed.

use std::time::Duration;

use super::{Device, DeviceError, DeviceMemory, Event, HostMemory, Transfer, TransferEvents, check_size, convert_into};

/// The CPU as a device. [`enqueue_batch`](Device::enqueue_batch) does all the work in the calling (transfer) thread;
/// consumers read batches in place through [`DeviceMemory::host`].
#[derive(Clone, Debug, Default)]
pub struct HostDevice {
    note: Option<String>,
}

impl HostDevice {
    /// The CPU.
    #[must_use]
    pub const fn new() -> Self {
        HostDevice { note: None }
    }

    /// The CPU in the place of another device, with the reason as a note.
    pub(super) fn instead(note: String) -> Self {
        HostDevice { note: Some(note) }
    }
}

fn foreign() -> DeviceError {
    DeviceError::ForeignMemory { device: "cpu".to_owned() }
}

impl Device for HostDevice {
    fn name(&self) -> String {
        "cpu".to_owned()
    }

    fn host_memory(&self, len: usize) -> Result<HostMemory, DeviceError> {
        Ok(HostMemory::pageable(len)?)
    }

    fn memory(&self, len: usize, _copied: usize) -> Result<DeviceMemory, DeviceError> {
        Ok(DeviceMemory::from_host(HostMemory::pageable(len)?))
    }

    fn counts_as_ram(&self) -> bool {
        true
    }

    fn reads_slots(&self) -> bool {
        true
    }

    fn enqueue_batch(&self, transfer: Transfer<'_>) -> Result<TransferEvents, DeviceError> {
        transfer.check()?;
        let (copied, converted) = (transfer.copied_bytes(), transfer.output_bytes());
        let Transfer { from, spec, format, to, after, .. } = transfer;
        let to = to.host_mut().ok_or_else(foreign)?;
        after.wait()?;
        convert_into(&from.as_slice()[..copied], spec, &format, &mut to[..converted]);
        Ok(TransferEvents { slot_free: Event::done(), ready: Event::done() })
    }

    fn read_back(&self, from: &DeviceMemory, ready: &Event, out: &mut [u8]) -> Result<(), DeviceError> {
        let from = from.host().ok_or_else(foreign)?;
        check_size("a read", out.len(), from.len())?;
        ready.wait()?;
        out.copy_from_slice(&from[..out.len()]);
        Ok(())
    }

    fn order_after(&self, ready: &Event) -> Result<(), DeviceError> {
        ready.wait()
    }

    fn step(&self, memory: &DeviceMemory, ready: &Event, duration: Option<Duration>) -> Result<Event, DeviceError> {
        memory.host().ok_or_else(foreign)?;
        ready.wait()?;
        std::thread::sleep(duration.unwrap_or_default());
        Ok(Event::done())
    }

    fn release(&self, memory: &DeviceMemory) -> Result<Event, DeviceError> {
        memory.host().map(|_| Event::done()).ok_or_else(foreign)
    }

    fn notes(&self) -> Vec<String> {
        self.note.clone().into_iter().collect()
    }

    fn check(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}
