//! A histogram of durations with a fixed number of buckets. Adding to it is two relaxed atomic additions.

use std::time::Duration;

use crate::sync::{AtomicU64, Ordering};

/// Equally wide buckets per octave: a quantile is off by 1/16 at most.
const PER_OCTAVE: usize = 16;
/// Durations below 2^10 ns, a microsecond, are in the first bucket.
const LEAST_BITS: u32 = 10;
/// Octaves up to 2^46 ns, 19 hours. Longer durations are in the last bucket.
const OCTAVES: usize = 36;
const BUCKETS: usize = 1 + OCTAVES * PER_OCTAVE;

fn bucket(nanos: u64) -> usize {
    let octave = nanos.max(1).ilog2();
    if octave < LEAST_BITS {
        return 0;
    }
    let within = (nanos >> (octave - PER_OCTAVE.ilog2())) as usize % PER_OCTAVE;
    (1 + (octave - LEAST_BITS) as usize * PER_OCTAVE + within).min(BUCKETS - 1)
}

/// The exclusive upper bound of a bucket, in nanoseconds.
fn end(bucket: usize) -> u64 {
    let (octave, within) = (bucket.saturating_sub(1) / PER_OCTAVE, bucket.saturating_sub(1) % PER_OCTAVE);
    let octave_begin = 1u64 << (LEAST_BITS as usize + octave);
    if bucket == 0 { octave_begin } else { octave_begin + octave_begin / PER_OCTAVE as u64 * (within as u64 + 1) }
}

/// A [`Histogram`] that any number of threads add to.
#[derive(Debug)]
pub(crate) struct AtomicHistogram {
    counts: Vec<AtomicU64>,
    sum_ns: AtomicU64,
}

impl Default for AtomicHistogram {
    fn default() -> Self {
        AtomicHistogram { counts: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(), sum_ns: AtomicU64::new(0) }
    }
}

impl AtomicHistogram {
    pub(crate) fn add(&self, time: Duration) {
        let nanos = super::nanos(time);
        self.counts[bucket(nanos)].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(nanos, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(&self) -> Histogram {
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        Histogram { counts, sum: Duration::from_nanos(self.sum_ns.load(Ordering::Relaxed)) }
    }
}

/// A histogram of durations: buckets a sixteenth of an octave wide, from a microsecond to 19 hours.
///
/// ```
/// use feedstock::stats::Histogram;
/// let empty = Histogram::default();
/// assert_eq!((empty.count(), empty.quantile(0.5)), (0, None));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Histogram {
    counts: Vec<u64>,
    sum: Duration,
}

impl Histogram {
    /// Number of durations.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Sum of the durations.
    #[must_use]
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// The quantile `share` (`0..=1`), rounded up by a sixteenth at most. `None` if the histogram is empty.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let all = self.count();
        let rank = ((all as f64 * share).ceil() as u64).clamp(1, all.max(1));
        let mut seen = 0;
        let bucket = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        Some(Duration::from_nanos(end(bucket)))
    }

    /// Buckets that are not empty, shortest first: exclusive upper bound and count.
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> + '_ {
        let all = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        all.map(|(bucket, count)| (Duration::from_nanos(end(bucket)), *count))
    }

    /// The durations added since an earlier snapshot of the same histogram.
    #[must_use]
    pub fn since(&self, earlier: &Histogram) -> Histogram {
        let before = |bucket: usize| earlier.counts.get(bucket).copied().unwrap_or(0);
        let counts = self.counts.iter().enumerate().map(|(bucket, count)| count.saturating_sub(before(bucket)));
        Histogram { counts: counts.collect(), sum: self.sum.saturating_sub(earlier.sum) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantiles_are_within_a_sixteenth() {
        let times = AtomicHistogram::default();
        assert_eq!(times.snapshot().quantile(0.5), None);
        for ms in 1..=1000 {
            times.add(Duration::from_millis(ms));
        }
        let histogram = times.snapshot();
        assert_eq!((histogram.count(), histogram.sum()), (1000, Duration::from_millis(500_500)));
        for (share, ms) in [(0.01, 10.0), (0.5, 500.0), (0.99, 990.0), (1.0, 1000.0)] {
            let told = histogram.quantile(share).expect("there are some").as_secs_f64() * 1e3;
            assert!((1.0..=1.0 + 1.0 / 16.0).contains(&(told / ms)), "{share}: {told} ms");
        }
        times.add(Duration::ZERO);
        times.add(Duration::from_secs(1 << 40));
        let later = times.snapshot().since(&histogram);
        assert_eq!(later.buckets().map(|(_, count)| count).collect::<Vec<_>>(), [1, 1]);
        assert_eq!(later.quantile(0.0), Some(Duration::from_nanos(1024)));
    }

    proptest! {
        #[test]
        fn every_duration_is_within_its_bucket(nanos in 0u64..1 << 46) {
            let bucket = bucket(nanos);
            prop_assert!(nanos < end(bucket));
            prop_assert!(bucket == 0 || nanos >= end(bucket - 1));
        }
    }
}
