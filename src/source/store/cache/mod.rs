//! Cache of blocks of objects on a local disk, shared by processes, with a size limit. It never returns damaged bytes,
//! holds no lock while it reads, and a failing disk does not make a read fail.
//!
//! foyer, a cache of memory and disk, keeps its index in the memory of one process, so two processes cannot share a
//! folder. Here the folder is the index: a block is a file named by a hash of the block's identity, and is present
//! completely or not at all.

mod block;
mod quota;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_128;

use self::block::Lookup;
use self::quota::Quota;
use super::version::ObjectVersion;
use crate::source::error::SourceError;
use crate::sync::{Arc, AtomicU64, OnceLock, Ordering};
use crate::units::ByteCount;

/// Size of a block of an object, bytes; the last block may be shorter.
pub(super) const BLOCK_BYTES: u64 = 1 << 20;
/// Unit in which a block is read and verified, bytes.
pub(super) const PAGE_BYTES: u64 = block::PAGE_BYTES as u64;

/// Cache of blocks of objects on a local disk. Any number of processes may share one folder. Clones are the same cache.
///
/// A block (1 MiB) is a file of its own, named by the object's URL, its version and the block's number; a changed
/// object has other blocks, and the old ones age. A block is written under a temporary name and renamed once it is
/// complete. Each 64 KiB of it have a checksum, verified by every read; a damaged block is deleted and downloaded
/// again.
///
/// Processes that open the folder with the same limit keep it together: a file holds the sum of all blocks, and a
/// process that adds a block locks that file, updates the sum and renames the block. At the limit, the least recently
/// used blocks are deleted until a tenth is free (by the time of the file, which reads renew at most once a minute).
/// Blocks being written come on top: one for each writing thread. Those of killed processes are deleted by the next
/// eviction or open.
///
/// If the disk is full or cannot be written, the cache stops storing blocks
/// ([`disabled_reason`](Self::disabled_reason)), and reads go on.
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
    quota: Quota,
    /// Number of temporary names in use so far.
    named: AtomicU64,
    disabled: OnceLock<String>,
}

/// Hash of an object's URL, its version and a block number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct BlockKey(pub(super) u128);

impl DiskCache {
    /// Opens a cache, and creates the folder and its parents if needed.
    ///
    /// # Errors
    /// [`SourceError::Io`] if the folder cannot be created, read or written, or if the limit is smaller than a block (1
    /// MiB) with its checksums.
    pub fn open(folder: impl AsRef<Path>, limit: ByteCount) -> Result<Self, SourceError> {
        let folder = folder.as_ref().to_path_buf();
        let failed = |doing, error: io::Error| SourceError::io(doing, &folder, error);
        let least = ByteCount(block::file_bytes(BLOCK_BYTES));
        if limit < least {
            let cause = format!("the limit of {limit} is smaller than a block of {least}: raise it, or use no cache");
            return Err(failed("keep blocks in", io::Error::new(io::ErrorKind::InvalidInput, cause)));
        }
        fs::create_dir_all(quota::temporary(&folder)).map_err(|error| failed("make the cache", error))?;
        let quota = Quota::open(&folder, limit.0).map_err(|error| failed("open the cache", error))?;
        Ok(DiskCache(Arc::new(Inner { folder, quota, named: AtomicU64::new(0), disabled: OnceLock::new() })))
    }

    /// Reason for which no more blocks are stored; `None` while the cache works.
    #[must_use]
    pub fn disabled_reason(&self) -> Option<String> {
        self.0.disabled.get().cloned()
    }

    /// Bytes of all blocks in the folder now. Reads the size of each file.
    ///
    /// # Errors
    /// [`SourceError::Io`] if the folder cannot be read.
    pub fn used_bytes(&self) -> Result<ByteCount, SourceError> {
        let failed = |error: io::Error| SourceError::io("list", &self.0.folder, error);
        quota::used_bytes(&self.0.folder).map(ByteCount).map_err(failed)
    }

    pub(super) fn key(&self, url: &str, version: &ObjectVersion, block: u64) -> BlockKey {
        BlockKey(xxh3_128(format!("{url}\n{version}\n{block}").as_bytes()))
    }

    fn path(&self, key: BlockKey) -> PathBuf {
        quota::path(&self.0.folder, key.0)
    }

    /// Fills `out` from the position `within` of a block of `bytes`. Returns false if the block is missing or damaged.
    pub(super) fn read(&self, key: BlockKey, bytes: u64, within: u64, out: &mut [u8]) -> bool {
        let path = self.path(key);
        let found = block::read(&path, key.0, bytes, within, out);
        if found == Lookup::Damaged {
            // If another process has replaced it in between, it is downloaded once more than needed.
            let _ = fs::remove_file(&path);
        }
        found == Lookup::Hit
    }

    /// Stores a block, if possible.
    pub(super) fn insert(&self, key: BlockKey, bytes: &[u8]) {
        if self.0.disabled.get().is_some() {
            return;
        }
        if let Err(error) = self.try_insert(key, bytes) {
            let _ = self.0.disabled.set(format!(
                "the cache {} stores no more blocks ({error}): it is still read, and the rest is downloaded each time",
                self.0.folder.display()
            ));
        }
    }

    fn try_insert(&self, key: BlockKey, bytes: &[u8]) -> io::Result<()> {
        let number = self.0.named.fetch_add(1, Ordering::Relaxed);
        // Clones share the counter, but a process may open one folder twice: the address distinguishes the two.
        let name = format!("{}-{:x}-{number}", std::process::id(), Arc::as_ptr(&self.0) as usize);
        let temporary = quota::temporary(&self.0.folder).join(name);
        let committed = block::write(&temporary, key.0, bytes).and_then(|file| {
            let file_bytes = block::file_bytes(bytes.len() as u64);
            let committed = self.0.quota.commit(&temporary, &self.path(key), file_bytes);
            // Unlocks the temporary file, which must not look like an orphan before.
            drop(file);
            committed
        });
        if !matches!(committed, Ok(true)) {
            let _ = fs::remove_file(&temporary);
        }
        match committed {
            // Deleted as an orphan between its creation and its lock.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            committed => committed.map(|_| ()),
        }
    }
}

#[cfg(test)]
mod tests;
