//! Owns the tests of blocks that are held: many threads, bad loads, and the bound.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use super::*;
use crate::sync::{AtomicUsize, Ordering};
use crate::units::mix64;

/// Long enough for a machine that does other things as well; only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// The bytes of a sample: as many as its number says, and other ones than those of its neighbours.
fn bytes_of(id: u64) -> Vec<u8> {
    (0..id % 23 * 3).map(|i| mix64(id ^ i << 32) as u8).collect()
}

/// Blocks of 1 to 9 samples each.
fn blocks(count: u64, mixed: usize) -> Blocks {
    let mut end = 0;
    let ends: Vec<u64> = (0..count)
        .map(|block| {
            end += 1 + mix64(block) % 9;
            end
        })
        .collect();
    Blocks::new(ends, mixed)
}

fn load_from(blocks: &Blocks, block: u64, buffer: &mut BlockBuffer) -> Result<(), SourceError> {
    for id in blocks.samples(block) {
        let bytes = bytes_of(id);
        let start = buffer.len();
        // As a stream is read: into the memory, with something in between that is no sample.
        buffer.grow(bytes.len() + 1).unwrap()[..bytes.len()].copy_from_slice(&bytes);
        buffer.sample_at(start..start + bytes.len());
    }
    Ok(())
}

fn block_bytes_max(blocks: &Blocks) -> u64 {
    let bytes = |block| blocks.samples(block).map(|id| bytes_of(id).len() as u64 + 1).sum();
    (0..blocks.count()).map(bytes).max().unwrap_or(0)
}

fn new(blocks: &Blocks, loads_max: usize) -> HeldBlocks {
    HeldBlocks::new(blocks.clone(), block_bytes_max(blocks), loads_max)
}

/// Reads a sample with this load and compares it.
fn read(
    held: &HeldBlocks,
    id: u64,
    load: impl FnOnce(u64, &mut BlockBuffer) -> Result<(), SourceError>,
) -> Result<(), SourceError> {
    let mut out = vec![0xEE; bytes_of(id).len()];
    held.read(SampleId(id), &mut out, load)?;
    assert_eq!(out, bytes_of(id), "sample {id}");
    Ok(())
}

fn shuffled(len: u64, seed: u64) -> Vec<u64> {
    let mut ids: Vec<u64> = (0..len).collect();
    ids.sort_by_key(|&id| mix64(id ^ seed << 40));
    ids
}

fn broken() -> SourceError {
    SourceError::Block { cause: "broken for this test".into() }
}

