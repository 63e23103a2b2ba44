//! Index files: where they are kept, and how they are written.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::{env, process};

use xxhash_rust::xxh3::xxh3_128;

use super::path::is_url;
use crate::sync::{AtomicU64, Ordering};

/// Extension of an index file, which follows the name of the data file.
pub(super) const INDEX_EXTENSION: &str = "feedstock-index";

/// Paths that the index of a data file may have, in order of preference: in `folder` if it is given; otherwise beside
/// the data (unless that is a URL), then in `feedstock/<cache>` in the user's cache folder.
pub(super) fn candidates(data: &Path, folder: Option<&Path>, cache: &str) -> Vec<PathBuf> {
    // In a folder for many data sets, files of the same name must differ.
    let canonical = fs::canonicalize(data).unwrap_or_else(|_| data.to_owned());
    let hashed = format!("{:032x}.{INDEX_EXTENSION}", xxh3_128(canonical.as_os_str().as_bytes()));
    if let Some(folder) = folder {
        return vec![folder.join(hashed)];
    }
    let mut beside = data.as_os_str().to_owned();
    beside.push(".");
    beside.push(INDEX_EXTENSION);
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    let cached = caches.map(|folder| folder.join("feedstock").join(cache).join(hashed));
    (!is_url(data)).then(|| PathBuf::from(beside)).into_iter().chain(cached).collect()
}

/// Writes a file under a temporary name and renames it, so that readers see the old file or the new one.
pub(super) fn write_atomically(
    path: &Path,
    content: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder)?;
    }
    // All ranks of a run may write the same index.
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}-{number}", process::id()));
    let temporary = PathBuf::from(temporary);
    let written = File::create(&temporary).and_then(|file| {
        let mut file = BufWriter::new(file);
        content(&mut file)?;
        file.flush()?;
        fs::rename(&temporary, path)
    });
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}
