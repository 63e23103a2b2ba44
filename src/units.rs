//! Small values that every module shares: byte counts, sample ids, and the error of parsing.

use std::borrow::Cow;
use std::convert::Infallible;
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul};
use std::str::FromStr;

/// A number of bytes.
///
/// Parses from a number with a unit and prints with three significant digits. A bare suffix (`K`, `M`, `G`, `T`) and
/// the `iB` forms are powers of 1024, as in `ulimit`, container runtimes and batch schedulers; the `B` forms (`MB`,
/// `GB`) are powers of 1000, as disks are labeled.
///
/// ```
/// use feedstock::ByteCount;
/// assert_eq!("24G".parse(), Ok(ByteCount(24 << 30)));
/// assert_eq!("1.5GiB".parse(), Ok(ByteCount(3 << 29)));
/// assert_eq!("512MB".parse(), Ok(ByteCount(512_000_000)));
/// assert_eq!(ByteCount(3 << 29).to_string(), "1.50 GiB");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ByteCount(pub u64);

/// Text that does not parse as a value: the kind of value, the text, and the accepted forms.
///
/// Every [`FromStr`] of this library has it as its error.
///
/// ```
/// use feedstock::DType;
/// let error = "f64".parse::<DType>().expect_err("not a dtype of a batch");
/// assert_eq!((error.kind(), error.text()), ("dtype", "f64"));
/// assert_eq!(error.to_string(), "unknown dtype 'f64': expected u8, f32, bf16 or f16");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem} {kind} '{text}': expected {expected}")]
pub struct ParseError {
    problem: &'static str,
    kind: &'static str,
    text: String,
    expected: Cow<'static, str>,
}

impl ParseError {
    /// An error for text that is none of a few names.
    #[must_use]
    pub fn unknown(kind: &'static str, text: &str, expected: impl Into<Cow<'static, str>>) -> Self {
        ParseError { problem: "unknown", kind, text: text.to_owned(), expected: expected.into() }
    }

    /// An error for text that does not have the form of a value.
    #[must_use]
    pub fn invalid(kind: &'static str, text: &str, expected: impl Into<Cow<'static, str>>) -> Self {
        ParseError { problem: "invalid", ..Self::unknown(kind, text, expected) }
    }

    /// The kind of value that was expected, such as `dtype`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// The text that was parsed.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The forms that are accepted.
    #[must_use]
    pub fn expected(&self) -> &str {
        &self.expected
    }
}

impl From<Infallible> for ParseError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// The accepted forms of a [`ByteCount`].
pub(crate) const SIZE_FORMS: &str = "a number with a unit, such as 24G, 1.5GiB or 512MB \
    (units: B, K, M, G, T, KiB, MiB, GiB, TiB, KB, MB, GB, TB)";

const BINARY: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

impl FromStr for ByteCount {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || ParseError::invalid("size", text, SIZE_FORMS);
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

impl ByteCount {
    /// No bytes.
    pub const ZERO: ByteCount = ByteCount(0);

    /// Subtraction that stops at zero.
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

/// The index of a sample in its source: `0..source.len()`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SampleId(pub u64);

impl fmt::Display for SampleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sample {}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_parse_with_every_unit() {
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
    fn an_invalid_size_is_refused_with_its_text() {
        for text in ["", "G", "12Q", "-1G", "1e3", "1.2.3G", "nan", "inf", "20000000T", "99999999999999999999", "1..5G"]
        {
            let error = text.parse::<ByteCount>().expect_err(text);
            assert!(error.to_string().starts_with(&format!("invalid size '{text}': expected a number")), "{error}");
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
}
