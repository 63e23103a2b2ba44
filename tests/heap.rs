//! The counting allocator in a program that has installed it: exact to the byte through every allocator call.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::hint::black_box;
use std::sync::Mutex;

use feedstock::host::{CountingAllocator, heap, reset_heap_peak};

#[global_allocator]
static HEAP: CountingAllocator = CountingAllocator;

/// Counts are the process's, so one test at a time; the harness itself takes a few KiB now and then.
static ALONE: Mutex<()> = Mutex::new(());
const HARNESS: u64 = 256 << 10;
const MIB: usize = 1 << 20;

fn in_use() -> u64 {
    heap().unwrap().in_use.0
}

#[track_caller]
fn assert_near(counted: u64, expected: u64) {
    assert!(counted.abs_diff(expected) < HARNESS, "{counted} bytes are counted, expected {expected}");
}

#[test]
fn blocks_are_counted_through_their_life() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let before = in_use();
    let mut block: Vec<u8> = vec![1; 10 * MIB];
    assert_near(in_use(), before + 10 * MIB as u64);
    block.reserve_exact(20 * MIB);
    assert_near(in_use(), before + 30 * MIB as u64);
    block.truncate(5 * MIB);
    block.shrink_to_fit();
    assert_near(in_use(), before + 5 * MIB as u64);
    let zeroed = black_box(vec![0u64; MIB]);
    assert_near(in_use(), before + 13 * MIB as u64);
    drop((block, zeroed));
    assert_near(in_use(), before);
}

#[test]
fn the_peak_stays_until_it_is_reset() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    reset_heap_peak();
    let before = in_use();
    drop(black_box(vec![1u8; 64 * MIB]));
    drop(black_box(vec![1u8; 8 * MIB]));
    let after = heap().unwrap();
    assert_near(after.in_use.0, before);
    assert_near(after.peak.0, before + 64 * MIB as u64);
    reset_heap_peak();
    assert_near(heap().unwrap().peak.0, in_use());
}

#[test]
fn zero_sized_values_are_not_counted() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let before = in_use();
    let nothing: Vec<Vec<()>> = (0..1000).map(|_| vec![(); 1000]).collect();
    let boxes: Vec<Box<()>> = (0..1000).map(|_| Box::new(())).collect();
    // The two lists themselves, and nothing for what is in them.
    assert_near(in_use(), before + 1000 * (size_of::<Vec<()>>() + size_of::<Box<()>>()) as u64);
    drop(black_box((nothing, boxes)));
}

#[test]
#[allow(unsafe_code, reason = "blocks of an odd alignment are made by hand")]
fn an_alignment_is_kept_and_costs_nothing_in_the_count() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for align in [1, 16, 64, 4096, 2 * MIB] {
        let before = in_use();
        let layout = Layout::from_size_align(3 * MIB, align).unwrap();
        // SAFETY: the size is not zero.
        let blocks = [unsafe { alloc(layout) }, unsafe { alloc_zeroed(layout) }];
        assert!(blocks.iter().all(|block| !block.is_null() && block.addr() % align == 0), "{align}");
        assert_near(in_use(), before + 6 * MIB as u64);
        // SAFETY: the block was made with this layout and is written within it.
        unsafe { blocks[0].wrapping_add(MIB).write(7) };
        // SAFETY: as above, and the new size is not zero.
        let grown = unsafe { realloc(blocks[0], layout, 7 * MIB) };
        assert!(!grown.is_null() && grown.addr() % align == 0, "{align}");
        // SAFETY: within the block, and written above.
        assert_eq!(unsafe { grown.wrapping_add(MIB).read() }, 7);
        assert_near(in_use(), before + 10 * MIB as u64);
        // SAFETY: it has this size now.
        unsafe { dealloc(grown, Layout::from_size_align(7 * MIB, align).unwrap()) };
        // SAFETY: it was made with this layout.
        unsafe { dealloc(blocks[1], layout) };
        assert_near(in_use(), before);
    }
}

#[test]
#[allow(unsafe_code, reason = "an allocation that must fail is made by hand")]
fn refused_allocations_are_not_counted() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let before = heap().unwrap();
    let layout = Layout::from_size_align(isize::MAX as usize / 2, 1).unwrap();
    // SAFETY: the size is not zero.
    let refused = [unsafe { alloc(layout) }, unsafe { alloc_zeroed(layout) }];
    assert!(refused.iter().all(|block| block.is_null()));
    let small = Layout::from_size_align(MIB, 1).unwrap();
    // SAFETY: the size is not zero.
    let block = unsafe { alloc(small) };
    // SAFETY: the block was made with this layout.
    let refused = unsafe { realloc(block, small, isize::MAX as usize / 2) };
    assert!(refused.is_null());
    assert_near(in_use(), before.in_use.0 + MIB as u64);
    // SAFETY: what could not grow is as it was.
    unsafe { dealloc(block, small) };
    assert_near(heap().unwrap().in_use.0, before.in_use.0);
    assert!(heap().unwrap().peak.0 < before.peak.0 + 2 * MIB as u64);
}
