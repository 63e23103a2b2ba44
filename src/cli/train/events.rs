//! TensorBoard event file: scalars by step, each record framed with its length and two checksums.
//!
//! A partial record would hide all later ones from a reader, so a failed write is truncated.
//!
//! The format: TFRecord frames (length, masked CRC-32C of the length, bytes, masked CRC-32C of the bytes; all
//! little-endian) around protobuf messages. Four messages with nine fields are needed, so they are encoded by hand:
//!
//! ```text
//! Event      { double wall_time = 1; int64 step = 2; string file_version = 3; Summary summary = 5;
//!              SessionLog session_log = 7; }
//! Summary    { repeated Value value = 1; }
//! Value      { string tag = 1; float simple_value = 2; }
//! SessionLog { SessionStatus status = 1; }
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::time::{SystemTime, UNIX_EPOCH};

use super::super::failure::Failure;

/// The first record of every file, as TensorBoard expects it.
const VERSION: &str = "brain.Event:2";

/// A file of scalars. Each record is written at once, without a buffer to flush.
pub(super) struct Events {
    file: File,
    path: PathBuf,
    /// Bytes of complete records.
    whole: u64,
    /// True if a partial record may follow them.
    torn: bool,
}

impl Events {
    /// Creates a file in this folder, and the folder if missing. Its name has the time, the host and the process id, so
    /// each run has its own file.
    ///
    /// # Errors
    /// The folder or the file cannot be created or written; the message has the path.
    pub(super) fn start(folder: &Path) -> Result<Events, Failure> {
        let now = SystemTime::now();
        let seconds = unix_seconds(now) as u64;
        let path = folder.join(format!("events.out.tfevents.{seconds}.{}.{}", host(), process::id()));
        let refused = |error: io::Error| Failure::Io(format!("cannot write {}: {error}", path.display()));
        fs::create_dir_all(folder)
            .map_err(|error| Failure::Io(format!("cannot make the folder {}: {error}", folder.display())))?;
        let file = File::options().create_new(true).append(true).open(&path).map_err(refused)?;
        let mut events = Events { file, path: path.clone(), whole: 0, torn: false };
        events.record(&event(now, 0, |event| bytes_field(event, 3, VERSION.as_bytes()))).map_err(refused)?;
        Ok(events)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Marks a resumed run: TensorBoard discards what earlier files of the folder have from this step on.
    ///
    /// # Errors
    /// See [`Events::add`].
    pub(super) fn resume(&mut self, step: u64) -> io::Result<()> {
        const STARTED: u64 = 1;
        let mut session = Vec::new();
        key(&mut session, 1, VARINT);
        varint(&mut session, STARTED);
        self.record(&event(SystemTime::now(), step, |event| bytes_field(event, 7, &session)))
    }

    /// Adds values by tag.
    ///
    /// # Errors
    /// Writing fails. The file stays readable, and a later call may succeed.
    pub(super) fn add(&mut self, step: u64, scalars: &[(&str, f64)]) -> io::Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in scalars {
            let mut scalar = Vec::new();
            bytes_field(&mut scalar, 1, tag.as_bytes());
            key(&mut scalar, 2, FOUR_BYTES);
            scalar.extend((*value as f32).to_le_bytes());
            bytes_field(&mut summary, 1, &scalar);
        }
        self.record(&event(SystemTime::now(), step, |event| bytes_field(event, 5, &summary)))
    }

