//! Filter weights: the contribution of each pixel of a row or column to each pixel of the sample.
//!
//! The filter is a triangle as wide as two pixels of the result, or of the image where that is enlarged. Weights are
//! integers with as many binary places (`precision`) as 16 bits can hold. They sum to exactly one, so that one color
//! stays that color: their running sum is rounded, not each weight alone. No pixel outside the crop has a weight.

/// Binary places that keep `255 * weights` and half a level in 31 bits.
const PRECISION_MAX: u32 = 21;

/// Fractional bits of the running sum of weights.
const FRACTION_BITS: u32 = 40;

/// One axis of an image that is scaled: `count` pixels from a source box on `length` pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    /// Stored pixels of the crop.
    pub(super) length: usize,
    /// Pixels of the result.
    pub(super) count: usize,
    /// Start of the source box, in pixels of the upright axis.
    start: f64,
    /// Pixels of the image per pixel of the result.
    scale: f64,
    /// Half width of the filter, in pixels of the image.
    support: f64,
    /// True if the axis is stored in reverse order.
    pub(super) mirrored: bool,
    /// Maximum number of weights per pixel.
    pub(super) taps: usize,
    /// Binary places of the weights.
    pub(super) precision: u32,
    /// Decrease of a raw weight from pixel to pixel.
    slope: f64,
    /// Sum of the weights, with their fractional bits.
    one: f64,
}

impl Axis {
    /// A source box of `span` pixels from `start`, inside `length` stored pixels, becomes `count` pixels.
    pub(super) fn new(start: f64, span: f64, length: usize, count: usize, mirrored: bool) -> Self {
        debug_assert!(start >= 0.0 && span > 0.0 && start + span <= length as f64 + 1e-6 && count > 0);
        let scale = span / count as f64;
        let support = scale.max(1.0);
        // Computed upright and then mirrored, the result is bit-identical to that of a mirrored image.
        let start = if mirrored { (length as f64 - (start + span)).max(0.0) } else { start };
        // Number of pixel centers in an open interval of this length.
        let taps = (2.0 * support).ceil() as usize;
        let precision = precision(support);
        let (slope, one) = (1.0 / support, (1u64 << (precision + FRACTION_BITS)) as f64);
        Axis { length, count, start, scale, support, mirrored, taps: taps.min(length), precision, slope, one }
    }

    /// Converts the stored index of a pixel of the result to its upright index.
    pub(super) fn seen(&self, at: usize) -> usize {
        if self.mirrored { self.count - 1 - at } else { at }
    }

    /// Returns the stored pixels under the filter for the upright pixel `at` of the result: the first, and the one
    /// after the last.
    pub(super) fn reach(&self, at: usize) -> (usize, usize) {
        let (first, end, _) = self.reach_seen(at);
        if self.mirrored { (self.length - end, self.length - first) } else { (first, end) }
    }

    #[inline]
    fn reach_seen(&self, at: usize) -> (usize, usize, f64) {
        let middle = self.start + (float(at) + 0.5) * self.scale;
        // The first and last pixels whose centers are within the support. Casts truncate toward zero.
        let first = ((middle - self.support + 0.5) as i64).max(0) as usize;
        let first = first.min(self.length - 1);
        let stop = middle + self.support - 0.5;
        let whole = stop as i64;
        let end = (whole + i64::from((whole as f64) < stop)) as usize;
        (first, end.clamp(first + 1, self.length.min(first + self.taps)), middle)
    }

    /// Writes the weights of the upright pixel `at` in stored order to the front of `weights`, and returns
    /// [`reach`](Self::reach). They are not negative and sum to `1 << precision`.
    pub(super) fn weights(&self, at: usize, weights: &mut [i16]) -> (usize, usize) {
        let (first, end, middle) = self.reach_seen(at);
        let count = end - first;
        let weights = &mut weights[..count];
        if self.taps <= 2 && self.support <= 1.0 {
            // Enlarged: two neighbours share according to their distances. It is most of the cost of a small sample.
            let second = (middle - 0.5 - float(first)).clamp(0.0, 1.0) * f64::from(1 << self.precision) + 0.5;
            let second = if count == 2 { second as i64 as i16 } else { 0 };
            weights[count - 1] = second;
            weights[0] = (1 << self.precision) - second;
            return self.stored(first, end, weights);
        }
        // Distances grow by one from pixel to pixel, so on either side of the middle weights are an arithmetic series:
        // its sum is known at once, and its terms follow by addition.
        let left = ((middle + 0.5) as i64 as usize).clamp(first, end) - first;
        let right = count - left;
        let (to_first, to_peak) = (middle - 0.5 - float(first), float(first + left) + 0.5 - middle);
        let series = |n: f64, nearest: f64| n * (nearest + (n - 1.0) * 0.5);
        let (left_float, right_float, slope) = (float(left), float(right), self.slope);
        let distances = series(left_float, to_first - (left_float - 1.0)) + series(right_float, to_peak);
        let sum = left_float + right_float - slope * distances;
        let factor = self.one / sum;
        let step = (factor * slope) as i64;
        let (mut running, mut before) = (1i64 << (FRACTION_BITS - 1), 0i32);
        let mut put = |weight: &mut i16, value: i64| {
            running += value.max(0);
            let now = (running >> FRACTION_BITS) as i32;
            *weight = (now - before) as i16;
            before = now;
        };
        let (rising, falling) = weights.split_at_mut(left);
        let mut value = (factor * (1.0 - to_first * slope)) as i64;
        for weight in rising {
            put(weight, value);
            value += step;
        }
        let mut value = (factor * (1.0 - to_peak * slope)) as i64;
        for weight in falling {
            put(weight, value);
            value -= step;
        }
        // A few units of the last place may be missing from the running sum, never as much as a half.
        weights[count - 1] += ((1 << self.precision) - before) as i16;
        self.stored(first, end, weights)
    }

