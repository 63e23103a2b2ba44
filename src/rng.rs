//! Random numbers that are a pure function of a key, so that no thread, queue or clock has a say in them.

use crate::units::SampleId;

/// The seed of a run. Every random choice derives from it, the epoch and the sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Seed(pub u64);

/// A stream of random numbers that is a pure function of its key: (seed, epoch, sample, purpose).
///
/// The generator is `SplitMix64` (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014), run
/// as a counter: the nth number is the finalizer of `key + n * golden_gamma`.
///
/// ```
/// use feedstock::SampleId;
/// use feedstock::rng::{KeyedRng, Seed};
/// let draw = || KeyedRng::new(Seed(17), 0, SampleId(3), 1).unit();
/// assert_eq!(draw(), draw());
/// ```
#[derive(Clone, Debug)]
pub struct KeyedRng {
    state: u64,
}

const GOLDEN_GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// The finalizer of `SplitMix64`: a bijection on 64 bits in which every input bit reaches every output bit.
#[doc(hidden)]
#[must_use]
pub fn mix64(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

impl KeyedRng {
    /// Creates the stream of one sample in one epoch for one purpose, which `salt` names.
    #[must_use]
    pub fn new(seed: Seed, epoch: u64, sample: SampleId, salt: u64) -> Self {
        let mut state = mix64(seed.0.wrapping_add(GOLDEN_GAMMA));
        for part in [epoch, sample.0, salt] {
            state = mix64(state ^ mix64(part.wrapping_add(GOLDEN_GAMMA)).wrapping_add(GOLDEN_GAMMA));
        }
        KeyedRng { state }
    }

    /// Returns the next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN_GAMMA);
        mix64(self.state)
    }

    /// Returns a number in `[0, 1)`, with 53 random bits.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Returns a number in `[low, high)`, or `low` if the two are equal.
    pub fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Returns an integer in `[0, bound)`, by Lemire's multiply and shift, whose bias is negligible.
    ///
    /// # Panics
    /// Panics if `bound` is zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "below(0): the bound is at least 1");
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_by_every_part_of_their_key() {
        let first = |seed, epoch, sample, salt| KeyedRng::new(Seed(seed), epoch, SampleId(sample), salt).next_u64();
        let base = first(1, 2, 3, 4);
        assert_eq!(base, first(1, 2, 3, 4));
        for other in [first(2, 2, 3, 4), first(1, 3, 3, 4), first(1, 2, 4, 4), first(1, 2, 3, 5), first(2, 1, 3, 4)] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn unit_and_below_are_uniform() {
        let mut rng = KeyedRng::new(Seed(7), 0, SampleId(0), 0);
        let mut counts = [0u32; 10];
        let mut sum = 0.0;
        for _ in 0..100_000 {
            counts[rng.below(10) as usize] += 1;
            sum += rng.unit();
        }
        // 100,000 draws: a fair bin is 10,000 +- 95; six deviations leave a false alarm less likely than a bit flip.
        assert!(counts.iter().all(|&n| n.abs_diff(10_000) < 570), "{counts:?}");
        assert!((sum / 100_000.0 - 0.5).abs() < 0.006, "{sum}");
    }
}
