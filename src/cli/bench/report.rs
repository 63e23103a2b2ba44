//! The report of one run of `feedstock bench`: as JSON, which sweeps and `feedstock prove` read back, and as text.
//!
//! A report can be made at any time and from any thread, so that an interrupted run reports as well.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use feedstock::device::{SimDevice, Utilization};
use feedstock::host::{HostFacts, process_cpu_time, process_memory};
use feedstock::stats::{Histogram, PipelineStats};
use feedstock::{ByteCount, Loader, Source};

use super::super::data::{BadReport, damaged_json, damaged_text, governor_json, governor_text, prefetch_depth};
use super::super::format::{self, percent};
use super::super::gpu::{self, Gpu};
use super::super::lock;
use super::super::table::{counted, facts};
use super::{BenchArgs, Totals, bottleneck};

/// Everything that a report is made of.
#[derive(Clone)]
pub(super) struct Report {
    folder: Arc<dyn Source>,
    loader: Loader,
    totals: Arc<Mutex<Totals>>,
    budget: ByteCount,
    request: Request,
    epochs: u64,
    has_digest: bool,
    /// Present if the device is a GPU.
    gpu: Option<Arc<Gpu>>,
    started: Instant,
}

/// The arguments of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(super) data: String,
    pub(super) batch_size: usize,
    pub(super) size: u32,
    pub(super) dtype: String,
    pub(super) layout: String,
    pub(super) device: String,
    pub(super) seed: u64,
    pub(super) model: Option<String>,
    pub(super) warmup_epochs: u64,
}

/// The JSON of a run. Times are in seconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct RunReport {
    pub(crate) images: u64,
    pub(crate) seconds: f64,
    pub(crate) images_per_s: f64,
    pub(crate) first_batch_s: Option<f64>,
    pub(crate) peak_rss_bytes: u64,
    pub(crate) ram_budget_bytes: u64,
    pub(crate) workers: u64,
    pub(crate) prefetch_depth: u64,
    pub(crate) digest: Option<String>,
    pub(crate) bad_samples: Vec<Value>,
    pub(crate) bad_sample_events: u64,
    pub(crate) batches: u64,
    pub(crate) epochs: u64,
    pub(crate) input_wait_share: f64,
    pub(crate) work_busy_s: f64,
    pub(crate) read_busy_s: f64,
    pub(crate) transfer_busy_s: f64,
    pub(crate) encoded_bytes: u64,
    pub(crate) oversized_samples: u64,
    pub(crate) damage_accepted: u64,
    pub(crate) damaged_samples: Vec<Value>,
    pub(crate) minimum_bytes: u64,
    pub(crate) knee_bytes: u64,
    pub(crate) planned_bytes: u64,
    pub(crate) ledger_peak_bytes: u64,
    pub(crate) slots: usize,
    pub(crate) outputs: usize,
    pub(crate) compute_share: Option<f64>,
    pub(crate) device_bytes: Option<u64>,
    pub(crate) device_allocations: Option<u64>,
    pub(crate) nvml_share: Option<f64>,
    pub(crate) copy_share: Option<f64>,
    pub(crate) violations: Vec<String>,
    pub(crate) governor: Value,
    pub(crate) notes: Vec<String>,
    pub(crate) state: Position,
    pub(crate) error: Option<String>,
    pub(crate) wait_p50_s: Option<f64>,
    pub(crate) wait_p99_s: Option<f64>,
    pub(crate) waits: Vec<WaitBucket>,
    pub(crate) stages: Vec<StageReport>,
    pub(crate) sample_latency: Vec<LatencyStep>,
    pub(crate) slowest: Vec<SlowReport>,
    pub(crate) cpu_s: f64,
    pub(crate) process_s: f64,
    pub(crate) bottleneck: String,
    pub(crate) epochs_asked: u64,
    #[serde(flatten)]
    pub(crate) request: Request,
}

/// The next batch, for a resumed run.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Position {
    epoch: u64,
    batch: u64,
}

/// Batches by the time that the consumer waited for them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct WaitBucket {
    pub(super) up_to_s: f64,
    pub(super) count: u64,
}

/// Time of the threads of a stage, over all epochs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StageReport {
    pub(super) stage: String,
    pub(super) threads: usize,
    pub(super) samples: u64,
    pub(super) busy_s: f64,
    pub(super) wait_in_s: f64,
    pub(super) wait_out_s: f64,
    pub(super) elapsed_s: f64,
}

