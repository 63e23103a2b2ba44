//! Owns the making of one sample: what of a picture is shown, what that takes, and the way from encoded bytes to the
//! sample's place, decoder and resampler side by side. It must never allocate, and never take more than it said.

use crate::decode::{self, Cut, Decoded, Header, Options, WorkingSet};
use crate::quarantine::Stage;
use crate::tensor::{Orientation, SampleSpec};
#[cfg(feature = "turbo")]
use crate::transform::RowsError;
use crate::transform::{Geometry, Resampler, Transform, TransformError};
use crate::units::{ByteCount, KeyedRng};

/// Tells the transform's stream of random numbers from others of the same sample.
pub(crate) const TRANSFORM_SALT: u64 = 0x7F_0A;

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

/// What a sample shows of a picture, and how it is decoded for that.
pub(crate) struct Shown<'h> {
    header: &'h Header,
    /// Of the picture as it is stored, at full size.
    geometry: Geometry,
    orientation: Orientation,
    denominator: u32,
    accept_truncated: bool,
    background: [u8; 3],
    spec: SampleSpec,
}

impl<'h> Shown<'h> {
    /// Lets a transform choose.
    ///
    /// # Errors
    /// It chose something that is not in the picture.
    pub(crate) fn choose(
        header: &'h Header,
        options: &Options,
        transform: &dyn Transform,
        rng: &mut KeyedRng,
    ) -> Result<Self, TransformError> {
        let orientation = orientation(header, options);
        let (width, height) = orientation.sides(header.width, header.height);
        let spec = transform.out_spec();
        let seen = transform.geometry(width, height, rng);
        let geometry = seen.stored(orientation, header.width, header.height);
        if !geometry.region.fits(header.width, header.height) {
            return Err(TransformError::Geometry { geometry: seen, width, height, spec });
        }
        let [_, _, window_width, window_height] = geometry.window;
        let out = orientation.sides(geometry.target.width, geometry.target.height);
        let denominator = decode::denominator(header, options.quality, (window_width, window_height), out);
        let Options { accept_truncated, background, .. } = *options;
        Ok(Shown { header, geometry, orientation, denominator, accept_truncated, background, spec })
    }

    /// The geometry in pixels of the picture as it is decoded.
    fn scaled(&self) -> Geometry {
        self.geometry.scaled(self.denominator, self.header.width, self.header.height)
    }

    /// Bytes of memory that making it takes: the decoder's, and the resampler's workspace behind them. And what the codec
    /// takes for itself besides.
    pub(crate) fn working_set(&self) -> WorkingSet {
        let WorkingSet { pixel_bytes, codec_bytes } = decode::working_set_of_cut(self.header, self.denominator);
        // Decoders give rows that begin and end at block edges, so they are as wide as the picture at most.
        let row_pixels = self.header.width.div_ceil(self.denominator);
        let region_height = self.scaled().region.height;
        let workspace = Resampler::working_set(row_pixels, region_height, self.spec, self.orientation);
        WorkingSet { pixel_bytes: pixel_bytes.saturating_add(workspace), codec_bytes }
    }

    /// Makes the sample, all bytes of `out`, in memory as large as `pixel_bytes` of the working set. Returns how often
    /// damage was met and passed over; none unless that is accepted.
    ///
    /// # Errors
    /// Where it failed, and why.
    pub(crate) fn make(&self, encoded: &[u8], memory: &mut [u8], out: &mut [u8]) -> Result<u32, (Stage, String)> {
        let decoding = |error: decode::DecodeError| (Stage::Decode, error.to_string());
        let transforming = |error: TransformError| (Stage::Transform, error.to_string());
        let decoder_bytes = decode::working_set_of_cut(self.header, self.denominator).pixel_bytes;
        let out_of_memory = || decoding(decode::DecodeError::OutOfMemory { bytes: decoder_bytes });
        let split = usize::try_from(decoder_bytes).ok().and_then(|bytes| memory.split_at_mut_checked(bytes));
        let (decoder, workspace) = split.ok_or_else(out_of_memory)?;
        let geometry = self.scaled();
        let resampler = Resampler::new(geometry, self.spec).oriented(self.orientation);
        let cut = Cut {
            region: self.geometry.region,
            denominator: self.denominator,
            accept_truncated: self.accept_truncated,
            background: self.background,
        };
        match decode::cut(encoded, self.header, &cut, decoder).map_err(decoding)? {
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
