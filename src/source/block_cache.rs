//! LRU cache of decompressed blocks.
//!
//! A fixed number of slots hold one block each, and each slot's memory is reused for the next block. The first reader
//! that needs a block loads it without holding a lock; other readers of the same block wait for that load. A slot is
//! reused when all samples of its block have been read, or when it is the least recently used one without readers. If
//! there are at least as many slots as readers, a reader waits only for its own block or for its turn to load.

use std::fmt;
use std::mem::size_of;
use std::ops::Range;

use super::{Blocks, SourceError};
use crate::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, lock};
use crate::units::SampleId;

/// A cache of up to [`Blocks::resident`] blocks, for any number of threads.
pub(super) struct BlockCache {
    blocks: Blocks,
    block_bytes_max: usize,
    samples_max: usize,
    loads_max: usize,
    table: Mutex<Table>,
    /// Notified when a load ends, and when a slot may have become free.
    changed: Condvar,
}

struct Table {
    slots: Vec<Slot>,
    /// Number of loads in progress.
    loads: usize,
    /// Number of readers that wait for a slot or for their turn to load.
    waiting: usize,
    /// Incremented with each use of a slot.
    clock: u64,
}

struct Slot {
    /// The block in the slot, or the one being loaded into it.
    block: Option<u64>,
    state: State,
    /// `None` during a load.
    buffer: Option<Arc<BlockBuffer>>,
    /// Number of readers that copy from the slot or wait for its load. The slot is reused only at 0.
    readers: usize,
    last_used: u64,
    unread: Unread,
}

#[derive(Clone)]
enum State {
    Empty,
    Loading,
    Loaded,
    /// The load failed. Only the readers that waited for it see this.
    Failed(Box<SourceError>),
}

/// Samples of a block that have not been read since it was loaded.
struct Unread {
    bits: Vec<u64>,
    left: usize,
}

/// Memory of one block.
pub(super) struct BlockBuffer {
    memory: Vec<u8>,
    bytes_max: usize,
    samples: Vec<Range<usize>>,
}

impl BlockCache {
    /// Creates a cache of `blocks`, which have at most `block_bytes_max` bytes, with at most `loads_max` concurrent
    /// loads.
    ///
    /// # Panics
    /// Panics if `loads_max` is 0.
    pub(super) fn new(blocks: Blocks, block_bytes_max: u64, loads_max: usize) -> Self {
        assert!(loads_max > 0, "the limit of concurrent loads is 0");
        let count = |block| (blocks.samples(block).end - blocks.samples(block).start) as usize;
        let samples_max = (0..blocks.count()).map(count).max().unwrap_or(0);
        let slots = (blocks.resident() as u64).min(blocks.count()) as usize;
        let block_bytes_max = usize::try_from(block_bytes_max).unwrap_or(usize::MAX);
        let slot = |_| Slot {
            block: None,
            state: State::Empty,
            buffer: Some(Arc::new(BlockBuffer::new(block_bytes_max))),
            readers: 0,
            last_used: 0,
            unread: Unread { bits: vec![0; samples_max.div_ceil(64)], left: 0 },
        };
        let table = Table { slots: (0..slots).map(slot).collect(), loads: 0, waiting: 0, clock: 0 };
        BlockCache {
            blocks,
            block_bytes_max,
            samples_max,
            loads_max,
            table: Mutex::new(table),
            changed: Condvar::new(),
        }
    }

    /// Copies the bytes of a sample into `out`. If its block is not cached, calls `load` first.
    ///
    /// `load` gets the number of the block and an empty buffer. It must add all bytes of the block, and the range of
    /// each sample. No lock is held during the call.
    ///
    /// # Errors
    /// Those of `load`, which all readers that waited for it get too, and [`SourceError::BlockPanicked`] for readers
    /// that waited for a load that panicked. The next reader of the block loads it again.
    ///
    /// # Panics
    /// Panics if `load` panics or adds another number of samples than the block has, or if `out` has another length
    /// than the sample. A panic affects only this read and those that wait for its load.
    pub(super) fn read(
        &self,
        id: SampleId,
        out: &mut [u8],
        load: impl FnOnce(u64, &mut BlockBuffer) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        let block = self.blocks.block_of(id);
        let sample = (id.0 - self.blocks.samples(block).start) as usize;
        let guard = match self.lookup(block)? {
            Lookup::Hit(guard) => guard,
            Lookup::Miss(load_guard) => load_guard.run(load)?,
        };
        guard.copy(sample, out);
        Ok(())
    }

