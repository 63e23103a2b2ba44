//! Tests of the block cache: many threads, failing loads, and the memory limit.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use super::*;
use crate::rng::mix64;
use crate::sync::{AtomicUsize, Ordering};

/// Timeout of waits: long enough for a busy machine; only a failing test waits this long.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The bytes of a sample: length and content depend on its id.
fn bytes_of(id: u64) -> Vec<u8> {
    (0..id % 23 * 3).map(|i| mix64(id ^ i << 32) as u8).collect()
}

/// Blocks of 1 to 9 samples each.
fn blocks(count: u64, shuffle_window: usize) -> Blocks {
    let mut end = 0;
    let ends: Vec<u64> = (0..count)
        .map(|block| {
            end += 1 + mix64(block) % 9;
            end
        })
        .collect();
    Blocks::new(ends, shuffle_window)
}

fn load_from(blocks: &Blocks, block: u64, buffer: &mut BlockBuffer) -> Result<(), SourceError> {
    for id in blocks.samples(block) {
        let bytes = bytes_of(id);
        let start = buffer.len();
        // As a stream is read, with a byte between samples.
        buffer.grow(bytes.len() + 1).unwrap()[..bytes.len()].copy_from_slice(&bytes);
        buffer.add_sample(start..start + bytes.len());
    }
    Ok(())
}

fn block_bytes_max(blocks: &Blocks) -> u64 {
    let bytes = |block| blocks.samples(block).map(|id| bytes_of(id).len() as u64 + 1).sum();
    (0..blocks.count()).map(bytes).max().unwrap_or(0)
}

fn new(blocks: &Blocks, loads_max: usize) -> BlockCache {
    BlockCache::new(blocks.clone(), block_bytes_max(blocks), loads_max)
}

/// Reads a sample and compares it.
fn read(
    cache: &BlockCache,
    id: u64,
    load: impl FnOnce(u64, &mut BlockBuffer) -> Result<(), SourceError>,
) -> Result<(), SourceError> {
    let mut out = vec![0xEE; bytes_of(id).len()];
    cache.read(SampleId(id), &mut out, load)?;
    assert_eq!(out, bytes_of(id), "sample {id}");
    Ok(())
}

fn shuffled(len: u64, seed: u64) -> Vec<u64> {
    let mut ids: Vec<u64> = (0..len).collect();
    ids.sort_by_key(|&id| mix64(id ^ seed << 40));
    ids
}

fn broken() -> SourceError {
    SourceError::damaged("x".as_ref(), None, "broken for this test")
}

