//! Owns the way from a path or a pattern to shards that can be read: which files, their indices (loaded or made by a scan),
//! and the classes of them all. It must never start more threads than there are shards.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread::{self, available_parallelism};

use serde_json::Value;

use super::super::error::counted;
use super::super::file::io_error;
use super::super::folder::readable;
use super::super::index::Index;
use super::super::medium::{Medium, Stores};
use super::super::{OpenOptions, SourceError, Unreadable};
use super::bench::{Benches, Needs};
use super::index::{Compression, ShardIndex, load, save};
use super::stream::{self, Streams};
use super::walk::Stream;
use super::zst::{self, Frame, WINDOW_BYTES_MAX};
use super::{Shard, Storage, TarShards, scan};
use crate::sync::{Arc, AtomicUsize, Mutex, Ordering, lock};
use crate::units::ByteCount;

/// The largest frame whose content is held to read a part of it, bytes of content.
const FRAME_BYTES_MAX: u64 = 16 << 20;
/// Scanning threads where nobody asks for a number: a scan waits for storage most of the time.
const SCAN_THREADS_MIN: usize = 4;
const UNREADABLE_MAX: usize = 1000;
/// The largest number that is a label.
const LABEL_MAX: u32 = 1 << 20;
/// The largest list of classes beside shards that is read, bytes.
const LIST_BYTES_MAX: u64 = 256 << 20;

pub(super) fn open(
    title: &str,
    paths: &[PathBuf],
    options: &OpenOptions,
    stores: &Stores,
) -> Result<TarShards, SourceError> {
    if paths.is_empty() {
        return Err(SourceError::unusable(Path::new(title), None, "there are no shards (*.tar, *.tar.zst) there"));
    }
    let (mut shards, mut indices, mut notes) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (shard, index, note) in index_all(paths, options.index_folder.as_deref(), stores)? {
        shards.push(shard);
        indices.push(index);
        notes.extend(note);
    }
    assemble(title.to_owned(), shards, indices, notes.into_iter().collect(), options.shuffle_buffer)
}

type Indexed = (Shard, ShardIndex, Option<String>);

/// Maps every shard, and loads or makes its index. The first error, by the order of the shards, wins.
fn index_all(paths: &[PathBuf], folder: Option<&Path>, stores: &Stores) -> Result<Vec<Indexed>, SourceError> {
    let cores = available_parallelism().map_or(1, NonZeroUsize::get);
    let next = AtomicUsize::new(0);
    let done = Mutex::new(BTreeMap::new());
    let work = || {
        while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
            let indexed = index_one(path, folder, stores);
            if indexed.is_err() {
                // Nobody needs the rest; those before it are under way.
                next.store(paths.len(), Ordering::Relaxed);
            }
            lock(&done).insert(path, indexed);
        }
    };
    thread::scope(|scope| {
        for number in 1..cores.max(SCAN_THREADS_MIN).min(paths.len()) {
            // Where the system grants no more threads, those that there are do the work.
            let _ = thread::Builder::new().name(format!("feed-shard-{number}")).spawn_scoped(scope, work);
        }
        work();
    });
    let mut done = done.into_inner().unwrap_or_else(crate::sync::PoisonError::into_inner);
    // One that is named twice is there once.
    paths.iter().filter_map(|path| done.remove(path)).collect()
}

fn index_one(path: &Path, folder: Option<&Path>, stores: &Stores) -> Result<Indexed, SourceError> {
    let medium = Medium::open(path, stores)?;
    let identity = medium.identity();
    // As the medium calls itself: a URL may carry a signature, which is another one each time and nobody's business.
    let path = medium.path();
    let (index, note) = match load(path, identity, folder) {
        Some(index) => (index, None),
        None => {
            let made = scan_one(&medium)?;
            let note = save(path, identity, &made, folder).err().map(|error| {
                let folder = path.parent().unwrap_or(Path::new(".")).display();
                format!(
                    "the index of shards in {folder} cannot be kept ({error}), so they are scanned each time: make the \
                     folder writable once, or set XDG_CACHE_HOME"
                )
            });
            (made, note)
        }
    };
    let storage = match &index.compression {
        Compression::None => Storage::Plain,
        Compression::Frames(frames) => Storage::Frames(frames.clone().into()),
        Compression::Stream { .. } => Storage::Stream,
    };
    Ok((Shard { medium: Arc::new(medium), storage }, index, note))
}

