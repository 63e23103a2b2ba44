//! Checks the memory bounds that the ledger relies on, with an allocator that counts: decoding allocates no more than
//! `codec_bytes`, and `probe` and resampling allocate nothing. A bound must not be so loose that it would refuse work
//! that fits.

#![allow(clippy::print_stdout, reason = "the measured numbers are needed to change a bound")]

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use feedstock::decode::{Format, Limits, probe, working_set};
use feedstock::tensor::{Orientation, SampleSpec};
use feedstock::transform::{Geometry, Region, Resampler, TransformError};
use image::codecs::gif::GifEncoder;
use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ImageFormat, RgbaImage};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

#[path = "common/counting.rs"]
mod counting;

#[path = "common/decoding.rs"]
mod decoding;

use counting::peak_of;
use decoding::decode_into;

#[global_allocator]
static COUNTING: counting::Counting = counting::Counting;

/// An image of slopes and grain, which does not compress well.
fn rgba(width: u32, height: u32) -> RgbaImage {
    RgbaImage::from_fn(width, height, |x, y| {
        let grain = (x.wrapping_mul(73_856_093) ^ y.wrapping_mul(19_349_663)).wrapping_mul(2_654_435_761) >> 28;
        image::Rgba([x, y, x + y, 5000 - y].map(|v| (v / 4 + grain) as u8))
    })
}

type Cast = fn(DynamicImage) -> DynamicImage;
const COLORS: [(&str, Cast); 8] = [
    ("l8", |i| i.into_luma8().into()),
    ("la8", |i| i.into_luma_alpha8().into()),
    ("rgb8", |i| i.into_rgb8().into()),
    ("rgba8", |i| i),
    ("l16", |i| i.into_luma16().into()),
    ("la16", |i| i.into_luma_alpha16().into()),
    ("rgb16", |i| i.into_rgb16().into()),
    ("rgba16", |i| i.into_rgba16().into()),
];

fn encode(image: &DynamicImage, format: ImageFormat) -> Option<Vec<u8>> {
    let mut out = Cursor::new(Vec::new());
    match format {
        ImageFormat::Gif => {
            let image = image.as_rgba8()?;
            let mut encoder = GifEncoder::new_with_speed(&mut out, 30);
            encoder.encode(image, image.width(), image.height(), image::ExtendedColorType::Rgba8).ok()?;
        }
        ImageFormat::Jpeg => image.write_with_encoder(JpegEncoder::new_with_quality(&mut out, 90)).ok()?,
        _ => image.write_to(&mut out, format).ok()?,
    }
    Some(out.into_inner())
}

/// Checks one file. Returns a complaint about its bound.
fn check(name: &str, encoded: &[u8]) -> Option<String> {
    let (header, probed) = peak_of(|| probe(encoded, &Limits::default()));
    let header = header.unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(probed, 0, "{name}: reading a header allocates nothing");
    let bound = working_set(&header, 1);
    let mut buffer = bound.allocate().expect("memory");
    let mut pixels = vec![0; header.width as usize * header.height as usize * 3];
    let (outcome, peak) = peak_of(|| decode_into(encoded, &header, &mut buffer, &mut pixels));
    assert!(outcome.is_ok(), "{name}: {outcome:?}");
    let codec = bound.codec_bytes;
    println!("{name:>32}: took {peak:>9}, bound {codec:>9}, file {:>9}", encoded.len());
    // The number of codes of a lossless WebP is not in its header; the allowance for them is compared with the whole.
    let weighed = if header.format == Format::WebP { peak + bound.buffer_bytes } else { peak };
    let loose = codec > weighed * 4 + (256 << 10);
    (peak > codec || loose).then(|| format!("{name}: took {peak} bytes, the bound is {codec}"))
}

