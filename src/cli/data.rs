//! Arguments shared by all verbs that build a loader, the builder made from them, and reports on data and bad samples.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use feedstock::decode::{Options, Quality};
use feedstock::device::{self, Device, DeviceSpec};
use feedstock::plan::{Profile, Row};
pub(crate) use feedstock::source::readable;
#[cfg(feature = "store")]
use feedstock::source::store::{IN_FLIGHT, IN_FLIGHT_MAX};
use feedstock::source::{OpenOptions, SHARD_EXTENSIONS, SHUFFLE_BUFFER};
use feedstock::stats::GovernorLog;
use feedstock::tensor::SIDE_MAX;
use feedstock::transform::RandomResizedCrop;
use feedstock::{
    BadSample, ByteCount, CpuBudget, DType, DamagedSample, Error, Layout, Loader, LoaderBuilder, Plan, RamBudget,
    SampleId, Source, source,
};

use super::failure::{Failure, say};
use super::table::counted;

/// Resident size of this program without payload: code, runtime, allocator. Measured from outside (`docs/BUDGET.md`).
/// Most of it is code, and how much of that is resident is the system's choice: where the page cache holds the program
/// in large folios, as after a copy, some 2 MiB more than as it was linked.
pub(crate) const PROGRAM_OVERHEAD: ByteCount = ByteCount(15 << 20);

/// Names of validation folders beside `train`.
const VALIDATION_NAMES: [&str; 4] = ["val", "valid", "validation", "test"];

/// Decoding options.
#[derive(Args, Clone)]
pub(crate) struct DecodeArgs {
    /// Decode quality: exact, or fast for large images
    #[arg(long, value_name = "QUALITY", default_value_t = Quality::Exact)]
    quality: Quality,
    /// Ignore EXIF orientation
    #[arg(long)]
    no_orient: bool,
    /// Truncated or damaged JPEG: fail or accept
    #[arg(long, value_enum, hide_possible_values = true, value_name = "POLICY", default_value_t = Truncated::Fail)]
    truncated: Truncated,
    /// Background color of transparent pixels
    #[arg(long, value_name = "COLOR", default_value = "#000000")]
    background: Background,
}

/// Policy for damaged and truncated JPEG files.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Truncated {
    Fail,
    Accept,
}

/// Background color: red, green, blue.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Background([u8; 3]);

impl FromStr for Background {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix('#').filter(|digits| digits.len() == 6);
        let digits = digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let value = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let [_, colors @ ..] =
            value.ok_or_else(|| format!("unknown color '{text}': expected #rrggbb, such as #ffffff"))?.to_be_bytes();
        Ok(Background(colors))
    }
}

impl Default for DecodeArgs {
    fn default() -> Self {
        DecodeArgs {
            quality: Quality::Exact,
            no_orient: false,
            truncated: Truncated::Fail,
            background: Background([0; 3]),
        }
    }
}

impl DecodeArgs {
    pub(crate) fn options(&self) -> Options {
        let mut options = Options::default();
        options.quality = self.quality;
        options.apply_exif_orientation = !self.no_orient;
        options.accept_truncated = self.truncated == Truncated::Accept;
        options.background = self.background.0;
        options
    }

    /// Applies the options to a builder.
    pub(crate) fn apply(&self, builder: LoaderBuilder) -> LoaderBuilder {
        let Options {
            quality, apply_exif_orientation: orient, accept_truncated, background: [red, green, blue], ..
        } = self.options();
        builder
            .quality(quality)
            .apply_exif_orientation(orient)
            .accept_truncated(accept_truncated)
            .background(red, green, blue)
    }
}

/// Options for opening data.
#[derive(Args, Clone)]
pub(crate) struct SourceArgs {
    /// Shuffle buffer for data that is read in blocks
    #[arg(long, value_name = "SIZE", default_value_t = SHUFFLE_BUFFER)]
    shuffle_buffer: ByteCount,
    /// Concurrent requests to an object store
    #[cfg(feature = "store")]
    #[arg(
        long, value_name = "N", default_value_t = IN_FLIGHT as u32,
        value_parser = clap::value_parser!(u32).range(1..=IN_FLIGHT_MAX as i64)
    )]
    store_requests: u32,
    /// Folder that caches objects of a store
    #[cfg(feature = "store")]
    #[arg(long, value_name = "DIR")]
    store_cache: Option<PathBuf>,
    /// Maximum size of the cache
    #[cfg(feature = "store")]
    #[arg(long, value_name = "SIZE", default_value = "64G", requires = "store_cache")]
    store_cache_size: ByteCount,
}

