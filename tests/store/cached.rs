//! Tests of the disk cache: hits, damaged blocks, a full disk, several processes, killed processes.

use crate::skip::{Missing, skip};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use feedstock::rng::{KeyedRng, Seed};
use feedstock::source::store::{DiskCache, Object, Store, StoreOptions};
use feedstock::{ByteCount, SampleId};

use super::faulty_proxy::{Fault, FaultyProxy};
use super::s3::{S3, s3_settings};
use super::{bucket, child, content, put, quick, read, s3_store};

const BLOCK: usize = 1 << 20;
/// Size of the file of a block, with its checksums.
const FILE: u64 = BLOCK as u64 + 16 * 8 + 32;

fn cached(folder: &Path, limit: u64) -> StoreOptions {
    StoreOptions { cache: Some(DiskCache::open(folder, ByteCount(limit)).unwrap()), ..quick() }
}

fn shard(store: &Store) -> Object {
    store.object("x").unwrap()
}

#[test]
fn blocks_are_reused_by_the_next_run() {
    let (root, folder) = (bucket(&[("x", 3 * BLOCK + 5)]), tempfile::tempdir().unwrap());
    let server = S3::start(root.path());
    let proxy = FaultyProxy::start(server.address, |_| Fault::Pass);
    let whole = content(3 * BLOCK + 5, 0);
    let run = || {
        let store = s3_store(proxy.address(), cached(folder.path(), 100 << 20));
        let object = shard(&store);
        assert!(read(&object, 0, whole.len()).unwrap() == whole);
        assert!(read(&object, BLOCK as u64 - 7, 100).unwrap() == whole[BLOCK - 7..BLOCK + 93]);
        assert!(read(&object, 3 * BLOCK as u64 + 4, 1).unwrap() == whole[3 * BLOCK + 4..]);
        store.counts()
    };
    let (first, second) = (run(), run());
    assert_eq!((first.cache_misses, first.cache_hits, first.received_bytes), (4, 3, whole.len() as u64));
    assert_eq!((second.cache_misses, second.cache_hits, second.received_bytes), (0, 7, 0));
    // Another version has other blocks.
    thread::sleep(Duration::from_millis(20));
    put(root.path(), "x", &content(3 * BLOCK + 5, 1));
    let store = s3_store(proxy.address(), cached(folder.path(), 100 << 20));
    assert!(read(&shard(&store), 5, BLOCK).unwrap() == content(3 * BLOCK + 5, 1)[5..BLOCK + 5]);
    assert_eq!(store.counts().cache_misses, 2);
}

#[test]
fn neighboring_reads_share_a_block() {
    let (root, folder) = (bucket(&[("x", 3 * BLOCK)]), tempfile::tempdir().unwrap());
    let server = S3::start(root.path());
    let store = s3_store(server.address, cached(folder.path(), 100 << 20));
    let (object, whole) = (shard(&store), content(3 * BLOCK, 0));
    let mut memory: Vec<(u64, Vec<u8>)> = (0..20u64).map(|i| (i * 100_000, vec![0; 100_000])).collect();
    let mut outs: Vec<(u64, &mut [u8])> = memory.iter_mut().map(|(at, out)| (*at, out.as_mut_slice())).collect();
    assert!(object.read_many(&mut outs).iter().all(Result::is_ok));
    for (offset, out) in &memory {
        assert!(*out == whole[*offset as usize..*offset as usize + out.len()]);
    }
    assert_eq!(store.counts().received_bytes, 2 * BLOCK as u64);
}

