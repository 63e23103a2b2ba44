//! Access to the bytes of one shard, wherever it is stored.

use std::fmt;
use std::path::Path;

use super::skip_read::SkipRead;
use super::{IoProfile, PageCache, SourceError};

/// Identity of a shard: an index is valid as long as the shard has the identity that it was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ShardIdentity {
    /// Size, bytes.
    pub(super) bytes: u64,
    /// Version of the content: another value after every change.
    pub(super) version: u128,
}

/// The bytes of one shard: a file, or an object of a store.
pub(super) trait ShardIo: fmt::Debug + Send + Sync {
    /// Path of the file, or URL of the object without its query.
    fn path(&self) -> &Path;

    /// Identity at the time of opening.
    fn identity(&self) -> ShardIdentity;

    /// Size, bytes.
    fn bytes(&self) -> u64 {
        self.identity().bytes
    }

    /// Fills `out` with the bytes from `offset` on.
    ///
    /// # Panics
    /// Panics if the range is outside of the shard.
    fn read_at(&self, offset: u64, out: &mut [u8], page_cache: PageCache) -> Result<(), SourceError>;

    /// Fills each buffer with the bytes from its offset on, and returns the result of each read.
    fn read_many(&self, reads: &mut [(u64, &mut [u8])], page_cache: PageCache) -> Vec<Result<(), SourceError>> {
        reads.iter_mut().map(|(offset, out)| self.read_at(*offset, out, page_cache)).collect()
    }

    /// Opens a sequential reader of the whole shard.
    fn reader(&self) -> Result<Box<dyn SkipRead>, SourceError>;

    /// Checks that the shard still has its identity. A store checks this with each answer.
    ///
    /// # Errors
    /// [`SourceError::Changed`] otherwise.
    fn check_unchanged(&self) -> Result<(), SourceError> {
        Ok(())
    }

    /// Number of reads that should be in flight.
    fn concurrency(&self) -> usize {
        IoProfile::default().concurrency
    }

    /// Returns true if small reads are cheap: the shard is a local file.
    fn is_local(&self) -> bool;

    /// Reads a whole file or object in the shard's folder. `None` if it does not exist.
    ///
    /// # Errors
    /// [`SourceError::TooLarge`] beyond `bytes_max` bytes, and every error of storage but "not found".
    fn read_sibling(&self, name: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, SourceError>;

    /// Heap memory, bytes.
    fn heap_bytes(&self) -> usize;

    /// Asks a local disk for a range without waiting for it.
    fn prefetch(&self, _offset: u64, _len: u64, _page_cache: PageCache) {}
}
