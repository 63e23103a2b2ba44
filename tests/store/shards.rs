//! Tests of shards in stores, read through a loader: same batches as from a disk, also with injected faults.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use feedstock::source::store::{DiskCache, StoreOptions};
use feedstock::source::{OpenOptions, SampleRead, Source, conformance, open_with};
use feedstock::transform::RandomResizedCrop;
use feedstock::{ByteCount, Error, Loader, SampleId, Sampling};
use xxhash_rust::xxh3::Xxh3;

use super::faulty_proxy::{Fault, FaultyProxy};
use super::nginx::Nginx;
use super::quick;
use super::s3::{S3, s3_settings};

/// Tar of small images with class numbers, in the WebDataset convention.
fn tar(first: u32, count: u32) -> Vec<u8> {
    let mut tar = tar::Builder::new(vec![]);
    let mut add = |name: String, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    for i in first..first + count {
        let (width, height) = (20 + i % 90, 30 + i % 50);
        let mut ppm = format!("P6\n{width} {height}\n255\n").into_bytes();
        ppm.extend((0..width * height * 3).map(|j| (feedstock::rng::mix64(u64::from(i * 31 + j / 9)) & 0xFF) as u8));
        add(format!("{i:05}.ppm"), &ppm);
        add(format!("{i:05}.cls"), (i % 5).to_string().as_bytes());
    }
    tar.into_inner().unwrap()
}

/// Folder with a bucket: two plain shards, one compressed in one frame, and the class names.
fn data_set() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let bucket = root.path().join("bucket").join("set");
    fs::create_dir_all(&bucket).unwrap();
    fs::write(bucket.join("train-0.tar"), tar(0, 120)).unwrap();
    fs::write(bucket.join("train-1.tar"), tar(120, 80)).unwrap();
    fs::write(bucket.join("piece.tar.zst"), zstd::stream::encode_all(&tar(200, 90)[..], 1).unwrap()).unwrap();
    fs::write(bucket.join("classes.txt"), "ant\nbee\ncat\ndog\neel\n").unwrap();
    root
}

fn options(index: &Path, store: StoreOptions) -> OpenOptions {
    OpenOptions::new().shuffle_buffer(ByteCount(300_000)).index_folder(index).store(store)
}

/// Hash of pixels, labels and ids of two epochs. Checks the memory limit, too.
fn digest(source: &Arc<dyn Source>) -> Result<u64, Error> {
    let loader = Loader::builder(source.clone())
        .batch_size(16)
        .max_workers(2)
        .ram_budget(ByteCount(256 << 20))
        .transform(RandomResizedCrop::new(24).flip(0.5))
        .build()?;
    let mut digest = Xxh3::new();
    for epoch in 0..2 {
        for batch in loader.epoch(epoch) {
            let batch = batch?;
            digest.update(batch.bytes().unwrap());
            batch.labels().iter().for_each(|label| digest.update(&label.to_le_bytes()));
            batch.ids().iter().for_each(|id| digest.update(&id.0.to_le_bytes()));
        }
    }
    assert!(loader.bad_samples().is_empty());
    let memory = loader.stats().memory;
    assert!(memory.peak <= memory.limit, "{memory:?}");
    Ok(digest.digest())
}

