//! Read buffers: memory for the encoded bytes of one chunk. Their number limits the reads in flight.

use super::reusable::regrow;
use crate::budget::Reservation;
use crate::device::DeviceError;
use crate::memory::{AllocError, HostMemory};
use crate::units::ByteCount;

/// Memory for the encoded bytes of one chunk, in a mapping of its own (see `scratch.rs` for the reason).
pub(crate) struct ReadBuffer {
    /// Memory of the buffer's own reservation.
    kept: HostMemory,
    keep_bytes: usize,
    held: Reservation,
    /// Memory of a larger chunk, with a reservation of its own. It is not kept.
    oversized: Option<(HostMemory, Reservation)>,
    len: usize,
}

impl ReadBuffer {
    /// A buffer as large as its reservation.
    ///
    /// # Errors
    /// The system has no memory.
    pub(crate) fn new(held: Reservation) -> Result<Self, AllocError> {
        let keep_bytes = held.bytes().0 as usize;
        Ok(ReadBuffer { kept: HostMemory::pageable(keep_bytes)?, keep_bytes, held, oversized: None, len: 0 })
    }

    /// Largest chunk that needs no reservation of its own.
    pub(crate) fn keep_bytes(&self) -> usize {
        self.keep_bytes
    }

    /// Sets the length, for a chunk of exactly `len` bytes. Their contents are undefined. `oversized` is the
    /// reservation of a chunk that is larger than [`keep_bytes`](Self::keep_bytes).
    ///
    /// # Errors
    /// The system has no memory for an oversized chunk; the buffer is then empty.
    ///
    /// # Panics
    /// Panics if `oversized` is missing where it is needed.
    pub(crate) fn prepare(&mut self, len: usize, oversized: Option<Reservation>) -> Result<(), AllocError> {
        assert!(len <= self.keep_bytes() || oversized.as_ref().is_some_and(|held| held.bytes().0 >= len as u64));
        self.release();
        if let Some(held) = oversized {
            self.oversized = Some((HostMemory::pageable(len)?, held));
        }
        self.len = len;
        Ok(())
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        let memory = self.oversized.as_ref().map_or(&self.kept, |(memory, _)| memory);
        &memory.as_slice()[..self.len]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let memory = self.oversized.as_mut().map_or(&mut self.kept, |(memory, _)| memory);
        &mut memory.as_mut_slice()[..self.len]
    }

    /// Empties the buffer, and gives back the memory of an oversized chunk.
    pub(crate) fn release(&mut self) {
        self.len = 0;
        self.oversized = None;
    }

    /// Gives everything back until [`reacquire`](Self::reacquire).
    pub(crate) fn release_memory(&mut self) {
        self.release();
        self.kept = HostMemory::empty();
        self.held.shrink_to(ByteCount::ZERO);
    }

    /// Takes the buffer's memory again.
    ///
    /// # Errors
    /// The system has no memory.
    pub(crate) fn reacquire(&mut self) -> Result<(), DeviceError> {
        regrow(&mut self.held, self.keep_bytes)?;
        self.kept = HostMemory::pageable(self.keep_bytes)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::{AccountKind, Ledger};

    #[test]
    fn a_buffer_keeps_its_own_size_and_no_more() {
        let ledger = Ledger::new(ByteCount(1000));
        let account = ledger.account(AccountKind::Encoded, ledger.limit());
        let mut buffer = ReadBuffer::new(account.reserve(ByteCount(100)).unwrap()).unwrap();
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
        buffer.release_memory();
        assert_eq!((ledger.held(), buffer.keep_bytes()), (ByteCount::ZERO, 100));
        buffer.reacquire().unwrap();
        buffer.prepare(100, None).unwrap();
        buffer.bytes_mut().fill(1);
        assert_eq!(ledger.held(), ByteCount(100));
    }

    #[test]
    #[should_panic(expected = "assertion failed")]
    fn an_oversized_chunk_without_a_reservation_is_refused() {
        let ledger = Ledger::new(ByteCount(1000));
        let held = ledger.account(AccountKind::Encoded, ledger.limit()).reserve(ByteCount(100)).unwrap();
        let _ = ReadBuffer::new(held).unwrap().prepare(101, None);
    }
}
