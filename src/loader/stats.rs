//! Statistics of a loader: work and waits by stage, latencies, memory by account, resize events.

use std::time::Duration;

use crate::budget::LedgerReport;
use crate::device::Utilization;
pub use crate::metrics::{Histogram, PipelineStats, SampleLatency, StageStats};
pub use crate::pipeline::{ResizeEvent, ResizeReason};
use crate::plan::PoolSizes;
use crate::units::SampleId;

/// A snapshot of a loader's work and memory.
///
/// ```no_run
/// # use feedstock::prelude::*;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let loader = Loader::builder(ImageFolder::open("train")?).transform(RandomResizedCrop::new(224)).build()?;
/// let stats = loader.stats();
/// println!("the consumer waited {:?}", stats.pipeline.consume.wait_in);
/// println!("99 % of images decoded within {:?}", stats.work_times.quantile(0.99));
/// println!("{} of {} held", stats.memory.held, stats.memory.limit);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Stats {
    /// Work and waits of each stage since the loader was built.
    pub pipeline: PipelineStats,
    /// Bytes held by each account.
    pub memory: LedgerReport,
    /// Number of times that a bad sample was met.
    pub bad_samples: u64,
    /// Utilization of the device, if it can tell.
    pub device: Option<Utilization>,
    /// Time to read a sample.
    pub read_times: Histogram,
    /// Time to decode and transform a sample.
    pub work_times: Histogram,
    /// Time that the consumer waited for a batch.
    pub wait_times: Histogram,
}

/// The longest time that the loader spent on one sample in any epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct SlowSample {
    /// The sample.
    pub id: SampleId,
    /// Its name in the source.
    pub name: String,
    /// Time to read it; zero if it came out of the cache.
    pub read: Duration,
    /// Time to decode and transform it.
    pub work: Duration,
}

/// The current size of a loader's runs, and the latest changes of size under memory pressure.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct GovernorLog {
    /// Level of the governor: 0 is the plan, each further one halves what circulates.
    pub level: u32,
    /// Sizes in effect. After a step down they apply once the consumer and the workers release what they hold.
    pub now: PoolSizes,
    /// Number of resize events since the loader was built.
    pub made: u64,
    /// The latest of them (up to 64), oldest first.
    pub latest: Vec<ResizeEvent>,
}
