//! Packing and verifying from end to end, with the `tar` crate as the other reader.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use image::{DynamicImage, ImageFormat, RgbImage};
use serde_json::Value;
use tempfile::tempdir;

use super::*;
use crate::decode::{DecodeRequest, Limits, begin, probe, working_set};
use crate::rng::Seed;
use crate::source::{Blocks, IoProfile, MemorySource, SampleRead, Source, SourceError};
use crate::transform::ResizeCenterCrop;
use crate::{ByteCount, ErrorKind, Preprocessor, RamBudget, SampleId};

const SAMPLES: u32 = 40;

pub(super) fn test_image(seed: u32, width: u32, height: u32) -> DynamicImage {
    let wave = |at: u32, period: u32| ((at + seed * 31) % period * 255 / period) as u8;
    DynamicImage::ImageRgb8(RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([wave(x, 37), wave(y, 53), wave(x * y + seed, 29)])
    }))
}

pub(super) fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn classes() -> Vec<String> {
    ["ant", "bee", "cat"].map(String::from).to_vec()
}

/// Images of several formats and sizes, one of them with an orientation.
fn samples() -> Vec<(Vec<u8>, u32)> {
    static SAMPLES_MADE: LazyLock<Vec<(Vec<u8>, u32)>> = LazyLock::new(|| {
        let turned = "tests/fixtures/decode/orientation6.jpg";
        let turned = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(turned)).unwrap();
        let one = |seed: u32| match seed % 8 {
            7 => turned.clone(),
            3 => encoded(&test_image(seed, 50 + seed, 40), ImageFormat::Png),
            5 => encoded(&test_image(seed, 16, 30), ImageFormat::Gif),
            _ => encoded(&test_image(seed, 60 + seed, 90), ImageFormat::Jpeg),
        };
        (0..SAMPLES).map(|seed| (one(seed), seed % 3)).collect()
    });
    SAMPLES_MADE.clone()
}

pub(super) fn source() -> MemorySource {
    MemorySource::new(classes(), samples()).unwrap()
}

/// Settings with small shards.
pub(super) fn settings(treatment: Treatment) -> Settings {
    let shard_size = match treatment {
        Treatment::Decoded { size: Some(_), .. } => ByteCount(16 << 10),
        Treatment::Decoded { size: None, .. } => ByteCount(80 << 10),
        _ => ByteCount(24 << 10),
    };
    Settings { treatment, shard_size, seed: Seed(5), workers: Some(2), ..with_budget(64 << 20) }
}

fn with_budget(bytes: u64) -> Settings {
    Settings { ram_budget: RamBudget::Bytes(ByteCount(bytes)), ..Settings::default() }
}

pub(super) const TREATMENTS: [Treatment; 5] = [
    Treatment::Stored,
    Treatment::ShortSide { pixels: 32, quality: 80 },
    Treatment::Decoded { size: Some(24), level: 1 },
    Treatment::Decoded { size: None, level: 1 },
    Treatment::Decoded { size: Some(24), level: 7 },
];

pub(super) fn packed(source: &dyn Source, settings: &Settings, dst: &Path) -> Report {
    pack(source, settings, dst, |_| (), &|| false).unwrap()
}

fn refused(source: &dyn Source, settings: &Settings, dst: &Path) -> PackError {
    pack(source, settings, dst, |_| (), &|| false).unwrap_err()
}

/// Files of a set, including its records.
fn contents(dst: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for folder in [dst.to_owned(), dst.join(".pack")] {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let name = path.strip_prefix(dst).unwrap().to_string_lossy().into_owned();
                files.insert(name, fs::read(path).unwrap());
            }
        }
    }
    files
}

fn manifest(dst: &Path) -> Value {
    serde_json::from_slice(&fs::read(dst.join("manifest.json")).unwrap()).unwrap()
}