#[test]
fn concurrent_readers_share_one_request() {
    let (root, folder) = (bucket(&[("x", 2 * BLOCK)]), tempfile::tempdir().unwrap());
    let server = S3::start(root.path());
    let proxy = FaultyProxy::start(server.address, |_| Fault::Late(Duration::from_millis(200)));
    let store = s3_store(proxy.address(), cached(folder.path(), 100 << 20));
    let (object, whole) = (shard(&store), content(2 * BLOCK, 0));
    thread::scope(|scope| {
        for i in 0..10usize {
            let (object, whole) = (&object, &whole);
            scope.spawn(move || {
                let at = i * 150_000;
                assert!(read(object, at as u64, 150_000).unwrap() == whole[at..at + 150_000]);
            });
        }
    });
    assert_eq!(store.counts().received_bytes, 2 * BLOCK as u64);
    // If the request fails, each waiting reader sends its own.
    drop(store);
    let folder = tempfile::tempdir().unwrap();
    let store = s3_store(
        proxy.address(),
        StoreOptions { attempts: 1, attempt_timeout: Duration::from_secs(4), ..cached(folder.path(), 100 << 20) },
    );
    let object = shard(&store);
    let failed = AtomicBool::new(false);
    proxy.plan(move |_| {
        thread::sleep(Duration::from_millis(200));
        if failed.swap(true, Ordering::Relaxed) { Fault::Pass } else { Fault::Status(500, "") }
    });
    let right = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..5 {
            scope.spawn(|| {
                read(&object, 5, 100).map(|bytes| {
                    assert!(bytes == whole[5..105]);
                    right.fetch_add(1, Ordering::Relaxed);
                })
            });
        }
    });
    assert_eq!(right.load(Ordering::Relaxed), 4);
}

#[test]
fn damaged_blocks_are_downloaded_again() {
    let (root, folder) = (bucket(&[("x", 4 * BLOCK)]), tempfile::tempdir().unwrap());
    let server = S3::start(root.path());
    let store = s3_store(server.address, cached(folder.path(), 100 << 20));
    let (object, whole) = (shard(&store), content(4 * BLOCK, 0));
    read(&object, 0, 4 * BLOCK).unwrap();
    let blocks = blocks(folder.path());
    assert_eq!(blocks.len(), 4);
    fs::write(&blocks[0], b"").unwrap();
    fs::File::options().write(true).open(&blocks[1]).unwrap().set_len(BLOCK as u64 / 2).unwrap();
    let mut damaged = fs::read(&blocks[2]).unwrap();
    damaged[BLOCK / 3] ^= 1;
    fs::write(&blocks[2], damaged).unwrap();
    fs::copy(&blocks[3], &blocks[2]).unwrap();
    for misses in [4 + 3, 4 + 3] {
        assert!(read(&object, 0, 4 * BLOCK).unwrap() == whole);
        assert_eq!(store.counts().cache_misses, misses);
    }
}

/// File system that is unmounted on drop.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_disables_storing_but_not_reading() {
    let (root, folder) = (bucket(&[("x", 4 * BLOCK)]), tempfile::tempdir().unwrap());
    let server = S3::start(root.path());
    // A file system for two and a half blocks.
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=2560k", "none"])
        .arg(folder.path())
        .stderr(std::process::Stdio::null())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        skip(&Missing::Privilege("to mount a file system"));
        return;
    }
    let mounted = Mounted(folder.path());
    let store = s3_store(server.address, cached(folder.path(), 100 << 20));
    let (object, whole) = (shard(&store), content(4 * BLOCK, 0));
    for _ in 0..2 {
        for block in 0..4 {
            let at = block * BLOCK + 5;
            assert!(read(&object, at as u64, 1000).unwrap() == whole[at..at + 1000]);
        }
    }
    let (counts, notes) = (store.counts(), store.notes());
    drop((object, store, mounted));
    assert!(notes.len() == 1 && notes[0].contains("os error 28"), "{notes:?}");
    assert!(counts.cache_hits > 0 && counts.cache_misses > 4, "{counts:?}");
}

/// Files of all blocks.
fn blocks(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for first in 0..=255u8 {
        let entries = fs::read_dir(folder.join(format!("{first:02x}"))).into_iter().flatten();
        found.extend(entries.flatten().map(|entry| entry.path()));
    }
    found.sort();
    found
}

fn bytes_of_blocks(folder: &Path) -> u64 {
    blocks(folder).iter().filter_map(|path| fs::metadata(path).ok()).map(|meta| meta.len()).sum()
}

fn bytes_under_way(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder.join("temporary")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len()).sum()
}

const SHARDS: usize = 12;
const SHARD_BYTES: usize = 2 * BLOCK;
const LIMIT: u64 = 10 * FILE;
const THREADS: u64 = 2;

