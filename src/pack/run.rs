//! Run of a packing: worker threads that pack one shard at a time, progress, interruption. The budget determines the
//! number of workers; the first error ends the run.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use super::assignment::{ShardAssignment, key};
use super::budget::{PackBudget, Requirements, SKIPPED_BYTES_MAX, image_min};
use super::checkpoint::{ShardRecord, Skipped, SkippedList, Totals, check_settings, shard_name};
use super::convert::{Converter, SampleFailure, StoredSample};
use super::error::PackError;
use super::manifest;
use super::settings::{Partition, Settings};
use super::shard::{ShardWriter, hash_file};
use super::workers::run_workers;
use crate::host::HostFacts;
use crate::source::{PageCache, Source};
use crate::{ByteCount, SampleId};

/// Samples that a worker announces to the source before it reads them.
const READ_AHEAD: usize = 64;

/// Progress of a packing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Progress {
    /// Samples in the shards of this job.
    pub samples: u64,
    /// Samples done: packed, skipped, or packed by an earlier run.
    pub samples_done: u64,
    /// Samples packed by an earlier run.
    pub samples_found: u64,
    /// Samples skipped by this run.
    pub skipped: u64,
    /// Shards of this job.
    pub shards: u64,
    /// Finished shards.
    pub shards_done: u64,
    /// Bytes written by this run.
    pub bytes: u64,
    /// Number of workers.
    pub workers: usize,
}

/// Result of a packing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Samples in the finished shards of this job.
    pub samples: u64,
    /// Samples skipped by this run or an earlier one.
    pub skipped_count: u64,
    /// The first skipped samples, at most [`SKIPPED_NAMES_MAX`](super::SKIPPED_NAMES_MAX).
    pub skipped: Vec<Skipped>,
    /// Finished shards of this job.
    pub shards: u64,
    /// Shards that existed before this run.
    pub shards_found: u64,
    /// Size of the finished shards, bytes.
    pub bytes: u64,
    /// Shards of the whole set.
    pub shards_of_set: u64,
    /// Number of workers.
    pub workers: usize,
    /// Peak of the RAM reserved in the ledger.
    #[serde(rename = "ram_peak_bytes")]
    pub ram_peak: ByteCount,
    /// Path of the manifest, if all shards of the set are finished.
    pub manifest: Option<PathBuf>,
    /// True if the run was stopped before its work was done.
    pub ended_early: bool,
}

struct Run<'a> {
    source: &'a dyn Source,
    settings: &'a Settings,
    dst: &'a Path,
    assignment: &'a ShardAssignment,
    budget: &'a PackBudget,
    /// Next shard of this job.
    next: AtomicU64,
    stopped: AtomicBool,
    progress: Mutex<Progress>,
    shards_found: AtomicU64,
}

/// Packs a source into tar shards at `dst`, or continues an interrupted run with the same settings.
///
/// `progress` is called about twenty times a second on the calling thread, and once at the end. `stop` is called as
/// often; once it returns true, the run ends soon: finished shards stay, and the report says so. Samples that cannot be
/// read or are not images are skipped and listed.
///
/// # Errors
/// [`PackError`], with the path and the numbers. Finished shards stay, and another run continues from there.
pub fn pack(
    source: &dyn Source,
    settings: &Settings,
    dst: &Path,
    progress: impl Fn(&Progress),
    stop: &dyn Fn() -> bool,
) -> Result<Report, PackError> {
    settings.check_ranges()?;
    let assignment = ShardAssignment::new(source, settings)?;
    let host = HostFacts::read();
    let limit = settings.ram_budget.resolve(host.memory.available, 1);
    let Partition { index, count } = settings.partition;
    let shards = (index..assignment.shard_count()).step_by(usize::try_from(count).unwrap_or(usize::MAX));
    let io = source.io_profile();
    let mut workers = settings.workers.unwrap_or(host.cpus.workers_max()).min(shards.clone().count().max(1));
    if source.blocks().is_some() {
        // Blocks are read in the order of the shards: two workers would each need others.
        workers = 1;
    } else if io.buffer_bytes > 0 {
        workers = workers.min(io.concurrency.max(1));
    }
    let report = ByteCount(SKIPPED_BYTES_MAX as u64);
    let index_bytes = ByteCount(source.index_bytes()) + ByteCount(io.buffer_bytes) + assignment.bytes(source);
    let required = Requirements {
        fixed: index_bytes + report,
        encoded_max: assignment.encoded_max,
        image_min: image_min(settings.treatment),
        workers_max: workers,
    };
    let budget = PackBudget::new(limit, &required)?;
    check_settings(source, settings, &assignment, dst)?;
    let mut total = Progress { workers: budget.workers, ..Progress::default() };
    for positions in shards.clone().map(|shard| assignment.positions(shard)) {
        total.samples += positions.end - positions.start;
        total.shards += 1;
    }
    let run = Run {
        source,
        settings,
        dst,
        assignment: &assignment,
        budget: &budget,
        next: AtomicU64::new(0),
        stopped: AtomicBool::new(false),
        progress: Mutex::new(total),
        shards_found: AtomicU64::new(0),
    };
    let tick = || {
        if stop() {
            run.stop();
        }
        let now = *run.progress();
        progress(&now);
    };
    run_workers("pack", budget.workers, &|| run.pack_shards(), &|| run.stop(), &tick)?;
    let totals = Totals::read(dst, shards)?;
    // A run that was stopped after its last shard is complete.
    let ended_early = run.is_stopped() && totals.shards < total.shards;
    let manifest = if ended_early { None } else { manifest::write(source, settings, dst, assignment.shard_count())? };
    Ok(Report {
        samples: totals.samples,
        skipped_count: totals.skipped.count,
        skipped: totals.skipped.first,
        shards: totals.shards,
        shards_found: run.shards_found.load(Ordering::SeqCst),
        bytes: totals.bytes,
        shards_of_set: assignment.shard_count(),
        workers: budget.workers,
        ram_peak: budget.ledger.report().peak,
        manifest,
        ended_early,
    })
}

