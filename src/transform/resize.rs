//! Owns the transforms that leave nothing to chance: what a model is validated with. They must never draw a number.

use super::{Geometry, Region, Transform, check_side};
use crate::tensor::SampleSpec;
use crate::units::KeyedRng;

/// The whole picture, stretched to an exact size; its proportions are not kept.
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

/// The picture scaled until its short side has a given length, then its central square: the validation recipe of
/// ImageNet (`ResizeCenterCrop::new(256, 224)`).
///
/// Sizes and offsets are torchvision's, for `Resize(resize)` and `CenterCrop(crop)`: the long side is rounded down, half
/// a pixel of offset to the even neighbour. Both steps are one here: only what the square needs is resampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResizeCenterCrop {
    resize: u32,
    spec: SampleSpec,
}

impl ResizeCenterCrop {
    /// Samples of `crop` x `crop` pixels out of pictures whose short side is scaled to `resize`.
    ///
    /// # Panics
    /// Panics if `crop` is 0 or above `resize`, or `resize` above [`SIDE_MAX`](crate::tensor::SIDE_MAX).
    #[must_use]
    pub fn new(resize: u32, crop: u32) -> Self {
        check_side(resize);
        check_side(crop);
        assert!(crop <= resize, "a square of {crop} pixels cannot be cut from a side of {resize}");
        ResizeCenterCrop { resize, spec: SampleSpec { height: crop, width: crop } }
    }

    /// One axis of `length` pixels, scaled to `scaled`: the pixels looked at, and the window's place among them.
    fn axis(&self, length: u32, scaled: u64) -> (u32, u32, f64, f64) {
        let crop = self.spec.width;
        let scale = f64::from(length) / scaled as f64;
        let offset = ((scaled - u64::from(crop)) as f64 / 2.0).round_ties_even();
        let (start, span) = (offset * scale, f64::from(crop) * scale);
        // The filter reaches one output pixel (and when enlarging, one input pixel) beyond the window; one more for what
        // rounding may do.
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
        let (x, region_width, left, window_width) = self.axis(width, scaled(width));
        let (y, region_height, top, window_height) = self.axis(height, scaled(height));
        Geometry {
            region: Region { x, y, width: region_width, height: region_height },
            window: [left, top, window_width, window_height],
            target: Region::whole(self.spec.width, self.spec.height),
            flip: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{SampleId, Seed};
    use proptest::prelude::*;

    fn geometry(transform: &impl Transform, width: u32, height: u32) -> Geometry {
        transform.geometry(width, height, &mut KeyedRng::new(Seed(0), 0, SampleId(0), 0))
    }

    #[test]
    fn the_window_is_torchvisions() {
        // 500x333 -> 384x256 (int(384.38)), offsets (80, 16), scale 500/384 across and 333/256 down.
        let Geometry { region, window, target, flip } = geometry(&ResizeCenterCrop::new(256, 224), 500, 333);
        let [left, top, width, height] = window;
        let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(close(f64::from(region.x) + left, 80.0 * 500.0 / 384.0), "{region:?} {window:?}");
        assert!(close(f64::from(region.y) + top, 16.0 * 333.0 / 256.0));
        assert!(close(width, 224.0 * 500.0 / 384.0) && close(height, 224.0 * 333.0 / 256.0));
        assert_eq!((target, flip), (Region::whole(224, 224), false));
        // Room for the filter, and no more.
        assert!(region.width < 224 * 500 / 384 + 10 && region.fits(500, 333), "{region:?}");
    }

    #[test]
    fn half_a_pixel_goes_to_the_even_neighbour() {
        // 48 scaled to 45, cut to 32: offset 6.5 -> 6; cut to 30: 7.5 -> 8.
        for (crop, offset) in [(32, 6.0), (30, 8.0)] {
            let Geometry { region, window, .. } = geometry(&ResizeCenterCrop::new(45, crop), 45, 45);
            assert_eq!(f64::from(region.x) + window[0], offset);
        }
    }

    #[test]
    fn exact_shows_everything() {
        let geometry = geometry(&Resize::exact(48, 24), 97, 61);
        assert_eq!(geometry, Geometry::stretch(Region::whole(97, 61), SampleSpec { height: 48, width: 24 }, false));
    }

    proptest! {
        #[test]
        fn no_picture_is_left(width in 1u32..70_000, height in 1u32..70_000, crop in 1u32..300, more in 0u32..300) {
            for (w, h) in [(width, height), (height, width), (1, height), (width, 1)] {
                let Geometry { region, window, .. } = geometry(&ResizeCenterCrop::new(crop + more, crop), w, h);
                prop_assert!(region.fits(w, h), "{region:?}");
                let [left, top, width, height] = window;
                prop_assert!(left >= 0.0 && left + width <= f64::from(region.width) + 1e-6, "{region:?} {window:?}");
                prop_assert!(top >= 0.0 && top + height <= f64::from(region.height) + 1e-6, "{region:?} {window:?}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "a square of 225 pixels cannot be cut from a side of 224")]
    fn a_crop_larger_than_the_picture_panics() {
        let _ = ResizeCenterCrop::new(224, 225);
    }
}
