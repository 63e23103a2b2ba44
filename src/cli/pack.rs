//! `feedstock pack`: arguments, progress and report of packing.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};

use feedstock::pack::{PackError, Partition, Progress as Done, Report, Settings, Skipped, Treatment, pack};
use feedstock::rng::Seed;
use feedstock::{ByteCount, ErrorKind, RamBudget, Source};

use super::data::{BadReport, SourceArgs, tell_notes};
use super::failure::{Failure, chain, print};
use super::progress::Progress;
use super::table::{counted, facts};
use super::{Context, lock};

const MORE: &str = "\
Writes shard-00000.tar and so on, and manifest.json, into DST. A sample is two members of a shard: KEY.jpg (or .png, \
...; with --decoded KEY.ppm.zst) and KEY.cls, its class index. The bytes depend on the data, the settings and the \
seed, not on the workers or the budget.

An interrupted run resumes when it is started again with the same settings. Several jobs can share the work, each with \
its own --shard-of; the last one writes the manifest. Images that cannot be used are left out and listed; the exit \
code is then 4.

Examples:
  feedstock pack photos/train shards/train
  feedstock pack photos/train shards/train-256 --short-side 256 --quality 92 --shard-size 256M
  feedstock pack photos/val shards/val --decoded --size 224 --in-order --ram-budget 512M";

/// Default compression level of decoded pixels. They hardly compress, so decompression speed decides.
const DECODED_LEVEL: i32 = -50;

/// Pack a data set into tar shards
#[derive(Args)]
#[command(after_help = MORE)]
pub(crate) struct PackArgs {
    /// Data set: a folder or shards, as for train and bench
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// Folder for the shards
    #[arg(value_name = "DST")]
    dst: PathBuf,
    /// Target size of a shard, by the stored sizes of its samples
    #[arg(long, value_name = "SIZE", default_value_t = Settings::default().shard_size)]
    shard_size: ByteCount,
    /// Keep the order of the data
    #[arg(long)]
    in_order: bool,
    /// Seed of the shuffle
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "in_order")]
    seed: u64,
    /// Resize images to this short side, as JPEG
    #[arg(long, value_name = "PIXELS", conflicts_with = "decoded")]
    short_side: Option<u32>,
    /// Quality of such a JPEG, 1 to 100
    #[arg(long, value_name = "N", default_value_t = 90, requires = "short_side")]
    quality: u8,
    /// Store decoded pixels (PPM, compressed with zstd)
    #[arg(long)]
    decoded: bool,
    /// Resize to this short side and crop the central square
    #[arg(long, value_name = "PIXELS", requires = "decoded")]
    size: Option<u32>,
    /// Compression level, 1 to 19, or -1 to -50 for faster decompression
    #[arg(long, value_name = "N", default_value_t = DECODED_LEVEL, requires = "decoded", allow_negative_numbers = true)]
    level: i32,
    /// Pack the share of job I of N: shards I, I+N, I+2N, ...
    #[arg(long, value_name = "I/N", default_value = "0/1")]
    shard_of: Job,
    /// Verify existing shards by their hashes
    #[arg(long)]
    check: bool,
    /// Maximum number of packing threads, one shard each [default: by cores]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// RAM budget for index, samples and images: 2G, 60% or auto
    #[arg(long, value_name = "SIZE", default_value_t = RamBudget::Auto)]
    ram_budget: RamBudget,
    #[command(flatten)]
    open: SourceArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Job number among several.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Job(Partition);

impl FromStr for Job {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)));
        let (index, count) = parts.ok_or_else(|| format!("invalid job '{text}': expected I/N, as in 0/4"))?;
        Ok(Job(Partition { index, count }))
    }
}

impl PackArgs {
    fn settings(&self) -> Settings {
        let treatment = match (self.short_side, self.decoded) {
            (Some(pixels), _) => Treatment::ShortSide { pixels, quality: self.quality },
            (None, true) => Treatment::Decoded { size: self.size, level: self.level },
            (None, false) => Treatment::Stored,
        };
        Settings {
            treatment,
            shard_size: self.shard_size,
            in_order: self.in_order,
            seed: Seed(self.seed),
            partition: self.shard_of.0,
            check: self.check,
            ram_budget: self.ram_budget,
            workers: self.workers,
        }
    }
}

/// Progress of a run and its start.
struct PackProgress {
    began: Instant,
    done: Mutex<Done>,
}

