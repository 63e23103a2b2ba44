//! Owns the order of an epoch: which sample stands at which position, for which rank, in which batch.
//! It must never do I/O or keep state: a position is a value, and everything here is a pure function of it.

mod balanced;
mod blocked;
mod mixed;
mod permutation;
mod scheme;
#[cfg(test)]
mod statistics;
#[cfg(test)]
mod tests;
mod weighted;

pub use balanced::Classes;
pub use mixed::Mix;
pub use permutation::Permutation;
pub(crate) use scheme::Scheme;
pub use weighted::Weights;

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;

use blocked::Blocked;

use crate::blocks::Blocks;
use crate::sync::Arc;
use crate::units::{SampleId, Seed, mix64};

/// The samples of one epoch in the order in which one rank sees them.
///
/// The epoch is one order of all samples; rank r of w takes its positions r, r + w, r + 2w and so on. So the ranks cover
/// every sample **exactly once**: none is repeated to even them out and none is left out. Where w does not divide the
/// number of samples, the first ranks have one sample more than the others. Ranks that train in lock-step should stop
/// after [`len_common`](Self::len_common) positions, which all of them have.
///
/// In an order that draws ([`weighted`](Self::weighted), [`balanced`](Self::balanced), [`mixed`](Self::mixed)) a sample may
/// come several times in an epoch, or not at all; what is covered exactly once are its places.
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
    Weighted { weights: Weights, seed: Seed, epoch: u64 },
    Balanced { classes: Classes, seed: Seed, epoch: u64 },
    Mixed { mix: Mix, seed: Seed, epoch: u64, first_block: u64 },
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

    /// So many samples of one epoch, drawn with replacement, each as often as its weight says.
    #[must_use]
    pub fn weighted(weights: &Weights, draws: u64, seed: Seed, epoch: u64) -> Self {
        let arrangement = Arrangement::Weighted { weights: weights.clone(), seed, epoch };
        Order { arrangement, ..Order::sequential(draws) }
    }

    /// So many samples of one epoch, of each class equally often: of the places from 0, as many as there are classes that
    /// have samples hold one of each class, in a pseudorandom order, and so do the next as many. Of a class, all samples
    /// come before one of them comes again.
    #[must_use]
    pub fn balanced(classes: &Classes, draws: u64, seed: Seed, epoch: u64) -> Self {
        let arrangement = Arrangement::Balanced { classes: classes.clone(), seed, epoch };
        Order { arrangement, ..Order::sequential(draws) }
    }

    /// So many samples of one epoch, of each part as many as its share. Of a part, all samples come before one of them
    /// comes again, so that small parts repeat and large ones are not finished.
    #[must_use]
    pub fn mixed(mix: &Mix, draws: u64, seed: Seed, epoch: u64) -> Self {
        let first_block = mix.first_block(seed, epoch);
        let arrangement = Arrangement::Mixed { mix: mix.clone(), seed, epoch, first_block };
        Order { arrangement, ..Order::sequential(draws) }
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
        let place = self.place(position);
        match &self.arrangement {
            Arrangement::ById => SampleId(place),
            Arrangement::Shuffled(permutation) => SampleId(permutation.at(place)),
            Arrangement::Blocked(blocked) => blocked.at(place),
            Arrangement::Weighted { weights, seed, epoch } => weights.draw(*seed, *epoch, place),
            Arrangement::Balanced { classes, seed, epoch } => classes.draw(*seed, *epoch, place),
            Arrangement::Mixed { mix, seed, epoch, first_block } => mix.draw(*seed, *epoch, *first_block, place),
        }
    }

    /// The place in the whole epoch of a position of this rank.
    ///
    /// # Panics
    /// Panics if `position` is not in `0..len`.
    #[must_use]
    pub fn place(&self, position: u64) -> u64 {
        assert!(position < self.len(), "position {position} was asked of an order of {} samples", self.len());
        self.rank + position * self.world_size
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
    /// A weight that is none.
    Weight {
        /// Its place among the weights.
        index: u64,
        /// What it is.
        weight: String,
    },
    /// No sample has a weight.
    NothingToDraw {
        /// How many weights there are.
        weights: u64,
    },
    /// Parts that cannot be mixed so: which, and why.
    Parts(String),
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
            SamplerError::Weight { index, weight } => {
                write!(f, "weight {index} is {weight}: a weight is a finite number from 0 up, and 0 keeps out")
            }
            SamplerError::NothingToDraw { weights: 0 } => {
                f.write_str("there is nothing to draw from: no sample, no weight")
            }
            SamplerError::NothingToDraw { weights } => {
                write!(f, "all {weights} weights are 0: nothing could be drawn, so give one sample a weight at least")
            }
            SamplerError::Parts(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for SamplerError {}

/// A seed of its own for each purpose, which a list of numbers names.
fn key(seed: Seed, purpose: &[u64]) -> Seed {
    Seed(purpose.iter().fold(seed.0, |key, &part| mix64(key ^ mix64(part.wrapping_add(1)))))
}

/// The element at a place in an endless row of pseudorandom orders of `0..len`.
fn endless(len: u64, place: u64, seed: Seed, epoch: u64) -> u64 {
    Permutation::new(len, key(seed, &[place / len]), epoch).at(place % len)
}