/// Reads a shard from front to back.
fn scan_one(medium: &Medium) -> Result<ShardIndex, SourceError> {
    let (path, bytes) = (medium.path(), medium.bytes());
    let failed = |offset: Option<u64>| move |cause: String| SourceError::unusable(path, offset, cause);
    let mut magic = [0; 6];
    let read = magic.len().min(bytes as usize);
    medium.read_at(0, &mut magic[..read])?;
    let compression = match magic[..read] {
        [0x28, 0xB5, 0x2F, 0xFD, ..] | [0x50..=0x5F, 0x2A, 0x4D, 0x18, ..] => compression(medium)?,
        [0x1F, 0x8B, ..] => return Err(failed(None)(foreign("gzip"))),
        [b'B', b'Z', b'h', ..] => return Err(failed(None)(foreign("bzip2"))),
        [0xFD, b'7', b'z', b'X', b'Z', 0] => return Err(failed(None)(foreign("xz"))),
        _ => Compression::None,
    };
    let reader = medium.reader()?;
    let mut found = if compression == Compression::None {
        scan::scan(reader, Some(bytes)).map_err(failed(None))?
    } else {
        let mut decoder = zstd::stream::read::Decoder::new(reader).map_err(|e| io_error("read", path, e))?;
        let limit = decoder.window_log_max(WINDOW_BYTES_MAX.ilog2());
        limit.map_err(|source| io_error("read", path, source))?;
        scan::scan(Stream(decoder), None).map_err(failed(None))?
    };
    found.compression = compression;
    medium.check()?;
    if found.len() == 0 && found.problem_count > 0 {
        let (offset, _, cause) = &found.problems[0];
        return Err(failed(Some(*offset))(format!("nothing in it can be used: {cause}")));
    }
    Ok(found)
}

fn foreign(format: &str) -> String {
    format!(
        "it is compressed with {format}, which cannot be read from the middle: decompress it (pictures hardly gain from \
         it), or compress it anew with zstd"
    )
}