/// Name and content of all members of all shards, in the order of the shards.
fn members(dst: &Path) -> Vec<(String, Vec<u8>)> {
    let mut members = vec![];
    for (name, shard) in contents(dst).into_iter().filter(|(name, _)| name.ends_with(".tar")) {
        assert!(name.starts_with("shard-") && name.len() == "shard-00000.tar".len(), "{name}");
        for entry in tar::Archive::new(&shard[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.mtime().unwrap(), header.uid().unwrap(), header.gid().unwrap()), (0, 0, 0));
            assert_eq!((header.mode().unwrap(), header.entry_type()), (0o644, tar::EntryType::Regular));
            let name = entry.path().unwrap().to_string_lossy().into_owned();
            let mut content = vec![];
            entry.read_to_end(&mut content).unwrap();
            members.push((name, content));
        }
    }
    members
}

/// Position, id (from the name), extension, image and class of each sample.
fn samples_of(dst: &Path) -> Vec<(u64, u64, String, Vec<u8>, u32)> {
    let members = members(dst);
    let pairs = members.chunks(2).map(|pair| {
        let [(name, image), (class_name, class)] = pair else { panic!("half a sample") };
        let (key, extension) = name.split_once('.').unwrap();
        assert_eq!(*class_name, format!("{key}.cls"));
        let (position, id) = key.split_once("-memory_").unwrap();
        assert_eq!(position.len(), 8);
        let class = String::from_utf8(class.clone()).unwrap().parse().unwrap();
        (position.parse().unwrap(), id.parse().unwrap(), extension.to_owned(), image.clone(), class)
    });
    pairs.collect()
}

/// Minimum budget, found by raising it to the stated minimum.
fn least_budget(source: &dyn Source, settings: &Settings) -> u64 {
    let mut budget = 1;
    for _ in 0..SAMPLES {
        let folder = tempdir().unwrap();
        let ram_budget = RamBudget::Bytes(ByteCount(budget));
        match pack(source, &Settings { ram_budget, ..settings.clone() }, folder.path(), |_| (), &|| false) {
            Ok(_) => return budget,
            Err(PackError::OverBudget { needed, budget: given, .. }) => {
                assert_eq!(given.0, budget);
                assert!(needed.0 > budget, "{needed} of {given}");
                budget = needed.0;
            }
            Err(other) => panic!("{other}"),
        }
    }
    panic!("no budget is enough");
}

#[test]
fn stored_sets_are_permutations_of_the_source() {
    let folder = tempdir().unwrap();
    let report = packed(&source(), &settings(Treatment::Stored), folder.path());
    assert_eq!((report.samples, report.skipped_count, report.ended_early), (u64::from(SAMPLES), 0, false));
    assert!(report.shards > 3 && report.shards == report.shards_of_set && report.shards_found == 0, "{report:?}");
    let samples = samples();
    let order = crate::sampler::Order::shuffled(u64::from(SAMPLES), Seed(5), 0);
    for (at, (position, id, extension, image, class)) in samples_of(folder.path()).into_iter().enumerate() {
        assert_eq!((position, SampleId(id)), (at as u64, order.at(at as u64)));
        assert_eq!((&image, class), (&samples[id as usize].0, samples[id as usize].1));
        let expected = match id % 8 {
            3 => "png",
            5 => "gif",
            _ => "jpg",
        };
        assert_eq!(extension, expected);
    }
    let manifest = manifest(folder.path());
    assert_eq!((&manifest["format"], &manifest["version"]), (&"feedstock-pack".into(), &1.into()));
    assert_eq!(manifest["classes"], serde_json::json!(["ant", "bee", "cat"]));
    assert_eq!((&manifest["samples"], &manifest["source"]), (&40.into(), &"a source of 40 samples".into()));
    assert_eq!(manifest["settings"]["treatment"], "stored");
    let shards = manifest["shards"].as_array().unwrap();
    assert_eq!(shards.len() as u64, report.shards);
    for shard in shards {
        let bytes = fs::read(folder.path().join(shard["file"].as_str().unwrap())).unwrap();
        assert!(bytes.len() <= (24 << 10) + 1024, "at most the requested size and the end");
        let hash = format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&bytes));
        assert_eq!((&shard["bytes"], &shard["xxh3"]), (&bytes.len().into(), &hash.into()));
    }

    let ordered = tempdir().unwrap();
    packed(&source(), &Settings { in_order: true, ..settings(Treatment::Stored) }, ordered.path());
    assert!(samples_of(ordered.path()).into_iter().map(|sample| sample.1).eq(0..u64::from(SAMPLES)));
}

