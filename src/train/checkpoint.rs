//! Checkpoints: a model, the state of its optimizer and the position in the data, in one file.
//!
//! The first line is text: magic words, lengths, a checksum and the [`CheckpointInfo`]. The records of burn follow. A
//! file is written beside its place and renamed, so that a complete one is always there; one that is damaged or of
//! another run is refused.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::optim::Optimizer;
use burn::record::{FullPrecisionSettings, NamedMpkBytesRecorder, Record, Recorder};
use burn::tensor::backend::AutodiffBackend;
use xxhash_rust::xxh3::xxh3_64;

use super::error::{CheckpointError, TrainError};
use super::model::Network;
use super::optimizer::NetworkOptimizer;

/// First words of a checkpoint.
pub(super) const MAGIC: &str = "feedstock-checkpoint 3";
/// Maximum length of the first line, in bytes.
const HEADER_BYTES_MAX: usize = 4096;

/// First line of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct CheckpointInfo {
    /// Number of complete epochs of training.
    pub epochs_done: u64,
    /// Number of batches of the current epoch that were trained on, and so the index of the next one.
    pub batches_done: u64,
    /// Steps of the current epoch.
    pub steps: u64,
    /// Images of the current epoch.
    pub images: u64,
    /// Sum of their losses.
    pub loss_sum: f64,
    /// Number of correct predictions among them.
    pub right: u64,
    /// Seconds of the current epoch.
    pub seconds: f64,
    /// Factor on the loss in f16, and the number of steps since it changed.
    pub loss_scale: Option<(f32, u32)>,
    /// Channels inside each block, if some are pruned.
    pub hidden: Vec<usize>,
    /// Batch size, number of ranks and seed, which decide the images of a batch. A run resumes within an epoch only
    /// with the same: with others, batches would be counted in other images.
    pub order: String,
    /// Network, width, classes, image side and optimizer. A run resumes only with the same.
    pub recipe: String,
}

/// Reads the first line of a checkpoint.
///
/// # Errors
/// [`TrainError::Io`] if it cannot be read, [`TrainError::Checkpoint`] if it is not a checkpoint.
pub fn inspect(path: &Path) -> Result<CheckpointInfo, TrainError> {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(HEADER_BYTES_MAX as u64).read_to_end(&mut start));
    read.map_err(|source| TrainError::io("read", path, source))?;
    Ok(split(path, &start)?.0)
}

/// Writes a checkpoint, in the place of the one before.
pub(super) fn save<B: AutodiffBackend>(
    path: &Path,
    info: &CheckpointInfo,
    model: &Network<B>,
    optimizer: &NetworkOptimizer<B>,
) -> Result<(), TrainError> {
    let mut payload = to_bytes::<B, _>(path, model.clone().into_record())?;
    let weights = payload.len();
    payload.extend(match optimizer {
        NetworkOptimizer::Sgd(sgd) => to_bytes::<B, _>(path, sgd.to_record())?,
        NetworkOptimizer::AdamW(adamw) => to_bytes::<B, _>(path, adamw.to_record())?,
    });
    let header =
        format!("{MAGIC} weights={weights} bytes={} xxh3={:016x} {}\n", payload.len(), xxh3_64(&payload), info.words());
    replace(path, &[header.as_bytes(), &payload]).map_err(|source| TrainError::io("write", path, source))
}

/// Loads the state of the optimizer.
pub(super) fn load_optimizer<B: AutodiffBackend>(
    path: &Path,
    optimizer: NetworkOptimizer<B>,
    device: &B::Device,
) -> Result<NetworkOptimizer<B>, TrainError> {
    let (_, state) = payload(path)?;
    Ok(match optimizer {
        NetworkOptimizer::Sgd(sgd) => NetworkOptimizer::Sgd(sgd.load_record(from_bytes::<B, _>(path, state, device)?)),
        NetworkOptimizer::AdamW(adamw) => {
            NetworkOptimizer::AdamW(adamw.load_record(from_bytes::<B, _>(path, state, device)?))
        }
    })
}

