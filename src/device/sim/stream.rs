//! One stream of the simulated accelerator: a queue of commands, the thread that runs them, its progress, and its
//! events.

use std::fmt;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::device::{DeviceError, Event, Signal};
use crate::sync::{Arc, Condvar, Mutex, PoisonError, lock, spawn};

/// Commands that may be enqueued and not yet begun; one more blocks the caller, as on a GPU.
const QUEUE_DEPTH_MAX: usize = 1024;

/// Progress of a stream. Commands are numbered from 1.
#[derive(Debug)]
pub(super) struct Progress {
    /// Name of a command of this stream: "copy" or "step".
    pub(super) command: &'static str,
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct State {
    done: u64,
    failed: Option<DeviceError>,
}

impl Progress {
    pub(super) fn new(command: &'static str) -> Arc<Self> {
        Arc::new(Progress { command, state: Mutex::default(), moved: Condvar::new() })
    }

    /// Marks everything up to this command as done, unless the stream has failed before.
    pub(super) fn pass(&self, number: u64) {
        let mut state = lock(&self.state);
        if state.failed.is_none() {
            state.done = number;
            self.moved.notify_all();
        }
    }

    /// Fails every command that is not done by now. The first error stays.
    pub(super) fn fail(&self, error: &DeviceError) {
        lock(&self.state).failed.get_or_insert_with(|| error.clone());
        self.moved.notify_all();
    }

    pub(super) fn check(&self) -> Result<(), DeviceError> {
        lock(&self.state).failed.clone().map_or(Ok(()), Err)
    }

    /// Sleeps until the deadline, or until the stream fails.
    pub(super) fn sleep_until(&self, deadline: Instant) -> Result<(), DeviceError> {
        self.wait_until(u64::MAX, Some(deadline)).map(|_| ())
    }

    fn wait_until(&self, number: u64, deadline: Option<Instant>) -> Result<bool, DeviceError> {
        let mut state = lock(&self.state);
        loop {
            if state.done >= number {
                return Ok(true);
            }
            if let Some(error) = &state.failed {
                return Err(error.clone());
            }
            state = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                Some(left) if left.is_zero() => return Ok(false),
                Some(left) => self.moved.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.moved.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

/// Signal of an event: the end of one command.
pub(super) struct SimEvent {
    progress: Arc<Progress>,
    number: u64,
}

impl SimEvent {
    /// Number of the command of this stream that `event` is the end of; `None` for any other event.
    pub(super) fn number_on(progress: &Arc<Progress>, event: &Event) -> Option<u64> {
        event.signal::<SimEvent>().filter(|point| Arc::ptr_eq(&point.progress, progress)).map(|point| point.number)
    }
}

impl Signal for SimEvent {
    fn wait_for(&self, limit: Duration) -> Result<bool, DeviceError> {
        self.progress.wait_until(self.number, Instant::now().checked_add(limit))
    }
}

impl fmt::Debug for SimEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.progress.command, self.number)
    }
}

/// A command with its number on the stream.
pub(super) struct Command<W> {
    pub(super) number: u64,
    /// Event that passes before the command begins.
    pub(super) after: Event,
    pub(super) enqueued_at: Instant,
    pub(super) work: W,
}

/// A queue of commands and the thread that runs them in order. The thread ends with the queue.
#[derive(Debug)]
pub(super) struct Stream<W> {
    progress: Arc<Progress>,
    /// The other stream.
    other: Arc<Progress>,
    tail: Mutex<Tail>,
    commands: Option<Sender<Command<W>>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Tail {
    /// Number of the last command enqueued.
    number: u64,
    /// Number of the last command of the other stream that all commands from here on come after, by order of events.
    seen: u64,
}

impl<W: Send + 'static> Stream<W> {
    /// A stream whose thread runs `body` on its queue until that is empty and closed.
    pub(super) fn start(
        thread: &str,
        progress: &Arc<Progress>,
        other: &Arc<Progress>,
        body: impl FnOnce(&Receiver<Command<W>>) + Send + 'static,
    ) -> Result<Self, DeviceError> {
        let (commands, queue) = bounded(QUEUE_DEPTH_MAX);
        let failed = |error: std::io::Error| DeviceError::Failed {
            what: format!("starting thread {thread}"),
            cause: error.to_string(),
        };
        let thread = spawn(thread, move || body(&queue)).map_err(failed)?;
        Ok(Stream {
            progress: Arc::clone(progress),
            other: Arc::clone(other),
            tail: Mutex::default(),
            commands: Some(commands),
            thread: Some(thread),
        })
    }

    /// Enqueues the work that `work` makes from the command's number and from the number of the last command of the
    /// other stream that it comes after. If `work` fails, nothing is enqueued.
    pub(super) fn push(
        &self,
        after: &Event,
        work: impl FnOnce(u64, u64) -> Result<W, DeviceError>,
    ) -> Result<Event, DeviceError> {
        let mut tail = lock(&self.tail);
        let number = tail.number + 1;
        let seen = SimEvent::number_on(&self.other, after).unwrap_or(0).max(tail.seen);
        let work = work(number, seen)?;
        let command = Command { number, after: after.clone(), enqueued_at: Instant::now(), work };
        // The thread reads its queue until the sender is gone, so this fails only if it has panicked.
        if self.commands.as_ref().is_none_or(|commands| commands.send(command).is_err()) {
            self.progress.check()?;
        }
        *tail = Tail { number, seen };
        Ok(self.point(number))
    }

    /// Event of the present end.
    pub(super) fn end(&self) -> Event {
        let number = lock(&self.tail).number;
        if number == 0 { Event::done() } else { self.point(number) }
    }

    fn point(&self, number: u64) -> Event {
        Event::new(Arc::new(SimEvent { progress: Arc::clone(&self.progress), number }))
    }
}

impl<W> Drop for Stream<W> {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has already failed every event.
            let _ = thread.join();
        }
    }
}