    /// Returns true if a block is cached or being loaded.
    #[cfg(any(feature = "parquet", test))]
    pub(super) fn contains(&self, block: u64) -> bool {
        lock(&self.table).find(block).is_some()
    }

    /// Upper limit of the memory of all slots and tables, bytes. The memory of [`Blocks`] is not included.
    pub(super) fn capacity_bytes(&self) -> u64 {
        let slots = (self.blocks.resident() as u64).min(self.blocks.count());
        let tables = self.samples_max * size_of::<Range<usize>>() + self.samples_max.div_ceil(64) * size_of::<u64>();
        let slot = tables + size_of::<Slot>() + size_of::<BlockBuffer>() + 2 * size_of::<usize>();
        slots.saturating_mul(self.block_bytes_max as u64 + slot as u64)
    }

    /// Looks up a block, and waits for a load of it or for a slot to load it into.
    fn lookup(&self, block: u64) -> Result<Lookup<'_>, SourceError> {
        let mut table = lock(&self.table);
        loop {
            if let Some(at) = table.find(block) {
                table.slots[at].readers += 1;
                while matches!(table.slots[at].state, State::Loading) {
                    table = self.wait(table);
                }
                if let State::Failed(error) = table.slots[at].state.clone() {
                    self.release(table, at, None);
                    return Err(*error);
                }
                let buffer = table.touch(at);
                return Ok(Lookup::Hit(ReadGuard { cache: self, at, buffer, read: None }));
            }
            if table.loads < self.loads_max
                && let Some(at) = table.victim()
            {
                table.loads += 1;
                let slot = &mut table.slots[at];
                slot.block = Some(block);
                slot.state = State::Loading;
                slot.readers = 1;
                let buffer = slot.buffer.take();
                let failure = SourceError::BlockPanicked;
                return Ok(Lookup::Miss(LoadGuard { cache: self, at, block, buffer, failure }));
            }
            table.waiting += 1;
            table = self.wait(table);
            table.waiting -= 1;
        }
    }

    fn wait<'a>(&self, table: MutexGuard<'a, Table>) -> MutexGuard<'a, Table> {
        self.changed.wait(table).unwrap_or_else(PoisonError::into_inner)
    }

    /// Releases a slot after one sample, or none, was read from it.
    fn release(&self, mut table: MutexGuard<'_, Table>, at: usize, read: Option<usize>) {
        let slot = &mut table.slots[at];
        if let Some(sample) = read {
            slot.unread.remove(sample);
        }
        slot.readers -= 1;
        let is_done = matches!(slot.state, State::Loaded) && slot.unread.left == 0;
        if slot.readers == 0 && (is_done || matches!(slot.state, State::Failed(_))) {
            slot.block = None;
            slot.state = State::Empty;
        }
        if table.waiting > 0 {
            self.changed.notify_all();
        }
    }
}

impl fmt::Debug for BlockCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockCache").field("block_bytes_max", &self.block_bytes_max).finish_non_exhaustive()
    }
}

impl Table {
    fn find(&self, block: u64) -> Option<usize> {
        self.slots.iter().position(|slot| slot.block == Some(block))
    }

    /// Chooses the slot for the next block: an empty one, preferably one with memory, or the least recently used one.
    fn victim(&self) -> Option<usize> {
        let is_free = |slot: &Slot| slot.readers == 0 && !matches!(slot.state, State::Loading);
        let is_fresh = |slot: &Slot| slot.buffer.as_ref().is_none_or(|buffer| buffer.memory.capacity() == 0);
        let free = self.slots.iter().enumerate().filter(|(_, slot)| is_free(slot));
        free.min_by_key(|(_, slot)| (slot.block.is_some(), is_fresh(slot), slot.last_used)).map(|(at, _)| at)
    }

    fn touch(&mut self, at: usize) -> Option<Arc<BlockBuffer>> {
        self.clock += 1;
        self.slots[at].last_used = self.clock;
        self.slots[at].buffer.clone()
    }
}

enum Lookup<'a> {
    Hit(ReadGuard<'a>),
    Miss(LoadGuard<'a>),
}

/// Permission to copy from a slot. It counts as one of the slot's readers.
struct ReadGuard<'a> {
    cache: &'a BlockCache,
    at: usize,
    buffer: Option<Arc<BlockBuffer>>,
    read: Option<usize>,
}

impl ReadGuard<'_> {
    fn copy(mut self, sample: usize, out: &mut [u8]) {
        let Some(buffer) = &self.buffer else { unreachable!("a loaded slot has a buffer") };
        let bytes = &buffer.memory[buffer.samples[sample].clone()];
        assert_eq!(out.len(), bytes.len(), "length of the buffer and of the sample");
        out.copy_from_slice(bytes);
        self.read = Some(sample);
    }
}

