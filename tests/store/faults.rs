//! Tests of retries, deadlines, hedging and coalescing, with injected faults.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use feedstock::SampleId;
use feedstock::rng::{KeyedRng, Seed};
use feedstock::source::store::{Object, Store, StoreError, StoreOptions};
use tempfile::TempDir;

use super::faulty_proxy::{Fault, FaultyProxy, Request};
use super::nginx::Nginx;
use super::s3::S3;
use super::{bucket, content, quick, read, s3_store, store_error};

const BYTES: usize = 2_000_000;

struct Fixture {
    proxy: FaultyProxy,
    store: Store,
    object: Object,
    _server: S3,
    _root: TempDir,
}

/// Object behind a proxy without faults.
fn fixture(options: StoreOptions) -> Fixture {
    let root = bucket(&[("x", BYTES)]);
    let server = S3::start(root.path());
    let proxy = FaultyProxy::start(server.address, |_| Fault::Pass);
    let store = s3_store(proxy.address(), options);
    let object = store.object("x").unwrap();
    Fixture { proxy, store, object, _server: server, _root: root }
}

/// Plan with a fault for the next `times` requests.
fn first(times: usize, fault: Fault) -> impl Fn(&Request) -> Fault + Send {
    let met = AtomicUsize::new(0);
    move |_| if met.fetch_add(1, Ordering::Relaxed) < times { fault.clone() } else { Fault::Pass }
}

#[test]
fn transient_failures_are_retried_and_counted() {
    let Fixture { proxy, store, object, .. } = &fixture(quick());
    let whole = content(BYTES, 0);
    let faults = [
        Fault::Status(500, ""),
        Fault::Status(503, ""),
        Fault::Status(429, ""),
        Fault::Status(408, ""),
        Fault::Short(0),
        Fault::Short(30_000),
        Fault::Reset,
        Fault::Stall(0),
        Fault::Stall(20_000),
        Fault::Late(Duration::from_millis(1300)),
        Fault::ShorterRange,
        Fault::Trimmed,
        Fault::Padded,
        Fault::MislabelledRange,
        Fault::WholeInstead,
    ];
    for fault in faults {
        let before = store.counts().retries;
        let seen = proxy.count();
        proxy.plan(first(2, fault.clone()));
        assert!(read(object, 100_000, 60_000).unwrap() == whole[100_000..160_000], "{fault:?}");
        assert_eq!((store.counts().retries - before, proxy.count() - seen), (2, 3), "{fault:?}");
    }
    // Opening an object is retried, too.
    proxy.plan(first(2, Fault::Status(503, "")));
    assert_eq!(store.object("x").unwrap().len(), BYTES as u64);
}

#[test]
fn retry_after_is_respected() {
    let Fixture { proxy, object, .. } = &fixture(quick());
    proxy.plan(first(1, Fault::Status(503, "retry-after: 1\r\n")));
    let since = Instant::now();
    read(object, 0, 10).unwrap();
    assert!(since.elapsed() >= Duration::from_secs(1), "{:?}", since.elapsed());
}

#[test]
fn lasting_failures_are_errors_with_numbers() {
    let Fixture { proxy, object, .. } = &fixture(StoreOptions { attempts: 4, ..quick() });
    proxy.plan(|_| Fault::Status(503, ""));
    let error = read(object, 500, 7000).unwrap_err();
    let StoreError::Request { url, offset, bytes, attempts, .. } = store_error(&error) else { panic!("{error}") };
    assert_eq!((url.as_str(), *offset, *bytes, *attempts), ("s3://bucket/x", 500, 7000, 4));
    assert!(error.to_string().contains("503"), "{error}");
    proxy.plan(|_| Fault::Short(5));
    let error = read(object, 500, 7000).unwrap_err().to_string();
    assert!(error.contains("5 of 7000 bytes came"), "{error}");
    for status in [400, 401, 403, 404, 410, 451] {
        proxy.plan(move |_| Fault::Status(status, ""));
        let seen = proxy.count();
        let error = read(object, 0, 7).unwrap_err().to_string();
        assert!(error.contains(&status.to_string()) && error.contains("1 attempt"), "{error}");
        assert_eq!(proxy.count() - seen, 1, "{status}");
    }
}

