//! `feedstock verify`: arguments, progress and report of checking a packed set. It only reads.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};

use feedstock::ByteCount;
use feedstock::pack::{Problem, Verification, VerifyProgress, VerifySettings, verify};

use super::failure::{Failure, print};
use super::progress::Progress;
use super::table::counted;
use super::{Context, lock};

const MORE: &str = "\
Compares each shard's size and hash with the manifest, counts its members, and decompresses compressed ones, which \
checks their checksums. Missing, additional and damaged shards are listed; the exit code is 4 if there are any.

Examples:
  feedstock verify shards/train
  feedstock verify shards/train --image-headers --json | jq -r '.problems[].file'";

/// Check a packed set against its manifest
#[derive(Args)]
#[command(after_help = MORE)]
pub(crate) struct VerifyArgs {
    /// Folder of the shards
    #[arg(value_name = "DST")]
    dst: PathBuf,
    /// Also read image headers
    #[arg(long)]
    image_headers: bool,
    /// Maximum number of threads, one shard each [default: by cores]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &VerifyArgs, context: &Context) -> Result<(), Failure> {
    let began = Instant::now();
    let last = Arc::new(Mutex::new(VerifyProgress::default()));
    {
        let (last, json) = (last.clone(), args.json);
        context.stop.on_timeout(move || drop(print(cut_short(&lock(&last), json))));
    }
    let line = Mutex::new(Progress::new(1000));
    let told = |done: &VerifyProgress| {
        *lock(&last) = *done;
        // In thousandths, because shards are few and large.
        let share = done.bytes_done as f64 / done.bytes.max(1) as f64;
        lock(&line).at((share * 1000.0) as u64, || progress(done, began));
    };
    let settings = VerifySettings { image_headers: args.image_headers, workers: args.workers };
    let stop = context.stop.clone();
    let found = verify(&args.dst, &settings, told, &|| stop.is_requested());
    lock(&line).clear();
    if context.stop.is_requested() && !context.stop.claim_summary() {
        thread::park();
    }
    let found = found?;
    print(match args.json {
        true => json(args, &found, began).to_string(),
        false => text(&found, began),
    })?;
    match (found.ended_early, found.problem_count) {
        (true, _) => Err(Failure::Interrupted),
        (false, 0) => Ok(()),
        (false, count) => Err(Failure::Data(format!("{} found", counted(count, "problem")))),
    }
}

fn progress(done: &VerifyProgress, began: Instant) -> String {
    let rate = done.bytes_done as f64 / began.elapsed().as_secs_f64().max(1e-3);
    let left = done.bytes.saturating_sub(done.bytes_done) as f64 / rate.max(1.0);
    let problems = if done.problems > 0 { format!(", {}", counted(done.problems, "problem")) } else { String::new() };
    format!(
        "{}/{} shards, {} of {}, {}/s, {left:.0} s left{problems}",
        done.shards_done,
        done.shards,
        ByteCount(done.bytes_done),
        ByteCount(done.bytes),
        ByteCount(rate as u64)
    )
}

/// Summary of an interrupted run.
fn cut_short(done: &VerifyProgress, json: bool) -> String {
    if json {
        return json!({ "ended_early": true, "shards": done.shards_done, "problem_count": done.problems }).to_string();
    }
    format!(
        "{} of {} seen when it was interrupted, {}",
        done.shards_done,
        counted(done.shards, "shard"),
        counted(done.problems, "problem")
    )
}

fn text(found: &Verification, began: Instant) -> String {
    let mut lines: Vec<String> = Vec::new();
    for Problem { file, kind, cause, .. } in &found.problems {
        lines.push(format!("{:<10}  {file}: {cause}", kind.name()));
    }
    let unlisted = found.problem_count - found.problems.len() as u64;
    if unlisted > 0 {
        lines.push(format!("and {unlisted} more"));
    }
    lines.push(format!(
        "{} in {}, {} read in {:.1} s: {}",
        counted(found.samples, "sample"),
        counted(found.shards, "shard"),
        ByteCount(found.bytes),
        began.elapsed().as_secs_f64(),
        match (found.problem_count, found.ended_early) {
            (0, false) => "no problems".to_owned(),
            (0, true) => "nothing wrong so far".to_owned(),
            (count, _) => counted(count, "problem"),
        }
    ));
    lines.join("\n")
}

#[derive(Serialize)]
struct VerifyJson<'a> {
    dst: String,
    valid: bool,
    #[serde(flatten)]
    found: &'a Verification,
    seconds: f64,
}

fn json(args: &VerifyArgs, found: &Verification, began: Instant) -> Value {
    let (dst, seconds) = (args.dst.display().to_string(), began.elapsed().as_secs_f64());
    json!(VerifyJson { dst, valid: found.is_valid(), found, seconds })
}
