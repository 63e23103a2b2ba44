//! Owns the writing of one shard: members with fixed headers, made durable, read back, put in place. It must never
//! leave anything under a shard's own name that is not whole.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};
use tar::{EntryType, Header};
use xxhash_rust::xxh3::Xxh3;

use super::PackError;
use super::budget::BUFFER_BYTES;
use super::record::{shard_name, sync_folder_of};

/// How often a partial file is looked for anew that somebody else has put in place meanwhile.
const TRIES: usize = 10;

/// A shard that is being written, under another name.
pub(super) struct ShardWriter {
    place: PathBuf,
    tar: tar::Builder<Counted>,
    /// After the archive, so that nothing is written once it is gone.
    partial: Partial,
}

/// Counts and hashes what is written.
struct Counted {
    out: BufWriter<File>,
    hash: Xxh3,
    bytes: u64,
}

/// A file that goes with this, unless it has been put in place.
struct Partial {
    path: PathBuf,
    placed: bool,
    /// Keeps others from it until it is gone.
    _lock: File,
}

impl ShardWriter {
    /// Begins a shard; what another run has left of it is written over.
    pub(super) fn create(dst: &Path, shard: u64) -> Result<Self, PackError> {
        let name = shard_name(shard);
        let path = dst.join(format!(".{name}.partial"));
        let file = open_alone(&path)?;
        let failed = || PackError::io("write", &path);
        let _lock = file.try_clone().map_err(failed())?;
        file.set_len(0).map_err(failed())?;
        let partial = Partial { path, placed: false, _lock };
        let out = BufWriter::with_capacity(BUFFER_BYTES, file);
        let tar = tar::Builder::new(Counted { out, hash: Xxh3::new(), bytes: 0 });
        Ok(ShardWriter { place: dst.join(name), tar, partial })
    }

    /// Adds a sample.
    pub(super) fn add(&mut self, key: &str, extension: &str, picture: &[u8], class: u32) -> Result<(), PackError> {
        let class = class.to_string();
        let members = [(extension, picture), ("cls", class.as_bytes())];
        members.into_iter().try_for_each(|(extension, content)| {
            let written = header(&format!("{key}.{extension}"), content.len() as u64)
                .and_then(|header| self.tar.append(&header, content));
            written.map_err(PackError::io("write", &self.partial.path))
        })
    }

    /// Bytes that have been written so far.
    pub(super) fn bytes(&self) -> u64 {
        self.tar.get_ref().bytes
    }

    /// Makes it durable, reads it back and puts it in place: its size and its hash; none where `stopped` says so first.
    pub(super) fn finish(self, stopped: &dyn Fn() -> bool) -> Result<Option<(u64, u128)>, PackError> {
        let ShardWriter { place, tar, mut partial } = self;
        let path = partial.path.clone();
        let failed = |doing| PackError::io(doing, &path);
        let Counted { out, hash, bytes } = tar.into_inner().map_err(failed("write"))?;
        let mut file = out.into_inner().map_err(|error| failed("write")(error.into_error()))?;
        file.sync_all().map_err(failed("make durable"))?;
        // So that it comes from storage, where the system heeds that.
        let _ = fadvise(&file, 0, None, Advice::DontNeed);
        file.rewind().map_err(failed("read back"))?;
        let Some(found) = hashed(&mut file, stopped).map_err(failed("read back"))? else { return Ok(None) };
        let hash = hash.digest128();
        if found != (bytes, hash) {
            return Err(PackError::NotAsWritten { path });
        }
        fs::rename(&path, &place).map_err(PackError::io("write", &place))?;
        partial.placed = true;
        sync_folder_of(&place)?;
        Ok(Some((bytes, hash)))
    }
}

/// Opens a partial file that nobody else writes, and keeps others from it for as long as it is open.
fn open_alone(path: &Path) -> Result<File, PackError> {
    let failed = |doing| PackError::io(doing, path);
    for _ in 0..TRIES {
        // Not emptied yet: it may be somebody else's.
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = open.map_err(failed("write"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(PackError::Busy { path: path.to_owned() }),
            // Where there are no locks, jobs have to keep to their parts.
            Err(TryLockError::Error(_)) => return Ok(file),
        }
        // Somebody may have put it in place between the two steps; then it is a shard now, and not to be touched.
        let own = file.metadata().map_err(failed("look at"))?;
        match fs::metadata(path) {
            Ok(there) if (there.dev(), there.ino()) == (own.dev(), own.ino()) => return Ok(file),
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

/// Size and hash of what is left of a file; none where `stopped` says so first.
pub(super) fn hashed(file: &mut impl Read, stopped: &dyn Fn() -> bool) -> io::Result<Option<(u64, u128)>> {
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

impl Write for Counted {
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

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.placed {
            // Room for others, where the disk is full. What cannot be removed is written over by the next run.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_there_once_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let names = || {
            let mut names: Vec<_> =
                fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        fs::write(folder.path().join(".shard-00003.tar.partial"), vec![7; 100_000]).unwrap();
        let mut shard = ShardWriter::create(folder.path(), 3).unwrap();
        shard.add("00000000-a", "png", b"picture", 12).unwrap();
        assert_eq!(names(), [".shard-00003.tar.partial"]);
        let (bytes, hash) = shard.finish(&|| false).unwrap().unwrap();
        assert_eq!(names(), ["shard-00003.tar"]);
        let written = fs::read(folder.path().join("shard-00003.tar")).unwrap();
        assert_eq!((written.len() as u64, xxhash_rust::xxh3::xxh3_128(&written)), (bytes, hash));
        assert_eq!(bytes, 6 * 512);

        let mut shard = ShardWriter::create(folder.path(), 4).unwrap();
        shard.add("00000000-a", "png", b"picture", 12).unwrap();
        drop(shard);
        let shard = ShardWriter::create(folder.path(), 5).unwrap();
        assert_eq!(shard.finish(&|| true).unwrap(), None);
        assert_eq!(names(), ["shard-00003.tar"]);
    }

    #[test]
    fn nobody_writes_what_somebody_writes() {
        let folder = tempfile::tempdir().unwrap();
        let first = ShardWriter::create(folder.path(), 0).unwrap();
        let second = ShardWriter::create(folder.path(), 0).err().unwrap();
        assert!(matches!(second, PackError::Busy { .. }), "{second}");
        assert!(first.finish(&|| false).unwrap().is_some());
        assert!(ShardWriter::create(folder.path(), 0).is_ok());
    }
}
