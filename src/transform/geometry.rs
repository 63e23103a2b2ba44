//! Geometry of a sample: the crop of the image and its place in the sample, also in the coordinates of an image that is
//! stored turned or decoded at a smaller scale; and the trait of the transforms that choose it.

use crate::rng::KeyedRng;
use crate::tensor::{Orientation, Region, SIDE_MAX, SampleSpec};

/// Choice of a crop for each sample, and the shape of the samples.
///
/// ```
/// use feedstock::tensor::SampleSpec;
/// use feedstock::transform::{Geometry, KeyedRng, Region, Transform};
///
/// /// The top left quarter of each image.
/// struct Quarter(SampleSpec);
///
/// impl Transform for Quarter {
///     fn out_spec(&self) -> SampleSpec {
///         self.0
///     }
///
///     fn geometry(&self, width: u32, height: u32, _rng: &mut KeyedRng) -> Geometry {
///         Geometry::stretch(Region::whole(width.div_ceil(2), height.div_ceil(2)), self.0, false)
///     }
/// }
/// ```
pub trait Transform: Send + Sync + 'static {
    /// Shape of every sample.
    fn out_spec(&self) -> SampleSpec;

    /// Chooses the geometry for an image of `width` x `height` pixels, both at least 1. A pure function of the sizes
    /// and the random stream.
    fn geometry(&self, width: u32, height: u32, rng: &mut KeyedRng) -> Geometry;
}

impl Transform for Box<dyn Transform> {
    fn out_spec(&self) -> SampleSpec {
        (**self).out_spec()
    }

    fn geometry(&self, width: u32, height: u32, rng: &mut KeyedRng) -> Geometry {
        (**self).geometry(width, height, rng)
    }
}

/// Panics unless a sample may have such a side.
pub(super) fn check_side(side: u32) {
    assert!((1..=SIDE_MAX).contains(&side), "side of {side} pixels: expected 1 to {SIDE_MAX}");
}

/// Panics unless `p` is a probability.
pub(super) fn check_probability(p: f64) {
    assert!((0.0..=1.0).contains(&p), "probability {p}: expected 0 to 1");
}

/// Part of an image that a sample shows, and its place in the sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Geometry {
    /// Crop of the image. Pixels outside are never read, so they need not be decoded.
    pub crop: Region,
    /// Part of the crop that is stretched over the target: left, top, width, height in pixels, relative to the crop's
    /// corner, fractions allowed. The filter may reach out of the source box, but not out of the crop.
    pub source_box: [f64; 4],
    /// Part of the sample that the source box fills. The rest of the sample is black.
    pub target: Region,
    /// True if the sample, its black included, is then mirrored left to right.
    pub flip: bool,
}

impl Geometry {
    /// Geometry that stretches all of `crop` over the whole sample.
    #[must_use]
    pub fn stretch(crop: Region, spec: SampleSpec, flip: bool) -> Self {
        let source_box = [0.0, 0.0, f64::from(crop.width), f64::from(crop.height)];
        Geometry { crop, source_box, target: Region::whole(spec.width, spec.height), flip }
    }

    /// Converts from the coordinates of the upright image to those of the stored one, of `width` x `height` pixels.
    /// Target and flip stay those of the sample, which the resampler turns.
    ///
    /// A crop outside the image stays outside.
    #[must_use]
    pub fn stored(self, orientation: Orientation, width: u32, height: u32) -> Self {
        let Geometry { crop: seen, source_box: [left, top, box_width, box_height], .. } = self;
        let (mut x, mut y, mut columns, mut rows) = (seen.x, seen.y, seen.width, seen.height);
        let (mut across, mut down) = ((left, box_width), (top, box_height));
        if orientation.swaps_sides() {
            (x, y, columns, rows) = (y, x, rows, columns);
            (across, down) = (down, across);
        }
        let mirrored = |at: u32, length: u32, (start, span): (f64, f64), all: u32| {
            let end = u64::from(at) + u64::from(length);
            // No image is that large, so a crop beyond its end stays one.
            let at = u64::from(all).checked_sub(end).map_or(u32::MAX, |at| at as u32);
            (at, (f64::from(length) - (start + span), span))
        };
        if orientation.mirrors_columns() {
            (x, across) = mirrored(x, columns, across, width);
        }
        if orientation.mirrors_rows() {
            (y, down) = mirrored(y, rows, down, height);
        }
        Geometry {
            crop: Region { x, y, width: columns, height: rows },
            source_box: [across.0, down.0, across.1, down.1],
            ..self
        }
    }

