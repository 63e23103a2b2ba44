//! Calls about memory: allocation, pinning, copies and fills. The executor moves the bytes, later.

use std::ffi::{c_uchar, c_uint, c_void};
use std::sync::Arc;

use crate::codes::{Code, INVALID_VALUE, NOT_SUPPORTED, OUT_OF_MEMORY};
use crate::control::{self, Pinned};
use crate::device::{DEFAULT_STREAM, Device, Guard, call, call_to_release};
use crate::executor::checksum;
use crate::memory::{Block, Memory, Touch};
use crate::op::{Copy, Direction, Task, Watch};
use crate::{Out, put};

const FRESH_DEVICE_FILL: u8 = 0xCD;
const FRESH_PINNED_FILL: u8 = 0xCB;
const PINNED_FLAGS: c_uint = 7;
const PINNED_WRITE_COMBINED: c_uint = 4;
/// Up to here a copy from pageable memory takes the bytes at the call and goes on alone, as the driver has it.
const STAGED_MAX: usize = 64 << 10;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: Out<'_, usize>, total: Out<'_, usize>) -> Code {
    call(|_, state| {
        if free.is_none() || total.is_none() {
            return Err(INVALID_VALUE);
        }
        put(free, state.config.memory.saturating_sub(state.config.others).saturating_sub(state.memory.bytes));
        put(total, state.config.memory);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(address: Out<'_, u64>, len: usize) -> Code {
    call(|_, mut state| {
        if len == 0 || address.is_none() {
            return Err(INVALID_VALUE);
        }
        let free = state.config.memory.saturating_sub(state.config.others).saturating_sub(state.memory.bytes);
        let fails = match &mut state.config.fail_alloc {
            Some(1) => {
                state.config.fail_alloc = None;
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        };
        if fails || len > free {
            return Err(OUT_OF_MEMORY);
        }
        let block = state.memory.allocate(len, FRESH_DEVICE_FILL, 0);
        put(address, block.base() as u64);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFree_v2(address: u64) -> Code {
    call_to_release(|_, mut state| match address {
        0 => Ok(()),
        _ => free(&mut state, false, address as usize, "cuMemFree"),
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocAsync(_address: Out<'_, u64>, _len: usize, _stream: usize) -> Code {
    call(|_, _| Err(NOT_SUPPORTED))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeAsync(_address: u64, _stream: usize) -> Code {
    call(|_, _| Err(NOT_SUPPORTED))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(address: Out<'_, usize>, len: usize, flags: c_uint) -> Code {
    call(|_, mut state| {
        if len == 0 || flags > PINNED_FLAGS || address.is_none() {
            return Err(INVALID_VALUE);
        }
        let fails = state.config.fail_pin.as_mut().is_some_and(|left| {
            let fails = *left == 1;
            *left = (*left - 1).max(1);
            fails
        });
        if fails || len > state.config.pin_limit.saturating_sub(state.pinned.bytes) {
            return Err(OUT_OF_MEMORY);
        }
        let block = state.pinned.allocate(len, FRESH_PINNED_FILL, flags);
        let base = block.base();
        control::note_pinned(Pinned { ordinal: state.ordinal, base, len, flags, block });
        put(address, base);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocHost_v2(address: Out<'_, usize>, len: usize) -> Code {
    // SAFETY: the caller vouches for it, as for any call.
    unsafe { cuMemHostAlloc(address, len, 0) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeHost(address: usize) -> Code {
    call_to_release(|_, mut state| free(&mut state, true, address, "cuMemFreeHost"))
}

fn free(state: &mut Guard, pinned: bool, address: usize, call: &str) -> Result<(), Code> {
    let memory: &mut Memory = if pinned { &mut state.pinned } else { &mut state.memory };
    let Some(gone) = memory.remove(address) else {
        let words = match memory.hold(address, 1) {
            Ok(found) => format!("{address:#x} is not where allocation {} begins", found.number),
            Err(words) => words,
        };
        state.violate(format!("{call}: {words}"));
        return Err(INVALID_VALUE);
    };
    if pinned {
        control::forget_pinned(std::slice::from_ref(&gone));
    }
    let memory = if pinned { &state.pinned } else { &state.memory };
    let wrong = memory.judge_free(&gone, &state.host);
    // After a failure no operation is pending, and no call can tell which are over.
    if state.error.is_none() {
        wrong.into_iter().for_each(|words| state.violate(words));
    }
    gone.block.bury();
    Ok(())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, len: usize, stream: usize) -> Code {
    call(|device, mut state| {
        let stream = state.stream(stream, "cuMemcpyHtoDAsync")?;
        host_to_device(device, state, (to as usize, from as usize, len), stream, "cuMemcpyHtoDAsync", false)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, len: usize) -> Code {
    let range = (to as usize, from as usize, len);
    call(|device, state| host_to_device(device, state, range, DEFAULT_STREAM, "cuMemcpyHtoD", true))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, len: usize, stream: usize) -> Code {
    call(|device, mut state| {
        let stream = state.stream(stream, "cuMemcpyDtoHAsync")?;
        device_to_host(device, state, (to as usize, from as usize, len), stream, "cuMemcpyDtoHAsync", false)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, len: usize) -> Code {
    let range = (to as usize, from as usize, len);
    call(|device, state| device_to_host(device, state, range, DEFAULT_STREAM, "cuMemcpyDtoH", true))
}

/// A rectangle to copy, as cuda.h has it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Rectangle {
    from_x: usize,
    from_y: usize,
    from_kind: c_uint,
    from_host: *const c_void,
    from_device: u64,
    from_array: usize,
    from_pitch: usize,
    to_x: usize,
    to_y: usize,
    to_kind: c_uint,
    to_host: *mut c_void,
    to_device: u64,
    to_array: usize,
    to_pitch: usize,
    width: usize,
    height: usize,
}

const KIND_HOST: c_uint = 1;
const KIND_DEVICE: c_uint = 2;

/// Copies a rectangle row by row, or at once where rows follow each other without a gap.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpy2DAsync_v2(what: *const Rectangle, stream: usize) -> Code {
    // SAFETY: the caller vouches for it.
    let Some(&all) = (unsafe { what.as_ref() }) else { return INVALID_VALUE };
    let dense = all.from_pitch == all.width && all.to_pitch == all.width;
    let (rows, len) = if dense { (1, all.width * all.height) } else { (all.height, all.width) };
    for row in 0..rows {
        let from = (all.from_y + row) * all.from_pitch + all.from_x;
        let to = (all.to_y + row) * all.to_pitch + all.to_x;
        let (from_device, to_device) = (all.from_device + from as u64, all.to_device + to as u64);
        let from_host = all.from_host.wrapping_byte_add(from);
        let to_host = all.to_host.wrapping_byte_add(to);
        let code = match (all.from_kind, all.to_kind) {
            // SAFETY: the caller vouches for both ends.
            (KIND_HOST, KIND_DEVICE) => unsafe { cuMemcpyHtoDAsync_v2(to_device, from_host, len, stream) },
            // SAFETY: as above.
            (KIND_DEVICE, KIND_HOST) => unsafe { cuMemcpyDtoHAsync_v2(to_host, from_device, len, stream) },
            // SAFETY: as above.
            (KIND_DEVICE, KIND_DEVICE) => unsafe { cuMemcpyDtoDAsync_v2(to_device, from_device, len, stream) },
            _ => NOT_SUPPORTED,
        };
        if code != 0 {
            return code;
        }
    }
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, len: usize, stream: usize) -> Code {
    call(|device, mut state| {
        let name = "cuMemcpyDtoDAsync";
        let stream = state.stream(stream, name)?;
        if len == 0 {
            return Ok(());
        }
        let (to, from) = (to as usize, from as usize);
        let (source, source_block) = state.hold(false, from, len, name)?;
        let (target, target_block) = state.hold(false, to, len, name)?;
        let what = format!("copy of {len} bytes from allocation {source} to allocation {target}");
        let copy = Copy {
            direction: Direction::DeviceToDevice,
            to,
            from,
            len,
            snapshot: None,
            checksum: None,
            write_combined: false,
        };
        let touches = [(false, touch(from, len, false)), (false, touch(to, len, true))];
        state.enqueue(stream, what.into(), Task::Copy(copy), vec![source_block, target_block], &touches);
        device.kick(&mut state);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD8Async(to: u64, byte: c_uchar, len: usize, stream: usize) -> Code {
    call(|device, mut state| {
        let stream = state.stream(stream, "cuMemsetD8Async")?;
        if len == 0 {
            return Ok(());
        }
        let to = to as usize;
        let (target, block) = state.hold(false, to, len, "cuMemsetD8Async")?;
        let what = format!("fill of {len} bytes of allocation {target}");
        let task = Task::Fill { to, byte, len };
        state.enqueue(stream, what.into(), task, vec![block], &[(false, touch(to, len, true))]);
        device.kick(&mut state);
        Ok(())
    })
}

fn touch(start: usize, len: usize, write: bool) -> Touch {
    Touch { start, end: start + len, write }
}

/// The side of a copy that is memory of the host.
struct HostSide {
    pinned: Option<Pinned>,
    block: Option<Arc<Block>>,
    /// True if this device tracks its uses: not for memory pinned in the context of another.
    own: bool,
}

fn host_side(state: &mut Guard, address: usize, len: usize, call: &str) -> Result<HostSide, Code> {
    let pinned = control::pinned_at(address);
    if let Some(range) = &pinned
        && len > range.base + range.len - address
    {
        state.violate(format!("{call}: {len} bytes at {address:#x} run beyond the end of a pinned allocation"));
        return Err(INVALID_VALUE);
    }
    if pinned.is_none() && state.pinned.grave_at(address).is_some() {
        let number = state.pinned.grave_at(address).unwrap_or(0);
        state.violate(format!("{call}: {address:#x} lies in pinned allocation {number}, which has been freed"));
    }
    let own = pinned.as_ref().is_some_and(|range| range.ordinal == state.ordinal);
    let block = pinned.as_ref().map(|range| Arc::clone(&range.block));
    Ok(HostSide { pinned, block, own })
}

fn host_to_device(
    device: &'static Device,
    mut state: Guard,
    (to, from, len): (usize, usize, usize),
    stream: usize,
    call: &str,
    synchronous: bool,
) -> Result<(), Code> {
    if len == 0 {
        return Ok(());
    }
    if from == 0 {
        return Err(INVALID_VALUE);
    }
    let (target, block) = state.hold(false, to, len, call)?;
    let host = host_side(&mut state, from, len, call)?;
    let pageable = host.pinned.is_none();
    let mut copy = Copy {
        direction: Direction::HostToDevice,
        to,
        from,
        len,
        snapshot: None,
        checksum: None,
        write_combined: host.pinned.as_ref().is_some_and(|range| range.flags & PINNED_WRITE_COMBINED != 0),
    };
    if pageable && len <= STAGED_MAX {
        // SAFETY: the caller's memory, which is this long.
        copy.snapshot = Some(unsafe { std::slice::from_raw_parts(from as *const u8, len) }.to_vec());
    } else if !pageable {
        copy.checksum = Some(checksum(from, len));
    }
    let checksum = copy.checksum;
    let blocks = [Some(block), host.block.clone()].into_iter().flatten().collect();
    let mut touches = vec![(false, touch(to, len, true))];
    if host.own {
        touches.push((true, touch(from, len, false)));
    }
    let blocks_caller = synchronous || pageable && len > STAGED_MAX;
    state.counts.copies_h2d += 1;
    state.counts.bytes_h2d += len as u64;
    state.counts.pageable_copies_blocking += u64::from(pageable && blocks_caller && !synchronous);
    let what: Arc<str> = format!("copy of {len} bytes to allocation {target}").into();
    let number = state.enqueue(stream, Arc::clone(&what), Task::Copy(copy), blocks, &touches);
    if let (Some(checksum), Some(block)) = (checksum, host.block) {
        state.watches.push(Watch { stream, number, what, start: from, len, checksum, block });
    }
    device.kick(&mut state);
    if blocks_caller { finish(device, state, stream, number) } else { Ok(()) }
}

fn device_to_host(
    device: &'static Device,
    mut state: Guard,
    (to, from, len): (usize, usize, usize),
    stream: usize,
    call: &str,
    synchronous: bool,
) -> Result<(), Code> {
    if len == 0 {
        return Ok(());
    }
    if to == 0 {
        return Err(INVALID_VALUE);
    }
    let (source, block) = state.hold(false, from, len, call)?;
    let host = host_side(&mut state, to, len, call)?;
    let pageable = host.pinned.is_none();
    let copy = Copy {
        direction: Direction::DeviceToHost,
        to,
        from,
        len,
        snapshot: None,
        checksum: None,
        write_combined: false,
    };
    let blocks = [Some(block), host.block].into_iter().flatten().collect();
    let mut touches = vec![(false, touch(from, len, false))];
    if host.own {
        touches.push((true, touch(to, len, true)));
    }
    state.counts.pageable_copies_blocking += u64::from(pageable && !synchronous);
    let what = format!("copy of {len} bytes from allocation {source}");
    let number = state.enqueue(stream, what.into(), Task::Copy(copy), blocks, &touches);
    device.kick(&mut state);
    if synchronous || pageable { finish(device, state, stream, number) } else { Ok(()) }
}

/// Blocks until a copy is over, which the host then knows.
fn finish(device: &'static Device, state: Guard, stream: usize, number: u64) -> Result<(), Code> {
    let clock = state.streams[stream].clock.clone();
    let (mut state, result) = device.wait(state, stream, number);
    result?;
    state.learn(&clock);
    Ok(())
}
