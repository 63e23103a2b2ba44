//! Compares decoded pixels with those that Pillow reads from the same files. `tests/fixtures/make_fixtures.py` made the
//! files, with Pillow, or with a few lines of Python for formats that it cannot write.

#![allow(clippy::print_stdout, reason = "a skipped part is reported")]

#[path = "common/skip.rs"]
mod skip;

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use feedstock::decode::{DecodeError, Format, Limits, probe};

#[path = "common/decoding.rs"]
mod decoding;

use decoding::decode;
use skip::{Missing, skip};

struct Fixture {
    name: String,
    encoded: Vec<u8>,
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn fixtures() -> Vec<Fixture> {
    let index = fs::read_to_string(folder().join("decode.txt")).expect("index");
    let mut pixels = &fs::read(folder().join("decode.bin")).expect("pixels")[..];
    let read = |line: &str| {
        let mut words = line.split(' ');
        let name = words.next().expect("name").to_owned();
        let mut side = || words.next().expect("side").parse::<u32>().expect("number");
        let (width, height) = (side(), side());
        let (own, rest) = pixels.split_at((width * height * 3) as usize);
        pixels = rest;
        let encoded = fs::read(folder().join("decode").join(&name)).expect("file");
        Fixture { name, encoded, width, height, pixels: own.to_vec() }
    };
    index.lines().map(read).collect()
}

fn format_of_name(name: &str) -> Format {
    match name.rsplit('.').next().expect("extension") {
        "jpg" => Format::Jpeg,
        "png" => Format::Png,
        "webp" => Format::WebP,
        "gif" => Format::Gif,
        "bmp" => Format::Bmp,
        "tif" => Format::Tiff,
        "pbm" | "pgm" | "ppm" | "pam" => Format::Pnm,
        "qoi" => Format::Qoi,
        "tga" => Format::Tga,
        other => panic!("{other}"),
    }
}

/// Tolerance for lossy codecs, whose inverse transforms and color upsampling may differ: maximum and mean difference,
/// in levels.
fn tolerance(name: &str) -> (u8, f64) {
    match name {
        _ if name.contains("jpg") || name == "lossy.webp" || name == "orientation3.webp" => (24, 1.5),
        "lossy_alpha.webp" | "animated_lossy.webp" => (24, 1.5),
        // CMYK is inverted and multiplied out with different rounding.
        "cmyk.tif" => (1, 0.5),
        _ => (0, 0.0),
    }
}

#[test]
fn pixels_are_those_of_pillow() {
    let fixtures = fixtures();
    assert!(fixtures.len() > 65);
    let mut complaints = Vec::new();
    for Fixture { name, encoded, width, height, pixels } in &fixtures {
        let header = match probe(encoded, &Limits::default()) {
            Ok(header) => header,
            Err(error) => {
                complaints.push(format!("{name}: {error}"));
                continue;
            }
        };
        assert_eq!((header.format, header.width, header.height), (format_of_name(name), *width, *height), "{name}");
        let orientation = name.split('.').next().and_then(|stem| stem.strip_prefix("orientation"));
        let orientation: u8 = orientation.map_or(1, |digit| digit.parse().expect("digit"));
        assert_eq!(header.orientation, orientation, "{name}");
        match decode(encoded, &header) {
            Err(error) => complaints.push(format!("{name}: {error}")),
            Ok(image) => {
                let (most, mean) = tolerance(name);
                let differences = || image.iter().zip(pixels).map(|(a, b)| a.abs_diff(*b));
                let found_most = differences().max().unwrap_or(0);
                let found_mean = differences().map(f64::from).sum::<f64>() / pixels.len() as f64;
                if found_most > most || found_mean > mean {
                    complaints.push(format!("{name}: differs by up to {found_most}, {found_mean:.3} in the mean"));
                }
            }
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn a_file_truncated_anywhere_is_an_error() {
    for Fixture { name, encoded, pixels, .. } in &fixtures() {
        let whole = probe(encoded, &Limits::default()).expect("whole");
        let whole = decode(encoded, &whole).expect("whole");
        let mut first_good = None;
        for length in 0..encoded.len() {
            let cut = &encoded[..length];
            let outcome = probe(cut, &Limits::default()).and_then(|header| decode(cut, &header));
            match outcome {
                Err(DecodeError::Empty) => assert_eq!(length, 0),
                Err(error) => assert!(!error.to_string().is_empty()),
                // Bytes after the last pixel (end marks, checksums, metadata, later frames) may be missing.
                Ok(image) => {
                    assert_eq!(image.len(), pixels.len(), "{name}");
                    if image != whole {
                        panic!("{name}: truncated to {length} of {} bytes, it is another image", encoded.len());
                    }
                    first_good = first_good.or(Some(length));
                }
            }
        }
        if name.ends_with(".jpg") {
            assert_eq!(first_good, None, "{name}: the end marker closes a JPEG");
        }
    }
}

/// Returns all files below a folder: one that an environment variable names, or one beside the repository.
fn real_files(variable: &str, beside: &str) -> Vec<PathBuf> {
    fn collect(folder: &Path, deeper: usize, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() && deeper > 0 {
                collect(&path, deeper - 1, found);
            } else if path.is_file() {
                found.push(path);
            }
        }
    }
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join(beside);
    let folder = std::env::var_os(variable).map_or(beside, PathBuf::from);
    let mut found = Vec::new();
    collect(&folder, 3, &mut found);
    if found.is_empty() {
        skip(&Missing::Data(&format!("files in {} (or in the folder that {variable} names)", folder.display())));
    }
    found
}

#[test]
fn photos_are_decoded_as_by_the_image_crate() {
    let mut files = real_files("FEEDSTOCK_IMAGENET", "../shared/datasets/imagenet-sample-500");
    files.extend(real_files("FEEDSTOCK_CIFAR", "../shared/datasets/cifar10"));
    for path in files.iter().filter(|path| {
        path.extension().is_some_and(|e| e.eq_ignore_ascii_case("jpeg") || e.eq_ignore_ascii_case("jpg"))
    }) {
        let name = path.display();
        let encoded = fs::read(path).expect("file");
        let header = probe(&encoded, &Limits::default()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let image = decode(&encoded, &header).unwrap_or_else(|error| panic!("{name}: {error}"));
        let reader = image::ImageReader::new(Cursor::new(&encoded)).with_guessed_format().expect("format");
        let expected = reader.decode().expect("image").into_rgb8();
        assert_eq!((header.width, header.height), expected.dimensions(), "{name}");
        if cfg!(feature = "turbo") {
            // Another codec: it rounds in other places, and upsamples color more smoothly.
            let difference = |(a, b): (&u8, &u8)| f64::from(a.abs_diff(*b));
            let mean = image.iter().zip(expected.as_raw()).map(difference).sum::<f64>() / expected.len() as f64;
            assert!(mean < 1.5, "{name}: differs by {mean:.3} in the mean");
        } else {
            assert!(&image == expected.as_raw(), "{name}: other pixels");
        }
    }
}