#[test]
fn shards_in_a_bucket_give_the_same_batches_as_on_a_disk() {
    let (root, index) = (data_set(), tempfile::tempdir().unwrap());
    let server = S3::start(root.path());
    let cache = tempfile::tempdir().unwrap();
    for cached in [false, true] {
        let cache = cached.then(|| DiskCache::open(cache.path(), ByteCount(64 << 20)).unwrap());
        let store = StoreOptions { settings: s3_settings(server.address), cache, ..quick() };
        let options = options(index.path(), store);
        for (names, count) in [("train-{0..1}.tar", 200), ("piece.tar.zst", 90), ("", 290)] {
            let near = root.path().join("bucket/set").join(names);
            let near = open_with(near, &options).unwrap();
            // The second time with a saved index.
            for _ in 0..2 {
                let far = open_with(format!("s3://bucket/set/{names}"), &options).unwrap();
                assert_eq!((far.len(), far.classes()[4].as_str()), (count, "eel"), "{names}");
                assert!(far.io_profile().concurrency >= 16 && far.io_profile().buffer_bytes > 0);
                assert_eq!(digest(&far).unwrap(), digest(&near).unwrap(), "{names}, cached: {cached}");
                assert!(far.name(feedstock::SampleId(0)).starts_with("s3://bucket/set/"));
            }
            conformance::check(&*near).unwrap();
        }
    }
}

