//! Owns the counters of a run: how often, how long, and how long in vain, by stage; a sample's mean way; the slowest
//! samples.
//! It must never decide anything, and counting must never block for longer than a list of a few samples takes to change.

mod histogram;
mod slowest;

use std::time::{Duration, Instant};

use crate::sync::{AtomicU64, Ordering};

pub use histogram::Histogram;
pub(crate) use histogram::Times;
pub(crate) use slowest::{Slowest, Taken};

/// What one stage of the pipeline has done.
#[derive(Debug, Default)]
pub(crate) struct StageCounters {
    samples: AtomicU64,
    busy_ns: AtomicU64,
    wait_in_ns: AtomicU64,
    wait_out_ns: AtomicU64,
    queued: AtomicU64,
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
    /// What waits in front of it at the moment: slots for transfer, batches for the consumer, chunks of samples for others.
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

    /// Something is about to be put in front of the stage.
    pub(crate) fn queue_in(&self) {
        self.queued.fetch_add(1, Ordering::Relaxed);
    }

    /// The stage has taken something.
    pub(crate) fn queue_out(&self) {
        self.queued.fetch_sub(1, Ordering::Relaxed);
    }

    /// A run that was called off has left nothing behind.
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
            // A reader of a run that was called off may take something after the next one has begun.
            queued: u64::try_from(read(&self.queued).cast_signed()).unwrap_or(0),
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// One step on the way of all samples together.
#[derive(Debug, Default)]
pub(crate) struct StepCounter(AtomicU64);

impl StepCounter {
    /// So many samples spent this long in it, each.
    pub(crate) fn add(&self, time: Duration, samples: u64) {
        self.0.fetch_add(nanos(time).saturating_mul(samples), Ordering::Relaxed);
    }

    /// So much of what was added was not spent in it.
    pub(crate) fn take_back(&self, time: Duration) {
        self.0.fetch_sub(nanos(time), Ordering::Relaxed);
    }

    fn snapshot(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

/// Where all samples together were, from the moment that they were let in to the moment that the consumer had them.
#[derive(Debug, Default)]
pub(crate) struct JourneyCounters {
    pub(crate) read_queue: StepCounter,
    pub(crate) read: StepCounter,
    pub(crate) work_queue: StepCounter,
    pub(crate) work: StepCounter,
    pub(crate) batch_queue: StepCounter,
    pub(crate) transfer: StepCounter,
    pub(crate) ready: StepCounter,
}

/// Where samples were, from the moment that they were let in to the moment that the consumer had them, one step after the
/// other: the time of all samples together. Divided by [`StageStats::samples`] of [`PipelineStats::consume`] it is the mean
/// way of a sample, but for those that are under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Journey {
    /// Waiting to be read.
    pub read_queue: Duration,
    /// Being read.
    pub read: Duration,
    /// Read, and waiting for a worker.
    pub work_queue: Duration,
    /// Being decoded and transformed.
    pub work: Duration,
    /// Done, and waiting for the rest of the batch and for its turn.
    pub batch_queue: Duration,
    /// Being handed to the device.
    pub transfer: Duration,
    /// Waiting for the consumer.
    pub ready: Duration,
}

impl JourneyCounters {
    fn snapshot(&self) -> Journey {
        Journey {
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

/// The counters of a loader, shared by all its threads.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) admit: StageCounters,
    pub(crate) read: StageCounters,
    pub(crate) work: StageCounters,
    pub(crate) transfer: StageCounters,
    /// The consumer's side: `wait_in` is the input wait.
    pub(crate) consume: StageCounters,
    pub(crate) journey: JourneyCounters,
    /// Reading one sample.
    pub(crate) read_times: Times,
    /// Decoding and transforming one sample.
    pub(crate) work_times: Times,
    /// The consumer's wait for one batch.
    pub(crate) wait_times: Times,
    pub(crate) slowest: Slowest,
    pub(crate) encoded_bytes: AtomicU64,
    pub(crate) oversized_samples: AtomicU64,
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
    /// Takes batches: its `wait_in` is the input wait, `busy` its own time with them, `samples` what was handed over.
    pub consume: StageStats,
    /// Where samples spent their time on the way.
    pub journey: Journey,
    /// Encoded bytes read.
    pub encoded_bytes: u64,
    /// Samples that were too large for a worker's own scratch and took the jumbo lane.
    pub oversized_samples: u64,
    /// Damaged or cut pictures that were taken for what there was of them, where that is asked for.
    pub damage_accepted: u64,
}

impl Counters {
    /// A run begins: nothing is in any queue.
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
            journey: self.journey.snapshot(),
            encoded_bytes: self.encoded_bytes.load(Ordering::Relaxed),
            oversized_samples: self.oversized_samples.load(Ordering::Relaxed),
            damage_accepted: self.damage_accepted.load(Ordering::Relaxed),
        }
    }
}
