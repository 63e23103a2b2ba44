//! Reports of a training run: a line or object after each epoch, and the summary. All figures come from the trainer's
//! events.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use feedstock::host::{process_cpu_time, process_memory};
use feedstock::stats::PipelineStats;
use feedstock::train::{
    AllocatorStats, EpochReport, LeakDetector, LeakReport, MemoryReport, Progress, PruneReport, TrainConfig, TrainEvent,
};
use feedstock::{ByteCount, DamagedSample, Loader, Source};

use super::super::data::{BadReport, damaged_json, damaged_text, governor_json, governor_text};
use super::super::gpu::Gpu;
use super::super::model::{account_text, phases_text, report_json};
use super::super::table::{columns, counted, facts};
use super::Setup;

/// Maximum number of warm-up steps before memory is watched for growth.
const WARM_UP_STEPS_MAX: u64 = 1000;

/// Minimum growth that is reported; smaller growth comes from lists of bounded size that fill up.
const GROWTH_MIN: ByteCount = ByteCount(1 << 20);

/// State of the run's summary, shared with the watchdog that prints it after an interrupt.
#[derive(Clone)]
pub(super) struct RunSummary {
    /// Loaders and their sources.
    parts: Vec<(Arc<dyn Source>, Loader)>,
    budget: ByteCount,
    config: Arc<TrainConfig>,
    budget_is_set: bool,
    told: Arc<Mutex<Reported>>,
    /// GPU utilization, if the device is a GPU.
    gpu: Option<Arc<Gpu>>,
}

#[derive(Clone, Default)]
struct Reported {
    parameters: usize,
    first_epoch: u64,
    memory: Option<MemoryReport>,
    pruned: Option<PruneReport>,
    /// Steps of this run.
    steps: u64,
    trend: Option<LeakDetector>,
    /// Peak of training memory.
    peak: ByteCount,
    held: Option<AllocatorStats>,
    epochs: Vec<EpochReport>,
    /// Progress of the current epoch.
    under_way: Option<Progress>,
}

impl RunSummary {
    pub(super) fn new(setup: &Setup) -> Self {
        let validation = setup.validation_folder.clone().zip(setup.validation.clone());
        let parts = [Some((setup.folder.clone(), setup.training.clone())), validation];
        RunSummary {
            parts: parts.into_iter().flatten().collect(),
            budget: setup.budget,
            config: Arc::new(setup.config.clone()),
            budget_is_set: setup.budget_is_set,
            told: Arc::default(),
            gpu: Gpu::watch(&*setup.place.device).map(Arc::new),
        }
    }

    fn device(&self) -> String {
        self.parts.first().map_or_else(String::new, |(_, loader)| loader.device().name())
    }

