//! Owns what a sweep came to: its combinations with their runs, the parts alone, the prediction, the knee; as a table, as
//! JSON and as CSV. It must never run anything, nor show a number that no run has told.

use std::time::Duration;

use serde_json::{Value, json};

use feedstock::device::DeviceSpec;
use feedstock::host::HostFacts;
use feedstock::{ByteCount, RamBudget};

use super::super::table::{columns, counted};
use super::{BenchArgs, Mode};

/// What a line of the CSV says of a run, by its names in the run's JSON.
const COLUMNS: [&str; 10] = [
    "images_per_s",
    "compute_share",
    "input_wait_share",
    "wait_p50_s",
    "wait_p99_s",
    "first_batch_s",
    "peak_rss_bytes",
    "planned_bytes",
    "cpu_s",
    "encoded_bytes",
];
/// A combination within this share of the best is as good.
pub(super) const AS_GOOD: f64 = 0.97;

/// Everything that a sweep has seen so far.
#[derive(Clone)]
pub(super) struct Outcome {
    pub(super) points: Vec<Point>,
    pub(super) alone: Vec<Alone>,
    /// What was asked for.
    request: Value,
    batch_size: usize,
    /// What a training step takes, where there is one.
    step: Option<Duration>,
    /// Whether the consumer is a model, of whose speed the parts alone tell nothing.
    trains: bool,
    cores: usize,
}

/// One combination, and what its runs came to.
#[derive(Clone, Debug)]
pub(super) struct Point {
    pub(super) budget: RamBudget,
    pub(super) workers: Option<usize>,
    pub(super) runs: Vec<Value>,
    pub(super) peak_seen: ByteCount,
}

/// One part of the way alone, and what its runs came to.
#[derive(Clone, Debug)]
pub(super) struct Alone {
    pub(super) mode: Mode,
    pub(super) workers: Option<usize>,
    pub(super) runs: Vec<Value>,
}

/// A number of several runs, in the middle; and the least and the most.
fn number(runs: &[Value], key: &str) -> Option<(f64, f64, f64)> {
    let mut all: Vec<f64> = runs.iter().filter_map(|run| run[key].as_f64()).collect();
    all.sort_by(f64::total_cmp);
    Some((*all.get(all.len() / 2)?, *all.first()?, *all.last()?))
}

fn three(runs: &[Value], key: &str) -> Value {
    number(runs, key)
        .map_or(Value::Null, |(middle, least, most)| json!({ "median": middle, "least": least, "most": most }))
}

impl Point {
    fn number(&self, key: &str) -> Option<(f64, f64, f64)> {
        number(&self.runs, key)
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

    /// The run whose speed is the middle one's.
    fn middle_run(&self) -> Option<&Value> {
        let speed = self.middle("images_per_s")?;
        self.runs.iter().find(|run| run["images_per_s"].as_f64() == Some(speed))
    }
}

/// What the parts alone let expect of a combination.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Expected {
    images_per_s: f64,
    /// Of the device, where there is a step.
    compute_share: Option<f64>,
}

impl Outcome {
    /// Nothing has been run yet.
    pub(super) fn new(args: &BenchArgs, points: Vec<Point>) -> Self {
        let mut workers: Vec<_> = points.iter().map(|point| point.workers).collect();
        workers.sort_unstable();
        workers.dedup();
        let alone = |mode, workers| Alone { mode, workers, runs: Vec::new() };
        let decode = workers.iter().map(|workers| alone(Mode::Decode, *workers));
        let alone = decode.chain([alone(Mode::Read, workers[0]), alone(Mode::Transfer, workers[0])]).collect();
        let simulated = match &args.loader.device {
            DeviceSpec::Sim(sim) => Some(sim.step),
            _ => None,
        };
        let step = args.step().or(simulated);
        let request = json!({
            "data": args.loader.data.to_string_lossy(),
            "batch_size": args.loader.batch_size,
            "size": args.loader.size,
            "output": args.loader.output.to_string(),
            "layout": args.loader.layout.to_string(),
            "device": args.loader.device.to_string(),
            "step_ms": step.map(|step| step.as_secs_f64() * 1e3),
            "epochs": args.epochs,
            "warmup_epochs": args.warmup_epochs,
            "rounds": args.rounds,
            "model": args.model.map(|model| model.to_string()),
            "seed": args.seed,
        });
        let step = step.filter(|step| !step.is_zero());
        let cores = HostFacts::read().cpus.workers_max();
        let (batch_size, trains) = (args.loader.batch_size, args.model.is_some());
        Outcome { points, alone, request, batch_size, step, trains, cores }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.points.iter().all(|point| point.runs.is_empty())
    }

