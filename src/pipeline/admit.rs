//! Owns the only place where samples come in: it walks the order, gives each sample its place in a slot and each chunk
//! a read buffer, and waits where a limit says so. The one stage that waits for memory.
//! It must never read or decode, and never hold a place that it does not go on to fill.

use std::ops::Range;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded, select};

use super::{Epoch, read};
use crate::budget::WaitError;
use crate::plan::{CHUNK_SAMPLES_MAX, CHUNK_TARGET_BYTES, ENCODED_BYTES_MAX};
use crate::pool::{Lent, Part, Parts, Pending, ReadBuffer, Recycle, Ring, fill};
use crate::quarantine::Stage;
use crate::units::{ByteCount, KeyedRng, SampleId};

/// Consecutive samples of one batch that are read into one buffer and decoded by one worker. Large samples travel alone.
pub(crate) struct Chunk {
    pub(super) buffer: ReadBuffer,
    pub(super) jobs: Vec<Job>,
    /// The way back for places whose sample turned out bad. Held by chunks under way and nobody else, so that admit
    /// knows when no more can come.
    pub(super) retry: Option<Sender<Retry>>,
}

/// One sample of a chunk.
pub(super) struct Job {
    pub(super) part: Part,
    pub(super) id: SampleId,
    pub(super) attempt: Attempt,
    /// Where its bytes are in the chunk's buffer.
    pub(super) range: Range<usize>,
    /// What went wrong on the way here.
    pub(super) failed: Option<(Stage, String)>,
}

/// Which sample a place was meant for, and how many have been tried in its stead.
#[derive(Clone, Copy)]
pub(super) struct Attempt {
    pub(super) original: SampleId,
    pub(super) count: u32,
}

/// A place whose sample is to be replaced.
pub(super) struct Retry {
    pub(super) part: Part,
    pub(super) id: SampleId,
    pub(super) attempt: Attempt,
    /// The chunk's own way back, handed on to the next one.
    pub(super) sender: Sender<Retry>,
}

/// A slot on its way to transfer, in plan order.
pub(super) struct Admitted {
    pub(super) batch: u64,
    pub(super) pending: Pending,
}

impl Recycle for Chunk {
    fn recycle(&mut self) {
        self.jobs.clear();
        self.retry = None;
        self.buffer.release();
    }
}

impl Chunk {
    pub(crate) fn new(buffer: ReadBuffer) -> Self {
        Chunk { buffer, jobs: Vec::with_capacity(CHUNK_SAMPLES_MAX), retry: None }
    }
}

/// The run was called off.
struct Off;

struct Admit {
    run: Epoch,
    to_work: Sender<Lent<Chunk>>,
    retries: Receiver<Retry>,
}

pub(super) fn run(epoch: Epoch, first_batch: u64, admitted: &Sender<Admitted>, to_work: Sender<Lent<Chunk>>) {
    // Every place under way may come back at once.
    let places = epoch.engine.plan.slots * epoch.engine.recipe.batch_size.get();
    let (retry, retries) = bounded(places);
    let admit = Admit { run: epoch, to_work, retries };
    if admit.epoch(first_batch, admitted, &retry).is_ok() {
        drop(retry);
        admit.last_retries();
    }
}

impl Admit {
    fn epoch(&self, first_batch: u64, admitted: &Sender<Admitted>, retry: &Sender<Retry>) -> Result<(), Off> {
        let engine = &self.run.engine;
        let order = engine.order(self.run.epoch);
        let batches = engine.batches();
        for batch in first_batch..batches.len() {
            let positions = batches.positions(batch);
            let slot = self.wait_for(&engine.slots)?;
            let (parts, pending) = fill(slot, (positions.end - positions.start) as usize);
            // There are as many places as slots; a failure means that transfer is gone, and so is the run.
            admitted.send(Admitted { batch, pending }).map_err(|_| Off)?;
            self.batch(parts, positions.map(|position| order.at(position)), retry)?;
        }
        Ok(())
    }

    /// Groups the samples of one batch into chunks and starts them.
    fn batch(&self, parts: Parts, ids: impl Iterator<Item = SampleId>, retry: &Sender<Retry>) -> Result<(), Off> {
        let source = &*self.run.engine.recipe.source;
        let mut places = parts.zip(ids).map(|(part, id)| (part, id, source.encoded_bytes(id))).peekable();
        while places.peek().is_some() {
            let mut chunk = self.wait_for(&self.run.engine.chunks)?;
            let mut len = 0;
            while let Some((part, id, bytes)) = places.next_if(|&(_, _, bytes)| {
                let room = chunk.jobs.len() < CHUNK_SAMPLES_MAX && len + bytes <= CHUNK_TARGET_BYTES;
                chunk.jobs.is_empty() || room
            }) {
                chunk.jobs.push(self.job(part, id, Attempt { original: id, count: 0 }, bytes, &mut len));
            }
            self.start(chunk, len, retry.clone())?;
        }
        Ok(())
    }

