//! Owns resampling: from the pixels of a picture to the bytes of a sample, straight into the sample's place in its slot.
//! It must never copy a picture, and never look outside a geometry's region.
//!
//! The filter is a triangle whose support widens with the reduction (antialiased bilinear), applied to one axis after
//! the other with 8-bit intermediates: what Pillow does, and torchvision with it. `fast_image_resize` runs over the
//! columns first where Pillow runs over the rows first, so that single values differ by one level.

use std::fmt;

use fast_image_resize::images::{TypedCroppedImage, TypedCroppedImageMut, TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};

use super::{Geometry, Region};
use crate::tensor::{CHANNELS, ImageView, SampleSpec};

/// Why a sample could not be made. Each is a caller's mistake, told with its numbers.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum TransformError {
    /// The sample's memory has another size than its shape says.
    OutSize {
        /// Bytes that the shape says.
        expected_bytes: usize,
        /// Bytes that were given.
        given_bytes: usize,
    },
    /// A geometry that looks outside the picture, or fills more than the sample.
    Geometry {
        /// The geometry.
        geometry: Geometry,
        /// The picture's columns.
        width: u32,
        /// The picture's rows.
        height: u32,
        /// The sample's shape.
        spec: SampleSpec,
    },
    /// The allocator could not give the buffer between the two passes this many bytes.
    OutOfMemory {
        /// How many were asked for.
        bytes: u64,
    },
    /// The resizer refused.
    Resizer(String),
}

impl fmt::Display for TransformError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TransformError::OutSize { expected_bytes, given_bytes } => {
                write!(f, "a sample takes {expected_bytes} bytes, and {given_bytes} were given")
            }
            TransformError::Geometry { geometry: Geometry { region, window, target, .. }, width, height, spec } => {
                write!(
                    f,
                    "a geometry does not fit a picture of {width}x{height} and a sample of {spec}: region {region:?}, window \
                 {window:?}, target {target:?}"
                )
            }
            TransformError::OutOfMemory { bytes } => {
                write!(f, "the allocator refused {bytes} bytes for resampling")
            }
            TransformError::Resizer(cause) => write!(f, "the resizer refused: {cause}"),
        }
    }
}

impl std::error::Error for TransformError {}

/// Cuts, scales and mirrors. One for each worker: it keeps the buffer between the two passes of the filter.
///
/// Besides that buffer, the tables of filter weights are allocated anew for each sample, inside the library that it
/// rests on; [`working_set`](Resampler::working_set) counts both.
#[derive(Debug, Default)]
pub struct Resampler {
    resizer: Resizer,
    /// What the first pass made: as wide as the region, as high as the target.
    between: Vec<u8>,
}

