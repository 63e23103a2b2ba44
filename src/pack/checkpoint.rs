//! State of a packing beside its shards, from which it continues: a record of each finished shard, and the settings. A
//! record counts only while its shard exists with the recorded size.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::assignment::ShardAssignment;
use super::atomic_file::{create_json, write_json};
use super::budget::SKIPPED_BYTES_MAX;
use super::error::PackError;
use super::settings::{SKIPPED_NAMES_MAX, Settings, Treatment};
use crate::source::Source;

pub(super) const FORMAT: &str = "feedstock-pack";
pub(super) const VERSION: u64 = 1;
/// Maximum length of a name and of a cause.
const TEXT_BYTES_MAX: usize = 4096;

/// Sample that was not packed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Skipped {
    /// Name in the source.
    pub name: String,
    /// Stage that failed, and the cause.
    pub cause: String,
}

/// Samples that were not packed: the first ones by name, and the number of all.
#[derive(Debug, Default)]
pub(super) struct SkippedList {
    pub(super) count: u64,
    pub(super) first: Vec<Skipped>,
    text_bytes: usize,
}

/// Record of a finished shard.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ShardRecord {
    pub(super) bytes: u64,
    pub(super) samples: u64,
    pub(super) skipped: Vec<Skipped>,
    pub(super) skipped_count: u64,
    #[serde(with = "hex")]
    pub(super) xxh3: u128,
}

/// Settings that determine the bytes of a set.
#[derive(Serialize)]
pub(super) struct RecordedSettings {
    order: &'static str,
    /// `None` without a shuffle: the seed has no effect then.
    seed: Option<u64>,
    shard_size: u64,
    #[serde(flatten)]
    treatment: Treatment,
}

/// Content of the settings file.
#[derive(Serialize)]
struct Fingerprint {
    format: &'static str,
    settings: RecordedSettings,
    shards: u64,
    source: SourceFingerprint,
    version: u64,
}

#[derive(Serialize)]
struct SourceFingerprint {
    bytes: u64,
    #[serde(with = "hex")]
    index: u128,
    samples: u64,
}

/// 128-bit hashes as 32 hexadecimal digits.
pub(super) mod hex {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(in crate::pack) fn serialize<S: Serializer>(hash: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{hash:032x}"))
    }

    pub(in crate::pack) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
        let text = String::deserialize(deserializer)?;
        let hash = u128::from_str_radix(&text, 16).ok().filter(|_| text.len() == 32);
        hash.ok_or_else(|| D::Error::custom(format!("invalid hash '{text}': expected 32 hexadecimal digits")))
    }
}

/// File name of a shard.
pub(super) fn shard_name(shard: u64) -> String {
    format!("shard-{shard:05}.tar")
}

fn records_folder(dst: &Path) -> PathBuf {
    dst.join(".pack")
}

fn record_path(dst: &Path, shard: u64) -> PathBuf {
    records_folder(dst).join(format!("shard-{shard:05}.json"))
}

impl SkippedList {
    pub(super) fn push(&mut self, skipped: Skipped) {
        self.count += 1;
        self.list(skipped);
    }

    /// Appends to the names, as far as there is room.
    fn list(&mut self, Skipped { mut name, mut cause }: Skipped) {
        [&mut name, &mut cause].into_iter().for_each(|text| text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX)));
        let bytes = name.len() + cause.len() + size_of::<Skipped>();
        if self.first.len() < SKIPPED_NAMES_MAX && self.text_bytes + bytes <= SKIPPED_BYTES_MAX {
            self.text_bytes += bytes;
            self.first.push(Skipped { name, cause });
        }
    }
}

impl ShardRecord {
    pub(super) fn write(&self, dst: &Path, shard: u64) -> Result<(), PackError> {
        write_json(&record_path(dst, shard), self)
    }

