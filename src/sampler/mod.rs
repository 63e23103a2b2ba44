//! The order of an epoch: the sample at each position, for each rank and batch.
//!
//! Everything here is a pure function of (seed, epoch, position), without I/O or state. Only tables (weights, class
//! members) are built in advance, once per run.

mod balanced;
mod blocked;
mod epoch_sampler;
mod mixed;
mod permutation;
#[cfg(test)]
mod statistics;
#[cfg(test)]
mod tests;
mod weighted;

pub use balanced::ClassTable;
pub(crate) use epoch_sampler::Sampler;
pub use mixed::Mixture;
pub use permutation::Permutation;
pub use weighted::WeightTable;

use std::num::NonZeroUsize;
use std::ops::Range;

use blocked::Blocked;

use crate::blocks::Blocks;
use crate::rng::{Seed, mix64};
use crate::sync::Arc;
use crate::units::SampleId;

/// The samples of one epoch in the order of one rank.
///
/// The epoch is one order of all samples; rank r of w takes its positions r, r + w, r + 2w and so on. So the ranks
/// cover every sample **exactly once**: none is repeated to pad a rank and none is left out. If w does not divide the
/// number of samples, the first ranks have one sample more than the others. Ranks that train in lockstep should stop
/// after [`len_common`](Self::len_common) positions, which all of them have.
///
/// With [`weighted`](Self::weighted), [`balanced`](Self::balanced) and [`mixed`](Self::mixed) a sample may come several
/// times in an epoch, or not at all; there the ranks cover every position exactly once.
///
/// # Example
/// ```
/// use feedstock::sampler::Order;
/// use feedstock::rng::Seed;
/// use feedstock::SampleId;
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

/// The rule that maps positions to samples.
#[derive(Clone, Debug)]
enum Arrangement {
    Sequential,
    Shuffled(Permutation),
    Blocked(Arc<Blocked>),
    Weighted { weights: WeightTable, seed: Seed, epoch: u64 },
    Balanced { classes: ClassTable, seed: Seed, epoch: u64 },
    Mixed { mix: Mixture, seed: Seed, epoch: u64, first_block: u64 },
}

impl Order {
    /// All samples by id.
    #[must_use]
    pub fn sequential(sample_count: u64) -> Self {
        Order { sample_count, arrangement: Arrangement::Sequential, rank: 0, world_size: 1 }
    }

    /// All samples in the pseudorandom order of one epoch.
    #[must_use]
    pub fn shuffled(sample_count: u64, seed: Seed, epoch: u64) -> Self {
        let arrangement = Arrangement::Shuffled(Permutation::new(sample_count, seed, epoch));
        Order { arrangement, ..Order::sequential(sample_count) }
    }

    /// All samples of a source that has [`Blocks`], in the pseudorandom order of one epoch: the blocks are shuffled
    /// (runs of blocks if they have to be read front to back), then the samples within each group of a few blocks.
    #[must_use]
    pub fn blocked(blocks: &Blocks, seed: Seed, epoch: u64) -> Self {
        let arrangement = Arrangement::Blocked(Arc::new(Blocked::new(blocks, seed, epoch)));
        Order { arrangement, ..Order::sequential(blocks.sample_count()) }
    }

    /// `draws` samples of one epoch, drawn with replacement in proportion to their weights.
    #[must_use]
    pub fn weighted(weights: &WeightTable, draws: u64, seed: Seed, epoch: u64) -> Self {
        let arrangement = Arrangement::Weighted { weights: weights.clone(), seed, epoch };
        Order { arrangement, ..Order::sequential(draws) }
    }

    /// `draws` samples of one epoch, of each class equally often: each window of as many positions as there are classes
    /// with samples holds one sample of every class, in a pseudorandom order. All samples of a class come before one
    /// repeats.
    #[must_use]
    pub fn balanced(classes: &ClassTable, draws: u64, seed: Seed, epoch: u64) -> Self {
        let arrangement = Arrangement::Balanced { classes: classes.clone(), seed, epoch };
        Order { arrangement, ..Order::sequential(draws) }
    }

    /// `draws` samples of one epoch, of each part in proportion to its share. All samples of a part come before one
    /// repeats, so small parts repeat and large ones are not finished.
    #[must_use]
    pub fn mixed(mix: &Mixture, draws: u64, seed: Seed, epoch: u64) -> Self {
        let first_block = mix.first_block(seed, epoch);
        let arrangement = Arrangement::Mixed { mix: mix.clone(), seed, epoch, first_block };
        Order { arrangement, ..Order::sequential(draws) }
    }

    /// The part of the order that belongs to one of `world_size` ranks.
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

