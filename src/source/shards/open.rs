//! Opening of shards: indices are loaded or made by a scan, and joined.

use std::collections::{BTreeSet, HashSet};
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use super::classes::Classes;
use super::decompressors::{BufferSizes, DecompressorPool};
use super::index::{Compression, ShardIndex, load, save};
use super::scan;
use super::source::{Shard, ShardLayout, TarShards};
use super::stream::{self, Streams};
use super::zst::{self, WINDOW_BYTES_MAX};
use crate::source::error::counted;
use crate::source::index::{ClassDirectory, Index};
use crate::source::opener::ShardOpener;
use crate::source::parallel::try_map;
use crate::source::path::{display_name, readable};
use crate::source::resolve::resolve;
use crate::source::shard_io::ShardIo;
use crate::source::skip_read::NoSeek;
use crate::source::{OpenOptions, PageCache, SourceError, Unreadable};
use crate::units::ByteCount;

/// Maximum content of a frame that is decompressed to read a part of it, bytes.
const FRAME_BYTES_MAX: u64 = 16 << 20;
/// Minimum number of scanning threads: a scan waits for storage most of the time.
const SCAN_THREADS_MIN: usize = 4;
/// Maximum number of unreadable entries that are listed.
const UNREADABLE_MAX: usize = 1000;

impl TarShards {
    /// Opens the shards of a path or a pattern (`train-{0000..0146}.tar`, `train-*.tar`), and scans those that have no
    /// index yet.
    ///
    /// # Errors
    /// * [`SourceError::Pattern`] for a pattern without matches.
    /// * [`SourceError::Io`] for a shard that cannot be opened or read.
    /// * [`SourceError::Damaged`] for a shard that is not a tar, or is truncated before its first sample.
    /// * [`SourceError::Unusable`] for an unsupported compression, a shard without samples, or labels that do not fit
    ///   those of other shards.
    /// * Any of these, and [`SourceError::TooLarge`], for a list of classes beside the shards.
    pub fn open(pattern: impl AsRef<Path>) -> Result<Self, SourceError> {
        Self::open_with(pattern, &OpenOptions::default())
    }

    /// Opens shards, as [`open`](Self::open), with options.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn open_with(pattern: impl AsRef<Path>, options: &OpenOptions) -> Result<Self, SourceError> {
        let path = pattern.as_ref();
        let opener = ShardOpener::new(options);
        let files = resolve(path, &opener)?.unwrap_or_default();
        Self::from_files(&display_name(path), &files, options, &opener)
    }

    /// Opens shards, which together have the title `title`.
    pub(in crate::source) fn from_files(
        title: &str,
        files: &[PathBuf],
        options: &OpenOptions,
        opener: &ShardOpener,
    ) -> Result<Self, SourceError> {
        if files.is_empty() {
            return Err(SourceError::unusable(Path::new(title), None, "no shards (*.tar, *.tar.zst) found"));
        }
        let (mut shards, mut indices, mut notes) = (Vec::new(), Vec::new(), BTreeSet::new());
        for (shard, index, note) in index_all(files, options.index_folder.as_deref(), opener)? {
            shards.push(shard);
            indices.push(index);
            notes.extend(note);
        }
        let notes = notes.into_iter().collect();
        assemble(title.to_owned(), shards, indices, notes, options.shuffle_buffer, opener)
    }
}

/// A shard, its index, and a note.
type Indexed = (Shard, ShardIndex, Option<String>);

/// Opens every shard, and loads or makes its index. A shard that is listed twice is opened once.
fn index_all(paths: &[PathBuf], folder: Option<&Path>, opener: &ShardOpener) -> Result<Vec<Indexed>, SourceError> {
    let mut seen = HashSet::new();
    let paths: Vec<&PathBuf> = paths.iter().filter(|path| seen.insert(*path)).collect();
    let cores = available_parallelism().map_or(1, NonZeroUsize::get);
    try_map(paths.len(), cores.max(SCAN_THREADS_MIN), |at| index_one(paths[at], folder, opener))
}

fn index_one(path: &Path, folder: Option<&Path>, opener: &ShardOpener) -> Result<Indexed, SourceError> {
    let io = opener.open(path)?;
    let identity = io.identity();
    // The shard's own name for itself: the URL given may carry a signature, which changes and must not be stored.
    let path = io.path();
    let (index, note) = match load(path, identity, folder) {
        Some(index) => (index, None),
        None => {
            let made = scan_one(&*io)?;
            let note = save(path, identity, &made, folder).err().map(|error| {
                let folder = path.parent().unwrap_or(Path::new(".")).display();
                format!(
                    "the index of shards in {folder} cannot be saved ({error}), so they are scanned each time: make \
                     the folder writable once, or set XDG_CACHE_HOME"
                )
            });
            (made, note)
        }
    };
    let layout = match &index.compression {
        Compression::None => ShardLayout::Plain,
        Compression::Frames(frames) => ShardLayout::Frames(frames.clone().into()),
        Compression::Stream { .. } => ShardLayout::Stream,
    };
    Ok((Shard { io, layout }, index, note))
}

