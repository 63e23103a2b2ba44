//! Header of TGA, and its detection.
//!
//! The format has no magic number, so a file counts as TGA only if the 18 bytes of its header agree with one another in
//! everything that the format fixes (see [`is_header`]), and if it is of no other known format. The bytes after them,
//! and the file's length, do not matter: a truncated TGA is a TGA. The footer of newer files is not needed.
//!
//! The last 8 bits of a 32-bit color are its alpha, even if the header declares no alpha bits; other readers do the
//! same. The odd bit of 16 is never alpha.
//!
//! Source: "Truevision TGA File Format Specification", version 2.0 (1991).

use super::bytes::{Order, array, u8_at, u16_at};
use super::header::{ColorType, Format, Header, HeaderError};

const HEADER_BYTES: usize = 18;
/// The text of an error, and the rounding of small allocations.
const FIXED_BYTES: u64 = 4 << 10;

/// Returns true if the bytes begin with a consistent TGA header.
///
/// The type is 1, 2, 3 (color-mapped, true color, gray) or 9, 10, 11 (the same, run-length encoded). Without a color
/// map, the five bytes that describe one are zero; with one, it has entries of 15, 16, 24 or 32 bits. Sides are not
/// zero. Bits of a pixel are as many as the type has: 8 or 16 for indices, 15, 16, 24 or 32 for colors, 8 or 16 for
/// gray, with no more alpha bits among them than that leaves. The two bits that have no meaning are zero.
pub(super) fn is_header(encoded: &[u8]) -> bool {
    let Some(header) = array::<HEADER_BYTES>(encoded, 0) else { return false };
    let [_, map_type, kind, _, _, map_low, map_high, map_bits, ..] = header;
    let (depth, descriptor) = (header[16], header[17]);
    let alpha_bits = descriptor & 15;
    let no_side = |at: usize| header[at] == 0 && header[at + 1] == 0;
    if descriptor & 0xC0 != 0 || no_side(12) || no_side(14) {
        return false;
    }
    let map_fits = match map_type {
        0 => header[3..8] == [0; 5],
        1 => matches!(map_bits, 15 | 16 | 24 | 32) && (map_low, map_high) != (0, 0),
        _ => return false,
    };
    let pixels_fit = match kind {
        1 | 9 => map_type == 1 && matches!(depth, 8 | 16) && matches!(alpha_bits, 0 | 1 | 8),
        2 | 10 => matches!((depth, alpha_bits), (15, 0) | (16 | 24, 0) | (16, 1) | (32, 0 | 8)),
        3 | 11 => matches!((depth, alpha_bits), (8, 0 | 8) | (16, 8)),
        _ => return false,
    };
    map_fits && pixels_fit
}

/// Reads the size and the pixel layout.
pub(super) fn probe(encoded: &[u8]) -> Result<Header, HeaderError> {
    let byte = |at| u8_at(encoded, at).ok_or(HeaderError::Truncated);
    let short = |at| u16_at(encoded, at, Order::Little).ok_or(HeaderError::Truncated);
    let (map_type, kind, map_length, map_bits) = (byte(1)?, byte(2)?, short(5)?, byte(7)?);
    let (width, height, depth, alpha_bits) = (short(12)?, short(14)?, byte(16)?, byte(17)? & 15);
    let mapped = matches!(kind, 1 | 9);
    let color_bits = if mapped { map_bits } else { depth };
    let native_pixel_bytes = match (kind, color_bits) {
        (3 | 11, 8) => 1,
        (3 | 11, _) => 2,
        (_, 32) => 4,
        _ => 3,
    };
    if mapped && depth > map_bits {
        return Err(HeaderError::Unsupported(format!("{depth}-bit indices into {map_bits}-bit colors")));
    }
    if mapped && !matches!((alpha_bits, map_bits), (0, _) | (1, 16) | (8, 32)) {
        return Err(HeaderError::Unsupported(format!("{alpha_bits} alpha bits in {map_bits}-bit colors")));
    }
    let map_stored_bytes = u64::from(map_type) * u64::from(map_length) * u64::from(map_bits.div_ceil(8));
    let pixels = u64::from(width) * u64::from(height);
    // The map as stored; colors of 5 bits are widened into another one, which doubles as it grows, so that for a moment
    // three times its content is live.
    let map_bytes = map_stored_bytes * 2 + u64::from(map_length) * u64::from(map_type) * 3 * 3;
    // The indices, or colors of 5 bits, are copied before they are widened.
    let copied = mapped || (matches!(kind, 2 | 10) && color_bits < 24);
    let copy_bytes = if copied { pixels * u64::from(depth.div_ceil(8)) } else { 0 };
    let color = if mapped { ColorType::Palette } else { ColorType::of_channels(native_pixel_bytes) };
    let header = Header::new(Format::Tga, (width.into(), height.into()), color, native_pixel_bytes);
    Ok(Header { codec_bytes: FIXED_BYTES + map_bytes + copy_bytes, ..header })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header as a writer makes it: true color, 24 bits, 5 x 3.
    const PLAIN: [u8; 18] = [0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 3, 0, 24, 0x20];

    #[test]
    fn a_header_is_one_only_where_everything_agrees() {
        assert!(is_header(&PLAIN));
        for (at, value) in
            [(1, 1), (1, 2), (2, 0), (2, 1), (2, 3), (2, 4), (2, 32), (3, 1), (4, 1), (5, 1), (6, 1), (7, 24), (12, 0)]
                .into_iter()
                .chain([(14, 0), (16, 0), (16, 8), (16, 23), (16, 32 + 1), (17, 0x40), (17, 0x80), (17, 8), (17, 3)])
        {
            let mut header = PLAIN;
            header[at] = value;
            assert!(!is_header(&header), "byte {at} is {value}");
        }
        let mapped = [0, 1, 1, 0, 0, 4, 0, 24, 0, 0, 0, 0, 5, 0, 3, 0, 8, 0];
        assert!(is_header(&mapped));
        assert!(!is_header(&PLAIN[..17]));
    }
}
