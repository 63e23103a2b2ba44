//! The thread that acts as the device: it runs the operations of the streams, late and in an arbitrary order. It runs
//! no operation whose waits are not over, and leaves none that could run for more than a few milliseconds.
//!
//! Copies and fills take two turns: at the first the destination is poisoned, at the second the source is read and the
//! bytes are written. Other streams have their turns in between.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::PoisonError;
use std::sync::atomic::{Ordering, fence};
use std::thread;
use std::time::{Duration, Instant};

use crate::codes::{ILLEGAL_ADDRESS, INVALID_DEVICE_FUNCTION};
use crate::device::{Device, Guard, State};
use crate::op::{Copy, Direction, Launch, Op, Task};

const POISON: u8 = 0xA5;
/// No operation that could run is left waiting for longer out of malice.
const STARVE_MAX: Duration = Duration::from_millis(2);
/// Time after a query in which the caller counts as waiting.
const POLL_RECENT: Duration = Duration::from_millis(1);

unsafe extern "C" {
    /// The kernels, compiled for the host and linked in. 0: it ran. 1: there is none of that name.
    fn standin_launch(
        name: *const c_char,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared_bytes: c_uint,
        params: *mut *mut c_void,
    ) -> c_int;
}

/// The engine of the device that an operation occupies while it is under way; one at a time on each.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Engine {
    None,
    CopyIn,
    CopyOut,
    Compute,
}

/// Runs the device for as long as the process lives.
pub fn run(device: &'static Device) {
    let mut malice = Malice::default();
    let mut state = device.lock();
    loop {
        state = turn(device, state, &mut malice);
    }
}

/// Delays that the executor adds.
#[derive(Default)]
struct Malice {
    paused: bool,
    starved: Option<(usize, Instant)>,
}

fn turn(device: &'static Device, mut state: Guard, malice: &mut Malice) -> Guard {
    if state.quit {
        return sleep(device, state, None);
    }
    if pass_waits(&mut state) {
        device.progress.notify_all();
    }
    let now = Instant::now();
    let (ready, next_end) = ready_streams(&mut state, now);
    let Some(&oldest) = ready.iter().min_by_key(|&&stream| state.streams[stream].ready_since) else {
        return sleep(device, state, next_end);
    };
    let lazy_us = state.config.lazy_us;
    let overdue = state.streams[oldest].ready_since.is_some_and(|since| now - since > STARVE_MAX);
    let chosen = if overdue || lazy_us == 0 {
        match overdue {
            true => oldest,
            false => ready[state.rng.below(ready.len() as u64) as usize],
        }
    } else {
        if !malice.paused && state.rng.below(4) == 0 {
            malice.paused = true;
            let pause = Duration::from_micros(state.rng.below(lazy_us + 1));
            drop(state);
            thread::sleep(pause);
            return device.lock();
        }
        match malice.choose(&mut state, &ready, now) {
            Ok(chosen) => chosen,
            Err(until) => return sleep(device, state, Some(next_end.map_or(until, |end| end.min(until)))),
        }
    };
    malice.paused = false;
    state.streams[chosen].ready_since = None;
    advance(device, state, chosen)
}

impl Malice {
    /// One of the streams that could go on, unless the only one is being starved: then until when.
    fn choose(&mut self, state: &mut State, ready: &[usize], now: Instant) -> Result<usize, Instant> {
        if self.starved.is_none_or(|(_, until)| until <= now) {
            self.starved = None;
            if state.rng.below(8) == 0 {
                let stream = ready[state.rng.below(ready.len() as u64) as usize];
                let limit = STARVE_MAX.as_micros().min(u128::from(state.config.lazy_us) * 8) as u64;
                self.starved = Some((stream, now + Duration::from_micros(state.rng.below(limit + 1))));
            }
        }
        let Some((starved, until)) = self.starved else {
            return Ok(ready[state.rng.below(ready.len() as u64) as usize]);
        };
        let others: Vec<usize> = ready.iter().copied().filter(|&stream| stream != starved).collect();
        if !others.is_empty() {
            return Ok(others[state.rng.below(others.len() as u64) as usize]);
        }
        let asked = state.waiters > 0 || state.polled.is_some_and(|at| now - at < POLL_RECENT);
        if asked {
            self.starved = None;
            return Ok(starved);
        }
        Err(until)
    }
}

fn sleep(device: &'static Device, state: Guard, until: Option<Instant>) -> Guard {
    match until {
        None => device.work.wait(state).unwrap_or_else(PoisonError::into_inner),
        Some(until) => {
            let left = until.saturating_duration_since(Instant::now());
            device.work.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
        }
    }
}

