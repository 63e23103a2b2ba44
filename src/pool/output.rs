//! Outputs: device memory of one finished batch, allocated once and reused. A new transfer into it waits for the event
//! that its last reader left.

use super::reusable::{Reusable, regrow};
use crate::budget::Reservation;
use crate::device::{Device, DeviceError, DeviceMemory, Event};
use crate::memory::HostMemory;
use crate::sync::Arc;
use crate::units::ByteCount;

/// Device memory of one finished batch.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) memory: DeviceMemory,
    /// Event after which it may be written again.
    pub(crate) released: Event,
    bytes: usize,
    copied_bytes: usize,
    device: Arc<dyn Device>,
    /// Reservation, if the device's memory is in RAM.
    held: Option<Reservation>,
}

impl Reusable for Output {
    fn release_memory(&mut self) {
        // A device that still works on it keeps it until it is done.
        if let Some(held) = &mut self.held {
            self.memory = DeviceMemory::from_host(HostMemory::empty());
            held.shrink_to(ByteCount::ZERO);
        }
    }

    fn reacquire(&mut self) -> Result<(), DeviceError> {
        if let Some(held) = &mut self.held {
            regrow(held, self.bytes)?;
            self.memory = self.device.memory(self.bytes, self.copied_bytes)?;
            self.released = Event::done();
        }
        Ok(())
    }
}

impl Output {
    /// Memory for a finished batch of `bytes`, converted from `copied_bytes` of pixels on the device (0: not
    /// converted).
    ///
    /// # Errors
    /// The device has no memory.
    pub(crate) fn new(
        device: Arc<dyn Device>,
        bytes: usize,
        copied_bytes: usize,
        held: Option<Reservation>,
    ) -> Result<Self, DeviceError> {
        let memory = device.memory(bytes, copied_bytes)?;
        Ok(Output { memory, released: Event::done(), bytes, copied_bytes, device, held })
    }
}
