//! Owns the entries of the device ring: memory of one finished batch, made once and fed again and again.
//! It must never be fed before the event that its last reader left has passed.

use super::Recycle;
use crate::budget::Reservation;
use crate::device::{Device, DeviceError, DeviceMemory, Event, HostMemory};
use crate::sync::Arc;
use crate::units::ByteCount;

/// Device memory of one finished batch.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) memory: DeviceMemory,
    /// What has to pass before it may be fed again.
    pub(crate) released: Event,
    bytes: usize,
    copied_bytes: usize,
    device: Arc<dyn Device>,
    /// Where device memory comes out of the host's RAM.
    held: Option<Reservation>,
}

impl Recycle for Output {
    fn rest(&mut self) {
        // A device that still works on it keeps it until it is done.
        if let (Some(held), Ok(nothing)) = (&mut self.held, HostMemory::pageable(0)) {
            self.memory = DeviceMemory::from_host(nothing);
            held.shrink_to(ByteCount::ZERO);
        }
    }

    fn wake(&mut self) -> Result<(), DeviceError> {
        if let Some(held) = &mut self.held {
            super::take_again(held, self.bytes)?;
            self.memory = self.device.memory(self.bytes, self.copied_bytes)?;
            self.released = Event::done();
        }
        Ok(())
    }
}

impl Output {
    /// Memory for a finished batch of `bytes`, made of `copied_bytes` that have to be finished (0: none have).
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