    fn told(&self) -> MutexGuard<'_, Reported> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn hear(&self, event: &TrainEvent<'_>) {
        let mut told = self.told();
        match event {
            TrainEvent::Started { parameters, epoch, .. } => {
                (told.parameters, told.first_epoch) = (*parameters, *epoch);
            }
            TrainEvent::Memory(report) => told.memory = Some(**report),
            TrainEvent::Progress(step) => {
                told.under_way = Some(**step);
                told.weigh(step, self.held().0);
            }
            TrainEvent::Epoch(epoch) => {
                told.epochs.push(**epoch);
                told.under_way = None;
                told.weigh(&epoch.training, self.held().0);
            }
            TrainEvent::Pruned(report) => {
                told.pruned = Some((*report).clone());
                // The pruned model takes another amount.
                told.trend = None;
            }
            _ => {}
        }
    }

    /// Returns true if training has begun.
    pub(super) fn has_begun(&self) -> bool {
        self.told().parameters > 0
    }

    /// Bytes that the loaders hold, and their peak.
    fn held(&self) -> (ByteCount, ByteCount) {
        let reports: Vec<_> = self.parts.iter().map(|(_, loader)| loader.stats().memory).collect();
        (reports.iter().map(|report| report.held).sum(), reports.iter().map(|report| report.peak).sum())
    }

    /// Line or JSON object of an epoch.
    pub(super) fn epoch_line(&self, epoch: &EpochReport, json: bool) -> String {
        let EpochReport { training, validation } = epoch;
        if json {
            let mut object = epoch_json(epoch);
            object["event"] = "epoch".into();
            return object.to_string();
        }
        let validated = validation.map_or(String::new(), |score| format!(", validation {}", percent(score.accuracy)));
        format!(
            "epoch {} of {}: loss {:.3}, accuracy {}{validated}, {:.0} images/s, input wait {}",
            training.epoch + 1,
            training.epochs,
            training.loss,
            percent(training.accuracy),
            training.images_per_s(),
            percent(training.input_wait_share)
        )
    }

    /// Memory table, printed once it was measured.
    pub(super) fn memory_line(&self, report: &MemoryReport) -> String {
        let MemoryReport { account, forecast, .. } = report;
        let batches = match self.config.accumulate {
            1 => format!("batches of {}", forecast.micro_batch),
            several => format!("{several} batches of {} a step", forecast.micro_batch),
        };
        format!(
            "memory: training takes {} at most in {}, {batches} ({} predicted): {} of activations, {} of parameters, \
             {} of optimizer state",
            account.peak,
            self.config.precision,
            forecast.account.peak,
            account.activations,
            account.parameters,
            account.optimizer
        )
    }

    /// Line about pruning.
    pub(super) fn prune_line(&self, report: &PruneReport) -> String {
        let PruneReport { after_epochs, parameters, activations, scores, .. } = report;
        let scores = scores.map_or(String::new(), |[before, after]| {
            format!(", validation {} -> {}", percent(before.accuracy), percent(after.accuracy))
        });
        format!(
            "pruned after {}: {} -> {} parameters, {} -> {} of activations{scores}",
            counted(*after_epochs, "epoch"),
            parameters[0],
            parameters[1],
            activations[0],
            activations[1]
        )
    }

    /// Summary of the run; `ended` is the reason if it ended early.
    pub(super) fn render(&self, json: bool, ended: Option<&str>) -> String {
        let told = self.told().clone();
        if json { self.json(&told, ended).to_string() } else { self.text(&told, ended) }
    }

    /// Description of the run for the log.
    pub(super) fn start_json(&self) -> Value {
        let told = self.told();
        json!({
            "model": self.config.model.kind.to_string(),
            "parameters": told.parameters,
            "optimizer": self.config.optimizer.to_string(),
            "first_epoch": told.first_epoch,
            "epochs": self.config.epochs,
            "seed": self.config.seed.0,
            "ram_budget_bytes": self.budget.0,
            "device": self.device(),
        })
    }

    /// JSON object of the summary.
    pub(super) fn end_json(&self, ended: Option<&str>) -> Value {
        let told = self.told().clone();
        self.json(&told, ended)
    }

    fn json(&self, told: &Reported, ended: Option<&str>) -> Value {
        let bad: Vec<Value> = self.bad().iter().filter_map(|bad| bad.json().as_array().cloned()).flatten().collect();
        let (images, seconds) = told.totals();
        json!({
            "event": "end",
            "model": self.config.model.kind.to_string(),
            "parameters": told.parameters,
            "optimizer": self.config.optimizer.to_string(),
            "epochs": told.epochs.iter().map(epoch_json).collect::<Value>(),
            "under_way": told.under_way.map(|training| epoch_json(&EpochReport { training, validation: None })),
            "images": images,
            "train_seconds": seconds,
            "images_per_s": if seconds > 0.0 { images as f64 / seconds } else { 0.0 },
            "best_val_accuracy": told.best().map(|(_, accuracy)| accuracy),
            "peak_rss_bytes": process_memory().peak_rss.0,
            "ram_budget_bytes": self.budget.0,
            "ledger_peak_bytes": self.held().1.0,
            "precision": self.config.precision.to_string(),
            "checkpointing": self.config.checkpointing.to_string(),
            "frozen": self.config.freeze.to_string(),
            "accumulate": self.config.accumulate,
            "training_budget_bytes": self.config.device_budget.map(|budget| budget.0),
            "training_peak_bytes": told.peak_in_all().map(|peak| peak.0),
            "allocator": told.held.map(|held| json!({
                "reserved_bytes": held.reserved.0,
                "in_use_bytes": held.in_use.0,
                "largest_free_bytes": held.largest_free.map(|largest| largest.0),
            })),
            "loaders_cpu_share": self.loaders_cpu_share(),
            "memory": told.memory.as_ref().map(report_json),
            "growth": told.growing().iter().map(growth_json).collect::<Value>(),
            "pruned": told.pruned.as_ref().map(|report| prune_json(report, told)),
            "bad_samples": bad,
            "damaged_samples": damaged_json(&self.damaged()),
            "governor": self.parts.first().map(|(_, loader)| governor_json(&loader.governor_log())),
            "device": self.device(),
            "nvml_share": self.gpu.as_deref().map(|gpu| gpu.busy_share().ok()),
            "checkpoint": self.config.checkpoint.as_ref().map(|path| path.to_string_lossy()),
            "ended_early": ended,
        })
    }

    fn text(&self, told: &Reported, ended: Option<&str>) -> String {
        let head = ["epoch", "loss", "accuracy", "val loss", "val accuracy", "images/s", "input wait", "compute"];
        let partial = told.under_way.map(|training| EpochReport { training, validation: None });
        let rows: Vec<[String; 8]> = told.epochs.iter().chain(&partial).map(row).collect();
        let (images, seconds) = told.totals();
        let mut lines = Vec::new();
        if let Some(step) = told.under_way {
            lines.push(("not done", format!("epoch {} got to step {} of {}", step.epoch + 1, step.step, step.steps)));
        } else if rows.is_empty() && ended.is_none() {
            lines.push(("nothing left", format!("the checkpoint has seen {}", counted(told.first_epoch, "epoch"))));
        }
        lines.push(("model", format!("{}, {} parameters", self.config.model.kind, told.parameters)));
        lines.push((
            "trained",
            format!(
                "{} in {seconds:.1} s, {:.0} images/s; the loaders took {} of the processor time",
                counted(images, "image"),
                images as f64 / seconds.max(1e-9),
                percent(self.loaders_cpu_share())
            ),
        ));
        let device = self.device();
        if device != "cpu" {
            lines.push((
                "device",
                match self.gpu.as_deref().map(Gpu::busy_share) {
                    Some(Ok(share)) => format!("{device}, busy {} of the time by NVML", percent(share)),
                    Some(Err(why)) => format!("{device}; {why}"),
                    None => device,
                },
            ));
        }
        if let Some((epoch, accuracy)) = told.best() {
            lines.push(("best", format!("validation accuracy {} after epoch {}", percent(accuracy), epoch + 1)));
        }
        let (_, peak) = self.held();
        lines.push((
            "RAM",
            format!(
                "the loaders had reserved {peak} at most of their budget of {}; the process, model included, held {}",
                self.budget,
                process_memory().peak_rss
            ),
        ));
        if let Some(peak) = told.peak_in_all() {
            let budget = self.config.device_budget.map_or(String::new(), |budget| match self.budget_is_set {
                true => format!(" of its budget of {budget}"),
                false => format!(" of {budget} that were free"),
            });
            lines.push(("training", format!("took {peak} at most{budget}")));
        }
        if let Some(AllocatorStats { reserved, in_use, largest_free }) = told.held {
            let crumbs = largest_free.map_or(String::new(), |largest| format!(", {largest} of the rest in one piece"));
            lines.push(("allocator", format!("holds {reserved}, {in_use} in use{crumbs}")));
        }
        lines.extend(told.growing().iter().map(|growth| ("growth", growth_text(growth, &self.config))));
        if let Some(report) = &told.pruned {
            lines.push(("pruned", prune_text(report, told)));
        }
        lines.extend(
            self.parts.iter().filter_map(|(_, loader)| Some(("memory", governor_text(&loader.governor_log())?))),
        );
        let checkpoint = self.config.checkpoint.as_ref().filter(|path| path.exists());
        if let Some(path) = checkpoint {
            lines.push(("checkpoint", path.display().to_string()));
        }
        if let Some(ended) = ended {
            lines.push(("ended early", ended.to_owned()));
            if checkpoint.is_some() {
                lines.push(("to go on", "--resume takes up the checkpoint, at the very next batch".to_owned()));
            }
        }
        let mut parts = vec![String::new(), columns(head, &rows), facts(&lines)];
        if let Some(report) = &told.memory {
            parts.push(format!(
                "\n{}\n\n{}",
                account_text(&report.forecast.account, Some(&report.account)),
                phases_text(report)
            ));
        }
        parts.extend(self.bad().iter().map(BadReport::text).filter(|text| !text.is_empty()));
        parts.extend(Some(damaged_text(&self.damaged())).filter(|text| !text.is_empty()));
        parts.join("\n")
    }

    /// Share of this process's CPU time that the loaders' stages took.
    fn loaders_cpu_share(&self) -> f64 {
        let busy = |stats: &PipelineStats| {
            [&stats.admit, &stats.read, &stats.work, &stats.transfer]
                .map(|stage| stage.busy)
                .into_iter()
                .sum::<Duration>()
        };
        let busy: Duration = self.parts.iter().map(|(_, loader)| busy(&loader.stats().pipeline)).sum();
        busy.as_secs_f64() / process_cpu_time().as_secs_f64().max(1e-9)
    }

    /// Accepted damaged samples of all loaders.
    fn damaged(&self) -> Vec<DamagedSample> {
        self.parts.iter().flat_map(|(_, loader)| loader.damaged_samples()).collect()
    }

    fn bad(&self) -> Vec<BadReport> {
        self.parts.iter().map(|(folder, loader)| BadReport::new(folder, &loader.bad_samples())).collect()
    }
}

