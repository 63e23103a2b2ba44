//! The builder of a loader: settings, then one path from them to a loader. It reads the machine, surveys the data,
//! plans, and builds the engine.

use std::fmt;
use std::num::NonZeroUsize;

use super::{About, Loader, Sampling};
use crate::bad_samples::OnBadSample;
use crate::budget::{CpuBudget, RamBudget};
use crate::decode::{Limits, Options, Quality};
use crate::device::{Device, HostDevice};
use crate::error::Error;
use crate::host::{HostFacts, MemorySnapshot};
use crate::pipeline::{Engine, Probe, RunConfig};
use crate::plan::{
    BATCH_LIMIT, CoresReason, Facts, LIBRARY_OVERHEAD, Plan, Profile, Request, SLOTS_LIMIT, WORKERS_LIMIT,
};
use crate::preprocess;
use crate::rng::Seed;
use crate::sampler::Order;
use crate::source::{Blocks, PageCache, Source};
use crate::survey::Survey;
use crate::sync::{Arc, OnceLock};
use crate::tensor::{DType, Layout, Normalize, OutputFormat, SIDE_MAX, SampleSpec};
use crate::transform::Transform;
use crate::units::{ByteCount, ParseError};

/// Settings of a loader. Every one has a default except [`transform`](Self::transform).
///
/// A clone has the same settings and shares the source, so that one index serves several loaders. What was read of the
/// machine and of the data for a plan is kept and shared with clones made afterwards.
///
/// # Examples
///
/// Data, batches and budget:
///
/// ```no_run
/// use feedstock::prelude::*;
/// use feedstock::transform::IMAGENET;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let loader = Loader::builder(ImageFolder::open("train")?)
///     .transform(RandomResizedCrop::new(224).flip(0.5))
///     .batch_size(256)
///     .drop_last(true)
///     .dtype(DType::F32)
///     .layout(Layout::Nchw)
///     .normalize(IMAGENET)
///     .seed(17)
///     .sampling(Sampling::balanced().num_samples(100_000)) // or .shuffle(false)
///     .ram_budget("24G") // or bytes, or a RamBudget
///     .build()?;
/// # Ok(())
/// # }
/// ```
///
/// Rank 2 of 8, four of which share this machine:
///
/// ```no_run
/// # use feedstock::prelude::*;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let loader = Loader::builder(ImageFolder::open("train")?)
///     .transform(RandomResizedCrop::new(224))
///     .shard(2, 8)
///     .local_ranks(4)
///     .cpu_budget("75%".parse()?)
///     .max_workers(16)
///     .prefetch(4)
///     .batches_held(2)
///     .adapt_to_pressure(false)
///     .build()?;
/// # Ok(())
/// # }
/// ```
///
/// Decoding, bad samples, and another device:
///
/// ```no_run
/// # use feedstock::prelude::*;
/// use std::sync::Arc;
/// use feedstock::decode::{Limits, Quality};
/// use feedstock::device::HostDevice;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let builder = Loader::builder(ImageFolder::open("train")?)
///     .transform(RandomResizedCrop::new(224))
///     .device(Arc::new(HostDevice::new()))
///     .quality(Quality::Fast)
///     .limits(Limits::default())
///     .apply_exif_orientation(true)
///     .accept_truncated(true)
///     .background(255, 255, 255)
///     .on_bad_sample(OnBadSample::Mask)
///     .max_bad_fraction(0.001);
/// println!("{}", builder.plan()?.explain()); // nothing is built
/// println!("{:?}", builder.profile()?);
/// let loader = builder.build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct LoaderBuilder {
    source: Arc<dyn Source>,
    transform: Option<Arc<dyn Transform>>,
    device: Option<Arc<dyn Device>>,
    batch_size: usize,
    ram_budget: Result<RamBudget, ParseError>,
    local_ranks: Option<usize>,
    format: OutputFormat,
    seed: u64,
    sampling: Sampling,
    drop_last: bool,
    max_workers: Option<usize>,
    cpu_budget: CpuBudget,
    adapt_to_pressure: bool,
    probe: Option<Arc<dyn Fn() -> MemorySnapshot + Send + Sync>>,
    process_overhead: ByteCount,
    prefetch: Option<usize>,
    batches_held: usize,
    rank: u64,
    world_size: u64,
    limits: Limits,
    decoding: Options,
    on_bad_sample: OnBadSample,
    max_bad_fraction: f64,
    /// The machine, read once for the plan and the loader.
    host: OnceLock<HostFacts>,
    /// The headers that the plan rests on, read once.
    survey: OnceLock<Survey>,
}

