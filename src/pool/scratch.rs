//! Owns the memory that one picture is decoded and transformed in: a scratch for each worker, and one jumbo lane for
//! the rare picture that is larger.
//! It must never take more than its reservation; who holds the jumbo lane waits for nothing else.

use super::sample::Shown;
use super::{Recycle, take_again};
use crate::budget::{Account, OverBudget, Reservation};
use crate::decode::WorkingSet;
use crate::device::{DeviceError, HostMemory};
use crate::quarantine::Stage;
use crate::sync::{Mutex, lock};
use crate::units::ByteCount;

/// Memory of one worker.
///
/// It is a mapping of its own, not the allocator's memory: an allocator that has been given back a large block keeps
/// blocks of that size from then on, in every thread's arena, where no ledger sees them. Pages that no picture has touched
/// cost nothing.
pub(crate) struct Scratch {
    memory: HostMemory,
    /// Bytes that pictures so far have touched.
    touched: u64,
    bytes: usize,
    held: Reservation,
}

impl Recycle for Scratch {
    fn rest(&mut self) {
        if let Ok(nothing) = HostMemory::pageable(0) {
            self.memory = nothing;
            self.touched = 0;
            self.held.shrink_to(ByteCount::ZERO);
        }
    }

    fn wake(&mut self) -> Result<(), DeviceError> {
        take_again(&mut self.held, self.bytes)?;
        self.memory = HostMemory::pageable(self.bytes)?;
        Ok(())
    }
}

impl Scratch {
    pub(crate) fn new(held: Reservation) -> Result<Self, DeviceError> {
        let bytes = held.bytes().0 as usize;
        Ok(Scratch { memory: HostMemory::pageable(bytes)?, touched: 0, bytes, held })
    }

    /// The largest working set that fits.
    pub(crate) fn bytes_max(&self) -> ByteCount {
        ByteCount(self.bytes as u64)
    }

    /// Makes sure that what earlier pictures left behind and what this one's codec takes for itself fit together.
    fn make_room(&mut self, WorkingSet { pixel_bytes, codec_bytes }: WorkingSet) -> Result<(), DeviceError> {
        if self.touched.max(pixel_bytes) + codec_bytes > self.bytes as u64 {
            self.memory = HostMemory::pageable(self.bytes)?;
            self.touched = 0;
        }
        self.touched = self.touched.max(pixel_bytes);
        Ok(())
    }

    /// Decodes a picture and puts what is shown of it into `out`, one sample's bytes. Returns as [`Shown::make`].
    pub(crate) fn fill(&mut self, encoded: &[u8], shown: &Shown, out: &mut [u8]) -> Result<u32, (Stage, String)> {
        self.make_room(shown.working_set()).map_err(|error| (Stage::Decode, error.to_string()))?;
        shown.make(encoded, self.memory.as_mut_slice(), out)
    }
}

/// The one place for pictures that are larger than a worker's scratch. One at a time; its memory is given back at once.
pub(crate) struct JumboLane {
    turn: Mutex<()>,
    account: Account,
}

impl JumboLane {
    pub(crate) fn new(account: Account) -> Self {
        JumboLane { turn: Mutex::new(()), account }
    }

    /// Runs `with` in a scratch of this size, as soon as it is this picture's turn.
    ///
    /// # Errors
    /// [`JumboError::OverBudget`] if the lane is not that large, which does not depend on what else is under way: the
    /// account's cap is the lane's alone. [`JumboError::Memory`] if the system has none.
    pub(crate) fn run<T>(&self, bytes: ByteCount, with: impl FnOnce(&mut Scratch) -> T) -> Result<T, JumboError> {
        let _turn = lock(&self.turn);
        let held = self.account.reserve(bytes).map_err(JumboError::OverBudget)?;
        let mut scratch = Scratch::new(held).map_err(JumboError::Memory)?;
        Ok(with(&mut scratch))
    }
}

/// Why a picture did not get the jumbo lane.
pub(crate) enum JumboError {
    OverBudget(OverBudget),
    Memory(DeviceError),
}
