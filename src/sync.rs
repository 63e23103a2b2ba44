//! Synchronization primitives, and the start of threads.
//!
//! Concurrent code (`budget/ledger.rs`, `pool/countdown.rs`) names its primitives through `crate::sync`, so that a test
//! can compile the same source against loom's.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use std::any::Any;
use std::io;
use std::thread::{Builder, JoinHandle};

/// Stack of every thread of the pipeline, in bytes. Decoders keep their tables on the heap; 512 KiB is several times
/// the deepest stack measured, and only touched pages count.
pub(crate) const STACK_BYTES: usize = 512 << 10;

/// Starts a named thread, as `top -H` and debuggers show it.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(body)
}

/// Message of a panic that was caught.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let message = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    message.unwrap_or("(no message)")
}

/// Locks a mutex even if a thread panicked while holding it: every critical section here leaves its data consistent.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
