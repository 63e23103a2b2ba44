//! The decoder: rows of a crop as RGB8, in memory that the caller has reserved.
//!
//! With the feature `turbo`, rows of a JPEG are decoded as they are asked for. The other codecs write the whole image
//! into the caller's buffer first.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::slice::ChunksExact;

use super::error::DecodeError;
use super::header::{Format, Header};
use super::image_rs;
#[cfg(feature = "turbo")]
use super::jpeg::turbo;
#[cfg(not(feature = "turbo"))]
use super::jpeg::zune;
use super::request::{DecodeRequest, Quality};
use crate::sync::panic_message;
use crate::tensor::CHANNELS;

/// Upper bound of the memory for decoding one image, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkingSet {
    /// Memory that the caller provides: libjpeg-turbo's own, or the decoded pixels before and after their conversion to
    /// RGB.
    pub buffer_bytes: u64,
    /// Memory that the codec allocates for itself.
    pub codec_bytes: u64,
}

impl WorkingSet {
    /// Allocates a zeroed buffer of `buffer_bytes`.
    ///
    /// # Errors
    /// [`DecodeError::OutOfMemory`] if the allocator refuses.
    pub fn allocate(&self) -> Result<Vec<u8>, DecodeError> {
        let bytes = self.buffer_bytes;
        let mut buffer = Vec::new();
        let reserved = usize::try_from(bytes).ok().and_then(|bytes| buffer.try_reserve_exact(bytes).ok());
        reserved.ok_or(DecodeError::OutOfMemory { bytes })?;
        buffer.resize(bytes as usize, 0);
        Ok(buffer)
    }
}

/// Upper bound of the memory that [`begin`] and its decoder take at this scale denominator, whatever the crop.
///
/// # Panics
/// Panics if the denominator is not 1, 2, 4 or 8.
#[must_use]
pub fn working_set(header: &Header, denominator: u32) -> WorkingSet {
    check(denominator);
    let codec_bytes = header.codec_bytes;
    #[cfg(feature = "turbo")]
    if header.format == Format::Jpeg {
        return WorkingSet { buffer_bytes: turbo::arena_bytes(header, denominator), codec_bytes };
    }
    let pixel_bytes = u64::from(header.native_pixel_bytes).max(CHANNELS as u64);
    WorkingSet { buffer_bytes: header.pixels().saturating_mul(pixel_bytes), codec_bytes }
}

/// Largest of 1, 2, 4 and 8 by which the image may be divided so that `source` (width and height, stored pixels) keeps
/// at least `out` pixels, and a resampler never enlarges.
pub(crate) fn denominator(header: &Header, quality: Quality, source: (f64, f64), out: (u32, u32)) -> u32 {
    if !cfg!(feature = "turbo") || quality == Quality::Exact || header.format != Format::Jpeg {
        return 1;
    }
    let keeps = |d: &u32| source.0 / f64::from(*d) >= f64::from(out.0) && source.1 / f64::from(*d) >= f64::from(out.1);
    [8, 4, 2].into_iter().find(keeps).unwrap_or(1)
}

/// Begins to decode a crop, in a buffer of at least `buffer_bytes` of its [`working_set`]. The buffer's contents do not
/// matter.
///
/// # Errors
/// [`DecodeError::Truncated`] for a file that ends early, [`DecodeError::Damaged`] for damaged data (as far as the
/// format lets damage show), [`DecodeError::HeaderMismatch`] for bytes of another file than the header's,
/// [`DecodeError::Unsupported`], [`DecodeError::OutOfMemory`] if the buffer is too small. A codec's panic is a
/// [`DecodeError::CodecPanicked`] (where panics unwind; the panic hook runs all the same).
///
/// # Panics
/// Panics if the crop is not inside the image, or the denominator is not 1, 2, 4 or 8.
pub fn begin<'m>(
    encoded: &'m [u8],
    header: &Header,
    request: &DecodeRequest,
    buffer: &'m mut [u8],
) -> Result<Decoder<'m>, DecodeError> {
    let DecodeRequest { crop, denominator, .. } = *request;
    let Header { format, width, height, .. } = *header;
    assert!(crop.fits(width, height), "{crop:?} is not inside {width}x{height}");
    let bytes = working_set(header, denominator).buffer_bytes;
    let buffer = usize::try_from(bytes).ok().and_then(|bytes| buffer.get_mut(..bytes));
    let buffer = buffer.ok_or(DecodeError::OutOfMemory { bytes })?;
    #[cfg(feature = "turbo")]
    if format == Format::Jpeg {
        return Ok(Decoder(Rows::Jpeg(turbo::start(encoded, header, request, buffer)?)));
    }
    let codec = AssertUnwindSafe(|| match format {
        #[cfg(not(feature = "turbo"))]
        Format::Jpeg => zune::decode(encoded, header, request.accept_truncated, buffer),
        _ => image_rs::decode(encoded, header, request.background, buffer).map(|()| 0),
    });
    // Codecs have been seen to panic on damaged data. What they leave behind is bytes in the buffer, which are not
    // read.
    let warnings = catch_unwind(codec).unwrap_or_else(|panic| {
        Err(DecodeError::CodecPanicked { format, message: panic_message(&*panic).to_owned() })
    })?;
    let row_bytes = width as usize * CHANNELS;
    let rows = buffer[crop.y as usize * row_bytes..][..crop.height as usize * row_bytes].chunks_exact(row_bytes);
    let (left, width) = (crop.x as usize * CHANNELS, crop.width as usize * CHANNELS);
    Ok(Decoder(Rows::Decoded { rows, columns: left..left + width, warnings }))
}

