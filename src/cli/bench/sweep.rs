//! `feedstock bench` over several budgets and numbers of workers: every combination and every stage alone, in turn,
//! round after round. Each run is a process of its own that is watched from outside; only one runs at a time.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use clap::ValueEnum;

use feedstock::ByteCount;

use super::super::child::Watched;
use super::super::failure::{Failure, OVER_BUDGET, say};
use super::super::progress::Progress;
use super::super::table::counted;
use super::super::{Context, format, lock};
use super::outcome::{Outcome, Point, StageRuns};
use super::{BenchArgs, Mode, page};

/// Options of the sweep, which its runs do not get. All but the last have a value.
const OURS: [&str; 6] = ["--workers", "--ram-budget", "--rounds", "--csv", "--report", "--json"];

/// One run of a round: the index of a combination, or of a stage alone.
#[derive(Clone, Copy)]
enum Turn {
    Point(usize),
    Stage(usize),
}

/// Returns true if the arguments request more than one run.
pub(super) fn is_requested(args: &BenchArgs) -> bool {
    args.loader.ram_budget.len() > 1 || args.loader.workers.len() > 1 || args.report.is_some()
}

pub(super) fn run(args: &BenchArgs, context: &Context) -> Result<(), Failure> {
    if args.watch.trace.is_some() || args.watch.metrics.is_some() {
        let why = "--trace and --metrics are for one run: give one budget and one number of workers, and no --report";
        return Err(Failure::Usage(why.to_owned()));
    }
    if args.mode != Mode::Loader {
        let why = "--mode is for one run: give one budget and one number of workers, and no --report";
        return Err(Failure::Usage(why.to_owned()));
    }
    if let Some(folder) = &args.report {
        // Fails before hours of runs, not after them.
        fs::create_dir_all(folder).map_err(|error| cannot_write(folder, &error))?;
    }
    let program = env::current_exe().map_err(|error| Failure::Io(format!("cannot find this program: {error}")))?;
    let workers: Vec<Option<usize>> = match args.loader.workers.is_empty() {
        true => vec![None],
        false => args.loader.workers.iter().copied().map(Some).collect(),
    };
    let points = args.loader.ram_budget.iter().flat_map(|&budget| {
        workers.iter().map(move |&workers| Point { budget, workers, runs: Vec::new(), peak_seen: ByteCount::ZERO })
    });
    let outcome = Arc::new(Mutex::new(Outcome::new(args, points.collect())));
    let render = {
        let (outcome, json) = (outcome.clone(), args.json);
        move |error: Option<&str>| {
            let report = lock(&outcome).report(error);
            if json { format::json(&report) } else { report.text() }
        }
    };
    let watched = Watched::default();
    let killer = watched.clone();
    context.stop.on_stop(move || killer.kill());
    let ended = context.stop.report(render, || run_all(args, context, &program, &outcome, &watched));
    let (outcome, error) = (lock(&outcome).clone(), ended.as_ref().err().map(Failure::words));
    if outcome.is_empty() {
        return ended;
    }
    if let Some(path) = &args.csv {
        fs::write(path, outcome.csv()).map_err(|error| cannot_write(path, &error))?;
    }
    if let Some(folder) = &args.report {
        write_report(folder, &outcome, error.as_deref())?;
    }
    ended
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Io(format!("cannot write {}: {error}", path.display()))
}

/// Writes the page, its charts, and the same numbers as JSON and CSV.
fn write_report(folder: &Path, outcome: &Outcome, error: Option<&str>) -> Result<(), Failure> {
    let report = outcome.report(error);
    let mut files = vec![
        ("index.html", page::page(&report)),
        ("report.json", format::json(&report) + "\n"),
        ("report.csv", outcome.csv()),
    ];
    files.extend(page::charts(&report));
    for file in page::stale(&report) {
        // Usually it does not exist.
        let _ = fs::remove_file(folder.join(file));
    }
    for (name, text) in files {
        let path = folder.join(name);
        fs::write(&path, text).map_err(|error| cannot_write(&path, &error))?;
    }
    say("note", format_args!("the report is in {}", folder.join("index.html").display()));
    Ok(())
}

