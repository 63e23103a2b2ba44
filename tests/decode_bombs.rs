//! Small files that declare, or unpack to, very much: each is refused, or decoded within its memory bound, in bounded
//! time. The files are made by the tests.

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use feedstock::decode::{Limits, probe, working_set};
use flate2::Compression;
use flate2::write::ZlibEncoder;

#[path = "common/counting.rs"]
mod counting;

#[path = "common/decoding.rs"]
mod decoding;

use counting::peak_of;
use decoding::decode_into;

#[global_allocator]
static COUNTING: counting::Counting = counting::Counting;

/// Limit of the CPU time for a refusal, or a small image. On an idle machine they take a hundredth of it.
const CPU_MAX: Duration = Duration::from_secs(1);
/// Limit of the memory for an error's text.
const TEXT_BYTES: u64 = 1 << 10;

/// CPU time of this thread; wall time where the system does not report it.
fn cpu_time(began: Instant) -> Duration {
    let told = fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanos = told.and_then(|text| text.split(' ').next()?.parse().ok()).filter(|&nanos: &u64| nanos > 0);
    nanos.map_or_else(|| began.elapsed(), Duration::from_nanos)
}

/// Probes and decodes, and checks time and memory. Returns the image's sides, or the error's text.
fn outcome(name: &str, encoded: &[u8]) -> Result<(u32, u32), String> {
    let began = Instant::now();
    let before = cpu_time(began);
    let (probed, peak) = peak_of(|| probe(encoded, &Limits::default()).map_err(|error| error.to_string()));
    assert!(peak <= TEXT_BYTES, "{name}: reading the header took {peak} bytes");
    let result = probed.and_then(|header| {
        let bound = working_set(&header, 1);
        // An image of so few pixels is cheap, and the rest of such a file must not cost anything.
        assert!(bound.codec_bytes < 8 << 20, "{name}: {bound:?}");
        let mut buffer = bound.allocate().expect("memory");
        let mut pixels = vec![0; header.width as usize * header.height as usize * 3];
        let (decoded, peak) = peak_of(|| {
            let decoded = decode_into(encoded, &header, &mut buffer, &mut pixels);
            decoded.map(|()| (header.width, header.height)).map_err(|error| error.to_string())
        });
        assert!(peak <= bound.codec_bytes, "{name}: took {peak} bytes, the bound is {}", bound.codec_bytes);
        decoded
    });
    let took = cpu_time(began) - before;
    assert!(took < CPU_MAX, "{name}: took {took:?}");
    result
}

/// Deflates `bytes` zeros.
fn deflated_zeros(bytes: u64) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    let block = vec![0; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        let part = left.min(block.len() as u64) as usize;
        encoder.write_all(&block[..part]).expect("memory");
        left -= part as u64;
    }
    encoder.finish().expect("memory")
}

fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let mut crc = flate2::Crc::new();
    crc.update(kind);
    crc.update(data);
    [&(data.len() as u32).to_be_bytes(), &kind[..], data, &crc.sum().to_be_bytes()].concat()
}

/// A black gray-scale PNG of 8 bits, with chunks before the image and after it.
fn png(width: u32, height: u32, before: &[u8], after: &[u8]) -> Vec<u8> {
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 0, 0, 0, 0]].concat();
    let data = deflated_zeros((u64::from(width) + 1) * u64::from(height));
    let chunks = [chunk(b"IHDR", &header), before.to_vec(), chunk(b"IDAT", &data), after.to_vec(), chunk(b"IEND", b"")];
    [&b"\x89PNG\r\n\x1a\n"[..], &chunks.concat()].concat()
}

#[test]
fn a_huge_image_in_a_small_file_is_refused() {
    let file = png(30_000, 30_000, b"", b"");
    assert!(file.len() < 5 << 20, "{}", file.len());
    let error = outcome("png", &file).expect_err("too large");
    assert_eq!(
        error,
        "png: the header declares 30000x30000 = 900000000 pixels, above the limit of 134217728 pixels and 65535 per \
         side: raise the decode limits if this image is wanted"
    );
}