impl Reported {
    /// Adds a memory reading to the leak detector.
    fn weigh(&mut self, step: &Progress, loaders: ByteCount) {
        self.steps = self.steps.max(step.epoch.saturating_mul(step.steps) + step.step);
        let mut accounted = loaders;
        let mut readings = vec![("loaders", loaders)];
        if let Some(memory) = step.memory {
            self.peak = self.peak.max(memory.peak);
            readings.push(("training", memory.in_use));
            accounted += memory.in_use;
        }
        // Reserved memory becomes resident gradually: only growth beyond the reservations counts.
        readings.push(("process", process_memory().rss.max(accounted)));
        self.held = step.allocator.or(self.held);
        // Caches and pools reach their sizes first.
        let trend = self.trend.get_or_insert_with(|| LeakDetector::new(self.steps + step.steps.min(WARM_UP_STEPS_MAX)));
        trend.add(self.steps, &readings);
    }

    /// Peak of training memory, including the first steps, which are read phase by phase. `None` without readings.
    fn peak_in_all(&self) -> Option<ByteCount> {
        let phases = self.memory.iter().flat_map(|memory| memory.at.iter().map(|reading| reading.peak));
        Some(phases.fold(self.peak, Ord::max)).filter(|peak| *peak > ByteCount::ZERO)
    }

