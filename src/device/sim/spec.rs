//! Settings of the simulated accelerator, and their text form. Unknown settings are errors.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::device::DeviceError;
use crate::units::ByteCount;

/// Longest latency or step. A longer one is a typing error.
const DURATION_MAX: Duration = Duration::from_secs(3600);

const KEYS: &str = "h2d, latency, step, memory, fail-copy, lose-after";

/// Settings of a simulated accelerator.
///
/// The text form is `sim` or `sim:key=value,...`, in any order, each key at most once:
///
/// | key | meaning | default |
/// |---|---|---|
/// | `h2d` | speed of copies from host to device: a size per second | `25GB/s` (PCIe 4.0 x16) |
/// | `latency` | latency of each copy before its first byte moves | `10us` |
/// | `step` | time that one training step keeps the compute stream busy | `0us` |
/// | `memory` | size of the device's memory | no limit |
/// | `fail-copy` | number of a copy (from 1) that fails | none |
/// | `lose-after` | number of commands before the device is lost | never |
///
/// ```
/// use std::time::Duration;
/// use feedstock::device::SimSpec;
/// let spec: SimSpec = "sim:step=20ms,h2d=12.5GB/s".parse()?;
/// assert_eq!((spec.step, spec.h2d_bytes_per_s), (Duration::from_millis(20), 12_500_000_000));
/// assert_eq!(spec.to_string(), "sim:h2d=12500MB/s,latency=10us,step=20ms");
/// # Ok::<(), feedstock::device::DeviceError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SimSpec {
    /// Speed of copies from host to device, bytes per second; not zero.
    pub h2d_bytes_per_s: u64,
    /// Latency of each copy before its first byte moves.
    pub latency: Duration,
    /// Time that one training step keeps the compute stream busy.
    pub step: Duration,
    /// Size of the device's memory; `None` for no limit.
    pub memory: Option<ByteCount>,
    /// Number of a copy, from 1, that fails, and the device with it.
    pub fail_copy: Option<u64>,
    /// Number of commands (copies, steps, waits) before the device is lost.
    pub lose_after: Option<u64>,
}

impl Default for SimSpec {
    fn default() -> Self {
        SimSpec {
            h2d_bytes_per_s: 25_000_000_000,
            latency: Duration::from_micros(10),
            step: Duration::ZERO,
            memory: None,
            fail_copy: None,
            lose_after: None,
        }
    }
}

impl SimSpec {
    /// Duration of a copy of `len` bytes.
    #[must_use]
    pub fn copy_time(&self, len: usize) -> Duration {
        let nanos = len as u128 * 1_000_000_000 / u128::from(self.h2d_bytes_per_s.max(1));
        self.latency.saturating_add(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "h2d" => self.h2d_bytes_per_s = parse_rate(value)?,
            "latency" => self.latency = parse_duration(value)?,
            "step" => self.step = parse_duration(value)?,
            "memory" => self.memory = Some(value.parse::<ByteCount>().map_err(|error| error.to_string())?),
            "fail-copy" => self.fail_copy = Some(parse_count(value, 1)?),
            "lose-after" => self.lose_after = Some(parse_count(value, 0)?),
            _ => return Err(format!("unknown setting '{key}': expected {KEYS}")),
        }
        Ok(())
    }
}

impl FromStr for SimSpec {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = |cause: String| DeviceError::Spec { text: text.to_owned(), cause };
        let (kind, settings) = text.split_once(':').unwrap_or((text, ""));
        if !kind.trim().eq_ignore_ascii_case("sim") {
            return Err(refused("expected sim or sim:key=value,...".to_owned()));
        }
        let mut spec = SimSpec::default();
        let mut seen: Vec<&str> = Vec::new();
        // `sim` and `sim:` have no settings; between commas there has to be one.
        for setting in settings.split(',').filter(|_| !settings.trim().is_empty()) {
            let (key, value) = setting
                .split_once('=')
                .ok_or_else(|| refused(format!("'{setting}' is not key=value; the keys are {KEYS}")))?;
            let key = key.trim();
            if seen.contains(&key) {
                return Err(refused(format!("{key} is given twice")));
            }
            seen.push(key);
            spec.set(key, value.trim()).map_err(refused)?;
        }
        Ok(spec)
    }
}

impl fmt::Display for SimSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = Exact(
            u128::from(self.h2d_bytes_per_s),
            &[("GB", 1_000_000_000), ("MB", 1_000_000), ("KB", 1000), ("B", 1)],
        );
        write!(f, "sim:h2d={rate}/s,latency={},step={}", exact(self.latency), exact(self.step))?;
        if let Some(memory) = self.memory {
            write!(
                f,
                ",memory={}",
                Exact(u128::from(memory.0), &[("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10), ("", 1)])
            )?;
        }
        if let Some(number) = self.fail_copy {
            write!(f, ",fail-copy={number}")?;
        }
        if let Some(number) = self.lose_after {
            write!(f, ",lose-after={number}")?;
        }
        Ok(())
    }
}

/// A number in the largest of its units that leaves no fraction; the last unit is 1.
struct Exact(u128, &'static [(&'static str, u128)]);

