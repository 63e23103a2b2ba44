//! Owns the headers of JPEG: a walk over the markers up to the first scan, and the search for the marker that ends it.
//! It must never copy the encoded bytes. The pixels are the business of `turbo`, or of `zune` where that is left out.
//!
//! Source of the format: ITU-T T.81 (1992), annex B.

use super::bytes::{Order, u8_at, u16_at};
use super::ifd::exif_orientation;
#[cfg(feature = "turbo")]
use super::turbo::{ARITHMETIC, codec_bytes};
#[cfg(not(feature = "turbo"))]
use super::zune::{ARITHMETIC, codec_bytes};
use super::{Colour, DecodeError, Facts, Flaw, Format};

/// Segments that a header may have. Real ones have tens, and hundreds where a large profile is split up; the codec takes
/// time in proportion to the square of some.
const SEGMENTS_MAX: usize = 4096;

/// Sampling of one component.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Component {
    pub(super) horizontal: u64,
    pub(super) vertical: u64,
}

/// What a frame header (`SOF`) says, and the first scan's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) progressive: bool,
    pub(super) arithmetic: bool,
    /// Whether the first scan holds the whole picture. Otherwise all of its coefficients are kept until the last one.
    pub(super) one_scan: bool,
    components: [Component; 4],
    component_count: usize,
}

impl Frame {
    pub(super) fn components(&self) -> &[Component] {
        &self.components[..self.component_count]
    }

    /// The finest sampling across and down, which a pixel of the picture has.
    pub(super) fn sampling_max(&self) -> (u64, u64) {
        let most = |of: fn(&Component) -> u64| self.components().iter().map(of).max().unwrap_or(1);
        (most(|component| component.horizontal), most(|component| component.vertical))
    }
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
            0xC0..=0xC2 | 0xC9 | 0xCA if marker < 0xC9 || ARITHMETIC => {
                if frame.is_some() {
                    return Err(Flaw::bad("two frame headers"));
                }
                frame = Some(parse_frame(segment, marker)?);
            }
            0xC3 | 0xC5..=0xC7 | 0xC9..=0xCB | 0xCD..=0xCF => {
                let kind = match marker {
                    0xC9 | 0xCA => "arithmetic coding",
                    0xCB..=0xCF => "lossless or hierarchical arithmetic coding",
                    _ => "lossless or hierarchical coding",
                };
                return Err(Flaw::Unsupported(format!("{kind} (frame marker ff {marker:02x})")));
            }
            0xE1 if orientation.is_none() && segment.starts_with(b"Exif\0\0") => {
                orientation = Some(exif_orientation(segment));
            }
            0xDA => {
                let mut frame = frame.ok_or_else(|| Flaw::bad("a scan comes before the frame header"))?;
                let scan_components = usize::from(u8_at(segment, 0).ok_or(Flaw::Truncated)?);
                frame.one_scan = !frame.progressive && scan_components == frame.component_count;
                // Between the scans of a file that has several, more metadata may come.
                let metadata_bytes = if frame.one_scan { metadata_bytes } else { encoded.len() as u64 };
                return Ok(Facts {
                    width: frame.width,
                    height: frame.height,
                    orientation: orientation.unwrap_or(1),
                    colour: match frame.component_count {
                        1 => Colour::Grey,
                        4 => Colour::Cmyk,
                        _ => Colour::Rgb,
                    },
                    native_pixel_bytes: 3,
                    codec_bytes: codec_bytes(&frame, metadata_bytes),
                    codec_limit_bytes: 0,
                    data_at: at + length,
                    jpeg: Some(frame),
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

/// Scans that a file may have. Encoders write about ten; each goes over all coefficients again, however short it is.
pub(super) const SCANS_MAX: u32 = 64;

/// Counts the scans of a file whose first one's data begins at `data_at`, so that one with too many is refused before
/// any work. Where one holds the whole picture, nobody looks for others.
pub(super) fn check_scans(encoded: &[u8], frame: &Frame, data_at: usize) -> Result<(), DecodeError> {
    if frame.one_scan {
        return Ok(());
    }
    let others = markers(encoded, data_at).take_while(|&marker| marker != 0xD9).filter(|&marker| marker == 0xDA);
    let scans = 1 + others.count();
    if scans as u64 > u64::from(SCANS_MAX) {
        let feature = format!("{scans} scans (at most {SCANS_MAX} are)");
        return Err(DecodeError::Unsupported { format: Format::Jpeg, feature });
    }
    Ok(())
}

/// The markers among and behind picture data, up to the first that is cut off; what their segments hold is passed over.
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

fn parse_frame(segment: &[u8], marker: u8) -> Result<Frame, Flaw> {
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
    let (progressive, arithmetic) = (matches!(marker, 0xC2 | 0xCA), marker >= 0xC9);
    let (width, height) = (width.into(), height.into());
    let frame = Frame { width, height, progressive, arithmetic, one_scan: false, components, component_count };
    // T.81 has a component's size rounded from any ratio (A.1.1); decoders enlarge by whole numbers.
    let (across, down) = frame.sampling_max();
    let uneven = |one: &&Component| across % one.horizontal != 0 || down % one.vertical != 0;
    if let Some(Component { horizontal, vertical }) = frame.components().iter().find(uneven) {
        return Err(Flaw::Unsupported(format!("a component sampled {horizontal}x{vertical} of {across}x{down}")));
    }
    Ok(frame)
}

/// Whether the picture data that begins at `data_at` is closed by an end marker.
pub(super) fn has_end(encoded: &[u8], data_at: usize) -> bool {
    const END: [u8; 2] = [0xFF, 0xD9];
    /// Writers pad files to even or aligned sizes.
    const PADDING_MAX: usize = 64;
    // Inside entropy-coded data no byte but 00 or a restart marker follows ff, so this pair is the end, not chance.
    let tail_at = encoded.len().saturating_sub(PADDING_MAX).max(data_at);
    if encoded.get(tail_at..).is_some_and(|tail| tail.windows(2).any(|pair| pair == END)) {
        return true;
    }
    // Something was appended (another picture, a camera's preview, text): look for the end where it is.
    markers(encoded, data_at).any(|marker| marker == 0xD9)
}