/// Takes the waits that are over off the heads of the streams. They take no time, and none can be told to have run.
fn pass_waits(state: &mut State) -> bool {
    let mut any = false;
    loop {
        let mut moved = false;
        for at in 0..state.streams.len() {
            while let Some(&Op { number, task: Task::Wait { stream, number: of }, .. }) =
                state.streams[at].queue.front()
            {
                if state.streams[stream].done < of {
                    break;
                }
                state.streams[at].queue.pop_front();
                state.streams[at].done = number;
                moved = true;
            }
        }
        if !moved {
            return any;
        }
        any = true;
    }
}

/// The streams that could go on now, and when the next operation under way may end.
fn ready_streams(state: &mut State, now: Instant) -> (Vec<usize>, Option<Instant>) {
    let busy: Vec<Engine> = state.streams.iter().filter_map(|s| s.begun.as_ref().map(|(op, _)| engine(op))).collect();
    let (mut ready, mut next_end) = (Vec::new(), None::<Instant>);
    for (number, stream) in state.streams.iter_mut().enumerate() {
        let can_go_on = match (&stream.begun, stream.queue.front()) {
            (Some((_, end)), _) if *end > now => {
                next_end = Some(next_end.map_or(*end, |next| next.min(*end)));
                false
            }
            (Some(_), _) => true,
            (None, Some(Op { task: Task::Wait { .. }, .. }) | None) => false,
            (None, Some(op)) => engine(op) == Engine::None || !busy.contains(&engine(op)),
        };
        if can_go_on {
            stream.ready_since.get_or_insert(now);
            ready.push(number);
        } else {
            stream.ready_since = None;
        }
    }
    (ready, next_end)
}

fn engine(op: &Op) -> Engine {
    match &op.task {
        Task::Wait { .. } | Task::Record { .. } => Engine::None,
        Task::Copy(Copy { direction: Direction::HostToDevice, .. }) => Engine::CopyIn,
        Task::Copy(Copy { direction: Direction::DeviceToHost, .. }) => Engine::CopyOut,
        Task::Copy(_) | Task::Fill { .. } | Task::Launch(_) => Engine::Compute,
    }
}

/// Begins the operation at the head of a stream, or ends the one that has begun.
fn advance(device: &'static Device, mut state: Guard, stream: usize) -> Guard {
    let Some((op, _)) = state.streams[stream].begun.take() else {
        let Some(op) = state.streams[stream].queue.pop_front() else { return state };
        if let Task::Record { time } = &op.task {
            let _ = time.set(Instant::now());
            end(device, &mut state, stream, op.number);
            return state;
        }
        let takes = duration(&state, &op);
        let mut state = without_lock(device, state, || poison(&op));
        if state.error.is_none() {
            state.streams[stream].begun = Some((op, Instant::now() + takes));
        }
        return state;
    };
    if let Task::Launch(launch) = &op.task {
        if state.config.sticky.as_mut().is_some_and(reaches_zero) {
            let code = state.config.sticky_code;
            state.fail(code);
        } else if launch.wild {
            state.fail(ILLEGAL_ADDRESS);
        }
        if state.error.is_some() {
            device.progress.notify_all();
            return state;
        }
    }
    let mut outcome = Outcome::Done;
    let mut state = without_lock(device, state, || outcome = execute(&op));
    match outcome {
        Outcome::Done => {}
        Outcome::SourceChanged if op.blocks.iter().any(|block| block.is_buried()) => {}
        Outcome::SourceChanged => {
            // Once is enough.
            state.watches.retain(|watch| (watch.stream, watch.number) != (stream, op.number));
            let words = format!("the source of the {} on stream {stream} was written while it was under way", op.what);
            state.violate(words);
        }
        Outcome::NoSuchKernel if state.config.blank_kernels => {}
        Outcome::NoSuchKernel => state.fail(INVALID_DEVICE_FUNCTION),
    }
    if op.blocks.iter().any(|block| !block.guard_is_intact()) {
        let words =
            format!("the {} on stream {stream} or one before it wrote beyond the end of an allocation", op.what);
        state.violate(words);
        // As above.
        op.blocks.iter().for_each(|block| block.mend_guard());
    }
    end(device, &mut state, stream, op.number);
    state
}

/// Notes that an operation is over, and loses the device if it was the last one before that.
fn end(device: &'static Device, state: &mut State, stream: usize, number: u64) {
    if state.error.is_none() {
        state.streams[stream].done = state.streams[stream].done.max(number);
        if state.config.lose_after.as_mut().is_some_and(reaches_zero) {
            state.lost = true;
            let code = state.config.lose_code;
            state.fail(code);
        }
    }
    device.progress.notify_all();
}

