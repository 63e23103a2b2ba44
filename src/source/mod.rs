//! Owns where samples come from: the `Source` trait, the index, and the sources that read from folders and memory.
//! It must never decode, and it reads INTO memory that it is given; it holds no payload of its own but its index.

mod concat;
pub mod conformance;
mod error;
mod file;
mod folder;
#[allow(dead_code, reason = "which parts of it are used depends on the sources that are built")]
mod held;
mod index;
mod medium;
mod memory;
mod open;
#[cfg(feature = "parquet")]
mod parquet;
mod pattern;
mod scan;
mod shards;
#[cfg(feature = "store")]
pub mod store;
mod subset;
#[cfg(test)]
mod tests;

pub use crate::blocks::Blocks;
pub use concat::Concat;
pub use error::SourceError;
pub use folder::ImageFolder;
pub use memory::MemorySource;
pub use open::{OpenOptions, SHARD_EXTENSIONS, open, open_with};
#[cfg(feature = "parquet")]
pub use parquet::{ParquetOptions, ParquetSource};
pub use scan::{IMAGE_EXTENSIONS, Unreadable};
pub use shards::TarShards;
pub use subset::Subset;

use crate::sync::Arc;
use crate::units::{ByteCount, SampleId};

/// A set of encoded samples with labels, read one at a time in any order, from any thread.
///
/// `len`, `label`, `encoded_bytes` and `read_into` are called for every sample of every epoch, so they answer from an
/// index in memory and touch storage only to read the bytes themselves.
///
/// An implementation is checked by [`conformance::check`].
///
/// # Panics
/// An id outside `0..len`, or an `out` of another length than `encoded_bytes(id)`, is misuse, and may panic.
pub trait Source: Send + Sync + 'static {
    /// How many samples there are. It never changes.
    fn len(&self) -> u64;

    /// Whether there is no sample at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The names of the classes; a label is a place in this list.
    fn classes(&self) -> &[String];

    /// The label of a sample: less than `classes().len()`.
    fn label(&self, id: SampleId) -> u32;

    /// The bytes of a sample as stored. The pipeline reserves this many before it asks for them. It never changes.
    fn encoded_bytes(&self, id: SampleId) -> u64;

    /// What a person would call this sample: a path, or a shard and its member. No two samples share a name.
    fn name(&self, id: SampleId) -> String;

    /// Reads the stored bytes of a sample into `out`, which is exactly `encoded_bytes(id)` long. May block.
    ///
    /// # Errors
    /// [`SourceError::Io`] where storage refuses, [`SourceError::Changed`] where it now holds another number of bytes.
    /// What `out` holds afterwards is unspecified.
    fn read_into(&self, id: SampleId, out: &mut [u8]) -> Result<(), SourceError>;

    /// Reads several samples, each into memory of its own, and says of each what came of it; in any order. Worth more
    /// than [`read_into`](Self::read_into) for each where storage can be asked for neighbours in one go: then
    /// [`Reading::together_bytes`] says up to how much.
    fn read_many(&self, reads: &mut [SampleRead<'_>]) {
        for read in reads {
            read.done = self.read_into(read.id, read.out);
        }
    }

    /// RAM that this source holds for as long as it lives (its index), in bytes.
    fn index_bytes(&self) -> u64;

    /// Whether the samples lie in RAM already, so that keeping them for the next epoch would be a second copy.
    fn in_memory(&self) -> bool {
        false
    }

    /// What a person would call all of it: the path of a folder, of shards.
    fn title(&self) -> String {
        format!("a source of {} samples", self.len())
    }

    /// What a person should know about this data before a run, a sentence each. Empty for most.
    fn notes(&self) -> &[String] {
        &[]
    }

    /// Entries that might be or hold samples and could not be read: the first of
    /// [`unreadable_count`](Self::unreadable_count).
    fn unreadable(&self) -> &[Unreadable] {
        &[]
    }

    /// How many entries could not be read.
    fn unreadable_count(&self) -> u64 {
        self.unreadable().len() as u64
    }

    /// Width and height of a sample's picture as stored, where the index knows them.
    fn dimensions(&self, _id: SampleId) -> Option<(u32, u32)> {
        None
    }

    /// Which samples can only be had together, where that is so. Such a source holds [`Blocks::held`] blocks and counts
    /// them in [`reading`](Self::reading). It never changes.
    fn blocks(&self) -> Option<&Blocks> {
        None
    }

    /// How it is best read, and what that takes. It never changes.
    fn reading(&self) -> Reading {
        Reading::default()
    }

    /// Tells which samples will be read soon, so that storage can be asked for them now: in ascending order of id, which
    /// is their order in storage where there is one. A hint: what comes of it must be bounded, and may be nothing.
    fn read_ahead(&self, _ids: &[SampleId]) {}

    /// Asks to give the operating system's page cache back after each read (`true`), because it holds too little of the
    /// data to be of use the next time, and a control group counts it; or to leave it be. A source whose reads cause no
    /// page cache has nothing to do.
    fn forget_pages(&self, _forget: bool) {}
}

