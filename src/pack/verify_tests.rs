//! Tests of the verification, with packed sets that are damaged afterwards and with invalid sets.

use std::fs;
use std::path::Path;

use image::ImageFormat;
use tempfile::tempdir;

use super::tests::{TREATMENTS, encoded, flip, packed, settings, source, test_image};
use super::*;
use crate::ErrorKind;

fn problems(dst: &Path, images: bool) -> Vec<Problem> {
    let settings = VerifySettings { image_headers: images, workers: Some(2) };
    let found = verify(dst, &settings, |_| (), &|| false).unwrap();
    assert_eq!(found.problem_count as usize, found.problems.len());
    assert_eq!(found.is_valid(), found.problems.is_empty());
    found.problems
}

#[test]
fn problems_are_found_and_named() {
    for treatment in TREATMENTS {
        let folder = tempdir().unwrap();
        let report = packed(&source(), &settings(treatment), folder.path());
        let sound =
            verify(folder.path(), &VerifySettings { image_headers: true, workers: None }, |_| (), &|| false).unwrap();
        assert!(sound.is_valid(), "{treatment:?}: {sound:?}");
        assert_eq!((sound.samples, sound.shards, sound.bytes), (report.samples, report.shards, report.bytes));
        let shard = |number: u32| folder.path().join(format!("shard-{number:05}.tar"));
        let whole: Vec<Vec<u8>> = (0..4).map(|number| fs::read(shard(number)).unwrap()).collect();

        // A byte of a header, an image, a class, the padding and the end.
        for at in [3, 200, 600, 512 + whole[0].len() / 2, whole[0].len() - 1030, whole[0].len() - 1] {
            flip(&shard(0), at);
            let found = problems(folder.path(), false);
            assert!(!found.is_empty(), "{treatment:?}: byte {at}");
            let right = |problem: &Problem| problem.file == "shard-00000.tar" && problem.kind == ProblemKind::Damaged;
            assert!(found.iter().all(right), "{found:?}");
            fs::write(shard(0), &whole[0]).unwrap();
        }

        // One problem of each kind.
        fs::remove_file(shard(1)).unwrap();
        fs::write(shard(2), &whole[2][..whole[2].len() / 2]).unwrap();
        fs::write(folder.path().join("shard-00077.tar"), &whole[3]).unwrap();
        let found = problems(folder.path(), false);
        let of = |file: &str, fault| found.iter().any(|problem| problem.file == file && problem.kind == fault);
        assert!(
            of("shard-00001.tar", ProblemKind::Missing) && of("shard-00077.tar", ProblemKind::Additional),
            "{found:?}"
        );
        assert!(of("shard-00002.tar", ProblemKind::Damaged), "{found:?}");
        assert!(found.iter().any(|problem| problem.cause.contains("and the manifest says")), "{found:?}");
        assert!(found.iter().all(|problem| problem.file != "shard-00000.tar" && problem.file != "shard-00003.tar"));
    }
}

#[test]
fn members_are_checked_besides_hashes() {
    // A set whose manifest matches its shard, with invalid members.
    let shard_of = |members: &[(&str, &[u8])]| {
        let mut tar = tar::Builder::new(vec![]);
        for (name, content) in members {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, *content).unwrap();
        }
        tar.into_inner().unwrap()
    };
    let found = |members: &[(&str, &[u8])], samples: u64| {
        let folder = tempdir().unwrap();
        let shard = shard_of(members);
        let hash = format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&shard));
        let entry = serde_json::json!({ "file": "a.tar", "samples": samples, "bytes": shard.len(), "xxh3": hash });
        let manifest = serde_json::json!({
            "format": "feedstock-pack", "version": 1, "samples": samples, "classes": ["ant", "bee"], "shards": [entry],
        });
        fs::write(folder.path().join("a.tar"), shard).unwrap();
        fs::write(folder.path().join("manifest.json"), manifest.to_string()).unwrap();
        let causes: Vec<String> = problems(folder.path(), true).into_iter().map(|problem| problem.cause).collect();
        causes.join("; ")
    };
    let png = encoded(&test_image(1, 9, 9), ImageFormat::Png);
    let frame = |ppm: &[u8]| zstd::encode_all(ppm, 1).unwrap();
    let ppm = [b"P6\n2 1\n255\n".as_slice(), &[7; 6]].concat();
    assert_eq!(found(&[("0-a.png", &png), ("0-a.cls", b"1"), ("1-b.ppm.zst", &frame(&ppm)), ("1-b.cls", b"0")], 2), "");
    assert_eq!(found(&[("0-a.png", &png), ("0-a.cls", b"2")], 1), "0-a.cls is not an index into a list of 2 classes");
    assert_eq!(found(&[("0-a.jpg", &png), ("0-a.cls", b"1")], 1), "0-a.jpg: it is png");
    assert_eq!(found(&[("0-a.png", &png)], 0), "the image 0-a has no class");
    assert_eq!(found(&[("0-a.cls", b"0")], 0), "0-a.cls does not follow its image");
    assert!(
        found(&[("0-a.png", b"text"), ("0-a.cls", b"0")], 1)
            .starts_with("0-a.png: unknown image format: the file starts with 74 65")
    );
    assert_eq!(found(&[("0-a.png", &png), ("0-a.cls", b"1")], 2), "it has 1 samples, and the manifest says 2");
    let short = found(&[("0-a.ppm.zst", &frame(&ppm[..16])), ("0-a.cls", b"1")], 1);
    assert_eq!(short, "0-a.ppm.zst: it has 16 bytes decompressed, and its header says 17");
    let whole = frame(&ppm);
    let cut = found(&[("0-a.ppm.zst", &whole[..whole.len() - 2]), ("0-a.cls", b"1")], 1);
    assert!(cut.starts_with("0-a.ppm.zst: it cannot be decompressed"), "{cut}");
}

#[test]
fn folders_without_a_set_are_refused() {
    let folder = tempdir().unwrap();
    let refused = |dst: &Path| verify(dst, &VerifySettings::default(), |_| (), &|| false).unwrap_err();
    assert!(refused(folder.path()).to_string().contains("not a packed set"));
    assert_eq!(refused(&folder.path().join("missing")).kind(), ErrorKind::Io);
    for text in
        ["", "{}", "{\"format\":\"feedstock-pack\",\"version\":1}", "{\"format\":\"feedstock-pack\",\"version\":2}"]
    {
        fs::write(folder.path().join("manifest.json"), text).unwrap();
        let error = refused(folder.path());
        assert!(error.kind() == ErrorKind::Data && error.to_string().contains("cannot parse"), "{error}");
    }
}
