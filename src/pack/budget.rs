//! Owns how the RAM budget of a packing is shared out: what is fixed, how many workers there are, and what their
//! samples and pictures may take together. It must never let what a picture may take depend on the number of workers:
//! what is refused at a budget is refused at that budget every time.

use super::{PackError, Treatment};
use crate::ByteCount;
use crate::budget::{Account, AccountKind, Ledger, Reservation};
use crate::tensor::CHANNELS;

/// Where a worker collects what it writes and reads back.
pub(super) const BUFFER_BYTES: usize = 256 << 10;
/// The most text of names and causes of samples that were left out, for each shard under way and for the report.
pub(super) const SKIPPED_BYTES_MAX: usize = 128 << 10;
/// What a worker takes besides its sample: buffer, list, hash, header.
const WORKER_BYTES: u64 = BUFFER_BYTES as u64 + SKIPPED_BYTES_MAX as u64 + (16 << 10);

/// Who may hold what. A worker that holds a sample may wait for room for its picture, one that holds a picture waits
/// for nothing; and since accounts have caps, samples can never take what a picture waits for.
pub(super) struct Accounts {
    pub(super) ledger: Ledger,
    /// Samples as they are stored.
    pub(super) samples: Account,
    /// All that is made of them: the decoder's memory, pixels, what is encoded again.
    pub(super) pictures: Account,
    pub(super) workers: usize,
    shares: Shares,
    _fixed: [Reservation; 2],
}

/// What a budget has to hold, whatever is done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Needs {
    /// The index, the table of shards, the report.
    pub(super) fixed: ByteCount,
    /// The largest sample as stored.
    pub(super) encoded_max: u64,
    /// What a picture takes at the very least, as far as the settings say; none where pictures are not decoded.
    pub(super) picture_least: Option<u64>,
    pub(super) workers_max: usize,
}

/// The numbers alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shares {
    budget: u64,
    /// What is fixed with one worker.
    one: u64,
    encoded_max: u64,
    samples: u64,
    pictures: u64,
    workers: u64,
}

impl Needs {
    /// What a picture takes at the very least: its pixels.
    pub(super) fn picture_least(treatment: Treatment) -> Option<u64> {
        let square = |side: u32| u64::from(side) * u64::from(side) * CHANNELS as u64;
        match treatment {
            Treatment::Stored => None,
            Treatment::ShortSide { pixels, .. } => Some(square(pixels)),
            Treatment::Decoded { size, .. } => Some(size.map_or(0, square)),
        }
    }
}

impl Accounts {
    pub(super) fn of(budget: ByteCount, needs: &Needs) -> Result<Self, PackError> {
        let shares = Shares::of(budget.0, needs)?;
        let ledger = Ledger::new(budget);
        let Shares { samples, pictures, workers, .. } = shares;
        let fixed = |name, bytes: ByteCount| {
            let over = |_| shares.refusal(needs, shares.needed(needs.picture_least.unwrap_or(0)));
            ledger.fixed_account(AccountKind::Other(name), bytes).reserve(bytes).map_err(over)
        };
        Ok(Accounts {
            _fixed: [fixed("index", needs.fixed)?, fixed("workers", ByteCount(workers.saturating_mul(WORKER_BYTES)))?],
            samples: ledger.account(AccountKind::Other("samples"), ByteCount(samples)),
            pictures: ledger.account(AccountKind::Other("pictures"), ByteCount(pictures)),
            ledger,
            workers: workers as usize,
            shares,
        })
    }

    /// The least budget in which a picture may take so much.
    pub(super) fn needed(&self, picture: u64) -> ByteCount {
        ByteCount(self.shares.needed(picture))
    }
}

impl Shares {
    fn of(budget: u64, needs: &Needs) -> Result<Self, PackError> {
        let Needs { fixed, encoded_max, picture_least, workers_max } = *needs;
        let one = fixed.0.saturating_add(WORKER_BYTES);
        let mut shares = Shares { budget, one, encoded_max, samples: 0, pictures: 0, workers: 1 };
        let least = match picture_least {
            Some(picture) => shares.needed(picture),
            None => one.saturating_add(encoded_max),
        };
        if budget < least {
            return Err(shares.refusal(needs, least));
        }
        let rest = budget - one;
        let aside = match picture_least {
            Some(_) => Self::aside(rest, encoded_max),
            None => rest,
        };
        shares.pictures = rest - aside;
        // Other workers come out of what samples may take, and leave half of that to the samples.
        let others = (aside - encoded_max) / 2 / WORKER_BYTES;
        let others = others.min(workers_max.saturating_sub(1) as u64);
        shares.workers = 1 + others;
        shares.samples = aside - others * WORKER_BYTES;
        Ok(shares)
    }

    /// What is kept from pictures: the largest sample at least, a quarter of the rest if that is more.
    fn aside(rest: u64, encoded_max: u64) -> u64 {
        encoded_max.max(rest / 4)
    }

    /// The least budget in which a picture may take so much.
    fn needed(&self, picture: u64) -> u64 {
        let rest = self.encoded_max.saturating_add(picture).max(picture.saturating_add(picture / 3).saturating_add(1));
        self.one.saturating_add(rest)
    }

    fn refusal(&self, needs: &Needs, needed: u64) -> PackError {
        let Needs { fixed, encoded_max, picture_least, .. } = *needs;
        let mut what = format!(
            "index {fixed}, one worker {}, the largest sample {}",
            ByteCount(WORKER_BYTES),
            ByteCount(encoded_max)
        );
        if let Some(picture) = picture_least.filter(|&picture| picture > 0) {
            what += &format!(", its pixels {}", ByteCount(picture));
        }
        PackError::OverBudget { needed: ByteCount(needed), budget: ByteCount(self.budget), what }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn shares_add_up_and_pictures_do_not_depend_on_workers(
            fixed in 0u64..1 << 24, encoded_max in 0u64..1 << 26, picture in prop::option::of(0u64..1 << 26),
            workers in 1usize..64, more in 0u64..1 << 30,
        ) {
            let needs = Needs { fixed: ByteCount(fixed), encoded_max, picture_least: picture, workers_max: workers };
            let Err(PackError::OverBudget { needed, .. }) = Shares::of(0, &needs) else { panic!("no budget") };
            prop_assert!(Shares::of(needed.0 - 1, &needs).is_err());
            let least = Shares::of(needed.0, &needs).unwrap();
            prop_assert!(least.pictures >= picture.unwrap_or(0) && least.samples >= encoded_max);
            let shares = Shares::of(needed.0 + more, &needs).unwrap();
            let fixed = shares.one + (shares.workers - 1) * WORKER_BYTES;
            prop_assert_eq!(fixed + shares.samples + shares.pictures, needed.0 + more);
            prop_assert!(shares.samples >= encoded_max && (1..=workers as u64).contains(&shares.workers));
            let alone = Shares::of(needed.0 + more, &Needs { workers_max: 1, ..needs }).unwrap();
            prop_assert_eq!(alone.pictures, shares.pictures);
            if picture.is_some() {
                // What a larger picture is said to need is enough for it, and a little less is not.
                let larger = shares.pictures + 12_345;
                let enough = shares.needed(larger);
                prop_assert!(Shares::of(enough, &needs).unwrap().pictures >= larger);
                prop_assert!(Shares::of(enough - 4, &needs).unwrap().pictures < larger);
            }
        }
    }
}