impl Resampler {
    /// A resampler that holds nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Resampler::default()
    }

    /// Makes a sample: writes all bytes of `out`, RGB8, row by row.
    ///
    /// # Errors
    /// See [`TransformError`]; `out` may then be partly written.
    pub fn apply(
        &mut self,
        image: ImageView<'_>,
        geometry: &Geometry,
        spec: SampleSpec,
        out: &mut [u8],
    ) -> Result<(), TransformError> {
        if out.len() != spec.elements() {
            return Err(TransformError::OutSize { expected_bytes: spec.elements(), given_bytes: out.len() });
        }
        let Geometry { region, target, flip, .. } = *geometry;
        let window = inside(geometry.window, region);
        let fits = region.fits(image.width(), image.height()) && target.fits(spec.width, spec.height);
        let Some(window) = window.filter(|_| fits) else {
            let (width, height) = (image.width(), image.height());
            return Err(TransformError::Geometry { geometry: *geometry, width, height, spec });
        };
        if target != Region::whole(spec.width, spec.height) {
            out.fill(0);
        }
        match unscaled(window, region, target) {
            Some((x, y)) => copy(image, x, y, target, spec, out),
            None => self.resize(image, region, window, target, spec, out)?,
        }
        if flip {
            mirror(out, spec);
        }
        Ok(())
    }

    fn resize(
        &mut self,
        image: ImageView<'_>,
        region: Region,
        [left, top, width, height]: [f64; 4],
        target: Region,
        spec: SampleSpec,
        out: &mut [u8],
    ) -> Result<(), TransformError> {
        let options = |left, top, width, height| {
            let filter = ResizeAlg::Convolution(FilterType::Bilinear);
            ResizeOptions::new().resize_alg(filter).use_alpha(false).crop(left, top, width, height)
        };
        // The view is what the filter may look at; the crop box is what is stretched.
        let source =
            TypedImageRef::<U8x3>::from_buffer(image.width(), image.height(), image.data()).map_err(refused)?;
        let source =
            TypedCroppedImage::from_ref(&source, region.x, region.y, region.width, region.height).map_err(refused)?;
        let mut sample = TypedImage::<U8x3>::from_buffer(spec.width, spec.height, out).map_err(refused)?;
        let mut sample = TypedCroppedImageMut::from_ref(&mut sample, target.x, target.y, target.width, target.height)
            .map_err(refused)?;
        let columns_stay = width == f64::from(target.width) && left.fract() == 0.0;
        let rows_stay = height == f64::from(target.height) && top.fract() == 0.0;
        if columns_stay || rows_stay {
            return self
                .resizer
                .resize_typed(&source, &mut sample, &options(left, top, width, height))
                .map_err(refused);
        }
        // Both axes: one at a time, so that what lies between is memory of ours, of a size that we know.
        let bytes = pass_bytes(region.width, target.height);
        let between = grown(&mut self.between, bytes)?;
        let mut rows = TypedImage::<U8x3>::from_buffer(region.width, target.height, between).map_err(refused)?;
        let whole_rows = options(0.0, top, region.width.into(), height);
        self.resizer.resize_typed(&source, &mut rows, &whole_rows).map_err(refused)?;
        let whole_columns = options(left, 0.0, width, target.height.into());
        self.resizer.resize_typed(&rows, &mut sample, &whole_columns).map_err(refused)
    }

    /// Most bytes that a resampler holds while it shrinks (or grows) a region of these sides to a sample: the buffer
    /// between the passes, which stays, and the tables of weights, which go.
    #[must_use]
    pub fn working_set(region_width: u32, region_height: u32, spec: SampleSpec) -> u64 {
        let weights = |from: u32, to: u32| {
            let (from, to) = (u64::from(from), u64::from(to.max(1)));
            let taps = 2 * from.div_ceil(to).max(1) + 1;
            // As floats, then as 16-bit integers; for each output pixel a few words besides.
            to * (taps * (8 + 4) + 96) + 1024
        };
        pass_bytes(region_width, spec.height) + weights(region_width, spec.width) + weights(region_height, spec.height)
    }

    /// Bytes that the resampler holds between samples.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.between.capacity()
    }

    /// Gives the held bytes back.
    pub fn release(&mut self) {
        self.between = Vec::new();
    }
}

fn refused(error: impl fmt::Display) -> TransformError {
    TransformError::Resizer(error.to_string())
}

/// The first pass squeezes rows; its result is as wide as what is looked at, as high as what comes out.
fn pass_bytes(region_width: u32, out_height: u32) -> u64 {
    u64::from(region_width) * u64::from(out_height) * CHANNELS as u64
}

/// The front of a buffer that grows exactly, and never holds its old bytes while it takes new ones.
fn grown(buffer: &mut Vec<u8>, bytes: u64) -> Result<&mut [u8], TransformError> {
    let out_of_memory = || TransformError::OutOfMemory { bytes };
    let length = usize::try_from(bytes).map_err(|_| out_of_memory())?;
    if length > buffer.len() {
        *buffer = Vec::new();
        buffer.try_reserve_exact(length).map_err(|_| out_of_memory())?;
        buffer.resize(length, 0);
    }
    Ok(&mut buffer[..length])
}

