//! Random reads of an open object, through the disk cache if there is one.

use std::collections::BTreeMap;
use std::ops::Range;

use futures_util::{StreamExt, stream};
use tokio::sync::SemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::cache::{BLOCK_BYTES, BlockKey, DiskCache};
use super::client::ObjectMeta;
use super::coalesce::{RangeBuffer, ScatterRead, Segment, coalesce, split};
use super::error::StoreError;
use super::reader::Reader;
use super::retry::RetryState;
use super::shared::Shared;
use super::single_flight::FetchClaim;
use super::version::ObjectVersion;
use crate::source::error::SourceError;
use crate::sync::{Arc, Ordering};

/// Concurrent requests of one call.
const CONCURRENCY: usize = 8;

type ReadResult = Result<(), StoreError>;

/// Open object of a [`Store`](super::Store), fixed to the version that was opened. Clones are the same object.
#[derive(Clone, Debug)]
pub struct Object {
    pub(super) store: Shared,
    pub(super) meta: Arc<ObjectMeta>,
}

impl Object {
    pub(super) fn new(store: Shared, meta: ObjectMeta) -> Self {
        Object { store, meta: Arc::new(meta) }
    }

    /// Size, bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.meta.version.bytes
    }

    /// Returns true if the object has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Version that was opened. An index of the object is valid for this version only.
    #[must_use]
    pub fn version(&self) -> &ObjectVersion {
        &self.meta.version
    }

    /// URL without its query.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.meta.url
    }

    /// Fills `out` with the bytes from `offset` on.
    ///
    /// # Errors
    /// [`StoreError::PastEnd`], [`StoreError::Changed`] and [`StoreError::Request`]. The content of `out` is
    /// unspecified then.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), SourceError> {
        self.read_many(&mut [(offset, out)]).pop().unwrap_or(Ok(()))
    }

    /// Fills each buffer with the bytes from its offset on, in any order, and returns a result for each. Neighboring
    /// reads share a request ([`StoreOptions::coalesce_gap_bytes`](super::StoreOptions::coalesce_gap_bytes)).
    ///
    /// The deadline applies to each request, eight of which run concurrently. With a cache, a block that another reader
    /// failed to download may take two deadlines.
    ///
    /// # Errors
    /// Those of [`read_at`](Self::read_at), for each read. Reads that share a request fail together.
    pub fn read_many(&self, reads: &mut [(u64, &mut [u8])]) -> Vec<Result<(), SourceError>> {
        let check = |(offset, out): &(u64, &mut [u8])| self.check_range(*offset, out.len() as u64);
        let mut done: Vec<ReadResult> = reads.iter().map(check).collect();
        match &self.store.client.options.cache {
            Some(cache) => self.read_cached(cache, reads, &mut done),
            None => self.read_coalesced(reads, &mut done),
        }
        done.into_iter().map(|done| done.map_err(SourceError::from)).collect()
    }

    fn check_range(&self, offset: u64, bytes: u64) -> ReadResult {
        let object_bytes = self.len();
        match offset.checked_add(bytes).filter(|&end| end <= object_bytes) {
            Some(_) => Ok(()),
            None => Err(StoreError::PastEnd { url: self.meta.url.clone(), offset, bytes, object_bytes }),
        }
    }

    /// Sequential reader of the whole object. It holds the current chunk and up to `ahead` more; 8 MiB and 2 work well.
    #[must_use]
    pub fn reader(&self, chunk_bytes: usize, ahead: usize) -> Reader {
        Reader::new(self.store.clone(), Arc::clone(&self.meta), chunk_bytes, ahead)
    }

    fn read_coalesced(&self, reads: &mut [(u64, &mut [u8])], done: &mut [ReadResult]) {
        let options = &self.store.client.options;
        let segments = reads.iter_mut().enumerate().filter(|(read, _)| done[*read].is_ok());
        let segments = segments.map(|(read, (offset, out))| Segment { read, offset: *offset, out });
        let segments = split(segments, options.request_bytes_max);
        let requests = coalesce(segments, options.coalesce_gap_bytes, options.request_bytes_max);
        self.store.handle().block_on(async {
            let requests = requests.into_iter().map(|request| self.fill(request));
            let mut running = stream::iter(requests).buffer_unordered(CONCURRENCY);
            while let Some((request, filled)) = running.next().await {
                if filled.is_err() {
                    request.reads().for_each(|read| done[read] = filled.clone());
                }
            }
        });
    }

    async fn fill<'a>(&self, mut request: ScatterRead<'a>) -> (ScatterRead<'a>, ReadResult) {
        let done = self.store.client.read(&self.meta, request.range(), &mut request).await;
        (request, done)
    }

    /// Reads what the cache has, then downloads the missing blocks whole and stores them in the cache.
    fn read_cached(&self, cache: &DiskCache, reads: &mut [(u64, &mut [u8])], done: &mut [ReadResult]) {
        let counters = &self.store.client.counters;
        let mut missing: BTreeMap<u64, Vec<(usize, Range<usize>)>> = BTreeMap::new();
        for (read, (offset, out)) in reads.iter_mut().enumerate().filter(|(read, _)| done[*read].is_ok()) {
            for (block, part) in blocks_of(*offset, out.len()) {
                if !missing.contains_key(&block) && self.read_block(cache, block, *offset, &part, out) {
                    counters.cache_hits.fetch_add(1, Ordering::Relaxed);
                } else {
                    missing.entry(block).or_default().push((read, part));
                }
            }
        }
        counters.cache_misses.fetch_add(missing.len() as u64, Ordering::Relaxed);
        if missing.is_empty() {
            return;
        }
        let blocks: Vec<u64> = missing.keys().copied().collect();
        // Parts of blocks that another reader downloaded, and that were evicted (or never stored) before they were
        // read.
        let mut lost = Vec::new();
        self.store.handle().block_on(async {
            let downloads = blocks.into_iter().map(|block| async move { (block, self.download(cache, block).await) });
            let mut running = stream::iter(downloads).buffer_unordered(CONCURRENCY);
            while let Some((block, downloaded)) = running.next().await {
                let parts = missing.remove(&block).unwrap_or_default();
                match downloaded {
                    Err(error) => parts.iter().for_each(|(read, _)| done[*read] = Err(error.clone())),
                    Ok(Some(Download { buffer, .. })) => {
                        for (read, part) in parts {
                            let (offset, out) = &mut reads[read];
                            let within = (*offset + part.start as u64 - block * BLOCK_BYTES) as usize;
                            out[part.clone()].copy_from_slice(&buffer.bytes[within..within + part.len()]);
                        }
                        cache.insert(self.key(cache, block), &buffer.bytes);
                    }
                    Ok(None) => {
                        lost.extend(parts.into_iter().filter(|(read, part)| {
                            let (offset, out) = &mut reads[*read];
                            !self.read_block(cache, block, *offset, part, out)
                        }));
                    }
                }
            }
            // The other downloads end first: a task that waits here must hold no permit that another one needs.
            drop(running);
            for (read, part) in lost {
                let (offset, out) = &mut reads[read];
                let segment = Segment { read, offset: *offset + part.start as u64, out: &mut out[part] };
                let (_, filled) = self.fill(segment.into()).await;
                if filled.is_err() {
                    done[read] = filled;
                }
            }
        });
    }

    /// Fills `out[part]`, which lies in `block`, from the cache. Returns false if the cache does not have it.
    fn read_block(&self, cache: &DiskCache, block: u64, offset: u64, part: &Range<usize>, out: &mut [u8]) -> bool {
        let range = self.block_range(block);
        let within = offset + part.start as u64 - range.start;
        cache.read(self.key(cache, block), range.end - range.start, within, &mut out[part.clone()])
    }

    /// Downloads a block. Returns `None` once another reader has put it into the cache.
    async fn download(&self, cache: &DiskCache, block: u64) -> Result<Option<Download<'_>>, StoreError> {
        let client = &self.store.client;
        let range = self.block_range(block);
        let deadline = Instant::now() + client.options.deadline;
        let requested = (range.start, range.end - range.start);
        let late = |_| RetryState::new("read", &self.meta.url, requested, &client.options).deadline_error();
        let claim = match client.flights.claim(self.key(cache, block)) {
            Ok(claim) => Some(claim),
            // A disabled cache stores nothing: every reader downloads for itself.
            Err(_) if cache.disabled_reason().is_some() => None,
            Err(mut done) => {
                // The channel carries no values: an error means that it closed.
                let _ = timeout_at(deadline, done.changed()).await.map_err(late)?;
                return Ok(None);
            }
        };
        let permit = timeout_at(deadline, client.block_permits.acquire()).await.map_err(late)?;
        let mut buffer = RangeBuffer::new(&range);
        timeout_at(deadline, client.read(&self.meta, range, &mut buffer)).await.map_err(late)??;
        Ok(Some(Download { buffer, _claim: claim, _permit: permit.ok() }))
    }

    fn key(&self, cache: &DiskCache, block: u64) -> BlockKey {
        cache.key(&self.meta.url, &self.meta.version, block)
    }

    fn block_range(&self, block: u64) -> Range<u64> {
        let start = block * BLOCK_BYTES;
        start..(start + BLOCK_BYTES).min(self.len())
    }
}

