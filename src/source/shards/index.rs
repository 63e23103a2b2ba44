//! Index of one shard, in memory and as a file: offset, size, name, class and dimensions of each sample.
//!
//! An index file is used only if its checksum is right, its tables are consistent, and the shard has the identity that
//! it was made with.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use xxhash_rust::xxh3::Xxh3;

use super::zst::Frame;
use crate::source::index::{DirectoryIndex, NAME_BYTES_MAX};
use crate::source::index_file::{candidates, write_atomically};
use crate::source::shard_io::ShardIdentity;

/// Folder of the index files in the user's cache folder.
const CACHE: &str = "index";
/// First bytes of an index file; the last one is the version of its format.
const MAGIC: [u8; 8] = *b"FEEDIDX\x01";

/// One sample.
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    pub(super) offset: u64,
    /// Stored size.
    pub(super) bytes: u64,
    /// Decompressed size of a compressed member.
    pub(super) content_bytes: Option<u64>,
    pub(super) label: u32,
    pub(super) dimensions: (u32, u32),
}

/// Compression of a shard as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Compression {
    #[default]
    None,
    /// Independent frames.
    Frames(Vec<Frame>),
    /// A single frame, or frames that are too large.
    Stream {
        /// Window of the decompressor, bytes.
        window_bytes: u64,
    },
}

/// The samples of one shard, in the order of the tar.
#[derive(Debug, Default)]
pub(super) struct ShardIndex {
    /// Names and stored sizes.
    pub(super) table: DirectoryIndex,
    /// Offset of each sample in the tar.
    pub(super) offsets: Vec<u64>,
    /// Indices into `classes`.
    pub(super) labels: Vec<u32>,
    /// Width and height, 16 bits each; 0 if unknown.
    pub(super) dimensions: Vec<u32>,
    /// Decompressed sizes of compressed members; 0 for others. Empty if there are none.
    pub(super) contents: Vec<u32>,
    pub(super) classes: Vec<String>,
    pub(super) compression: Compression,
    /// Members that could not be used: offset, name (empty for the tar itself) and reason.
    pub(super) problems: Vec<(u64, Vec<u8>, String)>,
    pub(super) problem_count: u64,
    /// Number of further images with the key of another.
    pub(super) extra_count: u64,
}

impl ShardIndex {
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// Sizes of the samples as they are read.
    pub(super) fn encoded_sizes(&self) -> impl Iterator<Item = u64> {
        (0..self.len()).map(|at| match self.contents.get(at) {
            Some(&content) if content > 0 => u64::from(content),
            _ => self.table.size_bytes(at),
        })
    }

    /// Stored sizes of compressed members.
    pub(super) fn compressed_sizes(&self) -> impl Iterator<Item = u64> {
        self.contents.iter().enumerate().filter(|(_, content)| **content > 0).map(|(at, _)| self.table.size_bytes(at))
    }

    pub(super) fn push(&mut self, entry: &Entry<'_>) {
        let at = self.len();
        self.table.push(&shorten(entry.name), entry.bytes);
        self.offsets.push(entry.offset);
        self.labels.push(entry.label);
        self.dimensions.push(match entry.dimensions {
            (width, height) if width.max(height) <= u32::from(u16::MAX) => width << 16 | height,
            _ => 0,
        });
        if let Some(bytes) = entry.content_bytes {
            self.contents.resize(at, 0);
            self.contents.push(u32::try_from(bytes).unwrap_or(u32::MAX));
        } else if !self.contents.is_empty() {
            self.contents.push(0);
        }
    }

    pub(super) fn shrink(&mut self) {
        self.table.shrink();
        self.offsets.shrink_to_fit();
        self.labels.shrink_to_fit();
        self.dimensions.shrink_to_fit();
        self.contents.shrink_to_fit();
    }