    fn done(&self) -> impl Iterator<Item = &Point> {
        self.points.iter().filter(|point| !point.runs.is_empty())
    }

    /// A part alone is as fast as so many images a second, and takes so many seconds of processor time an image.
    fn part(&self, mode: Mode, workers: Option<usize>) -> Option<(f64, f64)> {
        let alone =
            self.alone.iter().find(|alone| alone.mode == mode && (mode != Mode::Decode || alone.workers == workers))?;
        let middle = |key| number(&alone.runs, key).map(|(middle, ..)| middle);
        Some((middle("images_per_s")?, middle("cpu_s_per_image")?))
    }

    /// What is to be expected of a combination, by its parts alone: as fast as its workers decode, unless there are not
    /// cores enough for that and for reading and finishing besides; and no faster than what is read, transferred or
    /// trained on. The budget is taken to be no limit.
    fn expected(&self, point: &Point) -> Option<Expected> {
        let (decoded, decoding) = self.part(Mode::Decode, point.workers).filter(|_| !self.trains)?;
        let (read, reading) = self.part(Mode::Read, None)?;
        // Batches that are handed over where they are take none.
        let (moved, moving) = self.part(Mode::Transfer, None).unwrap_or((f64::INFINITY, 0.0));
        let by_cores = self.cores as f64 / (decoding + reading + moving);
        let fed = decoded.min(by_cores).min(read).min(moved);
        let trained = self.step.map(|step| self.batch_size as f64 / step.as_secs_f64());
        Some(Expected {
            images_per_s: trained.map_or(fed, |trained| fed.min(trained)),
            compute_share: trained.map(|trained| (fed / trained).min(1.0)),
        })
    }

    fn point_json(&self, point: &Point) -> Value {
        let expected = self.expected(point);
        let mut told = json!({
            "budget": point.budget.to_string(),
            "budget_bytes": point.runs.first().map(|run| &run["ram_budget_bytes"]),
            "workers": point.workers(),
            "runs": point.runs.len(),
            "images_per_s": three(&point.runs, "images_per_s"),
            "expected_images_per_s": expected.map(|expected| expected.images_per_s),
            "compute_share": three(&point.runs, "compute_share"),
            "predicted_share": expected.and_then(|expected| expected.compute_share),
            "input_wait_share": three(&point.runs, "input_wait_share"),
            "wait_p50_s": point.middle("wait_p50_s"),
            "wait_p99_s": point.middle("wait_p99_s"),
            "first_batch_s": point.middle("first_batch_s"),
            "peak_rss_bytes": point.peak().0,
            "planned_bytes": point.runs.first().map(|run| &run["planned_bytes"]),
            "cores_busy": point.cores(),
            "encoded_bytes": point.middle("encoded_bytes"),
        });
        for key in ["bottleneck", "stages", "journey", "waits", "slowest"] {
            told[key] = point.middle_run().map_or(Value::Null, |run| run[key].clone());
        }
        told
    }

