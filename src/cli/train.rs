//! `feedstock train`: arguments and reports of the small trainer, fed by two loaders within one budget.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;

use feedstock::device::DeviceSpec;
use feedstock::rng::Seed;
use feedstock::train::{ModelKind, ProcessGroup, TrainConfig, TrainError, TrainEvent};
use feedstock::{CpuBudget, Loader, RamBudget};

use super::Context;
use super::data::{DecodeArgs, ResizeReporter, SourceArgs, tell_notes};
use super::failure::{Failure, chain, print};
use super::model::{Model, ModelArgs, pruning};
use super::watch::WatchArgs;

mod events;
mod log;
mod memory;
mod observers;
mod ranks;
mod rates;
mod report;
mod setup;
mod snapshot;
mod view;

use observers::{ObserverArgs, Observers};
use rates::SnapshotBuilder;
use report::{RunSummary, epoch_json};
use setup::{RankInfo, Setup};

/// Name of the file in the checkpoint folder.
const CHECKPOINT: &str = "last.ckpt";

const MORE: &str = "\
A folder that contains train/ and val/ (or valid/, validation/, test/) is split into training and validation data. \
Without --data a small set of JPEG files is drawn and kept in the cache folder. The RAM budget is for the loaders; \
--vram-budget is for training itself. With the device sim (sim:step=20ms) batches pass through a \
simulated GPU, and the CPU trains.

Examples:
  feedstock train
  feedstock train --data photos --ram-budget 2G --epochs 6 --checkpoint-dir run1 --resume
  feedstock train --data photos --model resnet18 --vram-budget 8G --micro-batch auto";

/// Train a small network on a folder of images
#[derive(Args)]
#[command(after_help = MORE)]
pub(crate) struct TrainArgs {
    /// Folder of class folders, or shards [default: drawn images]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Validation data
    #[arg(long, value_name = "DIR", requires = "data")]
    val: Option<PathBuf>,
    /// RAM budget of the loaders: 24G, 60% or auto
    #[arg(long, value_name = "SIZE", default_value_t = RamBudget::Auto)]
    ram_budget: RamBudget,
    /// Number of epochs
    #[arg(
        long, value_name = "N", default_value_t = TrainConfig::new(ModelKind::Small, 1, 32).epochs,
        value_parser = clap::value_parser!(u64).range(1..=1 << 32)
    )]
    epochs: u64,
    /// Samples in a batch
    #[arg(long, value_name = "N", default_value_t = 64)]
    batch_size: usize,
    /// Height and width of a sample [default: 32 if small, else 224]
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(16..=1024))]
    size: Option<u32>,
    /// Model: auto, small, large, resnet18 or vit-tiny
    #[arg(long, value_name = "MODEL", default_value = "auto")]
    model: Model,
    /// Peak learning rate [default: by batch size]
    #[arg(long, value_name = "RATE")]
    lr: Option<f64>,
    /// Seed of weights, order and crops
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Maximum number of decoding threads [default: by --cpu-budget]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Cores of the loaders: 6, 50% or auto (all but one)
    #[arg(long, value_name = "CORES", default_value_t = CpuBudget::Auto)]
    cpu_budget: CpuBudget,
    /// Training device: cuda:N, cpu, sim or auto
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: DeviceSpec,
    /// Data parallel training on several devices: 0,1 or cpu,cpu
    #[arg(long, value_name = "LIST", conflicts_with = "device")]
    devices: Option<String>,
    #[command(flatten)]
    decode: DecodeArgs,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    look: ObserverArgs,
    /// Start from the weights of this checkpoint
    #[arg(long, value_name = "FILE")]
    init: Option<PathBuf>,
    /// Folder of the checkpoint, written after each epoch
    #[arg(long, value_name = "DIR")]
    checkpoint_dir: Option<PathBuf>,
    /// Also write a checkpoint every N steps
    #[arg(long, value_name = "STEPS", default_value_t = 0, hide_default_value = true, requires = "checkpoint_dir")]
    checkpoint_every: u64,
    /// Resume from the checkpoint
    #[arg(long, requires = "checkpoint_dir")]
    resume: bool,
    /// Stop after this time: 90s, 10m, 2h
    #[arg(long, value_name = "TIME")]
    time_limit: Option<TimeLimit>,
    /// Print a JSON object after each epoch and at the end
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model_args: ModelArgs,
    /// Prune this share of the channels inside blocks
    #[arg(long, value_name = "SHARE")]
    prune: Option<f64>,
    /// Number of epochs before pruning [default: half of them]
    #[arg(long, value_name = "N", requires = "prune")]
    prune_after: Option<u64>,
    #[command(flatten)]
    source: SourceArgs,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct TimeLimit(Duration);

