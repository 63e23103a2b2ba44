//! Tests of shards: real tars, good and bad.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use tempfile::TempDir;

use super::zst::tests::{frame, open_frame, seekable};
use super::*;
use crate::source::{OpenOptions, PageCache, Source, SourceError, conformance};
use crate::units::{ByteCount, SampleId};

fn buffer(bytes: u64) -> OpenOptions {
    OpenOptions::new().shuffle_buffer(ByteCount(bytes))
}

/// A tar of files with these names and bytes.
fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(vec![]);
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        // Set directly: the builder refuses a path with `..`.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

fn folder(shards: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    shards.iter().for_each(|(name, bytes)| fs::write(folder.path().join(name), bytes).unwrap());
    folder
}

fn read(source: &TarShards, id: u64) -> Result<Vec<u8>, SourceError> {
    let mut out = vec![0xEE; source.encoded_bytes(SampleId(id)) as usize];
    source.read_into(SampleId(id), &mut out).map(|()| out)
}

fn labels(source: &TarShards) -> Vec<u32> {
    (0..source.len()).map(|id| source.label(SampleId(id))).collect()
}

fn ppm(width: u32, height: u32) -> Vec<u8> {
    format!("P6\n{width} {height}\n255\n")
        .into_bytes()
        .into_iter()
        .chain((0..width * height * 3).map(|i| (i / 5) as u8))
        .collect()
}

/// Enough samples for several blocks and frames, named as in WebDataset.
fn many(count: usize, start: usize) -> Vec<u8> {
    let mut files = vec![];
    for i in start..start + count {
        files.push((format!("{i:06}.ppm"), ppm(1 + i as u32 % 40, 9)));
        files.push((format!("{i:06}.cls"), (i % 7).to_string().into_bytes()));
    }
    tar(&files.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect::<Vec<_>>())
}

