//! Owns the reading of a whole object in order, some chunks ahead of whoever takes it.
//! It must never hold more chunks than it was told to.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read};

use tokio::task::JoinHandle;

use super::join::Whole;
use super::{Object, StoreError};
use crate::source::SourceError;
use crate::sync::Arc;

type Chunk = JoinHandle<Result<Vec<u8>, StoreError>>;

/// An object from front to back, as [`Object::reader`] gives it. Errors are [`SourceError`]s in [`io::Error`]s; after
/// one it gives nothing more. It passes the cache by: what is read once, to be indexed, would push out what is read
/// again.
pub struct Reader {
    object: Object,
    chunk_bytes: u64,
    ahead: usize,
    /// Chunks that are asked for, in order.
    coming: VecDeque<Chunk>,
    /// The first byte that is not asked for.
    next: u64,
    current: Vec<u8>,
    taken: usize,
    failed: bool,
}

impl Reader {
    pub(super) fn new(object: Object, chunk_bytes: usize, ahead: usize) -> Self {
        let chunk_bytes = chunk_bytes.max(1) as u64;
        let (coming, current) = (VecDeque::with_capacity(ahead + 1), Vec::new());
        Reader { object, chunk_bytes, ahead, coming, next: 0, current, taken: 0, failed: false }
    }

    /// RAM that it holds at most, bytes: the chunk at hand and those ahead.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.chunk_bytes.min(self.object.len()) * (self.ahead as u64 + 1)
    }

    /// Asks for chunks until `ahead` of them are coming, or one where nothing is held.
    fn ask(&mut self, coming_max: usize) {
        while self.coming.len() < coming_max && self.next < self.object.len() {
            let range = self.next..(self.next + self.chunk_bytes).min(self.object.len());
            self.next = range.end;
            let (core, opened) = (Arc::clone(&self.object.store.core), Arc::clone(&self.object.opened));
            self.coming.push_back(self.object.store.threads.handle.spawn(async move {
                let mut whole = Whole { start: range.start, bytes: vec![0; (range.end - range.start) as usize] };
                core.read(&opened, range, &mut whole).await?;
                Ok(whole.bytes)
            }));
        }
    }

    fn advance(&mut self) -> Result<bool, SourceError> {
        // The chunk that was read goes before another is asked for.
        (self.current, self.taken) = (Vec::new(), 0);
        self.ask(self.ahead + 1);
        let Some(chunk) = self.coming.pop_front() else { return Ok(false) };
        let chunk = self.object.store.threads.handle.block_on(chunk);
        let chunk = chunk.map_err(|error| SourceError::io("read", self.object.url(), io::Error::other(error)))?;
        self.current = chunk?;
        Ok(true)
    }
}

impl Read for Reader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        if self.taken == self.current.len() {
            let more = if self.failed { Ok(false) } else { self.advance() };
            match more {
                Ok(true) => {}
                Ok(false) if self.failed => return Err(io::Error::other("an earlier read of this object failed")),
                Ok(false) => return Ok(0),
                Err(error) => {
                    self.failed = true;
                    return Err(io::Error::other(error));
                }
            }
        }
        let bytes = out.len().min(self.current.len() - self.taken);
        out[..bytes].copy_from_slice(&self.current[self.taken..self.taken + bytes]);
        self.taken += bytes;
        Ok(bytes)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.coming.iter().for_each(JoinHandle::abort);
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("url", &self.object.url()).field("next", &self.next).finish()
    }
}
