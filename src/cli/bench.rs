//! `feedstock bench`: runs and measures one configuration of the loader. Several configurations are a sweep, whose runs
//! are processes of their own. The command itself holds next to no memory, since it measures the process.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use xxhash_rust::xxh3::Xxh3;

use feedstock::device::{self, Device, Event, Utilization};
use feedstock::host::process_cpu_time;
use feedstock::tensor::{Normalize, SIDE_MAX, SampleSpec};
use feedstock::train::ModelKind;
use feedstock::transform::{IMAGENET, RandomResizedCrop, Resize, ResizeCenterCrop, Transform};
use feedstock::{Batch, ByteCount, CpuBudget, Error, Loader, OnBadSample, RamBudget, Source, State, Stats};

use super::data::{self, LoaderArgs, ResizeReporter};
use super::failure::Failure;
use super::placement::Placement;
use super::progress::Progress;
use super::watch::WatchArgs;
use super::{Context, lock};

mod bottleneck;
mod outcome;
mod page;
mod report;
mod stage_bench;
mod sweep;
mod train_consumer;

use report::Report;
pub(crate) use report::RunReport;

const MORE: &str = "\
Every batch is dropped at once. The digest (XXH3, 64 bits) covers all bytes, labels and ids in order: it is the same \
for any number of workers and any budget. --transform: rrc is a random resized crop with random flip (training); \
center is the center crop of the image resized to 8/7 of the size (validation); resize is the whole image, stretched.

With several --ram-budget or --workers, or with --report, each combination and each stage alone runs in a process of \
its own, in turn; the median of --rounds counts, and the fewest workers that are as good as any are named. \
\"Expected\" and \"predicted\" are computed from the stages alone and the step.

Examples:
  feedstock bench --data images/train --workers 1,2,4 --ram-budget 256M,1G --step-ms 20 --report out
  feedstock bench --data images/train --ram-budget 1G --trace timeline.json
  feedstock bench --data images/train --ram-budget 256M --workers 2 --epochs 3 --json";

/// Run and measure the loader alone
#[derive(Args)]
#[command(after_help = MORE)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    loader: LoaderArgs,
    /// Loader, or one stage: decode, read, transfer
    #[arg(long, value_enum, hide_possible_values = true, default_value_t = Mode::Loader)]
    mode: Mode,
    /// Number of measured epochs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1 << 32))]
    epochs: u64,
    /// Number of epochs before the measured ones
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=1 << 32))]
    warmup_epochs: u64,
    /// Crop of an image: rrc, center or resize
    #[arg(long, value_enum, hide_possible_values = true, default_value_t = Crop::Rrc)]
    transform: Crop,
    /// Normalize by ImageNet's mean and deviation (not u8)
    #[arg(long)]
    normalize: bool,
    /// Seed of every random choice
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Read the samples in their stored order
    #[arg(long)]
    no_shuffle: bool,
    /// Leave out a last batch that is not full
    #[arg(long)]
    drop_last: bool,
    /// Bad samples: fail, substitute or mask
    #[arg(long, value_name = "POLICY", default_value_t = OnBadSample::Substitute)]
    on_bad_sample: OnBadSample,
    /// Maximum share of bad samples, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.01)]
    max_bad: f64,
    /// Rank of this process: its share of each epoch
    #[arg(long, value_name = "N", default_value_t = 0)]
    rank: u64,
    /// Number of processes that share an epoch
    #[arg(long, value_name = "N", default_value_t = 1)]
    world_size: u64,
    /// Duration of a simulated training step [default: sim's, or 0]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(..=3_600_000))]
    step_ms: Option<u64>,
    /// Train a model instead of a simulated step: small or large
    #[arg(long, value_name = "MODEL")]
    model: Option<ModelKind>,
    /// Do not read batches back from a device for the digest
    #[arg(long)]
    no_digest: bool,
    #[command(flatten)]
    watch: WatchArgs,
    /// Number of runs of each combination
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1000))]
    rounds: u64,
    /// Write a line per run of a sweep to a CSV file
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Write a page with charts (index.html, SVG, JSON, CSV) to a folder
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Subject of a run.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Mode {
    Loader,
    Decode,
    Read,
    Transfer,
}

/// Crop of an image.
#[derive(Clone, Copy, ValueEnum)]
enum Crop {
    Rrc,
    Center,
    Resize,
}

/// Progress of a run, shared with the thread that reports when the run is interrupted.
#[derive(Clone, Default)]
struct Totals {
    images: u64,
    batches: u64,
    epochs: u64,
    /// Time from the program's start to the first batch.
    first_batch: Option<Duration>,
    began: Option<Instant>,
    took: Option<Duration>,
    /// Counters before the measured epochs.
    before: Option<Stats>,
    /// Utilization of the device in the measured epochs.
    used: Option<Utilization>,
    digest: u64,
    /// Share of the time in which the model trained, if there is one.
    trained: Option<f64>,
    /// The next batch.
    state: State,
    /// Start of the first epoch, measured or not.
    fed_since: Option<Instant>,
    /// CPU time of the process until then.
    cpu_before: Duration,
}

