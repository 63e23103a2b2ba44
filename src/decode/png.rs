//! Header of PNG: the chunks up to the image data. Nothing is inflated.
//!
//! Source: PNG (third edition, W3C 2025), sections 5 and 11.

use super::bytes::{Order, array, u8_at, u32_at};
use super::header::{ColorType, Format, Header, HeaderError};
use super::ifd::exif_orientation;

/// Inflate state, chunk buffers and palettes.
const FIXED_BYTES: u64 = 64 << 10;

/// Reads `IHDR` and walks the chunks up to the image data.
pub(super) fn probe(encoded: &[u8]) -> Result<Header, HeaderError> {
    if array::<4>(encoded, 12).ok_or(HeaderError::Truncated)? != *b"IHDR" {
        return Err(HeaderError::invalid("the first chunk is not IHDR"));
    }
    let width = u32_at(encoded, 16, Order::Big).ok_or(HeaderError::Truncated)?;
    let height = u32_at(encoded, 20, Order::Big).ok_or(HeaderError::Truncated)?;
    let bits = u8_at(encoded, 24).ok_or(HeaderError::Truncated)?;
    let color_type = u8_at(encoded, 25).ok_or(HeaderError::Truncated)?;
    let interlaced = u8_at(encoded, 28).ok_or(HeaderError::Truncated)? != 0;
    let (stored_channels, expanded_channels) = match color_type {
        0 => (1, 1),
        2 => (3, 3),
        3 => (1, 3),
        4 => (2, 2),
        6 => (4, 4),
        _ => return Err(HeaderError::invalid(format!("color type {color_type}: expected 0, 2, 3, 4 or 6"))),
    };
    if !matches!(bits, 1 | 2 | 4 | 8 | 16) {
        return Err(HeaderError::invalid(format!("{bits} bits per sample: expected 1, 2, 4, 8 or 16")));
    }
    let mut orientation = 1;
    let mut transparent = false;
    let mut metadata_bytes = 0u64;
    let mut at = 33;
    loop {
        let length = u32_at(encoded, at, Order::Big).ok_or(HeaderError::Truncated)? as usize;
        let kind = array::<4>(encoded, at + 4).ok_or(HeaderError::Truncated)?;
        if kind == *b"IDAT" {
            break;
        }
        if kind == *b"IEND" {
            return Err(HeaderError::invalid("the end chunk comes before any image data"));
        }
        let end = at.checked_add(8).and_then(|start| start.checked_add(length)).ok_or(HeaderError::Truncated)?;
        let chunk = encoded.get(at + 8..end).ok_or(HeaderError::Truncated)?;
        match &kind {
            b"tRNS" => transparent = true,
            b"eXIf" => {
                orientation = exif_orientation(chunk);
                metadata_bytes = metadata_bytes.saturating_add(length as u64);
            }
            _ => {}
        }
        at = end + 4;
    }
    let sample_bytes: u8 = if bits == 16 { 2 } else { 1 };
    let alpha = u8::from(transparent && matches!(color_type, 0 | 2 | 3));
    let native_pixel_bytes = (expanded_channels + alpha) * sample_bytes;
    let row_bytes = (u64::from(width) * stored_channels * u64::from(bits)).div_ceil(8) + 1;
    let expanded_row_bytes = u64::from(width) * u64::from(native_pixel_bytes);
    // Allowance for EXIF data, which the codec cannot skip: twice while a chunk's buffer doubles, once more for its
    // content. Text and color profiles are skipped, however many there are.
    let codec_limit_bytes =
        expanded_row_bytes.saturating_add(metadata_bytes.saturating_mul(4)).saturating_add(16 << 10);
    // `unfiltering_buffer.rs` of png 0.18: it holds four rows or 128 KiB, the window, and what it reads ahead, or the
    // image where that is less, in a vector that doubles (for a moment, three times its content is live); besides, a
    // row before and a row after the filter, and for interlaced files one expanded.
    let image_bytes = row_bytes.saturating_mul(u64::from(height)).saturating_mul(if interlaced { 2 } else { 1 });
    let window_bytes = row_bytes.saturating_mul(4).max(128 << 10).saturating_add(row_bytes).saturating_add(48 << 10);
    let stream_bytes = window_bytes.min(image_bytes.saturating_add(16 << 10));
    let rows_bytes = row_bytes.saturating_add(expanded_row_bytes).saturating_mul(2);
    let codec_bytes = [stream_bytes.saturating_mul(3), rows_bytes, codec_limit_bytes]
        .into_iter()
        .fold(FIXED_BYTES, u64::saturating_add);
    let color = if color_type == 3 { ColorType::Palette } else { ColorType::of_channels(expanded_channels + alpha) };
    let header = Header::new(Format::Png, (width, height), color, native_pixel_bytes);
    Ok(Header { orientation, codec_bytes, codec_limit_bytes, ..header })
}
