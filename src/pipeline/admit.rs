//! Admission: walks the order, gives each sample its place in a slot and each chunk a read buffer, and waits where a
//! limit says so. This is the only stage that waits for memory, and it holds no place that it does not go on to fill.

use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded, select};
use tracing::{debug_span, trace_span};

use super::cancel::Cancelled;
use super::chunk::{Attempt, Chunk, Retry};
use super::context::RunContext;
use crate::budget::{Reservation, WaitError};
use crate::device::DeviceError;
use crate::metrics::Counters;
use crate::pool::{Part, Parts, Pending, Pool, Pooled, Reusable, Slot};
use crate::sample_error::{SampleError, Stage};
use crate::units::{ByteCount, SampleId};

/// A slot on its way to transfer, in plan order.
pub(super) struct Admitted {
    pub(super) batch: u64,
    pub(super) pending: Pending,
}

struct Admit {
    context: RunContext,
    to_read: Sender<Pooled<Chunk>>,
    to_work: Sender<Pooled<Chunk>>,
    retries: Receiver<Retry>,
}

/// Admits every batch of an epoch from `first_batch` on, and then the last retries.
pub(super) fn run(
    context: RunContext,
    first_batch: u64,
    admitted: &Sender<Result<Admitted, DeviceError>>,
    to_read: Sender<Pooled<Chunk>>,
    to_work: Sender<Pooled<Chunk>>,
) {
    // Every place in flight may come back at once.
    let places = context.engine.plan.slots * context.engine.config.batch_size.get();
    let (retry, retries) = bounded(places);
    let admit = Admit { context, to_read, to_work, retries };
    if admit.epoch(first_batch, admitted, &retry).is_ok() {
        drop(retry);
        admit.last_retries();
    }
}

