//! Header of WebP. Of an animation, the first frame is the image.
//!
//! Source: RFC 9649 (2024), sections 2 and 3.4; RFC 6386 (2011), 9.1 for the lossy key frame.
//!
//! The bound on the codec's allocations holds for the output of encoders, and for most damage to it. Two things are not
//! in a header that can be read without decoding. A lossless file may declare a great many Huffman codes, of 4 KiB each
//! once expanded, in few bytes; one made by hand to do so can take more, about four hundred times its own size. And for
//! a lossy file whose partition table is damaged the codec asks for up to 16 MiB of zeroed memory, which it fails to
//! fill.

use super::bytes::{Order, array, u8_at, u16_at, u24_le, u32_at};
use super::header::{ColorType, Format, Header, HeaderError};
use super::ifd::exif_orientation;

/// ColorType cache, lookup tables, chunk table.
const FIXED_BYTES: u64 = 64 << 10;
/// Huffman codes of a lossless stream: 20 KiB for a group of five. Photos have few groups for their bytes (half a byte
/// of codes for a byte of file was measured); graphics have few bytes.
const HUFFMAN_BYTES: u64 = 128 << 10;

/// A stream of compressed pixels: its length, and the size that it declares itself. The codec allocates for that size
/// before it compares it with the image's.
#[derive(Clone, Copy, Debug)]
struct Stream {
    length: u64,
    width: u32,
    height: u32,
    alpha: bool,
}

/// The first chunk of each kind that matters; the codec, too, takes the first.
#[derive(Clone, Copy, Debug, Default)]
struct Chunks {
    lossy: Option<Stream>,
    lossless: Option<Stream>,
    alpha_bytes: Option<u64>,
    orientation: Option<u8>,
    /// First frame of an animation: offset of its chunks, its end, and its size.
    frame: Option<(usize, usize, u32, u32)>,
    /// Kinds of the first two chunks.
    order: [Option<[u8; 4]>; 2],
}

/// Reads the first chunk and, for the extended format, walks the others.
pub(super) fn probe(encoded: &[u8]) -> Result<Header, HeaderError> {
    let kind = array::<4>(encoded, 12).ok_or(HeaderError::Truncated)?;
    let length = u64::from(u32_at(encoded, 16, Order::Little).ok_or(HeaderError::Truncated)?);
    let header = |width, height, alpha: bool, orientation, codec_bytes| {
        let (color, native_pixel_bytes) = if alpha { (ColorType::RgbAlpha, 4) } else { (ColorType::Rgb, 3) };
        Header { orientation, codec_bytes, ..Header::new(Format::WebP, (width, height), color, native_pixel_bytes) }
    };
    match &kind {
        b"VP8 " => {
            let stream = lossy_stream(encoded, 20, length)?;
            let Stream { width, height, .. } = stream;
            Ok(header(width, height, false, 1, FIXED_BYTES + lossy_bytes(width, height, length)))
        }
        b"VP8L" => {
            let stream = lossless_stream(encoded, 20, length)?;
            let Stream { width, height, alpha, .. } = stream;
            let argb_bytes = if alpha { 0 } else { 4 * pixels(width, height) };
            Ok(header(width, height, alpha, 1, FIXED_BYTES + argb_bytes + lossless_bytes(width, height, length)))
        }
        b"VP8X" => {
            let flags = u8_at(encoded, 20).ok_or(HeaderError::Truncated)?;
            let side = |at| u24_le(encoded, at).map(|v| v + 1).ok_or(HeaderError::Truncated);
            let (width, height) = (side(24)?, side(27)?);
            let alpha = flags & 0x10 != 0;
            let first =
                20usize.saturating_add(usize::try_from(length + (length & 1)).map_err(|_| HeaderError::Truncated)?);
            let chunks = walk(encoded, first, encoded.len())?;
            let codec_bytes = match chunks.frame {
                Some((at, end, frame_width, frame_height)) => {
                    let inner = walk(encoded, at, end)?;
                    if !matches!(
                        inner.order,
                        [Some([b'V', b'P', b'8', b' ' | b'L']), _]
                            | [Some([b'A', b'L', b'P', b'H']), Some([b'V', b'P', b'8', b' '])]
                    ) {
                        return Err(HeaderError::invalid("the first frame does not begin with image data"));
                    }
                    let canvases = pixels(width, height).saturating_add(pixels(frame_width, frame_height));
                    chunks_bytes(&inner, frame_width, frame_height, true)?.saturating_add(canvases.saturating_mul(4))
                }
                None => chunks_bytes(&chunks, width, height, alpha)?,
            };
            let orientation = chunks.orientation.unwrap_or(1);
            Ok(header(width, height, alpha, orientation, FIXED_BYTES.saturating_add(codec_bytes)))
        }
        _ => Err(HeaderError::invalid("unknown first chunk: expected VP8, VP8L or VP8X")),
    }
}