/// Rows of a crop, from top to bottom. Dropping it leaves the rest undecoded.
///
/// A row may be wider than the crop: it has [`row_pixels`](Self::row_pixels) pixels, and the crop begins at
/// [`crop_offset`](Self::crop_offset).
#[derive(Debug)]
pub struct Decoder<'m>(Rows<'m>);

enum Rows<'m> {
    #[cfg(feature = "turbo")]
    Jpeg(turbo::Rows<'m>),
    Decoded {
        rows: ChunksExact<'m, u8>,
        columns: std::ops::Range<usize>,
        warnings: u32,
    },
}

impl Decoder<'_> {
    /// Pixels per row.
    #[must_use]
    pub fn row_pixels(&self) -> u32 {
        match &self.0 {
            #[cfg(feature = "turbo")]
            Rows::Jpeg(rows) => rows.width(),
            Rows::Decoded { columns, .. } => (columns.len() / CHANNELS) as u32,
        }
    }

    /// Pixel of a row at which the crop begins.
    #[must_use]
    pub fn crop_offset(&self) -> u32 {
        match &self.0 {
            #[cfg(feature = "turbo")]
            Rows::Jpeg(rows) => rows.left(),
            Rows::Decoded { .. } => 0,
        }
    }

    /// Number of damages that were passed over so far. Always 0 unless `accept_truncated` is set.
    #[must_use]
    pub fn warnings(&self) -> u32 {
        match &self.0 {
            #[cfg(feature = "turbo")]
            Rows::Jpeg(rows) => rows.warnings(),
            Rows::Decoded { warnings, .. } => *warnings,
        }
    }

    /// Writes the next row as RGB8, `row_pixels() * 3` bytes. Returns false after the last row.
    ///
    /// # Errors
    /// The errors of [`begin`]. After an error, each further call returns the same error.
    ///
    /// # Panics
    /// Panics if `row` has another length.
    pub fn next_row(&mut self, row: &mut [u8]) -> Result<bool, DecodeError> {
        match &mut self.0 {
            #[cfg(feature = "turbo")]
            Rows::Jpeg(rows) => rows.next_row(row),
            Rows::Decoded { rows, columns, .. } => {
                let Some(next) = rows.next() else { return Ok(false) };
                row.copy_from_slice(&next[columns.clone()]);
                Ok(true)
            }
        }
    }
}

impl fmt::Debug for Rows<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            #[cfg(feature = "turbo")]
            Rows::Jpeg(rows) => rows.fmt(f),
            Rows::Decoded { rows, columns, .. } => write!(f, "Decoded({} rows, bytes {columns:?})", rows.len()),
        }
    }
}

fn check(denominator: u32) {
    assert!(matches!(denominator, 1 | 2 | 4 | 8), "scale 1/{denominator}: expected 1/1, 1/2, 1/4 or 1/8");
}

#[cfg(all(test, feature = "turbo"))]
mod tests {
    use super::*;
    use crate::decode::header::ColorType;

    #[test]
    fn the_denominator_keeps_the_output_size() {
        let header = Header::new(Format::Jpeg, (1, 1), ColorType::Rgb, 3);
        for (width, height, out, expected) in [
            (224.0, 224.0, 224, 1),
            (447.9, 900.0, 224, 1),
            (448.0, 448.0, 224, 2),
            (5000.0, 895.0, 224, 2),
            (896.0, 900.0, 224, 4),
            (1e5, 1e5, 224, 8),
            (3.0, 3.0, 224, 1),
        ] {
            let found = denominator(&header, Quality::Fast, (width, height), (out, out));
            assert_eq!(found, expected, "{width}x{height}");
        }
    }
}