/// Runs every combination and every stage once, then all of them again, so that a drift of the machine affects all
/// alike.
fn run_all(
    args: &BenchArgs,
    context: &Context,
    program: &Path,
    outcome: &Mutex<Outcome>,
    watched: &Watched,
) -> Result<(), Failure> {
    let round: Vec<Turn> = {
        let outcome = lock(outcome);
        let points = (0..outcome.points.len()).map(Turn::Point);
        points.chain((0..outcome.stages.len()).map(Turn::Stage)).collect()
    };
    let runs = round.len() as u64 * args.rounds;
    let mut progress = Progress::new(runs);
    let turns = (0..args.rounds).flat_map(|_| &round);
    for (at, &turn) in (0..).zip(turns) {
        let mut command = Command::new(program);
        command.args(passed_on(env::args_os().skip(1))).arg("--json");
        let (name, workers, budget) = match (turn, &*lock(outcome)) {
            (Turn::Point(index), Outcome { points, .. }) => {
                let Point { budget, workers, .. } = points[index];
                let many = workers.map_or("workers by the plan".to_owned(), |n| counted(n as u64, "worker"));
                (format!("with {many} at a budget of {budget}"), workers, budget)
            }
            (Turn::Stage(index), Outcome { stages, .. }) => {
                let StageRuns { mode, workers, .. } = stages[index];
                let mode = mode.to_possible_value().map_or_else(String::new, |mode| mode.get_name().to_owned());
                command.args(["--mode", &mode]);
                // A stage alone is measured at the budget with the most room.
                (format!("of {mode} alone"), workers, largest(args))
            }
        };
        command.args(["--ram-budget", &budget.to_string()]);
        if let Some(workers) = workers {
            command.args(["--workers", &workers.to_string()]);
        }
        let ended =
            watched.run(command, &context.stop, |_| progress.at(at, || format!("run {} of {runs}: {name}", at + 1)));
        let ended = ended.map_err(|error| Failure::Io(format!("cannot run this program once more: {error}")))?;
        let outcome = &mut *lock(outcome);
        match turn {
            Turn::Point(index) => {
                let point = &mut outcome.points[index];
                point.runs.push(ended.report(&name)?);
                point.peak_seen = point.peak_seen.max(ended.seen.peak_rss);
            }
            Turn::Stage(index) => match ended.report(&name) {
                // A stage alone may need more than the loader. There is no prediction then.
                Err(Failure::Run { code: OVER_BUDGET, .. }) => {}
                report => outcome.stages[index].runs.push(report?),
            },
        }
    }
    Ok(())
}

/// The largest requested budget.
fn largest(args: &BenchArgs) -> feedstock::RamBudget {
    let bytes = |budget: &feedstock::RamBudget| budget.resolve_here().bytes;
    args.loader.ram_budget.iter().copied().max_by_key(bytes).unwrap_or_default()
}

/// Arguments of this program without those of the sweep.
fn passed_on(mut arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut kept = Vec::new();
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy();
        let (name, value) = text.split_once('=').map_or((&*text, None), |(name, value)| (name, Some(value)));
        if !OURS.contains(&name) {
            kept.push(argument);
        } else if name != "--json" && value.is_none() {
            // Skips its value.
            arguments.next();
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_get_every_argument_but_the_sweeps_own() {
        let line = "bench --data d --workers 1,2 --ram-budget=1G,2G --json --size 32 --rounds 3 --csv f --report r \
                    --device sim:step=1ms";
        let kept = passed_on(line.split(' ').filter(|word| !word.is_empty()).map(OsString::from));
        assert_eq!(kept, "bench --data d --size 32 --device sim:step=1ms".split(' ').collect::<Vec<_>>());
    }
}
