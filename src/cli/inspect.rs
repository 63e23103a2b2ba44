//! Owns `feedstock inspect`: what is in image files, and what is wrong with them. It must never hold more results than
//! a few for each thread, nor decode a picture before the RAM for it is reserved.
//!
//! One thread walks, the others look; each file has a channel of its own for its one result, and these are emptied in
//! order. So results come out in the order of the walk, and what waits is bounded.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use clap::Args;
use crossbeam_channel::{Receiver, Sender, bounded};

use feedstock::RamBudget;
use feedstock::host::HostFacts;

use super::Context;
use super::failure::{Failure, print};
use super::progress::Progress;
use super::table::counted;

mod look;
mod walk;

use look::{Finding, Looker};
use walk::{Found, Walk};

/// Files that wait for each thread, looked at or not.
const AHEAD: usize = 8;

const MORE: &str = "\
Folders are walked, in order, for files with an image extension; symbolic links are followed, names with a dot in front \
passed over. A file that is named itself is looked at whatever it is called. Sizes are as stored; the EXIF orientation is \
told and not applied. The means are of the RGB picture and of its top left corner, a quarter of the width by a quarter of \
the height. The exit code is 4 if any file is bad.

Example:
  feedstock inspect photos --json | jq -r 'select(.status == \"error\") | .path'";

/// Say what is in image files, and what is wrong with them
#[derive(Args)]
#[command(after_help = MORE)]
pub(crate) struct InspectArgs {
    /// Files and folders
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// The most RAM for files and pictures: 2G, 60% or auto
    #[arg(long, value_name = "SIZE", default_value_t = RamBudget::Auto)]
    ram_budget: RamBudget,
    /// Print one JSON object a line, for each file
    #[arg(long)]
    json: bool,
}

/// How many of what were found.
#[derive(Clone, Copy, Default)]
struct Tally {
    ok: u64,
    read: u64,
    probe: u64,
    decode: u64,
}

type Job = (Found, Sender<Finding>);

pub(crate) fn run(args: &InspectArgs, context: &Context) -> Result<(), Failure> {
    let host = HostFacts::read();
    let looker = Looker::new(args.ram_budget.resolve(host.memory.available, 1), context.stop.clone());
    let tally = Arc::new(Mutex::new(Tally::default()));
    if !args.json {
        let tally = tally.clone();
        context.stop.last_words(move || drop(print(read(&tally).text())));
    }
    let threads = host.cpus.workers_max();
    let (to_look, jobs) = bounded::<Job>(threads * AHEAD);
    let printed = thread::scope(|scope| {
        for _ in 0..threads {
            let (jobs, looker) = (jobs.clone(), &looker);
            scope.spawn(move || {
                for (found, result) in jobs {
                    // Nobody waits for it when the program is about to end.
                    let _ = result.send(looker.look(&found));
                }
            });
        }
        drop(jobs);
        print_all(args, context, to_look, &tally, threads)
    });
    if context.stop.is_asked() && !context.stop.sum_up() {
        thread::park();
    }
    let tally = read(&tally);
    // A reader who has seen enough wants no sum either.
    printed?;
    if !args.json {
        print(tally.text())?;
    }
    match (context.stop.is_asked(), tally.ok, tally.bad()) {
        (true, ..) => Err(Failure::Interrupted),
        (_, 0, 0) => {
            Err(Failure::Data("no image files there: they are known by their extensions (.jpg, .png, ...)".into()))
        }
        (_, _, 0) => Ok(()),
        (_, _, bad) => Err(Failure::Data(format!("{} cannot be used", counted(bad, "file")))),
    }
}

fn print_all(
    args: &InspectArgs,
    context: &Context,
    to_look: Sender<Job>,
    tally: &Mutex<Tally>,
    threads: usize,
) -> Result<(), Failure> {
    let mut progress = Progress::beside_output();
    let mut waiting: VecDeque<Receiver<Finding>> = VecDeque::new();
    let mut print_next = |waiting: &mut VecDeque<Receiver<Finding>>| {
        // A result fails to come only if its thread died, which has been said.
        let Some(finding) = waiting.pop_front().and_then(|result| result.recv().ok()) else { return Ok(()) };
        let now = {
            let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            tally.count(&finding);
            *tally
        };
        progress.at(0, || now.text());
        print(if args.json { finding.json().to_string() } else { finding.text() })
    };
    for found in Walk::new(&args.paths) {
        if context.stop.is_asked() {
            return Ok(());
        }
        let (result, finding) = bounded(1);
        if to_look.send((found, result)).is_err() {
            break;
        }
        waiting.push_back(finding);
        if waiting.len() >= threads * AHEAD {
            print_next(&mut waiting)?;
        }
    }
    drop(to_look);
    while !waiting.is_empty() && !context.stop.is_asked() {
        print_next(&mut waiting)?;
    }
    Ok(())
}

fn read(tally: &Mutex<Tally>) -> Tally {
    *tally.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tally {
    fn count(&mut self, finding: &Finding) {
        match finding.stage() {
            None => self.ok += 1,
            Some("probe") => self.probe += 1,
            Some("decode") => self.decode += 1,
            Some(_) => self.read += 1,
        }
    }

    fn bad(&self) -> u64 {
        self.read + self.probe + self.decode
    }

    fn text(&self) -> String {
        let mut text = format!("{}: {} ok", counted(self.ok + self.bad(), "file"), self.ok);
        for (count, what) in [(self.read, "not read"), (self.probe, "no usable header"), (self.decode, "not decoded")] {
            if count > 0 {
                text += &format!(", {count} {what}");
            }
        }
        text
    }
}
