//! Memory of a CUDA device: page-locked slots, entries of the device ring, and the use of device memory over a run.
//! Memory is not freed while a stream may still use it.
//!
//! An entry is one allocation: the batch, then its pixels, then the table that they are readings up in.
//!
//! ```text
//! | batch | pixels | table |     (the last two only if batches are converted on the device)
//! ```

use std::any::Any;
use std::collections::VecDeque;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use super::driver::{Context, Refusal};
use super::recorded_event::RecordedEvent;
use crate::device::{DeviceError, HostMemory, MemoryUsage, bytes};
use crate::sync::{Arc, Mutex, lock};
use crate::tensor::{CHANNELS, OutputFormat};
use crate::units::ByteCount;

/// Alignment of every part of an entry; the driver aligns allocations to as much.
const ALIGN: usize = 256;
/// Size of a table of the largest elements.
const TABLE_BYTES: usize = CHANNELS * 256 * 4;
/// Longest wait of dropped memory for its last use. After that it is leaked.
const LAST_USE_MAX: Duration = Duration::from_secs(10);

/// Device memory of one batch.
#[derive(Debug)]
pub(super) struct CudaMemory {
    pub(super) context: Arc<Context>,
    address: u64,
    len: usize,
    copied: usize,
    owner: Owner,
    pub(super) uses: Mutex<Uses>,
}

/// Owner of the memory.
#[derive(Debug)]
enum Owner {
    /// Allocated here, from the driver.
    Driver { bytes: usize },
    /// Allocated by another library.
    Other(#[allow(dead_code, reason = "held, to be dropped")] Keep),
}

/// Owner that keeps memory of another library alive.
pub(super) struct Keep(pub(super) Box<dyn Any + Send + Sync>);

impl std::fmt::Debug for Keep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keep")
    }
}

/// Uses of an entry by streams.
#[derive(Debug, Default)]
pub(super) struct Uses {
    /// Event of the last batch transferred.
    pub(super) written: Option<Arc<RecordedEvent>>,
    /// Event of the last release.
    pub(super) released: Option<Arc<RecordedEvent>>,
    /// Format that the table is for.
    pub(super) table: Option<OutputFormat>,
}

const fn aligned(len: usize) -> usize {
    match len.checked_next_multiple_of(ALIGN) {
        Some(len) => len,
        None => usize::MAX,
    }
}

impl CudaMemory {
    /// Bytes of device memory that an entry takes.
    pub(super) const fn bytes(len: usize, copied: usize) -> usize {
        let finishing = if copied == 0 { 0 } else { aligned(copied).saturating_add(TABLE_BYTES) };
        aligned(len).saturating_add(finishing)
    }

    pub(super) fn alloc(
        context: &Arc<Context>,
        accounts: &Accounts,
        len: usize,
        copied: usize,
    ) -> Result<Self, DeviceError> {
        let bytes = Self::bytes(len, copied);
        // The driver refuses an allocation of no bytes.
        let address = if bytes == 0 {
            0
        } else {
            context.alloc(bytes).map_err(|refusal| accounts.refused(context, bytes, refusal))?
        };
        Ok(Self::new(context, address, len, copied, Owner::Driver { bytes }))
    }

    /// An entry in memory of another library.
    pub(super) fn foreign(context: &Arc<Context>, address: u64, len: usize, copied: usize, keep: Keep) -> Self {
        Self::new(context, address, len, copied, Owner::Other(keep))
    }

    fn new(context: &Arc<Context>, address: u64, len: usize, copied: usize, owner: Owner) -> Self {
        CudaMemory { context: Arc::clone(context), address, len, copied, owner, uses: Mutex::default() }
    }

    /// Address of the batch.
    pub(super) fn output(&self) -> u64 {
        self.address
    }

    /// Address and size of the room for pixels that are to be converted.
    pub(super) fn pixels(&self) -> (u64, usize) {
        (self.address + aligned(self.len) as u64, self.copied)
    }

    /// Address of the table.
    pub(super) fn table(&self) -> u64 {
        self.pixels().0 + aligned(self.copied) as u64
    }

