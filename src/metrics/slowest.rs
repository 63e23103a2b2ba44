//! The few samples that took the longest. A sample that is not among them costs one atomic load.

use std::time::Duration;

use crate::sync::{AtomicU64, Mutex, Ordering, lock};
use crate::units::SampleId;

/// Samples kept.
const MAX_SLOWEST: usize = 16;

/// Time spent on one sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SampleTiming {
    pub(crate) id: SampleId,
    pub(crate) read: Duration,
    pub(crate) work: Duration,
}

impl SampleTiming {
    fn nanos(&self) -> u64 {
        super::nanos(self.read.saturating_add(self.work))
    }
}

/// The samples that took the longest so far, each listed once.
#[derive(Debug, Default)]
pub(crate) struct Slowest {
    /// Time above which a sample is among them.
    least_ns: AtomicU64,
    /// Longest first.
    list: Mutex<Vec<SampleTiming>>,
}

impl Slowest {
    pub(crate) fn add(&self, timing: SampleTiming) {
        if timing.nanos() <= self.least_ns.load(Ordering::Relaxed) {
            return;
        }
        let mut list = lock(&self.list);
        if let Some(known) = list.iter().position(|known| known.id == timing.id) {
            if list[known].nanos() >= timing.nanos() {
                return;
            }
            list.remove(known);
        }
        let at = list.partition_point(|other| other.nanos() >= timing.nanos());
        list.insert(at, timing);
        list.truncate(MAX_SLOWEST);
        if list.len() == MAX_SLOWEST {
            self.least_ns.store(list.last().map_or(0, SampleTiming::nanos), Ordering::Relaxed);
        }
    }

    pub(crate) fn list(&self) -> Vec<SampleTiming> {
        lock(&self.list).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_longest_times_are_kept_in_order(times in prop::collection::vec((0u64..40, 1u64..1000), 0..200)) {
            let slowest = Slowest::default();
            let mut all = std::collections::BTreeMap::new();
            for &(id, micros) in &times {
                let work = Duration::from_micros(micros);
                slowest.add(SampleTiming { id: SampleId(id), read: Duration::ZERO, work });
                let longest: &mut u64 = all.entry(id).or_default();
                *longest = (*longest).max(micros);
            }
            let mut expected: Vec<u64> = all.into_values().collect();
            expected.sort_unstable_by(|a, b| b.cmp(a));
            expected.truncate(MAX_SLOWEST);
            let kept: Vec<u64> = slowest.list().iter().map(|timing| timing.work.as_micros() as u64).collect();
            prop_assert_eq!(kept, expected);
        }
    }
}
