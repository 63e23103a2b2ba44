//! Class-balanced order: a table of each class's samples, and a turn for each class in every window of positions. All
//! samples of a class come before one repeats.

use std::mem::size_of;

use super::{Permutation, SamplerError, key, repeated_permutation};
use crate::rng::{KeyedRng, Seed};
use crate::sync::Arc;
use crate::units::SampleId;

/// Separate these uses of (seed, epoch) from every other, and from each other.
const CLASS_SALT: u64 = u64::from_be_bytes(*b"classes!");
const SAMPLE_SALT: u64 = u64::from_be_bytes(*b"of class");

/// The samples of each class. A clone is another handle to the same table.
///
/// The table takes 12 bytes a class. If samples are not ordered by class, as those of a folder are, it takes 4 bytes a
/// sample more (8 beyond 4 billion samples).
///
/// ```
/// use feedstock::sampler::{ClassTable, Order};
/// use feedstock::rng::Seed;
/// use feedstock::SampleId;
///
/// // Two of class 0, eight of class 1.
/// let label = |id: SampleId| u32::from(id.0 >= 2);
/// let order = Order::balanced(&ClassTable::new(10, 2, label)?, 100, Seed(17), 0);
/// assert_eq!((0..100).filter(|&at| label(order.at(at)) == 0).count(), 50);
/// # Ok::<(), feedstock::sampler::SamplerError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ClassTable {
    table: Arc<Table>,
}

#[derive(Debug)]
struct Table {
    /// For each class, the number of samples in it and in all classes before it.
    ends: Box<[u64]>,
    /// The classes that have samples.
    present: Box<[u32]>,
    members: Members,
}

/// Samples ordered by class.
#[derive(Debug)]
enum Members {
    /// Ids are ordered by class already.
    Sorted,
    Narrow(Box<[u32]>),
    Wide(Box<[u64]>),
}

impl ClassTable {
    /// Sorts samples by class. `label` is called twice for each.
    ///
    /// # Errors
    /// [`SamplerError::NothingToDraw`] if there are no samples.
    ///
    /// # Panics
    /// Panics if a label is not below `class_count`.
    pub fn new(samples: u64, class_count: usize, label: impl Fn(SampleId) -> u32) -> Result<Self, SamplerError> {
        if samples == 0 {
            return Err(SamplerError::NothingToDraw { weights: 0 });
        }
        let Sizes { ends, by_id } = Sizes::of(samples, class_count, &label);
        let members = if by_id {
            Members::Sorted
        } else if narrow(samples) {
            let mut list = vec![0; samples as usize].into_boxed_slice();
            scatter(samples, &ends, label, |at, id| list[at] = id as u32);
            Members::Narrow(list)
        } else {
            let mut list = vec![0; samples as usize].into_boxed_slice();
            scatter(samples, &ends, label, |at, id| list[at] = id);
            Members::Wide(list)
        };
        let present = (0..class_count).filter(|&class| size(&ends, class) > 0).map(|class| class as u32).collect();
        Ok(ClassTable { table: Arc::new(Table { ends, present, members }) })
    }

    /// RAM of the table in bytes. `label` is called once for each sample.
    ///
    /// # Panics
    /// Panics if a label is not below `class_count`.
    #[must_use]
    pub fn table_bytes(samples: u64, class_count: usize, label: impl Fn(SampleId) -> u32) -> u64 {
        let width = if narrow(samples) { size_of::<u32>() } else { size_of::<u64>() } as u64;
        let listed = if Sizes::of(samples, class_count, &label).by_id { 0 } else { samples.saturating_mul(width) };
        listed.saturating_add(class_count as u64 * (size_of::<u64>() + size_of::<u32>()) as u64)
    }

    /// The labels of classes without samples. They have no turn.
    pub fn absent(&self) -> impl Iterator<Item = u32> {
        (0..self.table.ends.len()).filter(|&class| size(&self.table.ends, class) == 0).map(|class| class as u32)
    }

    /// The sample at an index of an epoch. Each window of positions is a permutation of the classes.
    pub(super) fn draw(&self, seed: Seed, epoch: u64, index: u64) -> SampleId {
        let present = &self.table.present;
        let (window, turn) = (index / present.len() as u64, index % present.len() as u64);
        let turns = Permutation::new(present.len() as u64, key(seed, &[CLASS_SALT, window]), epoch);
        let class = present[turns.at(turn) as usize];
        // A class has had one turn in each window before.
        let samples = size(&self.table.ends, class as usize);
        self.member(class, repeated_permutation(samples, window, key(seed, &[SAMPLE_SALT, u64::from(class)]), epoch))
    }

    /// Draws another sample of a class; `None` if there is no other.
    pub(super) fn draw_other(&self, than: SampleId, class: u32, rng: &mut KeyedRng) -> Option<SampleId> {
        let samples = size(&self.table.ends, class as usize);
        let last = samples.checked_sub(1).filter(|&last| last > 0)?;
        // The last sample replaces the excluded one.
        let drawn = self.member(class, rng.below(last));
        Some(if drawn == than { self.member(class, last) } else { drawn })
    }