#[test]
fn reads_end_by_their_deadline() {
    let deadline = Duration::from_millis(1500);
    let Fixture { proxy, object, .. } = &fixture(StoreOptions { deadline, attempts: 100, ..quick() });
    for fault in [Fault::Stall(10), Fault::Status(503, "retry-after: 20\r\n"), Fault::Status(500, ""), Fault::Reset] {
        let told = format!("{fault:?}");
        proxy.plan(move |_| fault.clone());
        let since = Instant::now();
        let error = read(object, 0, 100_000).unwrap_err();
        let StoreError::Request { elapsed, attempts, .. } = store_error(&error) else { panic!("{error}") };
        assert!(since.elapsed() < deadline + Duration::from_millis(500), "{told}: {:?}", since.elapsed());
        assert!(*elapsed <= since.elapsed() && *attempts >= 1, "{told}: {error}");
    }
    // No server.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let store = s3_store(gone, StoreOptions { deadline, ..quick() });
    let error = store.object("x").unwrap_err().to_string();
    assert!(error.contains("refused"), "{error}");
}

#[test]
fn web_servers_without_ranges_are_refused() {
    let (root, scratch) = (bucket(&[("x", BYTES)]), tempfile::tempdir().unwrap());
    let Some(nginx) = Nginx::start(root.path(), scratch.path()) else { return };
    let proxy = FaultyProxy::start(nginx.address, |_| Fault::WholeInstead);
    let url = format!("http://{}/bucket/x?signature=hunter2", proxy.address());
    let (store, path) = Store::open(&url, quick()).unwrap();
    let error = read(&store.object(&path).unwrap(), 10, 10).unwrap_err().to_string();
    assert!(error.contains("supports ranges") && !error.contains("hunter2"), "{error}");
    proxy.plan(|_| Fault::Status(404, ""));
    let error = store.object("y").unwrap_err().to_string();
    assert!(error.contains("404") && !error.contains("hunter2"), "{error}");
}

/// Plan with a random fault for one request in three.
fn random_faults(seed: u64) -> impl Fn(&Request) -> Fault + Send {
    move |request| {
        let mut rng = KeyedRng::new(Seed(seed), 0, SampleId(request.number as u64), 0);
        match rng.below(30) {
            0 => Fault::Status(500, ""),
            1 => Fault::Status(503, ""),
            2 => Fault::Status(429, ""),
            3 => Fault::Reset,
            4 => Fault::Stall(rng.below(40_000) as usize),
            5 | 6 => Fault::Short(rng.below(40_000) as usize),
            7 => Fault::ShorterRange,
            8 => Fault::MislabelledRange,
            9 => Fault::Trimmed,
            10 => Fault::Padded,
            11 => Fault::Late(Duration::from_millis(rng.below(100))),
            _ => Fault::Pass,
        }
    }
}

#[test]
fn reads_are_right_under_random_faults() {
    let options = StoreOptions { hedge_after: Some(3.0), in_flight: 6, attempts: 20, ..quick() };
    let Fixture { proxy, store, object, .. } = &fixture(StoreOptions { deadline: Duration::from_secs(30), ..options });
    let whole = content(BYTES, 0);
    proxy.plan(random_faults(7));
    thread::scope(|scope| {
        for thread in 0..12u64 {
            let whole = &whole;
            scope.spawn(move || {
                let mut rng = KeyedRng::new(Seed(thread), 1, SampleId(0), 0);
                for _ in 0..25 {
                    let offset = rng.below(BYTES as u64 - 60_000);
                    let bytes = 1 + rng.below(60_000) as usize;
                    let bytes_read = read(object, offset, bytes).unwrap();
                    assert!(bytes_read == whole[offset as usize..offset as usize + bytes], "{bytes} from {offset}");
                }
            });
        }
    });
    let counts = store.counts();
    assert!(counts.retries > 50 && counts.requests >= 300 + counts.retries, "{counts:?}");
    // A permit is free once the client has dropped its answer, which the proxy may notice a moment later.
    assert!(proxy.concurrent_max() <= 6 + 6, "{}", proxy.concurrent_max());
    eprintln!("{counts:?}, {} concurrent requests", proxy.concurrent_max());
}

