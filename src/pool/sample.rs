//! Owns the making of one sample: what of a picture is shown, what that takes, and the way from encoded bytes to the
//! sample's place, decoder and resampler side by side. It must never allocate, and never take more than it said.

use crate::decode::{self, Cut, Decoded, Header, Limits, Options, WorkingSet};
use crate::quarantine::Stage;
use crate::tensor::{Orientation, SampleSpec};
#[cfg(feature = "turbo")]
use crate::transform::RowsError;
use crate::transform::{Geometry, Resampler, Transform, TransformError};
use crate::units::{ByteCount, KeyedRng, SampleId, Seed};

/// Tells the transform's stream of random numbers from others of the same sample.
const TRANSFORM_SALT: u64 = 0x7F_0A;

/// What decoding and transforming a picture with this header takes at most, whatever is shown of it.
pub(crate) fn working_set(header: &Header, spec: SampleSpec, options: &Options) -> ByteCount {
    let orientation = orientation(header, options);
    let WorkingSet { pixel_bytes, codec_bytes } = decode::working_set_of_cut(header, 1);
    // A region can be the whole picture, and no region and no smaller scale costs more.
    let workspace = Resampler::working_set(header.width, header.height, spec, orientation);
    ByteCount(pixel_bytes) + ByteCount(codec_bytes) + ByteCount(workspace)
}

fn orientation(header: &Header, options: &Options) -> Orientation {
    if options.orient { Orientation::from_exif(header.orientation) } else { Orientation::UPRIGHT }
}

/// What a sample shows of a picture, how it is decoded for that, and what that takes.
pub(crate) struct Shown {
    header: Header,
    cut: Cut,
    orientation: Orientation,
    /// Of the picture as it is decoded: stored, and scaled as the cut says.
    geometry: Geometry,
    spec: SampleSpec,
    decoding: WorkingSet,
    workspace_bytes: u64,
}

impl Shown {
    /// Reads a picture's header, and lets a transform choose for this sample.
    ///
    /// # Errors
    /// Where it failed, and why: the header, or a transform that chose something that is not in the picture.
    pub(crate) fn of(
        encoded: &[u8],
        limits: &Limits,
        options: &Options,
        transform: &dyn Transform,
        (seed, epoch, id): (Seed, u64, SampleId),
    ) -> Result<Self, (Stage, String)> {
        let header = decode::probe(encoded, limits).map_err(|error| (Stage::Probe, error.to_string()))?;
        let Header { width, height, .. } = header;
        let orientation = orientation(&header, options);
        let seen_sides = orientation.sides(width, height);
        let mut rng = KeyedRng::new(seed, epoch, id, TRANSFORM_SALT);
        let seen = transform.geometry(seen_sides.0, seen_sides.1, &mut rng);
        let spec = transform.out_spec();
        let stored = seen.stored(orientation, width, height);
        if !stored.region.fits(width, height) {
            let (width, height) = seen_sides;
            let error = TransformError::Geometry { geometry: seen, width, height, spec };
            return Err((Stage::Transform, error.to_string()));
        }
        let [_, _, window_width, window_height] = stored.window;
        let out = orientation.sides(stored.target.width, stored.target.height);
        let denominator = decode::denominator(&header, options.quality, (window_width, window_height), out);
        let Options { accept_truncated, background, .. } = *options;
        let cut = Cut { region: stored.region, denominator, accept_truncated, background };
        let geometry = stored.scaled(denominator, width, height);
        let decoding = decode::working_set_of_cut(&header, denominator);
        // Decoders give rows that begin and end at block edges, so they are as wide as the picture at most.
        let row_pixels = width.div_ceil(denominator);
        let workspace_bytes = Resampler::working_set(row_pixels, geometry.region.height, spec, orientation);
        Ok(Shown { header, cut, orientation, geometry, spec, decoding, workspace_bytes })
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// Bytes of memory that making it takes: the decoder's, and the resampler's workspace behind them. And what the codec
    /// takes for itself besides.
    pub(crate) fn working_set(&self) -> WorkingSet {
        let WorkingSet { pixel_bytes, codec_bytes } = self.decoding;
        WorkingSet { pixel_bytes: pixel_bytes.saturating_add(self.workspace_bytes), codec_bytes }
    }

    /// Makes the sample, all bytes of `out`, in memory as large as `pixel_bytes` of the working set. Returns how often
    /// damage was met and passed over; none unless that is accepted.
    ///
    /// # Errors
    /// Where it failed, and why.
    pub(crate) fn make(&self, encoded: &[u8], memory: &mut [u8], out: &mut [u8]) -> Result<u32, (Stage, String)> {
        let decoding = |error: decode::DecodeError| (Stage::Decode, error.to_string());
        let transforming = |error: TransformError| (Stage::Transform, error.to_string());
        let bytes = self.decoding.pixel_bytes;
        let split = usize::try_from(bytes).ok().and_then(|bytes| memory.split_at_mut_checked(bytes));
        let (decoder, workspace) = split.ok_or_else(|| decoding(decode::DecodeError::OutOfMemory { bytes }))?;
        let resampler = Resampler::new(self.geometry, self.spec).oriented(self.orientation);
        match decode::cut(encoded, &self.header, &self.cut, decoder).map_err(decoding)? {
            #[cfg(feature = "turbo")]
            Decoded::Rows(mut rows) => {
                let (row_pixels, left) = (rows.width(), rows.left());
                let next = |row: &mut [u8]| rows.next_into(row).map(drop);
                resampler.apply_rows(row_pixels, left, next, workspace, out).map_err(|error| match error {
                    RowsError::Rows(error) => decoding(error),
                    RowsError::Transform(error) => transforming(error),
                })?;
                Ok(rows.warnings())
            }
            Decoded::Whole(image, damage) => {
                resampler.apply(image, workspace, out).map(|()| damage).map_err(transforming)
            }
        }
    }
}
