//! `feedstock inspect`: summarizes a data set and lists its unusable files.
//!
//! One thread walks the folders, the others inspect files. Each file has a channel for its one result, and the channels
//! are drained in order: results appear in the order of the walk, and the number of pending files is bounded. An image
//! is decoded only after the RAM for it is reserved.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use clap::Args;
use crossbeam_channel::{Receiver, Sender, bounded};

use feedstock::budget::{Account, AccountKind, Ledger, Reservation};
use feedstock::host::HostFacts;
use feedstock::{ByteCount, RamBudget};

use super::data::readable;
use super::failure::{Failure, print};
use super::progress::Progress;
use super::table::counted;
use super::{Context, lock};

mod classes;
mod duplicates;
mod inspect_file;
mod outliers;
mod sheet;
mod summary;
mod walk;

use duplicates::Hashes;
use inspect_file::{FileInspector, Finding};
use sheet::SheetArgs;
use summary::{SUMMARY_BYTES, Summary};
use walk::{Found, Walk};

/// Pending files for each thread.
const AHEAD: usize = 8;
/// Minimum budget; half of it is for files and decoded images.
const BUDGET_LEAST: ByteCount = ByteCount(4 << 20);

const MORE: &str = "\
Bad files are listed as they are found. The summary gives the number of files, their formats, sizes and classes, \
outliers, and files of equal content (across classes, or across train and val, such files leak). --quick reads headers \
only: it finds neither damage behind them nor duplicates. Sizes are as stored; EXIF orientation is counted, not applied.

Folders are walked in order for files with an image extension; symbolic links are followed, hidden files are skipped. \
A file given by name is inspected whatever its extension. Shards are not opened: `feedstock verify` checks packed ones \
against their hashes. The means of --files and --json are those of the RGB image and of its top left corner, a quarter \
of the width by a quarter of the height. The exit code is 4 if any file is bad.

Examples:
  feedstock inspect photos/train --sheet batch.png
  feedstock inspect photos --json | jq -r 'select(.status == \"error\") | .path'";

/// Summarize a data set and list its unusable files
#[derive(Args)]
#[command(after_help = MORE)]
pub(crate) struct InspectArgs {
    /// Files and folders
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Read headers only
    #[arg(long)]
    quick: bool,
    /// Print a line for each file
    #[arg(long, conflicts_with = "json")]
    files: bool,
    /// RAM budget for files, images and hashes: 2G, 60% or auto
    #[arg(long, value_name = "SIZE", default_value_t = RamBudget::Auto)]
    ram_budget: RamBudget,
    /// Print one JSON object a line, for each file
    #[arg(long)]
    json: bool,
    /// With --json: print only the summary object
    #[arg(long, requires = "json")]
    summary: bool,
    #[command(flatten)]
    sheet: SheetArgs,
}

/// Accounts of all memory; their caps add up to the budget.
struct Accounts {
    ledger: Ledger,
    /// For the walk that inspects, and for the walk that counts files for the progress.
    names: [Account; 2],
    hashes: Account,
    files: Account,
    images: Account,
    _summary: Reservation,
}

/// State of one run.
struct Run<'a> {
    args: &'a InspectArgs,
    context: &'a Context,
    summary: Arc<Mutex<Summary>>,
    threads: usize,
}

type Job = (Found, Sender<Finding>);

pub(crate) fn run(args: &InspectArgs, context: &Context) -> Result<(), Failure> {
    let host = HostFacts::read();
    let budget = args.ram_budget.resolve(host.memory.available, 1);
    let accounts = Accounts::of(budget)?;
    // Drawn first: it takes little time, and its errors are reported early.
    let sheet = args.sheet.draw(&args.paths, budget, &context.stop)?;
    // Frees the loader that drew the sheet.
    context.stop.forget();
    sheet.filter(|_| !args.json).map_or(Ok(()), print)?;
    let ledger = accounts.ledger.clone();
    context.stop.on_stop(move || ledger.wake());
    let hashes = (!args.quick).then(|| Hashes::new(accounts.hashes.clone()));
    let summary = Arc::new(Mutex::new(Summary::new(&args.paths, hashes)));
    let run = Run { args, context, summary, threads: host.cpus.workers_max() };
    let inspector = FileInspector {
        files: accounts.files.clone(),
        images: (!args.quick).then(|| accounts.images.clone()),
        stop: context.stop.clone(),
    };
    {
        let (summary, json, per_file) = (run.summary.clone(), args.json, args.json && !args.summary);
        context.stop.on_timeout(move || {
            if !per_file {
                drop(print_summary(&mut lock(&summary), json, true, None));
            }
        });
    }
    let printed = run.inspect_all(&inspector, &accounts.names);
    let interrupted = context.stop.is_requested();
    if interrupted && !context.stop.claim_summary() {
        thread::park();
    }
    // After a closed pipe the summary is not printed either.
    printed?;
    let mut summary = lock(&run.summary);
    if !args.json || args.summary {
        // Naming duplicates takes a second walk, which an interrupt skips.
        let again = (!interrupted).then(|| Walk::new(&args.paths, accounts.names[0].clone()));
        print_summary(&mut summary, args.json, interrupted, again)?;
    }
    match (interrupted, summary.totals.ok, summary.totals.bad()) {
        (true, ..) => Err(Failure::Interrupted),
        (_, 0, 0) => Err(Failure::Data(
            "no image files found (.jpg, .png, ...). Shards (.tar, .parquet) are not inspected: `feedstock verify` \
             checks packed ones, `feedstock plan --data` describes any"
                .into(),
        )),
        (_, _, 0) => Ok(()),
        (_, _, bad) => Err(Failure::Data(format!("{} cannot be used", counted(bad, "file")))),
    }
}

