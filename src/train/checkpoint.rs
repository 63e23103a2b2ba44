//! Owns checkpoints: a model, its optimizer's state and the place in the data that they have got to, in one file.
//! It must never leave a file half written under its name, and never load one that is not whole or not meant.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use burn::module::AutodiffModule;
use burn::optim::Optimizer;
use burn::record::{FullPrecisionSettings, NamedMpkBytesRecorder, Record, Recorder, RecorderError};
use burn::tensor::backend::AutodiffBackend;
use xxhash_rust::xxh3::xxh3_64;

use super::error::TrainError;

/// First words of a checkpoint.
const MAGIC: &str = "feedstock-checkpoint 2";
/// The first line is shorter than this; a longer one belongs to another kind of file.
const HEADER_BYTES_MAX: usize = 4096;

/// What a checkpoint says of itself, in its first line.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CheckpointInfo {
    /// How many whole epochs of training are in it.
    pub epochs_done: u64,
    /// Batches of the epoch under way that are in it: the next batch to learn from is this one, counted from 0.
    pub batches_done: u64,
    /// Steps of the epoch under way.
    pub steps: u64,
    /// Images of the epoch under way.
    pub images: u64,
    /// The sum of their losses.
    pub loss_sum: f64,
    /// How many of them were named rightly.
    pub right: u64,
    /// Seconds of the epoch under way.
    pub seconds: f64,
    /// The factor on the loss and how many steps it has held, in f16.
    pub loss_scale: Option<(f32, u32)>,
    /// Channels inside each block, where some are pruned.
    pub hidden: Vec<usize>,
    /// What decides which images a batch has: batch size, ranks and seed. Within an epoch a run resumes only where it is
    /// the same: other batches would be counted in other images.
    pub order: String,
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
    let failed = |error: RecorderError| refused(path, error.to_string());
    let mut payload = Recorder::<B>::record(&recorder, model.clone().into_record(), ()).map_err(failed)?;
    let weights = payload.len();
    payload.extend(Recorder::<B>::record(&recorder, optimizer.to_record(), ()).map_err(failed)?);
    let header =
        format!("{MAGIC} weights={weights} bytes={} xxh3={:016x} {}\n", payload.len(), xxh3_64(&payload), info.words());
    replace(path, &[header.as_bytes(), &payload]).map_err(|source| TrainError::io("write", path, source))
}

/// Loads the optimizer's state that [`save`] wrote.
pub(super) fn load_state<B, M, O>(path: &Path, optimizer: O, device: &B::Device) -> Result<O, TrainError>
where
    B: AutodiffBackend,
    M: AutodiffModule<B>,
    O: Optimizer<M, B>,
{
    let (_, state) = payload(path)?;
    Ok(optimizer.load_record(record::<B, O::Record>(path, state, device)?))
}

/// Loads the weights, into a model of the same kind. Whoever calls looks whether the shapes are those it wants.
pub(super) fn load_weights<B, M>(path: &Path, model: M, device: &B::Device) -> Result<M, TrainError>
where
    B: AutodiffBackend,
    M: AutodiffModule<B>,
{
    let (weights, _) = payload(path)?;
    Ok(model.load_record(record::<B, M::Record>(path, weights, device)?))
}

/// The bytes of the weights and of the optimizer's state, whole.
fn payload(path: &Path) -> Result<(Vec<u8>, Vec<u8>), TrainError> {
    let bytes = fs::read(path).map_err(|source| TrainError::io("read", path, source))?;
    let (_, promised, payload) = split(path, &bytes)?;
    if (promised.bytes, promised.sum) != (payload.len(), xxh3_64(payload)) {
        let why = format!("it is damaged: {} bytes were written, {} are there", promised.bytes, payload.len());
        return Err(refused(path, why));
    }
    let (weights, state) = payload.split_at_checked(promised.weights).ok_or_else(|| {
        refused(path, format!("it promises {} bytes of weights and has {}", promised.weights, payload.len()))
    })?;
    Ok((weights.to_vec(), state.to_vec()))
}

fn record<B: AutodiffBackend, R: Record<B>>(path: &Path, bytes: Vec<u8>, device: &B::Device) -> Result<R, TrainError> {
    let recorder = NamedMpkBytesRecorder::<FullPrecisionSettings>::default();
    Recorder::<B>::load(&recorder, bytes, device).map_err(|error| refused(path, error.to_string()))
}

impl CheckpointInfo {
    /// Refuses the checkpoint of another run.
    pub(super) fn check(&self, path: &Path, recipe: &str, order: &str) -> Result<(), TrainError> {
        if self.recipe != recipe {
            return Err(refused(path, format!("it holds a run of {}, this run is {recipe}", self.recipe)));
        }
        if self.batches_done > 0 && self.order != order {
            let why = format!(
                "it is of mid-epoch, after {} batches of {}, and this run has {order}: go on with the same batches, ranks \
                 and seed, and change them after a whole epoch",
                self.batches_done, self.order
            );
            return Err(refused(path, why));
        }
        Ok(())
    }

    /// Refuses the weights of another kind of network: it has other parts, which cannot even be compared.
    pub(super) fn check_network(&self, path: &Path, recipe: &str) -> Result<(), TrainError> {
        let network = |recipe: &str| recipe.split("-width").next().map(str::to_owned).unwrap_or_default();
        let (theirs, ours) = (network(&self.recipe), network(recipe));
        if theirs == ours {
            return Ok(());
        }
        Err(refused(path, format!("its weights are those of another network: {theirs}, and this run's is {ours}")))
    }

    /// As words of the first line. Numbers are written so that they are read back to the bit.
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
            "epochs={epochs_done} batches={batches_done} steps={steps} images={images} loss_sum={loss_sum:?} right={right} \
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

/// What the first line promises of the rest.
struct Promised {
    /// How many of the bytes are weights.
    weights: usize,
    bytes: usize,
    sum: u64,
}

/// The first line's meaning, what it promises, and the rest.
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
    parsed.ok_or_else(|| refused(path, format!("it does not start with '{MAGIC}' and what belongs there")))
}

pub(super) fn refused(path: &Path, why: String) -> TrainError {
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
        for bytes in [&b""[..], b"\n", b"\xff\xfe\n", b"feedstock-checkpoint 1 epochs=1\n", &[b'a'; 9000]] {
            fs::write(&path, bytes).expect("written");
            let error = inspect(&path).expect_err("not a checkpoint").to_string();
            assert!(error.contains("run.ckpt") && error.contains(MAGIC), "{error}");
        }
    }

    #[test]
    fn the_first_line_says_what_is_inside() {
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
