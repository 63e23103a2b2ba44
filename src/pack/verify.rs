//! Verification of a packed set: every shard against the manifest, and every member. Nothing is changed, and of a
//! member only a part is held in memory.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use xxhash_rust::xxh3::Xxh3;

use super::budget::BUFFER_BYTES;
use super::error::PackError;
use super::manifest::{Manifest, ShardEntry};
use super::shard_check::ShardChecker;
use super::workers::run_workers;
use crate::host::HostFacts;

/// Maximum number of problems that are listed. The count is always complete.
const PROBLEMS_MAX: usize = 1000;

/// Settings of [`verify`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifySettings {
    /// Reads the headers of images, too. Default: false.
    pub image_headers: bool,
    /// Maximum number of worker threads, each with one shard and up to 32 MiB. Default: `None`, the number of cores.
    pub workers: Option<usize>,
}

/// Kind of a problem with a file of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ProblemKind {
    /// The manifest names the file, and it does not exist.
    Missing,
    /// The file exists, and the manifest does not name it.
    Additional,
    /// The file or a part of it differs from the manifest, or is invalid.
    Damaged,
}

/// Problem with a file of a set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[non_exhaustive]
pub struct Problem {
    /// File name.
    pub file: String,
    /// Kind of the problem.
    pub kind: ProblemKind,
    /// Description.
    pub cause: String,
}

/// Progress of a verification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct VerifyProgress {
    /// Shards in the manifest.
    pub shards: u64,
    /// Shards verified.
    pub shards_done: u64,
    /// Size of the shards by the manifest, bytes.
    pub bytes: u64,
    /// Bytes read.
    pub bytes_done: u64,
    /// Samples found.
    pub samples_done: u64,
    /// Problems found.
    pub problems: u64,
}

/// Result of a verification.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Verification {
    /// Shards verified.
    pub shards: u64,
    /// Samples in them.
    pub samples: u64,
    /// Bytes read.
    pub bytes: u64,
    /// The first thousand problems, sorted by file.
    pub problems: Vec<Problem>,
    /// Number of all problems.
    pub problem_count: u64,
    /// True if the verification was stopped before its end.
    pub ended_early: bool,
}

impl ProblemKind {
    /// Name, in lower case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            ProblemKind::Missing => "missing",
            ProblemKind::Additional => "additional",
            ProblemKind::Damaged => "damaged",
        }
    }
}

impl Verification {
    /// Returns true if the verification was complete and found no problem.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.problem_count == 0 && !self.ended_early
    }
}

struct Verifier<'a> {
    dst: &'a Path,
    manifest: &'a Manifest,
    images: bool,
    next: AtomicUsize,
    stopped: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    progress: VerifyProgress,
    problems: Vec<Problem>,
}

/// Checks a packed set against its manifest: missing and additional shards, size and hash of each shard, its members
/// and their number, and the checksums of compressed members.
///
/// `progress` is called about twenty times a second on the calling thread, and once at the end; `stop` is called as
/// often, and ends the verification once it returns true.
///
/// # Errors
/// [`PackError`] if there is no manifest, it cannot be parsed, or the folder cannot be read. Problems with shards are
/// not errors but entries of [`Verification::problems`].
pub fn verify(
    dst: &Path,
    settings: &VerifySettings,
    progress: impl Fn(&VerifyProgress),
    stop: &dyn Fn() -> bool,
) -> Result<Verification, PackError> {
    if settings.workers == Some(0) {
        return Err(PackError::Config("the number of workers is 0: expected at least 1".to_owned()));
    }
    let manifest = Manifest::read(dst)?;
    let verifier = Verifier {
        dst,
        manifest: &manifest,
        images: settings.image_headers,
        next: AtomicUsize::new(0),
        stopped: AtomicBool::new(false),
        state: Mutex::default(),
    };
    verifier.state().progress.shards = manifest.shards.len() as u64;
    verifier.state().progress.bytes = manifest.shards.iter().map(|entry| entry.bytes).sum();
    verifier.compare_names()?;
    let workers = settings.workers.unwrap_or_else(|| HostFacts::read().cpus.workers_max()).min(manifest.shards.len());
    let tick = || {
        if stop() {
            verifier.stop();
        }
        let now = verifier.state().progress;
        progress(&now);
    };
    run_workers("verify", workers, &|| verifier.check_shards(), &|| verifier.stop(), &tick)?;
    let State { progress, mut problems } = verifier.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    problems.sort();
    Ok(Verification {
        shards: progress.shards_done,
        samples: progress.samples_done,
        bytes: progress.bytes_done,
        problems,
        problem_count: progress.problems,
        ended_early: progress.shards_done < progress.shards,
    })
}

