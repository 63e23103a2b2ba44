//! Mixture of the parts of a source in given shares: a number of positions of each block belongs to each part. All
//! samples of a part come before one repeats.

use std::mem::size_of;

use super::weighted::checked;
use super::{Permutation, SamplerError, key, repeated_permutation};
use crate::rng::{KeyedRng, Seed};
use crate::sync::Arc;
use crate::units::SampleId;

/// Separate these uses of (seed, epoch) from every other, and from each other.
const BLOCK_SALT: u64 = u64::from_be_bytes(*b"in block");
const PART_SALT: u64 = u64::from_be_bytes(*b"of part!");
const START_SALT: u64 = u64::from_be_bytes(*b"begin at");

/// Maximum number of positions of a block.
const MAX_BLOCK_LEN: u64 = 256;
/// Blocks of a cycle if no single block keeps the shares exactly.
const CYCLE_LEN: u64 = 256;
/// Tolerance within which a share of a block counts as a whole number of positions.
const WHOLE: f64 = 1e-9;
/// Maximum number of parts.
const MAX_PARTS: usize = 4096;

/// The share of each part of a source. A clone is another handle to the same table.
///
/// Shares are kept in blocks of positions: the smallest block of up to 256 in which each part has a whole number of
/// positions (4 for shares of 3 and 1). If there is none, blocks have 256 positions, and 256 blocks in a row keep the
/// shares to one position in 65,536, with no part ever more than two positions from its share. Positions are shuffled
/// within a block.
///
/// The table takes 16 bytes a part, and 1 KiB more if shares are kept by many blocks.
///
/// ```
/// use feedstock::sampler::{Mixture, Order};
/// use feedstock::rng::Seed;
/// use feedstock::SampleId;
///
/// // Three in four of samples 0..1000, one in four of samples 1000..1010.
/// let order = Order::mixed(&Mixture::new(&[1000, 1010], &[3.0, 1.0])?, 100, Seed(17), 0);
/// assert_eq!((0..100).filter(|&at| order.at(at) < SampleId(1000)).count(), 75);
/// # Ok::<(), feedstock::sampler::SamplerError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Mixture {
    table: Arc<Table>,
}

#[derive(Debug)]
struct Table {
    /// For each part, the sample after its last.
    ends: Box<[u64]>,
    /// Positions of a block.
    block_len: u64,
    /// For each block of a cycle, and its end: positions of each part since the cycle began.
    cumulative: Box<[u32]>,
}

impl Mixture {
    /// Mixes parts that follow each other: `ends` holds the sample after the last one of each part, `weights` the
    /// relative frequency of each.
    ///
    /// # Errors
    /// [`SamplerError::Weight`] for the first weight that is negative, infinite or not a number;
    /// [`SamplerError::NothingToDraw`] if all are 0; [`SamplerError::WeightCount`], [`SamplerError::PartEnds`],
    /// [`SamplerError::EmptyPart`] and [`SamplerError::RarePart`] for parts that cannot be mixed.
    pub fn new(ends: &[u64], weights: &[f64]) -> Result<Self, SamplerError> {
        let parts = ends.len();
        if parts != weights.len() || parts > MAX_PARTS {
            return Err(SamplerError::WeightCount { weights: weights.len(), parts, max: MAX_PARTS });
        }
        if !ends.is_sorted() {
            return Err(SamplerError::PartEnds);
        }
        for (part, &weight) in weights.iter().enumerate() {
            if checked(part, weight)? > 0.0 && size(ends, part) == 0 {
                return Err(SamplerError::EmptyPart { part, weight });
            }
        }
        // Of the largest first, so that no sum is infinite.
        let largest = weights.iter().copied().fold(0.0, f64::max);
        let sum: f64 = weights.iter().map(|weight| weight / largest).sum();
        if largest == 0.0 {
            return Err(SamplerError::NothingToDraw { weights: weights.len() as u64 });
        }
        let shares: Vec<f64> = weights.iter().map(|weight| weight / largest / sum).collect();
        let (block_len, cycle_len) = block_and_cycle_len(&shares);
        let cumulative = cumulative_turns(&shares, block_len, cycle_len);
        let turns = &cumulative[cumulative.len() - shares.len()..];
        if let Some(part) = (0..shares.len()).find(|&part| shares[part] > 0.0 && turns[part] == 0) {
            return Err(SamplerError::RarePart { part, weight: weights[part], positions: block_len * cycle_len });
        }
        Ok(Mixture { table: Arc::new(Table { ends: ends.into(), block_len, cumulative }) })
    }

    /// Number of samples in all parts.
    #[must_use]
    pub fn sample_count(&self) -> u64 {
        self.table.ends.last().copied().unwrap_or(0)
    }

    /// RAM of the table in bytes.
    #[must_use]
    pub fn table_bytes(&self) -> u64 {
        (self.table.ends.len() * size_of::<u64>() + self.table.cumulative.len() * size_of::<u32>()) as u64
    }