/// How a shard that begins as zstd does is compressed.
fn compression(medium: &Medium) -> Result<Compression, SourceError> {
    let bytes = medium.bytes();
    let failed = |(offset, cause): (u64, String)| SourceError::unusable(medium.path(), Some(offset), cause);
    let mut read_at = |at: u64, out: &mut [u8]| medium.read_at(at, out).map_err(|error| error.to_string());
    let frames = match zst::seek_table(bytes, &mut read_at) {
        // Without a table that fits, the frames tell where they end; where each look is a request, that is too much asked.
        None if medium.is_near() => zst::frames(bytes, &mut read_at).map_err(failed)?,
        found => found,
    };
    if let Some(frames) = frames.filter(|frames| frames.iter().all(|frame| frame.content_bytes <= FRAME_BYTES_MAX)) {
        return Ok(Compression::Frames(frames));
    }
    let mut head = [0; zst::HEADER_BYTES_MAX];
    let len = head.len().min(bytes as usize);
    read_at(0, &mut head[..len]).map_err(|cause| failed((0, cause)))?;
    let window_bytes = zst::FrameHeader::read(&head[..len]).map_err(|cause| failed((0, cause)))?.window_bytes;
    if window_bytes > WINDOW_BYTES_MAX {
        let cause = format!("it wants a window of {window_bytes} bytes; {WINDOW_BYTES_MAX} are the most");
        return Err(failed((0, cause)));
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
) -> Result<TarShards, SourceError> {
    let refuse = |cause: String| SourceError::unusable(Path::new(&title), None, cause);
    let streams = streams(&shards, &indices, shuffle_buffer, &mut notes);
    let classes = Classes::of(&shards, &indices)?;
    let count: usize = indices.iter().map(ShardIndex::len).sum();
    let any_content = indices.iter().any(|index| !index.contents.is_empty());
    let (mut offsets, mut labels, mut dimensions, mut contents) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut unreadable, mut unreadable_count, mut beside_count) = (Vec::new(), 0, 0);
    let (mut tables, mut needs) = (Vec::with_capacity(shards.len()), Needs::default());
    for (number, (shard, index)) in shards.iter().zip(indices).enumerate() {
        let path = shard.medium.path();
        let of_shard = classes.labels(&index.classes, path)?;
        // In place, so that a single shard's are not copied.
        let mut index = index;
        index.labels.iter_mut().for_each(|label| *label = of_shard[*label as usize]);
        let samples = index.len();
        append(&mut labels, index.labels);
        let compressed = (0..index.contents.len()).filter(|&place| index.contents[place] > 0);
        needs.member = compressed.map(|place| index.table.size_bytes(place)).max().unwrap_or(0).max(needs.member);
        if any_content {
            let plain = samples - index.contents.len();
            append(&mut contents, index.contents);
            contents.resize(contents.len() + plain, 0);
        }
        append(&mut offsets, index.offsets);
        append(&mut dimensions, index.dimensions);
        for frame in shard.frames() {
            let Frame { content_bytes, bytes, .. } = *frame;
            (needs.frame, needs.content) = (needs.frame.max(bytes), needs.content.max(content_bytes));
        }
        unreadable_count += index.problem_count;
        beside_count += index.beside_count;
        let room = UNREADABLE_MAX - unreadable.len();
        unreadable.extend(index.problems.into_iter().take(room).map(|(offset, member, cause)| Unreadable {
            path: path.to_owned(),
            cause: match member.is_empty() {
                true => format!("at byte {offset}: {cause}"),
                false => format!("{} (at byte {offset}): {cause}", readable(&member)),
            },
        }));
        tables.push((number as u32, path.as_os_str().as_bytes().to_vec(), index.table));
    }
    if count == 0 {
        return Err(refuse(format!(
            "there are no samples in it: a sample is a picture and beside it its class (000017.jpg, 000017.cls), or a \
             picture in a folder of its class{}",
            unreadable.first().map_or(String::new(), |first| format!("; the first that cannot be used: {first}"))
        )));
    }
    if beside_count > 0 {
        notes.push(format!("not used: {} with the key of another one before it", counted(beside_count, "picture")));
    }
    let sample_bytes_max = tables.iter().map(|(_, _, table)| table.largest_bytes()).max().unwrap_or(0);
    let stores_bytes = stores_bytes(&shards, sample_bytes_max.max(needs.frame));
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
        benches: Benches::new(cores.clamp(2, 8), needs),
        streams,
        stores_bytes,
        notes,
        unreadable,
        unreadable_count,
    })
}

/// Adds a list to what has been joined so far; the first is what there is.
fn append<T>(joined: &mut Vec<T>, list: Vec<T>) {
    match joined.is_empty() {
        true => *joined = list,
        false => joined.extend(list),
    }
}

/// How shards are read that can only be read front to back, where there are any.
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
    let in_stream = |shard: &Shard| matches!(shard.storage, Storage::Stream);
    let sizes = |index: &ShardIndex, place: usize| {
        let content = index.contents.get(place).copied().unwrap_or(0);
        if content > 0 { u64::from(content) } else { index.table.size_bytes(place) }
    };
    let each = shards.iter().zip(indices);
    let cut =
        each.clone().map(|(shard, index)| ((0..index.len()).map(move |place| sizes(index, place)), in_stream(shard)));
    let (blocks, block_bytes_max) = stream::cut(cut, shuffle_buffer.0);
    let compressed = each.filter(|(shard, _)| in_stream(shard)).flat_map(|(_, index)| {
        let places = (0..index.contents.len()).filter(|&place| index.contents[place] > 0);
        places.map(|place| index.table.size_bytes(place))
    });
    notes.push(format!(
        "{} compressed in one piece, read front to back and shuffled within {shuffle_buffer} at a time: for a shuffle over \
         everything compress in frames (feedstock pack), or not at all",
        counted(windows.count() as u64, "shard")
    ));
    Some(Streams::new(blocks, block_bytes_max, window_bytes_max, compressed.max().unwrap_or(0)))
}