    /// Puts upright weights into the stored order.
    #[inline]
    fn stored(&self, first: usize, end: usize, weights: &mut [i16]) -> (usize, usize) {
        if self.mirrored {
            weights.reverse();
            return (self.length - end, self.length - first);
        }
        (first, end)
    }
}

/// Converts a count to a float, with the one instruction for signed numbers; no count is near 2^63.
#[inline]
fn float(count: usize) -> f64 {
    count as i64 as f64
}

/// Maximum number of binary places with which every weight fits 16 bits.
///
/// A source box lies in its crop, so at least `whole` pixels lie within half the support of any middle, and the k-th
/// nearest of them at most k / 2 away. Their raw weights sum to at least `whole - (whole + 1) / 4`; none is above 1.
fn precision(support: f64) -> u32 {
    let whole = support as u64;
    let fits = |precision: u32| {
        let largest = if whole < 2 { 1 << precision } else { (4u64 << precision) / (3 * whole - 1) };
        largest + 2 <= i16::MAX as u64
    };
    (14..=PRECISION_MAX).rev().find(|&precision| fits(precision)).unwrap_or(14)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn weights_are_the_triangles(
            length in 1usize..3000, count in 1usize..300, left in 0.0f64..1.0, span in 0.0f64..1.0,
            whole in any::<bool>(),
        ) {
            let all = length as f64;
            let (start, span) = if whole { (0.0, all) } else {
                let span = (span * all).max(1e-3).min(all);
                (left * (all - span), span)
            };
            let axis = Axis::new(start, span, length, count, false);
            let mirror = Axis::new(all - (start + span), span, length, count, true);
            let (mut weights, mut reversed) = (vec![-1; axis.taps], vec![-1; axis.taps]);
            for at in 0..count {
                let (first, end) = axis.weights(at, &mut weights);
                prop_assert_eq!((first, end), axis.reach(at));
                prop_assert!(first < end && end <= length && end - first <= axis.taps);
                let weights = &weights[..end - first];
                let one = 1 << axis.precision;
                prop_assert_eq!(weights.iter().map(|&w| i32::from(w)).sum::<i32>(), one);
                let scale = span / count as f64;
                let middle = start + (at as f64 + 0.5) * scale;
                let raw = |x: usize| (1.0 - (x as f64 + 0.5 - middle).abs() / scale.max(1.0)).max(0.0);
                let sum: f64 = (0..length).map(raw).sum();
                prop_assert!((0..length).all(|x| raw(x) < 1e-6 || (first..end).contains(&x)));
                for (x, &weight) in (first..).zip(weights) {
                    prop_assert!(weight >= 0);
                    let exact = raw(x) / sum * f64::from(one);
                    prop_assert!((f64::from(weight) - exact).abs() < 1.01, "{} {} {}", at, x, weight);
                }
                let (mirror_first, mirror_end) = mirror.weights(at, &mut reversed);
                prop_assert_eq!((mirror_first, mirror_end), mirror.reach(at));
                prop_assert!(mirror_first.abs_diff(length - end) <= 1 && mirror_end.abs_diff(length - first) <= 1);
            }
        }
    }

    #[test]
    fn a_very_wide_filter_still_sums_to_one() {
        for (length, count) in [(65_535, 1), (1 << 20, 1), (1 << 20, 3), (16_384, 16_384), (3, 16_384)] {
            let axis = Axis::new(0.0, f64::from(length), length as usize, count, false);
            let mut weights = vec![0; axis.taps];
            for at in [0, count / 2, count - 1] {
                let (first, end) = axis.weights(at, &mut weights);
                let sum: i64 = weights[..end - first].iter().map(|&w| i64::from(w)).sum();
                assert_eq!(sum, 1 << axis.precision);
                assert!(weights[..end - first].iter().all(|&w| w >= 0));
            }
        }
    }
}
