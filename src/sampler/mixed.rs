//! Owns the order in which the parts of a source come in given shares: how many places of each block a part has, and
//! which of its samples take them. It must never draw a sample of a part again before all others of that part have come.

use std::mem::size_of;

use super::weighted::checked;
use super::{Permutation, SamplerError, endless, key};
use crate::sync::Arc;
use crate::units::{KeyedRng, SampleId, Seed};

/// Separate these uses of (seed, epoch) from every other, and from each other.
const BLOCK_SALT: u64 = u64::from_be_bytes(*b"in block");
const PART_SALT: u64 = u64::from_be_bytes(*b"of part!");
const START_SALT: u64 = u64::from_be_bytes(*b"begin at");

/// Shares are kept in blocks of up to this many places.
const BLOCK_LEN_MAX: u64 = 256;
/// Where no block keeps them exactly, so many blocks together come as close as can be.
const CYCLE_LEN: u64 = 256;
/// A share of a block counts as a whole number of places if it is one to this.
const WHOLE: f64 = 1e-9;
/// More parts than this are a mistake.
const PARTS_MAX: usize = 4096;

/// How the parts of a source are mixed: the share of each. A clone is another handle to the same table.
///
/// Shares are kept in blocks of places: the smallest block of up to 256 in which each part has a whole number of places
/// (4 for shares of 3 and 1). Where there is none, blocks have 256 places, and 256 blocks in a row keep the shares to one
/// place in 65,536, no part ever being more than two places from its share. Within a block the places are shuffled.
///
/// The table takes 16 bytes a part, and 1 KiB more where shares are kept by many blocks.
///
/// ```
/// use feedstock::sampler::{Mix, Order};
/// use feedstock::{SampleId, Seed};
///
/// // Samples 0..1000 and 1000..1010: of the first three in four, though they are a hundred times as many.
/// let order = Order::mixed(&Mix::new(&[1000, 1010], &[3.0, 1.0])?, 100, Seed(17), 0);
/// assert_eq!((0..100).filter(|&at| order.at(at) < SampleId(1000)).count(), 75);
/// # Ok::<(), feedstock::sampler::SamplerError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Mix {
    table: Arc<Table>,
}

#[derive(Debug)]
struct Table {
    /// For each part, the sample after its last.
    ends: Box<[u64]>,
    /// Places of a block.
    block_len: u64,
    /// For each block of a cycle and the end of it: how many places each part has had since the cycle began.
    places: Box<[u32]>,
}

impl Mix {
    /// A mix of parts that follow each other: `ends` has the sample after the last one of each, `weights` how often each
    /// comes, beside the others.
    ///
    /// # Errors
    /// [`SamplerError::Weight`] for the first weight that is negative, infinite or not a number;
    /// [`SamplerError::NothingToDraw`] where all are 0; [`SamplerError::Parts`] where there are not as many weights as
    /// parts, a part with a weight has no sample, or one would come less than once in 65,536 places.
    pub fn new(ends: &[u64], weights: &[f64]) -> Result<Self, SamplerError> {
        let refuse = |what: String| Err(SamplerError::Parts(what));
        if ends.len() != weights.len() || ends.len() > PARTS_MAX {
            let (parts, weights) = (ends.len(), weights.len());
            return refuse(format!(
                "{weights} weights for {parts} parts: give one for each part, and {PARTS_MAX} at most"
            ));
        }
        if !ends.is_sorted() {
            return refuse("the ends of the parts do not rise: give the sample after the last one of each".to_owned());
        }
        for (index, &weight) in weights.iter().enumerate() {
            if checked(index, weight)? > 0.0 && size(ends, index) == 0 {
                return refuse(format!("part {index} has weight {weight} and no sample: give it 0, or samples"));
            }
        }
        // Of the largest first, so that no sum is infinite.
        let largest = weights.iter().copied().fold(0.0, f64::max);
        let sum: f64 = weights.iter().map(|weight| weight / largest).sum();
        if largest == 0.0 {
            return Err(SamplerError::NothingToDraw { weights: weights.len() as u64 });
        }
        let shares: Vec<f64> = weights.iter().map(|weight| weight / largest / sum).collect();
        let (block_len, cycle_len) = blocks(&shares);
        let places = places(&shares, block_len, cycle_len);
        let had = &places[places.len() - shares.len()..];
        if let Some(part) = (0..shares.len()).find(|&part| shares[part] > 0.0 && had[part] == 0) {
            return refuse(format!(
                "part {part} would come less than once in {} places, with a weight of {}: give it more, or 0",
                block_len * cycle_len,
                weights[part]
            ));
        }
        Ok(Mix { table: Arc::new(Table { ends: ends.into(), block_len, places }) })
    }

