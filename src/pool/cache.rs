//! Owns encoded samples that stay in RAM from one epoch to the next, where opening a small file costs more than reading
//! it. It must never hold more than its reservation: what does not fit any more is read again each time.

use std::mem::size_of;

use crate::budget::Reservation;
use crate::sync::{AtomicU64, OnceLock, Ordering};
use crate::units::SampleId;

/// What the allocator adds to a block: its header, and the rounding of its size.
const BLOCK_BYTES: u64 = 16;

type Cell = OnceLock<Box<[u8]>>;

/// The stored bytes of samples that have been read before, as many as fit. A sample is kept for good or not at all, so
/// nothing is ever moved or given up while somebody decodes it.
pub(crate) struct EncodedCache {
    cells: Box<[Cell]>,
    left_bytes: AtomicU64,
    _held: Reservation,
}

impl EncodedCache {
    /// A cache for a source of this many samples. `held` has to cover the table ([`table_bytes`](Self::table_bytes));
    /// what it covers beyond is for samples.
    ///
    /// # Panics
    /// Panics if `held` does not cover the table.
    pub(crate) fn new(samples: u64, held: Reservation) -> Self {
        let left = held.bytes().0.checked_sub(Self::table_bytes(samples));
        let Some(left) = left else { panic!("{} do not hold a table of {samples} samples", held.bytes()) };
        let cells = (0..samples).map(|_| Cell::new()).collect();
        EncodedCache { cells, left_bytes: AtomicU64::new(left), _held: held }
    }

    /// What the table of a source's samples takes, before a single one is kept.
    pub(crate) fn table_bytes(samples: u64) -> u64 {
        samples.saturating_mul(size_of::<Cell>() as u64)
    }

    fn cost(encoded_bytes: usize) -> u64 {
        (encoded_bytes as u64 + BLOCK_BYTES).next_multiple_of(BLOCK_BYTES)
    }

    /// The stored bytes of a sample, if they are here.
    pub(crate) fn get(&self, id: SampleId) -> Option<&[u8]> {
        self.cells.get(id.0 as usize)?.get().map(|bytes| &**bytes)
    }

    /// Keeps the stored bytes of a sample, if there is room for them.
    pub(crate) fn keep(&self, id: SampleId, encoded: &[u8]) {
        let Some(cell) = self.cells.get(id.0 as usize) else { return };
        let cost = Self::cost(encoded.len());
        if cell.get().is_some() || !self.take(cost) {
            return;
        }
        let mut bytes = Vec::new();
        let kept = bytes.try_reserve_exact(encoded.len()).is_ok() && {
            bytes.extend_from_slice(encoded);
            // Somebody else may have read the same sample meanwhile, as a substitute.
            cell.set(bytes.into_boxed_slice()).is_ok()
        };
        if !kept {
            self.left_bytes.fetch_add(cost, Ordering::Relaxed);
        }
    }

    fn take(&self, cost: u64) -> bool {
        let taken = self.left_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(cost));
        taken.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Ledger;
    use crate::units::ByteCount;

    fn cache(samples: u64, room: u64) -> EncodedCache {
        let ledger = Ledger::new(ByteCount(1 << 20));
        let held =
            ledger.account("cache", ledger.limit()).reserve(ByteCount(EncodedCache::table_bytes(samples) + room));
        EncodedCache::new(samples, held.expect("within the limit"))
    }

    #[test]
    fn what_is_kept_comes_back_and_what_does_not_fit_does_not() {
        let cache = cache(4, EncodedCache::cost(100) + EncodedCache::cost(7));
        assert_eq!(cache.get(SampleId(2)), None);
        cache.keep(SampleId(2), &[5; 100]);
        cache.keep(SampleId(2), &[6; 100]);
        assert_eq!(cache.get(SampleId(2)), Some(&[5; 100][..]), "the first stays");
        cache.keep(SampleId(0), &[1; 8 + 9]);
        assert_eq!(cache.get(SampleId(0)), None, "it does not fit");
        cache.keep(SampleId(3), &[2; 7]);
        assert_eq!(cache.get(SampleId(3)), Some(&[2; 7][..]), "a smaller one still does");
        cache.keep(SampleId(1), &[]);
        assert_eq!(cache.get(SampleId(1)), None, "now it is full");
        cache.keep(SampleId(4), &[]);
        assert_eq!(cache.get(SampleId(4)), None, "there is no such sample");
    }

    #[test]
    fn threads_that_keep_the_same_samples_never_pass_the_reservation() {
        let room = 50 * EncodedCache::cost(40);
        let cache = cache(100, room);
        std::thread::scope(|scope| {
            for start in 0..4 {
                let cache = &cache;
                scope.spawn(move || {
                    for i in 0..100 {
                        cache.keep(SampleId((i + start * 25) % 100), &[(i + start * 25) as u8 % 100; 40]);
                    }
                });
            }
        });
        let kept: Vec<u64> = (0..100).filter(|&id| cache.get(SampleId(id)).is_some()).collect();
        // One that lost a race for a cell may have kept another out for a moment.
        assert!((47..=50).contains(&kept.len()), "{}", kept.len());
        for id in kept {
            assert_eq!(cache.get(SampleId(id)), Some(&[id as u8; 40][..]));
        }
    }

    #[test]
    #[should_panic(expected = "do not hold a table of 9 samples")]
    fn a_reservation_below_the_table_is_refused() {
        let ledger = Ledger::new(ByteCount(1 << 20));
        let held = ledger.account("cache", ledger.limit()).reserve(ByteCount(10)).expect("within the limit");
        let _ = EncodedCache::new(9, held);
    }
}
