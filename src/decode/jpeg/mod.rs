//! JPEG: the markers (`markers`), and the codec: libjpeg-turbo with the feature `turbo`, otherwise zune-jpeg.

pub(super) mod frame;
mod markers;
#[cfg(feature = "turbo")]
pub(super) mod turbo;
#[cfg(not(feature = "turbo"))]
pub(super) mod zune;

#[cfg(feature = "turbo")]
use turbo as codec;
#[cfg(not(feature = "turbo"))]
use zune as codec;

use super::header::{ColorType, Format, Header, HeaderError};

/// Walks the markers up to the first scan.
pub(super) fn probe(encoded: &[u8]) -> Result<Header, HeaderError> {
    let frame = markers::parse(encoded, codec::ARITHMETIC)?;
    let color = match frame.component_count {
        1 => ColorType::Gray,
        4 => ColorType::Cmyk,
        _ => ColorType::Rgb,
    };
    Ok(Header {
        orientation: frame.orientation,
        progressive: frame.progressive,
        codec_bytes: codec::codec_bytes(&frame),
        jpeg: Some(frame),
        ..Header::new(Format::Jpeg, (frame.width, frame.height), color, 3)
    })
}