/// Mean time of a sample in one step of the pipeline.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LatencyStep {
    pub(super) step: String,
    pub(super) kind: StepKind,
    pub(super) seconds: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StepKind {
    Wait,
    Work,
}

/// One of the slowest samples.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SlowReport {
    pub(super) path: String,
    pub(super) read_s: f64,
    pub(super) decode_s: f64,
}

impl Request {
    pub(super) fn new(args: &BenchArgs, data: String, device: String) -> Self {
        Request {
            data,
            batch_size: args.loader.batch.batch_size,
            size: args.loader.batch.size,
            dtype: args.loader.batch.dtype.to_string(),
            layout: args.loader.batch.layout.to_string(),
            device,
            seed: args.seed,
            model: args.model.map(|model| model.to_string()),
            warmup_epochs: args.warmup_epochs,
        }
    }
}

impl Report {
    pub(super) fn new(
        args: &BenchArgs,
        started: Instant,
        folder: Arc<dyn Source>,
        loader: &Loader,
        totals: &Arc<Mutex<Totals>>,
    ) -> Self {
        Report {
            request: Request::new(args, folder.title(), loader.device().name()),
            epochs: args.epochs,
            budget: loader.plan().budget + args.read_back_bytes(&**loader.device()) + args.watch.bytes(),
            gpu: Gpu::watch(&**loader.device()).map(Arc::new),
            has_digest: !args.no_digest && args.model.is_none(),
            loader: loader.clone(),
            totals: totals.clone(),
            folder,
            started,
        }
    }

    /// The report so far. `error` is the reason why the run ended early.
    pub(super) fn render(&self, json: bool, error: Option<&str>) -> String {
        let totals = lock(&self.totals).clone();
        let report = self.measure(&totals, error);
        if json { format::json(&report) } else { self.text(&report, &totals) }
    }

    fn measure(&self, totals: &Totals, error: Option<&str>) -> RunReport {
        let (plan, stats) = (self.loader.plan(), self.loader.stats());
        let pipeline = &stats.pipeline;
        let seconds = totals.took.or(totals.began.map(|began| began.elapsed())).unwrap_or_default().as_secs_f64();
        let on_device = gpu::memory(&**self.loader.device());
        let used = self.used(totals);
        let waits = self.wait_times(totals);
        RunReport {
            images: totals.images,
            seconds,
            images_per_s: ratio(totals.images as f64, seconds),
            first_batch_s: totals.first_batch.map(|first| first.as_secs_f64()),
            peak_rss_bytes: process_memory().peak_rss.0,
            ram_budget_bytes: self.budget.0,
            workers: plan.workers as u64,
            prefetch_depth: prefetch_depth(plan) as u64,
            digest: self.has_digest.then(|| format!("{:016x}", totals.digest)),
            bad_samples: list(BadReport::new(&self.folder, &self.loader.bad_samples()).json()),
            bad_sample_events: stats.bad_samples,
            batches: totals.batches,
            epochs: totals.epochs,
            input_wait_share: self.input_wait(totals, seconds),
            work_busy_s: pipeline.work.busy.as_secs_f64(),
            read_busy_s: pipeline.read.busy.as_secs_f64(),
            transfer_busy_s: pipeline.transfer.busy.as_secs_f64(),
            encoded_bytes: pipeline.encoded_bytes,
            oversized_samples: pipeline.oversized_samples,
            damage_accepted: pipeline.damage_accepted,
            damaged_samples: list(damaged_json(&self.loader.damaged_samples())),
            minimum_bytes: plan.minimum.0,
            knee_bytes: plan.knee.0,
            planned_bytes: plan.total().0,
            ledger_peak_bytes: stats.memory.peak.0,
            slots: plan.slots,
            outputs: plan.outputs,
            compute_share: totals.trained.or(used.map(|used| used.compute_share())),
            device_bytes: on_device.map(|(held, _)| held.0),
            device_allocations: on_device.map(|(_, allocations)| allocations),
            nvml_share: self.gpu.as_deref().and_then(|gpu| gpu.busy_share().ok()),
            copy_share: used.map(|used| used.copy_share()),
            violations: self.loader.device().downcast_ref::<SimDevice>().map(SimDevice::violations).unwrap_or_default(),
            governor: governor_json(&self.loader.governor_log()),
            notes: self.loader.notes().iter().chain(self.folder.notes()).cloned().collect(),
            state: Position { epoch: totals.state.epoch, batch: totals.state.batch },
            error: error.map(str::to_owned),
            wait_p50_s: waits.quantile(0.5).map(|wait| wait.as_secs_f64()),
            wait_p99_s: waits.quantile(0.99).map(|wait| wait.as_secs_f64()),
            waits: waits.buckets().map(|(end, count)| WaitBucket { up_to_s: end.as_secs_f64(), count }).collect(),
            stages: self.stages(totals, pipeline),
            sample_latency: latency_steps(pipeline),
            slowest: (self.loader.slowest_samples().into_iter())
                .map(|slow| SlowReport {
                    path: slow.name.clone(),
                    read_s: slow.read.as_secs_f64(),
                    decode_s: slow.work.as_secs_f64(),
                })
                .collect(),
            cpu_s: process_cpu_time().as_secs_f64(),
            process_s: self.started.elapsed().as_secs_f64(),
            bottleneck: self.bottleneck(totals),
            epochs_asked: self.epochs,
            request: self.request.clone(),
        }
    }

