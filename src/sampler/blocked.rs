//! The order of an epoch over blocks: blocks are shuffled, and so are the samples within each group of consecutive
//! blocks. A block is never split between two groups, and the blocks of a run stay in sequence.

use super::Permutation;
use crate::blocks::Blocks;
use crate::rng::{Seed, mix64};
use crate::units::SampleId;

/// The order of one epoch over blocks.
#[derive(Clone, Debug)]
pub(super) struct Blocked {
    blocks: Blocks,
    /// Blocks in the order in which they are read.
    sequence: Box<[u64]>,
    /// For each block of the sequence, the number of samples up to its end.
    ends: Box<[u64]>,
    seed: Seed,
    epoch: u64,
}

impl Blocked {
    pub(super) fn new(blocks: &Blocks, seed: Seed, epoch: u64) -> Self {
        let runs = Permutation::new(blocks.run_count(), seed, epoch);
        let sequence: Box<[u64]> = (0..runs.len()).flat_map(|run| blocks.run(runs.at(run))).collect();
        let mut samples = 0;
        let ends = sequence.iter().map(|&block| {
            let range = blocks.samples(block);
            samples += range.end - range.start;
            samples
        });
        Blocked { blocks: blocks.clone(), ends: ends.collect(), sequence, seed, epoch }
    }

    /// The sample at an index of the whole epoch.
    pub(super) fn at(&self, index: u64) -> SampleId {
        let mixed = self.blocks.shuffle_window();
        let before = |block: usize| block.checked_sub(1).map_or(0, |before| self.ends[before]);
        let first = self.ends.partition_point(|&end| end <= index) / mixed * mixed;
        let last = (first + mixed).min(self.ends.len());
        let (start, end) = (before(first), self.ends[last - 1]);
        // A key for each group. The number of its first block would repeat in the next epoch.
        let key = Seed(mix64(self.seed.0 ^ mix64(first as u64 + 1)));
        let among = Permutation::new(end - start, key, self.epoch).at(index - start) + start;
        let at = first + self.ends[first..last].partition_point(|&end| end <= among);
        SampleId(self.blocks.samples(self.sequence[at]).start + (among - before(at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_sample_comes_once_and_no_block_twice(
            sizes in prop::collection::vec(1u64..40, 1..40), mixed in 1usize..6, run in 1usize..5, in_runs: bool,
            seed in any::<u64>(), epoch in any::<u64>(),
        ) {
            let mut end = 0;
            let ends: Vec<u64> = sizes.iter().map(|size| { end += size; end }).collect();
            let mut blocks = Blocks::new(ends, mixed);
            if in_runs {
                let count = blocks.count();
                let ends = (1..).map(|i| (i * run as u64).min(count)).take(sizes.len().div_ceil(run));
                blocks = blocks.with_runs(ends.collect::<Vec<_>>());
            }
            let order = Blocked::new(&blocks, Seed(seed), epoch);
            let ids: Vec<SampleId> = (0..end).map(|index| order.at(index)).collect();
            let mut sorted: Vec<u64> = ids.iter().map(|id| id.0).collect();
            sorted.sort_unstable();
            prop_assert!(sorted.into_iter().eq(0..end));

            // At most `mixed` blocks are open at a time, and a finished block does not reappear.
            let mut left = sizes;
            let mut open = std::collections::BTreeSet::new();
            let mut begun = vec![];
            for id in ids {
                let block = blocks.block_of(id);
                if open.insert(block) {
                    begun.push(block);
                }
                prop_assert!(open.len() <= mixed);
                left[block as usize] -= 1;
                if left[block as usize] == 0 {
                    open.remove(&block);
                }
            }
            if in_runs {
                // The blocks of a run stay in sequence, group by group.
                for groups in begun.chunks(mixed).collect::<Vec<_>>().windows(2) {
                    for (a, b) in groups[0].iter().flat_map(|a| groups[1].iter().map(move |b| (a, b))) {
                        let holds_both = |run| blocks.run(run).contains(a) && blocks.run(run).contains(b);
                        let same_run = (0..blocks.run_count()).any(holds_both);
                        prop_assert!(!same_run || a < b, "{a} before {b}");
                    }
                }
            }
        }
    }

    #[test]
    fn epochs_differ_in_blocks_and_within_them() {
        let blocks = Blocks::new((1..=50).map(|i| i * 20).collect::<Vec<u64>>(), 2);
        let order = |seed, epoch| {
            let order = Blocked::new(&blocks, Seed(seed), epoch);
            (0..1000).map(|index| order.at(index).0).collect::<Vec<_>>()
        };
        let first = order(1, 0);
        assert_eq!(first, order(1, 0));
        for other in [order(1, 1), order(2, 0)] {
            let agree = first.iter().zip(&other).filter(|(a, b)| a == b).count();
            assert!(agree < 10, "{agree} of 1000 agree");
        }
        // Of the forty samples of a group, neighbors are from the same block half of the time.
        let same = first.windows(2).filter(|pair| pair[0] / 20 == pair[1] / 20).count();
        assert!((400..600).contains(&same), "{same}");
    }
}
