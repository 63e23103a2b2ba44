//! Header of GIF, up to the first frame, which is the image that is decoded.
//!
//! Source: GIF89a specification (1990).

use super::bytes::{Order, u8_at, u16_at};
use super::header::{ColorType, Format, Header, HeaderError};

/// LZW tables, palettes and block buffers.
const FIXED_BYTES: u64 = 96 << 10;

/// Reads the screen size and walks the blocks up to the first frame.
pub(super) fn probe(encoded: &[u8]) -> Result<Header, HeaderError> {
    let side = |at| u16_at(encoded, at, Order::Little).map(u32::from).ok_or(HeaderError::Truncated);
    let byte = |at| u8_at(encoded, at).ok_or(HeaderError::Truncated);
    let (width, height) = (side(6)?, side(8)?);
    let flags = byte(10)?;
    let mut at = 13 + if flags & 0x80 == 0 { 0 } else { 3usize << ((flags & 7) + 1) };
    let mut metadata_bytes = 0;
    loop {
        match byte(at)? {
            // An extension: its label, then blocks that each begin with their length, up to an empty one.
            0x21 => {
                at += 2;
                loop {
                    let length = usize::from(byte(at)?);
                    at += 1 + length;
                    metadata_bytes += length as u64;
                    if length == 0 {
                        break;
                    }
                }
            }
            0x2C => break,
            0x3B => return Err(HeaderError::invalid("no frame before the trailer")),
            // Between blocks, readers skip zeros.
            0x00 => at += 1,
            other => return Err(HeaderError::invalid(format!("unknown block type {other:02x} at byte {at}"))),
        }
    }
    let (left, top, frame_width, frame_height) = (side(at + 1)?, side(at + 3)?, side(at + 5)?, side(at + 7)?);
    let frame_pixels = u64::from(frame_width) * u64::from(frame_height);
    // One byte a pixel for the palette indices; four more where the frame does not span the screen and is placed after.
    let spans = left == 0 && frame_width == width && top + frame_height <= height;
    let codec_limit_bytes = frame_pixels * 4;
    let codec_bytes =
        FIXED_BYTES + frame_pixels + if spans { 0 } else { codec_limit_bytes } + metadata_bytes.saturating_mul(3);
    Ok(Header { codec_bytes, codec_limit_bytes, ..Header::new(Format::Gif, (width, height), ColorType::Palette, 4) })
}
