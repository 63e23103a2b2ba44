//! A global allocator that counts the bytes in use and their peak. Counting neither allocates nor blocks.

#![allow(unsafe_code, reason = "a global allocator is an unsafe trait; this one counts and calls the system's")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;

use crate::sync::{AtomicU64, Ordering};
use crate::units::ByteCount;

/// The system's allocator, with a count of the bytes in use ([`heap`]).
///
/// Programs install it, libraries do not. Counting is one addition to a number that all threads share and one
/// comparison with another: 10 to 20 ns for an allocation and its release with two threads that do nothing else. A
/// loader in its steady state allocates nothing for a sample, and a step of training a few thousand times in many
/// milliseconds.
///
/// ```
/// #[global_allocator]
/// static HEAP: feedstock::host::CountingAllocator = feedstock::host::CountingAllocator;
///
/// let before = feedstock::host::heap().expect("it is installed").in_use;
/// let block = vec![1u8; 1 << 20];
/// let during = feedstock::host::heap().expect("it is installed").in_use;
/// assert!(during.0 >= before.0 + block.len() as u64);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct CountingAllocator;

/// Heap memory of the program's Rust code, in bytes as requested.
///
/// Not included: memory of libraries in C (libjpeg-turbo, the driver of a GPU), memory that is mapped or page-locked
/// directly (slots and other memory of a loader, see [`Loader::stats`](crate::Loader::stats)), stacks, and memory that
/// the allocator needs or keeps for itself. [`malloc_info`](super::malloc_info()) covers the last and the libraries;
/// [`process_memory`](super::process_memory) covers all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Heap {
    /// Bytes in use now.
    pub in_use: ByteCount,
    /// Most bytes in use at once since the start or [`reset_heap_peak`].
    pub peak: ByteCount,
}

/// Reads the counts; `None` if the program's allocator is not [`CountingAllocator`].
///
/// The two numbers are read one after the other: beside threads that allocate they are of two moments.
#[must_use]
pub fn heap() -> Option<Heap> {
    let heap = COUNTS.read();
    if heap.peak > ByteCount::ZERO {
        return Some(heap);
    }
    // Either nothing is counted, or nothing has been in use since the last reset: one byte tells the two apart.
    let _byte = black_box(Box::new(0u8));
    let heap = COUNTS.read();
    (heap.peak > ByteCount::ZERO).then_some(heap)
}

/// Resets [`Heap::peak`] to the bytes in use now. Allocations of other threads meanwhile may be missed.
///
/// ```
/// # #[global_allocator]
/// # static HEAP: feedstock::host::CountingAllocator = feedstock::host::CountingAllocator;
/// drop(vec![1u8; 1 << 20]);
/// feedstock::host::reset_heap_peak();
/// drop(vec![1u8; 1 << 10]);
/// let heap = feedstock::host::heap().expect("it is installed");
/// assert!(heap.peak.0 < heap.in_use.0 + (1 << 20));
/// ```
pub fn reset_heap_peak() {
    COUNTS.reset_peak();
}

static COUNTS: Counts = Counts { in_use: AtomicU64::new(0), peak: AtomicU64::new(0) };

/// On a cache line of its own, so that no other data moves with it.
#[repr(align(128))]
#[derive(Debug)]
struct Counts {
    in_use: AtomicU64,
    peak: AtomicU64,
}

