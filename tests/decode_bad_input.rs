//! Bad input: each file is decoded, or gives an error with its numbers. Nothing panics.

use std::fs;
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::LazyLock;

use feedstock::decode::{DecodeError, Limits, probe};
use image::{DynamicImage, ImageFormat, RgbImage};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

#[path = "common/decoding.rs"]
mod decoding;

use decoding::decode;

fn decoded(encoded: &[u8]) -> Result<(u32, u32), DecodeError> {
    // Small images only, so that no mutation of a size makes a test slow.
    let header = probe(encoded, &Limits { pixels_max: 1 << 20, side_max: 65_535 })?;
    decode(encoded, &header)?;
    Ok((header.width, header.height))
}

fn image(width: u32, height: u32) -> DynamicImage {
    RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 9) as u8, (y * 7) as u8, (x * y) as u8])).into()
}

fn encoded(format: ImageFormat, width: u32, height: u32) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    image(width, height).write_to(&mut out, format).expect("encoder");
    out.into_inner()
}

const FORMATS: [ImageFormat; 6] =
    [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Bmp, ImageFormat::Tiff];

/// Those whose header is shorter than 20 bytes.
const SHORT: [ImageFormat; 3] = [ImageFormat::Pnm, ImageFormat::Qoi, ImageFormat::Tga];

fn all() -> impl Iterator<Item = ImageFormat> {
    FORMATS.into_iter().chain(SHORT)
}

/// Puts bytes over the two or four that hold a size.
fn with(mut file: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    file[at..at + bytes.len()].copy_from_slice(bytes);
    file
}

fn find(file: &[u8], pattern: &[u8]) -> usize {
    file.windows(pattern.len()).position(|window| window == pattern).expect("pattern")
}

#[test]
fn an_unknown_format_is_reported_with_its_first_bytes() {
    assert_eq!(decoded(b""), Err(DecodeError::Empty));
    for (bytes, text) in [
        (&b"<html>"[..], "unknown image format: the file starts with 3c 68 74 6d 6c 3e; expected JPEG"),
        (b"\0", "unknown image format: the file starts with 00; "),
        (b"\xff\xd8", "unknown image format: the file starts with ff d8; "),
        (&[0; 4096], "unknown image format: the file starts with 00 00 00 00 00 00 00 00; "),
    ] {
        let error = decoded(bytes).expect_err(text).to_string();
        assert!(error.starts_with(text), "{error}");
    }
}

#[test]
fn a_size_beyond_the_limits_is_refused_at_the_header() {
    let huge = 65_500u16;
    let jpeg = encoded(ImageFormat::Jpeg, 8, 8);
    let frame = find(&jpeg, &[0xFF, 0xC0]) + 5;
    let png = encoded(ImageFormat::Png, 8, 8);
    let bmp = encoded(ImageFormat::Bmp, 8, 8);
    let gif = encoded(ImageFormat::Gif, 8, 8);
    let both = |bytes: &[u8]| [bytes, bytes].concat();
    for (name, file) in [
        ("jpeg", with(jpeg, frame, &both(&huge.to_be_bytes()))),
        ("png", with(png, 16, &both(&u32::from(huge).to_be_bytes()))),
        ("bmp", with(bmp, 18, &both(&u32::from(huge).to_le_bytes()))),
        ("gif", with(gif, 6, &both(&huge.to_le_bytes()))),
    ] {
        let error = probe(&file, &Limits::default()).expect_err(name);
        let text = error.to_string();
        assert!(matches!(error, DecodeError::TooLarge { width: 65_500, height: 65_500, .. }), "{name}: {text}");
        assert!(
            text.contains("65500x65500 = 4290250000 pixels, above the limit of 134217728 pixels and 65535 per side"),
            "{name}: {text}"
        );
    }
    let wide = probe(&encoded(ImageFormat::Png, 300, 1), &Limits { side_max: 299, ..Limits::default() });
    assert!(matches!(wide, Err(DecodeError::TooLarge { side_max: 299, .. })));
}

#[test]
fn an_image_without_pixels_is_refused() {
    let jpeg = encoded(ImageFormat::Jpeg, 8, 8);
    let frame = find(&jpeg, &[0xFF, 0xC0]) + 5;
    for file in [
        with(jpeg, frame, &[0, 0]),
        with(encoded(ImageFormat::Png, 8, 8), 20, &[0; 4]),
        with(encoded(ImageFormat::Bmp, 8, 8), 18, &[0; 4]),
        with(encoded(ImageFormat::Gif, 8, 8), 8, &[0, 0]),
    ] {
        assert!(matches!(decoded(&file), Err(DecodeError::ZeroSize { .. })), "{:?}", decoded(&file));
    }
}

#[test]
fn a_header_that_is_truncated_is_reported() {
    for format in FORMATS {
        let file = encoded(format, 16, 16);
        let error = decoded(&file[..20]).expect_err("cut").to_string();
        assert!(error.contains("truncated file: it ends after 20 bytes, inside its header"), "{format:?}: {error}");
    }
}

