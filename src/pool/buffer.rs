//! Owns the buffers that encoded bytes are read into. A fixed number circulates, which bounds the read depth.
//! It must never grow beyond what is reserved for it.

use crate::budget::Reservation;
use crate::device::{DeviceError, HostMemory};
use crate::units::ByteCount;

/// Room for the encoded bytes of one chunk, in a mapping of its own (see `scratch.rs` for why).
pub(crate) struct ReadBuffer {
    /// What the buffer's own reservation covers; a chunk that is larger needs one of its own, which is not kept.
    kept: HostMemory,
    keep_bytes: usize,
    held: Reservation,
    giant: Option<(HostMemory, Reservation)>,
    len: usize,
}

impl ReadBuffer {
    pub(crate) fn new(keep_bytes: usize, held: Reservation) -> Result<Self, DeviceError> {
        Ok(ReadBuffer { kept: HostMemory::pageable(keep_bytes)?, keep_bytes, held, giant: None, len: 0 })
    }

    /// How large a chunk may be without a reservation of its own.
    pub(crate) fn keep_bytes(&self) -> usize {
        self.keep_bytes
    }

    /// Makes room for exactly this many bytes, whose content is left over from before; `giant` is their reservation
    /// where they are more than the buffer keeps.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] if the system has no room for a giant; the buffer is then empty.
    ///
    /// # Panics
    /// Panics if `giant` is missing where it is needed.
    pub(crate) fn prepare(&mut self, len: usize, giant: Option<Reservation>) -> Result<(), DeviceError> {
        assert!(len <= self.keep_bytes() || giant.as_ref().is_some_and(|held| held.bytes().0 >= len as u64));
        self.release();
        if let Some(held) = giant {
            self.giant = Some((HostMemory::pageable(len)?, held));
        }
        self.len = len;
        Ok(())
    }

    fn memory(&self) -> &HostMemory {
        self.giant.as_ref().map_or(&self.kept, |(memory, _)| memory)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory().as_slice()[..self.len]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let memory = self.giant.as_mut().map_or(&mut self.kept, |(memory, _)| memory);
        &mut memory.as_mut_slice()[..self.len]
    }

    /// Gives back what only a giant needed.
    pub(crate) fn release(&mut self) {
        self.len = 0;
        self.giant = None;
    }

    /// Gives everything back until [`wake`](Self::wake).
    pub(crate) fn rest(&mut self) {
        self.release();
        if let Ok(nothing) = HostMemory::pageable(0) {
            self.kept = nothing;
            self.held.shrink_to(ByteCount::ZERO);
        }
    }

    /// # Errors
    /// There is no memory.
    pub(crate) fn wake(&mut self) -> Result<(), DeviceError> {
        super::take_again(&mut self.held, self.keep_bytes)?;
        self.kept = HostMemory::pageable(self.keep_bytes)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Ledger;

    #[test]
    fn a_buffer_keeps_its_own_size_and_no_more() {
        let ledger = Ledger::new(ByteCount(1000));
        let account = ledger.account("encoded", ledger.limit());
        let mut buffer = ReadBuffer::new(100, account.reserve(ByteCount(100)).unwrap()).unwrap();
        buffer.prepare(40, None).unwrap();
        let address = buffer.bytes().as_ptr();
        buffer.prepare(100, None).unwrap();
        assert_eq!((buffer.bytes().as_ptr(), buffer.bytes().len()), (address, 100));
        buffer.prepare(500, Some(account.reserve(ByteCount(500)).unwrap())).unwrap();
        buffer.bytes_mut().fill(7);
        assert_eq!((buffer.bytes(), ledger.held()), (&[7; 500][..], ByteCount(600)));
        buffer.release();
        assert_eq!((buffer.bytes().len(), ledger.held()), (0, ByteCount(100)));
        buffer.prepare(1, None).unwrap();
        assert_eq!(buffer.bytes().as_ptr(), address);
        buffer.rest();
        assert_eq!((ledger.held(), buffer.keep_bytes()), (ByteCount::ZERO, 100));
        buffer.wake().unwrap();
        buffer.prepare(100, None).unwrap();
        buffer.bytes_mut().fill(1);
        assert_eq!(ledger.held(), ByteCount(100));
    }

    #[test]
    #[should_panic(expected = "assertion failed")]
    fn a_giant_without_a_reservation_is_refused() {
        let ledger = Ledger::new(ByteCount(1000));
        let held = ledger.account("encoded", ledger.limit()).reserve(ByteCount(100)).unwrap();
        let _ = ReadBuffer::new(100, held).unwrap().prepare(101, None);
    }
}
