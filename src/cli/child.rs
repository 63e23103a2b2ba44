//! A run in a child process: started, observed from outside through `/proc`, and killed with the program.

use std::fs;
use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use feedstock::ByteCount;
use serde::de::DeserializeOwned;

use super::failure::Failure;
use super::lock;
use super::stop::Stop;

/// Interval between two reads of `/proc/<pid>/status`. The kernel keeps the peak itself; only the last moments are
/// missed.
const LOOK: Duration = Duration::from_millis(4);

/// The current child process, if any. A clone can kill it from another thread.
#[derive(Clone, Default)]
pub(crate) struct Watched(Arc<Mutex<Option<Child>>>);

/// Exit status, output and observed memory of a finished child.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) seen: Seen,
}

/// Peaks observed from outside.
#[derive(Clone, Copy, Default)]
pub(crate) struct Seen {
    /// Peak resident set (VmHWM), kept by the kernel.
    pub(crate) peak_rss: ByteCount,
    /// Peak of anonymous and shared pages, as a control group charges them; the maximum of many samples.
    pub(crate) peak_own: ByteCount,
}

impl Watched {
    /// Kills the process.
    pub(crate) fn kill(&self) {
        if let Some(child) = &mut *lock(&self.0) {
            // It may have exited already.
            let _ = child.kill();
        }
    }

    /// Runs `command` to its end. `look` is called repeatedly with the peak so far.
    pub(crate) fn run(&self, mut command: Command, stop: &Stop, mut look: impl FnMut(ByteCount)) -> io::Result<Ended> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let (out, err) = (collect(child.stdout.take()), collect(child.stderr.take()));
        let pid = child.id();
        *lock(&self.0) = Some(child);
        if stop.is_requested() {
            // The request came between two runs, when there was no process to kill.
            self.kill();
        }
        let mut seen = Seen::default();
        let status = loop {
            // Until the child is waited for, its id is not reused.
            seen.update(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default());
            let ended = lock(&self.0).as_mut().map(Child::try_wait).transpose()?.flatten();
            if let Some(status) = ended {
                break status;
            }
            look(seen.peak_rss);
            thread::sleep(LOOK);
        };
        lock(&self.0).take();
        let text = |reader: thread::JoinHandle<Vec<u8>>| {
            String::from_utf8_lossy(&reader.join().unwrap_or_default()).trim().to_owned()
        };
        Ok(Ended { status, out: text(out), err: text(err), seen })
    }
}

/// Reads a pipe to its end on a thread, so that the child never blocks on it.
fn collect(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // An error ends the output; what was read before it is kept.
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

impl Ended {
    /// The run's JSON report, if it ended well. `name` names the run in the error: "at a budget of 64 MiB".
    pub(crate) fn report<T: DeserializeOwned>(&self, name: &str) -> Result<T, Failure> {
        if let Some(signal) = self.status.signal() {
            return Err(Failure::Broken(format!("{name} the run was killed by signal {signal}")));
        }
        if !self.status.success() {
            // Notes precede the error line.
            let error = self.err.lines().find_map(|line| line.strip_prefix("error: "));
            return Err(self.failed(name, error.unwrap_or(&self.err)));
        }
        serde_json::from_str(&self.out).map_err(|error| self.failed(name, &error.to_string()))
    }

    /// Failure of a child, with its exit code.
    pub(crate) fn failed(&self, name: &str, what: &str) -> Failure {
        let code = self.status.code().filter(|code| *code != 0).and_then(|code| u8::try_from(code).ok()).unwrap_or(70);
        Failure::Run { code, what: format!("the run {name} failed: {what}") }
    }
}

impl Seen {
    /// Updates the peaks from the text of `/proc/<pid>/status`.
    fn update(&mut self, status: &str) {
        let kilobytes = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        self.peak_rss = self.peak_rss.max(ByteCount(kilobytes("VmHWM") << 10));
        self.peak_own = self.peak_own.max(ByteCount((kilobytes("RssAnon") + kilobytes("RssShmem")) << 10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_are_maxima() {
        let mut seen = Seen::default();
        seen.update("VmHWM:\t    2048 kB\nRssAnon:\t     100 kB\nRssShmem:\t      28 kB\n");
        seen.update("VmHWM:\t    2048 kB\nRssAnon:\t      10 kB\nRssShmem:\t       0 kB\n");
        seen.update("State:\tZ (zombie)\n");
        assert_eq!((seen.peak_rss, seen.peak_own), (ByteCount(2 << 20), ByteCount(128 << 10)));
    }
}
