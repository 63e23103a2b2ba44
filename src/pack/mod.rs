//! Owns packed sets: tar shards in the WebDataset convention made of any [`Source`], and their verification. It must
//! never hold a sample for which no RAM is reserved, nor leave a shard in place that is not whole.
//!
//! A set is a folder of `shard-00000.tar`, `shard-00001.tar` and so on, and `manifest.json`. Each sample is two members
//! of a shard: `KEY.EXT`, the picture, and `KEY.cls`, the place of its class in the manifest's list, as decimal text. A
//! key is the sample's place in the packed order and what its name says of it. The shards are, to the byte, a function
//! of the source, the settings and the seed: not of the number of workers, of the budget, nor of how often a run was
//! broken off.
//!
//! What goes into which shard is known before the first picture is read. So a run that was broken off goes on where it
//! was, and several jobs can share the work ([`ShardOf`]).
//!
//! ```
//! use feedstock::pack::{Settings, VerifySettings, pack, verify};
//! use feedstock::source::MemorySource;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let gif = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\xff\x80\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;";
//! # let folder = tempfile::tempdir()?;
//! # let folder = folder.path();
//! let source = MemorySource::new(vec!["dot".to_owned()], vec![(gif.to_vec(), 0)])?;
//! let report = pack(&source, &Settings::default(), folder, |_| (), &|| false)?;
//! assert_eq!((report.samples, report.shards, report.skipped_count), (1, 1, 0));
//! let found = verify(folder, &VerifySettings::default(), |_| (), &|| false)?;
//! assert!(found.is_sound());
//! # Ok(())
//! # }
//! ```

mod budget;
mod cut;
mod error;
mod manifest;
mod member;
mod record;
mod run;
mod sample;
mod shard;
#[cfg(test)]
mod tests;
mod verify;
#[cfg(test)]
mod verify_tests;

pub use error::PackError;
pub use record::Skipped;
pub use run::{Progress, Report};
pub use verify::{Fault, Problem, Verification, VerifyProgress, VerifySettings, verify};

use std::path::Path;

use crate::rng::Seed;
use crate::source::Source;
use crate::tensor::SIDE_MAX;
use crate::{ByteCount, RamBudget};

/// Most names of samples that were not packed that a report and a manifest list; the number is always told.
pub const SKIPPED_NAMES_MAX: usize = 1000;
/// Most shards of a set: their numbers have five digits.
pub const SHARDS_MAX: u64 = 100_000;

/// What is done to a picture on its way into a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// Its bytes are copied as they are stored.
    Stored,
    /// It is shrunk so that its short side has `pixels`, turned upright, and encoded as JPEG (4:4:4) of this quality
    /// (1..=100). A picture that is small enough already is copied as it is stored.
    ShortSide {
        /// Pixels of the short side.
        pixels: u32,
        /// Quality of the JPEG.
        quality: u8,
    },
    /// It is decoded, turned upright, and stored as a binary PPM compressed with zstd (`KEY.ppm.zst`).
    Decoded {
        /// The short side is scaled to so many pixels and the central square cut out; none: at full size.
        size: Option<u32>,
        /// Level of the compression, -50..=-1 or 1..=19. Pixels hardly get smaller: negative ones come back fastest.
        level: i32,
    },
}

/// Which of several jobs this is: it packs the shards whose number modulo `of` is `index`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardOf {
    /// Less than `of`.
    pub index: u64,
    /// How many jobs there are.
    pub of: u64,
}

/// How a set is packed.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// What is done to a picture. Default: [`Treatment::Stored`].
    pub treatment: Treatment,
    /// Where a shard ends: before the sample that would make it larger, by the sizes that the index knows (decoded
    /// sizes, for [`Treatment::Decoded`]). A sample that is larger is alone in its shard. Default: 1 GiB.
    pub shard_size: ByteCount,
    /// Whether samples stay in the order of the source. Default: false, they are shuffled.
    pub in_order: bool,
    /// What they are shuffled by. Default: 0.
    pub seed: Seed,
    /// Which of several jobs this is. Default: the only one.
    pub shard_of: ShardOf,
    /// Whether shards that are there already are hashed, and not only measured. Default: false.
    pub check: bool,
    /// The most RAM for the index, samples and pictures. Default: [`RamBudget::Auto`].
    pub ram_budget: RamBudget,
    /// The most threads that pack; none: as many as there are cores.
    pub workers: Option<usize>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            treatment: Treatment::Stored,
            shard_size: ByteCount(1 << 30),
            in_order: false,
            seed: Seed(0),
            shard_of: ShardOf { index: 0, of: 1 },
            check: false,
            ram_budget: RamBudget::Auto,
            workers: None,
        }
    }
}

impl Settings {
    fn check_ranges(&self) -> Result<(), PackError> {
        let refuse = |what: String| Err(PackError::Config(what));
        let side = |what: &str, pixels: u32| match pixels {
            1..=SIDE_MAX => Ok(()),
            _ => refuse(format!("{what} is {pixels}: 1 to {SIDE_MAX} pixels are possible")),
        };
        match self.treatment {
            Treatment::Stored => {}
            Treatment::ShortSide { pixels, quality } => {
                side("the short side", pixels)?;
                if !(1..=100).contains(&quality) {
                    return refuse(format!("the quality is {quality}: 1 to 100 are possible"));
                }
            }
            Treatment::Decoded { size, level } => {
                size.map_or(Ok(()), |size| side("the size", size))?;
                let (least, most) = sample::LEVELS;
                if !(least..=most).contains(&level) || level == 0 {
                    return refuse(format!("the level is {level}: {least} to -1 and 1 to {most} are possible"));
                }
            }
        }
        let ShardOf { index, of } = self.shard_of;
        if index >= of {
            return refuse(format!("job {index} of {of} does not exist: jobs go from 0, and there is one at least"));
        }
        match (self.shard_size, self.workers) {
            (ByteCount(0), _) => refuse("the shard size is 0: a shard holds something".to_owned()),
            (_, Some(0)) => refuse("workers is 0: one at least packs".to_owned()),
            _ => Ok(()),
        }
    }
}

/// Packs a source into tar shards at `dst`, or goes on where an earlier run with the same settings was broken off.
///
/// `progress` is called about twenty times a second on the calling thread, and once at the end. `stop` is asked as
/// often; once it is true, the run ends soon: what is whole stays, and the report says so. Samples that cannot be read
/// or are no pictures are left out and listed.
///
/// # Errors
/// [`PackError`], with the path and the numbers. What was packed by then stays, and another run goes on from there.
pub fn pack(
    source: &dyn Source,
    settings: &Settings,
    dst: &Path,
    progress: impl Fn(&Progress),
    stop: &dyn Fn() -> bool,
) -> Result<Report, PackError> {
    settings.check_ranges()?;
    run::run(source, settings, dst, &progress, stop)
}
