//! Owns what a bench says: one report, as JSON and for people. It must never measure anything that the run has not.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use feedstock::device::{SimDevice, Utilization};
use feedstock::host::{HostFacts, process_cpu_time, process_memory};
use feedstock::{ByteCount, Histogram, Loader, PipelineStats, SlowSample, Source, StageStats, State};

use super::super::data::{BadReport, damaged_json, damaged_text, moves_json, moves_text, prefetch_depth};
use super::super::gpu::{self, Gpu};
use super::super::table::{counted, facts};
use super::{BenchArgs, Tally, stall};

/// Everything that a report is made of, to be asked for at any time and from any thread.
#[derive(Clone)]
pub(super) struct Report {
    folder: Arc<dyn Source>,
    loader: Loader,
    tally: Arc<Mutex<Tally>>,
    budget: ByteCount,
    /// What was asked for.
    request: Value,
    has_digest: bool,
    /// Where the device is a GPU.
    gpu: Option<Arc<Gpu>>,
    started: Instant,
}

impl Report {
    pub(super) fn new(
        args: &BenchArgs,
        started: Instant,
        folder: Arc<dyn Source>,
        loader: &Loader,
        tally: &Arc<Mutex<Tally>>,
    ) -> Self {
        let request = json!({
            "data": folder.title(),
            "batch_size": args.loader.batch_size,
            "size": args.loader.size,
            "output": args.loader.output.to_string(),
            "layout": args.loader.layout.to_string(),
            "device": loader.device().name(),
            "seed": args.seed,
            "model": args.model.map(|model| model.to_string()),
            "epochs_asked": args.epochs,
            "warmup_epochs": args.warmup_epochs,
        });
        let budget = loader.plan().budget + args.read_back_bytes(&**loader.device()) + args.watch.bytes();
        let gpu = Gpu::watch(&**loader.device()).map(Arc::new);
        let (loader, tally, has_digest) = (loader.clone(), tally.clone(), !args.no_digest && args.model.is_none());
        Report { folder, loader, tally, budget, request, has_digest, gpu, started }
    }

    /// How far the run has got, or why it ended early, in words.
    pub(super) fn render(&self, json: bool, error: Option<&str>) -> String {
        let tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let took = tally.took.or(tally.began.map(|began| began.elapsed())).unwrap_or_default();
        if json { self.json(&tally, took, error).to_string() } else { self.text(&tally, took, error) }
    }

    fn json(&self, tally: &Tally, took: Duration, error: Option<&str>) -> Value {
        let (plan, stats) = (self.loader.plan(), self.loader.stats());
        let pipeline = stats.pipeline;
        let on_device = gpu::memory(&**self.loader.device());
        let used = self.used(tally);
        let mut report = json!({
            "images": tally.images,
            "seconds": took.as_secs_f64(),
            "images_per_s": per_second(tally.images, took),
            "first_batch_s": tally.first_batch.map(|first| first.as_secs_f64()),
            "peak_rss_bytes": process_memory().peak_rss.0,
            "ram_budget_bytes": self.budget.0,
            "workers": plan.workers,
            "prefetch_depth": prefetch_depth(plan),
            "digest": self.has_digest.then(|| format!("{:016x}", tally.digest)),
            "bad_samples": BadReport::new(&self.folder, &self.loader.bad_samples()).json(),
            "bad_sample_events": stats.bad_samples,
            "batches": tally.batches,
            "epochs": tally.epochs,
            "input_wait_share": self.input_wait(tally, took),
            "work_busy_s": pipeline.work.busy.as_secs_f64(),
            "read_busy_s": pipeline.read.busy.as_secs_f64(),
            "transfer_busy_s": pipeline.transfer.busy.as_secs_f64(),
            "encoded_bytes": pipeline.encoded_bytes,
            "oversized_samples": pipeline.oversized_samples,
            "damage_accepted": pipeline.damage_accepted,
            "damaged_samples": damaged_json(&self.loader.damaged_samples()),
            "minimum_bytes": plan.minimum.0,
            "knee_bytes": plan.knee.0,
            "planned_bytes": plan.total().0,
            "ledger_peak_bytes": stats.memory.peak.0,
            "slots": plan.slots,
            "outputs": plan.outputs,
            "compute_share": tally.trained.or(used.map(|used| used.compute_share())),
            "device_bytes": on_device.map(|(held, _)| held.0),
            "device_allocations": on_device.map(|(_, allocations)| allocations),
            "nvml_share": self.gpu.as_deref().map(|gpu| gpu.busy_share().ok()),
            "copy_share": used.map(|used| used.copy_share()),
            "violations": self.violations(),
            "moves": moves_json(&self.loader.moves()),
            "notes": self.loader.notes().iter().chain(self.folder.notes()).collect::<Vec<_>>(),
            "state": { "epoch": tally.state.epoch, "batch": tally.state.batch },
            "error": error,
        });
        let waits = self.wait_times(tally);
        let waits = json!({
            "wait_p50_s": waits.quantile(0.5).map(|wait| wait.as_secs_f64()),
            "wait_p99_s": waits.quantile(0.99).map(|wait| wait.as_secs_f64()),
            "waits": waits.buckets().map(|(end, count)| json!({ "up_to_s": end.as_secs_f64(), "count": count })).collect::<Value>(),
            "stages": self.stages(tally),
            "journey": steps(&pipeline)
                .map(|(step, kind, mean)| json!({ "step": step, "kind": kind, "seconds": mean.as_secs_f64() }))
                .collect::<Value>(),
            "slowest": self.loader.slowest_samples().iter().map(slow_json).collect::<Value>(),
            "cpu_s": process_cpu_time().as_secs_f64(),
            "process_s": self.started.elapsed().as_secs_f64(),
            "bottleneck": self.bottleneck(tally),
        });
        for more in [&waits, &self.request] {
            if let (Value::Object(report), Value::Object(more)) = (&mut report, more) {
                report.extend(more.clone());
            }
        }
        report
    }

