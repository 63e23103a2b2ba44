//! Source of samples in tar shards.

use std::mem::size_of;

use super::decompressors::DecompressorPool;
use super::stream::{MemberRange, Streams};
use super::zst::Frame;
use crate::source::index::Index;
use crate::source::path::readable;
use crate::source::shard_io::ShardIo;
use crate::source::{Blocks, IoProfile, PageCache, SampleRead, Source, SourceError, Unreadable, heap_size};
use crate::sync::Arc;
use crate::units::SampleId;

/// Maximum size of one request to a store, bytes: more would delay its first sample.
const STORE_COALESCE_BYTES: u64 = 1 << 20;

/// Maximum gap between ranges that are prefetched by one request, bytes.
const PREFETCH_GAP_BYTES: u64 = 128 << 10;

/// Samples in tar files (shards), in the layout of WebDataset.
///
/// ```text
/// 000017.jpg    members with the same key (the name up to its first dot)
/// 000017.cls    are one sample: an image and its class
/// ```
///
/// * The class is a number or a name: in `.cls`, in a field of `.json` (`cls`, `label`, `class`, `target`, `class_id`,
///   `category`), or in `.txt`. An image with none of these has the name of its folder as its class, so the tar of a
///   folder of class folders works unchanged.
/// * Numbers are labels. The names of their classes come from `manifest.json` (which `feedstock pack` writes) or
///   `classes.txt` (one name a line) beside the shards, if one exists. Class names are sorted, bytewise, over all
///   shards.
/// * Samples are in the order of the shards, and within a shard in the order of the tar.
/// * A member may be compressed (`000017.ppm.zst`): it is decompressed when it is read. A shard may be compressed
///   (`.tar.zst`) in independent frames of at most 16 MiB of content (`zstd`'s seekable format, `pzstd`, or
///   concatenated frames): it is read in any order as well.
/// * A shard that is compressed as a single frame can only be read in order. Its samples come in [`Blocks`] of the size
///   of the shuffle buffer, and are shuffled within them, shard by shard. Two such blocks are cached.
///
/// A shard is scanned once, several shards in parallel. The index is kept in a file beside the shard
/// (`<shard>.feedstock-index`, or in the user's cache folder), and is used as long as the shard's size and time are the
/// same. Reads from a shard that is truncated during a run return errors.
///
/// The index takes 16 to 24 bytes a sample and the name, most of which neighbors share: up to 48 in all for names such
/// as ImageNet's.
///
/// # Example
/// ```no_run
/// use feedstock::source::{Source, TarShards};
///
/// let shards = TarShards::open("data/train-{0000..0146}.tar")?;
/// println!("{} images in {} classes", shards.len(), shards.classes().len());
/// # Ok::<(), feedstock::source::SourceError>(())
/// ```
#[derive(Debug)]
pub struct TarShards {
    pub(super) title: String,
    pub(super) classes: Vec<String>,
    /// Paths of shards, names of members, and their stored sizes. The class of an entry is the number of its shard.
    pub(super) index: Index,
    pub(super) offsets: Box<[u64]>,
    pub(super) labels: Box<[u32]>,
    /// Width and height, 16 bits each; 0 if unknown.
    pub(super) dimensions: Box<[u32]>,
    /// Decompressed sizes of compressed members; 0 for others. Empty if there are none.
    pub(super) contents: Box<[u32]>,
    pub(super) shards: Vec<Shard>,
    pub(super) decompressors: DecompressorPool,
    /// `None` if all shards can be read in any order.
    pub(super) streams: Option<Streams>,
    /// Memory of requests to stores, bytes.
    pub(super) stores_bytes: u64,
    pub(super) notes: Vec<String>,
    pub(super) unreadable: Vec<Unreadable>,
    pub(super) unreadable_count: u64,
}

#[derive(Debug)]
pub(super) struct Shard {
    pub(super) io: Arc<dyn ShardIo>,
    pub(super) layout: ShardLayout,
}

/// Layout of a shard's tar in its file.
#[derive(Debug)]
pub(super) enum ShardLayout {
    /// The file is the tar.
    Plain,
    /// The tar is in independent zstd frames.
    Frames(Box<[Frame]>),
    /// The tar can only be decompressed from its beginning.
    Stream,
}

