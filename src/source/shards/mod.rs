//! Owns shards: tars that hold samples, as WebDataset writes them, read where they lie and in any order.
//! It must never unpack to disk, follow a path that a tar names, or believe an index that is not of the shard as it is.

mod bench;
mod index;
mod label;
mod open;
mod scan;
mod stream;
mod walk;
mod zst;

use std::mem::{size_of, size_of_val};
use std::path::{Path, PathBuf};

use super::index::Index;
use super::medium::{Medium, Stores};
use super::{Blocks, OpenOptions, Reading, SampleRead, Source, SourceError, Unreadable};
use crate::sync::Arc;
use crate::units::SampleId;
use bench::Benches;
use stream::{Place, Streams};
pub(super) use walk::Forward;
#[cfg(feature = "store")]
pub(super) use walk::Stream;
use zst::Frame;

/// What is best asked of a store by one call: more would keep the first of it waiting.
const STORE_TOGETHER_BYTES: u64 = 1 << 20;

/// Ranges that are closer than this are asked of storage in one go.
const JOIN_BYTES: u64 = 128 << 10;

/// Samples in tar files (shards), as WebDataset lays them out.
///
/// ```text
/// 000017.jpg    members that share a key (what stands before the first dot of the name)
/// 000017.cls    are one sample: a picture, and beside it its class
/// ```
///
/// * The class is a number or a name: in `.cls`, in a field of `.json` (`cls`, `label`, `class`, `target`, `class_id`,
///   `category`), or in `.txt`. A picture with none of these beside it has the name of its folder as its class, so the tar
///   of a folder of class folders works as it is.
/// * Numbers are labels as they are, and the names of their classes come from `manifest.json` (as `feedstock pack` writes
///   it) or `classes.txt` (a name a line) beside the shards, if there is one. Names are sorted, bytewise, over all shards.
/// * Samples are in the order of the shards, and within a shard in that of the tar.
/// * A member may be compressed by itself (`000017.ppm.zst`): it is decompressed on the way. A shard may be compressed as a
///   whole (`.tar.zst`), if it is in independent frames of at most 16 MiB of content (`zstd`'s seekable format, `pzstd`, or
///   frames one after the other): then it is read in any order as well.
/// * A shard that is compressed in one piece can only be read front to back: its samples come in [`Blocks`], each as large as
///   the shuffle buffer, and are shuffled within them, shard by shard. It costs memory for two such blocks; a shard that is
///   compressed in frames costs none of this.
///
/// A shard is scanned once, by several threads where there are several shards. What is found is kept in a file beside it
/// (`<shard>.feedstock-index`, or in the user's cache folder), which is used as long as the shard's size and time are the
/// same. A shard that shrinks during a run gives errors.
///
/// The index takes 16 to 24 bytes a sample and its name, of which neighbours share most: up to 48 in all for names such as
/// ImageNet's.
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
    title: String,
    classes: Vec<String>,
    /// Paths of shards, names of members, bytes as they lie there. Its label is the number of the shard.
    index: Index,
    offsets: Box<[u64]>,
    labels: Box<[u32]>,
    /// Width and height, 16 bits each; 0 where they are not known.
    dimensions: Box<[u32]>,
    /// Bytes of those that are compressed by themselves; 0 for others. Empty where there are none.
    contents: Box<[u32]>,
    shards: Vec<Shard>,
    benches: Benches,
    /// Where some shard can only be read front to back.
    streams: Option<Streams>,
    /// What requests to stores hold, where shards are in some.
    stores_bytes: u64,
    notes: Vec<String>,
    unreadable: Vec<Unreadable>,
    unreadable_count: u64,
}

#[derive(Debug)]
struct Shard {
    medium: Arc<Medium>,
    storage: Storage,
}

/// How a shard's tar can be had.
#[derive(Debug)]
enum Storage {
    /// It is the file.
    Plain,
    /// In frames that can be decompressed by themselves.
    Frames(Box<[Frame]>),
    /// From front to back.
    Stream,
}