#[test]
fn a_short_header_is_checked() {
    let arbitrary = |text: &str| format!("P7\n{text}ENDHDR\n").into_bytes();
    for (file, text) in [
        (b"qoif\0\0\0\x05\0\0\0\x05\x02\0".to_vec(), "qoi: invalid header: 2 channels: expected 3 or 4"),
        (b"qoif\0\0\0\x05\0\0\0\x05\x03\x02".to_vec(), "qoi: invalid header: color space 2: expected 0 or 1"),
        (b"qoif\0\0\0\x05".to_vec(), "qoi: truncated file: it ends after 8 bytes, inside its header"),
        (b"P5 0 7 255\n".to_vec(), "pnm: the header declares an image of 0x7 pixels"),
        (b"P5 7 7 65536\n".to_vec(), "pnm: invalid header: maximum sample value 65536: expected 1 to 65535"),
        (b"P5 7 7 0\n".to_vec(), "pnm: invalid header: maximum sample value 0: expected 1 to 65535"),
        (b"P5 7 99999999999 255\n".to_vec(), "pnm: invalid header: a number above 32 bits"),
        (b"P5 7 -7 255\n".to_vec(), "pnm: invalid header: expected a number at byte 5, found 2d"),
        (b"P5 7 7 255".to_vec(), "pnm: truncated file: it ends after 10 bytes, inside its header"),
        (b"P2 1 2 255\n12 25".to_vec(), "pnm: truncated file: it ends after 16 bytes, before its image data does"),
        (arbitrary("WIDTH 5\n"), "pnm: invalid header: one of WIDTH, HEIGHT, DEPTH and MAXVAL is missing"),
        (arbitrary("WIDTH five\n"), "pnm: invalid header: expected a number, found 'five'"),
        (arbitrary("COLOUR 5\n"), "pnm: invalid header: unknown line: expected WIDTH, HEIGHT"),
        (arbitrary("WIDTH 5\nHEIGHT 5\nDEPTH 7\nMAXVAL 255\n"), "pnm: unsupported: 7 channels: expected 1 to 4"),
        (
            arbitrary("WIDTH 5\nHEIGHT 5\nDEPTH 3\nMAXVAL 256\n"),
            "pnm: unsupported: maximum sample value 256 without a TUPLTYPE: expected at most 255",
        ),
        (
            b"\0\x01\x01\0\0\x04\0\x0f\0\0\0\0\x05\0\x05\0\x10\0".to_vec(),
            "tga: unsupported: 16-bit indices into 15-bit colors",
        ),
        (b"P7 332\n".to_vec(), "unknown image format: the file starts with 50 37 20 33 33 32 0a"),
        (b"P8 5 5 255\n".to_vec(), "unknown image format: the file starts with 50 38 20 35"),
    ] {
        let error = decoded(&file).expect_err(text).to_string();
        assert!(error.starts_with(text), "{error}");
    }
}

#[test]
fn a_truncated_file_is_an_error() {
    for format in all() {
        let file = encoded(format, 64, 64);
        let error = decoded(&file[..file.len() / 2]).expect_err("cut");
        println!("{format:?}: {error}");
    }
    let jpeg = encoded(ImageFormat::Jpeg, 64, 64);
    let cut = &jpeg[..jpeg.len() - 2];
    let text = decoded(cut).expect_err("the end marker is missing").to_string();
    assert!(text.contains(&format!("truncated file: it ends after {} bytes", cut.len())), "{text}");
}

#[test]
fn bytes_after_the_end_of_a_jpeg_are_ignored() {
    let jpeg = encoded(ImageFormat::Jpeg, 64, 64);
    for rest in [&b"\0\0\0"[..], b"some text", &[0xFF; 100], &[0; 5000], &jpeg, b"\xff\xd8\xff\xe1\x10\x00 a preview"] {
        assert_eq!(decoded(&[&jpeg, rest].concat()), Ok((64, 64)));
    }
}

#[test]
fn an_invalid_huffman_code_is_an_error() {
    let jpeg = encoded(ImageFormat::Jpeg, 64, 64);
    let middle = jpeg.len() - jpeg.len() / 4;
    // All ones is a code that no table may hold; ff in the data is written as ff 00.
    let error = decoded(&with(jpeg, middle, &[0xFF, 0x00].repeat(8))).expect_err("damaged").to_string();
    assert!(error.starts_with("jpeg: damaged data"), "{error}");
}

#[test]
fn a_size_that_differs_inside_is_refused_at_the_header() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/decode");
    for (name, pattern, offset) in [
        ("lossy_alpha.webp", &b"VP8 "[..], 14),
        ("lossless_alpha.webp", b"VP8L", 9),
        ("animated_lossy.webp", b"VP8 ", 14),
        ("animated.webp", b"VP8L", 9),
    ] {
        let file = fs::read(folder.join(name)).expect(name);
        let at = find(&file, pattern) + offset;
        let error = decoded(&with(file, at, &[0xFF, 0x2F])).expect_err(name).to_string();
        // A lossless file without a canvas of its own has the size that it declares.
        let expected =
            if name == "lossless_alpha.webp" { "" } else { "webp: invalid header: 29x21 pixels in the header" };
        assert!(error.starts_with(expected), "{name}: {error}");
    }
}

