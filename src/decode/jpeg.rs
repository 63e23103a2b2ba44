//! Owns JPEG: a walk over the markers for the header, zune-jpeg for the pixels.
//! It must never copy the encoded bytes, and never pass off a damaged file as a picture.
//!
//! zune-jpeg is the codec that the `image` crate uses. It is called directly because `image` copies the whole file
//! first, parses the headers twice, and fixes the lenient mode, in which a file that is cut in the middle or does not
//! follow its Huffman tables is a picture with a grey remainder. In strict mode those are errors; a file whose last
//! byte is missing is told by its missing end marker.
//!
//! Source of the format: ITU-T T.81 (1992), annex B.

use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::bytes::{Order, u8_at, u16_at};
use super::ifd::exif_orientation;
use super::{DecodeError, Facts, Flaw, Format, Header};

/// Component records, marker buffers and the rounding of small allocations.
const FIXED_BYTES: u64 = 8 << 10;

/// Segments that a header may have. Real ones have tens, and hundreds where a large profile is split up; the codec takes
/// time in proportion to the square of some.
const SEGMENTS_MAX: usize = 4096;

/// Sampling of one component.
#[derive(Clone, Copy, Debug, Default)]
struct Component {
    horizontal: u64,
    vertical: u64,
}

/// What a frame header (`SOF`) says.
#[derive(Clone, Copy, Debug)]
struct Frame {
    width: u32,
    height: u32,
    progressive: bool,
    components: [Component; 4],
    component_count: usize,
}

/// Walks the markers up to the first scan.
pub(super) fn probe(encoded: &[u8]) -> Result<Facts, Flaw> {
    let mut frame: Option<Frame> = None;
    let mut orientation = None;
    let mut metadata_bytes = 0;
    let mut at = 2;
    for _ in 0..SEGMENTS_MAX {
        let (marker, after) = next_marker(encoded, at).ok_or(Flaw::Truncated)?;
        at = after;
        match marker {
            // Standing alone: TEM, RST0..=RST7, SOI.
            0x01 | 0xD0..=0xD8 => continue,
            0xD9 => return Err(Flaw::bad("the end marker comes before any picture data")),
            _ => {}
        }
        let length = usize::from(u16_at(encoded, at, Order::Big).ok_or(Flaw::Truncated)?);
        if length < 2 {
            return Err(Flaw::bad(format!("marker ff {marker:02x} announces a segment of {length} bytes")));
        }
        let segment = encoded.get(at + 2..at + length).ok_or(Flaw::Truncated)?;
        match marker {
            0xC0..=0xC2 => {
                if frame.is_some() {
                    return Err(Flaw::bad("two frame headers"));
                }
                frame = Some(parse_frame(segment, marker == 0xC2)?);
            }
            0xC3 | 0xC5..=0xC7 | 0xC9..=0xCB | 0xCD..=0xCF => {
                let kind = if marker >= 0xC9 { "arithmetic coding" } else { "lossless or hierarchical coding" };
                return Err(Flaw::Unsupported(format!("{kind} (frame marker ff {marker:02x})")));
            }
            0xE1 if orientation.is_none() && segment.starts_with(b"Exif\0\0") => {
                orientation = Some(exif_orientation(segment));
            }
            0xDA => {
                let frame = frame.ok_or_else(|| Flaw::bad("a scan comes before the frame header"))?;
                let scan_components = usize::from(u8_at(segment, 0).ok_or(Flaw::Truncated)?);
                let interleaved = !frame.progressive && scan_components == frame.component_count;
                // Between the scans of a file that has several, more metadata may come.
                let metadata_bytes = if interleaved { metadata_bytes } else { encoded.len() as u64 };
                return Ok(Facts {
                    width: frame.width,
                    height: frame.height,
                    orientation: orientation.unwrap_or(1),
                    native_pixel_bytes: 3,
                    codec_bytes: codec_bytes(&frame, interleaved).saturating_add(2 * metadata_bytes),
                    codec_limit_bytes: 0,
                    data_at: at + length,
                });
            }
            _ => {}
        }
        if matches!(marker, 0xE0..=0xEF) {
            metadata_bytes += length as u64;
        }
        at += length;
    }
    Err(Flaw::bad(format!("more than {SEGMENTS_MAX} segments before the picture data")))
}

