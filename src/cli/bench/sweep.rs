//! Owns `feedstock bench` over several budgets and numbers of workers: every combination in turn, and every part alone, round
//! after round, each run in a process of its own that is watched from outside. It must never run two at once.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use clap::ValueEnum;

use feedstock::ByteCount;

use super::super::child::Watched;
use super::super::failure::{Failure, OVER_BUDGET, print, say};
use super::super::progress::Progress;
use super::super::table::counted;
use super::super::{Context, lock};
use super::outcome::{Alone, Outcome, Point};
use super::{BenchArgs, Mode, page};

/// Options with a value that belong to the sweep, and not to its runs.
const OURS: [&str; 6] = ["--workers", "--ram-budget", "--rounds", "--csv", "--report", "--json"];

/// One run of a round: its place among the combinations, or among the parts alone.
#[derive(Clone, Copy)]
enum Turn {
    Point(usize),
    Alone(usize),
}

/// Whether these arguments ask for more than one run.
pub(super) fn is_asked(args: &BenchArgs) -> bool {
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
        // Before hours of runs, not after them.
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
            let outcome = lock(&outcome);
            if json { outcome.json(error).to_string() } else { outcome.text(error) }
        }
    };
    {
        let render = render.clone();
        context.stop.last_words(move || drop(print(render(Some("interrupted")))));
    }
    let watched = Watched::default();
    let killer = watched.clone();
    context.stop.on_stop(move || killer.kill());
    let done = run_all(args, context, &program, &outcome, &watched);
    if context.stop.is_asked() && !context.stop.sum_up() {
        // The watchdog sums up, and ends the process.
        std::thread::park();
    }
    let ended = if context.stop.is_asked() { Err(Failure::Interrupted) } else { done };
    let error = ended.as_ref().err().map(Failure::words);
    let outcome = lock(&outcome).clone();
    if outcome.is_empty() {
        return ended;
    }
    print(render(error.as_deref()))?;
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

/// The page, its charts, and the same numbers for machines.
fn write_report(folder: &Path, outcome: &Outcome, error: Option<&str>) -> Result<(), Failure> {
    let report = outcome.json(error);
    let mut files = vec![
        ("index.html", page::page(&report)),
        ("report.json", format!("{report:#}\n")),
        ("report.csv", outcome.csv()),
    ];
    files.extend(page::charts(&report));
    for stale in page::left_out(&report) {
        // It is hardly ever there.
        let _ = fs::remove_file(folder.join(stale));
    }
    for (name, text) in files {
        let path = folder.join(name);
        fs::write(&path, text).map_err(|error| cannot_write(&path, &error))?;
    }
    say("note", format_args!("the report is in {}", folder.join("index.html").display()));
    Ok(())
}

/// Every combination and every part once, then all of them again: what drifts on the machine meets all alike.
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
        points.chain((0..outcome.alone.len()).map(Turn::Alone)).collect()
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
            (Turn::Alone(index), Outcome { alone, .. }) => {
                let Alone { mode, workers, .. } = alone[index];
                let mode = mode.to_possible_value().map_or_else(String::new, |mode| mode.get_name().to_owned());
                command.args(["--mode", &mode]);
                // Parts alone are measured where there is room for them.
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
        let said = match (ended.said(&name), turn) {
            // What a part takes alone may be more than the loader does. Then nothing is predicted.
            (Err(Failure::Run { code: OVER_BUDGET, .. }), Turn::Alone(_)) => continue,
            (said, _) => said?,
        };
        let outcome = &mut *lock(outcome);
        match turn {
            Turn::Point(index) => {
                let point = &mut outcome.points[index];
                point.peak_seen = point.peak_seen.max(ended.seen.peak_rss);
                point.runs.push(said);
            }
            Turn::Alone(index) => outcome.alone[index].runs.push(said),
        }
    }
    Ok(())
}

/// The largest of the budgets that were asked for.
fn largest(args: &BenchArgs) -> feedstock::RamBudget {
    let bytes = |budget: &feedstock::RamBudget| feedstock::ram_budget_here(*budget).0;
    args.loader.ram_budget.iter().copied().max_by_key(bytes).unwrap_or_default()
}

/// The arguments that this program was started with, but for those that are the sweep's own.
fn passed_on(mut arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut kept = Vec::new();
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy();
        let (name, value) = text.split_once('=').map_or((&*text, None), |(name, value)| (name, Some(value)));
        if !OURS.contains(&name) {
            kept.push(argument);
        } else if name != "--json" && value.is_none() {
            // Its value.
            arguments.next();
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_get_every_argument_that_is_not_the_sweeps_own() {
        let line = "bench --data d --workers 1,2 --ram-budget=1G,2G --json --size 32 --rounds 3 --csv f --report r \
                    --device sim:step=1ms";
        let kept = passed_on(line.split(' ').filter(|word| !word.is_empty()).map(OsString::from));
        assert_eq!(kept, "bench --data d --size 32 --device sim:step=1ms".split(' ').collect::<Vec<_>>());
    }
}
