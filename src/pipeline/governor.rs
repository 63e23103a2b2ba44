//! Owns the size of a run while it is under way: how many workers are at it, how many slots and read buffers circulate,
//! whether small files are kept. It gives memory back to the system while memory is short, and takes it again afterwards.
//! It must never change what is in a batch, never go beyond the plan, and never go below what the plan calls the least,
//! so progress is guaranteed at every level.
//!
//! There is one number to reason about, the **level**. At level 0 the run is as large as the plan says; every further
//! level halves what circulates, down to the least. Memory that is short moves it up by one a look (to the last at once
//! where it is very short); a second of calm, a consumer that waits and room for it move it back by one.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{Engine, Epoch};
use crate::host::{MemoryNow, MemoryWatch};
use crate::plan::{Circulating, Plan};
use crate::sync::{AtomicU32, AtomicUsize, Mutex, Ordering, lock};
use crate::units::ByteCount;

/// How often the governor looks.
const TICK: Duration = Duration::from_millis(50);
/// How long memory must have been plenty before the run grows by one level.
const CALM: Duration = Duration::from_secs(1);
/// Memory is short where less than this part of its ceiling is left,
const SHORT_PART: u64 = 16;
/// or less than this, whichever is less.
const SHORT_MAX: ByteCount = ByteCount(256 << 20);
/// Stalls count as pressure where tasks spend this share of the time in them,
const STALLED_SHARE: f64 = 0.2;
/// and less than this part of the ceiling is left: otherwise the want is somebody else's.
const STALLED_PART: u64 = 4;
/// A consumer that waits for less than this share of the time has enough.
const WAITING_SHARE: f64 = 0.02;
/// Moves that are remembered; more are counted.
const MOVES_MAX: usize = 64;

/// One change of a run's size, with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Move {
    /// When, since the loader was built.
    pub at: Duration,
    /// The new level: 0 is the plan, each further one halves what circulates.
    pub level: u32,
    /// Workers at this level.
    pub workers: usize,
    /// Slots at this level.
    pub slots: usize,
    /// Why, in a sentence with its numbers.
    pub reason: String,
}

impl std::fmt::Display for Move {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Move { at, level, workers, slots, reason } = self;
        let s = |count: usize| if count == 1 { "" } else { "s" };
        let (ws, ss) = (s(*workers), s(*slots));
        write!(f, "{:.1} s: level {level} ({workers} worker{ws}, {slots} slot{ss}): {reason}", at.as_secs_f64())
    }
}

/// What a governor sees at one look.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    /// Since the loader was built.
    pub(crate) at: Duration,
    pub(crate) memory: MemoryNow,
    /// Share of the time since the last look that the consumer waited.
    pub(crate) waiting_share: f64,
    /// Share of the time since the last look that tasks were stalled for want of memory.
    pub(crate) stalled_share: f64,
}

/// Asks the machine; a test puts something else in its place.
pub(crate) type Probe = Box<dyn FnMut() -> MemoryNow + Send>;

/// The part of an engine that governs its size.
pub(crate) struct Governor {
    level: AtomicU32,
    /// Workers below this number are at work, the others wait.
    workers_on: AtomicUsize,
    state: Mutex<State>,
}

struct State {
    probe: Probe,
    built: Instant,
    looked: Instant,
    waited: Duration,
    /// Since when memory has been plenty.
    calm_since: Duration,
    moves: VecDeque<Move>,
    moves_made: u64,
}

impl Governor {
    pub(crate) fn new(plan: &Plan, probe: Option<Probe>) -> Self {
        let probe = probe.unwrap_or_else(|| {
            let mut watch = MemoryWatch::new();
            Box::new(move || watch.look())
        });
        let now = Instant::now();
        let state = State {
            probe,
            built: now,
            looked: now,
            waited: Duration::ZERO,
            calm_since: Duration::ZERO,
            moves: VecDeque::new(),
            moves_made: 0,
        };
        Governor { level: AtomicU32::new(0), workers_on: AtomicUsize::new(plan.workers), state: Mutex::new(state) }
    }

    /// Whether this worker is to be at work.
    pub(super) fn is_on(&self, worker: usize) -> bool {
        worker < self.workers_on.load(Ordering::SeqCst)
    }

    /// How many moves there were, and the latest of them, oldest first.
    pub(crate) fn moves(&self) -> (u64, Vec<Move>) {
        let state = lock(&self.state);
        (state.moves_made, state.moves.iter().cloned().collect())
    }

    /// The level: 0 is the plan.
    pub(crate) fn level(&self) -> u32 {
        self.level.load(Ordering::SeqCst)
    }
}

