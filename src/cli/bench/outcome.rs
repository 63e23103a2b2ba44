//! Results of a sweep: its combinations with their runs, the stages measured alone, the prediction and the knees; as a
//! typed report that becomes a table, JSON and a page, and as CSV.

use std::time::Duration;

use serde::Serialize;

use feedstock::device::DeviceSpec;
use feedstock::host::HostFacts;
use feedstock::{ByteCount, RamBudget};

use super::super::format::{bytes, percent, rate, time};
use super::super::table::{columns, counted};
use super::report::{LatencyStep, Request, RunReport, SlowReport, StageReport, WaitBucket};
use super::stage_bench::StageBench;
use super::{BenchArgs, Mode};

/// A number of a run.
type Measure = fn(&RunReport) -> Option<f64>;

/// Columns of the CSV after budget, workers and run.
const COLUMNS: [(&str, Measure); 10] = [
    ("images_per_s", |run| Some(run.images_per_s)),
    ("compute_share", |run| run.compute_share),
    ("input_wait_share", |run| Some(run.input_wait_share)),
    ("wait_p50_s", |run| run.wait_p50_s),
    ("wait_p99_s", |run| run.wait_p99_s),
    ("first_batch_s", |run| run.first_batch_s),
    ("peak_rss_bytes", |run| Some(run.peak_rss_bytes as f64)),
    ("planned_bytes", |run| Some(run.planned_bytes as f64)),
    ("cpu_s", |run| Some(run.cpu_s)),
    ("encoded_bytes", |run| Some(run.encoded_bytes as f64)),
];
/// A column of a table of points: header and cell.
type PointColumn = (&'static str, fn(&PointReport) -> String);

/// Columns of a table of points.
pub(super) const POINT_COLUMNS: [PointColumn; 14] = [
    ("budget", |point| point.budget.clone()),
    ("workers", |point| point.workers.to_string()),
    ("images/s", |point| rate(point.images_per_s.median)),
    ("spread", |point| format!("{}-{}", rate(point.images_per_s.least), rate(point.images_per_s.most))),
    ("expected", |point| or_dash(point.expected_images_per_s, rate)),
    ("device busy", |point| or_dash(point.compute_share.map(|share| share.median), percent)),
    ("predicted", |point| or_dash(point.predicted_share, percent)),
    ("input wait", |point| percent(point.input_wait_share.median)),
    ("wait p50", |point| or_dash(point.wait_p50_s, time)),
    ("wait p99", |point| or_dash(point.wait_p99_s, time)),
    ("peak RSS", |point| bytes(point.peak_rss_bytes as f64)),
    ("planned", |point| bytes(point.planned_bytes as f64)),
    ("cores", |point| format!("{:.1}", point.cores_busy)),
    ("read", |point| bytes(point.encoded_bytes)),
];
/// Combinations within this share of the best count as equally good.
const AS_GOOD: f64 = 0.97;

/// Everything that a sweep has measured so far.
#[derive(Clone)]
pub(super) struct Outcome {
    pub(super) points: Vec<Point>,
    pub(super) stages: Vec<StageRuns>,
    request: SweepRequest,
    /// Duration of a training step, if there is one.
    step: Option<Duration>,
    /// True if the consumer is a model, whose speed the stages alone do not predict.
    trains: bool,
    cores: usize,
}

/// The runs of one combination.
#[derive(Clone, Debug)]
pub(super) struct Point {
    pub(super) budget: RamBudget,
    pub(super) workers: Option<usize>,
    pub(super) runs: Vec<RunReport>,
    /// Largest resident size seen from outside.
    pub(super) peak_seen: ByteCount,
}

/// The runs of one stage alone.
#[derive(Clone, Debug)]
pub(super) struct StageRuns {
    pub(super) mode: Mode,
    pub(super) workers: Option<usize>,
    pub(super) runs: Vec<StageBench>,
}

/// The JSON of a sweep.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct SweepReport {
    pub(super) feedstock: &'static str,
    pub(super) machine: Machine,
    pub(super) request: SweepRequest,
    pub(super) points: Vec<PointReport>,
    pub(super) ceilings: Vec<Ceiling>,
    pub(super) judged_by: Merit,
    pub(super) knees: Vec<String>,
    pub(super) error: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Machine {
    pub(super) cpus: usize,
    pub(super) memory_bytes: u64,
    pub(super) cpu: Option<String>,
    pub(super) system: &'static str,
}

#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct SweepRequest {
    #[serde(flatten)]
    pub(super) run: Request,
    pub(super) step_ms: Option<f64>,
    pub(super) epochs: u64,
    pub(super) rounds: u64,
}

