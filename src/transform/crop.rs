//! Transforms with a random crop.

use super::geometry::{Geometry, Transform, check_probability, check_side};
use crate::rng::KeyedRng;
use crate::tensor::{Region, SampleSpec};

/// Random crop of random size and aspect ratio, stretched to a square. The usual augmentation for training on ImageNet.
///
/// The choice is torchvision's `RandomResizedCrop.get_params`: ten times, draw an area (uniform in `scale`, as a share
/// of the image's) and an aspect ratio (log-uniform in `ratio`); the first box that fits is placed uniformly. If none
/// fits, the largest central box whose ratio is within bounds.
///
/// ```
/// use feedstock::transform::RandomResizedCrop;
/// let transform = RandomResizedCrop::new(224).scale(0.35, 1.0).flip(0.5);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomResizedCrop {
    spec: SampleSpec,
    scale: (f64, f64),
    ratio: (f64, f64),
    flip: f64,
}

impl RandomResizedCrop {
    /// Samples of `side` x `side` pixels: 8 % to 100 % of the image at ratios of 3:4 to 4:3, never mirrored.
    ///
    /// # Panics
    /// Panics if `side` is 0 or above [`SIDE_MAX`](crate::tensor::SIDE_MAX).
    #[must_use]
    pub fn new(side: u32) -> Self {
        check_side(side);
        RandomResizedCrop {
            spec: SampleSpec { height: side, width: side },
            scale: (0.08, 1.0),
            ratio: (3.0 / 4.0, 4.0 / 3.0),
            flip: 0.0,
        }
    }

    /// Sets the range of the crop's area, as a share of the image's.
    ///
    /// # Panics
    /// Panics unless `0 < low <= high <= 1`.
    #[must_use]
    pub fn scale(mut self, low: f64, high: f64) -> Self {
        assert!(0.0 < low && low <= high && high <= 1.0, "scale {low} to {high}: expected 0 < low <= high <= 1");
        self.scale = (low, high);
        self
    }

    /// Sets the range of the crop's aspect ratio (width to height).
    ///
    /// # Panics
    /// Panics unless `0 < low <= high`, both finite.
    #[must_use]
    pub fn ratio(mut self, low: f64, high: f64) -> Self {
        assert!(
            0.0 < low && low <= high && high.is_finite(),
            "ratio {low} to {high}: expected 0 < low <= high < infinity"
        );
        self.ratio = (low, high);
        self
    }

    /// Sets the probability that a sample is mirrored. Default: 0.
    ///
    /// # Panics
    /// Panics unless `p` is between 0 and 1.
    #[must_use]
    pub fn flip(mut self, p: f64) -> Self {
        check_probability(p);
        self.flip = p;
        self
    }

    fn choose(&self, width: u32, height: u32, rng: &mut KeyedRng) -> Region {
        const TRIES: usize = 10;
        let area = f64::from(width) * f64::from(height);
        let (low, high) = (self.ratio.0.ln(), self.ratio.1.ln());
        for _ in 0..TRIES {
            let target_area = area * rng.range(self.scale.0, self.scale.1);
            let aspect = rng.range(low, high).exp();
            // Python's `round` takes halves to the even neighbour; so does this. Casts from floats saturate.
            let crop_width = (target_area * aspect).sqrt().round_ties_even() as u32;
            let crop_height = (target_area / aspect).sqrt().round_ties_even() as u32;
            if (1..=width).contains(&crop_width) && (1..=height).contains(&crop_height) {
                let y = rng.below(u64::from(height - crop_height) + 1) as u32;
                let x = rng.below(u64::from(width - crop_width) + 1) as u32;
                return Region { x, y, width: crop_width, height: crop_height };
            }
        }
        let image_ratio = f64::from(width) / f64::from(height);
        let (crop_width, crop_height) = if image_ratio < self.ratio.0 {
            (width, ((f64::from(width) / self.ratio.0).round_ties_even() as u32).clamp(1, height))
        } else if image_ratio > self.ratio.1 {
            (((f64::from(height) * self.ratio.1).round_ties_even() as u32).clamp(1, width), height)
        } else {
            (width, height)
        };
        Region { x: (width - crop_width) / 2, y: (height - crop_height) / 2, width: crop_width, height: crop_height }
    }
}

impl Transform for RandomResizedCrop {
    fn out_spec(&self) -> SampleSpec {
        self.spec
    }

    fn geometry(&self, width: u32, height: u32, rng: &mut KeyedRng) -> Geometry {
        let crop = self.choose(width, height, rng);
        Geometry::stretch(crop, self.spec, rng.unit() < self.flip)
    }
}

