//! The thread that samples a run's counters for its timeline: RAM by account, queues, the device.

use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};

use feedstock::host::process_memory;

use super::super::failure::Failure;
use super::super::gpu;
use super::Loaders;
use super::trace::Trace;

/// Sampling interval: rare enough that the run is not slower.
const EVERY: Duration = Duration::from_millis(20);
/// The process's memory is sampled once in this many intervals, since it costs reading a file.
const RARELY: u32 = 5;

/// Samples until it is dropped.
pub(super) struct Sampler {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Sampler {
    pub(super) fn start(trace: Trace, loaders: Loaders) -> Result<Sampler, Failure> {
        let (stop, stopped) = bounded(1);
        let thread = std::thread::Builder::new().name("feedstock-sampler".to_owned()).spawn(move || {
            let mut samples = 0u32;
            while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                loaders.iter().for_each(|(name, loader)| sample(&trace, name, loader));
                if samples.is_multiple_of(RARELY) {
                    trace.counter("resident memory", [("bytes", process_memory().rss.0)].into_iter());
                }
                samples = samples.wrapping_add(1);
            }
        });
        let thread =
            thread.map_err(|error| Failure::Io(format!("cannot start a thread to sample counters: {error}")))?;
        Ok(Sampler { stop: Some(stop), thread: Some(thread) })
    }
}

fn sample(trace: &Trace, name: &str, loader: &feedstock::Loader) {
    let stats = loader.stats();
    let accounts = stats.memory.accounts.iter().map(|account| (account.kind.name(), account.held.0));
    trace.counter(&format!("{name}: RAM by account"), accounts);
    let pipeline = stats.pipeline;
    let queues = [
        ("read", pipeline.read.queued),
        ("work", pipeline.work.queued),
        ("transfer", pipeline.transfer.queued),
        ("consumer", pipeline.consume.queued),
    ];
    trace.counter(&format!("{name}: queues"), queues.into_iter());
    if let Some(held) = gpu::held(&**loader.device()) {
        trace.counter("device memory", [("loader", held.0)].into_iter());
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed, and does not affect the run.
            let _ = thread.join();
        }
    }
}
