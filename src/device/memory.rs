//! Owns memory that batches travel through: host memory for slots, and the handle of device memory.
//! It must never free memory in another way than it was made, and it knows no stream.

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;

use memmap2::MmapMut;

use super::{DeviceError, bytes};

/// Alignment of host memory, and what its size in RAM is a multiple of.
pub const PAGE_BYTES: usize = 4096;

type Free = Box<dyn FnOnce(*mut u8, usize) + Send + Sync>;

/// Host memory of fixed size, zeroed and page-aligned, page-locked where the device can do that. It owns its bytes, and
/// whoever made them frees them.
///
/// # Sharing
/// Safe code can read it through any `&HostMemory`, so whoever writes through [`as_ptr`](HostMemory::as_ptr) has to keep
/// all other handles away meanwhile: hold the only `Arc` while workers write, hand clones to
/// [`Device::enqueue_batch`](super::Device::enqueue_batch) after the last write, and take `Arc::get_mut` (or a count of one) together with
/// the passed event as the sign that the memory may be written again. Devices drop their handle before the event passes.
pub struct HostMemory {
    ptr: NonNull<u8>,
    len: usize,
    free: Option<Free>,
}

impl HostMemory {
    /// Ordinary memory, fresh from the operating system. Pages that are never touched cost no RAM, and all of it goes
    /// back when the memory is dropped.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] where the system has no room for it.
    pub fn pageable(len: usize) -> Result<Self, DeviceError> {
        if len == 0 {
            return Ok(HostMemory { ptr: NonNull::<Page>::dangling().cast(), len, free: None });
        }
        let refused = || DeviceError::OutOfMemory { what: "host memory", asked: bytes(len), free: None, usage: None };
        // The allocator's zeroed memory would be touched on the way: for alignments above 16 it is cleared by hand.
        let mut map = MmapMut::map_anon(len).map_err(|_| refused())?;
        let ptr = NonNull::new(map.as_mut_ptr()).ok_or_else(refused)?;
        Ok(HostMemory { ptr, len, free: Some(Box::new(move |_, _| drop(map))) })
    }

    /// Memory that somebody else has made, such as page-locked memory of a driver; `free` is called once with the same
    /// two values.
    ///
    /// # Safety
    /// Until `free` is called, `ptr` must be valid for reads and writes of `len` initialised bytes from any thread, and
    /// nothing else may touch them. It must be aligned to [`PAGE_BYTES`].
    #[allow(unsafe_code, reason = "the caller vouches for the pointer")]
    pub unsafe fn from_raw_parts(
        ptr: NonNull<u8>,
        len: usize,
        free: Box<dyn FnOnce(*mut u8, usize) + Send + Sync>,
    ) -> Self {
        debug_assert!(ptr.as_ptr().addr().is_multiple_of(PAGE_BYTES), "host memory is page-aligned");
        HostMemory { ptr, len, free: Some(free) }
    }

    /// RAM that memory of this length takes, at most: whole pages.
    #[must_use]
    pub const fn ram_bytes(len: usize) -> usize {
        match len.checked_next_multiple_of(PAGE_BYTES) {
            Some(ram_bytes) => ram_bytes,
            None => usize::MAX,
        }
    }

    /// Size in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is not a single byte.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first byte, for those who write in disjoint parts. See *Sharing* above for what they owe the others.
    #[must_use]
    pub const fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// All bytes.
    #[must_use]
    #[allow(unsafe_code, reason = "memory made by hand becomes a slice")]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: valid and initialised for `len` bytes as long as `self` lives; who writes through `as_ptr` keeps
        // readers away, and safe writers need `&mut self`.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    /// All bytes, to be written.
    #[must_use]
    #[allow(unsafe_code, reason = "memory made by hand becomes a slice")]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` keeps everybody else away.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

/// Gives an empty memory an aligned address that is not null.
#[repr(align(4096))]
struct Page;

impl Drop for HostMemory {
    fn drop(&mut self) {
        if let Some(free) = self.free.take() {
            free(self.ptr.as_ptr(), self.len);
        }
    }
}

#[allow(unsafe_code, reason = "a raw pointer is neither Send nor Sync by itself")]
// SAFETY: it owns plain bytes, and `free` is Send.
unsafe impl Send for HostMemory {}
#[allow(unsafe_code, reason = "a raw pointer is neither Send nor Sync by itself")]
// SAFETY: a shared handle only reads; `free` is called by the last owner.
unsafe impl Sync for HostMemory {}

impl fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostMemory({} bytes)", self.len)
    }
}

/// Memory on a device, made once and fed again and again.
///
/// There is one handle to it: [`Device::enqueue_batch`](super::Device::enqueue_batch) takes it by `&mut`, consumers read it by `&`, and so
/// the compiler keeps a consumer who looks at [`host`](DeviceMemory::host) apart from the next batch. Whatever a stream
/// still does with it, it does through a handle of its own: it may be dropped, or forgotten, at any time.
pub struct DeviceMemory {
    len: usize,
    place: Place,
}

enum Place {
    Host(HostMemory),
    Device(Box<dyn Any + Send + Sync>),
}

impl DeviceMemory {
    /// Device memory that is host memory: a CPU's.
    #[must_use]
    pub fn from_host(memory: HostMemory) -> Self {
        DeviceMemory { len: memory.len(), place: Place::Host(memory) }
    }