/// Random crop at the image's own scale, after black has been put around it. The usual augmentation for training on
/// CIFAR (`RandomCrop::new(32).padding(4).flip(0.5)`).
///
/// The choice is torchvision's `RandomCrop(size, padding)`. An image that is smaller than the sample even with its
/// padding lies somewhere inside the sample, whole.
///
/// ```
/// use feedstock::transform::RandomCrop;
/// let transform = RandomCrop::new(32).padding(4).flip(0.5);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomCrop {
    spec: SampleSpec,
    padding: u32,
    flip: f64,
}

impl RandomCrop {
    /// Samples of `side` x `side` pixels, no padding, never mirrored.
    ///
    /// # Panics
    /// Panics if `side` is 0 or above [`SIDE_MAX`](crate::tensor::SIDE_MAX).
    #[must_use]
    pub fn new(side: u32) -> Self {
        check_side(side);
        RandomCrop { spec: SampleSpec { height: side, width: side }, padding: 0, flip: 0.0 }
    }

    /// Sets the number of black pixels at each of the four edges. Default: 0.
    ///
    /// # Panics
    /// Panics if `pixels` is the sample's side or more: some samples would not show the image at all.
    #[must_use]
    pub fn padding(mut self, pixels: u32) -> Self {
        let side = self.spec.width;
        assert!(pixels < side, "padding of {pixels} pixels: expected less than the sample's side, {side}");
        self.padding = pixels;
        self
    }

    /// Sets the probability that a sample is mirrored. Default: 0.
    ///
    /// # Panics
    /// Panics unless `p` is between 0 and 1.
    #[must_use]
    pub fn flip(mut self, p: f64) -> Self {
        check_probability(p);
        self.flip = p;
        self
    }

    /// Chooses along one axis: the first pixel of the crop, its place in the sample, and the number of pixels.
    fn axis(&self, length: u32, side: u32, rng: &mut KeyedRng) -> (u32, u32, u32) {
        let (length, side, padding) = (i64::from(length), i64::from(side), i64::from(self.padding));
        let room = length + 2 * padding - side;
        let offset = rng.below(room.unsigned_abs() + 1) as i64 + room.min(0);
        // The sample's first pixel in the image's coordinates; negative where it is padding.
        let start = offset - padding;
        let (first, end) = (start.max(0), (start + side).min(length));
        (first as u32, (first - start) as u32, (end - first) as u32)
    }
}

impl Transform for RandomCrop {
    fn out_spec(&self) -> SampleSpec {
        self.spec
    }