#[test]
fn shards_do_not_depend_on_workers_and_budget() {
    for treatment in TREATMENTS {
        let source = source();
        let settings = settings(treatment);
        let first = tempdir().unwrap();
        let report = packed(&source, &settings, first.path());
        assert_eq!(report.samples, u64::from(SAMPLES), "{treatment:?}: {report:?}");
        let least = least_budget(&source, &settings);
        for (workers, budget) in [(1, least), (4, least), (3, least + (3 << 20)), (7, 256 << 20)] {
            let folder = tempdir().unwrap();
            let settings = Settings { workers: Some(workers), ..with_budget(budget) };
            let settings = Settings { treatment, ..settings };
            let settings = Settings { shard_size: self::settings(treatment).shard_size, seed: Seed(5), ..settings };
            let report = packed(&source, &settings, folder.path());
            assert!(report.ram_peak.0 <= budget && report.workers <= workers, "{report:?}");
            assert!(report.workers > 1 || budget < 256 << 20, "{report:?}");
            assert!(contents(folder.path()) == contents(first.path()), "{treatment:?}, {workers} workers, {budget}");
        }
        let other = tempdir().unwrap();
        packed(&source, &Settings { seed: Seed(6), ..settings }, other.path());
        assert!(contents(other.path()) != contents(first.path()));
    }
}

#[test]
fn stopped_runs_can_be_continued() {
    let (whole, folder) = (tempdir().unwrap(), tempdir().unwrap());
    let settings = Settings { workers: Some(1), ..settings(Treatment::Decoded { size: Some(24), level: 1 }) };
    let source = Slow(source());
    packed(&source, &settings, whole.path());
    let done = Cell::new(0);
    let report =
        pack(&source, &settings, folder.path(), |progress| done.set(progress.shards_done), &|| done.get() >= 2)
            .unwrap();
    assert!(report.ended_early && report.manifest.is_none(), "{report:?}");
    assert!(report.shards >= 2 && report.shards < report.shards_of_set, "{report:?}");
    assert!(matches!(
        verify(folder.path(), &VerifySettings::default(), |_| (), &|| false),
        Err(PackError::NotPacked { .. })
    ));
    let partials = contents(folder.path()).into_keys().filter(|name| name.ends_with(".partial")).count();
    assert_eq!(partials, 0);

    // A killed run leaves a partial shard, a shard without its record, or an incomplete shard.
    let partial = format!(".shard-{:05}.tar.partial", report.shards_of_set - 1);
    fs::write(folder.path().join(partial), "half").unwrap();
    fs::write(folder.path().join(".pack/.shard-00000.json.partial"), "{\"ha").unwrap();
    fs::write(folder.path().join("shard-00001.tar"), "cut").unwrap();
    fs::remove_file(folder.path().join(".pack/shard-00000.json")).unwrap();
    let again = packed(&source, &settings, folder.path());
    assert_eq!(again.shards_found, report.shards - 2);
    assert_eq!(again.shards, again.shards_of_set);
    assert!(contents(folder.path()) == contents(whole.path()));

    // A complete set does not change.
    let idle = packed(&source, &settings, folder.path());
    assert_eq!((idle.shards_found, idle.samples), (idle.shards, u64::from(SAMPLES)));
    assert!(contents(folder.path()) == contents(whole.path()));

    // A shard of the right size with another content is found with `check`.
    flip(&folder.path().join("shard-00001.tar"), 700);
    packed(&source, &settings, folder.path());
    assert!(contents(folder.path()) != contents(whole.path()));
    packed(&source, &Settings { check: true, ..settings }, folder.path());
    assert!(contents(folder.path()) == contents(whole.path()));
}