/// The outcome of planning.
struct Planned {
    plan: Plan,
    profile: Profile,
    notes: Vec<String>,
    page_cache: PageCache,
}

impl LoaderBuilder {
    pub(super) fn new(source: impl Source) -> Self {
        LoaderBuilder {
            source: Arc::new(source),
            transform: None,
            device: None,
            batch_size: 64,
            ram_budget: Ok(RamBudget::Auto),
            local_ranks: None,
            format: OutputFormat::default(),
            seed: 0,
            sampling: Sampling::default(),
            drop_last: false,
            max_workers: None,
            cpu_budget: CpuBudget::Auto,
            adapt_to_pressure: true,
            probe: None,
            process_overhead: LIBRARY_OVERHEAD,
            prefetch: None,
            batches_held: 1,
            rank: 0,
            world_size: 1,
            limits: Limits::default(),
            decoding: Options::default(),
            on_bad_sample: OnBadSample::default(),
            max_bad_fraction: 0.01,
            host: OnceLock::new(),
            survey: OnceLock::new(),
        }
    }

    /// Sets the samples of a batch. Default: 64. [Example](Self#examples).
    pub fn batch_size(mut self, samples: usize) -> Self {
        self.batch_size = samples;
        self
    }

    /// Sets the ceiling for everything that the loader holds in RAM. Default: [`RamBudget::Auto`].
    ///
    /// Takes text such as `"24G"`, `"60%"` or `"auto"`, a number of bytes, a [`ByteCount`] or a [`RamBudget`]. Text
    /// that does not parse is an error of [`build`](Self::build). Ranks that share the machine share the budget (see
    /// [`local_ranks`](Self::local_ranks)), unless it is a [`RamBudget::PerProcess`].
    ///
    /// ```
    /// # use feedstock::prelude::*;
    /// # use feedstock::source::MemorySource;
    /// # let source = || MemorySource::new(vec!["a".into()], vec![(vec![0], 0)]).expect("a source");
    /// Loader::builder(source()).ram_budget("24G");
    /// Loader::builder(source()).ram_budget(24 << 30);
    /// Loader::builder(source()).ram_budget(RamBudget::Fraction(0.25));
    /// let error = Loader::builder(source()).ram_budget("24Q").build().expect_err("no such unit");
    /// assert_eq!(error.kind(), ErrorKind::Config);
    /// ```
    pub fn ram_budget<B>(mut self, budget: B) -> Self
    where
        B: TryInto<RamBudget>,
        B::Error: Into<ParseError>,
    {
        self.ram_budget = budget.try_into().map_err(Into::into);
        self
    }

    /// Sets the number of processes on this machine that share budget and cores. Default: the launcher's number
    /// (torchrun, Slurm, MPI; see [`HostFacts::local_ranks`]), else 1. [Example](Self#examples).
    pub fn local_ranks(mut self, ranks: usize) -> Self {
        self.local_ranks = Some(ranks);
        self
    }

    /// Sets the transform of each image: crop, resize, flip. Required. [Example](Self#examples).
    pub fn transform(mut self, transform: impl Transform) -> Self {
        self.transform = Some(Arc::new(transform));
        self
    }

    /// Sets the device that batches end up on. Default: the CPU. [Example](Self#examples).
    pub fn device(mut self, device: Arc<dyn Device>) -> Self {
        self.device = Some(device);
        self
    }

