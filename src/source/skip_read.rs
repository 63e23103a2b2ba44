//! Readers that pass over bytes without returning them.

use std::fs::File;
use std::io::{self, BufReader, Read};

/// A reader that can skip bytes.
pub(super) trait SkipRead: Read {
    /// Skips `bytes` bytes. A skip past the end shows as an end of file at the next read.
    fn skip(&mut self, bytes: u64) -> io::Result<()>;
}

impl SkipRead for BufReader<File> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let bytes = i64::try_from(bytes).map_err(|_| io::Error::other("a size beyond that of any file"))?;
        self.seek_relative(bytes)
    }
}

impl<T: SkipRead + ?Sized> SkipRead for Box<T> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        (**self).skip(bytes)
    }
}

/// A reader that cannot seek: it skips by reading.
pub(super) struct NoSeek<R>(pub(super) R);

impl<R: Read> Read for NoSeek<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.read(out)
    }
}

impl<R: Read> SkipRead for NoSeek<R> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        io::copy(&mut self.0.by_ref().take(bytes), &mut io::sink()).map(|_| ())
    }
}