/// The JSON of one combination.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct PointReport {
    pub(super) budget: String,
    pub(super) budget_bytes: u64,
    pub(super) workers: u64,
    pub(super) runs: usize,
    pub(super) images_per_s: Spread,
    pub(super) expected_images_per_s: Option<f64>,
    pub(super) compute_share: Option<Spread>,
    pub(super) predicted_share: Option<f64>,
    pub(super) input_wait_share: Spread,
    pub(super) wait_p50_s: Option<f64>,
    pub(super) wait_p99_s: Option<f64>,
    pub(super) first_batch_s: Option<f64>,
    pub(super) peak_rss_bytes: u64,
    pub(super) planned_bytes: u64,
    pub(super) cores_busy: f64,
    pub(super) encoded_bytes: f64,
    // Of the run with the median speed:
    pub(super) bottleneck: String,
    pub(super) stages: Vec<StageReport>,
    pub(super) sample_latency: Vec<LatencyStep>,
    pub(super) waits: Vec<WaitBucket>,
    pub(super) slowest: Vec<SlowReport>,
}

/// The JSON of one stage alone.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Ceiling {
    pub(super) what: String,
    /// Set for decoding alone, the only stage whose speed depends on the number of workers.
    pub(super) workers: Option<u64>,
    pub(super) threads: u64,
    pub(super) images_per_s: Option<Spread>,
    pub(super) bytes_per_s: Option<f64>,
    pub(super) cpu_s_per_image: Option<f64>,
    pub(super) ceiling: Option<String>,
    pub(super) ceiling_images_per_s: Option<f64>,
    pub(super) share_of_ceiling: Option<f64>,
}

/// Median, minimum and maximum of several runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
}

/// The measure by which combinations are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Merit {
    #[default]
    ComputeShare,
    ImagesPerS,
}

/// Prediction for a combination, from the stages alone.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Expected {
    images_per_s: f64,
    /// Utilization of the device, if there is a step.
    compute_share: Option<f64>,
}

fn or_dash(value: Option<f64>, text: fn(f64) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), text)
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut all: Vec<f64> = values.filter(|value| value.is_finite()).collect();
        all.sort_by(f64::total_cmp);
        Some(Spread { median: *all.get(all.len() / 2)?, least: *all.first()?, most: *all.last()? })
    }
}

impl Outcome {
    /// An outcome without runs.
    pub(super) fn new(args: &BenchArgs, points: Vec<Point>) -> Self {
        let mut workers: Vec<_> = points.iter().map(|point| point.workers).collect();
        workers.sort_unstable();
        workers.dedup();
        let stage = |mode, workers| StageRuns { mode, workers, runs: Vec::new() };
        let decode = workers.iter().map(|workers| stage(Mode::Decode, *workers));
        let stages = decode.chain([stage(Mode::Read, workers[0]), stage(Mode::Transfer, workers[0])]).collect();
        let simulated = match &args.loader.device {
            DeviceSpec::Sim(sim) => Some(sim.step),
            _ => None,
        };
        let step = args.step().or(simulated);
        let (data, device) = (args.loader.batch.data.to_string_lossy().into_owned(), args.loader.device.to_string());
        let request = SweepRequest {
            run: Request::new(args, data, device),
            step_ms: step.map(|step| step.as_secs_f64() * 1e3),
            epochs: args.epochs,
            rounds: args.rounds,
        };
        let step = step.filter(|step| !step.is_zero());
        let cores = HostFacts::read().cpus.workers_max();
        Outcome { points, stages, request, step, trains: args.model.is_some(), cores }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.points.iter().all(|point| point.runs.is_empty())
    }

