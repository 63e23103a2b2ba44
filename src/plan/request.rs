//! Input of a plan: the user's request and the facts about the machine and the source.

use std::fmt;

use crate::tensor::{OutputFormat, SampleSpec};
use crate::units::ByteCount;

/// The user's request, in numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Samples in a batch.
    pub batch_size: usize,
    /// Shape of a sample.
    pub spec: SampleSpec,
    /// Output format: element type, layout and normalization.
    pub format: OutputFormat,
    /// Maximum number of workers; `None`: as many as the machine can keep busy.
    pub workers_max: Option<usize>,
    /// Maximum number of batches to prepare ahead; `None`: up to the knee.
    pub prefetch_max: Option<usize>,
    /// Batches that the consumer holds at once.
    pub batches_held: usize,
    /// RAM budget.
    pub budget: ByteCount,
}

/// Facts about the machine, the source and the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Workers to run where the request names no number: the cores that the loader may keep busy.
    pub cores: usize,
    /// Origin of `cores`.
    pub cores_reason: CoresReason,
    /// Resident size of the process without any payload, its threads' stacks excepted
    /// ([`LIBRARY_OVERHEAD`](super::LIBRARY_OVERHEAD) for a small program).
    pub process_overhead: ByteCount,
    /// RAM that the source's index holds.
    pub index: ByteCount,
    /// Concurrent reads, each on a thread of its own.
    pub read_threads: usize,
    /// RAM that the source holds beyond its index while it is read.
    pub reading: ByteCount,
    /// RAM of the table that samples are drawn from.
    pub sampling: ByteCount,
    /// True if the source's samples are in RAM already.
    pub source_in_memory: bool,
    /// True if finished batches are in RAM (a CPU, or a simulated device), false if in the device's own memory.
    pub output_in_ram: bool,
    /// True if the consumer can read slots in place, so that a slot whose output format is its own is a batch.
    pub reads_slots: bool,
    /// RAM that the device's own library holds, which the ledger does not see.
    pub device_overhead: ByteCount,
}

/// The origin of the number of cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum CoresReason {
    /// All usable cores but one, which is left to the training thread.
    Auto,
    /// The CPU budget.
    CpuBudget,
}

impl fmt::Display for CoresReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CoresReason::Auto => "as many as the machine can keep busy, with one core left to the training thread",
            CoresReason::CpuBudget => "as many as the CPU budget allows",
        })
    }
}
