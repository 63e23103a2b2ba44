//! A stand-in for NVIDIA's driver library, for tests on machines without a GPU: the calls about the driver itself, the
//! devices and their contexts. The other calls are in the files next to this one. It never ships, and is never more
//! forgiving than the real driver.
//!
//! The exported functions have the ABI of cuda.h (CUDA 13). Handles are plain numbers here, as wide as the pointers
//! that cuda.h has for them. Where cuda.h has a pointer to a place for a result, there is an `Option` of a reference,
//! which is the same to C.

#![allow(non_snake_case, reason = "the names are those of cuda.h")]

mod clock;
mod codes;
mod control;
mod device;
mod executor;
mod memory;
mod memory_calls;
mod module_calls;
mod op;
mod ptx;
mod stream_calls;

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use codes::{Code, INVALID_CONTEXT, INVALID_DEVICE, INVALID_VALUE, NO_DEVICE, NOT_INITIALIZED, SUCCESS};
use device::{DEVICE_COUNT, DRIVER, Device, INITIALIZED, device};

/// Pointer to a result; null in C is `None`.
pub type Out<'a, T> = Option<&'a mut MaybeUninit<T>>;

/// Puts a result where it belongs.
pub fn put<T>(out: Out<'_, T>, value: T) -> Code {
    match out {
        Some(out) => {
            out.write(value);
            SUCCESS
        }
        None => INVALID_VALUE,
    }
}

/// The device of an ordinal, for the calls that need no context.
fn seen(ordinal: c_int) -> Result<&'static Device, Code> {
    if !INITIALIZED.load(Ordering::SeqCst) {
        return Err(NOT_INITIALIZED);
    }
    device(ordinal).ok_or(INVALID_DEVICE)
}

