//! Owns an open object: random reads of it, through the cache where there is one.
//! It must never give bytes of another version than the one that was opened.

use std::collections::BTreeMap;
use std::ops::Range;

use futures_util::{StreamExt, stream};
use tokio::sync::SemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::cache::{BLOCK_BYTES, DiskCache};
use super::fetch::{Core, Opened};
use super::flight::Flight;
use super::join::{Piece, Scatter, Whole, cut, join};
use super::retry::Tries;
use super::{Identity, Reader, Store, StoreError};
use crate::source::SourceError;
use crate::sync::{Arc, Ordering};

/// Requests of one call that are under way at once.
const AT_ONCE: usize = 8;

/// What came of a read.
type Done = Result<(), StoreError>;

/// An object of a [`Store`], as it was when it was opened. Clones are the same object.
#[derive(Clone, Debug)]
pub struct Object {
    pub(super) store: Store,
    pub(super) opened: Arc<Opened>,
}

impl Object {
    pub(super) fn new(store: Store, opened: Opened) -> Self {
        Object { store, opened: Arc::new(opened) }
    }

    /// Its size, bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.opened.identity.bytes
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What tells it from other versions of it: what an index of it is tied to.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.opened.identity
    }

    /// What a person calls it.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.opened.url
    }

    /// Fills `out` with the bytes from `offset` on.
    ///
    /// # Errors
    /// [`StoreError::PastEnd`], [`StoreError::Changed`], and [`StoreError::Request`] where they cannot be had. What
    /// `out` holds afterwards is unspecified.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), SourceError> {
        self.read_many(&mut [(offset, out)]).pop().unwrap_or(Ok(()))
    }

    /// Fills each piece of memory with the bytes from its offset on, in any order; neighbours are asked for together
    /// ([`StoreOptions::join_gap_bytes`](super::StoreOptions::join_gap_bytes)). The deadline is that of each request,
    /// of which eight are under way at a time; with a cache, a block that another reader asked for in vain may take
    /// two.
    ///
    /// What came of each read is at its place in the result.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at), each by itself: those that were asked for together fail together.
    pub fn read_many(&self, reads: &mut [(u64, &mut [u8])]) -> Vec<Result<(), SourceError>> {
        let mut done: Vec<Done> = reads.iter().map(|(offset, out)| self.check(*offset, out.len() as u64)).collect();
        match &self.store.core.options.cache {
            Some(cache) => self.read_cached(cache, reads, &mut done),
            None => self.read_joined(reads, &mut done),
        }
        done.into_iter().map(|done| done.map_err(SourceError::from)).collect()
    }

    fn check(&self, offset: u64, bytes: u64) -> Done {
        let object_bytes = self.len();
        match offset.checked_add(bytes).filter(|&end| end <= object_bytes) {
            Some(_) => Ok(()),
            None => Err(StoreError::PastEnd { url: self.opened.url.clone(), offset, bytes, object_bytes }),
        }
    }

    /// The whole object in order, in chunks of which the one at hand and `ahead` more are held. 8 MiB and 2 serve well.
    #[must_use]
    pub fn reader(&self, chunk_bytes: usize, ahead: usize) -> Reader {
        Reader::new(self.clone(), chunk_bytes, ahead)
    }

    fn read_joined(&self, reads: &mut [(u64, &mut [u8])], done: &mut [Done]) {
        let options = &self.store.core.options;
        let pieces = reads.iter_mut().enumerate().filter(|(read, _)| done[*read].is_ok());
        let pieces = pieces.map(|(read, (offset, out))| Piece { read, offset: *offset, out });
        let pieces = cut(pieces, options.request_bytes_max);
        let requests = join(pieces, options.join_gap_bytes, options.request_bytes_max);
        self.store.threads.handle.block_on(async {
            let mut under_way =
                stream::iter(requests.into_iter().map(|request| self.fill(request))).buffer_unordered(AT_ONCE);
            while let Some((request, filled)) = under_way.next().await {
                if filled.is_err() {
                    request.reads().for_each(|read| done[read] = filled.clone());
                }
            }
        });
    }

    async fn fill<'a>(&self, mut request: Scatter<'a>) -> (Scatter<'a>, Done) {
        let done = self.store.core.read(&self.opened, request.range(), &mut request).await;
        (request, done)
    }

    /// Takes what the cache has, then fetches whole blocks of what it has not, and leaves them there.
    fn read_cached(&self, cache: &DiskCache, reads: &mut [(u64, &mut [u8])], done: &mut [Done]) {
        let core = &self.store.core;
        let mut missing: BTreeMap<u64, Vec<(usize, Range<usize>)>> = BTreeMap::new();
        for (number, (offset, out)) in reads.iter_mut().enumerate().filter(|(number, _)| done[*number].is_ok()) {
            for (block, part) in blocks_of(*offset, out.len()) {
                let known = missing.contains_key(&block);
                let within = *offset + part.start as u64 - block * BLOCK_BYTES;
                let key = cache.key(&self.opened.url, &self.opened.identity, block);
                if !known && cache.read(key, self.block(block).1, within, &mut out[part.clone()]) {
                    core.counts.cache_hits.fetch_add(1, Ordering::Relaxed);
                } else {
                    missing.entry(block).or_default().push((number, part));
                }
            }
        }
        core.counts.cache_misses.fetch_add(missing.len() as u64, Ordering::Relaxed);
        if missing.is_empty() {
            return;
        }
        let numbers: Vec<u64> = missing.keys().copied().collect();
        // What somebody else has fetched, and is gone again (or never came in) before it was read.
        let mut lost = Vec::new();
        self.store.threads.handle.block_on(async {
            let fetches =
                numbers.into_iter().map(|block| async move { (block, self.fetch_block(core, cache, block).await) });
            let mut under_way = stream::iter(fetches).buffer_unordered(AT_ONCE);
            while let Some((block, fetched)) = under_way.next().await {
                let parts = missing.remove(&block).unwrap_or_default();
                let fetched = match fetched {
                    Ok(fetched) => fetched,
                    Err(error) => {
                        parts.iter().for_each(|(number, _)| done[*number] = Err(error.clone()));
                        continue;
                    }
                };
                let key = cache.key(&self.opened.url, &self.opened.identity, block);
                let start = block * BLOCK_BYTES;
                let mut from_cache = fetched.is_none();
                for (number, part) in &parts {
                    let (offset, out) = &mut reads[*number];
                    let within = *offset + part.start as u64 - start;
                    let out = &mut out[part.clone()];
                    match &fetched {
                        Some(Fetched { whole, .. }) => {
                            out.copy_from_slice(&whole.bytes[within as usize..within as usize + out.len()]);
                        }
                        None => from_cache &= cache.read(key, self.block(block).1, within, out),
                    }
                }
                if let Some(Fetched { whole, .. }) = &fetched {
                    cache.keep(key, &whole.bytes);
                } else if !from_cache {
                    lost.extend(parts);
                }
            }
            // Not before the others are done: what waits here must hold no place that is waited for.
            drop(under_way);
            for (number, part) in lost {
                let (offset, out) = &mut reads[number];
                let piece = Piece { read: number, offset: *offset + part.start as u64, out: &mut out[part] };
                let (_, filled) = self.fill(Scatter::of(piece)).await;
                if filled.is_err() {
                    done[number] = filled;
                }
            }
        });
    }

    /// A block in memory, or `None` once another reader has put it into the cache.
    async fn fetch_block<'a>(
        &self,
        core: &'a Core,
        cache: &DiskCache,
        block: u64,
    ) -> Result<Option<Fetched<'a>>, StoreError> {
        let (start, bytes) = self.block(block);
        let deadline = Instant::now() + core.options.deadline;
        let late = |_| Tries::new("read", &self.opened.url, (start, bytes), &core.options).late();
        let flight = match core.flights.begin(cache.key(&self.opened.url, &self.opened.identity, block)) {
            Ok(flight) => Some(flight),
            // Nothing comes into a cache that is off: everybody fetches.
            Err(_) if cache.note().is_some() => None,
            Err(mut over) => {
                // It closes, and has nothing to say but that.
                let _ = timeout_at(deadline, over.changed()).await.map_err(late)?;
                return Ok(None);
            }
        };
        let place = timeout_at(deadline, core.block_places.acquire()).await.map_err(late)?;
        let mut whole = Whole { start, bytes: vec![0; bytes as usize] };
        timeout_at(deadline, core.read(&self.opened, start..start + bytes, &mut whole)).await.map_err(late)??;
        Ok(Some(Fetched { whole, _flight: flight, _place: place.ok() }))
    }

    /// Where a block starts and how long it is.
    fn block(&self, block: u64) -> (u64, u64) {
        let start = block * BLOCK_BYTES;
        (start, BLOCK_BYTES.min(self.len() - start))
    }
}

/// A block on its way into the cache, with what it holds until it is there: the right to fetch it, and a place among
/// the blocks in memory.
struct Fetched<'a> {
    whole: Whole,
    _flight: Option<Flight<'a>>,
    _place: Option<SemaphorePermit<'a>>,
}

/// The blocks that a read touches, and which part of its memory each fills.
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
    fn a_read_is_parted_at_the_edges_of_blocks() {
        let parts = |offset, bytes| blocks_of(offset, bytes).collect::<Vec<_>>();
        let mib = BLOCK_BYTES;
        assert_eq!(parts(0, 0), []);
        assert_eq!(parts(mib - 1, 1), [(0, 0..1)]);
        assert_eq!(parts(mib - 1, 2), [(0, 0..1), (1, 1..2)]);
        assert_eq!(parts(mib, 2 * mib as usize), [(1, 0..mib as usize), (2, mib as usize..2 * mib as usize)]);
    }
}
