//! Owns the filter: how much each pixel of a row or column counts for each pixel of the sample. It must never name a
//! pixel outside its region, and its weights sum to exactly one, so that one colour stays that colour.
//!
//! The filter is a triangle as wide as two pixels of the result, or of the picture where that is enlarged. Weights are
//! integers with as many binary places as 16 bits can hold; what is rounded is their running sum, not each alone.

/// Binary places that keep `255 * weights` and half a level in 31 bits.
const PLACES_MAX: u32 = 21;

/// Fractional bits of the running sum of weights.
const FRACTION_BITS: u32 = 40;

/// One axis of a picture that is scaled: `count` pixels out of a window on `length` pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    length: usize,
    count: usize,
    /// Where the window starts, in pixels as the axis is seen.
    start: f64,
    /// Pixels of the picture for one of the result.
    scale: f64,
    /// How far from its middle a pixel of the result looks.
    support: f64,
    /// Whether the axis is stored the other way round from how it is seen.
    mirrored: bool,
    taps: usize,
    places: u32,
    /// By how much a raw weight falls from pixel to pixel.
    slope: f64,
    /// What weights sum to, with their fractional bits.
    one: f64,
}

impl Axis {
    /// A window of `span` pixels from `start`, inside `length` stored pixels, becomes `count` pixels.
    pub(super) fn new(start: f64, span: f64, length: usize, count: usize, mirrored: bool) -> Self {
        debug_assert!(start >= 0.0 && span > 0.0 && start + span <= length as f64 + 1e-6 && count > 0);
        let scale = span / count as f64;
        let support = scale.max(1.0);
        // What is computed as seen and then mirrored is the same to the bit as a mirrored picture seen as stored.
        let start = if mirrored { (length as f64 - (start + span)).max(0.0) } else { start };
        // An open interval of this length holds so many pixel middles.
        let taps = (2.0 * support).ceil() as usize;
        let places = places(support);
        let (slope, one) = (1.0 / support, (1u64 << (places + FRACTION_BITS)) as f64);
        Axis { length, count, start, scale, support, mirrored, taps: taps.min(length), places, slope, one }
    }

    /// Pixels of the result.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Most weights that a pixel has.
    pub(super) fn taps(&self) -> usize {
        self.taps
    }

    /// Binary places of the weights.
    pub(super) fn places(&self) -> u32 {
        self.places
    }

    /// Stored pixels of the region.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// The pixel of the result, counted as seen, that is number `at` as stored.
    pub(super) fn seen(&self, at: usize) -> usize {
        if self.mirrored { self.count - 1 - at } else { at }
    }

    /// Whether the axis is stored the other way round from how it is seen.
    pub(super) fn mirrored(&self) -> bool {
        self.mirrored
    }

    /// The stored pixels that pixel `at` of the result, counted as seen, is made of: the first, and the one after the last.
    pub(super) fn reach(&self, at: usize) -> (usize, usize) {
        let (first, end, _) = self.reach_seen(at);
        if self.mirrored { (self.length - end, self.length - first) } else { (first, end) }
    }

    #[inline]
    fn reach_seen(&self, at: usize) -> (usize, usize, f64) {
        let middle = self.start + (float(at) + 0.5) * self.scale;
        // The first and last pixels whose middles are within the support. Casts cut off toward zero.
        let first = ((middle - self.support + 0.5) as i64).max(0) as usize;
        let first = first.min(self.length - 1);
        let stop = middle + self.support - 0.5;
        let whole = stop as i64;
        let end = (whole + i64::from((whole as f64) < stop)) as usize;
        (first, end.clamp(first + 1, self.length.min(first + self.taps)), middle)
    }

