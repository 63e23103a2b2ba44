//! Log of a training run: one JSON object a line, each written whole. Objects of epochs and of the end are those of
//! `--json`.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::super::failure::Failure;
use super::snapshot::Snapshot;

/// A log file.
pub(super) struct Log {
    file: File,
    path: PathBuf,
    /// True if the last line is unterminated; the next write terminates it first.
    torn: bool,
}

impl Log {
    /// Opens a log: appends if a run is resumed, else truncates. Creates its folder if missing, which may be the
    /// checkpoint's.
    ///
    /// # Errors
    /// The folder or the file cannot be created or opened; the message has the path.
    pub(super) fn start(path: &Path, resume: bool) -> Result<Log, Failure> {
        let refused = |error: io::Error| Failure::Io(format!("cannot write {}: {error}", path.display()));
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder)
                .map_err(|error| Failure::Io(format!("cannot make the folder {}: {error}", folder.display())))?;
        }
        let torn = resume && ends_within_a_line(path);
        let file = File::options().append(true).create(true).open(path).map_err(refused)?;
        if !resume && file.metadata().is_ok_and(|facts| facts.is_file()) {
            file.set_len(0).map_err(refused)?;
        }
        Ok(Log { file, path: path.to_owned(), torn })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds an object, with its kind as `event` and the time as `unix_s`.
    ///
    /// # Errors
    /// Writing fails. A later call may succeed.
    pub(super) fn add(&mut self, event: &str, object: &Value) -> io::Result<()> {
        let mut object = object.clone();
        object["event"] = event.into();
        object["unix_s"] = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()).into();
        self.line(&object.to_string())
    }

    /// Adds a snapshot of training.
    ///
    /// # Errors
    /// See [`Log::add`].
    pub(super) fn step(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        self.add("step", &step_json(snapshot))
    }

    /// Adds a line in one write, so that a concurrent reader or another appending process never sees a partial line.
    fn line(&mut self, text: &str) -> io::Result<()> {
        let line = format!("{}{text}\n", if self.torn { "\n" } else { "" });
        let written = loop {
            match self.file.write(line.as_bytes()) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        if written == line.len() {
            self.torn = false;
            return Ok(());
        }
        self.torn |= written > 0;
        let what = format!("{written} of a line's {} bytes were taken", line.len());
        Err(io::Error::new(ErrorKind::WriteZero, what))
    }
}

/// A snapshot as JSON, with the keys of an epoch's object.
fn step_json(snapshot: &Snapshot) -> Value {
    json!({
        "epoch": snapshot.epoch,
        "epochs": snapshot.epochs,
        "step": snapshot.step,
        "steps": snapshot.steps,
        "loss": snapshot.loss,
        "accuracy": snapshot.accuracy,
        "val_accuracy": snapshot.val_accuracy,
        "learning_rate": snapshot.learning_rate,
        "images_per_s": snapshot.images_per_s,
        "input_wait_share": snapshot.input_wait_share,
        "compute_share": snapshot.busy_share,
        "ram_held_bytes": snapshot.ram_held.0,
        "ram_budget_bytes": snapshot.ram_budget.0,
        "memory_bytes": snapshot.memory_in_use.map(|bytes| bytes.0),
        "memory_budget_bytes": snapshot.memory_budget.map(|bytes| bytes.0),
        "seconds_left": snapshot.seconds_left,
    })
}

/// Returns true if the file exists and its last line is unterminated, as after a killed run or a full disk.
fn ends_within_a_line(path: &Path) -> bool {
    let last = || {
        let mut file = File::open(path).ok().filter(|file| file.metadata().is_ok_and(|facts| facts.is_file()))?;
        file.seek(SeekFrom::End(-1)).ok()?;
        let mut last = [0];
        file.read_exact(&mut last).ok()?;
        Some(last[0])
    };
    last().is_some_and(|byte| byte != b'\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects(path: &Path) -> Vec<Value> {
        let text = fs::read_to_string(path).expect("it is there");
        assert!(text.ends_with('\n'), "{text}");
        text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    #[test]
    fn a_run_and_the_one_that_goes_on_from_it_are_in_one_log() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("run1").join("log.jsonl");
        let mut log = Log::start(&path, false).ok().expect("it can be written");
        log.add("start", &json!({ "parameters": 7 })).expect("it is written");
        let snapshot = Snapshot { epoch: 2, step: 5, loss: f64::NAN, busy_share: 0.5, ..Snapshot::default() };
        log.step(&snapshot).expect("it is written");
        drop(log);
        Log::start(&path, true).ok().expect("it can be written").add("end", &json!({})).expect("it is written");
        let lines = objects(&path);
        assert_eq!(lines.iter().map(|line| &line["event"]).collect::<Vec<_>>(), ["start", "step", "end"]);
        assert_eq!((&lines[0]["parameters"], &lines[1]["epoch"], &lines[1]["step"]), (&json!(7), &json!(2), &json!(5)));
        assert_eq!((&lines[1]["loss"], &lines[1]["compute_share"]), (&Value::Null, &json!(0.5)));
        assert!(lines.iter().all(|line| line["unix_s"].as_f64() > Some(1.7e9)), "{lines:?}");

        Log::start(&path, false).ok().expect("it can be written").add("start", &json!({})).expect("it is written");
        assert_eq!(objects(&path).len(), 1, "a run that is not resumed has a log of its own");
    }

    #[test]
    fn half_a_line_spoils_only_itself() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), "{\"event\":\"start\"}\n{\"event\":\"st").expect("it is written");
        let mut log = Log::start(file.path(), true).ok().expect("it can be written");
        log.add("end", &json!({})).expect("it is written");
        log.add("end", &json!({})).expect("it is written");
        let text = fs::read_to_string(file.path()).expect("it is there");
        let whole: Vec<bool> = text.lines().map(|line| serde_json::from_str::<Value>(line).is_ok()).collect();
        assert_eq!(whole, [true, false, true, true], "{text}");
    }

    #[test]
    fn what_cannot_be_written_is_an_error_and_not_the_end() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let (folder, inside) = (std::env::temp_dir(), file.path().join("log.jsonl"));
        for path in [&folder, &inside] {
            let Err(Failure::Io(what)) = Log::start(path, false) else { panic!("{} is no file", path.display()) };
            assert!(what.contains(&file.path().display().to_string()) || path == &folder, "{what}");
            assert!(what.contains(&folder.display().to_string()), "{what}");
        }
        // A device that is always full.
        let Ok(mut log) = Log::start(Path::new("/dev/full"), false) else { return };
        assert!(log.add("start", &json!({})).is_err());
        assert!(log.add("end", &json!({})).is_err());
    }
}
