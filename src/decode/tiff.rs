//! Header of TIFF: the first directory, classic or BigTIFF.
//!
//! Source: TIFF 6.0 (1992).

use super::header::{ColorType, Format, Header, HeaderError};
use super::ifd::Ifd;

const WIDTH: u16 = 256;
const HEIGHT: u16 = 257;
const BITS_PER_SAMPLE: u16 = 258;
const COMPRESSION: u16 = 259;
const PHOTOMETRIC: u16 = 262;
const SAMPLES_PER_PIXEL: u16 = 277;
const ROWS_PER_STRIP: u16 = 278;
const TILE_WIDTH: u16 = 322;
const TILE_HEIGHT: u16 = 323;

/// The directory's table, and readers.
const FIXED_BYTES: u64 = 16 << 10;
/// Inflate and LZW state and windows.
const DECOMPRESSOR_BYTES: u64 = 160 << 10;
/// Memory for one value of a tag: an enum of 32 bytes, and the number that it is converted to.
const VALUE_BYTES: u64 = 48;

/// Reads the size and the pixel layout.
pub(super) fn probe(encoded: &[u8]) -> Result<Header, HeaderError> {
    let ifd = Ifd::parse(encoded).ok_or(HeaderError::Truncated)?;
    let number = |tag, missing| match ifd.entry(tag) {
        None => Ok(missing),
        Some(entry) => ifd.value(entry, 0).ok_or(HeaderError::Truncated),
    };
    let side = |tag| {
        let value = ifd
            .first(tag)
            .ok_or_else(|| HeaderError::invalid("the first directory has no ImageWidth or ImageLength"))?;
        u32::try_from(value).map_err(|_| HeaderError::invalid(format!("a side of {value} pixels, above 32 bits")))
    };
    let (width, height) = (side(WIDTH)?, side(HEIGHT)?);
    let bits = number(BITS_PER_SAMPLE, 1)?;
    let samples = number(SAMPLES_PER_PIXEL, 1)?;
    if !(1..=32).contains(&bits) || !(1..=4).contains(&samples) {
        return Err(HeaderError::Unsupported(format!(
            "{samples} samples of {bits} bits per pixel: expected 1 to 4 samples of 1 to 32 bits"
        )));
    }
    let sample_bytes = bits.next_power_of_two().div_ceil(8);
    let native_pixel_bytes = samples * sample_bytes;
    let image_bytes = (u64::from(width) * u64::from(height)).saturating_mul(native_pixel_bytes);
    let (chunk_width, chunk_height) = match ifd.entry(TILE_WIDTH) {
        Some(_) => (number(TILE_WIDTH, 0)?, number(TILE_HEIGHT, 0)?),
        None => (width.into(), number(ROWS_PER_STRIP, height.into())?.min(height.into())),
    };
    let chunk_bytes = chunk_width.saturating_mul(chunk_height).saturating_mul(native_pixel_bytes);
    let row_bytes = chunk_width.max(width.into()).saturating_mul(native_pixel_bytes);
    let encoded_bytes = encoded.len() as u64;
    let chunk_codec_bytes = match number(COMPRESSION, 1)? {
        // The codec would trust the size in each strip's own header.
        6 | 7 => return Err(HeaderError::Unsupported("JPEG data inside TIFF".to_owned())),
        1 => row_bytes.saturating_mul(2),
        _ => row_bytes.saturating_mul(2).max(chunk_bytes.min(encoded_bytes)).saturating_add(DECOMPRESSOR_BYTES),
    };
    // The codec reads the values of the tags that describe the image's layout, strip tables above all.
    let mut value_bytes = 0u64;
    for (tag, entry) in ifd.entries() {
        if matches!(tag, 254..=266 | 273 | 277..=284 | 317..=347 | 512..=532) {
            if !ifd.holds(entry) {
                return Err(HeaderError::Truncated);
            }
            value_bytes = value_bytes.saturating_add(entry.count.saturating_mul(VALUE_BYTES));
        }
    }
    let codec_bytes =
        image_bytes.saturating_add(chunk_codec_bytes).saturating_add(value_bytes).saturating_add(FIXED_BYTES);
    let color = match ifd.first(PHOTOMETRIC) {
        Some(3) => ColorType::Palette,
        Some(5) => ColorType::Cmyk,
        _ => ColorType::of_channels(samples as u8),
    };
    Ok(Header {
        orientation: ifd.orientation(),
        codec_bytes,
        // The codec counts a chunk's stored bytes against its limit, too, though it does not copy them.
        codec_limit_bytes: codec_bytes.saturating_add(encoded_bytes),
        ..Header::new(Format::Tiff, (width, height), color, native_pixel_bytes as u8)
    })
}
