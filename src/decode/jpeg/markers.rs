//! Markers of JPEG: the walk up to the first scan, and the search for further scans and for the end marker.
//!
//! Source of the format: ITU-T T.81 (1992), annex B.

use super::frame::{Component, Frame};
use crate::decode::bytes::{Order, u8_at, u16_at};
use crate::decode::error::DecodeError;
use crate::decode::header::{Format, HeaderError};
use crate::decode::ifd::exif_orientation;

/// Maximum number of header segments. Real files have tens, and hundreds where a large profile is split up; the codec
/// takes time in proportion to the square of some.
const SEGMENTS_MAX: usize = 4096;

/// Maximum number of scans. Encoders write about ten; each goes over all coefficients again, however short it is.
pub(super) const SCANS_MAX: u32 = 64;

/// Walks the markers up to the first scan. `arithmetic` is true if the codec decodes arithmetic coding.
pub(super) fn parse(encoded: &[u8], arithmetic: bool) -> Result<Frame, HeaderError> {
    let mut frame: Option<Frame> = None;
    let mut orientation = None;
    let mut metadata_bytes = 0;
    let mut at = 2;
    for _ in 0..SEGMENTS_MAX {
        let (marker, after) = next_marker(encoded, at).ok_or(HeaderError::Truncated)?;
        at = after;
        match marker {
            // Markers without a segment: TEM, RST0..=RST7, SOI.
            0x01 | 0xD0..=0xD8 => continue,
            0xD9 => return Err(HeaderError::invalid("the end marker comes before any image data")),
            _ => {}
        }
        let length = usize::from(u16_at(encoded, at, Order::Big).ok_or(HeaderError::Truncated)?);
        if length < 2 {
            return Err(HeaderError::invalid(format!("marker ff {marker:02x} has a segment of {length} bytes")));
        }
        let segment = encoded.get(at + 2..at + length).ok_or(HeaderError::Truncated)?;
        match marker {
            0xC0..=0xC2 | 0xC9 | 0xCA if marker < 0xC9 || arithmetic => {
                if frame.is_some() {
                    return Err(HeaderError::invalid("two frame headers"));
                }
                frame = Some(parse_frame(segment, marker)?);
            }
            0xC3 | 0xC5..=0xC7 | 0xC9..=0xCB | 0xCD..=0xCF => {
                let kind = match marker {
                    0xC9 | 0xCA => "arithmetic coding",
                    0xCB..=0xCF => "lossless or hierarchical arithmetic coding",
                    _ => "lossless or hierarchical coding",
                };
                return Err(HeaderError::Unsupported(format!("{kind} (frame marker ff {marker:02x})")));
            }
            0xE1 if orientation.is_none() && segment.starts_with(b"Exif\0\0") => {
                orientation = Some(exif_orientation(segment));
            }
            0xDA => {
                let mut frame = frame.ok_or_else(|| HeaderError::invalid("a scan comes before the frame header"))?;
                let scan_components = usize::from(u8_at(segment, 0).ok_or(HeaderError::Truncated)?);
                frame.one_scan = !frame.progressive && scan_components == frame.component_count;
                // Between the scans of a file that has several, more metadata may come.
                frame.metadata_bytes = if frame.one_scan { metadata_bytes } else { encoded.len() as u64 };
                frame.orientation = orientation.unwrap_or(1);
                frame.data_at = at + length;
                return Ok(frame);
            }
            _ => {}
        }
        if matches!(marker, 0xE0..=0xEF) {
            metadata_bytes += length as u64;
        }
        at += length;
    }
    Err(HeaderError::invalid(format!("more than {SEGMENTS_MAX} segments before the image data")))
}

