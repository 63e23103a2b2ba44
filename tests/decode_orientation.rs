//! EXIF orientation: an image that is stored turned gives the same sample as its upright copy, for each of the eight
//! orientations, in every format that stores one. With the option off, it gives the stored image.

use std::io::Cursor;

use feedstock::decode::{Limits, Options, probe};
use feedstock::rng::Seed;
use feedstock::transform::{RandomResizedCrop, Resize, ResizeCenterCrop, Transform};
use feedstock::{Preprocessor, SampleId};
use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ImageFormat, RgbImage};

#[path = "common/decoding.rs"]
mod decoding;

use decoding::decode;

const WIDTH: u32 = 97;
const HEIGHT: u32 = 61;
const OUT: u32 = 40;

/// Slopes and grain, nowhere symmetric.
fn image() -> RgbImage {
    RgbImage::from_fn(WIDTH, HEIGHT, |x, y| {
        let grain = (x.wrapping_mul(73_856_093) ^ y.wrapping_mul(19_349_663)).wrapping_mul(2_654_435_761) >> 26;
        image::Rgb([x * 2, y * 3, x + y].map(|v| (v + grain) as u8))
    })
}

/// EXIF data, which is a TIFF directory, with nothing but the orientation.
fn exif(orientation: u8) -> Vec<u8> {
    let mut data = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
    data.extend([orientation, 0, 0, 0, 0, 0, 0]);
    data
}

fn encode(image: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    image.write_to(&mut out, format).expect("encoder");
    out.into_inner()
}

fn jpeg(image: &RgbImage, orientation: u8) -> Vec<u8> {
    let mut plain = Vec::new();
    DynamicImage::from(image.clone()).write_with_encoder(JpegEncoder::new_with_quality(&mut plain, 90)).expect("JPEG");
    let data = [b"Exif\0\0", &exif(orientation)[..]].concat();
    let length = (data.len() as u16 + 2).to_be_bytes();
    [&plain[..2], &[0xFF, 0xE1], &length, &data, &plain[2..]].concat()
}

fn png(image: &RgbImage, orientation: u8) -> Vec<u8> {
    let plain = encode(image, ImageFormat::Png);
    let data = exif(orientation);
    let chunk = [b"eXIf", &data[..]].concat();
    let sum = crc(&chunk);
    // Behind the signature and IHDR.
    [&plain[..33], &(data.len() as u32).to_be_bytes(), &chunk, &sum.to_be_bytes(), &plain[33..]].concat()
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

fn webp(image: &RgbImage, orientation: u8) -> Vec<u8> {
    let plain = encode(image, ImageFormat::WebP);
    let data = exif(orientation);
    let side = |side: u32| (side - 1).to_le_bytes()[..3].to_vec();
    let mut body = b"WEBPVP8X\x0a\0\0\0\x08\0\0\0".to_vec();
    body.extend([side(image.width()), side(image.height())].concat());
    body.extend(&plain[12..]);
    body.extend(b"EXIF");
    body.extend((data.len() as u32).to_le_bytes());
    body.extend(&data);
    body.extend(vec![0; data.len() % 2]);
    [b"RIFF", &(body.len() as u32).to_le_bytes()[..], &body].concat()
}

fn tiff(image: &RgbImage, orientation: u8) -> Vec<u8> {
    let pixels = image.as_raw();
    let mut file = b"II*\0".to_vec();
    file.extend((8 + pixels.len() as u32).to_le_bytes());
    file.extend(pixels);
    let bits_at = file.len() as u32 + 2 + 11 * 12 + 4;
    let entries: [(u16, u16, u32, u32); 11] = [
        (256, 4, 1, image.width()),
        (257, 4, 1, image.height()),
        (258, 3, 3, bits_at),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 8),
        (274, 3, 1, orientation.into()),
        (277, 3, 1, 3),
        (278, 4, 1, image.height()),
        (279, 4, 1, pixels.len() as u32),
        (284, 3, 1, 1),
    ];
    file.extend(11u16.to_le_bytes());
    for (tag, kind, count, value) in entries {
        file.extend(tag.to_le_bytes());
        file.extend(kind.to_le_bytes());
        file.extend(count.to_le_bytes());
        file.extend(value.to_le_bytes());
    }
    file.extend([0; 4]);
    file.extend([8, 0, 8, 0, 8, 0]);
    file
}

/// Turns the stored image upright.
fn turned(stored: &RgbImage, orientation: u8) -> RgbImage {
    let image = DynamicImage::from(stored.clone());
    let image = match orientation {
        1 => image,
        2 => image.fliph(),
        3 => image.rotate180(),
        4 => image.flipv(),
        5 => image.rotate90().fliph(),
        6 => image.rotate90(),
        7 => image.rotate270().fliph(),
        8 => image.rotate270(),
        other => panic!("{other}"),
    };
    image.into_rgb8()
}

/// Decodes the pixels as they are stored.
fn stored(encoded: &[u8]) -> RgbImage {
    let header = probe(encoded, &Limits::default()).expect("header");
    let pixels = decode(encoded, &header).expect("image");
    RgbImage::from_raw(header.width, header.height, pixels).expect("all pixels")
}

fn made(transform: impl Transform, encoded: &[u8], orient: bool, id: u64) -> Vec<u8> {
    let mut options = Options::default();
    options.apply_exif_orientation = orient;
    let mut maker = Preprocessor::new(transform).options(options);
    let mut out = vec![0; (OUT * OUT * 3) as usize];
    maker.process_as(encoded, Seed(3), 1, SampleId(id), &mut out).expect("made");
    out
}

type Encode = fn(&RgbImage, u8) -> Vec<u8>;
const FORMATS: [(&str, Encode); 4] = [("jpeg", jpeg), ("png", png), ("webp", webp), ("tiff", tiff)];

fn check(name: &str, make: impl Fn(&[u8], bool, u64) -> Vec<u8>) {
    for (format, encode) in FORMATS {
        for orientation in 1..=8 {
            let file = encode(&image(), orientation);
            let header = probe(&file, &Limits::default()).expect("header");
            assert_eq!((header.orientation, header.width), (orientation, WIDTH), "{format}");
            let as_stored = stored(&file);
            let upright = encode_png(&turned(&as_stored, orientation));
            let plain = encode_png(&as_stored);
            for id in 0..12 {
                let what = format!("{name} of {format}, orientation {orientation}, sample {id}");
                let (found, expected) = (make(&file, true, id), make(&upright, true, id));
                // Where sides do not swap it is the same to the byte; where they do, rows and columns are resampled in
                // the other order, and rounded between.
                let tolerance = u8::from(orientation >= 5);
                let most = found.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max();
                assert!(most <= Some(tolerance), "{what}: differs by {most:?}");
                assert_eq!(make(&file, false, id), make(&plain, true, id), "{what}: as it is stored");
            }
        }
    }
}

fn encode_png(image: &RgbImage) -> Vec<u8> {
    encode(image, ImageFormat::Png)
}

#[test]
fn the_center_of_a_turned_image_is_upright() {
    check("center", |file, orient, id| made(ResizeCenterCrop::new(48, OUT), file, orient, id));
}

#[test]
fn the_whole_of_a_turned_image_is_upright() {
    check("whole", |file, orient, id| made(Resize::exact(OUT, OUT), file, orient, id));
}

#[test]
fn a_random_crop_of_a_turned_image_is_upright() {
    check("random", |file, orient, id| made(RandomResizedCrop::new(OUT).flip(0.5), file, orient, id));
}
