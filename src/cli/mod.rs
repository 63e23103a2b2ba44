//! Owns the command line: what can be asked, which verb answers, how failures are said, and the exit code.
//! It must never do a verb's work, and it sees the library only as any other program does.

mod bench;
mod chart;
mod child;
mod data;
mod doctor;
mod failure;
mod format;
mod gpu;
mod histogram;
mod inspect;
mod model;
mod pack;
mod placement;
mod plan;
mod progress;
mod prove;
mod stop;
mod synth;
mod table;
mod train;
mod verify;
mod watch;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use clap::{ArgAction, Parser, Subcommand};

use failure::Failure;
use stop::Stop;

const MORE: &str = "\
Examples:
  feedstock train
  feedstock plan  --data photos/train --ram-budget 2G --batch-size 256
  feedstock bench --data photos/train --ram-budget 256M --workers 2 --epochs 3 --json
  feedstock prove --data photos/train --out budget.svg
  feedstock inspect photos --sheet batch.png
  feedstock pack photos/train shards/train --short-side 256
  feedstock verify shards/train
  feedstock doctor

Data is a folder of class folders (<folder>/<class>/<image>), or shards: a tar, a folder of them, a pattern such as \
'train-{0000..0146}.tar'. Sizes are written 24G, 1.5GiB, 512MB, 60% (of the available \
memory) or auto (half of it). Results go to standard output; progress, notes and errors to standard error.

Exit codes: 0 done, 1 a budget was not kept (prove), 2 wrong usage, 3 the RAM budget is too small, 4 bad data, 5 the system refused something, 6 the \
device failed, 70 a bug, 130 interrupted";

/// Feeds training: images, decoded under a RAM budget
#[derive(Parser)]
#[command(name = "feedstock", version, after_help = MORE, max_term_width = 120)]
#[command(disable_help_flag = true, disable_help_subcommand = true, disable_version_flag = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    /// Print help
    #[arg(short, long, global = true, display_order = 1000, action = ArgAction::HelpShort)]
    help: Option<bool>,
    /// Print version
    #[arg(short = 'V', long, action = ArgAction::Version)]
    version: Option<bool>,
}

#[derive(Subcommand)]
enum Verb {
    /// Train a small network on a folder of images
    Train(train::TrainArgs),
    /// Show what a budget buys: the byte table, the workers, the least budget
    Plan(plan::PlanArgs),
    /// Run the loader alone, and measure it
    Bench(bench::BenchArgs),
    /// Watch many budgets being kept, and draw it
    Prove(prove::ProveArgs),
    /// Say what is in a data set, and what is wrong with its files
    Inspect(inspect::InspectArgs),
    /// Pack a data set into tar shards
    Pack(pack::PackArgs),
    /// Check a packed set against its manifest
    Verify(verify::VerifyArgs),
    /// Say what this machine gives: GPU and driver, copy rates, limits of memory and cores
    Doctor(doctor::DoctorArgs),
}

/// What every verb gets besides its own arguments.
struct Context {
    /// When the program began.
    started: Instant,
    /// Whether the user wants it to end.
    stop: Stop,
}

/// Runs the program that the process was started as.
pub(crate) fn run(started: Instant) -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nobody is left to tell when this cannot be printed.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    if !matches!(cli.verb, Verb::Train(_)) {
        // Before there are other threads. Where the allocator cannot, headroom has to do. Not for training, whose tensors
        // are large blocks that come again in every step.
        feedstock::host::return_large_blocks();
    }
    let context = Context { started, stop: Stop::watch() };
    let done = catch_unwind(AssertUnwindSafe(|| match cli.verb {
        Verb::Train(args) => train::run(&args, &context),
        Verb::Plan(args) => plan::run(&args),
        Verb::Bench(args) => bench::run(&args, &context),
        Verb::Prove(args) => prove::run(&args, &context),
        Verb::Inspect(args) => inspect::run(&args, &context),
        Verb::Pack(args) => pack::run(&args, &context),
        Verb::Verify(args) => verify::run(&args, &context),
        Verb::Doctor(args) => doctor::run(&args),
    }));
    if !context.stop.is_requested() {
        // Where the user wants the program to end, nobody waits for a device to be done: its driver cleans up.
        context.stop.forget();
    }
    // A panic has printed its message already.
    let failure = match done {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(failure)) => failure,
        Err(_) => Failure::Bug,
    };
    failure.tell();
    failure.exit_code()
}

/// Locks, whatever a thread that panicked in between has left.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