/// Counts the scans of a file, so that one with too many is refused before any work. Where the first scan holds all
/// components, the decoder ignores others.
pub(super) fn check_scans(encoded: &[u8], frame: &Frame) -> Result<(), DecodeError> {
    if frame.one_scan {
        return Ok(());
    }
    let others = markers(encoded, frame.data_at).take_while(|&marker| marker != 0xD9).filter(|&marker| marker == 0xDA);
    let scans = 1 + others.count();
    if scans as u64 > u64::from(SCANS_MAX) {
        let feature = format!("{scans} scans: expected at most {SCANS_MAX}");
        return Err(DecodeError::Unsupported { format: Format::Jpeg, feature });
    }
    Ok(())
}

/// Yields the markers among and behind image data, up to the first that is truncated. Segments are skipped.
fn markers(encoded: &[u8], data_at: usize) -> impl Iterator<Item = u8> {
    let mut at = data_at;
    std::iter::from_fn(move || {
        let (marker, after) = next_marker(encoded, at)?;
        at = match marker {
            0x01 | 0xD0..=0xD9 => after,
            _ => after + usize::from(u16_at(encoded, after, Order::Big)?),
        };
        Some(marker)
    })
}

/// Returns the code of the first marker at or after `at`, and the offset behind it.
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

fn parse_frame(segment: &[u8], marker: u8) -> Result<Frame, HeaderError> {
    let precision = u8_at(segment, 0).ok_or(HeaderError::Truncated)?;
    let height = u16_at(segment, 1, Order::Big).ok_or(HeaderError::Truncated)?;
    let width = u16_at(segment, 3, Order::Big).ok_or(HeaderError::Truncated)?;
    let component_count = usize::from(u8_at(segment, 5).ok_or(HeaderError::Truncated)?);
    if precision != 8 {
        return Err(HeaderError::Unsupported(format!("{precision} bits per sample: expected 8")));
    }
    if !(1..=4).contains(&component_count) || segment.len() != 6 + 3 * component_count {
        return Err(HeaderError::invalid(format!("{component_count} color components in {} bytes", segment.len())));
    }
    let mut components = [Component::default(); 4];
    for (component, record) in components.iter_mut().zip(segment[6..].chunks_exact(3)) {
        let (horizontal, vertical) = (record[1] >> 4, record[1] & 15);
        if !(1..=4).contains(&horizontal) || !(1..=4).contains(&vertical) {
            return Err(HeaderError::invalid(format!("sampling factors {horizontal}x{vertical}: expected 1 to 4")));
        }
        *component = Component { horizontal: horizontal.into(), vertical: vertical.into() };
    }
    let frame = Frame {
        width: width.into(),
        height: height.into(),
        progressive: matches!(marker, 0xC2 | 0xCA),
        arithmetic: marker >= 0xC9,
        one_scan: false,
        components,
        component_count,
        data_at: 0,
        metadata_bytes: 0,
        orientation: 1,
    };
    // T.81 has a component's size rounded from any ratio (A.1.1); decoders enlarge by whole numbers.
    let (across, down) = frame.sampling_max();
    let uneven = |one: &&Component| across % one.horizontal != 0 || down % one.vertical != 0;
    if let Some(Component { horizontal, vertical }) = frame.components().iter().find(uneven) {
        return Err(HeaderError::Unsupported(format!(
            "sampling factors {horizontal}x{vertical} beside {across}x{down}: expected divisors"
        )));
    }
    Ok(frame)
}

/// Returns true if an end marker closes the image data.
pub(super) fn has_end(encoded: &[u8], frame: &Frame) -> bool {
    const END: [u8; 2] = [0xFF, 0xD9];
    /// Writers pad files to even or aligned sizes.
    const PADDING_MAX: usize = 64;
    // Inside entropy-coded data no byte but 00 or a restart marker follows ff, so this pair is the end, not chance.
    let tail_at = encoded.len().saturating_sub(PADDING_MAX).max(frame.data_at);
    if encoded.get(tail_at..).is_some_and(|tail| tail.windows(2).any(|pair| pair == END)) {
        return true;
    }
    // Something was appended (another image, a camera's preview, text): search for the end from the front.
    markers(encoded, frame.data_at).any(|marker| marker == 0xD9)
}