    /// Writes the index file.
    fn encode(&self, identity: ShardIdentity, to: impl Write) -> io::Result<()> {
        let mut out = Encoder { to, sum: Xxh3::new() };
        out.raw(&MAGIC)?;
        let (names, blocks, sizes, large) = self.table.parts();
        out.numbers(&[identity.bytes, (identity.version >> 64) as u64, identity.version as u64])?;
        out.numbers(&[self.problem_count, self.extra_count])?;
        out.bytes(names)?;
        out.longs(blocks)?;
        out.shorts(sizes)?;
        out.longs(&large.iter().flat_map(|&(position, bytes)| [position, bytes]).collect::<Vec<_>>())?;
        out.longs(&self.offsets)?;
        out.shorts(&self.labels)?;
        out.shorts(&self.dimensions)?;
        out.shorts(&self.contents)?;
        match &self.compression {
            Compression::None => out.numbers(&[0])?,
            Compression::Frames(frames) => {
                out.numbers(&[1])?;
                let four = |f: &Frame| [f.content_start, f.content_bytes, f.offset, f.bytes];
                out.longs(&frames.iter().flat_map(four).collect::<Vec<_>>())?;
            }
            Compression::Stream { window_bytes } => out.numbers(&[2, *window_bytes])?,
        }
        out.numbers(&[self.classes.len() as u64])?;
        self.classes.iter().try_for_each(|class| out.bytes(class.as_bytes()))?;
        out.numbers(&[self.problems.len() as u64])?;
        for (offset, name, cause) in &self.problems {
            out.numbers(&[*offset])?;
            out.bytes(name)?;
            out.bytes(cause.as_bytes())?;
        }
        let sum = out.sum.digest();
        out.numbers(&[sum])
    }

    /// Reads an index file of `bytes` bytes. `None` if it is damaged, or of a shard with another identity.
    fn decode(from: impl Read, bytes: u64, identity: ShardIdentity) -> Option<Self> {
        let mut from = Decoder { from, left: bytes, sum: Xxh3::new() };
        (from.raw(MAGIC.len() as u64)? == MAGIC).then_some(())?;
        let (bytes, high, low) = (from.number()?, from.number()?, from.number()?);
        let version = u128::from(high) << 64 | u128::from(low);
        (ShardIdentity { bytes, version } == identity).then_some(())?;
        let (problem_count, extra_count) = (from.number()?, from.number()?);
        let (names, blocks, sizes, large) = (from.bytes()?, from.longs()?, from.shorts()?, from.longs()?);
        let (offsets, labels) = (from.longs()?, from.shorts()?);
        let (dimensions, contents) = (from.shorts()?, from.shorts()?);
        let compression = match from.number()? {
            0 => Compression::None,
            1 => {
                let frame = |f: &[u64]| Frame { content_start: f[0], content_bytes: f[1], offset: f[2], bytes: f[3] };
                Compression::Frames(from.longs()?.chunks_exact(4).map(frame).collect())
            }
            2 => Compression::Stream { window_bytes: from.number()? },
            _ => return None,
        };
        let classes: Vec<String> = (0..from.number()?).map(|_| from.text()).collect::<Option<_>>()?;
        let count = from.number()?;
        let problem = |_| Some((from.number()?, from.bytes()?, from.text()?));
        let problems = (0..count).map(problem).collect::<Option<_>>()?;
        let sum = from.sum.digest();
        (from.number()? == sum && from.left == 0).then_some(())?;
        let large = large.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        let found = ShardIndex {
            table: DirectoryIndex::from_parts(names, blocks, sizes, large)?,
            offsets,
            labels,
            dimensions,
            contents,
            classes,
            compression,
            problems,
            problem_count,
            extra_count,
        };
        found.is_consistent(identity.bytes).then_some(found)
    }

    /// Returns true if the tables agree with each other and with the shard's size.
    fn is_consistent(&self, shard_bytes: u64) -> bool {
        let content_end = match &self.compression {
            Compression::None => shard_bytes,
            Compression::Frames(frames) => {
                let inside = |f: &Frame| f.offset.checked_add(f.bytes).is_some_and(|end| end <= shard_bytes);
                let follows = frames.windows(2).all(|pair| pair[0].end() == Some(pair[1].content_start));
                let starts = frames.first().is_none_or(|first| first.content_start == 0);
                match frames.last().map_or(Some(0), Frame::end) {
                    Some(end) if follows && starts && frames.iter().all(inside) => end,
                    _ => return false,
                }
            }
            Compression::Stream { .. } => u64::MAX,
        };
        let count = self.len();
        let ends_inside = |(at, offset): (usize, &u64)| {
            offset.checked_add(self.table.size_bytes(at)).is_some_and(|end| end <= content_end)
        };
        [self.offsets.len(), self.labels.len(), self.dimensions.len()].iter().all(|&len| len == count)
            && (self.contents.is_empty() || self.contents.len() == count)
            && self.labels.iter().all(|&label| (label as usize) < self.classes.len())
            && self.offsets.iter().enumerate().all(ends_inside)
    }
}

