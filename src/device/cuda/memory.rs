//! Owns the memory that batches travel through: page-locked slots, entries of the device ring, and the account of who holds
//! the device's memory.
//! It must never give memory back while a stream may still use it.
//!
//! An entry is one allocation: the finished batch, then room for the pixels that it is made from, then the table that they
//! are looked up in.
//!
//! ```text
//! | finished batch | pixels as they crossed | table |     (the last two only where batches are finished on the device)
//! ```

use std::any::Any;
use std::collections::VecDeque;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use super::driver::{Context, Refusal};
use super::event::RecordedEvent;
use crate::device::{DeviceError, HostMemory, MemoryUsage, bytes};
use crate::sync::{Arc, Mutex, lock};
use crate::tensor::{CHANNELS, OutputFormat};
use crate::units::ByteCount;

/// What every part of an entry is aligned to; the driver aligns allocations to as much.
const ALIGN: usize = 256;
/// A table of the largest elements.
const TABLE_BYTES: usize = CHANNELS * 256 * 4;
/// How long memory that is dropped waits for its last user. After that it is not given back.
const LAST_USE_MAX: Duration = Duration::from_secs(10);

/// Device memory of one finished batch.
#[derive(Debug)]
pub(super) struct CudaMemory {
    pub(super) context: Arc<Context>,
    place: u64,
    len: usize,
    copied: usize,
    owner: Owner,
    pub(super) uses: Mutex<Uses>,
}

/// Who gives the memory back.
#[derive(Debug)]
enum Owner {
    /// It was asked for here.
    Driver { bytes: usize },
    /// Whoever this belongs to.
    Other(#[allow(dead_code, reason = "held, to be dropped")] Keep),
}

/// What keeps memory of somebody else's alive.
pub(super) struct Keep(pub(super) Box<dyn Any + Send + Sync>);

impl std::fmt::Debug for Keep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keep")
    }
}

/// What streams do with an entry.
#[derive(Debug, Default)]
pub(super) struct Uses {
    /// When the last batch fed is ready.
    pub(super) fed: Option<Arc<RecordedEvent>>,
    /// When the last reader that said so is done.
    pub(super) released: Option<Arc<RecordedEvent>>,
    /// What the table holds.
    pub(super) table: Option<OutputFormat>,
    /// Room for windows: the last is used, and those before it were too small. Only those who use windows pay for it.
    pub(super) places: Vec<Places>,
}

/// Room for the windows of a batch's samples.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) at: u64,
    pub(super) bytes: usize,
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
        // Nothing can be asked for no bytes.
        let place = if bytes == 0 {
            0
        } else {
            context.alloc(bytes).map_err(|refusal| accounts.refused(context, bytes, refusal))?
        };
        Ok(Self::new(context, place, len, copied, Owner::Driver { bytes }))
    }

    /// An entry in memory of somebody else's.
    pub(super) fn lent(context: &Arc<Context>, place: u64, len: usize, copied: usize, keep: Keep) -> Self {
        Self::new(context, place, len, copied, Owner::Other(keep))
    }

    fn new(context: &Arc<Context>, place: u64, len: usize, copied: usize, owner: Owner) -> Self {
        CudaMemory { context: Arc::clone(context), place, len, copied, owner, uses: Mutex::default() }
    }

    /// Where the finished batch is.
    pub(super) fn finished(&self) -> u64 {
        self.place
    }

    /// Where pixels are put that have to be finished, and how many bytes of them there may be.
    pub(super) fn pixels(&self) -> (u64, usize) {
        (self.place + aligned(self.len) as u64, self.copied)
    }

    /// Where the table is.
    pub(super) fn table(&self) -> u64 {
        self.pixels().0 + aligned(self.copied) as u64
    }

    /// What keeps the memory alive, where it is somebody else's.
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
        // A device that is lost uses nothing any more.
        let over =
            |mark: Option<Arc<RecordedEvent>>| mark.is_none_or(|mark| mark.wait_for(LAST_USE_MAX).unwrap_or(true));
        if !over(uses.fed) || !over(uses.released) {
            // It hangs, and may yet write there: better lost than used by two.
            if let Owner::Other(keep) = std::mem::replace(&mut self.owner, Owner::Driver { bytes: 0 }) {
                std::mem::forget(keep);
            }
            return;
        }
        for Places { at, bytes } in uses.places {
            #[allow(unsafe_code, reason = "memory of the device's is given back by address")]
            // SAFETY: asked for here, used by nothing any more, and this is the last owner.
            unsafe {
                self.context.free(at, bytes);
            }
        }
        if let Owner::Driver { bytes: bytes @ 1.. } = self.owner {
            #[allow(unsafe_code, reason = "memory of the device's is given back by address")]
            // SAFETY: as above.
            unsafe {
                self.context.free(self.place, bytes);
            }
        }
    }
}