    fn text(&self, tally: &Tally, took: Duration, error: Option<&str>) -> String {
        let (plan, stats) = (self.loader.plan(), self.loader.stats());
        let pipeline = stats.pipeline;
        let percent = |share: f64| format!("{:.0} %", share * 100.0);
        let speed = format!("{:.1} images/s ({:.3} s)", per_second(tally.images, took), took.as_secs_f64());
        let first = tally
            .first_batch
            .map_or("none".to_owned(), |first| format!("{:.3} s after the start of the program", first.as_secs_f64()));
        let done = format!("{} in {}", counted(tally.images, "image"), counted(tally.batches, "batch"));
        let mut lines = vec![
            ("images", format!("{done}, {}", counted(tally.epochs, "epoch"))),
            ("speed", speed),
            ("first batch", first),
            ("workers", format!("{}; {} ahead", plan.workers, counted(prefetch_depth(plan) as u64, "batch"))),
            (
                "RAM",
                format!(
                    "peak {} of the process, budget {}; planned {}, the ledger held {} at most",
                    process_memory().peak_rss,
                    self.budget,
                    plan.total(),
                    stats.memory.peak
                ),
            ),
            (
                "busy",
                format!(
                    "decode and transform {:.2} s, read {:.2} s ({} as stored), hand over {:.2} s, all epochs",
                    pipeline.work.busy.as_secs_f64(),
                    pipeline.read.busy.as_secs_f64(),
                    ByteCount(pipeline.encoded_bytes),
                    pipeline.transfer.busy.as_secs_f64()
                ),
            ),
            ("input wait", format!("{}{}", percent(self.input_wait(tally, took)), self.waits(tally))),
            ("held up by", self.bottleneck(tally)),
            (
                "a sample",
                steps(&pipeline)
                    .map(|(step, _, mean)| format!("{step} {:.1} ms", mean.as_secs_f64() * 1e3))
                    .collect::<Vec<_>>()
                    .join(", "),
            ),
        ];
        if let Some(slow) = self.loader.slowest_samples().first() {
            let (read, work) = (slow.read.as_secs_f64() * 1e3, slow.work.as_secs_f64() * 1e3);
            lines.push(("slowest", format!("{} (read {read:.1} ms, decode and transform {work:.1} ms)", slow.name)));
        }
        if let Some(moves) = moves_text(&self.loader.moves()) {
            lines.push(("memory", moves));
        }
        if let Some(used) = self.used(tally) {
            let (compute, copy) = (percent(used.compute_share()), percent(used.copy_share()));
            let by_nvml = self.gpu.as_deref().map_or_else(String::new, |gpu| match gpu.busy_share() {
                Ok(share) => format!("; busy {} by NVML", percent(share)),
                Err(why) => format!("; {why}"),
            });
            lines.push(("device", format!("computes {compute} and copies {copy} of the time{by_nvml}")));
        }
        if let Some((held, allocations)) = gpu::memory(&**self.loader.device()) {
            let taken = counted(allocations, "allocation");
            lines.push(("VRAM", format!("{held} held by the loader, {taken} since the device was opened")));
        }
        if let Some(share) = tally.trained {
            lines.push(("model", format!("trained {} of the time", percent(share))));
        }
        lines.extend(self.violations().into_iter().map(|violation| ("violation", violation)));
        if self.has_digest {
            lines.push(("digest", format!("{:016x}", tally.digest)));
        }
        if let Some(error) = error {
            let State { epoch, batch } = tally.state;
            lines.push(("ended early", error.lines().next().unwrap_or_default().to_owned()));
            lines.push(("to go on", format!("at batch {batch} of epoch {epoch}, both from 0")));
        }
        let bad = BadReport::new(&self.folder, &self.loader.bad_samples()).text();
        let damaged = damaged_text(&self.loader.damaged_samples());
        [facts(&lines), bad, damaged].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
    }

