//! Settings of a packing, and their ranges.

use serde::Serialize;

use super::error::PackError;
use crate::rng::Seed;
use crate::tensor::SIDE_MAX;
use crate::{ByteCount, RamBudget};

/// Maximum number of skipped samples that a report and a manifest list by name. The count is always complete.
pub const SKIPPED_NAMES_MAX: usize = 1000;
/// Maximum number of shards of a set: shard numbers have five digits.
pub const SHARDS_MAX: u64 = 100_000;
/// Range of compression levels. Higher levels need a larger window than a reader should have to hold, lower ones
/// compress nothing.
pub(super) const LEVELS: (i32, i32) = (-50, 19);

/// Conversion of an image on its way into a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "treatment", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Treatment {
    /// Copies the stored bytes.
    Stored,
    /// Shrinks the image to a short side of `pixels`, turns it upright, and encodes it as JPEG (4:4:4). Images that are
    /// small enough are copied.
    ShortSide {
        /// Length of the short side, pixels.
        #[serde(rename = "short_side")]
        pixels: u32,
        /// JPEG quality, 1..=100.
        quality: u8,
    },
    /// Decodes the image, turns it upright, and stores it as a binary PPM compressed with zstd (`KEY.ppm.zst`).
    Decoded {
        /// Scales the short side to this length, and takes the central square. `None` keeps the full size.
        size: Option<u32>,
        /// Compression level, -50..=-1 or 1..=19. Pixels hardly compress; negative levels decompress fastest.
        level: i32,
    },
}

/// Partition of a packing that is shared by several jobs: the shards whose number modulo `count` is `index`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Index of this job, less than `count`.
    pub index: u64,
    /// Number of jobs.
    pub count: u64,
}

/// Settings of [`pack`](super::pack).
///
/// ```
/// use feedstock::pack::{Settings, Treatment};
///
/// let settings = Settings { treatment: Treatment::ShortSide { pixels: 256, quality: 90 }, ..Settings::default() };
/// assert_eq!(settings.shard_size, "1G".parse()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Conversion of the images. Default: [`Treatment::Stored`].
    pub treatment: Treatment,
    /// Maximum size of a shard, by the sizes in the index (decoded sizes for [`Treatment::Decoded`]). A larger sample
    /// has a shard of its own. Default: 1 GiB.
    pub shard_size: ByteCount,
    /// Keeps the order of the source. Default: false, samples are shuffled.
    pub in_order: bool,
    /// Seed of the shuffle. Default: 0.
    pub seed: Seed,
    /// Partition of this job. Default: all shards.
    pub partition: Partition,
    /// Hashes existing shards instead of comparing only their size. Default: false.
    pub check: bool,
    /// RAM budget for index, samples and images. Default: [`RamBudget::Auto`].
    pub ram_budget: RamBudget,
    /// Maximum number of worker threads. Default: `None`, the number of cores.
    pub workers: Option<usize>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            treatment: Treatment::Stored,
            shard_size: ByteCount(1 << 30),
            in_order: false,
            seed: Seed(0),
            partition: Partition { index: 0, count: 1 },
            check: false,
            ram_budget: RamBudget::Auto,
            workers: None,
        }
    }
}

impl Settings {
    /// # Errors
    /// [`PackError::Config`] for the first setting out of its range.
    pub(super) fn check_ranges(&self) -> Result<(), PackError> {
        let refuse = |message: String| Err(PackError::Config(message));
        let side = |name: &str, pixels: u32| match pixels {
            1..=SIDE_MAX => Ok(()),
            _ => refuse(format!("{name} is {pixels}: expected 1 to {SIDE_MAX} pixels")),
        };
        match self.treatment {
            Treatment::Stored => {}
            Treatment::ShortSide { pixels, quality } => {
                side("the short side", pixels)?;
                if !(1..=100).contains(&quality) {
                    return refuse(format!("the quality is {quality}: expected 1 to 100"));
                }
            }
            Treatment::Decoded { size, level } => {
                size.map_or(Ok(()), |size| side("the size", size))?;
                let (least, most) = LEVELS;
                if !(least..=most).contains(&level) || level == 0 {
                    return refuse(format!("the level is {level}: expected {least} to -1 or 1 to {most}"));
                }
            }
        }
        let Partition { index, count } = self.partition;
        if index >= count {
            return refuse(format!("there is no job {index} of {count}: expected 0 to {}", count.saturating_sub(1)));
        }
        match (self.shard_size, self.workers) {
            (ByteCount(0), _) => refuse("the shard size is 0: expected at least 1 byte".to_owned()),
            (_, Some(0)) => refuse("the number of workers is 0: expected at least 1".to_owned()),
            _ => Ok(()),
        }
    }
}