/// Loads the weights into a model of the same kind. Their shapes are those of the file, whatever the model's.
pub(super) fn load_weights<B: AutodiffBackend>(
    path: &Path,
    model: Network<B>,
    device: &B::Device,
) -> Result<Network<B>, TrainError> {
    let (weights, _) = payload(path)?;
    Ok(model.load_record(from_bytes::<B, _>(path, weights, device)?))
}

/// Reads and verifies the bytes of the weights and of the optimizer state.
fn payload(path: &Path) -> Result<(Vec<u8>, Vec<u8>), TrainError> {
    let bytes = fs::read(path).map_err(|source| TrainError::io("read", path, source))?;
    let (_, promised, payload) = split(path, &bytes)?;
    if (promised.bytes, promised.sum) != (payload.len(), xxh3_64(payload)) {
        return Err(CheckpointError::Damaged { written: promised.bytes, found: payload.len() }.of(path));
    }
    let parts = payload.split_at_checked(promised.weights);
    let (weights, state) =
        parts.ok_or_else(|| CheckpointError::Damaged { written: promised.weights, found: payload.len() }.of(path))?;
    Ok((weights.to_vec(), state.to_vec()))
}

fn to_bytes<B: AutodiffBackend, R: Record<B>>(path: &Path, record: R) -> Result<Vec<u8>, TrainError> {
    let recorder = NamedMpkBytesRecorder::<FullPrecisionSettings>::default();
    Recorder::<B>::record(&recorder, record, ()).map_err(|error| CheckpointError::Record(error).of(path))
}

fn from_bytes<B: AutodiffBackend, R: Record<B>>(
    path: &Path,
    bytes: Vec<u8>,
    device: &B::Device,
) -> Result<R, TrainError> {
    let recorder = NamedMpkBytesRecorder::<FullPrecisionSettings>::default();
    Recorder::<B>::load(&recorder, bytes, device).map_err(|error| CheckpointError::Record(error).of(path))
}

impl CheckpointInfo {
    /// Refuses the checkpoint of another run.
    pub(super) fn check(&self, path: &Path, recipe: &str, order: &str) -> Result<(), TrainError> {
        if self.recipe != recipe {
            let (theirs, ours) = (self.recipe.clone(), recipe.to_owned());
            return Err(CheckpointError::OtherRun { theirs, ours }.of(path));
        }
        if self.batches_done > 0 && self.order != order {
            let (theirs, ours) = (self.order.clone(), order.to_owned());
            return Err(CheckpointError::OtherBatches { batches: self.batches_done, theirs, ours }.of(path));
        }
        Ok(())
    }

    /// Refuses the weights of another kind of network, which has other parts.
    pub(super) fn check_network(&self, path: &Path, recipe: &str) -> Result<(), TrainError> {
        let network = |recipe: &str| recipe.split("-width").next().unwrap_or_default().to_owned();
        let (theirs, ours) = (network(&self.recipe), network(recipe));
        if theirs == ours { Ok(()) } else { Err(CheckpointError::OtherNetwork { theirs, ours }.of(path)) }
    }

    /// Words of the first line. Floats are written so that they are read back to the bit.
    fn words(&self) -> String {
        let CheckpointInfo {
            epochs_done,
            batches_done,
            steps,
            images,
            loss_sum,
            right,
            seconds,
            loss_scale,
            hidden,
            order,
            recipe,
        } = self;
        let hidden: Vec<String> = hidden.iter().map(usize::to_string).collect();
        let (factor, good_steps) = loss_scale.unwrap_or((0.0, 0));
        format!(
            "epochs={epochs_done} batches={batches_done} steps={steps} images={images} loss_sum={loss_sum:?} \
             right={right} \
             seconds={seconds:?} loss_scale={factor:?},{good_steps} hidden={} order={order} recipe={recipe}",
            hidden.join(",")
        )
    }

