//! Observers of a training run: the live view or progress line, the log and the TensorBoard file.
//!
//! A file that cannot be written does not stop the run: the error is reported once and losses are counted.

use std::io;
use std::panic;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::Value;

use super::super::failure::{Failure, say};
use super::super::lock;
use super::super::progress::Progress;
use super::events::Events;
use super::log::Log;
use super::snapshot::{EpochEnd, Snapshot};
use super::view::View;

/// Interval between snapshots written to the files, besides the last one of an epoch.
const EVERY: Duration = Duration::from_secs(1);

/// Options for observing a run.
#[derive(Args, Clone, Default)]
pub(super) struct ObserverArgs {
    /// Show a progress line instead of the live view
    #[arg(long)]
    plain: bool,
    /// Write a log: JSON lines, one step a second
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Folder for TensorBoard scalars
    #[arg(long, value_name = "DIR")]
    tensorboard: Option<PathBuf>,
}

/// Observers of a run. A clone is another handle to the same observers.
#[derive(Clone)]
pub(super) struct Observers(Arc<Mutex<ObserverSet>>);

struct ObserverSet {
    face: Face,
    log: Option<Log>,
    events: Option<Events>,
    /// Numbers of lines and records that could not be written.
    lost: Lost,
    /// Latest snapshot, and the time of the last one written to the files.
    latest: Option<Snapshot>,
    written: Option<Instant>,
    /// True once the end was written.
    ended: bool,
}

#[derive(Default)]
struct Lost {
    log: u64,
    events: u64,
}

/// Display on the terminal.
enum Face {
    View(Box<View>),
    Line(Progress),
}

impl ObserverArgs {
    /// Starts observing a run of `steps` steps. With `json`, or without a capable terminal, a progress line replaces
    /// the view.
    ///
    /// # Errors
    /// A file cannot be created.
    pub(super) fn begin(&self, json: bool, resume: bool, steps: u64) -> Result<Observers, Failure> {
        let log = self.log.as_deref().map(|path| Log::start(path, resume)).transpose()?;
        let events = self.tensorboard.as_deref().map(Events::start).transpose()?;
        let view = if self.plain || json { None } else { View::here() };
        let seen = view.is_some();
        let face = view.map_or_else(|| Face::Line(Progress::new(steps)), |view| Face::View(Box::new(view)));
        let observers = Observers::with(face, log, events);
        if seen {
            observers.make_way_for_panics();
        }
        Ok(observers)
    }
}

impl Observers {
    fn with(face: Face, log: Option<Log>, events: Option<Events>) -> Self {
        let (lost, latest, written) = (Lost::default(), None, None);
        Observers(Arc::new(Mutex::new(ObserverSet { face, log, events, lost, latest, written, ended: false })))
    }

    /// Clears the view before a panic is printed, so that the message is not drawn over.
    fn make_way_for_panics(&self) {
        let (observers, print) = (Arc::downgrade(&self.0), panic::take_hook());
        panic::set_hook(Box::new(move |what| {
            // The panicking thread may hold the lock.
            if let Some(Ok(mut observers)) = observers.upgrade().as_ref().map(|observers| observers.try_lock()) {
                observers.clear();
            }
            print(what);
        }));
    }

    /// Records the start at global step `steps`, 0 unless the run is resumed. `object` describes the run.
    pub(super) fn start(&self, steps: u64, object: &Value) {
        let mut observers = lock(&self.0);
        if steps > 0 {
            observers.chart(|events| events.resume(steps + 1));
        }
        observers.log(|log| log.add("start", object));
    }

    /// Records a snapshot. Cheap: a few additions unless an output is due.
    pub(super) fn step(&self, snapshot: &Snapshot) {
        let mut observers = lock(&self.0);
        if observers.ended {
            return;
        }
        match &mut observers.face {
            Face::View(view) => view.step(snapshot),
            Face::Line(line) => line.at(snapshot.global_step(), || snapshot.to_line()),
        }
        if observers.written.is_none_or(|written| written.elapsed() >= EVERY) {
            observers.write(snapshot);
        } else {
            observers.latest = Some(snapshot.clone());
        }
    }

    /// Records the end of an epoch. `object` is the one that `--json` prints.
    pub(super) fn epoch(&self, end: &EpochEnd, object: &Value) {
        let mut observers = lock(&self.0);
        if let Some(latest) = observers.latest.take() {
            observers.write(&latest);
        }
        observers.log(|log| log.add("epoch", object));
        let named = [("loss/val", end.val_loss), ("accuracy/val", end.val_accuracy)];
        let scalars: Vec<_> = named.into_iter().filter_map(|(tag, value)| Some((tag, value?))).collect();
        if !scalars.is_empty() {
            observers.chart(|events| events.add(end.global_step, &scalars));
        }
    }

    /// Prints above the display.
    pub(super) fn aside(&self, print: impl FnOnce()) {
        lock(&self.0).aside(print);
    }

    /// Removes the display for good.
    pub(super) fn clear(&self) {
        lock(&self.0).clear();
    }

    /// Records the end of the run; `object` is the one that `--json` prints. Only the first call counts.
    pub(super) fn end(&self, object: &Value) {
        self.clear();
        let mut observers = lock(&self.0);
        if observers.ended {
            return;
        }
        if let Some(latest) = observers.latest.take() {
            observers.write(&latest);
        }
        observers.log(|log| log.add("end", object));
        observers.ended = true;
        let ObserverSet { log, events, lost, .. } = &*observers;
        told(log.as_ref().map(Log::path), "lines", lost.log);
        told(events.as_ref().map(Events::path), "records", lost.events);
    }
}