/// Reads at random until its time is over, through a cache that is too small for all blocks.
#[test]
#[ignore = "the child of another test"]
fn child_that_shares_a_cache() {
    let variable = |name| std::env::var(name).unwrap();
    let options = StoreOptions {
        settings: s3_settings(variable("STORE_ADDRESS").parse().unwrap()),
        deadline: Duration::from_secs(30),
        attempt_timeout: Duration::from_secs(20),
        ..cached(Path::new(&variable("STORE_CACHE")), LIMIT)
    };
    let (store, _) = Store::open("s3://bucket/", options).unwrap();
    let shards: Vec<_> = (0..SHARDS).map(|shard| store.object(&shard.to_string()).unwrap()).collect();
    let whole = content(SHARD_BYTES, 0);
    let seed: u64 = variable("STORE_SEED").parse().unwrap();
    let until = Instant::now() + Duration::from_millis(variable("STORE_MILLIS").parse().unwrap());
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (shards, whole) = (&shards, &whole);
            scope.spawn(move || {
                let mut rng = KeyedRng::new(Seed(seed), thread, SampleId(0), 0);
                while Instant::now() < until {
                    let object = &shards[rng.below(SHARDS as u64) as usize];
                    let offset = rng.below((SHARD_BYTES - 200_000) as u64);
                    let bytes = 1 + rng.below(200_000) as usize;
                    assert!(
                        read(object, offset, bytes).unwrap() == whole[offset as usize..offset as usize + bytes],
                        "{bytes} from {offset}"
                    );
                }
            });
        }
    });
    assert_eq!(store.notes(), [] as [String; 0]);
    let counts = store.counts();
    eprintln!("process {seed}: {counts:?}");
    assert!(counts.cache_hits > 0 && counts.cache_misses > 0);
}

#[test]
fn processes_share_a_cache_within_its_limit() {
    let (root, folder) = (bucket(&[]), tempfile::tempdir().unwrap());
    (0..SHARDS).for_each(|shard| put(root.path(), &shard.to_string(), &content(SHARD_BYTES, 0)));
    let server = S3::start(root.path());
    let start = |seed: u64, millis: u64| {
        let variables = [
            ("STORE_ADDRESS", server.address.to_string()),
            ("STORE_CACHE", folder.path().display().to_string()),
            ("STORE_SEED", seed.to_string()),
            ("STORE_MILLIS", millis.to_string()),
        ];
        child("cached::child_that_shares_a_cache", &variables).spawn().unwrap()
    };
    let (mut one, mut two) = (start(1, 6000), start(2, 6000));
    // A partial block of a killed process: the children below may be killed at any point.
    fs::create_dir_all(folder.path().join("temporary")).unwrap();
    fs::write(folder.path().join("temporary/1-1-1"), &content(BLOCK, 0)[..BLOCK / 2]).unwrap();
    let (most_blocks, most_under_way, over) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                most_under_way.fetch_max(bytes_under_way(folder.path()), Ordering::Relaxed);
                most_blocks.fetch_max(bytes_of_blocks(folder.path()), Ordering::Relaxed);
            }
        });
        for seed in 3..8 {
            let mut killed = start(seed, 60_000);
            thread::sleep(Duration::from_millis(700));
            killed.kill().unwrap();
            killed.wait().unwrap();
        }
        let ended = (one.wait().unwrap().success(), two.wait().unwrap().success());
        over.store(true, Ordering::Relaxed);
        assert_eq!(ended, (true, true));
    });
    let (blocks, under_way) = (most_blocks.load(Ordering::Relaxed), most_under_way.load(Ordering::Relaxed));
    eprintln!(
        "at most {} in blocks of {}, {} being written",
        ByteCount(blocks),
        ByteCount(LIMIT),
        ByteCount(under_way)
    );
    // The sum is taken while the folder changes: a block may be deleted behind the walk and another added before it, by
    // one eviction (a tenth, one block here) and three writing processes.
    assert!(blocks <= LIMIT + 2 * FILE, "{blocks} of {LIMIT}");
    // Two processes write, and a third, which is killed; its partial blocks are deleted by the next eviction.
    assert!(under_way <= 4 * THREADS * FILE, "{under_way}");
    let cache = DiskCache::open(folder.path(), ByteCount(LIMIT)).unwrap();
    assert!(cache.used_bytes().unwrap().0 <= LIMIT);
    assert_eq!(bytes_under_way(folder.path()), 0);
    let store = s3_store(server.address, cached(folder.path(), LIMIT));
    for shard in 0..SHARDS {
        let object = store.object(&shard.to_string()).unwrap();
        assert!(read(&object, 0, SHARD_BYTES).unwrap() == content(SHARD_BYTES, 0));
    }
}
