//! Inspection of one file: open, read, probe, decode, average; or its header alone.
//!
//! Opening never blocks on a FIFO, a decoder's panic is contained, and bytes are reserved before they are read.

use std::fs::File;
use std::io::{Read, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_128;

use feedstock::budget::{Account, Reservation, WaitError};
use feedstock::decode::{DecodeError, DecodeRequest, Decoder, Format, Header, Limits, begin, probe, working_set};
use feedstock::plan::ENCODED_BYTES_MAX;
use feedstock::{ByteCount, SampleError, SampleErrorKind, Stage};

use super::super::data::readable;
use super::super::failure::chain;
use super::super::stop::Stop;
use super::walk::Found;

/// Prefix of a file that `--quick` reads; if it does not contain the header, the whole file is read. A camera's JPEG
/// has a thumbnail of up to 64 KiB before its own header.
const PREFIX_BYTES: u64 = 72 << 10;

/// Inspects files within a budget, from any number of threads.
pub(super) struct FileInspector {
    /// A thread that holds a file may wait for memory of an image; one that holds an image waits for nothing. Accounts
    /// have caps, so files never take the memory of images, and there is no deadlock.
    pub(super) files: Account,
    /// `None` inspects headers only.
    pub(super) images: Option<Account>,
    pub(super) stop: Stop,
}

/// Result of an inspection.
pub(super) struct Finding {
    pub(super) found: Found,
    pub(super) seen: Seen,
    means: Option<Means>,
    pub(super) problem: Option<Problem>,
}

/// Facts of a file, up to the step that failed.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) bytes: Option<u64>,
    pub(super) header: Option<Header>,
    /// XXH3 of the whole file.
    pub(super) hash: Option<u128>,
}

struct Means {
    image: [f64; 3],
    corner: [f64; 3],
}

/// An error of a file.
pub(super) struct Problem {
    pub(super) stage: Stage,
    pub(super) kind: SampleErrorKind,
    pub(super) cause: String,
}

/// The reason for which a file was not examined to the end.
enum Ended {
    Bad(Problem),
    Interrupted,
}

impl FileInspector {
    /// Inspects a file. Returns `None` if the program is interrupted first.
    pub(super) fn inspect(&self, found: Found) -> Option<Finding> {
        let mut seen = Seen::default();
        let outcome = match &found.problem {
            Some(problem) => Err(unread(problem)),
            None => catch_unwind(AssertUnwindSafe(|| self.examine(&found.path, &mut seen))).unwrap_or_else(|_| {
                Err(bad(Stage::Decode, SampleErrorKind::Panic)(&"the decoder panicked: please report this"))
            }),
        };
        let (means, problem) = match outcome {
            Ok(means) => (means, None),
            Err(Ended::Interrupted) => return None,
            Err(Ended::Bad(problem)) => (None, Some(problem)),
        };
        Some(Finding { found, seen, means, problem })
    }

    fn examine(&self, path: &Path, seen: &mut Seen) -> Result<Option<Means>, Ended> {
        let (mut file, bytes) = open(path)?;
        seen.bytes = Some(bytes);
        if self.images.is_none() && bytes > PREFIX_BYTES {
            let (encoded, _held) = self.read(&mut file, PREFIX_BYTES)?;
            // A WebP file has its orientation behind the image. Any failure may be due to the missing rest.
            if let Ok(header) = probe(&encoded, &Limits::default())
                && header.format != Format::WebP
            {
                seen.header = Some(header);
                return Ok(None);
            }
            file.rewind().map_err(|error| unread(&error))?;
        }
        let (encoded, _held) = self.read(&mut file, bytes)?;
        let header = seen.header.insert(probe(&encoded, &Limits::default()).map_err(|error| of(&error, Stage::Probe))?);
        let Some(images) = &self.images else { return Ok(None) };
        seen.hash = Some(xxh3_128(&encoded));
        let working_set = working_set(header, 1);
        let row_bytes = u64::from(header.width) * 3;
        let needed = working_set.buffer_bytes.saturating_add(working_set.codec_bytes).saturating_add(row_bytes);
        let _image_bytes = self.reserve(images, needed, Stage::Decode)?;
        let means = || {
            let mut buffer = working_set.allocate()?;
            let decoder = begin(&encoded, header, &DecodeRequest::whole(header), &mut buffer)?;
            means(decoder, header.width, header.height)
        };
        means().map(Some).map_err(|error| of(&error, Stage::Decode))
    }