/// Prints the summary. With a second walk over the same files, duplicates are named.
fn print_summary(summary: &mut Summary, json: bool, ended_early: bool, again: Option<Walk<'_>>) -> Result<(), Failure> {
    let mut duplicates = summary.duplicates();
    if let (Some(duplicates), Some(again)) = (&mut duplicates, again)
        && duplicates.any()
    {
        duplicates.name(again.map(|found| readable(found.path.as_os_str().as_encoded_bytes())));
    }
    let duplicates = duplicates.as_ref();
    match json {
        true => print(summary.json(duplicates, ended_early)),
        false => print(summary.text(duplicates, ended_early)),
    }
}

impl Accounts {
    fn of(budget: ByteCount) -> Result<Self, Failure> {
        if budget < BUDGET_LEAST {
            return Err(Failure::Budget(format!(
                "RAM budget of {budget} is too small: the minimum is {BUDGET_LEAST}, of which {} are for the summary \
                 and half for files and images; raise --ram-budget",
                ByteCount(SUMMARY_BYTES)
            )));
        }
        let ledger = Ledger::new(budget);
        let summary = ByteCount(SUMMARY_BYTES);
        let summary = ledger.fixed_account(AccountKind::Other("summary"), summary).reserve(summary);
        let account = |name, bytes| ledger.account(AccountKind::Other(name), ByteCount(bytes));
        let rest = budget.0 - SUMMARY_BYTES;
        let (names, hashes, files) = (rest / 8, rest / 8, rest / 4);
        Ok(Accounts {
            names: [account("names", names), account("names", names)],
            hashes: account("hashes", hashes),
            files: account("files", files),
            images: account("images", rest - 2 * names - hashes - files),
            _summary: summary.map_err(|refused| Failure::Budget(refused.to_string()))?,
            ledger,
        })
    }
}

impl Run<'_> {
    fn inspect_all(&self, inspector: &FileInspector, names: &[Account; 2]) -> Result<(), Failure> {
        let Run { args, context, threads, .. } = *self;
        let progress = match args.files || (args.json && !args.summary) {
            true => Progress::beside_output(),
            false => Progress::new(0),
        };
        // Number of files once the counting walk has ended; 0 before.
        let (expected, done) = (AtomicU64::new(0), AtomicBool::new(false));
        let (to_inspect, jobs) = bounded::<Job>(threads * AHEAD);
        thread::scope(|scope| {
            for _ in 0..threads {
                let jobs = jobs.clone();
                scope.spawn(move || {
                    for (found, result) in jobs {
                        let Some(finding) = inspector.inspect(found) else { return };
                        // There is no receiver when the program is about to end.
                        let _ = result.send(finding);
                    }
                });
            }
            drop(jobs);
            if progress.is_seen() {
                scope.spawn(|| {
                    let walk = Walk::new(&args.paths, names[1].clone());
                    let asked = || context.stop.is_requested() || done.load(Ordering::Relaxed);
                    let files = walk.take_while(|_| !asked()).count() as u64;
                    if !asked() {
                        expected.store(files, Ordering::Relaxed);
                    }
                });
            }
            let printed = self.print_all(to_inspect, progress, &expected, &names[0]);
            done.store(true, Ordering::Relaxed);
            printed
        })
    }

    fn print_all(
        &self,
        to_inspect: Sender<Job>,
        mut progress: Progress,
        expected: &AtomicU64,
        names: &Account,
    ) -> Result<(), Failure> {
        let mut waiting: VecDeque<Receiver<Finding>> = VecDeque::new();
        let mut told = 0;
        let mut take_next = |waiting: &mut VecDeque<Receiver<Finding>>| {
            // A result is missing only if its thread panicked, which is reported already, or if the run is interrupted.
            let Some(finding) = waiting.pop_front().and_then(|result| result.recv().ok()) else { return Ok(()) };
            lock(&self.summary).add(&finding);
            let expected = expected.load(Ordering::Relaxed);
            if told != expected {
                told = expected;
                progress.expect(expected);
            }
            let summary = lock(&self.summary);
            progress.at(summary.totals.files(), || summary.progress((expected > 0).then_some(expected)));
            drop(summary);
            self.print_one(&finding, &progress)
        };
        for found in Walk::new(&self.args.paths, names.clone()) {
            if self.context.stop.is_requested() {
                return Ok(());
            }
            let (result, finding) = bounded(1);
            if to_inspect.send((found, result)).is_err() {
                break;
            }
            waiting.push_back(finding);
            if waiting.len() >= self.threads * AHEAD {
                take_next(&mut waiting)?;
            }
        }
        drop(to_inspect);
        while !waiting.is_empty() && !self.context.stop.is_requested() {
            take_next(&mut waiting)?;
        }
        Ok(())
    }

    /// Prints the line of one file, if it has one.
    fn print_one(&self, finding: &Finding, progress: &Progress) -> Result<(), Failure> {
        let InspectArgs { files, json, summary, .. } = *self.args;
        let line = match json {
            true if summary => return Ok(()),
            true => finding.json().to_string(),
            false if files || finding.problem.is_some() => finding.text(),
            false => return Ok(()),
        };
        let mut printed = Ok(());
        progress.aside(|| printed = print(line));
        printed
    }
}
