//! Owns `feedstock bench` over several budgets and numbers of workers: every combination in turn, round after round, each run
//! in a process of its own that is watched from outside, and what it comes to. It must never run two at once.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::process::Command;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use feedstock::{ByteCount, RamBudget};

use super::super::child::Watched;
use super::super::failure::{Failure, print};
use super::super::progress::Progress;
use super::super::table::{columns, counted};
use super::super::{Context, lock};
use super::BenchArgs;

/// Options with a value that belong to the sweep, and not to its runs.
const OURS: [&str; 5] = ["--workers", "--ram-budget", "--rounds", "--csv", "--json"];
/// What a line of the CSV says of a run, by its names in the run's JSON.
const COLUMNS: [&str; 9] = [
    "images_per_s",
    "compute_share",
    "input_wait_share",
    "wait_p50_s",
    "wait_p99_s",
    "peak_rss_bytes",
    "planned_bytes",
    "cpu_s",
    "encoded_bytes",
];
/// A combination within this share of the best is as good.
const AS_GOOD: f64 = 0.97;

/// One combination, and what its runs came to.
#[derive(Clone, Debug)]
struct Point {
    budget: RamBudget,
    workers: Option<usize>,
    runs: Vec<Value>,
    peak_seen: ByteCount,
}

impl Point {
    /// A number of the runs', in the middle; and the least and the most.
    fn number(&self, key: &str) -> Option<(f64, f64, f64)> {
        let mut all: Vec<f64> = self.runs.iter().filter_map(|run| run[key].as_f64()).collect();
        all.sort_by(f64::total_cmp);
        Some((*all.get(all.len() / 2)?, *all.first()?, *all.last()?))
    }

    fn middle(&self, key: &str) -> Option<f64> {
        self.number(key).map(|(middle, ..)| middle)
    }

    /// The most that was resident, as seen from outside or as the process says.
    fn peak(&self) -> ByteCount {
        let told = self.runs.iter().filter_map(|run| run["peak_rss_bytes"].as_u64()).max();
        ByteCount(told.unwrap_or(0)).max(self.peak_seen)
    }

    fn workers(&self) -> u64 {
        self.runs.first().and_then(|run| run["workers"].as_u64()).unwrap_or(0)
    }

