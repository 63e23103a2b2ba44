//! Owns the tests of the cache: its limit, its age, and files that somebody has spoilt.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime};

use super::*;

const FILE_BYTES: u64 = BLOCK_BYTES + 16 * 8 + 32;

fn identity() -> Identity {
    Identity { bytes: 1 << 30, etag: Some("\"a\"".to_owned()), modified: None }
}

fn key(cache: &DiskCache, block: u64) -> Key {
    cache.key("s3://b/x", &identity(), block)
}

fn bytes_of(block: u64) -> Vec<u8> {
    (0..BLOCK_BYTES).map(|i| (i * 31 + block * 7 + (i >> 9)) as u8).collect()
}

fn keep(cache: &DiskCache, block: u64) {
    cache.keep(key(cache, block), &bytes_of(block));
}

fn read(cache: &DiskCache, block: u64, within: u64, bytes: usize) -> Option<Vec<u8>> {
    let mut out = vec![0xEE; bytes];
    cache.read(key(cache, block), BLOCK_BYTES, within, &mut out).then_some(out)
}

fn has(cache: &DiskCache, block: u64) -> bool {
    read(cache, block, 0, BLOCK_BYTES as usize).is_some_and(|bytes| bytes == bytes_of(block))
}

fn age(cache: &DiskCache, block: u64, seconds: u64) {
    let file = File::open(cache.path(key(cache, block))).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
}

#[test]
fn a_block_comes_back_in_whatever_parts_it_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(folder.path(), ByteCount(10 << 20)).unwrap();
    assert_eq!(read(&cache, 0, 0, 10), None);
    keep(&cache, 0);
    let whole = bytes_of(0);
    for (within, bytes) in [(0, 1), (65_535, 2), (65_536, 65_536), (1, 1_048_575), (0, 1_048_576), (1_048_575, 1)] {
        let part = read(&cache, 0, within as u64, bytes).unwrap();
        assert_eq!(part, whole[within..within + bytes], "{bytes} from {within}");
    }
    let short = Key(7);
    cache.keep(short, b"the end");
    let mut out = [0; 3];
    assert!(cache.read(short, 7, 4, &mut out) && &out == b"end");
    assert_eq!(cache.used_bytes().unwrap(), ByteCount(FILE_BYTES + 7 + 8 + 32));
    // Another opens what the first has left.
    let again = DiskCache::open(folder.path(), ByteCount(10 << 20)).unwrap();
    assert!(has(&again, 0));
    let other = Identity { etag: Some("\"b\"".to_owned()), ..identity() };
    assert!(!again.read(again.key("s3://b/x", &other, 0), BLOCK_BYTES, 0, &mut out), "another version");
}

#[test]
fn damage_anywhere_is_seen_and_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(folder.path(), ByteCount(10 << 20)).unwrap();
    for at in [0, 70_000, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 130, FILE_BYTES - 10, FILE_BYTES - 1] {
        keep(&cache, 1);
        let path = cache.path(key(&cache, 1));
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
        assert!(!has(&cache, 1), "a bit at {at}");
        assert!(!path.exists());
    }
    for length in [0, 1, BLOCK_BYTES, FILE_BYTES - 1, FILE_BYTES + 1] {
        keep(&cache, 1);
        File::options().write(true).open(cache.path(key(&cache, 1))).unwrap().set_len(length).unwrap();
        assert!(read(&cache, 1, 0, 1).is_none(), "{length} bytes");
    }
    // A block under another's name.
    keep(&cache, 1);
    std::fs::rename(cache.path(key(&cache, 1)), cache.path(key(&cache, 2))).unwrap();
    assert!(!has(&cache, 2));
}

