//! Sources of samples: the [`Source`] trait, and the sources that read folders, shards, Parquet files and memory.
//!
//! A source keeps an index in memory and reads the encoded bytes of a sample into a buffer of the caller. Sources that
//! must decompress hold buffers of their own, and count them in [`IoProfile::buffer_bytes`]. A source does not decode
//! images.

/// Implements methods of [`Source`] by calls to another source.
macro_rules! delegate {
    ($this:ident => $source:expr; $($method:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        $(fn $method(&self $(, $argument: $type)*) $(-> $result)? {
            let $this = self;
            ($source).$method($($argument),*)
        })*
    };
}

mod block_cache;
mod concat;
pub mod conformance;
mod error;
mod extensions;
mod file;
mod folder;
mod heap_size;
mod index;
mod index_file;
mod memory;
mod open;
mod opener;
mod options;
mod parallel;
#[cfg(feature = "parquet")]
mod parquet;
mod path;
mod pattern;
mod resolve;
mod scan;
mod shard_io;
mod shards;
mod skip_read;
#[cfg(feature = "store")]
pub mod store;
mod subset;
#[cfg(test)]
mod tests;

pub use crate::blocks::Blocks;
pub use concat::Concat;
pub use error::{SourceError, Unreadable};
pub use extensions::{IMAGE_EXTENSIONS, SHARD_EXTENSIONS};
pub use folder::ImageFolder;
pub use memory::MemorySource;
pub use open::{open, open_with};
pub use options::{OpenOptions, SHUFFLE_BUFFER};
#[cfg(feature = "parquet")]
pub use parquet::{ParquetOptions, ParquetSource};
#[doc(hidden)]
pub use path::readable;
pub use shards::TarShards;
pub use subset::Subset;

use crate::sync::Arc;
use crate::units::SampleId;

/// A set of encoded samples with labels, read in any order from any thread.
///
/// `len`, `label`, `encoded_bytes` and `read_into` are called for every sample of every epoch. The first three should
/// answer from an index in memory.
///
/// [`conformance::check`] tests an implementation.
///
/// # Panics
/// Methods may panic if an id is outside of `0..len`, or if the length of `out` is not `encoded_bytes(id)`.
pub trait Source: Send + Sync + 'static {
    /// Number of samples. It never changes.
    fn len(&self) -> u64;

    /// Returns true if there are no samples.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Names of the classes. A label is an index into this list.
    fn classes(&self) -> &[String];

    /// Label of a sample: less than `classes().len()`.
    fn label(&self, id: SampleId) -> u32;

    /// Size of a sample as `read_into` returns it, bytes. The pipeline reserves this much memory before it reads. It
    /// never changes.
    fn encoded_bytes(&self, id: SampleId) -> u64;

    /// Name of a sample for messages: a path, or a shard and its member. Names are unique.
    fn name(&self, id: SampleId) -> String;

    /// Reads the encoded bytes of a sample into `out`, whose length is `encoded_bytes(id)`. May block.
    ///
    /// # Errors
    /// [`SourceError::Io`] if storage fails, [`SourceError::Changed`] if the sample has another size now. The content
    /// of `out` is unspecified after an error.
    fn read_into(&self, id: SampleId, out: &mut [u8]) -> Result<(), SourceError>;

    /// Reads one or several samples, in any order, and stores each result in [`SampleRead::result`]. Several are read
    /// at once where [`IoProfile::coalesce_bytes`] is not 0: where one request can return adjacent samples.
    ///
    /// A source whose reads fill the page cache drops it after reads with [`PageCache::Drop`].
    fn read_many(&self, reads: &mut [SampleRead<'_>]) {
        for read in reads {
            read.result = self.read_into(read.id, read.out);
        }
    }

    /// Memory that the source holds all the time, bytes: its index, and samples that are in memory.
    fn index_bytes(&self) -> u64;

    /// Returns true if the samples are in memory. The loader does not cache them again.
    fn is_in_memory(&self) -> bool {
        false
    }

    /// Name of the source for messages: the path of a folder or of shards.
    fn title(&self) -> String {
        format!("a source of {} samples", self.len())
    }

    /// Notes about the data for the user, one sentence each. Usually empty.
    fn notes(&self) -> &[String] {
        &[]
    }

    /// Entries that may be or hold samples and could not be read. The list may be shorter than
    /// [`unreadable_count`](Self::unreadable_count).
    fn unreadable(&self) -> &[Unreadable] {
        &[]
    }

    /// Number of entries that could not be read.
    fn unreadable_count(&self) -> u64 {
        self.unreadable().len() as u64
    }

    /// Width and height of a sample's image as stored, if the index has them.
    fn dimensions(&self, _id: SampleId) -> Option<(u32, u32)> {
        None
    }

    /// Blocks of samples that are read as a unit, if the source has them. It caches [`Blocks::resident`] blocks, and
    /// counts that memory in [`io_profile`](Self::io_profile). It never changes.
    fn blocks(&self) -> Option<&Blocks> {
        None
    }

    /// Recommended concurrency, and the memory of concurrent reads. It never changes.
    fn io_profile(&self) -> IoProfile {
        IoProfile::default()
    }

    /// Announces samples that will be read soon, in ascending order of id, so that storage can fetch them. This is a
    /// hint: its effect is bounded and may be nothing. The reads that follow have the same `page_cache`.
    fn read_ahead(&self, _ids: &[SampleId], _page_cache: PageCache) {}
}

/// Treatment of the operating system's page cache by a read. Each loader has its own, also if loaders share a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PageCache {
    /// The data stays in the page cache.
    #[default]
    Keep,
    /// The data is dropped after the read: it does not fit in memory, and a control group is charged for it.
    Drop,
}

