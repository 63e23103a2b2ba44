//! Parallel map over a list, for scans.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::thread;

use crate::sync::{AtomicUsize, Mutex, Ordering, STACK_BYTES, lock};

/// Calls `work` for each index below `count` on up to `threads` threads. Returns the results in order, or the error
/// with the lowest index.
pub(super) fn try_map<T: Send, E: Send>(
    count: usize,
    threads: usize,
    work: impl Fn(usize) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(BTreeMap::new());
    let run = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return;
            }
            let result = work(index);
            if result.is_err() {
                // The rest is not needed; lower indices are in progress.
                next.fetch_max(count, Ordering::Relaxed);
            }
            lock(&results).insert(index, result);
        }
    };
    thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads.min(count))
            .map_while(|number| {
                let builder = thread::Builder::new().name(format!("feed-scan-{number}")).stack_size(STACK_BYTES);
                // If the system grants no more threads, the existing ones do the work.
                builder.spawn_scoped(scope, run).ok()
            })
            .collect();
        run();
        helpers.into_iter().for_each(|helper| helper.join().unwrap_or_else(|panic| resume_unwind(panic)));
    });
    std::mem::take(&mut *lock(&results)).into_values().collect()
}
