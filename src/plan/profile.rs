//! Owns what the plan knows of the data: how large samples are as stored, and what decoding them takes.
//! It must never decode a pixel, and it looks at a bounded number of headers however large the source is.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::decode::{self, Header, Limits};
use crate::source::{Blocks, Source};
use crate::units::{ByteCount, SampleId};

/// Sources up to this many samples are profiled whole.
const PROFILE_ALL_MAX: u64 = 1024;
/// Of larger ones, this many are taken at even distances,
const PROFILE_STRIDED: u64 = 256;
/// and this many of the largest as stored, which are most likely the largest decoded.
const PROFILE_LARGEST: usize = 64;

/// Of sources in blocks, this many are looked into.
const PROFILE_BLOCKS: u64 = 4;

/// The largest file that is a sample; what is larger is a bad one, whatever the budget.
pub const ENCODED_BYTES_MAX: u64 = 256 << 20;

/// Sizes of a source's samples, in bytes. Encoded sizes are exact (the index knows them all); working sets are of the
/// headers that were read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// Samples in the source.
    pub samples: u64,
    /// Bytes of all samples as stored.
    pub encoded_total: ByteCount,
    /// Half of the samples are smaller than this, as stored.
    pub encoded_p50: ByteCount,
    /// 99 of 100 samples are smaller than this, as stored.
    pub encoded_p99: ByteCount,
    /// The largest as stored, of those that are within the limits.
    pub encoded_max: ByteCount,
    /// How sizes as stored spread: how many samples there are of about each size, smallest first.
    pub encoded_spread: Vec<(ByteCount, u64)>,
    /// Headers that were read and understood.
    pub headers: u64,
    /// Headers that could not be read or understood, or are beyond the limits: bad samples, when their turn comes.
    pub headers_bad: u64,
    /// Working set of a worker, by the headers: half need less than this.
    pub working_p50: ByteCount,
    /// 99 of 100 need less than this.
    pub working_p99: ByteCount,
    /// The largest seen.
    pub working_max: ByteCount,
}

impl Profile {
    /// Looks at a source, and asks `working_set` what a worker needs for such a picture.
    #[must_use]
    pub fn measure(source: &dyn Source, limits: &Limits, working_set: impl Fn(&Header) -> ByteCount) -> Profile {
        Survey::take(source, limits).profile(working_set)
    }
}

