//! Owns the face of the library: what a loader is asked for, what it hands out, and what it says of itself.
//! It must never do a stage's work; it asks the machine, plans, builds the pipeline, and iterates.

use std::fmt;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;

use crate::batch::Batch;
use crate::budget::{CpuBudget, LedgerReport, RamBudget};
use crate::decode::{Limits, Options, Quality};
use crate::device::{Device, HostDevice, Utilization};
use crate::error::Error;
use crate::host::{HostFacts, MemoryFacts};
use crate::metrics::PipelineStats;
use crate::pipeline::{Engine, Move, Probe, Recipe, Run, RunError};
use crate::plan::{Circulating, Facts, Plan, Profile, Request, Survey};
use crate::pool;
use crate::quarantine::{BadSample, DamagedSample, OnBadSample};
use crate::sampler::Order;
use crate::source::Source;
use crate::sync::{Arc, OnceLock, Ordering};
use crate::tensor::{DType, Finish, Layout, Normalize, SIDE_MAX, SampleSpec};
use crate::transform::Transform;
use crate::units::{ByteCount, Seed};

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

/// What a loader is asked for. Every setting has a default but the transform.
#[must_use = "a builder does nothing until `build` is called"]
pub struct LoaderBuilder {
    source: Arc<dyn Source>,
    transform: Option<Arc<dyn Transform>>,
    device: Option<Arc<dyn Device>>,
    batch_size: usize,
    budget: RamBudget,
    own_budget: Option<ByteCount>,
    local_ranks: Option<usize>,
    finish: Finish,
    seed: u64,
    shuffle: bool,
    drop_last: bool,
    workers: Option<usize>,
    cpu_budget: CpuBudget,
    governed: bool,
    probe: Option<Probe>,
    prefetch: Option<usize>,
    batches_held: usize,
    rank: u64,
    world_size: u64,
    limits: Limits,
    decoding: Options,
    /// The headers that the plan rests on, read once however often it is asked for.
    survey: OnceLock<Survey>,
    on_bad_sample: OnBadSample,
    bad_samples_max: f64,
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
}

/// How large a loader's runs are at the moment, and how that came about.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Moves {
    /// The governor's level: 0 is the plan, each further one halves what circulates.
    pub level: u32,
    /// What circulates. After a move down it takes until the consumer and the workers have let go of what they hold.
    pub now: Circulating,
    /// Moves since the loader was built.
    pub made: u64,
    /// The latest of them (up to 64), oldest first.
    pub latest: Vec<Move>,
}

impl Loader {
    /// Starts to describe a loader of this source's samples.
    pub fn builder(source: impl Source) -> LoaderBuilder {
        LoaderBuilder {
            source: Arc::new(source),
            transform: None,
            device: None,
            batch_size: 64,
            budget: RamBudget::Auto,
            own_budget: None,
            local_ranks: None,
            finish: Finish::default(),
            seed: 0,
            shuffle: true,
            drop_last: false,
            workers: None,
            cpu_budget: CpuBudget::Auto,
            governed: true,
            probe: None,
            prefetch: None,
            batches_held: 1,
            rank: 0,
            world_size: 1,
            limits: Limits::default(),
            decoding: Options::default(),
            survey: OnceLock::new(),
            on_bad_sample: OnBadSample::default(),
            bad_samples_max: 0.01,
        }
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
        Epoch { engine: self.engine.clone(), run, failed, state, batches: self.engine.batches().len() }
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
        self.engine.recipe.batch_size.get()
    }

    /// The names of the classes, by label.
    #[must_use]
    pub fn classes(&self) -> &[String] {
        self.engine.recipe.source.classes()
    }

