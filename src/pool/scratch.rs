//! Memory for decoding and transforming images: a scratch for each worker, and a shared one for images that are larger.

use super::reusable::{Reusable, regrow};
use crate::budget::{Account, OverBudget, Reservation};
use crate::device::DeviceError;
use crate::memory::{AllocError, HostMemory};
use crate::sync::{Mutex, MutexGuard, lock};
use crate::units::ByteCount;

/// Memory of one worker.
///
/// It is a mapping of its own, not the allocator's memory: an allocator that has been given back a large block keeps
/// blocks of that size from then on, in every thread's arena, where no ledger sees them. Pages that no image has
/// touched cost nothing.
pub(crate) struct Scratch {
    memory: HostMemory,
    /// Bytes that images have touched so far.
    touched: u64,
    bytes: usize,
    held: Reservation,
}

impl Reusable for Scratch {
    fn release_memory(&mut self) {
        self.memory = HostMemory::empty();
        self.touched = 0;
        self.held.shrink_to(ByteCount::ZERO);
    }

    fn reacquire(&mut self) -> Result<(), DeviceError> {
        regrow(&mut self.held, self.bytes)?;
        self.memory = HostMemory::pageable(self.bytes)?;
        Ok(())
    }
}

impl Scratch {
    /// A scratch as large as its reservation.
    ///
    /// # Errors
    /// The system has no memory.
    pub(crate) fn new(held: Reservation) -> Result<Self, AllocError> {
        let bytes = held.bytes().0 as usize;
        Ok(Scratch { memory: HostMemory::pageable(bytes)?, touched: 0, bytes, held })
    }

    /// Largest working set that fits.
    pub(crate) fn bytes_max(&self) -> ByteCount {
        ByteCount(self.bytes as u64)
    }

    /// Memory for an image that takes `buffer_bytes` of it, beside `codec_bytes` that its codec allocates itself. Pages
    /// that earlier images touched are given back if they and the codec's would not fit together.
    ///
    /// # Errors
    /// The system has no memory.
    pub(crate) fn memory_for(&mut self, buffer_bytes: u64, codec_bytes: u64) -> Result<&mut [u8], AllocError> {
        if self.touched.max(buffer_bytes) + codec_bytes > self.bytes as u64 {
            self.memory = HostMemory::pageable(self.bytes)?;
            self.touched = 0;
        }
        self.touched = self.touched.max(buffer_bytes);
        Ok(self.memory.as_mut_slice())
    }
}

/// The account for images larger than a worker's scratch, which are decoded one at a time.
pub(crate) struct OversizedScratch {
    turn: Mutex<()>,
    account: Account,
}

/// The turn of one oversized image. It must be held for as long as the reservation.
pub(crate) struct Turn<'a> {
    _turn: MutexGuard<'a, ()>,
    account: &'a Account,
}

impl OversizedScratch {
    pub(crate) fn new(account: Account) -> Self {
        OversizedScratch { turn: Mutex::new(()), account }
    }

    /// Blocks until no other oversized image is being decoded.
    pub(crate) fn wait_for_turn(&self) -> Turn<'_> {
        Turn { _turn: lock(&self.turn), account: &self.account }
    }
}

impl Turn<'_> {
    /// Reserves the bytes of an oversized image.
    ///
    /// # Errors
    /// The account's cap is lower, whatever else is in flight: the cap is this account's alone.
    pub(crate) fn reserve(&self, bytes: ByteCount) -> Result<Reservation, OverBudget> {
        self.account.reserve(bytes)
    }
}