impl Profile {
    /// How far the other workers have to be able to get ahead of one that is busy with a large sample, in bytes as stored,
    /// so that they lose no more than `share` of their time waiting for it. Time is taken to go with size.
    ///
    /// While one worker decodes a sample of `s` bytes the others can do the samples that follow it, until those that may
    /// be under way at once (worth `w` bytes for each worker) are done; then they wait for the rest, `s - w`. Over all
    /// samples that is the sum of `max(0, s - w)`, beside the sum of all `s` that they work.
    #[must_use]
    pub fn window(&self, share: f64) -> ByteCount {
        let spread = || self.encoded_spread.iter().map(|&(size, count)| (size.0 as f64, count as f64));
        let total: f64 = spread().map(|(size, count)| size * count).sum();
        // From the largest size down: what is lost grows by as many samples as are larger, for each byte.
        let (mut above, mut lost, mut window) = (0.0, 0.0, spread().next_back().map_or(0.0, |(size, _)| size));
        for (size, count) in spread().rev() {
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

/// A look at a source: every size in its index, and the headers of all samples (up to 1024), or else of some at even
/// distances and of the largest. It is taken once; profiles for any sample shape come out of it without another read.
#[derive(Clone, Debug)]
pub struct Survey {
    sizes: Profile,
    headers: Vec<Header>,
}

impl Survey {
    /// Takes the look. It reads as many files, one after the other; where samples come in blocks, those of a few blocks.
    #[must_use]
    pub fn take(source: &dyn Source, limits: &Limits) -> Survey {
        let too_large = |id| source.encoded_bytes(id) > ENCODED_BYTES_MAX;
        let samples = source.len();
        let mut total = ByteCount::ZERO;
        let mut encoded = Sketch::default();
        let mut largest = BinaryHeap::new();
        for id in (0..samples).map(SampleId) {
            let bytes = source.encoded_bytes(id);
            total += ByteCount(bytes);
            if too_large(id) {
                continue;
            }
            encoded.add(bytes);
            if largest.len() < PROFILE_LARGEST {
                largest.push((Reverse(bytes), id));
            } else if largest.peek().is_some_and(|&(Reverse(least), _)| bytes > least) {
                largest.pop();
                largest.push((Reverse(bytes), id));
            }
        }
        let mut ids: Vec<SampleId> = if let Some(blocks) = source.blocks() {
            samples_at_hand(blocks)
        } else if samples <= PROFILE_ALL_MAX {
            (0..samples).map(SampleId).collect()
        } else {
            let strided = (0..PROFILE_STRIDED)
                .map(|i| (u128::from(i) * u128::from(samples) / u128::from(PROFILE_STRIDED)) as u64);
            strided.map(SampleId).chain(largest.into_iter().map(|(_, id)| id)).collect()
        };
        ids.sort_unstable();
        ids.dedup();
        ids.retain(|&id| !too_large(id));

        let mut headers = Vec::with_capacity(ids.len());
        let mut headers_bad = 0;
        let mut buffer = Vec::new();
        for id in ids {
            buffer.resize(source.encoded_bytes(id) as usize, 0);
            let header = source.read_into(id, &mut buffer).ok().and_then(|()| decode::probe(&buffer, limits).ok());
            match header {
                Some(header) => headers.push(header),
                None => headers_bad += 1,
            }
        }
        let sizes = Profile {
            samples,
            encoded_total: total,
            encoded_p50: ByteCount(encoded.at(0.5)),
            encoded_p99: ByteCount(encoded.at(0.99)),
            encoded_max: ByteCount(encoded.max),
            encoded_spread: encoded.spread(),
            headers: headers.len() as u64,
            headers_bad,
            ..Profile::default()
        };
        Survey { sizes, headers }
    }

    /// What the data takes where a worker needs `working_set` for a picture.
    #[must_use]
    pub fn profile(&self, working_set: impl Fn(&Header) -> ByteCount) -> Profile {
        let mut working: Vec<u64> = self.headers.iter().map(|header| working_set(header).0).collect();
        working.sort_unstable();
        let at = |share: f64| {
            let last = working.len().saturating_sub(1);
            ByteCount(working.get((last as f64 * share).ceil() as usize).copied().unwrap_or(0))
        };
        Profile { working_p50: at(0.5), working_p99: at(0.99), working_max: at(1.0), ..self.sizes.clone() }
    }
}

/// Samples that can be looked at without reading much else: those of the first blocks of a few runs.
fn samples_at_hand(blocks: &Blocks) -> Vec<SampleId> {
    let runs = blocks.run_count().min(PROFILE_BLOCKS);
    let firsts = (0..runs).map(|i| blocks.samples(blocks.run(i * blocks.run_count() / runs).start));
    let share = PROFILE_ALL_MAX.checked_div(runs).unwrap_or(0);
    firsts.flat_map(|samples| samples.take(share as usize)).map(SampleId).collect()
}

/// Sizes counted in bins of an eighth of a power of two: quantiles to 12.5 %, upward, in a few hundred bytes.
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

    /// The upper end of each bin that is not empty, and how many values it has.
    fn spread(&self) -> Vec<(ByteCount, u64)> {
        let filled = self.bins.iter().enumerate().filter(|&(_, &count)| count > 0);
        filled.map(|(bin, &count)| (ByteCount(Self::end(bin).min(self.max)), count)).collect()
    }

    fn end(bin: usize) -> u64 {
        let (octave, eighth) = ((bin / 8) as u32, (bin % 8) as u64);
        let width = 1u64 << (octave - 3);
        ((8 + eighth) * width).saturating_add(width - 1)
    }

    /// The upper end of the bin in which this share of the values is reached.
    fn at(&self, share: f64) -> u64 {
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
    fn the_window_is_what_a_heavy_tail_asks_for() {
        let profile = |sizes: &[(u64, u64)]| Profile {
            encoded_spread: sizes.iter().map(|&(size, count)| (ByteCount(size), count)).collect(),
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
                let window = profile(sizes).window(share).0;
                let (at, below) = (lost(sizes, window), lost(sizes, window.saturating_sub(window / 1000 + 2)));
                assert!(at <= share + 1e-3, "{sizes:?} {share}: {window} loses {at}");
                assert!(window == 0 || below >= share - 1e-3, "{sizes:?} {share}: less than {window} loses {below}");
            }
        }
        assert_eq!(profile(&[]).window(0.05), ByteCount::ZERO);
    }

    #[test]
    fn quantiles_are_right_to_an_eighth_and_never_low() {
        let mut sketch = Sketch::default();
        for value in 1..=10_000u64 {
            sketch.add(value);
        }
        for (share, exact) in [(0.5, 5_000.0), (0.99, 9_900.0), (0.01, 100.0)] {
            let found = sketch.at(share) as f64;
            assert!(found >= exact && found <= exact * 1.13, "{share}: {found}");
        }
        assert_eq!(sketch.at(1.0), 10_000);
        assert_eq!(Sketch::default().at(0.5), 0);
        let mut extreme = Sketch::default();
        extreme.add(u64::MAX);
        extreme.add(0);
        assert_eq!(extreme.at(1.0), u64::MAX);
    }
}