impl Admit {
    fn epoch(
        &self,
        first_batch: u64,
        admitted: &Sender<Result<Admitted, DeviceError>>,
        retry: &Sender<Retry>,
    ) -> Result<(), Cancelled> {
        let RunContext { engine, epoch, .. } = &self.context;
        let order = engine.order(*epoch);
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
            let _span = debug_span!("admit", epoch, batch, samples).entered();
            let (since, held_back) = (Instant::now(), admit.waited_out_so_far());
            let (parts, pending) = match Slot::split(slot, samples as usize) {
                Ok(split) => split,
                Err(error) => {
                    let _ = admitted.send(Err(error));
                    return Err(Cancelled);
                }
            };
            // The channel has room for every slot; a failure means that transfer is gone, and so is the run.
            transfer.queue_in();
            admitted.send(Ok(Admitted { batch, pending })).map_err(|_| Cancelled)?;
            ids.clear();
            ids.extend(positions.clone().map(|position| order.at(position)));
            self.read_ahead(&ids, &mut ahead);
            let places = positions.map(|position| order.global_position(position));
            self.batch(batch, parts, places.zip(ids.iter().copied()), retry)?;
            admit.handed_over(samples);
            admit.was_busy(since.elapsed().saturating_sub(admit.waited_out_so_far() - held_back));
        }
        Ok(())
    }

    /// Announces to the source the samples that a batch will read, in the order of storage. `ahead` is reused memory.
    fn read_ahead(&self, ids: &[SampleId], ahead: &mut Vec<SampleId>) {
        let engine = &self.context.engine;
        let cache = engine.cache();
        let cached = |id: SampleId| cache.as_deref().is_some_and(|cache| cache.get(id).is_some());
        ahead.clear();
        ahead.extend(ids.iter().copied().filter(|&id| !cached(id)));
        ahead.sort_unstable();
        // A sample may come more than once.
        ahead.dedup();
        engine.config.source.read_ahead(ahead, engine.config.page_cache);
    }

    /// Groups the samples of one batch into chunks and starts them.
    fn batch(
        &self,
        batch: u64,
        parts: Parts,
        samples: impl Iterator<Item = (u64, SampleId)>,
        retry: &Sender<Retry>,
    ) -> Result<(), Cancelled> {
        let mut places = parts.zip(samples).peekable();
        while places.peek().is_some() {
            let mut chunk = self.wait_for(&self.context.engine.chunks)?;
            chunk.batch = batch;
            chunk.cache = self.context.engine.cache();
            while let Some((part, (place, id))) =
                places.next_if(|&(_, (_, id))| chunk.has_room(self.bytes_to_read(&chunk, id)))
            {
                self.add(&mut chunk, part, id, Attempt { place, original: id, count: 0 });
            }
            self.start(chunk, retry.clone())?;
        }
        Ok(())
    }

    /// Bytes that a sample takes of its chunk's read buffer.
    fn bytes_to_read(&self, chunk: &Chunk, id: SampleId) -> u64 {
        if chunk.cached(id).is_some() { 0 } else { self.context.engine.config.source.encoded_bytes(id) }
    }

    fn add(&self, chunk: &mut Chunk, part: Part, id: SampleId, attempt: Attempt) {
        let bytes = self.bytes_to_read(chunk, id);
        chunk.push(part, id, attempt, bytes);
    }

    /// Reserves the bytes that a chunk needs beyond its buffer, and sends it to the readers, or straight to the workers
    /// if there is nothing to read.
    fn start(&self, mut chunk: Pooled<Chunk>, retry: Sender<Retry>) -> Result<(), Cancelled> {
        chunk.retry = Some(retry);
        let bytes = ByteCount(chunk.len as u64);
        let oversized = match self.reserve_oversized(&chunk) {
            Ok(oversized) => oversized,
            Err(WaitError::Cancelled) => return Err(Cancelled),
            Err(WaitError::OverBudget(refused)) => {
                // Only a sample that travels alone is this large.
                chunk.fail(|| SampleError::FileOverBudget { bytes, refused: refused.clone() });
                None
            }
        };
        let len = chunk.len;
        if chunk.buffer.prepare(len, oversized).is_err() {
            chunk.fail(|| SampleError::NoMemory { stage: Stage::Read, bytes });
        }
        let Counters { read, work, .. } = &self.context.engine.counters;
        let (next, stage) = if chunk.len > 0 { (&self.to_read, read) } else { (&self.to_work, work) };
        stage.queue_in();
        // The channel has room for every chunk, so this never blocks. It fails only if every receiver has panicked.
        next.send(chunk).map_err(|_| Cancelled)
    }

    fn reserve_oversized(&self, chunk: &Chunk) -> Result<Option<Reservation>, WaitError> {
        if chunk.len <= chunk.buffer.keep_bytes() {
            return Ok(None);
        }
        let (engine, since) = (&self.context.engine, Instant::now());
        let bytes = ByteCount(chunk.len as u64);
        let reserved = engine.oversized_files.reserve_waiting(bytes, || self.context.cancel.is_cancelled());
        engine.counters.admit.waited_out(since);
        reserved.map(Some)
    }

    fn retry(&self, retry: Retry) -> Result<(), Cancelled> {
        // Not `wait_for`: further retries wait their turn, and read buffers come back without their help.
        let chunks = &self.context.engine.chunks;
        let mut chunk = select! {
            recv(chunks.free()) -> chunk => chunks.checkout(chunk.map_err(|_| Cancelled)?),
            recv(self.context.cancel.closed()) -> _ => return Err(Cancelled),
        };
        chunk.cache = self.context.engine.cache();
        let Retry { part, id, attempt, sender } = retry;
        self.add(&mut chunk, part, id, attempt);
        self.start(chunk, sender)
    }

    /// Waits for an object of a pool, and starts retries meanwhile: the slot that is waited for may be one that a retry
    /// has to complete first.
    fn wait_for<T: Reusable>(&self, pool: &Pool<T>) -> Result<Pooled<T>, Cancelled> {
        let since = Instant::now();
        loop {
            if self.context.cancel.is_cancelled() {
                return Err(Cancelled);
            }
            select! {
                recv(self.retries) -> retry => self.retry(retry.map_err(|_| Cancelled)?)?,
                recv(pool.free()) -> object => {
                    self.context.engine.counters.admit.waited_out(since);
                    return object.map(|object| pool.checkout(object)).map_err(|_| Cancelled);
                }
                recv(self.context.cancel.closed()) -> _ => return Err(Cancelled),
            }
        }
    }

    /// Starts retries until no more can come: the chunks in flight hold the senders.
    fn last_retries(&self) {
        loop {
            let retry = select! {
                recv(self.retries) -> retry => retry,
                recv(self.context.cancel.closed()) -> _ => return,
            };
            if !retry.is_ok_and(|retry| self.retry(retry).is_ok()) {
                return;
            }
        }
    }
}
