//! Work: from encoded bytes to a sample in its place, by probing, decoding and transforming; and the policy for samples
//! that cannot be used.
//!
//! Workers never wait for the ledger. The scratch for oversized images is waited for, and its holder waits for nothing
//! else. A panic in a decoder becomes a bad sample.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, select};
use tracing::{debug_span, trace_span};

use super::chunk::{Attempt, Chunk, Job, Retry};
use super::context::RunContext;
use super::engine::{Engine, RunConfig};
use crate::bad_samples::{BadSample, OnBadSample};
use crate::decode::{Header, WorkingSet};
use crate::memory::AllocError;
use crate::metrics::SampleTiming;
use crate::pool::{Pooled, Scratch};
use crate::preprocess::SamplePlan;
use crate::rng::KeyedRng;
use crate::sample_error::{SampleError, Stage};
use crate::sync::{Ordering, panic_message};
use crate::units::{ByteCount, SampleId};

/// Maximum number of substitutes for one place. With one sample in a hundred bad, ten in a row do not happen.
const SUBSTITUTES_MAX: u32 = 32;

/// In chunks of more samples, a sample takes some ten microseconds: a span for each would cost a hundredth of that, and
/// show nothing that the chunk's does not.
const SPANNED_MAX: u64 = 4;

/// Interval at which a waiting worker checks whether it is still active, or active again.
const TICK: Duration = Duration::from_millis(50);

