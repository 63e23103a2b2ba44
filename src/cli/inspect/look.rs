//! Owns the look at one file: open, read, probe, decode, average. It must never wait for a FIFO, let a decoder's panic
//! out, or take bytes that it has not reserved.

use std::fs::File;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use serde_json::{Value, json};

use feedstock::ByteCount;
use feedstock::budget::{Account, Ledger, Reservation, WaitError};
use feedstock::decode::{Header, Limits, Slab, decode_into, probe, working_set};
use feedstock::plan::ENCODED_BYTES_MAX;
use feedstock::tensor::ImageView;

use super::super::data::readable;
use super::super::stop::Stop;
use super::walk::Found;

/// Looks at files, within a budget, from any number of threads.
pub(super) struct Looker {
    /// A thread that holds a file may wait for a picture, one that holds a picture waits for nothing; with a ledger for
    /// each, files can never take what a picture waits for.
    files: Account,
    pictures: Account,
    stop: Stop,
}

/// What a file turned out to be.
pub(super) struct Finding {
    path: String,
    header: Option<Header>,
    means: Option<Means>,
    problem: Option<Problem>,
}

struct Means {
    picture: [f64; 3],
    corner: [f64; 3],
}

struct Problem {
    stage: &'static str,
    cause: String,
}

impl Looker {
    pub(super) fn new(budget: ByteCount, stop: Stop) -> Self {
        let account = |name, share| {
            let ledger = Ledger::new(ByteCount(share));
            ledger.account(name, ledger.limit())
        };
        let for_files = budget.0 / 4;
        Looker { files: account("files", for_files), pictures: account("pictures", budget.0 - for_files), stop }
    }

    pub(super) fn look(&self, found: &Found) -> Finding {
        let path = readable(found.path.as_os_str().as_encoded_bytes());
        let mut finding = Finding { path, header: None, means: None, problem: None };
        let outcome = match &found.problem {
            Some(problem) => Err(at("read")(problem)),
            None => catch_unwind(AssertUnwindSafe(|| self.examine(&found.path, &mut finding.header)))
                .unwrap_or_else(|_| Err(at("decode")(&"the decoder panicked, which is a bug: please report it"))),
        };
        match outcome {
            Ok(means) => finding.means = Some(means),
            Err(problem) => finding.problem = Some(problem),
        }
        finding
    }

    fn examine(&self, path: &Path, header: &mut Option<Header>) -> Result<Means, Problem> {
        let (mut file, bytes) = open(path).map_err(|cause| at("read")(&cause))?;
        let _file_bytes = self.reserve(&self.files, bytes).map_err(|cause| at("read")(&cause))?;
        let mut encoded = Vec::new();
        encoded.try_reserve_exact(bytes as usize).map_err(|error| at("read")(&error))?;
        // A file that grows meanwhile is read as far as it was long.
        file.by_ref().take(bytes).read_to_end(&mut encoded).map_err(|error| at("read")(&error))?;
        let header = header.insert(probe(&encoded, &Limits::default()).map_err(|error| at("probe")(&error))?);
        let needed = working_set(header);
        let needed = needed.pixel_bytes.saturating_add(needed.codec_bytes);
        let _picture_bytes = self.reserve(&self.pictures, needed).map_err(|cause| at("decode")(&cause))?;
        let mut slab = Slab::new();
        let picture = decode_into(&encoded, header, &mut slab).map_err(|error| at("decode")(&error))?;
        let corner = ((picture.width() / 4).max(1), (picture.height() / 4).max(1));
        Ok(Means { picture: mean(&picture, (picture.width(), picture.height())), corner: mean(&picture, corner) })
    }

    fn reserve(&self, account: &Account, bytes: u64) -> Result<Reservation, String> {
        account.reserve_waiting(ByteCount(bytes), || self.stop.is_asked()).map_err(|error| match error {
            WaitError::OverBudget(refused) => format!("{refused}; raise --ram-budget"),
            _ => "interrupted".to_owned(),
        })
    }
}

fn at(stage: &'static str) -> impl Fn(&dyn std::fmt::Display) -> Problem {
    move |cause| Problem { stage, cause: cause.to_string() }
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

    pub(super) fn json(&self) -> Value {
        let Finding { path, header, means, problem } = self;
        json!({
            "path": path,
            "status": if problem.is_none() { "ok" } else { "error" },
            "format": header.as_ref().map(|header| header.format.name()),
            "width": header.as_ref().map(|header| header.width),
            "height": header.as_ref().map(|header| header.height),
            "orientation": header.as_ref().map(|header| header.orientation),
            "mean_rgb": means.as_ref().map(|means| means.picture),
            "corner_mean_rgb": means.as_ref().map(|means| means.corner),
            "stage": self.stage(),
            "error": problem.as_ref().map(|problem| &problem.cause),
        })
    }

    pub(super) fn text(&self) -> String {
        let Finding { path, header, means, problem } = self;
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
        text += &format!("  {path}");
        if let Some(Problem { stage, cause }) = problem {
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