/// A sample to read, the buffer for it, and the result.
#[derive(Debug)]
#[non_exhaustive]
pub struct SampleRead<'a> {
    /// Id of the sample.
    pub id: SampleId,
    /// Buffer of exactly `encoded_bytes(id)` bytes.
    pub out: &'a mut [u8],
    /// Treatment of the page cache.
    pub page_cache: PageCache,
    /// Result, which [`Source::read_many`] sets.
    pub result: Result<(), SourceError>,
}

impl<'a> SampleRead<'a> {
    /// Creates a read that has not been performed, and keeps the page cache.
    pub fn new(id: SampleId, out: &'a mut [u8]) -> Self {
        SampleRead { id, out, page_cache: PageCache::Keep, result: Ok(()) }
    }

    /// Sets the treatment of the page cache.
    #[must_use]
    pub fn page_cache(mut self, page_cache: PageCache) -> Self {
        self.page_cache = page_cache;
        self
    }
}

/// Recommended concurrency of reads, and their memory.
///
/// ```
/// use feedstock::source::IoProfile;
///
/// let mut profile = IoProfile::default();
/// profile.concurrency = 8;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IoProfile {
    /// Number of concurrent reads, each on its own thread. Few serve a local disk, a store needs more.
    pub concurrency: usize,
    /// Upper limit of the memory of that many reads, bytes: decompression buffers and cached blocks. The buffers of the
    /// caller and the index are not included.
    pub buffer_bytes: u64,
    /// Maximum size of one [`Source::read_many`] call, bytes. 0 if single reads are as good.
    pub coalesce_bytes: u64,
}

impl Default for IoProfile {
    /// Two concurrent single reads without buffers.
    fn default() -> Self {
        IoProfile { concurrency: 2, buffer_bytes: 0, coalesce_bytes: 0 }
    }
}

/// A shared source is a source, so that several loaders can use one index.
impl<S: Source + ?Sized> Source for Arc<S> {
    delegate! {
        this => **this;
        len() -> u64;
        classes() -> &[String];
        label(id: SampleId) -> u32;
        encoded_bytes(id: SampleId) -> u64;
        name(id: SampleId) -> String;
        read_into(id: SampleId, out: &mut [u8]) -> Result<(), SourceError>;
        read_many(reads: &mut [SampleRead<'_>]);
        index_bytes() -> u64;
        is_in_memory() -> bool;
        title() -> String;
        notes() -> &[String];
        unreadable() -> &[Unreadable];
        unreadable_count() -> u64;
        dimensions(id: SampleId) -> Option<(u32, u32)>;
        blocks() -> Option<&Blocks>;
        io_profile() -> IoProfile;
        read_ahead(ids: &[SampleId], page_cache: PageCache);
    }
}
