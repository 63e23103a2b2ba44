//! Owns the headers of TGA, and telling that a file is one. It must never take a file of another kind for one.
//!
//! The format has no magic number, so a file counts as TGA only where its 18 bytes of header agree with one another in
//! everything that the format fixes (see [`is_header`]), and where it is of no other known kind. What follows them, the
//! file's length included, decides nothing: a TGA that was cut is a cut TGA. The footer of newer files is not needed.
//!
//! Where a colour has 32 bits the last 8 are its alpha, also where the header counts no alpha bits: so do other readers.
//! The odd bit of 16 is never alpha.
//!
//! Source: "Truevision TGA File Format Specification", version 2.0 (1991).

use super::bytes::{Order, array, u8_at, u16_at};
use super::{Colour, Facts, Flaw};

const HEADER_BYTES: usize = 18;
/// The text of an error, and the rounding of small allocations.
const FIXED_BYTES: u64 = 4 << 10;

/// Whether these first bytes can be nothing but the header of a TGA picture.
///
/// The type is 1, 2, 3 (colour-mapped, true colour, grey) or 9, 10, 11 (the same, run-length encoded). Without a colour
/// map, the five bytes that describe one are zero; with one, it has entries of 15, 16, 24 or 32 bits. Sides are not zero.
/// Bits of a pixel are as many as the type has: 8 or 16 for indices, 15, 16, 24 or 32 for colours, 8 or 16 for grey, with
/// no more alpha bits among them than that leaves. The two bits that have no meaning are zero.
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
pub(super) fn probe(encoded: &[u8]) -> Result<Facts, Flaw> {
    let byte = |at| u8_at(encoded, at).ok_or(Flaw::Truncated);
    let short = |at| u16_at(encoded, at, Order::Little).ok_or(Flaw::Truncated);
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
        return Err(Flaw::Unsupported(format!("indices of {depth} bits to colours of {map_bits}")));
    }
    if mapped && !matches!((alpha_bits, map_bits), (0, _) | (1, 16) | (8, 32)) {
        return Err(Flaw::Unsupported(format!("{alpha_bits} bits of alpha in colours of {map_bits}")));
    }
    let map_stored_bytes = u64::from(map_type) * u64::from(map_length) * u64::from(map_bits.div_ceil(8));
    let data_at = HEADER_BYTES + usize::from(byte(0)?) + map_stored_bytes as usize;
    let pixels = u64::from(width) * u64::from(height);
    // The map as stored; colours of 5 bits are widened into another one, which doubles as it grows, so that for a moment
    // three times what it holds is live.
    let map_bytes = map_stored_bytes * 2 + u64::from(map_length) * u64::from(map_type) * 3 * 3;
    // The indices, or colours of 5 bits, are copied before they are widened.
    let copied = mapped || (matches!(kind, 2 | 10) && color_bits < 24);
    let copy_bytes = if copied { pixels * u64::from(depth.div_ceil(8)) } else { 0 };
    Ok(Facts {
        width: width.into(),
        height: height.into(),
        orientation: 1,
        colour: if mapped { Colour::Palette } else { Colour::of_channels(native_pixel_bytes) },
        native_pixel_bytes,
        codec_bytes: FIXED_BYTES + map_bytes + copy_bytes,
        codec_limit_bytes: 0,
        data_at,
        jpeg: None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::Format;
    use super::*;

    /// A header as a writer makes it: true colour, 24 bits, 5 x 3.
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

    #[test]
    fn files_of_other_kinds_are_not_taken_for_it() {
        for other in [
            &b"\0\0\x01\0\x01\0\x20\x20\0\0\x01\0\x20\0\xa8\x10\0\0\x16\0"[..], // ICO
            b"\0\0\x02\0\x01\0\x20\x20\0\0\x01\0\x20\0\xa8\x10\0\0\x16\0",      // CUR
            b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",                              // MP4
            b"\0\0\x01\xba\x21\0\x01\0\x01\x80\x19\x2d\0\0\x01\xbb\0\x0c",      // MPEG
            b"\0\x01\0\0\0\x0f\0\x80\0\x03\0\x70DSIG\0\0\0\0",                  // TrueType
            b"\0\0\x08\x03\0\0\xea\x60\0\0\0\x1c\0\0\0\x1c\0\0",                // MNIST's own
            b"\0\x05\x16\x07\0\x02\0\0Mac OS X        ",                        // AppleDouble
            b"\x0a\x05\x01\x08\0\0\0\0\x1f\x03\x57\x02\x2c\x01\x2c\x01\0\0",    // PCX
            b"\x01\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",                // small numbers
            &[0; 64],
            &[1; 64],
            &[2; 64],
            b"1 2 3 4 5 6 7 8 9 10 11 12",
        ] {
            assert_eq!(Format::of(other), None, "{other:02x?}");
        }
    }
}