    /// Where batches end up.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.engine.recipe.device
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
            bad_samples: self.engine.quarantine.events(),
            device: self.engine.recipe.device.utilization(),
        }
    }

    /// Every change of size that the governor has made to runs of this loader.
    #[must_use]
    pub fn moves(&self) -> Moves {
        let (made, latest) = self.engine.governor.moves();
        Moves { level: self.engine.governor.level(), now: self.engine.circulating(), made, latest }
    }

    /// Every different sample that could not be used so far.
    #[must_use]
    pub fn bad_samples(&self) -> Vec<BadSample> {
        self.engine.quarantine.samples()
    }

    /// Every different damaged sample that was used all the same so far ([`LoaderBuilder::accept_truncated`]), by id;
    /// [`QUARANTINE_NAMES_MAX`](crate::QUARANTINE_NAMES_MAX) at most.
    #[must_use]
    pub fn damaged_samples(&self) -> Vec<DamagedSample> {
        self.engine.quarantine.damaged()
    }

    /// Ends the epoch under way, and every later one, with [`Error::Cancelled`]. May be called from any thread.
    pub fn stop(&self) {
        self.engine.stop();
    }
}

impl LoaderBuilder {
    /// Samples in a batch. Default: 64.
    pub fn batch_size(mut self, samples: usize) -> Self {
        self.batch_size = samples;
        self
    }

    /// The ceiling for everything that the loader holds. Default: [`RamBudget::Auto`]. Where several ranks share the
    /// machine it is the ceiling for all of them together (see [`local_ranks`](Self::local_ranks)).
    pub fn ram_budget(mut self, budget: impl Into<RamBudget>) -> Self {
        self.budget = budget.into();
        self.own_budget = None;
        self
    }

    /// The ceiling for everything that this loader holds, in place of [`ram_budget`](Self::ram_budget) and not divided
    /// among ranks: for programs that divide a budget themselves, between loaders or otherwise, as [`ram_budget_here`]
    /// tells it.
    pub fn own_ram_budget(mut self, bytes: ByteCount) -> Self {
        self.own_budget = Some(bytes);
        self
    }

    /// How many processes on this machine share budget and cores. Default: what the launcher says (torchrun, Slurm, MPI;
    /// see [`HostFacts::local_ranks`]), else 1.
    pub fn local_ranks(mut self, ranks: usize) -> Self {
        self.local_ranks = Some(ranks);
        self
    }

    /// What becomes of a picture: its cut, its size, its flip. Required.
    pub fn transform(mut self, transform: impl Transform) -> Self {
        self.transform = Some(Arc::new(transform));
        self
    }

    /// Where batches end up. Default: the CPU.
    pub fn device(mut self, device: Arc<dyn Device>) -> Self {
        self.device = Some(device);
        self
    }

    /// Element type of a batch. Default: [`DType::U8`].
    pub fn output(mut self, dtype: DType) -> Self {
        self.finish.dtype = dtype;
        self
    }

    /// Order of a batch's axes. Default: [`Layout::Nchw`].
    pub fn layout(mut self, layout: Layout) -> Self {
        self.finish.layout = layout;
        self
    }

    /// How elements are normalised. Default: not at all; floats are between 0 and 1.
    pub fn normalize(mut self, normalize: Normalize) -> Self {
        self.finish.normalize = Some(normalize);
        self
    }

    /// The seed of every random choice. Default: 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Whether the order of samples is shuffled anew each epoch. Default: true.
    pub fn shuffle(mut self, shuffle: bool) -> Self {
        self.shuffle = shuffle;
        self
    }

    /// Whether a last batch that is not full is left out. Default: false.
    pub fn drop_last(mut self, drop_last: bool) -> Self {
        self.drop_last = drop_last;
        self
    }

    /// The most threads that decode. The plan uses fewer where the budget does not hold more. Default: as many as the
    /// machine can keep busy.
    pub fn workers(mut self, workers_max: usize) -> Self {
        self.workers = Some(workers_max);
        self
    }

    /// The cores that the loader keeps busy where [`workers`](Self::workers) names no number. Default:
    /// [`CpuBudget::Auto`], which leaves one to the training thread.
    pub fn cpu_budget(mut self, budget: CpuBudget) -> Self {
        self.cpu_budget = budget;
        self
    }

