//! Packing of any [`Source`](crate::Source) into tar shards in the WebDataset convention, and verification of packed
//! sets.
//!
//! A set is a folder of `shard-00000.tar`, `shard-00001.tar` and so on, and `manifest.json`. Each sample is two members
//! of a shard: `KEY.EXT`, the image, and `KEY.cls`, the index of its class in the manifest's list, as decimal text. A
//! key consists of the sample's position in the packed order and its name. The bytes of the shards depend on the
//! source, the settings and the seed alone: not on the number of workers, the budget, or interruptions.
//!
//! The assignment of samples to shards is known before the first image is read. Therefore an interrupted run can be
//! continued, and several jobs can share the work ([`Partition`]). No sample is held without a memory reservation, and
//! no incomplete shard is left under its final name.
//!
//! ```
//! use feedstock::pack::{Settings, VerifySettings, pack, verify};
//! use feedstock::source::MemorySource;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let gif = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\xff\x80\x00\x00\x00\x00,\
//! # \x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;";
//! # let folder = tempfile::tempdir()?;
//! # let folder = folder.path();
//! let source = MemorySource::new(vec!["dot".to_owned()], vec![(gif.to_vec(), 0)])?;
//! let report = pack(&source, &Settings::default(), folder, |_| (), &|| false)?;
//! assert_eq!((report.samples, report.shards, report.skipped_count), (1, 1, 0));
//! let found = verify(folder, &VerifySettings::default(), |_| (), &|| false)?;
//! assert!(found.is_valid());
//! # Ok(())
//! # }
//! ```

mod assignment;
mod atomic_file;
mod budget;
mod checkpoint;
mod convert;
mod error;
mod manifest;
mod run;
mod settings;
mod shard;
mod shard_check;
#[cfg(test)]
mod tests;
mod verify;
#[cfg(test)]
mod verify_tests;
mod workers;

pub use checkpoint::Skipped;
pub use error::{InvalidFile, PackError};
pub use run::{Progress, Report, pack};
pub use settings::{Partition, SHARDS_MAX, SKIPPED_NAMES_MAX, Settings, Treatment};
pub use verify::{Problem, ProblemKind, Verification, VerifyProgress, VerifySettings, verify};
