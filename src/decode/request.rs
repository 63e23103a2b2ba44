//! Options of decoding, and the request for one image.

use std::fmt;
use std::str::FromStr;

use super::header::Header;
use crate::tensor::Region;
use crate::units::ParseError;

/// Fidelity of a decoded image to the stored one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Quality {
    /// Every sample is the one that decoding at full size, cropping and resampling gives.
    #[default]
    Exact,
    /// Images that are shrunk to half or less are decoded at 1/2, 1/4 or 1/8 of their size, as long as the crop keeps
    /// at least the sample's pixels. Much faster for large photos (JPEG, with the feature `turbo`), and not bit-exact.
    Fast,
}

impl FromStr for Quality {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text {
            "exact" => Ok(Quality::Exact),
            "fast" => Ok(Quality::Fast),
            _ => Err(ParseError::unknown("quality", text, "exact or fast")),
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

/// Options of decoding.
///
/// ```
/// use feedstock::decode::{Options, Quality};
/// let mut options = Options::default();
/// options.quality = Quality::Fast;
/// options.background = [255; 3];
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// Fidelity of the decoded image. Default: [`Quality::Exact`].
    pub quality: Quality,
    /// Enables turning images as their EXIF orientation says. Default: true.
    pub apply_exif_orientation: bool,
    /// Enables decoding a damaged or truncated JPEG as far as it goes. Default: false, such a file is a bad sample.
    pub accept_truncated: bool,
    /// Color (red, green, blue) under transparent pixels. Default: black.
    pub background: [u8; 3],
}

impl Default for Options {
    fn default() -> Self {
        Options { quality: Quality::Exact, apply_exif_orientation: true, accept_truncated: false, background: [0; 3] }
    }
}

/// Part of an image to decode, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DecodeRequest {
    /// Crop, in pixels of the stored image at full size.
    pub crop: Region,
    /// Scale denominator: 1, 2, 4 or 8. Other values than 1 are for JPEG with the feature `turbo`.
    pub denominator: u32,
    /// Enables decoding a damaged or truncated JPEG as far as it goes.
    pub accept_truncated: bool,
    /// Color under transparent pixels.
    pub background: [u8; 3],
}

impl DecodeRequest {
    /// Request for the whole image at full size, on black; damage is an error.
    #[must_use]
    pub fn whole(header: &Header) -> Self {
        let crop = Region::whole(header.width, header.height);
        DecodeRequest { crop, denominator: 1, accept_truncated: false, background: [0; 3] }
    }

    /// Pixels of the scaled image that the crop touches.
    #[cfg(feature = "turbo")]
    pub(super) fn scaled_crop(&self) -> Region {
        let Region { x, y, width, height } = self.crop;
        let d = self.denominator;
        let (left, top) = (x / d, y / d);
        Region { x: left, y: top, width: (x + width).div_ceil(d) - left, height: (y + height).div_ceil(d) - top }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qualities_parse_and_print() {
        for quality in [Quality::Exact, Quality::Fast] {
            assert_eq!(quality.to_string().parse(), Ok(quality));
        }
        let error = "best".parse::<Quality>().expect_err("not a quality").to_string();
        assert_eq!(error, "unknown quality 'best': expected exact or fast");
    }

    #[cfg(feature = "turbo")]
    #[test]
    fn a_scaled_crop_covers_the_pixels_it_touches() {
        let crop = Region { x: 13, y: 8, width: 20, height: 9 };
        let request = DecodeRequest { crop, denominator: 4, accept_truncated: false, background: [0; 3] };
        assert_eq!(request.scaled_crop(), Region { x: 3, y: 2, width: 6, height: 3 });
        let request = DecodeRequest { denominator: 1, ..request };
        assert_eq!(request.scaled_crop(), request.crop);
    }
}