    /// Median speed of a stage alone in images per second, and its CPU time per image in seconds.
    fn stage(&self, mode: Mode, workers: Option<usize>) -> Option<(f64, f64)> {
        let mut all = self.stages.iter();
        let stage = all.find(|stage| stage.mode == mode && (mode != Mode::Decode || stage.workers == workers))?;
        Some((stage.median(|run| run.images_per_s)?, stage.median(|run| run.cpu_s_per_image)?))
    }

    /// Prediction for a combination: the speed at which its workers decode, unless there are too few cores for
    /// decoding, reading and transferring together; and no faster than reading, transferring or training alone. The
    /// budget is taken to be no limit.
    fn expected(&self, workers: Option<usize>) -> Option<Expected> {
        let (decoded, decode_cpu) = self.stage(Mode::Decode, workers).filter(|_| !self.trains)?;
        let (read, read_cpu) = self.stage(Mode::Read, None)?;
        // Batches that need no transfer take no time for it.
        let (moved, transfer_cpu) = self.stage(Mode::Transfer, None).unwrap_or((f64::INFINITY, 0.0));
        let by_cores = self.cores as f64 / (decode_cpu + read_cpu + transfer_cpu);
        let fed = decoded.min(by_cores).min(read).min(moved);
        let trained = self.step.map(|step| self.request.run.batch_size as f64 / step.as_secs_f64());
        Some(Expected {
            images_per_s: trained.map_or(fed, |trained| fed.min(trained)),
            compute_share: trained.map(|trained| (fed / trained).min(1.0)),
        })
    }

    pub(super) fn report(&self, error: Option<&str>) -> SweepReport {
        let host = HostFacts::read();
        let points: Vec<_> =
            self.points.iter().filter_map(|point| point.report(self.expected(point.workers))).collect();
        // A device that is hardly used is no measure.
        let busy =
            points.iter().filter_map(|point| point.compute_share).fold(0.0, |most, share| share.median.max(most));
        let judged_by = if busy > 0.05 { Merit::ComputeShare } else { Merit::ImagesPerS };
        SweepReport {
            feedstock: env!("CARGO_PKG_VERSION"),
            machine: Machine {
                cpus: self.cores,
                memory_bytes: host.memory.total.0,
                cpu: host.cpus.model,
                system: std::env::consts::OS,
            },
            request: self.request.clone(),
            ceilings: self.stages.iter().filter_map(StageRuns::ceiling).collect(),
            knees: knees(&points, judged_by),
            judged_by,
            points,
            error: error.map(str::to_owned),
        }
    }

    pub(super) fn csv(&self) -> String {
        let head = COLUMNS.map(|(name, _)| name).join(",");
        let mut lines = vec![format!("budget,workers,run,{head}")];
        for point in &self.points {
            for (n, run) in point.runs.iter().enumerate() {
                let cells = COLUMNS.map(|(_, value)| value(run).map_or_else(String::new, |value| value.to_string()));
                lines.push(format!("{},{},{},{}", point.budget, run.workers, n + 1, cells.join(",")));
            }
        }
        lines.join("\n") + "\n"
    }
}

impl Point {
    /// Report of the runs so far; `None` if there are none.
    fn report(&self, expected: Option<Expected>) -> Option<PointReport> {
        let spread = |value: Measure| Spread::of(self.runs.iter().filter_map(value));
        let median = |value: Measure| spread(value).map(|spread| spread.median);
        let images_per_s = spread(|run| Some(run.images_per_s))?;
        let run = self.runs.iter().find(|run| run.images_per_s == images_per_s.median)?.clone();
        let peak = self.runs.iter().map(|run| run.peak_rss_bytes).max().unwrap_or(0);
        let cores = self.runs.iter().map(|run| run.cpu_s / run.process_s);
        Some(PointReport {
            budget: self.budget.to_string(),
            budget_bytes: run.ram_budget_bytes,
            workers: run.workers,
            runs: self.runs.len(),
            images_per_s,
            expected_images_per_s: expected.map(|expected| expected.images_per_s),
            compute_share: spread(|run| run.compute_share),
            predicted_share: expected.and_then(|expected| expected.compute_share),
            input_wait_share: spread(|run| Some(run.input_wait_share))?,
            wait_p50_s: median(|run| run.wait_p50_s),
            wait_p99_s: median(|run| run.wait_p99_s),
            first_batch_s: median(|run| run.first_batch_s),
            peak_rss_bytes: peak.max(self.peak_seen.0),
            planned_bytes: run.planned_bytes,
            cores_busy: cores.sum::<f64>() / self.runs.len() as f64,
            encoded_bytes: median(|run| Some(run.encoded_bytes as f64))?,
            bottleneck: run.bottleneck,
            stages: run.stages,
            sample_latency: run.sample_latency,
            waits: run.waits,
            slowest: run.slowest,
        })
    }
}

