//! Control of the stand-in by tests: faults and speeds that they configure, reports that they read, and the register of
//! pinned memory. A program under test does not call it, since a real driver has none of it.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int};
use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::codes::{Code, ILLEGAL_ADDRESS, UNKNOWN};
use crate::device::{DEVICE_COUNT, DEVICES_MAX, DRIVER, Device, Rng, State, devices};
use crate::memory::{Allocation, Block};

const GIB: usize = 1 << 30;

/// Settings of one device.
pub struct Config {
    pub memory: usize,
    pub others: usize,
    pub seed: u64,
    /// Counted down by each allocation; the one that reaches zero fails.
    pub fail_alloc: Option<u64>,
    /// The same for pinned memory, and all later ones fail as well.
    pub fail_pin: Option<u64>,
    pub pin_limit: usize,
    pub lose_after: Option<u64>,
    pub lose_code: Code,
    pub sticky: Option<u64>,
    pub sticky_code: Code,
    pub copy_ns_per_kib: u64,
    pub wc_copy_ns_per_kib: Option<u64>,
    pub kernel_ns: u64,
    pub lazy_us: u64,
    /// Kernels that are not linked in do nothing, where they would be an error.
    pub blank_kernels: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            memory: GIB,
            others: 0,
            seed: 1,
            fail_alloc: None,
            fail_pin: None,
            pin_limit: usize::MAX,
            lose_after: None,
            lose_code: UNKNOWN,
            sticky: None,
            sticky_code: ILLEGAL_ADDRESS,
            copy_ns_per_kib: 0,
            wc_copy_ns_per_kib: None,
            kernel_ns: 0,
            lazy_us: 200,
            blank_kernels: false,
        }
    }
}

/// Sets what the text says, "key=value;key=value". `None` at the first thing that it does not know.
fn configure(state: &mut State, text: &str) -> Option<()> {
    for pair in text.split(';').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=')?;
        let (key, value): (&str, u64) = (key.trim(), value.trim().parse().ok()?);
        let config = &mut state.config;
        match key {
            "memory" => config.memory = value as usize,
            "others" => config.others = value as usize,
            "seed" => {
                config.seed = value;
                state.rng = Rng::new(value);
            }
            "fail_alloc" => config.fail_alloc = (value > 0).then_some(value),
            "fail_pin" => config.fail_pin = (value > 0).then_some(value),
            "pin_limit" => config.pin_limit = value as usize,
            "lose_after" if value == 0 => {
                let code = config.lose_code;
                state.lost = true;
                state.fail(code);
            }
            "lose_after" => config.lose_after = Some(value),
            "lose_code" => config.lose_code = value as Code,
            "sticky" => config.sticky = (value > 0).then_some(value),
            "sticky_code" => config.sticky_code = value as Code,
            "copy_ns_per_kib" => config.copy_ns_per_kib = value,
            "wc_copy_ns_per_kib" => config.wc_copy_ns_per_kib = Some(value),
            "kernel_ns" => config.kernel_ns = value,
            "lazy_us" => config.lazy_us = value,
            "blank_kernels" => config.blank_kernels = value > 0,
            "driver" => DRIVER.store(i32::try_from(value).ok()?, Ordering::SeqCst),
            "devices" => DEVICE_COUNT.store(value.min(DEVICES_MAX as u64) as i32, Ordering::SeqCst),
            _ => return None,
        }
    }
    Some(())
}

/// Sets every device to what `FEEDSTOCK_STANDIN` says.
pub fn apply_environment(devices: &[Device]) {
    let Ok(text) = std::env::var("FEEDSTOCK_STANDIN") else { return };
    for device in devices {
        assert!(configure(&mut device.lock(), &text).is_some(), "FEEDSTOCK_STANDIN: {text}");
    }
}

/// Sets faults and speeds of a device (-1: of all): "key=value;key=value". 0, or 1 for what it does not know.
///
/// # Safety
/// `text` must be a terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn standin_configure(ordinal: c_int, text: *const c_char) -> c_int {
    // SAFETY: the caller vouches for it.
    let Ok(text) = (unsafe { CStr::from_ptr(text) }).to_str() else { return 1 };
    let range = if ordinal == -1 { 0..DEVICES_MAX } else { ordinal as usize..ordinal as usize + 1 };
    let Some(devices) = devices().get(range) else { return 1 };
    for device in devices {
        let known = configure(&mut device.lock(), text);
        device.progress.notify_all();
        device.work.notify_all();
        if known.is_none() {
            return 1;
        }
    }
    0
}

/// Writes the report of a device, terminated and cut to `cap` bytes. Returns the bytes that all of it takes, without
/// the terminator; 0 for no such device.
///
/// # Safety
/// `out` must be null or have room for `cap` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn standin_report(ordinal: c_int, out: *mut c_char, cap: usize) -> usize {
    let Some(device) = usize::try_from(ordinal).ok().and_then(|ordinal| devices().get(ordinal)) else { return 0 };
    let text = report(&device.lock());
    if !out.is_null() && cap > 0 {
        let len = text.len().min(cap - 1);
        // SAFETY: `len` bytes and a terminator fit, as the caller vouches.
        unsafe { out.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), len) };
        // SAFETY: as above.
        let end = unsafe { out.add(len) };
        // SAFETY: as above.
        unsafe { end.write(0) };
    }
    text.len()
}