impl FromStr for TimeLimit {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("invalid time '{text}': expected a number and a unit, such as 90s, 10m or 2h");
        let scale = match text.chars().last() {
            Some('s') => 1.0,
            Some('m') => 60.0,
            Some('h') => 3600.0,
            _ => return Err(refused()),
        };
        let number: f64 = text[..text.len() - 1].trim().parse().map_err(|_| refused())?;
        Duration::try_from_secs_f64(number * scale).map(TimeLimit).map_err(|_| refused())
    }
}

pub(crate) fn run(args: &TrainArgs, context: &Context) -> Result<(), Failure> {
    let checkpoint = args.checkpoint_file()?;
    let (group, devices) = ranks::of(args)?;
    let mut jobs = Vec::new();
    for (thread, device) in devices.iter().enumerate() {
        let rank_info = RankInfo { rank: group.rank(thread), world_size: group.world_size(), threads: devices.len() };
        let mut setup = Setup::new(args, device, rank_info)?;
        setup.config.checkpoint.clone_from(&checkpoint);
        jobs.push(setup);
    }
    let setup = &jobs[0];
    if !args.json && setup.rank_info.rank == 0 {
        tell_notes(&setup.notes);
        print(setup.describe())?;
    }
    let named = [("train", Some(&setup.training)), ("validation", setup.validation.as_ref())];
    let loaders: Vec<_> = named.into_iter().filter_map(|(name, loader)| Some((name, loader?))).collect();
    let watch = args.watch.begin(&loaders)?;
    let summary = RunSummary::new(setup);
    let stop = Arc::new(AtomicBool::new(false));
    let json = args.json;
    // Rank 0 alone reports and writes files.
    let reports = setup.rank_info.rank == 0;
    let look = if reports { args.look.clone() } else { ObserverArgs::default() };
    let observers = look.begin(json || !reports, args.resume, setup.batches_in_all())?;
    {
        let loaders: Vec<Loader> = jobs.iter().flat_map(Setup::loaders).collect();
        let alone = group.world_size() == 1;
        let stop = stop.clone();
        context.stop.on_stop(move || {
            // The flag is set first: the error of a stopped loader is then no failure of the run.
            stop.store(true, Ordering::SeqCst);
            // Ranks end together after the same step, and each needs its batch for it: loaders go on.
            if alone {
                loaders.iter().for_each(Loader::stop);
            }
        });
        let (summary, watch, observers) = (summary.clone(), watch.clone(), observers.clone());
        context.stop.on_timeout(move || {
            observers.clear();
            watch.finish();
            if !reports {
                return;
            }
            observers.end(&summary.end_json(Some("interrupted")));
            drop(print(summary.render(json, Some("interrupted"))));
        });
    }
    let done = train_ranks(args, context, &jobs, &group, Reporting { summary: &summary, observers: &observers }, &stop);
    watch.finish();
    done
}

/// Receivers of a run's events.
#[derive(Clone, Copy)]
struct Reporting<'a> {
    /// Collects the summary.
    summary: &'a RunSummary,
    /// Live view, log and TensorBoard file.
    observers: &'a Observers,
}

/// Trains as every rank of this process, one thread each. The first one reports.
fn train_ranks(
    args: &TrainArgs,
    context: &Context,
    jobs: &[Setup],
    group: &ProcessGroup,
    reporting: Reporting<'_>,
    stop: &AtomicBool,
) -> Result<(), Failure> {
    let (first, others) = jobs.split_first().ok_or(Failure::Bug)?;
    std::thread::scope(|scope| {
        let others: Vec<_> = others
            .iter()
            .enumerate()
            .map(|(n, job)| scope.spawn(move || ranks::train_rank(job, group, n + 1, stop, &mut |_| ())))
            .collect();
        let told = lead(args, context, first, group, reporting, stop);
        // The error that ended a rank says more than that the rank is gone.
        let reasons = others.into_iter().filter_map(|rank| rank.join().ok()?.err());
        match reasons.into_iter().find(|reason| !matches!(reason, TrainError::Collective(_))) {
            Some(reason) if !stop.load(Ordering::SeqCst) => Err(reason.into()),
            _ => told,
        }
    })
}

