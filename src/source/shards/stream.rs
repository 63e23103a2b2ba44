//! Owns shards that can only be read front to back: their blocks, the decoders that stand somewhere in them, and the way
//! of a block into memory. It must never have more decoders than it counts, nor load two blocks at once: the next one
//! begins where the one before it ends.

use std::io::{self, BufReader, Read};

use zstd::stream::read::Decoder;

use super::super::held::{BlockBuffer, HeldBlocks};
use super::super::medium::Medium;
use super::super::{Blocks, SourceError};
use super::zst::{CONTEXT_BYTES, Decompressor, WINDOW_BYTES_MAX};
use crate::sync::{Arc, Mutex, lock};
use crate::units::SampleId;

/// Decoders that wait where they stopped: of the shard being read, and of the one before it, whose last samples may be
/// asked for once more.
const DECODERS: usize = 2;
/// What is read of a shard at a time, bytes.
const INPUT_BYTES: usize = 128 << 10;

/// Shards of which some are streams.
#[derive(Debug)]
pub(super) struct Streams {
    blocks: Blocks,
    held: HeldBlocks,
    decoders: Mutex<Vec<Live>>,
    /// The largest window of any stream, bytes.
    window_bytes_max: u64,
    /// The largest member that is compressed by itself, bytes.
    member_bytes_max: u64,
}

/// A decoder that stands in a shard.
struct Live {
    shard: u32,
    /// How much of the shard's content it has given.
    at: u64,
    decoder: Decoder<'static, BufReader<Compressed>>,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Live(shard {}, at byte {})", self.shard, self.at)
    }
}

/// A shard's bytes, from the first on.
struct Compressed {
    medium: Arc<Medium>,
    at: u64,
}

/// What members that are compressed by themselves are decompressed with, while a block is loaded.
#[derive(Default)]
struct Member {
    compressed: Vec<u8>,
    decompressor: Option<Decompressor>,
}

/// One sample of a block: where it lies in the shard's content.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) bytes: u64,
    /// What comes out, where it is compressed by itself.
    pub(super) content_bytes: Option<u64>,
}

impl Streams {
    /// `block_bytes_max` is the most that the samples of one block take, as they are handed out.
    pub(super) fn new(blocks: Blocks, block_bytes_max: u64, window_bytes_max: u64, member_bytes_max: u64) -> Self {
        let held = HeldBlocks::new(blocks.clone(), block_bytes_max, 1);
        Streams { blocks, held, decoders: Mutex::default(), window_bytes_max, member_bytes_max }
    }

    pub(super) fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// What blocks and decoders take, at most, bytes.
    pub(super) fn held_bytes(&self) -> u64 {
        // Beside its window a decoder has a block of output and one of input.
        let decoder = self.window_bytes_max + CONTEXT_BYTES + 3 * INPUT_BYTES as u64;
        self.held.held_bytes() + DECODERS as u64 * decoder + self.member_bytes_max + CONTEXT_BYTES
    }

    /// Reads a sample of a stream. `place` tells where a sample lies; all of a block are in `medium`, which is `shard`.
    pub(super) fn read(
        &self,
        id: SampleId,
        out: &mut [u8],
        (shard, medium): (u32, &Arc<Medium>),
        place: impl Fn(SampleId) -> Place,
    ) -> Result<(), SourceError> {
        self.held.read(id, out, |block, buffer| {
            let ids = self.blocks.samples(block);
            let mut live = self.decoder(shard, medium, place(SampleId(ids.start)).offset)?;
            let mut member = Member::default();
            for id in ids.map(SampleId) {
                live.sample(place(id), buffer, &mut member).map_err(|cause| {
                    let cause = format!("{cause} (the offset is in what it decompresses to)");
                    SourceError::unusable(medium.path(), Some(live.at), cause)
                })?;
            }
            let mut waiting = lock(&self.decoders);
            if waiting.len() == DECODERS {
                waiting.remove(0);
            }
            waiting.push(live);
            Ok(())
        })
    }

