//! Properties of every run: each sample once, in the order of the seed; the same bytes for any number of workers, any
//! budget and any device; and every byte in the ledger.
//!
//! Each expectation is checked under every configuration of [`every_way`], the least budget included.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

#[path = "pipeline/held_slots.rs"]
mod held_slots;
#[path = "pipeline/sampling.rs"]
mod sampling;
#[path = "pipeline/shards.rs"]
mod shards;
#[cfg(feature = "cuda")]
mod standin;

use std::collections::BTreeSet;
use std::io::Cursor;
use std::sync::Arc;
#[cfg(feature = "cuda")]
use std::sync::atomic::AtomicU32;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use feedstock::budget::AccountKind;
use feedstock::device::{Device, DeviceSpec, SimDevice, open};
use feedstock::rng::{KeyedRng, Seed};
use feedstock::source::{MemorySource, SourceError};
use feedstock::tensor::SampleSpec;
use feedstock::transform::{Geometry, IMAGENET, RandomResizedCrop, Resize, Transform};
use feedstock::{
    ByteCount, DType, Error, ErrorKind, Layout, Loader, LoaderBuilder, OnBadSample, SampleError, SampleErrorKind,
    SampleId, Source, Stage, State,
};
use image::{ExtendedColorType, ImageEncoder};
use xxhash_rust::xxh3::Xxh3;

const CLASSES: u32 = 3;

/// An image of noise over a gradient, so that no two crops of it are alike.
fn noise(seed: u64, width: u32, height: u32) -> Vec<u8> {
    let mut rng = KeyedRng::new(Seed(seed), 0, SampleId(seed), 1);
    (0..width * height)
        .flat_map(|i| {
            let (x, y) = (i % width, i / width);
            let noise = (rng.next_u64() & 31) as u32;
            [(x * 255 / width + noise) as u8, (y * 255 / height + noise) as u8, (seed as u32 * 37 + noise) as u8]
        })
        .collect()
}

fn jpeg(seed: u64, width: u32, height: u32) -> Vec<u8> {
    let mut out = Vec::new();
    let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(Cursor::new(&mut out), 85);
    encoder.write_image(&noise(seed, width, height), width, height, ExtendedColorType::Rgb8).unwrap();
    out
}

fn png(seed: u64, width: u32, height: u32) -> Vec<u8> {
    let mut out = Vec::new();
    let encoder = image::codecs::png::PngEncoder::new(Cursor::new(&mut out));
    encoder.write_image(&noise(seed, width, height), width, height, ExtendedColorType::Rgb8).unwrap();
    out
}

/// Tiny and larger images in turn, so that chunks of many and chunks of one are both in flight.
fn sample(i: u64) -> Vec<u8> {
    match i % 4 {
        0 => jpeg(i, 32 + i as u32 % 7, 24),
        1 => png(i, 20, 31 + i as u32 % 5),
        2 => jpeg(i, 90, 120),
        _ => png(i, 230, 160),
    }
}

fn source_of(samples: Vec<Vec<u8>>) -> MemorySource {
    let classes = (0..CLASSES).map(|c| format!("class {c}")).collect();
    MemorySource::new(classes, samples.into_iter().zip((0..CLASSES).cycle()).collect()).unwrap()
}

fn mixed(samples: u64) -> MemorySource {
    source_of((0..samples).map(sample).collect())
}

fn builder(source: impl Source) -> LoaderBuilder {
    Loader::builder(source).transform(RandomResizedCrop::new(24).flip(0.5)).batch_size(8).seed(17).ram_budget(AMPLE)
}

const AMPLE: ByteCount = ByteCount(1 << 30);

/// Workers x budget x device, the least budget included.
fn every_way(base: impl Fn() -> LoaderBuilder, check: impl Fn(&str, Loader)) {
    for workers in [1, 2, 7] {
        for device in devices() {
            let device: Arc<dyn Device> = open(&device.parse::<DeviceSpec>().unwrap()).unwrap();
            let least = base().max_workers(1).device(device.clone()).plan().unwrap().minimum;
            for budget in [least, AMPLE] {
                let name = format!("{workers} workers, {budget}, {}", device.name());
                let loader = base().max_workers(workers).ram_budget(budget).device(device.clone()).build();
                check(&name, loader.unwrap_or_else(|error| panic!("{name}: {error}")));
            }
        }
    }
}

