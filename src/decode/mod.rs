//! Decoding of images to RGB8, in memory that the caller has reserved.
//!
//! It takes three steps: [`probe()`] reads the header, [`working_set`] computes an upper bound of the memory that
//! decoding takes, and [`begin`] decodes a crop row by row within it.
//!
//! The format is detected from the content, never from a file's name ([`Format::of`]): by its magic number, and TGA,
//! which has none, by a header that is consistent in all of its 18 bytes and of no other format.
//!
//! The result is always the first image of the file as RGB8:
//!
//! - Of an animation (GIF, WebP) the first frame, of an APNG the still image, of a TIFF the first directory.
//! - Gray is repeated over the channels; palettes are looked up; fewer bits are spread to 8, more are rounded.
//! - Transparent pixels show a background: black, or [`Options::background`]. Alpha is not premultiplied.
//! - CMYK is multiplied out. Color profiles (ICC), gamma and chromaticities are ignored, as most loaders do.
//! - Rows are as stored. The EXIF orientation (JPEG, PNG, WebP, TIFF) is in the header, and the loader applies it to
//!   samples ([`Options::apply_exif_orientation`]).
//!
//! Metadata costs nothing: PNG's text and profiles are never inflated. The cost of an image is checked before work
//! begins: sides and pixels ([`Limits`]), segments and scans of a JPEG, the length of a PNM header.
//!
//! ```
//! use feedstock::decode::{DecodeError, DecodeRequest, Limits, begin, probe, working_set};
//!
//! # fn main() -> Result<(), DecodeError> {
//! let encoded = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\xff\x80\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\
//!                 \x02\x02D\x01\x00;";
//! let header = probe(encoded, &Limits::default())?;
//! assert_eq!((header.width, header.height), (1, 1));
//! let mut buffer = working_set(&header, 1).allocate()?;
//! let mut decoder = begin(encoded, &header, &DecodeRequest::whole(&header), &mut buffer)?;
//! let mut row = vec![0; decoder.row_pixels() as usize * 3];
//! while decoder.next_row(&mut row)? {
//!     assert_eq!(row, [255, 128, 0]);
//! }
//! # Ok(())
//! # }
//! ```

mod bmp;
mod bytes;
mod convert;
mod decoder;
mod error;
mod gif;
mod header;
mod ifd;
mod image_rs;
mod jpeg;
mod png;
mod pnm;
mod probe;
mod qoi;
mod request;
mod tga;
mod tiff;
mod webp;

pub(crate) use decoder::denominator;
pub use decoder::{Decoder, WorkingSet, begin, working_set};
pub use error::DecodeError;
pub use header::{ColorType, Format, Header, Limits};
pub use probe::probe;
pub use request::{DecodeRequest, Options, Quality};