impl TarShards {
    /// Opens the shards that a path or a pattern stands for (`train-{0000..0146}.tar`, `train-*.tar`), and indexes those
    /// that have no index yet.
    ///
    /// # Errors
    /// * [`SourceError::Pattern`] for a pattern that stands for nothing.
    /// * [`SourceError::Io`] for a shard that cannot be opened or read.
    /// * [`SourceError::Unusable`] for one that is no tar, is compressed in a way that cannot be read here, has no samples, or
    ///   whose labels do not fit those of the others.
    pub fn open(pattern: impl AsRef<Path>) -> Result<Self, SourceError> {
        Self::open_with(pattern, &OpenOptions::default())
    }

    /// As [`open`](Self::open), in another way than the usual one: with another shuffle buffer for shards that can only be read
    /// front to back.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(pattern: impl AsRef<Path>, options: &OpenOptions) -> Result<Self, SourceError> {
        let path = pattern.as_ref();
        let stores = Stores::new(options);
        let files = super::open::files(path, &stores)?.unwrap_or_default();
        Self::of(&super::medium::title(path), &files, options, &stores)
    }

    /// The source of these shards, of which all together are called `title`.
    pub(super) fn of(
        title: &str,
        shards: &[PathBuf],
        options: &OpenOptions,
        stores: &Stores,
    ) -> Result<Self, SourceError> {
        open::open(title, shards, options, stores)
    }

    fn shard(&self, id: SampleId) -> u32 {
        self.index.label(id)
    }

    /// Where a sample lies in its tar: offset and length.
    fn place(&self, id: SampleId) -> (u64, u64) {
        (self.offsets[id.0 as usize], self.index.size_bytes(id))
    }

    fn place_in_stream(&self, id: SampleId) -> Place {
        let (offset, bytes) = self.place(id);
        Place { offset, bytes, content_bytes: self.content_bytes(id) }
    }

    fn content_bytes(&self, id: SampleId) -> Option<u64> {
        self.contents.get(id.0 as usize).filter(|&&bytes| bytes > 0).map(|&bytes| u64::from(bytes))
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

    /// The shard's path, the member's name and where its bytes begin.
    fn name(&self, id: SampleId) -> String {
        let mut path = Vec::new();
        self.index.push_path(id, &mut path);
        let shard = self.shards[self.shard(id) as usize].medium.path().as_os_str().len();
        let (shard, member) = path.split_at(shard.min(path.len()));
        let readable = super::folder::readable;
        let member = readable(member.get(1..).unwrap_or_default());
        format!("{}: {member} (at byte {})", readable(shard), self.offsets[id.0 as usize])
    }

    fn read_into(&self, id: SampleId, out: &mut [u8]) -> Result<(), SourceError> {
        let (number, (offset, stored)) = (self.shard(id), self.place(id));
        let (shard, expected) = (&self.shards[number as usize], self.encoded_bytes(id));
        assert_eq!(out.len() as u64, expected, "{id} has {expected} bytes");
        let compressed = self.content_bytes(id).is_some();
        match (&shard.storage, compressed) {
            (Storage::Plain, false) => shard.medium.read_at(offset, out),
            (Storage::Frames(frames), false) => self.benches.lend().read(&shard.medium, (number, frames), offset, out),
            (Storage::Stream, _) => match &self.streams {
                Some(streams) => streams.read(id, out, (number, &shard.medium), |id| self.place_in_stream(id)),
                None => unreachable!("a stream without streams"),
            },
            (storage, true) => {
                let mut bench = self.benches.lend();
                let mut member = std::mem::take(&mut bench.member);
                member.resize(stored as usize, 0);
                let read = match storage {
                    Storage::Frames(frames) => bench.read(&shard.medium, (number, frames), offset, &mut member),
                    _ => shard.medium.read_at(offset, &mut member),
                };
                let failed = |cause| SourceError::unusable(shard.medium.path(), Some(offset), cause);
                let done = read.and_then(|()| bench.decompressor.frame(&member, out).map_err(failed));
                bench.member = member;
                done
            }
        }
    }

    /// Those that lie in a plain tar as they are go to storage together.
    fn read_many(&self, reads: &mut [SampleRead<'_>]) {
        for reads in reads.chunk_by_mut(|a, b| self.shard(a.id) == self.shard(b.id)) {
            let Some(shard) = reads.first().map(|read| &self.shards[self.shard(read.id) as usize]) else { continue };
            if !matches!(shard.storage, Storage::Plain)
                || reads.iter().any(|read| self.content_bytes(read.id).is_some())
            {
                reads.iter_mut().for_each(|read| read.done = self.read_into(read.id, read.out));
                continue;
            }
            let places = reads.iter_mut().map(|read| {
                let (offset, bytes) = self.place(read.id);
                assert_eq!(read.out.len() as u64, bytes, "{} has {bytes} bytes", read.id);
                (offset, &mut *read.out)
            });
            let done = shard.medium.read_many(&mut places.collect::<Vec<_>>());
            reads.iter_mut().zip(done).for_each(|(read, done)| read.done = done);
        }
    }

    fn index_bytes(&self) -> u64 {
        let strings = |list: &[String]| list.iter().map(|text| size_of::<String>() + text.capacity()).sum::<usize>();
        let unreadable = self.unreadable.iter();
        let unreadable = unreadable.map(|one| size_of::<Unreadable>() + one.path.capacity() + one.cause.capacity());
        let shards = self
            .shards
            .iter()
            .map(|shard| size_of::<Shard>() + shard.medium.heap_bytes() + size_of_val(shard.frames()));
        let rest = size_of::<Self>()
            + self.title.capacity()
            + strings(&self.classes)
            + strings(&self.notes)
            + unreadable.sum::<usize>()
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

    fn reading(&self) -> Reading {
        let at_once = self.shards.iter().map(|shard| shard.medium.at_once()).max();
        let at_once = self.benches.count().max(at_once.unwrap_or(1));
        let near = self.shards.iter().all(|shard| shard.medium.is_near());
        let streams = self.streams.as_ref().map_or(0, Streams::held_bytes);
        // What is decompressed is read one by one: nothing is won by giving it to one reader.
        let as_stored =
            self.contents.is_empty() && self.shards.iter().all(|shard| matches!(shard.storage, Storage::Plain));
        Reading {
            at_once,
            held_bytes: self.benches.held_bytes() + streams + self.stores_bytes,
            together_bytes: if as_stored && !near { STORE_TOGETHER_BYTES } else { 0 },
        }
    }

    fn blocks(&self) -> Option<&Blocks> {
        self.streams.as_ref().map(Streams::blocks)
    }

    /// Ranges that lie close together are asked for in one go.
    fn read_ahead(&self, ids: &[SampleId]) {
        let mut ids = ids.iter().peekable();
        while let Some(&id) = ids.next() {
            let (shard, (start, bytes)) = (self.shard(id), self.place(id));
            let mut end = start + bytes;
            while let Some(&next) = ids.next_if(|&&next| {
                let (offset, _) = self.place(next);
                self.shard(next) == shard && offset >= start && offset <= end + JOIN_BYTES
            }) {
                let (offset, bytes) = self.place(next);
                end = end.max(offset + bytes);
            }
            self.shards[shard as usize].will_need(start, end);
        }
    }

    fn forget_pages(&self, forget: bool) {
        self.shards.iter().for_each(|shard| shard.medium.forget_pages(forget));
    }
}

impl Shard {
    fn frames(&self) -> &[Frame] {
        match &self.storage {
            Storage::Frames(frames) => frames,
            _ => &[],
        }
    }

    /// Asks storage for what a range of the tar takes.
    fn will_need(&self, start: u64, end: u64) {
        let frames = match &self.storage {
            Storage::Plain => return self.medium.will_need(start, end - start),
            Storage::Frames(frames) => frames,
            // It is read in large pieces, which the system reads ahead of.
            Storage::Stream => return,
        };
        let first = frames.partition_point(|frame| frame.content_start + frame.content_bytes <= start);
        let last = frames.partition_point(|frame| frame.content_start < end);
        if let (Some(first), Some(last)) = (frames.get(first), last.checked_sub(1).and_then(|last| frames.get(last))) {
            self.medium.will_need(first.offset, (last.offset + last.bytes).saturating_sub(first.offset));
        }
    }
}

#[cfg(test)]
mod tests;