/// Every kind of device there is; a GPU is played by the stand-in.
fn devices() -> Vec<String> {
    #[cfg_attr(not(feature = "cuda"), allow(unused_mut, reason = "a GPU comes with the feature"))]
    let mut devices = vec!["cpu".to_owned(), "sim:h2d=20GB/s".to_owned()];
    #[cfg(feature = "cuda")]
    {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let standin = standin::Standin::shared(NEXT.fetch_add(1, Ordering::Relaxed));
        devices.push(format!("cuda:{}", standin.number()));
    }
    devices
}

/// A digest of every batch in order: pixels, labels, ids and marks.
fn digest(epoch: impl Iterator<Item = Result<feedstock::Batch, Error>>) -> Result<u64, Error> {
    let mut hash = Xxh3::new();
    let mut pixels = Vec::new();
    for batch in epoch {
        let batch = batch?;
        batch.read_back(&mut pixels)?;
        hash.update(&pixels);
        for (label, (id, valid)) in batch.labels().iter().zip(batch.ids().iter().zip(batch.valid())) {
            hash.update(&label.to_le_bytes());
            hash.update(&id.0.to_le_bytes());
            hash.update(&[u8::from(*valid)]);
        }
    }
    Ok(hash.digest())
}

fn ids(epoch: impl Iterator<Item = Result<feedstock::Batch, Error>>) -> Vec<u64> {
    epoch.flat_map(|batch| batch.unwrap().ids().iter().map(|id| id.0).collect::<Vec<_>>()).collect()
}

fn assert_balanced(name: &str, loader: &Loader) {
    let report = loader.stats().memory;
    assert!(report.peak <= report.limit, "{name}: {report:?}");
    for account in &report.accounts {
        assert!(account.peak <= account.cap, "{name}: {account:?}");
    }
    if let Some(sim) = loader.device().downcast_ref::<SimDevice>() {
        assert_eq!(sim.violations(), Vec::<String>::new(), "{name}");
    }
    #[cfg(feature = "cuda")]
    if let Some(number) = loader.device().name().strip_prefix("cuda:") {
        standin::Standin::shared(number.parse().unwrap()).assert_lawful();
    }
}

#[test]
fn every_sample_comes_once_an_epoch_in_a_new_order() {
    every_way(
        || builder(mixed(43)),
        |name, loader| {
            let mut orders = BTreeSet::new();
            for epoch in 0..3 {
                let mut seen = Vec::new();
                for (index, batch) in loader.epoch(epoch).enumerate() {
                    let batch = batch.unwrap();
                    assert_eq!((batch.epoch(), batch.index()), (epoch, index as u64), "{name}");
                    assert_eq!(batch.len(), if index == 5 { 3 } else { 8 }, "{name}");
                    assert_eq!(batch.shape(), [batch.len(), 3, 24, 24], "{name}");
                    for (id, label) in batch.ids().iter().zip(batch.labels()) {
                        assert_eq!(*label, id.0 as u32 % CLASSES, "{name}");
                        seen.push(id.0);
                    }
                }
                assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), 43, "{name}");
                assert_eq!(seen.len(), 43, "{name}");
                orders.insert(seen);
            }
            assert_eq!(orders.len(), 3, "{name}: every epoch has an order of its own");
            assert_balanced(name, &loader);
        },
    );
}

#[test]
fn batches_do_not_depend_on_workers_budget_or_device() {
    for (dtype, layout) in
        [(DType::U8, Layout::Nhwc), (DType::U8, Layout::Nchw), (DType::F32, Layout::Nchw), (DType::Bf16, Layout::Nhwc)]
    {
        let base = || {
            let builder = builder(mixed(43)).dtype(dtype).layout(layout);
            if dtype == DType::U8 { builder } else { builder.normalize(IMAGENET) }
        };
        let expected: Vec<u64> = (0..2).map(|epoch| digest(base().build().unwrap().epoch(epoch)).unwrap()).collect();
        assert_ne!(expected[0], expected[1]);
        every_way(base, |name, loader| {
            for (epoch, expected) in expected.iter().enumerate() {
                assert_eq!(digest(loader.epoch(epoch as u64)).unwrap(), *expected, "{dtype} {layout}: {name}");
            }
            assert_balanced(name, &loader);
        });
    }
}

