//! Owns files that are mapped into memory: reading them, asking storage for what comes next, and giving pages back.
//! It must never touch a mapped page itself: a file that shrinks while it is mapped would end the process with SIGBUS. The
//! kernel copies instead, to which a page that is gone is an error like any other.

use std::fs::File;
use std::io::{self, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap};
use rustix::fs::fadvise;

use super::SourceError;
use crate::sync::{AtomicBool, Ordering};

/// What a fault maps at a time: the kernel maps the pages around one that is asked for, as far as they are cached.
const FAULT_BYTES: u64 = 64 << 10;
/// What is read at a time where a file is looked through: a header, and the front of what follows it.
const READ_BUFFER_BYTES: usize = 8 << 10;
/// Copied, and given back, at a time: of a large range no more than this is in the process's memory twice.
const PIECE_BYTES: usize = 1 << 20;

/// A file in memory. It keeps no descriptor open, so thousands of shards are no burden on the limit of open files.
#[derive(Debug)]
pub(super) struct Mapped {
    path: PathBuf,
    identity: Identity,
    /// None where the file is empty.
    map: Option<Mmap>,
    /// Whether page cache is given back after each read.
    forget: AtomicBool,
}

/// What tells a file from what it was before: its size and the time of its last change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) bytes: u64,
    pub(super) modified_s: i64,
    pub(super) modified_ns: i64,
}

impl Identity {
    pub(super) fn of(file: &File, path: &Path) -> Result<Self, SourceError> {
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

impl Mapped {
    /// Maps a file. Nothing of it is read yet.
    pub(super) fn open(path: &Path) -> Result<Self, SourceError> {
        let file = File::open(path).map_err(|source| io_error("open", path, source))?;
        let identity = Identity::of(&file, path)?;
        #[allow(unsafe_code, reason = "mapping is only sound while nobody changes the file; see SAFETY")]
        // SAFETY: the map is never dereferenced. Its pages are named to the kernel by address and copied by it, so neither a
        // change of the file nor its truncation can be seen as anything but bytes or an error.
        let map = (identity.bytes > 0).then(|| unsafe { Mmap::map(&file) }).transpose();
        let map = map.map_err(|source| io_error("map", path, source))?;
        Ok(Mapped { path: path.into(), identity, map, forget: AtomicBool::new(false) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    pub(super) fn bytes(&self) -> u64 {
        self.identity.bytes
    }

    /// Copies the bytes from `offset` on, all of `out`, and gives the pages back.
    ///
    /// # Panics
    /// Panics if the range is not in the file as it was opened.
    pub(super) fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), SourceError> {
        let end = offset.checked_add(out.len() as u64);
        assert!(end.is_some_and(|end| end <= self.bytes()), "{offset} + {} of {} bytes", out.len(), self.bytes());
        let Some(map) = self.map.as_ref().filter(|_| !out.is_empty()) else { return Ok(()) };
        let mut at = offset;
        for piece in out.chunks_mut(PIECE_BYTES) {
            let copied = copy(map, at as usize, piece);
            self.release(at, piece.len() as u64);
            match copied {
                Ok(()) => {}
                Err(Refused::Gone) => return Err(self.changed()),
                Err(Refused::Forbidden) => self.read_file_at(at, piece)?,
            }
            at += piece.len() as u64;
        }
        if self.forget.load(Ordering::Relaxed)
            && let Ok(file) = File::open(&self.path)
        {
            // Advice: where it is not taken, nothing is wrong.
            let length = std::num::NonZeroU64::new(out.len() as u64);
            let _ = fadvise(&file, offset, length, rustix::fs::Advice::DontNeed);
        }
        Ok(())
    }

    /// Where a sandbox forbids the call that copies: as any file is read.
    fn read_file_at(&self, offset: u64, out: &mut [u8]) -> Result<(), SourceError> {
        let file = File::open(&self.path).map_err(|source| io_error("open", &self.path, source))?;
        file.read_exact_at(out, offset).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => self.changed(),
            _ => io_error("read", &self.path, source),
        })
    }

    fn changed(&self) -> SourceError {
        let found_bytes = std::fs::metadata(&self.path).map_or(0, |meta| meta.len());
        SourceError::Changed { path: self.path.clone(), indexed_bytes: self.bytes(), found_bytes }
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

    /// Asks storage for a range, without waiting for it.
    pub(super) fn will_need(&self, offset: u64, len: u64) {
        if let Some(map) = &self.map {
            let _ = map.advise_range(Advice::WillNeed, offset as usize, len as usize);
        }
    }

    /// Takes the pages of a range out of this process's memory; they stay in the page cache.
    fn release(&self, offset: u64, len: u64) {
        let Some(map) = &self.map else { return };
        let start = offset / FAULT_BYTES * FAULT_BYTES;
        let end = (offset + len).next_multiple_of(FAULT_BYTES).min(self.bytes());
        #[allow(unsafe_code, reason = "the advice drops pages, which nobody may be looking at")]
        // SAFETY: pages of a file that is mapped to be read hold nothing but the file, and come back when asked for; nobody
        // holds a reference into the map.
        let _ = unsafe {
            map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start as usize, (end - start) as usize)
        };
    }

    pub(super) fn forget_pages(&self, forget: bool) {
        self.forget.store(forget, Ordering::Relaxed);
    }
}

/// Why nothing was copied.
enum Refused {
    /// The pages are not there any more.
    Gone,
    /// The system does not let a process ask for its own memory in this way.
    Forbidden,
}

/// Has the kernel copy bytes of the map.
fn copy(map: &Mmap, offset: usize, out: &mut [u8]) -> Result<(), Refused> {
    let this = rustix::process::getpid().as_raw_pid();
    let mut filled = 0;
    while filled < out.len() {
        let left = &mut out[filled..];
        let into = libc::iovec { iov_base: left.as_mut_ptr().cast(), iov_len: left.len() };
        let from = map.as_ptr().wrapping_add(offset + filled).cast_mut();
        let from = libc::iovec { iov_base: from.cast(), iov_len: left.len() };
        #[allow(unsafe_code, reason = "the one call that copies mapped memory and fails where a plain load would not")]
        // SAFETY: `into` is `left`, exclusively borrowed and as long as it says. `from` lies in the map, which outlives the
        // call, and is only read; where its pages are gone the call fails.
        let copied = unsafe { libc::process_vm_readv(this, &raw const into, 1, &raw const from, 1, 0) };
        match copied {
            1.. => filled += copied as usize,
            0 => return Err(Refused::Gone),
            _ => match io::Error::last_os_error().raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::ENOSYS | libc::EPERM | libc::EACCES) => return Err(Refused::Forbidden),
                _ => return Err(Refused::Gone),
            },
        }
    }
    Ok(())
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