#[test]
fn samples_are_grouped_by_their_key() {
    let shard = tar(&[
        ("./a/0001.cls", b"2"),
        ("./a/0001.jpg", b"one"),
        ("./a/0001.seg.png", b"beside"),
        ("./a/0002.json", br#"{"label": 0}"#),
        ("./a/0002.txt", b"an unused caption"),
        ("./a/0002.JPEG", b"two"),
        ("./a/notes.md", b"text"),
        ("./a/._0002.jpg", b"hidden"),
        ("./a/0003.png", b"three"),
        ("./a/0003.txt", b" 1\n"),
        ("./a/0004.cls", b""),
        ("./a/0004.png", b"four"),
        ("./a/0005.cls", b"1"),
    ]);
    let folder = folder(&[("x.tar", &shard)]);
    let source = TarShards::open(folder.path().join("x.tar")).unwrap();
    assert_eq!(
        (source.len(), source.classes(), labels(&source)),
        (3, &["0", "1", "2"].map(String::from)[..], vec![2, 0, 1])
    );
    assert_eq!([0, 1, 2].map(|id| read(&source, id).unwrap()), [&b"one"[..], b"two", b"three"]);
    assert_eq!(source.notes(), ["not used: 1 image with the key of the image before"]);
    assert_eq!(source.unreadable_count(), 1);
    assert!(source.unreadable()[0].cause.contains("./a/0004.png (at byte"), "{}", source.unreadable()[0]);
    assert!(source.unreadable()[0].cause.contains("its .cls is empty"));
    let name = source.name(SampleId(1));
    let offset = shard.windows(3).position(|bytes| bytes == b"two").unwrap();
    assert!(name.ends_with(&format!("x.tar: ./a/0002.JPEG (at byte {offset})")), "{name}");
}

#[test]
fn the_tar_of_an_image_folder_is_a_shard() {
    let shard = tar(&[
        ("train/dog/x.1.jpg", b"1"),
        ("train/dog/x.2.jpg", b"2"),
        ("train/cat/y.png", b"3"),
        ("loose.png", b"4"),
        ("../../etc/passwd.png", b"5"),
    ]);
    let folder = folder(&[("x.tar", &shard)]);
    let source = TarShards::open(folder.path()).unwrap();
    assert_eq!(source.classes(), ["cat", "dog", "etc"]);
    assert_eq!(labels(&source), [1, 1, 0, 2]);
    assert!(source.unreadable()[0].cause.contains("no label"), "{}", source.unreadable()[0]);
    conformance::check(&source).unwrap();
}

#[test]
fn every_compression_is_a_source() {
    let plain = many(300, 0);
    let compressed: Vec<(String, Vec<u8>)> = (0..40u32)
        .flat_map(|i| {
            let ppm = frame(&ppm(8, 1 + i));
            [(format!("{i}.ppm.zst"), ppm), (format!("{i}.cls"), b"3".to_vec())]
        })
        .collect();
    let compressed = tar(&compressed.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect::<Vec<_>>());
    let framed: Vec<u8> = plain.chunks(100_000).flat_map(frame).collect();
    let folder = folder(&[
        ("a-0.tar", &plain),
        ("a-1.tar", &many(200, 300)),
        ("b.tar.zst", &seekable(&plain, 30_000)),
        ("c.tar.zst", &framed),
        ("d.tar", &compressed),
        ("e.tar.zst", &seekable(&compressed, 1000)),
        ("f.tar.zst", &open_frame(&plain)),
        ("g.tar.zst", &open_frame(&compressed)),
    ]);
    let reference = TarShards::open(folder.path().join("a-0.tar")).unwrap();
    for (name, len, held) in [
        ("a-0.tar", 300, false),
        ("a-{0..1}.tar", 500, false),
        ("b.tar.zst", 300, true),
        ("c.tar.zst", 300, true),
        ("d.tar", 40, true),
        ("e.tar.zst", 40, true),
        ("f.tar.zst", 300, true),
        ("g.tar.zst", 40, true),
        ("*.tar*", 1520, true),
    ] {
        let source = TarShards::open_with(folder.path().join(name), &buffer(20_000)).unwrap();
        assert_eq!(source.blocks().is_some(), ["f.tar.zst", "g.tar.zst", "*.tar*"].contains(&name), "{name}");
        assert_eq!(source.len(), len, "{name}");
        conformance::check(&source).unwrap_or_else(|breach| panic!("{name}: {breach}"));
        assert_eq!(source.io_profile().buffer_bytes > 0, held, "{name}");
        source.read_ahead(&(0..len).map(SampleId).collect::<Vec<_>>(), PageCache::Drop);
        for id in [0, 7, len - 1] {
            let bytes = read(&source, id).unwrap();
            let (width, height) = source.dimensions(SampleId(id)).unwrap();
            assert_eq!(bytes, ppm(width, height), "{name} {id}");
        }
        if ["a-0.tar", "b.tar.zst", "c.tar.zst", "f.tar.zst"].contains(&name) {
            for id in 0..len {
                assert_eq!(read(&source, id).unwrap(), read(&reference, id).unwrap(), "{name} {id}");
            }
        }
        let per_sample = source.index_bytes() as f64 / len as f64;
        println!("{name}: {per_sample:.1} bytes a sample");
    }
}

#[test]
fn a_member_takes_less_than_48_bytes() {
    let names: Vec<(String, Vec<u8>)> = (0..100_000u32)
        .map(|i| (format!("n{:08}/n{:08}_{}.JPEG", i / 1300, i / 1300, i * 17 % 99_991), vec![7; 3]))
        .collect();
    let shard = tar(&names.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect::<Vec<_>>());
    let folder = folder(&[("x.tar", &shard)]);
    let source = TarShards::open(folder.path().join("x.tar")).unwrap();
    let per_sample = source.index_bytes() as f64 / source.len() as f64;
    println!("{per_sample:.2} bytes a sample");
    assert!((20.0..48.0).contains(&per_sample), "{per_sample}");
}

#[test]
fn a_saved_index_is_used_until_the_shard_changes() {
    let folder = folder(&[("x.tar", &many(50, 0))]);
    let shard = folder.path().join("x.tar");
    let kept = folder.path().join("x.tar.feedstock-index");
    let first = TarShards::open(&shard).unwrap();
    let made = fs::metadata(&kept).unwrap();
    let again = TarShards::open(&shard).unwrap();
    assert_eq!(fs::metadata(&kept).unwrap().ino(), made.ino(), "nothing was written");
    assert_eq!((again.len(), labels(&again), again.name(SampleId(9))), (50, labels(&first), first.name(SampleId(9))));

    fs::write(&shard, many(51, 3)).unwrap();
    let other = TarShards::open(&shard).unwrap();
    assert_eq!(other.len(), 51);
    assert_ne!(fs::metadata(&kept).unwrap().ino(), made.ino());
    let made = fs::metadata(&kept).unwrap();
    fs::write(&kept, b"damaged").unwrap();
    assert_eq!(TarShards::open(&shard).unwrap().len(), 51);
    assert_eq!(fs::metadata(&kept).unwrap().len(), made.len(), "a damaged one was replaced");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "no partial file is left");
}