#[test]
fn jobs_can_share_the_work() {
    for treatment in [Treatment::Stored, Treatment::ShortSide { pixels: 32, quality: 80 }] {
        let (whole, folder) = (tempdir().unwrap(), tempdir().unwrap());
        let settings = settings(treatment);
        packed(&source(), &settings, whole.path());
        let job = |index| Settings { partition: Partition { index, count: 3 }, ..settings.clone() };
        let first = packed(&source(), &job(2), folder.path());
        assert!(first.manifest.is_none() && !first.ended_early && first.shards < first.shards_of_set, "{first:?}");
        assert!(packed(&source(), &job(0), folder.path()).manifest.is_none());
        assert!(packed(&source(), &job(1), folder.path()).manifest.is_some());
        assert!(contents(folder.path()) == contents(whole.path()));
        assert!(packed(&source(), &job(0), folder.path()).manifest.is_some());
    }
    let error =
        refused(&source(), &Settings { partition: Partition { index: 3, count: 3 }, ..with_budget(1) }, Path::new("x"));
    assert!(error.to_string().starts_with("there is no job 3 of 3"), "{error}");
}

#[test]
fn bad_samples_are_skipped_and_listed() {
    let mut samples = samples();
    samples[4].0 = b"<html>not found</html>".to_vec();
    samples[9].0.clear();
    let half = samples[16].0.len() / 2;
    samples[16].0.truncate(half);
    let source = MemorySource::new(classes(), samples).unwrap();
    for (treatment, bad) in
        [(TREATMENTS[0], vec![4, 9]), (TREATMENTS[1], vec![4, 9, 16]), (TREATMENTS[3], vec![4, 9, 16])]
    {
        let folder = tempdir().unwrap();
        let settings = Settings { in_order: true, ..settings(treatment) };
        let report = packed(&source, &settings, folder.path());
        assert_eq!((report.skipped_count, report.samples), (bad.len() as u64, u64::from(SAMPLES) - bad.len() as u64));
        let names: Vec<_> = report.skipped.iter().map(|skipped| skipped.name.clone()).collect();
        assert_eq!(names, bad.iter().map(|id| format!("memory:{id}")).collect::<Vec<_>>());
        assert!(
            report.skipped[0].cause.starts_with("probe: unknown image format: the file starts with 3c 68"),
            "{report:?}"
        );
        assert_eq!(manifest(folder.path())["skipped"][1]["name"], "memory:9");
        assert_eq!(manifest(folder.path())["skipped_count"], bad.len());
        assert_eq!(samples_of(folder.path()).len(), SAMPLES as usize - bad.len());
        // Samples skipped by an earlier run are still reported.
        assert_eq!(packed(&source, &settings, folder.path()).skipped, report.skipped);
        let found = verify(folder.path(), &VerifySettings::default(), |_| (), &|| false).unwrap();
        assert!(found.is_valid() && found.samples == report.samples, "{found:?}");
    }
    // Names are listed up to a limit; the count is complete.
    let many = MemorySource::new(classes(), vec![(b"text".to_vec(), 0); 3000]).unwrap();
    let folder = tempdir().unwrap();
    let report = packed(&many, &with_budget(8 << 20), folder.path());
    assert_eq!((report.skipped_count, report.samples), (3000, 0));
    assert!((500..=SKIPPED_NAMES_MAX).contains(&report.skipped.len()), "{}", report.skipped.len());
    assert!(verify(folder.path(), &VerifySettings::default(), |_| (), &|| false).unwrap().is_valid());
}