    fn geometry(&self, width: u32, height: u32, rng: &mut KeyedRng) -> Geometry {
        let (y, target_y, crop_height) = self.axis(height, self.spec.height, rng);
        let (x, target_x, crop_width) = self.axis(width, self.spec.width, rng);
        let crop = Region { x, y, width: crop_width, height: crop_height };
        Geometry {
            target: Region { x: target_x, y: target_y, width: crop_width, height: crop_height },
            ..Geometry::stretch(crop, self.spec, rng.unit() < self.flip)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Seed;
    use crate::units::SampleId;
    use proptest::prelude::*;

    fn rng(sample: u64) -> KeyedRng {
        KeyedRng::new(Seed(5), 0, SampleId(sample), 0)
    }

    #[test]
    fn areas_and_ratios_are_within_their_ranges() {
        let transform = RandomResizedCrop::new(224).scale(0.2, 0.6).ratio(0.5, 2.0).flip(0.3);
        let (width, height) = (1000, 800);
        let draws = 20_000;
        let (mut flips, mut area_sum, mut log_ratio_sum, mut left, mut top) = (0, 0.0, 0.0, 0, 0);
        for sample in 0..draws {
            let geometry = transform.geometry(width, height, &mut rng(sample));
            let Region { x, y, width: w, height: h } = geometry.crop;
            assert!(geometry.crop.fits(width, height));
            assert_eq!(geometry.source_box, [0.0, 0.0, f64::from(w), f64::from(h)]);
            let area = f64::from(w * h) / f64::from(width * height);
            let ratio = f64::from(w) / f64::from(h);
            // Whole pixels: the box may be half a pixel off on either side.
            assert!((0.198..0.602).contains(&area) && (0.495..2.01).contains(&ratio), "{area} {ratio}");
            area_sum += area;
            log_ratio_sum += ratio.ln();
            flips += u32::from(geometry.flip);
            left += u32::from(x < (width - w) - x);
            top += u32::from(y < (height - h) - y);
        }
        let n = draws as f64;
        // Uniform on [0.2, 0.6] has mean 0.4; boxes that do not fit are drawn again, which takes some large ones away.
        assert!((0.385..0.405).contains(&(area_sum / n)), "{}", area_sum / n);
        // In a 5:4 image more wide boxes fit than tall ones.
        assert!((0.0..0.08).contains(&(log_ratio_sum / n)), "{}", log_ratio_sum / n);
        assert!((f64::from(flips) / n - 0.3).abs() < 0.02, "{flips}");
        for side in [left, top] {
            assert!((0.47..0.53).contains(&(f64::from(side) / n)), "{left} {top}");
        }
    }

    #[test]
    fn flip_probabilities_of_zero_and_one_are_exact() {
        for (p, expected) in [(0.0, false), (1.0, true)] {
            for sample in 0..1000 {
                assert_eq!(RandomResizedCrop::new(8).flip(p).geometry(9, 9, &mut rng(sample)).flip, expected);
                assert_eq!(RandomCrop::new(8).flip(p).geometry(9, 9, &mut rng(sample)).flip, expected);
            }
        }
    }

    #[test]
    fn an_image_that_fits_no_box_is_cropped_in_its_center() {
        let strip = |width, height| RandomResizedCrop::new(8).scale(1.0, 1.0).geometry(width, height, &mut rng(1)).crop;
        // torchvision: 100x10 is wider than 4:3, so height 10, width round(13.33) = 13, offset (100 - 13) // 2.
        assert_eq!(strip(100, 10), Region { x: 43, y: 0, width: 13, height: 10 });
        assert_eq!(strip(10, 100), Region { x: 0, y: 43, width: 10, height: 13 });
        assert_eq!(strip(1, 5000), Region { x: 0, y: 2499, width: 1, height: 1 });
        assert_eq!(strip(1, 1), Region::whole(1, 1));
    }

    #[test]
    fn padding_shows_at_every_edge_equally() {
        let transform = RandomCrop::new(32).padding(4).flip(0.5);
        let mut seen = [[0u32; 9]; 2];
        for sample in 0..9000 {
            let Geometry { crop, target, .. } = transform.geometry(32, 32, &mut rng(sample));
            assert_eq!((crop.width, crop.height), (target.width, target.height));
            assert!(crop.width >= 28 && crop.height >= 28);
            // One of the two is zero: at each edge the image is cropped or padded.
            assert!(crop.x == 0 || target.x == 0);
            seen[0][(4 + crop.x - target.x) as usize] += 1;
            seen[1][(4 + crop.y - target.y) as usize] += 1;
        }
        assert!(seen.as_flattened().iter().all(|n| n.abs_diff(1000) < 200), "{seen:?}");
    }

    proptest! {
        #[test]
        fn crops_stay_inside_the_image(
            width in 1u32..6000, height in 1u32..6000, thin in any::<bool>(), sample in any::<u64>(),
        ) {
            let width = if thin { 1 } else { width };
            for (w, h) in [(width, height), (height, width)] {
                let wild = RandomResizedCrop::new(224).scale(0.001, 1.0).ratio(0.01, 90.0);
                for transform in [RandomResizedCrop::new(224), wild] {
                    prop_assert!(transform.geometry(w, h, &mut rng(sample)).crop.fits(w, h));
                }
                for transform in [RandomCrop::new(32).padding(31), RandomCrop::new(224), RandomCrop::new(1)] {
                    let geometry = transform.geometry(w, h, &mut rng(sample));
                    let side = transform.out_spec().width;
                    prop_assert!(geometry.crop.fits(w, h) && geometry.target.fits(side, side), "{geometry:?}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "probability 1.5: expected 0 to 1")]
    fn an_impossible_probability_panics() {
        let _ = RandomResizedCrop::new(224).flip(1.5);
    }

    #[test]
    #[should_panic(expected = "side of 0 pixels: expected 1 to 16384")]
    fn a_side_of_zero_panics() {
        let _ = RandomCrop::new(0);
    }

    #[test]
    #[should_panic(expected = "scale NaN to 1")]
    fn nonsense_for_a_scale_panics() {
        let _ = RandomResizedCrop::new(224).scale(f64::NAN, 1.0);
    }

    #[test]
    #[should_panic(expected = "padding of 32 pixels: expected less than the sample's side, 32")]
    fn padding_as_large_as_the_sample_panics() {
        let _ = RandomCrop::new(32).padding(32);
    }
}