#[test]
fn samples_before_damage_are_used() {
    let whole = many(20, 0);
    let member = whole.windows(10).position(|bytes| bytes == b"000010.ppm").unwrap();
    for (cut, told) in [(member + 600, "truncated"), (member + 100, "ends within a header"), (member, "")] {
        let folder = folder(&[("x.tar", &whole[..cut])]);
        let source = TarShards::open(folder.path().join("x.tar")).unwrap();
        assert!(source.len() == 10, "{cut}: {}", source.len());
        conformance::check(&source).unwrap();
        let said: Vec<String> = source.unreadable().iter().map(ToString::to_string).collect();
        assert!(said.iter().any(|one| one.contains(told)) || told.is_empty(), "{cut}: {said:?}");
    }
    let mut damaged = whole;
    let at = damaged.windows(10).position(|bytes| bytes == b"000010.ppm").unwrap();
    damaged[at] ^= 1;
    let folder = folder(&[("x.tar", &damaged)]);
    let source = TarShards::open(folder.path()).unwrap();
    assert_eq!((source.len(), source.unreadable_count()), (10, 1));
    let said = source.unreadable()[0].to_string();
    assert!(
        said.contains(&format!("at byte {at}: not a tar header")) && said.contains("members after it are lost"),
        "{said}"
    );
}

#[test]
fn other_files_are_refused_with_advice() {
    let gz: &[u8] = &[0x1F, 0x8B, 8, 0, 0, 0];
    let empty = tar(&[("readme.md", b"x")]);
    let unlabeled = tar(&[("1.jpg", b"x")]);
    let folder = folder(&[
        ("gz.tar", gz),
        ("empty.tar", &empty),
        ("zero.tar", b""),
        ("text.tar", &[b't'; 2000]),
        ("unlabeled.tar", &unlabeled),
        ("cut.tar.zst", &frame(&many(9, 0))[..300]),
    ]);
    for (name, told) in [
        ("gz.tar", "gzip compression is not supported"),
        ("empty.tar", "there are no samples in it"),
        ("zero.tar", "there are no samples in it"),
        ("text.tar", "not a tar header"),
        ("unlabeled.tar", "no label: add a .cls"),
        ("cut.tar.zst", "at byte 0: a zstd frame ends at byte 496, and the file has 300"),
        ("missing.tar", "check the path"),
    ] {
        let error = TarShards::open(folder.path().join(name)).unwrap_err().to_string();
        assert!(error.contains(told) && error.contains(name), "{name}: {error}");
    }
}

#[test]
fn a_list_beside_the_shards_names_the_classes() {
    let numbers = tar(&[("1.jpg", b"x"), ("1.cls", b"1"), ("2.jpg", b"y"), ("2.cls", b"0")]);
    let folder = folder(&[("x.tar", &numbers), ("classes.txt", b"cat\ndog\nhorse\n")]);
    let source = TarShards::open(folder.path()).unwrap();
    assert_eq!((source.classes(), labels(&source)), (&["cat", "dog", "horse"].map(String::from)[..], vec![1, 0]));
    fs::write(folder.path().join("manifest.json"), r#"{"classes": ["only"]}"#).unwrap();
    let error = TarShards::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("class '1', which is none of the 1 listed"), "{error}");
}

