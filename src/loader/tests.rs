//! Tests of a loader under memory pressure, with simulated readings of the machine's memory.

use std::collections::HashMap;
use std::sync::Mutex;

use xxhash_rust::xxh3::xxh3_64;

use super::*;
use crate::device::HostDevice;
use crate::host::MemorySnapshot;
use crate::source::{PageCache, SampleRead, SourceError};
use crate::sync::AtomicUsize;
use crate::tensor::{DType, Layout};
use crate::transform::RandomResizedCrop;
use crate::units::{ByteCount, SampleId};

/// A source of small PNG files, which are worth caching.
struct SmallFiles {
    classes: Vec<String>,
    file: Vec<u8>,
}

impl SmallFiles {
    fn new() -> Self {
        let mut file = std::io::Cursor::new(Vec::new());
        let image = image::RgbImage::from_fn(40, 30, |x, y| image::Rgb([x as u8 * 6, y as u8 * 8, (x ^ y) as u8]));
        image.write_to(&mut file, image::ImageFormat::Png).expect("encodes");
        SmallFiles { classes: vec!["a".into(), "b".into()], file: file.into_inner() }
    }
}

impl Source for SmallFiles {
    fn len(&self) -> u64 {
        1000
    }
    fn classes(&self) -> &[String] {
        &self.classes
    }
    fn label(&self, id: SampleId) -> u32 {
        (id.0 % 2) as u32
    }
    fn encoded_bytes(&self, _: SampleId) -> u64 {
        self.file.len() as u64
    }
    fn name(&self, id: SampleId) -> String {
        id.to_string()
    }
    fn read_into(&self, _: SampleId, out: &mut [u8]) -> Result<(), SourceError> {
        out.copy_from_slice(&self.file);
        Ok(())
    }
    fn index_bytes(&self) -> u64 {
        0
    }
}

/// A loader whose memory probe returns this share of the limit.
fn loader(dtype: DType, left: impl Fn() -> f64 + Send + Sync + 'static) -> Loader {
    loader_on(Arc::new(HostDevice::new()), dtype, left)
}

fn loader_on(device: Arc<dyn Device>, dtype: DType, left: impl Fn() -> f64 + Send + Sync + 'static) -> Loader {
    let probe = move || {
        let limit = ByteCount(1 << 30);
        MemorySnapshot {
            limit,
            available: ByteCount((limit.0 as f64 * left()) as u64),
            limited_by: crate::host::MemoryLimit::Machine,
            stalled: Duration::ZERO,
        }
    };
    let builder = Loader::builder(SmallFiles::new())
        .transform(RandomResizedCrop::new(32).flip(0.5))
        .batch_size(16)
        .max_workers(5);
    builder
        .device(device)
        .dtype(dtype)
        .layout(Layout::Nhwc)
        .ram_budget(ByteCount(1 << 30))
        .prefetch(6)
        .memory_probe(probe)
        .build()
        .expect("an ample budget")
}

fn digests(loader: &Loader, epoch: u64, pause: Duration) -> Vec<u64> {
    let digest = |batch: Result<Batch, Error>| {
        std::thread::sleep(pause);
        xxh3_64(batch.expect("a batch").bytes().expect("on the CPU"))
    };
    loader.epoch(epoch).map(digest).collect()
}

/// Takes batches as fast as they come until `holds` returns true.
fn consume_until(batches: &mut dyn Iterator<Item = Result<Batch, Error>>, what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        drop(batches.next().expect("there is always another").expect("a batch"));
    }
}

#[test]
fn memory_goes_back_to_the_system_under_pressure_and_returns() {
    for dtype in [DType::U8, DType::F32] {
        let left = Arc::new(Mutex::new(0.5));
        let probe = left.clone();
        let loader = loader(dtype, move || *probe.lock().expect("a share"));
        let full = loader.stats().memory.held;
        let planned = loader.governor_log().now;
        let mut epoch = (0..).flat_map(|epoch| loader.epoch(epoch));
        *left.lock().expect("a share") = 0.01;
        let least = loader.plan().least;
        // The cache is released with the last chunk that is read from it, which may be a moment later.
        let small = ByteCount(full.0 - loader.plan().level_bytes(0).0 + loader.plan().level_bytes(9).0);
        consume_until(&mut epoch, "it shrinks to the least", || {
            loader.governor_log().now == least && loader.stats().memory.held <= small
        });
        let log = loader.governor_log();
        assert_eq!((log.level, log.made), (loader.plan().levels() - 1, 1), "{log:?}");
        assert!(matches!(log.latest[0].reason, stats::ResizeReason::MemoryShort { .. }), "{log:?}");
        *left.lock().expect("a share") = 0.5;
        consume_until(&mut epoch, "all of it circulates again, and the cache is there", || {
            let log = loader.governor_log();
            log.level == 0 && log.now == planned && loader.stats().memory.held == full
        });
        assert!(loader.governor_log().made > 2, "it grows level by level");
    }
}