#[test]
fn a_resumed_run_continues_with_the_next_batch() {
    let loader = builder(mixed(43)).build().unwrap();
    let whole = ids(loader.epoch(2));
    for taken in [0, 1, 3, 5, 6] {
        let mut first = loader.epoch(2);
        let mut seen: Vec<u64> = ids(first.by_ref().take(taken));
        let state = first.state();
        assert_eq!(state, State { epoch: 2, batch: taken as u64 });
        drop(first);
        seen.extend(ids(loader.resume(state)));
        assert_eq!(seen, whole, "{taken} batches, then the rest");
    }
}

#[test]
fn ranks_cover_every_sample_once_between_them() {
    let mut seen = Vec::new();
    for rank in 0..3 {
        let loader = builder(mixed(43)).shard(rank, 3).build().unwrap();
        let own = ids(loader.epoch(0));
        assert_eq!(own.len() as u64, loader.samples_per_epoch());
        seen.extend(own);
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..43).collect::<Vec<_>>());
}

#[test]
fn sequential_order_and_drop_last() {
    let loader = builder(mixed(21)).shuffle(false).drop_last(true).build().unwrap();
    assert_eq!((loader.batches_per_epoch(), loader.samples_per_epoch()), (2, 16));
    assert_eq!(ids(loader.epoch(0)), (0..16).collect::<Vec<_>>());
}

/// Samples 5 and 11 are no images, 12 is truncated.
fn with_bad_samples() -> MemorySource {
    let mut samples: Vec<_> = (0..43).map(sample).collect();
    samples[5] = b"<html>".to_vec();
    samples[11] = Vec::new();
    let half = samples[12].len() / 2;
    samples[12].truncate(half);
    source_of(samples)
}

#[test]
fn a_bad_sample_always_has_the_same_substitute() {
    let base = || builder(with_bad_samples()).max_bad_fraction(0.2);
    let expected = digest(base().build().unwrap().epoch(0)).unwrap();
    every_way(base, |name, loader| {
        assert_eq!(digest(loader.epoch(0)).unwrap(), expected, "{name}");
        let mut bad: Vec<_> = loader.bad_samples().iter().map(|b| (b.id.0, b.stage)).collect();
        bad.sort_by_key(|&(id, _)| id);
        bad.dedup();
        assert_eq!(bad[..2], [(5, Stage::Probe), (11, Stage::Probe)], "{name}");
        assert_eq!(bad[2].0, 12, "{name}");
        let kinds: BTreeSet<_> = loader.bad_samples().iter().map(|b| b.error.kind()).collect();
        let expected = [SampleErrorKind::Empty, SampleErrorKind::UnknownFormat, SampleErrorKind::Truncated];
        assert_eq!(kinds, BTreeSet::from(expected), "{name}");
        assert!(loader.bad_samples().iter().all(|b| b.path == format!("memory:{}", b.id.0) && !b.cause().is_empty()));
        let seen = ids(loader.epoch(0));
        assert_eq!(seen.len(), 43, "{name}");
        assert!(seen.iter().all(|id| ![5, 11, 12].contains(id)), "{name}: {seen:?}");
        assert_balanced(name, &loader);
    });
}

#[test]
fn the_mask_policy_zeroes_bad_samples() {
    let base =
        || builder(with_bad_samples()).on_bad_sample(OnBadSample::Mask).max_bad_fraction(0.2).layout(Layout::Nhwc);
    every_way(base, |name, loader| {
        let mut pixels = Vec::new();
        let mut masked = Vec::new();
        for batch in loader.epoch(0) {
            let batch = batch.unwrap();
            batch.read_back(&mut pixels).unwrap();
            for ((id, valid), pixels) in batch.ids().iter().zip(batch.valid()).zip(pixels.chunks(24 * 24 * 3)) {
                assert_eq!(*valid, pixels.iter().any(|&byte| byte != 0), "{name}: {id}");
                if !valid {
                    masked.push(id.0);
                }
            }
        }
        masked.sort_unstable();
        assert_eq!(masked, [5, 11, 12], "{name}");
    });
}