impl Default for SourceArgs {
    fn default() -> Self {
        SourceArgs {
            shuffle_buffer: SHUFFLE_BUFFER,
            #[cfg(feature = "store")]
            store_requests: IN_FLIGHT as u32,
            #[cfg(feature = "store")]
            store_cache: None,
            #[cfg(feature = "store")]
            store_cache_size: ByteCount(64 << 30),
        }
    }
}

impl SourceArgs {
    /// Opens data: lists a folder, indexes shards.
    pub(crate) fn open(&self, path: &Path) -> Result<Arc<dyn Source>, Failure> {
        let options = OpenOptions::new().shuffle_buffer(self.shuffle_buffer);
        #[cfg(feature = "store")]
        let options = options.store(source::store::StoreOptions {
            in_flight: self.store_requests as usize,
            cache: match &self.store_cache {
                Some(folder) => Some(source::store::DiskCache::open(folder, self.store_cache_size)?),
                None => None,
            },
            ..Default::default()
        });
        Ok(source::open_with(path, &options)?)
    }
}

/// The data and the batches made of it.
#[derive(Args, Clone)]
pub(crate) struct BatchArgs {
    /// Folder of class folders, or shards
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Number of samples in a batch
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) batch_size: usize,
    /// Height and width of a sample
    #[arg(long, value_name = "PIXELS", default_value_t = 224,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(SIDE_MAX)))]
    pub(crate) size: u32,
    /// Element type of a batch: u8, f32, bf16 or f16
    #[arg(long, value_name = "TYPE", default_value_t = DType::U8)]
    pub(crate) dtype: DType,
    /// Order of a batch's axes: nchw or nhwc
    #[arg(long, value_name = "AXES", default_value_t = Layout::Nchw)]
    pub(crate) layout: Layout,
}

/// The configuration of a loader.
#[derive(Args, Clone)]
pub(crate) struct LoaderArgs {
    #[command(flatten)]
    pub(crate) batch: BatchArgs,
    /// RAM budget: 24G, 60% or auto (bench: a list)
    #[arg(long, value_name = "SIZE", default_value = "auto", value_delimiter = ',')]
    pub(crate) ram_budget: Vec<RamBudget>,
    /// Maximum decoding threads (bench: a list) [default: by cores]
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pub(crate) workers: Vec<usize>,
    /// Cores to keep busy: 6, 50% or auto [default: auto; bench: 100%]
    #[arg(long, value_name = "CORES")]
    pub(crate) cpu_budget: Option<CpuBudget>,
    /// Keep memory under pressure instead of giving it back
    #[arg(long)]
    pub(crate) no_governor: bool,
    /// Maximum number of batches prepared ahead [default: as needed]
    #[arg(long, value_name = "N")]
    pub(crate) prefetch: Option<usize>,
    /// Device of the batches: cuda:N, cpu, sim or auto
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub(crate) device: DeviceSpec,
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    #[command(flatten)]
    pub(crate) decode: DecodeArgs,
}

impl LoaderArgs {
    /// Opens the data: lists a folder, indexes shards.
    pub(crate) fn open(&self) -> Result<Arc<dyn Source>, Failure> {
        self.source.open(&self.batch.data)
    }

    /// Returns the budget and the number of workers of a single loader.
    ///
    /// # Errors
    /// A usage error if there are several of either.
    pub(crate) fn one(&self) -> Result<(RamBudget, Option<usize>), Failure> {
        match (&self.ram_budget[..], &self.workers[..]) {
            (&[budget], &[]) => Ok((budget, None)),
            (&[budget], &[workers]) => Ok((budget, Some(workers))),
            _ => Err(Failure::Usage(
                "--ram-budget and --workers take one value here: only bench accepts lists".to_owned(),
            )),
        }
    }

    /// Builds a loader from the arguments, with the training transform, and opens its device.
    pub(crate) fn builder(&self, folder: &Arc<dyn Source>) -> Result<(LoaderBuilder, Arc<dyn Device>), Failure> {
        let device = device::open(&self.device)?;
        Ok((self.builder_on(folder, &device)?, device))
    }

    /// Builds a loader on a device that is already open.
    pub(crate) fn builder_on(
        &self,
        folder: &Arc<dyn Source>,
        device: &Arc<dyn Device>,
    ) -> Result<LoaderBuilder, Failure> {
        let (budget, workers) = self.one()?;
        let mut builder = Loader::builder(folder.clone())
            .ram_budget(budget)
            .process_overhead(PROGRAM_OVERHEAD)
            .batch_size(self.batch.batch_size)
            .transform(RandomResizedCrop::new(self.batch.size).flip(0.5))
            .dtype(self.batch.dtype)
            .layout(self.batch.layout)
            .cpu_budget(self.cpu_budget.unwrap_or_default())
            .adapt_to_pressure(!self.no_governor)
            .device(device.clone());
        builder = self.decode.apply(builder);
        if let Some(workers) = workers {
            builder = builder.max_workers(workers);
        }
        if let Some(prefetch) = self.prefetch {
            builder = builder.prefetch(prefetch);
        }
        Ok(builder)
    }
}

