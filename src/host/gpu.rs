//! Owns what NVIDIA's management library (NVML) says of a GPU: its link to the host, and how busy it is, looked at in the
//! background.
//! It must never be needed: where the library is missing, a sentence says so and everything else goes on.

use std::ffi::OsStr;
use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

use crate::sync::{Arc, Condvar, Mutex, PoisonError, lock, spawn};

/// How often the GPU is asked how busy it is. Its own figure is a mean over about as long.
const EVERY: Duration = Duration::from_millis(200);
/// The names of the library: drivers bring the first, the second is a developer's.
const LIBRARIES: [&str; 2] = ["libnvidia-ml.so.1", "libnvidia-ml.so"];

/// What NVML says of one GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GpuFacts {
    /// The driver's own version: `580.65.06`.
    pub driver: String,
    /// PCI Express generation of the link: now, and at most. It may be lower while the GPU is idle.
    pub pcie_generation: (u32, u32),
    /// Lanes of the link: now, and at most.
    pub pcie_width: (u32, u32),
}

impl GpuFacts {
    /// Asks about the GPU at this place on the bus, such as `0000:1b:00.0`.
    ///
    /// # Errors
    /// In one sentence: NVML is missing, or does not know the GPU.
    pub fn read(bus_id: &str) -> Result<Self, String> {
        let read = || {
            let nvml = open()?;
            let gpu = nvml.device_by_pci_bus_id(bus_id)?;
            Ok(GpuFacts {
                driver: nvml.sys_driver_version()?,
                pcie_generation: (gpu.current_pcie_link_gen()?, gpu.max_pcie_link_gen()?),
                pcie_width: (gpu.current_pcie_link_width()?, gpu.max_pcie_link_width()?),
            })
        };
        read().map_err(|error: NvmlError| format!("NVML says nothing of the GPU at {bus_id}: {error}"))
    }
}

fn open() -> Result<Nvml, NvmlError> {
    let [first, second] = LIBRARIES.map(|name| Nvml::builder().lib_path(OsStr::new(name)).init());
    first.or(second)
}

/// Asks a GPU again and again how busy it is, in a thread `feedstock-nvml`, until it is dropped.
#[derive(Debug)]
pub struct GpuWatch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<Seen>,
    over: Condvar,
}

#[derive(Debug, Default)]
struct Seen {
    over: bool,
    looks: u64,
    percent: u64,
}

impl GpuWatch {
    /// Begins to look at the GPU at this place on the bus.
    ///
    /// # Errors
    /// In one sentence: NVML is missing, does not know the GPU, or the thread cannot be started.
    pub fn start(bus_id: &str) -> Result<Self, String> {
        let nvml = open().map_err(|error| format!("NVML is not there: {error}"))?;
        // Asked once here, so that what it does not know is told at once.
        let known = nvml.device_by_pci_bus_id(bus_id).and_then(|gpu| gpu.utilization_rates());
        known.map_err(|error| format!("NVML says nothing of the GPU at {bus_id}: {error}"))?;
        let bus_id = bus_id.to_owned();
        Self::watch(move || {
            let rates = nvml.device_by_pci_bus_id(bus_id.as_str()).and_then(|gpu| gpu.utilization_rates());
            rates.ok().map(|rates| rates.gpu)
        })
        .map_err(|error| format!("the thread that asks NVML cannot be started: {error}"))
    }

    fn watch(mut look: impl FnMut() -> Option<u32> + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = spawn("feedstock-nvml", move || {
            let mut state = lock(&theirs.state);
            while !state.over {
                state = theirs.over.wait_timeout(state, EVERY).unwrap_or_else(PoisonError::into_inner).0;
                drop(state);
                let percent = look();
                state = lock(&theirs.state);
                if let Some(percent) = percent {
                    state.looks += 1;
                    state.percent += u64::from(percent.min(100));
                }
            }
        })?;
        Ok(GpuWatch { shared, thread: Some(thread) })
    }

    /// Share of the time so far in which some kernel was running, `0..=1`; `None` before the first look.
    #[must_use]
    pub fn busy_share(&self) -> Option<f64> {
        let Seen { looks, percent, .. } = *lock(&self.shared.state);
        (looks > 0).then(|| percent as f64 / looks as f64 / 100.0)
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
    fn what_is_seen_is_averaged_and_the_thread_ends_at_once() {
        let mut looks = [Some(100), None, Some(50)].into_iter().cycle();
        let (told, tells) = crossbeam_channel::bounded(100);
        let watch = GpuWatch::watch(move || {
            let percent = looks.next().flatten();
            let _ = told.send(());
            percent
        });
        let watch = watch.expect("a thread");
        for _ in 0..4 {
            tells.recv_timeout(Duration::from_secs(60)).expect("it looks");
        }
        let share = watch.busy_share().expect("looked");
        assert!((0.5..=1.0).contains(&share), "{share}");
        drop(watch);
        assert!(tells.iter().count() <= 2, "it has ended");
    }

    #[test]
    fn where_there_is_no_such_gpu_a_sentence_says_so() {
        for told in [GpuFacts::read("ffff:ff:1f.7").map(drop), GpuWatch::start("ffff:ff:1f.7").map(drop)] {
            let sentence = told.expect_err("no such place on any bus");
            assert!(sentence.starts_with("NVML "), "{sentence}");
        }
    }
}