pub(crate) fn run(args: &PackArgs, context: &Context) -> Result<(), Failure> {
    let source = args.open.open(&args.source)?;
    tell_notes(source.notes());
    let course = Arc::new(PackProgress { began: Instant::now(), done: Mutex::default() });
    {
        let (course, json) = (course.clone(), args.json);
        context.stop.on_timeout(move || drop(print(course.cut_short(json))));
    }
    let line = Mutex::new(Progress::new(0));
    let told = |done: &Done| {
        let before = std::mem::replace(&mut *lock(&course.done), *done);
        if before.samples != done.samples {
            lock(&line).expect(done.samples);
        }
        lock(&line).at(done.samples_done, || course.line());
    };
    let stop = context.stop.clone();
    let packed = pack(&*source, &args.settings(), &args.dst, told, &|| stop.is_requested());
    lock(&line).clear();
    if context.stop.is_requested() && !context.stop.claim_summary() {
        thread::park();
    }
    let report = packed?;
    let unreadable = BadReport::new(&*source, &[]);
    print(match args.json {
        true => course.json(args, &report, source.unreadable_count(), &unreadable).to_string(),
        false => course.text(args, &report, &unreadable),
    })?;
    match (report.ended_early, report.skipped_count + source.unreadable_count()) {
        (true, _) => Err(Failure::Interrupted),
        (false, 0) => Ok(()),
        (false, bad) => Err(Failure::Data(format!("{} could not be packed", counted(bad, "sample")))),
    }
}

impl PackProgress {
    /// Images per second of this run, without those of an earlier one.
    fn rate(&self, done: &Done) -> f64 {
        let images = done.samples_done.saturating_sub(done.samples_found);
        images as f64 / self.began.elapsed().as_secs_f64().max(1e-3)
    }

    fn line(&self) -> String {
        let done = *lock(&self.done);
        let rate = self.rate(&done);
        let mut line = format!(
            "{}/{} images, {rate:.0} images/s, {} written",
            done.samples_done,
            done.samples,
            ByteCount(done.bytes)
        );
        if rate > 0.0 {
            line += &format!(", {:.0} s left", (done.samples - done.samples_done) as f64 / rate);
        }
        line
    }

    /// Summary of an interrupted run.
    fn cut_short(&self, json: bool) -> String {
        let done = *lock(&self.done);
        if json {
            return json!({ "ended_early": true, "samples_done": done.samples_done, "shards": done.shards_done })
                .to_string();
        }
        format!("{} in place when it was interrupted", counted(done.shards_done, "shard"))
    }

    fn text(&self, args: &PackArgs, report: &Report, unreadable: &BadReport) -> String {
        let done = *lock(&self.done);
        let mut shards = format!("{}, {}", counted(report.shards, "shard"), ByteCount(report.bytes));
        if report.shards_found > 0 {
            shards += &format!("; {} there before", report.shards_found);
        }
        if report.shards != report.shards_of_set {
            shards += &format!("; the set has {}", report.shards_of_set);
        }
        let set = match (&report.manifest, report.ended_early) {
            (Some(manifest), _) => manifest.display().to_string(),
            (None, true) => "interrupted: run again to continue".to_owned(),
            (None, false) => format!("{} waits for the shards of other jobs", args.dst.display()),
        };
        let mut lines = vec![
            ("packed", counted(report.samples, "sample")),
            ("shards", shards),
            ("speed", format!("{:.0} images/s, {}", self.rate(&done), counted(report.workers as u64, "worker"))),
            ("RAM", format!("{} at most, by the ledger", report.ram_peak)),
            ("manifest", set),
        ];
        if report.skipped_count > 0 {
            lines.push(("left out", counted(report.skipped_count, "sample")));
        }
        let mut text = facts(&lines);
        for Skipped { name, cause, .. } in &report.skipped {
            text += &format!("\n  {name}: {cause}");
        }
        let unlisted = report.skipped_count - report.skipped.len() as u64;
        if unlisted > 0 {
            text += &format!("\n  and {unlisted} more");
        }
        let unreadable = unreadable.text();
        if unreadable.is_empty() { text } else { format!("{text}\n{unreadable}") }
    }

    fn json(&self, args: &PackArgs, report: &Report, unreadable_count: u64, unreadable: &BadReport) -> Value {
        json!(PackJson {
            source: args.source.display().to_string(),
            dst: args.dst.display().to_string(),
            report,
            unreadable_count,
            unreadable: unreadable.json(),
            seconds: self.began.elapsed().as_secs_f64(),
            images_per_s: self.rate(&lock(&self.done)),
        })
    }
}

#[derive(Serialize)]
struct PackJson<'a> {
    source: String,
    dst: String,
    #[serde(flatten)]
    report: &'a Report,
    unreadable_count: u64,
    unreadable: Value,
    seconds: f64,
    images_per_s: f64,
}

impl From<PackError> for Failure {
    fn from(error: PackError) -> Self {
        match error.kind() {
            ErrorKind::Config => Failure::Usage(chain(&error)),
            ErrorKind::Budget => Failure::Budget(chain(&error)),
            ErrorKind::Data => Failure::Data(chain(&error)),
            ErrorKind::Io => Failure::Io(chain(&error)),
            _ => Failure::Bug,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_read() {
        assert_eq!("3/8".parse(), Ok(Job(Partition { index: 3, count: 8 })));
        for wrong in ["", "3", "3/", "/8", "a/b", "-1/2", "1/2/3"] {
            let error = wrong.parse::<Job>().unwrap_err();
            assert_eq!(error, format!("invalid job '{wrong}': expected I/N, as in 0/4"));
        }
    }
}