/// Splits `data` into training and validation data: by the names of its folders, or by the prefixes of its shards.
pub(crate) fn split(data: &Path, validation: Option<PathBuf>) -> (PathBuf, Option<PathBuf>) {
    let entries = |path: &Path| -> Vec<fs::DirEntry> { fs::read_dir(path).into_iter().flatten().flatten().collect() };
    let extension = |name: &str| SHARD_EXTENSIONS.iter().find(|one| name.ends_with(&format!(".{one}"))).copied();
    let is_shard = |name: &str| extension(name).is_some();
    let holds_data = |path: &Path| {
        entries(path).iter().any(|entry| entry.path().is_dir() || is_shard(&entry.file_name().to_string_lossy()))
    };
    let folders = |path: &Path| entries(path).iter().filter(|entry| entry.path().is_dir()).count();
    let train = data.join("train");
    let beside = VALIDATION_NAMES.iter().map(|name| data.join(name)).find(|path| holds_data(path));
    match (beside, validation) {
        (Some(beside), None) if holds_data(&train) => return (train, Some(beside)),
        (Some(_), validation) if holds_data(&train) => return (train, validation),
        // A lone folder called `train` is the training set, not a class.
        (None, validation) if holds_data(&train) && folders(data) == 1 => return (train, validation),
        (_, Some(validation)) => return (data.to_owned(), Some(validation)),
        _ => {}
    }
    let names: Vec<String> = entries(data)
        .iter()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| is_shard(name))
        .collect();
    let shards = |front: &str| {
        let one = names.iter().find(|name| name.starts_with(front))?;
        Some(data.join(format!("{front}*.{}", extension(one)?)))
    };
    match (shards("train"), VALIDATION_NAMES.iter().find_map(|name| shards(name))) {
        (Some(train), Some(beside)) => (train, Some(beside)),
        _ => (data.to_owned(), None),
    }
}

