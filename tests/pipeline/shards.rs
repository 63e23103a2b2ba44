//! Sources in shards: the same batches as from memory where shards can be read in any order, and each sample once where
//! they cannot, in every configuration.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use feedstock::source::{MemorySource, OpenOptions, TarShards};
use feedstock::{ByteCount, Error, OnBadSample, Source};

use super::{CLASSES, assert_balanced, builder, digest, every_way, ids, sample, source_of};

const SAMPLES: u64 = 61;

/// The samples of `source_of`, one of which may be no image.
fn samples(bad: Option<u64>) -> Vec<Vec<u8>> {
    (0..SAMPLES).map(|i| if Some(i) == bad { b"no image".to_vec() } else { sample(i) }).collect()
}

fn memory(bad: Option<u64>) -> MemorySource {
    source_of(samples(bad))
}

/// The same samples as a tar, in WebDataset's way; each compressed by itself or not.
fn tar(bad: Option<u64>, compressed: bool) -> Vec<u8> {
    let mut tar = tar::Builder::new(vec![]);
    let mut add = |name: String, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    for (i, bytes) in samples(bad).iter().enumerate() {
        match compressed {
            true => add(format!("{i:04}.jpg.zst"), &zstd::bulk::compress(bytes, 3).unwrap()),
            false => add(format!("{i:04}.jpg"), bytes),
        }
        add(format!("{i:04}.cls"), (i as u32 % CLASSES).to_string().as_bytes());
    }
    tar.into_inner().unwrap()
}

fn open(folder: &Path, name: &str, bytes: &[u8]) -> Arc<dyn Source> {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    let options = OpenOptions::new().shuffle_buffer(ByteCount(200_000));
    Arc::new(TarShards::open_with(path, &options).unwrap())
}

/// Every container, and whether it can be read in any order.
fn containers(folder: &Path, bad: Option<u64>) -> Vec<(&'static str, Arc<dyn Source>, bool)> {
    let plain = tar(bad, false);
    let frames: Vec<u8> = plain.chunks(50_000).flat_map(|part| zstd::bulk::compress(part, 1).unwrap()).collect();
    let piece = zstd::stream::encode_all(&plain[..], 1).unwrap();
    [
        ("plain.tar", plain, true),
        ("members.tar", tar(bad, true), true),
        ("frames.tar.zst", frames, true),
        ("piece.tar.zst", piece, false),
    ]
    .map(|(name, bytes, any_order)| (name, open(folder, name, &bytes), any_order))
    .into()
}

#[test]
fn shards_give_the_batches_that_memory_gives() {
    let folder = tempfile::tempdir().unwrap();
    let digests = |loader: &feedstock::Loader| [0, 1].map(|epoch| digest(loader.epoch(epoch)).unwrap());
    for shuffle in [false, true] {
        let expected = digests(&builder(memory(None)).shuffle(shuffle).build().unwrap());
        for (container, source, any_order) in containers(folder.path(), None) {
            // By id, and in any order where that can be had, they are the very same; else what one way gives, all do.
            let own = digests(&builder(source.clone()).shuffle(shuffle).build().unwrap());
            assert_eq!(own == expected, any_order || !shuffle, "{container}, shuffled: {shuffle}");
            every_way(
                || builder(source.clone()).shuffle(shuffle),
                |name, loader| {
                    assert_eq!(digests(&loader), own, "{container}, {name}");
                    assert_eq!(ids(loader.epoch(2)).into_iter().collect::<BTreeSet<_>>().len() as u64, SAMPLES);
                    assert_balanced(name, &loader);
                },
            );
        }
    }
}

#[test]
fn a_stream_can_be_resumed_and_shared_by_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let (_, source, _) = containers(folder.path(), None).pop().unwrap();
    let loader = builder(source.clone()).build().unwrap();
    let whole = ids(loader.epoch(3));
    let mut epoch = loader.epoch(3);
    let first: Vec<u64> =
        epoch.by_ref().take(3).flat_map(|batch| batch.unwrap().ids().to_vec()).map(|id| id.0).collect();
    let state = epoch.state();
    drop(epoch);
    let rest = ids(loader.resume(state));
    assert_eq!([first, rest].concat(), whole);
    let mut shared: Vec<u64> = [0, 1, 2]
        .iter()
        .flat_map(|&rank| ids(builder(source.clone()).shard(rank, 3).build().unwrap().epoch(3)))
        .collect();
    shared.sort_unstable();
    assert!(shared.into_iter().eq(0..SAMPLES));
}

#[test]
fn a_bad_sample_of_a_shard_is_listed_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    for (container, source, _) in containers(folder.path(), Some(20)) {
        let base = || builder(source.clone()).max_bad_fraction(0.1);
        let expected = digest(base().build().unwrap().epoch(0)).unwrap();
        every_way(base, |name, loader| {
            assert_eq!(digest(loader.epoch(0)).unwrap(), expected, "{container}, {name}");
            let bad = loader.bad_samples();
            assert_eq!((bad.len(), bad[0].id.0), (1, 20), "{container}, {name}");
            let expected = format!("{container}: 0020.jpg");
            assert!(bad[0].path.contains(&expected) && bad[0].path.contains("(at byte "), "{}", bad[0].path);
        });
        let failed = base().on_bad_sample(OnBadSample::Fail).build().unwrap();
        match digest(failed.epoch(0)) {
            Err(error @ Error::Sample { .. }) => assert!(error.to_string().contains("0020.jpg"), "{error}"),
            other => panic!("{container}: {other:?}"),
        }
    }
}
