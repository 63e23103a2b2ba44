//! The small trainer: a residual network, learning from a loader through burn's own `DataLoader` trait. It uses the
//! crate's public face only, so whatever it does, a program of yours can do.
//!
//! Owns the training loop and what belongs to it: networks, schedule, validation, checkpoints.
//! It must never print, read an image, or know where a batch came from.
//!
//! ```no_run
//! use std::sync::atomic::AtomicBool;
//! use feedstock::train::{Cpu, Event, Machine, ModelKind, TrainConfig, TrainData, train};
//! use feedstock::{DType, ImageFolder, Loader, RamBudget, transform::{IMAGENET, RandomResizedCrop}};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let loader = Loader::builder(ImageFolder::open("train")?)
//!     .batch_size(64)
//!     .ram_budget("1G".parse::<RamBudget>()?)
//!     .transform(RandomResizedCrop::new(32).flip(0.5))
//!     .output(DType::F32)
//!     .normalize(IMAGENET)
//!     .build()?;
//!
//! let config = TrainConfig::new(ModelKind::Small, loader.classes().len(), 32);
//! let machine = Machine::<Cpu>::new(Default::default());
//! let data = TrainData::from_loaders(loader, None, &machine.device);
//! let outcome = train(&config, &data, machine, &AtomicBool::new(false), |event| {
//!     if let Event::Epoch(epoch) = event {
//!         println!("epoch {}: loss {:.3}", epoch.training.epoch, epoch.training.loss);
//!     }
//! })?;
//! println!("{:.0} images/s", outcome.report.images_per_s());
//! # Ok(())
//! # }
//! ```

pub mod checkpoint;
mod config;
mod data;
mod error;
mod freeze;
mod gauge;
mod gradients;
mod memory;
mod model;
mod optimizer;
mod paper;
mod peers;
mod precision;
mod prune;
mod report;
mod run;
mod schedule;
mod step;
mod tally;

pub use checkpoint::CheckpointInfo;
pub use config::{Prune, TrainConfig};
pub use data::{ImageLoader, TrainData};
pub use error::{OutOfMemory, TrainError};
pub use freeze::Freeze;
#[cfg(feature = "burn-cuda")]
pub use memory::GpuMeter;
pub use memory::{
    Forecast, HeapMeter, Held, Lever, MemoryAccount, Meter, Phase, Reading, Refused, Tried, forecast, levers,
    micro_batch_within, probe,
};
pub use model::{ModelKind, Network, NetworkConfig, Pass};
pub use optimizer::OptimizerKind;
pub use peers::{Peers, PeersError, Team};
pub use precision::Precision;
pub use report::{EpochReport, Event, MemoryReport, Progress, PruneReport, Score, TrainReport};
pub use run::{Machine, Outcome, train};
pub use schedule::Schedule;
pub use step::Checkpointing;

/// The backend to train with on the CPU: burn's flex, with gradients.
pub type Cpu = burn::backend::Autodiff<burn::backend::Flex>;

/// The same, where what is cheap is computed again on the way back: [`Checkpointing::Balanced`].
pub type CpuBalanced = burn::backend::Autodiff<burn::backend::Flex, Balanced>;

/// burn's own choice of what to compute again.
pub use burn::backend::autodiff::checkpoint::strategy::BalancedCheckpointing as Balanced;

/// The backend to train with on an NVIDIA GPU: burn's CUDA, with gradients.
#[cfg(feature = "burn-cuda")]
pub type Gpu = burn::backend::Autodiff<burn::backend::Cuda>;

/// The same, with [`Checkpointing::Balanced`].
#[cfg(feature = "burn-cuda")]
pub type GpuBalanced = burn::backend::Autodiff<burn::backend::Cuda, Balanced>;