/// Looks until the run is over.
pub(super) fn run(run: &Epoch) {
    let engine = &run.engine;
    while !run.cancel.is_cancelled() {
        tick(engine);
        // Nothing ever comes through this channel: it is the time-out, or the end.
        if run.cancel.closed().recv_timeout(TICK) == Err(crossbeam_channel::RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

fn tick(engine: &Engine) {
    let governor = &engine.governor;
    let mut state = lock(&governor.state);
    let (now, since) = (Instant::now(), state.looked.elapsed());
    let memory = (state.probe)();
    let waited = engine.counters.consume.waited_in_so_far();
    let share = |part: Duration| part.as_secs_f64() / since.as_secs_f64().max(1e-3);
    let look = Look {
        at: now - state.built,
        waiting_share: share(waited.saturating_sub(state.waited)),
        stalled_share: share(memory.stalled),
        memory,
    };
    (state.looked, state.waited) = (now, waited);

    let level = governor.level.load(Ordering::SeqCst);
    let calm_since = state.calm_since;
    let decision = decide(&engine.plan, level, calm_since, &look);
    if decision.pressed || decision.level != level {
        state.calm_since = look.at;
    }
    let Decision { level: mut to, reason, .. } = decision;
    if engine.resize(to).is_err() && to < level {
        // There was no memory after all: stay, and try again after the next second of calm. What has woken goes back.
        to = level;
        state.calm_since = look.at;
        let _ = engine.resize(level);
    }
    if to != level {
        governor.level.store(to, Ordering::SeqCst);
        let Circulating { workers, slots, .. } = engine.plan.at_level(to);
        if state.moves.len() == MOVES_MAX {
            state.moves.pop_front();
        }
        state.moves.push_back(Move { at: look.at, level: to, workers, slots, reason });
        state.moves_made += 1;
    }
}

/// What one look leads to.
struct Decision {
    level: u32,
    /// Whether memory was short.
    pressed: bool,
    reason: String,
}

/// The rule. A function of what is seen and nothing else.
fn decide(plan: &Plan, level: u32, calm_since: Duration, look: &Look) -> Decision {
    let MemoryNow { limit, available, limited_by, .. } = &look.memory;
    let short = ByteCount(limit.0 / SHORT_PART).min(SHORT_MAX);
    let stalled = look.stalled_share > STALLED_SHARE && available.0 < limit.0 / STALLED_PART;
    let stay = |pressed| Decision { level, pressed, reason: String::new() };
    if *available < short || stalled {
        let last = plan.levels() - 1;
        let to = if available.0 < short.0 / 2 { last } else { (level + 1).min(last) };
        if to <= level {
            return stay(true);
        }
        let reason = if *available < short {
            format!("{available} left, {short} is short ({limited_by})")
        } else {
            let percent = look.stalled_share * 100.0;
            format!("tasks stalled for memory {percent:.0} % of the time, {available} left ({limited_by})")
        };
        return Decision { level: to, pressed: true, reason };
    }
    if level == 0 || look.at < calm_since + CALM || look.waiting_share < WAITING_SHARE {
        return stay(false);
    }
    let more = plan.level_bytes(level - 1).saturating_sub(plan.level_bytes(level));
    if *available < short * 2 + more {
        return stay(false);
    }
    let reason = format!(
        "{available} left ({limited_by}), and the consumer waited {:.0} % of the time",
        look.waiting_share.min(1.0) * 100.0
    );
    Decision { level: level - 1, pressed: false, reason }
}

impl Engine {
    /// What really circulates at this moment.
    pub(crate) fn circulating(&self) -> Circulating {
        Circulating {
            workers: self.scratches.circulating(),
            slots: self.slots.circulating(),
            outputs: self.outputs.circulating(),
            chunks: self.chunks.circulating(),
        }
    }

    /// Lets as much circulate as this level allows. What is in use comes to rest when it comes home.
    fn resize(&self, level: u32) -> Result<(), crate::device::DeviceError> {
        let Circulating { workers, slots, outputs, chunks } = self.plan.at_level(level);
        // A consumer may hold more than it said; that must not leave it without a batch to come.
        let in_hand = self.in_hand.load(Ordering::SeqCst);
        let beside = |least: usize, handed_over: bool| if handed_over { least.max(in_hand + 1) } else { least };
        if level > 0 {
            lock(&self.cache).take();
            self.governor.workers_on.store(workers, Ordering::SeqCst);
        }
        self.slots.circulate(beside(slots, self.hands_over_slots()))?;
        if self.recipe.device.counts_as_ram() {
            self.outputs.circulate(beside(outputs, true))?;
        }
        self.chunks.circulate(chunks)?;
        self.scratches.circulate(workers)?;
        self.governor.workers_on.store(workers, Ordering::SeqCst);
        if level == 0 {
            self.open_cache();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