/// Allocated bytes of all slots, and the number of slots with memory.
fn allocated(cache: &BlockCache) -> (u64, usize) {
    let table = lock(&cache.table);
    let buffers = || table.slots.iter().filter_map(|slot| slot.buffer.as_ref());
    let bytes = |buffer: &BlockBuffer| buffer.memory.capacity() + buffer.samples.capacity() * size_of::<Range<usize>>();
    (
        buffers().map(|buffer| bytes(buffer) as u64).sum(),
        buffers().filter(|buffer| buffer.memory.capacity() > 0).count(),
    )
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..TIMEOUT.as_millis() {
        if is_so() {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
    panic!("not within {TIMEOUT:?}: {what}");
}

/// Waits until the slot of a block has so many readers.
fn wait_for_readers(cache: &BlockCache, block: u64, readers: usize) {
    wait_until("readers wait for a block", || {
        let table = lock(&cache.table);
        table.find(block).is_some_and(|at| table.slots[at].readers == readers)
    });
}

#[test]
fn blocks_read_in_order_are_loaded_once_into_one_slot() {
    let blocks = blocks(40, 3);
    let cache = new(&blocks, 1);
    let loads = AtomicUsize::new(0);
    for id in 0..blocks.sample_count() {
        let load = |block, buffer: &mut BlockBuffer| {
            loads.fetch_add(1, Ordering::Relaxed);
            load_from(&blocks, block, buffer)
        };
        read(&cache, id, load).unwrap();
    }
    assert_eq!(loads.into_inner(), 40);
    // Each block was dropped after its last sample.
    assert_eq!(allocated(&cache).1, 1);
    assert!(lock(&cache.table).slots.iter().all(|slot| slot.block.is_none() && slot.readers == 0));
}

#[test]
fn the_least_recently_used_block_is_evicted() {
    let blocks = Blocks::new([2, 4, 6, 8], 1);
    let cache = new(&blocks, 1);
    let loads = std::cell::RefCell::new(Vec::new());
    let read = |id| {
        let load = |block, buffer: &mut BlockBuffer| {
            loads.borrow_mut().push(block);
            load_from(&blocks, block, buffer)
        };
        read(&cache, id, load).unwrap();
    };
    // Two slots. Reading a sample again does not count it twice.
    [0, 2, 0, 4].into_iter().for_each(read);
    assert!(cache.contains(0) && cache.contains(2) && !cache.contains(1));
    [0, 1, 6, 4].into_iter().for_each(read);
    assert_eq!(*loads.borrow(), [0, 1, 2, 3], "0 was evicted, so 2 is still cached");
    assert!(cache.contains(2) && cache.contains(3) && !cache.contains(0));
}

#[test]
fn many_threads_stay_within_the_memory_limit() {
    for (shuffle_window, loads_max, threads) in [(1, 1, 8), (1, 2, 3), (2, 2, 4), (3, 8, 8)] {
        let blocks = blocks(60, shuffle_window);
        let cache = new(&blocks, loads_max);
        let (in_progress, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (loading, memories) = (Mutex::new(HashSet::new()), Mutex::new(HashSet::new()));
        let load = |block, buffer: &mut BlockBuffer| {
            most.fetch_max(in_progress.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            assert!(lock(&loading).insert(block), "block {block} is loaded twice at once");
            thread::yield_now();
            let done = load_from(&blocks, block, buffer);
            lock(&memories).insert(buffer.memory.as_ptr() as usize);
            lock(&loading).remove(&block);
            in_progress.fetch_sub(1, Ordering::SeqCst);
            done
        };
        thread::scope(|scope| {
            for thread in 0..threads {
                let (cache, load, ids) = (&cache, &load, shuffled(blocks.sample_count(), thread));
                scope.spawn(move || ids.into_iter().for_each(|id| read(cache, id, load).unwrap()));
            }
        });
        let slots = 2 * shuffle_window;
        assert!(most.into_inner() <= loads_max);
        // The same memory is reused.
        assert!(lock(&memories).len() <= slots, "{} allocations in {slots} slots", lock(&memories).len());
        let (bytes, used) = allocated(&cache);
        assert!(used <= slots && bytes <= cache.capacity_bytes(), "{bytes} bytes, limit {}", cache.capacity_bytes());
        let table = lock(&cache.table);
        assert_eq!((table.loads, table.waiting), (0, 0));
        assert!(table.slots.iter().all(|slot| slot.readers == 0));
    }
}

#[test]
fn failing_loads_do_not_affect_others() {
    let blocks = blocks(30, 2);
    let cache = new(&blocks, 3);
    let tries = AtomicUsize::new(0);
    let load = |block, buffer: &mut BlockBuffer| {
        load_from(&blocks, block, buffer)?;
        match tries.fetch_add(1, Ordering::Relaxed) % 5 {
            1 => Err(broken()),
            3 => panic!("a panic of this test"),
            _ => Ok(()),
        }
    };
    let failures: usize = thread::scope(|scope| {
        let readers: Vec<_> = (0..6u64)
            .map(|thread| {
                let (cache, load, ids) = (&cache, &load, shuffled(blocks.sample_count(), thread));
                scope.spawn(move || {
                    let failed =
                        |&id: &u64| !matches!(catch_unwind(AssertUnwindSafe(|| read(cache, id, load))), Ok(Ok(())));
                    ids.into_iter().filter(failed).count()
                })
            })
            .collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).sum()
    });
    assert!(failures > 0, "nothing failed");
    // Once loads succeed, so does every read.
    for id in 0..blocks.sample_count() {
        read(&cache, id, |block, buffer| load_from(&blocks, block, buffer)).unwrap();
    }
    let table = lock(&cache.table);
    assert_eq!((table.loads, table.waiting), (0, 0));
    assert!(table.slots.iter().all(|slot| slot.readers == 0 && slot.buffer.is_some()));
}

type Read = Result<(), SourceError>;

/// Starts a load that blocks, starts readers of the same block, then ends the load. Returns all results.
fn together(
    cache: &BlockCache,
    blocks: &Blocks,
    end: impl FnOnce() -> Result<(), SourceError> + Send,
) -> (thread::Result<Read>, Vec<Read>) {
    let (go, wait): (Sender<()>, Receiver<()>) = channel();
    thread::scope(|scope| {
        let first = scope.spawn(move || {
            catch_unwind(AssertUnwindSafe(|| {
                read(cache, 0, |block, buffer| {
                    wait.recv_timeout(TIMEOUT).unwrap();
                    load_from(blocks, block, buffer)?;
                    end()
                })
            }))
        });
        wait_for_readers(cache, 0, 1);
        let others: Vec<_> =
            (0..3).map(|_| scope.spawn(|| read(cache, 0, |_, _| panic!("a second load of the same block")))).collect();
        wait_for_readers(cache, 0, 4);
        go.send(()).unwrap();
        let others = others.into_iter().map(|other| other.join().expect("readers wait for the load")).collect();
        (first.join().unwrap(), others)
    })
}

#[test]
fn concurrent_readers_load_a_block_once() {
    let blocks = Blocks::new([4, 6], 1);
    let cache = new(&blocks, 2);
    let (first, others) = together(&cache, &blocks, || Ok(()));
    first.unwrap().unwrap();
    others.into_iter().for_each(|other| other.unwrap());
    assert!(cache.contains(0));
}

#[test]
fn a_failed_load_fails_its_waiters_and_is_retried() {
    let blocks = Blocks::new([4, 6], 1);
    let cache = new(&blocks, 2);
    let (first, others) = together(&cache, &blocks, || Err(broken()));
    assert!(matches!(first.unwrap(), Err(SourceError::Damaged { .. })));
    for other in others {
        let text = other.unwrap_err().to_string();
        assert!(text.contains("broken for this test"), "{text}");
    }
    assert!(!cache.contains(0));
    read(&cache, 0, |block, buffer| load_from(&blocks, block, buffer)).unwrap();

    let cache = new(&blocks, 2);
    let (first, others) = together(&cache, &blocks, || panic!("a panic of this test"));
    assert!(first.is_err());
    for other in others {
        assert!(matches!(other, Err(SourceError::BlockPanicked)), "{other:?}");
    }
    read(&cache, 0, |block, buffer| load_from(&blocks, block, buffer)).unwrap();
}

#[test]
fn different_blocks_load_concurrently_up_to_the_limit() {
    let blocks = Blocks::new([1, 2, 3, 4], 2);
    let cache = new(&blocks, 2);
    let (here, arrivals) = channel();
    thread::scope(|scope| {
        let goes: Vec<Sender<()>> = (0..3)
            .map(|id| {
                let (go, wait) = channel();
                let (cache, blocks, here) = (&cache, &blocks, here.clone());
                scope.spawn(move || {
                    read(cache, id, |block, buffer| {
                        here.send(id).unwrap();
                        wait.recv_timeout(TIMEOUT).unwrap();
                        load_from(blocks, block, buffer)
                    })
                    .unwrap();
                });
                go
            })
            .collect();
        let two = [arrivals.recv_timeout(TIMEOUT).unwrap(), arrivals.recv_timeout(TIMEOUT).unwrap()];
        wait_until("the third waits for its turn", || lock(&cache.table).waiting == 1);
        assert_eq!(lock(&cache.table).loads, 2);
        goes[two[0] as usize].send(()).unwrap();
        // Only now does the third start. A send to one that has ended fails, which does not matter.
        arrivals.recv_timeout(TIMEOUT).unwrap();
        for go in goes {
            let _ = go.send(());
        }
    });
}

#[test]
fn a_slot_with_a_reader_is_not_reused() {
    let blocks = Blocks::new([2, 4, 6, 8, 10], 1);
    let cache = new(&blocks, 1);
    let load = |block, buffer: &mut BlockBuffer| load_from(&blocks, block, buffer);
    read(&cache, 1, load).unwrap();
    let Ok(Lookup::Hit(guard)) = cache.lookup(0) else { panic!("block 0 is cached") };
    // Other reads go through the remaining slot.
    for id in [9, 2, 5, 7, 9, 3] {
        read(&cache, id, load).unwrap();
    }
    assert!(cache.contains(0));
    guard.copy(0, &mut bytes_of(0));
    assert!(!cache.contains(0), "both of its samples have been read");
}

#[test]
fn a_block_beyond_its_limit_takes_no_more_memory() {
    let blocks = Blocks::new([1], 1);
    let cache = BlockCache::new(blocks, 100, 1);
    let result = cache.read(SampleId(0), &mut [], |_, buffer| {
        assert!(buffer.grow(60).is_some_and(|memory| memory == [0; 60]));
        assert!(buffer.grow(41).is_none() && buffer.append(&[0; 41]).is_none());
        assert_eq!(buffer.len(), 60);
        assert!(buffer.append(&[7; 40]).is_some() && buffer.grow(1).is_none());
        Err(broken())
    });
    assert!(result.is_err());
    assert_eq!(allocated(&cache), (100 + size_of::<Range<usize>>() as u64, 1));
    assert!(cache.capacity_bytes() >= 100);
}

#[test]
fn a_load_that_omits_a_sample_panics() {
    let blocks = Blocks::new([2], 1);
    let cache = new(&blocks, 1);
    let panic = catch_unwind(AssertUnwindSafe(|| {
        read(&cache, 0, |_, buffer| {
            buffer.add_sample(0..0);
            Ok(())
        })
    }));
    assert!(panic.is_err());
    read(&cache, 0, |block, buffer| load_from(&blocks, block, buffer)).unwrap();
}
