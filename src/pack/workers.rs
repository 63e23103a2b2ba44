//! Worker threads of a packing or a verification.

use std::thread;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, unbounded};

use super::error::PackError;

/// Interval of progress reports and of checks for a stop request.
const TICK: Duration = Duration::from_millis(50);

/// Runs `work` on `count` threads, and calls `tick` about twenty times a second on the calling thread, and once at the
/// end. After an error, `cancel` is called, which must make the other workers end.
///
/// # Errors
/// The first error of a worker.
pub(super) fn run_workers(
    name: &str,
    count: usize,
    work: &(dyn Fn() -> Result<(), PackError> + Sync),
    cancel: &dyn Fn(),
    tick: &dyn Fn(),
) -> Result<(), PackError> {
    thread::scope(|scope| {
        let (results, ended) = unbounded();
        let mut first = Ok(());
        let mut threads = Vec::new();
        for number in 0..count {
            let results = results.clone();
            let builder = thread::Builder::new().name(format!("feedstock-{name}-{number}"));
            // The receiver lives longer than the workers.
            match builder.spawn_scoped(scope, move || drop(results.send(work()))) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    first = Err(PackError::Thread(error));
                    cancel();
                    break;
                }
            }
        }
        drop(results);
        loop {
            match ended.recv_timeout(TICK) {
                Ok(Err(error)) => {
                    first = first.and(Err(error));
                    cancel();
                }
                Ok(Ok(())) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            tick();
        }
        for thread in threads {
            if thread.join().is_err() {
                first = first.and(Err(PackError::WorkerDied));
            }
        }
        tick();
        first
    })
}
