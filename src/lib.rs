//! A data loader for training that keeps the memory budget it is given.
//!
//! It reads images from folders, tar shards and Parquet files, decodes and augments them on the CPU, and returns
//! batches in reused memory, all within a number of bytes that the user names. The same seed gives the same batches,
//! byte for byte, at any budget and any number of workers.
//!
//! ```no_run
//! use feedstock::prelude::*;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let loader = Loader::builder(ImageFolder::open("train")?)
//!     .batch_size(256)
//!     .ram_budget("24G")
//!     .transform(RandomResizedCrop::new(224).flip(0.5))
//!     .build()?; // an error with the byte table if the budget is too small
//!
//! for batch in loader.epoch(0) {
//!     let batch = batch?;
//!     println!("{:?}, labels {:?}", batch.shape(), batch.labels());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Where to look
//!
//! | Task | Item |
//! |---|---|
//! | build a loader | [`Loader::builder`], [`LoaderBuilder`] |
//! | open a folder, tar shards, Parquet files | [`source::open`] |
//! | read from other storage | [`Source`], and [`source::conformance`] to test it |
//! | join, weigh, balance or divide data | [`source::Concat`], [`Sampling`], [`source::Subset`] |
//! | crop and augment | [`transform`] |
//! | hand batches to burn | `adapt::burn::BurnLoader` (feature `burn`) |
//! | see where bytes and time go | [`Plan::explain`], [`Loader::stats`], [`budget::LedgerReport`] |
//! | preprocess a single sample, as for inference | [`Preprocessor`] |
//! | pack a data set into tar shards, and verify them | `pack` (feature `pack`) |
//! | resume within an epoch | [`Epoch::state`], [`Loader::resume`] |
//!
//! `docs/ARCHITECTURE.md` follows a sample through the code; `docs/BUDGET.md` explains the byte equation behind
//! [`Plan::explain`].
//!
//! # Features
//!
//! | Feature | Default | Adds |
//! |---|---|---|
//! | `turbo` | yes | JPEG through libjpeg-turbo, built from source (cmake, nasm); zune-jpeg otherwise |
//! | `cuda` | yes | NVIDIA GPUs, through the driver found at run time |
//! | `parquet` | no | Parquet files as the Hugging Face hub stores them |
//! | `store` | no | objects in S3, GCS and Azure and over HTTP, with retries and a cache on disk |
//! | `pack` | no | packing of a source into tar shards, and their verification |
//! | `serde` | no | `Serialize` for plans, statistics and reports, and `Deserialize` for settings and [`State`] |
//! | `burn` | no | the adapter to burn's `DataLoader` |
//! | `burn-cuda` | no | batches as tensors of burn's CUDA backend, without a copy |
//! | `train` | no | a small trainer on burn |
//! | `cli` | no | the `feedstock` program |

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "burn")]
pub mod adapt;
mod bad_samples;
mod batch;
mod blocks;
pub mod budget;
pub mod decode;
pub mod device;
mod error;
pub mod host;
mod loader;
mod memory;
mod metrics;
#[cfg(feature = "pack")]
pub mod pack;
mod pipeline;
pub mod plan;
mod pool;
mod preprocess;
mod preprocessor;
pub mod rng;
mod sample_error;
#[doc(hidden)]
pub mod sampler;
#[cfg(test)]
#[path = "../tests/common/skip.rs"]
mod skip;
pub mod source;
mod survey;
mod sync;
pub mod tensor;
#[cfg(feature = "train")]
pub mod train;
pub mod transform;
mod units;

pub use bad_samples::{BAD_SAMPLE_NAMES_MAX, BadSample, DamagedSample, OnBadSample};
pub use batch::{Batch, BatchSample};
pub use budget::{CpuBudget, RamBudget};
pub use error::{Error, ErrorKind};
pub use loader::{Epoch, Loader, LoaderBuilder, ResolvedBudget, Sampling, State, stats, stats::Stats};
pub use plan::Plan;
pub use preprocessor::Preprocessor;
pub use sample_error::{SampleError, SampleErrorKind, Stage};
pub use source::{ImageFolder, Source};
pub use tensor::{DType, Layout};
pub use units::{ByteCount, ParseError, SampleId};

/// The names that most programs need: `use feedstock::prelude::*`.
pub mod prelude {
    pub use crate::transform::{RandomResizedCrop, Resize, ResizeCenterCrop, Transform};
    pub use crate::{
        Batch, ByteCount, CpuBudget, DType, Error, ErrorKind, ImageFolder, Layout, Loader, LoaderBuilder, OnBadSample,
        RamBudget, SampleId, Sampling, Source, State,
    };
}

// The loader crosses threads; so do its batches and errors.
const _: () = {
    const fn is_send<T: Send>() {}
    const fn is_sync<T: Sync>() {}
    is_send::<Epoch>();
    is_send::<Batch>();
    is_sync::<Batch>();
    is_send::<Loader>();
    is_sync::<Loader>();
    is_send::<LoaderBuilder>();
    is_sync::<LoaderBuilder>();
    is_send::<Error>();
    is_sync::<Error>();
};

/// The documents, whose examples are compiled and run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;

#[cfg(doctest)]
#[doc = include_str!("../docs/DATA.md")]
pub struct Data;
