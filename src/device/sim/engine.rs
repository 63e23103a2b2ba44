//! Owns what the two streams of the simulated accelerator share, and what their commands do: copies, steps, simulated
//! time, faults and the record of violations.
//! It must never touch a slot after the copy's event has passed, nor let an event pass before the work is done.

use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use xxhash_rust::xxh3::xxh3_64;

use super::SimSpec;
use super::busy_time::{BusyTime, StreamKind};
use super::memory::SimMemory;
use super::stream::{Command, Progress};
use crate::device::stream_trace::{self, What};
use crate::device::{
    DeviceError, Event, HostMemory, Place, Utilization, WAIT_MAX, Windows, bytes, convert_into, convert_windows_into,
};
use crate::sync::{Arc, AtomicU64, Mutex, Ordering, lock};
use crate::tensor::{OutputFormat, SampleSpec};
use crate::units::ByteCount;

/// Violations that are kept in words. The first is the one to look at.
const VIOLATIONS_MAX: usize = 64;

/// How often a stream that waits for somebody else's event looks whether it is still wanted.
const GLANCE: Duration = Duration::from_millis(20);

/// A batch on its way: what the copy stream does.
#[derive(Debug)]
pub(super) struct Copy {
    pub(super) from: Arc<HostMemory>,
    pub(super) copied_bytes: usize,
    /// Of the slot's bytes when the copy was enqueued. They must be the same when it ends.
    pub(super) checksum: u64,
    pub(super) spec: SampleSpec,
    pub(super) format: OutputFormat,
    pub(super) windows: Option<(SampleSpec, Vec<Place>)>,
    pub(super) to: Arc<SimMemory>,
    pub(super) finished_bytes: usize,
}

impl Copy {
    pub(super) fn source(from: &HostMemory, copied_bytes: usize) -> u64 {
        xxh3_64(&from.as_slice()[..copied_bytes])
    }
}

/// What the compute stream does.
#[derive(Debug)]
pub(super) enum Compute {
    /// Reads a batch (the one that `copy` brought) and is busy for a while.
    Step { memory: Arc<SimMemory>, copy: u64, duration: Duration },
    /// Waits for the command's event and does nothing.
    Order,
}

#[derive(Debug)]
pub(super) struct Engine {
    pub(super) spec: SimSpec,
    pub(super) copy: Arc<Progress>,
    pub(super) compute: Arc<Progress>,
    trouble: Mutex<Trouble>,
    busy_time: Mutex<BusyTime>,
    memory: Mutex<Memory>,
    commands: AtomicU64,
}

#[derive(Debug, Default)]
struct Trouble {
    sticky: Option<DeviceError>,
    violations: Vec<String>,
}

#[derive(Debug, Default)]
struct Memory {
    used: ByteCount,
    /// Allocations made so far.
    count: u64,
}

impl Engine {
    pub(super) fn new(spec: SimSpec) -> Arc<Self> {
        Arc::new(Engine {
            spec,
            copy: Progress::new("copy"),
            compute: Progress::new("step"),
            trouble: Mutex::default(),
            busy_time: Mutex::default(),
            memory: Mutex::default(),
            commands: AtomicU64::new(0),
        })
    }

    /// Nothing that is under way will be done. The first reason sticks.
    pub(super) fn fail(&self, error: &DeviceError) {
        lock(&self.trouble).sticky.get_or_insert_with(|| error.clone());
        self.copy.fail(error);
        self.compute.fail(error);
    }

    pub(super) fn lose(&self, cause: &str) -> DeviceError {
        let error = DeviceError::Lost { device: self.spec.to_string(), cause: cause.to_owned() };
        self.fail(&error);
        error
    }

    /// Records a violation. The streams go on, so that whoever waits gets to see it.
    pub(super) fn violation(&self, words: String) -> DeviceError {
        let mut trouble = lock(&self.trouble);
        if trouble.violations.len() < VIOLATIONS_MAX {
            trouble.violations.push(words.clone());
        }
        let error = DeviceError::Lifetime(words);
        trouble.sticky.get_or_insert_with(|| error.clone());
        error
    }

    pub(super) fn violations(&self) -> Vec<String> {
        lock(&self.trouble).violations.clone()
    }

    pub(super) fn check(&self) -> Result<(), DeviceError> {
        lock(&self.trouble).sticky.clone().map_or(Ok(()), Err)
    }

    pub(super) fn utilization(&self) -> Utilization {
        lock(&self.busy_time).read(Instant::now())
    }

    /// Takes device memory; returns the number of the allocation.
    pub(super) fn take(&self, len: usize) -> Result<u64, DeviceError> {
        let mut memory = lock(&self.memory);
        if let Some(limit) = self.spec.memory {
            let free = limit.saturating_sub(memory.used);
            if bytes(len) > free {
                return Err(DeviceError::OutOfMemory {
                    what: "device memory",
                    asked: bytes(len),
                    free: Some(free),
                    usage: None,
                });
            }
        }
        memory.used += bytes(len);
        memory.count += 1;
        Ok(memory.count)
    }

    /// Device memory that is taken.
    pub(super) fn held(&self) -> ByteCount {
        lock(&self.memory).used
    }