impl Drop for ReadGuard<'_> {
    fn drop(&mut self) {
        // Before the slot counts as free: the next load needs the only handle of the buffer.
        self.buffer = None;
        self.cache.release(lock(&self.cache.table), self.at, self.read);
    }
}

/// A load in progress. If it is dropped before its end, as by a panic, the load has failed.
struct LoadGuard<'a> {
    cache: &'a BlockCache,
    at: usize,
    block: u64,
    buffer: Option<Arc<BlockBuffer>>,
    failure: SourceError,
}

impl<'a> LoadGuard<'a> {
    fn run(
        mut self,
        load: impl FnOnce(u64, &mut BlockBuffer) -> Result<(), SourceError>,
    ) -> Result<ReadGuard<'a>, SourceError> {
        let Some(buffer) = self.buffer.as_mut().and_then(Arc::get_mut) else {
            unreachable!("the buffer of a slot without readers has one handle")
        };
        let samples = self.cache.blocks.samples(self.block);
        if let Err(error) = buffer.reset(self.cache.samples_max).and_then(|()| load(self.block, buffer)) {
            self.failure = error.clone();
            return Err(error);
        }
        let count = (samples.end - samples.start) as usize;
        assert_eq!(buffer.samples.len(), count, "samples loaded for block {}", self.block);
        let mut table = lock(&self.cache.table);
        table.loads -= 1;
        let slot = &mut table.slots[self.at];
        slot.unread.fill(count);
        slot.state = State::Loaded;
        slot.buffer = self.buffer.take();
        let buffer = table.touch(self.at);
        self.cache.changed.notify_all();
        Ok(ReadGuard { cache: self.cache, at: self.at, buffer, read: None })
    }
}

impl Drop for LoadGuard<'_> {
    fn drop(&mut self) {
        let Some(buffer) = self.buffer.take() else { return };
        let mut table = lock(&self.cache.table);
        table.loads -= 1;
        let slot = &mut table.slots[self.at];
        // The block is not found any more, so that the next reader loads it again.
        slot.block = None;
        slot.state = State::Failed(Box::new(self.failure.clone()));
        slot.buffer = Some(buffer);
        self.cache.changed.notify_all();
        self.cache.release(table, self.at, None);
    }
}

impl Unread {
    fn fill(&mut self, count: usize) {
        self.bits.fill(u64::MAX);
        self.left = count;
    }

    fn remove(&mut self, sample: usize) {
        let (word, bit) = (&mut self.bits[sample / 64], 1 << (sample % 64));
        self.left -= usize::from(*word & bit != 0);
        *word &= !bit;
    }
}

impl BlockBuffer {
    pub(super) fn new(bytes_max: usize) -> Self {
        BlockBuffer { memory: Vec::new(), bytes_max, samples: Vec::new() }
    }

    /// Number of bytes added so far.
    pub(super) fn len(&self) -> usize {
        self.memory.len()
    }

    /// Adds `bytes` zero bytes and returns them. `None` if the block would exceed its limit.
    pub(super) fn grow(&mut self, bytes: usize) -> Option<&mut [u8]> {
        let start = self.len();
        if bytes > self.bytes_max - start {
            return None;
        }
        self.memory.resize(start + bytes, 0);
        Some(&mut self.memory[start..])
    }

    /// Adds bytes. `None` if the block would exceed its limit.
    #[cfg(any(feature = "parquet", test))]
    pub(super) fn append(&mut self, bytes: &[u8]) -> Option<()> {
        (bytes.len() <= self.bytes_max - self.len()).then(|| self.memory.extend_from_slice(bytes))
    }

    /// Adds the range of the next sample.
    ///
    /// # Panics
    /// Panics if the range is outside of the bytes added so far.
    pub(super) fn add_sample(&mut self, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.len(), "range outside of the block: {range:?}");
        self.samples.push(range);
    }

    /// Clears the buffer and reserves its maximum: the memory never moves, and pages that are not touched cost nothing.
    fn reset(&mut self, samples_max: usize) -> Result<(), SourceError> {
        self.memory.clear();
        self.samples.clear();
        let reserved = self.memory.try_reserve_exact(self.bytes_max);
        reserved
            .and_then(|()| self.samples.try_reserve_exact(samples_max))
            .map_err(|_| SourceError::OutOfMemory { bytes: self.bytes_max })
    }
}

#[cfg(test)]
mod tests;
