//! Owns the CPU as a device: device memory is host memory, and a batch is finished in the call that feeds it.
//! It must never enqueue anything: every event it hands out has passed.

use std::time::Duration;

use super::{
    Device, DeviceError, DeviceMemory, Event, HostMemory, Transfer, TransferEvents, check_read_back, convert_into,
    convert_windows_into,
};

/// The CPU as a device. [`feed`](Device::enqueue_batch) does all the work in the calling (transfer) thread; consumers read
/// batches in place through [`DeviceMemory::host`].
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

    /// The CPU in the place of another device, and why.
    pub(super) fn instead(why: String) -> Self {
        HostDevice { note: Some(why) }
    }
}

fn foreign() -> DeviceError {
    DeviceError::Unsupported("this memory belongs to another device than 'cpu'".to_owned())
}

impl Device for HostDevice {
    fn name(&self) -> String {
        "cpu".to_owned()
    }

    fn host_memory(&self, len: usize) -> Result<HostMemory, DeviceError> {
        HostMemory::pageable(len)
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
        let (copied, finished) = (transfer.copied_bytes(), transfer.finished_bytes());
        let Transfer { from, spec, format, windows, to, after, .. } = transfer;
        let to = to.host_mut().ok_or_else(foreign)?;
        after.wait()?;
        let (pixels, to) = (&from.as_slice()[..copied], &mut to[..finished]);
        match windows {
            None => convert_into(pixels, spec, &format, to),
            Some(windows) => convert_windows_into(pixels, &windows, spec, &format, to),
        }
        Ok(TransferEvents { slot_free: Event::done(), ready: Event::done() })
    }

    fn read_back(&self, from: &DeviceMemory, ready: &Event, out: &mut [u8]) -> Result<(), DeviceError> {
        let from = from.host().ok_or_else(foreign)?;
        check_read_back(out.len(), from.len())?;
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
