//! Owns `feedstock train`: the small trainer, fed by two loaders within one budget. It must never know how training is
//! done, only what it is asked for and what came of it.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use burn::tensor::backend::AutodiffBackend;
use clap::Args;

use feedstock::device::DeviceSpec;
use feedstock::train::{Cpu, Event, ModelKind, OptimizerKind, TrainConfig, TrainData, TrainError, train};
use feedstock::{CpuBudget, RamBudget, Seed};

use super::Context;
use super::data::{DecodeArgs, MovesTold, tell_notes};
use super::failure::{Failure, print};
use super::progress::Progress;
use super::watch::WatchArgs;

mod report;
mod setup;

use report::Story;
use setup::Setup;

/// The file in the checkpoint folder.
const CHECKPOINT: &str = "last.ckpt";

const MORE: &str = "\
A folder with train/ and val/ (or valid/, validation/, test/) in it is trained on the one and validated on the other. With no \
data, a small set of JPEG files is drawn, and kept in the cache folder for the next time. The RAM budget is for the \
loaders; what the model itself takes comes on top. Ctrl-C ends after the step under way, and says how far it got.

Examples:
  feedstock train
  feedstock train --data photos --ram-budget 2G --epochs 3 --checkpoint-dir run1
  feedstock train --data photos --ram-budget 2G --epochs 6 --checkpoint-dir run1 --resume";

/// Train a small ResNet on a folder of images
#[derive(Args)]
#[command(after_help = MORE)]
pub(crate) struct TrainArgs {
    /// Folder of class folders [default: a set of drawn images]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Folder of class folders to validate on
    #[arg(long, value_name = "DIR", requires = "data")]
    val: Option<PathBuf>,
    /// The most RAM for the loaders: 24G, 1.5GiB, 60% or auto
    #[arg(long, value_name = "SIZE", default_value_t = RamBudget::Auto)]
    ram_budget: RamBudget,
    /// How often each image is seen
    #[arg(long, value_name = "N", default_value_t = TrainConfig::new(1, 32).epochs, value_parser = clap::value_parser!(u64).range(1..=1 << 32))]
    epochs: u64,
    /// Samples in a batch
    #[arg(long, value_name = "N", default_value_t = 64)]
    batch_size: usize,
    /// Height and width of a sample [default: 32 for small pictures, else 224]
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(16..=1024))]
    size: Option<u32>,
    /// The network: auto, small or large
    #[arg(long, value_name = "MODEL", default_value = "auto")]
    model: Model,
    /// How weights follow gradients: sgd or adamw
    #[arg(long, value_name = "NAME", default_value_t = OptimizerKind::Sgd)]
    optimizer: OptimizerKind,
    /// The highest learning rate [default: what suits optimizer and batch size]
    #[arg(long, value_name = "RATE")]
    lr: Option<f64>,
    /// Seed of weights, order and crops
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// The most threads that decode [default: as many as --cpu-budget allows]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Cores for the loaders where --workers is not given: 6, 50% or auto (all but one, for the training thread)
    #[arg(long, value_name = "CORES", default_value_t = CpuBudget::Auto)]
    cpu_budget: CpuBudget,
    /// What trains: cuda:N, cpu, or auto (a GPU where there is one and the program is built for it, else cpu). With
    /// sim:step=20ms the CPU trains, and batches take the way that a GPU's would
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: DeviceSpec,
    #[command(flatten)]
    decode: DecodeArgs,
    #[command(flatten)]
    watch: WatchArgs,
    /// Write a checkpoint here after each epoch
    #[arg(long, value_name = "DIR")]
    checkpoint_dir: Option<PathBuf>,
    /// Go on from the checkpoint
    #[arg(long, requires = "checkpoint_dir")]
    resume: bool,
    /// End after this time: 90s, 10m, 2h
    #[arg(long, value_name = "TIME")]
    time_limit: Option<TimeLimit>,
    /// Print one JSON object an epoch, and one at the end
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy)]
enum Model {
    Auto,
    Kind(ModelKind),
}

impl FromStr for Model {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Model::Auto),
            _ => text.parse().map(Model::Kind).map_err(|error: String| error.replace("use ", "use auto, ")),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct TimeLimit(Duration);