    /// Sets the element type of a batch. Default: [`DType::U8`]. [Example](Self#examples).
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.format.dtype = dtype;
        self
    }

    /// Sets the order of a batch's axes. Default: [`Layout::Nchw`]. [Example](Self#examples).
    pub fn layout(mut self, layout: Layout) -> Self {
        self.format.layout = layout;
        self
    }

    /// Normalizes elements by mean and standard deviation. Default: floats are scaled to `[0, 1]`, bytes stay as they
    /// are. [Example](Self#examples).
    pub fn normalize(mut self, normalize: Normalize) -> Self {
        self.format.normalize = Some(normalize);
        self
    }

    /// Sets the seed of every random choice. Default: 0. [Example](Self#examples).
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Shuffles the samples anew each epoch, or not: short for [`Sampling::Shuffled`] and [`Sampling::Sequential`].
    /// Default: true. [Example](Self#examples).
    pub fn shuffle(self, shuffle: bool) -> Self {
        self.sampling(if shuffle { Sampling::Shuffled } else { Sampling::Sequential })
    }

    /// Sets the choice of an epoch's samples. Default: [`Sampling::Shuffled`]. [Example](Self#examples).
    pub fn sampling(mut self, sampling: Sampling) -> Self {
        self.sampling = sampling;
        self
    }

    /// Leaves out a last batch that is not full. Default: false. [Example](Self#examples).
    pub fn drop_last(mut self, drop_last: bool) -> Self {
        self.drop_last = drop_last;
        self
    }

    /// Sets the maximum number of threads that decode. The plan uses fewer if the budget does not hold more. Default:
    /// as many as the machine can keep busy. [Example](Self#examples).
    pub fn max_workers(mut self, max_workers: usize) -> Self {
        self.max_workers = Some(max_workers);
        self
    }

    /// Sets the cores to keep busy if [`max_workers`](Self::max_workers) is not set. Default: [`CpuBudget::Auto`],
    /// which leaves one core to the training thread. [Example](Self#examples).
    pub fn cpu_budget(mut self, budget: CpuBudget) -> Self {
        self.cpu_budget = budget;
        self
    }

    /// Gives memory back during a run while the machine or its control group is short of it, and takes it again
    /// afterwards. The batches are the same either way. Default: true. [Example](Self#examples).
    pub fn adapt_to_pressure(mut self, adapt: bool) -> Self {
        self.adapt_to_pressure = adapt;
        self
    }

    /// Replaces the machine's memory readings by those of `probe`.
    #[cfg(test)]
    pub(crate) fn memory_probe(mut self, probe: impl Fn() -> MemorySnapshot + Send + Sync + 'static) -> Self {
        self.probe = Some(Arc::new(probe));
        self
    }

    /// Sets the maximum number of batches prepared ahead. Default: as many as the samples in flight span.
    /// [Example](Self#examples).
    pub fn prefetch(mut self, max_batches: usize) -> Self {
        self.prefetch = Some(max_batches);
        self
    }

    /// Sets the resident size of the process without the loader's payload and its threads' stacks: code, runtime and
    /// everything else that the program itself holds. It is part of the plan's `headroom`. Default:
    /// [`LIBRARY_OVERHEAD`], measured for a small program.
    ///
    /// ```
    /// use feedstock::ByteCount;
    /// # use feedstock::{Loader, source::MemorySource, transform::Resize};
    /// # let source = MemorySource::new(vec!["cat".to_owned()], vec![(b"GIF89a".to_vec(), 0)])?;
    /// let plan = Loader::builder(source)
    ///     .transform(Resize::exact(32, 32))
    ///     .ram_budget("256M")
    ///     .process_overhead(ByteCount(100 << 20))
    ///     .plan()?;
    /// assert!(plan.minimum > ByteCount(100 << 20));
    /// # Ok::<(), feedstock::Error>(())
    /// ```
    pub fn process_overhead(mut self, bytes: ByteCount) -> Self {
        self.process_overhead = bytes;
        self
    }

    /// Sets the number of batches that the consumer holds at once. Default: 1. [Example](Self#examples).
    pub fn batches_held(mut self, batches: usize) -> Self {
        self.batches_held = batches;
        self
    }

    /// Restricts the loader to the part of each epoch that belongs to `rank` of `world_size` processes. Default: 0 of
    /// 1, which is everything. [Example](Self#examples).
    pub fn shard(mut self, rank: u64, world_size: u64) -> Self {
        (self.rank, self.world_size) = (rank, world_size);
        self
    }

    /// Sets the limits of an image's size. Default: [`Limits::default`]. [Example](Self#examples).
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self.survey = OnceLock::new();
        self
    }

    /// Sets the fidelity of decoding. Default: [`Quality::Exact`]. [Example](Self#examples).
    pub fn quality(mut self, quality: Quality) -> Self {
        self.decoding.quality = quality;
        self
    }

    /// Turns and mirrors images according to their EXIF orientation, before the transform. Default: true.
    /// [Example](Self#examples).
    pub fn apply_exif_orientation(mut self, apply: bool) -> Self {
        self.decoding.apply_exif_orientation = apply;
        self
    }

    /// Accepts a JPEG that is damaged or truncated as far as it goes, instead of treating it as a bad sample. Default:
    /// false. [Example](Self#examples).
    pub fn accept_truncated(mut self, accept: bool) -> Self {
        self.decoding.accept_truncated = accept;
        self
    }

    /// Sets the color behind transparent pixels. Default: black. [Example](Self#examples).
    pub fn background(mut self, red: u8, green: u8, blue: u8) -> Self {
        self.decoding.background = [red, green, blue];
        self
    }

    /// Sets the policy for samples that cannot be used. Default: [`OnBadSample::Substitute`]. [Example](Self#examples).
    pub fn on_bad_sample(mut self, policy: OnBadSample) -> Self {
        self.on_bad_sample = policy;
        self
    }

    /// Sets the fraction of an epoch's samples, in `[0, 1]`, that may be bad (rounded up) before the run ends with
    /// [`Error::TooManyBadSamples`]. Default: 0.01. [Example](Self#examples).
    pub fn max_bad_fraction(mut self, fraction: f64) -> Self {
        self.max_bad_fraction = fraction;
        self
    }

    /// Surveys the data as the plan does: every size in the index, and some headers. Works even if no plan fits the
    /// budget. [Example](Self#examples).
    ///
    /// # Errors
    /// [`Error::Config`] for a setting out of range.
    pub fn profile(&self) -> Result<Profile, Error> {
        self.check()?;
        self.spec().map(|spec| self.measure(spec))
    }

    /// Reads the machine and the data and decides the sizes. Builds nothing and changes nothing.
    /// [Example](Self#examples).
    ///
    /// # Errors
    /// The same as those of [`build`](LoaderBuilder::build).
    pub fn plan(&self) -> Result<Plan, Error> {
        self.decide().map(|planned| planned.plan)
    }

    /// Plans, and allocates the memory of the loader. [Example](Self#examples).
    ///
    /// # Errors
    /// [`Error::Config`] for a setting out of range, [`Error::OverBudget`] with the byte table if the budget is below
    /// the minimum, [`Error::Device`] if the device has no memory.
    pub fn build(self) -> Result<Loader, Error> {
        let Planned { plan, profile, mut notes, page_cache } = self.decide()?;
        let batch_size = self.samples_per_batch();
        let batch_size = NonZeroUsize::new(batch_size).ok_or_else(|| Error::Config("batch size is 0".to_owned()))?;
        let sampling = self.sampling.sampler(&*self.source, &mut notes)?;
        let Some(transform) = self.transform else { return Err(no_transform()) };
        let device = self.device.unwrap_or_else(|| Arc::new(HostDevice::new()));
        let config = RunConfig {
            spec: transform.out_spec(),
            source: self.source,
            page_cache,
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
            max_bad_fraction: self.max_bad_fraction,
            adapt_to_pressure: self.adapt_to_pressure,
        };
        let engine = Arc::new(Engine::build(config, plan, self.probe.map(|probe| Box::new(move || probe()) as Probe))?);
        // After the allocation, which the device may have something to say about.
        notes.extend(engine.config.device.notes());
        Ok(Loader { engine, facts: Arc::new(About { profile, notes }) })
    }

    fn decide(&self) -> Result<Planned, Error> {
        self.check()?;
        let spec = self.spec()?;
        let budget = self.ram_budget.clone().map_err(|error| Error::Config(error.to_string()))?;
        let mut host = self.host.get_or_init(HostFacts::read).clone();
        host.local_ranks.count = self.local_ranks.unwrap_or(host.local_ranks.count);
        if host.local_ranks.count == 0 {
            return Err(Error::Config("local ranks is 0: at least 1 is needed, this process".to_owned()));
        }
        let resolved = budget.resolve_on(&host);
        let mut notes: Vec<String> = host.warnings.iter().map(ToString::to_string).collect();
        notes.extend(resolved.note());
        let budget = resolved.bytes;
        let profile = self.measure(spec);
        let cache_room = host.memory.available.saturating_sub(budget);
        let fits = profile.encoded_total <= cache_room;
        let page_cache = if fits { PageCache::Keep } else { PageCache::Drop };
        if !fits {
            notes.push(format!(
                "the data takes {}, and {cache_room} are left beside the budget: page cache is dropped after each read",
                profile.encoded_total
            ));
        }
        let request = Request {
            batch_size: self.samples_per_batch(),
            spec,
            format: self.format,
            workers_max: self.max_workers,
            prefetch_max: self.prefetch,
            batches_held: self.batches_held,
            budget,
        };
        let reads_slots = self.device.as_ref().is_none_or(|device| device.reads_slots());
        let reading = self.source.io_profile();
        let facts = Facts {
            cores: self.cpu_budget.resolve(host.cpus.workers_max_of(host.local_ranks.count)),
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
        Ok(Planned { plan, profile, notes, page_cache })
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

    /// Samples of one epoch that belong to this rank.
    fn rank_samples(&self) -> u64 {
        self.sampling.len(&*self.source).saturating_sub(self.rank).div_ceil(self.world_size.max(1))
    }

    /// Samples of a full batch. None is larger than an epoch.
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
        if !(0.0..=1.0).contains(&self.max_bad_fraction) {
            let fraction = self.max_bad_fraction;
            return refuse(format!("max_bad_fraction is {fraction}: expected a number from 0 to 1"));
        }
        let bounded = |what: &str, value: usize, limit: usize| match value {
            1.. if value <= limit => Ok(()),
            _ => Err(Error::Config(format!("{what} is {value}: expected 1 to {limit}"))),
        };
        bounded("batches held", self.batches_held, SLOTS_LIMIT)?;
        bounded("workers", self.max_workers.unwrap_or(1), WORKERS_LIMIT)?;
        bounded("prefetch", self.prefetch.unwrap_or(1), SLOTS_LIMIT)?;
        let rank_samples = self.rank_samples();
        if rank_samples == 0 {
            let (samples, ranks) = (self.sampling.len(&*self.source), self.world_size);
            return refuse(format!(
                "rank {} has no samples: {samples} samples are spread over {ranks} ranks",
                self.rank
            ));
        }
        bounded("batch size", self.samples_per_batch(), BATCH_LIMIT)?;
        if self.drop_last && (self.batch_size as u64) > rank_samples {
            return refuse(format!(
                "a batch of {} is larger than the {rank_samples} samples of an epoch, and drop_last leaves out a batch \
                 that is not full: no batch is left",
                self.batch_size
            ));
        }
        if let Some(normalize) = self.format.normalize {
            if self.format.dtype == DType::U8 {
                return refuse("u8 batches cannot be normalized: set the dtype to f32, bf16 or f16".to_owned());
            }
            let Normalize { mean, std } = normalize;
            if mean.iter().any(|m| !m.is_finite()) || std.iter().any(|s| !s.is_finite() || *s == 0.0) {
                return refuse(format!("{normalize:?}: means must be finite, deviations finite and not zero"));
            }
        }
        Ok(())
    }
}

fn no_transform() -> Error {
    Error::Config(
        "no transform: set one, such as RandomResizedCrop::new(224), so that all samples of a batch have one size"
            .to_owned(),
    )
}

impl fmt::Debug for LoaderBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let samples = self.source.len();
        write!(f, "LoaderBuilder({samples} samples, batches of {}, {:?})", self.batch_size, self.ram_budget)
    }
}