#[test]
fn the_fail_policy_ends_the_run_at_the_first_bad_sample() {
    let base = || builder(with_bad_samples()).on_bad_sample(OnBadSample::Fail).shuffle(false);
    every_way(base, |name, loader| {
        let mut epoch = loader.epoch(0);
        match epoch.next() {
            Some(Err(Error::Sample(bad))) => {
                assert_eq!((bad.id, bad.path.as_str()), (SampleId(5), "memory:5"), "{name}");
                assert_eq!(bad.error.kind(), SampleErrorKind::UnknownFormat, "{name}");
                assert!(bad.cause().contains("3c 68 74 6d 6c"), "{name}: {}", bad.cause());
            }
            other => panic!("{name}: {other:?}"),
        }
        assert!(epoch.next().is_none(), "{name}: nothing comes after an error");
    });
}

#[test]
fn accepted_damage_is_listed_with_its_warnings() {
    let source = || {
        let mut samples: Vec<Vec<u8>> = (0..24).map(|i| jpeg(i, 60, 50)).collect();
        for cut in [5, 17] {
            let half = samples[cut].len() / 2;
            samples[cut].truncate(half);
        }
        source_of(samples)
    };
    every_way(
        // A part that lies above the damage has none, so the whole is shown.
        || builder(source()).transform(Resize::exact(24, 24)).accept_truncated(true),
        |name, loader| {
            assert_eq!(loader.damaged_samples(), [], "{name}");
            for epoch in 0..2 {
                assert_eq!(ids(loader.epoch(epoch)).len(), 24, "{name}");
            }
            let damaged = loader.damaged_samples();
            assert_eq!(damaged.iter().map(|one| one.id.0).collect::<Vec<_>>(), [5, 17], "{name}");
            for one in &damaged {
                assert!(one.warnings > 0, "{name}: {one}");
                assert!(one.to_string().starts_with(&one.path), "{name}: {one}");
            }
            assert_eq!(loader.stats().pipeline.damage_accepted, 4, "{name}");
            assert!(loader.bad_samples().is_empty(), "{name}");
        },
    );
    // Unasked, they are bad.
    let loader = builder(source()).max_bad_fraction(1.0).build().unwrap();
    ids(loader.epoch(0));
    assert_eq!(loader.bad_samples().iter().map(|bad| bad.id.0).collect::<BTreeSet<_>>(), BTreeSet::from([5, 17]));
    assert_eq!(loader.damaged_samples(), []);
}

#[test]
fn too_many_bad_samples_end_the_run_with_a_count() {
    let base = || builder(with_bad_samples()).max_bad_fraction(0.03).shuffle(false);
    every_way(base, |name, loader| {
        let results: Vec<_> = loader.epoch(0).collect();
        let error = results.last().unwrap().as_ref().expect_err(name);
        assert_eq!(error.kind(), ErrorKind::Data, "{name}");
        assert_eq!(results.len(), 2, "{name}: the second batch has the third bad sample: {error}");
        assert!(error.to_string().contains("3 of 43 samples could not be used, 2 are allowed"), "{name}: {error}");
    });
}

#[test]
fn a_source_of_nothing_but_bad_samples_ends_in_an_error() {
    for policy in [OnBadSample::Fail, OnBadSample::Substitute] {
        let source = source_of(vec![b"no image".to_vec(); 20]);
        let loader = builder(source).on_bad_sample(policy).max_bad_fraction(1.0).build().unwrap();
        let error = loader.epoch(0).find_map(Result::err).expect("no batch can be made");
        assert_eq!(error.kind(), ErrorKind::Data, "{error}");
    }
}

/// Panics on one sample, so to speak: whatever is 90 pixels wide.
struct Panics;

impl Transform for Panics {
    fn out_spec(&self) -> SampleSpec {
        SampleSpec { height: 8, width: 8 }
    }

    fn geometry(&self, width: u32, height: u32, _: &mut KeyedRng) -> Geometry {
        assert!(width != 90, "ninety is not to my taste");
        Geometry::stretch(feedstock::transform::Region::whole(width, height), self.out_spec(), false)
    }
}

#[test]
fn a_panic_in_a_transform_makes_a_bad_sample() {
    let loader = builder(mixed(40)).transform(Panics).max_bad_fraction(1.0).build().unwrap();
    for epoch in 0..3 {
        assert_eq!(loader.epoch(epoch).map(|batch| batch.unwrap().len()).sum::<usize>(), 40);
    }
    assert!(loader.bad_samples().iter().all(|bad| bad.id.0 % 4 == 2 && bad.cause().contains("ninety")));
    assert_eq!(loader.bad_samples().len(), 10);
}

