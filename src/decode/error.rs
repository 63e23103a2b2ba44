//! Decoding errors. They hold no path: the caller knows which sample it asked for.

use super::header::Format;

/// Number of a file's first bytes that an error shows.
const SHOWN_BYTES: usize = 8;

/// Failure to decode an image.
///
/// It is `Clone` and `Eq`, so that it can travel with a sample into reports. What a codec of another crate reports is
/// kept as text: its error types are neither.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The file has no bytes.
    #[error("the file is empty (0 bytes)")]
    Empty,
    /// The content matches no known image format.
    #[error(
        "unknown image format: the file starts with {}; expected JPEG, PNG, WebP, GIF, BMP, TIFF, PNM, QOI or TGA",
        hex(first_bytes)
    )]
    UnknownFormat {
        /// First bytes of the file, at most eight.
        first_bytes: Vec<u8>,
    },
    /// The file ends inside its header.
    #[error("{format}: truncated file: it ends after {encoded_bytes} bytes, inside its header")]
    TruncatedHeader {
        /// Detected format.
        format: Format,
        /// Length of the file.
        encoded_bytes: usize,
    },
    /// The header contradicts itself or the format's rules.
    #[error("{format}: invalid header: {reason}")]
    InvalidHeader {
        /// Detected format.
        format: Format,
        /// Offending value and the accepted ones.
        reason: String,
    },
    /// The file is valid, and of a variant that is not decoded here.
    #[error("{format}: unsupported: {feature}")]
    Unsupported {
        /// Detected format.
        format: Format,
        /// Feature that the file uses.
        feature: String,
    },
    /// The header declares an image without pixels.
    #[error("{format}: the header declares an image of {width}x{height} pixels")]
    ZeroSize {
        /// Detected format.
        format: Format,
        /// Stored columns.
        width: u32,
        /// Stored rows.
        height: u32,
    },
    /// The header declares an image larger than the [`Limits`](super::Limits).
    #[error(
        "{format}: the header declares {width}x{height} = {} pixels, above the limit of {pixels_max} pixels and \
         {side_max} per side: raise the decode limits if this image is wanted",
        u64::from(*width) * u64::from(*height)
    )]
    TooLarge {
        /// Detected format.
        format: Format,
        /// Stored columns.
        width: u32,
        /// Stored rows.
        height: u32,
        /// Maximum number of pixels.
        pixels_max: u64,
        /// Maximum length of a side.
        side_max: u32,
    },
    /// The file ends before its image data does.
    #[error("{format}: truncated file: it ends after {encoded_bytes} bytes, before its image data does")]
    Truncated {
        /// Detected format.
        format: Format,
        /// Length of the file.
        encoded_bytes: usize,
    },
    /// The codec refused the image data.
    #[error("{format}: damaged data: {reason}")]
    Damaged {
        /// Detected format.
        format: Format,
        /// Message of the codec.
        reason: String,
    },
    /// The bytes are not those whose header was read.
    #[error("{format}: the image data does not match the header that was read")]
    HeaderMismatch {
        /// Format of the header.
        format: Format,
    },
    /// The codec panicked, which is contained here.
    #[error("{format}: the codec panicked: {message}")]
    CodecPanicked {
        /// Detected format.
        format: Format,
        /// Message of the panic.
        message: String,
    },
    /// The decoder's memory could not be allocated, or is too small.
    #[error("decoding takes {bytes} bytes of memory, which are not available")]
    OutOfMemory {
        /// Bytes that decoding takes.
        bytes: u64,
    },
}

impl DecodeError {
    pub(super) fn unknown(encoded: &[u8]) -> Self {
        DecodeError::UnknownFormat { first_bytes: encoded[..encoded.len().min(SHOWN_BYTES)].to_vec() }
    }
}

fn hex(bytes: &[u8]) -> String {
    let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.join(" ")
}
