//! Owns what a user may say about how Parquet files are read.
//! It must never look into a file.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::scan::{Texts, scan};
use super::{ParquetSource, SourceError};
use crate::source::SHUFFLE_BUFFER;
use crate::units::ByteCount;

/// How Parquet files are read: which columns, and how many row groups are shuffled together.
///
/// ```no_run
/// use feedstock::source::{ParquetOptions, Source};
///
/// let source = ParquetOptions::new()
///     .image_column("photo")
///     .label_column("species")
///     .mixed(4)
///     .open(["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"])?;
/// println!("{} images in {} classes", source.len(), source.classes().len());
/// # Ok::<(), feedstock::source::SourceError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ParquetOptions {
    pub(super) image_column: Option<String>,
    pub(super) label_column: Option<String>,
    mixed: Option<usize>,
    shuffle_buffer: ByteCount,
    pub(super) index_folder: Option<PathBuf>,
}

impl Default for ParquetOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl ParquetOptions {
    /// Columns are found by their names and kinds, row groups of up to 32 MiB are shuffled together, and indices lie beside
    /// the files.
    #[must_use]
    pub fn new() -> Self {
        ParquetOptions {
            image_column: None,
            label_column: None,
            mixed: None,
            shuffle_buffer: SHUFFLE_BUFFER,
            index_folder: None,
        }
    }

    /// The column of the images: a struct with `bytes`, or a binary column.
    #[must_use]
    pub fn image_column(mut self, name: impl Into<String>) -> Self {
        self.image_column = Some(name.into());
        self
    }

    /// The column of the labels: whole numbers, or text that names the class.
    #[must_use]
    pub fn label_column(mut self, name: impl Into<String>) -> Self {
        self.label_column = Some(name.into());
        self
    }

    /// How many row groups are shuffled together. Twice as many are held in RAM: more of them mix better and take more.
    ///
    /// # Panics
    /// Panics if it is 0.
    #[must_use]
    pub fn mixed(mut self, blocks: usize) -> Self {
        assert!(blocks > 0, "no row groups are shuffled together");
        self.mixed = Some(blocks);
        self
    }

    /// How much is shuffled together, where no number of row groups is asked for: as many of the largest as this holds, one
    /// at least.
    #[must_use]
    pub fn shuffle_buffer(mut self, bytes: ByteCount) -> Self {
        self.shuffle_buffer = bytes;
        self
    }

    /// Where the index files lie, which keep the sizes of the images from one run to the next. Without this, beside the
    /// data (`train.parquet.feedstock-index`), or in the user's cache folder where that cannot be written to.
    #[must_use]
    pub fn index_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.index_folder = Some(folder.into());
        self
    }

    /// Opens files, whose rows follow each other in this order.
    ///
    /// # Errors
    /// As [`ParquetSource::open`].
    pub fn open(&self, paths: impl IntoIterator<Item = impl AsRef<Path>>) -> Result<ParquetSource, SourceError> {
        let (mut texts, mut files, mut seen) = (Texts::default(), Vec::new(), HashSet::new());
        for path in paths {
            let path = path.as_ref();
            let scanned = scan(path, self, &mut texts)?;
            if !seen.insert(fs::canonicalize(path).unwrap_or_else(|_| path.into())) {
                return Err(scanned.file.unusable("", "the same file is given twice: give each one once"));
            }
            files.push(scanned);
        }
        let mixed = |largest: u64| {
            self.mixed
                .unwrap_or_else(|| self.shuffle_buffer.0.checked_div(largest).unwrap_or(1).clamp(1, 1 << 20) as usize)
        };
        ParquetSource::assemble(files, texts, mixed)
    }
}
