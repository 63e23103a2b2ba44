//! Owns the look at one file: open, read, probe, decode, average; or its header alone. It must never wait for a FIFO, let
//! a decoder's panic out, or take bytes that it has not reserved.

use std::fs::File;
use std::io::{Read, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_128;

use feedstock::ByteCount;
use feedstock::budget::{Account, Reservation, WaitError};
use feedstock::decode::{DecodeError, Format, Header, Limits, Slab, decode_into, probe, working_set};
use feedstock::plan::ENCODED_BYTES_MAX;
use feedstock::tensor::ImageView;

use super::super::data::readable;
use super::super::stop::Stop;
use super::walk::Found;

/// The part of a file that a quick look reads; where the header is not within it, all of the file. A camera's JPEG has a
/// small picture of up to 64 KiB before its own header.
const PREFIX_BYTES: u64 = 72 << 10;

/// Looks at files, within a budget, from any number of threads.
pub(super) struct Looker {
    /// A thread that holds a file may wait for a picture, one that holds a picture waits for nothing; and since accounts
    /// have caps, files can never take what a picture waits for.
    pub(super) files: Account,
    /// Where there is none, headers are all that is looked at.
    pub(super) pictures: Option<Account>,
    pub(super) stop: Stop,
}

/// What a file turned out to be.
pub(super) struct Finding {
    pub(super) found: Found,
    pub(super) seen: Seen,
    means: Option<Means>,
    pub(super) problem: Option<Problem>,
}

/// What there was to see, up to where it failed.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) bytes: Option<u64>,
    pub(super) header: Option<Header>,
    /// XXH3 of all of the file.
    pub(super) hash: Option<u128>,
}

struct Means {
    picture: [f64; 3],
    corner: [f64; 3],
}

/// Where and why a file failed.
pub(super) struct Problem {
    pub(super) stage: &'static str,
    /// What kind of thing it is: one of a few.
    pub(super) reason: &'static str,
    pub(super) cause: String,
}

impl Looker {
    /// What a file is; nothing where somebody wants the program to end before that is known.
    pub(super) fn look(&self, found: Found) -> Option<Finding> {
        let mut seen = Seen::default();
        let outcome = match &found.problem {
            Some(problem) => Err(unread(problem)),
            None => catch_unwind(AssertUnwindSafe(|| self.examine(&found.path, &mut seen))).unwrap_or_else(|_| {
                Err(at("decode", "a bug")(&"the decoder panicked, which is a bug: please report it"))
            }),
        };
        let (means, problem) = match outcome {
            Ok(means) => (means, None),
            Err(Problem { reason: INTERRUPTED, .. }) => return None,
            Err(problem) => (None, Some(problem)),
        };
        Some(Finding { found, seen, means, problem })
    }

    fn examine(&self, path: &Path, seen: &mut Seen) -> Result<Option<Means>, Problem> {
        let (mut file, bytes) = open(path).map_err(|cause| unread(&cause))?;
        seen.bytes = Some(bytes);
        if self.pictures.is_none() && bytes > PREFIX_BYTES {
            let (encoded, _held) = self.read(&mut file, PREFIX_BYTES)?;
            // How a WebP file is to be turned stands behind its picture. Any failure may be for want of the rest.
            if let Ok(header) = probe(&encoded, &Limits::default())
                && header.format != Format::WebP
            {
                seen.header = Some(header);
                return Ok(None);
            }
            file.rewind().map_err(|error| unread(&error))?;
        }
        let (encoded, _held) = self.read(&mut file, bytes)?;
        let header = seen.header.insert(probe(&encoded, &Limits::default()).map_err(|error| of(&error, "probe"))?);
        let Some(pictures) = &self.pictures else { return Ok(None) };
        seen.hash = Some(xxh3_128(&encoded));
        let needed = working_set(header);
        let needed = needed.pixel_bytes.saturating_add(needed.codec_bytes);
        let _picture_bytes = self.reserve(pictures, needed, "decode")?;
        let mut slab = Slab::new();
        let picture = decode_into(&encoded, header, &mut slab).map_err(|error| of(&error, "decode"))?;
        let corner = ((picture.width() / 4).max(1), (picture.height() / 4).max(1));
        let whole = (picture.width(), picture.height());
        Ok(Some(Means { picture: mean(&picture, whole), corner: mean(&picture, corner) }))
    }

    /// The first `bytes` of a file. One that grows meanwhile is read as far as it was long.
    fn read(&self, file: &mut File, bytes: u64) -> Result<(Vec<u8>, Reservation), Problem> {
        let held = self.reserve(&self.files, bytes, "read")?;
        let mut encoded = Vec::new();
        encoded.try_reserve_exact(bytes as usize).map_err(|error| unread(&error))?;
        file.take(bytes).read_to_end(&mut encoded).map_err(|error| unread(&error))?;
        Ok((encoded, held))
    }

    fn reserve(&self, account: &Account, bytes: u64, stage: &'static str) -> Result<Reservation, Problem> {
        account.reserve_waiting(ByteCount(bytes), || self.stop.is_asked()).map_err(|error| match error {
            WaitError::OverBudget(refused) => {
                at(stage, "over the RAM budget")(&format_args!("{refused}; raise --ram-budget"))
            }
            WaitError::Cancelled => at(stage, INTERRUPTED)(&""),
        })
    }
}

const INTERRUPTED: &str = "interrupted";

