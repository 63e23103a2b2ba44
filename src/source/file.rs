//! Owns files of many samples: reading parts of them, asking storage for what comes next, and giving page cache back.
//! It must never map them: a mapped file that shrinks ends the process, and its pages count as the process's.

use std::fs::File;
use std::io::{self, BufReader};
use std::mem::size_of_val;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};

use super::SourceError;
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Files that are kept open, of all sources; others are opened for each read. Common limits of open
/// files begin at 1024.
const KEPT_OPEN_MAX: usize = 512;
static KEPT_OPEN: AtomicUsize = AtomicUsize::new(0);
/// Where the page cache has room for all of the data, storage is asked for so much around each range, once: what lies beside it
/// will be needed as well, and a few large requests take less time than many small ones.
const WINDOW_BYTES: u64 = 2 << 20;
/// What is read at a time where a file is looked through: a header, and the front of what follows it.
const READ_BUFFER_BYTES: usize = 8 << 10;

/// A file that is read in parts, from any thread.
#[derive(Debug)]
pub(super) struct ShardFile {
    path: PathBuf,
    identity: Identity,
    /// Open, if it is one of those that are kept so.
    kept: Option<File>,
    /// Whether page cache is given back after each read.
    forget: AtomicBool,
    /// A bit for each window that storage has been asked for.
    asked: Box<[AtomicU64]>,
}

/// What tells a file from what it was before: its size and the time of its last change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) bytes: u64,
    pub(super) modified_s: i64,
    pub(super) modified_ns: i64,
}

impl Identity {
    fn of(file: &File, path: &Path) -> Result<Self, SourceError> {
        let meta = file.metadata().map_err(|source| io_error("look at", path, source))?;
        if !meta.is_file() {
            return Err(SourceError::unusable(path, None, "it is no regular file: a shard is one"));
        }
        Ok(Identity { bytes: meta.len(), modified_s: meta.mtime(), modified_ns: meta.mtime_nsec() })
    }
}

pub(super) fn io_error(doing: &'static str, path: &Path, source: io::Error) -> SourceError {
    SourceError::Io { doing, path: path.into(), source }
}

impl ShardFile {
    /// Opens a file. Nothing of it is read yet.
    pub(super) fn open(path: &Path) -> Result<Self, SourceError> {
        // Without NONBLOCK a FIFO of that name would hold this thread for ever.
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let file = std::os::unix::fs::OpenOptionsExt::custom_flags(File::options().read(true), flags).open(path);
        let file = file.map_err(|source| io_error("open", path, source))?;
        let identity = Identity::of(&file, path)?;
        let kept = KEPT_OPEN
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |kept| (kept < KEPT_OPEN_MAX).then_some(kept + 1));
        let kept = kept.is_ok().then_some(file);
        let words = identity.bytes.div_ceil(WINDOW_BYTES * 64) as usize;
        let asked = (0..words).map(|_| AtomicU64::new(0)).collect();
        Ok(ShardFile { path: path.into(), identity, kept, forget: AtomicBool::new(false), asked })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    /// Fills `out` with the bytes from `offset` on.
    ///
    /// # Panics
    /// Panics if the range is not in the file as it was opened.
    pub(super) fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), SourceError> {
        let (end, bytes) = (offset.checked_add(out.len() as u64), self.identity.bytes);
        assert!(end.is_some_and(|end| end <= bytes), "{offset} + {} of {bytes} bytes", out.len());
        self.with_file(|file| {
            file.read_exact_at(out, offset).map_err(|source| match source.kind() {
                io::ErrorKind::UnexpectedEof => self.changed(),
                _ => io_error("read", &self.path, source),
            })?;
            if self.forget.load(Ordering::Relaxed) {
                // Advice: where it is not taken, nothing is wrong.
                let _ = fadvise(file, offset, NonZeroU64::new(out.len() as u64), Advice::DontNeed);
            }
            Ok(())
        })
    }

    /// Does something with the file, which is opened for it where it is not kept open.
    fn with_file<T>(&self, work: impl FnOnce(&File) -> Result<T, SourceError>) -> Result<T, SourceError> {
        match &self.kept {
            Some(file) => work(file),
            None => work(&File::open(&self.path).map_err(|source| io_error("open", &self.path, source))?),
        }
    }

    fn changed(&self) -> SourceError {
        let found_bytes = std::fs::metadata(&self.path).map_or(0, |meta| meta.len());
        SourceError::Changed { path: self.path.clone(), indexed_bytes: self.identity.bytes, found_bytes }
    }

    /// The file, to be read from front to back.
    pub(super) fn reader(&self) -> Result<BufReader<File>, SourceError> {
        let file = File::open(&self.path).map_err(|source| io_error("open", &self.path, source))?;
        Ok(BufReader::with_capacity(READ_BUFFER_BYTES, file))
    }

    /// Whether the file is still the one that was opened.
    ///
    /// # Errors
    /// [`SourceError::Changed`] where it is not.
    pub(super) fn check(&self) -> Result<(), SourceError> {
        let file = File::open(&self.path).map_err(|source| io_error("open", &self.path, source))?;
        if Identity::of(&file, &self.path)? == self.identity { Ok(()) } else { Err(self.changed()) }
    }

    /// Asks storage for a range, without waiting for it. Of files that are not kept open, nothing is asked.
    pub(super) fn will_need(&self, offset: u64, len: u64) {
        let Some(file) = &self.kept else { return };
        let ask = |start: u64, end: u64| {
            if start < end {
                let _ = fadvise(file, start, NonZeroU64::new(end - start), Advice::WillNeed);
            }
        };
        if self.forget.load(Ordering::Relaxed) {
            return ask(offset, offset + len);
        }
        // Neighbouring windows are asked for in one go.
        let (mut start, mut end) = (0, 0);
        for window in self.unasked(offset, len) {
            if window.start > end {
                ask(start, end);
                start = window.start;
            }
            end = window.end;
        }
        ask(start, end);
    }

    /// The windows around a range that storage has not been asked for; from now on it has.
    fn unasked(&self, offset: u64, len: u64) -> impl Iterator<Item = Range<u64>> {
        let windows = offset / WINDOW_BYTES..(offset + len).min(self.identity.bytes).div_ceil(WINDOW_BYTES);
        let unasked = windows.filter(|&window| {
            let (word, bit) = (&self.asked[(window / 64) as usize], 1 << (window % 64));
            word.load(Ordering::Relaxed) & bit == 0 && word.fetch_or(bit, Ordering::Relaxed) & bit == 0
        });
        unasked.map(|window| window * WINDOW_BYTES..(window + 1) * WINDOW_BYTES)
    }

    /// RAM that it takes beyond itself, bytes.
    pub(super) fn heap_bytes(&self) -> usize {
        self.path.capacity() + size_of_val(&*self.asked)
    }

    pub(super) fn forget_pages(&self, forget: bool) {
        self.forget.store(forget, Ordering::Relaxed);
    }
}