#[test]
fn text_and_profiles_of_a_png_are_never_inflated() {
    let gigabyte = deflated_zeros(1 << 30);
    assert!(gigabyte.len() < 6 << 20, "{}", gigabyte.len());
    for (kind, head) in [(b"zTXt", &b"a\0\0"[..]), (b"iTXt", b"a\0\x01\0\0\0"), (b"iCCP", b"a\0\0"), (b"tEXt", b"a\0")]
    {
        let name = String::from_utf8_lossy(kind);
        let bomb = chunk(kind, &[head, &gigabyte].concat());
        assert_eq!(outcome(&name, &png(20, 10, &bomb, b"")), Ok((20, 10)));
        assert_eq!(outcome(&name, &png(20, 10, b"", &bomb)), Ok((20, 10)));
        let many = bomb.repeat(3);
        assert_eq!(outcome(&name, &png(20, 10, &many, b"")), Ok((20, 10)));
    }
}

#[test]
fn many_small_chunks_cost_nothing() {
    for kind in [b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"sPLT", b"gAMA", b"eXIf", b"prVt"] {
        let many = chunk(kind, b"a\0").repeat(100_000);
        assert_eq!(outcome(&String::from_utf8_lossy(kind), &png(20, 10, &many, b"")), Ok((20, 10)));
    }
}

#[test]
fn frames_after_the_first_are_ignored() {
    // GIF: 100 000 frames of one pixel.
    let mut file = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\xff\x80\x00\x00\x00\x00".to_vec();
    for _ in 0..100_000 {
        file.extend(b",\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00");
    }
    file.push(b';');
    assert_eq!(outcome("gif", &file), Ok((1, 1)));

    // APNG: the still image, and 100 000 frames after it.
    let animation = chunk(b"acTL", &[100_000u32.to_be_bytes(), [0; 4]].concat());
    let control = [0u32, 20, 10, 0, 0].map(u32::to_be_bytes).concat();
    let first = chunk(b"fcTL", &[&control[..], &[0; 6]].concat());
    let later = deflated_zeros(21 * 10);
    let frames: Vec<u8> = (0..99_999u32)
        .flat_map(|frame| {
            let sequence = |at: u32| (frame * 2 + 1 + at).to_be_bytes();
            let control = [&sequence(0)[..], &control[4..], &[0; 6]].concat();
            [chunk(b"fcTL", &control), chunk(b"fdAT", &[&sequence(1)[..], &later].concat())].concat()
        })
        .collect();
    assert_eq!(outcome("apng", &png(20, 10, &[animation, first].concat(), &frames)), Ok((20, 10)));

    // WebP: the first frame, 100 000 times.
    let mut frame = Vec::new();
    let image = image::RgbImage::from_pixel(2, 2, image::Rgb([9, 90, 200]));
    image.write_to(&mut std::io::Cursor::new(&mut frame), image::ImageFormat::WebP).expect("encoder");
    let frame = [&[0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 9, 0, 0, 0][..], &frame[12..]].concat();
    let chunk = [b"ANMF", &(frame.len() as u32).to_le_bytes()[..], &frame].concat();
    let mut body = b"WEBPVP8X\x0a\0\0\0\x02\0\0\0\x01\0\0\x01\0\0ANIM\x06\0\0\0\0\0\0\0\0\0".to_vec();
    body.extend(chunk.repeat(100_000));
    let file = [b"RIFF", &(body.len() as u32).to_le_bytes()[..], &body].concat();
    assert_eq!(outcome("webp", &file), Ok((2, 2)));
}