/// Runs one worker until the run ends.
pub(super) fn run(context: &RunContext, worker: usize, work: &Receiver<Pooled<Chunk>>) {
    let RunContext { engine, cancel, .. } = context;
    while !cancel.is_cancelled() {
        if !engine.governor.is_on(worker) {
            // The channel carries nothing: this is a sleep that the end of the run cuts short.
            let _ = cancel.closed().recv_timeout(TICK);
            continue;
        }
        // There is one for each active worker, and each comes back with its worker.
        let scratch = select! {
            recv(engine.scratches.free()) -> scratch => scratch,
            recv(cancel.closed()) -> _ => return,
        };
        let Ok(scratch) = scratch else { return };
        let mut scratch = engine.scratches.checkout(scratch);
        while engine.governor.is_on(worker) {
            let since = Instant::now();
            match work.recv_timeout(TICK) {
                Ok(chunk) => {
                    engine.counters.work.waited_in(since);
                    engine.counters.work.queue_out();
                    work_chunk(context, &mut scratch, chunk);
                }
                Err(RecvTimeoutError::Timeout) => engine.counters.work.waited_in(since),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

fn work_chunk(context: &RunContext, scratch: &mut Scratch, mut chunk: Pooled<Chunk>) {
    let counters = &context.engine.counters;
    let samples = chunk.jobs.len() as u64;
    let _span = debug_span!("work", batch = chunk.batch, samples).entered();
    let since = Instant::now();
    let mut begun = since;
    let retry = chunk.retry.take();
    let mut jobs = std::mem::take(&mut chunk.jobs);
    for mut job in jobs.drain(..) {
        if context.cancel.is_cancelled() {
            continue;
        }
        let result = match job.failed.take() {
            Some(failed) => Err(failed),
            None => {
                let _span = (samples <= SPANNED_MAX).then(|| trace_span!("sample", id = job.id.0).entered());
                let encoded = chunk.encoded(&job);
                catch_unwind(AssertUnwindSafe(|| preprocess(context, scratch, encoded, &mut job)))
                    .unwrap_or_else(|panic| Err(SampleError::Panic { message: panic_message(&*panic).to_owned() }))
            }
        };
        let ended = Instant::now();
        let Job { id, since, read, .. } = job;
        let work = ended - begun;
        counters.latency.work_queue.add(begun - since, 1);
        counters.latency.work.add(work, 1);
        counters.work_times.add(work);
        counters.slowest.add(SampleTiming { id, read, work });
        begun = ended;
        let label = context.engine.config.source.label(job.id);
        match result {
            Ok(()) => job.part.complete(job.id, label),
            Err(error) => apply_policy(context, job, error, label, retry.as_ref()),
        }
    }
    // The list goes back with the chunk, so that it is allocated once.
    chunk.jobs = jobs;
    counters.work.worked(samples, since);
}

/// Decodes and transforms one sample into its place.
fn preprocess(context: &RunContext, scratch: &mut Scratch, encoded: &[u8], job: &mut Job) -> Result<(), SampleError> {
    let Engine { config, oversized_scratch, counters, bad_samples, plan: sizes, .. } = &*context.engine;
    let id = job.id;
    let key = (config.sampling.seed_at(config.seed, job.attempt.place), context.epoch, id);
    let plan = SamplePlan::new(encoded, &config.limits, &config.decoding, &*config.transform, key)?;
    let WorkingSet { buffer_bytes, codec_bytes } = plan.working_set();
    let needed = ByteCount(buffer_bytes) + ByteCount(codec_bytes);
    let no_memory = |_: AllocError| SampleError::NoMemory { stage: Stage::Decode, bytes: needed };
    let mut run = |scratch: &mut Scratch| {
        let memory = scratch.memory_for(buffer_bytes, codec_bytes).map_err(no_memory)?;
        plan.run(encoded, memory, job.part.bytes_mut())
    };
    let warnings = if needed <= scratch.bytes_max() {
        run(scratch)?
    } else {
        counters.oversized_samples.fetch_add(1, Ordering::Relaxed);
        let turn = oversized_scratch.wait_for_turn();
        let held = turn.reserve(needed).map_err(|refused| {
            let Header { format, width, height, .. } = *plan.header();
            let (available, budget) = (refused.available, sizes.budget);
            SampleError::ImageOverBudget { format, width, height, needed, available, budget }
        })?;
        // Dropped before the turn is.
        let mut own = Scratch::new(held).map_err(no_memory)?;
        run(&mut own)?
    };
    if warnings > 0 {
        counters.damage_accepted.fetch_add(1, Ordering::Relaxed);
        bad_samples.add_damaged(id, warnings, || config.source.name(id));
    }
    Ok(())
}

/// Applies the policy to a sample that cannot be used.
fn apply_policy(context: &RunContext, job: Job, error: SampleError, label: u32, retry: Option<&Sender<Retry>>) {
    let config = &context.engine.config;
    let Job { part, id, attempt, .. } = job;
    let bad = BadSample::new(id, config.source.name(id), error);
    part.note_bad(bad.clone());
    match (config.on_bad_sample, retry) {
        (OnBadSample::Mask, _) => part.mask(id, label),
        (OnBadSample::Substitute, Some(sender)) if attempt.count < SUBSTITUTES_MAX => {
            let attempt = Attempt { count: attempt.count + 1, ..attempt };
            let id = substitute(context, attempt);
            // The channel has room for every part, so this never blocks. It fails if the run is over, and the part with
            // it.
            let _ = sender.send(Retry { part, id, attempt, sender: sender.clone() });
        }
        _ => part.fail(bad, label),
    }
}

/// The substitute for a bad sample: a pure function of seed, epoch, the place's own sample and the attempt (and of the
/// place, where a sample may have several). Where samples come in blocks it is one of the same block, which is at hand.
fn substitute(context: &RunContext, attempt: Attempt) -> SampleId {
    /// Separates this random stream from the transform's.
    const SALT: u64 = 0x5B_57;
    let RunConfig { source, sampling, seed, .. } = &context.engine.config;
    let Attempt { place, original, count } = attempt;
    let salt = SALT + (u64::from(count) << 16);
    let mut rng = KeyedRng::new(sampling.seed_at(*seed, place), context.epoch, original, salt);
    match source.blocks() {
        Some(blocks) => {
            let among = blocks.samples(blocks.block_of(original));
            SampleId(among.start + rng.below(among.end - among.start))
        }
        None => sampling.substitute(original, source.label(original), count, (*seed, context.epoch), &mut rng),
    }
}
