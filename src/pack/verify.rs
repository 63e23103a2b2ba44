//! Owns the verification of a packed set: every shard against the manifest, every member by itself. It must never hold
//! more than a part of a member, and never change anything.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, bounded};
use xxhash_rust::xxh3::Xxh3;

use super::PackError;
use super::budget::BUFFER_BYTES;
use super::manifest::{Entry, Manifest};
use super::member::Members;
use crate::host::HostFacts;

/// How often progress is told, and the wish to stop looked for.
const TICK: Duration = Duration::from_millis(50);
/// Most problems that are listed; their number is always told.
const PROBLEMS_MAX: usize = 1000;

/// How a set is verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifySettings {
    /// Whether the headers of pictures are read, too.
    pub pictures: bool,
    /// The most threads that verify, a shard each; none: as many as there are cores. Each takes up to 32 MiB.
    pub workers: Option<usize>,
}

/// What is wrong with a file of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The manifest names it, and it is not there.
    Missing,
    /// It is there, and the manifest does not name it.
    Additional,
    /// It is not what the manifest says, or something in it is not what it should be.
    Damaged,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file's name.
    pub file: String,
    /// What is wrong with it.
    pub fault: Fault,
    /// What exactly.
    pub cause: String,
}

/// How far a verification is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyProgress {
    /// Shards of the manifest.
    pub shards: u64,
    /// Shards that have been looked at.
    pub shards_done: u64,
    /// Their bytes, by the manifest.
    pub bytes: u64,
    /// Bytes that have been read.
    pub bytes_done: u64,
    /// Samples that have been found.
    pub samples_done: u64,
    /// Problems that have been found.
    pub problems: u64,
}

/// What a verification has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verification {
    /// Shards of the manifest that were looked at.
    pub shards: u64,
    /// Samples in them.
    pub samples: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// What is wrong, by file: the first thousand.
    pub problems: Vec<Problem>,
    /// How much is wrong.
    pub problem_count: u64,
    /// Whether it was stopped before it had seen everything.
    pub ended_early: bool,
}

impl Fault {
    /// In a word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Fault::Missing => "missing",
            Fault::Additional => "additional",
            Fault::Damaged => "damaged",
        }
    }
}

impl Verification {
    /// Whether all of it was looked at and is as it should be.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.problem_count == 0 && !self.ended_early
    }
}

struct Verifier<'a> {
    dst: &'a Path,
    manifest: &'a Manifest,
    pictures: bool,
    next: AtomicUsize,
    stopped: AtomicBool,
    bytes: AtomicU64,
    samples: AtomicU64,
    shards: AtomicU64,
    problem_count: AtomicU64,
    problems: Mutex<Vec<Problem>>,
}

/// Checks a packed set against its manifest: size and hash of each shard, its members one by one, their number, the
/// checksums of those that are compressed; and shards that are missing or too many.
///
/// `progress` is called about twenty times a second on the calling thread, and once at the end; `stop` is asked as
/// often.
///
/// # Errors
/// [`PackError`] where there is no manifest, where it cannot be understood, or the folder not be read. What is wrong
/// with shards is no error but a [`Problem`].
pub fn verify(
    dst: &Path,
    settings: &VerifySettings,
    progress: impl Fn(&VerifyProgress),
    stop: &dyn Fn() -> bool,
) -> Result<Verification, PackError> {
    if settings.workers == Some(0) {
        return Err(PackError::Config("workers is 0: one at least verifies".to_owned()));
    }
    let manifest = Manifest::read(dst)?;
    let verifier = Verifier {
        dst,
        manifest: &manifest,
        pictures: settings.pictures,
        next: AtomicUsize::new(0),
        stopped: AtomicBool::new(false),
        bytes: AtomicU64::new(0),
        samples: AtomicU64::new(0),
        shards: AtomicU64::new(0),
        problem_count: AtomicU64::new(0),
        problems: Mutex::default(),
    };
    verifier.compare_names()?;
    let workers = settings.workers.unwrap_or_else(|| HostFacts::read().cpus.workers_max());
    verifier.look_at_all(workers.min(manifest.shards.len()), &progress, stop)?;
    let at_end = verifier.progress();
    let mut problems = verifier.problems.into_inner().unwrap_or_else(PoisonError::into_inner);
    problems.sort();
    Ok(Verification {
        shards: at_end.shards_done,
        samples: at_end.samples_done,
        bytes: at_end.bytes_done,
        problems,
        problem_count: at_end.problems,
        ended_early: at_end.shards_done < at_end.shards,
    })
}

