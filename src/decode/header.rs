//! Image headers: formats, color types, limits, and what each format's parser finds out.

use std::fmt;

use super::jpeg::frame::Frame;

/// Image file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// JPEG: baseline and progressive, 8 bits; gray, `YCbCr`, RGB, CMYK, YCCK. With the feature `turbo`, also
    /// arithmetic coding.
    Jpeg,
    /// PNG. Of an APNG, the still image.
    Png,
    /// WebP, lossy and lossless. Of an animation, the first frame.
    WebP,
    /// GIF. Of an animation, the first frame.
    Gif,
    /// BMP.
    Bmp,
    /// TIFF, the first directory: gray, RGB, RGBA, CMYK; of 8, 16 and (floats) 32 bits.
    Tiff,
    /// PNM: PBM, PGM and PPM, text and binary, and PAM with up to four channels; up to 16 bits. Text has to end in
    /// white space: after a digit, further digits may be missing.
    Pnm,
    /// QOI.
    Qoi,
    /// TGA: color-mapped, true color and gray, run-length encoded or not. It has no magic number: a file of no other
    /// format is a TGA if all 18 bytes of its header agree.
    Tga,
}

impl Format {
    /// Lower-case name of the format.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Format::Jpeg => "jpeg",
            Format::Png => "png",
            Format::WebP => "webp",
            Format::Gif => "gif",
            Format::Bmp => "bmp",
            Format::Tiff => "tiff",
            Format::Pnm => "pnm",
            Format::Qoi => "qoi",
            Format::Tga => "tga",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Color type of the stored pixels, according to the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ColorType {
    /// Gray.
    Gray,
    /// Gray with alpha, or with a level that counts as transparent.
    GrayAlpha,
    /// Red, green and blue, also where they are stored as luma and chroma.
    Rgb,
    /// Red, green and blue with alpha, or with a color that counts as transparent.
    RgbAlpha,
    /// Indices into a palette, whose colors may be transparent.
    Palette,
    /// Cyan, magenta, yellow and black, also as YCCK.
    Cmyk,
}

impl ColorType {
    /// Lower-case name of the color type.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            ColorType::Gray => "gray",
            ColorType::GrayAlpha => "gray+alpha",
            ColorType::Rgb => "rgb",
            ColorType::RgbAlpha => "rgb+alpha",
            ColorType::Palette => "palette",
            ColorType::Cmyk => "cmyk",
        }
    }

    /// Color type with this number of channels, for formats without palettes and inks.
    pub(super) const fn of_channels(channels: u8) -> Self {
        match channels {
            1 => ColorType::Gray,
            2 => ColorType::GrayAlpha,
            4 => ColorType::RgbAlpha,
            _ => ColorType::Rgb,
        }
    }
}

impl fmt::Display for ColorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Largest image that is decoded. A larger one is refused at its header, before a pixel is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of pixels. Default: 2^27 (134 million; 384 MiB of RGB).
    pub pixels_max: u64,
    /// Maximum length of a side. Default: 65535.
    pub side_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { pixels_max: 1 << 27, side_max: 65_535 }
    }
}

/// Header of an image file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Header {
    /// Format, detected from the content and never from the file's name.
    pub format: Format,
    /// Stored columns.
    pub width: u32,
    /// Stored rows.
    pub height: u32,
    /// EXIF orientation, 1..=8; 1 where the file has none.
    pub orientation: u8,
    /// Color type of the stored pixels.
    pub color: ColorType,
    /// True for a progressive JPEG, which is decoded in several passes over all of it.
    pub progressive: bool,
    /// Bytes of a pixel as the codec writes it; an upper bound where the header leaves it open.
    pub(super) native_pixel_bytes: u8,
    /// Upper bound of what the codec allocates for itself.
    pub(super) codec_bytes: u64,
    /// Allocation limit passed to the codec, where it takes one; it counts by its own rules.
    pub(super) codec_limit_bytes: u64,
    /// Frame header of a JPEG.
    pub(super) jpeg: Option<Frame>,
}

impl Header {
    /// Header of an upright image whose codec allocates nothing.
    pub(super) fn new(format: Format, (width, height): (u32, u32), color: ColorType, native_pixel_bytes: u8) -> Self {
        Header {
            format,
            width,
            height,
            orientation: 1,
            color,
            progressive: false,
            native_pixel_bytes,
            codec_bytes: 0,
            codec_limit_bytes: 0,
            jpeg: None,
        }
    }

    /// Pixels of the stored image.
    pub(super) fn pixels(&self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }
}

/// Failure of a format's header parser. `probe` adds the format to it.
#[derive(Debug)]
pub(super) enum HeaderError {
    Truncated,
    Invalid(String),
    Unsupported(String),
}

impl HeaderError {
    pub(super) fn invalid(reason: impl Into<String>) -> Self {
        HeaderError::Invalid(reason.into())
    }
}