    /// The block of a cycle at which an epoch begins, so that parts of few positions get them in one epoch or another.
    pub(super) fn first_block(&self, seed: Seed, epoch: u64) -> u64 {
        KeyedRng::new(seed, epoch, SampleId(0), START_SALT).below(self.table.cycle_len())
    }

    /// The sample at an index of an epoch that begins with `first_block`.
    pub(super) fn draw(&self, seed: Seed, epoch: u64, first_block: u64, index: u64) -> SampleId {
        let table = &*self.table;
        let (block, turn) = (index / table.block_len, index % table.block_len);
        let turns = Permutation::new(table.block_len, key(seed, &[BLOCK_SALT, block]), epoch);
        let (at, shuffled) = (first_block + block, turns.at(turn));
        // Before shuffling, the positions of a part are contiguous.
        let mut own = 0..0;
        let part = (0..table.ends.len()).find(|&part| {
            own = own.end..own.end + table.turns_before(at + 1, part) - table.turns_before(at, part);
            own.contains(&shuffled)
        });
        let Some(part) = part else { unreachable!("every position of a block belongs to a part") };
        // Draws of this part before this one in the block.
        let before = (0..turn).filter(|&before| own.contains(&turns.at(before))).count() as u64;
        let nth = table.turns_before(at, part) - table.turns_before(first_block, part) + before;
        let of_part = repeated_permutation(size(&table.ends, part), nth, key(seed, &[PART_SALT, part as u64]), epoch);
        SampleId(start(&table.ends, part) + of_part)
    }

    /// Draws another sample of the part that contains a sample; `None` if there is no other.
    pub(super) fn draw_other(&self, than: SampleId, rng: &mut KeyedRng) -> Option<SampleId> {
        let ends = &self.table.ends;
        let part = ends.partition_point(|&end| end <= than.0);
        let (first, last) = (start(ends, part), ends[part] - 1);
        // The last sample replaces the excluded one.
        (first < last)
            .then(|| SampleId(first + rng.below(last - first)))
            .map(|id| if id == than { SampleId(last) } else { id })
    }
}

impl Table {
    fn cycle_len(&self) -> u64 {
        (self.cumulative.len() / self.ends.len().max(1)) as u64 - 1
    }

    /// Positions of a part in the blocks before this one, since the beginning of the first cycle.
    fn turns_before(&self, block: u64, part: usize) -> u64 {
        let (parts, cycle_len) = (self.ends.len(), self.cycle_len());
        let row = |row: u64| u64::from(self.cumulative[row as usize * parts + part]);
        block / cycle_len * row(cycle_len) + row(block % cycle_len)
    }
}

/// The length of a block in which each share is a whole number of positions, and the number of blocks of a cycle.
fn block_and_cycle_len(shares: &[f64]) -> (u64, u64) {
    let whole =
        |len: u64| shares.iter().map(|share| share * len as f64).all(|places| (places - places.round()).abs() < WHOLE);
    (1..=MAX_BLOCK_LEN).find(|&len| whole(len)).map_or((MAX_BLOCK_LEN, CYCLE_LEN), |len| (len, 1))
}

/// Gives each position of each block to the part that is furthest behind its share. In the first block that is the
/// method of the largest remainder; later blocks compensate for its rounding.
fn cumulative_turns(shares: &[f64], block_len: u64, cycle_len: u64) -> Box<[u32]> {
    let mut turns = vec![0u32; shares.len()];
    let mut behind = vec![0.0; shares.len()];
    let mut cumulative = turns.clone();
    for _ in 0..cycle_len {
        behind.iter_mut().zip(shares).for_each(|(behind, share)| *behind += share * block_len as f64);
        for _ in 0..block_len {
            let mut furthest = 0;
            for part in 1..behind.len() {
                // The first of equals, in spite of rounding.
                if behind[part] > behind[furthest] + WHOLE {
                    furthest = part;
                }
            }
            behind[furthest] -= 1.0;
            turns[furthest] += 1;
        }
        cumulative.extend_from_slice(&turns);
    }
    cumulative.into()
}

fn start(ends: &[u64], part: usize) -> u64 {
    part.checked_sub(1).map_or(0, |before| ends[before])
}

fn size(ends: &[u64], part: usize) -> u64 {
    ends[part] - start(ends, part)
}

#[cfg(test)]
mod tests {
    use super::super::Order;
    use super::*;
    use proptest::prelude::*;

    fn counts(ends: &[u64], ids: &[SampleId]) -> Vec<u64> {
        let mut counts = vec![0; ends.len()];
        ids.iter().for_each(|id| counts[ends.partition_point(|&end| end <= id.0)] += 1);
        counts
    }

