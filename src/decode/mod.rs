//! Owns the way from encoded bytes to RGB pixels, in three steps: [`probe`] reads the header and allocates nothing
//! worth counting, [`working_set`] says what decoding will need, [`decode_into`] does it in memory that the caller has
//! reserved. It must never decode a pixel before its cost is known, and never take more than it said.
//!
//! A format is told by content, never by a file's name ([`Format::of`]): by its magic number, and TGA, which has none, by
//! a header that agrees with itself in all of its 18 bytes and is no other's.
//!
//! Whatever a file holds, what comes out is its first picture as RGB8:
//!
//! - Of an animation (GIF, WebP) the first frame, of an APNG the still picture, of a TIFF the first directory. What
//!   comes after is not looked at.
//! - Grey is repeated; palettes are looked up; fewer bits are spread to 8, more are rounded.
//! - What is transparent shows a background: black, or [`Options::background`]. Alpha is not premultiplied.
//! - CMYK is multiplied out. Colour profiles (ICC), gamma and chromaticities are ignored, as loaders in wide use do: the
//!   numbers are what the file stores.
//! - The EXIF orientation (JPEG, PNG, WebP, TIFF) is reported in the header, and a sample is cut from the turned picture
//!   ([`Options::orient`]); what [`decode_into`] gives is as stored.
//!
//! What a file says besides its picture costs nothing: PNG's text and profiles are never inflated. What bounds a
//! picture's own cost is checked before work begins: sides and pixels ([`Limits`]), segments and scans of a JPEG, the
//! length of a PNM header.
//!
//! ```
//! use feedstock::decode::{DecodeError, Limits, Slab, decode_into, probe, working_set};
//!
//! # fn main() -> Result<(), DecodeError> {
//! let encoded = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\xff\x80\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\
//!                 \x02\x02D\x01\x00;";
//! let header = probe(encoded, &Limits::default())?;
//! assert_eq!((header.width, header.height), (1, 1));
//! let needed = working_set(&header); // reserve this, then:
//! let mut slab = Slab::new();
//! let image = decode_into(encoded, &header, &mut slab)?;
//! assert_eq!(image.data(), [255, 128, 0]);
//! assert!(slab.capacity_bytes() as u64 <= needed.pixel_bytes);
//! # Ok(())
//! # }
//! ```

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::tensor::{CHANNELS, ImageView};

mod bmp;
mod bytes;
mod convert;
mod cut;
mod error;
mod gif;
mod ifd;
mod jpeg;
mod png;
mod pnm;
mod qoi;
mod raster;
mod slab;
mod tga;
mod tiff;
#[cfg(feature = "turbo")]
pub(crate) mod turbo;
mod webp;
#[cfg(not(feature = "turbo"))]
mod zune;

pub(crate) use cut::{Cut, Decoded, cut, denominator, working_set_of_cut};
pub use cut::{Options, Quality};
pub use error::DecodeError;
pub use slab::Slab;

/// Kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// JPEG: baseline and progressive, 8 bits; grey, `YCbCr`, RGB, CMYK, YCCK. Arithmetic coding, too, with the feature
    /// `turbo`.
    Jpeg,
    /// PNG; of an animation, its still picture.
    Png,
    /// WebP, lossy and lossless; of an animation, the first frame.
    WebP,
    /// GIF; of an animation, the first frame.
    Gif,
    /// BMP.
    Bmp,
    /// TIFF, the first directory: grey, RGB, RGBA, CMYK; of 8, 16 and (floats) 32 bits.
    Tiff,
    /// PNM: PBM, PGM and PPM, as text and binary, and PAM of up to four channels; up to 16 bits. Text has to end in white
    /// space: after a digit, others may be missing.
    Pnm,
    /// QOI.
    Qoi,
    /// TGA: colour-mapped, true colour and grey, run-length encoded or not. It has no magic number: what is of no other
    /// kind is one if all of its header's 18 bytes agree.
    Tga,
}

impl Format {
    /// Tells a format by a file's first bytes; 18 are enough.
    #[must_use]
    pub fn of(encoded: &[u8]) -> Option<Self> {
        match encoded {
            [0xFF, 0xD8, 0xFF, ..] => Some(Format::Jpeg),
            [0x89, b'P', b'N', b'G', 0x0D, 0x0A, 0x1A, 0x0A, ..] => Some(Format::Png),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Format::WebP),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(Format::Gif),
            [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Some(Format::Tiff),
            [b'B', b'M', ..] => Some(Format::Bmp),
            [b'q', b'o', b'i', b'f', ..] => Some(Format::Qoi),
            _ if pnm::is_header(encoded) => Some(Format::Pnm),
            _ if tga::is_header(encoded) => Some(Format::Tga),
            _ => None,
        }
    }

