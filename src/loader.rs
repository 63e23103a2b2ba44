//! Owns the face of the library: a loader, what it hands out, and what it says of itself (`builder.rs`: what it is
//! asked for). It must never do a stage's work; it starts runs and iterates.

use std::fmt;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use tracing::debug_span;

use crate::bad_samples::{BadSample, DamagedSample};
use crate::batch::Batch;
use crate::budget::LedgerReport;
use crate::device::{Device, Utilization};
use crate::error::Error;
use crate::metrics::{Counters, Histogram, PipelineStats, Taken};
use crate::pipeline::{Engine, ResizeEvent, Run};
use crate::plan::{Plan, PoolSizes, Profile};
use crate::source::Source;
use crate::sync::{Arc, Ordering};
use crate::units::SampleId;

mod builder;
mod sampling;
#[cfg(test)]
mod tests;

pub use builder::{LoaderBuilder, ram_budget_here};
pub use sampling::Sampling;

/// How long a consumer that holds every batch may wait for another before that is called a mistake: another thread of
/// its own may be about to drop one.
const HELD_MAX: Duration = Duration::from_secs(5);
/// How often a wait for a batch looks around.
const TICK: Duration = Duration::from_millis(250);

/// Feeds batches of a source's samples, epoch by epoch, within a RAM budget.
///
/// Its threads live as long as an [`Epoch`] does, its memory as long as itself. A clone is another handle to the same
/// loader.
///
/// ```
/// use feedstock::source::MemorySource;
/// use feedstock::transform::RandomResizedCrop;
/// use feedstock::{Loader, RamBudget};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let white = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;";
/// let classes = vec!["cat".to_owned(), "dog".to_owned()];
/// let source = MemorySource::new(classes, (0..10).map(|i| (white.to_vec(), i % 2)).collect())?;
/// let loader = Loader::builder(source)
///     .batch_size(4)
///     .ram_budget("64M".parse::<RamBudget>()?)
///     .transform(RandomResizedCrop::new(32).flip(0.5))
///     .seed(17)
///     .build()?;
///
/// let mut samples = 0;
/// for batch in loader.epoch(0) {
///     let batch = batch?;
///     assert_eq!(batch.shape()[1..], [3, 32, 32]);
///     samples += batch.len();
/// }
/// assert_eq!(samples, 10);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Loader {
    engine: Arc<Engine>,
    facts: Arc<About>,
}

struct About {
    profile: Profile,
    notes: Vec<String>,
}

/// A place in a run: together with the loader's settings it names every batch that is still to come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The epoch under way.
    pub epoch: u64,
    /// Its next batch.
    pub batch: u64,
}

/// What a loader has done and holds.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stats {
    /// What each stage has done since the loader was built.
    pub pipeline: PipelineStats,
    /// Who holds which bytes.
    pub memory: LedgerReport,
    /// How often a bad sample was met.
    pub bad_samples: u64,
    /// How busy the device was, where it can tell.
    pub device: Option<Utilization>,
    /// What reading took, sample by sample.
    pub read_times: Histogram,
    /// What decoding and transforming took, sample by sample.
    pub work_times: Histogram,
    /// What the consumer waited, batch by batch.
    pub wait_times: Histogram,
}

/// What the loader spent on one sample: the longest that it took in any epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlowSample {
    /// Which sample.
    pub id: SampleId,
    /// What its source calls it.
    pub name: String,
    /// Reading it; zero where it came out of the cache.
    pub read: Duration,
    /// Decoding and transforming it.
    pub work: Duration,
}

/// How large a loader's runs are at the moment, and how that came about.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Moves {
    /// The governor's level: 0 is the plan, each further one halves what circulates.
    pub level: u32,
    /// What circulates. After a move down it takes until the consumer and the workers have let go of what they hold.
    pub now: PoolSizes,
    /// Moves since the loader was built.
    pub made: u64,
    /// The latest of them (up to 64), oldest first.
    pub latest: Vec<ResizeEvent>,
}

impl Loader {
    /// Starts to describe a loader of this source's samples.
    pub fn builder(source: impl Source) -> LoaderBuilder {
        LoaderBuilder::new(source)
    }

    /// The batches of one epoch, from its first. The order depends on seed and epoch alone.
    ///
    /// One epoch at a time: while another [`Epoch`] of this loader lives, the first item is [`Error::Busy`].
    #[must_use]
    pub fn epoch(&self, epoch: u64) -> Epoch {
        self.resume(State { epoch, batch: 0 })
    }

    /// The rest of an epoch, from a place that [`Epoch::state`] gave. It costs no more than starting at the beginning.
    #[must_use]
    pub fn resume(&self, state: State) -> Epoch {
        let State { epoch, batch } = state;
        let (run, failed) = match Run::start(&self.engine, epoch, batch) {
            Ok(run) => (Some(run), None),
            Err(error) => (None, Some(error)),
        };
        Epoch {
            engine: self.engine.clone(),
            run,
            failed,
            state,
            batches: self.engine.batches().len(),
            handed_over: None,
        }
    }

    /// Batches of one epoch.
    #[must_use]
    pub fn batches_per_epoch(&self) -> u64 {
        self.engine.batches().len()
    }

    /// Samples of one epoch that this rank gets.
    #[must_use]
    pub fn samples_per_epoch(&self) -> u64 {
        let batches = self.engine.batches();
        batches.len().checked_sub(1).map_or(0, |last| batches.positions(last).end)
    }

    /// Samples in a full batch: what was asked for, or all of an epoch's where they are fewer.
    #[must_use]
    pub fn batch_size(&self) -> usize {
        self.engine.config.batch_size.get()
    }

