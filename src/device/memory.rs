//! Handle of device memory.

use std::any::Any;
use std::fmt;

use crate::memory::HostMemory;

/// Memory on a device, made once and used for many batches.
///
/// There is one handle to it: [`Device::enqueue_batch`](super::Device::enqueue_batch) takes it by `&mut`, consumers
/// read it by `&`, and so the compiler keeps readers of [`host`](DeviceMemory::host) apart from the next batch. A
/// stream that still works on the memory holds it by a handle of its own: this one may be dropped, or forgotten, at any
/// time.
pub struct DeviceMemory {
    len: usize,
    storage: Storage,
}

enum Storage {
    Host(HostMemory),
    Device(Box<dyn Any + Send + Sync>),
}

impl DeviceMemory {
    /// Device memory of a CPU, which is host memory.
    #[must_use]
    pub fn from_host(memory: HostMemory) -> Self {
        DeviceMemory { len: memory.len(), storage: Storage::Host(memory) }
    }

    /// `len` bytes of device memory behind a handle of the device's own type.
    #[must_use]
    pub fn from_handle(len: usize, handle: Box<dyn Any + Send + Sync>) -> Self {
        DeviceMemory { len, storage: Storage::Device(handle) }
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

    /// All bytes, if this is host memory (a CPU's).
    #[must_use]
    pub fn host(&self) -> Option<&[u8]> {
        match &self.storage {
            Storage::Host(memory) => Some(memory.as_slice()),
            Storage::Device(_) => None,
        }
    }

    /// All bytes, writable, if this is host memory (a CPU's).
    #[must_use]
    pub fn host_mut(&mut self) -> Option<&mut [u8]> {
        match &mut self.storage {
            Storage::Host(memory) => Some(memory.as_mut_slice()),
            Storage::Device(_) => None,
        }
    }

    /// The device's own handle, if it is a `T`.
    #[must_use]
    pub fn handle<T: Any>(&self) -> Option<&T> {
        match &self.storage {
            Storage::Host(_) => None,
            Storage::Device(handle) => handle.downcast_ref(),
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
    use super::*;

    #[test]
    fn only_host_memory_shows_its_bytes() {
        let mut cpu = DeviceMemory::from_host(HostMemory::pageable(8).expect("a page"));
        cpu.host_mut().expect("host").fill(3);
        assert_eq!(cpu.host(), Some(&[3; 8][..]));
        assert!(cpu.handle::<u64>().is_none());
        let mut other = DeviceMemory::from_handle(8, Box::new(17u64));
        assert_eq!((other.len(), other.host(), other.handle::<u64>()), (8, None, Some(&17)));
        assert!(other.host_mut().is_none());
    }
}
