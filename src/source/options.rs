//! Options for opening data.

use std::path::PathBuf;

#[cfg(feature = "store")]
use super::store::StoreOptions;
use crate::units::ByteCount;

/// Default of [`OpenOptions::shuffle_buffer`].
pub const SHUFFLE_BUFFER: ByteCount = ByteCount(32 << 20);

/// Options for opening data.
///
/// ```no_run
/// use feedstock::ByteCount;
/// use feedstock::source::{OpenOptions, open_with};
///
/// let options = OpenOptions::new().shuffle_buffer(ByteCount(128 << 20)).index_folder("/var/cache/index");
/// let source = open_with("train-{000..099}.tar.zst", &options)?;
/// # Ok::<(), feedstock::source::SourceError>(())
/// ```
#[derive(Clone, Debug)]
pub struct OpenOptions {
    pub(super) shuffle_buffer: ByteCount,
    pub(super) index_folder: Option<PathBuf>,
    #[cfg(feature = "store")]
    pub(super) store: StoreOptions,
}

impl Default for OpenOptions {
    fn default() -> Self {
        OpenOptions {
            shuffle_buffer: SHUFFLE_BUFFER,
            index_folder: None,
            #[cfg(feature = "store")]
            store: StoreOptions::default(),
        }
    }
}

impl OpenOptions {
    /// Default options.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes of encoded samples that are shuffled together where samples come in [`Blocks`](super::Blocks).
    /// Default: [`SHUFFLE_BUFFER`].
    ///
    /// ```
    /// # use feedstock::{ByteCount, source::OpenOptions};
    /// let options = OpenOptions::new().shuffle_buffer(ByteCount(64 << 20));
    /// ```
    #[must_use]
    pub fn shuffle_buffer(mut self, bytes: ByteCount) -> Self {
        self.shuffle_buffer = bytes;
        self
    }

    /// Folder for the index files of shards. Default: beside the shards, or the user's cache folder where the shards'
    /// folder cannot be written to.
    ///
    /// ```
    /// # use feedstock::source::OpenOptions;
    /// let options = OpenOptions::new().index_folder("/var/cache/index");
    /// ```
    #[must_use]
    pub fn index_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.index_folder = Some(folder.into());
        self
    }

    /// Options for reading from object stores.
    ///
    /// ```
    /// # use feedstock::source::{OpenOptions, store::StoreOptions};
    /// let options = OpenOptions::new().store(StoreOptions::default());
    /// ```
    #[cfg(feature = "store")]
    #[must_use]
    pub fn store(mut self, options: StoreOptions) -> Self {
        self.store = options;
        self
    }
}
