//! Manifest of a packed set: written once all its shards exist, read by the verification.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::atomic_file;
use super::checkpoint::{FORMAT, RecordedSettings, ShardRecord, Totals, VERSION, hex, shard_name};
use super::error::{InvalidFile, PackError};
use super::settings::Settings;
use crate::source::Source;

/// Maximum size of a manifest that is read: [`SHARDS_MAX`](super::SHARDS_MAX) shards take a sixth of it.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;

fn path(dst: &Path) -> PathBuf {
    dst.join("manifest.json")
}

/// Writes the manifest if all shards exist. Returns its path, or `None`.
pub(super) fn write(
    source: &dyn Source,
    settings: &Settings,
    dst: &Path,
    shard_count: u64,
) -> Result<Option<PathBuf>, PackError> {
    let totals = Totals::read(dst, 0..shard_count)?;
    if totals.shards < shard_count {
        return Ok(None);
    }
    let path = path(dst);
    // Shard by shard, since there may be many. The order of the fields is for readers, so this is not a map.
    let mut failed = None;
    let written = atomic_file::replace(&path, |out| {
        write!(out, "{{\"format\":\"{FORMAT}\",\"version\":{VERSION},\"samples\":{},\"classes\":", totals.samples)?;
        serde_json::to_writer(&mut *out, source.classes())?;
        out.write_all(b",\"source\":")?;
        serde_json::to_writer(&mut *out, &source.title())?;
        out.write_all(b",\"settings\":")?;
        serde_json::to_writer(&mut *out, &RecordedSettings::new(settings))?;
        write!(out, ",\"skipped_count\":{},\"skipped\":", totals.skipped.count)?;
        serde_json::to_writer(&mut *out, &totals.skipped.first)?;
        out.write_all(b",\"shards\":[")?;
        for shard in 0..shard_count {
            match ShardRecord::read(dst, shard) {
                Ok(Some(ShardRecord { samples, bytes, xxh3, .. })) => {
                    out.write_all(if shard > 0 { ",\n" } else { "\n" }.as_bytes())?;
                    serde_json::to_writer(&mut *out, &ShardEntry { bytes, file: shard_name(shard), samples, xxh3 })?;
                }
                Ok(None) => return Err(io::Error::other(format!("{} was deleted meanwhile", shard_name(shard)))),
                Err(error) => {
                    failed = Some(error);
                    return Err(io::Error::other("a record cannot be read"));
                }
            }
        }
        out.write_all(b"]}")
    });
    match failed {
        Some(error) => Err(error),
        None => written.map(|()| Some(path)),
    }
}

/// Fields of a manifest that are verified.
#[derive(Deserialize)]
pub(super) struct Manifest {
    pub(super) samples: u64,
    pub(super) classes: Vec<IgnoredAny>,
    pub(super) shards: Vec<ShardEntry>,
}

/// Shard in a manifest.
#[derive(Serialize, Deserialize)]
pub(super) struct ShardEntry {
    pub(super) bytes: u64,
    pub(super) file: String,
    pub(super) samples: u64,
    #[serde(with = "hex")]
    pub(super) xxh3: u128,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct FormatVersion {
    format: String,
    version: u64,
}

impl Manifest {
    pub(super) fn read(dst: &Path) -> Result<Self, PackError> {
        let path = path(dst);
        let mut text = Vec::new();
        let file = match File::open(&path) {
            Ok(file) => file,
            // A missing folder is another error than a folder without a manifest.
            Err(error) if error.kind() == io::ErrorKind::NotFound && dst.is_dir() => {
                return Err(PackError::NotPacked { path });
            }
            Err(error) => return Err(PackError::io("open", path)(error)),
        };
        file.take(MANIFEST_BYTES_MAX).read_to_end(&mut text).map_err(PackError::io("read", &path))?;
        Self::parse(&text).map_err(|source| PackError::Unreadable { path, source })
    }

    fn parse(text: &[u8]) -> Result<Self, InvalidFile> {
        let FormatVersion { format, version } = serde_json::from_slice(text)?;
        if format != FORMAT || version != VERSION {
            return Err(InvalidFile::Format { format: FORMAT, version: VERSION });
        }
        let manifest: Manifest = serde_json::from_slice(text)?;
        match manifest.shards.iter().find(|shard| shard.file.contains('/')) {
            Some(shard) => Err(InvalidFile::FileName(shard.file.clone())),
            None => Ok(manifest),
        }
    }
}
