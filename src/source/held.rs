//! Owns the blocks of samples that a source holds in RAM while their samples are read, and which of them it gives up.
//! It must never know what a block is made of or where it comes from, and never hold more than it has said.

use std::fmt;
use std::mem::size_of;
use std::ops::Range;

use super::{Blocks, SourceError};
use crate::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, lock};
use crate::units::SampleId;

/// Blocks that are held: at most [`Blocks::held`], each in a place whose memory is used again for the next one.
///
/// Any number of threads may read. The first one that needs a block loads it, and those that come meanwhile wait for that
/// load alone. As long as no more threads read at once than there are places, no thread waits for anything else but for
/// its turn to load.
pub(super) struct HeldBlocks {
    blocks: Blocks,
    block_bytes_max: usize,
    samples_max: usize,
    loads_max: usize,
    table: Mutex<Table>,
    /// A load has ended, or somebody waits for a place and one may have become free.
    changed: Condvar,
}

struct Table {
    places: Vec<Place>,
    /// Loads under way.
    loads: usize,
    /// Readers that wait for a place or for their turn to load.
    waiting: usize,
    /// Goes up with each use of a place.
    clock: u64,
}

struct Place {
    /// The block that is in it, or that is being loaded into it.
    block: Option<u64>,
    state: State,
    /// `None` while a load has it.
    buffer: Option<Arc<BlockBuffer>>,
    /// Readers that copy from it or wait for its load. While there are some, it stays what it is.
    users: usize,
    used: u64,
    unread: Unread,
}

#[derive(Clone)]
enum State {
    Empty,
    Loading,
    Held,
    /// What to tell those that waited for it. Nobody else finds it.
    Failed(Arc<str>),
}

/// The samples of a block that have not been read since it was loaded.
struct Unread {
    bits: Vec<u64>,
    left: usize,
}

/// The memory that a block is loaded into.
pub(super) struct BlockBuffer {
    memory: Vec<u8>,
    bytes_max: usize,
    samples: Vec<Range<usize>>,
}

impl HeldBlocks {
    /// Holds some of `blocks`, the largest of which needs `block_bytes_max` bytes, and loads at most `loads_max` at once.
    ///
    /// # Panics
    /// Panics if `loads_max` is 0.
    pub(super) fn new(blocks: Blocks, block_bytes_max: u64, loads_max: usize) -> Self {
        assert!(loads_max > 0, "no block may be loaded");
        let count = |block| (blocks.samples(block).end - blocks.samples(block).start) as usize;
        let samples_max = (0..blocks.count()).map(count).max().unwrap_or(0);
        let places = (blocks.held() as u64).min(blocks.count()) as usize;
        let block_bytes_max = usize::try_from(block_bytes_max).unwrap_or(usize::MAX);
        let place = |_| Place {
            block: None,
            state: State::Empty,
            buffer: Some(Arc::new(BlockBuffer::new(block_bytes_max))),
            users: 0,
            used: 0,
            unread: Unread { bits: vec![0; samples_max.div_ceil(64)], left: 0 },
        };
        let table = Table { places: (0..places).map(place).collect(), loads: 0, waiting: 0, clock: 0 };
        HeldBlocks {
            blocks,
            block_bytes_max,
            samples_max,
            loads_max,
            table: Mutex::new(table),
            changed: Condvar::new(),
        }
    }

    /// Copies the bytes of a sample into `out`, after `load` has loaded its block, where it is not held.
    ///
    /// `load` is given the number of the block and empty memory for it; it has to put all its bytes there and to tell
    /// where each of its samples lies. No lock is held meanwhile.
    ///
    /// # Errors
    /// That of `load`, and [`SourceError::Block`] for those that waited for a load that has failed. The next one that
    /// needs the block tries again.
    ///
    /// # Panics
    /// Panics if `load` does, if it tells of another number of samples than the block has, or if `out` has another length
    /// than the sample. Others are none the worse for it: what has not been loaded is loaded by the next that needs it.
    pub(super) fn read(
        &self,
        id: SampleId,
        out: &mut [u8],
        load: impl FnOnce(u64, &mut BlockBuffer) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        let block = self.blocks.of(id);
        let sample = (id.0 - self.blocks.samples(block).start) as usize;
        let lease = match self.take(block)? {
            Taken::Held(lease) => lease,
            Taken::ToLoad(loading) => loading.run(load)?,
        };
        lease.copy(sample, out);
        Ok(())
    }