impl StageRuns {
    fn median(&self, value: fn(&StageBench) -> Option<f64>) -> Option<f64> {
        Spread::of(self.runs.iter().filter_map(value)).map(|spread| spread.median)
    }

    fn ceiling(&self) -> Option<Ceiling> {
        let last = self.runs.last()?;
        Some(Ceiling {
            what: last.mode.clone(),
            workers: (self.mode == Mode::Decode).then_some(last.workers),
            threads: last.workers,
            images_per_s: Spread::of(self.runs.iter().filter_map(|run| run.images_per_s)),
            bytes_per_s: self.median(|run| run.bytes_per_s),
            cpu_s_per_image: self.median(|run| run.cpu_s_per_image),
            ceiling: last.ceiling.clone(),
            ceiling_images_per_s: self.median(|run| run.ceiling_images_per_s),
            share_of_ceiling: self.median(|run| run.share_of_ceiling),
        })
    }
}

impl PointReport {
    /// Name of the combination: "256M, 2 workers".
    pub(super) fn name(&self) -> String {
        format!("{}, {}", self.budget, counted(self.workers, "worker"))
    }

    fn merit(&self, by: Merit) -> f64 {
        match by {
            Merit::ComputeShare => self.compute_share.map_or(0.0, |share| share.median),
            Merit::ImagesPerS => self.images_per_s.median,
        }
    }
}

impl SweepReport {
    /// The point with the fewest workers, then with the smallest budget, that is as good as any.
    pub(super) fn best(&self) -> Option<&PointReport> {
        good(&self.points, self.judged_by).min_by_key(|point| (point.workers, point.budget_bytes))
    }

    pub(super) fn text(&self) -> String {
        // All but the last column, so that lines stay short.
        let columns_of = |cell: &dyn Fn(usize) -> String| -> [String; 13] { std::array::from_fn(cell) };
        let rows: Vec<_> = self.points.iter().map(|point| columns_of(&|n| (POINT_COLUMNS[n].1)(point))).collect();
        let head: [&str; 13] = std::array::from_fn(|n| POINT_COLUMNS[n].0);
        let mut lines = Vec::new();
        if !rows.is_empty() {
            lines.extend([columns(head, &rows), String::new()]);
        }
        lines.push(String::new());
        lines.extend(self.ceilings.iter().filter_map(Ceiling::text));
        lines.extend(self.knees.iter().map(|knee| format!("knee at {knee}")));
        lines.extend(self.points.last().map(|point| format!("bottleneck of the last run: {}", point.bottleneck)));
        lines.extend(self.error.iter().map(|error| format!("ended early: {error}")));
        lines.join("\n")
    }
}

impl Ceiling {
    fn text(&self) -> Option<String> {
        let threads = counted(self.threads, "thread");
        let share = self.share_of_ceiling.zip(self.ceiling.as_ref());
        let share = share.map(|(share, ceiling)| format!(", {} of {ceiling}", percent(share))).unwrap_or_default();
        Some(format!("{} alone, {threads}: {:.0} images/s{share}", self.what, self.images_per_s?.median))
    }
}

/// Points that are as good as any.
fn good(points: &[PointReport], by: Merit) -> impl Iterator<Item = &PointReport> {
    let best = points.iter().map(|point| point.merit(by)).fold(0.0, f64::max);
    points.iter().filter(move |point| point.merit(by) >= AS_GOOD * best)
}