/// Copies a string to where the caller has room for `room` bytes, terminated, cut where it must be.
///
/// # Safety
/// There must be that much room.
unsafe fn put_string(out: *mut c_char, room: c_int, text: &str) -> Code {
    let Some(len) = usize::try_from(room).ok().and_then(|room| room.checked_sub(1)) else { return INVALID_VALUE };
    if out.is_null() {
        return INVALID_VALUE;
    }
    let len = len.min(text.len());
    // SAFETY: `len` and one more fit, as the caller vouches.
    unsafe { out.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), len) };
    // SAFETY: as above.
    let end = unsafe { out.add(len) };
    // SAFETY: as above.
    unsafe { end.write(0) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuInit(flags: c_uint) -> Code {
    if flags != 0 {
        return INVALID_VALUE;
    }
    // First of all, so that a bad FEEDSTOCK_STANDIN shows here.
    let _ = device::devices();
    if DEVICE_COUNT.load(Ordering::SeqCst) == 0 {
        return NO_DEVICE;
    }
    if !INITIALIZED.swap(true, Ordering::SeqCst) {
        stay_loaded();
        control::report_at_exit();
    }
    SUCCESS
}

/// The executors run code of this library until the process ends, so it must not be unloaded.
fn stay_loaded() {
    #[repr(C)]
    struct Info {
        file: *const c_char,
        base: *mut u8,
        symbol: *const c_char,
        address: *mut u8,
    }
    unsafe extern "C" {
        fn dladdr(address: *const u8, info: *mut Info) -> c_int;
        fn dlopen(file: *const c_char, flags: c_int) -> *mut u8;
    }
    const NOW_NOLOAD_NODELETE: c_int = 0x2 | 0x4 | 0x1000;
    let mut info = Info { file: ptr::null(), base: ptr::null_mut(), symbol: ptr::null(), address: ptr::null_mut() };
    // SAFETY: an address within this library, and room for what is to be known about it.
    let found = unsafe { dladdr((&raw const NAME_PREFIX).cast(), &raw mut info) };
    if found != 0 && !info.file.is_null() {
        // SAFETY: the terminated name of a library that is loaded; its mark stays when this handle is forgotten.
        unsafe { dlopen(info.file, NOW_NOLOAD_NODELETE) };
    }
}

static NAME_PREFIX: &str = "Stand-in GPU ";

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: Out<'_, c_int>) -> Code {
    // FEEDSTOCK_STANDIN may set it.
    let _ = device::devices();
    put(version, DRIVER.load(Ordering::SeqCst))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: Out<'_, c_int>) -> Code {
    match INITIALIZED.load(Ordering::SeqCst) {
        true => put(count, DEVICE_COUNT.load(Ordering::SeqCst)),
        false => NOT_INITIALIZED,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: Out<'_, c_int>, ordinal: c_int) -> Code {
    seen(ordinal).map_or_else(|code| code, |_| put(device, ordinal))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, room: c_int, dev: c_int) -> Code {
    match seen(dev) {
        // SAFETY: the caller has room for as much as it says.
        Ok(device) => unsafe { put_string(name, room, &format!("{NAME_PREFIX}{}", device.ordinal)) },
        Err(code) => code,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: Out<'_, usize>, dev: c_int) -> Code {
    seen(dev).map_or_else(|code| code, |device| put(bytes, device.lock().config.memory))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(value: Out<'_, c_int>, attribute: c_uint, dev: c_int) -> Code {
    seen(dev).map_or_else(|code| code, |device| put(value, self::attribute(attribute, device.ordinal)))
}

/// Those of an H100, as far as anything could depend on them, but few multiprocessors: host code plays them.
fn attribute(number: c_uint, ordinal: usize) -> c_int {
    match number {
        1..=3 => 1024,
        4 => 64,
        5 => c_int::MAX,
        6 | 7 => 65_535,
        8 => 48 << 10,
        9 => 64 << 10,
        10 => 32,
        11 => c_int::MAX,
        12 | 82 => 65_536,
        13 => 1_755_000,
        14 => 512,
        16 => 2,
        33 => ordinal as c_int + 1,
        36 => 2_619_000,
        37 => 5120,
        38 => 50 << 20,
        39 => 2048,
        40 => 3,
        51 => 32,
        75 => (ptx::CAPABILITY / 10) as c_int,
        76 => (ptx::CAPABILITY % 10) as c_int,
        81 => 228 << 10,
        87 => 2,
        97 => 227 << 10,
        106 => 32,
        111 => 1024,
        130 | 131 | 134 => -1,
        // GPU_OVERLAP, CAN_MAP_HOST_MEMORY, CONCURRENT_KERNELS, ECC_ENABLED, UNIFIED_ADDRESSING, STREAM_PRIORITIES,
        // CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM: it has those.
        15 | 19 | 31 | 32 | 41 | 78 | 79 | 80 | 91 => 1,
        // Sizes and alignments that it has no use for, but which a program may divide by.
        21..=30 | 42 | 43 | 45..=49 | 52..=74 | 77 => 1,
        // Capabilities that it has not, memory pools (115) among them.
        _ => 0,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetPCIBusId(id: *mut c_char, room: c_int, dev: c_int) -> Code {
    match seen(dev) {
        // SAFETY: the caller has room for as much as it says.
        Ok(device) => unsafe { put_string(id, room, &format!("0000:{:02X}:00.0", device.ordinal + 1)) },
        Err(code) => code,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid_v2(uuid: Out<'_, [u8; 16]>, dev: c_int) -> Code {
    seen(dev).map_or_else(
        |code| code,
        |device| {
            let mut bytes = *b"feedstock-stand0";
            bytes[15] = device.ordinal as u8;
            put(uuid, bytes)
        },
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: Out<'_, usize>, dev: c_int) -> Code {
    let device = match seen(dev) {
        Ok(device) => device,
        Err(code) => return code,
    };
    let mut state = device.lock();
    match (context, state.error) {
        (None, _) => INVALID_VALUE,
        (_, Some(code)) => code,
        (context, None) => put(context, state.retain()),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRelease_v2(dev: c_int) -> Code {
    let device = match seen(dev) {
        Ok(device) => device,
        Err(code) => return code,
    };
    let mut state = device.lock();
    let error = state.error;
    if state.retained == 1 {
        // The end of a context waits for its work, that of destroyed streams as well.
        state.waiters += 1;
        while !(state.all_is_over() || state.error.is_some() && !state.executing) {
            device.work.notify_one();
            state = device.progress.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiters -= 1;
    }
    let result = state.release();
    error.or(result.err()).unwrap_or(SUCCESS)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSetCurrent(context: usize) -> Code {
    match INITIALIZED.load(Ordering::SeqCst) {
        true => device::set_current(context),
        false => NOT_INITIALIZED,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCurrent(context: Out<'_, usize>) -> Code {
    match INITIALIZED.load(Ordering::SeqCst) {
        true => put(context, device::current()),
        false => NOT_INITIALIZED,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetDevice(dev: Out<'_, c_int>) -> Code {
    match (INITIALIZED.load(Ordering::SeqCst), device::of_context(device::current())) {
        (false, _) => NOT_INITIALIZED,
        (true, None) => INVALID_CONTEXT,
        (true, Some(device)) => put(dev, device.ordinal as c_int),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(code: Code, name: Out<'_, *const c_char>) -> Code {
    put_words(name, codes::words(code).map(|(name, _)| name))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(code: Code, words: Out<'_, *const c_char>) -> Code {
    put_words(words, codes::words(code).map(|(_, words)| words))
}

fn put_words(out: Out<'_, *const c_char>, words: Option<&'static CStr>) -> Code {
    let put = put(out, words.map_or(ptr::null(), CStr::as_ptr));
    if words.is_none() { INVALID_VALUE } else { put }
}
