//! The small trainer: a residual network, learning from a loader through burn's own `DataLoader` trait. It uses the
//! crate's public face only, so whatever it does, a program of yours can do.
//!
//! Owns the training loop and what belongs to it: networks, schedule, validation, checkpoints.
//! It must never print, read an image, or know where a batch came from.
//!
//! ```no_run
//! use std::sync::atomic::AtomicBool;
//! use feedstock::train::{Cpu, Event, TrainConfig, TrainData, train};
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
//! let config = TrainConfig::new(loader.classes().len(), 32);
//! let device = Default::default();
//! let data = TrainData::<Cpu>::from_loaders(loader, None, &device);
//! let outcome = train(&config, &data, &device, &AtomicBool::new(false), |event| {
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
mod model;
mod norm;
mod report;
mod run;
mod schedule;

pub use checkpoint::CheckpointInfo;
pub use config::{OptimizerKind, TrainConfig};
pub use data::{ImageLoader, TrainData};
pub use error::TrainError;
pub use model::{ModelKind, ResNet, ResNetConfig};
pub use report::{EpochReport, Event, Progress, Score, TrainReport};
pub use run::{Outcome, train};
pub use schedule::Schedule;

/// The backend to train with on the CPU: burn's flex, with gradients.
pub type Cpu = burn::backend::Autodiff<burn::backend::Flex>;

/// The backend to train with on an NVIDIA GPU: burn's CUDA, with gradients.
#[cfg(feature = "burn-cuda")]
pub type Gpu = burn::backend::Autodiff<burn::backend::Cuda>;