impl fmt::Display for Exact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Exact(number, units) = self;
        let fits = |(_, scale): &&(&str, u128)| *number >= *scale && number.is_multiple_of(*scale);
        match units.iter().find(fits).or(units.last()) {
            Some((unit, scale)) => write!(f, "{}{unit}", number / scale),
            None => number.fmt(f),
        }
    }
}

fn exact(duration: Duration) -> Exact {
    match duration.is_zero() {
        true => Exact(0, &[("us", 1)]),
        false => Exact(duration.as_nanos(), &[("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1000), ("ns", 1)]),
    }
}

fn parse_rate(text: &str) -> Result<u64, String> {
    let refused = || format!("invalid speed '{text}': expected a size per second, such as 25GB/s");
    let size = text.strip_suffix("/s").ok_or_else(refused)?;
    match size.parse::<ByteCount>() {
        Ok(ByteCount(0)) => Err("the speed must be above zero".to_owned()),
        Ok(ByteCount(rate)) => Ok(rate),
        Err(_) => Err(refused()),
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let refused = || format!("invalid time '{text}': expected a number and ns, us, ms or s, such as 20ms");
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or_else(refused)?;
    let (number, unit) = text.split_at(split);
    let scale = match unit.trim() {
        "ns" => 1e-9,
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => return Err(refused()),
    };
    let seconds = number.parse::<f64>().map_err(|_| refused())? * scale;
    let duration = Duration::try_from_secs_f64(seconds).map_err(|_| refused())?;
    match duration <= DURATION_MAX {
        true => Ok(duration),
        false => Err(format!("'{text}' is longer than an hour")),
    }
}

fn parse_count(text: &str, least: u64) -> Result<u64, String> {
    match text.parse::<u64>() {
        Ok(count) if count >= least => Ok(count),
        _ => Err(format!("invalid count '{text}': expected a whole number from {least} on")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn settings_parse_in_any_order() {
        let spec: SimSpec = "sim:memory=8G, step = 1.5ms,latency=0us,h2d=3GiB/s".parse().expect("a sim");
        assert_eq!(spec.memory, Some(ByteCount(8 << 30)));
        assert_eq!(spec.step, Duration::from_micros(1500));
        assert_eq!((spec.latency, spec.h2d_bytes_per_s), (Duration::ZERO, 3 << 30));
        assert_eq!("SIM:".parse(), Ok(SimSpec::default()));
        let faulty: SimSpec = "sim:fail-copy=3,lose-after=0".parse().expect("a faulty sim");
        assert_eq!((faulty.fail_copy, faulty.lose_after), (Some(3), Some(0)));
    }

    #[test]
    fn invalid_settings_are_refused_with_the_reason() {
        for (text, words) in [
            ("sim:step", "'step' is not key=value"),
            ("sim:step=20ms,", "'' is not key=value"),
            ("sim:step=1s,step=2s", "step is given twice"),
            ("sim:speed=9", "unknown setting 'speed': expected h2d, latency"),
            ("sim:h2d=25GB", "invalid speed '25GB'"),
            ("sim:h2d=fast/s", "invalid speed 'fast/s'"),
            ("sim:h2d=0/s", "above zero"),
            ("sim:step=20", "invalid time '20'"),
            ("sim:step=20min", "invalid time '20min'"),
            ("sim:step=-1s", "invalid time '-1s'"),
            ("sim:step=1.2.3s", "invalid time '1.2.3s'"),
            ("sim:step=3601s", "longer than an hour"),
            ("sim:memory=12Q", "12Q"),
            ("sim:fail-copy=0", "invalid count '0'"),
            ("cpu", "expected sim"),
        ] {
            let error = text.parse::<SimSpec>().expect_err(text).to_string();
            assert!(error.starts_with(&format!("unknown device '{text}'")) && error.contains(words), "{error}");
        }
    }

    #[test]
    fn copies_take_their_latency_and_their_bytes() {
        let spec: SimSpec = "sim:h2d=1GB/s,latency=5us".parse().expect("a sim");
        assert_eq!(spec.copy_time(0), Duration::from_micros(5));
        assert_eq!(spec.copy_time(2_000_000), Duration::from_micros(2005));
        assert!(spec.copy_time(usize::MAX) > Duration::from_secs(1 << 30));
    }

    proptest! {
        #[test]
        fn printed_settings_parse_to_the_same(
            h2d_bytes_per_s in 1u64..1 << 50,
            latency in 0u64..1 << 41,
            step in 0u64..1 << 41,
            memory in prop::option::of(0u64..1 << 50),
            fail_copy in prop::option::of(1u64..9),
        ) {
            let (latency, step) = (Duration::from_micros(latency / 1000), Duration::from_micros(step / 1000));
            let memory = memory.map(ByteCount);
            let spec = SimSpec { h2d_bytes_per_s, latency, step, memory, fail_copy, lose_after: None };
            prop_assert_eq!(spec.to_string().parse(), Ok(spec));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "(sim:)?[a-z0-9=,./µ-]{0,24}") {
            let _ = text.parse::<SimSpec>();
        }
    }
}