/// Bytes that the places have taken, and how many of them have taken any.
fn taken(held: &HeldBlocks) -> (u64, usize) {
    let table = lock(&held.table);
    let buffers = || table.places.iter().filter_map(|place| place.buffer.as_ref());
    let bytes = |buffer: &BlockBuffer| buffer.memory.capacity() + buffer.samples.capacity() * size_of::<Range<usize>>();
    (
        buffers().map(|buffer| bytes(buffer) as u64).sum(),
        buffers().filter(|buffer| buffer.memory.capacity() > 0).count(),
    )
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..PATIENCE.as_millis() {
        if is_so() {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
    panic!("not so, in {PATIENCE:?}: {what}");
}

/// Waits until so many readers use the place that a block is loaded into.
fn wait_for_users(held: &HeldBlocks, block: u64, users: usize) {
    wait_until("readers have come to a block", || {
        let table = lock(&held.table);
        table.find(block).is_some_and(|at| table.places[at].users == users)
    });
}

#[test]
fn blocks_read_in_order_are_loaded_once_into_one_place() {
    let blocks = blocks(40, 3);
    let held = new(&blocks, 1);
    let loads = AtomicUsize::new(0);
    for id in 0..blocks.sample_count() {
        let load = |block, buffer: &mut BlockBuffer| {
            loads.fetch_add(1, Ordering::Relaxed);
            load_from(&blocks, block, buffer)
        };
        read(&held, id, load).unwrap();
    }
    assert_eq!(loads.into_inner(), 40);
    // Each block was given up when its last sample had been read.
    assert_eq!(taken(&held).1, 1);
    assert!(lock(&held.table).places.iter().all(|place| place.block.is_none() && place.users == 0));
}

#[test]
fn the_block_used_least_recently_goes_first() {
    let blocks = Blocks::new([2, 4, 6, 8], 1);
    let held = new(&blocks, 1);
    let loads = std::cell::RefCell::new(Vec::new());
    let read = |id| {
        let load = |block, buffer: &mut BlockBuffer| {
            loads.borrow_mut().push(block);
            load_from(&blocks, block, buffer)
        };
        read(&held, id, load).unwrap();
    };
    // Two places. Reading a sample again does not count it twice.
    [0, 2, 0, 4].into_iter().for_each(read);
    assert!(held.holds(0) && held.holds(2) && !held.holds(1));
    [0, 1, 6, 4].into_iter().for_each(read);
    assert_eq!(*loads.borrow(), [0, 1, 2, 3], "0 was given up, so 2 is still there");
    assert!(held.holds(2) && held.holds(3) && !held.holds(0));
}

#[test]
fn many_threads_read_in_any_order_within_the_bound() {
    for (mixed, loads_max, threads) in [(1, 1, 8), (1, 2, 3), (2, 2, 4), (3, 8, 8)] {
        let blocks = blocks(60, mixed);
        let held = new(&blocks, loads_max);
        let (under_way, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (loading, memories) = (Mutex::new(HashSet::new()), Mutex::new(HashSet::new()));
        let load = |block, buffer: &mut BlockBuffer| {
            most.fetch_max(under_way.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            assert!(lock(&loading).insert(block), "block {block} is loaded twice at once");
            thread::yield_now();
            let done = load_from(&blocks, block, buffer);
            lock(&memories).insert(buffer.memory.as_ptr() as usize);
            lock(&loading).remove(&block);
            under_way.fetch_sub(1, Ordering::SeqCst);
            done
        };
        thread::scope(|scope| {
            for thread in 0..threads {
                let (held, load, ids) = (&held, &load, shuffled(blocks.sample_count(), thread));
                scope.spawn(move || ids.into_iter().for_each(|id| read(held, id, load).unwrap()));
            }
        });
        let places = 2 * mixed;
        assert!(most.into_inner() <= loads_max);
        // The same memory is used again and again, and never more of it.
        assert!(lock(&memories).len() <= places, "{} allocations in {places} places", lock(&memories).len());
        let (bytes, used) = taken(&held);
        assert!(used <= places && bytes <= held.held_bytes(), "{bytes} bytes, told {}", held.held_bytes());
        let table = lock(&held.table);
        assert_eq!((table.loads, table.waiting), (0, 0));
        assert!(table.places.iter().all(|place| place.users == 0));
    }
}

#[test]
fn loads_that_fail_and_panic_harm_nobody_else() {
    let blocks = blocks(30, 2);
    let held = new(&blocks, 3);
    let tries = AtomicUsize::new(0);
    let load = |block, buffer: &mut BlockBuffer| {
        load_from(&blocks, block, buffer)?;
        match tries.fetch_add(1, Ordering::Relaxed) % 5 {
            1 => Err(broken()),
            3 => panic!("a panic that this test asked for"),
            _ => Ok(()),
        }
    };
    let failures: usize = thread::scope(|scope| {
        let readers: Vec<_> = (0..6u64)
            .map(|thread| {
                let (held, load, ids) = (&held, &load, shuffled(blocks.sample_count(), thread));
                scope.spawn(move || {
                    let failed =
                        |&id: &u64| !matches!(catch_unwind(AssertUnwindSafe(|| read(held, id, load))), Ok(Ok(())));
                    ids.into_iter().filter(failed).count()
                })
            })
            .collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).sum()
    });
    assert!(failures > 0, "nothing failed");
    // And now that loads succeed, so does every read.
    for id in 0..blocks.sample_count() {
        read(&held, id, |block, buffer| load_from(&blocks, block, buffer)).unwrap();
    }
    let table = lock(&held.table);
    assert_eq!((table.loads, table.waiting), (0, 0));
    assert!(table.places.iter().all(|place| place.users == 0 && place.buffer.is_some()));
}

type Read = Result<(), SourceError>;

/// Starts a load that waits for a word, then lets others come to the same block, then gives the word: what came of each.
fn together(
    held: &HeldBlocks,
    blocks: &Blocks,
    end: impl FnOnce() -> Result<(), SourceError> + Send,
) -> (thread::Result<Read>, Vec<Read>) {
    let (go, wait): (Sender<()>, Receiver<()>) = channel();
    thread::scope(|scope| {
        let first = scope.spawn(move || {
            catch_unwind(AssertUnwindSafe(|| {
                read(held, 0, |block, buffer| {
                    wait.recv_timeout(PATIENCE).unwrap();
                    load_from(blocks, block, buffer)?;
                    end()
                })
            }))
        });
        wait_for_users(held, 0, 1);
        let others: Vec<_> =
            (0..3).map(|_| scope.spawn(|| read(held, 0, |_, _| panic!("a second load of the same block")))).collect();
        wait_for_users(held, 0, 4);
        go.send(()).unwrap();
        let others = others.into_iter().map(|other| other.join().expect("they wait for the first")).collect();
        (first.join().unwrap(), others)
    })
}

#[test]
fn those_that_need_the_same_block_load_it_once() {
    let blocks = Blocks::new([4, 6], 1);
    let held = new(&blocks, 2);
    let (first, others) = together(&held, &blocks, || Ok(()));
    first.unwrap().unwrap();
    others.into_iter().for_each(|other| other.unwrap());
    assert!(held.holds(0));
}

#[test]
fn a_load_that_fails_fails_those_that_wait_and_is_tried_again() {
    let blocks = Blocks::new([4, 6], 1);
    let held = new(&blocks, 2);
    let (first, others) = together(&held, &blocks, || Err(broken()));
    assert!(matches!(first.unwrap(), Err(SourceError::Block { cause }) if cause == "broken for this test"));
    for other in others {
        let text = other.unwrap_err().to_string();
        assert!(text.contains("broken for this test"), "{text}");
    }
    assert!(!held.holds(0));
    read(&held, 0, |block, buffer| load_from(&blocks, block, buffer)).unwrap();

    let held = new(&blocks, 2);
    let (first, others) = together(&held, &blocks, || panic!("a panic that this test asked for"));
    assert!(first.is_err());
    for other in others {
        let text = other.unwrap_err().to_string();
        assert!(text.contains("panicked in another thread"), "{text}");
    }
    read(&held, 0, |block, buffer| load_from(&blocks, block, buffer)).unwrap();
}

#[test]
fn different_blocks_load_at_the_same_time_up_to_the_limit() {
    let blocks = Blocks::new([1, 2, 3, 4], 2);
    let held = new(&blocks, 2);
    let (here, arrivals) = channel();
    thread::scope(|scope| {
        let goes: Vec<Sender<()>> = (0..3)
            .map(|id| {
                let (go, wait) = channel();
                let (held, blocks, here) = (&held, &blocks, here.clone());
                scope.spawn(move || {
                    read(held, id, |block, buffer| {
                        here.send(id).unwrap();
                        wait.recv_timeout(PATIENCE).unwrap();
                        load_from(blocks, block, buffer)
                    })
                    .unwrap();
                });
                go
            })
            .collect();
        let two = [arrivals.recv_timeout(PATIENCE).unwrap(), arrivals.recv_timeout(PATIENCE).unwrap()];
        wait_until("the third waits for its turn", || lock(&held.table).waiting == 1);
        assert_eq!(lock(&held.table).loads, 2);
        goes[two[0] as usize].send(()).unwrap();
        // The third comes only now; a send to those that have gone says so, and does not matter.
        arrivals.recv_timeout(PATIENCE).unwrap();
        for go in goes {
            let _ = go.send(());
        }
    });
}

#[test]
fn a_place_is_not_loaded_into_while_somebody_copies_from_it() {
    let blocks = Blocks::new([2, 4, 6, 8, 10], 1);
    let held = new(&blocks, 1);
    let load = |block, buffer: &mut BlockBuffer| load_from(&blocks, block, buffer);
    read(&held, 1, load).unwrap();
    let Ok(Taken::Held(lease)) = held.take(0) else { panic!("block 0 is held") };
    // Others read on meanwhile, through the one place that is left.
    for id in [9, 2, 5, 7, 9, 3] {
        read(&held, id, load).unwrap();
    }
    assert!(held.holds(0));
    lease.copy(0, &mut bytes_of(0));
    assert!(!held.holds(0), "both of its samples have been read");
}

#[test]
fn a_block_larger_than_was_said_is_seen_and_takes_no_more_memory() {
    let blocks = Blocks::new([1], 1);
    let held = HeldBlocks::new(blocks, 100, 1);
    let result = held.read(SampleId(0), &mut [], |_, buffer| {
        assert!(buffer.grow(60).is_some_and(|memory| memory == [0; 60]));
        assert!(buffer.grow(41).is_none() && buffer.append(&[0; 41]).is_none());
        assert_eq!(buffer.len(), 60);
        assert!(buffer.append(&[7; 40]).is_some() && buffer.grow(1).is_none());
        Err(broken())
    });
    assert!(result.is_err());
    assert_eq!(taken(&held), (100 + size_of::<Range<usize>>() as u64, 1));
    assert!(held.held_bytes() >= 100);
}

#[test]
fn a_load_that_forgets_a_sample_is_misuse_and_no_more() {
    let blocks = Blocks::new([2], 1);
    let held = new(&blocks, 1);
    let panic = catch_unwind(AssertUnwindSafe(|| {
        read(&held, 0, |_, buffer| {
            buffer.sample_at(0..0);
            Ok(())
        })
    }));
    assert!(panic.is_err());
    read(&held, 0, |block, buffer| load_from(&blocks, block, buffer)).unwrap();
}