impl TarShards {
    fn shard(&self, id: SampleId) -> u32 {
        self.index.label(id)
    }

    /// Offset and stored size of a sample in its tar.
    fn range(&self, id: SampleId) -> (u64, u64) {
        (self.offsets[id.0 as usize], self.index.size_bytes(id))
    }

    fn member_range(&self, id: SampleId) -> MemberRange {
        let (offset, bytes) = self.range(id);
        MemberRange { offset, bytes, content_bytes: self.content_bytes(id) }
    }

    /// Decompressed size of a compressed member.
    fn content_bytes(&self, id: SampleId) -> Option<u64> {
        self.contents.get(id.0 as usize).filter(|&&bytes| bytes > 0).map(|&bytes| u64::from(bytes))
    }

    fn read(&self, id: SampleId, out: &mut [u8], page_cache: PageCache) -> Result<(), SourceError> {
        let (number, (offset, stored)) = (self.shard(id), self.range(id));
        let (Shard { io, layout }, expected) = (&self.shards[number as usize], self.encoded_bytes(id));
        assert_eq!(out.len() as u64, expected, "{id} has {expected} bytes");
        let is_compressed = self.content_bytes(id).is_some();
        match (layout, is_compressed) {
            (ShardLayout::Plain, false) => io.read_at(offset, out, page_cache),
            (ShardLayout::Frames(frames), false) => {
                self.decompressors.with(|workspace| workspace.read((&**io, page_cache), (number, frames), offset, out))
            }
            (ShardLayout::Stream, _) => match &self.streams {
                Some(streams) => streams.read(id, out, (number, io, page_cache), |id| self.member_range(id)),
                None => unreachable!("a stream without streams"),
            },
            (layout, true) => self.decompressors.with(|workspace| {
                let mut member = std::mem::take(&mut workspace.member);
                member.resize(stored as usize, 0);
                let read = match layout {
                    ShardLayout::Frames(frames) => {
                        workspace.read((&**io, page_cache), (number, frames), offset, &mut member)
                    }
                    _ => io.read_at(offset, &mut member, page_cache),
                };
                let failed = |cause| SourceError::damaged(io.path(), Some(offset), cause);
                let result = read.and_then(|()| workspace.decompressor.frame(&member, out).map_err(failed));
                workspace.member = member;
                result
            }),
        }
    }
}