    /// Whether a block is held or being loaded.
    pub(super) fn holds(&self, block: u64) -> bool {
        lock(&self.table).find(block).is_some()
    }

    /// RAM that the places take at most, and the tables, bytes. That of [`Blocks`] is not in it.
    pub(super) fn held_bytes(&self) -> u64 {
        let places = (self.blocks.held() as u64).min(self.blocks.count());
        let tables = self.samples_max * size_of::<Range<usize>>() + self.samples_max.div_ceil(64) * size_of::<u64>();
        let place = tables + size_of::<Place>() + size_of::<BlockBuffer>() + 2 * size_of::<usize>();
        places.saturating_mul(self.block_bytes_max as u64 + place as u64)
    }

    /// A lease of the place with this block in it, or the task of loading it into one.
    fn take(&self, block: u64) -> Result<Taken<'_>, SourceError> {
        let mut table = lock(&self.table);
        loop {
            if let Some(at) = table.find(block) {
                table.places[at].users += 1;
                while matches!(table.places[at].state, State::Loading) {
                    table = self.wait(table);
                }
                if let State::Failed(cause) = table.places[at].state.clone() {
                    self.leave(table, at, None);
                    return Err(SourceError::Block { cause: cause.as_ref().into() });
                }
                let buffer = table.use_again(at);
                return Ok(Taken::Held(Lease { held: self, at, buffer, read: None }));
            }
            if table.loads < self.loads_max
                && let Some(at) = table.least_needed()
            {
                table.loads += 1;
                let place = &mut table.places[at];
                place.block = Some(block);
                place.state = State::Loading;
                place.users = 1;
                let buffer = place.buffer.take();
                return Ok(Taken::ToLoad(Loading { held: self, at, block, buffer, failure: PANICKED.into() }));
            }
            table.waiting += 1;
            table = self.wait(table);
            table.waiting -= 1;
        }
    }

    fn wait<'a>(&self, table: MutexGuard<'a, Table>) -> MutexGuard<'a, Table> {
        self.changed.wait(table).unwrap_or_else(PoisonError::into_inner)
    }

    /// A user of a place goes, after having read a sample or none.
    fn leave(&self, mut table: MutexGuard<'_, Table>, at: usize, read: Option<usize>) {
        let place = &mut table.places[at];
        if let Some(sample) = read {
            place.unread.remove(sample);
        }
        place.users -= 1;
        let is_done = matches!(place.state, State::Held) && place.unread.left == 0;
        if place.users == 0 && (is_done || matches!(place.state, State::Failed(_))) {
            place.block = None;
            place.state = State::Empty;
        }
        if table.waiting > 0 {
            self.changed.notify_all();
        }
    }
}

impl fmt::Debug for HeldBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldBlocks").field("block_bytes_max", &self.block_bytes_max).finish_non_exhaustive()
    }
}

/// What the readers are told that waited for a load which did not come back.
const PANICKED: &str = "reading it panicked in another thread, which says more";

impl Table {
    fn find(&self, block: u64) -> Option<usize> {
        self.places.iter().position(|place| place.block == Some(block))
    }

    /// The place to load the next block into: one that is empty, if possible one that has its memory already, or else
    /// the one that nobody has used for longest.
    fn least_needed(&self) -> Option<usize> {
        let is_free = |place: &Place| place.users == 0 && !matches!(place.state, State::Loading);
        let is_fresh = |place: &Place| place.buffer.as_ref().is_none_or(|buffer| buffer.memory.capacity() == 0);
        let free = self.places.iter().enumerate().filter(|(_, place)| is_free(place));
        free.min_by_key(|(_, place)| (place.block.is_some(), is_fresh(place), place.used)).map(|(at, _)| at)
    }

    fn use_again(&mut self, at: usize) -> Option<Arc<BlockBuffer>> {
        self.clock += 1;
        self.places[at].used = self.clock;
        self.places[at].buffer.clone()
    }
}

