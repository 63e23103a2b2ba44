//! A difficult image folder: tiny and huge images of every format, and broken files. It is deterministic and made
//! within seconds.

use std::fs::{self, File};
use std::path::Path;
use std::thread;

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{DynamicImage, ImageBuffer, ImageFormat, Rgb, RgbImage};
use rustix::fs::{Advice, fadvise};

use super::common::{encoded, jpeg, jpeg_header, picture};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");

/// An image that is quick to generate.
fn slopes(width: u32, height: u32) -> RgbImage {
    let mut pixels = vec![0; width as usize * height as usize * 3];
    for (y, row) in pixels.chunks_exact_mut(width as usize * 3).enumerate() {
        for (x, pixel) in row.chunks_exact_mut(3).enumerate() {
            pixel.copy_from_slice(&[(x >> 4) as u8, (y >> 3) as u8, (x ^ y) as u8 & 0xF8]);
        }
    }
    RgbImage::from_raw(width, height, pixels).expect("as many bytes as pixels take")
}

/// Baseline, with the encoder's own 4:2:2 or 4:4:4 sampling.
fn large_jpeg(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, 70).encode_image(&slopes(width, height)).expect("encoded");
    bytes
}

fn large_png(image: &DynamicImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    let encoder = PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Up);
    image.write_with_encoder(encoder).expect("encoded");
    bytes
}

/// A PNG whose header states a size, with hardly any data.
fn png_without_data(width: u32, height: u32) -> Vec<u8> {
    let crc = |bytes: &[u8]| {
        !bytes.iter().fold(!0u32, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 })
        })
    };
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |name: &[u8], data: &[u8]| {
        let body = [name, data].concat();
        file.extend((data.len() as u32).to_be_bytes());
        file.extend(&body);
        file.extend(crc(&body).to_be_bytes());
    };
    chunk(b"IHDR", &[&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat());
    // An empty deflate stream: a decoder that trusts the header has allocated the memory by now.
    chunk(b"IDAT", &[0x78, 0x9C, 0x03, 0, 0, 0, 0, 1]);
    chunk(b"IEND", &[]);
    file
}

/// Small images: all fixtures, and generated ones.
pub fn small(folder: &Path) {
    let class = folder.join("small");
    fs::create_dir_all(&class).expect("a folder");
    for seed in 0..40 {
        let (width, height) = (16 + seed * 7 % 190, 16 + seed * 13 % 170);
        fs::write(class.join(format!("{seed:02}.jpg")), jpeg(seed, width, height)).expect("written");
    }
    for kind in ["decode", "large"] {
        for entry in fs::read_dir(Path::new(FIXTURES).join(kind)).expect("fixtures") {
            let path = entry.expect("a fixture").path();
            let name = path.file_name().and_then(|name| name.to_str()).expect("a plain name");
            fs::copy(&path, class.join(format!("{kind}-{name}"))).expect("copied");
        }
    }
}

/// Files that cannot be samples. Returns their number.
pub fn broken(folder: &Path) -> usize {
    let class = folder.join("broken");
    fs::create_dir_all(&class).expect("a folder");
    let whole = jpeg(7, 120, 90);
    let png = encoded(&picture(8, 90, 120), ImageFormat::Png);
    let files: Vec<(&str, Vec<u8>)> = vec![
        ("cut.jpg", whole[..whole.len() / 2].to_vec()),
        ("cut.png", png[..png.len() / 2].to_vec()),
        ("header.jpg", whole[..20].to_vec()),
        ("empty.jpg", Vec::new()),
        ("zeros.jpg", vec![0; 4096]),
        ("text.jpg", b"<html>not found</html>".to_vec()),
        ("huge.jpg", jpeg_header(65_500, 65_500)),
        ("huge.png", png_without_data(30_000, 30_000)),
        // The header is within all limits.
        ("nothing.png", png_without_data(300, 200)),
    ];
    files.iter().for_each(|(name, bytes)| fs::write(class.join(name), bytes).expect("written"));
    files.len()
}

/// Images of up to fifty megapixels in every format, one of them truncated. Returns the number of broken ones.
pub fn large(folder: &Path) -> usize {
    let class = folder.join("large");
    fs::create_dir_all(&class).expect("a folder");
    let write = |name: &str, bytes: &[u8]| fs::write(class.join(name), bytes).expect("written");
    thread::scope(|scope| {
        scope.spawn(|| {
            let fifty = large_jpeg(8688, 5792);
            write("50mp.jpg", &fifty);
            write("50mp-cut.jpg", &fifty[..fifty.len() * 2 / 3]);
        });
        scope.spawn(|| {
            write("12mp.jpg", &large_jpeg(4000, 3000));
            write("12mp-upright.jpg", &large_jpeg(3000, 4000));
            write("50mp-wide.jpg", &large_jpeg(16_000, 3100));
            write("8mp.png", &large_png(&slopes(3400, 2400).into()));
            let deep = ImageBuffer::from_fn(1600, 1200, |x, y| Rgb([(x * 31) as u16, (y * 47) as u16, (x + y) as u16]));
            write("2mp-deep.png", &large_png(&DynamicImage::ImageRgb16(deep)));
            let three = DynamicImage::ImageRgb8(slopes(2000, 1500));
            write("3mp.bmp", &encoded(&three, ImageFormat::Bmp));
            write("3mp.tif", &encoded(&three, ImageFormat::Tiff));
            write("3mp.webp", &encoded(&three, ImageFormat::WebP));
            let alpha = DynamicImage::ImageRgba8(DynamicImage::ImageRgb8(slopes(800, 600)).to_rgba8());
            write("half-mp.gif", &encoded(&alpha, ImageFormat::Gif));
        });
    });
    1
}

/// Drops the page cache of all files, so that a run reads them from disk and is charged for their cache.
pub fn drop_page_cache(folder: &Path) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            drop_page_cache(&path);
        } else {
            let file = File::open(&path).expect("opened");
            // Only clean pages can be dropped; some file systems keep the cache.
            let _ = file.sync_all().map(|()| fadvise(&file, 0, None, Advice::DontNeed));
        }
    }
}