/// Scans a shard from its beginning to its end.
fn scan_one(io: &dyn ShardIo) -> Result<ShardIndex, SourceError> {
    let (path, bytes) = (io.path(), io.bytes());
    let mut magic = [0; 6];
    let read = magic.len().min(bytes as usize);
    io.read_at(0, &mut magic[..read], PageCache::Keep)?;
    let compression = match magic[..read] {
        [0x28, 0xB5, 0x2F, 0xFD, ..] | [0x50..=0x5F, 0x2A, 0x4D, 0x18, ..] => compression(io)?,
        [0x1F, 0x8B, ..] => return Err(unsupported(path, "gzip")),
        [b'B', b'Z', b'h', ..] => return Err(unsupported(path, "bzip2")),
        [0xFD, b'7', b'z', b'X', b'Z', 0] => return Err(unsupported(path, "xz")),
        _ => Compression::None,
    };
    let reader = io.reader()?;
    let found = if compression == Compression::None {
        scan::scan(reader, Some(bytes))
    } else {
        let failed = |error| SourceError::io("decompress", path, error);
        let mut decoder = zstd::stream::read::Decoder::new(reader).map_err(failed)?;
        decoder.window_log_max(WINDOW_BYTES_MAX.ilog2()).map_err(failed)?;
        scan::scan(NoSeek(decoder), None)
    };
    let mut found = found.map_err(|cause| SourceError::unusable(path, None, cause))?;
    found.compression = compression;
    io.check_unchanged()?;
    match found.problems.first() {
        Some((offset, member, cause)) if found.len() == 0 => {
            let cause = format!("the shard has no usable sample: {cause}");
            // A problem without a member is one of the tar.
            let error = if member.is_empty() { SourceError::damaged } else { SourceError::unusable };
            Err(error(path, Some(*offset), cause))
        }
        _ => Ok(found),
    }
}

fn unsupported(path: &Path, format: &str) -> SourceError {
    let cause = format!(
        "{format} compression is not supported, because it allows no random access: decompress the shard (images \
         hardly gain from compression), or compress it with zstd"
    );
    SourceError::unusable(path, None, cause)
}

/// Determines how a zstd file is divided into frames.
fn compression(io: &dyn ShardIo) -> Result<Compression, SourceError> {
    let bytes = io.bytes();
    let damaged = |(offset, cause): (u64, String)| SourceError::damaged(io.path(), Some(offset), cause);
    let mut io_error = None;
    let mut read_at = |at: u64, out: &mut [u8]| {
        io.read_at(at, out, PageCache::Keep).map_err(|error| io_error.insert(error).to_string())
    };
    let frames = match zst::seek_table(bytes, &mut read_at) {
        // Without a valid table, each frame is visited. On a store, that would take a request for each.
        None if io.is_local() => {
            let found = zst::frames(bytes, &mut read_at);
            found.map_err(|failure| io_error.unwrap_or_else(|| damaged(failure)))?
        }
        found => found,
    };
    if let Some(frames) = frames.filter(|frames| frames.iter().all(|frame| frame.content_bytes <= FRAME_BYTES_MAX)) {
        return Ok(Compression::Frames(frames));
    }
    let mut head = [0; zst::HEADER_BYTES_MAX];
    let len = head.len().min(bytes as usize);
    io.read_at(0, &mut head[..len], PageCache::Keep)?;
    let window_bytes = zst::FrameHeader::read(&head[..len]).map_err(|cause| damaged((0, cause)))?.window_bytes;
    if window_bytes > WINDOW_BYTES_MAX {
        let cause = format!(
            "the zstd window has {window_bytes} bytes, and at most {WINDOW_BYTES_MAX} are supported: compress the \
             shard with a smaller window (--long=27)"
        );
        return Err(SourceError::unusable(io.path(), Some(0), cause));
    }
    Ok(Compression::Stream { window_bytes })
}

