//! Chunks: consecutive samples of one batch that are read into one buffer and decoded by one worker. Large samples
//! travel alone.
//!
//! Retries. A chunk holds a sender to admit, through which a worker returns places whose sample turned out bad. Each
//! [`Retry`] carries that sender on to the next chunk. Nothing else holds one, so when the last chunk in flight is
//! done, the channel closes, and admit knows that no retry can follow.

use std::ops::Range;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use crate::device::DeviceError;
use crate::plan::{CHUNK_SAMPLES_MAX, CHUNK_TARGET_BYTES, ENCODED_BYTES_MAX};
use crate::pool::{EncodedCache, Part, ReadBuffer, Reusable};
use crate::sample_error::SampleError;
use crate::sync::Arc;
use crate::units::{ByteCount, SampleId};

/// Samples that are read and decoded together.
pub(super) struct Chunk {
    pub(super) batch: u64,
    pub(super) buffer: ReadBuffer,
    /// Bytes of the buffer that its samples take.
    pub(super) len: usize,
    /// Cache with samples of earlier epochs, held here so that they stay for as long as the chunk needs them.
    pub(super) cache: Option<Arc<EncodedCache>>,
    pub(super) jobs: Vec<Job>,
    /// Sender to admit for places whose sample turned out bad.
    pub(super) retry: Option<Sender<Retry>>,
}

/// One sample of a chunk.
pub(super) struct Job {
    pub(super) part: Part,
    pub(super) id: SampleId,
    pub(super) attempt: Attempt,
    /// Location of its bytes.
    pub(super) encoded: Encoded,
    /// Error of an earlier stage.
    pub(super) failed: Option<SampleError>,
    /// Time at which the job entered its current stage.
    pub(super) since: Instant,
    /// Time that reading it took.
    pub(super) read: Duration,
}

/// Location of a sample's encoded bytes, once its chunk has been read.
pub(super) enum Encoded {
    /// Range of the chunk's buffer.
    Buffered(Range<usize>),
    /// The cache.
    Cached,
}

/// The sample that a place was meant for, and the number of substitutes tried.
#[derive(Clone, Copy)]
pub(super) struct Attempt {
    /// Position in the epoch, over all ranks.
    pub(super) place: u64,
    pub(super) original: SampleId,
    pub(super) count: u32,
}

/// A place whose sample is to be replaced.
pub(super) struct Retry {
    pub(super) part: Part,
    pub(super) id: SampleId,
    pub(super) attempt: Attempt,
    /// Sender of the chunk, handed on to the next one.
    pub(super) sender: Sender<Retry>,
}

impl Reusable for Chunk {
    fn recycle(&mut self) {
        self.jobs.clear();
        self.retry = None;
        self.cache = None;
        self.len = 0;
        self.buffer.release();
    }

    fn release_memory(&mut self) {
        self.buffer.release_memory();
    }

    fn reacquire(&mut self) -> Result<(), DeviceError> {
        self.buffer.reacquire()
    }
}

impl Chunk {
    pub(super) fn new(buffer: ReadBuffer) -> Self {
        Chunk { batch: 0, buffer, len: 0, cache: None, jobs: Vec::with_capacity(CHUNK_SAMPLES_MAX), retry: None }
    }

    /// Returns true if a sample that takes this much of the buffer fits.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        let fits = self.len as u64 + bytes <= CHUNK_TARGET_BYTES;
        self.jobs.is_empty() || (fits && self.jobs.len() < CHUNK_SAMPLES_MAX)
    }

    /// Adds a sample of `bytes` as stored.
    pub(super) fn push(&mut self, part: Part, id: SampleId, attempt: Attempt, bytes: u64) {
        let (mut encoded, mut failed) = (Encoded::Cached, None);
        if self.cached(id).is_none() {
            if bytes <= ENCODED_BYTES_MAX {
                encoded = Encoded::Buffered(self.len..self.len + bytes as usize);
                self.len += bytes as usize;
            } else {
                let (bytes, limit) = (ByteCount(bytes), ByteCount(ENCODED_BYTES_MAX));
                failed = Some(SampleError::FileTooLarge { bytes, limit });
            }
        }
        self.jobs.push(Job { part, id, attempt, encoded, failed, since: Instant::now(), read: Duration::ZERO });
    }

    /// The jobs that have to be read, each with its memory.
    pub(super) fn unread(&mut self) -> impl Iterator<Item = (&mut Job, &mut [u8])> {
        let (mut rest, mut start) = (self.buffer.bytes_mut(), 0);
        self.jobs.iter_mut().filter_map(move |job| {
            let (None, Encoded::Buffered(range)) = (&job.failed, &job.encoded) else { return None };
            // Ranges ascend: bytes before this one belong to a job that failed.
            let (_, from) = std::mem::take(&mut rest).split_at_mut(range.start - start);
            let (out, after) = from.split_at_mut(range.len());
            (rest, start) = (after, range.end);
            Some((job, out))
        })
    }

    pub(super) fn cached(&self, id: SampleId) -> Option<&[u8]> {
        self.cache.as_deref()?.get(id)
    }

    /// The encoded bytes of a sample that has not failed.
    pub(super) fn encoded(&self, job: &Job) -> &[u8] {
        match &job.encoded {
            Encoded::Buffered(range) => &self.buffer.bytes()[range.clone()],
            // Cached samples stay, and this is the cache that the sample was found in.
            Encoded::Cached => self.cached(job.id).unwrap_or_default(),
        }
    }

    /// Fails every sample that would have to be read.
    pub(super) fn fail(&mut self, error: impl Fn() -> SampleError) {
        self.len = 0;
        for job in &mut self.jobs {
            if matches!(job.encoded, Encoded::Buffered(_)) {
                job.failed.get_or_insert_with(&error);
            }
        }
    }
}
