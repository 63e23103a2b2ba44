//! Owns the step from a chunk's place in the source to its encoded bytes in a read buffer. Reads run on the blocking
//! threads of a tokio runtime; how many are under way is bounded by those threads and by the buffers in circulation.
//! Small files are kept in the cache on the way, where the plan has one.
//! It must never allocate payload: the buffer is there before the read begins.

use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};
use tracing::debug_span;

use super::Epoch;
use super::admit::{Chunk, Encoded, Job};
use crate::pool::Lent;
use crate::quarantine::Stage;
use crate::source::SampleRead;
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
    let together = run.engine.recipe.source.reading().together_bytes > 0;
    loop {
        let since = Instant::now();
        let Ok(mut chunk) = to_read.recv() else { return };
        counters.waited_in(since);
        counters.queue_out();
        if !run.cancel.is_cancelled() {
            read(run, &mut chunk, together);
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

/// Reads what a chunk wants, by one call for all of it or by one for each sample.
fn read(run: &Epoch, chunk: &mut Chunk, together: bool) {
    let counters = &run.engine.counters;
    let _span = debug_span!("read", batch = chunk.batch, samples = chunk.jobs.len()).entered();
    let since = Instant::now();
    let done = if together { read_together(run, chunk, since) } else { read_each(run, chunk, since) };
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

/// What was read.
#[derive(Default)]
struct Done {
    samples: u64,
    bytes: u64,
}

impl Done {
    /// Notes what came of a job.
    fn add(&mut self, run: &Epoch, job: &mut Job, read: &SampleRead<'_>, (begun, over): (Instant, Instant)) {
        match &read.done {
            Ok(()) => {
                self.samples += 1;
                self.bytes += read.out.len() as u64;
            }
            Err(error) => job.failed = Some((Stage::Read, error.to_string())),
        }
        let counters = &run.engine.counters;
        counters.journey.read_queue.add(begun - job.since, 1);
        job.read = over - begun;
        counters.journey.read.add(job.read, 1);
        counters.read_times.add(job.read);
        job.since = over;
    }
}

fn read_each(run: &Epoch, chunk: &mut Chunk, since: Instant) -> Done {
    let (mut done, mut begun) = (Done::default(), since);
    for (job, out) in chunk.unread() {
        let mut read = SampleRead::new(job.id, out);
        read.done = run.engine.recipe.source.read_into(read.id, read.out);
        let over = Instant::now();
        done.add(run, job, &read, (begun, over));
        begun = over;
    }
    done
}

fn read_together(run: &Epoch, chunk: &mut Chunk, since: Instant) -> Done {
    let wanted = chunk.unread().map(|(job, out)| {
        let read = SampleRead::new(job.id, out);
        (job, read)
    });
    let (mut jobs, mut reads): (Vec<_>, Vec<_>) = wanted.unzip();
    run.engine.recipe.source.read_many(&mut reads);
    let (mut done, over) = (Done::default(), Instant::now());
    for (job, read) in jobs.iter_mut().zip(&reads) {
        done.add(run, job, read, (since, over));
    }
    done
}