impl Run<'_> {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.budget.ledger.wake();
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    fn pack_shards(&self) -> Result<(), PackError> {
        let Partition { index, count } = self.settings.partition;
        while !self.is_stopped() {
            let next = self.next.fetch_add(1, Ordering::SeqCst);
            let shard = next.checked_mul(count).and_then(|shard| shard.checked_add(index));
            let Some(shard) = shard.filter(|&shard| shard < self.assignment.shard_count()) else { break };
            self.find_or_pack(shard)?;
        }
        Ok(())
    }

    fn find_or_pack(&self, shard: u64) -> Result<(), PackError> {
        if let Some(record) = self.find(shard)? {
            let samples = record.samples + record.skipped_count;
            self.shards_found.fetch_add(1, Ordering::SeqCst);
            let mut progress = self.progress();
            progress.samples_found += samples;
            progress.samples_done += samples;
            progress.shards_done += 1;
        } else if !self.is_stopped()
            && let Some(record) = self.pack_shard(shard)?
        {
            record.write(self.dst, shard)?;
            self.progress().shards_done += 1;
        }
        Ok(())
    }

    /// Record of a shard that an earlier run has finished.
    fn find(&self, shard: u64) -> Result<Option<ShardRecord>, PackError> {
        let Some(record) = ShardRecord::read(self.dst, shard)? else { return Ok(None) };
        if !self.settings.check {
            return Ok(Some(record));
        }
        let path = self.dst.join(shard_name(shard));
        let found = std::fs::File::open(&path).and_then(|mut file| hash_file(&mut file, &|| self.is_stopped()));
        let found = found.map_err(PackError::io("read", path))?;
        Ok((found == Some((record.bytes, record.xxh3))).then_some(record))
    }

    /// Packs a shard. Returns `None` if the run was stopped.
    fn pack_shard(&self, shard: u64) -> Result<Option<ShardRecord>, PackError> {
        let Run { source, settings, assignment, budget, .. } = *self;
        let stopped = || self.is_stopped();
        let converter = Converter { source, treatment: settings.treatment, budget, stopped: &stopped };
        let mut writer = ShardWriter::create(self.dst, shard)?;
        let (mut samples, mut skipped, mut bytes) = (0, SkippedList::default(), 0);
        let positions = assignment.positions(shard);
        let mut ids = positions.clone().map(|position| assignment.sample(position)).peekable();
        let (mut ahead, mut stored) = (Vec::with_capacity(READ_AHEAD), VecDeque::new());
        for position in positions.clone() {
            if stopped() {
                return Ok(None);
            }
            if (position - positions.start).is_multiple_of(READ_AHEAD as u64) {
                self.read_ahead(position..positions.end, &mut ahead);
            }
            if stored.is_empty() {
                converter.read(&mut ids, &mut stored);
            }
            // There are as many samples as positions.
            let Some(StoredSample { id, read }) = stored.pop_front() else { break };
            match read.and_then(|read| converter.convert(id, read)) {
                Ok(packed) => {
                    let key = key(position, &source.name(id));
                    writer.add(&key, packed.extension, &packed.bytes, source.label(id))?;
                    samples += 1;
                }
                Err(SampleFailure::Skipped(cause)) => {
                    skipped.push(Skipped { name: source.name(id), cause });
                    self.progress().skipped += 1;
                }
                Err(SampleFailure::Stopped) => return Ok(None),
                Err(SampleFailure::Fatal(error)) => return Err(error),
            }
            let mut progress = self.progress();
            progress.samples_done += 1;
            progress.bytes += writer.bytes() - bytes;
            bytes = writer.bytes();
        }
        let finished = writer.finish(&stopped)?;
        let SkippedList { count: skipped_count, first: skipped, .. } = skipped;
        Ok(finished.map(|(bytes, xxh3)| ShardRecord { bytes, samples, skipped, skipped_count, xxh3 }))
    }

    /// Announces the next samples to the source, in storage order. `ahead` is a reused buffer.
    fn read_ahead(&self, positions: Range<u64>, ahead: &mut Vec<SampleId>) {
        ahead.clear();
        ahead.extend(positions.take(READ_AHEAD).map(|position| self.assignment.sample(position)));
        ahead.sort_unstable();
        self.source.read_ahead(ahead, PageCache::Keep);
    }
}
