//! Owns the headers of QOI. It must never read past them.
//!
//! Source: "The Quite OK Image Format", specification 1.0 (2022).

use super::bytes::{Order, u8_at, u32_at};
use super::{Colour, Facts, Flaw};

/// The table of 256 pixels, on the stack or not; the text of an error.
const FIXED_BYTES: u64 = 4 << 10;
/// Where the picture's data begins.
const HEADER_BYTES: usize = 14;

/// Reads the size and the channels.
pub(super) fn probe(encoded: &[u8]) -> Result<Facts, Flaw> {
    let width = u32_at(encoded, 4, Order::Big).ok_or(Flaw::Truncated)?;
    let height = u32_at(encoded, 8, Order::Big).ok_or(Flaw::Truncated)?;
    let channels = u8_at(encoded, 12).ok_or(Flaw::Truncated)?;
    let space = u8_at(encoded, 13).ok_or(Flaw::Truncated)?;
    if !matches!(channels, 3 | 4) {
        return Err(Flaw::bad(format!("{channels} channels (3 or 4 are possible)")));
    }
    // 0 is sRGB with linear alpha, 1 all linear. It says how to read the numbers, which are taken as they are.
    if space > 1 {
        return Err(Flaw::bad(format!("colour space {space} (0 or 1 are possible)")));
    }
    Ok(Facts {
        width,
        height,
        orientation: 1,
        colour: Colour::of_channels(channels),
        native_pixel_bytes: channels,
        codec_bytes: FIXED_BYTES,
        codec_limit_bytes: 0,
        data_at: HEADER_BYTES,
        jpeg: None,
    })
}
