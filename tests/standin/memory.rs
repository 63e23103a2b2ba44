//! Device memory and pinned memory, with the operations that last accessed each byte. An operation is checked when it
//! is enqueued: it must be ordered after the earlier ones.
//!
//! The order of two operations follows from the calls that enqueued them, whatever the executor does later. So a
//! missing wait is found every time, not only when the bytes happen to come out wrong.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::clock::Clock;

pub const PAGE: usize = 4096;
/// Guard bytes after the end of every block.
const GUARD: usize = 256;
const GUARD_FILL: u8 = 0x9D;
const FREED_FILL: u8 = 0xDD;
/// Freed ranges that are remembered, so that a later use can be told by its name.
const GRAVES_BYTES_MAX: usize = 32 << 20;

/// Page-aligned memory with a guard after its end.
///
/// Every operation that will touch it holds an `Arc`, so that a program which frees too early gets a violation in words
/// and not a crash of the process that should report it.
#[derive(Debug)]
pub struct Block {
    base: *mut u8,
    len: usize,
    buried: AtomicBool,
}

// SAFETY: it is plain bytes behind a pointer that nothing else owns; who may touch them when is what is under test.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    pub fn new(len: usize, fill: u8) -> Arc<Self> {
        let layout = Self::layout(len);
        // SAFETY: the guard makes the layout longer than nothing.
        let base = unsafe { alloc(layout) };
        if base.is_null() {
            handle_alloc_error(layout);
        }
        // SAFETY: the block is this long, and nothing else refers to it.
        unsafe { base.write_bytes(fill, len) };
        // SAFETY: the layout has room for the guard after `len`.
        let guard = unsafe { base.add(len) };
        // SAFETY: as above.
        unsafe { guard.write_bytes(GUARD_FILL, GUARD) };
        Arc::new(Block { base, len, buried: AtomicBool::new(false) })
    }

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len + GUARD, PAGE).expect("sizes are below what a machine has")
    }

    pub fn base(&self) -> usize {
        self.base as usize
    }

    pub fn guard_is_intact(&self) -> bool {
        (self.len..self.len + GUARD).all(|at| {
            // SAFETY: the guard lies within the layout.
            let byte = unsafe { self.base.add(at) };
            // SAFETY: as above, and it was written when the block was made.
            (unsafe { byte.read_volatile() }) == GUARD_FILL
        })
    }

    /// Puts the guard back, after damage to it has been told.
    pub fn mend_guard(&self) {
        // SAFETY: the guard lies within the layout.
        let guard = unsafe { self.base.add(self.len) };
        // SAFETY: as above.
        unsafe { guard.write_bytes(GUARD_FILL, GUARD) };
    }

    /// Returns true if it was freed, which changes all of its bytes.
    pub fn is_buried(&self) -> bool {
        self.buried.load(Ordering::SeqCst)
    }

    /// Makes what is freed look freed.
    pub fn bury(&self) {
        self.buried.store(true, Ordering::SeqCst);
        // SAFETY: the block is this long; an operation still at work on it is a violation that has been reported.
        unsafe { self.base.write_bytes(FREED_FILL, self.len) };
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: made by `new` with this layout.
        unsafe { dealloc(self.base, Self::layout(self.len)) };
    }
}

/// Access of an operation to a range of addresses.
#[derive(Clone, Copy, Debug)]
pub struct Touch {
    pub start: usize,
    pub end: usize,
    pub write: bool,
}

/// An operation: its number on its stream, and its description.
#[derive(Clone, Debug)]
pub struct Stamp {
    pub stream: usize,
    pub number: u64,
    pub what: Arc<str>,
}

#[derive(Debug)]
struct Access {
    touch: Touch,
    stamp: Stamp,
}

#[derive(Debug)]
pub struct Allocation {
    /// In the order of allocation, from 1: what violations call it by.
    pub number: u64,
    pub base: usize,
    pub len: usize,
    pub flags: u32,
    pub block: Arc<Block>,
    /// Accesses that a later operation could still race with.
    accesses: Vec<Access>,
    /// Bytes that were written, as disjoint ranges in order.
    written: Vec<(usize, usize)>,
}

impl Allocation {
    fn end(&self) -> usize {
        self.base + self.len
    }

    fn was_written(&self, touch: Touch) -> bool {
        self.written.iter().any(|&(start, end)| start < touch.end && touch.start < end)
    }

    fn note_written(&mut self, touch: Touch) {
        let (mut start, mut end) = (touch.start, touch.end);
        self.written.retain(|&(s, e)| {
            let apart = e < start || end < s;
            if !apart {
                start = start.min(s);
                end = end.max(e);
            }
            apart
        });
        self.written.push((start, end));
        self.written.sort_unstable();
    }
}

/// All allocations of one kind on one device.
#[derive(Debug)]
pub struct Memory {
    /// "allocation" or "pinned allocation".
    kind: &'static str,
    /// True if the host cannot write it unseen by the clocks, so that reading unwritten bytes is a violation.
    all_writes_are_seen: bool,
    alive: BTreeMap<usize, Allocation>,
    /// Freed allocations by their numbers, oldest first. Their memory stays, so that no other gets their addresses.
    graves: VecDeque<(Arc<Block>, u64)>,
    pub ever: u64,
    pub bytes: usize,
    pub bytes_peak: usize,
}

impl Memory {
    pub const fn device() -> Self {
        Self::new("allocation", true)
    }

    pub const fn pinned() -> Self {
        Self::new("pinned allocation", false)
    }