enum Taken<'a> {
    Held(Lease<'a>),
    ToLoad(Loading<'a>),
}

/// The right to copy from a place. It counts as one of its users.
struct Lease<'a> {
    held: &'a HeldBlocks,
    at: usize,
    buffer: Option<Arc<BlockBuffer>>,
    read: Option<usize>,
}

impl Lease<'_> {
    fn copy(mut self, sample: usize, out: &mut [u8]) {
        let Some(buffer) = &self.buffer else { unreachable!("a place that is held has its memory") };
        let bytes = &buffer.memory[buffer.samples[sample].clone()];
        assert_eq!(out.len(), bytes.len(), "the memory for a sample and its bytes in the block");
        out.copy_from_slice(bytes);
        self.read = Some(sample);
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        // Before others can see that nobody uses the place: whoever loads into it next needs the memory alone.
        self.buffer = None;
        self.held.leave(lock(&self.held.table), self.at, self.read);
    }
}

/// A load under way. Dropped before its end, as by a panic, it has failed.
struct Loading<'a> {
    held: &'a HeldBlocks,
    at: usize,
    block: u64,
    buffer: Option<Arc<BlockBuffer>>,
    failure: Arc<str>,
}

impl<'a> Loading<'a> {
    fn run(
        mut self,
        load: impl FnOnce(u64, &mut BlockBuffer) -> Result<(), SourceError>,
    ) -> Result<Lease<'a>, SourceError> {
        let Some(buffer) = self.buffer.as_mut().and_then(Arc::get_mut) else {
            unreachable!("nobody else uses the memory of a place without users")
        };
        let samples = self.held.blocks.samples(self.block);
        if let Err(error) = buffer.make_ready(self.held.samples_max).and_then(|()| load(self.block, buffer)) {
            self.failure = error.to_string().into();
            return Err(error);
        }
        let count = (samples.end - samples.start) as usize;
        assert_eq!(buffer.samples.len(), count, "samples of block {} that were loaded", self.block);
        let mut table = lock(&self.held.table);
        table.loads -= 1;
        let place = &mut table.places[self.at];
        place.unread.fill(count);
        place.state = State::Held;
        place.buffer = self.buffer.take();
        let buffer = table.use_again(self.at);
        self.held.changed.notify_all();
        Ok(Lease { held: self.held, at: self.at, buffer, read: None })
    }
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        let Some(buffer) = self.buffer.take() else { return };
        let mut table = lock(&self.held.table);
        table.loads -= 1;
        let place = &mut table.places[self.at];
        // No longer found, so that whoever comes next loads anew; those that wait for it are told.
        place.block = None;
        place.state = State::Failed(Arc::clone(&self.failure));
        place.buffer = Some(buffer);
        self.held.changed.notify_all();
        self.held.leave(table, self.at, None);
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

    /// Bytes that are in it.
    pub(super) fn len(&self) -> usize {
        self.memory.len()
    }

    /// The next `bytes` bytes of the block, zeroed, to be filled. `None` where the block would pass its bound.
    pub(super) fn grow(&mut self, bytes: usize) -> Option<&mut [u8]> {
        let start = self.len();
        if bytes > self.bytes_max - start {
            return None;
        }
        self.memory.resize(start + bytes, 0);
        Some(&mut self.memory[start..])
    }

    /// Adds bytes that lie elsewhere. `None` where the block would pass its bound.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Option<()> {
        (bytes.len() <= self.bytes_max - self.len()).then(|| self.memory.extend_from_slice(bytes))
    }

    /// Tells where the next sample of the block lies.
    ///
    /// # Panics
    /// Panics if it lies outside of the bytes that are there.
    pub(super) fn sample_at(&mut self, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.len(), "a sample outside of its block: {range:?}");
        self.samples.push(range);
    }

    /// Makes it empty, with all the memory that it will ever need: it is not moved afterwards, and what a block does not
    /// touch costs nothing.
    fn make_ready(&mut self, samples_max: usize) -> Result<(), SourceError> {
        self.memory.clear();
        self.samples.clear();
        let reserved = self.memory.try_reserve_exact(self.bytes_max);
        reserved
            .and_then(|()| self.samples.try_reserve_exact(samples_max))
            .map_err(|error| SourceError::Block { cause: format!("no memory for {} bytes: {error}", self.bytes_max) })
    }
}

#[cfg(test)]
mod tests;