    /// The names of the classes, by label.
    #[must_use]
    pub fn classes(&self) -> &[String] {
        self.engine.config.source.classes()
    }

    /// Where batches end up.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.engine.config.device
    }

    /// The sizes that it runs with, and why.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.engine.plan
    }

    /// What the plan knew of the data.
    #[must_use]
    pub fn profile(&self) -> &Profile {
        &self.facts.profile
    }

    /// What a person should know about this loader before it runs, one sentence each.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.facts.notes
    }

    /// What it has done so far, and what it holds.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            pipeline: self.engine.counters.snapshot(),
            memory: self.engine.ledger.report(),
            bad_samples: self.engine.bad_samples.events(),
            device: self.engine.config.device.utilization(),
            read_times: self.engine.counters.read_times.snapshot(),
            work_times: self.engine.counters.work_times.snapshot(),
            wait_times: self.engine.counters.wait_times.snapshot(),
        }
    }

    /// The samples that took the longest to read, decode and transform so far: up to 16, longest first.
    #[must_use]
    pub fn slowest_samples(&self) -> Vec<SlowSample> {
        let source = &self.engine.config.source;
        let slow = |Taken { id, read, work }| SlowSample { id, name: source.name(id), read, work };
        self.engine.counters.slowest.list().into_iter().map(slow).collect()
    }

    /// Every change of size that the governor has made to runs of this loader.
    #[must_use]
    pub fn moves(&self) -> Moves {
        let (made, latest) = self.engine.governor.events();
        Moves { level: self.engine.governor.level(), now: self.engine.active(), made, latest }
    }

    /// Every different sample that could not be used so far.
    #[must_use]
    pub fn bad_samples(&self) -> Vec<BadSample> {
        self.engine.bad_samples.samples()
    }

    /// Every different damaged sample that was used all the same so far ([`LoaderBuilder::accept_truncated`]), by id;
    /// [`BAD_SAMPLE_NAMES_MAX`](crate::BAD_SAMPLE_NAMES_MAX) at most.
    #[must_use]
    pub fn damaged_samples(&self) -> Vec<DamagedSample> {
        self.engine.bad_samples.damaged()
    }

    /// Ends the epoch under way, and every later one, with [`Error::Cancelled`]. May be called from any thread.
    pub fn stop(&self) {
        self.engine.stop();
    }
}

/// The batches of one epoch, in order. Dropping it ends the threads of the pipeline.
///
/// After an error there are no more batches.
pub struct Epoch {
    engine: Arc<Engine>,
    run: Option<Run>,
    failed: Option<Error>,
    state: State,
    batches: u64,
    /// When the consumer got its latest batch.
    handed_over: Option<Instant>,
}

impl Epoch {
    /// Where this epoch has got to: [`Loader::resume`] goes on from there with the very next batch.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Batches that are still to come, if none fails.
    #[must_use]
    pub fn batches_left(&self) -> u64 {
        self.batches.saturating_sub(self.state.batch)
    }

    fn receive(&mut self, run: &Run) -> Option<Result<Batch, Error>> {
        let mut waited = Duration::ZERO;
        loop {
            match run.deliveries.recv_timeout(TICK) {
                Ok(Ok(mut batch)) => {
                    batch.hand_over(&self.engine.in_hand);
                    self.state.batch += 1;
                    return Some(Ok(batch));
                }
                Ok(Err(error)) => return Some(Err(error)),
                Err(RecvTimeoutError::Disconnected) if self.engine.is_stopped() => return Some(Err(Error::Cancelled)),
                Err(RecvTimeoutError::Disconnected) if self.batches_left() == 0 => return None,
                Err(RecvTimeoutError::Disconnected) => return Some(Err(Error::WorkerDied)),
                Err(RecvTimeoutError::Timeout) => {
                    let held = self.engine.in_hand.load(Ordering::Relaxed);
                    waited = if self.engine.consumer_holds_all() { waited + TICK } else { Duration::ZERO };
                    if waited >= HELD_MAX {
                        return Some(Err(Error::BatchesHeld { held }));
                    }
                }
            }
        }
    }
}

impl Iterator for Epoch {
    type Item = Result<Batch, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.failed.take() {
            return Some(Err(error));
        }
        let run = self.run.take()?;
        // Behind the last batch there is only the end to wait for.
        let State { epoch, batch } = self.state;
        let _span = (self.batches_left() > 0).then(|| debug_span!("next", epoch, batch).entered());
        let since = Instant::now();
        let received = self.receive(&run);
        let Counters { consume, journey, wait_times, .. } = &self.engine.counters;
        consume.waited_in(since);
        if let Some(handed_over) = self.handed_over.take() {
            consume.was_busy(since - handed_over);
        }
        if let Some(Ok(batch)) = &received {
            let (now, samples) = (Instant::now(), batch.len() as u64);
            consume.queue_out();
            consume.handed_over(samples);
            journey.ready.add(now - batch.delivered(), samples);
            wait_times.add(now - since);
            self.handed_over = Some(now);
            self.run = Some(run);
        }
        received
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // An error may end it early, or be its only item.
        (0, Some(usize::try_from(self.batches_left()).unwrap_or(usize::MAX).saturating_add(1)))
    }
}

impl std::iter::FusedIterator for Epoch {}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { workers, slots, budget, .. } = &self.engine.plan;
        write!(f, "Loader({} samples, {workers} workers, {slots} slots, {budget})", self.engine.config.source.len())
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Epoch({:?}, {} batches left)", self.state, self.batches_left())
    }
}
