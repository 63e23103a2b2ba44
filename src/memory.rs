//! Page-aligned host memory of fixed size: what slots, read buffers and scratch are made of. [`HostMemory::pageable`]
//! maps memory of its own; [`HostMemory::from_raw_parts`] takes memory over, such as a driver's page-locked memory.

use std::fmt;
use std::ptr::NonNull;

use memmap2::MmapMut;

use crate::units::ByteCount;

/// Alignment of host memory. Its size in RAM is a multiple of this.
pub(crate) const PAGE_BYTES: usize = 4096;

/// The operating system refused to map memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot map {asked} of host memory: lower the RAM budget, or free memory on this machine")]
#[non_exhaustive]
pub struct AllocError {
    /// Size of the mapping.
    pub asked: ByteCount,
}

type Free = Box<dyn FnOnce(*mut u8, usize) + Send + Sync>;

/// Host memory of fixed size, zeroed and page-aligned; page-locked where a device made it so. It owns its bytes.
///
/// Writing through `&HostMemory` takes [`as_ptr`](Self::as_ptr) and `unsafe`: the writer has to hold the only handle,
/// or keep every reader away until the last write is over.
pub struct HostMemory {
    ptr: NonNull<u8>,
    len: usize,
    free: Option<Free>,
}

impl HostMemory {
    /// Memory of no bytes, which takes no RAM.
    #[must_use]
    pub const fn empty() -> Self {
        HostMemory { ptr: NonNull::<Page>::dangling().cast(), len: 0, free: None }
    }

    /// Ordinary memory, fresh from the operating system. Pages that are never touched take no RAM, and all of it goes
    /// back to the system when the memory is dropped.
    ///
    /// # Errors
    /// [`AllocError`] if the system refuses the mapping.
    pub fn pageable(len: usize) -> Result<Self, AllocError> {
        if len == 0 {
            return Ok(HostMemory::empty());
        }
        // Not the allocator's zeroed memory: for alignments above 16 it is cleared by hand, which touches every page.
        let refused = AllocError { asked: ByteCount(len as u64) };
        let mut map = MmapMut::map_anon(len).map_err(|_| refused)?;
        let ptr = NonNull::new(map.as_mut_ptr()).ok_or(refused)?;
        Ok(HostMemory { ptr, len, free: Some(Box::new(move |_, _| drop(map))) })
    }

    /// Takes over memory that was made elsewhere, such as page-locked memory of a driver. `free` is called once, with
    /// the same two values.
    ///
    /// # Safety
    /// Until `free` is called, `ptr` must be valid for reads and writes of `len` initialized bytes from any thread, and
    /// nothing else may access them. It must be aligned to 4096 bytes.
    #[allow(unsafe_code, reason = "the caller vouches for the pointer")]
    pub unsafe fn from_raw_parts(
        ptr: NonNull<u8>,
        len: usize,
        free: Box<dyn FnOnce(*mut u8, usize) + Send + Sync>,
    ) -> Self {
        debug_assert!(ptr.as_ptr().addr().is_multiple_of(PAGE_BYTES), "host memory is page-aligned");
        HostMemory { ptr, len, free: Some(free) }
    }

    /// Size in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Returns true if the size is zero.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address of the first byte, for writers of disjoint parts.
    #[must_use]
    pub const fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// All bytes.
    #[must_use]
    #[allow(unsafe_code, reason = "memory made by hand becomes a slice")]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `ptr` is valid and initialized for `len` bytes as long as `self` lives. Safe writers need `&mut
        // self`; writing through `as_ptr` is unsafe, and its writer keeps readers away.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    /// All bytes, writable.
    #[must_use]
    #[allow(unsafe_code, reason = "memory made by hand becomes a slice")]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

/// Aligns the dangling pointer of an empty memory.
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
// SAFETY: safe code only reads through a shared handle, and `free` is called by the owner alone.
unsafe impl Sync for HostMemory {}

impl fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostMemory({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
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
    fn a_refused_mapping_names_its_size() {
        let error = HostMemory::pageable(usize::MAX / 2).expect_err("half of the address space");
        assert!(error.to_string().starts_with("cannot map "), "{error}");
        assert!(HostMemory::pageable(usize::MAX).is_err());
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
                    // SAFETY: the parts are disjoint, and nothing reads before the scope ends.
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
    fn foreign_memory_is_freed_once_by_its_own_function() {
        let freed = Arc::new(AtomicUsize::new(0));
        let (count, owner) = (Arc::clone(&freed), HostMemory::pageable(2 * PAGE_BYTES).expect("two pages"));
        let ptr = owner.ptr;
        let free = move |_: *mut u8, len: usize| {
            count.fetch_add(len, Ordering::Relaxed);
            drop(owner);
        };
        #[allow(unsafe_code, reason = "stands in for a driver")]
        // SAFETY: two zeroed pages that nothing else accesses, and that live until `free` is called.
        let memory = unsafe { HostMemory::from_raw_parts(ptr, 2 * PAGE_BYTES, Box::new(free)) };
        let shared = Arc::new(memory);
        drop(Arc::clone(&shared));
        assert_eq!(freed.load(Ordering::Relaxed), 0);
        drop(shared);
        assert_eq!(freed.load(Ordering::Relaxed), 2 * PAGE_BYTES);
    }
}
