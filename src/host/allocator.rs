//! A setting of the C library's allocator for large blocks.
//!
//! Format: mallopt(3).

/// Makes the allocator return every large block (128 KiB or more) to the system as soon as it is freed. Returns true if
/// it will.
///
/// The GNU allocator starts like that, but raises the size that counts as large, up to 32 MiB, whenever a larger block
/// is freed; from then on it keeps up to twice that in each thread's arena. Codecs take blocks of many megabytes, so
/// the process would hold memory outside of the ledger: up to 15 MiB beyond its plan were measured (`docs/BUDGET.md`).
///
/// Call it at the start of a program that keeps a RAM budget: the allocator's settings must not be changed beside other
/// threads, so it does nothing if there are any, nor on a system with another allocator.
///
/// ```
/// let returns_large_blocks = feedstock::host::return_large_blocks();
/// ```
pub fn return_large_blocks() -> bool {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const M_MMAP_THRESHOLD: i32 = -3;
        const LARGE_BYTES: i32 = 128 << 10;
        #[allow(unsafe_code, reason = "a function of the C library is declared by hand")]
        // SAFETY: this is its declaration in malloc.h. It touches the allocator's own state only and checks both
        // numbers. It must not run beside other threads, which is checked below.
        unsafe extern "C" {
            safe fn mallopt(param: i32, value: i32) -> i32;
        }
        super::process_memory().threads == 1 && mallopt(M_MMAP_THRESHOLD, LARGE_BYTES) == 1
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    false
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::super::process_memory;

    #[test]
    fn beside_other_threads_it_does_nothing() {
        std::thread::scope(|scope| {
            scope.spawn(|| assert!(!super::return_large_blocks()));
        });
        assert!(process_memory().threads > 1, "the harness has threads of its own");
    }
}
