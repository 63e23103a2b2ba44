//! The command line: parses arguments, runs the verb, reports its failure and returns the exit code.
//!
//! The program uses the library's public API alone.

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

Data is a folder of class folders (<folder>/<class>/<image>) or shards: a tar file, a folder of tar files, or a \
pattern such as 'train-{0000..0146}.tar'. Sizes are 24G, 1.5GiB, 512MB, 60% (of the available memory) or auto (half of \
it). Results go to standard output; progress, notes and errors to standard error.

Exit codes: 0 success, 1 budget exceeded (prove), 2 usage error, 3 budget too small, 4 bad data, 5 I/O or system \
error, 6 device error, 70 bug, 130 interrupted";

/// Data loader for training: decodes images within a RAM budget
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
    /// Print the plan for a budget: byte table, workers, minimum budget
    Plan(plan::PlanArgs),
    /// Measure the loader alone
    Bench(bench::BenchArgs),
    /// Verify from outside that budgets are kept, and draw a chart
    Prove(prove::ProveArgs),
    /// Summarize a data set and list its unusable files
    Inspect(inspect::InspectArgs),
    /// Pack a data set into tar shards
    Pack(pack::PackArgs),
    /// Check a packed set against its manifest
    Verify(verify::VerifyArgs),
    /// Report this machine's GPU, driver, copy rates, memory limits and cores
    Doctor(doctor::DoctorArgs),
}

/// State that every verb gets besides its own arguments.
struct Context {
    /// Start of the program.
    started: Instant,
    /// The user's request to end the program.
    stop: Stop,
}

/// Parses the process's arguments and runs the verb.
pub(crate) fn run(started: Instant) -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // If this cannot be printed, there is no other way to report it.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    if !matches!(cli.verb, Verb::Train(_)) {
        // Called before there are other threads. An allocator without this setting is covered by the headroom. Training
        // is excluded: its tensors are large blocks that are allocated again in every step.
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
        // After an interrupt the program does not wait for a device to finish: its driver cleans up.
        context.stop.forget();
    }
    // A panic has already printed its message.
    let failure = match done {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(failure)) => failure,
        Err(_) => Failure::Bug,
    };
    failure.tell();
    failure.exit_code()
}

/// Locks a mutex, poisoned or not.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