#[test]
fn a_header_of_endless_segments_is_refused() {
    let jpeg = encoded(ImageFormat::Jpeg, 8, 8);
    let many = [&jpeg[..2], &b"\xff\xfe\x00\x02".repeat(100_000), &jpeg[2..]].concat();
    let error = decoded(&many).expect_err("endless").to_string();
    assert_eq!(error, "jpeg: invalid header: more than 4096 segments before the image data");
}

#[test]
fn unsupported_jpegs_are_named() {
    let jpeg = encoded(ImageFormat::Jpeg, 8, 8);
    let frame = find(&jpeg, &[0xFF, 0xC0]);
    for (marker, text) in [(0xC3, "lossless"), (0xC9, "arithmetic"), (0xCA, "arithmetic"), (0xCF, "arithmetic")] {
        if cfg!(feature = "turbo") && matches!(marker, 0xC9 | 0xCA) {
            continue; // Decoded.
        }
        let error = decoded(&with(jpeg.clone(), frame + 1, &[marker])).expect_err(text);
        assert!(matches!(&error, DecodeError::Unsupported { feature, .. } if feature.contains(text)), "{error}");
    }
    let error = decoded(&with(jpeg.clone(), frame + 4, &[12])).expect_err("12 bits").to_string();
    assert_eq!(error, "jpeg: unsupported: 12 bits per sample: expected 8");
    // Three columns of brightness to two of color.
    let uneven = with(with(jpeg, frame + 11, &[0x31]), frame + 14, &[0x21]);
    let error = decoded(&uneven).expect_err("uneven").to_string();
    assert_eq!(error, "jpeg: unsupported: sampling factors 2x1 beside 3x1: expected divisors");
}

#[test]
fn bytes_of_another_file_than_the_header_s_are_an_error() {
    for format in all() {
        let (small, large) = (encoded(format, 16, 16), encoded(format, 64, 48));
        let header = probe(&small, &Limits::default()).expect("header");
        assert!(decode(&large, &header).is_err(), "{format:?}");
        let png = encoded(ImageFormat::Png, 16, 16);
        let other = encoded(ImageFormat::Bmp, 16, 16);
        let header = probe(&png, &Limits::default()).expect("header");
        assert!(decode(&other, &header).is_err(), "{format:?}");
    }
}

/// Valid files of every kind: small ones of the fixtures, and generated ones.
static FILES: LazyLock<Vec<(String, Vec<u8>)>> = LazyLock::new(|| {
    let mut files: Vec<_> = all().map(|format| (format!("{format:?}"), encoded(format, 33, 18))).collect();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/decode");
    let mut paths: Vec<_> = fs::read_dir(folder).expect("folder").map(|entry| entry.expect("entry").path()).collect();
    paths.sort();
    files.extend(paths.iter().map(|path| (path.display().to_string(), fs::read(path).expect("file"))));
    files
});

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 6000,
        // The same damage each time: this is not a fuzzer.
        rng_seed: RngSeed::Fixed(2),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn damage_does_not_panic(
        file in any::<prop::sample::Index>(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 0..12),
        keep in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let (name, bytes) = &FILES[file.index(FILES.len())];
        let mut bytes = bytes.clone();
        for (at, value, in_header) in edits {
            let end = if in_header { bytes.len().min(120) } else { bytes.len() };
            let at = at.index(end);
            bytes[at] = value;
        }
        if let Some(keep) = keep {
            bytes.truncate(keep.index(bytes.len()));
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| decoded(&bytes)));
        prop_assert!(outcome.is_ok(), "{name} panicked");
        if let Ok(Err(error)) = outcome {
            prop_assert!(!error.to_string().contains("panicked"), "{name}: {error}");
        }
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(start in 0usize..13, mut bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let starts: [&[u8]; 12] = [
            b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"RIFF\x40\0\0\0WEBPVP8X", b"GIF89a", b"BM", b"II\x2a\0",
            b"MM\0\x2b\0\x08",
            b"qoif\0\0\0\x08\0\0\0\x08\x04\0", b"P3 ", b"P6 9 9 300\n", b"P7\nWIDTH ",
            b"\0\0\x0a\0\0\0\0\0\0\0\0\0\x09\0\x09\0\x18\0",
        ];
        if let Some(prefix) = starts.get(start) {
            bytes.splice(0..0, prefix.iter().copied());
        }
        prop_assert!(catch_unwind(AssertUnwindSafe(|| decoded(&bytes))).is_ok());
    }
}

/// Found by `tests/fuzz.rs`: a hundred bytes that took gigabytes and a minute, for a screen of 29x21.
#[test]
fn a_frame_beyond_its_screen_counts_against_the_limits() {
    let file = encoded(ImageFormat::Gif, 40, 30);
    let at = find(&file, &[0x2C, 0, 0, 0, 0, 40, 0, 30, 0]);
    let error = decoded(&with(file, at + 5, &[0xFF; 4])).expect_err("too large").to_string();
    assert!(error.contains("a frame of 4294836225 pixels for a screen of 40x30"), "{error}");
}
