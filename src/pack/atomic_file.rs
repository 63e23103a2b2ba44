//! Small files that appear complete or not at all: written under another name, made durable, renamed.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde::Serialize;

use super::error::PackError;

/// Writes a JSON file that no other process writes. A file left by a killed run is overwritten.
pub(super) fn write_json(path: &Path, json: &impl Serialize) -> Result<(), PackError> {
    write(path, &partial_path(path, ""), |out| Ok(serde_json::to_writer(out, json)?), |from, to| fs::rename(from, to))
}

/// Writes a JSON file unless it exists. Other processes may do the same at the same time.
pub(super) fn create_json(path: &Path, json: &impl Serialize) -> Result<(), PackError> {
    write(path, &unique_partial_path(path), |out| Ok(serde_json::to_writer(out, json)?), rename_if_absent)
}

/// Replaces a file. Other processes may do the same at the same time.
pub(super) fn replace(
    path: &Path,
    content: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), PackError> {
    write(path, &unique_partial_path(path), content, |from, to| fs::rename(from, to))
}

fn partial_path(path: &Path, suffix: &str) -> PathBuf {
    path.with_file_name(format!(".{}{suffix}.partial", path.file_name().unwrap_or_default().to_string_lossy()))
}

/// Temporary name for a file that several jobs may write at the same time, on machines whose process ids coincide.
fn unique_partial_path(path: &Path) -> PathBuf {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
    partial_path(path, &format!(".{}-{now}", std::process::id()))
}

fn write(
    path: &Path,
    partial: &Path,
    content: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    rename: impl FnOnce(&Path, &Path) -> io::Result<()>,
) -> Result<(), PackError> {
    let written = File::create(partial).and_then(|file| {
        let mut out = BufWriter::new(file);
        content(&mut out)?;
        out.write_all(b"\n")?;
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    });
    let renamed = written.and_then(|()| rename(partial, path)).map_err(PackError::io("write", path));
    if renamed.is_err() {
        // The cause of the error may prevent this, too.
        let _ = fs::remove_file(partial);
        return renamed;
    }
    sync_parent(path)
}

fn rename_if_absent(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => fs::remove_file(from),
        // Some file systems do not support the flag.
        Err(Errno::INVAL | Errno::NOSYS) => fs::rename(from, to),
        Err(errno) => Err(errno.into()),
    }
}

/// Makes a rename in the folder of `path` durable.
pub(super) fn sync_parent(path: &Path) -> Result<(), PackError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(PackError::io("make durable", folder))
}
