//! Shards that can only be read in order: blocks, and decoders that continue where they stopped.
//!
//! Blocks are loaded one at a time, since a block begins where its predecessor ends. Up to two decoders wait for the
//! next block; a block in front of all of them takes a new decoder.

use std::io::{self, BufReader, Read};

use zstd::stream::read::Decoder;

use super::zst::{CONTEXT_BYTES, Decompressor, WINDOW_BYTES_MAX};
use crate::source::block_cache::{BlockBuffer, BlockCache};
use crate::source::shard_io::ShardIo;
use crate::source::{Blocks, PageCache, SourceError};
use crate::sync::{Arc, Mutex, lock};
use crate::units::SampleId;

/// Number of waiting decoders: of the shard being read, and of the one before, whose last samples may be read again.
const DECODERS: usize = 2;
/// Size of one read from a shard, bytes.
const INPUT_BYTES: usize = 128 << 10;

/// Shards of which at least one is a stream.
#[derive(Debug)]
pub(super) struct Streams {
    blocks: Blocks,
    cache: BlockCache,
    waiting: Mutex<Vec<OpenDecoder>>,
    /// Largest window of a stream, bytes.
    window_bytes_max: u64,
    /// Largest compressed member, bytes.
    member_bytes_max: u64,
}

/// A decoder at a position in a shard.
struct OpenDecoder {
    shard: u32,
    /// Number of bytes of the shard's content that were decompressed.
    at: u64,
    decoder: Decoder<'static, BufReader<ShardReader>>,
}

impl std::fmt::Debug for OpenDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OpenDecoder(shard {}, at byte {})", self.shard, self.at)
    }
}

/// Reader of a shard's bytes from its beginning.
struct ShardReader {
    io: Arc<dyn ShardIo>,
    at: u64,
    page_cache: PageCache,
}

/// Decompressor and buffer for compressed members of one block.
#[derive(Default)]
struct MemberDecompressor {
    compressed: Vec<u8>,
    decompressor: Option<Decompressor>,
}

/// Range of one sample in a shard's content.
#[derive(Clone, Copy)]
pub(super) struct MemberRange {
    pub(super) offset: u64,
    pub(super) bytes: u64,
    /// Decompressed size of a compressed member.
    pub(super) content_bytes: Option<u64>,
}

impl Streams {
    /// Creates streams whose largest block has `block_bytes_max` bytes of encoded samples.
    pub(super) fn new(blocks: Blocks, block_bytes_max: u64, window_bytes_max: u64, member_bytes_max: u64) -> Self {
        let cache = BlockCache::new(blocks.clone(), block_bytes_max, 1);
        Streams { blocks, cache, waiting: Mutex::default(), window_bytes_max, member_bytes_max }
    }

    pub(super) fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// Upper limit of the memory of blocks and decoders, bytes.
    pub(super) fn capacity_bytes(&self) -> u64 {
        // A decoder has a block of output and one of input besides its window.
        let decoder = self.window_bytes_max + CONTEXT_BYTES + 3 * INPUT_BYTES as u64;
        self.cache.capacity_bytes() + DECODERS as u64 * decoder + self.member_bytes_max + CONTEXT_BYTES
    }

    /// Reads a sample of shard number `shard`. `range` returns the range of a sample of the same shard.
    pub(super) fn read(
        &self,
        id: SampleId,
        out: &mut [u8],
        (shard, io, page_cache): (u32, &Arc<dyn ShardIo>, PageCache),
        range: impl Fn(SampleId) -> MemberRange,
    ) -> Result<(), SourceError> {
        self.cache.read(id, out, |block, buffer| {
            let ids = self.blocks.samples(block);
            let mut decoder = self.decoder((shard, io, page_cache), range(SampleId(ids.start)).offset)?;
            let mut member = MemberDecompressor::default();
            for id in ids.map(SampleId) {
                decoder.read_sample(range(id), buffer, &mut member).map_err(|cause| {
                    let cause = format!("{cause} (the offset is in the decompressed content)");
                    SourceError::damaged(io.path(), Some(decoder.at), cause)
                })?;
            }
            let mut waiting = lock(&self.waiting);
            if waiting.len() == DECODERS {
                waiting.remove(0);
            }
            waiting.push(decoder);
            Ok(())
        })
    }

