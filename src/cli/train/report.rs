//! Owns what a training run says: a line while it goes, a line or an object an epoch, and the closing table. It must
//! never count anything that the trainer has not told.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use feedstock::host::process_memory;
use feedstock::train::{EpochReport, Event, Progress, TrainConfig};
use feedstock::{ByteCount, DamagedSample, ImageFolder, Loader};

use super::super::data::{BadReport, damaged_json, damaged_text, moves_json, moves_text};
use super::super::gpu::Gpu;
use super::super::table::{columns, counted, facts};
use super::Setup;

/// What has happened so far; shared with whoever has to tell of it when the run cannot.
#[derive(Clone)]
pub(super) struct Story {
    /// The loaders, and the folders behind them.
    parts: Vec<(Arc<ImageFolder>, Loader)>,
    budget: ByteCount,
    config: Arc<TrainConfig>,
    told: Arc<Mutex<Told>>,
    /// Where the device is a GPU.
    gpu: Option<Arc<Gpu>>,
}

#[derive(Clone, Default)]
struct Told {
    parameters: usize,
    first_epoch: u64,
    epochs: Vec<EpochReport>,
    /// The epoch under way.
    under_way: Option<Progress>,
}

impl Story {
    pub(super) fn new(setup: &Setup, config: &TrainConfig) -> Self {
        let validation = setup.validation_folder.clone().zip(setup.validation.clone());
        let parts = [Some((setup.folder.clone(), setup.training.clone())), validation];
        Story {
            parts: parts.into_iter().flatten().collect(),
            budget: setup.budget,
            config: Arc::new(config.clone()),
            told: Arc::default(),
            gpu: Gpu::watch(&*setup.place.device).map(Arc::new),
        }
    }

    fn device(&self) -> String {
        self.parts.first().map_or_else(String::new, |(_, loader)| loader.device().name())
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn hear(&self, event: &Event<'_>) {
        let mut told = self.told();
        match event {
            Event::Started { parameters, epoch } => (told.parameters, told.first_epoch) = (*parameters, *epoch),
            Event::Progress(step) => told.under_way = Some(**step),
            Event::Epoch(epoch) => {
                told.epochs.push(**epoch);
                told.under_way = None;
            }
            _ => {}
        }
    }

    /// Whether there is anything to tell: a run that was refused never began.
    pub(super) fn has_begun(&self) -> bool {
        self.told().parameters > 0
    }

    /// Bytes that the loaders hold now, and held at most.
    fn held(&self) -> (ByteCount, ByteCount) {
        let reports: Vec<_> = self.parts.iter().map(|(_, loader)| loader.stats().memory).collect();
        (reports.iter().map(|report| report.held).sum(), reports.iter().map(|report| report.peak).sum())
    }

    pub(super) fn progress_line(&self, step: &Progress) -> String {
        format!(
            "epoch {}/{} {}/{}  {:.0} images/s  loss {:.3}  acc {:.0} %  wait {:.0} %  busy {:.0} %  RAM {}/{}",
            step.epoch + 1,
            step.epochs,
            step.step,
            step.steps,
            step.images_per_s(),
            step.loss,
            step.accuracy * 100.0,
            step.input_wait_share * 100.0,
            step.compute_share * 100.0,
            self.held().0,
            self.budget
        )
    }

    /// What came of an epoch.
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

    /// The whole run, as far as it got, and why it ended early if it did.
    pub(super) fn render(&self, json: bool, ended: Option<&str>) -> String {
        let told = self.told().clone();
        if json { self.json(&told, ended).to_string() } else { self.text(&told, ended) }
    }

    fn json(&self, told: &Told, ended: Option<&str>) -> Value {
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
            "bad_samples": bad,
            "damaged_samples": damaged_json(&self.damaged()),
            "moves": self.parts.first().map(|(_, loader)| moves_json(&loader.moves())),
            "device": self.device(),
            "nvml_share": self.gpu.as_deref().map(|gpu| gpu.busy_share().ok()),
            "checkpoint": self.config.checkpoint.as_ref().map(|path| path.to_string_lossy()),
            "ended_early": ended,
        })
    }

    fn text(&self, told: &Told, ended: Option<&str>) -> String {
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
                "{} in {seconds:.1} s, {:.0} images/s",
                counted(images, "image"),
                images as f64 / seconds.max(1e-9)
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
                "the loaders held {peak} at most of their budget of {}; the process, model included, {}",
                self.budget,
                process_memory().peak_rss
            ),
        ));
        lines.extend(self.parts.iter().filter_map(|(_, loader)| Some(("memory", moves_text(&loader.moves())?))));
        if let (Some(path), false) = (&self.config.checkpoint, told.epochs.is_empty()) {
            lines.push(("checkpoint", path.display().to_string()));
        }
        if let Some(ended) = ended {
            lines.push(("ended early", ended.to_owned()));
            if let (Some(_), Some(last)) = (&self.config.checkpoint, told.epochs.last()) {
                let done = last.training.epoch + 1;
                lines.push(("to go on", format!("--resume takes up the checkpoint, after epoch {done}")));
            }
        }
        let mut parts = vec![String::new(), columns(head, &rows), facts(&lines)];
        parts.extend(self.bad().iter().map(BadReport::text).filter(|text| !text.is_empty()));
        parts.extend(Some(damaged_text(&self.damaged())).filter(|text| !text.is_empty()));
        parts.join("\n")
    }

    /// Damaged samples that were used, of all loaders.
    fn damaged(&self) -> Vec<DamagedSample> {
        self.parts.iter().flat_map(|(_, loader)| loader.damaged_samples()).collect()
    }

    fn bad(&self) -> Vec<BadReport> {
        self.parts.iter().map(|(folder, loader)| BadReport::new(folder, &loader.bad_samples())).collect()
    }
}

impl Told {
    /// Images trained on, and the seconds that took.
    fn totals(&self) -> (u64, f64) {
        let trained = self.epochs.iter().map(|epoch| epoch.training).chain(self.under_way);
        trained.fold((0, 0.0), |(images, seconds), step| (images + step.images, seconds + step.seconds))
    }

    /// The epoch that did best on validation, and its accuracy.
    fn best(&self) -> Option<(u64, f64)> {
        let scores = self.epochs.iter().filter_map(|epoch| Some((epoch.training.epoch, epoch.validation?.accuracy)));
        scores.max_by(|a, b| a.1.total_cmp(&b.1))
    }
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

fn epoch_json(epoch: &EpochReport) -> Value {
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
