//! Owns the few samples that took the longest. It must never hold more than these, and where a sample is not among them,
//! telling so must cost one look at a number.

use std::time::Duration;

use crate::sync::{AtomicU64, Mutex, Ordering, lock};
use crate::units::SampleId;

/// So many are kept.
pub(crate) const SLOWEST_MAX: usize = 16;

/// What one sample took, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) id: SampleId,
    pub(crate) read: Duration,
    pub(crate) work: Duration,
}

impl Taken {
    fn nanos(&self) -> u64 {
        super::nanos(self.read.saturating_add(self.work))
    }
}

/// The samples that took the longest so far, each once.
#[derive(Debug, Default)]
pub(crate) struct Slowest {
    /// What a sample has to take to be among them.
    least_ns: AtomicU64,
    /// Longest first.
    list: Mutex<Vec<Taken>>,
}

impl Slowest {
    pub(crate) fn add(&self, taken: Taken) {
        if taken.nanos() <= self.least_ns.load(Ordering::Relaxed) {
            return;
        }
        let mut list = lock(&self.list);
        if let Some(known) = list.iter().position(|known| known.id == taken.id) {
            if list[known].nanos() >= taken.nanos() {
                return;
            }
            list.remove(known);
        }
        let place = list.partition_point(|other| other.nanos() >= taken.nanos());
        list.insert(place, taken);
        list.truncate(SLOWEST_MAX);
        if list.len() == SLOWEST_MAX {
            self.least_ns.store(list.last().map_or(0, Taken::nanos), Ordering::Relaxed);
        }
    }

    pub(crate) fn list(&self) -> Vec<Taken> {
        lock(&self.list).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_longest_of_each_sample_are_kept_in_order(times in prop::collection::vec((0u64..40, 1u64..1000), 0..200)) {
            let slowest = Slowest::default();
            let mut all = std::collections::BTreeMap::new();
            for &(id, micros) in &times {
                slowest.add(Taken { id: SampleId(id), read: Duration::ZERO, work: Duration::from_micros(micros) });
                let longest: &mut u64 = all.entry(id).or_default();
                *longest = (*longest).max(micros);
            }
            let mut expected: Vec<u64> = all.into_values().collect();
            expected.sort_unstable_by(|a, b| b.cmp(a));
            expected.truncate(SLOWEST_MAX);
            let kept: Vec<u64> = slowest.list().iter().map(|taken| taken.work.as_micros() as u64).collect();
            prop_assert_eq!(kept, expected);
        }
    }
}
