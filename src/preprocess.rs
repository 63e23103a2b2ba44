//! Preprocessing of one sample: probe, decode, crop, resize, from encoded bytes to the sample's place in a batch.
//!
//! [`SamplePlan`] reads the header, draws the transform's geometry, and states the working set. [`SamplePlan::run`]
//! then decodes and resamples row by row in memory of that size; it allocates nothing itself.

use crate::decode::{self, Cut, Decoded, Header, Limits, Options, WorkingSet};
use crate::sample_error::{SampleError, Stage};
use crate::tensor::{Orientation, SampleSpec};
#[cfg(feature = "turbo")]
use crate::transform::RowsError;
use crate::transform::{Geometry, Resampler, Transform, TransformError};
use crate::units::{ByteCount, KeyedRng, SampleId, Seed};

/// Separates the transform's random stream from the others of the same sample.
const TRANSFORM_SALT: u64 = 0x7F_0A;

/// Upper bound of what decoding and transforming an image with this header takes, for any crop.
pub(crate) fn working_set(header: &Header, spec: SampleSpec, options: &Options) -> ByteCount {
    let orientation = orientation(header, options);
    let WorkingSet { pixel_bytes, codec_bytes } = decode::working_set_of_cut(header, 1);
    // A crop can be the whole image, and no crop and no smaller scale costs more.
    let workspace = Resampler::working_set(header.width, header.height, spec, orientation);
    ByteCount(pixel_bytes) + ByteCount(codec_bytes) + ByteCount(workspace)
}

fn orientation(header: &Header, options: &Options) -> Orientation {
    if options.orient { Orientation::from_exif(header.orientation) } else { Orientation::UPRIGHT }
}

/// The crop of one sample, the decoder's settings for it, and the working set.
pub(crate) struct SamplePlan {
    header: Header,
    cut: Cut,
    orientation: Orientation,
    /// Geometry in the image as it is decoded: stored orientation, scaled by `cut`.
    geometry: Geometry,
    spec: SampleSpec,
    decoding: WorkingSet,
    workspace_bytes: u64,
}

impl SamplePlan {
    /// Reads an image's header and draws the transform's geometry for this sample.
    ///
    /// # Errors
    /// The header cannot be used, or the transform chose a crop outside the image.
    pub(crate) fn new(
        encoded: &[u8],
        limits: &Limits,
        options: &Options,
        transform: &dyn Transform,
        (seed, epoch, id): (Seed, u64, SampleId),
    ) -> Result<Self, SampleError> {
        let header = decode::probe(encoded, limits).map_err(SampleError::Probe)?;
        let Header { width, height, .. } = header;
        let orientation = orientation(&header, options);
        let seen_sides = orientation.sides(width, height);
        let mut rng = KeyedRng::new(seed, epoch, id, TRANSFORM_SALT);
        let seen = transform.geometry(seen_sides.0, seen_sides.1, &mut rng);
        let spec = transform.out_spec();
        let stored = seen.stored(orientation, width, height);
        if !stored.region.fits(width, height) {
            let (width, height) = seen_sides;
            return Err(TransformError::Geometry { geometry: seen, width, height, spec }.into());
        }
        let [_, _, window_width, window_height] = stored.window;
        let out = orientation.sides(stored.target.width, stored.target.height);
        let denominator = decode::denominator(&header, options.quality, (window_width, window_height), out);
        let Options { accept_truncated, background, .. } = *options;
        let cut = Cut { region: stored.region, denominator, accept_truncated, background };
        let geometry = stored.scaled(denominator, width, height);
        let decoding = decode::working_set_of_cut(&header, denominator);
        // Decoders give rows that begin and end at block edges, so they are at most as wide as the image.
        let row_pixels = width.div_ceil(denominator);
        let workspace_bytes = Resampler::working_set(row_pixels, geometry.region.height, spec, orientation);
        Ok(SamplePlan { header, cut, orientation, geometry, spec, decoding, workspace_bytes })
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// Bytes of memory that [`run`](Self::run) takes (decoder and resampler), and bytes that the codec allocates
    /// itself.
    pub(crate) fn working_set(&self) -> WorkingSet {
        let WorkingSet { pixel_bytes, codec_bytes } = self.decoding;
        WorkingSet { pixel_bytes: pixel_bytes.saturating_add(self.workspace_bytes), codec_bytes }
    }

    /// Writes all bytes of `out`, in memory of at least `pixel_bytes` of the working set. Returns the number of times
    /// that damage was met and accepted.
    ///
    /// # Errors
    /// Decoding or resampling failed, or `memory` or `out` is too small.
    pub(crate) fn run(&self, encoded: &[u8], memory: &mut [u8], out: &mut [u8]) -> Result<u32, SampleError> {
        let bytes = self.decoding.pixel_bytes;
        let split = usize::try_from(bytes).ok().and_then(|bytes| memory.split_at_mut_checked(bytes));
        let too_small = || SampleError::NoMemory { stage: Stage::Decode, bytes: ByteCount(bytes) };
        let (decoder, workspace) = split.ok_or_else(too_small)?;
        let resampler = Resampler::new(self.geometry, self.spec).oriented(self.orientation);
        match decode::cut(encoded, &self.header, &self.cut, decoder).map_err(SampleError::Decode)? {
            #[cfg(feature = "turbo")]
            Decoded::Rows(mut rows) => {
                let (row_pixels, left) = (rows.width(), rows.left());
                let next = |row: &mut [u8]| rows.next_into(row).map(drop);
                resampler.apply_rows(row_pixels, left, next, workspace, out).map_err(|error| match error {
                    RowsError::Rows(error) => SampleError::Decode(error),
                    RowsError::Transform(error) => SampleError::Transform(error),
                })?;
                Ok(rows.warnings())
            }
            Decoded::Whole(image, damage) => Ok(resampler.apply(image, workspace, out).map(|()| damage)?),
        }
    }
}
