//! Setup of a rank: data, transforms, loaders, their shares of the budget, and batch sizes.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use feedstock::decode::{Limits, probe};
use feedstock::device::DeviceSpec;
use feedstock::train::{MemoryMeter, TrainConfig};
use feedstock::transform::{IMAGENET, RandomCrop, RandomResizedCrop, ResizeCenterCrop};
use feedstock::{ByteCount, DType, Loader, LoaderBuilder, RamBudget, SampleId, Source};

use super::super::data::{PROGRAM_OVERHEAD, split, with_other_accounts};
use super::super::failure::{Failure, chain, say};
use super::super::placement::Placement;
use super::super::synth::{self, SynthError, SynthSpec};
use super::super::table::counted;
use super::super::watch::WatchArgs;
use super::{TrainArgs, memory};

/// Images up to this side use the small network and samples of [`SMALL_SIZE`].
const SMALL_SIDE_MAX: u32 = 96;
const SMALL_SIZE: u32 = 32;
const LARGE_SIZE: u32 = 224;
/// Number of images whose headers are read to find the size.
const PROBED: u64 = 16;

/// Rank of a setup.
#[derive(Clone, Copy)]
pub(super) struct RankInfo {
    pub(super) rank: usize,
    pub(super) world_size: usize,
    /// Ranks in this process, which share its budgets.
    pub(super) threads: usize,
}

/// Data, loaders and configuration of a rank.
pub(super) struct Setup {
    pub(super) rank_info: RankInfo,
    pub(super) config: TrainConfig,
    /// True if the training budget was given; otherwise it is the free memory.
    pub(super) budget_is_set: bool,
    pub(super) meter: Arc<dyn MemoryMeter>,
    pub(super) folder: Arc<dyn Source>,
    pub(super) validation_folder: Option<Arc<dyn Source>>,
    pub(super) training: Loader,
    pub(super) validation: Option<Loader>,
    pub(super) budget: ByteCount,
    pub(super) notes: Vec<String>,
    pub(super) place: Placement,
}

impl Setup {
    pub(super) fn new(args: &TrainArgs, device: &DeviceSpec, rank_info: RankInfo) -> Result<Setup, Failure> {
        let place = Placement::choose(device)?;
        let mut notes: Vec<String> = place.note.clone().into_iter().collect();
        let (train, validate) = match &args.data {
            Some(data) => split(data, args.val.clone()),
            None => {
                let (train, test) = drawn(args.json)?;
                (train, Some(test))
            }
        };
        let folder = args.source.open(&train)?;
        let validation_folder = validate.map(|path| args.source.open(&path)).transpose()?;
        if let Some(validation) = &validation_folder {
            check_classes(&folder, validation)?;
        }
        let sides = sides(&folder);
        let size = args.size.unwrap_or(if largest(&sides) <= SMALL_SIDE_MAX { SMALL_SIZE } else { LARGE_SIZE });
        let resolved = args.ram_budget.resolve_here();
        let budget = ByteCount(resolved.bytes.0 / rank_info.threads as u64);
        let watched = args.watch.bytes();
        let loaders_budget = budget.saturating_sub(watched);
        notes.extend(resolved.note());
        let meter = memory::meter(&place);
        let free = memory::free(&place, budget, rank_info.threads);
        notes.extend(memory::precision_note(args.model_args.precision, &place)?);
        let mut config = args.config(folder.classes().len(), size, rank_info.world_size);
        let batch_size =
            memory::micro_batch(&args.model_args, &mut config, args.batch_size, free, &place, &*meter, &mut notes)?;

        let mut validating = None;
        let mut share = ByteCount::ZERO;
        if let (Some(folder), 0) = (&validation_folder, rank_info.rank) {
            let builder = common(args, folder, &place, batch_size)
                .transform(center(&sides, size))
                .shuffle(false)
                .ram_budget(RamBudget::PerProcess(loaders_budget));
            // Validation gets what its plan can use, at most a quarter of the budget where that suffices.
            let plan = builder
                .plan()
                .map_err(|error| with_other_accounts(error, &[("watch", watched, WatchArgs::BECAUSE)]))?;
            share = plan.knee.min(ByteCount(loaders_budget.0 / 4)).max(plan.minimum);
            validating = Some(builder.ram_budget(RamBudget::PerProcess(share)));
        }
        let training = common(args, &folder, &place, batch_size)
            .seed(args.seed)
            .ram_budget(RamBudget::PerProcess(loaders_budget.saturating_sub(share)));
        let training = training.shard(rank_info.rank as u64, rank_info.world_size as u64);
        let beside = [("validation", share, "the other loader"), ("watch", watched, WatchArgs::BECAUSE)];
        let training = match sides.iter().all(|&side| side == (size, size)) {
            true => training.transform(RandomCrop::new(size).padding(size / 8).flip(0.5)),
            false => training.transform(RandomResizedCrop::new(size).scale(0.35, 1.0).flip(0.5)),
        };
        let training = training.build().map_err(|error| with_other_accounts(error, &beside))?;
        let validation = validating.map(LoaderBuilder::build).transpose()?;
        notes.extend(training.notes().iter().chain(folder.notes()).cloned());
        if let Some(folder) = &validation_folder {
            notes.extend(folder.notes().iter().cloned());
        }
        // Without a given budget, the free memory is the budget.
        let budget_is_set = config.device_budget.is_some();
        config.device_budget = config.device_budget.or(free);
        Ok(Setup {
            rank_info,
            config,
            budget_is_set,
            meter,
            folder,
            validation_folder,
            training,
            validation,
            budget,
            notes,
            place,
        })
    }

