//! Owns a Parquet file on disk: that it is one, that it is still the same, and reads of stretches of it by any thread.
//! It must never keep a file open, nor take more memory for a read than the file has bytes.

use std::fs::{File, Metadata};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};
use rustix::fs::{Advice, FileType, OFlags, fadvise};

use super::super::SourceError;
use super::super::scan::special_kind;
use crate::sync::{Arc, AtomicU64, Ordering};

/// What a Parquet file begins and ends with.
const MAGIC: &[u8; 4] = b"PAR1";

/// What it ends with where its footer is encrypted.
const MAGIC_ENCRYPTED: &[u8; 4] = b"PARE";

/// The least that a Parquet file can have: its marks at both ends, and the length of its footer.
const FILE_BYTES_MIN: u64 = 12;

/// Read at once where the header of a page is looked for: headers have a few dozen bytes.
const HEADER_READ_BYTES: usize = 4096;

/// Which file, and as what it was indexed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DataFile {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    /// When it was last written to: seconds, and nanoseconds of the second.
    pub(super) modified: (i64, i64),
}

/// A file that is open for reading.
#[derive(Debug)]
pub(super) struct Opened {
    file: Arc<File>,
    bytes: u64,
    /// The most that was read at once.
    read_bytes_max: AtomicU64,
}

impl DataFile {
    /// Opens a file for the first time, and sees whether it is whole.
    pub(super) fn look(path: &Path) -> Result<(DataFile, Opened), SourceError> {
        let (file, metadata) = open(path)?;
        let data =
            DataFile { path: path.into(), bytes: metadata.len(), modified: (metadata.mtime(), metadata.mtime_nsec()) };
        let opened = Opened { file: Arc::new(file), bytes: data.bytes, read_bytes_max: AtomicU64::new(0) };
        let refused = |cause: &str| Err(data.unusable("", cause));
        if data.bytes == 0 {
            return refused("this file is empty: was its download or its writer broken off?");
        }
        let mark = |at: u64| {
            let mut mark = [0; 4];
            let read = opened.file.read_exact_at(&mut mark, at);
            read.map(|()| mark).map_err(|error| SourceError::io("read", path, error))
        };
        let is_long_enough = data.bytes >= FILE_BYTES_MIN;
        match (is_long_enough, is_long_enough.then(|| mark(0)).transpose()?.as_ref()) {
            (false, _) => {
                return refused(&format!(
                    "{} bytes are too few for a Parquet file; check where it comes from",
                    data.bytes
                ));
            }
            (true, Some(MAGIC_ENCRYPTED)) => return refused("this Parquet file is encrypted, which is not supported"),
            (true, Some(MAGIC)) => {}
            (true, _) => {
                return refused(
                    "no Parquet file: it does not begin with 'PAR1'. Was a web page or a pointer of Git LFS \
                                saved in its place?",
                );
            }
        }
        match &mark(data.bytes - 4)? {
            MAGIC => Ok((data, opened)),
            MAGIC_ENCRYPTED => refused("this Parquet file is encrypted, which is not supported"),
            _ => refused(
                "this Parquet file is cut off: it does not end with 'PAR1'. Was its download or its writer \
                          broken off?",
            ),
        }
    }

    /// Opens it again.
    ///
    /// # Errors
    /// [`SourceError::Changed`] or [`SourceError::Unusable`] where it is not what was indexed.
    pub(super) fn open(&self) -> Result<Opened, SourceError> {
        let (file, metadata) = open(&self.path)?;
        if metadata.len() != self.bytes {
            return Err(SourceError::Changed {
                path: self.path.clone(),
                indexed_bytes: self.bytes,
                found_bytes: metadata.len(),
            });
        }
        if (metadata.mtime(), metadata.mtime_nsec()) != self.modified {
            return Err(self.unusable(
                "",
                "was written to since it was opened: leave the data alone during a run, or open the source again",
            ));
        }
        Ok(Opened { file: Arc::new(file), bytes: self.bytes, read_bytes_max: AtomicU64::new(0) })
    }

    pub(super) fn unusable(&self, place: &str, cause: impl Into<String>) -> SourceError {
        SourceError::Unusable { path: self.path.clone(), place: place.into(), cause: cause.into() }
    }

    /// What the library that reads Parquet says, about this file.
    pub(super) fn damaged(&self, place: &str, error: ParquetError) -> SourceError {
        let told = match error {
            ParquetError::External(inner) => match inner.downcast::<io::Error>() {
                // What a decompressor finds wrong comes as an I/O error as well, but has no number of the system's.
                Ok(source) if source.raw_os_error().is_some() => {
                    return SourceError::io("read", &self.path, *source);
                }
                Ok(source) => source.to_string(),
                Err(inner) => inner.to_string(),
            },
            ParquetError::General(told) | ParquetError::EOF(told) | ParquetError::NYI(told) => told,
            other => other.to_string(),
        };
        let cause = format!("it is damaged, or of a kind that is not supported ({told}); fetch or write it anew");
        SourceError::Damaged { path: self.path.clone(), place: place.into(), cause }
    }
}

fn open(path: &Path) -> Result<(File, Metadata), SourceError> {
    let io_error = |doing, error: io::Error| SourceError::io(doing, path, error);
    // Without NONBLOCK, a FIFO would hold this thread for ever.
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32;
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(|error| io_error("open", error))?;
    let metadata = file.metadata().map_err(|error| io_error("look at", error))?;
    let found = match FileType::from_raw_mode(metadata.mode()) {
        FileType::RegularFile => return Ok((file, metadata)),
        FileType::Directory => "a folder: give the Parquet files in it, as in data/train-*.parquet".into(),
        kind => format!("{}, and no Parquet file", special_kind(kind)),
    };
    Err(SourceError::Unusable { path: path.into(), place: String::new(), cause: format!("this is {found}") })
}

impl Opened {
    /// Gives advice about a stretch of the file. Where it is not taken, nothing is wrong.
    pub(super) fn advise(&self, start: u64, bytes: u64, advice: Advice) {
        let _ = fadvise(&*self.file, start, std::num::NonZeroU64::new(bytes), advice);
    }

    /// The same file, with nothing read yet.
    pub(super) fn afresh(&self) -> Opened {
        Opened { file: Arc::clone(&self.file), bytes: self.bytes, read_bytes_max: AtomicU64::new(0) }
    }

    /// The most that was read at once so far, bytes.
    pub(super) fn read_bytes_max(&self) -> u64 {
        self.read_bytes_max.load(Ordering::Relaxed)
    }
}

impl Length for Opened {
    fn len(&self) -> u64 {
        self.bytes
    }
}

/// By position, so that any number of threads read at once. The library's own way for a file moves one cursor.
impl ChunkReader for Opened {
    type T = BufReader<From>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        let from = From { file: Arc::clone(&self.file), at: start };
        Ok(BufReader::with_capacity(HEADER_READ_BYTES, from))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        if start.checked_add(length as u64).is_none_or(|end| end > self.bytes) {
            let told = format!("{length} bytes from byte {start} on, in a file of {} bytes", self.bytes);
            return Err(ParquetError::EOF(told));
        }
        self.read_bytes_max.fetch_max(length as u64, Ordering::Relaxed);
        let mut memory = vec![0; length];
        self.file.read_exact_at(&mut memory, start)?;
        Ok(memory.into())
    }
}

/// A file from some byte on.
#[derive(Debug)]
pub(super) struct From {
    file: Arc<File>,
    at: u64,
}

impl Read for From {
    fn read(&mut self, memory: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(memory, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}
