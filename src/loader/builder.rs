//! Owns what a loader is asked for, and the way from there to a loader: it asks the machine, surveys the data, plans, and
//! has the engine built. It must never run anything.

use std::fmt;
use std::num::NonZeroUsize;

use super::{About, Loader, Sampling};
use crate::bad_samples::OnBadSample;
use crate::budget::{CpuBudget, RamBudget};
use crate::decode::{Limits, Options, Quality};
use crate::device::{Device, HostDevice};
use crate::error::Error;
use crate::host::{HostFacts, MemoryFacts};
use crate::pipeline::{Engine, Probe, RunConfig};
use crate::plan::{
    BATCH_LIMIT, CoresReason, Facts, LIBRARY_OVERHEAD, Plan, Profile, Request, SLOTS_LIMIT, WORKERS_LIMIT,
};
use crate::preprocess;
use crate::sampler::Order;
use crate::source::{Blocks, Source};
use crate::survey::Survey;
use crate::sync::{Arc, OnceLock};
use crate::tensor::{DType, Layout, Normalize, OutputFormat, SIDE_MAX, SampleSpec};
use crate::transform::Transform;
use crate::units::{ByteCount, Seed};

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
    format: OutputFormat,
    seed: u64,
    sampling: Sampling,
    drop_last: bool,
    workers: Option<usize>,
    cpu_budget: CpuBudget,
    governed: bool,
    probe: Option<Probe>,
    process_overhead: ByteCount,
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

