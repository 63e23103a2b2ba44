//! Division of the RAM budget of a packing: fixed memory, number of workers, and the limits of samples and images. The
//! limit of an image does not depend on the number of workers, so a budget refuses the same samples every time.

use super::error::PackError;
use super::settings::Treatment;
use crate::ByteCount;
use crate::budget::{Account, AccountKind, Ledger, Reservation};
use crate::tensor::CHANNELS;

/// Size of a worker's write and read-back buffer.
pub(super) const BUFFER_BYTES: usize = 256 << 10;
/// Maximum text of names and causes of skipped samples, for each shard being written and for the report.
pub(super) const SKIPPED_BYTES_MAX: usize = 128 << 10;
/// Memory of a worker besides its sample: buffer, list, hash, header.
const WORKER_BYTES: u64 = BUFFER_BYTES as u64 + SKIPPED_BYTES_MAX as u64 + (16 << 10);

/// Accounts of a packing. A worker that holds a sample may wait for memory for its image; one that holds an image waits
/// for nothing. Accounts have limits, so samples can never take the memory that an image waits for.
pub(super) struct PackBudget {
    pub(super) ledger: Ledger,
    /// Samples as stored.
    pub(super) samples: Account,
    /// Memory of the decoder, pixels, encoded results.
    pub(super) images: Account,
    pub(super) workers: usize,
    split: BudgetSplit,
    _fixed: [Reservation; 2],
}

/// Requirements that the budget must meet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Requirements {
    /// Index, table of shards, report.
    pub(super) fixed: ByteCount,
    /// Size of the largest sample as stored.
    pub(super) encoded_max: u64,
    /// Minimum memory of an image by the settings; `None` if images are not decoded.
    pub(super) image_min: Option<u64>,
    pub(super) workers_max: usize,
}

/// Byte counts of a divided budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BudgetSplit {
    budget: u64,
    /// Fixed memory with one worker.
    one_worker: u64,
    encoded_max: u64,
    samples: u64,
    images: u64,
    workers: u64,
}

/// Minimum memory of an image: its pixels. `None` if images are not decoded.
pub(super) fn image_min(treatment: Treatment) -> Option<u64> {
    let square = |side: u32| u64::from(side) * u64::from(side) * CHANNELS as u64;
    match treatment {
        Treatment::Stored => None,
        Treatment::ShortSide { pixels, .. } => Some(square(pixels)),
        Treatment::Decoded { size, .. } => Some(size.map_or(0, square)),
    }
}

impl PackBudget {
    pub(super) fn new(budget: ByteCount, required: &Requirements) -> Result<Self, PackError> {
        let split = BudgetSplit::new(budget.0, required)?;
        let ledger = Ledger::new(budget);
        let fixed = |name, bytes: ByteCount| {
            let over = |_| split.refusal(required, split.needed(required.image_min.unwrap_or(0)));
            ledger.fixed_account(AccountKind::Other(name), bytes).reserve(bytes).map_err(over)
        };
        let workers = ByteCount(split.workers.saturating_mul(WORKER_BYTES));
        Ok(PackBudget {
            _fixed: [fixed("index", required.fixed)?, fixed("workers", workers)?],
            samples: ledger.account(AccountKind::Other("samples"), ByteCount(split.samples)),
            images: ledger.account(AccountKind::Other("images"), ByteCount(split.images)),
            ledger,
            workers: split.workers as usize,
            split,
        })
    }

    /// Minimum budget in which an image may take `image` bytes.
    pub(super) fn needed(&self, image: u64) -> ByteCount {
        ByteCount(self.split.needed(image))
    }
}

impl BudgetSplit {
    fn new(budget: u64, required: &Requirements) -> Result<Self, PackError> {
        let Requirements { fixed, encoded_max, image_min, workers_max } = *required;
        let one_worker = fixed.0.saturating_add(WORKER_BYTES);
        let mut split = BudgetSplit { budget, one_worker, encoded_max, samples: 0, images: 0, workers: 1 };
        let needed = match image_min {
            Some(image) => split.needed(image),
            None => one_worker.saturating_add(encoded_max),
        };
        if budget < needed {
            return Err(split.refusal(required, needed));
        }
        let rest = budget - one_worker;
        // Kept from images: the largest sample at least, or a quarter of the rest.
        let reserved = if image_min.is_some() { encoded_max.max(rest / 4) } else { rest };
        split.images = rest - reserved;
        // Further workers take at most half of what the samples do not need.
        let others = (reserved - encoded_max) / 2 / WORKER_BYTES;
        let others = others.min(workers_max.saturating_sub(1) as u64);
        split.workers = 1 + others;
        split.samples = reserved - others * WORKER_BYTES;
        Ok(split)
    }

    /// Minimum budget in which an image may take `image` bytes.
    fn needed(&self, image: u64) -> u64 {
        let rest = self.encoded_max.saturating_add(image).max(image.saturating_add(image / 3).saturating_add(1));
        self.one_worker.saturating_add(rest)
    }

    fn refusal(&self, required: &Requirements, needed: u64) -> PackError {
        let (worker, largest) = (ByteCount(WORKER_BYTES), ByteCount(required.encoded_max));
        let mut parts = format!("index {}, one worker {worker}, the largest sample {largest}", required.fixed);
        if let Some(image) = required.image_min.filter(|&image| image > 0) {
            parts += &format!(", its pixels {}", ByteCount(image));
        }
        PackError::OverBudget { needed: ByteCount(needed), budget: ByteCount(self.budget), parts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_add_up_and_images_do_not_depend_on_workers(
            fixed in 0u64..1 << 24, encoded_max in 0u64..1 << 26, image in prop::option::of(0u64..1 << 26),
            workers in 1usize..64, more in 0u64..1 << 30,
        ) {
            let fixed = ByteCount(fixed);
            let required = Requirements { fixed, encoded_max, image_min: image, workers_max: workers };
            let Err(PackError::OverBudget { needed, .. }) = BudgetSplit::new(0, &required) else { panic!("no budget") };
            prop_assert!(BudgetSplit::new(needed.0 - 1, &required).is_err());
            let least = BudgetSplit::new(needed.0, &required).unwrap();
            prop_assert!(least.images >= image.unwrap_or(0) && least.samples >= encoded_max);
            let split = BudgetSplit::new(needed.0 + more, &required).unwrap();
            let fixed = split.one_worker + (split.workers - 1) * WORKER_BYTES;
            prop_assert_eq!(fixed + split.samples + split.images, needed.0 + more);
            prop_assert!(split.samples >= encoded_max && (1..=workers as u64).contains(&split.workers));
            let alone = BudgetSplit::new(needed.0 + more, &Requirements { workers_max: 1, ..required }).unwrap();
            prop_assert_eq!(alone.images, split.images);
            if image.is_some() {
                // The stated minimum for a larger image is enough for it, and a little less is not.
                let larger = split.images + 12_345;
                let enough = split.needed(larger);
                prop_assert!(BudgetSplit::new(enough, &required).unwrap().images >= larger);
                prop_assert!(BudgetSplit::new(enough - 4, &required).unwrap().images < larger);
            }
        }
    }
}
