//! The face of the library: a [`Loader`], its epochs, and what they report. `builder.rs` is the way to a loader.

use std::fmt;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use tracing::debug_span;

use crate::bad_samples::{BadSample, DamagedSample};
use crate::batch::Batch;
use crate::device::Device;
use crate::error::Error;
use crate::metrics::{Counters, SampleTiming};
use crate::pipeline::{Engine, Run};
use crate::plan::{Plan, Profile};
use crate::source::Source;
use crate::sync::{Arc, Ordering};

mod builder;
mod resolve;
mod sampling;
mod state;
pub mod stats;
#[cfg(test)]
mod tests;

pub use builder::LoaderBuilder;
pub use resolve::ResolvedBudget;
pub use sampling::Sampling;
pub use state::State;
use stats::{GovernorLog, SlowSample, Stats};

/// Time that a consumer holding every batch may wait for another one before [`Error::BatchesHeld`]: a second thread of
/// the consumer may be about to drop one.
const MAX_HELD: Duration = Duration::from_secs(5);
/// Interval at which a wait for a batch checks the consumer's holdings.
const TICK: Duration = Duration::from_millis(250);

/// Batches of a source's samples, epoch by epoch, within a RAM budget.
///
/// Its memory lives as long as it does, its threads as long as an [`Epoch`]. A clone is another handle to the same
/// loader.
///
/// ```
/// use feedstock::prelude::*;
/// use feedstock::source::MemorySource;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let white = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\
/// #     \x02\x02D\x01\x00;";
/// let classes = vec!["cat".to_owned(), "dog".to_owned()];
/// let source = MemorySource::new(classes, (0..10).map(|i| (white.to_vec(), i % 2)).collect())?;
/// let loader = Loader::builder(source)
///     .batch_size(4)
///     .ram_budget("64M")
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

impl Loader {
    /// Creates a builder of a loader for the samples of `source`.
    pub fn builder(source: impl Source) -> LoaderBuilder {
        LoaderBuilder::new(source)
    }

    /// Starts an epoch at its first batch. The order depends on seed and epoch alone.
    ///
    /// One epoch at a time: while another [`Epoch`] of this loader lives, the first item is [`Error::Busy`].
    #[must_use]
    pub fn epoch(&self, epoch: u64) -> Epoch {
        self.resume(State { epoch, batch: 0 })
    }

    /// Starts an epoch at a state that [`Epoch::state`] returned. It costs no more than starting at the beginning.
    ///
    /// ```no_run
    /// # use feedstock::prelude::*;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let loader = Loader::builder(ImageFolder::open("train")?).transform(RandomResizedCrop::new(224)).build()?;
    /// let mut epoch = loader.epoch(0);
    /// let _first = epoch.next();
    /// std::fs::write("state.txt", epoch.state().to_string())?;
    /// drop(epoch);
    /// // Later, in another process with the same settings:
    /// let state: State = std::fs::read_to_string("state.txt")?.parse()?;
    /// for batch in loader.resume(state) {
    ///     println!("{} samples", batch?.len());
    /// }
    /// # Ok(())
    /// # }
    /// ```
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

    /// Number of batches of one epoch.
    #[must_use]
    pub fn batches_per_epoch(&self) -> u64 {
        self.engine.batches().len()
    }

    /// Number of samples of one epoch that belong to this rank.
    #[must_use]
    pub fn samples_per_epoch(&self) -> u64 {
        let batches = self.engine.batches();
        batches.len().checked_sub(1).map_or(0, |last| batches.positions(last).end)
    }

    /// Samples of a full batch: the batch size, or all samples of an epoch if they are fewer.
    #[must_use]
    pub fn batch_size(&self) -> usize {
        self.engine.config.batch_size.get()
    }

    /// Names of the classes, by label.
    #[must_use]
    pub fn classes(&self) -> &[String] {
        self.engine.config.source.classes()
    }

    /// The device that batches end up on.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.engine.config.device
    }

    /// The sizes that it runs with, and their reasons.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.engine.plan
    }

    /// The survey of the data that the plan rests on.
    #[must_use]
    pub fn profile(&self) -> &Profile {
        &self.facts.profile
    }

    /// Notes on the loader before it runs, one sentence each: limits of the machine, the budget, classes without
    /// samples.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.facts.notes
    }

    /// A snapshot of its work and memory.
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
        let slow = |SampleTiming { id, read, work }| SlowSample { id, name: source.name(id), read, work };
        self.engine.counters.slowest.list().into_iter().map(slow).collect()
    }

    /// The changes of size under memory pressure.
    #[must_use]
    pub fn governor_log(&self) -> GovernorLog {
        let (made, latest) = self.engine.governor.events();
        GovernorLog { level: self.engine.governor.level(), now: self.engine.active(), made, latest }
    }

    /// Every distinct sample that could not be used so far.
    #[must_use]
    pub fn bad_samples(&self) -> Vec<BadSample> {
        self.engine.bad_samples.samples()
    }

    /// Every distinct damaged sample that was used so far ([`LoaderBuilder::accept_truncated`]), by id; up to
    /// [`BAD_SAMPLE_NAMES_MAX`](crate::BAD_SAMPLE_NAMES_MAX).
    #[must_use]
    pub fn damaged_samples(&self) -> Vec<DamagedSample> {
        self.engine.bad_samples.damaged()
    }

    /// Ends the current epoch and every later one with [`Error::Cancelled`]. May be called from any thread.
    pub fn stop(&self) {
        self.engine.stop();
    }
}

/// Iterator over the batches of one epoch, in order. Dropping it ends the threads of the pipeline.
///
/// After an error there are no more batches.
pub struct Epoch {
    engine: Arc<Engine>,
    run: Option<Run>,
    failed: Option<Error>,
    state: State,
    batches: u64,
    /// Time at which the consumer got its latest batch.
    handed_over: Option<Instant>,
}

impl Epoch {
    /// The position of the next batch, from which [`Loader::resume`] goes on.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Number of batches still to come.
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
                    if waited >= MAX_HELD {
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
        // After the last batch only the end of the run is waited for.
        let State { epoch, batch } = self.state;
        let _span = (self.batches_left() > 0).then(|| debug_span!("next", epoch, batch).entered());
        let since = Instant::now();
        let received = self.receive(&run);
        let Counters { consume, latency, wait_times, .. } = &self.engine.counters;
        consume.waited_in(since);
        if let Some(handed_over) = self.handed_over.take() {
            consume.was_busy(since - handed_over);
        }
        if let Some(Ok(batch)) = &received {
            let (now, samples) = (Instant::now(), batch.len() as u64);
            consume.queue_out();
            consume.handed_over(samples);
            latency.ready.add(now - batch.delivered(), samples);
            wait_times.add(now - since);
            self.handed_over = Some(now);
            self.run = Some(run);
        }
        received
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // An error may end the epoch early, or be its only item.
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
