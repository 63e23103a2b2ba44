//! Owns what can be wrong with an encoded image, in words and numbers that a person can act on.
//! It must never hold a path: the caller knows which sample it asked for.

use std::fmt;

use super::Format;

/// How many of a file's first bytes an error shows.
const SHOWN_BYTES: usize = 8;

/// Why an image could not be decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DecodeError {
    /// There is nothing to decode.
    Empty,
    /// The content is that of no known image format.
    UnknownFormat {
        /// The first bytes, at most eight.
        starts_with: Vec<u8>,
    },
    /// The file ends inside its header.
    HeaderTruncated {
        /// What its first bytes say it is.
        format: Format,
        /// How long it is.
        encoded_bytes: usize,
    },
    /// The header contradicts itself or the format's rules.
    BadHeader {
        /// What its first bytes say it is.
        format: Format,
        /// What is wrong.
        cause: String,
    },
    /// A valid file of a kind that is not decoded here.
    Unsupported {
        /// What its first bytes say it is.
        format: Format,
        /// What it asks for.
        feature: String,
    },
    /// The header announces a picture without pixels.
    NoPixels {
        /// What its first bytes say it is.
        format: Format,
        /// Columns, as stored.
        width: u32,
        /// Rows, as stored.
        height: u32,
    },
    /// The header announces a picture that is larger than the [`Limits`](super::Limits) admit.
    TooLarge {
        /// What its first bytes say it is.
        format: Format,
        /// Columns, as stored.
        width: u32,
        /// Rows, as stored.
        height: u32,
        /// The most pixels that are admitted.
        pixels_max: u64,
        /// The longest side that is admitted.
        side_max: u32,
    },
    /// The file ends before its picture does.
    Incomplete {
        /// What its first bytes say it is.
        format: Format,
        /// How long it is.
        encoded_bytes: usize,
    },
    /// The codec refused the data, or what it found is not what the header promised.
    Codec {
        /// What its first bytes say it is.
        format: Format,
        /// What the codec said.
        cause: String,
    },
    /// The allocator could not give the slab this many bytes.
    OutOfMemory {
        /// How many were asked for.
        bytes: u64,
    },
}

impl DecodeError {
    pub(super) fn unknown(encoded: &[u8]) -> Self {
        DecodeError::UnknownFormat { starts_with: encoded[..encoded.len().min(SHOWN_BYTES)].to_vec() }
    }

    pub(super) fn codec(format: Format, cause: impl fmt::Display) -> Self {
        DecodeError::Codec { format, cause: cause.to_string() }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::Empty => f.write_str("the file is empty (0 bytes)"),
            DecodeError::UnknownFormat { starts_with } => {
                f.write_str("starts with")?;
                for byte in starts_with {
                    write!(f, " {byte:02x}")?;
                }
                f.write_str(": no known image format (known: JPEG, PNG, WebP, GIF, BMP, TIFF, PNM, QOI, TGA)")
            }
            DecodeError::HeaderTruncated { format, encoded_bytes } => {
                write!(f, "{format}: the file ends inside its header, after {encoded_bytes} bytes")
            }
            DecodeError::BadHeader { format, cause } => write!(f, "{format}: bad header: {cause}"),
            DecodeError::Unsupported { format, feature } => write!(f, "{format}: not supported: {feature}"),
            DecodeError::NoPixels { format, width, height } => {
                write!(f, "{format}: the header announces {width}x{height}, a picture without pixels")
            }
            DecodeError::TooLarge { format, width, height, pixels_max, side_max } => write!(
                f,
                "{format}: the header announces {width}x{height} = {} pixels; at most {pixels_max} pixels and {side_max} \
                 a side are admitted (raise the decode limits if this picture is wanted)",
                u64::from(*width) * u64::from(*height)
            ),
            DecodeError::Incomplete { format, encoded_bytes } => {
                write!(f, "{format}: the file is cut off: it ends after {encoded_bytes} bytes, before its picture does")
            }
            DecodeError::Codec { format, cause } => write!(f, "{format}: {cause}"),
            DecodeError::OutOfMemory { bytes } => {
                write!(f, "the allocator refused {bytes} bytes for the decoded pixels")
            }
        }
    }
}

impl std::error::Error for DecodeError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_their_numbers() {
        let html = DecodeError::unknown(b"<html><body>");
        assert!(html.to_string().starts_with("starts with 3c 68 74 6d 6c 3e 3c 62: no known image format"), "{html}");
        assert_eq!(DecodeError::Empty.to_string(), "the file is empty (0 bytes)");
        let large = DecodeError::TooLarge {
            format: Format::Jpeg,
            width: 65_500,
            height: 65_500,
            pixels_max: 1 << 27,
            side_max: 65_535,
        };
        let text = large.to_string();
        assert!(text.contains("65500x65500 = 4290250000 pixels; at most 134217728 pixels and 65535"), "{text}");
    }
}