    pub(super) fn give_back(&self, len: usize) {
        let mut memory = lock(&self.memory);
        memory.used = memory.used.saturating_sub(bytes(len));
    }

    /// The body of the copy stream's thread.
    pub(super) fn run_copies(&self, queue: &Receiver<Command<Copy>>) {
        let _exit = Exit(self);
        let mut over_at = Instant::now();
        // After a failure commands are only dropped: what they hold goes back to its owners.
        for command in queue {
            let number = command.number;
            match self.begin(&self.copy, &command, &mut over_at).and_then(|()| self.copy(command, &mut over_at)) {
                Ok(()) => self.copy.pass(number),
                Err(error) => self.fail(&error),
            }
        }
    }

    /// The body of the compute stream's thread.
    pub(super) fn run_steps(&self, queue: &Receiver<Command<Compute>>) {
        let _exit = Exit(self);
        let mut over_at = Instant::now();
        for command in queue {
            let number = command.number;
            match self.begin(&self.compute, &command, &mut over_at).and_then(|()| self.step(command, &mut over_at)) {
                Ok(()) => self.compute.pass(number),
                Err(error) => self.fail(&error),
            }
        }
    }

    /// Waits until a command may begin, and moves `over_at` (when the one before it was over) to when it does.
    ///
    /// A command that was ready before its predecessor was over follows it without a gap, however late this thread wakes
    /// up: so lateness does not add up over a thousand steps.
    fn begin<W>(&self, progress: &Progress, command: &Command<W>, over_at: &mut Instant) -> Result<(), DeviceError> {
        progress.check()?;
        let count = self.commands.fetch_add(1, Ordering::Relaxed);
        if self.spec.lose_after.is_some_and(|limit| count >= limit) {
            return Err(self.lose(&format!("it was to be lost after {count} commands")));
        }
        let ready_before = command.after.is_done()? && command.enqueued_at <= *over_at;
        if !ready_before {
            Self::wait(progress, &command.after)?;
            *over_at = Instant::now();
        }
        Ok(())
    }

    fn wait(progress: &Progress, event: &Event) -> Result<(), DeviceError> {
        let start = Instant::now();
        while !event.wait_for(GLANCE)? {
            progress.check()?;
            if start.elapsed() > WAIT_MAX {
                let what = format!("{event:?}, which a {} waits for,", progress.command);
                return Err(DeviceError::Timeout { what, waited: WAIT_MAX });
            }
        }
        Ok(())
    }

    fn copy(&self, command: Command<Copy>, over_at: &mut Instant) -> Result<(), DeviceError> {
        let Command { number, work, .. } = command;
        if self.spec.fail_copy == Some(number) {
            return Err(DeviceError::Failed { what: format!("copy {number}"), cause: "it was to fail".to_owned() });
        }
        let began = *over_at;
        lock(&self.busy_time).begin(StreamKind::Copy, began);
        // A violation found here has been recorded; the copy goes on.
        let _ = work.to.begin_copy(number, work.finished_bytes);
        let deadline = over_at.checked_add(self.spec.copy_time(work.copied_bytes)).unwrap_or(*over_at);
        self.copy.sleep_until(deadline)?;
        // Everything is read as late as possible, so that a slot which was written too early shows.
        if Copy::source(&work.from, work.copied_bytes) != work.checksum {
            self.violation(format!(
                "a slot was written before copy {number} out of it was over: wait for `slot_free` first"
            ));
        }
        work.to.end_copy(number, work.finished_bytes, |out| {
            let pixels = &work.from.as_slice()[..work.copied_bytes];
            match &work.windows {
                None => convert_into(pixels, work.spec, &work.format, out),
                Some((stored, places)) => {
                    let windows = Windows { stored: *stored, places };
                    convert_windows_into(pixels, &windows, work.spec, &work.format, out);
                }
            }
        });
        *over_at = deadline.max(Instant::now());
        lock(&self.busy_time).end(StreamKind::Copy, *over_at);
        stream_trace::over(What { stream: "copy", what: "copy" }, began, deadline);
        stream_trace::over(What { stream: "copy", what: "convert" }, deadline, *over_at);
        // Dropped here, before the caller lets the event pass: the slot is its owner's again.
        drop(work);
        Ok(())
    }

    fn step(&self, command: Command<Compute>, over_at: &mut Instant) -> Result<(), DeviceError> {
        let Compute::Step { memory, copy, duration } = command.work else { return Ok(()) };
        // A violation found here has been recorded; the step goes on.
        let _ = memory.begin_step(command.number, copy);
        let began = *over_at;
        lock(&self.busy_time).begin(StreamKind::Compute, began);
        *over_at = over_at.checked_add(duration).unwrap_or(*over_at);
        self.compute.sleep_until(*over_at)?;
        lock(&self.busy_time).end(StreamKind::Compute, *over_at);
        stream_trace::over(What { stream: "compute", what: "step" }, began, *over_at);
        memory.end_step(command.number);
        Ok(())
    }
}

/// However a stream's thread ends, nobody waits for it afterwards.
struct Exit<'a>(&'a Engine);

impl Drop for Exit<'_> {
    fn drop(&mut self) {
        self.0.lose("one of its streams has ended");
    }
}