    /// The name that people write.
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

/// What the pixels of a file are, as its header tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Colour {
    /// Grey.
    Grey,
    /// Grey with alpha, or with a level that counts as transparent.
    GreyAlpha,
    /// Red, green and blue, also where they are stored as luma and chroma.
    Rgb,
    /// As `Rgb`, with alpha or with a colour that counts as transparent.
    RgbAlpha,
    /// Places in a palette, whose colours may be transparent.
    Palette,
    /// Cyan, magenta, yellow and black, also as YCCK.
    Cmyk,
}

impl Colour {
    /// The name that people write.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Colour::Grey => "grey",
            Colour::GreyAlpha => "grey+alpha",
            Colour::Rgb => "rgb",
            Colour::RgbAlpha => "rgb+alpha",
            Colour::Palette => "palette",
            Colour::Cmyk => "cmyk",
        }
    }

    /// Of so many channels, as formats without palettes and inks have them.
    const fn of_channels(channels: u8) -> Self {
        match channels {
            1 => Colour::Grey,
            2 => Colour::GreyAlpha,
            4 => Colour::RgbAlpha,
            _ => Colour::Rgb,
        }
    }
}

impl fmt::Display for Colour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a picture may be like. What goes beyond is refused at its header, before a pixel is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most pixels of one picture. Default: 2^27 (134 million; 384 MiB of RGB).
    pub pixels_max: u64,
    /// Longest side. Default: 65535.
    pub side_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { pixels_max: 1 << 27, side_max: 65_535 }
    }
}

/// What an image's header says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Header {
    /// Told by content, never by the file's name.
    pub format: Format,
    /// Columns, as stored.
    pub width: u32,
    /// Rows, as stored.
    pub height: u32,
    /// EXIF orientation, 1..=8; 1 where there is none.
    pub orientation: u8,
    /// What its pixels are.
    pub colour: Colour,
    /// Whether it is a progressive JPEG, which is decoded in several passes over all of it.
    pub progressive: bool,
    facts: Facts,
}

/// What a format's parser found, and what it knows of its codec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Facts {
    width: u32,
    height: u32,
    orientation: u8,
    colour: Colour,
    /// Bytes of a pixel as the codec writes it; an upper bound where the header leaves it open.
    native_pixel_bytes: u8,
    /// Upper bound of what the codec allocates for itself.
    codec_bytes: u64,
    /// What the codec is told to stay under, where it can be told; it counts by its own rules.
    codec_limit_bytes: u64,
    /// Where the picture's data begins.
    data_at: usize,
    /// More of a JPEG's header.
    jpeg: Option<jpeg::Frame>,
}

/// What a format's parser found wrong.
#[derive(Debug)]
enum Flaw {
    Truncated,
    Bad(String),
    Unsupported(String),
}

impl Flaw {
    fn bad(cause: impl Into<String>) -> Self {
        Flaw::Bad(cause.into())
    }
}

/// Most bytes that decoding one image needs at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkingSet {
    /// In the caller's slab: the decoded pixels, before and after conversion to RGB, and behind them the memory of a
    /// codec that takes none of its own (libjpeg-turbo).
    pub pixel_bytes: u64,
    /// Inside the codec: upper bound of what it allocates for itself.
    pub codec_bytes: u64,
}

/// Reads the header of an encoded image: its kind, its size and what decoding it will take.
///
/// It allocates nothing (errors aside) and takes time in proportion to the number of header segments.
///
/// # Errors
/// [`DecodeError::Empty`] and [`DecodeError::UnknownFormat`] for what is no image;
/// [`DecodeError::HeaderTruncated`], [`DecodeError::BadHeader`], [`DecodeError::NoPixels`] and
/// [`DecodeError::Unsupported`] for a header that leads nowhere; [`DecodeError::TooLarge`] for a picture beyond `limits`.
pub fn probe(encoded: &[u8], limits: &Limits) -> Result<Header, DecodeError> {
    if encoded.is_empty() {
        return Err(DecodeError::Empty);
    }
    let format = Format::of(encoded).ok_or_else(|| DecodeError::unknown(encoded))?;
    let facts = match format {
        Format::Jpeg => jpeg::probe(encoded),
        Format::Png => png::probe(encoded),
        Format::WebP => webp::probe(encoded),
        Format::Gif => gif::probe(encoded),
        Format::Bmp => bmp::probe(encoded),
        Format::Tiff => tiff::probe(encoded),
        Format::Pnm => pnm::probe(encoded),
        Format::Qoi => qoi::probe(encoded),
        Format::Tga => tga::probe(encoded),
    }
    .map_err(|flaw| match flaw {
        Flaw::Truncated => DecodeError::HeaderTruncated { format, encoded_bytes: encoded.len() },
        Flaw::Bad(cause) => DecodeError::BadHeader { format, cause },
        Flaw::Unsupported(feature) => DecodeError::Unsupported { format, feature },
    })?;
    let Facts { width, height, orientation, colour, .. } = facts;
    if width == 0 || height == 0 {
        return Err(DecodeError::NoPixels { format, width, height });
    }
    let Limits { pixels_max, side_max } = *limits;
    if width.max(height) > side_max || u64::from(width) * u64::from(height) > pixels_max {
        return Err(DecodeError::TooLarge { format, width, height, pixels_max, side_max });
    }
    // A GIF's frame may be larger than its screen: the codec unpacks all of it, however little is seen. It is told to stay
    // under four bytes for each of the frame's pixels.
    let frame_pixels = if format == Format::Gif { facts.codec_limit_bytes / 4 } else { 0 };
    if frame_pixels > pixels_max {
        let cause = format!("a frame of {frame_pixels} pixels for a screen of {width}x{height}, above {pixels_max}");
        return Err(DecodeError::BadHeader { format, cause });
    }
    let progressive = facts.jpeg.is_some_and(|frame| frame.progressive);
    Ok(Header { format, width, height, orientation, colour, progressive, facts })
}