#[cfg(feature = "cuda")]
#[test]
fn page_locked_slots_are_released_and_device_memory_stays() {
    let standin = crate::device::standin::Standin::new("");
    let device = crate::device::CudaDevice::open(standin.number()).expect("a device");
    let left = Arc::new(Mutex::new(0.5));
    let probe = left.clone();
    let loader = loader_on(Arc::new(device), DType::F32, move || *probe.lock().expect("a share"));
    let locked = || standin.report().number("pinned_bytes");
    let on_device = standin.report().number("device_bytes");
    let (full, slot) = (locked(), loader.plan().slot_bytes);
    assert_eq!(full, loader.plan().slots as u64 * slot);
    let mut epoch = (0..).flat_map(|epoch| loader.epoch(epoch));
    *left.lock().expect("a share") = 0.01;
    let least = loader.plan().least.slots as u64 * slot;
    consume_until(&mut epoch, "slots are released to the driver", || locked() == least);
    *left.lock().expect("a share") = 0.5;
    consume_until(&mut epoch, "they are allocated again", || locked() == full);
    assert_eq!(standin.report().number("device_bytes"), on_device);
    drop(epoch);
    drop(loader);
    standin.assert_empty();
}

#[test]
fn batches_do_not_depend_on_the_governor() {
    let calm = loader(DType::U8, || 0.5);
    let expected: HashMap<u64, Vec<u64>> = (0..4).map(|epoch| (epoch, digests(&calm, epoch, Duration::ZERO))).collect();
    assert_eq!(calm.governor_log().made, 0);
    // Another share at each reading.
    let readings = AtomicUsize::new(0);
    let restless = loader(DType::U8, move || [0.01, 0.05, 0.5][readings.fetch_add(1, Ordering::Relaxed) % 3]);
    for (epoch, expected) in &expected {
        assert_eq!(&digests(&restless, *epoch, Duration::from_millis(4)), expected, "epoch {epoch}");
    }
    assert!(restless.governor_log().made >= 1, "{:?}", restless.governor_log());
}

#[test]
fn a_consumer_that_holds_too_much_gets_batches_under_pressure() {
    let loader = loader(DType::U8, || 0.001);
    let mut epoch = loader.epoch(0);
    // The plan has room for six batches ahead; one held batch was announced.
    let held: Vec<_> = (0..4).map(|_| epoch.next().expect("a batch").expect("no error")).collect();
    assert!(epoch.next().expect("one more").is_ok(), "{held:?} {:?}", loader.governor_log());
    assert!(loader.governor_log().made >= 1);
}

#[test]
fn a_wait_for_an_output_is_not_counted_as_ready() {
    let builder = || {
        let builder = Loader::builder(SmallFiles::new()).batch_size(50).transform(RandomResizedCrop::new(32));
        builder.dtype(DType::F32).device(Arc::new(HostDevice::new())).max_workers(1)
    };
    let minimum = builder().ram_budget(ByteCount(1 << 30)).plan().expect("it fits").minimum;
    let loader = builder().ram_budget(minimum).build().expect("just enough");
    assert_eq!(loader.plan().outputs, 1, "the next batch has no output while this one is held");
    for batch in loader.epoch(0) {
        let _held = batch.expect("a good batch");
        std::thread::sleep(Duration::from_millis(10));
    }
    let latency = loader.stats().pipeline.latency;
    assert!(latency.batch_queue > Duration::from_millis(10) * 19 * 50 / 2, "{latency:?}");
    assert!(latency.ready * 4 < latency.batch_queue, "{latency:?}");
}

/// Small files whose source records the page cache policy of every read.
struct Recorder {
    files: SmallFiles,
    policies: Mutex<Vec<PageCache>>,
}

impl Source for Recorder {
    fn len(&self) -> u64 {
        self.files.len()
    }
    fn classes(&self) -> &[String] {
        self.files.classes()
    }
    fn label(&self, id: SampleId) -> u32 {
        self.files.label(id)
    }
    fn encoded_bytes(&self, id: SampleId) -> u64 {
        self.files.encoded_bytes(id)
    }
    fn name(&self, id: SampleId) -> String {
        self.files.name(id)
    }
    fn read_into(&self, id: SampleId, out: &mut [u8]) -> Result<(), SourceError> {
        self.files.read_into(id, out)
    }
    fn index_bytes(&self) -> u64 {
        self.files.index_bytes()
    }
    fn read_many(&self, reads: &mut [SampleRead<'_>]) {
        self.policies.lock().expect("a list").extend(reads.iter().map(|read| read.page_cache));
        self.files.read_many(reads);
    }
    fn read_ahead(&self, _: &[SampleId], page_cache: PageCache) {
        self.policies.lock().expect("a list").push(page_cache);
    }
}

#[test]
fn loaders_that_share_a_source_have_page_cache_policies_of_their_own() {
    let source = Arc::new(Recorder { files: SmallFiles::new(), policies: Mutex::default() });
    // Beside a budget beyond all memory there is no page cache for the data.
    let builder = |bytes: u64| Loader::builder(source.clone()).transform(RandomResizedCrop::new(8)).ram_budget(bytes);
    let policies = |loader: &Loader| {
        assert!(loader.epoch(0).all(|batch| batch.is_ok()));
        let mut policies = std::mem::take(&mut *source.policies.lock().expect("a list"));
        policies.dedup();
        policies
    };
    let keeps = builder(64 << 20).build().expect("it fits");
    builder(1 << 50).plan().expect("it fits");
    assert_eq!(policies(&keeps), [PageCache::Keep], "planning another loader changes nothing");
    let keeps = builder(64 << 20).build().expect("it fits");
    let drops = builder(1 << 50).build().expect("it fits");
    assert_eq!(policies(&drops), [PageCache::Drop]);
    assert_eq!(policies(&keeps), [PageCache::Keep], "building another loader changes nothing");
}