    /// Owner of the memory, if it is another library.
    pub(super) fn keep(&self) -> Option<&(dyn Any + Send + Sync)> {
        match &self.owner {
            Owner::Driver { .. } => None,
            Owner::Other(Keep(keep)) => Some(&**keep),
        }
    }
}

impl Drop for CudaMemory {
    fn drop(&mut self) {
        let uses = std::mem::take(&mut *lock(&self.uses));
        // A lost device uses no memory.
        let over =
            |event: Option<Arc<RecordedEvent>>| event.is_none_or(|event| event.wait_for(LAST_USE_MAX).unwrap_or(true));
        if !over(uses.written) || !over(uses.released) {
            // The device hangs and may still write there: the memory is leaked.
            if let Owner::Other(keep) = std::mem::replace(&mut self.owner, Owner::Driver { bytes: 0 }) {
                std::mem::forget(keep);
            }
            return;
        }
        if let Owner::Driver { bytes: bytes @ 1.. } = self.owner {
            #[allow(unsafe_code, reason = "device memory is freed by address")]
            // SAFETY: allocated here, no longer in use, and this is the last owner.
            unsafe {
                self.context.free(self.address, bytes);
            }
        }
    }
}

/// Free device memory over the course of the run, which tells a start that does not fit from a leak.
#[derive(Debug, Default)]
pub(super) struct Accounts(Mutex<Record>);

#[derive(Debug, Default)]
struct Record {
    batches: u64,
    readings: VecDeque<(Instant, ByteCount)>,
}

impl Accounts {
    /// Interval between two readings, and number of readings kept.
    const INTERVAL: Duration = Duration::from_secs(5);
    const KEPT: usize = 12;

    /// Counts a batch, and reads the free memory if the interval is over.
    pub(super) fn batch(&self, context: &Context) {
        let mut record = lock(&self.0);
        record.batches += 1;
        if record.readings.back().is_some_and(|(at, _)| at.elapsed() < Self::INTERVAL) {
            return;
        }
        if let Ok((free, _)) = context.memory_info() {
            if record.readings.len() == Self::KEPT {
                record.readings.pop_front();
            }
            record.readings.push_back((Instant::now(), free));
        }
    }

    /// Error of a refused allocation.
    pub(super) fn refused(&self, context: &Context, asked: usize, refusal: Refusal) -> DeviceError {
        let Refusal::NoMemory(_) = refusal else { return refusal.into() };
        let (what, asked) = ("device memory", bytes(asked));
        let Ok((free, total)) = context.memory_info() else {
            return DeviceError::OutOfMemory { what, asked, free: None, usage: None };
        };
        let held = context.held();
        let others = total.saturating_sub(free).saturating_sub(held);
        let record = lock(&self.0);
        let trend = record.readings.iter().map(|(at, free)| (at.elapsed(), *free)).collect();
        let usage = MemoryUsage { total, held, others, batches: record.batches, trend };
        DeviceError::OutOfMemory { what, asked, free: Some(free), usage: Some(Box::new(usage)) }
    }
}

/// Allocates zeroed page-locked host memory; `None` if the system refuses it.
pub(super) fn pinned(
    context: &Arc<Context>,
    len: usize,
    write_combined: bool,
) -> Result<Option<HostMemory>, DeviceError> {
    let address = match context.alloc_host(len, write_combined) {
        Ok(address) => address,
        Err(_) => return context.check().map(|()| None),
    };
    let Some(address) = NonNull::new(address) else { return Ok(None) };
    #[allow(unsafe_code, reason = "memory of the driver is cleared by address")]
    // SAFETY: just allocated with this length, and nothing else refers to it.
    unsafe {
        address.as_ptr().write_bytes(0, len);
    }
    let owner = Arc::clone(context);
    let free = move |address: *mut u8, _: usize| {
        #[allow(unsafe_code, reason = "memory of the driver's is given back by address")]
        // SAFETY: made by `alloc_host`; the last handle is gone, and with it every copy (`InFlight` holds one for
        // each).
        unsafe {
            owner.free_host(address);
        }
    };
    #[allow(unsafe_code, reason = "takes over memory of the driver")]
    // SAFETY: valid and initialized for `len` bytes until it is freed. The driver allocates whole pages.
    let memory = unsafe { HostMemory::from_raw_parts(address, len, Box::new(free)) };
    Ok(Some(memory))
}
