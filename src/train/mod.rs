//! A small trainer for residual networks and a vision transformer. It reads batches through burn's `DataLoader` trait
//! and uses only the public API of this crate.
//!
//! ```no_run
//! use std::sync::atomic::AtomicBool;
//! use feedstock::train::{Cpu, TrainEvent, TrainContext, ModelKind, TrainConfig, TrainData, train};
//! use feedstock::{DType, ImageFolder, Loader, RamBudget, transform::{IMAGENET, RandomResizedCrop}};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let loader = Loader::builder(ImageFolder::open("train")?)
//!     .batch_size(64)
//!     .ram_budget("1G".parse::<RamBudget>()?)
//!     .transform(RandomResizedCrop::new(32).flip(0.5))
//!     .dtype(DType::F32)
//!     .normalize(IMAGENET)
//!     .build()?;
//!
//! let config = TrainConfig::new(ModelKind::Small, loader.classes().len(), 32);
//! let machine = TrainContext::<Cpu>::new(Default::default());
//! let data = TrainData::from_loaders(loader, None, &machine.device);
//! let outcome = train(&config, &data, machine, &AtomicBool::new(false), |event| {
//!     if let TrainEvent::Epoch(epoch) = event {
//!         println!("epoch {}: loss {:.3}", epoch.training.epoch, epoch.training.loss);
//!     }
//! })?;
//! println!("{:.0} images/s", outcome.report.images_per_s());
//! # Ok(())
//! # }
//! ```

pub mod checkpoint;
mod collective;
mod config;
mod data;
mod dry_run;
mod epoch;
mod error;
mod freeze;
mod gradients;
mod leak_detector;
mod memory;
mod memory_monitor;
mod metrics;
mod model;
mod names;
mod optimizer;
mod precision;
mod prune;
mod report;
mod run;
mod schedule;
mod state;
mod step;
mod trainer;

pub use checkpoint::CheckpointInfo;
pub use collective::{CollectiveError, Communicator, LostReason, ProcessGroup, Ranks};
pub use config::{Prune, TrainConfig};
pub use data::{ImageLoader, TrainData};
pub use error::{CheckpointError, OutOfMemory, TrainError};
pub use freeze::Freeze;
pub use leak_detector::{LEAK_ACCOUNTS_MAX, LeakDetector, LeakReport};
#[cfg(feature = "burn-cuda")]
pub use memory::GpuMeter;
pub use memory::{
    AllocRefused, AllocatorStats, Forecast, HeapMeter, MemoryAccount, MemoryMeter, MemorySample, MemorySaving, Phase,
    ProbeResult, forecast, memory_savings, micro_batch_within, probe,
};
pub use model::{ModelKind, Network, NetworkConfig, Pass};
pub use optimizer::OptimizerKind;
pub use precision::Precision;
pub use report::{EpochReport, MemoryReport, Progress, PruneReport, Score, TrainEvent, TrainReport};
pub use run::{Outcome, TrainContext, train};
pub use schedule::Schedule;
pub use step::Checkpointing;

/// Backend to train with on the CPU: burn's flex, with gradients.
pub type Cpu = burn::backend::Autodiff<burn::backend::Flex>;

/// Backend to train with on the CPU, with [`Checkpointing::Balanced`].
pub type CpuBalanced = burn::backend::Autodiff<burn::backend::Flex, Balanced>;

/// Checkpointing strategy of burn.
pub use burn::backend::autodiff::checkpoint::strategy::BalancedCheckpointing as Balanced;

/// Backend to train with on an NVIDIA GPU: burn's CUDA, with gradients.
#[cfg(feature = "burn-cuda")]
pub type Gpu = burn::backend::Autodiff<burn::backend::Cuda>;

/// Backend to train with on an NVIDIA GPU, with [`Checkpointing::Balanced`].
#[cfg(feature = "burn-cuda")]
pub type GpuBalanced = burn::backend::Autodiff<burn::backend::Cuda, Balanced>;

#[cfg(test)]
mod tests;