/// Storage that counts what is read from it, and cannot read every so many-th sample.
struct Storage {
    samples: MemorySource,
    every_bad: u64,
    reads: Arc<AtomicU64>,
}

impl Storage {
    fn sound(samples: MemorySource) -> Self {
        Storage { samples, every_bad: u64::MAX, reads: Arc::default() }
    }
}

impl Source for Storage {
    fn len(&self) -> u64 {
        self.samples.len()
    }
    fn classes(&self) -> &[String] {
        self.samples.classes()
    }
    fn label(&self, id: SampleId) -> u32 {
        self.samples.label(id)
    }
    fn encoded_bytes(&self, id: SampleId) -> u64 {
        self.samples.encoded_bytes(id)
    }
    fn name(&self, id: SampleId) -> String {
        self.samples.name(id)
    }
    fn read_into(&self, id: SampleId, out: &mut [u8]) -> Result<(), SourceError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if id.0 % self.every_bad == self.every_bad - 1 {
            let source = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
            return Err(SourceError::io("open", self.name(id), source));
        }
        self.samples.read_into(id, out)
    }
    fn index_bytes(&self) -> u64 {
        self.samples.index_bytes()
    }
}

/// Small enough to be kept, and of several kinds.
fn tiny(samples: u64) -> MemorySource {
    source_of((0..samples).map(|i| if i % 3 == 0 { png(i, 9, 8) } else { jpeg(i, 16 + i as u32 % 9, 12) }).collect())
}

#[test]
fn small_files_are_read_once_if_the_budget_holds_them() {
    let digests = |loader: &Loader| (0..3).map(|epoch| digest(loader.epoch(epoch)).unwrap()).collect::<Vec<_>>();
    let expected = digests(&builder(tiny(403)).build().unwrap());
    every_way(
        || builder(Storage::sound(tiny(403))),
        |name, loader| {
            assert_eq!(digests(&loader), expected, "{name}");
            assert_balanced(name, &loader);
            let read = loader.stats().pipeline.read.samples;
            let all = if loader.plan().cache_bytes == 0 { 3 * 403 } else { 403 };
            assert_eq!(read, all, "{name}");
            assert_eq!(loader.plan().cache_bytes > 0, loader.plan().budget == AMPLE, "{name}");
        },
    );
    // A cache that holds a part.
    let all = builder(Storage::sound(tiny(403))).build().unwrap().plan().clone();
    let part = builder(Storage::sound(tiny(403))).ram_budget(all.knee).build().unwrap();
    assert_eq!(digests(&part), expected);
    let read = part.stats().pipeline.read.samples;
    assert!(part.plan().cache_bytes > 0 && (404..3 * 403).contains(&read), "{read}");
}

#[test]
fn failed_reads_are_tried_again_each_epoch() {
    every_way(
        || builder(Storage { every_bad: 7, ..Storage::sound(tiny(403)) }).max_bad_fraction(1.0),
        |name, loader| {
            for epoch in 0..2 {
                assert!(ids(loader.epoch(epoch)).iter().all(|id| id % 7 != 6), "{name}");
            }
            assert!(loader.stats().bad_samples >= 2 * 403 / 7, "{name}");
        },
    );
}

#[test]
fn a_failed_read_makes_a_bad_sample() {
    every_way(
        || builder(Storage { every_bad: 7, ..Storage::sound(mixed(43)) }).max_bad_fraction(1.0),
        |name, loader| {
            assert!(ids(loader.epoch(0)).iter().all(|id| id % 7 != 6), "{name}");
            assert!(loader.bad_samples().iter().all(|bad| bad.stage == Stage::Read && bad.id.0 % 7 == 6), "{name}");
            assert!(loader.bad_samples().len() >= 6, "{name}");
        },
    );
}

