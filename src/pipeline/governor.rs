//! Adaptation to memory pressure: gives memory back to the system while it is short, and takes it again afterwards. The
//! contents of batches never change.
//!
//! The state is one number, the **level**. At level 0 the sizes are the plan's; every further level halves the numbers
//! of workers, slots and read buffers, down to the least that works, so progress is guaranteed at every level. A tick
//! with short memory raises the level by one (to the last one if memory is very short); after a second of plentiful
//! memory, a consumer that waits and room for the next larger sizes lower it by one.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use crate::host::{MemoryLimit, MemorySnapshot, MemoryWatch};
use crate::plan::{Plan, PoolSizes};
use crate::sync::{AtomicU32, AtomicUsize, Mutex, Ordering, lock};
use crate::units::ByteCount;

/// Time for which memory must have been plentiful before a run grows by one level.
const CALM: Duration = Duration::from_secs(1);
/// Memory is short if less than this part of its limit is available,
const SHORT_PART: u64 = 16;
/// or less than this, whichever is less.
const SHORT_MAX: ByteCount = ByteCount(256 << 20);
/// Stalls count as pressure if tasks spend this share of the time in them,
const STALLED_SHARE: f64 = 0.2;
/// and less than this part of the limit is available: otherwise another process is short.
const STALLED_PART: u64 = 4;
/// A consumer that waits for less than this share of the time needs no more.
const WAITING_SHARE: f64 = 0.02;
/// Number of events that are kept; more are counted.
const EVENTS_MAX: usize = 64;

/// A change of a run's sizes.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ResizeEvent {
    /// Time since the loader was built.
    pub at: Duration,
    /// The new level: 0 is the plan, each further one halves the sizes.
    pub level: u32,
    /// Workers at this level.
    pub workers: usize,
    /// Slots at this level.
    pub slots: usize,
    /// Reason of the change, with its numbers.
    pub reason: ResizeReason,
}

/// The reason for a change of a run's sizes.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum ResizeReason {
    /// Memory is short.
    MemoryShort {
        /// Available memory.
        available: ByteCount,
        /// Memory is short below this.
        threshold: ByteCount,
        /// The limit that `available` counts against.
        limited_by: MemoryLimit,
    },
    /// Tasks stall for want of memory.
    Stalled {
        /// Share of the time that tasks were stalled.
        share: f64,
        /// Available memory.
        available: ByteCount,
        /// The limit that `available` counts against.
        limited_by: MemoryLimit,
    },
    /// Memory is plentiful again, and the consumer waits.
    ConsumerWaits {
        /// Share of the time that the consumer waited.
        share: f64,
        /// Available memory.
        available: ByteCount,
        /// The limit that `available` counts against.
        limited_by: MemoryLimit,
    },
}

impl fmt::Display for ResizeReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ResizeReason::MemoryShort { available, threshold, limited_by } => {
                write!(f, "{available} available, less than {threshold} ({limited_by})")
            }
            ResizeReason::Stalled { share, available, limited_by } => {
                let percent = share * 100.0;
                write!(f, "tasks stalled for memory {percent:.0} % of the time, {available} available ({limited_by})")
            }
            ResizeReason::ConsumerWaits { share, available, limited_by } => {
                let percent = share.min(1.0) * 100.0;
                write!(f, "{available} available ({limited_by}), and the consumer waited {percent:.0} % of the time")
            }
        }
    }
}

impl fmt::Display for ResizeEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ResizeEvent { at, level, workers, slots, reason } = self;
        let s = |count: usize| if count == 1 { "" } else { "s" };
        let (ws, ss) = (s(*workers), s(*slots));
        write!(f, "{:.1} s: level {level} ({workers} worker{ws}, {slots} slot{ss}): {reason}", at.as_secs_f64())
    }
}

/// One reading of the machine and the run.
#[derive(Clone, Debug)]
struct Reading {
    /// Time since the loader was built.
    at: Duration,
    memory: MemorySnapshot,
    /// Share of the time since the last reading that the consumer waited.
    waiting_share: f64,
    /// Share of the time since the last reading that tasks were stalled for want of memory.
    stalled_share: f64,
}

/// A source of memory readings: the machine, or a test.
pub(crate) type Probe = Box<dyn FnMut() -> MemorySnapshot + Send>;

/// The governor's state.
pub(crate) struct Governor {
    level: AtomicU32,
    /// Workers below this number are active, the others wait.
    workers: AtomicUsize,
    state: Mutex<State>,
}

struct State {
    probe: Probe,
    built: Instant,
    ticked: Instant,
    waited: Duration,
    /// Time since which memory has been plentiful.
    calm_since: Duration,
    events: VecDeque<ResizeEvent>,
    event_count: u64,
}

