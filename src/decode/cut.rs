//! Owns what of a picture is decoded, how, and the pixels that come of it: rows one after the other where a codec gives
//! them so, or else the whole picture. It must never decode more than is asked where a codec can leave it out.

use std::fmt;
use std::str::FromStr;

use super::{DecodeError, Header, WorkingSet, whole_onto, working_set};
#[cfg(feature = "turbo")]
use super::{Format, turbo};
use crate::tensor::{ImageView, Region};

/// How close a decoded picture is to the stored one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Quality {
    /// Every sample is the one that decoding at full size, cutting and resampling gives.
    #[default]
    Exact,
    /// Pictures that are shrunk to half or less are decoded at 1/2, 1/4 or 1/8 of their size, as far as the cut keeps at
    /// least the sample's pixels: much faster for large photographs (JPEG, with the feature `turbo`), and not the same
    /// picture to the bit.
    Fast,
}

impl FromStr for Quality {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "exact" => Ok(Quality::Exact),
            "fast" => Ok(Quality::Fast),
            _ => Err(format!("'{text}' is no quality: use exact or fast")),
        }
    }
}

impl fmt::Display for Quality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Quality::Exact => "exact",
            Quality::Fast => "fast",
        })
    }
}

/// How pictures are decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// Default: [`Quality::Exact`].
    pub quality: Quality,
    /// Whether pictures are turned as their EXIF orientation says. Default: true.
    pub orient: bool,
    /// Whether a JPEG that is damaged or cut off counts as a picture of what there is. Default: false, it is a bad sample.
    pub accept_truncated: bool,
    /// The colour (red, green, blue) that shows where a picture is transparent. Default: black.
    pub background: [u8; 3],
}

impl Default for Options {
    fn default() -> Self {
        Options { quality: Quality::Exact, orient: true, accept_truncated: false, background: [0; 3] }
    }
}

/// Which part of a picture is decoded, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// In pixels of the stored picture, whatever the denominator.
    pub(crate) region: Region,
    /// 1, 2, 4 or 8.
    pub(crate) denominator: u32,
    /// Whether a damaged or cut file is decoded as far as it goes.
    pub(crate) accept_truncated: bool,
    /// What shows where the picture is transparent.
    pub(crate) background: [u8; 3],
}

/// Pixels on their way, or there.
pub(crate) enum Decoded<'m> {
    /// Rows of the cut, as they are asked for.
    #[cfg(feature = "turbo")]
    Rows(turbo::Rows<'m>),
    /// The whole picture at full size, and how often damage was met and passed over.
    Whole(ImageView<'m>, u32),
}

/// The largest of 1, 2, 4 and 8 by which this picture may be divided while `window` (width and height, stored pixels)
/// keeps at least `out` pixels.
pub(crate) fn denominator(header: &Header, quality: Quality, window: (f64, f64), out: (u32, u32)) -> u32 {
    #[cfg(feature = "turbo")]
    if quality == Quality::Fast && header.format == Format::Jpeg {
        return turbo::denominator_for(window.0, window.1, out.0, out.1);
    }
    let _ = (header, quality, window, out);
    1
}

/// Most bytes that [`cut`] needs at this denominator: `pixel_bytes` of the caller's memory, and `codec_bytes` that the
/// codec takes for itself. The region does not matter.
pub(crate) fn working_set_of_cut(header: &Header, denominator: u32) -> WorkingSet {
    #[cfg(feature = "turbo")]
    if header.format == Format::Jpeg {
        let pixel_bytes = turbo::arena_bytes(header, denominator);
        return WorkingSet { pixel_bytes, codec_bytes: header.facts.codec_bytes };
    }
    let _ = denominator;
    working_set(header)
}

/// Begins to decode the cut, in memory of `pixel_bytes` of its working set.
///
/// # Errors
/// As [`decode_onto`](super::decode_onto).
///
/// # Panics
/// Panics if the region is not inside the picture, or the denominator not one that [`denominator`] gave.
pub(crate) fn cut<'m>(
    encoded: &'m [u8],
    header: &Header,
    cut: &Cut,
    memory: &'m mut [u8],
) -> Result<Decoded<'m>, DecodeError> {
    #[cfg(feature = "turbo")]
    if header.format == Format::Jpeg {
        return turbo::start(encoded, header, cut, memory).map(Decoded::Rows);
    }
    let whole = whole_onto(encoded, header, memory, cut.accept_truncated, cut.background);
    whole.map(|(image, damage)| Decoded::Whole(image, damage))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qualities_parse_and_print() {
        for quality in [Quality::Exact, Quality::Fast] {
            assert_eq!(quality.to_string().parse(), Ok(quality));
        }
        assert_eq!("best".parse::<Quality>(), Err("'best' is no quality: use exact or fast".to_owned()));
    }
}