fn report(state: &State) -> String {
    let counts = &state.counts;
    let wc = state.pinned.alive().filter(|pinned| pinned.flags & 4 != 0).count();
    let lines = [
        ("device_bytes", state.memory.bytes as u64),
        ("device_allocs", state.memory.alive().count() as u64),
        ("device_allocs_ever", state.memory.ever),
        ("device_bytes_peak", state.memory.bytes_peak as u64),
        ("pinned_bytes", state.pinned.bytes as u64),
        ("pinned_bytes_peak", state.pinned.bytes_peak as u64),
        ("pinned_allocs", state.pinned.alive().count() as u64),
        ("pinned_allocs_ever", state.pinned.ever),
        ("pinned_wc_allocs", wc as u64),
        ("streams", state.stream_handles.len() as u64),
        ("events", state.events.len() as u64),
        ("contexts", state.retained),
        ("modules", state.modules.len() as u64),
        ("launches", counts.launches),
        ("copies_h2d", counts.copies_h2d),
        ("bytes_h2d", counts.bytes_h2d),
        ("pageable_copies_blocking", counts.pageable_copies_blocking),
        ("host_syncs", counts.host_syncs),
        ("violations", state.violation_count),
    ];
    let mut text = String::new();
    for (key, value) in lines {
        let _ = writeln!(text, "{key}={value}");
    }
    for words in &state.violations {
        let _ = writeln!(text, "violation={words}");
    }
    text
}

/// Writes the reports of all devices when the process exits, if they were asked for.
pub fn report_at_exit() {
    unsafe extern "C" {
        fn atexit(handler: extern "C" fn()) -> c_int;
    }
    // SAFETY: the handler is a function of this library, which stays loaded.
    let _ = unsafe { atexit(at_exit) };
}

extern "C" fn at_exit() {
    let mut text = String::new();
    for device in devices() {
        // A thread of the program may hold the lock for good by now.
        let Some(mut state) = (0..100).find_map(|_| {
            let state = device.try_lock();
            if state.is_none() {
                thread::sleep(Duration::from_millis(1));
            }
            state
        }) else {
            continue;
        };
        state.quit = true;
        if state.used {
            let damaged: Vec<String> = state
                .memory
                .alive()
                .chain(state.pinned.alive())
                .filter(|left| !left.block.guard_is_intact())
                .map(|left| {
                    format!("something wrote beyond the end of allocation {} ({} bytes)", left.number, left.len)
                })
                .collect();
            damaged.into_iter().for_each(|words| state.violate(words));
            let _ = writeln!(text, "device={}\n{}{}", device.ordinal, report(&state), still_alive(&state));
        }
    }
    if let Some(path) = std::env::var_os("FEEDSTOCK_STANDIN_REPORT") {
        let _ = std::fs::write(path, text);
    }
}

fn still_alive(state: &State) -> String {
    let mut text = String::new();
    for left in state.memory.alive() {
        let _ = writeln!(text, "alive=allocation {} of {} bytes", left.number, left.len);
    }
    for left in state.pinned.alive() {
        let _ = writeln!(text, "alive=pinned allocation {} of {} bytes", left.number, left.len);
    }
    let mut rest = [
        ("stream", state.stream_handles.len()),
        ("event", state.events.len()),
        ("module", state.modules.len()),
        ("context", state.retained as usize),
    ];
    for (kind, count) in rest.iter_mut().filter(|(_, count)| *count > 0) {
        let _ = writeln!(text, "alive={count} {kind}(s)");
    }
    text
}

/// A range of pinned memory, of whatever device.
#[derive(Clone)]
pub struct Pinned {
    pub ordinal: usize,
    pub base: usize,
    pub len: usize,
    pub flags: u32,
    pub block: Arc<Block>,
}

/// All pinned memory of the process: a copy on one device may be from memory that was pinned in the context of another.
static PINNED: Mutex<BTreeMap<usize, Pinned>> = Mutex::new(BTreeMap::new());

fn pinned() -> MutexGuard<'static, BTreeMap<usize, Pinned>> {
    PINNED.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn note_pinned(range: Pinned) {
    pinned().insert(range.base, range);
}

pub fn forget_pinned(gone: &[Allocation]) {
    let mut pinned = pinned();
    for allocation in gone {
        pinned.remove(&allocation.base);
    }
}

/// The pinned memory that an address is in.
pub fn pinned_at(address: usize) -> Option<Pinned> {
    let pinned = pinned();
    pinned
        .range(..=address)
        .next_back()
        .map(|(_, found)| found.clone())
        .filter(|found| address < found.base + found.len)
}
