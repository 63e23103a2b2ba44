//! Owns the small values that every part speaks in: byte counts, sample ids, seeds.
//! It must never know about any part of the pipeline, and it imports nothing but `std`.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul};
use std::str::FromStr;

/// A number of bytes.
///
/// It parses what people write and prints what people read. A bare suffix (`K`, `M`, `G`, `T`) and the `iB` forms are
/// powers of 1024, as in `ulimit`, container runtimes and batch schedulers; the `B` forms (`MB`, `GB`) are powers of
/// 1000, as on the box a disk came in.
///
/// ```
/// use feedstock::ByteCount;
/// assert_eq!("24G".parse(), Ok(ByteCount(24 << 30)));
/// assert_eq!("1.5GiB".parse(), Ok(ByteCount(3 << 29)));
/// assert_eq!("512MB".parse(), Ok(ByteCount(512_000_000)));
/// assert_eq!(ByteCount(3 << 29).to_string(), "1.50 GiB");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ByteCount(pub u64);

/// What was wrong with a text that should have been a size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseByteCountError {
    text: String,
}

const BINARY: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

impl FromStr for ByteCount {
    type Err = ParseByteCountError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || ParseByteCountError { text: text.to_owned() };
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_')).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let scale: u64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1 << 40,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(refused()),
        };
        let number = number.replace('_', "");
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(scale).map(ByteCount).ok_or_else(refused);
        }
        let value: f64 = number.parse().map_err(|_| refused())?;
        let bytes = value * scale as f64;
        // A float holds every integer up to 2^53 (8 PiB), far past any budget; beyond it a fraction means nothing.
        if bytes.is_finite() && (0.0..9_007_199_254_740_992.0).contains(&bytes) {
            Ok(ByteCount(bytes.round() as u64))
        } else {
            Err(refused())
        }
    }
}

impl fmt::Display for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match BINARY.iter().find(|(_, scale)| self.0 >= *scale) {
            Some((unit, scale)) => {
                let value = self.0 as f64 / *scale as f64;
                let decimals = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
                format!("{value:.decimals$} {unit}")
            }
            None => format!("{} B", self.0),
        };
        f.pad(&text)
    }
}

impl fmt::Display for ParseByteCountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "'{}' is no size: write a number and a unit, such as 24G, 1.5GiB or 512MB (units: B, K, M, G, T, KiB, MiB, \
             GiB, TiB, KB, MB, GB, TB)",
            self.text
        )
    }
}

impl std::error::Error for ParseByteCountError {}

impl ByteCount {
    /// No bytes.
    pub const ZERO: ByteCount = ByteCount(0);

    /// `self - other`, or zero where `other` is larger.
    #[must_use]
    pub fn saturating_sub(self, other: ByteCount) -> ByteCount {
        ByteCount(self.0.saturating_sub(other.0))
    }
}

impl Add for ByteCount {
    type Output = ByteCount;
    fn add(self, other: ByteCount) -> ByteCount {
        ByteCount(self.0.saturating_add(other.0))
    }
}

impl AddAssign for ByteCount {
    fn add_assign(&mut self, other: ByteCount) {
        *self = *self + other;
    }
}

impl Mul<u64> for ByteCount {
    type Output = ByteCount;
    fn mul(self, times: u64) -> ByteCount {
        ByteCount(self.0.saturating_mul(times))
    }
}

impl Sum for ByteCount {
    fn sum<I: Iterator<Item = ByteCount>>(parts: I) -> ByteCount {
        parts.fold(ByteCount::ZERO, Add::add)
    }
}

/// The place of a sample in its source: `0..source.len()`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct SampleId(pub u64);

impl fmt::Display for SampleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sample {}", self.0)
    }
}

/// The number that every random choice of a run is derived from, together with the epoch and the sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Seed(pub u64);

/// A stream of random numbers that is a pure function of its key: no thread, queue or clock has a say in it.
///
/// The generator is `SplitMix64` (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014), run
/// as a counter: the nth number is the finaliser of `key + n * golden_gamma`.
#[derive(Clone, Debug)]
pub struct KeyedRng {
    state: u64,
}

const GOLDEN_GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// The finaliser of `SplitMix64`: a bijection on 64 bits in which every input bit reaches every output bit.
#[must_use]
pub fn mix64(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

impl KeyedRng {
    /// The stream for one purpose (`salt`) of one sample in one epoch.
    #[must_use]
    pub fn new(seed: Seed, epoch: u64, sample: SampleId, salt: u64) -> Self {
        let mut state = mix64(seed.0.wrapping_add(GOLDEN_GAMMA));
        for part in [epoch, sample.0, salt] {
            state = mix64(state ^ mix64(part.wrapping_add(GOLDEN_GAMMA)).wrapping_add(GOLDEN_GAMMA));
        }
        KeyedRng { state }
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN_GAMMA);
        mix64(self.state)
    }

    /// A number in `[0, 1)`, with 53 random bits.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number in `[low, high)`; `low` where the two are equal.
    pub fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// An integer in `[0, bound)`, without bias worth measuring (Lemire's multiply and shift).
    ///
    /// # Panics
    /// Panics if `bound` is zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "an empty range has no number in it");
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_parse_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("17b", 17),
            ("64K", 64 << 10),
            ("64 kib", 64 << 10),
            ("24G", 24 << 30),
            ("1.5GiB", 3 << 29),
            (".5g", 1 << 29),
            ("512MB", 512_000_000),
            ("1_000", 1000),
            (" 2T ", 2 << 40),
        ] {
            assert_eq!(text.parse(), Ok(ByteCount(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_its_text() {
        for text in ["", "G", "12Q", "-1G", "1e3", "1.2.3G", "nan", "inf", "20000000T", "99999999999999999999", "1..5G"]
        {
            let error = text.parse::<ByteCount>().expect_err(text);
            assert!(error.to_string().contains(&format!("'{text}'")), "{error}");
        }
    }

    #[test]
    fn sizes_print_with_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (10 << 20, "10.0 MiB"),
            (100 << 20, "100 MiB"),
            (3 << 29, "1.50 GiB"),
            (5 << 50, "5120 TiB"),
        ] {
            assert_eq!(ByteCount(bytes).to_string(), text);
        }
        assert_eq!(format!("{:>9}", ByteCount(1024)), " 1.00 KiB");
    }

    proptest! {
        #[test]
        fn a_printed_size_parses_to_within_its_digits(bytes in 0u64..(1 << 53)) {
            let again: ByteCount = ByteCount(bytes).to_string().parse().unwrap();
            let error = (again.0 as f64 - bytes as f64).abs();
            prop_assert!(error <= bytes as f64 * 0.006, "{bytes} -> {again:?}");
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,24}") {
            let _ = text.parse::<ByteCount>();
        }
    }

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
