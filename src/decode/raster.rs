//! Owns decoding through the `image` crate: every format but JPEG. It must never let the codec write past the memory
//! that the header was charged for.

use std::io::{Cursor, ErrorKind};

use image::codecs::{bmp::BmpDecoder, gif::GifDecoder, png::PngDecoder, tiff::TiffDecoder, webp::WebPDecoder};
use image::error::UnsupportedErrorKind;
use image::{ImageDecoder, ImageError, ImageResult, Limits};

use super::{DecodeError, Format, Header, convert};

/// Decodes into the front of `pixels`, which is the slab's part for this picture, and converts to RGB8 there.
pub(super) fn decode(encoded: &[u8], header: &Header, pixels: &mut [u8]) -> Result<(), DecodeError> {
    let reader = Cursor::new(encoded);
    let refused = |error: ImageError| refused(header.format, encoded.len(), error);
    let mut limits = Limits::no_limits();
    limits.max_image_width = Some(header.width);
    limits.max_image_height = Some(header.height);
    limits.max_alloc = Some(header.facts.codec_limit_bytes);
    let outcome = match header.format {
        // The PNG decoder allocates while it is made, so it is told its limits then.
        Format::Png => PngDecoder::with_limits(reader, limits).map(|decoder| read(decoder, header, pixels)),
        Format::WebP => WebPDecoder::new(reader).map(|decoder| read(decoder, header, pixels)),
        Format::Bmp => BmpDecoder::new(reader).map(|decoder| read(decoder, header, pixels)),
        Format::Gif => limited(GifDecoder::new(reader), limits).map(|decoder| read(decoder, header, pixels)),
        Format::Tiff => limited(TiffDecoder::new(reader), limits).map(|decoder| read(decoder, header, pixels)),
        Format::Jpeg => return Err(DecodeError::codec(Format::Jpeg, "it is not decoded here")),
    };
    match outcome.map_err(refused)? {
        Ok(()) => Ok(()),
        Err(Failure::Codec(error)) => Err(refused(error)),
        Err(Failure::Differs) => {
            Err(DecodeError::codec(header.format, "the picture is not the one that the header announced"))
        }
    }
}

enum Failure {
    Codec(ImageError),
    Differs,
}

fn limited<D: ImageDecoder>(decoder: ImageResult<D>, limits: Limits) -> ImageResult<D> {
    let mut decoder = decoder?;
    decoder.set_limits(limits)?;
    Ok(decoder)
}

fn read(decoder: impl ImageDecoder, header: &Header, pixels: &mut [u8]) -> Result<(), Failure> {
    let color = decoder.color_type();
    if decoder.dimensions() != (header.width, header.height) {
        return Err(Failure::Differs);
    }
    let native = usize::try_from(decoder.total_bytes()).ok().and_then(|bytes| pixels.get_mut(..bytes));
    let native = native.ok_or(Failure::Differs)?;
    // Not every codec writes every pixel: a GIF may name colours that its palette lacks, a run-length BMP skip pixels.
    // What an earlier picture left there must not shine through.
    native.fill(0);
    decoder.read_image(native).map_err(Failure::Codec)?;
    let pixel_count = header.width as usize * header.height as usize;
    convert::to_rgb8(pixels, pixel_count, color).ok_or(Failure::Differs)
}

fn refused(format: Format, encoded_bytes: usize, error: ImageError) -> DecodeError {
    match error {
        ImageError::IoError(io) if io.kind() == ErrorKind::UnexpectedEof => {
            DecodeError::Incomplete { format, encoded_bytes }
        }
        ImageError::Unsupported(unsupported) => {
            let feature = match unsupported.kind() {
                UnsupportedErrorKind::GenericFeature(feature) => feature,
                UnsupportedErrorKind::Color(color) => format!("colour type {color:?}"),
                other => format!("{other:?}"),
            };
            DecodeError::Unsupported { format, feature }
        }
        other => DecodeError::codec(format, other),
    }
}
