//! Options of Parquet sources.

use std::path::PathBuf;

use crate::source::SHUFFLE_BUFFER;
use crate::units::ByteCount;

/// Options of a [`ParquetSource`](super::ParquetSource): the columns, and the number of row groups shuffled together.
///
/// ```no_run
/// use feedstock::source::{ParquetOptions, ParquetSource, Source};
///
/// let options = ParquetOptions::new().image_column("photo").label_column("species").shuffle_row_groups(4);
/// let files = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"];
/// let source = ParquetSource::open_with(files, &options)?;
/// println!("{} images in {} classes", source.len(), source.classes().len());
/// # Ok::<(), feedstock::source::SourceError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ParquetOptions {
    pub(super) image_column: Option<String>,
    pub(super) label_column: Option<String>,
    shuffle_row_groups: Option<usize>,
    shuffle_buffer: ByteCount,
    pub(super) index_folder: Option<PathBuf>,
}

impl Default for ParquetOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl ParquetOptions {
    /// Default options: columns are recognized by name and type, row groups of up to 32 MiB are shuffled together, and
    /// index files are beside the data.
    #[must_use]
    pub fn new() -> Self {
        ParquetOptions {
            image_column: None,
            label_column: None,
            shuffle_row_groups: None,
            shuffle_buffer: SHUFFLE_BUFFER,
            index_folder: None,
        }
    }

    /// Sets the image column: a struct with `bytes`, or a binary column.
    #[must_use]
    pub fn image_column(mut self, name: impl Into<String>) -> Self {
        self.image_column = Some(name.into());
        self
    }

    /// Sets the label column: integers, or text that names the class.
    #[must_use]
    pub fn label_column(mut self, name: impl Into<String>) -> Self {
        self.label_column = Some(name.into());
        self
    }

    /// Sets the number of row groups that are shuffled together. Twice as many are held in RAM.
    ///
    /// # Panics
    /// Panics if it is 0.
    #[must_use]
    pub fn shuffle_row_groups(mut self, count: usize) -> Self {
        assert!(count > 0, "the number of row groups shuffled together is 0: expected at least 1");
        self.shuffle_row_groups = Some(count);
        self
    }

    /// Sets the size of the shuffle buffer, used without [`shuffle_row_groups`](Self::shuffle_row_groups): as many of
    /// the largest row groups as fit are shuffled together, at least one. Default: 32 MiB.
    #[must_use]
    pub fn shuffle_buffer(mut self, bytes: ByteCount) -> Self {
        self.shuffle_buffer = bytes;
        self
    }

    /// Sets the folder of the index files, which keep the sizes of the images between runs. Default: beside the data
    /// (`train.parquet.feedstock-index`), or in the user's cache folder if that is not writable.
    #[must_use]
    pub fn index_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.index_folder = Some(folder.into());
        self
    }

    /// Number of row groups shuffled together, if the images of the largest one have `largest` bytes.
    pub(super) fn row_groups_shuffled(&self, largest: u64) -> usize {
        let fitting = || self.shuffle_buffer.0.checked_div(largest).unwrap_or(1).clamp(1, 1 << 20) as usize;
        self.shuffle_row_groups.unwrap_or_else(fitting)
    }
}