    const fn new(kind: &'static str, all_writes_are_seen: bool) -> Self {
        Memory {
            kind,
            all_writes_are_seen,
            alive: BTreeMap::new(),
            graves: VecDeque::new(),
            ever: 0,
            bytes: 0,
            bytes_peak: 0,
        }
    }

    pub fn allocate(&mut self, len: usize, fill: u8, flags: u32) -> Arc<Block> {
        let block = Block::new(len, fill);
        let base = block.base();
        self.ever += 1;
        self.bytes += len;
        self.bytes_peak = self.bytes_peak.max(self.bytes);
        let number = self.ever;
        let (accesses, written) = (Vec::new(), Vec::new());
        let allocation = Allocation { number, base, len, flags, block: Arc::clone(&block), accesses, written };
        self.alive.insert(base, allocation);
        block
    }

    /// Takes out the allocation that starts here.
    pub fn remove(&mut self, base: usize) -> Option<Allocation> {
        let gone = self.alive.remove(&base)?;
        self.bytes -= gone.len;
        self.graves.push_back((Arc::clone(&gone.block), gone.number));
        while self.graves.iter().map(|(block, _)| block.len).sum::<usize>() > GRAVES_BYTES_MAX {
            self.graves.pop_front();
        }
        Some(gone)
    }

    pub fn remove_all(&mut self) -> Vec<Allocation> {
        let bases: Vec<usize> = self.alive.keys().copied().collect();
        bases.into_iter().filter_map(|base| self.remove(base)).collect()
    }

    pub fn alive(&self) -> impl Iterator<Item = &Allocation> {
        self.alive.values()
    }

    pub fn at(&self, address: usize) -> Option<&Allocation> {
        self.alive.range(..=address).next_back().map(|(_, found)| found).filter(|found| address < found.end())
    }

    /// The number of the freed allocation that this address was in.
    pub fn grave_at(&self, address: usize) -> Option<u64> {
        let inside = |block: &Block| (block.base()..block.base() + block.len).contains(&address);
        self.graves.iter().find(|(block, _)| inside(block)).map(|&(_, number)| number)
    }

    /// The allocation that holds all of a range, or words about why none does.
    pub fn hold(&self, address: usize, len: usize) -> Result<&Allocation, String> {
        let Some(found) = self.at(address) else {
            return Err(match self.grave_at(address) {
                Some(number) => format!("{address:#x} lies in {} {number}, which has been freed", self.kind),
                None => format!("{address:#x} lies in no {}", self.kind),
            });
        };
        if len > found.end() - address {
            let (kind, number, beyond) = (self.kind, found.number, len - (found.end() - address));
            return Err(format!("{len} bytes at {address:#x} run {beyond} bytes beyond the end of {kind} {number}"));
        }
        Ok(found)
    }

    /// Notes what an operation does, whose clock this is, and tells what it is not ordered after.
    pub fn touch(&mut self, touch: Touch, stamp: &Stamp, clock: &Clock, host: &Clock) -> Vec<String> {
        let (kind, all_writes_are_seen) = (self.kind, self.all_writes_are_seen);
        let Some((_, found)) = self.alive.range_mut(..=touch.start).next_back() else { return Vec::new() };
        let mut wrong = Vec::new();
        if !touch.write && all_writes_are_seen && !found.was_written(touch) {
            let (what, stream, number) = (&stamp.what, stamp.stream, found.number);
            wrong.push(format!("{what} on stream {stream} reads {kind} {number} where nothing has ever written"));
        }
        for old in &found.accesses {
            let overlaps = old.touch.start < touch.end && touch.start < old.touch.end;
            let conflicts = overlaps && (old.touch.write || touch.write);
            if conflicts && clock.get(old.stamp.stream) < old.stamp.number {
                let does = if touch.write { "writes" } else { "reads" };
                let did = if old.touch.write { "writes" } else { "reads" };
                let from = touch.start.max(old.touch.start) - found.base;
                let to = touch.end.min(old.touch.end) - found.base;
                wrong.push(format!(
                    "{} on stream {}, which {does} bytes {from}..{to} of {kind} {}, is not ordered after the {} on stream \
                     {} that {did} them",
                    stamp.what, stamp.stream, found.number, old.stamp.what, old.stamp.stream
                ));
            }
        }
        // What the host knows to be over cannot race with anything that is enqueued from now on; what this operation
        // covers and comes after can only race where this operation does as well.
        found.accesses.retain(|old| {
            let over = old.stamp.number <= host.get(old.stamp.stream);
            let covered = touch.start <= old.touch.start && old.touch.end <= touch.end;
            let ordered = old.stamp.number <= clock.get(old.stamp.stream);
            let same = !old.touch.write && old.stamp.stream == stamp.stream;
            !over && !(covered && ordered && (touch.write || same))
        });
        found.accesses.push(Access { touch, stamp: stamp.clone() });
        if touch.write {
            found.note_written(touch);
        }
        wrong
    }

    /// Violations in the way this allocation was freed.
    pub fn judge_free(&self, gone: &Allocation, host: &Clock) -> Vec<String> {
        let (kind, number) = (self.kind, gone.number);
        let mut wrong = Vec::new();
        for access in &gone.accesses {
            let Stamp { stream, number: at, what } = &access.stamp;
            if *at > host.get(*stream) {
                wrong.push(format!(
                    "{kind} {number} is freed while the host does not know the {what} on stream {stream} to be over"
                ));
            }
        }
        if !gone.block.guard_is_intact() {
            wrong.push(format!("something wrote beyond the end of {kind} {number} ({} bytes)", gone.len));
        }
        wrong
    }
}