    /// Number of batches of the whole run.
    pub(super) fn batches_in_all(&self) -> u64 {
        self.training.batches_per_epoch().saturating_mul(self.config.epochs)
    }

    /// All loaders.
    pub(super) fn loaders(&self) -> Vec<Loader> {
        [Some(self.training.clone()), self.validation.clone()].into_iter().flatten().collect()
    }

    /// Describes the data in one line.
    pub(super) fn describe(&self) -> String {
        let (images, classes) =
            (counted(self.folder.len(), "image"), counted(self.folder.classes().len() as u64, "class"));
        let training = format!("training on {images} in {classes} of {}", self.folder.title());
        match &self.validation_folder {
            Some(folder) => {
                format!("{training}, validating on {} of {}", counted(folder.len(), "image"), folder.title())
            }
            None => format!("{training}; no validation data (see --val)"),
        }
    }
}

/// Settings common to both loaders.
fn common(args: &TrainArgs, folder: &Arc<dyn Source>, place: &Placement, batch_size: usize) -> LoaderBuilder {
    let builder = Loader::builder(folder.clone())
        .device(place.device.clone())
        // A GPU works on one batch while the next step is enqueued.
        .batches_held(if place.gpu.is_some() { 2 } else { 1 })
        .process_overhead(PROGRAM_OVERHEAD)
        .batch_size(batch_size)
        .cpu_budget(args.cpu_budget)
        .dtype(DType::F32)
        .normalize(IMAGENET);
    let builder = args.decode.apply(builder);
    match args.workers {
        Some(workers) => builder.max_workers(workers),
        None => builder,
    }
}

/// Compares the class lists: labels are indices into them, so they must be equal.
fn check_classes(training: &dyn Source, validation: &dyn Source) -> Result<(), Failure> {
    let (ours, theirs) = (training.classes(), validation.classes());
    if ours == theirs {
        return Ok(());
    }
    let differs = match theirs.iter().find(|class| !ours.contains(class)) {
        Some(class) => format!("only the second has '{class}'"),
        None => {
            let missing = ours.iter().find(|class| !theirs.contains(class));
            format!("only the first has '{}'", missing.map_or("", String::as_str))
        }
    };
    Err(Failure::Data(format!(
        "{} and {} do not have the same class folders ({differs}): labels would not mean the same",
        training.title(),
        validation.title()
    )))
}

/// Width and height of some images at even distances. Unreadable ones are skipped here and reported by the loader.
fn sides(folder: &dyn Source) -> Vec<(u32, u32)> {
    let probed = PROBED.min(folder.len());
    let ids = (0..probed).map(|i| SampleId(i * folder.len() / probed));
    let side = |id| {
        if let Some(known) = folder.dimensions(id) {
            return Some(known);
        }
        let mut encoded = vec![0; usize::try_from(folder.encoded_bytes(id)).ok()?];
        folder.read_into(id, &mut encoded).ok()?;
        let header = probe(&encoded, &Limits::default()).ok()?;
        Some((header.width, header.height))
    };
    ids.filter_map(side).collect()
}

fn largest(sides: &[(u32, u32)]) -> u32 {
    sides.iter().map(|&(width, height)| width.max(height)).max().unwrap_or(0)
}

/// Validation transform.
fn center(sides: &[(u32, u32)], size: u32) -> ResizeCenterCrop {
    let whole = sides.iter().all(|&side| side == (size, size));
    ResizeCenterCrop::new(if whole { size } else { (size * 8).div_ceil(7) }, size)
}

/// Synthetic data set: made now, or found in the cache.
fn drawn(quiet: bool) -> Result<(PathBuf, PathBuf), Failure> {
    let spec = SynthSpec::default();
    let SynthSpec { seed, train_per_class, test_per_class, width, height } = spec;
    let name = format!("drawn-v1-seed{seed}-{width}x{height}-{train_per_class}-{test_per_class}");
    let make = |root: &Path| {
        let folder = root.join("feedstock").join(&name);
        synth::make(&folder, &spec).inspect(|report| {
            let what = if report.reused { "using" } else { "made" };
            if !quiet {
                say(
                    "note",
                    format_args!("no data given: {what} {} drawn images in {}", report.images, folder.display()),
                );
            }
        })
    };
    let made = match cache_root() {
        Some(root) => make(&root).or_else(|error| match error {
            // Falls back to the temporary folder if the cache folder is not writable.
            SynthError::Io { .. } => make(&env::temp_dir()),
            error => Err(error),
        }),
        None => make(&env::temp_dir()),
    };
    match made {
        Ok(report) => Ok((report.train, report.test)),
        Err(error @ SynthError::Io { .. }) => Err(Failure::Io(chain(&error))),
        Err(error) => Err(Failure::Data(chain(&error))),
    }
}

fn cache_root() -> Option<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))
}