    pub(super) fn json(&self, error: Option<&str>) -> Value {
        let ceilings = self.alone.iter().filter(|alone| !alone.runs.is_empty()).map(|alone| {
            let last = alone.runs.last().unwrap_or(&Value::Null);
            json!({
                "what": last["mode"],
                // Only decoding depends on how many workers there are.
                "workers": (alone.mode == Mode::Decode).then(|| &last["workers"]),
                "threads": last["workers"],
                "images_per_s": three(&alone.runs, "images_per_s"),
                "bytes_per_s": number(&alone.runs, "bytes_per_s").map(|(middle, ..)| middle),
                "cpu_s_per_image": number(&alone.runs, "cpu_s_per_image").map(|(middle, ..)| middle),
                "ceiling": last["ceiling"],
                "ceiling_images_per_s": number(&alone.runs, "ceiling_images_per_s").map(|(middle, ..)| middle),
                "share_of_ceiling": number(&alone.runs, "share_of_ceiling").map(|(middle, ..)| middle),
            })
        });
        let host = HostFacts::read();
        json!({
            "feedstock": env!("CARGO_PKG_VERSION"),
            "machine": {
                "cpus": self.cores,
                "memory_bytes": host.memory.total.0,
                "cpu": host.cpus.model,
                "system": std::env::consts::OS,
            },
            "request": self.request,
            "points": self.done().map(|point| self.point_json(point)).collect::<Value>(),
            "ceilings": ceilings.collect::<Value>(),
            "judged_by": merit(&self.points),
            "knees": knees(&self.points),
            "error": error,
        })
    }

    pub(super) fn text(&self, error: Option<&str>) -> String {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let percent = |share: f64| format!("{:.0} %", 100.0 * share);
        let millis = |seconds: f64| format!("{:.1} ms", 1e3 * seconds);
        let row = |point: &Point| {
            let speed = point.number("images_per_s");
            let expected = self.expected(point);
            [
                point.budget.to_string(),
                point.workers().to_string(),
                or_none(speed.map(|(middle, ..)| format!("{middle:.0}"))),
                or_none(speed.map(|(_, least, most)| format!("{least:.0}-{most:.0}"))),
                or_none(expected.map(|expected| format!("{:.0}", expected.images_per_s))),
                or_none(point.middle("compute_share").map(percent)),
                or_none(expected.and_then(|expected| expected.compute_share).map(percent)),
                or_none(point.middle("input_wait_share").map(percent)),
                or_none(point.middle("wait_p50_s").map(millis)),
                or_none(point.middle("wait_p99_s").map(millis)),
                point.peak().to_string(),
                or_none(point.middle("planned_bytes").map(|bytes| ByteCount(bytes as u64).to_string())),
                or_none(point.cores().map(|cores| format!("{cores:.1}"))),
            ]
        };
        let head = [
            "budget",
            "workers",
            "images/s",
            "spread",
            "expected",
            "device busy",
            "predicted",
            "input wait",
            "wait p50",
            "wait p99",
            "peak RSS",
            "planned",
            "cores",
        ];
        let rows: Vec<_> = self.done().map(row).collect();
        let mut lines = vec![columns(head, &rows), String::new()];
        lines.extend(self.alone.iter().filter_map(Alone::text));
        lines.extend(knees(&self.points).into_iter().map(|knee| format!("knee at {knee}")));
        if let Some(bottleneck) = self.done().last().and_then(|point| point.middle_run()?["bottleneck"].as_str()) {
            lines.push(format!("the last of them was held up by {bottleneck}"));
        }
        lines.extend(error.map(|error| format!("ended early: {error}")));
        lines.join("\n")
    }

    pub(super) fn csv(&self) -> String {
        let mut lines = vec![format!("budget,workers,run,{}", COLUMNS.join(","))];
        for point in &self.points {
            for (run, said) in point.runs.iter().enumerate() {
                let cells = COLUMNS.map(|key| if said[key].is_null() { String::new() } else { said[key].to_string() });
                lines.push(format!("{},{},{},{}", point.budget, point.workers(), run + 1, cells.join(",")));
            }
        }
        lines.join("\n") + "\n"
    }
}

