//! Owns what a packing remembers beside its shards: a record for each shard, and the settings; and how a small file is
//! put in place whole. It must never trust a record whose shard is not there as it says.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde_json::{Value, json};

use super::budget::SKIPPED_BYTES_MAX;
use super::cut::Cut;
use super::{PackError, SKIPPED_NAMES_MAX, Settings, Treatment};
use crate::source::Source;

pub(super) const FORMAT: &str = "feedstock-pack";
pub(super) const VERSION: u64 = 1;
/// Longest text of one cause, and of one name.
const TEXT_BYTES_MAX: usize = 4096;

/// A sample that was not packed, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// What the source calls it.
    pub name: String,
    /// Where it failed, and why.
    pub cause: String,
}

/// The samples that were not packed: the first ones by name, and how many there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SkippedList {
    pub(super) count: u64,
    pub(super) first: Vec<Skipped>,
    text_bytes: usize,
}

/// What is known of a shard that is whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) samples: u64,
    pub(super) bytes: u64,
    pub(super) hash: u128,
    pub(super) skipped: SkippedList,
}

/// The name of a shard's file.
pub(super) fn shard_name(shard: u64) -> String {
    format!("shard-{shard:05}.tar")
}

/// The folder of records below a set's.
pub(super) fn records_folder(dst: &Path) -> PathBuf {
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

    /// Takes another list over, as far as there is room for names.
    pub(super) fn extend(&mut self, other: SkippedList) {
        self.count += other.count;
        other.first.into_iter().for_each(|skipped| self.list(skipped));
    }

    fn list(&mut self, skipped: Skipped) {
        let Skipped { mut name, mut cause } = skipped;
        [&mut name, &mut cause].into_iter().for_each(|text| text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX)));
        let bytes = name.len() + cause.len() + size_of::<Skipped>();
        if self.first.len() < SKIPPED_NAMES_MAX && self.text_bytes + bytes <= SKIPPED_BYTES_MAX {
            self.text_bytes += bytes;
            self.first.push(Skipped { name, cause });
        }
    }

    pub(super) fn json(&self) -> Value {
        self.first.iter().map(|Skipped { name, cause }| json!({ "name": name, "cause": cause })).collect()
    }

    fn of_json(list: &Value, count: u64) -> Option<Self> {
        let mut skipped = SkippedList::default();
        for one in list.as_array()? {
            let text = |name: &str| one[name].as_str().map(str::to_owned);
            skipped.list(Skipped { name: text("name")?, cause: text("cause")? });
        }
        skipped.count = count;
        Some(skipped)
    }
}

impl Record {
    pub(super) fn write(&self, dst: &Path, shard: u64) -> Result<(), PackError> {
        let Record { samples, bytes, hash, skipped } = self;
        let record = json!({
            "samples": samples,
            "bytes": bytes,
            "xxh3": hex(*hash),
            "skipped_count": skipped.count,
            "skipped": skipped.json(),
        });
        // Only who has packed the shard writes it: what a run that was killed has left of it is written over.
        let path = record_path(dst, shard);
        put(
            &path,
            &partial_of(&path, ""),
            |out| serde_json::to_writer(out, &record).map_err(io::Error::from),
            |partial, path| fs::rename(partial, path),
        )
    }

