//! Calls about modules, their functions and launches. A launch is an operation on a stream, which the executor runs.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::codes::{Code, INVALID_HANDLE, INVALID_PTX, INVALID_VALUE, NOT_FOUND, NOT_SUPPORTED, SUCCESS};
use crate::device::{DRIVER, State, call, call_to_release, new_handle};
use crate::memory::{Block, Touch};
use crate::op::{Launch, Task};
use crate::ptx::{self, Entry};
use crate::{Out, put};

const THREADS_PER_BLOCK_MAX: u64 = 1024;
/// Shared memory of a block by default, and the most that a launch can ask for.
const SHARED_BYTES: c_uint = 48 << 10;
const SHARED_BYTES_MAX: c_uint = 227 << 10;
const MAX_DYNAMIC_SHARED_SIZE_BYTES: c_uint = 8;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(module: Out<'_, usize>, image: *const c_void) -> Code {
    call(|_, mut state| {
        if image.is_null() || module.is_none() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: what is no terminated text is no PTX; the stand-in takes nothing else.
        let text = unsafe { CStr::from_ptr(image.cast()) }.to_str().map_err(|_| INVALID_PTX)?;
        let entries = ptx::parse(text, DRIVER.load(Ordering::SeqCst))?;
        let handle = new_handle();
        state.modules.insert(handle, entries);
        put(module, handle);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleUnload(module: usize) -> Code {
    call_to_release(|_, mut state| {
        if state.modules.remove(&module).is_none() {
            return Err(state.bad_handle("cuModuleUnload", "module", module));
        }
        // A launch that is under way keeps what it needs; real drivers wait for it.
        state.functions.retain(|_, (of, _)| *of != module);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(function: Out<'_, usize>, module: usize, name: *const c_char) -> Code {
    call(|_, mut state| {
        if name.is_null() || function.is_none() {
            return Err(INVALID_VALUE);
        }
        let Some(entries) = state.modules.get(&module) else {
            return Err(state.bad_handle("cuModuleGetFunction", "module", module));
        };
        // SAFETY: the caller's terminated string.
        let name = unsafe { CStr::from_ptr(name) };
        let entry = entries.iter().find(|entry| entry.name.as_c_str() == name).ok_or(NOT_FOUND)?.clone();
        let handle = new_handle();
        state.functions.insert(handle, (module, entry));
        put(function, handle);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncSetAttribute(function: usize, attribute: c_uint, value: c_int) -> Code {
    call(|_, mut state| {
        if !state.functions.contains_key(&function) {
            return Err(state.bad_handle("cuFuncSetAttribute", "function", function));
        }
        match (attribute, c_uint::try_from(value)) {
            (MAX_DYNAMIC_SHARED_SIZE_BYTES, Ok(bytes)) if bytes <= SHARED_BYTES_MAX => {
                state.shared_max.insert(function, bytes.max(SHARED_BYTES));
                Ok(())
            }
            _ => Err(INVALID_VALUE),
        }
    })
}

/// The description of a tensor that a kernel is given. No kernel that is linked in takes one, so that it stays as it
/// was.
#[unsafe(no_mangle)]
pub extern "C" fn cuTensorMapEncodeTiled() -> Code {
    SUCCESS
}

/// As above.
#[unsafe(no_mangle)]
pub extern "C" fn cuTensorMapEncodeIm2col() -> Code {
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: usize,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared: c_uint,
    stream: usize,
    params: *const *const c_void,
    extra: *const *const c_void,
) -> Code {
    call(|device, mut state| {
        let entry = match state.functions.get(&function) {
            Some((_, entry)) => entry.clone(),
            None => return Err(state.bad_handle("cuLaunchKernel", "function", function)),
        };
        let stream = state.stream(stream, "cuLaunchKernel")?;
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let threads: u64 = block.iter().map(|&size| u64::from(size)).product();
        let grid_fits =
            (1..=i32::MAX as u32).contains(&grid_x) && [grid_y, grid_z].iter().all(|n| (1..=65_535).contains(n));
        let shared_max = state.shared_max.get(&function).copied().unwrap_or(SHARED_BYTES);
        if !grid_fits || threads == 0 || threads > THREADS_PER_BLOCK_MAX || block_z > 64 || shared > shared_max {
            return Err(INVALID_VALUE);
        }
        if !extra.is_null() {
            return Err(NOT_SUPPORTED);
        }
        if params.is_null() && !entry.params.is_empty() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the caller has as many parameters, of these sizes, as the kernel takes.
        let values = unsafe { copy_params(&entry, params) }?;
        let what: Arc<str> = format!("kernel {}", entry.name.to_string_lossy()).into();
        let Reach { touches, blocks, wild } = reach(&mut state, &entry, &values, &what, grid_y);
        let launch = Launch { name: entry.name, grid, block, shared, params: values, wild };
        state.counts.launches += 1;
        state.enqueue(stream, what, Task::Launch(Box::new(launch)), blocks, &touches);
        device.kick(&mut state);
        Ok(())
    })
}

/// The values of the parameters, as they are now: the caller may change them right after the call.
///
/// # Safety
/// There must be as many, of these sizes, as the kernel takes.
unsafe fn copy_params(entry: &Entry, params: *const *const c_void) -> Result<Vec<Vec<u64>>, Code> {
    let mut values = Vec::with_capacity(entry.params.len());
    for (at, param) in entry.params.iter().enumerate() {
        // SAFETY: the caller has so many.
        let pointer = unsafe { params.add(at) };
        // SAFETY: as above.
        let from = unsafe { pointer.read() };
        if from.is_null() {
            return Err(INVALID_HANDLE);
        }
        let mut value = vec![0_u64; param.bytes.div_ceil(8)];
        // SAFETY: the caller's parameter has this size, and the words are at least as many bytes.
        unsafe { value.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(from.cast(), param.bytes) };
        values.push(value);
    }
    Ok(values)
}

/// Memory that a launch accesses.
struct Reach {
    touches: Vec<(bool, Touch)>,
    blocks: Vec<Arc<Block>>,
    wild: bool,
}

/// Finds out which memory the parameters lead to. The first pointer is what a kernel writes, if it writes anything, and
/// the others are what it reads, each up to the next pointer into the same allocation, or to its end; no further than
/// is known of the kernels under test.
fn reach(state: &mut State, entry: &Entry, values: &[Vec<u64>], what: &str, rows: u32) -> Reach {
    let lengths = lengths(&entry.name.to_string_lossy(), values, rows as usize);
    let mut pointers = Vec::new();
    for (param, value) in entry.params.iter().zip(values).filter(|(param, _)| param.bytes == 8) {
        let address = value[0] as usize;
        let leads_somewhere = [&state.memory, &state.pinned]
            .iter()
            .any(|memory| memory.at(address).is_some() || memory.grave_at(address).is_some());
        if param.pointer || leads_somewhere {
            pointers.push(address);
        }
    }
    let mut reach = Reach { touches: Vec::new(), blocks: Vec::new(), wild: false };
    for (at, &address) in pointers.iter().enumerate().filter(|&(_, &address)| address != 0) {
        // A device reads pinned memory as well, where it lies.
        let pinned = state.pinned.at(address).is_some();
        let memory = if pinned { &state.pinned } else { &state.memory };
        let found = match memory.hold(address, 1) {
            Ok(found) => found,
            Err(words) => {
                reach.wild = true;
                state.violate(format!("{what}: {words}"));
                continue;
            }
        };
        let known = lengths.as_ref().map_or(usize::MAX, |lengths| lengths[at]);
        let end = (found.base + found.len).min(address.saturating_add(known));
        let next = pointers.iter().copied().filter(|&other| other > address && other < end).min();
        reach.blocks.push(Arc::clone(&found.block));
        reach
            .touches
            .push((pinned, Touch { start: address, end: next.unwrap_or(end), write: at == 0 && entry.writes }));
    }
    // What it reads it finds as it was before it wrote.
    reach.touches.sort_by_key(|(_, touch)| touch.write);
    reach
}

/// Number of bytes that the kernels under test access behind each of their pointers.
fn lengths(name: &str, values: &[Vec<u64>], rows: usize) -> Option<Vec<usize>> {
    let value = |at: usize| values.get(at).map_or(0, |value| value[0] as u32 as usize);
    let elements = 3 * value(3);
    let element = match name.strip_prefix("feedstock_convert_") {
        Some(kind) if kind.starts_with("b8_") => 1,
        Some(kind) if kind.starts_with("b16_") => 2,
        Some(_) => 4,
        None if name == "feedstock_step" => return Some(vec![1]),
        None => return None,
    };
    Some(vec![rows * elements * element, rows * elements, 3 * 256 * element])
}
