//! The result of planning: every size and count that the pipeline allocates, with the reasons.

use std::fmt;

use super::request::CoresReason;
use super::row::Row;
use crate::budget::AccountKind;
use crate::units::ByteCount;

/// Numbers of reusable objects: the maximum at level 0, fewer while memory is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct PoolSizes {
    /// Threads that decode, each with its scratch.
    pub workers: usize,
    /// Slots.
    pub slots: usize,
    /// Finished batches on the device.
    pub outputs: usize,
    /// Read buffers.
    pub chunks: usize,
}

/// Sizes and counts of a loader, decided before anything is allocated.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plan {
    /// RAM budget.
    pub budget: ByteCount,
    /// Threads that decode and transform.
    pub workers: usize,
    /// Slots: batches of u8 pixels being filled, ready, or held by the consumer.
    pub slots: usize,
    /// Bytes of one slot.
    pub slot_bytes: u64,
    /// Finished batches on the device; 0 if the slot itself is the batch.
    pub outputs: usize,
    /// Bytes of one finished batch.
    pub output_bytes: u64,
    /// Read buffers: chunks being read, waiting, or being decoded. Limits the read depth.
    pub chunks: usize,
    /// Bytes of one read buffer. A larger chunk reserves its bytes at admission.
    pub chunk_bytes: u64,
    /// Threads that read.
    pub read_threads: usize,
    /// Scratch of one worker, the codec's own allocations included.
    pub scratch_bytes: u64,
    /// Cache of encoded samples, its table included; 0 where a cache would buy no throughput.
    pub cache_bytes: u64,
    /// Limit of the account for chunks larger than a read buffer.
    pub oversized_file_bytes: u64,
    /// Limit of the account for images larger than a worker's scratch, which are decoded one at a time.
    pub oversized_image_bytes: u64,
    /// The least sizes that a run can shrink to and still make progress.
    pub least: PoolSizes,
    /// Byte table, one row for each account.
    pub rows: Vec<Row>,
    /// The least budget that this request can run with.
    pub minimum: ByteCount,
    /// The budget beyond which more RAM buys no throughput.
    pub knee: ByteCount,
    /// Bytes that one more worker would take.
    pub per_worker: ByteCount,
    /// Reason for the number of workers.
    pub workers_reason: WorkersReason,
    /// Reason for the number of slots.
    pub slots_reason: SlotsReason,
}

/// The reason for a plan's number of workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WorkersReason {
    /// The budget holds no more.
    Budget {
        /// Workers that the machine could keep busy, or that were asked for.
        wanted: usize,
        /// Bytes that one more worker would take beyond the budget.
        short: ByteCount,
    },
    /// The user's maximum.
    Requested,
    /// The cores that may be used.
    Cores(CoresReason),
}

/// The reason for a plan's number of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SlotsReason {
    /// The budget holds no more.
    Budget {
        /// Slots that would be useful.
        wanted: usize,
    },
    /// The user's maximum of prefetched batches.
    Requested {
        /// Slots held by the consumer.
        held: usize,
        /// Slots ahead.
        ahead: usize,
    },
    /// One batch for each that the samples in flight span.
    InFlight {
        /// Slots held by the consumer.
        held: usize,
        /// Slots being filled or copied.
        filling: usize,
    },
}

impl fmt::Display for WorkersReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WorkersReason::Budget { wanted, short } => {
                write!(f, "of {wanted} wanted: one more would exceed the budget by {short}")
            }
            WorkersReason::Requested => f.write_str("as requested"),
            WorkersReason::Cores(reason) => reason.fmt(f),
        }
    }
}

impl fmt::Display for SlotsReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SlotsReason::Budget { wanted } => write!(f, "of {wanted} wanted: one more would exceed the budget"),
            SlotsReason::Requested { held, ahead } => {
                write!(f, "{held} held by the consumer + {ahead} ahead, as requested")
            }
            SlotsReason::InFlight { held: 0, filling } => {
                write!(f, "{filling} being filled or copied: as many as the samples in flight span")
            }
            SlotsReason::InFlight { held, filling } => {
                write!(f, "{held} held by the consumer + {filling} being filled: as many as the samples in flight span")
            }
        }
    }
}

impl Plan {
    /// Sum of the byte table: the most that the plan expects to hold, never above the budget.
    #[must_use]
    pub fn total(&self) -> ByteCount {
        self.rows.iter().map(Row::bytes).sum()
    }

    /// Row of an account, if the plan has one.
    #[must_use]
    pub fn row(&self, account: AccountKind) -> Option<&Row> {
        self.rows.iter().find(|row| row.account == account)
    }

    /// Sizes at a level of the governor: the plan's at level 0, half at each further one, at least
    /// [`least`](Plan::least).
    #[must_use]
    pub fn at_level(&self, level: u32) -> PoolSizes {
        let half = |all: usize, least: usize| all.checked_shr(level).unwrap_or(0).max(least.min(all));
        PoolSizes {
            workers: half(self.workers, self.least.workers),
            slots: half(self.slots, self.least.slots),
            outputs: half(self.outputs, self.least.outputs),
            chunks: half(self.chunks, self.least.chunks),
        }
    }

    /// Number of levels; at the last one everything is at its least.
    #[must_use]
    pub fn levels(&self) -> u32 {
        let last = (0..usize::BITS).find(|&level| self.at_level(level) == self.at_level(usize::BITS - 1));
        // Small files are cached at level 0 alone, so where there is a cache there is a level 1.
        last.unwrap_or(0).max(u32::from(self.cache_bytes > 0)) + 1
    }

    /// Bytes of the reusable objects and the cache at a level.
    #[must_use]
    pub fn level_bytes(&self, level: u32) -> ByteCount {
        let PoolSizes { workers, slots, outputs, chunks } = self.at_level(level);
        ByteCount(self.scratch_bytes) * workers as u64
            + ByteCount(self.slot_bytes) * slots as u64
            + ByteCount(self.output_bytes) * if self.outputs_in_ram() { outputs as u64 } else { 0 }
            + ByteCount(self.chunk_bytes) * chunks as u64
            + ByteCount(if level == 0 { self.cache_bytes } else { 0 })
    }

    fn outputs_in_ram(&self) -> bool {
        self.row(AccountKind::Outputs).is_some()
    }

    /// The byte table with its reasons, the minimum and the knee, as text.
    #[must_use]
    pub fn explain(&self) -> String {
        let mut text: String = self.rows.iter().map(|row| format!("{row}\n")).collect();
        let left = self.budget.saturating_sub(self.total());
        text += &format!(
            "{:<18}{:>10}   of {} ({left} not taken: left for files and images larger than their buffers)\n\n",
            "sum",
            self.total(),
            self.budget
        );
        text += &format!("workers  {:>4}   {}\n", self.workers, self.workers_reason);
        text += &format!("slots    {:>4}   {}\n", self.slots, self.slots_reason);
        text += &format!("read     {:>4}   buffers, {} threads\n\n", self.chunks, self.read_threads);
        if self.outputs > 0 && !self.outputs_in_ram() {
            text += &format!(
                "device   {:>4}   batches in the device's own memory: {} each, and {} of pixels they are made from\n\n",
                self.outputs,
                ByteCount(self.output_bytes),
                ByteCount(self.slot_bytes)
            );
        }
        text += &format!("minimum {:>10}   the least budget that works: one worker\n", self.minimum);
        text += &format!("knee    {:>10}   more than this buys no throughput\n", self.knee);
        text += &format!("one more worker would take {}\n", self.per_worker);
        text
    }
}
