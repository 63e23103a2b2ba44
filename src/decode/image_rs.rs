//! Decoding of every format but JPEG: through the `image` crate, and PNG directly through the codec that it uses.

use std::io::{Cursor, ErrorKind};

use image::codecs::{bmp::BmpDecoder, gif::GifDecoder, pnm::PnmDecoder, qoi::QoiDecoder, tga::TgaDecoder};
use image::codecs::{tiff::TiffDecoder, webp::WebPDecoder};
use image::error::UnsupportedErrorKind;
use image::{ColorType, ImageDecoder, ImageError, ImageResult, Limits};
use png::{BitDepth, ColorType as PngColor, DecodingError};

use super::error::DecodeError;
use super::header::{Format, Header};
use super::{convert, pnm};

/// Decodes into the front of `pixels`, and converts to RGB8 there.
pub(super) fn decode(
    encoded: &[u8],
    header: &Header,
    background: [u8; 3],
    pixels: &mut [u8],
) -> Result<(), DecodeError> {
    let format = header.format;
    let reader = Cursor::new(encoded);
    let mut limits = Limits::no_limits();
    limits.max_image_width = Some(header.width);
    limits.max_image_height = Some(header.height);
    limits.max_alloc = Some(header.codec_limit_bytes);
    let outcome = match format {
        Format::Png => png(reader, header, pixels),
        Format::WebP => read(WebPDecoder::new(reader), header, pixels),
        Format::Bmp => read(BmpDecoder::new(reader), header, pixels),
        Format::Gif => read(limited(GifDecoder::new(reader), limits), header, pixels),
        Format::Tiff => read(limited(TiffDecoder::new(reader), limits), header, pixels),
        // Digits may be missing, which could not be detected.
        Format::Pnm if pnm::ends_in_a_number(encoded) => Err(Failure::Truncated),
        Format::Pnm => read(PnmDecoder::new(reader), header, pixels),
        Format::Qoi => read(QoiDecoder::new(reader), header, pixels),
        Format::Tga => read(TgaDecoder::new(reader), header, pixels),
        Format::Jpeg => Err(Failure::HeaderMismatch),
    };
    let pixel_count = header.width as usize * header.height as usize;
    let converted = outcome
        .and_then(|color| convert::to_rgb8(pixels, pixel_count, color, background).ok_or(Failure::HeaderMismatch));
    converted.map_err(|failure| match failure {
        Failure::Truncated => DecodeError::Truncated { format, encoded_bytes: encoded.len() },
        Failure::HeaderMismatch => DecodeError::HeaderMismatch { format },
        Failure::Unsupported(feature) => DecodeError::Unsupported { format, feature },
        Failure::Damaged(reason) => DecodeError::Damaged { format, reason },
    })
}

enum Failure {
    Truncated,
    HeaderMismatch,
    Unsupported(String),
    Damaged(String),
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::IoError(io) if io.kind() == ErrorKind::UnexpectedEof => Failure::Truncated,
            ImageError::Unsupported(unsupported) => Failure::Unsupported(match unsupported.kind() {
                UnsupportedErrorKind::GenericFeature(feature) => feature,
                UnsupportedErrorKind::Color(color) => format!("color type {color:?}"),
                other => format!("{other:?}"),
            }),
            other => Failure::Damaged(other.to_string()),
        }
    }
}

impl From<DecodingError> for Failure {
    fn from(error: DecodingError) -> Self {
        match error {
            DecodingError::IoError(io) if io.kind() == ErrorKind::UnexpectedEof => Failure::Truncated,
            other => Failure::Damaged(other.to_string()),
        }
    }
}

fn limited<D: ImageDecoder>(decoder: ImageResult<D>, limits: Limits) -> ImageResult<D> {
    let mut decoder = decoder?;
    decoder.set_limits(limits)?;
    Ok(decoder)
}

fn read<D: ImageDecoder>(decoder: ImageResult<D>, header: &Header, pixels: &mut [u8]) -> Result<ColorType, Failure> {
    let decoder = decoder?;
    let color = decoder.color_type();
    if decoder.dimensions() != (header.width, header.height) {
        return Err(Failure::HeaderMismatch);
    }
    let native = usize::try_from(decoder.total_bytes()).ok().and_then(|bytes| pixels.get_mut(..bytes));
    let native = native.ok_or(Failure::HeaderMismatch)?;
    // Not every codec writes every pixel: a GIF may name colors that its palette lacks, a run-length BMP skip pixels.
    // An earlier image must not show through.
    native.fill(0);
    decoder.read_image(native)?;
    Ok(color)
}

/// Decodes a PNG as [`read`] does, without `image` in between: it copies every text and inflates every color profile,
/// in case that they are asked for, and has no option to skip them. (Of an APNG the still image is decoded.)
fn png(reader: Cursor<&[u8]>, header: &Header, pixels: &mut [u8]) -> Result<ColorType, Failure> {
    let bytes = usize::try_from(header.codec_limit_bytes).unwrap_or(usize::MAX);
    let mut decoder = png::Decoder::new_with_limits(reader, png::Limits { bytes });
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    // Palettes and fewer than 8 bits become 8, a color that counts as transparent becomes alpha, and 16 bits stay.
    decoder.set_transformations(png::Transformations::EXPAND);
    let info = decoder.read_header_info()?;
    if (info.width, info.height) != (header.width, header.height) {
        return Err(Failure::HeaderMismatch);
    }
    let mut reader = decoder.read_info()?;
    let color = match reader.output_color_type() {
        (PngColor::Grayscale, BitDepth::Eight) => ColorType::L8,
        (PngColor::GrayscaleAlpha, BitDepth::Eight) => ColorType::La8,
        (PngColor::Rgb, BitDepth::Eight) => ColorType::Rgb8,
        (PngColor::Rgba, BitDepth::Eight) => ColorType::Rgba8,
        (PngColor::Grayscale, BitDepth::Sixteen) => ColorType::L16,
        (PngColor::GrayscaleAlpha, BitDepth::Sixteen) => ColorType::La16,
        (PngColor::Rgb, BitDepth::Sixteen) => ColorType::Rgb16,
        (PngColor::Rgba, BitDepth::Sixteen) => ColorType::Rgba16,
        other => return Err(Failure::Unsupported(format!("color type {other:?}"))),
    };
    let native =
        reader.output_buffer_size().and_then(|bytes| pixels.get_mut(..bytes)).ok_or(Failure::HeaderMismatch)?;
    native.fill(0);
    reader.next_frame(native)?;
    if color.bytes_per_pixel() / color.channel_count() == 2 {
        native.as_chunks_mut::<2>().0.iter_mut().for_each(|sample| *sample = u16::from_be_bytes(*sample).to_ne_bytes());
    }
    Ok(color)
}
