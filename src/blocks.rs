//! Groups of samples that are read as a unit.

use std::ops::Range;

use crate::sync::Arc;
use crate::units::SampleId;

/// Blocks of samples: reading one sample of a block takes reading all of it.
///
/// A row group of a Parquet file is a block, and so is a part of a compressed stream. An epoch over blocks shuffles the
/// order of the blocks, and the samples within a window of a few blocks.
///
/// ```
/// use feedstock::SampleId;
/// use feedstock::source::Blocks;
///
/// let blocks = Blocks::new([3, 5, 9], 2);
/// assert_eq!((blocks.count(), blocks.block_of(SampleId(4))), (3, 1));
/// assert_eq!(blocks.samples(1), 3..5);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// End of each block: the id after its last sample.
    ends: Arc<[u64]>,
    /// End of each run of blocks that must be read in order. `None` if blocks can be read in any order.
    run_ends: Option<Arc<[u64]>>,
    shuffle_window: usize,
}

impl Blocks {
    /// Creates blocks that can be read in any order. `ends` has the id after the last sample of each block.
    /// `shuffle_window` is the number of blocks that are shuffled together.
    ///
    /// # Panics
    /// Panics if `ends` is not strictly ascending, or `shuffle_window` is 0.
    pub fn new(ends: impl Into<Arc<[u64]>>, shuffle_window: usize) -> Self {
        let ends = ends.into();
        let rises = ends.first().is_none_or(|&first| first > 0) && ends.is_sorted_by(|a, b| a < b);
        assert!(rises, "a block without samples");
        assert!(shuffle_window > 0, "the shuffle window is 0");
        Blocks { ends, run_ends: None, shuffle_window }
    }

    /// Requires that the blocks of each run are read in order. `run_ends` has the block after the last one of each run.
    ///
    /// # Panics
    /// Panics if `run_ends` is not strictly ascending up to the number of blocks.
    #[must_use]
    pub fn with_runs(self, run_ends: impl Into<Arc<[u64]>>) -> Self {
        let run_ends = run_ends.into();
        let rises = run_ends.first().is_none_or(|&first| first > 0) && run_ends.is_sorted_by(|a, b| a < b);
        assert!(rises && run_ends.last().copied().unwrap_or(0) == self.count(), "runs do not cover all blocks");
        Blocks { run_ends: Some(run_ends), ..self }
    }

    /// Number of blocks.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.ends.len() as u64
    }

    /// Number of samples in all blocks.
    #[must_use]
    pub fn sample_count(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Number of blocks that are shuffled together.
    #[must_use]
    pub fn shuffle_window(&self) -> usize {
        self.shuffle_window
    }

    /// Number of blocks that a source should cache: the shuffle window, and as many of the next window.
    #[must_use]
    pub fn resident(&self) -> usize {
        2 * self.shuffle_window
    }

    /// Number of runs. Without [`with_runs`](Self::with_runs), each block is a run.
    #[must_use]
    pub fn run_count(&self) -> u64 {
        self.run_ends.as_ref().map_or(self.count(), |ends| ends.len() as u64)
    }

    /// Blocks of a run.
    ///
    /// # Panics
    /// Panics if there is no such run.
    #[must_use]
    pub fn run(&self, run: u64) -> Range<u64> {
        match &self.run_ends {
            Some(ends) => range_at(ends, run),
            None => run..run + 1,
        }
    }

    /// Block of a sample.
    ///
    /// # Panics
    /// Panics if there is no such sample.
    #[must_use]
    pub fn block_of(&self, id: SampleId) -> u64 {
        assert!(id.0 < self.sample_count(), "{id} is outside of blocks of {} samples", self.sample_count());
        self.ends.partition_point(|&end| end <= id.0) as u64
    }

    /// Ids of the samples of a block.
    ///
    /// # Panics
    /// Panics if there is no such block.
    #[must_use]
    pub fn samples(&self, block: u64) -> Range<u64> {
        range_at(&self.ends, block)
    }

    /// Memory of the table, and of an epoch's order of the blocks, bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let runs = self.run_ends.as_ref().map_or(0, |ends| ends.len());
        8 * (3 * self.ends.len() + runs) as u64
    }
}

fn range_at(ends: &[u64], index: u64) -> Range<u64> {
    let index = index as usize;
    let start = index.checked_sub(1).map_or(0, |before| ends[before]);
    start..ends[index]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_runs_have_their_ranges() {
        let blocks = Blocks::new([2, 3, 7, 8], 3).with_runs([1, 4]);
        assert_eq!((blocks.count(), blocks.sample_count(), blocks.run_count(), blocks.resident()), (4, 8, 2, 6));
        assert_eq!((0..4).map(|block| blocks.samples(block)).collect::<Vec<_>>(), [0..2, 2..3, 3..7, 7..8]);
        assert_eq!((blocks.run(0), blocks.run(1)), (0..1, 1..4));
        assert_eq!((0..8).map(|id| blocks.block_of(SampleId(id))).collect::<Vec<_>>(), [0, 0, 1, 2, 2, 2, 2, 3]);
        assert_eq!(Blocks::new([5, 6], 1).run(1), 1..2);
        let none = Blocks::new([], 1);
        assert_eq!((none.count(), none.sample_count(), none.run_count()), (0, 0, 0));
    }

    #[test]
    #[should_panic(expected = "a block without samples")]
    fn a_block_without_samples_panics() {
        let _ = Blocks::new([3, 3], 1);
    }

    #[test]
    #[should_panic(expected = "runs do not cover all blocks")]
    fn runs_that_omit_blocks_panic() {
        let _ = Blocks::new([3, 4], 1).with_runs([1]);
    }
}