    /// The decoder that stands nearest in front of a place; a new one where all are behind it.
    fn decoder(&self, shard: u32, medium: &Arc<Medium>, offset: u64) -> Result<Live, SourceError> {
        let mut waiting = lock(&self.decoders);
        let nearest = (0..waiting.len()).filter(|&i| waiting[i].shard == shard && waiting[i].at <= offset);
        if let Some(nearest) = nearest.max_by_key(|&i| waiting[i].at) {
            return Ok(waiting.remove(nearest));
        }
        if waiting.len() == DECODERS {
            // The new one takes its place.
            waiting.remove(0);
        }
        drop(waiting);
        let refuse = |source| super::super::file::io_error("decompress", medium.path(), source);
        let input = BufReader::with_capacity(INPUT_BYTES, Compressed { medium: Arc::clone(medium), at: 0 });
        let mut decoder = Decoder::with_buffer(input).map_err(refuse)?;
        // No more than it said when it was indexed.
        let window = self.window_bytes_max.clamp(1 << 10, WINDOW_BYTES_MAX).next_power_of_two();
        decoder.window_log_max(window.ilog2()).map_err(refuse)?;
        Ok(Live { shard, at: 0, decoder })
    }
}

impl Live {
    /// Reads one sample into a block.
    fn sample(&mut self, place: Place, buffer: &mut BlockBuffer, member: &mut Member) -> Result<(), String> {
        let gap = place.offset.checked_sub(self.at).ok_or("samples of a block are not in their order")?;
        let skipped = io::copy(&mut self.decoder.by_ref().take(gap), &mut io::sink()).map_err(|e| e.to_string())?;
        self.at += skipped;
        if skipped < gap {
            return Err("it ends there: it is another file than when it was indexed".to_owned());
        }
        let beyond = || "a block is larger than any was when it was indexed".to_owned();
        let start = buffer.len();
        let bytes = place.content_bytes.unwrap_or(place.bytes) as usize;
        let out = buffer.grow(bytes).ok_or_else(beyond)?;
        match place.content_bytes {
            None => self.decoder.read_exact(out).map_err(|error| error.to_string())?,
            Some(_) => {
                member.compressed.resize(place.bytes as usize, 0);
                self.decoder.read_exact(&mut member.compressed).map_err(|error| error.to_string())?;
                member.decompressor.get_or_insert_with(Decompressor::new).frame(&member.compressed, out)?;
            }
        }
        self.at += place.bytes;
        buffer.sample_at(start..start + bytes);
        Ok(())
    }
}

impl Read for Compressed {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = (out.len() as u64).min(self.medium.bytes() - self.at) as usize;
        self.medium.read_at(self.at, &mut out[..count]).map_err(|error| io::Error::other(error.to_string()))?;
        self.at += count as u64;
        Ok(count)
    }
}

/// Cuts the samples of shards into blocks of about `bytes` bytes each. `shards` has, for each shard, its samples' bytes and
/// whether it is a stream: the blocks of a stream are one run, those of another shard can be read in any order.
///
/// Gives the blocks, and the most bytes that are in one of a stream.
pub(super) fn cut<I: Iterator<Item = u64>>(shards: impl Iterator<Item = (I, bool)>, bytes: u64) -> (Blocks, u64) {
    let (mut ends, mut run_ends, mut largest) = (Vec::new(), Vec::new(), 0);
    let mut sample = 0u64;
    for (sizes, is_stream) in shards {
        let (before, mut in_block) = (ends.len(), 0);
        let mut end_block = |in_block: &mut u64, sample: u64, ends: &mut Vec<u64>, run_ends: &mut Vec<u64>| {
            ends.push(sample);
            if is_stream {
                largest = largest.max(*in_block);
            } else {
                run_ends.push(ends.len() as u64);
            }
            *in_block = 0;
        };
        for size in sizes {
            if in_block > 0 && in_block + size > bytes {
                end_block(&mut in_block, sample, &mut ends, &mut run_ends);
            }
            in_block += size;
            sample += 1;
        }
        if ends.last().copied().unwrap_or(0) < sample {
            end_block(&mut in_block, sample, &mut ends, &mut run_ends);
        }
        if is_stream && ends.len() > before {
            run_ends.push(ends.len() as u64);
        }
    }
    (Blocks::new(ends, 1).in_runs(run_ends), largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_cut_by_bytes_and_streams_are_runs() {
        let shards = [(vec![5, 5, 5, 20, 1], true), (vec![], true), (vec![9, 9], false), (vec![3, 3, 3, 3], true)];
        let (blocks, largest) = cut(shards.into_iter().map(|(sizes, stream)| (sizes.into_iter(), stream)), 10);
        let all: Vec<_> = (0..blocks.count()).map(|block| blocks.samples(block)).collect();
        assert_eq!(all, [0..2, 2..3, 3..4, 4..5, 5..6, 6..7, 7..10, 10..11]);
        assert_eq!(largest, 20);
        let runs: Vec<_> = (0..blocks.run_count()).map(|run| blocks.run(run)).collect();
        assert_eq!(runs, [0..4, 4..5, 5..6, 6..8]);
    }
}