    /// `len` bytes of device memory behind a handle that only the device understands.
    #[must_use]
    pub fn from_handle(len: usize, handle: Box<dyn Any + Send + Sync>) -> Self {
        DeviceMemory { len, place: Place::Device(handle) }
    }

    /// Size in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is not a single byte.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All bytes, where they lie in host memory that anybody may read (a CPU's).
    #[must_use]
    pub fn host(&self) -> Option<&[u8]> {
        match &self.place {
            Place::Host(memory) => Some(memory.as_slice()),
            Place::Device(_) => None,
        }
    }

    /// All bytes, to be written, where they lie in host memory that anybody may write (a CPU's).
    #[must_use]
    pub fn host_mut(&mut self) -> Option<&mut [u8]> {
        match &mut self.place {
            Place::Host(memory) => Some(memory.as_mut_slice()),
            Place::Device(_) => None,
        }
    }

    /// The device's own handle, if it is a `T`.
    #[must_use]
    pub fn handle<T: Any>(&self) -> Option<&T> {
        match &self.place {
            Place::Host(_) => None,
            Place::Device(handle) => handle.downcast_ref(),
        }
    }
}

impl fmt::Debug for DeviceMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceMemory({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use std::alloc::{Layout, alloc_zeroed, dealloc};

    use super::*;
    use crate::sync::{Arc, AtomicUsize, Ordering};

    #[test]
    fn memory_is_zeroed_aligned_and_writable() {
        for len in [0, 1, PAGE_BYTES - 1, PAGE_BYTES, 3 * PAGE_BYTES + 17] {
            let mut memory = HostMemory::pageable(len).expect("a few pages");
            assert_eq!((memory.len(), memory.is_empty()), (len, len == 0));
            assert!(memory.as_ptr().addr().is_multiple_of(PAGE_BYTES));
            assert!(memory.as_slice().iter().all(|&byte| byte == 0));
            memory.as_mut_slice().fill(7);
            assert!(memory.as_slice().iter().all(|&byte| byte == 7));
        }
    }

    #[test]
    fn memory_that_is_not_there_is_refused_with_its_size() {
        let error = HostMemory::pageable(usize::MAX / 2).expect_err("half of the address space");
        assert!(error.to_string().starts_with("out of host memory: "), "{error}");
        assert!(HostMemory::pageable(usize::MAX).is_err());
        assert_eq!(HostMemory::ram_bytes(1), PAGE_BYTES);
        assert_eq!(HostMemory::ram_bytes(usize::MAX), usize::MAX);
    }

    #[test]
    fn threads_write_disjoint_parts_of_one_memory() {
        let memory = HostMemory::pageable(64 * 1024).expect("64 KiB");
        std::thread::scope(|scope| {
            for part in 0..4usize {
                let memory = &memory;
                scope.spawn(move || {
                    #[allow(unsafe_code, reason = "what a slot's parts do")]
                    // SAFETY: part `part` of four is inside the memory.
                    let at = unsafe { memory.as_ptr().add(part * 16 * 1024) };
                    #[allow(unsafe_code, reason = "what a slot's parts do")]
                    // SAFETY: the parts are disjoint, and nobody reads before the scope ends.
                    unsafe {
                        at.write_bytes(part as u8 + 1, 16 * 1024);
                    }
                });
            }
        });
        for (part, bytes) in memory.as_slice().chunks(16 * 1024).enumerate() {
            assert!(bytes.iter().all(|&byte| byte == part as u8 + 1));
        }
    }

    #[test]
    fn memory_of_others_is_freed_by_them_once() {
        let freed = Arc::new(AtomicUsize::new(0));
        let layout = Layout::from_size_align(2 * PAGE_BYTES, PAGE_BYTES).expect("two pages");
        #[allow(unsafe_code, reason = "stands in for a driver")]
        // SAFETY: the layout is not empty.
        let ptr = NonNull::new(unsafe { alloc_zeroed(layout) }).expect("two pages");
        let count = Arc::clone(&freed);
        let free = move |ptr: *mut u8, len: usize| {
            count.fetch_add(len, Ordering::Relaxed);
            #[allow(unsafe_code, reason = "stands in for a driver")]
            // SAFETY: made with this layout, and freed here only.
            unsafe {
                dealloc(ptr, layout);
            }
        };
        #[allow(unsafe_code, reason = "stands in for a driver")]
        // SAFETY: two zeroed pages that nobody else knows.
        let memory = unsafe { HostMemory::from_raw_parts(ptr, 2 * PAGE_BYTES, Box::new(free)) };
        let shared = Arc::new(memory);
        drop(Arc::clone(&shared));
        assert_eq!(freed.load(Ordering::Relaxed), 0);
        drop(shared);
        assert_eq!(freed.load(Ordering::Relaxed), 2 * PAGE_BYTES);
    }

    #[test]
    fn device_memory_shows_its_bytes_only_where_they_are_in_host_memory() {
        let mut cpu = DeviceMemory::from_host(HostMemory::pageable(8).expect("a page"));
        cpu.host_mut().expect("host").fill(3);
        assert_eq!(cpu.host(), Some(&[3; 8][..]));
        assert!(cpu.handle::<u64>().is_none());
        let mut other = DeviceMemory::from_handle(8, Box::new(17u64));
        assert_eq!((other.len(), other.host(), other.handle::<u64>()), (8, None, Some(&17)));
        assert!(other.host_mut().is_none());
    }
}
