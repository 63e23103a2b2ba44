//! Owns the only place where samples come in: it walks the order, gives each sample its place in a slot and each chunk
//! a read buffer, and waits where a limit says so. The one stage that waits for memory.
//! It must never read or decode, and never hold a place that it does not go on to fill.

use std::ops::Range;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};
use tracing::{debug_span, trace_span};

use super::{Epoch, Recipe};
use crate::budget::{Reservation, WaitError};
use crate::device::DeviceError;
use crate::metrics::Counters;
use crate::plan::{CHUNK_SAMPLES_MAX, CHUNK_TARGET_BYTES, ENCODED_BYTES_MAX};
use crate::pool::{EncodedCache, Lent, Part, Parts, Pending, ReadBuffer, Recycle, Ring, fill};
use crate::quarantine::Stage;
use crate::sync::Arc;
use crate::units::{ByteCount, KeyedRng, SampleId};

/// Consecutive samples of one batch that are read into one buffer and decoded by one worker. Large samples travel alone.
pub(crate) struct Chunk {
    pub(super) batch: u64,
    pub(super) buffer: ReadBuffer,
    /// Bytes of the buffer that its samples take.
    len: usize,
    /// Where samples of earlier epochs may be; held here so that they stay for as long as the chunk needs them.
    pub(super) cache: Option<Arc<EncodedCache>>,
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
    /// Where its bytes are.
    pub(super) encoded: Encoded,
    /// What went wrong on the way here.
    pub(super) failed: Option<(Stage, String)>,
    /// Since when it has been where it is: let in, or read.
    pub(super) since: Instant,
    /// What reading it took.
    pub(super) read: Duration,
}

/// Where the encoded bytes of a sample are, once its chunk has been read.
pub(super) enum Encoded {
    /// In the chunk's buffer.
    Buffered(Range<usize>),
    /// In the cache, since an earlier epoch.
    Cached,
}

/// Which sample a place was meant for, and how many have been tried in its stead.
#[derive(Clone, Copy)]
pub(super) struct Attempt {
    /// Its place in the whole epoch.
    pub(super) place: u64,
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
        self.cache = None;
        self.len = 0;
        self.buffer.release();
    }

    fn rest(&mut self) {
        self.buffer.rest();
    }

    fn wake(&mut self) -> Result<(), DeviceError> {
        self.buffer.wake()
    }
}

impl Chunk {
    pub(crate) fn new(buffer: ReadBuffer) -> Self {
        Chunk { batch: 0, buffer, len: 0, cache: None, jobs: Vec::with_capacity(CHUNK_SAMPLES_MAX), retry: None }
    }

    /// Whether a sample that takes this much of the buffer may join.
    fn has_room(&self, bytes: u64) -> bool {
        let fits = self.len as u64 + bytes <= CHUNK_TARGET_BYTES;
        self.jobs.is_empty() || (fits && self.jobs.len() < CHUNK_SAMPLES_MAX)
    }

    /// The jobs that have to be read, each with its memory.
    pub(super) fn unread(&mut self) -> impl Iterator<Item = (&mut Job, &mut [u8])> {
        let (mut rest, mut start) = (self.buffer.bytes_mut(), 0);
        self.jobs.iter_mut().filter_map(move |job| {
            let (None, Encoded::Buffered(range)) = (&job.failed, &job.encoded) else { return None };
            // Ranges ascend: what lies before this one is of a job that failed.
            let (_, from) = std::mem::take(&mut rest).split_at_mut(range.start - start);
            let (out, after) = from.split_at_mut(range.len());
            (rest, start) = (after, range.end);
            Some((job, out))
        })
    }

    fn cached(&self, id: SampleId) -> Option<&[u8]> {
        self.cache.as_deref()?.get(id)
    }

    /// The encoded bytes of a sample that has not failed.
    pub(super) fn encoded(&self, job: &Job) -> &[u8] {
        match &job.encoded {
            Encoded::Buffered(range) => &self.buffer.bytes()[range.clone()],
            // What is cached stays, and this is the cache that it was found in.
            Encoded::Cached => self.cached(job.id).unwrap_or_default(),
        }
    }

