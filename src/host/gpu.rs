//! GPU facts from NVIDIA's management library (NVML): the link to the host, and utilization polled in the background.
//! The library is optional: without it the calls fail, and everything else goes on.

use std::ffi::OsStr;
use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

use crate::sync::{Arc, Condvar, Mutex, PoisonError, lock, spawn};

/// Interval between two polls. NVML's own figure is a mean over about as long.
const INTERVAL: Duration = Duration::from_millis(200);
/// Names of the library: drivers install the first, developer packages the second.
const LIBRARIES: [&str; 2] = ["libnvidia-ml.so.1", "libnvidia-ml.so"];

/// NVML, or a thread that polls it, is not available.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// The library is missing, or does not start.
    #[error("NVML cannot be loaded: {0}")]
    Library(NvmlError),
    /// The library does not answer for this GPU.
    #[error("NVML cannot read the GPU at {bus_id}: {cause}")]
    Gpu {
        /// PCI address of the GPU.
        bus_id: String,
        /// Reason.
        cause: NvmlError,
    },
    /// The polling thread cannot be started.
    #[error("the thread that polls NVML cannot be started: {0}")]
    Thread(io::Error),
}

/// Facts that NVML knows about one GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GpuFacts {
    /// Version of the driver: `580.65.06`.
    pub driver: String,
    /// PCI Express generation of the link: now, and at most. It may be lower while the GPU is idle.
    pub pcie_generation: (u32, u32),
    /// Lanes of the link: now, and at most.
    pub pcie_width: (u32, u32),
}

impl GpuFacts {
    /// Reads the facts of the GPU at a PCI address, such as `0000:1b:00.0`.
    ///
    /// # Errors
    /// [`GpuError`] if NVML is missing or does not know the GPU.
    pub fn read(bus_id: &str) -> Result<Self, GpuError> {
        let nvml = open()?;
        let read = || {
            let gpu = nvml.device_by_pci_bus_id(bus_id)?;
            Ok(GpuFacts {
                driver: nvml.sys_driver_version()?,
                pcie_generation: (gpu.current_pcie_link_gen()?, gpu.max_pcie_link_gen()?),
                pcie_width: (gpu.current_pcie_link_width()?, gpu.max_pcie_link_width()?),
            })
        };
        read().map_err(|cause| GpuError::Gpu { bus_id: bus_id.to_owned(), cause })
    }
}

fn open() -> Result<Nvml, GpuError> {
    let [first, second] = LIBRARIES.map(|name| Nvml::builder().lib_path(OsStr::new(name)).init());
    first.or(second).map_err(GpuError::Library)
}

/// Polls the utilization of a GPU in a thread `feedstock-nvml`, until it is dropped.
#[derive(Debug)]
pub struct GpuWatch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    over: Condvar,
}

#[derive(Debug, Default)]
struct State {
    over: bool,
    polls: u64,
    percent: u64,
}

impl GpuWatch {
    /// Starts polling the GPU at this PCI address.
    ///
    /// # Errors
    /// [`GpuError`] if NVML is missing, does not know the GPU, or the thread cannot be started.
    pub fn start(bus_id: &str) -> Result<Self, GpuError> {
        let (nvml, address) = (open()?, bus_id.to_owned());
        let poll = move || nvml.device_by_pci_bus_id(address.as_str())?.utilization_rates();
        // Polled once here, so that a failure is reported at once.
        poll().map_err(|cause| GpuError::Gpu { bus_id: bus_id.to_owned(), cause })?;
        Self::watch(move || poll().ok().map(|rates| rates.gpu)).map_err(GpuError::Thread)
    }

    fn watch(mut poll: impl FnMut() -> Option<u32> + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = spawn("feedstock-nvml", move || {
            let mut state = lock(&theirs.state);
            while !state.over {
                state = theirs.over.wait_timeout(state, INTERVAL).unwrap_or_else(PoisonError::into_inner).0;
                drop(state);
                let percent = poll();
                state = lock(&theirs.state);
                if let Some(percent) = percent {
                    state.polls += 1;
                    state.percent += u64::from(percent.min(100));
                }
            }
        })?;
        Ok(GpuWatch { shared, thread: Some(thread) })
    }

    /// Share of the time so far in which some kernel was running, `0..=1`; `None` before the first poll.
    #[must_use]
    pub fn busy_share(&self) -> Option<f64> {
        let State { polls, percent, .. } = *lock(&self.shared.state);
        (polls > 0).then(|| percent as f64 / polls as f64 / 100.0)
    }
}

impl Drop for GpuWatch {
    fn drop(&mut self) {
        lock(&self.shared.state).over = true;
        self.shared.over.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic was reported where it happened.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polls_are_averaged_and_the_thread_ends_at_once() {
        let mut polls = [Some(100), None, Some(50)].into_iter().cycle();
        let (told, tells) = crossbeam_channel::bounded(100);
        let watch = GpuWatch::watch(move || {
            let percent = polls.next().flatten();
            let _ = told.send(());
            percent
        });
        let watch = watch.expect("a thread");
        for _ in 0..4 {
            tells.recv_timeout(Duration::from_secs(60)).expect("it polls");
        }
        let share = watch.busy_share().expect("polled");
        assert!((0.5..=1.0).contains(&share), "{share}");
        drop(watch);
        assert!(tells.iter().count() <= 2, "it has ended");
    }

    #[test]
    fn a_missing_gpu_or_library_is_an_error() {
        for told in [GpuFacts::read("ffff:ff:1f.7").map(drop), GpuWatch::start("ffff:ff:1f.7").map(drop)] {
            let error = told.expect_err("no such address").to_string();
            assert!(error.starts_with("NVML cannot "), "{error}");
        }
    }
}
