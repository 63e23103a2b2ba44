//! State of the devices, each by itself: contexts, handles, memory, clocks, faults and counts. The executor runs
//! operations.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::clock::Clock;
use crate::codes::{
    CONTEXT_IS_DESTROYED, Code, INVALID_CONTEXT, INVALID_HANDLE, INVALID_VALUE, NOT_INITIALIZED, SUCCESS,
};
use crate::control::{self, Config};
use crate::executor::{self, checksum};
use crate::memory::{Allocation, Block, Memory, Stamp, Touch};
use crate::op::{Event, Op, Record, Stream, Task, Watch};
use crate::ptx::Entry;

pub const DEVICES_MAX: usize = 64;
/// Violations that are kept in words; all are counted.
const VIOLATIONS_KEPT: usize = 64;
/// The stream that a null handle means.
pub const DEFAULT_STREAM: usize = 0;

pub static INITIALIZED: AtomicBool = AtomicBool::new(false);
pub static DRIVER: AtomicI32 = AtomicI32::new(13000);
pub static DEVICE_COUNT: AtomicI32 = AtomicI32::new(DEVICES_MAX as i32);
static DEVICES: LazyLock<Vec<Device>> = LazyLock::new(|| {
    let devices: Vec<Device> = (0..DEVICES_MAX).map(Device::new).collect();
    control::apply_environment(&devices);
    devices
});
/// Handles are never used again, so that a stale one is always known for one.
static HANDLES: AtomicU64 = AtomicU64::new(1);

thread_local! {
    /// The handle of the context that is current on this thread; 0 for none.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

pub type Guard = MutexGuard<'static, State>;

pub struct Device {
    pub ordinal: usize,
    state: Mutex<State>,
    /// Something may have become runnable.
    pub work: Condvar,
    /// Some operation is over, or the device has failed.
    pub progress: Condvar,
}

pub struct State {
    pub ordinal: usize,
    /// True if its context was ever retained, so that there is a report at exit.
    pub used: bool,
    pub config: Config,
    pub rng: Rng,
    /// Result of every call from now on.
    pub error: Option<Code>,
    /// True if the error outlives the context: the device is lost.
    pub lost: bool,
    pub retained: u64,
    generation: u64,
    pub streams: Vec<Stream>,
    pub stream_handles: HashMap<usize, usize>,
    pub events: HashMap<usize, Event>,
    pub modules: HashMap<usize, Vec<Entry>>,
    pub functions: HashMap<usize, (usize, Entry)>,
    /// The shared memory that a function may be given, where it was asked for more than any has.
    pub shared_max: HashMap<usize, u32>,
    pub memory: Memory,
    pub pinned: Memory,
    /// Operations that the host knows to be over.
    pub host: Clock,
    pub watches: Vec<Watch>,
    pub violations: Vec<String>,
    pub violation_count: u64,
    pub counts: Counts,
    pub executor_runs: bool,
    /// The executor is at work on bytes right now, without the lock.
    pub executing: bool,
    /// Threads that block until an operation is over, and the time of the last query: both make the executor less lazy.
    pub waiters: usize,
    pub polled: Option<Instant>,
    pub quit: bool,
    /// Memory that was alive when its context was released: kept forever, because the program may still access it.
    orphans: Vec<Allocation>,
}

#[derive(Default)]
pub struct Counts {
    pub launches: u64,
    pub copies_h2d: u64,
    pub bytes_h2d: u64,
    pub pageable_copies_blocking: u64,
    pub host_syncs: u64,
}

/// xorshift64*: what the executor chooses by.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit.max(1)
    }
}

pub fn devices() -> &'static [Device] {
    &DEVICES
}

/// The device of an ordinal, if a program can see one.
pub fn device(ordinal: i32) -> Option<&'static Device> {
    let seen = usize::try_from(DEVICE_COUNT.load(Ordering::SeqCst)).unwrap_or(0);
    usize::try_from(ordinal).ok().filter(|ordinal| *ordinal < seen).and_then(|ordinal| DEVICES.get(ordinal))
}