/// The code of the first marker at or after `at`, and the place behind it.
fn next_marker(encoded: &[u8], at: usize) -> Option<(u8, usize)> {
    let mut at = at + encoded.get(at..)?.iter().position(|&byte| byte == 0xFF)?;
    loop {
        match u8_at(encoded, at + 1)? {
            // A fill byte.
            0xFF => at += 1,
            // No marker, but the byte ff among the data.
            0x00 => at = at + 2 + encoded.get(at + 2..)?.iter().position(|&byte| byte == 0xFF)?,
            code => return Some((code, at + 2)),
        }
    }
}

fn parse_frame(segment: &[u8], progressive: bool) -> Result<Frame, Flaw> {
    let precision = u8_at(segment, 0).ok_or(Flaw::Truncated)?;
    let height = u16_at(segment, 1, Order::Big).ok_or(Flaw::Truncated)?;
    let width = u16_at(segment, 3, Order::Big).ok_or(Flaw::Truncated)?;
    let component_count = usize::from(u8_at(segment, 5).ok_or(Flaw::Truncated)?);
    if precision != 8 {
        return Err(Flaw::Unsupported(format!("{precision} bits a sample (8 are)")));
    }
    if !(1..=4).contains(&component_count) || segment.len() != 6 + 3 * component_count {
        return Err(Flaw::bad(format!("{component_count} colour components in {} bytes", segment.len())));
    }
    let mut components = [Component::default(); 4];
    for (component, record) in components.iter_mut().zip(segment[6..].chunks_exact(3)) {
        let (horizontal, vertical) = (record[1] >> 4, record[1] & 15);
        if !(1..=4).contains(&horizontal) || !(1..=4).contains(&vertical) {
            return Err(Flaw::bad(format!("a component sampled {horizontal}x{vertical} (1..=4 are possible)")));
        }
        *component = Component { horizontal: horizontal.into(), vertical: vertical.into() };
    }
    Ok(Frame { width: width.into(), height: height.into(), progressive, components, component_count })
}

/// What zune-jpeg 0.5.15 allocates: for each component one row of blocks as 16-bit samples, the rows that upsampling
/// needs, and, unless one scan holds everything, all coefficients of the picture (`mcu.rs`, `mcu_prog.rs`,
/// `components.rs`).
fn codec_bytes(frame: &Frame, one_scan: bool) -> u64 {
    const SAMPLE: u64 = 2;
    let components = &frame.components[..frame.component_count];
    let across = components.iter().map(|c| c.horizontal).max().unwrap_or(1);
    let down = components.iter().map(|c| c.vertical).max().unwrap_or(1);
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
        if !one_scan {
            bytes += block_row * mcu_rows;
        }
        stride_max = stride.max(stride_max);
    }
    bytes + SAMPLE * stride_max * 8
}

/// Decodes into `pixels`, which is exactly `width * height * 3` bytes long.
pub(super) fn decode(encoded: &[u8], header: &Header, pixels: &mut [u8]) -> Result<(), DecodeError> {
    let incomplete = || DecodeError::Incomplete { format: Format::Jpeg, encoded_bytes: encoded.len() };
    if !has_end(encoded, header.facts.data_at) {
        return Err(incomplete());
    }
    let options = DecoderOptions::default()
        .set_strict_mode(true)
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

/// Whether the picture data that begins at `data_at` is closed by an end marker.
fn has_end(encoded: &[u8], data_at: usize) -> bool {
    const END: [u8; 2] = [0xFF, 0xD9];
    /// Writers pad files to even or aligned sizes.
    const PADDING_MAX: usize = 64;
    // Inside entropy-coded data no byte but 00 or a restart marker follows ff, so this pair is the end, not chance.
    let tail_at = encoded.len().saturating_sub(PADDING_MAX).max(data_at);
    if encoded.get(tail_at..).is_some_and(|tail| tail.windows(2).any(|pair| pair == END)) {
        return true;
    }
    // Something was appended (another picture, a camera's preview, text): look for the end where it is.
    let mut at = data_at;
    while let Some((marker, after)) = next_marker(encoded, at) {
        at = match marker {
            0xD9 => return true,
            0x01 | 0xD0..=0xD8 => after,
            _ => match u16_at(encoded, after, Order::Big) {
                Some(length) => after + usize::from(length),
                None => return false,
            },
        };
    }
    false
}