/// Extends a loader's budget refusal by the accounts that share its budget.
pub(crate) fn with_other_accounts(error: Error, others: &[(&'static str, ByteCount, &str)]) -> Failure {
    let Error::OverBudget(mut refused) = error else { return error.into() };
    for &(account, bytes, because) in others.iter().filter(|(_, bytes, _)| *bytes > ByteCount::ZERO) {
        refused = refused.with_row(Row::other(account, bytes, because));
    }
    Failure::Library(Error::OverBudget(refused))
}

/// Number of batches prepared ahead of the consumer's.
pub(crate) fn prefetch_depth(plan: &Plan) -> usize {
    plan.slots - usize::from(plan.outputs == 0)
}

/// Prints notes before a run.
pub(crate) fn tell_notes<T: std::fmt::Display>(notes: impl IntoIterator<Item = T>) {
    notes.into_iter().for_each(|note| say("note", note));
}

/// Prints each resize of the governor once while a run is under way.
#[derive(Default)]
pub(crate) struct ResizeReporter {
    told: u64,
    looked: Option<Instant>,
}

impl ResizeReporter {
    /// Interval between two looks at the log.
    const EVERY: Duration = Duration::from_millis(100);

    pub(crate) fn tell(&mut self, loader: &Loader, aside: impl FnOnce(&dyn Fn())) {
        if self.looked.is_some_and(|looked| looked.elapsed() < Self::EVERY) {
            return;
        }
        self.looked = Some(Instant::now());
        let log = loader.governor_log();
        let new = usize::try_from(log.made - self.told).unwrap_or(usize::MAX).min(log.latest.len());
        self.told = log.made;
        if new > 0 {
            aside(&|| log.latest[log.latest.len() - new..].iter().for_each(|one| say("memory", one)));
        }
    }
}

/// The governor's resizes as JSON.
pub(crate) fn governor_json(log: &GovernorLog) -> Value {
    let one = |one: &feedstock::stats::ResizeEvent| {
        json!({
            "at_s": one.at.as_secs_f64(),
            "level": one.level,
            "workers": one.workers,
            "slots": one.slots,
            "reason": one.reason.to_string(),
        })
    };
    json!({ "resizes": log.made, "level": log.level, "latest": log.latest.iter().map(one).collect::<Value>() })
}

/// The governor's resizes in one line; `None` if there were none.
pub(crate) fn governor_text(log: &GovernorLog) -> Option<String> {
    let last = log.latest.last()?;
    Some(format!("{} by the governor, the last at {last}", counted(log.made, "resize")))
}

/// Unusable entries of a source and bad samples of a run.
pub(crate) struct BadReport {
    entries: Vec<Entry>,
    /// Number of unusable entries beyond the listed ones.
    uncounted: u64,
}

struct Entry {
    id: Option<SampleId>,
    path: String,
    stage: &'static str,
    code: &'static str,
    cause: String,
}

impl BadReport {
    pub(crate) fn new(folder: &dyn Source, bad: &[BadSample]) -> Self {
        let unreadable = folder.unreadable().iter().map(|entry| Entry {
            id: None,
            path: readable(entry.path.as_os_str().as_encoded_bytes()),
            stage: "index",
            code: "unusable",
            cause: entry.cause.clone(),
        });
        let bad = bad.iter().map(|bad| Entry {
            id: Some(bad.id),
            path: bad.path.clone(),
            stage: bad.stage.name(),
            code: bad.error.kind().code(),
            cause: bad.cause(),
        });
        BadReport {
            uncounted: folder.unreadable_count() - folder.unreadable().len() as u64,
            entries: unreadable.chain(bad).collect(),
        }
    }

    pub(crate) fn json(&self) -> Value {
        let entry = |entry: &Entry| {
            let Entry { id, path, stage, code, cause } = entry;
            json!({ "id": id.map(|id| id.0), "path": path, "stage": stage, "code": code, "cause": cause })
        };
        self.entries.iter().map(entry).collect()
    }

    /// One line an entry; empty if there is none.
    pub(crate) fn text(&self) -> String {
        let mut lines: Vec<String> = Vec::new();
        if !self.entries.is_empty() {
            lines.push(format!("{} could not be used:", counted(self.entries.len() as u64 + self.uncounted, "file")));
        }
        lines
            .extend(self.entries.iter().map(|Entry { path, stage, cause, .. }| format!("  {path} ({stage}): {cause}")));
        if self.uncounted > 0 {
            lines.push(format!("  and {} more that could not be indexed", self.uncounted));
        }
        lines.join("\n")
    }
}

/// Accepted damaged samples as JSON.
pub(crate) fn damaged_json(damaged: &[DamagedSample]) -> Value {
    damaged.iter().map(|one| json!({ "id": one.id.0, "path": one.path, "warnings": one.warnings })).collect()
}

/// One line an accepted damaged sample; empty if there is none.
pub(crate) fn damaged_text(damaged: &[DamagedSample]) -> String {
    if damaged.is_empty() {
        return String::new();
    }
    let mut lines = vec![format!("{} damaged, and used as far as it goes:", counted(damaged.len() as u64, "file"))];
    lines.extend(damaged.iter().map(|one| format!("  {one}")));
    lines.join("\n")
}

/// Describes the data in one line.
pub(crate) fn describe(folder: &dyn Source, profile: &Profile) -> String {
    format!(
        "{} in {}, {} as stored (half under {}, 99 % under {}, the largest {})",
        counted(folder.len(), "sample"),
        counted(folder.classes().len() as u64, "class"),
        profile.encoded_total,
        profile.encoded_p50,
        profile.encoded_p99,
        profile.encoded_max
    )
}

pub(crate) fn profile_json(folder: &dyn Source, profile: &Profile) -> Value {
    json!({
        "samples": profile.samples,
        "classes": folder.classes().len(),
        "index_bytes": folder.index_bytes(),
        "encoded_total_bytes": profile.encoded_total.0,
        "encoded_p50_bytes": profile.encoded_p50.0,
        "encoded_p99_bytes": profile.encoded_p99.0,
        "encoded_max_bytes": profile.encoded_max.0,
        "headers": profile.headers,
        "headers_bad": profile.headers_bad,
        "working_p50_bytes": profile.working_p50.0,
        "working_p99_bytes": profile.working_p99.0,
        "working_max_bytes": profile.working_max.0,
        "unreadable": folder.unreadable_count(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colors_have_one_syntax() {
        assert_eq!("#0A64ff".parse(), Ok(Background([10, 100, 255])));
        for wrong in ["", "#", "000000", "#fff", "#12345g", "#+12345", "#1234567", "white"] {
            let error = wrong.parse::<Background>().unwrap_err();
            assert_eq!(error, format!("unknown color '{wrong}': expected #rrggbb, such as #ffffff"));
        }
    }
}