    /// Nothing of this chunk can be read.
    fn fail(&mut self, stage: Stage, cause: &str) {
        self.len = 0;
        for job in &mut self.jobs {
            if matches!(job.encoded, Encoded::Buffered(_)) {
                job.failed.get_or_insert_with(|| (stage, cause.to_owned()));
            }
        }
    }
}

/// The run was called off.
struct Off;

struct Admit {
    run: Epoch,
    to_read: Sender<Lent<Chunk>>,
    to_work: Sender<Lent<Chunk>>,
    retries: Receiver<Retry>,
}

pub(super) fn run(
    epoch: Epoch,
    first_batch: u64,
    admitted: &Sender<Admitted>,
    to_read: Sender<Lent<Chunk>>,
    to_work: Sender<Lent<Chunk>>,
) {
    // Every place under way may come back at once.
    let places = epoch.engine.plan.slots * epoch.engine.recipe.batch_size.get();
    let (retry, retries) = bounded(places);
    let admit = Admit { run: epoch, to_read, to_work, retries };
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
        let Counters { admit, transfer, .. } = &engine.counters;
        let (mut ids, mut ahead) = (Vec::new(), Vec::new());
        for batch in first_batch..batches.len() {
            let positions = batches.positions(batch);
            let samples = positions.end - positions.start;
            let slot = {
                let _span = trace_span!("wait for a slot", batch).entered();
                self.wait_for(&engine.slots)?
            };
            let _span = debug_span!("admit", epoch = self.run.epoch, batch, samples).entered();
            let (since, held_back) = (Instant::now(), admit.waited_out_so_far());
            let (parts, pending) = fill(slot, samples as usize);
            // There are as many places as slots; a failure means that transfer is gone, and so is the run.
            transfer.queue_in();
            admitted.send(Admitted { batch, pending }).map_err(|_| Off)?;
            ids.clear();
            ids.extend(positions.clone().map(|position| order.at(position)));
            self.read_ahead(&ids, &mut ahead);
            let places = positions.map(|position| order.place(position));
            self.batch(batch, parts, places.zip(ids.iter().copied()), retry)?;
            admit.handed_over(samples);
            admit.was_busy(since.elapsed().saturating_sub(admit.waited_out_so_far() - held_back));
        }
        Ok(())
    }

    /// Tells the source what a batch will have it read, in the order of storage. `ahead` is memory to do it in.
    fn read_ahead(&self, ids: &[SampleId], ahead: &mut Vec<SampleId>) {
        let engine = &self.run.engine;
        let cache = engine.cache();
        let cached = |id: SampleId| cache.as_deref().is_some_and(|cache| cache.get(id).is_some());
        ahead.clear();
        ahead.extend(ids.iter().copied().filter(|&id| !cached(id)));
        ahead.sort_unstable();
        // A sample may come more than once.
        ahead.dedup();
        engine.recipe.source.read_ahead(ahead);
    }

    /// Groups the samples of one batch into chunks and starts them.
    fn batch(
        &self,
        batch: u64,
        parts: Parts,
        samples: impl Iterator<Item = (u64, SampleId)>,
        retry: &Sender<Retry>,
    ) -> Result<(), Off> {
        let mut places = parts.zip(samples).peekable();
        while places.peek().is_some() {
            let mut chunk = self.wait_for(&self.run.engine.chunks)?;
            chunk.batch = batch;
            chunk.cache = self.run.engine.cache();
            while let Some((part, (place, id))) =
                places.next_if(|&(_, (_, id))| chunk.has_room(self.bytes_to_read(&chunk, id)))
            {
                self.add(&mut chunk, part, id, Attempt { place, original: id, count: 0 });
            }
            self.start(chunk, retry.clone())?;
        }
        Ok(())
    }

    /// What a sample takes of its chunk's read buffer.
    fn bytes_to_read(&self, chunk: &Chunk, id: SampleId) -> u64 {
        if chunk.cached(id).is_some() { 0 } else { self.run.engine.recipe.source.encoded_bytes(id) }
    }

    fn add(&self, chunk: &mut Chunk, part: Part, id: SampleId, attempt: Attempt) {
        let (mut encoded, mut failed) = (Encoded::Cached, None);
        if chunk.cached(id).is_none() {
            let bytes = self.run.engine.recipe.source.encoded_bytes(id);
            if bytes <= ENCODED_BYTES_MAX {
                encoded = Encoded::Buffered(chunk.len..chunk.len + bytes as usize);
                chunk.len += bytes as usize;
            } else {
                let most = ByteCount(ENCODED_BYTES_MAX);
                failed = Some((Stage::Admit, format!("the file is {}; {most} is the most", ByteCount(bytes))));
            }
        }
        chunk.jobs.push(Job { part, id, attempt, encoded, failed, since: Instant::now(), read: Duration::ZERO });
    }

    /// Reserves what a chunk needs beyond its buffer, and hands it to the readers, or to the workers at once where there
    /// is nothing to read.
    fn start(&self, mut chunk: Lent<Chunk>, retry: Sender<Retry>) -> Result<(), Off> {
        chunk.retry = Some(retry);
        let giant = match self.reserve_giant(&chunk) {
            Ok(giant) => giant,
            Err(WaitError::Cancelled) => return Err(Off),
            Err(WaitError::OverBudget(refused)) => {
                // Only a sample that travels alone is this large.
                chunk.fail(Stage::Admit, &refused.to_string());
                None
            }
        };
        let len = chunk.len;
        if let Err(error) = chunk.buffer.prepare(len, giant) {
            chunk.fail(Stage::Read, &error.to_string());
        }
        let Counters { read, work, .. } = &self.run.engine.counters;
        let (next, stage) = if chunk.len > 0 { (&self.to_read, read) } else { (&self.to_work, work) };
        stage.queue_in();
        // As many places as chunks, so this never blocks. It fails only when every reader or worker has died.
        next.send(chunk).map_err(|_| Off)
    }

    fn reserve_giant(&self, chunk: &Chunk) -> Result<Option<Reservation>, WaitError> {
        if chunk.len <= chunk.buffer.keep_bytes() {
            return Ok(None);
        }
        let (engine, since) = (&self.run.engine, Instant::now());
        let bytes = ByteCount(chunk.len as u64);
        let reserved = engine.giant_files.reserve_waiting(bytes, || self.run.cancel.is_cancelled());
        engine.counters.admit.waited_out(since);
        reserved.map(Some)
    }

    fn retry(&self, retry: Retry) -> Result<(), Off> {
        // Not `wait_for`: further retries wait their turn, and read buffers come back without their help.
        let chunks = &self.run.engine.chunks;
        let mut chunk = select! {
            recv(chunks.free()) -> chunk => chunks.lend(chunk.map_err(|_| Off)?),
            recv(self.run.cancel.closed()) -> _ => return Err(Off),
        };
        chunk.cache = self.run.engine.cache();
        let Retry { part, id, attempt, sender } = retry;
        self.add(&mut chunk, part, id, attempt);
        self.start(chunk, sender)
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

/// The sample that takes the place of a bad one: a pure function of seed, epoch, the place's own sample and the attempt
/// (and of the place, where a sample may have several). Where samples come in blocks it is one of the same block, which is
/// at hand.
pub(super) fn substitute(run: &Epoch, attempt: Attempt) -> SampleId {
    /// Tells this use of the stream from the transform's.
    const SALT: u64 = 0x5B_57;
    let Recipe { source, sampling, seed, .. } = &run.engine.recipe;
    let Attempt { place, original, count } = attempt;
    let salt = SALT + (u64::from(count) << 16);
    let mut rng = KeyedRng::new(sampling.seed_at(*seed, place), run.epoch, original, salt);
    match source.blocks() {
        Some(blocks) => {
            let among = blocks.samples(blocks.of(original));
            SampleId(among.start + rng.below(among.end - among.start))
        }
        None => sampling.substitute(original, source.label(original), count, (*seed, run.epoch), &mut rng),
    }
}