    fn text(&self, report: &RunReport, totals: &Totals) -> String {
        let millis = |seconds: f64| format!("{:.1} ms", seconds * 1e3);
        let first = report.first_batch_s.map(|first| format!("{first:.3} s after the start of the program"));
        let waits = report.wait_p50_s.zip(report.wait_p99_s);
        let waits = waits.map(|(p50, p99)| format!("; batch wait p50 {}, p99 {}", millis(p50), millis(p99)));
        let steps = report.sample_latency.iter().map(|step| format!("{} {}", step.step, millis(step.seconds)));
        let (images, batches) = (counted(report.images, "image"), counted(report.batches, "batch"));
        let mut lines = vec![
            ("images", format!("{images} in {batches}, {}", counted(report.epochs, "epoch"))),
            ("speed", format!("{:.1} images/s ({:.3} s)", report.images_per_s, report.seconds)),
            ("first batch", first.unwrap_or_else(|| "none".to_owned())),
            ("workers", format!("{}; {} ahead", report.workers, counted(report.prefetch_depth, "batch"))),
            (
                "RAM",
                format!(
                    "peak {} of the process, budget {}; planned {}, the ledger held {} at most",
                    ByteCount(report.peak_rss_bytes),
                    ByteCount(report.ram_budget_bytes),
                    ByteCount(report.planned_bytes),
                    ByteCount(report.ledger_peak_bytes)
                ),
            ),
            (
                "busy",
                format!(
                    "decode and transform {:.2} s, read {:.2} s ({} encoded), transfer {:.2} s, all epochs",
                    report.work_busy_s,
                    report.read_busy_s,
                    ByteCount(report.encoded_bytes),
                    report.transfer_busy_s
                ),
            ),
            ("input wait", percent(report.input_wait_share) + &waits.unwrap_or_default()),
            ("bottleneck", report.bottleneck.clone()),
            ("latency", steps.collect::<Vec<_>>().join(", ")),
        ];
        if let Some(SlowReport { path, read_s, decode_s }) = report.slowest.first() {
            let (read, work) = (millis(*read_s), millis(*decode_s));
            lines.push(("slowest", format!("{path} (read {read}, decode and transform {work})")));
        }
        if let Some(resizes) = governor_text(&self.loader.governor_log()) {
            lines.push(("memory", resizes));
        }
        if let Some(used) = self.used(totals) {
            let (compute, copy) = (percent(used.compute_share()), percent(used.copy_share()));
            let by_nvml = self.gpu.as_deref().map_or_else(String::new, |gpu| match gpu.busy_share() {
                Ok(share) => format!("; busy {} by NVML", percent(share)),
                Err(why) => format!("; {why}"),
            });
            lines.push(("device", format!("computes {compute} and copies {copy} of the time{by_nvml}")));
        }
        if let Some((held, allocations)) = report.device_bytes.zip(report.device_allocations) {
            let (held, taken) = (ByteCount(held), counted(allocations, "allocation"));
            lines.push(("VRAM", format!("{held} held by the loader, {taken} since the device was opened")));
        }
        if let Some(share) = totals.trained {
            lines.push(("model", format!("trained {} of the time", percent(share))));
        }
        lines.extend(report.violations.iter().map(|violation| ("violation", violation.clone())));
        lines.extend(report.digest.iter().map(|digest| ("digest", digest.clone())));
        if let Some(error) = &report.error {
            let Position { epoch, batch } = report.state;
            lines.push(("ended early", error.lines().next().unwrap_or_default().to_owned()));
            lines.push(("resume at", format!("batch {batch} of epoch {epoch}, both from 0")));
        }
        let bad = BadReport::new(&self.folder, &self.loader.bad_samples()).text();
        let damaged = damaged_text(&self.loader.damaged_samples());
        [facts(&lines), bad, damaged].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
    }