/// The classes of all shards, and how labels are found in them.
struct Classes {
    names: Vec<String>,
    /// Whether labels are numbers already.
    numbers: bool,
}

impl Classes {
    fn of(shards: &[Shard], indices: &[ShardIndex]) -> Result<Self, SourceError> {
        let all: BTreeSet<&str> = indices.iter().flat_map(|index| &index.classes).map(String::as_str).collect();
        let numbers = all.iter().all(|class| number(class).is_some());
        let names = match (list_beside(shards)?, numbers) {
            (Some(names), _) => names,
            (None, false) => all.into_iter().map(str::to_owned).collect(),
            (None, true) => {
                let most = all.iter().filter_map(|class| number(class)).max();
                (0..most.map_or(0, |most| most + 1)).map(|number| number.to_string()).collect()
            }
        };
        Ok(Classes { names, numbers })
    }

    /// The label of each class of a shard.
    fn labels(&self, classes: &[String], shard: &Path) -> Result<Vec<u32>, SourceError> {
        let places: BTreeMap<&str, u32> =
            if self.numbers { BTreeMap::new() } else { self.names.iter().map(String::as_str).zip(0..).collect() };
        let label = |class: &String| {
            let label = if self.numbers { number(class) } else { places.get(class.as_str()).copied() };
            label.filter(|&label| (label as usize) < self.names.len()).ok_or_else(|| {
                let listed = self.names.len();
                let cause = format!(
                    "a sample is of class '{class}', and that is none of the {listed} listed beside the shards"
                );
                SourceError::unusable(shard, None, cause)
            })
        };
        classes.iter().map(label).collect()
    }
}

fn number(class: &str) -> Option<u32> {
    let digits = class.bytes().all(|byte| byte.is_ascii_digit());
    class.parse().ok().filter(|&number| digits && number < LABEL_MAX)
}

/// The names of classes as a file beside the shards lists them.
fn list_beside(shards: &[Shard]) -> Result<Option<Vec<String>>, SourceError> {
    let Some(first) = shards.first() else { return Ok(None) };
    if let Some(list) = first.medium.beside("manifest.json", LIST_BYTES_MAX)? {
        // Other programs have manifests too; only one that lists classes is meant.
        let value: Value = serde_json::from_slice(&list).unwrap_or_default();
        let classes = value.get("classes").and_then(Value::as_array);
        let classes = classes.and_then(|all| all.iter().map(|one| one.as_str().map(str::to_owned)).collect());
        if let Some(classes) = classes {
            return Ok(Some(classes));
        }
    }
    let list = first.medium.beside("classes.txt", LIST_BYTES_MAX)?;
    Ok(list.map(|list| String::from_utf8_lossy(&list).lines().map(str::to_owned).collect()))
}

/// What requests to the stores of these shards hold, at most, where no sample is larger than so many bytes.
#[cfg(feature = "store")]
fn stores_bytes(shards: &[Shard], sample_bytes_max: u64) -> u64 {
    /// Threads that serve connections and look up names, and what a client keeps of its own.
    const STORE_BYTES: u64 = 4 << 20;
    let mut seen: Vec<&super::super::store::Store> = Vec::new();
    for store in shards.iter().filter_map(|shard| shard.medium.store()) {
        if !seen.iter().any(|one| one.is(store)) {
            seen.push(store);
        }
    }
    seen.iter().map(|store| store.held_bytes(sample_bytes_max) + STORE_BYTES).sum()
}

#[cfg(not(feature = "store"))]
fn stores_bytes(_: &[Shard], _: u64) -> u64 {
    0
}
