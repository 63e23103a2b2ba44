//! File format of a cached block. Bytes are returned only after their checksum was verified.
//!
//! ```text
//! bytes of the object | xxh3 of each 64 KiB | the key, 16 bytes | xxh3 of the tail so far | "feedblk1"
//! ```
//! All numbers are little-endian. The reader knows the size of the block, so a truncated file shows by its size.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use xxhash_rust::xxh3::xxh3_64;

pub(super) const PAGE_BYTES: usize = 64 << 10;
const MAGIC: &[u8; 8] = b"feedblk1";
/// Age of a file's time from which on a read renews it.
const TOUCH_AFTER: Duration = Duration::from_secs(60);

/// Outcome of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lookup {
    Hit,
    Miss,
    Damaged,
}

/// Size of the file of a block of `bytes`.
pub(super) fn file_bytes(bytes: u64) -> u64 {
    bytes + tail_bytes(bytes as usize) as u64
}

fn tail_bytes(bytes: usize) -> usize {
    bytes.div_ceil(PAGE_BYTES) * 8 + 16 + 8 + MAGIC.len()
}

fn tail(key: u128, bytes: &[u8]) -> Vec<u8> {
    let mut tail = Vec::with_capacity(tail_bytes(bytes.len()));
    for page in bytes.chunks(PAGE_BYTES) {
        tail.extend(xxh3_64(page).to_le_bytes());
    }
    tail.extend(key.to_le_bytes());
    tail.extend(xxh3_64(&tail).to_le_bytes());
    tail.extend(MAGIC);
    tail
}

/// Checksums of the pages. `None` if the tail is damaged or belongs to another block.
fn checksums(tail: &[u8], key: u128) -> Option<&[u8]> {
    let rest = tail.strip_suffix(MAGIC)?;
    let (rest, sum) = rest.split_last_chunk::<8>()?;
    let (sums, found) = rest.split_last_chunk::<16>()?;
    (u64::from_le_bytes(*sum) == xxh3_64(rest) && u128::from_le_bytes(*found) == key).then_some(sums)
}

/// Writes a block to a new file, which stays locked while the returned handle is open.
pub(super) fn write(path: &Path, key: u128, bytes: &[u8]) -> io::Result<File> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.lock()?;
    file.write_all(bytes)?;
    file.write_all(&tail(key, bytes))?;
    Ok(file)
}

/// Fills `out` from the position `within` of a block of `bytes`. I/O errors, such as too many open files, are misses.
pub(super) fn read(path: &Path, key: u128, bytes: u64, within: u64, out: &mut [u8]) -> Lookup {
    match try_read(path, key, bytes as usize, within as usize, out) {
        Ok(true) => Lookup::Hit,
        Ok(false) => Lookup::Damaged,
        Err(_) => Lookup::Miss,
    }
}

fn try_read(path: &Path, key: u128, bytes: usize, within: usize, out: &mut [u8]) -> io::Result<bool> {
    let file = File::open(path)?;
    let meta = file.metadata()?;
    if meta.len() != file_bytes(bytes as u64) {
        return Ok(false);
    }
    let mut tail = vec![0; tail_bytes(bytes)];
    file.read_exact_at(&mut tail, bytes as u64)?;
    let Some(sums) = checksums(&tail, key) else { return Ok(false) };
    let mut scratch = Vec::new();
    for (page, part) in pages(within, out.len()) {
        let start = page * PAGE_BYTES;
        let length = PAGE_BYTES.min(bytes - start);
        let out = &mut out[part.clone()];
        // A whole page is read in place. Of a partial one, the rest is needed for the checksum.
        let sum = if out.len() == length {
            file.read_exact_at(out, start as u64)?;
            xxh3_64(out)
        } else {
            scratch.resize(PAGE_BYTES, 0);
            let whole = &mut scratch[..length];
            file.read_exact_at(whole, start as u64)?;
            let from = within + part.start - start;
            out.copy_from_slice(&whole[from..from + out.len()]);
            xxh3_64(whole)
        };
        if sums[page * 8..page * 8 + 8] != sum.to_le_bytes() {
            return Ok(false);
        }
    }
    touch(&file, meta.modified());
    Ok(true)
}

/// Pages that a read touches, and the part of its buffer that each one fills.
fn pages(within: usize, bytes: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    let end = within + bytes;
    (within / PAGE_BYTES..end.div_ceil(PAGE_BYTES)).map(move |page| {
        let from = (page * PAGE_BYTES).max(within) - within;
        (page, from..((page + 1) * PAGE_BYTES).min(end) - within)
    })
}

/// Marks a block as used. If that fails, the block ages as if it were unused.
fn touch(file: &File, modified: io::Result<SystemTime>) {
    let now = SystemTime::now();
    if modified.is_ok_and(|modified| now.duration_since(modified).is_ok_and(|age| age > TOUCH_AFTER)) {
        let _ = file.set_modified(now);
    }
}
