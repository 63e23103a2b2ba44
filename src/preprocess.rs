//! Preprocessing of one sample: probe, decode, crop, resize, from encoded bytes to the sample's place in a batch.
//!
//! [`SamplePlan`] reads the header, draws the transform's geometry, and states the working set. [`SamplePlan::run`]
//! then decodes and resamples row by row in memory of that size; it allocates nothing itself.

use crate::decode::{self, DecodeRequest, Header, Limits, Options, WorkingSet};
use crate::rng::{KeyedRng, Seed};
use crate::sample_error::{SampleError, Stage};
use crate::tensor::{Orientation, SampleSpec};
use crate::transform::{Geometry, Resampler, Transform, TransformError};
use crate::units::{ByteCount, SampleId};

/// Separates the transform's random stream from the others of the same sample.
const TRANSFORM_SALT: u64 = 0x7F_0A;

/// Upper bound of what decoding and transforming an image with this header takes, for any crop.
pub(crate) fn working_set(header: &Header, spec: SampleSpec, options: &Options) -> ByteCount {
    let orientation = orientation(header, options);
    let WorkingSet { buffer_bytes, codec_bytes } = decode::working_set(header, 1);
    // A crop can be the whole image, and no crop and no smaller scale costs more.
    let workspace = Resampler::working_set(header.width, header.height, spec, orientation);
    ByteCount(buffer_bytes) + ByteCount(codec_bytes) + ByteCount(workspace)
}

fn orientation(header: &Header, options: &Options) -> Orientation {
    if options.apply_exif_orientation { Orientation::from_exif(header.orientation) } else { Orientation::UPRIGHT }
}

/// The crop of one sample, the decoder's settings for it, and the working set.
pub(crate) struct SamplePlan {
    header: Header,
    request: DecodeRequest,
    orientation: Orientation,
    /// Geometry in the image as it is decoded: stored orientation, scaled by `request`.
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
        if !stored.crop.fits(width, height) {
            let (width, height) = seen_sides;
            return Err(TransformError::Geometry { geometry: seen, width, height, spec }.into());
        }
        let [_, _, box_width, box_height] = stored.source_box;
        let out = orientation.sides(stored.target.width, stored.target.height);
        let denominator = decode::denominator(&header, options.quality, (box_width, box_height), out);
        let Options { accept_truncated, background, .. } = *options;
        let request = DecodeRequest { crop: stored.crop, denominator, accept_truncated, background };
        let geometry = stored.scaled(denominator, width, height);
        let decoding = decode::working_set(&header, denominator);
        // Decoders give rows that begin and end at block edges, so they are at most as wide as the image.
        let row_pixels = width.div_ceil(denominator);
        let workspace_bytes = Resampler::working_set(row_pixels, geometry.crop.height, spec, orientation);
        Ok(SamplePlan { header, request, orientation, geometry, spec, decoding, workspace_bytes })
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// Bytes of memory that [`run`](Self::run) takes (decoder and resampler), and bytes that the codec allocates
    /// itself.
    pub(crate) fn working_set(&self) -> WorkingSet {
        let WorkingSet { buffer_bytes, codec_bytes } = self.decoding;
        WorkingSet { buffer_bytes: buffer_bytes.saturating_add(self.workspace_bytes), codec_bytes }
    }

    /// Writes all bytes of `out`, in memory of at least `buffer_bytes` of the working set. Returns the number of times
    /// that damage was met and accepted.
    ///
    /// # Errors
    /// Decoding or resampling failed, or `memory` or `out` is too small.
    pub(crate) fn run(&self, encoded: &[u8], memory: &mut [u8], out: &mut [u8]) -> Result<u32, SampleError> {
        let bytes = self.decoding.buffer_bytes;
        let split = usize::try_from(bytes).ok().and_then(|bytes| memory.split_at_mut_checked(bytes));
        let too_small = || SampleError::NoMemory { stage: Stage::Decode, bytes: ByteCount(bytes) };
        let (buffer, workspace) = split.ok_or_else(too_small)?;
        let resampler = Resampler::new(self.geometry, self.spec).oriented(self.orientation);
        let mut decoder = decode::begin(encoded, &self.header, &self.request, buffer).map_err(SampleError::Decode)?;
        let (row_pixels, crop_offset) = (decoder.row_pixels(), decoder.crop_offset());
        let next_row = |row: &mut [u8]| decoder.next_row(row).map(drop).map_err(SampleError::Decode);
        resampler.apply(row_pixels, crop_offset, next_row, workspace, out)?;
        Ok(decoder.warnings())
    }
}