    /// Whether a run under way gives memory back while the machine or its control group is short of it, and takes it
    /// again afterwards. The batches are the same either way. Default: true.
    pub fn governed(mut self, governed: bool) -> Self {
        self.governed = governed;
        self
    }

    /// Asks `probe` how much memory is left, and not the machine.
    #[cfg(test)]
    pub(crate) fn memory_probe(mut self, probe: Probe) -> Self {
        self.probe = Some(probe);
        self
    }

    /// The most batches that are prepared ahead. Default: as many as the samples under way span.
    pub fn prefetch(mut self, batches_max: usize) -> Self {
        self.prefetch = Some(batches_max);
        self
    }

    /// How many batches the consumer holds at once. Default: 1.
    pub fn batches_held(mut self, batches: usize) -> Self {
        self.batches_held = batches;
        self
    }

    /// The share of each epoch that this process gets: it is the `rank`th of `world_size`. Default: 0 of 1, everything.
    pub fn rank(mut self, rank: u64, world_size: u64) -> Self {
        (self.rank, self.world_size) = (rank, world_size);
        self
    }

    /// How large a picture may be. Default: [`Limits::default`].
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self.survey = OnceLock::new();
        self
    }

    /// How close a decoded picture is to the stored one. Default: [`Quality::Exact`].
    pub fn quality(mut self, quality: Quality) -> Self {
        self.decoding.quality = quality;
        self
    }

    /// Whether pictures are turned as their EXIF orientation says, before anything is cut. Default: true.
    pub fn orient(mut self, orient: bool) -> Self {
        self.decoding.orient = orient;
        self
    }

    /// Whether a JPEG that is damaged or cut off counts as a picture of what there is, and not as a bad sample. Default:
    /// false.
    pub fn accept_truncated(mut self, accept: bool) -> Self {
        self.decoding.accept_truncated = accept;
        self
    }

    /// The colour that shows where a picture is transparent. Default: black.
    pub fn background(mut self, red: u8, green: u8, blue: u8) -> Self {
        self.decoding.background = [red, green, blue];
        self
    }

    /// What happens to a sample that cannot be used. Default: [`OnBadSample::Substitute`].
    pub fn on_bad_sample(mut self, policy: OnBadSample) -> Self {
        self.on_bad_sample = policy;
        self
    }

    /// The share of an epoch's samples, in `[0, 1]`, that may be bad (rounded up) before the run ends with
    /// [`Error::TooManyBadSamples`]. Default: 0.01.
    pub fn bad_samples_max(mut self, share: f64) -> Self {
        self.bad_samples_max = share;
        self
    }

    /// Looks at the data as the plan does: every size in the index, and some headers. It tells of the data even where
    /// the budget does not hold any plan.
    ///
    /// # Errors
    /// [`Error::Config`] for a setting out of range.
    pub fn profile(&self) -> Result<Profile, Error> {
        self.check()?;
        self.spec().map(|spec| self.measure(spec))
    }

    /// Looks at the machine and the data and decides the sizes, without building anything.
    ///
    /// # Errors
    /// As [`build`](LoaderBuilder::build).
    pub fn plan(&self) -> Result<Plan, Error> {
        self.decide().map(|(plan, ..)| plan)
    }

    /// Plans, takes the memory, and is ready to run.
    ///
    /// # Errors
    /// [`Error::Config`] for a setting out of range, [`Error::OverBudget`] with the byte table if the budget is below
    /// the least that works, [`Error::Device`] if the device has no memory.
    pub fn build(self) -> Result<Loader, Error> {
        let (plan, profile, notes) = self.decide()?;
        let batch_size = self.samples_per_batch();
        let batch_size = NonZeroUsize::new(batch_size).ok_or_else(|| Error::Config("batch size is 0".to_owned()))?;
        let Some(transform) = self.transform else { return Err(no_transform()) };
        let device = self.device.unwrap_or_else(|| Arc::new(HostDevice::new()));
        let recipe = Recipe {
            spec: transform.out_spec(),
            source: self.source,
            transform,
            device,
            finish: self.finish,
            batch_size,
            drop_last: self.drop_last,
            shuffle: self.shuffle,
            seed: Seed(self.seed),
            rank: self.rank,
            world_size: self.world_size,
            limits: self.limits,
            decoding: self.decoding,
            on_bad_sample: self.on_bad_sample,
            bad_samples_max: self.bad_samples_max,
            governed: self.governed,
        };
        let engine = Arc::new(Engine::build(recipe, plan, self.probe)?);
        Ok(Loader { engine, facts: Arc::new(About { profile, notes }) })
    }

    fn decide(&self) -> Result<(Plan, Profile, Vec<String>), Error> {
        self.check()?;
        let spec = self.spec()?;
        let host = HostFacts::read();
        let ranks = self.local_ranks.unwrap_or(host.local_ranks.count);
        if ranks == 0 {
            return Err(Error::Config("0 local ranks: this process is one of them".to_owned()));
        }
        let mut notes = host.notes.clone();
        let budget = self.own_budget.unwrap_or_else(|| {
            let budget = self.budget.resolve(host.memory.available, ranks);
            notes.extend(budget_note(self.budget, budget, ranks, &host));
            budget
        });
        let profile = self.measure(spec);
        let cache_room = host.memory.available.saturating_sub(budget);
        let forget = profile.encoded_total > cache_room;
        if forget {
            notes.push(format!(
                "the data takes {}, and {cache_room} are left beside the budget: the page cache is given back after each read",
                profile.encoded_total
            ));
        }
        self.source.forget_pages(forget);
        let request = Request {
            batch_size: self.samples_per_batch(),
            spec,
            finish: self.finish,
            workers_max: self.workers,
            prefetch_max: self.prefetch,
            batches_held: self.batches_held,
            budget,
        };
        let reads_slots = self.device.as_ref().is_none_or(|device| device.reads_slots());
        let facts = Facts {
            cores: self.cpu_budget.resolve(host.cpus.workers_max_of(ranks)),
            cores_because: match self.cpu_budget {
                CpuBudget::Auto => "as many as the machine can keep busy, one core being left to the training thread",
                _ => "as many as the CPU budget allows",
            },
            index: ByteCount(self.source.index_bytes()),
            source_in_memory: self.source.in_memory(),
            output_in_ram: self.device.as_ref().is_none_or(|device| device.counts_as_ram()),
            reads_slots,
        };
        let plan = Plan::new(&request, facts, &profile)?;
        Ok((plan, profile, notes))
    }

    fn spec(&self) -> Result<SampleSpec, Error> {
        let Some(transform) = &self.transform else { return Err(no_transform()) };
        let spec = transform.out_spec();
        if spec.elements() == 0 || spec.height.max(spec.width) > SIDE_MAX {
            return Err(Error::Config(format!("samples of {spec}: each side is between 1 and {SIDE_MAX}")));
        }
        Ok(spec)
    }

    fn measure(&self, spec: SampleSpec) -> Profile {
        let survey = self.survey.get_or_init(|| Survey::take(&*self.source, &self.limits));
        survey.profile(|header| pool::working_set(header, spec, &self.decoding))
    }

    /// Samples of one epoch that this rank gets.
    fn rank_samples(&self) -> u64 {
        self.source.len().saturating_sub(self.rank).div_ceil(self.world_size.max(1))
    }

    /// No batch is larger than an epoch, so no slot need be.
    fn samples_per_batch(&self) -> usize {
        self.batch_size.min(usize::try_from(self.rank_samples()).unwrap_or(usize::MAX))
    }

    fn check(&self) -> Result<(), Error> {
        let refuse = |what: String| Err(Error::Config(what));
        if self.source.is_empty() {
            return refuse("the source has no samples".to_owned());
        }
        if let Err(error) = Order::sequential(self.source.len()).for_rank(self.rank, self.world_size) {
            return refuse(error.to_string());
        }
        if !(0.0..=1.0).contains(&self.bad_samples_max) {
            return refuse(format!("{} is no share of samples: write a number from 0 to 1", self.bad_samples_max));
        }
        let rank_samples = self.rank_samples();
        if rank_samples == 0 {
            let (samples, ranks) = (self.source.len(), self.world_size);
            return refuse(format!(
                "rank {} has no sample: {samples} samples are spread over {ranks} ranks",
                self.rank
            ));
        }
        if self.drop_last && (self.batch_size as u64) > rank_samples {
            return refuse(format!(
                "a batch of {} is larger than the {rank_samples} samples of an epoch, and the last batch is dropped unless \
                 full: nothing would be left",
                self.batch_size
            ));
        }
        if let Some(normalize) = self.finish.normalize {
            if self.finish.dtype == DType::U8 {
                return refuse("u8 batches cannot be normalised: ask for f32 or bf16".to_owned());
            }
            let Normalize { mean, std } = normalize;
            if mean.iter().any(|m| !m.is_finite()) || std.iter().any(|s| !s.is_finite() || *s == 0.0) {
                return refuse(format!("{normalize:?}: means are finite numbers, deviations finite and not zero"));
            }
        }
        Ok(())
    }
}