/// The window, if it is one and within its region; rounding errors of less than a thousandth of a pixel are mended.
fn inside([left, top, width, height]: [f64; 4], region: Region) -> Option<[f64; 4]> {
    const SLACK: f64 = 1e-3;
    let axis = |start: f64, span: f64, length: u32| {
        let length = f64::from(length);
        let sound = start >= -SLACK && span > 0.0 && start + span <= length + SLACK;
        let start = start.clamp(0.0, length);
        let span = span.min(length - start);
        (sound && span > 0.0).then_some((start, span))
    };
    let (left, width) = axis(left, width, region.width)?;
    let (top, height) = axis(top, height, region.height)?;
    Some([left, top, width, height])
}

/// Where in the picture to copy from, if a window is on whole pixels and as large as its target.
fn unscaled([left, top, width, height]: [f64; 4], region: Region, target: Region) -> Option<(u32, u32)> {
    let same = width == f64::from(target.width) && height == f64::from(target.height);
    let whole = left.fract() == 0.0 && top.fract() == 0.0;
    (same && whole).then(|| (region.x + left as u32, region.y + top as u32))
}

fn copy(image: ImageView<'_>, x: u32, y: u32, target: Region, spec: SampleSpec, out: &mut [u8]) {
    let row_bytes = target.width as usize * CHANNELS;
    let sources = image.data().chunks_exact(image.width() as usize * CHANNELS).skip(y as usize);
    let targets = out.chunks_exact_mut(spec.width as usize * CHANNELS).skip(target.y as usize);
    for (to, from) in targets.zip(sources).take(target.height as usize) {
        let (to_at, from_at) = (target.x as usize * CHANNELS, x as usize * CHANNELS);
        to[to_at..][..row_bytes].copy_from_slice(&from[from_at..][..row_bytes]);
    }
}

