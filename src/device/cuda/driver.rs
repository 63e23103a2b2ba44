//! Calls into NVIDIA's driver library, its handles, and the meaning of its error codes. No other file calls the driver.
//!
//! The library is loaded at run time. A missing, old or incomplete driver is an error, never a panic.
//!
//! - `stream`: streams, events on them, and enqueued work.

#![allow(unsafe_code, reason = "the driver is a library in C")]

mod stream;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;

pub(super) use self::stream::{Argument, RawEvent, Stream, record_on};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};

use crate::device::DeviceError;
use crate::sync::{Arc, AtomicU64, Mutex, OnceLock, Ordering, lock};
use crate::units::ByteCount;

/// Oldest supported version of the driver's interface, as CUDA writes it: the first with every function below. (The
/// kernels' PTX needs less.)
pub(super) const VERSION_MIN: i32 = 12_080;

/// Every driver function that is called. A library without one of them is refused before any call.
const CALLS: [&str; 31] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDeviceGetPCIBusId",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamWaitEvent",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventQuery",
    "cuEventElapsedTime_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoH_v2",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuLaunchKernel",
    "cuGetErrorName",
    "cuGetErrorString",
];

/// Loads and starts the library once. Returns the version of the driver's interface.
pub(super) fn driver_version() -> Result<i32, DeviceError> {
    static STARTED: OnceLock<Result<i32, DeviceError>> = OnceLock::new();
    STARTED.get_or_init(start).clone()
}

fn start() -> Result<i32, DeviceError> {
    #[cfg(test)]
    super::standin::load();
    let refused = |reason: String| Err(DeviceError::Unsupported(reason));
    // SAFETY: loads a library whose initializers are trusted.
    if !unsafe { sys::is_culib_present() } {
        let reason = "no NVIDIA driver is installed (its library, libcuda.so, is not found)";
        return Err(DeviceError::Absent(reason.to_owned()));
    }
    // SAFETY: it was just loaded; this does not call anything.
    let library = unsafe { sys::culib() };
    for name in CALLS {
        // SAFETY: the symbol is looked up, and not used.
        if unsafe { library.get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_err() {
            return refused(format!("the NVIDIA driver is too old or damaged: its library has no {name}"));
        }
    }
    let mut version: c_int = 0;
    // SAFETY: writes one integer; it may be called before `cuInit`.
    let code = unsafe { sys::cuDriverGetVersion(&mut version) };
    if code != CUresult::CUDA_SUCCESS {
        return refused(format!("the version of the NVIDIA driver cannot be read: {}", meaning(code)));
    }
    if version < VERSION_MIN {
        return refused(format!(
            "the NVIDIA driver is too old: it supports CUDA {}, and {} is needed (driver 570 or newer)",
            dotted(version),
            dotted(VERSION_MIN)
        ));
    }
    // SAFETY: no flags are defined.
    match unsafe { sys::cuInit(0) } {
        CUresult::CUDA_SUCCESS => Ok(version),
        CUresult::CUDA_ERROR_NO_DEVICE => refused("the NVIDIA driver finds no GPU".to_owned()),
        code => refused(format!("the NVIDIA driver does not start: {}", meaning(code))),
    }
}

/// Formats a version: 13000 as `13.0`.
pub(super) fn dotted(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// Number of devices.
pub(super) fn device_count() -> Result<u32, DeviceError> {
    driver_version()?;
    let mut count: c_int = 0;
    // SAFETY: writes one integer; the driver is started.
    let code = unsafe { sys::cuDeviceGetCount(&mut count) };
    match code {
        CUresult::CUDA_SUCCESS => Ok(count.max(0).cast_unsigned()),
        code => Err(DeviceError::Failed { what: "cuDeviceGetCount".to_owned(), cause: meaning(code) }),
    }
}

/// Name and text of an error code, from the driver.
fn meaning(code: CUresult) -> String {
    let text = |ask: unsafe fn(CUresult, *mut *const c_char) -> CUresult| {
        let mut text: *const c_char = ptr::null();
        // SAFETY: writes one pointer; every library has the two functions that are passed.
        let told = unsafe { ask(code, &mut text) };
        if told != CUresult::CUDA_SUCCESS || text.is_null() {
            return None;
        }
        // SAFETY: a static text of the library that ends with a zero.
        Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    };
    match (text(sys::cuGetErrorName), text(sys::cuGetErrorString)) {
        (Some(name), Some(words)) => format!("{name} ({words})"),
        (Some(name), None) => name,
        _ => format!("error {}", code as u32),
    }
}

/// Returns true if no call can succeed after this code: the device is lost, or its context is corrupt.
fn is_fatal(code: CUresult) -> bool {
    use CUresult::*;
    matches!(
        code,
        CUDA_ERROR_DEINITIALIZED
            | CUDA_ERROR_DEVICE_UNAVAILABLE
            | CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_SYSTEM_NOT_READY
            | CUDA_ERROR_UNKNOWN
    )
}

/// Primary context of a device, which every library in the process shares.
#[derive(Debug)]
pub(super) struct Context {
    name: String,
    device: sys::CUdevice,
    raw: Handle<sys::CUctx_st>,
    /// First fatal error.
    error: Mutex<Option<DeviceError>>,
    /// Unused events, for reuse.
    events: Mutex<Vec<Handle<sys::CUevent_st>>>,
    /// Bytes of device memory allocated through this context.
    held: AtomicU64,
    /// Number of allocations of device memory.
    allocations: AtomicU64,
}

/// A handle of the driver, which may be called from any thread.
#[derive(Debug)]
struct Handle<T>(*mut T);

impl<T> Clone for Handle<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Handle<T> {}
// SAFETY: a handle names an object of the driver, which does its own locking.
unsafe impl<T> Send for Handle<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Handle<T> {}

/// Error of a driver call.
pub(super) enum Refusal {
    /// Not enough memory for this call.
    NoMemory(&'static str),
    Other(DeviceError),
}

impl From<Refusal> for DeviceError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NoMemory(call) => {
                DeviceError::Failed { what: call.to_owned(), cause: "the driver is out of memory".to_owned() }
            }
            Refusal::Other(error) => error,
        }
    }
}