impl Frame {
    fn end(&self) -> Option<u64> {
        self.content_start.checked_add(self.content_bytes)
    }
}

/// Shortens a member's name from the front to the limit of the table.
fn shorten(name: &[u8]) -> std::borrow::Cow<'_, [u8]> {
    match name.len().checked_sub(NAME_BYTES_MAX) {
        None | Some(0) => name.into(),
        Some(over) => [b"...", &name[over + 3..]].concat().into(),
    }
}

/// Loads the saved index of a shard, if it is valid.
pub(super) fn load(shard: &Path, identity: ShardIdentity, folder: Option<&Path>) -> Option<ShardIndex> {
    candidates(shard, folder, CACHE).iter().find_map(|path| {
        let file = File::open(path).ok()?;
        let bytes = file.metadata().ok()?.len();
        ShardIndex::decode(BufReader::new(file), bytes, identity)
    })
}

/// Saves the index of a shard in `folder`, or else beside the shard, or else in the user's cache folder.
///
/// # Errors
/// The error of the first of these, if none can be written to.
pub(super) fn save(shard: &Path, identity: ShardIdentity, index: &ShardIndex, folder: Option<&Path>) -> io::Result<()> {
    let mut first = None;
    for path in candidates(shard, folder, CACHE) {
        match write_atomically(&path, |file| index.encode(identity, file)) {
            Ok(()) => return Ok(()),
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(first.unwrap_or_else(|| io::Error::other("there is no cache folder")))
}

/// Writer of numbers and lists with a checksum.
struct Encoder<W> {
    to: W,
    sum: Xxh3,
}

impl<W: Write> Encoder<W> {
    fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.update(bytes);
        self.to.write_all(bytes)
    }

    fn numbers(&mut self, numbers: &[u64]) -> io::Result<()> {
        numbers.iter().try_for_each(|number| self.raw(&number.to_le_bytes()))
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.numbers(&[bytes.len() as u64])?;
        self.raw(bytes)
    }

    fn longs(&mut self, longs: &[u64]) -> io::Result<()> {
        self.numbers(&[8 * longs.len() as u64])?;
        self.numbers(longs)
    }

    fn shorts(&mut self, shorts: &[u32]) -> io::Result<()> {
        self.numbers(&[4 * shorts.len() as u64])?;
        shorts.iter().try_for_each(|short| self.raw(&short.to_le_bytes()))
    }
}

/// Reader of what an [`Encoder`] wrote.
struct Decoder<R> {
    from: R,
    /// Bytes left in the file: the limit of a list.
    left: u64,
    sum: Xxh3,
}

impl<R: Read> Decoder<R> {
    fn fill(&mut self, out: &mut [u8]) -> Option<()> {
        self.left = self.left.checked_sub(out.len() as u64)?;
        self.from.read_exact(out).ok()?;
        self.sum.update(out);
        Some(())
    }

    fn raw(&mut self, bytes: u64) -> Option<Vec<u8>> {
        let mut out = vec![0; usize::try_from(bytes).ok().filter(|_| bytes <= self.left)?];
        self.fill(&mut out)?;
        Some(out)
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = [0; 8];
        self.fill(&mut number)?;
        Some(u64::from_le_bytes(number))
    }

    fn bytes(&mut self) -> Option<Vec<u8>> {
        let bytes = self.number()?;
        self.raw(bytes)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?).ok()
    }

    /// Reads the length of a list of numbers of `size` bytes.
    fn count(&mut self, size: u64) -> Option<usize> {
        let bytes = self.number()?;
        usize::try_from(bytes / size).ok().filter(|_| bytes.is_multiple_of(size) && bytes <= self.left)
    }

    fn longs(&mut self) -> Option<Vec<u64>> {
        let mut longs = vec![0; self.count(8)?];
        self.fill(bytemuck::cast_slice_mut(&mut longs))?;
        longs.iter_mut().for_each(|long| *long = u64::from_le(*long));
        Some(longs)
    }

    fn shorts(&mut self) -> Option<Vec<u32>> {
        let mut shorts = vec![0; self.count(4)?];
        self.fill(bytemuck::cast_slice_mut(&mut shorts))?;
        shorts.iter_mut().for_each(|short| *short = u32::from_le(*short));
        Some(shorts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OF: ShardIdentity = ShardIdentity { bytes: 1 << 40, version: (-3i64 as u64 as u128) << 64 | 999 };

    fn sample(i: u64) -> Entry<'static> {
        let name = format!("n{:04}/image-{i}.jpg", i / 7).into_bytes().leak();
        let content_bytes = (i % 5 == 4).then_some(i * 11 + 1);
        Entry { name, offset: i * 5000, bytes: i * 3, content_bytes, label: (i % 2) as u32, dimensions: (i as u32, 3) }
    }

    fn encode(index: &ShardIndex, identity: ShardIdentity) -> Vec<u8> {
        let mut file = vec![];
        index.encode(identity, &mut file).unwrap();
        file
    }

    fn decode(file: &[u8], identity: ShardIdentity) -> Option<ShardIndex> {
        ShardIndex::decode(file, file.len() as u64, identity)
    }

    fn index(samples: u64) -> ShardIndex {
        let mut index = ShardIndex { classes: vec!["cat".into(), "d\u{f6}g".into()], ..ShardIndex::default() };
        (0..samples).for_each(|i| index.push(&sample(i)));
        index.problems.push((512, b"x\xFF".to_vec(), "no label".into()));
        (index.problem_count, index.extra_count) = (7, 9);
        index
    }

    #[test]
    fn an_index_survives_encoding() {
        for samples in [0, 1, 16, 17, 100] {
            let mut index = index(samples);
            for compression in [
                Compression::None,
                Compression::Stream { window_bytes: 8 << 20 },
                Compression::Frames(vec![
                    Frame { content_start: 0, content_bytes: 1 << 19, offset: 0, bytes: 77 },
                    Frame { content_start: 1 << 19, content_bytes: 1, offset: 77, bytes: 13 },
                ]),
            ] {
                index.compression = compression;
                let again = decode(&encode(&index, OF), OF).unwrap();
                assert_eq!(again.table.parts(), index.table.parts());
                assert_eq!(
                    (&again.offsets, &again.labels, &again.dimensions, &again.contents, &again.classes),
                    (&index.offsets, &index.labels, &index.dimensions, &index.contents, &index.classes)
                );
                assert_eq!(
                    (&again.compression, &again.problems, again.problem_count, again.extra_count),
                    (&index.compression, &index.problems, 7, 9)
                );
            }
        }
    }

    #[test]
    fn foreign_and_damaged_indices_are_rejected() {
        let file = encode(&index(40), OF);
        for other in [
            ShardIdentity { bytes: OF.bytes + 1, ..OF },
            ShardIdentity { version: 999, ..OF },
            ShardIdentity { version: OF.version + 1, ..OF },
        ] {
            assert!(decode(&file, other).is_none());
        }
        for at in 0..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 1;
            assert!(decode(&damaged, OF).is_none(), "{at}");
            assert!(decode(&file[..at], OF).is_none(), "{at}");
        }
    }

    #[test]
    fn inconsistent_indices_are_rejected() {
        let small = ShardIdentity { bytes: 5000 * 39 + 39 * 3, ..OF };
        assert!(decode(&encode(&index(40), small), small).is_some());
        let smaller = ShardIdentity { bytes: small.bytes - 1, ..OF };
        assert!(decode(&encode(&index(40), smaller), smaller).is_none());
        let mut wrong = index(40);
        wrong.labels[7] = 2;
        assert!(decode(&encode(&wrong, OF), OF).is_none());
    }

    proptest! {
        #[test]
        fn arbitrary_files_do_not_panic(at in prop::collection::vec((0usize..3000, any::<u8>()), 1..6)) {
            // With a valid checksum, damage reaches the tables.
            let mut file = encode(&index(40), OF);
            let body = file.len() - 8;
            for (at, byte) in at {
                file[at % body] = byte;
            }
            let sum = xxhash_rust::xxh3::xxh3_64(&file[..body]).to_le_bytes();
            file[body..].copy_from_slice(&sum);
            if let Some(index) = decode(&file, OF) {
                prop_assert!(index.offsets.len() == index.len());
            }
        }
    }

    #[test]
    fn a_long_name_keeps_its_end() {
        let long = [vec![b'a'; 300], b"/end.jpg".to_vec()].concat();
        let short = shorten(&long);
        assert_eq!((short.len(), short.starts_with(b"...a"), short.ends_with(b"a/end.jpg")), (255, true, true));
        assert_eq!(shorten(b"x.jpg"), &b"x.jpg"[..]);
    }
}