impl Counts {
    fn take(&self, bytes: usize) {
        let bytes = bytes as u64;
        // Wrapping would take 2^64 bytes in use. Nothing else is ordered by these numbers.
        let now = self.in_use.fetch_add(bytes, Ordering::Relaxed).wrapping_add(bytes);
        // Most allocations are no new peak and write nothing here.
        if now > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(now, Ordering::Relaxed);
        }
    }

    fn give(&self, bytes: usize) {
        // Never below zero: a block is counted before its address is known to the thread that frees it.
        self.in_use.fetch_sub(bytes as u64, Ordering::Relaxed);
    }

    fn resize(&self, from: usize, to: usize) {
        if to >= from { self.take(to - from) } else { self.give(from - to) }
    }

    fn read(&self) -> Heap {
        let in_use = self.in_use.load(Ordering::Relaxed);
        Heap { in_use: ByteCount(in_use), peak: ByteCount(self.peak.load(Ordering::Relaxed).max(in_use)) }
    }

    fn reset_peak(&self) {
        self.peak.store(self.in_use.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

// SAFETY: every call is passed to `System` unchanged; counting neither allocates, unwinds nor touches the memory.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `alloc`, which is that of `System`.
        let block = unsafe { System.alloc(layout) };
        if !block.is_null() {
            COUNTS.take(layout.size());
        }
        block
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as for `alloc`. The system's own does not touch pages that are zero already.
        let block = unsafe { System.alloc_zeroed(layout) };
        if !block.is_null() {
            COUNTS.take(layout.size());
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // Before it is given back: afterwards another thread may have taken and counted it.
        COUNTS.give(layout.size());
        // SAFETY: the block came from `System` with this layout.
        unsafe { System.dealloc(block, layout) };
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the block came from `System` with this layout, and the caller vouches for the new size.
        let moved = unsafe { System.realloc(block, layout, size) };
        // A failure leaves the old block as it was. Old and new block side by side, for the time of a copy, are not
        // counted: the system moves pages where it can.
        if !moved.is_null() {
            COUNTS.resize(layout.size(), size);
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts() -> Counts {
        Counts { in_use: AtomicU64::new(0), peak: AtomicU64::new(0) }
    }

    #[derive(Clone, Copy, Debug)]
    enum Act {
        Take(usize),
        Give(usize),
        Resize(usize, usize),
        Reset,
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            4 => (1usize..1 << 20).prop_map(Act::Take),
            3 => any::<usize>().prop_map(Act::Give),
            2 => (any::<usize>(), 1usize..1 << 20).prop_map(|(which, to)| Act::Resize(which, to)),
            1 => Just(Act::Reset),
        ]
    }

    proptest! {
        #[test]
        fn bytes_in_use_and_their_peak_are_exact(acts in prop::collection::vec(act(), 0..200)) {
            let counts = counts();
            let (mut blocks, mut peak) = (Vec::<usize>::new(), 0);
            for act in acts {
                match act {
                    Act::Take(bytes) => {
                        counts.take(bytes);
                        blocks.push(bytes);
                    }
                    Act::Give(which) if !blocks.is_empty() => counts.give(blocks.swap_remove(which % blocks.len())),
                    Act::Resize(which, to) if !blocks.is_empty() => {
                        let which = which % blocks.len();
                        counts.resize(std::mem::replace(&mut blocks[which], to), to);
                    }
                    Act::Reset => {
                        counts.reset_peak();
                        peak = 0;
                    }
                    Act::Give(_) | Act::Resize(..) => {}
                }
                let in_use = blocks.iter().sum::<usize>() as u64;
                peak = peak.max(in_use);
                prop_assert_eq!(counts.read(), Heap { in_use: ByteCount(in_use), peak: ByteCount(peak) });
            }
        }
    }

    #[test]
    fn threads_lose_nothing_between_them() {
        const THREADS: u64 = 4;
        const BLOCK: usize = 1000;
        let counts = counts();
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..50_000 {
                        counts.take(BLOCK);
                        counts.give(BLOCK);
                    }
                    counts.take(BLOCK);
                });
            }
        });
        let heap = counts.read();
        assert_eq!(heap.in_use, ByteCount(THREADS * BLOCK as u64));
        assert!(heap.peak >= heap.in_use && heap.peak <= ByteCount(2 * THREADS * BLOCK as u64), "{heap:?}");
    }

    #[test]
    fn another_allocator_is_reported_as_none() {
        // The tests of the library have not installed it; `tests/heap.rs` has.
        assert_eq!(heap(), None);
    }
}
