//! Tests of the disk cache: size limit, eviction order, damaged files.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime};

use super::*;

const FILE_BYTES: u64 = BLOCK_BYTES + 16 * 8 + 32;

fn version() -> ObjectVersion {
    ObjectVersion { bytes: 1 << 30, etag: Some("\"a\"".to_owned()), modified: None }
}

fn key(cache: &DiskCache, block: u64) -> BlockKey {
    cache.key("s3://b/x", &version(), block)
}

fn bytes_of(block: u64) -> Vec<u8> {
    (0..BLOCK_BYTES).map(|i| (i * 31 + block * 7 + (i >> 9)) as u8).collect()
}

fn insert(cache: &DiskCache, block: u64) {
    cache.insert(key(cache, block), &bytes_of(block));
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
fn blocks_can_be_read_in_parts() {
    let folder = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(folder.path(), ByteCount(10 << 20)).unwrap();
    assert_eq!(read(&cache, 0, 0, 10), None);
    insert(&cache, 0);
    let whole = bytes_of(0);
    for (within, bytes) in [(0, 1), (65_535, 2), (65_536, 65_536), (1, 1_048_575), (0, 1_048_576), (1_048_575, 1)] {
        let part = read(&cache, 0, within as u64, bytes).unwrap();
        assert_eq!(part, whole[within..within + bytes], "{bytes} from {within}");
    }
    let short = BlockKey(7);
    cache.insert(short, b"the end");
    let mut out = [0; 3];
    assert!(cache.read(short, 7, 4, &mut out) && &out == b"end");
    assert_eq!(cache.used_bytes().unwrap(), ByteCount(FILE_BYTES + 7 + 8 + 32));
    // Another process opens the same folder.
    let again = DiskCache::open(folder.path(), ByteCount(10 << 20)).unwrap();
    assert!(has(&again, 0));
    let other = ObjectVersion { etag: Some("\"b\"".to_owned()), ..version() };
    assert!(!again.read(again.key("s3://b/x", &other, 0), BLOCK_BYTES, 0, &mut out), "another version");
}

#[test]
fn damaged_blocks_are_detected_and_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(folder.path(), ByteCount(10 << 20)).unwrap();
    for at in [0, 70_000, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 130, FILE_BYTES - 10, FILE_BYTES - 1] {
        insert(&cache, 1);
        let path = cache.path(key(&cache, 1));
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
        assert!(!has(&cache, 1), "a bit at {at}");
        assert!(!path.exists());
    }
    for length in [0, 1, BLOCK_BYTES, FILE_BYTES - 1, FILE_BYTES + 1] {
        insert(&cache, 1);
        File::options().write(true).open(cache.path(key(&cache, 1))).unwrap().set_len(length).unwrap();
        assert!(read(&cache, 1, 0, 1).is_none(), "{length} bytes");
    }
    // A block under the name of another one.
    insert(&cache, 1);
    std::fs::rename(cache.path(key(&cache, 1)), cache.path(key(&cache, 2))).unwrap();
    assert!(!has(&cache, 2));
}

#[test]
fn least_recently_used_blocks_are_evicted() {
    let folder = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(folder.path(), ByteCount(10 * FILE_BYTES)).unwrap();
    for block in 0..10 {
        insert(&cache, block);
        age(&cache, block, 100_000 - 9000 * block);
    }
    assert!(has(&cache, 0), "a read renews it");
    insert(&cache, 10);
    let left: Vec<u64> = (0..11).filter(|&block| has(&cache, block)).collect();
    assert_eq!(left, [0, 3, 4, 5, 6, 7, 8, 9, 10]);
    assert_eq!(cache.used_bytes().unwrap(), ByteCount(9 * FILE_BYTES));
    assert_eq!(cache.disabled_reason(), None);
}

#[test]
fn opening_with_a_smaller_limit_evicts_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(folder.path(), ByteCount(20 * FILE_BYTES)).unwrap();
    (0..20).for_each(|block| insert(&cache, block));
    // A file left by a killed process, and one that is being written.
    let temporary = quota::temporary(folder.path());
    std::fs::write(temporary.join("1-2-3"), b"half a blo").unwrap();
    let writing = block::write(&temporary.join("4-5-6"), 1, b"whole").unwrap();
    std::fs::write(folder.path().join("00/README"), b"not a block").unwrap();
    let less = DiskCache::open(folder.path(), ByteCount(10 * FILE_BYTES)).unwrap();
    assert!(less.used_bytes().unwrap() <= ByteCount(10 * FILE_BYTES));
    assert!(!temporary.join("1-2-3").exists() && temporary.join("4-5-6").exists());
    assert!(folder.path().join("00/README").exists());
    drop(writing);
    // A damaged sum is measured again.
    std::fs::write(folder.path().join("lock"), [0xFF; 16]).unwrap();
    (100..130).for_each(|block| insert(&less, block));
    assert!(less.used_bytes().unwrap() <= ByteCount(10 * FILE_BYTES));
    assert!(has(&less, 129));
}

#[test]
fn concurrent_writers_keep_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let limit = ByteCount(FILE_BYTES);
    // Each has a lock file handle of its own, as processes have.
    let caches: Vec<DiskCache> = (0..4).map(|_| DiskCache::open(folder.path(), limit).unwrap()).collect();
    let bytes = vec![7; 60_000];
    for round in 0..15u128 {
        std::thread::scope(|scope| {
            for (writer, cache) in caches.iter().enumerate() {
                let bytes = &bytes;
                scope.spawn(move || {
                    for block in 0..8 {
                        let key = BlockKey(xxh3_128(format!("{round} {writer} {block}").as_bytes()));
                        cache.insert(key, bytes);
                    }
                });
            }
        });
        let used = caches[0].used_bytes().unwrap();
        assert!(used <= limit, "{used} of {limit} in round {round}");
        assert!(used.0 >= limit.0 * 8 / 10, "{used} of {limit} in round {round}");
    }
    assert!(caches.iter().all(|cache| cache.disabled_reason().is_none()));
}

#[test]
fn write_errors_disable_storing_but_not_reading() {
    let folder = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(folder.path(), ByteCount(10 << 20)).unwrap();
    insert(&cache, 0);
    std::fs::remove_dir(quota::temporary(folder.path())).unwrap();
    std::fs::write(quota::temporary(folder.path()), b"in the way").unwrap();
    insert(&cache, 1);
    let note = cache.disabled_reason().unwrap();
    assert!(note.contains(&*folder.path().to_string_lossy()) && note.contains("still read"), "{note}");
    assert!(has(&cache, 0) && !has(&cache, 1));
}

#[test]
fn invalid_caches_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let small = DiskCache::open(folder.path(), ByteCount(1 << 20)).expect_err("no room").full_message();
    assert!(small.contains("1.00 MiB"), "{small}");
    std::fs::write(folder.path().join("file"), b"").unwrap();
    let file = DiskCache::open(folder.path().join("file"), ByteCount(1 << 30)).expect_err("a file").to_string();
    assert!(file.contains("make the cache"), "{file}");
}
