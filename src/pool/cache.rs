//! Cache of encoded samples, from one epoch to the next: opening a small file costs more than reading it. Samples that
//! do not fit into the cache's reservation are read again each time.

use std::mem::size_of;
use std::ops::Range;

use crate::budget::Reservation;
use crate::memory::{HostMemory, PAGE_BYTES};
use crate::sync::{Arc, AtomicU64, OnceLock, Ordering};
use crate::units::SampleId;

/// A cached sample. Samples that were read together share a mapping of their own, which returns to the system with the
/// cache: an allocator would keep it.
struct Kept {
    block: Arc<HostMemory>,
    start: u32,
    len: u32,
}

type Cell = OnceLock<Kept>;

/// Cost of a block besides its pages: its handle and the allocator's share.
const BLOCK_BYTES: u64 = 128;

/// Stored bytes of samples that have been read before, as many as fit. A sample is kept for the life of the cache or
/// not at all, so nothing is moved or evicted while it is decoded.
pub(crate) struct EncodedCache {
    cells: Box<[Cell]>,
    left_bytes: AtomicU64,
    _held: Reservation,
}

impl EncodedCache {
    /// A cache for a source of this many samples. `held` covers the table ([`table_bytes`](Self::table_bytes)) and the
    /// samples.
    ///
    /// # Panics
    /// Panics if `held` does not cover the table.
    pub(crate) fn new(samples: u64, held: Reservation) -> Self {
        let left = held.bytes().0.checked_sub(Self::table_bytes(samples));
        let Some(left) = left else { panic!("{} do not hold a table of {samples} samples", held.bytes()) };
        let cells = (0..samples).map(|_| Cell::new()).collect();
        EncodedCache { cells, left_bytes: AtomicU64::new(left), _held: held }
    }

    /// Bytes of the table of an empty cache.
    pub(crate) fn table_bytes(samples: u64) -> u64 {
        samples.saturating_mul(size_of::<Cell>() as u64)
    }

    fn cost(bytes: usize) -> u64 {
        bytes.next_multiple_of(PAGE_BYTES) as u64 + BLOCK_BYTES
    }

    /// Stored bytes of a sample, if they are cached.
    pub(crate) fn get(&self, id: SampleId) -> Option<&[u8]> {
        let Kept { block, start, len } = self.cells.get(id.0 as usize)?.get()?;
        block.as_slice().get(*start as usize..)?.get(..*len as usize)
    }

    /// Copies the stored bytes of samples that were read together, if all of them fit. `buffer` holds each sample at
    /// its range.
    pub(crate) fn keep(&self, buffer: &[u8], samples: impl Iterator<Item = (SampleId, Range<usize>)> + Clone) {
        let total: usize = samples.clone().map(|(_, range)| range.len()).sum();
        let cost = Self::cost(total);
        if u32::try_from(total).is_err() || !self.take(cost) {
            return;
        }
        let Ok(mut block) = HostMemory::pageable(total) else {
            self.left_bytes.fetch_add(cost, Ordering::Relaxed);
            return;
        };
        let mut end = 0;
        for (_, range) in samples.clone() {
            let start = end;
            end += range.len();
            block.as_mut_slice()[start..end].copy_from_slice(&buffer[range]);
        }
        let block = Arc::new(block);
        let mut start = 0;
        for (id, range) in samples {
            if let Some(cell) = self.cells.get(id.0 as usize) {
                // Another thread may have read the same sample meanwhile, as a substitute: the first stays.
                let _ = cell.set(Kept { block: block.clone(), start, len: range.len() as u32 });
            }
            start += range.len() as u32;
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
    use crate::budget::{AccountKind, Ledger};
    use crate::units::ByteCount;

    fn cache(samples: u64, room: u64) -> (Ledger, EncodedCache) {
        let ledger = Ledger::new(ByteCount(1 << 20));
        let bytes = ByteCount(EncodedCache::table_bytes(samples) + room);
        let held = ledger.account(AccountKind::Cache, ledger.limit()).reserve(bytes).expect("within the limit");
        (ledger, EncodedCache::new(samples, held))
    }

    fn keep(cache: &EncodedCache, samples: &[(u64, &[u8])]) {
        let (mut buffer, mut ranges) = (vec![0xEE; 3], Vec::new());
        for (id, bytes) in samples {
            ranges.push((SampleId(*id), buffer.len()..buffer.len() + bytes.len()));
            buffer.extend_from_slice(bytes);
        }
        cache.keep(&buffer, ranges.into_iter());
    }

    #[test]
    fn kept_samples_come_back_and_others_do_not() {
        let (ledger, cache) = cache(6, 2 * EncodedCache::cost(100));
        assert_eq!(cache.get(SampleId(2)), None);
        keep(&cache, &[(2, &[5; 100]), (0, &[]), (3, &[7; 9])]);
        keep(&cache, &[(2, &[6; 100])]);
        assert_eq!(cache.get(SampleId(2)), Some(&[5; 100][..]), "the first stays");
        assert_eq!(cache.get(SampleId(0)), Some(&[][..]));
        assert_eq!(cache.get(SampleId(3)), Some(&[7; 9][..]));
        keep(&cache, &[(1, &[1; 8])]);
        assert_eq!(cache.get(SampleId(1)), None, "it does not fit");
        keep(&cache, &[(6, &[1; 8])]);
        assert_eq!(cache.get(SampleId(6)), None, "there is no such sample");
        drop(cache);
        assert_eq!(ledger.held(), ByteCount::ZERO);
    }

    #[test]
    fn concurrent_copies_never_exceed_the_reservation() {
        let (_ledger, cache) = cache(100, 50 * EncodedCache::cost(40));
        std::thread::scope(|scope| {
            for start in 0..4 {
                let cache = &cache;
                scope.spawn(move || {
                    for i in 0..100 {
                        let id = (i + start * 25) % 100;
                        keep(cache, &[(id, &[id as u8; 40])]);
                    }
                });
            }
        });
        let kept: Vec<u64> = (0..100).filter(|&id| cache.get(SampleId(id)).is_some()).collect();
        assert!((12..=50).contains(&kept.len()), "{}", kept.len());
        for id in kept {
            assert_eq!(cache.get(SampleId(id)), Some(&[id as u8; 40][..]));
        }
    }

    #[test]
    #[should_panic(expected = "do not hold a table of 9 samples")]
    fn a_reservation_below_the_table_is_refused() {
        let ledger = Ledger::new(ByteCount(1 << 20));
        let held = ledger.account(AccountKind::Cache, ledger.limit()).reserve(ByteCount(10)).expect("within the limit");
        let _ = EncodedCache::new(9, held);
    }
}
