//! Files as shards: positioned reads, prefetching, and control of the page cache.
//!
//! Files are not memory-mapped: truncation of a mapped file kills the process, and mapped pages count as its memory.

use std::fs::{File, Metadata};
use std::io::{self, BufReader, Read};
use std::mem::size_of_val;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, OFlags, fadvise};

use super::shard_io::{ShardIdentity, ShardIo};
use super::skip_read::SkipRead;
use super::{PageCache, SourceError};
use crate::sync::{AtomicU64, AtomicUsize, Ordering};

/// Maximum number of files kept open, over all sources. Others are opened for each read. Common limits of open files
/// begin at 1024.
const KEPT_OPEN_MAX: usize = 512;
static KEPT_OPEN: AtomicUsize = AtomicUsize::new(0);
/// Unit of prefetching where the page cache has room for all of the data, bytes. Each unit is requested once: its other
/// samples will be read too, and a few large requests take less time than many small ones.
const PREFETCH_BYTES: u64 = 2 << 20;
/// Buffer of a sequential reader, bytes: a tar header and the beginning of what follows it.
const READ_BUFFER_BYTES: usize = 8 << 10;

/// A file that any number of threads read by position.
#[derive(Debug)]
pub(super) struct ShardFile {
    path: PathBuf,
    identity: ShardIdentity,
    /// `None` for files beyond [`KEPT_OPEN_MAX`].
    kept: Option<File>,
    /// One bit for each unit of [`PREFETCH_BYTES`] that was requested.
    prefetched: Box<[AtomicU64]>,
}

/// Opens a regular file.
///
/// # Errors
/// [`SourceError::Io`], and [`SourceError::Unusable`] for a folder, a FIFO or a device.
pub(super) fn open_regular(path: &Path) -> Result<(File, Metadata), SourceError> {
    // Without NONBLOCK, opening a FIFO would block until a writer comes.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path);
    let file = file.map_err(|error| SourceError::io("open", path, error))?;
    let metadata = file.metadata().map_err(|error| SourceError::io("read the metadata of", path, error))?;
    match metadata.is_file() {
        true => Ok((file, metadata)),
        false => Err(SourceError::unusable(path, None, "it is not a regular file: give a regular file")),
    }
}

/// Seconds and nanoseconds of the last change are the version.
fn identity_of(metadata: &Metadata) -> ShardIdentity {
    let version = u128::from(metadata.mtime() as u64) << 64 | u128::from(metadata.mtime_nsec() as u64);
    ShardIdentity { bytes: metadata.len(), version }
}

impl ShardFile {
    /// Opens a file. Reads no content.
    pub(super) fn open(path: &Path) -> Result<Self, SourceError> {
        let (file, metadata) = open_regular(path)?;
        let identity = identity_of(&metadata);
        let kept = KEPT_OPEN
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |kept| (kept < KEPT_OPEN_MAX).then_some(kept + 1));
        let words = identity.bytes.div_ceil(PREFETCH_BYTES * 64) as usize;
        Ok(ShardFile {
            path: path.into(),
            identity,
            kept: kept.is_ok().then_some(file),
            prefetched: (0..words).map(|_| AtomicU64::new(0)).collect(),
        })
    }

    fn reopen(&self) -> Result<File, SourceError> {
        File::open(&self.path).map_err(|error| SourceError::io("open", &self.path, error))
    }

    /// Calls `work` with the file, which is opened for it unless it is kept open.
    fn with_file<T>(&self, work: impl FnOnce(&File) -> Result<T, SourceError>) -> Result<T, SourceError> {
        match &self.kept {
            Some(file) => work(file),
            None => work(&self.reopen()?),
        }
    }

    fn changed(&self) -> SourceError {
        let found_bytes = std::fs::metadata(&self.path).map_or(0, |meta| meta.len());
        SourceError::Changed { path: self.path.clone(), indexed_bytes: self.identity.bytes, found_bytes }
    }

    /// The units around a range that were not requested before. Marks them as requested.
    fn take_units(&self, offset: u64, len: u64) -> impl Iterator<Item = Range<u64>> {
        let units = offset / PREFETCH_BYTES..(offset + len).min(self.identity.bytes).div_ceil(PREFETCH_BYTES);
        let taken = units.filter(|&unit| {
            let (word, bit) = (&self.prefetched[(unit / 64) as usize], 1 << (unit % 64));
            word.load(Ordering::Relaxed) & bit == 0 && word.fetch_or(bit, Ordering::Relaxed) & bit == 0
        });
        taken.map(|unit| unit * PREFETCH_BYTES..(unit + 1) * PREFETCH_BYTES)
    }
}

