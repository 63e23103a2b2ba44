//! Owns the step from a chunk's place in the source to its encoded bytes in a read buffer. Reads run on the blocking
//! threads of a tokio runtime; how many are under way is bounded by those threads and by the buffers in circulation.
//! Small files are kept in the cache on the way, where the plan has one.
//! It must never allocate payload: the buffer is there before the read begins.

use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};
use tracing::debug_span;

use super::Epoch;
use super::admit::{Chunk, Encoded};
use crate::pool::Lent;
use crate::quarantine::Stage;
use crate::sync::Ordering;

/// Starts the reading threads of a run: as many as the plan says, each with a chunk at a time. They end when no more
/// chunks come.
pub(super) fn start(run: &Epoch, to_read: &Receiver<Lent<Chunk>>, to_work: &Sender<Lent<Chunk>>) {
    let Some(readers) = &run.engine.readers else { return };
    for _ in 0..run.engine.plan.read_threads {
        let (run, to_read, to_work) = (run.clone(), to_read.clone(), to_work.clone());
        readers.spawn_blocking(move || read_all(&run, &to_read, &to_work));
    }
}

fn read_all(run: &Epoch, to_read: &Receiver<Lent<Chunk>>, to_work: &Sender<Lent<Chunk>>) {
    let counters = &run.engine.counters.read;
    loop {
        let since = Instant::now();
        let Ok(mut chunk) = to_read.recv() else { return };
        counters.waited_in(since);
        counters.queue_out();
        if !run.cancel.is_cancelled() {
            read(run, &mut chunk);
        }
        let since = Instant::now();
        run.engine.counters.work.queue_in();
        // As many places as chunks: this blocks on nothing. It fails only when every worker has died.
        if to_work.send(chunk).is_err() {
            return;
        }
        counters.waited_out(since);
    }
}

fn read(run: &Epoch, chunk: &mut Chunk) {
    let (source, counters) = (&run.engine.recipe.source, &run.engine.counters);
    let _span = debug_span!("read", batch = chunk.batch, samples = chunk.jobs.len()).entered();
    let since = Instant::now();
    let mut begun = since;
    let bytes = chunk.buffer.bytes_mut();
    let (mut samples, mut read_bytes) = (0, 0);
    for job in &mut chunk.jobs {
        let (None, Encoded::Buffered(range)) = (&job.failed, &job.encoded) else { continue };
        let into = &mut bytes[range.clone()];
        match source.read_into(job.id, into) {
            Ok(()) => {
                samples += 1;
                read_bytes += into.len() as u64;
            }
            Err(error) => job.failed = Some((Stage::Read, error.to_string())),
        }
        let over = Instant::now();
        counters.journey.read_queue.add(begun - job.since, 1);
        job.read = over - begun;
        counters.journey.read.add(job.read, 1);
        counters.read_times.add(job.read);
        (begun, job.since) = (over, over);
    }
    if let Some(cache) = &chunk.cache {
        let read = chunk.jobs.iter().filter_map(|job| match (&job.failed, &job.encoded) {
            (None, Encoded::Buffered(range)) => Some((job.id, range.clone())),
            _ => None,
        });
        cache.keep(bytes, read);
    }
    counters.encoded_bytes.fetch_add(read_bytes, Ordering::Relaxed);
    counters.read.worked(samples, since);
}