/// How much is shuffled at a time where samples come in [`Blocks`], unless somebody says otherwise.
pub const SHUFFLE_BUFFER: ByteCount = ByteCount(32 << 20);

/// A sample that is wanted, the memory for it, and what came of it.
#[derive(Debug)]
pub struct SampleRead<'a> {
    /// Which sample.
    pub id: SampleId,
    /// Memory of exactly `encoded_bytes(id)` bytes.
    pub out: &'a mut [u8],
    /// What came of it: set by [`Source::read_many`].
    pub done: Result<(), SourceError>,
}

impl<'a> SampleRead<'a> {
    /// A read that nothing has come of yet.
    pub fn new(id: SampleId, out: &'a mut [u8]) -> Self {
        SampleRead { id, out, done: Ok(()) }
    }
}

/// How a source is best read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Reads that should be under way at once, each on a thread of its own. Local files are in the page cache or behind a
    /// queue that few requests keep busy; a store far away wants more.
    pub at_once: usize,
    /// RAM that so many reads take beyond the memory that they are given and the index, at most, bytes: what is
    /// decompressed, blocks that are held.
    pub held_bytes: u64,
    /// Samples that follow one another are best read by one call of [`Source::read_many`], up to so many bytes. 0: each
    /// by itself is as good.
    pub together_bytes: u64,
}

impl Default for Reading {
    /// Two at once, nothing held, each by itself.
    fn default() -> Self {
        Reading { at_once: 2, held_bytes: 0, together_bytes: 0 }
    }
}

/// A shared source is a source, so that one index serves several loaders.
impl<S: Source + ?Sized> Source for Arc<S> {
    fn len(&self) -> u64 {
        (**self).len()
    }

    fn classes(&self) -> &[String] {
        (**self).classes()
    }

    fn label(&self, id: SampleId) -> u32 {
        (**self).label(id)
    }

    fn encoded_bytes(&self, id: SampleId) -> u64 {
        (**self).encoded_bytes(id)
    }

    fn name(&self, id: SampleId) -> String {
        (**self).name(id)
    }

    fn read_into(&self, id: SampleId, out: &mut [u8]) -> Result<(), SourceError> {
        (**self).read_into(id, out)
    }

    fn read_many(&self, reads: &mut [SampleRead<'_>]) {
        (**self).read_many(reads);
    }

    fn index_bytes(&self) -> u64 {
        (**self).index_bytes()
    }

    fn in_memory(&self) -> bool {
        (**self).in_memory()
    }

    fn title(&self) -> String {
        (**self).title()
    }

    fn notes(&self) -> &[String] {
        (**self).notes()
    }

    fn unreadable(&self) -> &[Unreadable] {
        (**self).unreadable()
    }

    fn unreadable_count(&self) -> u64 {
        (**self).unreadable_count()
    }

    fn dimensions(&self, id: SampleId) -> Option<(u32, u32)> {
        (**self).dimensions(id)
    }

    fn blocks(&self) -> Option<&Blocks> {
        (**self).blocks()
    }

    fn reading(&self) -> Reading {
        (**self).reading()
    }

    fn read_ahead(&self, ids: &[SampleId]) {
        (**self).read_ahead(ids);
    }

    fn forget_pages(&self, forget: bool) {
        (**self).forget_pages(forget);
    }
}