/// Mirrors each row left to right.
fn mirror(out: &mut [u8], spec: SampleSpec) {
    for row in out.chunks_exact_mut(spec.width as usize * CHANNELS) {
        let (pixels, _) = row.as_chunks_mut::<CHANNELS>();
        pixels.reverse();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SPEC: SampleSpec = SampleSpec { height: 4, width: 4 };

    fn numbered(width: u32, height: u32) -> Vec<u8> {
        (0..width * height * 3).map(|i| i as u8).collect()
    }

    #[test]
    fn an_unscaled_part_is_copied_to_the_bit() {
        let pixels = numbered(6, 5);
        let image = ImageView::new(&pixels, 6, 5);
        let region = Region { x: 2, y: 1, width: 4, height: 4 };
        for flip in [false, true] {
            let mut out = [0; 48];
            Resampler::new().apply(image, &Geometry::stretch(region, SPEC, flip), SPEC, &mut out).expect("fits");
            for y in 0..4 {
                for x in 0..4 {
                    let shown = if flip { 3 - x } else { x };
                    let from = ((1 + y) * 6 + 2 + shown) * 3;
                    assert_eq!(out[(y * 4 + x) * 3..][..3], pixels[from..][..3], "{x},{y} {flip}");
                }
            }
        }
    }

    #[test]
    fn what_the_target_leaves_is_black() {
        let pixels = [200; 2 * 3 * 3];
        let image = ImageView::new(&pixels, 2, 3);
        let target = Region { x: 1, y: 0, width: 2, height: 3 };
        let geometry = Geometry { target, ..Geometry::stretch(Region::whole(2, 3), SPEC, true) };
        let mut out = [9; 48];
        Resampler::new().apply(image, &geometry, SPEC, &mut out).expect("fits");
        let lit: Vec<usize> = (0..16).filter(|i| out[i * 3..][..3] == [200; 3]).collect();
        assert_eq!(lit, [1, 2, 5, 6, 9, 10]);
        assert_eq!(out.iter().filter(|&&v| v == 0).count(), 48 - 18);
        // Scaled into a part of the sample.
        let target = Region { x: 0, y: 1, width: 3, height: 2 };
        Resampler::new().apply(image, &Geometry { target, flip: false, ..geometry }, SPEC, &mut out).expect("fits");
        let lit: Vec<usize> = (0..16).filter(|i| out[i * 3..][..3] == [200; 3]).collect();
        assert_eq!(lit, [4, 5, 6, 8, 9, 10]);
    }

    #[test]
    fn a_regions_edge_is_a_hard_one() {
        // White around a black middle: were the filter to look outside the region, its edges would be grey.
        let mut pixels = vec![255; 30 * 30 * 3];
        for y in 10..20 {
            pixels[(y * 30 + 10) * 3..][..30].fill(0);
        }
        let region = Region { x: 10, y: 10, width: 10, height: 10 };
        let mut out = [1; 48];
        let image = ImageView::new(&pixels, 30, 30);
        Resampler::new().apply(image, &Geometry::stretch(region, SPEC, false), SPEC, &mut out).expect("fits");
        assert_eq!(out, [0; 48]);
        // A window inside a larger region is another matter.
        let window = [10.0, 10.0, 10.0, 10.0];
        let geometry = Geometry { window, ..Geometry::stretch(Region::whole(30, 30), SPEC, false) };
        Resampler::new().apply(image, &geometry, SPEC, &mut out).expect("fits");
        assert!(out[0] > 0 && out[(4 + 1) * 3] < out[0], "{out:?}");
    }

    #[test]
    fn misfits_are_errors_with_their_numbers() {
        let pixels = numbered(6, 5);
        let image = ImageView::new(&pixels, 6, 5);
        let mut resampler = Resampler::new();
        let good = Geometry::stretch(Region::whole(6, 5), SPEC, false);
        let error = resampler.apply(image, &good, SPEC, &mut [0; 47]).expect_err("short");
        assert_eq!(error.to_string(), "a sample takes 48 bytes, and 47 were given");
        for bad in [
            Geometry { region: Region { x: 1, ..Region::whole(6, 5) }, ..good },
            Geometry { region: Region { x: u32::MAX, ..Region::whole(6, 5) }, ..good },
            Geometry { region: Region::whole(0, 5), ..good },
            Geometry { target: Region::whole(5, 4), ..good },
            Geometry { target: Region::whole(4, 0), ..good },
            Geometry { window: [0.0, 0.0, 6.1, 5.0], ..good },
            Geometry { window: [0.0, -1.0, 6.0, 5.0], ..good },
            Geometry { window: [0.0, 0.0, 0.0, 5.0], ..good },
            Geometry { window: [0.0, f64::NAN, 6.0, 5.0], ..good },
        ] {
            let error = resampler.apply(image, &bad, SPEC, &mut [0; 48]).expect_err("misfit");
            assert!(matches!(error, TransformError::Geometry { .. }), "{error}");
            assert!(error.to_string().contains("a picture of 6x5 and a sample of 4x4x3"), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn one_colour_stays_that_colour(
            (width, height) in (1u32..90, 1u32..90), out_width in 1u32..40, out_height in 1u32..40, value in any::<u8>(),
        ) {
            let pixels = vec![value; (width * height * 3) as usize];
            let spec = SampleSpec { height: out_height, width: out_width };
            let mut out = vec![!value; spec.elements()];
            let geometry = Geometry::stretch(Region::whole(width, height), spec, true);
            let mut resampler = Resampler::new();
            prop_assert_eq!(resampler.apply(ImageView::new(&pixels, width, height), &geometry, spec, &mut out), Ok(()));
            prop_assert!(out.iter().all(|&v| v == value));
            let held = resampler.held_bytes() as u64;
            prop_assert!(held <= Resampler::working_set(width, height, spec));
            resampler.release();
            prop_assert_eq!(resampler.held_bytes(), 0);
        }
    }
}