    /// Reads the first `bytes` of a file. A file that grows meanwhile is read up to its initial length.
    fn read(&self, file: &mut File, bytes: u64) -> Result<(Vec<u8>, Reservation), Ended> {
        let held = self.reserve(&self.files, bytes, Stage::Read)?;
        let mut encoded = Vec::new();
        encoded
            .try_reserve_exact(bytes as usize)
            .map_err(|error| bad(Stage::Read, SampleErrorKind::NoMemory)(&error))?;
        file.take(bytes).read_to_end(&mut encoded).map_err(|error| unread(&error))?;
        Ok((encoded, held))
    }

    fn reserve(&self, account: &Account, bytes: u64, stage: Stage) -> Result<Reservation, Ended> {
        account.reserve_waiting(ByteCount(bytes), || self.stop.is_requested()).map_err(|error| match error {
            WaitError::OverBudget(refused) => {
                bad(stage, SampleErrorKind::OverBudget)(&format_args!("{refused}; raise --ram-budget"))
            }
            WaitError::Cancelled => Ended::Interrupted,
        })
    }
}

fn bad(stage: Stage, kind: SampleErrorKind) -> impl Fn(&dyn std::fmt::Display) -> Ended {
    move |cause| Ended::Bad(Problem { stage, kind, cause: cause.to_string() })
}

fn unread(cause: &dyn std::fmt::Display) -> Ended {
    bad(Stage::Read, SampleErrorKind::ReadFailed)(cause)
}

fn of(error: &DecodeError, stage: Stage) -> Ended {
    bad(stage, error.into())(&chain(error))
}

fn open(path: &Path) -> Result<(File, u64), Ended> {
    // Without NONBLOCK, opening a FIFO blocks until there is a writer.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let refused = |errno: rustix::io::Errno| unread(&std::io::Error::from(errno));
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
        Some(kind) => Err(unread(&format_args!("this is {kind}, not a file"))),
        None if bytes > ENCODED_BYTES_MAX => {
            let (bytes, limit) = (ByteCount(bytes), ByteCount(ENCODED_BYTES_MAX));
            let error = SampleError::FileTooLarge { bytes, limit };
            Err(bad(Stage::Read, error.kind())(&error))
        }
        None => Ok((file.into(), bytes)),
    }
}

/// Mean of red, green and blue over the whole image, and over its top left corner of a quarter of each side.
fn means(mut decoder: Decoder<'_>, width: u32, height: u32) -> Result<Means, DecodeError> {
    let (corner_width, corner_height) = ((width / 4).max(1), (height / 4).max(1));
    let (mut sums, mut corner_sums) = ([0u64; 3], [0u64; 3]);
    let mut row = vec![0; decoder.row_pixels() as usize * 3];
    let add = |sums: &mut [u64; 3], pixels: &[u8]| {
        for pixel in pixels.as_chunks::<3>().0 {
            for (sum, value) in sums.iter_mut().zip(pixel) {
                *sum += u64::from(*value);
            }
        }
    };
    for y in 0..height {
        decoder.next_row(&mut row)?;
        add(&mut sums, &row);
        if y < corner_height {
            add(&mut corner_sums, &row[..corner_width as usize * 3]);
        }
    }
    let mean = |sums: [u64; 3], (width, height): (u32, u32)| {
        sums.map(|sum| sum as f64 / (f64::from(width) * f64::from(height)))
    };
    Ok(Means { image: mean(sums, (width, height)), corner: mean(corner_sums, (corner_width, corner_height)) })
}

impl Finding {
    /// Step that failed, if any.
    pub(super) fn stage(&self) -> Option<Stage> {
        self.problem.as_ref().map(|problem| problem.stage)
    }

    /// Path as text.
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
            "color": header.as_ref().map(|header| header.color.name()),
            "progressive": header.as_ref().map(|header| header.progressive),
            "mean_rgb": means.as_ref().map(|means| means.image),
            "corner_mean_rgb": means.as_ref().map(|means| means.corner),
            "xxh3_128": hash.map(|hash| format!("{hash:032x}")),
            "stage": self.stage().map(Stage::name),
            "code": problem.as_ref().map(|problem| problem.kind.code()),
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
        if let Some(Means { image: [red, green, blue], .. }) = means {
            text += &format!("  rgb {red:5.1} {green:5.1} {blue:5.1}");
        }
        text += &format!("  {}", self.path());
        if let Some(Problem { stage, cause, .. }) = problem {
            text += &format!(" ({stage}): {cause}");
        }
        text
    }
}
