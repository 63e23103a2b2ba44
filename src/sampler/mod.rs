//! Owns the order of an epoch: which sample stands at which position, for which rank, in which batch.
//! It must never do I/O or keep state: a position is a value, and everything here is a pure function of it.

mod blocked;
mod permutation;
#[cfg(test)]
mod statistics;

pub use permutation::Permutation;

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;

use blocked::Blocked;

use crate::blocks::Blocks;
use crate::sync::Arc;
use crate::units::{SampleId, Seed};

/// The samples of one epoch in the order in which one rank sees them.
///
/// The epoch is one order of all samples; rank r of w takes its positions r, r + w, r + 2w and so on. So the ranks cover
/// every sample **exactly once**: none is repeated to even them out and none is left out. Where w does not divide the
/// number of samples, the first ranks have one sample more than the others. Ranks that train in lock-step should stop
/// after [`len_common`](Self::len_common) positions, which all of them have.
///
/// # Example
/// ```
/// use feedstock::sampler::Order;
/// use feedstock::{SampleId, Seed};
///
/// let epoch = Order::shuffled(10, Seed(17), 0);
/// let halves = [epoch.clone().for_rank(0, 2)?, epoch.for_rank(1, 2)?];
/// let mut ids: Vec<SampleId> = halves.iter().flat_map(|half| (0..half.len()).map(|at| half.at(at))).collect();
/// ids.sort();
/// assert_eq!(ids, (0..10).map(SampleId).collect::<Vec<_>>());
/// # Ok::<(), feedstock::sampler::SamplerError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Order {
    sample_count: u64,
    arrangement: Arrangement,
    rank: u64,
    world_size: u64,
}

/// What decides which sample comes when.
#[derive(Clone, Debug)]
enum Arrangement {
    ById,
    Shuffled(Permutation),
    Blocked(Arc<Blocked>),
}

impl Order {
    /// All samples by id, as validation wants them.
    #[must_use]
    pub fn sequential(sample_count: u64) -> Self {
        Order { sample_count, arrangement: Arrangement::ById, rank: 0, world_size: 1 }
    }

    /// All samples in the pseudorandom order of one epoch.
    #[must_use]
    pub fn shuffled(sample_count: u64, seed: Seed, epoch: u64) -> Self {
        let arrangement = Arrangement::Shuffled(Permutation::new(sample_count, seed, epoch));
        Order { arrangement, ..Order::sequential(sample_count) }
    }

    /// All samples of a source that has [`Blocks`], in the pseudorandom order of one epoch: blocks are shuffled (runs of
    /// them, where they have to be read front to back), and a few at a time their samples among each other.
    #[must_use]
    pub fn blocked(blocks: &Blocks, seed: Seed, epoch: u64) -> Self {
        let arrangement = Arrangement::Blocked(Arc::new(Blocked::new(blocks, seed, epoch)));
        Order { arrangement, ..Order::sequential(blocks.sample_count()) }
    }

    /// This order as one of `world_size` ranks sees it.
    ///
    /// # Errors
    /// [`SamplerError::Rank`] unless `rank < world_size`.
    pub fn for_rank(self, rank: u64, world_size: u64) -> Result<Self, SamplerError> {
        if rank < world_size {
            Ok(Order { rank, world_size, ..self })
        } else {
            Err(SamplerError::Rank { rank, world_size })
        }
    }

    /// How many samples this rank has.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.sample_count.saturating_sub(self.rank).div_ceil(self.world_size)
    }

    /// Whether this rank has no sample: there are fewer samples than ranks.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many samples every rank has at least.
    #[must_use]
    pub fn len_common(&self) -> u64 {
        self.sample_count / self.world_size
    }

    /// The sample at a position of this rank.
    ///
    /// # Panics
    /// Panics if `position` is not in `0..len`.
    #[must_use]
    pub fn at(&self, position: u64) -> SampleId {
        assert!(position < self.len(), "position {position} was asked of an order of {} samples", self.len());
        let place = self.rank + position * self.world_size;
        match &self.arrangement {
            Arrangement::ById => SampleId(place),
            Arrangement::Shuffled(permutation) => SampleId(permutation.at(place)),
            Arrangement::Blocked(blocked) => blocked.at(place),
        }
    }

    /// How this rank's positions fall into batches.
    #[must_use]
    pub fn batches(&self, batch_size: NonZeroUsize, drop_last: bool) -> Batches {
        Batches::new(self.len(), batch_size, drop_last)
    }
}

/// Positions cut into batches.
///
/// ```
/// use feedstock::sampler::Batches;
/// use std::num::NonZeroUsize;
///
/// let batches = Batches::new(10, NonZeroUsize::new(4).unwrap(), false);
/// assert_eq!((batches.len(), batches.positions(2)), (3, 8..10));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batches {
    /// Positions that belong to a batch.
    position_count: u64,
    batch_size: u64,
}

impl Batches {
    /// Cuts `position_count` positions into batches of `batch_size`. The last may be smaller; with `drop_last` such a
    /// one is left out.
    #[must_use]
    pub fn new(position_count: u64, batch_size: NonZeroUsize, drop_last: bool) -> Self {
        let batch_size = batch_size.get() as u64;
        let dropped = if drop_last { position_count % batch_size } else { 0 };
        Batches { position_count: position_count - dropped, batch_size }
    }