pub fn new_handle() -> usize {
    // Looks like no address of the host, so that a handle in the place of a pointer is found out.
    0x5AFE_0000_0000_0000 | (HANDLES.fetch_add(1, Ordering::SeqCst) as usize) << 4
}

/// A call of the API that needs a context: runs the body on the device whose context is current.
pub fn call(body: impl FnOnce(&'static Device, Guard) -> Result<(), Code>) -> Code {
    let checked = enter().and_then(|(device, state)| match state.error {
        Some(code) => Err(code),
        None => body(device, state),
    });
    checked.err().unwrap_or(SUCCESS)
}

/// The same for a call that gives something back. On a failed device it reports the failure, but does its work: a
/// program that gives back everything after a failure must not look like one that leaks.
pub fn call_to_release(body: impl FnOnce(&'static Device, Guard) -> Result<(), Code>) -> Code {
    let checked = enter().and_then(|(device, state)| {
        let error = state.error;
        let result = body(device, state);
        error.map_or(result, Err)
    });
    checked.err().unwrap_or(SUCCESS)
}

fn enter() -> Result<(&'static Device, Guard), Code> {
    if !INITIALIZED.load(Ordering::SeqCst) {
        return Err(NOT_INITIALIZED);
    }
    let device = of_context(CURRENT.get()).ok_or(INVALID_CONTEXT)?;
    let state = device.lock();
    if state.context() != Some(CURRENT.get()) {
        return Err(CONTEXT_IS_DESTROYED);
    }
    Ok((device, state))
}

/// The handle of the context that is current on this thread.
pub fn current() -> usize {
    CURRENT.get()
}

pub fn set_current(context: usize) -> Code {
    if context == 0 {
        CURRENT.set(0);
        return SUCCESS;
    }
    let Some(device) = of_context(context) else { return INVALID_CONTEXT };
    let mut state = device.lock();
    if state.context() != Some(context) {
        state.violate(format!("cuCtxSetCurrent: context {context:#x} has been released"));
        return INVALID_CONTEXT;
    }
    CURRENT.set(context);
    SUCCESS
}

/// The device that a handle of a context belongs to, whether or not that context is still there.
pub fn of_context(context: usize) -> Option<&'static Device> {
    if context >> 32 != 0xC0DE { None } else { DEVICES.get(context & 0xFFFF) }
}

impl Device {
    fn new(ordinal: usize) -> Self {
        let config = Config { seed: ordinal as u64 + 1, ..Config::default() };
        let state = Mutex::new(State {
            ordinal,
            used: false,
            rng: Rng::new(config.seed),
            config,
            error: None,
            lost: false,
            retained: 0,
            generation: 0,
            streams: vec![Stream { blocking: true, ..Stream::default() }],
            stream_handles: HashMap::new(),
            events: HashMap::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            shared_max: HashMap::new(),
            memory: Memory::device(),
            pinned: Memory::pinned(),
            host: Clock::new(),
            watches: Vec::new(),
            violations: Vec::new(),
            violation_count: 0,
            counts: Counts::default(),
            executor_runs: false,
            executing: false,
            waiters: 0,
            polled: None,
            quit: false,
            orphans: Vec::new(),
        });
        Device { ordinal, state, work: Condvar::new(), progress: Condvar::new() }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn try_lock(&self) -> Option<MutexGuard<'_, State>> {
        self.state.try_lock().ok()
    }

    /// Lets the executor know of new work.
    pub fn kick(&'static self, state: &mut State) {
        if !state.executor_runs {
            state.executor_runs = true;
            let name = format!("standin-{}", self.ordinal);
            // It is not joined: it ends with the process.
            std::thread::Builder::new().name(name).spawn(move || executor::run(self)).expect("a thread for the device");
        }
        self.work.notify_one();
    }

    /// Blocks until this operation of a stream is over.
    pub fn wait<'d>(
        &'d self,
        mut state: MutexGuard<'d, State>,
        stream: usize,
        number: u64,
    ) -> (MutexGuard<'d, State>, Result<(), Code>) {
        state.counts.host_syncs += 1;
        state.waiters += 1;
        self.work.notify_one();
        loop {
            // After a failure the executor may still be at work on bytes of the caller, who may free them on return.
            let over = state.streams[stream].done >= number || state.error.is_some() && !state.executing;
            if over {
                break;
            }
            state = self.progress.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiters -= 1;
        let result = state.error.map_or(Ok(()), Err);
        (state, result)
    }
}

impl State {
    /// The handle of the primary context, while it is retained.
    pub fn context(&self) -> Option<usize> {
        (self.retained > 0).then_some(0xC0DE << 32 | (self.generation as usize & 0xFFFF) << 16 | self.ordinal)
    }

    pub fn retain(&mut self) -> usize {
        if self.retained == 0 {
            self.generation += 1;
        }
        self.used = true;
        self.retained += 1;
        self.context().expect("retained just now")
    }

    /// Gives back one retain; the last one ends the context and all that is in it.
    pub fn release(&mut self) -> Result<(), Code> {
        if self.retained == 0 {
            self.violate("cuDevicePrimaryCtxRelease: it is not retained".to_owned());
            return Err(INVALID_CONTEXT);
        }
        self.retained -= 1;
        if self.retained > 0 {
            return Ok(());
        }
        let failed = self.error.is_some();
        if !self.lost {
            self.error = None;
        }
        let alive = [
            (self.memory.alive().count(), "device allocations"),
            (self.pinned.alive().count(), "pinned allocations"),
            (self.stream_handles.len(), "streams"),
            (self.events.len(), "events"),
            (self.modules.len(), "modules"),
        ];
        let left: Vec<String> =
            alive.iter().filter(|(count, _)| *count > 0).map(|(count, of)| format!("{count} {of}")).collect();
        if !left.is_empty() && !failed {
            self.violate(format!("the context was released while these were alive in it: {}", left.join(", ")));
        }
        for stream in &mut self.streams {
            stream.queue.clear();
            stream.begun = None;
            stream.done = stream.issued;
        }
        self.watches.clear();
        self.stream_handles.clear();
        self.events.clear();
        self.modules.clear();
        self.functions.clear();
        self.shared_max.clear();
        let gone = self.memory.remove_all();
        self.orphans.extend(gone);
        let gone = self.pinned.remove_all();
        control::forget_pinned(&gone);
        self.orphans.extend(gone);
        Ok(())
    }

    pub fn violate(&mut self, words: String) {
        self.violation_count += 1;
        if self.violations.len() < VIOLATIONS_KEPT {
            self.violations.push(words);
        }
    }

    /// Fails the device for good. Everything pending is dropped.
    pub fn fail(&mut self, code: Code) {
        if self.error.is_some() {
            return;
        }
        self.error = Some(code);
        self.watches.clear();
        for stream in &mut self.streams {
            stream.queue.clear();
            stream.begun = None;
        }
    }

    /// The number of the stream that a handle means.
    pub fn stream(&mut self, handle: usize, call: &str) -> Result<usize, Code> {
        // 1 is CU_STREAM_LEGACY.
        if handle <= 1 {
            return Ok(DEFAULT_STREAM);
        }
        let found = self.stream_handles.get(&handle).copied();
        found.ok_or_else(|| self.bad_handle(call, "stream", handle))
    }

    pub fn event(&mut self, handle: usize, call: &str) -> Result<&mut Event, Code> {
        if !self.events.contains_key(&handle) {
            return Err(self.bad_handle(call, "event", handle));
        }
        self.events.get_mut(&handle).ok_or(INVALID_HANDLE)
    }

    pub fn bad_handle(&mut self, call: &str, kind: &str, handle: usize) -> Code {
        self.violate(format!("{call}: {handle:#x} is not a live {kind} of this context"));
        INVALID_HANDLE
    }

    /// Finds out which block holds a range, for an operation that is about to be enqueued.
    pub fn hold(&mut self, pinned: bool, address: usize, len: usize, call: &str) -> Result<(u64, Arc<Block>), Code> {
        let memory = if pinned { &self.pinned } else { &self.memory };
        match memory.hold(address, len) {
            Ok(found) => Ok((found.number, Arc::clone(&found.block))),
            Err(words) => {
                self.violate(format!("{call}: {words}"));
                Err(INVALID_VALUE)
            }
        }
    }

    /// Puts an operation at the end of a stream and judges what it touches. Returns its number on the stream.
    pub fn enqueue(
        &mut self,
        stream: usize,
        what: Arc<str>,
        task: Task,
        blocks: Vec<Arc<Block>>,
        touches: &[(bool, Touch)],
    ) -> u64 {
        self.order_with_default_stream(stream);
        let number = self.push(stream, Arc::clone(&what), task, blocks);
        let stamp = Stamp { stream, number, what };
        for &(pinned, touch) in touches {
            let memory = if pinned { &mut self.pinned } else { &mut self.memory };
            for words in memory.touch(touch, &stamp, &self.streams[stream].clock, &self.host) {
                self.violate(words);
            }
        }
        number
    }

    /// Has a stream wait for an operation of another (or of its own, which changes nothing).
    pub fn order_after(&mut self, stream: usize, other: usize, number: u64, clock: &Clock) {
        self.streams[stream].clock.join(clock);
        self.push(stream, "wait".into(), Task::Wait { stream: other, number }, Vec::new());
    }

    fn push(&mut self, stream: usize, what: Arc<str>, task: Task, blocks: Vec<Arc<Block>>) -> u64 {
        let queue = &mut self.streams[stream];
        queue.issued += 1;
        queue.clock.join(&self.host);
        queue.clock.raise(stream, queue.issued);
        let number = queue.issued;
        queue.queue.push_back(Op { number, what, task, blocks });
        number
    }

    /// The default stream runs after what was enqueued before on every blocking stream, and before what is enqueued on
    /// them later.
    fn order_with_default_stream(&mut self, stream: usize) {
        if !self.streams[stream].blocking {
            return;
        }
        let others: Vec<usize> = match stream {
            DEFAULT_STREAM => (1..self.streams.len()).filter(|&other| self.streams[other].blocking).collect(),
            _ => vec![DEFAULT_STREAM],
        };
        for other in others {
            let issued = self.streams[other].issued;
            if self.streams[stream].clock.get(other) < issued {
                let clock = self.streams[other].clock.clone();
                self.order_after(stream, other, issued, &clock);
            }
        }
    }

    pub fn all_is_over(&self) -> bool {
        self.streams.iter().all(|stream| stream.done >= stream.issued)
    }

    pub fn stream_is_over(&self, stream: usize) -> bool {
        self.streams[stream].done >= self.streams[stream].issued
    }

    /// The host knows from now on that everything in this clock is over.
    pub fn learn(&mut self, clock: &Clock) {
        self.host.join(clock);
        let (over, rest) = std::mem::take(&mut self.watches)
            .into_iter()
            .partition(|watch: &Watch| watch.number <= self.host.get(watch.stream));
        self.watches = rest;
        for watch in over {
            if !watch.block.is_buried() && checksum(watch.start, watch.len) != watch.checksum {
                let Watch { stream, what, .. } = watch;
                self.violate(format!(
                    "the source of the {what} on stream {stream} was written before it was known over"
                ));
            }
        }
    }

    pub fn is_over(&self, record: &Record) -> bool {
        self.streams[record.stream].done >= record.number
    }
}
