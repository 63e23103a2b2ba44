//! Header of QOI.
//!
//! Source: "The Quite OK Image Format", specification 1.0 (2022).

use super::bytes::{Order, u8_at, u32_at};
use super::header::{ColorType, Format, Header, HeaderError};

/// The table of 256 pixels, on the stack or not; the text of an error.
const FIXED_BYTES: u64 = 4 << 10;

/// Reads the size and the channels.
pub(super) fn probe(encoded: &[u8]) -> Result<Header, HeaderError> {
    let width = u32_at(encoded, 4, Order::Big).ok_or(HeaderError::Truncated)?;
    let height = u32_at(encoded, 8, Order::Big).ok_or(HeaderError::Truncated)?;
    let channels = u8_at(encoded, 12).ok_or(HeaderError::Truncated)?;
    let space = u8_at(encoded, 13).ok_or(HeaderError::Truncated)?;
    if !matches!(channels, 3 | 4) {
        return Err(HeaderError::invalid(format!("{channels} channels: expected 3 or 4")));
    }
    // 0 is sRGB with linear alpha, 1 all linear. Pixel values are taken as they are either way.
    if space > 1 {
        return Err(HeaderError::invalid(format!("color space {space}: expected 0 or 1")));
    }
    let header = Header::new(Format::Qoi, (width, height), ColorType::of_channels(channels), channels);
    Ok(Header { codec_bytes: FIXED_BYTES, ..header })
}
