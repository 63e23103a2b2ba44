//! A data loader that keeps the memory budget it is given: images from folders and shards, decoded and augmented on the
//! CPU, handed over in batches whose memory is used again and again, all within a number of bytes that its user named.
//!
//! Start with [`Loader::builder`]. The README shows it in a trainer; `docs/ARCHITECTURE.md` follows a sample through
//! the code; `docs/BUDGET.md` explains the byte equation that [`Plan::explain`] prints.
//!
//! | To | look at |
//! |---|---|
//! | open a folder, tars, Parquet | [`source::open`] |
//! | read from other storage | [`Source`], and [`source::conformance`] for its tests |
//! | mix, weigh, balance, divide | [`source::Concat`], [`Sampling`], [`source::Subset`] |
//! | make shards | [`pack`] |
//! | join, mix, weigh or divide data | [`source::Concat`], [`source::Subset`], [`Sampling`] |
//! | cut and augment otherwise | [`transform::Transform`] |
//! | hand batches to burn | `adapt::burn::BurnLoader` (feature `burn`) |
//! | see where the bytes are | [`Loader::stats`], [`budget::LedgerReport`] |
//! | make a single sample, as for inference | [`Preprocessor`] |
//! | make tar shards of a data set, and check them | [`pack`] |
//! | resume in mid-epoch | [`Epoch::state`], [`Loader::resume`] |

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
mod metrics;
pub mod pack;
mod pipeline;
pub mod plan;
mod pool;
mod preprocess;
mod preprocessor;
mod sample_error;
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
pub use budget::{CpuBudget, ParseCpuBudgetError, ParseRamBudgetError, RamBudget};
pub use error::{Error, ErrorKind};
pub use host::DistributedEnv;
pub use loader::{Epoch, Loader, LoaderBuilder, Moves, Sampling, SlowSample, State, Stats, ram_budget_here};
pub use metrics::{Histogram, Journey, PipelineStats, StageStats};
pub use pipeline::{ResizeEvent, ResizeReason};
pub use plan::Plan;
pub use preprocessor::Preprocessor;
pub use sample_error::{SampleError, SampleErrorKind, Stage};
pub use source::{ImageFolder, Source};
pub use tensor::{DType, Layout};
pub use units::{ByteCount, KeyedRng, ParseByteCountError, SampleId, Seed, mix64};

/// The documents' examples are compiled, so that they cannot rot.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;

#[cfg(doctest)]
#[doc = include_str!("../docs/DATA.md")]
pub struct Data;
