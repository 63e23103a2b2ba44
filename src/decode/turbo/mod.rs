//! Owns the pixels of JPEG, through libjpeg-turbo: rows of RGB, of a region, at full size or a half, quarter or eighth
//! of it. It must never take memory but the arena that it is given, and never pass off a damaged file as a picture.
//!
//! [`arena_bytes`] says from the header how large an arena a picture needs; [`start`] decodes up to the region's first
//! row; [`Rows::next_into`] writes one row after the other into the caller's memory. Rows above the region are decoded
//! no further than has to be, columns beside it are not transformed, and what comes after its last row is not looked
//! at: damage there goes unseen, but for a missing end marker.
//!
//! # Which pixels come out
//! At scale 1 a region holds exactly the pixels that the whole picture has there. At 1/d the picture has
//! `ceil(width / d)` x `ceil(height / d)` pixels, and its pixel (i, j) stands for the d x d pixels from (d i, d j) on.
//! Of it come those that touch the region, [`Cut::scaled`]: from `floor(x / d)` to before `ceil((x + width) / d)`. The
//! point x of the stored picture lies at x / d in the scaled one, as `Geometry::scaled` has it.
//!
//! # Damage
//! The library repairs what it can and warns. Here the first warning is an error, unless
//! [`accept_truncated`](Cut::accept_truncated) asks for what there is. Two warnings are not taken for damage: an unknown
//! number in an Adobe or JFIF marker, and stray bytes between the segments of the header.

use super::jpeg::{Frame, SCANS_MAX, check_scans, has_end};
use super::{Cut, DecodeError, Format, Header};
use crate::tensor::{CHANNELS, Region};

mod bound;
#[cfg(test)]
mod sample;
mod shim;
#[cfg(test)]
mod speed;
#[cfg(test)]
mod tests;

use shim::{Ask, Picture, Stop};

/// Whether arithmetic coding is decoded.
pub(super) const ARITHMETIC: bool = true;

/// What libjpeg's edges do not reach: pixels are made from those next to them.
const MARGIN: u32 = 1;

/// Below so many columns the library may enlarge colour in another way.
const COLUMNS_MIN: u32 = 8;

/// Files of fewer bytes are over before tables of our own for their Huffman codes have paid. A fuzzer's are small.
const OWN_CODES_BYTES_MIN: usize = if cfg!(fuzzing) { 0 } else { 16 << 10 };

/// The text of an error, which is all that is allocated.
const TEXT_BYTES: u64 = 512;

/// What is allocated besides the arena.
pub(super) fn codec_bytes(_frame: &Frame, _metadata_bytes: u64) -> u64 {
    TEXT_BYTES
}

/// An upper bound of the memory that a picture with this header needs at 1/`denominator` of its size, whatever the
/// region; 0 for what is no JPEG. For a file with one scan it does not depend on the picture's height.
pub(crate) fn arena_bytes(header: &Header, denominator: u32) -> u64 {
    check(denominator);
    header.facts.jpeg.map_or(0, |frame| bound::arena_bytes(&frame, denominator))
}

/// The largest denominator at which `width` x `height` pixels of the stored picture are still as many as `out_width` x
/// `out_height`, so that a resampler goes down from there and never up.
pub(crate) fn denominator_for(width: f64, height: f64, out_width: u32, out_height: u32) -> u32 {
    let keeps =
        |d: &u32| width / f64::from(*d) >= f64::from(out_width) && height / f64::from(*d) >= f64::from(out_height);
    [8, 4, 2].into_iter().find(keeps).unwrap_or(1)
}

impl Cut {
    /// The whole picture at full size.
    pub(crate) fn whole(header: &Header) -> Self {
        let region = Region::whole(header.width, header.height);
        Cut { region, denominator: 1, accept_truncated: false, background: [0; 3] }
    }

    /// What of the scaled picture touches the region, in its pixels.
    pub(crate) fn scaled(&self) -> Region {
        let Region { x, y, width, height } = self.region;
        let d = self.denominator;
        let (left, top) = (x / d, y / d);
        Region { x: left, y: top, width: (x + width).div_ceil(d) - left, height: (y + height).div_ceil(d) - top }
    }
}

/// Rows that are decoded as they are asked for. Dropping it leaves the rest undecoded.
#[derive(Debug)]
pub(crate) struct Rows<'a> {
    picture: Picture<'a>,
    encoded_bytes: usize,
    width: u32,
    left: u32,
    #[cfg(test)]
    height: u32,
    /// Rows to come.
    remaining: u32,
}

/// Begins to decode: the header again, and everything above the first row of the region. `arena` has room for
/// [`arena_bytes`]; what it holds does not matter.
///
/// # Errors
/// [`DecodeError::OutOfMemory`] where the arena is too small, and those of [`decode_into`](super::decode_into).
///
/// # Panics
/// Panics if the region is not inside the picture, or the denominator is not 1, 2, 4 or 8.
pub(crate) fn start<'a>(
    encoded: &'a [u8],
    header: &Header,
    cut: &Cut,
    arena: &'a mut [u8],
) -> Result<Rows<'a>, DecodeError> {
    start_with(encoded, header, cut, arena, encoded.len() >= OWN_CODES_BYTES_MIN)
}

