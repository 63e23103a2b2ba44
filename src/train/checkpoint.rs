//! Owns checkpoints: a model, its optimizer's state and how many epochs they have seen, in one file.
//! It must never leave a file half written under its name, and never load one that is not whole or not meant.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use burn::module::AutodiffModule;
use burn::optim::Optimizer;
use burn::record::{FullPrecisionSettings, NamedMpkBytesRecorder, Recorder};
use burn::tensor::backend::AutodiffBackend;
use xxhash_rust::xxh3::xxh3_64;

use super::error::TrainError;

/// First words of a checkpoint.
const MAGIC: &str = "feedstock-checkpoint 1";
/// The first line is shorter than this; a longer one belongs to another kind of file.
const HEADER_BYTES_MAX: usize = 4096;

/// What a checkpoint says of itself, in its first line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointInfo {
    /// How many epochs of training are in it.
    pub epochs_done: u64,
    /// What was trained and how, as one word for each choice. A run resumes only where it is the same.
    pub recipe: String,
}

/// Reads what a checkpoint says of itself, without its weights.
///
/// # Errors
/// [`TrainError::Io`] if it cannot be read, [`TrainError::Checkpoint`] if it is none.
pub fn inspect(path: &Path) -> Result<CheckpointInfo, TrainError> {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(HEADER_BYTES_MAX as u64).read_to_end(&mut start));
    read.map_err(|source| TrainError::io("read", path, source))?;
    Ok(split(path, &start)?.0)
}

/// Writes a checkpoint in the place of the one before.
pub(super) fn save<B, M, O>(path: &Path, info: &CheckpointInfo, model: &M, optimizer: &O) -> Result<(), TrainError>
where
    B: AutodiffBackend,
    M: AutodiffModule<B>,
    O: Optimizer<M, B>,
{
    let recorder = NamedMpkBytesRecorder::<FullPrecisionSettings>::default();
    let record = (model.clone().into_record(), optimizer.to_record());
    let payload = Recorder::<B>::record(&recorder, record, ()).map_err(|error| refused(path, error.to_string()))?;
    let header = format!(
        "{MAGIC} epochs={} bytes={} xxh3={:016x} recipe={}\n",
        info.epochs_done,
        payload.len(),
        xxh3_64(&payload),
        info.recipe
    );
    replace(path, &[header.as_bytes(), &payload]).map_err(|source| TrainError::io("write", path, source))
}

/// Loads what [`save`] wrote, into a model and an optimizer of the same shape.
pub(super) fn load<B, M, O>(
    path: &Path,
    recipe: &str,
    model: M,
    optimizer: O,
    device: &B::Device,
) -> Result<(CheckpointInfo, M, O), TrainError>
where
    B: AutodiffBackend,
    M: AutodiffModule<B>,
    O: Optimizer<M, B>,
{
    let bytes = fs::read(path).map_err(|source| TrainError::io("read", path, source))?;
    let (info, sum, payload) = split(path, &bytes)?;
    if info.recipe != recipe {
        return Err(refused(path, format!("it holds a run of {}, this run is {recipe}", info.recipe)));
    }
    if sum != (payload.len(), xxh3_64(payload)) {
        return Err(refused(path, format!("it is damaged: {} bytes were written, {} are there", sum.0, payload.len())));
    }
    let recorder = NamedMpkBytesRecorder::<FullPrecisionSettings>::default();
    let (weights, state): (M::Record, O::Record) =
        Recorder::<B>::load(&recorder, payload.to_vec(), device).map_err(|error| refused(path, error.to_string()))?;
    Ok((info, model.load_record(weights), optimizer.load_record(state)))
}

/// The first line's meaning, the size and sum that it promises, and the rest.
#[allow(clippy::type_complexity, reason = "three plain values that are used at once")]
fn split<'a>(path: &Path, bytes: &'a [u8]) -> Result<(CheckpointInfo, (usize, u64), &'a [u8]), TrainError> {
    let header = bytes.iter().take(HEADER_BYTES_MAX).position(|&byte| byte == b'\n');
    let parsed = header.and_then(|end| {
        let mut words = std::str::from_utf8(&bytes[..end]).ok()?.strip_prefix(MAGIC)?.split_whitespace();
        let epochs_done = words.next()?.strip_prefix("epochs=")?.parse().ok()?;
        let size = words.next()?.strip_prefix("bytes=")?.parse().ok()?;
        let sum = u64::from_str_radix(words.next()?.strip_prefix("xxh3=")?, 16).ok()?;
        let recipe = words.next()?.strip_prefix("recipe=")?.to_owned();
        Some((CheckpointInfo { epochs_done, recipe }, (size, sum), &bytes[end + 1..]))
    });
    parsed.ok_or_else(|| refused(path, format!("it does not start with '{MAGIC}'")))
}

fn refused(path: &Path, why: String) -> TrainError {
    TrainError::Checkpoint { path: path.to_owned(), why }
}

/// Writes beside the file, then renames: whoever looks finds the old one or the new one, whole, after a crash too.
fn replace(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    fs::create_dir_all(folder)?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(".part");
    let beside = PathBuf::from(beside);
    let mut file = File::create(&beside)?;
    for part in parts {
        file.write_all(part)?;
    }
    file.sync_all()?;
    fs::rename(&beside, path)?;
    // The new name itself must reach the disk; where a folder cannot be opened as a file, the rename has to do.
    File::open(folder).map_or(Ok(()), |folder| folder.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_checkpoint_is_refused_with_its_path() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("run.ckpt");
        assert!(matches!(inspect(&path), Err(TrainError::Io { .. })));
        for bytes in [&b""[..], b"\n", b"\xff\xfe\n", b"feedstock-checkpoint 2 epochs=1\n", &[b'a'; 9000]] {
            fs::write(&path, bytes).expect("written");
            let error = inspect(&path).expect_err("not a checkpoint").to_string();
            assert!(error.contains("run.ckpt") && error.contains(MAGIC), "{error}");
        }
    }

    #[test]
    fn the_first_line_says_what_is_inside() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("new/run.ckpt");
        let header = format!("{MAGIC} epochs=3 bytes=2 xxh3=00ff recipe=small-32\n");
        replace(&path, &[header.as_bytes(), b"ab"]).expect("written");
        let info = inspect(&path).expect("a checkpoint");
        assert_eq!(info, CheckpointInfo { epochs_done: 3, recipe: "small-32".to_owned() });
        assert_eq!(fs::read_dir(folder.path().join("new")).expect("listed").count(), 1, "nothing is left beside it");
    }
}
