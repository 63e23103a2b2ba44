//! Owns `feedstock bench`: one configuration of the loader, run alone and measured. It must never hold memory of its own
//! that is worth counting: what it measures is the process.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use xxhash_rust::xxh3::Xxh3;

use feedstock::device::{self, Device, Event, Utilization};
use feedstock::host::process_cpu_time;
use feedstock::tensor::{Normalize, SIDE_MAX, SampleSpec};
use feedstock::train::ModelKind;
use feedstock::transform::{IMAGENET, RandomResizedCrop, Resize, ResizeCenterCrop, Transform};
use feedstock::{Batch, ByteCount, CpuBudget, Error, Loader, OnBadSample, Source, State, Stats, ram_budget_here};

use super::Context;
use super::data::{self, LoaderArgs, MovesTold};
use super::failure::{Failure, print};
use super::place::Place;
use super::progress::Progress;
use super::watch::WatchArgs;

mod alone;
mod learn;
mod outcome;
mod page;
mod report;
mod stall;
mod sweep;

use report::Report;

const MORE: &str = "\
Every batch is taken and dropped at once. The digest (XXH3, 64 bits) covers all bytes, labels and ids in order: it is the \
same for any number of workers and any budget. --transform: rrc is a random part, mirrored or not (training); center the \
central square of the picture scaled to 8/7 of the size (validation); resize the whole picture, stretched.

With several --ram-budget or --workers, or with --report, each combination and each part alone runs in a process of its own, \
in turn; the middle of --rounds runs counts, and the fewest workers that are as good as any are named. \"Expected\" and \
\"predicted\" follow from the parts alone and the step.

Examples:
  feedstock bench --data photos/train --workers 1,2,4 --ram-budget 256M,1G --step-ms 20 --report out
  feedstock bench --data photos/train --ram-budget 1G --trace timeline.json
  feedstock bench --data photos/train --ram-budget 256M --workers 2 --epochs 3 --json";

/// Run the loader alone, and measure it
#[derive(Args)]
#[command(after_help = MORE)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    loader: LoaderArgs,
    /// The whole loader, or alone: decode, read, transfer
    #[arg(long, value_enum, hide_possible_values = true, default_value_t = Mode::Loader)]
    mode: Mode,
    /// Epochs that are measured
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1 << 32))]
    epochs: u64,
    /// Epochs that are run before
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=1 << 32))]
    warmup_epochs: u64,
    /// What is shown of a picture: rrc, center or resize
    #[arg(long, value_enum, hide_possible_values = true, default_value_t = Cut::Rrc)]
    transform: Cut,
    /// Normalise by ImageNet's mean and deviation (not u8)
    #[arg(long)]
    normalize: bool,
    /// Seed of every random choice
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Take the samples in their order in the folder
    #[arg(long)]
    no_shuffle: bool,
    /// Leave out a last batch that is not full
    #[arg(long)]
    drop_last: bool,
    /// What of a bad sample: fail, substitute or mask
    #[arg(long, value_name = "POLICY", default_value_t = OnBadSample::Substitute)]
    on_bad_sample: OnBadSample,
    /// The share of samples that may be bad, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.01)]
    max_bad: f64,
    /// Which share of each epoch this process gets
    #[arg(long, value_name = "N", default_value_t = 0)]
    rank: u64,
    /// How many processes share an epoch
    #[arg(long, value_name = "N", default_value_t = 1)]
    world_size: u64,
    /// A training step, which keeps the device busy [default: sim's, or 0]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(..=3_600_000))]
    step_ms: Option<u64>,
    /// Train a model in place of such a step: small or large
    #[arg(long, value_name = "MODEL")]
    model: Option<ModelKind>,
    /// Do not read batches back from a device; there is no digest then
    #[arg(long)]
    no_digest: bool,
    #[command(flatten)]
    watch: WatchArgs,
    /// How often each combination of several values is run
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1000))]
    rounds: u64,
    /// Write a line for each of its runs to a file
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Write a page with charts (index.html, SVG, JSON, CSV) to a folder
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Mode {
    Loader,
    Decode,
    Read,
    Transfer,
}

