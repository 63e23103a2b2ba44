//! Owns the table of one shard, in memory and as the file beside it: where each sample lies, how long it is, what it is
//! called, its class and size. It must never be believed where its checksum, its parts or the shard it was made of do not
//! fit.

use std::env;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process;

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::super::file::Identity;
use super::super::index::{DirectoryIndex, NAME_BYTES_MAX};
use super::super::medium::is_url;
use super::super::open::INDEX_SUFFIX as SUFFIX;
use super::zst::Frame;

const MAGIC: [u8; 8] = *b"FEEDIDX\x01";

/// One sample, as a scan finds it.
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    pub(super) offset: u64,
    /// As it lies in the shard.
    pub(super) bytes: u64,
    /// What comes out, where it is compressed by itself.
    pub(super) content_bytes: Option<u64>,
    pub(super) label: u32,
    pub(super) dimensions: (u32, u32),
}

/// How a shard is compressed as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Compression {
    #[default]
    None,
    /// In frames that can be decompressed by themselves.
    Frames(Vec<Frame>),
    /// In one piece, or in pieces too large to be held.
    Stream {
        /// What a decompressor has to keep.
        window_bytes: u64,
    },
}

/// The samples of one shard, in the order in which they lie there.
#[derive(Debug, Default)]
pub(super) struct ShardIndex {
    /// Names, and bytes as they lie in the shard.
    pub(super) table: DirectoryIndex,
    /// Where each begins, in the tar.
    pub(super) offsets: Vec<u64>,
    /// Places in `classes`.
    pub(super) labels: Vec<u32>,
    /// Width and height, 16 bits each; 0 where they are not known.
    pub(super) dimensions: Vec<u32>,
    /// Bytes of those that are compressed by themselves; 0 for others. Empty where there are none.
    pub(super) contents: Vec<u32>,
    pub(super) classes: Vec<String>,
    pub(super) compression: Compression,
    /// Members that might be samples and are not: where, which, why.
    pub(super) problems: Vec<(u64, Vec<u8>, String)>,
    pub(super) problem_count: u64,
    /// Further pictures of the same key.
    pub(super) beside_count: u64,
}

