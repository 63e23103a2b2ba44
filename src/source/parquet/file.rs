//! Parquet file on disk: checks that it is complete and unchanged, and positioned reads by any thread. Files are not
//! kept open, and no read allocates more than the size of the file.

use std::fs::{File, Metadata};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};
use rustix::fs::{Advice, FileType, OFlags, fadvise};

use crate::source::error::SourceError;
use crate::source::scan::special_kind;
use crate::sync::{Arc, AtomicU64, Ordering};

/// First and last bytes of a Parquet file.
const MAGIC: &[u8; 4] = b"PAR1";

/// Last bytes of a file with an encrypted footer.
const MAGIC_ENCRYPTED: &[u8; 4] = b"PARE";

/// Minimum size of a Parquet file: the magic at both ends, and the length of the footer.
const FILE_BYTES_MIN: u64 = 12;

/// Buffer for page headers, which have a few dozen bytes.
const HEADER_READ_BYTES: usize = 4096;

/// Path, size and modification time of an indexed file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DataFile {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    /// Modification time: seconds, and nanoseconds of the second.
    pub(super) modified: (i64, i64),
}

/// File open for reading.
#[derive(Debug)]
pub(super) struct OpenFile {
    file: Arc<File>,
    bytes: u64,
    /// Size of the largest read.
    read_bytes_max: AtomicU64,
}

impl DataFile {
    /// Opens a file for the first time, and checks that it is complete.
    pub(super) fn open_new(path: &Path) -> Result<(DataFile, OpenFile), SourceError> {
        let (file, metadata) = open(path)?;
        let data =
            DataFile { path: path.into(), bytes: metadata.len(), modified: (metadata.mtime(), metadata.mtime_nsec()) };
        let opened = OpenFile { file: Arc::new(file), bytes: data.bytes, read_bytes_max: AtomicU64::new(0) };
        let magic = |at: u64| {
            let mut magic = [0; 4];
            let read = opened.file.read_exact_at(&mut magic, at);
            read.map(|()| magic).map_err(|error| SourceError::io("read", path, error))
        };
        let cause = match data.bytes {
            0 => "the file is empty: its download or its writer was interrupted".to_owned(),
            bytes @ 1..FILE_BYTES_MIN => format!(
                "a Parquet file has at least {FILE_BYTES_MIN} bytes, and this one has {bytes}: check its origin"
            ),
            bytes => match (&magic(0)?, &magic(bytes - 4)?) {
                (MAGIC, MAGIC) => return Ok((data, opened)),
                (MAGIC_ENCRYPTED, _) | (MAGIC, MAGIC_ENCRYPTED) => "encrypted Parquet files are not supported".into(),
                (MAGIC, _) => {
                    "the file is truncated: it does not end with 'PAR1'; its download or its writer was interrupted"
                        .into()
                }
                _ => "not a Parquet file, which begins with 'PAR1': is it a web page or a Git LFS pointer?".into(),
            },
        };
        Err(data.unusable("", cause))
    }

    /// Opens the file again.
    ///
    /// # Errors
    /// [`SourceError::Changed`] or [`SourceError::Unusable`] if it is not the file that was indexed.
    pub(super) fn open(&self) -> Result<OpenFile, SourceError> {
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
                "it was modified after it was opened: leave the data alone during a run, or open the source again",
            ));
        }
        Ok(OpenFile { file: Arc::new(file), bytes: self.bytes, read_bytes_max: AtomicU64::new(0) })
    }

    pub(super) fn unusable(&self, place: &str, cause: impl Into<String>) -> SourceError {
        SourceError::Unusable { path: self.path.clone(), place: place.into(), cause: cause.into() }
    }

    /// Converts an error of the `parquet` crate.
    pub(super) fn damaged(&self, place: &str, error: ParquetError) -> SourceError {
        let message = match error {
            ParquetError::External(inner) => match inner.downcast::<io::Error>() {
                // Errors of decompressors are I/O errors, too, but have no error number of the system.
                Ok(source) if source.raw_os_error().is_some() => {
                    return SourceError::io("read", &self.path, *source);
                }
                Ok(source) => source.to_string(),
                Err(inner) => inner.to_string(),
            },
            ParquetError::General(message) | ParquetError::EOF(message) | ParquetError::NYI(message) => message,
            other => other.to_string(),
        };
        let cause = format!("it is damaged or not supported ({message}): download or write it again");
        SourceError::Damaged { path: self.path.clone(), place: place.into(), cause }
    }
}

fn open(path: &Path) -> Result<(File, Metadata), SourceError> {
    let io_error = |doing, error: io::Error| SourceError::io(doing, path, error);
    // Without NONBLOCK, opening a FIFO would block this thread forever.
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32;
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(|error| io_error("open", error))?;
    let metadata = file.metadata().map_err(|error| io_error("read the metadata of", error))?;
    let found = match FileType::from_raw_mode(metadata.mode()) {
        FileType::RegularFile => return Ok((file, metadata)),
        FileType::Directory => "a folder: name the Parquet files in it, as in data/train-*.parquet".into(),
        kind => format!("{}, not a Parquet file", special_kind(kind)),
    };
    Err(SourceError::Unusable { path: path.into(), place: String::new(), cause: format!("this is {found}") })
}

impl OpenFile {
    /// Advises the system about a range of the file. Errors are ignored.
    pub(super) fn advise(&self, start: u64, bytes: u64, advice: Advice) {
        let _ = fadvise(&*self.file, start, std::num::NonZeroU64::new(bytes), advice);
    }

    /// The same file with a new maximum of the read size.
    pub(super) fn with_new_maximum(&self) -> OpenFile {
        OpenFile { file: Arc::clone(&self.file), bytes: self.bytes, read_bytes_max: AtomicU64::new(0) }
    }

    /// Size of the largest read so far, bytes.
    pub(super) fn read_bytes_max(&self) -> u64 {
        self.read_bytes_max.load(Ordering::Relaxed)
    }
}

impl Length for OpenFile {
    fn len(&self) -> u64 {
        self.bytes
    }
}

/// Positioned reads, so that several threads can read one file. The implementation of the `parquet` crate for a file
/// shares a cursor.
impl ChunkReader for OpenFile {
    type T = BufReader<PositionedReader>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        let reader = PositionedReader { file: Arc::clone(&self.file), at: start };
        Ok(BufReader::with_capacity(HEADER_READ_BYTES, reader))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        if start.checked_add(length as u64).is_none_or(|end| end > self.bytes) {
            let message = format!("{length} bytes from byte {start} on, in a file of {} bytes", self.bytes);
            return Err(ParquetError::EOF(message));
        }
        self.read_bytes_max.fetch_max(length as u64, Ordering::Relaxed);
        let mut memory = vec![0; length];
        self.file.read_exact_at(&mut memory, start)?;
        Ok(memory.into())
    }
}

/// Reader of a file from a position on.
#[derive(Debug)]
pub(super) struct PositionedReader {
    file: Arc<File>,
    at: u64,
}

impl Read for PositionedReader {
    fn read(&mut self, memory: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(memory, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}
