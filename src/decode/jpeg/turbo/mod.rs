//! Pixels of JPEG, through libjpeg-turbo: rows of RGB of a crop, at full size or a half, quarter or eighth of it.
//!
//! [`arena_bytes`] computes from the header how large an arena an image needs; [`start`] decodes up to the crop's first
//! row; [`Rows::next_row`] writes one row after the other into the caller's memory. Rows above the crop are decoded
//! only as far as necessary, columns beside it are not transformed, and bytes after its last row are not read: damage
//! there is not found, apart from a missing end marker.
//!
//! # Pixels
//! At scale 1 a crop holds exactly the pixels that the whole image has there. At 1/d the image has `ceil(width / d)` x
//! `ceil(height / d)` pixels, and its pixel (i, j) stands for the d x d pixels from (d i, d j) on. The rows are those
//! that touch the crop (`DecodeRequest::scaled_crop`): from `floor(x / d)` to before `ceil((x + width) / d)`. The point
//! x of the stored image lies at x / d in the scaled one, as in `Geometry::scaled`.
//!
//! # Damage
//! The library repairs what it can and warns. Here the first warning is an error, unless `accept_truncated` is set. Two
//! warnings do not count as damage: an unknown number in an Adobe or JFIF marker, and stray bytes between the segments
//! of the header.

mod bound;
#[cfg(test)]
mod fixtures;
mod shim;
#[cfg(test)]
mod tests;

use shim::{Abort, Image, Params};

use super::frame::Frame;
use super::markers::{SCANS_MAX, check_scans, has_end};
use crate::decode::error::DecodeError;
use crate::decode::header::{Format, Header};
use crate::decode::request::DecodeRequest;

/// True if arithmetic coding is decoded.
pub(super) const ARITHMETIC: bool = true;

/// Columns beside the crop that the library needs: the pixels at an edge are made from those next to them.
const MARGIN: u32 = 1;

/// Minimum number of columns. Below, the library may enlarge color in another way.
const COLUMNS_MIN: u32 = 8;

/// Minimum length of a file for our own tables of its Huffman codes; shorter ones are decoded before the tables pay
/// off. A fuzzer's files are short.
const OWN_CODES_BYTES_MIN: usize = if cfg!(fuzzing) { 0 } else { 16 << 10 };

/// The text of an error, the only allocation.
const TEXT_BYTES: u64 = 512;

/// Memory besides the arena.
pub(super) fn codec_bytes(_frame: &Frame) -> u64 {
    TEXT_BYTES
}

/// Upper bound of the memory for an image with this header at 1/`denominator`, whatever the crop; 0 for other formats.
/// For a file with one scan it does not depend on the image's height.
pub(in crate::decode) fn arena_bytes(header: &Header, denominator: u32) -> u64 {
    header.jpeg.map_or(0, |frame| bound::arena_bytes(&frame, denominator))
}

/// Rows that are decoded as they are asked for.
#[derive(Debug)]
pub(in crate::decode) struct Rows<'a> {
    image: Image<'a>,
    encoded_bytes: usize,
    width: u32,
    left: u32,
    remaining: u32,
}

/// Begins to decode: the header again, and everything above the first row of the crop. `arena` has room for
/// [`arena_bytes`]; its contents do not matter.
pub(in crate::decode) fn start<'a>(
    encoded: &'a [u8],
    header: &Header,
    request: &DecodeRequest,
    arena: &'a mut [u8],
) -> Result<Rows<'a>, DecodeError> {
    start_with(encoded, header, request, arena, encoded.len() >= OWN_CODES_BYTES_MIN)
}

/// Begins as [`start`] does, with Huffman codes read by us or by the library, which differ in speed only.
fn start_with<'a>(
    encoded: &'a [u8],
    header: &Header,
    request: &DecodeRequest,
    arena: &'a mut [u8],
    own_codes: bool,
) -> Result<Rows<'a>, DecodeError> {
    let Header { width, height, .. } = *header;
    let encoded_bytes = encoded.len();
    let Some(frame) = &header.jpeg else { return Err(error(Abort::HeaderMismatch, encoded_bytes)) };
    check_scans(encoded, frame)?;
    if !request.accept_truncated && !has_end(encoded, frame) {
        return Err(error(Abort::Truncated, encoded_bytes));
    }
    let crop = request.scaled_crop();
    let scaled_width = width.div_ceil(request.denominator);
    let x = crop.x.saturating_sub(MARGIN).min(scaled_width.saturating_sub(COLUMNS_MIN));
    let end = (crop.x + crop.width + MARGIN).max(x + COLUMNS_MIN).min(scaled_width);
    let params = Params {
        width,
        height,
        component_count: frame.components().len() as u32,
        denominator: request.denominator,
        x,
        columns: end - x,
        y: crop.y,
        scans_max: SCANS_MAX,
        accept_truncated: request.accept_truncated.into(),
        own_codes: own_codes.into(),
    };
    let begun = Image::start(encoded, &params, arena).map_err(|abort| error(abort, encoded_bytes))?;
    let (image, first_column, width) = begun;
    Ok(Rows { image, encoded_bytes, width, left: crop.x - first_column, remaining: crop.height })
}

impl Rows<'_> {
    /// Pixels of each row, those beside the crop included.
    pub(in crate::decode) fn width(&self) -> u32 {
        self.width
    }

    /// Pixel of a row at which the crop begins.
    pub(in crate::decode) fn left(&self) -> u32 {
        self.left
    }

    /// Number of damages that were passed over so far.
    pub(in crate::decode) fn warnings(&self) -> u32 {
        self.image.warnings()
    }

    /// Writes the next row, `width() * 3` bytes of RGB. Returns false after the last. After an error, each further row
    /// is the same error.
    pub(in crate::decode) fn next_row(&mut self, row: &mut [u8]) -> Result<bool, DecodeError> {
        if self.remaining == 0 {
            return Ok(false);
        }
        self.image.read_row(row).map_err(|abort| error(abort, self.encoded_bytes))?;
        self.remaining -= 1;
        Ok(true)
    }
}

fn error(abort: Abort, encoded_bytes: usize) -> DecodeError {
    let format = Format::Jpeg;
    match abort {
        Abort::Truncated => DecodeError::Truncated { format, encoded_bytes },
        Abort::Damaged(reason) => DecodeError::Damaged { format, reason },
        Abort::TooManyScans => DecodeError::Unsupported { format, feature: format!("more than {SCANS_MAX} scans") },
        // The arena was as large as this header asks for.
        Abort::OutOfMemory | Abort::HeaderMismatch => DecodeError::HeaderMismatch { format },
    }
}
