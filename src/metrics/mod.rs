//! Owns the counters of a run: how often, how long, and how long in vain, by stage.
//! It must never decide anything, and counting must never block.

use std::time::{Duration, Instant};

use crate::sync::{AtomicU64, Ordering};

/// What one stage of the pipeline has done.
#[derive(Debug, Default)]
pub(crate) struct StageCounters {
    samples: AtomicU64,
    busy_ns: AtomicU64,
    wait_in_ns: AtomicU64,
    wait_out_ns: AtomicU64,
}

/// What one stage of the pipeline has done so far, all its threads together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageStats {
    /// Samples that went through.
    pub samples: u64,
    /// Time at work.
    pub busy: Duration,
    /// Time blocked because nothing came in: the stage before is slower.
    pub wait_in: Duration,
    /// Time blocked because nothing could go out: the stage after, or the budget, is slower.
    pub wait_out: Duration,
}

impl StageCounters {
    pub(crate) fn worked(&self, samples: u64, since: Instant) {
        self.samples.fetch_add(samples, Ordering::Relaxed);
        self.busy_ns.fetch_add(nanos(since), Ordering::Relaxed);
    }

    pub(crate) fn handed_over(&self, samples: u64) {
        self.samples.fetch_add(samples, Ordering::Relaxed);
    }

    pub(crate) fn waited_in(&self, since: Instant) {
        self.wait_in_ns.fetch_add(nanos(since), Ordering::Relaxed);
    }

    pub(crate) fn waited_out(&self, since: Instant) {
        self.wait_out_ns.fetch_add(nanos(since), Ordering::Relaxed);
    }

    pub(crate) fn waited_in_so_far(&self) -> Duration {
        Duration::from_nanos(self.wait_in_ns.load(Ordering::Relaxed))
    }

    fn snapshot(&self) -> StageStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StageStats {
            samples: read(&self.samples),
            busy: Duration::from_nanos(read(&self.busy_ns)),
            wait_in: Duration::from_nanos(read(&self.wait_in_ns)),
            wait_out: Duration::from_nanos(read(&self.wait_out_ns)),
        }
    }
}

fn nanos(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// The counters of a loader, shared by all its threads.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) admit: StageCounters,
    pub(crate) read: StageCounters,
    pub(crate) work: StageCounters,
    pub(crate) transfer: StageCounters,
    /// The consumer's side: `wait_in` is the input wait.
    pub(crate) consume: StageCounters,
    pub(crate) encoded_bytes: AtomicU64,
    pub(crate) jumbo_samples: AtomicU64,
    pub(crate) damage_accepted: AtomicU64,
}

/// What the stages of a loader have done since it was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PipelineStats {
    /// Lets samples in: its `wait_out` is backpressure (no free slot, no free read buffer, no bytes).
    pub admit: StageStats,
    /// Reads encoded bytes.
    pub read: StageStats,
    /// Decodes and transforms.
    pub work: StageStats,
    /// Hands finished batches to the device.
    pub transfer: StageStats,
    /// Takes batches: its `wait_in` is the input wait, `samples` what was handed over.
    pub consume: StageStats,
    /// Encoded bytes read.
    pub encoded_bytes: u64,
    /// Samples that were too large for a worker's own scratch and took the jumbo lane.
    pub jumbo_samples: u64,
    /// Damaged or cut pictures that were taken for what there was of them, where that is asked for.
    pub damage_accepted: u64,
}

impl Counters {
    pub(crate) fn snapshot(&self) -> PipelineStats {
        PipelineStats {
            admit: self.admit.snapshot(),
            read: self.read.snapshot(),
            work: self.work.snapshot(),
            transfer: self.transfer.snapshot(),
            consume: self.consume.snapshot(),
            encoded_bytes: self.encoded_bytes.load(Ordering::Relaxed),
            jumbo_samples: self.jumbo_samples.load(Ordering::Relaxed),
            damage_accepted: self.damage_accepted.load(Ordering::Relaxed),
        }
    }
}
