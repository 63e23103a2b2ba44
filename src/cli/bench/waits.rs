//! Owns how long the consumer waited for each batch, as a histogram of fixed size. It must never grow with the run.

use std::time::Duration;

/// Buckets of an octave: a quantile is off by 1/16 at most.
const PER_OCTAVE: u32 = 16;
/// From 1 microsecond to 2^36 of them, which is 19 hours.
const OCTAVES: u32 = 36;

/// Counts of waits, in buckets that grow with the wait.
#[derive(Clone)]
pub(super) struct Waits {
    counts: Vec<u64>,
}

impl Default for Waits {
    fn default() -> Self {
        Waits { counts: vec![0; (PER_OCTAVE * OCTAVES) as usize] }
    }
}

impl Waits {
    pub(super) fn add(&mut self, wait: Duration) {
        let micros = (wait.as_secs_f64() * 1e6).max(1.0);
        let bucket = (micros.log2() * f64::from(PER_OCTAVE)) as usize;
        let last = self.counts.len() - 1;
        self.counts[bucket.min(last)] += 1;
    }

    /// The wait that this share of all waits did not exceed; `None` before the first.
    pub(super) fn quantile(&self, share: f64) -> Option<Duration> {
        let all: u64 = self.counts.iter().sum();
        let rank = ((all as f64 * share).ceil() as u64).clamp(1, all.max(1));
        let mut seen = 0;
        let bucket = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        Some(Duration::from_secs_f64(2f64.powf((bucket + 1) as f64 / f64::from(PER_OCTAVE)) / 1e6))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_sixteenth_of_an_octave() {
        let mut waits = Waits::default();
        assert_eq!(waits.quantile(0.5), None);
        for ms in 1..=1000 {
            waits.add(Duration::from_millis(ms));
        }
        for (share, ms) in [(0.01, 10.0), (0.5, 500.0), (0.99, 990.0), (1.0, 1000.0)] {
            let told = waits.quantile(share).expect("there are some").as_secs_f64() * 1e3;
            assert!((1.0..1.05).contains(&(told / ms)), "{share}: {told} ms");
        }
        waits.add(Duration::ZERO);
        waits.add(Duration::from_secs(1 << 40));
        assert!(waits.quantile(0.0).is_some_and(|least| least < Duration::from_micros(2)));
    }
}