    /// What the threads of each stage did with their time, all epochs together.
    fn stages(&self, tally: &Tally) -> Value {
        let (plan, of) = (self.loader.plan(), self.loader.stats().pipeline);
        let elapsed = tally.fed_since.map_or(0.0, |since| since.elapsed().as_secs_f64());
        let stages = [
            ("admit", 1, of.admit),
            ("read", plan.read_threads, of.read),
            ("work", plan.workers, of.work),
            ("transfer", 1, of.transfer),
            ("consume", 1, of.consume),
        ];
        let one = |(stage, threads, stats): (&str, usize, StageStats)| {
            json!({
                "stage": stage,
                "threads": threads,
                "samples": stats.samples,
                "busy_s": stats.busy.as_secs_f64(),
                "wait_in_s": stats.wait_in.as_secs_f64(),
                "wait_out_s": stats.wait_out.as_secs_f64(),
                "elapsed_s": elapsed,
            })
        };
        stages.into_iter().map(one).collect()
    }

    /// How long batches were waited for, in the middle and at the worst.
    fn waits(&self, tally: &Tally) -> String {
        let waits = self.wait_times(tally);
        let millis = |share| waits.quantile(share).map(|wait| wait.as_secs_f64() * 1e3);
        match (millis(0.5), millis(0.99)) {
            (Some(half), Some(most)) => {
                format!("; half of the batches were there within {half:.1} ms, 99 % within {most:.1} ms")
            }
            _ => String::new(),
        }
    }

    /// How busy the device was in the measured epochs.
    fn used(&self, tally: &Tally) -> Option<Utilization> {
        tally.used.or_else(|| tally.used_until(&self.loader.stats()))
    }

    /// The share of the measured time in which training waited for input: that in which the device was idle, where there are
    /// steps that keep it busy, and else that in which the consumer waited.
    fn input_wait(&self, tally: &Tally, took: Duration) -> f64 {
        match self.used(tally) {
            Some(used) if !used.compute_busy.is_zero() => 1.0 - used.compute_share(),
            _ => {
                let before = tally.before.as_ref().map_or(Duration::ZERO, |before| before.pipeline.consume.wait_in);
                share(self.loader.stats().pipeline.consume.wait_in.saturating_sub(before), took)
            }
        }
    }

    /// What was waited for the measured batches.
    fn wait_times(&self, tally: &Tally) -> Histogram {
        let now = self.loader.stats().wait_times;
        tally.before.as_ref().map_or_else(|| now.clone(), |before| now.since(&before.wait_times))
    }

    /// What held the run up, all epochs together.
    fn bottleneck(&self, tally: &Tally) -> String {
        let stats = self.loader.stats();
        let elapsed = tally.fed_since.map_or(Duration::ZERO, |since| since.elapsed());
        let consumer_waited = share(stats.pipeline.consume.wait_in, elapsed);
        let device = stats.device.filter(|used| !used.compute_busy.is_zero());
        let input_wait = device.map_or(consumer_waited, |used| 1.0 - used.compute_share());
        let copying = stats.device.map(|used| used.copy_share());
        let busy = process_cpu_time().saturating_sub(tally.cpu_before).as_secs_f64() / elapsed.as_secs_f64().max(1e-9);
        let cores = (busy, HostFacts::read().cpus.workers_max());
        stall::sentence(self.loader.plan(), &stats.pipeline, stall::Seen { elapsed, input_wait, copying, cores })
    }

    fn violations(&self) -> Vec<String> {
        self.loader.device().downcast_ref::<SimDevice>().map(SimDevice::violations).unwrap_or_default()
    }
}

/// The mean way of a sample, step by step: what it is called, what kind it is of, and how long it takes.
fn steps(pipeline: &PipelineStats) -> impl Iterator<Item = (&'static str, &'static str, Duration)> {
    let (way, samples) = (pipeline.journey, pipeline.consume.samples.max(1) as f64);
    [
        ("waits to be read", "wait", way.read_queue),
        ("read", "work", way.read),
        ("waits for a worker", "wait", way.work_queue),
        ("decoded and transformed", "work", way.work),
        ("waits for the rest of its batch", "wait", way.batch_queue),
        ("handed over", "work", way.transfer),
        ("ready, waits for the consumer", "wait", way.ready),
    ]
    .into_iter()
    .map(move |(step, kind, all)| (step, kind, all.div_f64(samples)))
}

fn slow_json(slow: &SlowSample) -> Value {
    json!({ "path": slow.name, "read_s": slow.read.as_secs_f64(), "decode_s": slow.work.as_secs_f64() })
}

fn per_second(images: u64, took: Duration) -> f64 {
    if took.is_zero() { 0.0 } else { images as f64 / took.as_secs_f64() }
}

fn share(part: Duration, whole: Duration) -> f64 {
    if whole.is_zero() { 0.0 } else { (part.as_secs_f64() / whole.as_secs_f64()).min(1.0) }
}