    /// How many samples are in all parts.
    #[must_use]
    pub fn sample_count(&self) -> u64 {
        self.table.ends.last().copied().unwrap_or(0)
    }

    /// RAM of the table, bytes.
    #[must_use]
    pub fn table_bytes(&self) -> u64 {
        (self.table.ends.len() * size_of::<u64>() + self.table.places.len() * size_of::<u32>()) as u64
    }

    /// Where in a cycle an epoch begins, so that parts of few places get them in one epoch or another.
    pub(super) fn first_block(&self, seed: Seed, epoch: u64) -> u64 {
        KeyedRng::new(seed, epoch, SampleId(0), START_SALT).below(self.table.cycle_len())
    }

    /// What comes at a place of an epoch that begins with such a block.
    pub(super) fn draw(&self, seed: Seed, epoch: u64, first_block: u64, place: u64) -> SampleId {
        let table = &*self.table;
        let (block, turn) = (place / table.block_len, place % table.block_len);
        let turns = Permutation::new(table.block_len, key(seed, &[BLOCK_SALT, block]), epoch);
        let (at, shuffled) = (first_block + block, turns.at(turn));
        // The places of a part are next to each other before they are shuffled.
        let mut own = 0..0;
        let part = (0..table.ends.len()).find(|&part| {
            own = own.end..own.end + table.had(at + 1, part) - table.had(at, part);
            own.contains(&shuffled)
        });
        let Some(part) = part else { unreachable!("the places of a block are those of its parts") };
        // So many of this part have come in the blocks before, and in this one.
        let before = (0..turn).filter(|&before| own.contains(&turns.at(before))).count() as u64;
        let nth = table.had(at, part) - table.had(first_block, part) + before;
        let of_part = endless(size(&table.ends, part), nth, key(seed, &[PART_SALT, part as u64]), epoch);
        SampleId(start(&table.ends, part) + of_part)
    }

    /// Draws among the others of the part that a sample is in; `None` where there is no other.
    pub(super) fn draw_other(&self, than: SampleId, rng: &mut KeyedRng) -> Option<SampleId> {
        let ends = &self.table.ends;
        let part = ends.partition_point(|&end| end <= than.0);
        let (first, last) = (start(ends, part), ends[part] - 1);
        // The last stands in for the sample itself.
        (first < last)
            .then(|| SampleId(first + rng.below(last - first)))
            .map(|id| if id == than { SampleId(last) } else { id })
    }
}

impl Table {
    fn cycle_len(&self) -> u64 {
        (self.places.len() / self.ends.len().max(1)) as u64 - 1
    }

    /// How many places a part has had in the blocks before this one, from the beginning of the first cycle.
    fn had(&self, block: u64, part: usize) -> u64 {
        let (parts, cycle_len) = (self.ends.len(), self.cycle_len());
        let row = |row: u64| u64::from(self.places[row as usize * parts + part]);
        block / cycle_len * row(cycle_len) + row(block % cycle_len)
    }
}

/// The length of a block in which each share is a whole number of places, and of a cycle of such blocks.
fn blocks(shares: &[f64]) -> (u64, u64) {
    let whole =
        |len: u64| shares.iter().map(|share| share * len as f64).all(|places| (places - places.round()).abs() < WHOLE);
    (1..=BLOCK_LEN_MAX).find(|&len| whole(len)).map_or((BLOCK_LEN_MAX, CYCLE_LEN), |len| (len, 1))
}

