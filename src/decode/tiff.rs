//! Owns the headers of TIFF: the first directory, classic or "Big". It must never follow a second one.
//!
//! Source: TIFF 6.0 (1992).

use super::ifd::Ifd;
use super::{Colour, Facts, Flaw};

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
/// A tag's value takes up to this much once read: an enum of 32 bytes, and the number it is turned into.
const VALUE_BYTES: u64 = 48;

/// Reads the size and the pixel layout.
pub(super) fn probe(encoded: &[u8]) -> Result<Facts, Flaw> {
    let ifd = Ifd::parse(encoded).ok_or(Flaw::Truncated)?;
    let number = |tag, missing| match ifd.entry(tag) {
        None => Ok(missing),
        Some(entry) => ifd.value(entry, 0).ok_or(Flaw::Truncated),
    };
    let side = |tag| {
        let value = ifd.first(tag).ok_or_else(|| Flaw::bad("the first directory gives no size"))?;
        u32::try_from(value).map_err(|_| Flaw::bad(format!("a side of {value} pixels")))
    };
    let (width, height) = (side(WIDTH)?, side(HEIGHT)?);
    let bits = number(BITS_PER_SAMPLE, 1)?;
    let samples = number(SAMPLES_PER_PIXEL, 1)?;
    if !(1..=32).contains(&bits) || !(1..=4).contains(&samples) {
        return Err(Flaw::Unsupported(format!("{samples} samples a pixel of {bits} bits (1 to 4 of 1 to 32 are)")));
    }
    let sample_bytes = bits.next_power_of_two().div_ceil(8);
    let native_pixel_bytes = samples * sample_bytes;
    let picture_bytes = (u64::from(width) * u64::from(height)).saturating_mul(native_pixel_bytes);
    let (chunk_width, chunk_height) = match ifd.entry(TILE_WIDTH) {
        Some(_) => (number(TILE_WIDTH, 0)?, number(TILE_HEIGHT, 0)?),
        None => (width.into(), number(ROWS_PER_STRIP, height.into())?.min(height.into())),
    };
    let chunk_bytes = chunk_width.saturating_mul(chunk_height).saturating_mul(native_pixel_bytes);
    let row_bytes = chunk_width.max(width.into()).saturating_mul(native_pixel_bytes);
    let encoded_bytes = encoded.len() as u64;
    let chunk_codec_bytes = match number(COMPRESSION, 1)? {
        // The codec would trust the size that each strip's own header announces.
        6 | 7 => return Err(Flaw::Unsupported("JPEG data inside TIFF".to_owned())),
        1 => row_bytes.saturating_mul(2),
        _ => row_bytes.saturating_mul(2).max(chunk_bytes.min(encoded_bytes)).saturating_add(DECOMPRESSOR_BYTES),
    };
    // The tags that say how the picture is laid out; the codec reads their values, strip tables above all.
    let mut value_bytes = 0u64;
    for (tag, entry) in ifd.entries() {
        if matches!(tag, 254..=266 | 273 | 277..=284 | 317..=347 | 512..=532) {
            if !ifd.holds(entry) {
                return Err(Flaw::Truncated);
            }
            value_bytes = value_bytes.saturating_add(entry.count.saturating_mul(VALUE_BYTES));
        }
    }
    let codec_bytes =
        picture_bytes.saturating_add(chunk_codec_bytes).saturating_add(value_bytes).saturating_add(FIXED_BYTES);
    Ok(Facts {
        width,
        height,
        orientation: ifd.orientation(),
        colour: match ifd.first(PHOTOMETRIC) {
            Some(3) => Colour::Palette,
            Some(5) => Colour::Cmyk,
            _ => Colour::of_channels(samples as u8),
        },
        native_pixel_bytes: native_pixel_bytes as u8,
        codec_bytes,
        // The codec weighs a chunk's stored bytes against its limit, too, though it does not copy them.
        codec_limit_bytes: codec_bytes.saturating_add(encoded_bytes),
        data_at: 0,
        jpeg: None,
    })
}