    proptest! {
        #[test]
        fn shares_are_kept_and_a_part_is_exhausted_before_it_repeats(
            parts in prop::collection::vec((1u64..50, prop_oneof![(1u32..6).prop_map(f64::from), 0.02f64..9.0]), 1..6),
            world in 1u64..7, draws in 1u64..1500, seed in any::<u64>(), epoch in any::<u64>(),
        ) {
            let mut end = 0;
            let ends: Vec<u64> = parts.iter().map(|part| { end += part.0; end }).collect();
            let weights: Vec<f64> = parts.iter().map(|part| part.1).collect();
            let mix = Mixture::new(&ends, &weights).unwrap();
            let whole = Order::mixed(&mix, draws, Seed(seed), epoch);
            let ids: Vec<SampleId> = (0..draws).map(|index| whole.at(index)).collect();
            let block = mix.table.block_len as usize;
            for blocks in 1..=ids.len() / block {
                let so_far = &ids[..blocks * block];
                for (part, count) in counts(&ends, so_far).into_iter().enumerate() {
                    let share = weights[part] / weights.iter().sum::<f64>() * so_far.len() as f64;
                    let off = (count as f64 - share).abs();
                    prop_assert!(off < if mix.table.cycle_len() == 1 { 1e-6 } else { 2.01 }, "{off} of {share}");
                }
            }
            for part in 0..ends.len() {
                let own = start(&ends, part)..ends[part];
                let visits: Vec<u64> = ids.iter().map(|id| id.0).filter(|id| own.contains(id)).collect();
                for round in visits.chunks(size(&ends, part) as usize) {
                    let different: std::collections::BTreeSet<_> = round.iter().collect();
                    prop_assert_eq!(different.len(), round.len(), "a sample came twice in a round");
                }
            }
            for rank in 0..world {
                let part = whole.clone().for_rank(rank, world).unwrap();
                for position in 0..part.len() {
                    prop_assert_eq!(part.at(position), ids[(rank + position * world) as usize]);
                }
            }
        }
    }

    #[test]
    fn a_block_is_as_short_as_its_shares_allow() {
        let lens = |weights: &[f64]| {
            let ends: Vec<u64> = (1..=weights.len() as u64).collect();
            let mix = Mixture::new(&ends, weights).unwrap();
            (mix.table.block_len, mix.table.cycle_len())
        };
        assert_eq!(lens(&[3.0, 1.0]), (4, 1));
        assert_eq!(lens(&[0.7, 0.3]), (10, 1));
        assert_eq!(lens(&[1.0; 3]), (3, 1));
        assert_eq!(lens(&[5.0, 0.0]), (1, 1));
        assert_eq!(lens(&[f64::MAX, f64::MAX]), (2, 1));
        assert_eq!(lens(&[1.0, std::f64::consts::SQRT_2]), (256, 256));
    }

    #[test]
    fn shares_that_no_block_keeps_are_kept_by_many() {
        let (ends, weights) = ([10, 20, 30], [1.0, std::f64::consts::E, 0.004]);
        let mix = Mixture::new(&ends, &weights).unwrap();
        let draws = 65_536 * 3;
        let order = Order::mixed(&mix, draws, Seed(3), 1);
        let ids: Vec<SampleId> = (0..draws).map(|index| order.at(index)).collect();
        let sum: f64 = weights.iter().sum();
        for (count, weight) in counts(&ends, &ids).into_iter().zip(weights) {
            let share = weight / sum * draws as f64;
            assert!((count as f64 - share).abs() <= 3.0, "{count} of {share}");
        }
        let bytes = mix.table_bytes();
        assert_eq!(bytes, 3 * 8 + 257 * 3 * 4);
    }

    #[test]
    fn parts_that_cannot_be_mixed_are_refused() {
        let refusal = |ends: &[u64], weights: &[f64]| Mixture::new(ends, weights).unwrap_err().to_string();
        assert!(refusal(&[1, 2], &[1.0]).starts_with("1 weights for 2 parts"));
        assert!(refusal(&[1, 1], &[1.0, 2.5]).starts_with("part 1 has weight 2.5 and no samples"));
        assert!(refusal(&[1, 2], &[1.0, -2.0]).starts_with("weight 1 is -2"));
        assert!(refusal(&[1, 2], &[0.0, 0.0]).starts_with("none of 2 weights"));
        assert!(refusal(&[2, 1], &[1.0, 1.0]).contains("do not ascend"));
        let rare = refusal(&[1, 2], &[1.0, 1e-7]);
        assert!(rare.contains("less than once in 65536 positions"), "{rare}");
        assert!(refusal(&[], &[]).starts_with("none of 0 weights"));
    }

    #[test]
    fn a_substitute_is_another_sample_of_the_part() {
        let mix = Mixture::new(&[3, 4, 4, 9], &[1.0, 1.0, 0.0, 1.0]).unwrap();
        let mut rng = KeyedRng::new(Seed(5), 0, SampleId(2), 0);
        let others: Vec<u64> = (0..100).filter_map(|_| mix.draw_other(SampleId(4), &mut rng)).map(|id| id.0).collect();
        assert!(others.len() == 100 && others.iter().all(|id| (5..9).contains(id)), "{others:?}");
        assert_eq!(mix.draw_other(SampleId(3), &mut rng), None);
    }
}
