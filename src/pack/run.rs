//! Owns a run of packing: its threads, each with a shard at a time, how far they are, and their end. It must never
//! start a worker that the budget does not hold, and never go on after the first error.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, unbounded};

use super::budget::{Accounts, Needs, SKIPPED_BYTES_MAX};
use super::cut::{Cut, key};
use super::record::{Record, Skipped, SkippedList, agree_on_settings, shard_name};
use super::sample::{Stored, Treater, Unpacked};
use super::shard::{ShardWriter, hashed};
use super::{PackError, Settings, ShardOf, manifest};
use crate::host::HostFacts;
use crate::source::{PageCache, Source};
use crate::{ByteCount, SampleId};

/// How often progress is told, and the wish to stop looked for.
const TICK: Duration = Duration::from_millis(50);

/// Samples that a worker tells the source of before it reads them.
const AHEAD: usize = 64;

/// How far a run is, of what its job has to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Samples of the job's shards.
    pub samples: u64,
    /// Samples that are done with: packed, left out, or found packed.
    pub samples_done: u64,
    /// Samples that an earlier run had packed.
    pub samples_found: u64,
    /// Samples that this run has left out.
    pub skipped: u64,
    /// The job's shards.
    pub shards: u64,
    /// Shards that are in place.
    pub shards_done: u64,
    /// Bytes that this run has written.
    pub bytes: u64,
    /// Workers.
    pub workers: usize,
}

/// What a job has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Samples in the job's shards.
    pub samples: u64,
    /// Samples that were left out, in this run or an earlier one.
    pub skipped_count: u64,
    /// The first of them.
    pub skipped: Vec<Skipped>,
    /// The job's shards that are in place.
    pub shards: u64,
    /// Those of them that were there before this run.
    pub shards_found: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Shards of the whole set.
    pub shards_of_set: u64,
    /// Workers.
    pub workers: usize,
    /// Most RAM that was held at once, by the ledger.
    pub ram_peak: ByteCount,
    /// The manifest, where all shards of the set are in place.
    pub manifest: Option<PathBuf>,
    /// Whether it was stopped before its work was done.
    pub ended_early: bool,
}

struct Run<'a> {
    source: &'a dyn Source,
    settings: &'a Settings,
    dst: &'a Path,
    cut: &'a Cut,
    accounts: &'a Accounts,
    stopped: AtomicBool,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    /// The next of the job's shards that nobody has begun.
    next: AtomicU64,
    samples_done: AtomicU64,
    samples_found: AtomicU64,
    skipped: AtomicU64,
    shards_done: AtomicU64,
    shards_found: AtomicU64,
    bytes: AtomicU64,
}

pub(super) fn run(
    source: &dyn Source,
    settings: &Settings,
    dst: &Path,
    progress: &dyn Fn(&Progress),
    stop: &dyn Fn() -> bool,
) -> Result<Report, PackError> {
    let cut = Cut::of(source, settings)?;
    let host = HostFacts::read();
    let budget = settings.ram_budget.resolve(host.memory.available, 1);
    let ShardOf { index, of } = settings.shard_of;
    let shards = (index..cut.shard_count()).step_by(usize::try_from(of).unwrap_or(usize::MAX));
    let reading = source.io_profile();
    let mut workers = settings.workers.unwrap_or(host.cpus.workers_max()).min(shards.clone().count().max(1));
    if source.blocks().is_some() {
        // Blocks come in the order of the shards: two workers would each want others.
        workers = 1;
    } else if reading.buffer_bytes > 0 {
        workers = workers.min(reading.concurrency.max(1));
    }
    let report = ByteCount(SKIPPED_BYTES_MAX as u64);
    let index_bytes = ByteCount(source.index_bytes()) + ByteCount(reading.buffer_bytes) + cut.bytes(source);
    let needs = Needs {
        fixed: index_bytes + report,
        encoded_max: cut.encoded_max,
        picture_least: Needs::picture_least(settings.treatment),
        workers_max: workers,
    };
    let accounts = Accounts::of(budget, &needs)?;
    agree_on_settings(source, settings, &cut, dst)?;
    let (stopped, counts) = (AtomicBool::new(false), Counts::default());
    let run = Run { source, settings, dst, cut: &cut, accounts: &accounts, stopped, counts };
    let total = run.total(shards.clone());
    run.work(&total, progress, stop)?;
    let sum = manifest::Sum::of(dst, shards)?;
    // Who was called off after the last shard has done it all.
    let ended_early = run.is_stopped() && sum.shards < total.shards;
    let manifest = if ended_early { None } else { manifest::write(source, settings, dst, cut.shard_count())? };
    Ok(Report {
        samples: sum.samples,
        skipped_count: sum.skipped.count,
        skipped: sum.skipped.first,
        shards: sum.shards,
        shards_found: run.counts.shards_found.load(Ordering::SeqCst),
        bytes: sum.bytes,
        shards_of_set: cut.shard_count(),
        workers: accounts.workers,
        ram_peak: accounts.ledger.report().peak,
        manifest,
        ended_early,
    })
}