impl Verifier<'_> {
    fn look_at_all(
        &self,
        workers: usize,
        progress: &dyn Fn(&VerifyProgress),
        stop: &dyn Fn() -> bool,
    ) -> Result<(), PackError> {
        thread::scope(|scope| {
            // Nothing is sent: the channel is gone once all workers are.
            let (to_here, ends) = bounded::<()>(0);
            let mut done = Ok(());
            let mut threads = Vec::new();
            for number in 0..workers {
                let alive = to_here.clone();
                let builder = thread::Builder::new().name(format!("feedstock-verify-{number}"));
                match builder.spawn_scoped(scope, move || self.look(alive)) {
                    Ok(thread) => threads.push(thread),
                    Err(error) => {
                        done = Err(PackError::Thread(error));
                        self.stopped.store(true, Ordering::SeqCst);
                        break;
                    }
                }
            }
            drop(to_here);
            while ends.recv_timeout(TICK) != Err(RecvTimeoutError::Disconnected) {
                if stop() {
                    self.stopped.store(true, Ordering::SeqCst);
                }
                progress(&self.progress());
            }
            for thread in threads {
                if thread.join().is_err() && done.is_ok() {
                    done = Err(PackError::WorkerDied);
                }
            }
            progress(&self.progress());
            done
        })
    }

    fn progress(&self) -> VerifyProgress {
        VerifyProgress {
            shards: self.manifest.shards.len() as u64,
            shards_done: self.shards.load(Ordering::SeqCst),
            bytes: self.manifest.shards.iter().map(|entry| entry.bytes).sum(),
            bytes_done: self.bytes.load(Ordering::SeqCst),
            samples_done: self.samples.load(Ordering::SeqCst),
            problems: self.problem_count.load(Ordering::SeqCst),
        }
    }

    /// Looks at shards until there are no more; `_alive` goes when it ends.
    fn look(&self, _alive: crossbeam_channel::Sender<()>) {
        while !self.is_stopped() {
            let next = self.next.fetch_add(1, Ordering::SeqCst);
            let Some(entry) = self.manifest.shards.get(next) else { return };
            match self.look_at(entry) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.found(&entry.file, Fault::Missing, "the manifest names it, and it is not there".to_owned());
                }
                Err(_) if self.is_stopped() => return,
                Err(error) => self.found(&entry.file, Fault::Damaged, format!("it cannot be read: {error}")),
            }
            self.shards.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn look_at(&self, entry: &Entry) -> io::Result<()> {
        let damaged = |cause: String| self.found(&entry.file, Fault::Damaged, cause);
        let file = File::open(self.dst.join(&entry.file))?;
        let hashed = Hashed { file, hash: Xxh3::new(), bytes: 0, verifier: self };
        let mut archive = tar::Archive::new(BufReader::with_capacity(BUFFER_BYTES, hashed));
        let members = Members::new(self.manifest.class_count, self.pictures, &damaged);
        let samples = members.look_at(&mut archive, &self.samples);
        // What stands behind the archive's end is part of the file all the same.
        let mut rest = archive.into_inner();
        io::copy(&mut rest, &mut io::sink())?;
        let Hashed { hash, bytes, .. } = rest.into_inner();
        if bytes != entry.bytes {
            damaged(format!("it has {bytes} bytes, and the manifest says {}", entry.bytes));
        } else if hash.digest128() != entry.hash {
            damaged("its content is not what was packed: the hash is another than the manifest's".to_owned());
        }
        if samples.is_some_and(|samples| samples != entry.samples) {
            let samples = samples.unwrap_or(0);
            damaged(format!("it has {samples} samples, and the manifest says {}", entry.samples));
        }
        Ok(())
    }

    /// Finds what the manifest has wrong by itself, and shards that it does not name.
    fn compare_names(&self) -> Result<(), PackError> {
        let samples: u64 = self.manifest.shards.iter().map(|entry| entry.samples).sum();
        if samples != self.manifest.samples {
            let cause = format!("it says {} samples, and its shards have {samples}", self.manifest.samples);
            self.found("manifest.json", Fault::Damaged, cause);
        }
        let named: BTreeSet<&str> = self.manifest.shards.iter().map(|entry| entry.file.as_str()).collect();
        for entry in fs::read_dir(self.dst).map_err(PackError::io("list", self.dst))? {
            let name = entry.map_err(PackError::io("list", self.dst))?.file_name();
            let name = name.to_string_lossy();
            if name.ends_with(".tar") && !named.contains(&*name) {
                self.found(&name, Fault::Additional, "the manifest does not name it".to_owned());
            }
        }
        Ok(())
    }

    fn found(&self, file: &str, fault: Fault, cause: String) {
        self.problem_count.fetch_add(1, Ordering::SeqCst);
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        if problems.len() < PROBLEMS_MAX {
            problems.push(Problem { file: file.to_owned(), fault, cause });
        }
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }
}

/// A file whose bytes are counted and hashed as they are read, until the verification is stopped.
struct Hashed<'a> {
    file: File,
    hash: Xxh3,
    bytes: u64,
    verifier: &'a Verifier<'a>,
}

impl Read for Hashed<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.verifier.is_stopped() {
            return Err(io::Error::other("stopped"));
        }
        let read = self.file.read(out)?;
        self.hash.update(&out[..read]);
        self.bytes += read as u64;
        self.verifier.bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}