/// Most bytes that [`decode_into`] will need for the image with this header.
#[must_use]
pub fn working_set(header: &Header) -> WorkingSet {
    let pixels = u64::from(header.width) * u64::from(header.height);
    let pixel_bytes = pixels.saturating_mul(u64::from(header.facts.native_pixel_bytes).max(CHANNELS as u64));
    #[cfg(feature = "turbo")]
    let pixel_bytes = pixel_bytes.saturating_add(turbo::arena_bytes(header, 1));
    WorkingSet { pixel_bytes, codec_bytes: header.facts.codec_bytes }
}

/// Decodes an image to RGB8 into `slab`, which takes `pixel_bytes` of the [`working_set`]; the codec takes at most
/// `codec_bytes` more, and gives them back before this returns.
///
/// # Errors
/// [`DecodeError::Incomplete`] for a file that was cut off, [`DecodeError::Codec`] for damaged data (as far as the
/// format lets damage show) and for a file that is not the one whose header this is, [`DecodeError::Unsupported`],
/// [`DecodeError::OutOfMemory`]. A codec that panics is a [`DecodeError::Codec`], too (where panics unwind; the panic
/// hook runs all the same).
pub fn decode_into<'s>(encoded: &[u8], header: &Header, slab: &'s mut Slab) -> Result<ImageView<'s>, DecodeError> {
    let needed = working_set(header).pixel_bytes;
    let out_of_memory = |_| DecodeError::OutOfMemory { bytes: needed };
    let pixels = slab.prepare(usize::try_from(needed).map_err(out_of_memory)?)?;
    decode_onto(encoded, header, pixels)
}

/// As [`decode_into`], onto memory of the caller's own: `pixels` has room for the `pixel_bytes` of the
/// [`working_set`], and what is beyond them stays as it was.
///
/// # Errors
/// As [`decode_into`]; [`DecodeError::OutOfMemory`] where `pixels` is too small.
pub fn decode_onto<'p>(encoded: &[u8], header: &Header, pixels: &'p mut [u8]) -> Result<ImageView<'p>, DecodeError> {
    whole_onto(encoded, header, pixels, false, [0; 3]).map(|(image, _)| image)
}

/// As [`decode_onto`]; a damaged or cut JPEG is a picture of what there is where that is asked for, and how often damage
/// was passed over comes with it; what is transparent shows the background.
fn whole_onto<'p>(
    encoded: &[u8],
    header: &Header,
    pixels: &'p mut [u8],
    accept_truncated: bool,
    background: [u8; 3],
) -> Result<(ImageView<'p>, u32), DecodeError> {
    let needed = working_set(header).pixel_bytes;
    let room = usize::try_from(needed).ok().and_then(|needed| pixels.get_mut(..needed));
    let Some(pixels) = room else { return Err(DecodeError::OutOfMemory { bytes: needed }) };
    let rgb_bytes = header.width as usize * header.height as usize * CHANNELS;
    let codec = AssertUnwindSafe(|| match header.format {
        #[cfg(feature = "turbo")]
        Format::Jpeg => {
            let (pixels, arena) = pixels.split_at_mut(rgb_bytes);
            turbo::decode(encoded, header, accept_truncated, pixels, arena)
        }
        #[cfg(not(feature = "turbo"))]
        Format::Jpeg => zune::decode(encoded, header, accept_truncated, pixels),
        _ => raster::decode(encoded, header, background, pixels).map(|()| 0),
    });
    // Codecs have been seen to panic on damaged data. What they leave behind is bytes in the slab, which nobody reads.
    let damage = match catch_unwind(codec) {
        Ok(outcome) => outcome?,
        Err(panic) => return Err(DecodeError::codec(header.format, panicked(panic.as_ref()))),
    };
    Ok((ImageView::new(&pixels[..rgb_bytes], header.width, header.height), damage))
}

fn panicked(panic: &(dyn Any + Send)) -> String {
    let message = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the codec panicked: {}", message.unwrap_or("without a word"))
}