    /// Number of samples of this rank.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.sample_count.saturating_sub(self.rank).div_ceil(self.world_size)
    }

    /// Returns true if this rank has no samples, because there are fewer samples than ranks.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of samples that every rank has at least.
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
        let index = self.global_position(position);
        match &self.arrangement {
            Arrangement::Sequential => SampleId(index),
            Arrangement::Shuffled(permutation) => SampleId(permutation.at(index)),
            Arrangement::Blocked(blocked) => blocked.at(index),
            Arrangement::Weighted { weights, seed, epoch } => weights.draw(*seed, *epoch, index),
            Arrangement::Balanced { classes, seed, epoch } => classes.draw(*seed, *epoch, index),
            Arrangement::Mixed { mix, seed, epoch, first_block } => mix.draw(*seed, *epoch, *first_block, index),
        }
    }

    /// The position in the whole epoch of a position of this rank.
    ///
    /// # Panics
    /// Panics if `position` is not in `0..len`.
    #[must_use]
    pub fn global_position(&self, position: u64) -> u64 {
        assert!(position < self.len(), "position {position} of an order of {} samples", self.len());
        self.rank + position * self.world_size
    }

    /// Divides this rank's positions into batches.
    #[must_use]
    pub fn batches(&self, batch_size: NonZeroUsize, drop_last: bool) -> Batches {
        Batches::new(self.len(), batch_size, drop_last)
    }
}

/// Positions divided into batches.
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
    /// Positions that belong to some batch.
    position_count: u64,
    batch_size: u64,
}

impl Batches {
    /// Divides `position_count` positions into batches of `batch_size`. The last one may be smaller; `drop_last` leaves
    /// a smaller one out.
    #[must_use]
    pub fn new(position_count: u64, batch_size: NonZeroUsize, drop_last: bool) -> Self {
        let batch_size = batch_size.get() as u64;
        let dropped = if drop_last { position_count % batch_size } else { 0 };
        Batches { position_count: position_count - dropped, batch_size }
    }

    /// Number of batches.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.position_count.div_ceil(self.batch_size)
    }

    /// Returns true if there is no batch.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.position_count == 0
    }

    /// Number of positions that belong to some batch.
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
        assert!(batch < self.len(), "batch {batch} of {} batches", self.len());
        let start = batch * self.batch_size;
        start..start.saturating_add(self.batch_size).min(self.position_count)
    }
}

/// Parameters of an order that cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplerError {
    /// A rank that does not exist.
    #[error("rank {rank} does not exist in a world of {world_size}: expected a rank below the world size")]
    Rank {
        /// The rank.
        rank: u64,
        /// The number of ranks.
        world_size: u64,
    },
    /// A weight that is negative, infinite or not a number.
    #[error("weight {index} is {weight}: expected a finite number from 0, where 0 excludes the sample")]
    Weight {
        /// Index of the weight.
        index: u64,
        /// The weight.
        weight: f64,
    },
    /// Weights whose sum is infinite.
    #[error("weight {index} is {weight}, which makes the sum of weights infinite: scale them down")]
    WeightSum {
        /// Index of the weight that overflows the sum.
        index: u64,
        /// The weight.
        weight: f64,
    },
    /// No sample has a weight above 0.
    #[error("none of {weights} weights is above 0: at least one sample needs a weight")]
    NothingToDraw {
        /// The number of weights.
        weights: u64,
    },
    /// Another number of weights than of parts, or too many parts.
    #[error("{weights} weights for {parts} parts: expected one weight for each part, and at most {max} parts")]
    WeightCount {
        /// The number of weights.
        weights: usize,
        /// The number of parts.
        parts: usize,
        /// The maximum number of parts.
        max: usize,
    },
    /// Ends of parts that do not ascend.
    #[error("the ends of the parts do not ascend: expected the sample after the last one of each part")]
    PartEnds,
    /// A part that has a weight and no samples.
    #[error("part {part} has weight {weight} and no samples: give it weight 0, or samples")]
    EmptyPart {
        /// Index of the part.
        part: usize,
        /// Its weight.
        weight: f64,
    },
    /// A part whose share is too small to be kept.
    #[error("part {part} has weight {weight}, less than once in {positions} positions: give it more, or 0")]
    RarePart {
        /// Index of the part.
        part: usize,
        /// Its weight.
        weight: f64,
        /// Positions in which the part would come less than once.
        positions: u64,
    },
}

/// Derives a seed for a purpose, which a list of numbers names.
fn key(seed: Seed, purpose: &[u64]) -> Seed {
    Seed(purpose.iter().fold(seed.0, |key, &part| mix64(key ^ mix64(part.wrapping_add(1)))))
}

/// The element at an index of an endless sequence of pseudorandom orders of `0..len`.
fn repeated_permutation(len: u64, index: u64, seed: Seed, epoch: u64) -> u64 {
    Permutation::new(len, key(seed, &[index / len]), epoch).at(index % len)
}