impl Drop for ShardFile {
    fn drop(&mut self) {
        if self.kept.is_some() {
            KEPT_OPEN.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    /// The same file, kept open and not.
    fn both(path: &Path) -> [ShardFile; 2] {
        let mut opened = ShardFile::open(path).unwrap();
        if opened.kept.take().is_some() {
            KEPT_OPEN.fetch_sub(1, Ordering::Relaxed);
        }
        [ShardFile::open(path).unwrap(), opened]
    }

    #[test]
    fn any_range_comes_back() {
        let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7 + (i >> 8)) as u8).collect();
        let file = file(&bytes);
        for opened in both(file.path()) {
            for forget in [false, true] {
                opened.forget_pages(forget);
                for (offset, len) in
                    [(0, 3_000_000), (1, 1), (65_535, 2), (2_999_999, 1), (3_000_000, 0), (4096, 131_072)]
                {
                    opened.will_need(offset as u64, len as u64);
                    let mut out = vec![0xEE; len];
                    opened.read_at(offset as u64, &mut out).unwrap();
                    assert_eq!(out, bytes[offset..offset + len], "{offset} + {len}");
                }
            }
        }
    }

    #[test]
    fn a_file_that_shrinks_is_an_error_and_no_signal() {
        let file = file(&vec![7; 200_000]);
        let opened = both(file.path());
        let mut out = vec![0; 100_000];
        opened[0].read_at(100_000, &mut out).unwrap();
        OpenOptions::new().write(true).open(file.path()).unwrap().set_len(5000).unwrap();
        for opened in &opened {
            let error = opened.read_at(100_000, &mut out).unwrap_err().to_string();
            assert!(error.contains("had 200000 bytes when it was indexed and now has 5000"), "{error}");
            assert!(opened.check().is_err());
            opened.will_need(100_000, 100_000);
            opened.read_at(0, &mut out[..4096]).unwrap();
        }
    }

    #[test]
    fn storage_is_asked_for_each_window_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(100 * WINDOW_BYTES + 5).unwrap();
        let opened = ShardFile::open(file.path()).unwrap();
        let asked = |offset, len| opened.unasked(offset, len).map(|w| w.start / WINDOW_BYTES).collect::<Vec<_>>();
        assert_eq!(asked(WINDOW_BYTES - 1, 2), [0, 1]);
        assert_eq!(asked(0, 4 * WINDOW_BYTES), [2, 3]);
        assert_eq!(asked(0, 4 * WINDOW_BYTES), [0; 0]);
        assert_eq!(asked(63 * WINDOW_BYTES, 3 * WINDOW_BYTES), [63, 64, 65]);
        assert_eq!(asked(100 * WINDOW_BYTES, 5), [100]);
        assert_eq!(asked(0, 100 * WINDOW_BYTES + 5).len(), 93);
        opened.will_need(0, 100 * WINDOW_BYTES);
    }

    #[test]
    fn no_more_are_kept_open_than_there_may_be() {
        let file = file(&[1, 2, 3]);
        let all: Vec<ShardFile> = (0..600).map(|_| ShardFile::open(file.path()).unwrap()).collect();
        let kept = all.iter().filter(|one| one.kept.is_some()).count();
        assert!((1..=KEPT_OPEN_MAX).contains(&kept), "{kept}");
        let mut out = [0; 3];
        all.iter().for_each(|one| one.read_at(0, &mut out).unwrap());
        assert_eq!(out, [1, 2, 3]);
    }

    #[test]
    fn what_is_no_file_is_refused_and_an_empty_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let error = ShardFile::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("no regular file"), "{error}");
        let fifo = folder.path().join("x.tar");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
        let error = ShardFile::open(&fifo).unwrap_err().to_string();
        assert!(error.contains("no regular file"), "{error}");
        let empty = file(&[]);
        assert_eq!(ShardFile::open(empty.path()).unwrap().identity().bytes, 0);
    }
}