/// The same, with Huffman codes read by us or by the library. It makes no difference but in speed.
fn start_with<'a>(
    encoded: &'a [u8],
    header: &Header,
    cut: &Cut,
    arena: &'a mut [u8],
    own_codes: bool,
) -> Result<Rows<'a>, DecodeError> {
    let Header { width, height, .. } = *header;
    assert!(cut.region.fits(width, height), "{:?} is not inside {width}x{height}", cut.region);
    let needed = arena_bytes(header, cut.denominator);
    let Some(frame) = &header.facts.jpeg else { return Err(failed(Stop::OtherPicture, encoded.len())) };
    check_scans(encoded, frame, header.facts.data_at)?;
    if !cut.accept_truncated && !has_end(encoded, header.facts.data_at) {
        return Err(failed(Stop::EndsEarly, encoded.len()));
    }
    if (arena.len() as u64) < needed {
        return Err(DecodeError::OutOfMemory { bytes: needed });
    }
    let scaled = cut.scaled();
    let scaled_width = width.div_ceil(cut.denominator);
    let x = scaled.x.saturating_sub(MARGIN).min(scaled_width.saturating_sub(COLUMNS_MIN));
    let end = (scaled.x + scaled.width + MARGIN).max(x + COLUMNS_MIN).min(scaled_width);
    let ask = Ask {
        width,
        height,
        component_count: frame.components().len() as u32,
        denominator: cut.denominator,
        x,
        columns: end - x,
        y: scaled.y,
        scans_max: SCANS_MAX,
        accept_truncated: cut.accept_truncated.into(),
        own_codes: own_codes.into(),
    };
    let begun = Picture::start(encoded, &ask, arena).map_err(|stop| failed(stop, encoded.len()))?;
    let (picture, first_column, columns) = begun;
    Ok(Rows {
        picture,
        encoded_bytes: encoded.len(),
        width: columns,
        left: scaled.x - first_column,
        #[cfg(test)]
        height: scaled.height,
        remaining: scaled.height,
    })
}

impl Rows<'_> {
    /// Pixels of each row, those beside the region included.
    pub(crate) fn width(&self) -> u32 {
        self.width
    }

    /// In which pixel of a row the region begins; it is [`Cut::scaled`] pixels wide.
    pub(crate) fn left(&self) -> u32 {
        self.left
    }

    /// Rows in all.
    #[cfg(test)]
    pub(crate) fn height(&self) -> u32 {
        self.height
    }

    /// How often damage was met so far, and passed over.
    pub(crate) fn warnings(&self) -> u32 {
        self.picture.warnings()
    }

    /// Writes the next row, `width() * 3` bytes of RGB; `false` after the last.
    ///
    /// # Errors
    /// As [`start`]; after an error, each further row is the same error.
    ///
    /// # Panics
    /// Panics if `row` has another length.
    pub(crate) fn next_into(&mut self, row: &mut [u8]) -> Result<bool, DecodeError> {
        assert_eq!(row.len(), self.width as usize * CHANNELS, "a row of {} pixels", self.width);
        if self.remaining == 0 {
            return Ok(false);
        }
        self.read(row)?;
        self.remaining -= 1;
        Ok(true)
    }

    /// Writes all rows that are left, one after the other: the same as one by one, with less ado for each.
    ///
    /// # Errors
    /// As [`next_into`](Rows::next_into).
    ///
    /// # Panics
    /// Panics if `rows` has another length.
    pub(crate) fn rest_into(&mut self, rows: &mut [u8]) -> Result<(), DecodeError> {
        let bytes = self.width as usize * self.remaining as usize * CHANNELS;
        assert_eq!(rows.len(), bytes, "{} rows of {} pixels", self.remaining, self.width);
        self.read(rows)?;
        self.remaining = 0;
        Ok(())
    }

    fn read(&mut self, rows: &mut [u8]) -> Result<(), DecodeError> {
        self.picture.read(rows).map_err(|stop| failed(stop, self.encoded_bytes))
    }
}

/// Decodes the whole picture into `pixels`, which is exactly `width * height * 3` bytes long. Returns how often damage
/// was met and passed over.
pub(super) fn decode(
    encoded: &[u8],
    header: &Header,
    accept_truncated: bool,
    pixels: &mut [u8],
    arena: &mut [u8],
) -> Result<u32, DecodeError> {
    let cut = Cut { accept_truncated, ..Cut::whole(header) };
    let mut rows = start(encoded, header, &cut, arena)?;
    rows.rest_into(pixels)?;
    Ok(rows.warnings())
}

fn failed(stop: Stop, encoded_bytes: usize) -> DecodeError {
    let format = Format::Jpeg;
    match stop {
        Stop::EndsEarly => DecodeError::Incomplete { format, encoded_bytes },
        Stop::Damaged(text) => DecodeError::codec(format, format_args!("damaged data: {text}")),
        Stop::TooManyScans => DecodeError::Unsupported { format, feature: format!("more than {SCANS_MAX} scans") },
        // The arena was as large as this header asks for.
        Stop::NoRoom | Stop::OtherPicture => {
            DecodeError::codec(format, "the bytes are not those whose header was read")
        }
    }
}

fn check(denominator: u32) {
    assert!(matches!(denominator, 1 | 2 | 4 | 8), "a picture is decoded at 1/1, 1/2, 1/4 or 1/8, not 1/{denominator}");
}