#[test]
fn a_bad_class_list_is_an_error_and_never_other_labels() {
    let names = tar(&[("b/1.jpg", b"x"), ("a/2.jpg", b"y")]);
    let refused = |folder: &TempDir, file: &str| {
        let error = TarShards::open(folder.path()).unwrap_err();
        let text = error.full_message();
        assert!(text.contains(folder.path().join(file).to_str().unwrap()), "{text}");
        error
    };
    for (file, content) in [
        ("manifest.json", &b"{\"classes\": [\"a\", "[..]),
        ("manifest.json", br#"{"classes": ["a", 7]}"#),
        ("manifest.json", br#"{"classes": {"a": 0}}"#),
        ("classes.txt", b"a\nb\xFF\n"),
    ] {
        let folder = folder(&[("x.tar", &names), (file, content)]);
        assert!(matches!(refused(&folder, file), SourceError::Damaged { .. }));
    }
    for file in ["manifest.json", "classes.txt"] {
        let folder = folder(&[("x.tar", &names), (file, b"")]);
        fs::File::options().write(true).open(folder.path().join(file)).unwrap().set_len((256 << 20) + 1).unwrap();
        assert!(matches!(refused(&folder, file), SourceError::TooLarge { .. }));
    }
    let folder = folder(&[("x.tar", &names)]);
    fs::create_dir(folder.path().join("classes.txt")).unwrap();
    assert!(matches!(refused(&folder, "classes.txt"), SourceError::Unusable { .. }));
    fs::remove_dir(folder.path().join("classes.txt")).unwrap();
    // A link to itself can be neither opened nor said to be absent.
    std::os::unix::fs::symlink("manifest.json", folder.path().join("manifest.json")).unwrap();
    assert!(matches!(refused(&folder, "manifest.json"), SourceError::Io { .. }));
    fs::remove_file(folder.path().join("manifest.json")).unwrap();
    // Manifests of other programs have no classes.
    fs::write(folder.path().join("manifest.json"), r#"{"version": 3}"#).unwrap();
    assert_eq!(TarShards::open(folder.path()).unwrap().classes(), ["a", "b"]);
}

#[test]
fn shards_share_their_classes() {
    let (one, two) = (tar(&[("b/1.jpg", b"1"), ("a/2.jpg", b"2")]), tar(&[("c/1.jpg", b"3"), ("b/2.jpg", b"4")]));
    let folder = folder(&[("1.tar", &one), ("2.tar", &two), ("other.txt", b"")]);
    let source = TarShards::open(folder.path()).unwrap();
    assert_eq!((source.classes(), labels(&source)), (&["a", "b", "c"].map(String::from)[..], vec![1, 0, 2, 1]));
    let twice = TarShards::open(folder.path().join("{1,1,2}.tar")).unwrap();
    assert_eq!(twice.len(), 4);
}

#[test]
fn a_damaged_frame_fails_its_samples_with_the_offset() {
    let whole = many(300, 0);
    let mut file = seekable(&whole, 30_000);
    let middle = file.len() / 2;
    file[middle] ^= 0x10;
    let folder = folder(&[("x.tar.zst", &seekable(&whole, 30_000))]);
    let path: PathBuf = folder.path().join("x.tar.zst");
    let _ = TarShards::open(&path).unwrap();
    // The index was made before the damage, which keeps size and time.
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, &file).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(before).unwrap();
    let source = TarShards::open(&path).unwrap();
    let results: Vec<_> = (0..300).map(|id| read(&source, id)).collect();
    let failed: Vec<String> = results.iter().filter_map(|one| one.as_ref().err().map(ToString::to_string)).collect();
    assert!(!failed.is_empty() && failed.len() < 200, "{}", failed.len());
    assert!(failed[0].contains("x.tar.zst, at byte ") && failed[0].contains("zstd: "), "{}", failed[0]);
    let reference = many(300, 0);
    for (id, bytes) in results.iter().enumerate().filter_map(|(id, one)| one.as_ref().ok().map(|bytes| (id, bytes))) {
        let offset = source.offsets[id] as usize;
        assert_eq!(bytes[..], reference[offset..offset + bytes.len()]);
    }
}

#[test]
fn a_compressed_member_without_content_size_is_refused() {
    let unknown = open_frame(&ppm(100, 100));
    let shard = tar(&[("1.ppm.zst", &unknown), ("1.cls", b"0"), ("2.ppm", &ppm(2, 2)), ("2.cls", b"0")]);
    let folder = folder(&[("x.tar", &shard)]);
    let source = TarShards::open(folder.path()).unwrap();
    assert_eq!((source.len(), source.unreadable_count()), (1, 1));
    assert!(source.unreadable()[0].to_string().contains("has no content size"));
}

#[test]
fn a_stream_is_decompressed_once_an_epoch() {
    let whole = many(300, 0);
    let folder = folder(&[("x.tar.zst", &open_frame(&whole)), ("y.tar.zst", &open_frame(&many(100, 300)))]);
    let source = TarShards::open_with(folder.path(), &buffer(30_000)).unwrap();
    let blocks = source.blocks().unwrap();
    assert!(blocks.count() > 6 && blocks.run_count() == 2, "{}", blocks.count());
    assert!(source.notes()[0].contains("2 shards compressed as a single frame"), "{:?}", source.notes());
    // Blocks in order and their samples in reverse: decoders only go forward.
    for block in (0..blocks.run(1).start).chain(blocks.run(1)) {
        for id in blocks.samples(block).rev() {
            let (width, height) = source.dimensions(SampleId(id)).unwrap();
            assert_eq!(read(&source, id).unwrap(), ppm(width, height));
        }
    }
    let held = source.io_profile().buffer_bytes;
    assert!((60_000..8 << 20).contains(&held), "{held}");

    let mut damaged = open_frame(&whole);
    let middle = damaged.len() / 2;
    damaged[middle..middle + 40].fill(0xA5);
    let folder = self::folder(&[("z.tar.zst", &damaged)]);
    let source = TarShards::open(folder.path().join("z.tar.zst")).unwrap();
    assert!(source.len() < 300 && source.len() > 20, "{}", source.len());
    let said = source.unreadable()[0].to_string();
    assert!(said.contains("z.tar.zst: at byte ") && said.contains("are lost"), "{said}");
}

#[test]
fn a_window_beyond_the_limit_is_refused() {
    // A frame header with a window of 2 GiB.
    let file = [&[0x28, 0xB5, 0x2F, 0xFD, 0x00, 21 << 3][..], &[1, 0, 0]].concat();
    let folder = folder(&[("x.tar.zst", &file)]);
    let error = TarShards::open(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains(
            "x.tar.zst, at byte 0: the zstd window has 2147483648 bytes, and at most 134217728 are supported"
        ),
        "{error}"
    );
}
