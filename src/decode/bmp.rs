//! Owns the headers of BMP. It must never read past them.
//!
//! Source: "Bitmap Header Types", Windows GDI documentation.

use super::bytes::{Order, u16_at, u32_at};
use super::{Colour, Facts, Flaw};

/// Palette and the codec's record.
const FIXED_BYTES: u64 = 16 << 10;

/// Reads the size and the pixel layout.
pub(super) fn probe(encoded: &[u8]) -> Result<Facts, Flaw> {
    let long = |at| u32_at(encoded, at, Order::Little).ok_or(Flaw::Truncated);
    let short = |at| u16_at(encoded, at, Order::Little).map(u32::from).ok_or(Flaw::Truncated);
    let header_bytes = long(14)?;
    let (width, height, bits, compression) = match header_bytes {
        12 => (short(18)?, short(20)?, short(24)?, 0),
        // Rows are stored from the bottom up unless the height is negative.
        40 | 52 | 56 | 108 | 124 => {
            let (width, height) = (long(18)?.cast_signed(), long(22)?.cast_signed());
            if width < 0 {
                return Err(Flaw::bad(format!("a width of {width}")));
            }
            (width.unsigned_abs(), height.unsigned_abs(), short(28)?, long(30)?)
        }
        other => return Err(Flaw::Unsupported(format!("a header of {other} bytes (12, 40, 52, 56, 108 or 124 are)"))),
    };
    // With bit masks there may be one for alpha.
    let native_pixel_bytes = if compression == 3 { 4 } else { 3 };
    // The mask for alpha follows those for the colours where the header has room for it.
    let alpha =
        compression == 3 && header_bytes >= 56 && u32_at(encoded, 66, Order::Little).is_some_and(|mask| mask != 0);
    let colour = match bits {
        1..=8 => Colour::Palette,
        _ if alpha => Colour::RgbAlpha,
        _ => Colour::Rgb,
    };
    let row_bytes = (u64::from(width) * u64::from(bits)).div_ceil(8) + 4;
    Ok(Facts {
        width,
        height,
        orientation: 1,
        colour,
        native_pixel_bytes,
        codec_bytes: FIXED_BYTES + row_bytes * 2,
        codec_limit_bytes: 0,
        jpeg: None,
        data_at: 14,
    })
}