    /// Takes the decoder that is nearest before an offset, or creates one.
    fn decoder(
        &self,
        (shard, io, page_cache): (u32, &Arc<dyn ShardIo>, PageCache),
        offset: u64,
    ) -> Result<OpenDecoder, SourceError> {
        let mut waiting = lock(&self.waiting);
        let nearest = (0..waiting.len()).filter(|&i| waiting[i].shard == shard && waiting[i].at <= offset);
        if let Some(nearest) = nearest.max_by_key(|&i| waiting[i].at) {
            return Ok(waiting.remove(nearest));
        }
        if waiting.len() == DECODERS {
            waiting.remove(0);
        }
        drop(waiting);
        let failed = |error| SourceError::io("decompress", io.path(), error);
        let input = BufReader::with_capacity(INPUT_BYTES, ShardReader { io: Arc::clone(io), at: 0, page_cache });
        let mut decoder = Decoder::with_buffer(input).map_err(failed)?;
        // The limit is the window that was found during the scan.
        let window = self.window_bytes_max.clamp(1 << 10, WINDOW_BYTES_MAX).next_power_of_two();
        decoder.window_log_max(window.ilog2()).map_err(failed)?;
        Ok(OpenDecoder { shard, at: 0, decoder })
    }
}

impl OpenDecoder {
    /// Reads one sample into a block.
    fn read_sample(
        &mut self,
        range: MemberRange,
        buffer: &mut BlockBuffer,
        member: &mut MemberDecompressor,
    ) -> Result<(), String> {
        let gap = range.offset.checked_sub(self.at).ok_or("the samples of a block are not in order")?;
        let skipped = io::copy(&mut self.decoder.by_ref().take(gap), &mut io::sink()).map_err(|e| e.to_string())?;
        self.at += skipped;
        if skipped < gap {
            return Err("the content ends there: the file was replaced after it was indexed".to_owned());
        }
        let too_large = || "a block is larger than when it was indexed".to_owned();
        let start = buffer.len();
        let bytes = range.content_bytes.unwrap_or(range.bytes) as usize;
        let out = buffer.grow(bytes).ok_or_else(too_large)?;
        match range.content_bytes {
            None => self.decoder.read_exact(out).map_err(|error| error.to_string())?,
            Some(_) => {
                member.compressed.resize(range.bytes as usize, 0);
                self.decoder.read_exact(&mut member.compressed).map_err(|error| error.to_string())?;
                member.decompressor.get_or_insert_with(Decompressor::new).frame(&member.compressed, out)?;
            }
        }
        self.at += range.bytes;
        buffer.add_sample(start..start + bytes);
        Ok(())
    }
}

impl Read for ShardReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = (out.len() as u64).min(self.io.bytes() - self.at) as usize;
        let read = self.io.read_at(self.at, &mut out[..count], self.page_cache);
        read.map_err(|error| io::Error::other(error.full_message()))?;
        self.at += count as u64;
        Ok(count)
    }
}

/// Partitions the samples of shards into blocks of about `bytes` bytes. `shards` has the sizes of each shard's samples,
/// and true for a stream. The blocks of a stream are one run; those of other shards can be read in any order.
///
/// Returns the blocks, and the size of the largest block of a stream, bytes.
pub(super) fn partition<I: Iterator<Item = u64>>(shards: impl Iterator<Item = (I, bool)>, bytes: u64) -> (Blocks, u64) {
    let (mut ends, mut run_ends, mut largest) = (Vec::new(), Vec::new(), 0);
    let mut sample = 0u64;
    for (sizes, is_stream) in shards {
        let (first_block, mut block_bytes) = (ends.len(), 0);
        for size in sizes {
            if block_bytes > 0 && block_bytes + size > bytes {
                ends.push(sample);
                block_bytes = 0;
            }
            block_bytes += size;
            sample += 1;
            if is_stream {
                largest = largest.max(block_bytes);
            }
        }
        if ends.last().copied().unwrap_or(0) < sample {
            ends.push(sample);
        }
        let blocks = first_block as u64..ends.len() as u64;
        if is_stream && !blocks.is_empty() {
            run_ends.push(blocks.end);
        } else {
            run_ends.extend(blocks.map(|block| block + 1));
        }
    }
    (Blocks::new(ends, 1).with_runs(run_ends), largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_limited_by_bytes_and_streams_are_runs() {
        let shards = [(vec![5, 5, 5, 20, 1], true), (vec![], true), (vec![9, 9], false), (vec![3, 3, 3, 3], true)];
        let (blocks, largest) = partition(shards.into_iter().map(|(sizes, stream)| (sizes.into_iter(), stream)), 10);
        let all: Vec<_> = (0..blocks.count()).map(|block| blocks.samples(block)).collect();
        assert_eq!(all, [0..2, 2..3, 3..4, 4..5, 5..6, 6..7, 7..10, 10..11]);
        assert_eq!(largest, 20);
        let runs: Vec<_> = (0..blocks.run_count()).map(|run| blocks.run(run)).collect();
        assert_eq!(runs, [0..4, 4..5, 5..6, 6..8]);
    }
}