    /// Converts from the coordinates of an image of `width` x `height` pixels to those of the same image decoded at
    /// 1/`denominator`: its sides are divided and rounded up, and its corner stays, so that coordinates divide exactly
    /// (libjpeg's scaling).
    ///
    /// The crop becomes all pixels that it touches. The filter still stays inside if it did before and the source box
    /// is no smaller than the target.
    ///
    /// # Panics
    /// Panics if `denominator` is 0.
    #[must_use]
    pub fn scaled(self, denominator: u32, width: u32, height: u32) -> Self {
        assert!(denominator > 0, "scale 1/0: expected a denominator above 0");
        if denominator == 1 {
            return self;
        }
        let by = f64::from(denominator);
        let axis = |at: u32, length: u32, start: f64, span: f64, all: u32| {
            let first = at / denominator;
            let end = at.saturating_add(length).div_ceil(denominator);
            let end = end.min(all.div_ceil(denominator));
            let start = (f64::from(at) + start) / by - f64::from(first);
            (first, end.saturating_sub(first), start, span / by)
        };
        let (crop, [left, top, box_width, box_height]) = (self.crop, self.source_box);
        let (x, columns, left, box_width) = axis(crop.x, crop.width, left, box_width, width);
        let (y, rows, top, box_height) = axis(crop.y, crop.height, top, box_height, height);
        Geometry {
            crop: Region { x, y, width: columns, height: rows },
            source_box: [left, top, box_width, box_height],
            ..self
        }
    }

    /// Returns the source box if it is valid and within the crop. Rounding errors of less than a thousandth of a pixel
    /// are corrected.
    pub(super) fn clamped_source_box(&self) -> Option<[f64; 4]> {
        const SLACK: f64 = 1e-3;
        let axis = |start: f64, span: f64, length: u32| {
            let length = f64::from(length);
            let sound = start >= -SLACK && span > 0.0 && start + span <= length + SLACK;
            let start = start.clamp(0.0, length);
            let span = span.min(length - start);
            (sound && span > 0.0).then_some((start, span))
        };
        let [left, top, width, height] = self.source_box;
        let (left, width) = axis(left, width, self.crop.width)?;
        let (top, height) = axis(top, height, self.crop.height)?;
        Some([left, top, width, height])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SPEC: SampleSpec = SampleSpec { height: 4, width: 6 };

    #[test]
    fn a_stored_crop_is_the_upright_one_turned() {
        // Stored 10 x 7, seen 7 x 10 turned a quarter clockwise: the seen top left corner is stored at the bottom left.
        let crop = Region { x: 1, y: 2, width: 3, height: 5 };
        let seen = Geometry { source_box: [0.5, 1.0, 2.0, 3.0], ..Geometry::stretch(crop, SPEC, true) };
        let stored = seen.stored(Orientation::from_exif(6), 10, 7);
        assert_eq!(stored.crop, Region { x: 2, y: 3, width: 5, height: 3 });
        assert_eq!(stored.source_box, [1.0, 0.5, 3.0, 2.0]);
        assert_eq!((stored.target, stored.flip), (seen.target, true));
        for value in 1..=8 {
            let orientation = Orientation::from_exif(value);
            let (width, height) = orientation.sides(10, 10);
            assert!(
                !Geometry { crop: Region { x: 9, ..crop }, ..seen }
                    .stored(orientation, width, height)
                    .crop
                    .fits(width, height)
            );
        }
    }

    #[test]
    fn a_scaled_crop_covers_the_same_pixels() {
        let crop = Region { x: 9, y: 16, width: 492, height: 300 };
        let scaled = Geometry::stretch(crop, SPEC, false).scaled(8, 501, 400);
        assert_eq!(scaled.crop, Region { x: 1, y: 2, width: 62, height: 38 });
        assert_eq!(scaled.source_box, [0.125, 0.0, 61.5, 37.5]);
        assert_eq!(Geometry::stretch(crop, SPEC, false).scaled(1, 501, 400), Geometry::stretch(crop, SPEC, false));
    }

    proptest! {
        #[test]
        fn crops_stay_inside_the_image(
            width in 1u32..5000, height in 1u32..5000, part in [0.0f64..1.0, 0.0..1.0, 0.0..1.0, 0.0..1.0],
            value in 1u8..=8, denominator in 1u32..=8,
        ) {
            let orientation = Orientation::from_exif(value);
            let (seen_width, seen_height) = orientation.sides(width, height);
            let axis = |all: u32, at: f64, length: f64| {
                let at = (f64::from(all - 1) * at) as u32;
                (at, 1 + (f64::from(all - at - 1) * length) as u32)
            };
            let ((x, columns), (y, rows)) = (axis(seen_width, part[0], part[2]), axis(seen_height, part[1], part[3]));
            let seen = Geometry::stretch(Region { x, y, width: columns, height: rows }, SPEC, false);
            let stored = seen.stored(orientation, width, height);
            prop_assert!(stored.crop.fits(width, height) && stored.clamped_source_box().is_some());
            let scaled = stored.scaled(denominator, width, height);
            prop_assert!(scaled.crop.fits(width.div_ceil(denominator), height.div_ceil(denominator)));
            prop_assert!(scaled.clamped_source_box().is_some(), "{:?}", scaled);
        }
    }
}