    fn parse<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut word = |name: &str| words.next()?.strip_prefix(name)?.strip_prefix('=');
        Some(CheckpointInfo {
            epochs_done: word("epochs")?.parse().ok()?,
            batches_done: word("batches")?.parse().ok()?,
            steps: word("steps")?.parse().ok()?,
            images: word("images")?.parse().ok()?,
            loss_sum: word("loss_sum")?.parse().ok()?,
            right: word("right")?.parse().ok()?,
            seconds: word("seconds")?.parse().ok()?,
            loss_scale: {
                let (factor, good_steps) = word("loss_scale")?.split_once(',')?;
                Some((factor.parse().ok()?, good_steps.parse().ok()?)).filter(|&(factor, _)| factor > 0.0)
            },
            hidden: {
                let hidden = word("hidden")?.split(',').filter(|width| !width.is_empty());
                hidden.map(|width| width.parse().ok()).collect::<Option<_>>()?
            },
            order: word("order")?.to_owned(),
            recipe: word("recipe")?.to_owned(),
        })
    }
}

/// Lengths and checksum of the payload, from the first line.
struct Promised {
    /// Bytes of the weights, which come first.
    weights: usize,
    bytes: usize,
    sum: u64,
}

/// Parses the first line. The last part is the payload.
fn split<'a>(path: &Path, bytes: &'a [u8]) -> Result<(CheckpointInfo, Promised, &'a [u8]), TrainError> {
    let header = bytes.iter().take(HEADER_BYTES_MAX).position(|&byte| byte == b'\n');
    let parsed = header.and_then(|end| {
        let mut words = std::str::from_utf8(&bytes[..end]).ok()?.strip_prefix(MAGIC)?.split_whitespace();
        let promised = Promised {
            weights: words.next()?.strip_prefix("weights=")?.parse().ok()?,
            bytes: words.next()?.strip_prefix("bytes=")?.parse().ok()?,
            sum: u64::from_str_radix(words.next()?.strip_prefix("xxh3=")?, 16).ok()?,
        };
        Some((CheckpointInfo::parse(words)?, promised, &bytes[end + 1..]))
    });
    parsed.ok_or_else(|| CheckpointError::Header.of(path))
}

/// Writes beside the file, then renames: after a crash too, the file is the old one or the new one, complete.
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
    // Makes the rename durable, where a folder can be opened as a file.
    File::open(folder).map_or(Ok(()), |folder| folder.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_is_refused_with_its_path() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("run.ckpt");
        assert!(matches!(inspect(&path), Err(TrainError::Io { .. })));
        for bytes in [&b""[..], b"\n", b"\xff\xfe\n", b"feedstock-checkpoint 1 epochs=1\n", &[b'a'; 9000]] {
            fs::write(&path, bytes).expect("written");
            let error = inspect(&path).expect_err("not a checkpoint").to_string();
            assert!(error.contains("run.ckpt"), "{error}");
        }
    }

    #[test]
    fn the_first_line_is_read_back() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("new/run.ckpt");
        let info = CheckpointInfo {
            epochs_done: 3,
            batches_done: 17,
            steps: 5,
            images: 320,
            loss_sum: 0.1 + 0.2,
            right: 9,
            seconds: 1.0 / 3.0,
            loss_scale: Some((4096.0, 7)),
            hidden: vec![45, 90],
            order: "batches16-ranks2-seed0".to_owned(),
            recipe: "small-32".to_owned(),
        };
        let header = format!("{MAGIC} weights=1 bytes=2 xxh3=00ff {}\n", info.words());
        replace(&path, &[header.as_bytes(), b"ab"]).expect("written");
        assert_eq!(inspect(&path).expect("a checkpoint"), info);
        let plain = CheckpointInfo { recipe: "x".to_owned(), ..CheckpointInfo::default() };
        assert_eq!(CheckpointInfo::parse(plain.words().split_whitespace()), Some(plain));
        assert_eq!(fs::read_dir(folder.path().join("new")).expect("listed").count(), 1, "nothing is left beside it");
    }
}