impl Verifier<'_> {
    fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks shards until there are no more.
    fn check_shards(&self) -> Result<(), PackError> {
        while !self.is_stopped() {
            let next = self.next.fetch_add(1, Ordering::SeqCst);
            let Some(entry) = self.manifest.shards.get(next) else { break };
            match self.check_shard(entry) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let cause = "the manifest names it, and it does not exist";
                    self.add_problem(&entry.file, ProblemKind::Missing, cause.to_owned());
                }
                Err(_) if self.is_stopped() => break,
                Err(error) => {
                    self.add_problem(&entry.file, ProblemKind::Damaged, format!("it cannot be read: {error}"));
                }
            }
            self.state().progress.shards_done += 1;
        }
        Ok(())
    }

    fn check_shard(&self, entry: &ShardEntry) -> io::Result<()> {
        let damaged = |cause: String| self.add_problem(&entry.file, ProblemKind::Damaged, cause);
        let file = File::open(self.dst.join(&entry.file))?;
        let reader = HashingReader { file, hash: Xxh3::new(), bytes: 0, verifier: self };
        let mut archive = tar::Archive::new(BufReader::with_capacity(BUFFER_BYTES, reader));
        let checker = ShardChecker::new(self.manifest.classes.len() as u64, self.images, &damaged);
        let samples = checker.check(&mut archive);
        self.state().progress.samples_done += samples.unwrap_or(0);
        // Bytes behind the end of the archive are part of the file.
        let mut rest = archive.into_inner();
        io::copy(&mut rest, &mut io::sink())?;
        let HashingReader { hash, bytes, .. } = rest.into_inner();
        if bytes != entry.bytes {
            damaged(format!("it has {bytes} bytes, and the manifest says {}", entry.bytes));
        } else if hash.digest128() != entry.xxh3 {
            damaged("its hash differs from the manifest's".to_owned());
        }
        if samples.is_some_and(|samples| samples != entry.samples) {
            let samples = samples.unwrap_or(0);
            damaged(format!("it has {samples} samples, and the manifest says {}", entry.samples));
        }
        Ok(())
    }

    /// Checks the totals of the manifest, and finds shards that it does not name.
    fn compare_names(&self) -> Result<(), PackError> {
        let samples: u64 = self.manifest.shards.iter().map(|entry| entry.samples).sum();
        if samples != self.manifest.samples {
            let cause = format!("it says {} samples, and its shards have {samples}", self.manifest.samples);
            self.add_problem("manifest.json", ProblemKind::Damaged, cause);
        }
        let named: BTreeSet<&str> = self.manifest.shards.iter().map(|entry| entry.file.as_str()).collect();
        for entry in fs::read_dir(self.dst).map_err(PackError::io("list", self.dst))? {
            let name = entry.map_err(PackError::io("list", self.dst))?.file_name();
            let name = name.to_string_lossy();
            if name.ends_with(".tar") && !named.contains(&*name) {
                self.add_problem(&name, ProblemKind::Additional, "the manifest does not name it".to_owned());
            }
        }
        Ok(())
    }

    fn add_problem(&self, file: &str, kind: ProblemKind, cause: String) {
        let mut state = self.state();
        state.progress.problems += 1;
        if state.problems.len() < PROBLEMS_MAX {
            state.problems.push(Problem { file: file.to_owned(), kind, cause });
        }
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }
}

/// Reader that counts and hashes a file until the verification is stopped.
struct HashingReader<'a> {
    file: File,
    hash: Xxh3,
    bytes: u64,
    verifier: &'a Verifier<'a>,
}

impl Read for HashingReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.verifier.is_stopped() {
            return Err(io::Error::other("stopped"));
        }
        let read = self.file.read(out)?;
        self.hash.update(&out[..read]);
        self.bytes += read as u64;
        self.verifier.state().progress.bytes_done += read as u64;
        Ok(read)
    }
}
