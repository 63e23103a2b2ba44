//! Format detection, and reading a header of any format.

use super::error::DecodeError;
use super::header::{Format, Header, HeaderError, Limits};
use super::{bmp, gif, jpeg, png, pnm, qoi, tga, tiff, webp};

impl Format {
    /// Detects the format from a file's first bytes; 18 are enough.
    #[must_use]
    pub fn of(encoded: &[u8]) -> Option<Self> {
        match encoded {
            [0xFF, 0xD8, 0xFF, ..] => Some(Format::Jpeg),
            [0x89, b'P', b'N', b'G', 0x0D, 0x0A, 0x1A, 0x0A, ..] => Some(Format::Png),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Format::WebP),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(Format::Gif),
            [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Some(Format::Tiff),
            [b'B', b'M', ..] => Some(Format::Bmp),
            [b'q', b'o', b'i', b'f', ..] => Some(Format::Qoi),
            _ if pnm::is_header(encoded) => Some(Format::Pnm),
            _ if tga::is_header(encoded) => Some(Format::Tga),
            _ => None,
        }
    }
}

/// Reads the header of an encoded image: its format, its size and the memory that decoding takes.
///
/// It allocates nothing (errors aside) and takes time in proportion to the number of header segments.
///
/// # Errors
/// [`DecodeError::Empty`] and [`DecodeError::UnknownFormat`] for bytes that are not an image;
/// [`DecodeError::TruncatedHeader`], [`DecodeError::InvalidHeader`], [`DecodeError::ZeroSize`] and
/// [`DecodeError::Unsupported`] for an unusable header; [`DecodeError::TooLarge`] for an image beyond `limits`.
pub fn probe(encoded: &[u8], limits: &Limits) -> Result<Header, DecodeError> {
    if encoded.is_empty() {
        return Err(DecodeError::Empty);
    }
    let format = Format::of(encoded).ok_or_else(|| DecodeError::unknown(encoded))?;
    let parse = match format {
        Format::Jpeg => jpeg::probe,
        Format::Png => png::probe,
        Format::WebP => webp::probe,
        Format::Gif => gif::probe,
        Format::Bmp => bmp::probe,
        Format::Tiff => tiff::probe,
        Format::Pnm => pnm::probe,
        Format::Qoi => qoi::probe,
        Format::Tga => tga::probe,
    };
    let header = parse(encoded).map_err(|error| match error {
        HeaderError::Truncated => DecodeError::TruncatedHeader { format, encoded_bytes: encoded.len() },
        HeaderError::Invalid(reason) => DecodeError::InvalidHeader { format, reason },
        HeaderError::Unsupported(feature) => DecodeError::Unsupported { format, feature },
    })?;
    let Header { width, height, .. } = header;
    if width == 0 || height == 0 {
        return Err(DecodeError::ZeroSize { format, width, height });
    }
    let Limits { pixels_max, side_max } = *limits;
    if width.max(height) > side_max || header.pixels() > pixels_max {
        return Err(DecodeError::TooLarge { format, width, height, pixels_max, side_max });
    }
    // A GIF's frame may be larger than its screen: the codec unpacks all of it, however little is visible. Its limit is
    // four bytes for each of the frame's pixels.
    let frame_pixels = if format == Format::Gif { header.codec_limit_bytes / 4 } else { 0 };
    if frame_pixels > pixels_max {
        let reason = format!("a frame of {frame_pixels} pixels for a screen of {width}x{height}, above {pixels_max}");
        return Err(DecodeError::InvalidHeader { format, reason });
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_formats_are_not_taken_for_tga() {
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
