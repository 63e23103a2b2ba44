//! Header of BMP.
//!
//! Source: "Bitmap Header Types", Windows GDI documentation.

use super::bytes::{Order, u16_at, u32_at};
use super::header::{ColorType, Format, Header, HeaderError};

/// Palette and the codec's own state.
const FIXED_BYTES: u64 = 16 << 10;

/// Reads the size and the pixel layout.
pub(super) fn probe(encoded: &[u8]) -> Result<Header, HeaderError> {
    let long = |at| u32_at(encoded, at, Order::Little).ok_or(HeaderError::Truncated);
    let short = |at| u16_at(encoded, at, Order::Little).map(u32::from).ok_or(HeaderError::Truncated);
    let header_bytes = long(14)?;
    let (width, height, bits, compression) = match header_bytes {
        12 => (short(18)?, short(20)?, short(24)?, 0),
        // Rows are stored from the bottom up unless the height is negative.
        40 | 52 | 56 | 108 | 124 => {
            let (width, height) = (long(18)?.cast_signed(), long(22)?.cast_signed());
            if width < 0 {
                return Err(HeaderError::invalid(format!("width {width}")));
            }
            (width.unsigned_abs(), height.unsigned_abs(), short(28)?, long(30)?)
        }
        other => {
            return Err(HeaderError::Unsupported(format!(
                "a header of {other} bytes: expected 12, 40, 52, 56, 108 or 124"
            )));
        }
    };
    // One of several bit masks may be for alpha.
    let native_pixel_bytes = if compression == 3 { 4 } else { 3 };
    // The mask for alpha follows those for the colors where the header has room for it.
    let alpha =
        compression == 3 && header_bytes >= 56 && u32_at(encoded, 66, Order::Little).is_some_and(|mask| mask != 0);
    let color = match bits {
        1..=8 => ColorType::Palette,
        _ if alpha => ColorType::RgbAlpha,
        _ => ColorType::Rgb,
    };
    let row_bytes = (u64::from(width) * u64::from(bits)).div_ceil(8) + 4;
    let header = Header::new(Format::Bmp, (width, height), color, native_pixel_bytes);
    Ok(Header { codec_bytes: FIXED_BYTES + row_bytes * 2, ..header })
}