    /// The record of a shard; none where there is none that can be understood.
    pub(super) fn read(dst: &Path, shard: u64) -> Result<Option<Record>, PackError> {
        let path = record_path(dst, shard);
        let mut text = Vec::new();
        match File::open(&path).and_then(|file| file.take(8 << 20).read_to_end(&mut text)) {
            Ok(_) => Ok(serde_json::from_slice(&text).ok().and_then(|value| Record::of_json(&value))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(PackError::io("read", path)(error)),
        }
    }

    fn of_json(value: &Value) -> Option<Record> {
        Some(Record {
            samples: value["samples"].as_u64()?,
            bytes: value["bytes"].as_u64()?,
            hash: of_hex(value["xxh3"].as_str()?)?,
            skipped: SkippedList::of_json(&value["skipped"], value["skipped_count"].as_u64()?)?,
        })
    }
}

pub(super) fn hex(hash: u128) -> String {
    format!("{hash:032x}")
}

pub(super) fn of_hex(text: &str) -> Option<u128> {
    if text.len() == 32 { u128::from_str_radix(text, 16).ok() } else { None }
}

/// What of the settings decides the bytes of a set, for people and for the manifest.
pub(super) fn settings_json(settings: &Settings) -> Value {
    let mut json = match settings.treatment {
        Treatment::Stored => json!({ "treatment": "stored" }),
        Treatment::ShortSide { pixels, quality } => {
            json!({ "treatment": "short-side", "short_side": pixels, "quality": quality })
        }
        Treatment::Decoded { size, level } => json!({ "treatment": "decoded", "size": size, "level": level }),
    };
    json["shard_size"] = settings.shard_size.0.into();
    json["order"] = if settings.in_order { "source" } else { "shuffled" }.into();
    // Where nothing is shuffled, the seed decides nothing.
    json["seed"] = if settings.in_order { Value::Null } else { settings.seed.0.into() };
    json
}

/// Puts the settings down, or compares them with those that an earlier run has put down.
pub(super) fn agree_on_settings(
    source: &dyn Source,
    settings: &Settings,
    cut: &Cut,
    dst: &Path,
) -> Result<(), PackError> {
    let asked = json!({
        "format": FORMAT,
        "version": VERSION,
        "settings": settings_json(settings),
        "source": {
            "samples": source.len(),
            "bytes": cut.stored_bytes,
            "index": hex(cut.index_hash),
        },
        "shards": cut.shard_count(),
    });
    let folder = records_folder(dst);
    let path = folder.join("settings.json");
    if !path.try_exists().map_err(PackError::io("look for", &path))? {
        if let Some(path) = occupant(dst)? {
            return Err(PackError::Occupied { path });
        }
        fs::create_dir_all(&folder).map_err(PackError::io("make the folder", &folder))?;
        put(
            &path,
            &shared_partial_of(&path),
            |out| serde_json::to_writer(out, &asked).map_err(io::Error::from),
            place_first,
        )?;
    }
    // Read in any case: another job may have put its own down at the same moment.
    let text = fs::read(&path).map_err(PackError::io("read", &path))?;
    let unreadable = |error: serde_json::Error| PackError::Unreadable { path: path.clone(), cause: error.to_string() };
    let recorded: Value = serde_json::from_slice(&text).map_err(unreadable)?;
    match difference(&recorded, &asked) {
        None => Ok(()),
        Some([setting, recorded, asked]) => {
            Err(PackError::OtherSettings { path: dst.to_owned(), setting, recorded, asked })
        }
    }
}

/// The first thing that differs: its name, what it was, what it is.
fn difference(recorded: &Value, asked: &Value) -> Option<[String; 3]> {
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
    let told = |value: Option<&Value>| match value {
        None | Some(Value::Null) => "none".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    NAMES.iter().find_map(|(pointer, name)| {
        let (then, now) = (told(recorded.pointer(pointer)), told(asked.pointer(pointer)));
        (then != now).then(|| [(*name).to_owned(), then, now])
    })
}

/// Something at `dst` that a new set would write over.
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

/// Puts a small file in place whole: written beside it, made durable, renamed.
pub(super) fn write_whole(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), PackError> {
    put(path, &shared_partial_of(path), write, |partial, path| fs::rename(partial, path))
}

/// What a file is called while it is written.
fn partial_of(path: &Path, by: &str) -> PathBuf {
    path.with_file_name(format!(".{}{by}.partial", path.file_name().unwrap_or_default().to_string_lossy()))
}

/// The same for a file that jobs which share the folder may write at the same time, on machines that number processes alike.
fn shared_partial_of(path: &Path) -> PathBuf {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
    partial_of(path, &format!(".{}-{now}", std::process::id()))
}

fn put(
    path: &Path,
    partial: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    place: impl FnOnce(&Path, &Path) -> io::Result<()>,
) -> Result<(), PackError> {
    let written = File::create(partial).and_then(|file| {
        let mut out = BufWriter::new(file);
        write(&mut out)?;
        out.write_all(b"\n")?;
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    });
    let placed = written.and_then(|()| place(partial, path)).map_err(PackError::io("write", path));
    if placed.is_err() {
        // What is in the way of writing it may be in the way of this, too.
        let _ = fs::remove_file(partial);
        return placed;
    }
    sync_folder_of(path)
}

/// Renames, unless there is something under the new name already: that stays, then.
fn place_first(partial: &Path, path: &Path) -> io::Result<()> {
    match renameat_with(CWD, partial, CWD, path, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => fs::remove_file(partial),
        // Some file systems know no such thing.
        Err(Errno::INVAL | Errno::NOSYS) => fs::rename(partial, path),
        Err(errno) => Err(errno.into()),
    }
}

/// Makes a rename in the folder of `path` durable.
pub(super) fn sync_folder_of(path: &Path) -> Result<(), PackError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(PackError::io("make durable", folder))
}