#[test]
fn only_the_first_directory_of_a_tiff_is_read() {
    let mut plain = std::io::Cursor::new(Vec::new());
    let image = image::RgbImage::from_pixel(20, 10, image::Rgb([9, 90, 200]));
    image.write_to(&mut plain, image::ImageFormat::Tiff).expect("encoder");
    let plain = plain.into_inner();
    let number = |at: usize| u32::from_le_bytes([plain[at], plain[at + 1], plain[at + 2], plain[at + 3]]) as usize;
    let first = number(4);
    let length = 2 + 12 * usize::from(u16::from_le_bytes([plain[first], plain[first + 1]]));
    let next_at = first + length;
    let with_next = |file: &mut Vec<u8>, at: usize, next: usize| {
        file[at..at + 4].copy_from_slice(&(next as u32).to_le_bytes());
    };
    // A directory that is its own next one.
    let mut round = plain.clone();
    with_next(&mut round, next_at, first);
    let error = outcome("tiff, round", &round).expect_err("a cycle");
    assert!(error.contains("a cycle in the list of IFDs"), "{error}");
    // 100 000 of them, one after the other.
    let directory = plain[first..next_at + 4].to_vec();
    let mut long = plain.clone();
    let start = long.len();
    with_next(&mut long, next_at, start);
    for count in 1..=100_000 {
        let at = long.len();
        long.extend(&directory);
        let next = if count == 100_000 { 0 } else { at + directory.len() };
        with_next(&mut long, at + length, next);
    }
    assert_eq!(outcome("tiff, long", &long), Ok((20, 10)));
}

#[test]
fn many_blocks_before_a_gif_frame_cost_nothing() {
    let mut file = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\xff\x80\x00\x00\x00\x00".to_vec();
    file.extend(b"!\xfe\x01a\x00".repeat(100_000));
    file.extend(b",\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;");
    assert_eq!(outcome("gif", &file), Ok((1, 1)));
}

#[test]
fn a_jpeg_of_thousands_of_scans_is_refused_before_work() {
    let mut file = vec![0xFF, 0xD8, 0xFF, 0xDB, 0, 67, 0];
    file.extend([1; 64]);
    // 4000 x 4000, one component, and an empty table of codes each.
    file.extend([0xFF, 0xC2, 0, 11, 8, 0x0F, 0xA0, 0x0F, 0xA0, 1, 1, 0x11, 0]);
    for class in [0x00, 0x10] {
        file.extend([0xFF, 0xC4, 0, 20, class, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    for scan in 0..5000 {
        let first = u8::from(scan > 0);
        file.extend([0xFF, 0xDA, 0, 8, 1, 1, 0, first, if scan == 0 { 0 } else { 63 }, 0, 0x00, 0x00]);
    }
    file.extend([0xFF, 0xD9]);
    let header = probe(&file, &Limits::default()).expect("header");
    let mut buffer = working_set(&header, 1).allocate().expect("memory");
    let began = Instant::now();
    let before = cpu_time(began);
    let (decoded, peak) = peak_of(|| decode_into(&file, &header, &mut buffer, &mut []));
    let took = cpu_time(began) - before;
    assert_eq!(decoded.expect_err("scans").to_string(), "jpeg: unsupported: 5000 scans: expected at most 64");
    assert!(took < CPU_MAX && peak <= TEXT_BYTES, "{took:?}, {peak} bytes");
}

#[test]
fn the_length_of_a_pnm_header_is_limited() {
    for head in [&b"P6\n#"[..], b"P7\n#", b"P7\nTUPLTYPE ", b"P5 "] {
        let endless = [head, &b" ".repeat(100 << 20)].concat();
        let error = outcome("pnm", &endless).expect_err("endless");
        assert_eq!(error, "pnm: invalid header: longer than 16384 bytes");
    }
    let error = outcome("pnm", b"P6 60000 60000 255\n").expect_err("too large");
    assert!(error.contains("60000x60000 = 3600000000 pixels, above the limit of 134217728"), "{error}");
    let error = outcome("qoi", b"qoif\x00\x00\xea\x60\x00\x00\xea\x60\x03\x00").expect_err("too large");
    assert!(error.contains("60000x60000 = 3600000000 pixels, above the limit of 134217728"), "{error}");
    let tga = b"\0\0\x02\0\0\0\0\0\0\0\0\0\x60\xea\x60\xea\x18\0";
    let error = outcome("tga", tga).expect_err("too large");
    assert!(error.contains("60000x60000 = 3600000000 pixels, above the limit of 134217728"), "{error}");
}