    fn record(&mut self, message: &[u8]) -> io::Result<()> {
        let length = (message.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(message.len() + 16);
        record.extend(length);
        record.extend(masked(crc32c(&length)).to_le_bytes());
        record.extend(message);
        record.extend(masked(crc32c(message)).to_le_bytes());
        if self.torn {
            // A partial record would hide all later ones.
            self.file.set_len(self.whole)?;
        }
        self.torn = true;
        self.file.write_all(&record)?;
        self.torn = false;
        self.whole += record.len() as u64;
        Ok(())
    }
}

/// Encodes an `Event` message.
fn event(at: SystemTime, step: u64, rest: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut event = Vec::new();
    key(&mut event, 1, EIGHT_BYTES);
    event.extend(unix_seconds(at).to_le_bytes());
    key(&mut event, 2, VARINT);
    varint(&mut event, step);
    rest(&mut event);
    event
}

/// Protobuf wire types.
const VARINT: u8 = 0;
const EIGHT_BYTES: u8 = 1;
const BYTES: u8 = 2;
const FOUR_BYTES: u8 = 5;

fn key(out: &mut Vec<u8>, field: u8, kind: u8) {
    out.push((field << 3) | kind);
}

fn bytes_field(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    key(out, field, BYTES);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Seconds since 1970.
fn unix_seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Host name, restricted to characters that any file system accepts.
fn host() -> String {
    let name = sysinfo::System::host_name().unwrap_or_default();
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let name: String = name.chars().take(64).map(|c| if fine(c) { c } else { '_' }).collect();
    if name.is_empty() { "host".to_owned() } else { name }
}

/// CRC-32C (Castagnoli), with a table computed at compile time.
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut place = 0;
        while place < 256 {
            let (mut rest, mut bit) = (place as u32, 0);
            while bit < 8 {
                rest = (rest >> 1) ^ ((rest & 1) * 0x82F6_3B78);
                bit += 1;
            }
            table[place] = rest;
            place += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |rest: u32, byte| (rest >> 8) ^ TABLE[usize::from(rest as u8 ^ byte)])
}

/// Masks a checksum as TFRecord does, so that checksums of data that contains checksums stay strong.
fn masked(checksum: u32) -> u32 {
    checksum.rotate_right(15).wrapping_add(0xA282_EAD8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checksum by bitwise polynomial division, as a reference.
    fn divided(bytes: &[u8]) -> u32 {
        let bit = |rest: u32, _| if rest & 1 == 1 { (rest >> 1) ^ 0x82F6_3B78 } else { rest >> 1 };
        !bytes.iter().fold(!0u32, |rest, &byte| (0..8).fold(rest ^ u32::from(byte), bit))
    }

    /// Messages of a file, with their frames checked.
    fn messages(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let unmasked = |four: &[u8]| {
            let stored = u32::from_le_bytes(four.try_into().expect("four bytes"));
            stored.wrapping_sub(0xA282_EAD8).rotate_left(15)
        };
        let mut messages = Vec::new();
        while !bytes.is_empty() {
            let (length, rest) = bytes.split_at(8);
            let size = u64::from_le_bytes(length.try_into().expect("eight bytes")) as usize;
            assert_eq!(unmasked(&rest[..4]), divided(length), "the checksum of a length");
            let (message, rest) = rest[4..].split_at(size);
            assert_eq!(unmasked(&rest[..4]), divided(message), "the checksum of a message");
            messages.push(message.to_vec());
            bytes = &rest[4..];
        }
        messages
    }

    #[derive(Debug, PartialEq)]
    enum Value {
        Number(u64),
        Bytes(Vec<u8>),
    }

    /// The fields of any protobuf message.
    fn fields(mut bytes: &[u8]) -> Vec<(u64, Value)> {
        fn number(bytes: &mut &[u8]) -> u64 {
            let end = bytes.iter().position(|byte| byte & 0x80 == 0).expect("a number ends");
            let value = bytes[..=end].iter().rev().fold(0, |value, byte| (value << 7) | u64::from(byte & 0x7F));
            *bytes = &bytes[end + 1..];
            value
        }
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let key = number(&mut bytes);
            let length = match key & 7 {
                0 => {
                    found.push((key >> 3, Value::Number(number(&mut bytes))));
                    continue;
                }
                1 => 8,
                2 => number(&mut bytes) as usize,
                5 => 4,
                kind => panic!("there is no kind {kind}"),
            };
            let (value, rest) = bytes.split_at(length);
            found.push((key >> 3, Value::Bytes(value.to_vec())));
            bytes = rest;
        }
        found
    }

    fn inside(fields: &[(u64, Value)], number: u64) -> &[u8] {
        match fields.iter().find(|(field, _)| *field == number) {
            Some((_, Value::Bytes(bytes))) => bytes,
            other => panic!("field {number} is {other:?}"),
        }
    }

    #[test]
    fn checksums_are_those_of_the_standard() {
        // RFC 3720, B.4, and the check value of the catalogue.
        let ascending: Vec<u8> = (0..32).collect();
        for (bytes, checksum) in [
            (&b"123456789"[..], 0xE306_9283),
            (&[0; 32], 0x8A91_36AA),
            (&[0xFF; 32], 0x62A8_AB43),
            (&ascending, 0x46DD_794E),
        ] {
            assert_eq!((crc32c(bytes), divided(bytes)), (checksum, checksum));
        }
    }

    #[test]
    fn a_reader_of_the_format_finds_every_scalar_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let inner = folder.path().join("runs").join("one");
        let mut events = Events::start(&inner).ok().expect("it can be written");
        let before = unix_seconds(SystemTime::now());
        events.add(7, &[("loss/train", 1.5), ("accuracy/train", 0.25)]).expect("it is written");
        events.add(1 << 40, &[("loss/val", f64::NAN)]).expect("it is written");
        events.resume(1 << 50).expect("it is written");

        let name = events.path().file_name().expect("a name").to_string_lossy().into_owned();
        let parts: Vec<&str> = name.split('.').collect();
        assert_eq!(parts[..3], ["events", "out", "tfevents"], "{name}");
        assert!(parts[3].parse::<u64>().expect("seconds") > 1_700_000_000, "{name}");
        assert_eq!(*parts.last().expect("parts"), process::id().to_string(), "{name}");

        let messages = messages(&fs::read(events.path()).expect("it is there"));
        let events: Vec<_> = messages.iter().map(|message| fields(message)).collect();
        assert_eq!(events.len(), 4);
        assert_eq!(inside(&events[0], 3), b"brain.Event:2");
        for (event, step) in events[1..].iter().zip([7, 1 << 40, 1 << 50]) {
            let at = f64::from_le_bytes(inside(event, 1).try_into().expect("eight bytes"));
            assert!((before - 1.0..before + 60.0).contains(&at), "{at}");
            assert!(event.contains(&(2, Value::Number(step))), "{event:?}");
        }
        assert_eq!(fields(inside(&events[3], 7)), [(1, Value::Number(1))]);
        let scalar = |(field, value): (u64, Value)| {
            let Value::Bytes(value) = value else { panic!("field {field} is a message") };
            let scalar = fields(&value);
            let number = f32::from_le_bytes(inside(&scalar, 2).try_into().expect("four bytes"));
            (field, String::from_utf8_lossy(inside(&scalar, 1)).into_owned(), number)
        };
        let scalars: Vec<_> = fields(inside(&events[1], 5)).into_iter().map(scalar).collect();
        assert_eq!(scalars, [(1, "loss/train".to_owned(), 1.5), (1, "accuracy/train".to_owned(), 0.25)]);
    }

    #[test]
    fn what_was_torn_is_taken_back_so_that_later_records_are_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut events = Events::start(folder.path()).ok().expect("it can be written");
        let unwritable = File::open(events.path()).expect("it is there");
        let good = std::mem::replace(&mut events.file, unwritable);
        assert!(events.add(1, &[("a", 1.0)]).is_err(), "it was opened to be read");
        // A full disk leaves some bytes of a record and an error.
        (&good).write_all(&[1, 2, 3]).expect("they are written");
        events.file = good;
        events.add(2, &[("a", 2.0)]).expect("it is written");
        assert_eq!(messages(&fs::read(events.path()).expect("it is there")).len(), 2);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error_with_its_path() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let inside = file.path().join("runs");
        let Err(Failure::Io(what)) = Events::start(&inside) else { panic!("a file is no folder") };
        assert!(what.contains(&inside.display().to_string()), "{what}");
    }
}
