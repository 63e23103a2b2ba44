//! Writer of one shard: members with fixed headers, written under a partial name, made durable, read back, renamed.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};
use tar::{EntryType, Header};
use xxhash_rust::xxh3::Xxh3;

use super::atomic_file::sync_parent;
use super::budget::BUFFER_BYTES;
use super::checkpoint::shard_name;
use super::error::PackError;

/// Attempts to open a partial file that another process renames meanwhile.
const TRIES: usize = 10;

/// Shard that is being written under a partial name.
pub(super) struct ShardWriter {
    path: PathBuf,
    tar: tar::Builder<HashingWriter>,
    /// Dropped after the archive, so that nothing is written once the file is deleted.
    partial: PartialFile,
}

/// Writer that counts and hashes its bytes.
struct HashingWriter {
    out: BufWriter<File>,
    hash: Xxh3,
    bytes: u64,
}

/// File that is deleted on drop, unless it was renamed.
struct PartialFile {
    path: PathBuf,
    renamed: bool,
    /// Excludes other processes while the file exists.
    _lock: File,
}

impl ShardWriter {
    /// Begins a shard. A file left by an earlier run is overwritten.
    pub(super) fn create(dst: &Path, shard: u64) -> Result<Self, PackError> {
        let name = shard_name(shard);
        let path = dst.join(format!(".{name}.partial"));
        let file = open_exclusive(&path)?;
        let failed = || PackError::io("write", &path);
        let _lock = file.try_clone().map_err(failed())?;
        file.set_len(0).map_err(failed())?;
        let partial = PartialFile { path, renamed: false, _lock };
        let out = BufWriter::with_capacity(BUFFER_BYTES, file);
        let tar = tar::Builder::new(HashingWriter { out, hash: Xxh3::new(), bytes: 0 });
        Ok(ShardWriter { path: dst.join(name), tar, partial })
    }

    /// Appends a sample.
    pub(super) fn add(&mut self, key: &str, extension: &str, image: &[u8], class: u32) -> Result<(), PackError> {
        let class = class.to_string();
        let members = [(extension, image), ("cls", class.as_bytes())];
        members.into_iter().try_for_each(|(extension, content)| {
            let written = header(&format!("{key}.{extension}"), content.len() as u64)
                .and_then(|header| self.tar.append(&header, content));
            written.map_err(PackError::io("write", &self.partial.path))
        })
    }

    /// Bytes written so far.
    pub(super) fn bytes(&self) -> u64 {
        self.tar.get_ref().bytes
    }

    /// Makes the shard durable, reads it back and renames it. Returns its size and its hash, or `None` if `stopped`
    /// returns true before.
    pub(super) fn finish(self, stopped: &dyn Fn() -> bool) -> Result<Option<(u64, u128)>, PackError> {
        let ShardWriter { path: final_path, tar, mut partial } = self;
        let path = partial.path.clone();
        let failed = |operation| PackError::io(operation, &path);
        let HashingWriter { out, hash, bytes } = tar.into_inner().map_err(failed("write"))?;
        let mut file = out.into_inner().map_err(|error| failed("write")(error.into_error()))?;
        file.sync_all().map_err(failed("make durable"))?;
        // Makes the read come from storage, where the system follows the advice.
        let _ = fadvise(&file, 0, None, Advice::DontNeed);
        file.rewind().map_err(failed("read back"))?;
        let Some(found) = hash_file(&mut file, stopped).map_err(failed("read back"))? else { return Ok(None) };
        let hash = hash.digest128();
        if found != (bytes, hash) {
            return Err(PackError::NotAsWritten { path });
        }
        fs::rename(&path, &final_path).map_err(PackError::io("write", &final_path))?;
        partial.renamed = true;
        sync_parent(&final_path)?;
        Ok(Some((bytes, hash)))
    }
}

/// Opens a partial file, and locks other processes out while it is open.
fn open_exclusive(path: &Path) -> Result<File, PackError> {
    let failed = |operation| PackError::io(operation, path);
    for _ in 0..TRIES {
        // Not truncated yet: another process may be writing it.
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = open.map_err(failed("write"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(PackError::Busy { path: path.to_owned() }),
            // On file systems without locks, jobs have to keep to their partitions.
            Err(TryLockError::Error(_)) => return Ok(file),
        }
        // If another process has renamed it between the two steps, it is a finished shard, and must not be touched.
        let own = file.metadata().map_err(failed("read the metadata of"))?;
        match fs::metadata(path) {
            Ok(found) if (found.dev(), found.ino()) == (own.dev(), own.ino()) => return Ok(file),
            _ => {}
        }
    }
    Err(PackError::Busy { path: path.to_owned() })
}

fn header(name: &str, bytes: u64) -> io::Result<Header> {
    let mut header = Header::new_ustar();
    header.set_path(name)?;
    header.set_entry_type(EntryType::Regular);
    header.set_size(bytes);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    Ok(header)
}

/// Size and hash of the rest of a file. `None` if `stopped` returns true before the end.
pub(super) fn hash_file(file: &mut impl Read, stopped: &dyn Fn() -> bool) -> io::Result<Option<(u64, u128)>> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let (mut hash, mut bytes) = (Xxh3::new(), 0);
    loop {
        if stopped() {
            return Ok(None);
        }
        match file.read(&mut buffer) {
            Ok(0) => return Ok(Some((bytes, hash.digest128()))),
            Ok(read) => {
                hash.update(&buffer[..read]);
                bytes += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl Write for HashingWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if !self.renamed {
            // Frees space if the disk is full. A file that cannot be deleted is overwritten by the next run.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_appear_complete() {
        let folder = tempfile::tempdir().unwrap();
        let names = || {
            let mut names: Vec<_> =
                fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        fs::write(folder.path().join(".shard-00003.tar.partial"), vec![7; 100_000]).unwrap();
        let mut shard = ShardWriter::create(folder.path(), 3).unwrap();
        shard.add("00000000-a", "png", b"content", 12).unwrap();
        assert_eq!(names(), [".shard-00003.tar.partial"]);
        let (bytes, hash) = shard.finish(&|| false).unwrap().unwrap();
        assert_eq!(names(), ["shard-00003.tar"]);
        let written = fs::read(folder.path().join("shard-00003.tar")).unwrap();
        assert_eq!((written.len() as u64, xxhash_rust::xxh3::xxh3_128(&written)), (bytes, hash));
        assert_eq!(bytes, 6 * 512);

        let mut shard = ShardWriter::create(folder.path(), 4).unwrap();
        shard.add("00000000-a", "png", b"content", 12).unwrap();
        drop(shard);
        let shard = ShardWriter::create(folder.path(), 5).unwrap();
        assert_eq!(shard.finish(&|| true).unwrap(), None);
        assert_eq!(names(), ["shard-00003.tar"]);
    }

    #[test]
    fn a_shard_has_one_writer() {
        let folder = tempfile::tempdir().unwrap();
        let first = ShardWriter::create(folder.path(), 0).unwrap();
        let second = ShardWriter::create(folder.path(), 0).err().unwrap();
        assert!(matches!(second, PackError::Busy { .. }), "{second}");
        assert!(first.finish(&|| false).unwrap().is_some());
        assert!(ShardWriter::create(folder.path(), 0).is_ok());
    }
}