    /// Accounts that grow.
    fn growing(&self) -> Vec<LeakReport> {
        let mut growing = self.trend.as_ref().map(LeakDetector::all_growing).unwrap_or_default();
        growing.retain(|growth| growth.to.saturating_sub(growth.from) >= GROWTH_MIN);
        growing
    }

    /// Number of images trained on, and the seconds.
    fn totals(&self) -> (u64, f64) {
        let trained = self.epochs.iter().map(|epoch| epoch.training).chain(self.under_way);
        trained.fold((0, 0.0), |(images, seconds), step| (images + step.images, seconds + step.seconds))
    }

    /// Epoch of the best validation accuracy, and that accuracy.
    fn best(&self) -> Option<(u64, f64)> {
        let scores = self.epochs.iter().filter_map(|epoch| Some((epoch.training.epoch, epoch.validation?.accuracy)));
        scores.max_by(|a, b| a.1.total_cmp(&b.1))
    }
}

/// Message about a growing account and its projection.
fn growth_text(growth: &LeakReport, config: &TrainConfig) -> String {
    let LeakReport { account, bytes_per_step, from, to, .. } = growth;
    let limit = config.device_budget.filter(|_| account == "training").and_then(|budget| growth.reaches(budget));
    format!(
        "'{account}' grows by {} a step, from {from} to {to}{}",
        ByteCount(*bytes_per_step as u64),
        limit.map_or(String::new(), |step| format!("; at step {step} its budget is reached"))
    )
}