fn at(stage: &'static str, reason: &'static str) -> impl Fn(&dyn std::fmt::Display) -> Problem {
    move |cause| Problem { stage, reason, cause: cause.to_string() }
}

fn unread(cause: &dyn std::fmt::Display) -> Problem {
    at("read", "cannot be read")(cause)
}

fn of(error: &DecodeError, stage: &'static str) -> Problem {
    let reason = match error {
        DecodeError::Empty => "empty",
        DecodeError::UnknownFormat { .. } => "of no known format",
        DecodeError::HeaderTruncated { .. } => "cut off in the header",
        DecodeError::BadHeader { .. } => "a bad header",
        DecodeError::Unsupported { .. } => "not supported",
        DecodeError::NoPixels { .. } => "without pixels",
        DecodeError::TooLarge { .. } => "too large",
        DecodeError::Incomplete { .. } => "cut off in the picture",
        DecodeError::OutOfMemory { .. } => "out of memory",
        _ => "damaged",
    };
    at(stage, reason)(error)
}

fn open(path: &Path) -> Result<(File, u64), String> {
    // Without NONBLOCK, a FIFO would hold this thread until somebody writes to it.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let refused = |errno: rustix::io::Errno| std::io::Error::from(errno).to_string();
    let file = openat(CWD, path, flags, Mode::empty()).map_err(refused)?;
    let stat = fstat(&file).map_err(refused)?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => None,
        FileType::Fifo => Some("a FIFO"),
        FileType::Socket => Some("a socket"),
        FileType::Directory => Some("a folder"),
        FileType::CharacterDevice | FileType::BlockDevice => Some("a device"),
        _ => Some("something else"),
    };
    let bytes = u64::try_from(stat.st_size).unwrap_or(0);
    match kind {
        Some(kind) => Err(format!("this is {kind}, not a file")),
        None if bytes > ENCODED_BYTES_MAX => {
            Err(format!("the file is {}; {} is the most", ByteCount(bytes), ByteCount(ENCODED_BYTES_MAX)))
        }
        None => Ok((file.into(), bytes)),
    }
}

/// Mean of red, green and blue over the top left `size` (columns, rows) of a picture.
fn mean(picture: &ImageView<'_>, size: (u32, u32)) -> [f64; 3] {
    let (columns, rows) = (size.0 as usize, size.1 as usize);
    let mut sums = [0u64; 3];
    for row in picture.data().chunks_exact(picture.width() as usize * 3).take(rows) {
        for pixel in row[..columns * 3].chunks_exact(3) {
            for (sum, value) in sums.iter_mut().zip(pixel) {
                *sum += u64::from(*value);
            }
        }
    }
    sums.map(|sum| sum as f64 / (columns * rows) as f64)
}

impl Finding {
    /// Where it failed, if it did.
    pub(super) fn stage(&self) -> Option<&'static str> {
        self.problem.as_ref().map(|problem| problem.stage)
    }

    /// Its path, for people.
    pub(super) fn path(&self) -> String {
        readable(self.found.path.as_os_str().as_encoded_bytes())
    }

    pub(super) fn json(&self) -> Value {
        let Finding { seen: Seen { bytes, header, hash }, means, problem, .. } = self;
        json!({
            "path": self.path(),
            "status": if problem.is_none() { "ok" } else { "error" },
            "bytes": bytes,
            "format": header.as_ref().map(|header| header.format.name()),
            "width": header.as_ref().map(|header| header.width),
            "height": header.as_ref().map(|header| header.height),
            "orientation": header.as_ref().map(|header| header.orientation),
            "colour": header.as_ref().map(|header| header.colour.name()),
            "progressive": header.as_ref().map(|header| header.progressive),
            "mean_rgb": means.as_ref().map(|means| means.picture),
            "corner_mean_rgb": means.as_ref().map(|means| means.corner),
            "xxh3_128": hash.map(|hash| format!("{hash:032x}")),
            "stage": self.stage(),
            "error": problem.as_ref().map(|problem| &problem.cause),
        })
    }

    pub(super) fn text(&self) -> String {
        let Finding { seen: Seen { header, .. }, means, problem, .. } = self;
        let mut text = match problem {
            None => "ok   ".to_owned(),
            Some(_) => "error".to_owned(),
        };
        let format = header.as_ref().map_or(String::new(), |header| header.format.to_string());
        let size = header.as_ref().map_or(String::new(), |header| format!("{}x{}", header.width, header.height));
        text += &format!(" {format:<5} {size:>11}");
        if let Some(Means { picture: [red, green, blue], .. }) = means {
            text += &format!("  rgb {red:5.1} {green:5.1} {blue:5.1}");
        }
        text += &format!("  {}", self.path());
        if let Some(Problem { stage, cause, .. }) = problem {
            text += &format!(" ({stage}): {cause}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_of_the_part_that_was_asked_for() {
        let mut pixels = vec![0; 8 * 4 * 3];
        pixels[..3].copy_from_slice(&[10, 20, 30]);
        pixels[3..6].copy_from_slice(&[20, 40, 60]);
        let picture = ImageView::new(&pixels, 8, 4);
        assert_eq!(mean(&picture, (2, 1)), [15.0, 30.0, 45.0]);
        assert_eq!(mean(&picture, (8, 4)), [30.0 / 32.0, 60.0 / 32.0, 90.0 / 32.0]);
    }
}
