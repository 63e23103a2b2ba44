//! Commands of the two streams of the simulated accelerator: copies, steps, simulated time and faults. A slot is not
//! touched after its copy's event has passed, and an event passes only once its work is done.

use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use xxhash_rust::xxh3::xxh3_64;

use super::SimSpec;
use super::busy_time::{BusyTime, StreamKind};
use super::memory::SimMemory;
use super::state::DeviceState;
use super::stream::{Command, Progress};
use crate::device::stream_trace::{self, What};
use crate::device::{DeviceError, Event, HostMemory, Utilization, WAIT_MAX, convert_into};
use crate::sync::{Arc, AtomicU64, Mutex, Ordering, lock};
use crate::tensor::{OutputFormat, SampleSpec};

/// Interval at which a stream that waits for an event of another device checks whether it has failed meanwhile.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A command of the copy stream: one batch.
#[derive(Debug)]
pub(super) struct Copy {
    pub(super) from: Arc<HostMemory>,
    pub(super) copied_bytes: usize,
    /// Checksum of the slot's bytes when the copy was enqueued. It must be the same at the end of the copy.
    pub(super) checksum: u64,
    pub(super) spec: SampleSpec,
    pub(super) format: OutputFormat,
    pub(super) to: Arc<SimMemory>,
    pub(super) output_bytes: usize,
}

impl Copy {
    pub(super) fn source(from: &HostMemory, copied_bytes: usize) -> u64 {
        xxh3_64(&from.as_slice()[..copied_bytes])
    }
}

/// A command of the compute stream.
#[derive(Debug)]
pub(super) enum Compute {
    /// Reads the batch of copy number `copy` and is busy for `duration`.
    Step { memory: Arc<SimMemory>, copy: u64, duration: Duration },
    /// Waits for the command's event and does nothing.
    Order,
}

#[derive(Debug)]
pub(super) struct Engine {
    pub(super) spec: SimSpec,
    pub(super) copy: Arc<Progress>,
    pub(super) compute: Arc<Progress>,
    pub(super) state: Arc<DeviceState>,
    busy_time: Mutex<BusyTime>,
    commands: AtomicU64,
}

impl Engine {
    pub(super) fn new(spec: SimSpec) -> Arc<Self> {
        Arc::new(Engine {
            state: Arc::new(DeviceState::new(spec.memory)),
            spec,
            copy: Progress::new("copy"),
            compute: Progress::new("step"),
            busy_time: Mutex::default(),
            commands: AtomicU64::new(0),
        })
    }

    /// Fails everything in progress. The first error sticks.
    pub(super) fn fail(&self, error: &DeviceError) {
        self.state.fail(error);
        self.copy.fail(error);
        self.compute.fail(error);
    }

    pub(super) fn lose(&self, cause: &str) -> DeviceError {
        let error = DeviceError::Lost { device: self.spec.to_string(), cause: cause.to_owned() };
        self.fail(&error);
        error
    }

    pub(super) fn utilization(&self) -> Utilization {
        lock(&self.busy_time).read(Instant::now())
    }

    /// The body of the copy stream's thread.
    pub(super) fn run_copies(&self, queue: &Receiver<Command<Copy>>) {
        let _exit = Exit(self);
        let mut over_at = Instant::now();
        // After a failure commands are only dropped, which releases the memory that they hold.
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

    /// Waits until a command may begin. Advances `over_at` from the end of the previous command to the begin of this
    /// one.
    ///
    /// A command that was ready before its predecessor ended follows it without a gap, however late this thread wakes
    /// up, so lateness does not add up over a thousand steps.
    fn begin<W>(&self, progress: &Progress, command: &Command<W>, over_at: &mut Instant) -> Result<(), DeviceError> {
        progress.check()?;
        let count = self.commands.fetch_add(1, Ordering::Relaxed);
        if self.spec.lose_after.is_some_and(|limit| count >= limit) {
            return Err(self.lose(&format!("lose-after={count} was set")));
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
        while !event.wait_for(POLL_INTERVAL)? {
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
            return Err(DeviceError::Failed { what: format!("copy {number}"), cause: "fail-copy was set".to_owned() });
        }
        let began = *over_at;
        lock(&self.busy_time).begin(StreamKind::Copy, began);
        // A violation found here has been recorded; the copy goes on.
        let _ = work.to.begin_copy(number, work.output_bytes);
        let deadline = over_at.checked_add(self.spec.copy_time(work.copied_bytes)).unwrap_or(*over_at);
        self.copy.sleep_until(deadline)?;
        // The slot is read as late as possible, so that a write that came too early is seen.
        if Copy::source(&work.from, work.copied_bytes) != work.checksum {
            self.state.violation(format!(
                "a slot was written before copy {number} out of it was over: wait for `slot_free` first"
            ));
        }
        work.to.end_copy(number, work.output_bytes, |out| {
            let pixels = &work.from.as_slice()[..work.copied_bytes];
            convert_into(pixels, work.spec, &work.format, out);
        });
        *over_at = deadline.max(Instant::now());
        lock(&self.busy_time).end(StreamKind::Copy, *over_at);
        stream_trace::emit(What { stream: "copy", what: "copy" }, began, deadline);
        stream_trace::emit(What { stream: "copy", what: "convert" }, deadline, *over_at);
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
        stream_trace::emit(What { stream: "compute", what: "step" }, began, *over_at);
        memory.end_step(command.number);
        Ok(())
    }
}

/// Fails everything when a stream's thread ends, by a panic too.
struct Exit<'a>(&'a Engine);

impl Drop for Exit<'_> {
    fn drop(&mut self) {
        self.0.lose("one of its streams has ended");
    }
}