/// Downloaded block on its way into the cache, with the claim and the buffer permit that it holds until it is stored.
struct Download<'a> {
    buffer: RangeBuffer,
    _claim: Option<FetchClaim<'a>>,
    _permit: Option<SemaphorePermit<'a>>,
}

/// Blocks that a read touches, and the part of its buffer that each one fills.
fn blocks_of(offset: u64, bytes: usize) -> impl Iterator<Item = (u64, Range<usize>)> {
    let end = offset + bytes as u64;
    let blocks = if bytes == 0 { 0..0 } else { offset / BLOCK_BYTES..(end - 1) / BLOCK_BYTES + 1 };
    blocks.map(move |block| {
        let from = (block * BLOCK_BYTES).max(offset) - offset;
        let to = ((block + 1) * BLOCK_BYTES).min(end) - offset;
        (block, from as usize..to as usize)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_are_split_at_block_boundaries() {
        let parts = |offset, bytes| blocks_of(offset, bytes).collect::<Vec<_>>();
        let mib = BLOCK_BYTES;
        assert_eq!(parts(0, 0), []);
        assert_eq!(parts(mib - 1, 1), [(0, 0..1)]);
        assert_eq!(parts(mib - 1, 2), [(0, 0..1), (1, 1..2)]);
        assert_eq!(parts(mib, 2 * mib as usize), [(1, 0..mib as usize), (2, mib as usize..2 * mib as usize)]);
    }
}