impl Source for TarShards {
    fn len(&self) -> u64 {
        self.index.len()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn label(&self, id: SampleId) -> u32 {
        self.labels[id.0 as usize]
    }

    fn encoded_bytes(&self, id: SampleId) -> u64 {
        self.content_bytes(id).unwrap_or_else(|| self.index.size_bytes(id))
    }

    /// The shard's path, the member's name, and the offset of its bytes.
    fn name(&self, id: SampleId) -> String {
        let mut path = Vec::new();
        self.index.push_path(id, &mut path);
        let shard_bytes = self.shards[self.shard(id) as usize].io.path().as_os_str().len();
        let (shard, member) = path.split_at(shard_bytes.min(path.len()));
        let member = readable(member.get(1..).unwrap_or_default());
        format!("{}: {member} (at byte {})", readable(shard), self.offsets[id.0 as usize])
    }

    fn read_into(&self, id: SampleId, out: &mut [u8]) -> Result<(), SourceError> {
        self.read(id, out, PageCache::Keep)
    }

    /// Uncompressed members of a plain tar are read by one call.
    fn read_many(&self, reads: &mut [SampleRead<'_>]) {
        for reads in reads.chunk_by_mut(|a, b| self.shard(a.id) == self.shard(b.id)) {
            let Some(first) = reads.first() else { continue };
            let (shard, page_cache) = (&self.shards[self.shard(first.id) as usize], first.page_cache);
            if !matches!(shard.layout, ShardLayout::Plain)
                || reads.iter().any(|read| self.content_bytes(read.id).is_some())
            {
                reads.iter_mut().for_each(|read| read.result = self.read(read.id, read.out, read.page_cache));
                continue;
            }
            let ranges = reads.iter_mut().map(|read| {
                let (offset, bytes) = self.range(read.id);
                assert_eq!(read.out.len() as u64, bytes, "{} has {bytes} bytes", read.id);
                (offset, &mut *read.out)
            });
            let results = shard.io.read_many(&mut ranges.collect::<Vec<_>>(), page_cache);
            reads.iter_mut().zip(results).for_each(|(read, result)| read.result = result);
        }
    }

    fn index_bytes(&self) -> u64 {
        let shards = self.shards.iter();
        let shards = shards.map(|shard| size_of::<Shard>() + shard.io.heap_bytes() + size_of_val(shard.frames()));
        let rest = size_of::<Self>()
            + self.title.capacity()
            + heap_size::strings(&self.classes)
            + heap_size::strings(&self.notes)
            + heap_size::unreadable(&self.unreadable)
            + shards.sum::<usize>()
            + size_of_val(&*self.offsets)
            + size_of_val(&*self.labels)
            + size_of_val(&*self.dimensions)
            + size_of_val(&*self.contents);
        self.index.heap_bytes() + rest as u64
    }

    fn title(&self) -> String {
        self.title.clone()
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn unreadable(&self) -> &[Unreadable] {
        &self.unreadable
    }

    fn unreadable_count(&self) -> u64 {
        self.unreadable_count
    }

    fn dimensions(&self, id: SampleId) -> Option<(u32, u32)> {
        let both = self.dimensions[id.0 as usize];
        (both > 0).then_some((both >> 16, both & 0xFFFF))
    }

    fn io_profile(&self) -> IoProfile {
        let concurrency = self.shards.iter().map(|shard| shard.io.concurrency()).max();
        let streams = self.streams.as_ref().map_or(0, Streams::capacity_bytes);
        let is_local = self.shards.iter().all(|shard| shard.io.is_local());
        // Compressed samples are read one by one: one reader for several would decompress them one after another.
        let is_plain =
            self.contents.is_empty() && self.shards.iter().all(|shard| matches!(shard.layout, ShardLayout::Plain));
        IoProfile {
            concurrency: self.decompressors.count().max(concurrency.unwrap_or(1)),
            buffer_bytes: self.decompressors.capacity_bytes() + streams + self.stores_bytes,
            coalesce_bytes: if is_plain && !is_local { STORE_COALESCE_BYTES } else { 0 },
        }
    }

    fn blocks(&self) -> Option<&Blocks> {
        self.streams.as_ref().map(Streams::blocks)
    }

    /// Nearby ranges are prefetched by one request.
    fn read_ahead(&self, ids: &[SampleId], page_cache: PageCache) {
        let mut ids = ids.iter().peekable();
        while let Some(&id) = ids.next() {
            let (shard, (start, bytes)) = (self.shard(id), self.range(id));
            let mut end = start + bytes;
            while let Some(&next) = ids.next_if(|&&next| {
                let (offset, _) = self.range(next);
                self.shard(next) == shard && offset >= start && offset <= end + PREFETCH_GAP_BYTES
            }) {
                let (offset, bytes) = self.range(next);
                end = end.max(offset + bytes);
            }
            self.shards[shard as usize].prefetch(start, end, page_cache);
        }
    }
}

impl Shard {
    pub(super) fn frames(&self) -> &[Frame] {
        match &self.layout {
            ShardLayout::Frames(frames) => frames,
            _ => &[],
        }
    }

    /// Prefetches the part of the file that a range of the tar is in.
    fn prefetch(&self, start: u64, end: u64, page_cache: PageCache) {
        let frames = match &self.layout {
            ShardLayout::Plain => return self.io.prefetch(start, end - start, page_cache),
            ShardLayout::Frames(frames) => frames,
            // A stream is read in large pieces, which the system prefetches by itself.
            ShardLayout::Stream => return,
        };
        let first = frames.partition_point(|frame| frame.content_start + frame.content_bytes <= start);
        let last = frames.partition_point(|frame| frame.content_start < end);
        if let (Some(first), Some(last)) = (frames.get(first), last.checked_sub(1).and_then(|last| frames.get(last))) {
            self.io.prefetch(first.offset, (last.offset + last.bytes).saturating_sub(first.offset), page_cache);
        }
    }
}