    fn member(&self, class: u32, nth: u64) -> SampleId {
        let at = start(&self.table.ends, class as usize) + nth;
        SampleId(match &self.table.members {
            Members::Sorted => at,
            Members::Narrow(list) => u64::from(list[at as usize]),
            Members::Wide(list) => list[at as usize],
        })
    }
}

/// Cumulative class sizes, and whether ids are ordered by class.
struct Sizes {
    ends: Box<[u64]>,
    by_id: bool,
}

impl Sizes {
    fn of(samples: u64, class_count: usize, label: &impl Fn(SampleId) -> u32) -> Self {
        let mut ends = vec![0u64; class_count].into_boxed_slice();
        let (mut by_id, mut before) = (true, 0);
        for id in (0..samples).map(SampleId) {
            let class = label(id);
            assert!((class as usize) < class_count, "{id} has label {class}, but there are {class_count} classes");
            ends[class as usize] += 1;
            by_id &= before <= class;
            before = class;
        }
        let mut end = 0;
        for count in &mut ends {
            end += *count;
            *count = end;
        }
        Sizes { ends, by_id }
    }
}

/// Passes the index of each sample in a list ordered by class to `put`.
fn scatter(samples: u64, ends: &[u64], label: impl Fn(SampleId) -> u32, mut put: impl FnMut(usize, u64)) {
    let mut next: Vec<u64> = (0..ends.len()).map(|class| start(ends, class)).collect();
    for id in 0..samples {
        let at = &mut next[label(SampleId(id)) as usize];
        put(*at as usize, id);
        *at += 1;
    }
}

fn narrow(samples: u64) -> bool {
    samples <= u64::from(u32::MAX)
}

fn start(ends: &[u64], class: usize) -> u64 {
    class.checked_sub(1).map_or(0, |before| ends[before])
}

fn size(ends: &[u64], class: usize) -> u64 {
    ends[class] - start(ends, class)
}

#[cfg(test)]
mod tests {
    use super::super::Order;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn each_class_comes_once_a_window_and_its_samples_in_turn(
            labels in prop::collection::vec(0u32..9, 1..120), sorted: bool, draws in 1u64..600,
            world in 1u64..7, seed in any::<u64>(), epoch in any::<u64>(),
        ) {
            let mut labels = labels;
            if sorted {
                labels.sort_unstable();
            }
            let label = |id: SampleId| labels[id.0 as usize];
            let classes = ClassTable::new(labels.len() as u64, 9, label).unwrap();
            let size = |class: u32| labels.iter().filter(|&&other| other == class).count();
            let present = (0..9).filter(|&class| size(class) > 0).count();
            prop_assert_eq!(classes.absent().count(), 9 - present);
            let whole = Order::balanced(&classes, draws, Seed(seed), epoch);
            let ids: Vec<SampleId> = (0..draws).map(|index| whole.at(index)).collect();
            for window in ids.chunks_exact(present) {
                let mut seen: Vec<u32> = window.iter().map(|&id| label(id)).collect();
                seen.sort_unstable();
                seen.dedup();
                prop_assert_eq!(seen.len(), present);
            }
            for class in 0..9 {
                let visits: Vec<u64> = ids.iter().filter(|&&id| label(id) == class).map(|id| id.0).collect();
                for round in visits.chunks(size(class).max(1)) {
                    let mut round = round.to_vec();
                    let len = round.len();
                    round.sort_unstable();
                    round.dedup();
                    prop_assert_eq!(round.len(), len, "a sample came twice in a round");
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
    fn table_bytes_match_the_table() {
        let sorted = |id: SampleId| (id.0 / 10) as u32;
        let mixed = |id: SampleId| (id.0 % 10) as u32;
        assert_eq!(ClassTable::table_bytes(100, 10, sorted), 120);
        assert_eq!(ClassTable::table_bytes(100, 10, mixed), 520);
        assert!(matches!(ClassTable::new(100, 10, sorted).unwrap().table.members, Members::Sorted));
        match &ClassTable::new(100, 10, mixed).unwrap().table.members {
            Members::Narrow(list) => assert_eq!(list[..12], [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 1, 11]),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_substitute_is_another_sample_of_the_class() {
        let classes = ClassTable::new(7, 3, |id| [0, 1, 1, 2, 1, 0, 1][id.0 as usize]).unwrap();
        let mut rng = KeyedRng::new(Seed(5), 0, SampleId(2), 0);
        let others: Vec<u64> =
            (0..100).filter_map(|_| classes.draw_other(SampleId(2), 1, &mut rng)).map(|id| id.0).collect();
        assert!(others.len() == 100 && others.iter().all(|id| [1, 4, 6].contains(id)), "{others:?}");
        assert_eq!(classes.draw_other(SampleId(3), 2, &mut rng), None);
    }
}
