//! Owns what the process's allocator is told about large blocks. It must never change how blocks are made or by whom.
//!
//! Format: mallopt(3).

/// Has the allocator give every large block (128 KiB or more) back to the system as soon as it is freed. True if it will.
///
/// The GNU allocator begins like that, but raises the size that it calls large, up to 32 MiB, whenever a larger block is
/// freed; from then on it keeps up to twice that in each thread's arena. Codecs take blocks of many megabytes, so that a
/// process comes to hold what no ledger knows of: up to 15 MiB beyond its plan were measured (`docs/BUDGET.md`).
///
/// To be called at the start of a program that has a budget to keep: the allocator's settings are not to be changed beside
/// other threads, so where there are any this does nothing, as on a system with another allocator.
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
        // SAFETY: this is its declaration in malloc.h. It touches the allocator's own state only, and whatever the numbers
        // are, they are checked there. It must not run beside other threads, which is seen to below.
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
