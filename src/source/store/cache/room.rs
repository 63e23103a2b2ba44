//! Owns the room in a cache's folder: who may add a block, and which blocks go for it.
//! It must never hold its lock for longer than an eviction takes, or wait for another's without end.
//!
//! ```text
//! folder/lock        locked by whoever adds a block; holds the sum of all blocks' bytes
//! folder/temporary/  blocks that are being written, each locked by its writer
//! folder/a3/a3f0...  blocks
//! ```

use std::fs::{self, DirEntry, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::sync::{Mutex, lock};

/// How often the lock is tried, and how long is waited in between: a second in all, while blocks go unkept.
const LOCK_TRIES: u32 = 100;
const LOCK_WAIT: Duration = Duration::from_millis(10);
/// Ages are told apart to an eighth: 8 steps for each power of two of milliseconds.
const AGE_STEPS: usize = 8 * 64;

#[derive(Debug)]
pub(super) struct Room {
    folder: PathBuf,
    limit_bytes: u64,
    /// Locked by threads through the mutex and by processes through the file.
    book: Mutex<File>,
}

/// The folder of blocks that are being written.
pub(super) fn temporary(folder: &Path) -> PathBuf {
    folder.join("temporary")
}

/// The file of a block.
pub(super) fn path(folder: &Path, key: u128) -> PathBuf {
    let name = format!("{key:032x}");
    folder.join(&name[..2]).join(&name)
}

impl Room {
    /// Opens the room, makes its folders, and counts what is in it: what a crash of the machine has left of the sum is
    /// not trusted.
    pub(super) fn open(folder: &Path, limit_bytes: u64) -> io::Result<Self> {
        for first in 0..=u8::MAX {
            fs::create_dir_all(folder.join(format!("{first:02x}")))?;
        }
        let book = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(folder.join("lock"))?;
        let room = Room { folder: folder.to_path_buf(), limit_bytes, book: Mutex::new(book) };
        room.locked(|book| {
            remove_orphans(&temporary(folder));
            let sum = sum(folder)?;
            let sum = if sum > limit_bytes { room.evict(sum, 0)? } else { sum };
            write_sum(book, sum)
        })?;
        Ok(room)
    }

    /// Renames a block that was written to its place, once there is room for it. `false` where it is there already, or
    /// others held the lock all the while.
    pub(super) fn take_in(&self, temporary: &Path, path: &Path, bytes: u64) -> io::Result<bool> {
        let taken = self.locked(|book| {
            if path.exists() {
                return Ok(false);
            }
            let counted = read_sum(book).map_or_else(|| sum(&self.folder), Ok)?;
            let before = if counted.saturating_add(bytes) > self.limit_bytes {
                remove_orphans(&self::temporary(&self.folder));
                self.evict(sum(&self.folder)?, bytes)?
            } else {
                counted
            };
            if before + bytes > self.limit_bytes {
                write_sum(book, before)?;
                return Ok(false);
            }
            // The sum first: whoever is killed in between has counted too much, which the next count sets right.
            write_sum(book, before + bytes)?;
            fs::rename(temporary, path)?;
            Ok(true)
        })?;
        Ok(taken.unwrap_or(false))
    }

    fn locked<T>(&self, work: impl FnOnce(&File) -> io::Result<T>) -> io::Result<Option<T>> {
        let book = lock(&self.book);
        for _ in 0..LOCK_TRIES {
            match book.try_lock() {
                Ok(()) => {
                    let done = work(&book);
                    book.unlock()?;
                    return done.map(Some);
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_WAIT),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Deletes what was not used for longest, until nine tenths of the limit hold the rest and `coming_bytes`; the sum
    /// that is left. It walks the folder twice, so that it needs no list: once to add up bytes by age, once to delete.
    fn evict(&self, sum: u64, coming_bytes: u64) -> io::Result<u64> {
        let goal = (self.limit_bytes - self.limit_bytes / 10).saturating_sub(coming_bytes);
        let mut excess = sum.saturating_sub(goal);
        if sum + coming_bytes <= self.limit_bytes || excess == 0 {
            return Ok(sum);
        }
        let now = SystemTime::now();
        let mut by_age = [0u64; AGE_STEPS];
        walk(&self.folder, |_, bytes, modified| by_age[age_step(now, modified)] += bytes)?;
        // The youngest step of which something goes: all that is older goes whole.
        let mut older_bytes = 0;
        let mut last = 0;
        for (step, bytes) in by_age.iter().enumerate().rev() {
            last = step;
            if older_bytes + bytes >= excess {
                break;
            }
            older_bytes += bytes;
        }
        let mut of_last = excess - older_bytes.min(excess);
        let mut left = 0;
        walk(&self.folder, |entry, bytes, modified| {
            let step = age_step(now, modified);
            let goes = step > last || (step == last && of_last > 0);
            // What cannot be deleted stays counted.
            if goes && fs::remove_file(entry.path()).is_ok() {
                excess = excess.saturating_sub(bytes);
                if step == last {
                    of_last = of_last.saturating_sub(bytes);
                }
            } else {
                left += bytes;
            }
        })?;
        Ok(left)
    }
}

/// The age of a file in steps that grow with it.
fn age_step(now: SystemTime, modified: SystemTime) -> usize {
    let millis = now.duration_since(modified).map_or(0, |age| age.as_millis()).min(u128::from(u64::MAX)) as u64;
    let Some(power) = millis.checked_ilog2() else { return 0 };
    let eighth = if power >= 3 { (millis >> (power - 3)) & 7 } else { (millis << (3 - power)) & 7 };
    power as usize * 8 + eighth as usize
}

/// Bytes of all blocks.
pub(super) fn sum(folder: &Path) -> io::Result<u64> {
    let mut sum = 0;
    walk(folder, |_, bytes, _| sum += bytes)?;
    Ok(sum)
}

/// Goes over all blocks. What else lies in the folder is left alone.
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
                // A reader has dropped it, because it was damaged.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Deletes what killed processes were writing: nobody holds its lock.
fn remove_orphans(temporary: &Path) {
    for entry in fs::read_dir(temporary).into_iter().flatten().flatten() {
        let orphan = File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok());
        if orphan {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The sum in the book: itself and its complement, so that what was never or half written is no sum.
fn read_sum(book: &File) -> Option<u64> {
    let mut bytes = [0; 16];
    book.read_exact_at(&mut bytes, 0).ok()?;
    let [sum, check] = [0, 8].map(|at| bytes[at..at + 8].iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte)));
    (sum == !check).then_some(sum)
}

fn write_sum(book: &File, sum: u64) -> io::Result<()> {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sum.to_le_bytes());
    bytes[8..].copy_from_slice(&(!sum).to_le_bytes());
    book.write_all_at(&bytes, 0)
}