    fn job(&self, part: Part, id: SampleId, attempt: Attempt, bytes: u64, len: &mut u64) -> Job {
        if bytes > ENCODED_BYTES_MAX {
            let cause = format!("the file is {}; {} is the most", ByteCount(bytes), ByteCount(ENCODED_BYTES_MAX));
            return Job { part, id, attempt, range: 0..0, failed: Some((Stage::Admit, cause)) };
        }
        let range = *len as usize..(*len + bytes) as usize;
        *len += bytes;
        Job { part, id, attempt, range, failed: None }
    }

    /// Reserves what a chunk needs beyond its buffer, and hands it to the readers.
    fn start(&self, mut chunk: Lent<Chunk>, len: u64, retry: Sender<Retry>) -> Result<(), Off> {
        let engine = &self.run.engine;
        chunk.retry = Some(retry);
        let giant = if len > chunk.buffer.keep_bytes() as u64 {
            let since = Instant::now();
            let reserved = engine.giant_files.reserve_waiting(ByteCount(len), || self.run.cancel.is_cancelled());
            engine.counters.admit.waited_out(since);
            match reserved {
                Ok(reservation) => Some(reservation),
                Err(WaitError::Cancelled) => return Err(Off),
                Err(WaitError::OverBudget(refused)) => {
                    // Only a sample that travels alone is this large.
                    for job in &mut chunk.jobs {
                        job.failed.get_or_insert_with(|| (Stage::Admit, refused.to_string()));
                        job.range = 0..0;
                    }
                    None
                }
            }
        } else {
            None
        };
        let len = chunk.jobs.iter().map(|job| job.range.end).max().unwrap_or(0);
        if let Err(error) = chunk.buffer.prepare(len, giant) {
            for job in &mut chunk.jobs {
                job.range = 0..0;
                job.failed.get_or_insert_with(|| (Stage::Read, error.to_string()));
            }
        }
        read::start(&self.run, chunk, self.to_work.clone());
        Ok(())
    }

    fn retry(&self, retry: Retry) -> Result<(), Off> {
        let source = &*self.run.engine.recipe.source;
        // Not `wait_for`: further retries wait their turn, and read buffers come back without their help.
        let chunks = &self.run.engine.chunks;
        let mut chunk = select! {
            recv(chunks.free()) -> chunk => chunks.lend(chunk.map_err(|_| Off)?),
            recv(self.run.cancel.closed()) -> _ => return Err(Off),
        };
        let mut len = 0;
        let Retry { part, id, attempt, sender } = retry;
        chunk.jobs.push(self.job(part, id, attempt, source.encoded_bytes(id), &mut len));
        self.start(chunk, len, sender)
    }

    /// Waits for a thing that circulates, and starts retries meanwhile: the slot that is waited for may be one that a
    /// retry has to complete first.
    fn wait_for<T: Recycle>(&self, ring: &Ring<T>) -> Result<Lent<T>, Off> {
        let since = Instant::now();
        loop {
            if self.run.cancel.is_cancelled() {
                return Err(Off);
            }
            select! {
                recv(self.retries) -> retry => self.retry(retry.map_err(|_| Off)?)?,
                recv(ring.free()) -> thing => {
                    self.run.engine.counters.admit.waited_out(since);
                    return thing.map(|thing| ring.lend(thing)).map_err(|_| Off);
                }
                recv(self.run.cancel.closed()) -> _ => return Err(Off),
            }
        }
    }

    /// Starts what still comes back. The chunks under way hold the senders: with the last of them gone, nothing can.
    fn last_retries(&self) {
        loop {
            let retry = select! {
                recv(self.retries) -> retry => retry,
                recv(self.run.cancel.closed()) -> _ => return,
            };
            if retry.is_ok_and(|retry| self.retry(retry).is_ok()) {
                continue;
            }
            return;
        }
    }
}

/// The sample that takes the place of a bad one: a pure function of seed, epoch, the place's own sample and the attempt.
pub(super) fn substitute(run: &Epoch, attempt: Attempt) -> SampleId {
    /// Tells this use of the stream from the transform's.
    const SALT: u64 = 0x5B_57;
    let recipe = &run.engine.recipe;
    let salt = SALT + (u64::from(attempt.count) << 16);
    let mut rng = KeyedRng::new(recipe.seed, run.epoch, attempt.original, salt);
    SampleId(rng.below(recipe.source.len()))
}