#[test]
fn small_budgets_are_refused_with_numbers() {
    for treatment in TREATMENTS {
        let folder = tempdir().unwrap();
        let error = refused(
            &source(),
            &Settings { ram_budget: with_budget(300 << 10).ram_budget, ..settings(treatment) },
            folder.path(),
        );
        let text = error.to_string();
        assert_eq!(error.kind(), ErrorKind::Budget, "{text}");
        assert!(text.starts_with("a RAM budget of 300 KiB is too small: this takes at least "), "{text}");
        // Nothing is left behind.
        assert!(!folder.path().join("manifest.json").exists());
    }
    let error = refused(&source(), &with_budget(1000), Path::new("/nowhere"));
    for part in ["1000 B", "index", "one worker", "the largest sample"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    // An image whose size only its header tells is named, and the stated budget is enough for it.
    let mut samples = samples();
    samples[20].0 = encoded(&DynamicImage::new_rgb8(3000, 2000), ImageFormat::Png);
    let source = MemorySource::new(classes(), samples).unwrap();
    let settings = Settings { ram_budget: with_budget(6 << 20).ram_budget, ..settings(TREATMENTS[1]) };
    let folder = tempdir().unwrap();
    let error = refused(&source, &settings, folder.path());
    assert!(error.to_string().contains("memory:20 takes 1") && error.kind() == ErrorKind::Budget, "{error}");
    let PackError::OverBudget { needed, .. } = error else { panic!("{error}") };
    let ram_budget = RamBudget::Bytes(needed);
    for workers in [1, 4] {
        let settings = Settings { ram_budget, workers: Some(workers), ..settings.clone() };
        assert_eq!(packed(&source, &settings, tempdir().unwrap().path()).samples, u64::from(SAMPLES));
    }
    // The interrupted run can be continued.
    assert_eq!(packed(&source, &Settings { ram_budget, ..settings }, folder.path()).samples, u64::from(SAMPLES));
}

#[test]
fn decoded_samples_are_those_of_a_preprocessor() {
    let samples = samples();
    let folder = tempdir().unwrap();
    packed(&source(), &settings(Treatment::Decoded { size: Some(24), level: 1 }), folder.path());
    let mut preprocessor = Preprocessor::new(ResizeCenterCrop::new(24, 24));
    for (_, id, extension, frame, class) in samples_of(folder.path()) {
        assert_eq!((extension.as_str(), class), ("ppm.zst", samples[id as usize].1));
        let mut expected = vec![0; 24 * 24 * 3];
        preprocessor.process(&samples[id as usize].0, &mut expected).unwrap();
        let ppm = zstd::decode_all(&frame[..]).unwrap();
        assert!(ppm.starts_with(b"P6\n24 24\n255\n") && ppm[13..] == expected, "sample {id}");
    }

    let folder = tempdir().unwrap();
    packed(&source(), &settings(Treatment::Decoded { size: None, level: 3 }), folder.path());
    for (_, id, _, frame, _) in samples_of(folder.path()) {
        let stored = &samples[id as usize].0;
        let header = probe(stored, &Limits::default()).unwrap();
        let mut buffer = working_set(&header, 1).allocate().unwrap();
        let mut decoder = begin(stored, &header, &DecodeRequest::whole(&header), &mut buffer).unwrap();
        let mut expected = vec![0; header.width as usize * header.height as usize * 3];
        for row in expected.chunks_exact_mut(header.width as usize * 3) {
            assert!(decoder.next_row(row).unwrap());
        }
        let found = image::load_from_memory(&zstd::decode_all(&frame[..]).unwrap()).unwrap().to_rgb8();
        // The fixture with an orientation is stored upright.
        let expected = RgbImage::from_raw(header.width, header.height, expected).unwrap();
        let expected = if header.orientation == 6 { image::imageops::rotate90(&expected) } else { expected };
        assert!(found == expected, "sample {id}");
    }
}

#[test]
fn images_are_shrunk_upright_and_never_enlarged() {
    let samples = samples();
    let folder = tempdir().unwrap();
    packed(&source(), &settings(Treatment::ShortSide { pixels: 16, quality: 90 }), folder.path());
    let mut shrunk = 0;
    for (_, id, extension, packed, _) in samples_of(folder.path()) {
        let stored = &samples[id as usize].0;
        let (before, now) = [stored, &packed].map(|file| probe(file, &Limits::default()).unwrap()).into();
        if before.width.min(before.height) <= 16 {
            assert!(packed == *stored && extension == "gif", "sample {id}");
            continue;
        }
        shrunk += 1;
        let swaps = before.orientation > 4;
        let (width, height) = if swaps { (before.height, before.width) } else { (before.width, before.height) };
        let short = width.min(height);
        assert_eq!((now.width, now.height), (width * 16 / short, height * 16 / short), "sample {id}");
        assert_eq!((extension.as_str(), now.orientation), ("jpg", 1));
        // The same image, up to the losses of a JPEG of good quality.
        let mut pixels = vec![0; now.width as usize * now.height as usize * 3];
        let mut preprocessor = Preprocessor::new(crate::transform::Resize::exact(now.height, now.width));
        preprocessor.process(stored, &mut pixels).unwrap();
        let found = image::load_from_memory(&packed).unwrap().to_rgb8();
        let differences = found.as_raw().iter().zip(&pixels).map(|(a, b)| u64::from(a.abs_diff(*b)));
        let mean = differences.sum::<u64>() as f64 / pixels.len() as f64;
        assert!(mean < 8.0, "sample {id}: {mean}");
    }
    assert_eq!(shrunk, SAMPLES - SAMPLES / 8);
}

#[test]
fn other_settings_are_refused_by_name() {
    let folder = tempdir().unwrap();
    let first = settings(Treatment::ShortSide { pixels: 32, quality: 80 });
    packed(&source(), &first, folder.path());
    let before = contents(folder.path());
    let with = |treatment| Settings { treatment, ..first.clone() };
    for (other, expected) in [
        (with(Treatment::Stored), "another treatment: short-side then, stored now"),
        (with(Treatment::ShortSide { pixels: 33, quality: 80 }), "another short side: 32 then, 33 now"),
        (with(Treatment::ShortSide { pixels: 32, quality: 81 }), "another quality: 80 then, 81 now"),
        (Settings { shard_size: ByteCount(1 << 20), ..first.clone() }, "another shard size: 24576 then, 1048576 now"),
        (Settings { seed: Seed(1), ..first.clone() }, "another seed: 5 then, 1 now"),
        (Settings { in_order: true, ..first.clone() }, "another order: shuffled then, source now"),
    ] {
        let error = refused(&source(), &other, folder.path());
        assert!(error.to_string().contains(expected) && error.kind() == ErrorKind::Config, "{error}");
    }
    let mut fewer = samples();
    fewer.pop();
    let error = refused(&MemorySource::new(classes(), fewer).unwrap(), &first, folder.path());
    assert!(error.to_string().contains("another number of samples: 40 then, 39 now"), "{error}");
    let mut other = samples();
    other[3].1 = 0;
    other[3].1 += 2;
    let error = refused(&MemorySource::new(classes(), other).unwrap(), &first, folder.path());
    assert!(error.to_string().contains("another index of the source"), "{error}");
    assert!(contents(folder.path()) == before);

    // Settings that do not affect the bytes may differ.
    packed(&source(), &Settings { workers: Some(1), check: true, ..first.clone() }, folder.path());
    assert!(contents(folder.path()) == before);

    let foreign = tempdir().unwrap();
    fs::write(foreign.path().join("shard-00000.tar"), "foreign").unwrap();
    let error = refused(&source(), &first, foreign.path());
    assert!(error.to_string().contains("shard-00000.tar exists"), "{error}");
    let file = foreign.path().join("shard-00000.tar/below");
    let error = refused(&source(), &first, &file);
    assert!(error.kind() == ErrorKind::Io && error.to_string().contains("shard-00000.tar/below"), "{error}");
    assert_eq!(fs::read(foreign.path().join("shard-00000.tar")).unwrap(), b"foreign");
}

#[test]
fn settings_out_of_range_are_refused() {
    let nowhere = Path::new("/nowhere");
    for (settings, expected) in [
        (settings(Treatment::ShortSide { pixels: 0, quality: 90 }), "the short side is 0"),
        (settings(Treatment::ShortSide { pixels: 9, quality: 101 }), "the quality is 101"),
        (settings(Treatment::Decoded { size: Some(1 << 20), level: 1 }), "the size is 1048576"),
        (settings(Treatment::Decoded { size: None, level: 22 }), "the level is 22: expected -50 to -1 or 1 to 19"),
        (Settings { workers: Some(0), ..Settings::default() }, "the number of workers is 0"),
        (Settings { shard_size: ByteCount(0), ..Settings::default() }, "the shard size is 0"),
    ] {
        let error = refused(&source(), &settings, nowhere);
        assert!(error.to_string().starts_with(expected) && error.kind() == ErrorKind::Config, "{error}");
    }
}

#[test]
fn blocks_are_packed_in_sequence() {
    let source = InBlocks(source(), Blocks::new([10, 20, 30, 40], 1));
    let folder = tempdir().unwrap();
    let report = packed(&source, &Settings { workers: Some(4), ..settings(Treatment::Stored) }, folder.path());
    assert_eq!(report.workers, 1);
    let ids: Vec<u64> = samples_of(folder.path()).into_iter().map(|sample| sample.1).collect();
    let blocks: Vec<Vec<u64>> = ids.chunks(10).map(|ids| ids.iter().map(|id| id / 10).collect()).collect();
    assert!(blocks.iter().all(|block| block.iter().all(|of| *of == block[0])), "{ids:?}");
    let mut sorted = ids.clone();
    sorted.sort_unstable();
    assert!(sorted.iter().copied().eq(0..40) && ids != sorted, "{ids:?}");
}

#[test]
fn samples_are_read_together_within_the_budget() {
    let (one_by_one, bytes) = (tempdir().unwrap(), |id| source().encoded_bytes(SampleId(id)));
    packed(&source(), &settings(Treatment::Stored), one_by_one.path());
    let three = 3 * (0..u64::from(SAMPLES)).map(bytes).max().unwrap();
    let none = Settings { ram_budget: with_budget(0).ram_budget, ..settings(Treatment::Stored) };
    let PackError::OverBudget { needed, .. } = refused(&source(), &none, Path::new("/nowhere")) else { panic!() };
    for (coalesce_bytes, room, most) in [(three, 1 << 20, 3..64), (three, 0, 1..64), (0, 1 << 20, 1..2)] {
        let together = Together(source(), coalesce_bytes, AtomicUsize::new(0));
        let ram_budget = RamBudget::Bytes(needed + ByteCount(room));
        let folder = tempdir().unwrap();
        let report = packed(&together, &Settings { ram_budget, ..settings(Treatment::Stored) }, folder.path());
        assert!(report.ram_peak <= needed + ByteCount(room));
        let read = together.2.into_inner();
        assert!(most.contains(&read), "{read} at once of {coalesce_bytes} bytes with room for {room}");
        assert!(contents(folder.path()) == contents(one_by_one.path()));
    }
}

pub(super) fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

/// Source with slow reads, so that there is time to stop.
struct Slow(MemorySource);

struct InBlocks(MemorySource, Blocks);

/// Source with a preferred read size, which records the maximum number of samples read by one call.
struct Together(MemorySource, u64, AtomicUsize);

macro_rules! as_its_first {
    ($name:ident { $($more:item)* }) => {
        impl Source for $name {
            fn len(&self) -> u64 {
                self.0.len()
            }
            fn classes(&self) -> &[String] {
                self.0.classes()
            }
            fn label(&self, id: SampleId) -> u32 {
                self.0.label(id)
            }
            fn encoded_bytes(&self, id: SampleId) -> u64 {
                self.0.encoded_bytes(id)
            }
            fn name(&self, id: SampleId) -> String {
                self.0.name(id)
            }
            fn index_bytes(&self) -> u64 {
                self.0.index_bytes()
            }
            $($more)*
        }
    };
}

as_its_first!(Slow {
    fn read_into(&self, id: SampleId, out: &mut [u8]) -> Result<(), SourceError> {
        std::thread::sleep(std::time::Duration::from_millis(15));
        self.0.read_into(id, out)
    }
});

as_its_first!(InBlocks {
    fn read_into(&self, id: SampleId, out: &mut [u8]) -> Result<(), SourceError> {
        self.0.read_into(id, out)
    }

    fn blocks(&self) -> Option<&Blocks> {
        Some(&self.1)
    }
});

as_its_first!(Together {
    fn read_into(&self, id: SampleId, out: &mut [u8]) -> Result<(), SourceError> {
        self.0.read_into(id, out)
    }

    fn read_many(&self, reads: &mut [SampleRead<'_>]) {
        self.2.fetch_max(reads.len(), Ordering::SeqCst);
        self.0.read_many(reads);
    }

    fn io_profile(&self) -> IoProfile {
        IoProfile { coalesce_bytes: self.1, ..self.0.io_profile() }
    }
});