    /// Writes the weights of pixel `at` in stored order to the front of `weights`, and says where they lie as
    /// [`reach`](Self::reach) does. They are not negative and sum to `1 << places`.
    pub(super) fn weights(&self, at: usize, weights: &mut [i16]) -> (usize, usize) {
        let (first, end, middle) = self.reach_seen(at);
        let count = end - first;
        let weights = &mut weights[..count];
        if self.taps <= 2 && self.support <= 1.0 {
            // Enlarged: two neighbours share according to their distances. It is most of the cost of a small sample.
            let second = (middle - 0.5 - float(first)).clamp(0.0, 1.0) * f64::from(1 << self.places) + 0.5;
            let second = if count == 2 { second as i64 as i16 } else { 0 };
            weights[count - 1] = second;
            weights[0] = (1 << self.places) - second;
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
        weights[count - 1] += ((1 << self.places) - before) as i16;
        self.stored(first, end, weights)
    }

    /// Puts weights that are in the order as seen into the stored one.
    #[inline]
    fn stored(&self, first: usize, end: usize, weights: &mut [i16]) -> (usize, usize) {
        if self.mirrored {
            weights.reverse();
            return (self.length - end, self.length - first);
        }
        (first, end)
    }
}

/// A count as a float, by the one instruction that there is for signed numbers; none is near 2^63.
#[inline]
fn float(count: usize) -> f64 {
    count as i64 as f64
}

/// The most binary places with which every weight fits 16 bits.
///
/// A window lies in its region, so at least `whole` pixels lie within half the support of any middle, and the k-th
/// nearest of them at most k / 2 away. Their raw weights sum to at least `whole - (whole + 1) / 4`; none is above 1.
fn places(support: f64) -> u32 {
    let whole = support as u64;
    let fits = |places: u32| {
        let largest = if whole < 2 { 1 << places } else { (4u64 << places) / (3 * whole - 1) };
        largest + 2 <= i16::MAX as u64
    };
    (14..=PLACES_MAX).rev().find(|&places| fits(places)).unwrap_or(14)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn weights_are_the_triangles(
            length in 1usize..3000, count in 1usize..300, left in 0.0f64..1.0, span in 0.0f64..1.0, whole in any::<bool>(),
        ) {
            let all = length as f64;
            let (start, span) = if whole { (0.0, all) } else {
                let span = (span * all).max(1e-3).min(all);
                (left * (all - span), span)
            };
            let axis = Axis::new(start, span, length, count, false);
            let mirror = Axis::new(all - (start + span), span, length, count, true);
            let (mut weights, mut reversed) = (vec![-1; axis.taps()], vec![-1; axis.taps()]);
            for at in 0..count {
                let (first, end) = axis.weights(at, &mut weights);
                prop_assert_eq!((first, end), axis.reach(at));
                prop_assert!(first < end && end <= length && end - first <= axis.taps());
                let weights = &weights[..end - first];
                let one = 1 << axis.places();
                prop_assert_eq!(weights.iter().map(|&w| i32::from(w)).sum::<i32>(), one);
                let scale = span / count as f64;
                let middle = start + (at as f64 + 0.5) * scale;
                let raw = |x: usize| (1.0 - (x as f64 + 0.5 - middle).abs() / scale.max(1.0)).max(0.0);
                let sum: f64 = (0..length).map(raw).sum();
                prop_assert!((0..length).all(|x| raw(x) < 1e-6 || (first..end).contains(&x)));
                for (x, &weight) in (first..).zip(weights) {
                    prop_assert!(weight >= 0);
                    prop_assert!((f64::from(weight) - raw(x) / sum * f64::from(one)).abs() < 1.01, "{} {} {}", at, x, weight);
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
            let mut weights = vec![0; axis.taps()];
            for at in [0, count / 2, count - 1] {
                let (first, end) = axis.weights(at, &mut weights);
                let sum: i64 = weights[..end - first].iter().map(|&w| i64::from(w)).sum();
                assert_eq!(sum, 1 << axis.places());
                assert!(weights[..end - first].iter().all(|&w| w >= 0));
            }
        }
    }
}