/// What a RAM budget comes to in this process, here and now, and a sentence about it where there is something to say:
/// shares and `auto` in bytes, the part of one rank, more than is available.
#[must_use]
pub fn ram_budget_here(budget: RamBudget) -> (ByteCount, Option<String>) {
    let host = HostFacts::read();
    let ranks = host.local_ranks.count;
    let bytes = budget.resolve(host.memory.available, ranks);
    let note = budget_note(budget, bytes, ranks, &host);
    (bytes, note)
}

fn budget_note(budget: RamBudget, bytes: ByteCount, ranks: usize, host: &HostFacts) -> Option<String> {
    let MemoryFacts { available, limited_by, .. } = &host.memory;
    let all = ByteCount(bytes.0.saturating_mul(ranks as u64));
    let part = match (ranks, host.local_ranks.told_by.as_str()) {
        (1, _) => String::new(),
        (_, "") => format!("{bytes} for each of {ranks} ranks: "),
        (_, told_by) => format!("{bytes} for each of {ranks} ranks ({told_by}): "),
    };
    match budget {
        RamBudget::Bytes(asked) if asked > *available => {
            Some(format!("RAM budget {part}{asked}, which is more than the {available} available ({limited_by})"))
        }
        RamBudget::Bytes(_) if ranks == 1 => None,
        RamBudget::Bytes(asked) => Some(format!("RAM budget {part}{asked} of {available} available ({limited_by})")),
        RamBudget::Fraction(_) => {
            Some(format!("RAM budget {budget}: {part}{all} of {available} available ({limited_by})"))
        }
        RamBudget::Auto => Some(format!(
            "RAM budget auto: {part}{all}, half of {available} available ({limited_by}); the other half is the trainer's"
        )),
    }
}

fn no_transform() -> Error {
    Error::Config(
        "no transform: samples of a batch have one size, so say which, such as RandomResizedCrop::new(224)".to_owned(),
    )
}

/// The batches of one epoch, in order. Dropping it ends the threads of the pipeline.
///
/// After an error there are no more batches.
pub struct Epoch {
    engine: Arc<Engine>,
    run: Option<Run>,
    failed: Option<RunError>,
    state: State,
    batches: u64,
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
                Ok(Err(error)) => return Some(Err(error.into())),
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
            return Some(Err(error.into()));
        }
        let run = self.run.take()?;
        let since = Instant::now();
        let received = self.receive(&run);
        let counters = &self.engine.counters.consume;
        counters.waited_in(since);
        if let Some(Ok(batch)) = &received {
            counters.handed_over(batch.len() as u64);
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
        write!(f, "Loader({} samples, {workers} workers, {slots} slots, {budget})", self.engine.recipe.source.len())
    }
}

impl fmt::Debug for LoaderBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LoaderBuilder({} samples, batches of {}, {})", self.source.len(), self.batch_size, self.budget)
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Epoch({:?}, {} batches left)", self.state, self.batches_left())
    }
}

#[cfg(test)]
mod tests;
