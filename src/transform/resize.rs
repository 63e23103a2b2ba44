//! Deterministic transforms, for validation.

use super::geometry::{Geometry, Transform, check_side};
use crate::rng::KeyedRng;
use crate::tensor::{Region, SampleSpec};

/// The whole image, stretched to an exact size. Its aspect ratio is not kept.
///
/// ```
/// use feedstock::transform::Resize;
/// let transform = Resize::exact(224, 224);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resize {
    spec: SampleSpec,
}

impl Resize {
    /// Samples of `height` x `width` pixels.
    ///
    /// # Panics
    /// Panics if a side is 0 or above [`SIDE_MAX`](crate::tensor::SIDE_MAX).
    #[must_use]
    pub fn exact(height: u32, width: u32) -> Self {
        check_side(height);
        check_side(width);
        Resize { spec: SampleSpec { height, width } }
    }
}

impl Transform for Resize {
    fn out_spec(&self) -> SampleSpec {
        self.spec
    }

    fn geometry(&self, width: u32, height: u32, _rng: &mut KeyedRng) -> Geometry {
        Geometry::stretch(Region::whole(width, height), self.spec, false)
    }
}

/// The image scaled until its short side has a given length, then its central square: the validation recipe of ImageNet
/// (`ResizeCenterCrop::new(256, 224)`).
///
/// Sizes and offsets are torchvision's, for `Resize(resize)` and `CenterCrop(crop)`: the long side is rounded down,
/// half a pixel of offset to the even neighbor. Both steps are one here: only the pixels of the square are resampled.
///
/// ```
/// use feedstock::transform::ResizeCenterCrop;
/// let transform = ResizeCenterCrop::new(256, 224);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResizeCenterCrop {
    resize: u32,
    spec: SampleSpec,
}

impl ResizeCenterCrop {
    /// Samples of `crop` x `crop` pixels from images whose short side is scaled to `resize`.
    ///
    /// # Panics
    /// Panics if `crop` is 0 or above `resize`, or `resize` above [`SIDE_MAX`](crate::tensor::SIDE_MAX).
    #[must_use]
    pub fn new(resize: u32, crop: u32) -> Self {
        check_side(resize);
        check_side(crop);
        assert!(crop <= resize, "crop of {crop} pixels: expected at most the resized side, {resize}");
        ResizeCenterCrop { resize, spec: SampleSpec { height: crop, width: crop } }
    }

    /// Crop and source box along one axis of `length` pixels, scaled to `scaled`.
    fn axis(&self, length: u32, scaled: u64) -> (u32, u32, f64, f64) {
        let crop = self.spec.width;
        let scale = f64::from(length) / scaled as f64;
        let offset = ((scaled - u64::from(crop)) as f64 / 2.0).round_ties_even();
        let (start, span) = (offset * scale, f64::from(crop) * scale);
        // The filter reaches one output pixel (and when enlarging, one input pixel) beyond the source box; one more for
        // what rounding may do.
        let reach = scale.max(1.0).ceil() + 1.0;
        let first = (start - reach).floor().max(0.0) as u32;
        let end = ((start + span + reach).ceil() as u32).min(length);
        (first, end - first, start - f64::from(first), span)
    }
}

impl Transform for ResizeCenterCrop {
    fn out_spec(&self) -> SampleSpec {
        self.spec
    }

    fn geometry(&self, width: u32, height: u32, _rng: &mut KeyedRng) -> Geometry {
        let short = u64::from(width.min(height));
        let scaled = |side: u32| u64::from(self.resize) * u64::from(side) / short;
        let (x, crop_width, left, box_width) = self.axis(width, scaled(width));
        let (y, crop_height, top, box_height) = self.axis(height, scaled(height));
        Geometry {
            crop: Region { x, y, width: crop_width, height: crop_height },
            source_box: [left, top, box_width, box_height],
            target: Region::whole(self.spec.width, self.spec.height),
            flip: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Seed;
    use crate::units::SampleId;
    use proptest::prelude::*;

    fn geometry(transform: &impl Transform, width: u32, height: u32) -> Geometry {
        transform.geometry(width, height, &mut KeyedRng::new(Seed(0), 0, SampleId(0), 0))
    }

    #[test]
    fn the_source_box_is_torchvisions() {
        // 500x333 -> 384x256 (int(384.38)), offsets (80, 16), scale 500/384 across and 333/256 down.
        let Geometry { crop, source_box, target, flip } = geometry(&ResizeCenterCrop::new(256, 224), 500, 333);
        let [left, top, width, height] = source_box;
        let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(close(f64::from(crop.x) + left, 80.0 * 500.0 / 384.0), "{crop:?} {source_box:?}");
        assert!(close(f64::from(crop.y) + top, 16.0 * 333.0 / 256.0));
        assert!(close(width, 224.0 * 500.0 / 384.0) && close(height, 224.0 * 333.0 / 256.0));
        assert_eq!((target, flip), (Region::whole(224, 224), false));
        // Room for the filter, and no more.
        assert!(crop.width < 224 * 500 / 384 + 10 && crop.fits(500, 333), "{crop:?}");
    }

    #[test]
    fn half_a_pixel_goes_to_the_even_neighbor() {
        // 48 scaled to 45, cropped to 32: offset 6.5 -> 6; cropped to 30: 7.5 -> 8.
        for (crop, offset) in [(32, 6.0), (30, 8.0)] {
            let Geometry { crop, source_box, .. } = geometry(&ResizeCenterCrop::new(45, crop), 45, 45);
            assert_eq!(f64::from(crop.x) + source_box[0], offset);
        }
    }

    #[test]
    fn exact_takes_the_whole_image() {
        let geometry = geometry(&Resize::exact(48, 24), 97, 61);
        assert_eq!(geometry, Geometry::stretch(Region::whole(97, 61), SampleSpec { height: 48, width: 24 }, false));
    }

    proptest! {
        #[test]
        fn crops_stay_inside_the_image(
            width in 1u32..70_000, height in 1u32..70_000, crop in 1u32..300, more in 0u32..300,
        ) {
            for (w, h) in [(width, height), (height, width), (1, height), (width, 1)] {
                let Geometry { crop, source_box, .. } = geometry(&ResizeCenterCrop::new(crop + more, crop), w, h);
                prop_assert!(crop.fits(w, h), "{crop:?}");
                let [left, top, width, height] = source_box;
                prop_assert!(left >= 0.0 && left + width <= f64::from(crop.width) + 1e-6, "{crop:?} {source_box:?}");
                prop_assert!(top >= 0.0 && top + height <= f64::from(crop.height) + 1e-6, "{crop:?} {source_box:?}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "crop of 225 pixels: expected at most the resized side, 224")]
    fn a_crop_larger_than_the_resized_side_panics() {
        let _ = ResizeCenterCrop::new(224, 225);
    }
}