impl Alone {
    fn text(&self) -> Option<String> {
        let last = self.runs.last()?;
        let middle = |key| number(&self.runs, key).map(|(middle, ..)| middle);
        let threads = counted(last["workers"].as_u64()?, "thread");
        let share = middle("share_of_ceiling").map_or_else(String::new, |share| {
            format!(", {:.0} % of {}", 100.0 * share, last["ceiling"].as_str().unwrap_or("what is possible"))
        });
        Some(format!("{} alone, {threads}: {:.0} images/s{share}", last["mode"].as_str()?, middle("images_per_s")?))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn point(workers: usize, speed: f64, busy: Option<f64>) -> Point {
        let run = json!({ "workers": workers, "images_per_s": speed, "compute_share": busy });
        Point { budget: RamBudget::Auto, workers: Some(workers), runs: vec![run], peak_seen: ByteCount::ZERO }
    }

    #[test]
    fn the_knee_is_the_fewest_workers_that_are_as_good_as_any() {
        let alone = [point(1, 100.0, None), point(2, 198.0, None), point(4, 200.0, None)];
        assert_eq!(knees(&alone), ["auto: 2 workers: 198 images/s; more buys nothing"]);
        let growing = [point(1, 100.0, Some(0.3)), point(2, 190.0, Some(0.6))];
        assert_eq!(knees(&growing), ["auto: 2 workers: 60 % utilisation; more may buy more"]);
        assert_eq!(knees(&alone[..1]), [""; 0]);
    }

    fn outcome(step: Option<Duration>) -> Outcome {
        let alone = |mode, workers: Option<usize>, images_per_s: f64, cpu: f64| Alone {
            mode,
            workers,
            runs: vec![json!({ "images_per_s": images_per_s, "cpu_s_per_image": cpu })],
        };
        Outcome {
            points: vec![point(1, 0.0, None), point(2, 0.0, None), point(8, 0.0, None)],
            alone: vec![
                alone(Mode::Decode, Some(1), 1000.0, 0.001),
                alone(Mode::Decode, Some(2), 2000.0, 0.001),
                alone(Mode::Decode, Some(8), 2000.0, 0.001),
                alone(Mode::Read, Some(1), 9000.0, 0.0002),
                alone(Mode::Transfer, Some(1), 50_000.0, 0.00005),
            ],
            request: Value::Null,
            batch_size: 64,
            step,
            trains: false,
            cores: 2,
        }
    }

    #[test]
    fn what_is_expected_is_bounded_by_workers_cores_and_the_step() {
        let free = outcome(None);
        let of =
            |outcome: &Outcome, place: usize| outcome.expected(&outcome.points[place]).expect("all parts were run");
        assert_eq!(of(&free, 0), Expected { images_per_s: 1000.0, compute_share: None });
        let by_cores = 2.0 / 0.00125;
        assert_eq!(of(&free, 1), Expected { images_per_s: by_cores, compute_share: None });
        assert_eq!(of(&free, 2), of(&free, 1), "no more cores");
        // A step of 80 ms takes 800 images a second: one worker feeds it.
        let slow = outcome(Some(Duration::from_millis(80)));
        assert_eq!(of(&slow, 0), Expected { images_per_s: 800.0, compute_share: Some(1.0) });
        let fast = outcome(Some(Duration::from_millis(32)));
        assert_eq!(of(&fast, 0), Expected { images_per_s: 1000.0, compute_share: Some(0.5) });
        let trained = Outcome { trains: true, ..outcome(None) };
        assert_eq!(trained.expected(&trained.points[0]), None, "nobody knows how fast the model is");
        let mut unknown = outcome(None);
        unknown.alone.clear();
        assert_eq!(unknown.expected(&unknown.points[0]), None, "nothing is made up");
    }
}