/// Trains as the first rank of this process and reports.
fn lead(
    args: &TrainArgs,
    context: &Context,
    setup: &Setup,
    group: &ProcessGroup,
    reporting: Reporting<'_>,
    stop: &AtomicBool,
) -> Result<(), Failure> {
    let json = args.json;
    let Reporting { summary, observers } = reporting;
    let reports = setup.rank_info.rank == 0;
    let mut snapshots = SnapshotBuilder::new(setup.loaders(), setup.budget, setup.config.device_budget);
    let began = Instant::now();
    let mut printed = Ok(());
    let mut out_of_time = false;
    let mut resizes = ResizeReporter::default();
    let outcome = ranks::train_rank(setup, group, 0, stop, &mut |event| {
        summary.hear(&event);
        match event {
            _ if !reports => {}
            TrainEvent::Started { epoch, batches, .. } => {
                let steps = (epoch * setup.training.batches_per_epoch() + batches) / setup.config.accumulate;
                observers.start(steps, &summary.start_json());
            }
            TrainEvent::Progress(step) => observers.step(&snapshots.snapshot(step)),
            TrainEvent::Epoch(epoch) => {
                observers.step(&snapshots.snapshot(&epoch.training));
                observers.epoch(&snapshots.end(epoch), &epoch_json(epoch));
                let line = summary.epoch_line(epoch, json);
                observers.aside(|| printed = print(line));
            }
            TrainEvent::Memory(report) if !json => observers.aside(|| printed = print(summary.memory_line(report))),
            TrainEvent::Pruned(report) if !json => observers.aside(|| printed = print(summary.prune_line(report))),
            _ => {}
        }
        if !json && reports {
            resizes.tell(&setup.training, |print| observers.aside(print));
        }
        out_of_time |= args.time_limit.is_some_and(|limit| began.elapsed() >= limit.0);
        if out_of_time || printed.is_err() {
            stop.store(true, Ordering::SeqCst);
        }
    });
    observers.clear();
    if context.stop.is_requested() && !context.stop.claim_summary() {
        std::thread::park();
    }
    printed?;
    if let Err(TrainError::OutOfMemory(refused)) = &outcome
        && refused.phase.is_none()
    {
        // Nothing was trained, so there is no summary.
        return Err(Failure::Budget(refused.to_string()));
    }
    let ended = match &outcome {
        _ if context.stop.is_requested() => Some("interrupted".to_owned()),
        Err(error) => Some(chain(&error).lines().next().unwrap_or_default().to_owned()),
        Ok(()) if out_of_time => Some("the time limit was reached".to_owned()),
        Ok(()) => None,
    };
    if summary.has_begun() && reports {
        observers.end(&summary.end_json(ended.as_deref()));
        print(summary.render(json, ended.as_deref()))?;
    }
    match outcome {
        _ if context.stop.is_requested() => Err(Failure::Interrupted),
        Err(error) => Err(error.into()),
        Ok(()) => Ok(()),
    }
}

impl TrainArgs {
    /// Builds the training configuration, except what depends on the batches.
    fn config(&self, classes: usize, side: u32, world_size: usize) -> TrainConfig {
        let mut config = self.model_args.config(self.model.kind(side), classes, side);
        // The default suits batches of 64; the rate scales linearly with the batch size.
        let images = (self.batch_size * world_size) as f64;
        config.schedule.peak = self.lr.unwrap_or(config.schedule.peak * images / 64.0);
        config.epochs = self.epochs;
        config.seed = Seed(self.seed);
        config.prune = pruning(self.prune, self.prune_after, self.epochs);
        config.start_from.clone_from(&self.init);
        config.checkpoint_every = self.checkpoint_every;
        config.resume = self.resume;
        config
    }

    /// Path of the checkpoint.
    ///
    /// # Errors
    /// A usage error if one exists and `--resume` is not given.
    fn checkpoint_file(&self) -> Result<Option<PathBuf>, Failure> {
        let Some(folder) = &self.checkpoint_dir else { return Ok(None) };
        let path = folder.join(CHECKPOINT);
        if !self.resume && path.exists() {
            return Err(Failure::Usage(format!(
                "{} exists already: resume from it with --resume, remove it, or choose another folder",
                path.display()
            )));
        }
        Ok(Some(path))
    }
}

impl From<TrainError> for Failure {
    fn from(error: TrainError) -> Self {
        match error {
            TrainError::Data(error) => error.into(),
            TrainError::Config(_) | TrainError::Diverged { .. } => Failure::Usage(chain(&error)),
            TrainError::Io { .. } => Failure::Io(chain(&error)),
            TrainError::OutOfMemory(_) => Failure::Budget(chain(&error)),
            _ => Failure::Data(chain(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_parse_as_people_write_them() {
        for (text, seconds) in [("90s", 90.0), ("10m", 600.0), ("1.5h", 5400.0), ("0s", 0.0)] {
            assert_eq!(text.parse(), Ok(TimeLimit(Duration::from_secs_f64(seconds))), "{text}");
        }
        for text in ["", "s", "10", "10d", "-1s", "nans", "1e999h", "ö"] {
            assert!(text.parse::<TimeLimit>().is_err(), "{text}");
        }
    }
}
