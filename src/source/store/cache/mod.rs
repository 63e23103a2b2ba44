//! Owns the cache of objects' blocks on a local disk, shared by processes, within a number of bytes.
//! It must never give damaged bytes, hold a lock while it reads, or make a read fail because a disk does.
//!
//! foyer, a cache of memory and disk, keeps its table of contents in the memory of one process, so two of them cannot
//! share a folder. Here the folder is the table: a block is a file whose name is the hash of what it is, and it is
//! there whole or not at all.

mod block;
mod room;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_128;

use self::block::Found;
use self::room::Room;
use super::Identity;
use crate::source::SourceError;
use crate::sync::{Arc, AtomicU64, OnceLock, Ordering};
use crate::units::ByteCount;

/// A block of an object, bytes; its last one may be shorter.
pub(super) const BLOCK_BYTES: u64 = 1 << 20;
/// What is read and checked at once of a block, bytes.
pub(super) const PAGE_BYTES: u64 = block::PAGE_BYTES as u64;

/// Where blocks of objects are kept on a local disk, by any number of processes together. Clones are the same cache.
///
/// A block (1 MiB) is a file of its own, named by the object's URL, its identity and the block's number; a changed
/// object has other blocks, and those of the old one age. It is written to a temporary name and renamed once it is
/// whole. Each 64 KiB of it have a checksum, which is tried whenever they are read; a damaged block is dropped and
/// fetched again.
///
/// The limit is kept by all processes that give the same one together: the sum of all blocks stands in a file, and
/// whoever adds a block locks that file, adds it up, and renames the block. When the limit is reached, it deletes the
/// blocks that were not used for longest (by the time of the file, which use renews at most once a minute), until a
/// tenth is free. What is on its way in under a temporary name comes on top: one block for each thread that writes one.
/// What a killed process has left of those is deleted by the next who makes room, or opens the cache.
///
/// Where the disk is full or cannot be written, nothing more is kept ([`note`](Self::note)), and reads go on.
///
/// # Example
/// ```
/// use feedstock::ByteCount;
/// use feedstock::source::store::{DiskCache, StoreOptions};
///
/// # let folder = tempfile::tempdir()?;
/// # let folder = folder.path();
/// let cache = DiskCache::open(folder, ByteCount(200 << 30))?;
/// let options = StoreOptions { cache: Some(cache), ..StoreOptions::default() };
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct DiskCache(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    room: Room,
    /// Temporary names that were given out.
    named: AtomicU64,
    /// Why nothing more is kept.
    off: OnceLock<String>,
}

/// The hash of what a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key(pub(super) u128);

impl DiskCache {
    /// Opens a cache, or makes one: the folder and those above it.
    ///
    /// # Errors
    /// [`SourceError::Io`] where the folder cannot be made, read or written, or the limit is less than a block (1 MiB)
    /// and its checksums.
    pub fn open(folder: impl AsRef<Path>, limit: ByteCount) -> Result<Self, SourceError> {
        let folder = folder.as_ref().to_path_buf();
        let failed = |doing, error: io::Error| SourceError::io(doing, &folder, error);
        if limit.0 < block::file_bytes(BLOCK_BYTES) {
            let least = ByteCount(block::file_bytes(BLOCK_BYTES));
            let small = io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a limit of {limit} holds not one block of {least}: give it more, or no cache"),
            );
            return Err(failed("keep blocks in", small));
        }
        fs::create_dir_all(room::temporary(&folder)).map_err(|error| failed("make the cache", error))?;
        let room = Room::open(&folder, limit.0).map_err(|error| failed("open the cache", error))?;
        Ok(DiskCache(Arc::new(Inner { folder, room, named: AtomicU64::new(0), off: OnceLock::new() })))
    }

    /// Why nothing more is kept, where that is so.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        self.0.off.get().cloned()
    }

    /// Bytes of all blocks in the folder now. It looks at each.
    ///
    /// # Errors
    /// Where the folder cannot be read.
    pub fn used_bytes(&self) -> Result<ByteCount, SourceError> {
        let failed = |error: io::Error| SourceError::io("list", &self.0.folder, error);
        room::sum(&self.0.folder).map(ByteCount).map_err(failed)
    }

    pub(super) fn key(&self, url: &str, identity: &Identity, block: u64) -> Key {
        Key(xxh3_128(format!("{url}\n{identity}\n{block}").as_bytes()))
    }

    fn path(&self, key: Key) -> PathBuf {
        room::path(&self.0.folder, key.0)
    }

    /// Fills `out` with what lies `within` bytes into a block of `bytes`, if it is there and whole.
    pub(super) fn read(&self, key: Key, bytes: u64, within: u64, out: &mut [u8]) -> bool {
        let path = self.path(key);
        match block::read(&path, key.0, bytes, within, out) {
            Found::Whole => true,
            Found::Nothing => false,
            Found::Damaged => {
                // Somebody may have put a whole one there in between; then it is fetched once more than it had to be.
                let _ = fs::remove_file(&path);
                false
            }
        }
    }

    /// Keeps a block, if it can.
    pub(super) fn keep(&self, key: Key, bytes: &[u8]) {
        if self.0.off.get().is_some() {
            return;
        }
        if let Err(error) = self.try_keep(key, bytes) {
            let folder = self.0.folder.display();
            let _ = self.0.off.set(format!(
                "nothing more is kept in the cache {folder} ({error}): what it holds is still used, and the rest is \
                 fetched each time"
            ));
        }
    }

    fn try_keep(&self, key: Key, bytes: &[u8]) -> io::Result<()> {
        let number = self.0.named.fetch_add(1, Ordering::Relaxed);
        // Clones share the count, but two caches of a process may be open on one folder: the address tells them apart.
        let name = format!("{}-{:x}-{number}", std::process::id(), Arc::as_ptr(&self.0) as usize);
        let temporary = room::temporary(&self.0.folder).join(name);
        let written = block::write(&temporary, key.0, bytes);
        let kept = written.and_then(|file| {
            let kept = self.0.room.take_in(&temporary, &self.path(key), block::file_bytes(bytes.len() as u64));
            // The lock of the temporary file says that somebody is at it; it has to last until here.
            drop(file);
            kept
        });
        if !matches!(kept, Ok(true)) {
            let _ = fs::remove_file(&temporary);
        }
        match kept {
            // Taken for a killed process's in the moment between its making and its lock.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            kept => kept.map(|_| ()),
        }
    }
}

#[cfg(test)]
mod tests;