/// Gives each place of each block to the part that is furthest behind its share. In the first block that is the method of
/// the largest remainder; what a part is short of or has too much there is made up in the blocks that follow.
fn places(shares: &[f64], block_len: u64, cycle_len: u64) -> Box<[u32]> {
    let mut had = vec![0u32; shares.len()];
    let mut behind = vec![0.0; shares.len()];
    let mut places = had.clone();
    for _ in 0..cycle_len {
        behind.iter_mut().zip(shares).for_each(|(behind, share)| *behind += share * block_len as f64);
        for _ in 0..block_len {
            let mut furthest = 0;
            for part in 1..behind.len() {
                // The first of equals, whatever rounding makes of them.
                if behind[part] > behind[furthest] + WHOLE {
                    furthest = part;
                }
            }
            behind[furthest] -= 1.0;
            had[furthest] += 1;
        }
        places.extend_from_slice(&had);
    }
    places.into()
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
        fn shares_are_kept_and_a_part_is_used_up_before_it_begins_again(
            parts in prop::collection::vec((1u64..50, prop_oneof![(1u32..6).prop_map(f64::from), 0.02f64..9.0]), 1..6),
            world in 1u64..7, draws in 1u64..1500, seed in any::<u64>(), epoch in any::<u64>(),
        ) {
            let mut end = 0;
            let ends: Vec<u64> = parts.iter().map(|part| { end += part.0; end }).collect();
            let weights: Vec<f64> = parts.iter().map(|part| part.1).collect();
            let mix = Mix::new(&ends, &weights).unwrap();
            let whole = Order::mixed(&mix, draws, Seed(seed), epoch);
            let ids: Vec<SampleId> = (0..draws).map(|place| whole.at(place)).collect();
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
                prop_assert!((0..part.len()).all(|position| part.at(position) == ids[(rank + position * world) as usize]));
            }
        }
    }

    #[test]
    fn a_block_is_as_short_as_its_shares_allow() {
        let lens = |weights: &[f64]| {
            let ends: Vec<u64> = (1..=weights.len() as u64).collect();
            let mix = Mix::new(&ends, weights).unwrap();
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
        let mix = Mix::new(&ends, &weights).unwrap();
        let draws = 65_536 * 3;
        let order = Order::mixed(&mix, draws, Seed(3), 1);
        let ids: Vec<SampleId> = (0..draws).map(|place| order.at(place)).collect();
        let sum: f64 = weights.iter().sum();
        for (count, weight) in counts(&ends, &ids).into_iter().zip(weights) {
            let share = weight / sum * draws as f64;
            assert!((count as f64 - share).abs() <= 3.0, "{count} of {share}");
        }
        let bytes = mix.table_bytes();
        assert_eq!(bytes, 3 * 8 + 257 * 3 * 4);
    }

    #[test]
    fn what_cannot_be_mixed_is_refused_with_the_part() {
        let refusal = |ends: &[u64], weights: &[f64]| Mix::new(ends, weights).unwrap_err().to_string();
        assert!(refusal(&[1, 2], &[1.0]).starts_with("1 weights for 2 parts"));
        assert!(refusal(&[1, 1], &[1.0, 2.5]).starts_with("part 1 has weight 2.5 and no sample"));
        assert!(refusal(&[1, 2], &[1.0, -2.0]).starts_with("weight 1 is -2"));
        assert!(refusal(&[1, 2], &[0.0, 0.0]).starts_with("all 2 weights are 0"));
        assert!(refusal(&[2, 1], &[1.0, 1.0]).contains("do not rise"));
        let rare = refusal(&[1, 2], &[1.0, 1e-7]);
        assert!(rare.starts_with("part 1 would come less than once in 65536 places"), "{rare}");
        assert!(refusal(&[], &[]).starts_with("there is nothing to draw"));
    }

    #[test]
    fn another_of_the_same_part_takes_a_place_where_there_is_one() {
        let mix = Mix::new(&[3, 4, 4, 9], &[1.0, 1.0, 0.0, 1.0]).unwrap();
        let mut rng = KeyedRng::new(Seed(5), 0, SampleId(2), 0);
        let others: Vec<u64> = (0..100).filter_map(|_| mix.draw_other(SampleId(4), &mut rng)).map(|id| id.0).collect();
        assert!(others.len() == 100 && others.iter().all(|id| (5..9).contains(id)), "{others:?}");
        assert_eq!(mix.draw_other(SampleId(3), &mut rng), None);
    }
}