fn growth_json(growth: &LeakReport) -> Value {
    json!({
        "account": growth.account,
        "bytes_per_step": growth.bytes_per_step,
        "from_bytes": growth.from.0,
        "to_bytes": growth.to.0,
    })
}

/// Mean images per second in the epochs before and after pruning.
fn rates(report: &PruneReport, told: &Reported) -> [f64; 2] {
    let (before, after): (Vec<_>, Vec<_>) =
        told.epochs.iter().map(|epoch| epoch.training).partition(|training| training.epoch < report.after_epochs);
    [before, after].map(|part| {
        let seconds: f64 = part.iter().map(|training| training.seconds).sum();
        part.iter().map(|training| training.images).sum::<u64>() as f64 / seconds.max(1e-9)
    })
}

fn prune_text(report: &PruneReport, told: &Reported) -> String {
    let PruneReport { after_epochs, parameters, activations, peak, scores } = report;
    let less = |[before, after]: [f64; 2]| percent(1.0 - after / before.max(1e-9));
    let bytes = |sizes: [ByteCount; 2]| sizes.map(|size| size.0 as f64);
    let [before, after] = rates(report, told);
    let scores = scores.map_or(String::new(), |[before, after]| {
        let last = told.epochs.last().and_then(|epoch| epoch.validation);
        let tuned = last.map_or(String::new(), |score| format!(", tuned {}", percent(score.accuracy)));
        format!("; validation {} before, {} right after{tuned}", percent(before.accuracy), percent(after.accuracy))
    });
    let faster = if after > 0.0 { format!(", {:.2} x the images/s", after / before.max(1e-9)) } else { String::new() };
    format!(
        "after {}: {} fewer parameters ({} -> {}), {} less of activations, {} less at most{faster}{scores}",
        counted(*after_epochs, "epoch"),
        less(parameters.map(|count| count as f64)),
        parameters[0],
        parameters[1],
        less(bytes(*activations)),
        less(bytes(*peak))
    )
}

fn prune_json(report: &PruneReport, told: &Reported) -> Value {
    let PruneReport { after_epochs, parameters, activations, peak, scores } = report;
    json!({
        "after_epochs": after_epochs,
        "parameters": parameters,
        "activation_bytes": activations.map(|bytes| bytes.0),
        "peak_bytes": peak.map(|bytes| bytes.0),
        "val_accuracy": scores.map(|scores| scores.map(|score| score.accuracy)),
        "images_per_s": rates(report, told),
    })
}

fn row(epoch: &EpochReport) -> [String; 8] {
    let EpochReport { training, validation } = epoch;
    [
        (training.epoch + 1).to_string(),
        format!("{:.3}", training.loss),
        percent(training.accuracy),
        validation.map_or("-".to_owned(), |score| format!("{:.3}", score.loss)),
        validation.map_or("-".to_owned(), |score| percent(score.accuracy)),
        format!("{:.0}", training.images_per_s()),
        percent(training.input_wait_share),
        percent(training.compute_share),
    ]
}

pub(super) fn epoch_json(epoch: &EpochReport) -> Value {
    let EpochReport { training, validation } = epoch;
    json!({
        "epoch": training.epoch,
        "steps": training.step,
        "images": training.images,
        "seconds": training.seconds,
        "images_per_s": training.images_per_s(),
        "loss": training.loss,
        "accuracy": training.accuracy,
        "learning_rate": training.learning_rate,
        "input_wait_share": training.input_wait_share,
        "compute_share": training.compute_share,
        "val_images": validation.map(|score| score.images),
        "val_loss": validation.map(|score| score.loss),
        "val_accuracy": validation.map(|score| score.accuracy),
    })
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}
