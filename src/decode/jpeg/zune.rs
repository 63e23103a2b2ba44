//! Pixels of JPEG without the feature `turbo`: zune-jpeg, the codec of the `image` crate.
//!
//! It is called directly because `image` copies the whole file first, parses the headers twice, and always takes the
//! lenient mode, in which a file that is truncated or does not follow its Huffman tables is an image with a gray
//! remainder. In strict mode those are errors; a file whose last byte is missing is detected by its missing end marker.

use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::frame::Frame;
use super::markers::{check_scans, has_end};
use crate::decode::error::DecodeError;
use crate::decode::header::{Format, Header};

/// Component records, marker buffers and the rounding of small allocations.
const FIXED_BYTES: u64 = 8 << 10;

/// True if arithmetic coding is decoded.
pub(super) const ARITHMETIC: bool = false;

/// Allocations of zune-jpeg 0.5.15: for each component one row of blocks as 16-bit samples, the rows that upsampling
/// needs, and, unless one scan holds everything, all coefficients of the image; metadata twice (`mcu.rs`,
/// `mcu_prog.rs`, `components.rs`).
pub(super) fn codec_bytes(frame: &Frame) -> u64 {
    const SAMPLE: u64 = 2;
    let components = frame.components();
    let (across, down) = frame.sampling_max();
    let mcu_columns = u64::from(frame.width).div_ceil(8 * across);
    let mcu_rows = u64::from(frame.height).div_ceil(8 * down);
    let subsampled = across > 1 || down > 1;
    let mut bytes = FIXED_BYTES;
    let mut stride_max = 0;
    for component in components {
        let stride = component.horizontal * mcu_columns * 8;
        let block_row = SAMPLE * stride * component.vertical * 8;
        bytes += block_row;
        if subsampled {
            let grown = across.div_ceil(component.horizontal) * down.div_ceil(component.vertical);
            let rows = 2 * SAMPLE * stride * component.vertical;
            let first_row = SAMPLE * stride * component.vertical * grown;
            let upsampled = SAMPLE * stride * grown * 16;
            bytes += rows + first_row + upsampled;
        }
        if !frame.one_scan {
            bytes += block_row * mcu_rows;
        }
        stride_max = stride.max(stride_max);
    }
    (bytes + SAMPLE * stride_max * 8).saturating_add(2 * frame.metadata_bytes)
}

/// Decodes into `pixels`, which is exactly `width * height * 3` bytes long. Returns 1 if damage was passed over, else
/// 0: the codec does not count.
pub(in crate::decode) fn decode(
    encoded: &[u8],
    header: &Header,
    accept_truncated: bool,
    pixels: &mut [u8],
) -> Result<u32, DecodeError> {
    let Some(frame) = &header.jpeg else { return Err(DecodeError::HeaderMismatch { format: Format::Jpeg }) };
    check_scans(encoded, frame)?;
    // The lenient mode does not report what it passed over, so an image is damaged if the strict one refuses it.
    let strict = if has_end(encoded, frame) {
        decode_as(encoded, header, true, pixels)
    } else {
        Err(DecodeError::Truncated { format: Format::Jpeg, encoded_bytes: encoded.len() })
    };
    match strict {
        Ok(()) => Ok(0),
        Err(error @ (DecodeError::Unsupported { .. } | DecodeError::OutOfMemory { .. })) => Err(error),
        Err(_) if accept_truncated => decode_as(encoded, header, false, pixels).map(|()| 1),
        Err(error) => Err(error),
    }
}

fn decode_as(encoded: &[u8], header: &Header, strict: bool, pixels: &mut [u8]) -> Result<(), DecodeError> {
    let format = Format::Jpeg;
    let options = DecoderOptions::default()
        .set_strict_mode(strict)
        .set_max_width(header.width as usize)
        .set_max_height(header.height as usize)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(encoded), options);
    let refused = |error: DecodeErrors| match error {
        DecodeErrors::ExhaustedData => DecodeError::Truncated { format, encoded_bytes: encoded.len() },
        other => DecodeError::Damaged { format, reason: format!("{other:?}") },
    };
    decoder.decode_headers().map_err(refused)?;
    if decoder.dimensions() != Some((header.width as usize, header.height as usize)) {
        return Err(DecodeError::HeaderMismatch { format });
    }
    // A stray marker can make the codec stop early without an error; an earlier image must not show through.
    // (Writing half a megabyte costs about one in a hundred of decoding it.)
    pixels.fill(0);
    decoder.decode_into(pixels).map_err(refused)
}