#[test]
fn oversized_images_are_decoded_or_are_bad_samples() {
    let mut samples: Vec<_> = (0..400).map(|i| jpeg(i, 40, 30)).collect();
    samples[3] = jpeg(3, 1500, 1100);
    samples[200] = png(200, 1300, 900);
    let base = || builder(source_of(samples.clone()));
    let expected = digest(base().build().unwrap().epoch(0)).unwrap();
    every_way(base, |name, loader| {
        assert_eq!(digest(loader.epoch(0)).unwrap(), expected, "{name}");
        assert!(loader.bad_samples().is_empty(), "{name}");
        assert_balanced(name, &loader);
    });
    // The profile of so many samples does not see them all, and this one's header hides among its like.
    let mut many: Vec<_> = (0..5000).map(|_| samples[1].clone()).collect();
    many[2501] = png_of_one_color(9000, 9000);
    let many = Arc::new(source_of(many));
    let least = builder(many.clone()).max_workers(1).plan().unwrap().minimum;
    let loader = builder(many).ram_budget(least).build().unwrap();
    assert_eq!(ids(loader.epoch(0)).len(), 5000);
    let bad = loader.bad_samples();
    assert_eq!((bad.len(), bad[0].id, bad[0].stage), (1, SampleId(2501), Stage::Admit));
    assert!(matches!(*bad[0].error, SampleError::ImageOverBudget { width: 9000, .. }), "{:?}", bad[0]);
    assert_balanced("an image beyond the budget", &loader);
}

/// A small file whose header announces a large image.
fn png_of_one_color(width: u32, height: u32) -> Vec<u8> {
    let mut out = Vec::new();
    let encoder = image::codecs::png::PngEncoder::new_with_quality(
        Cursor::new(&mut out),
        image::codecs::png::CompressionType::Best,
        image::codecs::png::FilterType::NoFilter,
    );
    encoder.write_image(&vec![7; (width * height) as usize], width, height, ExtendedColorType::L8).unwrap();
    // Its size must not stand out in the index: keep the header, drop most of the pixels, which are never decoded.
    out.truncate(600);
    out
}