#[test]
fn batches_are_right_under_faults() {
    let (root, index, scratch) = (data_set(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(server) = Nginx::start(root.path(), scratch.path()) else { return };
    let proxy = FaultyProxy::start(server.address, |_| Fault::Pass);
    let options = options(index.path(), quick());
    let far = open_with(format!("http://{}/bucket/set/train-{{0..1}}.tar", proxy.address()), &options).unwrap();
    let near = open_with(root.path().join("bucket/set/train-{0..1}.tar"), &options).unwrap();
    let before = proxy.count();
    let fault = |number: u64| match number % 20 {
        0 => Fault::Reset,
        1 => Fault::Status(503, ""),
        2 => Fault::Short(100),
        _ => Fault::Pass,
    };
    proxy.plan(move |request| fault(feedstock::rng::mix64(request.number as u64)));
    assert_eq!(digest(&far).unwrap(), digest(&near).unwrap());
    // 400 samples, and about 15 % of the requests repeated.
    assert!(proxy.count() - before > 430, "{}", proxy.count() - before);
}

#[test]
fn neighboring_samples_share_a_request() {
    let (root, index, scratch) = (data_set(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(server) = Nginx::start(root.path(), scratch.path()) else { return };
    let proxy = FaultyProxy::start(server.address, |_| Fault::Pass);
    let options = options(index.path(), quick());
    let far = open_with(format!("http://{}/bucket/set/train-{{0..1}}.tar", proxy.address()), &options).unwrap();
    let run = |loader: &Loader| {
        let before = proxy.count();
        let ids: Vec<u64> =
            loader.epoch(0).flat_map(|batch| batch.unwrap().ids().iter().map(|id| id.0).collect::<Vec<_>>()).collect();
        (ids, proxy.count() - before, loader.stats().memory)
    };
    for budget in [64, 512] {
        let builder = || {
            let builder =
                Loader::builder(far.clone()).batch_size(16).max_workers(2).ram_budget(ByteCount(budget << 20));
            builder.transform(RandomResizedCrop::new(24))
        };
        let (ids, in_order, memory) = run(&builder().sampling(Sampling::Sequential).build().unwrap());
        assert!(ids.into_iter().eq(0..200) && memory.peak <= memory.limit);
        let (mut ids, shuffled, _) = run(&builder().build().unwrap());
        ids.sort_unstable();
        assert!(ids.into_iter().eq(0..200));
        // About five images fit into a read buffer; a slow machine may request some twice.
        assert!(in_order <= 200 / 4, "{in_order} requests in order, {shuffled} shuffled");
        assert!(shuffled > 2 * in_order && shuffled <= 200, "{in_order} requests in order, {shuffled} shuffled");
    }
}

#[test]
fn failed_reads_are_reported_per_sample() {
    let (root, index, scratch) = (data_set(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(server) = Nginx::start(root.path(), scratch.path()) else { return };
    let proxy = FaultyProxy::start(server.address, |_| Fault::Pass);
    let options = options(index.path(), StoreOptions { attempts: 2, ..quick() });
    let far = open_with(format!("http://{}/bucket/set/train-0.tar", proxy.address()), &options).unwrap();
    let ids = [0, 1, 100].map(SampleId);
    let mut outs = ids.map(|id| vec![0; far.encoded_bytes(id) as usize]);
    let read = |outs: &mut [Vec<u8>]| {
        let mut reads: Vec<SampleRead<'_>> = ids.iter().zip(outs).map(|(&id, out)| SampleRead::new(id, out)).collect();
        far.read_many(&mut reads);
        reads.into_iter().map(|read| read.result.map_err(|error| error.to_string())).collect::<Vec<_>>()
    };
    // The first two are neighbors; the third is far from them.
    let seen = proxy.count();
    assert!(read(&mut outs).iter().all(Result::is_ok));
    assert_eq!(proxy.count() - seen, 2);
    proxy.plan(
        |request| if request.range.is_some_and(|(start, _)| start < 10_000) { Fault::Reset } else { Fault::Pass },
    );
    let done = read(&mut outs);
    for failed in &done[..2] {
        let error = failed.as_ref().unwrap_err();
        assert!(error.contains("train-0.tar (bytes ") && error.contains("2 attempts"), "{error}");
    }
    assert_eq!(done[2], Ok(()));
}

#[test]
fn replaced_shards_are_named() {
    let (root, index) = (data_set(), tempfile::tempdir().unwrap());
    let server = S3::start(root.path());
    let store = StoreOptions { settings: s3_settings(server.address), ..quick() };
    let far = open_with("s3://bucket/set/train-1.tar", &options(index.path(), store)).unwrap();
    digest(&far).unwrap();
    fs::write(root.path().join("bucket/set/train-1.tar"), tar(500, 80)).unwrap();
    let error = digest(&far).unwrap_err().to_string();
    assert!(error.contains("s3://bucket/set/train-1.tar"), "{error}");
}

#[test]
fn missing_shards_are_named() {
    let (root, index) = (data_set(), tempfile::tempdir().unwrap());
    let server = S3::start(root.path());
    let store = StoreOptions { settings: s3_settings(server.address), ..quick() };
    let options = options(index.path(), store);
    for (url, expected) in [
        ("s3://bucket/set/missing.tar", "s3://bucket/set/missing.tar"),
        ("s3://bucket/none/", "no shards (*.tar, *.tar.zst) found"),
        ("s3://bucket/set/*.tar", "'*' matches local files only"),
    ] {
        let error = open_with(url, &options).err().unwrap().to_string();
        assert!(error.contains(expected), "{url}: {error}");
    }
}

/// A failure to read a class list must not change the labels, as an ignored list would.
#[test]
fn a_refused_class_list_is_an_error_and_a_missing_one_is_absent() {
    let (root, index) = (data_set(), tempfile::tempdir().unwrap());
    let server = S3::start(root.path());
    let proxy = FaultyProxy::start(server.address, |_| Fault::Pass);
    let store = StoreOptions { settings: s3_settings(proxy.address()), attempts: 2, ..quick() };
    let options = options(index.path(), store);
    let open = || open_with("s3://bucket/set/train-0.tar", &options);
    for fault in [Fault::Status(403, ""), Fault::Status(500, ""), Fault::Reset] {
        for list in ["manifest.json", "classes.txt"] {
            let of_list = fault.clone();
            proxy.plan(move |request| if request.path.contains(list) { of_list.clone() } else { Fault::Pass });
            let error = open().err().unwrap();
            assert!(error.is_io() && !error.is_not_found(), "{fault:?} {list}: {error}");
            assert!(error.to_string().contains(&format!("s3://bucket/set/{list}")), "{fault:?}: {error}");
        }
    }
    proxy.plan(|request| if request.path.contains("classes.txt") { Fault::Status(404, "") } else { Fault::Pass });
    assert_eq!(open().unwrap().classes(), ["0", "1", "2", "3", "4"]);
    proxy.plan(|_| Fault::Pass);
    assert_eq!(open().unwrap().classes()[4], "eel");
}
