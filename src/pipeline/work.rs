//! Owns the step from encoded bytes to a sample in its place: probe, decode, transform, and what is done about a sample
//! that cannot be used.
//! It must never wait for memory (the jumbo lane is waited for, and its holder waits for nothing), and a panic in a
//! decoder must never get past it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, select};
use tracing::{debug_span, trace_span};

use super::admit::{Attempt, Chunk, Job, Retry, substitute};
use super::{Engine, Epoch};
use crate::decode::{Header, WorkingSet};
use crate::metrics::Taken;
use crate::pool::{JumboError, Lent, Scratch, Shown};
use crate::quarantine::{BadSample, OnBadSample, Stage};
use crate::sync::Ordering;
use crate::units::ByteCount;

/// How many samples are tried for one place. With one sample in a hundred bad, ten in a row do not happen.
const SUBSTITUTES_MAX: u32 = 32;

/// In chunks of more, a sample takes some ten microseconds: a span for each would cost a hundredth of that, and show nothing
/// that the chunk's does not.
const SPANNED_MAX: u64 = 4;

/// How often a worker that waits looks whether it is still wanted, or wanted again.
const LOOK_UP: Duration = Duration::from_millis(50);

pub(super) fn run(run: &Epoch, worker: usize, work: &Receiver<Lent<Chunk>>) {
    let engine = &run.engine;
    while !run.cancel.is_cancelled() {
        if !engine.governor.is_on(worker) {
            // Nothing ever comes through this channel: it is the time-out, or the end.
            let _ = run.cancel.closed().recv_timeout(LOOK_UP);
            continue;
        }
        // As many as workers that are on, and each comes back with its worker.
        let scratch = select! {
            recv(engine.scratches.free()) -> scratch => scratch,
            recv(run.cancel.closed()) -> _ => return,
        };
        let Ok(scratch) = scratch else { return };
        let mut scratch = engine.scratches.lend(scratch);
        while engine.governor.is_on(worker) {
            let since = Instant::now();
            match work.recv_timeout(LOOK_UP) {
                Ok(chunk) => {
                    engine.counters.work.waited_in(since);
                    engine.counters.work.queue_out();
                    work_chunk(run, &mut scratch, chunk);
                }
                Err(RecvTimeoutError::Timeout) => engine.counters.work.waited_in(since),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

fn work_chunk(run: &Epoch, scratch: &mut Scratch, mut chunk: Lent<Chunk>) {
    let counters = &run.engine.counters;
    let samples = chunk.jobs.len() as u64;
    let _span = debug_span!("work", batch = chunk.batch, samples).entered();
    let since = Instant::now();
    let mut begun = since;
    let retry = chunk.retry.take();
    let mut jobs = std::mem::take(&mut chunk.jobs);
    for mut job in jobs.drain(..) {
        if run.cancel.is_cancelled() {
            continue;
        }
        let done = match job.failed.take() {
            Some(failed) => Err(failed),
            None => {
                let _span = (samples <= SPANNED_MAX).then(|| trace_span!("sample", id = job.id.0).entered());
                let encoded = chunk.encoded(&job);
                catch_unwind(AssertUnwindSafe(|| sample(run, scratch, encoded, &mut job)))
                    .unwrap_or_else(|panic| Err((Stage::Decode, format!("the decoder panicked: {}", message(&*panic)))))
            }
        };
        let over = Instant::now();
        let Job { id, since, read, .. } = job;
        let work = over - begun;
        counters.journey.work_queue.add(begun - since, 1);
        counters.journey.work.add(work, 1);
        counters.work_times.add(work);
        counters.slowest.add(Taken { id, read, work });
        begun = over;
        let label = run.engine.recipe.source.label(job.id);
        match done {
            Ok(()) => job.part.complete(job.id, label),
            Err((stage, cause)) => bad(run, job, stage, cause, label, retry.as_ref()),
        }
    }
    // The list goes back with the chunk, so that it is allocated once.
    chunk.jobs = jobs;
    counters.work.worked(samples, since);
}

/// Decodes and transforms one sample into its place.
fn sample(run: &Epoch, scratch: &mut Scratch, encoded: &[u8], job: &mut Job) -> Result<(), (Stage, String)> {
    let Engine { recipe, jumbo, counters, quarantine, .. } = &*run.engine;
    let id = job.id;
    let key = (recipe.sampling.seed_at(recipe.seed, job.attempt.place), run.epoch, id);
    let shown = Shown::of(encoded, &recipe.limits, &recipe.decoding, &*recipe.transform, key)?;
    let WorkingSet { pixel_bytes, codec_bytes } = shown.working_set();
    let needed = ByteCount(pixel_bytes) + ByteCount(codec_bytes);
    let note_damage = |warnings: u32| {
        if warnings > 0 {
            counters.damage_accepted.fetch_add(1, Ordering::Relaxed);
            quarantine.note_damage(id, warnings, || recipe.source.name(id));
        }
    };
    if needed <= scratch.bytes_max() {
        return scratch.fill(encoded, &shown, job.part.bytes_mut()).map(note_damage);
    }
    counters.jumbo_samples.fetch_add(1, Ordering::Relaxed);
    jumbo.run(needed, |scratch| scratch.fill(encoded, &shown, job.part.bytes_mut()).map(note_damage)).unwrap_or_else(
        |error| {
            let Header { format, width, height, .. } = shown.header();
            let cause = match error {
                JumboError::Memory(error) => error.to_string(),
                JumboError::OverBudget(refused) => format!(
                    "decoding {format} of {width}x{height} takes {needed}, and the budget of {} leaves {} for such a \
                     picture; a budget larger by {} would hold it",
                    run.engine.plan.budget,
                    refused.available,
                    needed.saturating_sub(refused.available)
                ),
            };
            Err((Stage::Admit, cause))
        },
    )
}

/// Does what the policy says about a sample that cannot be used.
fn bad(run: &Epoch, job: Job, stage: Stage, cause: String, label: u32, retry: Option<&Sender<Retry>>) {
    let recipe = &run.engine.recipe;
    let Job { part, id, attempt, .. } = job;
    let bad = BadSample { id, path: recipe.source.name(id), stage, cause };
    part.note_bad(bad.clone());
    match (recipe.on_bad_sample, retry) {
        (OnBadSample::Mask, _) => part.mask(id, label),
        (OnBadSample::Substitute, Some(sender)) if attempt.count < SUBSTITUTES_MAX => {
            let attempt = Attempt { count: attempt.count + 1, ..attempt };
            let id = substitute(run, attempt);
            // As many places as there are parts: this cannot block. It fails when the run is over, and the part with it.
            let _ = sender.send(Retry { part, id, attempt, sender: sender.clone() });
        }
        _ => part.fail(bad, label),
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("?")
}
