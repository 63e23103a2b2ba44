//! Owns the headers of PNG. It must never inflate anything.
//!
//! Source: PNG (third edition, W3C 2025), sections 5 and 11.

use super::bytes::{Order, array, u8_at, u32_at};
use super::ifd::exif_orientation;
use super::{Colour, Facts, Flaw};

/// Inflate state, chunk buffers and palettes.
const FIXED_BYTES: u64 = 64 << 10;

/// Reads `IHDR` and walks the chunks up to the picture data.
pub(super) fn probe(encoded: &[u8]) -> Result<Facts, Flaw> {
    if array::<4>(encoded, 12).ok_or(Flaw::Truncated)? != *b"IHDR" {
        return Err(Flaw::bad("the first chunk is not IHDR"));
    }
    let width = u32_at(encoded, 16, Order::Big).ok_or(Flaw::Truncated)?;
    let height = u32_at(encoded, 20, Order::Big).ok_or(Flaw::Truncated)?;
    let bits = u8_at(encoded, 24).ok_or(Flaw::Truncated)?;
    let color = u8_at(encoded, 25).ok_or(Flaw::Truncated)?;
    let interlaced = u8_at(encoded, 28).ok_or(Flaw::Truncated)? != 0;
    let (stored_channels, expanded_channels) = match color {
        0 => (1, 1),
        2 => (3, 3),
        3 => (1, 3),
        4 => (2, 2),
        6 => (4, 4),
        _ => return Err(Flaw::bad(format!("colour type {color}"))),
    };
    if !matches!(bits, 1 | 2 | 4 | 8 | 16) {
        return Err(Flaw::bad(format!("{bits} bits a sample")));
    }
    let mut orientation = 1;
    let mut transparent = false;
    let mut metadata_bytes = 0u64;
    let mut at = 33;
    let data_at = loop {
        let length = u32_at(encoded, at, Order::Big).ok_or(Flaw::Truncated)? as usize;
        let kind = array::<4>(encoded, at + 4).ok_or(Flaw::Truncated)?;
        if kind == *b"IDAT" {
            break at;
        }
        if kind == *b"IEND" {
            return Err(Flaw::bad("the end chunk comes before any picture data"));
        }
        let end = at.checked_add(8).and_then(|start| start.checked_add(length)).ok_or(Flaw::Truncated)?;
        let chunk = encoded.get(at + 8..end).ok_or(Flaw::Truncated)?;
        match &kind {
            b"tRNS" => transparent = true,
            b"eXIf" => {
                orientation = exif_orientation(chunk);
                metadata_bytes = metadata_bytes.saturating_add(length as u64);
            }
            _ => {}
        }
        at = end + 4;
    };
    let sample_bytes: u8 = if bits == 16 { 2 } else { 1 };
    let alpha = u8::from(transparent && matches!(color, 0 | 2 | 3));
    let native_pixel_bytes = (expanded_channels + alpha) * sample_bytes;
    let row_bytes = (u64::from(width) * stored_channels * u64::from(bits)).div_ceil(8) + 1;
    let expanded_row_bytes = u64::from(width) * u64::from(native_pixel_bytes);
    // What the codec may spend on EXIF data, which it does not know how to skip: twice while a chunk's buffer doubles,
    // once more for its content. Text and colour profiles are skipped, however many there are.
    let codec_limit_bytes =
        expanded_row_bytes.saturating_add(metadata_bytes.saturating_mul(4)).saturating_add(16 << 10);
    // `unfiltering_buffer.rs` of png 0.18: it holds four rows or 128 KiB, the window, and what it reads ahead, or the
    // picture where that is less, in a vector that doubles (for a moment, three times what it holds is live); besides,
    // a row before and a row after the filter, and for interlaced files one expanded.
    let picture_bytes = row_bytes.saturating_mul(u64::from(height)).saturating_mul(if interlaced { 2 } else { 1 });
    let window_bytes = row_bytes.saturating_mul(4).max(128 << 10).saturating_add(row_bytes).saturating_add(48 << 10);
    let stream_bytes = window_bytes.min(picture_bytes.saturating_add(16 << 10));
    let rows_bytes = row_bytes.saturating_add(expanded_row_bytes).saturating_mul(2);
    let codec_bytes = [stream_bytes.saturating_mul(3), rows_bytes, codec_limit_bytes]
        .into_iter()
        .fold(FIXED_BYTES, u64::saturating_add);
    let colour = if color == 3 { Colour::Palette } else { Colour::of_channels(expanded_channels + alpha) };
    Ok(Facts {
        width,
        height,
        orientation,
        colour,
        native_pixel_bytes,
        codec_bytes,
        codec_limit_bytes,
        data_at,
        jpeg: None,
    })
}