impl ShardIo for ShardFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn identity(&self) -> ShardIdentity {
        self.identity
    }

    fn read_at(&self, offset: u64, out: &mut [u8], page_cache: PageCache) -> Result<(), SourceError> {
        let (end, bytes) = (offset.checked_add(out.len() as u64), self.identity.bytes);
        assert!(end.is_some_and(|end| end <= bytes), "{offset} + {} of {bytes} bytes", out.len());
        self.with_file(|file| {
            file.read_exact_at(out, offset).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => self.changed(),
                _ => SourceError::io("read", &self.path, error),
            })?;
            if page_cache == PageCache::Drop {
                // Advice only: a refusal does no harm.
                let _ = fadvise(file, offset, NonZeroU64::new(out.len() as u64), Advice::DontNeed);
            }
            Ok(())
        })
    }

    fn reader(&self) -> Result<Box<dyn SkipRead>, SourceError> {
        Ok(Box::new(BufReader::with_capacity(READ_BUFFER_BYTES, self.reopen()?)))
    }

    fn check_unchanged(&self) -> Result<(), SourceError> {
        let (_, metadata) = open_regular(&self.path)?;
        if identity_of(&metadata) == self.identity { Ok(()) } else { Err(self.changed()) }
    }

    fn is_local(&self) -> bool {
        true
    }

    fn read_sibling(&self, name: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, SourceError> {
        let path = self.path.with_file_name(name);
        let (mut file, metadata) = match open_regular(&path) {
            Err(SourceError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        if metadata.len() > bytes_max {
            return Err(SourceError::TooLarge { path, bytes: metadata.len(), bytes_max });
        }
        let mut bytes = Vec::with_capacity(metadata.len() as usize);
        let read = file.by_ref().take(bytes_max).read_to_end(&mut bytes);
        read.map_err(|error| SourceError::io("read", &path, error))?;
        Ok(Some(bytes))
    }

    fn heap_bytes(&self) -> usize {
        self.path.capacity() + size_of_val(&*self.prefetched)
    }

    /// Prefetches nothing of files that are not kept open.
    fn prefetch(&self, offset: u64, len: u64, page_cache: PageCache) {
        let Some(file) = &self.kept else { return };
        let will_need = |start: u64, end: u64| {
            if start < end {
                let _ = fadvise(file, start, NonZeroU64::new(end - start), Advice::WillNeed);
            }
        };
        if page_cache == PageCache::Drop {
            return will_need(offset, offset + len);
        }
        // Adjacent units go into one request.
        let (mut start, mut end) = (0, 0);
        for unit in self.take_units(offset, len) {
            if unit.start > end {
                will_need(start, end);
                start = unit.start;
            }
            end = unit.end;
        }
        will_need(start, end);
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
            for page_cache in [PageCache::Keep, PageCache::Drop] {
                for (offset, len) in
                    [(0, 3_000_000), (1, 1), (65_535, 2), (2_999_999, 1), (3_000_000, 0), (4096, 131_072)]
                {
                    opened.prefetch(offset as u64, len as u64, page_cache);
                    let mut out = vec![0xEE; len];
                    opened.read_at(offset as u64, &mut out, page_cache).unwrap();
                    assert_eq!(out, bytes[offset..offset + len], "{offset} + {len}");
                }
            }
        }
    }

    #[test]
    fn a_truncated_file_is_an_error_and_not_a_signal() {
        let file = file(&vec![7; 200_000]);
        let opened = both(file.path());
        let mut out = vec![0; 100_000];
        opened[0].read_at(100_000, &mut out, PageCache::Keep).unwrap();
        OpenOptions::new().write(true).open(file.path()).unwrap().set_len(5000).unwrap();
        for opened in &opened {
            let error = opened.read_at(100_000, &mut out, PageCache::Keep).unwrap_err().to_string();
            assert!(error.contains("had 200000 bytes when it was indexed and now has 5000"), "{error}");
            assert!(opened.check_unchanged().is_err());
            opened.prefetch(100_000, 100_000, PageCache::Keep);
            opened.read_at(0, &mut out[..4096], PageCache::Keep).unwrap();
        }
    }

    #[test]
    fn each_unit_is_prefetched_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(100 * PREFETCH_BYTES + 5).unwrap();
        let opened = ShardFile::open(file.path()).unwrap();
        let taken = |offset, len| opened.take_units(offset, len).map(|w| w.start / PREFETCH_BYTES).collect::<Vec<_>>();
        assert_eq!(taken(PREFETCH_BYTES - 1, 2), [0, 1]);
        assert_eq!(taken(0, 4 * PREFETCH_BYTES), [2, 3]);
        assert_eq!(taken(0, 4 * PREFETCH_BYTES), [0; 0]);
        assert_eq!(taken(63 * PREFETCH_BYTES, 3 * PREFETCH_BYTES), [63, 64, 65]);
        assert_eq!(taken(100 * PREFETCH_BYTES, 5), [100]);
        assert_eq!(taken(0, 100 * PREFETCH_BYTES + 5).len(), 93);
        opened.prefetch(0, 100 * PREFETCH_BYTES, PageCache::Keep);
    }

    #[test]
    fn open_files_are_limited() {
        let file = file(&[1, 2, 3]);
        let all: Vec<ShardFile> = (0..600).map(|_| ShardFile::open(file.path()).unwrap()).collect();
        let kept = all.iter().filter(|one| one.kept.is_some()).count();
        assert!((1..=KEPT_OPEN_MAX).contains(&kept), "{kept}");
        let mut out = [0; 3];
        all.iter().for_each(|one| one.read_at(0, &mut out, PageCache::Keep).unwrap());
        assert_eq!(out, [1, 2, 3]);
    }

    #[test]
    fn only_regular_files_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let error = ShardFile::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
        let fifo = folder.path().join("x.tar");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
        let error = ShardFile::open(&fifo).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
        let empty = file(&[]);
        assert_eq!(ShardFile::open(empty.path()).unwrap().identity().bytes, 0);
    }
}
