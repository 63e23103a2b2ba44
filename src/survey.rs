//! A survey of a data set before the first epoch: every stored size, and the headers of a bounded number of samples.
//!
//! It is taken once; [`Survey::profile`] derives a [`Profile`] for any sample shape from it without another read.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::decode::{self, Header, Limits};
use crate::plan::{ENCODED_BYTES_MAX, Profile};
use crate::source::{Blocks, Source};
use crate::units::{ByteCount, SampleId};

/// Sources of up to this many samples have all headers read.
const ALL_MAX: u64 = 1024;
/// Of larger ones, this many samples at even distances,
const STRIDED: u64 = 256;
/// and this many of the largest as stored, which are most likely the largest decoded.
const LARGEST: usize = 64;

/// Of sources in blocks, this many blocks are read.
const BLOCKS: u64 = 4;

/// Stored sizes and sampled headers of a source.
#[derive(Clone, Debug)]
pub(crate) struct Survey {
    sizes: Profile,
    headers: Vec<Header>,
}

impl Survey {
    /// Surveys a source: all headers of up to 1024 samples, or else 256 at even distances and the 64 largest files; of
    /// a source in blocks, those of a few blocks. Files are read one after the other.
    #[must_use]
    pub(crate) fn new(source: &dyn Source, limits: &Limits) -> Survey {
        let within_limits = |id| source.encoded_bytes(id) <= ENCODED_BYTES_MAX;
        let samples = source.len();
        let mut total = ByteCount::ZERO;
        let mut encoded = Sketch::default();
        let mut largest = BinaryHeap::new();
        for id in (0..samples).map(SampleId) {
            let bytes = source.encoded_bytes(id);
            total += ByteCount(bytes);
            if !within_limits(id) {
                continue;
            }
            encoded.add(bytes);
            if largest.len() < LARGEST {
                largest.push((Reverse(bytes), id));
            } else if largest.peek().is_some_and(|&(Reverse(least), _)| bytes > least) {
                largest.pop();
                largest.push((Reverse(bytes), id));
            }
        }
        let mut ids: Vec<SampleId> = if let Some(blocks) = source.blocks() {
            of_first_blocks(blocks)
        } else if samples <= ALL_MAX {
            (0..samples).map(SampleId).collect()
        } else {
            let strided = (0..STRIDED).map(|i| (u128::from(i) * u128::from(samples) / u128::from(STRIDED)) as u64);
            strided.map(SampleId).chain(largest.into_iter().map(|(_, id)| id)).collect()
        };
        ids.sort_unstable();
        ids.dedup();
        ids.retain(|&id| within_limits(id));

        let looked_at = ids.len();
        let mut buffer = Vec::new();
        let probe = |id| {
            buffer.resize(source.encoded_bytes(id) as usize, 0);
            source.read_into(id, &mut buffer).ok()?;
            decode::probe(&buffer, limits).ok()
        };
        let headers: Vec<Header> = ids.into_iter().filter_map(probe).collect();
        let sizes = Profile {
            samples,
            encoded_total: total,
            encoded_p50: ByteCount(encoded.quantile(0.5)),
            encoded_p99: ByteCount(encoded.quantile(0.99)),
            encoded_max: ByteCount(encoded.max),
            encoded_histogram: encoded.histogram(),
            headers: headers.len() as u64,
            headers_bad: (looked_at - headers.len()) as u64,
            ..Profile::default()
        };
        Survey { sizes, headers }
    }

    /// Profile of the data where a worker needs `working_set(header)` bytes for an image.
    #[must_use]
    pub(crate) fn profile(&self, working_set: impl Fn(&Header) -> ByteCount) -> Profile {
        let mut working: Vec<u64> = self.headers.iter().map(|header| working_set(header).0).collect();
        working.sort_unstable();
        let at = |share: f64| {
            let last = working.len().saturating_sub(1);
            ByteCount(working.get((last as f64 * share).ceil() as usize).copied().unwrap_or(0))
        };
        Profile { working_p50: at(0.5), working_p99: at(0.99), working_max: at(1.0), ..self.sizes.clone() }
    }
}

/// Samples that can be read without reading much else: those of the first blocks of a few runs.
fn of_first_blocks(blocks: &Blocks) -> Vec<SampleId> {
    let runs = blocks.run_count().min(BLOCKS);
    let firsts = (0..runs).map(|i| blocks.samples(blocks.run(i * blocks.run_count() / runs).start));
    let share = ALL_MAX.checked_div(runs).unwrap_or(0);
    firsts.flat_map(|samples| samples.take(share as usize)).map(SampleId).collect()
}

/// Sizes counted in bins of an eighth of a power of two: quantiles to 12.5 %, rounded up, in 4 KiB.
struct Sketch {
    bins: [u64; 64 * 8],
    count: u64,
    max: u64,
}

impl Default for Sketch {
    fn default() -> Self {
        Sketch { bins: [0; 64 * 8], count: 0, max: 0 }
    }
}

impl Sketch {
    fn add(&mut self, value: u64) {
        self.bins[Self::bin(value)] += 1;
        self.count += 1;
        self.max = self.max.max(value);
    }

    fn bin(value: u64) -> usize {
        let octave = value.max(8).ilog2();
        let eighth = (value.max(8) >> (octave - 3)) & 7;
        octave as usize * 8 + eighth as usize
    }

    /// Upper end and number of values of each bin that is not empty.
    fn histogram(&self) -> Vec<(ByteCount, u64)> {
        let filled = self.bins.iter().enumerate().filter(|&(_, &count)| count > 0);
        filled.map(|(bin, &count)| (ByteCount(Self::end(bin).min(self.max)), count)).collect()
    }

    fn end(bin: usize) -> u64 {
        let (octave, eighth) = ((bin / 8) as u32, (bin % 8) as u64);
        let width = 1u64 << (octave - 3);
        ((8 + eighth) * width).saturating_add(width - 1)
    }

    /// Upper end of the bin in which this share of the values is reached.
    fn quantile(&self, share: f64) -> u64 {
        let mut left = (self.count as f64 * share).ceil().max(1.0) as u64;
        for (bin, &count) in self.bins.iter().enumerate() {
            left = left.saturating_sub(count);
            if left == 0 && count > 0 {
                return Self::end(bin).min(self.max);
            }
        }
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_to_an_eighth_and_never_low() {
        let mut sketch = Sketch::default();
        for value in 1..=10_000u64 {
            sketch.add(value);
        }
        for (share, exact) in [(0.5, 5_000.0), (0.99, 9_900.0), (0.01, 100.0)] {
            let found = sketch.quantile(share) as f64;
            assert!(found >= exact && found <= exact * 1.13, "{share}: {found}");
        }
        assert_eq!(sketch.quantile(1.0), 10_000);
        assert_eq!(Sketch::default().quantile(0.5), 0);
        let mut extreme = Sketch::default();
        extreme.add(u64::MAX);
        extreme.add(0);
        assert_eq!(extreme.quantile(1.0), u64::MAX);
    }
}
