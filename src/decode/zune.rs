//! Owns the pixels of JPEG where libjpeg-turbo is left out. It must never pass off a damaged file as a picture.
//!
//! zune-jpeg is the codec that the `image` crate uses. It is called directly because `image` copies the whole file
//! first, parses the headers twice, and fixes the lenient mode, in which a file that is cut in the middle or does not
//! follow its Huffman tables is a picture with a grey remainder. In strict mode those are errors; a file whose last
//! byte is missing is told by its missing end marker.

use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::jpeg::{Frame, check_scans, has_end};
use super::{DecodeError, Format, Header};

/// Component records, marker buffers and the rounding of small allocations.
const FIXED_BYTES: u64 = 8 << 10;

/// Whether arithmetic coding is decoded.
pub(super) const ARITHMETIC: bool = false;

/// What zune-jpeg 0.5.15 allocates: for each component one row of blocks as 16-bit samples, the rows that upsampling
/// needs, and, unless one scan holds everything, all coefficients of the picture; metadata twice (`mcu.rs`, `mcu_prog.rs`,
/// `components.rs`).
pub(super) fn codec_bytes(frame: &Frame, metadata_bytes: u64) -> u64 {
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
    (bytes + SAMPLE * stride_max * 8).saturating_add(2 * metadata_bytes)
}

/// Decodes into `pixels`, which is exactly `width * height * 3` bytes long. Returns 1 where damage was passed over, else
/// 0: the codec does not say how often.
pub(super) fn decode(
    encoded: &[u8],
    header: &Header,
    accept_truncated: bool,
    pixels: &mut [u8],
) -> Result<u32, DecodeError> {
    if let Some(frame) = &header.facts.jpeg {
        check_scans(encoded, frame, header.facts.data_at)?;
    }
    // The lenient mode does not tell what it passed over, so a picture is damaged if the strict one refuses it.
    let strict = decode_as(encoded, header, false, pixels);
    match strict {
        Ok(()) => Ok(0),
        Err(error @ (DecodeError::Unsupported { .. } | DecodeError::OutOfMemory { .. })) => Err(error),
        Err(_) if accept_truncated => decode_as(encoded, header, true, pixels).map(|()| 1),
        Err(error) => Err(error),
    }
}

fn decode_as(encoded: &[u8], header: &Header, accept_truncated: bool, pixels: &mut [u8]) -> Result<(), DecodeError> {
    let incomplete = || DecodeError::Incomplete { format: Format::Jpeg, encoded_bytes: encoded.len() };
    if !accept_truncated && !has_end(encoded, header.facts.data_at) {
        return Err(incomplete());
    }
    let options = DecoderOptions::default()
        .set_strict_mode(!accept_truncated)
        .set_max_width(header.width as usize)
        .set_max_height(header.height as usize)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(encoded), options);
    let refused = |error: DecodeErrors| match error {
        DecodeErrors::ExhaustedData => incomplete(),
        other => DecodeError::codec(Format::Jpeg, format_args!("damaged data: {other:?}")),
    };
    decoder.decode_headers().map_err(refused)?;
    if decoder.dimensions() != Some((header.width as usize, header.height as usize)) {
        return Err(DecodeError::codec(Format::Jpeg, "the bytes are not those whose header was read"));
    }
    // A stray marker can make the codec stop early and content; what an earlier picture left must not shine through.
    // (Writing half a megabyte costs about one in a hundred of decoding it.)
    pixels.fill(0);
    decoder.decode_into(pixels).map_err(refused)
}
