//! Owns what a user may say about how Parquet files are read.
//! It must never look into a file.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::scan::{Texts, scan};
use super::{ParquetSource, SourceError};

/// Row groups that are shuffled together where nobody asks for a number.
const MIXED: usize = 2;

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
    mixed: usize,
    pub(super) index_folder: Option<PathBuf>,
}

impl Default for ParquetOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl ParquetOptions {
    /// Columns are found by their names and kinds, two row groups are shuffled together, and indices lie beside the files.
    #[must_use]
    pub fn new() -> Self {
        ParquetOptions { image_column: None, label_column: None, mixed: MIXED, index_folder: None }
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
        self.mixed = blocks;
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
        ParquetSource::assemble(files, texts, self.mixed)
    }
}