    fn stages(&self, totals: &Totals, of: &PipelineStats) -> Vec<StageReport> {
        let plan = self.loader.plan();
        let elapsed_s = totals.fed_since.map_or(0.0, |since| since.elapsed().as_secs_f64());
        let stages = [
            ("admit", 1, of.admit),
            ("read", plan.read_threads, of.read),
            ("work", plan.workers, of.work),
            ("transfer", 1, of.transfer),
            ("consume", 1, of.consume),
        ];
        let report = |(stage, threads, stats): (&str, usize, feedstock::stats::StageStats)| StageReport {
            stage: stage.to_owned(),
            threads,
            samples: stats.samples,
            busy_s: stats.busy.as_secs_f64(),
            wait_in_s: stats.wait_in.as_secs_f64(),
            wait_out_s: stats.wait_out.as_secs_f64(),
            elapsed_s,
        };
        stages.into_iter().map(report).collect()
    }

    /// Utilization of the device in the measured epochs.
    fn used(&self, totals: &Totals) -> Option<Utilization> {
        totals.used.or_else(|| totals.used_until(&self.loader.stats()))
    }

    /// Share of the measured time in which training waited for input: the device's idle time if steps keep it busy,
    /// else the consumer's wait.
    fn input_wait(&self, totals: &Totals, seconds: f64) -> f64 {
        match self.used(totals) {
            Some(used) if !used.compute_busy.is_zero() => 1.0 - used.compute_share(),
            _ => {
                let before = totals.before.as_ref().map_or(Duration::ZERO, |before| before.pipeline.consume.wait_in);
                let waited = self.loader.stats().pipeline.consume.wait_in.saturating_sub(before);
                ratio(waited.as_secs_f64(), seconds).min(1.0)
            }
        }
    }

    /// The consumer's waits for the measured batches.
    fn wait_times(&self, totals: &Totals) -> Histogram {
        let now = self.loader.stats().wait_times;
        totals.before.as_ref().map_or_else(|| now.clone(), |before| now.since(&before.wait_times))
    }

    /// The bottleneck of all epochs together.
    fn bottleneck(&self, totals: &Totals) -> String {
        let stats = self.loader.stats();
        let elapsed = totals.fed_since.map_or(Duration::ZERO, |since| since.elapsed());
        let consumer_waited = ratio(stats.pipeline.consume.wait_in.as_secs_f64(), elapsed.as_secs_f64()).min(1.0);
        let device = stats.device.filter(|used| !used.compute_busy.is_zero());
        let input_wait = device.map_or(consumer_waited, |used| 1.0 - used.compute_share());
        let copying = stats.device.map(|used| used.copy_share());
        let busy = process_cpu_time().saturating_sub(totals.cpu_before).as_secs_f64() / elapsed.as_secs_f64().max(1e-9);
        let cores = (busy, HostFacts::read().cpus.workers_max());
        let observed = bottleneck::Observed { elapsed, input_wait, copying, cores };
        bottleneck::describe(self.loader.plan(), &stats.pipeline, observed)
    }
}

/// Mean latency of a sample, step by step.
fn latency_steps(pipeline: &PipelineStats) -> Vec<LatencyStep> {
    let (all, samples) = (pipeline.latency, pipeline.consume.samples.max(1) as f64);
    [
        ("waits to be read", StepKind::Wait, all.read_queue),
        ("read", StepKind::Work, all.read),
        ("waits for a worker", StepKind::Wait, all.work_queue),
        ("decoded and transformed", StepKind::Work, all.work),
        ("waits for the rest of its batch", StepKind::Wait, all.batch_queue),
        ("transferred", StepKind::Work, all.transfer),
        ("ready, waits for the consumer", StepKind::Wait, all.ready),
    ]
    .into_iter()
    .map(|(step, kind, time)| LatencyStep { step: step.to_owned(), kind, seconds: time.as_secs_f64() / samples })
    .collect()
}

fn list(value: Value) -> Vec<Value> {
    if let Value::Array(list) = value { list } else { Vec::new() }
}

/// `part / whole`, or 0 if `whole` is 0.
fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}
