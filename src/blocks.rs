//! Owns the word for samples that storage gives only together: which belong to one block, and in which order blocks can
//! be had. It must never know what a block is made of.

use std::ops::Range;

use crate::sync::Arc;
use crate::units::SampleId;

/// Samples in blocks: whoever reads one sample of a block has read all of it.
///
/// A row group of a Parquet file is a block; so is a stretch of a compressed stream. Where a source has blocks, an
/// epoch is shuffled block by block: a few of them are mixed at a time, and the samples of these few are shuffled among
/// each other.
///
/// ```
/// use feedstock::SampleId;
/// use feedstock::source::Blocks;
///
/// let blocks = Blocks::new([3, 5, 9], 2);
/// assert_eq!((blocks.count(), blocks.of(SampleId(4))), (3, 1));
/// assert_eq!(blocks.samples(1), 3..5);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// For each block, the sample after its last.
    ends: Arc<[u64]>,
    /// For each run of blocks that can only be read front to back, the block after its last; none: any order will do.
    run_ends: Option<Arc<[u64]>>,
    mixed: usize,
}

impl Blocks {
    /// Blocks that can be read in any order. `ends` has the sample after the last one of each block; `mixed` blocks are
    /// shuffled together.
    ///
    /// # Panics
    /// Panics if `ends` does not rise from block to block, or `mixed` is 0.
    pub fn new(ends: impl Into<Arc<[u64]>>, mixed: usize) -> Self {
        let ends = ends.into();
        let rises = ends.first().is_none_or(|&first| first > 0) && ends.is_sorted_by(|a, b| a < b);
        assert!(rises, "a block without samples");
        assert!(mixed > 0, "no blocks are shuffled together");
        Blocks { ends, run_ends: None, mixed }
    }

    /// The same blocks, but each run of them has to be read front to back. `run_ends` has the block after the last one
    /// of each run.
    ///
    /// # Panics
    /// Panics if the runs do not rise to the number of blocks.
    #[must_use]
    pub fn in_runs(self, run_ends: impl Into<Arc<[u64]>>) -> Self {
        let run_ends = run_ends.into();
        let rises = run_ends.first().is_none_or(|&first| first > 0) && run_ends.is_sorted_by(|a, b| a < b);
        assert!(rises && run_ends.last().copied().unwrap_or(0) == self.count(), "runs that are not all the blocks");
        Blocks { run_ends: Some(run_ends), ..self }
    }

    /// How many blocks there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.ends.len() as u64
    }

    /// How many samples are in all of them.
    #[must_use]
    pub fn sample_count(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// How many blocks are shuffled together.
    #[must_use]
    pub fn mixed(&self) -> usize {
        self.mixed
    }

    /// How many blocks a source should hold: those that are shuffled together, and as many of those that come next.
    #[must_use]
    pub fn held(&self) -> usize {
        2 * self.mixed
    }

    /// How many runs there are. A block that can be read at any time is a run.
    #[must_use]
    pub fn run_count(&self) -> u64 {
        self.run_ends.as_ref().map_or(self.count(), |ends| ends.len() as u64)
    }

    /// The blocks of a run.
    ///
    /// # Panics
    /// Panics if there is no such run.
    #[must_use]
    pub fn run(&self, run: u64) -> Range<u64> {
        match &self.run_ends {
            Some(ends) => between(ends, run),
            None => run..run + 1,
        }
    }

    /// The block that a sample is in.
    ///
    /// # Panics
    /// Panics if there is no such sample.
    #[must_use]
    pub fn of(&self, id: SampleId) -> u64 {
        assert!(id.0 < self.sample_count(), "{id} was asked of blocks of {} samples", self.sample_count());
        self.ends.partition_point(|&end| end <= id.0) as u64
    }

    /// The samples of a block.
    ///
    /// # Panics
    /// Panics if there is no such block.
    #[must_use]
    pub fn samples(&self, block: u64) -> Range<u64> {
        between(&self.ends, block)
    }

    /// RAM that the table takes, and an epoch's order over it, bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let runs = self.run_ends.as_ref().map_or(0, |ends| ends.len());
        8 * (3 * self.ends.len() + runs) as u64
    }
}

fn between(ends: &[u64], place: u64) -> Range<u64> {
    let place = place as usize;
    let start = place.checked_sub(1).map_or(0, |before| ends[before]);
    start..ends[place]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_runs_are_told_apart() {
        let blocks = Blocks::new([2, 3, 7, 8], 3).in_runs([1, 4]);
        assert_eq!((blocks.count(), blocks.sample_count(), blocks.run_count(), blocks.held()), (4, 8, 2, 6));
        assert_eq!((0..4).map(|block| blocks.samples(block)).collect::<Vec<_>>(), [0..2, 2..3, 3..7, 7..8]);
        assert_eq!((blocks.run(0), blocks.run(1)), (0..1, 1..4));
        assert_eq!((0..8).map(|id| blocks.of(SampleId(id))).collect::<Vec<_>>(), [0, 0, 1, 2, 2, 2, 2, 3]);
        assert_eq!(Blocks::new([5, 6], 1).run(1), 1..2);
        let none = Blocks::new([], 1);
        assert_eq!((none.count(), none.sample_count(), none.run_count()), (0, 0, 0));
    }

    #[test]
    #[should_panic(expected = "a block without samples")]
    fn a_block_without_samples_is_misuse() {
        let _ = Blocks::new([3, 3], 1);
    }

    #[test]
    #[should_panic(expected = "runs that are not all the blocks")]
    fn runs_that_leave_blocks_out_are_misuse() {
        let _ = Blocks::new([3, 4], 1).in_runs([1]);
    }
}