#[test]
fn codecs_stay_within_their_bound() {
    use ImageFormat::{Bmp, Gif, Jpeg, Png, Pnm, Qoi, Tga, Tiff, WebP};
    let mut wrong = Vec::new();
    let mut checked = 0;
    for (width, height) in [(1, 1), (7, 3), (3, 70), (33, 65), (640, 480), (2000, 1500)] {
        let image = DynamicImage::from(rgba(width, height));
        for (color, cast) in COLORS {
            let image = cast(image.clone());
            for format in [Jpeg, Png, WebP, Gif, Bmp, Tiff, Pnm, Qoi, Tga] {
                if format == Gif && width == 2000 {
                    continue; // Its palette takes seconds to choose.
                }
                let Some(encoded) = encode(&image, format) else { continue };
                checked += 1;
                wrong.extend(check(&format!("{format:?} {color} {width}x{height}"), &encoded));
            }
        }
    }
    assert!(checked > 100, "{checked}");
    for (name, encoded) in fixtures(&["decode", "large"]) {
        wrong.extend(check(&name, &encoded));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 4000,
        rng_seed: RngSeed::Fixed(3),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn codecs_stay_within_their_bound_on_damaged_files(
        file in any::<prop::sample::Index>(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..6),
    ) {
        static FILES: LazyLock<Vec<(String, Vec<u8>)>> = LazyLock::new(|| fixtures(&["decode"]));
        let (name, bytes) = &FILES[file.index(FILES.len())];
        let mut bytes = bytes.clone();
        for (at, value, in_header) in edits {
            let end = if in_header { bytes.len().min(120) } else { bytes.len() };
            bytes[at.index(end)] = value;
        }
        if let Ok(header) = probe(&bytes, &Limits { pixels_max: 1 << 20, ..Limits::default() }) {
            let bound = working_set(&header, 1);
            let mut buffer = bound.allocate().expect("memory");
            let mut pixels = vec![0; header.width as usize * header.height as usize * 3];
            let (outcome, peak) = peak_of(|| decode_into(&bytes, &header, &mut buffer, &mut pixels).is_ok());
            // The one known excess (see `decode/webp.rs`): memory that is allocated, and never touched.
            let untouched = if header.format == Format::WebP && !outcome { 1 << 24 } else { 0 };
            prop_assert!(peak <= bound.codec_bytes + untouched, "{name}: took {peak}, {bound:?}, {outcome}");
        }
    }
}

/// Returns names and bytes of the fixtures in these folders.
fn fixtures(folders: &[&str]) -> Vec<(String, Vec<u8>)> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut paths = Vec::new();
    for folder in folders {
        paths.extend(fs::read_dir(fixtures.join(folder)).expect("folder").map(|entry| entry.expect("entry").path()));
    }
    paths.sort();
    let read = |path: &PathBuf| {
        let name = path.file_name().expect("name").to_string_lossy().into_owned();
        (name, fs::read(path).expect("file"))
    };
    paths.iter().map(read).collect()
}

#[test]
fn resampling_allocates_nothing() {
    let sides = [(1, 1), (32, 32), (500, 333), (333, 500), (4000, 30), (30, 4000), (2000, 1500)];
    for spec in [SampleSpec { height: 224, width: 224 }, SampleSpec { height: 32, width: 48 }] {
        let mut out = vec![0; spec.elements()];
        for ((width, height), exif) in sides.into_iter().zip([1, 2, 3, 6, 1, 8, 6]) {
            let orientation = Orientation::from_exif(exif);
            let bytes = Resampler::working_set(width, height, spec, orientation);
            println!("{width}x{height} -> {spec}: a workspace of {bytes}");
            let mut workspace = vec![0; bytes as usize];
            let geometry = Geometry::stretch(Region::whole(width, height), spec, true);
            let resampler = Resampler::new(geometry, spec).oriented(orientation);
            let next_row = |row: &mut [u8]| {
                row.fill(7);
                Ok::<(), TransformError>(())
            };
            let (outcome, peak) = peak_of(|| resampler.apply(width, 0, next_row, &mut workspace, &mut out));
            assert_eq!((outcome, peak), (Ok(()), 0), "{width}x{height} -> {spec}");
        }
    }
}
