//! Counters of a run: samples, busy and wait time by stage; the mean latency of a sample by step; histograms; the
//! slowest samples. Counters are relaxed atomics; only the list of the slowest samples has a lock.

mod histogram;
mod slowest;

use std::time::{Duration, Instant};

use crate::sync::{AtomicU64, Ordering};

pub(crate) use histogram::AtomicHistogram;
pub use histogram::Histogram;
pub(crate) use slowest::{SampleTiming, Slowest};

/// Counters of one stage of the pipeline.
#[derive(Debug, Default)]
pub(crate) struct StageCounters {
    samples: AtomicU64,
    busy_ns: AtomicU64,
    wait_in_ns: AtomicU64,
    wait_out_ns: AtomicU64,
    queued: AtomicU64,
}

/// Work and waits of one stage of the pipeline, summed over its threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct StageStats {
    /// Samples processed.
    pub samples: u64,
    /// Time spent working.
    pub busy: Duration,
    /// Time blocked on input: the stage before is slower.
    pub wait_in: Duration,
    /// Time blocked on output: the stage after is slower, or the budget is full.
    pub wait_out: Duration,
    /// Items queued at the moment: slots for `transfer`, batches for `consume`, chunks of samples for the others.
    pub queued: u64,
}

impl StageCounters {
    pub(crate) fn worked(&self, samples: u64, since: Instant) {
        self.samples.fetch_add(samples, Ordering::Relaxed);
        self.busy_ns.fetch_add(nanos(since.elapsed()), Ordering::Relaxed);
    }

    pub(crate) fn handed_over(&self, samples: u64) {
        self.samples.fetch_add(samples, Ordering::Relaxed);
    }

    pub(crate) fn was_busy(&self, time: Duration) {
        self.busy_ns.fetch_add(nanos(time), Ordering::Relaxed);
    }

    /// Counts an item about to be queued for the stage.
    pub(crate) fn queue_in(&self) {
        self.queued.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an item taken from the queue.
    pub(crate) fn queue_out(&self) {
        self.queued.fetch_sub(1, Ordering::Relaxed);
    }

    /// Resets the queue length: a cancelled run may leave a count behind.
    pub(crate) fn queue_empty(&self) {
        self.queued.store(0, Ordering::Relaxed);
    }

    pub(crate) fn waited_in(&self, since: Instant) {
        self.wait_in_ns.fetch_add(nanos(since.elapsed()), Ordering::Relaxed);
    }

    pub(crate) fn waited_out(&self, since: Instant) {
        self.wait_out_ns.fetch_add(nanos(since.elapsed()), Ordering::Relaxed);
    }

    pub(crate) fn waited_out_so_far(&self) -> Duration {
        Duration::from_nanos(self.wait_out_ns.load(Ordering::Relaxed))
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
            // A reader of a cancelled run may take an item after the next run has begun.
            queued: u64::try_from(read(&self.queued).cast_signed()).unwrap_or(0),
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Time that all samples together spent in one step.
#[derive(Debug, Default)]
pub(crate) struct StepCounter(AtomicU64);

impl StepCounter {
    /// Adds `time` for each of `samples` samples.
    pub(crate) fn add(&self, time: Duration, samples: u64) {
        self.0.fetch_add(nanos(time).saturating_mul(samples), Ordering::Relaxed);
    }

    /// Subtracts time that was added but not spent in this step.
    pub(crate) fn take_back(&self, time: Duration) {
        self.0.fetch_sub(nanos(time), Ordering::Relaxed);
    }

    fn snapshot(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

/// Counters behind [`SampleLatency`].
#[derive(Debug, Default)]
pub(crate) struct LatencyCounters {
    pub(crate) read_queue: StepCounter,
    pub(crate) read: StepCounter,
    pub(crate) work_queue: StepCounter,
    pub(crate) work: StepCounter,
    pub(crate) batch_queue: StepCounter,
    pub(crate) transfer: StepCounter,
    pub(crate) ready: StepCounter,
}

/// Latency of samples from admission to the consumer, by consecutive step, summed over all samples. Divided by
/// [`StageStats::samples`] of [`PipelineStats::consume`] it is the mean latency of a sample, except for those in
/// flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct SampleLatency {
    /// Waiting to be read.
    pub read_queue: Duration,
    /// Being read.
    pub read: Duration,
    /// Read, and waiting for a worker.
    pub work_queue: Duration,
    /// Being decoded and transformed.
    pub work: Duration,
    /// Waiting for the rest of the batch and for the batches before it.
    pub batch_queue: Duration,
    /// Being transferred to the device.
    pub transfer: Duration,
    /// Waiting for the consumer.
    pub ready: Duration,
}

impl LatencyCounters {
    fn snapshot(&self) -> SampleLatency {
        SampleLatency {
            read_queue: self.read_queue.snapshot(),
            read: self.read.snapshot(),
            work_queue: self.work_queue.snapshot(),
            work: self.work.snapshot(),
            batch_queue: self.batch_queue.snapshot(),
            transfer: self.transfer.snapshot(),
            ready: self.ready.snapshot(),
        }
    }
}

/// Counters of a loader, shared by all its threads.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) admit: StageCounters,
    pub(crate) read: StageCounters,
    pub(crate) work: StageCounters,
    pub(crate) transfer: StageCounters,
    /// The consumer: `wait_in` is the input wait.
    pub(crate) consume: StageCounters,
    pub(crate) latency: LatencyCounters,
    /// Time to read one sample.
    pub(crate) read_times: AtomicHistogram,
    /// Time to decode and transform one sample.
    pub(crate) work_times: AtomicHistogram,
    /// Time that the consumer waited for one batch.
    pub(crate) wait_times: AtomicHistogram,
    pub(crate) slowest: Slowest,
    pub(crate) encoded_bytes: AtomicU64,
    pub(crate) oversized_samples: AtomicU64,
    pub(crate) damage_accepted: AtomicU64,
}

/// Work and waits of every stage of a loader since it was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct PipelineStats {
    /// Admits samples: its `wait_out` is backpressure (no free slot, read buffer or bytes).
    pub admit: StageStats,
    /// Reads encoded bytes.
    pub read: StageStats,
    /// Decodes and transforms.
    pub work: StageStats,
    /// Transfers complete batches to the device.
    pub transfer: StageStats,
    /// The consumer: `wait_in` is the input wait, `busy` its own time between batches, `samples` those handed over.
    pub consume: StageStats,
    /// Time of samples by step.
    pub latency: SampleLatency,
    /// Encoded bytes read.
    pub encoded_bytes: u64,
    /// Samples too large for a worker's own scratch, which reserved memory of their own.
    pub oversized_samples: u64,
    /// Damaged or truncated images that were accepted as far as they go.
    pub damage_accepted: u64,
}

impl Counters {
    /// Resets queue lengths at the start of a run.
    pub(crate) fn run_begins(&self) {
        [&self.read, &self.work, &self.transfer, &self.consume].into_iter().for_each(StageCounters::queue_empty);
    }

    pub(crate) fn snapshot(&self) -> PipelineStats {
        PipelineStats {
            admit: self.admit.snapshot(),
            read: self.read.snapshot(),
            work: self.work.snapshot(),
            transfer: self.transfer.snapshot(),
            consume: self.consume.snapshot(),
            latency: self.latency.snapshot(),
            encoded_bytes: self.encoded_bytes.load(Ordering::Relaxed),
            oversized_samples: self.oversized_samples.load(Ordering::Relaxed),
            damage_accepted: self.damage_accepted.load(Ordering::Relaxed),
        }
    }
}