/// For each budget with several numbers of workers, the smallest one that is as good as any.
fn knees(points: &[PointReport], by: Merit) -> Vec<String> {
    let of_budget = points.chunk_by(|a, b| a.budget == b.budget).filter(|points| points.len() > 1);
    of_budget
        .filter_map(|points| {
            let knee = good(points, by).min_by_key(|point| point.workers)?;
            let speed = match by {
                Merit::ComputeShare => format!("{} utilization", percent(knee.merit(by))),
                Merit::ImagesPerS => format!("{:.0} images/s", knee.merit(by)),
            };
            let is_last = points.iter().all(|point| point.workers <= knee.workers);
            let more = if is_last { "more may be faster" } else { "more are not faster" };
            Some(format!("{}: {}: {speed}; {more}", knee.budget, counted(knee.workers, "worker")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(workers: u64, images_per_s: f64, compute_share: Option<f64>) -> RunReport {
        RunReport { workers, images_per_s, compute_share, process_s: 1.0, ..RunReport::default() }
    }

    fn point(workers: usize, speed: f64, busy: Option<f64>) -> Point {
        let runs = vec![run(workers as u64, speed, busy)];
        Point { budget: RamBudget::Auto, workers: Some(workers), runs, peak_seen: ByteCount::ZERO }
    }

    fn outcome(points: Vec<Point>, step: Option<Duration>) -> Outcome {
        let stage = |mode, workers: Option<usize>, images_per_s: f64, cpu_s: f64| StageRuns {
            mode,
            workers,
            runs: vec![StageBench {
                images_per_s: Some(images_per_s),
                cpu_s_per_image: Some(cpu_s),
                ..StageBench::default()
            }],
        };
        let mut request = SweepRequest::default();
        request.run.batch_size = 64;
        Outcome {
            points,
            stages: vec![
                stage(Mode::Decode, Some(1), 1000.0, 0.001),
                stage(Mode::Decode, Some(2), 2000.0, 0.001),
                stage(Mode::Decode, Some(8), 2000.0, 0.001),
                stage(Mode::Read, Some(1), 9000.0, 0.0002),
                stage(Mode::Transfer, Some(1), 50_000.0, 0.00005),
            ],
            request,
            step,
            trains: false,
            cores: 2,
        }
    }

    #[test]
    fn knee_is_the_fewest_workers_that_are_as_good_as_any() {
        let knees = |points: &[Point]| outcome(points.to_vec(), None).report(None).knees;
        let flat = [point(1, 100.0, None), point(2, 198.0, None), point(4, 200.0, None)];
        assert_eq!(knees(&flat), ["auto: 2 workers: 198 images/s; more are not faster"]);
        let growing = [point(1, 100.0, Some(0.3)), point(2, 190.0, Some(0.6))];
        assert_eq!(knees(&growing), ["auto: 2 workers: 60 % utilization; more may be faster"]);
        assert_eq!(knees(&flat[..1]), [""; 0]);
        let best = outcome(flat.to_vec(), None).report(None).best().map(|point| point.workers);
        assert_eq!(best, Some(2));
        assert!(outcome(Vec::new(), None).report(None).best().is_none());
    }

    #[test]
    fn prediction_is_bounded_by_workers_cores_and_the_step() {
        let free = outcome(Vec::new(), None);
        let of = |outcome: &Outcome, workers| outcome.expected(Some(workers)).expect("all stages were run");
        assert_eq!(of(&free, 1), Expected { images_per_s: 1000.0, compute_share: None });
        let by_cores = 2.0 / 0.00125;
        assert_eq!(of(&free, 2), Expected { images_per_s: by_cores, compute_share: None });
        assert_eq!(of(&free, 8), of(&free, 2), "no more cores");
        // A step of 80 ms takes 800 images a second: one worker feeds it.
        let slow = outcome(Vec::new(), Some(Duration::from_millis(80)));
        assert_eq!(of(&slow, 1), Expected { images_per_s: 800.0, compute_share: Some(1.0) });
        let fast = outcome(Vec::new(), Some(Duration::from_millis(32)));
        assert_eq!(of(&fast, 1), Expected { images_per_s: 1000.0, compute_share: Some(0.5) });
        let trained = Outcome { trains: true, ..outcome(Vec::new(), None) };
        assert_eq!(trained.expected(Some(1)), None, "the model's speed is unknown");
        let unknown = Outcome { stages: Vec::new(), ..outcome(Vec::new(), None) };
        assert_eq!(unknown.expected(Some(1)), None, "no stage was run");
    }
}