/// What is cut out of a picture.
#[derive(Clone, Copy, ValueEnum)]
enum Cut {
    Rrc,
    Center,
    Resize,
}

/// How far a run has got; shared with whoever has to tell of it when the run cannot.
#[derive(Clone, Default)]
struct Tally {
    images: u64,
    batches: u64,
    epochs: u64,
    /// Since the program began.
    first_batch: Option<Duration>,
    began: Option<Instant>,
    took: Option<Duration>,
    /// What there was before the measured epochs.
    before: Option<Stats>,
    /// How busy the device was in the measured epochs.
    used: Option<Utilization>,
    digest: u64,
    /// Where a model is trained: the share of the time in which it was.
    trained: Option<f64>,
    /// The next batch.
    state: State,
    /// When the first epoch began, measured or not.
    fed_since: Option<Instant>,
    /// Processor time that the process had used by then.
    cpu_before: Duration,
}

impl Tally {
    /// How busy the device was from the first measured epoch until these counters.
    fn used_until(&self, now: &Stats) -> Option<Utilization> {
        let before = self.before.as_ref().and_then(|before| before.device).unwrap_or_default();
        now.device.map(|now| now.since(&before))
    }
}

struct Bench<'a> {
    args: &'a BenchArgs,
    started: Instant,
    loader: Loader,
    tally: Arc<Mutex<Tally>>,
    progress: Progress,
    digest: Xxh3,
    read_back: Vec<u8>,
    last_step: Event,
    moves: MovesTold,
}

pub(crate) fn run(args: &BenchArgs, context: &Context) -> Result<(), Failure> {
    if sweep::is_asked(args) {
        return sweep::run(args, context);
    }
    if args.mode != Mode::Loader {
        return alone::run(args, context);
    }
    learn::check(args)?;
    let folder = args.loader.open()?;
    let place = match args.model {
        Some(_) => Place::choose(&args.loader.device)?,
        None => Place { device: device::open(&args.loader.device)?, gpu: None, note: None },
    };
    let loader = args.build(&folder, &place.device)?;
    if !args.json {
        data::tell_notes(place.note.iter().chain(loader.notes()).chain(folder.notes()));
    }
    let tally = Arc::new(Mutex::new(Tally::default()));
    let report = Report::new(args, context.started, folder, &loader, &tally);
    let watch = args.watch.begin(&[("bench", &loader)])?;
    let json = args.json;
    {
        let (loader, report, watch) = (loader.clone(), report.clone(), watch.clone());
        context.stop.on_stop(move || loader.stop());
        context.stop.last_words(move || {
            watch.finish();
            drop(print(report.render(json, Some("interrupted"))));
        });
    }
    let mut bench = Bench {
        args,
        started: context.started,
        progress: Progress::new(loader.batches_per_epoch() * (args.warmup_epochs + args.epochs)),
        loader,
        tally,
        digest: Xxh3::new(),
        read_back: Vec::new(),
        last_step: Event::done(),
        moves: MovesTold::default(),
    };
    let done = match args.model {
        Some(kind) => learn::run(&mut bench, kind, &place, context),
        None => bench.run().map_err(Failure::from),
    };
    bench.progress.clear();
    if context.stop.is_asked() && !context.stop.sum_up() {
        // The watchdog sums up, and ends the process.
        std::thread::park();
    }
    let done = if context.stop.is_asked() { Err(Failure::Interrupted) } else { done };
    let error = done.as_ref().err().map(Failure::words);
    watch.finish();
    print(report.render(json, error.as_deref()))?;
    done
}

impl BenchArgs {
    fn transform(&self) -> Box<dyn Transform> {
        let size = self.loader.size;
        match self.transform {
            Cut::Rrc => Box::new(RandomResizedCrop::new(size).flip(0.5)),
            Cut::Center => Box::new(ResizeCenterCrop::new((size * 8).div_ceil(7).min(SIDE_MAX), size)),
            Cut::Resize => Box::new(Resize::exact(size, size)),
        }
    }

    fn normalization(&self) -> Option<Normalize> {
        self.normalize.then_some(IMAGENET)
    }