impl ShardIndex {
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn push(&mut self, entry: &Entry<'_>) {
        let place = self.len();
        self.table.push(&shown(entry.name), entry.bytes);
        self.offsets.push(entry.offset);
        self.labels.push(entry.label);
        self.dimensions.push(match entry.dimensions {
            (width, height) if width.max(height) <= u32::from(u16::MAX) => width << 16 | height,
            _ => 0,
        });
        if let Some(bytes) = entry.content_bytes {
            self.contents.resize(place, 0);
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

    /// Writes the file.
    fn encode(&self, identity: Identity, to: impl Write) -> io::Result<()> {
        let mut out = Encoder { to, sum: Xxh3::new() };
        out.raw(&MAGIC)?;
        let (names, blocks, sizes, large) = self.table.parts();
        out.numbers(&[identity.bytes, identity.modified_s as u64, identity.modified_ns as u64])?;
        out.numbers(&[self.problem_count, self.beside_count])?;
        out.bytes(names)?;
        out.longs(blocks)?;
        out.shorts(sizes)?;
        out.longs(&large.iter().flat_map(|&(place, bytes)| [place, bytes]).collect::<Vec<_>>())?;
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

    /// What a file of `bytes` bytes says of this very shard; none where it says it of another, or is damaged.
    fn decode(from: impl Read, bytes: u64, identity: Identity) -> Option<Self> {
        let mut from = Decoder { from, left: bytes, sum: Xxh3::new() };
        (from.raw(MAGIC.len() as u64)? == MAGIC).then_some(())?;
        let of =
            Identity { bytes: from.number()?, modified_s: from.number()? as i64, modified_ns: from.number()? as i64 };
        (of == identity).then_some(())?;
        let (problem_count, beside_count) = (from.number()?, from.number()?);
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
            beside_count,
        };
        found.fits(identity.bytes).then_some(found)
    }

    /// Whether its parts fit each other and the shard's size.
    fn fits(&self, shard_bytes: u64) -> bool {
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
        let ends_inside = |(place, offset): (usize, &u64)| {
            offset.checked_add(self.table.size_bytes(place)).is_some_and(|end| end <= content_end)
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

/// A member's name, shortened in front where it is longer than the table holds.
fn shown(name: &[u8]) -> std::borrow::Cow<'_, [u8]> {
    match name.len().checked_sub(NAME_BYTES_MAX) {
        None | Some(0) => name.into(),
        Some(over) => [b"...", &name[over + 3..]].concat().into(),
    }
}

/// The index of a shard as it was saved, if that is still true.
pub(super) fn load(shard: &Path, identity: Identity, folder: Option<&Path>) -> Option<ShardIndex> {
    places(shard, folder).find_map(|place| {
        let file = File::open(place).ok()?;
        let bytes = file.metadata().ok()?.len();
        ShardIndex::decode(BufReader::new(file), bytes, identity)
    })
}

/// Saves an index in `folder`, or else beside its shard, or else in the user's cache folder.
///
/// # Errors
/// Neither can be written to; what the first said.
pub(super) fn save(shard: &Path, identity: Identity, index: &ShardIndex, folder: Option<&Path>) -> io::Result<()> {
    let mut first = None;
    for place in places(shard, folder) {
        match write(&place, |file| index.encode(identity, file)) {
            Ok(()) => return Ok(()),
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(first.unwrap_or_else(|| io::Error::other("there is no place for it")))
}

/// Where the index of a shard may be.
fn places(shard: &Path, folder: Option<&Path>) -> impl Iterator<Item = PathBuf> {
    let mut beside = shard.as_os_str().to_owned();
    beside.push(".");
    beside.push(SUFFIX);
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    let whole = fs::canonicalize(shard).unwrap_or_else(|_| shard.to_owned());
    let name = format!("{:032x}.{SUFFIX}", xxh3_128(whole.as_os_str().as_bytes()));
    let named = folder.map(|folder| folder.join(&name));
    let elsewhere = folder.is_none();
    let beside = (elsewhere && !is_url(shard)).then(|| PathBuf::from(beside));
    let cache = cache.filter(|_| elsewhere);
    [named, beside, cache.map(|cache| cache.join("feedstock").join("index").join(name))].into_iter().flatten()
}

/// Writes a file whole or not at all: under another name first.
fn write(place: &Path, content: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<()> {
    if let Some(folder) = place.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder)?;
    }
    let mut partial = place.as_os_str().to_owned();
    partial.push(format!(".{}", process::id()));
    let partial = PathBuf::from(partial);
    let written = File::create(&partial).and_then(|file| {
        let mut file = BufWriter::new(file);
        content(&mut file)?;
        file.flush()?;
        fs::rename(&partial, place)
    });
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written
}

/// Writes numbers and lists, and keeps their checksum.
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

/// Reads what an [`Encoder`] has written, straight into the memory where it stays.
struct Decoder<R> {
    from: R,
    /// Bytes that are still to come: no list is believed to be longer.
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

    /// How many numbers of `size` bytes come.
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

    const OF: Identity = Identity { bytes: 1 << 40, modified_s: -3, modified_ns: 999 };

    fn sample(i: u64) -> Entry<'static> {
        let name = format!("n{:04}/picture-{i}.jpg", i / 7).into_bytes().leak();
        let content_bytes = (i % 5 == 4).then_some(i * 11 + 1);
        Entry { name, offset: i * 5000, bytes: i * 3, content_bytes, label: (i % 2) as u32, dimensions: (i as u32, 3) }
    }

    fn encode(index: &ShardIndex, identity: Identity) -> Vec<u8> {
        let mut file = vec![];
        index.encode(identity, &mut file).unwrap();
        file
    }

    fn decode(file: &[u8], identity: Identity) -> Option<ShardIndex> {
        ShardIndex::decode(file, file.len() as u64, identity)
    }

    fn index(samples: u64) -> ShardIndex {
        let mut index = ShardIndex { classes: vec!["cat".into(), "d\u{f6}g".into()], ..ShardIndex::default() };
        (0..samples).for_each(|i| index.push(&sample(i)));
        index.problems.push((512, b"x\xFF".to_vec(), "no label".into()));
        (index.problem_count, index.beside_count) = (7, 9);
        index
    }

    #[test]
    fn what_is_saved_comes_back() {
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
                    (&again.compression, &again.problems, again.problem_count, again.beside_count),
                    (&index.compression, &index.problems, 7, 9)
                );
            }
        }
    }

    #[test]
    fn what_is_of_another_shard_or_damaged_is_not_believed() {
        let file = encode(&index(40), OF);
        for other in [
            Identity { bytes: OF.bytes + 1, ..OF },
            Identity { modified_s: 0, ..OF },
            Identity { modified_ns: 1, ..OF },
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
    fn an_index_that_leads_out_of_its_shard_is_not_believed() {
        let small = Identity { bytes: 5000 * 39 + 39 * 3, ..OF };
        assert!(decode(&encode(&index(40), small), small).is_some());
        let smaller = Identity { bytes: small.bytes - 1, ..OF };
        assert!(decode(&encode(&index(40), smaller), smaller).is_none());
        let mut wrong = index(40);
        wrong.labels[7] = 2;
        assert!(decode(&encode(&wrong, OF), OF).is_none());
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(at in prop::collection::vec((0usize..3000, any::<u8>()), 1..6)) {
            // With a checksum that fits, damage reaches the parts.
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
        let short = shown(&long);
        assert_eq!((short.len(), short.starts_with(b"...a"), short.ends_with(b"a/end.jpg")), (255, true, true));
        assert_eq!(shown(b"x.jpg"), &b"x.jpg"[..]);
    }
}
