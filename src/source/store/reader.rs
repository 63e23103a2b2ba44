//! Sequential reader of a whole object with read-ahead. It holds no more chunks than its configuration allows.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read};

use tokio::task::JoinHandle;

use super::client::ObjectMeta;
use super::coalesce::RangeBuffer;
use super::error::StoreError;
use super::shared::Shared;
use crate::source::error::SourceError;
use crate::sync::Arc;

type Chunk = JoinHandle<Result<Vec<u8>, StoreError>>;

/// Sequential reader of an object, made by [`Object::reader`](super::Object::reader). Errors are [`SourceError`]s
/// inside [`io::Error`]s; after the first, every read fails. It bypasses the cache: data that is read once, to be
/// indexed, would evict data that is read again.
pub struct Reader {
    store: Shared,
    meta: Arc<ObjectMeta>,
    chunk_bytes: u64,
    ahead: usize,
    /// Requested chunks, in order.
    pending: VecDeque<Chunk>,
    /// First byte that is not requested yet.
    next: u64,
    current: Vec<u8>,
    consumed: usize,
    failed: bool,
}

impl Reader {
    pub(super) fn new(store: Shared, meta: Arc<ObjectMeta>, chunk_bytes: usize, ahead: usize) -> Self {
        let chunk_bytes = chunk_bytes.max(1) as u64;
        let (pending, current) = (VecDeque::with_capacity(ahead + 1), Vec::new());
        Reader { store, meta, chunk_bytes, ahead, pending, next: 0, current, consumed: 0, failed: false }
    }

    /// Requests chunks until `ahead + 1` are pending.
    fn request_ahead(&mut self) {
        let object_bytes = self.meta.version.bytes;
        while self.pending.len() < self.ahead + 1 && self.next < object_bytes {
            let range = self.next..(self.next + self.chunk_bytes).min(object_bytes);
            self.next = range.end;
            let (client, meta) = (Arc::clone(&self.store.client), Arc::clone(&self.meta));
            self.pending.push_back(self.store.handle().spawn(async move {
                let mut buffer = RangeBuffer::new(&range);
                client.read(&meta, range, &mut buffer).await?;
                Ok(buffer.bytes)
            }));
        }
    }

    /// Moves to the next chunk. Returns false at the end.
    fn advance(&mut self) -> Result<bool, SourceError> {
        // The consumed chunk is freed before another one is requested.
        (self.current, self.consumed) = (Vec::new(), 0);
        self.request_ahead();
        let Some(chunk) = self.pending.pop_front() else { return Ok(false) };
        let chunk = self.store.handle().block_on(chunk);
        let chunk = chunk.map_err(|error| SourceError::io("read", &self.meta.url, io::Error::other(error)))?;
        self.current = chunk?;
        Ok(true)
    }
}

impl Read for Reader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.failed {
            return Err(io::Error::other("an earlier read of this object failed"));
        }
        if out.is_empty() {
            return Ok(0);
        }
        if self.consumed == self.current.len() {
            match self.advance() {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(error) => {
                    self.failed = true;
                    return Err(io::Error::other(error));
                }
            }
        }
        let bytes = out.len().min(self.current.len() - self.consumed);
        out[..bytes].copy_from_slice(&self.current[self.consumed..self.consumed + bytes]);
        self.consumed += bytes;
        Ok(bytes)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.pending.iter().for_each(JoinHandle::abort);
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("url", &self.meta.url).field("next", &self.next).finish_non_exhaustive()
    }
}