#[test]
fn a_budget_below_the_minimum_is_refused_with_its_table() {
    let source = || mixed(43);
    let least = builder(source()).max_workers(1).plan().unwrap().minimum;
    let error = builder(source()).ram_budget(ByteCount(least.0 - 1)).build().expect_err("one byte short");
    assert_eq!(error.kind(), ErrorKind::Budget);
    let text = error.to_string();
    for row in ["headroom", "slots", "scratch", "encoded", "too small"] {
        assert!(text.contains(row), "{text}");
    }
    match error {
        Error::OverBudget(refused) => assert_eq!(refused.needed, least),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_row_of_the_plan_is_reserved_with_its_bytes() {
    every_way(
        || builder(mixed(43)),
        |name, loader| {
            let (plan, report) = (loader.plan(), loader.stats().memory);
            for row in &plan.rows {
                let accounts: Vec<_> = report.accounts.iter().filter(|account| account.kind == row.account).collect();
                let [account] = accounts[..] else { panic!("{name}: {} accounts of {}", accounts.len(), row.account) };
                if matches!(row.account, AccountKind::OversizedFiles | AccountKind::OversizedImages) {
                    assert!(account.held == ByteCount::ZERO && account.cap >= row.bytes(), "{name}: {account:?}");
                } else {
                    assert_eq!((account.held, account.cap), (row.bytes(), row.bytes()), "{name}: {}", row.account);
                }
            }
            let planned: ByteCount =
                report.accounts.iter().filter(|a| plan.row(a.kind).is_some()).map(|a| a.held).sum();
            assert_eq!(planned, report.held, "{name}: an account without a row holds bytes");
        },
    );
}

#[test]
fn settings_out_of_range_are_refused() {
    let base = || builder(mixed(10));
    let cases: [(LoaderBuilder, &str); 9] = [
        (base().batch_size(0), "batch size is 0"),
        (base().max_workers(0), "workers is 0"),
        (base().prefetch(0), "prefetch is 0"),
        (base().batches_held(0), "batches held is 0"),
        (base().shard(2, 2), "rank"),
        (base().max_bad_fraction(1.5), "1.5"),
        (base().batch_size(11).drop_last(true), "a batch of 11"),
        (base().normalize(IMAGENET), "u8"),
        (Loader::builder(mixed(3)), "no transform"),
    ];
    for (builder, words) in cases {
        let error = builder.build().expect_err(words);
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
    assert!(Loader::builder(source_of(Vec::new())).transform(Panics).build().is_err(), "no samples");
    // A batch larger than the data set is one short batch.
    let loader = base().batch_size(64).build().unwrap();
    assert_eq!(loader.epoch(0).map(|batch| batch.unwrap().len()).collect::<Vec<_>>(), [10]);
}

#[test]
fn a_consumer_that_holds_everything_is_told_so() {
    // With nothing to hold them back, the loader's other batches lie ready; at the least budget there are none, and to
    // wait for one would be to wait for oneself.
    for (budget, expected) in [(AMPLE, Some(2)), (ByteCount(0), None)] {
        let base = || builder(mixed(43)).batches_held(2).max_workers(1);
        let budget = budget.max(base().plan().unwrap().minimum);
        let loader = base().ram_budget(budget).build().unwrap();
        let mut epoch = loader.epoch(0);
        let held = [epoch.next().unwrap().unwrap(), epoch.next().unwrap().unwrap()];
        match epoch.next() {
            Some(Ok(batch)) => assert_eq!(Some(batch.index()), expected),
            Some(Err(Error::BatchesHeld { held })) => assert_eq!((held, expected), (2, None)),
            other => panic!("{budget}: {other:?}"),
        }
        drop(held);
    }
}

#[test]
fn batches_outlive_their_epoch_and_their_loader() {
    let loader = builder(mixed(43)).batches_held(3).build().unwrap();
    let mut epoch = loader.epoch(0);
    let held: Vec<_> = epoch.by_ref().take(3).map(Result::unwrap).collect();
    drop(epoch);
    let mut before = Vec::new();
    held[0].read_back(&mut before).unwrap();
    // The next epoch writes into every slot but those that are held.
    assert_eq!(ids(loader.epoch(1).take(2)).len(), 16);
    drop(loader);
    let mut after = Vec::new();
    held[0].read_back(&mut after).unwrap();
    assert_eq!(before, after);
    std::thread::spawn(move || drop(held)).join().unwrap();
}

#[test]
fn one_epoch_at_a_time() {
    let loader = builder(mixed(43)).build().unwrap();
    let first = loader.epoch(0);
    assert!(matches!(loader.epoch(1).next(), Some(Err(Error::Busy))));
    drop(first);
    assert!(matches!(loader.epoch(1).next(), Some(Ok(_))));
}

#[test]
fn reservations_are_released_however_an_epoch_ends() {
    every_way(
        || builder(mixed(43)),
        |name, loader| {
            let idle = loader.stats().memory.held;
            for taken in [0, 1, 2, 100] {
                loader.epoch(0).take(taken).for_each(|batch| drop(batch.unwrap()));
                assert_eq!(loader.stats().memory.held, idle, "{name}");
            }
            assert_balanced(name, &loader);
        },
    );
}

#[test]
fn a_run_is_called_off_from_another_thread() {
    every_way(
        || builder(mixed(43)),
        |name, loader| {
            let stopped = Arc::new(AtomicBool::new(false));
            let stopper = {
                let (loader, stopped) = (loader.clone(), stopped.clone());
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(20));
                    stopped.store(true, Ordering::SeqCst);
                    loader.stop();
                })
            };
            let begun = Instant::now();
            let error = (0..).flat_map(|epoch| loader.epoch(epoch)).find_map(Result::err).expect("it never ends else");
            assert!(matches!(error, Error::Cancelled), "{name}: {error}");
            assert!(stopped.load(Ordering::SeqCst), "{name}: cancelled without a stop");
            assert!(begun.elapsed() < Duration::from_secs(30), "{name}");
            stopper.join().unwrap();
            assert!(matches!(loader.epoch(9).next(), Some(Err(Error::Cancelled))), "{name}: for good");
        },
    );
}

#[test]
fn a_device_that_fails_ends_the_run_with_its_error() {
    let device = open(&"sim:fail-copy=3".parse::<DeviceSpec>().unwrap()).unwrap();
    let loader = builder(mixed(43)).device(device).build().unwrap();
    let mut pixels = Vec::new();
    let error = loader.epoch(0).find_map(|batch| match batch {
        Ok(batch) => batch.read_back(&mut pixels).err().map(Error::from),
        Err(error) => Some(error),
    });
    assert_eq!(error.map(|error| error.kind()), Some(ErrorKind::Device));
}