    /// How many cores the process kept busy.
    fn cores(&self) -> Option<f64> {
        let shares = self.runs.iter().filter_map(|run| Some(run["cpu_s"].as_f64()? / run["process_s"].as_f64()?));
        let all: Vec<f64> = shares.collect();
        (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
    }

    fn json(&self) -> Value {
        let three = |key: &str| {
            self.number(key).map(|(middle, least, most)| json!({ "median": middle, "least": least, "most": most }))
        };
        json!({
            "budget_bytes": self.runs.first().map(|run| &run["ram_budget_bytes"]),
            "workers": self.workers(),
            "runs": self.runs.len(),
            "images_per_s": three("images_per_s"),
            "compute_share": three("compute_share"),
            "input_wait_share": three("input_wait_share"),
            "wait_p50_s": self.middle("wait_p50_s"),
            "wait_p99_s": self.middle("wait_p99_s"),
            "first_batch_s": self.middle("first_batch_s"),
            "peak_rss_bytes": self.peak().0,
            "planned_bytes": self.runs.first().map(|run| &run["planned_bytes"]),
            "cores_busy": self.cores(),
            "encoded_bytes": self.middle("encoded_bytes"),
            "bottleneck": self.runs.last().map(|run| &run["bottleneck"]),
        })
    }
}

/// Whether these arguments ask for more than one run.
pub(super) fn is_asked(args: &BenchArgs) -> bool {
    args.loader.ram_budget.len() > 1 || args.loader.workers.len() > 1
}

pub(super) fn run(args: &BenchArgs, context: &Context) -> Result<(), Failure> {
    let program = env::current_exe().map_err(|error| Failure::Io(format!("cannot find this program: {error}")))?;
    let workers: Vec<Option<usize>> = match args.loader.workers.is_empty() {
        true => vec![None],
        false => args.loader.workers.iter().copied().map(Some).collect(),
    };
    let points: Vec<Point> = args
        .loader
        .ram_budget
        .iter()
        .flat_map(|&budget| {
            let point =
                move |&workers: &Option<usize>| Point { budget, workers, runs: Vec::new(), peak_seen: ByteCount::ZERO };
            workers.iter().map(point).collect::<Vec<_>>()
        })
        .collect();
    let points = Arc::new(Mutex::new(points));
    let render = {
        let (points, json) = (points.clone(), args.json);
        move |error: Option<&str>| {
            let points = lock(&points);
            if json { to_json(&points, error).to_string() } else { to_text(&points, error) }
        }
    };
    {
        let render = render.clone();
        context.stop.last_words(move || drop(print(render(Some("interrupted")))));
    }
    let watched = Watched::default();
    let killer = watched.clone();
    context.stop.on_stop(move || killer.kill());
    let done = run_all(args, context, &program, &points, &watched);
    if context.stop.is_asked() && !context.stop.sum_up() {
        // The watchdog sums up, and ends the process.
        std::thread::park();
    }
    let ended = if context.stop.is_asked() { Err(Failure::Interrupted) } else { done };
    let error = ended.as_ref().err().map(|failure| match failure {
        Failure::Interrupted => "interrupted".to_owned(),
        Failure::Run { what, .. } | Failure::Broken(what) | Failure::Io(what) => what.clone(),
        _ => "failed".to_owned(),
    });
    if lock(&points).iter().any(|point| !point.runs.is_empty()) {
        print(render(error.as_deref()))?;
    }
    if let Some(path) = &args.csv {
        fs::write(path, to_csv(&lock(&points)))
            .map_err(|error| Failure::Io(format!("cannot write {}: {error}", path.display())))?;
    }
    ended
}

/// Every combination once, then all of them again: what drifts on the machine meets all alike.
fn run_all(
    args: &BenchArgs,
    context: &Context,
    program: &std::path::Path,
    points: &Mutex<Vec<Point>>,
    watched: &Watched,
) -> Result<(), Failure> {
    let count = lock(points).len();
    let runs = count as u64 * args.rounds;
    let mut progress = Progress::new(runs);
    for at in 0..runs {
        let index = (at % count as u64) as usize;
        let Point { budget, workers, .. } = lock(points)[index].clone();
        let name = format!(
            "with {} at a budget of {budget}",
            workers.map_or("workers by the plan".to_owned(), |n| counted(n as u64, "worker"))
        );
        let mut command = Command::new(program);
        command.args(passed_on(env::args_os().skip(1))).args(["--json", "--ram-budget", &budget.to_string()]);
        if let Some(workers) = workers {
            command.args(["--workers", &workers.to_string()]);
        }
        let ended =
            watched.run(command, &context.stop, |_| progress.at(at, || format!("run {} of {runs}: {name}", at + 1)));
        let ended = ended.map_err(|error| Failure::Io(format!("cannot run this program once more: {error}")))?;
        let said = ended.said(&name)?;
        let point = &mut lock(points)[index];
        point.peak_seen = point.peak_seen.max(ended.seen.peak_rss);
        point.runs.push(said);
    }
    Ok(())
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

/// What a combination is judged by: how busy the device was, where there is a step that makes it so; else images a second.
fn merit(points: &[Point]) -> &'static str {
    let busy = points.iter().filter_map(|point| point.middle("compute_share")).fold(0.0, f64::max);
    if busy > 0.05 { "compute_share" } else { "images_per_s" }
}

/// For each budget, the fewest workers that are as good as any.
fn knees(points: &[Point]) -> Vec<String> {
    let by = merit(points);
    let mut told = Vec::new();
    for of_budget in points.chunk_by(|a, b| a.budget == b.budget) {
        let merits: Vec<(u64, f64)> =
            of_budget.iter().filter_map(|point| Some((point.workers(), point.middle(by)?))).collect();
        let best = merits.iter().map(|(_, merit)| *merit).fold(0.0, f64::max);
        let mut good: Vec<_> = merits.iter().filter(|(_, merit)| *merit >= AS_GOOD * best).collect();
        good.sort_by_key(|(workers, _)| *workers);
        let (Some((workers, merit)), true) = (good.first(), merits.len() > 1) else { continue };
        let most = merits.iter().map(|(workers, _)| *workers).max().unwrap_or(0);
        let what = match by {
            "compute_share" => format!("{:.0} % utilisation", 100.0 * merit),
            _ => format!("{merit:.0} images/s"),
        };
        let more = if most > *workers { "more buys nothing" } else { "more may buy more" };
        let workers = counted(*workers, "worker");
        told.push(format!("{}: {workers}: {what}; {more}", of_budget[0].budget));
    }
    told
}

fn to_json(points: &[Point], error: Option<&str>) -> Value {
    json!({
        "points": points.iter().filter(|point| !point.runs.is_empty()).map(Point::json).collect::<Value>(),
        "judged_by": merit(points),
        "knees": knees(points),
        "error": error,
    })
}

fn to_text(points: &[Point], error: Option<&str>) -> String {
    let head = [
        "budget",
        "workers",
        "images/s",
        "spread",
        "device busy",
        "input wait",
        "wait p50",
        "wait p99",
        "peak RSS",
        "planned",
        "cores",
    ];
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let percent = |share: f64| format!("{:.0} %", 100.0 * share);
    let millis = |seconds: f64| format!("{:.1} ms", 1e3 * seconds);
    let done: Vec<&Point> = points.iter().filter(|point| !point.runs.is_empty()).collect();
    let rows: Vec<[String; 11]> = done
        .iter()
        .map(|point| {
            let speed = point.number("images_per_s");
            [
                point.budget.to_string(),
                point.workers().to_string(),
                or_none(speed.map(|(middle, ..)| format!("{middle:.0}"))),
                or_none(speed.map(|(_, least, most)| format!("{least:.0}-{most:.0}"))),
                or_none(point.middle("compute_share").map(percent)),
                or_none(point.middle("input_wait_share").map(percent)),
                or_none(point.middle("wait_p50_s").map(millis)),
                or_none(point.middle("wait_p99_s").map(millis)),
                point.peak().to_string(),
                or_none(point.middle("planned_bytes").map(|bytes| ByteCount(bytes as u64).to_string())),
                or_none(point.cores().map(|cores| format!("{cores:.1}"))),
            ]
        })
        .collect();
    let mut lines = vec![columns(head, &rows), String::new()];
    lines.extend(knees(points).into_iter().map(|knee| format!("knee at {knee}")));
    if let Some(bottleneck) = done.last().and_then(|point| point.runs.last()?["bottleneck"].as_str()) {
        lines.push(format!("the last of them was held up by {bottleneck}"));
    }
    lines.extend(error.map(|error| format!("ended early: {error}")));
    lines.join("\n")
}

fn to_csv(points: &[Point]) -> String {
    let mut lines = vec![format!("budget,workers,run,{}", COLUMNS.join(","))];
    for point in points {
        for (run, said) in point.runs.iter().enumerate() {
            let cells = COLUMNS.map(|key| if said[key].is_null() { String::new() } else { said[key].to_string() });
            lines.push(format!("{},{},{},{}", point.budget, point.workers(), run + 1, cells.join(",")));
        }
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_get_every_argument_that_is_not_the_sweeps_own() {
        let line =
            "bench --data d --workers 1,2 --ram-budget=1G,2G --json --size 32 --rounds 3 --csv f --device sim:step=1ms";
        let kept = passed_on(line.split(' ').map(OsString::from));
        assert_eq!(kept, "bench --data d --size 32 --device sim:step=1ms".split(' ').collect::<Vec<_>>());
    }

    fn point(workers: u64, speed: f64, busy: Option<f64>) -> Point {
        let run = json!({ "workers": workers, "images_per_s": speed, "compute_share": busy });
        Point { budget: RamBudget::Auto, workers: Some(workers as usize), runs: vec![run], peak_seen: ByteCount::ZERO }
    }

    #[test]
    fn the_knee_is_the_fewest_workers_that_are_as_good_as_any() {
        let alone = [point(1, 100.0, None), point(2, 198.0, None), point(4, 200.0, None)];
        assert_eq!(knees(&alone), ["auto: 2 workers: 198 images/s; more buys nothing"]);
        let growing = [point(1, 100.0, Some(0.3)), point(2, 190.0, Some(0.6))];
        assert_eq!(knees(&growing), ["auto: 2 workers: 60 % utilisation; more may buy more"]);
        assert_eq!(knees(&alone[..1]), [""; 0]);
    }
}