impl Totals {
    /// Utilization of the device from the first measured epoch until these counters.
    fn used_until(&self, now: &Stats) -> Option<Utilization> {
        let before = self.before.as_ref().and_then(|before| before.device).unwrap_or_default();
        now.device.map(|now| now.since(&before))
    }
}

struct Bench<'a> {
    args: &'a BenchArgs,
    started: Instant,
    loader: Loader,
    totals: Arc<Mutex<Totals>>,
    progress: Progress,
    digest: Xxh3,
    read_back: Vec<u8>,
    last_step: Event,
    resizes: ResizeReporter,
}

pub(crate) fn run(args: &BenchArgs, context: &Context) -> Result<(), Failure> {
    if sweep::is_requested(args) {
        return sweep::run(args, context);
    }
    if args.mode != Mode::Loader {
        return stage_bench::run(args, context);
    }
    train_consumer::check(args)?;
    let folder = args.loader.open()?;
    let place = match args.model {
        Some(_) => Placement::choose(&args.loader.device)?,
        None => Placement { device: device::open(&args.loader.device)?, gpu: None, note: None },
    };
    let loader = args.build(&folder, &place.device)?;
    if !args.json {
        data::tell_notes(place.note.iter().chain(loader.notes()).chain(folder.notes()));
    }
    let totals = Arc::new(Mutex::new(Totals::default()));
    let report = Report::new(args, context.started, folder, &loader, &totals);
    let watch = args.watch.begin(&[("bench", &loader)])?;
    let stopped = loader.clone();
    context.stop.on_stop(move || stopped.stop());
    let mut bench = Bench {
        args,
        started: context.started,
        progress: Progress::new(loader.batches_per_epoch() * (args.warmup_epochs + args.epochs)),
        loader,
        totals,
        digest: Xxh3::new(),
        read_back: Vec::new(),
        last_step: Event::done(),
        resizes: ResizeReporter::default(),
    };
    let json = args.json;
    let render = move |error: Option<&str>| {
        watch.finish();
        report.render(json, error)
    };
    context.stop.report(render, || {
        let done = match args.model {
            Some(kind) => train_consumer::run(&mut bench, kind, &place, context),
            None => bench.run().map_err(Failure::from),
        };
        bench.progress.clear();
        done
    })
}

impl BenchArgs {
    fn transform(&self) -> Box<dyn Transform> {
        let size = self.loader.batch.size;
        match self.transform {
            Crop::Rrc => Box::new(RandomResizedCrop::new(size).flip(0.5)),
            Crop::Center => Box::new(ResizeCenterCrop::new((size * 8).div_ceil(7).min(SIDE_MAX), size)),
            Crop::Resize => Box::new(Resize::exact(size, size)),
        }
    }

    fn normalization(&self) -> Option<Normalize> {
        self.normalize.then_some(IMAGENET)
    }

    /// Number of workers and of read threads of the plan.
    fn threads(&self, folder: &Arc<dyn Source>) -> Result<(usize, usize), Failure> {
        let (builder, _) = self.loader.builder(folder)?;
        let cores = self.loader.cpu_budget.unwrap_or(CpuBudget::Fraction(1.0));
        let plan = builder.cpu_budget(cores).transform(self.transform()).plan()?;
        Ok((plan.workers, plan.read_threads))
    }

    fn step(&self) -> Option<Duration> {
        self.step_ms.map(Duration::from_millis)
    }

    fn build(&self, folder: &Arc<dyn Source>, device: &Arc<dyn Device>) -> Result<Loader, Failure> {
        let builder = self.loader.builder_on(folder, device)?;
        // No training needs cores here.
        let builder = builder.cpu_budget(self.loader.cpu_budget.unwrap_or(CpuBudget::Fraction(1.0)));
        let beside = [
            ("read back", self.read_back_bytes(&**device), "to read batches back for the digest (see --no-digest)"),
            ("watch", self.watch.bytes(), WatchArgs::BECAUSE),
        ];
        let taken = beside.iter().fold(ByteCount::ZERO, |sum, (_, bytes, _)| sum + *bytes);
        let mut builder = builder.transform(self.transform());
        if let Some(normalize) = self.normalization() {
            builder = builder.normalize(normalize);
        }
        if taken > ByteCount::ZERO {
            let budget = self.loader.one()?.0.resolve_here().bytes;
            builder = builder.ram_budget(RamBudget::PerProcess(budget.saturating_sub(taken)));
        }
        let built = builder
            .seed(self.seed)
            .shuffle(!self.no_shuffle)
            .drop_last(self.drop_last)
            .on_bad_sample(self.on_bad_sample)
            .max_bad_fraction(self.max_bad)
            .shard(self.rank, self.world_size)
            .build();
        built.map_err(|error| data::with_other_accounts(error, &beside))
    }