    #[test]
    fn any_range_comes_back() {
        let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7 + (i >> 8)) as u8).collect();
        let file = file(&bytes);
        let mapped = Mapped::open(file.path()).unwrap();
        assert_eq!(mapped.bytes(), 3_000_000);
        for forget in [false, true] {
            mapped.forget_pages(forget);
            for (offset, len) in [
                (0, 3_000_000),
                (1, 1),
                (65_535, 2),
                (2_999_999, 1),
                (3_000_000, 0),
                (7, 1 << 20),
                (5, (1 << 20) + 1),
                (4096, 131_072),
            ] {
                mapped.will_need(offset as u64, len as u64);
                let mut out = vec![0xEE; len];
                mapped.read_at(offset as u64, &mut out).unwrap();
                assert_eq!(out, bytes[offset..offset + len], "{offset} + {len}");
                let mut out = vec![0xEE; len];
                mapped.read_file_at(offset as u64, &mut out).unwrap();
                assert_eq!(out, bytes[offset..offset + len], "{offset} + {len}");
            }
        }
    }

    #[test]
    fn a_file_that_shrinks_is_an_error_and_no_signal() {
        let file = file(&vec![7; 200_000]);
        let mapped = Mapped::open(file.path()).unwrap();
        let mut out = vec![0; 100_000];
        mapped.read_at(100_000, &mut out).unwrap();
        OpenOptions::new().write(true).open(file.path()).unwrap().set_len(5000).unwrap();
        for way in [Mapped::read_at, Mapped::read_file_at] {
            let error = way(&mapped, 100_000, &mut out).unwrap_err().to_string();
            assert!(error.contains("had 200000 bytes when it was indexed and now has 5000"), "{error}");
        }
        mapped.will_need(100_000, 100_000);
        mapped.read_at(0, &mut out[..4096]).unwrap();
    }

    #[test]
    fn threads_that_read_while_a_file_shrinks_and_grows_see_bytes_or_errors() {
        let file = file(&vec![7; 1 << 20]);
        let mapped = Mapped::open(file.path()).unwrap();
        let done = AtomicBool::new(false);
        let (read, refused) = std::thread::scope(|scope| {
            let readers: Vec<_> = (0..3u64)
                .map(|reader| {
                    let (mapped, done) = (&mapped, &done);
                    scope.spawn(move || {
                        let (mut out, mut counts) = (vec![0; 50_000], (0, 0));
                        while !done.load(Ordering::Relaxed) {
                            match mapped.read_at(900_000 + reader, &mut out) {
                                Ok(()) => counts.0 += 1,
                                Err(SourceError::Changed { .. }) => counts.1 += 1,
                                Err(other) => panic!("{other}"),
                            }
                        }
                        counts
                    })
                })
                .collect();
            let writer = OpenOptions::new().write(true).open(file.path()).unwrap();
            for _ in 0..2000 {
                writer.set_len(10_000).unwrap();
                writer.set_len(1 << 20).unwrap();
            }
            done.store(true, Ordering::Relaxed);
            readers.into_iter().map(|reader| reader.join().unwrap()).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
        });
        println!("{read} reads, {refused} refused");
        assert!(read > 0);
    }

    #[test]
    fn what_is_no_file_is_refused_and_an_empty_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let error = Mapped::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("no regular file"), "{error}");
        let empty = file(&[]);
        assert_eq!(Mapped::open(empty.path()).unwrap().bytes(), 0);
    }
}
