//! Reading: from a chunk's samples in the source to their encoded bytes in its read buffer.
//!
//! Reads run on the blocking threads of a tokio runtime; their number and the number of read buffers limit the reads in
//! flight. Small files are copied into the cache, if the plan has one.

use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};
use tracing::debug_span;

use super::chunk::{Chunk, Encoded, Job};
use super::context::RunContext;
use crate::pool::Pooled;
use crate::source::{SampleRead, SourceError};
use crate::sync::Ordering;

/// Starts the reading threads of a run, each with a chunk at a time. They end when no more chunks come.
pub(super) fn start(context: &RunContext, to_read: &Receiver<Pooled<Chunk>>, to_work: &Sender<Pooled<Chunk>>) {
    let Some(readers) = &context.engine.readers else { return };
    for _ in 0..context.engine.plan.read_threads {
        let (context, to_read, to_work) = (context.clone(), to_read.clone(), to_work.clone());
        readers.spawn_blocking(move || read_all(&context, &to_read, &to_work));
    }
}

fn read_all(context: &RunContext, to_read: &Receiver<Pooled<Chunk>>, to_work: &Sender<Pooled<Chunk>>) {
    let counters = &context.engine.counters.read;
    let together = context.engine.config.source.io_profile().coalesce_bytes > 0;
    loop {
        let since = Instant::now();
        let Ok(mut chunk) = to_read.recv() else { return };
        counters.waited_in(since);
        counters.queue_out();
        if !context.cancel.is_cancelled() {
            read(context, &mut chunk, together);
        }
        let since = Instant::now();
        context.engine.counters.work.queue_in();
        // The channel has room for every chunk, so this never blocks. It fails only if every worker has panicked.
        if to_work.send(chunk).is_err() {
            return;
        }
        counters.waited_out(since);
    }
}

/// Reads a chunk, by one call for all of it or by one for each sample.
fn read(context: &RunContext, chunk: &mut Chunk, together: bool) {
    let counters = &context.engine.counters;
    let _span = debug_span!("read", batch = chunk.batch, samples = chunk.jobs.len()).entered();
    let since = Instant::now();
    let done = if together { read_together(context, chunk, since) } else { read_each(context, chunk, since) };
    if let Some(cache) = &chunk.cache {
        let read = chunk.jobs.iter().filter_map(|job| match (&job.failed, &job.encoded) {
            (None, Encoded::Buffered(range)) => Some((job.id, range.clone())),
            _ => None,
        });
        cache.keep(chunk.buffer.bytes(), read);
    }
    counters.encoded_bytes.fetch_add(done.bytes, Ordering::Relaxed);
    counters.read.worked(done.samples, since);
}

/// Samples and bytes that were read.
#[derive(Default)]
struct Done {
    samples: u64,
    bytes: u64,
}

impl Done {
    /// Records the result of a read in its job and in the counters.
    fn add(
        &mut self,
        context: &RunContext,
        job: &mut Job,
        (result, len): (Result<(), SourceError>, usize),
        (begun, ended): (Instant, Instant),
    ) {
        match result {
            Ok(()) => {
                self.samples += 1;
                self.bytes += len as u64;
            }
            Err(error) => job.failed = Some(error.into()),
        }
        let counters = &context.engine.counters;
        counters.latency.read_queue.add(begun - job.since, 1);
        job.read = ended - begun;
        counters.latency.read.add(job.read, 1);
        counters.read_times.add(job.read);
        job.since = ended;
    }
}

fn read_each(context: &RunContext, chunk: &mut Chunk, since: Instant) -> Done {
    let config = &context.engine.config;
    let (mut done, mut begun) = (Done::default(), since);
    for (job, out) in chunk.unread() {
        let mut read = SampleRead::new(job.id, out).page_cache(config.page_cache);
        config.source.read_many(std::slice::from_mut(&mut read));
        let ended = Instant::now();
        done.add(context, job, (read.result, read.out.len()), (begun, ended));
        begun = ended;
    }
    done
}

fn read_together(context: &RunContext, chunk: &mut Chunk, since: Instant) -> Done {
    let config = &context.engine.config;
    let unread = chunk.unread().map(|(job, out)| {
        let read = SampleRead::new(job.id, out).page_cache(config.page_cache);
        (job, read)
    });
    let (mut jobs, mut reads): (Vec<_>, Vec<_>) = unread.unzip();
    config.source.read_many(&mut reads);
    let (mut done, ended) = (Done::default(), Instant::now());
    for (job, read) in jobs.iter_mut().zip(reads) {
        done.add(context, job, (read.result, read.out.len()), (since, ended));
    }
    done
}