    /// How many batches there are.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.position_count.div_ceil(self.batch_size)
    }

    /// Whether there is no batch.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.position_count == 0
    }

    /// How many positions are in some batch.
    #[must_use]
    pub fn position_count(&self) -> u64 {
        self.position_count
    }

    /// The positions of a batch.
    ///
    /// # Panics
    /// Panics if `batch` is not in `0..len`.
    #[must_use]
    pub fn positions(&self, batch: u64) -> Range<u64> {
        assert!(batch < self.len(), "batch {batch} was asked of {} batches", self.len());
        let start = batch * self.batch_size;
        start..start.saturating_add(self.batch_size).min(self.position_count)
    }
}

/// What was wrong with the coordinates of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SamplerError {
    /// A rank outside of its world.
    Rank {
        /// The rank that was asked for.
        rank: u64,
        /// How many ranks there are.
        world_size: u64,
    },
}

impl fmt::Display for SamplerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SamplerError::Rank { rank, world_size: 0 } => {
                write!(f, "rank {rank} of a world of no ranks: the world size is 1 where a single process trains")
            }
            SamplerError::Rank { rank, world_size } => {
                write!(
                    f,
                    "rank {rank} does not exist in a world of {world_size}: ranks go from 0 to {}",
                    world_size - 1
                )
            }
        }
    }
}

impl std::error::Error for SamplerError {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn size(n: usize) -> NonZeroUsize {
        NonZeroUsize::new(n).unwrap()
    }

    proptest! {
        #[test]
        fn ranks_cover_every_sample_once(
            samples in 0u64..700, world in 1u64..20, shuffle: bool, seed in any::<u64>(), epoch in any::<u64>()
        ) {
            let whole =
                if shuffle { Order::shuffled(samples, Seed(seed), epoch) } else { Order::sequential(samples) };
            let mut ids = vec![];
            for rank in 0..world {
                let order = whole.clone().for_rank(rank, world).unwrap();
                prop_assert!(order.len() == order.len_common() || order.len() == order.len_common() + 1);
                prop_assert_eq!(order.is_empty(), samples <= rank);
                ids.extend((0..order.len()).map(|position| order.at(position).0));
            }
            ids.sort_unstable();
            prop_assert!(ids.into_iter().eq(0..samples));
        }

        #[test]
        fn batches_follow_each_other(positions in 0u64..5000, batch_size in 1usize..600, drop_last: bool) {
            let batches = Batches::new(positions, size(batch_size), drop_last);
            let mut next = 0;
            for batch in 0..batches.len() {
                let range = batches.positions(batch);
                prop_assert_eq!(range.start, next);
                prop_assert!(range.end - range.start == batch_size as u64 || (!drop_last && batch + 1 == batches.len()));
                next = range.end;
            }
            prop_assert_eq!(next, batches.position_count());
            prop_assert_eq!(next, if drop_last { positions - positions % batch_size as u64 } else { positions });
        }
    }

    #[test]
    fn ranks_share_one_order() {
        let whole = Order::shuffled(101, Seed(3), 4);
        let third = whole.clone().for_rank(2, 3).unwrap();
        assert!((0..third.len()).all(|position| third.at(position) == whole.at(2 + 3 * position)));
    }

    #[test]
    fn sequential_is_by_id() {
        let order = Order::sequential(9).for_rank(1, 4).unwrap();
        assert_eq!((0..order.len()).map(|at| order.at(at).0).collect::<Vec<_>>(), [1, 5]);
    }

    #[test]
    fn an_epoch_of_ten_billion_starts_at_once() {
        let samples = 10_000_000_000;
        let order = Order::shuffled(samples, Seed(1), 0).for_rank(7, 8).unwrap();
        let batches = order.batches(size(256), true);
        assert_eq!((order.len(), batches.len()), (1_250_000_000, 4_882_812));
        let last = batches.positions(batches.len() - 1);
        assert!(last.map(|position| order.at(position).0).all(|id| id < samples));
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        let order = Order::shuffled(u64::MAX, Seed(1), u64::MAX).for_rank(u64::MAX - 1, u64::MAX).unwrap();
        assert_eq!(order.len(), 1);
        let _ = order.at(0);
        let whole = Order::sequential(u64::MAX);
        assert_eq!(whole.at(u64::MAX - 1), SampleId(u64::MAX - 1));
        let batches = whole.batches(size(usize::MAX - 1), false);
        assert_eq!(batches.positions(1), u64::MAX - 1..u64::MAX);
    }

    #[test]
    fn a_rank_outside_of_its_world_is_refused() {
        let refusal = |rank, world| Order::sequential(5).for_rank(rank, world).unwrap_err().to_string();
        assert_eq!(refusal(4, 4), "rank 4 does not exist in a world of 4: ranks go from 0 to 3");
        assert!(refusal(0, 0).contains("the world size is 1"));
    }

    #[test]
    #[should_panic(expected = "position 3 was asked of an order of 3 samples")]
    fn a_position_past_the_end_is_misuse() {
        let _ = Order::sequential(5).for_rank(0, 2).unwrap().at(3);
    }

    #[test]
    #[should_panic(expected = "batch 2 was asked of 2 batches")]
    fn a_batch_past_the_end_is_misuse() {
        let _ = Order::sequential(5).batches(size(3), false).positions(2);
    }
}
