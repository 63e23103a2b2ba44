//! Owns the step from a chunk's place in the source to its encoded bytes in a read buffer. Reads run on the blocking
//! threads of a tokio runtime; how many are under way is bounded by those threads and by the buffers in circulation.
//! Small files are kept in the cache on the way, where the plan has one.
//! It must never allocate payload: the buffer is there before the read begins.

use std::time::Instant;

use crossbeam_channel::Sender;

use super::Epoch;
use super::admit::{Chunk, Encoded};
use crate::pool::Lent;
use crate::quarantine::Stage;
use crate::sync::Ordering;

/// Reads a chunk in the background and passes it on to the workers.
pub(super) fn start(run: &Epoch, mut chunk: Lent<Chunk>, to_work: Sender<Lent<Chunk>>) {
    let Some(readers) = &run.engine.readers else { return };
    let run = run.clone();
    readers.spawn_blocking(move || {
        if !run.cancel.is_cancelled() {
            read(&run, &mut chunk);
        }
        let since = Instant::now();
        // As many places as chunks: this blocks on nothing. It fails only when every worker has died.
        let _ = to_work.send(chunk);
        run.engine.counters.read.waited_out(since);
    });
}

fn read(run: &Epoch, chunk: &mut Chunk) {
    let (source, counters) = (&run.engine.recipe.source, &run.engine.counters);
    let since = Instant::now();
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