impl Governor {
    pub(super) fn new(workers: usize, probe: Option<Probe>) -> Self {
        let probe = probe.unwrap_or_else(|| {
            let mut watch = MemoryWatch::new();
            Box::new(move || watch.poll())
        });
        let now = Instant::now();
        let state = State {
            probe,
            built: now,
            ticked: now,
            waited: Duration::ZERO,
            calm_since: Duration::ZERO,
            events: VecDeque::new(),
            event_count: 0,
        };
        Governor { level: AtomicU32::new(0), workers: AtomicUsize::new(workers), state: Mutex::new(state) }
    }

    /// Returns true if this worker is active.
    pub(super) fn is_on(&self, worker: usize) -> bool {
        worker < self.workers.load(Ordering::SeqCst)
    }

    /// Sets the number of active workers.
    pub(super) fn set_workers(&self, workers: usize) {
        self.workers.store(workers, Ordering::SeqCst);
    }

    /// Number of events so far, and the latest of them, oldest first.
    pub(crate) fn events(&self) -> (u64, Vec<ResizeEvent>) {
        let state = lock(&self.state);
        (state.event_count, state.events.iter().cloned().collect())
    }

    /// Current level: 0 is the plan.
    pub(crate) fn level(&self) -> u32 {
        self.level.load(Ordering::SeqCst)
    }

    /// Reads the machine's memory, decides on a level, and calls `resize` with it. `waited` is the time that the
    /// consumer has waited so far.
    pub(super) fn tick<E>(&self, plan: &Plan, waited: Duration, resize: impl Fn(u32) -> Result<(), E>) {
        let mut state = lock(&self.state);
        let (now, since) = (Instant::now(), state.ticked.elapsed());
        let memory = (state.probe)();
        let share = |part: Duration| part.as_secs_f64() / since.as_secs_f64().max(1e-3);
        let reading = Reading {
            at: now - state.built,
            waiting_share: share(waited.saturating_sub(state.waited)),
            stalled_share: share(memory.stalled),
            memory,
        };
        (state.ticked, state.waited) = (now, waited);

        let level = self.level();
        let decision = decide(plan, level, state.calm_since, &reading);
        if decision.pressed || decision.change.is_some() {
            state.calm_since = reading.at;
        }
        // Also without a change: objects that were in use at the last tick may have come back.
        let to = decision.change.as_ref().map_or(level, |&(to, _)| to);
        if resize(to).is_err() && to < level {
            // There was no memory after all: stay, and try again after the next second of calm.
            let _ = resize(level);
            return;
        }
        let Some((level, reason)) = decision.change else { return };
        self.level.store(level, Ordering::SeqCst);
        let PoolSizes { workers, slots, .. } = plan.at_level(level);
        if state.events.len() == EVENTS_MAX {
            state.events.pop_front();
        }
        state.events.push_back(ResizeEvent { at: reading.at, level, workers, slots, reason });
        state.event_count += 1;
    }
}

/// The result of one reading.
struct Decision {
    /// True if memory was short.
    pressed: bool,
    /// The new level, and the reason for it.
    change: Option<(u32, ResizeReason)>,
}

/// The rule: a pure function of the reading.
fn decide(plan: &Plan, level: u32, calm_since: Duration, reading: &Reading) -> Decision {
    let MemorySnapshot { limit, available, limited_by, .. } = &reading.memory;
    let (available, limited_by) = (*available, limited_by.clone());
    let threshold = ByteCount(limit.0 / SHORT_PART).min(SHORT_MAX);
    let stalled = reading.stalled_share > STALLED_SHARE && available.0 < limit.0 / STALLED_PART;
    let stay = |pressed| Decision { pressed, change: None };
    if available < threshold || stalled {
        let last = plan.levels() - 1;
        let to = if available.0 < threshold.0 / 2 { last } else { (level + 1).min(last) };
        if to <= level {
            return stay(true);
        }
        let reason = if available < threshold {
            ResizeReason::MemoryShort { available, threshold, limited_by }
        } else {
            ResizeReason::Stalled { share: reading.stalled_share, available, limited_by }
        };
        return Decision { pressed: true, change: Some((to, reason)) };
    }
    if level == 0 || reading.at < calm_since + CALM || reading.waiting_share < WAITING_SHARE {
        return stay(false);
    }
    let more = plan.level_bytes(level - 1).saturating_sub(plan.level_bytes(level));
    if available < threshold * 2 + more {
        return stay(false);
    }
    let reason = ResizeReason::ConsumerWaits { share: reading.waiting_share, available, limited_by };
    Decision { pressed: false, change: Some((level - 1, reason)) }
}

#[cfg(test)]
mod tests;