#[test]
fn what_was_not_used_for_longest_goes() {
    let folder = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(folder.path(), ByteCount(10 * FILE_BYTES)).unwrap();
    for block in 0..10 {
        keep(&cache, block);
        age(&cache, block, 100_000 - 9000 * block);
    }
    assert!(has(&cache, 0), "it is used, and young again");
    keep(&cache, 10);
    let left: Vec<u64> = (0..11).filter(|&block| has(&cache, block)).collect();
    assert_eq!(left, [0, 3, 4, 5, 6, 7, 8, 9, 10]);
    assert_eq!(cache.used_bytes().unwrap(), ByteCount(9 * FILE_BYTES));
    assert_eq!(cache.note(), None);
}

#[test]
fn an_opener_with_less_makes_room_and_cleans_up() {
    let folder = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(folder.path(), ByteCount(20 * FILE_BYTES)).unwrap();
    (0..20).for_each(|block| keep(&cache, block));
    // What a killed process has left, and what a live one is writing.
    let temporary = room::temporary(folder.path());
    std::fs::write(temporary.join("1-2-3"), b"half a blo").unwrap();
    let writing = block::write(&temporary.join("4-5-6"), 1, b"whole").unwrap();
    std::fs::write(folder.path().join("00/README"), b"not a block").unwrap();
    let less = DiskCache::open(folder.path(), ByteCount(10 * FILE_BYTES)).unwrap();
    assert!(less.used_bytes().unwrap() <= ByteCount(10 * FILE_BYTES));
    assert!(!temporary.join("1-2-3").exists() && temporary.join("4-5-6").exists());
    assert!(folder.path().join("00/README").exists());
    drop(writing);
    // A sum that a crash has spoilt is counted anew.
    std::fs::write(folder.path().join("lock"), [0xFF; 16]).unwrap();
    (100..130).for_each(|block| keep(&less, block));
    assert!(less.used_bytes().unwrap() <= ByteCount(10 * FILE_BYTES));
    assert!(has(&less, 129));
}

#[test]
fn writers_that_share_a_folder_add_up_to_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let limit = ByteCount(FILE_BYTES);
    // Each with a lock file of its own, as processes have.
    let caches: Vec<DiskCache> = (0..4).map(|_| DiskCache::open(folder.path(), limit).unwrap()).collect();
    let bytes = vec![7; 60_000];
    for round in 0..15u128 {
        std::thread::scope(|scope| {
            for (writer, cache) in caches.iter().enumerate() {
                let bytes = &bytes;
                scope.spawn(move || {
                    for block in 0..8 {
                        let key = Key(xxh3_128(format!("{round} {writer} {block}").as_bytes()));
                        cache.keep(key, bytes);
                    }
                });
            }
        });
        let used = caches[0].used_bytes().unwrap();
        assert!(used <= limit, "{used} of {limit} in round {round}");
        assert!(used.0 >= limit.0 * 8 / 10, "{used} of {limit} in round {round}");
    }
    assert!(caches.iter().all(|cache| cache.note().is_none()));
}

#[test]
fn a_disk_that_takes_nothing_switches_it_off_and_what_is_there_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(folder.path(), ByteCount(10 << 20)).unwrap();
    keep(&cache, 0);
    std::fs::remove_dir(room::temporary(folder.path())).unwrap();
    std::fs::write(room::temporary(folder.path()), b"in the way").unwrap();
    keep(&cache, 1);
    let note = cache.note().unwrap();
    assert!(note.contains(&*folder.path().to_string_lossy()) && note.contains("still used"), "{note}");
    assert!(has(&cache, 0) && !has(&cache, 1));
}

#[test]
fn a_cache_that_cannot_be_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let small = DiskCache::open(folder.path(), ByteCount(1 << 20)).expect_err("no room").to_string();
    assert!(small.contains("1.00 MiB"), "{small}");
    std::fs::write(folder.path().join("file"), b"").unwrap();
    let file = DiskCache::open(folder.path().join("file"), ByteCount(1 << 30)).expect_err("a file").to_string();
    assert!(file.contains("make the cache"), "{file}");
}