    /// Record of a shard that exists with the recorded size. A damaged record counts as none.
    pub(super) fn read(dst: &Path, shard: u64) -> Result<Option<Self>, PackError> {
        let path = record_path(dst, shard);
        let mut text = Vec::new();
        match File::open(&path).and_then(|file| file.take(8 << 20).read_to_end(&mut text)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(PackError::io("read", path)(error)),
        }
        let Ok(record) = serde_json::from_slice::<ShardRecord>(&text) else { return Ok(None) };
        let file = dst.join(shard_name(shard));
        match fs::metadata(&file) {
            Ok(found) => Ok((found.is_file() && found.len() == record.bytes).then_some(record)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(PackError::io("read the metadata of", file)(error)),
        }
    }
}

/// Totals of the shards whose records exist.
#[derive(Default)]
pub(super) struct Totals {
    pub(super) samples: u64,
    pub(super) bytes: u64,
    pub(super) shards: u64,
    pub(super) skipped: SkippedList,
}

impl Totals {
    pub(super) fn read(dst: &Path, shards: impl Iterator<Item = u64>) -> Result<Self, PackError> {
        let mut totals = Totals::default();
        for shard in shards {
            let Some(record) = ShardRecord::read(dst, shard)? else { continue };
            totals.samples += record.samples;
            totals.bytes += record.bytes;
            totals.shards += 1;
            totals.skipped.count += record.skipped_count;
            record.skipped.into_iter().for_each(|skipped| totals.skipped.list(skipped));
        }
        Ok(totals)
    }
}

impl RecordedSettings {
    pub(super) fn new(settings: &Settings) -> Self {
        let &Settings { treatment, shard_size, in_order, seed, .. } = settings;
        RecordedSettings {
            order: if in_order { "source" } else { "shuffled" },
            seed: (!in_order).then_some(seed.0),
            shard_size: shard_size.0,
            treatment,
        }
    }
}

/// Records the settings, or compares them with those of an earlier run.
///
/// # Errors
/// [`PackError::OtherSettings`], [`PackError::Occupied`], and errors of reading and writing.
pub(super) fn check_settings(
    source: &dyn Source,
    settings: &Settings,
    assignment: &ShardAssignment,
    dst: &Path,
) -> Result<(), PackError> {
    let &ShardAssignment { stored_bytes: bytes, index_hash: index, .. } = assignment;
    let requested = Fingerprint {
        format: FORMAT,
        settings: RecordedSettings::new(settings),
        shards: assignment.shard_count(),
        source: SourceFingerprint { bytes, index, samples: source.len() },
        version: VERSION,
    };
    let folder = records_folder(dst);
    let path = folder.join("settings.json");
    if !path.try_exists().map_err(PackError::io("look for", &path))? {
        if let Some(path) = occupant(dst)? {
            return Err(PackError::Occupied { path });
        }
        fs::create_dir_all(&folder).map_err(PackError::io("create the folder", &folder))?;
        create_json(&path, &requested)?;
    }
    // Read in any case: another job may have recorded its settings at the same moment.
    let text = fs::read(&path).map_err(PackError::io("read", &path))?;
    let values = serde_json::from_slice(&text).and_then(|recorded| Ok((recorded, serde_json::to_value(&requested)?)));
    let (recorded, requested) = values.map_err(|error| PackError::Unreadable { path, source: error.into() })?;
    match difference(&recorded, &requested) {
        None => Ok(()),
        Some([setting, recorded, requested]) => {
            Err(PackError::OtherSettings { path: dst.to_owned(), setting, recorded, requested })
        }
    }
}

/// First setting that differs: its name, its recorded value, its value now.
fn difference(recorded: &Value, requested: &Value) -> Option<[String; 3]> {
    const NAMES: [(&str, &str); 14] = [
        ("/format", "format"),
        ("/version", "version of the format"),
        ("/settings/treatment", "treatment"),
        ("/settings/short_side", "short side"),
        ("/settings/quality", "quality"),
        ("/settings/size", "size"),
        ("/settings/level", "level"),
        ("/settings/shard_size", "shard size"),
        ("/settings/order", "order"),
        ("/settings/seed", "seed"),
        ("/source/samples", "number of samples"),
        ("/source/bytes", "number of bytes of the source"),
        ("/source/index", "index of the source"),
        ("/shards", "number of shards"),
    ];
    let text = |value: Option<&Value>| match value {
        None | Some(Value::Null) => "none".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    NAMES.iter().find_map(|(pointer, name)| {
        let (then, now) = (text(recorded.pointer(pointer)), text(requested.pointer(pointer)));
        (then != now).then(|| [(*name).to_owned(), then, now])
    })
}

/// File at `dst` that a new set would overwrite.
fn occupant(dst: &Path) -> Result<Option<PathBuf>, PackError> {
    let entries = match fs::read_dir(dst) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(PackError::io("list", dst)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(PackError::io("list", dst))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name == "manifest.json" || (name.starts_with("shard-") && name.ends_with(".tar")) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}