    /// Bytes of the buffer for a batch that is read back from a device.
    fn read_back_bytes(&self, device: &dyn Device) -> ByteCount {
        if self.no_digest || device.reads_slots() {
            return ByteCount::ZERO;
        }
        let spec = SampleSpec { height: self.loader.batch.size, width: self.loader.batch.size };
        ByteCount(spec.size_bytes(self.loader.batch.dtype) as u64) * self.loader.batch.batch_size as u64
    }
}

impl Bench<'_> {
    fn run(&mut self) -> Result<(), Error> {
        let BenchArgs { epochs, warmup_epochs, .. } = *self.args;
        // Warm-up epochs have the numbers after the measured ones, so that they do not change the digest.
        for epoch in epochs..epochs + warmup_epochs {
            self.epoch(epoch, None)?;
        }
        let began = self.start_measuring();
        for epoch in 0..epochs {
            self.epoch(epoch, Some(began))?;
            self.totals(|totals| totals.epochs += 1);
        }
        self.last_step.wait()?;
        let (took, now) = (began.elapsed(), self.loader.stats());
        self.totals(|totals| (totals.took, totals.used) = (Some(took), totals.used_until(&now)));
        Ok(())
    }

    /// Marks the start of the measurement.
    fn start_measuring(&self) -> Instant {
        let before = self.loader.stats();
        let began = Instant::now();
        self.totals(|totals| (totals.began, totals.before) = (Some(began), Some(before)));
        began
    }

    fn start_feeding(&self) {
        self.totals(|totals| {
            if totals.fed_since.is_none() {
                (totals.fed_since, totals.cpu_before) = (Some(Instant::now()), process_cpu_time());
            }
        });
    }

    fn epoch(&mut self, epoch: u64, began: Option<Instant>) -> Result<(), Error> {
        let mut batches = self.loader.epoch(epoch);
        self.start_feeding();
        self.totals(|totals| totals.state = batches.state());
        while let Some(batch) = batches.next().transpose()? {
            let since_start = self.started.elapsed();
            self.step(&batch)?;
            if began.is_some() && !self.args.no_digest {
                self.add_to_digest(&batch)?;
            }
            let (digest, state) = (self.digest.digest(), batches.state());
            self.totals(|totals| {
                totals.state = state;
                totals.first_batch.get_or_insert(since_start);
                if began.is_some() {
                    totals.images += batch.len() as u64;
                    totals.batches += 1;
                    totals.digest = digest;
                }
            });
            self.show(epoch, &batch, began);
            if !self.args.json {
                self.resizes.tell(&self.loader, |print| self.progress.aside(print));
            }
        }
        Ok(())
    }

    /// Simulates a training step: keeps the device busy for a while.
    fn step(&mut self, batch: &Batch) -> Result<(), Error> {
        let _span = tracing::debug_span!("step", epoch = batch.epoch(), batch = batch.index()).entered();
        match batch.device_memory() {
            Some(memory) => {
                let step = self.loader.device().step(memory, batch.ready(), self.args.step())?;
                // A trainer is at most one step ahead of its device. This wait is not one for a batch.
                std::mem::replace(&mut self.last_step, step).wait()?;
            }
            None => std::thread::sleep(self.args.step().unwrap_or_default()),
        }
        Ok(())
    }

    fn add_to_digest(&mut self, batch: &Batch) -> Result<(), Error> {
        match batch.bytes() {
            Some(bytes) => self.digest.update(bytes),
            None => {
                batch.read_back(&mut self.read_back)?;
                self.digest.update(&self.read_back);
            }
        }
        batch.labels().iter().for_each(|label| self.digest.update(&label.to_le_bytes()));
        batch.ids().iter().for_each(|id| self.digest.update(&id.0.to_le_bytes()));
        Ok(())
    }

    fn totals(&self, update: impl FnOnce(&mut Totals)) {
        update(&mut lock(&self.totals));
    }

    fn show(&mut self, epoch: u64, batch: &Batch, began: Option<Instant>) {
        let (args, loader) = (self.args, &self.loader);
        let per_epoch = loader.batches_per_epoch();
        let before =
            if began.is_some() { (epoch + args.warmup_epochs) * per_epoch } else { (epoch - args.epochs) * per_epoch };
        let images = lock(&self.totals).images;
        self.progress.at(before + batch.index() + 1, || {
            let stats = loader.stats();
            let held = format!("RAM {} of {}", stats.memory.held, stats.memory.limit);
            let place = format!("batch {} of {per_epoch}", batch.index() + 1);
            match began {
                None => format!("warm-up, {place}   {held}"),
                Some(began) => {
                    let speed = images as f64 / began.elapsed().as_secs_f64();
                    format!("epoch {} of {}, {place}   {speed:.0} images/s   {held}", epoch + 1, args.epochs)
                }
            }
        });
    }
}
