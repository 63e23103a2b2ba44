//! Test of the memory of a store, counted by the allocator of a process of its own.

use std::thread;
use std::time::Duration;

use feedstock::host::{heap, reset_heap_peak};
use feedstock::rng::{KeyedRng, Seed};
use feedstock::source::store::{DiskCache, Object, Store, StoreOptions};
use feedstock::{ByteCount, SampleId};

use super::faulty_proxy::{Fault, FaultyProxy, Request};
use super::nginx::Nginx;
use super::{bucket, child, content};

const BYTES: usize = 48 << 20;
const LARGEST: usize = 3 << 20;

#[test]
#[ignore = "the child of another test"]
fn child_that_counts_its_memory() {
    let url = std::env::var("STORE_URL").unwrap();
    let in_flight = 12;
    let cache = std::env::var("STORE_CACHE").ok().map(|folder| DiskCache::open(folder, ByteCount(20 << 20)).unwrap());
    let cached = cache.is_some();
    let hedge_after = std::env::var("STORE_HEDGES").ok().map(|after| after.parse().unwrap());
    let options = StoreOptions { in_flight, coalesce_gap_bytes: 0, hedge_after, cache, ..StoreOptions::default() };
    let (store, path) = Store::open(&url, options).unwrap();
    let object = store.object(&path).unwrap();
    let mut outs: Vec<Vec<u8>> = (0..24).map(|_| vec![0; LARGEST]).collect();
    let whole = content(BYTES, 0);
    let before = heap().unwrap().in_use;
    reset_heap_peak();
    thread::scope(|scope| {
        for (thread, out) in outs.iter_mut().enumerate() {
            let (object, whole): (&Object, &[u8]) = (&object, &whole);
            scope.spawn(move || {
                let mut rng = KeyedRng::new(Seed(thread as u64), 0, SampleId(0), 0);
                for _ in 0..12 {
                    let offset = rng.below((BYTES - LARGEST) as u64) as usize;
                    object.read_at(offset as u64, out).unwrap();
                    assert!(out[..] == whole[offset..offset + LARGEST]);
                }
            });
        }
    });
    let peak = ByteCount(heap().unwrap().peak.0 - before.0);
    let limit = ByteCount(store.held_bytes(LARGEST as u64));
    let counts = store.counts();
    eprintln!("{in_flight} requests, cached {cached}: peak {peak}, stated maximum {limit} ({counts:?})");
    assert!(peak <= limit, "peak {peak}, stated maximum {limit}");
    assert_eq!(counts.hedges > 0, hedge_after.is_some());
    // The maximum is tight: 24 whole reads in memory would take twice as much.
    assert!(limit.0 < 24 * LARGEST as u64 / 2);
}

#[test]
fn memory_stays_within_the_stated_maximum() {
    let (root, scratch) = (bucket(&[("x", BYTES)]), tempfile::tempdir().unwrap());
    let Some(nginx) = Nginx::start(root.path(), scratch.path()) else { return };
    // Some answers are late, so that requests are hedged.
    let late = Fault::Late(Duration::from_millis(300));
    let plan = move |request: &Request| if request.number % 20 == 19 { late.clone() } else { Fault::Pass };
    let proxy = FaultyProxy::start(nginx.address, plan);
    let url = format!("http://{}/bucket/x", proxy.address());
    let folder = scratch.path().join("cache").display().to_string();
    let url = ("STORE_URL", url);
    let others = [vec![], vec![("STORE_HEDGES", "1".to_owned())], vec![("STORE_CACHE", folder)]];
    for mut variables in others {
        variables.push(url.clone());
        assert!(child("held::child_that_counts_its_memory", &variables).status().unwrap().success());
    }
}