#[test]
fn concurrent_requests_are_limited() {
    let Fixture { proxy, object, .. } = &fixture(StoreOptions { in_flight: 3, ..quick() });
    proxy.plan(|_| Fault::Late(Duration::from_millis(30)));
    thread::scope(|scope| {
        for i in 0..12 {
            scope.spawn(move || read(object, i * 100, 100).unwrap());
        }
    });
    assert_eq!(proxy.concurrent_max(), 3);
}

#[test]
fn slow_requests_are_hedged_rarely() {
    let options = StoreOptions { attempt_timeout: Duration::from_secs(10), hedge_after: Some(3.0), ..quick() };
    let Fixture { proxy, store, object, .. } = &fixture(StoreOptions { deadline: Duration::from_secs(20), ..options });
    let whole = content(BYTES, 0);
    (0..100).for_each(|i| drop(read(object, i * 1000, 1000).unwrap()));
    let before = store.counts();
    let slow = Duration::from_secs(3);
    // A slow request that sends nothing, and one that sends a part first.
    for fault in [Fault::Late(slow), Fault::Stall(500)] {
        proxy.plan(first(1, fault.clone()));
        let since = Instant::now();
        assert!(read(object, 5000, 1000).unwrap() == whole[5000..6000]);
        assert!(since.elapsed() < slow / 2, "{fault:?}: {:?}", since.elapsed());
        eprintln!("a request of {slow:?} was hedged in {:?}", since.elapsed());
    }
    let after = store.counts();
    assert!(after.hedges - before.hedges >= 2 && after.hedges_won - before.hedges_won >= 2, "{after:?}");
    assert_eq!(after.retries, before.retries);
    // With many slow requests, at most one in twenty is hedged.
    let slowed = Arc::new(Mutex::new(0u32));
    let counted = Arc::clone(&slowed);
    proxy.plan(move |_| {
        let mut count = counted.lock().unwrap();
        *count += 1;
        Fault::Late(Duration::from_millis(if count.is_multiple_of(4) { 300 } else { 0 }))
    });
    (0..120).for_each(|i| drop(read(object, i * 1000, 1000).unwrap()));
    let all = store.counts();
    assert!(all.hedges > after.hedges && all.hedges * 20 <= all.requests, "{all:?}");
}

#[test]
fn neighboring_reads_share_a_request() {
    let Fixture { proxy, store, object, .. } = &fixture(quick());
    let whole = content(BYTES, 0);
    let reads = [(900_000u64, 1000usize), (0, 5000), (5000, 10), (70_000, 30_000), (901_500, 200), (300_000, 0)];
    let mut memory: Vec<(u64, Vec<u8>)> = reads.iter().map(|&(offset, bytes)| (offset, vec![0; bytes])).collect();
    let mut outs: Vec<(u64, &mut [u8])> = memory.iter_mut().map(|(at, out)| (*at, out.as_mut_slice())).collect();
    let (seen, before) = (proxy.count(), store.counts().received_bytes);
    assert!(object.read_many(&mut outs).iter().all(Result::is_ok));
    // 5010 to 70,000 is less than 64 KiB.
    assert_eq!((proxy.count() - seen, store.counts().received_bytes - before), (2, 100_000 + 1700));
    for (offset, out) in &memory {
        assert!(*out == whole[*offset as usize..*offset as usize + out.len()]);
    }
}