/// Reports lost lines or records at the end.
fn told(path: Option<&Path>, what: &str, lost: u64) {
    if let (Some(path), true) = (path, lost > 0) {
        say("warning", format_args!("{} is not whole: {lost} {what} could not be written", path.display()));
    }
}

impl ObserverSet {
    fn clear(&mut self) {
        match &mut self.face {
            Face::View(view) => view.clear(),
            Face::Line(line) => line.clear(),
        }
    }

    /// Writes a snapshot to the files.
    fn write(&mut self, snapshot: &Snapshot) {
        (self.latest, self.written) = (None, Some(Instant::now()));
        self.log(|log| log.step(snapshot));
        let scalars = scalars(snapshot);
        self.chart(|events| events.add(snapshot.global_step(), &scalars));
    }

    fn log(&mut self, add: impl FnOnce(&mut Log) -> io::Result<()>) {
        let Some(log) = self.log.as_mut().filter(|_| !self.ended) else { return };
        if let Err(error) = add(log) {
            self.lost.log += 1;
            let path = log.path().display().to_string();
            self.complain(self.lost.log, &path, &error);
        }
    }

    fn chart(&mut self, add: impl FnOnce(&mut Events) -> io::Result<()>) {
        let Some(events) = self.events.as_mut().filter(|_| !self.ended) else { return };
        if let Err(error) = add(events) {
            self.lost.events += 1;
            let path = events.path().display().to_string();
            self.complain(self.lost.events, &path, &error);
        }
    }

    /// Reports the first failed write of a file.
    fn complain(&mut self, lost: u64, path: &str, error: &io::Error) {
        if lost == 1 {
            let what = format!("cannot write {path}: {error}; training goes on, and the file is tried again each time");
            self.aside(|| say("warning", what));
        }
    }

    fn aside(&mut self, print: impl FnOnce()) {
        match &mut self.face {
            Face::View(view) => view.aside(print),
            Face::Line(line) => line.aside(print),
        }
    }
}

/// A snapshot by TensorBoard tags.
fn scalars(snapshot: &Snapshot) -> Vec<(&'static str, f64)> {
    let mut scalars = vec![
        ("loss/train", snapshot.loss),
        ("accuracy/train", snapshot.accuracy),
        ("learning_rate", snapshot.learning_rate),
        ("images_per_s", snapshot.images_per_s),
        ("input_wait", snapshot.input_wait_share),
        ("device_busy", snapshot.busy_share),
        ("memory/ram_held", snapshot.ram_held.0 as f64),
    ];
    scalars.extend(snapshot.memory_in_use.map(|bytes| ("memory/training", bytes.0 as f64)));
    scalars
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::thread;

    use serde_json::json;

    use super::*;

    fn snapshot(step: u64) -> Snapshot {
        Snapshot { epochs: 2, step, steps: 1000, ..Snapshot::default() }
    }

    fn observers(log: &Path, events: Option<Events>) -> Observers {
        let log = Log::start(log, false).ok().expect("it can be written");
        Observers::with(Face::Line(Progress::new(0)), Some(log), events)
    }

    #[test]
    fn files_get_a_moment_a_second_and_the_last_of_each_epoch() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        let events = Events::start(folder.path()).ok().expect("it can be written");
        let charted = events.path().to_owned();
        let observers = observers(&path, Some(events));
        observers.start(0, &json!({ "parameters": 7 }));
        (1..=500).for_each(|step| observers.step(&snapshot(step)));
        thread::sleep(EVERY);
        (501..=1000).for_each(|step| observers.step(&snapshot(step)));
        let end = EpochEnd { global_step: 1000, val_loss: Some(1.0), val_accuracy: Some(0.5) };
        observers.epoch(&end, &json!({ "epoch": 0, "loss": 0.5 }));
        observers.end(&json!({ "ended_early": null }));
        let size = || fs::metadata(&charted).expect("it is there").len();
        let (before, text) = (size(), fs::read_to_string(&path).expect("it is there"));
        observers.step(&snapshot(1));
        observers.end(&json!({}));
        assert_eq!((size(), fs::read_to_string(&path).expect("it is there")), (before, text.clone()), "it is over");

        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
        let steps: Vec<u64> = lines.iter().filter_map(|line| line["step"].as_u64()).collect();
        assert_eq!(steps, [1, 501, 1000]);
        let events: Vec<&str> = lines.iter().filter_map(|line| line["event"].as_str()).collect();
        assert_eq!(events, ["start", "step", "step", "step", "epoch", "end"]);
        assert_eq!((&lines[0]["parameters"], &lines[4]["loss"]), (&json!(7), &json!(0.5)));
        let bytes = fs::read(&charted).expect("it is there");
        for tag in ["loss/train", "loss/val", "accuracy/val", "input_wait", "memory/ram_held"] {
            assert!(bytes.windows(tag.len()).any(|window| window == tag.as_bytes()), "{tag} is missing");
        }
    }

    #[test]
    fn a_full_disk_is_counted_and_stops_nobody() {
        if !Path::new("/dev/full").exists() {
            return;
        }
        let observers = observers(Path::new("/dev/full"), None);
        observers.start(0, &json!({}));
        observers.step(&snapshot(1));
        observers.epoch(&EpochEnd::default(), &json!({}));
        let mut printed = false;
        observers.aside(|| printed = true);
        observers.end(&json!({}));
        assert!(printed);
        assert_eq!(lock(&observers.0).lost.log, 4);
    }
}