impl LoaderBuilder {
    pub(super) fn new(source: impl Source) -> Self {
        LoaderBuilder {
            source: Arc::new(source),
            transform: None,
            device: None,
            batch_size: 64,
            budget: RamBudget::Auto,
            own_budget: None,
            local_ranks: None,
            format: OutputFormat::default(),
            seed: 0,
            sampling: Sampling::default(),
            drop_last: false,
            workers: None,
            cpu_budget: CpuBudget::Auto,
            governed: true,
            probe: None,
            process_overhead: LIBRARY_OVERHEAD,
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
        self.format.dtype = dtype;
        self
    }

    /// Order of a batch's axes. Default: [`Layout::Nchw`].
    pub fn layout(mut self, layout: Layout) -> Self {
        self.format.layout = layout;
        self
    }

    /// How elements are normalised. Default: not at all; floats are between 0 and 1.
    pub fn normalize(mut self, normalize: Normalize) -> Self {
        self.format.normalize = Some(normalize);
        self
    }

    /// The seed of every random choice. Default: 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Whether the order of samples is shuffled anew each epoch: short for [`Sampling::Shuffled`] and [`Sampling::ById`].
    /// Default: true.
    pub fn shuffle(self, shuffle: bool) -> Self {
        self.sampling(if shuffle { Sampling::Shuffled } else { Sampling::ById })
    }

    /// How the samples of an epoch are chosen. Default: [`Sampling::Shuffled`].
    pub fn sampling(mut self, sampling: Sampling) -> Self {
        self.sampling = sampling;
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

    /// Sets the resident size of the process without the loader's payload, its threads' stacks excepted: code, runtime and
    /// everything else that the program itself holds. It is part of the plan's `headroom`. Default:
    /// [`LIBRARY_OVERHEAD`](crate::plan::LIBRARY_OVERHEAD), measured for a small program.
    ///
    /// ```
    /// use feedstock::ByteCount;
    /// # use feedstock::{Loader, source::MemorySource, transform::Resize};
    /// # let source = MemorySource::new(vec!["cat".to_owned()], vec![(b"GIF89a".to_vec(), 0)])?;
    /// let plan = Loader::builder(source)
    ///     .transform(Resize::exact(32, 32))
    ///     .ram_budget(ByteCount(256 << 20))
    ///     .process_overhead(ByteCount(100 << 20))
    ///     .plan()?;
    /// assert!(plan.minimum > ByteCount(100 << 20));
    /// # Ok::<(), feedstock::Error>(())
    /// ```
    pub fn process_overhead(mut self, bytes: ByteCount) -> Self {
        self.process_overhead = bytes;
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
        self.decoding.apply_exif_orientation = orient;
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
        let (plan, profile, mut notes) = self.decide()?;
        let batch_size = self.samples_per_batch();
        let batch_size = NonZeroUsize::new(batch_size).ok_or_else(|| Error::Config("batch size is 0".to_owned()))?;
        let sampling = self.sampling.scheme(&*self.source, &mut notes)?;
        let Some(transform) = self.transform else { return Err(no_transform()) };
        let device = self.device.unwrap_or_else(|| Arc::new(HostDevice::new()));
        let config = RunConfig {
            spec: transform.out_spec(),
            source: self.source,
            transform,
            device,
            format: self.format,
            batch_size,
            drop_last: self.drop_last,
            sampling,
            seed: Seed(self.seed),
            rank: self.rank,
            world_size: self.world_size,
            limits: self.limits,
            decoding: self.decoding,
            on_bad_sample: self.on_bad_sample,
            bad_samples_max: self.bad_samples_max,
            governed: self.governed,
        };
        let engine = Arc::new(Engine::build(config, plan, self.probe)?);
        // Of the memory that it has just been asked for.
        notes.extend(engine.config.device.notes());
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
        self.source.set_drop_page_cache(forget);
        let request = Request {
            batch_size: self.samples_per_batch(),
            spec,
            format: self.format,
            workers_max: self.workers,
            prefetch_max: self.prefetch,
            batches_held: self.batches_held,
            budget,
        };
        let reads_slots = self.device.as_ref().is_none_or(|device| device.reads_slots());
        let reading = self.source.io_profile();
        let facts = Facts {
            cores: self.cpu_budget.resolve(host.cpus.workers_max_of(ranks)),
            cores_reason: match self.cpu_budget {
                CpuBudget::Auto => CoresReason::Auto,
                _ => CoresReason::CpuBudget,
            },
            process_overhead: self.process_overhead,
            index: ByteCount(self.source.index_bytes() + self.source.blocks().map_or(0, Blocks::bytes)),
            read_threads: reading.concurrency.max(1),
            reading: ByteCount(reading.buffer_bytes),
            sampling: ByteCount(self.sampling.table_bytes(&*self.source)?),
            source_in_memory: self.source.is_in_memory(),
            output_in_ram: self.device.as_ref().is_none_or(|device| device.counts_as_ram()),
            reads_slots,
            device_overhead: self.device.as_ref().map_or(ByteCount::ZERO, |device| device.host_overhead()),
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
        let survey = self.survey.get_or_init(|| Survey::new(&*self.source, &self.limits));
        survey.profile(|header| preprocess::working_set(header, spec, &self.decoding))
    }

    /// Samples of one epoch that this rank gets.
    fn rank_samples(&self) -> u64 {
        self.sampling.len(&*self.source).saturating_sub(self.rank).div_ceil(self.world_size.max(1))
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
        self.sampling.check(&*self.source)?;
        if let Err(error) = Order::sequential(self.source.len()).for_rank(self.rank, self.world_size) {
            return refuse(error.to_string());
        }
        if !(0.0..=1.0).contains(&self.bad_samples_max) {
            return refuse(format!("{} is no share of samples: write a number from 0 to 1", self.bad_samples_max));
        }
        let bounded = |what: &str, value: usize, limit: usize| match value {
            1.. if value <= limit => Ok(()),
            _ => Err(Error::Config(format!("{what} is {value}: expected 1 to {limit}"))),
        };
        bounded("batches held", self.batches_held, SLOTS_LIMIT)?;
        bounded("workers", self.workers.unwrap_or(1), WORKERS_LIMIT)?;
        bounded("prefetch", self.prefetch.unwrap_or(1), SLOTS_LIMIT)?;
        let rank_samples = self.rank_samples();
        if rank_samples == 0 {
            let (samples, ranks) = (self.sampling.len(&*self.source), self.world_size);
            return refuse(format!(
                "rank {} has no sample: {samples} samples are spread over {ranks} ranks",
                self.rank
            ));
        }
        bounded("batch size", self.samples_per_batch(), BATCH_LIMIT)?;
        if self.drop_last && (self.batch_size as u64) > rank_samples {
            return refuse(format!(
                "a batch of {} is larger than the {rank_samples} samples of an epoch, and the last batch is dropped unless \
                 full: nothing would be left",
                self.batch_size
            ));
        }
        if let Some(normalize) = self.format.normalize {
            if self.format.dtype == DType::U8 {
                return refuse("u8 batches cannot be normalised: ask for f32, bf16 or f16".to_owned());
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

impl fmt::Debug for LoaderBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LoaderBuilder({} samples, batches of {}, {})", self.source.len(), self.batch_size, self.budget)
    }
}