/// How much of the device's memory was free in the course of the run: what is needed to tell a start that does not fit from
/// a leak.
#[derive(Debug, Default)]
pub(super) struct Accounts(Mutex<Record>);

#[derive(Debug, Default)]
struct Record {
    batches: u64,
    looked: VecDeque<(Instant, ByteCount)>,
}

impl Accounts {
    /// How often it is looked at, and how many looks are kept.
    const EVERY: Duration = Duration::from_secs(5);
    const KEPT: usize = 12;

    /// A batch was fed.
    pub(super) fn fed(&self, context: &Context) {
        let mut record = lock(&self.0);
        record.batches += 1;
        if record.looked.back().is_some_and(|(at, _)| at.elapsed() < Self::EVERY) {
            return;
        }
        if let Ok((free, _)) = context.memory_info() {
            if record.looked.len() == Self::KEPT {
                record.looked.pop_front();
            }
            record.looked.push_back((Instant::now(), free));
        }
    }

    /// The error of an allocation that was refused.
    pub(super) fn refused(&self, context: &Context, asked: usize, refusal: Refusal) -> DeviceError {
        let Refusal::NoMemory(_) = refusal else { return refusal.into() };
        let (what, asked) = ("device memory", bytes(asked));
        let Ok((free, total)) = context.memory_info() else {
            return DeviceError::OutOfMemory { what, asked, free: None, usage: None };
        };
        let held = context.held();
        let others = total.saturating_sub(free).saturating_sub(held);
        let record = lock(&self.0);
        let trend = record.looked.iter().map(|(at, free)| (at.elapsed(), *free)).collect();
        let usage = MemoryUsage { total, held, others, batches: record.batches, trend };
        DeviceError::OutOfMemory { what, asked, free: Some(free), usage: Some(Box::new(usage)) }
    }
}

/// Page-locked memory of the host, zeroed. `None` where the system refuses it.
pub(super) fn pinned(
    context: &Arc<Context>,
    len: usize,
    write_combined: bool,
) -> Result<Option<HostMemory>, DeviceError> {
    let place = match context.alloc_host(len, write_combined) {
        Ok(place) => place,
        Err(_) => return context.check().map(|()| None),
    };
    let Some(place) = NonNull::new(place) else { return Ok(None) };
    #[allow(unsafe_code, reason = "memory of the driver's is cleared by address")]
    // SAFETY: it was made with this length a moment ago, and nobody else knows of it.
    unsafe {
        place.as_ptr().write_bytes(0, len);
    }
    let owner = Arc::clone(context);
    let free = move |place: *mut u8, _: usize| {
        #[allow(unsafe_code, reason = "memory of the driver's is given back by address")]
        // SAFETY: made by `alloc_host`; the last handle is gone, and with it every copy (`flight.rs` holds one for each).
        unsafe {
            owner.free_host(place);
        }
    };
    #[allow(unsafe_code, reason = "memory of the driver's becomes memory of ours")]
    // SAFETY: valid and initialised for `len` bytes until it is freed. The driver hands out whole pages.
    let memory = unsafe { HostMemory::from_raw_parts(place, len, Box::new(free)) };
    Ok(Some(memory))
}
