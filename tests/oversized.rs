//! Images far larger than the others: decoded row by row in little memory where the format allows it, else refused with
//! their numbers, while the others go on.
#![cfg(all(feature = "cli", feature = "turbo", target_os = "linux"))]

mod common;

use std::fs;

use common::{class_folders, run, words};
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};

const MIB: u64 = 1 << 20;

/// A hundred megapixels that are cheap to encode.
fn hundred_megapixels() -> (Vec<u8>, u32) {
    const SIDE: u32 = 10_000;
    let row: Vec<u8> = (0..SIDE * 3).map(|at| (at / 64) as u8).collect();
    (row.repeat(SIDE as usize), SIDE)
}

#[test]
fn an_oversized_jpeg_is_decoded_in_a_small_budget() {
    let folder = tempfile::tempdir().expect("a folder");
    class_folders(folder.path(), &["ant", "bee"], 40, &[(320, 240)]);
    let mut encoded = Vec::new();
    {
        let (pixels, side) = hundred_megapixels();
        let encoder = JpegEncoder::new_with_quality(&mut encoded, 60);
        encoder.write_image(&pixels, side, side, ExtendedColorType::Rgb8).expect("encoded");
    }
    fs::write(folder.path().join("ant/oversized.jpg"), &encoded).expect("written");
    for (budget, quality) in [(256, "exact"), (48, "exact"), (48, "fast")] {
        let args =
            format!("bench --data DIR --ram-budget {budget}M --workers 2 --batch-size 27 --quality {quality} --json");
        let ran = run(words(&args, folder.path())).ok();
        let report = ran.json();
        assert_eq!((report["images"].as_u64(), report["bad_sample_events"].as_u64()), (Some(81), Some(0)), "{report}");
        let peak = report["peak_rss_bytes"].as_u64().expect("a number");
        assert!(peak <= budget * MIB, "{peak} bytes were resident, the budget was {budget} MiB");
    }
}

#[test]
fn an_image_beyond_the_budget_is_a_bad_sample() {
    let folder = tempfile::tempdir().expect("a folder");
    // More files than headers are read, many of them larger as stored, and the oversized one the last of all: the plan
    // does not know of it.
    class_folders(folder.path(), &["ant", "bee"], 600, &[(24, 24)]);
    class_folders(folder.path(), &["cat"], 70, &[(700, 500)]);
    let (width, height) = (9_000_u32, 9_000_u32);
    let mut encoded = Vec::new();
    let pixels = vec![0x60; (width * height) as usize];
    let encoder = PngEncoder::new_with_quality(&mut encoded, CompressionType::Best, FilterType::NoFilter);
    encoder.write_image(&pixels, width, height, ExtendedColorType::L8).expect("encoded");
    drop(pixels);
    let smallest = fs::metadata(folder.path().join("cat/0000.jpg")).expect("there").len();
    assert!((encoded.len() as u64) < smallest, "{} bytes, others {smallest}", encoded.len());
    fs::write(folder.path().join("cat/oversized.png"), &encoded).expect("written");
    let args = "bench --data DIR --ram-budget 128M --workers 2 --size 32 --on-bad-sample mask --json";
    let ran = run(words(args, folder.path())).ok();
    let report = ran.json();
    assert_eq!(report["images"], 1271);
    let bad = report["bad_samples"].as_array().expect("a list");
    assert_eq!(bad.len(), 1, "{bad:?}");
    let cause = bad[0]["cause"].as_str().expect("a cause");
    assert_eq!((&bad[0]["stage"], &bad[0]["code"]), (&"admit".into(), &"over_budget".into()), "{cause}");
    assert!(cause.contains("png of 9000x9000 takes") && cause.contains("raise the budget by"), "{cause}");
    assert!(report["peak_rss_bytes"].as_u64() <= Some(128 * MIB));
}
