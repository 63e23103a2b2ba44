//! Sizes of a data set's samples: the facts about the data that a plan rests on.

use crate::units::ByteCount;

/// The largest stored size of a sample. Larger files are bad samples, whatever the budget.
pub const ENCODED_BYTES_MAX: u64 = 256 << 20;

/// Sizes of a source's samples, in bytes. Encoded sizes are exact, since the index knows them all; working sets are
/// those of the headers that were read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Profile {
    /// Samples in the source.
    pub samples: u64,
    /// Bytes of all samples as stored.
    pub encoded_total: ByteCount,
    /// Median of the stored sizes.
    pub encoded_p50: ByteCount,
    /// 99th percentile of the stored sizes.
    pub encoded_p99: ByteCount,
    /// Largest stored size within the limits.
    pub encoded_max: ByteCount,
    /// Histogram of the stored sizes: upper end of a bin and its number of samples, smallest first.
    pub encoded_histogram: Vec<(ByteCount, u64)>,
    /// Headers that were read and understood.
    pub headers: u64,
    /// Headers that could not be read, or are beyond the limits: bad samples, when their turn comes.
    pub headers_bad: u64,
    /// Median of a worker's working set, by the headers.
    pub working_p50: ByteCount,
    /// 99th percentile of the working set.
    pub working_p99: ByteCount,
    /// Largest working set.
    pub working_max: ByteCount,
}

impl Profile {
    /// The distance, in stored bytes, that the other workers have to be able to run ahead of one that is busy with a
    /// large sample, so that they lose at most `share` of their time waiting for it. Time is taken as proportional to
    /// size.
    ///
    /// While one worker decodes a sample of `s` bytes the others process the samples behind it, until those that may be
    /// in flight (worth `w` bytes for each worker) are done; then they wait for the rest, `s - w`. Over all samples
    /// that is the sum of `max(0, s - w)`, compared to the sum of all `s`, which is work.
    #[must_use]
    pub fn lookahead(&self, share: f64) -> ByteCount {
        let histogram = || self.encoded_histogram.iter().map(|&(size, count)| (size.0 as f64, count as f64));
        let total: f64 = histogram().map(|(size, count)| size * count).sum();
        // From the largest size down: each byte less adds as many lost bytes as there are larger samples.
        let (mut above, mut lost, mut window) = (0.0, 0.0, histogram().next_back().map_or(0.0, |(size, _)| size));
        for (size, count) in histogram().rev() {
            let more = above * (window - size);
            if lost + more > share * total {
                break;
            }
            (lost, window, above) = (lost + more, size, above + count);
        }
        let rest = if above > 0.0 { (share * total - lost) / above } else { 0.0 };
        ByteCount((window - rest).max(0.0) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lookahead_covers_a_heavy_tail() {
        let profile = |sizes: &[(u64, u64)]| Profile {
            encoded_histogram: sizes.iter().map(|&(size, count)| (ByteCount(size), count)).collect(),
            ..Profile::default()
        };
        let lost = |sizes: &[(u64, u64)], window: u64| {
            let sum = |f: &dyn Fn(u64) -> u64| sizes.iter().map(|&(size, count)| f(size) * count).sum::<u64>() as f64;
            sum(&|size| size.saturating_sub(window)) / sum(&|size| size)
        };
        for sizes in [
            &[(100_000, 1000)][..],
            &[(5_000, 1000), (100_000, 990), (8_000_000, 10)],
            &[(5_000, 1000), (20_000_000, 1)],
            &[(1, 1), (1 << 20, 1), (1 << 24, 1)],
        ] {
            for share in [0.01, 0.05, 0.5] {
                let window = profile(sizes).lookahead(share).0;
                let (at, below) = (lost(sizes, window), lost(sizes, window.saturating_sub(window / 1000 + 2)));
                assert!(at <= share + 1e-3, "{sizes:?} {share}: {window} loses {at}");
                assert!(window == 0 || below >= share - 1e-3, "{sizes:?} {share}: less than {window} loses {below}");
            }
        }
        assert_eq!(profile(&[]).lookahead(0.05), ByteCount::ZERO);
    }
}