/// Joins the indices of all shards.
fn assemble(
    title: String,
    shards: Vec<Shard>,
    indices: Vec<ShardIndex>,
    mut notes: Vec<String>,
    shuffle_buffer: ByteCount,
    opener: &ShardOpener,
) -> Result<TarShards, SourceError> {
    let streams = streams(&shards, &indices, shuffle_buffer, &mut notes);
    let classes = Classes::of(&shards, &indices)?;
    let any_content = indices.iter().any(|index| !index.contents.is_empty());
    let (mut offsets, mut labels, mut dimensions, mut contents) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut unreadable, mut unreadable_count, mut extra_count) = (Vec::new(), 0, 0);
    let (mut tables, mut sizes) = (Vec::with_capacity(shards.len()), BufferSizes::default());
    let mut sample_bytes_max = 0;
    for (number, (shard, mut index)) in shards.iter().zip(indices).enumerate() {
        let path = shard.io.path();
        sample_bytes_max = index.table.largest_bytes().max(sample_bytes_max);
        sizes.member = index.compressed_sizes().max().unwrap_or(0).max(sizes.member);
        for frame in shard.frames() {
            (sizes.frame, sizes.content) = (sizes.frame.max(frame.bytes), sizes.content.max(frame.content_bytes));
        }
        let of_shard = classes.labels(&index.classes, path)?;
        // In place, so that the lists of a single shard are not copied.
        index.labels.iter_mut().for_each(|label| *label = of_shard[*label as usize]);
        if any_content {
            index.contents.resize(index.len(), 0);
        }
        append(&mut labels, index.labels);
        append(&mut contents, index.contents);
        append(&mut offsets, index.offsets);
        append(&mut dimensions, index.dimensions);
        unreadable_count += index.problem_count;
        extra_count += index.extra_count;
        let room = UNREADABLE_MAX - unreadable.len();
        unreadable.extend(index.problems.into_iter().take(room).map(|(offset, member, cause)| Unreadable {
            path: path.to_owned(),
            cause: match member.is_empty() {
                true => format!("at byte {offset}: {cause}"),
                false => format!("{} (at byte {offset}): {cause}", readable(&member)),
            },
        }));
        let path = path.as_os_str().as_bytes().to_vec();
        tables.push(ClassDirectory { class: number as u32, path, samples: index.table });
    }
    if offsets.is_empty() {
        let first = unreadable.first().map_or(String::new(), |first| format!("; the first unusable member: {first}"));
        let cause = format!(
            "there are no samples in it: a sample is an image with its class beside it (000017.jpg, 000017.cls), or an \
             image in a folder named after its class{first}"
        );
        return Err(SourceError::unusable(Path::new(&title), None, cause));
    }
    if extra_count > 0 {
        notes.push(format!("not used: {} with the key of the image before", counted(extra_count, "image")));
    }
    let cores = available_parallelism().map_or(1, NonZeroUsize::get);
    Ok(TarShards {
        title,
        classes: classes.names,
        index: Index::assemble(tables, shards.len()),
        offsets: offsets.into(),
        labels: labels.into(),
        dimensions: dimensions.into(),
        contents: contents.into(),
        shards,
        decompressors: DecompressorPool::new(cores.clamp(2, 8), sizes),
        streams,
        stores_bytes: opener.buffer_bytes(sample_bytes_max.max(sizes.frame)),
        notes,
        unreadable,
        unreadable_count,
    })
}

/// Appends a list. The first list is moved, not copied.
fn append<T>(joined: &mut Vec<T>, list: Vec<T>) {
    match joined.is_empty() {
        true => *joined = list,
        false => joined.extend(list),
    }
}

/// Sets up the shards that can only be read in order, if there are any.
fn streams(
    shards: &[Shard],
    indices: &[ShardIndex],
    shuffle_buffer: ByteCount,
    notes: &mut Vec<String>,
) -> Option<Streams> {
    let windows = indices.iter().filter_map(|index| match index.compression {
        Compression::Stream { window_bytes } => Some(window_bytes),
        _ => None,
    });
    let window_bytes_max = windows.clone().max()?;
    let is_stream = |shard: &Shard| matches!(shard.layout, ShardLayout::Stream);
    let each = || shards.iter().zip(indices);
    let sizes = each().map(|(shard, index)| (index.encoded_sizes(), is_stream(shard)));
    let (blocks, block_bytes_max) = stream::partition(sizes, shuffle_buffer.0);
    let compressed = each().filter(|(shard, _)| is_stream(shard)).flat_map(|(_, index)| index.compressed_sizes());
    notes.push(format!(
        "{} compressed as a single frame: read in order and shuffled within {shuffle_buffer} at a time; compress in \
         frames (feedstock pack) or not at all for a full shuffle",
        counted(windows.count() as u64, "shard")
    ));
    Some(Streams::new(blocks, block_bytes_max, window_bytes_max, compressed.max().unwrap_or(0)))
}
