//! Owns the manifest of a packed set: written once all its shards are there, read by whoever verifies it. It must never
//! name a shard that is not there as its record says.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::record::{FORMAT, Record, SkippedList, VERSION, hex, of_hex, settings_json, shard_name, write_whole};
use super::{PackError, Settings};
use crate::source::Source;

/// Longest manifest that is read: [`SHARDS_MAX`](super::SHARDS_MAX) shards take a sixth of it.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;

/// Where the manifest of a set is.
pub(super) fn path(dst: &Path) -> PathBuf {
    dst.join("manifest.json")
}

/// What the records of some shards say together; none of those that are missing.
#[derive(Default)]
pub(super) struct Sum {
    pub(super) samples: u64,
    pub(super) bytes: u64,
    pub(super) shards: u64,
    pub(super) skipped: SkippedList,
}

impl Sum {
    /// Adds up the shards that are there, in this order.
    pub(super) fn of(dst: &Path, shards: impl Iterator<Item = u64>) -> Result<Self, PackError> {
        let mut sum = Sum::default();
        for shard in shards {
            let Some(record) = there(dst, shard)? else { continue };
            sum.samples += record.samples;
            sum.bytes += record.bytes;
            sum.shards += 1;
            sum.skipped.extend(record.skipped);
        }
        Ok(sum)
    }
}

/// The record of a shard that is there, as large as the record says.
pub(super) fn there(dst: &Path, shard: u64) -> Result<Option<Record>, PackError> {
    let Some(record) = Record::read(dst, shard)? else { return Ok(None) };
    let file = dst.join(shard_name(shard));
    match fs::metadata(&file) {
        Ok(found) if found.is_file() && found.len() == record.bytes => Ok(Some(record)),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(PackError::io("look at", file)(error)),
    }
}

/// Writes the manifest if all shards are there; none if not.
pub(super) fn write(
    source: &dyn Source,
    settings: &Settings,
    dst: &Path,
    shard_count: u64,
) -> Result<Option<PathBuf>, PackError> {
    let sum = Sum::of(dst, 0..shard_count)?;
    if sum.shards < shard_count {
        return Ok(None);
    }
    let path = path(dst);
    let title = Value::from(source.title());
    // Shard by shard, since there may be many. The order of the fields is for people, so it is no map.
    let mut failed = None;
    let written = write_whole(&path, |out| {
        write!(out, "{{\"format\":\"{FORMAT}\",\"version\":{VERSION},\"samples\":{},\"classes\":", sum.samples)?;
        serde_json::to_writer(&mut *out, source.classes())?;
        write!(out, ",\"source\":{title},\"settings\":{}", settings_json(settings))?;
        write!(out, ",\"skipped_count\":{},\"skipped\":{},\"shards\":[", sum.skipped.count, sum.skipped.json())?;
        for shard in 0..shard_count {
            match there(dst, shard) {
                Ok(Some(Record { samples, bytes, hash, .. })) => {
                    let comma = if shard > 0 { "," } else { "" };
                    let file = shard_name(shard);
                    let entry = json!({ "file": file, "samples": samples, "bytes": bytes, "xxh3": hex(hash) });
                    write!(out, "{comma}\n{entry}")?;
                }
                Ok(None) => return Err(io::Error::other(format!("{} went meanwhile", shard_name(shard)))),
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

/// What a manifest says, as far as it can be checked.
pub(super) struct Manifest {
    pub(super) samples: u64,
    pub(super) class_count: u64,
    pub(super) shards: Vec<Entry>,
}

/// A shard as the manifest has it.
pub(super) struct Entry {
    pub(super) file: String,
    pub(super) samples: u64,
    pub(super) bytes: u64,
    pub(super) hash: u128,
}

impl Manifest {
    pub(super) fn read(dst: &Path) -> Result<Self, PackError> {
        let path = path(dst);
        let mut text = Vec::new();
        let file = match File::open(&path) {
            Ok(file) => file,
            // A folder that is not there, or no folder, is another mistake than a folder without one.
            Err(error) if error.kind() == io::ErrorKind::NotFound && dst.is_dir() => {
                return Err(PackError::NotPacked { path });
            }
            Err(error) => return Err(PackError::io("open", path)(error)),
        };
        file.take(MANIFEST_BYTES_MAX).read_to_end(&mut text).map_err(PackError::io("read", &path))?;
        let unreadable = |cause: String| PackError::Unreadable { path: path.clone(), cause };
        let value: Value = serde_json::from_slice(&text).map_err(|error| unreadable(error.to_string()))?;
        if value["format"] != FORMAT || value["version"] != VERSION {
            return Err(unreadable(format!("it is not of the format {FORMAT}, version {VERSION}")));
        }
        Self::of_json(&value).ok_or_else(|| unreadable("something is missing in it".to_owned()))
    }

    fn of_json(value: &Value) -> Option<Self> {
        let shards = value["shards"].as_array()?.iter().map(|entry| {
            Some(Entry {
                // A name, and no way out of the folder.
                file: entry["file"].as_str().filter(|name| !name.contains('/')).map(str::to_owned)?,
                samples: entry["samples"].as_u64()?,
                bytes: entry["bytes"].as_u64()?,
                hash: of_hex(entry["xxh3"].as_str()?)?,
            })
        });
        Some(Manifest {
            samples: value["samples"].as_u64()?,
            class_count: value["classes"].as_array()?.len() as u64,
            shards: shards.collect::<Option<_>>()?,
        })
    }
}
