//! Size limit of a cache folder, shared by all processes that use it: accounting, eviction, commit of new blocks. The
//! lock is held for the time of an eviction at most, and waits for it are limited.
//!
//! ```text
//! folder/lock        size file: locked to add a block; holds the sum of all blocks' bytes
//! folder/temporary/  blocks being written, each locked by its writer
//! folder/a3/a3f0...  blocks
//! ```

use std::fs::{self, DirEntry, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::sync::{Mutex, lock};

/// Attempts to lock the size file, and the wait between them: one second in all, during which blocks are not stored.
const LOCK_TRIES: u32 = 100;
const LOCK_WAIT: Duration = Duration::from_millis(10);
/// Age classes of the eviction: 8 for each power of two of milliseconds.
const AGE_CLASSES: usize = 8 * 64;

#[derive(Debug)]
pub(super) struct Quota {
    folder: PathBuf,
    limit_bytes: u64,
    /// Locked by threads through the mutex, and by processes through the file.
    size_file: Mutex<File>,
}

/// Folder of the blocks being written.
pub(super) fn temporary(folder: &Path) -> PathBuf {
    folder.join("temporary")
}

/// File of a block.
pub(super) fn path(folder: &Path, key: u128) -> PathBuf {
    let name = format!("{key:032x}");
    folder.join(&name[..2]).join(&name)
}

impl Quota {
    /// Opens the folder, creates its subfolders and measures its blocks: after a crash of the machine, the recorded sum
    /// may be wrong.
    pub(super) fn open(folder: &Path, limit_bytes: u64) -> io::Result<Self> {
        for first in 0..=u8::MAX {
            fs::create_dir_all(folder.join(format!("{first:02x}")))?;
        }
        let lock = folder.join("lock");
        let size_file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(lock)?;
        let quota = Quota { folder: folder.to_path_buf(), limit_bytes, size_file: Mutex::new(size_file) };
        quota.locked(|size_file| {
            remove_orphans(&temporary(folder));
            let used = used_bytes(folder)?;
            let used = if used > limit_bytes { quota.evict(used, 0)? } else { used };
            write_sum(size_file, used)
        })?;
        Ok(quota)
    }

    /// Renames a finished block to its final name, after evictions if needed. Returns false if the block exists
    /// already, or if the lock could not be taken in time.
    pub(super) fn commit(&self, temporary: &Path, path: &Path, bytes: u64) -> io::Result<bool> {
        let committed = self.locked(|size_file| {
            if path.exists() {
                return Ok(false);
            }
            let recorded = read_sum(size_file).map_or_else(|| used_bytes(&self.folder), Ok)?;
            let before = if recorded.saturating_add(bytes) > self.limit_bytes {
                remove_orphans(&self::temporary(&self.folder));
                self.evict(used_bytes(&self.folder)?, bytes)?
            } else {
                recorded
            };
            if before + bytes > self.limit_bytes {
                write_sum(size_file, before)?;
                return Ok(false);
            }
            // The sum first: a process killed in between has counted too much, which the next measurement corrects.
            write_sum(size_file, before + bytes)?;
            fs::rename(temporary, path)?;
            Ok(true)
        })?;
        Ok(committed.unwrap_or(false))
    }

    fn locked<T>(&self, work: impl FnOnce(&File) -> io::Result<T>) -> io::Result<Option<T>> {
        let size_file = lock(&self.size_file);
        for _ in 0..LOCK_TRIES {
            match size_file.try_lock() {
                Ok(()) => {
                    let done = work(&size_file);
                    size_file.unlock()?;
                    return done.map(Some);
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_WAIT),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Deletes the least recently used blocks until the rest and `new_bytes` fit into nine tenths of the limit, and
    /// returns the sum of the rest. The folder is walked twice, so that no list is needed: once to add up bytes by age
    /// class, once to delete.
    fn evict(&self, used: u64, new_bytes: u64) -> io::Result<u64> {
        let goal = (self.limit_bytes - self.limit_bytes / 10).saturating_sub(new_bytes);
        let excess = used.saturating_sub(goal);
        if used + new_bytes <= self.limit_bytes || excess == 0 {
            return Ok(used);
        }
        let now = SystemTime::now();
        let mut by_age = [0u64; AGE_CLASSES];
        walk(&self.folder, |_, bytes, modified| by_age[age_class(now, modified)] += bytes)?;
        // The youngest class of which some blocks go: all older classes go entirely.
        let mut older_bytes = 0;
        let mut last = 0;
        for (class, bytes) in by_age.iter().enumerate().rev() {
            last = class;
            if older_bytes + bytes >= excess {
                break;
            }
            older_bytes += bytes;
        }
        let mut of_last = excess - older_bytes.min(excess);
        let mut left = 0;
        walk(&self.folder, |entry, bytes, modified| {
            let class = age_class(now, modified);
            let goes = class > last || (class == last && of_last > 0);
            // Files that cannot be deleted stay in the sum.
            if goes && fs::remove_file(entry.path()).is_ok() {
                if class == last {
                    of_last = of_last.saturating_sub(bytes);
                }
            } else {
                left += bytes;
            }
        })?;
        Ok(left)
    }
}

/// Age class of a file. The width of a class grows with the age.
fn age_class(now: SystemTime, modified: SystemTime) -> usize {
    let millis = now.duration_since(modified).map_or(0, |age| age.as_millis()).min(u128::from(u64::MAX)) as u64;
    let Some(power) = millis.checked_ilog2() else { return 0 };
    let eighth = if power >= 3 { (millis >> (power - 3)) & 7 } else { (millis << (3 - power)) & 7 };
    power as usize * 8 + eighth as usize
}

/// Bytes of all blocks.
pub(super) fn used_bytes(folder: &Path) -> io::Result<u64> {
    let mut sum = 0;
    walk(folder, |_, bytes, _| sum += bytes)?;
    Ok(sum)
}

/// Visits all blocks. Other files in the folder are ignored.
fn walk(folder: &Path, mut each: impl FnMut(&DirEntry, u64, SystemTime)) -> io::Result<()> {
    for first in 0..=u8::MAX {
        let folder = folder.join(format!("{first:02x}"));
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.len() != 32 || !name.as_encoded_bytes().iter().all(u8::is_ascii_hexdigit) {
                continue;
            }
            match entry.metadata() {
                Ok(meta) => each(&entry, meta.len(), meta.modified()?),
                // Deleted by a reader, because it was damaged.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Deletes temporary files of killed processes, which are not locked.
fn remove_orphans(temporary: &Path) {
    for entry in fs::read_dir(temporary).into_iter().flatten().flatten() {
        let orphan = File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok());
        if orphan {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Recorded sum. It is stored with its complement, so that a missing or partial write is detected.
fn read_sum(size_file: &File) -> Option<u64> {
    let mut bytes = [0; 16];
    size_file.read_exact_at(&mut bytes, 0).ok()?;
    let [sum, check] = [0, 8].map(|at| bytes[at..at + 8].iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte)));
    (sum == !check).then_some(sum)
}

fn write_sum(size_file: &File, sum: u64) -> io::Result<()> {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sum.to_le_bytes());
    bytes[8..].copy_from_slice(&(!sum).to_le_bytes());
    size_file.write_all_at(&bytes, 0)
}