impl Run<'_> {
    /// The work that there is to do.
    fn total(&self, shards: impl Iterator<Item = u64>) -> Progress {
        let mut total = Progress { workers: self.accounts.workers, ..Progress::default() };
        for shard in shards {
            let positions = self.cut.positions(shard);
            total.samples += positions.end - positions.start;
            total.shards += 1;
        }
        total
    }

    fn work(&self, total: &Progress, progress: &dyn Fn(&Progress), stop: &dyn Fn() -> bool) -> Result<(), PackError> {
        thread::scope(|scope| {
            // One word of each worker, at most.
            let (to_here, ends) = unbounded();
            let mut first = Ok(());
            let mut threads = Vec::new();
            for number in 0..self.accounts.workers {
                let end = to_here.clone();
                let started = thread::Builder::new()
                    .name(format!("feedstock-pack-{number}"))
                    .spawn_scoped(scope, move || self.pack_shards(&end));
                match started {
                    Ok(thread) => threads.push(thread),
                    Err(error) => {
                        first = Err(PackError::Thread(error));
                        self.call_off();
                        break;
                    }
                }
            }
            drop(to_here);
            loop {
                match ends.recv_timeout(TICK) {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        if first.is_ok() {
                            first = Err(error);
                        }
                        self.call_off();
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
                if stop() {
                    self.call_off();
                }
                progress(&self.counts.of(total));
            }
            for thread in threads {
                if thread.join().is_err() && first.is_ok() {
                    first = Err(PackError::WorkerDied);
                }
            }
            progress(&self.counts.of(total));
            first
        })
    }

    fn call_off(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.accounts.ledger.wake();
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    fn pack_shards(&self, end: &Sender<Result<(), PackError>>) {
        let ShardOf { index, of } = self.settings.shard_of;
        let mut done = Ok(());
        while done.is_ok() && !self.is_stopped() {
            let next = self.counts.next.fetch_add(1, Ordering::SeqCst);
            let shard = next.checked_mul(of).and_then(|shard| shard.checked_add(index));
            let Some(shard) = shard.filter(|&shard| shard < self.cut.shard_count()) else { break };
            done = self.pack_or_find(shard);
        }
        // Whoever listens does so for as long as there is a worker.
        let _ = end.send(done);
    }

    fn pack_or_find(&self, shard: u64) -> Result<(), PackError> {
        let counts = &self.counts;
        if let Some(record) = self.find(shard)? {
            let samples = record.samples + record.skipped.count;
            counts.samples_found.fetch_add(samples, Ordering::Relaxed);
            counts.samples_done.fetch_add(samples, Ordering::Relaxed);
            counts.shards_found.fetch_add(1, Ordering::SeqCst);
            counts.shards_done.fetch_add(1, Ordering::Relaxed);
        } else if !self.is_stopped()
            && let Some(record) = self.pack_one(shard)?
        {
            record.write(self.dst, shard)?;
            counts.shards_done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The record of a shard that is there and whole.
    fn find(&self, shard: u64) -> Result<Option<Record>, PackError> {
        let Some(record) = manifest::there(self.dst, shard)? else { return Ok(None) };
        if !self.settings.check {
            return Ok(Some(record));
        }
        let path = self.dst.join(shard_name(shard));
        let found = std::fs::File::open(&path).and_then(|mut file| hashed(&mut file, &|| self.is_stopped()));
        let found = found.map_err(PackError::io("read", path))?;
        Ok((found == Some((record.bytes, record.hash))).then_some(record))
    }

    /// Packs a shard; none where the run was called off.
    fn pack_one(&self, shard: u64) -> Result<Option<Record>, PackError> {
        let Run { source, settings, cut, accounts, ref counts, .. } = *self;
        let stopped = || self.is_stopped();
        let treater = Treater { source, treatment: settings.treatment, accounts, stopped: &stopped };
        let mut writer = ShardWriter::create(self.dst, shard)?;
        let (mut samples, mut skipped, mut bytes) = (0, SkippedList::default(), 0);
        let positions = cut.positions(shard);
        let mut ids = positions.clone().map(|position| cut.sample(position)).peekable();
        let (mut ahead, mut stored) = (Vec::with_capacity(AHEAD), VecDeque::new());
        for position in positions.clone() {
            if stopped() {
                return Ok(None);
            }
            if (position - positions.start).is_multiple_of(AHEAD as u64) {
                self.read_ahead(position..positions.end, &mut ahead);
            }
            if stored.is_empty() {
                treater.read(&mut ids, &mut stored);
            }
            // There are as many samples as positions.
            let Some(Stored { id, read }) = stored.pop_front() else { break };
            match read.and_then(|read| treater.treat(id, read)) {
                Ok(packed) => {
                    let key = key(position, &source.name(id));
                    writer.add(&key, packed.extension, &packed.bytes, source.label(id))?;
                    samples += 1;
                }
                Err(Unpacked::Bad(cause)) => {
                    skipped.push(Skipped { name: source.name(id), cause });
                    counts.skipped.fetch_add(1, Ordering::Relaxed);
                }
                Err(Unpacked::Stopped) => return Ok(None),
                Err(Unpacked::Failed(error)) => return Err(error),
            }
            counts.samples_done.fetch_add(1, Ordering::Relaxed);
            counts.bytes.fetch_add(writer.bytes() - bytes, Ordering::Relaxed);
            bytes = writer.bytes();
        }
        let finished = writer.finish(&stopped)?;
        Ok(finished.map(|(bytes, hash)| Record { samples, bytes, hash, skipped }))
    }

    /// Tells the source of the next samples, in the order of storage. `ahead` is memory to do it in.
    fn read_ahead(&self, positions: Range<u64>, ahead: &mut Vec<SampleId>) {
        ahead.clear();
        ahead.extend(positions.take(AHEAD).map(|position| self.cut.sample(position)));
        ahead.sort_unstable();
        self.source.read_ahead(ahead, PageCache::Keep);
    }
}

impl Counts {
    fn of(&self, total: &Progress) -> Progress {
        let now = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Progress {
            samples_done: now(&self.samples_done),
            samples_found: now(&self.samples_found),
            skipped: now(&self.skipped),
            shards_done: now(&self.shards_done),
            bytes: now(&self.bytes),
            ..*total
        }
    }
}