    /// How many threads would decode, and how many would read.
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
        // Nobody trains here.
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
            let (budget, _) = ram_budget_here(self.loader.one()?.0);
            builder = builder.own_ram_budget(budget.saturating_sub(taken));
        }
        let built = builder
            .seed(self.seed)
            .shuffle(!self.no_shuffle)
            .drop_last(self.drop_last)
            .on_bad_sample(self.on_bad_sample)
            .bad_samples_max(self.max_bad)
            .rank(self.rank, self.world_size)
            .build();
        built.map_err(|error| data::refused_beside(error, &beside))
    }

    /// What it takes to see a batch that lies on a device.
    fn read_back_bytes(&self, device: &dyn Device) -> ByteCount {
        if self.no_digest || device.reads_slots() {
            return ByteCount::ZERO;
        }
        let spec = SampleSpec { height: self.loader.size, width: self.loader.size };
        ByteCount(spec.size_bytes(self.loader.output) as u64) * self.loader.batch_size as u64
    }
}

impl Bench<'_> {
    fn run(&mut self) -> Result<(), Error> {
        let BenchArgs { epochs, warmup_epochs, .. } = *self.args;
        // Epochs that are not measured come after the others in number, so that they change nothing but the time.
        for epoch in epochs..epochs + warmup_epochs {
            self.epoch(epoch, None)?;
        }
        let began = self.measuring_begins();
        for epoch in 0..epochs {
            self.epoch(epoch, Some(began))?;
            self.tally(|tally| tally.epochs += 1);
        }
        self.last_step.wait()?;
        let (took, now) = (began.elapsed(), self.loader.stats());
        self.tally(|tally| (tally.took, tally.used) = (Some(took), tally.used_until(&now)));
        Ok(())
    }

    /// What comes from here on counts.
    fn measuring_begins(&self) -> Instant {
        let before = self.loader.stats();
        let began = Instant::now();
        self.tally(|tally| (tally.began, tally.before) = (Some(began), Some(before)));
        began
    }

    fn feeding_begins(&self) {
        self.tally(|tally| {
            if tally.fed_since.is_none() {
                (tally.fed_since, tally.cpu_before) = (Some(Instant::now()), process_cpu_time());
            }
        });
    }

    fn epoch(&mut self, epoch: u64, began: Option<Instant>) -> Result<(), Error> {
        let mut batches = self.loader.epoch(epoch);
        self.feeding_begins();
        self.tally(|tally| tally.state = batches.state());
        while let Some(batch) = batches.next().transpose()? {
            let since_start = self.started.elapsed();
            self.step(&batch)?;
            if began.is_some() && !self.args.no_digest {
                self.add_to_digest(&batch)?;
            }
            let (digest, state) = (self.digest.digest(), batches.state());
            self.tally(|tally| {
                tally.state = state;
                tally.first_batch.get_or_insert(since_start);
                if began.is_some() {
                    tally.images += batch.len() as u64;
                    tally.batches += 1;
                    tally.digest = digest;
                }
            });
            self.show(epoch, &batch, began);
            if !self.args.json {
                self.moves.tell(&self.loader, |print| self.progress.aside(print));
            }
        }
        Ok(())
    }

    /// What a trainer would do with the batch: keep the device busy for a while.
    fn step(&mut self, batch: &Batch) -> Result<(), Error> {
        let _span = tracing::debug_span!("step", epoch = batch.epoch(), batch = batch.index()).entered();
        match batch.device_memory() {
            Some(memory) => {
                let step = self.loader.device().step(memory, batch.ready(), self.args.step())?;
                // A trainer is a step ahead of its device, and not more: what it waits for then is no batch.
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

    fn tally(&self, update: impl FnOnce(&mut Tally)) {
        update(&mut self.tally.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn show(&mut self, epoch: u64, batch: &Batch, began: Option<Instant>) {
        let (args, loader) = (self.args, &self.loader);
        let per_epoch = loader.batches_per_epoch();
        let before =
            if began.is_some() { (epoch + args.warmup_epochs) * per_epoch } else { (epoch - args.epochs) * per_epoch };
        let images = self.tally.lock().unwrap_or_else(PoisonError::into_inner).images;
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