/// Counts down; true at the step to zero.
fn reaches_zero(left: &mut u64) -> bool {
    let was = *left;
    *left = was.saturating_sub(1);
    was == 1
}

fn without_lock(device: &'static Device, mut state: Guard, body: impl FnOnce()) -> Guard {
    state.executing = true;
    drop(state);
    body();
    let mut state = device.lock();
    state.executing = false;
    if state.error.is_some() {
        // Threads that wait after a failure wait for this.
        device.progress.notify_all();
    }
    state
}

fn duration(state: &State, op: &Op) -> Duration {
    let config = &state.config;
    let ns = match &op.task {
        Task::Copy(copy) => {
            let per_kib = if copy.write_combined { config.wc_copy_ns_per_kib } else { None };
            per_kib.unwrap_or(config.copy_ns_per_kib).saturating_mul(copy.len as u64) / 1024
        }
        Task::Launch(_) => config.kernel_ns,
        Task::Fill { .. } | Task::Wait { .. } | Task::Record { .. } => 0,
    };
    Duration::from_nanos(ns)
}

enum Outcome {
    Done,
    SourceChanged,
    NoSuchKernel,
}

/// Makes the destination of a copy look like nothing anyone could want, so that reading it too early shows.
fn poison(op: &Op) {
    match &op.task {
        Task::Copy(Copy { to, len, .. }) | Task::Fill { to, len, .. } => fill(*to, POISON, *len),
        Task::Wait { .. } | Task::Record { .. } | Task::Launch(_) => {}
    }
}

fn fill(to: usize, byte: u8, len: usize) {
    // SAFETY: the range was checked when the operation was enqueued, and the operation keeps its blocks alive; memory
    // of the program's own is that of a call which blocks until this operation is over.
    unsafe { (to as *mut u8).write_bytes(byte, len) };
}

fn execute(op: &Op) -> Outcome {
    match &op.task {
        Task::Wait { .. } | Task::Record { .. } => {}
        Task::Fill { to, byte, len } => fill(*to, *byte, *len),
        Task::Copy(copy) => {
            let from = copy.snapshot.as_ref().map_or(copy.from, |bytes| bytes.as_ptr() as usize);
            // SAFETY: both ranges were checked when the copy was enqueued, and the operation keeps their blocks alive;
            // memory of the program's own is that of a call which blocks until the copy is over.
            unsafe { (copy.to as *mut u8).copy_from(from as *const u8, copy.len) };
            // The bytes read are the bytes written: no other operation runs between the two.
            if copy.checksum.is_some_and(|was| was != checksum(copy.to, copy.len)) {
                return Outcome::SourceChanged;
            }
        }
        Task::Launch(launch) => return run_kernel(launch),
    }
    Outcome::Done
}

fn run_kernel(launch: &Launch) -> Outcome {
    let [gx, gy, gz] = launch.grid;
    let [bx, by, bz] = launch.block;
    let mut values = launch.params.clone();
    let mut params: Vec<*mut c_void> = values.iter_mut().map(|value| value.as_mut_ptr().cast()).collect();
    fence(Ordering::SeqCst);
    // SAFETY: the name is terminated and there are as many parameters, of those sizes, as the PTX of this kernel has.
    // Where their addresses lead is kept alive by the operation.
    let rc =
        unsafe { standin_launch(launch.name.as_ptr(), gx, gy, gz, bx, by, bz, launch.shared, params.as_mut_ptr()) };
    if rc == 0 { Outcome::Done } else { Outcome::NoSuchKernel }
}

/// FNV-1a over words in place of bytes, which is as sure to see a change and eight times as fast.
pub fn checksum(start: usize, len: usize) -> u64 {
    const PRIME: u64 = 0x0000_0100_0000_01B3;
    let mut hash = 0xCBF2_9CE4_8422_2325_u64;
    let words = start as *const u64;
    for at in 0..len / 8 {
        // SAFETY: within the range, which the caller vouches for. Not a slice: under test is who may write it
        // meanwhile.
        let word = unsafe { words.add(at) };
        // SAFETY: as above.
        hash = (hash ^ unsafe { word.read_unaligned() }).wrapping_mul(PRIME);
    }
    for at in len / 8 * 8..len {
        // SAFETY: as above.
        let byte = unsafe { (start as *const u8).add(at) };
        // SAFETY: as above.
        hash = (hash ^ u64::from(unsafe { byte.read() })).wrapping_mul(PRIME);
    }
    hash
}