impl Context {
    /// Opens the context of the device with this number.
    pub(super) fn open(number: u32) -> Result<Arc<Self>, DeviceError> {
        let name = format!("cuda:{number}");
        let count = device_count()?;
        if number >= count {
            let there =
                if count == 1 { "1 device, cuda:0".to_owned() } else { format!("{count} devices, from cuda:0 on") };
            return Err(DeviceError::Unsupported(format!("there is no {name}: the NVIDIA driver finds {there}")));
        }
        let failed =
            |call: &str, code| DeviceError::Failed { what: format!("{call} for {name}"), cause: meaning(code) };
        let (mut device, mut raw) = (0, ptr::null_mut());
        // SAFETY: writes one device handle.
        let code = unsafe { sys::cuDeviceGet(&mut device, number as c_int) };
        if code != CUresult::CUDA_SUCCESS {
            return Err(failed("cuDeviceGet", code));
        }
        // SAFETY: writes one context handle of an existing device.
        let code = unsafe { sys::cuDevicePrimaryCtxRetain(&mut raw, device) };
        if code != CUresult::CUDA_SUCCESS {
            return Err(failed("cuDevicePrimaryCtxRetain", code));
        }
        let (error, events) = (Mutex::default(), Mutex::default());
        let (held, allocations) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Arc::new(Context { name, device, raw: Handle(raw), error, events, held, allocations }))
    }

    /// Name of the device: `cuda:0`.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The driver's handle.
    pub(super) fn raw(&self) -> *mut c_void {
        self.raw.0.cast()
    }

    /// # Errors
    /// The first fatal error, if any.
    pub(super) fn check(&self) -> Result<(), DeviceError> {
        lock(&self.error).clone().map_or(Ok(()), Err)
    }

    /// Records a fatal error. The first one stays.
    pub(super) fn lose(&self, error: DeviceError) -> DeviceError {
        lock(&self.error).get_or_insert(error).clone()
    }

    /// Makes this context current on the calling thread.
    pub(super) fn enter(&self) -> Result<(), DeviceError> {
        Ok(self.call("cuCtxSetCurrent", || CUresult::CUDA_SUCCESS)?)
    }

    /// Calls the driver with this context current on the calling thread.
    fn call(&self, what: &'static str, call: impl FnOnce() -> CUresult) -> Result<(), Refusal> {
        // SAFETY: the context lives as long as `self`.
        let mut code = unsafe { sys::cuCtxSetCurrent(self.raw.0) };
        if code == CUresult::CUDA_SUCCESS {
            code = call();
        }
        match code {
            CUresult::CUDA_SUCCESS => Ok(()),
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Err(Refusal::NoMemory(what)),
            code => Err(Refusal::Other(self.error(what, code))),
        }
    }

    fn error(&self, what: &'static str, code: CUresult) -> DeviceError {
        let cause = format!("{what} returned {}", meaning(code));
        if is_fatal(code) {
            return self.lose(DeviceError::Lost { device: self.name.clone(), cause });
        }
        DeviceError::Failed { what: format!("a driver call for {}", self.name), cause }
    }

    /// Free and total device memory, other programs included.
    pub(super) fn memory_info(&self) -> Result<(ByteCount, ByteCount), DeviceError> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two sizes.
        self.call("cuMemGetInfo", || unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok((ByteCount(free as u64), ByteCount(total as u64)))
    }

    /// Bytes of device memory allocated through this context and not freed.
    pub(super) fn held(&self) -> ByteCount {
        ByteCount(self.held.load(Ordering::Relaxed))
    }

    /// Number of allocations of device memory through this context.
    pub(super) fn allocations(&self) -> u64 {
        self.allocations.load(Ordering::Relaxed)
    }

    fn attribute(&self, attribute: Attribute) -> Result<i32, DeviceError> {
        let mut value = 0;
        // SAFETY: writes one integer.
        self.call("cuDeviceGetAttribute", || unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, self.device) })?;
        Ok(value)
    }

    /// Multiprocessors of the device.
    pub(super) fn multiprocessors(&self) -> Result<u32, DeviceError> {
        Ok(self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.max(1).cast_unsigned())
    }

    /// Compute capability: (9, 0).
    pub(super) fn capability(&self) -> Result<(i32, i32), DeviceError> {
        let major = self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        Ok((major, self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?))
    }

    /// Model name: `NVIDIA H100 80GB HBM3`.
    pub(super) fn model(&self) -> Result<String, DeviceError> {
        self.text("cuDeviceGetName", |text, len| {
            // SAFETY: writes at most `len` bytes.
            unsafe { sys::cuDeviceGetName(text, len, self.device) }
        })
    }

    /// PCI address: `0000:1b:00.0`.
    pub(super) fn bus_id(&self) -> Result<String, DeviceError> {
        self.text("cuDeviceGetPCIBusId", |text, len| {
            // SAFETY: writes at most `len` bytes.
            unsafe { sys::cuDeviceGetPCIBusId(text, len, self.device) }
        })
    }

    fn text(
        &self,
        what: &'static str,
        ask: impl FnOnce(*mut c_char, c_int) -> CUresult,
    ) -> Result<String, DeviceError> {
        let mut text = [0u8; 256];
        self.call(what, || ask(text.as_mut_ptr().cast(), 255))?;
        let text = CStr::from_bytes_until_nul(&text).unwrap_or_default();
        Ok(text.to_string_lossy().into_owned())
    }

    /// Allocates device memory. Its content is undefined.
    pub(super) fn alloc(&self, len: usize) -> Result<u64, Refusal> {
        let mut address = 0;
        // SAFETY: writes one address.
        self.call("cuMemAlloc", || unsafe { sys::cuMemAlloc_v2(&mut address, len) })?;
        self.held.fetch_add(len as u64, Ordering::Relaxed);
        self.allocations.fetch_add(1, Ordering::Relaxed);
        Ok(address)
    }

    /// Frees device memory.
    ///
    /// # Safety
    /// The address is what `alloc` returned for this length, is no longer in use, and is freed once.
    pub(super) unsafe fn free(&self, address: u64, len: usize) {
        self.held.fetch_sub(len as u64, Ordering::Relaxed);
        // SAFETY: the caller vouches for the address. A lost device has freed it already.
        let _ = self.call("cuMemFree", || unsafe { sys::cuMemFree_v2(address) });
    }

    /// Allocates page-locked host memory of exactly this size. Its content is undefined.
    pub(super) fn alloc_host(&self, len: usize, write_combined: bool) -> Result<*mut u8, Refusal> {
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE | if write_combined { sys::CU_MEMHOSTALLOC_WRITECOMBINED } else { 0 };
        let mut address = ptr::null_mut();
        // SAFETY: writes one address.
        self.call("cuMemHostAlloc", || unsafe { sys::cuMemHostAlloc(&mut address, len, flags) })?;
        Ok(address.cast())
    }

    /// Frees page-locked memory.
    ///
    /// # Safety
    /// The address is what `alloc_host` returned, is no longer in use, and is freed once.
    pub(super) unsafe fn free_host(&self, address: *mut u8) {
        // SAFETY: the caller vouches for the address. For a lost device the driver keeps the memory.
        let _ = self.call("cuMemFreeHost", || unsafe { sys::cuMemFreeHost(address.cast()) });
    }

    /// Copies device memory to the host. Blocks.
    ///
    /// # Safety
    /// The device memory is at least `out.len()` bytes long, and nothing writes it meanwhile.
    pub(super) unsafe fn read(&self, out: &mut [u8], from: u64) -> Result<(), DeviceError> {
        let (address, len) = (out.as_mut_ptr().cast(), out.len());
        // SAFETY: the caller vouches for the address; `out` is borrowed mutably.
        Ok(self.call("cuMemcpyDtoH", || unsafe { sys::cuMemcpyDtoH_v2(address, from, len) })?)
    }

    /// Loads a program in PTX, which the driver compiles for the device.
    pub(super) fn module(self: &Arc<Self>, ptx: &str) -> Result<Module, DeviceError> {
        let ptx = CString::new(ptx)
            .map_err(|_| DeviceError::Unsupported("the kernels' PTX contains a zero byte".to_owned()))?;
        let mut raw = ptr::null_mut();
        // SAFETY: the text ends with a zero, and is read during the call only.
        self.call("cuModuleLoadData", || unsafe { sys::cuModuleLoadData(&mut raw, ptx.as_ptr().cast()) })?;
        Ok(Module { raw: Handle(raw), context: Arc::clone(self) })
    }

    /// The kernel with this name.
    pub(super) fn kernel(&self, module: &Module, name: &CStr) -> Result<Kernel, DeviceError> {
        let mut raw = ptr::null_mut();
        // SAFETY: the module is loaded, and the name ends with a zero.
        self.call("cuModuleGetFunction", || unsafe {
            sys::cuModuleGetFunction(&mut raw, module.raw.0, name.as_ptr())
        })?;
        Ok(Kernel(Handle(raw)))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        let events = std::mem::take(&mut *lock(&self.events));
        for event in events {
            // SAFETY: created here, not in use, destroyed once.
            let _ = self.call("cuEventDestroy", || unsafe { sys::cuEventDestroy_v2(event.0) });
        }
        // SAFETY: retained once in `open`. A failure has no consequence.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// A program on the device. Dropping it unloads the program; kernels launched by then finish.
#[derive(Debug)]
pub(super) struct Module {
    raw: Handle<sys::CUmod_st>,
    context: Arc<Context>,
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded once, unloaded once.
        let _ = self.context.call("cuModuleUnload", || unsafe { sys::cuModuleUnload(self.raw.0) });
    }
}

/// A function of a program on the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel(Handle<sys::CUfunc_st>);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::CALLS;

    #[test]
    fn every_called_function_is_looked_up_first() {
        // This test names no function of the driver, so it may read its own file.
        let code = [include_str!("driver.rs"), include_str!("driver/stream.rs")].concat();
        let called: BTreeSet<&str> = code
            .split(concat!("sys::", "cu"))
            .skip(1)
            .filter_map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next())
            .filter(|name| name.starts_with(char::is_uppercase))
            .collect();
        let listed: BTreeSet<&str> = CALLS.iter().filter_map(|name| name.strip_prefix("cu")).collect();
        assert_eq!(called, listed);
    }
}