fn lossy_stream(encoded: &[u8], at: usize, length: u64) -> Result<Stream, HeaderError> {
    let tag = u8_at(encoded, at).ok_or(HeaderError::Truncated)?;
    if tag & 1 != 0 || array::<3>(encoded, at + 3).ok_or(HeaderError::Truncated)? != [0x9D, 0x01, 0x2A] {
        return Err(HeaderError::invalid("lossy image data does not begin with a key frame"));
    }
    let first_partition = u64::from(u24_le(encoded, at).ok_or(HeaderError::Truncated)? >> 5);
    if first_partition > length {
        return Err(HeaderError::invalid(format!(
            "a first partition of {first_partition} bytes in {length} bytes of image data"
        )));
    }
    let side = |at| u16_at(encoded, at, Order::Little).map(|v| u32::from(v & 0x3FFF)).ok_or(HeaderError::Truncated);
    Ok(Stream { length, width: side(at + 6)?, height: side(at + 8)?, alpha: false })
}

fn lossless_stream(encoded: &[u8], at: usize, length: u64) -> Result<Stream, HeaderError> {
    if u8_at(encoded, at).ok_or(HeaderError::Truncated)? != 0x2F {
        return Err(HeaderError::invalid("lossless image data does not begin with 2f"));
    }
    let bits = u32_at(encoded, at + 1, Order::Little).ok_or(HeaderError::Truncated)?;
    let (width, height) = ((bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1);
    Ok(Stream { length, width, height, alpha: bits & (1 << 28) != 0 })
}

/// Walks the chunks between `at` and `end`, up to the first that is incomplete.
fn walk(encoded: &[u8], mut at: usize, end: usize) -> Result<Chunks, HeaderError> {
    let mut chunks = Chunks::default();
    let mut chunk_count = 0;
    while at + 8 <= end {
        let (Some(kind), Some(length)) = (array::<4>(encoded, at), u32_at(encoded, at + 4, Order::Little)) else {
            break;
        };
        let start = at + 8;
        let stop = start.saturating_add(length as usize);
        match &kind {
            b"VP8 " if chunks.lossy.is_none() => chunks.lossy = Some(lossy_stream(encoded, start, length.into())?),
            b"VP8L" if chunks.lossless.is_none() => {
                chunks.lossless = Some(lossless_stream(encoded, start, length.into())?);
            }
            b"ALPH" => chunks.alpha_bytes = chunks.alpha_bytes.or(Some(length.into())),
            b"EXIF" => chunks.orientation = encoded.get(start..stop).map(exif_orientation),
            b"ANMF" if chunks.frame.is_none() => {
                let width = u24_le(encoded, start + 6).ok_or(HeaderError::Truncated)? + 1;
                let height = u24_le(encoded, start + 9).ok_or(HeaderError::Truncated)? + 1;
                chunks.frame = Some((start + 16, stop.min(end), width, height));
            }
            _ => {}
        }
        if let Some(slot) = chunks.order.get_mut(chunk_count) {
            *slot = Some(kind);
        }
        chunk_count += 1;
        at = stop.saturating_add((length & 1) as usize);
    }
    Ok(chunks)
}

fn pixels(width: u32, height: u32) -> u64 {
    u64::from(width) * u64::from(height)
}

/// Memory for the streams of one image. With `argb_given`, a lossless one is decoded straight into the caller's memory.
fn chunks_bytes(chunks: &Chunks, width: u32, height: u32, argb_given: bool) -> Result<u64, HeaderError> {
    let mut bytes = 0u64;
    for stream in [chunks.lossy, chunks.lossless].into_iter().flatten() {
        if (stream.width, stream.height) != (width, height) {
            let Stream { width: own_width, height: own_height, .. } = stream;
            return Err(HeaderError::invalid(format!(
                "{width}x{height} pixels in the header, {own_width}x{own_height} in the compressed data"
            )));
        }
    }
    if let Some(stream) = chunks.lossy {
        bytes = bytes.saturating_add(lossy_bytes(width, height, stream.length));
    }
    if let Some(stream) = chunks.lossless {
        let argb_bytes = if argb_given { 0 } else { 4 * pixels(width, height) };
        bytes = bytes.saturating_add(lossless_bytes(width, height, stream.length)).saturating_add(argb_bytes);
    }
    if let Some(length) = chunks.alpha_bytes {
        // Alpha is the green channel of a lossless image.
        let planes_bytes = 5 * pixels(width, height);
        bytes = bytes.saturating_add(lossless_bytes(width, height, length)).saturating_add(planes_bytes);
    }
    Ok(bytes)
}

/// `vp8.rs` of image-webp 0.2: the planes, a record for each macroblock, rows at the borders, and the compressed data
/// twice over, once in a vector that doubles.
fn lossy_bytes(width: u32, height: u32, length: u64) -> u64 {
    const PLANES: u64 = 256 + 64 + 64;
    const RECORD: u64 = 2 * 40;
    let macroblocks = u64::from(width.div_ceil(16)) * u64::from(height.div_ceil(16));
    macroblocks * (PLANES + RECORD) + u64::from(width.div_ceil(16)) * 120 + length.saturating_mul(4) + 4096
}

/// `lossless.rs` of image-webp 0.2, besides the image itself: two transforms and the map of Huffman codes, each at a
/// quarter of the sides, and the codes.
fn lossless_bytes(width: u32, height: u32, length: u64) -> u64 {
    let blocks = u64::from(width.div_ceil(4)) * u64::from(height.div_ceil(4));
    blocks * (4 + 4 + 4 + 2) + u64::from(width) * 8 + HUFFMAN_BYTES + length.saturating_mul(3)
}