impl FromStr for TimeLimit {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("'{text}' is no time: write a number and a unit, such as 90s, 10m or 2h");
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
    let checkpoint = args.checkpoint()?;
    let setup = Setup::new(args)?;
    if !args.json {
        tell_notes(&setup.notes);
        print(setup.describe())?;
    }
    let named = [("train", Some(&setup.training)), ("validation", setup.validation.as_ref())];
    let loaders: Vec<_> = named.into_iter().filter_map(|(name, loader)| Some((name, loader?))).collect();
    let watch = args.watch.begin(&loaders)?;
    let config = args.config(&setup, checkpoint);
    let story = Story::new(&setup, &config);
    let stop = Arc::new(AtomicBool::new(false));
    let json = args.json;
    {
        let (stop, loaders) = (stop.clone(), setup.loaders());
        context.stop.on_stop(move || {
            // In this order: what a loader says when it is called off is no failure of a run that is to end.
            stop.store(true, Ordering::SeqCst);
            loaders.iter().for_each(feedstock::Loader::stop);
        });
        let (story, watch) = (story.clone(), watch.clone());
        context.stop.last_words(move || {
            watch.finish();
            drop(print(story.render(json, Some("interrupted"))));
        });
    }
    let done = place_and_learn(args, context, &setup, &config, &story, &stop);
    watch.finish();
    done
}

/// Trains where the setup says.
fn place_and_learn(
    args: &TrainArgs,
    context: &Context,
    setup: &Setup,
    config: &TrainConfig,
    story: &Story,
    stop: &AtomicBool,
) -> Result<(), Failure> {
    #[cfg(feature = "burn-cuda")]
    if let Some(number) = setup.place.gpu {
        let device = burn::backend::cuda::CudaDevice::new(number as usize);
        return learn::<feedstock::train::Gpu>(args, context, setup, config, story, stop, &device);
    }
    learn::<Cpu>(args, context, setup, config, story, stop, &Default::default())
}

/// Trains on a backend, and tells how it goes.
fn learn<B: AutodiffBackend>(
    args: &TrainArgs,
    context: &Context,
    setup: &Setup,
    config: &TrainConfig,
    story: &Story,
    stop: &AtomicBool,
    device: &B::Device,
) -> Result<(), Failure> {
    let json = args.json;
    let mut progress = Progress::new(setup.training.batches_per_epoch().saturating_mul(args.epochs));
    let data = TrainData::<B>::from_loaders(setup.training.clone(), setup.validation.clone(), device);
    let began = Instant::now();
    let mut printed = Ok(());
    let mut out_of_time = false;
    let mut moves = MovesTold::default();
    let outcome = train(config, &data, device, stop, |event| {
        story.hear(&event);
        match event {
            Event::Progress(step) => {
                let done = step.epoch * setup.training.batches_per_epoch() + step.step;
                progress.at(done, || story.progress_line(step));
            }
            Event::Epoch(epoch) => {
                let line = story.epoch_line(epoch, json);
                progress.aside(|| printed = print(line));
            }
            _ => {}
        }
        if !json {
            moves.tell(&setup.training, &progress);
        }
        out_of_time |= args.time_limit.is_some_and(|limit| began.elapsed() >= limit.0);
        if out_of_time || printed.is_err() {
            stop.store(true, Ordering::SeqCst);
        }
    });
    progress.clear();
    if context.stop.is_asked() && !context.stop.sum_up() {
        std::thread::park();
    }
    printed?;
    let ended = match &outcome {
        _ if context.stop.is_asked() => Some("interrupted".to_owned()),
        Err(error) => Some(error.to_string()),
        Ok(_) if out_of_time => Some("the time limit was reached".to_owned()),
        Ok(_) => None,
    };
    if story.has_begun() {
        print(story.render(json, ended.as_deref()))?;
    }
    match outcome {
        _ if context.stop.is_asked() => Err(Failure::Interrupted),
        Err(error) => Err(error.into()),
        Ok(_) => Ok(()),
    }
}

impl TrainArgs {
    fn config(&self, setup: &Setup, checkpoint: Option<PathBuf>) -> TrainConfig {
        let mut config = TrainConfig::new(setup.training.classes().len(), setup.size).optimizer(self.optimizer);
        if let Model::Kind(kind) = self.model {
            config.model.kind = kind;
        }
        // The default suits batches of 64; a batch of twice as many takes steps of twice the length.
        config.schedule.peak = self.lr.unwrap_or(config.schedule.peak * self.batch_size as f64 / 64.0);
        config.epochs = self.epochs;
        config.seed = Seed(self.seed);
        config.checkpoint = checkpoint;
        config.resume = self.resume;
        config
    }

    /// Where the checkpoint goes. One that is there already is gone on from, or left alone.
    fn checkpoint(&self) -> Result<Option<PathBuf>, Failure> {
        let Some(folder) = &self.checkpoint_dir else { return Ok(None) };
        let path = folder.join(CHECKPOINT);
        if !self.resume && path.exists() {
            return Err(Failure::Usage(format!(
                "{} is there already: go on from it with --resume, remove it, or name another folder",
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
            TrainError::Config(_) | TrainError::Diverged { .. } => Failure::Usage(error.to_string()),
            TrainError::Io { .. } => Failure::Io(error.to_string()),
            _ => Failure::Data(error.to_string()),
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
